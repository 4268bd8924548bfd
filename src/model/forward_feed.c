/* model/forward_feed.c: the feed-forward part of a layer: dense, or router, shared and routed experts.
 *
 * Blocks are computed in waves: all rows of the gates and ups of a wave, then silu(gate) * up, then all rows of the downs. Each expert runs once
 * a step, whatever its number of tokens. Two orders:
 *   few rows    their outputs are all kept; experts in memory run while others are read, and the sum is made at the end
 *   many rows   the experts run in ascending order, each wave is added as it ends; reading is ahead of them as far as there are slots
 * Either way a token's sum is shared experts first, then its routed experts by ascending number: the order of reading never shows.
 * Judged by tests/model/test_forward.c, test_router.c and test_expert_cache.c. */
#include <string.h>

#include "model/engine_internal.h"
#include "numerics/elementwise.h"

#define WAVE_ROWS 256 /* of several small experts together; enough that threads are not idle between them */

typedef struct feed_job {
    mica_engine *engine;
    uint64_t layer, count; /* tokens */
    float *x;              /* [count][hidden]: the residual, which is added to */
    const float *inputs;   /* [count][hidden], normed */
    mica_operand normed;   /* over them */
    const uint32_t *ids;   /* [count][top_k] */
    const float *gates;
    uint64_t first, last;  /* of the experts */
    bool ahead;            /* the next layer comes next */
    feed_member *wave;
    uint64_t wave_count, wave_rows; /* rows: tokens of all members */
    uint64_t values, rows, bytes;   /* used of gate_values, out_rows, gated_storage */
} feed_job;

/* ---- a wave */

static void begin_wave(feed_job *job) {
    job->wave_count = job->wave_rows = job->values = job->bytes = 0;
}

static bool fits(const feed_job *job, uint64_t count, uint64_t width) {
    const engine_sizes *sizes = &job->engine->sizes;
    return job->values + count * width <= sizes->feed_values && job->rows + count <= sizes->feed_rows && job->wave_count < sizes->members &&
           job->bytes + mica_operand_bytes(job->engine->options.precision, count, width) + 64 <= job->engine->work.gated_bytes;
}

static feed_member *add_member(feed_job *job, const mica_matrix *const matrices[MICA_PROJECTION_COUNT], const mica_weight *const *weights,
                               int64_t expert, const uint32_t *tokens, const float *gates, uint64_t count) {
    engine_workspace *work = &job->engine->work;
    mica_precision precision = job->engine->options.precision;
    feed_member *member = &job->wave[job->wave_count++];
    uint64_t width = matrices[MICA_GATE]->rows, hidden = job->engine->sizes.hidden;
    *member = (feed_member){.gate = matrices[MICA_GATE],
                            .up = matrices[MICA_UP],
                            .down = matrices[MICA_DOWN],
                            .weights = weights,
                            .expert = expert,
                            .tokens = tokens,
                            .gates = gates,
                            .count = count,
                            .gate_out = work->gate_values + job->values,
                            .up_out = work->up_values + job->values,
                            .out = work->out_rows + job->rows * hidden,
                            .row = job->wave_rows};
    member->x = tokens ? mica_operand_select(&job->normed, tokens, count) : job->normed;
    mica_operand_init(&member->gated, precision, member->gate_out, width, count, width, work->gated_storage + job->bytes);
    job->values += count * width;
    job->rows += count;
    job->wave_rows += count;
    job->bytes += (mica_operand_bytes(precision, count, width) + 63) / 64 * 64;
    return member;
}

static void gate_rows(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    feed_job *job = context;
    uint64_t at = 0;
    (void)thread;
    for (uint64_t row = first; row < last; row++) {
        while (row >= job->wave[at].row + job->wave[at].count)
            at++;
        feed_member *member = &job->wave[at];
        uint64_t width = member->gate->rows, token = row - member->row;
        float *gate = member->gate_out + token * width;
        mica_silu_multiply(gate, member->up_out + token * width, width, gate);
        mica_operand_prepare(&member->gated, token, 1);
    }
}

