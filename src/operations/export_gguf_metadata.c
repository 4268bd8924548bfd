/* operations/export_gguf_metadata.c: the keys of a GGUF file: what llama.cpp's loaders ask for, from config.json, in the strict types they
 * ask for. Owns: names and meanings of keys per architecture. Refuses: numbers that do not fit a key's type.
 * Judged by tests/operations/test_export_gguf.c and tests/interop/export_gguf.py. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "operations/export_gguf.h"

/* The keys below the architecture's prefix. */
typedef struct writer {
    mica_gguf_metadata *out;
    const char *architecture;
    char key[128];
    const mica_model *model;
    mica_status status; /* sticky: of a number that does not fit */
    mica_error *error;
} writer;

static const char *key_of(writer *w, const char *name) {
    snprintf(w->key, sizeof w->key, "%s.%s", w->architecture, name);
    return w->key;
}

static void put_u32(writer *w, const char *name, uint64_t value) {
    const char *key = key_of(w, name);
    if (value > UINT32_MAX && w->status == MICA_OK)
        w->status = mica_fail(w->error, MICA_BAD_INPUT, "%s: %s: expected a number below 2^32, got %llu", w->model->source->path, key,
                              (unsigned long long)value);
    mica_gguf_add_u32(w->out, key, (uint32_t)value);
}

static void put_f32(writer *w, const char *name, double value) {
    mica_gguf_add_f32(w->out, key_of(w, name), (float)value);
}

static void put_bool(writer *w, const char *name, bool value) {
    mica_gguf_add_bool(w->out, key_of(w, name), value);
}

static void put_text(writer *w, const char *name, const char *value) {
    mica_gguf_add_string(w->out, key_of(w, name), value);
}

/* ---- general.* */

/* "24x3.4M", "7.0B": as GGUF's naming convention has it: the parameters without all experts but one, times the experts. */
static void size_label(const mica_export_plan *plan, char *label, size_t bytes) {
    static const struct {
        double unit;
        const char *suffix;
    } units[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {0, "K"}};
    double count = (double)plan->parameters;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        if (tensor->form == MICA_GGUF_EXPERTS)
            count -= (double)(tensor->matrices - 1) * (double)tensor->rows * (double)tensor->columns;
    }
    size_t i = 0;
    while (units[i].unit > 0 && count <= units[i].unit)
        i++;
    const double scaled = count / (units[i].unit > 0 ? units[i].unit : 1e3);
    if (plan->facts.experts > 0)
        snprintf(label, bytes, "%llux%.*f%s", (unsigned long long)plan->facts.experts, scaled < 9.5 ? 1 : 0, scaled, units[i].suffix);
    else
        snprintf(label, bytes, "%.*f%s", scaled < 9.5 ? 1 : 0, scaled, units[i].suffix);
}

