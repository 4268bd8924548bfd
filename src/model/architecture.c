/* model/architecture.c: the tables of the families: one row per tensor name, its shape as functions of the configuration.
 * Owns: names, shapes, which tensors a layer has, what is ignored and why. Refuses nothing: model.c compares and says so.
 * Sources: the published checkpoints and their modelling code. Judged by tests/model/test_model.c. */
#include "model/architecture.h"

#include <stddef.h>
#include <string.h>

#include "model/config.h"

/* ---- dimensions: each is one line over the configuration */

#define DIMENSION(name, expression)                                         \
    static uint64_t name(const mica_config *config, uint64_t layer) {       \
        (void)layer;                                                        \
        return expression;                                                  \
    }

DIMENSION(hidden, config->hidden_size)
DIMENSION(vocabulary, config->vocab_size)
DIMENSION(dense_width, config->intermediate_size)
DIMENSION(expert_width, config->moe_intermediate_size)
DIMENSION(shared_width, config->n_shared_experts *config->moe_intermediate_size)
DIMENSION(experts, config->n_routed_experts)
DIMENSION(top_k, config->num_experts_per_tok)
DIMENSION(heads, config->num_attention_heads)
DIMENSION(head_width, config->head_dim)
DIMENSION(query_width, config->num_attention_heads *config->head_dim)
DIMENSION(key_value_width, config->num_key_value_heads *config->head_dim)
/* multi-head latent attention */
DIMENSION(query_rank, config->q_lora_rank)
DIMENSION(latent_rank, config->kv_lora_rank)
DIMENSION(latent_query_width, config->num_attention_heads *(config->qk_nope_head_dim + config->qk_rope_head_dim))
DIMENSION(latent_with_rope, config->kv_lora_rank + config->qk_rope_head_dim)
DIMENSION(latent_key_value_width, config->num_attention_heads *(config->qk_nope_head_dim + config->v_head_dim))
DIMENSION(latent_value_width, config->num_attention_heads *config->v_head_dim)
DIMENSION(nope_width, config->qk_nope_head_dim)
DIMENSION(value_width, config->v_head_dim)
DIMENSION(half_head_width, config->head_dim / 2)
/* sparse attention's indexer (DeepSeek-V3.2, V4) */
DIMENSION(index_heads, config->index_n_heads)
DIMENSION(index_width, config->index_head_dim)
DIMENSION(index_query_width, config->index_n_heads *config->index_head_dim)
/* DeepSeek-V4: grouped output, compressors (overlapping, of double width, at ratio 4), hyper-connections of hc_mult streams */
DIMENSION(output_rank, config->o_groups *config->o_lora_rank)
DIMENSION(output_group_width, config->num_attention_heads *config->head_dim / config->o_groups)
DIMENSION(compress_ratio, config->compress_ratios[layer])
DIMENSION(compressed_width, config->head_dim *(config->compress_ratios[layer] == 4 ? 2 : 1))
DIMENSION(compressed_index_width, config->index_head_dim * 2)
DIMENSION(streams, config->hc_mult)
DIMENSION(stream_mixes, config->hc_mult *(2 + config->hc_mult))
DIMENSION(stream_width, config->hc_mult *config->hidden_size)
DIMENSION(three, config ? 3 : 0)
DIMENSION(one, config ? 1 : 0)

/* ---- presence */

#define PRESENCE(name, expression)                                          \
    static mica_need name(const mica_config *config, uint64_t layer) {      \
        (void)layer;                                                        \
        return (expression) ? MICA_NEED_REQUIRED : MICA_NEED_NONE;          \
    }

PRESENCE(in_moe, mica_config_layer_is_moe(config, layer))
PRESENCE(in_dense, !mica_config_layer_is_moe(config, layer))
PRESENCE(with_shared, mica_config_layer_is_moe(config, layer) && config->n_shared_experts > 0)
PRESENCE(with_query_rank, config->q_lora_rank > 0)
PRESENCE(without_query_rank, config->q_lora_rank == 0)
PRESENCE(with_attention_bias, config->attention_bias)
PRESENCE(with_query_rank_bias, config->attention_bias && config->q_lora_rank > 0)
PRESENCE(with_mlp_bias, config->mlp_bias)
PRESENCE(with_split_kv_b, config->split_kv_b)
PRESENCE(with_index, config->index_n_heads > 0)
PRESENCE(hashed, layer < config->num_hash_layers)
PRESENCE(not_hashed, layer >= config->num_hash_layers)
PRESENCE(compressed, config->compress_ratios[layer] > 0)
PRESENCE(compressed_with_index, config->compress_ratios[layer] == 4)

