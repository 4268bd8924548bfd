/* numerics/product_unpack_avx512.h: inside the AVX-512 product kernels only. The encodings with scales for small groups of columns, seen alike.
 * A unit of columns (128, or 256 where blocks are that long) comes out as vectors of 64 unsigned codes: the first halves of four blocks of 32
 * columns, side by side, then their second halves, then those of the next four. So a lane of VNNI's products belongs to one block in both
 * vectors of a pair, and one factor serves both (`shared`); where each 16 columns have a scale, each vector has its own.
 *   without minima   w = (code - 128) * factor * the encoding's power of two
 *   with minima      w = code * factor - least; where a least lies: see minima_kind
 * Codes are shifted up so that 128 is the middle of every encoding that has a fixed one. Nothing is read beyond the unit's bytes.
 * Layouts: numerics/decode, and ggml's block types in docs/formats.md. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_UNPACK_AVX512_H
#define MICA_NUMERICS_PRODUCT_UNPACK_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "numerics/matrix.h"

#define INLINE static inline __attribute__((always_inline))
#define EACH(i, count) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++) /* of constants: arrays become registers */

typedef struct unit {
    __m512i codes[4];
    __m512 factors[4]; /* of codes[i]; shared: of codes[2 i] and codes[2 i + 1] */
    __m512 least;
} unit;

typedef enum minima_kind {
    NO_MINIMA,
    TWICE_BY_LANE, /* in the lanes of factors[0], twice what is subtracted */
    BY_SIXTEEN,    /* a lane for each 16 columns, in their order */
    BY_BLOCK       /* lanes 4 ... 7 and 12 ... 15, for 32 columns each, in their order; the others hold anything finite */
} minima_kind;

typedef void unpack_unit(const uint8_t *codes, const uint8_t *scales, unit *to);

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

/* Loaded once: as an operand of several instructions it would be loaded, over two lines, by each. */
INLINE __m512i load64_at(const uint8_t *p) {
    __m512i v = _mm512_loadu_si512(p);
    __asm__("" : "+v"(v));
    return v;
}

INLINE float half_at(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return _cvtsh_ss(half);
}

INLINE __m512i fours(int a, int b, int c, int d) { /* a value for each 16 bytes */
    return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}

INLINE __m512 lanes_of(__m512 values, int a, int b, int c, int d) {
    return _mm512_permutexvar_ps(fours(a, b, c, d), values);
}

/* 16 bytes four times, each rotated left in words of 32 bits by its own count */
INLINE __m512i four_times(const uint8_t *p, int a, int b, int c, int d) {
    return _mm512_rolv_epi32(_mm512_broadcast_i32x4(load16(p)), fours(a, b, c, d));
}

/* bits of 16 bytes: one for each of four blocks */
INLINE __mmask64 four_bits(const uint8_t *p, int first) {
    return _mm512_test_epi8_mask(_mm512_broadcast_i32x4(load16(p)), fours(0x01010101 * (1 << first), 0x01010101 * (2 << first), 0x01010101 * (4 << first), (int)(0x01010101u * (8u << first))));
}

/* ---- four blocks that are some bytes apart, seen through two loads: at p, and at p + second (second <= 64) */

#define AT(at, second) ((at) < 64 ? (at) : 64 + (at) - (second))
#define FOUR_AT(at, second) AT(at, second), AT((at) + 1, second), AT((at) + 2, second), AT((at) + 3, second)
#define SIXTEEN_AT(at, second) FOUR_AT(at, second), FOUR_AT((at) + 4, second), FOUR_AT((at) + 8, second), FOUR_AT((at) + 12, second)
#define BLOCKS_AT(at, step, second) \
    {SIXTEEN_AT(at, second), SIXTEEN_AT((at) + (step), second), SIXTEEN_AT((at) + 2 * (step), second), SIXTEEN_AT((at) + 3 * (step), second)}

INLINE __m512i gather(__m512i first, const uint8_t order[64], __m512i second) {
    return _mm512_permutex2var_epi8(first, _mm512_loadu_si512(order), second);
}

/* F16 numbers by their places in words of the two loads */
INLINE __m512 four_halves(__m512i first, __m512i second, int a, int b, int c, int d) {
    const __m256i order = _mm256_setr_epi16((short)a, (short)a, (short)a, (short)a, (short)b, (short)b, (short)b, (short)b, (short)c, (short)c,
                                            (short)c, (short)c, (short)d, (short)d, (short)d, (short)d);
    return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutex2var_epi16(first, _mm512_castsi256_si512(order), second)));
}

