/* model/config.c: config.json as numbers that have been checked: a table of keys with bounds, then what ties them together.
 * Refuses: absent, null and wrongly typed keys where a family needs them, numbers that no model has (before anything is allocated by them),
 * quantisation methods and rope types it does not know. quantization_config is model/config_quantisation.c, rope model/config_rope.c.
 * Judged by tests/model/test_config.c and test_bad_checkpoints.c. */
#include "model/config.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "model/config_reader.h"

#define ANY (MICA_ATTENTION_GROUPED | MICA_ATTENTION_LATENT | MICA_ATTENTION_COMPRESSED)
#define GROUPED MICA_ATTENTION_GROUPED
#define LATENT MICA_ATTENTION_LATENT
#define COMPRESSED MICA_ATTENTION_COMPRESSED
#define MIXTURE (LATENT | COMPRESSED)

/* An integer key: who needs it, who may have it, its bounds, and its value where it is absent or null. */
typedef struct integer_key {
    const char *name;
    size_t offset;
    unsigned required, optional; /* masks of mica_attention_kind */
    uint64_t minimum, maximum, absent;
} integer_key;

#define KEY(name, required, optional, minimum, maximum, absent) \
    { #name, offsetof(mica_config, name), required, optional, minimum, maximum, absent }
static const integer_key integer_keys[] = {
    KEY(hidden_size, ANY, 0, 1, 1u << 20, 0),
    KEY(num_hidden_layers, ANY, 0, 1, 4096, 0),
    KEY(vocab_size, ANY, 0, 1, 1u << 28, 0),
    KEY(num_attention_heads, ANY, 0, 1, 1u << 16, 0),
    KEY(intermediate_size, GROUPED | LATENT, 0, 1, 1u << 24, 0),
    KEY(num_key_value_heads, 0, ANY, 1, 1u << 16, 0),
    KEY(head_dim, COMPRESSED, GROUPED, 1, 1u << 16, 0),
    KEY(max_position_embeddings, 0, ANY, 1, UINT64_C(1) << 40, 0),
    KEY(num_nextn_predict_layers, 0, MIXTURE, 0, 4096, 1),
    KEY(n_routed_experts, MIXTURE, 0, 1, 1u << 16, 0),
    KEY(num_experts_per_tok, MIXTURE, 0, 1, 1u << 16, 0),
    KEY(moe_intermediate_size, MIXTURE, 0, 1, 1u << 24, 0),
    KEY(n_shared_experts, 0, MIXTURE, 0, 1024, 0),
    KEY(first_k_dense_replace, 0, LATENT, 0, 4096, 0),
    KEY(moe_layer_freq, 0, LATENT, 1, 4096, 1),
    KEY(n_group, 0, LATENT, 1, 1u << 16, 1),
    KEY(topk_group, 0, LATENT, 1, 1u << 16, 1),
    KEY(q_lora_rank, COMPRESSED, LATENT, 1, 1u << 20, 0),
    KEY(kv_lora_rank, LATENT, 0, 1, 1u << 20, 0),
    KEY(qk_nope_head_dim, LATENT, 0, 1, 1u << 16, 0),
    KEY(qk_rope_head_dim, MIXTURE, 0, 2, 1u << 16, 0),
    KEY(v_head_dim, LATENT, 0, 1, 1u << 16, 0),
    KEY(num_hash_layers, 0, COMPRESSED, 0, 4096, 0),
    KEY(o_groups, COMPRESSED, 0, 1, 1u << 16, 0),
    KEY(o_lora_rank, COMPRESSED, 0, 1, 1u << 20, 0),
    KEY(index_n_heads, COMPRESSED, LATENT, 1, 1u << 16, 0),
    KEY(index_head_dim, COMPRESSED, LATENT, 1, 1u << 16, 0),
    KEY(hc_mult, COMPRESSED, 0, 1, 1024, 0),
};

/* What published configurations of a family leave out, because the modelling code has it as a default. */
static const struct {
    const char *family, *key;
    uint64_t value;
} family_defaults[] = {
    {"gemma3", "vocab_size", 262208},
    {"gemma3", "num_attention_heads", 8},
    {"gemma3", "num_key_value_heads", 4},
    {"gemma3", "head_dim", 256},
};

/* Of the published configuration classes, for what a file leaves out. */
static const struct {
    const char *family, *scoring_func, *topk_method;
    bool norm_topk_prob;
    double routed_scaling_factor;
} router_defaults[] = {
    {"deepseek_v2", "softmax", "greedy", false, 1},
    {"deepseek_v3", "sigmoid", "noaux_tc", true, 2.5},
    {"deepseek_v4", "sqrtsoftplus", "noaux_tc", true, 1.5},
};

mica_status mica_config_refuse(const mica_config_reader *reader, const char *key, const json_t *value, const char *expected,
                               mica_error *error) {
    char got[224];
    return mica_fail(error, MICA_BAD_INPUT, "%s: %s%s: expected %s, got %s", reader->name, reader->scope, key, expected,
                     value ? mica_json_show(value, got, sizeof got) : "absent");
}

mica_status mica_config_integer(const mica_config_reader *reader, const json_t *object, const char *key, uint64_t minimum, uint64_t maximum,
                                uint64_t *value, mica_error *error) {
    const json_t *json = json_object_get(object, key);
    char expected[96];
    if (minimum == 0)
        snprintf(expected, sizeof expected, "an integer of at most %llu", (unsigned long long)maximum);
    else
        snprintf(expected, sizeof expected, "an integer from %llu to %llu", (unsigned long long)minimum, (unsigned long long)maximum);
    if (!json_is_integer(json) || json_integer_value(json) < 0)
        return mica_config_refuse(reader, key, json, expected, error);
    uint64_t number = (uint64_t)json_integer_value(json);
    if (number < minimum || number > maximum)
        return mica_config_refuse(reader, key, json, expected, error);
    *value = number;
    return MICA_OK;
}

bool mica_config_absent(const json_t *object, const char *key) {
    const json_t *json = json_object_get(object, key);
    return !json || json_is_null(json);
}

static bool family_default(const mica_architecture *architecture, const char *key, uint64_t *value) {
    for (size_t i = 0; i < sizeof family_defaults / sizeof *family_defaults; i++)
        if (strcmp(family_defaults[i].family, architecture->family) == 0 && strcmp(family_defaults[i].key, key) == 0) {
            *value = family_defaults[i].value;
            return true;
        }
    return false;
}

static mica_status read_integers(const mica_config_reader *reader, mica_config *config, mica_error *error) {
    unsigned attention = config->architecture->attention;
    for (size_t i = 0; i < sizeof integer_keys / sizeof *integer_keys; i++) {
        const integer_key *key = &integer_keys[i];
        uint64_t *value = (uint64_t *)((char *)config + key->offset);
        if (!((key->required | key->optional) & attention))
            continue;
        if (mica_config_absent(reader->object, key->name)) {
            if (family_default(config->architecture, key->name, value))
                continue;
            *value = key->absent;
            if (key->optional & attention)
                continue;
        }
        mica_status status = mica_config_integer(reader, reader->object, key->name, key->minimum, key->maximum, value, error);
        if (status != MICA_OK)
            return status;
    }
    return MICA_OK;
}

static mica_status read_boolean(const mica_config_reader *reader, const json_t *object, const char *key, bool *value, mica_error *error) {
    if (mica_config_absent(object, key))
        return MICA_OK;
    const json_t *json = json_object_get(object, key);
    if (!json_is_boolean(json))
        return mica_config_refuse(reader, key, json, "true or false", error);
    *value = json_is_true(json);
    return MICA_OK;
}

mica_status mica_config_positive(const mica_config_reader *reader, const json_t *object, const char *key, double *value,
                                 mica_error *error) {
    if (mica_config_absent(object, key))
        return MICA_OK;
    const json_t *json = json_object_get(object, key);
    double number = json_number_value(json);
    if (!json_is_number(json) || !(number > 0) || !isfinite(number))
        return mica_config_refuse(reader, key, json, "a positive number", error);
    *value = number;
    return MICA_OK;
}

static mica_status read_string(const mica_config_reader *reader, const char *key, char *value, size_t bytes, mica_error *error) {
    if (mica_config_absent(reader->object, key))
        return MICA_OK;
    const json_t *json = json_object_get(reader->object, key);
    if (!json_is_string(json) || json_string_length(json) == 0 || json_string_length(json) >= bytes)
        return mica_config_refuse(reader, key, json, "a short string", error);
    snprintf(value, bytes, "%s", json_string_value(json));
    return MICA_OK;
}

/* An id, or (of the end of a sequence) several; nested configurations say it inside, outside or not at all. */
static mica_status read_token_ids(const mica_config_reader *reader, const json_t *outer, const char *key, uint64_t vocabulary, int64_t *ids,
                                  uint64_t capacity, uint64_t *count, mica_error *error) {
    const json_t *value = json_object_get(mica_config_absent(reader->object, key) ? outer : reader->object, key);
    char expected[96];
    *count = 0;
    if (!value || json_is_null(value))
        return MICA_OK;
    snprintf(expected, sizeof expected, "%s of at most %llu (vocab_size - 1)", capacity > 1 ? "one to eight token ids" : "a token id",
             (unsigned long long)(vocabulary - 1));
    uint64_t given = json_is_array(value) ? json_array_size(value) : 1;
    if (given > capacity)
        return mica_config_refuse(reader, key, value, expected, error);
    for (uint64_t i = 0; i < given; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(id) || json_integer_value(id) < 0 || (uint64_t)json_integer_value(id) >= vocabulary)
            return mica_config_refuse(reader, key, value, expected, error);
        ids[(*count)++] = json_integer_value(id);
    }
    return MICA_OK;
}

