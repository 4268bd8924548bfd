/* operations/export_gguf_again.c: a GGUF file written again: its own tensors in its own order, its own keys; what differs is the types that
 * are asked for, and how it is cut into files. Knows no architecture: whatever llama.cpp has is copied. A tensor whose type stays is the
 * same bytes.
 * Judged by tests/operations/test_export_again.c and tests/interop/export_again.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "operations/export_gguf.h"

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the plan");
}

/* ---- tensors */

static int compare_places(const void *a, const void *b) {
    const mica_tensor *left = *(const mica_tensor *const *)a, *right = *(const mica_tensor *const *)b;
    if (left->shard != right->shard)
        return left->shard < right->shard ? -1 : 1;
    if (left->offset != right->offset)
        return left->offset < right->offset ? -1 : 1;
    return left->bytes != right->bytes ? (left->bytes < right->bytes ? -1 : 1) : strcmp(left->name, right->name);
}

/* Dimensions without the outermost that are 1: what llama-quantize goes by. */
static uint32_t rank_of(const mica_tensor *tensor) {
    uint32_t ones = 0;
    while (ones + 1 < tensor->rank && tensor->shape[ones] == 1)
        ones++;
    return tensor->rank - ones;
}

static bool may_change(const mica_export_tensor *tensor, const mica_tensor *data) {
    const mica_mixture_tensor seen = {
        .name = tensor->name, .rank = rank_of(data), .columns = tensor->columns, .matrices = tensor->matrices};
    return mica_dtype_is_floating(data->dtype) && data->dtype != MICA_F64 && mica_mixture_allows(&seen);
}

/* The weights of a tensor lie in the bare model under its name, or under the names of its matrices. */
static mica_status find_weights(const mica_model *model, const mica_tensor *data, const mica_weight **weights, uint64_t *count,
                                mica_error *error) {
    char name[MICA_GGUF_NAME_BYTES + 24];
    *count = 0;
    weights[0] = mica_model_weight(model, data->name);
    if (weights[0] && weights[0]->whole == data) {
        *count = 1;
        return MICA_OK;
    }
    for (;; ++*count) {
        snprintf(name, sizeof name, "%s[%llu]", data->name, (unsigned long long)*count);
        const mica_weight *matrix = mica_model_weight(model, name);
        if (!matrix || matrix->whole != data)
            break;
        weights[*count] = matrix;
    }
    return *count > 0 ? MICA_OK : mica_fail(error, MICA_BAD_INPUT, "%s: expected a name that no other tensor's matrix has", data->name);
}

static mica_status put_tensor(mica_export_plan *plan, const mica_tensor *data, uint64_t *taken, mica_error *error) {
    mica_export_tensor *tensor = &plan->tensors[plan->tensor_count++];
    *tensor = (mica_export_tensor){.rank = data->rank};
    snprintf(tensor->name, sizeof tensor->name, "%s", data->name);
    const mica_status status = find_weights(plan->model, data, plan->sources + *taken, &tensor->weight_count, error);
    if (status != MICA_OK)
        return status;
    const mica_weight *first = plan->sources[*taken];
    tensor->weights = plan->sources + *taken;
    *taken += tensor->weight_count;
    tensor->form = first->role == MICA_ROLE_EXPERT && data->rank == 3 ? MICA_GGUF_EXPERTS : MICA_GGUF_COPY;
    tensor->layer = first->layer;
    for (uint32_t d = 0; d < 4; d++)
        tensor->shape[d] = d < data->rank ? data->shape[data->rank - 1 - d] : 1;
    tensor->matrices = tensor->weight_count;
    tensor->rows = first->rows;
    tensor->columns = first->columns;
    tensor->dtype = tensor->wanted = data->dtype;
    tensor->fixed = !may_change(tensor, data);
    plan->parameters += tensor->matrices * tensor->rows * tensor->columns;
    return MICA_OK;
}

