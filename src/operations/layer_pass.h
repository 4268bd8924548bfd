/* operations/layer_pass.h: many sequences through a model, layer by layer: attention and router for all tokens, then the experts in groups
 * that the cache holds, so that each weight is read once however many tokens there are and however small the budget. Collectors attach to
 * it. A pass can be ended after any layer and taken up again, with the same result: what a resume needs, the hidden states and what
 * collectors have of each layer, is on the disk when a layer ends (RESULT.activations.partial, RESULT.journal). Activations are in memory
 * up to an eighth of the budget, else in that file.
 * Judged by tests/operations/test_layer_pass.c, test_route.c, test_imatrix_collect.c and tests/faults/kill_pass.sh. */
#ifndef MICA_OPERATIONS_LAYER_PASS_H
#define MICA_OPERATIONS_LAYER_PASS_H

#include "operations/compute.h"
#include "operations/layer_states.h"
#include "operations/pass_journal.h"

#define MICA_PASS_COLLECTORS 4u

/* Who attaches to a pass. All calls come on the calling thread, with the observer's context; each may be NULL. What a collector has of a
 * layer is whole when the layer ends: it has then written what goes into a file (`end`), and gives the rest as bytes (`save`), which come
 * back in a pass that is taken up, layer by layer, before anything is computed (`load`). */
typedef struct mica_layer_collector {
    mica_observer observer; /* of the layers' products; its `hidden` is not called */
    /* Before a layer's attention; behind its router, with every token's choices [choices] (only where it has experts); the residual stream
     * of `count` tokens before and behind a layer; behind the layer. */
    mica_status (*begin)(void *context, uint64_t layer, mica_error *error);
    mica_status (*routed)(void *context, uint64_t layer, const uint32_t *chosen, uint64_t choices, mica_error *error);
    void (*residual)(void *context, uint64_t layer, const float *before, const float *after, uint64_t count);
    mica_status (*end)(void *context, uint64_t layer, mica_error *error);
    void (*save)(void *context, uint64_t layer, mica_text *bytes);
    /* CORRUPT: not what `save` gave */
    mica_status (*load)(void *context, uint64_t layer, const uint8_t *bytes, uint64_t count, mica_error *error);
} mica_layer_collector;

typedef struct mica_layer_pass {
    /* set before mica_layer_pass_prepare */
    mica_compute *compute;  /* its model is open; its engine from mica_layer_pass_run on */
    const char *what;       /* the progress's word */
    mica_progress_function progress; /* may be NULL */
    void *progress_context;
    mica_layer_collector collectors[MICA_PASS_COLLECTORS];
    uint32_t collector_count;
    /* What collectors wrote to files is on the disk when it returns; may be NULL. */
    mica_status (*sync)(void *context, mica_error *error);
    /* Records of a pass that is taken up, but for its layers; NULL: there are none. */
    mica_journal_visit replay;
    void *context; /* of these two */

    uint64_t layers_done;   /* on the disk; of the runs before and of this one */
    uint64_t layers_before; /* of the runs before */
    mica_pass_journal journal;
    int64_t *ids;           /* of all sequences, one after the other; owned, as is what follows */
    uint64_t *starts;       /* [sequences + 1] */
    uint64_t sequences, tokens;
    uint64_t *chunks;       /* [chunk_count + 1]: first sequence of each */
    uint64_t chunk_count, batch, longest;
    uint32_t *chosen;       /* [tokens][top_k] */
    float *gates, *x, *normed;
    mica_states states;
    char *states_path;
    double start_time;
} mica_layer_pass;

/* Adds one sequence; an empty one is none. */
mica_status mica_layer_pass_add(mica_layer_pass *pass, const int64_t *ids, uint64_t count, mica_error *error) MICA_CHECKED;

/* What the pass computes, as members of an object that is being written: precision, the sequences and their digest, the source, the
 * instruction set; and the source's files, where `shards`. */
mica_status mica_layer_pass_describe(const mica_layer_pass *pass, bool exact, bool shards, mica_json_writer *writer,
                                     mica_error *error) MICA_CHECKED;

/* When all are there, before the engine is opened with `batch` as its layer batch and `longest` as its context: what the pass needs counts
 * towards the budget. */
mica_status mica_layer_pass_prepare(mica_layer_pass *pass, uint64_t memory_bytes, mica_error *error) MICA_CHECKED;
/* Then, before the engine too: the files beside `result`, made anew (`fresh`), or as the run before of the same `job` (JSON) left them:
 * layers_done says how far that came, and collectors have what they had. */
mica_status mica_layer_pass_open(mica_layer_pass *pass, const char *result, bool fresh, const char *job, uint64_t length,
                                 mica_error *error) MICA_CHECKED;
/* The layers that are left: with none there need not be an engine. INTERRUPTED: progress said so; what it had of a layer is lost. */
mica_status mica_layer_pass_run(mica_layer_pass *pass, mica_error *error) MICA_CHECKED;
/* The result has its name: the pass's files go. */
mica_status mica_layer_pass_finish(mica_layer_pass *pass, mica_error *error) MICA_CHECKED;
/* Leaves the files, unless there is no layer to resume from. */
void mica_layer_pass_release(mica_layer_pass *pass);

#endif
