/* model/expert_cache.h: routed experts in a fixed number of slots, read on demand while the engine computes.
 *
 * Mechanism: a slot holds one whole expert (its three projections as they are stored). A pinned slot is never given away. Demands are
 * read before prefetches; a prefetched expert that is demanded before it is there becomes a demand. Nothing is allocated after opening.
 * Policy: a number per expert, set when it is used; the unpinned slot of the smallest number is given away first.
 * One thread (the engine's) calls everything here, and what it calls begins reads and notices their ends; how they are read is
 * base/read_queue's, by the kernel where it can, by `reading_threads` threads elsewhere. Judged by tests/model/test_expert_cache.c. */
#ifndef MICA_MODEL_EXPERT_CACHE_H
#define MICA_MODEL_EXPERT_CACHE_H

#include "model/model.h"

/* What a policy remembers of an expert. */
typedef struct mica_expert_use {
    double value;  /* the smallest goes first */
    double weight; /* the policy's own */
    double at;     /* clock of the last use, in tokens */
} mica_expert_use;

typedef struct mica_cache_policy {
    const char *name, *text;
    /* The expert was chosen by `count` of the `span` tokens that end at `now`. */
    void (*use)(mica_expert_use *use, double now, double count, double span);
} mica_cache_policy;
const mica_cache_policy *mica_cache_policy_find(const char *name); /* NULL: the default, "lfu"; NULL when unknown */
const mica_cache_policy *mica_cache_policy_at(uint64_t index);     /* NULL past the end */

typedef struct mica_expert_cache mica_expert_cache;

typedef struct mica_expert_meters {
    uint64_t uses, hits;            /* acquired; of which the expert was in memory */
    uint64_t bytes_read, reads;     /* experts read, prefetches included */
    uint64_t prefetched, prefetch_used;
    double seconds_stalled;         /* in mica_expert_cache_wait */
} mica_expert_meters;

uint64_t mica_expert_slot_bytes(const mica_model *model); /* of the largest expert, as laid out; 0 for a dense model */
uint64_t mica_expert_slot_overhead(void); /* what a slot takes besides */
uint64_t mica_expert_count(const mica_model *model);      /* routed experts of all layers */

mica_status mica_expert_cache_open(const mica_model *model, uint64_t slots, uint32_t reading_threads, const mica_cache_policy *policy,
                                   mica_expert_cache **cache, mica_error *error) MICA_CHECKED;
void mica_expert_cache_close(mica_expert_cache *cache); /* NULL is fine */
uint64_t mica_expert_cache_slots(const mica_expert_cache *cache);

/* `tokens` more are being computed; then each expert's use by them. */
void mica_expert_cache_advance(mica_expert_cache *cache, uint64_t tokens);
void mica_expert_cache_use(mica_expert_cache *cache, uint64_t layer, uint64_t expert, uint64_t count, uint64_t span);

/* In a slot, read or on its way there. Who needs several experts acquires those first: an absent one might take their slot. */
bool mica_expert_cache_present(const mica_expert_cache *cache, uint64_t layer, uint64_t expert);
/* Pins the expert; a miss begins to be read. False: every slot is pinned; release one first. */
bool mica_expert_cache_acquire(mica_expert_cache *cache, uint64_t layer, uint64_t expert);
bool mica_expert_cache_ready(mica_expert_cache *cache, uint64_t layer, uint64_t expert); /* of a pinned one: read, or failed */
/* Reads that have ended are noticed, and the next begun: to be called while computing, each tenth of a millisecond or so. */
void mica_expert_cache_poll(mica_expert_cache *cache);
/* Waits until at least one of these pinned experts is ready. */
void mica_expert_cache_wait(mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count);
/* The projections [MICA_PROJECTION_COUNT] of a pinned and ready expert; or why it could not be read. */
mica_status mica_expert_cache_get(mica_expert_cache *cache, uint64_t layer, uint64_t expert, const mica_matrix **matrices,
                                  mica_error *error) MICA_CHECKED;
void mica_expert_cache_release(mica_expert_cache *cache, uint64_t layer, uint64_t expert);

/* What a layer is likely to want, the likeliest first (all distinct), in place of what was expected before: none of them is given away for
 * another, and those that are absent are read in this order while nothing is demanded, each into a slot that it is given when its turn
 * comes. A read that is under way and no longer expected stops behind the pieces that are; it goes on when the expert is wanted after all,
 * and until then its slot is the first to be given away. Count 0: nothing is expected. */
void mica_expert_cache_expect(mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count);

mica_expert_meters mica_expert_cache_meters(const mica_expert_cache *cache);

#endif