INLINE __m512i lookup16(__m512i indices, __m128i table) { /* by the lower four bits */
    return _mm512_permutexvar_epi8(indices, _mm512_broadcast_i32x4(table));
}

#define E2M1_CODES _mm_setr_epi8(-128, -120, -112, -104, -96, -80, -64, -32, -128, 120, 112, 104, 96, 80, 64, 32) /* 128 + 16 v */
#define IQ4_CODES _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15) /* 128 + v */

/* ---- planes: codes and scales apart; scales of 32 columns */

INLINE __m512 four_e8m0(const uint8_t *scales) {
    int32_t exponents;
    memcpy(&exponents, scales, sizeof exponents);
    const __m512i order = fours(0, 0x01000000, 0x02000000, 0x03000000);
    __m512i top = _mm512_maskz_permutexvar_epi8(0x8888888888888888u, order, _mm512_castsi128_si512(_mm_cvtsi32_si128(exponents)));
    return _mm512_castsi512_ps(_mm512_srli_epi32(top, 1)); /* 2^-127 becomes 0, NaN infinity */
}

INLINE __m512 four_bf16(const uint8_t *scales) {
    const __m512i order = fours(0, 0x10000, 0x20000, 0x30000);
    __m512i words = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i *)scales));
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, order, words));
}

INLINE __m512 four_f16(const uint8_t *scales) {
    __m512i words = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i *)scales));
    return four_halves(words, words, 0, 1, 2, 3);
}

INLINE __m512 four_f32(const uint8_t *scales) {
    return lanes_of(_mm512_castsi512_ps(_mm512_castsi128_si512(load16(scales))), 0, 1, 2, 3);
}

/* Codes of even columns and of odd ones to their order. */
INLINE void set_planes(__m512i even, __m512i odd, unit *to) {
    to->codes[0] = _mm512_unpacklo_epi8(even, odd);
    to->codes[1] = _mm512_unpackhi_epi8(even, odd);
}

INLINE void unpack_mxfp4_planes(const uint8_t *codes, const uint8_t *scales, unit *to) {
    __m512i pairs = load64_at(codes);
    set_planes(lookup16(pairs, E2M1_CODES), lookup16(_mm512_srli_epi16(pairs, 4), E2M1_CODES), to);
    to->factors[0] = four_e8m0(scales);
}

INLINE void set_int4(const uint8_t *codes, unit *to) { /* nibble - 8 */
    __m512i pairs = load64_at(codes);
    set_planes(_mm512_and_si512(_mm512_slli_epi16(pairs, 4), bytes(0xf0)), _mm512_and_si512(pairs, bytes(0xf0)), to);
}

INLINE void unpack_int4_bf16(const uint8_t *codes, const uint8_t *scales, unit *to) {
    set_int4(codes, to);
    to->factors[0] = four_bf16(scales);
}

INLINE void unpack_int4_f16(const uint8_t *codes, const uint8_t *scales, unit *to) {
    set_int4(codes, to);
    to->factors[0] = four_f16(scales);
}

INLINE void unpack_int4_f32(const uint8_t *codes, const uint8_t *scales, unit *to) {
    set_int4(codes, to);
    to->factors[0] = four_f32(scales);
}

/* ---- ggml's blocks of 32: four of them */

INLINE void unpack_q8_0(const uint8_t *p, const uint8_t *none, unit *to) {
    static const uint8_t first[64] = BLOCKS_AT(2, 34, 56), second[64] = BLOCKS_AT(14, 34, 68); /* the second halves: from p + 4 on */
    __m512i a = load64_at(p), b = load64_at(p + 56);
    (void)none;
    to->codes[0] = _mm512_xor_si512(gather(a, first, b), bytes(128));
    to->codes[1] = _mm512_xor_si512(gather(load64_at(p + 4), second, load64_at(p + 72)), bytes(128));
    to->factors[0] = four_halves(a, b, 0, 17, 32 + (68 - 56) / 2, 32 + (102 - 56) / 2);
}

INLINE void unpack_q4_0(const uint8_t *p, const uint8_t *none, unit *to) {
    static const uint8_t order[64] = BLOCKS_AT(2, 18, 8);
    __m512i a = load64_at(p), b = load64_at(p + 8), pairs = gather(a, order, b);
    (void)none;
    to->codes[0] = _mm512_and_si512(_mm512_slli_epi16(pairs, 4), bytes(0xf0));
    to->codes[1] = _mm512_and_si512(pairs, bytes(0xf0));
    to->factors[0] = four_halves(a, b, 0, 9, 18, 27);
}

