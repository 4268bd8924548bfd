/* base/clock.c: the monotonic clock and the thread's own. Judged by tests/base/test_clock.c. */
#include "base/clock.h"

#include <time.h>

static double read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double mica_seconds_now(void) {
    return read_clock(CLOCK_MONOTONIC);
}

double mica_thread_seconds_now(void) {
    return read_clock(CLOCK_THREAD_CPUTIME_ID);
}
