/* numerics/svd_dense.c: the slow, sure route in float64, for small matrices and for what the Krylov route does not certify. Small: LAPACK
 * dgesdd on A itself. Large: float64 Gram matrix, dsyevr, one generalised Rayleigh-Ritz step on A, so that singular values down to 1e-8 s_0
 * are right. Memory is taken for the call. Judged by tests/numerics/test_svd.c. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "numerics/lapack.h"
#include "numerics/svd_internal.h"

#define DIRECT_ELEMENTS ((uint64_t)1 << 20) /* dgesdd up to here */
#define DIRECT_ROWS 512
#define STRIP 256 /* columns of A held in float64 */

static const double ONE = 1, ZERO = 0;

static bool direct(uint64_t rows, uint64_t columns) {
    uint64_t fewer = rows < columns ? rows : columns;
    return fewer <= 64 || (fewer <= DIRECT_ROWS && rows * columns <= DIRECT_ELEMENTS);
}

uint64_t mica_svd_dense_bytes(uint64_t rows, uint64_t columns, uint32_t count) {
    uint64_t m = rows < columns ? rows : columns, n = rows < columns ? columns : rows;
    if (direct(rows, columns))
        return 8 * (2 * m * n + 8 * m * m) + 4 * m * n;
    return 8 * (m * m + m * (uint64_t)(STRIP + 3 * count + 64) + n * count) + 8 * (uint64_t)MICA_SLICE_COLUMNS * m;
}

/* A's columns [column, column + width) as float64, column-major [width][rows]; slices as mica_wide_slice. */
static void load_strip(const mica_wide *wide, size_t column, size_t width, float *slice, float *scratch, double *strip) {
    for (size_t begin = 0; begin < width; begin += MICA_SLICE_COLUMNS) {
        mica_wide_slice(wide, column + begin, slice, scratch);
        for (size_t row = 0; row < wide->rows; row++)
            for (size_t k = 0; k < MICA_SLICE_COLUMNS && begin + k < width; k++)
                strip[(begin + k) * wide->rows + row] = (double)slice[row * MICA_SLICE_COLUMNS + k];
    }
}

void mica_svd_store_vector(const mica_svd_result *result, uint32_t i, const double *from, size_t stride, size_t length) {
    float *out = result->vectors + (size_t)i * length;
    size_t top = 0;
    double norm = 0;
    for (size_t k = 0; k < length; k++) {
        double value = from[k * stride];
        norm += value * value;
        if (fabs(value) > fabs(from[top * stride]))
            top = k;
    }
    double factor = norm > 0 ? (from[top * stride] < 0 ? -1 : 1) / sqrt(norm) : 0;
    for (size_t k = 0; k < length; k++)
        out[k] = (float)(from[k * stride] * factor);
}

mica_status mica_svd_orthonormality(const mica_svd_result *result, size_t length, double *worst, mica_error *error) {
    size_t rank = result->rank, chunk = 256;
    double *gram = mica_calloc(rank * rank + 1, sizeof *gram), *strip = mica_calloc(chunk * (rank + 1), sizeof *strip);
    *worst = 0;
    if (!gram || !strip) {
        mica_free(gram);
        mica_free(strip);
        return mica_fail(error, MICA_NO_MEMORY, "orthonormality of %zu vectors", rank);
    }
    for (size_t begin = 0; rank > 0 && begin < length; begin += chunk) {
        size_t width = length - begin < chunk ? length - begin : chunk;
        for (size_t i = 0; i < rank; i++)
            for (size_t k = 0; k < width; k++)
                strip[i * chunk + k] = (double)result->vectors[i * length + begin + k];
        mica_blas.dsyrk_("L", "T", &(int){(int)rank}, &(int){(int)width}, &ONE, strip, &(int){(int)chunk}, &ONE, gram, &(int){(int)rank});
    }
    for (size_t i = 0; i < rank; i++)
        for (size_t k = i; k < rank; k++) {
            double off = fabs(gram[i * rank + k] - (i == k ? 1.0 : 0.0));
            *worst = off > *worst ? off : *worst;
        }
    mica_free(gram);
    mica_free(strip);
    return MICA_OK;
}

static uint32_t rank_of(const double *values, uint32_t count) {
    uint32_t rank = 0;
    while (rank < count && values[rank] > 0 && values[rank] > values[0] * MICA_RANK_TOLERANCE)
        rank++;
    return rank;
}

/* Stores the right vectors: of W they are A's right ones, or A's left ones when A = W^T. left [rows][k], right [columns][k] through
 * strides. */
