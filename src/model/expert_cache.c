/* model/expert_cache.c: the mechanism; see the header. An expert is read in pieces, several at a time: one miss alone keeps the disk as
 * busy as many. A slot's buffer belongs to the queue of reads while pieces are flying, to the engine while it is pinned and READY. The
 * buffers are touched first when they are first filled, by the reads, and never given back. Judged by tests/model/test_expert_cache.c. */
#include "model/expert_cache.h"

#include <math.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/read_queue.h"
#include "model/weight_layout.h"

#define EXTENTS (MICA_PROJECTION_COUNT * MICA_EXTENTS_PER_WEIGHT)

#define PIECES 8 /* of an expert, about: that many reads keep a disk busy, and more cost more than they bring */
#define DEPTH 64 /* pieces on their way: who computes for long before it looks again finds them read */
/* Of these, of prefetches: a demand that comes meanwhile waits for no more; enough for the time between two calls of
 * mica_expert_cache_poll. */
#define AHEAD_PIECES 3
#define PIECE_MIN (UINT64_C(64) << 10)
#define PIECE_MAX (UINT64_C(1) << 20)

/* Of a slot. LOADING: pieces of it are missing, whether or not they are on their way. */
enum { FREE, LOADING, READY, FAILED };

typedef struct slot {
    int state;
    uint32_t pins;
    bool prefetch; /* and not yet used */
    bool expected, demanded; /* demanded: in the queue of demands */
    uint64_t owner; /* index of the expert it holds or gets */
    uint64_t flying, ahead; /* pieces on their way, of which `ahead` began as prefetches */
    uint8_t *buffer;
    mica_matrix matrices[MICA_PROJECTION_COUNT];
    mica_error error; /* when FAILED */
    /* while it is read */
    const mica_weight *weights[MICA_PROJECTION_COUNT];
    mica_extent extents[EXTENTS];
    mica_layout_read reads[EXTENTS];
    uint64_t extent_count, read_count;
    mica_layout_cursor cursor;
    bool failed;
} slot;

struct mica_expert_cache {
    const mica_model *model;
    const mica_cache_policy *policy;
    uint64_t experts_per_layer, entry_count, slot_count, slot_bytes, piece_bytes;
    uint8_t *buffers;
    slot *slots;
    int64_t *where;        /* [layer * experts_per_layer + expert]: its slot, or -1 */
    mica_expert_use *uses; /* likewise */
    double clock;          /* tokens */
    uint32_t *demands; /* of slots, a ring that has room for all: those with pieces that are not on their way */
    uint64_t demand_head, demand_count;
    uint64_t *expected; /* entries, the first to be read first; [slot_count] */
    uint64_t expected_count, expected_next; /* those before `next` have no piece left to begin, or no slot */
    uint64_t flying, ahead; /* pieces on their way; of these, prefetches */
    uint64_t free_from; /* slots from here on have never been used */
    mica_read_queue *reads;
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
    return sizeof(slot) + sizeof(uint32_t) + sizeof(uint64_t);
}

static uint64_t entry_of(const mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    return layer * cache->experts_per_layer + expert;
}

static bool pieces_left(const slot *target) {
    return target->state == LOADING && target->cursor.read < target->read_count;
}

/* ---- slots */

/* A slot to fill: one never used, else the one of least value that is neither pinned nor being read nor, unless it must be, expected; one
 * without a whole expert first. -1: none. Linear in the slots: a miss costs a read of megabytes. */
static int64_t free_slot(mica_expert_cache *cache, bool even_expected) {
    int64_t best = -1;
    double least = INFINITY;
    if (cache->free_from < cache->slot_count)
        return (int64_t)cache->free_from++;
    for (uint64_t i = 0; i < cache->slot_count; i++) {
        const slot *candidate = &cache->slots[i];
        if (candidate->pins || candidate->flying || candidate->demanded || (candidate->expected && !even_expected))
            continue;
        double value = candidate->state == READY ? cache->uses[candidate->owner].value : -INFINITY;
        if (best < 0 || value < least) {
            best = (int64_t)i;
            least = value;
        }
    }
    if (best >= 0 && cache->slots[best].state != FREE)
        cache->where[cache->slots[best].owner] = -1;
    return best;
}

static slot *fill(mica_expert_cache *cache, int64_t number, uint64_t entry, bool prefetch) {
    slot *target = &cache->slots[number];
    uint64_t bytes;
    target->owner = entry;
    target->prefetch = target->expected = prefetch;
    target->failed = false;
    target->cursor = (mica_layout_cursor){0, 0};
    gather_weights(cache->model, entry / cache->experts_per_layer, entry % cache->experts_per_layer, target->weights);
    mica_layout_weights(target->weights, MICA_PROJECTION_COUNT, target->extents, &target->extent_count, target->reads, &target->read_count,
                        &bytes);
    target->state = LOADING;
    cache->where[entry] = number;
    cache->meters.prefetched += prefetch;
    return target;
}

