/* The clock goes forward, in seconds. */
#include "base/clock.h"

#include <time.h>

#include "base/scratch.h"

static void it_goes_forward_in_seconds(void **state) {
    (void)state;
    double begin = mica_seconds_now(), last = begin;
    for (int i = 0; i < 1000; i++) {
        double now = mica_seconds_now();
        assert_true(now >= last);
        last = now;
    }
    const struct timespec pause = {0, 20000000};
    begin = mica_seconds_now();
    nanosleep(&pause, NULL);
    double slept = mica_seconds_now() - begin;
    assert_true(slept >= 0.02 && slept < 20);
}

/* A thread that sleeps has no processor; one that works has. */
static void a_thread_s_own_time_is_its_work(void **state) {
    (void)state;
    const struct timespec pause = {0, 200000000};
    double begin = mica_thread_seconds_now();
    nanosleep(&pause, NULL);
    assert_true(mica_thread_seconds_now() - begin < 0.1);
    begin = mica_thread_seconds_now();
    for (double wall = mica_seconds_now(); mica_thread_seconds_now() - begin < 0.01;)
        assert_true(mica_seconds_now() - wall < 60);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_goes_forward_in_seconds), cmocka_unit_test(a_thread_s_own_time_is_its_work)};
    return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
