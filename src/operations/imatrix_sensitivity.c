/* operations/imatrix_sensitivity.c: see the header. A copy of the text's residual stream begins at each place where noise is put on, so
 * that until then there is nothing to compute for it. The noise is a fixed sequence. Judged by tests/operations/test_imatrix_collect.c. */
#include "operations/imatrix_sensitivity.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "formats/imatrix.h"

#define TOKENS_MAX 256u
#define TOKENS_MIN 32u
#define COPIES_TOKENS 16384u /* of all copies together, as far as TOKENS_MIN allows */
#define NOISE 0.1            /* of what was added: its square is the relative error that three to four bits leave */

static uint64_t copies_of(const mica_model *model) {
    return 2 + 2 * model->config.num_hidden_layers; /* without noise; embedding; attention and feed-forward part of each layer */
}

/* Touched: the cache of experts gets what is left. */
static float *take_floats(uint64_t count, uint64_t width) {
    float *floats = mica_reallocarray(NULL, count * width + 1, sizeof *floats);
    if (floats)
        memset(floats, 0, count * width * sizeof *floats);
    return floats;
}

mica_status mica_sensitivity_init(mica_sensitivity *s, const mica_model *model, uint64_t count, mica_error *error) {
    const mica_config *config = &model->config;
    const uint64_t copies = copies_of(model);
    *s = (mica_sensitivity){.model = model, .carried = count < TOKENS_MAX ? count : TOKENS_MAX};
    while (s->carried > TOKENS_MIN && copies * s->carried > COPIES_TOKENS)
        s->carried /= 2;
    const uint64_t all = copies * s->carried;
    s->energy = mica_calloc(config->num_hidden_layers * (config->n_routed_experts + 1), sizeof *s->energy);
    s->response = mica_calloc(copies - 1, sizeof *s->response);
    s->x = take_floats(all, config->hidden_size);
    s->normed = take_floats(all, config->hidden_size);
    s->before = take_floats(s->carried, config->hidden_size);
    s->gates = take_floats(all, config->num_experts_per_tok);
    s->ids = mica_calloc(all * config->num_experts_per_tok + 1, sizeof *s->ids);
    if (s->energy && s->response && s->x && s->normed && s->before && s->gates && s->ids)
        return MICA_OK;
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu copies of %llu tokens", (unsigned long long)copies,
                     (unsigned long long)s->carried);
}

void mica_sensitivity_release(mica_sensitivity *s) {
    void *owned[] = {s->energy, s->response, s->x, s->normed, s->before, s->gates, s->ids};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        mica_free(owned[i]);
    *s = (mica_sensitivity){0};
}

/* ---- energies, of one layer after the other */

static void see_expert(void *context, uint64_t layer, int64_t expert, uint64_t count, const uint32_t *tokens, const float *weights,
                       const float *gated, const float *outputs) {
    const mica_sensitivity *s = context;
    const uint64_t experts = s->model->config.n_routed_experts, width = s->model->config.hidden_size;
    double *into = s->energy + layer * (experts + 1) + (expert >= 0 ? (uint64_t)expert : experts);
    (void)tokens;
    (void)gated;
    for (uint64_t t = 0; t < count; t++) {
        double sum = 0;
        for (uint64_t i = 0; i < width; i++)
            sum += (double)outputs[t * width + i] * (double)outputs[t * width + i];
        *into += weights ? (double)weights[t] * (double)weights[t] * sum : sum;
    }
}

static void save(void *context, uint64_t layer, mica_text *bytes) {
    const mica_sensitivity *s = context;
    const uint64_t count = s->model->config.n_routed_experts + 1;
    mica_text_append(bytes, (const char *)(s->energy + layer * count), count * sizeof *s->energy);
}

static mica_status load(void *context, uint64_t layer, const uint8_t *bytes, uint64_t length, mica_error *error) {
    mica_sensitivity *s = context;
    const uint64_t count = s->model->config.n_routed_experts + 1;
    if (length != count * sizeof *s->energy)
        return mica_fail(error, MICA_CORRUPT, "%s: layer %llu: expected %llu energies from the run before, got %llu bytes",
                         s->model->source->path, (unsigned long long)layer, (unsigned long long)count, (unsigned long long)length);
    memcpy(s->energy + layer * count, bytes, length);
    return MICA_OK;
}

mica_layer_collector mica_sensitivity_attach(mica_sensitivity *s) {
    return (mica_layer_collector){.observer = {.context = s, .expert = see_expert}, .save = save, .load = load};
}

/* ---- carrying noise */

