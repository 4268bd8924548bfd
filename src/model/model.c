/* model/model.c: opening a checkpoint as a model, and what is asked of it afterwards.
 * Invariants: weights are sorted by name; every tensor belongs to exactly one weight; nothing changes after open.
 * Judged by tests/model/test_model.c and tests/operations/test_bad_checkpoints.c. */
#include "model/model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "formats/gguf.h"
#include "model/config_gguf.h"
#include "model/model_build.h"

static mica_status no_memory(const char *path, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: no memory for the model's tables", path);
}

mica_status mica_model_warn(mica_model *model, mica_error *error, const char *format, ...) {
    char line[MICA_ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    char **warnings = mica_reallocarray(model->warnings, model->warning_count + 1, sizeof *warnings);
    if (!warnings)
        return no_memory(model->source->path, error);
    model->warnings = warnings;
    warnings[model->warning_count] = mica_strdup(line);
    if (!warnings[model->warning_count])
        return no_memory(model->source->path, error);
    model->warning_count++;
    return MICA_OK;
}

int mica_weight_compare(const void *left, const void *right) {
    return strcmp(((const mica_weight *)left)->name, ((const mica_weight *)right)->name);
}

/* A weight is named as its data, but for int4, whose "X.weight_packed" is "X.weight". */
static mica_status name_weight(mica_model *model, mica_weight *weight, mica_error *error) {
    weight->name = weight->data->name;
    if (weight->encoding != MICA_ENCODING_INT4_GROUP)
        return MICA_OK;
    weight->name = mica_strndup(weight->data->name, strlen(weight->data->name) - strlen("_packed"));
    return weight->name ? MICA_OK : no_memory(model->source->path, error);
}

/* The slots hold the weights in the order of their data tensors: closes the gaps, adds the slices; sorts where they, or the names of int4
 * weights, require it. */
static mica_status collect_weights(mica_model_builder *builder, mica_error *error) {
    mica_model *model = builder->model;
    bool sorted = builder->slice_count == 0;
    mica_weight *weights = mica_reallocarray(builder->slots, model->source->tensor_count + builder->slice_count + 1, sizeof *weights);
    if (!weights)
        return no_memory(model->source->path, error);
    model->weights = weights;
    builder->slots = NULL;
    for (uint64_t i = 0; i < model->source->tensor_count; i++) {
        if (!model->weights[i].data)
            continue;
        mica_weight *weight = &model->weights[model->weight_count];
        *weight = model->weights[i];
        mica_status status = name_weight(model, weight, error);
        if (status != MICA_OK)
            return status;
        sorted = sorted && (model->weight_count == 0 || strcmp(weight[-1].name, weight->name) < 0);
        model->weight_count++;
    }
    for (uint64_t i = 0; i < builder->slice_count; i++) {
        model->weights[model->weight_count] = builder->slices[i];
        model->weights[model->weight_count].name = builder->slices[i].data->name;
        model->weight_count++;
    }
    if (!sorted)
        qsort(model->weights, model->weight_count, sizeof *model->weights, mica_weight_compare);
    return MICA_OK;
}

static void link_weight(mica_model *model, const mica_weight *weight) {
    if (weight->fate != MICA_USED)
        return;
    switch (weight->role) {
    case MICA_ROLE_EMBEDDING: model->embedding = weight; break;
    case MICA_ROLE_FINAL_NORM: model->final_norm = weight; break;
    case MICA_ROLE_HEAD: model->head = weight; break;
    case MICA_ROLE_ROPE_FACTORS: model->rope_factors = weight; break;
    default: break;
    }
    if (weight->layer < 0)
        return;
    mica_layer *layer = &model->layers[weight->layer];
    if (weight->part != MICA_PART_NONE)
        layer->parts[weight->part] = weight;
    switch (weight->role) {
    case MICA_ROLE_ROUTER: layer->router = weight; break;
    case MICA_ROLE_ROUTER_BIAS: layer->router_bias = weight; break;
    case MICA_ROLE_HASH_TABLE: layer->hash_table = weight; break;
    case MICA_ROLE_SHARED_EXPERT: layer->shared[weight->projection] = weight; break;
    case MICA_ROLE_DENSE: layer->dense[weight->projection] = weight; break;
    case MICA_ROLE_EXPERT: layer->experts[weight->expert * MICA_PROJECTION_COUNT + weight->projection] = weight; break;
    default: break;
    }
}

static mica_status link_layers(mica_model *model, mica_error *error) {
    const mica_config *config = &model->config;
    model->layers = mica_calloc(config->num_hidden_layers, sizeof *model->layers);
    if (!model->layers)
        return no_memory(model->source->path, error);
    for (uint64_t i = 0; i < config->num_hidden_layers; i++) {
        mica_layer *layer = &model->layers[i];
        layer->moe = mica_config_layer_is_moe(config, i);
        if (layer->moe)
            layer->experts = mica_calloc(config->n_routed_experts, MICA_PROJECTION_COUNT * sizeof *layer->experts);
        if (layer->moe && !layer->experts)
            return no_memory(model->source->path, error);
    }
    for (uint64_t i = 0; i < model->weight_count; i++)
        link_weight(model, &model->weights[i]);
    if (!model->head || config->tie_word_embeddings)
        model->head = model->embedding;
    return MICA_OK;
}

static mica_status warn_unlisted(mica_model *model, mica_error *error) {
    const mica_tensor_source *source = model->source;
    const uint64_t shown = 20;
    mica_status status = MICA_OK;
    for (uint64_t i = 0; i < source->unlisted_count && i < shown && status == MICA_OK; i++) {
        const mica_tensor *tensor = &source->tensors[source->unlisted[i]];
        status = mica_model_warn(model, error, "%s: %s: in the shard, not listed in the index; used all the same",
                                 mica_model_shard_name(model, tensor), tensor->name);
    }
    if (status == MICA_OK && source->unlisted_count > shown)
        status = mica_model_warn(model, error, "%llu more tensors are not listed in the index",
                                 (unsigned long long)(source->unlisted_count - shown));
    return status;
}

static mica_status build(mica_model *model, const mica_model_options *options, mica_error *error) {
    uint64_t count = model->source->tensor_count;
    mica_model_builder builder = {.model = model,
                                  .claimed = mica_calloc(count + 1, sizeof *builder.claimed),
                                  .slots = mica_calloc(count + 1, sizeof *builder.slots)};
    model->accounts = mica_calloc(count + 1, sizeof *model->accounts);
    mica_status status = builder.claimed && builder.slots && model->accounts ? MICA_OK : no_memory(model->source->path, error);
    if (status == MICA_OK)
        status = warn_unlisted(model, error);
    if (status == MICA_OK)
        status = mica_model_match(&builder, error);
    if (status == MICA_OK)
        status = mica_model_account_rest(&builder, error);
    if (status == MICA_OK && options && options->strict && model->unknown_count > 0) {
        uint64_t first = 0;
        while (model->accounts[first].fate != MICA_UNKNOWN)
            first++;
        status = mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected known names only (strict), got %llu unknown tensors, this the first",
                           mica_model_shard_name(model, &model->source->tensors[first]), model->source->tensors[first].name,
                           (unsigned long long)model->unknown_count);
    }
    if (status == MICA_OK)
        status = collect_weights(&builder, error);
    if (status == MICA_OK)
        status = link_layers(model, error);
    mica_free(builder.claimed);
    mica_free(builder.slots);
    mica_free(builder.slices);
    return status;
}

