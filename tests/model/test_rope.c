/* test_rope.c: frequencies against the fixtures' and the reference's, scales by hand; types that are not computed are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "golden.h"
#include "model/rope.h"
#include "reference/forward.h"

static void test_fixtures(void **state) {
    (void)state;
    if (!mica_path_is_directory(FIXTURES))
        skip();
    uint64_t compared = 0;
    for (size_t k = 0; k < FIXTURE_KINDS; k++) {
        char path[512];
        mica_model *model;
        mica_rope rope;
        snprintf(path, sizeof path, "%s/%s", FIXTURES, fixture_kinds[k]);
        assert_int_equal(mica_model_open(path, NULL, &model, NULL), MICA_OK);
        assert_int_equal(mica_rope_init(&model->config, &rope, NULL), MICA_OK);
        snprintf(path, sizeof path, "%s/%s/golden.json", FIXTURES, fixture_kinds[k]);
        json_t *golden = golden_open(path);
        const json_t *expected = json_object_get(golden, "inv_freq");
        bool given = json_is_array(expected); /* the dense ones do not say */
        assert_int_equal(given ? json_array_size(expected) : rope.pairs, rope.pairs);
        compared += given;
        for (uint64_t i = 0; i < rope.pairs && given; i++)
            assert_true(fabs(rope.frequencies[i] / json_real_value(json_array_get(expected, i)) - 1) < 1e-9);
        json_decref(golden);
        mica_rope_release(&rope);
        mica_model_close(model);
    }
    assert_true(compared > 0);
}

static mica_config grouped(const char *type) {
    mica_config config = {.architecture = mica_architecture_find("llama"), .head_dim = 64, .rope_theta = 500000, .rope_factor = 8,
                          .rope_original_context = 8192, .rope_low_freq_factor = 1, .rope_high_freq_factor = 4, .rope_beta_fast = 32,
                          .rope_beta_slow = 1, .rope_mscale = 1};
    snprintf(config.rope_type, sizeof config.rope_type, "%s", type);
    return config;
}

static void test_types(void **state) {
    (void)state;
    static const char *const types[] = {"", "linear", "llama3", "yarn"};
    for (int k = 0; k < 4; k++) {
        mica_config config = grouped(types[k]);
        mica_rope rope;
        assert_int_equal(mica_rope_init(&config, &rope, NULL), MICA_OK);
        for (uint64_t i = 0; i < rope.pairs; i++)
            assert_true(fabs(rope.frequencies[i] / reference_frequency(&config, i, rope.pairs) - 1) < 1e-12);
        assert_true(fabs((double)rope.softmax_scale - 0.125) < 1e-9);
        assert_true(fabs(rope.amplitude - (k == 3 ? 0.1 * log(8) + 1 : 1)) < 1e-12);
        mica_rope_release(&rope);
    }
}

static void check_frequencies(const mica_config *config, double amplitude) {
    mica_rope rope;
    float cosines[32], sines[32];
    assert_int_equal(mica_rope_init(config, &rope, NULL), MICA_OK);
    assert_int_equal(rope.pairs, 32);
    mica_rope_angles(&rope, 3, cosines, sines);
    for (uint64_t i = 0; i < rope.pairs; i++) {
        const double frequency = reference_frequency(config, i, rope.pairs);
        assert_true(fabs(rope.frequencies[i] / frequency - 1) < 1e-12);
        assert_true(fabs((double)cosines[i] - amplitude * cos(3 * frequency)) < 1e-6 && fabs((double)sines[i] - amplitude * sin(3 * frequency)) < 1e-6);
    }
    assert_true(fabs(rope.amplitude - amplitude) < 1e-12);
    assert_true(fabs((double)rope.softmax_scale - 0.125) < 1e-9); /* of grouped attention no factor changes it */
    mica_rope_release(&rope);
}