static mica_status read_special_tokens(const mica_config_reader *reader, const json_t *outer, mica_config *config, mica_error *error) {
    uint64_t count;
    config->bos_token_id = -1;
    mica_status status = read_token_ids(reader, outer, "bos_token_id", config->vocab_size, &config->bos_token_id, 1, &count, error);
    if (status != MICA_OK)
        return status;
    return read_token_ids(reader, outer, "eos_token_id", config->vocab_size, config->eos_token_ids, MICA_EOS_MAX, &config->eos_token_count,
                          error);
}

static mica_status read_router(const mica_config_reader *reader, mica_config *config, mica_error *error) {
    config->routed_scaling_factor = 1;
    for (size_t i = 0; i < sizeof router_defaults / sizeof *router_defaults; i++)
        if (strcmp(router_defaults[i].family, config->architecture->family) == 0) {
            snprintf(config->scoring_func, sizeof config->scoring_func, "%s", router_defaults[i].scoring_func);
            snprintf(config->topk_method, sizeof config->topk_method, "%s", router_defaults[i].topk_method);
            config->norm_topk_prob = router_defaults[i].norm_topk_prob;
            config->routed_scaling_factor = router_defaults[i].routed_scaling_factor;
        }
    mica_status status = read_boolean(reader, reader->object, "norm_topk_prob", &config->norm_topk_prob, error);
    if (status == MICA_OK)
        status = mica_config_positive(reader, reader->object, "routed_scaling_factor", &config->routed_scaling_factor, error);
    if (!config->architecture->mixture)
        return status;
    if (status == MICA_OK)
        status = read_string(reader, "scoring_func", config->scoring_func, sizeof config->scoring_func, error);
    if (status == MICA_OK)
        status = read_string(reader, "topk_method", config->topk_method, sizeof config->topk_method, error);
    return status;
}

