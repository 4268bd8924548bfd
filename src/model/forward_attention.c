/* model/forward_attention.c: attention of one layer, latent (MLA) or grouped (GQA).
 *
 * Latent, few new tokens: absorbed. Queries are taken to the latents (k_b), every head attends to the same rows [latent | rope], and the
 * weighted latents are taken to values (v_b). Many new tokens: expanded. Keys and values of a block of positions are made from their
 * latents, head by head. Which is cheaper follows from the work of both; the choice depends on the tokens and the position alone.
 * The rotated part of a latent key is not normed, and where it is large its rounding to bf16 was nearly all that attention in bf16 differed by: so a bf16 cache
 * keeps it as two numbers, what the first one leaves in the second, and the queries have theirs twice.
 * Several threads share a long context in parts whose borders depend on its length alone, so that results do not depend on threads.
 * Judged by tests/model/test_forward.c. */
#include <math.h>
#include <string.h>

#include "model/engine_internal.h"
#include "numerics/elementwise.h"

#define PART_POSITIONS 512
#define PART_POSITIONS_LEAST 128
#define TURNED_ROWS 16

typedef struct attention_job {
    mica_engine *engine;
    const engine_layer *layer;
    uint8_t *rows;                 /* of the cache, this layer's */
    uint64_t position, count, end; /* end: positions after this step */
    /* attending */
    const float *queries;
    uint64_t first_token, tokens, query_stride; /* tokens held in queries */
    float *out;
    uint64_t out_stride;
    uint64_t parts, part_positions;
    uint64_t group, groups; /* heads that attend to the same rows, and how many such groups a token has */
    uint64_t run, runs;     /* tokens whose heads attend together */
    /* expanding */
    uint64_t block, block_end;
    mica_operand latents;
} attention_job;

static product_task *add_task(mica_engine *engine, uint64_t *count, const mica_matrix *matrix, const mica_operand *x, float *out, uint64_t stride,
                              const float *bias) {
    product_task *task = &engine->work.tasks[(*count)++];
    *task = (product_task){matrix, 0, matrix->rows, x, out, stride, bias, 0};
    return task;
}

static void observe(const mica_engine *engine, const mica_weight *weight, const float *x, uint64_t stride, uint64_t tokens) {
    if (engine->observer.input && weight)
        engine->observer.input(engine->observer.context, weight, x, stride, NULL, tokens);
}

/* The cache of a layer is [positions][latent | rope], or for each key-value head [positions][key | value]: what is read together lies
 * together. */
static uint8_t *latent_row(const attention_job *job, uint64_t position) {
    return job->rows + position * job->engine->sizes.kv_row * mica_dtype_bytes(job->engine->cache_dtype);
}

static uint8_t *grouped_row(const attention_job *job, uint64_t head, uint64_t position) {
    uint64_t row = head * job->engine->session.context + position;
    return job->rows + row * job->engine->sizes.key_row * mica_dtype_bytes(job->engine->cache_dtype);
}

static void store_values(const attention_job *job, uint8_t *row, uint64_t column, const float *values, uint64_t count) {
    if (job->engine->cache_dtype == MICA_F32)
        memcpy(row + column * sizeof(float), values, count * sizeof(float));
    else
        mica_bf16_of_float(values, count, (uint16_t *)(void *)row + column);
}

/* What bf16 has left of the values that were stored at `column`, behind them. */
static void store_rest(const attention_job *job, uint8_t *row, uint64_t column, float *values, uint64_t count) {
    const uint16_t *stored_values = (const uint16_t *)(const void *)row + column;
    for (uint64_t i = 0; i < count; i++) {
        float stored;
        mica_float_of_bf16(stored_values + i, 1, &stored);
        values[i] -= stored;
    }
    store_values(job, row, column + count, values, count);
}

/* A query's rotated part, for keys as they are kept. */
static void repeat_rotated(const engine_sizes *sizes, const float *rotated, float *to) {
    for (uint64_t at = 0; at < sizes->rope_kept; at += sizes->rope)
        memcpy(to + at, rotated, sizes->rope * sizeof *to);
}

static void rotate(const mica_engine *engine, float *x, uint64_t token) {
    uint64_t pairs = engine->rope.pairs;
    const float *cosines = engine->work.cosines + token * pairs, *sines = engine->work.sines + token * pairs;
    if (engine->model->config.rope_interleaved)
        mica_rope_interleaved(x, cosines, sines, pairs);
    else
        mica_rope_half_split(x, cosines, sines, pairs);
}