static void store_vectors(const mica_wide *wide, const double *left, size_t left_stride, size_t left_step, const double *right,
                          size_t right_stride, size_t right_step, mica_svd_result *result) {
    size_t length = wide->transposed ? wide->rows : wide->columns;
    for (uint32_t i = 0; result->vectors && i < result->count; i++) {
        if (i >= result->rank)
            memset(result->vectors + (size_t)i * length, 0, length * sizeof(float));
        else if (wide->transposed)
            mica_svd_store_vector(result, i, left + i * left_step, left_stride, length);
        else
            mica_svd_store_vector(result, i, right + i * right_step, right_stride, length);
    }
}

typedef struct direct_buffers {
    double *matrix, *copy, *left, *right, *values, *work, *product;
    float *slice, *scratch;
    int *integers;
} direct_buffers;

/* max_i of both residuals of the triplets as LAPACK gave them, relative to s_0. `matrix` column-major [columns][rows]. */
static double direct_residual(const mica_wide *wide, const direct_buffers *b, uint32_t rank, int ldvt) {
    size_t m = wide->rows, n = wide->columns;
    double worst = 0;
    for (uint32_t i = 0; i < rank; i++) {
        double first = 0, second = 0;
        for (size_t r = 0; r < m; r++)
            b->product[r] = -b->values[i] * b->left[i * m + r];
        for (size_t c = 0; c < n; c++) {
            double right = b->right[c * (size_t)ldvt + i], sum = -b->values[i] * right;
            for (size_t r = 0; r < m; r++) {
                sum += b->matrix[c * m + r] * b->left[i * m + r];
                b->product[r] += b->matrix[c * m + r] * right;
            }
            second += sum * sum;
        }
        for (size_t r = 0; r < m; r++)
            first += b->product[r] * b->product[r];
        worst = fmax(worst, fmax(sqrt(first), sqrt(second)) / b->values[0]);
    }
    return worst;
}

static mica_status dense_direct(const mica_wide *wide, uint32_t count, const mica_svd_options *options, mica_svd_result *result,
                                mica_error *error) {
    size_t m = wide->rows, n = wide->columns;
    int rows = (int)m, columns = (int)n, work_count = (int)(8 * m * m + 16 * m + 4 * n), info = 0;
    direct_buffers b = {mica_calloc(m * n, 8),
                        mica_calloc(m * n, 8),
                        mica_calloc(m * m, 8),
                        mica_calloc(m * n, 8),
                        mica_calloc(m, 8),
                        mica_calloc((size_t)work_count, 8),
                        mica_calloc(m, 8),
                        mica_alloc_aligned(wide->padded_rows * MICA_SLICE_COLUMNS * 4),
                        mica_alloc_aligned(mica_wide_scratch_floats(wide->padded_rows) * 4),
                        mica_calloc(8 * m, sizeof(int))};
    mica_status status = MICA_OK;
    if (!b.matrix || !b.copy || !b.left || !b.right || !b.values || !b.work || !b.product || !b.slice || !b.scratch || !b.integers) {
        status = mica_fail(error, MICA_NO_MEMORY, "dense SVD of %zu x %zu", m, n);
        goto out;
    }
    load_strip(wide, 0, n, b.slice, b.scratch, b.matrix);
    memcpy(b.copy, b.matrix, m * n * sizeof(double));
    mica_blas.dgesdd_("S", &rows, &columns, b.copy, &rows, b.values, b.left, &rows, b.right, &rows, b.work, &work_count, b.integers, &info);
    if (info != 0) {
        status = mica_fail(error, MICA_FAILED, "LAPACK dgesdd of %zu x %zu: info %d", m, n, info);
        goto out;
    }
    result->count = count;
    memcpy(result->values, b.values, count * sizeof(double));
    result->rank = rank_of(b.values, count);
    result->sum_fourth = 0;
    for (size_t i = m; i-- > 0;)
        result->sum_fourth += b.values[i] * b.values[i] * b.values[i] * b.values[i];
    if (options->full_spectrum)
        memcpy(result->spectrum, b.values, m * sizeof(double));
    result->residual = direct_residual(wide, &b, result->rank, rows);
    store_vectors(wide, b.left, 1, m, b.right, m, 1, result);
out:
    mica_free(b.matrix), mica_free(b.copy), mica_free(b.left), mica_free(b.right), mica_free(b.values), mica_free(b.work),
        mica_free(b.product);
    mica_free_aligned(b.slice), mica_free_aligned(b.scratch), mica_free(b.integers);
    return status;
}

typedef struct gram_buffers {
    double *gram, *strip, *left, *right, *applied, *small, *mass, *eigen, *work, *rotated;
    float *slice, *scratch;
    int *integers, work_count, integer_count;
} gram_buffers;

