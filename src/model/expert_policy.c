/* model/expert_policy.c: which expert is given away first. Judged by tests/model/test_expert_cache.c; measured by bench_engine. */
#include <math.h>
#include <string.h>

#include "model/expert_cache.h"

#define HALF_LIFE 64.0 /* tokens: measured on simulated routing; 32 to 256 differ by less than a point of the hit rate */

/* The count of uses, halved every HALF_LIFE tokens. All counts fade alike, so that their order is that of log2(count) + now / HALF_LIFE at
 * the last use: a number that need not be touched in between. The uses of a long span are taken as spread over it evenly. */
static void use_lfu(mica_expert_use *use, double now, double count, double span) {
    double spread = span > 1 ? HALF_LIFE / (log(2) * span) * (1 - exp2(-span / HALF_LIFE)) : 1;
    use->weight = use->weight * exp2((use->at - now) / HALF_LIFE) + count * spread;
    use->at = now;
    use->value = log2(use->weight) + now / HALF_LIFE;
}

static void use_lru(mica_expert_use *use, double now, double count, double span) {
    (void)count;
    (void)span;
    use->value = use->at = now;
}

static const mica_cache_policy policies[] = {
    {"lfu", "least frequently used, counts halved every 64 tokens", use_lfu},
    {"lru", "least recently used", use_lru},
};

const mica_cache_policy *mica_cache_policy_at(uint64_t index) {
    return index < sizeof policies / sizeof *policies ? &policies[index] : NULL;
}

const mica_cache_policy *mica_cache_policy_find(const char *name) {
    const mica_cache_policy *policy = policies;
    for (uint64_t i = 0; name && (policy = mica_cache_policy_at(i)) != NULL && strcmp(policy->name, name) != 0;)
        i++;
    return policy;
}
