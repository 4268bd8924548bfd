/* model/forward.c: a step: embedding, layers, final norm, logits; and what is said when numbers stop being numbers.
 * Refuses ids outside the vocabulary and positions beyond the context. Judged by tests/model/test_forward.c. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "model/engine_internal.h"
#include "numerics/elementwise.h"

/* ---- what is not finite */

static mica_status examine(const mica_engine *engine, const mica_weight *weight, const mica_matrix *matrix, mica_error *error) {
    return weight && matrix ? mica_weight_examine(engine->model, weight, matrix, NULL, NULL, 0, error) : MICA_OK;
}

/* All of the layer's, read once more where they are not in memory: one that was used may have made room for another since. */
static mica_status examine_experts(mica_engine *engine, uint64_t layer, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t e = 0; e < engine->sizes.experts && status == MICA_OK; e++) {
        const mica_matrix *matrices;
        uint32_t expert = (uint32_t)e;
        if (!mica_expert_cache_acquire(engine->cache, layer, e))
            continue;
        mica_expert_cache_wait(engine->cache, layer, &expert, 1);
        status = mica_expert_cache_get(engine->cache, layer, e, &matrices, error);
        for (int i = 0; i < MICA_PROJECTION_COUNT && status == MICA_OK; i++)
            status = examine(engine, engine->model->layers[layer].experts[e * MICA_PROJECTION_COUNT + i], &matrices[i], error);
        mica_expert_cache_release(engine->cache, layer, e);
    }
    return status;
}

mica_status mica_engine_check_finite(mica_engine *engine, int64_t layer, const float *values, uint64_t count, uint64_t width,
                                     mica_error *error) {
    uint64_t bad = 0;
    float sum = 0;
    for (uint64_t i = 0; i < count * width; i++) /* 0 * x is 0 for every finite x */
        sum += values[i] * 0.0f;
    if (sum == 0)
        return MICA_OK;
    while (isfinite(values[bad]))
        bad++;
    mica_status status = MICA_OK;
    for (uint64_t i = 0; i < engine->resident.count && status == MICA_OK; i++)
        if (engine->resident.weights[i]->layer == layer)
            status = examine(engine, engine->resident.weights[i], &engine->resident.matrices[i], error);
    if (status == MICA_OK && layer >= 0 && engine->model->layers[layer].moe)
        status = examine_experts(engine, (uint64_t)layer, error);
    if (status != MICA_OK)
        return status;
    return mica_fail(error, MICA_BAD_INPUT,
                     "%s: layer %lld: token %llu of the step: expected finite, got %g, though every weight that was used is finite",
                     engine->model->source->path, (long long)layer, (unsigned long long)(bad / width), (double)values[bad]);
}

/* ---- embedding */

static mica_status embed_one(mica_engine *engine, uint64_t id, float *x, mica_error *error) {
    const mica_weight *weight = engine->model->embedding;
    if (engine->embedding) {
        mica_matrix_decode(engine->embedding, 0, id, 1, x, engine->sizes.hidden);
        return MICA_OK;
    }
    mica_matrix row;
    mica_status status = mica_weight_matrix(engine->model, weight, engine->work.embedding_row, NULL, NULL, &row, error);
    if (status != MICA_OK)
        return status;
    row.rows = 1;
    uint64_t bytes = mica_matrix_row_bytes(&row);
    status = mica_file_read(mica_model_file(engine->model, weight->data), weight->data->offset + id * bytes, engine->work.embedding_row,
                            bytes, error);
    if (status == MICA_OK)
        mica_matrix_decode(&row, 0, 0, 1, x, engine->sizes.hidden);
    return status;
}