static mica_status read_others(const mica_config_reader *reader, const json_t *outer, mica_config *config, mica_error *error) {
    const json_t *object = reader->object;
    mica_status status = read_boolean(reader, object, "attention_bias", &config->attention_bias, error);
    if (status == MICA_OK)
        status = read_boolean(reader, object, "mlp_bias", &config->mlp_bias, error);
    config->tie_word_embeddings = config->architecture->tied;
    if (status == MICA_OK) /* nested configurations say it inside, outside or not at all */
        status = read_boolean(reader, mica_config_absent(object, "tie_word_embeddings") ? outer : object, "tie_word_embeddings",
                              &config->tie_word_embeddings, error);
    config->rms_norm_eps = config->latent_norm_eps = 1e-6;
    snprintf(config->hidden_act, sizeof config->hidden_act, "silu");
    if (status == MICA_OK)
        status = read_string(reader, "hidden_act", config->hidden_act, sizeof config->hidden_act, error);
    if (status == MICA_OK)
        status = read_special_tokens(reader, outer, config, error);
    if (status == MICA_OK)
        status = mica_config_positive(reader, object, "rms_norm_eps", &config->rms_norm_eps, error);
    return status == MICA_OK ? read_router(reader, config, error) : status;
}

/* compress_ratios has an entry per layer, and may have more (for the prediction layers, which are ignored). */
static mica_status read_compress_ratios(const mica_config_reader *reader, mica_config *config, mica_error *error) {
    static const uint64_t capacity = sizeof config->compress_ratios / sizeof *config->compress_ratios;
    if (config->architecture->attention != COMPRESSED)
        return MICA_OK;
    const json_t *array = json_object_get(reader->object, "compress_ratios");
    uint64_t count = json_array_size(array);
    char expected[96];
    snprintf(expected, sizeof expected, "an array of %llu to %llu integers, one per layer", (unsigned long long)config->num_hidden_layers,
             (unsigned long long)capacity);
    if (!json_is_array(array) || count < config->num_hidden_layers || count > capacity)
        return mica_config_refuse(reader, "compress_ratios", array, expected, error);
    for (uint64_t i = 0; i < count; i++) {
        const json_t *ratio = json_array_get(array, i);
        if (!json_is_integer(ratio) || json_integer_value(ratio) < 0 || json_integer_value(ratio) > 1 << 20)
            return mica_config_refuse(reader, "compress_ratios", array, expected, error);
        config->compress_ratios[i] = (uint64_t)json_integer_value(ratio);
    }
    config->compress_ratio_count = count;
    return MICA_OK;
}

