/* numerics/kernels_avx512.c: 16 lanes, int16 pairs by VPDPWSSD (AVX-512 F, BW, DQ, VL, VNNI). Compiled with those flags; called only where
 * the processor has them. Why int16 and not bf16: exact integer sums, and full rate on every AVX-512 VNNI processor, where VDPBF16PS runs at a
 * quarter of it on Intel's (docs/svd.md). */
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>

#define LANES 16
#define TILE_ROWS 6
#define KERNELS mica_kernels_avx512

#include "numerics/kernels.h"

/* sum + a . b by int16 pairs. As an instruction, because gcc 12 does not tie the intrinsic's accumulator to one register and spends half the
 * loop on copies. */
static inline __attribute__((always_inline)) __m512i dot_pairs(__m512i sum, __m512i a, __m512i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

static void gram_tiles(const int16_t *a, uint32_t half, const float *a_scale, const int16_t *b, const float *b_scale, float *tile0, float *tile1)
{
    const int32_t *pairs = (const int32_t *)a + half * 8;
    const int32_t *left = (const int32_t *)b, *right = left + MICA_PANEL_INT16S / 2;
    __m512i sum[8][2];
    for (int i = 0; i < 8; i++)
        sum[i][0] = sum[i][1] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int k = 0; k < MICA_PANEL_COLUMNS / 2; k++) {
        __m512i b0 = _mm512_load_si512(left + k * 16), b1 = _mm512_load_si512(right + k * 16);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m512i pair = _mm512_set1_epi32(pairs[k * 16 + i]);
            sum[i][0] = dot_pairs(sum[i][0], pair, b0);
            sum[i][1] = dot_pairs(sum[i][1], pair, b1);
        }
    }
    __m512 scale0 = _mm512_loadu_ps(b_scale), scale1 = _mm512_loadu_ps(b_scale + 16);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m512 scale = _mm512_set1_ps(a_scale[half * 8 + (uint32_t)i]);
        float *out0 = tile0 + i * 16, *out1 = tile1 + i * 16;
        _mm512_store_ps(out0, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][0]), _mm512_mul_ps(scale, scale0), _mm512_load_ps(out0)));
        _mm512_store_ps(out1, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][1]), _mm512_mul_ps(scale, scale1), _mm512_load_ps(out1)));
    }
}

#include "numerics/kernels_generic.h"
#else
#include "numerics/kernels.h"
const mica_kernels *mica_kernels_avx512(void)
{
    return NULL;
}
#endif
