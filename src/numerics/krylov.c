/* numerics/krylov.c: block Lanczos. See krylov.h; docs/svd.md explains the choices and has the figures.
 * Judged by tests/numerics/test_svd.c. */
#include "numerics/krylov.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "numerics/lapack.h"

#define B MICA_BLOCK
#define LEARN_BASIS 96
#define DEGREE_MAX 3
#define CANCELLATION 0.9 /* share of a column's square: its norm fell by more than 3; one pass then leaves too much behind */
#define GROWTH_MAX \
    1e3 /* of the filter between the smallest wanted and the largest eigenvalue: beyond, the basis loses its small directions */

struct mica_krylov {
    size_t padded_rows;
    uint32_t basis_max;
    float *basis;                /* [basis_max / 8 + 1][block] */
    float *temporary;            /* [3][block] */
    double *diagonal, *coupling; /* [basis_max / 8][8][8]: blocks of the projected operator */
    double *projected, *ritz;    /* [basis_max][basis_max] */
    double *values, *work;
    int *integers;
    int work_count, integer_count;
    float *rotation; /* [8][ld] of one block's part of the Ritz vectors */
    size_t rotation_floats;
    int sweep; /* alternates the direction in which G is walked */
};

static uint32_t basis_limit(size_t padded_rows, uint32_t count) {
    size_t limit = (size_t)count * 12 > 256 ? (size_t)count * 12 : 256;
    size_t most = padded_rows * 3 / 4 / B * B; /* beyond, the float64 route is as cheap */
    return (uint32_t)(limit < most ? limit : most);
}

uint64_t mica_krylov_bytes(size_t padded_rows, uint32_t count) {
    uint64_t basis = basis_limit(padded_rows, count), block = padded_rows * B * sizeof(float);
    return (basis / B + 4) * block + 3 * basis * basis * sizeof(double) + 90 * basis * sizeof(double);
}

mica_status mica_krylov_create(size_t padded_rows, uint32_t count, mica_krylov **result, mica_error *error) {
    mica_krylov *krylov = mica_calloc(1, sizeof *krylov);
    if (!krylov)
        return mica_fail(error, MICA_NO_MEMORY, "Krylov basis");
    size_t basis = basis_limit(padded_rows, count), block = padded_rows * B;
    krylov->padded_rows = padded_rows;
    krylov->basis_max = (uint32_t)basis;
    krylov->work_count = (int)(basis * basis + 70 * basis + 64);
    krylov->integer_count = (int)(5 * basis + 64);
    krylov->rotation_floats = ((size_t)count + 63) / 64 * 64 * B;
    krylov->basis = mica_alloc_aligned((basis / B + 1) * block * sizeof(float));
    krylov->temporary = mica_alloc_aligned(3 * block * sizeof(float));
    krylov->diagonal = mica_alloc_aligned(basis * B * sizeof(double));
    krylov->coupling = mica_alloc_aligned(basis * B * sizeof(double));
    krylov->projected = mica_alloc_aligned(basis * basis * sizeof(double));
    krylov->ritz = mica_alloc_aligned(basis * basis * sizeof(double));
    krylov->values = mica_alloc_aligned(basis * sizeof(double));
    krylov->work = mica_alloc_aligned((size_t)krylov->work_count * sizeof(double));
    krylov->integers = mica_alloc_aligned((size_t)krylov->integer_count * sizeof(int));
    krylov->rotation = mica_alloc_aligned(krylov->rotation_floats * sizeof(float));
    if (!krylov->basis || !krylov->temporary || !krylov->diagonal || !krylov->coupling || !krylov->projected || !krylov->ritz ||
        !krylov->values || !krylov->work || !krylov->integers || !krylov->rotation) {
        mica_krylov_free(krylov);
        return mica_fail(error, MICA_NO_MEMORY, "Krylov basis of %zu x %zu", padded_rows, basis);
    }
    *result = krylov;
    return MICA_OK;
}

void mica_krylov_free(mica_krylov *krylov) {
    if (!krylov)
        return;
    void *buffers[] = {krylov->basis, krylov->temporary, krylov->diagonal, krylov->coupling, krylov->projected,
                       krylov->ritz,  krylov->values,    krylov->work,     krylov->integers, krylov->rotation};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        mica_free_aligned(buffers[i]);
    mica_free(krylov);
}

