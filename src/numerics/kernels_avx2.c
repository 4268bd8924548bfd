/* numerics/kernels_avx2.c: 8 lanes, int16 pairs by VPMADDWD (AVX2, FMA). Compiled with those flags; called only where the processor has them. */
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#define LANES 8
#define TILE_ROWS 4
#define KERNELS mica_kernels_avx2

#include "numerics/kernels.h"

/* 4 rows x 16 columns. VPMADDWD's own sum of two products cannot overflow either: a pair's part of a row's norm is at most the norm. */
static inline __attribute__((always_inline)) void gram_quarter(const int32_t *pairs, const float *a_scale, const int32_t *b, const float *b_scale,
                                                               float *tile) {
    __m256i sum[4][2];
    for (int i = 0; i < 4; i++)
        sum[i][0] = sum[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int k = 0; k < MICA_PANEL_COLUMNS / 2; k++) {
        __m256i b0 = _mm256_load_si256((const __m256i *)(b + k * 16)), b1 = _mm256_load_si256((const __m256i *)(b + k * 16 + 8));
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m256i pair = _mm256_set1_epi32(pairs[k * 16 + i]);
            sum[i][0] = _mm256_add_epi32(sum[i][0], _mm256_madd_epi16(pair, b0));
            sum[i][1] = _mm256_add_epi32(sum[i][1], _mm256_madd_epi16(pair, b1));
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            float *out = tile + i * 16 + j * 8;
            __m256 scale = _mm256_mul_ps(_mm256_set1_ps(a_scale[i]), _mm256_loadu_ps(b_scale + j * 8));
            _mm256_store_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i][j]), scale, _mm256_load_ps(out)));
        }
    }
}

static void gram_tiles(const int16_t *a, uint32_t half, const float *a_scale, const int16_t *b, const float *b_scale, float *tile0, float *tile1) {
    const int32_t *pairs = (const int32_t *)a + half * 8, *left = (const int32_t *)b, *right = left + MICA_PANEL_INT16S / 2;
    for (uint32_t rows = 0; rows < 8; rows += 4) {
        gram_quarter(pairs + rows, a_scale + half * 8 + rows, left, b_scale, tile0 + rows * 16);
        gram_quarter(pairs + rows, a_scale + half * 8 + rows, right, b_scale + 16, tile1 + rows * 16);
    }
}

#include "numerics/kernels_generic.h"
#else
#include "numerics/kernels.h"
const mica_kernels *mica_kernels_avx2(void) {
    return NULL;
}
#endif
