/* bench_attention: multi-head latent attention, one layer, one thread, bf16 cache: absorbed (all heads read one row of 640) against
 * expanded (256 + 128 a head), in microseconds a cached position; for one token (decode), and for 512 tokens at once (prefill, causal); a
 * rotated key is kept as two numbers. Then grouped attention, 8 key-value heads of 128 + 128, heads of a group together or each by itself.
 * Thread CPU time, medians of five, both alternating, so that each begins with what the other left of the caches. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "bench.h"
#include "numerics/attention.h"

enum { PASSES = 5, RANK = 512, ROPE = 2 * 64, NOPE = 128, VALUE = 128, KEY_VALUE_HEADS = 8 };
enum { MOST_HEADS = 128, MOST_POSITIONS = 4096, PREFILL = 512 };

static void *allocate(uint64_t bytes) {
    uint16_t *p = mica_alloc_aligned(bytes);
    if (!p) {
        fprintf(stderr, "bench_attention: out of memory\n");
        exit(4);
    }
    uint64_t state = 88172645463325252u;
    for (uint64_t i = 0; i < bytes / 2; i++) { /* bf16 around 1; as float32 too */
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        p[i] = (uint16_t)((state & 0x80ff) | 0x3f00);
    }
    return p;
}

typedef struct arrays {
    uint16_t *cache, *keys, *values;
    float *queries, *out;
    mica_attention_sum *sums;
    void *scratch;
} arrays;

static void absorbed(const arrays *a, uint64_t heads, uint64_t tokens, uint64_t positions) {
    mica_attention attention = {.dtype = MICA_BF16, .keys = a->cache, .key_width = RANK + ROPE, .key_stride = RANK + ROPE, .values = a->cache,
                                .value_width = RANK, .value_stride = RANK + ROPE, .scale = 0.01f, .heads = heads, .visible = positions - tokens + 1};
    mica_attend(&attention, 0, positions, a->queries, RANK + ROPE, heads * tokens, a->out, RANK, a->sums, a->scratch);
}

/* The keys of a head and their part of the cache with it: [positions][256]; the values [positions][128]. */
static void expanded(const arrays *a, uint64_t heads, uint64_t tokens, uint64_t positions) {
    for (uint64_t head = 0; head < heads; head++) {
        mica_attention attention = {.dtype = MICA_BF16, .keys = a->keys + head * positions * (NOPE + ROPE), .key_width = NOPE + ROPE,
                                    .key_stride = NOPE + ROPE, .values = a->values + head * positions * VALUE, .value_width = VALUE,
                                    .value_stride = VALUE, .scale = 0.01f, .heads = 1, .visible = positions - tokens + 1};
        mica_attend(&attention, 0, positions, a->queries, NOPE + ROPE, tokens, a->out, VALUE, a->sums, a->scratch);
    }
}

/* Heads that share a row of keys and values, `together` of them in a call; the cache is [key-value heads][positions][128 + 128]. */
static void grouped(const arrays *a, uint64_t heads, uint64_t tokens, uint64_t positions, uint64_t together) {
    for (uint64_t head = 0; head < heads; head += together) {
        const uint16_t *keys = a->keys + head * KEY_VALUE_HEADS / heads * positions * 2 * VALUE;
        mica_attention attention = {.dtype = MICA_BF16, .keys = keys, .key_width = VALUE, .key_stride = 2 * VALUE, .values = keys + VALUE,
                                    .value_width = VALUE, .value_stride = 2 * VALUE, .scale = 0.01f, .heads = together,
                                    .visible = positions - tokens + 1};
        mica_attend(&attention, 0, positions, a->queries, VALUE, together * tokens, a->out, VALUE, a->sums, a->scratch);
    }
}

static void grouped_together(const arrays *a, uint64_t heads, uint64_t tokens, uint64_t positions) {
    grouped(a, heads, tokens, positions, heads / KEY_VALUE_HEADS);
}

static void grouped_each(const arrays *a, uint64_t heads, uint64_t tokens, uint64_t positions) {
    grouped(a, heads, tokens, positions, 1);
}

typedef struct way { /* two ways to the same, and their multiplications for a head and a pair of a token and a position */
    void (*first)(const arrays *a, uint64_t heads, uint64_t tokens, uint64_t positions);
    void (*second)(const arrays *a, uint64_t heads, uint64_t tokens, uint64_t positions);
    uint64_t first_work, second_work;
} way;

static void measure(const arrays *a, const way *w, uint64_t heads, uint64_t tokens, uint64_t positions) {
    double times[2][PASSES];
    for (int pass = -1; pass < PASSES; pass++) {
        double start = mica_thread_seconds_now();
        w->first(a, heads, tokens, positions);
        double middle = mica_thread_seconds_now();
        w->second(a, heads, tokens, positions);
        double end = mica_thread_seconds_now();
        times[0][pass < 0 ? 0 : pass] = middle - start;
        times[1][pass < 0 ? 0 : pass] = end - middle;
    }
    double first = median(times[0], PASSES), second = median(times[1], PASSES), pairs = 0; /* (token, position) */
    for (uint64_t t = 0; t < tokens; t++)
        pairs += (double)(positions - tokens + 1 + t);
    printf("%5llu %6llu %9llu %12.3f %9.0f %12.3f %9.0f %8.2f\n", (unsigned long long)heads, (unsigned long long)tokens, (unsigned long long)positions,
           1e6 * first / pairs, 2e-9 * (double)heads * pairs * (double)w->first_work / first, 1e6 * second / pairs,
           2e-9 * (double)heads * pairs * (double)w->second_work / second, second / first);
    fflush(stdout);
}

int main(void) {
    arrays a = {.cache = allocate(2ull * MOST_POSITIONS * (RANK + ROPE)),
                .keys = allocate(2ull * MOST_HEADS * MOST_POSITIONS * (NOPE + ROPE)),
                .values = allocate(2ull * MOST_HEADS * MOST_POSITIONS * VALUE), .queries = allocate(4ull * 64 * PREFILL * (RANK + ROPE)),
                .out = allocate(4ull * 64 * PREFILL * RANK), .sums = allocate(64 * PREFILL * sizeof(mica_attention_sum)),
                .scratch = allocate(MICA_ATTENTION_SCRATCH_BYTES(RANK + ROPE, RANK))};
    const way latent = {absorbed, expanded, 2 * RANK + ROPE, NOPE + ROPE + VALUE};
    const way group = {grouped_together, grouped_each, 2 * VALUE, 2 * VALUE};
    printf("kernels %s%s\n%5s %6s %9s %12s %9s %12s %9s %8s\n", mica_cpu_name(mica_cpu_current()), mica_cpu_has_bf16() ? " with bf16" : "", "heads",
           "tokens", "positions", "absorbed us", "GFLOP/s", "expanded us", "GFLOP/s", "ratio");
    for (uint64_t heads = 16; heads <= MOST_HEADS; heads *= heads == 16 ? 4 : 2)
        for (uint64_t positions = 512; positions <= 4096; positions *= 8)
            measure(&a, &latent, heads, 1, positions);
    for (uint64_t heads = 16; heads <= 64; heads *= 4)
        measure(&a, &latent, heads, PREFILL, PREFILL);
    printf("\n%5s %6s %9s %12s %9s %12s %9s %8s\n", "heads", "tokens", "positions", "together us", "GFLOP/s", "each us", "GFLOP/s",
           "ratio");
    for (uint64_t heads = 32; heads <= 64; heads *= 2) {
        measure(&a, &group, heads, 1, 4096);
        measure(&a, &group, heads, PREFILL, PREFILL);
    }
    return 0;
}