/* ---- attending: queries [tokens][heads] over the cache, in parts */

/* What heads [head, head + count) of some tokens attend to. */
static mica_attention attention_of(const attention_job *job, uint64_t token, uint64_t head, uint64_t count) {
    const mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    bool latent = sizes->rank > 0;
    const uint8_t *keys = latent ? job->rows : grouped_row(job, head / job->group, 0);
    return (mica_attention){.dtype = engine->cache_dtype,
                            .keys = keys,
                            .key_width = latent ? sizes->rank + sizes->rope_kept : sizes->width,
                            .key_stride = latent ? sizes->kv_row : sizes->key_row,
                            .values = latent ? keys : keys + sizes->width * mica_dtype_bytes(engine->cache_dtype),
                            .value_width = latent ? sizes->rank : sizes->value_width,
                            .value_stride = latent ? sizes->kv_row : sizes->key_row,
                            .scale = engine->rope.softmax_scale,
                            .heads = count,
                            .visible = job->position + job->first_token + token + 1};
}

/* Queries of a group of heads lie apart when there are other groups: side by side in the thread's scratch, and their means back again. */
static void attend_gathered(const attention_job *job, const mica_attention *attention, uint64_t begin, uint64_t end, uint64_t query,
                            uint64_t tokens, float *out, uint64_t out_stride, mica_attention_sum *sums, uint8_t *scratch) {
    const engine_sizes *sizes = &job->engine->sizes;
    const uint64_t heads = attention->heads, width = attention->key_width, value_width = attention->value_width;
    float *queries = (float *)(void *)(scratch + job->engine->work.expanded_offset), *means = queries + MICA_ATTENTION_QUERIES * width;
    mica_attention_sum gathered[MICA_ATTENTION_QUERIES];
    for (uint64_t i = 0; i < tokens * heads; i++) {
        uint64_t from = query + i / heads * sizes->heads + i % heads;
        memcpy(queries + i * width, job->queries + from * job->query_stride, width * sizeof(float));
    }
    mica_attend(attention, begin, end, queries, width, tokens * heads, means, value_width, gathered, scratch);
    for (uint64_t i = 0; i < tokens * heads; i++) {
        uint64_t to = i / heads * sizes->heads + i % heads;
        memcpy(out + to * out_stride, means + i * value_width, value_width * sizeof(float));
        sums[to] = gathered[i];
    }
}

/* A piece: a part of the context for a run of tokens, a group of their heads. */
static void attend_piece(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const attention_job *job = context;
    const mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    uint64_t queries = job->tokens * sizes->heads;
    for (uint64_t piece = first; piece < last; piece++) {
        uint64_t part = piece / (job->runs * job->groups), at = piece % (job->runs * job->groups), token = at / job->groups * job->run;
        uint64_t head = at % job->groups * job->group, heads = sizes->heads - head < job->group ? sizes->heads - head : job->group;
        uint64_t tokens = job->tokens - token < job->run ? job->tokens - token : job->run, query = token * sizes->heads + head;
        const mica_attention attention = attention_of(job, token, head, heads);
        uint64_t begin = part * job->part_positions, end = begin + job->part_positions < job->end ? begin + job->part_positions : job->end;
        float *out = job->parts > 1 ? engine->work.part_out + (part * queries + query) * attention.value_width : job->out + query * job->out_stride;
        uint64_t stride = job->parts > 1 ? attention.value_width : job->out_stride;
        mica_attention_sum *sums = engine->work.part_sums + part * queries + query;
        uint8_t *scratch = mica_engine_scratch(job->engine, thread);
        if (tokens > 1 && job->groups > 1)
            attend_gathered(job, &attention, begin, end, query, tokens, out, stride, sums, scratch);
        else
            mica_attend(&attention, begin, end, job->queries + query * job->query_stride, job->query_stride, tokens * heads, out, stride, sums,
                        scratch);
    }
}

static void combine_parts(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const attention_job *job = context;
    const engine_sizes *sizes = &job->engine->sizes;
    const engine_workspace *work = &job->engine->work;
    uint64_t queries = job->tokens * sizes->heads, width = sizes->rank ? sizes->rank : sizes->value_width;
    (void)thread;
    for (uint64_t i = first; i < last; i++)
        mica_attention_combine(work->part_out + i * width, queries * width, work->part_sums + i, queries, job->parts, width,
                               job->out + i * job->out_stride);
}