typedef struct carrier {
    mica_sensitivity *of;
    mica_engine *engine;
    const mica_compute_options *options;
    uint64_t tokens, width, copies, batch; /* the first copy is without noise */
    float *x, *normed; /* [1 + sites][tokens][width]; these five are the sensitivity's */
    uint32_t *ids;     /* [1 + sites][tokens][top_k] */
    float *gates;      /* likewise */
    float *before;     /* [tokens][width]: the first copy before what is being added */
    uint64_t layers_before; /* done by the runs before */
    double begin;
    mica_states kept; /* x, in its file */
    mica_pass_journal *journal;
} carrier;

static double uniform(carrier *c) { /* splitmix64 */
    uint64_t z = c->of->random += 0x9e3779b97f4a7c15u;
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
    const uint64_t layers_now = layer - c->layers_before;
    const double seconds = mica_seconds_now() - c->begin;
    const mica_progress progress = {.what = "measuring",
                                    .units_done = layer,
                                    .units_total = layers,
                                    .seconds = seconds,
                                    .seconds_left = layers_now ? seconds / (double)layers_now * (double)(layers - layer) : -1};
    if (!c->options->progress || c->options->progress(c->options->progress_context, &progress))
        return MICA_OK;
    return mica_fail(error, MICA_INTERRUPTED, "stopped after %llu of %llu layers of the second pass", (unsigned long long)layer,
                     (unsigned long long)layers);
}

