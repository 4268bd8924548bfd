/* The budget: parsing, the choice against an exhaustive one, and files that keep to it. */
#include "export_helpers.h"

#include "base/json.h"
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

/* Four tensors of three types, 200 times: until the first step that does not fit (of at most 32 bytes) the choice is on the hull of all choices, so none
 * that leaves 32 bytes of the budget is better; against all 81 of them. */
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
    assert_int_equal(mica_export_gguf(TINY, scratch("plain.gguf"), &(mica_export_gguf_options){.type = "q4_k_m"}, NULL, &json, &error), MICA_OK);
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
    assert_int_equal(mica_export_gguf(TINY, scratch("x.gguf"), &(mica_export_gguf_options){.budget = "1bpw"}, NULL, NULL, &error), MICA_USAGE);
    assert_non_null(strstr(error.message, "--budget"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse), cmocka_unit_test(test_choice_is_the_best_of_its_size),
                                       cmocka_unit_test(test_budget_of_tiny_k2)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
