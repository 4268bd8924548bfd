/* test_kernels.c: each instruction set's kernels against plain float64 and integer arithmetic. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/memory.h"
#include "numerics/kernels.h"
#include "numerics/matrices.h"

#define M 96 /* rows of the symmetric matrix */

/* The portable set once more, without SSE2, as other processors have it. */
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors wider than the baseline, in inlined functions only */
#define MICA_KERNELS_PLAIN
#define mica_kernels_portable plain_kernels
#define mica_kernels_for plain_kernels_for
const mica_kernels *plain_kernels(void);
const mica_kernels *plain_kernels_for(mica_cpu cpu);
#include "../../src/numerics/kernels_portable.c"
#undef mica_kernels_portable
#undef mica_kernels_for

static const mica_kernels *sets[MICA_CPU_COUNT + 1];

static size_t set_count(void) {
    sets[mica_cpu_detected() + 1] = plain_kernels();
    for (int cpu = 0; cpu <= (int)mica_cpu_detected(); cpu++)
        sets[cpu] = mica_kernels_for((mica_cpu)cpu);
    return (size_t)mica_cpu_detected() + 2;
}

static size_t block_index(const mica_kernels *kernels, size_t row, size_t column) {
    return row / kernels->pair * kernels->pair * MICA_BLOCK + column * kernels->pair + row % kernels->pair;
}

/* Packing keeps every value to half a step of its row's scale, and no product of two rows leaves int32. */
static void pack_rounds_and_never_overflows(void **state) {
    (void)state;
    for (size_t s = 0, count = set_count(); s < count; s++)
        for (int shape = 0; shape < 5; shape++) {
            float values[MICA_PANEL_ROWS * MICA_PANEL_COLUMNS], scale[MICA_PANEL_ROWS], norms[MICA_PANEL_ROWS];
            int16_t *panel = mica_alloc_aligned(MICA_PANEL_INT16S * sizeof *panel);
            for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
                double gauss = random_gauss();
                values[i] = (float)(shape == 0   ? gauss
                                    : shape == 1 ? 1 /* all alike: the largest norm for its largest value */
                                    : shape == 2 ? (i % 37 == 0 ? gauss : 0)
                                    : shape == 3 ? gauss * ldexp(1, -(int)(i % 60))
                                                 : (i / MICA_PANEL_COLUMNS % 2 ? 0 : 448 * gauss));
            }
            sets[s]->pack(values, MICA_PANEL_COLUMNS, panel, scale, norms);
            for (size_t row = 0; row < MICA_PANEL_ROWS; row++) {
                int64_t square = 0;
                double norm = 0;
                for (size_t k = 0; k < MICA_PANEL_COLUMNS; k++) {
                    int16_t code = panel[(k / 2 * MICA_PANEL_ROWS + row) * 2 + k % 2];
                    double value = (double)values[row * MICA_PANEL_COLUMNS + k];
                    square += (int64_t)code * code;
                    norm += value * value;
                    assert_true(fabs(value - code * (double)scale[row]) <= 0.5 * (double)scale[row]);
                }
                assert_true(square < INT64_C(1) << 31);
                assert_true(norm == 0 || square > INT64_C(1) << 26); /* and the range is used */
                assert_true(fabs((double)norms[row] - norm) <= 1e-5 * norm);
            }
            mica_free_aligned(panel);
        }
}

static void gram_tiles_are_exact_integer_sums(void **state) {
    (void)state;
    for (size_t s = 0, count = set_count(); s < count; s++) {
        int16_t *a = mica_alloc_aligned(MICA_PANEL_INT16S * 2), *b = mica_alloc_aligned(2 * MICA_PANEL_INT16S * 2);
        float *tiles = mica_alloc_aligned(2 * MICA_TILE_FLOATS * sizeof *tiles), a_scale[16], b_scale[32];
        for (size_t i = 0; i < MICA_PANEL_INT16S; i++)
            a[i] = (int16_t)((int)(random_u64() % 8191) - 4095);
        for (size_t i = 0; i < 2 * MICA_PANEL_INT16S; i++)
            b[i] = (int16_t)((int)(random_u64() % 8191) - 4095);
        for (int i = 0; i < 32; i++)
            b_scale[i] = ldexpf(1, i - 16), a_scale[i % 16] = ldexpf(1, i % 16 - 3);
        for (uint32_t half = 0; half < 2; half++) {
            memset(tiles, 0, 2 * MICA_TILE_FLOATS * sizeof *tiles);
            sets[s]->gram_tiles(a, half, a_scale, b, b_scale, tiles, tiles + MICA_TILE_FLOATS);
            for (size_t i = 0; i < 8; i++)
                for (size_t j = 0; j < 32; j++) {
                    int64_t sum = 0;
                    for (size_t k = 0; k < MICA_PANEL_COLUMNS; k++)
                        sum += (int64_t)a[(k / 2 * 16 + half * 8 + i) * 2 + k % 2] *
                               b[j / 16 * MICA_PANEL_INT16S + (k / 2 * 16 + j % 16) * 2 + k % 2];
                    float expected = (float)sum * a_scale[half * 8 + i] * b_scale[j];
                    assert_true(tiles[j / 16 * MICA_TILE_FLOATS + i * 16 + j % 16] == expected);
                }
        }
        mica_free_aligned(a), mica_free_aligned(b), mica_free_aligned(tiles);
    }
}

