/* model/engine.h: a model's computation: weights in memory or streamed, sessions, and the forward pass.
 *
 * Everything but the routed experts is read at opening and stays; routed experts live in a cache (model/expert_cache.h). What is
 * computed depends on the tokens, the precision and the size of the batches, on nothing else: not on memory, policy or threads.
 * One thread calls; the engine has compute and reading threads of its own. After opening, a step allocates nothing. */
#ifndef MICA_MODEL_ENGINE_H
#define MICA_MODEL_ENGINE_H

#include "base/pool.h"
#include "model/expert_cache.h"
#include "model/model.h"
#include "numerics/product.h"

typedef struct mica_engine mica_engine;
typedef struct mica_session mica_session;

typedef struct mica_engine_options {
    mica_precision precision;
    uint32_t threads;         /* 0: all processors */
    uint32_t reading_threads; /* 0: 8; of experts, only where the kernel has no queue for direct reads */
    uint64_t memory_bytes;    /* of the whole process; 0: four fifths of what the machine has to give */
    uint64_t context;         /* positions a session can hold; 0: 4096, or what the model has */
    uint64_t batch;           /* tokens computed at a time; 0: 512 */
    uint64_t slots;           /* of the cache at most; 0: what the memory allows */
    const char *policy;       /* of the cache; NULL: the default */
    bool no_lookahead;        /* do not prefetch what the next layer's router would choose now; never where all experts have slots */
    bool layer_at_a_time;     /* the session holds one layer's keys and values: for mica_engine_layer alone */
} mica_engine_options;

/* What is told of a pass while it runs, on the calling thread; every function may be NULL. Arrays are valid during the call.
 * Rows of activations belong to the tokens of the step, in their order. */
typedef struct mica_observer {
    void *context;
    /* Weight W is about to be multiplied with x [tokens][stride], of which `selection` [tokens] (NULL: all in order) takes part. */
    void (*input)(void *context, const mica_weight *weight, const float *x, uint64_t stride, const uint32_t *selection, uint64_t tokens);
    /* The router of a layer: its scores [tokens][experts], the chosen ids and weights [tokens][top_k]. */
    void (*routing)(void *context, uint64_t layer, uint64_t tokens, const float *scores, const uint32_t *ids, const float *weights);
    /* One expert's work on `count` tokens: which, their gate weights, silu(gate) * up [count][moe_intermediate_size], outputs before
     * weighting [count][hidden]. expert -1: the shared experts, or a dense layer's feed-forward (weights NULL). */
    void (*expert)(void *context, uint64_t layer, int64_t expert, uint64_t count, const uint32_t *tokens, const float *weights,
                   const float *gated, const float *outputs);
    /* The residual stream [tokens][hidden] before layer `layer` (the embedding before 0; behind the last layer, layer ==
     * num_hidden_layers). */
    void (*hidden)(void *context, uint64_t layer, uint64_t tokens, const float *x);
} mica_observer;

/* Opens the model for computation; it stays the caller's and must outlive the engine. BAD_INPUT for a model that is not computed or lacks
 * something, USAGE for a budget below what is resident (the message says how much is needed). */
mica_status mica_engine_open(const mica_model *model, const mica_engine_options *options, mica_engine **engine,
                             mica_error *error) MICA_CHECKED;
void mica_engine_close(mica_engine *engine); /* NULL is fine */
const mica_model *mica_engine_model(const mica_engine *engine);
uint64_t mica_engine_batch(const mica_engine *engine);
uint64_t mica_engine_context(const mica_engine *engine);
mica_pool *mica_engine_pool(const mica_engine *engine); /* its compute threads, which stand idle while an observer is told something */
void mica_engine_observe(mica_engine *engine, const mica_observer *observer); /* copied; NULL: nobody */

/* The one session: how many positions it holds, and back to fewer (0: from the start). */
uint64_t mica_engine_position(const mica_engine *engine);
void mica_engine_rewind(mica_engine *engine, uint64_t position);

/* Computes `count` tokens (at most the batch) behind those of the session. BAD_INPUT for ids outside the vocabulary, a context that is
 * full, weights that are not finite (named). */
mica_status mica_engine_step(mica_engine *engine, const int64_t *ids, uint64_t count, mica_error *error) MICA_CHECKED;
/* The same for any count, in batches; stops with INTERRUPTED when `go_on` (may be NULL) says false between two of them. */
mica_status mica_engine_prefill(mica_engine *engine, const int64_t *ids, uint64_t count, bool (*go_on)(void *context), void *context,
                                mica_error *error) MICA_CHECKED;
/* Logits [count][vocab_size] of tokens [first, first + count) of the last step. */
mica_status mica_engine_logits(mica_engine *engine, uint64_t first, uint64_t count, float *logits, mica_error *error) MICA_CHECKED;

/* Layer by layer, for passes over many sequences, with the residual stream x [count][hidden] in the caller's hands; count is at most the
 * batch. Attention: the tokens are those at `position` and behind; earlier ones were computed before, in this layer, by the same engine. */
mica_status mica_engine_embed(mica_engine *engine, const int64_t *ids, uint64_t count, float *x, mica_error *error) MICA_CHECKED;
mica_status mica_engine_attention(mica_engine *engine, uint64_t layer, uint64_t position, float *x, uint64_t count,
                                  mica_error *error) MICA_CHECKED;
mica_status mica_engine_feed_forward(mica_engine *engine, uint64_t layer, float *x, uint64_t count, mica_error *error) MICA_CHECKED;

/* The feed-forward part in two: what goes into it, normed [count][hidden], and of a layer with experts ids and gates [count][top_k]; then
 * the work of experts [first, last), which is added to x, by the shared ones too where first is 0. All experts in one call, or in several
 * of ascending ranges, are mica_engine_feed_forward. A dense layer is one range, whatever it is. */
mica_status mica_engine_route(mica_engine *engine, uint64_t layer, const float *x, uint64_t count, float *normed, uint32_t *ids,
                              float *gates, mica_error *error) MICA_CHECKED;
mica_status mica_engine_feed_part(mica_engine *engine, uint64_t layer, uint64_t first, uint64_t last, const float *normed,
                                  const uint32_t *ids, const float *gates, float *x, uint64_t count, mica_error *error) MICA_CHECKED;

/* BAD_INPUT that names what made values [count][width] behind a layer not finite, if they are not. layer -1: the logits. */
mica_status mica_engine_check_finite(mica_engine *engine, int64_t layer, const float *values, uint64_t count, uint64_t width,
                                     mica_error *error) MICA_CHECKED;

typedef struct mica_engine_meters {
    mica_expert_meters experts;
    uint64_t resident_bytes, resident_read; /* in memory; read at opening */
    double resident_seconds;
    uint64_t slots, expert_count, slot_bytes; /* of the cache; routed experts in all */
    uint64_t working_set;                     /* experts that one token uses: layers x top_k */
} mica_engine_meters;
mica_engine_meters mica_engine_meters_get(const mica_engine *engine);

#endif
