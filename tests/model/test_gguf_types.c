/* The types that llama-quantize (llama.cpp v0.5.0) gives at the sizes of known models, and its substitutes by shape. Whole files are
 * compared with its own by tests/interop/export_gguf.py, where it can be had. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/gguf_types.h"

static mica_dtype chosen(const char *mixture, const mica_mixture_model *model, const char *name, uint64_t layer, uint64_t columns,
                         uint64_t matrices) {
    mica_mixture number;
    assert_true(mica_mixture_parse(mixture, &number));
    const mica_mixture_tensor tensor = {name, layer, matrices > 1 ? 3 : 2, columns, matrices};
    return mica_mixture_fit(mica_mixture_choose(number, model, &tensor), columns);
}

/* Runs of a layer's ffn_down_exps type over the 61 layers of Kimi-K2. */
static void assert_layers(const char *mixture, const mica_mixture_model *model, const char *name, const char *expected) {
    char got[64] = "";
    for (uint64_t layer = 0; layer < model->layers; layer++) {
        const mica_dtype type = chosen(mixture, model, name, layer, 2048, 384);
        got[layer] = (char)('0' + (type == MICA_Q6_K ? 6 : type == MICA_Q5_K ? 5 : type == MICA_Q4_K ? 4 : type == MICA_Q3_K ? 3 : 0));
    }
    assert_string_equal(got, expected);
}

static void test_mixtures_of_kimi_k2(void **state) {
    (void)state;
    const mica_mixture_model k2 = {.layers = 61, .experts = 384, .heads_per_key = 64};
    assert_layers("q4_k_m", &k2, "blk.1.ffn_down_exps.weight", "6666666446446446446446446446446446446446446446446446466666666");
    assert_layers("q5_k_m", &k2, "blk.1.ffn_down_exps.weight", "6666666556556556556556556556556556556556556556556556566666666");
    assert_layers("q3_k_m", &k2, "blk.1.ffn_down_exps.weight", "5554444444444444444444444444444444444444444444444444444444444");
    assert_layers("q4_k_s", &k2, "blk.1.ffn_down_exps.weight", "5555555444444444444444444444444444444444444444444444444444444");
    assert_int_equal(chosen("q4_k_m", &k2, "output.weight", 0, 7168, 1), MICA_Q6_K);
    assert_int_equal(chosen("q4_k_m", &k2, "token_embd.weight", 0, 7168, 1), MICA_Q4_K);
    assert_int_equal(chosen("q4_k_m", &k2, "blk.3.attn_k_b.weight", 3, 128, 64), MICA_Q5_0); /* rows of 128 */
    assert_int_equal(chosen("q4_k_m", &k2, "blk.3.attn_v_b.weight", 3, 512, 64), MICA_Q4_K);
    assert_int_equal(chosen("q2_k", &k2, "blk.3.attn_output.weight", 3, 8192, 1), MICA_Q3_K);
    assert_int_equal(chosen("q2_k", &k2, "blk.3.ffn_down_exps.weight", 3, 2048, 384), MICA_Q3_K);
    assert_int_equal(chosen("q2_k", &k2, "blk.3.ffn_up_exps.weight", 3, 7168, 384), MICA_Q2_K);
    assert_int_equal(chosen("mxfp4_moe", &k2, "blk.3.ffn_up_exps.weight", 3, 7168, 384), MICA_MXFP4);
    assert_int_equal(chosen("mxfp4_moe", &k2, "blk.3.attn_v_b.weight", 3, 512, 64), MICA_MXFP4);
    assert_int_equal(chosen("mxfp4_moe", &k2, "blk.3.attn_q_b.weight", 3, 1536, 1), MICA_Q8_0);
    assert_int_equal(chosen("q8_0", &k2, "output.weight", 0, 7168, 1), MICA_Q8_0);
    assert_int_equal(chosen("bf16", &k2, "blk.3.attn_q_b.weight", 3, 1536, 1), MICA_BF16);
}

