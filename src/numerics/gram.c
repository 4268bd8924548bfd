/* numerics/gram.c: packing a weight into int16 panels, slab by slab, and their products. See gram.h.
 * Judged by tests/numerics/test_svd.c. */
#include "numerics/gram.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

#define SLAB_BLOCKS (MICA_SLAB_COLUMNS / MICA_PANEL_COLUMNS)
#define TILE_ROWS 256 /* rows of a cache tile of G */

struct mica_gram {
    int16_t *panels[2]; /* per digit: [SLAB_BLOCKS][padded_rows / 16][panel] */
    float *scales[2];   /* per digit: [SLAB_BLOCKS][padded_rows] */
    float *values;      /* [32][MICA_SLAB_COLUMNS], a strip being packed */
    float *turned;      /* [MICA_SLAB_COLUMNS][32], the same before transposing */
};

static size_t round_up(size_t value, size_t step) {
    return (value + step - 1) / step * step;
}

mica_wide mica_wide_of(const mica_matrix *matrix, int exponent) {
    bool transposed = matrix->rows > matrix->columns;
    size_t rows = transposed ? matrix->columns : matrix->rows, columns = transposed ? matrix->rows : matrix->columns;
    return (mica_wide){matrix, exponent, transposed, rows, columns, round_up(rows, 32), round_up(columns, MICA_PANEL_COLUMNS)};
}

size_t mica_wide_scratch_floats(size_t padded_rows) {
    return MICA_SLICE_COLUMNS * padded_rows;
}

void mica_wide_slice(const mica_wide *wide, size_t column, float *slice, float *scratch) {
    size_t width = column < wide->columns ? wide->columns - column : 0;
    if (width > MICA_SLICE_COLUMNS)
        width = MICA_SLICE_COLUMNS;
    if (width < MICA_SLICE_COLUMNS || wide->rows < wide->padded_rows)
        memset(slice, 0, wide->padded_rows * MICA_SLICE_COLUMNS * sizeof *slice);
    if (width == 0)
        return;
    if (!wide->transposed) {
        mica_matrix_decode_block(wide->matrix, wide->exponent, 0, wide->rows, column, width, slice, MICA_SLICE_COLUMNS);
        return;
    }
    mica_matrix_decode(wide->matrix, wide->exponent, column, width, scratch, wide->padded_rows);
    for (size_t row = 0; row < wide->rows; row += 8) /* in strips that keep both sides in the first-level cache */
        for (size_t k = 0; k < width; k++)
            for (size_t i = row; i < row + 8 && i < wide->rows; i++)
                slice[i * MICA_SLICE_COLUMNS + k] = scratch[k * wide->padded_rows + i];
}

uint64_t mica_gram_bytes(size_t padded_rows) {
    return 2 * (uint64_t)SLAB_BLOCKS * padded_rows * (MICA_PANEL_COLUMNS * sizeof(int16_t) + sizeof(float)) +
           64 * MICA_SLAB_COLUMNS * sizeof(float);
}

mica_status mica_gram_create(size_t padded_rows, mica_gram **result, mica_error *error) {
    mica_gram *gram = mica_calloc(1, sizeof *gram);
    if (!gram)
        return mica_fail(error, MICA_NO_MEMORY, "Gram buffers");
    for (int digit = 0; digit < 2; digit++) {
        gram->panels[digit] = mica_alloc_aligned(SLAB_BLOCKS * padded_rows * MICA_PANEL_COLUMNS * sizeof(int16_t));
        gram->scales[digit] = mica_alloc_aligned(SLAB_BLOCKS * padded_rows * sizeof(float));
    }
    gram->values = mica_alloc_aligned(32 * MICA_SLAB_COLUMNS * sizeof(float));
    gram->turned = mica_alloc_aligned(32 * MICA_SLAB_COLUMNS * sizeof(float));
    if (!gram->panels[0] || !gram->panels[1] || !gram->scales[0] || !gram->scales[1] || !gram->values || !gram->turned) {
        mica_gram_free(gram);
        return mica_fail(error, MICA_NO_MEMORY, "Gram buffers for %zu rows", padded_rows);
    }
    *result = gram;
    return MICA_OK;
}

void mica_gram_free(mica_gram *gram) {
    if (!gram)
        return;
    for (int digit = 0; digit < 2; digit++) {
        mica_free_aligned(gram->panels[digit]);
        mica_free_aligned(gram->scales[digit]);
    }
    mica_free_aligned(gram->values);
    mica_free_aligned(gram->turned);
    mica_free(gram);
}

/* How a weight is best packed. */
typedef struct packing {
    mica_matrix source; /* what is decoded: the weight, or its codes alone */
    int exponent;
    bool scaled; /* the weight's block scales multiply the panels' */
    int digits;
} packing;

