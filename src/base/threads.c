/* base/threads.c: starting a set of threads, all or none; asking the system to run one soon. Judged by tests/base/test_threads.c. */
#include "base/threads.h"

#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"

typedef struct worker {
    pthread_t thread;
    void (*body)(void *context, uint32_t index);
    void *context;
    uint32_t index;
} worker;

struct mica_threads {
    uint32_t count; /* started */
    worker workers[];
};

uint32_t mica_thread_count_default(void) {
    /* The kernel refuses a mask smaller than its own (EINVAL): of 1024 processors would be too few, these are 131072. No memory is asked
     * for. */
    cpu_set_t sets[128];
    const int count = sched_getaffinity(0, sizeof sets, sets) == 0 ? CPU_COUNT_S(sizeof sets, sets) : 0;
    if (count > 0)
        return (uint32_t)count;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (uint32_t)online : 1;
}

static void *run(void *argument) {
    worker *self = argument;
    self->body(self->context, self->index);
    return NULL;
}

mica_status mica_threads_start(uint32_t count, void (*body)(void *context, uint32_t index), void (*cancel)(void *context), void *context,
                               mica_threads **threads, mica_error *error) {
    mica_threads *set = NULL;
    uint64_t bytes;
    if (mica_mul_u64(count, sizeof set->workers[0], &bytes) && mica_add_u64(bytes, sizeof *set, &bytes))
        set = mica_malloc(bytes);
    if (!set)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %u threads", count);
    for (set->count = 0; set->count < count; set->count++) {
        worker *next = &set->workers[set->count];
        next->body = body;
        next->context = context;
        next->index = set->count;
        int failure = pthread_create(&next->thread, NULL, run, next);
        if (failure != 0) {
            mica_fail(error, MICA_FAILED, "cannot start thread %u of %u: %s", set->count + 1, count, strerror(failure));
            if (cancel)
                cancel(context);
            mica_threads_join(set);
            return MICA_FAILED;
        }
    }
    *threads = set;
    return MICA_OK;
}

void mica_threads_join(mica_threads *threads) {
    if (threads) {
        for (uint32_t i = 0; i < threads->count; i++)
            pthread_join(threads->workers[i].thread, NULL);
        mica_free(threads);
    }
}

#ifdef __linux__
/* As the kernel has it; C libraries of today declare neither the structure nor the call. */
typedef struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
} scheduling;
#define SLICE_NANOSECONDS 100000 /* the shortest there is */
#endif

void mica_thread_be_prompt(void) {
#if defined(__linux__) && defined(SYS_sched_setattr)
    scheduling now = {.size = sizeof now};
    if (syscall(SYS_sched_getattr, 0, &now, (unsigned)sizeof now, 0) != 0)
        return;
    now.size = sizeof now;
    if (now.policy == SCHED_OTHER)
        now.runtime = SLICE_NANOSECONDS;
    else if ((now.policy == SCHED_RR || now.policy == SCHED_FIFO) && now.priority < (uint32_t)sched_get_priority_max((int)now.policy))
        now.priority++;
    else
        return;
    (void)syscall(SYS_sched_setattr, 0, &now, 0);
#endif
}
