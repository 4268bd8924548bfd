/* numerics/moments.h: sums over the values of one array, or of two side by side, in float64: what `show` and `diff` tell of tensors. What
 * is not finite is counted and left out of the rest. Parts may be added in any grouping; adding the same parts in the same order gives the
 * same bits. Judged by tests/numerics/test_moments.c. */
#ifndef MICA_NUMERICS_MOMENTS_H
#define MICA_NUMERICS_MOMENTS_H

#include <stdint.h>

/* Of one array; begin with {0}. */
typedef struct mica_moments {
    uint64_t count, not_finite, zeros; /* count: of the finite ones */
    double minimum, maximum, mean;
    double squares; /* sum of (value - mean)^2 */
} mica_moments;
void mica_moments_add(mica_moments *moments, const float *values, uint64_t count);
/* sqrt(squares / count): of these values, not of what they were drawn from; 0 without any */
double mica_moments_deviation(const mica_moments *moments);

/* Of two arrays a and b; begin with {0}. A pair counts when both are finite; a pair that is not is in not_finite unless both are NaN or
 * equal. */
typedef struct mica_difference {
    uint64_t count, differing, not_finite;
    double a_squares, b_squares, products, squares; /* sums of a^2, b^2, a b, (a - b)^2 */
    double absolute;                                /* largest |a - b| */
    double relative;                                /* largest |a - b| / max(|a|, |b|), from 0 to 2 */
} mica_difference;
void mica_difference_add(mica_difference *difference, const float *a, const float *b, uint64_t count);
void mica_difference_merge(mica_difference *difference, const mica_difference *part);
double mica_difference_share(const mica_difference *difference);  /* ||a - b|| / ||a||; NaN when a is zero */
double mica_difference_cosine(const mica_difference *difference); /* a b / (||a|| ||b||); NaN when one of them is zero */

#endif
