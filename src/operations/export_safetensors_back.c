/* operations/export_safetensors_back.c: a GGUF file as a checkpoint again: the names Hugging Face's code asks for, each expert a tensor of
 * its own, what llama.cpp's conversion did to rows undone (kv_b from its two halves, llama's query and key rows from pairs to halves),
 * config.json and the tokenizer's files from the metadata. Refuses architectures and weights that have no such names. Reads headers only,
 * but for llama3's frequency factors.
 * Judged by tests/operations/test_export_back.c and tests/interop/export_back.py. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "formats/gguf.h"
#include "model/config_gguf.h"
#include "model/rope.h"
#include "model/tokenizer.h"
#include "numerics/encode.h"
#include "operations/export_safetensors.h"

static mica_status no_memory(const mica_shards_plan *plan, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its list of tensors", plan->source->path);
}

/* ---- names */

typedef struct lister {
    mica_shards_plan *plan;
    mica_safetensors_entry *entries;
    uint64_t count;
    bool *used; /* [model->weight_count] */
} lister;

/* NULL: the model does not use it, or has none. */
static const mica_weight *mark(const lister *list, const mica_weight *weight) {
    if (!weight || weight->fate != MICA_USED)
        return NULL;
    list->used[weight - list->plan->model->weights] = true;
    return weight;
}

static const mica_weight *take(const lister *list, const char *pattern, uint64_t layer) {
    char name[MICA_GGUF_NAME_BYTES];
    return mica_gguf_name(pattern, layer, 0, name, sizeof name) ? mark(list, mica_model_weight(list->plan->model, name)) : NULL;
}

/* The model knows whether gates and ups are tensors of their own. */
static const mica_weight *take_expert(const lister *list, const mica_gguf_row *row, uint64_t layer, uint64_t expert) {
    const mica_layer *place = &list->plan->model->layers[layer];
    const mica_projection projection = strstr(row->name, "_gate_") ? MICA_GATE : strstr(row->name, "_up_") ? MICA_UP : MICA_DOWN;
    return place->moe ? mark(list, place->experts[expert * MICA_PROJECTION_COUNT + projection]) : NULL;
}

/* What a weight is written in: plain numbers as they are, unless a type was asked for. The router's correction bias stays as it is: a
 * choice hangs on its last bits. */
static mica_dtype dtype_of(const mica_shards_plan *plan, const mica_weight *weight) {
    const bool plain = weight->encoding == MICA_ENCODING_PLAIN;
    return plain && (!plan->dtype_name || weight->role == MICA_ROLE_ROUTER_BIAS) ? weight->data->dtype : plan->dtype;
}

static mica_status add(lister *list, const char *pattern, uint64_t layer, uint64_t expert, const mica_shards_origin *origin, uint32_t rank,
                       uint64_t rows, uint64_t columns, mica_error *error) {
    mica_shards_plan *plan = list->plan;
    char name[256];
    if (!mica_gguf_name(pattern, layer, expert, name, sizeof name))
        return mica_fail(error, MICA_BAD_INPUT, "%s: its name would be longer than %zu bytes", origin->weight->name, sizeof name - 1);
    if (!(plan->names[plan->name_count] = mica_strdup(name)))
        return no_memory(plan, error);
    mica_safetensors_entry *entry = &list->entries[list->count];
    *entry = (mica_safetensors_entry){
        .name = plan->names[plan->name_count++], .dtype = dtype_of(plan, origin->weight), .rank = rank, .number = list->count};
    if (origin->second && dtype_of(plan, origin->second) != entry->dtype) /* halves of two plain types, or one of them plain */
        entry->dtype = plan->dtype_name ? plan->dtype : MICA_F32;
    entry->shape[0] = rank == 1 ? columns : rows;
    entry->shape[1] = rank == 1 ? 0 : columns;
    plan->origins[list->count] = *origin;
    plan->converted_count += origin->weight->encoding != MICA_ENCODING_PLAIN || entry->dtype != origin->weight->data->dtype;
    if (origin->form == MICA_GGUF_COPY && entry->dtype == origin->weight->data->dtype)
        plan->origins[list->count] = (mica_shards_origin){.tensor = origin->weight->data};
    list->count++;
    return MICA_OK;
}