/* A fixed pseudo-random block (splitmix64, Box-Muller), zero in the padding rows. */
static void fill_start(float *block, uint32_t pair, size_t rows, size_t padded_rows) {
    uint64_t state = 0x6d696361;
    memset(block, 0, padded_rows * B * sizeof *block);
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < B; column++) {
            double uniform[2];
            for (int i = 0; i < 2; i++) {
                uint64_t z = state += 0x9e3779b97f4a7c15u;
                z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
                z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
                uniform[i] = ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
            }
            block[row / pair * pair * B + column * pair + row % pair] = (float)(sqrt(-2 * log(uniform[0])) *
                                                                                cos(6.283185307179586 * uniform[1]));
        }
}

/* block = block R^-1 with R^T R = block^T block, twice; *factor (upper) = the product of both. False: numerically dependent columns. */
static bool orthonormalise(const mica_kernels *kernels, float *block, size_t m, double factor[B * B]) {
    double total[B * B];
    for (int round = 0; round < 2; round++) {
        double square[B * B], upper[B * B] = {0}, inverse[B * B] = {0};
        kernels->block_inner(block, block, m, square);
        for (int j = 0; j < B; j++)
            for (int i = 0; i <= j; i++) {
                double sum = square[i * B + j];
                for (int k = 0; k < i; k++)
                    sum -= upper[k * B + i] * upper[k * B + j];
                if (i == j && !(sum > 1e-11 * square[j * B + j]))
                    return false;
                upper[i * B + j] = i == j ? sqrt(sum) : sum / upper[i * B + i];
            }
        for (int j = 0; j < B; j++) {
            inverse[j * B + j] = 1 / upper[j * B + j];
            for (int i = j - 1; i >= 0; i--) {
                double sum = 0;
                for (int k = i + 1; k <= j; k++)
                    sum += upper[i * B + k] * inverse[k * B + j];
                inverse[i * B + j] = -sum / upper[i * B + i];
            }
        }
        kernels->block_rotate(block, m, inverse);
        for (int i = 0; i < B; i++)
            for (int j = 0; j < B; j++) {
                double sum = 0;
                for (int k = 0; k < B; k++)
                    sum += upper[i * B + k] * total[k * B + j];
                factor[i * B + j] = round == 0 ? upper[i * B + j] : sum;
            }
        memcpy(total, factor, sizeof total);
    }
    return true;
}

/* out = T_degree(l(G)) x; bound > 0 unless degree is 1 (then out = G x). */
static void apply_filter(mica_krylov *krylov, const mica_kernels *kernels, const float *packed, const float *x, uint32_t degree,
                         float bound, float *out) {
    size_t m = krylov->padded_rows, count = m * B;
    float *product = krylov->temporary, *spare[2] = {product + count, product + 2 * count};
    if (degree == 1) {
        kernels->multiply(packed, m, x, out, krylov->sweep ^= 1);
        return;
    }
    const float *before = x, *current = x;
    float half = bound / 2;
    for (uint32_t k = 1; k <= degree; k++) {
        float *next = k == degree ? out : spare[k % 2];
        kernels->multiply(packed, m, current, product, krylov->sweep ^= 1);
        kernels->chebyshev(product, current, before, (k == 1 ? 1 : 2) / half, k == 1 ? 0 : 1, half, count, next);
        before = current;
        current = next;
    }
}

/* next -= basis (basis^T next) over blocks block … 0; the result is the largest share of a column's square that went.
 * `first`: keep the diagonal. */
static double project_out(mica_krylov *krylov, const mica_kernels *kernels, float *next, uint32_t block, bool first) {
    size_t m = krylov->padded_rows, size = m * B;
    double gone[B] = {0}, left[B * B], share = 0;
    for (uint32_t i = block + 1; i-- > 0;) {
        double h[B * B];
        kernels->block_inner(krylov->basis + i * size, next, m, h);
        kernels->block_update(krylov->basis + i * size, next, m, h);
        for (int a = 0; a < B * B; a++)
            gone[a % B] += h[a] * h[a];
        if (first && i == block)
            for (int a = 0; a < B; a++)
                for (int b = 0; b < B; b++)
                    krylov->diagonal[block * B * B + (size_t)(a * B + b)] = 0.5 * (h[a * B + b] + h[b * B + a]);
    }
    kernels->block_inner(next, next, m, left);
    for (int a = 0; a < B; a++)
        share = fmax(share, gone[a] / (gone[a] + left[a * B + a]));
    return share;
}

/* One more block: orthogonalised against all before it, again where most of a column went (Kahan's "twice is enough"). False on
 * breakdown. */
