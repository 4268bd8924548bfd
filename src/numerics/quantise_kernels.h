/* numerics/quantise_kernels.h: between the driver of the quantisers (quantise.c) and their bodies, one table per instruction set. A strand
 * is 16 groups of 16 or 32 weights, one to a lane: one block of 256 with groups of 16, two with groups of 32, or 16 blocks of 32. A tile is
 * two strands, which are searched step by step in turn: each waits for its own sums and quotients while the other computes. */
#ifndef MICA_NUMERICS_QUANTISE_KERNELS_H
#define MICA_NUMERICS_QUANTISE_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cpu.h"
#include "base/dtype.h"

#define MICA_STRAND_GROUPS 16
#define MICA_STRANDS 2
#define MICA_TILE_GROUPS (MICA_STRANDS * MICA_STRAND_GROUPS)
#define MICA_STARTS 32

/* How hard to look. Which fields a type heeds: docs/quantisers.md. */
typedef struct mica_search {
    uint8_t starts;         /* grids from which levels begin, of at most MICA_STARTS */
    uint8_t polish;         /* fits to the levels of the best one after that */
    uint8_t scales;         /* candidates for a block's scale, and as many for its minimum */
    uint8_t branches;       /* block scales carried to the end */
    uint8_t refits;         /* rounds of levels, block scale, group scales */
    uint8_t window;         /* group scales tried on each side, with new levels */
    uint8_t minimum_window; /* and group minima on each side; of symmetric types: the window of later rounds */
} mica_search;

typedef struct mica_quantise_tile {
    const float *x[MICA_TILE_GROUPS];          /* [group size] weights of each group */
    const float *importance[MICA_TILE_GROUPS]; /* [group size], or NULL all */
    uint8_t *block[MICA_TILE_GROUPS];          /* where a block begins with this group: its place, or NULL when it is not wanted */
    float hint[MICA_TILE_GROUPS];              /* of Q8_0: a step to try besides; 0: none */
    float importance_factor;                   /* makes their mean 1 */
    float gain;
    const mica_search *search;
} mica_quantise_tile;

typedef void mica_quantise_function(const mica_quantise_tile *tile);

/* The search with input covariance: panels of 64 columns, tiles of 32 rows, 8 paths. */
#define MICA_BEAM_PANEL 64
#define MICA_BEAM_ROWS 32
#define MICA_BEAM_PATHS 8

/* One row's 64 columns: levels for which sum over j of weight[j] (target[j] + sum over k < j of u[k][j] error[k] - value[j])^2 is small,
 * value = step level - floor, error = x - value, 0 <= level <= top. All arrays [64]. */
typedef struct mica_beam {
    const float *x, *target, *step, *floor, *inverse /* 1 / step, or 0 */, *weight, *u /* [64][64] */;
    float top;
    float *error;    /* out */
    float *off;      /* out: what the weights above are of, at the levels chosen */
    uint8_t *levels; /* out */
} mica_beam;

/* Codes of one block of Q2_K, Q4_K or Q5_K from its 256 levels; scales are left as they are. */
typedef void mica_put_codes(const uint8_t levels[256], uint8_t *block);

typedef struct mica_quantise_kernels {
    mica_quantise_function *tile[MICA_DTYPE_COUNT - MICA_Q4_0][2]; /* [type - MICA_Q4_0][has importance] */
    bool (*within)(const float *x, uint64_t count, float limit);   /* all |x| <= limit; false for a NaN */
    /* sums[64][32] += sum over k < depth of u[k][64] * e[k][32], rows of u and e so many floats apart */
    void (*accumulate)(const float *u, uint64_t u_stride, const float *e, uint64_t e_stride, uint64_t depth, float *sums);
    void (*beam)(const mica_beam *beam);
    mica_put_codes *put_codes[MICA_DTYPE_COUNT - MICA_Q4_0]; /* [type - MICA_Q4_0]; NULL for the others */
} mica_quantise_kernels;

const mica_quantise_kernels *mica_quantise_kernels_for(mica_cpu cpu);
const mica_quantise_kernels *mica_quantise_kernels_portable(void);
const mica_quantise_kernels *mica_quantise_kernels_avx2(void);   /* NULL where not compiled */
const mica_quantise_kernels *mica_quantise_kernels_avx512(void); /* NULL where not compiled */

/* Starts, best first (bench/quantise_starts.py). Of asymmetric types: steps cut off the low and the high end of the range; of symmetric
 * ones: the level to which the value of largest magnitude goes. */
extern const float mica_starts_q2_k[MICA_STARTS][2], mica_starts_q4_k[MICA_STARTS][2], mica_starts_q5_k[MICA_STARTS][2];
extern const float mica_starts_q4_1[MICA_STARTS][2], mica_starts_q5_1[MICA_STARTS][2];
extern const float mica_starts_q3_k[MICA_STARTS], mica_starts_q6_k[MICA_STARTS], mica_starts_q4_0[MICA_STARTS],
    mica_starts_q5_0[MICA_STARTS];
extern const float mica_starts_q8_0[MICA_STARTS], mica_starts_iq4[MICA_STARTS];

#endif
