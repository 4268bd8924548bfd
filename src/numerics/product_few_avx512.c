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

/* How an encoding is taken apart: constants, all of them, to each kernel. */
typedef struct layout {
    unpack_unit *unpack;
    uint64_t columns, code_bytes, scale_bytes; /* of a unit */
    int shared;
    minima_kind minima;
    float factor;
} layout;

INLINE uint64_t row_scale_bytes(const layout how, uint64_t columns) {
    return how.scale_bytes ? (columns + 31) / 32 * (how.scale_bytes / 4) : 0;
}

/* Sums of four columns times the first digits, then 256 times that and the second ones': of one vector of codes, or of two whose lanes agree. */
INLINE __m512i multiply_digits(const __m512i *codes, const int vectors, const int8_t (*digits)[2][64], __m512i sum) {
    EACH (v, vectors)
        sum = _mm512_dpbusd_epi32(sum, codes[v], _mm512_load_si512(digits[v][0]));
    sum = _mm512_slli_epi32(sum, 8);
    EACH (v, vectors)
        sum = _mm512_dpbusd_epi32(sum, codes[v], _mm512_load_si512(digits[v][1]));
    return sum;
}

/* The u-th unit of a chunk; `part` is what the units before it gave. */
INLINE __m512 multiply_unit(const unit *w, const mica_few_chunk *x, const int u, const layout how, __m512 part) {
    const int vectors = how.shared ? 2 : 1, first = u * (int)how.columns / 64 / vectors, count = (int)how.columns / 64 / vectors;
    if (how.minima == TWICE_BY_LANE)
        part = _mm512_fmadd_ps(w->least, _mm512_cvtepi32_ps(_mm512_load_si512(x->pair_sums[u])), part);
    else if (how.minima != NO_MINIMA)
        part = _mm512_mul_ps(w->least, _mm512_load_ps(how.minima == BY_BLOCK ? x->block_sums : x->wide_sums));
    EACH (i, count) {
        __m512i sum = how.minima != NO_MINIMA ? _mm512_setzero_si512() : _mm512_load_si512(how.shared ? x->pair_sums[first + i] : x->sums[first + i]);
        sum = multiply_digits(w->codes + i * vectors, vectors, x->digits + (first + i) * vectors, sum);
        __m512 product = _mm512_cvtepi32_ps(sum);
        part = u + i == 0 && how.minima == NO_MINIMA ? _mm512_mul_ps(product, w->factors[i]) : _mm512_fmadd_ps(product, w->factors[i], part);
    }
    return part;
}

/* Some units of 256 columns, for some rows and some tokens: each row is taken apart once. */
INLINE void add_chunk(const uint8_t *const codes[], const uint8_t *const scales[], const int units, const int rows, const mica_few_chunk *const x[],
                      const int tokens, const layout how, __m512 totals[]) {
    EACH (r, rows) {
        __m512 parts[TOGETHER];
        EACH (t, tokens)
            parts[t] = _mm512_setzero_ps();
        EACH (u, units) {
            unit w;
            how.unpack(codes[r] + (uint64_t)u * how.code_bytes, scales[r] + (uint64_t)u * how.scale_bytes, &w);
            EACH (t, tokens)
                parts[t] = multiply_unit(&w, x[t], u, how, parts[t]);
        }
        EACH (t, tokens)
            totals[r * tokens + t] = _mm512_fmadd_ps(parts[t], _mm512_set1_ps(x[t]->scale), totals[r * tokens + t]);
    }
}

