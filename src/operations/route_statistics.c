/* operations/route_statistics.c: see the header; definitions in docs/statistics.md, "Routing". Judged by tests/operations/test_route.c
 * against sums made from the reference forward pass. */
#include "operations/route_statistics.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

#define SMALL 0.01         /* of a token's largest activation */
#define PARTNERS 8         /* in the report; the file has all */

static void tally(mica_tally *into, double value) {
    into->sum += value;
    into->squares += value * value;
    into->largest = into->count == 0 || value > into->largest ? value : into->largest;
    into->count++;
}

mica_status mica_route_statistics_init(mica_route_statistics *statistics, const mica_model *model, mica_error *error) {
    uint64_t experts = model->config.n_routed_experts, layers = model->config.num_hidden_layers;
    *statistics = (mica_route_statistics){.model = model, .layers = mica_calloc(layers, sizeof *statistics->layers)};
    bool enough = statistics->layers != NULL;
    for (uint64_t i = 0; i < layers && enough; i++) {
        mica_layer_tally *layer = &statistics->layers[i];
        if (!model->layers[i].moe)
            continue;
        layer->experts = mica_calloc(experts, sizeof *layer->experts);
        layer->together = mica_calloc(experts, experts * sizeof *layer->together);
        enough = layer->experts && layer->together;
        if (enough) /* touched: the cache of experts gets what is left */
            memset(layer->together, 0, experts * experts * sizeof *layer->together);
    }
    if (enough)
        return MICA_OK;
    mica_route_statistics_release(statistics);
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the routing statistics", model->source->path);
}

void mica_route_statistics_release(mica_route_statistics *statistics) {
    for (uint64_t i = 0; statistics->layers && i < statistics->model->config.num_hidden_layers; i++) {
        mica_free(statistics->layers[i].experts);
        mica_free(statistics->layers[i].together);
    }
    mica_free(statistics->layers);
    *statistics = (mica_route_statistics){0};
}

/* ---- observing */

static double entropy_of(const float *scores, uint64_t count) {
    double sum = 0, entropy = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += (double)scores[i];
    for (uint64_t i = 0; i < count; i++) {
        double p = (double)scores[i] / sum;
        entropy -= p > 0 ? p * log(p) : 0;
    }
    return entropy;
}

static void see_routing(void *context, uint64_t number, uint64_t tokens, const float *scores, const uint32_t *ids, const float *weights) {
    mica_route_statistics *statistics = context;
    mica_layer_tally *layer = &statistics->layers[number];
    uint64_t experts = statistics->model->config.n_routed_experts, top_k = statistics->model->config.num_experts_per_tok;
    (void)weights;
    for (uint64_t t = 0; t < tokens; t++) {
        tally(&layer->entropy, entropy_of(scores + t * experts, experts));
        for (uint64_t i = 0; i < top_k; i++)
            for (uint64_t j = 0; j < top_k; j++)
                layer->together[(uint64_t)ids[t * top_k + i] * experts + ids[t * top_k + j]] += i != j;
    }
}

