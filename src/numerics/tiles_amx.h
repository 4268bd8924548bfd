/* numerics/tiles_amx.h: inside the AMX kernels only. The matrix product that their tiles are used for: out[m][n] (+)= sum over k of a[m][k]
 * b[n][k] of bf16, with b turned round beforehand, pairs of k in the order [k / 2][n]. One instruction makes 16 x 16 sums of 32 products;
 * two tiles of a meet two of b. Sums are float32, of each element by itself and in the order of k; subnormal numbers count as zero.
 * Judged by tests/numerics/test_product.c and test_attention.c where the processor has AMX, elsewhere by test_tiles.c, which computes tiles
 * in C. */
#ifndef MICA_NUMERICS_TILES_AMX_H
#define MICA_NUMERICS_TILES_AMX_H

#include <immintrin.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

enum { SIDE = 16 /* rows of a tile, and its words */, PAIR = 2 * SIDE /* rows of two, and a tile's bf16 columns */ };

/* What LDTILECFG reads. */
typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;
_Static_assert(sizeof(tile_shapes) == 64, "as the processor has it");

/* For up to two tiles of a, and up to two of b. Tiles: 0 to 3 sums [of a][of b], 4 and 5 a, 6 and 7 b. Sizes of one that is not used are
 * zero. */
INLINE void shape_tiles(uint64_t a_rows, uint64_t b_rows) {
    tile_shapes shapes = {.palette = 1};
    for (uint64_t i = 0; i < 2; i++) {
        uint64_t left_a = a_rows > i * SIDE ? a_rows - i * SIDE : 0, left_b = b_rows > i * SIDE ? b_rows - i * SIDE : 0;
        uint8_t height = (uint8_t)(left_a < SIDE ? left_a : SIDE);
        uint16_t bytes = (uint16_t)(4 * (left_b < SIDE ? left_b : SIDE));
        for (uint64_t j = 0; j < 2; j++) {
            shapes.rows[2 * i + j] = height;
            shapes.row_bytes[2 * j + i] = bytes;
        }
        shapes.rows[4 + i] = height;
        shapes.row_bytes[4 + i] = height ? 64 : 0;
        shapes.rows[6 + i] = bytes ? SIDE : 0;
        shapes.row_bytes[6 + i] = bytes;
    }
    for (int i = 0; i < 4; i++) /* a tile has both or none */
        if (!shapes.rows[i] || !shapes.row_bytes[i]) {
            shapes.rows[i] = 0;
            shapes.row_bytes[i] = 0;
        }
    _tile_loadconfig(&shapes);
}

/* Words [row][column] of 16 rows to [column][row], 16 columns: rows i, i + 4, i + 8 and i + 12 share a register, a quarter of each, so that
 * what is left is turning 4 x 4 words within quarters. */
INLINE void turn_tile(const uint32_t *from, uint64_t from_stride, uint32_t *to, uint64_t to_stride) {
    for (uint64_t c = 0; c < SIDE; c += 4) {
        __m512i v[4], w[4];
        for (uint64_t i = 0; i < 4; i++) {
            const uint32_t *at = from + i * from_stride + c;
            v[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)at));
            v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128((const __m128i *)(const void *)(at + 4 * from_stride)), 1);
            v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128((const __m128i *)(const void *)(at + 8 * from_stride)), 2);
            v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128((const __m128i *)(const void *)(at + 12 * from_stride)), 3);
        }
        w[0] = _mm512_unpacklo_epi32(v[0], v[1]);
        w[1] = _mm512_unpackhi_epi32(v[0], v[1]);
        w[2] = _mm512_unpacklo_epi32(v[2], v[3]);
        w[3] = _mm512_unpackhi_epi32(v[2], v[3]);
        for (uint64_t i = 0; i < 2; i++) {
            _mm512_storeu_si512(to + (c + 2 * i) * to_stride, _mm512_unpacklo_epi64(w[i], w[2 + i]));
            _mm512_storeu_si512(to + (c + 2 * i + 1) * to_stride, _mm512_unpackhi_epi64(w[i], w[2 + i]));
        }
    }
}

/* DO(tile, where in out) for each tile of sums that is used; the instructions' numbers are constants. */
#define EACH_SUM(DO)                          \
    do {                                      \
        DO(0, out);                           \
        if (second_b)                         \
            DO(1, out + SIDE);                \
        if (second_a)                         \
            DO(2, out + SIDE * stride);       \
        if (second_a && second_b)             \
            DO(3, out + SIDE * stride + SIDE); \
    } while (0)
#define LOAD(number, at) _tile_loadd(number, at, out_bytes)
#define CLEAR(number, at) _tile_zero(number)
#define STORE(number, at) _tile_stored(number, at, out_bytes)

/* Both shaped for. `pairs` of k, a multiple of 16; strides in elements. */
INLINE void sum_up(const uint16_t *a, uint64_t a_stride, const uint32_t *b, uint64_t b_stride, uint64_t pairs, bool add, float *out,
                   uint64_t stride, const int second_a, const int second_b) {
    const uint64_t out_bytes = stride * sizeof *out, a_bytes = a_stride * sizeof *a, b_bytes = b_stride * sizeof *b;
    if (add)
        EACH_SUM(LOAD);
    else
        EACH_SUM(CLEAR);
    for (uint64_t k = 0; k < pairs; k += SIDE) {
        _tile_loadd(4, a + 2 * k, a_bytes);
        _tile_loadd(6, b + k * b_stride, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (second_b) {
            _tile_loadd(7, b + k * b_stride + SIDE, b_bytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (second_a) {
            _tile_loadd(5, a + 2 * k + SIDE * a_stride, a_bytes);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (second_a && second_b)
            _tile_dpbf16ps(3, 5, 7);
    }
    EACH_SUM(STORE);
}
#undef EACH_SUM
#undef LOAD
#undef CLEAR
#undef STORE

/* out [a_rows][b_rows], at most 32 of each, for which tiles are shaped; onto what is there if `add`. */
INLINE void sum_tiles(const uint16_t *a, uint64_t a_stride, uint64_t a_rows, const uint32_t *b, uint64_t b_stride, uint64_t b_rows,
                      uint64_t pairs, bool add, float *out, uint64_t stride) {
    atomic_signal_fence(memory_order_seq_cst); /* compilers do not know that these instructions load and store */
    if (a_rows > SIDE && b_rows > SIDE)
        sum_up(a, a_stride, b, b_stride, pairs, add, out, stride, 1, 1);
    else if (a_rows > SIDE)
        sum_up(a, a_stride, b, b_stride, pairs, add, out, stride, 1, 0);
    else if (b_rows > SIDE)
        sum_up(a, a_stride, b, b_stride, pairs, add, out, stride, 0, 1);
    else
        sum_up(a, a_stride, b, b_stride, pairs, add, out, stride, 0, 0);
    atomic_signal_fence(memory_order_seq_cst);
}

#endif
