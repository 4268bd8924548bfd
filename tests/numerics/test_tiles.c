/* Judges the AMX kernels (numerics/product_amx.c, attention_amx.c) on a processor without AMX: their own source, with each tile instruction
 * in C, against sums in float64. What it cannot tell is whether a processor does what these few lines say; test_product.c and
 * test_attention.c do, where there is one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/cpu.h"
#include "numerics/attention.h"
#include "numerics/product_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

typedef struct tile {
    uint64_t rows, bytes;
    uint8_t data[16][64];
} tile;
static tile tiles[8];

static void configure(const void *shapes) {
    const uint8_t *at = shapes;
    assert_int_equal(at[0], 1);
    for (int i = 0; i < 8; i++) {
        uint16_t bytes;
        memcpy(&bytes, at + 16 + 2 * i, sizeof bytes);
        tiles[i] = (tile){.rows = at[48 + i], .bytes = bytes};
        assert_true(tiles[i].rows <= 16 && bytes <= 64 && (tiles[i].rows == 0) == (bytes == 0));
    }
}

static tile *configured(int number) { /* the processor refuses another */
    assert_true(tiles[number].rows > 0);
    return &tiles[number];
}

static void load_tile(int number, const void *from, uint64_t stride) {
    tile *t = configured(number);
    memset(t->data, 0, sizeof t->data);
    for (uint64_t r = 0; r < t->rows; r++)
        memcpy(t->data[r], (const uint8_t *)from + r * stride, t->bytes);
}

static void store_tile(int number, void *to, uint64_t stride) {
    tile *t = configured(number);
    for (uint64_t r = 0; r < t->rows; r++)
        memcpy((uint8_t *)to + r * stride, t->data[r], t->bytes);
}

