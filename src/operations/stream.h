/* operations/stream.h: the loop of the house, once: plan units, read their bytes ahead on I/O threads, work on them on compute threads,
 * commit results in unit order on one thread, tell the caller how far it is.
 *
 * Invariants: 1. commit sees units 0, 1, 2, … in order, each once; 2. at most `threads + ahead` units are in memory; 3. results and order
 * do not depend on the number of threads; 4. the error returned is that of the smallest unit that failed, all units before it are committed
 * and none after it, whatever the timing; after a stop nothing more is committed; either way everything is joined and freed; 5. a unit for
 * which `after` names another one starts only when that one is committed, or, where the job is `eager`, when another thread works on it:
 * then it awaits it where it needs it. Test: tests/operations/test_stream.c. */
#ifndef MICA_OPERATIONS_STREAM_H
#define MICA_OPERATIONS_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"

#define MICA_STREAM_RANGES_MAX 16
#define MICA_STREAM_NONE UINT64_MAX

typedef struct mica_stream_range { /* bytes a unit needs */
    const mica_file *file;
    uint64_t offset, bytes;
    const char *what; /* tensor name, for messages */
} mica_stream_range;

typedef struct mica_stream_progress { /* as the caller of a long verb sees it */
    uint64_t units_done, units_total; /* including those done before a resume */
    uint64_t bytes_read;
    double seconds, seconds_left; /* seconds_left < 0: not known yet */
} mica_stream_progress;

typedef struct mica_stream mica_stream;

typedef struct mica_stream_job {
    void *context;
    mica_stream **eager; /* NULL: not eager. Where the stream puts itself before any work, for mica_stream_await. */
    uint64_t first_unit, unit_count; /* units first_unit … unit_count - 1 are done now */
    uint32_t threads;                /* compute threads, at least 1 */
    uint32_t readers;                /* I/O threads, at least 1 */
    uint32_t ahead;                  /* units read or being read beyond those being worked on, at least 1 */
    uint64_t unit_bytes_max;         /* largest sum of a unit's windows (mica_file_window_bytes of each range) */
    uint64_t result_bytes;           /* of one result */

    /* Fills at most MICA_STREAM_RANGES_MAX ranges, returns how many (0: the unit reads nothing). Any thread. */
    uint32_t (*plan)(void *context, uint64_t unit, mica_stream_range *ranges);
    /* The unit that must be committed before this one starts, or MICA_STREAM_NONE; smaller than `unit`. On the calling
     * thread. NULL: none ever. */
    uint64_t (*after)(void *context, uint64_t unit);
    /* What is quicker done for two units at once, before their work; NULL: nothing. On a compute thread, for the unit that it will work on
     * and, if another one is read already, that one too: count 1 or 2. Work finds in its result what the last call left, which succeeded;
     * where a call for two fails, each is tried again. Must not wait for another unit. */
    mica_status (*prepare)(void *context, uint32_t count, const uint64_t units[2], const uint8_t *const *const data[2],
                           void *const results[2], mica_error *error);
    /* On compute thread `thread` (below `threads`); data[i] = the bytes of range i, at any alignment; fills `result` (result_bytes,
     * contents undefined before, or what `prepare` left). */
    mica_status (*work)(void *context, uint32_t thread, uint64_t unit, const uint8_t *const *data, void *result, mica_error *error);
    /* In order, on the calling thread. */
    mica_status (*commit)(void *context, uint64_t unit, const void *result, mica_error *error);
    /* May be NULL. On the calling thread, after commits and at least every 0.2 s; false: stop (MICA_INTERRUPTED). */
    bool (*progress)(void *context, const mica_stream_progress *progress);
} mica_stream_job;

typedef struct mica_stream_stats { /* filled on failure too */
    uint64_t units, bytes_read;   /* committed; sum of the ranges that were read */
    double seconds, work_seconds; /* wall; sum over compute threads */
    double starved_seconds;       /* sum over compute threads of waiting for input that was not there: what reading did not hide */
} mica_stream_stats;

/* In the work of an eager job: waits until `after` of the unit is committed, and what commit wrote is seen. False: it never will be, as
 * something failed or the stream stops; the work then ends with a status of its own, of which nobody is told. The time that it waits is
 * no work_seconds; *waited_seconds tells it. */
bool mica_stream_await(mica_stream *stream, uint64_t after, double *waited_seconds);

/* In the work of an eager job: the compute threads for which no unit is left. */
uint32_t mica_stream_idle(mica_stream *stream);

/* `stats` may be NULL. Errors: those of work and commit, reading's (IO, with the range's `what`), INTERRUPTED, NO_MEMORY, FAILED. */
mica_status mica_stream_run(const mica_stream_job *job, mica_stream_stats *stats, mica_error *error) MICA_CHECKED;

#endif
