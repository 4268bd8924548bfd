/* model/gguf_types.h: which type each tensor of a GGUF file gets: llama-quantize's mixtures, its exceptions, and its fallbacks by shape.
 * A function of names and shapes alone. Judged by tests/model/test_gguf_types.c, against what llama-quantize chose. */
#ifndef MICA_MODEL_GGUF_TYPES_H
#define MICA_MODEL_GGUF_TYPES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"

/* name, the type most tensors get, number in general.file_type */
#define MICA_MIXTURE_LIST(X)                                                                                       \
    X(F32, "f32", F32, 0) X(F16, "f16", F16, 1) X(BF16, "bf16", BF16, 32) X(Q8_0, "q8_0", Q8_0, 7)                  \
    X(Q4_0, "q4_0", Q4_0, 2) X(Q4_1, "q4_1", Q4_1, 3) X(Q5_0, "q5_0", Q5_0, 8) X(Q5_1, "q5_1", Q5_1, 9)             \
    X(Q2_K, "q2_k", Q2_K, 10) X(Q2_K_S, "q2_k_s", Q2_K, 21)                                                        \
    X(Q3_K_S, "q3_k_s", Q3_K, 11) X(Q3_K_M, "q3_k_m", Q3_K, 12) X(Q3_K_L, "q3_k_l", Q3_K, 13)                       \
    X(Q4_K_S, "q4_k_s", Q4_K, 14) X(Q4_K_M, "q4_k_m", Q4_K, 15)                                                    \
    X(Q5_K_S, "q5_k_s", Q5_K, 16) X(Q5_K_M, "q5_k_m", Q5_K, 17) X(Q6_K, "q6_k", Q6_K, 18)                          \
    X(IQ4_NL, "iq4_nl", IQ4_NL, 25) X(IQ4_XS, "iq4_xs", IQ4_XS, 30) X(MXFP4_MOE, "mxfp4_moe", MXFP4, 38)

typedef enum mica_mixture {
#define X(name, text, base, number) MICA_MIXTURE_##name,
    MICA_MIXTURE_LIST(X)
#undef X
    MICA_MIXTURE_COUNT,
    MICA_MIXTURE_SOURCE = MICA_MIXTURE_COUNT /* "source": each weight in the type nearest to how it is stored */
} mica_mixture;

const char *mica_mixture_name(mica_mixture mixture);
/* By name in either case; "q3_k", "q4_k", "q5_k" mean their _m. False when unknown. */
bool mica_mixture_parse(const char *name, mica_mixture *mixture);
mica_dtype mica_mixture_base(mica_mixture mixture);       /* not of SOURCE */
uint32_t mica_mixture_file_type(mica_mixture mixture);    /* not of SOURCE */
const char *mica_mixture_list(void);                      /* "source, f32, …": for messages */

/* What of a model the choice depends on. */
typedef struct mica_mixture_model {
    uint64_t layers, experts;      /* experts 0: dense */
    uint64_t heads_per_key;        /* query heads of one key head */
    bool tied;                     /* there is no output.weight */
    bool wide;                     /* llama.cpp's "70B": 80 layers with shared key heads */
    bool importance;               /* an importance matrix is used */
} mica_mixture_model;

/* A tensor as the choice sees it. */
typedef struct mica_mixture_tensor {
    const char *name;              /* in GGUF */
    uint64_t layer;                /* 0 for tensors outside the layers */
    uint32_t rank;
    uint64_t columns, matrices;    /* ne0, ne2 */
} mica_mixture_tensor;

/* Whether it may be anything but F32: at least two dimensions, a weight, no norm, no router. */
bool mica_mixture_allows(const mica_mixture_tensor *tensor);

/* The type the mixture wants, before its shape is looked at; not for SOURCE. */
mica_dtype mica_mixture_choose(mica_mixture mixture, const mica_mixture_model *model, const mica_mixture_tensor *tensor);

/* The type that can hold rows of `columns`: `wanted` where its blocks divide them, else llama-quantize's substitute. */
mica_dtype mica_mixture_fit(mica_dtype wanted, uint64_t columns);

#endif
