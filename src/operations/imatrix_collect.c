/* operations/imatrix_collect.c: an importance matrix: a text in windows, computed layer by layer (layer_pass), what its collectors give
 * (imatrix_sums, _covariance, _sensitivity) in one GGUF file, and the report. The file is OUTPUT.partial until it is whole, its layers
 * written as they end.
 * Judged by tests/operations/test_imatrix_collect.c, test_layer_pass.c and tests/interop/imatrix.py. */
#include <mica/imatrix.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "formats/gguf.h"
#include "formats/imatrix.h"
#include "operations/export_gguf.h"
#include "operations/imatrix_covariance.h"
#include "operations/imatrix_sensitivity.h"
#include "operations/imatrix_sums.h"
#include "operations/layer_pass.h"
#include "operations/output.h"

#define JOB_KEY "mica.imatrix.job"

typedef struct collection {
    const char *output;
    const mica_imatrix_options *options;
    const mica_compute_options *settings;
    mica_compute compute;
    mica_export_plan plan;
    uint64_t windows, window;
    mica_layer_pass pass;
    mica_sums_collector sums;
    mica_covariance_collector covariance; /* without inputs: not wanted */
    mica_sensitivity sensitivity;         /* without a model: not wanted */
    mica_gguf_layout layout;
    mica_gguf_writer *writer;
    char *names, *partial, *noise; /* owned: the layout's names; the file before it has its name; what the second pass keeps */
    char *job;                     /* owned: JSON */
    uint64_t job_bytes;
    bool written; /* by the run before: the file lacks its name, at most */
    bool finished; /* there was nothing to do */
    double seconds;
} collection;

/* Without a layer to resume from, nothing is left. */
static void release(collection *c) {
    mica_gguf_writer_close(c->writer);
    if (c->pass.journal.journal && c->pass.layers_done == 0) {
        (void)mica_file_remove(c->noise, NULL);
        (void)mica_file_remove(c->partial, NULL);
    }
    mica_gguf_layout_release(&c->layout);
    mica_layer_pass_release(&c->pass);
    mica_sums_collector_release(&c->sums);
    mica_covariance_collector_release(&c->covariance);
    mica_sensitivity_release(&c->sensitivity);
    mica_free(c->names);
    mica_free(c->partial);
    mica_free(c->noise);
    mica_free(c->job);
    mica_export_plan_release(&c->plan);
    mica_compute_close(&c->compute);
}

/* ---- the text */

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

static mica_status take_text(collection *c, const mica_prompt *prompt, mica_error *error) {
    int64_t *ids = NULL, bos = -1;
    uint64_t count = 0;
    mica_status status = mica_compute_ids(&c->compute, prompt, false, &ids, &count, error);
    if (status == MICA_OK)
        status = mica_compute_bos(&c->compute, prompt, &bos, error);
    if (status == MICA_OK)
        status = mica_compute_window(&c->compute, c->settings->context, &c->window, error);
    if (status == MICA_OK && (c->window < 2 || count < c->window - (bos >= 0)))
        status = mica_fail(error, MICA_USAGE,
                           "expected a text of at least one window of %llu tokens, got %llu (--context makes windows shorter)",
                           (unsigned long long)c->window, (unsigned long long)count);
    if (status == MICA_OK)
        status = cut_windows(c, ids, count, bos, error);
    mica_free(ids);
    return status;
}

/* ---- the job: in the journal's head, and, without the source's files, in the result */

static mica_status make_job(const collection *c, bool shards, char **job, uint64_t *length, mica_error *error) {
    const mica_imatrix_options *options = c->options;
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "format", "mica-imatrix");
    mica_json_u64(&writer, "format_version", 1);
    mica_json_string(&writer, "dataset", options->dataset ? options->dataset : "");
    mica_json_u64(&writer, "window", c->window);
    mica_json_u64(&writer, "covariance_bytes",
                  !options->covariance ? 0
                  : options->own_bytes ? options->own_bytes
                                       : MICA_COVARIANCE_OWN_BYTES);
    mica_json_bool(&writer, "sensitivity", options->sensitivity);
    const mica_status status = mica_layer_pass_describe(&c->pass, c->settings->exact, shards, &writer, error);
    mica_json_close_object(&writer);
    *job = mica_json_finish(&writer, length);
    return status == MICA_OK && !*job ? mica_fail(error, MICA_NO_MEMORY, "out of memory for the job") : status;
}

