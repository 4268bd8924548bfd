/* numerics/product_few_512.h: inside the AVX-512 product kernels only, compiled once with each way of fetching (FETCH_HINT). Rows of few
 * tokens from the bytes as they are, in linear streams that are fetched 4 KiB ahead, each decoded once for up to four tokens. Two families:
 *   plain and fp8   to float32, 64 columns at a time; float32 activations: the same for both precisions
 *   grouped         codes of 8 bits times activations of 16 in two digits (VNNI), exact in int32; a factor for 16 or 32 columns, and the
 *                   activations' own for 256. FAST only.
 * A token's sums are taken in the same order whatever the other tokens are. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_FEW_512_H
#define MICA_NUMERICS_PRODUCT_FEW_512_H

#include "numerics/product_avx512.h"
#include "numerics/product_load_avx512.h"
#include "numerics/product_unpack_avx512.h"

enum { TOGETHER = 4, ROWS_TOGETHER = 2, STREAM_ROWS = 256 }; /* tokens; rows of one token, from so many on */

/* ---- grouped */

/* One token's digits and sums, from a chunk on. */
typedef struct few_token {
    const int8_t *digits, *quads;
    const int32_t *sums, *pair_sums;
    const float *wide_sums, *wide_pair_sums, *quad_sums, *steps;
} few_token;

/* codes times the two digits of vectors [first, first + vectors), as exact integers; codes of a middle of 128 less that */
INLINE __m512i digit_product(const columns256 *w, int first, const int vectors, const few_token *x, uint64_t chunk, const int minima) {
    const int8_t *digits = x->digits + chunk * 512 + (uint64_t)first * 128;
    const int32_t *sums = vectors == 2 ? x->pair_sums + chunk * 32 + (uint64_t)first * 8 : x->sums + chunk * 64 + (uint64_t)first * 16;
    __m512i upper_product = _mm512_setzero_si512(); /* apart from the other: half as long to wait for */
    __m512i lower_product = minima ? upper_product : _mm512_loadu_si512(sums);
    for (int v = 0; v < vectors; v++) {
        upper_product = _mm512_dpbusd_epi32(upper_product, w->codes[first + v], _mm512_loadu_si512(digits + v * 128));
        lower_product = _mm512_dpbusd_epi32(lower_product, w->codes[first + v], _mm512_loadu_si512(digits + v * 128 + 64));
    }
    return _mm512_add_epi32(_mm512_slli_epi32(upper_product, 8), lower_product);
}

/* What `halves` times 128 columns of a chunk add to a token's total. */
INLINE __m512 add_columns(const columns256 *w, const int halves, const few_token *x, uint64_t chunk, const int group_columns, const int minima,
                          __m512 total) {
    const int vectors = group_columns / 16; /* that share a factor */
    __m512 part = _mm512_setzero_ps();
    if (minima)
        part = _mm512_mul_ps(w->least, _mm512_loadu_ps((vectors == 2 ? x->wide_pair_sums : x->wide_sums) + chunk * 16));
    for (int v = 0; v < 2 * halves; v += vectors)
        part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(digit_product(w, v, vectors, x, chunk, minima)), w->factors[v], part);
    return _mm512_fmadd_ps(part, _mm512_set1_ps(x->steps[chunk]), total);
}

/* The same of a chunk in the order of quads. */
INLINE __m512 add_quads(const quads256 *w, const few_token *x, uint64_t chunk, __m512 total) {
    const int8_t *digits = x->quads + chunk * 512;
    __m512i first = _mm512_setzero_si512(), second = _mm512_setzero_si512(); /* apart: half as long to wait for */
    for (int r = 0; r < 4; r++) {
        first = _mm512_dpbusd_epi32(first, w->codes[r], _mm512_loadu_si512(digits + r * 128));
        second = _mm512_dpbusd_epi32(second, w->codes[r], _mm512_loadu_si512(digits + r * 128 + 64));
    }
    __m512i product = _mm512_add_epi32(_mm512_slli_epi32(first, 8), second);
    __m512 part = _mm512_mul_ps(w->least, _mm512_loadu_ps(x->quad_sums + chunk * 16));
    part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), w->factors, part);
    return _mm512_fmadd_ps(part, _mm512_set1_ps(x->steps[chunk]), total);
}

/* Of a grouped weight: how many times 256 columns it has, where a row's bytes are, and how much there is of further columns. */
typedef struct grouped_shape {
    uint64_t whole, row_bytes, row_scales, last_codes, last_scales;
} grouped_shape;

