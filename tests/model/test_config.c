/* test_config.c: what config.json may say, and how each refusal names file, key, expected and got.
 * Each case is a valid configuration with one key changed, removed (NULL) or put in place of another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/json.h"
#include "model/config.h"

#define TINY_K2 MICA_SOURCE_DIR "/models/tiny-k2/config.json"
#define SHARED MICA_SOURCE_DIR "/../shared/"

#define THIRTY_ONE "squared-relu-of-a-gate-times-up" /* bytes: with its end a string of mica_config is full */

static const char deepseek[] =
    "{\"model_type\": \"deepseek_v3\", \"vocab_size\": 512, \"hidden_size\": 8, \"intermediate_size\": 12, \"moe_intermediate_size\": 16,"
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"n_shared_experts\": 1, \"n_routed_experts\": 4, \"kv_lora_rank\": 4,"
    "\"q_lora_rank\": 8, \"qk_rope_head_dim\": 4, \"v_head_dim\": 6, \"qk_nope_head_dim\": 4, \"n_group\": 2, \"topk_group\": 1,"
    "\"num_experts_per_tok\": 2, \"first_k_dense_replace\": 1, \"rope_theta\": 50000.0, \"num_nextn_predict_layers\": 0,"
    "\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"weight_block_size\": [128, 64]}}";

static const char llama[] =
    "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 4096, \"intermediate_size\": 14336, \"num_hidden_layers\": 32,"
    "\"num_attention_heads\": 32, \"num_key_value_heads\": 8, \"attention_bias\": false, \"mlp_bias\": false, \"rms_norm_eps\": 1e-05,"
    "\"tie_word_embeddings\": false}";

static const char v4[] =
    "{\"model_type\": \"deepseek_v4\", \"vocab_size\": 512, \"hidden_size\": 32, \"moe_intermediate_size\": 32, \"num_hidden_layers\": 2,"
    "\"num_attention_heads\": 2, \"head_dim\": 16, \"n_routed_experts\": 4, \"num_experts_per_tok\": 2, \"q_lora_rank\": 16,"
    "\"qk_rope_head_dim\": 4, \"o_groups\": 2, \"o_lora_rank\": 8, \"index_n_heads\": 2, \"index_head_dim\": 8, \"hc_mult\": 4,"
    "\"compress_ratios\": [0, 4, 0]}";

static const char int4[] =
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", \"config_groups\": {\"group_0\": {\"weights\":"
    "{\"num_bits\": 4, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"group\", \"group_size\": 32}}}}";