/* Four from some hundred positions on, then fours: as many for each of 2 or 4 threads. */
static uint64_t parts_of(uint64_t positions) {
    uint64_t parts = (positions + 4 * PART_POSITIONS - 1) / (4 * PART_POSITIONS) * 4;
    if (positions < 4 * PART_POSITIONS_LEAST)
        parts = positions < PART_POSITIONS_LEAST ? 1 : positions / PART_POSITIONS_LEAST;
    return parts < MICA_PARTS_MAX ? parts : MICA_PARTS_MAX;
}

static void attend(attention_job *job) {
    mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    uint64_t queries = job->tokens * sizes->heads;
    job->group = sizes->heads / sizes->key_value_heads;
    if (sizes->rank && job->group > MICA_ATTENTION_QUERIES)
        job->group = MICA_ATTENTION_QUERIES;
    job->groups = (sizes->heads + job->group - 1) / job->group;
    job->run = job->group < MICA_ATTENTION_QUERIES ? MICA_ATTENTION_QUERIES / job->group : 1;
    job->runs = (job->tokens + job->run - 1) / job->run;
    job->parts = queries >= 512 ? 1 : parts_of(job->end);
    job->part_positions = (job->end + job->parts - 1) / job->parts;
    /* A thread takes parts that follow each other: the last rows of one fetch the first of the next. */
    uint64_t pieces = job->parts * job->runs * job->groups, grain = job->parts / (2 * engine->options.threads) * job->runs * job->groups;
    mica_pool_each(engine->pool, pieces, grain ? grain : 1, attend_piece, job);
    if (job->parts > 1)
        mica_pool_each(engine->pool, queries, 8, combine_parts, job);
}

/* ---- latent attention */

static void finish_latent_rows(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const attention_job *job = context;
    mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    const float eps = (float)engine->model->config.latent_norm_eps;
    (void)thread;
    for (uint64_t t = first; t < last; t++) {
        float *latent = engine->work.key_latent + t * (sizes->rank + sizes->rope);
        mica_rms_norm(latent, job->layer->vectors[MICA_PART_KV_A_NORM], sizes->rank, eps, latent);
        rotate(engine, latent + sizes->rank, t);
        uint8_t *row = latent_row(job, job->position + t);
        store_values(job, row, 0, latent, sizes->rank + sizes->rope);
        if (sizes->rope_kept > sizes->rope)
            store_rest(job, row, sizes->rank, latent + sizes->rank, sizes->rope);
        if (sizes->query_rank) {
            float *query = engine->work.query_latent + t * sizes->query_rank;
            mica_rms_norm(query, job->layer->vectors[MICA_PART_Q_A_NORM], sizes->query_rank, eps, query);
        }
    }
}

static void rotate_queries(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const attention_job *job = context;
    const engine_sizes *sizes = &job->engine->sizes;
    (void)thread;
    for (uint64_t i = first; i < last; i++)
        rotate(job->engine, job->engine->work.query + i * sizes->width + sizes->nope, i / sizes->heads);
}

/* Products of each head's values with its own rows of a matrix. */
typedef struct heads_job {
    const attention_job *job;
    const mica_matrix *matrix;
    uint64_t first, step, rows; /* head h's are [h * step + first, + rows) */
    const float *values;        /* [tokens][heads][width], of which the matrix takes its columns */
    uint64_t width, out_step;
    uint8_t *storage; /* of operands */
    float *out;       /* [tokens][heads][out_step] */
    bool rotated;     /* a query's rotated part is behind its columns, and goes behind what comes out */
} heads_job;

/* A head's operand is one of its own tokens, not of all heads' rows: a single token takes the kernels of few. It is prepared where it is used. */
static void multiply_heads(void *context, uint64_t head, uint64_t last, uint32_t thread) {
    const heads_job *work = context;
    mica_engine *engine = work->job->engine;
    const engine_sizes *sizes = &engine->sizes;
    const mica_precision precision = engine->options.precision;
    const uint64_t tokens = work->job->tokens, columns = work->matrix->columns;
    for (; head < last; head++) {
        const float *values = work->values + head * work->width;
        float *out = work->out + head * work->out_step;
        mica_operand operand;
        mica_operand_init(&operand, precision, values, sizes->heads * work->width, tokens, columns,
                          work->storage + head * mica_operand_bytes(precision, tokens, columns));
        mica_operand_prepare(&operand, 0, tokens);
        mica_product(work->matrix, head * work->step + work->first, work->rows, &operand, out, sizes->heads * work->out_step,
                     mica_engine_scratch(engine, thread));
        for (uint64_t t = 0; work->rotated && t < tokens; t++)
            repeat_rotated(sizes, values + t * sizes->heads * work->width + columns, out + t * sizes->heads * work->out_step + work->rows);
    }
}

