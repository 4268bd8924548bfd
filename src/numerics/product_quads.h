/* numerics/product_quads.h: inside the AVX-512 product kernels only. The order of quads, for blocks of sixteen groups of 16 columns whose codes lie
 * as Q2_K's and Q3_K's do (column 128 g + 32 f + i is field f of byte 32 g + i): vector r of four has columns 4 r ... 4 r + 3 of each group,
 * and the group of field f in half h of those bytes has quad 8 g + 4 h + f. A shuffle within lanes then brings the codes into their places,
 * and one factor for each quad serves all four vectors, whose products add up in integers. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_QUADS_H
#define MICA_NUMERICS_PRODUCT_QUADS_H

#include <immintrin.h>
#include <stdint.h>

/* One digit of 256 columns in their order, to its places among digits [4][2][64]. (Loads of 16 bytes: as they may have been written just now, and
 * what is wider than its store has to wait.) */
static inline void store_quads(const int8_t *columns, int8_t *quads) {
    for (int g = 0; g < 2; g++, columns += 128, quads += 32) {
        __m256i field[4];
        for (int f = 0; f < 4; f++)
            field[f] = _mm256_loadu2_m128i((const __m128i *)(const void *)(columns + 32 * f + 16), (const __m128i *)(const void *)(columns + 32 * f));
        __m256i first[2] = {_mm256_unpacklo_epi32(field[0], field[1]), _mm256_unpacklo_epi32(field[2], field[3])};
        __m256i last[2] = {_mm256_unpackhi_epi32(field[0], field[1]), _mm256_unpackhi_epi32(field[2], field[3])};
        _mm256_storeu_si256((__m256i *)(void *)quads, _mm256_unpacklo_epi64(first[0], first[1]));
        _mm256_storeu_si256((__m256i *)(void *)(quads + 128), _mm256_unpackhi_epi64(first[0], first[1]));
        _mm256_storeu_si256((__m256i *)(void *)(quads + 256), _mm256_unpacklo_epi64(last[0], last[1]));
        _mm256_storeu_si256((__m256i *)(void *)(quads + 384), _mm256_unpackhi_epi64(last[0], last[1]));
    }
}

/* Of 16 columns' group in their order. */
static inline int quad_of(int group) {
    return group / 8 * 8 + group % 2 * 4 + group % 8 / 2;
}

#endif
