/* numerics/quantise_search.h: for blocks of groups with integer scales: the block's float16 scale(s) and each group's integers, together.
 * Every lane carries its group's values and, the same in all groups of a block, the block's. Formulas: docs/quantisers.md.
 * Judged by tests/numerics/test_quantise.c. */
#ifndef MICA_NUMERICS_QUANTISE_SEARCH_H
#define MICA_NUMERICS_QUANTISE_SEARCH_H

#include "numerics/quantise_fit.h"

/* ---- Q2_K, Q4_K, Q5_K: d * scale * q - dmin * floor, scale and floor 0..most */

typedef struct block_above {
    wide d, dmin, scale, floor;
    moments at; /* of the levels for these */
} block_above;

typedef struct shape_above {
    sampling kind;
    int groups;      /* of a block */
    float top, most; /* largest level; largest integer scale and floor */
} shape_above;

INLINE void keep_block_above(lanes better, block_above *kept, block_above candidate) {
    keep(better, &kept->d, candidate.d);
    keep(better, &kept->dmin, candidate.dmin);
    keep(better, &kept->scale, candidate.scale);
    keep(better, &kept->floor, candidate.floor);
    keep(better, &kept->at.wq, candidate.at.wq);
    keep(better, &kept->at.wqq, candidate.at.wqq);
    keep(better, &kept->at.wqx, candidate.at.wqx);
}

/* A value for each group, to be put as an integer times a unit of the block. */
typedef struct target {
    wide value, curvature; /* an error e in it costs curvature * e^2 */
    wide largest, least, unit, integer;
} target;

/* The float16 unit, and the integers, for which sum of curvature * (value - unit * integer)^2 is least, among units that give the largest
 * value of the block an integer of most + 0.4, and less and less. */
INLINE void choose_units(target *targets, shape_above shape, int first, int count) {
    const float pace = shape.most > 32 ? 0.5f : 0.25f;
    EACH_STRAND {
        targets[k].largest = maximum_over(targets[k].value, shape.groups);
        targets[k].least = wide_of(1e30f);
        targets[k].unit = targets[k].integer = wide_of(0);
    }
    for (int candidate = first; candidate < first + count; candidate++) {
        const float reach = shape.most + 0.4f - pace * (count == 1 ? 0.8f : (float)candidate);
        EACH_STRAND {
            target *t = &targets[k];
            wide u = wide_half(t->largest * wide_of(1 / reach));
            wide n = wide_nearest(wide_clamped(t->value * ratio(wide_of(1), u), 0, shape.most));
            wide off = t->value - u * n, error = sum_over(t->curvature * off * off, shape.groups);
            lanes better = less(error, t->least);
            keep(better, &t->least, error);
            keep(better, &t->unit, u);
            keep(better, &t->integer, n);
        }
    }
}

/* Least squares over the block for d and dmin, at fixed levels and integers; b unchanged where that has no positive solution. */
INLINE block_above refitted_above(block_above b, totals t, moments m, int groups) {
    wide ss = sum_over(b.scale * b.scale * m.wqq, groups), sf = sum_over(b.scale * b.floor * m.wq, groups);
    wide ff = sum_over(b.floor * b.floor * t.w, groups), sx = sum_over(b.scale * m.wqx, groups), fx = sum_over(b.floor * t.wx, groups);
    wide determinant = ss * ff - sf * sf, zero = wide_of(0);
    lanes sound = less(wide_of(1e-5f) * (ss * ff), determinant);
    wide inverse = ratio(wide_of(1), choose(sound, determinant, zero));
    wide d = wide_half((sx * ff - fx * sf) * inverse), dmin = wide_half((sf * sx - ss * fx) * inverse);
    lanes usable = both(sound, both(less(zero, d), less(zero, dmin)));
    keep(usable, &b.d, d);
    keep(usable, &b.dmin, dmin);
    return b;
}

