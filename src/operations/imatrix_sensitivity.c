/* operations/imatrix_sensitivity.c: see the header. A copy of the text's residual stream begins at each place where noise is put on, so that until then there
 * is nothing to compute for it. The noise is a fixed sequence. Judged by tests/operations/test_imatrix_collect.c. */
#include "operations/imatrix_sensitivity.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

#define TOKENS_MAX 256u
#define TOKENS_MIN 32u
#define COPIES_TOKENS 16384u /* of all copies together, as far as TOKENS_MIN allows */
#define NOISE 0.1            /* of what was added: its square is the relative error that three to four bits leave */

mica_status mica_sensitivity_init(mica_sensitivity *s, const mica_model *model, mica_error *error) {
    const mica_config *config = &model->config;
    *s = (mica_sensitivity){.model = model};
    s->energy = mica_calloc(config->num_hidden_layers * (config->n_routed_experts + 1), sizeof *s->energy);
    s->response = mica_calloc(1 + 2 * config->num_hidden_layers, sizeof *s->response);
    return s->energy && s->response ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for sensitivities");
}

void mica_sensitivity_release(mica_sensitivity *s) {
    mica_free(s->energy);
    mica_free(s->response);
    *s = (mica_sensitivity){0};
}

void mica_sensitivity_see_expert(mica_sensitivity *s, uint64_t layer, int64_t expert, uint64_t count, const float *weights, const float *outputs) {
    const uint64_t experts = s->model->config.n_routed_experts, width = s->model->config.hidden_size;
    double *into = s->energy + layer * (experts + 1) + (expert >= 0 ? (uint64_t)expert : experts);
    for (uint64_t t = 0; t < count; t++) {
        double sum = 0;
        for (uint64_t i = 0; i < width; i++)
            sum += (double)outputs[t * width + i] * (double)outputs[t * width + i];
        *into += weights ? (double)weights[t] * (double)weights[t] * sum : sum;
    }
}

/* ---- carrying noise */

typedef struct carrier {
    mica_sensitivity *of;
    mica_engine *engine;
    const mica_compute_options *options;
    uint64_t tokens, width, copies, batch; /* the first copy is without noise */
    float *x;        /* [1 + sites][tokens][width] */
    float *normed;   /* likewise */
    uint32_t *ids;   /* [1 + sites][tokens][top_k] */
    float *gates;
    float *before;   /* [tokens][width]: the first copy before what is being added */
    uint64_t random;
    double begin;
} carrier;

static double uniform(carrier *c) { /* splitmix64 */
    uint64_t z = c->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return ((double)((z ^ z >> 31) >> 11) + 0.5) * 0x1p-53;
}

static double gauss(carrier *c) {
    const double radius = sqrt(-2 * log(uniform(c)));
    return radius * cos(2 * M_PI * uniform(c));
}

/* A new copy: the first one, with noise on what it has more than `before` (NULL: on all of it). */
static void begin_copy(carrier *c, const float *before) {
    float *copy = c->x + c->copies * c->tokens * c->width;
    for (uint64_t t = 0; t < c->tokens; t++) {
        const float *from = c->x + t * c->width, *old = before ? before + t * c->width : NULL;
        double added = 0;
        for (uint64_t i = 0; i < c->width; i++) {
            const double change = (double)from[i] - (old ? (double)old[i] : 0);
            added += change * change;
        }
        const double size = NOISE * sqrt(added / (double)c->width);
        for (uint64_t i = 0; i < c->width; i++)
            copy[t * c->width + i] = from[i] + (float)(size * gauss(c));
    }
    c->copies++;
}

