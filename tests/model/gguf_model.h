/* tests/model/gguf_model.h: a small deepseek2 model as a GGUF file, built byte by byte, with one thing changed on demand. */
#ifndef TESTS_MODEL_GGUF_MODEL_H
#define TESTS_MODEL_GGUF_MODEL_H

#include "formats/gguf_bytes.h"

#define GGUF_LAYERS 2u
#define GGUF_EXPERTS 3u

typedef struct gguf_model {
    mica_text keys, tensors, data;
    uint64_t key_count, tensor_count;
    const char *drop;       /* a key or a tensor that is left out */
    const char *as_u64;     /* a key written as u64 */
    const char *key;        /* a key that gets another value */
    uint32_t value;
    const char *reshape;    /* a tensor with one more in its last dimension */
    const char *poison;     /* a tensor that begins with a value that is not finite */
    bool legacy;            /* attn_kv_b in one piece */
    bool untied;
    bool fused;             /* experts' gates and ups in one tensor */
} gguf_model;

static inline bool gguf_is(const char *wanted, const char *name) {
    return wanted && strcmp(wanted, name) == 0;
}

static inline void gguf_u32(gguf_model *model, const char *key, uint32_t value) {
    if (gguf_is(model->drop, key))
        return;
    if (gguf_is(model->key, key))
        value = model->value;
    put_key(&model->keys, key, gguf_is(model->as_u64, key) ? MICA_GGUF_UINT64 : MICA_GGUF_UINT32);
    put(&model->keys, value, gguf_is(model->as_u64, key) ? 8 : 4);
    model->key_count++;
}

static inline void gguf_f32(gguf_model *model, const char *key, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (gguf_is(model->drop, key))
        return;
    put_key(&model->keys, key, MICA_GGUF_FLOAT32);
    put(&model->keys, bits, 4);
    model->key_count++;
}

/* ne as in the file; type 0 (F32) or 8 (Q8_0). Values are small and depend on the element's number. */
static inline void gguf_tensor(gguf_model *model, const char *name, const uint64_t *ne, uint32_t type) {
    uint64_t sizes[5] = {ne[0], ne[1], ne[1] ? ne[2] : 0, 0, 0}, elements = 1;
    uint32_t rank = 0;
    if (gguf_is(model->drop, name))
        return;
    while (sizes[rank])
        rank++;
    sizes[rank - 1] += gguf_is(model->reshape, name);
    for (uint32_t i = 0; i < rank; i++)
        elements *= sizes[i];
    put_padding(&model->data, 32);
    put_tensor(&model->tensors, name, sizes, type, model->data.length);
    for (uint64_t i = 0; i < elements; i++) {
        float value = (float)(int)((model->tensor_count * 7 + i) % 61) / 64.0f - 0.4f;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bool poison = i == 0 && gguf_is(model->poison, name);
        if (type == 0)
            put(&model->data, poison ? 0x7fc00000 : bits, 4);
        if (type == 8 && i % 32 == 0)
            put(&model->data, poison ? 0x7c00 : 0x1c00 + (uint32_t)(i / 32 % 100), 2); /* about 1 / 256 */
        if (type == 8)
            put(&model->data, (model->tensor_count * 7 + i * 13) % 255, 1);
    }
    model->tensor_count++;
}

static inline void gguf_layer_tensor(gguf_model *model, uint32_t layer, const char *name, const uint64_t *ne, uint32_t type) {
    char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    gguf_tensor(model, full, ne, type);
}