static void observe_inputs(const feed_job *job, const feed_member *member, bool gated) {
    const mica_observer *observer = &job->engine->observer;
    const float *normed = job->inputs;
    if (!observer->input)
        return;
    for (int i = 0; !gated && i < 2; i++)
        observer->input(observer->context, member->weights[i], normed, job->engine->sizes.hidden, member->tokens, member->count);
    if (gated)
        observer->input(observer->context, member->weights[MICA_DOWN], member->gate_out, member->gate->rows, NULL, member->count);
}

static const mica_matrix *first_of_next_layer(const feed_job *job) {
    const mica_engine *engine = job->engine;
    const mica_matrix *const *parts = engine->layers[(job->layer + 1) % engine->model->config.num_hidden_layers].parts;
    return job->layer + 1 == engine->model->config.num_hidden_layers ? engine->head : engine->sizes.rank ? parts[MICA_PART_KV_A] : parts[MICA_PART_Q];
}

static void run_wave(feed_job *job) {
    mica_engine *engine = job->engine;
    const mica_observer *observer = &engine->observer;
    product_task *tasks = engine->work.tasks;
    uint64_t count = 0, hidden = engine->sizes.hidden;
    for (uint64_t i = 0; i < job->wave_count; i++) {
        feed_member *member = &job->wave[i];
        uint64_t width = member->gate->rows;
        observe_inputs(job, member, false);
        tasks[count++] = (product_task){member->gate, 0, width, &member->x, member->gate_out, width, member->bias[MICA_GATE], 0};
        tasks[count++] = (product_task){member->up, 0, width, &member->x, member->up_out, width, member->bias[MICA_UP], 0};
    }
    mica_products_expect(engine, job->wave[0].down, 0);
    mica_products_run(engine, count);
    mica_pool_each(engine->pool, job->wave_rows, job->wave_rows * job->wave[0].gate->rows < 4096 ? job->wave_rows : 1, gate_rows, job);
    for (count = 0; count < job->wave_count; count++) {
        feed_member *member = &job->wave[count];
        observe_inputs(job, member, true);
        tasks[count] = (product_task){member->down, 0, hidden, &member->gated, member->out, hidden, member->bias[MICA_DOWN], 0};
    }
    mica_products_expect(engine, first_of_next_layer(job), 0);
    mica_products_run(engine, count);
    for (uint64_t i = 0; observer->expert && i < job->wave_count; i++) {
        const feed_member *member = &job->wave[i];
        observer->expert(observer->context, job->layer, member->expert, member->count, member->tokens ? member->tokens : engine->work.identity,
                         member->gates, member->gate_out, member->out);
    }
}

/* ---- adding outputs to the residual */

static void add_wave(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const feed_job *job = context;
    uint64_t hidden = job->engine->sizes.hidden, width = last - first;
    (void)thread;
    for (uint64_t i = 0; i < job->wave_count; i++) /* by columns: threads never meet, and members are added in order */
        for (uint64_t t = 0; t < job->wave[i].count; t++) {
            const feed_member *member = &job->wave[i];
            float *x = job->x + (member->tokens ? member->tokens[t] : t) * hidden + first;
            mica_add_scaled(member->gates ? member->gates[t] : 1, member->out + t * hidden + first, width, x);
        }
}

static void run_and_add(feed_job *job) {
    run_wave(job);
    mica_pool_each(job->engine->pool, job->engine->sizes.hidden, 512, add_wave, job);
    job->rows = 0;
}

/* The sum of the kept outputs: shared experts first, then each active expert's by ascending number. */
static void add_kept(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const feed_job *job = context;
    const engine_workspace *work = &job->engine->work;
    uint64_t hidden = job->engine->sizes.hidden, width = last - first;
    (void)thread;
    for (uint64_t t = 0; work->list_rows[0] >= 0 && t < job->count; t++)
        mica_add_scaled(1, work->out_rows + ((uint64_t)work->list_rows[0] + t) * hidden + first, width, job->x + t * hidden + first);
    for (uint64_t i = 0; i < job->wave_count; i++) /* here: the number of active experts */
        for (uint64_t at = work->list_starts[i]; at < work->list_starts[i + 1]; at++)
            mica_add_scaled(work->list_gates[at], work->out_rows + ((uint64_t)work->list_rows[i + 1] + at - work->list_starts[i]) * hidden + first,
                            width, job->x + work->list_tokens[at] * hidden + first);
}