/* The floor that suits a step best, at fixed levels: their weighted mean less that of the weights. */
INLINE wide best_floor(wide step, totals t, moments m) {
    return wide_maximum((step * m.wq - t.wx) / t.w, wide_of(0));
}

/* Each group's scale, one less or one more, with the floor that then suits, at fixed levels. */
INLINE void step_integers(block_above *b, totals t, moments m, float most) {
    wide least = wide_of(1e30f), inverse = ratio(wide_of(1), b->dmin), scale = b->scale, floor = b->floor;
    for (int k = -1; k <= 1; k++) {
        wide tried = wide_clamped(b->scale + wide_of((float)k), 0, most), step = b->d * tried;
        wide n = wide_nearest(wide_clamped(best_floor(step, t, m) * inverse, 0, most));
        wide error = error_from(t, m, step, b->dmin * n);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep(better, &scale, tried);
        keep(better, &floor, n);
    }
    b->scale = scale;
    b->floor = floor;
}

INLINE moments moments_of(samples s, block_above b, float top) {
    return moments_at(s, b.d * b.scale, b.dmin * b.floor, top);
}

/* Rounds of: levels for what is stored, d and dmin for these, integers for those. The best of all rounds stays. */
INLINE void refine_above(const strand *strands, block_above *b, wide *least, shape_above shape, int rounds) {
    block_above now[MICA_STRANDS];
    EACH_STRAND {
        now[k] = b[k];
        least[k] = wide_of(1e30f);
    }
    for (int round = 0; round <= rounds; round++)
        EACH_STRAND {
            const totals t = strands[k].t;
            now[k].at = moments_of(samples_in(&strands[k].weights, shape.kind), now[k], shape.top);
            wide error = sum_over(error_from(t, now[k].at, now[k].d * now[k].scale, now[k].dmin * now[k].floor), shape.groups);
            lanes better = less(error, least[k]);
            keep(better, &least[k], error);
            keep_block_above(better, &b[k], now[k]);
            if (round < rounds) {
                now[k] = refitted_above(now[k], t, now[k].at, shape.groups);
                step_integers(&now[k], t, now[k].at, shape.most);
            }
        }
}

/* Given d and dmin the groups are independent: integers near by, each with its own levels, judged by the true error; then d and dmin once
 * more. */
INLINE void search_window_above(const strand *strands, block_above *b, wide *sums, shape_above shape, const mica_search *search) {
    wide inverse[MICA_STRANDS], least[MICA_STRANDS], centre[MICA_STRANDS], tried[MICA_STRANDS];
    block_above best[MICA_STRANDS];
    EACH_STRAND {
        inverse[k] = ratio(wide_of(1), b[k].dmin);
        least[k] = error_above(samples_in(&strands[k].weights, shape.kind), b[k].d * b[k].scale, b[k].dmin * b[k].floor, shape.top);
        best[k] = b[k];
    }
    for (int by = -search->window; by <= search->window; by++) {
        EACH_STRAND {
            const totals t = strands[k].t;
            tried[k] = wide_clamped(b[k].scale + wide_of((float)by), 0, shape.most);
            centre[k] = wide_nearest(wide_clamped((b[k].d * tried[k] * b[k].at.wq - t.wx) / t.w * inverse[k], -1, shape.most + 1));
        }
        for (int aside = -search->minimum_window; aside <= search->minimum_window; aside++)
            EACH_STRAND {
                wide n = wide_clamped(centre[k] + wide_of((float)aside), 0, shape.most);
                wide error = error_above(samples_in(&strands[k].weights, shape.kind), b[k].d * tried[k], b[k].dmin * n, shape.top);
                lanes better = less(error, least[k]);
                keep(better, &least[k], error);
                keep(better, &best[k].scale, tried[k]);
                keep(better, &best[k].floor, n);
            }
    }
    EACH_STRAND {
        const totals t = strands[k].t;
        best[k].at = moments_of(samples_in(&strands[k].weights, shape.kind), best[k], shape.top);
        b[k] = best[k];
        sums[k] = sum_over(least[k], shape.groups);
        best[k] = refitted_above(best[k], t, best[k].at, shape.groups);
    }
    EACH_STRAND {
        wide error = sum_over(
            error_above(samples_in(&strands[k].weights, shape.kind), best[k].d * best[k].scale, best[k].dmin * best[k].floor, shape.top),
            shape.groups);
        lanes better = less(error, sums[k]);
        best[k].at = moments_of(samples_in(&strands[k].weights, shape.kind), best[k], shape.top);
        keep_block_above(better, &b[k], best[k]);
        keep(better, &sums[k], error);
    }
}

