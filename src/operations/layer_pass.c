/* operations/layer_pass.c: see the header. */
#include "operations/layer_pass.h"

#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/hash.h"
#include "base/memory.h"
#include "operations/source_identity.h"

#define BATCH 1024

/* The residual stream goes from one of the first two planes, before a layer, to the other one. */
enum { PLANE_NORMED = MICA_STATES_KEPT, PLANES };

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

mica_status mica_layer_pass_prepare(mica_layer_pass *pass, uint64_t memory_bytes, mica_error *error) {
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
    return mica_states_open(&pass->states, PLANES, pass->tokens, config->hidden_size, memory / 8, error);
}

/* ---- the job */

static mica_status hash_sequences(const mica_layer_pass *pass, char hex[MICA_SHA256_HEX_BYTES], mica_error *error) {
    mica_sha256 hash;
    uint8_t digest[MICA_SHA256_BYTES];
    const mica_status status = mica_sha256_init(&hash, error);
    if (status != MICA_OK)
        return status;
    mica_sha256_update(&hash, pass->starts, (pass->sequences + 1) * sizeof *pass->starts);
    mica_sha256_update(&hash, pass->ids, pass->tokens * sizeof *pass->ids);
    mica_sha256_final(&hash, digest);
    mica_sha256_hex(digest, hex);
    return MICA_OK;
}

mica_status mica_layer_pass_describe(const mica_layer_pass *pass, bool exact, bool shards, mica_json_writer *writer, mica_error *error) {
    const mica_tensor_source *source = pass->compute->model->source;
    char hex[MICA_SHA256_HEX_BYTES], arithmetic[32];
    mica_status status = hash_sequences(pass, hex, error);
    if (status != MICA_OK)
        return status;
    mica_json_string(writer, "precision", exact ? "exact" : "fast");
    mica_json_u64(writer, "sequences", pass->sequences);
    mica_json_u64(writer, "tokens", pass->tokens);
    mica_json_string(writer, "token_ids_sha256", hex);
    status = mica_source_write_identity(writer, source, error);
    snprintf(arithmetic, sizeof arithmetic, "%s%s%s", mica_cpu_name(mica_cpu_current()), mica_cpu_has_bf16() ? " bf16" : "",
             mica_cpu_has_amx() ? " amx" : "");
    mica_json_string(writer, "arithmetic", arithmetic);
    if (shards)
        mica_source_write_shards(writer, source);
    return status;
}

/* ---- what is kept */

static mica_status load_layer(mica_layer_pass *pass, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    const uint64_t layers = pass->compute->model->config.num_hidden_layers;
    uint64_t layer = UINT64_MAX, at = sizeof layer, length = 0;
    if (bytes >= sizeof layer)
        memcpy(&layer, payload, sizeof layer);
    bool sound = layer == pass->layers_done && layer < layers;
    mica_status status = MICA_OK;
    for (uint32_t i = 0; sound && status == MICA_OK && i < pass->collector_count; i++, at += length) {
        const mica_layer_collector *collector = &pass->collectors[i];
        sound = bytes - at >= sizeof length;
        if (sound)
            memcpy(&length, payload + at, sizeof length);
        at += sizeof length;
        sound = sound && length <= bytes - at;
        if (sound && collector->load)
            status = collector->load(collector->observer.context, layer, payload + at, length, error);
        else
            sound = sound && length == 0;
    }
    if (status == MICA_OK && (!sound || at != bytes))
        return mica_fail(error, MICA_CORRUPT, "%s: expected layer %llu of %llu, got a record of %llu bytes that says otherwise",
                         pass->journal.path, (unsigned long long)pass->layers_done, (unsigned long long)layers, (unsigned long long)bytes);
    pass->layers_done += status == MICA_OK;
    return status;
}

static mica_status visit_record(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    mica_layer_pass *pass = context;
    if (kind == MICA_PASS_LAYER)
        return load_layer(pass, payload, bytes, error);
    if (pass->replay)
        return pass->replay(pass->context, kind, payload, bytes, error);
    return mica_fail(error, MICA_CORRUPT, "%s: a record of kind %u is not one of this format", pass->journal.path, kind);
}

