/* numerics/decode_block.h: inside decode only: rows of ggml's blocks. A block carries its own scales, as halves (MXFP4: as a power of
 * two) and as small integers that multiply them, so every value is an integer times a half, less an integer times another one: exact
 * in double, and one rounding away from float32. ggml's own float32 arithmetic rounds once as well, at the same place. */
#ifndef MICA_NUMERICS_DECODE_BLOCK_H
#define MICA_NUMERICS_DECODE_BLOCK_H

#include <stdint.h>

#include "base/dtype.h"
#include "numerics/matrix.h"

enum { MICA_BLOCK_ELEMENTS_MAX = 256 };

/* The exact values of one block. */
typedef void mica_block_values(const uint8_t *block, double *values);
mica_block_values *mica_block_values_of(mica_dtype dtype); /* NULL for a plain type */

/* `count` whole blocks times `factor`, a power of two small enough that no product of it is subnormal or overflows (decode_block.c). */
typedef void mica_decode_blocks(const uint8_t *blocks, uint64_t count, float factor, float *out);

void mica_block_decode(const mica_matrix *matrix, int exponent, uint64_t row, uint64_t count, uint64_t column, uint64_t width, float *out,
                       uint64_t stride);
void mica_block_examine(const mica_matrix *matrix, mica_matrix_health *health);

#endif