static void test_what_stays_float32(void **state) {
    (void)state;
    const mica_mixture_model k2 = {.layers = 61, .experts = 384, .heads_per_key = 64};
    static const char *const names[] = {"blk.1.ffn_gate_inp.weight", "blk.1.attn_norm.weight", "blk.1.exp_probs_b.bias",
                                        "blk.1.ffn_gate_tid2eid.weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(chosen("q4_k_m", &k2, names[i], 1, 7168, 1), MICA_F32);
    const mica_mixture_tensor vector = {"output_norm.weight", 0, 1, 7168, 1};
    assert_false(mica_mixture_allows(&vector));
}

static void test_dense_models(void **state) {
    (void)state;
    const mica_mixture_model seven = {.layers = 32, .heads_per_key = 1}, eight = {.layers = 32, .heads_per_key = 4},
                             seventy = {.layers = 80, .heads_per_key = 8, .wide = true},
                             tied = {.layers = 28, .heads_per_key = 2, .tied = true};
    assert_int_equal(chosen("q2_k", &seven, "blk.9.attn_v.weight", 9, 4096, 1), MICA_Q3_K);
    assert_int_equal(chosen("q2_k", &eight, "blk.9.attn_v.weight", 9, 4096, 1), MICA_Q4_K);
    assert_int_equal(chosen("q3_k_m", &seven, "blk.1.attn_v.weight", 1, 4096, 1), MICA_Q5_K);
    assert_int_equal(chosen("q3_k_m", &seven, "blk.2.attn_v.weight", 2, 4096, 1), MICA_Q4_K);
    assert_int_equal(chosen("q3_k_m", &seventy, "blk.2.attn_v.weight", 2, 8192, 1), MICA_Q5_K);
    assert_int_equal(chosen("iq4_xs", &eight, "blk.9.attn_v.weight", 9, 4096, 1), MICA_Q5_K);
    assert_int_equal(chosen("iq4_xs", &eight, "blk.3.ffn_down.weight", 3, 14336, 1), MICA_Q5_K);
    assert_int_equal(chosen("q4_k_m", &tied, "token_embd.weight", 0, 2048, 1), MICA_Q6_K);
    const mica_mixture_model mixtral = {.layers = 32, .experts = 8, .heads_per_key = 4};
    assert_int_equal(chosen("q4_k_m", &mixtral, "blk.9.attn_v.weight", 9, 4096, 1), MICA_Q8_0);
    assert_int_equal(chosen("q4_k_m", &mixtral, "blk.9.attn_k.weight", 9, 4096, 1), MICA_Q8_0);
    assert_int_equal(chosen("q4_k_m", &mixtral, "blk.9.attn_output.weight", 9, 4096, 1), MICA_Q5_K);
}

static void test_importance_changes_a_few(void **state) {
    (void)state;
    const mica_mixture_model plain = {.layers = 32, .heads_per_key = 4}, weighted = {.layers = 32, .heads_per_key = 4, .importance = true};
    assert_int_equal(chosen("iq4_xs", &weighted, "blk.3.ffn_down.weight", 3, 14336, 1), MICA_IQ4_XS);
    assert_int_equal(chosen("q4_0", &plain, "blk.3.ffn_down.weight", 3, 14336, 1), MICA_Q4_0);
    assert_int_equal(chosen("q4_0", &weighted, "blk.3.ffn_down.weight", 3, 14336, 1), MICA_Q4_1);
    assert_int_equal(chosen("q5_0", &weighted, "blk.3.ffn_down.weight", 3, 14336, 1), MICA_Q5_1);
}

/* Kimi-VL's experts are 1408 wide: no whole block of 256. */
static void test_substitutes(void **state) {
    (void)state;
    static const struct {
        mica_dtype wanted, narrow, odd; /* of 1408 columns, of 100 */
    } rows[] = {{MICA_Q2_K, MICA_Q4_0, MICA_F16}, {MICA_Q3_K, MICA_Q4_0, MICA_F16},   {MICA_Q4_K, MICA_Q5_0, MICA_F16},
                {MICA_Q5_K, MICA_Q5_1, MICA_F16}, {MICA_Q6_K, MICA_Q8_0, MICA_F16},   {MICA_IQ4_XS, MICA_IQ4_NL, MICA_F16},
                {MICA_Q8_0, MICA_Q8_0, MICA_F16}, {MICA_MXFP4, MICA_MXFP4, MICA_F16}, {MICA_BF16, MICA_BF16, MICA_BF16}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(mica_mixture_fit(rows[i].wanted, 1408), rows[i].narrow);
        assert_int_equal(mica_mixture_fit(rows[i].wanted, 100), rows[i].odd);
        assert_int_equal(mica_mixture_fit(rows[i].wanted, 2048), rows[i].wanted);
    }
}

static void test_names(void **state) {
    (void)state;
    mica_mixture mixture;
    assert_true(mica_mixture_parse("Q4_K", &mixture));
    assert_string_equal(mica_mixture_name(mixture), "q4_k_m");
    assert_true(mica_mixture_parse("source", &mixture));
    assert_int_equal(mixture, MICA_MIXTURE_SOURCE);
    assert_false(mica_mixture_parse("q9_k", &mixture));
    assert_non_null(strstr(mica_mixture_list(), "iq4_xs"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixtures_of_kimi_k2), cmocka_unit_test(test_what_stays_float32), cmocka_unit_test(test_dense_models),
        cmocka_unit_test(test_importance_changes_a_few), cmocka_unit_test(test_substitutes), cmocka_unit_test(test_names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
