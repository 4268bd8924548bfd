/* numerics/product_few_avx512.c: rows of few tokens from the bytes as they are, in linear streams that are fetched 4 KiB ahead,
 * each decoded once for up to four tokens. Two families:
 *   plain and fp8   to float32, 64 columns at a time; float32 activations: the same for both precisions
 *   grouped         codes of 8 bits times activations of 16 in two digits (VNNI), exact in int32; a factor for 16 or 32 columns, and the
 *                   activations' own for 256. FAST only.
 * A token's sums are taken in the same order whatever the other tokens are. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
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
    __m512i product = _mm512_setzero_si512();
    for (int v = 0; v < vectors; v++)
        product = _mm512_dpbusd_epi32(product, w->codes[first + v], _mm512_loadu_si512(digits + v * 128));
    product = _mm512_slli_epi32(product, 8);
    for (int v = 0; v < vectors; v++)
        product = _mm512_dpbusd_epi32(product, w->codes[first + v], _mm512_loadu_si512(digits + v * 128 + 64));
    if (minima)
        return product;
    const int32_t *sums = vectors == 2 ? x->pair_sums + chunk * 32 + (uint64_t)first * 8 : x->sums + chunk * 64 + (uint64_t)first * 16;
    return _mm512_add_epi32(product, _mm512_loadu_si512(sums));
}

/* What `halves` times 128 columns of a chunk add to a token's total. */
INLINE __m512 add_columns(const columns256 *w, const int halves, const few_token *x, uint64_t chunk, const int group_columns, const int minima, __m512 total) {
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

/* Of a grouped weight: where a row's bytes are, and how much of its last 256 columns there is (0: all). */
typedef struct grouped_shape {
    uint64_t row_bytes, row_scales, last_codes, last_scales;
} grouped_shape;

/* 128 * `halves` columns of a row, for each token. */
INLINE void add_chunk(const uint8_t *codes, const uint8_t *scales, const int halves, const few_token of[], const int tokens, uint64_t chunk, unpack256 *unpack,
                      const int group_columns, const int minima, unpack_quads *quads, __m512 totals[]) {
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

/* ROWS rows, `step` apart, of TOKENS tokens from `token` on. */
INLINE void grouped_tile(const mica_matrix *matrix, const grouped_shape *shape, uint64_t row, uint64_t step, const int rows, const mica_operand *x,
                         uint64_t token, const int tokens, float *out, uint64_t stride, unpack256 *unpack, const int group_columns, const int minima,
                         const uint64_t code_bytes, const uint64_t scale_bytes, const float factor, unpack_quads *quads) {
    const uint8_t *codes[ROWS_TOGETHER], *scales[ROWS_TOGETHER];
    few_token of[TOGETHER];
    __m512 totals[ROWS_TOGETHER][TOGETHER];
    const uint64_t chunks = x->padded / 256, whole = shape->last_codes ? chunks - 1 : chunks;
    for (int t = 0; t < tokens; t++) {
        uint64_t at = mica_operand_row(x, token + (uint64_t)t);
        of[t] = (few_token){x->digits + at * 2 * x->padded,    x->quads + at * 2 * x->padded,      x->sums + at * x->padded / 4,
                            x->pair_sums + at * x->padded / 8, x->wide_sums + at * x->padded / 16, x->wide_pair_sums + at * x->padded / 16,
                            x->quad_sums + at * x->padded / 16, x->scales + at * chunks};
    }
    for (int r = 0; r < rows; r++) {
        codes[r] = (const uint8_t *)matrix->codes + (row + (uint64_t)r * step) * shape->row_bytes;
        scales[r] = scale_bytes ? (const uint8_t *)matrix->scales + (row + (uint64_t)r * step) * shape->row_scales : codes[r];
        for (int t = 0; t < tokens; t++)
            totals[r][t] = _mm512_setzero_ps();
    }
    for (uint64_t chunk = 0; chunk < whole; chunk++)
        for (int r = 0; r < rows; r++, codes[r - 1] += code_bytes, scales[r - 1] += scale_bytes) {
            fetch(codes[r], code_bytes);
            add_chunk(codes[r], scales[r], 2, of, tokens, chunk, unpack, group_columns, minima, quads, totals[r]);
        }
    for (int r = 0; whole < chunks && r < rows; r++) {
        uint8_t tail[272 + 32] = {0};
        if (scale_bytes == 0 && shape->last_codes * 2 == code_bytes) { /* 128 columns, as an absorbed key has, are taken apart where they are */
            add_chunk(codes[r], scales[r], 1, of, tokens, whole, unpack, group_columns, minima, quads, totals[r]);
            continue;
        }
        memcpy(tail, codes[r], shape->last_codes); /* zeros beyond its end, where the activations are zero too */
        memcpy(tail + 272, scales[r], shape->last_scales);
        add_chunk(tail, tail + 272, 2, of, tokens, whole, unpack, group_columns, minima, quads, totals[r]);
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++)
            out[(uint64_t)t * stride + (uint64_t)r * step] = _mm512_reduce_add_ps(totals[r][t]) * factor;
}

/* One token takes two rows at once, which share the loads of its digits: one of the first half and one of the second, so that each is a linear
 * stream. (Rows side by side would be streams that leap, which the processor does not fetch ahead; a short piece is better one stream.) */
INLINE void grouped_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                         unpack256 *unpack, const int group_columns, const int minima, const uint64_t code_bytes, const uint64_t scale_bytes,
                         const float factor, unpack_quads *quads) {
    const uint64_t whole = matrix->columns / 256, half = count / 2;
    grouped_shape shape = {.row_bytes = mica_matrix_row_bytes(matrix), .row_scales = scale_bytes ? (matrix->columns + 31) / 32 * (scale_bytes / 8) : 0};
    shape.last_codes = shape.row_bytes - whole * code_bytes;
    shape.last_scales = shape.row_scales - whole * scale_bytes;
    uint64_t r = 0;
    for (; x->tokens == 1 && count >= STREAM_ROWS && r < half; r++)
        grouped_tile(matrix, &shape, row + r, half, 2, x, 0, 1, out + r, stride, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads);
    for (r *= 2; r < count; r++) {
#define TOKENS(t, tokens)                                                                                                                          \
    grouped_tile(matrix, &shape, row + r, 0, 1, x, t, tokens, out + t * stride + r, stride, unpack, group_columns, minima, code_bytes, scale_bytes, factor, \
                 quads)
        FEW_AT_A_TIME(x->tokens, TOKENS);
#undef TOKENS
    }
}

#define X(name, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads)                                                     \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {     \
        grouped_rows(matrix, row, count, x, out, stride, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads);                                \
    }
