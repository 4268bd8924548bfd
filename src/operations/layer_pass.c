/* operations/layer_pass.c: see the header. Judged by tests/operations/test_route.c, which gives the same numbers with activations in memory and in a file,
 * and test_imatrix_collect.c. */
#include "operations/layer_pass.h"

#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

#define BATCH 1024

enum { PLANE_X, PLANE_NORMED, PLANE_BEFORE, PLANES };

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the sequences");
}

mica_status mica_layer_pass_add(mica_layer_pass *pass, const int64_t *ids, uint64_t count, mica_error *error) {
    if (!count)
        return MICA_OK;
    int64_t *all = mica_reallocarray(pass->ids, pass->tokens + count, sizeof *all);
    uint64_t *starts = all ? mica_reallocarray(pass->starts, pass->sequences + 2, sizeof *starts) : NULL;
    if (all)
        pass->ids = all;
    if (!starts)
        return no_memory(error);
    memcpy(all + pass->tokens, ids, count * sizeof *all);
    pass->starts = starts;
    starts[pass->sequences++] = pass->tokens;
    pass->tokens += count;
    starts[pass->sequences] = pass->tokens;
    pass->longest = count > pass->longest ? count : pass->longest;
    return MICA_OK;
}

/* Whole sequences, as many as a batch takes. */
static mica_status cut_chunks(mica_layer_pass *pass, mica_error *error) {
    pass->batch = pass->longest > BATCH ? pass->longest : BATCH;
    if (pass->batch > pass->tokens)
        pass->batch = pass->tokens;
    pass->chunks = mica_calloc(pass->sequences + 2, sizeof *pass->chunks);
    if (!pass->chunks)
        return no_memory(error);
    for (uint64_t i = 0; i < pass->sequences; i++)
        if (i == 0 || pass->starts[i + 1] - pass->starts[pass->chunks[pass->chunk_count - 1]] > pass->batch)
            pass->chunks[pass->chunk_count++] = i;
    pass->chunks[pass->chunk_count] = pass->sequences;
    return MICA_OK;
}

mica_status mica_layer_pass_prepare(mica_layer_pass *pass, uint64_t memory_bytes, const char *directory, mica_error *error) {
    const mica_config *config = &pass->compute->model->config;
    const uint64_t memory = memory_bytes ? memory_bytes : mica_memory_available_bytes() / 5 * 4;
    const uint64_t choices = pass->tokens * config->num_experts_per_tok + 1;
    mica_status status = cut_chunks(pass, error);
    if (status != MICA_OK)
        return status;
    pass->x = mica_reallocarray(NULL, pass->batch * config->hidden_size, sizeof *pass->x);
    pass->normed = mica_reallocarray(NULL, pass->batch * config->hidden_size, sizeof *pass->normed);
    pass->chosen = mica_calloc(choices, sizeof *pass->chosen);
    pass->gates = mica_calloc(choices, sizeof *pass->gates);
    if (!pass->x || !pass->normed || !pass->chosen || !pass->gates)
        return no_memory(error);
    return mica_states_open(&pass->states, pass->residual ? PLANES : PLANE_BEFORE, pass->tokens, config->hidden_size, memory / 8, directory, error);
}

void mica_layer_pass_release(mica_layer_pass *pass) {
    void *owned[] = {pass->ids, pass->starts, pass->chunks, pass->chosen, pass->gates, pass->x, pass->normed};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        mica_free(owned[i]);
    mica_states_close(&pass->states);
    *pass = (mica_layer_pass){0};
}

/* ---- the pass */

static mica_status go_on(const mica_layer_pass *pass, uint64_t layer, uint64_t layers, mica_error *error) {
    mica_progress progress = {.what = pass->what, .units_done = layer, .units_total = layers, .seconds = mica_seconds_now() - pass->start_time, .seconds_left = -1};
    if (layer)
        progress.seconds_left = progress.seconds / (double)layer * (double)(layers - layer);
    if (!pass->progress || pass->progress(pass->progress_context, &progress))
        return MICA_OK;
    return mica_fail(error, MICA_INTERRUPTED, "interrupted in layer %llu of %llu; nothing was written", (unsigned long long)layer,
                     (unsigned long long)layers);
}

/* The span of a chunk: its first token and how many. */
static uint64_t chunk_span(const mica_layer_pass *pass, uint64_t chunk, uint64_t *first) {
    *first = pass->starts[pass->chunks[chunk]];
    return pass->starts[pass->chunks[chunk + 1]] - *first;
}

