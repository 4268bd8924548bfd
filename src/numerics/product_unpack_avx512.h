/* numerics/product_unpack_avx512.h: inside the AVX-512 product kernels only. The encodings with scales for small groups of columns, seen alike:
 * 256 columns come out as four vectors of 64 unsigned codes. A vector has the first or the second 16 columns of four blocks of 32, one block in each
 * quarter: a factor for 32 columns then serves two vectors at once, which VNNI's products add up in integers.
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
    __m512i codes[4];  /* 2 g + h: of columns 128 g + 32 b + 16 h ... + 15 in quarter b */
    __m512 factors[4]; /* in each quarter its columns' own; of blocks of 32 columns 2 g only */
    __m512 least;      /* what is subtracted, / 128: of 16 columns in their order, or of 32 in the upper eight lanes (the others count for nothing) */
} columns256;

/* `halves`: 2, or of blocks of 32 columns 1 for the first 128 columns; nothing is read of the others. */
typedef void unpack256(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int halves);

/* ---- parts */

enum { AHEAD = 4096 };
#ifndef FETCH_HINT
#define FETCH_HINT _MM_HINT_T1
#endif

INLINE void fetch(const uint8_t *p, uint64_t bytes_ahead) {
    for (uint64_t i = 0; i < bytes_ahead; i += 64)
        _mm_prefetch((const char *)p + AHEAD + i, FETCH_HINT);
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

/* lane `first` + b of values in quarter b; and lane `first` + 2 b, of 16 columns each */
INLINE __m512 of_four(__m512 values, int first) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(first)), values);
}

INLINE __m512 of_every_other(__m512 values, int first) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
    return _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(first)), values);
}

/* 32-bit words of quarter b rotated left by its own count */
INLINE __m512i rotate_quarters(__m512i bits, int b0, int b1, int b2, int b3) {
    return _mm512_rolv_epi32(bits, _mm512_setr_epi32(b0, b0, b0, b0, b1, b1, b1, b1, b2, b2, b2, b2, b3, b3, b3, b3));
}

INLINE __m512i four_times(const uint8_t *p) {
    return _mm512_broadcast_i32x4(load16(p));
}

/* bit `first` + b of 16 bytes for quarter b */
INLINE __mmask64 bit_of_each(const uint8_t *p, int first) {
    const int low = 0x01010101;
    const __m512i which = _mm512_setr_epi32(low, low, low, low, 2 * low, 2 * low, 2 * low, 2 * low, 4 * low, 4 * low, 4 * low, 4 * low, 8 * low, 8 * low,
                                            8 * low, 8 * low);
    return _mm512_test_epi8_mask(four_times(p), _mm512_slli_epi32(which, first));
}

/* 16 bytes at `p` and each `stride` bytes on. (A permutation of two registers of 64 bytes would be one instruction, and from memory a quarter slower.) */
INLINE __m512i four_blocks(const uint8_t *p, int stride) {
    __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + stride), 1);
    __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p + 2 * stride)), load16(p + 3 * stride), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* F16 numbers at `at` of four blocks of `stride` bytes from `p` on, each in the four lanes of its quarter. */
INLINE __m512 four_halves(const uint8_t *p, int at, int stride) {
    const bool near = at + 3 * stride + 2 <= 64;
    const int beyond = near ? 0 : stride < 32 ? 4 * stride - 64 : 2 * stride; /* from where the last two blocks are loaded, within the four */
    const int w0 = at / 2, w1 = (at + stride) / 2, w2 = (at + 2 * stride - beyond) / 2, w3 = (at + 3 * stride - beyond) / 2;
    const __m128i first = _mm_setr_epi16((short)w0, (short)w0, (short)w0, (short)w0, (short)w1, (short)w1, (short)w1, (short)w1);
    const __m128i second = _mm_setr_epi16((short)w2, (short)w2, (short)w2, (short)w2, (short)w3, (short)w3, (short)w3, (short)w3);
    const __m512i words = _mm512_castsi256_si512(_mm256_set_m128i(second, first));
    __m512i halves = _mm512_permutexvar_epi16(words, _mm512_loadu_si512(p));
    if (!near)
        halves = _mm512_mask_permutexvar_epi16(halves, 0xff00, words, _mm512_loadu_si512(p + beyond));
    return _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
}

