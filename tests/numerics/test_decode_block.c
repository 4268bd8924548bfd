/* Judges numerics/decode_block*.c: blocks made by hand with the values they must have, then random and adversarial blocks of every type
 * against tests/reference/decode_block.h, bit for bit, under each instruction set; windows, exponents, and what examine says.
 * ggml itself is asked in tests/interop/gguf_blocks.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "reference/decode_block.h"

static uint64_t random_state = 0x2545f4914f6cdd1du;

static uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x9e3779b97f4a7c15u;
}

static uint64_t random_below(uint64_t limit) {
    return (random_u64() >> 11) % limit;
}

static uint32_t bits_of(const float *value) {
    uint32_t bits;
    memcpy(&bits, value, sizeof bits);
    return bits;
}

#define EACH_CPU(cpu) for (mica_cpu cpu = 0; cpu <= mica_cpu_detected(); cpu++) if (mica_cpu_select(cpu), 1)
#define EACH_TYPE(dtype) for (mica_dtype dtype = MICA_DTYPE_PLAIN_COUNT; dtype < MICA_DTYPE_COUNT; dtype++)

/* Where a type keeps its halves. */
static unsigned halves_of(mica_dtype dtype, unsigned at[2]) {
    at[0] = dtype == MICA_Q2_K ? 80 : dtype == MICA_Q3_K ? 108 : dtype == MICA_Q6_K ? 208 : 0;
    at[1] = at[0] + 2;
    return dtype == MICA_MXFP4 ? 0
           : dtype == MICA_Q4_1 || dtype == MICA_Q5_1 || dtype == MICA_Q2_K || dtype == MICA_Q4_K || dtype == MICA_Q5_K ? 2 : 1;
}

/* Random codes; the halves moderate, or any bits at all. */
static void fill_blocks(mica_dtype dtype, uint8_t *blocks, uint64_t count, bool moderate) {
    uint32_t bytes = mica_dtype_block_bytes(dtype);
    for (uint64_t i = 0; i < count * bytes; i++)
        blocks[i] = (uint8_t)(random_u64() >> 32);
    for (uint64_t b = 0; moderate && b < count; b++) {
        unsigned at[2], halves = halves_of(dtype, at);
        for (unsigned h = 0; h < halves; h++)
            blocks[b * bytes + at[h] + 1] &= 0xbb; /* an exponent below 16, never infinity */
        if (dtype == MICA_MXFP4)
            blocks[b * bytes] = (uint8_t)(120 + blocks[b * bytes] % 16);
    }
}

/* ---- by hand */

static mica_matrix one_row(mica_dtype dtype, const void *blocks, uint64_t columns) {
    return (mica_matrix){.encoding = MICA_ENCODING_BLOCK, .dtype = dtype, .rows = 1, .columns = columns, .codes = blocks};
}

static void expect_values(mica_dtype dtype, const uint8_t *block, const float *expected) {
    uint32_t elements = mica_dtype_block_elements(dtype);
    float out[256];
    mica_matrix matrix = one_row(dtype, block, elements);
    EACH_CPU(cpu) {
        mica_matrix_decode(&matrix, 0, 0, 1, out, elements);
        for (uint32_t i = 0; i < elements; i++)
            if (bits_of(out + i) != bits_of(expected + i))
                fail_msg("%s under %s, element %u: expected %a, got %a", mica_dtype_name(dtype), mica_cpu_name(cpu), i, (double)expected[i],
                         (double)out[i]);
    }
}

