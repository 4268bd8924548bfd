/* tests/operations/test_stream.c: judges operations/stream.c. Units read pseudo-random ranges of two files; what arrives is compared with
 * the bytes in memory, what is committed with a plain loop over the units, for many thread counts, with random sleeps, faults of the
 * disk, failures of every callback at every unit and failures of every allocation. Meant to be run under ThreadSanitizer too. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/no_memory.h"
#include "base/scratch.h"
#include "operations/stream.h"

#define FILE_COUNT 2
#define FILE_BYTES 300001u
#define RANGE_BYTES_MAX 20000u
#define RANGES_MAX 5u
#define NOBODY UINT64_MAX

static uint8_t *contents[FILE_COUNT];
static mica_file *files[FILE_COUNT];

static uint64_t mix(uint64_t value) {
    value += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
    return value ^ (value >> 31);
}

/* ---- one job, with everything that can go wrong in it */

typedef struct result {
    uint64_t unit, sum;
    uint64_t prepared; /* unit + 1, by prepare */
} result;

typedef struct stream_probe {
    /* what to do */
    uint64_t fail_work, fail_work_too, fail_commit, stop_at; /* NOBODY: never */
    uint64_t group;                                          /* after: the first unit of each group of so many; 0: none */
    bool chain;                                              /* after: the unit before */
    bool prepares;                                           /* the job has a `prepare` */
    uint64_t fail_prepare;                                   /* NOBODY: never */
    bool eager;                                              /* begun before that one is committed, and awaiting it */
    uint64_t zero_meets;                                     /* unit 0 ends only when this one has begun; 0: at once */
    useconds_t sleep_max, work_sleep, zero_sleep; /* the last: of unit 0's work */
    const mica_stream_range *fixed; /* every unit reads these, not random ones */
    uint32_t fixed_count;

    pthread_mutex_t mutex; /* of all below */
    uint64_t work_tells; /* work ends only when progress was told so often */
    bool met;
    uint64_t begun_last;
    uint64_t alive, alive_max;
    uint64_t prepared_alone, prepared_two;
    uint64_t early; /* units begun before the one they come after was committed */
    mica_stream *stream;
    uint64_t committed, commits, tells, tells_before_commit, last_tell_units, last_tell_bytes;
    uint64_t wrong; /* whatever was not as it must be: asserts do not work on other threads */
    bool busy[16];
    uint32_t threads;
} stream_probe;

static void note_wrong(stream_probe *probe) {
    pthread_mutex_lock(&probe->mutex);
    probe->wrong++;
    pthread_mutex_unlock(&probe->mutex);
}

static void sleep_a_little(const stream_probe *probe, uint64_t seed) {
    if (probe->sleep_max > 0)
        usleep((useconds_t)(mix(seed) % probe->sleep_max));
}

static uint32_t ranges_of(const stream_probe *probe, uint64_t unit, mica_stream_range *ranges) {
    if (probe->fixed) {
        memcpy(ranges, probe->fixed, probe->fixed_count * sizeof *ranges);
        return probe->fixed_count;
    }
    uint32_t count = (uint32_t)(mix(unit) % (RANGES_MAX + 1));
    for (uint32_t i = 0; i < count; i++) {
        uint64_t random = mix(unit * 100 + i);
        uint64_t bytes = random % 7 == 0 ? 0 : (random >> 8) % RANGE_BYTES_MAX + 1;
        /* Half of them follow the one before closely, so that some are merged. */
        uint64_t offset = (random >> 32) % (FILE_BYTES - bytes);
        if (i > 0 && random % 2 == 0) {
            uint64_t near = ranges[i - 1].offset + ranges[i - 1].bytes + random % 3 * 4095;
            offset = near + bytes <= FILE_BYTES ? near : offset;
        }
        ranges[i] = (mica_stream_range){files[random % 3 == 0], offset, bytes, "some.tensor"};
    }
    return count;
}

static const uint8_t *truth_of(const mica_stream_range *range) {
    return contents[range->file == files[1]] + range->offset;
}

static uint64_t sum_of(uint64_t unit, const mica_stream_range *ranges, uint32_t count, const uint8_t *const *data) {
    uint64_t sum = mix(unit);
    for (uint32_t i = 0; i < count; i++) {
        for (uint64_t j = 0; j < ranges[i].bytes; j++)
            sum = sum * 31 + data[i][j];
    }
    return sum;
}

static uint32_t plan(void *context, uint64_t unit, mica_stream_range *ranges) {
    stream_probe *probe = context;
    pthread_mutex_lock(&probe->mutex);
    probe->alive++;
    if (probe->alive > probe->alive_max)
        probe->alive_max = probe->alive;
    pthread_mutex_unlock(&probe->mutex);
    sleep_a_little(probe, unit * 3);
    return ranges_of(probe, unit, ranges);
}

