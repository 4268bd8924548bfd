/* operations/export_gguf_plan.c: which tensors a GGUF file of this model has, in which order, from which weights. Every weight the model
 * uses goes somewhere; what GGUF cannot say is refused here, before anything is written. Reads headers only.
 * Judged by tests/operations/test_export_gguf.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/rope.h"
#include "operations/export_covariance.h"
#include "operations/export_gguf.h"

#define WEIGHT_NAME_BYTES 512

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the plan");
}

void mica_export_plan_release(mica_export_plan *plan) {
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        mica_free(plan->tensors[i].types);
    mica_free(plan->tensors);
    mica_free((void *)plan->sources);
    mica_free(plan->rope_factors);
    mica_free(plan->named);
    mica_export_factors_free(plan->factors);
    mica_imatrix_close(plan->imatrix);
    *plan = (mica_export_plan){0};
}

/* ---- filling */

typedef struct builder {
    mica_export_plan *plan;
    uint64_t tensor_capacity, source_count, source_capacity;
    const char *prefix;
} builder;

/* Sources are pointers into one growing array: until the end, tensors hold indices there. */
static bool add_source(builder *b, const mica_weight *weight) {
    if (b->source_count == b->source_capacity) {
        const uint64_t capacity = 2 * b->source_capacity + 1024;
        const mica_weight **grown = mica_reallocarray((void *)b->plan->sources, capacity, sizeof *grown);
        if (!grown)
            return false;
        b->plan->sources = grown;
        b->source_capacity = capacity;
    }
    b->plan->sources[b->source_count++] = weight;
    return true;
}

static mica_export_tensor *add_tensor(builder *b) {
    mica_export_plan *plan = b->plan;
    if (plan->tensor_count == b->tensor_capacity) {
        const uint64_t capacity = 2 * b->tensor_capacity + 256;
        mica_export_tensor *grown = mica_reallocarray(plan->tensors, capacity, sizeof *grown);
        if (!grown)
            return NULL;
        plan->tensors = grown;
        b->tensor_capacity = capacity;
    }
    mica_export_tensor *tensor = &plan->tensors[plan->tensor_count++];
    *tensor = (mica_export_tensor){.layer = -1};
    return tensor;
}

static const mica_weight *find_weight(const builder *b, const char *pattern, uint64_t layer, uint64_t expert) {
    char name[WEIGHT_NAME_BYTES];
    const uint64_t lead = strlen(b->prefix);
    memcpy(name, b->prefix, lead);
    if (!mica_gguf_name(pattern, layer, expert, name + lead, sizeof name - lead))
        return NULL;
    return mica_model_weight(b->plan->model, name);
}

static void set_shape(mica_export_tensor *tensor, uint64_t columns, uint64_t rows, uint64_t matrices, uint32_t rank) {
    tensor->columns = columns;
    tensor->rows = rows;
    tensor->matrices = matrices;
    tensor->rank = rank;
    tensor->shape[0] = columns;
    tensor->shape[1] = rows;
    tensor->shape[2] = matrices;
    tensor->shape[3] = 1;
}

/* Of more than two dimensions: written as [rows][columns], declared as what they are. */
static mica_status shape_stack(const mica_weight *weight, mica_export_tensor *tensor, mica_error *error) {
    const mica_tensor *data = weight->data;
    const bool flat = tensor->form == MICA_GGUF_POSITIONS;
    const uint32_t rank = flat || data->rank == 3 ? 3 : 4;
    set_shape(tensor, weight->columns, weight->rows, 1, flat ? 2 : rank);
    if (data->rank != rank)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected %u dimensions, got %u", weight->name, rank, data->rank);
    if (flat) {
        tensor->shape[0] = data->shape[2];
        tensor->shape[1] = data->shape[0] * data->shape[1];
    }
    for (uint32_t d = 0; !flat && d < rank; d++)
        tensor->shape[d] = data->shape[rank - 1 - d];
    return MICA_OK;
}

/* Thirds of whole heads, whose rows come in fours. */
static mica_status check_fused(uint64_t heads, const mica_weight *weight, mica_error *error) {
    const uint64_t rows = weight->data->rank == 1 ? weight->columns : weight->rows;
    if (weight->data->rank <= 2 && heads > 0 && rows % (12 * heads) == 0)
        return MICA_OK;
    return mica_fail(error, MICA_BAD_INPUT,
                     "%s: expected queries, keys and values of %llu heads whose width is a multiple of 4, got %llu rows", weight->name,
                     (unsigned long long)heads, (unsigned long long)rows);
}

