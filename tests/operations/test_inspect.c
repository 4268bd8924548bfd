/* test_inspect.c: what inspect shows of the repository's model and of one shard alone, and that its JSON keeps its schema. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <mica/checkpoint.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/no_memory.h"
#include "operations/validate.h"

#define TINY_K2 MICA_SOURCE_DIR "/models/tiny-k2"
#define FIXTURES MICA_SOURCE_DIR "/../shared/fixtures/public/"

static json_int_t number(const json_t *object, const char *key) {
    assert_true(json_is_integer(json_object_get(object, key)));
    return json_integer_value(json_object_get(object, key));
}

static void inspect(const char *path, char **text, json_t **json) {
    char *json_text = NULL;
    mica_error error = {0};
    if (mica_inspect(path, NULL, text, &json_text, &error) != MICA_OK)
        fail_msg("%s", error.message);
    if (validator_exists())
        assert_true(validates("inspect.schema.json", json_text));
    *json = json_loads(json_text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(*json);
    mica_string_free(json_text);
}

static json_int_t sum(const json_t *report, const char *array, const char *key) {
    json_int_t total = 0;
    size_t index;
    json_t *entry;
    json_array_foreach(json_object_get(report, array), index, entry) {
        total += number(entry, key);
    }
    return total;
}

static void test_tiny_k2(void **state) {
    (void)state;
    char *text = NULL;
    json_t *report = NULL;
    inspect(TINY_K2, &text, &report);
    const json_t *model = json_object_get(report, "model"), *tensors = json_object_get(report, "tensors");
    assert_string_equal(json_string_value(json_object_get(model, "model_type")), "kimi_k2");
    assert_int_equal(number(model, "routed_experts"), 24);
    assert_int_equal(number(model, "moe_layers"), 4);
    assert_int_equal(number(tensors, "unknown"), 0);
    assert_int_equal(number(tensors, "total"), number(tensors, "used") + number(tensors, "ignored"));
    assert_int_equal(sum(report, "roles", "bytes"), number(report, "bytes")); /* nothing is ignored there */
    assert_int_equal(sum(report, "dtypes", "bytes"), number(report, "bytes"));
    assert_int_equal(sum(report, "encodings", "parameters"), number(report, "parameters"));
    assert_int_equal(sum(report, "shards", "tensors"), number(tensors, "total"));
    assert_int_equal(json_array_size(json_object_get(report, "warnings")), 0);
    const char *const lines[] = {"kimi_k2", "1 dense, 4 with 24 experts", "fp8, blocks of 128 x 128", "experts", "3 files"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        if (!strstr(text, lines[i]))
            fail_msg("\"%s\" is not in\n%s", lines[i], text);
    }
    json_decref(report);
    mica_string_free(text);
}

static void test_bare_file(void **state) {
    (void)state;
    char *text = NULL;
    json_t *report = NULL;
    inspect(TINY_K2 "/model-00001-of-00003.safetensors", &text, &report);
    assert_string_equal(json_string_value(json_object_get(report, "kind")), "file");
    const json_t *tensors = json_object_get(report, "tensors");
    assert_int_equal(json_array_size(json_object_get(tensors, "list")), number(tensors, "total"));
    assert_non_null(strstr(text, "model.layers.*."));
    json_decref(report);
    mica_string_free(text);
}

static void test_outputs_may_be_null(void **state) {
    (void)state;
    mica_error error = {0};
    assert_int_equal(mica_inspect(TINY_K2, NULL, NULL, NULL, &error), MICA_OK);
    char *text = NULL;
    assert_int_equal(mica_inspect(TINY_K2 "/none", NULL, &text, NULL, &error), MICA_IO);
    assert_null(text);
    assert_non_null(strstr(error.message, "tiny-k2/none"));
}

static void test_strict(void **state) {
    (void)state;
    mica_error error = {0};
    mica_inspect_options strict = {true};
    assert_int_equal(mica_inspect(TINY_K2, &strict, NULL, NULL, &error), MICA_OK);
    const char *path = FIXTURES "bad/tensor-unknown";
    FILE *there = fopen(FIXTURES "bad/tensor-unknown/config.json", "rb");
    if (!there) {
        printf("skipped: %s is not there\n", path);
        skip();
    }
    fclose(there);
    assert_int_equal(mica_inspect(path, NULL, NULL, NULL, &error), MICA_OK);
    assert_int_equal(mica_inspect(path, &strict, NULL, NULL, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "model.layers.1.mlp.surprise.weight"));
}

static void test_every_kind(void **state) {
    (void)state;
    static const char *const kinds[] = {"v3-groups", "kimi-vl", "k2-thinking", "k25", "v4-flash", "llama-dense"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char path[512], *text = NULL;
        json_t *report = NULL;
        snprintf(path, sizeof path, FIXTURES "%s", kinds[i]);
        FILE *there = fopen(path, "rb");
        if (!there) {
            printf("skipped: %s is not there\n", path);
            skip();
        }
        fclose(there);
        inspect(path, &text, &report);
        assert_int_equal(sum(report, "roles", "bytes") + sum(report, "ignored", "bytes"), number(report, "bytes"));
        json_decref(report);
        mica_string_free(text);
    }
}

static void test_out_of_memory(void **state) {
    (void)state;
    const char *const paths[] = {TINY_K2, TINY_K2 "/model-00001-of-00003.safetensors"};
    for (int i = 0; i < 2; i++) {
        for (no_memory trial = {0}; no_memory_next(&trial);) {
            char *text = NULL, *json = NULL;
            mica_error error = {0};
            no_memory_begin(&trial);
            const mica_status status = mica_inspect(paths[i], NULL, &text, &json, &error);
            no_memory_end(&trial, status, MICA_OK, &error);
            assert_true((status == MICA_OK) == (text != NULL) && (status == MICA_OK) == (json != NULL));
            mica_string_free(text);
            mica_string_free(json);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiny_k2), cmocka_unit_test(test_bare_file),
                                       cmocka_unit_test(test_outputs_may_be_null),
                                       cmocka_unit_test(test_strict), cmocka_unit_test(test_every_kind),
                                       cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