/* The scales and levels of the strands' blocks, from the fits. */
INLINE void search_above(strand *strands, shape_above shape, const float (*starts)[2], const mica_search *search, block_above *best) {
    wide least[MICA_STRANDS], error[MICA_STRANDS];
    block_above b[MICA_STRANDS];
    target scales[MICA_STRANDS], floors[MICA_STRANDS];
    fit_above(strands, shape.kind, shape.top, 0, starts, search);
    EACH_STRAND {
        const moments m = strands[k].best.at;
        /* With the floor profiled out, a group's error grows by curvature * (step - its best)^2. */
        scales[k].curvature = wide_maximum(m.wqq - m.wq * m.wq / strands[k].t.w, wide_of(0));
        scales[k].value = strands[k].best.step;
        least[k] = wide_of(1e30f);
        best[k] = (block_above){.d = wide_of(0)};
    }
    for (int branch = 0; branch < search->branches; branch++) {
        choose_units(scales, shape, branch * search->scales, search->scales);
        EACH_STRAND {
            floors[k].value = best_floor(scales[k].unit * scales[k].integer, strands[k].t, strands[k].best.at);
            floors[k].curvature = strands[k].t.w;
        }
        choose_units(floors, shape, 0, search->scales);
        EACH_STRAND
            b[k] = (block_above){.d = scales[k].unit, .dmin = floors[k].unit, .scale = scales[k].integer, .floor = floors[k].integer};
        refine_above(strands, b, error, shape, search->refits);
        for (int pass = 0; search->window && pass < (search->branches > 1 ? 3 : 1); pass++)
            search_window_above(strands, b, error, shape, search);
        EACH_STRAND {
            lanes better = less(error[k], least[k]);
            keep(better, &least[k], error[k]);
            keep_block_above(better, &best[k], b[k]);
        }
    }
}

/* ---- Q3_K, Q6_K, IQ4_XS: d * scale * level, scale lowest..highest */

typedef struct block_about {
    wide d, scale;
} block_about;

typedef struct shape_about {
    sampling kind;
    int groups;
    float lowest, highest; /* integer scale */
    levels grid;
} shape_about;

INLINE void keep_block_about(lanes better, block_about *kept, block_about candidate) {
    keep(better, &kept->d, candidate.d);
    keep(better, &kept->scale, candidate.scale);
}

/* As choose_units, the scale of largest magnitude going to the negative side, which is one longer. */
INLINE void choose_scales(const strand *strands, block_about *best, shape_about shape, int first, int count) {
    const float pace = shape.lowest < -64 ? 0.6f : 0.25f;
    wide peak[MICA_STRANDS], least[MICA_STRANDS];
    EACH_STRAND {
        const wide step = strands[k].best.step, largest = maximum_over(wide_magnitude(step), shape.groups);
        peak[k] = choose(less(maximum_over(step, shape.groups), largest), wide_of(0) - largest, largest);
        least[k] = wide_of(1e30f);
        best[k] = (block_about){wide_of(0), wide_of(0)};
    }
    for (int candidate = first; candidate < first + count; candidate++) {
        const float reach = shape.lowest - 0.4f + pace * (count == 1 ? 1.6f : (float)candidate);
        EACH_STRAND {
            const fit f = strands[k].best;
            block_about b = {.d = wide_half(peak[k] * wide_of(1 / reach))};
            b.scale = wide_nearest(wide_clamped(f.step * ratio(wide_of(1), b.d), shape.lowest, shape.highest));
            wide off = f.step - b.d * b.scale, error = sum_over(f.at.wqq * off * off, shape.groups);
            lanes better = less(error, least[k]);
            keep(better, &least[k], error);
            keep_block_about(better, &best[k], b);
        }
    }
}

