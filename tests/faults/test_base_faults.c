/* The base under faults: every system call fails in turn, reads and writes come short, the disk is full, memory runs out at
 * every allocation. After each: the right status, a sentence that names the file, no half file, no leaked descriptor. */
#include "base/hash.h"
#include "base/journal.h"
#include "base/json.h"
#include "base/no_memory.h"
#include "base/scratch.h"
#include "base/threads.h"
#include "faults/faulty_io.h"

static mica_error error;

static int install(void **state) {
    (void)state;
    memset(&fault, 0, sizeof fault);
    mica_io_install(&faulty);
    return 0;
}

static int uninstall(void **state) {
    (void)state;
    mica_memory_fail_after(0);
    mica_io_install(NULL);
    return fault.open_files == 0 ? 0 : -1; /* nothing stays open, whatever failed */
}

static void arm(call_kind kind, uint32_t nth, int failure) {
    fault.kind = kind;
    fault.countdown = nth;
    fault.failure = failure;
}

static void mentions(const char *text) {
    if (!strstr(error.message, text))
        fail_msg("\"%s\" is not in \"%s\"", text, error.message);
}

static void holds(const char *name, const char *text) {
    char *bytes = NULL;
    uint64_t length = 0;
    assert_int_equal(mica_file_load(scratch(name), 1 << 20, &bytes, &length, &error), MICA_OK);
    assert_int_equal(length, strlen(text));
    assert_string_equal(bytes, text);
    mica_free(bytes);
}

/* ---- reading */

static void interrupted_and_partial_calls_go_on(void **state) {
    (void)state;
    fault.interrupt = true;
    fault.part = 3;
    mica_file *file = NULL;
    assert_int_equal(mica_file_create(scratch("doc"), &file, &error), MICA_OK);
    assert_int_equal(mica_file_write(file, 0, "0123456789abcdefXY", 18, &error), MICA_OK);
    assert_int_equal(mica_file_truncate(file, 16, &error), MICA_OK);
    assert_int_equal(mica_file_sync(file, &error), MICA_OK);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    holds("doc", "0123456789abcdef");
    assert_true(fault.calls[PREAD] >= 6 && fault.calls[PWRITE] >= 6);
}

static void a_file_that_shrinks_is_a_short_read(void **state) {
    (void)state;
    char expected[600], back[10];
    mica_file *file = NULL;
    scratch_write("shrinks", "0123456789", 10);
    assert_int_equal(mica_file_open(scratch("shrinks"), false, &file, &error), MICA_OK);
    assert_int_equal(truncate(scratch("shrinks"), 4), 0);
    assert_int_equal(mica_file_read(file, 1, back, 9, &error), MICA_IO);
    snprintf(expected, sizeof expected, "%s: short read at offset 1: expected 9 bytes, got 3", scratch("shrinks"));
    assert_string_equal(error.message, expected);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
}

static void unreadable_sectors(void **state) {
    (void)state;
    static uint8_t bytes[20000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 31 >> 3);
    scratch_write("disk", bytes, sizeof bytes);
    mica_file *file = NULL;
    uint8_t *buffer = mica_alloc_aligned(mica_file_window_bytes(sizeof bytes));
    const uint8_t *data = NULL;
    assert_int_equal(mica_file_open(scratch("disk"), true, &file, &error), MICA_OK);

    fault.no_direct_read = true; /* a file system that takes O_DIRECT and then refuses to read */
    assert_int_equal(mica_file_read_window(file, 5000, 9000, buffer, &data, &error), MICA_OK);
    assert_memory_equal(data, bytes + 5000, 9000);
    fault.no_direct_read = false;

    fault.part = 4096; /* page by page, and interrupted */
    fault.interrupt = true;
    memset(buffer, 0, mica_file_window_bytes(sizeof bytes));
    assert_int_equal(mica_file_read_window(file, 5000, 15000, buffer, &data, &error), MICA_OK);
    assert_memory_equal(data, bytes + 5000, 15000);
    fault.interrupt = false;

    for (uint32_t nth = 1; nth <= 3; nth++) {
        arm(PREAD, nth, EIO);
        fault.forever = true;
        data = NULL;
        assert_int_equal(mica_file_read_window(file, 5000, 15000, buffer, &data, &error), MICA_IO);
        mentions("disk: cannot read 15000 bytes at offset 5000: Input/output error");
        assert_null(data);
        fault.forever = false;
    }
    arm(NONE, 0, 0);
    fault.part = 0;
    arm(PREAD, 1, EIO);
    assert_int_equal(mica_file_read(file, 100, buffer, 200, &error), MICA_IO);
    mentions("disk: cannot read 200 bytes at offset 100: Input/output error");
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    mica_free_aligned(buffer);
}

