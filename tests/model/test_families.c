/* test_families.c: the families of which there is no fixture, by the names and shapes their published checkpoints have, written here by
 * hand; and every way in which a tensor can be missing, odd or too many. The checkpoints hold headers and zeros. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/no_memory.h"
#include "base/text.h"
#include "model/model.h"

static char directory[256];

static int make(void **state) {
    (void)state;
    const char *parent = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/mica-test-XXXXXX", parent ? parent : P_tmpdir);
    return mkdtemp(directory) ? 0 : -1;
}

static void write_file(const char *name, const void *bytes, size_t length, uint64_t zeros) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    if (zeros) { /* a .safetensors file */
        uint64_t header = length;
        assert_int_equal(fwrite(&header, 1, 8, file), 8);
    }
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
    if (zeros)
        assert_int_equal(truncate(path, (off_t)(8 + length + zeros)), 0);
}

static int clean(void **state) {
    (void)state;
    static const char *const names[] = {"config.json", "model.safetensors"};
    for (size_t i = 0; i < 2; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
    return rmdir(directory);
}

/* A line per tensor: "name DTYPE d0 d1"; "{L}" and "{E}" stand for 0 … layers - 1 and experts - 1. Lines whose name begins with `without`
 * are left out; `extra` is more lines. */
typedef struct recipe {
    const char *config, *tensors;
    unsigned layers, experts;
    const char *without, *extra;
} recipe;

static void add_tensor(mica_text *header, const char *name, const char *rest, uint64_t *offset) {
    char dtype_name[16], shape[128] = "";
    mica_dtype dtype;
    int used = 0;
    uint64_t bytes, extent;
    assert_int_equal(sscanf(rest, "%15s%n", dtype_name, &used), 1);
    assert_true(mica_dtype_parse(dtype_name, &dtype));
    bytes = mica_dtype_bytes(dtype);
    for (rest += used; sscanf(rest, "%lu%n", &extent, &used) == 1; rest += used) {
        snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%lu", *shape ? "," : "", extent);
        bytes *= extent;
    }
    mica_text_printf(header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%lu,%lu]}", header->length > 1 ? "," : "", name,
                     dtype_name, shape,
                     *offset, *offset + bytes);
    *offset += bytes;
}

static void expand(mica_text *header, const recipe *made, const char *without, const char *name, const char *rest, uint64_t *offset) {
    static const char *const marks[] = {"{L}", "{E}"};
    for (int i = 0; i < 2; i++) {
        const char *mark = strstr(name, marks[i]);
        for (unsigned n = 0; mark && n < (i ? made->experts : made->layers); n++) {
            char copy[256];
            snprintf(copy, sizeof copy, "%.*s%u%s", (int)(mark - name), name, n, mark + 3);
            expand(header, made, without, copy, rest, offset);
        }
        if (mark)
            return;
    }
    if (!without || strncmp(name, without, strlen(without)) != 0)
        add_tensor(header, name, rest, offset);
}

static void write_checkpoint(const recipe *made) {
    mica_text header = MICA_TEXT_INIT;
    uint64_t offset = 0;
    const char *const parts[] = {made->tensors, made->extra ? made->extra : ""};
    mica_text_puts(&header, "{");
    for (int i = 0; i < 2; i++) {
        for (const char *line = parts[i]; *line; line = strchr(line, '\n') + 1) {
            char name[256];
            int used = 0;
            assert_int_equal(sscanf(line, "%255s%n", name, &used), 1);
            char rest[128];
            snprintf(rest, sizeof rest, "%.*s", (int)(strchr(line, '\n') - line - used), line + used);
            expand(&header, made, i == 0 ? made->without : NULL, name, rest, &offset);
        }
    }
    mica_text_puts(&header, "}");
    write_file("config.json", made->config, strlen(made->config), 0);
    write_file("model.safetensors", header.bytes, header.length, offset);
    mica_text_release(&header);
}

