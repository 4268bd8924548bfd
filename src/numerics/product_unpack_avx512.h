/* numerics/product_unpack_avx512.h: inside the AVX-512 product kernels only. The encodings with scales for small groups of columns, seen alike:
 * 256 columns come out as four vectors of 64 unsigned codes in their order, and for each four neighbours (a lane of VNNI's products) a factor,
 * for each 16 what is subtracted:
 *   without minima   w = (code - 128) * factor * the encoding's power of two
 *   with minima      w = code * factor - 128 * least
 * Codes are shifted up so that 128 is the middle of every encoding that has a fixed one. Nothing is read beyond the 256 columns' bytes.
 * Layouts: numerics/decode, and ggml's block types in docs/formats.md. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_UNPACK_AVX512_H
#define MICA_NUMERICS_PRODUCT_UNPACK_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "numerics/matrix.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct columns256 {
    __m512i codes[4];
    __m512 factors[4];
    __m512 least; /* what is subtracted from each 16 columns, / 128 */
} columns256;

/* `groups`: 4, or where scales lie in blocks of 32 columns 2 for the first 128 of them; nothing is read of the others. */
typedef void unpack256(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int groups);

/* ---- parts */

enum { AHEAD = 4096 };

INLINE void fetch(const uint8_t *p, uint64_t bytes_ahead) {
    for (uint64_t i = 0; i < bytes_ahead; i += 64)
        _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T1);
}

INLINE __m512i bytes(int value) {
    return _mm512_set1_epi8((char)value);
}

INLINE __m128i load16(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)p);
}

INLINE __m256i load32(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

INLINE float half_at(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return _cvtsh_ss(half);
}

/* value 2 group + 0 for the first 32 columns, + 1 for the others; and of 16 values, four for 16 columns each */
INLINE __m512 of_eight(__m512 values, int group) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(2 * group)), values);
}

INLINE __m512 of_sixteen(__m512 values, int group) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(4 * group)), values);
}

/* `first` and `second` are two blocks' 16 bytes of nibbles, low ones first: bits rotated left so that each half's nibbles lie where wanted. */
INLINE __m512i two_blocks(const uint8_t *first, const uint8_t *second, int low_left, int high_left) {
    const __m512i rotation = _mm512_setr_epi32(low_left, low_left, low_left, low_left, high_left, high_left, high_left, high_left, low_left, low_left,
                                               low_left, low_left, high_left, high_left, high_left, high_left);
    __m512i pairs = _mm512_broadcast_i32x4(load16(first));
    pairs = _mm512_mask_broadcast_i32x4(pairs, 0xff00, load16(second));
    return _mm512_rolv_epi32(pairs, rotation);
}

/* 32 bytes, the first 32 columns' bits rotated by one count and the others' by another */
INLINE __m512i twice(__m256i bits, int first_left, int second_left) {
    const __m512i rotation = _mm512_setr_epi32(first_left, first_left, first_left, first_left, first_left, first_left, first_left, first_left,
                                               second_left, second_left, second_left, second_left, second_left, second_left, second_left, second_left);
    return _mm512_rolv_epi32(_mm512_broadcast_i64x4(bits), rotation);
}

/* bit `bit` of 32 bytes for the first 32 columns, the next one for the others */
INLINE __mmask64 bit_of_each(__m256i bits, int bit) {
    const __m512i which = _mm512_inserti64x4(bytes(1 << bit), _mm256_set1_epi8((char)(2 << bit)), 1);
    return _mm512_test_epi8_mask(_mm512_broadcast_i64x4(bits), which);
}

