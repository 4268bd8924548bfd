/* tests/operations/test_index_resume.c: judges what mica_index leaves when it is stopped (by the caller, a full disk, a failing disk, no
 * memory) and that going on gives the bytes of an uninterrupted run; and which resumes are refused. Kills, and another
 * instruction set: tests/faults/kill_resume.sh. */
#include "base/no_memory.h"
#include "operations/vindex_helpers.h"

#include <errno.h>
#include <limits.h>

static const mica_index_options job = {.layers = "0,1", .threads = 2, .full_spectrum = MICA_SPECTRA_GATE};
static const mica_index_options job_resumed = {.layers = "0,1", .threads = 1, .full_spectrum = MICA_SPECTRA_GATE, .resume = true};
#define JOB_UNITS 27u

static const char *reference(void) {
    const char *directory = scratch("reference");
    if (!mica_path_exists(directory))
        must_index(TINY, directory, &job);
    return scratch("reference");
}

static void resume_and_compare(const char *directory) {
    must_index(TINY, directory, &job_resumed);
    assert_same_tree(directory, reference());
    scratch_remove_tree(directory);
}

/* ---- stopped by the caller */

static bool stop_at(void *context, const mica_progress *progress) { return progress->units_done < *(uint64_t *)context; }

static void test_stopped_and_resumed(void **state) {
    (void)state;
    for (uint64_t units = 1; units < JOB_UNITS; units += 9) {
        mica_index_options options = job;
        mica_error error;
        options.progress = stop_at;
        options.progress_context = &units;
        const char *directory = scratch("stopped");
        assert_int_equal(run_index(TINY, directory, &options, &error), MICA_INTERRUPTED);
        assert_int_equal(run_index(TINY, directory, &job, &error), MICA_CONFLICT);
        assert_non_null(strstr(error.message, "--resume"));
        char *text;
        assert_int_equal(mica_stats(directory, MICA_STATS_TEXT, &text, &error), MICA_BAD_INPUT);
        assert_non_null(strstr(error.message, "not finished"));
        resume_and_compare(directory);
    }
}

static void test_resume_on_nothing_and_on_finished(void **state) {
    (void)state;
    const char *directory = scratch("nothing");
    must_index(TINY, directory, &job_resumed); /* starts */
    assert_same_tree(directory, reference());
    char *text = NULL;
    mica_error error;
    assert_int_equal(mica_index(TINY, directory, &job_resumed, &text, NULL, &error), MICA_OK); /* nothing to do */
    assert_non_null(strstr(text, "already finished"));
    mica_string_free(text);
    mica_index_options other = job_resumed;
    other.features = 8;
    assert_int_equal(run_index(TINY, directory, &other, &error), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "options.features"));
    scratch_remove_tree(directory);
}

/* ---- a disk that fails */

static mica_io faulty;
static const mica_io *real;
static long calls_left; /* until the fault; writes and syncs are on one thread */
static int fault_errno;

static int fault(void) {
    if (calls_left-- > 0)
        return 0;
    errno = fault_errno;
    return -1;
}

static ssize_t faulty_pwrite(int fd, const void *buffer, size_t bytes, off_t offset) {
    return fault() ? -1 : real->pwrite(fd, buffer, bytes, offset);
}
static int faulty_fsync(int fd) { return fault() ? -1 : real->fsync(fd); }
static int faulty_rename(const char *from, const char *to) { return fault() ? -1 : real->rename(from, to); }
static int faulty_ftruncate(int fd, off_t bytes) { return fault() ? -1 : real->ftruncate(fd, bytes); }
static int faulty_unlink(const char *path) { return fault() ? -1 : real->unlink(path); }

static mica_status index_with_fault(const char *directory, const mica_index_options *options, long calls, int number, mica_error *error) {
    real = mica_io_current();
    faulty = *real;
    faulty.pwrite = faulty_pwrite;
    faulty.fsync = faulty_fsync;
    faulty.rename = faulty_rename;
    faulty.ftruncate = faulty_ftruncate;
    faulty.unlink = faulty_unlink;
    calls_left = calls;
    fault_errno = number;
    mica_io_install(&faulty);
    const mica_status status = run_index(TINY, directory, options, error);
    mica_io_install(NULL);
    return status;
}

/* Every write, sync, rename, truncate and removal of a run fails in turn (in steps), and all after it: an error that says so, then a
 * resume. */
