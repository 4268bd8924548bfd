/* numerics/quantise_blocks.h: from a tile to the bytes of its blocks, one function per type, and the table of them. The including file
 * defines LANES and KERNELS (the name of the table's function). Layouts: docs/formats.md. Judged by tests/numerics/test_quantise.c. */
#include <stddef.h>

#include "numerics/encode.h"
#include "numerics/quantise_beam.h"
#include "numerics/quantise_search.h"

typedef float lane_values[MICA_TILE_GROUPS] __attribute__((aligned(64)));
typedef uint16_t lane_halves[MICA_TILE_GROUPS];

INLINE void put_half(uint8_t *out, uint16_t code) {
    out[0] = (uint8_t)code;
    out[1] = (uint8_t)(code >> 8);
}

/* Levels of consecutive elements as integers, LANES to a vector; element e of a block is in q[e / LANES]. They come from the arithmetic of
 * the passes, so that they are the levels searched with. */
INLINE void levels_above(const float *x, int n, float inverse, float offset, float top, vec_i32 *q) {
    for (int i = 0; i < n; i += LANES)
        q[i / LANES] = integers(level_above(load(x + i), vec_of(inverse), vec_of(offset), top));
}
INLINE void levels_about(const float *x, int n, float inverse, levels grid, vec_i32 *q) {
    for (int i = 0; i < n; i += LANES) {
        vec level = level_about(load(x + i) * vec_of(inverse), grid);
        q[i / LANES] = integers(grid.table ? lookup(iq4_code, iq4_bin(level)) : level - vec_of(grid.low));
    }
}

/* Bytes of two nibbles: elements j (low) and j + distance (high), for j < distance. */
INLINE void put_nibbles(uint8_t *out, const vec_i32 *q, int distance) {
    for (int j = 0; j < distance; j += LANES)
        store_bytes(out + j, (q[j / LANES] & 15) | q[(j + distance) / LANES] << 4);
}

/* Bits 4 of 32 levels, the first in the lowest bit. */
INLINE void put_fifth_bits(uint8_t *out, const vec_i32 *q) {
    uint32_t bits = 0;
    for (int j = 0; j < 32; j += LANES)
        bits |= lowest_bits(q[j / LANES] >> 4) << j;
    for (int byte = 0; byte < 4; byte++)
        out[byte] = (uint8_t)(bits >> 8 * byte);
}

/* Bits 0 and 1 of q >> shift of elements j, j + 32, j + 64, j + 96 of each half block in byte j. */
INLINE void put_pairs_of_bits(uint8_t *out, const vec_i32 *q, int shift) {
    for (int half = 0; half < 2; half++)
        for (int j = 0; j < 32; j += LANES) {
            const vec_i32 *a = q + (128 * half + j) / LANES;
            store_bytes(out + 32 * half + j, (a[0] >> shift & 3) | (a[32 / LANES] >> shift & 3) << 2 | (a[64 / LANES] >> shift & 3) << 4
                                                 | (a[96 / LANES] >> shift & 3) << 6);
        }
}

/* Bit `shift` of elements j, j + 32, …, j + 224 in byte j. */
INLINE void put_single_bits(uint8_t *out, const vec_i32 *q, int shift) {
    for (int j = 0; j < 32; j += LANES) {
        vec_i32 bits = q[j / LANES] >> shift;
        for (int k = 1; k < 8; k++)
            bits |= (q[(32 * k + j) / LANES] >> shift) << k;
        store_bytes(out + j, bits);
    }
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
    lane_values inverse, offset, scale, floor;
    lane_halves d, dmin; /* with the gain */
} found_above;

INLINE void find_above(const mica_quantise_tile *tile, shape_above shape, const float (*starts)[2], found_above *found) {
    strand strands[MICA_STRANDS];
    block_above best[MICA_STRANDS];
    load_strands(strands, tile, shape.kind);
    search_above(strands, shape, starts, tile->search, best);
    EACH_STRAND {
        const block_above b = best[k];
        const int lane = k * MICA_STRAND_GROUPS;
        wide step = b.d * b.scale, floor = b.dmin * b.floor, inverse = ratio(wide_of(1), step);
        wide gain = gain_from(strands[k].t, b.at, step, floor, shape.groups, tile->gain);
        store_wide(found->inverse + lane, inverse);
        store_wide(found->offset + lane, floor * inverse);
        store_wide(found->scale + lane, b.scale);
        store_wide(found->floor + lane, b.floor);
        store_halves(found->d + lane, wide_half(b.d * gain));
        store_halves(found->dmin + lane, wide_half(b.dmin * gain));
    }
}

