/* model/expert_cache.c: the mechanism; see the header. One mutex guards slots, queues and meters; one condition wakes readers, one the engine.
 * An expert is read in pieces, by as many readers as are free: one miss alone keeps the disk as busy as many. A slot's buffer belongs to its readers while it is
 * LOADING, to the engine while it is pinned and READY. The buffers are touched first when
 * they are first filled, by the reading threads, and never given back.
 * Judged by tests/model/test_expert_cache.c. */
#include "model/expert_cache.h"

#include <math.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "model/weight_layout.h"

#define EXTENTS (MICA_PROJECTION_COUNT * MICA_EXTENTS_PER_WEIGHT)

#define PIECES 8 /* of an expert, about: that many reads keep a disk busy, and more cost more than they bring */
#define AHEAD_PIECES 2 /* of prefetches in flight: a demand that comes meanwhile waits for no more */
#define PIECE_MIN (UINT64_C(64) << 10)
#define PIECE_MAX (UINT64_C(1) << 20)

/* Of a slot. WAITING: in a queue, no piece of it taken; LOADING: some are; it leaves the queue with its last piece. PAUSED: in no queue, pieces are missing. */
enum { FREE, WAITING, LOADING, PAUSED, READY, FAILED };

typedef struct slot {
    atomic_int state;
    uint32_t pins;
    bool prefetch; /* and not yet used */
    uint64_t owner; /* index of the expert it holds or gets */
    uint8_t *buffer;
    mica_matrix matrices[MICA_PROJECTION_COUNT];
    mica_error error; /* when FAILED */
    /* while it is read */
    const mica_weight *weights[MICA_PROJECTION_COUNT];
    mica_extent extents[EXTENTS];
    mica_layout_read reads[EXTENTS];
    uint64_t extent_count, read_count, flying; /* flying: pieces taken and not yet read */
    mica_layout_cursor cursor;
    bool failed;
} slot;

typedef struct queue { /* of slots, a ring that has room for all */
    uint32_t *slots;
    uint64_t head, count;
} queue;

struct mica_expert_cache {
    const mica_model *model;
    const mica_cache_policy *policy;
    uint64_t experts_per_layer, entry_count, slot_count, slot_bytes, piece_bytes;
    uint8_t *buffers;
    slot *slots;
    int64_t *where;        /* [layer * experts_per_layer + expert]: its slot, or -1 */
    mica_expert_use *uses; /* likewise */
    double clock;          /* tokens */
    queue demands, prefetches;
    uint64_t ahead; /* pieces of prefetches in flight */
    uint64_t free_from; /* slots from here on have never been used */
    bool leave;
    pthread_mutex_t mutex;
    pthread_cond_t work, done;
    mica_threads *readers;
    mica_expert_meters meters;
};

static void gather_weights(const mica_model *model, uint64_t layer, uint64_t expert, const mica_weight *weights[MICA_PROJECTION_COUNT]) {
    for (int i = 0; i < MICA_PROJECTION_COUNT; i++)
        weights[i] = model->layers[layer].experts[expert * MICA_PROJECTION_COUNT + i];
}

uint64_t mica_expert_count(const mica_model *model) {
    uint64_t count = 0;
    for (uint64_t layer = 0; layer < model->config.num_hidden_layers; layer++)
        count += model->layers[layer].moe ? model->config.n_routed_experts : 0;
    return count;
}

uint64_t mica_expert_slot_bytes(const mica_model *model) {
    uint64_t largest = 0;
    for (uint64_t layer = 0; layer < model->config.num_hidden_layers; layer++)
        for (uint64_t expert = 0; model->layers[layer].moe && expert < model->config.n_routed_experts; expert++) {
            const mica_weight *weights[MICA_PROJECTION_COUNT];
            mica_extent extents[EXTENTS];
            mica_layout_read reads[EXTENTS];
            uint64_t extent_count, read_count, bytes;
            gather_weights(model, layer, expert, weights);
            mica_layout_weights(weights, MICA_PROJECTION_COUNT, extents, &extent_count, reads, &read_count, &bytes);
            largest = bytes > largest ? bytes : largest;
        }
    return largest;
}

