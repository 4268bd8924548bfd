/* operations/stream.c: the one streaming loop: a ring of slots, each holding one unit from before its reading until its commit. Unit u
 * lives in slot u % slot_count, so that u can be claimed only when u - slot_count is committed: that alone bounds memory.
 * Invariants: 1. every field of `mica_stream` and every slot's state is touched under the mutex only; 2. a slot's buffers belong to whoever
 * moved it to READING, PREPARING, WORKING or (in order) DONE; 3. a failure is an outcome of its unit, met by commit in unit order: timing
 * cannot choose which error is told. Judged by tests/operations/test_stream.c. */
#include "operations/stream.h"

#include <inttypes.h>
#include <pthread.h>
#include <stddef.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/threads.h"

#define TELL_SECONDS 0.2
#define MERGE_GAP_BYTES ((uint64_t)64 << 10) /* one longer read is cheaper than a second one across a gap this small */

/* PREPARING: read, and being prepared beside another unit; READY again after it. */
typedef enum slot_state { SLOT_FREE, SLOT_READING, SLOT_READY, SLOT_PREPARING, SLOT_WORKING, SLOT_DONE } slot_state;

typedef struct stream_slot {
    uint64_t unit, after;
    slot_state state;
    bool prepared;
    mica_status status; /* of reading and work */
    mica_error error;
    uint8_t *buffer; /* capacity bytes, aligned for direct reading */
    void *result;
    const uint8_t *data[MICA_STREAM_RANGES_MAX]; /* into buffer */
} stream_slot;

struct mica_stream {
    const mica_stream_job *job;
    uint64_t capacity; /* of a slot's buffer */
    stream_slot *slots;
    uint64_t slot_count;
    uint32_t workers; /* threads below this index compute, those from it on read */

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* whatever changed: threads are few and units are long */
    uint64_t next_read;     /* first unit not claimed for reading */
    uint64_t taken;         /* units given to compute threads, or failed before */
    uint64_t committed;     /* first unit not committed */
    uint64_t failed;        /* smallest unit known to have failed; nothing beyond it is begun */
    bool stopping;
    uint32_t waiting; /* compute threads without work */
    uint32_t left;    /* compute threads for which no unit is left */
    double started, accounted;
    mica_stream_stats stats;
};

/* ---- reading one unit */

