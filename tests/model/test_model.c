/* test_model.c: every kind of checkpoint opens, every tensor is accounted for, every weight decodes to the recorded bytes.
 * Outside truth: golden.json of the fixtures (SHA-256 of every decoded weight). models/tiny-k2 is always there; ../shared may not be. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "model/model.h"

#define TINY_K2 MICA_SOURCE_DIR "/models/tiny-k2"
#define FIXTURES MICA_SOURCE_DIR "/../shared/fixtures/public"

static mica_model *open_model(const char *path) {
    mica_model *model = NULL;
    mica_error error = {0};
    if (mica_model_open(path, NULL, &model, &error) != MICA_OK)
        fail_msg("%s: %s", path, error.message);
    return model;
}

/* Every tensor in exactly one weight; counts add up; layers point at what they say. */
static void check_accounts(const mica_model *model) {
    uint64_t count = model->source->tensor_count, fates[3] = {0}, parts = 0;
    uint8_t *seen = calloc(count, 1);
    for (uint64_t i = 0; i < count; i++)
        fates[model->accounts[i].fate]++;
    for (uint64_t i = 0; i < model->weight_count; i++) {
        const mica_weight *weight = &model->weights[i];
        const mica_tensor *tensors[3] = {weight->data, weight->scale, weight->shape};
        for (int k = 0; k < 3; k++) {
            if (!tensors[k])
                continue;
            assert_int_equal(seen[tensors[k] - model->source->tensors]++, 0);
            assert_int_equal(model->accounts[tensors[k] - model->source->tensors].fate, weight->fate);
            parts++;
        }
        assert_ptr_equal(mica_model_weight(model, weight->name), weight);
    }
    free(seen);
    assert_int_equal(parts, count);
    assert_int_equal(fates[MICA_USED], model->used_count);
    assert_int_equal(fates[MICA_IGNORED], model->ignored_count);
    assert_int_equal(fates[MICA_UNKNOWN], model->unknown_count);
    assert_int_equal(model->unknown_count, 0);
    assert_int_equal(model->warning_count, 0);
}

static void check_projections(const mica_config *config, const mica_weight *const *weights, int64_t layer, int64_t expert, uint64_t width) {
    for (int projection = 0; projection < MICA_PROJECTION_COUNT; projection++) {
        const mica_weight *weight = weights[projection];
        assert_non_null(weight);
        assert_int_equal(weight->layer, layer);
        assert_int_equal(weight->expert, expert);
        assert_int_equal(weight->projection, projection);
        assert_int_equal(weight->rows, projection == MICA_DOWN ? config->hidden_size : width);
        assert_int_equal(weight->columns, projection == MICA_DOWN ? width : config->hidden_size);
    }
}

static void check_layers(const mica_model *model) {
    const mica_config *config = &model->config;
    for (uint64_t i = 0; i < config->num_hidden_layers; i++) {
        const mica_layer *layer = &model->layers[i];
        assert_int_equal(layer->moe, config->n_routed_experts > 0 && i >= config->first_k_dense_replace);
        if (!layer->moe) {
            assert_null(layer->router);
            check_projections(config, layer->dense, (int64_t)i, -1, config->intermediate_size);
            continue;
        }
        assert_int_equal(layer->router->rows, config->n_routed_experts);
        assert_true((layer->hash_table != NULL) == (i < config->num_hash_layers));
        assert_true((layer->router_bias != NULL) == (i >= config->num_hash_layers));
        for (uint64_t e = 0; e < config->n_routed_experts; e++)
            check_projections(config, layer->experts + e * MICA_PROJECTION_COUNT, (int64_t)i, (int64_t)e, config->moe_intermediate_size);
        check_projections(config, layer->shared, (int64_t)i, -1, config->n_shared_experts * config->moe_intermediate_size);
    }
}

static void test_tiny_k2(void **state) {
    (void)state;
    mica_model *model = open_model(TINY_K2);
    check_accounts(model);
    check_layers(model);
    assert_string_equal(model->config.model_type, "kimi_k2");
    assert_int_equal(model->config.n_routed_experts, 24);
    const mica_weight *weight = mica_model_weight(model, "model.layers.1.mlp.experts.2.up_proj.weight");
    assert_non_null(weight);
    assert_int_equal(weight->encoding, MICA_ENCODING_FP8_BLOCK);
    assert_string_equal(weight->scale->name, "model.layers.1.mlp.experts.2.up_proj.weight_scale_inv");
    assert_null(mica_model_weight(model, "model.layers.1.mlp.experts.24.up_proj.weight"));
    for (uint64_t i = 0; i < model->weight_count; i++) { /* loads, decodes, and is finite */
        float *values = NULL;
        mica_error error = {0};
        if (mica_weight_load(model, &model->weights[i], &values, &error) != MICA_OK)
            fail_msg("%s", error.message);
        mica_free(values);
    }
    mica_model_close(model);
}

