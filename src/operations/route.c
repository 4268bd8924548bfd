/* operations/route.c: phase 3: where tokens go, in one pass, layer by layer (operations/layer_pass). Judged by tests/operations/test_route.c. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "operations/layer_pass.h"
#include "operations/output.h"
#include "operations/route_prompts.h"
#include "operations/route_statistics.h"

#define WINDOW_DEFAULT 512
#define PROMPT_BYTES_MAX (UINT64_C(1) << 30)
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
    const mica_prompt prompt = {.text = work->options->ids ? NULL : line, .ids = work->options->ids ? line : NULL, .bos = work->options->bos};
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
    mica_status status = MICA_OK;
    uint64_t longest = work->compute.model->config.max_position_embeddings;
    work->window = options->compute.context ? options->compute.context : longest && longest < WINDOW_DEFAULT ? longest : WINDOW_DEFAULT;
    if (options->prompts && options->ids)
        return mica_fail(error, MICA_USAGE, "expected prompts as text or as ids, got both");
    if (options->prompts || options->ids)
        return add_lines(work, options->prompts ? options->prompts : options->ids, error);
    for (int i = 0; i < MICA_ROUTE_PROMPTS && status == MICA_OK; i++)
        status = add_prompt(work, mica_route_prompts[i], error);
    return status;
}

/* ---- the pass */

static void add_residual(void *context, uint64_t layer, const float *before, const float *after, uint64_t count) {
    mica_route_statistics_residual(&((routing *)context)->statistics, layer, before, after, count);
}

static mica_status run_pass(routing *work, const char *directory, mica_error *error) {
    mica_compute_options settings = work->options->compute;
    mica_layer_pass *pass = &work->pass;
    pass->compute = &work->compute;
    pass->what = "routing";
    pass->progress = settings.progress;
    pass->progress_context = settings.progress_context;
    pass->context = work;
    pass->residual = add_residual;
    mica_status status = gather_prompts(work, error);
    if (status == MICA_OK)
        status = mica_route_statistics_init(&work->statistics, work->compute.model, error);
    if (status == MICA_OK)
        status = mica_layer_pass_prepare(pass, settings.memory_bytes, directory, error);
    settings.context = pass->longest;
    if (status == MICA_OK)
        status = mica_compute_open_engine(&work->compute, &settings, 0, pass->batch, error);
    if (status != MICA_OK)
        return status;
    mica_observer observer = mica_route_statistics_observer(&work->statistics);
    mica_engine_observe(work->compute.engine, &observer);
    return mica_layer_pass_run(pass, error);
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

static mica_status write_results(const routing *work, const char *checkpoint, const char *directory, const char *path, char **text, mica_error *error) {
    const mica_route_options *options = work->options;
    const mica_route_facts facts = {.checkpoint = checkpoint,
                                    .precision = options->compute.exact ? "exact" : "fast",
                                    .prompts = options->prompts || options->ids ? "given" : "built in",
                                    .prompt_count = work->pass.sequences,
                                    .truncated = work->truncated,
                                    .window = work->window};
    mica_json_writer writer;
    mica_text words = MICA_TEXT_INIT;
    uint64_t length = 0;
    mica_json_begin(&writer);
    mica_route_statistics_json(&work->statistics, &facts, &writer);
    char *json = mica_json_finish(&writer, &length);
    mica_status status = json ? write_pairs(work, directory, error) : no_memory(error);
    if (status == MICA_OK)
        status = mica_file_replace(path, json, length, error); /* last: it says that all is there */
    mica_free(json);
    if (status != MICA_OK || !text)
        return status;
    mica_route_statistics_text(&work->statistics, &facts, &words);
    mica_text_printf(&words, "\n%s\n", path);
    *text = mica_text_take(&words);
    return *text ? MICA_OK : no_memory(error);
}

static void release(routing *work) {
    mica_layer_pass_release(&work->pass);
    mica_route_statistics_release(&work->statistics);
    mica_compute_close(&work->compute);
}

mica_status mica_route(const char *checkpoint, const char *directory, const mica_route_options *options, char **text, mica_error *error) {
    routing work = {.options = options};
    char *path = mica_path_join(directory, STATS_NAME);
    mica_status status = path ? MICA_OK : no_memory(error);
    if (status == MICA_OK && mica_path_exists(path) && !options->force)
        status = mica_fail(error, MICA_CONFLICT, "%s: expected no such file (or --force), got one", path);
    if (status == MICA_OK)
        status = mica_compute_open_model(checkpoint, &work.compute, error);
    if (status == MICA_OK)
        status = mica_directory_create(directory, error);
    if (status == MICA_OK)
        status = run_pass(&work, directory, error);
    if (status == MICA_OK)
        status = write_results(&work, checkpoint, directory, path, text, error);
    release(&work);
    mica_free(path);
    return status;
}
