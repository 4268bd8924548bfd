/* operations/imatrix_collect.c: sums of squared inputs of every weight that an export may quantise, per column and expert, over a text; as llama.cpp's
 * llama-imatrix writes them. The gate and up projections have one input and one sum. attn_v_b gets the latent that every head of it is multiplied
 * with; attn_k_b, whose input depends on how attention is computed, has no entry. Judged by tests/operations/test_imatrix_collect.c and
 * tests/interop/export_gguf.py (llama-quantize reads it; its own sums are the same within rounding). */
#include <mica/imatrix.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "operations/export_gguf.h"
#include "operations/imatrix_covariance.h"
#include "operations/imatrix_sensitivity.h"
#include "operations/layer_pass.h"
#include "operations/output.h"

#define WINDOW_DEFAULT 512u
#define SUMS_SUFFIX ".in_sum2"
#define COUNTS_SUFFIX ".counts"
#define NO_TENSOR UINT64_MAX           /* of the layout: a covariance */
#define SENSITIVITY ((uint64_t)1 << 32) /* and the number of a tensor of the plan */

typedef struct place { /* where a weight's inputs go */
    const mica_weight *weight;
    uint64_t tensor, matrix;
} place;

typedef struct collection {
    mica_compute compute;
    mica_export_plan plan;
    float **sums;  /* [tensor][matrices x columns]; NULL: not collected; gate's is up's as well */
    float **counts; /* [tensor][matrices] */
    place *places; /* sorted by weight */
    uint64_t place_count, windows, window;
    mica_layer_pass pass;
    mica_covariance_collector covariance; /* without inputs: not wanted */
    mica_sensitivity sensitivity;         /* without a model: not wanted */
    mica_gguf_layout layout;
    mica_gguf_writer *writer;
    const char *output, *dataset;
    char *names, *directory; /* owned: the layout's names; where the output goes */
    double seconds;
} collection;

static int compare_places(const void *a, const void *b) {
    const uintptr_t left = (uintptr_t)((const place *)a)->weight, right = (uintptr_t)((const place *)b)->weight;
    return left < right ? -1 : left > right;
}

static bool is_collected(const mica_export_tensor *tensor) {
    return tensor->weights && !tensor->fixed && tensor->layer >= 0 && tensor->form != MICA_GGUF_KEY_PART;
}

static bool has_gates_input(const mica_export_tensor *tensor) {
    return strstr(tensor->name, ".ffn_up") != NULL;
}

/* Of attention's latent values all heads see the same. */
static uint64_t collected_matrices(const mica_export_tensor *tensor) {
    return tensor->form == MICA_GGUF_EXPERTS ? tensor->matrices : 1;
}

static void release(collection *c) {
    mica_gguf_writer_close(c->writer);
    mica_gguf_layout_release(&c->layout);
    mica_layer_pass_release(&c->pass);
    mica_covariance_collector_release(&c->covariance);
    mica_sensitivity_release(&c->sensitivity);
    mica_free(c->names);
    mica_free(c->directory);
    for (uint64_t i = 0; i < c->plan.tensor_count; i++) {
        if (c->sums)
            mica_free(c->sums[i]);
        if (c->counts)
            mica_free(c->counts[i]);
    }
    mica_free(c->sums);
    mica_free(c->counts);
    mica_free(c->places);
    mica_export_plan_release(&c->plan);
    mica_compute_close(&c->compute);
}

static mica_status prepare(collection *c, mica_error *error) {
    const mica_export_plan *plan = &c->plan;
    uint64_t weights = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        weights += plan->tensors[i].weight_count;
    c->sums = mica_calloc(plan->tensor_count + 1, sizeof *c->sums);
    c->counts = mica_calloc(plan->tensor_count + 1, sizeof *c->counts);
    c->places = mica_calloc(weights + 1, sizeof *c->places);
    bool enough = c->sums && c->counts && c->places;
    for (uint64_t i = 0; enough && i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        const uint64_t matrices = collected_matrices(tensor);
        if (!is_collected(tensor) || has_gates_input(tensor))
            continue;
        c->sums[i] = mica_calloc(matrices * tensor->columns, sizeof **c->sums);
        c->counts[i] = mica_calloc(matrices, sizeof **c->counts);
        enough = c->sums[i] && c->counts[i];
        for (uint64_t m = 0; m < matrices; m++)
            c->places[c->place_count++] = (place){tensor->weights[tensor->weight_count > 1 ? m : 0], i, m};
    }
    if (!enough)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the sums", plan->model->source->path);
    qsort(c->places, c->place_count, sizeof *c->places, compare_places);
    return MICA_OK;
}

