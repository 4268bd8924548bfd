/* test_router.c: choices and weights against the reference, for every method, with ties and numbers that are not finite; refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "golden.h"
#include "model/router.h"
#include "reference/forward.h"

static uint64_t state_of_noise = 1;

static float noise(void) {
    state_of_noise = state_of_noise * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)((double)(state_of_noise >> 40) / (1 << 23) - 1);
}

static mica_config configure(const char *scoring, const char *method, uint64_t experts, uint64_t groups, uint64_t kept, uint64_t top_k,
                             bool normalise) {
    mica_config config = {.n_routed_experts = experts, .num_experts_per_tok = top_k, .n_group = groups, .topk_group = kept,
                          .norm_topk_prob = normalise, .routed_scaling_factor = 2.5};
    snprintf(config.scoring_func, sizeof config.scoring_func, "%s", scoring);
    snprintf(config.topk_method, sizeof config.topk_method, "%s", method);
    return config;
}

static void compare(const mica_config *config, bool with_bias, int rounds) {
    mica_router router;
    float logits[64], bias[64], scratch[128], scores[64], weights[16];
    double wide[64], expected[16];
    uint32_t ids[16];
    int32_t expected_ids[16];
    assert_int_equal(mica_router_init(config, &router, NULL), MICA_OK);
    for (int round = 0; round < rounds; round++) {
        for (uint64_t e = 0; e < config->n_routed_experts; e++) {
            logits[e] = round % 3 == 2 ? (float)((int)(noise() * 2)) : 3 * noise(); /* with ties */
            bias[e] = round % 3 == 2 ? 0 : 0.3f * noise() + (round % 3 ? 0.5f : -1.5f); /* of a corrected score no sign is certain */
            wide[e] = (double)logits[e];
        }
        mica_router_choose(&router, logits, with_bias ? bias : NULL, scratch, scores, ids, weights);
        reference_route(config, wide, with_bias ? bias : NULL, expected_ids, expected);
        for (uint64_t i = 0; i < config->num_experts_per_tok; i++) {
            assert_int_equal(ids[i], expected_ids[i]);
            assert_true(fabs((double)weights[i] - expected[i]) < 1e-5);
        }
    }
}

static void test_methods(void **state) {
    (void)state;
    for (int softmax = 0; softmax < 2; softmax++)
        for (int normalise = 0; normalise < 2; normalise++) {
            const char *scoring = softmax ? "softmax" : "sigmoid";
            mica_config cases[] = {configure(scoring, "noaux_tc", 24, 1, 1, 4, normalise),
                                   configure(scoring, "noaux_tc", 16, 8, 3, 3, normalise),
                                   configure(scoring, "noaux_tc", 12, 4, 2, 4, normalise),
                                   configure(scoring, "noaux_tc", 12, 2, 1, 4, normalise),
                                   configure(scoring, "greedy", 64, 8, 3, 6, normalise),
                                   configure(scoring, "group_limited_greedy", 64, 8, 3, 6, normalise),
                                   configure(scoring, "noaux_tc", 8, 8, 3, 3, normalise)};
            for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
                compare(&cases[i], !softmax && strcmp(cases[i].topk_method, "noaux_tc") == 0, 300);
        }
}

static void test_not_finite(void **state) {
    (void)state;
    mica_config config = configure("sigmoid", "noaux_tc", 12, 4, 2, 4, true);
    mica_router router;
    float logits[12], scratch[32], scores[12], weights[4];
    uint32_t ids[4];
    assert_int_equal(mica_router_init(&config, &router, NULL), MICA_OK);
    for (int kind = 0; kind < 3; kind++) {
        for (int i = 0; i < 12; i++)
            logits[i] = kind == 0 ? NAN : kind == 1 ? INFINITY : -INFINITY;
        mica_router_choose(&router, logits, NULL, scratch, scores, ids, weights);
        for (int i = 0; i < 4; i++)
            assert_true(ids[i] < 12 && (i == 0 || ids[i] > ids[i - 1]));
    }
}

/* Scores so small that they are 0 in float32: weights of 0, not of 0 / 0. */
static void test_vanishing_scores(void **state) {
    (void)state;
    mica_config config = configure("sigmoid", "noaux_tc", 8, 1, 1, 3, true);
    mica_router router;
    float logits[8], scratch[32], scores[8], weights[3];
    uint32_t ids[3];
    assert_int_equal(mica_router_init(&config, &router, NULL), MICA_OK);
    for (int i = 0; i < 8; i++)
        logits[i] = -300;
    mica_router_choose(&router, logits, NULL, scratch, scores, ids, weights);
    for (int i = 0; i < 3; i++)
        assert_true(ids[i] == (uint32_t)i && weights[i] == 0);
}

/* An expert whose correction is NaN is the last to be chosen. */
static void test_bias_not_finite(void **state) {
    (void)state;
    mica_config config = configure("sigmoid", "noaux_tc", 8, 1, 1, 3, true);
    mica_router router;
    float logits[8], bias[8], scratch[32], scores[8], weights[3];
    uint32_t ids[3];
    assert_int_equal(mica_router_init(&config, &router, NULL), MICA_OK);
    for (int i = 0; i < 8; i++) {
        logits[i] = (float)i;
        bias[i] = -2;
    }
    bias[0] = bias[6] = NAN;
    mica_router_choose(&router, logits, bias, scratch, scores, ids, weights);
    assert_true(ids[0] == 4 && ids[1] == 5 && ids[2] == 7);
}

static void test_refusals(void **state) {
    (void)state;
    mica_router router;
    mica_error error;
    mica_config config = configure("sqrtsoftplus", "noaux_tc", 12, 1, 1, 4, true);
    assert_int_equal(mica_router_init(&config, &router, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "scoring_func: expected sigmoid or softmax"));
    config = configure("sigmoid", "hash", 12, 1, 1, 4, true);
    assert_int_equal(mica_router_init(&config, &router, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "topk_method: expected greedy"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_methods), cmocka_unit_test(test_not_finite), cmocka_unit_test(test_vanishing_scores),
                                       cmocka_unit_test(test_bias_not_finite), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
