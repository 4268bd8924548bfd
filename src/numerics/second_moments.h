/* numerics/second_moments.h: sums of products of inputs' columns, X^T X, as the search for levels with covariance wants them. */
#ifndef MICA_NUMERICS_SECOND_MOMENTS_H
#define MICA_NUMERICS_SECOND_MOMENTS_H

#include <stdint.h>

#include "base/pool.h"

#define MICA_SECOND_MOMENTS_COLUMNS 64u /* columns are a multiple of this */
#define MICA_SECOND_MOMENTS_TOKENS 256u /* taken at a time */

/* Adds to sums ([columns][columns]) x_t[i] x_t[j] for j <= i over the tokens, rows `selection` [tokens] (NULL: 0, 1, …) of x, `stride`
 * floats apart; what lies above the diagonal's blocks of 64 is not touched, and means nothing within them. `scratch`: [256][columns], best
 * on a border of 64 bytes. Sums are float32, of 256 tokens at a time: the same bits from every instruction set and any number of threads
 * (those of `pool`; NULL: the caller alone). */
void mica_second_moments_add(mica_pool *pool, const float *x, uint64_t stride, const uint32_t *selection, uint64_t tokens, uint64_t columns,
                             float *scratch, float *sums);

#endif