static mica_model *accept(const recipe *made, uint64_t ignored, uint64_t unknown) {
    mica_model *model = NULL;
    mica_error error = {0};
    write_checkpoint(made);
    if (mica_model_open(directory, NULL, &model, &error) != MICA_OK)
        fail_msg("%.40s…: %s", made->config, error.message);
    if (model->unknown_count != unknown || model->ignored_count != ignored) {
        fail_msg("%.40s…: %lu ignored, %lu unknown: %s", made->config, model->ignored_count, model->unknown_count,
                 model->warning_count ? model->warnings[0] : "");
    }
    return model;
}

static void refuse(const recipe *made, const char *mention, const char *got) {
    mica_model *model = NULL;
    mica_error error = {0};
    write_checkpoint(made);
    mica_status status = mica_model_open(directory, NULL, &model, &error);
    if (status != MICA_BAD_INPUT || !strstr(error.message, mention) || !strstr(error.message, got))
        fail_msg("expected %s … %s, got status %d: %s", mention, got, (int)status, error.message);
}

/* ---- dense families */

#define LAYER "model.layers.{L}."
#define DENSE(prefix)                                                                                                       \
    prefix "model.embed_tokens.weight BF16 32 16\n" prefix "model.norm.weight BF16 16\n"                                    \
    prefix LAYER "input_layernorm.weight BF16 16\n" prefix LAYER "post_attention_layernorm.weight BF16 16\n"                \
    prefix LAYER "self_attn.q_proj.weight BF16 32 16\n" prefix LAYER "self_attn.k_proj.weight BF16 16 16\n"                 \
    prefix LAYER "self_attn.v_proj.weight BF16 16 16\n" prefix LAYER "self_attn.o_proj.weight BF16 16 32\n"                 \
    prefix LAYER "mlp.gate_proj.weight BF16 24 16\n" prefix LAYER "mlp.up_proj.weight BF16 24 16\n"                         \
    prefix LAYER "mlp.down_proj.weight BF16 16 24\n"
#define NUMBERS                                                                                                             \
    "\"hidden_size\": 16, \"intermediate_size\": 24, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"                 \
    "\"num_key_value_heads\": 2, \"head_dim\": 8, \"vocab_size\": 32"
#define HEAD "lm_head.weight BF16 32 16\n"
#define FEEDFORWARD_NORMS(prefix)                                                                                           \
    prefix LAYER "pre_feedforward_layernorm.weight BF16 16\n" prefix LAYER "post_feedforward_layernorm.weight BF16 16\n"
#define HEAD_NORMS(prefix) prefix LAYER "self_attn.q_norm.weight BF16 8\n" prefix LAYER "self_attn.k_norm.weight BF16 8\n"

#define BIASES                                                                                                              \
    LAYER "self_attn.q_proj.bias BF16 32\n" LAYER "self_attn.k_proj.bias BF16 16\n" LAYER "self_attn.v_proj.bias BF16 16\n" \
    LAYER "self_attn.o_proj.bias BF16 16\n" LAYER "mlp.gate_proj.bias BF16 24\n" LAYER "mlp.up_proj.bias BF16 24\n"        \
    LAYER "mlp.down_proj.bias BF16 16\n"