INLINE void put_codes_q4_q5_k(uint8_t *block, const vec_i32 *q, int bits) {
    uint8_t *out = block + 16;
    if (bits == 5) {
        put_single_bits(out, q, 4);
        out += 32;
    }
    for (int pair = 0; pair < 4; pair++)
        put_nibbles(out + 32 * pair, q + 64 / LANES * pair, 32);
}

INLINE void tile_q4_q5_k(const mica_quantise_tile *tile, int weighted, int bits) {
    const float top = bits == 4 ? 15 : 31;
    found_above f;
    find_above(tile, (shape_above){{32, weighted}, 8, top, 63}, bits == 4 ? mica_starts_q4_k : mica_starts_q5_k, &f);
    for (int first = 0; first < MICA_TILE_GROUPS; first += 8) {
        uint8_t *out = tile->block[first];
        vec_i32 q[256 / LANES];
        if (!out)
            continue;
        for (int g = 0; g < 8; g++)
            levels_above(tile->x[first + g], 32, f.inverse[first + g], f.offset[first + g], top, q + 32 / LANES * g);
        put_half(out, f.d[first]);
        put_half(out + 2, f.dmin[first]);
        put_scales_and_floors(out + 4, f.scale + first, f.floor + first);
        put_codes_q4_q5_k(out, q, bits);
    }
}

INLINE void tile_q2_k(const mica_quantise_tile *tile, int weighted) {
    found_above f;
    find_above(tile, (shape_above){{16, weighted}, 16, 3, 15}, mica_starts_q2_k, &f);
    for (int first = 0; first < MICA_TILE_GROUPS; first += 16) {
        uint8_t *out = tile->block[first];
        vec_i32 q[256 / LANES];
        if (!out)
            continue;
        for (int g = 0; g < 16; g++) {
            levels_above(tile->x[first + g], 16, f.inverse[first + g], f.offset[first + g], 3, q + 16 / LANES * g);
            out[g] = (uint8_t)((unsigned)f.scale[first + g] | (unsigned)f.floor[first + g] << 4);
        }
        put_pairs_of_bits(out + 16, q, 0);
        put_half(out + 80, f.d[first]);
        put_half(out + 82, f.dmin[first]);
    }
}

/* ---- blocks of 256 without */

typedef struct found_about {
    lane_values inverse, scale;
    lane_halves d; /* with the gain */
} found_about;

INLINE void find_about(const mica_quantise_tile *tile, shape_about shape, const float *starts, found_about *found) {
    strand strands[MICA_STRANDS];
    block_about best[MICA_STRANDS];
    load_strands(strands, tile, shape.kind);
    search_about(strands, shape, starts, tile->search, best);
    EACH_STRAND {
        const block_about b = best[k];
        const int lane = k * MICA_STRAND_GROUPS;
        wide step = b.d * b.scale;
        wide gain = gain_from(strands[k].t, moments_of_about(samples_in(&strands[k].weights, shape.kind), b, shape.grid), step, wide_of(0),
                              shape.groups, tile->gain);
        store_wide(found->inverse + lane, ratio(wide_of(1), step));
        store_wide(found->scale + lane, b.scale);
        store_halves(found->d + lane, wide_half(b.d * gain));
    }
}

