/* numerics/quantise_lossless.c: stored matrices whose codes are those of a block type: only nibbles change places. Nothing is rounded: a scale that
 * float16 does not have is a refusal. Judged by tests/numerics/test_quantise_lossless.c, value for value. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "numerics/decode_kernels.h"
#include "numerics/encode.h"
#include "numerics/quantise.h"

enum { GROUP = 32, SCALES_AT_ONCE = 256 };

static bool is_half(double value) {
    return isfinite(value) && mica_f16_value(mica_f16_encode((float)value)) == value;
}

/* Every scale a float16 (or, for MXFP4, not NaN), looked at some at a time. */
static bool scales_fit(const mica_matrix *matrix, char *why) {
    mica_grid grid = mica_matrix_grid(matrix);
    uint64_t count = matrix->rows && matrix->columns ? grid.rows * grid.columns : 0;
    bool halves = matrix->encoding == MICA_ENCODING_INT4_GROUP;
    for (uint64_t first = 0; first < count; first += SCALES_AT_ONCE) {
        double scales[SCALES_AT_ONCE];
        uint64_t now = mica_min_u64(count - first, SCALES_AT_ONCE);
        mica_scale_values(matrix, first, now, scales);
        for (uint64_t i = 0; i < now; i++)
            if (halves ? !is_half(scales[i]) : scales[i] != scales[i]) {
                snprintf(why, MICA_LOSSLESS_WHY_BYTES, "scale %llu, %llu is %g, which is no %s", (unsigned long long)((first + i) / grid.columns),
                         (unsigned long long)((first + i) % grid.columns), scales[i], halves ? "float16" : "number");
                return false;
            }
    }
    return true;
}

bool mica_lossless_type(const mica_matrix *matrix, mica_dtype *type, char why[MICA_LOSSLESS_WHY_BYTES]) {
    if (matrix->encoding == MICA_ENCODING_BLOCK) {
        *type = matrix->dtype;
        return true;
    }
    if (matrix->encoding != MICA_ENCODING_INT4_GROUP && matrix->encoding != MICA_ENCODING_MXFP4) {
        snprintf(why, MICA_LOSSLESS_WHY_BYTES, "no block type has the codes of %s", mica_encoding_name(matrix->encoding));
        return false;
    }
    if (matrix->columns % GROUP != 0 || (mica_matrix_grid(matrix).block_columns % GROUP != 0)) {
        snprintf(why, MICA_LOSSLESS_WHY_BYTES, "%llu columns in groups of %llu are not made of groups of 32", (unsigned long long)matrix->columns,
                 (unsigned long long)matrix->block_columns);
        return false;
    }
    if (matrix->encoding == MICA_ENCODING_MXFP4 && matrix->scale_dtype != MICA_F8_E8M0) {
        snprintf(why, MICA_LOSSLESS_WHY_BYTES, "scales of type %s are no powers of two", mica_dtype_name(matrix->scale_dtype));
        return false;
    }
    if (!scales_fit(matrix, why))
        return false;
    *type = matrix->encoding == MICA_ENCODING_MXFP4 ? MICA_MXFP4 : MICA_Q4_0;
    return true;
}

/* 32 nibbles, neighbours in a byte, to j and j + 16 in a byte. */
static void put_apart(const uint8_t *codes, uint8_t *out) {
    for (int k = 0; k < 8; k++) {
        out[2 * k] = (uint8_t)((codes[k] & 15) | codes[k + 8] << 4);
        out[2 * k + 1] = (uint8_t)(codes[k] >> 4 | (codes[k + 8] & 0xf0));
    }
}

static void put_row(const mica_matrix *matrix, uint64_t row, uint8_t *out) {
    bool mxfp4 = matrix->encoding == MICA_ENCODING_MXFP4;
    mica_grid grid = mica_matrix_grid(matrix);
    const uint8_t *codes = (const uint8_t *)matrix->codes + row * mica_matrix_row_bytes(matrix);
    uint64_t scale_row = row / grid.block_rows * grid.columns;
    for (uint64_t column = 0; column < matrix->columns; column += GROUP, codes += GROUP / 2, out += GROUP / 2) {
        uint64_t at = scale_row + column / grid.block_columns;
        if (mxfp4)
            *out++ = ((const uint8_t *)matrix->scales)[at];
        else {
            double scale;
            mica_scale_values(matrix, at, 1, &scale);
            uint16_t half = mica_f16_encode((float)scale);
            *out++ = (uint8_t)half;
            *out++ = (uint8_t)(half >> 8);
        }
        put_apart(codes, out);
    }
}

void mica_lossless_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, uint8_t *out) {
    if (matrix->encoding == MICA_ENCODING_BLOCK) {
        uint64_t bytes = mica_matrix_row_bytes(matrix);
        memcpy(out, (const uint8_t *)matrix->codes + row * bytes, count * bytes);
        return;
    }
    uint64_t bytes = matrix->columns / GROUP * (matrix->encoding == MICA_ENCODING_MXFP4 ? 17 : 18);
    for (uint64_t r = 0; r < count; r++)
        put_row(matrix, row + r, out + r * bytes);
}
