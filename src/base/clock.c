/* base/clock.c: the monotonic clock. Judged by tests/base/test_clock.c. */
#include "base/clock.h"

#include <time.h>

double mica_seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
