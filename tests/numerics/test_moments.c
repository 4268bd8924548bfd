/* Moments and differences against the same sums written out in long double, and against what is known of simple arrays. */
#include "numerics/moments.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static float random_value(void) {
    return (float)((double)rand() / RAND_MAX - 0.5) * (float)(1 << rand() % 8);
}

static void assert_close(double got, long double expected, double tolerance) {
    if (!(fabsl((long double)got - expected) <= (long double)tolerance * (1 + fabsl(expected))))
        fail_msg("expected %.17Lg, got %.17g", expected, got);
}

static void check(const float *a, const float *b, uint64_t count, uint64_t cut) {
    mica_moments moments = {0};
    mica_difference difference = {0}, second = {0};
    mica_moments_add(&moments, a, cut);
    mica_moments_add(&moments, a + cut, count - cut);
    mica_difference_add(&difference, a, b, cut);
    mica_difference_add(&second, a + cut, b + cut, count - cut);
    mica_difference_merge(&difference, &second);
    long double sum = 0, squares = 0, a2 = 0, b2 = 0, ab = 0, d2 = 0, absolute = 0, relative = 0, minimum = INFINITY, maximum = -INFINITY;
    uint64_t differing = 0, zeros = 0;
    for (uint64_t i = 0; i < count; i++) {
        const long double x = (long double)a[i], y = (long double)b[i], apart = fabsl(x - y), size = fmaxl(fabsl(x), fabsl(y));
        sum += x;
        a2 += x * x;
        b2 += y * y;
        ab += x * y;
        d2 += apart * apart;
        absolute = fmaxl(absolute, apart);
        relative = fmaxl(relative, size > 0 ? apart / size : 0);
        minimum = fminl(minimum, x);
        maximum = fmaxl(maximum, x);
        differing += a[i] != b[i];
        zeros += a[i] == 0;
    }
    for (uint64_t i = 0; i < count; i++)
        squares += ((long double)a[i] - sum / count) * ((long double)a[i] - sum / count);
    assert_int_equal(moments.count, count);
    assert_int_equal(moments.zeros, zeros);
    assert_int_equal(moments.not_finite, 0);
    assert_close(moments.minimum, minimum, 0);
    assert_close(moments.maximum, maximum, 0);
    assert_close(moments.mean, sum / count, 1e-14);
    assert_close(mica_moments_deviation(&moments), sqrtl(squares / count), 1e-13);
    assert_int_equal(difference.count, count);
    assert_int_equal(difference.differing, differing);
    assert_close(difference.absolute, absolute, 1e-16);
    assert_close(difference.relative, relative, 1e-15);
    assert_close(mica_difference_share(&difference), sqrtl(d2) / sqrtl(a2), 1e-13);
    assert_close(mica_difference_cosine(&difference), ab / (sqrtl(a2) * sqrtl(b2)), 1e-13);
}

static void test_against_long_double(void **state) {
    (void)state;
    enum { COUNT = 5000 };
    float *a = malloc(COUNT * sizeof *a), *b = malloc(COUNT * sizeof *b);
    srand(7);
    for (uint64_t count = 1; count <= COUNT; count = count < 40 ? count + 1 : count * 5 / 2) {
        for (uint64_t i = 0; i < count; i++) {
            a[i] = i % 17 == 3 ? 0 : random_value();
            b[i] = i % 3 == 0 ? a[i] : i % 17 == 3 ? 0.25f : a[i] * 1.01f;
        }
        a[0] = 1.5f; /* neither is all zero */
        check(a, b, count, count / 3);
        check(a, b, count, count);
    }
    free(a);
    free(b);
}

/* A mean far from zero does not drown the deviation. */
static void test_far_from_zero(void **state) {
    (void)state;
    static float values[4096];
    for (int i = 0; i < 4096; i++)
        values[i] = 65536.0f + (float)(i % 2) / 128;
    mica_moments moments = {0};
    for (int i = 0; i < 4096; i += 512)
        mica_moments_add(&moments, values + i, 512);
    assert_close(mica_moments_deviation(&moments), 1.0L / 256, 1e-12);
}

static void test_what_is_not_finite(void **state) {
    (void)state;
    const float a[] = {1, NAN, INFINITY, 2, NAN, -INFINITY, 3, 4, 5, INFINITY}, b[] = {1, NAN, INFINITY, 3, 5, INFINITY, 3, 4, NAN, 1};
    mica_moments moments = {0};
    mica_difference difference = {0};
    mica_moments_add(&moments, a, 10);
    mica_difference_add(&difference, a, b, 10);
    assert_int_equal(moments.count, 5);
    assert_int_equal(moments.not_finite, 5);
    assert_close(moments.maximum, 5, 0);
    assert_close(moments.mean, 3, 1e-15);
    assert_int_equal(difference.count, 4);
    assert_int_equal(difference.differing, 1);
    assert_int_equal(difference.not_finite, 4); /* NaN against 5, -inf against inf, 5 against NaN, inf against 1 */
}

static void test_nothing(void **state) {
    (void)state;
    const float zeros[9] = {0};
    mica_moments moments = {0};
    mica_difference difference = {0};
    mica_moments_add(&moments, zeros, 0);
    mica_difference_add(&difference, zeros, zeros, 0);
    assert_true(mica_moments_deviation(&moments) == 0);
    assert_true(isnan(mica_difference_share(&difference)));
    mica_difference_add(&difference, zeros, zeros, 9);
    assert_true(isnan(mica_difference_cosine(&difference)));
    assert_true(difference.absolute == 0 && difference.relative == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_long_double), cmocka_unit_test(test_far_from_zero),
        cmocka_unit_test(test_what_is_not_finite),  cmocka_unit_test(test_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
