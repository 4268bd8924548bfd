/* Choosing the instruction set. The detection is compared with what the kernel lists, where it lists it. */
#include "base/cpu.h"

#include <sys/wait.h>

#include "base/scratch.h"

static bool kernel_lists(const char *const *flags) {
    static char line[16384];
    FILE *file = fopen("/proc/cpuinfo", "r");
    bool all = false;
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "flags", 5) == 0) {
            line[strcspn(line, "\n")] = ' ';
            all = true;
            for (; *flags; flags++) {
                char word[32];
                snprintf(word, sizeof word, " %s ", *flags);
                all = all && strstr(line, word);
            }
            break;
        }
    }
    if (file)
        fclose(file);
    return all;
}

static void detection_agrees_with_the_kernel(void **state) {
    (void)state;
    static const char *const avx2[] = {"avx2", "fma", "f16c", NULL};
    static const char *const avx512[] = {"avx2",     "fma",      "f16c",       "avx512f",     "avx512bw",
                                         "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni", NULL};
    mica_cpu expected = kernel_lists(avx512) ? MICA_CPU_AVX512 : kernel_lists(avx2) ? MICA_CPU_AVX2 : MICA_CPU_PORTABLE;
    assert_int_equal(mica_cpu_detected(), expected);
}

static bool vnni_with(const char *value) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("MICA_CPU", value, 1);
        _exit(mica_cpu_has_vnni());
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void vnni_goes_with_avx2_alone(void **state) {
    (void)state;
    static const char *const flags[] = {"avx2", "fma", "f16c", "avx_vnni", NULL};
    assert_int_equal(vnni_with("avxvnni"), kernel_lists(flags));
    assert_false(vnni_with("avx2"));
    assert_false(vnni_with("portable"));
    assert_int_equal(vnni_with(""), kernel_lists(flags) && mica_cpu_detected() == MICA_CPU_AVX2);
}

/* The choice is made once, at first use, so each value of MICA_CPU gets a process of its own. */
static mica_cpu chosen_with(const char *value) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("MICA_CPU", value, 1);
        _exit((int)mica_cpu_current());
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return (mica_cpu)WEXITSTATUS(status);
}

static void the_variable_lowers_and_never_raises(void **state) {
    (void)state;
    mica_cpu detected = mica_cpu_detected();
    for (int wanted = 0; wanted < MICA_CPU_COUNT; wanted++) {
        mica_cpu expected = wanted < (int)detected ? (mica_cpu)wanted : detected;
        assert_int_equal(chosen_with(mica_cpu_name((mica_cpu)wanted)), expected);
    }
    assert_int_equal(chosen_with("avxvnni"), MICA_CPU_AVX2 < detected ? MICA_CPU_AVX2 : detected);
    assert_int_equal(chosen_with("sse9"), detected);
    assert_int_equal(chosen_with(""), detected);
}

static void a_variable_that_names_nothing_is_told(void **state) {
    (void)state;
    mica_error error;
    unsetenv("MICA_CPU");
    assert_int_equal(mica_environment_check(&error), MICA_OK);
    setenv("MICA_CPU", "", 1);
    assert_int_equal(mica_environment_check(&error), MICA_OK);
    for (int cpu = 0; cpu < MICA_CPU_COUNT; cpu++) { /* also those that this processor lacks */
        setenv("MICA_CPU", mica_cpu_name((mica_cpu)cpu), 1);
        assert_int_equal(mica_environment_check(&error), MICA_OK);
    }
    setenv("MICA_CPU", "avxvnni", 1);
    assert_int_equal(mica_environment_check(&error), MICA_OK);
    setenv("MICA_CPU", "sse9", 1);
    assert_int_equal(mica_environment_check(&error), MICA_USAGE);
    assert_string_equal(error.message, "MICA_CPU: expected one of portable, avx2, avxvnni, avx512, got 'sse9'");
    assert_int_equal(mica_environment_check(NULL), MICA_USAGE);
    unsetenv("MICA_CPU");
}

static void tests_may_select(void **state) {
    (void)state;
    for (int wanted = 0; wanted < MICA_CPU_COUNT; wanted++) {
        mica_cpu_select((mica_cpu)wanted);
        assert_int_equal(mica_cpu_current(), wanted < (int)mica_cpu_detected() ? wanted : (int)mica_cpu_detected());
    }
    assert_string_equal(mica_cpu_name(MICA_CPU_PORTABLE), "portable");
    assert_string_equal(mica_cpu_name(MICA_CPU_AVX512), "avx512");
    assert_string_equal(mica_cpu_name(MICA_CPU_COUNT), "unknown");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_variable_lowers_and_never_raises), /* first: nothing has been chosen in this process */
        cmocka_unit_test(vnni_goes_with_avx2_alone),
        cmocka_unit_test(a_variable_that_names_nothing_is_told),
        cmocka_unit_test(detection_agrees_with_the_kernel),
        cmocka_unit_test(tests_may_select),
    };
    return cmocka_run_group_tests_name("cpu", tests, NULL, NULL);
}