uint64_t mica_expert_slot_overhead(void) {
    return sizeof(slot) + 2 * sizeof(uint32_t);
}

static void push(queue *to, uint64_t capacity, uint32_t number) {
    to->slots[(to->head + to->count++) % capacity] = number;
}

static uint32_t pop(queue *from, uint64_t capacity) {
    uint32_t number = from->slots[from->head];
    from->head = (from->head + 1) % capacity;
    from->count--;
    return number;
}

/* ---- reading threads */

/* What a reader may begin now: demands first, and of prefetches only AHEAD_PIECES at a time. NULL: nothing. */
static queue *next_queue(mica_expert_cache *cache) {
    if (cache->demands.count)
        return &cache->demands;
    return cache->prefetches.count && cache->ahead < AHEAD_PIECES ? &cache->prefetches : NULL;
}

/* The next piece of what is first in the queue. */
static slot *take_piece(mica_expert_cache *cache, queue *from, mica_layout_read *piece) {
    slot *target = &cache->slots[from->slots[from->head]];
    (void)mica_layout_next_piece(target->reads, target->read_count, cache->piece_bytes, &target->cursor, piece);
    if (target->cursor.read == target->read_count)
        (void)pop(from, cache->slot_count);
    target->flying++;
    atomic_store(&target->state, LOADING);
    return target;
}

/* The last piece makes the expert ready; the first failure is the one that is told. */
static void end_piece(mica_expert_cache *cache, slot *target, mica_status status, const mica_error *error) {
    if (status != MICA_OK && !target->failed) {
        target->failed = true;
        target->error = *error;
        (void)mica_fail_context(&target->error, status, "%s", target->weights[0]->name);
    }
    target->flying--;
    if (target->flying == 0 && atomic_load(&target->state) == PAUSED)
        pthread_cond_broadcast(&cache->done); /* the slot can be given away */
    if (target->flying > 0 || target->cursor.read < target->read_count)
        return;
    if (!target->failed)
        target->failed = mica_layout_matrices(cache->model, target->weights, target->extents, target->extent_count, target->buffer, target->matrices,
                                              &target->error) != MICA_OK;
    cache->meters.reads++;
    atomic_store(&target->state, target->failed ? FAILED : READY);
    pthread_cond_broadcast(&cache->done);
}

static void read_experts(void *context, uint32_t index) {
    mica_expert_cache *cache = context;
    (void)index;
    mica_thread_be_prompt(); /* a read that begins late is computing time lost */
    pthread_mutex_lock(&cache->mutex);
    for (;;) {
        queue *from;
        while (!(from = next_queue(cache)) && !cache->leave)
            pthread_cond_wait(&cache->work, &cache->mutex);
        if (cache->leave)
            break;
        mica_layout_read piece;
        bool ahead = from == &cache->prefetches;
        slot *target = take_piece(cache, from, &piece);
        cache->ahead += ahead;
        pthread_mutex_unlock(&cache->mutex);
        const uint8_t *data;
        mica_error error;
        double begin = mica_seconds_now();
        mica_status status =
            mica_file_read_window(cache->model->source->shards[piece.shard].file, piece.offset, piece.bytes, target->buffer + piece.place, &data, &error);
        double seconds = mica_seconds_now() - begin;
        pthread_mutex_lock(&cache->mutex);
        cache->meters.bytes_read += status == MICA_OK ? piece.bytes : 0;
        cache->meters.seconds_reading += seconds;
        cache->ahead -= ahead;
        end_piece(cache, target, status, &error);
    }
    pthread_mutex_unlock(&cache->mutex);
}

static void send_home(void *context) {
    mica_expert_cache *cache = context;
    pthread_mutex_lock(&cache->mutex);
    cache->leave = true;
    pthread_cond_broadcast(&cache->work);
    pthread_mutex_unlock(&cache->mutex);
}

/* ---- opening */