INLINE void tile_q6_k(const mica_quantise_tile *tile, int weighted) {
    const levels grid = {0, -32, 31};
    found_about f;
    find_about(tile, (shape_about){{16, weighted}, 16, -128, 127, grid}, mica_starts_q6_k, &f);
    for (int first = 0; first < MICA_TILE_GROUPS; first += 16) {
        uint8_t *out = tile->block[first];
        vec_i32 q[256 / LANES];
        if (!out)
            continue;
        for (int g = 0; g < 16; g++) {
            levels_about(tile->x[first + g], 16, f.inverse[first + g], grid, q + 16 / LANES * g);
            out[192 + g] = (uint8_t)(int8_t)f.scale[first + g];
        }
        for (int half = 0; half < 2; half++)
            put_nibbles(out + 64 * half, q + 128 / LANES * half, 64);
        put_pairs_of_bits(out + 128, q, 4);
        put_half(out + 208, f.d[first]);
    }
}

INLINE void tile_q3_k(const mica_quantise_tile *tile, int weighted) {
    const levels grid = {0, -4, 3};
    found_about f;
    find_about(tile, (shape_about){{16, weighted}, 16, -32, 31, grid}, mica_starts_q3_k, &f);
    for (int first = 0; first < MICA_TILE_GROUPS; first += 16) {
        uint8_t *out = tile->block[first];
        vec_i32 q[256 / LANES];
        if (!out)
            continue;
        uint8_t *scales = out + 96;
        memset(scales, 0, 12);
        for (int g = 0; g < 16; g++) {
            levels_about(tile->x[first + g], 16, f.inverse[first + g], grid, q + 16 / LANES * g);
            unsigned scale = (unsigned)((int)f.scale[first + g] + 32);
            scales[g % 8] |= (uint8_t)((scale & 15) << (g < 8 ? 0 : 4));
            scales[8 + g % 4] |= (uint8_t)(scale >> 4 << g / 4 * 2);
        }
        put_single_bits(out, q, 2);
        put_pairs_of_bits(out + 32, q, 0);
        put_half(out + 108, f.d[first]);
    }
}

INLINE void tile_iq4_xs(const mica_quantise_tile *tile, int weighted) {
    const levels grid = {.table = 1};
    found_about f;
    find_about(tile, (shape_about){{32, weighted}, 8, -32, 31, grid}, mica_starts_iq4, &f);
    for (int first = 0; first < MICA_TILE_GROUPS; first += 8) {
        uint8_t *out = tile->block[first];
        unsigned high = 0;
        if (!out)
            continue;
        memset(out + 4, 0, 4);
        for (int g = 0; g < 8; g++) {
            vec_i32 q[32 / LANES];
            unsigned scale = (unsigned)((int)f.scale[first + g] + 32);
            levels_about(tile->x[first + g], 32, f.inverse[first + g], grid, q);
            put_nibbles(out + 8 + 16 * g, q, 16);
            out[4 + g / 2] |= (uint8_t)((scale & 15) << g % 2 * 4);
            high |= scale >> 4 << 2 * g;
        }
        put_half(out, f.d[first]);
        out[2] = (uint8_t)high;
        out[3] = (uint8_t)(high >> 8);
    }
}

/* ---- blocks of 32 */

INLINE void put_nibbles_and_fifth_bits(uint8_t *out, const vec_i32 *q, int bits) {
    if (bits == 5) {
        put_fifth_bits(out, q);
        out += 4;
    }
    put_nibbles(out, q, 16);
}

/* Q4_0, Q5_0, IQ4_NL: d * level */
INLINE void tile_about(const mica_quantise_tile *tile, int weighted, levels grid, const float *starts, int bits) {
    const sampling kind = {32, weighted};
    lane_values inverse;
    lane_halves d;
    strand strands[MICA_STRANDS];
    load_strands(strands, tile, kind);
    fit_about(strands, kind, grid, starts, tile->search);
    EACH_STRAND {
        wide step = wide_half(strands[k].best.step), inverted = ratio(wide_of(1), step);
        moments m = moments_about(samples_in(&strands[k].weights, kind), inverted, grid);
        store_wide(inverse + k * MICA_STRAND_GROUPS, inverted);
        store_halves(d + k * MICA_STRAND_GROUPS, wide_half(step * gain_from(strands[k].t, m, step, wide_of(0), 1, tile->gain)));
    }
    for (int lane = 0; lane < MICA_TILE_GROUPS; lane++) {
        uint8_t *out = tile->block[lane];
        vec_i32 q[32 / LANES];
        if (!out)
            continue;
        levels_about(tile->x[lane], 32, inverse[lane], grid, q);
        put_half(out, d[lane]);
        put_nibbles_and_fifth_bits(out + 2, q, bits);
    }
}

