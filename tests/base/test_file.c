/* Files as they should work; how they fail is in tests/faults. */
#include <errno.h>
#include <fcntl.h>

#include "base/scratch.h"

static mica_error error;

static void writes_and_reads_back(void **state) {
    (void)state;
    mica_file *file = NULL;
    char back[16] = {0};
    assert_int_equal(mica_file_create(scratch("a"), &file, &error), MICA_OK);
    assert_int_equal(mica_file_bytes(file), 0);
    assert_int_equal(mica_file_write(file, 10, "hello", 5, &error), MICA_OK);
    assert_int_equal(mica_file_bytes(file), 15);
    assert_int_equal(mica_file_write(file, 0, "ab", 2, &error), MICA_OK);
    assert_int_equal(mica_file_bytes(file), 15);
    assert_int_equal(mica_file_read(file, 0, back, 15, &error), MICA_OK);
    assert_memory_equal(back, "ab\0\0\0\0\0\0\0\0hello", 15);
    assert_int_equal(mica_file_truncate(file, 3, &error), MICA_OK);
    assert_int_equal(mica_file_bytes(file), 3);
    assert_int_equal(mica_file_sync(file, &error), MICA_OK);
    assert_string_equal(mica_file_path(file), scratch("a"));
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    assert_int_equal(mica_file_open_update(scratch("a"), &file, &error), MICA_OK);
    assert_int_equal(mica_file_bytes(file), 3);
    assert_int_equal(mica_file_write(file, 3, "c", 1, &error), MICA_OK);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    char *bytes = NULL;
    uint64_t length = 0;
    assert_int_equal(mica_file_load(scratch("a"), 4, &bytes, &length, &error), MICA_OK);
    assert_int_equal(length, 4);
    assert_memory_equal(bytes, "ab\0c", 5);
    mica_free(bytes);
    assert_int_equal(mica_file_close(NULL, &error), MICA_OK);
}

static void what_is_not_there_is_said(void **state) {
    (void)state;
    mica_file *file = NULL;
    char back[8], expected[600];
    scratch_write("short", "12345", 5);
    assert_int_equal(mica_file_open(scratch("short"), false, &file, &error), MICA_OK);
    assert_int_equal(mica_file_read(file, 2, back, 8, &error), MICA_IO);
    snprintf(expected, sizeof expected, "%s: short read at offset 2: expected 8 bytes, got 3", scratch("short"));
    assert_string_equal(error.message, expected);
    assert_int_equal(mica_file_read(file, UINT64_MAX - 3, back, 8, &error), MICA_BAD_INPUT);
    assert_int_equal(mica_file_read(file, INT64_MAX, back, 0, &error), MICA_BAD_INPUT);
    assert_int_equal(mica_file_write(file, 0, "x", 1, &error), MICA_IO); /* opened for reading */
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    assert_int_equal(mica_file_open(scratch("none"), false, &file, &error), MICA_IO);
    snprintf(expected, sizeof expected, "%s: cannot open: No such file or directory", scratch("none"));
    assert_string_equal(error.message, expected);
    assert_int_equal(mica_file_create(scratch("none/x"), &file, &error), MICA_IO);
    assert_non_null(strstr(error.message, "cannot create"));
}

static void only_regular_files_open(void **state) {
    (void)state;
    mica_file *file = NULL;
    assert_int_equal(mkdir(scratch("directory"), 0777), 0);
    assert_int_equal(mkfifo(scratch("pipe"), 0666), 0); /* opening it the plain way would wait for a writer for ever */
    assert_int_equal(symlink("nowhere", scratch("dangling")), 0);
    assert_int_equal(symlink("loop", scratch("loop")), 0);
    assert_int_equal(symlink("short", scratch("link")), 0);
    scratch_write("short", "12345", 5);
    assert_int_equal(mica_file_open(scratch("directory"), true, &file, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "expected a regular file, got a directory"));
    assert_int_equal(mica_file_open_update(scratch("directory"), &file, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "expected a regular file, got a directory"));
    assert_int_equal(mica_file_open(scratch("pipe"), false, &file, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "got a pipe"));
    assert_int_equal(mica_file_open("/dev/null", false, &file, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "got a device"));
    assert_int_equal(mica_file_open(scratch("dangling"), false, &file, &error), MICA_IO);
    assert_int_equal(mica_file_open(scratch("loop"), false, &file, &error), MICA_IO);
    assert_int_equal(mica_file_open(scratch("link"), true, &file, &error), MICA_OK);
    assert_int_equal(mica_file_bytes(file), 5);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
}

