/* model/resident.h: weights that stay in memory: everything but routed experts. Read once, at opening, by several threads. */
#ifndef MICA_MODEL_RESIDENT_H
#define MICA_MODEL_RESIDENT_H

#include "model/model.h"

typedef struct mica_resident {
    uint64_t count;
    const mica_weight **weights; /* [count], owned list */
    mica_matrix *matrices;       /* [count] */
    uint8_t *buffer;
    uint64_t bytes;      /* of the buffer */
    uint64_t bytes_read; /* from disk */
    double seconds;      /* that the reading took */
} mica_resident;

/* Reads `weights` [count] (the list is copied; NULL entries are skipped) on `threads` reading threads. */
mica_status mica_resident_read(const mica_model *model, const mica_weight *const *weights, uint64_t count, uint32_t threads,
                               mica_resident *resident, mica_error *error) MICA_CHECKED;
void mica_resident_release(mica_resident *resident);

/* The matrix of a weight; NULL when it is NULL or not resident. O(log n). */
const mica_matrix *mica_resident_find(const mica_resident *resident, const mica_weight *weight);

#endif
