/* Input: config.json. What is accepted has sizes that a loop over layers and experts survives. */
#include "model/config.h"

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static mica_config config;
    mica_error error = {0};
    memset(&config, 0xa5, sizeof config); /* what the parser leaves unset shows */
    mica_status status = mica_config_parse("config.json", (const char *)data, size, &config, &error);
    if (status != MICA_OK) {
        fuzz_check_refusal(status, &error, "config.json");
        return 0;
    }
    FUZZ_CHECK(config.architecture && config.architecture == mica_architecture_find(config.model_type));
    FUZZ_CHECK(strnlen(config.rope_type, sizeof config.rope_type) < sizeof config.rope_type);
    FUZZ_CHECK(strnlen(config.scoring_func, sizeof config.scoring_func) < sizeof config.scoring_func);
    FUZZ_CHECK(config.hidden_size > 0 && config.vocab_size > 0 && config.num_attention_heads > 0);
    FUZZ_CHECK(config.num_hidden_layers > 0 && config.num_hidden_layers < 100000);
    FUZZ_CHECK(config.n_routed_experts < 1000000 && config.num_experts_per_tok <= config.n_routed_experts);
    FUZZ_CHECK(config.compress_ratio_count <= sizeof config.compress_ratios / sizeof config.compress_ratios[0]);
    FUZZ_CHECK(config.quantisation != MICA_QUANTISATION_FP8 || (config.weight_block_rows > 0 && config.weight_block_columns > 0));
    FUZZ_CHECK(config.quantisation != MICA_QUANTISATION_INT4 || config.group_size > 0);
    FUZZ_CHECK(config.rms_norm_eps > 0);
    uint64_t moe = 0;
    for (uint64_t layer = 0; layer < config.num_hidden_layers; layer++)
        moe += mica_config_layer_is_moe(&config, layer);
    FUZZ_CHECK(moe == 0 || config.n_routed_experts > 0);
    return 0;
}
