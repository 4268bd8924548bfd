/* Starting and joining threads; a start that fails half-way leaves none behind. */
#include "base/threads.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/scratch.h"

typedef struct work {
    atomic_uint seen[8];
    atomic_uint running, started;
    atomic_bool leave;
    uint32_t results[8];
} work;

static void mark(void *context, uint32_t index) {
    work *shared = context;
    atomic_fetch_add(&shared->seen[index], 1);
    shared->results[index] = index * index; /* plain: the join must make it visible */
}

static void every_index_runs_once(void **state) {
    (void)state;
    for (uint32_t count = 0; count <= 8; count++) {
        work shared = {0};
        mica_threads *threads = NULL;
        mica_error error;
        assert_int_equal(mica_threads_start(count, mark, NULL, &shared, &threads, &error), MICA_OK);
        mica_threads_join(threads);
        for (uint32_t i = 0; i < 8; i++) {
            assert_int_equal(shared.seen[i], i < count);
            assert_int_equal(shared.results[i], i < count ? i * i : 0);
        }
    }
    mica_threads_join(NULL);
}

static void be_prompt(void *context, uint32_t index) {
    int *policies = context;
    struct sched_param parameter;
    (void)index;
    assert_int_equal(pthread_getschedparam(pthread_self(), &policies[0], &parameter), 0);
    mica_thread_be_prompt();
    mica_thread_be_prompt();
    assert_int_equal(pthread_getschedparam(pthread_self(), &policies[1], &parameter), 0);
}

/* It asks for a place in the queue, not for another queue, and for the thread that asks alone. */
static void a_prompt_thread_keeps_its_policy(void **state) {
    (void)state;
    int policies[2] = {-1, -2}, before, after;
    struct sched_param first, last;
    mica_threads *threads = NULL;
    assert_int_equal(pthread_getschedparam(pthread_self(), &before, &first), 0);
    assert_int_equal(mica_threads_start(1, be_prompt, NULL, policies, &threads, NULL), MICA_OK);
    mica_threads_join(threads);
    assert_int_equal(policies[0], policies[1]);
    assert_int_equal(pthread_getschedparam(pthread_self(), &after, &last), 0);
    assert_true(before == after && first.sched_priority == last.sched_priority);
}

static void the_default_is_what_the_process_may_use(void **state) {
    (void)state;
    pid_t child = fork();
    if (child == 0) { /* bind to one processor, in a process of its own */
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(sched_getcpu(), &set);
        _exit(sched_setaffinity(0, sizeof set, &set) == 0 ? (int)mica_thread_count_default() : 77);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 77)
        assert_int_equal(WEXITSTATUS(status), 1);
    assert_true(mica_thread_count_default() >= 1);
    assert_true(mica_thread_count_default() <= (uint32_t)sysconf(_SC_NPROCESSORS_CONF));
}

static void wait_to_leave(void *context, uint32_t index) {
    work *shared = context;
    (void)index;
    atomic_fetch_add(&shared->running, 1);
    atomic_fetch_add(&shared->started, 1);
    while (!atomic_load(&shared->leave))
        sched_yield();
    atomic_fetch_sub(&shared->running, 1);
}

static void tell_to_leave(void *context) {
    atomic_store(&((work *)context)->leave, true);
}

/* pthread_create is made to fail from the third call on, by the linker (see the bottom). */
static int creations_left = -1;

static void a_failed_start_joins_what_ran(void **state) {
    (void)state;
    work shared = {0};
    mica_threads *threads = NULL;
    mica_error error;
    creations_left = 2;
    assert_int_equal(mica_threads_start(5, wait_to_leave, tell_to_leave, &shared, &threads, &error), MICA_FAILED);
    creations_left = -1;
    assert_null(threads);
    assert_non_null(strstr(error.message, "thread 3 of 5"));
    assert_int_equal(shared.started, 2);
    assert_int_equal(shared.running, 0);
    mica_memory_fail_after(1);
    assert_int_equal(mica_threads_start(5, mark, NULL, &shared, &threads, &error), MICA_NO_MEMORY);
    mica_memory_fail_after(0);
}

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    if (creations_left == 0)
        return 11; /* EAGAIN */
    creations_left -= creations_left > 0;
    return __real_pthread_create(thread, attributes, start, argument);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_index_runs_once), cmocka_unit_test(a_prompt_thread_keeps_its_policy),
        cmocka_unit_test(the_default_is_what_the_process_may_use),
        cmocka_unit_test(a_failed_start_joins_what_ran),
    };
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
