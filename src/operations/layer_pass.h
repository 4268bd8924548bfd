/* operations/layer_pass.h: many sequences through a model, layer by layer: attention and router for all tokens, then the experts in groups that the cache
 * holds, so that each weight is read once however many tokens there are and however small the budget. Activations are in memory up to an eighth of the
 * budget, else in a file without a name. Judged by tests/operations/test_route.c and test_imatrix_collect.c. */
#ifndef MICA_OPERATIONS_LAYER_PASS_H
#define MICA_OPERATIONS_LAYER_PASS_H

#include "operations/compute.h"
#include "operations/route_states.h"

typedef struct mica_layer_pass {
    /* set before mica_layer_pass_prepare */
    mica_compute *compute;  /* its model is open; its engine from mica_layer_pass_run on */
    const char *what;       /* the progress's word */
    mica_progress_function progress; /* may be NULL */
    void *progress_context, *context; /* the latter for the calls below, each of which may be NULL; all on the calling thread */
    /* Before a layer's attention; behind its router, with every token's choices [tokens][top_k] (only where it has experts); behind the layer. */
    mica_status (*begin)(void *context, uint64_t layer, mica_error *error);
    mica_status (*routed)(void *context, uint64_t layer, const uint32_t *chosen, mica_error *error);
    mica_status (*end)(void *context, uint64_t layer, mica_error *error);
    /* The residual stream of `count` tokens before and behind a layer. */
    void (*residual)(void *context, uint64_t layer, const float *before, const float *after, uint64_t count);

    int64_t *ids;           /* of all sequences, one after the other; owned, as is what follows */
    uint64_t *starts;       /* [sequences + 1] */
    uint64_t sequences, tokens;
    uint64_t *chunks;       /* [chunk_count + 1]: first sequence of each */
    uint64_t chunk_count, batch, longest;
    uint32_t *chosen;       /* [tokens][top_k] */
    float *gates, *x, *normed;
    mica_states states;
    double start_time;
} mica_layer_pass;

/* Adds one sequence; an empty one is none. */
mica_status mica_layer_pass_add(mica_layer_pass *pass, const int64_t *ids, uint64_t count, mica_error *error) MICA_CHECKED;

/* When all are there, before the engine is opened with `batch` as its layer batch and `longest` as its context: what the pass needs counts towards
 * the budget. `directory`: where activations go that do not fit. */
mica_status mica_layer_pass_prepare(mica_layer_pass *pass, uint64_t memory_bytes, const char *directory, mica_error *error) MICA_CHECKED;
mica_status mica_layer_pass_run(mica_layer_pass *pass, mica_error *error) MICA_CHECKED; /* INTERRUPTED: progress said so */
void mica_layer_pass_release(mica_layer_pass *pass);

#endif