static mica_need unless_tied(const mica_config *config, uint64_t layer) {
    (void)layer;
    return config->tie_word_embeddings ? MICA_NEED_OPTIONAL : MICA_NEED_REQUIRED;
}

static mica_need may_be(const mica_config *config, uint64_t layer) {
    (void)config;
    (void)layer;
    return MICA_NEED_OPTIONAL;
}

static mica_need may_be_in_moe(const mica_config *config, uint64_t layer) {
    return mica_config_layer_is_moe(config, layer) ? MICA_NEED_OPTIONAL : MICA_NEED_NONE;
}

/* Some files have it beside its two halves. */
static mica_need unless_split_kv_b(const mica_config *config, uint64_t layer) {
    (void)layer;
    return config->split_kv_b ? MICA_NEED_OPTIONAL : MICA_NEED_REQUIRED;
}

/* Only the auxiliary-loss-free router has the bias; DeepSeek-V2's has none. */
static mica_need with_router_bias(const mica_config *config, uint64_t layer) {
    if (!mica_config_layer_is_moe(config, layer))
        return MICA_NEED_NONE;
    return strcmp(config->topk_method, "noaux_tc") == 0 ? MICA_NEED_REQUIRED : MICA_NEED_OPTIONAL;
}

/* ---- rows */

