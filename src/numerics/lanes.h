/* numerics/lanes.h: 16 floats side by side (or LANES of them), for kernels written once and compiled for each instruction set. */
#ifndef MICA_NUMERICS_LANES_H
#define MICA_NUMERICS_LANES_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#ifndef LANES
#define LANES 16
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef float half_lanes __attribute__((vector_size(2 * LANES)));

/* Beyond `count` the lanes are zero on the way in and dropped on the way out. */
INLINE lanes load(const float *x, uint64_t count) {
    lanes v = {0};
    memcpy(&v, x, count < LANES ? count * sizeof *x : sizeof v);
    return v;
}

INLINE void store(float *x, lanes v, uint64_t count) {
    memcpy(x, &v, count < LANES ? count * sizeof *x : sizeof v);
}

INLINE lanes load_bf16(const uint16_t *x, uint64_t count) {
    halves h = {0};
    memcpy(&h, x, count < LANES ? count * sizeof *x : sizeof h);
    return (lanes)(__builtin_convertvector(h, words) << 16);
}

INLINE lanes splat(float value) {
    return value - (lanes){0};
}

INLINE lanes select_lanes(integers mask, lanes yes, lanes no) {
    return (lanes)((mask & (integers)yes) | (~mask & (integers)no));
}

/* To bf16, nearest even, in the upper halves; NaN stays NaN. The instruction for it takes subnormal numbers for zero. */
INLINE words round_to_bf16(lanes v) {
#if defined(__AVX512BF16__) && LANES == 16
    return (words)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v)), 16);
#else
    words bits = (words)v, rounded = bits + 0x7fffu + (bits >> 16 & 1u), quiet = bits | 0x400000u, nan = (words)(v != v);
    return ((nan & quiet) | (~nan & rounded)) & 0xffff0000u;
#endif
}

/* e^x to 2 units in the last place (2 ln 2 of argument reduction, Taylor's polynomial to r^7, |r| <= 0.35: 5e-9); 0 below -86.5 (2.7e-38). */
INLINE lanes exponential(lanes x) {
    const float magic = 0x1.8p23f; /* adding it leaves the nearest integer in the low bits */
    lanes clamped = select_lanes(x > 88.75f, splat(88.75f), x);
    clamped = select_lanes(clamped < -86.5f, splat(-86.5f), clamped);
    lanes shifted = clamped * 0x1.715476p0f + magic, n = shifted - magic;
    lanes r = clamped - n * 0x1.62e4p-1f;
    r = r - n * 0x1.7f7d1cp-20f;
    lanes p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    integers exponent = (integers)shifted - (integers)splat(magic);
    lanes value = p * (lanes)((exponent + 126) << 23) * 2.0f; /* in two steps: 2^128 is none */
    return select_lanes(x < -86.5f, splat(0), value);
}

#endif
