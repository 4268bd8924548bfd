/* model/gguf_names.c: the tables of GGUF names. Owns: which tensor of llama.cpp a weight becomes, and in which form. Refuses nothing.
 * Sources: the loaders of llama.cpp v0.5.0 (src/models). Judged by tests/operations/test_export_gguf.c, tests/interop/export_gguf.py. */
#include "model/gguf_names.h"

#include <stdio.h>
#include <string.h>

#define F32 true
#define ANY false
#define HF "model.layers.{L}."
#define BLK "blk.{L}."
#define END {NULL, NULL, MICA_GGUF_COPY, false}

#define FIRST_ROWS {"model.embed_tokens.weight", "token_embd.weight", MICA_GGUF_COPY, ANY}
#define LAST_ROWS                                                           \
    {"model.norm.weight", "output_norm.weight", MICA_GGUF_COPY, F32},       \
    {"lm_head.weight", "output.weight", MICA_GGUF_COPY, ANY}
#define LAYER_NORM_ROWS                                                             \
    {HF "input_layernorm.weight", BLK "attn_norm.weight", MICA_GGUF_COPY, F32},     \
    {HF "post_attention_layernorm.weight", BLK "ffn_norm.weight", MICA_GGUF_COPY, F32}
#define DENSE_MLP_ROWS                                                                  \
    {HF "mlp.gate_proj.weight", BLK "ffn_gate.weight", MICA_GGUF_COPY, ANY},            \
    {HF "mlp.up_proj.weight", BLK "ffn_up.weight", MICA_GGUF_COPY, ANY},                \
    {HF "mlp.down_proj.weight", BLK "ffn_down.weight", MICA_GGUF_COPY, ANY}

static const mica_gguf_row deepseek2_rows[] = {
    FIRST_ROWS,
    LAYER_NORM_ROWS,
    {HF "self_attn.q_proj.weight", BLK "attn_q.weight", MICA_GGUF_COPY, ANY},
    {HF "self_attn.q_a_proj.weight", BLK "attn_q_a.weight", MICA_GGUF_COPY, ANY},
    {HF "self_attn.q_a_layernorm.weight", BLK "attn_q_a_norm.weight", MICA_GGUF_COPY, F32},
    {HF "self_attn.q_b_proj.weight", BLK "attn_q_b.weight", MICA_GGUF_COPY, ANY},
    {HF "self_attn.kv_a_proj_with_mqa.weight", BLK "attn_kv_a_mqa.weight", MICA_GGUF_COPY, ANY},
    {HF "self_attn.kv_a_layernorm.weight", BLK "attn_kv_a_norm.weight", MICA_GGUF_COPY, F32},
    {HF "self_attn.kv_b_proj.weight", BLK "attn_k_b.weight", MICA_GGUF_KEY_PART, ANY},
    {HF "self_attn.kv_b_proj.weight", BLK "attn_v_b.weight", MICA_GGUF_VALUE_PART, ANY},
    {HF "self_attn.o_proj.weight", BLK "attn_output.weight", MICA_GGUF_COPY, ANY},
    DENSE_MLP_ROWS,
    {HF "mlp.gate.weight", BLK "ffn_gate_inp.weight", MICA_GGUF_COPY, F32},
    {HF "mlp.gate.e_score_correction_bias", BLK "exp_probs_b.bias", MICA_GGUF_COPY, F32},
    {HF "mlp.experts.{E}.gate_proj.weight", BLK "ffn_gate_exps.weight", MICA_GGUF_EXPERTS, ANY},
    {HF "mlp.experts.{E}.up_proj.weight", BLK "ffn_up_exps.weight", MICA_GGUF_EXPERTS, ANY},
    {HF "mlp.experts.{E}.down_proj.weight", BLK "ffn_down_exps.weight", MICA_GGUF_EXPERTS, ANY},
    {HF "mlp.shared_experts.gate_proj.weight", BLK "ffn_gate_shexp.weight", MICA_GGUF_COPY, ANY},
    {HF "mlp.shared_experts.up_proj.weight", BLK "ffn_up_shexp.weight", MICA_GGUF_COPY, ANY},
    {HF "mlp.shared_experts.down_proj.weight", BLK "ffn_down_shexp.weight", MICA_GGUF_COPY, ANY},
    LAST_ROWS,
    END,
};