static uint64_t after(void *context, uint64_t unit) {
    const stream_probe *probe = context;
    if (probe->chain)
        return unit == 0 ? MICA_STREAM_NONE : unit - 1;
    return probe->group == 0 || unit % probe->group == 0 ? MICA_STREAM_NONE : unit - unit % probe->group;
}

/* Until the unit that is awaited has begun, or progress was told as often as is asked; 5 s of this program's time at most. */
static void await_others(stream_probe *probe, bool meeting) {
    bool reached = false;
    for (int i = 0; i < 5000 && !reached; i++) {
        usleep(1000);
        pthread_mutex_lock(&probe->mutex);
        reached = meeting ? probe->met : probe->tells >= probe->work_tells;
        pthread_mutex_unlock(&probe->mutex);
    }
    if (!reached)
        note_wrong(probe);
}

static mica_status prepare(void *context, uint32_t count, const uint64_t units[2], const uint8_t *const *const data[2],
                           void *const results[2], mica_error *error) {
    stream_probe *probe = context;
    pthread_mutex_lock(&probe->mutex);
    probe->wrong += count < 1 || count > 2 || (count == 2 && units[0] == units[1]);
    probe->prepared_alone += count == 1;
    probe->prepared_two += count == 2;
    pthread_mutex_unlock(&probe->mutex);
    for (uint32_t k = 0; k < count; k++) {
        mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
        const uint32_t range_count = ranges_of(probe, units[k], ranges);
        for (uint32_t i = 0; i < range_count; i++)
            if (memcmp(data[k][i], truth_of(&ranges[i]), ranges[i].bytes) != 0)
                note_wrong(probe);
        ((result *)results[k])->prepared = units[k] + 1;
    }
    sleep_a_little(probe, units[0] * 3 + 2);
    for (uint32_t k = 0; k < count; k++)
        if (units[k] == probe->fail_prepare)
            return mica_fail(error, MICA_BAD_INPUT, "preparing failed at %" PRIu64, units[k]);
    return MICA_OK;
}

static mica_status work(void *context, uint32_t thread, uint64_t unit, const uint8_t *const *data, void *output, mica_error *error) {
    stream_probe *probe = context;
    uint64_t needed = after(probe, unit);
    if (probe->eager && needed != MICA_STREAM_NONE) {
        double waited = 0;
        pthread_mutex_lock(&probe->mutex);
        probe->early += needed >= probe->committed;
        probe->met |= probe->early > 0; /* whichever was read first */
        pthread_mutex_unlock(&probe->mutex);
        if (!mica_stream_await(probe->stream, needed, &waited))
            return mica_fail(error, MICA_INTERRUPTED, "nobody is told this");
    }
    pthread_mutex_lock(&probe->mutex);
    probe->wrong += thread >= probe->threads || probe->busy[thread] || (needed != MICA_STREAM_NONE && needed >= probe->committed);
    probe->busy[thread] = true;
    probe->met |= unit > 0 && unit == probe->zero_meets;
    probe->begun_last = unit > probe->begun_last ? unit : probe->begun_last;
    pthread_mutex_unlock(&probe->mutex);
    if (unit == 0 && probe->zero_meets)
        await_others(probe, true);
    if (probe->work_tells)
        await_others(probe, false);
    mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
    uint32_t count = ranges_of(probe, unit, ranges);
    for (uint32_t i = 0; i < count; i++) {
        if (!data[i] || memcmp(data[i], truth_of(&ranges[i]), ranges[i].bytes) != 0)
            note_wrong(probe);
    }
    usleep(unit == 0 ? probe->zero_sleep + probe->work_sleep : probe->work_sleep);
    sleep_a_little(probe, unit * 3 + 1);
    /* The smaller of two failing units fails later, so that order has to be made, not met. */
    if (unit == probe->fail_work && probe->fail_work_too != NOBODY)
        usleep(3000);
    if (probe->prepares && ((result *)output)->prepared != unit + 1)
        note_wrong(probe);
    *(result *)output = (result){unit, sum_of(unit, ranges, count, data), 0};
    pthread_mutex_lock(&probe->mutex);
    probe->busy[thread] = false;
    pthread_mutex_unlock(&probe->mutex);
    if (unit == probe->fail_work || unit == probe->fail_work_too)
        return mica_fail(error, MICA_BAD_INPUT, "work failed at %" PRIu64, unit);
    return MICA_OK;
}

