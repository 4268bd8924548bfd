/* Judges model/config_gguf.c, model_slice.c and the GGUF rows of architecture.c: a small deepseek2 file in both layouts of kv_b, its
 * configuration, every tensor accounted for, experts as slices of one tensor; and what is wrong in one place, refused in one line. */
#include "base/no_memory.h"
#include "formats/gguf.h"
#include "formats/shards.h"
#include "model/config_gguf.h"
#include "model/gguf_model.h"
#include "model/model.h"

static mica_model *open_model(gguf_model *file, const char *name) {
    mica_model *model = NULL;
    mica_error error = {0};
    gguf_write(file, name);
    if (mica_model_open(scratch(name), NULL, &model, &error) != MICA_OK)
        fail_msg("%s", error.message);
    return model;
}

static void test_configuration(void **state) {
    (void)state;
    gguf_model file = {0};
    mica_model *model = open_model(&file, "model.gguf");
    const mica_config *config = &model->config;
    assert_string_equal(config->model_type, "deepseek2");
    assert_string_equal(config->architecture->family, "deepseek_v3");
    assert_true(config->num_hidden_layers == 2 && config->hidden_size == 64 && config->intermediate_size == 96 && config->vocab_size == 8);
    assert_true(config->num_attention_heads == 2 && config->q_lora_rank == 32 && config->kv_lora_rank == 32);
    assert_true(config->qk_nope_head_dim == 32 && config->qk_rope_head_dim == 16 && config->v_head_dim == 64 && config->split_kv_b);
    assert_true(config->n_routed_experts == 3 && config->num_experts_per_tok == 2 && config->moe_intermediate_size == 32);
    assert_true(config->n_shared_experts == 1 && config->first_k_dense_replace == 1 && config->n_group == 1 && config->topk_group == 1);
    assert_true(config->norm_topk_prob && config->routed_scaling_factor == 2.827); /* the decimal, not the float */
    assert_string_equal(config->scoring_func, "sigmoid");
    assert_string_equal(config->topk_method, "noaux_tc");
    assert_true(config->rms_norm_eps == 1e-5 && config->latent_norm_eps == 1e-6);
    assert_string_equal(config->rope_type, "yarn");
    assert_true(config->rope_theta == 50000 && config->rope_factor == 32 && config->rope_original_context == 64 &&
                config->rope_interleaved);
    assert_true(config->rope_beta_fast == 1 && config->rope_beta_slow == 1 && config->rope_mscale == 1 && config->rope_mscale_all_dim == 1);
    assert_true(config->max_position_embeddings == 128 && config->tie_word_embeddings);
    assert_true(config->bos_token_id == 6 && config->eos_token_count == 1 && config->eos_token_ids[0] == 7);
    assert_int_equal(config->quantisation, MICA_QUANTISATION_BLOCKS);
    mica_model_close(model);
    file.untied = true;
    file.key = "deepseek2.expert_gating_func";
    file.value = 1;
    model = open_model(&file, "model.gguf");
    assert_false(model->config.tie_word_embeddings);
    assert_string_equal(model->config.architecture->family, "deepseek_v2");
    assert_string_equal(model->config.scoring_func, "softmax");
    assert_string_equal(model->config.topk_method, "greedy");
    assert_string_equal(model->head->name, "output.weight");
    mica_model_close(model);
}

static void test_every_tensor_is_used(void **state) {
    (void)state;
    gguf_model file = {0};
    mica_model *model = open_model(&file, "model.gguf");
    assert_int_equal(model->used_count, model->source->tensor_count);
    assert_int_equal(model->warning_count, 0);
    assert_int_equal(model->weight_count, model->source->tensor_count + 3 * (GGUF_EXPERTS - 1));
    assert_ptr_equal(model->head, model->embedding);
    for (uint64_t i = 1; i < model->weight_count; i++)
        assert_true(strcmp(model->weights[i - 1].name, model->weights[i].name) < 0);
    const mica_layer *dense = &model->layers[0], *moe = &model->layers[1];
    assert_true(!dense->moe && moe->moe && dense->dense[MICA_DOWN] && moe->shared[MICA_GATE] && moe->router && moe->router_bias);
    static const mica_part parts[] = {MICA_PART_INPUT_NORM, MICA_PART_POST_NORM, MICA_PART_Q_A, MICA_PART_Q_A_NORM, MICA_PART_Q_B,
                                      MICA_PART_KV_A, MICA_PART_KV_A_NORM, MICA_PART_K_B, MICA_PART_V_B, MICA_PART_O};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        assert_non_null(moe->parts[parts[i]]);
    const mica_weight *k_b = moe->parts[MICA_PART_K_B], *v_b = moe->parts[MICA_PART_V_B];
    assert_true(k_b->rows == 2 * 32 && k_b->columns == 32 && v_b->rows == 2 * 64 && v_b->columns == 32); /* [head][…] */
    assert_int_equal(k_b->encoding, MICA_ENCODING_BLOCK);
    assert_null(moe->parts[MICA_PART_KV_B]);
    mica_model_close(model);
}