INLINE void unpack_q4_1(const uint8_t *p, const uint8_t *none, unit *to) {
    static const uint8_t order[64] = BLOCKS_AT(4, 20, 16);
    __m512i a = load64_at(p), b = load64_at(p + 16), pairs = gather(a, order, b);
    (void)none;
    to->codes[0] = _mm512_and_si512(pairs, bytes(0x0f));
    to->codes[1] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), bytes(0x0f));
    to->factors[0] = four_halves(a, b, 0, 10, 20, 30);
    to->least = _mm512_mul_ps(four_halves(a, b, 1, 11, 21, 31), _mm512_set1_ps(-2));
}

/* The high bits of four blocks' first halves, or of their second ones. */
INLINE __mmask64 high_bits(const uint8_t *p, uint64_t step, const uint64_t half) {
    uint32_t words[4];
    uint64_t pairs[2];
    EACH (i, 4)
        memcpy(&words[i], p + (uint64_t)i * step, sizeof *words);
    EACH (i, 2)
        pairs[i] = _pext_u64((uint64_t)words[2 * i + 1] << 32 | words[2 * i], half);
    return pairs[1] << 32 | pairs[0];
}

#define FIRST_HALVES 0x0000ffff0000ffffu
#define SECOND_HALVES 0xffff0000ffff0000u

INLINE void unpack_q5_0(const uint8_t *p, const uint8_t *none, unit *to) {
    static const uint8_t order[64] = BLOCKS_AT(6, 22, 24);
    __m512i a = load64_at(p), b = load64_at(p + 24), pairs = gather(a, order, b);
    __m512i first = _mm512_and_si512(_mm512_slli_epi16(pairs, 3), bytes(0x78)), second = _mm512_and_si512(_mm512_srli_epi16(pairs, 1), bytes(0x78));
    (void)none;
    to->codes[0] = _mm512_mask_add_epi8(first, high_bits(p + 2, 22, FIRST_HALVES), first, bytes(0x80));
    to->codes[1] = _mm512_mask_add_epi8(second, high_bits(p + 2, 22, SECOND_HALVES), second, bytes(0x80));
    to->factors[0] = four_halves(a, b, 0, 11, 22, 32 + (66 - 24) / 2);
}

INLINE void unpack_q5_1(const uint8_t *p, const uint8_t *none, unit *to) {
    static const uint8_t order[64] = BLOCKS_AT(8, 24, 32);
    __m512i a = load64_at(p), b = load64_at(p + 32), pairs = gather(a, order, b);
    __m512i first = _mm512_and_si512(pairs, bytes(0x0f)), second = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), bytes(0x0f));
    (void)none;
    to->codes[0] = _mm512_mask_add_epi8(first, high_bits(p + 4, 24, FIRST_HALVES), first, bytes(0x10));
    to->codes[1] = _mm512_mask_add_epi8(second, high_bits(p + 4, 24, SECOND_HALVES), second, bytes(0x10));
    to->factors[0] = four_halves(a, b, 0, 12, 24, 32 + (72 - 32) / 2);
    to->least = _mm512_mul_ps(four_halves(a, b, 1, 13, 25, 32 + (74 - 32) / 2), _mm512_set1_ps(-2));
}

INLINE void unpack_iq4_nl(const uint8_t *p, const uint8_t *none, unit *to) {
    static const uint8_t order[64] = BLOCKS_AT(2, 18, 8);
    __m512i a = load64_at(p), b = load64_at(p + 8), pairs = gather(a, order, b);
    (void)none;
    to->codes[0] = lookup16(pairs, IQ4_CODES);
    to->codes[1] = lookup16(_mm512_srli_epi16(pairs, 4), IQ4_CODES);
    to->factors[0] = four_halves(a, b, 0, 9, 18, 27);
}

INLINE void unpack_mxfp4_blocks(const uint8_t *p, const uint8_t *none, unit *to) {
    static const uint8_t order[64] = BLOCKS_AT(1, 17, 4);
    __m512i a = load64_at(p), pairs = gather(a, order, load64_at(p + 4));
    (void)none;
    to->codes[0] = lookup16(pairs, E2M1_CODES);
    to->codes[1] = lookup16(_mm512_srli_epi16(pairs, 4), E2M1_CODES);
    __m512i top = _mm512_maskz_permutexvar_epi8(0x8888888888888888u, fours(0, 17 << 24, 34 << 24, 51 << 24), a);
    to->factors[0] = _mm512_castsi512_ps(_mm512_srli_epi32(top, 1)); /* 2^-127 becomes 0, NaN infinity */
}

