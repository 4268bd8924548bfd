/* Judges numerics/quantise_lossless and quantise_error: a stored matrix put into blocks decodes to the same floats; scales without a float16 are
 * told; fp8 to Q8_0 by its own scale's grid is nearer than without; the measure of error is the sum that its header says. */
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

static void random_codes(void) {
    for (uint64_t i = 0; i < COUNT; i++)
        codes[i] = (uint8_t)random_u64();
}

static void same_values(const mica_matrix *matrix, mica_dtype expected) {
    mica_dtype type = MICA_F32;
    char why[MICA_LOSSLESS_WHY_BYTES] = "";
    if (!mica_lossless_type(matrix, &type, why))
        fail_msg("%s", why);
    assert_int_equal(type, expected);
    uint64_t row_bytes = COLUMNS / mica_dtype_block_elements(type) * mica_dtype_block_bytes(type);
    mica_lossless_rows(matrix, 0, ROWS, blocks);
    decode(type, blocks, y);
    mica_matrix_decode(matrix, 0, 0, ROWS, x, COLUMNS);
    for (uint64_t i = 0; i < COUNT; i++)
        assert_true(x[i] == y[i]);
    for (uint64_t row = 0; row < ROWS; row++) /* and any rows alone */
        mica_lossless_rows(matrix, row, 1, others + row * row_bytes);
    assert_memory_equal(blocks, others, ROWS * row_bytes);
}

static void int4_becomes_q4_0(void **state) {
    (void)state;
    uint16_t scales[COUNT / 32];
    mica_matrix matrix = {.encoding = MICA_ENCODING_INT4_GROUP, .dtype = MICA_I32, .rows = ROWS, .columns = COLUMNS, .codes = codes,
                          .scale_dtype = MICA_BF16, .block_rows = 1, .block_columns = 32, .scales = scales};
    random_codes();
    /* Every bf16 from 2^-17 to 65280, some negative; the others in turn below. */
    for (uint32_t first = 0x3700; first <= 0x477f; first += COUNT / 32) {
        for (uint32_t i = 0; i < COUNT / 32; i++)
            scales[i] = (uint16_t)((first + i <= 0x477f ? first + i : 0x3f80) | (i % 7 == 0 ? 0x8000 : 0));
        same_values(&matrix, MICA_Q4_0);
    }
    scales[3] = 0;
    scales[4] = 0x8000;
    scales[5] = 0x3380; /* 2^-24, float16's smallest */
    same_values(&matrix, MICA_Q4_0);
    mica_dtype type = MICA_F32;
    char why[MICA_LOSSLESS_WHY_BYTES];
    static const uint16_t bad[] = {0x3381, 0x3681, 0x3300, 0x4780, 0x7f80, 0x7fc0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        scales[COUNT / 32 - 3] = bad[i];
        assert_false(mica_lossless_type(&matrix, &type, why));
        assert_non_null(strstr(why, "scale 39, 5 is "));
        assert_non_null(strstr(why, "no float16"));
    }
}

static void int4_in_other_grids(void **state) {
    (void)state;
    float scales[COUNT];
    char why[MICA_LOSSLESS_WHY_BYTES];
    mica_dtype type;
    for (uint64_t i = 0; i < COUNT; i++)
        scales[i] = ldexpf((float)(1 + i % 2000), -18);
    mica_matrix matrix = {.encoding = MICA_ENCODING_INT4_GROUP, .dtype = MICA_I32, .rows = ROWS, .columns = COLUMNS, .codes = codes,
                          .scale_dtype = MICA_F32, .block_rows = 3, .block_columns = 64, .scales = scales};
    random_codes();
    same_values(&matrix, MICA_Q4_0);
    matrix.block_columns = 16;
    assert_false(mica_lossless_type(&matrix, &type, why));
    assert_non_null(strstr(why, "groups of 16"));
    matrix.block_columns = 32;
    scales[9] = 0.1f;
    assert_false(mica_lossless_type(&matrix, &type, why));
    matrix.columns = 80;
    assert_false(mica_lossless_type(&matrix, &type, why));
    matrix.encoding = MICA_ENCODING_FP8_BLOCK;
    assert_false(mica_lossless_type(&matrix, &type, why));
    assert_non_null(strstr(why, "fp8-block"));
}

static void mxfp4_and_blocks_are_copied(void **state) {
    (void)state;
    uint8_t scales[COUNT / 32];
    char why[MICA_LOSSLESS_WHY_BYTES];
    mica_dtype type;
    mica_matrix matrix = {.encoding = MICA_ENCODING_MXFP4, .dtype = MICA_I8, .rows = ROWS, .columns = COLUMNS, .codes = codes,
                          .scale_dtype = MICA_F8_E8M0, .block_rows = 1, .block_columns = 32, .scales = scales};
    random_codes();
    for (uint32_t i = 0; i < COUNT / 32; i++)
        scales[i] = (uint8_t)(i % 255);
    same_values(&matrix, MICA_MXFP4);
    scales[77] = 255;
    assert_false(mica_lossless_type(&matrix, &type, why));
    matrix.scale_dtype = MICA_F32;
    assert_false(mica_lossless_type(&matrix, &type, why));
    mica_matrix block = {.encoding = MICA_ENCODING_BLOCK, .dtype = MICA_Q8_0, .rows = ROWS, .columns = COLUMNS, .codes = codes};
    assert_true(mica_lossless_type(&block, &type, why));
    assert_int_equal(type, MICA_Q8_0);
    block.rows = 10;
    mica_lossless_rows(&block, 2, 3, others);
    assert_memory_equal(others, codes + 2 * COLUMNS / 32 * 34, 3 * COLUMNS / 32 * 34);
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
            mica_matrix matrix = {.encoding = MICA_ENCODING_FP8_BLOCK, .dtype = e4m3 ? MICA_F8_E4M3 : MICA_F8_E5M2, .rows = ROWS, .columns = COLUMNS,
                                  .codes = codes, .scale_dtype = MICA_F32, .block_rows = 32, .block_columns = 128, .scales = scales};
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
                assert_int_equal(mica_quantise_matrix(MICA_Q8_0, &matrix, row, 1, &options, scratch, others + row * COLUMNS / 32 * 34, NULL), MICA_OK);
            assert_memory_equal(blocks, others, COUNT / 32 * 34);
            assert_int_equal(mica_quantise_rows(MICA_Q8_0, x, COLUMNS, ROWS, COLUMNS, &options, blocks, NULL), MICA_OK);
            double without = relative(MICA_Q8_0);
            if (!(ours < (power ? 0.8 : 0.9) * without))
                fail_msg("%s, scales %s: %g with the grid, %g without", e4m3 ? "E4M3" : "E5M2", power ? "powers of two" : "any", ours, without);
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
        cmocka_unit_test(int4_becomes_q4_0),          cmocka_unit_test(int4_in_other_grids),
        cmocka_unit_test(mxfp4_and_blocks_are_copied), cmocka_unit_test(fp8_to_q8_0_takes_the_grid),
        cmocka_unit_test(other_types_are_decoded_and_quantised), cmocka_unit_test(error_is_the_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
