/* Statistics of a weight as of what mica_weight_load decodes at once; of tensors by themselves; of tensors of several slabs. */
#include "base/no_memory.h"
#include "operations/tensor_statistics.h"

#include <math.h>

#include "operations/vindex_helpers.h"

static mica_error error;

static void check_model(const char *path) {
    mica_model *model = NULL;
    if (mica_model_open(path, NULL, &model, &error) != MICA_OK)
        fail_msg("%s", error.message);
    for (uint64_t i = 0; i < model->weight_count; i++) {
        const mica_weight *weight = &model->weights[i];
        mica_moments moments, expected = {0};
        float *values = NULL;
        assert_int_equal(mica_weight_load(model, weight, &values, &error), MICA_OK);
        mica_moments_add(&expected, values, weight->rows * weight->columns);
        assert_int_equal(mica_tensor_statistics(model, weight, &moments, &error), MICA_OK);
        assert_int_equal(moments.count, weight->rows * weight->columns);
        assert_true(moments.minimum == expected.minimum && moments.maximum == expected.maximum);
        assert_true(fabs(moments.mean - expected.mean) <= 1e-12);
        assert_true(fabs(mica_moments_deviation(&moments) - mica_moments_deviation(&expected)) <= 1e-12);
        mica_free(values);
    }
    mica_model_close(model);
}

static void test_every_encoding(void **state) {
    (void)state;
    static const char *const kinds[] = {"v3-groups", "k2-thinking", "v4-flash", "kimi-vl"};
    check_model(TINY);
    for (size_t i = 0; mica_path_exists(FIXTURES) && i < sizeof kinds / sizeof *kinds; i++) {
        char path[SCRATCH_PATH_BYTES];
        snprintf(path, sizeof path, "%s/%s", FIXTURES, kinds[i]);
        check_model(path);
    }
}

/* A source that is no model: the tensor's own numbers. 9 Mi float32 values are three slabs. */
static void test_a_tensor_by_itself(void **state) {
    (void)state;
    const uint64_t count = 9u << 20;
    float *values = mica_malloc(count * sizeof *values);
    for (uint64_t i = 0; i < count; i++)
        values[i] = i % 2 ? 3.0f : -1.0f;
    char header[128];
    const int length = snprintf(header + 8, sizeof header - 8, "{\"t\":{\"dtype\":\"F32\",\"shape\":[%llu],\"data_offsets\":[0,%llu]}}",
                                (unsigned long long)count, (unsigned long long)(4 * count));
    memset(header, 0, 8);
    header[0] = (char)length;
    FILE *file = fopen(scratch("one.safetensors"), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(header, 1, 8 + (size_t)length, file), 8 + (size_t)length);
    assert_int_equal(fwrite(values, sizeof *values, count, file), count);
    assert_int_equal(fclose(file), 0);
    mica_free(values);
    mica_model bare = {0};
    mica_weight weight;
    mica_moments moments;
    assert_int_equal(mica_tensor_source_open(scratch("one.safetensors"), &bare.source, &error), MICA_OK);
    mica_tensor_as_weight(&bare.source->tensors[0], &weight);
    assert_int_equal(mica_tensor_statistics(&bare, &weight, &moments, &error), MICA_OK);
    assert_int_equal(moments.count, count);
    assert_true(moments.minimum == -1 && moments.maximum == 3 && fabs(moments.mean - 1) < 1e-12);
    assert_true(fabs(mica_moments_deviation(&moments) - 2) < 1e-12);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        no_memory_begin(&trial);
        no_memory_end(&trial, mica_tensor_statistics(&bare, &weight, &moments, &error), MICA_OK, &error);
    }
    mica_tensor_source_close(bare.source);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_encoding), cmocka_unit_test(test_a_tensor_by_itself)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
