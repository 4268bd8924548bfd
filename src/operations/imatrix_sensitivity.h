/* operations/imatrix_sensitivity.h: what a relative error in a weight does to the model's output, measured: noise of a known relative size
 * is put on what each layer's attention, each layer's feed-forward part and the embedding add to the residual stream, and carried along
 * with the text to the last layer; within a feed-forward part each expert has the share of the energy that it added. Formulas:
 * docs/export.md. Judged by tests/operations/test_imatrix_collect.c. */
#ifndef MICA_OPERATIONS_IMATRIX_SENSITIVITY_H
#define MICA_OPERATIONS_IMATRIX_SENSITIVITY_H

#include "operations/compute.h"
#include "operations/export_gguf.h"
#include "operations/layer_pass.h"

typedef struct mica_sensitivity {
    const mica_model *model;
    /* [layers][experts + 1]: sums over tokens of |weight * output|^2; the last: shared experts, or a dense layer's part; owned */
    double *energy;
    double *
        response; /* [1 + 2 layers]: relative change squared of the last residual over that of what was added: embedding, then attention and
                        * feed-forward part of each layer; owned */
    uint64_t tokens;   /* that carried noise; 0: it was not measured */
    uint64_t entry;    /* the first of its tensors in the file's layout */
    /* of the second pass */
    uint64_t carried;  /* tokens of each copy of the residual stream */
    /* copies, what goes into their feed-forward part, the first copy before an addition, gates; owned */
    float *x, *normed, *before, *gates;
    uint32_t *ids;     /* choices; owned */
    uint64_t layers_done, random; /* on the disk, and the noise's state behind them */
} mica_sensitivity;

/* For texts that begin with `count` tokens. What the second pass needs is taken now: it counts towards the budget of an engine that is
 * opened later. */
mica_status mica_sensitivity_init(mica_sensitivity *sensitivity, const mica_model *model, uint64_t count, mica_error *error) MICA_CHECKED;
void mica_sensitivity_release(mica_sensitivity *sensitivity);

/* Names and shapes behind `count` tensors of a file's layout that is being made, names to `text`; and the values of those tensors, at the
 * end. Without a model there are none. */
void mica_sensitivity_layout(mica_sensitivity *sensitivity, const mica_export_plan *plan, mica_gguf_tensor *tensors, uint64_t *count,
                             mica_text *text);
mica_status mica_sensitivity_write(const mica_sensitivity *sensitivity, const mica_export_plan *plan, const mica_gguf_layout *layout,
                                   mica_gguf_writer *writer, mica_error *error) MICA_CHECKED;

/* The energies, in the pass over the text. */
mica_layer_collector mica_sensitivity_attach(mica_sensitivity *sensitivity);

/* The responses, over the first tokens of `ids`: one more pass over the weights. The engine is open layer at a time, for at least as many
 * positions. When a layer ends, what a resume needs is on the disk: the residual streams in the file `path`, a record in the journal;
 * `replay` takes the record back, and the measurement goes on behind that layer. INTERRUPTED when the progress says so. */
mica_status mica_sensitivity_measure(mica_sensitivity *sensitivity, mica_engine *engine, const int64_t *ids,
                                     const mica_compute_options *options, const char *path, mica_pass_journal *journal,
                                     mica_error *error) MICA_CHECKED;
mica_status mica_sensitivity_replay(mica_sensitivity *sensitivity, const char *journal, const uint8_t *payload, uint64_t bytes,
                                    mica_error *error) MICA_CHECKED;

/* By the kind of its weight alone. */
double mica_sensitivity_of_kind(const mica_export_tensor *tensor);

/* What a relative squared error of 1 in matrix `matrix` of a tensor adds to that of the output: values [matrices of experts, or 1]. */
double mica_sensitivity_of(const mica_sensitivity *sensitivity, const mica_export_tensor *tensor, uint64_t matrix);

#endif