static void test_experts_are_slices(void **state) {
    (void)state;
    gguf_model file = {0};
    mica_error error = {0};
    mica_model *model = open_model(&file, "model.gguf");
    static const char *const names[] = {"blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"};
    for (int p = 0; p < 3; p++) {
        const mica_tensor *whole = mica_tensor_source_find(model->source, names[p]);
        uint8_t *bytes = malloc(whole->bytes);
        float *values = malloc(whole->elements * sizeof *values);
        assert_true(bytes && values);
        assert_int_equal(mica_file_read(mica_model_file(model, whole), whole->offset, bytes, whole->bytes, &error), MICA_OK);
        mica_matrix matrix = {.encoding = p == 1 ? MICA_ENCODING_PLAIN : MICA_ENCODING_BLOCK, .dtype = whole->dtype,
                              .rows = whole->shape[0] * whole->shape[1], .columns = whole->shape[2], .codes = bytes};
        mica_matrix_decode(&matrix, 0, 0, matrix.rows, values, matrix.columns);
        for (uint64_t e = 0; e < GGUF_EXPERTS; e++) {
            char name[64];
            snprintf(name, sizeof name, "%s[%llu]", names[p], (unsigned long long)e);
            const mica_weight *weight = mica_model_weight(model, name);
            assert_ptr_equal(weight, model->layers[1].experts[e * MICA_PROJECTION_COUNT + (uint64_t)p]);
            assert_true(weight->layer == 1 && weight->expert == (int64_t)e && weight->projection == (mica_projection)p);
            assert_true(weight->rows == (p == 2 ? 64 : 32) && weight->columns == (p == 2 ? 32 : 64));
            assert_ptr_equal(weight->whole, whole);
            assert_string_equal(weight->data->name, name);
            assert_int_equal(weight->data->offset, whole->offset + e * whole->bytes / GGUF_EXPERTS);
            assert_int_equal(weight->data->bytes, whole->bytes / GGUF_EXPERTS);
            float *loaded;
            assert_int_equal(mica_weight_load(model, weight, &loaded, &error), MICA_OK);
            assert_memory_equal(loaded, values + e * weight->rows * weight->columns, weight->rows * weight->columns * sizeof *loaded);
            mica_free(loaded);
        }
        free(values);
        free(bytes);
    }
    mica_model_close(model);
}

static void test_fused_halves(void **state) {
    (void)state;
    gguf_model file = {.fused = true};
    mica_error error = {0};
    mica_model *model = open_model(&file, "model.gguf");
    const mica_tensor *whole = mica_tensor_source_find(model->source, "blk.1.ffn_gate_up_exps.weight");
    uint8_t *bytes = malloc(whole->bytes);
    float *values = malloc(whole->elements * sizeof *values);
    assert_true(bytes && values);
    assert_int_equal(mica_file_read(mica_model_file(model, whole), whole->offset, bytes, whole->bytes, &error), MICA_OK);
    mica_matrix matrix = {.encoding = MICA_ENCODING_BLOCK, .dtype = whole->dtype, .rows = GGUF_EXPERTS * 64, .columns = 64, .codes = bytes};
    mica_matrix_decode(&matrix, 0, 0, matrix.rows, values, matrix.columns);
    assert_int_equal(model->used_count, model->source->tensor_count);
    assert_int_equal(model->warning_count, 0);
    for (uint64_t e = 0; e < GGUF_EXPERTS; e++)
        for (int p = 0; p < 2; p++) {
            char name[64];
            snprintf(name, sizeof name, "blk.1.ffn_gate_up_exps.weight[%llu].%s", (unsigned long long)e, p ? "up" : "gate");
            const mica_weight *weight = mica_model_weight(model, name);
            assert_non_null(weight);
            assert_ptr_equal(weight, model->layers[1].experts[e * MICA_PROJECTION_COUNT + (uint64_t)p]);
            assert_true(weight->rows == 32 && weight->columns == 64 && weight->projection == (mica_projection)p && weight->whole == whole);
            float *loaded;
            assert_int_equal(mica_weight_load(model, weight, &loaded, &error), MICA_OK);
            assert_memory_equal(loaded, values + (2 * e + (uint64_t)p) * 32 * 64, 32 * 64 * sizeof *loaded);
            mica_free(loaded);
        }
    free(values);
    free(bytes);
    mica_model_close(model);
}

