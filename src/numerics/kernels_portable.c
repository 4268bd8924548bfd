/* numerics/kernels_portable.c: the kernels for any processor, in plain C over generic vectors of 8; and the choice among the sets. */
#define LANES 8
#define TILE_ROWS 2
#define KERNELS mica_kernels_portable

#include "numerics/kernels.h"

static void gram_tiles(const int16_t *a, uint32_t half, const float *a_scale, const int16_t *b, const float *b_scale, float *tile0, float *tile1)
{
    float *tiles[2] = {tile0, tile1};
    for (uint32_t side = 0; side < 2; side++)
        for (uint32_t i = 0; i < 8; i++) {
            int32_t sum[MICA_PANEL_ROWS] = {0};
            for (uint32_t k = 0; k < MICA_PANEL_COLUMNS / 2; k++) {
                const int16_t *x = a + (k * MICA_PANEL_ROWS + half * 8 + i) * 2, *y = b + side * MICA_PANEL_INT16S + k * MICA_PANEL_ROWS * 2;
                for (uint32_t j = 0; j < MICA_PANEL_ROWS; j++)
                    sum[j] += x[0] * y[2 * j] + x[1] * y[2 * j + 1];
            }
            for (uint32_t j = 0; j < MICA_PANEL_ROWS; j++)
                tiles[side][i * 16 + j] += (float)sum[j] * (a_scale[half * 8 + i] * b_scale[side * 16 + j]);
        }
}

#include "numerics/kernels_generic.h"

const mica_kernels *mica_kernels_for(mica_cpu cpu)
{
    const mica_kernels *kernels = cpu == MICA_CPU_AVX512 ? mica_kernels_avx512() : cpu == MICA_CPU_AVX2 ? mica_kernels_avx2() : NULL;
    return kernels ? kernels : mica_kernels_portable();
}