/* The observer's: on the calling thread. */
static void see_input(void *context, const mica_weight *weight, const float *x, uint64_t stride, const uint32_t *selection, uint64_t tokens) {
    collection *c = context;
    mica_covariance_collector_see(&c->covariance, weight, x, stride, selection, tokens);
    const place key = {.weight = weight}, *found = bsearch(&key, c->places, c->place_count, sizeof key, compare_places);
    if (!found)
        return;
    const uint64_t columns = c->plan.tensors[found->tensor].columns;
    float *sums = c->sums[found->tensor] + found->matrix * columns;
    for (uint64_t t = 0; t < tokens; t++) {
        const float *row = x + (selection ? selection[t] : t) * stride;
        for (uint64_t i = 0; i < columns; i++)
            sums[i] += row[i] * row[i];
    }
    c->counts[found->tensor][found->matrix] += (float)tokens;
}

/* ---- the text */

static mica_status begin_layer(void *context, uint64_t layer, mica_error *error) {
    (void)error;
    mica_covariance_collector_begin(&((collection *)context)->covariance, layer);
    return MICA_OK;
}

static mica_status see_choices(void *context, uint64_t layer, const uint32_t *chosen, mica_error *error) {
    collection *c = context;
    (void)layer;
    (void)error;
    mica_covariance_collector_routed(&c->covariance, chosen, c->pass.tokens * c->plan.model->config.num_experts_per_tok);
    return MICA_OK;
}

static mica_status end_layer(void *context, uint64_t layer, mica_error *error) {
    collection *c = context;
    (void)layer;
    return mica_covariance_collector_end(&c->covariance, c->writer, &c->layout, error);
}

static void see_expert(void *context, uint64_t layer, int64_t expert, uint64_t count, const uint32_t *tokens, const float *weights, const float *gated,
                       const float *outputs) {
    (void)tokens;
    (void)gated;
    mica_sensitivity_see_expert(&((collection *)context)->sensitivity, layer, expert, count, weights, outputs);
}

/* Windows of whole length, each with its BOS. */
static mica_status cut_windows(collection *c, const int64_t *ids, uint64_t count, int64_t bos, mica_error *error) {
    const uint64_t body = c->window - (bos >= 0);
    int64_t *window = mica_calloc(c->window, sizeof *window);
    mica_status status = window ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for a window");
    c->windows = count / body;
    for (uint64_t i = 0; status == MICA_OK && i < c->windows; i++) {
        window[0] = bos;
        memcpy(window + (bos >= 0), ids + i * body, body * sizeof *window);
        status = mica_layer_pass_add(&c->pass, window, c->window, error);
    }
    mica_free(window);
    return status;
}

static mica_status take_text(collection *c, const mica_compute_options *options, const mica_prompt *prompt, mica_error *error) {
    int64_t *ids = NULL, bos = -1;
    uint64_t count = 0;
    mica_status status = mica_compute_ids(&c->compute, prompt, false, &ids, &count, error);
    if (status == MICA_OK)
        status = mica_compute_bos(&c->compute, prompt, &bos, error);
    c->window = options->context ? options->context : WINDOW_DEFAULT;
    if (status == MICA_OK && (c->window < 2 || count < c->window - (bos >= 0)))
        status = mica_fail(error, MICA_USAGE, "expected a text of at least one window of %llu tokens, got %llu (--context makes windows shorter)",
                           (unsigned long long)c->window, (unsigned long long)count);
    if (status == MICA_OK)
        status = cut_windows(c, ids, count, bos, error);
    mica_free(ids);
    return status;
}

