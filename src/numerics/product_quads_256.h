/* numerics/product_quads_256.h: inside the product kernels of 256 bits only: ggml's blocks of 256 columns, Q2_K to Q6_K, times few tokens.
 * Codes of 8 bits times activations in two digits, exact in integers; so are the products with the blocks' integer scales.
 *
 * The order: blocks of 32 columns with even numbers, then odd ones; of four blocks, vector r of four has columns 4 r ... 4 r + 3 of the
 * first 16 of each in its lower lane, of the second 16 in its upper one. What has one scale thus lies in one 32-bit word of all four
 * vectors, whose products are added up before they meet it. Heads (scales, and F16 factors) are read for up to eight blocks at once.
 * Layouts: numerics/decode, and ggml's block types in docs/formats.md. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_QUADS_256_H
#define MICA_NUMERICS_PRODUCT_QUADS_256_H

#include "numerics/product_unpack_avx2.h"

enum { HEADS = 8, EVEN = 0, ODD = 1, BLOCKS_AHEAD = 48 };

/* Of up to eight blocks: w = factor * scale * code - least * minimum, here times each token's step. */
typedef struct heads {
    uint8_t scales[HEADS][16]; /* Q2_K's and Q6_K's are where they were */
    float factors[TOGETHER][HEADS], least[TOGETHER][HEADS];
} heads;

/* A block, its even columns of 32 and its odd ones: w = scale * code, but for what is subtracted. */
typedef struct quads256 {
    __m256i codes[2][4], scales[2];
    __m256 minima[2]; /* of 16 columns in their order, or in the first of 32 */
} quads256;

/* One token's digits and sums, from a row's start on. */
typedef struct token_quads {
    const int8_t *digits;
    const float *sums, *wide_sums, *steps;
} token_quads;

typedef void read_heads(const uint8_t *codes, const int blocks, const token_quads x[], uint64_t chunk, const int tokens, heads *to);
typedef void read_quads(const uint8_t *codes, const uint8_t *scales, quads256 *to);

/* What an encoding is, in constants. */
typedef struct quads_form {
    read_heads *heads;
    read_quads *quads;
    int most_even, most_odd; /* codes */
    bool of_16;              /* minima; else of 32 */
    float middle;            /* the code that stands for zero, as scales are multiplied; 0: there are minima */
    bool wide;               /* the products with scales are too large for both digits to be added as integers */
    uint64_t bytes;          /* of a block */
} quads_form;

/* ---- the order */

/* Four vectors' 32-bit words of each lane, rows to columns. */
INLINE void transpose(__m256i a, __m256i b, __m256i c, __m256i d, __m256i to[4]) {
    __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    __m256i ab_last = _mm256_unpackhi_epi32(a, b), cd_last = _mm256_unpackhi_epi32(c, d);
    to[0] = _mm256_unpacklo_epi64(ab, cd);
    to[1] = _mm256_unpackhi_epi64(ab, cd);
    to[2] = _mm256_unpacklo_epi64(ab_last, cd_last);
    to[3] = _mm256_unpackhi_epi64(ab_last, cd_last);
}

/* One digit of 256 columns in their order, to its places among digits [2][2][4][32]: even and odd blocks, digits, vectors. (Loads of 16
 * bytes: as they may have been written just now, and what is wider than its store has to wait.) */
INLINE void store_even_odd(const int8_t *columns, int8_t *digits) {
    for (int odd = 0; odd < 2; odd++) {
        __m256i block[4], quads[4];
        for (int b = 0; b < 4; b++) {
            const __m128i *from = (const __m128i *)(const void *)(columns + 64 * b + 32 * odd);
            block[b] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(from)), _mm_loadu_si128(from + 1), 1);
        }
        transpose(block[0], block[1], block[2], block[3], quads);
        for (int r = 0; r < 4; r++)
            _mm256_store_si256((__m256i *)(void *)(digits + 256 * odd + 32 * r), quads[r]);
    }
}

/* ---- heads */

