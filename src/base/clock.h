/* base/clock.h: time that only goes forward. */
#ifndef MICA_BASE_CLOCK_H
#define MICA_BASE_CLOCK_H

double mica_thread_seconds_now(void); /* of processor that this thread had: what others take away does not count */
double mica_seconds_now(void); /* monotonic; of use only in differences */

#endif
