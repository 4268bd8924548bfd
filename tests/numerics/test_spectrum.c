/* Judges numerics/spectrum.c: every metric of the fixtures' golden.json recomputed from its singular values, the Marchenko-Pastur share
 * against published points, direct quadrature and simulation, quantiles against numpy. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "numerics/spectrum.h"

#define FIXTURES MICA_SOURCE_DIR "/../shared/fixtures/public/"
#define COUNT(array) (sizeof(array) / sizeof *(array))

static void expect_close(double got, double expected, double relative, const char *what) {
    if (!(fabs(got - expected) <= relative * fabs(expected)))
        fail_msg("%s: expected %.17g, got %.17g", what, expected, got);
}

static double number(const json_t *object, const char *key, size_t index) {
    const json_t *value = json_array_get(json_object_get(object, key), index);
    assert_true(json_is_number(value));
    return json_number_value(value);
}

/* One matrix: its singular values against the row `e` of every metric. */
static void check_matrix(const double *values, uint64_t rank, const json_t *metrics, size_t e) {
    double squares = mica_spectrum_sum_squares(values, rank), fourth = mica_spectrum_sum_fourth(values, rank);
    expect_close(mica_spectrum_var(values, rank, 8, squares), number(metrics, "var8", e), 1e-12, "var8");
    expect_close(mica_spectrum_var(values, rank, 64, squares), number(metrics, "var64", e), rank <= 64 ? 0 : 1e-12, "var64");
    expect_close(values[0], number(metrics, "s0", e), 1e-12, "s0");
    expect_close(values[1], number(metrics, "s1", e), 1e-12, "s1");
    expect_close(values[0] / values[1], number(metrics, "s0_over_s1", e), 1e-12, "s0_over_s1");
    expect_close(sqrt(squares), number(metrics, "frobenius", e), 1e-12, "frobenius");
    expect_close(mica_spectrum_effective_rank(values, rank), number(metrics, "effective_rank", e), 1e-12, "effective_rank");
    expect_close(mica_spectrum_participation(squares, fourth), number(metrics, "participation_ratio", e), 1e-12, "participation_ratio");
    expect_close(mica_spectrum_stable_rank(squares, values[0]), number(metrics, "stable_rank", e), 1e-12, "stable_rank");
}

static void check_layer_summary(const json_t *metrics, const json_t *summary, size_t experts) {
    static const struct {
        const char *key;
        double q;
    } quantiles[] = {{"min", 0}, {"q1", 0.25}, {"median", 0.5}, {"q3", 0.75}, {"max", 1}};
    double *values = calloc(2 * experts, sizeof *values), *scratch = values + experts;
    const char *metric;
    json_t *expected;
    json_object_foreach((json_t *)(uintptr_t)summary, metric, expected) {
        for (size_t e = 0; e < experts; e++)
            values[e] = number(metrics, metric, e);
        for (size_t i = 0; i < COUNT(quantiles); i++) {
            double truth = json_number_value(json_object_get(expected, quantiles[i].key));
            expect_close(mica_quantile(values, experts, quantiles[i].q, scratch), truth, 1e-12, quantiles[i].key);
        }
    }
    free(values);
}

static void check_projection(const char *directory, const json_t *projection) {
    const json_t *file = json_object_get(projection, "singular_values"), *shape = json_object_get(file, "shape");
    const json_t *matrices = json_object_get(projection, "matrices"), *summaries = json_object_get(projection, "layer_summary");
    size_t layers = (size_t)json_integer_value(json_array_get(shape, 0)), experts = (size_t)json_integer_value(json_array_get(shape, 1));
    size_t rank = (size_t)json_integer_value(json_array_get(shape, 2));
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", directory, json_string_value(json_object_get(file, "file")));
    FILE *stream = fopen(path, "rb");
    double *values = calloc(layers * experts * rank, sizeof *values);
    assert_non_null(stream);
    assert_true(layers * experts * rank > 0 && json_array_size(matrices) == layers && json_array_size(summaries) == layers);
    assert_int_equal(fread(values, sizeof *values, layers * experts * rank, stream), layers * experts * rank);
    fclose(stream);
    for (size_t l = 0; l < layers; l++) {
        for (size_t e = 0; e < experts; e++)
            check_matrix(values + (l * experts + e) * rank, rank, json_array_get(matrices, l), e);
        check_layer_summary(json_array_get(matrices, l), json_array_get(summaries, l), experts);
    }
    free(values);
}