/* Sorts the ranges that have bytes by file and offset; returns how many. */
static uint32_t order_ranges(const mica_stream_range *ranges, uint32_t count, uint32_t order[MICA_STREAM_RANGES_MAX]) {
    uint32_t ordered = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (ranges[i].bytes == 0)
            continue;
        uint32_t at = ordered++;
        for (; at > 0; at--) {
            const mica_stream_range *before = &ranges[order[at - 1]];
            uintptr_t before_file = (uintptr_t)before->file, file = (uintptr_t)ranges[i].file;
            if (before_file < file || (before_file == file && before->offset <= ranges[i].offset))
                break;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
    return ordered;
}

/* True, and *bytes the length from group's start to the end of both, where one read may serve both. */
static bool can_merge(const mica_stream_range *group, const mica_stream_range *range, uint64_t *bytes) {
    uint64_t group_end, range_end;
    if (group->file != range->file || !mica_add_u64(group->offset, group->bytes, &group_end) ||
        !mica_add_u64(range->offset, range->bytes, &range_end)) {
        return false;
    }
    if (range->offset > group_end && range->offset - group_end > MERGE_GAP_BYTES)
        return false;
    *bytes = (range_end > group_end ? range_end : group_end) - group->offset;
    return true;
}

/* Reads the ordered ranges into the slot, neighbours at once where `merge` says so and their common window still fits. `total` is the
 * sum of the single windows, at most the capacity. */
static mica_status read_ranges(const mica_stream *stream, stream_slot *slot, const mica_stream_range *ranges, const uint32_t *order,
                               uint32_t ordered, uint64_t total, bool merge, mica_error *error) {
    uint64_t used = 0;
    for (uint32_t first = 0, last; first < ordered; first = last) {
        mica_stream_range group = ranges[order[first]];
        for (last = first + 1; merge && last < ordered; last++) {
            const mica_stream_range *next = &ranges[order[last]];
            uint64_t bytes;
            if (!can_merge(&group, next, &bytes))
                break;
            uint64_t apart = mica_file_window_bytes(group.bytes) + mica_file_window_bytes(next->bytes);
            uint64_t together = mica_file_window_bytes(bytes);
            if (together > stream->capacity || total - apart + together > stream->capacity)
                break;
            total = total - apart + together;
            group.bytes = bytes;
        }
        const uint8_t *data = NULL;
        mica_status status = mica_file_read_window(group.file, group.offset, group.bytes, slot->buffer + used, &data, error);
        if (status != MICA_OK)
            return mica_fail_context(error, status, "%s", group.what ? group.what : "data");
        for (uint32_t i = first; i < last; i++)
            slot->data[order[i]] = data + (ranges[order[i]].offset - group.offset);
        used += mica_file_window_bytes(group.bytes);
    }
    return MICA_OK;
}

static mica_status read_unit(const mica_stream *stream, stream_slot *slot, uint64_t *bytes, mica_error *error) {
    const mica_stream_job *job = stream->job;
    mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
    uint32_t order[MICA_STREAM_RANGES_MAX];
    uint32_t count = job->plan(job->context, slot->unit, ranges);
    if (count > MICA_STREAM_RANGES_MAX || (slot->after != MICA_STREAM_NONE && slot->after >= slot->unit))
        return mica_fail(error, MICA_FAILED, "unit %" PRIu64 ": %" PRIu32 " ranges after unit %" PRIu64, slot->unit, count, slot->after);
    uint64_t total = 0, wanted = 0;
    for (uint32_t i = 0; i < count; i++) {
        slot->data[i] = slot->buffer; /* stays so for a range without bytes */
        if (ranges[i].bytes == 0)
            continue;
        if (ranges[i].bytes > job->unit_bytes_max || (total += mica_file_window_bytes(ranges[i].bytes)) > job->unit_bytes_max) {
            return mica_fail(error, MICA_FAILED, "unit %" PRIu64 ": the window of %s does not fit, a unit has at most %" PRIu64 " bytes",
                             slot->unit, ranges[i].what ? ranges[i].what : "data", job->unit_bytes_max);
        }
        wanted += ranges[i].bytes;
    }
    uint32_t ordered = order_ranges(ranges, count, order);
    mica_status status = read_ranges(stream, slot, ranges, order, ordered, total, true, error);
    if (status != MICA_OK) { /* one by one, so that the message names the range that cannot be read, and only its own bytes can fail it */
        status = read_ranges(stream, slot, ranges, order, ordered, total, false, error);
    }
    *bytes = status == MICA_OK ? wanted : 0;
    return status;
}

/* ---- the ring; all of it under the mutex */

static stream_slot *slot_of(const mica_stream *stream, uint64_t unit) {
    return &stream->slots[unit % stream->slot_count];
}

/* May an eager unit that comes after this one begin: is it, and all that is committed before it, in the hands of threads? (Else the thread
 * that waits for its commit could be the one that should do them.) */
static bool is_under_way(const mica_stream *stream, uint64_t unit) {
    for (uint64_t i = stream->committed; i <= unit; i++) {
        const stream_slot *slot = slot_of(stream, i);
        if (slot->unit != i || slot->status != MICA_OK || (slot->state != SLOT_WORKING && slot->state != SLOT_DONE))
            return false;
    }
    return true;
}

/* May compute threads begin it, once it is read? */
static bool is_startable(const mica_stream *stream, const stream_slot *slot) {
    return slot->unit < stream->job->unit_count && slot->unit <= stream->failed &&
           (slot->after == MICA_STREAM_NONE || slot->after < stream->committed ||
            (stream->job->eager && is_under_way(stream, slot->after)));
}

/* Charges the time since the last change to starvation: to as many of the idle compute threads as there were units that lacked only
 * reading. */
static void account(mica_stream *stream) {
    double now = mica_seconds_now();
    uint32_t missing = 0;
    for (uint64_t i = 0; stream->waiting > 0 && i < stream->slot_count; i++) {
        const stream_slot *slot = &stream->slots[i];
        if ((slot->state == SLOT_FREE || slot->state == SLOT_READING) && is_startable(stream, slot))
            missing++;
    }
    stream->stats.starved_seconds += (now - stream->accounted) * (missing < stream->waiting ? missing : stream->waiting);
    stream->accounted = now;
}

static void set_state(mica_stream *stream, stream_slot *slot, slot_state state) {
    account(stream);
    slot->state = state;
    pthread_cond_broadcast(&stream->changed);
}

/* Gives a slot its next unit. On the calling thread. */
static void assign(mica_stream *stream, stream_slot *slot, uint64_t unit) {
    const mica_stream_job *job = stream->job;
    slot->unit = unit;
    slot->after = job->after && unit < job->unit_count ? job->after(job->context, unit) : MICA_STREAM_NONE;
    slot->status = MICA_OK;
    slot->error.message[0] = '\0';
    slot->state = SLOT_FREE;
    slot->prepared = false;
}

/* The outcome of reading or of work. */
static void finish(mica_stream *stream, stream_slot *slot, mica_status status, slot_state next) {
    slot->status = status;
    if (status != MICA_OK && slot->unit < stream->failed)
        stream->failed = slot->unit;
    set_state(stream, slot, status == MICA_OK ? next : SLOT_DONE);
}

static void stop(void *context) {
    mica_stream *stream = context;
    pthread_mutex_lock(&stream->mutex);
    account(stream);
    stream->stopping = true;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->mutex);
}