static mica_status commit(void *context, uint64_t unit, const void *input, mica_error *error) {
    stream_probe *probe = context;
    const result *got = input;
    mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
    uint32_t count = ranges_of(probe, unit, ranges);
    const uint8_t *truths[MICA_STREAM_RANGES_MAX];
    for (uint32_t i = 0; i < count; i++)
        truths[i] = truth_of(&ranges[i]);
    if (unit == probe->fail_commit)
        return mica_fail(error, MICA_IO, "commit failed at %" PRIu64, unit);
    sleep_a_little(probe, unit * 3 + 2);
    pthread_mutex_lock(&probe->mutex);
    probe->wrong += unit != probe->committed || got->unit != unit || got->sum != sum_of(unit, ranges, count, truths);
    probe->committed = unit + 1;
    probe->commits++;
    probe->alive--;
    pthread_mutex_unlock(&probe->mutex);
    return MICA_OK;
}

static bool progress(void *context, const mica_stream_progress *state) {
    stream_probe *probe = context;
    pthread_mutex_lock(&probe->mutex);
    probe->tells++;
    probe->tells_before_commit += probe->commits == 0;
    probe->wrong += state->units_done != probe->committed || state->units_done < probe->last_tell_units ||
                    state->bytes_read < probe->last_tell_bytes || (probe->commits > 0) != (state->seconds_left >= 0);
    probe->last_tell_units = state->units_done;
    probe->last_tell_bytes = state->bytes_read;
    pthread_mutex_unlock(&probe->mutex);
    return state->units_done < probe->stop_at;
}

static stream_probe probe_new(void) {
    return (stream_probe){.mutex = PTHREAD_MUTEX_INITIALIZER,
                          .fail_work = NOBODY,
                          .fail_work_too = NOBODY,
                          .fail_prepare = NOBODY,
                          .fail_commit = NOBODY,
                          .stop_at = NOBODY};
}

static mica_stream_job job_new(stream_probe *probe, uint64_t units, uint32_t threads, uint32_t readers, uint32_t ahead) {
    probe->threads = threads;
    return (mica_stream_job){
        .context = probe,
        .eager = probe->eager ? &probe->stream : NULL,
        .unit_count = units,
        .threads = threads,
        .readers = readers,
        .ahead = ahead,
        .unit_bytes_max = RANGES_MAX * mica_file_window_bytes(RANGE_BYTES_MAX),
        .result_bytes = sizeof(result),
        .plan = plan,
        .after = probe->group || probe->chain ? after : NULL,
        .prepare = probe->prepares ? prepare : NULL,
        .work = work,
        .commit = commit,
        .progress = progress,
    };
}

static uint64_t bytes_of(const stream_probe *probe, uint64_t first, uint64_t end) {
    uint64_t bytes = 0;
    for (uint64_t unit = first; unit < end; unit++) {
        mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
        uint32_t count = ranges_of(probe, unit, ranges);
        for (uint32_t i = 0; i < count; i++)
            bytes += ranges[i].bytes;
    }
    return bytes;
}

/* ---- the seam: a disk that counts, delays and fails */

static mica_io disk;
static pthread_mutex_t disk_mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t disk_reads, disk_misaligned, disk_bad_first, disk_bad_end; /* bytes [first, end) of any file cannot be read */
static bool disk_bad_is_end_of_file;
static useconds_t disk_delay;

static ssize_t disk_pread(int fd, void *buffer, size_t bytes, off_t offset) {
    bool direct = (fcntl(fd, F_GETFL) & O_DIRECT) != 0;
    pthread_mutex_lock(&disk_mutex);
    disk_reads++;
    disk_misaligned += direct && ((uintptr_t)buffer % 4096 || bytes % 4096 || offset % 4096);
    pthread_mutex_unlock(&disk_mutex);
    usleep(disk_delay);
    if ((uint64_t)offset < disk_bad_end && (uint64_t)offset + bytes > disk_bad_first) {
        if (!disk_bad_is_end_of_file) {
            errno = EIO;
            return -1;
        }
        bytes = (uint64_t)offset < disk_bad_first ? disk_bad_first - (uint64_t)offset : 0;
    }
    return bytes == 0 ? 0 : pread(fd, buffer, bytes, offset);
}

static void disk_install(void) {
    mica_io_install(NULL);
    disk = *mica_io_install(NULL);
    disk.pread = disk_pread;
    disk_reads = disk_misaligned = disk_bad_first = disk_bad_end = 0;
    disk_bad_is_end_of_file = false;
    disk_delay = 0;
    mica_io_install(&disk);
}

/* ---- files */

static int setup(void **state) {
    if (scratch_make(state) != 0)
        return -1;
    for (int i = 0; i < FILE_COUNT; i++) {
        contents[i] = malloc(FILE_BYTES);
        char name[32];
        snprintf(name, sizeof name, "file%d", i);
        if (!contents[i])
            return -1;
        for (uint32_t j = 0; j < FILE_BYTES; j++)
            contents[i][j] = (uint8_t)mix(j * 2 + (uint32_t)i);
        scratch_write(name, contents[i], FILE_BYTES);
        if (mica_file_open(scratch(name), true, &files[i], NULL) != MICA_OK)
            return -1;
    }
    return 0;
}

