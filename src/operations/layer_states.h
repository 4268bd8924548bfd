/* operations/layer_states.h: planes of activations [tokens][width], in memory where they fit, else in a file; the first two can be kept for
 * a later run: a layer reads one and fills the other, so that the one that was kept stays whole while its layer runs. */
#ifndef MICA_OPERATIONS_LAYER_STATES_H
#define MICA_OPERATIONS_LAYER_STATES_H

#include "base/file.h"

#define MICA_STATES_KEPT 2u /* planes that a run can find again */

typedef struct mica_states {
    uint64_t planes, tokens, width;
    float *memory;   /* NULL: all planes are in the file */
    mica_file *file; /* the kept planes at least */
} mica_states;

/* In memory up to `limit` bytes. Nothing is asked of the disk yet. */
mica_status mica_states_open(mica_states *states, uint64_t planes, uint64_t tokens, uint64_t width, uint64_t limit,
                             mica_error *error) MICA_CHECKED;
/* The file, which both kinds have: `fresh`, or as an earlier run left it, whatever memory that had (CONFLICT: it is gone, or too short). */
mica_status mica_states_attach(mica_states *states, const char *path, bool fresh, mica_error *error) MICA_CHECKED;
void mica_states_close(mica_states *states); /* leaves the file */
mica_status mica_states_read(const mica_states *states, uint64_t plane, uint64_t token, uint64_t count, float *x,
                             mica_error *error) MICA_CHECKED;
mica_status mica_states_write(mica_states *states, uint64_t plane, uint64_t token, uint64_t count, const float *x,
                              mica_error *error) MICA_CHECKED;
/* One of the first two planes is on the disk when this returns; and back to where it is read, after mica_states_attach. */
mica_status mica_states_keep(mica_states *states, uint64_t plane, mica_error *error) MICA_CHECKED;
mica_status mica_states_recall(mica_states *states, uint64_t plane, mica_error *error) MICA_CHECKED;

#endif
