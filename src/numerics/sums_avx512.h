/* numerics/sums_avx512.h: inside the AVX-512 kernels only: sums over the 16 lanes of a register, four at once. In this order of additions: bits depend on it.
 * Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_SUMS_AVX512_H
#define MICA_NUMERICS_SUMS_AVX512_H

#include <immintrin.h>

/* Four sums over lanes. */
static inline __attribute__((always_inline)) __m128 sums_of_four(const __m512 v[4]) {
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    a = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))),
                      _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#endif
