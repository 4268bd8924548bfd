/* operations/route.c: phase 3: where tokens go, in one pass, layer by layer (operations/layer_pass). Judged by
 * tests/operations/test_route.c. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "operations/layer_pass.h"
#include "operations/route_prompts.h"
#include "operations/route_statistics.h"

#define PROMPT_BYTES_MAX (UINT64_C(1) << 30)
#define STATS_BYTES_MAX (UINT64_C(1) << 30)
#define STATS_NAME "phase3_routing_stats.json"
#define PAIRS_NAME "phase3_coactivation.u32"

typedef struct routing {
    const mica_route_options *options;
    mica_compute compute;
    mica_route_statistics statistics;
    mica_layer_pass pass;
    uint64_t window, truncated;
} routing;

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the prompts");
}

/* ---- prompts */

static mica_status add_prompt(routing *work, const char *line, mica_error *error) {
    const mica_prompt prompt = {
        .text = work->options->ids ? NULL : line, .ids = work->options->ids ? line : NULL, .bos = work->options->bos};
    int64_t *ids = NULL;
    uint64_t count = 0;
    mica_status status = mica_compute_ids(&work->compute, &prompt, true, &ids, &count, error);
    if (status != MICA_OK)
        return status;
    if (count > work->window) {
        count = work->window;
        work->truncated++;
    }
    status = mica_layer_pass_add(&work->pass, ids, count, error);
    mica_free(ids);
    return status;
}

static mica_status add_lines(routing *work, const char *path, mica_error *error) {
    char *bytes = NULL;
    uint64_t length = 0;
    mica_status status = mica_file_load(path, PROMPT_BYTES_MAX, &bytes, &length, error);
    if (status == MICA_OK && strlen(bytes) != length)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected text, got a NUL byte", path);
    for (char *line = bytes, *end; status == MICA_OK && line && *line; line = end) {
        size_t width = strcspn(line, "\n");
        end = line + width + (line[width] == '\n');
        line[width - (width > 0 && line[width - 1] == '\r')] = 0;
        line[width] = 0;
        if (*line)
            status = add_prompt(work, line, error);
    }
    mica_free(bytes);
    if (status == MICA_OK && work->pass.tokens == 0)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected a prompt a line, got none", path);
    return status;
}

static mica_status gather_prompts(routing *work, mica_error *error) {
    const mica_route_options *options = work->options;
    if (options->prompts && options->ids)
        return mica_fail(error, MICA_USAGE, "expected prompts as text or as ids, got both");
    mica_status status = mica_compute_window(&work->compute, options->compute.context, &work->window, error);
    if (status != MICA_OK)
        return status;
    if (options->prompts || options->ids)
        return add_lines(work, options->prompts ? options->prompts : options->ids, error);
    for (int i = 0; i < MICA_ROUTE_PROMPTS && status == MICA_OK; i++)
        status = add_prompt(work, mica_route_prompts[i], error);
    return status;
}

/* ---- the pass */

/* The job, for the journal's head; without `shards` it stands in the result. */
static mica_status write_job(const routing *work, const char *key, bool shards, mica_json_writer *writer, mica_error *error) {
    mica_json_open_object(writer, key);
    mica_json_string(writer, "format", "mica-route");
    mica_json_u64(writer, "format_version", 1);
    mica_json_u64(writer, "window", work->window);
    mica_json_u64(writer, "truncated", work->truncated);
    const mica_status status = mica_layer_pass_describe(&work->pass, work->options->compute.exact, shards, writer, error);
    mica_json_close_object(writer);
    return status;
}

static mica_status make_job(const routing *work, char **job, uint64_t *length, mica_error *error) {
    mica_json_writer writer;
    mica_json_begin(&writer);
    const mica_status status = write_job(work, NULL, true, &writer, error);
    *job = mica_json_finish(&writer, length);
    return status == MICA_OK && !*job ? no_memory(error) : status;
}

static mica_status run_pass(routing *work, const char *path, bool fresh, const char *job, uint64_t length, mica_error *error) {
    mica_compute_options settings = work->options->compute;
    mica_layer_pass *pass = &work->pass;
    pass->what = "routing";
    pass->progress = settings.progress;
    pass->progress_context = settings.progress_context;
    mica_status status = mica_route_statistics_init(&work->statistics, work->compute.model, error);
    if (status == MICA_OK)
        status = mica_layer_pass_prepare(pass, settings.memory_bytes, error);
    pass->collectors[pass->collector_count++] = mica_route_statistics_collector(&work->statistics);
    if (status == MICA_OK)
        status = mica_layer_pass_open(pass, path, fresh, job, length, error);
    if (status != MICA_OK || pass->layers_done == work->compute.model->config.num_hidden_layers)
        return status;
    settings.context = pass->longest;
    status = mica_compute_open_engine(&work->compute, &settings, 0, pass->batch, error);
    return status == MICA_OK ? mica_layer_pass_run(pass, error) : status;
}

/* ---- output */