static int teardown(void **state) {
    for (int i = 0; i < FILE_COUNT; i++) {
        (void)!mica_file_close(files[i], NULL);
        free(contents[i]);
    }
    return scratch_remove(state);
}

static int restore_disk(void **state) {
    (void)state;
    mica_io_install(NULL);
    mica_memory_fail_after(0);
    return 0;
}

/* ---- tests */

static const struct {
    uint32_t threads, readers, ahead;
} shapes[] = {{1, 1, 1}, {1, 2, 3}, {2, 1, 1}, {2, 2, 2}, {4, 1, 2}, {4, 3, 8}, {7, 2, 1}, {7, 8, 40}};
#define SHAPES (sizeof shapes / sizeof shapes[0])
#define FAULT_SHAPE_STEP 3 /* of them: {1, 1, 1}, {2, 2, 2}, {7, 2, 1} */

static void assert_done(const stream_probe *probe, const mica_stream_stats *stats, uint64_t first, uint64_t end) {
    assert_int_equal(probe->wrong, 0);
    assert_int_equal(probe->commits, end - first);
    assert_int_equal(stats->units, end - first);
    assert_int_equal(stats->bytes_read, bytes_of(probe, first, end));
}

static void units_are_committed_in_order(void **state) {
    (void)state;
    const uint64_t counts[] = {0, 1, 2, 5, 60};
    for (size_t s = 0; s < SHAPES; s++) {
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            for (useconds_t sleep_max = 0; sleep_max <= 300; sleep_max += 300) {
                stream_probe probe = probe_new();
                probe.sleep_max = sleep_max;
                mica_stream_stats stats;
                mica_stream_job job = job_new(&probe, counts[c], shapes[s].threads, shapes[s].readers, shapes[s].ahead);
                assert_int_equal(mica_stream_run(&job, &stats, NULL), MICA_OK);
                assert_done(&probe, &stats, 0, counts[c]);
                assert_int_equal(probe.last_tell_units, counts[c]);
                assert_true(probe.alive_max <= shapes[s].threads + shapes[s].ahead);
                assert_true(counts[c] == 0 || stats.seconds > 0);
            }
        }
    }
}

static void a_resumed_run_does_the_rest(void **state) {
    (void)state;
    for (uint64_t first = 0; first <= 9; first++) {
        stream_probe probe = probe_new();
        probe.group = 4;
        probe.committed = first;
        mica_stream_job job = job_new(&probe, 9, 2, 2, 2);
        job.first_unit = first;
        mica_stream_stats stats;
        assert_int_equal(mica_stream_run(&job, &stats, NULL), MICA_OK);
        assert_done(&probe, &stats, first, 9);
    }
}

static void a_unit_waits_for_the_one_it_names(void **state) {
    (void)state;
    for (size_t s = 0; s < SHAPES; s++) {
        for (uint64_t group = 0; group <= 5; group += 5) { /* 0: a chain */
            stream_probe probe = probe_new();
            probe.group = group;
            probe.chain = group == 0;
            probe.sleep_max = 200;
            mica_stream_stats stats;
            mica_stream_job job = job_new(&probe, 40, shapes[s].threads, shapes[s].readers, shapes[s].ahead);
            assert_int_equal(mica_stream_run(&job, &stats, NULL), MICA_OK);
            assert_done(&probe, &stats, 0, 40);
        }
    }
}

/* Each once before its work, two at once where two are read; a failure is that of its own unit, whichever it was tried with. */
static void units_are_prepared_by_twos(void **state) {
    (void)state;
    uint64_t twos = 0;
    for (size_t s = 0; s < SHAPES; s++)
        for (uint64_t failing = 0; failing <= 12; failing++) {
            stream_probe probe = probe_new();
            probe.prepares = true;
            probe.sleep_max = 200;
            probe.group = failing % 2 * 4;
            probe.eager = failing % 4 > 1;
            probe.fail_prepare = failing < 12 ? failing : NOBODY;
            mica_error error;
            mica_stream_stats stats;
            mica_stream_job job = job_new(&probe, 12, shapes[s].threads, shapes[s].readers, shapes[s].ahead);
            assert_int_equal(mica_stream_run(&job, &stats, &error), failing < 12 ? MICA_BAD_INPUT : MICA_OK);
            assert_int_equal(probe.wrong, 0);
            assert_int_equal(probe.commits, failing);
            if (failing < 12) {
                char expected[64];
                snprintf(expected, sizeof expected, "preparing failed at %" PRIu64, failing);
                assert_string_equal(error.message, expected);
            } else {
                assert_int_equal(probe.prepared_alone + 2 * probe.prepared_two, 12);
            }
            twos += probe.prepared_two;
        }
    assert_true(twos > 0);
}