static bool extend(mica_krylov *krylov, const mica_kernels *kernels, const float *packed, uint32_t block, uint32_t degree, float bound) {
    size_t size = krylov->padded_rows * B;
    float *last = krylov->basis + block * size, *next = last + size;
    apply_filter(krylov, kernels, packed, last, degree, bound, next);
    if (project_out(krylov, kernels, next, block, true) > CANCELLATION)
        project_out(krylov, kernels, next, block, false);
    return orthonormalise(kernels, next, krylov->padded_rows, krylov->coupling + block * B * B);
}

/* The operator projected on `basis` columns: every eigenvalue, ascending, and the vectors of the largest `wanted`, a vector a row of
 * ritz [basis][basis], in its last rows. Tridiagonalisation, divide and conquer, and only the wanted vectors turned back. */
static bool solve_projected(mica_krylov *krylov, uint32_t basis, uint32_t wanted) {
    size_t n = basis;
    double *matrix = krylov->projected;
    memset(matrix, 0, n * n * sizeof *matrix);
    for (size_t block = 0; block < basis / B; block++)
        for (size_t a = 0; a < B; a++)
            for (size_t b = 0; b < B; b++) { /* column-major, lower half */
                matrix[(block * B + b) * n + block * B + a] = krylov->diagonal[(block * B + a) * B + b];
                if ((block + 1) * B < n)
                    matrix[(block * B + b) * n + (block + 1) * B + a] = krylov->coupling[(block * B + a) * B + b];
            }
    int order = (int)basis, columns = (int)wanted, info = 0;
    double *off_diagonal = krylov->work, *factors = off_diagonal + n, *work = factors + n;
    int work_count = krylov->work_count - 2 * order;
    mica_blas.dsytrd_("L", &order, matrix, &order, krylov->values, off_diagonal, factors, work, &work_count, &info);
    if (info == 0)
        mica_blas.dstedc_("I", &order, krylov->values, off_diagonal, krylov->ritz, &order, work, &work_count, krylov->integers,
                          &krylov->integer_count, &info);
    if (info == 0)
        mica_blas.dormtr_("L", "L", "N", &order, &columns, matrix, &order, factors, krylov->ritz + (n - wanted) * n, &order, work,
                          &work_count, &info);
    return info == 0;
}

/* Slope of T_degree(l(x)) at the eigenvalue whose filtered value is `filtered` (>= 1), and that eigenvalue. */
static double unfilter(double filtered, uint32_t degree, double bound, double *slope) {
    if (degree == 1) {
        *slope = 1;
        return filtered;
    }
    double angle = acosh(filtered > 1 ? filtered : 1) / degree, x = cosh(angle);
    *slope = degree * (x > 1 ? sinh(degree * angle) / sinh(angle) : degree) * 2 / bound;
    return (x + 1) * bound / 2;
}

/* Largest estimated |G u - l u| / sqrt(l l_max), which is |A v - s u| / s_0, over the `count` largest pairs. */
static double estimate_residual(const mica_krylov *krylov, uint32_t basis, uint32_t count, uint32_t degree, double bound) {
    const double *coupling = krylov->coupling + (basis / B - 1) * B * B;
    double worst = 0, slope;
    double largest = unfilter(krylov->values[basis - 1], degree, bound, &slope);
    for (uint32_t i = basis - count; i < basis; i++) {
        const double *tail = krylov->ritz + (size_t)i * basis + basis - B;
        double norm = 0;
        for (int a = 0; a < B; a++) {
            double sum = 0;
            for (int b = a; b < B; b++)
                sum += coupling[a * B + b] * tail[b];
            norm += sum * sum;
        }
        double value = unfilter(krylov->values[i], degree, bound, &slope);
        double residual = value > 0 ? sqrt(norm) / slope / sqrt(value * largest) : INFINITY;
        worst = residual > worst ? residual : worst;
    }
    return worst;
}

/* vectors = basis * ritz, the largest eigenvalue first. */
static void form_vectors(mica_krylov *krylov, const mica_kernels *kernels, uint32_t basis, uint32_t count, float *vectors, size_t ld) {
    size_t m = krylov->padded_rows, pair = kernels->pair;
    for (uint32_t block = 0; block < basis / B; block++) {
        memset(krylov->rotation, 0, krylov->rotation_floats * sizeof(float));
        for (uint32_t i = 0; i < count; i++)
            for (uint32_t a = 0; a < B; a++)
                krylov->rotation[a * ld + i] = (float)krylov->ritz[(size_t)(basis - 1 - i) * basis + block * B + a];
        for (size_t column = 0; column < ld; column += 64)
            for (size_t side = 0; side < pair; side++)
                kernels->multiply_64(krylov->basis + block * m * B + side, pair * B, pair, krylov->rotation + column, ld,
                                     vectors + side * ld + column, pair * ld, m / pair, B, block > 0);
    }
}