/* `rows` rows from `codes` and `scales` on, `tokens` tokens from `token` on. */
INLINE void grouped_tile(const mica_matrix *matrix, uint64_t row, const int rows, const mica_operand *x, uint64_t token, const int tokens, float *out,
                         uint64_t stride, const layout how) {
    uint64_t row_bytes = mica_matrix_row_bytes(matrix), row_scales = row_scale_bytes(how, matrix->columns), whole = matrix->columns / 256;
    uint64_t count = whole + (matrix->columns % 256 != 0 && matrix->columns % 256 != how.columns);
    const int units = 256 / (int)how.columns;
    const uint64_t step = how.code_bytes * (256 / how.columns), scale_step = how.scale_bytes * (256 / how.columns);
    const uint8_t *codes[2], *scales[2];
    uint8_t tails[2][272 + 64];
    const mica_few_chunk *chunks[TOGETHER];
    __m512 totals[2 * TOGETHER];
    EACH (r, rows) {
        codes[r] = (const uint8_t *)matrix->codes + (row + (uint64_t)r) * row_bytes;
        scales[r] = how.scale_bytes ? (const uint8_t *)matrix->scales + (row + (uint64_t)r) * row_scales : codes[r];
    }
    EACH (t, tokens)
        chunks[t] = x->chunks + mica_operand_row(x, token + (uint64_t)t) * (x->padded / 256);
    EACH (i, rows * tokens)
        totals[i] = _mm512_setzero_ps();
    for (uint64_t chunk = 0; chunk < count; chunk++) {
        if (how.columns < 256 && __builtin_expect(chunk == whole, 0)) /* zeros beyond the end, where the activations are zero too */
            EACH (r, rows) {
                memset(tails[r], 0, sizeof tails[r]);
                memcpy(tails[r], codes[r], row_bytes - whole * step);
                memcpy(tails[r] + 272, scales[r], row_scales - whole * scale_step);
                codes[r] = tails[r];
                scales[r] = tails[r] + 272;
            }
        EACH (r, rows)
            fetch(codes[r], step);
        add_chunk(codes, scales, units, rows, chunks, tokens, how, totals);
        EACH (r, rows) {
            codes[r] += step;
            scales[r] += scale_step;
        }
        EACH (t, tokens)
            chunks[t]++;
    }
    if (how.columns == 128 && matrix->columns % 256 == 128)
        add_chunk(codes, scales, 1, rows, chunks, tokens, how, totals);
    EACH (r, rows)
        EACH (t, tokens)
            out[(uint64_t)t * stride + (uint64_t)r] = _mm512_reduce_add_ps(totals[r * tokens + t]) * how.factor;
}

INLINE void grouped_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride, const layout how) {
    uint64_t t = 0;
    for (; t + TOGETHER <= x->tokens; t += TOGETHER)
        for (uint64_t r = 0; r < count; r++)
            grouped_tile(matrix, row + r, 1, x, t, TOGETHER, out + t * stride + r, stride, how);
    if (t + 2 <= x->tokens) {
        for (uint64_t r = 0; r < count; r++)
            grouped_tile(matrix, row + r, 1, x, t, 2, out + t * stride + r, stride, how);
        t += 2;
    }
    if (t == x->tokens)
        return;
    uint64_t r = 0;
    for (; r + 2 <= count; r += 2) /* two rows share the loads of one token */
        grouped_tile(matrix, row + r, 2, x, t, 1, out + t * stride + r, stride, how);
    if (r < count)
        grouped_tile(matrix, row + r, 1, x, t, 1, out + t * stride + r, stride, how);
}

#define X(name, unpack, columns, shared, minima, code_bytes, scale_bytes, factor)                                                      \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {     \
        grouped_rows(matrix, row, count, x, out, stride, (layout){unpack, columns, code_bytes, scale_bytes, shared, minima, factor});  \
    }
GROUPED_LIST(X)
#undef X

static mica_product_few *const grouped_few[GROUPED_COUNT] = {
#define X(name, unpack, columns, shared, minima, code_bytes, scale_bytes, factor) name,
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
    EACH (t, tokens) {
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
            EACH (t, tokens) {
                memcpy(tail[t], values[t] + c, (columns - c) * sizeof(float));
                values[t] = tail[t];
            }
            step = 0;
        }
        __m512 w[4];
        fetch(codes, 64 * bytes_each);
        load(codes, w);
        EACH (t, tokens) {
            const float *v = values[t] + step;
            __m512 first = _mm512_mul_ps(w[0], _mm512_loadu_ps(v)), second = _mm512_mul_ps(w[1], _mm512_loadu_ps(v + 16));
            first = _mm512_fmadd_ps(w[2], _mm512_loadu_ps(v + 32), first);
            second = _mm512_fmadd_ps(w[3], _mm512_loadu_ps(v + 48), second);
            first = _mm512_add_ps(first, second);
            totals[t] = scale == scale_none ? _mm512_add_ps(totals[t], first)
                                            : _mm512_fmadd_ps(first, _mm512_set1_ps(scale(scales, c / block_columns)), totals[t]);
        }
    }
    EACH (t, tokens)
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