static mica_status compute_text(collection *c, const mica_compute_options *options, mica_error *error) {
    mica_compute_options settings = *options;
    mica_layer_pass *pass = &c->pass;
    pass->compute = &c->compute;
    pass->what = "computing";
    pass->progress = options->progress;
    pass->progress_context = options->progress_context;
    pass->context = c;
    if (c->covariance.input_count > 0) {
        pass->begin = begin_layer;
        pass->routed = see_choices;
        pass->end = end_layer;
    }
    mica_status status = mica_layer_pass_prepare(pass, options->memory_bytes, c->directory, error);
    settings.context = c->window;
    if (status == MICA_OK)
        status = mica_compute_open_engine(&c->compute, &settings, 0, pass->batch, error);
    if (status != MICA_OK)
        return status;
    const mica_observer observer = {.context = c, .input = see_input, .expert = c->sensitivity.model ? see_expert : NULL};
    const double begin = mica_seconds_now();
    mica_engine_observe(c->compute.engine, &observer);
    status = mica_layer_pass_run(pass, error);
    mica_engine_observe(c->compute.engine, NULL);
    if (status == MICA_OK && c->sensitivity.model)
        status = mica_sensitivity_measure(&c->sensitivity, c->compute.engine, pass->ids, c->window, options, error);
    c->seconds = mica_seconds_now() - begin;
    return status;
}

/* ---- the file */

/* The tensor whose sums are this one's. */
static uint64_t sums_of(const collection *c, uint64_t index) {
    const mica_export_tensor *tensors = c->plan.tensors;
    char name[MICA_GGUF_NAME_BYTES];
    if (!has_gates_input(&tensors[index]))
        return index;
    const char *at = strstr(tensors[index].name, ".ffn_up");
    snprintf(name, sizeof name, "%.*s.ffn_gate%s", (int)(at - tensors[index].name), tensors[index].name, at + strlen(".ffn_up"));
    for (uint64_t i = 0; i < c->plan.tensor_count; i++)
        if (strcmp(tensors[i].name, name) == 0)
            return i;
    return index;
}

static mica_status write_sums(const collection *c, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < c->layout.tensor_count && c->layout.tensors[i].number < SENSITIVITY; i += 2) {
        const mica_gguf_tensor *sums = &c->layout.tensors[i], *counts = &c->layout.tensors[i + 1];
        const mica_export_tensor *tensor = &c->plan.tensors[sums->number];
        const uint64_t from = sums_of(c, sums->number), bytes = collected_matrices(tensor) * tensor->columns * sizeof(float);
        for (uint64_t at = 0; status == MICA_OK && at < sums->bytes; at += bytes) /* once per head, where there are heads */
            status = mica_gguf_writer_put(c->writer, sums, at, c->sums[from], bytes, error);
        if (status == MICA_OK)
            status = mica_gguf_writer_put(c->writer, counts, 0, c->counts[from], counts->bytes, error);
    }
    return status;
}

static bool is_sensitive(const mica_export_tensor *tensor) {
    return tensor->weights && !tensor->fixed;
}

static uint64_t sensitive_matrices(const mica_export_tensor *tensor) {
    return tensor->form == MICA_GGUF_EXPERTS ? tensor->matrices : 1;
}

static mica_status write_sensitivities(const collection *c, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t i = c->layout.tensor_count; status == MICA_OK && i-- > 0 && c->layout.tensors[i].number >= SENSITIVITY;) {
        if (c->layout.tensors[i].number == NO_TENSOR)
            break;
        const mica_export_tensor *tensor = &c->plan.tensors[c->layout.tensors[i].number - SENSITIVITY];
        for (uint64_t m = 0; status == MICA_OK && m < sensitive_matrices(tensor); m++) {
            const float value = (float)mica_sensitivity_of(&c->sensitivity, tensor, m);
            status = mica_gguf_writer_put(c->writer, &c->layout.tensors[i], m * sizeof value, &value, sizeof value, error);
        }
    }
    return status;
}

