/* mica_diff: the same, stored otherwise, other values by known amounts, shapes, what one side has alone, files; stores; models that are not
 * understood. */
#include <mica/export.h>
#include <mica/store.h>

#include <math.h>

#include "base/no_memory.h"
#include "model/model.h"
#include "operations/validate.h"
#include "operations/vindex_helpers.h"

static mica_error error;

static json_t *diff(const char *a, const char *b, mica_status expected) {
    char *text = NULL, *json = NULL;
    json_t *report = NULL;
    const mica_diff_options options = {.threads = 3};
    const mica_status status = mica_diff(a, b, &options, &text, &json, &error);
    if (status != expected)
        fail_msg("%s, %s: status %d: %s", a, b, (int)status, error.message);
    assert_non_null(text);
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, &error), MICA_OK);
    assert_int_equal(json_is_true(json_object_get(report, "same")), status == MICA_OK);
    if (validator_exists())
        assert_true(validates("diff.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
    return report;
}

static int64_t count_of(const json_t *report, const char *kind) {
    return json_integer_value(json_object_get(json_object_get(report, "counts"), kind));
}

static const json_t *weight_of(const json_t *report, const char *name) {
    const json_t *weights = json_object_get(report, "weights");
    for (size_t i = 0; i < json_array_size(weights); i++)
        if (strcmp(json_string_value(json_object_get(json_array_get(weights, i), "name")), name) == 0)
            return json_array_get(weights, i);
    fail_msg("%s is not in the report", name);
    return NULL;
}

static double number_of(const json_t *object, const char *key) {
    return json_number_value(json_object_get(object, key));
}

static void copy_tiny(const char *directory) {
    char command[3 * SCRATCH_PATH_BYTES];
    snprintf(command, sizeof command, "mkdir '%s' && cp '%s'/*.* '%s' && chmod -R u+w '%s'", directory, TINY, directory, directory);
    assert_int_equal(system(command), 0);
}

/* Writes bytes at an element of a tensor. */
static void change(const char *directory, const char *name, uint64_t offset, const void *bytes, uint64_t length) {
    mica_tensor_source *source = NULL;
    assert_int_equal(mica_tensor_source_open(directory, &source, &error), MICA_OK);
    const mica_tensor *tensor = mica_tensor_source_find(source, name);
    assert_non_null(tensor);
    FILE *file = fopen(mica_file_path(source->shards[tensor->shard].file), "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)(tensor->offset + offset), SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
    mica_tensor_source_close(source);
}

static void test_the_same(void **state) {
    (void)state;
    const mica_export_safetensors_options shards = {.shard_bytes = 1000000};
    assert_int_equal(mica_export_safetensors(TINY, scratch("resharded"), &shards, NULL, NULL, &error), MICA_OK);
    json_t *report = diff(TINY, scratch("resharded"), MICA_OK);
    assert_int_equal(count_of(report, "same"), 359);
    assert_int_equal(json_array_size(json_object_get(report, "weights")), 0);
    json_decref(report);
}

static void test_known_changes(void **state) {
    (void)state;
    const char *copy = scratch("changed");
    copy_tiny(copy);
    mica_model *model = NULL;
    float *before = NULL, *after = NULL;
    assert_int_equal(mica_model_open(TINY, NULL, &model, &error), MICA_OK);
    const mica_weight *norm = mica_model_weight(model, "model.norm.weight"),
                      *expert = mica_model_weight(model, "model.layers.2.mlp.experts.5.up_proj.weight");
    assert_int_equal(mica_weight_load(model, norm, &before, &error), MICA_OK);
    const uint16_t two_more = 0x4100; /* 8.0 in BF16 */
    change(copy, "model.norm.weight", 2 * 7, &two_more, sizeof two_more);
    double squares = 0, cross = 0, others = 0;
    for (uint64_t i = 0; i < norm->columns; i++) {
        const double a = (double)before[i], b = i == 7 ? 8.0 : a;
        squares += a * a;
        others += b * b;
        cross += a * b;
    }
    const float scale = 3.0f; /* one block of an expert, by another scale */
    change(copy, "model.layers.2.mlp.experts.5.up_proj.weight_scale_inv", 0, &scale, sizeof scale);
    assert_int_equal(mica_weight_load(model, expert, &after, &error), MICA_OK);
    json_t *report = diff(TINY, copy, MICA_DIFFERENT);
    assert_non_null(strstr(error.message, "differ"));
    assert_int_equal(count_of(report, "same"), 357);
    assert_int_equal(count_of(report, "values"), 2);
    const json_t *changed = weight_of(report, "model.norm.weight");
    assert_string_equal(json_string_value(json_object_get(changed, "role")), "final norm");
    assert_int_equal(json_integer_value(json_object_get(changed, "values_differing")), 1);
    assert_true(fabs(number_of(changed, "max_absolute") - fabs(8.0 - (double)before[7])) < 1e-12);
    assert_true(fabs(number_of(changed, "frobenius_share") - fabs(8.0 - (double)before[7]) / sqrt(squares)) < 1e-12);
    assert_true(fabs(number_of(changed, "cosine") - cross / sqrt(squares * others)) < 1e-12);
    changed = weight_of(report, "model.layers.2.mlp.experts.5.up_proj.weight");
    assert_int_equal(json_integer_value(json_object_get(changed, "layer")), 2);
    assert_int_equal(json_integer_value(json_object_get(changed, "expert")), 5);
    assert_string_equal(json_string_value(json_object_get(json_object_get(changed, "a"), "encoding")), "fp8-block");
    json_decref(report);
    mica_free(before);
    mica_free(after);
    mica_model_close(model);
}

/* Decoded to BF16: within half a unit of BF16's last place, everywhere; and what BF16 holds exactly is stored otherwise, with equal
 * values. */
static void test_stored_otherwise(void **state) {
    (void)state;
    const mica_export_safetensors_options bf16 = {.dtype = "bf16"};
    assert_int_equal(mica_export_safetensors(TINY, scratch("bf16"), &bf16, NULL, NULL, &error), MICA_OK);
    json_t *report = diff(TINY, scratch("bf16"), MICA_DIFFERENT);
    assert_int_equal(count_of(report, "same"), 31);
    assert_int_equal(count_of(report, "values"), 328);
    assert_int_equal(count_of(report, "only-a") + count_of(report, "only-b") + count_of(report, "shape"), 0);
    const json_t *weights = json_object_get(report, "weights");
    for (size_t i = 0; i < json_array_size(weights); i++) {
        assert_true(number_of(json_array_get(weights, i), "max_relative") <= 1.0 / 256);
        assert_true(number_of(json_array_get(weights, i), "frobenius_share") < 1.0 / 256);
    }
    json_decref(report);
    if (!mica_path_exists(FIXTURES))
        return;
    /* E2M1 codes times powers of two are BF16 numbers */
    assert_int_equal(mica_export_safetensors(FIXTURES "/v4-flash", scratch("v4"), &bf16, NULL, NULL, &error), MICA_OK);
    report = diff(FIXTURES "/v4-flash", scratch("v4"), MICA_DIFFERENT); /* config.json */
    assert_int_equal(count_of(report, "values"), 1);
    assert_true(count_of(report, "stored") > 100);
    weights = json_object_get(report, "weights");
    for (size_t i = 0; i < json_array_size(weights); i++) {
        const json_t *weight = json_array_get(weights, i);
        if (strcmp(json_string_value(json_object_get(weight, "kind")), "values") == 0)
            assert_string_equal(json_string_value(json_object_get(json_object_get(weight, "a"), "dtype")), "F32");
    }
    json_decref(report);
}

static void test_shapes_and_loners(void **state) {
    (void)state;
    if (!mica_path_exists(FIXTURES)) {
        printf("skipped: %s is not there\n", FIXTURES);
        skip();
    }
    json_t *report = diff(FIXTURES "/v3-groups", FIXTURES "/v3-groups-ue8m0", MICA_DIFFERENT);
    assert_true(count_of(report, "shape") > 10);
    assert_true(count_of(report, "only-a") > 10);
    assert_true(count_of(report, "only-b") > 10);
    assert_int_equal(count_of(report, "same"), 0);
    json_decref(report);
}

/* Of two models of a store nothing shared is read. */
static void test_a_store(void **state) {
    (void)state;
    char models[2][SCRATCH_PATH_BYTES + 300];
    const mica_import_options first = {.name = "one"}, second = {.name = "two"};
    assert_int_equal(mica_import(TINY, scratch("store"), &first, NULL, NULL, &error), MICA_OK);
    assert_int_equal(mica_import(scratch("changed"), scratch("store"), &second, NULL, NULL, &error), MICA_OK);
    snprintf(models[0], sizeof models[0], "%s#one", scratch("store"));
    snprintf(models[1], sizeof models[1], "%s#two", scratch("store"));
    json_t *report = diff(models[0], models[1], MICA_DIFFERENT);
    assert_int_equal(count_of(report, "same"), 357);
    assert_int_equal(count_of(report, "values"), 2);
    assert_true(json_integer_value(json_object_get(report, "bytes_read")) < 400000); /* of 15 MB twice */
    json_decref(report);
    report = diff(models[0], TINY, MICA_OK);
    json_decref(report);
}

/* Without a configuration both are tensors and nothing else. */
static void test_not_understood(void **state) {
    (void)state;
    json_t *report = diff(TINY "/model-00001-of-00003.safetensors", TINY "/model-00001-of-00003.safetensors", MICA_OK);
    assert_int_equal(count_of(report, "same"), 168);
    assert_true(json_is_string(json_object_get(report, "not_understood")));
    json_decref(report);
    report = diff(TINY "/model-00001-of-00003.safetensors", TINY, MICA_DIFFERENT);
    assert_int_equal(count_of(report, "same"), 168);
    assert_int_equal(count_of(report, "only-b"), 687 - 168);
    json_decref(report);
    char *text = NULL;
    assert_int_equal(mica_diff(TINY, scratch("nothing"), NULL, &text, NULL, &error), MICA_IO);
    assert_null(text);
}

static void test_out_of_memory(void **state) {
    (void)state;
    const mica_diff_options options = {.threads = 1};
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        char *text = NULL, *json = NULL;
        no_memory_begin(&trial);
        const mica_status status = mica_diff(TINY, scratch("changed"), &options, &text, &json, &error);
        no_memory_end(&trial, status, MICA_DIFFERENT, &error);
        mica_string_free(text);
        mica_string_free(json);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same),          cmocka_unit_test(test_known_changes), cmocka_unit_test(test_stored_otherwise),
        cmocka_unit_test(test_shapes_and_loners), cmocka_unit_test(test_a_store),       cmocka_unit_test(test_not_understood),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
