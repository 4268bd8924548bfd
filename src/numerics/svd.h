/* numerics/svd.h: the top singular triplets of one encoded matrix, certified.
 *
 * Criteria, checked a posteriori for every matrix: residual max_i(|W v_i - s_i u_i|, |W^T u_i - s_i v_i|) / s_0 <= 1e-4, orthonormality
 * max |V V^T - I| <= 1e-5; what fails takes the dense route (float64 Gram, LAPACK), and says so.
 * Method: docs/svd.md. One workspace per thread; results depend on matrix, options and instruction set only. */
#ifndef MICA_NUMERICS_SVD_H
#define MICA_NUMERICS_SVD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/pool.h"
#include "numerics/matrix.h"

typedef enum mica_svd_route { MICA_SVD_KRYLOV, MICA_SVD_DENSE, MICA_SVD_ZERO } mica_svd_route;
const char *mica_svd_route_name(mica_svd_route route); /* "krylov", "dense", "zero" */

/* What the first expert of a layer teaches the others: plain numbers, stored in the journal. All zero = not known yet. */
typedef struct mica_svd_plan {
    uint32_t degree;     /* of the Chebyshev filter; 0: no plan */
    uint32_t basis;      /* expected basis size */
    double bound_over_trace; /* upper end of the damped interval, relative to |W|_F^2 */
} mica_svd_plan;

typedef struct mica_svd_options {
    uint32_t count;              /* wanted triplets; min(count, rows, columns) are found */
    bool vectors;                /* right vectors wanted */
    bool full_spectrum;          /* every singular value as well */
    bool check_count;            /* establish by inertia that no larger singular value was missed */
    const mica_svd_plan *plan;   /* NULL or degree 0: learn one (result.plan) */
    /* Instead of `plan`, one that may not be there yet: asked for when it is needed, which is after the Gram matrix, half of the work. A
     * status that is not OK ends the decomposition. */
    mica_status (*ask_plan)(void *context, mica_svd_plan *plan, mica_error *error);
    void *ask_context;
    mica_share share;            /* who may take part in the Gram matrix; the result does not depend on it */
} mica_svd_options;

typedef struct mica_svd_result {
    uint32_t count;          /* triplets found */
    uint32_t rank;           /* those above the rank tolerance s_0 * 2^-23; vectors past it are zero */
    mica_svd_route route;
    const char *why_dense;   /* static text; NULL on the Krylov route */
    double frobenius;        /* |W|_F, float64, true scale (as all below) */
    double *values;          /* [count] falling; caller's array of options.count */
    float *vectors;          /* [options.count][columns] unit rows, largest component positive; caller's, may be NULL */
    double *spectrum;        /* [min(rows, columns)] falling; caller's, when full_spectrum */
    double residual;         /* of the stored float32 vectors, relative to s_0 */
    double orthonormality;   /* max |V V^T - I| over rows up to rank */
    double value_error;      /* bound on every |s_i - true s_i| / s_0, from the residual */
    bool count_checked;      /* inertia count done, and agreed */
    mica_svd_plan plan;      /* learnt (or the one given) */
    uint32_t basis;          /* basis size used */
    double sum_fourth;       /* sum of s^4 over all singular values (|G|_F^2), for the participation ratio */
} mica_svd_result;

typedef struct mica_svd_workspace mica_svd_workspace;
/* Sized for matrices up to rows x columns; about mica_svd_workspace_bytes(). */
uint64_t mica_svd_workspace_bytes(uint64_t rows, uint64_t columns, const mica_svd_options *options);
mica_status mica_svd_workspace_create(uint64_t rows, uint64_t columns, const mica_svd_options *options, mica_svd_workspace **workspace,
                                      mica_error *error) MICA_CHECKED;
void mica_svd_workspace_free(mica_svd_workspace *workspace); /* NULL is fine */

/* `matrix` must be finite (mica_matrix_examine); `exponent` is its health.exponent. result->values etc. are set by the caller. */
mica_status mica_svd(mica_svd_workspace *workspace, const mica_matrix *matrix, int exponent, const mica_svd_options *options,
                     mica_svd_result *result, mica_error *error) MICA_CHECKED;

/* Text that names everything the bits depend on besides the input: instruction set, OpenBLAS's version and
 * kernels ("avx512 openblas-0.3.21-SkylakeX"). Static. */
const char *mica_svd_arithmetic(void);

#endif
