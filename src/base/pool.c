/* base/pool.c: see the header. A generation counter starts a phase. A phase is open while it lasts; threads go in and out, and it is closed
 * when nobody is inside. Of mica_pool_each's phases a thread that comes too late has no part: on a busy machine nobody waits for one that
 * has no processor.
 * Judged by tests/base/test_pool.c. */
#include "base/pool.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/memory.h"
#include "base/threads.h"

#define CLOSED INT_MIN
#define SPINS 4000u
#define FETCH_BYTES 512u /* at a time, between looks at whether there is work */
#define YIELDS 64u /* a sleeping thread takes some 50 us to wake: not worth it between the phases of a layer, but while input is awaited */

struct mica_pool {
    uint32_t threads;
    void (*body)(void *context, uint32_t index);
    void *context;
    uint64_t serial; /* of the phase; as body and context, written before it is opened */
    bool all;        /* every thread must have run the body */
    mica_threads *workers; /* threads - 1 */
    _Alignas(64) atomic_uint generation;
    _Alignas(64) atomic_int inside; /* the workers in the phase; CLOSED */
    _Alignas(64) atomic_uint missing; /* of an `all` phase: workers that have not run it */
    _Alignas(64) atomic_uint sleepers;
    _Alignas(64) atomic_uintptr_t fetched, expected; /* what is expected: from where on it was not asked for yet, and its end */
    atomic_bool leave;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
};

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void mica_pool_expect(mica_pool *pool, const void *memory, uint64_t bytes) {
    atomic_store_explicit(&pool->expected, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->fetched, (uintptr_t)memory, memory_order_relaxed);
    atomic_store_explicit(&pool->expected, (uintptr_t)memory + bytes, memory_order_relaxed);
}

/* A moment of waiting. (Ends that belong to other beginnings are harmless: what is asked for in vain is not even a fault.) */
static void pass_moment(mica_pool *pool) {
    const uintptr_t end = atomic_load_explicit(&pool->expected, memory_order_relaxed);
    if (atomic_load_explicit(&pool->fetched, memory_order_relaxed) >= end) {
        pause_briefly();
        return;
    }
    const uintptr_t from = atomic_fetch_add_explicit(&pool->fetched, FETCH_BYTES, memory_order_relaxed);
    for (uintptr_t at = from; at < from + FETCH_BYTES && at < end; at += 64)
        __builtin_prefetch((const void *)at, 0, 2);
}

/* Waits for another generation than the one seen, and returns it. */
static unsigned await_generation(mica_pool *pool, unsigned seen) {
    unsigned now;
    for (unsigned i = 0; i < SPINS; i++) {
        if ((now = atomic_load_explicit(&pool->generation, memory_order_acquire)) != seen)
            return now;
        pass_moment(pool);
    }
    for (unsigned i = 0; i < YIELDS; i++) {
        if ((now = atomic_load_explicit(&pool->generation, memory_order_acquire)) != seen)
            return now;
        sched_yield();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while ((now = atomic_load(&pool->generation)) == seen)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
    return now;
}

static void next_generation(mica_pool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->mutex); /* whoever counts as a sleeper is waiting, or has not yet looked at the generation again */
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static bool enter(mica_pool *pool) {
    int inside = atomic_load_explicit(&pool->inside, memory_order_relaxed);
    while (inside != CLOSED)
        if (atomic_compare_exchange_weak_explicit(&pool->inside, &inside, inside + 1, memory_order_acquire, memory_order_relaxed))
            return true;
    return false;
}

/* The phase that is entered may be a later one than the generation that was seen: its serial says whether it was done already. */
static void work(void *context, uint32_t index) {
    mica_pool *pool = context;
    uint64_t done = 0;
    for (unsigned seen = 0;;) {
        seen = await_generation(pool, seen);
        if (atomic_load(&pool->leave))
            return;
        if (!enter(pool))
            continue;
        if (pool->serial != done) {
            done = pool->serial;
            pool->body(pool->context, index + 1);
            if (pool->all)
                atomic_fetch_sub_explicit(&pool->missing, 1, memory_order_release);
        }
        atomic_fetch_sub_explicit(&pool->inside, 1, memory_order_release);
    }
}

static void dismiss(void *context) {
    mica_pool *pool = context;
    atomic_store(&pool->leave, true);
    next_generation(pool);
}

mica_status mica_pool_create(uint32_t threads, mica_pool **result, mica_error *error) {
    mica_pool *pool = mica_alloc_aligned(sizeof *pool);
    if (!pool)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the compute threads");
    pool->threads = threads ? threads : 1;
    atomic_store(&pool->inside, CLOSED);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    mica_status status = pool->threads > 1 ? mica_threads_start(pool->threads - 1, work, dismiss, pool, &pool->workers, error) : MICA_OK;
    if (status == MICA_OK) {
        *result = pool;
        return MICA_OK;
    }
    pool->workers = NULL;
    mica_pool_free(pool);
    return status;
}

void mica_pool_free(mica_pool *pool) {
    if (!pool)
        return;
    if (pool->workers)
        dismiss(pool);
    mica_threads_join(pool->workers);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    mica_free_aligned(pool);
}

uint32_t mica_pool_threads(const mica_pool *pool) {
    return pool->threads;
}

static void wait_briefly(mica_pool *pool, unsigned *spins) {
    pass_moment(pool);
    if (++*spins > SPINS)
        sched_yield(); /* a thread that lost its processor must be let in */
}

static void run_phase(mica_pool *pool, void (*body)(void *context, uint32_t index), void *context, bool all) {
    unsigned spins = 0;
    if (pool->threads == 1) {
        body(context, 0);
        return;
    }
    pool->body = body;
    pool->context = context;
    pool->all = all;
    pool->serial++;
    atomic_store_explicit(&pool->missing, all ? pool->threads - 1 : 0, memory_order_relaxed);
    atomic_store_explicit(&pool->inside, 0, memory_order_release);
    next_generation(pool);
    body(context, 0);
    while (atomic_load_explicit(&pool->missing, memory_order_acquire) > 0)
        wait_briefly(pool, &spins);
    for (int nobody = 0; !atomic_compare_exchange_weak_explicit(&pool->inside, &nobody, CLOSED, memory_order_acquire, memory_order_relaxed);
         nobody = 0)
        wait_briefly(pool, &spins);
}

void mica_pool_run(mica_pool *pool, void (*body)(void *context, uint32_t index), void *context) {
    run_phase(pool, body, context, true);
}

typedef struct pieces {
    atomic_uint_fast64_t next;
    uint64_t count, grain;
    void (*body)(void *context, uint64_t first, uint64_t last, uint32_t index);
    void *context;
} pieces;

static void take_pieces(void *context, uint32_t index) {
    pieces *shared = context;
    for (;;) {
        uint64_t first = atomic_fetch_add_explicit(&shared->next, shared->grain, memory_order_relaxed);
        if (first >= shared->count)
            return;
        uint64_t last = shared->count - first < shared->grain ? shared->count : first + shared->grain;
        shared->body(shared->context, first, last, index);
    }
}

void mica_pool_each(mica_pool *pool, uint64_t count, uint64_t grain,
                    void (*body)(void *context, uint64_t first, uint64_t last, uint32_t index), void *context) {
    if (count <= grain || pool->threads == 1) {
        for (uint64_t first = 0; first < count; first += grain)
            body(context, first, count - first < grain ? count : first + grain, 0);
        return;
    }
    pieces shared = {.count = count, .grain = grain, .body = body, .context = context};
    run_phase(pool, take_pieces, &shared, false);
}