/* F16 numbers at `p` and `p + step`, step < 32 and even, as factors of two blocks */
INLINE __m512 two_halves(const uint8_t *p, int step) {
    const __m256i words = _mm256_setr_epi16(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_cvtph_ps(_mm256_permutexvar_epi16(_mm256_mullo_epi16(words, _mm256_set1_epi16((short)(step / 2))), load32(p)));
}

/* Group `group`'s four 16 columns of a chunk's 16: two blocks' F16 numbers at `p` and `p + step`. */
INLINE __m512 set_two_halves(__m512 values, int group, const uint8_t *p, int step) {
    const __m256i words = _mm256_setr_epi16(0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1);
    __m256i halves = _mm256_permutexvar_epi16(_mm256_mullo_epi16(words, _mm256_set1_epi16((short)(step / 2))), load32(p));
    return _mm512_mask_cvtph_ps(values, (__mmask16)(0xf << 4 * group), halves);
}

/* nibbles of a row, low one first: 32 bytes to 64, each with its nibble below and anything above */
INLINE __m512i nibbles64(const uint8_t *p) {
    __m512i words = _mm512_cvtepu8_epi16(load32(p));
    return _mm512_or_si512(words, _mm512_slli_epi16(words, 4));
}

INLINE __m512i lookup16(__m512i indices, __m128i table) { /* by the lower four bits */
    return _mm512_permutexvar_epi8(indices, _mm512_broadcast_i32x4(table));
}

#define E2M1_CODES _mm_setr_epi8(-128, -120, -112, -104, -96, -80, -64, -32, -128, 120, 112, 104, 96, 80, 64, 32) /* 128 + 16 v */
#define INT4_CODES _mm_setr_epi8(0, 16, 32, 48, 64, 80, 96, 112, -128, -112, -96, -80, -64, -48, -32, -16)
#define IQ4_CODES _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15) /* 128 + v */

/* ---- planes: codes and scales apart; scales of 32 columns */

INLINE __m512 eight_e8m0(const uint8_t *scales) {
    __m256i exponents = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)scales));
    return _mm512_castsi512_ps(_mm512_castsi256_si512(_mm256_slli_epi32(exponents, 23))); /* 2^-127 becomes 0, NaN infinity */
}

INLINE __m512 eight_bf16(const uint8_t *scales) {
    return _mm512_castsi512_ps(_mm512_castsi256_si512(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(scales)), 16)));
}

INLINE __m512 eight_f16(const uint8_t *scales) {
    return _mm512_castps256_ps512(_mm256_cvtph_ps(load16(scales)));
}

INLINE __m512 eight_f32(const uint8_t *scales) {
    return _mm512_castsi512_ps(_mm512_castsi256_si512(load32(scales)));
}

INLINE void unpack_planes(const uint8_t *codes, __m512 factors, __m128i table, columns256 *to) {
    for (int g = 0; g < 4; g++) {
        to->codes[g] = lookup16(nibbles64(codes + 32 * g), table);
        to->factors[g] = of_eight(factors, g);
    }
}

INLINE void unpack_mxfp4_planes(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int groups) {
    (void)groups;
    unpack_planes(codes, eight_e8m0(scales), E2M1_CODES, to);
}

INLINE void unpack_int4_bf16(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int groups) {
    (void)groups;
    unpack_planes(codes, eight_bf16(scales), INT4_CODES, to);
}

INLINE void unpack_int4_f16(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int groups) {
    (void)groups;
    unpack_planes(codes, eight_f16(scales), INT4_CODES, to);
}

INLINE void unpack_int4_f32(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int groups) {
    (void)groups;
    unpack_planes(codes, eight_f32(scales), INT4_CODES, to);
}

/* ---- ggml's blocks of 32: eight of them */

INLINE void unpack_q8_0(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    const __m512i words = _mm512_castsi256_si512(_mm256_setr_epi16(0, 0, 0, 0, 0, 0, 0, 0, 17, 17, 17, 17, 17, 17, 17, 17));
    (void)none;
    for (int g = 0; g < groups; g++, p += 68) {
        __m512i codes = _mm512_inserti64x4(_mm512_castsi256_si512(load32(p + 2)), load32(p + 36), 1);
        to->codes[g] = _mm512_xor_si512(codes, bytes(128));
        to->factors[g] = _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(words, _mm512_loadu_si512(p))));
    }
}

INLINE void unpack_q4_0(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    (void)none;
    for (int g = 0; g < groups; g++, p += 36) {
        to->codes[g] = _mm512_and_si512(two_blocks(p + 2, p + 20, 4, 0), bytes(0xf0));
        to->factors[g] = two_halves(p, 18);
    }
}

INLINE void unpack_q4_1(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    __m512 least = _mm512_setzero_ps();
    (void)none;
    for (int g = 0; g < groups; g++, p += 40) {
        to->codes[g] = _mm512_and_si512(two_blocks(p + 4, p + 24, 0, 28), bytes(0x0f));
        to->factors[g] = two_halves(p, 20);
        least = set_two_halves(least, g, p + 2, 20);
    }
    to->least = _mm512_mul_ps(least, _mm512_set1_ps(-0x1p-7f));
}

INLINE __mmask64 high_bits(const uint8_t *first, const uint8_t *second) {
    uint32_t low, high;
    memcpy(&low, first, sizeof low);
    memcpy(&high, second, sizeof high);
    return (uint64_t)high << 32 | low;
}