static mica_status allocate(mica_expert_cache *cache, mica_error *error) {
    uint64_t bytes;
    cache->slots = mica_calloc(cache->slot_count, sizeof *cache->slots);
    cache->where = mica_calloc(cache->entry_count, sizeof *cache->where);
    cache->uses = mica_calloc(cache->entry_count, sizeof *cache->uses);
    cache->demands.slots = mica_calloc(cache->slot_count, sizeof *cache->demands.slots);
    cache->prefetches.slots = mica_calloc(cache->slot_count, sizeof *cache->prefetches.slots);
    if (mica_mul_u64(cache->slot_count, cache->slot_bytes, &bytes))
        cache->buffers = mica_alloc_aligned(bytes);
    if (!cache->slots || !cache->where || !cache->uses || !cache->demands.slots || !cache->prefetches.slots || !cache->buffers)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for %llu experts of %llu bytes", cache->model->source->path,
                         (unsigned long long)cache->slot_count, (unsigned long long)cache->slot_bytes);
    for (uint64_t i = 0; i < cache->slot_count; i++)
        cache->slots[i].buffer = cache->buffers + i * cache->slot_bytes;
    for (uint64_t i = 0; i < cache->entry_count; i++) {
        cache->where[i] = -1;
        cache->uses[i].value = -INFINITY;
    }
    return MICA_OK;
}

mica_status mica_expert_cache_open(const mica_model *model, uint64_t slots, uint32_t reading_threads, const mica_cache_policy *policy,
                                   mica_expert_cache **result, mica_error *error) {
    mica_expert_cache *cache = mica_calloc(1, sizeof *cache);
    if (!cache)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the cache of experts", model->source->path);
    cache->model = model;
    cache->policy = policy;
    cache->experts_per_layer = model->config.n_routed_experts;
    cache->entry_count = model->config.num_hidden_layers * cache->experts_per_layer;
    cache->slot_count = slots;
    cache->slot_bytes = mica_expert_slot_bytes(model);
    cache->piece_bytes = cache->slot_bytes / PIECES;
    cache->piece_bytes = cache->piece_bytes < PIECE_MIN ? PIECE_MIN : cache->piece_bytes > PIECE_MAX ? PIECE_MAX : cache->piece_bytes;
    pthread_mutex_init(&cache->mutex, NULL);
    pthread_cond_init(&cache->work, NULL);
    pthread_cond_init(&cache->done, NULL);
    mica_status status = allocate(cache, error);
    if (status == MICA_OK)
        status = mica_threads_start(reading_threads, read_experts, send_home, cache, &cache->readers, error);
    if (status == MICA_OK)
        *result = cache;
    else
        mica_expert_cache_close(cache);
    return status;
}

void mica_expert_cache_close(mica_expert_cache *cache) {
    if (!cache)
        return;
    if (cache->readers)
        send_home(cache);
    mica_threads_join(cache->readers);
    pthread_cond_destroy(&cache->done);
    pthread_cond_destroy(&cache->work);
    pthread_mutex_destroy(&cache->mutex);
    mica_free_aligned(cache->buffers);
    mica_free(cache->prefetches.slots);
    mica_free(cache->demands.slots);
    mica_free(cache->uses);
    mica_free(cache->where);
    mica_free(cache->slots);
    mica_free(cache);
}

uint64_t mica_expert_cache_slots(const mica_expert_cache *cache) {
    return cache->slot_count;
}

/* ---- the engine's side */

static uint64_t entry_of(const mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    return layer * cache->experts_per_layer + expert;
}

void mica_expert_cache_advance(mica_expert_cache *cache, uint64_t tokens) {
    cache->clock += (double)tokens;
}

void mica_expert_cache_use(mica_expert_cache *cache, uint64_t layer, uint64_t expert, uint64_t count, uint64_t span) {
    cache->policy->use(&cache->uses[entry_of(cache, layer, expert)], cache->clock, (double)count, (double)span);
}

/* A slot to fill: one never used, else the one of least value that is not pinned and not being read; one without a whole expert at once. -1: none.
 * Linear in the slots: a miss costs a read of megabytes. */
