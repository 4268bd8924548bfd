/* operations/index.h: what the files of `mica index` share: the plan (which matrices, in which order), the record of one finished matrix,
 * and the run. Order of a layer: for each projection the first routed expert (it teaches the others), router, dense, shared, the rest.
 * Judged by tests/operations/test_index.c, test_index_resume.c and tests/faults/kill_resume.sh. */
#ifndef MICA_OPERATIONS_INDEX_H
#define MICA_OPERATIONS_INDEX_H

#include <mica/vindex.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "formats/vindex.h"
#include "model/model.h"
#include "numerics/svd.h"
#include "operations/unit_journal.h"

#define MICA_INDEX_VAR_COUNT 64u /* var64 always means this many values */
#define MICA_INDEX_TENSORS_MAX 3u /* data, scale, shape */
#define MICA_INDEX_WARNING_BYTES 512u

/* What a matrix is; `group` of a routed expert, and of the one MLP of a dense model, is MAIN. */
typedef enum mica_index_kind {
    MICA_INDEX_ROUTED,
    MICA_INDEX_SHARED,
    MICA_INDEX_DENSE,
    MICA_INDEX_ROUTER,
    MICA_INDEX_KIND_COUNT
} mica_index_kind;
const char *mica_index_kind_name(mica_index_kind kind); /* "routed", … */

typedef struct mica_index_unit {
    const mica_weight *weight;
    uint64_t after;             /* the unit that learns this one's plan, or MICA_STREAM_NONE */
    uint64_t slot;              /* ordinal of the layer in its group's files */
    uint32_t layer, expert;     /* model's numbering */
    uint8_t kind, group, projection; /* mica_index_kind, mica_vindex_group, mica_projection */
    bool vectors, full, check_count;
} mica_index_unit;

/* What is kept of a finished matrix: the journal's record, byte for byte, and the source of every JSON file. No padding. */
typedef struct mica_index_record {
    uint64_t unit;
    uint32_t rank, count;        /* of result.count values */
    uint32_t route, count_checked, basis, above_edge;
    uint32_t plan_degree, plan_basis;
    double plan_bound;
    double frobenius, sum_fourth, s0, s1, var8, var64, effective_rank; /* NaN: there is none */
    double residual, orthonormality, value_error;
    uint8_t digests[MICA_INDEX_TENSORS_MAX][MICA_SHA256_BYTES]; /* zero: no such tensor */
    char why_dense[80];
    uint32_t value_count;   /* doubles that follow in the journal: a router's spectrum; else what float32 cannot hold, the beyond first */
    uint32_t warning_bytes; /* text that follows them */
} mica_index_record;

/* What a singular value becomes in a float32 file: +inf, or 0 although it is positive. */
bool mica_index_is_beyond(double value);
bool mica_index_is_below(double value);

/* In memory: the record and what followed it. */
typedef struct mica_index_outcome {
    mica_index_record record;
    double *values;  /* [record.value_count]; owned, NULL when 0 */
    char *warning;   /* owned, NULL when none */
} mica_index_outcome;

/* What is to be done; a function of the model and the options, of nothing else. */
typedef struct mica_index_plan {
    const mica_model *model;
    uint32_t features, spectra, full_spectrum; /* as given, defaults filled in */
    uint64_t *layers;                          /* the selected, rising; owned */
    uint64_t layer_count;
    mica_index_unit *units; /* owned */
    uint64_t unit_count;
    uint64_t *group_layers[MICA_VINDEX_GROUP_COUNT]; /* [layout.group[g].layers], model numbering; owned */
    mica_vindex_layout layout;
    uint64_t bytes_total; /* that will be read */
} mica_index_plan;

/* Errors: USAGE for options that contradict the model, BAD_INPUT for matrices of unequal shape in one group. */
mica_status mica_index_plan_make(const mica_model *model, const mica_index_options *options, mica_index_plan *plan,
                                 mica_error *error) MICA_CHECKED;
