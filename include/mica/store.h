/* mica/store.h: a store: checkpoints kept as named tensors, addressed by their content, every byte of it. Format: docs/formats.md.
 *
 * Wherever a CHECKPOINT is taken, "STORE#NAME" is one as well (or STORE where it holds one model), with the same result. One process writes
 * to a store at a time (CONFLICT); any number read, at any time, and see what was committed last. Reports (text, JSON) are the caller's:
 * mica_string_free; either may be NULL. */
#ifndef MICA_STORE_H
#define MICA_STORE_H

#include <mica/checkpoint.h>
#include <mica/status.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mica_import_options {
    const char *name;             /* in the store; NULL: the last part of the checkpoint's path */
    const char *configuration;    /* an import configuration to obey; NULL: none */
    const char *include, *exclude; /* of tensors' names, with * and ?; NULL: all, none */
    bool link;                    /* the payloads stay in the checkpoint's shards */
    bool resume, force;           /* go on where an import ended; replace the model of that name */
    uint32_t threads;             /* 0: all processors, at most 4: hashing is faster than any disk then */
    uint64_t pack_bytes;          /* where a new pack begins; 0: 8 GiB */
    mica_progress_function progress; /* may be NULL */
    void *progress_context;
} mica_import_options;

/* Imports `checkpoint` into the store in directory `store`, which is made where there is none. Report: docs/schemas/import.schema.json.
 * Errors: CONFLICT when the name is taken, or the store is being written to, or the job is not the one to resume; BAD_INPUT, IO,
 * INTERRUPTED (after which `resume` goes on). Whatever happens, the models that were there stay as they were. */
mica_status mica_import(const char *checkpoint, const char *store, const mica_import_options *options, char **text, char **json,
                        mica_error *error);

/* The import configuration of `checkpoint`, JSON (docs/formats.md): every tensor under its own name, those included that the options'
 * patterns choose; to be edited and given as `configuration`. mica_string_free it. */
mica_status mica_import_configuration(const char *checkpoint, const mica_import_options *options, char **json, mica_error *error);

/* The models of a store; or, with a name, that model's tensors and files, those whose names match the pattern (may be NULL).
 * docs/schemas/list.schema.json. */
mica_status mica_list(const char *store, const char *name, const char *pattern, char **text, char **json, mica_error *error);

/* All that is known of a tensor: by name, in every model that has it, by its content's UUID, or by one that was chosen for it.
 * docs/schemas/show.schema.json. */
mica_status mica_show(const char *store, const char *tensor, char **text, char **json, mica_error *error);

/* Forgets a model, whole or unfinished; its payloads stay until gc. docs/schemas/remove.schema.json. */
mica_status mica_remove(const char *store, const char *name, char **text, char **json, mica_error *error);

typedef struct mica_gc_options {
    uint32_t threads;    /* 0: all processors, at most 4 */
    uint64_t pack_bytes; /* where a new pack begins; 0: 8 GiB */
    mica_progress_function progress; /* may be NULL */
    void *progress_context;
} mica_gc_options;

/* Gives back the room of payloads that no model has: packs without others are removed, packs of which a tenth or more is such are written
 * anew. Every payload that is moved is compared with its hash; CORRUPT ends it, with all that is in use where it was.
 * docs/schemas/gc.schema.json. */
mica_status mica_gc(const char *store, const mica_gc_options *options, char **text, char **json, mica_error *error);

#ifdef __cplusplus
}
#endif
#endif