static int64_t free_slot(mica_expert_cache *cache) {
    int64_t best = -1;
    double least = INFINITY;
    if (cache->free_from < cache->slot_count)
        return (int64_t)cache->free_from++;
    for (uint64_t i = 0; i < cache->slot_count; i++) {
        const slot *candidate = &cache->slots[i];
        int state = atomic_load_explicit(&candidate->state, memory_order_relaxed);
        if (candidate->pins || state == WAITING || state == LOADING || candidate->flying)
            continue;
        double value = state == READY ? cache->uses[candidate->owner].value : -INFINITY;
        if (best < 0 || value < least) {
            best = (int64_t)i;
            least = value;
        }
    }
    if (best >= 0 && atomic_load(&cache->slots[best].state) != FREE)
        cache->where[cache->slots[best].owner] = -1;
    return best;
}

static void fill(mica_expert_cache *cache, int64_t number, uint64_t entry, bool prefetch) {
    slot *target = &cache->slots[number];
    uint64_t bytes;
    target->owner = entry;
    target->prefetch = prefetch;
    target->failed = false;
    target->cursor = (mica_layout_cursor){0, 0};
    gather_weights(cache->model, entry / cache->experts_per_layer, entry % cache->experts_per_layer, target->weights);
    mica_layout_weights(target->weights, MICA_PROJECTION_COUNT, target->extents, &target->extent_count, target->reads, &target->read_count, &bytes);
    atomic_store(&target->state, WAITING);
    cache->where[entry] = number;
    push(prefetch ? &cache->prefetches : &cache->demands, cache->slot_count, (uint32_t)number);
    pthread_cond_broadcast(&cache->work);
}

/* A paused slot goes on where it stopped. */
static void go_on(mica_expert_cache *cache, queue *to, uint32_t number) {
    atomic_store(&cache->slots[number].state, LOADING);
    push(to, cache->slot_count, number);
    pthread_cond_broadcast(&cache->work);
}

/* A prefetch that is demanded: its slot goes from one queue to the other; it may have left the first. */
static void promote(mica_expert_cache *cache, uint32_t number) {
    queue *from = &cache->prefetches;
    if (atomic_load(&cache->slots[number].state) == PAUSED) {
        go_on(cache, &cache->demands, number);
        return;
    }
    for (uint64_t left = from->count; left > 0; left--) {
        uint32_t next = pop(from, cache->slot_count);
        push(next == number ? &cache->demands : from, cache->slot_count, next);
    }
    pthread_cond_broadcast(&cache->work); /* more of its pieces may be read at a time */
}

bool mica_expert_cache_present(const mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    return cache->where[entry_of(cache, layer, expert)] >= 0;
}

/* Unpinned and on its way: it will be free. */
static bool any_prefetching(const mica_expert_cache *cache) {
    for (uint64_t i = 0; i < cache->slot_count; i++) {
        int state = atomic_load_explicit(&cache->slots[i].state, memory_order_relaxed);
        if (!cache->slots[i].pins && (state == WAITING || state == LOADING || cache->slots[i].flying))
            return true;
    }
    return false;
}

/* Empties the queue of prefetches. */
static void pause_prefetches(mica_expert_cache *cache) {
    while (cache->prefetches.count > 0) {
        slot *target = &cache->slots[pop(&cache->prefetches, cache->slot_count)];
        bool begun = atomic_load(&target->state) == LOADING;
        atomic_store(&target->state, begun ? PAUSED : FREE);
        if (!begun)
            cache->where[target->owner] = -1;
    }
}

