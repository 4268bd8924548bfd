/* bench/mapped_experts.c: the peer of model/expert_cache.c: the same interface, but experts are not read, they are mapped, and the kernel's page
 * cache decides what stays in memory. Linked into bench_experts_mapped in place of it, so that everything else that is computed is the same.
 * With MICA_BENCH_WILLNEED in the environment the pieces of an expert are announced (MADV_WILLNEED) when it is chosen, all of a token and layer
 * before the first is computed. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "model/expert_cache.h"
#include "model/weight_layout.h"

#define EXTENTS (MICA_PROJECTION_COUNT * MICA_EXTENTS_PER_WEIGHT)
#define PAGE UINT64_C(4096)

typedef struct mapped_expert {
    mica_matrix matrices[MICA_PROJECTION_COUNT];
    mica_layout_read reads[EXTENTS];
    uint64_t read_count;
} mapped_expert;

struct mica_expert_cache {
    uint64_t slots, experts_per_layer, count;
    bool announce;
    uint8_t **shards; /* [shard_count], mapped */
    const mica_model *model;
    mapped_expert *experts;
    mica_expert_meters meters;
};

const mica_cache_policy *mica_cache_policy_at(uint64_t index) {
    static const mica_cache_policy kernel = {"kernel", "the page cache's own", NULL};
    return index == 0 ? &kernel : NULL;
}

const mica_cache_policy *mica_cache_policy_find(const char *name) {
    (void)name;
    return mica_cache_policy_at(0);
}

uint64_t mica_expert_count(const mica_model *model) {
    uint64_t count = 0;
    for (uint64_t layer = 0; layer < model->config.num_hidden_layers; layer++)
        count += model->layers[layer].moe ? model->config.n_routed_experts : 0;
    return count;
}

uint64_t mica_expert_slot_overhead(void) {
    return 0;
}

uint64_t mica_expert_slot_bytes(const mica_model *model) {
    (void)model;
    return PAGE; /* no slots: the budget is the control group's */
}

static mica_status map_expert(mica_expert_cache *cache, uint64_t layer, uint64_t number, mica_error *error) {
    mapped_expert *expert = &cache->experts[layer * cache->experts_per_layer + number];
    for (int i = 0; i < MICA_PROJECTION_COUNT; i++) {
        const mica_weight *weight = cache->model->layers[layer].experts[number * MICA_PROJECTION_COUNT + i];
        const mica_tensor *scale = weight->scale;
        mica_status status = mica_weight_matrix(cache->model, weight, cache->shards[weight->data->shard] + weight->data->offset,
                                                scale ? cache->shards[scale->shard] + scale->offset : NULL, NULL, &expert->matrices[i],
                                                error);
        if (status != MICA_OK)
            return status;
        expert->reads[expert->read_count++] = (mica_layout_read){weight->data->shard, weight->data->offset, weight->data->bytes, 0};
        if (scale)
            expert->reads[expert->read_count++] = (mica_layout_read){scale->shard, scale->offset, scale->bytes, 0};
    }
    return MICA_OK;
}

mica_status mica_expert_cache_open(const mica_model *model, uint64_t slots, uint32_t reading_threads, const mica_cache_policy *policy,
                                   mica_expert_cache **result, mica_error *error) {
    (void)policy;
    (void)reading_threads;
    mica_expert_cache *cache = calloc(1, sizeof *cache);
    const mica_config *config = &model->config;
    *cache = (mica_expert_cache){
        .model = model, .slots = slots, .experts_per_layer = config->n_routed_experts, .announce = getenv("MICA_BENCH_WILLNEED") != NULL};
    cache->shards = calloc(model->source->shard_count, sizeof *cache->shards);
    cache->experts = calloc(config->num_hidden_layers * cache->experts_per_layer, sizeof *cache->experts);
    for (uint64_t i = 0; i < model->source->shard_count; i++) {
        const char *path = mica_file_path(model->source->shards[i].file);
        int descriptor = open(path, O_RDONLY | O_CLOEXEC);
        void *mapped = descriptor < 0 ? MAP_FAILED
                                      : mmap(NULL, mica_file_bytes(model->source->shards[i].file), PROT_READ, MAP_SHARED, descriptor, 0);
        if (mapped == MAP_FAILED)
            return mica_fail(error, MICA_IO, "%s: cannot map it", path);
        close(descriptor);
        cache->shards[i] = mapped;
    }
    for (uint64_t layer = 0; layer < config->num_hidden_layers; layer++)
        for (uint64_t e = 0; model->layers[layer].moe && e < cache->experts_per_layer; e++) {
            mica_status status = map_expert(cache, layer, e, error);
            if (status != MICA_OK)
                return status;
        }
    *result = cache;
    return MICA_OK;
}

void mica_expert_cache_close(mica_expert_cache *cache) {
    if (!cache)
        return;
    for (uint64_t i = 0; i < cache->model->source->shard_count; i++)
        munmap(cache->shards[i], mica_file_bytes(cache->model->source->shards[i].file));
    free(cache->shards);
    free(cache->experts);
    free(cache);
}

uint64_t mica_expert_cache_slots(const mica_expert_cache *cache) {
    return cache->slots;
}
void mica_expert_cache_advance(mica_expert_cache *cache, uint64_t tokens) {
    (void)cache, (void)tokens;
}
void mica_expert_cache_use(mica_expert_cache *cache, uint64_t layer, uint64_t expert, uint64_t count, uint64_t span) {
    (void)cache, (void)layer, (void)expert, (void)count, (void)span;
}
bool mica_expert_cache_present(const mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    (void)cache, (void)layer, (void)expert;
    return true;
}

bool mica_expert_cache_acquire(mica_expert_cache *cache, uint64_t layer, uint64_t number) {
    const mapped_expert *expert = &cache->experts[layer * cache->experts_per_layer + number];
    for (uint64_t i = 0; cache->announce && i < expert->read_count; i++) {
        uint64_t first = expert->reads[i].offset / PAGE * PAGE;
        (void)madvise(cache->shards[expert->reads[i].shard] + first, expert->reads[i].offset + expert->reads[i].bytes - first,
                      MADV_WILLNEED);
    }
    cache->meters.uses++;
    return true;
}

bool mica_expert_cache_ready(mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    (void)cache, (void)layer, (void)expert;
    return true;
}
void mica_expert_cache_wait(mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count) {
    (void)cache, (void)layer, (void)experts, (void)count;
}
mica_status mica_expert_cache_get(mica_expert_cache *cache, uint64_t layer, uint64_t expert, const mica_matrix **matrices,
                                  mica_error *error) {
    (void)error;
    *matrices = cache->experts[layer * cache->experts_per_layer + expert].matrices;
    return MICA_OK;
}
void mica_expert_cache_release(mica_expert_cache *cache, uint64_t layer, uint64_t expert) {
    (void)cache, (void)layer, (void)expert;
}
void mica_expert_cache_expect(mica_expert_cache *cache, uint64_t layer, const uint32_t *experts, uint64_t count) {
    (void)cache, (void)layer, (void)experts, (void)count;
}
mica_expert_meters mica_expert_cache_meters(const mica_expert_cache *cache) {
    return cache->meters;
}

void mica_expert_cache_poll(mica_expert_cache *cache) {
    (void)cache;
}
