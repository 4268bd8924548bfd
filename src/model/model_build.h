/* model/model_build.h: the three steps of opening a model: match the tables against the tensors (model_match.c), account for the rest
 * (model_rest.c), put it in order (model.c). Private to src/model/model*.c. */
#ifndef MICA_MODEL_MODEL_BUILD_H
#define MICA_MODEL_MODEL_BUILD_H

#include "model/model.h"

#define MICA_NAME_BYTES 512

typedef struct mica_model_builder {
    mica_model *model;
    bool *claimed;      /* [tensor_count]: belongs to a weight */
    mica_weight *slots; /* [tensor_count]: the weight whose data is that tensor; data NULL where there is none */
    mica_weight *slices; /* weights that are slices of tensors */
    uint64_t slice_count, slice_capacity;
} mica_model_builder;

/* The shape a weight must have when decoded; rank 0: whatever the file says. A size of 0 is not checked. */
typedef struct mica_expected_shape {
    uint32_t rank;
    uint64_t size[3];
} mica_expected_shape;

/* Decides how the weight around `data` is stored, finds its scales and checks every shape; fills encoding, rows, columns, blocks, data,
 * scale and shape of `weight`, and claims the tensors. `integers`: an integer type is what is wanted. */
mica_status mica_weight_resolve(mica_model_builder *builder, const mica_tensor *data, const mica_expected_shape *expected, bool integers,
                                mica_weight *weight, mica_error *error) MICA_CHECKED;

/* The same for a slice of `whole`. */
mica_status mica_weight_resolve_slice(mica_model_builder *builder, const mica_tensor *slice, const mica_tensor *whole,
                                      const mica_expected_shape *expected, mica_weight *weight, mica_error *error) MICA_CHECKED;
/* The `count` slices of `whole` along its first dimension, as tensors: the model's; NULL without memory. part NULL: whole ones, named
 * "NAME[i]"; else half number `half` of each, named "NAME[i].part". */
mica_tensor *mica_model_slice(mica_model *model, const mica_tensor *whole, uint64_t count, const char *part, uint64_t half);
/* Experts of several types: their groups, where there is no tensor `name` (docs/formats.md). *grouped says whether there were any. */
mica_status mica_model_match_groups(mica_model_builder *builder, const char *name, uint64_t count, const mica_expected_shape *expected,
                                    const mica_weight *pattern, bool *grouped, mica_error *error) MICA_CHECKED;
/* Weights for the `count` slices of `whole`, each like `pattern` but for its expert. `fused`: a slice has a gate's rows and then an up's,
 * and the pattern's projection says which are wanted. */
mica_status mica_model_match_slices(mica_model_builder *builder, const mica_tensor *whole, uint64_t count, bool fused,
                                    const mica_expected_shape *expected, const mica_weight *pattern, mica_error *error) MICA_CHECKED;

mica_status mica_model_match(mica_model_builder *builder, mica_error *error) MICA_CHECKED;
mica_status mica_model_account_rest(mica_model_builder *builder, mica_error *error) MICA_CHECKED;

int mica_weight_compare(const void *left, const void *right); /* two mica_weight by name */

/* Out of memory is the only failure. */
mica_status mica_model_warn(mica_model *model, mica_error *error, const char *format, ...) MICA_PRINTF(3, 4) MICA_CHECKED;

#endif
