/* operations/slab.h: weights of any size in slabs of bounded size: whole rows with the scales they need, or pieces of one row where a row
 * of plain numbers is large by itself. For operations that decode everything once: export to another type, diff, statistics.
 * Judged by tests/operations/test_slab.c. */
#ifndef MICA_OPERATIONS_SLAB_H
#define MICA_OPERATIONS_SLAB_H

#include "model/model.h"
#include "operations/stream.h"

#define MICA_SLAB_ELEMENTS ((uint64_t)4 << 20) /* of a slab; more only where one row of blocks has more */
#define MICA_STRIP_ELEMENTS ((uint64_t)64 << 10)
#define MICA_SLAB_RANGES 3u

typedef struct mica_slab { /* a rectangle of a weight; or of a slab's matrix (a strip) */
    uint64_t row, rows, column, columns;
} mica_slab;

typedef struct mica_slabs {
    uint64_t rows, columns;           /* of the weight */
    uint64_t step_rows, step_columns; /* of all but the last slabs */
    uint64_t per_row, count;
} mica_slabs;

/* A weight's slabs; `other` (may be NULL) is a weight of the same rows and columns, stored perhaps otherwise, that is to be cut alike. */
void mica_slabs_plan(const mica_weight *weight, const mica_weight *other, mica_slabs *slabs);
mica_slab mica_slab_at(const mica_slabs *slabs, uint64_t number);

/* What has to be read for it: data, and scale and shape where the weight has them; returns how many. */
uint32_t mica_slab_ranges(const mica_tensor_source *source, const mica_weight *weight, const mica_slab *slab,
                          mica_stream_range ranges[MICA_SLAB_RANGES]);
/* The slab as a matrix of its own, over those bytes. Errors: mica_weight_matrix's. */
mica_status mica_slab_matrix(const mica_model *model, const mica_weight *weight, const mica_slab *slab, const uint8_t *const *data,
                             mica_matrix *matrix, mica_error *error) MICA_CHECKED;

/* Strips of a matrix, of at most MICA_STRIP_ELEMENTS, row by row: begin with {0}; false behind the last. */
bool mica_strip_next(const mica_matrix *matrix, mica_slab *strip);
/* Decoded, [strip->rows][strip->columns]. */
void mica_strip_decode(const mica_matrix *matrix, const mica_slab *strip, float *values);

#endif
