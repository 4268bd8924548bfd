/* numerics/svd_internal.h: what svd.c (Krylov route, certification) and svd_dense.c (float64 route) share. */
#ifndef MICA_NUMERICS_SVD_INTERNAL_H
#define MICA_NUMERICS_SVD_INTERNAL_H

#include "numerics/gram.h"
#include "numerics/svd.h"

#define MICA_RANK_TOLERANCE 0x1p-23 /* of s_0: below, a float32 direction means nothing */

/* The float64 route; `count` triplets of A into result (values unscaled by the exponent yet). Fills values, vectors, spectrum, residual,
 * orthonormality, rank, sum_fourth. Frees what it needs before it returns. */
mica_status mica_svd_dense(const mica_wide *wide, uint32_t count, const mica_svd_options *options, mica_svd_result *result,
                           mica_error *error) MICA_CHECKED;
uint64_t mica_svd_dense_bytes(uint64_t rows, uint64_t columns, uint32_t count);

/* Stores the right vector `from` (length, stride) of triplet i: unit, largest component positive. */
void mica_svd_store_vector(const mica_svd_result *result, uint32_t i, const double *from, size_t stride, size_t length);

/* max |V V^T - I| over the first `rank` of the stored vectors. */
mica_status mica_svd_orthonormality(const mica_svd_result *result, size_t length, double *worst, mica_error *error) MICA_CHECKED;

#endif