static mica_status add_plain(lister *list, const mica_gguf_row *row, uint64_t layer, mica_error *error) {
    const mica_weight *weight = take(list, row->name, layer);
    if (!weight)
        return MICA_OK;
    const mica_shards_origin origin = {.weight = weight, .form = row->form};
    return add(list, row->pattern, layer, 0, &origin, weight->data->rank == 1 ? 1 : 2, weight->rows, weight->columns, error);
}

static mica_status add_experts(lister *list, const mica_gguf_row *row, uint64_t layer, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t expert = 0; status == MICA_OK && expert < list->plan->model->config.n_routed_experts; expert++) {
        const mica_weight *weight = take_expert(list, row, layer, expert);
        const mica_shards_origin origin = {.weight = weight, .form = MICA_GGUF_COPY};
        if (weight)
            status = add(list, row->pattern, layer, expert, &origin, 2, weight->rows, weight->columns, error);
    }
    return status;
}

/* Keys and values of the latent: from their two tensors, or as older files have them, in one. */
static mica_status add_latent(lister *list, const mica_gguf_row *row, uint64_t layer, mica_error *error) {
    const mica_config *config = &list->plan->model->config;
    const uint64_t rows = config->num_attention_heads * (config->qk_nope_head_dim + config->v_head_dim);
    const mica_weight *keys = take(list, row->name, layer), *values = take(list, "blk.{L}.attn_v_b.weight", layer);
    const mica_weight *whole = take(list, "blk.{L}.attn_kv_b.weight", layer);
    const mica_shards_origin halves = {.weight = keys, .second = values, .form = MICA_GGUF_KEY_PART},
                             one = {.weight = whole, .form = MICA_GGUF_COPY};
    if (keys && values)
        return add(list, row->pattern, layer, 0, &halves, 2, rows, config->kv_lora_rank, error);
    return whole ? add(list, row->pattern, layer, 0, &one, 2, whole->rows, whole->columns, error) : MICA_OK;
}

static mica_status add_row(lister *list, const mica_gguf_row *row, uint64_t layer, mica_error *error) {
    switch (row->form) {
    case MICA_GGUF_EXPERTS: return add_experts(list, row, layer, error);
    case MICA_GGUF_KEY_PART: return add_latent(list, row, layer, error);
    case MICA_GGUF_VALUE_PART: return MICA_OK; /* with the keys */
    default: return add_plain(list, row, layer, error);
    }
}

static mica_status check_used(const lister *list, mica_error *error) {
    const mica_model *model = list->plan->model;
    for (uint64_t i = 0; i < model->weight_count; i++)
        if (model->weights[i].fate == MICA_USED && !list->used[i] && model->weights[i].role != MICA_ROLE_ROPE_FACTORS)
            return mica_fail(error, MICA_BAD_INPUT, "%s: %s: a checkpoint of %s has no tensor for it", model->source->path,
                             model->weights[i].name, model->config.model_type);
    return MICA_OK;
}

mica_status mica_shards_list_back(mica_shards_plan *plan, mica_safetensors_entry *entries, uint64_t *count, mica_error *error) {
    const mica_model *model = plan->model;
    const mica_gguf_architecture *architecture = mica_gguf_architecture_named(model->config.model_type);
    lister list = {.plan = plan, .entries = entries, .used = mica_calloc(model->weight_count + 1, sizeof *list.used)};
    mica_status status = list.used ? MICA_OK : no_memory(plan, error);
    if (status == MICA_OK && !architecture)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: the names of %s's tensors in a checkpoint are not known here", model->source->path,
                           model->config.model_type);
    for (const mica_gguf_row *row = architecture ? architecture->rows : NULL; status == MICA_OK && row->pattern; row++) {
        const uint64_t layers = mica_gguf_row_is_layered(row) ? model->config.num_hidden_layers : 1;
        for (uint64_t layer = 0; status == MICA_OK && layer < layers; layer++)
            status = add_row(&list, row, layer, error);
    }
    if (status == MICA_OK)
        status = check_used(&list, error);
    mica_free(list.used);
    *count = list.count;
    return status;
}