/* ---- what ties keys together */

static mica_status check_mixture(const mica_config_reader *reader, const mica_config *config, mica_error *error) {
    char expected[128];
    const json_t *object = reader->object;
    if (config->num_experts_per_tok > config->n_routed_experts) {
        snprintf(expected, sizeof expected, "at most n_routed_experts (%llu)", (unsigned long long)config->n_routed_experts);
        return mica_config_refuse(reader, "num_experts_per_tok", json_object_get(object, "num_experts_per_tok"), expected, error);
    }
    if (config->n_group && config->n_routed_experts % config->n_group) {
        snprintf(expected, sizeof expected, "a divisor of n_routed_experts (%llu)", (unsigned long long)config->n_routed_experts);
        return mica_config_refuse(reader, "n_group", json_object_get(object, "n_group"), expected, error);
    }
    if (config->topk_group > config->n_group) {
        snprintf(expected, sizeof expected, "at most n_group (%llu)", (unsigned long long)config->n_group);
        return mica_config_refuse(reader, "topk_group", json_object_get(object, "topk_group"), expected, error);
    }
    if (config->n_group && config->num_experts_per_tok > config->topk_group * (config->n_routed_experts / config->n_group)) {
        snprintf(expected, sizeof expected, "at most the %llu experts of topk_group groups",
                 (unsigned long long)(config->topk_group * (config->n_routed_experts / config->n_group)));
        return mica_config_refuse(reader, "num_experts_per_tok", json_object_get(object, "num_experts_per_tok"), expected, error);
    }
    if (config->first_k_dense_replace > config->num_hidden_layers) {
        snprintf(expected, sizeof expected, "at most num_hidden_layers (%llu)", (unsigned long long)config->num_hidden_layers);
        return mica_config_refuse(reader, "first_k_dense_replace", json_object_get(object, "first_k_dense_replace"), expected, error);
    }
    if (config->qk_rope_head_dim % 2)
        return mica_config_refuse(reader, "qk_rope_head_dim", json_object_get(object, "qk_rope_head_dim"), "an even number", error);
    if (config->o_groups && config->num_attention_heads * config->head_dim % config->o_groups)
        return mica_config_refuse(reader, "o_groups", json_object_get(object, "o_groups"), "a divisor of num_attention_heads x head_dim",
                                  error);
    if (config->index_n_heads && !config->index_head_dim)
        return mica_config_refuse(reader, "index_head_dim", json_object_get(object, "index_head_dim"),
                                  "a positive integer beside index_n_heads", error);
    return MICA_OK;
}