static void test_legacy_layout(void **state) {
    (void)state;
    gguf_model file = {.legacy = true};
    mica_model *model = open_model(&file, "model.gguf");
    assert_false(model->config.split_kv_b);
    assert_true(model->config.qk_nope_head_dim == 32 && model->config.v_head_dim == 32);
    const mica_weight *kv_b = model->layers[1].parts[MICA_PART_KV_B];
    assert_true(kv_b->rows == 2 * 64 && kv_b->columns == 32);
    assert_null(model->layers[1].parts[MICA_PART_K_B]);
    mica_model_close(model);
}

static void refuse(gguf_model file, const char *const *parts) {
    mica_model *model = NULL;
    mica_error error = {0};
    gguf_write(&file, "bad.gguf");
    mica_status status = mica_model_open(scratch("bad.gguf"), NULL, &model, &error);
    if (status == MICA_OK)
        fail_msg("accepted; expected \"%s\"", parts[1]);
    assert_int_equal(status, MICA_BAD_INPUT);
    assert_says(parts[1], error.message, parts);
}
#define REFUSE(model, ...) refuse((gguf_model)model, (const char *const[]){"bad.gguf", __VA_ARGS__, NULL})
#define WITH(...) {__VA_ARGS__}

static void test_bad_models(void **state) {
    (void)state;
    REFUSE(WITH(.fused = true, .reshape = "blk.1.ffn_gate_up_exps.weight"), "blk.1.ffn_gate_up_exps.weight", "expected shape [3, 64, 64]",
           "got [4, 64, 64]");
    REFUSE(WITH(.fused = true, .drop = "blk.1.ffn_gate_up_exps.weight"), "blk.1.ffn_gate_exps.weight: expected present");
    REFUSE(WITH(.drop = "deepseek2.kv_lora_rank", .as_u64 = "deepseek2.expert_count"), "key deepseek2.expert_count", "u32", "got u64");
    REFUSE(WITH(.drop = "deepseek2.attention.kv_lora_rank"), "key deepseek2.attention.kv_lora_rank", "absent");
    REFUSE(WITH(.drop = "deepseek2.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon", "absent");
    REFUSE(WITH(.key = "deepseek2.expert_gating_func", .value = 4), "deepseek2.expert_gating_func", "1 to 2", "got 4");
    REFUSE(WITH(.key = "deepseek2.block_count", .value = 0), "deepseek2.block_count", "1 to 4096", "got 0");
    REFUSE(WITH(.key = "deepseek2.block_count", .value = 3), "blk.2.", "3 layers (block_count)", "layer 2 absent");
    REFUSE(WITH(.key = "deepseek2.expert_used_count", .value = 4), "deepseek2.expert_used_count", "at most the 3 experts", "got 4");
    REFUSE(WITH(.key = "deepseek2.rope.dimension_count", .value = 15), "deepseek2.rope.dimension_count", "even", "got 15");
    REFUSE(WITH(.key = "deepseek2.attention.key_length_mla", .value = 16), "key_length_mla", "more than", "got 16");
    REFUSE(WITH(.key = "tokenizer.ggml.eos_token_id", .value = 8), "tokenizer.ggml.eos_token_id", "below 8", "got 8");
    REFUSE(WITH(.drop = "deepseek2.vocab_size"), "deepseek2.vocab_size", "tokenizer.ggml.tokens", "neither");
    REFUSE(WITH(.key = "deepseek2.expert_count", .value = 4), "blk.1.ffn_gate_inp.weight|ffn_gate_exps", "from the metadata", "[3, ");
    REFUSE(WITH(.drop = "blk.1.ffn_up_exps.weight"), "blk.1.ffn_up_exps.weight", "present", "absent");
    REFUSE(WITH(.drop = "blk.0.attn_k_b.weight"), "blk.0.attn_k_b.weight", "present", "absent");
    REFUSE(WITH(.reshape = "blk.1.ffn_down_exps.weight"), "blk.1.ffn_down_exps.weight", "[3, 64, 32]", "got [4, 64, 32]");
    REFUSE(WITH(.reshape = "blk.1.attn_v_b.weight"), "blk.1.attn_v_b.weight", "[2, 64, 32]", "got [3, 64, 32]");
    REFUSE(WITH(.reshape = "output_norm.weight"), "output_norm.weight", "[64]", "got [65]");
}

static void test_values_that_are_not_finite(void **state) {
    (void)state;
    gguf_model file = {.poison = "blk.1.ffn_gate_exps.weight"};
    mica_error error = {0};
    mica_model *model = open_model(&file, "model.gguf");
    const mica_weight *weight = mica_model_weight(model, "blk.1.ffn_gate_exps.weight[0]");
    uint8_t *bytes = malloc(weight->data->bytes);
    assert_non_null(bytes);
    mica_matrix matrix;
    assert_int_equal(mica_file_read(mica_model_file(model, weight->data), weight->data->offset, bytes, weight->data->bytes, &error),
                     MICA_OK);
    assert_int_equal(mica_weight_matrix(model, weight, bytes, NULL, NULL, &matrix, &error), MICA_OK);
    assert_int_equal(mica_weight_examine(model, weight, &matrix, NULL, NULL, 0, &error), MICA_BAD_INPUT);
    assert_says("examine", error.message,
                (const char *const[]){"model.gguf: blk.1.ffn_gate_exps.weight[0]: expected finite", "at [0,0]", NULL});
    const mica_tensor *whole = weight->whole;
    assert_int_equal(mica_weight_examine_run(model, NULL, whole, 64, 64, bytes, NULL, 0, &error), MICA_BAD_INPUT);
    assert_says("run", error.message, (const char *const[]){"blk.1.ffn_gate_exps.weight: expected finite", "at [0,1,0]", NULL});
    free(bytes);
    mica_model_close(model);
}

static void test_without_memory(void **state) {
    (void)state;
    gguf_model file = {0};
    gguf_write(&file, "model.gguf");
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_model *model = NULL;
        mica_error error = {0};
        no_memory_begin(&trial);
        const mica_status status = mica_model_open(scratch("model.gguf"), NULL, &model, &error);
        mica_model_close(model);
        no_memory_end(&trial, status, MICA_OK, &error);
    }
}

