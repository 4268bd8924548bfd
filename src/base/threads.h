/* base/threads.h: the few thread primitives of the house, over pthreads. */
#ifndef MICA_BASE_THREADS_H
#define MICA_BASE_THREADS_H

#include <pthread.h>
#include <stdint.h>

#include "base/error.h"

/* Processors this process may use (sched_getaffinity), at least 1. */
uint32_t mica_thread_count_default(void);

/* Starts `count` threads running body(context, index); on failure those already started are joined only after
 * `cancel(context)` (may be NULL) told them to leave. mica_threads_join waits for all and frees. */
typedef struct mica_threads mica_threads;
mica_status mica_threads_start(uint32_t count, void (*body)(void *context, uint32_t index), void (*cancel)(void *context), void *context,
                               mica_threads **threads, mica_error *error) MICA_CHECKED;
void mica_threads_join(mica_threads *threads); /* NULL is fine */

/* For threads that only begin reads and wait for them: the calling one is run soon after it wakes, before those that compute, as far as the
 * system lets it (a shorter slice on Linux, one step more of a real-time priority); otherwise nothing. What it does must be short. */
void mica_thread_be_prompt(void);

#endif
