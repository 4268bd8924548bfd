/* numerics/quantise_blocks.h: from a tile to the bytes of its blocks, one function per type, and the table of them. The including file
 * defines LANES and KERNELS (the name of the table's function). Layouts: docs/formats.md. Judged by tests/numerics/test_quantise.c. */
#include <stddef.h>

#include "numerics/encode.h"
#include "numerics/quantise_search.h"

typedef float lane_values[MICA_TILE_GROUPS] __attribute__((aligned(64)));

INLINE void put_half(uint8_t *out, float value) {
    uint16_t code = mica_f16_encode(value);
    out[0] = (uint8_t)code;
    out[1] = (uint8_t)(code >> 8);
}

/* Levels of a group in the order of its weights: the arithmetic of the passes, so that they are the levels searched with. */
INLINE void put_levels_above(const float *x, int n, float step, float floor, float top, uint8_t *out) {
    float inverse = step > 1e-30f ? 1 / step : 0, offset = floor * inverse;
    for (int i = 0; i < n; i += LANES)
        store_bytes(out + i, level_above(load(x + i), vec_of(inverse), vec_of(offset), top));
}
INLINE float inverse_of(float step) {
    return step > 1e-30f || step < -1e-30f ? 1 / step : 0;
}
INLINE void put_levels_about(const float *x, int n, float step, levels grid, float zero, uint8_t *out) {
    float inverse = inverse_of(step);
    for (int i = 0; i < n; i += LANES) {
        vec q = level_about(load(x + i) * vec_of(inverse), grid);
        store_bytes(out + i, grid.table ? lookup(iq4_code, iq4_bin(q)) : q + vec_of(zero));
    }
}

/* 32 nibbles: j in the low half of byte j, j + 16 in the high one. */
INLINE void put_nibbles(uint8_t *out, const uint8_t *q) {
    for (int j = 0; j < 16; j++)
        out[j] = (uint8_t)((q[j] & 15) | q[j + 16] << 4);
}

/* The same, before them one word with the fifth bits. */
INLINE void put_nibbles_and_fifth_bits(uint8_t *out, const uint8_t *q, int bits) {
    if (bits == 5) {
        for (int byte = 0; byte < 4; byte++) {
            unsigned fifth = 0;
            for (int j = 0; j < 8; j++)
                fifth |= (unsigned)(q[8 * byte + j] >> 4) << j;
            out[byte] = (uint8_t)fifth;
        }
        out += 4;
    }
    put_nibbles(out, q);
}

/* ---- blocks of 256 with a minimum */

/* 8 pairs of 6 bits in 12 bytes. */
INLINE void put_scales_and_floors(uint8_t *out, const float *scale, const float *floor) {
    for (int j = 0; j < 4; j++) {
        unsigned s0 = (unsigned)scale[j], s1 = (unsigned)scale[j + 4], f0 = (unsigned)floor[j], f1 = (unsigned)floor[j + 4];
        out[j] = (uint8_t)(s0 | (s1 >> 4) << 6);
        out[j + 4] = (uint8_t)(f0 | (f1 >> 4) << 6);
        out[j + 8] = (uint8_t)((s1 & 15) | (f1 & 15) << 4);
    }
}

typedef struct found_above {
    lane_values d, dmin, scale, floor, stored_d, stored_dmin;
} found_above;

INLINE void find_above(const mica_quantise_tile *tile, int n, int weighted, shape_above shape, const float (*starts)[2], found_above *found) {
    tile_buffer buffer;
    samples s = load_samples(&buffer, tile, n, weighted);
    totals t = totals_of(s);
    block_above b = search_above(s, t, shape, starts, tile->search);
    wide gain = gain_from(t, moments_of(s, b, shape.top), b.d * b.scale, b.dmin * b.floor, shape.groups, tile->gain);
    store_wide(found->d, b.d);
    store_wide(found->dmin, b.dmin);
    store_wide(found->scale, b.scale);
    store_wide(found->floor, b.floor);
    store_wide(found->stored_d, wide_half(b.d * gain));
    store_wide(found->stored_dmin, wide_half(b.dmin * gain));
}

