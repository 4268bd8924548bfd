/* Judges numerics/decode*.c: the fixtures' tables and blocks, then random matrices of every encoding, shape and exponent against
 * tests/reference/decode.h, bit for bit, under each instruction set the machine has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "reference/decode.h"

#define FIXTURES MICA_SOURCE_DIR "/../shared/fixtures/public/codecs/golden/"

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1du;
}

static uint64_t random_below(uint64_t limit) {
    return (random_u64() >> 11) % limit;
}

/* Exactly `bytes` long and one byte off any alignment, at the end of its allocation: a sanitizer sees every overrun. */
typedef struct buffer {
    uint8_t *owned, *bytes;
} buffer;

static buffer buffer_of(uint64_t bytes) {
    buffer b = {malloc(bytes + 1), NULL};
    assert_non_null(b.owned);
    b.bytes = b.owned + 1;
    return b;
}

static void fill(uint8_t *bytes, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)(random_u64() >> 32);
}

static uint32_t bits_of(const float *value) {
    uint32_t bits;
    memcpy(&bits, value, sizeof bits);
    return bits;
}

/* ---- against the fixtures */

static void *load_fixture(const char *name, size_t bytes) {
    char path[1024];
    snprintf(path, sizeof path, FIXTURES "%s", name);
    FILE *file = fopen(path, "rb");
    if (!file) {
        printf("skipped: %s is absent\n", path);
        skip();
    }
    void *data = malloc(bytes);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, bytes, file), bytes);
    assert_int_equal(fgetc(file), EOF);
    fclose(file);
    return data;
}

static void expect_bits(const float *got, const uint32_t *expected, uint64_t count, const char *what) {
    for (uint64_t i = 0; i < count; i++) {
        if (bits_of(got + i) != expected[i]) {
            fail_msg("%s[%llu] under %s: expected %08x, got %08x", what, (unsigned long long)i, mica_cpu_name(mica_cpu_current()),
                     expected[i], bits_of(got + i));
        }
    }
}

#define EACH_CPU(cpu) for (mica_cpu cpu = 0; cpu <= mica_cpu_detected(); cpu++) if (mica_cpu_select(cpu), 1)

static void test_fixture_tables(void **state) {
    (void)state;
    uint8_t codes[256];
    float out[256];
    for (int i = 0; i < 256; i++)
        codes[i] = (uint8_t)i;
    uint32_t *e4m3 = load_fixture("e4m3fn.f32", 1024), *e8m0 = load_fixture("e8m0.f32", 1024), *e2m1 = load_fixture("e2m1.f32", 64);
    const uint8_t nibbles[16] = {0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe, 0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe}, one = 127;
    mica_matrix matrix = {.encoding = MICA_ENCODING_MXFP4, .dtype = MICA_I8, .rows = 1, .columns = 32, .codes = nibbles,
                          .scale_dtype = MICA_F8_E8M0, .block_rows = 1, .block_columns = 32, .scales = &one};
    EACH_CPU(cpu) {
        assert_true(mica_decode_plain(MICA_F8_E4M3, codes, 256, out));
        expect_bits(out, e4m3, 256, "e4m3fn");
        assert_true(mica_decode_plain(MICA_F8_E8M0, codes, 256, out));
        expect_bits(out, e8m0, 256, "e8m0");
        mica_matrix_decode(&matrix, 0, 0, 1, out, 32);
        expect_bits(out, e2m1, 16, "e2m1");
        expect_bits(out + 16, e2m1, 16, "e2m1, upper half");
    }
    free(e4m3);
    free(e8m0);
    free(e2m1);
}

