/* numerics/quantise_error.c: how far what was written is from what was meant. Judged by tests/numerics/test_quantise_matrix.c. */
#include "numerics/decode_kernels.h"
#include "numerics/quantise.h"

enum { WIDTH = 1024 }; /* columns decoded at a time; a multiple of every block */

static void add_run(const float *x, const float *y, const float *importance, uint64_t count, mica_quantise_error *sum) {
    double squared[4] = {0}, energy[4] = {0};
    for (uint64_t i = 0; i < count; i++) {
        double q = importance ? (double)importance[i] : 1, value = (double)x[i], off = value - (double)y[i];
        squared[i % 4] += q * off * off;
        energy[i % 4] += q * value * value;
    }
    sum->squared += squared[0] + squared[1] + squared[2] + squared[3];
    sum->energy += energy[0] + energy[1] + energy[2] + energy[3];
}

void mica_quantise_error_add(mica_dtype type, const float *x, uint64_t stride, uint64_t rows, uint64_t columns, const float *importance,
                             const uint8_t *blocks, mica_quantise_error *sum) {
    mica_matrix matrix = {.encoding = MICA_ENCODING_BLOCK, .dtype = type, .rows = rows, .columns = columns, .codes = blocks};
    for (uint64_t row = 0; row < rows; row++)
        for (uint64_t column = 0; column < columns; column += WIDTH) {
            float y[WIDTH];
            uint64_t width = mica_min_u64(columns - column, WIDTH);
            mica_matrix_decode_block(&matrix, 0, row, 1, column, width, y, width);
            add_run(x + row * stride + column, y, importance ? importance + column : NULL, width, sum);
        }
}