/* Four steps from `first` on, of `left`; zeros behind them. */
INLINE __m128 four_steps(const float *first, const int left) {
    return left >= 4 ? _mm_loadu_ps(first) : _mm_maskload_ps(first, _mm_cmpgt_epi32(_mm_set1_epi32(left), _mm_setr_epi32(0, 1, 2, 3)));
}

/* Blocks' factors, F16 numbers at `at` in each, times a constant and each token's step. */
INLINE void read_factors(const uint8_t *at, const int block_bytes, const float constant, const int blocks, const token_quads x[],
                         uint64_t chunk, const int tokens, heads *to) {
    __m256 numbers = halves_at(at, block_bytes, blocks);
    if (constant != 1)
        numbers = _mm256_mul_ps(numbers, _mm256_set1_ps(constant));
    for (int t = 0; t < tokens; t++) {
        const float *first = x[t].steps + chunk;
        __m256 steps = blocks == HEADS ? _mm256_loadu_ps(first)
                                       : _mm256_set_m128(four_steps(first + 4, blocks - 4), four_steps(first, blocks));
        _mm256_storeu_ps(to->factors[t], _mm256_mul_ps(numbers, steps));
    }
}

/* The same of factors and, behind each of them, the minima's. */
INLINE void read_factors_and_least(const uint8_t *at, const uint64_t block_bytes, const float constant, const int blocks,
                                   const token_quads x[], uint64_t chunk, const int tokens, heads *to) {
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256 constants = _mm256_setr_ps(constant, constant, constant, constant, 1, 1, 1, 1);
    for (int b = 0; b < blocks; b += 4) {
        uint64_t pairs[4] = {0};
        for (int i = 0; i < 4; i++)
            if (b + i < blocks)
                pairs[i] = u32_at(at + (uint64_t)(b + i) * block_bytes);
        __m128i halves = _mm_set_epi64x((long long)(pairs[3] << 32 | pairs[2]), (long long)(pairs[1] << 32 | pairs[0]));
        __m256 numbers = _mm256_cvtph_ps(_mm_shuffle_epi8(halves, order));
        if (constant != 1)
            numbers = _mm256_mul_ps(numbers, constants);
        for (int t = 0; t < tokens; t++) {
            const float *first = x[t].steps + chunk + b;
            __m256 steps = blocks == HEADS ? _mm256_broadcast_ps((const __m128 *)(const void *)first)
                                           : _mm256_set_m128(four_steps(first, blocks - b), four_steps(first, blocks - b));
            __m256 products = _mm256_mul_ps(numbers, steps);
            _mm_storeu_ps(to->factors[t] + b, _mm256_castps256_ps128(products));
            _mm_storeu_ps(to->least[t] + b, _mm256_extractf128_ps(products, 1));
        }
    }
}

/* Heads of 16 bytes of two blocks, or of one twice. */
INLINE __m256i two_heads(const uint8_t *p, const uint64_t block_bytes, const bool two) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(two ? p + block_bytes : p), 1);
}

/* Eight scales, eight minima, of six bits: bytes 4 … 15 of the block's head (Q4_K, Q5_K). */
INLINE void scales_and_minima(const uint8_t *p, const uint64_t block_bytes, const int blocks, heads *to) {
    const __m256i low_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m256i high_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m256i low_bits = _mm256_broadcastsi128_si256(_mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    for (int b = 0; b < blocks; b += 2) {
        __m256i head = two_heads(p + (uint64_t)b * block_bytes, block_bytes, b + 1 < blocks);
        __m256i low = _mm256_srlv_epi32(_mm256_shuffle_epi8(head, low_bytes), _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4));
        __m256i high = _mm256_and_si256(_mm256_srli_epi32(_mm256_shuffle_epi8(head, high_bytes), 2), bytes(0x30));
        _mm256_storeu_si256((__m256i *)(void *)to->scales[b], _mm256_or_si256(_mm256_and_si256(low, low_bits), high));
    }
}

