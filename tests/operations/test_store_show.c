/* mica_show: found by name, UUID and alias; what it says is what the catalogue, the files and the decoded values say. */
#include <mica/store.h>

#include <math.h>

#include "model/model.h"
#include "operations/store_helpers.h"
#include "operations/validate.h"

#define WEIGHT "model.layers.1.mlp.experts.3.up_proj.weight"

static json_t *show(const char *store, const char *asked, char **text) {
    char *json = NULL;
    json_t *report = NULL;
    if (mica_show(store, asked, text, &json, &error) != MICA_OK)
        fail_msg("%s", error.message);
    if (validator_exists())
        assert_true(validates("show.schema.json", json));
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, &error), MICA_OK);
    mica_string_free(json);
    return report;
}

static double number(const json_t *content, const char *key) {
    return json_number_value(json_object_get(json_object_get(content, "values"), key));
}

static void test_what_it_says(void **state) {
    (void)state;
    const char *store = scratch("s");
    char *text = NULL;
    assert_imports(TINY, store, NULL);
    assert_imports(TINY, store, &(mica_import_options){.name = "again"});
    json_t *report = show(store, WEIGHT, &text);
    const json_t *content = json_array_get(json_object_get(report, "contents"), 0);
    assert_int_equal(json_array_size(json_object_get(report, "contents")), 1); /* one content, in two models */
    assert_int_equal(json_array_size(json_object_get(content, "names")), 2);
    assert_string_equal(json_string_value(json_object_get(content, "dtype")), "F8_E4M3");
    assert_string_equal(json_string_value(json_object_get(content, "encoding")), "fp8-block");
    assert_string_equal(json_string_value(json_object_get(content, "scale")), WEIGHT "_scale_inv");
    assert_non_null(strstr(text, "again#" WEIGHT));
    mica_string_free(text);
    /* The values, from the checkpoint itself. */
    mica_model *model = NULL;
    float *values = NULL;
    assert_int_equal(mica_model_open(TINY, NULL, &model, &error), MICA_OK);
    const mica_weight *weight = mica_model_weight(model, WEIGHT);
    const uint64_t count = weight->rows * weight->columns;
    assert_int_equal(mica_weight_load(model, weight, &values, &error), MICA_OK);
    double low = INFINITY, high = -INFINITY, sum = 0, squares = 0;
    for (uint64_t i = 0; i < count; i++) {
        low = fmin(low, (double)values[i]);
        high = fmax(high, (double)values[i]);
        sum += (double)values[i];
    }
    for (uint64_t i = 0; i < count; i++)
        squares += ((double)values[i] - sum / (double)count) * ((double)values[i] - sum / (double)count);
    assert_true(number(content, "count") == (double)count);
    assert_true(number(content, "minimum") == low && number(content, "maximum") == high);
    assert_true(fabs(number(content, "mean") - sum / (double)count) < 1e-12);
    assert_true(fabs(number(content, "standard_deviation") - sqrt(squares / (double)count)) < 1e-12);
    mica_free(values);
    mica_model_close(model);
    /* The same by its UUID. */
    json_t *other = show(store, json_string_value(json_object_get(content, "uuid")), NULL);
    assert_true(json_equal(json_object_get(report, "contents"), json_object_get(other, "contents")));
    json_decref(other);
    json_decref(report);
}

/* Two models that differ in it: two contents. */
static void test_two_contents(void **state) {
    (void)state;
    const char *store = scratch("two"), *variant = scratch("variant");
    make_variant(variant, WEIGHT);
    assert_imports(TINY, store, NULL);
    assert_imports(variant, store, NULL);
    json_t *report = show(store, WEIGHT, NULL);
    assert_int_equal(json_array_size(json_object_get(report, "contents")), 2);
    json_decref(report);
    report = show(store, "model.norm.weight", NULL);
    assert_int_equal(json_array_size(json_object_get(report, "contents")), 1);
    json_decref(report);
}

static void test_an_alias(void **state) {
    (void)state;
    static const char config[] = "{\"source_format\": \"safetensors\", \"tensor_map\": [{\"source\": \"model.norm.weight\", \"target\":"
                                 " \"01234567-89ab-4def-8123-456789abcdef\", \"include\": true}]}";
    const char *store = scratch("alias"), *path = scratch("config.json");
    char *text = NULL;
    assert_int_equal(mica_file_replace(path, config, strlen(config), &error), MICA_OK);
    assert_imports(TINY, store, &(mica_import_options){.configuration = path});
    json_t *report = show(store, "01234567-89AB-4DEF-8123-456789ABCDEF", &text);
    assert_non_null(strstr(text, "tiny-k2#model.norm.weight, also known as 01234567-89ab-4def-8123-456789abcdef"));
    mica_string_free(text);
    json_decref(report);
}

/* A part of a model is none: its codes are shown as what they are. */
static void test_a_part_of_a_model(void **state) {
    (void)state;
    const char *store = scratch("part");
    char *text = NULL;
    assert_imports(TINY, store, &(mica_import_options){.include = "*.layers.1.mlp.experts.3.*"});
    json_t *report = show(store, WEIGHT, &text);
    const json_t *content = json_array_get(json_object_get(report, "contents"), 0);
    assert_true(json_is_false(json_object_get(json_object_get(content, "values"), "scaled")));
    assert_true(number(content, "maximum") > 100); /* e4m3 goes to 448 */
    assert_non_null(strstr(text, "codes without their scales"));
    mica_string_free(text);
    json_decref(report);
}

static void test_nothing_of_that_name(void **state) {
    (void)state;
    const char *store = scratch("none");
    assert_imports(TINY, store, &(mica_import_options){.include = "*norm*"});
    assert_int_equal(mica_show(store, WEIGHT, NULL, NULL, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, WEIGHT));
    assert_int_equal(mica_show(store, "01234567-89ab-4def-8123-456789abcdef", NULL, NULL, &error), MICA_BAD_INPUT);
    assert_int_equal(mica_show(TINY, WEIGHT, NULL, NULL, &error), MICA_BAD_INPUT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_it_says),
        cmocka_unit_test(test_two_contents),
        cmocka_unit_test(test_an_alias),
        cmocka_unit_test(test_a_part_of_a_model),
        cmocka_unit_test(test_nothing_of_that_name),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