static void attend_absorbed(attention_job *job) {
    mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    const engine_layer *layer = job->layer;
    engine_workspace *work = &engine->work;
    uint64_t row = sizes->rank + sizes->rope_kept;
    for (job->first_token = 0; job->first_token < job->count; job->first_token += job->tokens) {
        uint64_t left = job->count - job->first_token;
        job->tokens = left < MICA_ABSORBED_TOKENS ? left : MICA_ABSORBED_TOKENS;
        heads_job keys = {.job = job, .matrix = &layer->absorbed, .step = sizes->rank, .rows = sizes->rank, .width = sizes->width, .out_step = row,
                                .values = work->query + job->first_token * sizes->heads * sizes->width, .storage = work->head_storage,
                                .out = work->absorbed_query, .rotated = true};
        heads_job values = {.job = job, .matrix = layer->value_rows, .first = layer->value_first, .step = layer->value_step,
                                  .rows = sizes->value_width, .width = sizes->rank, .out_step = sizes->value_width, .values = work->latent_out,
                                  .storage = work->latent_storage,
                                  .out = work->joined + job->first_token * sizes->heads * sizes->value_width};
        mica_products_expect(engine, layer->value_rows, layer->value_first);
        mica_pool_each(engine->pool, sizes->heads, 1, multiply_heads, &keys);
        job->queries = work->absorbed_query;
        job->query_stride = row;
        job->out = work->latent_out;
        job->out_stride = sizes->rank;
        attend(job);
        mica_products_expect(engine, layer->parts[MICA_PART_O], 0);
        mica_pool_each(engine->pool, sizes->heads, 1, multiply_heads, &values);
    }
}

/* The latents of a block of positions, as float32. */
static void load_latents(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    attention_job *job = context;
    const mica_engine *engine = job->engine;
    uint64_t rank = engine->sizes.rank;
    (void)thread;
    for (uint64_t i = first; i < last; i++) {
        const uint8_t *row = latent_row(job, job->block + i);
        if (engine->cache_dtype == MICA_F32)
            memcpy(engine->work.latents + i * rank, row, rank * sizeof(float));
        else
            mica_float_of_bf16((const uint16_t *)row, rank, engine->work.latents + i * rank);
    }
    mica_operand_prepare(&job->latents, first, last - first);
}

/* mean (weight sums[0]) and another (sums[1]) become their common mean, in place. */
static void merge_means(float *mean, mica_attention_sum *sum, const float *other, mica_attention_sum other_sum, uint64_t width) {
    float largest = fmaxf(sum->largest, other_sum.largest);
    float a = sum->sum * expf(sum->largest - largest), b = other_sum.sum * expf(other_sum.largest - largest);
    for (uint64_t i = 0; i < width; i++)
        mean[i] = (a * mean[i] + b * other[i]) / (a + b);
    *sum = (mica_attention_sum){largest, a + b};
}

/* A head's key rows [nope][rank], as a matrix that multiplies latents. Of a kv_b in two they are stored transposed: turned round here, into what is free at `own`,
 * in the precision that many tokens are multiplied in. */
static mica_matrix key_rows(const attention_job *job, uint64_t head, float *own) {
    const engine_sizes *sizes = &job->engine->sizes;
    const mica_matrix *both = job->layer->parts[MICA_PART_KV_B];
    if (both)
        return *both;
    bool exact = job->engine->options.precision == MICA_PRECISION_EXACT;
    float *decoded = own, *turned = own + sizes->rank * sizes->nope;
    mica_matrix_decode(job->layer->parts[MICA_PART_K_B], 0, head * sizes->rank, sizes->rank, decoded, sizes->nope);
    for (uint64_t r = 0; r < sizes->rank; r += TURNED_ROWS) /* strips whose lines stay in the first-level cache */
        for (uint64_t i = 0; i < sizes->nope; i++)
            for (uint64_t k = r; k < r + TURNED_ROWS && k < sizes->rank; k++)
                turned[i * sizes->rank + k] = decoded[k * sizes->nope + i];
    if (!exact)
        mica_bf16_of_float(turned, sizes->nope * sizes->rank, (uint16_t *)(void *)decoded);
    return (mica_matrix){.encoding = MICA_ENCODING_PLAIN, .dtype = exact ? MICA_F32 : MICA_BF16, .rows = sizes->nope, .columns = sizes->rank,
                         .codes = exact ? turned : decoded};
}