INLINE void tile_q4_q5_k(const mica_quantise_tile *tile, int weighted, int bits) {
    const float top = bits == 4 ? 15 : 31;
    found_above f;
    find_above(tile, 32, weighted, (shape_above){8, top, 63}, bits == 4 ? mica_starts_q4_k : mica_starts_q5_k, &f);
    for (int first = 0; first < MICA_TILE_GROUPS; first += 8) {
        uint8_t *out = tile->block[first], q[256];
        if (!out)
            continue;
        for (int g = 0; g < 8; g++) {
            int lane = first + g;
            put_levels_above(tile->x[lane], 32, f.d[lane] * f.scale[lane], f.dmin[lane] * f.floor[lane], top, q + 32 * g);
        }
        put_half(out, f.stored_d[first]);
        put_half(out + 2, f.stored_dmin[first]);
        put_scales_and_floors(out + 4, f.scale + first, f.floor + first);
        out += 16;
        if (bits == 5) {
            for (int j = 0; j < 32; j++) {
                unsigned high = 0;
                for (int g = 0; g < 8; g++)
                    high |= (unsigned)(q[32 * g + j] >> 4) << g;
                out[j] = (uint8_t)high;
            }
            out += 32;
        }
        for (int pair = 0; pair < 4; pair++)
            for (int j = 0; j < 32; j++)
                out[32 * pair + j] = (uint8_t)((q[64 * pair + j] & 15) | q[64 * pair + 32 + j] << 4);
    }
}

/* Two bits each of elements j, j + 32, j + 64, j + 96 of a half block in byte j. */
INLINE void put_pairs_of_bits(uint8_t *out, const uint8_t *q, int shift) {
    for (int half = 0; half < 2; half++)
        for (int j = 0; j < 32; j++) {
            const uint8_t *a = q + 128 * half + j;
            out[32 * half + j] = (uint8_t)((a[0] >> shift & 3) | (a[32] >> shift & 3) << 2 | (a[64] >> shift & 3) << 4 | (a[96] >> shift & 3) << 6);
        }
}

INLINE void tile_q2_k(const mica_quantise_tile *tile, int weighted) {
    found_above f;
    uint8_t *out = tile->block[0], q[256];
    find_above(tile, 16, weighted, (shape_above){16, 3, 15}, mica_starts_q2_k, &f);
    for (int g = 0; g < 16; g++) {
        put_levels_above(tile->x[g], 16, f.d[g] * f.scale[g], f.dmin[g] * f.floor[g], 3, q + 16 * g);
        out[g] = (uint8_t)((unsigned)f.scale[g] | (unsigned)f.floor[g] << 4);
    }
    put_pairs_of_bits(out + 16, q, 0);
    put_half(out + 80, f.stored_d[0]);
    put_half(out + 82, f.stored_dmin[0]);
}

/* ---- blocks of 256 without */

typedef struct found_about {
    lane_values d, scale, stored_d;
} found_about;

INLINE void find_about(const mica_quantise_tile *tile, int n, int weighted, shape_about shape, const float *starts, found_about *found) {
    tile_buffer buffer;
    samples s = load_samples(&buffer, tile, n, weighted);
    totals t = totals_of(s);
    block_about b = search_about(s, shape, starts, tile->search);
    wide gain = gain_from(t, moments_of_about(s, b, shape.grid), b.d * b.scale, wide_of(0), shape.groups, tile->gain);
    store_wide(found->d, b.d);
    store_wide(found->scale, b.scale);
    store_wide(found->stored_d, wide_half(b.d * gain));
}

INLINE void tile_q6_k(const mica_quantise_tile *tile, int weighted) {
    const levels grid = {0, -32, 31};
    found_about f;
    uint8_t *out = tile->block[0], q[256];
    find_about(tile, 16, weighted, (shape_about){16, -128, 127, grid}, mica_starts_q6_k, &f);
    for (int g = 0; g < 16; g++) {
        put_levels_about(tile->x[g], 16, f.d[g] * f.scale[g], grid, 32, q + 16 * g);
        out[192 + g] = (uint8_t)(int8_t)f.scale[g];
    }
    for (int half = 0; half < 2; half++)
        for (int j = 0; j < 32; j++) {
            const uint8_t *a = q + 128 * half + j;
            out[64 * half + j] = (uint8_t)((a[0] & 15) | a[64] << 4);
            out[64 * half + 32 + j] = (uint8_t)((a[32] & 15) | a[96] << 4);
        }
    put_pairs_of_bits(out + 128, q, 4);
    put_half(out + 208, f.stored_d[0]);
}