bool mica_expert_cache_acquire(mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    uint64_t entry = entry_of(cache, layer, expert);
    pthread_mutex_lock(&cache->mutex);
    int64_t number = cache->where[entry];
    bool present = number >= 0;
    while (!present && (number = free_slot(cache)) < 0 && any_prefetching(cache)) {
        if (cache->prefetches.count > 0)
            pause_prefetches(cache); /* who is wanted does not wait for who might be */
        else
            pthread_cond_wait(&cache->done, &cache->mutex);
    }
    if (!present && number >= 0)
        fill(cache, number, entry, false);
    if (number >= 0) {
        slot *target = &cache->slots[number];
        int state = atomic_load(&target->state);
        if (present && target->prefetch && (state == WAITING || state == LOADING || state == PAUSED))
            promote(cache, (uint32_t)number);
        target->pins++;
        cache->meters.uses++;
        cache->meters.hits += present && state == READY;
        cache->meters.prefetch_used += present && target->prefetch;
        target->prefetch = false;
    }
    pthread_mutex_unlock(&cache->mutex);
    return number >= 0;
}

static bool is_done(const slot *target) {
    int state = atomic_load_explicit(&target->state, memory_order_acquire);
    return state == READY || state == FAILED;
}

bool mica_expert_cache_ready(const mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    return is_done(&cache->slots[cache->where[entry_of(cache, layer, expert)]]);
}

static bool any_done(const mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        if (mica_expert_cache_ready(cache, layer, experts[i]))
            return true;
    return count == 0;
}

void mica_expert_cache_wait(mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count) {
    if (any_done(cache, layer, experts, count))
        return;
    double begin = mica_seconds_now();
    pthread_mutex_lock(&cache->mutex);
    while (!any_done(cache, layer, experts, count))
        pthread_cond_wait(&cache->done, &cache->mutex);
    cache->meters.seconds_stalled += mica_seconds_now() - begin;
    pthread_mutex_unlock(&cache->mutex);
}

mica_status mica_expert_cache_get(mica_expert_cache *cache, uint64_t layer, uint64_t expert, const mica_matrix **matrices,
                                  mica_error *error) {
    slot *target = &cache->slots[cache->where[entry_of(cache, layer, expert)]];
    if (atomic_load(&target->state) == FAILED) {
        if (error)
            *error = target->error;
        return target->error.status;
    }
    *matrices = target->matrices;
    return MICA_OK;
}

void mica_expert_cache_release(mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    pthread_mutex_lock(&cache->mutex);
    uint64_t entry = entry_of(cache, layer, expert);
    slot *target = &cache->slots[cache->where[entry]];
    if (--target->pins == 0 && atomic_load(&target->state) == FAILED) { /* the next demand tries again */
        cache->where[entry] = -1;
        atomic_store(&target->state, FREE);
    }
    pthread_mutex_unlock(&cache->mutex);
}

static void prefetch(mica_expert_cache *cache, uint64_t entry) {
    int64_t number = free_slot(cache);
    if (number >= 0) {
        cache->meters.prefetched++;
        fill(cache, number, entry, true);
    }
}

/* While a slot is sought for one of them, the others are pinned: they do not give way to each other. */
void mica_expert_cache_expect(mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count) {
    pthread_mutex_lock(&cache->mutex);
    const int64_t *where = cache->where + entry_of(cache, layer, 0);
    pause_prefetches(cache);
    for (uint64_t i = 0; i < count; i++)
        if (where[experts[i]] >= 0)
            cache->slots[where[experts[i]]].pins++;
    for (uint64_t i = 0; i < count; i++) {
        int64_t number = where[experts[i]];
        if (number < 0) {
            prefetch(cache, entry_of(cache, layer, experts[i]));
            if (where[experts[i]] >= 0)
                cache->slots[where[experts[i]]].pins++;
        } else if (atomic_load(&cache->slots[number].state) == PAUSED) {
            go_on(cache, &cache->prefetches, (uint32_t)number);
        }
    }
    for (uint64_t i = 0; i < count; i++)
        if (where[experts[i]] >= 0)
            cache->slots[where[experts[i]]].pins--;
    pthread_mutex_unlock(&cache->mutex);
}

mica_expert_meters mica_expert_cache_meters(const mica_expert_cache *cache) {
    mica_expert_cache *shared = (mica_expert_cache *)cache;
    pthread_mutex_lock(&shared->mutex);
    mica_expert_meters meters = cache->meters;
    pthread_mutex_unlock(&shared->mutex);
    return meters;
}