static void test_dense(void **state) {
    (void)state;
    static const recipe recipes[] = {
        {"{\"model_type\": \"mistral\", \"sliding_window\": null," NUMBERS "}", DENSE("") HEAD, 2, 0, NULL, NULL},
        {"{\"model_type\": \"llama\", \"attention_bias\": true, \"mlp_bias\": true," NUMBERS "}",
         DENSE("") HEAD BIASES,
         2, 0, NULL, NULL},
        {"{\"model_type\": \"gemma\"," NUMBERS "}", DENSE(""), 2, 0, NULL, NULL}, /* tied by default */
        {"{\"model_type\": \"gemma\"," NUMBERS "}", DENSE("") HEAD, 2, 0, NULL, NULL}, /* and a head all the same */
        {"{\"model_type\": \"gemma2\"," NUMBERS "}", DENSE("") FEEDFORWARD_NORMS(""), 2, 0, NULL, NULL},
        {"{\"model_type\": \"gemma3_text\"," NUMBERS "}", DENSE("") FEEDFORWARD_NORMS("") HEAD_NORMS(""), 2, 0, NULL, NULL},
    };
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        mica_model *model = accept(&recipes[i], 0, 0);
        assert_non_null(model->layers[1].dense[MICA_DOWN]);
        mica_model_close(model);
    }
    recipe made = {"{\"model_type\": \"gemma3\", \"text_config\": {" NUMBERS "}}",
                   DENSE("language_model.") FEEDFORWARD_NORMS("language_model.") HEAD_NORMS("language_model."), 2, 0, NULL,
                   "vision_tower.vision_model.embeddings.patch_embedding.weight BF16 4 3 2 2\n"
                   "multi_modal_projector.mm_input_projection_weight BF16 4 16\n"};
    mica_model_close(accept(&made, 2, 0));
    made = recipes[0];
    made.extra = "model.layers.0.self_attn.rotary_emb.inv_freq F32 4\nmodel.layers.1.self_attn.rotary_emb.inv_freq F32 4\n";
    mica_model_close(accept(&made, 2, 0));
    /* there is no layer 2, and there are no biases */
    made.extra = "model.layers.2.mlp.gate_proj.weight BF16 24 16\nmodel.layers.0.self_attn.q_proj.bias BF16 32\n";
    mica_model_close(accept(&made, 0, 2));
}

static void test_dense_refusals(void **state) {
    (void)state;
    recipe made = {"{\"model_type\": \"mistral\"," NUMBERS "}", DENSE(""), 2, 0, NULL, NULL};
    refuse(&made, "lm_head.weight: expected present", "got absent");
    made = (recipe){"{\"model_type\": \"mistral\"," NUMBERS "}", DENSE("") HEAD, 1, 0, NULL, NULL};
    refuse(&made, "model.layers.1.*: expected 2 layers", "got layer 1 absent");
    made = (recipe){"{\"model_type\": \"qwen3\"," NUMBERS "}", DENSE("") HEAD, 2, 0, NULL, NULL};
    refuse(&made, "model.layers.0.self_attn.q_norm.weight: expected present", "got absent");
    made = (recipe){"{\"model_type\": \"llama\", \"attention_bias\": true," NUMBERS "}", DENSE("") HEAD, 2, 0, NULL, NULL};
    refuse(&made, "model.layers.0.self_attn.q_proj.bias: expected present", "got absent");
    made = (recipe){"{\"model_type\": \"mistral\"," NUMBERS "}", DENSE("") HEAD, 2, 0, "model.layers.1.mlp.up",
                    "model.layers.1.mlp.up_proj.weight F16 16 24\n"};
    refuse(&made, "model.safetensors: model.layers.1.mlp.up_proj.weight: expected shape [24, 16]", "got [16, 24]");
    made.extra = "model.layers.1.mlp.up_proj.weight F8_E4M3 24 16\n";
    refuse(&made, "quantization_config", "got absent");
}

/* ---- mixtures of experts */

#define MLP(prefix, width, dtype)                                                                                           \
    prefix "gate_proj.weight " dtype " " width " 16\n" prefix "up_proj.weight " dtype " " width " 16\n"                     \
    prefix "down_proj.weight " dtype " 16 " width "\n"
