/* formats/catalogue.h: catalogue.sqlite of a store: which models there are, their tensors by name, where each payload lies, and the files
 * kept verbatim. The schema and what each column means: docs/formats.md. Every row that a person could change is covered by a digest.
 * Refuses: a database that is not ours or of another version, rows that contradict themselves. One thread at a time. Invariant: a row that
 * names bytes is committed only after those bytes were synced (the caller's part; formats/store does it).
 * Judged by tests/operations/test_import.c, tests/faults. */
#ifndef MICA_FORMATS_CATALOGUE_H
#define MICA_FORMATS_CATALOGUE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/uuid.h"
#include "formats/safetensors.h"

#define MICA_CATALOGUE_NAME "catalogue.sqlite"

typedef struct mica_catalogue mica_catalogue;

/* What the bytes of one tensor are, and where they lie: in a pack, or in a shard of the source that was linked. */
typedef struct mica_blob {
    int64_t id;
    uint8_t sha256[MICA_SHA256_BYTES]; /* the tensor's digest (formats/vindex.h): over dtype, shape and bytes */
    mica_dtype dtype;
    uint32_t rank;
    uint64_t shape[MICA_RANK_MAX];
    uint64_t elements, bytes;
    int64_t pack, shard; /* one of them is 0 */
    uint64_t offset;     /* in that file */
} mica_blob;

/* A name of a model. Texts are valid during the call that gives them, or as long as whoever fills it says. */
typedef struct mica_entry {
    const char *name;
    const char *encoding;     /* of a weight's data: "plain", "fp8-block", …; of what belongs to one: "scale", "packed-shape" */
    const char *scale;        /* the name of its scale tensor; NULL when there is none */
    const char *packed_shape; /* the name of its weight_shape; NULL when there is none */
    const char *alias;        /* a UUID that somebody chose for it; NULL when nobody did */
    mica_blob blob;
} mica_entry;

typedef struct mica_stored_model {
    int64_t id;
    char *name;
    bool whole;  /* false: an import that was not finished */
    char *job;   /* JSON: what was imported, and how (operations/import) */
    uint64_t tensors, bytes; /* of a whole one: how many, and the sum of their sizes */
    uint8_t digest[MICA_SHA256_BYTES]; /* of a whole one, as recorded */
} mica_stored_model;

typedef struct mica_stored_file { /* kept verbatim */
    char *name;
    uint8_t sha256[MICA_SHA256_BYTES];
    uint64_t bytes;
} mica_stored_file;

typedef struct mica_stored_shard { /* of a source, linked */
    int64_t id;
    char *path; /* absolute */
    uint64_t bytes;
    int64_t modified; /* nanoseconds since 1970 */
} mica_stored_shard;

/* ---- opening. A writer makes what is not there yet; the caller holds the store's lock. */

mica_status mica_catalogue_open(const char *path, bool write, mica_catalogue **catalogue, mica_error *error) MICA_CHECKED;
void mica_catalogue_close(mica_catalogue *catalogue); /* rolls back what was not committed; NULL is fine */
/* What the store is called in the headers of its packs. */
const uint8_t *mica_catalogue_id(const mica_catalogue *catalogue);
/* Changes whenever another connection has committed. */
mica_status mica_catalogue_version(mica_catalogue *catalogue, uint64_t *version, mica_error *error) MICA_CHECKED;

mica_status mica_catalogue_begin(mica_catalogue *catalogue, mica_error *error) MICA_CHECKED; /* a reader's: one moment's view */
mica_status mica_catalogue_commit(mica_catalogue *catalogue, mica_error *error) MICA_CHECKED; /* seals the store's digest if it wrote */
void mica_catalogue_rollback(mica_catalogue *catalogue);
/* After a large removal: gives the file's free pages back, and empties the write-ahead log. Outside a transaction. */
mica_status mica_catalogue_compact(mica_catalogue *catalogue, mica_error *error) MICA_CHECKED;

/* ---- models */

/* All of them, by name, those unfinished behind the whole. */
mica_status mica_catalogue_models(mica_catalogue *catalogue, mica_stored_model **models, uint64_t *count, mica_error *error) MICA_CHECKED;
void mica_stored_models_free(mica_stored_model *models, uint64_t count);
/* *found false when there is none; otherwise *model is the caller's (mica_stored_model_release). */
mica_status mica_catalogue_find_model(mica_catalogue *catalogue, const char *name, bool whole, bool *found, mica_stored_model *model,
                                      mica_error *error) MICA_CHECKED;
void mica_stored_model_release(mica_stored_model *model);
mica_status mica_catalogue_add_model(mica_catalogue *catalogue, const char *name, const char *job, int64_t *id,
                                     mica_error *error) MICA_CHECKED;
/* Its rows, and the files nobody else has; the payloads stay until gc. */
mica_status mica_catalogue_remove_model(mica_catalogue *catalogue, int64_t id, mica_error *error) MICA_CHECKED;
/* Counts and digests an unfinished model's rows, and makes it whole. A whole one of the same name must be removed before. */
mica_status mica_catalogue_finish_model(mica_catalogue *catalogue, int64_t id, mica_error *error) MICA_CHECKED;

