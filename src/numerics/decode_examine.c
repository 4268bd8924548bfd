/* numerics/decode_examine.c: what is in a matrix before any arithmetic: NaN, infinity, odd scales, the largest magnitude.
 * Works on the codes: in every floating format the larger magnitude has the larger bits, so one integer maximum per block answers
 * both questions; it meets the scale in double, where the product is exact. Judged by tests/numerics/test_decode.c. */
#include "numerics/decode_kernels.h"

enum {
    RECTANGLE_ROWS = 16,  /* as many streams as the prefetcher follows; fewer reductions than row by row */
    SCALES_AT_ONCE = 256,
    NIBBLE_BLOCK_COLUMNS = 32
};

static uint8_t portable_max_u8(const uint8_t *codes, uint64_t stride, uint64_t rows, uint64_t width) {
    uint8_t largest = 0;
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; c < width; c++) {
            uint8_t magnitude = codes[r * stride + c] & 0x7f;
            largest = magnitude > largest ? magnitude : largest;
        }
    }
    return largest;
}

static uint16_t portable_max_u16(const uint8_t *codes, uint64_t count) {
    uint16_t largest = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint16_t magnitude = mica_load_u16(codes, i) & 0x7fff;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

static uint32_t portable_max_u32(const uint8_t *codes, uint64_t count) {
    uint32_t largest = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t magnitude = mica_load_u32(codes, i) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

static void portable_max_nibbles(const uint8_t *codes, uint64_t blocks, const uint8_t magnitudes[16], uint8_t *maxima) {
    for (uint64_t b = 0; b < blocks; b++) {
        uint8_t largest = 0;
        for (uint64_t c = 0; c < NIBBLE_BLOCK_COLUMNS; c++) {
            uint8_t magnitude = magnitudes[mica_nibble(codes + 16 * b, c)];
            largest = magnitude > largest ? magnitude : largest;
        }
        maxima[b] = largest;
    }
}

const mica_decode_kernels mica_decode_kernels_portable = {
    .max_u8 = portable_max_u8, .max_u16 = portable_max_u16, .max_u32 = portable_max_u32, .max_nibbles = portable_max_nibbles};

void mica_health_note(mica_matrix_health *health, double value, uint64_t row, uint64_t column) {
    if (!health->has_nan && !health->has_infinity) {
        health->nan_row = row;
        health->nan_column = column;
    }
    *(isnan(value) ? &health->has_nan : &health->has_infinity) = true;
}

static void examine_scales(const mica_matrix *matrix, mica_grid grid, mica_matrix_health *health) {
    uint64_t count = grid.rows * grid.columns;
    if (matrix->encoding == MICA_ENCODING_PLAIN ||
        (matrix->scale_dtype == MICA_F8_E8M0 && !memchr(matrix->scales, 255, count))) { /* the other 255 are positive and finite */
        return;
    }
    double scales[SCALES_AT_ONCE];
    for (uint64_t i = 0; i < count; i++) {
        if (i % SCALES_AT_ONCE == 0) {
            mica_scale_values(matrix, i, mica_min_u64(count - i, SCALES_AT_ONCE), scales);
        }
        double scale = scales[i % SCALES_AT_ONCE];
        if (!isfinite(scale)) {
            health->in_scale = true;
            mica_health_note(health, scale, i / grid.columns, i % grid.columns);
        } else if (scale <= 0.0) {
            if (!health->has_zero_scale && !health->has_negative_scale) {
                health->odd_scale_row = i / grid.columns;
                health->odd_scale_column = i % grid.columns;
                health->odd_scale = scale;
            }
            *(scale == 0.0 ? &health->has_zero_scale : &health->has_negative_scale) = true;
        }
    }
}

/* Slow, and only run when there is something to find. */
static void find_not_finite(const mica_matrix *matrix, mica_grid grid, mica_matrix_health *health) {
    mica_code code = mica_matrix_code(matrix);
    uint64_t row_bytes = mica_matrix_row_bytes(matrix);
    for (uint64_t r = 0; r < matrix->rows; r++) {
        const uint8_t *row = (const uint8_t *)matrix->codes + r * row_bytes;
        for (uint64_t c = 0; c < matrix->columns; c++) {
            double value = mica_code_value(code, row, c);
            if (!isfinite(value)) {
                value *= mica_scale_value(matrix, r / grid.block_rows * grid.columns + c / grid.block_columns); /* infinity * 0 is NaN */
                mica_health_note(health, value, r, c);
            }
        }
    }
}

static double larger(double a, double b) {
    return isnan(b) || b > a ? b : a; /* a NaN stays: larger(NaN, b) compares false */
}

/* Largest |code| of columns [column, column + count) of one row, element by element. */
static double row_max(mica_code code, const uint8_t *row, uint64_t column, uint64_t count) {
    double largest = 0.0;
    for (uint64_t c = column; c < column + count; c++) {
        largest = larger(largest, fabs(mica_code_value(code, row, c)));
    }
    return largest;
}

static double plain_max(const mica_decode_kernels *kernels, const mica_matrix *matrix) {
    const uint8_t *codes = matrix->codes;
    uint64_t count = matrix->rows * matrix->columns;
    switch (matrix->dtype) {
    case MICA_F8_E4M3: return mica_e4m3_value(kernels->max_u8(codes, count, 1, count));
    case MICA_F8_E5M2: return mica_e5m2_value(kernels->max_u8(codes, count, 1, count));
    case MICA_F16: return mica_f16_value(kernels->max_u16(codes, count));
    case MICA_BF16: return mica_bf16_value(kernels->max_u16(codes, count));
    case MICA_F32: return (double)mica_float_of_bits(kernels->max_u32(codes, count));
    default: return row_max((mica_code)matrix->dtype, codes, 0, count);
    }
}

static double fp8_max(const mica_decode_kernels *kernels, const mica_matrix *matrix, mica_grid grid) {
    const uint8_t *codes = matrix->codes;
    double largest = 0.0;
    for (uint64_t top = 0, bottom; top < matrix->rows; top = bottom) {
        uint64_t next_scales = (top / grid.block_rows + 1) * grid.block_rows;
        bottom = mica_min_u64(mica_min_u64(top + RECTANGLE_ROWS, next_scales), matrix->rows);
        for (uint64_t b = 0; b < grid.columns; b++) {
            uint64_t column = b * grid.block_columns, width = mica_min_u64(grid.block_columns, matrix->columns - column);
            uint8_t bits = kernels->max_u8(codes + top * matrix->columns + column, matrix->columns, bottom - top, width);
            double code = matrix->dtype == MICA_F8_E4M3 ? mica_e4m3_value(bits) : mica_e5m2_value(bits);
            largest = larger(largest, code * fabs(mica_scale_value(matrix, top / grid.block_rows * grid.columns + b)));
        }
    }
    return largest;
}

static double nibble_max(const mica_decode_kernels *kernels, const mica_matrix *matrix, mica_grid grid) {
    static const uint8_t doubled_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, 1, 2, 3, 4, 6, 8, 12};
    static const uint8_t doubled_int4[16] = {16, 14, 12, 10, 8, 6, 4, 2, 0, 2, 4, 6, 8, 10, 12, 14};
    mica_code code = mica_matrix_code(matrix);
    const uint8_t *magnitudes = code == MICA_CODE_E2M1 ? doubled_e2m1 : doubled_int4;
    uint64_t row_bytes = mica_matrix_row_bytes(matrix);
    uint64_t whole = grid.block_columns == NIBBLE_BLOCK_COLUMNS ? matrix->columns / NIBBLE_BLOCK_COLUMNS : 0;
    uint8_t maxima[SCALES_AT_ONCE];
    double scale[SCALES_AT_ONCE], largest = 0.0;
    for (uint64_t r = 0; r < matrix->rows; r++) {
        const uint8_t *row = (const uint8_t *)matrix->codes + r * row_bytes;
        uint64_t scales = r / grid.block_rows * grid.columns, b = 0;
        for (uint64_t count; b < whole; b += count) {
            count = mica_min_u64(whole - b, SCALES_AT_ONCE);
            mica_scale_values(matrix, scales + b, count, scale);
            kernels->max_nibbles(row + 16 * b, count, magnitudes, maxima);
            for (uint64_t i = 0; i < count; i++) {
                double value = 0.5 * maxima[i] * fabs(scale[i]);
                largest = value > largest ? value : largest;
            }
        }
        for (; b < grid.columns; b++) {
            uint64_t column = b * grid.block_columns, width = mica_min_u64(grid.block_columns, matrix->columns - column);
            largest = larger(largest, row_max(code, row, column, width) * fabs(mica_scale_value(matrix, scales + b)));
        }
    }
    return largest;
}

void mica_matrix_examine(const mica_matrix *matrix, mica_matrix_health *health) {
    *health = (mica_matrix_health){0};
    if (matrix->rows == 0 || matrix->columns == 0) {
        return;
    }
    if (matrix->encoding == MICA_ENCODING_BLOCK) {
        mica_block_examine(matrix, health);
        return;
    }
    const mica_decode_kernels *kernels = mica_decode_kernels_current();
    mica_grid grid = mica_matrix_grid(matrix);
    examine_scales(matrix, grid, health);
    if (health->in_scale) {
        return;
    }
    double largest = matrix->encoding == MICA_ENCODING_PLAIN       ? plain_max(kernels, matrix)
                     : matrix->encoding == MICA_ENCODING_FP8_BLOCK ? fp8_max(kernels, matrix, grid)
                                                                   : nibble_max(kernels, matrix, grid);
    if (!isfinite(largest)) {
        find_not_finite(matrix, grid, health);
    } else {
        frexp(largest, &health->exponent); /* 0 for 0 */
    }
}