/* Rows [key without rope | rope | value] of a block of positions, for one head. */
static const void *expand_head(const attention_job *job, uint64_t head, float *rows, uint16_t *halves, float *own, void *scratch) {
    const engine_sizes *sizes = &job->engine->sizes;
    const engine_layer *layer = job->layer;
    uint64_t first = layer->parts[MICA_PART_KV_B] ? head * (sizes->nope + sizes->value_width) : 0, stride = sizes->key_row;
    const mica_matrix keys = key_rows(job, head, own);
    mica_product(&keys, first, sizes->nope, &job->latents, rows, stride, scratch);
    mica_product(layer->value_rows, head * layer->value_step + layer->value_first, sizes->value_width, &job->latents,
                 rows + sizes->nope + sizes->rope_kept, stride, scratch);
    for (uint64_t i = 0; i < job->block_end - job->block; i++) {
        const uint8_t *row = latent_row(job, job->block + i);
        float *rope = rows + i * stride + sizes->nope;
        if (job->engine->cache_dtype == MICA_F32)
            memcpy(rope, row + sizes->rank * sizeof(float), sizes->rope * sizeof(float));
        else
            mica_float_of_bf16((const uint16_t *)row + sizes->rank, sizes->rope_kept, rope);
    }
    if (job->engine->cache_dtype == MICA_F32)
        return rows;
    mica_bf16_of_float(rows, (job->block_end - job->block) * stride, halves);
    return halves;
}

/* A head's queries [count][nope + rope_kept] out of those of all heads. */
static void double_queries(const engine_sizes *sizes, const float *queries, uint64_t count, float *to) {
    for (uint64_t t = 0; t < count; t++, queries += sizes->heads * sizes->width, to += sizes->nope + sizes->rope_kept) {
        memcpy(to, queries, sizes->nope * sizeof *to);
        repeat_rotated(sizes, queries + sizes->nope, to + sizes->nope);
    }
}

static void attend_expanded_head(void *context, uint64_t head, uint64_t last, uint32_t thread) {
    attention_job *job = context;
    mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    engine_workspace *work = &engine->work;
    uint8_t *scratch = mica_engine_scratch(engine, thread), *own = scratch + work->expanded_offset;
    float *rows = (float *)own, *means = rows + work->expanded_floats;
    mica_attention_sum *sums = (mica_attention_sum *)(means + sizes->batch * sizes->value_width), *totals;
    uint16_t *halves = (uint16_t *)(sums + sizes->batch);
    float *keys_turned = (float *)(void *)(own + work->turned_offset);
    float *doubled = (float *)(void *)(own + work->queries_offset);
    const uint64_t width = sizes->nope + sizes->rope_kept;
    for (; head < last; head++) {
        const uint8_t *keys = expand_head(job, head, rows, halves, keys_turned, scratch);
        uint64_t skipped = job->block > job->position ? job->block - job->position : 0; /* tokens before the block see nothing of it */
        uint64_t stride = sizes->heads * sizes->value_width, count = job->count - skipped;
        float *out = work->joined + skipped * stride + head * sizes->value_width;
        mica_attention attention = {.dtype = engine->cache_dtype,
                                    .keys = keys,
                                    .key_width = width,
                                    .key_stride = sizes->key_row,
                                    .values = keys + width * mica_dtype_bytes(engine->cache_dtype),
                                    .value_width = sizes->value_width,
                                    .value_stride = sizes->key_row,
                                    .scale = engine->rope.softmax_scale,
                                    .heads = 1,
                                    .visible = job->position + skipped + 1 - job->block};
        totals = work->part_sums + head * sizes->batch + skipped;
        bool fresh = job->block == 0;
        const float *queries = work->query + (skipped * sizes->heads + head) * sizes->width;
        uint64_t query_stride = sizes->heads * sizes->width;
        if (width > sizes->width) {
            double_queries(sizes, queries, count, doubled);
            queries = doubled;
            query_stride = width;
        }
        mica_attend(&attention, 0, job->block_end - job->block, queries, query_stride, count, fresh ? out : means,
                    fresh ? stride : sizes->value_width, fresh ? totals : sums, scratch);
        for (uint64_t t = 0; !fresh && t < count; t++)
            merge_means(out + t * stride, &totals[t], means + t * sizes->value_width, sums[t], sizes->value_width);
    }
}