static mica_status shape_tensor(const mica_config *config, uint64_t vision_heads, const mica_weight *weight, mica_export_tensor *tensor,
                                mica_error *error) {
    const uint64_t heads = config->num_attention_heads;
    switch (tensor->form) {
    case MICA_GGUF_EXPERTS: set_shape(tensor, weight->columns, weight->rows, tensor->weight_count, 3); return MICA_OK;
    case MICA_GGUF_KEY_PART: set_shape(tensor, config->qk_nope_head_dim, config->kv_lora_rank, heads, 3); return MICA_OK;
    case MICA_GGUF_VALUE_PART: set_shape(tensor, config->kv_lora_rank, config->v_head_dim, heads, 3); return MICA_OK;
    case MICA_GGUF_QUERY_PAIRS:
    case MICA_GGUF_KEY_PAIRS: {
        const uint64_t count = tensor->form == MICA_GGUF_QUERY_PAIRS ? heads : config->num_key_value_heads;
        if (weight->data->rank == 1) /* a bias: one column */
            set_shape(tensor, weight->columns, 1, 1, 1);
        else
            set_shape(tensor, weight->columns, weight->rows, 1, 2);
        if ((tensor->rank == 1 ? weight->columns : weight->rows) % (2 * count) == 0)
            return MICA_OK;
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected rows for %llu heads of even width, got %llu", weight->name,
                         (unsigned long long)count, (unsigned long long)weight->rows);
    }
    case MICA_GGUF_QUERY_THIRD:
    case MICA_GGUF_KEY_THIRD:
    case MICA_GGUF_VALUE_THIRD:
        if (weight->data->rank == 1)
            set_shape(tensor, weight->columns / 3, 1, 1, 1);
        else
            set_shape(tensor, weight->columns, weight->rows / 3, 1, 2);
        return check_fused(vision_heads, weight, error);
    case MICA_GGUF_POSITIONS:
    case MICA_GGUF_CONVOLUTION: return shape_stack(weight, tensor, error);
    case MICA_GGUF_FUSED_TURNED:
        set_shape(tensor, weight->columns, weight->rows, 1, weight->data->rank == 1 ? 1 : 2);
        return check_fused(vision_heads, weight, error);
    case MICA_GGUF_TABLE:
    case MICA_GGUF_COPY: break;
    }
    if (weight->data->rank > 2)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected one or two dimensions, got %u", weight->name, weight->data->rank);
    set_shape(tensor, weight->columns, weight->rows, 1, weight->data->rank < 2 ? 1 : 2);
    return MICA_OK;
}

/* The tensor of a row in a layer; nothing where the model has no such weight. */
static mica_status add_row(builder *b, const mica_gguf_row *row, uint64_t layer, mica_error *error) {
    const mica_config *config = &b->plan->model->config;
    const uint64_t experts = row->form == MICA_GGUF_EXPERTS ? config->n_routed_experts : 1;
    const mica_weight *first = find_weight(b, row->pattern, layer, 0);
    if (!first || (experts > 1 && first->fate != MICA_USED))
        return MICA_OK;
    mica_export_tensor *tensor = add_tensor(b);
    if (!tensor)
        return no_memory(error);
    tensor->form = row->form;
    tensor->weight_count = experts;
    tensor->layer = mica_gguf_row_is_layered(row) ? (int64_t)layer : -1;
    if (!mica_gguf_name(row->name, layer, 0, tensor->name, sizeof tensor->name))
        return mica_fail(error, MICA_BAD_INPUT, "%s: its name in GGUF would be %s, longer than %d bytes", first->name, row->name,
                         MICA_GGUF_NAME_BYTES - 1);
    for (uint64_t expert = 0; expert < experts; expert++) {
        const mica_weight *weight = find_weight(b, row->pattern, layer, expert);
        if (!weight || weight->rows != first->rows || weight->columns != first->columns)
            return mica_fail(error, MICA_BAD_INPUT, "%s: expert %llu of layer %llu is not of its shape", first->name,
                             (unsigned long long)expert, (unsigned long long)layer);
        if (!add_source(b, weight))
            return no_memory(error);
    }
    const mica_status status = shape_tensor(config, b->plan->vision_heads, first, tensor, error);
    tensor->fixed = row->float32 || row->form == MICA_GGUF_TABLE || tensor->rank < 2;
    tensor->dtype = tensor->wanted = row->form == MICA_GGUF_TABLE ? MICA_I32 : MICA_F32;
    return status;
}

static mica_status add_rows(builder *b, const mica_gguf_row *rows, uint64_t layers, mica_error *error) {
    mica_status status = MICA_OK;
    const mica_gguf_row *row = rows;
    for (; status == MICA_OK && row->pattern && !mica_gguf_row_is_layered(row); row++)
        status = add_row(b, row, 0, error);
    const mica_gguf_row *layered = row;
    for (uint64_t layer = 0; status == MICA_OK && layer < layers; layer++)
        for (row = layered; status == MICA_OK && row->pattern && mica_gguf_row_is_layered(row); row++)
            status = add_row(b, row, layer, error);
    for (; status == MICA_OK && row->pattern; row++)
        status = add_row(b, row, 0, error);
    return status;
}

