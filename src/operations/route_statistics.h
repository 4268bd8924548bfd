/* operations/route_statistics.h: what is counted of a pass, per layer and expert; and the report of it. Sums are double, in the order of
 * the pass. */
#ifndef MICA_OPERATIONS_ROUTE_STATISTICS_H
#define MICA_OPERATIONS_ROUTE_STATISTICS_H

#include "base/json.h"
#include "operations/layer_pass.h"

/* A mean in the making. */
typedef struct mica_tally {
    double sum, squares, largest;
    uint64_t count;
} mica_tally;

typedef struct mica_expert_tally {
    /* over the tokens that chose it: weight; output norm; their product; share of small activations */
    mica_tally gate, norm, reap, sparsity;
} mica_expert_tally;

typedef struct mica_layer_tally {
    mica_tally entropy, cosine;       /* over all tokens; entropy of a layer with experts */
    mica_expert_tally block;          /* the dense block, or the shared experts */
    mica_expert_tally *experts;       /* [experts]; NULL for a dense layer */
    uint32_t *together;               /* [experts][experts]: tokens that chose both */
} mica_layer_tally;

typedef struct mica_route_statistics {
    const mica_model *model;
    mica_layer_tally *layers; /* [num_hidden_layers] */
} mica_route_statistics;

mica_status mica_route_statistics_init(mica_route_statistics *statistics, const mica_model *model, mica_error *error) MICA_CHECKED;
void mica_route_statistics_release(mica_route_statistics *statistics);
mica_layer_collector mica_route_statistics_collector(mica_route_statistics *statistics);

typedef struct mica_route_facts { /* of the pass, for the report */
    const char *checkpoint, *precision, *prompts;
    uint64_t prompt_count, truncated, window, tokens;
} mica_route_facts;
/* Members of an object that is being written. */
void mica_route_statistics_json(const mica_route_statistics *statistics, const mica_route_facts *facts, mica_json_writer *writer);
void mica_route_statistics_text(const mica_route_statistics *statistics, const mica_route_facts *facts, mica_text *text);

#endif
