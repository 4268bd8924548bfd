/* A set of files under partial names: whole, or not there; resumed after a kill at each step; refused where what is left is another
 * job's. */
#include "base/no_memory.h"
#include "base/partial_files.h"

#include "base/scratch.h"

static mica_error error;

static mica_partial_file *three(uint64_t bytes) {
    static const char *const names[] = {"one", "two", "three"};
    mica_partial_file *files = mica_calloc(3, sizeof *files);
    for (int i = 0; files && i < 3; i++)
        files[i] = (mica_partial_file){mica_strdup(scratch(names[i])), bytes, "head", 4};
    return files;
}

static void expect_content(const char *name, const char *content) {
    char *bytes = NULL;
    uint64_t length;
    assert_int_equal(mica_file_load(scratch(name), 100, &bytes, &length, &error), MICA_OK);
    assert_int_equal(length, 8);
    assert_memory_equal(bytes, content, 8);
    mica_free(bytes);
}

static void remove_all(void) {
    static const char *const names[] = {"one", "two", "three", "one.partial", "two.partial", "three.partial"};
    for (size_t i = 0; i < 6; i++)
        unlink(scratch(names[i]));
}

static void test_whole_or_not_there(void **state) {
    (void)state;
    mica_partial_files *set;
    assert_int_equal(mica_partial_files_open(three(8), 3, true, &set, &error), MICA_OK);
    assert_int_equal(mica_partial_files_write(set, 1, 4, "data", 4, &error), MICA_OK);
    assert_int_equal(mica_partial_files_write(set, 1, 5, "data", 4, &error), MICA_FAILED);
    assert_int_equal(mica_partial_files_write(set, 3, 0, "d", 1, &error), MICA_FAILED);
    assert_int_equal(mica_partial_files_write(set, 0, UINT64_MAX, "d", 2, &error), MICA_FAILED);
    assert_int_equal(mica_partial_files_sync(set, &error), MICA_OK);
    mica_partial_files_close(set); /* as a kill */
    assert_false(mica_path_exists(scratch("one")) || mica_path_exists(scratch("two")) || mica_path_exists(scratch("three")));
    assert_int_equal(mica_partial_files_open(three(8), 3, false, &set, &error), MICA_OK);
    assert_int_equal(mica_partial_files_write(set, 0, 4, "more", 4, &error), MICA_OK);
    assert_int_equal(mica_partial_files_finish(set, &error), MICA_OK);
    expect_content("one", "headmore");
    expect_content("two", "headdata");
    expect_content("three", "head\0\0\0\0");
    assert_false(mica_path_exists(scratch("one.partial")));
    /* killed between two renamings */
    assert_int_equal(rename(scratch("one"), scratch("one.partial")), 0);
    assert_int_equal(mica_partial_files_open(three(8), 3, false, &set, &error), MICA_OK);
    assert_int_equal(mica_partial_files_write(set, 2, 4, "late", 4, &error), MICA_FAILED);
    assert_int_equal(mica_partial_files_finish(set, &error), MICA_OK);
    expect_content("one", "headmore");
    remove_all();
}

static void test_what_is_left_of_another_job(void **state) {
    (void)state;
    mica_partial_files *set = NULL;
    assert_int_equal(mica_partial_files_open(three(8), 3, false, &set, &error), MICA_IO); /* nothing is left */
    assert_int_equal(mica_partial_files_open(three(8), 3, true, &set, &error), MICA_OK);
    mica_partial_files_close(set);
    assert_int_equal(mica_partial_files_open(three(9), 3, false, &set, &error), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "one.partial: expected 9 bytes"));
    scratch_write("two.partial", "HEADdata", 8);
    assert_int_equal(mica_partial_files_open(three(8), 3, false, &set, &error), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "two.partial: expected the header of this job"));
    remove_all();
}

static void test_without_memory(void **state) {
    (void)state;
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_partial_file *files = three(8);
        mica_partial_files *set = NULL;
        no_memory_begin(&trial);
        mica_status status = mica_partial_files_open(files, 3, true, &set, &error);
        if (status == MICA_OK)
            status = mica_partial_files_finish(set, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        if (mica_path_exists(scratch("one"))) /* the one that a reader opens: then all are whole */
            assert_true(mica_path_exists(scratch("two")) && mica_path_exists(scratch("three")));
        remove_all();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_whole_or_not_there), cmocka_unit_test(test_what_is_left_of_another_job),
                                       cmocka_unit_test(test_without_memory)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