INLINE void unpack_q5_0(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    (void)none;
    for (int g = 0; g < groups; g++, p += 44) {
        __m512i low = _mm512_and_si512(two_blocks(p + 6, p + 28, 3, 31), bytes(0x78));
        to->codes[g] = _mm512_mask_add_epi8(low, high_bits(p + 2, p + 24), low, bytes(0x80));
        to->factors[g] = two_halves(p, 22);
    }
}

INLINE void unpack_q5_1(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    __m512 least = _mm512_setzero_ps();
    (void)none;
    for (int g = 0; g < groups; g++, p += 48) {
        __m512i low = _mm512_and_si512(two_blocks(p + 8, p + 32, 0, 28), bytes(0x0f));
        to->codes[g] = _mm512_mask_add_epi8(low, high_bits(p + 4, p + 28), low, bytes(0x10));
        to->factors[g] = two_halves(p, 24);
        least = set_two_halves(least, g, p + 2, 24);
    }
    to->least = _mm512_mul_ps(least, _mm512_set1_ps(-0x1p-7f));
}

INLINE void unpack_iq4_nl(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    (void)none;
    for (int g = 0; g < groups; g++, p += 36) {
        to->codes[g] = lookup16(two_blocks(p + 2, p + 20, 0, 28), IQ4_CODES);
        to->factors[g] = two_halves(p, 18);
    }
}

INLINE void unpack_mxfp4_blocks(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    const __m512i from = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 17, 17, 17, 17, 17, 17, 17, 17);
    (void)none;
    for (int g = 0; g < groups; g++, p += 34) {
        to->codes[g] = lookup16(two_blocks(p + 1, p + 18, 0, 28), E2M1_CODES);
        __m512i exponents = _mm512_maskz_permutexvar_epi8(0x1111111111111111u, from, _mm512_castsi256_si512(load32(p)));
        to->factors[g] = _mm512_castsi512_ps(_mm512_slli_epi32(exponents, 23));
    }
}

/* ---- ggml's blocks of 256 */

/* Eight scales, eight minima, of six bits: bytes 4 … 15 of the block's head (Q4_K, Q5_K). */
INLINE __m512 scales_and_minima(const uint8_t *p) {
    __m128i head = load16(p);
    __m128i low = _mm_shuffle_epi8(head, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    __m128i high = _mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    low = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)), _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    high = _mm_and_si128(_mm_srli_epi32(high, 2), _mm_set1_epi8(0x30));
    __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_or_si128(low, high)));
    __m512 both = _mm512_castps128_ps512(_mm_mul_ps(_mm_cvtph_ps(head), _mm_setr_ps(1, 0x1p-7f, 0, 0)));
    return _mm512_mul_ps(values, of_eight(both, 0));
}

INLINE __m512 minima_of(__m512 scales) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15), scales);
}

INLINE void unpack_q4_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    (void)groups;
    __m512 scales = scales_and_minima(p);
    (void)none;
    for (int g = 0; g < 4; g++) {
        to->codes[g] = _mm512_and_si512(twice(load32(p + 16 + 32 * g), 0, 28), bytes(0x0f));
        to->factors[g] = of_eight(scales, g);
    }
    to->least = minima_of(scales);
}

INLINE void unpack_q5_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    (void)groups;
    __m512 scales = scales_and_minima(p);
    __m256i high = load32(p + 16);
    (void)none;
    for (int g = 0; g < 4; g++) {
        __m512i low = _mm512_and_si512(twice(load32(p + 48 + 32 * g), 0, 28), bytes(0x0f));
        to->codes[g] = _mm512_mask_add_epi8(low, bit_of_each(high, 2 * g), low, bytes(0x10));
        to->factors[g] = of_eight(scales, g);
    }
    to->least = minima_of(scales);
}

INLINE void unpack_q6_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    (void)groups;
    __m512 scales = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p + 192))), _mm512_set1_ps(half_at(p + 208)));
    (void)none;
    for (int h = 0; h < 2; h++) {
        __m512i low = _mm512_loadu_si512(p + 64 * h);
        __m256i high = load32(p + 128 + 32 * h);
        __m512i first = _mm512_and_si512(_mm512_rol_epi32(low, 2), bytes(0x3c)), second = _mm512_and_si512(_mm512_ror_epi32(low, 2), bytes(0x3c));
        to->codes[2 * h] = _mm512_ternarylogic_epi32(first, twice(high, 6, 4), bytes(0xc0), 0xf8); /* first | high & 0xc0 */
        to->codes[2 * h + 1] = _mm512_ternarylogic_epi32(second, twice(high, 2, 0), bytes(0xc0), 0xf8);
    }
    for (int g = 0; g < 4; g++)
        to->factors[g] = of_sixteen(scales, g);
}