/* ---- ggml's blocks of 256 */

/* Eight scales and minima of six bits: bytes 4 ... 15 of the block's head (Q4_K, Q5_K); four scales, four minima, four scales, four minima. The
 * scalar units are idle. */
INLINE __m512 scales_and_minima(const uint8_t *p) {
    uint64_t first;
    uint32_t last;
    int32_t both;
    memcpy(&first, p + 4, sizeof first);
    memcpy(&last, p + 12, sizeof last);
    memcpy(&both, p, sizeof both);
    uint64_t nibbles = (last | (uint64_t)last << 28) & 0x0f0f0f0f0f0f0f0fu, high = nibbles | (first >> 2 & 0x3030303030303030u);
    __m128i all = _mm_set_epi64x((long long)high, (long long)(first & 0x3f3f3f3f3f3f3f3fu));
    __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(all));
    return _mm512_mul_ps(values, lanes_of(_mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi32_si128(both))), 0, 1, 0, 1));
}

/* Nibbles of 64 bytes: low ones are blocks 0 and 2, high ones 1 and 3. */
INLINE void set_pairs(const uint8_t *p, __m512i codes[2]) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    __m512i pairs = load64_at(p), low = _mm512_and_si512(pairs, bytes(0x0f)), high = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), bytes(0x0f));
    codes[0] = _mm512_permutex2var_epi64(low, first, high);
    codes[1] = _mm512_permutex2var_epi64(low, second, high);
}

INLINE void unpack_q4_k(const uint8_t *p, const uint8_t *none, unit *to) {
    __m512 scales = scales_and_minima(p);
    (void)none;
    EACH (h, 2) {
        set_pairs(p + 16 + 64 * h, to->codes + 2 * h);
        to->factors[h] = lanes_of(scales, 8 * h, 8 * h + 1, 8 * h + 2, 8 * h + 3);
    }
    to->least = scales;
}

INLINE void unpack_q5_k(const uint8_t *p, const uint8_t *none, unit *to) {
    __m512 scales = scales_and_minima(p);
    (void)none;
    EACH (h, 2) {
        set_pairs(p + 48 + 64 * h, to->codes + 2 * h);
        EACH (i, 2)
            to->codes[2 * h + i] = _mm512_mask_add_epi8(to->codes[2 * h + i], four_bits(p + 16 + 16 * i, 4 * h), to->codes[2 * h + i], bytes(0x10));
        to->factors[h] = lanes_of(scales, 8 * h, 8 * h + 1, 8 * h + 2, 8 * h + 3);
    }
    to->least = scales;
}

/* Sixteen scales, for 16 columns each. */
INLINE void set_factors(__m512 scales, unit *to) {
    EACH (i, 4) {
        int first = 8 * (i / 2) + i % 2;
        to->factors[i] = lanes_of(scales, first, first + 2, first + 4, first + 6);
    }
}

INLINE void unpack_q6_k(const uint8_t *p, const uint8_t *none, unit *to) {
    const __m512i orders[2] = {_mm512_setr_epi64(0, 1, 4, 5, 0, 1, 4, 5), _mm512_setr_epi64(2, 3, 6, 7, 2, 3, 6, 7)};
    (void)none;
    set_factors(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p + 192))), _mm512_set1_ps(half_at(p + 208))), to);
    EACH (i, 4) {
        __m512i low = _mm512_permutexvar_epi64(orders[i % 2], load64_at(p + 64 * (i / 2)));
        low = _mm512_and_si512(_mm512_rolv_epi32(low, fours(2, 2, 30, 30)), bytes(0x3c));
        to->codes[i] = _mm512_ternarylogic_epi32(low, four_times(p + 128 + 32 * (i / 2) + 16 * (i % 2), 6, 4, 2, 0), bytes(0xc0), 0xf8); /* low | high & 0xc0 */
    }
}