static void opening_fails(void **state) {
    (void)state;
    static const struct {
        call_kind kind;
        int failure;
        mica_status status;
        const char *message;
    } rows[] = {
        {OPEN, EACCES, MICA_IO, "doc: cannot open: Permission denied"},
        {OPEN, EMFILE, MICA_IO, "doc: cannot open: Too many open files"},
        {OPEN, ENOMEM, MICA_NO_MEMORY, "doc: cannot open: Cannot allocate memory"},
        {FSTAT, EIO, MICA_IO, "doc: cannot get its size: Input/output error"},
        {PREAD, EIO, MICA_IO, "doc: cannot read 5 bytes at offset 0: Input/output error"},
        {PREAD, 0, MICA_IO, "doc: short read at offset 0: expected 5 bytes, got 0"},
    };
    scratch_write("doc", "12345", 5);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *bytes = NULL;
        uint64_t length = 0;
        arm(rows[i].kind, 1, rows[i].failure);
        assert_int_equal(mica_file_load(scratch("doc"), 100, &bytes, &length, &error), rows[i].status);
        mentions(rows[i].message);
        assert_null(bytes);
        assert_int_equal(fault.open_files, 0);
    }
    mica_file *file = NULL;
    char back[5];
    arm(OPEN, 2, EINVAL); /* the second, with O_DIRECT: reads are buffered then */
    assert_int_equal(mica_file_open(scratch("doc"), true, &file, &error), MICA_OK);
    assert_int_equal(mica_file_read(file, 0, back, 5, &error), MICA_OK);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
}

/* ---- writing */