static float bf16_at(const tile *t, uint64_t row, uint64_t index) {
    uint16_t half;
    uint32_t bits;
    float value;
    memcpy(&half, &t->data[row][2 * index], sizeof half);
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Intel's manual, TDPBF16PS: to[m][n] += from[m][2 k] with[k][2 n] + from[m][2 k + 1] with[k][2 n + 1], k by k. */
static void multiply_tiles(int to, int from, int with) {
    tile *sums = configured(to);
    const tile *a = configured(from), *b = configured(with);
    assert_true(sums->rows == a->rows && sums->bytes == b->bytes && a->bytes / 4 == b->rows);
    for (uint64_t m = 0; m < a->rows; m++)
        for (uint64_t n = 0; n < b->bytes / 4; n++) {
            float sum;
            memcpy(&sum, &sums->data[m][4 * n], sizeof sum);
            for (uint64_t k = 0; k < b->rows; k++)
                for (uint64_t i = 0; i < 2; i++)
                    sum = fmaf(bf16_at(a, m, 2 * k + i), bf16_at(b, k, 2 * n + i), sum);
            memcpy(&sums->data[m][4 * n], &sum, sizeof sum);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) configure(shapes)
#define _tile_release() memset(tiles, 0, sizeof tiles)
#define _tile_loadd(number, from, stride) load_tile(number, from, stride)
#define _tile_stored(number, to, stride) store_tile(number, to, stride)
#define _tile_zero(number) memset(configured(number)->data, 0, sizeof tiles[number].data)
#define _tile_dpbf16ps(to, from, with) multiply_tiles(to, from, with)
#define mica_multiply_bf16_amx multiply_with_tiles_in_c
#define mica_attend_amx attend_with_tiles_in_c
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif
#include "numerics/attention_amx.c"
#include "numerics/product_amx.c"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static uint16_t random_bf16(void) {
    return (uint16_t)((random() & 1) << 15 | (120 + random() % 8) << 7 | (random() & 127));
}

static double value_of(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

static void *aligned(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(memory);
    memset(memory, 0xff, (bytes + 63) / 64 * 64); /* NaN, as bf16 and as float */
    return memory;
}

enum { MOST_TOKENS = 70, PADDED = 2560, MOST_ROWS = MICA_STRIP_ROWS_AMX, STRIDE = MOST_ROWS + 5 };

static uint16_t weights[MOST_ROWS + 3][PADDED];

/* Rows are padded with zeros to a multiple of 64 columns; what lies beyond is NaN. */
static void copy_strip(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, uint16_t *strip,
                       uint64_t stride) {
    assert_true(matrix->rows == MOST_ROWS + 3 && column % 256 == 0 && row + count <= matrix->rows);
    for (uint64_t r = 0; r < count; r++)
        for (uint64_t c = 0; c < (width + 255) / 256 * 256; c++)
            strip[r * stride + c] = c < width ? weights[row + r][column + c] : c < (width + 63) / 64 * 64 ? 0 : 0xffff;
}

static void check_product(uint64_t rows, uint64_t tokens, uint64_t column, uint64_t width, bool selected) {
    const mica_matrix matrix = {.rows = MOST_ROWS + 3, .columns = PADDED};
    const mica_strip strip = {&matrix, copy_strip, 3, rows, column, width};
    uint16_t *values = aligned(MOST_TOKENS * PADDED * sizeof *values);
    float *out = aligned(MOST_TOKENS * STRIDE * sizeof *out);
    uint32_t selection[MOST_TOKENS];
    mica_operand x = {.precision = MICA_PRECISION_FAST, .tokens = tokens, .columns = column + width, .padded = PADDED, .bf16 = values};
    void *scratch = aligned(MICA_PRODUCT_SCRATCH_BYTES);
    for (uint64_t r = 0; r < MOST_ROWS + 3; r++)
        for (uint64_t c = 0; c < PADDED; c++)
            weights[r][c] = random_bf16();
    for (uint64_t t = 0; t < MOST_TOKENS; t++)
        for (uint64_t c = 0; c < PADDED; c++)
            values[t * PADDED + c] = c < column + width ? random_bf16() : 0;
    for (uint64_t t = 0; t < tokens; t++)
        selection[t] = selected ? (uint32_t)(random() % MOST_TOKENS) : (uint32_t)t;
    x.selection = selected ? selection : NULL;
    for (uint64_t t = 0; t < tokens; t++)
        for (uint64_t r = 0; r < STRIDE; r++)
            out[t * STRIDE + r] = (float)(t + r);
    multiply_with_tiles_in_c(&strip, &x, out, STRIDE, scratch);
    for (uint64_t t = 0; t < tokens; t++) {
        for (uint64_t r = 0; r < rows; r++) {
            double sum = column ? (double)(t + r) : 0, size = sum;
            for (uint64_t c = column; c < column + width; c++) {
                double product = value_of(weights[3 + r][c]) * value_of(values[selection[t] * PADDED + c]);
                sum += product;
                size += fabs(product);
            }
            assert_true(fabs((double)out[t * STRIDE + r] - sum) <= (double)width * 0x1p-24 * size);
        }
        for (uint64_t r = rows; r < STRIDE; r++) /* the caller's */
            assert_true(out[t * STRIDE + r] == (float)(t + r));
    }
    free(scratch);
    free(out);
    free(values);
}

static bool can_run(void) {
    mica_cpu_allow_bf16(true);
    if (mica_cpu_has_bf16())
        return true;
    print_message("SKIP: no AVX-512 with bf16, which these kernels use besides tiles\n");
    return false;
}

static void test_products(void **state) {
    (void)state;
    static const uint64_t row_counts[] = {1, 15, 16, 17, 32, 33, 48, 61, 97, MOST_ROWS},
                          token_counts[] = {1, 5, 16, 17, 31, 32, 33, 48, 49, 64, MOST_TOKENS};
    static const uint64_t widths[] = {1, 31, 33, 96, 512};
    if (!can_run())
        skip();
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)
        for (size_t t = 0; t < sizeof token_counts / sizeof *token_counts; t++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
                check_product(row_counts[r], token_counts[t], (r + t + w) % 2 ? MICA_STRIP_COLUMNS : 0, widths[w], (r + t) % 2);
    check_product(MOST_ROWS, 33, 0, MICA_STRIP_COLUMNS, true);
}

/* Query `query` of token `query / heads` by its definition; the bound as in test_attention.c. */
static void check_query(const mica_attention *attention, const float *query, uint64_t visible, const float *got) {
    const uint16_t *keys = attention->keys, *values = attention->values;
    double *scores = malloc(visible * sizeof *scores), largest = -INFINITY, off = 0, sum = 0, u = 0x1p-24;
    assert_non_null(scores);
    for (uint64_t p = 0; p < visible; p++) {
        double score = 0, size = 0;
        for (uint64_t k = 0; k < attention->key_width; k++) {
            double product = (double)query[k] * value_of(keys[p * attention->key_stride + k]);
            score += product;
            size += fabs(product);
        }
        scores[p] = score * (double)attention->scale;
        largest = fmax(largest, scores[p]);
        off = fmax(off, size * (double)attention->scale * ((double)attention->key_width * u + 0x1p-8) + 4 * u * fabs(scores[p]));
    }
    for (uint64_t p = 0; p < visible; p++)
        sum += exp(scores[p] - largest);
    for (uint64_t k = 0; k < attention->value_width; k++) {
        double mean = 0, size = 0;
        for (uint64_t p = 0; p < visible; p++) {
            double part = exp(scores[p] - largest) / sum * value_of(values[p * attention->value_stride + k]);
            mean += part;
            size += fabs(part);
        }
        assert_true(fabs((double)got[k] - mean) <= size * (expm1(2 * off) + (double)(visible + 32) * u + 0x1p-8));
    }
    free(scores);
}

static void check_attention(uint64_t key_width, uint64_t value_width, uint64_t heads, uint64_t tokens, uint64_t positions) {
    const uint64_t count = heads * tokens, stride = key_width + 32;
    uint16_t *cache = aligned(positions * stride * sizeof *cache);
    float *queries = aligned(count * key_width * sizeof *queries), *out = aligned(count * value_width * sizeof *out);
    void *scratch = aligned(MICA_ATTENTION_SCRATCH_BYTES(key_width, value_width));
    mica_attention_sum sums[MICA_ATTENTION_QUERIES];
    for (uint64_t p = 0; p < positions; p++)
        for (uint64_t k = 0; k < key_width; k++) /* what lies between rows is NaN */
            cache[p * stride + k] = random_bf16();
    for (uint64_t i = 0; i < count * key_width; i++)
        queries[i] = (float)value_of(random_bf16()) * 1.001f;
    mica_attention attention = {.dtype = MICA_BF16,
                                .keys = cache,
                                .key_width = key_width,
                                .key_stride = stride,
                                .values = cache + key_width - value_width,
                                .value_width = value_width,
                                .value_stride = stride,
                                .scale = 0.3f,
                                .heads = heads,
                                .visible = positions - tokens + 1};
    attend_with_tiles_in_c(&attention, 0, positions, 0, queries, key_width, count, out, value_width, sums, scratch);
    for (uint64_t q = 0; q < count; q++)
        check_query(&attention, queries + q * key_width, attention.visible + q / heads, out + q * value_width);
    free(scratch);
    free(out);
    free(queries);
    free(cache);
}

static void test_attention(void **state) {
    (void)state;
    if (!can_run())
        skip();
    for (uint64_t count = 1; count <= MICA_ATTENTION_QUERIES; count += 5)
        for (uint64_t positions = count; positions < 300; positions += 1 + 7 * count)
            check_attention(64, 32, count % 2 ? 1 : count, count % 2 ? count : 1, positions);
    check_attention(576, 512, 16, 1, 300);
    check_attention(192, 128, 1, 32, 257);
}
#else
static void test_products(void **state) {
    (void)state;
    print_message("SKIP: a processor of another kind\n");
    skip();
}

static void test_attention(void **state) {
    test_products(state);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products), cmocka_unit_test(test_attention)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