/* Codes that count up; 0x3c00 is 1, 0x4000 2, 0x3800 a half. */
static void test_small_blocks_by_hand(void **state) {
    (void)state;
    float expected[32];
    uint8_t q4_0[18] = {0x00, 0x40}, q4_1[20] = {0x00, 0x38, 0x00, 0x3c}, iq4_nl[18] = {0x00, 0x3c}, mxfp4[17] = {128};
    static const float iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    static const float e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}; /* code 8 is +0, as ggml has it */
    for (int j = 0; j < 16; j++) { /* element j has code j, element j + 16 code 15 - j */
        uint8_t byte = (uint8_t)(j | (15 - j) << 4);
        q4_0[2 + j] = q4_1[4 + j] = iq4_nl[2 + j] = mxfp4[1 + j] = byte;
    }
    for (int i = 0; i < 32; i++)
        expected[i] = 2.0f * (float)((i < 16 ? i : 31 - i) - 8);
    expect_values(MICA_Q4_0, q4_0, expected);
    for (int i = 0; i < 32; i++)
        expected[i] = 0.5f * (float)(i < 16 ? i : 31 - i) + 1.0f;
    expect_values(MICA_Q4_1, q4_1, expected);
    for (int i = 0; i < 32; i++)
        expected[i] = iq4[i < 16 ? i : 31 - i];
    expect_values(MICA_IQ4_NL, iq4_nl, expected);
    for (int i = 0; i < 32; i++)
        expected[i] = e2m1[i < 16 ? i : 31 - i]; /* 2^(128 - 128), the table is doubled */
    expect_values(MICA_MXFP4, mxfp4, expected);
    uint8_t q5_0[22] = {0x00, 0x3c, 0x01, 0x00, 0x00, 0x80}, q5_1[24] = {0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00, 0x00, 0x80},
            q8_0[34] = {0x00, 0x38};
    for (int i = 0; i < 32; i++) { /* only elements 0 and 31 have the fifth bit; all nibbles are 0 */
        expected[i] = i == 0 || i == 31 ? 0.0f : -16.0f;
        q8_0[2 + i] = (uint8_t)(i * 8 - 128);
    }
    expect_values(MICA_Q5_0, q5_0, expected);
    for (int i = 0; i < 32; i++)
        expected[i] = (i == 0 || i == 31 ? 16.0f : 0.0f) - 2.0f;
    expect_values(MICA_Q5_1, q5_1, expected);
    for (int i = 0; i < 32; i++)
        expected[i] = 0.5f * (float)(i * 8 - 128);
    expect_values(MICA_Q8_0, q8_0, expected);
}

/* One code, one scale, one minimum at a time: each sits where the format says. */
static void test_super_blocks_by_hand(void **state) {
    (void)state;
    float expected[256];
    uint8_t q4_k[144] = {0x00, 0x3c, 0x00, 0x38}; /* d 1, dmin a half */
    q4_k[4 + 1] = 63;           /* scale 1 */
    q4_k[4 + 4 + 1] = 2;        /* minimum 1 */
    q4_k[4 + 8 + 3] = 0x35;     /* scale 7 low 5, minimum 7 low 3 */
    q4_k[4 + 3] = 0x80;         /* scale 7 += 32 */
    q4_k[4 + 4 + 3] = 0x40;     /* minimum 7 += 16 */
    q4_k[16 + 4] = 0x90;        /* element 36 = 9 */
    q4_k[16 + 96 + 31] = 0xf0;  /* element 255 = 15 */
    for (int i = 0; i < 256; i++)
        expected[i] = i / 32 == 1 ? -1.0f : i / 32 == 7 ? -9.5f : 0.0f;
    expected[36] = 9 * 63 - 1.0f;
    expected[255] = 15 * 37 - 9.5f;
    expect_values(MICA_Q4_K, q4_k, expected);
    uint8_t q5_k[176] = {0};
    memcpy(q5_k, q4_k, 16);
    memcpy(q5_k + 48, q4_k + 16, 128);
    q5_k[16 + 4] = 0x02;  /* element 36 += 16 */
    q5_k[16 + 31] = 0x80; /* element 255 += 16 */
    expected[36] = 25 * 63 - 1.0f;
    expected[255] = 31 * 37 - 9.5f;
    expect_values(MICA_Q5_K, q5_k, expected);
    uint8_t q6_k[210] = {0};
    q6_k[209] = 0x3c;
    for (int j = 0; j < 16; j++)
        q6_k[192 + j] = (uint8_t)(j == 9 ? -128 : 1);
    q6_k[64 + 5] = 0x0f;       /* second half, element 128 + 5: low 15 */
    q6_k[128 + 32 + 5] = 0x03; /* high 3 */
    q6_k[64 + 16] = 0x05;      /* element 128 + 16 = 5, scale 9 */
    for (int i = 0; i < 256; i++)
        expected[i] = i / 16 == 9 ? -32.0f * -128.0f : -32.0f;
    expected[133] = 31.0f;
    expected[144] = (5.0f - 32.0f) * -128.0f;
    expect_values(MICA_Q6_K, q6_k, expected);
    uint8_t q2_k[84] = {0};
    q2_k[81] = 0x3c;          /* d 1 */
    q2_k[83] = 0x40;          /* dmin 2 */
    q2_k[6] = 0x3f;           /* elements 96 to 111: scale 15, minimum 3 */
    q2_k[16 + 1] = 0xc0;      /* element 97 = 3 */
    for (int i = 0; i < 256; i++)
        expected[i] = i / 16 == 6 ? -6.0f : 0.0f;
    expected[97] = 45.0f - 6.0f;
    expect_values(MICA_Q2_K, q2_k, expected);
    uint8_t q3_k[110] = {0};
    q3_k[109] = 0x3c;
    q3_k[96 + 5] = 0xf0;     /* scale 13 low 15 */
    q3_k[104 + 1] = 0xc0;    /* scale 13 += 48: 63 */
    q3_k[17] = 0x40;         /* hmask: element 6 * 32 + 17 = 209 */
    q3_k[32 + 32 + 17] = 0x20; /* its low bits: 2 */
    for (int i = 0; i < 256; i++)
        expected[i] = (i / 16 == 13 ? 31.0f : -32.0f) * -4.0f;
    expected[209] = 31.0f * 2.0f;
    expect_values(MICA_Q3_K, q3_k, expected);
    uint8_t iq4_xs[136] = {0x00, 0x3c};
    iq4_xs[3] = 0x20;      /* scales_h: sub-block 6 += 32 */
    iq4_xs[4 + 3] = 0x03;  /* scales_l: sub-block 6 = 3 */
    iq4_xs[8 + 96] = 0xf0; /* element 192: code 0; element 208: code 15 */
    for (int i = 0; i < 256; i++)
        expected[i] = (i / 32 == 6 ? 3.0f : -32.0f) * -127.0f;
    expected[208] = 3.0f * 113.0f;
    expect_values(MICA_IQ4_XS, iq4_xs, expected);
}

