/* operations/route.c: phase 3: where tokens go. One pass, layer by layer: attention and router for all tokens, then the experts in groups that the cache
 * holds, so that each is read once however many tokens there are and however small the budget. Activations are in memory up to an eighth of the budget,
 * else in a file without a name in the output's directory. Judged by tests/operations/test_route.c. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "operations/compute.h"
#include "operations/output.h"
#include "operations/route_prompts.h"
#include "operations/route_states.h"
#include "operations/route_statistics.h"

#define WINDOW_DEFAULT 512
#define BATCH 1024
#define PROMPT_BYTES_MAX (UINT64_C(1) << 30)
#define STATS_NAME "phase3_routing_stats.json"
#define PAIRS_NAME "phase3_coactivation.u32"

enum { PLANE_X, PLANE_NORMED, PLANE_BEFORE, PLANES };

typedef struct routing {
    const mica_route_options *options;
    mica_compute compute;
    mica_route_statistics statistics;
    mica_states states;
    int64_t *ids;           /* of all prompts, one after the other */
    uint64_t *starts;       /* [prompts + 1] */
    uint64_t prompts, tokens, window, truncated;
    uint64_t *chunks;       /* [chunk_count + 1]: first prompt of each */
    uint64_t chunk_count;
    uint32_t *chosen;       /* [tokens][top_k] */
    float *gates, *x, *normed;
    uint64_t batch;
    double begin;
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
    int64_t *all = count ? mica_reallocarray(work->ids, work->tokens + count, sizeof *all) : NULL;
    uint64_t *starts = all ? mica_reallocarray(work->starts, work->prompts + 2, sizeof *starts) : NULL;
    if (all)
        work->ids = all;
    if (starts) {
        memcpy(all + work->tokens, ids, count * sizeof *all);
        work->starts = starts;
        work->starts[work->prompts++] = work->tokens;
        work->tokens += count;
        work->starts[work->prompts] = work->tokens;
    }
    mica_free(ids);
    return count && !starts ? no_memory(error) : MICA_OK;
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
    if (status == MICA_OK && work->tokens == 0)
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

/* Whole prompts, as many as a batch takes. */
static mica_status cut_chunks(routing *work, mica_error *error) {
    work->batch = work->window > BATCH ? work->window : BATCH;
    if (work->batch > work->tokens)
        work->batch = work->tokens;
    work->chunks = mica_calloc(work->prompts + 2, sizeof *work->chunks);
    if (!work->chunks)
        return no_memory(error);
    for (uint64_t i = 0; i < work->prompts; i++)
        if (i == 0 || work->starts[i + 1] - work->starts[work->chunks[work->chunk_count - 1]] > work->batch)
            work->chunks[work->chunk_count++] = i;
    work->chunks[work->chunk_count] = work->prompts;
    return MICA_OK;
}

/* ---- the pass */

static mica_status go_on(const routing *work, uint64_t layer, uint64_t layers, mica_error *error) {
    const mica_compute_options *options = &work->options->compute;
    mica_progress progress = {.what = "routing", .units_done = layer, .units_total = layers, .seconds = mica_seconds_now() - work->begin, .seconds_left = -1};
    if (layer)
        progress.seconds_left = progress.seconds / (double)layer * (double)(layers - layer);
    if (!options->progress || options->progress(options->progress_context, &progress))
        return MICA_OK;
    return mica_fail(error, MICA_INTERRUPTED, "interrupted in layer %llu of %llu; nothing was written", (unsigned long long)layer,
                     (unsigned long long)layers);
}

/* The span of a chunk: its first token and how many. */
static uint64_t chunk_span(const routing *work, uint64_t chunk, uint64_t *first) {
    *first = work->starts[work->chunks[chunk]];
    return work->starts[work->chunks[chunk + 1]] - *first;
}

static mica_status attend_and_route(routing *work, uint64_t layer, uint64_t chunk, mica_error *error) {
    mica_engine *engine = work->compute.engine;
    uint64_t first, count = chunk_span(work, chunk, &first), width = work->states.width, top_k = work->compute.model->config.num_experts_per_tok;
    mica_status status = mica_states_read(&work->states, PLANE_X, first, count, work->x, error);
    if (status == MICA_OK)
        status = mica_states_write(&work->states, PLANE_BEFORE, first, count, work->x, error);
    for (uint64_t p = work->chunks[chunk]; p < work->chunks[chunk + 1] && status == MICA_OK; p++)
        status = mica_engine_attention(engine, layer, 0, work->x + (work->starts[p] - first) * width, work->starts[p + 1] - work->starts[p], error);
    if (status == MICA_OK)
        status = mica_engine_route(engine, layer, work->x, count, work->normed, work->chosen + first * top_k, work->gates + first * top_k, error);
    if (status == MICA_OK)
        status = mica_states_write(&work->states, PLANE_X, first, count, work->x, error);
    return status == MICA_OK ? mica_states_write(&work->states, PLANE_NORMED, first, count, work->normed, error) : status;
}