/* Every offset near a page's edges, direct and buffered: the same bytes. */
static void windows_hold_the_wanted_bytes(void **state) {
    (void)state;
    enum { LENGTH = 3 * 4096 + 700 };
    static uint8_t bytes[LENGTH];
    for (size_t i = 0; i < LENGTH; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 256);
    scratch_write("window", bytes, LENGTH);
    static const uint64_t marks[] = {0, 1, 511, 512, 4095, 4096, 4097, 8191, 8192, 12287, 12288, LENGTH - 1, LENGTH};
    for (int direct = 0; direct <= 1; direct++) {
        mica_file *file = NULL;
        assert_int_equal(mica_file_open(scratch("window"), direct != 0, &file, &error), MICA_OK);
        for (size_t from = 0; from < sizeof marks / sizeof marks[0]; from++) {
            for (size_t to = from; to < sizeof marks / sizeof marks[0]; to++) {
                uint64_t wanted = marks[to] - marks[from], window = mica_file_window_bytes(wanted);
                uint8_t *buffer = mica_alloc_aligned(window);
                const uint8_t *data = NULL;
                assert_int_equal(mica_file_read_window(file, marks[from], wanted, buffer, &data, &error), MICA_OK);
                assert_true(data >= buffer && data + wanted <= buffer + window);
                assert_memory_equal(data, bytes + marks[from], wanted);
                mica_free_aligned(buffer);
            }
        }
        uint8_t *buffer = mica_alloc_aligned(mica_file_window_bytes(800));
        const uint8_t *data = NULL;
        assert_int_equal(mica_file_read_window(file, LENGTH - 500, 800, buffer, &data, &error), MICA_IO);
        assert_non_null(strstr(error.message, "short read at offset 12488: expected 800 bytes, got 500"));
        assert_null(data);
        assert_int_equal(mica_file_read_window(file, LENGTH + 5000, 1, buffer, &data, &error), MICA_IO);
        assert_non_null(strstr(error.message, "expected 1 bytes, got 0"));
        mica_free_aligned(buffer);
        assert_int_equal(mica_file_close(file, &error), MICA_OK);
    }
    assert_int_equal(mica_file_window_bytes(0), 4096);
    assert_int_equal(mica_file_window_bytes(2), 8192); /* the last byte of a page and the first of the next */
    assert_int_equal(mica_file_window_bytes(4097), 8192);
    assert_int_equal(mica_file_window_bytes(4098), 12288);
    assert_true(mica_file_window_bytes(UINT64_MAX) == UINT64_MAX);
}

static void replacement_is_whole(void **state) {
    (void)state;
    char *bytes = NULL;
    uint64_t length;
    scratch_write("doc", "old text", 8);
    assert_int_equal(mica_file_replace(scratch("doc"), "new", 3, &error), MICA_OK);
    assert_int_equal(mica_file_load(scratch("doc"), 100, &bytes, &length, &error), MICA_OK);
    assert_string_equal(bytes, "new");
    mica_free(bytes);
    assert_false(mica_path_exists(scratch("doc.partial")));
    assert_int_equal(mica_file_replace(scratch("nowhere/doc"), "new", 3, &error), MICA_IO);
    assert_int_equal(mica_file_replace(scratch("directory"), "new", 3, &error), MICA_IO); /* a directory stays one */
    assert_true(mica_path_is_directory(scratch("directory")));
    assert_false(mica_path_exists(scratch("directory.partial")));
    assert_int_equal(mica_file_rename(scratch("doc"), scratch("doc2"), &error), MICA_OK);
    assert_true(mica_path_exists(scratch("doc2")) && !mica_path_exists(scratch("doc")));
    assert_int_equal(mica_file_rename(scratch("doc"), scratch("doc2"), &error), MICA_IO);
    assert_int_equal(mica_file_remove(scratch("doc2"), &error), MICA_OK);
    assert_int_equal(mica_file_remove(scratch("doc2"), &error), MICA_OK);
    assert_int_equal(chdir(scratch_directory), 0); /* a name without a directory */
    assert_int_equal(mica_file_replace("plain", "new", 3, &error), MICA_OK);
    assert_true(mica_path_exists(scratch("plain")));
}