/* The same of an eager job, whose units begin earlier and wait in their work; and whatever ends it wakes those that wait. */
static void an_eager_unit_awaits_the_one_it_names(void **state) {
    (void)state;
    enum { WORK, COMMIT, STOP, WAYS };
    static const mica_status outcomes[WAYS] = {MICA_BAD_INPUT, MICA_IO, MICA_INTERRUPTED};
    for (size_t s = 0; s < SHAPES; s++) {
        for (uint64_t group = 0; group <= 5; group += 5) {
            stream_probe probe = probe_new();
            probe.group = group;
            probe.chain = group == 0;
            probe.eager = true;
            probe.sleep_max = 200;
            mica_stream_stats stats;
            mica_stream_job job = job_new(&probe, 40, shapes[s].threads, shapes[s].readers, shapes[s].ahead);
            assert_int_equal(mica_stream_run(&job, &stats, NULL), MICA_OK);
            assert_done(&probe, &stats, 0, 40);
            assert_true(stats.work_seconds >= 0);
            for (uint64_t trial = 0; s % FAULT_SHAPE_STEP == 0 && trial < (uint64_t)WAYS * 6; trial++) {
                const uint64_t unit = 1 + trial / WAYS, way = trial % WAYS;
                stream_probe failing = probe_new();
                failing.group = group;
                failing.chain = group == 0;
                failing.eager = true;
                failing.sleep_max = 100;
                *(way == WORK ? &failing.fail_work : way == COMMIT ? &failing.fail_commit : &failing.stop_at) = unit;
                job = job_new(&failing, 12, shapes[s].threads, shapes[s].readers, shapes[s].ahead);
                assert_int_equal(mica_stream_run(&job, NULL, NULL), outcomes[way]);
                assert_int_equal(failing.commits, unit);
                assert_int_equal(failing.wrong, 0);
            }
        }
    }
    stream_probe probe = probe_new();
    probe.group = 4;
    probe.eager = true;
    probe.zero_meets = 1;
    mica_stream_stats stats;
    mica_stream_job job = job_new(&probe, 4, 2, 2, 2);
    assert_int_equal(mica_stream_run(&job, &stats, NULL), MICA_OK);
    assert_done(&probe, &stats, 0, 4);
    assert_true(probe.early >= 1);
}

/* A unit that may start passes one that waits: unit 2 begins while 0 is at work, though 1 waits for 0. */
static void a_waiting_unit_does_not_hold_the_others(void **state) {
    (void)state;
    stream_probe probe = probe_new();
    probe.group = 2;
    probe.zero_meets = 2;
    mica_stream_stats stats;
    mica_stream_job job = job_new(&probe, 4, 2, 1, 2);
    assert_int_equal(mica_stream_run(&job, &stats, NULL), MICA_OK);
    assert_done(&probe, &stats, 0, 4);
}

static void the_smallest_failing_unit_is_told(void **state) {
    (void)state;
    for (size_t s = 0; s < SHAPES; s += FAULT_SHAPE_STEP) {
        for (uint64_t unit = 0; unit < 12; unit++) {
            for (uint64_t too = unit; too < unit + 4; too += 3) {
                stream_probe probe = probe_new();
                probe.fail_work = unit;
                probe.fail_work_too = too == unit ? NOBODY : too;
                probe.sleep_max = 100;
                mica_error error;
                mica_stream_job job = job_new(&probe, 12, shapes[s].threads, shapes[s].readers, shapes[s].ahead);
                char expected[64];
                snprintf(expected, sizeof expected, "work failed at %" PRIu64, unit);
                assert_int_equal(mica_stream_run(&job, NULL, &error), MICA_BAD_INPUT);
                assert_string_equal(error.message, expected);
                assert_int_equal(error.status, MICA_BAD_INPUT);
                assert_int_equal(probe.commits, unit);
                assert_int_equal(probe.wrong, 0);
            }
        }
    }
}

/* Unit 1 fails while 0 is still at work: what is behind it is not begun, though it is read. */
static void nothing_is_begun_after_a_failure(void **state) {
    (void)state;
    stream_probe probe = probe_new();
    probe.fail_work = 1;
    probe.zero_sleep = 30000;
    mica_stream_job job = job_new(&probe, 20, 2, 1, 10);
    assert_int_equal(mica_stream_run(&job, NULL, NULL), MICA_BAD_INPUT);
    assert_int_equal(probe.begun_last, 1);
    assert_int_equal(probe.commits, 1);
}