/* ---- the file */

static mica_status add_metadata(const collection *c, mica_gguf_metadata *metadata, mica_error *error) {
    const char *dataset = c->options->dataset ? c->options->dataset : "";
    char *job = NULL;
    uint64_t length = 0;
    const mica_status status = make_job(c, false, &job, &length, error);
    mica_gguf_add_string(metadata, "general.type", "imatrix");
    mica_gguf_add_strings(metadata, "imatrix.datasets", 1);
    mica_gguf_add_element(metadata, dataset, strlen(dataset));
    mica_gguf_add_u32(metadata, "imatrix.chunk_count", (uint32_t)c->windows);
    mica_gguf_add_u32(metadata, "imatrix.chunk_size", (uint32_t)c->window);
    if (status == MICA_OK)
        mica_gguf_add_text(metadata, JOB_KEY, job, length);
    mica_free(job);
    return status;
}

static mica_status make_layout(collection *c, mica_error *error) {
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_tensor *tensors = mica_calloc(3 * c->plan.tensor_count + 2 * c->covariance.input_count + 1, sizeof *tensors);
    mica_text text = MICA_TEXT_INIT;
    uint64_t count = 0;
    if (tensors) {
        mica_sums_collector_layout(&c->sums, tensors, &count, &text);
        mica_covariance_collector_layout(&c->covariance, tensors, &count, &text);
        mica_sensitivity_layout(&c->sensitivity, &c->plan, tensors, &count, &text);
    }
    c->names = mica_text_take(&text);
    mica_status status = tensors && c->names ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for the table of tensors");
    if (status == MICA_OK)
        status = add_metadata(c, &metadata, error);
    const char *name = c->names;
    for (uint64_t i = 0; status == MICA_OK && i < count; i++, name += strlen(name) + 1)
        tensors[i].name = name;
    if (status == MICA_OK)
        status = mica_gguf_layout_make(tensors, count, &metadata, 0, &c->layout, error);
    else
        mica_free(tensors);
    mica_gguf_metadata_release(&metadata);
    return status;
}

/* ---- the work */

static mica_status sync_file(void *context, mica_error *error) {
    return mica_gguf_writer_sync(((collection *)context)->writer, error);
}

static mica_status replay(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    collection *c = context;
    if (kind == MICA_PASS_NOISE)
        return mica_sensitivity_replay(&c->sensitivity, c->pass.journal.path, payload, bytes, error);
    c->written = kind == MICA_PASS_WRITTEN;
    return c->written ? MICA_OK
                      : mica_fail(error, MICA_CORRUPT, "%s: a record of kind %u is not one of this format", c->pass.journal.path, kind);
}

static void attach(collection *c) {
    mica_layer_pass *pass = &c->pass;
    pass->what = "computing";
    pass->progress = c->settings->progress;
    pass->progress_context = c->settings->progress_context;
    pass->sync = sync_file;
    pass->replay = replay;
    pass->context = c;
    pass->collectors[pass->collector_count++] = mica_sums_collector_attach(&c->sums);
    if (c->covariance.input_count > 0)
        pass->collectors[pass->collector_count++] = mica_covariance_collector_attach(&c->covariance);
    if (c->sensitivity.model)
        pass->collectors[pass->collector_count++] = mica_sensitivity_attach(&c->sensitivity);
}

static mica_status open_files(collection *c, bool fresh, mica_error *error) {
    mica_status status = mica_layer_pass_open(&c->pass, c->output, fresh, c->job, c->job_bytes, error);
    if (status == MICA_OK)
        status = mica_gguf_writer_open(c->output, &c->layout, c->pass.layers_done == 0, &c->writer, error);
    c->sums.writer = c->covariance.writer = c->writer;
    c->sums.layout = c->covariance.layout = &c->layout;
    c->covariance.compute = &c->compute;
    return status;
}

