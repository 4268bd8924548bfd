/* tests/reference/forward.h: the obvious forward pass that judges model/forward*.c, and is itself judged by the fixtures' truths: double
 * precision from decoded weights, one token and one head at a time, keys and values expanded and kept, no cache of anything else. Slow on
 * purpose. Shares the configuration and the decoder with the code it judges, no arithmetic. */
#ifndef MICA_TESTS_REFERENCE_FORWARD_H
#define MICA_TESTS_REFERENCE_FORWARD_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/model.h"

typedef struct reference_result {
    uint64_t tokens, moe_layers;
    double *hidden;         /* [layers + 1][tokens][hidden] */
    double *final;          /* [tokens][hidden] */
    double *logits;         /* [tokens][vocabulary] */
    int32_t *router_ids;    /* [moe layers][tokens][top_k], ascending */
    double *router_weights; /* as router_ids */
} reference_result;

static inline double *reference_zeros(uint64_t count) {
    double *zeros = calloc(count ? count : 1, sizeof *zeros);
    if (!zeros)
        abort();
    return zeros;
}

static inline void reference_release(reference_result *result) {
    free(result->hidden);
    free(result->final);
    free(result->logits);
    free(result->router_ids);
    free(result->router_weights);
}

static inline float *reference_weight(const mica_model *model, const mica_weight *weight) {
    float *values = NULL;
    mica_error error;
    if (weight && mica_weight_load(model, weight, &values, &error) != MICA_OK)
        abort();
    return values;
}

/* y [rows] = W x (+ bias) */
static inline void reference_product(const float *weight, const float *bias, uint64_t rows, uint64_t columns, const double *x, double *y) {
    for (uint64_t r = 0; r < rows; r++) {
        double sum = bias ? (double)bias[r] : 0;
        for (uint64_t c = 0; c < columns; c++)
            sum += (double)weight[r * columns + c] * x[c];
        y[r] = sum;
    }
}

static inline void reference_norm(const float *weight, uint64_t width, double eps, const double *x, double *y) {
    double sum = 0;
    for (uint64_t i = 0; i < width; i++)
        sum += x[i] * x[i];
    for (uint64_t i = 0; i < width; i++)
        y[i] = x[i] / sqrt(sum / (double)width + eps) * (double)weight[i];
}

