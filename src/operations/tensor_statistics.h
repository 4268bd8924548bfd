/* operations/tensor_statistics.h: one look at every value of a weight, decoded: smallest, largest, mean, standard deviation.
 * Reads slab by slab, so that a weight of any size will do. Judged by tests/operations/test_tensor_statistics.c. */
#ifndef MICA_OPERATIONS_TENSOR_STATISTICS_H
#define MICA_OPERATIONS_TENSOR_STATISTICS_H

#include "model/model.h"
#include "numerics/moments.h"

/* A tensor as a weight by itself: plain numbers (codes without their scales too), or ggml's blocks. `weight` borrows the tensor. */
void mica_tensor_as_weight(const mica_tensor *tensor, mica_weight *weight);

/* `model` gives the source; it may be one without configuration and weights of its own. Errors: reading's, and those of
 * mica_weight_matrix. */
mica_status mica_tensor_statistics(const mica_model *model, const mica_weight *weight, mica_moments *moments,
                                   mica_error *error) MICA_CHECKED;

#endif
