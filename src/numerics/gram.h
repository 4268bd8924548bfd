/* numerics/gram.h: the Gram matrix of a weight, A A^T with A = W or W^T (the one with fewer rows), packed (kernels.h).
 *
 * Codes become int16 with one power-of-two scale per row and 128 columns, chosen so that no int32 sum can overflow; block scales are
 * applied to the float32 partial sums. fp8, MXFP4 and int4 values are then exact but for those far below their row's norm (docs/svd.md);
 * wider types, bf16 among them, take two int16 digits. */
#ifndef MICA_NUMERICS_GRAM_H
#define MICA_NUMERICS_GRAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/pool.h"
#include "numerics/kernels.h"
#include "numerics/matrix.h"

#define MICA_SLAB_COLUMNS 1024 /* columns of A packed at a time */

/* A weight seen as A: fewer rows than columns. */
typedef struct mica_wide {
    const mica_matrix *matrix;
    int exponent;
    bool transposed;
    size_t rows, columns;  /* of A */
    size_t padded_rows;    /* multiple of 32 */
    size_t padded_columns; /* multiple of 128 */
} mica_wide;

mica_wide mica_wide_of(const mica_matrix *matrix, int exponent);

/* A[0 … rows)[column … column + width) as float32 [padded_rows][width] (zero padding); `scratch` as mica_wide_scratch_floats. Width
 * MICA_SLICE_COLUMNS. */
#define MICA_SLICE_COLUMNS 128
void mica_wide_slice(const mica_wide *wide, size_t column, float *slice, float *scratch);
size_t mica_wide_scratch_floats(size_t padded_rows);

typedef struct mica_gram mica_gram; /* buffers for one thread */
uint64_t mica_gram_bytes(size_t padded_rows);
mica_status mica_gram_create(size_t padded_rows, mica_gram **gram, mica_error *error) MICA_CHECKED;
void mica_gram_free(mica_gram *gram); /* NULL is fine */

/* Fills `packed` (mica_packed_offset(padded_rows / 8) floats, 64-byte aligned); *frobenius_squared of A. The same bits whoever takes
 * part. */
void mica_gram_compute(mica_gram *gram, const mica_kernels *kernels, const mica_wide *wide, const mica_share *share, float *packed,
                       double *frobenius_squared);

double mica_packed_sum_squares(const float *packed, size_t padded_rows);          /* |G|_F^2 */
void mica_packed_expand(const float *packed, size_t rows, float *full); /* [rows][rows], lower half */

#endif
