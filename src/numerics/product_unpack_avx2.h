/* numerics/product_unpack_avx2.h: inside the AVX2 product kernels only. The encodings with a factor for 32 columns, seen alike: of a chunk
 * of 256 columns the i-th 32 come out as 16 words of even columns and 16 of odd ones; the chunk's head has the factors, and what is
 * subtracted:
 *   w = code (unsigned, but Q8_0's) * factor * the encoding's power of two - least
 * An encoding around zero counts from its lowest code: what that is below zero is its least. Nothing is read beyond the 32 columns' bytes,
 * and the head's. Layouts: numerics/decode, and ggml's block types in docs/formats.md. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_UNPACK_AVX2_H
#define MICA_NUMERICS_PRODUCT_UNPACK_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* What a chunk's 32 columns have of their own: a factor, and what is subtracted; CENTRED: nothing is, codes are signed. */
typedef enum groups_of { OF_32, OF_32_CENTRED } groups_of;

typedef struct head256 {
    float factors[8];
    __m256 least;
} head256;

typedef struct columns32 {
    __m256i even, odd;
} columns32;

/* `groups` of 32 columns are there: 8 but at the end of a row of blocks of 32 columns. */
typedef void read_head(const uint8_t *codes, const uint8_t *scales, const int groups, head256 *to);
typedef columns32 read_codes(const uint8_t *codes, const int group);

/* ---- parts */

enum { TOGETHER = 4 /* tokens */, AHEAD = 4096 };

INLINE void fetch_from(const uint8_t *p, uint64_t count) {
    for (uint64_t i = 0; i < count; i += 64)
        _mm_prefetch((const char *)p + i, _MM_HINT_T1);
}

INLINE void fetch(const uint8_t *p, uint64_t bytes_ahead) {
    fetch_from(p + AHEAD, bytes_ahead);
}

INLINE float sum_of(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

INLINE __m128i load16(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

INLINE __m256i load32(const uint8_t *p) {
    __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)p);
    __asm__("" : "+x"(v)); /* once, into a register: two loads a cycle are what these kernels have least of */
    return v;
}

INLINE __m256i bytes(int value) {
    return _mm256_set1_epi8((char)value);
}

INLINE uint16_t u16_at(const uint8_t *p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

INLINE uint32_t u32_at(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

INLINE float half_at(const uint8_t *p) {
    return _cvtsh_ss(u16_at(p));
}

/* F16 numbers that lie `step` bytes apart; zeros behind the last group. */
INLINE __m256 halves_at(const uint8_t *p, const int step, const int groups) {
    uint64_t four[2] = {0, 0};
    for (int g = 0; g < groups; g++) {
        uint64_t half = u16_at(p + step * g);
        __asm__("" : "+r"(half)); /* stays there: vectors have enough to do */
        four[g / 4] |= half << 16 * (g % 4);
    }
    return _mm256_cvtph_ps(_mm_set_epi64x((long long)four[1], (long long)four[0]));
}

/* 16 bytes of nibbles, low ones first, to 32 bytes with something above each nibble */
INLINE __m256i nibbles32(const uint8_t *p) {
    return _mm256_srlv_epi32(_mm256_broadcastsi128_si256(load16(p)), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
}

INLINE columns32 of_bytes(__m256i v) {
    return (columns32){_mm256_and_si256(v, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(v, 8)};
}

INLINE __m256i lookup16(__m256i indices, __m128i table) { /* by the lower four bits */
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), _mm256_and_si256(indices, bytes(0x0f)));
}

/* 0xff where a bit of 32 is set */
INLINE __m256i mask_of_bits(const uint8_t *p) {
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i each = _mm256_set1_epi64x((long long)0x8040201008040201u);
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), each), each);
}

#define E2M1_CODES _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0) /* 12 + 2 v */
#define IQ4_CODES _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15) /* 128 + v */

/* Factors of 32 columns, of which `lowest` (times a factor) is subtracted. */
INLINE void head_of_32(__m256 factors, float lowest, head256 *to) {
    _mm256_storeu_ps(to->factors, factors);
    to->least = _mm256_mul_ps(factors, _mm256_set1_ps(lowest));
}