/* What a GGUF's tensors say of its configuration, and its metadata does not. */
static mica_status load_gguf_config(mica_model *model, const mica_gguf *gguf, mica_error *error) {
    mica_status status = mica_config_from_gguf(gguf, &model->config, error);
    model->config.tie_word_embeddings = !mica_tensor_source_find(model->source, "output.weight");
    for (uint64_t i = 0; i < model->source->tensor_count; i++)
        if (mica_dtype_is_block(model->source->tensors[i].dtype))
            model->config.quantisation = MICA_QUANTISATION_BLOCKS;
    return status;
}

static mica_status load_config(mica_model *model, mica_error *error) {
    const mica_gguf *gguf = mica_gguf_of_source(model->source);
    if (gguf)
        return load_gguf_config(model, gguf, error);
    char *name = mica_tensor_source_file_path(model->source, MICA_CONFIG_NAME), *bytes = NULL;
    uint64_t length = 0;
    mica_status status = name ? mica_tensor_source_load(model->source, MICA_CONFIG_NAME, MICA_CONFIG_BYTES_MAX, &bytes, &length, error)
                              : no_memory(model->source->path, error);
    if (status == MICA_OK)
        status = mica_config_parse(name, bytes, length, &model->config, error);
    mica_free(bytes);
    mica_free(name);
    return status;
}