/* Whatever call fails during a replacement, the old text or the new one is there, whole, and nothing beside it. */
static void a_replacement_that_fails_leaves_the_old(void **state) {
    (void)state;
    static const struct {
        call_kind kind;
        uint32_t nth;
        int failure;
        const char *message;
        bool replaced;
    } rows[] = {
        {OPEN, 1, EROFS, "doc.partial: cannot create: Read-only file system", false},
        {FSTAT, 1, EIO, "doc.partial: cannot get its size", false},
        {PWRITE, 1, ENOSPC, "doc.partial: cannot write 8 bytes at offset 0: No space left on device", false},
        {PWRITE, 1, 0, "doc.partial: short write at offset 0: expected 8 bytes, got 0", false},
        {FSYNC, 1, EIO, "doc.partial: cannot flush it to the disk: Input/output error", false},
        {CLOSE, 1, EIO, "doc.partial: cannot close it: Input/output error", false},
        {RENAME, 1, EXDEV, "doc.partial: cannot rename it to", false},
        {OPEN, 2, EACCES, "cannot open the directory", true},
        {FSYNC, 2, EIO, "cannot flush the directory to the disk", true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        scratch_write("doc", "old", 3);
        arm(rows[i].kind, rows[i].nth, rows[i].failure);
        assert_int_equal(mica_file_replace(scratch("doc"), "new text", 8, &error), MICA_IO);
        arm(NONE, 0, 0);
        mentions(rows[i].message);
        holds("doc", rows[i].replaced ? "new text" : "old");
        assert_false(mica_path_exists(scratch("doc.partial")));
        assert_int_equal(fault.open_files, 0);
    }
    scratch_write("doc", "old", 3);
    arm(FSYNC, 2, EINVAL); /* a file system that cannot sync directories */
    assert_int_equal(mica_file_replace(scratch("doc"), "new text", 8, &error), MICA_OK);
    arm(UNLINK, 1, EACCES);
    assert_int_equal(mica_file_remove(scratch("doc"), &error), MICA_IO);
    mentions("doc: cannot remove it: Permission denied");
}

static void the_disk_fills_up(void **state) {
    (void)state;
    for (uint64_t room = 1; room < 20; room++) {
        fault.disk_bytes = room;
        scratch_write("doc", "old", 3);
        mica_status status = mica_file_replace(scratch("doc"), "0123456789", 10, &error);
        fault.disk_bytes = 0;
        if (room >= 10) {
            assert_int_equal(status, MICA_OK);
            holds("doc", "0123456789");
        } else {
            assert_int_equal(status, MICA_IO);
            mentions("doc.partial: cannot write 10 bytes at offset 0: No space left on device");
            holds("doc", "old");
        }
    }
    mica_file *file = NULL;
    assert_int_equal(mica_file_create(scratch("doc"), &file, &error), MICA_OK);
    arm(FTRUNCATE, 1, ENOSPC);
    assert_int_equal(mica_file_truncate(file, 100, &error), MICA_IO);
    mentions("doc: cannot set its size to 100 bytes: No space left on device");
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
}

/* ---- the journal */

static mica_status count_record(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *failure) {
    (void)failure;
    uint32_t *count = context;
    assert_true(kind == *count || kind == 7);
    assert_true(bytes == 4 && memcmp(payload, "work", 4) == 0);
    (*count)++;
    return MICA_OK;
}

static uint32_t replay_count(void) {
    mica_journal *journal = NULL;
    uint32_t count = 0;
    assert_int_equal(mica_journal_open(scratch("journal"), count_record, &count, &journal, &error), MICA_OK);
    mica_journal_close(journal);
    return count;
}

/* The disk fills within the third record, at each of its bytes; the truncation that cleans up works or fails too. After
 * that the job goes on with room again, or is opened anew: either way the two records before and the new ones count. */
static void a_journal_on_a_full_disk(void **state) {
    (void)state;
    for (uint64_t room = 0; room < 20; room++) {
        for (int variant = 0; variant < 4; variant++) {
            bool truncation_fails = variant & 1, goes_on = variant & 2;
            mica_journal *journal = NULL;
            assert_int_equal(mica_journal_create(scratch("journal"), "work", 4, &journal, &error), MICA_OK);
            assert_int_equal(mica_journal_append(journal, 1, "work", 4, &error), MICA_OK);
            fault.disk_bytes = 8 + 2 * 20 + room;
            if (truncation_fails)
                arm(FTRUNCATE, 1, EIO);
            assert_int_equal(mica_journal_append(journal, 2, "work", 4, &error), MICA_IO);
            mentions("journal: cannot write 20 bytes at offset 48: No space left on device");
            fault.disk_bytes = 0;
            arm(NONE, 0, 0);
            if (goes_on)
                assert_int_equal(mica_journal_append(journal, 2, "work", 4, &error), MICA_OK);
            mica_journal_close(journal);
            assert_int_equal(replay_count(), goes_on ? 3 : 2);
        }
    }
}

static void a_journal_whose_calls_fail(void **state) {
    (void)state;
    mica_journal *journal = NULL;
    static const call_kind creating[] = {OPEN, FSTAT, PWRITE, FSYNC, CLOSE, RENAME};
    for (size_t i = 0; i < sizeof creating / sizeof creating[0]; i++) {
        arm(creating[i], 1, EIO);
        assert_int_equal(mica_journal_create(scratch("unborn"), "work", 4, &journal, &error), MICA_IO);
        mentions("unborn");
        assert_false(mica_path_exists(scratch("unborn")));
        assert_int_equal(fault.open_files, 0);
    }
    arm(NONE, 0, 0);
    assert_int_equal(mica_journal_create(scratch("journal"), "work", 4, &journal, &error), MICA_OK);
    assert_int_equal(mica_journal_append(journal, 1, "work", 4, &error), MICA_OK);
    arm(FSYNC, 1, EIO);
    assert_int_equal(mica_journal_sync(journal, &error), MICA_IO);
    mentions("journal: cannot flush it to the disk");
    mica_journal_close(journal);

    /* Reading it fails at each call in turn: an unreadable disk is an error, not the end of the journal. */
    uint32_t reads = 0;
    for (uint32_t nth = 1;; nth++) {
        uint32_t count = 0;
        arm(PREAD, nth, EIO);
        mica_status status = mica_journal_open(scratch("journal"), count_record, &count, &journal, &error);
        arm(NONE, 0, 0);
        if (status == MICA_OK) {
            assert_int_equal(count, 2);
            mica_journal_close(journal);
            break;
        }
        assert_int_equal(status, MICA_IO);
        mentions("journal: cannot read");
        reads++;
    }
    assert_true(reads >= 3);
    assert_int_equal(replay_count(), 2);

    FILE *torn = fopen(scratch("journal"), "ab");
    fwrite("torn", 1, 4, torn);
    fclose(torn);
    uint32_t count = 0;
    arm(FTRUNCATE, 1, EROFS); /* a tail that cannot be dropped must not be appended to in silence */
    assert_int_equal(mica_journal_open(scratch("journal"), count_record, &count, &journal, &error), MICA_IO);
    mentions("journal: cannot set its size to 48 bytes");
    assert_int_equal(replay_count(), 2);
}

/* ---- out of memory */

typedef struct scenario {
    const char *name;
    mica_status (*run)(void); /* cleans up after itself */
} scenario;

static mica_status load_json(void) {
    json_t *object = NULL;
    mica_status status = mica_json_load(scratch("doc.json"), 1000, &object, &error);
    json_decref(object);
    return status;
}

static mica_status replace_file(void) {
    return mica_file_replace(scratch("replaced"), "text", 4, &error);
}

static mica_status list_directory(void) {
    char **names = NULL;
    uint64_t count = 0;
    mica_status status = mica_directory_list(scratch_directory, &names, &count, &error);
    for (uint64_t i = 0; i < count; i++)
        mica_free(names[i]);
    mica_free(names);
    return status;
}

static mica_status create_directory(void) {
    rmdir(scratch("made"));
    return mica_directory_create(scratch("made"), &error);
}

static mica_status hash_file(void) {
    uint8_t digest[MICA_SHA256_BYTES];
    return mica_sha256_of_file(scratch("doc.json"), digest, NULL, &error);
}

static mica_status open_direct(void) {
    mica_file *file = NULL;
    mica_status status = mica_file_open(scratch("doc.json"), true, &file, &error);
    mica_status closed = mica_file_close(file, &error);
    return status == MICA_OK ? closed : status;
}

static mica_status use_journal(void) {
    mica_journal *journal = NULL;
    uint32_t count = 0;
    static const char payload[300] = "a record longer than the text's first buffer";
    mica_status status = mica_journal_create(scratch("journal"), "work", 4, &journal, &error);
    if (status == MICA_OK)
        status = mica_journal_append(journal, 5, payload, sizeof payload, &error);
    mica_journal_close(journal);
    journal = NULL;
    if (status == MICA_OK)
        status = mica_journal_open(scratch("journal"), NULL, &count, &journal, &error);
    mica_journal_close(journal);
    return status;
}

static void nothing(void *context, uint32_t index) {
    (void)context;
    (void)index;
}

static mica_status start_threads(void) {
    mica_threads *threads = NULL;
    mica_status status = mica_threads_start(2, nothing, NULL, NULL, &threads, &error);
    mica_threads_join(threads);
    return status;
}

static void memory_runs_out_at_every_allocation(void **state) {
    (void)state;
    static const scenario scenarios[] = {
        {"load_json", load_json},           {"replace_file", replace_file},
        {"list_directory", list_directory}, {"create_directory", create_directory},
        {"hash_file", hash_file},           {"open_direct", open_direct},
        {"use_journal", use_journal},       {"start_threads", start_threads},
    };
    static const char json[] = "{\"a\": {\"bc\": [1, 2.5, \"text\", {\"d\": null}]}, \"e\": [[], [[]]]}";
    scratch_write("doc.json", json, sizeof json - 1);
    for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++) {
        for (no_memory trial = {0}; no_memory_next(&trial);) {
            error.message[0] = 0;
            no_memory_begin(&trial);
            const mica_status status = scenarios[i].run();
            no_memory_end(&trial, status, MICA_OK, &error);
            if (!trial.succeeded && !strstr(error.message, "out of memory"))
                fail_msg("%s: \"%s\"", scenarios[i].name, error.message);
        }
    }
    assert_false(mica_path_exists(scratch("replaced.partial")));
}

int main(void) {
#define FAULT_TEST(name) cmocka_unit_test_setup_teardown(name, install, uninstall)
    const struct CMUnitTest tests[] = {
        FAULT_TEST(interrupted_and_partial_calls_go_on),
        FAULT_TEST(a_file_that_shrinks_is_a_short_read),
        FAULT_TEST(unreadable_sectors),
        FAULT_TEST(opening_fails),
        FAULT_TEST(a_replacement_that_fails_leaves_the_old),
        FAULT_TEST(the_disk_fills_up),
        FAULT_TEST(a_journal_on_a_full_disk),
        FAULT_TEST(a_journal_whose_calls_fail),
        FAULT_TEST(memory_runs_out_at_every_allocation),
    };
    return cmocka_run_group_tests_name("base_faults", tests, scratch_make, scratch_remove);
}
