/* The budget: parsing, the choice against an exhaustive one, and files that keep to it. */
#include <math.h>

#include "export_helpers.h"

#include <mica/imatrix.h>

#include "base/json.h"
#include "formats/imatrix.h"
#include "operations/export_budget.h"

static void test_parse(void **state) {
    (void)state;
    uint64_t bytes = 0;
    assert_int_equal(mica_export_budget_parse("4.25bpw", 1000, &bytes, NULL), MICA_OK);
    assert_int_equal(bytes, 531);
    assert_int_equal(mica_export_budget_parse("550GB", 1, &bytes, NULL), MICA_OK);
    assert_int_equal(bytes, 550000000000);
    static const char *const bad[] = {"", "4", "4.25", "bpw", "-1GB", "4GBs", "0bpw", "1e9GB"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(mica_export_budget_parse(bad[i], 1000, &bytes, NULL), MICA_USAGE);
}

static double error_of(const mica_export_measure *measures, uint64_t count, uint64_t *bytes) {
    double error = 0;
    *bytes = 0;
    for (uint64_t i = 0; i < count; i++) {
        error += measures[i].error[measures[i].chosen];
        *bytes += measures[i].bytes[measures[i].chosen];
    }
    return error;
}

/* Four tensors of three types, 200 times: until the first step that does not fit (of at most 32 bytes) the choice is on the hull of all
 * choices, so none that leaves 32 bytes of the budget is better; against all 81 of them. */
static void test_choice_is_the_best_of_its_size(void **state) {
    (void)state;
    enum { ITEMS = 4, TYPES = 3 };
    uint64_t seed = 7;
    for (int trial = 0; trial < 200; trial++) {
        mica_export_measure measures[ITEMS] = {{0}};
        for (int i = 0; i < ITEMS; i++) {
            uint64_t bytes = 10;
            double error = 1;
            measures[i].count = TYPES;
            measures[i].weight = 1;
            for (int t = 0; t < TYPES; t++) {
                seed = seed * 6364136223846793005u + 1442695040888963407u;
                bytes += 1 + (seed >> 60);
                error *= 0.2 + 0.7 * (double)(seed >> 40 & 0xffff) / 65536;
                measures[i].bytes[t] = bytes;
                measures[i].error[t] = error;
            }
        }
        assert_int_equal(mica_export_allocate(measures, ITEMS, 5, 150, NULL), MICA_OK);
        uint64_t used, other;
        const double chosen = error_of(measures, ITEMS, &used);
        assert_true(used + 5 <= 150);
        for (int code = 0; code < 81; code++) {
            mica_export_measure tried[ITEMS];
            memcpy(tried, measures, sizeof tried);
            for (int i = 0, rest = code; i < ITEMS; i++, rest /= TYPES)
                tried[i].chosen = (uint32_t)(rest % TYPES);
            const double error = error_of(tried, ITEMS, &other);
            assert_true(other + 5 + 32 > 150 || error >= chosen - 1e-12);
        }
    }
    mica_export_measure small = {.count = 1, .bytes = {50}, .error = {1}, .weight = 1};
    assert_int_equal(mica_export_allocate(&small, 1, 10, 59, NULL), MICA_USAGE);
}

/* At the size of q4_k_m the measured error is lower, the file no larger, and the written rules give the same types. */
static void test_budget_of_tiny_k2(void **state) {
    (void)state;
    mica_error error = {MICA_OK, ""};
    char *json = NULL;
    json_t *report = NULL, *plain = NULL;
    assert_int_equal(mica_export_gguf(TINY, scratch("plain.gguf"), &(mica_export_gguf_options){.type = "q4_k_m"}, NULL, &json, &error),
                     MICA_OK);
    assert_int_equal(mica_json_parse("report", json, strlen(json), &plain, NULL), MICA_OK);
    mica_string_free(json);
    const mica_export_gguf_options making = {.type = "q4_k_m", .generate_config = scratch("rules.json")};
    if (mica_export_gguf(TINY, NULL, &making, NULL, &json, &error) != MICA_OK) {
        print_error("%s\n", error.message);
        fail();
    }
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    mica_string_free(json);
    const json_int_t bytes = json_integer_value(json_object_get(plain, "data_bytes"));
    assert_true(json_integer_value(json_object_get(report, "data_bytes")) <= bytes);
    assert_true(json_number_value(json_object_get(report, "budget_error_ratio")) < 0.9);
    char budget[32];
    snprintf(budget, sizeof budget, "%lldB", (long long)bytes);
    export_to(TINY, scratch("budget.gguf"), &(mica_export_gguf_options){.type = "q4_k_m", .budget = budget});
    export_to(TINY, scratch("rules.gguf"), &(mica_export_gguf_options){.config = scratch("rules.json")});
    assert_true(same_bytes(scratch("budget.gguf"), scratch("rules.gguf")));
    json_decref(report);
    json_decref(plain);
    assert_int_equal(mica_export_gguf(TINY, scratch("x.gguf"), &(mica_export_gguf_options){.budget = "1bpw"}, NULL, NULL, &error),
                     MICA_USAGE);
    assert_non_null(strstr(error.message, "--budget"));
}

/* What an importance matrix says of sensitivities makes a budget of a mixture's size better than the mixture, small and large; measured
 * ratios are 0.4 to 0.7 (docs/export.md). */
static void test_measured_sensitivity_pays(void **state) {
    (void)state;
    mica_error error = {MICA_OK, ""};
    loaded_file text = load(TINY "/heldout.txt");
    char *half = mica_strdup(text.bytes), *rest = mica_strdup(text.bytes + text.length - 6000), file[512];
    half[20000] = 0;
    snprintf(file, sizeof file, "%s", scratch("sensitivity.gguf"));
    const mica_compute_options options = {.context = 256, .threads = 2};
    const mica_imatrix_options own = {.dataset = "half", .covariance = true, .sensitivity = true};
    const mica_prompt prompt = {.text = half};
    if (mica_imatrix_collect(TINY, file, &options, &own, &prompt, NULL, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
    mica_imatrix *imatrix = NULL;
    assert_int_equal(mica_imatrix_open(file, &imatrix, NULL), MICA_OK);
    const float *head = mica_imatrix_sensitivity_of(imatrix, "output.weight", 1),
                *experts = mica_imatrix_sensitivity_of(imatrix, "blk.2.ffn_up_exps.weight", 24);
    const float *down = mica_imatrix_sensitivity_of(imatrix, "blk.2.ffn_down_exps.weight", 24);
    assert_true(head && head[0] == 1 && experts && down);
    assert_null(mica_imatrix_sensitivity_of(imatrix, "blk.2.ffn_up_exps.weight", 23));
    const mica_imatrix_entry *entry = mica_imatrix_find(imatrix, "blk.2.ffn_up_exps.weight");
    for (uint64_t e = 0; e < 24; e++)
        assert_true((experts[e] > 0) == (mica_imatrix_count(entry, e) > 0) && experts[e] < 1 &&
                    fabsf(down[e] - 4 * experts[e]) <= 1e-6f * down[e]);
    mica_imatrix_close(imatrix);
    static const char *const mixtures[] = {"q2_k", "iq4_xs", "q4_k_m"};
    for (size_t i = 0; i < sizeof mixtures / sizeof *mixtures; i++) {
        char *json = NULL, budget[32];
        json_t *report = NULL;
        assert_int_equal(mica_export_gguf(TINY, scratch("fixed.gguf"),
                                          &(mica_export_gguf_options){.type = mixtures[i], .imatrix = file, .force = true}, NULL, &json,
                                          &error),
                         MICA_OK);
        assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
        snprintf(budget, sizeof budget, "%lldB", (long long)json_integer_value(json_object_get(report, "data_bytes")));
        json_decref(report);
        mica_string_free(json);
        export_to(TINY, scratch("bought.gguf"),
                  &(mica_export_gguf_options){.type = mixtures[i], .imatrix = file, .budget = budget, .force = true});
        const double fixed = divergence_of(scratch("fixed.gguf"), rest, 256), bought = divergence_of(scratch("bought.gguf"), rest, 256);
        if (!(bought < 0.9 * fixed))
            fail_msg("%s: expected a budget of its size to have less than 0.9 of its divergence %g, got %g", mixtures[i], fixed, bought);
    }
    mica_free(half);
    mica_free(rest);
    mica_free(text.bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse), cmocka_unit_test(test_choice_is_the_best_of_its_size),
                                       cmocka_unit_test(test_budget_of_tiny_k2), cmocka_unit_test(test_measured_sensitivity_pays)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