static void test_fixtures(void **state) {
    (void)state;
    static const char *const kinds[] = {"v3-groups", "v3-groups-ue8m0", "kimi-vl",     "k2-thinking",
                                        "k25",       "v4-flash",        "qwen3-dense", "llama-dense"};
    unsigned projections = 0;
    for (size_t i = 0; i < COUNT(kinds); i++) {
        char directory[512], path[1024];
        json_error_t error;
        snprintf(directory, sizeof directory, FIXTURES "%s", kinds[i]);
        snprintf(path, sizeof path, "%s/golden.json", directory);
        json_t *golden = json_load_file(path, 0, &error);
        if (!golden) {
            printf("skipped: %s is absent (%s)\n", path, error.text);
            skip();
        }
        const char *name;
        json_t *projection;
        json_object_foreach(json_object_get(golden, "spectra"), name, projection) {
            if (json_object_get(projection, "matrices")) { /* not "layers", and "router" has no metrics */
                check_projection(directory, projection);
                projections++;
            }
        }
        json_decref(golden);
    }
    assert_int_equal(projections, 2 * COUNT(kinds));
}

static void test_hand_computed(void **state) {
    (void)state;
    const double equal[4] = {2, 2, 2, 2}, mixed[3] = {2, 1, 0}, zero[2] = {0, 0};
    expect_close(mica_spectrum_effective_rank(equal, 4), 4, 1e-15, "effective rank");
    expect_close(mica_spectrum_effective_rank(mixed, 3), 3 / cbrt(4), 1e-15, "exp(ln 3 - 2/3 ln 2)"); /* shares 2/3, 1/3, 0 */
    expect_close(mica_spectrum_participation(16, 64), 4, 0, "participation");
    expect_close(mica_spectrum_stable_rank(5, 2), 1.25, 0, "stable rank");
    expect_close(mica_spectrum_var(mixed, 3, 1, 5), 0.8, 0, "var@1");
    expect_close(mica_spectrum_var(mixed, 2, 1, 10), 0.4, 0, "var@1 of a larger whole");
    expect_close(mica_spectrum_var(mixed, 3, 64, 5), 1, 0, "var@64");
    assert_true(mica_spectrum_var(mixed, 3, 0, 5) == 0);
    assert_true(mica_spectrum_var(mixed, 3, 3, 4) > 1.2); /* a wrong norm shows */
    assert_true(isnan(mica_spectrum_var(zero, 2, 1, 0)) && isnan(mica_spectrum_effective_rank(zero, 2)));
    assert_true(isnan(mica_spectrum_stable_rank(0, 0)) && isnan(mica_spectrum_participation(0, 0)));
    assert_true(isnan(mica_spectrum_effective_rank(zero, 0)) && mica_spectrum_sum_squares(zero, 0) == 0);
    assert_int_equal(mica_spectrum_count_above(equal, 4, 1.9), 4);
    assert_int_equal(mica_spectrum_count_above(mixed, 3, 1), 1);
    assert_int_equal(mica_spectrum_count_above(mixed, 3, NAN), 0);
    expect_close(mica_noise_edge(4, 9, 36), 5, 1e-15, "edge");
    expect_close(mica_noise_edge(9, 4, 144), 10, 1e-15, "edge");
}

/* All values: exactly 1, whatever they are and however the squares were rounded on the way. */
static void test_var_is_one(void **state) {
    (void)state;
    double values[1000], plain = 0;
    uint64_t seed = 1;
    for (uint64_t i = 0; i < COUNT(values); i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        values[i] = (double)(1000 - i) + (double)(seed >> 40) * 0x1p-24;
        plain += values[i] * values[i];
    }
    assert_true(mica_spectrum_var(values, 1000, 1000, mica_spectrum_sum_squares(values, 1000)) == 1.0);
    assert_true(mica_spectrum_var(values, 1000, 5000, mica_spectrum_sum_squares(values, 1000)) == 1.0);
    expect_close(mica_spectrum_var(values, 1000, 1000, plain), 1, 1e-15, "naive sum");
    assert_true(mica_spectrum_var(values, 1000, 999, plain) < 1.0);
}

/* The same integral, the other way: Simpson's rule over the density itself, in x = a + (b - a) sin^2, no closed form, no angle of the
 * bulk. */
static double density_integral(double beta, double low, double high, int power) {
    double a = (1 - sqrt(beta)) * (1 - sqrt(beta)), b = (1 + sqrt(beta)) * (1 + sqrt(beta)), sum = 0;
    double from = asin(sqrt((low - a) / (b - a))), to = asin(fmin(1, sqrt((high - a) / (b - a)))), step = (to - from) / 4000;
    for (int i = 0; i <= 4000; i++) {
        double s = sin(from + i * step), c = cos(from + i * step), x = a + (b - a) * s * s;
        double density = (b - a) * s * c / (2 * acos(-1.0) * beta * x), jacobian = 2 * (b - a) * s * c;
        double weight = i == 0 || i == 4000 ? 1 : i % 2 ? 4 : 2;
        sum += weight * (x > 0 ? density * jacobian * (power ? x : 1) : 0);
    }
    return sum * step / 3;
}