static mica_status run_feed(carrier *c, uint64_t layer, mica_error *error) {
    const mica_config *config = &c->of->model->config;
    const uint64_t experts = c->of->model->layers[layer].moe ? config->n_routed_experts : 1, top_k = config->num_experts_per_tok,
                   all = c->copies * c->tokens;
    const uint64_t slots = mica_engine_meters_get(c->engine).slots, group = slots && slots < experts ? slots : experts;
    mica_status status = MICA_OK;
    for (uint64_t at = 0, count; status == MICA_OK && at < all; at += count) {
        count = all - at < c->batch ? all - at : c->batch;
        status = mica_engine_route(c->engine, layer, c->x + at * c->width, count, c->normed + at * c->width, c->ids + at * top_k,
                                   c->gates + at * top_k, error);
    }
    for (uint64_t first = 0; status == MICA_OK && first < experts; first += group)
        for (uint64_t at = 0, count; status == MICA_OK && at < all; at += count) {
            count = all - at < c->batch ? all - at : c->batch;
            status = go_on(c, layer, error);
            if (status == MICA_OK)
                status = mica_engine_feed_part(c->engine, layer, first, experts - first < group ? experts : first + group,
                                               c->normed + at * c->width, c->ids + at * top_k, c->gates + at * top_k, c->x + at * c->width,
                                               count, error);
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

/* ---- kept for a resume: copies in two places by turns, the noise's state in the journal */

static mica_status keep_layer(carrier *c, uint64_t layer, mica_error *error) {
    const uint64_t plane = (layer + 1) % MICA_STATES_KEPT, record[2] = {layer, c->of->random};
    mica_status status = mica_states_write(&c->kept, plane, 0, c->copies * c->tokens, c->x, error);
    if (status == MICA_OK)
        status = mica_states_keep(&c->kept, plane, error);
    if (status == MICA_OK)
        status = mica_pass_journal_record(c->journal, MICA_PASS_NOISE, record, sizeof record, error);
    c->of->layers_done += status == MICA_OK;
    return status;
}

mica_status mica_sensitivity_replay(mica_sensitivity *s, const char *journal, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    uint64_t record[2] = {UINT64_MAX, 0};
    if (bytes == sizeof record)
        memcpy(record, payload, sizeof record);
    if (!s->model || record[0] != s->layers_done || record[0] >= s->model->config.num_hidden_layers)
        return mica_fail(error, MICA_CORRUPT, "%s: expected layer %llu of the second pass, got a record of %llu bytes that says otherwise",
                         journal, (unsigned long long)s->layers_done, (unsigned long long)bytes);
    s->layers_done++;
    s->random = record[1];
    return MICA_OK;
}

static mica_status begin_copies(carrier *c, const int64_t *ids, mica_error *error) {
    c->copies = 1;
    c->of->random = 1;
    const mica_status status = mica_engine_embed(c->engine, ids, c->tokens, c->x, error);
    if (status == MICA_OK)
        begin_copy(c, NULL);
    return status;
}

static mica_status take_up_copies(carrier *c, mica_error *error) {
    c->copies = 2 + 2 * c->layers_before;
    return mica_states_read(&c->kept, c->layers_before % MICA_STATES_KEPT, 0, c->copies * c->tokens, c->x, error);
}

static mica_status carry(carrier *c, const int64_t *ids, const char *path, mica_error *error) {
    const uint64_t layers = c->of->model->config.num_hidden_layers;
    c->layers_before = c->of->layers_done;
    mica_status status = mica_states_open(&c->kept, MICA_STATES_KEPT, copies_of(c->of->model) * c->tokens, c->width, 0, error);
    if (status == MICA_OK)
        status = mica_states_attach(&c->kept, path, c->layers_before == 0, error);
    if (status == MICA_OK)
        status = c->layers_before ? take_up_copies(c, error) : begin_copies(c, ids, error);
    while (status == MICA_OK && c->of->layers_done < layers) {
        const uint64_t layer = c->of->layers_done;
        status = run_layer(c, layer, error);
        if (status == MICA_OK)
            status = keep_layer(c, layer, error);
    }
    if (status == MICA_OK)
        status = mica_engine_check_finite(c->engine, (int64_t)layers - 1, c->x, c->copies * c->tokens, c->width, error);
    for (uint64_t site = 0; status == MICA_OK && site < 1 + 2 * layers; site++)
        c->of->response[site] = response_of(c, site + 1);
    c->of->tokens = c->tokens;
    mica_states_close(&c->kept);
    return status;
}

mica_status mica_sensitivity_measure(mica_sensitivity *s, mica_engine *engine, const int64_t *ids, const mica_compute_options *options,
                                     const char *path, mica_pass_journal *journal, mica_error *error) {
    carrier c = {.of = s,
                 .engine = engine,
                 .options = options,
                 .tokens = s->carried,
                 .width = s->model->config.hidden_size,
                 .x = s->x,
                 .normed = s->normed,
                 .ids = s->ids,
                 .gates = s->gates,
                 .before = s->before,
                 .batch = mica_engine_batch(engine),
                 .begin = mica_seconds_now(),
                 .journal = journal};
    return carry(&c, ids, path, error);
}

/* ---- what it says of a tensor */

/* What a response leaves out of a kind: an error in one matrix of a part is not noise on what the part adds. Measured on tiny-k2, one
 * tensor quantised at a time (docs/export.md): the ratio of the divergence to what the rest of the estimate says. */
double mica_sensitivity_of_kind(const mica_export_tensor *tensor) {
    const mica_weight *weight = tensor->weights[0];
    const bool queries = tensor->form == MICA_GGUF_KEY_PART || tensor->form == MICA_GGUF_QUERY_PAIRS ||
                         tensor->form == MICA_GGUF_KEY_PAIRS || weight->part == MICA_PART_Q || weight->part == MICA_PART_Q_A ||
                         weight->part == MICA_PART_Q_B;
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

/* ---- the file */

static bool is_sensitive(const mica_export_tensor *tensor) {
    return tensor->weights && !tensor->fixed;
}

static uint64_t sensitive_matrices(const mica_export_tensor *tensor) {
    return tensor->form == MICA_GGUF_EXPERTS ? tensor->matrices : 1;
}

void mica_sensitivity_layout(mica_sensitivity *s, const mica_export_plan *plan, mica_gguf_tensor *tensors, uint64_t *count,
                             mica_text *text) {
    s->entry = *count;
    for (uint64_t i = 0; s->model && i < plan->tensor_count; i++)
        if (is_sensitive(&plan->tensors[i])) {
            tensors[(*count)++] = (mica_gguf_tensor){.dtype = MICA_F32, .rank = 2, .shape = {1, sensitive_matrices(&plan->tensors[i])}};
            mica_text_printf(text, "%s" MICA_IMATRIX_SENSITIVITY_SUFFIX "%c", plan->tensors[i].name, 0);
        }
}

mica_status mica_sensitivity_write(const mica_sensitivity *s, const mica_export_plan *plan, const mica_gguf_layout *layout,
                                   mica_gguf_writer *writer, mica_error *error) {
    mica_status status = MICA_OK;
    const mica_gguf_tensor *entry = &layout->tensors[s->entry];
    for (uint64_t i = 0; s->model && status == MICA_OK && i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        if (!is_sensitive(tensor))
            continue;
        for (uint64_t m = 0; status == MICA_OK && m < sensitive_matrices(tensor); m++) {
            const float value = (float)mica_sensitivity_of(s, tensor, m);
            status = mica_gguf_writer_put(writer, entry, m * sizeof value, &value, sizeof value, error);
        }
        entry++;
    }
    return status;
}