/* fp8 codes are packed without their scales where a panel never crosses a block: their 4-bit significands are then exact. */
static packing packing_of(const mica_wide *wide) {
    const mica_matrix *matrix = wide->matrix;
    uint64_t along = wide->transposed ? matrix->block_rows : matrix->block_columns;
    packing plan = {*matrix, wide->exponent, false, 1};
    if (matrix->encoding == MICA_ENCODING_FP8_BLOCK && along % MICA_PANEL_COLUMNS == 0) {
        plan.source.encoding = MICA_ENCODING_PLAIN;
        plan.source.scales = NULL;
        plan.exponent = 0;
        plan.scaled = true;
    } else if (matrix->encoding == MICA_ENCODING_FP8_BLOCK ||
               (matrix->encoding == MICA_ENCODING_PLAIN && mica_dtype_bytes(matrix->dtype) > 1)) {
        plan.digits = 2;
    }
    return plan;
}

/* The weight's block scale for row `row` of A and its columns from `column` on, times 2^-exponent. */
static float block_scale(const mica_wide *wide, size_t row, size_t column) {
    const mica_matrix *matrix = wide->matrix;
    uint64_t r = wide->transposed ? column : row, c = wide->transposed ? row : column;
    uint64_t grid_columns = (matrix->columns + matrix->block_columns - 1) / matrix->block_columns;
    uint64_t index = r / matrix->block_rows * grid_columns + c / matrix->block_columns;
    float scale = 0;
    mica_decode_plain(matrix->scale_dtype, (const uint8_t *)matrix->scales + index * mica_dtype_bytes(matrix->scale_dtype), 1, &scale);
    return (float)ldexp((double)scale, -wide->exponent);
}

/* 32 rows of A from `row`, columns [column, column + width) into gram->values, zero beyond the edges. */
static void load_strip(mica_gram *gram, const mica_wide *wide, const packing *plan, size_t row, size_t column) {
    size_t rows = row < wide->rows ? wide->rows - row : 0, width = wide->columns - column;
    rows = rows < 32 ? rows : 32;
    width = width < MICA_SLAB_COLUMNS ? width : MICA_SLAB_COLUMNS;
    if (rows < 32 || width < MICA_SLAB_COLUMNS)
        memset(gram->values, 0, 32 * MICA_SLAB_COLUMNS * sizeof(float));
    if (rows == 0)
        return;
    if (!wide->transposed) {
        mica_matrix_decode_block(&plan->source, plan->exponent, row, rows, column, width, gram->values, MICA_SLAB_COLUMNS);
        return;
    }
    mica_matrix_decode_block(&plan->source, plan->exponent, column, width, row, rows, gram->turned, 32);
    for (size_t k = 0; k < width; k += 16)
        for (size_t i = 0; i < rows; i++)
            for (size_t t = k; t < k + 16 && t < width; t++)
                gram->values[i * MICA_SLAB_COLUMNS + t] = gram->turned[t * 32 + i];
}

/* values -= what the panel holds of them: the second digit. */
static void subtract_panel(float *values, const int16_t *panel, const float *scale) {
    for (size_t row = 0; row < MICA_PANEL_ROWS; row++)
        for (size_t k = 0; k < MICA_PANEL_COLUMNS; k++)
            values[row * MICA_SLAB_COLUMNS + k] -= (float)panel[(k / 2 * MICA_PANEL_ROWS + row) * 2 + k % 2] * scale[row];
}

static void pack_slab(mica_gram *gram, const mica_kernels *kernels, const mica_wide *wide, const packing *plan, size_t column,
                      size_t blocks, double *frobenius_squared) {
    for (size_t row = 0; row < wide->padded_rows; row += 32) {
        load_strip(gram, wide, plan, row, column);
        for (size_t part = 0; part < 32; part += MICA_PANEL_ROWS)
            for (size_t block = 0; block < blocks; block++) {
                float *values = gram->values + part * MICA_SLAB_COLUMNS + block * MICA_PANEL_COLUMNS;
                size_t first = row + part, index = (block * wide->padded_rows + first) / MICA_PANEL_ROWS;
                float norms[MICA_PANEL_ROWS];
                for (int digit = 0; digit < plan->digits; digit++) {
                    int16_t *panel = gram->panels[digit] + index * MICA_PANEL_INT16S;
                    float *scale = gram->scales[digit] + block * wide->padded_rows + first;
                    kernels->pack(values, MICA_SLAB_COLUMNS, panel, scale, digit == 0 ? norms : NULL);
                    if (digit + 1 < plan->digits)
                        subtract_panel(values, panel, scale);
                }
                float *scale = gram->scales[0] + block * wide->padded_rows + first, block_factor = 1;
                for (size_t i = 0; i < MICA_PANEL_ROWS && first + i < wide->rows; i++) {
                    if (plan->scaled) {
                        if (i == 0 || (wide->transposed ? wide->matrix->block_columns : wide->matrix->block_rows) % MICA_PANEL_ROWS != 0)
                            block_factor = block_scale(wide, first + i, column + block * MICA_PANEL_COLUMNS);
                        scale[i] *= block_factor;
                    }
                    *frobenius_squared += (double)norms[i] * ((double)block_factor * (double)block_factor);
                }
            }
    }
}

