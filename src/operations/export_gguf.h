/* operations/export_gguf.h: what the files of `mica export --format gguf` share: the plan (which tensor, from which weights, in which type,
 * at which place), the stream's units and the run. A plan is a function of the model and the options; no weight is read for it.
 * Judged by tests/operations/test_export_gguf.c, tests/faults/kill_export_gguf.sh and tests/interop/export_gguf.py. */
#ifndef MICA_OPERATIONS_EXPORT_GGUF_H
#define MICA_OPERATIONS_EXPORT_GGUF_H

#include <mica/export.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/file.h"
#include "base/json.h"
#include "formats/gguf_write.h"
#include "formats/imatrix.h"
#include "model/gguf_names.h"
#include "model/gguf_types.h"
#include "model/model.h"
#include "numerics/quantise.h"
#include "operations/unit_journal.h"

#define MICA_EXPORT_SLAB_BYTES ((uint64_t)8 << 20) /* of a unit, as read and as written; a constant, so that a resume has the same units */

/* One tensor of the file, as a stack of matrices of equal shape. */
typedef struct mica_export_tensor {
    char name[MICA_GGUF_NAME_BYTES];
    mica_gguf_form form;
    const mica_weight **weights; /* [weight_count], in the plan's memory: one, or one per matrix (EXPERTS) */
    uint64_t weight_count;
    const float *values;         /* [columns], instead of a weight: what the exporter makes itself; the plan's */
    int64_t layer;               /* -1: outside the layers */
    uint32_t rank;
    uint64_t shape[4];           /* GGUF's order: shape[0] is contiguous */
    uint64_t matrices, rows, columns;
    bool fixed;                  /* its type is not for choice: F32, or I32 */
    mica_dtype wanted, dtype;    /* before and after its shape was looked at */
    const char *reason;          /* who wanted it: static, or a rule's text */
    const char *mixture;         /* the mixture's name, when it was asked; static */
    uint64_t bytes;
    uint64_t slab_rows, slabs;   /* rows of a unit; units of a matrix */
    uint64_t first_unit;
    const mica_imatrix_entry *importance; /* of its columns; NULL: all alike */
    mica_dtype *types;           /* [matrices], of experts that are to have several; NULL: dtype is all's; owned by the plan */
    char whole[MICA_GGUF_NAME_BYTES]; /* of a group of experts: the name of the tensor of all of them; else empty */
    uint64_t experts;            /* how many that has */
    bool covariance;             /* its levels are searched with its input's covariance */
} mica_export_tensor;

typedef struct mica_export_plan {
    const mica_model *model;
    const char *architecture;    /* general.architecture; static, or `named` */
    const mica_gguf *gguf;       /* whose keys the file gets: a GGUF that is written again; the model's; NULL: a checkpoint */
    char *named;                 /* owned; NULL: none */
    mica_mixture mixture;
    mica_effort effort;
    uint32_t file_type;          /* general.file_type */
    mica_mixture_model facts;
    mica_imatrix *imatrix;       /* owned; NULL: none */
    bool groups;                 /* experts of one tensor may have several types: --compat mica */
    bool trellis;                /* levels by covariance are wanted */
    struct mica_export_factors *factors; /* owned; NULL: no tensor has a covariance */
    mica_export_tensor *tensors; /* [tensor_count], in the file's order; owned */
    uint64_t tensor_count;
    const mica_weight **sources; /* what tensors[].weights point into; owned */
    float *rope_factors;         /* owned; NULL: none */
    uint64_t vision_blocks;      /* of a vision file; 0: the language model */
    uint64_t vision_heads;       /* of its attention */
    uint64_t unit_count;
    uint64_t parameters, bytes;  /* elements and bytes of all tensors */
} mica_export_plan;

/* The tensors, without types: every weight that the model uses goes somewhere, or USAGE/BAD_INPUT says which does not. */
mica_status mica_export_plan_tensors(const mica_model *model, mica_export_plan *plan, mica_error *error) MICA_CHECKED;
/* The same for the vision tower and projector beside the language model. */
mica_status mica_export_plan_vision(const mica_model *model, mica_export_plan *plan, mica_error *error) MICA_CHECKED;
/* The tensors of a GGUF of whatever architecture, in its order, each in the type it has until another is chosen (export_gguf_again.c).
 * `model` was opened bare. */
mica_status mica_export_plan_again(const mica_model *model, mica_export_plan *plan, mica_error *error) MICA_CHECKED;
uint64_t mica_export_requantised(const mica_export_plan *plan); /* how many tensors were quantised before and get another type */
void mica_export_plan_release(mica_export_plan *plan);

/* Opens the importance matrix and gives each tensor its entry (export_gguf_types.c). */
mica_status mica_export_plan_importance(mica_export_plan *plan, const char *path, mica_error *error) MICA_CHECKED;
/* Chooses every tensor's type: by the rules, else by the mixture (export_gguf_types.c). */
struct mica_export_rules;
mica_status mica_export_plan_types(mica_export_plan *plan, const mica_export_gguf_options *options, struct mica_export_rules *rules,
                                   mica_error *error) MICA_CHECKED;
