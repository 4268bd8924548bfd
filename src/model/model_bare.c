/* model/model_bare.c: the tensors of a source of which nothing else is known, as weights: for what works on any file of tensors. One weight
 * per tensor; of three dimensions, one per matrix (the experts of a GGUF's stack). Names alone say which layer and which projection.
 * Judged by tests/operations/test_export_again.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/model_build.h"

#define MATRICES_MAX ((uint64_t)1 << 16) /* of a tensor; more are rows of one matrix */

static mica_status no_memory(const mica_tensor_source *source, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: no memory for the model's tables", source->path);
}

/* What GGUF's names say of a tensor. */
static const struct {
    const char *part;
    mica_role role;
    mica_projection projection;
} parts[] = {
    {".ffn_gate_exps.", MICA_ROLE_EXPERT, MICA_GATE},          {".ffn_up_exps.", MICA_ROLE_EXPERT, MICA_UP},
    {".ffn_gate_up_exps.", MICA_ROLE_EXPERT, MICA_GATE}, /* and up: of one type */
    {".ffn_down_exps.", MICA_ROLE_EXPERT, MICA_DOWN},          {".ffn_gate_shexp.", MICA_ROLE_SHARED_EXPERT, MICA_GATE},
    {".ffn_up_shexp.", MICA_ROLE_SHARED_EXPERT, MICA_UP},      {".ffn_down_shexp.", MICA_ROLE_SHARED_EXPERT, MICA_DOWN},
    {".ffn_gate.", MICA_ROLE_DENSE, MICA_GATE},                {".ffn_up.", MICA_ROLE_DENSE, MICA_UP},
    {".ffn_down.", MICA_ROLE_DENSE, MICA_DOWN},
};

static mica_weight describe(const mica_tensor *tensor) {
    mica_weight weight = {.fate = MICA_UNKNOWN, .role = MICA_ROLE_OTHER, .layer = -1, .expert = -1};
    int layer = -1;
    if (sscanf(tensor->name, "blk.%9d.", &layer) == 1)
        weight.layer = layer;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(tensor->name, parts[i].part)) {
            weight.role = parts[i].role;
            weight.projection = parts[i].projection;
        }
    return weight;
}

static bool is_stack(const mica_tensor *tensor) {
    return tensor->rank == 3 && tensor->shape[0] > 0 && tensor->shape[0] <= MATRICES_MAX;
}

static uint64_t matrices_of(const mica_tensor *tensor) {
    return is_stack(tensor) ? tensor->shape[0] : 1;
}

/* Of more dimensions than two, all but the last are rows. */
static void put(mica_weight *weight, const mica_weight *like, const mica_tensor *data, const mica_tensor *whole, int64_t expert) {
    *weight = *like;
    weight->name = data->name;
    weight->data = data;
    weight->whole = whole;
    weight->expert = expert;
    weight->columns = data->rank ? data->shape[data->rank - 1] : 1;
    weight->rows = weight->columns ? data->elements / weight->columns : 0;
    weight->encoding = mica_dtype_is_block(data->dtype) ? MICA_ENCODING_BLOCK : MICA_ENCODING_PLAIN;
}

static mica_status list(mica_model *model, mica_error *error) {
    const mica_tensor_source *source = model->source;
    uint64_t count = 0;
    for (uint64_t i = 0; i < source->tensor_count; i++)
        count += matrices_of(&source->tensors[i]);
    model->weights = mica_calloc(count + 1, sizeof *model->weights);
    model->accounts = mica_calloc(source->tensor_count + 1, sizeof *model->accounts);
    if (!model->weights || !model->accounts)
        return no_memory(source, error);
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        const mica_tensor *tensor = &source->tensors[i], *data = tensor;
        const mica_weight like = describe(tensor);
        const uint64_t matrices = matrices_of(tensor);
        if (is_stack(tensor) && !(data = mica_model_slice(model, tensor, matrices, NULL, 0)))
            return no_memory(source, error);
        for (uint64_t m = 0; m < matrices; m++)
            put(&model->weights[model->weight_count++], &like, &data[m], tensor, data == tensor ? -1 : (int64_t)m);
        model->accounts[i].fate = MICA_UNKNOWN;
    }
    model->unknown_count = source->tensor_count;
    qsort(model->weights, model->weight_count, sizeof *model->weights, mica_weight_compare);
    return MICA_OK;
}

mica_status mica_model_open_bare(mica_tensor_source *source, mica_model **result, mica_error *error) {
    mica_model *model = mica_calloc(1, sizeof *model);
    if (!model) {
        const mica_status failed = no_memory(source, error);
        mica_tensor_source_close(source);
        return failed;
    }
    model->source = source;
    const mica_status status = list(model, error);
    if (status == MICA_OK)
        *result = model;
    else
        mica_model_close(model);
    return status;
}