/* ---- heads */

uint64_t mica_shards_heads(const mica_shards_plan *plan, const mica_shards_origin *origin) {
    const mica_config *config = &plan->model->config;
    switch (origin->form) {
    case MICA_GGUF_KEY_PART: return config->num_attention_heads;
    case MICA_GGUF_QUERY_PAIRS: return origin->weight->data->rank == 1 ? 1 : config->num_attention_heads;
    case MICA_GGUF_KEY_PAIRS: return origin->weight->data->rank == 1 ? 1 : config->num_key_value_heads;
    default: return 0;
    }
}

static mica_slab slab_of(const mica_weight *weight, uint64_t head, uint64_t heads) {
    const uint64_t rows = weight->rows / heads;
    return (mica_slab){.row = head * rows, .rows = rows, .columns = weight->columns};
}

uint32_t mica_shards_head_ranges(const mica_shards_plan *plan, const mica_shards_unit *unit, mica_stream_range *ranges) {
    const mica_shards_item *item = unit->item;
    const mica_slab first = slab_of(item->weight, unit->head, item->heads);
    const uint32_t count = mica_slab_ranges(plan->source, item->weight, &first, ranges);
    if (!item->origin->second)
        return count;
    const mica_slab second = slab_of(item->origin->second, unit->head, item->heads);
    return count + mica_slab_ranges(plan->source, item->origin->second, &second, ranges + count);
}

static mica_status decode(const mica_shards_plan *plan, const mica_weight *weight, uint64_t head, uint64_t heads, const uint8_t *data,
                          float *values, mica_error *error) {
    const mica_slab slab = slab_of(weight, head, heads);
    mica_matrix matrix;
    const mica_status status = mica_slab_matrix(plan->model, weight, &slab, &data, &matrix, error);
    if (status == MICA_OK)
        mica_matrix_decode(&matrix, 0, 0, slab.rows, values, slab.columns);
    return status;
}

/* A head's keys stand as [latent][nope]; wanted is [nope][latent], and the values [v][latent] behind them. */
static void turn_keys(const mica_config *config, const float *keys, float *result) {
    for (uint64_t n = 0; n < config->qk_nope_head_dim; n++)
        for (uint64_t l = 0; l < config->kv_lora_rank; l++)
            result[n * config->kv_lora_rank + l] = keys[l * config->qk_nope_head_dim + n];
}

/* `rows` of `columns`, in pairs, to the first of all pairs and then the second of all. */
static void part_pairs(const float *pairs, uint64_t rows, uint64_t columns, float *result) {
    for (uint64_t row = 0; row < rows; row++) {
        const uint64_t from = row < rows / 2 ? 2 * row : 2 * (row - rows / 2) + 1;
        memcpy(result + row * columns, pairs + from * columns, columns * sizeof *result);
    }
}

mica_status mica_shards_convert_head(const mica_shards_plan *plan, const mica_shards_unit *unit, const uint8_t *const *data, float *strip,
                                     void *output, mica_error *error) {
    const mica_config *config = &plan->model->config;
    const mica_shards_item *item = unit->item;
    const mica_weight *weight = item->weight;
    const uint64_t elements = unit->bytes / mica_dtype_bytes(item->entry->dtype);
    float *result = strip + elements;
    mica_status status = decode(plan, weight, unit->head, item->heads, data[0], strip, error);
    if (status == MICA_OK && item->origin->form == MICA_GGUF_KEY_PART) {
        turn_keys(config, strip, result);
        status = decode(plan, item->origin->second, unit->head, item->heads, data[1],
                        result + config->qk_nope_head_dim * config->kv_lora_rank, error);
    } else if (status == MICA_OK && weight->data->rank == 1) { /* a bias: all heads, each element a row of its own */
        const uint64_t heads = item->origin->form == MICA_GGUF_QUERY_PAIRS ? config->num_attention_heads : config->num_key_value_heads;
        const uint64_t width = weight->columns / heads;
        for (uint64_t head = 0; head < heads; head++)
            part_pairs(strip + head * width, width, 1, result + head * width);
    } else if (status == MICA_OK) {
        part_pairs(strip, weight->rows / item->heads, weight->columns, result);
    }
    if (status == MICA_OK)
        (void)mica_encode_plain(item->entry->dtype, result, elements, output);
    return status;
}

