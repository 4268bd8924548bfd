/* mica_repack_rows: what the blocks decode to is what the checkpoint's encoding decodes to, bit for bit; and which scales float16 cannot
 * hold. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "numerics/encode.h"
#include "numerics/repack.h"

enum { ROWS = 64, COLUMNS = 96 };

static uint64_t seed = 1;
static uint32_t next_random(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static void assert_same_values(const mica_matrix *matrix, mica_dtype type, uint64_t expected_inexact) {
    static uint8_t blocks[ROWS * COLUMNS];
    static float expected[ROWS * COLUMNS], got[ROWS * COLUMNS];
    uint64_t inexact = 0;
    mica_repack_misfit misfit;
    assert_true(mica_repack_can(matrix, type));
    assert_true(mica_repack_scales_fit(matrix, type, 0, matrix->rows, &misfit));
    mica_repack_rows(matrix, type, 0, 1, blocks, &inexact);
    mica_repack_rows(matrix, type, 1, matrix->rows - 1, blocks + COLUMNS / 32 * mica_dtype_block_bytes(type), &inexact);
    assert_int_equal(inexact, expected_inexact);
    const mica_matrix packed = {.encoding = MICA_ENCODING_BLOCK, .dtype = type, .rows = matrix->rows, .columns = COLUMNS, .codes = blocks};
    mica_matrix_decode(matrix, 0, 0, matrix->rows, expected, COLUMNS);
    mica_matrix_decode(&packed, 0, 0, matrix->rows, got, COLUMNS);
    for (uint64_t i = 0; expected_inexact == 0 && i < matrix->rows * COLUMNS; i++)
        assert_true(got[i] == expected[i]); /* -0 and 0 are one value */
}

/* Scale 77, the third of row 25's: one is held, the other is told, and by the rows that have it alone. */
static void assert_misfit(const mica_matrix *matrix, mica_dtype type, void *scale, const void *fits, const void *does_not, size_t bytes) {
    mica_repack_misfit misfit;
    memcpy(scale, fits, bytes);
    assert_true(mica_repack_scales_fit(matrix, type, 0, ROWS, &misfit));
    memcpy(scale, does_not, bytes);
    assert_false(mica_repack_scales_fit(matrix, type, 0, ROWS, &misfit));
    assert_int_equal(misfit.row, 25);
    assert_int_equal(misfit.column, 64);
    assert_false(isfinite(misfit.scale) && fabs(misfit.scale) < 65520);
    assert_false(mica_repack_scales_fit(matrix, type, 25, 1, &misfit));
    assert_true(mica_repack_scales_fit(matrix, type, 0, 25, &misfit));
    assert_true(mica_repack_scales_fit(matrix, type, 26, ROWS - 26, &misfit));
    memcpy(scale, fits, bytes);
}

static void test_mxfp4(void **state) {
    (void)state;
    static uint8_t codes[ROWS * COLUMNS / 2], scales[ROWS * COLUMNS / 32];
    for (size_t i = 0; i < sizeof codes; i++)
        codes[i] = (uint8_t)next_random();
    for (size_t i = 0; i < sizeof scales; i++)
        scales[i] = (uint8_t)(i % 252);
    mica_matrix matrix = {MICA_ENCODING_MXFP4, MICA_I8, ROWS, COLUMNS, codes, MICA_F8_E8M0, 1, 32, scales};
    assert_same_values(&matrix, MICA_MXFP4, 0);
    assert_false(mica_repack_can(&matrix, MICA_Q4_0));
    assert_misfit(&matrix, MICA_MXFP4, &scales[77], (uint8_t[]){254}, (uint8_t[]){255}, 1);
    matrix.block_columns = 64;
    assert_false(mica_repack_can(&matrix, MICA_MXFP4));
    matrix.block_columns = 32;
    matrix.scale_dtype = MICA_F32;
    assert_false(mica_repack_can(&matrix, MICA_MXFP4));
    matrix.encoding = MICA_ENCODING_FP8_BLOCK;
    assert_false(mica_repack_can(&matrix, MICA_Q4_0));
}