/* ---- reading */

/* Of what is expected, the slot whose next piece is to be read. NULL: none, or enough is on its way. */
static slot *next_expected(mica_expert_cache *cache) {
    for (; cache->expected_next < cache->expected_count && cache->ahead < AHEAD_PIECES; cache->expected_next++) {
        uint64_t entry = cache->expected[cache->expected_next];
        int64_t number = cache->where[entry];
        if (number < 0 && (number = free_slot(cache, false)) >= 0)
            return fill(cache, number, entry, true);
        if (number >= 0 && pieces_left(&cache->slots[number]))
            return &cache->slots[number];
    }
    return NULL;
}

static void begin_piece(mica_expert_cache *cache, slot *target, bool ahead) {
    mica_layout_read piece;
    (void)mica_layout_next_piece(target->reads, target->read_count, cache->piece_bytes, &target->cursor, &piece);
    target->flying++;
    target->ahead += ahead;
    cache->flying++;
    cache->ahead += ahead;
    (void)mica_read_queue_begin(cache->reads, cache->model->source->shards[piece.shard].file, piece.offset, piece.bytes,
                                target->buffer + piece.place, target);
}

static void begin_demands(mica_expert_cache *cache) {
    while (cache->demand_count > 0 && cache->flying < DEPTH) {
        slot *target = &cache->slots[cache->demands[cache->demand_head]];
        begin_piece(cache, target, false);
        if (pieces_left(target))
            continue;
        target->demanded = false;
        cache->demand_head = (cache->demand_head + 1) % cache->slot_count;
        cache->demand_count--;
    }
    mica_read_queue_flush(cache->reads);
}

static void begin_reads(mica_expert_cache *cache) {
    slot *target;
    begin_demands(cache);
    while (cache->flying < DEPTH && (target = next_expected(cache)) != NULL)
        begin_piece(cache, target, true);
    mica_read_queue_flush(cache->reads);
}

/* The last piece makes the expert ready; the first failure is the one that is told. */
static void end_piece(mica_expert_cache *cache, const mica_read_end *end) {
    slot *target = end->owner;
    if (end->status != MICA_OK && !target->failed) {
        target->failed = true;
        target->error = end->error;
        (void)mica_fail_context(&target->error, end->status, "%s", target->weights[0]->name);
    }
    cache->meters.bytes_read += end->status == MICA_OK ? end->bytes : 0;
    target->flying--;
    cache->flying--;
    if (target->ahead > 0) {
        target->ahead--;
        cache->ahead--;
    }
    if (target->flying > 0 || pieces_left(target))
        return;
    if (!target->failed)
        target->failed = mica_layout_matrices(cache->model, target->weights, target->extents, target->extent_count, target->buffer,
                                              target->matrices, &target->error) != MICA_OK;
    cache->meters.reads++;
    target->state = target->failed ? FAILED : READY;
}

static void collect(mica_expert_cache *cache, bool wait) {
    mica_read_end end;
    for (; mica_read_queue_end(cache->reads, wait, &end); wait = false)
        end_piece(cache, &end);
    begin_reads(cache);
}

void mica_expert_cache_poll(mica_expert_cache *cache) {
    if (cache->flying > 0)
        collect(cache, false);
}

/* ---- opening */