mica_status mica_layer_pass_open(mica_layer_pass *pass, const char *result, bool fresh, const char *job, uint64_t length,
                                 mica_error *error) {
    pass->states_path = mica_pass_path(result, "activations.partial");
    if (!pass->states_path)
        return no_memory(error);
    mica_status status = mica_pass_journal_open(&pass->journal, result, fresh, job, length, visit_record, pass, error);
    pass->layers_before = pass->layers_done;
    if (status != MICA_OK || pass->layers_done == pass->compute->model->config.num_hidden_layers)
        return status;
    status = mica_states_attach(&pass->states, pass->states_path, pass->layers_done == 0, error);
    return status == MICA_OK && pass->layers_done > 0 ? mica_states_recall(&pass->states, pass->layers_done % MICA_STATES_KEPT, error)
                                                      : status;
}

/* First what the record speaks of. Behind the last layer nobody needs the hidden states. */
static mica_status keep_layer(mica_layer_pass *pass, uint64_t layer, mica_error *error) {
    mica_status status = MICA_OK;
    mica_text record = MICA_TEXT_INIT, bytes = MICA_TEXT_INIT;
    mica_text_append(&record, (const char *)&layer, sizeof layer);
    for (uint32_t i = 0; status == MICA_OK && i < pass->collector_count; i++) {
        const mica_layer_collector *collector = &pass->collectors[i];
        if (collector->end)
            status = collector->end(collector->observer.context, layer, error);
        mica_text_clear(&bytes);
        if (status == MICA_OK && collector->save)
            collector->save(collector->observer.context, layer, &bytes);
        const uint64_t length = bytes.length;
        mica_text_append(&record, (const char *)&length, sizeof length);
        if (length > 0)
            mica_text_append(&record, bytes.bytes, length);
    }
    if (status == MICA_OK && (mica_text_failed(&bytes) || mica_text_failed(&record)))
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for a record of layer %llu", (unsigned long long)layer);
    if (status == MICA_OK && layer + 1 < pass->compute->model->config.num_hidden_layers)
        status = mica_states_keep(&pass->states, (layer + 1) % MICA_STATES_KEPT, error);
    if (status == MICA_OK && pass->sync)
        status = pass->sync(pass->context, error);
    if (status == MICA_OK)
        status = mica_pass_journal_record(&pass->journal, MICA_PASS_LAYER, record.bytes, record.length, error);
    pass->layers_done += status == MICA_OK;
    mica_text_release(&bytes);
    mica_text_release(&record);
    return status;
}

/* The journal last: it says what there is. */
mica_status mica_layer_pass_finish(mica_layer_pass *pass, mica_error *error) {
    const mica_status status = mica_file_remove(pass->states_path, error);
    return status == MICA_OK ? mica_pass_journal_remove(&pass->journal, error) : status;
}

void mica_layer_pass_release(mica_layer_pass *pass) {
    void *owned[] = {pass->ids, pass->starts, pass->chunks, pass->chosen, pass->gates, pass->x, pass->normed};
    if (pass->journal.journal && pass->layers_done == 0) {
        (void)mica_file_remove(pass->states_path, NULL);
        (void)mica_pass_journal_remove(&pass->journal, NULL);
    }
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        mica_free(owned[i]);
    mica_states_close(&pass->states);
    mica_pass_journal_close(&pass->journal);
    mica_free(pass->states_path);
    *pass = (mica_layer_pass){0};
}

/* ---- what collectors are told of the products */

static void see_input(void *context, const mica_weight *weight, const float *x, uint64_t stride, const uint32_t *selection,
                      uint64_t tokens) {
    const mica_layer_pass *pass = context;
    for (uint32_t i = 0; i < pass->collector_count; i++) {
        const mica_observer *observer = &pass->collectors[i].observer;
        if (observer->input)
            observer->input(observer->context, weight, x, stride, selection, tokens);
    }
}

static void see_routing(void *context, uint64_t layer, uint64_t tokens, const float *scores, const uint32_t *ids, const float *weights) {
    const mica_layer_pass *pass = context;
    for (uint32_t i = 0; i < pass->collector_count; i++) {
        const mica_observer *observer = &pass->collectors[i].observer;
        if (observer->routing)
            observer->routing(observer->context, layer, tokens, scores, ids, weights);
    }
}

