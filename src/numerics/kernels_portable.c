/* numerics/kernels_portable.c: the kernels for any processor, in C over generic vectors of 8 (and SSE2's int16 dot product,
 * which every x86-64 has; MICA_KERNELS_PLAIN leaves it out, for its test); and the choice among the sets. */
#define LANES 8
#define TILE_ROWS 2
#define KERNELS mica_kernels_portable

#include <string.h>

#include "numerics/kernels.h"

/* sum[j] += a . b[j] over one pair, 16 rows of b at once. */
#if defined(__SSE2__) && !defined(MICA_KERNELS_PLAIN)
#include <emmintrin.h>
typedef __m128i pair_sums[4];
static inline void dot_pairs(pair_sums sum, const int16_t *a, const int16_t *b) {
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    for (int i = 0; i < 4; i++)
        sum[i] = _mm_add_epi32(sum[i], _mm_madd_epi16(_mm_set1_epi32(pair), _mm_load_si128((const __m128i *)(b + 8 * i))));
}
#else
typedef int32_t pair_sums[MICA_PANEL_ROWS];
static inline void dot_pairs(pair_sums sum, const int16_t *a, const int16_t *b) {
    for (int j = 0; j < MICA_PANEL_ROWS; j++)
        sum[j] += a[0] * b[2 * j] + a[1] * b[2 * j + 1];
}
#endif

static void gram_tiles(const int16_t *a, uint32_t half, const float *a_scale, const int16_t *b, const float *b_scale, float *tile0, float *tile1) {
    float *tiles[2] = {tile0, tile1};
    for (uint32_t side = 0; side < 2; side++)
        for (uint32_t i = 0; i < 8; i++) {
            pair_sums sum;
            int32_t sums[MICA_PANEL_ROWS];
            memset(sum, 0, sizeof sum);
            for (uint32_t k = 0; k < MICA_PANEL_COLUMNS / 2; k++)
                dot_pairs(sum, a + (k * MICA_PANEL_ROWS + half * 8 + i) * 2, b + side * MICA_PANEL_INT16S + k * MICA_PANEL_ROWS * 2);
            memcpy(sums, sum, sizeof sums);
            for (uint32_t j = 0; j < MICA_PANEL_ROWS; j++)
                tiles[side][i * 16 + j] += (float)sums[j] * (a_scale[half * 8 + i] * b_scale[side * 16 + j]);
        }
}

#include "numerics/kernels_generic.h"

const mica_kernels *mica_kernels_for(mica_cpu cpu) {
    const mica_kernels *kernels = cpu == MICA_CPU_AVX512 ? mica_kernels_avx512() : cpu == MICA_CPU_AVX2 ? mica_kernels_avx2() : NULL;
    return kernels ? kernels : mica_kernels_portable();
}
