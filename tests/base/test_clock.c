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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(it_goes_forward_in_seconds)};
    return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
