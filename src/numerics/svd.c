/* numerics/svd.c: the top singular triplets of a weight: which route, Rayleigh-Ritz on the weight itself, and the certificate.
 * Refuses nothing finite. Every number of the result is measured on the vectors that are stored. Judged by tests/numerics/test_svd.c. */
#include "numerics/svd.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "numerics/krylov.h"
#include "numerics/lapack.h"
#include "numerics/svd_internal.h"

#define RITZ_TOLERANCE 6e-7    /* of the basis, by its own estimate */
#define VALUE_ERROR_MAX 1e-5   /* of the result, relative to s_0; the residual is smaller */
#define STEEP 3e-3             /* s_k / s_0 below which a float32 Gram matrix no longer separates the small ones */
#define COUNT_SLACK 2e-5       /* relative, of the inertia count's threshold in G */
#define FLOAT_ROUNDING 0x1p-24 /* |v - its float32 row| <= 2^-24: what storing adds to a residual of float64 vectors */
#define CHUNK 256

struct mica_svd_workspace {
    const mica_kernels *kernels;
    uint32_t count;
    size_t ld, padded_rows, padded_columns; /* 0: nothing allocated yet */
    mica_gram *gram;
    mica_krylov *krylov;
    float *packed;
    float *left, *applied, *rotated_left; /* [padded_rows][ld] */
    float *right, *rotated_right;         /* [padded_columns][ld] */
    float *slice, *scratch;
    float *coefficients; /* [ld][ld] */
    float *full;         /* [rows][rows], for the inertia count and the full spectrum; allocated when first needed */
    double *small, *mass, *eigen, *strip, *work; /* [count][count], …, [CHUNK][count] */
    int *integers, work_count, integer_count;
};

static const double ONE = 1, ZERO = 0;

const char *mica_svd_route_name(mica_svd_route route) {
    static const char *const names[] = {"krylov", "dense", "zero"};
    return names[route];
}

static char arithmetic[96];

static void name_arithmetic(void) {
    mica_status status = mica_lapack_load(NULL);
    snprintf(arithmetic, sizeof arithmetic, "%s openblas-%s-%s", mica_cpu_name(mica_cpu_current()),
             status == MICA_OK ? mica_blas.version : "absent", status == MICA_OK ? mica_blas.core : "");
}

const char *mica_svd_arithmetic(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, name_arithmetic);
    return arithmetic;
}

static bool krylov_fits(size_t rows, size_t columns, uint32_t count) {
    return rows >= 512 && rows >= 8 * (size_t)count && rows * columns > ((size_t)1 << 20);
}

static size_t round_up(size_t value, size_t step) {
    return (value + step - 1) / step * step;
}

uint64_t mica_svd_workspace_bytes(uint64_t rows, uint64_t columns, const mica_svd_options *options) {
    uint64_t m = rows < columns ? rows : columns, n = rows < columns ? columns : rows, bytes;
    uint32_t count = options->count < m ? options->count : (uint32_t)m;
    if (!krylov_fits(m, n, count))
        return mica_svd_dense_bytes(rows, columns, count);
    uint64_t ld = round_up(count, 64), pm = round_up(m, 32), pn = round_up(n, MICA_PANEL_COLUMNS);
    bytes = mica_gram_bytes(pm) + mica_krylov_bytes(pm, count) +
            4 * (pm * (pm + 16) / 2 + 3 * pm * ld + 2 * pn * ld + 3 * pm * MICA_SLICE_COLUMNS);
    return bytes + (options->full_spectrum || options->check_count ? 4 * m * m : 0);
}

static void release_buffers(mica_svd_workspace *w) {
    mica_gram_free(w->gram);
    mica_krylov_free(w->krylov);
    void *buffers[] = {w->packed,       w->left, w->applied, w->rotated_left, w->right, w->rotated_right, w->slice, w->scratch,
                       w->coefficients, w->full, w->small,   w->mass,         w->eigen, w->strip,         w->work,  w->integers};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        mica_free_aligned(buffers[i]);
    *w = (mica_svd_workspace){.kernels = w->kernels};
}

