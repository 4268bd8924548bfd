/* operations/route_statistics.h: what is counted of a pass, per layer and expert; and the report of it. Sums are double, in the order of the pass. */
#ifndef MICA_OPERATIONS_ROUTE_STATISTICS_H
#define MICA_OPERATIONS_ROUTE_STATISTICS_H

#include "base/json.h"
#include "base/text.h"
#include "model/engine.h"

/* A mean in the making. */
typedef struct mica_tally {
    double sum, squares, largest;
    uint64_t count;
} mica_tally;

typedef struct mica_expert_tally {
    mica_tally gate, norm, reap, sparsity; /* over the tokens that chose it: weight; output norm; their product; share of small activations */
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
    uint64_t tokens;
} mica_route_statistics;

mica_status mica_route_statistics_init(mica_route_statistics *statistics, const mica_model *model, mica_error *error) MICA_CHECKED;
void mica_route_statistics_release(mica_route_statistics *statistics);
mica_observer mica_route_statistics_observer(mica_route_statistics *statistics);
/* The residual stream before and after a layer, [count][hidden]. */
void mica_route_statistics_residual(mica_route_statistics *statistics, uint64_t layer, const float *before, const float *after, uint64_t count);

typedef struct mica_route_facts { /* of the pass, for the report */
    const char *checkpoint, *precision, *prompts;
    uint64_t prompt_count, truncated, window;
} mica_route_facts;
void mica_route_statistics_json(const mica_route_statistics *statistics, const mica_route_facts *facts, mica_json_writer *writer);
void mica_route_statistics_text(const mica_route_statistics *statistics, const mica_route_facts *facts, mica_text *text);

#endif