/* The small matrices of the compressors' positions and of the hyper-connections are added, not multiplied: they stay F32. */
#define V4 "layers.{L}."
static const mica_gguf_row deepseek4_rows[] = {
    {"embed.weight", "token_embd.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn_norm.weight", BLK "attn_norm.weight", MICA_GGUF_COPY, F32},
    {V4 "ffn_norm.weight", BLK "ffn_norm.weight", MICA_GGUF_COPY, F32},
    {V4 "hc_attn_fn", BLK "hc_attn_fn.weight", MICA_GGUF_COPY, F32},
    {V4 "hc_attn_base", BLK "hc_attn_base.weight", MICA_GGUF_COPY, F32},
    {V4 "hc_attn_scale", BLK "hc_attn_scale.weight", MICA_GGUF_COPY, F32},
    {V4 "hc_ffn_fn", BLK "hc_ffn_fn.weight", MICA_GGUF_COPY, F32},
    {V4 "hc_ffn_base", BLK "hc_ffn_base.weight", MICA_GGUF_COPY, F32},
    {V4 "hc_ffn_scale", BLK "hc_ffn_scale.weight", MICA_GGUF_COPY, F32},
    {V4 "attn.attn_sink", BLK "attn_sinks.weight", MICA_GGUF_COPY, F32},
    {V4 "attn.wq_a.weight", BLK "attn_q_a.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.q_norm.weight", BLK "attn_q_a_norm.weight", MICA_GGUF_COPY, F32},
    {V4 "attn.wq_b.weight", BLK "attn_q_b.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.wkv.weight", BLK "attn_kv.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.kv_norm.weight", BLK "attn_kv_a_norm.weight", MICA_GGUF_COPY, F32},
    {V4 "attn.wo_a.weight", BLK "attn_output_a.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.wo_b.weight", BLK "attn_output_b.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.compressor.ape", BLK "attn_compressor_ape.weight", MICA_GGUF_COPY, F32},
    {V4 "attn.compressor.wkv.weight", BLK "attn_compressor_kv.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.compressor.wgate.weight", BLK "attn_compressor_gate.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.compressor.norm.weight", BLK "attn_compressor_norm.weight", MICA_GGUF_COPY, F32},
    {V4 "attn.indexer.wq_b.weight", BLK "indexer.attn_q_b.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.indexer.weights_proj.weight", BLK "indexer.proj.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.indexer.compressor.ape", BLK "indexer_compressor_ape.weight", MICA_GGUF_COPY, F32},
    {V4 "attn.indexer.compressor.wkv.weight", BLK "indexer_compressor_kv.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.indexer.compressor.wgate.weight", BLK "indexer_compressor_gate.weight", MICA_GGUF_COPY, ANY},
    {V4 "attn.indexer.compressor.norm.weight", BLK "indexer_compressor_norm.weight", MICA_GGUF_COPY, F32},
    {V4 "ffn.gate.weight", BLK "ffn_gate_inp.weight", MICA_GGUF_COPY, F32},
    {V4 "ffn.gate.bias", BLK "exp_probs_b.bias", MICA_GGUF_COPY, F32},
    {V4 "ffn.gate.tid2eid", BLK "ffn_gate_tid2eid.weight", MICA_GGUF_TABLE, ANY},
    {V4 "ffn.experts.{E}.w1.weight", BLK "ffn_gate_exps.weight", MICA_GGUF_EXPERTS, ANY},
    {V4 "ffn.experts.{E}.w3.weight", BLK "ffn_up_exps.weight", MICA_GGUF_EXPERTS, ANY},
    {V4 "ffn.experts.{E}.w2.weight", BLK "ffn_down_exps.weight", MICA_GGUF_EXPERTS, ANY},
    {V4 "ffn.shared_experts.w1.weight", BLK "ffn_gate_shexp.weight", MICA_GGUF_COPY, ANY},
    {V4 "ffn.shared_experts.w3.weight", BLK "ffn_up_shexp.weight", MICA_GGUF_COPY, ANY},
    {V4 "ffn.shared_experts.w2.weight", BLK "ffn_down_shexp.weight", MICA_GGUF_COPY, ANY},
    {"norm.weight", "output_norm.weight", MICA_GGUF_COPY, F32},
    {"head.weight", "output.weight", MICA_GGUF_COPY, ANY},
    {"hc_head_fn", "output_hc_fn.weight", MICA_GGUF_COPY, F32},
    {"hc_head_base", "output_hc_base.weight", MICA_GGUF_COPY, F32},
    {"hc_head_scale", "output_hc_scale.weight", MICA_GGUF_COPY, F32},
    END,
};