INLINE void unpack_q3_k(const uint8_t *p, const uint8_t *none, unit *to) {
    __m128i packed = load16(p + 94); /* two bytes before the twelve, and two behind: the block's F16 */
    __m128i low = _mm_shuffle_epi8(packed, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    __m128i high = _mm_shuffle_epi8(packed, _mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13));
    low = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 4, 4)), _mm_set1_epi8(0x0f));
    high = _mm_and_si128(_mm_rolv_epi32(high, _mm_setr_epi32(4, 2, 0, 30)), _mm_set1_epi8(0x30));
    __m512i signed_scales = _mm512_cvtepi8_epi32(_mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32)));
    set_factors(_mm512_mul_ps(_mm512_cvtepi32_ps(signed_scales), _mm512_set1_ps(half_at(p + 108))), to);
    (void)none;
    EACH (i, 4) {
        __m512i two = _mm512_and_si512(four_times(p + 32 + 32 * (i / 2) + 16 * (i % 2), 5, 3, 1, 31), bytes(0x60));
        to->codes[i] = _mm512_mask_add_epi8(two, four_bits(p + 16 * (i % 2), 4 * (i / 2)), two, bytes(0x80));
    }
}

INLINE void unpack_q2_k(const uint8_t *p, const uint8_t *none, unit *to) {
    __m128i both = load16(p), mask = _mm_set1_epi8(0x0f);
    __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(both, mask)));
    __m512 minima = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(both, 4), mask)));
    (void)none;
    set_factors(_mm512_mul_ps(scales, _mm512_set1_ps(half_at(p + 80))), to);
    to->least = _mm512_mul_ps(minima, _mm512_set1_ps(half_at(p + 82)));
    EACH (i, 4)
        to->codes[i] = _mm512_and_si512(four_times(p + 16 + 32 * (i / 2) + 16 * (i % 2), 0, 30, 28, 26), bytes(0x03));
}

INLINE void unpack_iq4_xs(const uint8_t *p, const uint8_t *none, unit *to) {
    uint32_t low;
    uint16_t high;
    memcpy(&high, p + 2, sizeof high);
    memcpy(&low, p + 4, sizeof low);
    uint64_t six = _pdep_u64(low, 0x0f0f0f0f0f0f0f0fu) | _pdep_u64(high, 0x3030303030303030u);
    __m256i signed_scales = _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)six)), _mm256_set1_epi32(32));
    __m512 scales = _mm512_castps256_ps512(_mm256_mul_ps(_mm256_cvtepi32_ps(signed_scales), _mm256_set1_ps(half_at(p))));
    (void)none;
    EACH (h, 2) {
        __m512i pairs = load64_at(p + 8 + 64 * h);
        to->codes[2 * h] = lookup16(pairs, IQ4_CODES);
        to->codes[2 * h + 1] = lookup16(_mm512_srli_epi16(pairs, 4), IQ4_CODES);
        to->factors[h] = lanes_of(scales, 4 * h, 4 * h + 1, 4 * h + 2, 4 * h + 3);
    }
}

/* ---- to values in their order */

/* 64 columns, the g-th of the unit: 16 a vector. */
INLINE void values_of(const unit *w, int g, const int shared, const minima_kind minima, const float factor, __m512 values[4]) {
    const __m512i order = g % 2 ? _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15) : _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    __m512i all = _mm512_permutex2var_epi64(w->codes[g / 2 * 2], order, w->codes[g / 2 * 2 + 1]);
    __m128i codes[4] = {_mm512_castsi512_si128(all), _mm512_extracti32x4_epi32(all, 1), _mm512_extracti32x4_epi32(all, 2), _mm512_extracti32x4_epi32(all, 3)};
    EACH (i, 4) {
        int block = 2 * (g % 2) + i / 2; /* of the vector's four */
        __m512 scale = _mm512_permutexvar_ps(_mm512_set1_epi32(4 * block), w->factors[shared ? g / 2 : g / 2 * 2 + i % 2]);
        if (minima == NO_MINIMA) {
            __m512i whole = _mm512_cvtepi8_epi32(_mm_xor_si128(codes[i], _mm_set1_epi8(-128)));
            values[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), factor == 1 ? scale : _mm512_mul_ps(scale, _mm512_set1_ps(factor)));
            continue;
        }
        int lane = minima == TWICE_BY_LANE ? 4 * block : minima == BY_SIXTEEN ? 4 * g + i : 4 + 8 * (g / 2) + block;
        __m512 least = _mm512_permutexvar_ps(_mm512_set1_epi32(lane), w->least);
        least = minima == TWICE_BY_LANE ? _mm512_mul_ps(least, _mm512_set1_ps(0.5f)) : least;
        values[i] = _mm512_fmsub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes[i])), scale, least);
    }
}

typedef void store64(void *strip, const __m512 values[4]);