void mica_index_plan_release(mica_index_plan *plan);
/* The tensors of a unit in the order data, scale, shape; returns how many. */
uint32_t mica_index_unit_tensors(const mica_index_unit *unit, const mica_tensor *tensors[MICA_INDEX_TENSORS_MAX]);
void mica_index_unit_svd(const mica_index_plan *plan, const mica_index_unit *unit, mica_svd_options *options);
uint64_t mica_index_result_bytes(const mica_index_plan *plan, const mica_index_unit *unit); /* of the stream's result (index_work.c) */

/* Threads, look-ahead and workspaces that fit the memory. */
typedef struct mica_index_resources {
    uint32_t threads, readers, ahead;
    uint64_t unit_bytes_max, result_bytes;
    uint64_t workspace_share; /* a larger workspace is used by one thread at a time */
    uint64_t bytes;           /* estimate of the resident set */
} mica_index_resources;
mica_status mica_index_resources_fit(const mica_index_plan *plan, const mica_index_options *options, mica_index_resources *resources,
                                     mica_error *error) MICA_CHECKED;

/* The identity of a job, as one JSON object: {"options", "source", "arithmetic", "shards"}. The first two are in moe_config.json too. */
mica_status mica_index_identity(const mica_index_plan *plan, char **json, uint64_t *length, mica_error *error) MICA_CHECKED;
void mica_index_write_options(mica_json_writer *writer, const mica_index_plan *plan);

/* SHA-256 of a file's first `bytes` bytes; without a context the file has to be read for it. */
typedef struct mica_running_hash {
    mica_sha256 hash;
    uint64_t bytes;
} mica_running_hash;

/* One run. */
typedef struct mica_index_run {
    const mica_index_plan *plan;
    const mica_index_options *options;
    const char *directory;
    mica_index_resources resources;
    mica_index_outcome *outcomes; /* [plan->unit_count], those below units.done filled; owned */
    double *unit_seconds;         /* [plan->unit_count] of work, 0: not measured in this run; owned */
    mica_unit_journal units;
    mica_file *files[MICA_VINDEX_GROUP_COUNT][MICA_VINDEX_MEMBER_COUNT];
    /* Their checksums, as they are written: the items of a file mostly come in order. */
    mica_running_hash hashes[MICA_VINDEX_GROUP_COUNT][MICA_VINDEX_MEMBER_COUNT];
    int lock;            /* descriptor of the locked directory, -1: none */
    double stop_after;   /* dry run: seconds; 0: no bound */
    bool stopped;        /* … was reached */
    uint64_t bytes_read, bytes_resumed;
    double seconds, work_seconds, starved_seconds, svd_seconds; /* the last: part of work_seconds */
} mica_index_run;

/* Runs units run->units.done … end - 1 (index_work.c). With run->units.journal NULL nothing is written. */
mica_status mica_index_work(mica_index_run *run, uint64_t end, mica_error *error) MICA_CHECKED;

/* The directory, the journal and the .bin files (index_journal.c). */
mica_status mica_index_start(mica_index_run *run, mica_error *error) MICA_CHECKED;  /* afresh: what a vindex has is removed */
mica_status mica_index_resume(mica_index_run *run, mica_error *error) MICA_CHECKED; /* from journal.mica */
mica_status mica_index_flush(mica_index_run *run, mica_error *error) MICA_CHECKED;  /* data files, then records */
mica_status mica_index_check_finished(mica_index_run *run, mica_error *error) MICA_CHECKED; /* a finished vindex of the same job? */
void mica_index_close(mica_index_run *run);
mica_status mica_index_outcome_take(mica_index_outcome *outcome, const mica_index_record *record, const double *values, const char *warning,
                                    mica_error *error) MICA_CHECKED;

/* Everything but the .bin files, checksums.json last; then the journal goes (index_finish.c). */
mica_status mica_index_finish(mica_index_run *run, mica_error *error) MICA_CHECKED;
mica_status mica_index_hash_source(const mica_index_run *run, mica_error *error) MICA_CHECKED;

#endif