#define MIXTURE                                                                                                             \
    "model.embed_tokens.weight BF16 32 16\nmodel.norm.weight BF16 16\n" HEAD                                                \
    LAYER "input_layernorm.weight BF16 16\n" LAYER "post_attention_layernorm.weight BF16 16\n"                              \
    LAYER "self_attn.kv_a_proj_with_mqa.weight BF16 8 16\n" LAYER "self_attn.kv_a_layernorm.weight BF16 6\n"                \
    LAYER "self_attn.kv_b_proj.weight BF16 14 6\n" LAYER "self_attn.o_proj.weight BF16 16 6\n"                              \
    "model.layers.1.mlp.gate.weight BF16 3 16\n" MLP("model.layers.0.mlp.", "24", "BF16")                                   \
    MLP("model.layers.1.mlp.shared_experts.", "20", "BF16")
#define EXPERTS MLP("model.layers.1.mlp.experts.{E}.", "10", "BF16")
#define PLAIN_QUERY LAYER "self_attn.q_proj.weight BF16 12 16\n"
#define LOW_RANK_QUERY                                                                                                      \
    LAYER "self_attn.q_a_proj.weight BF16 5 16\n" LAYER "self_attn.q_a_layernorm.weight BF16 5\n" \
    LAYER "self_attn.q_b_proj.weight BF16 12 5\n"
#define BIAS "model.layers.1.mlp.gate.e_score_correction_bias F32 3\n"
#define INDEXER                                                                                                             \
    LAYER "self_attn.indexer.wq_b.weight BF16 8 5\n" LAYER "self_attn.indexer.wk.weight BF16 4 16\n"                        \
    LAYER "self_attn.indexer.k_norm.weight BF16 4\n" LAYER "self_attn.indexer.k_norm.bias BF16 4\n"                         \
    LAYER "self_attn.indexer.weights_proj.weight BF16 2 16\n"
#define MIXTURE_NUMBERS                                                                                                     \
    "\"hidden_size\": 16, \"intermediate_size\": 24, \"moe_intermediate_size\": 10, \"num_hidden_layers\": 2, \"num_attention_heads\": 2," \
    "\"vocab_size\": 32, \"n_routed_experts\": 3, \"n_shared_experts\": 2, \"num_experts_per_tok\": 2, \"first_k_dense_replace\": 1," \
    "\"kv_lora_rank\": 6, \"qk_nope_head_dim\": 4, \"qk_rope_head_dim\": 2, \"v_head_dim\": 3, \"num_nextn_predict_layers\": 1"
#define V3 "{\"model_type\": \"deepseek_v3\", \"q_lora_rank\": 5," MIXTURE_NUMBERS

static void test_mixtures(void **state) {
    (void)state;
    static const recipe recipes[] = {
        {"{\"model_type\": \"deepseek_v2\", \"q_lora_rank\": null, \"topk_method\": \"greedy\"," MIXTURE_NUMBERS "}",
         MIXTURE EXPERTS PLAIN_QUERY, 2, 3, NULL, NULL},
        {V3 "}", MIXTURE EXPERTS LOW_RANK_QUERY BIAS, 2, 3, NULL, NULL},
        {"{\"model_type\": \"deepseek_v32\", \"q_lora_rank\": 5, \"index_n_heads\": 2, \"index_head_dim\": 4," MIXTURE_NUMBERS "}",
         MIXTURE EXPERTS LOW_RANK_QUERY BIAS INDEXER, 2, 3, NULL, NULL},
    };
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        mica_model *model = accept(&recipes[i], 0, 0);
        assert_false(model->layers[0].moe);
        assert_int_equal(model->layers[1].experts[2 * MICA_PROJECTION_COUNT + MICA_DOWN]->columns, 10);
        assert_int_equal(model->layers[1].shared[MICA_UP]->rows, 20);
        mica_model_close(model);
    }
    recipe made = recipes[1];
    made.extra = "model.layers.2.enorm.weight BF16 16\nmodel.layers.3.enorm.weight BF16 16\n"; /* one prediction layer is declared */
    mica_model_close(accept(&made, 1, 1));
    made.extra = "model.layers.1.mlp.experts.3.up_proj.weight BF16 10 16\nmodel.layers.0.mlp.gate.weight BF16 3 16\n";
    mica_model_close(accept(&made, 0, 2));
}

