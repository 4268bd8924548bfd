/* operations/imatrix_sensitivity.h: what a relative error in a weight does to the model's output, measured: noise of a known relative size is put on what each
 * layer's attention, each layer's feed-forward part and the embedding add to the residual stream, and carried along with the text to the last layer; within a
 * feed-forward part each expert has the share of the energy that it added. Formulas: docs/export.md. Judged by tests/operations/test_imatrix_collect.c. */
#ifndef MICA_OPERATIONS_IMATRIX_SENSITIVITY_H
#define MICA_OPERATIONS_IMATRIX_SENSITIVITY_H

#include "operations/compute.h"
#include "operations/export_gguf.h"

typedef struct mica_sensitivity {
    const mica_model *model;
    double *energy;    /* [layers][experts + 1]: sums over tokens of |weight * output|^2; the last: shared experts, or a dense layer's part; owned */
    double *response;  /* [1 + 2 layers]: relative change squared of the last residual over that of what was added: embedding, then attention and
                        * feed-forward part of each layer; owned */
    uint64_t tokens;   /* that carried noise; 0: it was not measured */
} mica_sensitivity;

mica_status mica_sensitivity_init(mica_sensitivity *sensitivity, const mica_model *model, mica_error *error) MICA_CHECKED;
void mica_sensitivity_release(mica_sensitivity *sensitivity);

/* An observer's `expert`. */
void mica_sensitivity_see_expert(mica_sensitivity *sensitivity, uint64_t layer, int64_t expert, uint64_t count, const float *weights, const float *outputs);

/* The responses, over the first tokens of `ids` [count]: one more pass over the weights. The engine is open layer at a time, for at least `count` positions;
 * `go_on` as in mica_layer_pass. INTERRUPTED when the progress says so. */
mica_status mica_sensitivity_measure(mica_sensitivity *sensitivity, mica_engine *engine, const int64_t *ids, uint64_t count,
                                     const mica_compute_options *options, mica_error *error) MICA_CHECKED;

/* By the kind of its weight alone. */
double mica_sensitivity_of_kind(const mica_export_tensor *tensor);

/* What a relative squared error of 1 in matrix `matrix` of a tensor adds to that of the output: values [matrices of experts, or 1]. */
double mica_sensitivity_of(const mica_sensitivity *sensitivity, const mica_export_tensor *tensor, uint64_t matrix);

#endif