/* Each group's scale among those near by, each with its own levels; *least is the group's error. */
INLINE void search_window_about(const strand *strands, block_about *b, wide *least, shape_about shape, int window) {
    block_about best[MICA_STRANDS];
    EACH_STRAND {
        least[k] = wide_of(1e30f);
        best[k] = b[k];
    }
    for (int by = -window; by <= window; by++)
        EACH_STRAND {
            wide tried = wide_clamped(b[k].scale + wide_of((float)by), shape.lowest, shape.highest);
            wide error = error_about(samples_in(&strands[k].weights, shape.kind), b[k].d * tried, shape.grid);
            lanes better = less(error, least[k]);
            keep(better, &least[k], error);
            keep(better, &best[k].scale, tried);
        }
    EACH_STRAND
        b[k].scale = best[k].scale;
}

INLINE moments moments_of_about(samples s, block_about b, levels grid) {
    return moments_about(s, ratio(wide_of(1), b.d * b.scale), grid);
}

/* Where the error of groups, summed over blocks, is less than what is known, these are kept. */
INLINE void keep_better_about(const wide *error, wide *least, block_about *kept, const block_about *candidate, int groups) {
    EACH_STRAND {
        wide sum = sum_over(error[k], groups);
        lanes better = less(sum, least[k]);
        keep(better, &least[k], sum);
        keep_block_about(better, &kept[k], candidate[k]);
    }
}

INLINE void refine_about(const strand *strands, block_about *b, wide *least, shape_about shape, const mica_search *search) {
    block_about now[MICA_STRANDS];
    wide error[MICA_STRANDS];
    EACH_STRAND {
        now[k] = b[k];
        least[k] = wide_of(1e30f);
    }
    for (int round = 0; round < search->refits; round++) {
        search_window_about(strands, now, error, shape, round ? search->minimum_window : search->window);
        keep_better_about(error, least, b, now, shape.groups);
        EACH_STRAND {
            moments m = moments_of_about(samples_in(&strands[k].weights, shape.kind), now[k], shape.grid);
            now[k].d = wide_half(
                ratio(sum_over(now[k].scale * m.wqx, shape.groups), sum_over(now[k].scale * now[k].scale * m.wqq, shape.groups)));
        }
    }
    EACH_STRAND
        error[k] = error_about(samples_in(&strands[k].weights, shape.kind), now[k].d * now[k].scale, shape.grid);
    keep_better_about(error, least, b, now, shape.groups);
}

INLINE void search_about(strand *strands, shape_about shape, const float *starts, const mica_search *search, block_about *best) {
    wide least[MICA_STRANDS], error[MICA_STRANDS];
    block_about b[MICA_STRANDS];
    fit_about(strands, shape.kind, shape.grid, starts, search);
    EACH_STRAND {
        least[k] = wide_of(1e30f);
        best[k] = (block_about){wide_of(0), wide_of(0)};
    }
    for (int branch = 0; branch < search->branches; branch++) {
        choose_scales(strands, b, shape, branch * search->scales, search->scales);
        refine_about(strands, b, error, shape, search);
        EACH_STRAND {
            lanes better = less(error[k], least[k]);
            keep(better, &least[k], error[k]);
            keep_block_about(better, &best[k], b[k]);
        }
    }
}

#endif
