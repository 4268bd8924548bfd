/* model/config_gguf.c: the configuration that a GGUF file's metadata states, as the numbers of config.json: a table of keys with bounds,
 * then what ties them together. Types are those that llama.cpp's loader demands. Refuses architectures, gating functions and kinds of rope
 * scaling it does not know, and numbers that no model has. Judged by tests/model/test_model_gguf.c. */
#include "model/config_gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

#define ANY (MICA_ATTENTION_GROUPED | MICA_ATTENTION_LATENT)
#define GROUPED MICA_ATTENTION_GROUPED
#define LATENT MICA_ATTENTION_LATENT
#define KEY_BYTES 128

typedef struct gguf_reader {
    const mica_gguf *gguf;
    const char *architecture; /* "deepseek2" */
    mica_error *error;
} gguf_reader;

/* A key below the architecture's name: who needs it, who may have it, its bounds, its value where it is absent. */
static const struct {
    const char *name;
    size_t offset;
    unsigned required, optional; /* masks of mica_attention */
    uint64_t minimum, maximum, absent;
} integer_keys[] = {
#define KEY(name, field, required, optional, minimum, maximum, absent) \
    {name, offsetof(mica_config, field), required, optional, minimum, maximum, absent}
    KEY("block_count", num_hidden_layers, ANY, 0, 1, 4096, 0),
    KEY("context_length", max_position_embeddings, ANY, 0, 1, UINT32_MAX, 0),
    KEY("embedding_length", hidden_size, ANY, 0, 1, 1u << 20, 0),
    KEY("feed_forward_length", intermediate_size, ANY, 0, 1, 1u << 24, 0),
    KEY("attention.head_count", num_attention_heads, ANY, 0, 1, 1u << 16, 0),
    KEY("attention.head_count_kv", num_key_value_heads, 0, ANY, 1, 1u << 16, 0),
    KEY("attention.key_length", head_dim, 0, GROUPED, 1, 1u << 16, 0),
    KEY("vocab_size", vocab_size, 0, ANY, 1, 1u << 28, 0),
    KEY("leading_dense_block_count", first_k_dense_replace, 0, LATENT, 0, 4096, 0),
    KEY("attention.q_lora_rank", q_lora_rank, 0, LATENT, 0, 1u << 20, 0),
    KEY("attention.kv_lora_rank", kv_lora_rank, LATENT, 0, 1, 1u << 20, 0),
    KEY("rope.dimension_count", qk_rope_head_dim, LATENT, 0, 2, 1u << 16, 0),
    KEY("expert_feed_forward_length", moe_intermediate_size, LATENT, 0, 1, 1u << 24, 0),
    KEY("expert_count", n_routed_experts, LATENT, 0, 1, 1u << 16, 0),
    KEY("expert_used_count", num_experts_per_tok, LATENT, 0, 1, 1u << 16, 0),
    KEY("expert_shared_count", n_shared_experts, LATENT, 0, 0, 1024, 0),
    KEY("expert_group_count", n_group, 0, LATENT, 0, 1u << 16, 1),
    KEY("expert_group_used_count", topk_group, 0, LATENT, 0, 1u << 16, 1),
#undef KEY
};

static const char *full_key(const gguf_reader *reader, const char *name, char key[KEY_BYTES]) {
    snprintf(key, KEY_BYTES, "%s.%s", reader->architecture, name);
    return key;
}