/* `base` with `key` set to the JSON text `value` (NULL: removed). */
static mica_status parse_with(const char *base, const char *key, const char *value, mica_config *config, mica_error *error) {
    json_t *object = json_loads(base, 0, NULL);
    assert_non_null(object);
    if (value)
        json_object_set_new(object, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else if (key)
        json_object_del(object, key);
    char *text = json_dumps(object, 0);
    json_decref(object);
    mica_status status = mica_config_parse("config.json", text, strlen(text), config, error);
    free(text);
    return status;
}

static mica_config accept(const char *base, const char *key, const char *value) {
    mica_config config;
    mica_error error = {0};
    if (parse_with(base, key, value, &config, &error) != MICA_OK)
        fail_msg("%s = %s: %s", key ? key : "-", value ? value : "absent", error.message);
    return config;
}

static void refuse(const char *base, const char *key, const char *value, const char *expected, const char *got) {
    mica_config config;
    mica_error error = {0};
    mica_status status = parse_with(base, key, value, &config, &error);
    if (status != MICA_BAD_INPUT)
        fail_msg("%s = %s was accepted", key, value ? value : "absent");
    const char *const parts[] = {"config.json", key, expected, got};
    for (size_t i = 0; i < 4; i++)
        if (!strstr(error.message, parts[i]))
            fail_msg("\"%s\" does not say \"%s\"", error.message, parts[i]);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *base, *key, *value, *expected, *got;
    } cases[] = {
        {deepseek, "model_type", "\"warp_drive\"", "kimi_k2", "got \"warp_drive\""},
        {deepseek, "model_type", NULL, "a string", "got absent"},
        {deepseek, "n_routed_experts", NULL, "an integer", "got absent"},
        {deepseek, "n_routed_experts", "null", "an integer", "got null"},
        {deepseek, "n_routed_experts", "\"4\"", "an integer", "got \"4\""},
        {deepseek, "n_routed_experts", "0", "from 1", "got 0"},
        {deepseek, "n_routed_experts", "-4", "an integer", "got -4"},
        {deepseek, "n_routed_experts", "4.5", "an integer", "got 4.5"},
        {deepseek, "n_routed_experts", "1e30", "an integer", "got 1e"},
        {deepseek, "n_routed_experts", "65537", "to 65536", "got 65537"},
        {deepseek, "num_hidden_layers", "1000000000", "to 4096", "got 1000000000"},
        {deepseek, "hidden_size", "0", "from 1", "got 0"},
        {deepseek, "num_experts_per_tok", "5", "at most n_routed_experts (4)", "got 5"},
        {deepseek, "num_experts_per_tok", "3", "at most the 2 experts", "got 3"},
        {deepseek, "n_group", "3", "a divisor of n_routed_experts (4)", "got 3"},
        {deepseek, "topk_group", "4", "at most n_group (2)", "got 4"},
        {deepseek, "first_k_dense_replace", "3", "at most num_hidden_layers (2)", "got 3"},
        {deepseek, "moe_layer_freq", "0", "from 1", "got 0"},
        {deepseek, "qk_rope_head_dim", "3", "even", "got 3"},
        {deepseek, "rms_norm_eps", "-1.0", "positive", "got -1.0"},
        {deepseek, "routed_scaling_factor", "0", "positive", "got 0"},
        {deepseek, "norm_topk_prob", "1", "true or false", "got 1"},
        {deepseek, "eos_token_id", "[0, 1, 2, 3, 4, 5, 6, 7, 8]", "one to eight token ids of at most 511 (vocab_size - 1)", "got [0, 1, 2,"},
        {deepseek, "eos_token_id", "512", "one to eight token ids of at most 511", "got 512"},
        {deepseek, "eos_token_id", "[3, 512]", "one to eight token ids of at most 511", "got [3, 512]"},
        {deepseek, "eos_token_id", "-1", "one to eight token ids of at most 511", "got -1"},
        {deepseek, "eos_token_id", "[3, -1]", "one to eight token ids of at most 511", "got [3, -1]"},
        {deepseek, "eos_token_id", "[3, null]", "one to eight token ids of at most 511", "got [3, null]"},
        {deepseek, "bos_token_id", "512", "a token id of at most 511", "got 512"},
        {deepseek, "bos_token_id", "-1", "a token id of at most 511", "got -1"},
        {deepseek, "bos_token_id", "[1, 2]", "a token id of at most 511", "got [1, 2]"},
        {deepseek, "hidden_act", "\"\"", "a short string", "got \"\""},
        {deepseek, "hidden_act", "\"" THIRTY_ONE "+\"", "a short string", "got \"" THIRTY_ONE "+\""},
        {deepseek, "scoring_func", "\"" THIRTY_ONE "+\"", "a short string", "got \"" THIRTY_ONE "+\""},
        {deepseek, "topk_method", "\"" THIRTY_ONE "+\"", "a short string", "got \"" THIRTY_ONE "+\""},
        {deepseek, "tie_word_embeddings", "\"no\"", "true or false", "got \"no\""},
        {deepseek, "rope_theta", "0", "positive", "got 0"},
        {deepseek, "rope_scaling", "{\"type\": \"yarn\", \"factor\": 0.0}", "a factor of at least 1", "got {"},
        {deepseek, "rope_scaling", "{\"type\": \"spiral\", \"factor\": 2.0}", "yarn", "spiral"},
        {deepseek, "rope_scaling", "4", "an object or null", "got 4"},
        {deepseek, "quantization_config", "[]", "an object or null", "got ["},
        {deepseek, "quantization_config", "{\"quant_method\": \"qqq\"}", "fp8 or compressed-tensors", "quant_method: expected"},
        {deepseek, "quantization_config", "{\"quant_method\": \"fp8\"}", "two positive integers", "got absent"},
        {deepseek, "quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": [0, 128]}", "two positive integers",
         "got [0, 128]"},
        {deepseek, "quantization_config", "{\"quant_method\": \"fp8\", \"fmt\": \"e3m4\"}", "e4m3", "got \"e3m4\""},
        {deepseek, "quantization_config", "{\"quant_method\": \"compressed-tensors\", \"format\": \"mxfp4-pack-quantized\"}",
         "pack-quantized",
         "got \"mxfp4-pack-quantized\""},
        {deepseek, "quantization_config", "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\"}", "config_groups",
         "got absent"},
        {llama, "num_key_value_heads", "5", "a divisor of num_attention_heads", "got 5"},
        {llama, "num_attention_heads", "24", "a divisor of hidden_size", "got 24"},
        {llama, "head_dim", "127", "even", "got 127"},
        {v4, "compress_ratios", NULL, "one per layer", "got absent"},
        {v4, "compress_ratios", "[0]", "one per layer", "got [0]"},
        {v4, "compress_ratios", "[0, -1]", "one per layer", "got [0, -1]"},
        {v4, "compress_ratios", "[0, 1048577]", "one per layer", "got [0, 1048577]"},
        {v4, "o_groups", "3", "a divisor", "got 3"},
        {v4, "head_dim", NULL, "an integer", "got absent"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(cases[i].base, cases[i].key, cases[i].value, cases[i].expected, cases[i].got);
}

static void test_int4_schemes(void **state) {
    (void)state;
    mica_config config = accept(deepseek, "quantization_config", int4);
    assert_int_equal(config.quantisation, MICA_QUANTISATION_INT4);
    assert_int_equal(config.group_size, 32);
    static const char *const changes[][3] = {/* in the text, by, named */
                                             {"\"num_bits\": 4", "\"num_bits\": 8", "num_bits"},
                                             {"\"symmetric\": true", "\"symmetric\": false", "symmetric"},
                                             {"\"type\": \"int\"", "\"type\": \"float\"", "type"},
                                             {"\"strategy\": \"group\"", "\"strategy\": \"channel\"", "strategy"},
                                             {"\"group_size\": 32", "\"group_size\": 0", "group_size"},
                                             {"\"group_size\": 32", "\"actorder\": \"group\", \"group_size\": 32", "actorder"}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char text[512];
        const char *at = strstr(int4, changes[i][0]);
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - int4), int4, changes[i][1], at + strlen(changes[i][0]));
        refuse(deepseek, "quantization_config", text, changes[i][2], "config_groups.group_0.weights.");
    }
}

