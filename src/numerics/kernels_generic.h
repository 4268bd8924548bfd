/* numerics/kernels_generic.h: the bodies of the SVD's inner loops, written once over a vector type and compiled per instruction set.
 * The including file defines LANES (8 or 16), TILE_ROWS (rows of a multiply_64 register tile), KERNELS (name of the table's function) and
 * the integer products gram_tiles(), and may bring a pack() of its own (OWN_PACK). Every function is static; summation order depends on LANES only.
 * Judged by tests/numerics/test_kernels.c (each set against float64, and against the portable one). */
#include <math.h>
#include <string.h>

#include "numerics/kernels.h"

#define PAIR (LANES / 8)
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t vec_i32 __attribute__((vector_size(4 * LANES)));
typedef uint64_t vec_u64 __attribute__((vector_size(4 * LANES)));
typedef uint32_t half_u32 __attribute__((vector_size(2 * LANES)));

INLINE vec load(const float *p) {
    return *(const vec *)p;
}
INLINE vec load_unaligned(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float *p, vec v) {
    *(vec *)p = v;
}
INLINE vec broadcast(float x) {
#if LANES == 16
    return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#else
    return (vec){x, x, x, x, x, x, x, x};
#endif
}
/* PAIR consecutive floats, repeated over the vector. */
INLINE vec broadcast_pair(const float *p) {
#if LANES == 16
    typedef double vec_double __attribute__((vector_size(64)));
    double d;
    memcpy(&d, p, sizeof d);
    return (vec)(vec_double){d, d, d, d, d, d, d, d};
#else
    return broadcast(*p);
#endif
}
/* Lane pairs (a, b) of rows 2r, 2r + 1: the first (second) row's value in both lanes. */
INLINE vec row_of_pair(vec v, int second) {
#if LANES == 16
    return second ? __builtin_shufflevector(v, v, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15)
                  : __builtin_shufflevector(v, v, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14);
#else
    (void)second;
    return v;
#endif
}
/* Sums over each lane pair: of `first` into even lanes, of `second` into odd ones. */
INLINE vec sum_pairs(vec first, vec second) {
#if LANES == 16
    vec even = __builtin_shufflevector(first, second, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    vec odd = __builtin_shufflevector(first, second, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    return even + odd;
#else
    (void)second;
    return first;
#endif
}

/* The step of a panel row: the least power of two with norm <= 46334 steps (rounding adds at most sqrt(128) / 2, and 46340^2 < 2^31) and
 * |x| <= 32766 steps; not below 2^-100. */
static float row_step(float norm_squared, float maximum) {
    float by_norm = sqrtf(norm_squared) * (1.0001f / 46334.0f), step = maximum / 32766.0f;
    int exponent;
    if (by_norm > step)
        step = by_norm;
    if (step < 0x1p-100f)
        return 0x1p-100f;
    frexpf(step, &exponent);
    return ldexpf(1.0f, exponent);
}

#ifndef OWN_PACK
/* max(|a|, b), b >= 0: as integers, since positive floats are ordered like their bits. */
INLINE vec larger_magnitude(vec a, vec b) {
    vec_i32 magnitude = (vec_i32)a & 0x7fffffff, greater = magnitude > (vec_i32)b;
    return (vec)((magnitude & greater) | ((vec_i32)b & ~greater));
}

static void pack(const float *values, size_t stride, int16_t *panel, float *scale, float *norms) {
    for (int row = 0; row < MICA_PANEL_ROWS; row++) {
        const float *x = values + (size_t)row * stride;
        float sum[LANES] __attribute__((aligned(64))) = {0}, top[LANES] __attribute__((aligned(64)));
        vec squares = load(sum), largest = squares;
        for (int k = 0; k < MICA_PANEL_COLUMNS; k += LANES) {
            vec v = load_unaligned(x + k);
            squares += v * v;
            largest = larger_magnitude(v, largest);
        }
        store(sum, squares);
        store(top, largest);
        float norm_squared = 0, maximum = 0;
        for (int lane = 0; lane < LANES; lane++) {
            norm_squared += sum[lane];
            maximum = top[lane] > maximum ? top[lane] : maximum;
        }
        if (norms)
            norms[row] = norm_squared;
        scale[row] = row_step(norm_squared, maximum);
        vec inverse = broadcast(1 / scale[row]);
        /* Adding 1.5 * 2^23 rounds to an integer, in two's complement in the low bits. */
        for (int k = 0; k < MICA_PANEL_COLUMNS; k += LANES) {
            vec_u64 bits = (vec_u64)(load_unaligned(x + k) * inverse + broadcast(12582912.0f));
            half_u32 pairs = __builtin_convertvector((bits & 0xffff) | ((bits >> 16) & 0xffff0000u), half_u32);
            for (int i = 0; i < LANES / 2; i++)
                memcpy(panel + ((size_t)(k / 2 + i) * MICA_PANEL_ROWS + (size_t)row) * 2, (uint32_t *)&pairs + i, 4);
        }
    }
}
#endif

/* Columns [from, to) of panel p, to <= 8 p: both uses of every element. */
INLINE void multiply_strip(const float *g, const float *next, size_t from, size_t to, const float *x, float *y, const vec xi[8], vec sum[8]) {
    for (size_t k = from; k < to; k += 8) {
        const float *tile = g + k / 16 * MICA_TILE_FLOATS + (k & 8);
        const char *ahead = (const char *)(next + k / 16 * MICA_TILE_FLOATS) + (k & 8) * 32;
        for (int line = 0; line < 4; line++)
            __builtin_prefetch(ahead + 64 * line, 0, 3);
        UNROLL
        for (int t = 0; t < 8; t += PAIR) {
            vec xk = load(x + (k + (size_t)t) * MICA_BLOCK), first = load(y + (k + (size_t)t) * MICA_BLOCK), second = broadcast(0);
            UNROLL
            for (int i = 0; i < 8; i++) {
                vec b = broadcast_pair(tile + i * 16 + t);
                sum[i] += b * xk;
                if (i & 1)
                    second += b * xi[i];
                else
                    first += b * xi[i];
            }
            store(y + (k + (size_t)t) * MICA_BLOCK, first + second);
        }
    }
}

#define STRIP 512 /* columns whose x and y stay in the first-level cache */

static void multiply(const float *packed, size_t m, const float *x, float *y, int descending) {
    size_t panels = m / 8, strips = (m + STRIP - 1) / STRIP;
    memset(y, 0, m * MICA_BLOCK * sizeof(float));
    for (size_t s = 0; s < strips; s++) {
        size_t from = (descending ? strips - 1 - s : s) * STRIP, first = from / 8;
        for (size_t n = 0; n < panels - first; n++) {
            size_t p = descending ? panels - 1 - n : first + n, to = p * 8 < from + STRIP ? p * 8 : from + STRIP;
            size_t neighbour = descending ? (p > first ? p - 1 : p) : (p + 1 < panels ? p + 1 : p);
            const float *g = packed + mica_packed_offset(p);
            vec xi[8], sum[8];
            for (int i = 0; i < 8; i++) {
                xi[i] = row_of_pair(load(x + (p * 8 + (size_t)(i / PAIR * PAIR)) * MICA_BLOCK), i % PAIR);
                sum[i] = broadcast(0);
            }
            multiply_strip(g, packed + mica_packed_offset(neighbour), from, to, x, y, xi, sum);
            if (p * 8 < from + STRIP) { /* the diagonal 8 x 8, complete */
                const float *tile = g + p / 2 * MICA_TILE_FLOATS + (p & 1) * 8;
                for (int t = 0; t < 8; t += PAIR) {
                    vec xk = load(x + (p * 8 + (size_t)t) * MICA_BLOCK);
                    for (int i = 0; i < 8; i++)
                        sum[i] += broadcast_pair(tile + i * 16 + t) * xk;
                }
            }
            for (int i = 0; i < 8; i += PAIR) {
                float *row = y + (p * 8 + (size_t)i) * MICA_BLOCK;
                store(row, load(row) + sum_pairs(sum[i], sum[i + PAIR - 1]));
            }
        }
    }
}

static void block_inner(const float *q, const float *w, size_t m, double *h) {
    memset(h, 0, 64 * sizeof *h);
    for (size_t begin = 0; begin < m; begin += 256) {
        size_t end = begin + 256 < m ? begin + 256 : m;
        vec sum[8];
        for (int a = 0; a < 8; a++)
            sum[a] = broadcast(0);
        for (size_t row = begin; row < end; row += PAIR) {
            vec v = load(w + row * MICA_BLOCK);
            UNROLL
            for (int a = 0; a < 8; a++)
                sum[a] += broadcast_pair(q + row * MICA_BLOCK + a * PAIR) * v;
        }
        for (int a = 0; a < 8; a++) {
            float lanes[LANES] __attribute__((aligned(64)));
            store(lanes, sum[a]);
            for (int lane = 0; lane < LANES; lane++)
                h[a * 8 + lane / PAIR] += (double)lanes[lane];
        }
    }
}

/* The 8 x 8 matrix as vectors over b, each value in all lanes of a pair. */
INLINE void spread(const double *h, vec rows[8], double sign) {
    for (int a = 0; a < 8; a++) {
        float lanes[LANES] __attribute__((aligned(64)));
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = (float)(sign * h[a * 8 + lane / PAIR]);
        rows[a] = load(lanes);
    }
}

static void block_update(const float *q, float *w, size_t m, const double *h) {
    vec rows[8];
    spread(h, rows, -1.0);
    for (size_t row = 0; row < m; row += PAIR) {
        vec first = load(w + row * MICA_BLOCK), second = broadcast(0);
        UNROLL
        for (int a = 0; a < 8; a += 2) {
            first += broadcast_pair(q + row * MICA_BLOCK + a * PAIR) * rows[a];
            second += broadcast_pair(q + row * MICA_BLOCK + (a + 1) * PAIR) * rows[a + 1];
        }
        store(w + row * MICA_BLOCK, first + second);
    }
}

static void block_rotate(float *w, size_t m, const double *h) {
    vec rows[8];
    spread(h, rows, 1.0);
    for (size_t row = 0; row < m; row += PAIR) {
        vec first = broadcast(0), second = broadcast(0);
        UNROLL
        for (int a = 0; a < 8; a += 2) {
            first += broadcast_pair(w + row * MICA_BLOCK + a * PAIR) * rows[a];
            second += broadcast_pair(w + row * MICA_BLOCK + (a + 1) * PAIR) * rows[a + 1];
        }
        store(w + row * MICA_BLOCK, first + second);
    }
}

static void chebyshev(const float *g, const float *t, const float *p, float a, float b, float c, size_t count, float *out) {
    vec va = broadcast(a), vb = broadcast(b), vc = broadcast(c);
    for (size_t i = 0; i < count; i += LANES)
        store(out + i, va * (load(g + i) - vc * load(t + i)) - vb * load(p + i));
}

#define WIDE (LANES == 16 ? 4 : 2) /* vectors of a register tile */

INLINE void multiply_tile(const float *a, size_t row_stride, size_t column_stride, const float *b, size_t ldb, float *c, size_t ldc, int rows,
                          size_t depth, int accumulate) {
    vec sum[TILE_ROWS][WIDE];
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int j = 0; j < WIDE; j++)
            sum[i][j] = broadcast(0);
    }
    for (size_t k = 0; k < depth; k++) {
        vec right[WIDE];
        UNROLL
        for (int j = 0; j < WIDE; j++)
            right[j] = load(b + k * ldb + (size_t)j * LANES);
        UNROLL
        for (int i = 0; i < rows; i++) {
            vec left = broadcast(a[(size_t)i * row_stride + k * column_stride]);
            UNROLL
            for (int j = 0; j < WIDE; j++)
                sum[i][j] += left * right[j];
        }
    }
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int j = 0; j < WIDE; j++) {
            float *out = c + (size_t)i * ldc + (size_t)j * LANES;
            store(out, accumulate ? load(out) + sum[i][j] : sum[i][j]);
        }
    }
}

static void multiply_64(const float *a, size_t row_stride, size_t column_stride, const float *b, size_t ldb, float *c, size_t ldc, size_t rows,
                        size_t depth, int accumulate) {
    for (size_t column = 0; column < 64; column += (size_t)WIDE * LANES) {
        size_t i = 0;
        for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
            multiply_tile(a + i * row_stride, row_stride, column_stride, b + column, ldb, c + i * ldc + column, ldc, TILE_ROWS, depth, accumulate);
        for (; i < rows; i++)
            multiply_tile(a + i * row_stride, row_stride, column_stride, b + column, ldb, c + i * ldc + column, ldc, 1, depth, accumulate);
    }
}

const mica_kernels *KERNELS(void) {
    static const mica_kernels table = {PAIR,         pack,         gram_tiles,   multiply,  block_inner,
                                       block_update, block_rotate, chebyshev,    multiply_64};
    return &table;
}
