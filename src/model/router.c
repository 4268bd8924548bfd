/* model/router.c: see the header. Judged by tests/model/test_router.c against the reference, and by the fixtures' choices in
 * test_forward.c. */
#include "model/router.h"

#include <math.h>
#include <string.h>

#include "numerics/elementwise.h"

mica_status mica_router_init(const mica_config *config, mica_router *router, mica_error *error) {
    static const struct {
        const char *name;
        mica_router_method method;
    } methods[] = {{"greedy", MICA_ROUTER_GREEDY}, {"group_limited_greedy", MICA_ROUTER_GROUP_MAX}, {"noaux_tc", MICA_ROUTER_GROUP_TOP2}};
    *router = (mica_router){.experts = config->n_routed_experts,
                            .top_k = config->num_experts_per_tok,
                            .groups = config->n_group ? config->n_group : 1,
                            .groups_taken = config->topk_group ? config->topk_group : 1,
                            .softmax = strcmp(config->scoring_func, "softmax") == 0,
                            .normalise = config->norm_topk_prob,
                            .scaling = (float)config->routed_scaling_factor};
    if (!router->softmax && strcmp(config->scoring_func, "sigmoid") != 0)
        return mica_fail(error, MICA_BAD_INPUT, "config.json: scoring_func: expected sigmoid or softmax to run the model, got %s",
                         config->scoring_func);
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        if (strcmp(methods[i].name, config->topk_method) != 0)
            continue;
        router->method = methods[i].method;
        if (router->method == MICA_ROUTER_GREEDY || router->groups_taken == router->groups)
            router->groups = router->groups_taken = 1;
        return MICA_OK;
    }
    return mica_fail(error, MICA_BAD_INPUT,
                     "config.json: topk_method: expected greedy, group_limited_greedy or noaux_tc to run the model, got %s",
                     config->topk_method);
}

static float group_score(const mica_router *router, const float *choice) {
    float first = -INFINITY, second = -INFINITY;
    for (uint64_t i = 0; i < router->experts / router->groups; i++) {
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return router->method == MICA_ROUTER_GROUP_TOP2 && second > -INFINITY ? first + second : first;
}

/* The largest that is not yet taken; NaN is as small as can be. What is taken is marked by NaN, so that there is always one more. */
static uint64_t take_largest(float *values, uint64_t count) {
    uint64_t best = count;
    for (uint64_t i = 0; i < count; i++)
        if (!isnan(values[i]) && (best == count || values[i] > values[best]))
            best = i;
    if (best < count)
        values[best] = NAN;
    return best;
}

static void limit_groups(const mica_router *router, float *choice, float *groups) {
    uint64_t size = router->experts / router->groups;
    for (uint64_t g = 0; g < router->groups; g++)
        groups[g] = group_score(router, choice + g * size);
    for (uint64_t taken = 0; taken < router->groups_taken; taken++)
        (void)take_largest(groups, router->groups); /* leaves NaN in those that stay */
    for (uint64_t e = 0; e < router->experts; e++)
        if (!isnan(groups[e / size]))
            choice[e] = -INFINITY;
}

void mica_router_choose(const mica_router *router, const float *logits, const float *bias, float *scratch, float *scores, uint32_t *ids,
                        float *weights) {
    float *choice = scratch, *groups = scratch + router->experts, sum = 0;
    if (router->softmax)
        mica_softmax(logits, router->experts, scores);
    else
        mica_sigmoid(logits, router->experts, scores);
    for (uint64_t e = 0; e < router->experts; e++) {
        choice[e] = bias ? scores[e] + bias[e] : scores[e];
        if (isnan(choice[e]))
            choice[e] = -INFINITY;
    }
    if (router->groups > 1)
        limit_groups(router, choice, groups);
    for (uint64_t taken = 0; taken < router->top_k; taken++)
        (void)take_largest(choice, router->experts);
    for (uint64_t e = 0, at = 0; e < router->experts && at < router->top_k; e++)
        if (isnan(choice[e])) {
            ids[at] = (uint32_t)e;
            weights[at++] = scores[e];
            sum += scores[e];
        }
    float factor = router->normalise ? router->scaling / (sum + 1e-20f) : router->scaling;
    for (uint64_t i = 0; i < router->top_k; i++)
        weights[i] *= factor;
}
