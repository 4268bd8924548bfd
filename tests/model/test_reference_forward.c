/* test_reference_forward.c: the reference forward pass against the fixtures' float64 truths: what judges the engine must itself be
 * right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "golden.h"
#include "model/model.h"
#include "reference/forward.h"

static void compare(const char *what, const double *got, const float *expected, uint64_t count, double tolerance) {
    for (uint64_t i = 0; i < count; i++)
        if (!(fabs(got[i] - (double)expected[i]) <= tolerance))
            fail_msg("%s [%lu]: expected %.9g, got %.9g", what, i, (double)expected[i], got[i]);
}

static void judge(const char *directory, const char *raw_directory, const json_t *sequence, bool hidden) {
    mica_model *model;
    mica_error error;
    reference_result result;
    int64_t *ids;
    uint64_t tokens = golden_ids(sequence, &ids);
    assert_int_equal(mica_model_open(directory, NULL, &model, &error), MICA_OK);
    reference_forward(model, ids, tokens, &result);
    const mica_config *config = &model->config;
    const json_t *router = json_object_get(sequence, "router");
    float *logits = golden_raw(raw_directory, json_object_get(sequence, "logits"), tokens * config->vocab_size);
    compare("logits", result.logits, logits, tokens * config->vocab_size, 2e-6);
    free(logits);
    if (hidden) {
        uint64_t count = (config->num_hidden_layers + 1) * tokens * config->hidden_size;
        float *states = golden_raw(raw_directory, json_object_get(sequence, "hidden"), count);
        compare("hidden", result.hidden, states, count, 2e-6);
        free(states);
    }
    uint64_t choices = result.moe_layers * tokens * config->num_experts_per_tok;
    if (choices) {
        const json_t *at = json_is_object(router) ? router : NULL;
        int32_t *experts = golden_raw(raw_directory, json_object_get(at ? at : sequence, at ? "ids" : "router_ids"), choices);
        float *weights = golden_raw(raw_directory, json_object_get(at ? at : sequence, at ? "weights" : "router_weights"), choices);
        assert_memory_equal(result.router_ids, experts, choices * sizeof *experts);
        compare("router weights", result.router_weights, weights, choices, 1e-6);
        free(experts);
        free(weights);
    }
    reference_release(&result);
    free(ids);
    mica_model_close(model);
}

static void test_fixtures(void **state) {
    (void)state;
    if (!mica_path_is_directory(FIXTURES))
        skip();
    for (size_t i = 0; i < FIXTURE_KINDS; i++) {
        char directory[512], path[600];
        snprintf(directory, sizeof directory, "%s/%s", FIXTURES, fixture_kinds[i]);
        snprintf(path, sizeof path, "%s/golden.json", directory);
        json_t *golden = golden_open(path);
        judge(directory, directory, json_object_get(json_object_get(golden, "sequences"), "a"), true);
        judge(directory, directory, json_object_get(json_object_get(golden, "sequences"), "b"), true);
        json_decref(golden);
    }
}

static void test_tiny_k2(void **state) {
    (void)state;
    json_t *golden = golden_open(TINY_K2 "/golden/golden.json");
    judge(TINY_K2, TINY_K2 "/golden", json_object_get(json_object_get(golden, "sequences"), "fact"), false);
    json_decref(golden);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fixtures), cmocka_unit_test(test_tiny_k2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