/* Buffers for these sizes; kept from matrix to matrix while the sizes stay. */
static mica_status size_buffers(mica_svd_workspace *w, const mica_wide *wide, uint32_t count, mica_error *error) {
    if (w->padded_rows == wide->padded_rows && w->padded_columns == wide->padded_columns && w->count == count)
        return MICA_OK;
    release_buffers(w);
    size_t m = wide->padded_rows, n = wide->padded_columns, k = count, ld = round_up(count, 64);
    w->work_count = (int)(2 * k * k + 6 * k + 64);
    w->integer_count = (int)(5 * k + 64);
    mica_status status = mica_gram_create(m, &w->gram, error);
    if (status == MICA_OK)
        status = mica_krylov_create(m, count, &w->krylov, error);
    if (status != MICA_OK)
        return status;
    struct {
        void **pointer;
        size_t bytes;
    } wanted[] = {{(void **)&w->packed, mica_packed_offset(m / 8) * 4},
                  {(void **)&w->left, m * ld * 4},
                  {(void **)&w->applied, m * ld * 4},
                  {(void **)&w->rotated_left, m * ld * 4},
                  {(void **)&w->right, n * ld * 4},
                  {(void **)&w->rotated_right, n * ld * 4},
                  {(void **)&w->slice, m * MICA_SLICE_COLUMNS * 4},
                  {(void **)&w->scratch, mica_wide_scratch_floats(m) * 4},
                  {(void **)&w->coefficients, ld * ld * 4},
                  {(void **)&w->small, k * k * 8},
                  {(void **)&w->mass, k * k * 8},
                  {(void **)&w->eigen, k * 8},
                  {(void **)&w->strip, CHUNK * k * 8},
                  {(void **)&w->work, (size_t)w->work_count * 8},
                  {(void **)&w->integers, (size_t)w->integer_count * sizeof(int)}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!(*wanted[i].pointer = mica_alloc_aligned(wanted[i].bytes)))
            return mica_fail(error, MICA_NO_MEMORY, "SVD workspace for %zu x %zu: %zu bytes", m, n, wanted[i].bytes);
    w->padded_rows = m;
    w->padded_columns = n;
    w->count = count;
    w->ld = ld;
    return MICA_OK;
}

mica_status mica_svd_workspace_create(uint64_t rows, uint64_t columns, const mica_svd_options *options, mica_svd_workspace **result,
                                      mica_error *error) {
    mica_status status = mica_lapack_load(error);
    if (status != MICA_OK)
        return status;
    mica_svd_workspace *w = mica_calloc(1, sizeof *w);
    if (!w)
        return mica_fail(error, MICA_NO_MEMORY, "SVD workspace");
    w->kernels = mica_kernels_for(mica_cpu_current());
    mica_matrix shape = {.rows = rows, .columns = columns};
    mica_wide wide = mica_wide_of(&shape, 0);
    uint32_t count = options->count < wide.rows ? options->count : (uint32_t)wide.rows;
    status = krylov_fits(wide.rows, wide.columns, count) ? size_buffers(w, &wide, count, error) : MICA_OK;
    if (status != MICA_OK) {
        mica_svd_workspace_free(w);
        return status;
    }
    *result = w;
    return MICA_OK;
}

void mica_svd_workspace_free(mica_svd_workspace *w) {
    if (!w)
        return;
    release_buffers(w);
    mica_free(w);
}

/* right = A^T left and applied = A right = A A^T left, in one pass over A. */
static void apply_matrix(mica_svd_workspace *w, const mica_wide *wide) {
    for (size_t column = 0; column < wide->padded_columns; column += MICA_SLICE_COLUMNS) {
        mica_wide_slice(wide, column, w->slice, w->scratch);
        for (size_t part = 0; part < w->ld; part += 64) {
            float *right = w->right + column * w->ld + part;
            for (size_t row = 0; row < wide->padded_rows; row += CHUNK) {
                size_t depth = wide->padded_rows - row < CHUNK ? wide->padded_rows - row : CHUNK;
                w->kernels->multiply_64(w->slice + row * MICA_SLICE_COLUMNS, 1, MICA_SLICE_COLUMNS, w->left + row * w->ld + part, w->ld,
                                        right, w->ld, MICA_SLICE_COLUMNS, depth, row > 0);
            }
            w->kernels->multiply_64(w->slice, MICA_SLICE_COLUMNS, 1, right, w->ld, w->applied + part, w->ld, wide->padded_rows,
                                    MICA_SLICE_COLUMNS, column > 0);
        }
    }
}