static void make_int4(uint16_t first_scale, uint16_t *scales, uint8_t *codes) {
    for (size_t i = 0; i < ROWS * COLUMNS / 2; i++)
        codes[i] = (uint8_t)next_random();
    for (size_t i = 0; i < ROWS * COLUMNS / 32; i++)
        scales[i] = (uint16_t)(first_scale + i);
}

/* Every bfloat16 from 2^-17 (0x3700) to 65280 (0x477f) is held; the neighbours below lose bits. */
static void test_int4(void **state) {
    (void)state;
    static uint8_t codes[ROWS * COLUMNS / 2];
    static uint16_t scales[ROWS * COLUMNS / 32];
    const mica_matrix matrix = {MICA_ENCODING_INT4_GROUP, MICA_I32, ROWS, COLUMNS, codes, MICA_BF16, 1, 32, scales};
    for (uint32_t first = 0x3700; first + ROWS * COLUMNS / 32 <= 0x477f + 1; first += ROWS * COLUMNS / 32) {
        make_int4((uint16_t)first, scales, codes);
        assert_same_values(&matrix, MICA_Q4_0, 0);
        make_int4((uint16_t)(first | 0x8000), scales, codes);
        assert_same_values(&matrix, MICA_Q4_0, 0);
    }
    make_int4(0x3680, scales, codes); /* 2^-18 and up: every second has a bit too many */
    uint64_t odd = 0;
    for (size_t i = 0; i < ROWS * COLUMNS / 32; i++)
        odd += scales[i] < 0x3700 && (scales[i] & 1);
    assert_same_values(&matrix, MICA_Q4_0, odd);
    make_int4(0x3f80, scales, codes);
    const uint16_t held[] = {0x0000, 0x8000, 0x3380, 0x477f}; /* 0, -0, float16's smallest, 65280 */
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) {
        scales[5] = held[i];
        assert_same_values(&matrix, MICA_Q4_0, 0);
    }
    static const uint16_t beyond[] = {0x4780, 0xc780, 0x7f7f, 0x7f80, 0xff80, 0x7fc0}; /* 65536, -65536, the largest, infinities, NaN */
    for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++)
        assert_misfit(&matrix, MICA_Q4_0, &scales[77], &held[3], &beyond[i], sizeof beyond[i]);
}

/* float32 scales: what float16 rounds to 65504 fits, what it rounds to infinity does not. */
static void test_float_scales(void **state) {
    (void)state;
    static uint8_t codes[ROWS * COLUMNS / 2];
    static float scales[ROWS * COLUMNS / 32];
    for (size_t i = 0; i < sizeof codes; i++)
        codes[i] = (uint8_t)next_random();
    for (size_t i = 0; i < ROWS * COLUMNS / 32; i++)
        scales[i] = ldexpf((float)(1 + i % 2000), -18);
    const mica_matrix matrix = {MICA_ENCODING_INT4_GROUP, MICA_I32, ROWS, COLUMNS, codes, MICA_F32, 1, 32, scales};
    assert_same_values(&matrix, MICA_Q4_0, 0);
    assert_misfit(&matrix, MICA_Q4_0, &scales[77], &(float){65519.0f}, &(float){65520.0f}, sizeof(float));
    scales[9] = 0.1f;
    assert_same_values(&matrix, MICA_Q4_0, 2); /* and 65519, which becomes 65504 */
}

/* A group of 96 columns is three blocks of one scale, and counts once. */
static void test_wide_groups(void **state) {
    (void)state;
    static uint8_t codes[ROWS * COLUMNS / 2];
    static uint16_t scales[ROWS * COLUMNS / 32];
    make_int4(0x3f80, scales, codes);
    mica_matrix matrix = {MICA_ENCODING_INT4_GROUP, MICA_I32, ROWS, COLUMNS, codes, MICA_BF16, 1, 96, scales};
    assert_same_values(&matrix, MICA_Q4_0, 0);
    scales[5] = 0x3681;
    assert_same_values(&matrix, MICA_Q4_0, 1);
    matrix.block_columns = 48;
    assert_false(mica_repack_can(&matrix, MICA_Q4_0));
    matrix.block_columns = 32;
    matrix.columns = 40;
    assert_false(mica_repack_can(&matrix, MICA_Q4_0));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mxfp4), cmocka_unit_test(test_int4), cmocka_unit_test(test_float_scales),
                                       cmocka_unit_test(test_wide_groups)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