/* ---- routing */

typedef struct choosing {
    mica_engine *engine;
    uint64_t layer;
    uint32_t *ids;
    float *gates;
} choosing;

static void choose_tokens(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const choosing *job = context;
    const mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    const engine_workspace *work = &engine->work;
    float *scratch = work->router_scratch + thread * 2 * (sizes->experts + 16);
    for (uint64_t t = first; t < last; t++)
        mica_router_choose(&engine->router, work->router_logits + t * sizes->experts, engine->layers[job->layer].router_bias, scratch,
                           work->router_scores + t * sizes->experts, job->ids + t * sizes->top_k, job->gates + t * sizes->top_k);
}

/* The router is computed in float32 whatever the precision: a choice is not continuous. */
static mica_status choose_experts(mica_engine *engine, uint64_t layer, const float *normed, uint64_t count, uint32_t *ids, float *gates,
                                  mica_error *error) {
    const engine_sizes *sizes = &engine->sizes;
    engine_workspace *work = &engine->work;
    mica_operand exact;
    mica_operand_init(&exact, MICA_PRECISION_EXACT, normed, sizes->hidden, count, sizes->hidden, NULL);
    mica_operand_prepare_all(engine, &exact);
    if (engine->observer.input)
        engine->observer.input(engine->observer.context, engine->model->layers[layer].router, normed, sizes->hidden, NULL, count);
    work->tasks[0] = (product_task){engine->layers[layer].router, 0, sizes->experts, &exact, work->router_logits, sizes->experts, NULL, 0};
    if (engine->layers[layer].shared[MICA_GATE])
        mica_products_expect(engine, engine->layers[layer].shared[MICA_GATE], 0);
    mica_products_run(engine, 1);
    mica_status status = mica_engine_check_finite(engine, (int64_t)layer, work->router_logits, count, sizes->experts, error);
    if (status != MICA_OK) /* a sigmoid would hide it */
        return status;
    mica_pool_each(engine->pool, count, 16, choose_tokens, &(choosing){engine, layer, ids, gates});
    if (engine->observer.routing)
        engine->observer.routing(engine->observer.context, layer, count, work->router_scores, ids, gates);
    return MICA_OK;
}

/* Sorts the choices by expert, of those that are in the job's range: active experts ascending, each with its tokens ascending. Returns how many
 * are active. */
static uint64_t sort_choices(feed_job *job) {
    const engine_sizes *sizes = &job->engine->sizes;
    engine_workspace *work = &job->engine->work;
    uint64_t choices = job->count * sizes->top_k, active = 0, start = 0;
    int64_t *next = work->list_rows; /* counts, then where the next token of an expert goes */
    memset(next, 0, sizes->experts * sizeof *next);
    for (uint64_t i = 0; i < choices; i++)
        next[job->ids[i]]++;
    for (uint64_t e = job->first; e < job->last; e++) {
        uint64_t count = (uint64_t)next[e];
        next[e] = (int64_t)start;
        if (count == 0)
            continue;
        work->active[active] = (uint32_t)e;
        work->list_starts[active++] = start;
        start += count;
    }
    work->list_starts[active] = start;
    for (uint64_t i = 0; i < choices; i++) {
        if (job->ids[i] < job->first || job->ids[i] >= job->last)
            continue;
        uint64_t at = (uint64_t)next[job->ids[i]]++;
        work->list_tokens[at] = (uint32_t)(i / sizes->top_k);
        work->list_gates[at] = job->gates[i];
    }
    return active;
}

/* ---- experts */

