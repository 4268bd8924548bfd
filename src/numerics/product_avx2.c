/* numerics/product_avx2.c: the tables of the AVX2 product kernels, with AVX-VNNI and without, and strips of float32 times tokens: tiles of
 * 4 rows and up to 3 tokens, sums in 8 lanes. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "numerics/product_avx2.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE_ROWS = 4, TILE_TOKENS = 3 };

/* Four sums over lanes. */
INLINE __m128 sums_of_four(const __m256 v[TILE_ROWS]) {
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

INLINE void tile_step(const float *const w[TILE_ROWS], const float *const x[TILE_TOKENS], const int tokens, uint64_t k, const __m256i *mask,
                      __m256 sums[TILE_TOKENS][TILE_ROWS]) {
    __m256 a[TILE_TOKENS];
    for (int t = 0; t < tokens; t++)
        a[t] = mask ? _mm256_maskload_ps(x[t] + k, *mask) : _mm256_loadu_ps(x[t] + k);
    for (int r = 0; r < TILE_ROWS; r++) {
        __m256 v = mask ? _mm256_maskload_ps(w[r] + k, *mask) : _mm256_loadu_ps(w[r] + k);
        for (int t = 0; t < tokens; t++)
            sums[t][r] = _mm256_fmadd_ps(v, a[t], sums[t][r]);
    }
}

INLINE void tile(const float *const w[TILE_ROWS], const float *const x[TILE_TOKENS], const int tokens, uint64_t width, uint64_t rows,
                 bool add, float *out, uint64_t stride) {
    __m256 sums[TILE_TOKENS][TILE_ROWS];
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < TILE_ROWS; r++)
            sums[t][r] = _mm256_setzero_ps();
    uint64_t k = 0;
    for (; k + 8 <= width; k += 8)
        tile_step(w, x, tokens, k, NULL, sums);
    if (k < width) {
        __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(width - k)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        tile_step(w, x, tokens, k, &mask, sums);
    }
    for (int t = 0; t < tokens; t++, out += stride) {
        float four[4];
        _mm_storeu_ps(four, sums_of_four(sums[t]));
        for (uint64_t r = 0; r < rows; r++)
            out[r] = add ? out[r] + four[r] : four[r];
    }
}

static void multiply_f32(const float *strip, uint64_t strip_stride, uint64_t rows, const mica_operand *x, uint64_t column, uint64_t width,
                         float *out, uint64_t stride) {
    for (uint64_t t = 0, some; t < x->tokens; t += some) {
        const float *values[TILE_TOKENS];
        some = x->tokens - t < TILE_TOKENS ? x->tokens - t : TILE_TOKENS;
        for (uint64_t i = 0; i < some; i++)
            values[i] = x->values + mica_operand_row(x, t + i) * x->stride + column;
        for (uint64_t r = 0; r < rows; r += TILE_ROWS) {
            uint64_t left = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            const float *w[TILE_ROWS];
            for (uint64_t i = 0; i < TILE_ROWS; i++)
                w[i] = strip + (r + (i < left ? i : 0)) * strip_stride;
            float *target = out + t * stride + r;
            switch (some) {
            case 1: tile(w, values, 1, width, left, column != 0, target, stride); break;
            case 2: tile(w, values, 2, width, left, column != 0, target, stride); break;
            default: tile(w, values, 3, width, left, column != 0, target, stride);
            }
        }
    }
}

/* Four tokens at a time come to 100 to 130 GFLOP/s of grouped encodings, of others to 80 of eight and 60 of sixteen; strips to 54 to 78 of
 * sixteen. */
static uint64_t few_tokens(const mica_matrix *matrix) {
    return matrix->encoding == MICA_ENCODING_PLAIN || matrix->encoding == MICA_ENCODING_FP8_BLOCK ? 8 : MICA_PRODUCT_SOME;
}

const mica_product_kernels mica_product_kernels_avx2 = {.prepare = mica_prepare_avx2,
                                                        .few = mica_product_few_avx2,
                                                        .few_tokens = few_tokens,
                                                        .multiply_f32 = multiply_f32};

const mica_product_kernels mica_product_kernels_avxvnni = {.prepare = mica_prepare_avx2,
                                                           .few = mica_product_few_avxvnni,
                                                           .few_tokens = few_tokens,
                                                           .multiply_f32 = multiply_f32};
#else
typedef int mica_product_avx2_empty; /* a translation unit may not be empty */
#endif
