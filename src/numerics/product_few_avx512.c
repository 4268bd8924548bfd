/* numerics/product_few_avx512.c: rows of few tokens from the bytes as they are, one row after the other (a linear stream, fetched 4 KiB ahead),
 * each decoded once for up to four tokens. Two families:
 *   plain and fp8   to float32, 64 columns at a time; float32 activations: the same for both precisions
 *   grouped         codes of 8 bits times activations of 16 in two digits (VNNI), exact in int32; a factor for each four columns, and the
 *                   activations' own for 256. FAST only.
 * A token's sums are taken in the same order whatever the other tokens are. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include "numerics/product_avx512.h"
#include "numerics/product_load_avx512.h"
#include "numerics/product_unpack_avx512.h"

enum { TOGETHER = 4 }; /* tokens */

/* ---- grouped */

/* What `groups` times 64 columns of a chunk add to each token's total. */
INLINE void add_groups(const columns256 *w, const int groups, const int8_t *const digits[], const int32_t *const sums[], const float *const wide_sums[],
                       const float *const steps[], uint64_t chunk, const int tokens, const int minima, __m512 totals[]) {
    for (int t = 0; t < tokens; t++) {
        __m512 part = minima ? _mm512_mul_ps(w->least, _mm512_loadu_ps(wide_sums[t] + chunk * 16)) : _mm512_setzero_ps();
        for (int g = 0; g < groups; g++) {
            const int8_t *digit = digits[t] + chunk * 512 + (uint64_t)g * 128;
            __m512i product = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w->codes[g], _mm512_loadu_si512(digit));
            product = _mm512_dpbusd_epi32(_mm512_slli_epi32(product, 8), w->codes[g], _mm512_loadu_si512(digit + 64));
            if (!minima)
                product = _mm512_add_epi32(product, _mm512_loadu_si512(sums[t] + chunk * 64 + (uint64_t)g * 16));
            part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), w->factors[g], part);
        }
        totals[t] = _mm512_fmadd_ps(part, _mm512_set1_ps(steps[t][chunk]), totals[t]);
    }
}

/* One row, TOKENS tokens from `token` on. */
INLINE void grouped_row(const uint8_t *codes, const uint8_t *scales, const mica_operand *x, uint64_t token, const int tokens, float *out,
                        uint64_t stride, unpack256 *unpack, const int minima, const uint64_t code_bytes, const uint64_t scale_bytes,
                        const float factor, uint64_t last_codes, uint64_t last_scales) {
    const int8_t *digits[TOGETHER];
    const int32_t *sums[TOGETHER];
    const float *steps[TOGETHER], *wide_sums[TOGETHER];
    __m512 totals[TOGETHER];
    uint64_t chunks = x->padded / 256;
    uint8_t tail[272 + 32];
    for (int t = 0; t < tokens; t++) {
        uint64_t row = mica_operand_row(x, token + (uint64_t)t);
        digits[t] = x->digits + row * 2 * x->padded;
        sums[t] = x->sums + row * x->padded / 4;
        wide_sums[t] = x->wide_sums + row * x->padded / 16;
        steps[t] = x->scales + row * chunks;
        totals[t] = _mm512_setzero_ps();
    }
    /* 128 columns, as an absorbed key has, are taken apart where they are */
    const bool half = scale_bytes == 0 && !minima && code_bytes % 8 == 0 && last_codes == code_bytes / 2;
    const uint64_t whole = chunks - half;
    for (uint64_t chunk = 0; chunk < whole; chunk++, codes += code_bytes, scales += scale_bytes) {
        columns256 w;
        if (chunk + 1 == chunks && last_codes) { /* not whole: zeros beyond its end, where the activations are zero too */
            memset(tail, 0, sizeof tail);
            memcpy(tail, codes, last_codes);
            memcpy(tail + 272, scales, last_scales);
            codes = tail;
            scales = tail + 272;
        }
        fetch(codes, code_bytes);
        unpack(codes, scales, &w, 4);
        add_groups(&w, 4, digits, sums, wide_sums, steps, chunk, tokens, minima, totals);
    }
    if (half) {
        columns256 w;
        unpack(codes, scales, &w, 2);
        add_groups(&w, 2, digits, sums, wide_sums, steps, whole, tokens, minima, totals);
    }
    for (int t = 0; t < tokens; t++)
        out[(uint64_t)t * stride] = _mm512_reduce_add_ps(totals[t]) * factor;
}

INLINE void grouped_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                         unpack256 *unpack, const int minima, const uint64_t code_bytes, const uint64_t scale_bytes, const float factor) {
    uint64_t row_bytes = mica_matrix_row_bytes(matrix), whole = matrix->columns / 256;
    uint64_t row_scales = scale_bytes ? (matrix->columns + 31) / 32 * (scale_bytes / 8) : 0;
    uint64_t last_codes = row_bytes - whole * code_bytes, last_scales = row_scales - whole * scale_bytes;
    for (uint64_t r = 0; r < count; r++) {
        const uint8_t *codes = (const uint8_t *)matrix->codes + (row + r) * row_bytes;
        const uint8_t *scales = scale_bytes ? (const uint8_t *)matrix->scales + (row + r) * row_scales : codes;
        uint64_t t = 0;
        for (; t + TOGETHER <= x->tokens; t += TOGETHER)
            grouped_row(codes, scales, x, t, TOGETHER, out + t * stride + r, stride, unpack, minima, code_bytes, scale_bytes, factor, last_codes,
                        last_scales);
        if (t + 2 <= x->tokens) {
            grouped_row(codes, scales, x, t, 2, out + t * stride + r, stride, unpack, minima, code_bytes, scale_bytes, factor, last_codes, last_scales);
            t += 2;
        }
        if (t < x->tokens)
            grouped_row(codes, scales, x, t, 1, out + t * stride + r, stride, unpack, minima, code_bytes, scale_bytes, factor, last_codes, last_scales);
    }
}

#define X(name, unpack, minima, code_bytes, scale_bytes, factor)                                                                       \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {     \
        grouped_rows(matrix, row, count, x, out, stride, unpack, minima, code_bytes, scale_bytes, factor);                             \
    }
GROUPED_LIST(X)
#undef X

static mica_product_few *const grouped_few[GROUPED_COUNT] = {
#define X(name, unpack, minima, code_bytes, scale_bytes, factor) name,
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
        uint64_t t = 0;
        for (; t + TOGETHER <= x->tokens; t += TOGETHER)
            plain_row(codes, scales, columns, block_columns, x, t, TOGETHER, out + t * stride + r, stride, load, bytes_each, scale);
        if (t + 2 <= x->tokens) {
            plain_row(codes, scales, columns, block_columns, x, t, 2, out + t * stride + r, stride, load, bytes_each, scale);
            t += 2;
        }
        if (t < x->tokens)
            plain_row(codes, scales, columns, block_columns, x, t, 1, out + t * stride + r, stride, load, bytes_each, scale);
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