static mica_status compute(collection *c, mica_error *error) {
    mica_compute_options settings = *c->settings;
    const double begin = mica_seconds_now();
    settings.context = c->window;
    mica_status status = MICA_OK;
    if (c->pass.layers_done < c->plan.model->config.num_hidden_layers || c->sensitivity.model)
        status = mica_compute_open_engine(&c->compute, &settings, 0, c->pass.batch, error);
    if (status == MICA_OK)
        status = mica_layer_pass_run(&c->pass, error);
    if (status == MICA_OK && c->sensitivity.model)
        status = mica_sensitivity_measure(&c->sensitivity, c->compute.engine, c->pass.ids, c->settings, c->noise, &c->pass.journal, error);
    if (status == MICA_OK)
        status = mica_sensitivity_write(&c->sensitivity, &c->plan, &c->layout, c->writer, error);
    c->seconds = mica_seconds_now() - begin;
    if (status == MICA_OK)
        status = sync_file(c, error);
    return status == MICA_OK ? mica_pass_journal_record(&c->pass.journal, MICA_PASS_WRITTEN, NULL, 0, error) : status;
}

static mica_status collect_to_file(collection *c, bool fresh, mica_error *error) {
    mica_status status = mica_layer_pass_prepare(&c->pass, c->settings->memory_bytes, error);
    attach(c);
    if (status == MICA_OK)
        status = open_files(c, fresh, error);
    if (status == MICA_OK && !c->written)
        status = compute(c, error);
    if (status == MICA_OK) {
        status = mica_gguf_writer_finish(c->writer, error);
        c->writer = NULL;
    }
    if (status == MICA_OK)
        status = mica_file_remove(c->noise, error);
    return status == MICA_OK ? mica_layer_pass_finish(&c->pass, error) : status;
}

/* ---- a finished file */

static mica_status compare_job(const collection *c, mica_error *error) {
    mica_file *file = NULL;
    mica_gguf gguf = {0};
    mica_gguf_string job = {0};
    json_t *recorded = NULL;
    mica_status status = mica_file_open(c->output, false, &file, error);
    if (status == MICA_OK)
        status = mica_gguf_read(file, c->output, &gguf, error);
    if (status == MICA_OK)
        status = mica_gguf_text_if_present(&gguf, JOB_KEY, &job, error);
    if (status == MICA_OK && job.length > 0)
        status = mica_json_parse(c->output, job.bytes, job.length, &recorded, error);
    if (status == MICA_OK)
        status = mica_pass_compare_finished(c->output, recorded, c->job, c->job_bytes, error);
    json_decref(recorded);
    mica_gguf_release(&gguf);
    (void)mica_file_close(file, NULL);
    return status;
}

/* What the report tells of it. */
static mica_status read_finished(collection *c, mica_error *error) {
    mica_imatrix *imatrix = NULL;
    mica_status status = compare_job(c, error);
    if (status == MICA_OK)
        status = mica_imatrix_open(c->output, &imatrix, error);
    for (uint64_t i = 0; status == MICA_OK && i < c->plan.tensor_count; i++) {
        const mica_export_tensor *tensor = &c->plan.tensors[i];
        const mica_imatrix_entry *entry = mica_imatrix_find(imatrix, tensor->name);
        for (uint64_t m = 0; entry && c->sums.tensors[i].counts && tensor->form == MICA_GGUF_EXPERTS && m < tensor->matrices; m++)
            c->sums.tensors[i].counts[m] = mica_imatrix_count(entry, m);
    }
    for (uint64_t i = 0; status == MICA_OK && i < imatrix->covariance_count; i++)
        for (uint64_t s = 0; s < imatrix->covariances[i].slots; s++)
            c->covariance.own_inputs += imatrix->covariances[i].of[s][0] >= 0;
    mica_imatrix_close(imatrix);
    c->finished = status == MICA_OK;
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
            never += !(c->sums.tensors[i].counts[e] > 0);
    }
    return never;
}