/* Half `g`'s four blocks' minima, each once, in its lane of `least`. */
INLINE __m512 set_minima(__m512 least, int g, const uint8_t *p, int at, int stride) {
    __m512 four = _mm512_maskz_compress_ps(0x1111, four_halves(p, at, stride));
    return _mm512_mask_expand_ps(least, (__mmask16)(0xf << (8 + 4 * g)), four);
}

/* nibbles 4 and more below where they were */
INLINE __m512i upper(__m512i nibbles) {
    return _mm512_srli_epi16(nibbles, 4);
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

/* nibbles of a row, low one first */
INLINE void unpack_planes(const uint8_t *codes, __m512 factors, __m128i table, columns256 *to) {
    for (int g = 0; g < 2; g++) {
        __m512i low = _mm512_loadu_si512(codes + 64 * g), high = upper(low);
        to->codes[2 * g] = lookup16(_mm512_unpacklo_epi8(low, high), table);
        to->codes[2 * g + 1] = lookup16(_mm512_unpackhi_epi8(low, high), table);
        to->factors[2 * g] = of_four(factors, 4 * g);
    }
}

INLINE void unpack_mxfp4_planes(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int halves) {
    (void)halves;
    unpack_planes(codes, eight_e8m0(scales), E2M1_CODES, to);
}

INLINE void unpack_int4_bf16(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int halves) {
    (void)halves;
    unpack_planes(codes, eight_bf16(scales), INT4_CODES, to);
}

INLINE void unpack_int4_f16(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int halves) {
    (void)halves;
    unpack_planes(codes, eight_f16(scales), INT4_CODES, to);
}

INLINE void unpack_int4_f32(const uint8_t *codes, const uint8_t *scales, columns256 *to, const int halves) {
    (void)halves;
    unpack_planes(codes, eight_f32(scales), INT4_CODES, to);
}

/* ---- ggml's blocks of 32: eight of them */

INLINE void unpack_q8_0(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    (void)none;
    for (int g = 0; g < halves; g++, p += 136) {
        __m512i low = _mm512_inserti64x4(_mm512_castsi256_si512(load32(p + 2)), load32(p + 36), 1);
        __m512i high = _mm512_inserti64x4(_mm512_castsi256_si512(load32(p + 70)), load32(p + 104), 1);
        to->codes[2 * g] = _mm512_xor_si512(_mm512_shuffle_i64x2(low, high, 0x88), bytes(128));
        to->codes[2 * g + 1] = _mm512_xor_si512(_mm512_shuffle_i64x2(low, high, 0xdd), bytes(128));
        to->factors[2 * g] = four_halves(p, 0, 34);
    }
}

INLINE void unpack_q4_0(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    (void)none;
    for (int g = 0; g < halves; g++, p += 72) {
        __m512i nibbles = four_blocks(p + 2, 18);
        to->codes[2 * g] = _mm512_and_si512(_mm512_slli_epi16(nibbles, 4), bytes(0xf0));
        to->codes[2 * g + 1] = _mm512_and_si512(nibbles, bytes(0xf0));
        to->factors[2 * g] = four_halves(p, 0, 18);
    }
}

INLINE void unpack_q4_1(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    __m512 least = _mm512_setzero_ps();
    (void)none;
    for (int g = 0; g < halves; g++, p += 80) {
        __m512i nibbles = four_blocks(p + 4, 20);
        to->codes[2 * g] = _mm512_and_si512(nibbles, bytes(0x0f));
        to->codes[2 * g + 1] = _mm512_and_si512(upper(nibbles), bytes(0x0f));
        to->factors[2 * g] = four_halves(p, 0, 20);
        least = set_minima(least, g, p, 2, 20);
    }
    to->least = _mm512_mul_ps(least, _mm512_set1_ps(-0x1p-7f));
}

/* Four blocks' 32 bits each, at `p` and each `stride` bytes on: those of the first 16 columns, and of the second. */
INLINE void high_bits(const uint8_t *p, int stride, __mmask64 *first, __mmask64 *second) {
    const uint64_t low = 0x0000ffff0000ffffu;
    uint32_t bits[4];
    for (int b = 0; b < 4; b++)
        memcpy(&bits[b], p + b * stride, sizeof bits[b]);
    uint64_t left = (uint64_t)bits[1] << 32 | bits[0], right = (uint64_t)bits[3] << 32 | bits[2];
    *first = _pext_u64(right, low) << 32 | _pext_u64(left, low);
    *second = _pext_u64(right, ~low) << 32 | _pext_u64(left, ~low);
}

INLINE void unpack_q5_0(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    (void)none;
    for (int g = 0; g < halves; g++, p += 88) {
        __mmask64 first, second;
        __m512i nibbles = four_blocks(p + 6, 22);
        __m512i low = _mm512_and_si512(_mm512_slli_epi16(nibbles, 3), bytes(0x78)), high = _mm512_and_si512(_mm512_srli_epi16(nibbles, 1), bytes(0x78));
        high_bits(p + 2, 22, &first, &second);
        to->codes[2 * g] = _mm512_mask_add_epi8(low, first, low, bytes(0x80));
        to->codes[2 * g + 1] = _mm512_mask_add_epi8(high, second, high, bytes(0x80));
        to->factors[2 * g] = four_halves(p, 0, 22);
    }
}

INLINE void unpack_q5_1(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    __m512 least = _mm512_setzero_ps();
    (void)none;
    for (int g = 0; g < halves; g++, p += 96) {
        __mmask64 first, second;
        __m512i nibbles = four_blocks(p + 8, 24);
        __m512i low = _mm512_and_si512(nibbles, bytes(0x0f)), high = _mm512_and_si512(upper(nibbles), bytes(0x0f));
        high_bits(p + 4, 24, &first, &second);
        to->codes[2 * g] = _mm512_mask_add_epi8(low, first, low, bytes(0x10));
        to->codes[2 * g + 1] = _mm512_mask_add_epi8(high, second, high, bytes(0x10));
        to->factors[2 * g] = four_halves(p, 0, 24);
        least = set_minima(least, g, p, 2, 24);
    }
    to->least = _mm512_mul_ps(least, _mm512_set1_ps(-0x1p-7f));
}

INLINE void unpack_iq4_nl(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    (void)none;
    for (int g = 0; g < halves; g++, p += 72) {
        __m512i nibbles = four_blocks(p + 2, 18);
        to->codes[2 * g] = lookup16(nibbles, IQ4_CODES);
        to->codes[2 * g + 1] = lookup16(upper(nibbles), IQ4_CODES);
        to->factors[2 * g] = four_halves(p, 0, 18);
    }
}

INLINE void unpack_mxfp4_blocks(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    const __m512i from = _mm512_setr_epi32(0, 0, 0, 0, 17 << 24, 17 << 24, 17 << 24, 17 << 24, 34 << 24, 34 << 24, 34 << 24, 34 << 24, 51 << 24, 51 << 24,
                                           51 << 24, 51 << 24);
    (void)none;
    for (int g = 0; g < halves; g++, p += 68) {
        __m512i nibbles = four_blocks(p + 1, 17);
        to->codes[2 * g] = lookup16(nibbles, E2M1_CODES);
        to->codes[2 * g + 1] = lookup16(upper(nibbles), E2M1_CODES);
        __m512i exponents = _mm512_maskz_permutexvar_epi8(0x8888888888888888u, from, _mm512_loadu_si512(p)); /* 24 bits up */
        to->factors[2 * g] = _mm512_castsi512_ps(_mm512_srli_epi32(exponents, 1));
    }
}

/* ---- ggml's blocks of 256 */

/* Eight scales, eight minima, of six bits: bytes 4 … 15 of the block's head (Q4_K, Q5_K). The scales of blocks with odd numbers, whose nibbles are the
 * upper ones, times `odd`. */
INLINE __m512 scales_and_minima(const uint8_t *p, const float odd) {
    __m128i head = load16(p);
    __m128i low = _mm_shuffle_epi8(head, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    __m128i high = _mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    low = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)), _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    high = _mm_and_si128(_mm_srli_epi32(high, 2), _mm_set1_epi8(0x30));
    __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_or_si128(low, high)));
    __m128 both = _mm_cvtph_ps(head);
    both = _mm_mul_ps(_mm_permute_ps(both, 0x50), _mm_setr_ps(1, odd, 0x1p-7f, 0x1p-7f));
    const __m512i which = _mm512_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2);
    return _mm512_mul_ps(values, _mm512_permutexvar_ps(which, _mm512_castps128_ps512(both)));
}

