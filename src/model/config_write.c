/* model/config_write.c: config.json of what a GGUF file's metadata said (config_gguf.c): the names and values that Hugging Face's code for
 * the family asks for. Families that GGUF holds under one name are told apart by what they compute. Refuses nothing.
 * Judged by tests/operations/test_export_back.c: read again, it says the same. */
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "model/config_gguf.h"

/* By the family of the GGUF's architecture. */
static const struct {
    const char *family, *model_type, *class_name;
} families[] = {{"deepseek_v3", "deepseek_v3", "DeepseekV3ForCausalLM"},
                {"deepseek_v2", "deepseek_v2", "DeepseekV2ForCausalLM"},
                {"llama", "llama", "LlamaForCausalLM"},
                {"qwen3", "qwen3", "Qwen3ForCausalLM"}};

static void put_sizes(mica_json_writer *writer, const mica_config *config) {
    mica_json_u64(writer, "vocab_size", config->vocab_size);
    mica_json_u64(writer, "hidden_size", config->hidden_size);
    mica_json_u64(writer, "intermediate_size", config->intermediate_size);
    mica_json_u64(writer, "num_hidden_layers", config->num_hidden_layers);
    mica_json_u64(writer, "num_attention_heads", config->num_attention_heads);
    mica_json_u64(writer, "max_position_embeddings", config->max_position_embeddings);
    mica_json_double(writer, "rms_norm_eps", config->rms_norm_eps);
    mica_json_string(writer, "hidden_act", config->hidden_act);
    mica_json_bool(writer, "attention_bias", config->attention_bias);
    mica_json_bool(writer, "tie_word_embeddings", config->tie_word_embeddings);
}

/* Queries, keys and values by way of a latent; experts. (Keys and values are of all heads there, whatever GGUF says of its one.) */
static void put_latent(mica_json_writer *writer, const mica_config *config) {
    mica_json_u64(writer, "num_key_value_heads", config->num_attention_heads);
    if (config->q_lora_rank > 0)
        mica_json_u64(writer, "q_lora_rank", config->q_lora_rank);
    else
        mica_json_null(writer, "q_lora_rank");
    mica_json_u64(writer, "kv_lora_rank", config->kv_lora_rank);
    mica_json_u64(writer, "qk_nope_head_dim", config->qk_nope_head_dim);
    mica_json_u64(writer, "qk_rope_head_dim", config->qk_rope_head_dim);
    mica_json_u64(writer, "v_head_dim", config->v_head_dim);
    mica_json_u64(writer, "n_routed_experts", config->n_routed_experts);
    mica_json_u64(writer, "n_shared_experts", config->n_shared_experts);
    mica_json_u64(writer, "num_experts_per_tok", config->num_experts_per_tok);
    mica_json_u64(writer, "moe_intermediate_size", config->moe_intermediate_size);
    mica_json_u64(writer, "first_k_dense_replace", config->first_k_dense_replace);
    mica_json_u64(writer, "moe_layer_freq", 1);
    mica_json_u64(writer, "n_group", config->n_group);
    mica_json_u64(writer, "topk_group", config->topk_group);
    mica_json_string(writer, "topk_method", config->topk_method);
    mica_json_string(writer, "scoring_func", config->scoring_func);
    mica_json_bool(writer, "norm_topk_prob", config->norm_topk_prob);
    mica_json_double(writer, "routed_scaling_factor", config->routed_scaling_factor);
    mica_json_u64(writer, "num_nextn_predict_layers", 0);
}

static void put_grouped(mica_json_writer *writer, const mica_config *config) {
    mica_json_u64(writer, "num_key_value_heads", config->num_key_value_heads);
    mica_json_u64(writer, "head_dim", config->head_dim);
    if (strcmp(config->architecture->family, "llama") == 0)
        mica_json_bool(writer, "mlp_bias", config->mlp_bias);
}

/* "type" as DeepSeek's code asks, "rope_type" as newer code does. */
static void put_rope(mica_json_writer *writer, const mica_config *config) {
    const bool latent = config->architecture->attention == MICA_ATTENTION_LATENT;
    mica_json_double(writer, "rope_theta", config->rope_theta);
    if (!*config->rope_type) {
        mica_json_null(writer, "rope_scaling");
        return;
    }
    mica_json_open_object(writer, "rope_scaling");
    mica_json_string(writer, "type", config->rope_type);
    mica_json_string(writer, "rope_type", config->rope_type);
    mica_json_double(writer, "factor", config->rope_factor);
    if (strcmp(config->rope_type, "linear") != 0)
        mica_json_u64(writer, "original_max_position_embeddings", config->rope_original_context);
    if (strcmp(config->rope_type, "yarn") == 0) {
        mica_json_double(writer, "beta_fast", config->rope_beta_fast);
        mica_json_double(writer, "beta_slow", config->rope_beta_slow);
    }
    if (strcmp(config->rope_type, "yarn") == 0 && latent) {
        mica_json_double(writer, "mscale", config->rope_mscale);
        mica_json_double(writer, "mscale_all_dim", config->rope_mscale_all_dim);
    }
    if (strcmp(config->rope_type, "llama3") == 0) {
        mica_json_double(writer, "low_freq_factor", config->rope_low_freq_factor);
        mica_json_double(writer, "high_freq_factor", config->rope_high_freq_factor);
    }
    mica_json_close_object(writer);
}

static void put_token_ids(mica_json_writer *writer, const mica_config *config) {
    if (config->bos_token_id >= 0)
        mica_json_u64(writer, "bos_token_id", (uint64_t)config->bos_token_id);
    if (config->eos_token_count == 1)
        mica_json_u64(writer, "eos_token_id", (uint64_t)config->eos_token_ids[0]);
    if (config->eos_token_count < 2)
        return;
    mica_json_open_row(writer, "eos_token_id");
    for (uint64_t i = 0; i < config->eos_token_count; i++)
        mica_json_u64(writer, NULL, (uint64_t)config->eos_token_ids[i]);
    mica_json_close_array(writer);
}

mica_status mica_config_write(const mica_config *config, mica_dtype dtype, char **json, uint64_t *length, mica_error *error) {
    mica_json_writer writer;
    size_t family = 0;
    while (family + 1 < sizeof families / sizeof *families && strcmp(families[family].family, config->architecture->family) != 0)
        family++;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_open_row(&writer, "architectures");
    mica_json_string(&writer, NULL, families[family].class_name);
    mica_json_close_array(&writer);
    mica_json_string(&writer, "model_type", families[family].model_type);
    put_sizes(&writer, config);
    if (config->architecture->attention == MICA_ATTENTION_LATENT)
        put_latent(&writer, config);
    else
        put_grouped(&writer, config);
    put_rope(&writer, config);
    put_token_ids(&writer, config);
    mica_json_string(&writer, "torch_dtype", dtype == MICA_F32 ? "float32" : dtype == MICA_F16 ? "float16" : "bfloat16");
    mica_json_close_object(&writer);
    *json = mica_json_finish(&writer, length);
    return *json ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for " MICA_CONFIG_NAME);
}
