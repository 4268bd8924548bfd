/* operations/layer_states.c: see the header. Judged by tests/operations/test_layer_pass.c, and by test_route.c, which gives the same
 * numbers both ways. */
#include "operations/layer_states.h"

#include <string.h>

#include "base/memory.h"

mica_status mica_states_open(mica_states *states, uint64_t planes, uint64_t tokens, uint64_t width, uint64_t limit, mica_error *error) {
    uint64_t bytes;
    *states = (mica_states){.planes = planes, .tokens = tokens, .width = width};
    if (!mica_mul_u64(planes * sizeof(float), tokens, &bytes) || !mica_mul_u64(bytes, width, &bytes))
        return mica_fail(error, MICA_USAGE, "expected fewer tokens, got %llu", (unsigned long long)tokens);
    if (bytes > limit)
        return MICA_OK;
    states->memory = mica_alloc_aligned(bytes);
    if (!states->memory)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the activations of %llu tokens", (unsigned long long)tokens);
    memset(states->memory, 0, bytes); /* counted before the cache of experts gets the rest */
    return MICA_OK;
}

static uint64_t plane_bytes(const mica_states *states) {
    return states->tokens * states->width * sizeof(float);
}

mica_status mica_states_attach(mica_states *states, const char *path, bool fresh, mica_error *error) {
    const uint64_t kept = MICA_STATES_KEPT * plane_bytes(states), bytes = states->memory ? kept : states->planes * plane_bytes(states);
    if (!fresh && !mica_path_exists(path))
        return mica_fail(error, MICA_CONFLICT,
                         "%s: expected the activations of the run before, the file is gone; start afresh with --force", path);
    mica_status status = fresh ? mica_file_create(path, &states->file, error) : mica_file_open_update(path, &states->file, error);
    if (status == MICA_OK && !fresh && mica_file_bytes(states->file) < kept)
        status = mica_fail(error, MICA_CONFLICT, "%s: expected at least %llu bytes of the run before, got %llu; start afresh with --force",
                           path, (unsigned long long)kept, (unsigned long long)mica_file_bytes(states->file));
    if (status == MICA_OK)
        status = mica_file_truncate(states->file, bytes, error);
    /* its name is durable before a record speaks of it */
    return status == MICA_OK && fresh ? mica_directory_sync_parent(path, error) : status;
}

void mica_states_close(mica_states *states) {
    mica_free_aligned(states->memory);
    (void)mica_file_close(states->file, NULL);
    *states = (mica_states){0};
}

static uint64_t place(const mica_states *states, uint64_t plane, uint64_t token) {
    return (plane * states->tokens + token) * states->width;
}

mica_status mica_states_read(const mica_states *states, uint64_t plane, uint64_t token, uint64_t count, float *x, mica_error *error) {
    uint64_t at = place(states, plane, token), bytes = count * states->width * sizeof *x;
    if (!states->memory)
        return mica_file_read(states->file, at * sizeof *x, x, bytes, error);
    memcpy(x, states->memory + at, bytes);
    return MICA_OK;
}

mica_status mica_states_write(mica_states *states, uint64_t plane, uint64_t token, uint64_t count, const float *x, mica_error *error) {
    uint64_t at = place(states, plane, token), bytes = count * states->width * sizeof *x;
    if (!states->memory)
        return mica_file_write(states->file, at * sizeof *x, x, bytes, error);
    memcpy(states->memory + at, x, bytes);
    return MICA_OK;
}

mica_status mica_states_keep(mica_states *states, uint64_t plane, mica_error *error) {
    const uint64_t at = place(states, plane, 0);
    mica_status status = MICA_OK;
    if (states->memory)
        status = mica_file_write(states->file, at * sizeof *states->memory, states->memory + at, plane_bytes(states), error);
    return status == MICA_OK ? mica_file_sync(states->file, error) : status;
}

mica_status mica_states_recall(mica_states *states, uint64_t plane, mica_error *error) {
    const uint64_t at = place(states, plane, 0);
    if (!states->memory)
        return MICA_OK;
    return mica_file_read(states->file, at * sizeof *states->memory, states->memory + at, plane_bytes(states), error);
}
