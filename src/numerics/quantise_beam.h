/* numerics/quantise_beam.h: the two inner loops of the search with input covariance (quantise_covariance.c), for quantise_blocks.h to put
 * into its table. Both run over panels of 64 columns. Nothing is fused and sums go in order of k: the same bits from every set.
 * Judged by tests/numerics/test_quantise_covariance.c. */
#ifndef MICA_NUMERICS_QUANTISE_BEAM_H
#define MICA_NUMERICS_QUANTISE_BEAM_H

#include "numerics/quantise_kernels.h"
#include "numerics/quantise_vector.h"

#define PANEL MICA_BEAM_PANEL
#define ROWS MICA_BEAM_ROWS
#define PATHS MICA_BEAM_PATHS
#define IMPOSSIBLE 1e30f
#define TILE_COLUMNS (LANES == 16 ? 8 : 4)

/* sums[column][row] += sum over k of u[k][column] * e[k][row]: 64 columns, 32 rows, in register tiles. */
static void accumulate(const float *u, uint64_t u_stride, const float *e, uint64_t e_stride, uint64_t depth, float *sums) {
    for (int column = 0; column < PANEL; column += TILE_COLUMNS)
        for (int row = 0; row < ROWS; row += 2 * LANES) {
            vec sum[TILE_COLUMNS][2];
            _Pragma("GCC unroll 8") for (int c = 0; c < TILE_COLUMNS; c++) {
                sum[c][0] = load(sums + (column + c) * ROWS + row);
                sum[c][1] = load(sums + (column + c) * ROWS + row + LANES);
            }
            for (uint64_t k = 0; k < depth; k++) {
                vec e0 = load(e + k * e_stride + row), e1 = load(e + k * e_stride + row + LANES);
                const float *factor = u + k * u_stride + column;
                _Pragma("GCC unroll 8") for (int c = 0; c < TILE_COLUMNS; c++) {
                    vec by = vec_of(factor[c]);
                    sum[c][0] += by * e0;
                    sum[c][1] += by * e1;
                }
            }
            _Pragma("GCC unroll 8") for (int c = 0; c < TILE_COLUMNS; c++) {
                store(sums + (column + c) * ROWS + row, sum[c][0]);
                store(sums + (column + c) * ROWS + row + LANES, sum[c][1]);
            }
        }
}

/* Eight paths: one vector of 8, or two of 4. */
#define WIDTH (LANES == 4 ? 4 : 8)
typedef float some __attribute__((vector_size(4 * WIDTH)));
typedef int32_t some_i32 __attribute__((vector_size(4 * WIDTH)));

