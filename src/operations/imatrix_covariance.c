/* operations/imatrix_covariance.c: see the header. Judged by tests/operations/test_imatrix_collect.c. */
#include "operations/imatrix_covariance.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "numerics/second_moments.h"

static uint64_t triangle(uint64_t columns) {
    return columns * (columns + 1) / 2;
}

/* ---- the inputs */

/* Inputs of the layers' matrices whose width suits; attn_k_b has none that does not depend on how attention is computed. */
static bool is_wanted(const mica_export_tensor *tensor) {
    return tensor->weights && !tensor->fixed && tensor->layer >= 0 && tensor->form != MICA_GGUF_KEY_PART &&
           tensor->columns % MICA_SECOND_MOMENTS_COLUMNS == 0;
}

static mica_covariance_input *find_input(mica_covariance_collector *c, const char *name) {
    for (uint64_t i = c->input_count; i-- > 0;)
        if (mica_imatrix_same_input(c->plan->tensors[c->inputs[i].tensor].name, name))
            return &c->inputs[i];
    return NULL;
}

/* The experts' gate projections see what the router sees, which is all tokens; their down projections see nothing in common. */
static void add_tensor(mica_covariance_collector *c, uint64_t index) {
    const mica_export_tensor *tensor = &c->plan->tensors[index];
    mica_covariance_input *input = find_input(c, tensor->name);
    const bool experts = tensor->form == MICA_GGUF_EXPERTS, down = experts && tensor->weights[0]->projection == MICA_DOWN;
    if (!input) {
        input = &c->inputs[c->input_count++];
        *input = (mica_covariance_input){.tensor = index, .columns = tensor->columns, .layer = (uint64_t)tensor->layer, .weight = tensor->weights[0]};
        if (experts)
            input->weight = down ? NULL : c->plan->model->layers[tensor->layer].router;
    }
    if (experts && !input->experts)
        input->experts = tensor->weights;
}

static void set_slots(mica_covariance_collector *c, uint64_t own_bytes) {
    uint64_t sharing = 0;
    for (uint64_t i = 0; i < c->input_count; i++)
        sharing += c->inputs[i].experts != NULL;
    for (uint64_t i = 0; i < c->input_count; i++) {
        mica_covariance_input *input = &c->inputs[i];
        const uint64_t experts = input->experts ? c->plan->model->config.n_routed_experts : 0;
        const uint64_t quota = input->experts ? own_bytes / sharing / (triangle(input->columns) * sizeof(float)) : 0;
        input->slots = (input->weight != NULL) + (quota < experts ? quota : experts);
    }
    uint64_t kept = 0;
    for (uint64_t i = 0; i < c->input_count; i++)
        if (c->inputs[i].slots > 0)
            c->inputs[kept++] = c->inputs[i];
    c->input_count = kept;
}

static int compare_inputs(const void *a, const void *b) {
    const mica_covariance_input *left = a, *right = b;
    if (left->layer != right->layer)
        return left->layer < right->layer ? -1 : 1;
    return left->tensor < right->tensor ? -1 : left->tensor > right->tensor;
}

mica_status mica_covariance_collector_init(mica_covariance_collector *c, const mica_export_plan *plan, uint64_t own_bytes,
                                           mica_error *error) {
    *c = (mica_covariance_collector){.plan = plan};
    c->inputs = mica_calloc(plan->tensor_count + 1, sizeof *c->inputs);
    if (!c->inputs)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for covariances");
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        if (is_wanted(&plan->tensors[i]))
            add_tensor(c, i);
    set_slots(c, own_bytes);
    qsort(c->inputs, c->input_count, sizeof *c->inputs, compare_inputs);
    uint64_t floats = 0, slots = 0, widest = 0;
    for (uint64_t i = 0, end; i < c->input_count; i = end) {
        uint64_t layer_floats = 0, layer_slots = 0;
        for (end = i; end < c->input_count && c->inputs[end].layer == c->inputs[i].layer; end++) {
            layer_floats += c->inputs[end].slots * c->inputs[end].columns * c->inputs[end].columns;
            layer_slots += c->inputs[end].slots;
            widest = c->inputs[end].columns > widest ? c->inputs[end].columns : widest;
        }
        floats = layer_floats > floats ? layer_floats : floats;
        slots = layer_slots > slots ? layer_slots : slots;
    }
    if (c->input_count == 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: --covariance: expected weights with a multiple of %u columns, got none",
                         plan->model->source->path, MICA_SECOND_MOMENTS_COLUMNS);
    c->sums = mica_calloc(floats, sizeof *c->sums);
    c->of = mica_calloc(slots, sizeof *c->of);
    c->counts = mica_calloc(plan->model->config.n_routed_experts + 1, sizeof *c->counts);
    c->scratch = mica_alloc_aligned(MICA_SECOND_MOMENTS_TOKENS * widest * sizeof *c->scratch);
    if (!c->sums || !c->of || !c->counts || !c->scratch)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the covariances of a layer, %llu bytes",
                         (unsigned long long)(floats * sizeof(float)));
    memset(c->sums, 0, floats * sizeof *c->sums); /* touched: the cache of experts gets what is left */
    return MICA_OK;
}

