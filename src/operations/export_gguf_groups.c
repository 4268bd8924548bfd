/* operations/export_gguf_groups.c: experts of one tensor in several types: a tensor for each type, in the order of the first expert that
 * has it, and a key with each expert's group (model/gguf_groups.h). Judged by tests/operations/test_export_groups.c and
 * tests/interop/export_groups.py. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "model/gguf_groups.h"
#include "operations/export_gguf.h"

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for groups of experts");
}

/* The group of each expert; returns how many there are. */
static uint64_t number_groups(const mica_export_tensor *tensor, uint8_t *group) {
    mica_dtype types[MICA_DTYPE_COUNT];
    uint64_t count = 0;
    for (uint64_t e = 0; e < tensor->matrices; e++) {
        uint64_t g = 0;
        while (g < count && types[g] != tensor->types[e])
            g++;
        if (g == count)
            types[count++] = tensor->types[e];
        group[e] = (uint8_t)g;
    }
    return count;
}

/* The weights of group after group; each group's tensor takes its part of them. */
static mica_status put_groups(const mica_export_tensor *tensor, const uint8_t *group, uint64_t groups, mica_export_tensor *out,
                              mica_error *error) {
    const mica_weight **sorted = mica_reallocarray(NULL, tensor->matrices + 1, sizeof *sorted);
    if (!sorted)
        return no_memory(error);
    uint64_t taken = 0;
    mica_status status = MICA_OK;
    for (uint64_t g = 0; g < groups; g++) {
        out[g] = *tensor;
        out[g].types = NULL;
        out[g].experts = tensor->matrices;
        snprintf(out[g].whole, sizeof out[g].whole, "%s", tensor->name);
        const int length = snprintf(out[g].name, sizeof out[g].name, "%s" MICA_GGUF_GROUP_SUFFIX "%llu", tensor->name,
                                    (unsigned long long)g);
        if (length >= (int)sizeof out[g].name)
            status = mica_fail(error, MICA_BAD_INPUT, "%s: its groups' names would be longer than %d bytes", tensor->name,
                               MICA_GGUF_NAME_BYTES - 1);
        out[g].weights = tensor->weights + taken;
        out[g].weight_count = 0;
        for (uint64_t e = 0; e < tensor->matrices; e++)
            if (group[e] == g) {
                sorted[taken++] = tensor->weights[e];
                out[g].weight_count++;
                out[g].wanted = tensor->types[e];
                out[g].dtype = mica_mixture_fit(tensor->types[e], tensor->columns);
            }
        out[g].matrices = out[g].shape[2] = out[g].weight_count;
    }
    memcpy((void *)tensor->weights, (const void *)sorted, tensor->matrices * sizeof *sorted); /* in the plan's own array */
    mica_free((void *)sorted);
    return status;
}

mica_status mica_export_plan_groups(mica_export_plan *plan, mica_error *error) {
    uint64_t most = 0, next = 0, experts = 1;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        most += plan->tensors[i].types
                    ? (plan->tensors[i].matrices < MICA_DTYPE_COUNT ? plan->tensors[i].matrices : (uint64_t)MICA_DTYPE_COUNT)
                    : 1;
        experts = plan->tensors[i].matrices > experts ? plan->tensors[i].matrices : experts;
    }
    if (most == plan->tensor_count)
        return MICA_OK;
    mica_export_tensor *tensors = mica_calloc(most, sizeof *tensors);
    uint8_t *group = mica_malloc(experts);
    mica_status status = tensors && group ? MICA_OK : no_memory(error);
    for (uint64_t i = 0; status == MICA_OK && i < plan->tensor_count; i++) {
        mica_export_tensor *tensor = &plan->tensors[i];
        const uint64_t groups = tensor->types ? number_groups(tensor, group) : 1;
        if (groups > 1) {
            status = put_groups(tensor, group, groups, tensors + next, error);
        } else {
            tensors[next] = *tensor;
            if (tensor->types)
                tensors[next].dtype = mica_mixture_fit(tensors[next].wanted = tensor->types[0], tensor->columns);
            tensors[next].types = NULL;
        }
        next += groups;
    }
    mica_free(group);
    if (status != MICA_OK) {
        mica_free(tensors);
        return status;
    }
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        mica_free(plan->tensors[i].types);
    mica_free(plan->tensors);
    plan->tensors = tensors;
    plan->tensor_count = next;
    return MICA_OK;
}

void mica_export_metadata_groups(const mica_export_plan *plan, mica_gguf_metadata *out) {
    for (uint64_t i = 0, end; i < plan->tensor_count; i = end) {
        const mica_export_tensor *first = &plan->tensors[i];
        char key[MICA_GGUF_NAME_BYTES + sizeof MICA_GGUF_GROUPS_KEY];
        end = i + 1;
        if (!first->whole[0])
            continue;
        uint8_t *group = mica_calloc(first->experts, 1);
        for (end = i; end < plan->tensor_count && strcmp(plan->tensors[end].whole, first->whole) == 0; end++)
            for (uint64_t m = 0; group && m < plan->tensors[end].matrices; m++)
                group[plan->tensors[end].weights[m]->expert] = (uint8_t)(end - i);
        snprintf(key, sizeof key, MICA_GGUF_GROUPS_KEY "%s", first->whole);
        mica_gguf_add_array(out, key, MICA_GGUF_UINT8, group, group ? first->experts : 0);
        out->broken = out->broken || !group;
        mica_free(group);
    }
}
