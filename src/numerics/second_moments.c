/* numerics/second_moments.c: see the header. The tokens are first laid down in panels of 64 columns: rows of a wide input are a multiple of
 * a page apart, and would all want the same lines of the first-level cache. Judged by tests/numerics/test_quantise_covariance.c; measured
 * by bench_covariance. */
#include "numerics/second_moments.h"

#include <math.h>
#include <string.h>

#include "numerics/decode_kernels.h"
#include "numerics/quantise_kernels.h"

enum { PANEL = MICA_BEAM_PANEL, TILE = MICA_BEAM_ROWS, TOKENS_A_PIECE = 16, BLOCKS_A_PIECE = 4 };

typedef struct adding {
    const mica_quantise_kernels *kernels;
    const float *x;
    const uint32_t *selection;
    uint64_t stride, begin, depth, columns;
    float *panels; /* [columns / 64][depth][64] */
    float *sums;
} adding;

static void gather(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const adding *a = context;
    (void)thread;
    for (uint64_t t = first; t < last; t++) {
        const float *row = a->x + (a->selection ? a->selection[a->begin + t] : a->begin + t) * a->stride;
        for (uint64_t column = 0; column < a->columns; column += PANEL)
            memcpy(a->panels + column * a->depth + t * PANEL, row + column, PANEL * sizeof *row);
    }
}

/* The block of the sums whose rows are panel i's columns and whose columns are panel j's. */
static void add_block(const adding *a, uint64_t i, uint64_t j) {
    const float *rows = a->panels + i * PANEL * a->depth, *across = a->panels + j * PANEL * a->depth;
    for (uint64_t tile = 0; tile < PANEL; tile += TILE) {
        _Alignas(64) float block[PANEL * TILE] = {0};
        float *sums = a->sums + i * PANEL * a->columns + j * PANEL + tile;
        a->kernels->accumulate(rows, PANEL, across + tile, PANEL, a->depth, block);
        for (uint64_t row = 0; row < PANEL; row++)
            for (uint64_t column = 0; column < TILE; column++)
                sums[row * a->columns + column] += block[row * TILE + column];
    }
}

/* Blocks of the lower triangle, row by row: number i (i + 1) / 2 + j. */
static void add_blocks(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    (void)thread;
    uint64_t i = (uint64_t)((sqrt(8 * (double)first + 1) - 1) / 2);
    while (i * (i + 1) / 2 > first)
        i--;
    while ((i + 1) * (i + 2) / 2 <= first)
        i++;
    for (uint64_t block = first, j = first - i * (i + 1) / 2; block < last; block++) {
        add_block(context, i, j);
        if (j++ == i) {
            i++;
            j = 0;
        }
    }
}

static void each(mica_pool *pool, uint64_t count, uint64_t grain,
                 void (*body)(void *context, uint64_t first, uint64_t last, uint32_t thread), adding *a) {
    if (pool)
        mica_pool_each(pool, count, grain, body, a);
    else
        body(a, 0, count, 0);
}

void mica_second_moments_add(mica_pool *pool, const float *x, uint64_t stride, const uint32_t *selection, uint64_t tokens, uint64_t columns,
                             float *scratch, float *sums) {
    const uint64_t panels = columns / PANEL;
    adding a = {mica_quantise_kernels_for(mica_cpu_current()), x, selection, stride, 0, 0, columns, scratch, sums};
    for (; a.begin < tokens; a.begin += MICA_SECOND_MOMENTS_TOKENS) {
        a.depth = mica_min_u64(tokens - a.begin, MICA_SECOND_MOMENTS_TOKENS);
        each(pool, a.depth, TOKENS_A_PIECE, gather, &a);
        each(pool, panels * (panels + 1) / 2, BLOCKS_A_PIECE, add_blocks, &a);
    }
}
