/* numerics/spectrum.h: statistics of singular values; docs/statistics.md has each formula and its source.
 * All take values falling, float64; frobenius_squared = sum of all s^2 (also of those not given). */
#ifndef MICA_NUMERICS_SPECTRUM_H
#define MICA_NUMERICS_SPECTRUM_H

#include <stdint.h>

/* Compensated sums; NaN is what all of these give where there is no value (0/0: the zero matrix; an empty list). */
double mica_spectrum_sum_squares(const double *values, uint64_t count);
double mica_spectrum_sum_fourth(const double *values, uint64_t count);
/* var@k; 1 when count <= k are all there is */
double mica_spectrum_var(const double *values, uint64_t count, uint64_t k, double frobenius_squared);
double mica_spectrum_stable_rank(double frobenius_squared, double s0);
double mica_spectrum_participation(double sum_squares, double sum_fourth);
double mica_spectrum_effective_rank(const double *values, uint64_t count); /* exp of the entropy of s / sum s, over every singular value */

/* What Gaussian noise of that shape would give: Marchenko-Pastur, share of the k largest of min(rows, columns) squared values. */
double mica_noise_var(uint64_t rows, uint64_t columns, uint64_t k);
/* Upper edge of the noise bulk as a singular value, for noise variance frobenius_squared / (rows * columns). */
double mica_noise_edge(uint64_t rows, uint64_t columns, double frobenius_squared);
uint64_t mica_spectrum_count_above(const double *values, uint64_t count, double edge);

/* numpy's default ("linear") quantile of finite values; sorts a copy inside `scratch` [count]. NaN when count is 0. */
double mica_quantile(const double *values, uint64_t count, double q, double *scratch);

#endif