/* Quarters of the bytes' first (second: 16 bytes on) 16 and of those 32 on, each twice: what has the lower nibbles of two blocks and the upper of two. */
INLINE __m512i nibbles_twice(__m512i bits, const int second) {
    return second ? _mm512_shuffle_i64x2(bits, bits, 0xf5) : _mm512_shuffle_i64x2(bits, bits, 0xa0);
}

INLINE void unpack_q4_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    const __m512i nibbles = _mm512_setr_epi32(0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f, -0x0f0f0f10, -0x0f0f0f10, -0x0f0f0f10, -0x0f0f0f10, 0x0f0f0f0f,
                                              0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f, -0x0f0f0f10, -0x0f0f0f10, -0x0f0f0f10, -0x0f0f0f10);
    (void)halves;
    to->least = scales_and_minima(p, 0x1p-4f); /* an upper nibble stays where it is, times 16 */
    (void)none;
    for (int g = 0; g < 2; g++) {
        __m512i bits = _mm512_loadu_si512(p + 16 + 64 * g);
        to->codes[2 * g] = _mm512_and_si512(nibbles_twice(bits, 0), nibbles);
        to->codes[2 * g + 1] = _mm512_and_si512(nibbles_twice(bits, 1), nibbles);
        to->factors[2 * g] = of_four(to->least, 4 * g);
    }
}

