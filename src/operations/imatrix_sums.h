/* operations/imatrix_sums.h: sums of squared inputs of every weight that an export may quantise, per column and expert, and how many inputs
 * those were; as llama.cpp's llama-imatrix has them. Collected layer by layer and written as each layer ends: the memory is that of one
 * layer, but for the counts. The gate and up projections have one input and one sum. attn_v_b gets the latent that every head of it is
 * multiplied with; attn_k_b, whose input depends on how attention is computed, has none. Judged by tests/operations/test_imatrix_collect.c
 * and tests/interop/imatrix.py. */
#ifndef MICA_OPERATIONS_IMATRIX_SUMS_H
#define MICA_OPERATIONS_IMATRIX_SUMS_H

#include "operations/export_gguf.h"
#include "operations/layer_pass.h"

typedef struct mica_sums_place { /* where a weight's inputs go */
    const mica_weight *weight;
    uint64_t tensor, matrix;
} mica_sums_place;

typedef struct mica_sums_tensor { /* of one tensor of the plan */
    bool collected;
    uint64_t from;  /* the tensor whose sums are its own: gate's are up's as well */
    uint64_t at;    /* of its sums [matrices][columns] among those of its layer */
    float *counts;  /* [matrices]: inputs of each */
    uint64_t entry; /* in the file's layout; its counts behind it */
} mica_sums_tensor;

typedef struct mica_sums_collector {
    const mica_export_plan *plan;
    mica_sums_tensor *tensors; /* [plan's]; owned, as is what follows */
    mica_sums_place *places;   /* sorted by weight */
    uint64_t place_count, layer_floats;
    float *sums;               /* [layer_floats], of the layer that runs */
    float *counts;
    mica_gguf_writer *writer;  /* borrowed; set before the pass */
    const mica_gguf_layout *layout;
} mica_sums_collector;

mica_status mica_sums_collector_init(mica_sums_collector *collector, const mica_export_plan *plan, mica_error *error) MICA_CHECKED;
void mica_sums_collector_release(mica_sums_collector *collector);
/* Names and shapes behind `count` tensors of a file's layout that is being made; names go to `text`, each with its NUL. */
void mica_sums_collector_layout(mica_sums_collector *collector, mica_gguf_tensor *tensors, uint64_t *count, mica_text *text);
mica_layer_collector mica_sums_collector_attach(mica_sums_collector *collector);

#endif
