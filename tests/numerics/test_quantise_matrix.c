/* Judges mica_quantise_matrix and quantise_error: fp8 to Q8_0 by its own scale's grid is nearer than without; other encodings are decoded
 * and quantised; the measure of error is the sum that its header says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "numerics/quantise.h"
#include "reference/decode_block.h"

enum { ROWS = 40, COLUMNS = 256, COUNT = ROWS * COLUMNS };

static uint64_t random_state = 0x9e3779b97f4a7c15u;
static float x[COUNT], y[COUNT], scratch[COUNT];
static uint8_t codes[COUNT], blocks[2 * COUNT], others[2 * COUNT];

static uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x9e3779b97f4a7c15u >> 8;
}

static double gauss(void) {
    double u = ((double)(random_u64() & 0xffffffffffff) + 0.5) * 0x1p-48, v = (double)(random_u64() & 0xffffffffffff) * 0x1p-48;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static void decode(mica_dtype type, const uint8_t *from, float *out) {
    uint32_t elements = mica_dtype_block_elements(type);
    for (uint64_t i = 0; i < COUNT; i += elements, from += mica_dtype_block_bytes(type)) {
        long double values[256];
        reference_block(type, from, values);
        for (uint32_t k = 0; k < elements; k++)
            out[i + k] = (float)values[k];
    }
}

/* ---- fp8 */

/* sqrt(squared / energy) of what is in `blocks`. */
static double relative(mica_dtype type) {
    mica_quantise_error sum = {0};
    mica_quantise_error_add(type, x, COLUMNS, ROWS, COLUMNS, NULL, blocks, &sum);
    return sqrt(sum.squared / sum.energy);
}

/* Gaussian weights in fp8 with block scales; exact when S is a power of two and a block spans few binades. */
static void fp8_to_q8_0_takes_the_grid(void **state) {
    (void)state;
    const mica_quantise_options options = {MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, NULL};
    for (int power = 0; power < 2; power++)
        for (int e4m3 = 0; e4m3 < 2; e4m3++) {
            float scales[2 * COLUMNS / 128];
            for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
                scales[i] = power ? ldexpf(1, -12 - (int)i) : 0.000231f * (float)(i + 1);
            mica_matrix matrix = {.encoding = MICA_ENCODING_FP8_BLOCK,
                                  .dtype = e4m3 ? MICA_F8_E4M3 : MICA_F8_E5M2,
                                  .rows = ROWS,
                                  .columns = COLUMNS,
                                  .codes = codes,
                                  .scale_dtype = MICA_F32,
                                  .block_rows = 32,
                                  .block_columns = 128,
                                  .scales = scales};
            for (uint64_t i = 0; i < COUNT; i++) {
                float value = (float)fmin(fabs(100 * gauss()), 448), best = INFINITY; /* the nearest code, by trying all */
                for (int code = 0; code < 0x7c; code++) {
                    float off = fabsf((float)reference_element(matrix.dtype, (const uint8_t[]){(uint8_t)code}, 0) - value);
                    if (off < best) {
                        best = off;
                        codes[i] = (uint8_t)code;
                    }
                }
                codes[i] |= random_u64() & 0x80;
            }
            assert_int_equal(mica_quantise_matrix(MICA_Q8_0, &matrix, 0, ROWS, &options, x, blocks, NULL), MICA_OK);
            double ours = relative(MICA_Q8_0);
            for (uint64_t row = 0; row < ROWS; row++) /* rows alone: the same bytes */
                assert_int_equal(
                    mica_quantise_matrix(MICA_Q8_0, &matrix, row, 1, &options, scratch, others + row * COLUMNS / 32 * 34, NULL), MICA_OK);
            assert_memory_equal(blocks, others, COUNT / 32 * 34);
            assert_int_equal(mica_quantise_rows(MICA_Q8_0, x, COLUMNS, ROWS, COLUMNS, &options, blocks, NULL), MICA_OK);
            double without = relative(MICA_Q8_0);
            if (!(ours < (power ? 0.8 : 0.9) * without))
                fail_msg("%s, scales %s: %g with the grid, %g without", e4m3 ? "E4M3" : "E5M2", power ? "powers of two" : "any", ours,
                         without);
        }
}

static void other_types_are_decoded_and_quantised(void **state) {
    (void)state;
    mica_error error = {0};
    const mica_quantise_options options = {MICA_EFFORT_FAST, MICA_QUANTISE_GAIN, NULL};
    uint16_t halves[COUNT];
    for (uint64_t i = 0; i < COUNT; i++)
        halves[i] = (uint16_t)(random_u64() & 0xbfff);
    mica_matrix matrix = {.encoding = MICA_ENCODING_PLAIN, .dtype = MICA_F16, .rows = ROWS, .columns = COLUMNS, .codes = halves};
    mica_matrix_decode(&matrix, 0, 0, ROWS, x, COLUMNS);
    for (mica_dtype type = MICA_Q4_0; type < MICA_DTYPE_COUNT; type++) {
        assert_int_equal(mica_quantise_rows(type, x + COLUMNS, COLUMNS, 3, COLUMNS, &options, blocks, NULL), MICA_OK);
        assert_int_equal(mica_quantise_matrix(type, &matrix, 1, 3, &options, scratch, others, NULL), MICA_OK);
        assert_memory_equal(blocks, others, 3 * COLUMNS / mica_dtype_block_elements(type) * mica_dtype_block_bytes(type));
    }
    halves[5 * COLUMNS + 7] = 0x7e00;
    assert_int_equal(mica_quantise_matrix(MICA_Q4_K, &matrix, 4, 3, &options, scratch, others, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "row 5, column 7"));
}

/* ---- the measure */

static void error_is_the_sum(void **state) {
    (void)state;
    float importance[COLUMNS];
    const mica_quantise_options options = {MICA_EFFORT_FAST, MICA_QUANTISE_GAIN, NULL};
    for (uint64_t i = 0; i < COUNT; i++)
        x[i] = (float)gauss();
    for (uint64_t c = 0; c < COLUMNS; c++)
        importance[c] = (float)exp(gauss());
    for (mica_dtype type = MICA_Q4_0; type < MICA_DTYPE_COUNT; type++)
        for (int weighted = 0; weighted < 2; weighted++) {
            double squared = 3, energy = 5;
            mica_quantise_error sum = {3, 5};
            assert_int_equal(mica_quantise_rows(type, x, COLUMNS, ROWS, COLUMNS, &options, blocks, NULL), MICA_OK);
            decode(type, blocks, y);
            mica_quantise_error_add(type, x, COLUMNS, ROWS, COLUMNS, weighted ? importance : NULL, blocks, &sum);
            for (uint64_t i = 0; i < COUNT; i++) {
                double q = weighted ? (double)importance[i % COLUMNS] : 1;
                squared += q * ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
                energy += q * (double)x[i] * (double)x[i];
            }
            assert_true(fabs(sum.squared - squared) < 1e-10 * squared && fabs(sum.energy - energy) < 1e-10 * energy);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp8_to_q8_0_takes_the_grid),
        cmocka_unit_test(other_types_are_decoded_and_quantised),
        cmocka_unit_test(error_is_the_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