static void directories(void **state) {
    (void)state;
    char **names = NULL;
    uint64_t count = 9;
    assert_int_equal(mica_directory_create(scratch("list"), &error), MICA_OK);
    assert_int_equal(mica_directory_create(scratch("list"), &error), MICA_OK);
    assert_int_equal(mica_directory_create(scratch("a/b/c"), &error), MICA_IO);
    assert_int_equal(mica_directory_create(scratch("short"), &error), MICA_IO); /* a file is in the way */
    assert_non_null(strstr(error.message, "File exists"));
    assert_int_equal(mica_directory_list(scratch("list"), &names, &count, &error), MICA_OK);
    assert_int_equal(count, 0);
    mica_free(names);
    static const char *const sorted[] = {".hidden", "B", "a", "a-", "a.b", "ab", "\xc3\xa9"};
    for (size_t i = 0; i < 7; i++) {
        char name[64];
        snprintf(name, sizeof name, "list/%s", sorted[(i * 3) % 7]);
        scratch_write(name, "", 0);
    }
    assert_int_equal(mica_directory_list(scratch("list"), &names, &count, &error), MICA_OK);
    assert_int_equal(count, 7);
    for (size_t i = 0; i < 7; i++) {
        char name[64];
        assert_string_equal(names[i], sorted[i]);
        snprintf(name, sizeof name, "list/%s", names[i]);
        unlink(scratch(name));
        mica_free(names[i]);
    }
    mica_free(names);
    assert_int_equal(mica_directory_list(scratch("absent"), &names, &count, &error), MICA_IO);
    assert_non_null(strstr(error.message, "absent"));
}

/* Aligned or not, past the page cache or through it: the same bytes. */
static void test_direct_writes(void **state) {
    (void)state;
    uint8_t *bytes = mica_alloc_aligned(3 * 4096), back[3 * 4096 + 5];
    mica_file *file = NULL;
    for (int i = 0; i < 3 * 4096; i++)
        bytes[i] = (uint8_t)(i * 7);
    assert_int_equal(mica_file_create(scratch("direct"), &file, &error), MICA_OK);
    mica_file_write_directly(file);
    assert_int_equal(mica_file_write(file, 0, bytes, 2 * 4096, &error), MICA_OK);
    assert_int_equal(mica_file_write(file, 2 * 4096, bytes + 1, 4096, &error), MICA_OK); /* the buffer is off the grid */
    assert_int_equal(mica_file_write(file, 3 * 4096, bytes, 5, &error), MICA_OK);
    assert_int_equal(mica_file_write(file, 4096, bytes, 4096, &error), MICA_OK);
    assert_int_equal(mica_file_bytes(file), 3 * 4096 + 5);
    assert_int_equal(mica_file_sync(file, &error), MICA_OK);
    assert_int_equal(mica_file_read(file, 0, back, sizeof back, &error), MICA_OK);
    assert_memory_equal(back, bytes, 4096);
    assert_memory_equal(back + 4096, bytes, 4096);
    assert_memory_equal(back + 2 * 4096, bytes + 1, 4096);
    assert_memory_equal(back + 3 * 4096, bytes, 5);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    mica_free_aligned(bytes);
}

static void test_lock(void **state) {
    (void)state;
    int lock = -1, second = -1;
    assert_int_equal(mica_path_lock(scratch_directory, "busy", &lock, &error), MICA_OK);
    assert_true(lock >= 0);
    assert_int_equal(mica_path_lock(scratch_directory, "busy", &second, &error), MICA_CONFLICT);
    assert_non_null(strstr(error.message, ": busy"));
    mica_path_unlock(lock);
    assert_int_equal(mica_path_lock(scratch_directory, "busy", &second, &error), MICA_OK);
    mica_path_unlock(second);
    mica_path_unlock(-1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_direct_writes),
        cmocka_unit_test(test_lock),
        cmocka_unit_test(writes_and_reads_back),         cmocka_unit_test(what_is_not_there_is_said),
        cmocka_unit_test(only_regular_files_open),       cmocka_unit_test(windows_hold_the_wanted_bytes),
        cmocka_unit_test(replacement_is_whole),          cmocka_unit_test(directories),
    };
    return cmocka_run_group_tests_name("file", tests, scratch_make, scratch_remove);
}