INLINE some some_of(float x) {
#if WIDTH == 8
    return (some){x, x, x, x, x, x, x, x};
#else
    return (some){x, x, x, x};
#endif
}
INLINE some load_some(const float *p) {
    some v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_some(float *p, some v) {
    memcpy(p, &v, sizeof v);
}
INLINE some clamped_some(some a, float low, float high) {
#if WIDTH == 8
    return _mm256_min_ps(_mm256_max_ps(a, some_of(low)), some_of(high));
#else
    return clamped(a, low, high);
#endif
}
INLINE some nearest_some(some a) {
    const some big = some_of(12582912.0f);
    return (a + big) - big;
}

/* What the survivors of a column are made of. A candidate c < 8 is path c with the lower level, c >= 8 path c - 8 with the upper. */
typedef struct candidates {
    _Alignas(32) float cost[2 * PATHS], level[2 * PATHS], error[2 * PATHS], off[2 * PATHS];
    _Alignas(32) int32_t key[2 * PATHS]; /* the cost's bits, the last four giving way to the candidate: never two alike */
} candidates;

INLINE void make_candidates(candidates *c, const mica_beam *b, int j, const float *cost, const float *feedback) {
    const some step = some_of(b->step[j]), floor = some_of(b->floor[j]), inverse = some_of(b->inverse[j]), weight = some_of(b->weight[j]);
    const some wanted = some_of(b->target[j]), x = some_of(b->x[j]);
    for (int p = 0; p < PATHS; p += WIDTH) {
        some target = wanted + load_some(feedback + p), so_far = load_some(cost + p);
        some lower = nearest_some(clamped_some((target + floor) * inverse - some_of(0.5f), 0, b->top));
        for (int upper = 0; upper < 2; upper++) {
            some level = clamped_some(lower + some_of((float)upper), 0, b->top), value = step * level - floor, off = target - value;
            /* No upper level beyond the top one, nor where all are alike: copies of a path would crowd out the others. */
            some none = upper && b->inverse[j] != 0 ? clamped_some(lower - some_of(b->top - 1), 0, 1) : some_of((float)upper);
            some total = so_far + weight * off * off + none * some_of(IMPOSSIBLE);
            store_some(c->cost + upper * PATHS + p, total);
            store_some(c->level + upper * PATHS + p, level);
            store_some(c->error + upper * PATHS + p, x - value);
            store_some(c->off + upper * PATHS + p, off);
            some_i32 key = (some_i32)total & ~15;
            for (int lane = 0; lane < WIDTH; lane++)
                key[lane] |= upper * PATHS + p + lane;
            memcpy(c->key + upper * PATHS + p, &key, sizeof key);
        }
    }
}

/* The candidates with the eight least keys, in order. */
INLINE void choose_survivors(const candidates *c, int survivor[PATHS]) {
    int32_t rank[2 * PATHS];
    for (int i = 0; i < 2 * PATHS; i += WIDTH) {
        some_i32 mine, before = {0};
        memcpy(&mine, c->key + i, sizeof mine);
        for (int k = 0; k < 2 * PATHS; k++)
            before -= ((some_i32){0} + c->key[k]) < mine;
        memcpy(rank + i, &before, sizeof before);
    }
    for (int i = 0; i < 2 * PATHS; i++)
        if (rank[i] < PATHS)
            survivor[rank[i]] = i;
}

/* Each survivor's feedback for a later column: what its parent had, and the new error's share. */
INLINE void pass_on(float *feedback, const int32_t parent[PATHS], const float *error, float share) {
#if WIDTH == 8
    some old = _mm256_permutevar8x32_ps(load_some(feedback), _mm256_loadu_si256((const __m256i *)parent));
    store_some(feedback, old + some_of(share) * load_some(error));
#else
    float old[PATHS];
    for (int p = 0; p < PATHS; p++)
        old[p] = feedback[parent[p]];
    for (int p = 0; p < PATHS; p += WIDTH)
        store_some(feedback + p, load_some(old + p) + some_of(share) * load_some(error + p));
#endif
}

static void beam(const mica_beam *b) {
    _Alignas(32) float feedback[PANEL][PATHS] = {{0}}, cost[PATHS], error[PANEL][PATHS], off[PANEL][PATHS];
    uint8_t level[PANEL][PATHS], from[PANEL][PATHS];
    for (int p = 0; p < PATHS; p++)
        cost[p] = p ? IMPOSSIBLE : 0;
    for (int j = 0; j < PANEL; j++) {
        candidates c;
        int survivor[PATHS];
        int32_t parent[PATHS];
        make_candidates(&c, b, j, cost, feedback[j]);
        choose_survivors(&c, survivor);
        for (int p = 0; p < PATHS; p++) {
            int s = survivor[p];
            cost[p] = c.cost[s];
            error[j][p] = c.error[s];
            off[j][p] = c.off[s];
            level[j][p] = (uint8_t)c.level[s];
            from[j][p] = (uint8_t)(parent[p] = s % PATHS);
        }
        for (int later = j + 1; later < PANEL; later++)
            pass_on(feedback[later], parent, error[j], b->u[j * PANEL + later]);
    }
    for (int j = PANEL - 1, p = 0; j >= 0; p = from[j][p], j--) { /* the cheapest is the first */
        b->levels[j] = level[j][p];
        b->error[j] = error[j][p];
        b->off[j] = off[j][p];
    }
}

#endif