/* The encode vectors, read backwards: the code decodes to a neighbour of the input that no other code is nearer to. */
static void test_fixture_encode_vectors(void **state) {
    (void)state;
    float *input = load_fixture("e4m3fn_in.f32", 3224), all[256], out[806];
    uint8_t *codes = load_fixture("e4m3fn_out.u8", 806), every[256];
    for (int i = 0; i < 256; i++)
        every[i] = (uint8_t)i;
    EACH_CPU(cpu) {
        assert_true(mica_decode_plain(MICA_F8_E4M3, codes, 806, out));
        assert_true(mica_decode_plain(MICA_F8_E4M3, every, 256, all));
        for (int i = 0; i < 806; i++) {
            for (int j = 0; j < 256; j++)
                assert_false(fabs((double)all[j] - (double)input[i]) < fabs((double)out[i] - (double)input[i])); /* NaN: false */
        }
    }
    float *bf16_input = load_fixture("bf16_in.f32", 1644);
    uint16_t *bf16_codes = load_fixture("bf16_out.u16", 822);
    float decoded[411];
    EACH_CPU(cpu) {
        assert_true(mica_decode_plain(MICA_BF16, bf16_codes, 411, decoded));
        for (int i = 0; i < 411; i++) {
            uint32_t in = bits_of(bf16_input + i), got = bits_of(decoded + i);
            assert_int_equal(got & 0xffff, 0);
            assert_in_range(got - in + 0x8000, 0, 0x10000); /* within half a unit */
        }
    }
    free(input);
    free(codes);
    free(bf16_input);
    free(bf16_codes);
}

static void test_fixture_blocks(void **state) {
    (void)state;
    uint8_t *packed = load_fixture("mxfp4_packed.u8", 128), *scale = load_fixture("mxfp4_scale.u8", 8);
    uint32_t *expected = load_fixture("mxfp4_out.f32", 1024);
    uint8_t *words = load_fixture("int4_packed.i32", 64), *bf16 = load_fixture("int4_scale.u16", 8);
    uint32_t *int4_expected = load_fixture("int4_out.f32", 512);
    float out[256];
    mica_matrix mxfp4 = {.encoding = MICA_ENCODING_MXFP4, .dtype = MICA_I8, .rows = 8, .columns = 32, .codes = packed,
                         .scale_dtype = MICA_F8_E8M0, .block_rows = 1, .block_columns = 32, .scales = scale};
    mica_matrix int4 = {.encoding = MICA_ENCODING_INT4_GROUP, .dtype = MICA_I32, .rows = 4, .columns = 32, .codes = words,
                        .scale_dtype = MICA_BF16, .block_rows = 1, .block_columns = 32, .scales = bf16};
    EACH_CPU(cpu) {
        mica_matrix_decode(&mxfp4, 0, 0, 8, out, 32);
        expect_bits(out, expected, 256, "mxfp4");
        mica_matrix_decode(&int4, 0, 0, 4, out, 32);
        expect_bits(out, int4_expected, 128, "int4");
        mxfp4.rows = 1; /* the same as one row of 8 blocks */
        mxfp4.columns = 256;
        mica_matrix_decode(&mxfp4, 0, 0, 1, out, 256);
        expect_bits(out, expected, 256, "mxfp4, one row");
        mxfp4.rows = 8;
        mxfp4.columns = 32;
    }
    free(packed);
    free(scale);
    free(expected);
    free(words);
    free(bf16);
    free(int4_expected);
}

/* ---- against the reference */

typedef struct kind {
    mica_encoding encoding;
    mica_dtype dtype, scale_dtype;
    uint64_t block_rows, block_columns;
} kind;