static mica_status go_on(const carrier *c, uint64_t layer, mica_error *error) {
    const uint64_t layers = c->of->model->config.num_hidden_layers;
    const mica_progress progress = {.what = "measuring",
                                    .units_done = layer,
                                    .units_total = layers,
                                    .seconds = mica_seconds_now() - c->begin,
                                    .seconds_left = layer ? (mica_seconds_now() - c->begin) / (double)layer * (double)(layers - layer) : -1};
    if (!c->options->progress || c->options->progress(c->options->progress_context, &progress))
        return MICA_OK;
    return mica_fail(error, MICA_INTERRUPTED, "interrupted in layer %llu of %llu; nothing was written", (unsigned long long)layer,
                     (unsigned long long)layers);
}

static mica_status run_feed(carrier *c, uint64_t layer, mica_error *error) {
    const mica_config *config = &c->of->model->config;
    const uint64_t experts = c->of->model->layers[layer].moe ? config->n_routed_experts : 1, top_k = config->num_experts_per_tok, all = c->copies * c->tokens;
    const uint64_t slots = mica_engine_meters_get(c->engine).slots, group = slots && slots < experts ? slots : experts;
    mica_status status = MICA_OK;
    for (uint64_t at = 0, count; status == MICA_OK && at < all; at += count) {
        count = all - at < c->batch ? all - at : c->batch;
        status = mica_engine_route(c->engine, layer, c->x + at * c->width, count, c->normed + at * c->width, c->ids + at * top_k, c->gates + at * top_k, error);
    }
    for (uint64_t first = 0; status == MICA_OK && first < experts; first += group)
        for (uint64_t at = 0, count; status == MICA_OK && at < all; at += count) {
            count = all - at < c->batch ? all - at : c->batch;
            status = go_on(c, layer, error);
            if (status == MICA_OK)
                status = mica_engine_feed_part(c->engine, layer, first, experts - first < group ? experts : first + group, c->normed + at * c->width,
                                               c->ids + at * top_k, c->gates + at * top_k, c->x + at * c->width, count, error);
        }
    return status;
}

static mica_status run_layer(carrier *c, uint64_t layer, mica_error *error) {
    const uint64_t bytes = c->tokens * c->width * sizeof *c->x;
    mica_status status = go_on(c, layer, error);
    memcpy(c->before, c->x, bytes);
    for (uint64_t copy = 0; status == MICA_OK && copy < c->copies; copy++)
        status = mica_engine_attention(c->engine, layer, 0, c->x + copy * c->tokens * c->width, c->tokens, error);
    if (status != MICA_OK)
        return status;
    begin_copy(c, c->before);
    memcpy(c->before, c->x, bytes);
    status = run_feed(c, layer, error);
    if (status == MICA_OK)
        begin_copy(c, c->before);
    return status;
}

/* The mean over tokens of |x' - x|^2 / |x|^2, over the noise's. */
static double response_of(const carrier *c, uint64_t copy) {
    double sum = 0;
    for (uint64_t t = 0; t < c->tokens; t++) {
        const float *from = c->x + t * c->width, *to = from + copy * c->tokens * c->width;
        double change = 0, all = 0;
        for (uint64_t i = 0; i < c->width; i++) {
            change += ((double)to[i] - (double)from[i]) * ((double)to[i] - (double)from[i]);
            all += (double)from[i] * (double)from[i];
        }
        sum += all > 0 ? change / all : 0;
    }
    return sum / (double)c->tokens / (NOISE * NOISE);
}

static mica_status carry(carrier *c, const int64_t *ids, mica_error *error) {
    const uint64_t layers = c->of->model->config.num_hidden_layers;
    mica_status status = mica_engine_embed(c->engine, ids, c->tokens, c->x, error);
    if (status == MICA_OK)
        begin_copy(c, NULL);
    for (uint64_t layer = 0; status == MICA_OK && layer < layers; layer++)
        status = run_layer(c, layer, error);
    if (status == MICA_OK)
        status = mica_engine_check_finite(c->engine, (int64_t)layers - 1, c->x, c->copies * c->tokens, c->width, error);
    for (uint64_t site = 0; status == MICA_OK && site < 1 + 2 * layers; site++)
        c->of->response[site] = response_of(c, site + 1);
    c->of->tokens = c->tokens;
    return status;
}