static void test_mixture_refusals(void **state) {
    (void)state;
    recipe made = {V3 "}", MIXTURE EXPERTS LOW_RANK_QUERY BIAS, 2, 2, NULL, NULL};
    refuse(&made, "model.layers.1.mlp.experts.2.*: expected 3 experts in layer 1", "got expert 2 absent");
    made = (recipe){V3 "}", MIXTURE EXPERTS LOW_RANK_QUERY, 2, 3, NULL, NULL};
    refuse(&made, "e_score_correction_bias: expected present", "got absent");
    made = (recipe){V3 "}", MIXTURE EXPERTS LOW_RANK_QUERY BIAS, 2, 3, "model.layers.1.mlp.shared_experts", NULL};
    refuse(&made, "model.layers.1.mlp.shared_experts.gate_proj.weight: expected present", "got absent");
}

/* ---- encodings of one weight, model.layers.1.mlp.up_proj of a dense model: 24 x 16 */

#define UP "model.layers.1.mlp.up_proj."
#define FP8 \
    "{\"model_type\": \"mistral\", \"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [10, 8]}," NUMBERS "}"
#define INT4                                                                                                                \
    "{\"model_type\": \"mistral\", \"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\"," \
    "\"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 4, \"symmetric\": true, \"group_size\": 8}}}}," NUMBERS "}"