static mica_status add_expert(feed_job *job, uint64_t index, mica_error *error) {
    const engine_workspace *work = &job->engine->work;
    uint64_t expert = work->active[index], start = work->list_starts[index];
    const mica_matrix *loaded, *matrices[MICA_PROJECTION_COUNT];
    mica_status status = mica_expert_cache_get(job->engine->cache, job->layer, expert, &loaded, error);
    if (status != MICA_OK)
        return status;
    for (int i = 0; i < MICA_PROJECTION_COUNT; i++)
        matrices[i] = &loaded[i];
    add_member(job, matrices, &job->engine->model->layers[job->layer].experts[expert * MICA_PROJECTION_COUNT], (int64_t)expert,
               work->list_tokens + start, work->list_gates + start, work->list_starts[index + 1] - start);
    return MICA_OK;
}

static bool add_shared(feed_job *job) {
    const engine_layer *layer = &job->engine->layers[job->layer];
    if (!layer->shared[MICA_GATE] || job->first > 0)
        return false;
    add_member(job, layer->shared, job->engine->model->layers[job->layer].shared, -1, NULL, NULL, job->count);
    return true;
}

static void release_wave(feed_job *job) {
    for (uint64_t i = 0; i < job->wave_count; i++)
        if (job->wave[i].expert >= 0)
            mica_expert_cache_release(job->engine->cache, job->layer, (uint64_t)job->wave[i].expert);
}

/* After a failure: what is pinned and not yet released. */
static void release_active(feed_job *job, uint64_t first, uint64_t last) {
    for (uint64_t i = first; i < last; i++)
        mica_expert_cache_release(job->engine->cache, job->layer, job->engine->work.active[i]);
}

/* Many rows. Experts are pinned in ascending order, so that the next one always is, or gets a slot. */
static mica_status run_ordered(feed_job *job, uint64_t active, mica_error *error) {
    mica_engine *engine = job->engine;
    engine_workspace *work = &engine->work;
    uint64_t pinned = 0, done = 0;
    begin_wave(job);
    bool shared = add_shared(job);
    while (pinned < active && mica_expert_cache_acquire(engine->cache, job->layer, work->active[pinned]))
        pinned++;
    if (shared)
        run_and_add(job);
    while (done < active) {
        uint64_t next = done;
        begin_wave(job);
        while (next < pinned) {
            uint64_t count = work->list_starts[next + 1] - work->list_starts[next];
            bool ready = mica_expert_cache_ready(engine->cache, job->layer, work->active[next]);
            if (next > done && (!ready || job->wave_rows + count > WAVE_ROWS || !fits(job, count, engine->sizes.expert_width)))
                break;
            if (!ready)
                mica_expert_cache_wait(engine->cache, job->layer, &work->active[next], 1);
            mica_status status = add_expert(job, next, error);
            if (status != MICA_OK) {
                release_active(job, done, pinned);
                return status;
            }
            next++;
        }
        run_and_add(job);
        release_wave(job);
        done = next;
        while (pinned < active && mica_expert_cache_acquire(engine->cache, job->layer, work->active[pinned]))
            pinned++;
    }
    return MICA_OK;
}

/* Few rows: whatever is ready. work->order [active] is kept as [done | pinned | not yet]. */
static uint64_t pin_more(feed_job *job, uint64_t pinned, uint64_t active, bool present_only) {
    engine_workspace *work = &job->engine->work;
    for (uint64_t i = pinned; i < active; i++) {
        uint32_t index = work->order[i], expert = work->active[index];
        if (present_only && !mica_expert_cache_present(job->engine->cache, job->layer, expert))
            continue;
        if (!mica_expert_cache_acquire(job->engine->cache, job->layer, expert))
            break;
        work->order[i] = work->order[pinned];
        work->order[pinned++] = index;
    }
    return pinned;
}

static uint64_t wait_for_one(feed_job *job, uint64_t done, uint64_t pinned) {
    engine_workspace *work = &job->engine->work;
    uint32_t experts[64];
    uint64_t count = 0;
    for (uint64_t i = done; i < pinned && count < 64; i++)
        experts[count++] = work->active[work->order[i]];
    mica_expert_cache_wait(job->engine->cache, job->layer, experts, count);
    return count;
}

/* ---- looking ahead: what the next layer's router would choose, were the residual what is known of it now. Of the experts it then takes for absent, 65 % are
 * chosen before this layer's feed-forward part is added, 78 % with the shared experts, 90 % with all of it; hence twice a layer. */

