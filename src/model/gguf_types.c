/* model/gguf_types.c: llama-quantize's mixtures, as rules over categories of tensors. Owns: which tensor gets more bits than the rest, and
 * what stands in where rows are no whole number of blocks. Follows llama.cpp v0.5.0, so that files have its sizes.
 * Judged by tests/model/test_gguf_types.c. */
#include "model/gguf_types.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static const struct {
    const char *name;
    mica_dtype base;
    uint32_t file_type;
} mixtures[MICA_MIXTURE_COUNT] = {
#define X(name, text, base, number) {text, MICA_##base, number},
    MICA_MIXTURE_LIST(X)
#undef X
};

static const char source_name[] = "source";

const char *mica_mixture_name(mica_mixture mixture) {
    return (unsigned)mixture < MICA_MIXTURE_COUNT ? mixtures[mixture].name : source_name;
}

mica_dtype mica_mixture_base(mica_mixture mixture) {
    return mixtures[mixture].base;
}

uint32_t mica_mixture_file_type(mica_mixture mixture) {
    return mixtures[mixture].file_type;
}

bool mica_mixture_parse(const char *name, mica_mixture *mixture) {
    static const struct {
        const char *name;
        mica_mixture mixture;
    } others[] = {{source_name, MICA_MIXTURE_SOURCE},
                  {"q3_k", MICA_MIXTURE_Q3_K_M},
                  {"q4_k", MICA_MIXTURE_Q4_K_M},
                  {"q5_k", MICA_MIXTURE_Q5_K_M},
                  {"mxfp4", MICA_MIXTURE_MXFP4_MOE}};
    for (int i = 0; i < MICA_MIXTURE_COUNT; i++)
        if (strcasecmp(name, mixtures[i].name) == 0) {
            *mixture = (mica_mixture)i;
            return true;
        }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcasecmp(name, others[i].name) == 0) {
            *mixture = others[i].mixture;
            return true;
        }
    return false;
}

const char *mica_mixture_list(void) {
    return "source"
#define X(name, text, base, number) ", " text
        MICA_MIXTURE_LIST(X)
#undef X
        ;
}

/* ---- categories, by name */

typedef enum category { OTHER, OUTPUT, EMBEDDING, ATTENTION_VALUE, ATTENTION_OUTPUT, FEED_DOWN } category;

static category category_of(const char *name) {
    static const struct {
        const char *part;
        category category;
    } parts[] = {{"attn_v.weight", ATTENTION_VALUE}, {"attn_output.weight", ATTENTION_OUTPUT}, {"ffn_down", FEED_DOWN}};
    if (strcmp(name, "output.weight") == 0)
        return OUTPUT;
    if (strcmp(name, "token_embd.weight") == 0)
        return EMBEDDING;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(name, parts[i].part))
            return parts[i].category;
    return OTHER;
}

bool mica_mixture_allows(const mica_mixture_tensor *tensor) {
    static const char *const never[] = {
        "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
        "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight",
        "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight",
        "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight",
        "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.",
        "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd"};
    static const char *const whole[] = {"position_embd.weight", "token_types.weight"};
    const size_t length = strlen(tensor->name);
    if (tensor->rank < 2 || tensor->rank > 3 || length < 6 || strcmp(tensor->name + length - 6, "weight") != 0)
        return false;
    for (size_t i = 0; i < sizeof never / sizeof *never; i++)
        if (strstr(tensor->name, never[i]))
            return false;
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (strcmp(tensor->name, whole[i]) == 0)
            return false;
    return true;
}