/* ---- against the reference */

static void check_window(mica_dtype dtype, const uint8_t *blocks, uint64_t rows, uint64_t columns, int exponent, uint64_t column,
                         uint64_t width) {
    uint32_t elements = mica_dtype_block_elements(dtype), bytes = mica_dtype_block_bytes(dtype);
    uint64_t stride = width + random_below(3), in_row = columns / elements;
    mica_matrix matrix = {.encoding = MICA_ENCODING_BLOCK, .dtype = dtype, .rows = rows, .columns = columns, .codes = blocks};
    assert_int_equal(mica_matrix_row_bytes(&matrix), in_row * bytes);
    float *out = malloc((rows * stride + 1) * sizeof *out);
    uint32_t *expected = malloc((rows * stride + 1) * sizeof *expected);
    assert_true(out && expected);
    for (uint64_t r = 0; r < rows; r++) {
        long double values[256];
        for (uint64_t c = 0; c < stride; c++) {
            uint64_t at = column + c;
            if (c < width && (c == 0 || at % elements == 0))
                reference_block(dtype, blocks + (r * in_row + at / elements) * bytes, values);
            expected[r * stride + c] = c < width ? reference_bits(values[at % elements], exponent) : 0x4640e400u;
        }
    }
    EACH_CPU(cpu) {
        for (uint64_t i = 0; i < rows * stride; i++)
            out[i] = 12345.0f;
        mica_matrix_decode_block(&matrix, exponent, 0, rows, column, width, out, stride);
        for (uint64_t i = 0; i < rows * stride; i++)
            if (bits_of(out + i) != expected[i])
                fail_msg("%s under %s, exponent %d, columns %llu + %llu of %llu, at %llu: expected %08x, got %08x", mica_dtype_name(dtype),
                         mica_cpu_name(cpu), exponent, (unsigned long long)column, (unsigned long long)width, (unsigned long long)columns,
                         (unsigned long long)i, expected[i], bits_of(out + i));
    }
    free(out);
    free(expected);
}

static void test_random_blocks(void **state) {
    (void)state;
    static const int exponents[] = {0, 0, 1, -3, 8, 16, 17, 60, 61, 120, 130, 149, 170, 5000, -60, -61, -110, -5000};
    EACH_TYPE(dtype) {
        uint32_t elements = mica_dtype_block_elements(dtype), bytes = mica_dtype_block_bytes(dtype);
        for (int round = 0; round < 40; round++) {
            uint64_t rows = 1 + random_below(3), in_row = 1 + random_below(elements == 32 ? 40 : 6), columns = in_row * elements;
            uint8_t *owned = malloc(rows * in_row * bytes + 1), *blocks = owned + 1; /* exactly as long, one byte off any alignment */
            assert_non_null(owned);
            fill_blocks(dtype, blocks, rows * in_row, round % 2);
            int exponent = round < 20 ? 0 : exponents[random_below(sizeof exponents / sizeof *exponents)];
            check_window(dtype, blocks, rows, columns, exponent, 0, columns);
            uint64_t column = 32 * random_below(columns / 32), left = columns - column;
            check_window(dtype, blocks, rows, columns, exponent, column, 32 * (1 + random_below(left / 32)));
            free(owned);
        }
    }
}