#define ROW(pattern, role, rows, columns, need) {pattern, MICA_ROLE_##role, MICA_GATE, MICA_PART_NONE, {rows, columns}, need, NULL}
#define PART(pattern, role, part, rows, columns, need) {pattern, MICA_ROLE_##role, MICA_GATE, MICA_PART_##part, {rows, columns}, need, NULL}
#define PROJECTION(pattern, role, projection, rows, columns, need) \
    {pattern, MICA_ROLE_##role, MICA_##projection, MICA_PART_NONE, {rows, columns}, need, NULL}
#define LAYER "model.layers.{L}."
#define END {NULL, MICA_ROLE_OTHER, MICA_GATE, MICA_PART_NONE, {NULL, NULL}, NULL, NULL}

#define MODEL_ROWS                                                                  \
    ROW("model.embed_tokens.weight", EMBEDDING, vocabulary, hidden, NULL),          \
    ROW("model.norm.weight", FINAL_NORM, hidden, NULL, NULL),                       \
    ROW("lm_head.weight", HEAD, vocabulary, hidden, unless_tied),                   \
    PART(LAYER "input_layernorm.weight", NORM, INPUT_NORM, hidden, NULL, NULL),                  \
    PART(LAYER "post_attention_layernorm.weight", NORM, POST_NORM, hidden, NULL, NULL)

static const mica_tensor_row deepseek_v3_rows[] = {
    MODEL_ROWS,
    PART(LAYER "self_attn.q_proj.weight", ATTENTION, Q, latent_query_width, hidden, without_query_rank),
    PART(LAYER "self_attn.q_a_proj.weight", ATTENTION, Q_A, query_rank, hidden, with_query_rank),
    PART(LAYER "self_attn.q_a_proj.bias", ATTENTION, Q_A_BIAS, query_rank, NULL, with_query_rank_bias),
    PART(LAYER "self_attn.q_a_layernorm.weight", NORM, Q_A_NORM, query_rank, NULL, with_query_rank),
    PART(LAYER "self_attn.q_b_proj.weight", ATTENTION, Q_B, latent_query_width, query_rank, with_query_rank),
    PART(LAYER "self_attn.kv_a_proj_with_mqa.weight", ATTENTION, KV_A, latent_with_rope, hidden, NULL),
    PART(LAYER "self_attn.kv_a_proj_with_mqa.bias", ATTENTION, KV_A_BIAS, latent_with_rope, NULL, with_attention_bias),
    PART(LAYER "self_attn.kv_a_layernorm.weight", NORM, KV_A_NORM, latent_rank, NULL, NULL),
    PART(LAYER "self_attn.kv_b_proj.weight", ATTENTION, KV_B, latent_key_value_width, latent_rank, NULL),
    PART(LAYER "self_attn.o_proj.weight", ATTENTION, O, hidden, latent_value_width, NULL),
    PART(LAYER "self_attn.o_proj.bias", ATTENTION, O_BIAS, hidden, NULL, with_attention_bias),
    ROW(LAYER "self_attn.indexer.wq_b.weight", ATTENTION, index_query_width, query_rank, with_index),
    ROW(LAYER "self_attn.indexer.wk.weight", ATTENTION, index_width, hidden, with_index),
    ROW(LAYER "self_attn.indexer.k_norm.weight", NORM, index_width, NULL, with_index),
    ROW(LAYER "self_attn.indexer.k_norm.bias", NORM, index_width, NULL, with_index),
    ROW(LAYER "self_attn.indexer.weights_proj.weight", ATTENTION, index_heads, hidden, with_index),
    PROJECTION(LAYER "mlp.gate_proj.weight", DENSE, GATE, dense_width, hidden, in_dense),
    PROJECTION(LAYER "mlp.up_proj.weight", DENSE, UP, dense_width, hidden, in_dense),
    PROJECTION(LAYER "mlp.down_proj.weight", DENSE, DOWN, hidden, dense_width, in_dense),
    ROW(LAYER "mlp.gate.weight", ROUTER, experts, hidden, in_moe),
    ROW(LAYER "mlp.gate.e_score_correction_bias", ROUTER_BIAS, experts, NULL, with_router_bias),
    PROJECTION(LAYER "mlp.shared_experts.gate_proj.weight", SHARED_EXPERT, GATE, shared_width, hidden, with_shared),
    PROJECTION(LAYER "mlp.shared_experts.up_proj.weight", SHARED_EXPERT, UP, shared_width, hidden, with_shared),
    PROJECTION(LAYER "mlp.shared_experts.down_proj.weight", SHARED_EXPERT, DOWN, hidden, shared_width, with_shared),
    PROJECTION(LAYER "mlp.experts.{E}.gate_proj.weight", EXPERT, GATE, expert_width, hidden, in_moe),
    PROJECTION(LAYER "mlp.experts.{E}.up_proj.weight", EXPERT, UP, expert_width, hidden, in_moe),
    PROJECTION(LAYER "mlp.experts.{E}.down_proj.weight", EXPERT, DOWN, hidden, expert_width, in_moe),
    END,
};

#define V4 "layers.{L}."
static const mica_tensor_row deepseek_v4_rows[] = {
    ROW("embed.weight", EMBEDDING, vocabulary, hidden, NULL),
    ROW("norm.weight", FINAL_NORM, hidden, NULL, NULL),
    ROW("head.weight", HEAD, vocabulary, hidden, unless_tied),
    ROW("hc_head_fn", OTHER, streams, stream_width, NULL),
    ROW("hc_head_base", OTHER, streams, NULL, NULL),
    ROW("hc_head_scale", OTHER, one, NULL, NULL),
    ROW(V4 "attn_norm.weight", NORM, hidden, NULL, NULL),
    ROW(V4 "ffn_norm.weight", NORM, hidden, NULL, NULL),
    ROW(V4 "hc_attn_fn", OTHER, stream_mixes, stream_width, NULL),
    ROW(V4 "hc_attn_base", OTHER, stream_mixes, NULL, NULL),
    ROW(V4 "hc_attn_scale", OTHER, three, NULL, NULL),
    ROW(V4 "hc_ffn_fn", OTHER, stream_mixes, stream_width, NULL),
    ROW(V4 "hc_ffn_base", OTHER, stream_mixes, NULL, NULL),
    ROW(V4 "hc_ffn_scale", OTHER, three, NULL, NULL),
    ROW(V4 "attn.attn_sink", ATTENTION, heads, NULL, NULL),
    ROW(V4 "attn.wq_a.weight", ATTENTION, query_rank, hidden, NULL),
    ROW(V4 "attn.q_norm.weight", NORM, query_rank, NULL, NULL),
    ROW(V4 "attn.wq_b.weight", ATTENTION, query_width, query_rank, NULL),
    ROW(V4 "attn.wkv.weight", ATTENTION, head_width, hidden, NULL),
    ROW(V4 "attn.kv_norm.weight", NORM, head_width, NULL, NULL),
    ROW(V4 "attn.wo_a.weight", ATTENTION, output_rank, output_group_width, NULL),
    ROW(V4 "attn.wo_b.weight", ATTENTION, hidden, output_rank, NULL),
    ROW(V4 "attn.compressor.ape", ATTENTION, compress_ratio, compressed_width, compressed),
    ROW(V4 "attn.compressor.wkv.weight", ATTENTION, compressed_width, hidden, compressed),
    ROW(V4 "attn.compressor.wgate.weight", ATTENTION, compressed_width, hidden, compressed),
    ROW(V4 "attn.compressor.norm.weight", NORM, head_width, NULL, compressed),
    ROW(V4 "attn.indexer.wq_b.weight", ATTENTION, index_query_width, query_rank, compressed_with_index),
    ROW(V4 "attn.indexer.weights_proj.weight", ATTENTION, index_heads, hidden, compressed_with_index),
    ROW(V4 "attn.indexer.compressor.ape", ATTENTION, compress_ratio, compressed_index_width, compressed_with_index),
    ROW(V4 "attn.indexer.compressor.wkv.weight", ATTENTION, compressed_index_width, hidden, compressed_with_index),
    ROW(V4 "attn.indexer.compressor.wgate.weight", ATTENTION, compressed_index_width, hidden, compressed_with_index),
    ROW(V4 "attn.indexer.compressor.norm.weight", NORM, index_width, NULL, compressed_with_index),
    ROW(V4 "ffn.gate.weight", ROUTER, experts, hidden, NULL),
    ROW(V4 "ffn.gate.bias", ROUTER_BIAS, experts, NULL, not_hashed),
    ROW(V4 "ffn.gate.tid2eid", HASH_TABLE, vocabulary, top_k, hashed),
    PROJECTION(V4 "ffn.shared_experts.w1.weight", SHARED_EXPERT, GATE, shared_width, hidden, with_shared),
    PROJECTION(V4 "ffn.shared_experts.w3.weight", SHARED_EXPERT, UP, shared_width, hidden, with_shared),
    PROJECTION(V4 "ffn.shared_experts.w2.weight", SHARED_EXPERT, DOWN, hidden, shared_width, with_shared),
    PROJECTION(V4 "ffn.experts.{E}.w1.weight", EXPERT, GATE, expert_width, hidden, NULL),
    PROJECTION(V4 "ffn.experts.{E}.w3.weight", EXPERT, UP, expert_width, hidden, NULL),
    PROJECTION(V4 "ffn.experts.{E}.w2.weight", EXPERT, DOWN, hidden, expert_width, NULL),
    END,
};

#define DENSE_ROWS                                                                                  \
    MODEL_ROWS,                                                                                     \
    PART(LAYER "self_attn.q_proj.weight", ATTENTION, Q, query_width, hidden, NULL),                     \
    PART(LAYER "self_attn.k_proj.weight", ATTENTION, K, key_value_width, hidden, NULL),                 \
    PART(LAYER "self_attn.v_proj.weight", ATTENTION, V, key_value_width, hidden, NULL),                 \
    PART(LAYER "self_attn.o_proj.weight", ATTENTION, O, hidden, query_width, NULL),                     \
    PART(LAYER "self_attn.q_proj.bias", ATTENTION, Q_BIAS, query_width, NULL, with_attention_bias),          \
    PART(LAYER "self_attn.k_proj.bias", ATTENTION, K_BIAS, key_value_width, NULL, with_attention_bias),      \
    PART(LAYER "self_attn.v_proj.bias", ATTENTION, V_BIAS, key_value_width, NULL, with_attention_bias),      \
    PART(LAYER "self_attn.o_proj.bias", ATTENTION, O_BIAS, hidden, NULL, with_attention_bias),               \
    PROJECTION(LAYER "mlp.gate_proj.weight", DENSE, GATE, dense_width, hidden, NULL),               \
    PROJECTION(LAYER "mlp.up_proj.weight", DENSE, UP, dense_width, hidden, NULL),                   \
    PROJECTION(LAYER "mlp.down_proj.weight", DENSE, DOWN, hidden, dense_width, NULL),               \
    PART(LAYER "mlp.gate_proj.bias", OTHER, GATE_BIAS, dense_width, NULL, with_mlp_bias),                       \
    PART(LAYER "mlp.up_proj.bias", OTHER, UP_BIAS, dense_width, NULL, with_mlp_bias),                         \
    PART(LAYER "mlp.down_proj.bias", OTHER, DOWN_BIAS, hidden, NULL, with_mlp_bias)
#define HEAD_NORM_ROWS                                                      \
    PART(LAYER "self_attn.q_norm.weight", NORM, Q_NORM, head_width, NULL, NULL),     \
    PART(LAYER "self_attn.k_norm.weight", NORM, K_NORM, head_width, NULL, NULL)
#define FEEDFORWARD_NORM_ROWS                                               \
    ROW(LAYER "pre_feedforward_layernorm.weight", NORM, hidden, NULL, NULL), \
    ROW(LAYER "post_feedforward_layernorm.weight", NORM, hidden, NULL, NULL)

static const mica_tensor_row llama_rows[] = {DENSE_ROWS, END};
static const mica_tensor_row qwen3_rows[] = {DENSE_ROWS, HEAD_NORM_ROWS, END};
static const mica_tensor_row gemma2_rows[] = {DENSE_ROWS, FEEDFORWARD_NORM_ROWS, END};
static const mica_tensor_row gemma3_rows[] = {DENSE_ROWS, FEEDFORWARD_NORM_ROWS, HEAD_NORM_ROWS, END};

/* ---- GGUF: names of their own; experts are slices; llama.cpp's conversion is in docs/formats.md */

#define BLOCK "blk.{L}."
#define HEADS(pattern, part, heads, rows, columns, need) \
    {pattern, MICA_ROLE_ATTENTION, MICA_GATE, MICA_PART_##part, {heads, rows, columns}, need, NULL}
#define HALF(pattern, projection) \
    {pattern, MICA_ROLE_EXPERT, MICA_##projection, MICA_PART_NONE, {expert_width, hidden}, in_moe, BLOCK "ffn_gate_up_exps.weight[{E}]"}
#define GGUF_ROWS                                                              \
    ROW("token_embd.weight", EMBEDDING, vocabulary, hidden, NULL),             \
    ROW("output_norm.weight", FINAL_NORM, hidden, NULL, NULL),                 \
    ROW("output.weight", HEAD, vocabulary, hidden, may_be),                    \
    PART(BLOCK "attn_norm.weight", NORM, INPUT_NORM, hidden, NULL, NULL),      \
    PART(BLOCK "ffn_norm.weight", NORM, POST_NORM, hidden, NULL, NULL)

static const mica_tensor_row gguf_deepseek2_rows[] = {
    GGUF_ROWS,
    PART(BLOCK "attn_q.weight", ATTENTION, Q, latent_query_width, hidden, without_query_rank),
    PART(BLOCK "attn_q_a.weight", ATTENTION, Q_A, query_rank, hidden, with_query_rank),
    PART(BLOCK "attn_q_a_norm.weight", NORM, Q_A_NORM, query_rank, NULL, with_query_rank),
    PART(BLOCK "attn_q_b.weight", ATTENTION, Q_B, latent_query_width, query_rank, with_query_rank),
    PART(BLOCK "attn_kv_a_mqa.weight", ATTENTION, KV_A, latent_with_rope, hidden, NULL),
    PART(BLOCK "attn_kv_a_norm.weight", NORM, KV_A_NORM, latent_rank, NULL, NULL),
    PART(BLOCK "attn_kv_b.weight", ATTENTION, KV_B, latent_key_value_width, latent_rank, unless_split_kv_b),
    HEADS(BLOCK "attn_k_b.weight", K_B, heads, latent_rank, nope_width, with_split_kv_b),
    HEADS(BLOCK "attn_v_b.weight", V_B, heads, value_width, latent_rank, with_split_kv_b),
    PART(BLOCK "attn_output.weight", ATTENTION, O, hidden, latent_value_width, NULL),
    PROJECTION(BLOCK "ffn_gate.weight", DENSE, GATE, dense_width, hidden, in_dense),
    PROJECTION(BLOCK "ffn_up.weight", DENSE, UP, dense_width, hidden, in_dense),
    PROJECTION(BLOCK "ffn_down.weight", DENSE, DOWN, hidden, dense_width, in_dense),
    ROW(BLOCK "ffn_gate_inp.weight", ROUTER, experts, hidden, in_moe),
    ROW(BLOCK "exp_probs_b.bias", ROUTER_BIAS, experts, NULL, may_be_in_moe),
    HALF(BLOCK "ffn_gate_exps.weight[{E}]", GATE),
    HALF(BLOCK "ffn_up_exps.weight[{E}]", UP),
    PROJECTION(BLOCK "ffn_down_exps.weight[{E}]", EXPERT, DOWN, hidden, expert_width, in_moe),
    PROJECTION(BLOCK "ffn_gate_shexp.weight", SHARED_EXPERT, GATE, shared_width, hidden, with_shared),
    PROJECTION(BLOCK "ffn_up_shexp.weight", SHARED_EXPERT, UP, shared_width, hidden, with_shared),
    PROJECTION(BLOCK "ffn_down_shexp.weight", SHARED_EXPERT, DOWN, hidden, shared_width, with_shared),
    END,
};

#define GGUF_DENSE_ROWS                                                                          \
    GGUF_ROWS,                                                                                   \
    PART(BLOCK "attn_q.weight", ATTENTION, Q, query_width, hidden, NULL),                        \
    PART(BLOCK "attn_k.weight", ATTENTION, K, key_value_width, hidden, NULL),                    \
    PART(BLOCK "attn_v.weight", ATTENTION, V, key_value_width, hidden, NULL),                    \
    PART(BLOCK "attn_output.weight", ATTENTION, O, hidden, query_width, NULL),                   \
    PART(BLOCK "attn_q.bias", ATTENTION, Q_BIAS, query_width, NULL, may_be),                     \
    PART(BLOCK "attn_k.bias", ATTENTION, K_BIAS, key_value_width, NULL, may_be),                 \
    PART(BLOCK "attn_v.bias", ATTENTION, V_BIAS, key_value_width, NULL, may_be),                 \
    PART(BLOCK "attn_output.bias", ATTENTION, O_BIAS, hidden, NULL, may_be),                     \
    PROJECTION(BLOCK "ffn_gate.weight", DENSE, GATE, dense_width, hidden, NULL),                 \
    PROJECTION(BLOCK "ffn_up.weight", DENSE, UP, dense_width, hidden, NULL),                     \
    PROJECTION(BLOCK "ffn_down.weight", DENSE, DOWN, hidden, dense_width, NULL),                 \
    PART(BLOCK "ffn_gate.bias", OTHER, GATE_BIAS, dense_width, NULL, may_be),                    \
    PART(BLOCK "ffn_up.bias", OTHER, UP_BIAS, dense_width, NULL, may_be),                        \
    PART(BLOCK "ffn_down.bias", OTHER, DOWN_BIAS, hidden, NULL, may_be)

static const mica_tensor_row gguf_llama_rows[] = {
    GGUF_DENSE_ROWS,
    ROW("rope_freqs.weight", ROPE_FACTORS, half_head_width, NULL, may_be),
    END,
};
static const mica_tensor_row gguf_qwen3_rows[] = {
    GGUF_DENSE_ROWS,
    PART(BLOCK "attn_q_norm.weight", NORM, Q_NORM, head_width, NULL, NULL),
    PART(BLOCK "attn_k_norm.weight", NORM, K_NORM, head_width, NULL, NULL),
    END,
};

static const mica_ignore_row ignored_gguf_names[] = {
    {"blk.*.attn_rot_embd.weight", "rotary frequencies"},
    {NULL, NULL},
};
static const mica_ignore_row ignored_names[] = {
    {"model.layers.{MTP}.*", "multi-token prediction"},
    {"model.layers.*.rotary_emb.inv_freq", "rotary frequencies"},
    {"vision_tower.*", "vision tower"},
    {"multi_modal_projector.*", "projector"},
    {"mm_projector.*", "projector"},
    {NULL, NULL},
};
static const mica_ignore_row ignored_v4_names[] = {
    {"mtp.*", "multi-token prediction"},
    {NULL, NULL},
};

static const char v4_not_run[] = "its hyper-connections, compressed attention and hash routing are not computed";
static const char indexer_not_run[] = "its sparse attention's indexer is not computed";
static const char window_not_run[] = "its sliding attention window is not computed";
static const char gemma_not_run[] = "Gemma's norms, scaled embeddings and capped logits are not computed";

#define LATENT MICA_ATTENTION_LATENT
#define GROUPED MICA_ATTENTION_GROUPED
#define COMPRESSED MICA_ATTENTION_COMPRESSED
#define INVERSE "weight_scale_inv"
/* model_type, family, attention, prefix, text_config, mixture, tied, suffix of fp8 scales, not run, interleaved, rows, ignored */
static const mica_architecture architectures[] = {
    {"deepseek_v3", "deepseek_v3", LATENT, "", false, true, false, INVERSE, NULL, false, deepseek_v3_rows, ignored_names},
    {"kimi_k2", "deepseek_v3", LATENT, "", false, true, false, INVERSE, NULL, false, deepseek_v3_rows, ignored_names},
    {"kimi_k25", "deepseek_v3", LATENT, "language_model.", true, true, false, INVERSE, NULL, false, deepseek_v3_rows, ignored_names},
    {"kimi_vl", "deepseek_v3", LATENT, "language_model.", true, true, false, INVERSE, NULL, false, deepseek_v3_rows, ignored_names},
    {"deepseek_v32", "deepseek_v3", LATENT, "", false, true, false, INVERSE, indexer_not_run, false, deepseek_v3_rows, ignored_names},
    {"deepseek_v2", "deepseek_v2", LATENT, "", false, true, false, INVERSE, NULL, false, deepseek_v3_rows, ignored_names},
    {"deepseek_v4", "deepseek_v4", COMPRESSED, "", false, true, false, "scale", v4_not_run, false, deepseek_v4_rows, ignored_v4_names},
    {"llama", "llama", GROUPED, "", false, false, false, INVERSE, NULL, false, llama_rows, ignored_names},
    {"mistral", "mistral", GROUPED, "", false, false, false, INVERSE, window_not_run, false, llama_rows, ignored_names},
    {"qwen3", "qwen3", GROUPED, "", false, false, false, INVERSE, NULL, false, qwen3_rows, ignored_names},
    {"gemma", "gemma", GROUPED, "", false, false, true, INVERSE, gemma_not_run, false, llama_rows, ignored_names},
    {"gemma2", "gemma2", GROUPED, "", false, false, true, INVERSE, gemma_not_run, false, gemma2_rows, ignored_names},
    {"gemma3_text", "gemma3", GROUPED, "", false, false, true, INVERSE, gemma_not_run, false, gemma3_rows, ignored_names},
    {"gemma3", "gemma3", GROUPED, "language_model.", true, false, true, INVERSE, gemma_not_run, false, gemma3_rows, ignored_names},
};

/* By general.architecture. llama's query and key rows are stored for pairs (2i, 2i + 1), in another order than in a checkpoint. */
static const struct {
    bool sigmoid;
    mica_architecture architecture;
} gguf_architectures[] = {
    {true, {"deepseek2", "deepseek_v3", LATENT, "", false, true, false, INVERSE, NULL, true, gguf_deepseek2_rows, ignored_gguf_names}},
    {false, {"deepseek2", "deepseek_v2", LATENT, "", false, true, false, INVERSE, NULL, true, gguf_deepseek2_rows, ignored_gguf_names}},
    {false, {"llama", "llama", GROUPED, "", false, false, false, INVERSE, NULL, true, gguf_llama_rows, ignored_gguf_names}},
    {false, {"qwen3", "qwen3", GROUPED, "", false, false, false, INVERSE, NULL, false, gguf_qwen3_rows, ignored_gguf_names}},
};

const mica_architecture *mica_architecture_find_gguf(const char *name, bool sigmoid) {
    for (size_t i = 0; i < sizeof gguf_architectures / sizeof *gguf_architectures; i++)
        if (strcmp(gguf_architectures[i].architecture.model_type, name) == 0 && gguf_architectures[i].sigmoid == sigmoid)
            return &gguf_architectures[i].architecture;
    return NULL;
}

const mica_architecture *mica_architecture_at(uint64_t index) {
    return index < sizeof architectures / sizeof *architectures ? &architectures[index] : NULL;
}

const mica_architecture *mica_architecture_find(const char *model_type) {
    const mica_architecture *architecture;
    for (uint64_t i = 0; (architecture = mica_architecture_at(i)) != NULL; i++)
        if (strcmp(architecture->model_type, model_type) == 0)
            return architecture;
    return NULL;
}

const char *mica_projection_name(mica_projection projection) {
    static const char *const names[MICA_PROJECTION_COUNT] = {"gate", "up", "down"};
    return names[projection];
}