GROUPED_LIST(X)
#undef X

static mica_product_few *const grouped_few[GROUPED_COUNT] = {
#define X(name, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads) name,
    GROUPED_LIST(X)
#undef X
};

/* ---- plain and fp8 */

INLINE void plain_row(const uint8_t *codes, const uint8_t *scales, uint64_t columns, uint64_t block_columns, const mica_operand *x, uint64_t token,
                      const int tokens, float *out, uint64_t stride, load64 *load, const uint64_t bytes_each, scale_at *scale) {
    const float *values[TOGETHER];
    __m512 totals[TOGETHER];
    float tail[TOGETHER][64];
    uint8_t tail_codes[256];
    for (int t = 0; t < tokens; t++) {
        values[t] = x->values + mica_operand_row(x, token + (uint64_t)t) * x->stride;
        totals[t] = _mm512_setzero_ps();
    }
    for (uint64_t c = 0; c < columns; c += 64, codes += 64 * bytes_each) {
        uint64_t step = c; /* into values */
        if (columns - c < 64) {
            memset(tail, 0, sizeof tail);
            memset(tail_codes, 0, sizeof tail_codes);
            memcpy(tail_codes, codes, (columns - c) * bytes_each);
            codes = tail_codes;
            for (int t = 0; t < tokens; t++) {
                memcpy(tail[t], values[t] + c, (columns - c) * sizeof(float));
                values[t] = tail[t];
            }
            step = 0;
        }
        __m512 w[4];
        fetch(codes, 64 * bytes_each);
        load(codes, w);
        for (int t = 0; t < tokens; t++) {
            const float *v = values[t] + step;
            __m512 first = _mm512_mul_ps(w[0], _mm512_loadu_ps(v)), second = _mm512_mul_ps(w[1], _mm512_loadu_ps(v + 16));
            first = _mm512_fmadd_ps(w[2], _mm512_loadu_ps(v + 32), first);
            second = _mm512_fmadd_ps(w[3], _mm512_loadu_ps(v + 48), second);
            first = _mm512_add_ps(first, second);
            totals[t] = scale == scale_none ? _mm512_add_ps(totals[t], first)
                                            : _mm512_fmadd_ps(first, _mm512_set1_ps(scale(scales, c / block_columns)), totals[t]);
        }
    }
    for (int t = 0; t < tokens; t++)
        out[(uint64_t)t * stride] = _mm512_reduce_add_ps(totals[t]);
}

INLINE void plain_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride, load64 *load,
                       const uint64_t bytes_each, scale_at *scale) {
    uint64_t columns = matrix->columns, block_columns = scale == scale_none ? columns : matrix->block_columns;
    uint64_t scales_in_row = (columns + block_columns - 1) / block_columns * mica_dtype_bytes(matrix->scale_dtype);
    for (uint64_t r = 0; r < count; r++) {
        const uint8_t *codes = (const uint8_t *)matrix->codes + (row + r) * columns * bytes_each, *scales = NULL;
        if (scale != scale_none)
            scales = (const uint8_t *)matrix->scales + (row + r) / matrix->block_rows * scales_in_row;
#define TOKENS(t, tokens) plain_row(codes, scales, columns, block_columns, x, t, tokens, out + t * stride + r, stride, load, bytes_each, scale)
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

mica_product_few *mica_product_few_avx512(const mica_matrix *matrix, mica_precision precision) {
    int plain = mica_plain_avx512(matrix), group = precision == MICA_PRECISION_FAST ? mica_grouped_avx512(matrix) : -1;
    return plain >= 0 ? plain_few[plain] : group >= 0 ? grouped_few[group] : NULL;
}
#else
typedef int mica_product_few_avx512_empty; /* a translation unit may not be empty */
#endif
