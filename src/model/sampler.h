/* model/sampler.h: the next token from its logits. Its random numbers are its own (xoshiro256**, seeded by splitmix64): the same seed gives
 * the same tokens on every machine that computes the same logits. */
#ifndef MICA_MODEL_SAMPLER_H
#define MICA_MODEL_SAMPLER_H

#include "base/error.h"

#include <stdint.h>

typedef struct mica_sampler_options {
    double temperature; /* 0: the largest logit, the first of equals */
    double top_p;       /* 0 or 1: all */
    double min_p;
    uint64_t top_k;     /* 0: all */
    uint64_t seed;
} mica_sampler_options;

typedef struct mica_candidate {
    float logit;
    uint32_t id;
} mica_candidate;

typedef struct mica_sampler {
    mica_sampler_options options;
    uint64_t random[4];
    uint64_t vocabulary;
    mica_candidate *candidates; /* [vocabulary], owned */
} mica_sampler;

mica_status mica_sampler_init(mica_sampler *sampler, uint64_t vocabulary, mica_error *error) MICA_CHECKED;
void mica_sampler_release(mica_sampler *sampler);
void mica_sampler_set(mica_sampler *sampler, const mica_sampler_options *options); /* and seeds */

/* logits [vocabulary], finite. Divided by the temperature; then of the likeliest top_k those that make up top_p (at least one), and of
 * these those with at least min_p times the largest probability. Ties go to the lower id. Allocates nothing. */
uint32_t mica_sampler_next(mica_sampler *sampler, const float *logits);

#endif