INLINE void heads_q2_k(const uint8_t *p, const int blocks, const token_quads x[], uint64_t chunk, const int tokens, heads *to) {
    read_factors_and_least(p + 80, 84, 0.25f, blocks, x, chunk, tokens, to); /* odd codes are times 4, and even scales */
}

/* Scales from -32 to 31. */
INLINE void heads_q3_k(const uint8_t *p, const int blocks, const token_quads x[], uint64_t chunk, const int tokens, heads *to) {
    const __m256i low_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    const __m256i high_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13));
    for (int b = 0; b < blocks; b += 2) { /* two bytes before the twelve, and two behind: the block's F16 */
        __m256i head = two_heads(p + (uint64_t)b * 110 + 94, 110, b + 1 < blocks);
        __m256i low = _mm256_srlv_epi32(_mm256_shuffle_epi8(head, low_bytes), _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4));
        __m256i high = _mm256_srlv_epi32(_mm256_shuffle_epi8(head, high_bytes), _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
        high = _mm256_slli_epi32(_mm256_and_si256(high, bytes(0x03)), 4);
        low = _mm256_or_si256(_mm256_and_si256(low, bytes(0x0f)), high);
        _mm256_storeu_si256((__m256i *)(void *)to->scales[b], _mm256_sub_epi8(low, bytes(32)));
    }
    read_factors(p + 108, 110, 0.125f, blocks, x, chunk, tokens, to); /* odd codes are times 8, and even scales */
}

INLINE void heads_q4_k(const uint8_t *p, const int blocks, const token_quads x[], uint64_t chunk, const int tokens, heads *to) {
    scales_and_minima(p, 144, blocks, to);
    read_factors_and_least(p, 144, 1, blocks, x, chunk, tokens, to);
}

INLINE void heads_q5_k(const uint8_t *p, const int blocks, const token_quads x[], uint64_t chunk, const int tokens, heads *to) {
    scales_and_minima(p, 176, blocks, to);
    read_factors_and_least(p, 176, 1, blocks, x, chunk, tokens, to);
}

INLINE void heads_q6_k(const uint8_t *p, const int blocks, const token_quads x[], uint64_t chunk, const int tokens, heads *to) {
    read_factors(p + 208, 210, 1, blocks, x, chunk, tokens, to);
}

/* ---- scales, as their products want them: a word for each two columns, or with AVX-VNNI for each four */

/* Places of a lane's four scales, `step` bytes apart from byte a on, at the words' lower ends, or at their upper ones. */
#if defined(__AVXVNNI__)
enum { SCALE_BITS = 32 };
#define LOW_ENDS(a, step) a, -1, -1, -1, a + step, -1, -1, -1, a + 2 * step, -1, -1, -1, a + 3 * step, -1, -1, -1
#define HIGH_ENDS(a, step) -1, -1, -1, a, -1, -1, -1, a + step, -1, -1, -1, a + 2 * step, -1, -1, -1, a + 3 * step
#define SHIFT_SCALES(left, v, bits) (left ? _mm256_slli_epi32(v, bits) : _mm256_srai_epi32(v, bits))
#else
enum { SCALE_BITS = 16 };
#define LOW_ENDS(a, step) a, -1, a, -1, a + step, -1, a + step, -1, a + 2 * step, -1, a + 2 * step, -1, a + 3 * step, -1, a + 3 * step, -1
#define HIGH_ENDS(a, step) -1, a, -1, a, -1, a + step, -1, a + step, -1, a + 2 * step, -1, a + 2 * step, -1, a + 3 * step, -1, a + 3 * step
#define SHIFT_SCALES(left, v, bits) (left ? _mm256_slli_epi16(v, bits) : _mm256_srai_epi16(v, bits))
#endif

#define SAME_LANES(ends, a, step) _mm256_setr_epi8(ends(a, step), ends(a, step))
#define LANES_IN_TURN(ends, a, step) _mm256_setr_epi8(ends(a, step), ends((a) + 1, step))

