/* Judges numerics/elementwise*.c against float64, under each instruction set, which must all give the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/cpu.h"
#include "numerics/elementwise.h"

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static float random_float(float limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return ((float)(random_state >> 40) * 0x1p-23f - 1) * limit;
}

enum { MOST = 1000 };
static const uint64_t counts[] = {1, 2, 15, 16, 17, 64, 576, 999, MOST};
enum { COUNTS = sizeof counts / sizeof *counts };

typedef struct case_data {
    float x[2 * MOST], y[2 * MOST], angles[MOST], cosines[MOST], sines[MOST], out[2 * MOST];
    double expected[2 * MOST];
} case_data;

typedef void operation(case_data *data, uint64_t count, int check);

/* Absolute or relative error, whichever is larger, in units of 2^-24. */
static void expect_near(const case_data *data, uint64_t count, double units, double floor, const char *what) {
    for (uint64_t i = 0; i < count; i++) {
        double error = fabs((double)data->out[i] - data->expected[i]), limit = units * 0x1p-24 * fabs(data->expected[i]) + floor;
        if (!(error <= limit))
            fail_msg("%s of %llu under %s: [%llu] expected %.9g, got %.9g", what, (unsigned long long)count,
                     mica_cpu_name(mica_cpu_current()), (unsigned long long)i, data->expected[i], (double)data->out[i]);
    }
}

/* Every operation: the expected values, the call, and the error allowed: roundings counted (exp: 4 units, a division or product 1 each). */
static void rms_norm(case_data *d, uint64_t n, int check) {
    double sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += (double)d->x[i] * (double)d->x[i];
    for (uint64_t i = 0; i < n; i++)
        d->expected[i] = (double)d->x[i] / sqrt(sum / (double)n + (double)1e-6f) * (double)d->y[i];
    mica_rms_norm(d->x, d->y, n, 1e-6f, d->out);
    if (check)
        expect_near(d, n, 4, 0, "rms_norm");
}

static void rms_norm_plain(case_data *d, uint64_t n, int check) {
    for (uint64_t i = 0; i < n; i++)
        d->y[i] = 1;
    rms_norm(d, n, check);
    mica_rms_norm(d->x, NULL, n, 1e-6f, d->out);
    if (check)
        expect_near(d, n, 4, 0, "rms_norm without weight");
}

static void silu_multiply(case_data *d, uint64_t n, int check) {
    for (uint64_t i = 0; i < n; i++)
        d->expected[i] = (double)d->x[i] / (1 + exp(-(double)d->x[i])) * (double)d->y[i];
    mica_silu_multiply(d->x, d->y, n, d->out);
    if (check)
        expect_near(d, n, 10, 1e-30, "silu_multiply");
}

static void sigmoid(case_data *d, uint64_t n, int check) {
    for (uint64_t i = 0; i < n; i++)
        d->expected[i] = 1 / (1 + exp(-(double)d->x[i]));
    mica_sigmoid(d->x, n, d->out);
    if (check)
        expect_near(d, n, 8, 1e-36, "sigmoid");
}

static void softmax(case_data *d, uint64_t n, int check) {
    double max = -INFINITY, sum = 0;
    for (uint64_t i = 0; i < n; i++)
        max = fmax(max, (double)d->x[i]);
    for (uint64_t i = 0; i < n; i++)
        sum += exp((double)d->x[i] - max);
    for (uint64_t i = 0; i < n; i++)
        d->expected[i] = exp((double)d->x[i] - max) / sum;
    mica_softmax(d->x, n, d->out);
    if (check) /* x - max is rounded: half a unit of up to 200 in the exponent */
        expect_near(d, n, 8 + 128, 1e-36, "softmax");
}

static void add(case_data *d, uint64_t n, int check) {
    for (uint64_t i = 0; i < n; i++)
        d->expected[i] = (double)d->x[i] + (double)d->y[i];
    mica_add(d->x, d->y, n, d->out);
    if (check)
        expect_near(d, n, 1, 0, "add");
}

static void add_scaled(case_data *d, uint64_t n, int check) {
    memcpy(d->out, d->y, n * sizeof *d->out);
    for (uint64_t i = 0; i < n; i++)
        d->expected[i] = (double)d->y[i] + 0.3125 * (double)d->x[i];
    mica_add_scaled(0.3125f, d->x, n, d->out);
    if (check) /* the product's rounding does not cancel with the sum */
        expect_near(d, n, 1, 0x1p-24 * 100, "add_scaled");
}

static void set_angles(case_data *d, uint64_t pairs) {
    for (uint64_t i = 0; i < pairs; i++) {
        d->cosines[i] = cosf(d->angles[i]);
        d->sines[i] = sinf(d->angles[i]);
    }
}