mica_status mica_sensitivity_measure(mica_sensitivity *s, mica_engine *engine, const int64_t *ids, uint64_t count, const mica_compute_options *options,
                                     mica_error *error) {
    const mica_config *config = &s->model->config;
    const uint64_t copies = 2 + 2 * config->num_hidden_layers, top_k = config->num_experts_per_tok;
    carrier c = {.of = s, .engine = engine, .options = options, .tokens = count < TOKENS_MAX ? count : TOKENS_MAX, .width = config->hidden_size, .copies = 1,
                 .batch = mica_engine_batch(engine), .random = 1, .begin = mica_seconds_now()};
    while (c.tokens > TOKENS_MIN && copies * c.tokens > COPIES_TOKENS)
        c.tokens /= 2;
    const uint64_t all = copies * c.tokens;
    c.x = mica_reallocarray(NULL, all * c.width, sizeof *c.x);
    c.normed = mica_reallocarray(NULL, all * c.width, sizeof *c.normed);
    c.ids = mica_calloc(all * top_k + 1, sizeof *c.ids);
    c.gates = mica_calloc(all * top_k + 1, sizeof *c.gates);
    c.before = mica_reallocarray(NULL, c.tokens * c.width, sizeof *c.before);
    const mica_status status = c.x && c.normed && c.ids && c.gates && c.before
                                   ? carry(&c, ids, error)
                                   : mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu copies of %llu tokens", (unsigned long long)copies,
                                               (unsigned long long)c.tokens);
    void *owned[] = {c.x, c.normed, c.ids, c.gates, c.before};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        mica_free(owned[i]);
    return status;
}

/* ---- what it says of a tensor */

/* What a response leaves out of a kind: an error in one matrix of a part is not noise on what the part adds. Measured on tiny-k2, one tensor quantised at
 * a time (docs/export.md): the ratio of the divergence to what the rest of the estimate says. */
double mica_sensitivity_of_kind(const mica_export_tensor *tensor) {
    const mica_weight *weight = tensor->weights[0];
    const bool queries = tensor->form == MICA_GGUF_KEY_PART || tensor->form == MICA_GGUF_QUERY_PAIRS || tensor->form == MICA_GGUF_KEY_PAIRS ||
                         weight->part == MICA_PART_Q || weight->part == MICA_PART_Q_A || weight->part == MICA_PART_Q_B;
    switch (weight->role) {
    case MICA_ROLE_ATTENTION: return queries ? 0.5 : weight->part == MICA_PART_O ? 4 : 1.3;
    case MICA_ROLE_EXPERT:
    case MICA_ROLE_DENSE: return weight->projection == MICA_DOWN ? 2 : 0.5;
    case MICA_ROLE_SHARED_EXPERT: return weight->projection == MICA_DOWN ? 4 : 1.2;
    default: return 1;
    }
}

double mica_sensitivity_of(const mica_sensitivity *s, const mica_export_tensor *tensor, uint64_t matrix) {
    const uint64_t experts = s->model->config.n_routed_experts;
    const mica_weight *weight = tensor->weights[0];
    const double kind = mica_sensitivity_of_kind(tensor);
    if (tensor->layer < 0)
        return weight->role == MICA_ROLE_EMBEDDING ? s->response[0] : 1;
    const double *response = s->response + 1 + 2 * tensor->layer, *energy = s->energy + (uint64_t)tensor->layer * (experts + 1);
    if (weight->role != MICA_ROLE_EXPERT && weight->role != MICA_ROLE_SHARED_EXPERT && weight->role != MICA_ROLE_DENSE)
        return response[0] * kind;
    double all = 0;
    for (uint64_t e = 0; e <= experts; e++)
        all += energy[e];
    return all > 0 ? response[1] * kind * energy[weight->role == MICA_ROLE_EXPERT ? matrix : experts] / all : 0;
}
