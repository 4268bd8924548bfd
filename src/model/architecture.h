/* model/architecture.h: what is data about a family of models: its model_type, prefixes, and one row per tensor name.
 * Adding an architecture is adding rows. */
#ifndef MICA_MODEL_ARCHITECTURE_H
#define MICA_MODEL_ARCHITECTURE_H

#include <stdbool.h>
#include <stdint.h>

struct mica_config;

/* What a tensor is for. */
typedef enum mica_role {
    MICA_ROLE_EMBEDDING, MICA_ROLE_FINAL_NORM, MICA_ROLE_HEAD, MICA_ROLE_NORM, MICA_ROLE_ATTENTION,
    MICA_ROLE_ROUTER, MICA_ROLE_ROUTER_BIAS, MICA_ROLE_HASH_TABLE,
    MICA_ROLE_EXPERT, MICA_ROLE_SHARED_EXPERT, MICA_ROLE_DENSE, /* with a projection */
    MICA_ROLE_ROPE_FACTORS, /* what llama3's scaling divides each frequency by, where a file has it as a tensor */
    MICA_ROLE_OTHER
} mica_role;

/* The place in a layer of what a forward pass needs besides the feed-forward projections and the router: mica_layer.parts. */
typedef enum mica_part {
    MICA_PART_NONE,
    MICA_PART_INPUT_NORM, MICA_PART_POST_NORM,                                  /* before attention, before the feed-forward part */
    MICA_PART_Q, MICA_PART_K, MICA_PART_V, MICA_PART_O, MICA_PART_Q_NORM, MICA_PART_K_NORM, /* norms per head */
    MICA_PART_Q_A, MICA_PART_Q_A_NORM, MICA_PART_Q_B,                           /* latent queries */
    MICA_PART_KV_A, MICA_PART_KV_A_NORM, MICA_PART_KV_B,                        /* latent keys and values: KV_B is [head][nope + v] rows, */
    MICA_PART_K_B, MICA_PART_V_B,                                               /* or in two: [head][rank x nope], [head][v x rank] */
    MICA_PART_Q_BIAS, MICA_PART_K_BIAS, MICA_PART_V_BIAS, MICA_PART_O_BIAS, MICA_PART_Q_A_BIAS, MICA_PART_KV_A_BIAS,
    MICA_PART_GATE_BIAS, MICA_PART_UP_BIAS, MICA_PART_DOWN_BIAS,
    MICA_PART_COUNT
} mica_part;

typedef enum mica_projection { MICA_GATE, MICA_UP, MICA_DOWN, MICA_PROJECTION_COUNT } mica_projection;
const char *mica_projection_name(mica_projection projection); /* "gate", "up", "down" */

/* One dimension of an expected shape, as a function of the configuration (and the layer). */
typedef uint64_t (*mica_dimension)(const struct mica_config *config, uint64_t layer);

/* Whether a tensor has to be there, may be, or is not part of this layer (it is unknown then, and reported). */
typedef enum mica_need { MICA_NEED_NONE, MICA_NEED_OPTIONAL, MICA_NEED_REQUIRED } mica_need;
typedef mica_need (*mica_presence)(const struct mica_config *config, uint64_t layer);

typedef struct mica_tensor_row {
    /* Below the prefix; {L} = layer, {E} = expert, as decimal numbers. "….weight" names a weight, which may be stored plain or in the
     * model's quantised encoding (then with its scales beside it). "….weight[{E}]": the expert's slice of one tensor of all experts. */
    const char *pattern;
    mica_role role;
    mica_projection projection;
    mica_part part;
    /* second NULL: a vector; with a third the first two are rows. A dimension of 0 is not checked. Of a slice: without the experts. */
    mica_dimension shape[3];
    mica_presence need;      /* NULL: required, in every layer */
    /* of a gate or up slice whose tensor is absent: the tensor that has both, of every expert the gate's rows, then the up's */
    const char *fused;
} mica_tensor_row;

/* Names that are known and not used, each under the name of its rule ("rotary frequencies", "multi-token prediction", "vision tower",
 * "projector"). Glob with '*'; {MTP} matches the layers num_hidden_layers … + num_nextn_predict_layers - 1. A name under the prefix is
 * matched without it, any other whole. */
typedef struct mica_ignore_row {
    const char *pattern, *rule;
} mica_ignore_row;

/* The kinds of attention, which decide what a configuration must say. */
typedef enum mica_attention_kind {
    MICA_ATTENTION_GROUPED = 1,
    MICA_ATTENTION_LATENT = 2,
    MICA_ATTENTION_COMPRESSED = 4
} mica_attention_kind;

typedef struct mica_architecture {
    const char *model_type, *family; /* "kimi_k2", "deepseek_v3" */
    mica_attention_kind attention;   /* llama's; DeepSeek-V3's MLA; DeepSeek-V4's */
    const char *prefix;              /* before the patterns: "language_model." or "" */
    bool text_config;                /* the language model's numbers are in text_config */
    bool mixture;                    /* has routed experts */
    bool tied;                       /* tie_word_embeddings where the configuration does not say */
    const char *expert_scale;        /* suffix of an fp8 scale: "weight_scale_inv" or "scale" */
    const char *not_run;             /* why there is no forward pass of it; NULL: there is one */
    /* a GGUF's: its rotary embedding turns pairs (2i, 2i + 1); llama's rows are stored in an order for that */
    bool interleaved;
    const mica_tensor_row *rows;     /* ends with pattern NULL */
    const mica_ignore_row *ignored;  /* ends with pattern NULL */
} mica_architecture;

const mica_architecture *mica_architecture_find(const char *model_type); /* NULL when unknown */
/* Those of GGUF files, by general.architecture; `sigmoid`: the router's function, which tells DeepSeek-V3 from V2. model_type is the
 * name. */
const mica_architecture *mica_architecture_find_gguf(const char *name, bool sigmoid);
const mica_architecture *mica_architecture_at(uint64_t index);           /* NULL past the end */

#endif
