/* operations/route_states.h: planes of activations [tokens][width], in memory where they fit, else in a file without a name. */
#ifndef MICA_OPERATIONS_ROUTE_STATES_H
#define MICA_OPERATIONS_ROUTE_STATES_H

#include "base/file.h"

typedef struct mica_states {
    uint64_t planes, tokens, width;
    float *memory;   /* NULL: in the file */
    mica_file *file; /* already removed from its directory */
} mica_states;

/* In memory up to `limit` bytes; else in `directory`, which must exist. */
mica_status mica_states_open(mica_states *states, uint64_t planes, uint64_t tokens, uint64_t width, uint64_t limit, const char *directory,
                             mica_error *error) MICA_CHECKED;
void mica_states_close(mica_states *states);
mica_status mica_states_read(const mica_states *states, uint64_t plane, uint64_t token, uint64_t count, float *x, mica_error *error) MICA_CHECKED;
mica_status mica_states_write(mica_states *states, uint64_t plane, uint64_t token, uint64_t count, const float *x, mica_error *error) MICA_CHECKED;

#endif