static mica_status make_layout(collection *c, mica_error *error) {
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_tensor *tensors = mica_calloc(3 * c->plan.tensor_count + 2 * c->covariance.input_count + 1, sizeof *tensors);
    mica_text text = MICA_TEXT_INIT;
    uint64_t count = 0;
    mica_gguf_add_string(&metadata, "general.type", "imatrix");
    mica_gguf_add_strings(&metadata, "imatrix.datasets", 1);
    mica_gguf_add_element(&metadata, c->dataset, strlen(c->dataset));
    mica_gguf_add_u32(&metadata, "imatrix.chunk_count", (uint32_t)c->windows);
    mica_gguf_add_u32(&metadata, "imatrix.chunk_size", (uint32_t)c->window);
    for (uint64_t i = 0; tensors && i < c->plan.tensor_count; i++) {
        const mica_export_tensor *tensor = &c->plan.tensors[i];
        const uint64_t matrices = collected_matrices(tensor), heads = tensor->form == MICA_GGUF_VALUE_PART ? tensor->matrices : 1;
        if (!is_collected(tensor) || !c->sums[sums_of(c, i)])
            continue;
        tensors[count++] = (mica_gguf_tensor){.dtype = MICA_F32, .rank = 2, .shape = {matrices, tensor->columns * heads}, .number = i};
        mica_text_printf(&text, "%s" SUMS_SUFFIX "%c", tensor->name, 0);
        tensors[count++] = (mica_gguf_tensor){.dtype = MICA_F32, .rank = 2, .shape = {matrices, 1}, .number = i};
        mica_text_printf(&text, "%s" COUNTS_SUFFIX "%c", tensor->name, 0);
    }
    const uint64_t own = count;
    if (tensors)
        mica_covariance_collector_layout(&c->covariance, tensors, &count, &text);
    const uint64_t covariances = count;
    for (uint64_t i = 0; tensors && c->sensitivity.model && i < c->plan.tensor_count; i++)
        if (is_sensitive(&c->plan.tensors[i])) {
            tensors[count++] = (mica_gguf_tensor){
                .dtype = MICA_F32, .rank = 2, .shape = {1, sensitive_matrices(&c->plan.tensors[i])}, .number = SENSITIVITY + i};
            mica_text_printf(&text, "%s" MICA_IMATRIX_SENSITIVITY_SUFFIX "%c", c->plan.tensors[i].name, 0);
        }
    c->names = mica_text_take(&text);
    mica_status status = tensors && c->names ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for the table of tensors");
    const char *name = c->names;
    for (uint64_t i = 0; status == MICA_OK && i < count; i++, name += strlen(name) + 1) {
        tensors[i].name = name;
        tensors[i].number = i < own || i >= covariances ? tensors[i].number : NO_TENSOR;
    }
    if (status == MICA_OK)
        status = mica_gguf_layout_make(tensors, count, &metadata, 0, &c->layout, error);
    else
        mica_free(tensors);
    mica_gguf_metadata_release(&metadata);
    return status;
}

/* The partial file is there while the text is computed: covariances are written as layers end. What fails leaves none. */
static mica_status collect_to_file(collection *c, const mica_compute_options *options, mica_error *error) {
    mica_status status = mica_gguf_writer_open(c->output, &c->layout, true, &c->writer, error);
    if (status == MICA_OK)
        status = compute_text(c, options, error);
    if (status == MICA_OK)
        status = write_sums(c, error);
    if (status == MICA_OK)
        status = write_sensitivities(c, error);
    if (status == MICA_OK) {
        status = mica_gguf_writer_finish(c->writer, error);
        c->writer = NULL;
    }
    if (status == MICA_OK)
        return MICA_OK;
    mica_gguf_writer_close(c->writer);
    c->writer = NULL;
    mica_text partial = MICA_TEXT_INIT;
    mica_text_printf(&partial, "%s.partial", c->output);
    if (!mica_text_failed(&partial))
        (void)mica_file_remove(partial.bytes, NULL);
    mica_text_release(&partial);
    return status;
}

/* ---- the report */

static uint64_t never_chosen(const collection *c, int64_t layer, uint64_t *experts) {
    uint64_t never = 0;
    *experts = 0;
    for (uint64_t i = 0; i < c->plan.tensor_count; i++) {
        const mica_export_tensor *tensor = &c->plan.tensors[i];
        if (tensor->form != MICA_GGUF_EXPERTS || tensor->layer != layer || !strstr(tensor->name, ".ffn_gate_exps"))
            continue;
        *experts = tensor->matrices;
        for (uint64_t e = 0; e < tensor->matrices; e++)
            never += !(c->counts[i][e] > 0);
    }
    return never;
}