/* 128 * `halves` columns of a row, for each token. */
INLINE void add_chunk(const uint8_t *codes, const uint8_t *scales, const int halves, const few_token of[], const int tokens, uint64_t chunk,
                      unpack256 *unpack, const int group_columns, const int minima, unpack_quads *quads, __m512 totals[]) {
    columns256 w;
    quads256 q;
    if (quads) {
        quads(codes, &q);
        for (int t = 0; t < tokens; t++)
            totals[t] = add_quads(&q, &of[t], chunk, totals[t]);
        return;
    }
    unpack(codes, scales, &w, halves);
    for (int t = 0; t < tokens; t++)
        totals[t] = add_columns(&w, halves, &of[t], chunk, group_columns, minima, totals[t]);
}

/* The columns of a row beyond the last whole 256. A function of its own for each encoding: what it needs leaves the registers to the others. */
typedef void add_tail(const uint8_t *codes, const uint8_t *scales, const grouped_shape *shape, const few_token of[], int tokens, uint64_t chunk,
                      __m512 totals[]);

INLINE void add_last_columns(const uint8_t *codes, const uint8_t *scales, const grouped_shape *shape, const few_token of[], int tokens,
                             uint64_t chunk, unpack256 *unpack, const int group_columns, const int minima, __m512 totals[]) {
    uint8_t tail[272 + 32] = {0};
    memcpy(tail, codes, shape->last_codes); /* zeros beyond its end, where the activations are zero too */
    memcpy(tail + 272, scales, shape->last_scales);
    for (int t = 0; t < tokens; t++)
        add_chunk(tail, tail + 272, 2, &of[t], 1, chunk, unpack, group_columns, minima, NULL, &totals[t]);
}

INLINE void tokens_of(const mica_operand *x, uint64_t token, const int tokens, few_token of[]) {
    for (int t = 0; t < tokens; t++) {
        uint64_t at = mica_operand_row(x, token + (uint64_t)t);
        of[t] = (few_token){x->digits + at * 2 * x->padded,    x->quads + at * 2 * x->padded,      x->sums + at * x->padded / 4,
                            x->pair_sums + at * x->padded / 8, x->wide_sums + at * x->padded / 16, x->wide_pair_sums + at * x->padded / 16,
                            x->quad_sums + at * x->padded / 16, x->scales + at * x->padded / 256};
    }
}

/* ROWS rows, `step` apart, of TOKENS tokens. */
INLINE void grouped_tile(const mica_matrix *matrix, const grouped_shape *shape, uint64_t row, uint64_t step, const int rows, const few_token of[],
                         const int tokens, float *out, uint64_t stride, unpack256 *unpack, const int group_columns, const int minima,
                         const uint64_t code_bytes, const uint64_t scale_bytes, const float factor, unpack_quads *quads, add_tail *tail) {
    const uint8_t *codes[ROWS_TOGETHER], *scales[ROWS_TOGETHER];
    __m512 totals[ROWS_TOGETHER][TOGETHER], all[TOGETHER];
    for (int r = 0; r < rows; r++) {
        codes[r] = (const uint8_t *)matrix->codes + (row + (uint64_t)r * step) * shape->row_bytes;
        scales[r] = scale_bytes ? (const uint8_t *)matrix->scales + (row + (uint64_t)r * step) * shape->row_scales : codes[r];
        for (int t = 0; t < tokens; t++)
            totals[r][t] = _mm512_setzero_ps();
    }
    for (uint64_t chunk = 0; chunk < shape->whole; chunk++)
        for (int r = 0; r < rows; r++, codes[r - 1] += code_bytes, scales[r - 1] += scale_bytes) {
            fetch(codes[r], code_bytes);
            add_chunk(codes[r], scales[r], 2, of, tokens, chunk, unpack, group_columns, minima, quads, totals[r]);
        }
    for (int r = 0; shape->last_codes && r < rows; r++) {
        memcpy(all, totals[r], sizeof *all * (size_t)tokens);
        tail(codes[r], scales[r], shape, of, tokens, shape->whole, all);
        memcpy(totals[r], all, sizeof *all * (size_t)tokens);
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++)
            out[(uint64_t)t * stride + (uint64_t)r * step] = _mm512_reduce_add_ps(totals[r][t]) * factor;
}