/* Scales of 32 columns: eight bytes in both lanes. */
INLINE __m256i scales_of_32(__m256i scales, const int odd) {
    return _mm256_shuffle_epi8(scales, odd ? SAME_LANES(LOW_ENDS, 1, 2) : SAME_LANES(LOW_ENDS, 0, 2));
}

/* Scales of 16 columns: sixteen bytes in both lanes, times 2^power. */
INLINE __m256i scales_of_16(__m256i scales, const int odd, const int power) {
    __m256i v = _mm256_shuffle_epi8(scales, odd ? LANES_IN_TURN(LOW_ENDS, 2, 4) : LANES_IN_TURN(LOW_ENDS, 0, 4));
    return power ? SHIFT_SCALES(true, v, power) : v;
}

INLINE __m256i signed_scales_of_16(__m256i scales, const int odd, const int power) {
    __m256i v = _mm256_shuffle_epi8(scales, odd ? LANES_IN_TURN(HIGH_ENDS, 2, 4) : LANES_IN_TURN(HIGH_ENDS, 0, 4));
    return SHIFT_SCALES(false, v, SCALE_BITS - 8 - power);
}

INLINE __m256i both_lanes(const uint8_t *sixteen) {
    __m256i v = _mm256_broadcastsi128_si256(load16(sixteen));
    __asm__("" : "+x"(v));
    return v;
}

#define BYTE_OF_FOUR(a) a, -1, -1, -1, (a) + 1, -1, -1, -1, (a) + 2, -1, -1, -1, (a) + 3, -1, -1, -1

/* Of sixteen bytes in both lanes, eight as numbers. */
INLINE __m256 first_eight(__m256i sixteen) {
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(sixteen, _mm256_setr_epi8(BYTE_OF_FOUR(0), BYTE_OF_FOUR(4))));
}

INLINE __m256 last_eight(__m256i sixteen) {
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(sixteen, _mm256_setr_epi8(BYTE_OF_FOUR(8), BYTE_OF_FOUR(12))));
}

/* Scales in both roles: what is subtracted is a constant of them. */
INLINE void signed_minima(const uint8_t *scales, __m256 minima[2]) {
    for (int i = 0; i < 2; i++)
        minima[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(scales + 8 * i))));
}

/* ---- codes */

INLINE __m256i field(__m256i v, const int bit, const int mask) {
    return _mm256_and_si256(bit ? _mm256_srli_epi16(v, bit) : v, bytes(mask));
}

/* Words of four of a lane's, r-th of x twice and r-th of y twice. */
INLINE void each_twice(__m256i x, __m256i y, __m256i to[4]) {
    __m256 a = _mm256_castsi256_ps(x), b = _mm256_castsi256_ps(y);
    to[0] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x00));
    to[1] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x55));
    to[2] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xaa));
    to[3] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xff));
}

/* Codes of two bits; odd ones times 4. */
INLINE void quads_q2_k(const uint8_t *p, const uint8_t *none, quads256 *to) {
    const __m256i lower_two = _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4);
    __m256i scales = both_lanes(p), minima = field(scales, 4, 0x0f), fields[4];
    (void)none;
    scales = field(scales, 0, 0x0f);
    to->scales[EVEN] = scales_of_16(scales, EVEN, 2);
    to->scales[ODD] = scales_of_16(scales, ODD, 0);
    to->minima[0] = first_eight(minima);
    to->minima[1] = last_eight(minima);
    each_twice(load32(p + 16), load32(p + 48), fields);
    for (int r = 0; r < 4; r++) {
        fields[r] = _mm256_srlv_epi32(fields[r], lower_two);
        to->codes[EVEN][r] = field(fields[r], 0, 0x03);
        to->codes[ODD][r] = field(fields[r], 0, 0x0c);
    }
}