/* The checkpoint directory's own name, or what its store calls it; the model's type where the path has none. */
static void model_name(const mica_model *model, char *name, size_t bytes) {
    const char *path = model->source->model_name ? model->source->model_name : model->source->path;
    size_t end = strlen(path);
    while (end > 0 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    if (end == begin || path[begin] == '.')
        snprintf(name, bytes, "%s", model->config.model_type);
    else
        snprintf(name, bytes, "%.*s", (int)(end - begin), path + begin);
}

static void put_general(writer *w, const mica_export_plan *plan, const char *type) {
    char name[256], label[48];
    mica_gguf_add_string(w->out, "general.architecture", plan->architecture);
    mica_gguf_add_string(w->out, "general.type", type);
    model_name(plan->model, name, sizeof name);
    mica_gguf_add_string(w->out, "general.name", name);
    size_label(plan, label, sizeof label);
    mica_gguf_add_string(w->out, "general.size_label", label);
    mica_gguf_add_u32(w->out, "general.file_type", plan->file_type);
    mica_gguf_add_u32(w->out, "general.quantization_version", 2);
}

/* ---- what the architectures share */

static void put_sizes(writer *w, const mica_config *config) {
    put_u32(w, "block_count", config->num_hidden_layers);
    put_u32(w, "context_length", config->max_position_embeddings ? config->max_position_embeddings : 4096);
    put_u32(w, "embedding_length", config->hidden_size);
    if (config->intermediate_size > 0)
        put_u32(w, "feed_forward_length", config->intermediate_size);
    put_u32(w, "attention.head_count", config->num_attention_heads);
    put_f32(w, "attention.layer_norm_rms_epsilon", config->rms_norm_eps);
    put_f32(w, "rope.freq_base", config->rope_theta);
    put_u32(w, "vocab_size", config->vocab_size);
}

static void put_rope_scaling(writer *w, const mica_config *config) {
    const bool yarn = strcmp(config->rope_type, "yarn") == 0;
    if (!yarn && strcmp(config->rope_type, "linear") != 0) /* llama3 is a tensor */
        return;
    put_text(w, "rope.scaling.type", config->rope_type);
    put_f32(w, "rope.scaling.factor", config->rope_factor);
    if (!yarn)
        return;
    put_u32(w, "rope.scaling.original_context_length", config->rope_original_context);
    put_f32(w, "rope.scaling.yarn_beta_fast", config->rope_beta_fast);
    put_f32(w, "rope.scaling.yarn_beta_slow", config->rope_beta_slow);
    if (config->rope_attention_factor > 0)
        put_f32(w, "rope.scaling.yarn_attn_factor", config->rope_attention_factor);
}

/* llama.cpp's numbers of the functions that make probabilities of a router's scores. */
static mica_status put_router(writer *w, const mica_config *config) {
    static const struct {
        const char *name;
        uint32_t number;
    } functions[] = {{"softmax", 1}, {"sigmoid", 2}, {"sqrtsoftplus", 4}};
    put_u32(w, "expert_count", config->n_routed_experts);
    put_u32(w, "expert_used_count", config->num_experts_per_tok);
    put_u32(w, "expert_shared_count", config->n_shared_experts);
    put_u32(w, "expert_feed_forward_length", config->moe_intermediate_size);
    put_f32(w, "expert_weights_scale", config->routed_scaling_factor);
    put_bool(w, "expert_weights_norm", config->norm_topk_prob);
    if (config->n_group > 1) {
        put_u32(w, "expert_group_count", config->n_group);
        put_u32(w, "expert_group_used_count", config->topk_group);
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (strcmp(functions[i].name, config->scoring_func) == 0) {
            put_u32(w, "expert_gating_func", functions[i].number);
            return MICA_OK;
        }
    return mica_fail(w->error, MICA_BAD_INPUT, "%s: config.json: scoring_func: expected softmax, sigmoid or sqrtsoftplus, got %s",
                     w->model->source->path, config->scoring_func);
}

/* ---- one function per architecture */

/* Latent attention as llama.cpp runs it: one key head as wide as the latent and its rope part. */
static mica_status put_deepseek2(writer *w, const mica_config *config) {
    put_sizes(w, config);
    put_u32(w, "attention.head_count_kv", 1);
    put_u32(w, "attention.q_lora_rank", config->q_lora_rank); /* 0: plain attn_q */
    put_u32(w, "attention.kv_lora_rank", config->kv_lora_rank);
    put_u32(w, "attention.key_length", config->kv_lora_rank + config->qk_rope_head_dim);
    put_u32(w, "attention.value_length", config->kv_lora_rank);
    put_u32(w, "attention.key_length_mla", config->qk_nope_head_dim + config->qk_rope_head_dim);
    put_u32(w, "attention.value_length_mla", config->v_head_dim);
    put_u32(w, "rope.dimension_count", config->qk_rope_head_dim);
    put_u32(w, "leading_dense_block_count", config->first_k_dense_replace);
    put_rope_scaling(w, config);
    if (strcmp(config->rope_type, "yarn") == 0) /* a tenth, for the loader multiplies by ten */
        put_f32(w, "rope.scaling.yarn_log_multiplier", 0.1 * config->rope_mscale_all_dim);
    return put_router(w, config);
}

static mica_status put_grouped(writer *w, const mica_config *config) {
    put_sizes(w, config);
    put_u32(w, "attention.head_count_kv", config->num_key_value_heads);
    put_u32(w, "attention.key_length", config->head_dim);
    put_u32(w, "attention.value_length", config->head_dim);
    put_u32(w, "rope.dimension_count", config->head_dim);
    put_rope_scaling(w, config);
    return MICA_OK;
}

/* DeepSeek-V4 has keys that nothing else of Mica reads: they are taken from config.json as they stand. */
static mica_status put_deepseek4_numbers(writer *w, const json_t *object, uint64_t layers) {
    static const struct {
        const char *key, *name;
        bool real;
    } rows[] = {{"sliding_window", "attention.sliding_window", false},
                {"index_topk", "attention.indexer.top_k", false},
                {"hc_sinkhorn_iters", "hyper_connection.sinkhorn_iterations", false},
                {"hc_eps", "hyper_connection.epsilon", true},
                {"compress_rope_theta", "attention.compress_rope_freq_base", true},
                {"swiglu_limit", "swiglu_clamp_exp", true},
                {"swiglu_limit", "swiglu_clamp_shexp", true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const json_t *value = json_object_get(object, rows[i].key);
        if (rows[i].real ? !json_is_number(value) : !json_is_integer(value) || json_integer_value(value) < 0)
            return mica_fail(w->error, MICA_BAD_INPUT, "%s: config.json: %s: expected a number, which GGUF needs, got %s",
                             w->model->source->path, rows[i].key, value ? "something else" : "none");
        if (!rows[i].real) {
            put_u32(w, rows[i].name, (uint64_t)json_integer_value(value));
        } else if (strncmp(rows[i].name, "swiglu", 6) == 0) {
            float *values = mica_calloc(layers, sizeof *values);
            for (uint64_t layer = 0; values && layer < layers; layer++)
                values[layer] = (float)json_number_value(value);
            if (!values)
                return mica_fail(w->error, MICA_NO_MEMORY, "out of memory for %s", rows[i].name);
            mica_gguf_add_array(w->out, key_of(w, rows[i].name), MICA_GGUF_FLOAT32, values, layers);
            mica_free(values);
        } else {
            put_f32(w, rows[i].name, json_number_value(value));
        }
    }
    return MICA_OK;
}

static mica_status put_deepseek4(writer *w, const mica_config *config) {
    char *bytes = NULL;
    uint64_t length = 0;
    json_t *object = NULL;
    put_sizes(w, config);
    put_u32(w, "attention.head_count_kv", config->num_key_value_heads ? config->num_key_value_heads : 1);
    put_u32(w, "attention.key_length", config->head_dim);
    put_u32(w, "attention.value_length", config->head_dim);
    put_u32(w, "attention.q_lora_rank", config->q_lora_rank);
    put_u32(w, "rope.dimension_count", config->qk_rope_head_dim);
    put_u32(w, "attention.output_group_count", config->o_groups);
    put_u32(w, "attention.output_lora_rank", config->o_lora_rank);
    put_u32(w, "attention.indexer.head_count", config->index_n_heads);
    put_u32(w, "attention.indexer.key_length", config->index_head_dim);
    put_u32(w, "hyper_connection.count", config->hc_mult);
    put_u32(w, "hash_layer_count", config->num_hash_layers);
    put_u32(w, "embedding_length_out", config->hidden_size * config->hc_mult);
    uint32_t ratios[sizeof config->compress_ratios / sizeof *config->compress_ratios];
    for (uint64_t i = 0; i < config->num_hidden_layers; i++)
        ratios[i] = (uint32_t)config->compress_ratios[i];
    mica_gguf_add_array(w->out, key_of(w, "attention.compress_ratios"), MICA_GGUF_UINT32, ratios, config->num_hidden_layers);
    put_rope_scaling(w, config);
    mica_status status = mica_tensor_source_load(w->model->source, MICA_CONFIG_NAME, MICA_CONFIG_BYTES_MAX, &bytes, &length, w->error);
    if (status == MICA_OK)
        status = mica_json_parse(MICA_CONFIG_NAME, bytes, length, &object, w->error);
    if (status == MICA_OK)
        status = put_deepseek4_numbers(w, object, config->num_hidden_layers);
    json_decref(object);
    mica_free(bytes);
    return status == MICA_OK ? put_router(w, config) : status;
}

mica_status mica_export_metadata(const mica_export_plan *plan, mica_gguf_metadata *out, mica_error *error) {
    static const struct {
        const char *architecture;
        mica_status (*put)(writer *w, const mica_config *config);
    } architectures[] = {
        {"deepseek2", put_deepseek2}, {"deepseek4", put_deepseek4}, {"llama", put_grouped}, {"qwen3", put_grouped}};
    writer w = {.out = out, .architecture = plan->architecture, .model = plan->model, .status = MICA_OK, .error = error};
    put_general(&w, plan, plan->vision_blocks ? "mmproj" : "model");
    if (plan->vision_blocks)
        return mica_export_vision_metadata(plan, out, error);
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        if (strcmp(architectures[i].architecture, plan->architecture) == 0) {
            const mica_status status = architectures[i].put(&w, &plan->model->config);
            if (status != MICA_OK)
                return status;
        }
    return w.status;
}
