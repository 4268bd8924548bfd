/* numerics/product_pairs_avx512.c: fp8 weights of few tokens with AVX512_BF16: an E4M3 code is exactly a bf16, an activation is two (16 bits of it),
 * products of neighbours are added in float32, a block's sum meets its scale once. FAST only. A token's sums are taken in the same order whatever
 * the other tokens are, and however many rows are multiplied at once. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include "numerics/product_avx512.h"
#include "numerics/product_load_avx512.h"

enum { TOGETHER = 4 }; /* tokens */

INLINE __m512 add_pairs(__m512 sum, __m512i codes, const uint16_t *halves) {
    return _mm512_dpbf16_ps(sum, (__m512bh)codes, (__m512bh)_mm512_load_si512(halves));
}

/* 64 columns of some rows and some tokens, onto the sums of [rows][tokens] and the two halves of the activations. */
INLINE void add_columns(const uint8_t *const codes[], const int rows, const mica_few_chunk *const x[], const int tokens, uint64_t group,
                        __m512 sums[][2]) {
    EACH (r, rows) {
        __m512i pairs[2];
        pairs_of_e4m3(codes[r], pairs);
        EACH (t, tokens)
            EACH (half, 2) {
                __m512 *sum = &sums[r * tokens + t][half];
                *sum = add_pairs(add_pairs(*sum, pairs[0], x[t]->halves[group][half][0]), pairs[1], x[t]->halves[group][half][1]);
            }
    }
}

INLINE void pairs_tile(const mica_matrix *matrix, uint64_t row, const int rows, const mica_operand *x, uint64_t token, const int tokens, float *out,
                       uint64_t stride, scale_at *scale) {
    uint64_t columns = matrix->columns, block_columns = matrix->block_columns;
    uint64_t scale_bytes = (columns + block_columns - 1) / block_columns * mica_dtype_bytes(matrix->scale_dtype);
    const uint8_t *codes[2], *scales[2];
    const mica_few_chunk *first[TOGETHER];
    __m512 totals[2 * TOGETHER];
    uint8_t tails[2][64];
    EACH (r, rows) {
        codes[r] = (const uint8_t *)matrix->codes + (row + (uint64_t)r) * columns;
        scales[r] = (const uint8_t *)matrix->scales + (row + (uint64_t)r) / matrix->block_rows * scale_bytes;
    }
    EACH (t, tokens)
        first[t] = x->chunks + mica_operand_row(x, token + (uint64_t)t) * (x->padded / 256);
    EACH (i, rows * tokens)
        totals[i] = _mm512_setzero_ps();
    for (uint64_t c = 0, block = 0, end; c < columns; block++) {
        __m512 sums[2 * TOGETHER][2];
        EACH (i, rows * tokens)
            sums[i][0] = sums[i][1] = _mm512_setzero_ps();
        end = columns - c < block_columns ? columns : c + block_columns;
        for (; c < end; c += 64) {
            const mica_few_chunk *chunks[TOGETHER];
            EACH (t, tokens)
                chunks[t] = first[t] + c / 256;
            EACH (r, rows) {
                if (__builtin_expect(columns - c < 64, 0)) { /* zeros beyond the end, where the activations are zero too */
                    memset(tails[r], 0, sizeof tails[r]);
                    memcpy(tails[r], codes[r], columns - c);
                    codes[r] = tails[r];
                }
                fetch(codes[r], 64);
            }
            add_columns(codes, rows, chunks, tokens, c / 64 % 4, sums);
            EACH (r, rows)
                codes[r] += 64;
        }
        EACH (r, rows)
            EACH (t, tokens) {
                const int i = r * tokens + t;
                totals[i] = _mm512_fmadd_ps(_mm512_add_ps(sums[i][0], sums[i][1]), _mm512_set1_ps(scale(scales[r], block)), totals[i]);
            }
    }
    EACH (r, rows)
        EACH (t, tokens)
            out[(uint64_t)t * stride + (uint64_t)r] = _mm512_reduce_add_ps(totals[r * tokens + t]);
}

INLINE void pairs_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride, scale_at *scale) {
    uint64_t t = 0, r = 0;
    for (; t + TOGETHER <= x->tokens; t += TOGETHER)
        for (r = 0; r < count; r++)
            pairs_tile(matrix, row + r, 1, x, t, TOGETHER, out + t * stride + r, stride, scale);
    if (t + 2 <= x->tokens) {
        for (r = 0; r < count; r++)
            pairs_tile(matrix, row + r, 1, x, t, 2, out + t * stride + r, stride, scale);
        t += 2;
    }
    if (t == x->tokens)
        return;
    for (r = 0; r + 2 <= count; r += 2) /* two rows share the loads of one token */
        pairs_tile(matrix, row + r, 2, x, t, 1, out + t * stride + r, stride, scale);
    if (r < count)
        pairs_tile(matrix, row + r, 1, x, t, 1, out + t * stride + r, stride, scale);
}

#define X(name, scale)                                                                                                              \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) { \
        pairs_rows(matrix, row, count, x, out, stride, scale);                                                                      \
    }
X(e4m3_f32, scale_f32)
X(e4m3_bf16, scale_bf16)
X(e4m3_e8m0, scale_e8m0)
#undef X

mica_product_few *mica_product_few_bf16_avx512(const mica_matrix *matrix, mica_precision precision) {
    int plain = precision == MICA_PRECISION_FAST ? mica_plain_avx512(matrix) : -1;
    switch (plain) {
    case PLAIN_e4m3_f32: return e4m3_f32;
    case PLAIN_e4m3_bf16: return e4m3_bf16;
    case PLAIN_e4m3_e8m0: return e4m3_e8m0;
    default: return mica_product_few_avx512(matrix, precision);
    }
}

/* ---- preparation: halves in the order in which pairs_of_e4m3 leaves columns */

void mica_prepare_bf16_avx512(mica_operand *x, uint64_t row) {
    mica_prepare_avx512(x, row);
    for (uint64_t c = 0; x->chunks && c < x->padded; c += 16) {
        mica_few_chunk *chunk = x->chunks + (row * x->padded + c) / 256;
        uint64_t group = c / 64 % 4, lane = c / 16 % 4, left = c < x->columns ? x->columns - c : 0;
        __m512 values = _mm512_maskz_loadu_ps(left < 16 ? (__mmask16)((1u << left) - 1) : 0xffff, x->values + row * x->stride + (left ? c : 0));
        for (int half = 0; half < 2; half++) {
            __m256i rounded = (__m256i)_mm512_cvtneps_pbh(values);
            for (int i = 0; i < 2; i++) /* eight columns each */
                _mm_store_si128((__m128i *)(void *)(chunk->halves[group][half][i] + 8 * lane), i ? _mm256_extracti128_si256(rounded, 1) : _mm256_castsi256_si128(rounded));
            values = _mm512_sub_ps(values, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
        }
    }
}
#else
typedef int mica_product_pairs_avx512_empty; /* a translation unit may not be empty */
#endif