/* Codes of three bits from 0 to 7; odd ones times 8. Two fields of two bits are spread, the second 3 up, and their high bits put above. */
INLINE void quads_q3_k(const uint8_t *p, const uint8_t *scales, quads256 *to) {
    const __m256i spread = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27));
    const __m256i first_high = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 32, 36, 0, 4, 32, 36, 0, 4, 32, 36, 0, 4, 32, 36));
    const __m256i last_high = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 32, 32, 32, 32, 36, 36, 36, 36));
    __m256i high = load32(p), first[2], last[2], both[4];
    for (int g = 0; g < 2; g++) {
        __m256i bits = load32(p + 32 + 32 * g), bit = field(high, 4 * g, 0x0f);
        first[g] = _mm256_or_si256(_mm256_shuffle_epi8(spread, field(bits, 0, 0x0f)), _mm256_shuffle_epi8(first_high, bit));
        last[g] = _mm256_or_si256(_mm256_shuffle_epi8(spread, field(bits, 4, 0x0f)), _mm256_shuffle_epi8(last_high, bit));
    }
    transpose(first[0], last[0], first[1], last[1], both);
    for (int r = 0; r < 4; r++) {
        to->codes[EVEN][r] = field(both[r], 0, 0x07);
        to->codes[ODD][r] = field(both[r], 0, 0x38);
    }
    to->scales[EVEN] = signed_scales_of_16(both_lanes(scales), EVEN, 3);
    to->scales[ODD] = signed_scales_of_16(both_lanes(scales), ODD, 0);
    signed_minima(scales, to->minima);
}

INLINE void quads_q4_k(const uint8_t *p, const uint8_t *scales, quads256 *to) {
    __m256i both[4], numbers = both_lanes(scales);
    to->scales[EVEN] = scales_of_32(numbers, EVEN);
    to->scales[ODD] = scales_of_32(numbers, ODD);
    to->minima[0] = last_eight(numbers);
    transpose(load32(p + 16), load32(p + 48), load32(p + 80), load32(p + 112), both);
    for (int r = 0; r < 4; r++) {
        to->codes[EVEN][r] = field(both[r], 0, 0x0f);
        to->codes[ODD][r] = field(both[r], 4, 0x0f);
    }
}

/* Bits [bit, bit + count) of each byte, shifted to start at bit `to`. */
INLINE __m256i bits_of(__m256i v, const int bit, const int count, const int to) {
    __m256i moved = bit > to ? _mm256_srli_epi16(v, bit - to) : bit < to ? _mm256_slli_epi16(v, to - bit) : v;
    return _mm256_and_si256(moved, bytes(((1 << count) - 1) << to));
}

INLINE void quads_q5_k(const uint8_t *p, const uint8_t *scales, quads256 *to) {
    __m256i numbers = both_lanes(scales), high = load32(p + 16), codes[2][4];
    to->scales[EVEN] = scales_of_32(numbers, EVEN);
    to->scales[ODD] = scales_of_32(numbers, ODD);
    to->minima[0] = last_eight(numbers);
    for (int b = 0; b < 4; b++) {
        __m256i nibbles = load32(p + 48 + 32 * b);
        codes[EVEN][b] = _mm256_or_si256(field(nibbles, 0, 0x0f), bits_of(high, 2 * b, 1, 4));
        codes[ODD][b] = _mm256_or_si256(field(nibbles, 4, 0x0f), bits_of(high, 2 * b + 1, 1, 4));
    }
    for (int odd = 0; odd < 2; odd++)
        transpose(codes[odd][0], codes[odd][1], codes[odd][2], codes[odd][3], to->codes[odd]);
}

INLINE void quads_q6_k(const uint8_t *p, const uint8_t *none, quads256 *to) {
    const uint8_t *scales = p + 192;
    __m256i codes[2][4];
    (void)none;
    for (int g = 0; g < 2; g++) {
        __m256i high = load32(p + 128 + 32 * g);
        for (int odd = 0; odd < 2; odd++) {
            __m256i nibbles = load32(p + 64 * g + 32 * odd);
            codes[odd][2 * g] = _mm256_or_si256(field(nibbles, 0, 0x0f), bits_of(high, 2 * odd, 2, 4));
            codes[odd][2 * g + 1] = _mm256_or_si256(field(nibbles, 4, 0x0f), bits_of(high, 4 + 2 * odd, 2, 4));
        }
    }
    for (int odd = 0; odd < 2; odd++) {
        transpose(codes[odd][0], codes[odd][1], codes[odd][2], codes[odd][3], to->codes[odd]);
        to->scales[odd] = signed_scales_of_16(both_lanes(scales), odd, 0);
    }
    signed_minima(scales, to->minima);
}