/* out (count x count, lower, column-major) = tall^T tall in float64. */
static void inner_products(const mica_svd_workspace *w, const float *tall, size_t rows, double *out) {
    int k = (int)w->count;
    for (size_t begin = 0; begin < rows; begin += CHUNK) {
        size_t height = rows - begin < CHUNK ? rows - begin : CHUNK;
        for (size_t r = 0; r < height; r++)
            for (size_t i = 0; i < w->count; i++)
                w->strip[r * w->count + i] = (double)tall[(begin + r) * w->ld + i];
        mica_blas.dsyrk_("L", "N", &k, &(int){(int)height}, &ONE, w->strip, &k, begin == 0 ? &ZERO : &ONE, out, &k);
    }
}

/* out = tall * (eigenvectors of the small problem, largest first, each times its factor). */
static void rotate(mica_svd_workspace *w, const float *tall, size_t rows, const double *factors, float *out) {
    size_t k = w->count;
    memset(w->coefficients, 0, w->ld * w->ld * sizeof(float));
    for (size_t i = 0; i < k; i++)
        for (size_t r = 0; r < k; r++)
            w->coefficients[r * w->ld + i] = (float)(w->small[(k - 1 - i) * k + r] * (factors ? factors[i] : 1));
    for (size_t part = 0; part < w->ld; part += 64)
        w->kernels->multiply_64(tall, w->ld, 1, w->coefficients + part, w->ld, out + part, w->ld, rows, k, 0);
}

/* The generalised Rayleigh-Ritz step on A over span(left): values, singular vectors on both sides, and the residual of each.
 * False when the small problem cannot be solved. */
static bool ritz(mica_svd_workspace *w, const mica_wide *wide, mica_svd_result *result) {
    int k = (int)w->count, type = 1, info = 0;
    apply_matrix(w, wide);
    inner_products(w, w->right, wide->padded_columns, w->small);
    inner_products(w, w->left, wide->padded_rows, w->mass);
    mica_blas.dsygvd_(&type, "V", "L", &k, w->small, &k, w->mass, &k, w->eigen, w->work, &w->work_count, w->integers, &w->integer_count,
                      &info);
    if (info != 0 || !(w->eigen[0] > 0))
        return false;
    double *inverse = w->mass; /* free now */
    for (uint32_t i = 0; i < w->count; i++) {
        result->values[i] = sqrt(w->eigen[w->count - 1 - i]);
        inverse[i] = 1 / result->values[i];
    }
    result->count = result->rank = w->count;
    rotate(w, w->right, wide->padded_columns, inverse, w->rotated_right);
    rotate(w, w->left, wide->padded_rows, NULL, w->rotated_left);
    rotate(w, w->applied, wide->padded_rows, inverse, w->left);
    /* left = A v - s u. The other residual, A^T u - s v, is zero by construction: v = A^T u / s. */
    double worst = 0, s0 = result->values[0];
    for (size_t row = 0; row < wide->padded_rows; row++)
        for (uint32_t i = 0; i < w->count; i++)
            w->left[row * w->ld + i] -= w->rotated_left[row * w->ld + i] * (float)result->values[i];
    inner_products(w, w->left, wide->padded_rows, w->small);
    double norm_bound = 0; /* of |R|_2^2, by the largest row sum of |R^T R| */
    for (uint32_t i = 0; i < w->count; i++) {
        double sum = 0;
        for (uint32_t j = 0; j < w->count; j++)
            sum += fabs(w->small[i < j ? (size_t)i * w->count + j : (size_t)j * w->count + i]);
        norm_bound = fmax(norm_bound, sum);
        worst = fmax(worst, w->small[(size_t)i * w->count + i]);
    }
    result->residual = sqrt(worst) / s0;
    result->value_error = sqrt(norm_bound) / s0;
    return true;
}