static void see_expert(void *context, uint64_t layer, int64_t expert, uint64_t count, const uint32_t *tokens, const float *weights,
                       const float *gated, const float *outputs) {
    const mica_layer_pass *pass = context;
    for (uint32_t i = 0; i < pass->collector_count; i++) {
        const mica_observer *observer = &pass->collectors[i].observer;
        if (observer->expert)
            observer->expert(observer->context, layer, expert, count, tokens, weights, gated, outputs);
    }
}

/* What nobody listens to is not told: the engine keeps outputs apart for `expert`. */
static mica_observer observer_of(mica_layer_pass *pass) {
    mica_observer all = {.context = pass};
    for (uint32_t i = 0; i < pass->collector_count; i++) {
        const mica_observer *one = &pass->collectors[i].observer;
        all.input = one->input ? see_input : all.input;
        all.routing = one->routing ? see_routing : all.routing;
        all.expert = one->expert ? see_expert : all.expert;
    }
    return all;
}

/* ---- the pass */

static mica_status go_on(const mica_layer_pass *pass, uint64_t layer, mica_error *error) {
    const uint64_t layers = pass->compute->model->config.num_hidden_layers, done = layer - pass->layers_before;
    mica_progress progress = {.what = pass->what,
                              .units_done = layer,
                              .units_total = layers,
                              .seconds = mica_seconds_now() - pass->start_time,
                              .seconds_left = -1};
    if (done)
        progress.seconds_left = progress.seconds / (double)done * (double)(layers - layer);
    if (!pass->progress || pass->progress(pass->progress_context, &progress))
        return MICA_OK;
    return mica_fail(error, MICA_INTERRUPTED, "stopped after %llu of %llu layers", (unsigned long long)layer, (unsigned long long)layers);
}

/* The span of a chunk: its first token and how many. */
static uint64_t chunk_span(const mica_layer_pass *pass, uint64_t chunk, uint64_t *first) {
    *first = pass->starts[pass->chunks[chunk]];
    return pass->starts[pass->chunks[chunk + 1]] - *first;
}

static uint64_t plane_before(uint64_t layer) {
    return layer % MICA_STATES_KEPT;
}

static uint64_t plane_behind(uint64_t layer) {
    return (layer + 1) % MICA_STATES_KEPT;
}

static mica_status attend_and_route(mica_layer_pass *pass, uint64_t layer, uint64_t chunk, mica_error *error) {
    mica_engine *engine = pass->compute->engine;
    uint64_t first, count = chunk_span(pass, chunk, &first), width = pass->states.width,
                    top_k = pass->compute->model->config.num_experts_per_tok;
    mica_status status = mica_states_read(&pass->states, plane_before(layer), first, count, pass->x, error);
    for (uint64_t p = pass->chunks[chunk]; p < pass->chunks[chunk + 1] && status == MICA_OK; p++)
        status = mica_engine_attention(engine, layer, 0, pass->x + (pass->starts[p] - first) * width, pass->starts[p + 1] - pass->starts[p],
                                       error);
    if (status == MICA_OK)
        status = mica_engine_route(engine, layer, pass->x, count, pass->normed, pass->chosen + first * top_k, pass->gates + first * top_k,
                                   error);
    if (status == MICA_OK)
        status = mica_states_write(&pass->states, plane_behind(layer), first, count, pass->x, error);
    return status == MICA_OK ? mica_states_write(&pass->states, PLANE_NORMED, first, count, pass->normed, error) : status;
}

static mica_status run_group(mica_layer_pass *pass, uint64_t layer, uint64_t chunk, uint64_t begin, uint64_t end, mica_error *error) {
    uint64_t first, count = chunk_span(pass, chunk, &first), top_k = pass->compute->model->config.num_experts_per_tok;
    mica_status status = mica_states_read(&pass->states, plane_behind(layer), first, count, pass->x, error);
    if (status == MICA_OK)
        status = mica_states_read(&pass->states, PLANE_NORMED, first, count, pass->normed, error);
    if (status == MICA_OK)
        status = mica_engine_feed_part(pass->compute->engine, layer, begin, end, pass->normed, pass->chosen + first * top_k,
                                       pass->gates + first * top_k, pass->x, count, error);
    return status == MICA_OK ? mica_states_write(&pass->states, plane_behind(layer), first, count, pass->x, error) : status;
}

