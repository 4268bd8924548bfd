/* operations/imatrix_sums.c: see the header. */
#include "operations/imatrix_sums.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define SUMS_SUFFIX ".in_sum2"
#define COUNTS_SUFFIX ".counts"

static int compare_places(const void *a, const void *b) {
    const uintptr_t left = (uintptr_t)((const mica_sums_place *)a)->weight, right = (uintptr_t)((const mica_sums_place *)b)->weight;
    return left < right ? -1 : left > right;
}

static bool is_collected(const mica_export_tensor *tensor) {
    return tensor->weights && !tensor->fixed && tensor->layer >= 0 && tensor->form != MICA_GGUF_KEY_PART;
}

/* Of attention's latent values all heads see the same. */
static uint64_t collected_matrices(const mica_export_tensor *tensor) {
    return tensor->form == MICA_GGUF_EXPERTS ? tensor->matrices : 1;
}

/* The tensor whose input is this one's. */
static uint64_t find_from(const mica_export_plan *plan, uint64_t index) {
    const char *name = plan->tensors[index].name, *at = strstr(name, ".ffn_up");
    char gate[MICA_GGUF_NAME_BYTES];
    if (!at)
        return index;
    snprintf(gate, sizeof gate, "%.*s.ffn_gate%s", (int)(at - name), name, at + strlen(".ffn_up"));
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        if (strcmp(plan->tensors[i].name, gate) == 0)
            return i;
    return index;
}

static mica_status take_memory(mica_sums_collector *c, mica_error *error) {
    const mica_export_plan *plan = c->plan;
    uint64_t weights = 0, matrices = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        weights += plan->tensors[i].weight_count;
        matrices += is_collected(&plan->tensors[i]) ? collected_matrices(&plan->tensors[i]) : 0;
    }
    c->tensors = mica_calloc(plan->tensor_count + 1, sizeof *c->tensors);
    c->places = mica_calloc(weights + 1, sizeof *c->places);
    c->counts = mica_calloc(matrices + 1, sizeof *c->counts);
    return c->tensors && c->places && c->counts
               ? MICA_OK
               : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the sums", plan->model->source->path);
}

mica_status mica_sums_collector_init(mica_sums_collector *c, const mica_export_plan *plan, mica_error *error) {
    const uint64_t layers = plan->model->config.num_hidden_layers;
    *c = (mica_sums_collector){.plan = plan};
    mica_status status = take_memory(c, error);
    uint64_t *used = status == MICA_OK ? mica_calloc(layers + 1, sizeof *used) : NULL;
    float *counts = c->counts;
    for (uint64_t i = 0; used && i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        const uint64_t matrices = collected_matrices(tensor), from = find_from(plan, i);
        if (!is_collected(tensor) || (from != i && !is_collected(&plan->tensors[from])))
            continue;
        c->tensors[i] = (mica_sums_tensor){.collected = true, .from = from};
        if (from != i)
            continue;
        c->tensors[i].at = used[tensor->layer];
        c->tensors[i].counts = counts;
        used[tensor->layer] += matrices * tensor->columns;
        counts += matrices;
        for (uint64_t m = 0; m < matrices; m++)
            c->places[c->place_count++] = (mica_sums_place){tensor->weights[tensor->weight_count > 1 ? m : 0], i, m};
    }
    for (uint64_t layer = 0; used && layer < layers; layer++)
        c->layer_floats = used[layer] > c->layer_floats ? used[layer] : c->layer_floats;
    c->sums = used ? mica_calloc(c->layer_floats + 1, sizeof *c->sums) : NULL;
    mica_free(used);
    if (status == MICA_OK && !c->sums)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the sums of a layer", plan->model->source->path);
    if (status == MICA_OK) {
        memset(c->sums, 0, c->layer_floats * sizeof *c->sums); /* touched: the cache of experts gets what is left */
        qsort(c->places, c->place_count, sizeof *c->places, compare_places);
    }
    return status;
}

void mica_sums_collector_release(mica_sums_collector *c) {
    mica_free(c->tensors);
    mica_free(c->places);
    mica_free(c->sums);
    mica_free(c->counts);
    *c = (mica_sums_collector){0};
}

