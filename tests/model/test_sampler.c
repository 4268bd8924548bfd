/* test_sampler.c: greedy takes the first of the largest; the tail is cut as said; draws follow the probabilities and depend on the seed
 * alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "model/sampler.h"

#define COUNT 6
static const float logits[COUNT] = {0.5f, 2.0f, -1.0f, 2.0f, 1.0f, -60.0f};

static void draw(const mica_sampler_options *options, uint64_t draws, double share[COUNT]) {
    mica_sampler sampler;
    assert_int_equal(mica_sampler_init(&sampler, COUNT, NULL), MICA_OK);
    mica_sampler_set(&sampler, options);
    memset(share, 0, COUNT * sizeof *share);
    for (uint64_t i = 0; i < draws; i++)
        share[mica_sampler_next(&sampler, logits)] += 1.0 / (double)draws;
    mica_sampler_release(&sampler);
}

static void test_greedy(void **state) {
    (void)state;
    double share[COUNT];
    draw(&(mica_sampler_options){0}, 10, share);
    assert_true(fabs(share[1] - 1) < 1e-9);
    draw(&(mica_sampler_options){.temperature = NAN}, 10, share);
    assert_true(fabs(share[1] - 1) < 1e-9);
    draw(&(mica_sampler_options){.temperature = 1, .top_k = 1, .seed = 5}, 50, share);
    assert_true(fabs(share[1] - 1) < 1e-9); /* of equals the lower id */
}

static void test_probabilities(void **state) {
    (void)state;
    double share[COUNT], sum = 0;
    const double temperature = 0.7;
    draw(&(mica_sampler_options){.temperature = temperature, .seed = 1}, 200000, share);
    for (int i = 0; i < COUNT; i++)
        sum += exp((double)logits[i] / temperature);
    for (int i = 0; i < COUNT; i++)
        assert_true(fabs(share[i] - exp((double)logits[i] / temperature) / sum) < 0.005); /* 4 standard errors */
    draw(&(mica_sampler_options){.temperature = 10, .seed = 1}, 100000, share);
    assert_true(share[5] > 0.0002 && share[5] < 0.0008); /* e^-6.2 of the likeliest's: what is negligible grows with the temperature */
}

static void test_tail(void **state) {
    (void)state;
    double share[COUNT];
    draw(&(mica_sampler_options){.temperature = 1, .top_k = 3, .seed = 2}, 5000, share);
    assert_true(share[1] > 0.3 && share[3] > 0.3 && share[4] > 0.1 && share[0] <= 0 && share[2] <= 0);
    draw(&(mica_sampler_options){.temperature = 1, .min_p = 0.3, .seed = 2}, 5000, share); /* e^-1 stays, e^-1.5 goes */
    assert_true(share[4] > 0.1 && share[0] <= 0);
    draw(&(mica_sampler_options){.temperature = 1, .top_p = 0.5, .seed = 2}, 5000, share); /* the two largest have 0.38 each */
    assert_true(share[1] > 0.4 && share[3] > 0.4 && share[4] <= 0);
    draw(&(mica_sampler_options){.temperature = 1, .top_p = 0.3, .seed = 2}, 100, share);
    assert_true(fabs(share[1] - 1) < 1e-9);
    /* at the borders: one less than there are; half of two equal ones is one of them; all that are as likely as the likeliest */
    draw(&(mica_sampler_options){.temperature = 1, .top_k = 4, .seed = 2}, 5000, share);
    assert_true(share[0] > 0.05 && share[2] <= 0);
    draw(&(mica_sampler_options){.temperature = 1, .top_k = 2, .top_p = 0.5, .seed = 2}, 100, share);
    assert_true(fabs(share[1] - 1) < 1e-9);
    draw(&(mica_sampler_options){.temperature = 1, .min_p = 1, .seed = 2}, 5000, share);
    assert_true(share[1] > 0.4 && share[3] > 0.4 && share[4] <= 0);
}

static void test_seed(void **state) {
    (void)state;
    static const uint32_t expected[8] = {3, 1, 4, 0, 2, 4, 1, 1}; /* by xoshiro256** and splitmix64 written in Python */
    mica_sampler sampler;
    uint32_t drawn[3][64];
    assert_int_equal(mica_sampler_init(&sampler, COUNT, NULL), MICA_OK);
    for (int i = 0; i < 3; i++) {
        mica_sampler_set(&sampler, &(mica_sampler_options){.temperature = 1, .seed = i == 2 ? 8 : 7});
        for (int j = 0; j < 64; j++)
            drawn[i][j] = mica_sampler_next(&sampler, logits);
    }
    assert_memory_equal(drawn[0], drawn[1], sizeof drawn[0]);
    assert_memory_not_equal(drawn[0], drawn[2], sizeof drawn[0]);
    assert_memory_equal(drawn[0], expected, sizeof expected);
    mica_sampler_release(&sampler);
    mica_memory_fail_after(1);
    assert_int_equal(mica_sampler_init(&sampler, COUNT, NULL), MICA_NO_MEMORY);
    mica_memory_fail_after(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_greedy), cmocka_unit_test(test_probabilities), cmocka_unit_test(test_tail),
                                       cmocka_unit_test(test_seed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
