/* numerics/krylov.h: the top eigenvectors of a packed Gram matrix by Chebyshev-filtered block Lanczos with full reorthogonalisation.
 *
 * The basis is a Krylov space of T_d(l(G)), l mapping [0, bound] to [-1, 1]: eigenvalues above the bound grow, the rest is damped, so that
 * a small basis holds the wanted space (Saad, Numerical Methods for Large Eigenvalue Problems, 2nd ed., §6.3 and §7.4). The start block is
 * a fixed pseudo-random one: the result depends on G, the plan and the instruction set only. */
#ifndef MICA_NUMERICS_KRYLOV_H
#define MICA_NUMERICS_KRYLOV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "numerics/kernels.h"
#include "numerics/svd.h"

typedef struct mica_krylov mica_krylov; /* buffers of one thread */
uint64_t mica_krylov_bytes(size_t padded_rows, uint32_t count);
mica_status mica_krylov_create(size_t padded_rows, uint32_t count, mica_krylov **krylov, mica_error *error) MICA_CHECKED;
void mica_krylov_free(mica_krylov *krylov); /* NULL is fine */

typedef struct mica_krylov_result {
    bool converged;      /* by its own estimate; false: breakdown, or the largest basis was not enough */
    mica_svd_plan plan;  /* the one used, with the basis that was enough */
    uint32_t basis;      /* columns used */
} mica_krylov_result;

/* Approximate eigenvectors of the `count` largest eigenvalues into `vectors` [padded_rows][ld] (ld a multiple of 64, columns beyond count
 * zero), nearly orthonormal. `plan` may have degree 0: then one is learnt from a short unfiltered run. `tolerance`: of |G u - l u| / sqrt(l
 * l_max). */
mica_status mica_krylov_run(mica_krylov *krylov, const mica_kernels *kernels, const float *packed, size_t rows, size_t padded_rows,
                            double trace, uint32_t count, const mica_svd_plan *plan, double tolerance, float *vectors, size_t ld,
                            mica_krylov_result *result, mica_error *error) MICA_CHECKED;

#endif