static mica_status check_grouped(const mica_config_reader *reader, mica_config *config, mica_error *error) {
    const json_t *object = reader->object;
    if (!config->num_key_value_heads)
        config->num_key_value_heads = config->num_attention_heads;
    if (config->num_attention_heads % config->num_key_value_heads)
        return mica_config_refuse(reader, "num_key_value_heads", json_object_get(object, "num_key_value_heads"),
                                  "a divisor of num_attention_heads", error);
    if (!config->head_dim && config->hidden_size % config->num_attention_heads)
        return mica_config_refuse(reader, "num_attention_heads", json_object_get(object, "num_attention_heads"),
                                  "a divisor of hidden_size (there is no head_dim)", error);
    if (!config->head_dim)
        config->head_dim = config->hidden_size / config->num_attention_heads;
    if (config->head_dim % 2)
        return mica_config_refuse(reader, "head_dim", json_object_get(object, "head_dim"), "an even number", error);
    return MICA_OK;
}

static mica_status find_architecture(mica_config_reader *reader, const json_t *outer, mica_config *config, mica_error *error) {
    const json_t *type = json_object_get(outer, "model_type");
    if (!json_is_string(type))
        return mica_config_refuse(reader, "model_type", type, "a string", error);
    config->architecture = mica_architecture_find(json_string_value(type));
    if (!config->architecture) {
        char expected[512] = "one of";
        const mica_architecture *known;
        for (uint64_t i = 0; (known = mica_architecture_at(i)) != NULL; i++) {
            size_t length = strlen(expected);
            snprintf(expected + length, sizeof expected - length, "%s %s", i ? "," : "", known->model_type);
        }
        return mica_config_refuse(reader, "model_type", type, expected, error);
    }
    snprintf(config->model_type, sizeof config->model_type, "%s", config->architecture->model_type);
    if (!config->architecture->text_config)
        return MICA_OK;
    reader->object = json_object_get(outer, "text_config");
    if (!json_is_object(reader->object))
        return mica_config_refuse(reader, "text_config", reader->object, "an object", error);
    reader->scope = "text_config.";
    return MICA_OK;
}

static mica_status read_config(const char *name, const json_t *outer, mica_config *config, mica_error *error) {
    mica_config_reader reader = {name, "", outer};
    mica_status status = find_architecture(&reader, outer, config, error);
    if (status == MICA_OK)
        status = read_integers(&reader, config, error);
    if (status == MICA_OK)
        status = read_others(&reader, outer, config, error);
    if (status == MICA_OK)
        status = read_compress_ratios(&reader, config, error);
    if (status == MICA_OK)
        status = mica_config_read_rope(&reader, config, error);
    if (status == MICA_OK)
        status = config->architecture->mixture ? check_mixture(&reader, config, error) : check_grouped(&reader, config, error);
    if (status == MICA_OK && mica_config_absent(reader.object, "quantization_config")) { /* K2.5 has it inside and outside */
        reader.object = outer;
        reader.scope = "";
    }
    return status != MICA_OK ? status : mica_config_read_quantisation(&reader, config, error);
}

mica_status mica_config_parse(const char *name, const char *json, uint64_t length, mica_config *config, mica_error *error) {
    json_t *object = NULL;
    mica_status status = mica_json_parse(name, json, length, &object, error);
    if (status != MICA_OK)
        return status;
    mica_config *fresh = mica_calloc(1, sizeof *fresh);
    if (fresh)
        status = read_config(name, object, fresh, error);
    else
        status = mica_fail(error, MICA_NO_MEMORY, "%s: no memory for the configuration", name);
    if (status == MICA_OK)
        *config = *fresh;
    mica_free(fresh);
    json_decref(object);
    return status;
}

bool mica_config_layer_is_moe(const mica_config *config, uint64_t layer) {
    if (!config->n_routed_experts || layer < config->first_k_dense_replace)
        return false;
    return config->moe_layer_freq < 2 || layer % config->moe_layer_freq == 0;
}
