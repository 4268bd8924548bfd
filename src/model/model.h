/* model/model.h: a checkpoint opened as a model: its configuration, and every tensor accounted for.
 * Immutable after open; any thread may read. Opening reads headers only, never data. */
#ifndef MICA_MODEL_MODEL_H
#define MICA_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "formats/tensor_source.h"
#include "model/architecture.h"
#include "model/config.h"
#include "numerics/matrix.h"

/* What became of a tensor. */
typedef enum mica_fate { MICA_USED, MICA_IGNORED, MICA_UNKNOWN } mica_fate;
typedef struct mica_account {
    mica_fate fate;
    const char *rule; /* of an ignored tensor; static */
} mica_account;

/* A weight: one logical matrix, and the one to three tensors it is stored in. */
typedef struct mica_weight {
    const char *name; /* of the weight: "model.layers.1.mlp.experts.2.up_proj.weight"; as long as the model */
    mica_fate fate;   /* every tensor belongs to exactly one weight; those of ignored and unknown tensors have MICA_ROLE_OTHER */
    mica_role role;
    mica_projection projection;
    mica_part part;
    int64_t layer, expert; /* -1: none */
    mica_encoding encoding;
    uint64_t rows, columns; /* decoded; vectors have rows 1; of more than two dimensions all but the first are columns */
    uint64_t block_rows, block_columns;
    const mica_tensor *data, *scale, *shape; /* scale, shape NULL where the encoding has none */
    /* The source's tensor: data itself; or the one of all experts that data is a slice of, contiguous, with a name ("NAME[expert]"), a
     * shape and a place of its own. */
    const mica_tensor *whole;
} mica_weight;

typedef struct mica_layer {
    bool moe;
    const mica_weight *router, *router_bias, *hash_table;   /* NULL where there is none */
    const mica_weight **experts;                            /* [n_routed_experts][MICA_PROJECTION_COUNT]; NULL for a dense layer */
    const mica_weight *shared[MICA_PROJECTION_COUNT];       /* NULL without shared experts */
    const mica_weight *dense[MICA_PROJECTION_COUNT];        /* NULL in an MoE layer */
    const mica_weight *parts[MICA_PART_COUNT];              /* attention, norms, biases; NULL where there is none */
} mica_layer;

typedef struct mica_model {
    mica_tensor_source *source; /* owned */
    mica_config config;
    mica_weight *weights; /* owned; sorted by name */
    uint64_t weight_count;
    mica_layer *layers; /* [num_hidden_layers] */
    const mica_weight *embedding, *final_norm, *head; /* head: the embedding where the two are tied and none is stored */
    const mica_weight *rope_factors; /* [rotary width / 2], to divide the frequencies by; NULL: none is stored */
    mica_tensor **slices;            /* owned: one block per sliced tensor: what weights' data points into */
    uint64_t slice_block_count;
    mica_account *accounts; /* [source->tensor_count] */
    uint64_t used_count, ignored_count, unknown_count;
    char **warnings; /* one line each: unknown tensors (first 20, then a count), tensors not listed in the index, … */
    uint64_t warning_count;
} mica_model;

typedef struct mica_model_options {
    bool strict; /* unknown tensors are an error */
} mica_model_options;

mica_status mica_model_open(const char *path, const mica_model_options *options, mica_model **model, mica_error *error) MICA_CHECKED;
/* The same over a source that is open already, which belongs to the model from now on, or is closed when this fails. */
mica_status mica_model_open_source(mica_tensor_source *source, const mica_model_options *options, mica_model **model,
                                   mica_error *error) MICA_CHECKED;
/* Any source, taken in the same way, of which nothing is asked but its tensors: each is a weight of unknown use, of three dimensions one
 * per matrix ("NAME[m]"); the configuration is empty. */
mica_status mica_model_open_bare(mica_tensor_source *source, mica_model **model, mica_error *error) MICA_CHECKED;
void mica_model_close(mica_model *model); /* NULL is fine */

const mica_weight *mica_model_weight(const mica_model *model, const char *name); /* NULL when absent */
/* False for a source that is tensors alone: a bare file, a GGUF of an architecture that is not known. */
bool mica_source_is_model(const mica_tensor_source *source);
const char *mica_model_shard_name(const mica_model *model, const mica_tensor *tensor);
const mica_file *mica_model_file(const mica_model *model, const mica_tensor *tensor);

/* The matrix over bytes already in memory: data, scale, shape as the weight's tensors (NULL where it has none).
 * Checks what only data shows of the layout: int4's weight_shape against rows and columns. */
mica_status mica_weight_matrix(const mica_model *model, const mica_weight *weight, const void *data, const void *scale, const void *shape,
                               mica_matrix *matrix, mica_error *error) MICA_CHECKED;

/* The values: finite codes and scales, hash tables below n_routed_experts. NaN and infinity are BAD_INPUT (naming shard, tensor,
 * position, expected, got); a zero or negative scale goes to `warning` (may be NULL; text of at most `warning_bytes`, "" when none).
 * health (may be NULL) receives mica_matrix_examine's result. */
mica_status mica_weight_examine(const mica_model *model, const mica_weight *weight, const mica_matrix *matrix, mica_matrix_health *health,
                                char *warning,
                                uint64_t warning_bytes, mica_error *error) MICA_CHECKED;

/* The same for readers that go through a file in order: `count` elements, from the `first` on, of one of a weight's tensors (weight->shape
 * is given whole; of a block type whole blocks). `weight` may be NULL: a tensor of which nothing is known but its type. */
mica_status mica_weight_examine_run(const mica_model *model, const mica_weight *weight, const mica_tensor *tensor, uint64_t first,
                                    uint64_t count,
                                    const void *bytes, char *warning, uint64_t warning_bytes, mica_error *error) MICA_CHECKED;

/* Convenience for tests and small tensors: reads and decodes a whole weight to float32 (rows x columns; mica_free). */
mica_status mica_weight_load(const mica_model *model, const mica_weight *weight, float **values, mica_error *error) MICA_CHECKED;

#endif