/* ---- the files */

static mica_shards_file *make_file(mica_shards_plan *plan, const char *name) {
    mica_shards_file *file = &plan->made[plan->made_count++];
    *file = (mica_shards_file){.name = name};
    return file;
}

/* What only the tensors say. */
static mica_status learn_from_tensors(const mica_model *model, mica_config *config, mica_error *error) {
    float *divisors = NULL;
    config->attention_bias = model->layers[0].parts[MICA_PART_Q_BIAS] != NULL;
    config->mlp_bias = model->layers[0].parts[MICA_PART_GATE_BIAS] != NULL;
    if (!model->rope_factors)
        return MICA_OK;
    mica_status status = mica_weight_load(model, model->rope_factors, &divisors, error);
    if (status == MICA_OK && !mica_rope_find_llama3(config, divisors))
        status = mica_fail(error, MICA_BAD_INPUT,
                           "%s: %s: expected the divisors of llama3's rope_scaling, which config.json can say, got others",
                           model->source->path, model->rope_factors->name);
    mica_free(divisors);
    return status;
}

static mica_status make_config(mica_shards_plan *plan, mica_error *error) {
    const mica_model *model = plan->model;
    mica_shards_file *file = make_file(plan, MICA_CONFIG_NAME);
    mica_config *config = mica_malloc(sizeof *config);
    if (!config)
        return no_memory(plan, error);
    *config = model->config;
    mica_status status = learn_from_tensors(model, config, error);
    if (status == MICA_OK)
        status = mica_config_write(config, dtype_of(plan, model->embedding), &file->bytes, &file->length, error);
    mica_free(config);
    return status;
}

static bool has_vocabulary(const mica_gguf *gguf) {
    return mica_gguf_find(gguf, "tokenizer.ggml.tokens") != NULL;
}

static mica_status make_tokenizer(mica_shards_plan *plan, mica_error *error) {
    mica_tokenizer *tokenizer = NULL;
    if (!has_vocabulary(mica_gguf_of_source(plan->source))) {
        plan->note = "there is no vocabulary in the file: take the tokenizer's files from the model's own checkpoint";
        return MICA_OK;
    }
    mica_status status = mica_tokenizer_open_source(plan->source, &tokenizer, error);
    if (status == MICA_OK && mica_tokenizer_shared_ranks(tokenizer) > 0)
        plan->note = "tokens of its vocabulary share a score: where several of them could merge, tokenizer.json merges the one with the "
                     "lowest id first, not the leftmost";
    if (status == MICA_OK) {
        mica_shards_file *file = make_file(plan, "tokenizer.json");
        status = mica_tokenizer_write(tokenizer, &file->bytes, &file->length, error);
        file = status == MICA_OK ? make_file(plan, "tokenizer_config.json") : NULL;
        if (status == MICA_OK)
            status = mica_tokenizer_write_config(tokenizer, plan->model->config.max_position_embeddings, &file->bytes, &file->length,
                                                 error);
    }
    mica_tokenizer_close(tokenizer);
    return status;
}

mica_status mica_shards_files_back(mica_shards_plan *plan, mica_error *error) {
    mica_status status = make_config(plan, error);
    if (status == MICA_OK)
        status = make_tokenizer(plan, error);
    if (status == MICA_OK && !(plan->files = mica_calloc(MICA_SHARDS_MADE_MAX, sizeof *plan->files)))
        status = no_memory(plan, error);
    for (uint32_t i = 0; status == MICA_OK && i < plan->made_count; i++) {
        plan->files[i] = mica_strdup(plan->made[i].name);
        status = plan->files[i] ? MICA_OK : no_memory(plan, error);
        plan->file_count += status == MICA_OK;
    }
    return status;
}