INLINE void unpack_q5_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    (void)halves;
    to->least = scales_and_minima(p, 1);
    (void)none;
    for (int g = 0; g < 2; g++) {
        __m512i bits = _mm512_loadu_si512(p + 48 + 64 * g);
        for (int h = 0; h < 2; h++) {
            __m512i low = _mm512_and_si512(rotate_quarters(nibbles_twice(bits, h), 0, 28, 0, 28), bytes(0x0f));
            to->codes[2 * g + h] = _mm512_mask_add_epi8(low, bit_of_each(p + 16 + 16 * h, 4 * g), low, bytes(0x10));
        }
        to->factors[2 * g] = of_four(to->least, 4 * g);
    }
}

INLINE void unpack_q6_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    (void)halves;
    __m512 scales = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p + 192))), _mm512_set1_ps(half_at(p + 208)));
    (void)none;
    for (int g = 0; g < 2; g++) {
        __m512i bits = _mm512_loadu_si512(p + 64 * g);
        for (int h = 0; h < 2; h++) {
            __m512i four = h ? _mm512_shuffle_i64x2(bits, bits, 0xdd) : _mm512_shuffle_i64x2(bits, bits, 0x88); /* two blocks' lower nibbles, two's upper */
            __m512i low = _mm512_and_si512(rotate_quarters(four, 2, 2, 30, 30), bytes(0x3c));
            __m512i high = rotate_quarters(four_times(p + 128 + 32 * g + 16 * h), 6, 4, 2, 0);
            to->codes[2 * g + h] = _mm512_ternarylogic_epi32(low, high, bytes(0xc0), 0xf8); /* low | high & 0xc0 */
            to->factors[2 * g + h] = of_every_other(scales, 8 * g + h);
        }
    }
}

/* Sixteen scales, signed. */
INLINE __m128i scales_q3_k(const uint8_t *p) {
    __m128i packed = load16(p + 94); /* two bytes before the twelve, and two behind: the block's F16 */
    __m128i low = _mm_shuffle_epi8(packed, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    __m128i high = _mm_shuffle_epi8(packed, _mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13));
    low = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 4, 4)), _mm_set1_epi8(0x0f));
    high = _mm_and_si128(_mm_rolv_epi32(high, _mm_setr_epi32(4, 2, 0, 30)), _mm_set1_epi8(0x30));
    return _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
}

