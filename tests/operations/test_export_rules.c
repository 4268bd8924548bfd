/* The configuration file of an export: which rule wins, what old keys mean, and every refusal. */
#include "export_helpers.h"

#include "base/json.h"

static json_t *export_with(const char *config, const char *type) {
    mica_error error = {MICA_OK, ""};
    char *json = NULL;
    json_t *report = NULL;
    scratch_write("rules.json", config, strlen(config));
    const mica_export_gguf_options options = {.config = scratch("rules.json"), .type = type, .dry_run = true};
    if (mica_export_gguf(TINY, NULL, &options, NULL, &json, &error) != MICA_OK) {
        print_error("%s\n", error.message);
        fail();
    }
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    mica_string_free(json);
    return report;
}

static const char *type_of(const json_t *report, const char *name, const char *key) {
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(report, "tensors"), i, row)
        if (strcmp(json_string_value(json_object_get(row, "name")), name) == 0)
            return json_string_value(json_object_get(row, key));
    return "";
}

static void assert_type(const json_t *report, const char *name, const char *type, const char *reason) {
    assert_string_equal(type_of(report, name, "type"), type);
    assert_string_equal(type_of(report, name, "reason"), reason);
}

static void assert_refused(const char *config, const char *mention) {
    mica_error error = {MICA_OK, ""};
    scratch_write("bad.json", config, strlen(config));
    const mica_export_gguf_options options = {.config = scratch("bad.json"), .type = "q4_k_m", .dry_run = true};
    assert_int_equal(mica_export_gguf(TINY, NULL, &options, NULL, NULL, &error), MICA_BAD_INPUT);
    if (!strstr(error.message, mention) || !strstr(error.message, "bad.json")) {
        print_error("expected a mention of \"%s\", got: %s\n", mention, error.message);
        fail();
    }
}

static void test_first_match_wins(void **state) {
    (void)state;
    json_t *report = export_with("{\"type\": \"q4_k_m\", \"rules\": ["
                                 "{\"name\": \"blk.*.ffn_down_exps.weight\", \"layers\": \"1,3-4\", \"type\": \"q8_0\"},"
                                 "{\"projection\": \"down\", \"type\": \"q5_1\"},"
                                 "{\"regex\": \"attn_(q|kv)_a\", \"type\": \"BF16\"},"
                                 "{\"name\": \"model.layers.2.mlp.experts.*.up_proj.weight\", \"type\": \"q6_k\"},"
                                 "{\"name\": \"lm_head.weight\", \"type\": \"q5_k_m\"}]}",
                                 NULL);
    assert_type(report, "blk.1.ffn_down_exps.weight", "Q8_0", "rules[0]");
    assert_type(report, "blk.2.ffn_down_exps.weight", "Q5_1", "rules[1]");
    assert_type(report, "blk.3.ffn_down_exps.weight", "Q8_0", "rules[0]");
    assert_type(report, "blk.0.ffn_down.weight", "Q5_1", "rules[1]");
    assert_type(report, "blk.1.ffn_down_shexp.weight", "Q5_1", "rules[1]");
    assert_type(report, "blk.4.attn_q_a.weight", "BF16", "rules[2]");
    assert_type(report, "blk.2.ffn_up_exps.weight", "Q6_K", "rules[3]");
    assert_type(report, "blk.1.ffn_up_exps.weight", "Q4_K", "q4_k_m");
    assert_type(report, "output.weight", "Q5_K", "rules[4]");
    json_decref(report);
}

/* The command line's type is that of the tensors no rule names. */
static void test_defaults(void **state) {
    (void)state;
    json_t *report = export_with("{\"type\": \"q4_k_m\", \"effort\": \"fast\"}", "q8_0");
    assert_type(report, "blk.1.ffn_up_exps.weight", "Q8_0", "q8_0");
    json_decref(report);
}

static void test_old_configuration(void **state) {
    (void)state;
    json_t *report = export_with(
        "{\"target_format\": \"gguf\", \"shard_size\": null, \"special_token_keys\": {},"
        "\"tensor_map\": [{\"source\": \"0b0d7a26-0000-4000-8000-000000000001\", \"target\": \"output.weight\"}],"
        "\"quantization\": {\"default_type\": \"q4_k_m\", \"scale_optimization\": \"trellis\", \"trellis_lambda\": 0.3,"
        "\"per_tensor\": {\"0B0D7A26-0000-4000-8000-000000000001\": \"q8_0\", \"token_embd.weight\": \"q5_0\"}}}",
        NULL);
    assert_string_equal(type_of(report, "output.weight", "type"), "Q8_0");
    assert_string_equal(type_of(report, "token_embd.weight", "type"), "Q5_0");
    assert_int_equal(json_array_size(json_object_get(report, "notes")), 4);
    json_decref(report);
}

/* All experts, or as many rules as are needed for all of them: one type. A part of them: refused. */
static void test_experts(void **state) {
    (void)state;
    json_t *report = export_with("{\"type\": \"q4_k_m\", \"rules\": [{\"experts\": \"0-11\", \"projection\": \"up\", \"type\": \"q6_k\"},"
                                 "{\"experts\": \"12-23\", \"projection\": \"up\", \"type\": \"q6_k\"}]}",
                                 NULL);
    assert_string_equal(type_of(report, "blk.2.ffn_up_exps.weight", "type"), "Q6_K");
    json_decref(report);
    assert_refused("{\"rules\": [{\"experts\": \"3,5\", \"projection\": \"up\", \"type\": \"q6_k\"}]}",
                   "blk.1.ffn_up_exps.weight: expert 0 would be Q4_K and expert 3 Q6_K (rules[0]): a GGUF tensor has one type");
}

static void test_refusals(void **state) {
    (void)state;
    assert_refused("{\"typ\": \"q4_0\"}", "typ: expected a key among");
    assert_refused("{\"rules\": {}}", "rules: expected an array");
    assert_refused("{\"rules\": [{\"name\": \"*\"}]}", "a type in it");
    assert_refused("{\"rules\": [{\"name\": \"*\", \"type\": \"q99\"}]}", "expected a type such as");
    assert_refused("{\"rules\": [{\"nam\": \"*\", \"type\": \"q4_0\"}]}", "expected a key among name");
    assert_refused("{\"rules\": [{\"name\": \"nothing.*\", \"type\": \"q4_0\"}]}", "rules[0] matches no tensor");
    assert_refused("{\"rules\": [{\"name\": \"*\", \"type\": \"q4_0\"}, {\"name\": \"output*\", \"type\": \"q8_0\"}]}",
                   "rules[1] matches no tensor");
    assert_refused("{\"rules\": [{\"name\": \"*_norm.weight\", \"type\": \"q4_0\"}]}", "whose type can be chosen");
    assert_refused("{\"rules\": [{\"regex\": \"a(\", \"type\": \"q4_0\"}]}", "regex: a(:");
    assert_refused("{\"rules\": [{\"layers\": \"3-1\", \"type\": \"q4_0\"}]}", "layers: expected a number, or a list");
    assert_refused("{\"rules\": [{\"projection\": \"sideways\", \"type\": \"q4_0\"}]}", "gate, up or down");
    assert_refused("{\"rules\": [{\"uuid\": \"1\", \"type\": \"q4_0\"}]}", "a source of tensor_map");
    assert_refused("{\"target_format\": \"onnx\"}", "target_format");
    assert_refused("{\"scale_optimization\": \"magic\"}", "trellis, joint, standard or none");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_first_match_wins), cmocka_unit_test(test_defaults),
                                       cmocka_unit_test(test_old_configuration), cmocka_unit_test(test_experts),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