static mica_status store_krylov_vectors(const mica_svd_workspace *w, const mica_wide *wide, mica_svd_result *result, mica_error *error) {
    size_t length = wide->transposed ? wide->rows : wide->columns;
    const float *from = wide->transposed ? w->rotated_left : w->rotated_right;
    double norms[64];
    for (size_t group = 0; group < result->count; group += 64) { /* a group's columns stay together in memory */
        size_t width = result->count - group < 64 ? result->count - group : 64, top[64] = {0};
        memset(norms, 0, sizeof norms);
        for (size_t row = 0; row < length; row++)
            for (size_t i = 0; i < width; i++) {
                float value = from[row * w->ld + group + i];
                norms[i] += (double)value * (double)value;
                if (fabsf(value) > fabsf(from[top[i] * w->ld + group + i]))
                    top[i] = row;
            }
        for (size_t i = 0; i < width; i++) {
            float *out = result->vectors + (group + i) * length;
            double factor = (from[top[i] * w->ld + group + i] < 0 ? -1 : 1) / sqrt(norms[i]);
            for (size_t row = 0; row < length; row++)
                out[row] = (float)((double)from[row * w->ld + group + i] * factor);
        }
    }
    return mica_svd_orthonormality(result, length, &result->orthonormality, error);
}

static mica_status want_full(mica_svd_workspace *w, size_t rows, mica_error *error) {
    if (!w->full && !(w->full = mica_alloc_aligned(rows * rows * sizeof(float))))
        return mica_fail(error, MICA_NO_MEMORY, "full Gram matrix of order %zu", rows);
    return MICA_OK;
}

/* Sylvester: tau I - (G - U S^2 U^T) is positive definite exactly when G has no eigenvalue above tau but those found. */
static mica_status count_by_inertia(mica_svd_workspace *w, const mica_wide *wide, const mica_svd_result *result, bool *agreed,
                                    mica_error *error) {
    mica_status status = want_full(w, wide->rows, error);
    if (status != MICA_OK)
        return status;
    int m = (int)wide->rows, k = (int)w->count, ld = (int)w->ld, info = 0;
    float one = 1;
    mica_packed_expand(w->packed, wide->rows, w->full);
    for (size_t i = 0; i < wide->rows * wide->rows; i++)
        w->full[i] = -w->full[i];
    for (size_t row = 0; row < wide->rows; row++)
        for (uint32_t i = 0; i < w->count; i++)
            w->left[row * w->ld + i] = w->rotated_left[row * w->ld + i] * (float)result->values[i];
    mica_blas.ssyrk_("U", "T", &m, &k, &one, w->left, &ld, &one, w->full, &m); /* row-major lower = column-major upper */
    double smallest = result->values[result->count - 1], tau = smallest * smallest * (1 + COUNT_SLACK);
    for (size_t i = 0; i < wide->rows; i++)
        w->full[i * wide->rows + i] += (float)tau;
    mica_blas.spotrf_("U", &m, w->full, &m, &info);
    *agreed = info == 0;
    return MICA_OK;
}