INLINE void unpack_q3_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    (void)groups;
    __m128i packed = load16(p + 94); /* two bytes before the twelve, and two behind: the block's F16 */
    __m128i low = _mm_shuffle_epi8(packed, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    __m128i high = _mm_shuffle_epi8(packed, _mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13));
    low = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 4, 4)), _mm_set1_epi8(0x0f));
    high = _mm_and_si128(_mm_rolv_epi32(high, _mm_setr_epi32(4, 2, 0, 30)), _mm_set1_epi8(0x30));
    __m512i signed_scales = _mm512_cvtepi8_epi32(_mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32)));
    __m512 scales = _mm512_mul_ps(_mm512_cvtepi32_ps(signed_scales), _mm512_set1_ps(half_at(p + 108)));
    __m256i top = load32(p);
    (void)none;
    for (int g = 0; g < 4; g++) {
        __m256i bits = load32(p + 32 + 32 * (g / 2));
        __m512i two = _mm512_and_si512(g % 2 ? twice(bits, 1, 31) : twice(bits, 5, 3), bytes(0x60));
        to->codes[g] = _mm512_mask_add_epi8(two, bit_of_each(top, 2 * g), two, bytes(0x80));
        to->factors[g] = of_sixteen(scales, g);
    }
}

INLINE void unpack_q2_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    (void)groups;
    __m128i both = load16(p), mask = _mm_set1_epi8(0x0f);
    __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(both, mask)));
    __m512 minima = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(both, 4), mask)));
    scales = _mm512_mul_ps(scales, _mm512_set1_ps(half_at(p + 80)));
    minima = _mm512_mul_ps(minima, _mm512_set1_ps(half_at(p + 82) * 0x1p-7f));
    (void)none;
    for (int g = 0; g < 4; g++) {
        __m256i bits = load32(p + 16 + 32 * (g / 2));
        to->codes[g] = _mm512_and_si512(g % 2 ? twice(bits, 28, 26) : twice(bits, 0, 30), bytes(0x03));
        to->factors[g] = of_sixteen(scales, g);
    }
    to->least = minima;
}

INLINE void unpack_iq4_xs(const uint8_t *p, const uint8_t *none, columns256 *to, const int groups) {
    (void)groups;
    const __m512i order = _mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3);
    const __m512i rotation = _mm512_setr_epi32(0, 0, 0, 0, 28, 28, 28, 28, 0, 0, 0, 0, 28, 28, 28, 28);
    uint32_t low;
    uint16_t high;
    memcpy(&high, p + 2, sizeof high);
    memcpy(&low, p + 4, sizeof low);
    uint64_t six = _pdep_u64(low, 0x0f0f0f0f0f0f0f0fu) | _pdep_u64(high, 0x3030303030303030u);
    __m256i signed_scales = _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)six)), _mm256_set1_epi32(32));
    __m512 scales = _mm512_castps256_ps512(_mm256_mul_ps(_mm256_cvtepi32_ps(signed_scales), _mm256_set1_ps(half_at(p))));
    (void)none;
    for (int g = 0; g < 4; g++) {
        __m512i pairs = _mm512_permutexvar_epi64(order, _mm512_castsi256_si512(load32(p + 8 + 32 * g)));
        to->codes[g] = lookup16(_mm512_rolv_epi32(pairs, rotation), IQ4_CODES);
        to->factors[g] = of_eight(scales, g);
    }
}

/* Group g's values: 16 columns a vector. */
INLINE void values_of(const columns256 *w, int g, const int minima, const float factor, __m512 values[4]) {
    __m128i codes[4] = {_mm512_castsi512_si128(w->codes[g]), _mm512_extracti32x4_epi32(w->codes[g], 1), _mm512_extracti32x4_epi32(w->codes[g], 2),
                        _mm512_extracti32x4_epi32(w->codes[g], 3)};
    __m512 factors = minima || factor == 1 ? w->factors[g] : _mm512_mul_ps(w->factors[g], _mm512_set1_ps(factor)), least = w->least;
    if (minima)
        least = _mm512_mul_ps(least, _mm512_set1_ps(-128));
#define SIXTEEN_COLUMNS(i)                                                                                                              \
    do { /* all factors of 16 columns are one */                                                                                        \
        __m512 scale = _mm512_shuffle_f32x4(factors, factors, (i) * 0x55);                                                              \
        __m512i whole = minima ? _mm512_cvtepu8_epi32(codes[i]) : _mm512_cvtepi8_epi32(_mm_xor_si128(codes[i], _mm_set1_epi8(-128)));    \
        values[i] = minima ? _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, _mm512_permutexvar_ps(_mm512_set1_epi32(4 * g + (i)), least)) \
                           : _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale);                                                           \
    } while (0)
    SIXTEEN_COLUMNS(0);
    SIXTEEN_COLUMNS(1);
    SIXTEEN_COLUMNS(2);
    SIXTEEN_COLUMNS(3);