static const kind kinds[] = {
    {MICA_ENCODING_PLAIN, MICA_F64, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_F32, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_F16, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_BF16, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_F8_E4M3, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_F8_E5M2, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_F8_E8M0, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_I64, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_I32, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_I16, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_I8, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_U8, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_BOOL, 0, 0, 0},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_F32, 128, 128},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_F8_E8M0, 128, 128},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_BF16, 1, 1},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_F32, 3, 7},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E5M2, MICA_F32, 128, 128},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E5M2, MICA_F8_E8M0, 2, 64},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_F32, 1000000, 1000000},
    {MICA_ENCODING_MXFP4, MICA_I8, MICA_F8_E8M0, 1, 32},
    {MICA_ENCODING_MXFP4, MICA_I8, MICA_F8_E8M0, 1, 16},
    {MICA_ENCODING_MXFP4, MICA_I8, MICA_F8_E8M0, 2, 5},
    {MICA_ENCODING_INT4_GROUP, MICA_I32, MICA_BF16, 1, 32},
    {MICA_ENCODING_INT4_GROUP, MICA_I32, MICA_F16, 1, 128},
    {MICA_ENCODING_INT4_GROUP, MICA_I32, MICA_F32, 1, 3},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static const uint64_t shapes[][2] = {{1, 1}, {3, 5}, {1, 64}, {2, 97}, {17, 31}, {9, 288}, {130, 257}, {5, 1090}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* Bit patterns: any; or moderate ones, so that not everything is NaN, zero or infinite after the product. */
static void fill_floats(mica_dtype dtype, uint8_t *bytes, uint64_t count, bool moderate) {
    uint32_t size = mica_dtype_bytes(dtype);
    fill(bytes, count * size);
    for (uint64_t i = 0; moderate && i < count; i++) {
        uint8_t *top = bytes + (i + 1) * size - 1; /* the byte with the sign and the exponent's upper bits */
        switch (dtype) {
        case MICA_F64: case MICA_F32: case MICA_BF16: *top = (uint8_t)((*top & 0x83) | 0x38); break;
        case MICA_F16: *top &= 0xbf; break;
        case MICA_F8_E8M0: *top = (uint8_t)(120 + *top % 16); break;
        default: break;
        }
    }
}

typedef struct sample {
    mica_matrix matrix;
    buffer codes, scales;
} sample;

static sample sample_of(kind k, uint64_t rows, uint64_t columns, bool moderate) {
    sample s = {.matrix = {.encoding = k.encoding, .dtype = k.dtype, .rows = rows, .columns = columns, .scale_dtype = k.scale_dtype,
                           .block_rows = k.block_rows, .block_columns = k.block_columns}};
    uint64_t bytes = rows * mica_matrix_row_bytes(&s.matrix);
    s.codes = buffer_of(bytes);
    if (k.encoding == MICA_ENCODING_PLAIN) {
        assert_int_equal(bytes, rows * columns * mica_dtype_bytes(k.dtype));
        fill_floats(k.dtype, s.codes.bytes, rows * columns, moderate);
        s.scales = (buffer){NULL, NULL};
    } else {
        uint64_t scales = ((rows + k.block_rows - 1) / k.block_rows) * ((columns + k.block_columns - 1) / k.block_columns);
        fill(s.codes.bytes, bytes);
        s.scales = buffer_of(scales * mica_dtype_bytes(k.scale_dtype));
        fill_floats(k.scale_dtype, s.scales.bytes, scales, moderate);
    }
    s.matrix.codes = s.codes.bytes;
    s.matrix.scales = s.scales.bytes;
    return s;
}

static void sample_free(sample *s) {
    free(s->codes.owned);
    free(s->scales.owned);
}

static void name_of(const mica_matrix *m, int exponent, char *text, size_t bytes) {
    snprintf(text, bytes, "%s %s scale %s %llux%llu in %llux%llu exponent %d", mica_encoding_name(m->encoding), mica_dtype_name(m->dtype),
             mica_dtype_name(m->scale_dtype), (unsigned long long)m->rows, (unsigned long long)m->columns,
             (unsigned long long)m->block_rows, (unsigned long long)m->block_columns, exponent);
}

/* A window of the matrix under every instruction set, with a stride wider than the window; what lies between stays untouched. */
static void check_window(const mica_matrix *m, int exponent, uint64_t row, uint64_t count, uint64_t column, uint64_t width) {
    uint64_t stride = width + random_below(3);
    float *out = malloc((count * stride + 1) * sizeof *out);
    uint32_t *expected = malloc((count * stride + 1) * sizeof *expected);
    char name[200];
    assert_true(out && expected);
    for (uint64_t i = 0; i < count * stride; i++) {
        uint64_t r = i / stride, c = i % stride;
        expected[i] = c < width ? reference_bits(reference_value(m, row + r, column + c), exponent) : 0x4640e400u;
    }
    name_of(m, exponent, name, sizeof name);
    EACH_CPU(cpu) {
        for (uint64_t i = 0; i < count * stride; i++)
            out[i] = 12345.0f;
        mica_matrix_decode_block(m, exponent, row, count, column, width, out, stride);
        for (uint64_t i = 0; i < count * stride; i++) {
            if (bits_of(out + i) != expected[i]) {
                fail_msg("%s under %s at (%llu, %llu): expected %08x, got %08x", name, mica_cpu_name(cpu),
                         (unsigned long long)(row + i / stride), (unsigned long long)(column + i % stride), expected[i], bits_of(out + i));
            }
        }
    }
    free(expected);
    free(out);
}

static void test_random_matrices(void **state) {
    (void)state;
    static const int exponents[] = {0,   0,   3,    -5,   120,  127,  128,  140,  149,  150,   200,
                                    600, 601, 1074, 5000, -100, -127, -140, -160, -600, -1100, -5000};
    for (int k = 0; k < KINDS; k++) {
        for (int s = 0; s < SHAPES; s++) {
            for (int round = 0; round < 4; round++) {
                sample a = sample_of(kinds[k], shapes[s][0], shapes[s][1], round % 2);
                int exponent = round < 2 ? 0 : exponents[random_below(sizeof exponents / sizeof *exponents)];
                if (shapes[s][0] * shapes[s][1] < 10000 || round < 2)
                    check_window(&a.matrix, exponent, 0, a.matrix.rows, 0, a.matrix.columns);
                uint64_t row = random_below(a.matrix.rows), column = 32 * random_below((a.matrix.columns + 31) / 32);
                uint64_t left = a.matrix.columns - column, width = left > 64 && random_below(2) ? 64 : left;
                check_window(&a.matrix, exponent, row, 1 + random_below(a.matrix.rows - row), column, width);
                sample_free(&a);
            }
        }
    }
}

/* Every code of every format against every scale that is hard, at exponents where the result turns subnormal: one rounding only. */
static void test_every_code_at_the_edges(void **state) {
    (void)state;
    static const uint32_t scales[] = {0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x00000003, 0x007fffff, 0x00800000,
                                      0x00c00001, 0x3f800000, 0x3f800001, 0xbfaaaaab, 0x3e000003, 0x7f7fffff, 0xff7fffff,
                                      0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001};
    static const int exponents[] = {0, 1, 23, 126, 127, 130, 140, 149, -30, -126, -127, -128, -149};
    uint8_t codes[256 + 1];
    for (int i = 0; i < 256; i++)
        codes[i + 1] = (uint8_t)i;
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
        for (size_t e = 0; e < sizeof exponents / sizeof *exponents; e++) {
            mica_matrix m = {.encoding = MICA_ENCODING_FP8_BLOCK, .dtype = MICA_F8_E4M3, .rows = 1, .columns = 256, .codes = codes + 1,
                             .scale_dtype = MICA_F32, .block_rows = 1, .block_columns = 256, .scales = scales + s};
            check_window(&m, exponents[e], 0, 1, 0, 256);
            m.dtype = MICA_F8_E5M2;
            check_window(&m, exponents[e], 0, 1, 0, 256);
            m = (mica_matrix){.encoding = MICA_ENCODING_INT4_GROUP, .dtype = MICA_I32, .rows = 1, .columns = 512, .codes = codes + 1,
                              .scale_dtype = MICA_F32, .block_rows = 1, .block_columns = 512, .scales = scales + s};
            check_window(&m, exponents[e], 0, 1, 0, 512);
            uint8_t byte = (uint8_t)(scales[s] >> 16);
            m.encoding = MICA_ENCODING_MXFP4;
            m.scale_dtype = MICA_F8_E8M0;
            m.scales = &byte;
            check_window(&m, exponents[e], 0, 1, 0, 512);
        }
    }
}