INLINE void unpack_q3_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    (void)halves;
    __m512 scales = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scales_q3_k(p))), _mm512_set1_ps(half_at(p + 108)));
    (void)none;
    for (int v = 0; v < 4; v++) {
        const int g = v / 2, h = v % 2;
        __m512i two = _mm512_and_si512(rotate_quarters(four_times(p + 32 + 32 * g + 16 * h), 5, 3, 1, 31), bytes(0x60));
        to->codes[v] = _mm512_mask_add_epi8(two, bit_of_each(p + 16 * h, 4 * g), two, bytes(0x80));
        to->factors[v] = of_every_other(scales, 8 * g + h);
    }
}

INLINE void unpack_q2_k(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    (void)halves;
    __m128i both = load16(p), mask = _mm_set1_epi8(0x0f);
    __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(both, mask)));
    __m512 minima = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(both, 4), mask)));
    scales = _mm512_mul_ps(scales, _mm512_set1_ps(half_at(p + 80)));
    minima = _mm512_mul_ps(minima, _mm512_set1_ps(half_at(p + 82) * 0x1p-7f));
    (void)none;
    for (int v = 0; v < 4; v++) {
        to->codes[v] = _mm512_and_si512(rotate_quarters(four_times(p + 16 + 16 * v), 0, 30, 28, 26), bytes(0x03));
        to->factors[v] = of_every_other(scales, 8 * (v / 2) + v % 2);
    }
    to->least = minima;
}

INLINE void unpack_iq4_xs(const uint8_t *p, const uint8_t *none, columns256 *to, const int halves) {
    (void)halves;
    uint32_t low;
    uint16_t high;
    memcpy(&high, p + 2, sizeof high);
    memcpy(&low, p + 4, sizeof low);
    uint64_t six = _pdep_u64(low, 0x0f0f0f0f0f0f0f0fu) | _pdep_u64(high, 0x3030303030303030u);
    __m256i signed_scales = _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)six)), _mm256_set1_epi32(32));
    __m512 scales = _mm512_castps256_ps512(_mm256_mul_ps(_mm256_cvtepi32_ps(signed_scales), _mm256_set1_ps(half_at(p))));
    (void)none;
    for (int g = 0; g < 2; g++) {
        __m512i nibbles = _mm512_loadu_si512(p + 8 + 64 * g);
        to->codes[2 * g] = lookup16(nibbles, IQ4_CODES);
        to->codes[2 * g + 1] = lookup16(upper(nibbles), IQ4_CODES);
        to->factors[2 * g] = of_four(scales, 4 * g);
    }
}

/* ---- blocks of 256 columns in the order of quads (product_quads.h)
 *   w = code * factor - 128 * least */

typedef struct quads256 {
    __m512i codes[4];
    __m512 factors, least; /* of quads */
} quads256;

typedef void unpack_quads(const uint8_t *codes, quads256 *to);

/* Each a byte, for all bytes of its quad. */
INLINE __m512i each_quad_of_four(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const uint32_t each = 0x01010101;
    return _mm512_broadcast_i32x4(_mm_setr_epi32((int)(a * each), (int)(b * each), (int)(c * each), (int)(d * each)));
}

/* Each field stays where it is in its byte: times 1, 4, 16, 64. */
INLINE void quads_q2_k(const uint8_t *p, quads256 *to) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    const __m512i fields = each_quad_of_four(0x03, 0x0c, 0x30, 0xc0);
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); /* found by the lower four bits of a word */
    const __m512 powers = _mm512_broadcast_f32x4(_mm_setr_ps(1, 0x1p-2f, 0x1p-4f, 0x1p-6f));
    __m512i bits = _mm512_loadu_si512(p + 16), both = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(load16(p), order));
    int32_t halves;
    memcpy(&halves, p + 80, sizeof halves);
    __m128 d_and_m = _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(halves)), _mm_setr_ps(1, 0x1p-7f, 0, 0));
    to->codes[0] = _mm512_and_si512(_mm512_shuffle_epi32(bits, 0x00), fields);
    to->codes[1] = _mm512_and_si512(_mm512_shuffle_epi32(bits, 0x55), fields);
    to->codes[2] = _mm512_and_si512(_mm512_shuffle_epi32(bits, 0xaa), fields);
    to->codes[3] = _mm512_and_si512(_mm512_shuffle_epi32(bits, 0xff), fields);
    to->factors = _mm512_mul_ps(_mm512_permutexvar_ps(both, numbers), _mm512_mul_ps(powers, _mm512_broadcastss_ps(d_and_m)));
    to->least = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), numbers), _mm512_broadcastss_ps(_mm_movehdup_ps(d_and_m)));
}