static mica_status allocate(mica_expert_cache *cache, mica_error *error) {
    uint64_t bytes;
    cache->slots = mica_calloc(cache->slot_count, sizeof *cache->slots);
    cache->where = mica_calloc(cache->entry_count, sizeof *cache->where);
    cache->uses = mica_calloc(cache->entry_count, sizeof *cache->uses);
    cache->demands = mica_calloc(cache->slot_count, sizeof *cache->demands);
    cache->expected = mica_calloc(cache->slot_count, sizeof *cache->expected);
    if (mica_mul_u64(cache->slot_count, cache->slot_bytes, &bytes))
        cache->buffers = mica_alloc_aligned(bytes);
    if (!cache->slots || !cache->where || !cache->uses || !cache->demands || !cache->expected || !cache->buffers)
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

static bool all_direct(const mica_model *model) {
    bool direct = true;
    for (uint64_t i = 0; i < model->source->shard_count; i++)
        direct = direct && mica_file_is_direct(model->source->shards[i].file);
    return direct;
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
    mica_status status = allocate(cache, error);
    if (status == MICA_OK)
        status = mica_read_queue_open(DEPTH, all_direct(model), reading_threads, &cache->reads, error);
    if (status == MICA_OK)
        *result = cache;
    else
        mica_expert_cache_close(cache);
    return status;
}

void mica_expert_cache_close(mica_expert_cache *cache) {
    if (!cache)
        return;
    mica_read_queue_close(cache->reads);
    mica_free_aligned(cache->buffers);
    mica_free(cache->expected);
    mica_free(cache->demands);
    mica_free(cache->uses);
    mica_free(cache->where);
    mica_free(cache->slots);
    mica_free(cache);
}

uint64_t mica_expert_cache_slots(const mica_expert_cache *cache) {
    return cache->slot_count;
}

/* ---- the engine's side */

void mica_expert_cache_advance(mica_expert_cache *cache, uint64_t tokens) {
    cache->clock += (double)tokens;
}

void mica_expert_cache_use(mica_expert_cache *cache, uint64_t layer, uint64_t expert, uint64_t count, uint64_t span) {
    cache->policy->use(&cache->uses[entry_of(cache, layer, expert)], cache->clock, (double)count, (double)span);
}

bool mica_expert_cache_present(const mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    return cache->where[entry_of(cache, layer, expert)] >= 0;
}

/* Unpinned, and to be given away when what is on its way has ended. */
static bool any_busy(const mica_expert_cache *cache) {
    for (uint64_t i = 0; i < cache->slot_count; i++)
        if (!cache->slots[i].pins && (cache->slots[i].flying || cache->slots[i].demanded))
            return true;
    return false;
}

/* Of prefetches none is begun here: it would take the slot of an expert that is to be acquired next. */
bool mica_expert_cache_acquire(mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    uint64_t entry = entry_of(cache, layer, expert);
    int64_t number = cache->where[entry];
    bool present = number >= 0;
    while (!present && (number = free_slot(cache, false)) < 0 && (number = free_slot(cache, true)) < 0 && any_busy(cache)) {
        cache->expected_next = cache->expected_count; /* who is wanted does not wait for who might be */
        collect(cache, true);
    }
    if (number < 0)
        return false;
    slot *target = present ? &cache->slots[number] : fill(cache, number, entry, false);
    cache->meters.uses++;
    cache->meters.hits += target->state == READY;
    cache->meters.prefetch_used += target->prefetch;
    target->prefetch = false;
    target->pins++;
    if (!target->demanded && pieces_left(target)) {
        target->demanded = true;
        cache->demands[(cache->demand_head + cache->demand_count++) % cache->slot_count] = (uint32_t)number;
    }
    begin_demands(cache);
    return true;
}

static bool is_done(const slot *target) {
    return target->state == READY || target->state == FAILED;
}

static const slot *slot_of(const mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    return &cache->slots[cache->where[entry_of(cache, layer, expert)]];
}

bool mica_expert_cache_ready(mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    const slot *target = slot_of(cache, layer, expert);
    if (!is_done(target))
        mica_expert_cache_poll(cache);
    return is_done(target);
}

static bool any_done(const mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        if (is_done(slot_of(cache, layer, experts[i])))
            return true;
    return count == 0;
}

void mica_expert_cache_wait(mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count) {
    if (any_done(cache, layer, experts, count))
        return;
    double begin = mica_seconds_now();
    while (!any_done(cache, layer, experts, count))
        collect(cache, true);
    cache->meters.seconds_stalled += mica_seconds_now() - begin;
}

mica_status mica_expert_cache_get(mica_expert_cache *cache, uint64_t layer, uint64_t expert, const mica_matrix **matrices,
                                  mica_error *error) {
    slot *target = &cache->slots[cache->where[entry_of(cache, layer, expert)]];
    if (target->state == FAILED) {
        if (error)
            *error = target->error;
        return target->error.status;
    }
    *matrices = target->matrices;
    return MICA_OK;
}

void mica_expert_cache_release(mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    uint64_t entry = entry_of(cache, layer, expert);
    slot *target = &cache->slots[cache->where[entry]];
    if (--target->pins == 0 && target->state == FAILED) { /* the next demand tries again */
        cache->where[entry] = -1;
        target->state = FREE;
    }
}

static void mark_expected(mica_expert_cache *cache, bool expected) {
    for (uint64_t i = 0; i < cache->expected_count; i++)
        if (cache->where[cache->expected[i]] >= 0)
            cache->slots[cache->where[cache->expected[i]]].expected = expected;
}

void mica_expert_cache_expect(mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count) {
    mark_expected(cache, false);
    cache->expected_count = count < cache->slot_count ? count : cache->slot_count;
    cache->expected_next = 0;
    for (uint64_t i = 0; i < cache->expected_count; i++)
        cache->expected[i] = entry_of(cache, layer, experts[i]);
    mark_expected(cache, true);
    begin_reads(cache);
}

mica_expert_meters mica_expert_cache_meters(const mica_expert_cache *cache) {
    return cache->meters;
}
