/* numerics/kernels.h: the inner loops of the SVD, one table per instruction set.
 *
 * Layouts (all pointers 64-byte aligned unless said otherwise; m is padded to a multiple of 32 with zero rows):
 *   panel    int16 [64 column pairs][16 rows][2]: 16 rows x 128 columns of a matrix, each row with a power-of-two scale so that the sum of
 *            128 products of any two rows fits int32 (Cauchy-Schwarz: every row's norm is below 2^15.5)
 *   packed G symmetric m x m, lower half, as tiles float [8 rows][16 columns]; row panel p (rows 8p…8p+7) holds tiles 0 … p/2, one after
 *            the other, and begins at mica_packed_offset(p); diagonal tiles are complete
 *   block    m x 8 floats, a Krylov block: [m / pair][8][pair], where pair is the table's `pair` (2 with 16 lanes, else 1)
 *   tall     [rows][64 k] row-major floats
 * The generic bodies are in kernels_generic.h; each kernels_<set>.c gives them its vector type and its integer dot product. */
#ifndef MICA_NUMERICS_KERNELS_H
#define MICA_NUMERICS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/cpu.h"

#define MICA_BLOCK 8          /* columns of a Krylov block */
#define MICA_PANEL_ROWS 16
#define MICA_PANEL_COLUMNS 128
#define MICA_PANEL_INT16S (MICA_PANEL_ROWS * MICA_PANEL_COLUMNS)
#define MICA_TILE_FLOATS 128  /* 8 x 16 */

/* Float offset of row panel p in a packed G. */
static inline size_t mica_packed_offset(size_t p) {
    return (p / 2 + 1) * ((p + 1) / 2) * MICA_TILE_FLOATS;
}

typedef struct mica_kernels {
    uint32_t pair;

    /* 16 rows x 128 columns of floats (row stride in floats) to a panel; value = int16 * scale[row], a power of two. norm_squared: of each row. */
    void (*pack)(const float *values, size_t stride, int16_t *panel, float *scale /* [16] */, float *norm_squared /* [16] or NULL */);

    /* Adds 8 rows (half `half` of panel a) x 32 rows (panels b, b + one panel) over one 128-column block to two tiles. */
    void (*gram_tiles)(const int16_t *a, uint32_t half, const float *a_scale /* [16] */, const int16_t *b, const float *b_scale /* [32] */,
                       float *tile0, float *tile1);

    /* y = G x, for one block. `descending` walks the panels backwards (what the last sweep left in the cache comes first). */
    void (*multiply)(const float *packed, size_t m, const float *x, float *y, int descending);

    /* h[a][b] = sum over rows of q[.][a] * w[.][b], accumulated in float64 every 256 rows. */
    void (*block_inner)(const float *q, const float *w, size_t m, double *h /* [8][8] */);
    /* w -= q h */
    void (*block_update)(const float *q, float *w, size_t m, const double *h /* [8][8] */);
    /* w = w h */
    void (*block_rotate)(float *w, size_t m, const double *h /* [8][8] */);
    /* out = a (g - c t) - b p, elementwise: one Chebyshev step */
    void (*chebyshev)(const float *g, const float *t, const float *p, float a, float b, float c, size_t count, float *out);

    /* c[i][0…63] (+)= sum over k < depth of a[i * row_stride + k * column_stride] * b[k][0…63]; b and c rows `ldb`, `ldc` floats apart. */
    void (*multiply_64)(const float *a, size_t row_stride, size_t column_stride, const float *b, size_t ldb, float *c, size_t ldc, size_t rows,
                        size_t depth, int accumulate);
} mica_kernels;

const mica_kernels *mica_kernels_for(mica_cpu cpu);
const mica_kernels *mica_kernels_portable(void);
const mica_kernels *mica_kernels_avx2(void);   /* NULL where not compiled */
const mica_kernels *mica_kernels_avx512(void); /* NULL where not compiled */

#endif
