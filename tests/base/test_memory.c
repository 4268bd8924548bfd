/* Allocation: alignment, zeroing, checked products, and the fault seam. */
#include "base/memory.h"

#include <sys/wait.h>
#include <unistd.h>

#include "base/scratch.h"

static void nothing_is_still_something(void **state) {
    (void)state;
    void *pointers[] = {mica_malloc(0), mica_calloc(0, 8), mica_reallocarray(NULL, 0, 8), mica_alloc_aligned(0)};
    for (size_t i = 0; i < 4; i++)
        assert_non_null(pointers[i]);
    for (size_t i = 0; i < 3; i++)
        mica_free(pointers[i]);
    mica_free_aligned(pointers[3]);
    mica_free(NULL);
    mica_free_aligned(NULL);
}

static void products_are_checked(void **state) {
    (void)state;
    volatile size_t huge = SIZE_MAX / 2; /* volatile: or the compiler warns that this must fail */
    assert_null(mica_calloc(huge, 3));
    assert_null(mica_reallocarray(NULL, huge, 3));
    assert_null(mica_reallocarray(NULL, huge, 2)); /* no overflow, but more than a pointer difference can hold */
    assert_null(mica_malloc(huge + 1));
    assert_null(mica_alloc_aligned(SIZE_MAX - huge % 2));
    uint64_t result = 42;
    assert_false(mica_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &result));
    assert_false(mica_add_u64(UINT64_MAX, 1, &result));
    assert_int_equal(result, 42);
    assert_true(mica_mul_u64(UINT64_C(1) << 32, (UINT64_C(1) << 32) - 1, &result));
    assert_true(result == UINT64_MAX - (UINT64_C(1) << 32) + 1);
    assert_true(mica_add_u64(UINT64_MAX - 1, 1, &result) && result == UINT64_MAX);
}

static void aligned_memory_is_aligned_and_zero(void **state) {
    (void)state;
    static const struct {
        size_t bytes, alignment;
    } rows[] = {{1, 4096},
                {4097, 4096},
                {((size_t)4 << 20) - 1, 4096},
                {(size_t)4 << 20, (size_t)2 << 20},
                {((size_t)4 << 20) + 5, (size_t)2 << 20}};
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++) {
        for (int round = 0; round < 2; round++) { /* the second gets the dirtied pages of the first */
            unsigned char *bytes = mica_alloc_aligned(rows[row].bytes);
            assert_non_null(bytes);
            assert_int_equal((uintptr_t)bytes % rows[row].alignment, 0);
            unsigned char any = 0;
            for (size_t i = 0; i < rows[row].bytes; i++)
                any |= bytes[i];
            assert_int_equal(any, 0);
            memset(bytes, 0xa5, rows[row].bytes);
            mica_free_aligned(bytes);
        }
    }
}

static void copies_of_text(void **state) {
    (void)state;
    char *whole = mica_strdup("tensor"), *part = mica_strndup("tensor", 3), *short_one = mica_strndup("ab", 9);
    assert_string_equal(whole, "tensor");
    assert_string_equal(part, "ten");
    assert_string_equal(short_one, "ab");
    mica_free(whole);
    mica_free(part);
    mica_free(short_one);
}

static void the_nth_and_all_after_fail(void **state) {
    (void)state;
    mica_memory_fail_after(3);
    void *first = mica_malloc(1), *second = mica_calloc(1, 1), *third = mica_malloc(1), *fourth = mica_alloc_aligned(1);
    char *fifth = mica_strdup("x");
    void *sixth = mica_reallocarray(NULL, 1, 1);
    assert_int_equal(mica_memory_fail_after(0), 6);
    assert_non_null(first);
    assert_non_null(second);
    assert_null(third);
    assert_null(fourth);
    assert_null(fifth);
    assert_null(sixth);
    void *again = mica_malloc(1);
    assert_non_null(again);
    assert_int_equal(mica_memory_fail_after(0), 1);
    mica_free(first);
    mica_free(second);
    mica_free(again);
}