/* The frequency of pair i of `pairs`, as DeepSeek-V3's and llama's code have it. */
static inline double reference_frequency(const mica_config *config, uint64_t i, uint64_t pairs) {
    const double pi = 3.14159265358979323846;
    double width = 2 * (double)pairs, plain = pow(config->rope_theta, -2 * (double)i / width);
    if (strcmp(config->rope_type, "linear") == 0)
        return plain / config->rope_factor;
    if (strcmp(config->rope_type, "yarn") == 0) {
        double context = (double)config->rope_original_context;
        double low = floor(width * log(context / (config->rope_beta_fast * 2 * pi)) / (2 * log(config->rope_theta)));
        double high = ceil(width * log(context / (config->rope_beta_slow * 2 * pi)) / (2 * log(config->rope_theta)));
        low = low < 0 ? 0 : low;
        high = high > width - 1 ? width - 1 : high;
        high = low == high ? high + 0.001 : high;
        double ramp = ((double)i - low) / (high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        return plain / config->rope_factor * ramp + plain * (1 - ramp);
    }
    if (strcmp(config->rope_type, "llama3") == 0) {
        double wave = 2 * pi / plain, context = (double)config->rope_original_context;
        double low = config->rope_low_freq_factor, high = config->rope_high_freq_factor;
        if (wave < context / high)
            return plain;
        if (wave > context / low)
            return plain / config->rope_factor;
        double smooth = (context / wave - low) / (high - low);
        return (1 - smooth) * plain / config->rope_factor + smooth * plain;
    }
    return plain;
}

static inline double reference_mscale(double factor, double mscale) {
    return factor > 1 ? 0.1 * mscale * log(factor) + 1 : 1;
}

static inline void reference_rope(const mica_config *config, uint64_t width, uint64_t position, double *x) {
    double size = 1;
    if (strcmp(config->rope_type, "yarn") == 0)
        size = reference_mscale(config->rope_factor, config->rope_mscale) /
               reference_mscale(config->rope_factor, config->rope_mscale_all_dim);
    for (uint64_t i = 0; i < width / 2; i++) {
        uint64_t a = config->rope_interleaved ? 2 * i : i, b = config->rope_interleaved ? 2 * i + 1 : i + width / 2;
        double angle = (double)position * reference_frequency(config, i, width / 2);
        double real = x[a], imaginary = x[b];
        x[a] = size * (real * cos(angle) - imaginary * sin(angle));
        x[b] = size * (real * sin(angle) + imaginary * cos(angle));
    }
}

/* Softmax attention of one query over `count` keys; key and value of position j at [j * stride]. */
static inline void reference_attend(const double *query, const double *keys, const double *values, uint64_t count, uint64_t stride_k,
                                    uint64_t stride_v, uint64_t width_k, uint64_t width_v, double scale, double *out) {
    double *score = reference_zeros(count), largest = -INFINITY, sum = 0;
    for (uint64_t j = 0; j < count; j++) {
        for (uint64_t i = 0; i < width_k; i++)
            score[j] += query[i] * keys[j * stride_k + i];
        score[j] *= scale;
        largest = fmax(largest, score[j]);
    }
    for (uint64_t j = 0; j < count; j++)
        sum += score[j] = exp(score[j] - largest);
    memset(out, 0, width_v * sizeof *out);
    for (uint64_t j = 0; j < count; j++)
        for (uint64_t i = 0; i < width_v; i++)
            out[i] += score[j] / sum * values[j * stride_v + i];
    free(score);
}

/* Adds the attention of all tokens to x [tokens][hidden]. */
static inline void reference_attention(const mica_model *model, const mica_layer *layer, uint64_t tokens, double *x) {
    const mica_config *config = &model->config;
    float *w[MICA_PART_COUNT];
    for (int i = 0; i < MICA_PART_COUNT; i++)
        w[i] = reference_weight(model, layer->parts[i]);
    int latent = config->architecture->attention == MICA_ATTENTION_LATENT;
    uint64_t hidden = config->hidden_size, heads = config->num_attention_heads;
    uint64_t nope = config->qk_nope_head_dim, rope = latent ? config->qk_rope_head_dim : config->head_dim;
    uint64_t width = latent ? nope + rope : config->head_dim, width_v = latent ? config->v_head_dim : config->head_dim;
    uint64_t kv_heads = latent ? heads : config->num_key_value_heads, rank = config->kv_lora_rank;
    double scale = 1 / sqrt((double)width);
    if (latent && strcmp(config->rope_type, "yarn") == 0 && config->rope_mscale_all_dim > 0)
        scale *= pow(reference_mscale(config->rope_factor, config->rope_mscale_all_dim), 2);
    double *queries = reference_zeros(tokens * heads * width), *keys = reference_zeros(tokens * kv_heads * width);
    double *values = reference_zeros(tokens * kv_heads * width_v), *normed = reference_zeros(hidden);
    double *small = reference_zeros(config->q_lora_rank + rank + rope), *pair = reference_zeros(heads * (nope + width_v));
    double *joined = reference_zeros(heads * width_v), *added = reference_zeros(hidden);
    for (uint64_t t = 0; t < tokens; t++) {
        double *q = queries + t * heads * width, *k = keys + t * kv_heads * width, *v = values + t * kv_heads * width_v;
        reference_norm(w[MICA_PART_INPUT_NORM], hidden, config->rms_norm_eps, x + t * hidden, normed);
        if (latent && config->q_lora_rank) {
            reference_product(w[MICA_PART_Q_A], w[MICA_PART_Q_A_BIAS], config->q_lora_rank, hidden, normed, small);
            reference_norm(w[MICA_PART_Q_A_NORM], config->q_lora_rank, config->latent_norm_eps, small, small);
            reference_product(w[MICA_PART_Q_B], NULL, heads * width, config->q_lora_rank, small, q);
        } else {
            reference_product(w[MICA_PART_Q], w[MICA_PART_Q_BIAS], heads * width, hidden, normed, q);
        }
        if (latent) {
            reference_product(w[MICA_PART_KV_A], w[MICA_PART_KV_A_BIAS], rank + rope, hidden, normed, small);
            reference_norm(w[MICA_PART_KV_A_NORM], rank, config->latent_norm_eps, small, small);
            reference_rope(config, rope, t, small + rank);
            reference_product(w[MICA_PART_KV_B], NULL, heads * (nope + width_v), rank, small, pair);
            for (uint64_t h = 0; h < heads; h++) {
                memcpy(k + h * width, pair + h * (nope + width_v), nope * sizeof *k);
                memcpy(k + h * width + nope, small + rank, rope * sizeof *k);
                memcpy(v + h * width_v, pair + h * (nope + width_v) + nope, width_v * sizeof *v);
                reference_rope(config, rope, t, q + h * width + nope);
            }
            continue;
        }
        reference_product(w[MICA_PART_K], w[MICA_PART_K_BIAS], kv_heads * width, hidden, normed, k);
        reference_product(w[MICA_PART_V], w[MICA_PART_V_BIAS], kv_heads * width, hidden, normed, v);
        for (uint64_t h = 0; h < heads; h++) {
            if (w[MICA_PART_Q_NORM])
                reference_norm(w[MICA_PART_Q_NORM], width, config->rms_norm_eps, q + h * width, q + h * width);
            reference_rope(config, width, t, q + h * width);
        }
        for (uint64_t h = 0; h < kv_heads; h++) {
            if (w[MICA_PART_K_NORM])
                reference_norm(w[MICA_PART_K_NORM], width, config->rms_norm_eps, k + h * width, k + h * width);
            reference_rope(config, width, t, k + h * width);
        }
    }
    for (uint64_t t = 0; t < tokens; t++) {
        for (uint64_t h = 0; h < heads; h++) {
            uint64_t source = h / (heads / kv_heads);
            reference_attend(queries + (t * heads + h) * width, keys + source * width, values + source * width_v, t + 1, kv_heads * width,
                             kv_heads * width_v, width, width_v, scale, joined + h * width_v);
        }
        reference_product(w[MICA_PART_O], w[MICA_PART_O_BIAS], hidden, heads * width_v, joined, added);
        for (uint64_t i = 0; i < hidden; i++)
            x[t * hidden + i] += added[i];
    }
    double *all[] = {queries, keys, values, normed, small, pair, joined, added};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    for (int i = 0; i < MICA_PART_COUNT; i++)
        mica_free(w[i]);
}

/* out [hidden] += factor * down(silu(gate x) * up x) */
static inline void reference_mlp(const mica_model *model, const mica_layer *layer, const mica_weight *const weights[MICA_PROJECTION_COUNT],
                          const double *x, double factor, double *out) {
    uint64_t hidden = model->config.hidden_size, width = weights[MICA_GATE]->rows;
    float *w[MICA_PROJECTION_COUNT], *bias[3];
    for (int i = 0; i < MICA_PROJECTION_COUNT; i++) {
        w[i] = reference_weight(model, weights[i]);
        bias[i] = weights[i]->role == MICA_ROLE_DENSE ? reference_weight(model, layer->parts[MICA_PART_GATE_BIAS + i]) : NULL;
    }
    double *gate = reference_zeros(width), *up = reference_zeros(width), *down = reference_zeros(hidden);
    reference_product(w[MICA_GATE], bias[MICA_GATE], width, hidden, x, gate);
    reference_product(w[MICA_UP], bias[MICA_UP], width, hidden, x, up);
    for (uint64_t i = 0; i < width; i++)
        gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    reference_product(w[MICA_DOWN], bias[MICA_DOWN], hidden, width, gate, down);
    for (uint64_t i = 0; i < hidden; i++)
        out[i] += factor * down[i];
    for (int i = 0; i < MICA_PROJECTION_COUNT; i++) {
        mica_free(w[i]);
        mica_free(bias[i]);
    }
    free(gate);
    free(up);
    free(down);
}

/* Chooses experts as DeepSeek-V2 and V3 do, ids ascending. scratch: [3 * experts] */
static inline void reference_route(const mica_config *config, const double *logits, const float *bias, int32_t *ids, double *weights) {
    uint64_t experts = config->n_routed_experts, groups = config->n_group, size = experts / groups, taken = 0;
    double *score = reference_zeros(experts), *choice = reference_zeros(experts), *group = reference_zeros(groups), sum = 0, total = 0;
    int softmax = strcmp(config->scoring_func, "softmax") == 0, limited = groups > 1 && strcmp(config->topk_method, "greedy") != 0;
    double largest = -INFINITY;
    for (uint64_t e = 0; e < experts; e++)
        largest = fmax(largest, logits[e]);
    for (uint64_t e = 0; e < experts; e++)
        sum += exp(logits[e] - largest);
    for (uint64_t e = 0; e < experts; e++) {
        score[e] = softmax ? exp(logits[e] - largest) / sum : 1 / (1 + exp(-logits[e]));
        choice[e] = score[e] + (bias ? (double)bias[e] : 0);
    }
    for (uint64_t g = 0; g < groups; g++) {
        double first = -INFINITY, second = -INFINITY;
        for (uint64_t i = 0; i < size; i++) {
            double value = choice[g * size + i];
            second = value > first ? first : fmax(second, value);
            first = fmax(first, value);
        }
        group[g] = strcmp(config->topk_method, "noaux_tc") == 0 && size > 1 ? first + second : first;
    }
    for (uint64_t e = 0; limited && e < experts; e++) {
        uint64_t better = 0;
        for (uint64_t g = 0; g < groups; g++)
            better += group[g] > group[e / size] || (group[g] == group[e / size] && g < e / size);
        if (better >= config->topk_group)
            choice[e] = -INFINITY;
    }
    for (uint64_t e = 0; e < experts; e++) {
        uint64_t better = 0;
        for (uint64_t other = 0; other < experts; other++)
            better += choice[other] > choice[e] || (choice[other] == choice[e] && other < e);
        if (better < config->num_experts_per_tok) {
            ids[taken] = (int32_t)e;
            weights[taken++] = score[e];
            total += score[e];
        }
    }
    for (uint64_t i = 0; i < taken; i++)
        weights[i] = weights[i] / (config->norm_topk_prob ? total + 1e-20 : 1) * config->routed_scaling_factor;
    free(score);
    free(choice);
    free(group);
}

static inline void reference_feed_forward(const mica_model *model, uint64_t number, uint64_t tokens, double *x, reference_result *result) {
    const mica_config *config = &model->config;
    const mica_layer *layer = &model->layers[number];
    uint64_t hidden = config->hidden_size, top_k = config->num_experts_per_tok;
    float *norm = reference_weight(model, layer->parts[MICA_PART_POST_NORM]), *router = reference_weight(model, layer->router);
    float *bias = reference_weight(model, layer->router_bias);
    double *normed = reference_zeros(hidden), *logits = reference_zeros(config->n_routed_experts);
    for (uint64_t t = 0; t < tokens; t++) {
        double *out = x + t * hidden;
        reference_norm(norm, hidden, config->rms_norm_eps, out, normed);
        if (!layer->moe) {
            reference_mlp(model, layer, layer->dense, normed, 1, out);
            continue;
        }
        int32_t *ids = result->router_ids + (result->moe_layers * tokens + t) * top_k;
        double *weights = result->router_weights + (result->moe_layers * tokens + t) * top_k;
        reference_product(router, NULL, config->n_routed_experts, hidden, normed, logits);
        reference_route(config, logits, bias, ids, weights);
        for (uint64_t i = 0; i < top_k; i++)
            reference_mlp(model, layer, &layer->experts[(uint64_t)ids[i] * MICA_PROJECTION_COUNT], normed, weights[i], out);
        if (layer->shared[MICA_GATE])
            reference_mlp(model, layer, layer->shared, normed, 1, out);
    }
    result->moe_layers += layer->moe;
    mica_free(norm);
    mica_free(router);
    mica_free(bias);
    free(normed);
    free(logits);
}

static inline void reference_forward(const mica_model *model, const int64_t *ids, uint64_t tokens, reference_result *result) {
    const mica_config *config = &model->config;
    uint64_t hidden = config->hidden_size, layers = config->num_hidden_layers, size = tokens * hidden;
    *result = (reference_result){.tokens = tokens,
                                 .hidden = reference_zeros((layers + 1) * size),
                                 .final = reference_zeros(size),
                                 .logits = reference_zeros(tokens * config->vocab_size),
                                 .router_ids = calloc(layers * tokens * config->num_experts_per_tok + 1, sizeof(int32_t)),
                                 .router_weights = reference_zeros(layers * tokens * config->num_experts_per_tok)};
    float *embedding = reference_weight(model, model->embedding), *norm = reference_weight(model, model->final_norm);
    float *head = reference_weight(model, model->head);
    for (uint64_t i = 0; i < size; i++)
        result->hidden[i] = (double)embedding[(uint64_t)ids[i / hidden] * hidden + i % hidden];
    for (uint64_t layer = 0; layer < layers; layer++) {
        double *x = result->hidden + (layer + 1) * size;
        memcpy(x, x - size, size * sizeof *x);
        reference_attention(model, &model->layers[layer], tokens, x);
        reference_feed_forward(model, layer, tokens, x, result);
    }
    for (uint64_t t = 0; t < tokens; t++) {
        reference_norm(norm, hidden, config->rms_norm_eps, result->hidden + layers * size + t * hidden, result->final + t * hidden);
        reference_product(head, NULL, config->vocab_size, hidden, result->final + t * hidden, result->logits + t * config->vocab_size);
    }
    mica_free(embedding);
    mica_free(norm);
    mica_free(head);
}

#endif
