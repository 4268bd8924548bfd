/* numerics/quantise_search.h: for blocks of groups with integer scales: the block's float16 scale(s) and each group's integers, together.
 * Every lane carries its group's values and, the same in all groups of a block, the block's. Formulas: docs/quantisers.md.
 * Judged by tests/numerics/test_quantise.c. */
#ifndef MICA_NUMERICS_QUANTISE_SEARCH_H
#define MICA_NUMERICS_QUANTISE_SEARCH_H

#include "numerics/quantise_fit.h"

/* ---- Q2_K, Q4_K, Q5_K: d * scale * q - dmin * floor, scale and floor 0..most */

typedef struct block_above {
    wide d, dmin, scale, floor;
} block_above;

typedef struct shape_above {
    int groups;      /* of a block */
    float top, most; /* largest level; largest integer scale and floor */
} shape_above;

INLINE void keep_block_above(lanes better, block_above *kept, block_above candidate) {
    keep(better, &kept->d, candidate.d);
    keep(better, &kept->dmin, candidate.dmin);
    keep(better, &kept->scale, candidate.scale);
    keep(better, &kept->floor, candidate.floor);
}

/* The float16 unit, and the integers, for which sum of curvature * (target - unit * integer)^2 is least, among units that give the largest
 * target of the block an integer of most + 0.4, and less and less. */
