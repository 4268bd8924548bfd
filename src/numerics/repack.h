/* numerics/repack.h: from a checkpoint's 4-bit encodings to ggml's blocks of the same codes: nibbles change their places, nothing is
 * rounded.
 * Judged by tests/numerics/test_repack.c, against decoding. */
#ifndef MICA_NUMERICS_REPACK_H
#define MICA_NUMERICS_REPACK_H

#include <stdbool.h>
#include <stdint.h>

#include "numerics/matrix.h"

/* Whether the rows of a matrix stored like this can be blocks of `type` with the same codes: MXFP4 in blocks of 32 as MXFP4, int4 in groups
 * of a multiple of 32 as Q4_0; whole blocks only. */
bool mica_repack_can(const mica_matrix *matrix, mica_dtype type);

typedef struct mica_repack_misfit { /* a scale, and where its group begins */
    uint64_t row, column;
    double scale;
} mica_repack_misfit;

/* False, and the first of the rows' scales that would not stay finite: one that is not, or from 65520 on, which float16 rounds to infinity.
 * Looks at no code. `matrix` and `type` as mica_repack_can accepts them. */
bool mica_repack_scales_fit(const mica_matrix *matrix, mica_dtype type, uint64_t row, uint64_t count, mica_repack_misfit *misfit);

/* Rows [row, row + count) whose scales fit, to blocks without a gap at `out` (not aligned). *inexact is raised by the int4 groups whose
 * scale float16 does not hold (it holds every bfloat16 from 2^-17 to 65280): their codes are the same, their scale is the nearest. MXFP4 is
 * always exact. */
void mica_repack_rows(const mica_matrix *matrix, mica_dtype type, uint64_t row, uint64_t count, uint8_t *out, uint64_t *inexact);

#endif