static double noise_var_by_quadrature(uint64_t rows, uint64_t columns, uint64_t k) {
    double r = (double)(rows < columns ? rows : columns), beta = r * r / ((double)rows * (double)columns);
    double low = (1 - sqrt(beta)) * (1 - sqrt(beta)), top = (1 + sqrt(beta)) * (1 + sqrt(beta)), high = top;
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        *(density_integral(beta, middle, top, 0) > (double)k / r ? &low : &high) = middle;
    }
    return density_integral(beta, low, top, 1);
}

static void test_noise_var(void **state) {
    (void)state;
    static const struct {
        uint64_t rows, columns, k;
    } cases[] = {{2048, 7168, 64}, {4096, 2048, 64}, {18432, 7168, 64}, {2048, 1408, 64}, {64, 100, 63}, {1000, 1001, 10}, {7, 100000, 3},
                 {384, 7168, 64},  {96, 64, 8}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        double got = mica_noise_var(cases[i].rows, cases[i].columns, cases[i].k);
        assert_true(fabs(got - noise_var_by_quadrature(cases[i].rows, cases[i].columns, cases[i].k)) < 1e-10);
        assert_true(got == mica_noise_var(cases[i].columns, cases[i].rows, cases[i].k));
    }
    /* the points that were published from simulation and quadrature (four digits, last one uncertain) */
    assert_true(fabs(mica_noise_var(2048, 7168, 64) - 0.0688) < 2e-4);
    assert_true(fabs(mica_noise_var(4096, 2048, 64) - 0.0838) < 2e-4);
    assert_true(fabs(mica_noise_var(18432, 7168, 64) - 0.0228) < 1e-4);
    assert_true(fabs(mica_noise_var(2048, 1408, 64) - 0.1345) < 1e-4);
    assert_true(mica_noise_var(64, 64, 64) == 1 && mica_noise_var(48, 136, 64) == 1 && mica_noise_var(1, 1, 1) == 1);
    assert_true(mica_noise_var(100, 100, 0) == 0 && isnan(mica_noise_var(0, 5, 1)));
    for (uint64_t k = 1; k < 200; k++) { /* grows, concave, above k / r */
        double before = mica_noise_var(200, 300, k - 1), at = mica_noise_var(200, 300, k), after = mica_noise_var(200, 300, k + 1);
        assert_true(at > before && at - before >= after - at && at > (double)k / 200);
    }
}

/* Means of 40 draws; the limit law differs from finite matrices by some parts in a thousand (docs/statistics.md). Made with
 *     rng = np.random.default_rng(seed); v = []
 *     for _ in range(40): s = np.linalg.svd(rng.standard_normal((rows, columns)), compute_uv=False)**2; v.append(s[:k].sum() / s.sum())
 *     np.mean(v) */
static void test_noise_var_by_simulation(void **state) {
    (void)state;
    expect_close(mica_noise_var(256, 1024, 16), 0.126833, 0.004, "seed 1");
    expect_close(mica_noise_var(400, 400, 40), 0.314258, 0.004, "seed 2");
    expect_close(mica_noise_var(600, 300, 3), 0.028066, 0.004, "seed 3");
    expect_close(mica_noise_var(64, 512, 32), 0.650403, 0.004, "seed 4");
}

/* numpy 1.24: [float(np.quantile(a, q)) for q in (0, .1, .25, .5, .75, .9, 1)] for a = [3.1, -2, 7.25, 0.1, 5], and for a[:4] */
static void test_quantiles(void **state) {
    (void)state;
    const double values[5] = {3.1, -2, 7.25, 0.1, 5}, q[7] = {0, 0.1, 0.25, 0.5, 0.75, 0.9, 1};
    const double five[7] = {-2.0, -1.16, 0.1, 3.1, 5.0, 6.3500000000000005, 7.25};
    const double four[7] = {-2.0, -1.3699999999999999, -0.42500000000000004, 1.6, 4.1375, 6.005000000000001, 7.25};
    double scratch[5];
    for (int i = 0; i < 7; i++) {
        expect_close(mica_quantile(values, 5, q[i], scratch), five[i], 0, "quantile of five");
        expect_close(mica_quantile(values, 4, q[i], scratch), four[i], 0, "quantile of four");
    }
    assert_true(mica_quantile(values, 1, 0.3, scratch) == 3.1);
    assert_true(isnan(mica_quantile(values, 0, 0.5, scratch)));
    assert_true(values[0] == 3.1 && values[4] == 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixtures),  cmocka_unit_test(test_hand_computed),         cmocka_unit_test(test_var_is_one),
        cmocka_unit_test(test_noise_var), cmocka_unit_test(test_noise_var_by_simulation), cmocka_unit_test(test_quantiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
