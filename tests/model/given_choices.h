/* given_choices.h: an engine made to use other experts than those it chose, for tests that part what rounding does to the values from what
 * it does to the choice. An observer only looks on, but what it is shown is what the engine goes on with, and no constant. */
#ifndef MICA_TESTS_MODEL_GIVEN_CHOICES_H
#define MICA_TESTS_MODEL_GIVEN_CHOICES_H

#include <stdint.h>

#include "model/config.h"

/* Puts the experts `given` [tokens][top_k] in the place of `ids`, and their weights by the same scores [tokens][experts]; called by an
 * observer's `routing`. */
static inline void use_given_choices(const mica_config *config, uint64_t tokens, const uint32_t *given, const float *scores,
                                     const uint32_t *ids, const float *weights) {
    const uint64_t top_k = config->num_experts_per_tok;
    uint32_t *used = (uint32_t *)ids;
    float *gates = (float *)weights;
    for (uint64_t t = 0; t < tokens; t++) {
        float sum = 0;
        for (uint64_t i = t * top_k; i < (t + 1) * top_k; i++) {
            used[i] = given[i];
            gates[i] = scores[t * config->n_routed_experts + given[i]];
            sum += gates[i];
        }
        for (uint64_t i = t * top_k; i < (t + 1) * top_k; i++)
            gates[i] *= (float)config->routed_scaling_factor / (config->norm_topk_prob ? sum + 1e-20f : 1);
    }
}

#endif