static mica_status run_group(routing *work, uint64_t layer, uint64_t chunk, uint64_t begin, uint64_t end, mica_error *error) {
    uint64_t first, count = chunk_span(work, chunk, &first), top_k = work->compute.model->config.num_experts_per_tok;
    mica_status status = mica_states_read(&work->states, PLANE_X, first, count, work->x, error);
    if (status == MICA_OK)
        status = mica_states_read(&work->states, PLANE_NORMED, first, count, work->normed, error);
    if (status == MICA_OK)
        status = mica_engine_feed_part(work->compute.engine, layer, begin, end, work->normed, work->chosen + first * top_k, work->gates + first * top_k,
                                       work->x, count, error);
    return status == MICA_OK ? mica_states_write(&work->states, PLANE_X, first, count, work->x, error) : status;
}

static mica_status finish_chunk(routing *work, uint64_t layer, uint64_t chunk, mica_error *error) {
    uint64_t first, count = chunk_span(work, chunk, &first);
    mica_status status = mica_states_read(&work->states, PLANE_X, first, count, work->x, error);
    if (status == MICA_OK)
        status = mica_states_read(&work->states, PLANE_BEFORE, first, count, work->normed, error);
    if (status == MICA_OK)
        status = mica_engine_check_finite(work->compute.engine, (int64_t)layer, work->x, count, work->states.width, error);
    if (status == MICA_OK)
        mica_route_statistics_residual(&work->statistics, layer, work->normed, work->x, count);
    return status;
}

static mica_status run_layer(routing *work, uint64_t layer, mica_error *error) {
    const mica_model *model = work->compute.model;
    uint64_t layers = model->config.num_hidden_layers, experts = model->layers[layer].moe ? model->config.n_routed_experts : 1;
    uint64_t slots = mica_engine_meters_get(work->compute.engine).slots, group = slots && slots < experts ? slots : experts;
    mica_status status = MICA_OK;
    for (uint64_t c = 0; c < work->chunk_count && status == MICA_OK; c++) {
        status = go_on(work, layer, layers, error);
        if (status == MICA_OK)
            status = attend_and_route(work, layer, c, error);
    }
    for (uint64_t begin = 0; begin < experts && status == MICA_OK; begin += group)
        for (uint64_t c = 0; c < work->chunk_count && status == MICA_OK; c++) {
            status = go_on(work, layer, layers, error);
            if (status == MICA_OK)
                status = run_group(work, layer, c, begin, experts - begin < group ? experts : begin + group, error);
        }
    for (uint64_t c = 0; c < work->chunk_count && status == MICA_OK; c++)
        status = finish_chunk(work, layer, c, error);
    return status;
}

static mica_status embed_all(routing *work, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t c = 0; c < work->chunk_count && status == MICA_OK; c++) {
        uint64_t first, count = chunk_span(work, c, &first);
        status = mica_engine_embed(work->compute.engine, work->ids + first, count, work->x, error);
        if (status == MICA_OK)
            status = mica_states_write(&work->states, PLANE_X, first, count, work->x, error);
    }
    return status;
}

static mica_status allocate(routing *work, const char *directory, mica_error *error) {
    const mica_config *config = &work->compute.model->config;
    uint64_t memory = work->options->compute.memory_bytes ? work->options->compute.memory_bytes : mica_memory_available_bytes() / 5 * 4;
    uint64_t choices = work->tokens * config->num_experts_per_tok + 1;
    work->x = mica_reallocarray(NULL, work->batch * config->hidden_size, sizeof *work->x);
    work->normed = mica_reallocarray(NULL, work->batch * config->hidden_size, sizeof *work->normed);
    work->chosen = mica_calloc(choices, sizeof *work->chosen);
    work->gates = mica_calloc(choices, sizeof *work->gates);
    if (!work->x || !work->normed || !work->chosen || !work->gates)
        return no_memory(error);
    mica_status status = mica_route_statistics_init(&work->statistics, work->compute.model, error);
    return status == MICA_OK ? mica_states_open(&work->states, PLANES, work->tokens, config->hidden_size, memory / 8, directory, error) : status;
}

static mica_status run_pass(routing *work, const char *directory, mica_error *error) {
    mica_compute_options settings = work->options->compute;
    mica_status status = gather_prompts(work, error);
    if (status == MICA_OK)
        status = cut_chunks(work, error);
    if (status == MICA_OK)
        status = allocate(work, directory, error);
    settings.context = 0;
    for (uint64_t p = 0; p < work->prompts; p++) {
        uint64_t length = work->starts[p + 1] - work->starts[p];
        settings.context = length > settings.context ? length : settings.context;
    }
    if (status == MICA_OK)
        status = mica_compute_open_engine(&work->compute, &settings, 0, work->batch, error);
    if (status != MICA_OK)
        return status;
    mica_observer observer = mica_route_statistics_observer(&work->statistics);
    mica_engine_observe(work->compute.engine, &observer);
    work->begin = mica_seconds_now();
    status = embed_all(work, error);
    for (uint64_t layer = 0; layer < work->compute.model->config.num_hidden_layers && status == MICA_OK; layer++)
        status = run_layer(work, layer, error);
    return status;
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
                                    .prompt_count = work->prompts,
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
    mica_states_close(&work->states);
    mica_route_statistics_release(&work->statistics);
    mica_compute_close(&work->compute);
    void *owned[] = {work->ids, work->starts, work->chunks, work->chosen, work->gates, work->x, work->normed};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        mica_free(owned[i]);
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