INLINE void choose_unit(wide target, wide curvature, shape_above shape, int first, int count, wide *unit, wide *integer) {
    wide largest = maximum_over(target, shape.groups), least = wide_of(1e30f);
    float pace = shape.most > 32 ? 0.5f : 0.25f;
    *unit = *integer = wide_of(0);
    for (int k = first; k < first + count; k++) {
        float reach = shape.most + 0.4f - pace * (count == 1 ? 0.8f : (float)k);
        wide u = wide_half(largest * wide_of(1 / reach));
        wide n = wide_nearest(wide_clamped(target * ratio(wide_of(1), u), 0, shape.most));
        wide off = target - u * n, error = sum_over(curvature * off * off, shape.groups);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep(better, unit, u);
        keep(better, integer, n);
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
INLINE wide refine_above(samples s, totals t, block_above *b, shape_above shape, int rounds) {
    block_above now = *b;
    wide least = wide_of(1e30f);
    for (int round = 0; round <= rounds; round++) {
        moments m = moments_of(s, now, shape.top);
        wide error = sum_over(error_from(t, m, now.d * now.scale, now.dmin * now.floor), shape.groups);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep_block_above(better, b, now);
        if (round < rounds) {
            now = refitted_above(now, t, m, shape.groups);
            step_integers(&now, t, m, shape.most);
        }
    }
    return least;
}

/* Given d and dmin the groups are independent: integers near by, each with its own levels, judged by the true error; then d and dmin once more. */
INLINE wide search_window_above(samples s, totals t, block_above *b, shape_above shape, const mica_search *search) {
    wide step = b->d * b->scale, inverse = ratio(wide_of(1), b->dmin);
    wide least = error_above(s, step, b->dmin * b->floor, shape.top), scale = b->scale, floor = b->floor;
    moments m = moments_of(s, *b, shape.top);
    for (int k = -search->window; k <= search->window; k++) {
        wide tried = wide_clamped(b->scale + wide_of((float)k), 0, shape.most);
        wide centre = wide_nearest(wide_clamped((b->d * tried * m.wq - t.wx) / t.w * inverse, -1, shape.most + 1));
        for (int j = -search->minimum_window; j <= search->minimum_window; j++) {
            wide n = wide_clamped(centre + wide_of((float)j), 0, shape.most);
            wide error = error_above(s, b->d * tried, b->dmin * n, shape.top);
            lanes better = less(error, least);
            keep(better, &least, error);
            keep(better, &scale, tried);
            keep(better, &floor, n);
        }
    }
    b->scale = scale;
    b->floor = floor;
    least = sum_over(least, shape.groups);
    block_above refit = refitted_above(*b, t, moments_of(s, *b, shape.top), shape.groups);
    wide error = sum_over(error_above(s, refit.d * refit.scale, refit.dmin * refit.floor, shape.top), shape.groups);
    lanes better = less(error, least);
    keep_block_above(better, b, refit);
    keep(better, &least, error);
    return least;
}

INLINE block_above search_above(samples s, totals t, shape_above shape, const float (*starts)[2], const mica_search *search) {
    fit f = fit_above(s, t, shape.top, 0, starts, search);
    /* With the floor profiled out, a group's error grows by curvature * (step - its best)^2. */
    wide curvature = wide_maximum(f.at.wqq - f.at.wq * f.at.wq / t.w, wide_of(0)), least = wide_of(1e30f);
    block_above best = {.d = wide_of(0), .dmin = wide_of(0), .scale = wide_of(0), .floor = wide_of(0)};
    for (int branch = 0; branch < search->branches; branch++) {
        block_above b;
        wide error;
        choose_unit(f.step, curvature, shape, branch * search->scales, search->scales, &b.d, &b.scale);
        choose_unit(best_floor(b.d * b.scale, t, f.at), t.w, shape, 0, search->scales, &b.dmin, &b.floor);
        if (search->refits)
            error = refine_above(s, t, &b, shape, search->refits);
        else {
            step_integers(&b, t, f.at, shape.most);
            error = wide_of(0);
        }
        for (int pass = 0; search->window && pass < (search->branches > 1 ? 3 : 1); pass++)
            error = search_window_above(s, t, &b, shape, search);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep_block_above(better, &best, b);
    }
    return best;
}

/* ---- Q3_K, Q6_K, IQ4_XS: d * scale * level, scale lowest..highest */

typedef struct block_about {
    wide d, scale;
} block_about;

typedef struct shape_about {
    int groups;
    float lowest, highest; /* integer scale */
    levels grid;
} shape_about;

INLINE void keep_block_about(lanes better, block_about *kept, block_about candidate) {
    keep(better, &kept->d, candidate.d);
    keep(better, &kept->scale, candidate.scale);
}

/* As choose_unit, the scale of largest magnitude going to the negative side, which is one longer. */
INLINE block_about choose_scale(fit f, shape_about shape, int first, int count) {
    wide largest = maximum_over(wide_magnitude(f.step), shape.groups), most = maximum_over(f.step, shape.groups);
    wide peak = choose(less(most, largest), wide_of(0) - largest, largest), least = wide_of(1e30f);
    float pace = shape.lowest < -64 ? 0.6f : 0.25f;
    block_about best = {wide_of(0), wide_of(0)};
    for (int k = first; k < first + count; k++) {
        float reach = shape.lowest - 0.4f + pace * (count == 1 ? 1.6f : (float)k);
        block_about b = {.d = wide_half(peak * wide_of(1 / reach))};
        b.scale = wide_nearest(wide_clamped(f.step * ratio(wide_of(1), b.d), shape.lowest, shape.highest));
        wide off = f.step - b.d * b.scale, error = sum_over(f.at.wqq * off * off, shape.groups);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep_block_about(better, &best, b);
    }
    return best;
}

/* Each group's scale among those near by, each with its own levels; returns the group's error. */
INLINE wide search_window_about(samples s, block_about *b, shape_about shape, int window) {
    wide least = wide_of(1e30f), scale = b->scale;
    for (int k = -window; k <= window; k++) {
        wide tried = wide_clamped(b->scale + wide_of((float)k), shape.lowest, shape.highest);
        wide error = error_about(s, b->d * tried, shape.grid);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep(better, &scale, tried);
    }
    b->scale = scale;
    return least;
}

INLINE moments moments_of_about(samples s, block_about b, levels grid) {
    return moments_about(s, ratio(wide_of(1), b.d * b.scale), grid);
}

INLINE wide refine_about(samples s, block_about *b, shape_about shape, const mica_search *search) {
    block_about now = *b;
    wide least = wide_of(1e30f);
    for (int round = 0; round < search->refits; round++) {
        wide error = sum_over(search_window_about(s, &now, shape, round ? search->minimum_window : search->window), shape.groups);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep_block_about(better, b, now);
        moments m = moments_of_about(s, now, shape.grid);
        now.d = wide_half(ratio(sum_over(now.scale * m.wqx, shape.groups), sum_over(now.scale * now.scale * m.wqq, shape.groups)));
    }
    wide error = sum_over(error_about(s, now.d * now.scale, shape.grid), shape.groups);
    lanes better = less(error, least);
    keep(better, &least, error);
    keep_block_about(better, b, now);
    return least;
}

INLINE block_about search_about(samples s, shape_about shape, const float *starts, const mica_search *search) {
    fit f = fit_about(s, shape.grid, starts, search);
    wide least = wide_of(1e30f);
    block_about best = {wide_of(0), wide_of(0)};
    for (int branch = 0; branch < search->branches; branch++) {
        block_about b = choose_scale(f, shape, branch * search->scales, search->scales);
        wide error = refine_about(s, &b, shape, search);
        lanes better = less(error, least);
        keep(better, &least, error);
        keep_block_about(better, &best, b);
    }
    return best;
}

#endif
