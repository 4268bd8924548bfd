/* numerics/quantise_fit.h: a tile in registers' order, the passes over it, and the fit of one real scale (and minimum) to each group.
 * The inner loops of all quantisers are the four passes here. Formulas: docs/quantisers.md. Judged by tests/numerics/test_quantise.c. */
#ifndef MICA_NUMERICS_QUANTISE_FIT_H
#define MICA_NUMERICS_QUANTISE_FIT_H

#include "numerics/quantise_kernels.h"
#include "numerics/quantise_vector.h"

/* What runs over all weights of a strand. Inlined where a wide is a register or two; else a call costs little and keeps the code small. */
#if PARTS <= 2
#define PASS INLINE
#else
#define PASS static __attribute__((noinline))
#endif

/* A weight's share is at least this part of the mean: a column without importance still decodes to something like itself. */
#define LEAST_IMPORTANCE 1e-3f

#define EACH_STRAND for (int k = 0; k < MICA_STRANDS; k++)

typedef struct strand_buffer {
    _Alignas(64) float x[32 * MICA_STRAND_GROUPS], w[32 * MICA_STRAND_GROUPS];
} strand_buffer;

typedef struct samples {
    const float *x; /* [n][group] */
    const float *w; /* likewise; NULL: 1 */
    int n;          /* weights of a group: 16 or 32 */
} samples;

/* Per group. */
typedef struct totals {
    wide w, wx, wxx;
} totals;
typedef struct moments {
    wide wq, wqq, wqx;
} moments;

PASS void load_transposed(const float *const group[MICA_STRAND_GROUPS], int n, float *out) {
    for (int first = 0; first < MICA_STRAND_GROUPS; first += LANES)
        for (int i = 0; i < n; i += LANES) {
            vec row[LANES];
            for (int k = 0; k < LANES; k++)
                row[k] = load(group[first + k] + i);
            transpose(row);
            for (int k = 0; k < LANES; k++)
                store(out + (i + k) * MICA_STRAND_GROUPS + first, row[k]);
        }
}

/* What the weights of a tile are: constants where the passes are compiled. */
typedef struct sampling {
    int n, weighted;
} sampling;

INLINE samples samples_in(const strand_buffer *buffer, sampling kind) {
    return (samples){buffer->x, kind.weighted ? buffer->w : NULL, kind.n};
}

INLINE samples load_samples(strand_buffer *buffer, const mica_quantise_tile *tile, int k, sampling kind) {
    load_transposed(tile->x + k * MICA_STRAND_GROUPS, kind.n, buffer->x);
    if (kind.weighted) {
        load_transposed(tile->importance + k * MICA_STRAND_GROUPS, kind.n, buffer->w);
        for (float *w = buffer->w; w < buffer->w + kind.n * MICA_STRAND_GROUPS; w += LANES)
            store(w, maximum(load(w) * vec_of(tile->importance_factor), vec_of(LEAST_IMPORTANCE)));
    }
    return samples_in(buffer, kind);
}

/* Over the weights of the part's groups, with two sets of sums in turn, so that additions need not wait for each other. */
#define EACH_WEIGHT                                                                                          \
    for (int pair = part * LANES; pair < s.n * MICA_STRAND_GROUPS; pair += 2 * MICA_STRAND_GROUPS)           \
        _Pragma("GCC unroll 2") for (int even = 0, i = pair; even < 2; even++, i += MICA_STRAND_GROUPS)
#define WEIGHTED(value) (s.w ? load(s.w + i) * (value) : (value))

PASS totals totals_of(samples s) {
    totals t;
    FOR_PARTS {
        vec w = vec_of(0), wx = w, wxx = w;
        EACH_WEIGHT {
            vec x = load(s.x + i), share = WEIGHTED(x);
            wx += share;
            wxx += share * x;
            if (s.w)
                w += load(s.w + i);
        }
        set_part(&t.w, part, s.w ? w : vec_of((float)s.n));
        set_part(&t.wx, part, wx);
        set_part(&t.wxx, part, wxx);
    }
    return t;
}

INLINE void range_of(samples s, wide *low, wide *high) {
    FOR_PARTS {
        vec least = load(s.x + part * LANES), most = least;
        EACH_WEIGHT {
            least = minimum(least, load(s.x + i));
            most = maximum(most, load(s.x + i));
        }
        set_part(low, part, least);
        set_part(high, part, most);
    }
}

/* ---- values step * q - floor, 0 <= q <= top */

INLINE vec level_above(vec x, vec inverse, vec offset, float top) {
    return nearest(clamped(x * inverse + offset, 0, top));
}

PASS moments moments_above(samples s, wide inverse, wide offset, float top) {
    moments m;
    FOR_PARTS {
        vec scale = part_of(inverse, part), shift = part_of(offset, part), wq[2] = {vec_of(0), vec_of(0)}, wqq[2] = {wq[0], wq[0]},
            wqx[2] = {wq[0], wq[0]};
        EACH_WEIGHT {
            vec x = load(s.x + i), q = level_above(x, scale, shift, top), share = WEIGHTED(q);
            wq[even] = s.w ? wq[even] + share : plus_exact_product(wq[even], q, vec_of(1));
            wqq[even] = s.w ? wqq[even] + share * q : plus_exact_product(wqq[even], q, q);
            wqx[even] += share * x;
        }
        set_part(&m.wq, part, wq[0] + wq[1]);
        set_part(&m.wqq, part, wqq[0] + wqq[1]);
        set_part(&m.wqx, part, wqx[0] + wqx[1]);
    }
    return m;
}