/* The name an importance matrix knows it by; which expert a matrix is, and of how many (of another tensor: its number, and `matrices`). */
static inline const char *mica_export_known_name(const mica_export_tensor *tensor) {
    return tensor->whole[0] ? tensor->whole : tensor->name;
}
static inline uint64_t mica_export_expert(const mica_export_tensor *tensor, uint64_t matrix) {
    return tensor->whole[0] ? (uint64_t)tensor->weights[matrix]->expert : matrix;
}
static inline uint64_t mica_export_experts(const mica_export_tensor *tensor) {
    return tensor->whole[0] ? tensor->experts : tensor->matrices;
}
/* Tensors whose experts were given several types become groups of one type each (export_gguf_groups.c). */
mica_status mica_export_plan_groups(mica_export_plan *plan, mica_error *error) MICA_CHECKED;
void mica_export_metadata_groups(const mica_export_plan *plan, mica_gguf_metadata *out);
/* Sizes and units, when the types are known (export_gguf_types.c). */
void mica_export_plan_units(mica_export_plan *plan);
/* The widest covariance that is used; 0: none is. */
uint64_t mica_export_plan_covariance_columns(const mica_export_plan *plan);
/* The keys (export_gguf_metadata.c, export_gguf_tokenizer.c). */
mica_status mica_export_metadata(const mica_export_plan *plan, mica_gguf_metadata *out, mica_error *error) MICA_CHECKED;
/* How many heads its vision tower's attention has, by vision_config (export_gguf_vision.c). */
mica_status mica_export_vision_heads(const mica_model *model, uint64_t *heads, mica_error *error) MICA_CHECKED;
mica_status mica_export_vision_metadata(const mica_export_plan *plan, mica_gguf_metadata *out, mica_error *error) MICA_CHECKED;
/* Of a GGUF that is written again: its own keys (export_gguf_again.c). */
void mica_export_metadata_again(const mica_export_plan *plan, mica_gguf_metadata *out);
/* What GGUF says otherwise than the tokenizer does becomes a note of the rules. */
mica_status mica_export_tokenizer(const mica_export_plan *plan, struct mica_export_rules *rules, mica_gguf_metadata *out,
                                  mica_error *error) MICA_CHECKED;

/* One unit: rows of one matrix of one tensor. */
typedef struct mica_export_unit {
    const mica_export_tensor *tensor;
    const mica_weight *weight;   /* NULL: tensor->values */
    uint64_t matrix, row, rows;  /* of the tensor */
    uint64_t source_row, source_rows; /* of the weight: what is read; begins where a block of scales does */
    uint64_t position, bytes;    /* in the tensor's data */
} mica_export_unit;
mica_export_unit mica_export_unit_at(const mica_export_plan *plan, uint64_t number);

/* From a unit's bytes to the file's (export_gguf_convert.c): a converter belongs to one thread. */
typedef struct mica_export_converter mica_export_converter;
mica_status mica_export_converter_create(const mica_export_plan *plan, mica_export_converter **converter, mica_error *error) MICA_CHECKED;
void mica_export_converter_free(mica_export_converter *converter); /* NULL is fine */
/* `data`: of the weight's tensors in the order data, scale, shape, those rows that the unit reads. `out`: unit->bytes. *inexact is raised
 * by the scales of 4-bit groups that the file's type does not hold exactly. */
mica_status mica_export_convert(mica_export_converter *converter, const mica_export_unit *unit, const uint8_t *const *data, uint8_t *out,
                                uint64_t *inexact, mica_error *error) MICA_CHECKED;
uint64_t mica_export_output_bytes_max(const mica_export_plan *plan); /* the largest unit->bytes */

/* One run. */
typedef struct mica_export_run {
    const mica_export_plan *plan;
    const struct mica_export_rules *rules;
    const mica_export_gguf_options *options;
    const char *path;            /* as given; NULL in a dry run */
    char *journal_path;          /* owned */
    mica_gguf_layout layout;     /* tensors in the plan's order; owned */
    mica_gguf_writer *writer;    /* NULL: nothing is written */
    mica_unit_journal units;
    int lock;                    /* descriptor of the locked journal, -1: none */
    uint32_t threads, readers, ahead;
    uint64_t *inexact;           /* [tensor_count]: scales of 4-bit groups that are not held exactly; owned */
    const uint64_t *order;       /* dry run: the units that are timed; NULL: all */
    double *unit_seconds;        /* dry run: [order's count], of processor */
    uint64_t budget_bytes;       /* 0: there was none */
    double budget_ratio;         /* the error of the types it bought over that of the mixture's; NaN: not known */
    double seconds, work_seconds, starved_seconds;
    uint64_t bytes_read;
} mica_export_run;

/* Runs units run->units.done … end - 1 (export_gguf_work.c); without a writer nothing is written. */
mica_status mica_export_work(mica_export_run *run, uint64_t end, mica_error *error) MICA_CHECKED;

/* The partial files, the journal and the final names (export_gguf_files.c). */
mica_status mica_export_files_start(mica_export_run *run, mica_error *error) MICA_CHECKED;
mica_status mica_export_files_resume(mica_export_run *run, mica_error *error) MICA_CHECKED;
mica_status mica_export_files_flush(mica_export_run *run, mica_error *error) MICA_CHECKED;
mica_status mica_export_files_finish(mica_export_run *run, mica_error *error) MICA_CHECKED;
void mica_export_files_close(mica_export_run *run);
/* Files that have their names: CONFLICT where their size or their header (keys, tensors, types) is not this job's. */
mica_status mica_export_files_check(mica_export_run *run, mica_error *error) MICA_CHECKED;

#endif