INLINE void tile_q3_k(const mica_quantise_tile *tile, int weighted) {
    const levels grid = {0, -4, 3};
    found_about f;
    uint8_t *out = tile->block[0], *scales = out + 96, q[256];
    find_about(tile, 16, weighted, (shape_about){16, -32, 31, grid}, mica_starts_q3_k, &f);
    memset(scales, 0, 12);
    for (int g = 0; g < 16; g++) {
        put_levels_about(tile->x[g], 16, f.d[g] * f.scale[g], grid, 4, q + 16 * g);
        unsigned scale = (unsigned)((int)f.scale[g] + 32);
        scales[g % 8] |= (uint8_t)((scale & 15) << (g < 8 ? 0 : 4));
        scales[8 + g % 4] |= (uint8_t)(scale >> 4 << g / 4 * 2);
    }
    for (int j = 0; j < 32; j++) {
        unsigned high = 0;
        for (int k = 0; k < 8; k++)
            high |= (unsigned)(q[32 * k + j] >> 2) << k;
        out[j] = (uint8_t)high;
    }
    put_pairs_of_bits(out + 32, q, 0);
    put_half(out + 108, f.stored_d[0]);
}

INLINE void tile_iq4_xs(const mica_quantise_tile *tile, int weighted) {
    const levels grid = {.table = 1};
    found_about f;
    find_about(tile, 32, weighted, (shape_about){8, -32, 31, grid}, mica_starts_iq4, &f);
    for (int first = 0; first < MICA_TILE_GROUPS; first += 8) {
        uint8_t *out = tile->block[first], q[32];
        unsigned high = 0;
        if (!out)
            continue;
        memset(out + 4, 0, 4);
        for (int g = 0; g < 8; g++) {
            unsigned scale = (unsigned)((int)f.scale[first + g] + 32);
            put_levels_about(tile->x[first + g], 32, f.d[first] * f.scale[first + g], grid, 0, q);
            put_nibbles(out + 8 + 16 * g, q);
            out[4 + g / 2] |= (uint8_t)((scale & 15) << g % 2 * 4);
            high |= scale >> 4 << 2 * g;
        }
        put_half(out, f.stored_d[first]);
        out[2] = (uint8_t)high;
        out[3] = (uint8_t)(high >> 8);
    }
}

/* ---- blocks of 32 */

/* Q4_0, Q5_0, IQ4_NL: d * level */
INLINE void tile_about(const mica_quantise_tile *tile, int weighted, levels grid, const float *starts, int bits) {
    tile_buffer buffer;
    lane_values d, stored_d;
    samples s = load_samples(&buffer, tile, 32, weighted);
    totals t = totals_of(s);
    wide step = wide_half(fit_about(s, grid, starts, tile->search).step);
    moments m = moments_about(s, ratio(wide_of(1), step), grid);
    store_wide(d, step);
    store_wide(stored_d, wide_half(step * gain_from(t, m, step, wide_of(0), 1, tile->gain)));
    for (int lane = 0; lane < MICA_TILE_GROUPS; lane++) {
        uint8_t *out = tile->block[lane], q[32];
        if (!out)
            continue;
        put_levels_about(tile->x[lane], 32, d[lane], grid, -grid.low, q);
        put_half(out, stored_d[lane]);
        put_nibbles_and_fifth_bits(out + 2, q, bits);
    }
}

