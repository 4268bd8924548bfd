/* numerics/matrix.h: a weight matrix as it is stored: codes, and scales in a grid of blocks.
 * value(r, c) = code(r, c) * scale(r / block_rows, c / block_columns); grids are ceil-divided, row-major, edges ragged.
 * Borrowed pointers only; nothing here owns memory. */
#ifndef MICA_NUMERICS_MATRIX_H
#define MICA_NUMERICS_MATRIX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"

/* encoding, text */
#define MICA_ENCODING_LIST(X)                                                                                           \
    X(PLAIN, "plain")          /* codes are `dtype`, no scales                                                       */ \
    X(FP8_BLOCK, "fp8-block")  /* F8_E4M3 or F8_E5M2 codes, one byte each; scales F32, F8_E8M0 or BF16 (128 x 128)    */ \
    X(MXFP4, "mxfp4")          /* E2M1, two a byte, low nibble = even column; scales F8_E8M0 (1 x 32)                 */ \
    X(INT4_GROUP, "int4-group") /* nibble - 8, eight to a little-endian I32, low nibble first; scales BF16/F16/F32 (1 x 32) */ \
    X(BLOCK, "block")          /* `dtype` is a block type of ggml: rows of whole blocks, which hold their own scales          */

typedef enum mica_encoding {
#define X(name, text) MICA_ENCODING_##name,
    MICA_ENCODING_LIST(X)
#undef X
} mica_encoding;
const char *mica_encoding_name(mica_encoding encoding);

typedef struct mica_matrix {
    mica_encoding encoding;
    mica_dtype dtype; /* of the codes; for MXFP4 and INT4_GROUP what the file calls them (I8, I32) */
    uint64_t rows, columns; /* decoded; for BLOCK the columns are a multiple of mica_dtype_block_elements(dtype) */
    const void *codes;      /* [rows][row_bytes], row_bytes as mica_matrix_row_bytes; need not be aligned */
    mica_dtype scale_dtype;
    uint64_t block_rows, block_columns;
    const void *scales; /* [ceil(rows/block_rows)][ceil(columns/block_columns)] of scale_dtype; NULL for PLAIN and BLOCK; need not be aligned */
} mica_matrix;

uint64_t mica_matrix_row_bytes(const mica_matrix *matrix); /* of the codes; odd rows of nibbles end in a padded byte (MXFP4) or word (INT4) */

/* Decodes rows [row, row + count) times 2^-exponent to float32, row-major with `stride` floats between rows (>= columns).
 * With exponent 0 this is the reference decoding: E8M0 byte 0 gives 2^-127 (never flushed), 255 NaN; products beyond float32
 * become infinite; every NaN is 0x7fc00000. One rounding, of the exact code * scale * 2^-exponent. Any block size and any scale dtype will do.
 * Blocks come out as ggml's own decoder has them, but for MXFP4's byte 255, which is NaN here as in MICA_ENCODING_MXFP4 (ggml's check of
 * a file refuses it, its decoder makes 2^127 of it).
 * Bit-identical for every instruction set. */
void mica_matrix_decode(const mica_matrix *matrix, int exponent, uint64_t row, uint64_t count, float *out, uint64_t stride);

/* Same, columns [column, column+width) only; column and width multiples of 32 or reaching the last column. */
void mica_matrix_decode_block(const mica_matrix *matrix, int exponent, uint64_t row, uint64_t count, uint64_t column, uint64_t width, float *out,
                              uint64_t stride);

/* One look at codes and scales, before any arithmetic. */
typedef struct mica_matrix_health {
    bool has_nan, has_infinity;            /* of the exact value code * scale, before float32 can overflow; both, if both occur */
    bool has_zero_scale, has_negative_scale; /* legal, reported; never set for BLOCK, where both are common */
    uint64_t nan_row, nan_column;          /* first position, row by row, that is not finite (valid when has_nan or has_infinity) */
    bool in_scale;                         /* a scale is not finite; the position is in the scale grid, and the codes were not looked at */
    uint64_t odd_scale_row, odd_scale_column; /* first zero or negative scale */
    double odd_scale;
    int exponent; /* choose so that 2^-exponent * |value| <= 1 for all entries and > 1/4 for the largest; 0 for an all-zero matrix, or one not finite */
} mica_matrix_health;
void mica_matrix_examine(const mica_matrix *matrix, mica_matrix_health *health);

/* Arrays of plain elements. Returns false when the dtype is a block type or has no float meaning (integers decode to their value; BOOL to 0/1). */
bool mica_decode_plain(mica_dtype dtype, const void *codes, uint64_t count, float *out);

#endif