/* ---- products */

#define DIGITS(r) _mm256_load_si256((const __m256i *)(const void *)(digits + 32 * (r)))

#if defined(__AVXVNNI__)
/* codes times one digit of 128 columns, as exact integers */
INLINE __m256i digit_product(const __m256i codes[4], const int8_t *digits) {
    __m256i sum = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), codes[0], DIGITS(0));
    sum = _mm256_dpbusd_avx_epi32(sum, codes[1], DIGITS(1));
    sum = _mm256_dpbusd_avx_epi32(sum, codes[2], DIGITS(2));
    return _mm256_dpbusd_avx_epi32(sum, codes[3], DIGITS(3));
}

/* What both digits of 128 columns add to `upper` (wide only; 256 of it) and `lower`. */
INLINE void add_scaled(const __m256i codes[4], const int8_t *digits, __m256i scales, const int most, const bool wide, __m256i *upper,
                       __m256i *lower) {
    __m256i first = digit_product(codes, digits), second = digit_product(codes, digits + 128);
    (void)most;
    if (wide)
        *upper = _mm256_add_epi32(*upper, _mm256_mullo_epi32(first, scales));
    else
        second = _mm256_add_epi32(second, _mm256_slli_epi32(first, 8));
    *lower = _mm256_add_epi32(*lower, _mm256_mullo_epi32(second, scales));
}
#else
/* sum + codes of up to `most` times one digit of 128 columns times their scales, as exact integers */
INLINE __m256i add_digit(__m256i sum, const __m256i codes[4], const int8_t *digits, __m256i scales, const int most) {
    __m256i first = _mm256_add_epi16(_mm256_maddubs_epi16(codes[0], DIGITS(0)), _mm256_maddubs_epi16(codes[1], DIGITS(1)));
    __m256i second = _mm256_add_epi16(_mm256_maddubs_epi16(codes[2], DIGITS(2)), _mm256_maddubs_epi16(codes[3], DIGITS(3)));
    if (8 * 128 * most < 32768) /* they still have 16 bits */
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_add_epi16(first, second), scales));
    return _mm256_add_epi32(sum, _mm256_add_epi32(_mm256_madd_epi16(first, scales), _mm256_madd_epi16(second, scales)));
}

INLINE void add_scaled(const __m256i codes[4], const int8_t *digits, __m256i scales, const int most, const bool wide, __m256i *upper,
                       __m256i *lower) {
    (void)wide;
    *upper = add_digit(*upper, codes, digits, scales, most);
    *lower = add_digit(*lower, codes, digits + 128, scales, most);
}
#endif

/* Scales times codes times a token's 256 columns, in steps; what is not wide fits: 31 * 63 * 32 columns * 127 * 257 is less than 2^31. */
INLINE __m256 scaled_product(const quads256 *w, const int8_t *digits, const quads_form form) {
    __m256i upper = _mm256_setzero_si256(), lower = upper;
    add_scaled(w->codes[EVEN], digits, w->scales[EVEN], form.most_even, form.wide, &upper, &lower);
    add_scaled(w->codes[ODD], digits + 256, w->scales[ODD], form.most_odd, form.wide, &upper, &lower);
    if (form.wide)
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(upper), _mm256_set1_ps(256), _mm256_cvtepi32_ps(lower));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(lower, _mm256_slli_epi32(upper, 8)));
}

