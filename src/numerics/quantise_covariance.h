/* numerics/quantise_covariance.h: levels chosen for the output's error under correlated inputs, not each weight's own: the "trellis" that
 * pays (docs/quantisers.md). Minimises sum over rows of (x - y)^T H (x - y), H the inputs' second moments, the blocks' scales being those
 * of mica_quantise_rows. Byte-identical for every instruction set. */
#ifndef MICA_NUMERICS_QUANTISE_COVARIANCE_H
#define MICA_NUMERICS_QUANTISE_COVARIANCE_H

#include "numerics/quantise.h"

/* H in factors: H + damping = U D U^T, U unit upper triangular. Immutable; any thread may use it. */
typedef struct mica_covariance mica_covariance;

#define MICA_COVARIANCE_DAMPING 0.01

/* From h ([columns][columns], symmetric, only proportions matter), with `damping` times the mean of the diagonal added to it: what was
 * measured on few tokens is singular. columns: a multiple of 256. Takes some columns^3 / 3 multiplications and, while it runs, 4 columns^2
 * bytes; keeps half of that. BAD_INPUT: not finite, negative on the diagonal, or not positive definite even so; NO_MEMORY. Release with
 * mica_covariance_free. */
mica_status mica_covariance_create(const float *h, uint64_t columns, double damping, mica_covariance **covariance,
                                   mica_error *error) MICA_CHECKED;
void mica_covariance_free(mica_covariance *covariance); /* NULL is fine */

bool mica_quantise_has_covariance(mica_dtype type); /* Q2_K, Q4_K, Q5_K */

/* As mica_quantise_rows, for columns as the covariance has. options->importance is not looked at: the diagonal of H takes its place.
 * Errors as there, and NO_MEMORY: it allocates some 9 bytes a weight. Better many rows at once: the factors are read once for all. */
mica_status mica_quantise_rows_covariance(mica_dtype type, const float *x, uint64_t stride, uint64_t rows,
                                          const mica_covariance *covariance, const mica_quantise_options *options, uint8_t *out,
                                          mica_error *error) MICA_CHECKED;

#endif