static mica_status put_tensors(mica_export_plan *plan, mica_error *error) {
    const mica_tensor_source *source = plan->model->source;
    const mica_tensor **order = mica_calloc(source->tensor_count + 1, sizeof *order);
    plan->tensors = mica_calloc(source->tensor_count + 1, sizeof *plan->tensors);
    plan->sources = mica_calloc(plan->model->weight_count + 1, sizeof *plan->sources);
    mica_status status = order && plan->tensors && plan->sources ? MICA_OK : no_memory(error);
    for (uint64_t i = 0; status == MICA_OK && i < source->tensor_count; i++)
        order[i] = &source->tensors[i];
    if (status == MICA_OK)
        qsort((void *)order, source->tensor_count, sizeof *order, compare_places);
    uint64_t taken = 0;
    for (uint64_t i = 0; status == MICA_OK && i < source->tensor_count; i++)
        status = put_tensor(plan, order[i], &taken, error);
    mica_free((void *)order);
    return status;
}

/* ---- what a mixture asks of a model */

/* A number of the architecture; of an array, one per layer, the first; `absent` where there is none. */
static uint64_t number_of(const mica_export_plan *plan, const char *name, uint64_t absent) {
    char key[128];
    snprintf(key, sizeof key, "%s.%s", plan->architecture, name);
    const mica_gguf_entry *entry = mica_gguf_find(plan->gguf, key);
    const bool integer = entry && mica_gguf_type_bytes(entry->type) > 0 && entry->type != MICA_GGUF_FLOAT32 &&
                         entry->type != MICA_GGUF_FLOAT64;
    const int64_t value = integer && entry->count > 0 ? mica_gguf_integer_at(entry, 0) : -1;
    return value > 0 ? (uint64_t)value : absent;
}

static void learn_facts(mica_export_plan *plan) {
    const uint64_t heads = number_of(plan, "attention.head_count", 1), keys = number_of(plan, "attention.head_count_kv", heads);
    plan->facts = (mica_mixture_model){.layers = number_of(plan, "block_count", 0),
                                       .experts = number_of(plan, "expert_count", 0),
                                       .heads_per_key = heads / keys ? heads / keys : 1,
                                       .tied = !mica_tensor_source_find(plan->model->source, "output.weight")};
    plan->facts.wide = strcmp(plan->architecture, "llama") == 0 && plan->facts.layers == 80 && plan->facts.heads_per_key > 1;
}

mica_status mica_export_plan_again(const mica_model *model, mica_export_plan *plan, mica_error *error) {
    *plan = (mica_export_plan){.model = model, .gguf = mica_gguf_of_source(model->source)};
    mica_gguf_string architecture;
    mica_status status = mica_gguf_text(plan->gguf, "general.architecture", &architecture, error);
    if (status == MICA_OK) {
        plan->architecture = plan->named = mica_strndup(architecture.bytes, architecture.length);
        status = plan->named ? put_tensors(plan, error) : no_memory(error);
    }
    if (status != MICA_OK) {
        mica_export_plan_release(plan);
        return status;
    }
    learn_facts(plan);
    return MICA_OK;
}

uint64_t mica_export_requantised(const mica_export_plan *plan) {
    uint64_t count = 0;
    for (uint64_t i = 0; plan->gguf && i < plan->tensor_count; i++) {
        const mica_dtype before = plan->tensors[i].weights[0]->data->dtype;
        count += mica_dtype_is_block(before) && before != plan->tensors[i].dtype;
    }
    return count;
}

/* ---- keys */

void mica_export_metadata_again(const mica_export_plan *plan, mica_gguf_metadata *out) {
    static const char type_key[] = "general.file_type", version_key[] = "general.quantization_version";
    bool changed = false, blocks = false;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        changed = changed || plan->tensors[i].dtype != plan->tensors[i].weights[0]->data->dtype;
        blocks = blocks || mica_dtype_is_block(plan->tensors[i].dtype);
    }
    for (uint64_t i = 0; i < plan->gguf->entry_count; i++) {
        const mica_gguf_entry *entry = &plan->gguf->entries[i];
        if (strncmp(entry->key, "split.", 6) == 0) /* how it was cut */
            continue;
        if (changed && strcmp(entry->key, type_key) == 0)
            mica_gguf_add_u32(out, type_key, plan->file_type);
        else
            mica_gguf_add_entry(out, entry);
    }
    if (changed && !mica_gguf_find(plan->gguf, type_key))
        mica_gguf_add_u32(out, type_key, plan->file_type);
    if (changed && blocks && !mica_gguf_find(plan->gguf, version_key))
        mica_gguf_add_u32(out, version_key, 2);
}