/* Two fields and the high bits of both, at bits 4 and 5, to two codes, the second one 4 bits up. */
#define CODES_OF(fields) (((fields) & 3) | ((fields) & 12) << 2 | ((fields) & 16) >> 2 | ((fields) & 32) << 1)
#define FOUR_CODES(n) CODES_OF(n), CODES_OF((n) + 1), CODES_OF((n) + 2), CODES_OF((n) + 3)
#define SIXTEEN_CODES(n) FOUR_CODES(n), FOUR_CODES((n) + 4), FOUR_CODES((n) + 8), FOUR_CODES((n) + 12)
static const uint8_t codes_of_fields[64] __attribute__((aligned(64))) = {SIXTEEN_CODES(0), SIXTEEN_CODES(16), SIXTEEN_CODES(32),
                                                                         SIXTEEN_CODES(48)};
#undef SIXTEEN_CODES
#undef FOUR_CODES
#undef CODES_OF

/* Codes of three bits from 0 to 7, those of odd fields times 16. */
INLINE void quads_q3_k(const uint8_t *p, quads256 *to) {
    const __m512i first_bits = _mm512_setr_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0), table = _mm512_load_si512(codes_of_fields);
    const __m512i last_bits = _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 30, 30, 30, 30, 30, 30, 30, 30), nibble = bytes(0x0f);
    const __m512i fields = each_quad_of_four(0x07, 0x70, 0x07, 0x70);
    /* where the bits of a scale begin, in the order of quads; the upper two are wanted four bits up */
    const __m128i low_bits = _mm_setr_epi8(0, 16, 32, 48, 8, 24, 40, 56, 4, 20, 36, 52, 12, 28, 44, 60);
    const __m128i high_bits_of = _mm_setr_epi8(-4, 12, -2, 14, 4, 20, 6, 22, 0, 16, 2, 18, 8, 24, 10, 26);
    __m512i bits = _mm512_loadu_si512(p + 32), high = _mm512_broadcast_i64x4(load32(p));
    /* a & c | b & ~c */
    __m512i first = _mm512_ternarylogic_epi32(bits, _mm512_rolv_epi32(high, first_bits), nibble, 0xe4);
    __m512i last = _mm512_ternarylogic_epi32(_mm512_srli_epi16(bits, 4), _mm512_rolv_epi32(high, last_bits), nibble, 0xe4);
    __m512 first_two = _mm512_castsi512_ps(_mm512_permutexvar_epi8(first, table)), last_two = _mm512_castsi512_ps(_mm512_permutexvar_epi8(last, table));
    to->codes[0] = _mm512_and_si512(_mm512_castps_si512(_mm512_shuffle_ps(first_two, last_two, 0x00)), fields);
    to->codes[1] = _mm512_and_si512(_mm512_castps_si512(_mm512_shuffle_ps(first_two, last_two, 0x55)), fields);
    to->codes[2] = _mm512_and_si512(_mm512_castps_si512(_mm512_shuffle_ps(first_two, last_two, 0xaa)), fields);
    to->codes[3] = _mm512_and_si512(_mm512_castps_si512(_mm512_shuffle_ps(first_two, last_two, 0xff)), fields);
    uint64_t low8, high4;
    memcpy(&low8, p + 96, sizeof low8);
    memcpy(&high4, p + 102, sizeof high4); /* and the F16 behind them, which no byte takes bits of */
    __m128i low = _mm_multishift_epi64_epi8(low_bits, _mm_set1_epi64x((long long)low8));
    __m128i upper_two = _mm_multishift_epi64_epi8(high_bits_of, _mm_set1_epi64x((long long)(high4 >> 16)));
    __m128i six = _mm_ternarylogic_epi32(low, _mm_and_si128(upper_two, _mm_set1_epi8(0x30)), _mm_set1_epi8(0x0f), 0xec); /* a & c | b */
    __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_sub_epi8(six, _mm_set1_epi8(32))));
    to->least = _mm512_mul_ps(scales, _mm512_set1_ps(half_at(p + 108))); /* times 4, of 128, times the encoding's 2^5 */
    to->factors = _mm512_mul_ps(to->least, _mm512_broadcast_f32x4(_mm_setr_ps(0x1p5f, 2, 0x1p5f, 2)));
}