/* All eigenvalues of G by tridiagonalisation in float32, QL in float64; the certified ones replace theirs. */
static mica_status full_spectrum(mica_svd_workspace *w, const mica_wide *wide, mica_svd_result *result, mica_error *error) {
    mica_status status = want_full(w, wide->rows, error);
    size_t m = wide->rows;
    int n = (int)m, work_count = (int)(m * 64), info = 0;
    float *buffer = status == MICA_OK ? mica_alloc_aligned((3 * m + (size_t)work_count) * sizeof(float)) : NULL;
    double *tridiagonal = mica_calloc(2 * m, sizeof(double));
    if (status == MICA_OK && (!buffer || !tridiagonal))
        status = mica_fail(error, MICA_NO_MEMORY, "full spectrum of order %zu", m);
    if (status == MICA_OK) {
        mica_packed_expand(w->packed, m, w->full);
        mica_blas.ssytrd_("U", &n, w->full, &n, buffer, buffer + m, buffer + 2 * m, buffer + 3 * m, &work_count, &info);
        for (size_t i = 0; i < m; i++) {
            tridiagonal[i] = (double)buffer[i];
            tridiagonal[m + i] = i + 1 < m ? (double)buffer[m + i] : 0;
        }
        mica_blas.dsterf_(&n, tridiagonal, tridiagonal + m, &info);
        if (info != 0)
            status = mica_fail(error, MICA_FAILED, "LAPACK dsterf of order %d: info %d", n, info);
    }
    for (size_t i = 0; status == MICA_OK && i < m; i++) {
        double value = sqrt(tridiagonal[m - 1 - i] > 0 ? tridiagonal[m - 1 - i] : 0), limit = result->values[result->count - 1];
        result->spectrum[i] = i < result->count ? result->values[i] : value < limit ? value : limit;
    }
    mica_free_aligned(buffer);
    mica_free(tridiagonal);
    return status;
}

/* One attempt: a basis good to `tolerance` by its own estimate, and what Rayleigh-Ritz on the weight makes of it. NULL when that is
 * certified. */
static mica_status attempt(mica_svd_workspace *w, const mica_wide *wide, double trace, const mica_svd_plan *plan, double tolerance,
                           mica_krylov_result *krylov, mica_svd_result *result, const char **why, mica_error *error) {
    mica_status status = mica_krylov_run(w->krylov, w->kernels, w->packed, wide->rows, wide->padded_rows, trace, w->count, plan, tolerance,
                                         w->left, w->ld, krylov, error);
    *why = "not converged";
    if (status == MICA_OK && krylov->converged && ritz(w, wide, result))
        *why = result->values[w->count - 1] < STEEP * result->values[0] ? "steep spectrum"
               : result->value_error > VALUE_ERROR_MAX                  ? "error bound above its limit"
                                                                        : NULL;
    return status;
}

/* The fast route. *why stays NULL when the result is certified. */
static mica_status krylov_route(mica_svd_workspace *w, const mica_wide *wide, const mica_svd_options *options, mica_svd_result *result,
                                const char **why, mica_error *error) {
    mica_krylov_result krylov;
    mica_svd_plan given = options->plan ? *options->plan : (mica_svd_plan){0};
    double squares, tolerance = RITZ_TOLERANCE;
    mica_gram_compute(w->gram, w->kernels, wide, &options->share, w->packed, &squares);
    result->frobenius = sqrt(squares);
    mica_status status = options->ask_plan ? options->ask_plan(options->ask_context, &given, error) : MICA_OK;
    if (status != MICA_OK)
        return status;
    mica_svd_plan plan = given;
    status = attempt(w, wide, squares, &plan, tolerance, &krylov, result, why, error);
    if (status == MICA_OK && *why && !krylov.converged && plan.degree) { /* the plan does not fit: learn one of its own */
        plan = (mica_svd_plan){0};
        status = attempt(w, wide, squares, &plan, tolerance, &krylov, result, why, error);
    }
    if (status == MICA_OK && *why && krylov.converged) { /* the estimate flattered: the same, with a larger basis */
        plan = krylov.plan;
        plan.basis = krylov.basis + 2 * MICA_BLOCK;
        status = attempt(w, wide, squares, &plan, tolerance / 8, &krylov, result, why, error);
        krylov.plan.basis = krylov.basis;
    }
    if (status != MICA_OK)
        return status;
    if (*why)
        return MICA_OK;
    result->plan = given.degree ? given : krylov.plan;
    result->basis = krylov.basis;
    result->sum_fourth = mica_packed_sum_squares(w->packed, wide->padded_rows);
    if (options->check_count) {
        status = count_by_inertia(w, wide, result, &result->count_checked, error);
        if (status == MICA_OK && !result->count_checked)
            *why = "inertia count disagrees";
    }
    if (status == MICA_OK && !*why && options->full_spectrum)
        status = full_spectrum(w, wide, result, error);
    if (status == MICA_OK && !*why && result->vectors)
        status = store_krylov_vectors(w, wide, result, error);
    return status;
}