mica_status mica_model_open_source(mica_tensor_source *source, const mica_model_options *options, mica_model **result, mica_error *error) {
    mica_model *model = mica_calloc(1, sizeof *model);
    if (!model) {
        mica_status failed = no_memory(source->path, error);
        mica_tensor_source_close(source);
        return failed;
    }
    model->source = source;
    mica_status status = MICA_OK;
    if (!source->kind->has_files && !mica_gguf_of_source(source))
        status = mica_fail(error, MICA_BAD_INPUT,
                           "%s: expected a checkpoint directory with config.json, got a single .safetensors file, "
                           "which can be inspected only",
                           source->path);
    if (status == MICA_OK)
        status = load_config(model, error);
    if (status == MICA_OK)
        status = build(model, options, error);
    if (status == MICA_OK)
        *result = model;
    else
        mica_model_close(model);
    return status;
}

mica_status mica_model_open(const char *path, const mica_model_options *options, mica_model **result, mica_error *error) {
    mica_tensor_source *source = NULL;
    mica_status status = mica_tensor_source_open(path, &source, error);
    return status == MICA_OK ? mica_model_open_source(source, options, result, error) : status;
}

void mica_model_close(mica_model *model) {
    if (!model)
        return;
    for (uint64_t i = 0; model->layers && i < model->config.num_hidden_layers; i++)
        mica_free(model->layers[i].experts);
    for (uint64_t i = 0; i < model->weight_count; i++)
        if (model->weights[i].name != model->weights[i].data->name)
            mica_free((char *)model->weights[i].name);
    for (uint64_t i = 0; i < model->warning_count; i++)
        mica_free(model->warnings[i]);
    for (uint64_t i = 0; i < model->slice_block_count; i++)
        mica_free(model->slices[i]);
    mica_free(model->slices);
    mica_free(model->warnings);
    mica_free(model->layers);
    mica_free(model->weights);
    mica_free(model->accounts);
    mica_tensor_source_close(model->source);
    mica_free(model);
}

bool mica_source_is_model(const mica_tensor_source *source) {
    const mica_gguf *gguf = mica_gguf_of_source(source);
    return gguf ? mica_architecture_of_gguf(gguf) != NULL : source->kind->has_files;
}

const mica_weight *mica_model_weight(const mica_model *model, const char *name) {
    mica_weight key = {.name = name};
    return model->weight_count ? bsearch(&key, model->weights, model->weight_count, sizeof key, mica_weight_compare) : NULL;
}

const char *mica_model_shard_name(const mica_model *model, const mica_tensor *tensor) {
    return model->source->shards[tensor->shard].name;
}

const mica_file *mica_model_file(const mica_model *model, const mica_tensor *tensor) {
    return model->source->shards[tensor->shard].file;
}
