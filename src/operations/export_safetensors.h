/* operations/export_safetensors.h: what the files of `mica export --format safetensors` share: the plan (which tensor becomes what, and
 * where it goes), the units of the stream, the run. A plan is a function of the checkpoint and the options; no tensor's data is read for
 * it.
 * Judged by tests/operations/test_export_safetensors.c, tests/faults/kill_export_safetensors.sh and tests/interop/safetensors_files.py. */
#ifndef MICA_OPERATIONS_EXPORT_SAFETENSORS_H
#define MICA_OPERATIONS_EXPORT_SAFETENSORS_H

#include <mica/export.h>

#include "base/json.h"
#include "formats/safetensors_write.h"
#include "model/gguf_names.h"
#include "model/model.h"
#include "operations/slab.h"
#include "operations/unit_journal.h"

#define MICA_EXPORT_COPY_BYTES ((uint64_t)16 << 20) /* of a unit that is copied; a constant, so that a resume has the same units */
#define MICA_EXPORT_JOURNAL "journal.mica"

/* What a tensor of the result is made from: copied; or decoded to the entry's type; or put together from the heads of one weight or of two,
 * whose order in a GGUF is another (export_safetensors_back.c). */
typedef struct mica_shards_origin {
    const mica_tensor *tensor; /* NULL: */
    const mica_weight *weight;
    /* COPY: by slabs; KEY_PART: `weight` is attn_k_b and `second` attn_v_b; QUERY_PAIRS and KEY_PAIRS: rows of heads */
    mica_gguf_form form;
    const mica_weight *second; /* NULL: none */
} mica_shards_origin;

/* One tensor of the result. */
typedef struct mica_shards_item {
    const mica_safetensors_entry *entry;
    const mica_tensor *tensor; /* of the origin */
    const mica_weight *weight;
    const mica_shards_origin *origin;
    mica_slabs slabs;          /* of a weight that is decoded by slabs */
    uint64_t heads;            /* units of one that is put together; 0: it is not */
    uint64_t first_unit;
} mica_shards_item;

/* A file beside the tensors that the source does not have. */
typedef struct mica_shards_file {
    const char *name; /* static */
    char *bytes;      /* owned */
    uint64_t length;
} mica_shards_file;
#define MICA_SHARDS_MADE_MAX 3

typedef struct mica_shards_plan {
    const mica_tensor_source *source;
    const mica_model *model; /* NULL where every tensor is copied */
    bool decodes, back;      /* weights are decoded; from a GGUF, with the names and files of a published checkpoint */
    mica_dtype dtype;        /* of what is decoded: BF16 or F32 */
    const char *dtype_name;  /* as it was asked for; NULL: it was not */
    uint64_t shard_bytes;    /* the limit, as it is used */
    mica_safetensors_layout layout;
    mica_shards_item *items; /* [layout.entry_count], in the layout's order; owned */
    mica_shards_origin *origins; /* [layout.entry_count], by the entries' numbers; owned */
    char **names;            /* of tensors that are called otherwise in the source; owned */
    uint64_t name_count;
    uint64_t unit_count, converted_count, dropped_count; /* weights decoded; scales and shapes that are not needed any more */
    char **files;            /* names of the files that go with the tensors, sorted; owned */
    uint64_t file_count;
    mica_shards_file made[MICA_SHARDS_MADE_MAX]; /* instead of the source's, or of what it does not have */
    uint32_t made_count;
    const char *note;        /* what could not be made; static; NULL: nothing */
    uint64_t window_bytes, output_bytes; /* the largest unit's, as read and as decoded */
    uint64_t strip_floats;   /* that a thread needs to decode */
} mica_shards_plan;

/* `model` is NULL where nothing is to be decoded. */
mica_status mica_shards_plan_make(const mica_tensor_source *source, const mica_model *model, const mica_export_safetensors_options *options,
                                  mica_shards_plan *plan, mica_error *error) MICA_CHECKED;
void mica_shards_plan_release(mica_shards_plan *plan);

typedef struct mica_shards_unit {
    const mica_shards_item *item;
    mica_slab slab;            /* of a weight */
    uint64_t head;             /* of one that is put together */
    uint64_t position, bytes;  /* of the result's tensor */
} mica_shards_unit;
mica_shards_unit mica_shards_unit_at(const mica_shards_plan *plan, uint64_t number);
/* Of a unit of a GGUF's heads: what is read, and the result in the result's order (export_safetensors_back.c). */
uint64_t mica_shards_heads(const mica_shards_plan *plan, const mica_shards_origin *origin); /* 0: decoded by slabs */
uint32_t mica_shards_head_ranges(const mica_shards_plan *plan, const mica_shards_unit *unit, mica_stream_range *ranges);
mica_status mica_shards_convert_head(const mica_shards_plan *plan, const mica_shards_unit *unit, const uint8_t *const *data, float *strip,
                                     void *output, mica_error *error) MICA_CHECKED;
/* The tensors of a GGUF under the names of a published checkpoint: entries (room for [model->weight_count]) and the plan's origins; then
 * the files beside them. BAD_INPUT names what has no name there. */
mica_status mica_shards_list_back(mica_shards_plan *plan, mica_safetensors_entry *entries, uint64_t *count, mica_error *error) MICA_CHECKED;
mica_status mica_shards_files_back(mica_shards_plan *plan, mica_error *error) MICA_CHECKED;

uint32_t mica_shards_unit_ranges(const mica_shards_plan *plan, const mica_shards_unit *unit, mica_stream_range *ranges);

/* config.json of a model whose weights are all of `dtype`: without what says how they were stored. The text is the caller's (mica_free). */
mica_status mica_shards_config(const char *name, const char *json, uint64_t length, mica_dtype dtype, char **rewritten, uint64_t *bytes,
                               mica_error *error) MICA_CHECKED;

/* One run. */
typedef struct mica_shards_run {
    const mica_shards_plan *plan;
    const mica_export_safetensors_options *options;
    const char *directory;
    char *journal_path; /* owned */
    mica_unit_journal units;
    mica_safetensors_writer *writer; /* owned */
    int lock;                        /* of the directory, -1: none */
    uint32_t threads, readers, ahead;
    uint64_t bytes_read;
    double seconds, starved_seconds;
} mica_shards_run;

/* Runs what is left (export_safetensors_work.c). */
mica_status mica_shards_work(mica_shards_run *run, mica_error *error) MICA_CHECKED;

/* The directory (export_safetensors_files.c): what is there decides. *finished: it is the result already. */
mica_status mica_shards_open(mica_shards_run *run, bool *finished, mica_error *error) MICA_CHECKED;
mica_status mica_shards_flush(mica_shards_run *run, mica_error *error) MICA_CHECKED;  /* data, then the record of it */
/* the other files, the names; then the journal goes */
mica_status mica_shards_finish(mica_shards_run *run, mica_error *error) MICA_CHECKED;
void mica_shards_close(mica_shards_run *run);

mica_status mica_shards_report(const mica_shards_run *run, const char *outcome, char **text, char **json, mica_error *error) MICA_CHECKED;

#endif