void mica_covariance_collector_release(mica_covariance_collector *c) {
    mica_free(c->inputs);
    mica_free(c->sums);
    mica_free(c->of);
    mica_free(c->counts);
    mica_free_aligned(c->scratch);
    *c = (mica_covariance_collector){0};
}

void mica_covariance_collector_layout(mica_covariance_collector *c, mica_gguf_tensor *tensors, uint64_t *count, mica_text *text) {
    for (uint64_t i = 0; i < c->input_count; i++) {
        mica_covariance_input *input = &c->inputs[i];
        const char *name = c->plan->tensors[input->tensor].name;
        input->entry = *count;
        tensors[(*count)++] = (mica_gguf_tensor){.dtype = MICA_F32, .rank = 2, .shape = {input->slots, triangle(input->columns)}};
        mica_text_printf(text, "%s" MICA_IMATRIX_COVARIANCE_SUFFIX "%c", name, 0);
        tensors[(*count)++] = (mica_gguf_tensor){.dtype = MICA_I32, .rank = 2, .shape = {input->slots, 2}};
        mica_text_printf(text, "%s" MICA_IMATRIX_COVARIANCE_OF_SUFFIX "%c", name, 0);
    }
}

/* ---- a layer */

static mica_status begin(void *context, uint64_t layer, mica_error *error) {
    mica_covariance_collector *c = context;
    (void)error;
    uint64_t slots = 0, floats = 0;
    for (c->first = c->end; c->first < c->input_count && c->inputs[c->first].layer < layer; c->first++) {
    }
    for (c->end = c->first; c->end < c->input_count && c->inputs[c->end].layer == layer; c->end++) {
        const mica_covariance_input *input = &c->inputs[c->end];
        for (uint64_t s = 0; s < input->slots; s++) {
            c->of[slots + s][0] = input->weight && s == 0 ? MICA_IMATRIX_ALL_TOKENS : MICA_IMATRIX_NOBODY;
            c->of[slots + s][1] = 0;
        }
        slots += input->slots;
        floats += input->slots * input->columns * input->columns;
    }
    memset(c->sums, 0, floats * sizeof *c->sums);
    return MICA_OK;
}

/* The most chosen of those that saw enough tokens and have no slot yet; -1: none. */
static int64_t most_chosen(const uint64_t *counts, uint64_t experts, uint64_t enough) {
    int64_t most = -1;
    for (uint64_t e = 0; e < experts; e++)
        if (counts[e] >= enough && (most < 0 || counts[e] > counts[most]))
            most = (int64_t)e;
    return most;
}

static mica_status give_slots(void *context, uint64_t layer, const uint32_t *chosen, uint64_t choices, mica_error *error) {
    mica_covariance_collector *c = context;
    (void)layer;
    (void)error;
    const uint64_t experts = c->plan->model->config.n_routed_experts;
    int32_t(*of)[2] = c->of;
    for (uint64_t i = c->first; i < c->end; of += c->inputs[i].slots, i++) {
        const mica_covariance_input *input = &c->inputs[i];
        memset(c->counts, 0, experts * sizeof *c->counts);
        for (uint64_t k = 0; input->experts && k < choices; k++)
            c->counts[chosen[k]]++;
        for (uint64_t s = input->weight != NULL; s < input->slots; s++) {
            const int64_t expert = most_chosen(c->counts, experts, MICA_COVARIANCE_TOKENS_PER_COLUMN * input->columns);
            if (expert < 0)
                break;
            of[s][0] = (int32_t)expert;
            c->counts[expert] = 0;
            c->own_inputs++;
        }
    }
    return MICA_OK;
}

