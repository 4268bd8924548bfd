/* numerics/product_load_avx512.h: inside the AVX-512 product kernels only. Plain elements and fp8 codes, 64 at a time, to float32 in their
 * order: exactly, before any scale. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_LOAD_AVX512_H
#define MICA_NUMERICS_PRODUCT_LOAD_AVX512_H

#include "numerics/product_unpack_avx512.h"
#include "numerics/product_encodings.h" /* behind the list */

/* An E4M3 code is exactly a bf16: its two bytes come from tables of 128, the sign apart. */
#define BF16_OF_SMALL(code) ((code) == 0 ? 0 : (code) == 1 ? 0x3b00 : (code) < 4 ? 0x3b80 + (((code) & 1) << 6) : 0x3c00 + (((code) & 3) << 5))
#define BF16_OF_E4M3(code) ((code) == 127 ? 0x7fc0 : (code) >= 8 ? ((code) << 4) + (120 << 7) : BF16_OF_SMALL(code))
#define LOW(code) (BF16_OF_E4M3(code) & 0xff)
#define HIGH(code) (BF16_OF_E4M3(code) >> 8)
#define FOUR(part, c) part(c), part((c) + 1), part((c) + 2), part((c) + 3)
#define SIXTEEN(part, c) FOUR(part, c), FOUR(part, (c) + 4), FOUR(part, (c) + 8), FOUR(part, (c) + 12)
#define SIXTY_FOUR(part, c) SIXTEEN(part, c), SIXTEEN(part, (c) + 16), SIXTEEN(part, (c) + 32), SIXTEEN(part, (c) + 48)
static const uint8_t e4m3_low[128] = {SIXTY_FOUR(LOW, 0), SIXTY_FOUR(LOW, 64)}, e4m3_high[128] = {SIXTY_FOUR(HIGH, 0), SIXTY_FOUR(HIGH, 64)};

typedef void load64(const uint8_t *codes, __m512 values[4]);

INLINE void load_f32(const uint8_t *codes, __m512 values[4]) {
    for (int i = 0; i < 4; i++)
        values[i] = _mm512_loadu_ps(codes + 64 * i);
}

INLINE void load_f16(const uint8_t *codes, __m512 values[4]) {
    for (int i = 0; i < 4; i++)
        values[i] = _mm512_cvtph_ps(load32(codes + 32 * i));
}

INLINE void load_bf16(const uint8_t *codes, __m512 values[4]) {
    for (int i = 0; i < 4; i++)
        values[i] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(codes + 32 * i)), 16));
}

INLINE void load_e5m2(const uint8_t *codes, __m512 values[4]) {
    for (int i = 0; i < 4; i++)
        values[i] = _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load16(codes + 16 * i)), 8));
}

INLINE void load_e4m3(const uint8_t *codes, __m512 values[4]) { /* unpacking works in lanes of 16 bytes: words transposed 4 x 4 beforehand */
    const __m512i transpose = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), zero = _mm512_setzero_si512();
    __m512i v = _mm512_permutexvar_epi32(transpose, _mm512_loadu_si512(codes));
    __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_low), v, _mm512_loadu_si512(e4m3_low + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_high), v, _mm512_loadu_si512(e4m3_high + 64));
    high = _mm512_ternarylogic_epi32(high, v, bytes(0x80), 0xf8);
    __m512i first = _mm512_unpacklo_epi8(low, high), second = _mm512_unpackhi_epi8(low, high);
    values[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, first));
    values[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, first));
    values[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, second));
    values[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, second));
}

/* name, loader, bytes of a code, scale */
#define PLAIN_LIST(X)                                                                                             \
    X(f32, load_f32, 4, scale_none) X(f16, load_f16, 2, scale_none) X(bf16, load_bf16, 2, scale_none)              \
    X(e4m3_f32, load_e4m3, 1, scale_f32) X(e4m3_bf16, load_e4m3, 1, scale_bf16) X(e4m3_e8m0, load_e4m3, 1, scale_e8m0) \
    X(e5m2_f32, load_e5m2, 1, scale_f32) X(e5m2_bf16, load_e5m2, 1, scale_bf16) X(e5m2_e8m0, load_e5m2, 1, scale_e8m0)

enum {
#define X(name, load, bytes_each, scale) PLAIN_##name,
    PLAIN_LIST(X)
#undef X
    PLAIN_COUNT
};

#endif