static void test_every_half(void **state) {
    (void)state;
    uint16_t *halves = malloc(65536 * sizeof *halves);
    assert_non_null(halves);
    for (unsigned i = 0; i < 65536; i++)
        halves[i] = (uint16_t)i;
    for (int i = 0; i < 2; i++) {
        mica_matrix m = {.encoding = MICA_ENCODING_PLAIN, .dtype = i ? MICA_F16 : MICA_BF16, .rows = 256, .columns = 256, .codes = halves};
        check_window(&m, 0, 0, 256, 0, 256);
        check_window(&m, 9, 0, 256, 0, 256);
    }
    free(halves);
}

/* ---- examine */

static void test_examine_random(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        for (int s = 0; s < SHAPES; s++) {
            for (int round = 0; round < 3; round++) {
                sample a = sample_of(kinds[k], shapes[s][0], shapes[s][1], true);
                const mica_matrix *m = &a.matrix;
                bool has_e4m3_codes = m->dtype == MICA_F8_E4M3, has_e5m2_codes = m->dtype == MICA_F8_E5M2;
                for (uint64_t i = 0; round && (has_e4m3_codes || has_e5m2_codes) && i < m->rows * m->columns; i++)
                    a.codes.bytes[i] &= has_e4m3_codes ? 0xbe : 0xbf; /* finite only */
                long double largest = 0;
                bool has_nan = false, has_infinity = false;
                uint64_t first_row = 0, first_column = 0;
                for (uint64_t r = 0; r < m->rows; r++) {
                    for (uint64_t c = 0; c < m->columns; c++) {
                        long double value = fabsl(reference_value(m, r, c));
                        if (!isfinite(value) && !has_nan && !has_infinity) {
                            first_row = r;
                            first_column = c;
                        }
                        has_nan |= isnan(value);
                        has_infinity |= isinf(value) != 0;
                        largest = value > largest ? value : largest;
                    }
                }
                char name[200];
                name_of(m, 0, name, sizeof name);
                EACH_CPU(cpu) {
                    mica_matrix_health health;
                    mica_matrix_examine(m, &health);
                    if (health.has_nan != has_nan || health.has_infinity != has_infinity) {
                        fail_msg("%s under %s: nan %d %d, infinity %d %d", name, mica_cpu_name(cpu), health.has_nan, has_nan,
                                 health.has_infinity, has_infinity);
                    }
                    if (has_nan || has_infinity) {
                        assert_int_equal(health.nan_row, first_row);
                        assert_int_equal(health.nan_column, first_column);
                        assert_false(health.in_scale);
                        continue;
                    }
                    long double scaled = ldexpl(largest, -health.exponent);
                    if (largest == 0 ? health.exponent != 0 : !(scaled <= 1 && scaled > 0.25L))
                        fail_msg("%s under %s: largest %La, exponent %d", name, mica_cpu_name(cpu), largest, health.exponent);
                }
                sample_free(&a);
            }
        }
    }
}