static bool looks_ahead(const feed_job *job) {
    const mica_model *model = job->engine->model;
    uint64_t next = job->layer + 1;
    return job->ahead && job->count == 1 && job->engine->sizes.batch > 1 && next < model->config.num_hidden_layers && model->layers[next].moe;
}

/* ids [count] by descending choice, their scores with the correction. */
static void rank_experts(uint32_t *ids, uint64_t count, const float *scores, const float *bias) {
    for (uint64_t i = 1; i < count; i++) {
        uint32_t id = ids[i];
        float choice = scores[id] + (bias ? bias[id] : 0);
        uint64_t at = i;
        for (; at > 0 && scores[ids[at - 1]] + (bias ? bias[ids[at - 1]] : 0) < choice; at--)
            ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

/* x [hidden]: the residual as far as it is known. Uses the second rows of buffers, which one token leaves free. */
static void look_ahead(feed_job *job, const float *x) {
    mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    engine_workspace *work = &engine->work;
    uint64_t next = job->layer + 1;
    const float *bias = engine->layers[next].router_bias;
    float *normed = work->final_values, *logits = work->router_logits + sizes->experts, *scores = work->router_scores + sizes->experts;
    uint32_t *ids = work->ids + sizes->top_k;
    mica_operand exact;
    mica_rms_norm(x, engine->layers[next].vectors[MICA_PART_POST_NORM], sizes->hidden, (float)engine->model->config.rms_norm_eps, normed);
    mica_operand_init(&exact, MICA_PRECISION_EXACT, normed, sizes->hidden, 1, sizes->hidden, NULL);
    mica_operand_prepare(&exact, 0, 1);
    work->tasks[0] = (product_task){engine->layers[next].router, 0, sizes->experts, &exact, logits, sizes->experts, NULL, 0};
    mica_products_run(engine, 1);
    mica_router_choose(&engine->router, logits, bias, work->router_scratch, scores, ids, work->gates + sizes->top_k);
    rank_experts(ids, sizes->top_k, scores, bias);
    mica_expert_cache_expect(engine->cache, next, ids, sizes->top_k);
}

/* The shared experts by themselves, before the routed ones, so that they are known when the first guess is made. */
static void run_shared_and_look_ahead(feed_job *job) {
    const engine_workspace *work = &job->engine->work;
    uint64_t hidden = job->engine->sizes.hidden;
    float *sum = work->final_values + hidden;
    memcpy(sum, job->x, hidden * sizeof *sum);
    if (job->wave_count) {
        run_wave(job);
        mica_add_scaled(1, job->wave[0].out, hidden, sum);
        begin_wave(job);
    }
    look_ahead(job, sum);
}

static mica_status run_kept(feed_job *job, uint64_t active, mica_error *error) {
    mica_engine *engine = job->engine;
    engine_workspace *work = &engine->work;
    uint64_t pinned = 0, done = 0;
    for (uint64_t i = 0; i < active; i++)
        work->order[i] = (uint32_t)i;
    pinned = pin_more(job, pinned, active, true);
    pinned = pin_more(job, pinned, active, false);
    mica_expert_cache_expect(engine->cache, job->layer, NULL, 0); /* what was expected and not chosen */
    begin_wave(job);
    work->list_rows[0] = add_shared(job) ? 0 : -1;
    if (looks_ahead(job))
        run_shared_and_look_ahead(job);
    while (done < active || job->wave_count) {
        uint64_t taken = done;
        for (uint64_t i = done; i < pinned; i++) {
            uint32_t index = work->order[i];
            if (!mica_expert_cache_ready(engine->cache, job->layer, work->active[index]))
                continue;
            work->list_rows[index + 1] = (int64_t)job->rows;
            mica_status status = add_expert(job, index, error);
            if (status != MICA_OK) {
                for (uint64_t j = done; j < pinned; j++)
                    mica_expert_cache_release(engine->cache, job->layer, work->active[work->order[j]]);
                return status;
            }
            work->order[i] = work->order[taken];
            work->order[taken++] = index;
        }
        if (job->wave_count)
            run_wave(job);
        release_wave(job);
        done = taken;
        begin_wave(job);
        pinned = pin_more(job, pinned, active, false);
        if (done < active)
            wait_for_one(job, done, pinned);
    }
    job->wave_count = active;
    mica_pool_each(engine->pool, engine->sizes.hidden, 1024, add_kept, job);
    if (looks_ahead(job))
        look_ahead(job, job->x);
    return MICA_OK;
}

static mica_status run_experts(feed_job *job, mica_error *error) {
    mica_engine *engine = job->engine;
    const engine_workspace *work = &engine->work;
    uint64_t active = sort_choices(job), rows = work->list_starts[active];
    for (uint64_t i = 0; i < active; i++)
        mica_expert_cache_use(engine->cache, job->layer, work->active[i], work->list_starts[i + 1] - work->list_starts[i], job->count);
    job->rows = 0;
    /* So many rows fit in one wave, however they fall to experts: the workspace has feed_rows of the experts' width besides the shared ones', and of operands
     * room for as many tokens in fives, which take the most each (lay_out_feed). */
    bool few = rows + job->count <= engine->sizes.feed_rows && rows <= 64 * engine->sizes.top_k;
    return few ? run_kept(job, active, error) : run_ordered(job, active, error);
}

static void run_dense(feed_job *job) {
    const engine_layer *layer = &job->engine->layers[job->layer];
    if (looks_ahead(job))
        look_ahead(job, job->x);
    begin_wave(job);
    feed_member *member = add_member(job, layer->dense, job->engine->model->layers[job->layer].dense, -1, NULL, NULL, job->count);
    for (int i = 0; i < MICA_PROJECTION_COUNT; i++)
        member->bias[i] = layer->vectors[MICA_PART_GATE_BIAS + i];
    run_and_add(job);
    if (looks_ahead(job))
        look_ahead(job, job->x);
}

mica_status mica_engine_feed_forward(mica_engine *engine, uint64_t number, float *x, uint64_t count, mica_error *error) {
    engine_workspace *work = &engine->work;
    feed_job job = {.engine = engine, .layer = number, .count = count, .x = x, .inputs = work->normed, .ids = work->ids, .gates = work->gates,
                    .last = engine->sizes.experts, .ahead = !engine->options.no_lookahead, .wave = work->members};
    mica_hidden_operand(engine, x, engine->layers[number].vectors[MICA_PART_POST_NORM], count, work->normed, &job.normed);
    if (!engine->model->layers[number].moe) {
        run_dense(&job);
        return MICA_OK;
    }
    mica_status status = choose_experts(engine, number, work->normed, count, work->ids, work->gates, error);
    return status == MICA_OK ? run_experts(&job, error) : status;
}

mica_status mica_engine_route(mica_engine *engine, uint64_t number, const float *x, uint64_t count, float *normed, uint32_t *ids, float *gates,
                              mica_error *error) {
    const float *norm = engine->layers[number].vectors[MICA_PART_POST_NORM];
    for (uint64_t t = 0; t < count; t++)
        mica_rms_norm(x + t * engine->sizes.hidden, norm, engine->sizes.hidden, (float)engine->model->config.rms_norm_eps,
                      normed + t * engine->sizes.hidden);
    return engine->model->layers[number].moe ? choose_experts(engine, number, normed, count, ids, gates, error) : MICA_OK;
}

mica_status mica_engine_feed_part(mica_engine *engine, uint64_t number, uint64_t first, uint64_t last, const float *normed, const uint32_t *ids,
                                  const float *gates, float *x, uint64_t count, mica_error *error) {
    feed_job job = {.engine = engine, .layer = number, .count = count, .x = x, .inputs = normed, .ids = ids, .gates = gates, .first = first,
                    .last = last, .wave = engine->work.members};
    mica_operand_init(&job.normed, engine->options.precision, normed, engine->sizes.hidden, count, engine->sizes.hidden, engine->work.hidden_storage);
    mica_operand_prepare_all(engine, &job.normed);
    if (engine->model->layers[number].moe)
        return run_experts(&job, error);
    run_dense(&job);
    return MICA_OK;
}
