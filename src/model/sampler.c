/* model/sampler.c: see the header. Judged by tests/model/test_sampler.c. */
#include "model/sampler.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"

#define NEGLIGIBLE 46.0 /* e^-46: beyond it a candidate is left out before sorting; 2^28 of them weigh less than a rounding error */

static uint64_t rotate_left(uint64_t x, int bits) {
    return x << bits | x >> (64 - bits);
}

static uint64_t next_random(uint64_t state[4]) {
    uint64_t result = rotate_left(state[1] * 5, 7) * 9, shifted = state[1] << 17;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotate_left(state[3], 45);
    return result;
}

static uint64_t split_mix(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

mica_status mica_sampler_init(mica_sampler *sampler, uint64_t vocabulary, mica_error *error) {
    *sampler = (mica_sampler){.vocabulary = vocabulary, .candidates = mica_calloc(vocabulary, sizeof *sampler->candidates)};
    if (!sampler->candidates)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu candidates", (unsigned long long)vocabulary);
    mica_sampler_set(sampler, &(mica_sampler_options){0});
    return MICA_OK;
}

void mica_sampler_release(mica_sampler *sampler) {
    mica_free(sampler->candidates);
    sampler->candidates = NULL;
}

void mica_sampler_set(mica_sampler *sampler, const mica_sampler_options *options) {
    uint64_t seed = options->seed;
    sampler->options = *options;
    for (int i = 0; i < 4; i++)
        sampler->random[i] = split_mix(&seed);
}

static uint32_t likeliest(const float *logits, uint64_t count) {
    uint64_t best = 0;
    for (uint64_t i = 1; i < count; i++)
        if (logits[i] > logits[best])
            best = i;
    return (uint32_t)best;
}

static int compare_candidates(const void *left, const void *right) {
    const mica_candidate *a = left, *b = right;
    if (a->logit != b->logit)
        return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

/* exp of the distance to the largest, which is the first candidate's. */
static double weight(const mica_sampler *sampler, uint64_t i) {
    return exp(((double)sampler->candidates[i].logit - (double)sampler->candidates[0].logit) / sampler->options.temperature);
}

static uint64_t cut_tail(const mica_sampler *sampler, uint64_t count) {
    const mica_sampler_options *options = &sampler->options;
    if (options->top_k && count > options->top_k)
        count = options->top_k;
    double sum = 0, part = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += weight(sampler, i);
    for (uint64_t i = 0; i < count && options->top_p > 0 && options->top_p < 1; i++)
        if ((part += weight(sampler, i)) >= options->top_p * sum) {
            count = i + 1;
            break;
        }
    while (count > 1 && weight(sampler, count - 1) < options->min_p)
        count--;
    return count;
}

uint32_t mica_sampler_next(mica_sampler *sampler, const float *logits) {
    uint32_t best = likeliest(logits, sampler->vocabulary);
    double temperature = sampler->options.temperature;
    uint64_t count = 0;
    if (!(temperature > 0))
        return best;
    for (uint64_t i = 0; i < sampler->vocabulary; i++)
        if ((double)logits[best] - (double)logits[i] <= NEGLIGIBLE * temperature)
            sampler->candidates[count++] = (mica_candidate){logits[i], (uint32_t)i};
    qsort(sampler->candidates, count, sizeof *sampler->candidates, compare_candidates);
    count = cut_tail(sampler, count);
    double sum = 0, part = 0, drawn = (double)(next_random(sampler->random) >> 11) * 0x1p-53;
    for (uint64_t i = 0; i < count; i++)
        sum += weight(sampler, i);
    for (uint64_t i = 0; i < count; i++)
        if ((part += weight(sampler, i)) > drawn * sum)
            return sampler->candidates[i].id;
    return sampler->candidates[count - 1].id;
}