/* llama3's scaling of low frequencies is a tensor of divisors. */
static mica_status add_rope_factors(builder *b, mica_error *error) {
    const mica_config *config = &b->plan->model->config;
    if (strcmp(config->rope_type, "llama3") != 0)
        return MICA_OK;
    const uint64_t half = config->head_dim / 2;
    mica_export_tensor *tensor = add_tensor(b);
    float *factors = mica_calloc(half, sizeof *factors);
    b->plan->rope_factors = factors;
    if (!tensor || !factors)
        return no_memory(error);
    for (uint64_t i = 0; i < half; i++)
        factors[i] = (float)mica_rope_llama3_divisor(config, i);
    snprintf(tensor->name, sizeof tensor->name, "rope_freqs.weight");
    set_shape(tensor, half, 1, 1, 1);
    tensor->values = factors;
    tensor->fixed = true;
    tensor->dtype = tensor->wanted = MICA_F32;
    return MICA_OK;
}

/* ---- what GGUF, or llama.cpp's graph for the architecture, cannot say */

static mica_status refuse(const mica_model *model, mica_error *error, const char *key, const char *why) {
    return mica_fail(error, MICA_BAD_INPUT, "%s: config.json: %s: cannot be exported to GGUF: %s", model->source->path, key, why);
}

static mica_status check_model(const mica_model *model, mica_error *error) {
    const mica_config *config = &model->config;
    const char *rope = config->rope_type;
    const bool grouped = config->architecture->attention == MICA_ATTENTION_GROUPED;
    if (strcmp(rope, "dynamic") == 0 || strcmp(rope, "longrope") == 0 || strcmp(rope, "su") == 0 ||
        (!grouped && strcmp(rope, "llama3") == 0))
        return refuse(model, error, "rope_scaling", "this type of it has no keys there");
    if (config->n_routed_experts > 1024)
        return refuse(model, error, "n_routed_experts", "llama.cpp allows 1024");
    if (config->num_hidden_layers > 512)
        return refuse(model, error, "num_hidden_layers", "llama.cpp allows 512");
    for (uint64_t layer = config->first_k_dense_replace; config->n_routed_experts > 0 && layer < config->num_hidden_layers; layer++)
        if (!mica_config_layer_is_moe(config, layer))
            return refuse(model, error, "moe_layer_freq", "all layers behind the dense ones must have experts");
    if (config->architecture->attention == MICA_ATTENTION_LATENT && config->n_shared_experts == 0)
        return refuse(model, error, "n_shared_experts", "llama.cpp's deepseek2 has at least one");
    if (config->architecture->attention == MICA_ATTENTION_LATENT && config->rope_factor > 1 && strcmp(rope, "yarn") == 0 &&
        config->rope_mscale != config->rope_mscale_all_dim)
        return refuse(model, error, "rope_scaling", "mscale and mscale_all_dim must be equal");
    return MICA_OK;
}

static int compare_pointers(const void *a, const void *b) {
    const uintptr_t left = (uintptr_t)(*(const mica_weight *const *)a), right = (uintptr_t)(*(const mica_weight *const *)b);
    return left < right ? -1 : left > right;
}

/* A tied head may be stored all the same; then it is the embedding's copy and has no place. */
static bool has_no_place(const mica_model *model, const mica_weight *weight) {
    return weight->role == MICA_ROLE_HEAD && model->config.tie_word_embeddings;
}

static mica_status check_all_used(const builder *b, mica_error *error) {
    const mica_model *model = b->plan->model;
    const mica_weight **sorted = mica_reallocarray(NULL, b->source_count + 1, sizeof *sorted);
    if (!sorted)
        return no_memory(error);
    if (b->source_count > 0)
        memcpy((void *)sorted, (const void *)b->plan->sources, b->source_count * sizeof *sorted);
    qsort((void *)sorted, b->source_count, sizeof *sorted, compare_pointers);
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < model->weight_count; i++) {
        const mica_weight *weight = &model->weights[i];
        if (weight->fate == MICA_USED && !has_no_place(model, weight) &&
            !bsearch(&weight, (const void *)sorted, b->source_count, sizeof *sorted, compare_pointers))
            status = mica_fail(error, MICA_BAD_INPUT, "%s: %s: llama.cpp's %s has no tensor for it", model->source->path, weight->name,
                               b->plan->architecture);
    }
    mica_free((void *)sorted);
    return status;
}

static void link_sources(mica_export_plan *plan) {
    uint64_t next = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        mica_export_tensor *tensor = &plan->tensors[i];
        if (tensor->values)
            continue;
        tensor->weights = plan->sources + next;
        next += tensor->weight_count;
        plan->parameters += tensor->matrices * tensor->rows * tensor->columns;
    }
}