/* Of another architecture: tensors without a meaning. */
static void test_unknown_architecture(void **state) {
    (void)state;
    mica_text file = MICA_TEXT_INIT;
    put_start(&file, 0, 1), put_text(&file, "general.architecture", "clip"), put_padding(&file, 32), put_file(&file, "clip.gguf");
    mica_tensor_source *source;
    mica_model *model = NULL;
    mica_error error = {0};
    assert_int_equal(mica_tensor_source_open(scratch("clip.gguf"), &source, &error), MICA_OK);
    assert_false(mica_source_is_model(source));
    assert_int_equal(mica_model_open_source(source, NULL, &model, &error), MICA_BAD_INPUT);
    assert_says("clip", error.message,
                (const char *const[]){"clip.gguf", "general.architecture", "deepseek2, llama or qwen3", "got clip", NULL});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configuration),
        cmocka_unit_test(test_every_tensor_is_used),
        cmocka_unit_test(test_experts_are_slices),
        cmocka_unit_test(test_fused_halves),
        cmocka_unit_test(test_legacy_layout),
        cmocka_unit_test(test_bad_models),
        cmocka_unit_test(test_values_that_are_not_finite),
        cmocka_unit_test(test_without_memory),
        cmocka_unit_test(test_unknown_architecture),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