static void a_failing_commit_ends_it(void **state) {
    (void)state;
    for (size_t s = 0; s < SHAPES; s += FAULT_SHAPE_STEP) {
        for (uint64_t unit = 0; unit < 12; unit++) {
            stream_probe probe = probe_new();
            probe.fail_commit = unit;
            probe.sleep_max = 100;
            mica_error error;
            mica_stream_job job = job_new(&probe, 12, shapes[s].threads, shapes[s].readers, shapes[s].ahead);
            char expected[64];
            snprintf(expected, sizeof expected, "commit failed at %" PRIu64, unit);
            assert_int_equal(mica_stream_run(&job, NULL, &error), MICA_IO);
            assert_string_equal(error.message, expected);
            assert_int_equal(probe.commits, unit);
            assert_int_equal(probe.wrong, 0);
        }
    }
}

static void a_stop_is_obeyed_at_each_unit(void **state) {
    (void)state;
    for (size_t s = 0; s < SHAPES; s += FAULT_SHAPE_STEP) {
        for (uint64_t unit = 1; unit <= 12; unit++) {
            stream_probe probe = probe_new();
            probe.stop_at = unit;
            probe.sleep_max = 100;
            mica_error error;
            mica_stream_stats stats;
            mica_stream_job job = job_new(&probe, 12, shapes[s].threads, shapes[s].readers, shapes[s].ahead);
            assert_int_equal(mica_stream_run(&job, &stats, &error), MICA_INTERRUPTED);
            char expected[64];
            snprintf(expected, sizeof expected, "stopped after %" PRIu64 " of 12 units", unit);
            assert_string_equal(error.message, expected);
            assert_int_equal(probe.commits, unit);
            assert_int_equal(stats.units, unit);
            assert_int_equal(probe.wrong, 0);
        }
    }
}

static void progress_is_told_while_a_unit_is_long(void **state) {
    (void)state;
    stream_probe probe = probe_new();
    probe.work_tells = 2;
    mica_stream_job job = job_new(&probe, 1, 1, 1, 1);
    assert_int_equal(mica_stream_run(&job, NULL, NULL), MICA_OK);
    assert_true(probe.tells_before_commit >= 2);
    assert_int_equal(probe.wrong, 0);

    probe = probe_new();
    probe.work_tells = 1;
    probe.stop_at = 0;
    job = job_new(&probe, 3, 1, 1, 1);
    assert_int_equal(mica_stream_run(&job, NULL, NULL), MICA_INTERRUPTED);
    assert_int_equal(probe.commits, 0);
}

/* Unit u of these reads bytes 20000 u and 20000 u + 8192 on, so that a bad byte range hits known units. */
static uint32_t plan_spread(void *context, uint64_t unit, mica_stream_range *ranges) {
    (void)context;
    ranges[0] = (mica_stream_range){files[0], 20000 * unit, 100, "model.first.weight"};
    ranges[1] = (mica_stream_range){files[0], 20000 * unit + 8192, 100, "model.second.weight"};
    return 2;
}

static mica_status work_spread(void *context, uint32_t thread, uint64_t unit, const uint8_t *const *data, void *output, mica_error *error) {
    (void)thread, (void)error;
    memset(output, 0, sizeof(result));
    if (memcmp(data[0], contents[0] + 20000 * unit, 100) != 0 || memcmp(data[1], contents[0] + 20000 * unit + 8192, 100) != 0)
        note_wrong(context);
    return MICA_OK;
}

static mica_status commit_spread(void *context, uint64_t unit, const void *input, mica_error *error) {
    (void)unit, (void)input, (void)error;
    stream_probe *probe = context;
    pthread_mutex_lock(&probe->mutex);
    probe->committed++;
    probe->commits++;
    pthread_mutex_unlock(&probe->mutex);
    return MICA_OK;
}

static mica_stream_job job_spread(stream_probe *probe, uint32_t threads) {
    mica_stream_job job = job_new(probe, 12, threads, threads, 2);
    job.plan = plan_spread;
    job.work = work_spread;
    job.commit = commit_spread;
    return job;
}

static void a_bad_disk_is_told_by_tensor(void **state) {
    (void)state;
    for (uint32_t threads = 1; threads <= 4; threads += 3) {
        for (uint64_t unit = 0; unit < 12; unit++) {
            for (int second = 0; second < 2; second++) {
                disk_install();
                disk_bad_first = 20000 * unit + (second ? 8192 : 0);
                disk_bad_end = disk_bad_first + 1;
                stream_probe probe = probe_new();
                mica_error error;
                mica_stream_job job = job_spread(&probe, threads);
                assert_int_equal(mica_stream_run(&job, NULL, &error), MICA_IO);
                assert_int_equal(probe.commits, unit);
                assert_int_equal(probe.wrong, 0);
                const char *name = second ? "model.second.weight: " : "model.first.weight: ";
                assert_int_equal(strncmp(error.message, name, strlen(name)), 0);
                assert_non_null(strstr(error.message, mica_file_path(files[0])));
                assert_non_null(strstr(error.message, strerror(EIO)));
            }
        }
    }
}