/* ---- threads */

/* The next unit in order, waiting for its slot; NULL when there is nothing more to read. */
static stream_slot *claim_reading(mica_stream *stream) {
    while (!stream->stopping && stream->next_read < stream->job->unit_count) {
        stream_slot *slot = slot_of(stream, stream->next_read);
        if (slot->unit == stream->next_read && slot->unit <= stream->failed) {
            stream->next_read++;
            set_state(stream, slot, SLOT_READING);
            return slot;
        }
        pthread_cond_wait(&stream->changed, &stream->mutex);
    }
    return NULL;
}

static void read_units(mica_stream *stream) {
    pthread_mutex_lock(&stream->mutex);
    for (stream_slot *slot; (slot = claim_reading(stream)) != NULL;) {
        pthread_mutex_unlock(&stream->mutex);
        uint64_t bytes = 0;
        mica_status status = read_unit(stream, slot, &bytes, &slot->error);
        pthread_mutex_lock(&stream->mutex);
        stream->stats.bytes_read += bytes;
        if (status != MICA_OK)
            stream->taken++; /* no compute thread will see it */
        finish(stream, slot, status, SLOT_READY);
    }
    pthread_mutex_unlock(&stream->mutex);
}

/* The smallest unit that is read and may start, waiting for one; NULL when all are taken. */
static stream_slot *claim_work(mica_stream *stream) {
    const uint64_t total = stream->job->unit_count - stream->job->first_unit;
    while (!stream->stopping && stream->taken < total) {
        for (uint64_t unit = stream->committed; unit < stream->committed + stream->slot_count; unit++) {
            stream_slot *slot = slot_of(stream, unit);
            if (slot->unit == unit && slot->state == SLOT_READY && is_startable(stream, slot)) {
                stream->taken++;
                set_state(stream, slot, SLOT_WORKING);
                return slot;
            }
        }
        account(stream);
        stream->waiting++;
        pthread_cond_wait(&stream->changed, &stream->mutex);
        account(stream);
        stream->waiting--;
    }
    return NULL;
}

bool mica_stream_await(mica_stream *stream, uint64_t after, double *waited_seconds) {
    const double begun = mica_seconds_now();
    pthread_mutex_lock(&stream->mutex);
    while (stream->committed <= after && stream->failed > after && !stream->stopping)
        pthread_cond_wait(&stream->changed, &stream->mutex);
    const bool committed = stream->committed > after;
    *waited_seconds = mica_seconds_now() - begun;
    stream->stats.work_seconds -= *waited_seconds;
    pthread_mutex_unlock(&stream->mutex);
    return committed;
}

/* A unit to be prepared beside one: the first that is read and is not prepared, whether it may be worked on or not; NULL: none. */
static stream_slot *claim_preparation(mica_stream *stream) {
    for (uint64_t unit = stream->committed; unit < stream->committed + stream->slot_count; unit++) {
        stream_slot *slot = slot_of(stream, unit);
        if (slot->unit == unit && slot->state == SLOT_READY && !slot->prepared && unit <= stream->failed) {
            set_state(stream, slot, SLOT_PREPARING);
            return slot;
        }
    }
    return NULL;
}