/* ---- tensors */

mica_status mica_catalogue_add_entry(mica_catalogue *catalogue, int64_t model, const mica_entry *entry, mica_error *error) MICA_CHECKED;
/* *found false when the model has no such tensor. The entry's texts are valid until the next call. */
mica_status mica_catalogue_find_entry(mica_catalogue *catalogue, int64_t model, const char *name, bool *found, mica_entry *entry,
                                      mica_error *error) MICA_CHECKED;
typedef mica_status (*mica_entry_visit)(void *context, const mica_stored_model *model, const mica_entry *entry, mica_error *error);
/* By name (bytes). `model` NULL in the call. */
mica_status mica_catalogue_each_entry(mica_catalogue *catalogue, int64_t model, mica_entry_visit visit, void *context,
                                      mica_error *error) MICA_CHECKED;
/* Every name that a payload has, in any model. */
mica_status mica_catalogue_each_sharer(mica_catalogue *catalogue, int64_t blob, mica_entry_visit visit, void *context,
                                       mica_error *error) MICA_CHECKED;
/* Every tensor with that name, that content's UUID or that alias, in any whole model. */
mica_status mica_catalogue_each_match(mica_catalogue *catalogue, const char *name_or_uuid, mica_entry_visit visit, void *context,
                                      mica_error *error) MICA_CHECKED;

/* ---- payloads, packs, linked shards */

mica_status mica_catalogue_find_blob(mica_catalogue *catalogue, const uint8_t sha256[MICA_SHA256_BYTES], bool *found, mica_blob *blob,
                                     mica_error *error) MICA_CHECKED;
mica_status mica_catalogue_add_blob(mica_catalogue *catalogue, mica_blob *blob, mica_error *error) MICA_CHECKED; /* sets blob->id */
/* to its new place */
mica_status mica_catalogue_move_blob(mica_catalogue *catalogue, const mica_blob *blob, mica_error *error) MICA_CHECKED;
mica_status mica_catalogue_remove_blob(mica_catalogue *catalogue, int64_t id, mica_error *error) MICA_CHECKED;
typedef mica_status (*mica_blob_visit)(void *context, const mica_blob *blob, bool used, mica_error *error);
/* Of one pack, by offset; pack 0: the linked ones, by shard and offset. used: a model has it. */
mica_status mica_catalogue_each_blob(mica_catalogue *catalogue, int64_t pack, mica_blob_visit visit, void *context,
                                     mica_error *error) MICA_CHECKED;

typedef struct mica_stored_pack {
    int64_t number;
    uint64_t bytes; /* as far as it counts; what lies behind is of an import that was not finished */
} mica_stored_pack;
mica_status mica_catalogue_packs(mica_catalogue *catalogue, mica_stored_pack **packs, uint64_t *count, mica_error *error) MICA_CHECKED;
mica_status mica_catalogue_next_pack(mica_catalogue *catalogue, int64_t *number, mica_error *error) MICA_CHECKED; /* never used before */
mica_status mica_catalogue_set_pack(mica_catalogue *catalogue, int64_t number, uint64_t bytes, mica_error *error) MICA_CHECKED;
mica_status mica_catalogue_remove_pack(mica_catalogue *catalogue, int64_t number, mica_error *error) MICA_CHECKED;

mica_status mica_catalogue_shards(mica_catalogue *catalogue, mica_stored_shard **shards, uint64_t *count, mica_error *error) MICA_CHECKED;
void mica_stored_shards_free(mica_stored_shard *shards, uint64_t count);
/* The row with these very values, made if it is not there. */
mica_status mica_catalogue_add_shard(mica_catalogue *catalogue, mica_stored_shard *shard, mica_error *error) MICA_CHECKED;
mica_status mica_catalogue_remove_unused_shards(mica_catalogue *catalogue, mica_error *error) MICA_CHECKED;

/* ---- files kept verbatim */

mica_status mica_catalogue_add_file(mica_catalogue *catalogue, int64_t model, const char *name, const void *bytes, uint64_t length,
                                    mica_error *error) MICA_CHECKED;
mica_status mica_catalogue_files(mica_catalogue *catalogue, int64_t model, mica_stored_file **files, uint64_t *count,
                                 mica_error *error) MICA_CHECKED;
void mica_stored_files_free(mica_stored_file *files, uint64_t count);
/* NUL-terminated, the caller's (mica_free). CORRUPT when the bytes are not those of the digest. */
mica_status mica_catalogue_load_file(mica_catalogue *catalogue, const mica_stored_file *file, char **bytes, mica_error *error) MICA_CHECKED;

/* ---- checking. Each finding is one sentence; CORRUPT when nothing more can be read. */

typedef mica_status (*mica_catalogue_complaint)(void *context, const char *sentence, mica_error *error);
/* The database's own structure, the store's digest, every model's digest, every row's check, every kept file. */
mica_status mica_catalogue_check(mica_catalogue *catalogue, mica_catalogue_complaint complain, void *context,
                                 mica_error *error) MICA_CHECKED;

#endif