/* The slot of a weight's input among those of `input`; -1: none. */
static int64_t slot_of(const mica_covariance_input *input, int32_t (*of)[2], const mica_weight *weight) {
    if (weight == input->weight)
        return 0;
    if (!input->experts || weight->expert < 0 || input->experts[weight->expert] != weight)
        return -1;
    for (uint64_t s = input->weight != NULL; s < input->slots && of[s][0] != MICA_IMATRIX_NOBODY; s++)
        if (of[s][0] == weight->expert)
            return (int64_t)s;
    return -1;
}

static void see_input(void *context, const mica_weight *weight, const float *x, uint64_t stride, const uint32_t *selection,
                      uint64_t tokens) {
    mica_covariance_collector *c = context;
    float *sums = c->sums;
    int32_t(*of)[2] = c->of;
    for (uint64_t i = c->first; i < c->end; i++) {
        const mica_covariance_input *input = &c->inputs[i];
        const uint64_t square = input->columns * input->columns;
        const int64_t slot = slot_of(input, of, weight);
        if (slot >= 0) {
            mica_second_moments_add(mica_engine_pool(c->compute->engine), x, stride, selection, tokens, input->columns, c->scratch,
                                    sums + (uint64_t)slot * square);
            of[slot][1] += (int32_t)tokens;
        }
        sums += input->slots * square;
        of += input->slots;
    }
}

/* Divides by the tokens and moves the lower triangle together, in place. */
static void pack_slot(float *sums, uint64_t columns, int32_t tokens) {
    const float factor = tokens > 0 ? 1.0f / (float)tokens : 0;
    float *out = sums;
    for (uint64_t i = 0; i < columns; i++)
        for (uint64_t j = 0; j <= i; j++)
            *out++ = sums[i * columns + j] * factor;
}

static mica_status end(void *context, uint64_t layer, mica_error *error) {
    const mica_covariance_collector *c = context;
    (void)layer;
    float *sums = c->sums;
    int32_t(*of)[2] = c->of;
    mica_status status = MICA_OK;
    for (uint64_t i = c->first; status == MICA_OK && i < c->end; i++) {
        const mica_covariance_input *input = &c->inputs[i];
        const uint64_t bytes = triangle(input->columns) * sizeof *sums;
        for (uint64_t s = 0; status == MICA_OK && s < input->slots; s++) {
            pack_slot(sums, input->columns, of[s][1]);
            if (of[s][1] > 0) /* others stay the zeros that the file was made of */
                status = mica_gguf_writer_put(c->writer, &c->layout->tensors[input->entry], s * bytes, sums, bytes, error);
            sums += input->columns * input->columns;
        }
        if (status == MICA_OK)
            status = mica_gguf_writer_put(c->writer, &c->layout->tensors[input->entry + 1], 0, of, input->slots * sizeof *of, error);
        of += input->slots;
    }
    return status;
}

/* The moments are in the file: a resume lacks how many experts have some of their own. */
static void save(void *context, uint64_t layer, mica_text *bytes) {
    const mica_covariance_collector *c = context;
    (void)layer;
    mica_text_append(bytes, (const char *)&c->own_inputs, sizeof c->own_inputs);
}

static mica_status load(void *context, uint64_t layer, const uint8_t *bytes, uint64_t count, mica_error *error) {
    mica_covariance_collector *c = context;
    if (count != sizeof c->own_inputs)
        return mica_fail(error, MICA_CORRUPT, "%s: layer %llu: expected a count of covariances from the run before, got %llu bytes",
                         c->plan->model->source->path, (unsigned long long)layer, (unsigned long long)count);
    memcpy(&c->own_inputs, bytes, sizeof c->own_inputs);
    return MICA_OK;
}

mica_layer_collector mica_covariance_collector_attach(mica_covariance_collector *c) {
    return (mica_layer_collector){
        .observer = {.context = c, .input = see_input}, .begin = begin, .routed = give_slots, .end = end, .save = save, .load = load};
}