/* Four sums over lanes, each in the order that _mm512_reduce_add_ps has. */
INLINE __m128 reduced(const __m512 v[4]) {
    __m128 quarter[4];
    for (int i = 0; i < 4; i++) {
        __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
        quarter[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    __m128 first = _mm_add_ps(_mm_unpacklo_ps(quarter[0], quarter[1]), _mm_unpackhi_ps(quarter[0], quarter[1]));
    __m128 second = _mm_add_ps(_mm_unpacklo_ps(quarter[2], quarter[3]), _mm_unpackhi_ps(quarter[2], quarter[3]));
    return _mm_add_ps(_mm_movelh_ps(first, second), _mm_movehl_ps(second, first));
}

/* Rows of 128 columns, as the absorbed keys of MLA have them, and one token: four at a time, taken apart where they are. */
INLINE void narrow_rows(const mica_matrix *matrix, const grouped_shape *shape, uint64_t row, uint64_t count, const few_token *x, float *out,
                        unpack256 *unpack, const int group_columns, const int minima, const float factor) {
    const uint8_t *codes = (const uint8_t *)matrix->codes + row * shape->row_bytes;
    for (uint64_t r = 0; r < count; r += 4) {
        __m512 totals[4];
        for (uint64_t k = 0; k < 4; k++) {
            columns256 w;
            fetch(codes, shape->row_bytes);
            unpack(codes, codes, &w, 1);
            totals[k] = add_columns(&w, 1, x, 0, group_columns, minima, _mm512_setzero_ps());
            codes += r + k + 1 < count ? shape->row_bytes : 0; /* beyond the last, the last again */
        }
        const __mmask8 rows = count - r < 4 ? (__mmask8)((1u << (count - r)) - 1) : 0xf;
        _mm_mask_storeu_ps(out + r, rows, _mm_mul_ps(reduced(totals), _mm_set1_ps(factor)));
    }
}

/* One token takes two rows at once: one of the first half and one of the second, so that each is a linear stream. (Rows side by side would be
 * streams that leap, which the processor does not fetch ahead; a short piece is better one stream.) */
INLINE void grouped_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                         unpack256 *unpack, const int group_columns, const int minima, const uint64_t code_bytes, const uint64_t scale_bytes,
                         const float factor, unpack_quads *quads, add_tail *tail) {
    const uint64_t half = count / 2;
    grouped_shape shape = {.whole = matrix->columns / 256, .row_bytes = mica_matrix_row_bytes(matrix)};
    shape.row_scales = scale_bytes ? (matrix->columns + 31) / 32 * (scale_bytes / 8) : 0;
    shape.last_codes = shape.row_bytes - shape.whole * code_bytes;
    shape.last_scales = shape.row_scales - shape.whole * scale_bytes;
    few_token of[TOGETHER];
    uint64_t r = 0;
    const bool narrow = matrix->columns == 128 && scale_bytes == 0 && group_columns == 32;
    for (uint64_t t = 0; narrow && t < x->tokens; t++) {
        tokens_of(x, t, 1, of);
        narrow_rows(matrix, &shape, row, count, of, out + t * stride, unpack, group_columns, minima, factor);
    }
    if (narrow)
        return;
    if (x->tokens == 1) {
        tokens_of(x, 0, 1, of);
        for (; count >= STREAM_ROWS && r < half; r++)
            grouped_tile(matrix, &shape, row + r, half, 2, of, 1, out + r, stride, unpack, group_columns, minima, code_bytes, scale_bytes, factor,
                         quads, tail);
    }
    for (r *= 2; r < count; r++) {
#define TOKENS(t, tokens)                                                                                                                \
    do {                                                                                                                                 \
        tokens_of(x, t, tokens, of);                                                                                                     \
        grouped_tile(matrix, &shape, row + r, 0, 1, of, tokens, out + t * stride + r, stride, unpack, group_columns, minima, code_bytes, \
                     scale_bytes, factor, quads, tail);                                                                                  \
    } while (0)
        FEW_AT_A_TIME(x->tokens, TOKENS);
#undef TOKENS
    }
}

#define X(name, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads)                                                        \
    __attribute__((noinline)) static void name##_tail(const uint8_t *codes, const uint8_t *scales, const grouped_shape *shape,                \
                                                      const few_token of[], int tokens, uint64_t chunk, __m512 totals[]) {                    \
        add_last_columns(codes, scales, shape, of, tokens, chunk, unpack, group_columns, minima, totals);                                     \
    }                                                                                                                                         \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {           \
        grouped_rows(matrix, row, count, x, out, stride, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads, name##_tail); \
    }
GROUPED_LIST(X)
#undef X

static mica_product_few *const grouped_few[GROUPED_COUNT] = {
#define X(name, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads) name,
    GROUPED_LIST(X)
#undef X
};

/* ---- plain and fp8 */

/* Of a plain weight: how a row goes on, in bytes and in scales. */
typedef struct plain_shape {
    uint64_t columns, block_columns, block_rows, row_scales;
} plain_shape;

/* 64 columns of a row times a token's, added to its total. */
INLINE __m512 add_plain(const __m512 w[4], const float *values, const uint8_t *scales, uint64_t block, scale_at *scale, __m512 total) {
    __m512 first = _mm512_mul_ps(w[0], _mm512_loadu_ps(values)), second = _mm512_mul_ps(w[1], _mm512_loadu_ps(values + 16));
    first = _mm512_fmadd_ps(w[2], _mm512_loadu_ps(values + 32), first);
    second = _mm512_fmadd_ps(w[3], _mm512_loadu_ps(values + 48), second);
    first = _mm512_add_ps(first, second);
    return scale == scale_none ? _mm512_add_ps(total, first) : _mm512_fmadd_ps(first, _mm512_set1_ps(scale(scales, block)), total);
}

/* ROWS rows, `step` apart, of TOKENS tokens from `token` on. */
INLINE void plain_tile(const mica_matrix *matrix, const plain_shape *shape, uint64_t row, uint64_t step, const int rows, const mica_operand *x,
                       uint64_t token, const int tokens, float *out, uint64_t stride, load64 *load, const uint64_t bytes_each, scale_at *scale) {
    const uint8_t *codes[ROWS_TOGETHER], *scales[ROWS_TOGETHER];
    const float *values[TOGETHER];
    __m512 totals[ROWS_TOGETHER][TOGETHER], w[4];
    const uint64_t whole = shape->columns / 64 * 64;
    for (int t = 0; t < tokens; t++)
        values[t] = x->values + mica_operand_row(x, token + (uint64_t)t) * x->stride;
    for (int r = 0; r < rows; r++) {
        uint64_t at = row + (uint64_t)r * step;
        codes[r] = (const uint8_t *)matrix->codes + at * shape->columns * bytes_each;
        scales[r] = scale == scale_none ? NULL : (const uint8_t *)matrix->scales + at / shape->block_rows * shape->row_scales;
        for (int t = 0; t < tokens; t++)
            totals[r][t] = _mm512_setzero_ps();
    }
    for (uint64_t c = 0; c < whole; c += 64)
        for (int r = 0; r < rows; r++, codes[r - 1] += 64 * bytes_each) {
            fetch(codes[r], 64 * bytes_each);
            load(codes[r], w);
            for (int t = 0; t < tokens; t++)
                totals[r][t] = add_plain(w, values[t] + c, scales[r], c / shape->block_columns, scale, totals[r][t]);
        }
    for (int r = 0; whole < shape->columns && r < rows; r++) {
        uint8_t tail_codes[256] = {0};
        memcpy(tail_codes, codes[r], (shape->columns - whole) * bytes_each);
        load(tail_codes, w);
        for (int t = 0; t < tokens; t++) {
            float tail[64] = {0};
            memcpy(tail, values[t] + whole, (shape->columns - whole) * sizeof(float));
            totals[r][t] = add_plain(w, tail, scales[r], whole / shape->block_columns, scale, totals[r][t]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++)
            out[(uint64_t)t * stride + (uint64_t)r * step] = _mm512_reduce_add_ps(totals[r][t]);
}

/* Two rows at once of one token, as above. */
INLINE void plain_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride, load64 *load,
                       const uint64_t bytes_each, scale_at *scale) {
    const uint64_t half = count / 2;
    plain_shape shape = {.columns = matrix->columns, .block_columns = matrix->columns};
    if (scale != scale_none) {
        shape.block_columns = matrix->block_columns;
        shape.block_rows = matrix->block_rows;
        shape.row_scales = (matrix->columns + shape.block_columns - 1) / shape.block_columns * mica_dtype_bytes(matrix->scale_dtype);
    }
    uint64_t r = 0;
    for (; x->tokens == 1 && count >= STREAM_ROWS && r < half; r++)
        plain_tile(matrix, &shape, row + r, half, 2, x, 0, 1, out + r, stride, load, bytes_each, scale);
    for (r *= 2; r < count; r++) {
#define TOKENS(t, tokens) plain_tile(matrix, &shape, row + r, 0, 1, x, t, tokens, out + t * stride + r, stride, load, bytes_each, scale)
        FEW_AT_A_TIME(x->tokens, TOKENS);
#undef TOKENS
    }
}

#define X(name, load, bytes_each, scale)                                                                                             \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {   \
        plain_rows(matrix, row, count, x, out, stride, load, bytes_each, scale);                                                     \
    }
PLAIN_LIST(X)
#undef X

/* ---- the choice */

static mica_product_few *const plain_few[PLAIN_COUNT] = {
#define X(name, load, bytes_each, scale) name,
    PLAIN_LIST(X)
#undef X
};

static mica_product_few *few_of(const mica_matrix *matrix, mica_precision precision) {
    int plain = mica_plain_avx512(matrix), group = precision == MICA_PRECISION_FAST ? mica_grouped_avx512(matrix) : -1;
    return plain >= 0 ? plain_few[plain] : group >= 0 ? grouped_few[group] : NULL;
}

#endif
