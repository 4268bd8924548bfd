/* mica_repack_rows: what the blocks decode to is what the checkpoint's encoding decodes to, bit for bit; and which scales float16 cannot hold. */
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
    assert_true(mica_repack_can(matrix, type));
    mica_repack_rows(matrix, type, 0, 1, blocks, &inexact);
    mica_repack_rows(matrix, type, 1, matrix->rows - 1, blocks + COLUMNS / 32 * mica_dtype_block_bytes(type), &inexact);
    assert_int_equal(inexact, expected_inexact);
    const mica_matrix packed = {.encoding = MICA_ENCODING_BLOCK, .dtype = type, .rows = matrix->rows, .columns = COLUMNS, .codes = blocks};
    mica_matrix_decode(matrix, 0, 0, matrix->rows, expected, COLUMNS);
    mica_matrix_decode(&packed, 0, 0, matrix->rows, got, COLUMNS);
    for (uint64_t i = 0; expected_inexact == 0 && i < matrix->rows * COLUMNS; i++)
        assert_true(got[i] == expected[i]); /* -0 and 0 are one value */
}

static void test_mxfp4(void **state) {
    (void)state;
    static uint8_t codes[ROWS * COLUMNS / 2], scales[ROWS * COLUMNS / 32];
    for (size_t i = 0; i < sizeof codes; i++)
        codes[i] = (uint8_t)next_random();
    for (size_t i = 0; i < sizeof scales; i++)
        scales[i] = (uint8_t)(i % 252);
    const mica_matrix matrix = {MICA_ENCODING_MXFP4, MICA_I8, ROWS, COLUMNS, codes, MICA_F8_E8M0, 1, 32, scales};
    assert_same_values(&matrix, MICA_MXFP4, 0);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mxfp4), cmocka_unit_test(test_int4), cmocka_unit_test(test_wide_groups)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