#define GROUPED_ROWS(query, key)                                                    \
    FIRST_ROWS,                                                                     \
    LAYER_NORM_ROWS,                                                                \
    {HF "self_attn.q_proj.weight", BLK "attn_q.weight", query, ANY},                \
    {HF "self_attn.k_proj.weight", BLK "attn_k.weight", key, ANY},                  \
    {HF "self_attn.v_proj.weight", BLK "attn_v.weight", MICA_GGUF_COPY, ANY},       \
    {HF "self_attn.o_proj.weight", BLK "attn_output.weight", MICA_GGUF_COPY, ANY},  \
    {HF "self_attn.q_proj.bias", BLK "attn_q.bias", query, F32},                    \
    {HF "self_attn.k_proj.bias", BLK "attn_k.bias", key, F32},                      \
    {HF "self_attn.v_proj.bias", BLK "attn_v.bias", MICA_GGUF_COPY, F32}

static const mica_gguf_row llama_rows[] = {
    GROUPED_ROWS(MICA_GGUF_QUERY_PAIRS, MICA_GGUF_KEY_PAIRS),
    {HF "self_attn.o_proj.bias", BLK "attn_output.bias", MICA_GGUF_COPY, F32},
    DENSE_MLP_ROWS,
    {HF "mlp.gate_proj.bias", BLK "ffn_gate.bias", MICA_GGUF_COPY, F32},
    {HF "mlp.up_proj.bias", BLK "ffn_up.bias", MICA_GGUF_COPY, F32},
    {HF "mlp.down_proj.bias", BLK "ffn_down.bias", MICA_GGUF_COPY, F32},
    LAST_ROWS,
    END,
};

static const mica_gguf_row qwen3_rows[] = {
    GROUPED_ROWS(MICA_GGUF_COPY, MICA_GGUF_COPY),
    {HF "self_attn.q_norm.weight", BLK "attn_q_norm.weight", MICA_GGUF_COPY, F32},
    {HF "self_attn.k_norm.weight", BLK "attn_k_norm.weight", MICA_GGUF_COPY, F32},
    DENSE_MLP_ROWS,
    LAST_ROWS,
    END,
};

static const mica_gguf_architecture deepseek2 = {"deepseek2", deepseek2_rows}, deepseek4 = {"deepseek4", deepseek4_rows},
                                    llama = {"llama", llama_rows}, qwen3 = {"qwen3", qwen3_rows};

#define BLOCK "vision_tower.encoder.blocks.{L}."
#define VBLK "v.blk.{L}."
#define PAIR(from, to, form) {from ".weight", to ".weight", form, ANY}, {from ".bias", to ".bias", form, F32}
#define TOWER_ROWS(positions, ...)                                                                       \
    {"vision_tower.patch_embed.proj.weight", "v.patch_embd.weight", MICA_GGUF_CONVOLUTION, F32},         \
    {"vision_tower.patch_embed.proj.bias", "v.patch_embd.bias", MICA_GGUF_COPY, F32},                    \
    {"vision_tower.patch_embed.pos_emb.weight", "v.position_embd.weight", positions, F32},               \
    PAIR(BLOCK "norm0", VBLK "ln1", MICA_GGUF_COPY),                                                     \
    PAIR(BLOCK "norm1", VBLK "ln2", MICA_GGUF_COPY),                                                     \
    __VA_ARGS__,                                                                                         \
    PAIR(BLOCK "wo", VBLK "attn_out", MICA_GGUF_COPY),                                                   \
    PAIR(BLOCK "mlp.fc0", VBLK "ffn_up", MICA_GGUF_COPY),                                                \
    PAIR(BLOCK "mlp.fc1", VBLK "ffn_down", MICA_GGUF_COPY),                                              \
    PAIR("vision_tower.encoder.final_layernorm", "v.post_ln", MICA_GGUF_COPY)