/* Every half in every place that has one, with all codes 0, all codes largest, and random ones. */
static void test_every_half(void **state) {
    (void)state;
    EACH_TYPE(dtype) {
        uint32_t elements = mica_dtype_block_elements(dtype), bytes = mica_dtype_block_bytes(dtype);
        unsigned at[2], halves = halves_of(dtype, at);
        uint8_t blocks[2 * 210];
        for (unsigned half = 0; half < 65536; half += half % 1024 == 0 || half % 1024 > 1000 ? 1 : 37) {
            memset(blocks, half % 3 == 0 ? 0 : 0xff, bytes);
            fill_blocks(dtype, blocks + bytes, 1, true);
            for (unsigned h = 0; h < halves; h++) {
                uint8_t *place = blocks + bytes * (half / 7 % 2) + at[h];
                place[0] = (uint8_t)half;
                place[1] = (uint8_t)(half >> 8);
            }
            if (halves == 0)
                blocks[0] = blocks[bytes] = (uint8_t)half;
            check_window(dtype, blocks, 1, 2 * elements, half % 5 ? 0 : 3, 0, 2 * elements);
        }
    }
}

static void test_examine(void **state) {
    (void)state;
    EACH_TYPE(dtype) {
        uint32_t elements = mica_dtype_block_elements(dtype), bytes = mica_dtype_block_bytes(dtype);
        uint64_t rows = 3, in_row = elements == 32 ? 70 : 10;
        uint8_t *blocks = malloc(rows * in_row * bytes);
        assert_non_null(blocks);
        mica_matrix matrix = {.encoding = MICA_ENCODING_BLOCK, .dtype = dtype, .rows = rows, .columns = in_row * elements, .codes = blocks};
        for (int round = 0; round < 6; round++) {
            fill_blocks(dtype, blocks, rows * in_row, true);
            if (round == 0)
                memset(blocks, 0, rows * in_row * bytes);
            if (dtype == MICA_MXFP4 && round > 3)
                blocks[5 * bytes] = (uint8_t)(round == 4 ? 254 : 253); /* beyond float32, and finite */
            long double largest = 0, values[256];
            for (uint64_t b = 0; b < rows * in_row; b++) {
                reference_block(dtype, blocks + b * bytes, values);
                for (uint32_t i = 0; i < elements; i++)
                    largest = fabsl(values[i]) > largest ? fabsl(values[i]) : largest;
            }
            EACH_CPU(cpu) {
                mica_matrix_health health;
                mica_matrix_examine(&matrix, &health);
                assert_true(!health.has_nan && !health.has_infinity && !health.has_zero_scale && !health.has_negative_scale);
                long double scaled = ldexpl(largest, -health.exponent);
                if (largest == 0 ? health.exponent != 0 : !(scaled <= 1 && scaled > 0.25L))
                    fail_msg("%s under %s: largest %La, exponent %d", mica_dtype_name(dtype), mica_cpu_name(cpu), largest, health.exponent);
            }
        }
        unsigned at[2], halves = halves_of(dtype, at);
        uint64_t bad = in_row + 4; /* row 1, block 4 */
        for (unsigned h = 0; h < (halves ? halves : 1); h++) {
            for (int infinite = 0; infinite < (halves ? 2 : 1); infinite++) {
                fill_blocks(dtype, blocks, rows * in_row, true);
                if (halves == 0)
                    blocks[bad * bytes] = 255;
                else
                    memcpy(blocks + bad * bytes + at[h], infinite ? "\x00\x7c" : "\x01\x7e", 2);
                EACH_CPU(cpu) {
                    mica_matrix_health health;
                    mica_matrix_examine(&matrix, &health);
                    assert_true(infinite ? health.has_infinity : health.has_nan && !health.has_infinity);
                    assert_int_equal(health.nan_row, 1);
                    assert_int_equal(health.nan_column, 4 * elements);
                    assert_false(health.in_scale);
                }
            }
        }
        free(blocks);
    }
}

static void test_blocks_are_not_plain(void **state) {
    (void)state;
    float out[256];
    uint8_t block[210] = {0};
    EACH_TYPE(dtype) {
        assert_false(mica_decode_plain(dtype, block, 256, out));
    }
    assert_string_equal(mica_encoding_name(MICA_ENCODING_BLOCK), "block");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_blocks_by_hand),
        cmocka_unit_test(test_super_blocks_by_hand),
        cmocka_unit_test(test_random_blocks),
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_examine),
        cmocka_unit_test(test_blocks_are_not_plain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