/* Prepares the unit in hand, with another one where there is one; when that fails, alone, so that a failure is its own. */
static mica_status prepare(mica_stream *stream, stream_slot *slot) {
    const mica_stream_job *job = stream->job;
    pthread_mutex_lock(&stream->mutex);
    stream_slot *other = claim_preparation(stream);
    pthread_mutex_unlock(&stream->mutex);
    const uint64_t units[2] = {slot->unit, other ? other->unit : 0};
    const uint8_t *const *const data[2] = {slot->data, other ? other->data : NULL};
    void *const results[2] = {slot->result, other ? other->result : NULL};
    mica_status status = job->prepare(job->context, other ? 2 : 1, units, data, results, &slot->error);
    if (!other)
        return status;
    pthread_mutex_lock(&stream->mutex);
    other->prepared = status == MICA_OK;
    set_state(stream, other, SLOT_READY);
    pthread_mutex_unlock(&stream->mutex);
    return status == MICA_OK ? status : job->prepare(job->context, 1, units, data, results, &slot->error);
}

uint32_t mica_stream_idle(mica_stream *stream) {
    pthread_mutex_lock(&stream->mutex);
    const uint32_t left = stream->left;
    pthread_mutex_unlock(&stream->mutex);
    return left;
}

static void work_units(mica_stream *stream, uint32_t thread) {
    const mica_stream_job *job = stream->job;
    pthread_mutex_lock(&stream->mutex);
    for (stream_slot *slot; (slot = claim_work(stream)) != NULL;) {
        pthread_mutex_unlock(&stream->mutex);
        double begun = mica_seconds_now();
        mica_status status = job->prepare && !slot->prepared ? prepare(stream, slot) : MICA_OK;
        if (status == MICA_OK)
            status = job->work(job->context, thread, slot->unit, slot->data, slot->result, &slot->error);
        double seconds = mica_seconds_now() - begun;
        pthread_mutex_lock(&stream->mutex);
        stream->stats.work_seconds += seconds;
        finish(stream, slot, status, SLOT_DONE);
    }
    stream->left++;
    pthread_cond_broadcast(&stream->changed); /* the last unit was taken: the others may leave */
    pthread_mutex_unlock(&stream->mutex);
}

static void thread_body(void *context, uint32_t index) {
    mica_stream *stream = context;
    if (index < stream->workers)
        work_units(stream, index);
    else
        read_units(stream);
}

/* ---- the calling thread */

static mica_status tell(mica_stream *stream, mica_error *error) {
    const mica_stream_job *job = stream->job;
    if (!job->progress)
        return MICA_OK;
    pthread_mutex_lock(&stream->mutex);
    uint64_t done_now = stream->committed - job->first_unit;
    mica_stream_progress progress = {stream->committed, job->unit_count, stream->stats.bytes_read, mica_seconds_now() - stream->started,
                                     -1.0};
    pthread_mutex_unlock(&stream->mutex);
    if (done_now > 0)
        progress.seconds_left = progress.seconds / (double)done_now * (double)(progress.units_total - progress.units_done);
    if (job->progress(job->context, &progress))
        return MICA_OK;
    return mica_fail(error, MICA_INTERRUPTED, "stopped after %" PRIu64 " of %" PRIu64 " units", progress.units_done, progress.units_total);
}

/* Waits until the slot is done, telling the caller meanwhile. */
static mica_status await(mica_stream *stream, const stream_slot *slot, mica_error *error) {
    mica_status status = MICA_OK;
    double next_tell = mica_seconds_now() + TELL_SECONDS;
    pthread_mutex_lock(&stream->mutex);
    while (status == MICA_OK && slot->state != SLOT_DONE) {
        struct timespec until = {(time_t)next_tell, (long)((next_tell - (double)(time_t)next_tell) * 1e9)};
        pthread_cond_timedwait(&stream->changed, &stream->mutex, &until);
        if (slot->state == SLOT_DONE || mica_seconds_now() < next_tell)
            continue;
        pthread_mutex_unlock(&stream->mutex);
        status = tell(stream, error);
        next_tell = mica_seconds_now() + TELL_SECONDS;
        pthread_mutex_lock(&stream->mutex);
    }
    pthread_mutex_unlock(&stream->mutex);
    return status;
}