static double norm_of(const float *x, uint64_t count) {
    double sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static double share_of_small(const float *x, uint64_t count) {
    float largest = 0;
    uint64_t small = 0;
    for (uint64_t i = 0; i < count; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    float limit = (float)SMALL * largest;
    for (uint64_t i = 0; i < count; i++)
        small += fabsf(x[i]) < limit;
    return (double)small / (double)count;
}

static void see_expert(void *context, uint64_t number, int64_t expert, uint64_t count, const uint32_t *tokens, const float *weights,
                       const float *gated, const float *outputs) {
    mica_route_statistics *statistics = context;
    const mica_config *config = &statistics->model->config;
    mica_layer_tally *layer = &statistics->layers[number];
    mica_expert_tally *into = expert >= 0 ? &layer->experts[expert] : &layer->block;
    const mica_weight *gate = expert >= 0 ? statistics->model->layers[number].experts[expert * MICA_PROJECTION_COUNT + MICA_GATE]
                              : layer->experts ? statistics->model->layers[number].shared[MICA_GATE]
                                               : statistics->model->layers[number].dense[MICA_GATE];
    (void)tokens;
    for (uint64_t t = 0; t < count; t++) {
        double norm = norm_of(outputs + t * config->hidden_size, config->hidden_size), weight = weights ? (double)weights[t] : 1;
        tally(&into->gate, weight);
        tally(&into->norm, norm);
        tally(&into->reap, weight * norm);
        tally(&into->sparsity, share_of_small(gated + t * gate->rows, gate->rows));
    }
}

static void see_residual(void *context, uint64_t layer, const float *before, const float *after, uint64_t count) {
    mica_route_statistics *statistics = context;
    uint64_t width = statistics->model->config.hidden_size;
    for (uint64_t t = 0; t < count; t++) {
        double product = 0;
        for (uint64_t i = 0; i < width; i++)
            product += (double)before[t * width + i] * (double)after[t * width + i];
        tally(&statistics->layers[layer].cosine, product / (norm_of(before + t * width, width) * norm_of(after + t * width, width)));
    }
}

/* ---- kept for a resume: the parts of a layer's tally as they are in memory */

typedef struct part {
    void *bytes;
    uint64_t length;
} part;

enum { PARTS = 5 };
static void list_parts(mica_route_statistics *statistics, uint64_t number, part parts[PARTS]) {
    mica_layer_tally *layer = &statistics->layers[number];
    const uint64_t experts = layer->experts ? statistics->model->config.n_routed_experts : 0;
    const part all[PARTS] = {{&layer->entropy, sizeof layer->entropy},
                             {&layer->cosine, sizeof layer->cosine},
                             {&layer->block, sizeof layer->block},
                             {layer->experts, experts * sizeof *layer->experts},
                             {layer->together, experts * experts * sizeof *layer->together}};
    memcpy(parts, all, sizeof all);
}

static void save(void *context, uint64_t layer, mica_text *bytes) {
    part parts[PARTS];
    list_parts(context, layer, parts);
    for (int i = 0; i < PARTS; i++)
        if (parts[i].length > 0)
            mica_text_append(bytes, parts[i].bytes, parts[i].length);
}

static mica_status load(void *context, uint64_t layer, const uint8_t *bytes, uint64_t count, mica_error *error) {
    const mica_route_statistics *statistics = context;
    part parts[PARTS];
    uint64_t expected = 0;
    list_parts(context, layer, parts);
    for (int i = 0; i < PARTS; i++)
        expected += parts[i].length;
    if (count != expected)
        return mica_fail(error, MICA_CORRUPT, "%s: layer %llu: expected routing statistics of %llu bytes from the run before, got %llu",
                         statistics->model->source->path, (unsigned long long)layer, (unsigned long long)expected,
                         (unsigned long long)count);
    for (int i = 0; i < PARTS; bytes += parts[i].length, i++)
        if (parts[i].length > 0)
            memcpy(parts[i].bytes, bytes, parts[i].length);
    return MICA_OK;
}

mica_layer_collector mica_route_statistics_collector(mica_route_statistics *statistics) {
    return (mica_layer_collector){.observer = {.context = statistics, .routing = see_routing, .expert = see_expert},
                                  .residual = see_residual,
                                  .save = save,
                                  .load = load};
}

/* ---- the report */

static double mean_of(const mica_tally *of) {
    return of->count ? of->sum / (double)of->count : NAN;
}

static double error_of(const mica_tally *of) {
    double n = (double)of->count, mean = mean_of(of);
    return of->count > 1 ? sqrt(fmax(of->squares / n - mean * mean, 0) / (n - 1)) : NAN;
}

static void write_tally(mica_json_writer *writer, const char *key, const mica_tally *of) {
    mica_json_open_row(writer, key);
    mica_json_double(writer, NULL, mean_of(of));
    mica_json_double(writer, NULL, error_of(of));
    mica_json_double(writer, NULL, of->count ? of->largest : NAN);
    mica_json_close_array(writer);
}

static void write_block(mica_json_writer *writer, const char *key, const mica_expert_tally *block) {
    mica_json_open_object(writer, key);
    write_tally(writer, "output_norm", &block->norm);
    write_tally(writer, "sparsity", &block->sparsity);
    mica_json_close_object(writer);
}

/* The most frequent partners, by count, then number. */
static void write_partners(mica_json_writer *writer, const uint32_t *row, uint64_t experts) {
    uint64_t last = UINT64_MAX, last_count = UINT64_MAX;
    mica_json_open_row(writer, "chosen_with");
    for (int place = 0; place < PARTNERS; place++) {
        uint64_t best = experts;
        for (uint64_t e = 0; e < experts; e++) {
            bool told = last != UINT64_MAX && (row[e] > last_count || (row[e] == last_count && e <= last));
            if (row[e] && !told && (best == experts || row[e] > row[best]))
                best = e;
        }
        if (best == experts)
            break;
        mica_json_open_row(writer, NULL);
        mica_json_u64(writer, NULL, best);
        mica_json_u64(writer, NULL, row[best]);
        mica_json_close_array(writer);
        last = best;
        last_count = row[best];
    }
    mica_json_close_array(writer);
}

static void write_expert(mica_json_writer *writer, const mica_layer_tally *layer, uint64_t expert, uint64_t experts) {
    const mica_expert_tally *of = &layer->experts[expert];
    mica_json_open_object(writer, NULL);
    mica_json_u64(writer, "expert", expert);
    mica_json_u64(writer, "selections", of->gate.count);
    write_tally(writer, "gate_weight", &of->gate);
    write_tally(writer, "output_norm", &of->norm);
    write_tally(writer, "reap", &of->reap);
    write_tally(writer, "sparsity", &of->sparsity);
    write_partners(writer, layer->together + expert * experts, experts);
    mica_json_close_object(writer);
}

void mica_route_statistics_json(const mica_route_statistics *statistics, const mica_route_facts *facts, mica_json_writer *writer) {
    const mica_config *config = &statistics->model->config;
    mica_json_u64(writer, "format", 1);
    mica_json_string(writer, "checkpoint", facts->checkpoint);
    mica_json_string(writer, "model_type", config->model_type);
    mica_json_string(writer, "precision", facts->precision);
    mica_json_string(writer, "prompts", facts->prompts);
    mica_json_u64(writer, "prompt_count", facts->prompt_count);
    mica_json_u64(writer, "prompts_truncated", facts->truncated);
    mica_json_u64(writer, "window", facts->window);
    mica_json_u64(writer, "tokens", facts->tokens);
    mica_json_u64(writer, "experts", config->n_routed_experts);
    mica_json_u64(writer, "experts_per_token", config->num_experts_per_tok);
    mica_json_string(writer, "scoring_func", config->n_routed_experts ? config->scoring_func : NULL);
    mica_json_open_array(writer, "layers");
    for (uint64_t i = 0; i < config->num_hidden_layers; i++) {
        const mica_layer_tally *layer = &statistics->layers[i];
        mica_json_open_object(writer, NULL);
        mica_json_u64(writer, "layer", i);
        write_tally(writer, "residual_cosine", &layer->cosine);
        if (layer->experts)
            write_tally(writer, "router_entropy", &layer->entropy);
        if (layer->block.norm.count)
            write_block(writer, layer->experts ? "shared" : "dense", &layer->block);
        if (layer->experts)
            mica_json_open_array(writer, "experts");
        for (uint64_t e = 0; layer->experts && e < config->n_routed_experts; e++)
            write_expert(writer, layer, e, config->n_routed_experts);
        if (layer->experts)
            mica_json_close_array(writer);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static void write_layer_line(const mica_layer_tally *layer, uint64_t number, uint64_t experts, uint64_t tokens, mica_text *text) {
    uint64_t never = 0, most = 0, mentioned = 0;
    for (uint64_t e = 0; layer->experts && e < experts; e++) {
        uint64_t count = layer->experts[e].gate.count;
        never += count == 0;
        if (count > layer->experts[most].gate.count)
            most = e;
        mentioned += count;
    }
    mica_text_printf(text, "  %5llu   %8.4f", (unsigned long long)number, mean_of(&layer->cosine));
    if (layer->experts && mentioned)
        mica_text_printf(text, "   %7.3f   %8llu   %6llu (%4.1f%%)   %8.1f%%", mean_of(&layer->entropy), (unsigned long long)never,
                         (unsigned long long)most, 100 * (double)layer->experts[most].gate.count / (double)tokens,
                         100 * mean_of(&layer->experts[most].sparsity));
    mica_text_puts(text, "\n");
}

void mica_route_statistics_text(const mica_route_statistics *statistics, const mica_route_facts *facts, mica_text *text) {
    const mica_config *config = &statistics->model->config;
    mica_text_printf(text, "%s\n\nprompts   %llu (%s), %llu tokens\n", facts->checkpoint, (unsigned long long)facts->prompt_count,
                     facts->prompts, (unsigned long long)facts->tokens);
    if (facts->truncated)
        mica_text_printf(text, "          %llu prompts were cut at %llu tokens\n", (unsigned long long)facts->truncated,
                         (unsigned long long)facts->window);
    mica_text_puts(text, "\n  layer     cosine   entropy      never     most chosen   sparsity\n");
    for (uint64_t i = 0; i < config->num_hidden_layers; i++)
        write_layer_line(&statistics->layers[i], i, config->n_routed_experts, facts->tokens, text);
}