static mica_status give_report(const collection *c, char **text, char **json, mica_error *error) {
    mica_text words = MICA_TEXT_INIT;
    mica_json_writer writer;
    uint64_t experts, all = 0, never = 0;
    for (uint64_t layer = 0; layer < c->plan.model->config.num_hidden_layers; layer++) {
        never += never_chosen(c, (int64_t)layer, &experts);
        all += experts;
    }
    mica_text_printf(&words, "%s: %llu windows of %llu tokens", c->output, (unsigned long long)c->windows, (unsigned long long)c->window);
    if (c->finished)
        mica_text_puts(&words, ", already finished");
    else
        mica_text_printf(&words, " in %.1f s", c->seconds);
    if (c->pass.layers_before > 0)
        mica_text_printf(&words, ", %llu layers by the runs before", (unsigned long long)c->pass.layers_before);
    mica_text_puts(&words, "\n");
    if (all > 0)
        mica_text_printf(&words, "  experts   %llu of %llu were never chosen\n", (unsigned long long)never, (unsigned long long)all);
    if (c->covariance.input_count > 0)
        mica_text_printf(&words, "  inputs    covariance of %llu, and of %llu experts' own\n",
                         (unsigned long long)c->covariance.input_count, (unsigned long long)c->covariance.own_inputs);
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "output", c->output);
    mica_json_string(&writer, "outcome", c->finished ? "already finished" : c->pass.layers_before > 0 ? "resumed" : "written");
    mica_json_u64(&writer, "layers_resumed", c->pass.layers_before);
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
        mica_text_printf(&words, "  layer %-3llu %llu of %llu experts were never chosen\n", (unsigned long long)layer,
                         (unsigned long long)missing, (unsigned long long)experts);
    }
    mica_json_close_array(&writer);
    mica_json_close_object(&writer);
    return mica_output_give(MICA_OK, &words, &writer, text, json, error);
}

static mica_status prepare(collection *c, const mica_prompt *prompt, mica_error *error) {
    const mica_imatrix_options *options = c->options;
    mica_status status = mica_export_plan_tensors(c->compute.model, &c->plan, error);
    c->partial = mica_pass_path(c->output, "partial");
    c->noise = mica_pass_path(c->output, "noise.partial");
    if (status == MICA_OK && (!c->partial || !c->noise))
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for a path");
    if (status == MICA_OK)
        status = mica_sums_collector_init(&c->sums, &c->plan, error);
    if (status == MICA_OK && options->covariance)
        status = mica_covariance_collector_init(&c->covariance, &c->plan,
                                                options->own_bytes ? options->own_bytes : MICA_COVARIANCE_OWN_BYTES, error);
    if (status == MICA_OK)
        status = take_text(c, prompt, error);
    if (status == MICA_OK && options->sensitivity)
        status = mica_sensitivity_init(&c->sensitivity, c->compute.model, c->window, error);
    if (status == MICA_OK)
        status = make_job(c, true, &c->job, &c->job_bytes, error);
    return status == MICA_OK ? make_layout(c, error) : status;
}

mica_status mica_imatrix_collect(const char *checkpoint, const char *output, const mica_compute_options *options,
                                 const mica_imatrix_options *imatrix, const mica_prompt *prompt, char **text, char **json,
                                 mica_error *error) {
    collection c = {.output = output, .options = imatrix, .settings = options};
    mica_pass_action action;
    mica_status status = mica_pass_choose(output, imatrix->resume, imatrix->force, &action, error);
    if (status == MICA_OK)
        status = mica_compute_open_model(checkpoint, &c.compute, error);
    c.pass.compute = &c.compute;
    if (status == MICA_OK)
        status = prepare(&c, prompt, error);
    if (status == MICA_OK)
        status = action == MICA_PASS_FINISHED ? read_finished(&c, error) : collect_to_file(&c, action == MICA_PASS_START, error);
    if (status == MICA_OK)
        status = give_report(&c, text, json, error);
    release(&c);
    return status;
}