static inline void gguf_keys(gguf_model *model) {
    put_text(&model->keys, "general.architecture", "deepseek2");
    model->key_count = 1;
    gguf_u32(model, "deepseek2.block_count", GGUF_LAYERS);
    gguf_u32(model, "deepseek2.context_length", 128);
    gguf_u32(model, "deepseek2.embedding_length", 64);
    gguf_u32(model, "deepseek2.feed_forward_length", 96);
    gguf_u32(model, "deepseek2.attention.head_count", 2);
    gguf_u32(model, "deepseek2.attention.head_count_kv", model->legacy ? 2 : 1);
    gguf_f32(model, "deepseek2.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_f32(model, "deepseek2.rope.freq_base", 50000);
    gguf_u32(model, "deepseek2.leading_dense_block_count", 1);
    gguf_u32(model, "deepseek2.vocab_size", 8);
    gguf_u32(model, "deepseek2.attention.q_lora_rank", 32);
    gguf_u32(model, "deepseek2.attention.kv_lora_rank", 32);
    gguf_u32(model, "deepseek2.attention.key_length", model->legacy ? 48 : 48);
    gguf_u32(model, "deepseek2.attention.value_length", 32);
    if (!model->legacy) {
        gguf_u32(model, "deepseek2.attention.key_length_mla", 48);
        gguf_u32(model, "deepseek2.attention.value_length_mla", 64);
    }
    gguf_u32(model, "deepseek2.expert_feed_forward_length", 32);
    gguf_u32(model, "deepseek2.expert_count", GGUF_EXPERTS);
    gguf_u32(model, "deepseek2.expert_used_count", 2);
    gguf_u32(model, "deepseek2.expert_shared_count", 1);
    gguf_f32(model, "deepseek2.expert_weights_scale", 2.827f);
    put_key(&model->keys, "deepseek2.expert_weights_norm", MICA_GGUF_BOOL), put(&model->keys, 1, 1), model->key_count++;
    gguf_u32(model, "deepseek2.expert_gating_func", 2);
    gguf_u32(model, "deepseek2.rope.dimension_count", 16);
    put_text(&model->keys, "deepseek2.rope.scaling.type", "yarn"), model->key_count++;
    gguf_f32(model, "deepseek2.rope.scaling.factor", 32);
    gguf_u32(model, "deepseek2.rope.scaling.original_context_length", 64);
    gguf_f32(model, "deepseek2.rope.scaling.yarn_log_multiplier", 0.1f);
    gguf_f32(model, "deepseek2.rope.scaling.yarn_beta_fast", 1);
    gguf_u32(model, "tokenizer.ggml.bos_token_id", 6);
    gguf_u32(model, "tokenizer.ggml.eos_token_id", 7);
}

static inline void gguf_layer(gguf_model *model, uint32_t layer) {
    gguf_layer_tensor(model, layer, "attn_norm.weight", NE(64), 0);
    gguf_layer_tensor(model, layer, "ffn_norm.weight", NE(64), 0);
    gguf_layer_tensor(model, layer, "attn_q_a.weight", NE(64, 32), 8);
    gguf_layer_tensor(model, layer, "attn_q_a_norm.weight", NE(32), 0);
    gguf_layer_tensor(model, layer, "attn_q_b.weight", NE(32, 96), 8);
    gguf_layer_tensor(model, layer, "attn_kv_a_mqa.weight", NE(64, 48), 8);
    gguf_layer_tensor(model, layer, "attn_kv_a_norm.weight", NE(32), 0);
    const uint64_t value = model->legacy ? 32 : 64;
    if (model->legacy) {
        gguf_layer_tensor(model, layer, "attn_kv_b.weight", NE(32, 2 * (32 + value)), 8);
    } else {
        gguf_layer_tensor(model, layer, "attn_k_b.weight", NE(32, 32, 2), 8);
        gguf_layer_tensor(model, layer, "attn_v_b.weight", NE(32, value, 2), 8);
    }
    gguf_layer_tensor(model, layer, "attn_output.weight", NE(2 * value, 64), 8);
    const char *suffix = layer == 0 ? "" : "_shexp";
    const uint64_t width = layer == 0 ? 96 : 32;
    static const char *const projections[] = {"gate", "up", "down"};
    for (int p = 0; p < 3; p++) {
        char name[48];
        snprintf(name, sizeof name, "ffn_%s%s.weight", projections[p], suffix);
        gguf_layer_tensor(model, layer, name, p < 2 ? NE(64, width) : NE(width, 64), 8);
        snprintf(name, sizeof name, "ffn_%s_exps.weight", projections[p]);
        if (layer > 0 && p == 0 && model->fused)
            gguf_layer_tensor(model, layer, "ffn_gate_up_exps.weight", NE(64, 64, GGUF_EXPERTS), 8);
        if (layer > 0 && (p == 2 || !model->fused))
            gguf_layer_tensor(model, layer, name, p < 2 ? NE(64, 32, GGUF_EXPERTS) : NE(32, 64, GGUF_EXPERTS), p == 1 ? 0 : 8);
    }
    if (layer > 0) {
        gguf_layer_tensor(model, layer, "ffn_gate_inp.weight", NE(64, GGUF_EXPERTS), 0);
        gguf_layer_tensor(model, layer, "exp_probs_b.bias", NE(GGUF_EXPERTS), 0);
    }
}

static inline void gguf_write(gguf_model *model, const char *name) {
    model->keys = model->tensors = model->data = (mica_text)MICA_TEXT_INIT;
    model->tensor_count = 0;
    gguf_keys(model);
    gguf_tensor(model, "token_embd.weight", NE(64, 8), 8);
    gguf_tensor(model, "output_norm.weight", NE(64), 0);
    if (model->untied)
        gguf_tensor(model, "output.weight", NE(64, 8), 0);
    for (uint32_t layer = 0; layer < GGUF_LAYERS; layer++)
        gguf_layer(model, layer);
    mica_text file = MICA_TEXT_INIT;
    put_start(&file, model->tensor_count, model->key_count);
    mica_text_append(&file, model->keys.bytes, model->keys.length);
    mica_text_append(&file, model->tensors.bytes, model->tensors.length);
    put_padding(&file, 32);
    mica_text_append(&file, model->data.bytes, model->data.length);
    put_padding(&file, 32);
    put_file(&file, name);
    mica_text_release(&model->keys);
    mica_text_release(&model->tensors);
    mica_text_release(&model->data);
}

#endif
