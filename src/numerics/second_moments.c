/* numerics/second_moments.c: see the header. Judged by tests/numerics/test_quantise_covariance.c. */
#include "numerics/second_moments.h"

#include <string.h>

#include "numerics/decode_kernels.h"
#include "numerics/quantise_kernels.h"

enum { PANEL = MICA_BEAM_PANEL, TILE = MICA_BEAM_ROWS };

/* Rows [first, first + 64) of the sums, up to the block of the diagonal. */
static void add_panel(const mica_quantise_kernels *kernels, const float *rows, uint64_t depth, uint64_t columns, uint64_t first, float *sums) {
    for (uint64_t column = 0; column < first + PANEL; column += TILE) {
        _Alignas(64) float block[PANEL * TILE] = {0};
        kernels->accumulate(rows + first, columns, rows + column, columns, depth, block);
        for (uint64_t j = 0; j < PANEL; j++)
            for (uint64_t i = 0; i < TILE; i++)
                sums[(first + j) * columns + column + i] += block[j * TILE + i];
    }
}

void mica_second_moments_add(const float *x, uint64_t stride, const uint32_t *selection, uint64_t tokens, uint64_t columns, float *scratch, float *sums) {
    const mica_quantise_kernels *kernels = mica_quantise_kernels_for(mica_cpu_current());
    for (uint64_t begin = 0; begin < tokens; begin += MICA_SECOND_MOMENTS_TOKENS) {
        const uint64_t depth = mica_min_u64(tokens - begin, MICA_SECOND_MOMENTS_TOKENS);
        for (uint64_t t = 0; t < depth; t++)
            memcpy(scratch + t * columns, x + (selection ? selection[begin + t] : begin + t) * stride, columns * sizeof *x);
        for (uint64_t first = 0; first < columns; first += PANEL)
            add_panel(kernels, scratch, depth, columns, first, sums);
    }
}