/* A's float64 Gram matrix, lower half (column-major). */
static void form_gram(const mica_wide *wide, const gram_buffers *b) {
    int rows = (int)wide->rows;
    for (size_t column = 0; column < wide->columns; column += STRIP) {
        int width = (int)(wide->columns - column < STRIP ? wide->columns - column : STRIP);
        load_strip(wide, column, (size_t)width, b->slice, b->scratch, b->strip);
        mica_blas.dsyrk_("L", "N", &rows, &width, &ONE, b->strip, &rows, column == 0 ? &ZERO : &ONE, b->gram, &rows);
    }
}

/* right = A^T left, applied = A right; all column-major with `count` columns. */
static void apply_matrix(const mica_wide *wide, const gram_buffers *b, int count) {
    int rows = (int)wide->rows, columns = (int)wide->columns;
    for (size_t column = 0; column < wide->columns; column += STRIP) {
        int width = (int)(wide->columns - column < STRIP ? wide->columns - column : STRIP);
        load_strip(wide, column, (size_t)width, b->slice, b->scratch, b->strip);
        mica_blas.dgemm_("T", "N", &width, &count, &rows, &ONE, b->strip, &rows, b->left, &rows, &ZERO, b->right + column, &columns);
        mica_blas.dgemm_("N", "N", &rows, &count, &width, &ONE, b->strip, &rows, b->right + column, &columns, column == 0 ? &ZERO : &ONE,
                         b->applied, &rows);
    }
}

/* Every eigenvalue of G (destroyed) into result->spectrum and sum_fourth, then the vectors of the largest `count`. */
static mica_status gram_eigen(const mica_wide *wide, const gram_buffers *b, uint32_t count, const mica_svd_options *options,
                              mica_svd_result *result, mica_error *error) {
    int rows = (int)wide->rows, found = 0, info = 0, first = rows - (int)count + 1;
    double fourth = 0;
    for (size_t c = 0; c < wide->rows; c++) {
        fourth -= b->gram[c * wide->rows + c] * b->gram[c * wide->rows + c];
        for (size_t r = c; r < wide->rows; r++)
            fourth += 2 * b->gram[c * wide->rows + r] * b->gram[c * wide->rows + r];
    }
    result->sum_fourth = fourth;
    if (options->full_spectrum) { /* costs a second Gram matrix; this is the fallback of a fallback */
        mica_blas.dsyevr_("N", "A", "L", &rows, b->gram, &rows, &ZERO, &ZERO, &first, &rows, &ZERO, &found, b->eigen, b->left, &rows,
                          b->integers, b->work, &b->work_count, b->integers + 2 * wide->rows, &b->integer_count, &info);
        if (info != 0)
            return mica_fail(error, MICA_FAILED, "LAPACK dsyevr of order %d: info %d", rows, info);
        for (size_t i = 0; i < wide->rows; i++)
            result->spectrum[i] = sqrt(b->eigen[wide->rows - 1 - i] > 0 ? b->eigen[wide->rows - 1 - i] : 0);
        form_gram(wide, b);
    }
    mica_blas.dsyevr_("V", "I", "L", &rows, b->gram, &rows, &ZERO, &ZERO, &first, &rows, &ZERO, &found, b->eigen, b->left, &rows,
                      b->integers, b->work, &b->work_count, b->integers + 2 * wide->rows, &b->integer_count, &info);
    if (info != 0 || found != (int)count)
        return mica_fail(error, MICA_FAILED, "LAPACK dsyevr of order %d: info %d, %d of %u vectors", rows, info, found, count);
    return MICA_OK;
}