static void fail_everywhere(int number, long step) {
    mica_error error;
    for (long calls = 0;; calls += step) {
        const char *directory = scratch("failing");
        const mica_status status = index_with_fault(directory, &job, calls, number, &error);
        if (status == MICA_OK) {
            assert_true(calls > 100); /* there was something to fail */
            scratch_remove_tree(directory);
            return;
        }
        if (status != MICA_IO || !strstr(error.message, strerror(number)))
            fail_msg("after %ld calls: %s", calls, error.message);
        resume_and_compare(directory);
    }
}

static void test_disk_full(void **state) {
    (void)state;
    fail_everywhere(ENOSPC, 37);
}

static void test_disk_failing(void **state) {
    (void)state;
    fail_everywhere(EIO, 53);
}

static long reads, reads_before_fault;
static ssize_t failing_pread(int fd, void *buffer, size_t bytes, off_t offset) {
    if (__atomic_fetch_add(&reads, 1, __ATOMIC_SEQ_CST) >= reads_before_fault) {
        errno = EIO;
        return -1;
    }
    return real->pread(fd, buffer, bytes, offset);
}

static mica_status index_with_reads(const char *directory, long count, mica_error *error) {
    real = mica_io_current();
    faulty = *real;
    faulty.pread = failing_pread;
    reads = 0;
    reads_before_fault = count;
    mica_io_install(&faulty);
    const mica_status status = run_index(TINY, directory, &job, error);
    mica_io_install(NULL);
    return status;
}

static void test_unreadable_source(void **state) {
    (void)state;
    const char *directory = scratch("unreadable");
    mica_error error;
    const uint64_t headers = 4 + 3 * 2; /* reads at opening, about */
    assert_int_equal(index_with_reads(directory, LONG_MAX, &error), MICA_OK);
    scratch_remove_tree(directory);
    assert_int_equal(index_with_reads(directory, (long)(headers + JOB_UNITS / 2), &error), MICA_IO);
    assert_non_null(strstr(error.message, "model"));
    resume_and_compare(directory);
}

/* ---- refused */

static void stop_after_20(const char *checkpoint, const char *directory) {
    uint64_t units = 20;
    mica_index_options options = job;
    mica_error error;
    options.progress = stop_at;
    options.progress_context = &units;
    assert_int_equal(run_index(checkpoint, directory, &options, &error), MICA_INTERRUPTED);
}

static void refuse(const char *checkpoint, const char *directory, const mica_index_options *options, const char *key) {
    mica_error error;
    const mica_status status = run_index(checkpoint, directory, options, &error);
    if (status != MICA_CONFLICT || !strstr(error.message, key))
        fail_msg("expected a conflict over %s, got %d: %s", key, status, error.message);
}

static void test_other_options_are_refused(void **state) {
    (void)state;
    const char *directory = scratch("options");
    stop_after_20(TINY, directory);
    mica_index_options other = job_resumed;
    other.features = 8;
    refuse(TINY, directory, &other, "options.features differs: it has 64, today's is 8");
    other = job_resumed;
    other.layers = "1";
    refuse(TINY, directory, &other, "options.layers");
    other = job_resumed;
    other.spectra = MICA_SPECTRA_UP;
    refuse(TINY, directory, &other, "options.spectra");
    other = job_resumed;
    other.full_spectrum = 0;
    refuse(TINY, directory, &other, "options.full_spectrum");
    resume_and_compare(directory); /* none of that did harm */
}

/* A copy of the checkpoint is the same source; one with another byte, config or tensor is not. */
static void test_other_sources_are_refused(void **state) {
    (void)state;
    const char *directory = scratch("sources"), *copy = scratch("copy");
    stop_after_20(TINY, directory);
    copy_directory(TINY, copy);

    uint64_t length;
    char *config = load(copy, "config.json", &length), *path = mica_path_join(copy, "config.json");
    char *newline = strrchr(config, '\n');
    assert_non_null(newline);
    *newline = ' '; /* the same JSON, other bytes */
    assert_int_equal(mica_file_replace(path, config, length, NULL), MICA_OK);
    refuse(copy, directory, &job_resumed, "source.config_sha256");
    mica_free(config);
    config = load(TINY, "config.json", &length);
    assert_int_equal(mica_file_replace(path, config, length, NULL), MICA_OK);
    mica_free(config);
    mica_free(path);

    /* One bit of the first matrix that the journal has. */
    static const char shard[] = "model-00001-of-00003.safetensors";
    uint64_t shard_bytes, header;
    char *bytes = load(copy, shard, &shard_bytes);
    memcpy(&header, bytes, sizeof header);
    json_t *tensors = NULL;
    assert_int_equal(mica_json_parse(shard, bytes + 8, header, &tensors, NULL), MICA_OK);
    const json_t *offsets = json_object_get(json_object_get(tensors, "model.layers.0.mlp.gate_proj.weight"), "data_offsets");
    assert_non_null(offsets);
    bytes[8 + header + (uint64_t)json_integer_value(json_array_get(offsets, 0))] ^= 1;
    path = mica_path_join(copy, shard);
    assert_int_equal(mica_file_replace(path, bytes, shard_bytes, NULL), MICA_OK);
    refuse(copy, directory, &job_resumed, "model.layers.0.mlp.gate_proj.weight");
    bytes[8 + header + (uint64_t)json_integer_value(json_array_get(offsets, 0))] ^= 1;
    assert_int_equal(mica_file_replace(path, bytes, shard_bytes, NULL), MICA_OK);
    json_decref(tensors);
    mica_free(bytes);
    mica_free(path);

    must_index(copy, directory, &job_resumed); /* the same bytes from elsewhere, newer */
    assert_same_tree(directory, reference());
}