static bool wants_residual(const mica_layer_pass *pass) {
    for (uint32_t i = 0; i < pass->collector_count; i++)
        if (pass->collectors[i].residual)
            return true;
    return false;
}

static mica_status finish_chunk(mica_layer_pass *pass, uint64_t layer, uint64_t chunk, mica_error *error) {
    uint64_t first, count = chunk_span(pass, chunk, &first);
    mica_status status = mica_states_read(&pass->states, plane_behind(layer), first, count, pass->x, error);
    if (status == MICA_OK && wants_residual(pass))
        status = mica_states_read(&pass->states, plane_before(layer), first, count, pass->normed, error);
    if (status == MICA_OK)
        status = mica_engine_check_finite(pass->compute->engine, (int64_t)layer, pass->x, count, pass->states.width, error);
    for (uint32_t i = 0; status == MICA_OK && i < pass->collector_count; i++)
        if (pass->collectors[i].residual)
            pass->collectors[i].residual(pass->collectors[i].observer.context, layer, pass->normed, pass->x, count);
    return status;
}

static mica_status begin_layer(const mica_layer_pass *pass, uint64_t layer, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < pass->collector_count; i++)
        if (pass->collectors[i].begin)
            status = pass->collectors[i].begin(pass->collectors[i].observer.context, layer, error);
    return status;
}

static mica_status tell_choices(const mica_layer_pass *pass, uint64_t layer, mica_error *error) {
    const uint64_t choices = pass->tokens * pass->compute->model->config.num_experts_per_tok;
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < pass->collector_count; i++)
        if (pass->collectors[i].routed)
            status = pass->collectors[i].routed(pass->collectors[i].observer.context, layer, pass->chosen, choices, error);
    return status;
}

static mica_status run_layer(mica_layer_pass *pass, uint64_t layer, mica_error *error) {
    const mica_model *model = pass->compute->model;
    const bool moe = model->layers[layer].moe;
    uint64_t experts = moe ? model->config.n_routed_experts : 1;
    uint64_t slots = mica_engine_meters_get(pass->compute->engine).slots, group = slots && slots < experts ? slots : experts;
    mica_status status = begin_layer(pass, layer, error);
    for (uint64_t c = 0; c < pass->chunk_count && status == MICA_OK; c++) {
        status = go_on(pass, layer, error);
        if (status == MICA_OK)
            status = attend_and_route(pass, layer, c, error);
    }
    if (status == MICA_OK && moe)
        status = tell_choices(pass, layer, error);
    for (uint64_t begin = 0; begin < experts && status == MICA_OK; begin += group)
        for (uint64_t c = 0; c < pass->chunk_count && status == MICA_OK; c++) {
            status = go_on(pass, layer, error);
            if (status == MICA_OK)
                status = run_group(pass, layer, c, begin, experts - begin < group ? experts : begin + group, error);
        }
    for (uint64_t c = 0; c < pass->chunk_count && status == MICA_OK; c++)
        status = finish_chunk(pass, layer, c, error);
    return status == MICA_OK ? keep_layer(pass, layer, error) : status;
}

static mica_status embed_all(mica_layer_pass *pass, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t c = 0; c < pass->chunk_count && status == MICA_OK; c++) {
        uint64_t first, count = chunk_span(pass, c, &first);
        status = mica_engine_embed(pass->compute->engine, pass->ids + first, count, pass->x, error);
        if (status == MICA_OK)
            status = mica_states_write(&pass->states, plane_before(0), first, count, pass->x, error);
    }
    return status;
}

mica_status mica_layer_pass_run(mica_layer_pass *pass, mica_error *error) {
    const uint64_t layers = pass->compute->model->config.num_hidden_layers;
    if (pass->layers_done == layers)
        return MICA_OK;
    const mica_observer observer = observer_of(pass);
    pass->start_time = mica_seconds_now();
    mica_status status = pass->layers_done == 0 ? embed_all(pass, error) : MICA_OK;
    mica_engine_observe(pass->compute->engine, &observer);
    while (status == MICA_OK && pass->layers_done < layers)
        status = run_layer(pass, pass->layers_done, error);
    mica_engine_observe(pass->compute->engine, NULL);
    return status;
}
