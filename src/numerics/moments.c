/* numerics/moments.c: see the header. Eight sums side by side, so that a compiler can use its vectors without reordering anything.
 * Judged by tests/numerics/test_moments.c. */
#include "numerics/moments.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#define LANES 8

static bool all_finite(const float *values, uint64_t count) {
    uint32_t found = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        found |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !found;
}

static double sum_of(const double lanes[LANES]) {
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

static double larger(double a, double b) {
    return a > b ? a : b;
}

/* ---- one array */

/* Chan's update: two sets of values and their mean squares as one. */
static void merge(mica_moments *moments, const mica_moments *part) {
    if (part->count == 0)
        return;
    if (moments->count == 0) {
        moments->minimum = part->minimum;
        moments->maximum = part->maximum;
    }
    const double before = (double)moments->count, added = (double)part->count, apart = part->mean - moments->mean;
    moments->minimum = moments->minimum < part->minimum ? moments->minimum : part->minimum;
    moments->maximum = larger(moments->maximum, part->maximum);
    moments->mean += apart * (added / (before + added));
    moments->squares += part->squares + apart * apart * (before * added / (before + added));
    moments->count += part->count;
    moments->zeros += part->zeros;
}

static void add_finite(mica_moments *moments, const float *values, uint64_t count) {
    double sums[LANES] = {0}, squares[LANES] = {0};
    float minimum = INFINITY, maximum = -INFINITY;
    mica_moments part = {.count = count};
    uint64_t whole = count - count % LANES;
    for (uint64_t i = 0; i < whole; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] += (double)values[i + (uint64_t)lane];
    for (uint64_t i = whole; i < count; i++)
        sums[i - whole] += (double)values[i];
    part.mean = count ? sum_of(sums) / (double)count : 0;
    for (uint64_t i = 0; i < whole; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            const double apart = (double)values[i + (uint64_t)lane] - part.mean;
            squares[lane] += apart * apart;
        }
    for (uint64_t i = whole; i < count; i++)
        squares[i - whole] += ((double)values[i] - part.mean) * ((double)values[i] - part.mean);
    for (uint64_t i = 0; i < count; i++) {
        minimum = values[i] < minimum ? values[i] : minimum;
        maximum = values[i] > maximum ? values[i] : maximum;
        part.zeros += values[i] == 0;
    }
    part.squares = sum_of(squares);
    part.minimum = (double)minimum;
    part.maximum = (double)maximum;
    merge(moments, &part);
}

void mica_moments_add(mica_moments *moments, const float *values, uint64_t count) {
    if (all_finite(values, count)) {
        add_finite(moments, values, count);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        if (isfinite(values[i]))
            add_finite(moments, &values[i], 1);
        else
            moments->not_finite++;
    }
}

double mica_moments_deviation(const mica_moments *moments) {
    return moments->count ? sqrt(moments->squares / (double)moments->count) : 0;
}

/* ---- two arrays */

typedef struct difference_lanes {
    double a_squares[LANES], b_squares[LANES], products[LANES], squares[LANES], absolute[LANES], relative[LANES];
} difference_lanes;

static inline void add_pair(difference_lanes *lanes, int lane, double a, double b) {
    const double apart = a - b, absolute = fabs(apart), size = larger(fabs(a), fabs(b));
    const double relative = absolute / (size > 0 ? size : 1);
    lanes->a_squares[lane] += a * a;
    lanes->b_squares[lane] += b * b;
    lanes->products[lane] += a * b;
    lanes->squares[lane] += apart * apart;
    lanes->absolute[lane] = larger(lanes->absolute[lane], absolute);
    lanes->relative[lane] = larger(lanes->relative[lane], relative);
}

static void add_finite_pairs(mica_difference *difference, const float *a, const float *b, uint64_t count) {
    difference_lanes lanes;
    memset(&lanes, 0, sizeof lanes);
    const uint64_t whole = count - count % LANES;
    for (uint64_t i = 0; i < whole; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            add_pair(&lanes, lane, (double)a[i + (uint64_t)lane], (double)b[i + (uint64_t)lane]);
    for (uint64_t i = whole; i < count; i++)
        add_pair(&lanes, (int)(i - whole), (double)a[i], (double)b[i]);
    mica_difference part = {.count = count,
                            .a_squares = sum_of(lanes.a_squares),
                            .b_squares = sum_of(lanes.b_squares),
                            .products = sum_of(lanes.products),
                            .squares = sum_of(lanes.squares)};
    for (int lane = 0; lane < LANES; lane++) {
        part.absolute = larger(part.absolute, lanes.absolute[lane]);
        part.relative = larger(part.relative, lanes.relative[lane]);
    }
    for (uint64_t i = 0; i < count; i++)
        part.differing += a[i] != b[i];
    mica_difference_merge(difference, &part);
}

void mica_difference_add(mica_difference *difference, const float *a, const float *b, uint64_t count) {
    if (all_finite(a, count) && all_finite(b, count)) {
        add_finite_pairs(difference, a, b, count);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        const bool same = a[i] == b[i] || (isnan(a[i]) && isnan(b[i]));
        if (isfinite(a[i]) && isfinite(b[i]))
            add_finite_pairs(difference, &a[i], &b[i], 1);
        else if (!same)
            difference->not_finite++;
    }
}

void mica_difference_merge(mica_difference *difference, const mica_difference *part) {
    difference->count += part->count;
    difference->differing += part->differing;
    difference->not_finite += part->not_finite;
    difference->a_squares += part->a_squares;
    difference->b_squares += part->b_squares;
    difference->products += part->products;
    difference->squares += part->squares;
    difference->absolute = larger(difference->absolute, part->absolute);
    difference->relative = larger(difference->relative, part->relative);
}

double mica_difference_share(const mica_difference *difference) {
    return difference->a_squares > 0 ? sqrt(difference->squares) / sqrt(difference->a_squares) : NAN;
}

double mica_difference_cosine(const mica_difference *difference) {
    const double size = sqrt(difference->a_squares) * sqrt(difference->b_squares);
    return size > 0 ? difference->products / size : NAN;
}