/* The same structure, other weights: a finished vindex is not said to be theirs. Nor is one called finished that has lost a file. */
static void test_finished_is_looked_at(void **state) {
    (void)state;
    const char *directory = scratch("looked-at"), *copy = scratch("tuned");
    must_index(TINY, directory, &job);
    must_index(TINY, directory, &job_resumed);
    copy_directory(TINY, copy);
    static const char shard[] = "model-00001-of-00003.safetensors";
    uint64_t length, header;
    char *bytes = load(copy, shard, &length), *path = mica_path_join(copy, shard);
    memcpy(&header, bytes, sizeof header);
    for (uint64_t i = 8 + header; i < length; i += 1000)
        bytes[i] ^= 1;
    assert_int_equal(mica_file_replace(path, bytes, length, NULL), MICA_OK);
    refuse(copy, directory, &job_resumed, "another source: tensor model.layers.");
    mica_free(bytes);
    mica_free(path);

    path = mica_path_join(directory, "gate_vectors.bin");
    bytes = load(directory, "gate_vectors.bin", &length);
    assert_int_equal(truncate(path, (off_t)length - 4), 0);
    mica_error error;
    assert_int_equal(run_index(TINY, directory, &job_resumed, &error), MICA_CORRUPT);
    assert_non_null(strstr(error.message, "gate_vectors.bin: expected"));
    assert_int_equal(unlink(path), 0);
    assert_int_not_equal(run_index(TINY, directory, &job_resumed, &error), MICA_OK);
    assert_non_null(strstr(error.message, "gate_vectors.bin"));
    assert_int_equal(mica_file_replace(path, bytes, length, NULL), MICA_OK);
    must_index(TINY, directory, &job_resumed);
    mica_free(bytes);
    mica_free(path);
}

/* A file of the unfinished vindex that is gone or cut is a sentence, not garbage. */
static void test_damaged_unfinished(void **state) {
    (void)state;
    const char *directory = scratch("damaged");
    stop_after_20(TINY, directory);
    char *path = mica_path_join(directory, "gate_vectors.bin");
    assert_int_equal(truncate(path, 1000), 0);
    refuse(TINY, directory, &job_resumed, "gate_vectors.bin: expected");
    unlink(path);
    refuse(TINY, directory, &job_resumed, "gate_vectors.bin: expected");
    mica_free(path);
}

/* Allocations fail in turn: NO_MEMORY, no leak (under ASan), and what was done can be resumed. */
static void test_no_memory(void **state) {
    (void)state;
    const mica_index_options small = {.layers = "0", .threads = 1}, small_resumed = {.layers = "0", .threads = 1, .resume = true};
    must_index(TINY, scratch("small"), &small);
    const char *directory = scratch("memory");
    mica_error error;
    for (no_memory trial = {.stride = 24}; no_memory_next(&trial);) {
        char *text = NULL, *json = NULL;
        no_memory_begin(&trial);
        const mica_status status = mica_index(TINY, directory, &small, &text, &json, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        mica_string_free(text);
        mica_string_free(json);
        must_index(TINY, directory, &small_resumed);
        assert_same_tree(directory, scratch("small"));
        scratch_remove_tree(directory);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stopped_and_resumed),       cmocka_unit_test(test_resume_on_nothing_and_on_finished),
        cmocka_unit_test(test_disk_full),                 cmocka_unit_test(test_disk_failing),
        cmocka_unit_test(test_unreadable_source),         cmocka_unit_test(test_other_options_are_refused),
        cmocka_unit_test(test_other_sources_are_refused), cmocka_unit_test(test_damaged_unfinished),
        cmocka_unit_test(test_finished_is_looked_at),     cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