mica_status mica_engine_embed(mica_engine *engine, const int64_t *ids, uint64_t count, float *x, mica_error *error) {
    const mica_config *config = &engine->model->config;
    for (uint64_t t = 0; t < count; t++) {
        if (ids[t] < 0 || (uint64_t)ids[t] >= config->vocab_size)
            return mica_fail(error, MICA_BAD_INPUT, "token id: expected below vocab_size (%llu), got %lld",
                             (unsigned long long)config->vocab_size, (long long)ids[t]);
        mica_status status = embed_one(engine, (uint64_t)ids[t], x + t * engine->sizes.hidden, error);
        if (status != MICA_OK)
            return status;
        for (uint64_t i = 0; i < engine->sizes.hidden; i++)
            if (!isfinite(x[t * engine->sizes.hidden + i]))
                return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected finite, got %g at [%lld,%llu]",
                                 mica_model_shard_name(engine->model, engine->model->embedding->data), engine->model->embedding->name,
                                 (double)x[t * engine->sizes.hidden + i], (long long)ids[t], (unsigned long long)i);
    }
    return MICA_OK;
}

/* ---- a step */

static void observe_hidden(const mica_engine *engine, uint64_t layer, uint64_t count) {
    if (engine->observer.hidden)
        engine->observer.hidden(engine->observer.context, layer, count, engine->work.x);
}

mica_status mica_engine_step(mica_engine *engine, const int64_t *ids, uint64_t count, mica_error *error) {
    mica_session *session = &engine->session;
    const mica_config *config = &engine->model->config;
    float *x = engine->work.x;
    if (count > session->context - session->position)
        return mica_fail(error, MICA_BAD_INPUT, "context: expected at most %llu positions, got %llu and %llu more",
                         (unsigned long long)session->context, (unsigned long long)session->position, (unsigned long long)count);
    if (engine->cache)
        mica_expert_cache_advance(engine->cache, count);
    engine->last_count = 0;
    mica_status status = mica_engine_embed(engine, ids, count, x, error);
    for (uint64_t layer = 0; layer < config->num_hidden_layers && status == MICA_OK; layer++) {
        observe_hidden(engine, layer, count);
        status = mica_engine_attention(engine, layer, session->position, x, count, error);
        if (status == MICA_OK)
            status = mica_engine_feed_forward(engine, layer, x, count, error);
        if (status == MICA_OK)
            status = mica_engine_check_finite(engine, (int64_t)layer, x, count, engine->sizes.hidden, error);
    }
    if (status != MICA_OK)
        return status;
    observe_hidden(engine, config->num_hidden_layers, count);
    session->position += count;
    engine->last_count = count;
    return MICA_OK;
}

mica_status mica_engine_prefill(mica_engine *engine, const int64_t *ids, uint64_t count, bool (*go_on)(void *context), void *context,
                                mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t done = 0, batch; done < count && status == MICA_OK; done += batch) {
        batch = count - done < engine->options.batch ? count - done : engine->options.batch;
        if (go_on && !go_on(context))
            return mica_fail(error, MICA_INTERRUPTED, "interrupted after %llu of %llu tokens", (unsigned long long)done,
                             (unsigned long long)count);
        status = mica_engine_step(engine, ids + done, batch, error);
    }
    return status;
}

mica_status mica_engine_logits(mica_engine *engine, uint64_t first, uint64_t count, float *logits, mica_error *error) {
    const engine_sizes *sizes = &engine->sizes;
    engine_workspace *work = &engine->work;
    uint64_t vocabulary = engine->model->config.vocab_size;
    mica_operand operand;
    if (first + count > engine->last_count)
        return mica_fail(error, MICA_FAILED, "logits: expected tokens of the last step (%llu), got %llu to %llu",
                         (unsigned long long)engine->last_count, (unsigned long long)first, (unsigned long long)(first + count));
    mica_hidden_operand(engine, work->x + first * sizes->hidden, engine->final_norm, count, work->normed, &operand);
    if (engine->observer.input)
        engine->observer.input(engine->observer.context, engine->model->head, work->normed, sizes->hidden, NULL, count);
    work->tasks[0] = (product_task){engine->head, 0, vocabulary, &operand, logits, vocabulary, NULL, 0};
    mica_products_run(engine, 1);
    return mica_engine_check_finite(engine, -1, logits, count, vocabulary, error);
}