static void the_peak_is_known(void **state) {
    (void)state;
    size_t bytes = (size_t)24 << 20;
    char *block = mica_alloc_aligned(bytes);
    assert_non_null(block);
    memset(block, 1, bytes); /* untouched pages cost nothing */
    assert_true(mica_memory_peak_bytes() >= bytes);
    mica_free_aligned(block);
}

/* The program is started by one that has much in memory: that is not its own peak. */
static void the_peak_is_our_own(void **state) {
    (void)state;
    size_t bytes = (size_t)192 << 20;
    char *block = mica_alloc_aligned(bytes);
    assert_non_null(block);
    memset(block, 1, bytes);
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "test_memory", "peak", (char *)NULL);
        _exit(2);
    }
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    mica_free_aligned(block);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void put_file(const char *name, const char *text) {
    char command[1024];
    snprintf(command, sizeof command, "mkdir -p '%s/%.*s' && printf '%s' >'%s/%s'", scratch_directory, (int)(strrchr(name, '/') - name), name,
             text, scratch_directory, name);
    assert_int_equal(system(command), 0);
}

/* The limits of control groups, as the kernel shows them: both versions, those around, cached files that would go. */
static void control_groups_are_asked(void **state) {
    (void)state;
    char groups[512], root[512];
    snprintf(groups, sizeof groups, "%s/proc/cgroup", scratch_directory);
    snprintf(root, sizeof root, "%s/fs", scratch_directory);
    assert_true(mica_control_group_bytes(groups, root) == UINT64_MAX); /* there are none */
    /* version 2: a group without a limit in one with */
    put_file("proc/cgroup", "0::/slice/unit\\n");
    put_file("fs/slice/unit/memory.max", "max\\n");
    put_file("fs/slice/unit/memory.current", "700\\n");
    put_file("fs/slice/unit/memory.stat", "anon 1\\n");
    assert_true(mica_control_group_bytes(groups, root) == UINT64_MAX);
    put_file("fs/slice/memory.max", "5000\\n");
    put_file("fs/slice/memory.current", "4500\\n");
    put_file("fs/slice/memory.stat", "anon 1500\\ninactive_anon 9\\ninactive_file 2000\\nactive_file 1000\\n");
    assert_int_equal(mica_control_group_bytes(groups, root), 5000 - (4500 - 3000));
    put_file("fs/slice/unit/memory.max", "800\\n");
    assert_int_equal(mica_control_group_bytes(groups, root), 100);
    put_file("fs/slice/unit/memory.max", "600\\n");
    assert_int_equal(mica_control_group_bytes(groups, root), 0);
    /* version 1, beside version 2 without memory; in a container the path is the host's and cannot be seen: the root is meant */
    put_file("proc/cgroup", "9:name=systemd:/\\n4:cpu,memory:/docker/abc\\n0::/\\n");
    put_file("fs/memory/memory.limit_in_bytes", "9000\\n");
    put_file("fs/memory/memory.usage_in_bytes", "8000\\n");
    put_file("fs/memory/memory.stat", "inactive_file 1\\ntotal_inactive_file 500\\ntotal_active_file 250\\n");
    assert_int_equal(mica_control_group_bytes(groups, root), 9000 - (8000 - 750));
    put_file("fs/memory/docker/abc/memory.limit_in_bytes", "1000\\n");
    put_file("fs/memory/docker/abc/memory.usage_in_bytes", "400\\n");
    put_file("fs/memory/docker/abc/memory.stat", "total_inactive_file 0\\n");
    assert_int_equal(mica_control_group_bytes(groups, root), 600);
}

int main(int count, char **arguments) {
    if (count > 1) /* the child above */
        return strcmp(arguments[1], "peak") != 0 || mica_memory_peak_bytes() == 0 || mica_memory_peak_bytes() > (uint64_t)160 << 20;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_still_something), cmocka_unit_test(products_are_checked),
        cmocka_unit_test(aligned_memory_is_aligned_and_zero), cmocka_unit_test(copies_of_text),
        cmocka_unit_test(the_nth_and_all_after_fail), cmocka_unit_test(the_peak_is_known),
        cmocka_unit_test(the_peak_is_our_own), cmocka_unit_test(control_groups_are_asked),
    };
    return cmocka_run_group_tests_name("memory", tests, scratch_make, scratch_remove);
}