static void test_encodings(void **state) {
    (void)state;
    static const struct {
        const char *config, *extra;
        mica_encoding encoding;
    } good[] = {
        {FP8, UP "weight F8_E4M3 24 16\n" UP "weight_scale_inv F32 3 2\n", MICA_ENCODING_FP8_BLOCK},
        {FP8, UP "weight F8_E5M2 24 16\n" UP "weight_scale_inv F8_E8M0 3 2\n", MICA_ENCODING_FP8_BLOCK},
        {FP8, UP "weight F32 24 16\n", MICA_ENCODING_PLAIN},
        {INT4, UP "weight_packed I32 24 2\n" UP "weight_scale BF16 24 2\n" UP "weight_shape I32 2\n", MICA_ENCODING_INT4_GROUP},
        {INT4, UP "weight_packed I32 24 2\n" UP "weight_scale F32 24 2\n" UP "weight_shape I64 2\n", MICA_ENCODING_INT4_GROUP},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        recipe made = {good[i].config, DENSE("") HEAD, 2, 0, UP, good[i].extra};
        mica_model *model = accept(&made, 0, 0);
        const mica_weight *weight = mica_model_weight(model, UP "weight");
        assert_ptr_equal(weight, model->layers[1].dense[MICA_UP]);
        assert_int_equal(weight->encoding, good[i].encoding);
        assert_true(weight->rows == 24 && weight->columns == 16);
        mica_model_close(model);
    }
    static const char *const bad[][4] = {
        {FP8, UP "weight F8_E4M3 24 16\n", UP "weight is F8_E4M3: expected its", "weight_scale_inv, got absent"},
        {FP8, UP "weight F8_E4M3 24 16\n" UP "weight_scale_inv F32 2 3\n", UP "weight_scale_inv: expected shape [3, 2]", "got [2, 3]"},
        {FP8, UP "weight F8_E4M3 24 16\n" UP "weight_scale_inv BF16 3 2\n", UP "weight_scale_inv: expected dtype F32", "got BF16"},
        {FP8, UP "weight I8 24 16\n", UP "weight: expected dtype BF16", "got I8"},
        {FP8, UP "weight_packed I32 24 2\n" UP "weight_scale BF16 24 2\n" UP "weight_shape I32 2\n", "compressed-tensors",
         "got quant_method fp8"},
        {INT4, UP "weight F8_E4M3 24 16\n" UP "weight_scale_inv F32 3 2\n", "quant_method fp8", "got quant_method compressed-tensors"},
        {INT4, UP "weight_packed I32 24 4\n" UP "weight_scale BF16 24 2\n" UP "weight_shape I32 2\n", "expected shape [24, 2]",
         "got [24, 4]"},
        {INT4, UP "weight_packed I32 24 2\n" UP "weight_scale BF16 24 1\n" UP "weight_shape I32 2\n", "expected shape [24, 2]",
         "got [24, 1]"},
        {INT4, UP "weight_packed I32 24 2\n" UP "weight_scale BF16 24 2\n", "weight_shape", "got absent"},
        {INT4, UP "weight_packed I32 24 2\n" UP "weight_shape I32 2\n", "weight_scale", "got absent"},
        {INT4, UP "weight_packed I32 24 2\n" UP "weight_scale I8 24 2\n" UP "weight_shape I32 2\n", "expected dtype BF16, F16 or F32",
         "got I8"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        recipe made = {bad[i][0], DENSE("") HEAD, 2, 0, UP, bad[i][1]};
        refuse(&made, bad[i][2], bad[i][3]);
    }
}

/* A scale without its weight, a weight in a place nobody knows: each tensor is a weight of its own or goes with its scale. */
static void test_unknown_tensors(void **state) {
    (void)state;
    recipe made = {FP8, DENSE("") HEAD, 2, 0, NULL,
                   "adapter.weight F8_E4M3 12 9\nadapter.weight_scale_inv F32 2 2\nlonely.weight_scale_inv F32 2 2\n"
                                                   "odd.weight F8_E4M3 12 9\nodd.weight_scale_inv F32 5 5\nscalar F64\nempty I64 0 7\n"};
    mica_model *model = accept(&made, 0, 7);
    const mica_weight *adapter = mica_model_weight(model, "adapter.weight"), *odd = mica_model_weight(model, "odd.weight");
    assert_int_equal(adapter->encoding, MICA_ENCODING_FP8_BLOCK);
    assert_int_equal(adapter->fate, MICA_UNKNOWN);
    assert_int_equal(odd->encoding, MICA_ENCODING_PLAIN);
    assert_int_equal(mica_model_weight(model, "scalar")->columns, 1);
    assert_int_equal(mica_model_weight(model, "empty")->columns, 0);
    assert_null(mica_model_weight(model, "adapter.weight_scale_inv"));
    assert_non_null(mica_model_weight(model, "lonely.weight_scale_inv"));
    assert_int_equal(model->warning_count, 7);
    for (uint64_t i = 0; i < model->weight_count; i++) {
        float *values = NULL;
        assert_int_equal(mica_weight_load(model, &model->weights[i], &values, NULL), MICA_OK);
        mica_free(values);
    }
    mica_model_close(model);
}

/* Any allocation may fail, from there on: a status and a sentence, nothing leaked (the sanitizers look). */
static void test_out_of_memory(void **state) {
    (void)state;
    recipe made = {INT4, DENSE("") HEAD, 2, 0, UP,
                   UP "weight_packed I32 24 2\n" UP "weight_scale BF16 24 2\n" UP "weight_shape I32 2\nlonely BF16 3\n"};
    write_checkpoint(&made);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_model *model = NULL;
        mica_error error = {0};
        no_memory_begin(&trial);
        const mica_status status = mica_model_open(directory, NULL, &model, &error);
        mica_model_close(model);
        no_memory_end(&trial, status, MICA_OK, &error);
        assert_true(status == MICA_OK || (error.status == status && strlen(error.message) > 10));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dense),     cmocka_unit_test(test_dense_refusals),
                                       cmocka_unit_test(test_mixtures),
                                       cmocka_unit_test(test_mixture_refusals), cmocka_unit_test(test_encodings),
                                       cmocka_unit_test(test_unknown_tensors),
                                       cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, make, clean);
}
