/* numerics/quantise_vector.h: sixteen floats at once, for the quantisers; one body, compiled per instruction set (LANES floats in a
 * register). `wide` is 16 floats, whatever the registers hold, for what happens once per group; `vec` is one register, for the inner loops;
 * PARTS vecs are a wide. Every operation is IEEE's, products and sums are not fused, and sums over lanes go pairwise in one order: the sets
 * give the same bits. Only the sign of a zero may differ, which nothing here looks at. Judged by tests/numerics/test_quantise.c. */
#ifndef MICA_NUMERICS_QUANTISE_VECTOR_H
#define MICA_NUMERICS_QUANTISE_VECTOR_H

#include <stdint.h>
#include <string.h>

#include "numerics/encode.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define PARTS (16 / LANES)

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t vec_i32 __attribute__((vector_size(4 * LANES)));
typedef uint8_t vec_u8 __attribute__((vector_size(LANES)));
typedef float wide __attribute__((vector_size(64)));
typedef vec vec_of_wide __attribute__((may_alias));
typedef int32_t wide_i32 __attribute__((vector_size(64)));

#if LANES == 16
#define EVERY_LANE(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}
#elif LANES == 8
#define EVERY_LANE(x) {x, x, x, x, x, x, x, x}
#else
#define EVERY_LANE(x) {x, x, x, x}
#endif