static mica_status give_report(const collection *c, const char *output, char **text, char **json, mica_error *error) {
    mica_text words = MICA_TEXT_INIT;
    mica_json_writer writer;
    uint64_t experts, all = 0, never = 0;
    for (uint64_t layer = 0; layer < c->plan.model->config.num_hidden_layers; layer++) {
        never += never_chosen(c, (int64_t)layer, &experts);
        all += experts;
    }
    mica_text_printf(&words, "%s: %llu windows of %llu tokens in %.1f s\n", output, (unsigned long long)c->windows, (unsigned long long)c->window,
                     c->seconds);
    if (all > 0)
        mica_text_printf(&words, "  experts   %llu of %llu were never chosen\n", (unsigned long long)never, (unsigned long long)all);
    if (c->covariance.input_count > 0)
        mica_text_printf(&words, "  inputs    covariance of %llu, and of %llu experts' own\n", (unsigned long long)c->covariance.input_count,
                         (unsigned long long)c->covariance.own_inputs);
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "output", output);
    mica_json_u64(&writer, "windows", c->windows);
    mica_json_u64(&writer, "window_tokens", c->window);
    mica_json_double(&writer, "seconds", c->seconds);
    mica_json_u64(&writer, "experts", all);
    mica_json_u64(&writer, "experts_never_chosen", never);
    mica_json_u64(&writer, "covariances", c->covariance.input_count);
    mica_json_u64(&writer, "covariances_of_experts", c->covariance.own_inputs);
    mica_json_open_array(&writer, "layers");
    for (uint64_t layer = 0; layer < c->plan.model->config.num_hidden_layers; layer++) {
        const uint64_t missing = never_chosen(c, (int64_t)layer, &experts);
        if (missing == 0)
            continue;
        mica_json_open_row(&writer, NULL);
        mica_json_u64(&writer, NULL, layer);
        mica_json_u64(&writer, NULL, missing);
        mica_json_close_array(&writer);
        mica_text_printf(&words, "  layer %-3llu %llu of %llu experts were never chosen\n", (unsigned long long)layer, (unsigned long long)missing,
                         (unsigned long long)experts);
    }
    mica_json_close_array(&writer);
    mica_json_close_object(&writer);
    return mica_output_give(MICA_OK, &words, &writer, text, json, error);
}

static mica_status prepare_output(collection *c, mica_error *error) {
    const char *slash = strrchr(c->output, '/');
    mica_text text = MICA_TEXT_INIT;
    if (slash)
        mica_text_append(&text, c->output, slash == c->output ? 1 : (uint64_t)(slash - c->output));
    else
        mica_text_puts(&text, ".");
    c->directory = mica_text_take(&text);
    return c->directory ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for a path");
}

mica_status mica_imatrix_collect(const char *checkpoint, const char *output, const mica_compute_options *options, const mica_imatrix_options *imatrix,
                                 const mica_prompt *prompt, char **text, char **json, mica_error *error) {
    collection c = {.output = output, .dataset = imatrix->dataset ? imatrix->dataset : ""};
    if (!imatrix->force && mica_path_exists(output))
        return mica_fail(error, MICA_CONFLICT, "%s: is there already; replace it with --force", output);
    mica_status status = mica_compute_open_model(checkpoint, &c.compute, error);
    if (status == MICA_OK)
        status = mica_export_plan_tensors(c.compute.model, &c.plan, error);
    if (status == MICA_OK)
        status = prepare(&c, error);
    if (status == MICA_OK && imatrix->covariance)
        status = mica_covariance_collector_init(&c.covariance, &c.plan, imatrix->own_bytes ? imatrix->own_bytes : MICA_COVARIANCE_OWN_BYTES, error);
    if (status == MICA_OK && imatrix->sensitivity)
        status = mica_sensitivity_init(&c.sensitivity, c.compute.model, error);
    if (status == MICA_OK)
        status = prepare_output(&c, error);
    if (status == MICA_OK)
        status = take_text(&c, options, prompt, error);
    if (status == MICA_OK)
        status = make_layout(&c, error);
    if (status == MICA_OK)
        status = collect_to_file(&c, options, error);
    if (status == MICA_OK)
        status = give_report(&c, output, text, json, error);
    release(&c);
    return status;
}