static void test_defaults(void **state) {
    (void)state;
    mica_config config = accept(deepseek, NULL, NULL);
    assert_int_equal(config.moe_layer_freq, 1);
    assert_int_equal(config.weight_block_rows, 128);
    assert_int_equal(config.weight_block_columns, 64);
    assert_string_equal(config.topk_method, "noaux_tc");
    assert_false(mica_config_layer_is_moe(&config, 0));
    assert_true(mica_config_layer_is_moe(&config, 1));
    config = accept(deepseek, "num_nextn_predict_layers", NULL);
    assert_int_equal(config.num_nextn_predict_layers, 1);
    config = accept(deepseek, "moe_layer_freq", "2");
    assert_false(mica_config_layer_is_moe(&config, 1));
    assert_int_equal(accept(deepseek, "q_lora_rank", "null").q_lora_rank, 0);
    assert_int_equal(accept(deepseek, "n_group", "null").n_group, 1);
    assert_int_equal(accept(deepseek, "n_shared_experts", NULL).n_shared_experts, 0);
    assert_int_equal(accept(deepseek, "quantization_config", "null").quantisation, MICA_QUANTISATION_NONE);
    config = accept(llama, NULL, NULL);
    assert_int_equal(config.head_dim, 128);
    assert_int_equal(config.n_routed_experts, 0);
    assert_int_equal(accept(llama, "num_key_value_heads", NULL).num_key_value_heads, 32);
    assert_false(accept(llama, "tie_word_embeddings", NULL).tie_word_embeddings);
    config = accept(v4, NULL, NULL);
    assert_int_equal(config.compress_ratio_count, 3);
    assert_int_equal(config.compress_ratios[1], 4);
}