INLINE vec vec_of(float x) {
    return (vec)EVERY_LANE(x);
}
INLINE wide wide_of(float x) {
    return (wide){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
INLINE vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float *p, vec v) {
    memcpy(p, &v, sizeof v);
}
INLINE wide load_wide(const float *p) {
    wide v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_wide(float *p, wide v) {
    memcpy(p, &v, sizeof v);
}

/* minimum, maximum: the second where they are equal. nearest: to the even integer on a tie, |x| < 2^22. */
#if LANES == 16
INLINE vec minimum(vec a, vec b) {
    return _mm512_min_ps(a, b);
}
INLINE vec maximum(vec a, vec b) {
    return _mm512_max_ps(a, b);
}
INLINE vec nearest(vec a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vec choose_less(vec a, vec b, vec yes, vec no) { /* a < b ? yes : no */
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
#elif LANES == 8
INLINE vec minimum(vec a, vec b) {
    return _mm256_min_ps(a, b);
}
INLINE vec maximum(vec a, vec b) {
    return _mm256_max_ps(a, b);
}
INLINE vec nearest(vec a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vec choose_less(vec a, vec b, vec yes, vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
#else
INLINE vec choose_less(vec a, vec b, vec yes, vec no) {
    vec_i32 less = a < b;
    return (vec)((less & (vec_i32)yes) | (~less & (vec_i32)no));
}
INLINE vec minimum(vec a, vec b) {
#if defined(__SSE2__)
    return _mm_min_ps(a, b);
#else
    return choose_less(a, b, a, b);
#endif
}
INLINE vec maximum(vec a, vec b) {
#if defined(__SSE2__)
    return _mm_max_ps(a, b);
#else
    return choose_less(b, a, a, b);
#endif
}
INLINE vec nearest(vec a) {
    const vec big = vec_of(12582912.0f); /* 1.5 * 2^23: from here on floats are integers */
    return (a + big) - big;
}
#endif

/* low <= 0 < high. No NaN. As integers floats are ordered by magnitude, the negative ones above all others where they are unsigned, below
 * where they are signed; such comparisons find a port where those of floats would wait for one. */
INLINE vec clamped(vec a, float low, float high) {
#if LANES == 16
    __m512i bits = _mm512_castps_si512(a);
    bits = low < 0 ? _mm512_min_epu32(bits, _mm512_castps_si512(vec_of(low))) : _mm512_max_epi32(bits, _mm512_setzero_si512());
    return _mm512_castsi512_ps(_mm512_min_epi32(bits, _mm512_castps_si512(vec_of(high))));
#else
    return minimum(maximum(a, vec_of(low)), vec_of(high));
#endif
}
/* sum + a * b, where both are exact: integers that stay below 2^24. */
INLINE vec plus_exact_product(vec sum, vec a, vec b) {
#if LANES == 16
    return _mm512_fmadd_ps(a, b, sum);
#else
    return sum + a * b;
#endif
}
INLINE vec magnitude(vec a) {
    return (vec)((vec_i32)a & (vec_i32)EVERY_LANE(0x7fffffff));
}

/* Rounds to float16 and back; beyond 65504 stays 65504. */
INLINE vec to_half(vec a) {
    a = clamped(a, -65504, 65504);
#if LANES == 16
    return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif LANES == 8
    return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    /* 13 bits are dropped; below 2^-14 the unit is 2^-24, that of floats at 0.5. */
    vec size = magnitude(a), small = (size + vec_of(0.5f)) - vec_of(0.5f);
    vec_i32 sign = (vec_i32)a ^ (vec_i32)size, bits = (vec_i32)size;
    bits = (bits + ((bits >> 13) & 1) + 0xfff) & ~0x1fff;
    return (vec)((vec_i32)choose_less(size, vec_of(0x1p-14f), small, (vec)bits) | sign);
#endif
}

/* table[truncated index], 0 <= index < 32 */
INLINE vec lookup(const float table[32], vec index) {
    vec_i32 at = __builtin_convertvector(index, vec_i32);
#if LANES == 16
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), (__m512i)at, _mm512_loadu_ps(table + 16));
#elif LANES == 8
    vec eighth[4]; /* of each eighth entries; bits 3 and 4 choose among them: quicker than a gather */
    for (int k = 0; k < 4; k++)
        eighth[k] = _mm256_permutevar8x32_ps(load(table + 8 * k), (__m256i)at);
    vec odd = (vec)(at << 28), upper = (vec)(at << 27);
    return _mm256_blendv_ps(_mm256_blendv_ps(eighth[0], eighth[1], odd), _mm256_blendv_ps(eighth[2], eighth[3], odd), upper);
#else
    return (vec){table[at[0]], table[at[1]], table[at[2]], table[at[3]]};
#endif
}

/* The part-th register of a wide. */
INLINE vec part_of(wide a, int part) {
    return ((const vec_of_wide *)&a)[part];
}
INLINE void set_part(wide *a, int part, vec v) {
    ((vec_of_wide *)a)[part] = v;
}

#define FOR_PARTS for (int part = 0; part < PARTS; part++)
#define WIDE_UNARY(name, operation)            \
    INLINE wide name(wide a) {                 \
        wide result;                           \
        FOR_PARTS {                            \
            vec v = part_of(a, part);          \
            set_part(&result, part, operation); \
        }                                      \
        return result;                         \
    }
#define WIDE_BINARY(name, operation)                           \
    INLINE wide name(wide a, wide b) {                         \
        wide result;                                           \
        FOR_PARTS {                                            \
            vec v = part_of(a, part), u = part_of(b, part);    \
            set_part(&result, part, operation);                \
        }                                                      \
        return result;                                         \
    }
WIDE_UNARY(wide_nearest, nearest(v))
WIDE_UNARY(wide_half, to_half(v))
WIDE_UNARY(wide_magnitude, magnitude(v))
WIDE_BINARY(wide_minimum, minimum(v, u))
WIDE_BINARY(wide_maximum, maximum(v, u))

INLINE wide wide_clamped(wide a, float low, float high) {
    return wide_minimum(wide_maximum(a, wide_of(low)), wide_of(high));
}

/* Which lanes: a bit each, or all ones in an int each. */
#if LANES == 16
typedef __mmask16 lanes;
INLINE lanes less(wide a, wide b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
INLINE wide choose(lanes which, wide yes, wide no) {
    return _mm512_mask_blend_ps(which, no, yes);
}
INLINE lanes both(lanes a, lanes b) {
    return a & b;
}
#else
typedef wide lanes; /* of bits; part by part, since gcc compares what is wider than a register element by element */
INLINE lanes less(wide a, wide b) {
    lanes result;
    FOR_PARTS
        set_part(&result, part, (vec)(part_of(a, part) < part_of(b, part)));
    return result;
}
INLINE wide choose(lanes which, wide yes, wide no) {
    wide result;
    FOR_PARTS {
        vec_i32 w = (vec_i32)part_of(which, part), y = (vec_i32)part_of(yes, part), n = (vec_i32)part_of(no, part);
        set_part(&result, part, (vec)((w & y) | (~w & n)));
    }
    return result;
}
INLINE lanes both(lanes a, lanes b) {
    lanes result;
    FOR_PARTS
        set_part(&result, part, (vec)((vec_i32)part_of(a, part) & (vec_i32)part_of(b, part)));
    return result;
}
#endif

/* Where `better`, what is kept becomes the candidate. */
INLINE void keep(lanes better, wide *kept, wide candidate) {
    *kept = choose(better, candidate, *kept);
}

/* a / b, and 0 where |b| is (nearly) 0. */
INLINE wide ratio(wide a, wide b) {
    lanes some = less(wide_of(1e-30f), wide_magnitude(b));
    return choose(some, a / choose(some, b, wide_of(1)), wide_of(0));
}

/* Lane i of the result is lane i ^ distance of a. */
INLINE vec swapped(vec v, int distance) {
#if LANES == 16
    return distance == 1   ? __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
           : distance == 2 ? __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
           : distance == 4 ? __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
                           : __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
#elif LANES == 8
    return distance == 1   ? __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6)
           : distance == 2 ? __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5)
                           : __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
#else
    return distance == 1 ? __builtin_shufflevector(v, v, 1, 0, 3, 2) : __builtin_shufflevector(v, v, 2, 3, 0, 1);
#endif
}
INLINE wide wide_swapped(wide a, int distance) {
    wide result;
    FOR_PARTS {
        if (distance < LANES)
            set_part(&result, part, swapped(part_of(a, part), distance));
        else
            set_part(&result, part, part_of(a, part ^ (distance / LANES)));
    }
    return result;
}

/* Over each run of `groups` lanes (1, 8 or 16), the result in all of them. */
INLINE wide sum_over(wide a, int groups) {
    for (int distance = 1; distance < groups; distance *= 2)
        a = a + wide_swapped(a, distance);
    return a;
}
INLINE wide maximum_over(wide a, int groups) {
    for (int distance = 1; distance < groups; distance *= 2)
        a = wide_maximum(a, wide_swapped(a, distance));
    return a;
}

/* LANES x LANES, by LANES-way perfect shuffles: log2(LANES) rounds, each interleaving row i with row i + LANES / 2. */
INLINE void transpose(vec row[LANES]) {
    for (int round = 1; round < LANES; round *= 2) {
        vec next[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            vec a = row[i], b = row[i + LANES / 2];
#if LANES == 16
            next[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif LANES == 8
            next[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            next[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
            next[2 * i] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
            next[2 * i + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
        }
        memcpy(row, next, sizeof next);
    }
}

/* Floats that are integers; integers to bytes. */
INLINE vec_i32 integers(vec a) {
    return __builtin_convertvector(a, vec_i32);
}
INLINE void store_bytes(uint8_t *out, vec_i32 a) {
    vec_u8 bytes = __builtin_convertvector(a, vec_u8);
    memcpy(out, &bytes, sizeof bytes);
}

/* Bit 0 of each lane, the first lane's lowest. */
INLINE unsigned lowest_bits(vec_i32 a) {
#if LANES == 16
    return _mm512_test_epi32_mask((__m512i)a, _mm512_set1_epi32(1));
#elif LANES == 8
    return (unsigned)_mm256_movemask_ps((vec)(a << 31));
#elif defined(__SSE2__)
    return (unsigned)_mm_movemask_ps((vec)(a << 31));
#else
    unsigned bits = 0;
    for (int lane = 0; lane < LANES; lane++)
        bits |= (unsigned)(a[lane] & 1) << lane;
    return bits;
#endif
}

/* The float16 of each lane, which are floats of float16's. */
INLINE void store_halves(uint16_t out[16], wide a) {
#if LANES == 16
    _mm256_storeu_si256((__m256i *)out, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif LANES == 8
    FOR_PARTS
        _mm_storeu_si128((__m128i *)out + part, _mm256_cvtps_ph(part_of(a, part), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    for (int lane = 0; lane < 16; lane++)
        out[lane] = mica_f16_encode(a[lane]);
#endif
}

#endif
