/* Input: the start of a GGUF file without tensors. What becomes a configuration has numbers that the rest of the program may rely on. */
#include <math.h>

#include "model/config_gguf.h"

#include "fuzz.h"

static void check(const mica_config *config) {
    FUZZ_CHECK(config->num_hidden_layers >= 1 && config->num_hidden_layers <= 4096);
    FUZZ_CHECK(config->hidden_size >= 1 && config->vocab_size >= 1 && config->num_attention_heads >= 1 && config->intermediate_size >= 1);
    FUZZ_CHECK(config->rms_norm_eps > 0 && isfinite(config->rms_norm_eps) && config->rope_theta > 0 && isfinite(config->rope_theta));
    FUZZ_CHECK(config->eos_token_count <= MICA_EOS_MAX && config->bos_token_id < (int64_t)config->vocab_size);
    for (uint64_t i = 0; i < config->eos_token_count; i++)
        FUZZ_CHECK(config->eos_token_ids[i] >= 0 && (uint64_t)config->eos_token_ids[i] < config->vocab_size);
    if (config->architecture->attention == MICA_ATTENTION_GROUPED) {
        FUZZ_CHECK(config->head_dim >= 2 && config->head_dim % 2 == 0 && config->n_routed_experts == 0);
        FUZZ_CHECK(config->num_key_value_heads >= 1 && config->num_attention_heads % config->num_key_value_heads == 0);
        return;
    }
    FUZZ_CHECK(config->qk_nope_head_dim >= 1 && config->qk_rope_head_dim >= 2 && config->qk_rope_head_dim % 2 == 0);
    FUZZ_CHECK(config->v_head_dim >= 1 && config->kv_lora_rank >= 1);
    FUZZ_CHECK(config->n_group >= 1 && config->n_routed_experts % config->n_group == 0 && config->topk_group >= 1);
    FUZZ_CHECK(config->topk_group <= config->n_group && config->num_experts_per_tok >= 1);
    FUZZ_CHECK(config->num_experts_per_tok <= config->topk_group * (config->n_routed_experts / config->n_group));
    FUZZ_CHECK(config->first_k_dense_replace <= config->num_hidden_layers && config->routed_scaling_factor > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mica_gguf gguf;
    mica_config config;
    mica_error error = {0};
    mica_status status = mica_gguf_parse("x.gguf", data, size, size, &gguf, &error);
    if (status == MICA_OK) {
        status = mica_config_from_gguf(&gguf, &config, &error);
        if (status == MICA_OK)
            check(&config);
        mica_gguf_release(&gguf);
    }
    if (status != MICA_OK)
        fuzz_check_refusal(status, &error, "x.gguf");
    return 0;
}