#undef SIXTEEN_COLUMNS
}

typedef void store64(void *strip, const __m512 values[4]);

/* Rows of a strip; `column` is a multiple of 256, and so many columns are written as make width a multiple of 256. */
INLINE void grouped_strip(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, void *strip, uint64_t stride,
                          const uint64_t element, unpack256 *unpack, const int minima, const uint64_t code_bytes, const uint64_t scale_bytes,
                          const float factor, store64 *store) {
    uint64_t row_bytes = mica_matrix_row_bytes(matrix), row_scales = scale_bytes ? (matrix->columns + 31) / 32 * (scale_bytes / 8) : 0;
    uint64_t first = column / 256, end = (column + width + 255) / 256, whole = matrix->columns / 256;
    uint8_t tail[272 + 32];
    for (uint64_t r = 0; r < count; r++) {
        const uint8_t *codes = (const uint8_t *)matrix->codes + (row + r) * row_bytes;
        const uint8_t *scales = scale_bytes ? (const uint8_t *)matrix->scales + (row + r) * row_scales : codes;
        for (uint64_t chunk = first; chunk < end; chunk++) {
            const uint8_t *from = codes + chunk * code_bytes, *scale = scales + chunk * scale_bytes;
            columns256 w;
            if (chunk >= whole) { /* not whole */
                memset(tail, 0, sizeof tail);
                memcpy(tail, from, row_bytes - whole * code_bytes);
                memcpy(tail + 272, scale, row_scales - whole * scale_bytes);
                from = tail;
                scale = tail + 272;
            }
            fetch(from, code_bytes);
            unpack(from, scale, &w, 4);
            for (int g = 0; g < 4; g++) {
                __m512 values[4];
                values_of(&w, g, minima, factor, values);
                store((uint8_t *)strip + (r * stride + (chunk - first) * 256 + (uint64_t)g * 64) * element, values);
            }
        }
    }
}

/* name, unpacker, has minima, bytes of codes and of scales of 256 columns, power of two */
#define GROUPED_LIST(X)                                           \
    X(mxfp4_planes, unpack_mxfp4_planes, 0, 128, 8, 0x1p-4f)      \
    X(int4_bf16, unpack_int4_bf16, 0, 128, 16, 0x1p-4f)           \
    X(int4_f16, unpack_int4_f16, 0, 128, 16, 0x1p-4f)             \
    X(int4_f32, unpack_int4_f32, 0, 128, 32, 0x1p-4f)             \
    X(q8_0, unpack_q8_0, 0, 272, 0, 1.0f)                         \
    X(q4_0, unpack_q4_0, 0, 144, 0, 0x1p-4f)                      \
    X(q4_1, unpack_q4_1, 1, 160, 0, 1.0f)                         \
    X(q5_0, unpack_q5_0, 0, 176, 0, 0x1p-3f)                      \
    X(q5_1, unpack_q5_1, 1, 192, 0, 1.0f)                         \
    X(iq4_nl, unpack_iq4_nl, 0, 144, 0, 1.0f)                     \
    X(mxfp4_blocks, unpack_mxfp4_blocks, 0, 136, 0, 0x1p-4f)      \
    X(q2_k, unpack_q2_k, 1, 84, 0, 1.0f)                          \
    X(q3_k, unpack_q3_k, 0, 110, 0, 0x1p-5f)                      \
    X(q4_k, unpack_q4_k, 1, 144, 0, 1.0f)                         \
    X(q5_k, unpack_q5_k, 1, 176, 0, 1.0f)                         \
    X(q6_k, unpack_q6_k, 0, 210, 0, 0x1p-2f)                      \
    X(iq4_xs, unpack_iq4_xs, 0, 136, 0, 1.0f)

enum {
#define X(name, unpack, minima, code_bytes, scale_bytes, factor) GROUPED_##name,
    GROUPED_LIST(X)
#undef X
    GROUPED_COUNT
};

#endif
