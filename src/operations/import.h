/* operations/import.h: what the files of an import share: which tensors go into the store, under which names, in which order. Private to
 * import*.c. The verb: include/mica/store.h. */
#ifndef MICA_OPERATIONS_IMPORT_H
#define MICA_OPERATIONS_IMPORT_H

#include <mica/store.h>

#include "formats/store.h"
#include "model/model.h"
#include "operations/import_config.h"
#include "operations/pieces.h"

typedef struct mica_import_item {
    const mica_tensor *tensor;
    const char *name, *alias;                   /* in the store */
    const char *encoding, *scale, *packed_shape; /* as mica_entry has them */
    uint64_t run_bytes;                         /* aligned, of the run that begins here; 0: none begins */
} mica_import_item;

typedef struct mica_import_plan {
    mica_import_item *items; /* in the order of work */
    uint64_t item_count, bytes;
} mica_import_plan;

/* The runs: all the tensors of one expert, or of one weight; in the order of the source's bytes. `model` NULL: nothing is known of them. */
mica_status mica_import_plan_make(const mica_tensor_source *source, const mica_model *model, const mica_import_map *map,
                                  mica_import_plan *plan, mica_error *error) MICA_CHECKED;
void mica_import_plan_release(mica_import_plan *plan);

typedef struct mica_import_run {
    const mica_import_options *options;
    const char *checkpoint, *name;
    mica_tensor_source *source;
    mica_model *model; /* NULL: not understood */
    char not_understood[MICA_ERROR_MESSAGE_BYTES];
    mica_import_map map;
    mica_import_plan plan;
    char *job; /* JSON: what is imported, and how; equal for equal jobs */
    mica_store *store;
    int64_t model_id;
    int64_t *shard_ids; /* of each shard of the source, with --link */
    uint64_t done_before, skipped_files;
    bool resumed, finished_before;
    /* counted while it runs */
    uint64_t new_tensors, new_bytes, shared_tensors, shared_bytes, files, bytes_read;
    double seconds, starved_seconds;
    uint32_t threads;
} mica_import_run;

/* Streams the plan's items that the model does not have yet into the store, and commits as it goes (import_work.c). */
mica_status mica_import_stream(mica_import_run *run, mica_error *error) MICA_CHECKED;

mica_status mica_import_report(mica_status status, const mica_import_run *run, char **text, char **json, mica_error *error) MICA_CHECKED;

#endif