static void attend_expanded(attention_job *job) {
    mica_engine *engine = job->engine;
    for (job->block = 0; job->block < job->end; job->block = job->block_end) {
        job->block_end = job->end - job->block < MICA_EXPANDED_POSITIONS ? job->end : job->block + MICA_EXPANDED_POSITIONS;
        mica_operand_init(&job->latents, engine->options.precision, engine->work.latents, engine->sizes.rank, job->block_end - job->block,
                          engine->sizes.rank, engine->work.latent_storage);
        mica_pool_each(engine->pool, job->block_end - job->block, 32, load_latents, job);
        mica_pool_each(engine->pool, engine->sizes.heads, 1, attend_expanded_head, job);
    }
}

/* Multiplications of each way for one head: absorbed 2 rank + rope_kept a pair of token and position, and (nope + value) rank a token;
 * expanded nope + rope_kept + value a pair, and (nope + value) rank a position. */
static bool expanding_pays(const attention_job *job) {
    const engine_sizes *sizes = &job->engine->sizes;
    double pairs = (double)job->count * (double)job->end, row = (double)((sizes->nope + sizes->value_width) * sizes->rank);
    double absorbed = pairs * (double)(2 * sizes->rank + sizes->rope_kept) + (double)job->count * row;
    double expanded = pairs * (double)sizes->key_row + (double)job->end * row;
    return job->count > MICA_PRODUCT_FEW && expanded < absorbed;
}

static void attend_latent(attention_job *job, const mica_operand *x, const mica_layer *weights) {
    mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    const engine_layer *layer = job->layer;
    engine_workspace *work = &engine->work;
    mica_operand query;
    uint64_t tasks = 0;
    add_task(engine, &tasks, layer->parts[MICA_PART_KV_A], x, work->key_latent, sizes->rank + sizes->rope, layer->vectors[MICA_PART_KV_A_BIAS]);
    observe(engine, weights->parts[MICA_PART_KV_A], work->normed, sizes->hidden, job->count);
    if (sizes->query_rank) {
        observe(engine, weights->parts[MICA_PART_Q_A], work->normed, sizes->hidden, job->count);
        add_task(engine, &tasks, layer->parts[MICA_PART_Q_A], x, work->query_latent, sizes->query_rank, layer->vectors[MICA_PART_Q_A_BIAS]);
    } else {
        observe(engine, weights->parts[MICA_PART_Q], work->normed, sizes->hidden, job->count);
        add_task(engine, &tasks, layer->parts[MICA_PART_Q], x, work->query, sizes->heads * sizes->width, layer->vectors[MICA_PART_Q_BIAS]);
    }
    mica_products_expect(engine, sizes->query_rank ? layer->parts[MICA_PART_Q_B] : &layer->absorbed, 0);
    mica_products_run(engine, tasks);
    mica_pool_each(engine->pool, job->count, 8, finish_latent_rows, job);
    if (sizes->query_rank) {
        observe(engine, weights->parts[MICA_PART_Q_B], work->query_latent, sizes->query_rank, job->count);
        mica_operand_init(&query, engine->options.precision, work->query_latent, sizes->query_rank, job->count, sizes->query_rank, work->query_storage);
        mica_operand_prepare_all(engine, &query);
        tasks = 0;
        add_task(engine, &tasks, layer->parts[MICA_PART_Q_B], &query, work->query, sizes->heads * sizes->width, NULL);
        mica_products_expect(engine, &layer->absorbed, 0);
        mica_products_run(engine, tasks);
    }
    if (engine->observer.input && weights->parts[MICA_PART_KV_B])
        observe(engine, weights->parts[MICA_PART_KV_B], work->key_latent, sizes->rank + sizes->rope, job->count);
    mica_pool_each(engine->pool, job->count * sizes->heads, 512, rotate_queries, job);
    if (expanding_pays(job))
        attend_expanded(job);
    else
        attend_absorbed(job);
}

/* ---- grouped attention */

