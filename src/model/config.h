/* model/config.h: config.json as numbers that have been checked. Every refusal names config.json, the key, expected and got. */
#ifndef MICA_MODEL_CONFIG_H
#define MICA_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/architecture.h"

/* BLOCKS: ggml's, chosen tensor by tensor. */
typedef enum mica_quantisation {
    MICA_QUANTISATION_NONE, MICA_QUANTISATION_FP8, MICA_QUANTISATION_INT4, MICA_QUANTISATION_BLOCKS
} mica_quantisation;

#define MICA_EOS_MAX 8

/* Keys absent in a family are 0 (or as said). Names are those of config.json. */
typedef struct mica_config {
    const mica_architecture *architecture; /* by model_type, outer before text_config */
    char model_type[64];                   /* as written in the outer config */
    uint64_t hidden_size, intermediate_size, vocab_size;
    uint64_t num_hidden_layers, num_nextn_predict_layers; /* the latter 1 where absent */
    uint64_t num_attention_heads, num_key_value_heads, head_dim;
    bool tie_word_embeddings, attention_bias, mlp_bias;
    double rms_norm_eps;
    double latent_norm_eps; /* of the latents' norms: 1e-6 whatever rms_norm_eps says, as published code has it */
    char hidden_act[32];
    uint64_t max_position_embeddings; /* 0: not said */
    int64_t bos_token_id;             /* -1: none */
    int64_t eos_token_ids[MICA_EOS_MAX];
    uint64_t eos_token_count;
    /* mixture of experts; n_routed_experts == 0: a dense model */
    uint64_t n_routed_experts, n_shared_experts, num_experts_per_tok, moe_intermediate_size;
    uint64_t first_k_dense_replace, moe_layer_freq, n_group, topk_group, num_hash_layers;
    bool norm_topk_prob;
    double routed_scaling_factor;
    char scoring_func[32], topk_method[32];
    /* multi-head latent attention */
    uint64_t q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim; /* q_lora_rank 0: plain q_proj */
    bool split_kv_b; /* keys and values of a latent are two tensors: MICA_PART_K_B and V_B (GGUF) */
    /* DeepSeek-V4 */
    uint64_t o_groups, o_lora_rank, index_n_heads, index_head_dim, hc_mult;
    uint64_t compress_ratios[512], compress_ratio_count; /* [layer] */
    /* rope; type "" when nothing is scaled. What a type does not have is 0, what it leaves out is its modelling code's default. */
    double rope_theta, rope_factor;
    char rope_type[32];
    double rope_beta_fast, rope_beta_slow, rope_mscale, rope_mscale_all_dim, rope_attention_factor; /* yarn; the last 0: by mscale */
    double rope_low_freq_factor, rope_high_freq_factor;                                             /* llama3 */
    uint64_t rope_original_context; /* original_max_position_embeddings */
    bool rope_interleaved;          /* pairs (2i, 2i + 1), not (i, i + width / 2): as the weights are stored, so true of a llama's GGUF */
    /* quantization_config */
    mica_quantisation quantisation;
    uint64_t weight_block_rows, weight_block_columns; /* fp8 */
    uint64_t group_size;                              /* int4 */
} mica_config;

#define MICA_CONFIG_NAME "config.json"
#define MICA_CONFIG_BYTES_MAX ((uint64_t)16 << 20)

/* `name` is what messages call the file. */
mica_status mica_config_parse(const char *name, const char *json, uint64_t length, mica_config *config, mica_error *error) MICA_CHECKED;

/* True when `layer` (model numbering) has routed experts. */
bool mica_config_layer_is_moe(const mica_config *config, uint64_t layer);

#endif