/* ---- planes: codes and scales apart; scales of 32 columns */

INLINE columns32 codes_mxfp4_planes(const uint8_t *p, const int group) {
    __m256i words = _mm256_cvtepu8_epi16(load16(p + 16 * group));
    return of_bytes(lookup16(_mm256_or_si256(words, _mm256_slli_epi16(words, 4)), E2M1_CODES));
}

INLINE columns32 codes_int4(const uint8_t *p, const int group) {
    __m256i words = _mm256_cvtepu8_epi16(load16(p + 16 * group));
    return (columns32){_mm256_and_si256(words, _mm256_set1_epi16(0x0f)), _mm256_srli_epi16(words, 4)};
}

INLINE __m256 powers_of(__m128i exponents) { /* 2^-127 becomes 0, NaN infinity */
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(exponents), 23));
}

INLINE void head_mxfp4_planes(const uint8_t *codes, const uint8_t *scales, const int groups, head256 *to) {
    (void)codes;
    (void)groups;
    head_of_32(powers_of(_mm_loadl_epi64((const __m128i *)(const void *)scales)), 12, to);
}

INLINE void head_int4_bf16(const uint8_t *codes, const uint8_t *scales, const int groups, head256 *to) {
    (void)codes;
    (void)groups;
    head_of_32(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(scales)), 16)), 8, to);
}

INLINE void head_int4_f16(const uint8_t *codes, const uint8_t *scales, const int groups, head256 *to) {
    (void)codes;
    (void)groups;
    head_of_32(_mm256_cvtph_ps(load16(scales)), 8, to);
}

INLINE void head_int4_f32(const uint8_t *codes, const uint8_t *scales, const int groups, head256 *to) {
    (void)codes;
    (void)groups;
    head_of_32(_mm256_castsi256_ps(load32(scales)), 8, to);
}

/* ---- ggml's blocks of 32 */

/* name, bytes, the place of the codes, what is below zero */
#define DEFINE_HEAD_OF_HALVES(name, block_bytes, lowest)                                                         \
    INLINE void head_##name(const uint8_t *codes, const uint8_t *scales, const int groups, head256 *to) {        \
        (void)scales;                                                                                            \
        head_of_32(halves_at(codes, block_bytes, groups), lowest, to);                                           \
    }
DEFINE_HEAD_OF_HALVES(q8_0, 34, 0)
DEFINE_HEAD_OF_HALVES(q4_0, 18, 8)
DEFINE_HEAD_OF_HALVES(q5_0, 22, 16)
DEFINE_HEAD_OF_HALVES(iq4_nl, 18, 128)

/* with a minimum behind the factor */
#define DEFINE_HEAD_OF_PAIRS(name, block_bytes)                                                                  \
    INLINE void head_##name(const uint8_t *codes, const uint8_t *scales, const int groups, head256 *to) {        \
        (void)scales;                                                                                            \
        _mm256_storeu_ps(to->factors, halves_at(codes, block_bytes, groups));                                    \
        to->least = _mm256_mul_ps(halves_at(codes + 2, block_bytes, groups), _mm256_set1_ps(-1));       \
    }
DEFINE_HEAD_OF_PAIRS(q4_1, 20)
DEFINE_HEAD_OF_PAIRS(q5_1, 24)

INLINE void head_mxfp4_blocks(const uint8_t *codes, const uint8_t *scales, const int groups, head256 *to) {
    uint64_t exponents = 0;
    (void)scales;
    for (int g = 0; g < groups; g++) {
        uint64_t exponent = codes[17 * g];
        __asm__("" : "+r"(exponent)); /* stays there: vectors have enough to do */
        exponents |= exponent << 8 * g;
    }
    head_of_32(powers_of(_mm_cvtsi64_si128((long long)exponents)), 12, to);
}