static mica_status commit_units(mica_stream *stream, mica_error *error) {
    const mica_stream_job *job = stream->job;
    for (uint64_t unit = job->first_unit; unit < job->unit_count; unit++) {
        stream_slot *slot = slot_of(stream, unit);
        mica_status status = await(stream, slot, error);
        if (status != MICA_OK)
            return status;
        if (slot->status != MICA_OK) { /* a work function may have left no sentence */
            slot->error.status = slot->status;
            if (error)
                *error = slot->error;
            return slot->status;
        }
        status = job->commit(job->context, unit, slot->result, error);
        if (status != MICA_OK)
            return status;
        pthread_mutex_lock(&stream->mutex);
        account(stream);
        stream->committed = unit + 1;
        stream->stats.units++;
        assign(stream, slot, unit + stream->slot_count);
        pthread_cond_broadcast(&stream->changed);
        pthread_mutex_unlock(&stream->mutex);
        if ((status = tell(stream, error)) != MICA_OK)
            return status;
    }
    return MICA_OK;
}

/* ---- setting up */

static mica_status create_slots(mica_stream *stream, mica_error *error) {
    const mica_stream_job *job = stream->job;
    const uint64_t units = job->unit_count - job->first_unit, wanted = (uint64_t)job->threads + job->ahead;
    stream->slot_count = wanted < units ? wanted : units;
    /* Room for one gap, so that equal units whose ranges lie a little apart are read at once too. */
    if (!mica_add_u64(job->unit_bytes_max, MERGE_GAP_BYTES, &stream->capacity) ||
        !(stream->slots = mica_calloc(stream->slot_count, sizeof *stream->slots))) {
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %" PRIu64 " units", stream->slot_count);
    }
    for (uint64_t i = 0; i < stream->slot_count; i++) {
        stream_slot *slot = &stream->slots[i];
        slot->buffer = mica_alloc_aligned(stream->capacity);
        slot->result = mica_alloc_aligned(job->result_bytes ? job->result_bytes : 1);
        if (!slot->buffer || !slot->result) {
            return mica_fail(error, MICA_NO_MEMORY, "out of memory for %" PRIu64 " units of %" PRIu64 " bytes", stream->slot_count,
                             stream->capacity + job->result_bytes);
        }
        uint64_t unit = job->first_unit + i;
        assign(stream, slot_of(stream, unit), unit);
    }
    return MICA_OK;
}

static void free_slots(mica_stream *stream) {
    for (uint64_t i = 0; stream->slots && i < stream->slot_count; i++) {
        mica_free_aligned(stream->slots[i].buffer);
        mica_free_aligned(stream->slots[i].result);
    }
    mica_free(stream->slots);
}

/* Runs the threads and the commits over slots that exist. */
static mica_status run(mica_stream *stream, mica_error *error) {
    mica_threads *threads = NULL;
    const mica_stream_job *job = stream->job;
    stream->workers = job->threads < stream->slot_count ? job->threads : (uint32_t)stream->slot_count;
    uint32_t readers = job->readers < stream->slot_count ? job->readers : (uint32_t)stream->slot_count;
    mica_status status = mica_threads_start(stream->workers + readers, thread_body, stop, stream, &threads, error);
    if (status != MICA_OK)
        return status;
    status = commit_units(stream, error);
    stop(stream);
    mica_threads_join(threads);
    return status;
}

mica_status mica_stream_run(const mica_stream_job *job, mica_stream_stats *stats, mica_error *error) {
    if (job->threads == 0 || job->readers == 0 || job->ahead == 0) {
        return mica_fail(error, MICA_FAILED, "%" PRIu32 " threads, %" PRIu32 " readers, %" PRIu32 " ahead: expected one of each at least",
                         job->threads, job->readers, job->ahead);
    }
    mica_stream stream = {.job = job, .next_read = job->first_unit, .committed = job->first_unit, .failed = UINT64_MAX};
    stream.started = stream.accounted = mica_seconds_now();
    if (job->eager)
        *job->eager = &stream;
    mica_status status = MICA_OK;
    if (job->first_unit < job->unit_count) {
        pthread_condattr_t monotonic;
        if (pthread_condattr_init(&monotonic) != 0)
            return mica_fail(error, MICA_FAILED, "no condition variable");
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        pthread_mutex_init(&stream.mutex, NULL);
        pthread_cond_init(&stream.changed, &monotonic);
        pthread_condattr_destroy(&monotonic);
        status = create_slots(&stream, error);
        if (status == MICA_OK)
            status = run(&stream, error);
        free_slots(&stream);
        pthread_cond_destroy(&stream.changed);
        pthread_mutex_destroy(&stream.mutex);
    }
    stream.stats.seconds = mica_seconds_now() - stream.started;
    if (stats)
        *stats = stream.stats;
    return status;
}