/* Q4_1, Q5_1: d * q + m */
INLINE void tile_above(const mica_quantise_tile *tile, int weighted, const float (*starts)[2], int bits) {
    const float top = bits == 4 ? 15 : 31;
    tile_buffer buffer;
    lane_values d, floor, stored_d, stored_m;
    samples s = load_samples(&buffer, tile, 32, weighted);
    totals t = totals_of(s);
    fit f = fit_above(s, t, top, 1, starts, tile->search);
    wide step = wide_half(f.step), bottom = wide_half((step * f.at.wq - t.wx) / t.w);
    moments m = moments_at(s, step, bottom, top);
    wide gain = gain_from(t, m, step, bottom, 1, tile->gain);
    store_wide(d, step);
    store_wide(floor, bottom);
    store_wide(stored_d, wide_half(step * gain));
    store_wide(stored_m, wide_half(wide_of(0) - bottom * gain));
    for (int lane = 0; lane < MICA_TILE_GROUPS; lane++) {
        uint8_t *out = tile->block[lane], q[32];
        if (!out)
            continue;
        put_levels_above(tile->x[lane], 32, d[lane], floor[lane], top, q);
        put_half(out, stored_d[lane]);
        put_half(out + 2, stored_m[lane]);
        put_nibbles_and_fifth_bits(out + 4, q, bits);
    }
}

INLINE void put_block_q8_0(uint8_t *out, const float *x, float d) {
    put_half(out, d);
    put_levels_about(x, 32, d, (levels){0, -127, 127}, 0, out + 2);
}

/* Q8_0: the largest value at 127, or at what the starts say with a scale by least squares; by true error. No gain: it would be 1.00001. */
INLINE void tile_q8_0(const mica_quantise_tile *tile, int weighted) {
    const levels grid = {0, -127, 127};
    tile_buffer buffer;
    lane_values d;
    samples s = load_samples(&buffer, tile, 32, weighted && tile->search->starts);
    wide peak = wide_magnitude(signed_peak(s)), best = wide_half(peak * wide_of(1.0f / 127));
    wide least = error_about(s, best, grid);
    for (int k = 0; k < tile->search->starts; k++) {
        moments m = moments_about(s, ratio(wide_of(mica_starts_q8_0[k]), peak), grid);
        wide step = wide_half(ratio(m.wqx, m.wqq)), error = error_about(s, step, grid);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep(better, &best, step);
    }
    store_wide(d, best);
    for (int lane = 0; lane < MICA_TILE_GROUPS; lane++)
        if (tile->block[lane])
            put_block_q8_0(tile->block[lane], tile->x[lane], d[lane]);
}

/* The value nearest to `size` >= 0 among 0 0.5 1 1.5 2 3 4 6. */
INLINE vec level_e2m1(vec size) {
    const vec half = vec_of(0.5f);
    vec fine = nearest(size + size) * half, middle = nearest(size), coarse = minimum(nearest(size * half), vec_of(3));
    return choose_less(size, vec_of(1.75f), fine, choose_less(size, vec_of(3.5f), middle, coarse + coarse));
}

INLINE wide error_e2m1(samples s, wide inverse) {
    wide error;
    FOR_PARTS {
        vec scale = part_of(inverse, part), sum[2] = {vec_of(0), vec_of(0)};
        EACH_WEIGHT {
            vec size = minimum(magnitude(load(s.x + i)) * scale, vec_of(64)), off = size - level_e2m1(size);
            sum[even] += WEIGHTED(off) * off;
        }
        set_part(&error, part, sum[0] + sum[1]);
    }
    return error;
}

/* 2^k, -126 <= k <= 127 */
INLINE wide power_of_two(wide_i32 k) {
    return (wide)((k + 127) << 23);
}

INLINE void put_levels_e2m1(const float *x, float inverse, uint8_t *out) {
    const vec zero = vec_of(0), scale = vec_of(inverse);
    for (int i = 0; i < 32; i += LANES) {
        vec value = load(x + i), size = level_e2m1(minimum(magnitude(value) * scale, vec_of(64)));
        vec code = choose_less(size, vec_of(2.5f), size + size, choose_less(size, vec_of(5), size + vec_of(2), vec_of(7)));
        vec sign = choose_less(value, zero, choose_less(zero, size, vec_of(8), zero), zero);
        store_bytes(out + i, code + sign);
    }
}