/* The 128 columns of vectors 2 g and 2 g + 1, in their order. */
typedef void store128(void *to, const columns256 *w, const int g, const int group_columns, const int minima, const float factor);

/* Rows of a strip; `column` is a multiple of 256, and so many columns are written as make width a multiple of 256. */
INLINE void grouped_strip(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, void *strip, uint64_t stride,
                          const uint64_t element, unpack256 *unpack, const int group_columns, const int minima, const uint64_t code_bytes,
                          const uint64_t scale_bytes, const float factor, store128 *store) {
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
            unpack(from, scale, &w, 2);
            for (int g = 0; g < 2; g++)
                store((uint8_t *)strip + (r * stride + (chunk - first) * 256 + (uint64_t)g * 128) * element, &w, g, group_columns, minima, factor);
        }
    }
}

/* name, unpacker, columns of a factor, has minima, bytes of codes and of scales of 256 columns, power of two, and what takes them apart in the
 * order of quads for few tokens (NULL: nothing) */
#define GROUPED_LIST(X)                                                             \
    X(mxfp4_planes, unpack_mxfp4_planes, 32, 0, 128, 8, 0x1p-4f, NULL)              \
    X(int4_bf16, unpack_int4_bf16, 32, 0, 128, 16, 0x1p-4f, NULL)                   \
    X(int4_f16, unpack_int4_f16, 32, 0, 128, 16, 0x1p-4f, NULL)                     \
    X(int4_f32, unpack_int4_f32, 32, 0, 128, 32, 0x1p-4f, NULL)                     \
    X(q8_0, unpack_q8_0, 32, 0, 272, 0, 1.0f, NULL)                                 \
    X(q4_0, unpack_q4_0, 32, 0, 144, 0, 0x1p-4f, NULL)                              \
    X(q4_1, unpack_q4_1, 32, 1, 160, 0, 1.0f, NULL)                                 \
    X(q5_0, unpack_q5_0, 32, 0, 176, 0, 0x1p-3f, NULL)                              \
    X(q5_1, unpack_q5_1, 32, 1, 192, 0, 1.0f, NULL)                                 \
    X(iq4_nl, unpack_iq4_nl, 32, 0, 144, 0, 1.0f, NULL)                             \
    X(mxfp4_blocks, unpack_mxfp4_blocks, 32, 0, 136, 0, 0x1p-4f, NULL)              \
    X(q2_k, unpack_q2_k, 16, 1, 84, 0, 1.0f, quads_q2_k)                            \
    X(q3_k, unpack_q3_k, 16, 0, 110, 0, 0x1p-5f, quads_q3_k)                        \
    X(q4_k, unpack_q4_k, 32, 1, 144, 0, 1.0f, NULL)                                 \
    X(q5_k, unpack_q5_k, 32, 1, 176, 0, 1.0f, NULL)                                 \
    X(q6_k, unpack_q6_k, 16, 0, 210, 0, 0x1p-2f, NULL)                              \
    X(iq4_xs, unpack_iq4_xs, 32, 0, 136, 0, 1.0f, NULL)

enum {
#define X(name, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads) GROUPED_##name,
    GROUPED_LIST(X)
#undef X
    GROUPED_COUNT
};

#endif
