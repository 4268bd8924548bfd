/* operations/imatrix_covariance.h: second moments of the inputs of a model's weights, collected layer by layer and written as each layer
 * ends: the memory is that of one layer. Which inputs there are, and how many experts get one of their own, is known before anything is
 * computed, so the file's layout is too. Format: docs/formats.md. Judged by tests/operations/test_imatrix_collect.c. */
#ifndef MICA_OPERATIONS_IMATRIX_COVARIANCE_H
#define MICA_OPERATIONS_IMATRIX_COVARIANCE_H

#include "operations/export_gguf.h"
#include "operations/layer_pass.h"

#define MICA_COVARIANCE_OWN_BYTES ((uint64_t)8 << 30) /* of the file, for experts' own: the experts chosen most in each layer */
#define MICA_COVARIANCE_TOKENS_PER_COLUMN 2u          /* an expert with fewer tokens gets none of its own */

/* One input: of all tokens, and of experts. */
typedef struct mica_covariance_input {
    uint64_t tensor;                /* of the plan: the first with that input, whose name it has in the file */
    const mica_weight *weight;      /* whose input is summed for all tokens; NULL: for experts alone */
    const mica_weight *const *experts; /* [experts] of that layer's expert weights with that input; NULL: none */
    uint64_t columns, slots;        /* the first slot is that of all tokens, where there is a weight */
    uint64_t layer;
    uint64_t entry;                 /* of its first tensor in the file's layout */
} mica_covariance_input;

typedef struct mica_covariance_collector {
    const mica_export_plan *plan;
    mica_covariance_input *inputs; /* by layer; owned */
    uint64_t input_count, first, end; /* those of the layer that runs */
    float *sums;                   /* slots of a layer's inputs one after the other; owned */
    float *scratch;                /* owned */
    uint64_t *counts;              /* [experts]; owned */
    int32_t (*of)[2];              /* [slots of a layer]; owned */
    uint64_t own_inputs;           /* written: experts with one of their own, over all layers and inputs */
    const mica_compute *compute;   /* borrowed; set before the pass, as are the next two: its engine's threads add up */
    mica_gguf_writer *writer;
    const mica_gguf_layout *layout;
} mica_covariance_collector;

/* Plans the inputs (`own_bytes`: MICA_COVARIANCE_OWN_BYTES) and takes the memory of the largest layer. */
mica_status mica_covariance_collector_init(mica_covariance_collector *collector, const mica_export_plan *plan, uint64_t own_bytes,
                                           mica_error *error) MICA_CHECKED;
void mica_covariance_collector_release(mica_covariance_collector *collector);

/* Names and shapes behind `count` tensors of a file's layout that is being made; names go to `text`, each with its NUL. */
void mica_covariance_collector_layout(mica_covariance_collector *collector, mica_gguf_tensor *tensors, uint64_t *count, mica_text *text);

mica_layer_collector mica_covariance_collector_attach(mica_covariance_collector *collector);

#endif
