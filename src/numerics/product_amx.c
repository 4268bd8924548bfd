/* numerics/product_amx.c: strips of a weight in bf16 times many tokens, in AMX tiles: the strip is turned round, tokens stay as they are.
 * Judged by tests/numerics/test_product.c where the processor has AMX, elsewhere by test_tiles.c. */
#if defined(__x86_64__)
#include <string.h>

#include "numerics/product_avx512.h"
#include "numerics/tiles_amx.h"

enum {
    PANEL_WORDS = MICA_STRIP_COLUMNS / 2 * PAIR,
    PART_COLUMNS = 512, /* decoded at a time, of 16 rows: they stay in the first-level cache until they are turned round */
    PART_STRIDE = PART_COLUMNS + MICA_STRIP_PAD,
    COPY_STRIDE = MICA_STRIP_COLUMNS + MICA_STRIP_PAD
};

typedef struct strip_arrays { /* in the scratch */
    uint32_t panels[MICA_STRIP_ROWS_AMX / PAIR][PANEL_WORDS]; /* each [pairs of columns][32 rows] */
    uint16_t part[SIDE * PART_STRIDE];
    uint16_t copies[PAIR * COPY_STRIDE]; /* [tokens][columns] */
} strip_arrays;
_Static_assert(sizeof(strip_arrays) <= MICA_PRODUCT_SCRATCH_BYTES, "the scratch");

/* The strip, turned round; rows to a multiple of 16, what panels have beyond the last is never summed up. */
static void fill_panels(const mica_strip *strip, strip_arrays *a) {
    for (uint64_t r = 0; r < strip->rows; r += SIDE)
        for (uint64_t c = 0; c < strip->width; c += PART_COLUMNS) {
            uint64_t rows = strip->rows - r < SIDE ? strip->rows - r : SIDE, width = strip->width - c < PART_COLUMNS ? strip->width - c : PART_COLUMNS;
            strip->decode(strip->matrix, strip->row + r, rows, strip->column + c, width, a->part, PART_STRIDE);
            for (uint64_t k = 0; k < (width + 1) / 2; k += SIDE)
                turn_tile((const uint32_t *)(const void *)a->part + k, PART_STRIDE / 2, a->panels[r / PAIR] + (c / 2 + k) * PAIR + r % PAIR, PAIR);
        }
}

/* Columns [column, column + 2 pairs) of tokens [token, token + count), one stride apart: where they lie, or copied there if they are a selection. */
static const uint16_t *gather(const mica_operand *x, uint64_t token, uint64_t count, uint64_t column, uint64_t pairs, uint16_t *copies, uint64_t *stride) {
    *stride = x->selection ? COPY_STRIDE : x->padded;
    if (!x->selection)
        return x->bf16 + token * x->padded + column;
    for (uint64_t t = 0; t < count; t++)
        memcpy(copies + t * COPY_STRIDE, x->bf16 + mica_operand_row(x, token + t) * x->padded + column, 2 * pairs * sizeof *copies);
    return copies;
}

void mica_multiply_bf16_amx(const mica_strip *strip, const mica_operand *x, float *out, uint64_t stride, void *scratch) {
    strip_arrays *a = scratch;
    const uint64_t rows = strip->rows, column = strip->column, pairs = (strip->width + PAIR - 1) / PAIR * SIDE;
    fill_panels(strip, a);
    for (uint64_t t = 0, count; t < x->tokens; t += count) {
        uint64_t values_stride;
        count = x->tokens - t < PAIR ? x->tokens - t : PAIR;
        const uint16_t *values = gather(x, t, count, column, pairs, a->copies, &values_stride);
        for (uint64_t r = 0; r < rows; r += PAIR) {
            uint64_t some = rows - r < PAIR ? rows - r : PAIR;
            shape_tiles(count, some);
            sum_tiles(values, values_stride, count, a->panels[r / PAIR], PAIR, some, pairs, column != 0, out + t * stride + r, stride);
        }
    }
    _tile_release();
}
#else
typedef int mica_product_amx_empty; /* a translation unit may not be empty */
#endif