void mica_sums_collector_layout(mica_sums_collector *c, mica_gguf_tensor *tensors, uint64_t *count, mica_text *text) {
    for (uint64_t i = 0; i < c->plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &c->plan->tensors[i];
        const uint64_t matrices = collected_matrices(tensor), heads = tensor->form == MICA_GGUF_VALUE_PART ? tensor->matrices : 1;
        if (!c->tensors[i].collected)
            continue;
        c->tensors[i].entry = *count;
        tensors[(*count)++] = (mica_gguf_tensor){.dtype = MICA_F32, .rank = 2, .shape = {matrices, tensor->columns * heads}};
        mica_text_printf(text, "%s" SUMS_SUFFIX "%c", tensor->name, 0);
        tensors[(*count)++] = (mica_gguf_tensor){.dtype = MICA_F32, .rank = 2, .shape = {matrices, 1}};
        mica_text_printf(text, "%s" COUNTS_SUFFIX "%c", tensor->name, 0);
    }
}

/* ---- a layer */

static mica_status begin(void *context, uint64_t layer, mica_error *error) {
    mica_sums_collector *c = context;
    (void)layer;
    (void)error;
    memset(c->sums, 0, c->layer_floats * sizeof *c->sums);
    return MICA_OK;
}

static void see_input(void *context, const mica_weight *weight, const float *x, uint64_t stride, const uint32_t *selection,
                      uint64_t tokens) {
    mica_sums_collector *c = context;
    const mica_sums_place key = {.weight = weight}, *found = bsearch(&key, c->places, c->place_count, sizeof key, compare_places);
    if (!found)
        return;
    const uint64_t columns = c->plan->tensors[found->tensor].columns;
    float *sums = c->sums + c->tensors[found->tensor].at + found->matrix * columns;
    for (uint64_t t = 0; t < tokens; t++) {
        const float *row = x + (selection ? selection[t] : t) * stride;
        for (uint64_t i = 0; i < columns; i++)
            sums[i] += row[i] * row[i];
    }
    c->tensors[found->tensor].counts[found->matrix] += (float)tokens;
}

static mica_status end(void *context, uint64_t layer, mica_error *error) {
    const mica_sums_collector *c = context;
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < c->plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &c->plan->tensors[i];
        if (!c->tensors[i].collected || (uint64_t)tensor->layer != layer)
            continue;
        const mica_sums_tensor *from = &c->tensors[c->tensors[i].from];
        const mica_gguf_tensor *sums = &c->layout->tensors[c->tensors[i].entry], *counts = sums + 1;
        const uint64_t bytes = collected_matrices(tensor) * tensor->columns * sizeof *c->sums;
        for (uint64_t at = 0; status == MICA_OK && at < sums->bytes; at += bytes) /* once per head, where there are heads */
            status = mica_gguf_writer_put(c->writer, sums, at, c->sums + from->at, bytes, error);
        if (status == MICA_OK)
            status = mica_gguf_writer_put(c->writer, counts, 0, from->counts, counts->bytes, error);
    }
    return status;
}

/* Of a layer a resume lacks the counts alone, which the report is made of: the sums are in the file. */
static void save(void *context, uint64_t layer, mica_text *bytes) {
    const mica_sums_collector *c = context;
    for (uint64_t i = 0; i < c->plan->tensor_count; i++)
        if (c->tensors[i].counts && (uint64_t)c->plan->tensors[i].layer == layer)
            mica_text_append(bytes, (const char *)c->tensors[i].counts, collected_matrices(&c->plan->tensors[i]) * sizeof *c->counts);
}

static mica_status load(void *context, uint64_t layer, const uint8_t *bytes, uint64_t count, mica_error *error) {
    const mica_sums_collector *c = context;
    uint64_t at = 0;
    for (uint64_t i = 0; i < c->plan->tensor_count; i++) {
        const uint64_t length = collected_matrices(&c->plan->tensors[i]) * sizeof *c->counts;
        if (!c->tensors[i].counts || (uint64_t)c->plan->tensors[i].layer != layer)
            continue;
        if (length <= count - at)
            memcpy(c->tensors[i].counts, bytes + at, length);
        at = length <= count - at ? at + length : count + 1;
        if (at > count)
            break;
    }
    if (at == count)
        return MICA_OK;
    return mica_fail(error, MICA_CORRUPT, "%s: layer %llu: expected counts from the run before, got %llu bytes that are not as many",
                     c->plan->model->source->path, (unsigned long long)layer, (unsigned long long)count);
}

mica_layer_collector mica_sums_collector_attach(mica_sums_collector *c) {
    return (mica_layer_collector){.observer = {.context = c, .input = see_input}, .begin = begin, .end = end, .save = save, .load = load};
}
