/* model/router.h: which experts a token goes to, and with what weight. Pure functions; any thread.
 * Source: DeepSeek-V2 and V3's modelling code. Scores are the sigmoid or softmax of the router's logits; the choice is by score plus bias,
 * among the experts of the best groups; the weights are the scores of the chosen, without bias, normalised to 1 where the configuration
 * says so, times routed_scaling_factor. Experts outside the chosen groups are never taken. (V2's code scales only what it does not
 * normalise; no published configuration does both, and here both are done.) */
#ifndef MICA_MODEL_ROUTER_H
#define MICA_MODEL_ROUTER_H

#include "model/config.h"

typedef enum mica_router_method { MICA_ROUTER_GREEDY, MICA_ROUTER_GROUP_MAX, MICA_ROUTER_GROUP_TOP2 } mica_router_method;

typedef struct mica_router {
    uint64_t experts, top_k, groups, groups_taken;
    mica_router_method method; /* greedy: no groups; a group's score is its best choice, or the sum of its two best */
    bool softmax, normalise;
    float scaling;
} mica_router;

/* BAD_INPUT for a scoring_func or topk_method that is not computed. */
mica_status mica_router_init(const mica_config *config, mica_router *router, mica_error *error) MICA_CHECKED;

/* logits [experts] -> scores [experts], the chosen ids [top_k] ascending and their weights [top_k]. bias [experts] may be NULL; scratch
 * holds experts + groups floats. Ties go to the lower number. Logits that are not finite give some choice of distinct experts, and weights
 * that are not finite. */
void mica_router_choose(const mica_router *router, const float *logits, const float *bias, float *scratch, float *scores, uint32_t *ids,
                        float *weights);

#endif
