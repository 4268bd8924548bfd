/* numerics/kernels_avx512.c: 16 lanes, int16 pairs by VPDPWSSD (AVX-512 F, BW, DQ, VL, VNNI). Compiled with those flags; called only where
 * the processor has them. Why int16 and not bf16: exact integer sums, and on Emerald Rapids VDPBF16PS runs at a quarter of its speed
 * (docs/svd.md). */
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>

#define LANES 16
#define TILE_ROWS 6
#define KERNELS mica_kernels_avx512

#include "numerics/kernels.h"

/* sum + a . b by int16 pairs. As an instruction, because gcc 12 does not tie the intrinsic's accumulator to one register and spends half the
 * loop on copies. */
static inline __attribute__((always_inline)) __m512i dot_pairs(__m512i sum, __m512i a, __m512i b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

static void gram_tiles(const int16_t *a, uint32_t half, const float *a_scale, const int16_t *b, const float *b_scale, float *tile0, float *tile1) {
    const int32_t *pairs = (const int32_t *)a + half * 8;
    const int32_t *left = (const int32_t *)b, *right = left + MICA_PANEL_INT16S / 2;
    __m512i sum[8][2];
    for (int i = 0; i < 8; i++) {
        sum[i][0] = sum[i][1] = _mm512_setzero_si512();
        _mm_prefetch((const char *)(tile0 + i * 16), _MM_HINT_T0); /* wanted when the sums are done */
        _mm_prefetch((const char *)(tile1 + i * 16), _MM_HINT_T0);
    }
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

#define OWN_PACK
/* Codes of one row, columns 0 … 31, as 16 pairs. Adding 1.5 * 2^23 rounds to an integer, in two's complement in the low bits. */
static inline __attribute__((always_inline)) __m512i pair_codes(const float *values, __m512 inverse) {
    const __m512 magic = _mm512_set1_ps(12582912.0f);
    const __m512i high = _mm512_set1_epi64(0xffff0000), evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i halves[2];
    for (int i = 0; i < 2; i++) {
        __m512i bits = _mm512_castps_si512(_mm512_fmadd_ps(_mm512_loadu_ps(values + i * 16), inverse, magic));
        halves[i] = _mm512_ternarylogic_epi64(high, _mm512_srli_epi64(bits, 16), bits, 0xca); /* high ? shifted : bits */
    }
    return _mm512_permutex2var_epi32(halves[0], evens, halves[1]);
}

/* 16 x 16 dwords, rows to columns. */
static inline __attribute__((always_inline)) void transpose(__m512i a[16]) {
    __m512i b[16];
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        __m512i low = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), low2 = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        __m512i top = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88), top2 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
        b[i] = _mm512_shuffle_i32x4(low, top, 0x88);
        b[i + 8] = _mm512_shuffle_i32x4(low, top, 0xdd);
        b[i + 4] = _mm512_shuffle_i32x4(low2, top2, 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(low2, top2, 0xdd);
    }
    for (int i = 0; i < 16; i++)
        a[i] = b[i];
}

static float row_step(float norm_squared, float maximum);

static void pack(const float *values, size_t stride, int16_t *panel, float *scale, float *norms) {
    float inverse[MICA_PANEL_ROWS];
    for (int row = 0; row < MICA_PANEL_ROWS; row++) {
        __m512 squares = _mm512_setzero_ps(), largest = squares;
        for (int k = 0; k < MICA_PANEL_COLUMNS; k += 16) {
            __m512 v = _mm512_loadu_ps(values + (size_t)row * stride + k);
            squares = _mm512_fmadd_ps(v, v, squares);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
        }
        float norm_squared = _mm512_reduce_add_ps(squares);
        if (norms)
            norms[row] = norm_squared;
        scale[row] = row_step(norm_squared, _mm512_reduce_max_ps(largest));
        inverse[row] = 1 / scale[row];
    }
    for (int k = 0; k < MICA_PANEL_COLUMNS; k += 32) {
        __m512i pairs[16];
        for (int row = 0; row < MICA_PANEL_ROWS; row++)
            pairs[row] = pair_codes(values + (size_t)row * stride + k, _mm512_set1_ps(inverse[row]));
        transpose(pairs);
        for (int i = 0; i < 16; i++)
            _mm512_store_si512((int32_t *)panel + (k / 2 + i) * MICA_PANEL_ROWS, pairs[i]);
    }
}

#include "numerics/kernels_generic.h"
#else
#include "numerics/kernels.h"
const mica_kernels *mica_kernels_avx512(void) {
    return NULL;
}
#endif