static void finish_grouped_rows(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const attention_job *job = context;
    mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    const float eps = (float)engine->model->config.rms_norm_eps;
    const float *query_norm = job->layer->vectors[MICA_PART_Q_NORM], *key_norm = job->layer->vectors[MICA_PART_K_NORM];
    (void)thread;
    for (uint64_t t = first; t < last; t++) {
        float *queries = engine->work.query + t * sizes->heads * sizes->width, *keys = engine->work.key_latent + t * sizes->kv_row;
        for (uint64_t h = 0; h < sizes->heads + sizes->key_value_heads; h++) {
            bool query = h < sizes->heads;
            float *x = query ? queries + h * sizes->width : keys + (h - sizes->heads) * sizes->width;
            const float *norm = query ? query_norm : key_norm;
            if (norm)
                mica_rms_norm(x, norm, sizes->width, eps, x);
            rotate(engine, x, t);
        }
        for (uint64_t h = 0; h < sizes->key_value_heads; h++) {
            uint8_t *row = grouped_row(job, h, job->position + t);
            store_values(job, row, 0, keys + h * sizes->width, sizes->width);
            store_values(job, row, sizes->width, keys + (sizes->key_value_heads + h) * sizes->width, sizes->value_width);
        }
    }
}

static void attend_grouped(attention_job *job, const mica_operand *x, const mica_layer *weights) {
    static const mica_part parts[] = {MICA_PART_Q, MICA_PART_K, MICA_PART_V}, biases[] = {MICA_PART_Q_BIAS, MICA_PART_K_BIAS, MICA_PART_V_BIAS};
    mica_engine *engine = job->engine;
    const engine_sizes *sizes = &engine->sizes;
    engine_workspace *work = &engine->work;
    uint64_t tasks = 0, queries = sizes->heads * sizes->width;
    float *const outs[] = {work->query, work->key_latent, work->key_latent + sizes->key_value_heads * sizes->width};
    for (int i = 0; i < 3; i++) {
        observe(engine, weights->parts[parts[i]], work->normed, sizes->hidden, job->count);
        add_task(engine, &tasks, job->layer->parts[parts[i]], x, outs[i], i ? sizes->kv_row : queries, job->layer->vectors[biases[i]]);
    }
    mica_products_expect(engine, job->layer->parts[MICA_PART_O], 0);
    mica_products_run(engine, tasks);
    mica_pool_each(engine->pool, job->count, 8, finish_grouped_rows, job);
    job->tokens = job->count;
    job->queries = work->query;
    job->query_stride = sizes->width;
    job->out = work->joined;
    job->out_stride = sizes->value_width;
    attend(job);
}

mica_status mica_engine_attention(mica_engine *engine, uint64_t number, uint64_t position, float *x, uint64_t count, mica_error *error) {
    (void)error;
    const engine_sizes *sizes = &engine->sizes;
    engine_workspace *work = &engine->work;
    const mica_layer *weights = &engine->model->layers[number];
    const engine_layer *layer = &engine->layers[number];
    attention_job job = {.engine = engine, .layer = layer, .position = position, .count = count, .end = position + count};
    mica_operand operand;
    uint64_t tasks = 0;
    job.rows = engine->session.rows + number % engine->session.layers * engine->session.layer_bytes;
    for (uint64_t t = 0; t < count; t++)
        mica_rope_angles(&engine->rope, position + t, work->cosines + t * engine->rope.pairs, work->sines + t * engine->rope.pairs);
    mica_hidden_operand(engine, x, layer->vectors[MICA_PART_INPUT_NORM], count, work->normed, &operand);
    if (sizes->rank)
        attend_latent(&job, &operand, weights);
    else
        attend_grouped(&job, &operand, weights);
    uint64_t joined = sizes->heads * sizes->value_width;
    observe(engine, weights->parts[MICA_PART_O], work->joined, joined, count);
    mica_operand_init(&operand, engine->options.precision, work->joined, joined, count, joined, work->joined_storage);
    mica_operand_prepare_all(engine, &operand);
    add_task(engine, &tasks, layer->parts[MICA_PART_O], &operand, work->normed, sizes->hidden, layer->vectors[MICA_PART_O_BIAS]);
    mica_products_expect(engine, layer->router ? layer->router : layer->dense[MICA_GATE], 0);
    mica_products_run(engine, tasks);
    mica_add(x, work->normed, count * sizes->hidden, x);
    return MICA_OK;
}