/* |A|_F^2 of the decoded values, for the routes that have no Gram pass of their own. */
static mica_status frobenius_of(const mica_wide *wide, double *frobenius, mica_error *error) {
    float *slice = mica_alloc_aligned(wide->padded_rows * MICA_SLICE_COLUMNS * sizeof(float));
    float *scratch = mica_alloc_aligned(mica_wide_scratch_floats(wide->padded_rows) * sizeof(float));
    if (!slice || !scratch) {
        mica_free_aligned(slice);
        mica_free_aligned(scratch);
        return mica_fail(error, MICA_NO_MEMORY, "Frobenius norm of %zu rows", wide->rows);
    }
    double total = 0;
    for (size_t column = 0; column < wide->padded_columns; column += MICA_SLICE_COLUMNS) {
        double sum = 0;
        mica_wide_slice(wide, column, slice, scratch);
        for (size_t i = 0; i < wide->padded_rows * MICA_SLICE_COLUMNS; i++)
            sum += (double)slice[i] * (double)slice[i];
        total += sum;
    }
    mica_free_aligned(slice);
    mica_free_aligned(scratch);
    *frobenius = sqrt(total);
    return MICA_OK;
}

static void zero_result(const mica_wide *wide, uint32_t count, const mica_svd_options *options, mica_svd_result *result) {
    size_t length = wide->transposed ? wide->rows : wide->columns;
    result->route = MICA_SVD_ZERO;
    result->count = count;
    memset(result->values, 0, count * sizeof(double));
    if (result->vectors)
        memset(result->vectors, 0, (size_t)count * length * sizeof(float));
    if (options->full_spectrum)
        memset(result->spectrum, 0, wide->rows * sizeof(double));
    result->count_checked = true;
}

/* Back to the true scale: everything was computed on W 2^-exponent. */
static void restore_scale(const mica_wide *wide, const mica_svd_options *options, mica_svd_result *result) {
    result->frobenius = ldexp(result->frobenius, wide->exponent);
    result->sum_fourth = ldexp(result->sum_fourth, 4 * wide->exponent);
    for (uint32_t i = 0; i < result->count; i++)
        result->values[i] = ldexp(result->values[i], wide->exponent);
    for (size_t i = 0; options->full_spectrum && i < wide->rows; i++)
        result->spectrum[i] = ldexp(result->spectrum[i], wide->exponent);
}

mica_status mica_svd(mica_svd_workspace *w, const mica_matrix *matrix, int exponent, const mica_svd_options *options,
                     mica_svd_result *result, mica_error *error) {
    mica_wide wide = mica_wide_of(matrix, exponent);
    uint32_t count = options->count < wide.rows ? options->count : (uint32_t)wide.rows;
    if (count == 0)
        return mica_fail(error, MICA_USAGE, "SVD of a %" PRIu64 " x %" PRIu64 " matrix: expected at least one singular value", matrix->rows,
                         matrix->columns);
    *result = (mica_svd_result){
        .values = result->values, .vectors = options->vectors ? result->vectors : NULL, .spectrum = result->spectrum};
    mica_status status = MICA_OK;
    const char *why = "small matrix";
    if (krylov_fits(wide.rows, wide.columns, count)) {
        status = size_buffers(w, &wide, count, error);
        if (status == MICA_OK)
            status = krylov_route(w, &wide, options, result, &why, error);
    }
    if (status == MICA_OK && why) {
        status = frobenius_of(&wide, &result->frobenius, error);
        if (status == MICA_OK && result->frobenius == 0) {
            zero_result(&wide, count, options, result);
        } else if (status == MICA_OK) {
            result->route = MICA_SVD_DENSE;
            result->why_dense = why;
            status = mica_svd_dense(&wide, count, options, result, error);
            result->value_error = result->residual * sqrt((double)count) + (result->rank < result->count ? MICA_RANK_TOLERANCE : 0);
            result->count_checked = true; /* every eigenvalue was computed */
            if (result->vectors)
                result->residual += FLOAT_ROUNDING;
        }
    }
    if (status == MICA_OK)
        restore_scale(&wide, options, result);
    return status;
}