static void drop_tied_head(builder *b) {
    mica_export_plan *plan = b->plan;
    if (!plan->model->config.tie_word_embeddings)
        return;
    if (plan->tensor_count > 0 && strcmp(plan->tensors[plan->tensor_count - 1].name, "output.weight") == 0) {
        plan->tensor_count--;
        b->source_count--;
    }
}

static void learn_facts(mica_export_plan *plan) {
    const mica_config *config = &plan->model->config;
    const uint64_t key_heads = config->architecture->attention == MICA_ATTENTION_GROUPED ? config->num_key_value_heads : 1;
    plan->facts = (mica_mixture_model){.layers = config->num_hidden_layers,
                                       .experts = config->n_routed_experts,
                                       .heads_per_key = config->num_attention_heads / key_heads,
                                       .tied = true};
    plan->facts.wide = strcmp(plan->architecture, "llama") == 0 && config->num_hidden_layers == 80 && plan->facts.heads_per_key > 1;
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        if (strcmp(plan->tensors[i].name, "output.weight") == 0)
            plan->facts.tied = false;
}

mica_status mica_export_plan_tensors(const mica_model *model, mica_export_plan *plan, mica_error *error) {
    const char *why;
    const mica_gguf_architecture *architecture = mica_gguf_architecture_of(&model->config, &why);
    *plan = (mica_export_plan){.model = model};
    if (!architecture)
        return mica_fail(error, MICA_BAD_INPUT, "%s: model_type %s cannot be exported to GGUF: %s", model->source->path,
                         model->config.model_type, why);
    plan->architecture = architecture->name;
    builder b = {.plan = plan, .prefix = model->config.architecture->prefix};
    mica_status status = check_model(model, error);
    if (status == MICA_OK)
        status = add_rope_factors(&b, error);
    if (status == MICA_OK)
        status = add_rows(&b, architecture->rows, model->config.num_hidden_layers, error);
    if (status == MICA_OK) {
        drop_tied_head(&b);
        status = check_all_used(&b, error);
    }
    if (status != MICA_OK) {
        mica_export_plan_release(plan);
        return status;
    }
    link_sources(plan);
    learn_facts(plan);
    return MICA_OK;
}

/* ---- the vision tower */

static bool is_of_vision(const mica_weight *weight) {
    static const char *const beginnings[] = {"vision_tower.", "multi_modal_projector.", "mm_projector."};
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++)
        if (strncmp(weight->name, beginnings[i], strlen(beginnings[i])) == 0)
            return true;
    return false;
}

static const mica_gguf_architecture *tower_of(const mica_model *model) {
    return strcmp(model->config.model_type, "kimi_vl") == 0    ? &mica_gguf_kimi_vision
           : strcmp(model->config.model_type, "kimi_k25") == 0 ? &mica_gguf_kimi25_vision
                                                               : NULL;
}

mica_status mica_export_plan_vision(const mica_model *model, mica_export_plan *plan, mica_error *error) {
    const mica_gguf_architecture *tower = tower_of(model);
    if (!tower)
        return mica_fail(error, MICA_USAGE,
                         "--mmproj: expected a model with a vision tower that is known here (kimi_vl, kimi_k25), got model_type %s",
                         model->config.model_type);
    *plan = (mica_export_plan){.model = model, .architecture = tower->name};
    const mica_status read = mica_export_vision_heads(model, &plan->vision_heads, error);
    if (read != MICA_OK)
        return read;
    builder b = {.plan = plan, .prefix = ""};
    uint64_t blocks = 0, unused = 0;
    char name[WEIGHT_NAME_BYTES];
    while (mica_gguf_name("vision_tower.encoder.blocks.{L}.wqkv.weight", blocks, 0, name, sizeof name) && mica_model_weight(model, name))
        blocks++;
    mica_status status = add_rows(&b, tower->rows, blocks, error);
    if (status == MICA_OK)
        link_sources(plan);
    for (uint64_t i = 0; status == MICA_OK && i < model->weight_count; i++) {
        bool used = !is_of_vision(&model->weights[i]);
        for (uint64_t s = 0; !used && s < b.source_count; s++)
            used = plan->sources[s] == &model->weights[i];
        if (!used && unused++ == 0)
            status = mica_fail(error, MICA_BAD_INPUT, "%s: %s: llama.cpp's clip has no tensor for it", model->source->path,
                               model->weights[i].name);
    }
    if (status == MICA_OK && blocks == 0)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected vision_tower.encoder.blocks.0, got none", model->source->path);
    plan->vision_blocks = blocks;
    if (status != MICA_OK)
        mica_export_plan_release(plan);
    return status;
}