/* What a file leaves out is what the published configuration classes have: DeepseekV2Config, DeepseekV3Config, DeepseekV4Config, LlamaConfig. */
static void test_class_defaults(void **state) {
    (void)state;
    static const struct {
        const char *base, *model_type;
        const char *scoring_func, *topk_method;
        bool norm_topk_prob;
        double routed_scaling_factor;
    } cases[] = {
        {deepseek, "\"deepseek_v2\"", "softmax", "greedy", false, 1.0},
        {deepseek, "\"deepseek_v3\"", "sigmoid", "noaux_tc", true, 2.5},
        {v4, "\"deepseek_v4\"", "sqrtsoftplus", "noaux_tc", true, 1.5},
        {llama, "\"llama\"", "", "", false, 1.0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mica_config config = accept(cases[i].base, "model_type", cases[i].model_type);
        assert_string_equal(config.scoring_func, cases[i].scoring_func);
        assert_string_equal(config.topk_method, cases[i].topk_method);
        assert_int_equal(config.norm_topk_prob, cases[i].norm_topk_prob);
        assert_true(config.routed_scaling_factor == cases[i].routed_scaling_factor);
        assert_string_equal(config.hidden_act, "silu");
        assert_false(config.attention_bias || config.mlp_bias || config.tie_word_embeddings);
        assert_int_equal(config.bos_token_id, -1); /* the header's: none, where the file names none */
        assert_int_equal(config.eos_token_count, 0);
        config = accept(cases[i].base, "rms_norm_eps", NULL);
        assert_true(config.rms_norm_eps == 1e-6 && config.latent_norm_eps == 1e-6);
    }
    assert_false(accept(deepseek, "norm_topk_prob", "false").norm_topk_prob);
    assert_true(accept(deepseek, "routed_scaling_factor", "2").routed_scaling_factor == 2);
    const mica_config config = accept(deepseek, "rms_norm_eps", "1e-05");
    assert_true(config.rms_norm_eps == 1e-5 && config.latent_norm_eps == 1e-6);
}

/* The last that are accepted, where test_refusals has the first that are not. */
static void test_bounds(void **state) {
    (void)state;
    mica_config config = accept(deepseek, "eos_token_id", "[511, 1, 2, 3, 4, 5, 6, 0]");
    assert_int_equal(config.eos_token_count, 8);
    assert_int_equal(config.eos_token_ids[0], 511);
    assert_int_equal(config.eos_token_ids[7], 0);
    config = accept(deepseek, "eos_token_id", "511");
    assert_int_equal(config.eos_token_count, 1);
    assert_int_equal(config.eos_token_ids[0], 511);
    assert_int_equal(accept(deepseek, "bos_token_id", "511").bos_token_id, 511);
    assert_int_equal(accept(deepseek, "bos_token_id", "0").bos_token_id, 0);
    assert_string_equal(accept(deepseek, "hidden_act", "\"" THIRTY_ONE "\"").hidden_act, THIRTY_ONE);
    assert_int_equal(accept(v4, "compress_ratios", "[0, 1048576]").compress_ratios[1], 1048576);
}

static void test_rope(void **state) {
    (void)state;
    mica_config config = accept(llama, "rope_scaling",
                                "{\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
                                "\"original_max_position_embeddings\": 8192}");
    assert_string_equal(config.rope_type, "llama3");
    assert_true(config.rope_factor == 8);
    config = accept(llama, "rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 500000.0}");
    assert_string_equal(config.rope_type, "");
    assert_true(config.rope_theta == 500000);
    config = accept(llama, "rope_parameters", "{\"full_attention\": {\"rope_type\": \"linear\", \"factor\": 8, \"rope_theta\": 1000000},"
                                              "\"sliding_attention\": {\"rope_type\": \"default\", \"rope_theta\": 10000}}");
    assert_string_equal(config.rope_type, "linear");
    assert_true(config.rope_theta == 1e6);
    config = accept(deepseek, "rope_scaling", "{\"type\": \"yarn\", \"factor\": 40}");
    assert_true(config.rope_factor == 40 && config.rope_theta == 50000);
    assert_string_equal(accept(deepseek, "rope_scaling", "null").rope_type, "");
}

static void test_nested(void **state) {
    (void)state;
    char text[4096];
    mica_error error = {0};
    mica_config config;
    snprintf(text, sizeof text, "{\"model_type\": \"kimi_k25\", \"text_config\": %s}", deepseek);
    assert_int_equal(mica_config_parse("config.json", text, strlen(text), &config, &error), MICA_OK);
    assert_string_equal(config.model_type, "kimi_k25");
    assert_string_equal(config.architecture->prefix, "language_model.");
    assert_int_equal(config.quantisation, MICA_QUANTISATION_FP8);
    refuse("{\"model_type\": \"kimi_vl\"}", "text_config", NULL, "an object", "got absent");
    refuse("{\"model_type\": \"kimi_vl\", \"text_config\": {\"hidden_size\": 4}}", "text_config.num_hidden_layers", NULL, "an integer",
           "got absent");
    /* what Gemma 3 leaves to its modelling code */
    static const char gemma[] = "{\"model_type\": \"gemma3\", \"text_config\": {\"hidden_size\": 2560, \"intermediate_size\": 10240,"
                                "\"num_hidden_layers\": 34, \"rope_scaling\": {\"factor\": 8.0, \"rope_type\": \"linear\"}}}";
    config = accept(gemma, NULL, NULL);
    assert_int_equal(config.head_dim, 256);
    assert_int_equal(config.num_key_value_heads, 4);
    assert_true(config.tie_word_embeddings);
    assert_false(accept(gemma, "tie_word_embeddings", "false").tie_word_embeddings);
}

static void load(const char *path, mica_config *config) {
    mica_error error = {0};
    if (!mica_path_exists(path)) {
        printf("skipped: %s is not there\n", path);
        skip();
    }
    char *json = NULL;
    uint64_t length = 0;
    if (mica_file_load(path, MICA_CONFIG_BYTES_MAX, &json, &length, &error) != MICA_OK ||
        mica_config_parse(path, json, length, config, &error) != MICA_OK)
        fail_msg("%s", error.message);
    mica_free(json);
}

static void test_tiny_k2(void **state) {
    (void)state;
    mica_config config;
    load(TINY_K2, &config);
    assert_int_equal(config.n_routed_experts, 24);
    assert_int_equal(config.hidden_size, 256);
    assert_string_equal(config.rope_type, "yarn");
}

static void test_kimi_k2(void **state) {
    (void)state;
    mica_config config;
    load(SHARED "data/kimi-k2/kimi-k2-config.json", &config);
    assert_int_equal(config.num_hidden_layers, 61);
    assert_int_equal(config.n_routed_experts, 384);
    assert_int_equal(config.num_nextn_predict_layers, 0);
    assert_true(config.routed_scaling_factor == 2.827);
    load(SHARED "data/kimi-k2/k2-mini-config.json", &config);
    assert_int_equal(config.n_shared_experts, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_refusals), cmocka_unit_test(test_int4_schemes),
                                       cmocka_unit_test(test_defaults),     cmocka_unit_test(test_class_defaults),
                                       cmocka_unit_test(test_bounds),
                                       cmocka_unit_test(test_rope),     cmocka_unit_test(test_nested),       cmocka_unit_test(test_tiny_k2),
                                       cmocka_unit_test(test_kimi_k2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