/* One bad code at each place of a matrix: found there, whatever the vector's width; the largest value likewise. */
static void test_examine_finds_every_position(void **state) {
    (void)state;
    enum { ROWS = 18, COLUMNS = 141 };
    uint8_t codes[ROWS * COLUMNS];
    float scales[2 * 2] = {1, 1, 1, 1};
    mica_matrix m = {.encoding = MICA_ENCODING_FP8_BLOCK, .dtype = MICA_F8_E4M3, .rows = ROWS, .columns = COLUMNS, .codes = codes,
                     .scale_dtype = MICA_F32, .block_rows = 10, .block_columns = 128, .scales = scales};
    memset(codes, 0xb8, sizeof codes); /* -1 */
    mica_matrix_health health;
    EACH_CPU(cpu) {
        for (uint64_t i = 0; i < ROWS * COLUMNS; i++) {
            codes[i] = i % 2 ? 0x7f : 0xff;
            mica_matrix_examine(&m, &health);
            assert_true(health.has_nan && !health.has_infinity && !health.in_scale);
            assert_int_equal(health.nan_row, i / COLUMNS);
            assert_int_equal(health.nan_column, i % COLUMNS);
            codes[i] = 0xfe; /* -448 */
            mica_matrix_examine(&m, &health);
            assert_false(health.has_nan);
            assert_int_equal(health.exponent, 9);
            codes[i] = 0xb8;
        }
    }
}

