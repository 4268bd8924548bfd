/* numerics/quantise.h: float32 rows to ggml's block types. The blocks are as ggml reads them; which levels and scales are written is found
 * by a search that lowers the sum over columns of importance * (weight - decoded weight)^2 (docs/quantisers.md). Byte-identical for every
 * instruction set. Any thread. */
#ifndef MICA_NUMERICS_QUANTISE_H
#define MICA_NUMERICS_QUANTISE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"
#include "numerics/matrix.h"

/* name, text */
#define MICA_EFFORT_LIST(X) X(FAST, "fast") X(DEFAULT, "default") X(MAX, "max")

typedef enum mica_effort {
#define X(name, text) MICA_EFFORT_##name,
    MICA_EFFORT_LIST(X)
#undef X
    MICA_EFFORT_COUNT
} mica_effort;
const char *mica_effort_name(mica_effort effort);
bool mica_effort_parse(const char *text, mica_effort *effort);

#define MICA_QUANTISE_GAIN 0.75

typedef struct mica_quantise_options {
    mica_effort effort;
    double gain;             /* eta, 0 to 1: the part of the shrinkage of least squares that is undone; MICA_QUANTISE_GAIN is what pays */
    const float *importance; /* [columns], finite, not negative; only their proportions matter. NULL: all alike */
} mica_quantise_options;

/* Whether a row of this many columns can be of this block type. */
bool mica_quantise_fits(mica_dtype type, uint64_t columns);

/* rows x columns floats, `stride` floats between rows, to rows * columns / block elements blocks without a gap at `out` (not aligned).
 * BAD_INPUT, nothing or a part written: a value not finite, or beyond 65504 in a type with float16 scales; importance not as above. USAGE:
 * not a block type, columns no whole number of its blocks, options out of range. Messages name row and column, the caller the tensor. */
mica_status mica_quantise_rows(mica_dtype type, const float *x, uint64_t stride, uint64_t rows, uint64_t columns,
                               const mica_quantise_options *options, uint8_t *out, mica_error *error) MICA_CHECKED;

/* Rows [row, row + count) of a stored matrix: decoded into `scratch` ([count][columns] floats) and quantised. For FP8_BLOCK to Q8_0 it also
 * tries, in each block, the power of two times the stored scale that puts fp8's upper binades on integers. Errors as above, rows counted
 * from the matrix's first. */
mica_status mica_quantise_matrix(mica_dtype type, const mica_matrix *matrix, uint64_t row, uint64_t count,
                                 const mica_quantise_options *options, float *scratch, uint8_t *out, mica_error *error) MICA_CHECKED;

/* Sums over columns and rows; the relative error is sqrt(squared / energy). */
typedef struct mica_quantise_error {
    double squared; /* of importance * (x - decoded)^2 */
    double energy;  /* of importance * x^2 */
} mica_quantise_error;

/* Adds the error of blocks written for these rows; importance as given, NULL: 1. */
void mica_quantise_error_add(mica_dtype type, const float *x, uint64_t stride, uint64_t rows, uint64_t columns, const float *importance,
                             const uint8_t *blocks, mica_quantise_error *sum);

#endif