static void a_file_cut_short_is_told(void **state) {
    (void)state;
    disk_install();
    disk_bad_is_end_of_file = true;
    disk_bad_first = 20000 * 7 + 8192 + 50;
    disk_bad_end = UINT64_MAX;
    stream_probe probe = probe_new();
    mica_error error;
    mica_stream_job job = job_spread(&probe, 2);
    assert_int_equal(mica_stream_run(&job, NULL, &error), MICA_IO);
    assert_int_equal(probe.commits, 7);
    assert_non_null(strstr(error.message, "model.second.weight: "));
    assert_non_null(strstr(error.message, "expected 100 bytes, got 50"));
}

/* Nobody asked for the bytes between two ranges: they may be bad. */
static void a_bad_gap_between_merged_ranges_does_not_matter(void **state) {
    (void)state;
    disk_install();
    disk_bad_first = 15 * 4096; /* unit 3 needs bytes 60000 on, in page 14, and 68192 on, in page 16 */
    disk_bad_end = 16 * 4096;
    stream_probe probe = probe_new();
    mica_stream_job job = job_spread(&probe, 2);
    assert_int_equal(mica_stream_run(&job, NULL, NULL), MICA_OK);
    assert_true(disk_reads > 12 + 1); /* the merged read failed, the single ones did not */
    assert_int_equal(probe.commits, 12);
    assert_int_equal(probe.wrong, 0);
}

static uint64_t reads_for(const mica_stream_range *ranges, uint32_t count, uint64_t unit_bytes_max) {
    disk_install();
    stream_probe probe = probe_new();
    probe.fixed = ranges;
    probe.fixed_count = count;
    mica_stream_job job = job_new(&probe, 1, 1, 1, 1);
    job.unit_bytes_max = unit_bytes_max;
    mica_stream_stats stats;
    assert_int_equal(mica_stream_run(&job, &stats, NULL), MICA_OK);
    assert_done(&probe, &stats, 0, 1);
    assert_int_equal(disk_misaligned, 0);
    return disk_reads;
}

static void neighbours_are_read_at_once(void **state) {
    (void)state;
    const uint64_t window = mica_file_window_bytes(1000);
    const mica_stream_range touching[] = {{files[0], 6000, 1000, "b"}, {files[0], 5000, 1000, "a"}};
    const mica_stream_range near[] = {{files[0], 5000, 1000, "a"}, {files[0], 6000 + 65536, 1000, "b"}};
    const mica_stream_range apart[] = {{files[0], 5000, 1000, "a"}, {files[0], 6000 + 65537, 1000, "b"}};
    const mica_stream_range elsewhere[] = {{files[0], 5000, 1000, "a"}, {files[1], 6000, 1000, "b"}};
    const mica_stream_range inside[] = {{files[0], 5000, 1000, "a"}, {files[0], 5100, 10, "b"}, {files[0], 5500, 800, "c"}};
    const mica_stream_range gaps[] = {{files[0], 0, 1000, "a"}, {files[0], 60000, 1000, "b"}, {files[0], 120000, 1000, "c"}};
    assert_int_equal(reads_for(touching, 2, 2 * window), 1);
    assert_int_equal(reads_for(near, 2, 2 * window), 1);
    assert_int_equal(reads_for(apart, 2, 2 * window), 2);
    assert_int_equal(reads_for(elsewhere, 2, 2 * window), 2);
    assert_int_equal(reads_for(inside, 3, 3 * window), 1);
    assert_int_equal(reads_for(gaps, 3, 3 * window), 2); /* room for one gap only */
    assert_int_equal(reads_for(gaps, 3, 200000), 1);
}

static void a_unit_larger_than_promised_is_refused(void **state) {
    (void)state;
    const mica_stream_range large[] = {{files[0], 0, 10000, "model.large.weight"}};
    const mica_stream_range absurd[] = {{files[0], 0, UINT64_MAX, "model.large.weight"}};
    for (int i = 0; i < 2; i++) {
        stream_probe probe = probe_new();
        probe.fixed = i ? absurd : large;
        probe.fixed_count = 1;
        mica_error error;
        mica_stream_job job = job_new(&probe, 3, 2, 1, 1);
        job.unit_bytes_max = 8192;
        assert_int_equal(mica_stream_run(&job, NULL, &error), MICA_FAILED);
        assert_non_null(strstr(error.message, "unit 0: the window of model.large.weight does not fit"));
        assert_int_equal(probe.commits, 0);
    }
}

static uint64_t after_the_next(void *context, uint64_t unit) {
    (void)context;
    return unit == 2 ? 3 : MICA_STREAM_NONE;
}