/* Q4_1, Q5_1: d * q + m */
INLINE void tile_above(const mica_quantise_tile *tile, int weighted, const float (*starts)[2], int bits) {
    const float top = bits == 4 ? 15 : 31;
    const sampling kind = {32, weighted};
    lane_values inverse, offset;
    lane_halves d, bottom;
    strand strands[MICA_STRANDS];
    load_strands(strands, tile, kind);
    fit_above(strands, kind, top, 1, starts, tile->search);
    EACH_STRAND {
        const totals t = strands[k].t;
        const fit f = strands[k].best;
        const int lane = k * MICA_STRAND_GROUPS;
        wide step = wide_half(f.step), floor = wide_half((step * f.at.wq - t.wx) / t.w), inverted = ratio(wide_of(1), step);
        wide gain = gain_from(t, moments_at(samples_in(&strands[k].weights, kind), step, floor, top), step, floor, 1, tile->gain);
        store_wide(inverse + lane, inverted);
        store_wide(offset + lane, floor * inverted);
        store_halves(d + lane, wide_half(step * gain));
        store_halves(bottom + lane, wide_half(wide_of(0) - floor * gain));
    }
    for (int lane = 0; lane < MICA_TILE_GROUPS; lane++) {
        uint8_t *out = tile->block[lane];
        vec_i32 q[32 / LANES];
        if (!out)
            continue;
        levels_above(tile->x[lane], 32, inverse[lane], offset[lane], top, q);
        put_half(out, d[lane]);
        put_half(out + 2, bottom[lane]);
        put_nibbles_and_fifth_bits(out + 4, q, bits);
    }
}

/* Q8_0: the largest value at 127, or at what the starts say with a scale by least squares, or the step that was hinted at; by true error.
 * No gain: it would be 1.00001. */