static void test_examine_scales(void **state) {
    (void)state;
    uint8_t codes[4 * 6];
    float scales[4] = {1, 1, 1, 1};
    mica_matrix m = {.encoding = MICA_ENCODING_FP8_BLOCK,
                     .dtype = MICA_F8_E4M3,
                     .rows = 4,
                     .columns = 6,
                     .codes = codes,
                     .scale_dtype = MICA_F32,
                     .block_rows = 2,
                     .block_columns = 4,
                     .scales = scales};
    mica_matrix_health health;
    memset(codes, 0x38, sizeof codes);
    scales[3] = -4;
    mica_matrix_examine(&m, &health);
    assert_true(health.has_negative_scale && !health.has_zero_scale && !health.has_nan && !health.has_infinity);
    assert_int_equal(health.odd_scale_row, 1);
    assert_int_equal(health.odd_scale_column, 1);
    assert_true(health.odd_scale == -4 && health.exponent == 3);
    scales[1] = 0;
    mica_matrix_examine(&m, &health);
    assert_true(health.has_negative_scale && health.has_zero_scale && health.odd_scale == 0);
    assert_true(health.odd_scale_row == 0 && health.odd_scale_column == 1);
    scales[2] = INFINITY;
    mica_matrix_examine(&m, &health);
    assert_true(health.in_scale && health.has_infinity && !health.has_nan && health.nan_row == 1 && health.nan_column == 0);
    scales[3] = NAN;
    mica_matrix_examine(&m, &health);
    assert_true(health.in_scale && health.has_infinity && health.has_nan && health.nan_row == 1 && health.nan_column == 0);
    uint8_t e8m0[4] = {0, 254, 255, 127};
    m.scale_dtype = MICA_F8_E8M0;
    m.scales = e8m0;
    mica_matrix_examine(&m, &health);
    assert_true(health.in_scale && health.has_nan && !health.has_infinity && health.nan_row == 1 && health.nan_column == 0);
    e8m0[2] = 0; /* 2^127 is the largest value: an exponent of 127 or 128 brings it under 1 */
    mica_matrix_examine(&m, &health);
    assert_true(!health.has_nan && !health.in_scale && !health.has_zero_scale && health.exponent == 128);
    memset(codes, 0x80, sizeof codes); /* -0 everywhere */
    mica_matrix_examine(&m, &health);
    assert_int_equal(health.exponent, 0);
    scales[0] = scales[1] = scales[2] = scales[3] = 0;
    m.scale_dtype = MICA_F32;
    m.scales = scales;
    m.dtype = MICA_F8_E5M2;
    memset(codes, 0x7c, sizeof codes); /* infinity times zero */
    mica_matrix_examine(&m, &health);
    assert_true(health.has_nan && !health.has_infinity && !health.in_scale && health.nan_row == 0 && health.nan_column == 0);
    m.rows = 0;
    mica_matrix_examine(&m, &health);
    assert_true(!health.has_nan && health.exponent == 0);
}

static void test_names_and_sizes(void **state) {
    (void)state;
    assert_string_equal(mica_encoding_name(MICA_ENCODING_FP8_BLOCK), "fp8-block");
    assert_string_equal(mica_encoding_name(MICA_ENCODING_INT4_GROUP), "int4-group");
    assert_string_equal(mica_encoding_name((mica_encoding)77), "unknown");
    float out[2];
    assert_false(mica_decode_plain(MICA_DTYPE_COUNT, out, 1, out));
    /* above a tie; on it */
    const int64_t integers[2] = {(INT64_C(1) << 62) + (INT64_C(1) << 38) + 1, -(INT64_C(1) << 62) - (INT64_C(1) << 38)};
    assert_true(mica_decode_plain(MICA_I64, integers, 2, out));
    assert_true(out[0] == 0x1.000002p62f && out[1] == -0x1p62f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixture_tables),      cmocka_unit_test(test_fixture_encode_vectors), cmocka_unit_test(test_fixture_blocks),
        cmocka_unit_test(test_random_matrices),     cmocka_unit_test(test_every_code_at_the_edges), cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_examine_random),      cmocka_unit_test(test_examine_finds_every_position),
        cmocka_unit_test(test_examine_scales),      cmocka_unit_test(test_names_and_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
