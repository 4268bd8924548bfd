/* numerics/spectrum.c: statistics of singular values, and what noise of the same shape would give.
 * Refuses nothing; what has no value (0/0, an empty list) is NaN. Formulas and sources: docs/statistics.md.
 * Judged by tests/numerics/test_spectrum.c (fixtures, numpy). */
#include "numerics/spectrum.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double pi = 3.14159265358979323846;

/* Neumaier's compensated sum, smallest first: a few parts in 1e16 whatever the count. */
typedef struct sum {
    double total, lost;
} sum;

static void sum_add(sum *s, double term) {
    double total = s->total + term;
    s->lost += fabs(s->total) >= fabs(term) ? (s->total - total) + term : (term - total) + s->total;
    s->total = total;
}

double mica_spectrum_sum_squares(const double *values, uint64_t count) {
    sum s = {0, 0};
    while (count--) {
        sum_add(&s, values[count] * values[count]);
    }
    return s.total + s.lost;
}

double mica_spectrum_sum_fourth(const double *values, uint64_t count) {
    sum s = {0, 0};
    while (count--) {
        double square = values[count] * values[count];
        sum_add(&s, square * square);
    }
    return s.total + s.lost;
}

double mica_spectrum_var(const double *values, uint64_t count, uint64_t k, double frobenius_squared) {
    double share = mica_spectrum_sum_squares(values, count < k ? count : k) / frobenius_squared;
    /* rounding of two sums of the same terms; more than that is an error to show */
    return share > 1.0 && share < 1.0 + 1e-12 ? 1.0 : share;
}

double mica_spectrum_stable_rank(double frobenius_squared, double s0) {
    return frobenius_squared / (s0 * s0);
}

double mica_spectrum_participation(double sum_squares, double sum_fourth) {
    return sum_squares * sum_squares / sum_fourth;
}

double mica_spectrum_effective_rank(const double *values, uint64_t count) {
    sum all = {0, 0}, entropy = {0, 0};
    for (uint64_t i = count; i--;) {
        sum_add(&all, values[i]);
    }
    double total = all.total + all.lost;
    for (uint64_t i = count; i--;) {
        double share = values[i] / total;
        sum_add(&entropy, share == 0.0 ? 0.0 : -share * log(share)); /* 0 log 0 = 0; NaN passes */
    }
    return count ? exp(entropy.total + entropy.lost) : NAN;
}

/* Marchenko-Pastur in the angle of the bulk: x = 1 + beta + 2 sqrt(beta) cos(angle), angle 0 is the upper edge. With it the density is
 * 2 sin^2 / (pi x), so that both integrals over the tail [0, angle] have closed forms: the energy (density times x, mean 1) at once, the
 * mass by partial fractions. No square-root endpoint is left, and no quadrature. */
static double tail_energy(double angle) {
    return (angle - sin(angle) * cos(angle)) / pi;
}

static double tail_mass(double angle, double beta) {
    double root = sqrt(beta), phase = atan2(root * sin(angle), 1.0 + root * cos(angle));
    return (angle - sin(angle) / root + (1.0 - beta) * phase / beta) / pi;
}

double mica_noise_var(uint64_t rows, uint64_t columns, uint64_t k) {
    uint64_t shorter = rows < columns ? rows : columns, longer = rows < columns ? columns : rows;
    if (k >= shorter) {
        return shorter ? 1.0 : NAN;
    }
    double beta = (double)shorter / (double)longer, mass = (double)k / (double)shorter, low = 0.0, high = pi;
    for (int i = 0; i < 64; i++) { /* bisection: the mass grows with the angle, from 0 to 1 */
        double middle = 0.5 * (low + high);
        *(tail_mass(middle, beta) < mass ? &low : &high) = middle;
    }
    return k ? tail_energy(0.5 * (low + high)) : 0.0;
}

double mica_noise_edge(uint64_t rows, uint64_t columns, double frobenius_squared) {
    double deviation = sqrt(frobenius_squared / ((double)rows * (double)columns));
    return deviation * (sqrt((double)rows) + sqrt((double)columns));
}

uint64_t mica_spectrum_count_above(const double *values, uint64_t count, double edge) {
    uint64_t above = 0;
    while (above < count && values[above] > edge) {
        above++;
    }
    return above;
}

static int compare_doubles(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* The two forms of the interpolation are numpy's, which takes the one that is exact at the nearer end. */
double mica_quantile(const double *values, uint64_t count, double q, double *scratch) {
    if (count == 0) {
        return NAN;
    }
    memcpy(scratch, values, count * sizeof *values);
    qsort(scratch, count, sizeof *scratch, compare_doubles);
    double position = q * (double)(count - 1), whole = floor(position), part = position - whole;
    uint64_t index = (uint64_t)whole;
    double low = scratch[index], high = scratch[index + 1 < count ? index + 1 : index], step = high - low;
    return part < 0.5 ? low + step * part : high - step * (1.0 - part);
}