INLINE moments moments_at(samples s, wide step, wide floor, float top) {
    wide inverse = ratio(wide_of(1), step);
    return moments_above(s, inverse, floor * inverse, top);
}

/* Weighted squared error at the nearest levels. */
PASS wide error_above(samples s, wide step, wide floor, float top) {
    wide inverse = ratio(wide_of(1), step), offset = floor * inverse, error;
    FOR_PARTS {
        vec scale = part_of(inverse, part), shift = part_of(offset, part), unit = part_of(step, part), bottom = part_of(floor, part);
        vec sum[2] = {vec_of(0), vec_of(0)};
        EACH_WEIGHT {
            vec x = load(s.x + i), off = (x + bottom) - unit * level_above(x, scale, shift, top);
            sum[even] += WEIGHTED(off) * off;
        }
        set_part(&error, part, sum[0] + sum[1]);
    }
    return error;
}

/* The same from the moments of fixed levels. */
INLINE wide error_from(totals t, moments m, wide step, wide floor) {
    return t.wxx + step * (step * m.wqq - (m.wqx + m.wqx)) + floor * (floor * t.w + (t.wx + t.wx) - (step + step) * m.wq);
}

typedef struct fit {
    wide step, floor, explained; /* explained: weighted energy less the error */
    moments at;
} fit;

/* What is known of a strand. */
typedef struct strand {
    strand_buffer weights;
    totals t;
    fit best;
} strand;

INLINE void load_strands(strand *strands, const mica_quantise_tile *tile, sampling kind) {
    EACH_STRAND
        strands[k].t = totals_of(load_samples(&strands[k].weights, tile, k, kind));
}

/* Least squares at fixed levels; floor >= 0 unless `signed_floor`. */
INLINE fit solved(totals t, moments m, int signed_floor) {
    fit f = {.at = m};
    wide determinant = t.w * m.wqq - m.wq * m.wq, zero = wide_of(0);
    lanes sound = less(wide_of(1e-6f) * (t.w * m.wqq), determinant);
    wide inverse = ratio(wide_of(1), choose(sound, determinant, zero));
    wide step = (t.w * m.wqx - m.wq * t.wx) * inverse, floor = (m.wq * m.wqx - m.wqq * t.wx) * inverse;
    lanes usable = less(zero, step);
    if (!signed_floor)
        usable = both(usable, less(zero, floor));
    f.step = wide_maximum(choose(usable, step, ratio(m.wqx, m.wqq)), zero);
    f.floor = choose(usable, floor, zero);
    f.explained = f.step * m.wqx - f.floor * t.wx;
    return f;
}

INLINE void keep_fit(fit *best, fit candidate) {
    lanes better = less(best->explained, candidate.explained);
    keep(better, &best->explained, candidate.explained);
    keep(better, &best->step, candidate.step);
    keep(better, &best->floor, candidate.floor);
    keep(better, &best->at.wq, candidate.at.wq);
    keep(better, &best->at.wqq, candidate.at.wqq);
    keep(better, &best->at.wqx, candidate.at.wqx);
}

/* From each start the levels, from these a fit; the best one polished by fits to its own levels. */
INLINE void fit_above(strand *strands, sampling kind, float top, int signed_floor, const float (*starts)[2], const mica_search *search) {
    const wide one = wide_of(1), zero = wide_of(0);
    wide low[MICA_STRANDS], unit[MICA_STRANDS];
    EACH_STRAND {
        wide high;
        range_of(samples_in(&strands[k].weights, kind), &low[k], &high);
        if (!signed_floor) {
            low[k] = wide_minimum(low[k], zero);
            high = wide_maximum(high, zero);
        }
        unit[k] = (high - low[k]) * wide_of(1 / top);
        strands[k].best = (fit){.floor = zero - low[k], .explained = wide_of(-1e30f)};
    }
    for (int start = 0; start < search->starts; start++)
        EACH_STRAND {
            wide inverse = ratio(one, unit[k] * wide_of(1 - (starts[start][0] + starts[start][1]) / top));
            wide offset = (zero - (low[k] + unit[k] * wide_of(starts[start][0]))) * inverse;
            keep_fit(&strands[k].best,
                     solved(strands[k].t, moments_above(samples_in(&strands[k].weights, kind), inverse, offset, top), signed_floor));
        }
    for (int round = 0; round < search->polish; round++)
        EACH_STRAND {
            const fit now = strands[k].best;
            keep_fit(&strands[k].best,
                     solved(strands[k].t, moments_at(samples_in(&strands[k].weights, kind), now.step, now.floor, top), signed_floor));
        }
}