/* ---- fixtures */

static void decoded_digest(const mica_model *model, const mica_weight *weight, char hex[MICA_SHA256_HEX_BYTES]) {
    float *values = NULL;
    mica_error error = {0};
    if (mica_weight_load(model, weight, &values, &error) != MICA_OK)
        fail_msg("%s", error.message);
    uint64_t count = weight->rows * weight->columns;
    uint8_t digest[MICA_SHA256_BYTES];
    int64_t *integers = calloc(count, sizeof *integers);
    bool table = !mica_dtype_is_floating(weight->data->dtype) && weight->encoding == MICA_ENCODING_PLAIN;
    for (uint64_t i = 0; i < count; i++)
        integers[i] = table ? (int64_t)values[i] : 0;
    assert_int_equal(mica_sha256_of(table ? (void *)integers : (void *)values, count * (table ? 8 : 4), digest, NULL), MICA_OK);
    mica_sha256_hex(digest, hex);
    free(integers);
    mica_free(values);
}

static void check_decoded(const mica_model *model, const json_t *golden) {
    const char *name;
    json_t *expected;
    const json_t *digests = json_object_get(golden, "decoded_sha256");
    assert_int_equal(json_object_size(digests), model->weight_count);
    json_object_foreach((json_t *)digests, name, expected) {
        const mica_weight *weight = mica_model_weight(model, name);
        char hex[MICA_SHA256_HEX_BYTES];
        if (!weight)
            fail_msg("%s is no weight", name);
        decoded_digest(model, weight, hex);
        if (strcmp(hex, json_string_value(expected)) != 0)
            fail_msg("%s decodes to other bytes (%s)", name, hex);
    }
}

static void check_totals(const mica_model *model, const json_t *golden) {
    uint64_t parameters = 0, bytes = 0;
    for (uint64_t i = 0; i < model->weight_count; i++)
        parameters += model->weights[i].rows * model->weights[i].columns;
    for (uint64_t i = 0; i < model->source->tensor_count; i++)
        bytes += model->source->tensors[i].bytes;
    assert_int_equal(parameters, json_integer_value(json_object_get(golden, "parameters")));
    assert_int_equal(model->source->tensor_count, json_integer_value(json_object_get(golden, "stored_tensors")));
    assert_int_equal(bytes, json_integer_value(json_object_get(golden, "stored_bytes")));
}

static void check_fixture(const char *kind, const char *model_type, uint64_t ignored) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", FIXTURES, kind);
    if (!mica_path_exists(path)) {
        printf("skipped: %s is not there\n", path);
        skip();
    }
    mica_model *model = open_model(path);
    assert_string_equal(model->config.model_type, model_type);
    check_accounts(model);
    check_layers(model);
    assert_int_equal(model->ignored_count, ignored);
    json_t *golden = NULL;
    snprintf(path, sizeof path, "%s/%s/golden.json", FIXTURES, kind);
    assert_int_equal(mica_json_load(path, 1u << 30, &golden, NULL), MICA_OK);
    check_totals(model, golden);
    check_decoded(model, golden);
    json_decref(golden);
    mica_model_close(model);
}

/* kind, model_type, tensors that are ignored by a rule (counted in the indexes by other means, once) */
#define KINDS(X)                                        \
    X(v3_groups, "v3-groups", "deepseek_v3", 105)        \
    X(v3_ue8m0, "v3-groups-ue8m0", "deepseek_v3", 0)    \
    X(kimi_vl, "kimi-vl", "kimi_vl", 35)                \
    X(k2_thinking, "k2-thinking", "kimi_k2", 0)         \
    X(k25, "k25", "kimi_k25", 23)                      \
    X(v4_flash, "v4-flash", "deepseek_v4", 99)          \
    X(qwen3, "qwen3-dense", "qwen3", 0)                 \
    X(llama, "llama-dense", "llama", 0)

#define X(name, kind, type, ignored)               \
    static void test_##name(void **state) {        \
        (void)state;                               \
        check_fixture(kind, type, ignored);        \
    }
KINDS(X)
#undef X

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_k2),
#define X(name, kind, type, ignored) cmocka_unit_test(test_##name),
        KINDS(X)
#undef X
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