/* Our own mistakes end in a sentence, not in a lock. */
static void a_job_that_cannot_be_done_is_refused(void **state) {
    (void)state;
    mica_error error;
    stream_probe probe = probe_new();
    mica_stream_job job = job_new(&probe, 5, 2, 1, 1);
    job.after = after_the_next;
    assert_int_equal(mica_stream_run(&job, NULL, &error), MICA_FAILED);
    assert_non_null(strstr(error.message, "unit 2: "));
    assert_non_null(strstr(error.message, "after unit 3"));
    assert_int_equal(probe.commits, 2);
    job = job_new(&probe, 5, 2, 1, 1);
    job.readers = 0;
    assert_int_equal(mica_stream_run(&job, NULL, &error), MICA_FAILED);
}

static void each_failing_allocation_is_told(void **state) {
    (void)state;
    no_memory trial = {0};
    while (no_memory_next(&trial)) {
        stream_probe probe = probe_new();
        mica_error error = {MICA_OK, ""};
        mica_stream_job job = job_new(&probe, 8, 2, 1, 2);
        no_memory_begin(&trial);
        const mica_status status = mica_stream_run(&job, NULL, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        assert_int_equal(probe.commits, trial.succeeded ? 8 : 0);
    }
    assert_true(trial.count >= 9); /* 4 slots of two buffers, and the slots */
}

typedef struct starvation_case {
    useconds_t disk_delay, work_sleep;
    bool chain;
    double starved_least, starved_most; /* as a multiple of the wall time, of 2 threads */
} starvation_case;

/* One reader, 2 threads. The shares are wide, but a machine that is busy with other things can still break them: see below. */
static bool starvation_fits(const starvation_case *expected) {
    const mica_stream_range one[] = {{files[0], 5000, 1000, "a"}};
    disk_install();
    disk_delay = expected->disk_delay;
    stream_probe probe = probe_new();
    probe.fixed = one;
    probe.fixed_count = 1;
    probe.chain = expected->chain;
    probe.work_sleep = expected->work_sleep;
    mica_stream_stats stats;
    mica_stream_job job = job_new(&probe, 12, 2, 1, 2);
    assert_int_equal(mica_stream_run(&job, &stats, NULL), MICA_OK);
    assert_true(stats.starved_seconds >= 0 && stats.starved_seconds <= 2 * stats.seconds);
    assert_true(stats.work_seconds >= 12 * 1e-6 * expected->work_sleep && stats.work_seconds <= 2 * stats.seconds);
    double share = stats.starved_seconds / stats.seconds;
    return share >= expected->starved_least && share <= expected->starved_most;
}

static void starvation_is_what_reading_did_not_hide(void **state) {
    (void)state;
    const starvation_case cases[] = {
        {8000, 0, false, 1.5, 2.0},    /* the disk is slow and work is nothing: both threads starve */
        {0, 8000, false, 0.0, 0.25},   /* reading is hidden, but for the first unit */
        {0, 8000, true, 0.0, 0.25},    /* one thread waits for the other's commit: idle, not starved */
        {8000, 4000, true, 0.3, 0.8},  /* half the time one thread waits for the disk, the other only for its turn */
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        bool fits = false;
        for (int attempt = 0; attempt < 10 && !fits; attempt++)
            fits = starvation_fits(&cases[c]);
        assert_true(fits);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(units_are_committed_in_order),
        cmocka_unit_test(a_resumed_run_does_the_rest),
        cmocka_unit_test(a_unit_waits_for_the_one_it_names),
        cmocka_unit_test(a_waiting_unit_does_not_hold_the_others),
        cmocka_unit_test(the_smallest_failing_unit_is_told),
        cmocka_unit_test(units_are_prepared_by_twos),
        cmocka_unit_test(an_eager_unit_awaits_the_one_it_names),
        cmocka_unit_test(nothing_is_begun_after_a_failure),
        cmocka_unit_test(a_failing_commit_ends_it),
        cmocka_unit_test(a_stop_is_obeyed_at_each_unit),
        cmocka_unit_test(progress_is_told_while_a_unit_is_long),
        cmocka_unit_test_teardown(a_bad_disk_is_told_by_tensor, restore_disk),
        cmocka_unit_test_teardown(a_file_cut_short_is_told, restore_disk),
        cmocka_unit_test_teardown(a_bad_gap_between_merged_ranges_does_not_matter, restore_disk),
        cmocka_unit_test_teardown(neighbours_are_read_at_once, restore_disk),
        cmocka_unit_test(a_unit_larger_than_promised_is_refused),
        cmocka_unit_test(a_job_that_cannot_be_done_is_refused),
        cmocka_unit_test_teardown(each_failing_allocation_is_told, restore_disk),
        cmocka_unit_test_teardown(starvation_is_what_reading_did_not_hide, restore_disk),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