/* Rows of a strip; `column` is a multiple of 256, and so many columns are written as make width a multiple of 256. */
INLINE void grouped_strip(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, void *strip, uint64_t stride,
                          const uint64_t element, unpack_unit *unpack, const uint64_t columns, const int shared, const minima_kind minima,
                          const uint64_t code_bytes, const uint64_t scale_bytes, const float factor, store64 *store) {
    uint64_t row_bytes = mica_matrix_row_bytes(matrix), row_scales = scale_bytes ? (matrix->columns + 31) / 32 * (scale_bytes / 4) : 0;
    uint64_t first = column / columns, end = (column + width + 255) / 256 * (256 / columns), whole = matrix->columns / columns;
    uint8_t tail[256 + 32];
    for (uint64_t r = 0; r < count; r++) {
        const uint8_t *codes = (const uint8_t *)matrix->codes + (row + r) * row_bytes;
        const uint8_t *scales = scale_bytes ? (const uint8_t *)matrix->scales + (row + r) * row_scales : codes;
        for (uint64_t n = first; n < end; n++) {
            const uint8_t *from = codes + n * code_bytes, *scale = scales + n * scale_bytes;
            unit w;
            if (n >= whole) { /* not whole, or nothing */
                memset(tail, 0, sizeof tail);
                if (n == whole) {
                    memcpy(tail, from, row_bytes - whole * code_bytes);
                    memcpy(tail + 256, scale, row_scales - whole * scale_bytes);
                }
                from = tail;
                scale = tail + 256;
            }
            fetch(from, code_bytes);
            unpack(from, scale, &w);
            EACH (g, (int)columns / 64) {
                __m512 values[4];
                values_of(&w, g, shared, minima, factor, values);
                store((uint8_t *)strip + (r * stride + (n - first) * columns + (uint64_t)g * 64) * element, values);
            }
        }
    }
}

/* name, unpacker, columns of a unit, shared, minima, bytes of a unit's codes and scales, power of two */
#define GROUPED_LIST(X)                                                            \
    X(mxfp4_planes, unpack_mxfp4_planes, 128, 1, NO_MINIMA, 64, 4, 0x1p-4f)        \
    X(int4_bf16, unpack_int4_bf16, 128, 1, NO_MINIMA, 64, 8, 0x1p-4f)              \
    X(int4_f16, unpack_int4_f16, 128, 1, NO_MINIMA, 64, 8, 0x1p-4f)                \
    X(int4_f32, unpack_int4_f32, 128, 1, NO_MINIMA, 64, 16, 0x1p-4f)               \
    X(q8_0, unpack_q8_0, 128, 1, NO_MINIMA, 136, 0, 1.0f)                          \
    X(q4_0, unpack_q4_0, 128, 1, NO_MINIMA, 72, 0, 0x1p-4f)                        \
    X(q4_1, unpack_q4_1, 128, 1, TWICE_BY_LANE, 80, 0, 1.0f)                       \
    X(q5_0, unpack_q5_0, 128, 1, NO_MINIMA, 88, 0, 0x1p-3f)                        \
    X(q5_1, unpack_q5_1, 128, 1, TWICE_BY_LANE, 96, 0, 1.0f)                       \
    X(iq4_nl, unpack_iq4_nl, 128, 1, NO_MINIMA, 72, 0, 1.0f)                       \
    X(mxfp4_blocks, unpack_mxfp4_blocks, 128, 1, NO_MINIMA, 68, 0, 0x1p-4f)        \
    X(q2_k, unpack_q2_k, 256, 0, BY_SIXTEEN, 84, 0, 1.0f)                          \
    X(q3_k, unpack_q3_k, 256, 0, NO_MINIMA, 110, 0, 0x1p-5f)                       \
    X(q4_k, unpack_q4_k, 256, 1, BY_BLOCK, 144, 0, 1.0f)                           \
    X(q5_k, unpack_q5_k, 256, 1, BY_BLOCK, 176, 0, 1.0f)                           \
    X(q6_k, unpack_q6_k, 256, 0, NO_MINIMA, 210, 0, 0x1p-2f)                       \
    X(iq4_xs, unpack_iq4_xs, 256, 1, NO_MINIMA, 136, 0, 1.0f)

enum {
#define X(name, unpack, columns, shared, minima, code_bytes, scale_bytes, factor) GROUPED_##name,
    GROUPED_LIST(X)
#undef X
    GROUPED_COUNT
};

#endif