/* Adds digits (a of the rows, b of the columns) of one 128-column block to one cache tile of G. */
static void add_tile(const mica_gram *gram, const mica_kernels *kernels, size_t padded_rows, size_t block, size_t row0, size_t column0,
                     int a, int b, float *packed) {
    size_t row_end = row0 + TILE_ROWS < padded_rows ? row0 + TILE_ROWS : padded_rows;
    size_t column_end = column0 + TILE_ROWS < padded_rows ? column0 + TILE_ROWS : padded_rows,
           panel0 = block * padded_rows / MICA_PANEL_ROWS;
    float unused[MICA_TILE_FLOATS] __attribute__((aligned(64)));
    for (size_t j = column0; j < column_end; j += 32)
        for (size_t i = row0 > j ? row0 : j; i < row_end; i += 8) {
            float *tile = packed + mica_packed_offset(i / 8) + j / 16 * MICA_TILE_FLOATS;
            kernels->gram_tiles(gram->panels[a] + (panel0 + i / MICA_PANEL_ROWS) * MICA_PANEL_INT16S, (uint32_t)(i / 8 % 2),
                                gram->scales[a] + block * padded_rows + i / MICA_PANEL_ROWS * MICA_PANEL_ROWS,
                                gram->panels[b] + (panel0 + j / MICA_PANEL_ROWS) * MICA_PANEL_INT16S,
                                gram->scales[b] + block * padded_rows + j, tile, j / 16 + 1 <= i / 16 ? tile + MICA_TILE_FLOATS : unused);
        }
}

typedef struct slab_products { /* of one slab, for every cache tile of G */
    const mica_gram *gram;
    const mica_kernels *kernels;
    size_t padded_rows, blocks;
    int digits;
    float *packed;
} slab_products;

/* Tiles [first, last) of the lower half, row by row: each is written by one call only, its blocks in order. */
static void add_products(void *context, uint64_t first, uint64_t last, uint32_t index) {
    const slab_products *slab = context;
    (void)index;
    for (uint64_t tile = first; tile < last; tile++) {
        size_t row = 0, other = tile;
        for (; other > row; row++)
            other -= row + 1;
        row *= TILE_ROWS;
        other *= TILE_ROWS;
        for (size_t block = 0; block < slab->blocks; block++) {
            add_tile(slab->gram, slab->kernels, slab->padded_rows, block, row, other, 0, 0, slab->packed);
            if (slab->digits == 2) {
                add_tile(slab->gram, slab->kernels, slab->padded_rows, block, row, other, 0, 1, slab->packed);
                add_tile(slab->gram, slab->kernels, slab->padded_rows, block, row, other, 1, 0, slab->packed);
            }
        }
    }
}

void mica_gram_compute(mica_gram *gram, const mica_kernels *kernels, const mica_wide *wide, const mica_share *share, float *packed,
                       double *frobenius_squared) {
    packing plan = packing_of(wide);
    const size_t tile_rows = (wide->padded_rows + TILE_ROWS - 1) / TILE_ROWS, tiles = tile_rows * (tile_rows + 1) / 2;
    double sum = 0;
    memset(packed, 0, mica_packed_offset(wide->padded_rows / 8) * sizeof *packed);
    for (size_t column = 0; column < wide->columns; column += MICA_SLAB_COLUMNS) {
        size_t left = wide->columns - column, width = left < MICA_SLAB_COLUMNS ? left : MICA_SLAB_COLUMNS;
        size_t blocks = (width + MICA_PANEL_COLUMNS - 1) / MICA_PANEL_COLUMNS;
        pack_slab(gram, kernels, wide, &plan, column, blocks, &sum);
        slab_products slab = {gram, kernels, wide->padded_rows, blocks, plan.digits, packed};
        if (share->each)
            share->each(share->context, tiles, add_products, &slab);
        else
            add_products(&slab, 0, tiles, 0);
    }
    *frobenius_squared = sum;
}

double mica_packed_sum_squares(const float *packed, size_t padded_rows) {
    double sum = 0;
    for (size_t p = 0; p < padded_rows / 8; p++) {
        const float *panel = packed + mica_packed_offset(p), *last = panel + p / 2 * MICA_TILE_FLOATS;
        double below = 0, diagonal = 0;
        for (size_t i = 0; i < p / 2 * MICA_TILE_FLOATS; i++)
            below += (double)panel[i] * (double)panel[i];
        for (size_t i = 0; i < 8; i++) {
            for (size_t k = 0; k < p % 2 * 8; k++) /* the left half of an odd panel's last tile */
                below += (double)last[i * 16 + k] * (double)last[i * 16 + k];
            for (size_t k = p % 2 * 8; k < p % 2 * 8 + 8; k++)
                diagonal += (double)last[i * 16 + k] * (double)last[i * 16 + k];
        }
        sum += 2 * below + diagonal;
    }
    return sum;
}

void mica_packed_expand(const float *packed, size_t rows, float *full) {
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k <= i; k++)
            full[i * rows + k] = packed[mica_packed_offset(i / 8) + k / 16 * MICA_TILE_FLOATS + i % 8 * 16 + k % 16];
}