/* Up to eight blocks of a row. */
INLINE void add_blocks(const uint8_t *codes, const int blocks, const token_quads x[], uint64_t chunk, const int tokens,
                       const quads_form form, __m256 totals[TOGETHER]) {
    heads h;
    form.heads(codes, blocks, x, chunk, tokens, &h);
    for (int b = 0; b < blocks; b++, codes += form.bytes, chunk++) {
        quads256 w;
        fetch_from(codes + BLOCKS_AHEAD * form.bytes, form.bytes);
        form.quads(codes, h.scales[b], &w);
        for (int t = 0; t < tokens; t++) {
            const float *sums = form.of_16 ? x[t].wide_sums + 16 * chunk : x[t].sums + 8 * chunk;
            __m256 least = _mm256_mul_ps(w.minima[0], _mm256_load_ps(sums));
            if (form.of_16)
                least = _mm256_fmadd_ps(w.minima[1], _mm256_load_ps(sums + 8), least);
            __m256 product = scaled_product(&w, x[t].digits + 512 * chunk, form);
            if (form.middle)
                product = _mm256_fmadd_ps(least, _mm256_set1_ps(form.middle), product);
            else
                totals[t] = _mm256_fmadd_ps(least, _mm256_broadcast_ss(h.least[t] + b), totals[t]);
            totals[t] = _mm256_fmadd_ps(product, _mm256_broadcast_ss(h.factors[t] + b), totals[t]);
        }
    }
}

INLINE void quads_row(const mica_matrix *matrix, uint64_t row_bytes, uint64_t row, const mica_operand *x, uint64_t token, const int tokens,
                      float *out, uint64_t stride, const quads_form form) {
    const uint8_t *codes = (const uint8_t *)matrix->codes + row * row_bytes;
    const uint64_t blocks = x->padded / 256;
    token_quads of[TOGETHER];
    __m256 totals[TOGETHER];
    uint64_t b = 0;
    for (int t = 0; t < tokens; t++) {
        uint64_t at = mica_operand_row(x, token + (uint64_t)t);
        of[t] = (token_quads){x->quads + at * 2 * x->padded, x->block_sums + at * x->padded / 32, x->wide_sums + at * x->padded / 16,
                              x->scales + at * blocks};
        totals[t] = _mm256_setzero_ps();
    }
    for (; b + HEADS <= blocks; b += HEADS, codes += HEADS * form.bytes)
        add_blocks(codes, HEADS, of, b, tokens, form, totals);
    if (b < blocks) {
        int rest = (int)(blocks - b);
        __asm__("" : "+r"(rest)); /* not known: a loop */
        add_blocks(codes, rest, of, b, tokens, form, totals);
    }
    for (int t = 0; t < tokens; t++)
        out[(uint64_t)t * stride] = sum_of(totals[t]);
}

INLINE void quads_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                       const quads_form form) {
    uint64_t row_bytes = mica_matrix_row_bytes(matrix);
    for (uint64_t r = 0; r < count; r++) {
#define TOKENS(t, tokens) quads_row(matrix, row_bytes, row + r, x, t, tokens, out + t * stride + r, stride, form)
        FEW_AT_A_TIME(x->tokens, TOKENS);
#undef TOKENS
    }
}

/* name, the largest even and odd codes, minima of 16 columns, what stands for zero (0: minima of their own), wide, bytes */
#define QUADS_LIST(X)                     \
    X(q2_k, 3, 12, true, 0, false, 84)    \
    X(q3_k, 7, 56, true, 32, false, 110)  \
    X(q4_k, 15, 15, false, 0, false, 144) \
    X(q5_k, 31, 31, false, 0, false, 176) \
    X(q6_k, 63, 63, true, 32, true, 210)

#define X(name, even, odd, of_16, middle, wide, bytes)                                                                               \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {  \
        const quads_form form = {heads_##name, quads_##name, even, odd, of_16, middle, wide, bytes};                                 \
        quads_rows(matrix, row, count, x, out, stride, form);                                                                        \
    }
QUADS_LIST(X)
#undef X

#endif