static mica_status attend_and_route(mica_layer_pass *pass, uint64_t layer, uint64_t chunk, mica_error *error) {
    mica_engine *engine = pass->compute->engine;
    uint64_t first, count = chunk_span(pass, chunk, &first), width = pass->states.width, top_k = pass->compute->model->config.num_experts_per_tok;
    mica_status status = mica_states_read(&pass->states, PLANE_X, first, count, pass->x, error);
    if (status == MICA_OK && pass->residual)
        status = mica_states_write(&pass->states, PLANE_BEFORE, first, count, pass->x, error);
    for (uint64_t p = pass->chunks[chunk]; p < pass->chunks[chunk + 1] && status == MICA_OK; p++)
        status = mica_engine_attention(engine, layer, 0, pass->x + (pass->starts[p] - first) * width, pass->starts[p + 1] - pass->starts[p], error);
    if (status == MICA_OK)
        status = mica_engine_route(engine, layer, pass->x, count, pass->normed, pass->chosen + first * top_k, pass->gates + first * top_k, error);
    if (status == MICA_OK)
        status = mica_states_write(&pass->states, PLANE_X, first, count, pass->x, error);
    return status == MICA_OK ? mica_states_write(&pass->states, PLANE_NORMED, first, count, pass->normed, error) : status;
}

static mica_status run_group(mica_layer_pass *pass, uint64_t layer, uint64_t chunk, uint64_t begin, uint64_t end, mica_error *error) {
    uint64_t first, count = chunk_span(pass, chunk, &first), top_k = pass->compute->model->config.num_experts_per_tok;
    mica_status status = mica_states_read(&pass->states, PLANE_X, first, count, pass->x, error);
    if (status == MICA_OK)
        status = mica_states_read(&pass->states, PLANE_NORMED, first, count, pass->normed, error);
    if (status == MICA_OK)
        status = mica_engine_feed_part(pass->compute->engine, layer, begin, end, pass->normed, pass->chosen + first * top_k, pass->gates + first * top_k,
                                       pass->x, count, error);
    return status == MICA_OK ? mica_states_write(&pass->states, PLANE_X, first, count, pass->x, error) : status;
}

static mica_status finish_chunk(mica_layer_pass *pass, uint64_t layer, uint64_t chunk, mica_error *error) {
    uint64_t first, count = chunk_span(pass, chunk, &first);
    mica_status status = mica_states_read(&pass->states, PLANE_X, first, count, pass->x, error);
    if (status == MICA_OK && pass->residual)
        status = mica_states_read(&pass->states, PLANE_BEFORE, first, count, pass->normed, error);
    if (status == MICA_OK)
        status = mica_engine_check_finite(pass->compute->engine, (int64_t)layer, pass->x, count, pass->states.width, error);
    if (status == MICA_OK && pass->residual)
        pass->residual(pass->context, layer, pass->normed, pass->x, count);
    return status;
}

static mica_status run_layer(mica_layer_pass *pass, uint64_t layer, mica_error *error) {
    const mica_model *model = pass->compute->model;
    const bool moe = model->layers[layer].moe;
    uint64_t layers = model->config.num_hidden_layers, experts = moe ? model->config.n_routed_experts : 1;
    uint64_t slots = mica_engine_meters_get(pass->compute->engine).slots, group = slots && slots < experts ? slots : experts;
    mica_status status = pass->begin ? pass->begin(pass->context, layer, error) : MICA_OK;
    for (uint64_t c = 0; c < pass->chunk_count && status == MICA_OK; c++) {
        status = go_on(pass, layer, layers, error);
        if (status == MICA_OK)
            status = attend_and_route(pass, layer, c, error);
    }
    if (status == MICA_OK && pass->routed && moe)
        status = pass->routed(pass->context, layer, pass->chosen, error);
    for (uint64_t begin = 0; begin < experts && status == MICA_OK; begin += group)
        for (uint64_t c = 0; c < pass->chunk_count && status == MICA_OK; c++) {
            status = go_on(pass, layer, layers, error);
            if (status == MICA_OK)
                status = run_group(pass, layer, c, begin, experts - begin < group ? experts : begin + group, error);
        }
    for (uint64_t c = 0; c < pass->chunk_count && status == MICA_OK; c++)
        status = finish_chunk(pass, layer, c, error);
    return status == MICA_OK && pass->end ? pass->end(pass->context, layer, error) : status;
}

static mica_status embed_all(mica_layer_pass *pass, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t c = 0; c < pass->chunk_count && status == MICA_OK; c++) {
        uint64_t first, count = chunk_span(pass, c, &first);
        status = mica_engine_embed(pass->compute->engine, pass->ids + first, count, pass->x, error);
        if (status == MICA_OK)
            status = mica_states_write(&pass->states, PLANE_X, first, count, pass->x, error);
    }
    return status;
}

mica_status mica_layer_pass_run(mica_layer_pass *pass, mica_error *error) {
    pass->start_time = mica_seconds_now();
    mica_status status = embed_all(pass, error);
    for (uint64_t layer = 0; layer < pass->compute->model->config.num_hidden_layers && status == MICA_OK; layer++)
        status = run_layer(pass, layer, error);
    return status;
}