/* ---- values step * level, levels integers from `low` to `high` or those of IQ4's table; step of either sign */

typedef struct levels {
    int table;
    float low, high;
} levels;

/* IQ4's level nearest to t: in each of 32 bins of width 8 at most one boundary between levels. */
static const float iq4_boundary[32] = {1000, -115.5f, 1000, 1000, -93.5f, 1000, -74,  1000, -57,   1000, -42,
                                       1000, -28.5f,  1000, 1000, -4.5f,  7,    1000, 19,   31.5f, 1000, 45.5f,
                                       1000, 61,      1000, 79,   1000,   1000, 101,  1000, 1000,  1000};
static const float iq4_below[32] = {-127, -127, -104, -104, -104, -83, -83, -65, -65, -49, -49, -35, -35, -22, -10, -10,
                                    1,    13,   13,   25,   38,   38,  53,  53,  69,  69,  89,  89,  89,  113, 113, 113};
static const float iq4_above[32] = {-127, -104, -104, -104, -83, -83, -65, -65, -49, -49, -35, -35, -22, -22, -10, 1,
                                    13,   13,   25,   38,   38,  53,  53,  69,  69,  89,  89,  89,  113, 113, 113, 113};
static const float iq4_code[32] = {0, 0, 1, 1,  1,  2,  2,  3,  3,  4,  4,  5,  5,  6,  7,  7,
                                   8, 9, 9, 10, 11, 11, 12, 12, 13, 13, 14, 14, 14, 15, 15, 15};

INLINE vec iq4_bin(vec t) {
    return t * vec_of(0.125f) + vec_of(16);
}
INLINE vec level_iq4(vec t) {
    t = clamped(t, -128, 127.9f);
    vec bin = iq4_bin(t);
    return choose_less(t, lookup(iq4_boundary, bin), lookup(iq4_below, bin), lookup(iq4_above, bin));
}

INLINE vec level_about(vec t, levels grid) {
    if (!grid.table)
        return nearest(clamped(t, grid.low, grid.high));
    return level_iq4(t);
}

PASS moments moments_about(samples s, wide inverse, levels grid) {
    moments m = {.wq = wide_of(0)};
    FOR_PARTS {
        vec scale = part_of(inverse, part), wqq[2] = {vec_of(0), vec_of(0)}, wqx[2] = {wqq[0], wqq[0]};
        EACH_WEIGHT {
            vec x = load(s.x + i), q = level_about(x * scale, grid), share = WEIGHTED(q);
            wqq[even] = s.w ? wqq[even] + share * q : plus_exact_product(wqq[even], q, q);
            wqx[even] += share * x;
        }
        set_part(&m.wqq, part, wqq[0] + wqq[1]);
        set_part(&m.wqx, part, wqx[0] + wqx[1]);
    }
    return m;
}

PASS wide error_about(samples s, wide step, levels grid) {
    wide inverse = ratio(wide_of(1), step), error;
    FOR_PARTS {
        vec scale = part_of(inverse, part), unit = part_of(step, part), sum[2] = {vec_of(0), vec_of(0)};
        EACH_WEIGHT {
            vec x = load(s.x + i), off = x - unit * level_about(x * scale, grid);
            sum[even] += WEIGHTED(off) * off;
        }
        set_part(&error, part, sum[0] + sum[1]);
    }
    return error;
}

/* Reach of +1: the value of largest magnitude, its sign kept; the negative one where both are as large. */
INLINE wide signed_peak(samples s) {
    wide low, high, zero = wide_of(0);
    range_of(s, &low, &high);
    return choose(less(zero - low, high), high, low);
}

INLINE void fit_about(strand *strands, sampling kind, levels grid, const float *starts, const mica_search *search) {
    wide inverse[MICA_STRANDS];
    EACH_STRAND {
        inverse[k] = ratio(wide_of(1), signed_peak(samples_in(&strands[k].weights, kind)));
        strands[k].best = (fit){.explained = wide_of(-1)};
    }
    for (int round = 0; round < search->starts + search->polish; round++)
        EACH_STRAND {
            const wide scale = round < search->starts ? inverse[k] * wide_of(starts[round]) : ratio(wide_of(1), strands[k].best.step);
            const moments m = moments_about(samples_in(&strands[k].weights, kind), scale, grid);
            const wide step = ratio(m.wqx, m.wqq);
            keep_fit(&strands[k].best, (fit){.step = step, .explained = step * m.wqx, .at = m});
        }
}

/* ---- gain: 1 + eta (<x, x> / <x, y> - 1), at least 1 and at most 1 + eta / 4 */

INLINE wide gain_of(wide xx, wide xy, float eta) {
    wide one = wide_of(1), shrunk = wide_clamped(ratio(xx, xy), 1, 1.25f);
    return one + (shrunk - one) * wide_of(eta);
}

/* <x, y> from the moments: y = step q - floor */
INLINE wide gain_from(totals t, moments m, wide step, wide floor, int groups, float eta) {
    return gain_of(sum_over(t.wxx, groups), sum_over(step * m.wqx - floor * t.wx, groups), eta);
}

#endif