/* Yarn at its borders: a ramp that would end behind the last pair, a factor that shrinks, which has no amplitude, and amplitudes that the configuration
 * states. */
static void test_yarn_borders(void **state) {
    (void)state;
    mica_config config = grouped("yarn");
    config.rope_theta = 50;
    config.rope_beta_fast = 1000; /* from pair 2 to 78, of 32 */
    config.rope_beta_slow = 0.1;
    check_frequencies(&config, 0.1 * log(8) + 1);
    config = grouped("yarn");
    config.rope_factor = 0.5;
    check_frequencies(&config, 1);
    config = grouped("yarn");
    config.rope_mscale = 0.5;
    config.rope_mscale_all_dim = 0.8;
    check_frequencies(&config, (0.05 * log(8) + 1) / (0.08 * log(8) + 1));
    config.rope_attention_factor = 1.25;
    check_frequencies(&config, 1.25);
}

/* Kimi-K2: factor 32, beta_fast = beta_slow = 1: m = 1.3466, squared in the softmax's scale, no amplitude; a step of a ramp. */
static void test_kimi_k2(void **state) {
    (void)state;
    mica_config config = {.architecture = mica_architecture_find("kimi_k2"),
                          .qk_nope_head_dim = 128,
                          .qk_rope_head_dim = 64,
                          .rope_theta = 50000,
                          .rope_factor = 32,
                          .rope_original_context = 4096,
                          .rope_beta_fast = 1,
                          .rope_beta_slow = 1,
                          .rope_mscale = 1,
                          .rope_mscale_all_dim = 1,
                          .rope_type = "yarn"};
    mica_rope rope;
    float cosines[32], sines[32];
    assert_int_equal(mica_rope_init(&config, &rope, NULL), MICA_OK);
    assert_true(fabs((double)rope.softmax_scale * sqrt(192) - 1.8133) < 1e-4);
    assert_true(fabs(rope.amplitude - 1) < 1e-12);
    for (uint64_t i = 0; i < 32; i++) { /* 64 ln(4096 / 2 pi) / (2 ln 50000) = 19.16: kept up to 19, stretched from 20 on */
        double plain = pow(50000, -(double)i / 32);
        assert_true(fabs(rope.frequencies[i] / (i <= 19 ? plain : plain / 32) - 1) < 1e-12);
    }
    mica_rope_angles(&rope, 100000, cosines, sines);
    for (uint64_t i = 0; i < 32; i++) { /* an angle in float32 would be off by up to 4e-3 */
        const double angle = 100000 * (i <= 19 ? pow(50000, -(double)i / 32) : pow(50000, -(double)i / 32) / 32);
        assert_true(fabs((double)cosines[i] - cos(angle)) < 1e-7 && fabs((double)sines[i] - sin(angle)) < 1e-7);
    }
    mica_rope_release(&rope);
}

static void refuse(const mica_config *config, const char *expected) {
    mica_error error;
    mica_rope rope;
    assert_int_equal(mica_rope_init(config, &rope, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, expected));
}

static void test_refusals(void **state) {
    (void)state;
    mica_config config = grouped("dynamic");
    refuse(&config, "expected type yarn, llama3, linear or default to run the model, got dynamic");
    for (int llama3 = 0; llama3 < 2; llama3++) {
        config = grouped(llama3 ? "llama3" : "yarn");
        config.rope_original_context = 0;
        refuse(&config, "original_max_position_embeddings");
    }
    for (int k = 0; k < 3; k++) {
        config = grouped("yarn");
        *(k == 0 ? &config.rope_beta_fast : k == 1 ? &config.rope_beta_slow : &config.rope_theta) = k == 2 ? 1 : 0;
        refuse(&config, "expected positive beta_fast and beta_slow and a rope_theta above 1");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fixtures), cmocka_unit_test(test_types), cmocka_unit_test(test_yarn_borders),
                                       cmocka_unit_test(test_kimi_k2), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