/* Tokens that chose both of two experts: little-endian u32 [MoE layers][experts][experts]. */
static mica_status write_pairs(const routing *work, const char *directory, mica_error *error) {
    const mica_config *config = &work->compute.model->config;
    uint64_t row = config->n_routed_experts * config->n_routed_experts, layers = 0;
    uint32_t *all = mica_reallocarray(NULL, row * config->num_hidden_layers + 1, sizeof *all);
    char *path = mica_path_join(directory, PAIRS_NAME);
    mica_status status = all && path ? MICA_OK : no_memory(error);
    for (uint64_t i = 0; i < config->num_hidden_layers && status == MICA_OK; i++)
        if (work->statistics.layers[i].together)
            memcpy(all + row * layers++, work->statistics.layers[i].together, row * sizeof *all);
    if (status == MICA_OK && layers)
        status = mica_file_replace(path, all, row * layers * sizeof *all, error);
    mica_free(path);
    mica_free(all);
    return status;
}

static mica_route_facts facts_of(const routing *work, const char *checkpoint) {
    const mica_route_options *options = work->options;
    return (mica_route_facts){.checkpoint = checkpoint,
                              .precision = options->compute.exact ? "exact" : "fast",
                              .prompts = options->prompts || options->ids ? "given" : "built in",
                              .prompt_count = work->pass.sequences,
                              .truncated = work->truncated,
                              .window = work->window,
                              .tokens = work->pass.tokens};
}

static mica_status write_results(const routing *work, const mica_route_facts *facts, const char *directory, const char *path,
                                 mica_error *error) {
    mica_json_writer writer;
    uint64_t length = 0;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_route_statistics_json(&work->statistics, facts, &writer);
    mica_status status = write_job(work, "job", false, &writer, error);
    mica_json_close_object(&writer);
    char *json = mica_json_finish(&writer, &length);
    if (status == MICA_OK)
        status = json ? write_pairs(work, directory, error) : no_memory(error);
    if (status == MICA_OK)
        status = mica_file_replace(path, json, length, error); /* last: it says that all is there */
    mica_free(json);
    return status;
}

static mica_status give_summary(const routing *work, const mica_route_facts *facts, const char *path, char **text, mica_error *error) {
    mica_text words = MICA_TEXT_INIT;
    if (!text)
        return MICA_OK;
    mica_route_statistics_text(&work->statistics, facts, &words);
    mica_text_printf(&words, "\n%s\n", path);
    *text = mica_text_take(&words);
    return *text ? MICA_OK : no_memory(error);
}

static void release(routing *work) {
    mica_layer_pass_release(&work->pass);
    mica_route_statistics_release(&work->statistics);
    mica_compute_close(&work->compute);
}

/* The statistics that are there, of the same job. */
static mica_status check_finished(const char *path, const char *job, uint64_t length, char **text, mica_error *error) {
    json_t *report = NULL;
    mica_text words = MICA_TEXT_INIT;
    mica_status status = mica_json_load(path, STATS_BYTES_MAX, &report, error);
    if (status == MICA_OK)
        status = mica_pass_compare_finished(path, json_object_get(report, "job"), job, length, error);
    json_decref(report);
    if (status != MICA_OK || !text)
        return status;
    mica_text_printf(&words, "%s: already finished\n", path);
    *text = mica_text_take(&words);
    return *text ? MICA_OK : no_memory(error);
}

static mica_status route_to(routing *work, const char *checkpoint, const char *directory, const char *path, char **text,
                            mica_error *error) {
    const mica_route_options *options = work->options;
    mica_pass_action action;
    char *job = NULL;
    uint64_t length = 0;
    mica_status status = mica_pass_choose(path, options->resume, options->force, &action, error);
    if (status == MICA_OK)
        status = mica_compute_open_model(checkpoint, &work->compute, error);
    work->pass.compute = &work->compute;
    if (status == MICA_OK)
        status = gather_prompts(work, error);
    if (status == MICA_OK)
        status = make_job(work, &job, &length, error);
    if (status == MICA_OK && action == MICA_PASS_FINISHED) {
        status = check_finished(path, job, length, text, error);
        mica_free(job);
        return status;
    }
    if (status == MICA_OK)
        status = mica_directory_create(directory, error);
    if (status == MICA_OK)
        status = run_pass(work, path, action == MICA_PASS_START, job, length, error);
    mica_free(job);
    const mica_route_facts facts = facts_of(work, checkpoint);
    if (status == MICA_OK)
        status = write_results(work, &facts, directory, path, error);
    if (status == MICA_OK)
        status = mica_layer_pass_finish(&work->pass, error);
    return status == MICA_OK ? give_summary(work, &facts, path, text, error) : status;
}

mica_status mica_route(const char *checkpoint, const char *directory, const mica_route_options *options, char **text, mica_error *error) {
    routing work = {.options = options};
    char *path = mica_path_join(directory, STATS_NAME);
    const mica_status status = path ? route_to(&work, checkpoint, directory, path, text, error) : no_memory(error);
    release(&work);
    mica_free(path);
    return status;
}
