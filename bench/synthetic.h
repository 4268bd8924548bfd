/* synthetic.h: the values of a made-up weight matrix, in tiles, and their encodings as checkpoints have them. Every value is a function of
 * seed, row and column alone: the same on any machine, in any order, from any thread. */
#ifndef MICA_BENCH_SYNTHETIC_H
#define MICA_BENCH_SYNTHETIC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "numerics/matrix.h"

enum { SYNTHETIC_TILE = 128, SYNTHETIC_GROUP = 32 }; /* a tile is a block of fp8; a group one of int4 and mxfp4, along the row */

/* Rank-one parts over Gaussian noise: how many, and how strong the t-th is, in units of the noise's largest singular value. */
typedef struct synthetic_spectrum {
    const char *name;
    uint32_t parts;
    double first, scale, exponent; /* part 0: first; part t: scale (t + offset)^exponent */
    double offset;
} synthetic_spectrum;

const synthetic_spectrum *synthetic_spectrum_find(const char *name); /* "flat", "spiked", "power"; NULL when unknown */

typedef struct synthetic_source {
    uint64_t seed, columns;
    float deviation;
    uint32_t parts;
    float *left;  /* [row][part]; owned */
    float *right; /* [tile][part][SYNTHETIC_TILE]; owned */
} synthetic_source;

uint64_t synthetic_seed(uint64_t seed, const char *name);
/* False when out of memory. `spectrum` NULL: flat. */
bool synthetic_source_init(synthetic_source *source, uint64_t seed, uint64_t rows, uint64_t columns, const synthetic_spectrum *spectrum);
void synthetic_source_release(synthetic_source *source);
/* Values tile * SYNTHETIC_TILE … of a row; those beyond the last column mean nothing. */
void synthetic_source_row(const synthetic_source *source, uint64_t row, uint64_t tile, float values[SYNTHETIC_TILE]);

typedef struct synthetic_form { /* how a matrix is stored; scale_dtype F32 or F8_E8M0 for fp8 */
    mica_encoding encoding;
    mica_dtype dtype, scale_dtype;
    uint64_t columns;
} synthetic_form;

typedef struct synthetic_strip { /* SYNTHETIC_TILE rows */
    float tile[SYNTHETIC_TILE][SYNTHETIC_TILE];
    uint8_t *codes;  /* rows one after the other, as in the file */
    uint8_t *scales; /* fp8: one per tile; int4, mxfp4: one per row and group */
} synthetic_strip;

/* Encodes strip->tile, of rows x columns values, into its place in codes and scales. */
void synthetic_encode(synthetic_strip *strip, const synthetic_form *form, uint64_t tile, uint32_t rows, uint32_t columns);

#endif
