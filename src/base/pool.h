/* base/pool.h: a set of threads that stand ready: the phases of a forward pass are too short to start threads for each.
 * One thread at a time gives work; it takes part as index 0. Waiting spins, then yields, then sleeps, so that a pool without
 * work costs nothing. */
#ifndef MICA_BASE_POOL_H
#define MICA_BASE_POOL_H

#include <stdint.h>

#include "base/error.h"

typedef struct mica_pool mica_pool;

/* threads, the caller included: at least 1 */
mica_status mica_pool_create(uint32_t threads, mica_pool **pool, mica_error *error) MICA_CHECKED;
void mica_pool_free(mica_pool *pool); /* NULL is fine */
uint32_t mica_pool_threads(const mica_pool *pool);

/* Runs body(context, index) once for each index below mica_pool_threads; returns when all have. What was written before is seen by all,
 * what they write by the caller. */
void mica_pool_run(mica_pool *pool, void (*body)(void *context, uint32_t index), void *context);

/* Runs body(context, first, last) over pieces of [0, count), each at most `grain` long and beginning at a multiple of it, on whatever
 * thread is free: for bodies whose results do not depend on the cut. */
void mica_pool_each(mica_pool *pool, uint64_t count, uint64_t grain,
                    void (*body)(void *context, uint64_t first, uint64_t last, uint32_t index), void *context);

/* What the next phases will read first: threads that wait, for others to end their part or for work, bring it to the caches meanwhile. A hint, of memory
 * that need not even be there; the last one counts. By the thread that gives work. */
void mica_pool_expect(mica_pool *pool, const void *memory, uint64_t bytes);

/* Work that others may take part in when they have none of their own: mica_pool_each's promise, but by whoever there is. `each` NULL:
 * nobody. */
typedef struct mica_share {
    void (*each)(void *context, uint64_t count, void (*body)(void *body_context, uint64_t first, uint64_t last, uint32_t index),
                 void *body_context);
    void *context;
} mica_share;

#endif