static void multiply_uses_every_element_twice(void **state) {
    (void)state;
    for (size_t s = 0, count = set_count(); s < count; s++) {
        const mica_kernels *kernels = sets[s];
        float *packed = mica_alloc_aligned(mica_packed_offset(M / 8) * sizeof *packed), *x = mica_alloc_aligned(M * 8 * 4),
              *y = mica_alloc_aligned(M * 8 * 4);
        double full[M][M];
        for (size_t i = 0; i < M; i++)
            for (size_t k = 0; k <= i; k++)
                full[i][k] = full[k][i] = (double)(float)random_gauss();
        for (size_t p = 0; p < M / 8; p++)
            for (size_t t = 0; t <= p / 2; t++)
                for (size_t i = 0; i < 8; i++)
                    for (size_t k = 0; k < 16; k++)
                        packed[mica_packed_offset(p) + t * MICA_TILE_FLOATS + i * 16 + k] = (float)full[p * 8 + i][t * 16 + k];
        for (size_t i = 0; i < M * 8; i++)
            x[i] = (float)random_gauss();
        for (int descending = 0; descending < 2; descending++) {
            kernels->multiply(packed, M, x, y, descending);
            for (size_t i = 0; i < M; i++)
                for (size_t c = 0; c < 8; c++) {
                    double sum = 0;
                    for (size_t k = 0; k < M; k++)
                        sum += full[i][k] * (double)x[block_index(kernels, k, c)];
                    assert_true(fabs(sum - (double)y[block_index(kernels, i, c)]) < 2e-5);
                }
        }
        mica_free_aligned(packed), mica_free_aligned(x), mica_free_aligned(y);
    }
}

static void blocks_match_float64(void **state) {
    (void)state;
    for (size_t s = 0, count = set_count(); s < count; s++) {
        const mica_kernels *kernels = sets[s];
        size_t m = 544;
        float *q = mica_alloc_aligned(m * 8 * 4), *w = mica_alloc_aligned(m * 8 * 4), *out = mica_alloc_aligned(m * 8 * 4);
        double h[64], expected[64] = {0};
        for (size_t i = 0; i < m * 8; i++)
            q[i] = (float)random_gauss(), w[i] = (float)random_gauss();
        kernels->block_inner(q, w, m, h);
        for (size_t row = 0; row < m; row++)
            for (size_t a = 0; a < 8; a++)
                for (size_t b = 0; b < 8; b++)
                    expected[a * 8 + b] += (double)q[block_index(kernels, row, a)] * (double)w[block_index(kernels, row, b)];
        for (int i = 0; i < 64; i++)
            assert_true(fabs(h[i] - expected[i]) < 1e-4);
        for (int rotate = 0; rotate < 2; rotate++) {
            memcpy(out, w, m * 8 * sizeof *w);
            if (rotate)
                kernels->block_rotate(out, m, h);
            else
                kernels->block_update(q, out, m, h);
            for (size_t row = 0; row < m; row++)
                for (size_t b = 0; b < 8; b++) {
                    double sum = rotate ? 0 : (double)w[block_index(kernels, row, b)];
                    for (size_t a = 0; a < 8; a++)
                        sum += (rotate ? (double)w[block_index(kernels, row, a)] : -(double)q[block_index(kernels, row, a)]) * h[a * 8 + b];
                    assert_true(fabs(sum - (double)out[block_index(kernels, row, b)]) < 1e-4 * (1 + fabs(sum)));
                }
        }
        kernels->chebyshev(q, w, q, 2.0f, 0.5f, 3.0f, m * 8, out);
        for (size_t i = 0; i < m * 8; i++)
            assert_true(fabs((double)out[i] - (2 * ((double)q[i] - 3 * (double)w[i]) - 0.5 * (double)q[i])) < 1e-5);
        mica_free_aligned(q), mica_free_aligned(w), mica_free_aligned(out);
    }
}

static void multiply_64_takes_any_strides(void **state) {
    (void)state;
    enum { ROWS = 19, DEPTH = 37 };
    for (size_t s = 0, count = set_count(); s < count; s++)
        for (int transposed = 0; transposed < 2; transposed++) {
            float a[ROWS * DEPTH], *b = mica_alloc_aligned(DEPTH * 128 * 4), *c = mica_alloc_aligned(ROWS * 128 * 4);
            size_t row_stride = transposed ? 1 : DEPTH, column_stride = transposed ? ROWS : 1;
            for (size_t i = 0; i < ROWS * DEPTH; i++)
                a[i] = (float)random_gauss();
            for (size_t i = 0; i < DEPTH * 128; i++)
                b[i] = (float)random_gauss();
            sets[s]->multiply_64(a, row_stride, column_stride, b + 64, 128, c + 64, 128, ROWS, DEPTH, 0);
            sets[s]->multiply_64(a, row_stride, column_stride, b + 64, 128, c + 64, 128, ROWS, DEPTH, 1);
            for (size_t i = 0; i < ROWS; i++)
                for (size_t j = 0; j < 128; j++) {
                    double sum = 0;
                    for (size_t k = 0; k < DEPTH; k++)
                        sum += 2 * (double)a[i * row_stride + k * column_stride] * (double)b[k * 128 + j];
                    assert_true(fabs((j < 64 ? 0 : sum) - (double)c[i * 128 + j]) < 1e-4);
                }
            mica_free_aligned(b), mica_free_aligned(c);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pack_rounds_and_never_overflows),   cmocka_unit_test(gram_tiles_are_exact_integer_sums),
        cmocka_unit_test(multiply_uses_every_element_twice), cmocka_unit_test(blocks_match_float64),
        cmocka_unit_test(multiply_64_takes_any_strides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