static const mica_gguf_row kimi25_vision_rows[] = {
    TOWER_ROWS(MICA_GGUF_CONVOLUTION, PAIR(BLOCK "wqkv", VBLK "attn_qkv", MICA_GGUF_FUSED_TURNED)),
    PAIR("mm_projector.pre_norm", "mm.input_norm", MICA_GGUF_COPY),
    PAIR("mm_projector.proj.0", "mm.1", MICA_GGUF_COPY),
    PAIR("mm_projector.proj.2", "mm.2", MICA_GGUF_COPY),
    END,
};
const mica_gguf_architecture mica_gguf_kimi25_vision = {"clip", kimi25_vision_rows};

static const mica_gguf_row kimi_vision_rows[] = {
    TOWER_ROWS(MICA_GGUF_POSITIONS, PAIR(BLOCK "wqkv", VBLK "attn_q", MICA_GGUF_QUERY_THIRD),
               PAIR(BLOCK "wqkv", VBLK "attn_k", MICA_GGUF_KEY_THIRD), PAIR(BLOCK "wqkv", VBLK "attn_v", MICA_GGUF_VALUE_THIRD)),
    PAIR("multi_modal_projector.pre_norm", "mm.input_norm", MICA_GGUF_COPY),
    PAIR("multi_modal_projector.linear_1", "mm.1", MICA_GGUF_COPY),
    PAIR("multi_modal_projector.linear_2", "mm.2", MICA_GGUF_COPY),
    END,
};
const mica_gguf_architecture mica_gguf_kimi_vision = {"clip", kimi_vision_rows};

/* By model_type; every architecture that Mica opens has a row. */
static const struct {
    const char *model_type;
    const mica_gguf_architecture *architecture;
    const char *why;
} model_types[] = {
    {"deepseek_v2", &deepseek2, NULL},
    {"deepseek_v3", &deepseek2, NULL},
    {"kimi_k2", &deepseek2, NULL},
    {"kimi_k25", &deepseek2, NULL},
    {"kimi_vl", &deepseek2, NULL},
    {"deepseek_v4", &deepseek4, NULL},
    {"llama", &llama, NULL},
    {"mistral", &llama, NULL},
    {"qwen3", &qwen3, NULL},
    {"deepseek_v32", NULL, "the names of its sparse attention's indexer are not known here"},
};

const mica_gguf_architecture *mica_gguf_architecture_of(const mica_config *config, const char **why) {
    *why = "its tensors' names in GGUF are not known here";
    for (size_t i = 0; i < sizeof model_types / sizeof *model_types; i++)
        if (strcmp(model_types[i].model_type, config->model_type) == 0) {
            if (model_types[i].why)
                *why = model_types[i].why;
            return model_types[i].architecture;
        }
    return NULL;
}

const mica_gguf_architecture *mica_gguf_architecture_named(const char *name) {
    for (size_t i = 0; i < sizeof model_types / sizeof *model_types; i++)
        if (model_types[i].architecture && strcmp(model_types[i].architecture->name, name) == 0)
            return model_types[i].architecture;
    return NULL;
}

bool mica_gguf_row_is_layered(const mica_gguf_row *row) {
    return strstr(row->name, "{L}") != NULL;
}

bool mica_gguf_name(const char *pattern, uint64_t layer, uint64_t expert, char *name, uint64_t bytes) {
    uint64_t length = 0;
    for (const char *at = pattern; *at;) {
        const bool number = at[0] == '{' && (at[1] == 'L' || at[1] == 'E') && at[2] == '}';
        const int wrote = number ? snprintf(name + length, bytes - length, "%llu", (unsigned long long)(at[1] == 'L' ? layer : expert))
                                 : snprintf(name + length, bytes - length, "%c", *at);
        length += (uint64_t)wrote;
        if (length >= bytes)
            return false;
        at += number ? 3 : 1;
    }
    return bytes > 0;
}
