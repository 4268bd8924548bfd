/* base/pool.c: see the header. A generation counter starts a phase, a count of those at work ends it. Judged by tests/base/test_pool.c. */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "base/memory.h"
#include "base/threads.h"

#define SPINS 4000u
#define YIELDS 64u /* a sleeping thread takes some 50 us to wake: not worth it between the phases of a layer, but while input is awaited */

struct mica_pool {
    uint32_t threads;
    void (*body)(void *context, uint32_t index);
    void *context;
    mica_threads *workers; /* threads - 1 */
    _Alignas(64) atomic_uint generation;
    _Alignas(64) atomic_uint at_work;
    _Alignas(64) atomic_uint sleepers;
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

static void await_generation(mica_pool *pool, unsigned seen) {
    for (unsigned i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
            return;
        pause_briefly();
    }
    for (unsigned i = 0; i < YIELDS; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
            return;
        sched_yield();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->generation) == seen)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void next_generation(mica_pool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->mutex); /* whoever counts as a sleeper is waiting, or has not yet looked at the generation again */
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static void work(void *context, uint32_t index) {
    mica_pool *pool = context;
    for (unsigned seen = 0;; seen++) {
        await_generation(pool, seen);
        if (atomic_load(&pool->leave))
            return;
        pool->body(pool->context, index + 1);
        atomic_fetch_sub_explicit(&pool->at_work, 1, memory_order_acq_rel);
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

void mica_pool_run(mica_pool *pool, void (*body)(void *context, uint32_t index), void *context) {
    pool->body = body;
    pool->context = context;
    if (pool->threads > 1) {
        atomic_store_explicit(&pool->at_work, pool->threads - 1, memory_order_relaxed);
        next_generation(pool);
    }
    body(context, 0);
    for (unsigned spins = 0; pool->threads > 1 && atomic_load_explicit(&pool->at_work, memory_order_acquire) > 0;) {
        pause_briefly();
        if (++spins > SPINS)
            sched_yield(); /* a thread that lost its processor must be let in */
    }
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

void mica_pool_each(mica_pool *pool, uint64_t count, uint64_t grain, void (*body)(void *context, uint64_t first, uint64_t last, uint32_t index),
                    void *context) {
    if (count <= grain || pool->threads == 1) {
        for (uint64_t first = 0; first < count; first += grain)
            body(context, first, count - first < grain ? count : first + grain, 0);
        return;
    }
    pieces shared = {.count = count, .grain = grain, .body = body, .context = context};
    mica_pool_run(pool, take_pieces, &shared);
}