/* Rayleigh-Ritz on A over span(left): values, left and right rotated to singular vectors, residual. */
static mica_status gram_ritz(const mica_wide *wide, const gram_buffers *b, uint32_t count, mica_svd_result *result, mica_error *error) {
    int rows = (int)wide->rows, columns = (int)wide->columns, k = (int)count, info = 0, type = 1;
    apply_matrix(wide, b, k);
    mica_blas.dsyrk_("L", "T", &k, &columns, &ONE, b->right, &columns, &ZERO, b->small, &k);
    mica_blas.dsyrk_("L", "T", &k, &rows, &ONE, b->left, &rows, &ZERO, b->mass, &k);
    mica_blas.dsygvd_(&type, "V", "L", &k, b->small, &k, b->mass, &k, b->eigen, b->work, &b->work_count, b->integers, &b->integer_count,
                      &info);
    if (info != 0)
        return mica_fail(error, MICA_FAILED, "LAPACK dsygvd of order %d: info %d", k, info);
    for (uint32_t i = 0; i < count; i++)
        result->values[i] = sqrt(b->eigen[count - 1 - i] > 0 ? b->eigen[count - 1 - i] : 0);
    result->count = count;
    result->rank = rank_of(result->values, count);
    for (uint32_t i = 0; i < count / 2; i++) /* largest first */
        for (uint32_t r = 0; r < count; r++) {
            double keep = b->small[i * count + r];
            b->small[i * count + r] = b->small[(count - 1 - i) * count + r];
            b->small[(count - 1 - i) * count + r] = keep;
        }
    /* applied z / s - left z s, then left z in its place and right z / s (unit by the step itself) */
    mica_blas.dgemm_("N", "N", &rows, &k, &k, &ONE, b->left, &rows, b->small, &k, &ZERO, b->rotated, &rows);
    memcpy(b->left, b->rotated, wide->rows * count * sizeof(double));
    mica_blas.dgemm_("N", "N", &rows, &k, &k, &ONE, b->applied, &rows, b->small, &k, &ZERO, b->rotated, &rows);
    double worst = 0;
    for (uint32_t i = 0; i < result->rank; i++) {
        double sum = 0;
        for (size_t r = 0; r < wide->rows; r++) {
            double off = b->rotated[i * wide->rows + r] / result->values[i] - b->left[i * wide->rows + r] * result->values[i];
            sum += off * off;
        }
        worst = fmax(worst, sqrt(sum) / result->values[0]);
    }
    result->residual = worst;
    for (size_t begin = 0; begin < wide->columns; begin += STRIP) { /* right = right z, by strips through `strip` */
        int width = (int)(wide->columns - begin < STRIP ? wide->columns - begin : STRIP);
        mica_blas.dgemm_("N", "N", &width, &k, &k, &ONE, b->right + begin, &columns, b->small, &k, &ZERO, b->strip, &width);
        for (uint32_t i = 0; i < count; i++)
            memcpy(b->right + i * wide->columns + begin, b->strip + i * (size_t)width, (size_t)width * sizeof(double));
    }
    return MICA_OK;
}

static mica_status dense_gram(const mica_wide *wide, uint32_t count, const mica_svd_options *options, mica_svd_result *result,
                              mica_error *error) {
    size_t m = wide->rows, n = wide->columns, k = count;
    int work_count = (int)(m * 40 + 6 * k * k + 1024), integer_count = (int)(m * 12 + 5 * k + 1024);
    gram_buffers b = {mica_alloc_aligned(m * m * 8),
                      mica_alloc_aligned(m * STRIP * 8 + STRIP * k * 8),
                      mica_alloc_aligned(m * k * 8),
                      mica_alloc_aligned(n * k * 8),
                      mica_alloc_aligned(m * k * 8),
                      mica_alloc_aligned(k * k * 8),
                      mica_alloc_aligned(k * k * 8),
                      mica_alloc_aligned(m * 8),
                      mica_alloc_aligned((size_t)work_count * 8),
                      mica_alloc_aligned(m * k * 8),
                      mica_alloc_aligned(wide->padded_rows * MICA_SLICE_COLUMNS * 4),
                      mica_alloc_aligned(mica_wide_scratch_floats(wide->padded_rows) * 4),
                      mica_alloc_aligned(((size_t)integer_count + 2 * m) * sizeof(int)),
                      work_count,
                      integer_count};
    mica_status status;
    if (!b.gram || !b.strip || !b.left || !b.right || !b.applied || !b.small || !b.mass || !b.eigen || !b.work || !b.rotated || !b.slice ||
        !b.scratch || !b.integers) {
        status = mica_fail(error, MICA_NO_MEMORY, "float64 Gram matrix of order %zu", m);
        goto out;
    }
    form_gram(wide, &b);
    status = gram_eigen(wide, &b, count, options, result, error);
    if (status == MICA_OK)
        status = gram_ritz(wide, &b, count, result, error);
    if (status == MICA_OK)
        store_vectors(wide, b.left, 1, m, b.right, 1, n, result);
out:
    mica_free_aligned(b.gram), mica_free_aligned(b.strip), mica_free_aligned(b.left), mica_free_aligned(b.right),
        mica_free_aligned(b.applied);
    mica_free_aligned(b.small), mica_free_aligned(b.mass), mica_free_aligned(b.eigen), mica_free_aligned(b.work),
        mica_free_aligned(b.rotated);
    mica_free_aligned(b.slice), mica_free_aligned(b.scratch), mica_free_aligned(b.integers);
    return status;
}

mica_status mica_svd_dense(const mica_wide *wide, uint32_t count, const mica_svd_options *options, mica_svd_result *result,
                           mica_error *error) {
    mica_status status = direct(wide->rows, wide->columns) ? dense_direct(wide, count, options, result, error)
                                                           : dense_gram(wide, count, options, result, error);
    if (status != MICA_OK || !result->vectors)
        return status;
    return mica_svd_orthonormality(result, wide->transposed ? wide->rows : wide->columns, &result->orthonormality, error);
}
