/* numerics/repack.c: see the header. Sources of the layouts: docs/formats.md (blocks), numerics/matrix.h (checkpoints). */
#include "numerics/repack.h"

#include <math.h>
#include <string.h>

#include "numerics/encode.h"

#define BLOCK 32u
#define HALF (BLOCK / 2)
#define E8M0_NAN 255

bool mica_repack_can(const mica_matrix *matrix, mica_dtype type) {
    if (matrix->columns % BLOCK != 0 || matrix->block_rows != 1)
        return false;
    if (matrix->encoding == MICA_ENCODING_MXFP4)
        return type == MICA_MXFP4 && matrix->block_columns == BLOCK && matrix->scale_dtype == MICA_F8_E8M0;
    return matrix->encoding == MICA_ENCODING_INT4_GROUP && type == MICA_Q4_0 && matrix->block_columns % BLOCK == 0;
}

static uint64_t groups_of_row(const mica_matrix *matrix) {
    return (matrix->columns + matrix->block_columns - 1) / matrix->block_columns;
}

/* The float16 that a scale becomes, and what it holds. */
static uint16_t half_scale(const mica_matrix *matrix, const uint8_t *stored, float *scale, float *held) {
    (void)mica_decode_plain(matrix->scale_dtype, stored, 1, scale);
    const uint16_t half = mica_f16_encode(*scale);
    (void)mica_decode_plain(MICA_F16, &half, 1, held);
    return half;
}

bool mica_repack_scales_fit(const mica_matrix *matrix, mica_dtype type, uint64_t row, uint64_t count, mica_repack_misfit *misfit) {
    const uint64_t groups = groups_of_row(matrix), scale_bytes = mica_dtype_bytes(matrix->scale_dtype);
    for (uint64_t i = row * groups; i < (row + count) * groups; i++) {
        const uint8_t *stored = (const uint8_t *)matrix->scales + i * scale_bytes;
        float scale = NAN, held;
        if (type == MICA_MXFP4 ? *stored != E8M0_NAN : (half_scale(matrix, stored, &scale, &held), isfinite(held)))
            continue;
        *misfit = (mica_repack_misfit){i / groups, i % groups * matrix->block_columns, (double)scale};
        return false;
    }
    return true;
}

/* Pairs of neighbours become pairs half a block apart: low nibbles 0 … 15, high nibbles 16 … 31. In both encodings an even column is the
 * low nibble of its byte. */
static void part_nibbles(const uint8_t pairs[HALF], uint8_t out[HALF]) {
    for (uint32_t i = 0; i < HALF; i++) {
        const uint8_t low = pairs[i / 2] >> 4 * (i % 2) & 15, high = pairs[HALF / 2 + i / 2] >> 4 * (i % 2) & 15;
        out[i] = (uint8_t)(low | high << 4);
    }
}

void mica_repack_rows(const mica_matrix *matrix, mica_dtype type, uint64_t row, uint64_t count, uint8_t *out, uint64_t *inexact) {
    const uint64_t blocks = matrix->columns / BLOCK, row_bytes = mica_matrix_row_bytes(matrix);
    const uint64_t groups = groups_of_row(matrix), scale_bytes = mica_dtype_bytes(matrix->scale_dtype);
    for (uint64_t r = row; r < row + count; r++) {
        const uint8_t *codes = (const uint8_t *)matrix->codes + r * row_bytes;
        const uint8_t *scales = (const uint8_t *)matrix->scales + r * groups * scale_bytes;
        uint64_t last = UINT64_MAX;
        for (uint64_t b = 0; b < blocks; b++) {
            const uint64_t group = b * BLOCK / matrix->block_columns;
            if (type == MICA_MXFP4) {
                *out++ = scales[group];
            } else {
                float scale, held;
                const uint16_t half = half_scale(matrix, scales + group * scale_bytes, &scale, &held);
                *inexact += group != last && held != scale;
                last = group;
                memcpy(out, &half, sizeof half);
                out += sizeof half;
            }
            part_nibbles(codes + b * HALF, out);
            out += HALF;
        }
    }
}