/* T_degree at x >= 1. */
static double chebyshev_value(uint32_t degree, double x) {
    return x > 1 ? cosh(degree * acosh(x)) : 1;
}

/* From the spectrum as a short run sees it: the Ritz values with their weights are a Gauss quadrature of the density of eigenvalues. */
static void learn(const mica_krylov *krylov, uint32_t basis, size_t rows, uint32_t count, double trace, mica_svd_plan *plan) {
    double seen = 0, wanted = 2.5 * count, smallest_wanted = 0, bound = 0, previous = 0, previous_seen = 0;
    for (uint32_t i = basis; i-- > 0;) {
        const double *vector = krylov->ritz + (size_t)i * basis;
        double weight = 0;
        for (int a = 0; a < B; a++)
            weight += vector[a] * vector[a];
        weight *= (double)rows / B;
        double middle = seen + weight / 2, value = krylov->values[i] > 0 ? krylov->values[i] : 0;
        double targets[2] = {count, wanted}, *results[2] = {&smallest_wanted, &bound};
        for (int t = 0; t < 2; t++)
            if (previous_seen < targets[t] && middle >= targets[t])
                *results[t] = previous_seen > 0 ? previous + (value - previous) * (targets[t] - previous_seen) / (middle - previous_seen)
                                                : value;
        seen += weight;
        previous = value;
        previous_seen = middle;
    }
    double largest = krylov->values[basis - 1];
    plan->degree = 1;
    plan->basis = 0;
    plan->bound_over_trace = bound / trace;
    if (!(bound > 0) || smallest_wanted <= bound)
        return;
    for (uint32_t degree = DEGREE_MAX; degree > 1; degree--)
        if (chebyshev_value(degree, 2 * largest / bound - 1) <= GROWTH_MAX * chebyshev_value(degree, 2 * smallest_wanted / bound - 1)) {
            plan->degree = degree;
            return;
        }
}

mica_status mica_krylov_run(mica_krylov *krylov, const mica_kernels *kernels, const float *packed, size_t rows, size_t padded_rows,
                            double trace, uint32_t count, const mica_svd_plan *given, double tolerance, float *vectors, size_t ld,
                            mica_krylov_result *result, mica_error *error) {
    if (padded_rows != krylov->padded_rows || (size_t)count + B > krylov->basis_max)
        return mica_fail(error, MICA_FAILED, "Krylov buffers for %zu rows used with %zu", krylov->padded_rows, padded_rows);
    *result = (mica_krylov_result){.plan = given ? *given : (mica_svd_plan){0}};
    double start[B * B];
    krylov->sweep = 0;
    fill_start(krylov->basis, kernels->pair, rows, padded_rows);
    if (!orthonormalise(kernels, krylov->basis, padded_rows, start))
        return MICA_OK;
    uint32_t block = 0, learn_basis = LEARN_BASIS < krylov->basis_max ? LEARN_BASIS : krylov->basis_max;
    if (result->plan.degree == 0) {
        for (; block < learn_basis / B; block++)
            if (!extend(krylov, kernels, packed, block, 1, 0))
                return MICA_OK;
        if (!solve_projected(krylov, learn_basis, learn_basis))
            return MICA_OK;
        learn(krylov, learn_basis, rows, count, trace, &result->plan);
        if (result->plan.degree > 1) { /* start again, filtered, from the same block */
            block = 0;
            krylov->sweep = 0;
        }
    }
    uint32_t degree = result->plan.degree, check = result->plan.basis;
    uint32_t least = count + 2 * B > learn_basis ? count + 2 * B : learn_basis;
    float bound = (float)(result->plan.bound_over_trace * trace);
    if (check < least)
        check = (least + B - 1) / B * B;
    while (block < krylov->basis_max / B) {
        if (!extend(krylov, kernels, packed, block++, degree, bound))
            return MICA_OK;
        uint32_t basis = block * B;
        if (basis < check && block < krylov->basis_max / B)
            continue;
        if (!solve_projected(krylov, basis, count))
            return MICA_OK;
        double residual = estimate_residual(krylov, basis, count, degree, bound);
        if (residual <= tolerance) {
            result->converged = true;
            result->basis = basis;
            if (result->plan.basis == 0)
                result->plan.basis = basis;
            form_vectors(krylov, kernels, basis, count, vectors, ld);
            return MICA_OK;
        }
        check = basis + (residual > 100 * tolerance ? 3 : 1) * B;
    }
    return MICA_OK;
}
