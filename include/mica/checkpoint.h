/* mica/checkpoint.h: looking into a checkpoint without loading it.
 *
 * A CHECKPOINT is a directory with config.json and model.safetensors.index.json and its shards, or model.safetensors alone; a bare
 * .safetensors file can be inspected. mica_checkpoint is immutable; any thread may read it. */
#ifndef MICA_CHECKPOINT_H
#define MICA_CHECKPOINT_H

#include <mica/status.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mica_inspect_options {
    bool strict; /* unknown tensors are an error */
} mica_inspect_options;

/* What `mica inspect` prints: as text (for people) and as JSON (schema: docs/schemas/inspect.schema.json). Warnings are in both.
 * Both strings belong to the caller: mica_string_free. Errors: BAD_INPUT, IO, NO_MEMORY. */
mica_status mica_inspect(const char *path, const mica_inspect_options *options, char **text, char **json, mica_error *error);

typedef struct mica_progress {
    const char *what; /* "indexing", "verifying": static */
    uint64_t units_done, units_total;
    uint64_t bytes_done, bytes_total; /* bytes_total 0: unknown */
    double seconds, seconds_left;     /* seconds_left < 0: unknown */
} mica_progress;
/* Called on the thread that called the long function; return false to stop it (MICA_INTERRUPTED). */
typedef bool (*mica_progress_function)(void *context, const mica_progress *progress);

typedef struct mica_verify_options {
    const char *hashes;  /* for a checkpoint: a sha256sum file or a vindex that recorded its tensors; NULL: what is found beside it */
    uint32_t threads;    /* 0: all */
    mica_progress_function progress;
    void *progress_context;
} mica_verify_options;

/* Reads everything at `path`, a vindex directory or a checkpoint, and checks it: structure, every value finite, recorded hashes.
 * A vindex: every byte of every file. The report (text, JSON) is given on success and on CORRUPT and BAD_INPUT (may be NULL then). */
mica_status mica_verify(const char *path, const mica_verify_options *options, char **text, char **json, mica_error *error);

typedef struct mica_diff_options {
    uint32_t threads; /* 0: all processors, at most 16 */
    mica_progress_function progress;
    void *progress_context;
} mica_diff_options;

/* Compares two checkpoints, weight by weight, by decoded values where they are stored otherwise, and the files that go with them. The
 * report (text, JSON; schema docs/schemas/diff.schema.json) is given on success and on DIFFERENT. */
mica_status mica_diff(const char *a, const char *b, const mica_diff_options *options, char **text, char **json, mica_error *error);

void mica_string_free(char *string); /* NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
