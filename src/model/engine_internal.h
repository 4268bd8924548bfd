/* model/engine_internal.h: what the files of the engine share. Private to src/model/engine*.c and forward*.c.
 *     engine.c             opening: layers, memory, session, meters         forward.c            a step, embedding, logits, what is not finite
 *     engine_workspace.c   every buffer of a step, laid out once            forward_products.c   phases of products, shared out in rows
 *     forward_attention.c  latent and grouped attention                     forward_feed.c       router, experts, shared and dense blocks */
#ifndef MICA_MODEL_ENGINE_INTERNAL_H
#define MICA_MODEL_ENGINE_INTERNAL_H

#include "base/pool.h"
#include "model/engine.h"
#include "model/resident.h"
#include "model/rope.h"
#include "model/router.h"
#include "numerics/attention.h"

#define MICA_ABSORBED_TOKENS 32  /* whose absorbed queries are held at a time */
#define MICA_EXPANDED_POSITIONS 512
#define MICA_PARTS_MAX 32        /* of a context that several threads attend to */

typedef struct engine_layer {
    const mica_matrix *parts[MICA_PART_COUNT];  /* matrices */
    const float *vectors[MICA_PART_COUNT];      /* norms and biases, as float32 */
    mica_matrix absorbed;                       /* [heads * rank][nope]: keys from queries, transposed once at opening */
    const mica_matrix *value_rows;              /* head h's are [h * value_step + value_first, + v_head_dim) */
    uint64_t value_first, value_step;
    const mica_matrix *router;
    const float *router_bias;
    const mica_matrix *shared[MICA_PROJECTION_COUNT], *dense[MICA_PROJECTION_COUNT];
} engine_layer;

/* One product of a phase: rows [row, row + rows) of a matrix. */
typedef struct product_task {
    const mica_matrix *matrix;
    uint64_t row, rows;
    const mica_operand *x;
    float *out; /* [tokens][stride] */
    uint64_t stride;
    const float *bias; /* [rows] from the first; NULL: none */
    uint64_t before;   /* the phase's own: rows of the tasks before it */
} product_task;

/* A feed-forward block over some tokens: the dense one, the shared experts, or a routed expert. */
typedef struct feed_member {
    const mica_matrix *gate, *up, *down;
    const float *bias[MICA_PROJECTION_COUNT];
    const mica_weight *const *weights; /* for the observer */
    int64_t expert;                    /* -1: shared or dense */
    const uint32_t *tokens;            /* [count]; NULL: all in order */
    const float *gates;                /* [count]; NULL: ones */
    uint64_t count;
    mica_operand x, gated;
    float *gate_out, *up_out, *out;
    uint64_t row; /* running number of its first row in the wave */
} feed_member;

typedef struct engine_sizes {
    uint64_t batch, hidden, heads, key_value_heads, width, value_width, nope, rope, rank, query_rank, kv_row; /* kv_row: elements a position and layer */
    uint64_t experts, top_k, expert_width, widest; /* widest: of all feed-forward blocks */
    uint64_t feed_rows, feed_values;               /* room in out_rows, and in gate_values and up_values */
    uint64_t rope_kept; /* elements of the cache for a rotated key: two a number where they are bf16 and the model is latent */
    uint64_t key_row;   /* of an expanded key and value: nope + rope_kept + value_width */
    uint64_t tasks, members;
} engine_sizes;

typedef struct engine_workspace {
    uint8_t *buffer;
    uint64_t bytes;
    float *x, *normed, *query_latent, *key_latent, *query, *joined, *cosines, *sines;
    float *absorbed_query, *latent_out, *part_out;
    mica_attention_sum *part_sums;
    float *latents;                       /* [MICA_EXPANDED_POSITIONS][rank] */
    float *gate_values, *up_values, *out_rows;
    float *router_logits, *router_scores, *router_scratch, *gates, *list_gates;
    uint32_t *ids, *list_tokens, *active, *order, *identity; /* order: of work, indices into active */
    uint64_t *list_starts;                                       /* [experts + 1] */
    int64_t *list_rows;                                          /* [experts + 1]: of the shared and each active expert, its first row of out_rows */
    uint8_t *hidden_storage, *query_storage, *head_storage, *latent_storage, *joined_storage, *gated_storage;
    uint64_t gated_bytes;
    uint8_t *embedding_row;
    float *final_values;
    product_task *tasks;
    feed_member *members;
    uint8_t *scratch; /* [threads][scratch_bytes] */
    uint64_t scratch_bytes;
    /* in each thread's scratch from expanded_offset on: expanded attention's rows of keys and values, outputs and sums, rows as bf16, queries for them; or grouped
     * attention's gathered queries and their means */
    uint64_t expanded_offset, expanded_floats, expanded_halves, queries_offset, turned_offset; /* turned_offset: from there, room to turn a head's keys round */
} engine_workspace;

struct mica_session {
    uint64_t layers, context, position;
    uint8_t *rows; /* [layers][context][kv_row] of the cache's type */
    uint64_t layer_bytes;
};

struct mica_engine {
    const mica_model *model;
    mica_engine_options options;
    mica_observer observer;
    mica_rope rope;
    mica_router router;
    mica_pool *pool;
    mica_resident resident;
    engine_layer *layers;
    float *vectors;          /* all norms and biases */
    uint8_t *transposed;     /* absorbed keys */
    uint64_t transposed_bytes;
    const mica_matrix *embedding, *head; /* embedding NULL: rows are read when they are needed */
    const float *final_norm;
    mica_expert_cache *cache; /* NULL: a dense model */
    engine_sizes sizes;
    engine_workspace work;
    mica_session session;
    mica_dtype cache_dtype; /* of keys and values: F32 exact, else BF16 */
    uint64_t last_count;    /* tokens of the last step */
};

mica_status mica_workspace_init(mica_engine *engine, mica_error *error) MICA_CHECKED;
void mica_workspace_release(mica_engine *engine);
uint64_t mica_workspace_bytes(mica_engine *engine); /* what init will need */

/* Runs a phase of products; tasks are engine->work.tasks [count]. */
void mica_products_run(mica_engine *engine, uint64_t count);
/* What the next phase of products reads first: before a phase is run, or other work that does not use all threads. */
void mica_products_expect(mica_engine *engine, const mica_matrix *matrix, uint64_t row);
/* Prepares all tokens of an operand. */
void mica_operand_prepare_all(mica_engine *engine, mica_operand *operand);
static inline void *mica_engine_scratch(mica_engine *engine, uint32_t thread) {
    return engine->work.scratch + thread * engine->work.scratch_bytes;
}
/* Normalises x [count][hidden] into `normed` (the workspace's or the caller's) and prepares it as an operand over work.hidden_storage. */
void mica_hidden_operand(mica_engine *engine, const float *x, const float *norm, uint64_t count, float *normed, mica_operand *operand);

#endif
