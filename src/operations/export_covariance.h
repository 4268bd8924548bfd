/* operations/export_covariance.h: factors of inputs' covariances while an export runs: made when the first unit wants them, shared by the
 * threads, kept while they are used and a little longer, since tensors behind one another have one input. Judged by
 * tests/operations/test_export_covariance.c. */
#ifndef MICA_OPERATIONS_EXPORT_COVARIANCE_H
#define MICA_OPERATIONS_EXPORT_COVARIANCE_H

#include "formats/imatrix.h"
#include "numerics/quantise_covariance.h"

typedef struct mica_export_factors mica_export_factors;

/* Room for `threads` in use and one more. `imatrix` is borrowed. */
mica_status mica_export_factors_create(const mica_imatrix *imatrix, uint32_t threads, mica_export_factors **factors,
                                       mica_error *error) MICA_CHECKED;
void mica_export_factors_free(mica_export_factors *factors); /* NULL is fine */

/* Any thread; one that comes while they are made waits. Every acquire that succeeded has its release. */
mica_status mica_export_factors_acquire(mica_export_factors *factors, const mica_imatrix_covariance *covariance, uint64_t slot,
                                        const mica_covariance **made, mica_error *error) MICA_CHECKED;
void mica_export_factors_release(mica_export_factors *factors, const mica_covariance *made);

/* Of covariances of so many columns: all that is kept, and what making one takes for a while. */
uint64_t mica_export_factors_bytes(uint64_t columns, uint32_t threads);

#endif