static void rope_pairs(case_data *d, uint64_t pairs, int check, int half_split) {
    set_angles(d, pairs);
    for (uint64_t i = 0; i < pairs; i++) {
        uint64_t a = half_split ? i : 2 * i, b = half_split ? i + pairs : 2 * i + 1;
        d->expected[a] = (double)d->x[a] * (double)d->cosines[i] - (double)d->x[b] * (double)d->sines[i];
        d->expected[b] = (double)d->x[b] * (double)d->cosines[i] + (double)d->x[a] * (double)d->sines[i];
    }
    memcpy(d->out, d->x, 2 * pairs * sizeof *d->out);
    (half_split ? mica_rope_half_split : mica_rope_interleaved)(d->out, d->cosines, d->sines, pairs);
    if (check) /* two products of up to 100, rounded before they cancel */
        expect_near(d, 2 * pairs, 1, 2 * 0x1p-24 * 100, half_split ? "rope_half_split" : "rope_interleaved");
}

static void rope_interleaved(case_data *d, uint64_t pairs, int check) {
    rope_pairs(d, pairs, check, 0);
}

static void rope_half_split(case_data *d, uint64_t pairs, int check) {
    rope_pairs(d, pairs, check, 1);
}

static void bf16(case_data *d, uint64_t n, int check) {
    uint16_t codes[MOST];
    for (uint64_t i = 0; i < n; i++)
        d->expected[i] = (double)d->x[i];
    mica_bf16_of_float(d->x, n, codes);
    mica_float_of_bf16(codes, n, d->out);
    if (check)
        expect_near(d, n, 0x1p16, 0, "bf16"); /* half a unit of 8 bits: 2^-8 */
}

static operation *const operations[] = {rms_norm, rms_norm_plain, silu_multiply,    sigmoid,         softmax,
                                        add,      add_scaled,     rope_interleaved, rope_half_split, bf16};

static void test_operations(void **state) {
    (void)state;
    static case_data data, first;
    for (size_t o = 0; o < sizeof operations / sizeof *operations; o++) {
        for (int c = 0; c < COUNTS; c++) {
            for (uint64_t i = 0; i < 2 * MOST; i++) {
                data.x[i] = random_float(100);
                data.y[i] = random_float(100);
            }
            for (uint64_t i = 0; i < MOST; i++)
                data.angles[i] = random_float(10);
            for (mica_cpu cpu = 0; cpu <= mica_cpu_detected(); cpu++) {
                memset(data.out, 0x55, sizeof data.out);
                mica_cpu_select(cpu);
                operations[o](&data, counts[c], 1);
                if (cpu == 0)
                    first = data;
                assert_memory_equal(first.out, data.out, sizeof data.out); /* also beyond the end */
            }
        }
    }
}

/* The whole range of the exponential, by way of the sigmoid; and what is not finite. */
static void test_extremes(void **state) {
    (void)state;
    static const float x[] = {-INFINITY, -1000,  -104,  -88.8f, -88.7f, -87.4f,   -86.6f, -86.4f, 0,
                              -0.0f,     1e-30f, 88.6f, 88.8f,  1000,   INFINITY, NAN,    1};
    enum { COUNT = sizeof x / sizeof *x };
    float out[COUNT], ones[COUNT];
    for (int i = 0; i < COUNT; i++)
        ones[i] = 1;
    for (mica_cpu cpu = 0; cpu <= mica_cpu_detected(); cpu++) {
        mica_cpu_select(cpu);
        mica_sigmoid(x, COUNT, out);
        for (int i = 0; i < COUNT; i++) {
            double expected = 1 / (1 + exp(-(double)x[i]));
            assert_true(isnan(x[i]) ? isnan(out[i]) : fabs((double)out[i] - expected) <= 8 * 0x1p-24 * expected + 4e-38);
        }
        mica_silu_multiply(x, ones, COUNT, out);
        for (int i = 1; i < COUNT; i++) { /* -infinity * 0 is NaN there too */
            double expected = (double)x[i] / (1 + exp(-(double)x[i]));
            assert_true(isnan(x[i]) ? isnan(out[i]) : !(fabs((double)out[i] - expected) > 10 * 0x1p-24 * fabs(expected) + 4e-36));
        }
        const float masked[4] = {1, -INFINITY, 1, -INFINITY}, none[2] = {-INFINITY, -INFINITY}, odd[3] = {1, NAN, 2};
        mica_softmax(masked, 4, out);
        assert_true(out[0] == 0.5f && out[1] == 0 && out[2] == 0.5f && out[3] == 0);
        mica_softmax(none, 2, out);
        assert_true(isnan(out[0]) && isnan(out[1]));
        mica_softmax(odd, 3, out);
        assert_true(isnan(out[0]) && isnan(out[1]) && isnan(out[2]));
    }
}

/* bf16: ties to even, overflow to infinity, NaN with its payload in the low bits. */
static void test_bf16_rounding(void **state) {
    (void)state;
    static const uint32_t in[] = {0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001, 0x7f7fffff,
                                  0x7f800000, 0x7f800001, 0xffffffff, 0x00008000, 0x80018000};
    static const uint16_t expected[] = {0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0x7f80, 0x7fc0, 0xffff, 0x0000, 0x8002};
    float x[10];
    memcpy(x, in, sizeof x);
    for (mica_cpu cpu = 0; cpu <= mica_cpu_detected(); cpu++) {
        uint16_t out[10];
        mica_cpu_select(cpu);
        mica_bf16_of_float(x, 10, out);
        assert_memory_equal(out, expected, sizeof out);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_operations), cmocka_unit_test(test_extremes),
                                       cmocka_unit_test(test_bf16_rounding)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
