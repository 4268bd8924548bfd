/* operations/route_states.c: see the header. Judged by tests/operations/test_route.c, which gives the same numbers both ways. */
#include "operations/route_states.h"

#include <string.h>

#include "base/memory.h"
#include "base/text.h"

mica_status mica_states_open(mica_states *states, uint64_t planes, uint64_t tokens, uint64_t width, uint64_t limit, const char *directory,
                             mica_error *error) {
    uint64_t bytes;
    *states = (mica_states){.planes = planes, .tokens = tokens, .width = width};
    if (!mica_mul_u64(planes * sizeof(float), tokens, &bytes) || !mica_mul_u64(bytes, width, &bytes))
        return mica_fail(error, MICA_USAGE, "expected fewer tokens, got %llu", (unsigned long long)tokens);
    if (bytes <= limit) {
        states->memory = mica_alloc_aligned(bytes);
        if (states->memory)
            memset(states->memory, 0, bytes); /* counted before the cache of experts gets the rest */
        return states->memory ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for the activations of %llu tokens", (unsigned long long)tokens);
    }
    char *path = mica_path_join(directory, "activations.partial");
    if (!path)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a path");
    mica_status status = mica_file_create(path, &states->file, error);
    if (status == MICA_OK)
        status = mica_file_remove(path, error); /* it ends with the process, however that ends */
    if (status == MICA_OK)
        status = mica_file_truncate(states->file, bytes, error);
    mica_free(path);
    if (status != MICA_OK)
        mica_states_close(states);
    return status;
}

void mica_states_close(mica_states *states) {
    mica_free_aligned(states->memory);
    mica_file_close(states->file, NULL);
    *states = (mica_states){0};
}

static uint64_t place(const mica_states *states, uint64_t plane, uint64_t token) {
    return (plane * states->tokens + token) * states->width;
}

mica_status mica_states_read(const mica_states *states, uint64_t plane, uint64_t token, uint64_t count, float *x, mica_error *error) {
    uint64_t at = place(states, plane, token), bytes = count * states->width * sizeof *x;
    if (states->file)
        return mica_file_read(states->file, at * sizeof *x, x, bytes, error);
    memcpy(x, states->memory + at, bytes);
    return MICA_OK;
}

mica_status mica_states_write(mica_states *states, uint64_t plane, uint64_t token, uint64_t count, const float *x, mica_error *error) {
    uint64_t at = place(states, plane, token), bytes = count * states->width * sizeof *x;
    if (states->file)
        return mica_file_write(states->file, at * sizeof *x, x, bytes, error);
    memcpy(states->memory + at, x, bytes);
    return MICA_OK;
}