static MICA_PRINTF(4, 5) mica_status refuse(const gguf_reader *reader, const char *name, const char *expected, const char *format, ...) {
    char got[128], key[KEY_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(got, sizeof got, format, arguments);
    va_end(arguments);
    return mica_fail(reader->error, MICA_BAD_INPUT, "%s: key %s: expected %s, got %s", reader->gguf->name, full_key(reader, name, key),
                     expected, got);
}

/* A u32, or (a number per layer) an array of one and the same. */
static mica_status read_u32(const gguf_reader *reader, const char *name, uint32_t *value) {
    char key[KEY_BYTES];
    const mica_gguf_entry *entry = mica_gguf_find(reader->gguf, full_key(reader, name, key));
    if (!entry || !entry->is_array || (entry->type != MICA_GGUF_UINT32 && entry->type != MICA_GGUF_INT32) || entry->count == 0)
        return mica_gguf_u32(reader->gguf, key, value, reader->error);
    int64_t first = mica_gguf_integer_at(entry, 0);
    for (uint64_t i = 0; i < entry->count; i++)
        if (mica_gguf_integer_at(entry, i) != first || first < 0)
            return refuse(reader, name, "one number for all layers", "%" PRId64 " in layer %" PRIu64, mica_gguf_integer_at(entry, i), i);
    *value = (uint32_t)first;
    return MICA_OK;
}

static bool has(const gguf_reader *reader, const char *name) {
    char key[KEY_BYTES];
    return mica_gguf_find(reader->gguf, full_key(reader, name, key)) != NULL;
}

static mica_status read_bounded(const gguf_reader *reader, const char *name, uint64_t minimum, uint64_t maximum, uint64_t *value) {
    uint32_t number = 0;
    mica_status status = read_u32(reader, name, &number);
    char expected[64];
    snprintf(expected, sizeof expected, "%" PRIu64 " to %" PRIu64, minimum, maximum);
    if (status == MICA_OK && (number < minimum || number > maximum))
        return refuse(reader, name, expected, "%" PRIu32, number);
    if (status == MICA_OK)
        *value = number;
    return status;
}

static mica_status read_integers(const gguf_reader *reader, mica_config *config) {
    unsigned attention = config->architecture->attention;
    mica_status status = MICA_OK;
    for (size_t i = 0; status == MICA_OK && i < sizeof integer_keys / sizeof *integer_keys; i++) {
        uint64_t *value = (uint64_t *)((char *)config + integer_keys[i].offset);
        if (!((integer_keys[i].required | integer_keys[i].optional) & attention))
            continue;
        *value = integer_keys[i].absent;
        if (integer_keys[i].required & attention || has(reader, integer_keys[i].name))
            status = read_bounded(reader, integer_keys[i].name, integer_keys[i].minimum, integer_keys[i].maximum, value);
    }
    return status;
}

/* The shortest decimal that is this float32: what the configuration said before it was rounded (2.827, not 2.82699990272522). */
static double shortest(float value) {
    double power = 1;
    for (int digits = 0; digits < 16; digits++, power *= 10) {
        double decimal = round((double)value * power) / power;
        if (decimal != 0 && (float)decimal == value)
            return decimal;
    }
    return (double)value;
}

/* A number from minimum on; absent: *value stays. */
static mica_status read_number(const gguf_reader *reader, const char *name, double minimum, double *value) {
    char key[KEY_BYTES], expected[64];
    float number = (float)*value;
    if (!has(reader, name))
        return MICA_OK;
    mica_status status = mica_gguf_f32(reader->gguf, full_key(reader, name, key), &number, reader->error);
    snprintf(expected, sizeof expected, "a finite number of at least %g", minimum);
    if (status == MICA_OK && !(isfinite(number) && (double)number >= minimum))
        return refuse(reader, name, expected, "%g", (double)number);
    if (status == MICA_OK)
        *value = shortest(number);
    return status;
}

static bool text_is(mica_gguf_string text, const char *word) {
    return text.length == strlen(word) && memcmp(text.bytes, word, text.length) == 0;
}

static mica_status read_rope(const gguf_reader *reader, mica_config *config) {
    char key[KEY_BYTES];
    mica_gguf_string type = {"none", 4};
    double multiplier = 0;
    config->rope_theta = 10000;
    mica_status status = read_number(reader, "rope.freq_base", 1e-30, &config->rope_theta);
    if (status == MICA_OK)
        status = mica_gguf_text_if_present(reader->gguf, full_key(reader, "rope.scaling.type", key), &type, reader->error);
    if (status != MICA_OK || text_is(type, "none"))
        return status;
    if (!text_is(type, "yarn") && !text_is(type, "linear"))
        return refuse(reader, "rope.scaling.type", "none, linear or yarn", "%.*s", type.length < 64 ? (int)type.length : 64, type.bytes);
    snprintf(config->rope_type, sizeof config->rope_type, "%.*s", (int)type.length, type.bytes);
    config->rope_factor = 1;
    config->rope_beta_fast = 32;
    config->rope_beta_slow = config->rope_mscale = 1;
    config->rope_original_context = config->max_position_embeddings;
    status = read_number(reader, "rope.scaling.factor", 1, &config->rope_factor);
    if (status == MICA_OK && has(reader, "rope.scaling.original_context_length"))
        status = read_bounded(reader, "rope.scaling.original_context_length", 1, UINT32_MAX, &config->rope_original_context);
    if (status == MICA_OK)
        status = read_number(reader, "rope.scaling.yarn_beta_fast", 0, &config->rope_beta_fast);
    if (status == MICA_OK)
        status = read_number(reader, "rope.scaling.yarn_beta_slow", 0, &config->rope_beta_slow);
    if (status == MICA_OK)
        status = read_number(reader, "rope.scaling.yarn_log_multiplier", 0, &multiplier);
    if (multiplier > 0) /* 0.1 times mscale_all_dim, which mscale equals in every model that is exported with it */
        config->rope_mscale = config->rope_mscale_all_dim = shortest((float)(multiplier * 10));
    return status;
}

/* The gate's function by its number, and how the experts are chosen by it. */
static mica_status read_router(const gguf_reader *reader, mica_config *config) {
    static const char *const functions[] = {"softmax", "softmax", "sigmoid"}; /* 0: absent */
    uint64_t function = 0;
    double scale = 1;
    char key[KEY_BYTES];
    mica_status status = has(reader, "expert_gating_func") ? read_bounded(reader, "expert_gating_func", 1, 2, &function) : MICA_OK;
    if (status == MICA_OK)
        status = mica_gguf_bool_if_present(reader->gguf, full_key(reader, "expert_weights_norm", key), &config->norm_topk_prob,
                                           reader->error);
    if (status == MICA_OK)
        status = read_number(reader, "expert_weights_scale", 0, &scale);
    config->routed_scaling_factor = scale > 0 ? scale : 1;
    config->n_group = config->n_group ? config->n_group : 1;
    config->topk_group = config->topk_group ? config->topk_group : 1;
    snprintf(config->scoring_func, sizeof config->scoring_func, "%s", functions[function]);
    snprintf(config->topk_method, sizeof config->topk_method, "%s",
             function == 2 ? "noaux_tc" : config->n_group > 1 ? "group_limited_greedy" : "greedy");
    return status;
}

static mica_status check_router(const gguf_reader *reader, const mica_config *config) {
    char expected[96];
    if (config->n_routed_experts % config->n_group)
        return refuse(reader, "expert_group_count", "a divisor of expert_count", "%" PRIu64, config->n_group);
    if (config->topk_group > config->n_group)
        return refuse(reader, "expert_group_used_count", "at most expert_group_count", "%" PRIu64, config->topk_group);
    uint64_t choice = config->topk_group * (config->n_routed_experts / config->n_group);
    snprintf(expected, sizeof expected, "at most the %" PRIu64 " experts to choose from", choice);
    if (config->num_experts_per_tok > choice)
        return refuse(reader, "expert_used_count", expected, "%" PRIu64, config->num_experts_per_tok);
    if (config->first_k_dense_replace > config->num_hidden_layers)
        return refuse(reader, "leading_dense_block_count", "at most block_count", "%" PRIu64, config->first_k_dense_replace);
    return MICA_OK;
}

/* Latent attention: keys and values in two tensors per head (with the widths in *_mla), or in one as in the checkpoint. */
static mica_status read_latent(const gguf_reader *reader, mica_config *config) {
    uint64_t key = 0, value = 0;
    config->split_kv_b = has(reader, "attention.key_length_mla") && has(reader, "attention.value_length_mla");
    const char *key_name = config->split_kv_b ? "attention.key_length_mla" : "attention.key_length";
    const char *value_name = config->split_kv_b ? "attention.value_length_mla" : "attention.value_length";
    mica_status status = read_bounded(reader, key_name, 1, 1u << 16, &key);
    if (status == MICA_OK)
        status = read_bounded(reader, value_name, 1, 1u << 16, &value);
    if (status == MICA_OK && config->qk_rope_head_dim % 2)
        return refuse(reader, "rope.dimension_count", "an even number", "%" PRIu64, config->qk_rope_head_dim);
    if (status == MICA_OK && key <= config->qk_rope_head_dim)
        return refuse(reader, key_name, "more than rope.dimension_count", "%" PRIu64, key);
    config->qk_nope_head_dim = key - config->qk_rope_head_dim;
    config->v_head_dim = value;
    config->moe_layer_freq = 1;
    if (status == MICA_OK)
        status = read_router(reader, config);
    return status == MICA_OK ? check_router(reader, config) : status;
}

static mica_status read_grouped(const gguf_reader *reader, mica_config *config) {
    uint64_t value = 0, rope = 0;
    if (has(reader, "expert_count")) {
        mica_status status = read_bounded(reader, "expert_count", 0, 0, &value);
        if (status != MICA_OK)
            return status;
    }
    if (!config->num_key_value_heads)
        config->num_key_value_heads = config->num_attention_heads;
    if (config->num_attention_heads % config->num_key_value_heads)
        return refuse(reader, "attention.head_count_kv", "a divisor of attention.head_count", "%" PRIu64, config->num_key_value_heads);
    if (!config->head_dim && config->hidden_size % config->num_attention_heads)
        return refuse(reader, "attention.head_count", "a divisor of embedding_length", "%" PRIu64, config->num_attention_heads);
    if (!config->head_dim)
        config->head_dim = config->hidden_size / config->num_attention_heads;
    value = rope = config->head_dim;
    mica_status status = has(reader, "attention.value_length") ? read_bounded(reader, "attention.value_length", 1, 1u << 16, &value)
                                                               : MICA_OK;
    if (status == MICA_OK && has(reader, "rope.dimension_count"))
        status = read_bounded(reader, "rope.dimension_count", 1, 1u << 16, &rope);
    if (status == MICA_OK && value != config->head_dim)
        return refuse(reader, "attention.value_length", "attention.key_length", "%" PRIu64, value);
    if (status == MICA_OK && (rope != config->head_dim || rope % 2))
        return refuse(reader, "rope.dimension_count", "the head's whole, even width", "%" PRIu64 " of %" PRIu64, rope, config->head_dim);
    return status;
}

static mica_status read_token_id(const gguf_reader *reader, const char *key, uint64_t vocabulary, int64_t *id) {
    uint32_t value = 0;
    if (!mica_gguf_find(reader->gguf, key))
        return MICA_OK;
    mica_status status = mica_gguf_u32(reader->gguf, key, &value, reader->error);
    if (status == MICA_OK && value >= vocabulary)
        return mica_fail(reader->error, MICA_BAD_INPUT, "%s: key %s: expected below %" PRIu64 " (the vocabulary), got %" PRIu32,
                         reader->gguf->name, key, vocabulary, value);
    *id = value;
    return status;
}

static mica_status read_tokens(const gguf_reader *reader, mica_config *config) {
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    const mica_gguf_entry *tokens = mica_gguf_find(reader->gguf, "tokenizer.ggml.tokens");
    if (!config->vocab_size && tokens && tokens->is_array && tokens->count <= 1u << 28)
        config->vocab_size = tokens->count;
    if (!config->vocab_size)
        return refuse(reader, "vocab_size", "a positive number, or tokenizer.ggml.tokens", "neither");
    config->bos_token_id = -1;
    mica_status status = read_token_id(reader, "tokenizer.ggml.bos_token_id", config->vocab_size, &config->bos_token_id);
    for (size_t i = 0; i < sizeof ends / sizeof *ends && status == MICA_OK; i++) {
        int64_t id = -1;
        status = read_token_id(reader, ends[i], config->vocab_size, &id);
        if (id >= 0)
            config->eos_token_ids[config->eos_token_count++] = id;
    }
    return status;
}

static mica_status read_all(gguf_reader *reader, mica_config *config) {
    mica_status status = read_integers(reader, config);
    config->rms_norm_eps = config->latent_norm_eps = 1e-6;
    config->routed_scaling_factor = 1;
    snprintf(config->hidden_act, sizeof config->hidden_act, "silu");
    if (status == MICA_OK && !has(reader, "attention.layer_norm_rms_epsilon"))
        status = refuse(reader, "attention.layer_norm_rms_epsilon", "f32", "absent");
    if (status == MICA_OK)
        status = read_number(reader, "attention.layer_norm_rms_epsilon", 1e-30, &config->rms_norm_eps);
    if (status == MICA_OK)
        status = config->architecture->attention == LATENT ? read_latent(reader, config) : read_grouped(reader, config);
    if (status == MICA_OK)
        status = read_rope(reader, config);
    config->rope_interleaved = config->architecture->interleaved;
    return status == MICA_OK ? read_tokens(reader, config) : status;
}

const mica_architecture *mica_architecture_of_gguf(const mica_gguf *gguf) {
    mica_gguf_string name;
    uint32_t function = 1;
    if (mica_gguf_text(gguf, "general.architecture", &name, NULL) != MICA_OK || name.length >= 64)
        return NULL;
    char text[64], key[KEY_BYTES];
    snprintf(text, sizeof text, "%.*s", (int)name.length, name.bytes);
    snprintf(key, sizeof key, "%s.expert_gating_func", text);
    if (mica_gguf_u32_if_present(gguf, key, &function, NULL) != MICA_OK)
        function = 1; /* refused later, where there is somebody to tell */
    return mica_architecture_find_gguf(text, function == 2);
}

mica_status mica_config_from_gguf(const mica_gguf *gguf, mica_config *config, mica_error *error) {
    mica_gguf_string name;
    mica_status status = mica_gguf_text(gguf, "general.architecture", &name, error);
    const mica_architecture *architecture = mica_architecture_of_gguf(gguf);
    if (status == MICA_OK && !architecture)
        return mica_fail(error, MICA_BAD_INPUT, "%s: key general.architecture: expected deepseek2, llama or qwen3, got %.*s", gguf->name,
                         name.length < 64 ? (int)name.length : 64, name.bytes);
    if (status != MICA_OK)
        return status;
    mica_config *fresh = mica_calloc(1, sizeof *fresh);
    if (!fresh)
        return mica_fail(error, MICA_NO_MEMORY, "%s: no memory for the configuration", gguf->name);
    gguf_reader reader = {gguf, architecture->model_type, error};
    fresh->architecture = architecture;
    snprintf(fresh->model_type, sizeof fresh->model_type, "%s", architecture->model_type);
    status = read_all(&reader, fresh);
    if (status == MICA_OK)
        *config = *fresh;
    mica_free(fresh);
    return status;
}