/* The first and the last eighth, and every third between them. */
static bool wants_more(uint64_t layer, uint64_t layers) {
    return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

static mica_dtype choose_value(mica_mixture mixture, const mica_mixture_model *model, uint64_t layer, mica_dtype base) {
    mica_dtype type = base;
    const bool grouped = model->heads_per_key >= 4;
    switch (mixture) {
    case MICA_MIXTURE_Q2_K: type = grouped ? MICA_Q4_K : MICA_Q3_K; break;
    case MICA_MIXTURE_Q2_K_S: type = grouped ? MICA_Q4_K : base; break;
    case MICA_MIXTURE_Q3_K_M: type = layer < 2 ? MICA_Q5_K : MICA_Q4_K; break;
    case MICA_MIXTURE_Q3_K_L: type = MICA_Q5_K; break;
    case MICA_MIXTURE_IQ4_NL:
    case MICA_MIXTURE_IQ4_XS: type = grouped ? MICA_Q5_K : base; break;
    case MICA_MIXTURE_Q4_K_M:
    case MICA_MIXTURE_Q5_K_M: type = wants_more(layer, model->layers) ? MICA_Q6_K : base; break;
    case MICA_MIXTURE_Q4_K_S: type = layer < 4 ? MICA_Q5_K : base; break;
    default: break;
    }
    if (model->wide && (type == MICA_Q3_K || type == MICA_Q4_K))
        type = MICA_Q5_K;
    return model->experts == 8 ? MICA_Q8_0 : type;
}

static mica_dtype choose_down(mica_mixture mixture, const mica_mixture_model *model, uint64_t layer, mica_dtype base) {
    const bool first = layer < model->layers / 8;
    switch (mixture) {
    case MICA_MIXTURE_Q2_K: return MICA_Q3_K;
    case MICA_MIXTURE_Q2_K_S: return first ? MICA_Q4_K : base;
    case MICA_MIXTURE_Q3_K_M: return layer < model->layers / 16 ? MICA_Q5_K : MICA_Q4_K;
    case MICA_MIXTURE_Q3_K_L: return MICA_Q5_K;
    case MICA_MIXTURE_Q4_K_M:
    case MICA_MIXTURE_Q5_K_M: return wants_more(layer, model->layers) ? MICA_Q6_K : base;
    case MICA_MIXTURE_IQ4_NL:
    case MICA_MIXTURE_IQ4_XS: return first && !model->importance ? MICA_Q5_K : base;
    case MICA_MIXTURE_Q4_K_S: return first ? MICA_Q5_K : base;
    case MICA_MIXTURE_Q4_0: return first && model->importance ? MICA_Q4_1 : base;
    case MICA_MIXTURE_Q5_0: return first && model->importance ? MICA_Q5_1 : base;
    default: return base;
    }
}

static mica_dtype choose_attention_output(mica_mixture mixture, const mica_mixture_model *model, mica_dtype base) {
    switch (mixture) {
    case MICA_MIXTURE_Q2_K: return model->experts == 8 ? MICA_Q5_K : MICA_Q3_K;
    case MICA_MIXTURE_Q3_K_M: return model->experts == 8 ? MICA_Q5_K : MICA_Q4_K;
    case MICA_MIXTURE_Q3_K_L: return model->experts == 8 ? base : MICA_Q5_K;
    case MICA_MIXTURE_Q3_K_S:
    case MICA_MIXTURE_Q4_K_S:
    case MICA_MIXTURE_Q4_K_M:
    case MICA_MIXTURE_IQ4_NL:
    case MICA_MIXTURE_IQ4_XS: return model->experts == 8 ? MICA_Q5_K : base;
    default: return base;
    }
}

mica_dtype mica_mixture_choose(mica_mixture mixture, const mica_mixture_model *model, const mica_mixture_tensor *tensor) {
    const mica_dtype base = mixtures[mixture].base;
    if (!mica_mixture_allows(tensor))
        return MICA_F32;
    if (!mica_dtype_is_block(base))
        return base;
    const category kind = category_of(tensor->name);
    if (kind == OUTPUT || (model->tied && kind == EMBEDDING)) {
        const bool plain = mixture == MICA_MIXTURE_MXFP4_MOE || base == MICA_Q8_0 || tensor->columns % mica_dtype_block_elements(base) != 0;
        return plain ? MICA_Q8_0 : MICA_Q6_K;
    }
    if (mixture == MICA_MIXTURE_MXFP4_MOE) /* every stack of matrices, latent attention's as well */
        return tensor->matrices > 1 ? MICA_MXFP4 : MICA_Q8_0;
    switch (kind) {
    case ATTENTION_VALUE: return choose_value(mixture, model, tensor->layer, base);
    case FEED_DOWN: return choose_down(mixture, model, tensor->layer, base);
    case ATTENTION_OUTPUT: return choose_attention_output(mixture, model, base);
    default: break;
    }
    return model->experts == 8 && strstr(tensor->name, "attn_k.weight") ? MICA_Q8_0 : base;
}

mica_dtype mica_mixture_fit(mica_dtype wanted, uint64_t columns) {
    static const struct {
        mica_dtype wanted, instead;
    } rows[] = {{MICA_IQ4_XS, MICA_IQ4_NL}, {MICA_Q2_K, MICA_Q4_0}, {MICA_Q3_K, MICA_Q4_0},
                {MICA_Q4_K, MICA_Q5_0},     {MICA_Q5_K, MICA_Q5_1}, {MICA_Q6_K, MICA_Q8_0}};
    if (columns % mica_dtype_block_elements(wanted) == 0)
        return wanted;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].wanted == wanted && columns % mica_dtype_block_elements(rows[i].instead) == 0)
            return rows[i].instead;
    return MICA_F16;
}