/* MXFP4: 2^k * e2m1, k that puts the largest value in [4, 8) or in the binades beside, by true error in units of 2^k. */
INLINE void tile_mxfp4(const mica_quantise_tile *tile, int weighted) {
    tile_buffer buffer;
    samples s = load_samples(&buffer, tile, 32, weighted && tile->search->starts);
    wide_i32 exponent = (((wide_i32)wide_magnitude(signed_peak(s)) >> 23) & 255) - 129;
    int below = tile->search->window, above = tile->search->starts != 0;
    wide least = wide_of(3e38f), best = wide_of(0), unit = wide_of(1);
    lane_values chosen, inverse, first;
    for (int lane = 0; lane < MICA_TILE_GROUPS; lane++)
        first[lane] = (float)(exponent[lane] < -127 ? -127 : exponent[lane]);
    wide centre = load_wide(first);
    for (int k = -below; k <= above; k++) {
        wide candidate = wide_clamped(centre + wide_of((float)k), -127, 125);
        wide scale = power_of_two(-__builtin_convertvector(candidate, wide_i32));
        wide error = above ? error_e2m1(s, scale) * unit : wide_of(0);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep(better, &best, candidate);
        unit = unit * wide_of(4);
    }
    store_wide(chosen, best);
    store_wide(inverse, power_of_two(-__builtin_convertvector(best, wide_i32)));
    for (int lane = 0; lane < MICA_TILE_GROUPS; lane++) {
        uint8_t *out = tile->block[lane], q[32];
        if (!out)
            continue;
        put_levels_e2m1(tile->x[lane], inverse[lane], q);
        out[0] = (uint8_t)((int)chosen[lane] + 127);
        put_nibbles(out + 1, q);
    }
}

static bool within(const float *x, uint64_t count, float limit) {
    uint64_t i = 0;
    vec_i32 outside = {0};
    for (; i + LANES <= count; i += LANES)
        outside |= ~(magnitude(load(x + i)) <= vec_of(limit));
    bool all = true;
    for (int lane = 0; lane < LANES; lane++)
        all &= !outside[lane];
    for (; i < count; i++)
        all &= x[i] >= -limit && x[i] <= limit;
    return all;
}

/* ---- the table */

#define BOTH(name, call, ...)                                           \
    static void name##_plain(const mica_quantise_tile *tile) {          \
        call(tile, 0 __VA_ARGS__);                                      \
    }                                                                   \
    static void name##_weighted(const mica_quantise_tile *tile) {       \
        call(tile, 1 __VA_ARGS__);                                      \
    }
static const levels grid_q4_0 = {0, -8, 7}, grid_q5_0 = {0, -16, 15}, grid_iq4 = {1, 0, 0};
BOTH(q4_0, tile_about, , grid_q4_0, mica_starts_q4_0, 4)
BOTH(q4_1, tile_above, , mica_starts_q4_1, 4)
BOTH(q5_0, tile_about, , grid_q5_0, mica_starts_q5_0, 5)
BOTH(q5_1, tile_above, , mica_starts_q5_1, 5)
BOTH(q8_0, tile_q8_0)
BOTH(q2_k, tile_q2_k)
BOTH(q3_k, tile_q3_k)
BOTH(q4_k, tile_q4_q5_k, , 4)
BOTH(q5_k, tile_q4_q5_k, , 5)
BOTH(q6_k, tile_q6_k)
BOTH(iq4_nl, tile_about, , grid_iq4, mica_starts_iq4, 4)
BOTH(iq4_xs, tile_iq4_xs)
BOTH(mxfp4, tile_mxfp4)

#define ROW(type, name) [MICA_##type - MICA_Q4_0] = {name##_plain, name##_weighted}
const mica_quantise_kernels *KERNELS(void) {
    static const mica_quantise_kernels table = {.within = within, .tile = {
        ROW(Q4_0, q4_0),
        ROW(Q4_1, q4_1),
        ROW(Q5_0, q5_0),
        ROW(Q5_1, q5_1),
        ROW(Q8_0, q8_0),
        ROW(Q2_K, q2_k),
        ROW(Q3_K, q3_k),
        ROW(Q4_K, q4_k),
        ROW(Q5_K, q5_k),
        ROW(Q6_K, q6_k),
        ROW(IQ4_NL, iq4_nl),
        ROW(IQ4_XS, iq4_xs),
        ROW(MXFP4, mxfp4),
    }};
    return &table;
}