INLINE void tile_q8_0(const mica_quantise_tile *tile, int weighted) {
    const levels grid = {0, -127, 127};
    strand_buffer weights[MICA_STRANDS];
    lane_values inverse;
    lane_halves d;
    samples s[MICA_STRANDS];
    wide peak[MICA_STRANDS], best[MICA_STRANDS], least[MICA_STRANDS];
    EACH_STRAND {
        s[k] = load_samples(&weights[k], tile, k, (sampling){32, weighted});
        peak[k] = wide_magnitude(signed_peak(s[k]));
        best[k] = wide_half(peak[k] * wide_of(1.0f / 127));
        least[k] = error_about(s[k], best[k], grid);
        wide hint = wide_half(load_wide(tile->hint + k * MICA_STRAND_GROUPS)), hinted = error_about(s[k], hint, grid);
        lanes better = less(hinted, least[k]);
        keep(better, &least[k], hinted);
        keep(better, &best[k], hint);
    }
    for (int start = 0; start < tile->search->starts; start++)
        EACH_STRAND {
            moments m = moments_about(s[k], ratio(wide_of(mica_starts_q8_0[start]), peak[k]), grid);
            wide step = wide_half(ratio(m.wqx, m.wqq)), error = error_about(s[k], step, grid);
            lanes better = less(error, least[k]);
            keep(better, &least[k], error);
            keep(better, &best[k], step);
        }
    EACH_STRAND {
        store_wide(inverse + k * MICA_STRAND_GROUPS, ratio(wide_of(1), best[k]));
        store_halves(d + k * MICA_STRAND_GROUPS, best[k]);
    }
    for (int lane = 0; lane < MICA_TILE_GROUPS; lane++) {
        uint8_t *out = tile->block[lane];
        if (!out)
            continue;
        put_half(out, d[lane]);
        for (int i = 0; i < 32; i += LANES)
            store_bytes(out + 2 + i, integers(level_about(load(tile->x[lane] + i) * vec_of(inverse[lane]), grid)));
    }
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

INLINE void levels_e2m1(const float *x, float inverse, vec_i32 *q) {
    const vec zero = vec_of(0), scale = vec_of(inverse);
    for (int i = 0; i < 32; i += LANES) {
        vec value = load(x + i), size = level_e2m1(minimum(magnitude(value) * scale, vec_of(64)));
        vec code = choose_less(size, vec_of(2.5f), size + size, choose_less(size, vec_of(5), size + vec_of(2), vec_of(7)));
        vec sign = choose_less(value, zero, choose_less(zero, size, vec_of(8), zero), zero);
        q[i / LANES] = integers(code + sign);
    }
}

/* For each of 16 groups the k, a binary exponent, of its MXFP4: what puts the largest value in [4, 8) or in the binades beside, by true
 * error in units of 2^k. */
INLINE wide exponents_e2m1(samples s, const mica_search *search) {
    wide_i32 exponent = (((wide_i32)wide_magnitude(signed_peak(s)) >> 23) & 255) - 129;
    const int below = search->window, above = search->starts != 0;
    wide least = wide_of(3e38f), best = wide_of(0), unit = wide_of(1), centre;
    float first[MICA_STRAND_GROUPS];
    for (int lane = 0; lane < MICA_STRAND_GROUPS; lane++)
        first[lane] = (float)(exponent[lane] < -127 ? -127 : exponent[lane]);
    centre = load_wide(first);
    for (int k = -below; k <= above; k++) {
        wide candidate = wide_clamped(centre + wide_of((float)k), -127, 125);
        wide scale = power_of_two(-__builtin_convertvector(candidate, wide_i32));
        wide error = above ? error_e2m1(s, scale) * unit : wide_of(0);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep(better, &best, candidate);
        unit = unit * wide_of(4);
    }
    return best;
}

/* MXFP4: 2^k * e2m1 */
INLINE void tile_mxfp4(const mica_quantise_tile *tile, int weighted) {
    strand_buffer weights;
    lane_values chosen, inverse;
    EACH_STRAND {
        wide best = exponents_e2m1(load_samples(&weights, tile, k, (sampling){32, weighted && tile->search->starts}), tile->search);
        store_wide(chosen + k * MICA_STRAND_GROUPS, best);
        store_wide(inverse + k * MICA_STRAND_GROUPS, power_of_two(-__builtin_convertvector(best, wide_i32)));
    }
    for (int lane = 0; lane < MICA_TILE_GROUPS; lane++) {
        uint8_t *out = tile->block[lane];
        vec_i32 q[32 / LANES];
        if (!out)
            continue;
        levels_e2m1(tile->x[lane], inverse[lane], q);
        out[0] = (uint8_t)((int)chosen[lane] + 127);
        put_nibbles(out + 1, q, 16);
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

INLINE void load_levels(const uint8_t bytes_of_levels[256], vec_i32 *q) {
    for (int i = 0; i < 256; i += LANES) {
        vec_u8 bytes;
        memcpy(&bytes, bytes_of_levels + i, sizeof bytes);
        q[i / LANES] = __builtin_convertvector(bytes, vec_i32);
    }
}
static void codes_q2_k(const uint8_t in[256], uint8_t *block) {
    vec_i32 q[256 / LANES];
    load_levels(in, q);
    put_pairs_of_bits(block + 16, q, 0);
}
static void codes_q4_k(const uint8_t in[256], uint8_t *block) {
    vec_i32 q[256 / LANES];
    load_levels(in, q);
    put_codes_q4_q5_k(block, q, 4);
}
static void codes_q5_k(const uint8_t in[256], uint8_t *block) {
    vec_i32 q[256 / LANES];
    load_levels(in, q);
    put_codes_q4_q5_k(block, q, 5);
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
    static const mica_quantise_kernels table = {.within = within, .accumulate = accumulate, .beam = beam, .put_codes = {
        [MICA_Q2_K - MICA_Q4_0] = codes_q2_k,
        [MICA_Q4_K - MICA_Q4_0] = codes_q4_k,
        [MICA_Q5_K - MICA_Q4_0] = codes_q5_k,
    }, .tile = {
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