INLINE columns32 codes_q8_0(const uint8_t *p, const int group) {
    __m256i v = load32(p + 34 * group + 2);
    return (columns32){_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}

INLINE columns32 codes_q4_0(const uint8_t *p, const int group) {
    return of_bytes(_mm256_and_si256(nibbles32(p + 18 * group + 2), bytes(0x0f)));
}

INLINE columns32 codes_q4_1(const uint8_t *p, const int group) {
    return of_bytes(_mm256_and_si256(nibbles32(p + 20 * group + 4), bytes(0x0f)));
}

INLINE __m256i with_fifth_bits(__m256i nibbles, const uint8_t *bits) {
    return _mm256_or_si256(_mm256_and_si256(nibbles, bytes(0x0f)), _mm256_and_si256(mask_of_bits(bits), bytes(0x10)));
}

INLINE columns32 codes_q5_0(const uint8_t *p, const int group) {
    return of_bytes(with_fifth_bits(nibbles32(p + 22 * group + 6), p + 22 * group + 2));
}

INLINE columns32 codes_q5_1(const uint8_t *p, const int group) {
    return of_bytes(with_fifth_bits(nibbles32(p + 24 * group + 8), p + 24 * group + 4));
}

INLINE columns32 codes_iq4_nl(const uint8_t *p, const int group) {
    return of_bytes(lookup16(nibbles32(p + 18 * group + 2), IQ4_CODES));
}

INLINE columns32 codes_mxfp4_blocks(const uint8_t *p, const int group) {
    return of_bytes(lookup16(nibbles32(p + 17 * group + 1), E2M1_CODES));
}

/* ---- a block of 256 columns with codes as those of blocks of 32 have (others: product_quads_256.h) */

INLINE void head_iq4_xs(const uint8_t *p, const uint8_t *scales, const int groups, head256 *to) {
    (void)scales;
    (void)groups;
    uint32_t low;
    memcpy(&low, p + 4, sizeof low);
    __m128i nibbles = _mm_cvtsi32_si128((int)low);
    nibbles = _mm_and_si128(_mm_unpacklo_epi8(nibbles, _mm_srli_epi16(nibbles, 4)), _mm_set1_epi8(0x0f));
    __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(u16_at(p + 2)), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    __m256i six = _mm256_sub_epi32(_mm256_or_si256(_mm256_cvtepu8_epi32(nibbles), high), _mm256_set1_epi32(32));
    head_of_32(_mm256_mul_ps(_mm256_cvtepi32_ps(six), _mm256_set1_ps(half_at(p))), 128, to);
}

INLINE columns32 codes_iq4_xs(const uint8_t *p, const int group) {
    return of_bytes(lookup16(nibbles32(p + 8 + 16 * group), IQ4_CODES));
}

/* name, codes, head, what the groups are, bytes of codes and of scales of 256 columns, power of two */
#define WORDS_LIST(X)                                                                \
    X(mxfp4_planes, codes_mxfp4_planes, head_mxfp4_planes, OF_32, 128, 8, 0.5f)      \
    X(int4_bf16, codes_int4, head_int4_bf16, OF_32, 128, 16, 1)                      \
    X(int4_f16, codes_int4, head_int4_f16, OF_32, 128, 16, 1)                        \
    X(int4_f32, codes_int4, head_int4_f32, OF_32, 128, 32, 1)                        \
    X(q8_0, codes_q8_0, head_q8_0, OF_32_CENTRED, 272, 0, 1)                         \
    X(q4_0, codes_q4_0, head_q4_0, OF_32, 144, 0, 1)                                 \
    X(q4_1, codes_q4_1, head_q4_1, OF_32, 160, 0, 1)                                 \
    X(q5_0, codes_q5_0, head_q5_0, OF_32, 176, 0, 1)                                 \
    X(q5_1, codes_q5_1, head_q5_1, OF_32, 192, 0, 1)                                 \
    X(iq4_nl, codes_iq4_nl, head_iq4_nl, OF_32, 144, 0, 1)                           \
    X(mxfp4_blocks, codes_mxfp4_blocks, head_mxfp4_blocks, OF_32, 136, 0, 0.5f)      \
    X(iq4_xs, codes_iq4_xs, head_iq4_xs, OF_32, 136, 0, 1)

#endif
