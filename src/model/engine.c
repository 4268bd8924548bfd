/* model/engine.c: opening a model for computation: what is refused, what is read, how the memory is divided; sessions and meters. The order
 * of opening makes the budget hold: what every token needs is read, and what the process then has in memory is measured; with what has a
 * fixed size it is counted, and the cache of experts gets the rest. Judged by tests/model/test_forward.c and tests/cli/memory.sh. */
#include "model/engine.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/quantity.h"
#include "base/threads.h"
#include "model/engine_internal.h"

#define MARGIN (UINT64_C(8) << 20) /* stacks, page tables, the caller's own */
#define SLACK (MARGIN / 4)         /* of it: what a process has differs from what was foreseen, and from run to run */
#define SLOTS_MIN 2                /* one is computed while one is read */
#define CONTEXT_DEFAULT 4096
#define BATCH_DEFAULT 512
#define READERS_DEFAULT 8

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* ---- what is refused */

static mica_status check_model(const mica_model *model, mica_error *error) {
    const mica_config *config = &model->config;
    if (config->architecture->not_run)
        return mica_fail(
            error, MICA_BAD_INPUT,
            "%s: config.json: model_type: expected an architecture that is run, got %s: %s; it can be inspected, indexed and verified",
            model->source->path, config->model_type, config->architecture->not_run);
    if (strcmp(config->hidden_act, "silu") != 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: config.json: hidden_act: expected silu to run the model, got %s", model->source->path,
                         config->hidden_act);
    if (!model->embedding || !model->final_norm || !model->head)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected an embedding, a final norm and a head to run the model, got one absent",
                         model->source->path);
    return MICA_OK;
}

static void measure(mica_engine *engine) {
    const mica_config *config = &engine->model->config;
    engine_sizes *sizes = &engine->sizes;
    bool latent = config->architecture->attention == MICA_ATTENTION_LATENT;
    *sizes = (engine_sizes){.batch = engine->options.batch,
                            .hidden = config->hidden_size,
                            .heads = config->num_attention_heads,
                            .key_value_heads = latent ? 1 : config->num_key_value_heads,
                            .width = latent ? config->qk_nope_head_dim + config->qk_rope_head_dim : config->head_dim,
                            .value_width = latent ? config->v_head_dim : config->head_dim,
                            .nope = latent ? config->qk_nope_head_dim : 0,
                            .rope = latent ? config->qk_rope_head_dim : config->head_dim,
                            .rank = latent ? config->kv_lora_rank : 0,
                            .query_rank = latent ? config->q_lora_rank : 0,
                            .experts = config->n_routed_experts,
                            .top_k = config->num_experts_per_tok,
                            .expert_width = config->moe_intermediate_size};
    sizes->rope_kept = latent && engine->cache_dtype == MICA_BF16 ? 2 * sizes->rope : sizes->rope;
    sizes->kv_row = latent ? sizes->rank + sizes->rope_kept : 2 * sizes->key_value_heads * sizes->width;
    sizes->key_row = sizes->nope + sizes->rope_kept + sizes->value_width;
    sizes->widest = larger(sizes->expert_width, config->n_shared_experts * sizes->expert_width);
    for (uint64_t i = 0; i < config->num_hidden_layers; i++)
        if (!engine->model->layers[i].moe)
            sizes->widest = larger(sizes->widest, config->intermediate_size);
    sizes->feed_rows = 2 * sizes->batch + sizes->top_k;
    sizes->feed_values = sizes->batch * sizes->widest + sizes->feed_rows * sizes->expert_width;
    sizes->members = sizes->experts + 2;
    sizes->tasks = larger(2 * sizes->members, 2 * sizes->heads) + 16;
}

/* ---- weights */

static uint64_t list_resident(const mica_model *model, const mica_weight **list) {
    uint64_t count = 0;
    const mica_weight *ends[] = {model->head, model->final_norm};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        list[count++] = ends[i];
    if (model->embedding->scale && model->embedding != model->head)
        list[count++] = model->embedding;
    for (uint64_t l = 0; l < model->config.num_hidden_layers; l++) {
        const mica_layer *layer = &model->layers[l];
        for (int i = 0; i < MICA_PART_COUNT; i++)
            list[count++] = layer->parts[i];
        list[count++] = layer->router;
        list[count++] = layer->router_bias;
        for (int i = 0; i < MICA_PROJECTION_COUNT; i++) {
            list[count++] = layer->shared[i];
            list[count++] = layer->dense[i];
        }
    }
    return count;
}

static uint64_t stored_bytes(const mica_weight *const *list, uint64_t count) {
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < count; i++)
        bytes += list[i] ? list[i]->data->bytes + (list[i]->scale ? list[i]->scale->bytes : 0) : 0;
    return bytes;
}

/* Norms and biases to float32: they are small, and every use wants them so. Each is looked at here: a router's bias that is NaN would only keep
 * its expert from ever being chosen, and no later number would show it. */
static mica_status decode_vectors(mica_engine *engine, mica_error *error) {
    const mica_model *model = engine->model;
    uint64_t total = 0;
    for (uint64_t i = 0; i < engine->resident.count; i++)
        total += engine->resident.weights[i]->rows == 1 ? engine->resident.weights[i]->columns : 0;
    float *next = engine->vectors = mica_calloc(total + 1, sizeof *engine->vectors);
    if (!next)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for norms and biases", model->source->path);
    for (uint64_t i = 0; i < engine->resident.count; i++) {
        const mica_weight *weight = engine->resident.weights[i];
        if (weight->rows != 1)
            continue;
        mica_status status = mica_weight_examine(model, weight, &engine->resident.matrices[i], NULL, NULL, 0, error);
        if (status != MICA_OK)
            return status;
        mica_matrix_decode(&engine->resident.matrices[i], 0, 0, 1, next, weight->columns);
        if (weight == model->final_norm)
            engine->final_norm = next;
        else if (weight->layer >= 0 && weight->role == MICA_ROLE_ROUTER_BIAS)
            engine->layers[weight->layer].router_bias = next;
        else if (weight->layer >= 0)
            engine->layers[weight->layer].vectors[weight->part] = next;
        next += weight->columns;
    }
    return MICA_OK;
}

static void link_layer(mica_engine *engine, uint64_t number) {
    const mica_layer *from = &engine->model->layers[number];
    engine_layer *layer = &engine->layers[number];
    for (int i = 0; i < MICA_PART_COUNT; i++)
        layer->parts[i] = mica_resident_find(&engine->resident, from->parts[i]);
    layer->router = mica_resident_find(&engine->resident, from->router);
    for (int i = 0; i < MICA_PROJECTION_COUNT; i++) {
        layer->shared[i] = mica_resident_find(&engine->resident, from->shared[i]);
        layer->dense[i] = mica_resident_find(&engine->resident, from->dense[i]);
    }
    layer->value_rows = layer->parts[MICA_PART_KV_B];
    layer->value_first = engine->sizes.nope;
    layer->value_step = engine->sizes.nope + engine->sizes.value_width;
    if (!layer->value_rows) {
        layer->value_rows = layer->parts[MICA_PART_V_B];
        layer->value_first = 0;
        layer->value_step = engine->sizes.value_width;
    }
}

/* ---- absorbed keys: the key rows of kv_b, [head][nope][rank], transposed to [head][rank][nope], so that a query can be taken to the
 * latents. fp8 blocks that fit and plain types keep their codes; anything else becomes float32, which loses nothing either. */

typedef struct transposition {
    const mica_matrix *source;
    uint64_t heads, step, nope, rank;
    bool blocks;
    uint32_t element_bytes; /* of codes that are kept; 0: float32 */
} transposition;

static transposition plan_transposition(const mica_engine *engine, const mica_matrix *source) {
    const engine_sizes *sizes = &engine->sizes;
    transposition plan = {source, sizes->heads, sizes->nope + sizes->value_width, sizes->nope, sizes->rank, false, 0};
    if (source->encoding == MICA_ENCODING_PLAIN)
        plan.element_bytes = mica_dtype_bytes(source->dtype);
    plan.blocks = source->encoding == MICA_ENCODING_FP8_BLOCK && sizes->nope % source->block_rows == 0 &&
                  plan.step % source->block_rows == 0 && sizes->rank % source->block_columns == 0;
    if (plan.blocks)
        plan.element_bytes = 1;
    return plan;
}

static uint64_t scale_bytes(const transposition *plan) {
    if (!plan->blocks)
        return 0;
    return plan->heads * (plan->rank / plan->source->block_columns) * (plan->nope / plan->source->block_rows) *
           mica_dtype_bytes(plan->source->scale_dtype);
}

static uint64_t transposed_bytes(const transposition *plan) {
    uint64_t codes = plan->heads * plan->rank * plan->nope * (plan->element_bytes ? plan->element_bytes : sizeof(float));
    return (codes + scale_bytes(plan) + 127) / 64 * 64;
}

/* out [columns][rows] from in [rows][stride], elements of `bytes` bytes; in tiles, whose lines stay in the first-level cache. */
#define TILE 32
#define TRANSPOSE(width)                                                                      \
    for (uint64_t r = row; r < row_end; r++)                                                   \
        for (uint64_t c = column; c < column_end; c++)                                          \
            memcpy(out + (c * rows + r) * (width), in + (r * stride + c) * (width), width)
static void transpose(const uint8_t *in, uint64_t rows, uint64_t columns, uint64_t stride, uint32_t bytes, uint8_t *out) {
    for (uint64_t row = 0; row < rows; row += TILE)
        for (uint64_t column = 0; column < columns; column += TILE) {
            uint64_t row_end = rows - row < TILE ? rows : row + TILE, column_end = columns - column < TILE ? columns : column + TILE;
            if (bytes == 1)
                TRANSPOSE(1);
            else if (bytes == 2)
                TRANSPOSE(2);
            else if (bytes == 4)
                TRANSPOSE(4);
            else
                TRANSPOSE(8);
        }
}

static void transpose_layer(const transposition *plan, uint8_t *out, float *decoded, mica_matrix *matrix) {
    const mica_matrix *source = plan->source;
    uint64_t head_codes = plan->rank * plan->nope;
    uint32_t bytes = plan->element_bytes ? plan->element_bytes : sizeof(float);
    *matrix = (mica_matrix){.encoding = MICA_ENCODING_PLAIN,
                            .dtype = plan->element_bytes ? source->dtype : MICA_F32,
                            .rows = plan->heads * plan->rank,
                            .columns = plan->nope,
                            .codes = out};
    for (uint64_t h = 0; h < plan->heads; h++) {
        const uint8_t *in = (const uint8_t *)source->codes + h * plan->step * plan->rank * bytes;
        if (!plan->element_bytes) {
            mica_matrix_decode(source, 0, h * plan->step, plan->nope, decoded, plan->rank);
            in = (const uint8_t *)decoded;
        }
        transpose(in, plan->nope, plan->rank, plan->rank, bytes, out + h * head_codes * bytes);
    }
    if (!plan->blocks)
        return;
    uint64_t row_blocks = plan->nope / source->block_rows, column_blocks = plan->rank / source->block_columns;
    uint32_t scale = mica_dtype_bytes(source->scale_dtype);
    uint8_t *scales = out + plan->heads * head_codes;
    for (uint64_t h = 0; h < plan->heads; h++)
        transpose((const uint8_t *)source->scales + h * (plan->step / source->block_rows) * column_blocks * scale, row_blocks,
                  column_blocks, column_blocks, scale, scales + h * row_blocks * column_blocks * scale);
    matrix->encoding = source->encoding;
    matrix->scale_dtype = source->scale_dtype;
    matrix->block_rows = source->block_columns;
    matrix->block_columns = source->block_rows;
    matrix->scales = scales;
}

typedef struct absorbing {
    mica_engine *engine;
    uint64_t *places; /* [layers]: in engine->transposed */
    float *decoded;   /* [threads][nope * rank] */
} absorbing;

static void absorb_layers(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const absorbing *job = context;
    mica_engine *engine = job->engine;
    for (uint64_t i = first; i < last; i++) {
        engine_layer *layer = &engine->layers[i];
        if (!layer->parts[MICA_PART_KV_B]) { /* stored in two: the keys are transposed already */
            layer->absorbed = *layer->parts[MICA_PART_K_B];
            continue;
        }
        transposition plan = plan_transposition(engine, layer->parts[MICA_PART_KV_B]);
        transpose_layer(&plan, engine->transposed + job->places[i], job->decoded + thread * engine->sizes.nope * engine->sizes.rank,
                        &layer->absorbed);
    }
}

static mica_status absorb_keys(mica_engine *engine, mica_error *error) {
    const uint64_t layers = engine->model->config.num_hidden_layers;
    if (!engine->sizes.rank)
        return MICA_OK;
    absorbing job = {engine, mica_calloc(layers, sizeof *job.places),
                     mica_reallocarray(NULL, engine->options.threads * engine->sizes.nope * engine->sizes.rank, sizeof *job.decoded)};
    for (uint64_t i = 0; i < layers && job.places; i++)
        if (engine->layers[i].parts[MICA_PART_KV_B]) {
            transposition plan = plan_transposition(engine, engine->layers[i].parts[MICA_PART_KV_B]);
            job.places[i] = engine->transposed_bytes;
            engine->transposed_bytes += transposed_bytes(&plan);
        }
    engine->transposed = job.places ? mica_alloc_aligned(engine->transposed_bytes) : NULL;
    bool made = job.decoded && engine->transposed;
    if (made)
        mica_pool_each(engine->pool, layers, 1, absorb_layers, &job);
    mica_free(job.places);
    mica_free(job.decoded);
    return made ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the absorbed keys", engine->model->source->path);
}

/* ---- the weights */

/* What opening makes of the resident weights: absorbed keys, vectors in float32. */
static uint64_t derived_bytes(const mica_engine *engine, const mica_weight *const *list, uint64_t count) {
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < count; i++) {
        const mica_weight *weight = list[i];
        mica_matrix matrix;
        if (weight && weight->rows == 1)
            bytes += weight->columns * sizeof(float);
        if (!weight || !engine->sizes.rank || weight->part != MICA_PART_KV_B || weight->role != MICA_ROLE_ATTENTION ||
            mica_weight_matrix(engine->model, weight, NULL, NULL, NULL, &matrix, NULL) != MICA_OK)
            continue;
        transposition plan = plan_transposition(engine, &matrix);
        bytes += transposed_bytes(&plan);
    }
    return bytes;
}

/* What is told is a little more: neither its rounding nor what differs from run to run may make it too little. */
static mica_status refuse_budget(const mica_engine *engine, uint64_t needed, mica_error *error) {
    char expected[MICA_QUANTITY_BYTES], got[MICA_QUANTITY_BYTES];
    return mica_fail(
        error, MICA_USAGE,
        "%s: memory: expected at least %s, for the weights that every token needs, the context of %llu positions and room for two experts, "
        "got %s",
        engine->model->source->path, mica_bytes_show(needed + needed / 200 + SLACK / 2, expected), (unsigned long long)engine->options.context,
        mica_bytes_show(engine->options.memory_bytes, got));
}

static mica_status read_resident(mica_engine *engine, mica_error *error) {
    const mica_model *model = engine->model;
    uint64_t room = 8 + model->config.num_hidden_layers * (MICA_PART_COUNT + 2 + 2 * MICA_PROJECTION_COUNT);
    const mica_weight **list = mica_calloc(room, sizeof *list);
    if (!list)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the list of resident weights", model->source->path);
    uint64_t count = list_resident(model, list);
    uint64_t needed = stored_bytes(list, count) + derived_bytes(engine, list, count) + mica_workspace_bytes(engine) +
                      engine->session.layers * engine->session.layer_bytes + mica_memory_resident_bytes() + MARGIN +
                      SLOTS_MIN * (mica_expert_slot_bytes(model) + mica_expert_slot_overhead());
    mica_status status = MICA_OK;
    if (needed > engine->options.memory_bytes)
        status = refuse_budget(engine, needed, error);
    if (status == MICA_OK)
        status = mica_resident_read(model, list, count, engine->options.reading_threads, &engine->resident, error);
    mica_free(list);
    return status;
}

static mica_status load_weights(mica_engine *engine, mica_error *error) {
    engine->layers = mica_calloc(engine->model->config.num_hidden_layers, sizeof *engine->layers);
    if (!engine->layers)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the layers", engine->model->source->path);
    mica_status status = read_resident(engine, error);
    if (status != MICA_OK)
        return status;
    for (uint64_t i = 0; i < engine->model->config.num_hidden_layers; i++)
        link_layer(engine, i);
    engine->head = mica_resident_find(&engine->resident, engine->model->head);
    engine->embedding = mica_resident_find(&engine->resident, engine->model->embedding);
    status = decode_vectors(engine, error);
    return status == MICA_OK ? absorb_keys(engine, error) : status;
}

/* ---- the division of memory */

/* `resident`: of the process, before the workspace and the session, which count whole: a long prompt uses all of the workspace, a short one
 * need not wait for its pages. */
static mica_status open_cache(mica_engine *engine, uint64_t resident, mica_error *error) {
    const mica_model *model = engine->model;
    uint64_t experts = mica_expert_count(model), slot_bytes = mica_expert_slot_bytes(model);
    if (experts == 0)
        return MICA_OK;
    const mica_cache_policy *policy = mica_cache_policy_find(engine->options.policy);
    if (!policy)
        return mica_fail(error, MICA_USAGE, "policy: expected lfu or lru, got %s", engine->options.policy);
    uint64_t used = resident + engine->work.bytes + engine->session.layers * engine->session.layer_bytes + MARGIN,
             budget = engine->options.memory_bytes;
    uint64_t slots = budget > used ? (budget - used) / (slot_bytes + mica_expert_slot_overhead()) : 0;
    if (slots > experts)
        slots = experts;
    if (engine->options.slots && slots > engine->options.slots)
        slots = engine->options.slots;
    const uint64_t least = used + SLOTS_MIN * (slot_bytes + mica_expert_slot_overhead());
    if (slots < SLOTS_MIN && slots < experts) {
        if (budget + SLACK < least)
            return refuse_budget(engine, least, error);
        slots = SLOTS_MIN;
    }
    engine->options.no_lookahead |= slots == experts; /* all will be there soon */
    return mica_expert_cache_open(model, slots, engine->options.reading_threads, policy, &engine->cache, error);
}

static mica_status open_session(mica_engine *engine, mica_error *error) {
    mica_session *session = &engine->session;
    uint64_t bytes;
    if (mica_mul_u64(session->layer_bytes, session->layers, &bytes))
        session->rows = mica_alloc_aligned(bytes);
    if (!session->rows)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a context of %llu positions", engine->model->source->path,
                         (unsigned long long)session->context);
    return MICA_OK;
}

static mica_status settle_options(mica_engine *engine, const mica_engine_options *given, mica_error *error) {
    const mica_config *config = &engine->model->config;
    mica_engine_options *options = &engine->options;
    if (given)
        *options = *given;
    uint64_t available = mica_memory_available_bytes();
    if (!options->threads)
        options->threads = mica_thread_count_default();
    if (!options->reading_threads)
        options->reading_threads = READERS_DEFAULT;
    if (!options->memory_bytes)
        options->memory_bytes = available ? available / 5 * 4 : UINT64_C(8) << 30;
    if (!options->batch)
        options->batch = BATCH_DEFAULT;
    uint64_t longest = config->max_position_embeddings;
    if (longest && options->context > longest)
        return mica_fail(error, MICA_USAGE, "%s: context: expected at most %llu (max_position_embeddings), got %llu",
                         engine->model->source->path, (unsigned long long)longest, (unsigned long long)options->context);
    if (!options->context)
        options->context = longest && longest < CONTEXT_DEFAULT ? longest : CONTEXT_DEFAULT;
    if (options->batch > options->context && !options->layer_at_a_time)
        options->batch = options->context;
    return MICA_OK;
}

/* llama3's scaling as GGUF has it: a tensor of what each frequency is divided by. */
static mica_status divide_frequencies(mica_engine *engine, mica_error *error) {
    const mica_weight *weight = engine->model->rope_factors;
    float *factors = NULL;
    if (!weight)
        return MICA_OK;
    mica_status status = mica_weight_load(engine->model, weight, &factors, error);
    for (uint64_t i = 0; status == MICA_OK && i < engine->rope.pairs; i++) {
        if (!(factors[i] > 0) || !isfinite(factors[i]))
            status = mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected positive numbers, got %g at [%llu]",
                               mica_model_shard_name(engine->model, weight->data), weight->name, (double)factors[i], (unsigned long long)i);
        else
            engine->rope.frequencies[i] /= (double)factors[i];
    }
    mica_free(factors);
    return status;
}

static mica_status open_all(mica_engine *engine, const mica_engine_options *options, mica_error *error) {
    const mica_config *config = &engine->model->config;
    mica_status status = check_model(engine->model, error);
    if (status == MICA_OK)
        status = settle_options(engine, options, error);
    if (status == MICA_OK)
        status = mica_rope_init(config, &engine->rope, error);
    if (status == MICA_OK)
        status = divide_frequencies(engine, error);
    if (status == MICA_OK && config->n_routed_experts)
        status = mica_router_init(config, &engine->router, error);
    if (status != MICA_OK)
        return status;
    engine->cache_dtype = engine->options.precision == MICA_PRECISION_EXACT ? MICA_F32 : MICA_BF16;
    measure(engine);
    mica_session *session = &engine->session;
    session->layers = engine->options.layer_at_a_time ? 1 : config->num_hidden_layers;
    session->context = engine->options.context;
    uint64_t row = engine->sizes.kv_row * mica_dtype_bytes(engine->cache_dtype);
    if (!mica_mul_u64(session->context, row, &session->layer_bytes) || session->layer_bytes > UINT64_MAX / 2 / session->layers)
        return mica_fail(error, MICA_USAGE, "%s: context: expected less than %llu positions", engine->model->source->path,
                         (unsigned long long)session->context);
    status = mica_pool_create(engine->options.threads, &engine->pool, error);
    if (status == MICA_OK)
        status = load_weights(engine, error);
    const uint64_t resident = mica_memory_resident_bytes();
    if (status == MICA_OK)
        status = mica_workspace_init(engine, error);
    if (status == MICA_OK)
        status = open_session(engine, error);
    return status == MICA_OK ? open_cache(engine, resident, error) : status;
}

mica_status mica_engine_open(const mica_model *model, const mica_engine_options *options, mica_engine **result, mica_error *error) {
    mica_engine *engine = mica_calloc(1, sizeof *engine);
    if (!engine)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the engine", model->source->path);
    engine->model = model;
    mica_status status = open_all(engine, options, error);
    if (status == MICA_OK)
        *result = engine;
    else
        mica_engine_close(engine);
    return status;
}

void mica_engine_close(mica_engine *engine) {
    if (!engine)
        return;
    mica_expert_cache_close(engine->cache);
    mica_pool_free(engine->pool);
    mica_free_aligned(engine->session.rows);
    mica_workspace_release(engine);
    mica_free_aligned(engine->transposed);
    mica_free(engine->vectors);
    mica_free(engine->layers);
    mica_resident_release(&engine->resident);
    mica_rope_release(&engine->rope);
    mica_free(engine);
}

/* ---- what is asked of it */

const mica_model *mica_engine_model(const mica_engine *engine) {
    return engine->model;
}

uint64_t mica_engine_batch(const mica_engine *engine) {
    return engine->options.batch;
}

mica_pool *mica_engine_pool(const mica_engine *engine) {
    return engine->pool;
}

uint64_t mica_engine_context(const mica_engine *engine) {
    return engine->session.context;
}

void mica_engine_observe(mica_engine *engine, const mica_observer *observer) {
    engine->observer = observer ? *observer : (mica_observer){0};
}

uint64_t mica_engine_position(const mica_engine *engine) {
    return engine->session.position;
}

void mica_engine_rewind(mica_engine *engine, uint64_t position) {
    if (position < engine->session.position)
        engine->session.position = position;
}

mica_engine_meters mica_engine_meters_get(const mica_engine *engine) {
    const mica_config *config = &engine->model->config;
    mica_engine_meters meters = {.resident_bytes = engine->resident.bytes + engine->transposed_bytes,
                                 .resident_read = engine->resident.bytes_read,
                                 .resident_seconds = engine->resident.seconds,
                                 .expert_count = mica_expert_count(engine->model),
                                 .slot_bytes = engine->cache ? mica_expert_slot_bytes(engine->model) : 0};
    if (engine->cache) {
        meters.experts = mica_expert_cache_meters(engine->cache);
        meters.slots = mica_expert_cache_slots(engine->cache);
        meters.working_set = meters.expert_count / config->n_routed_experts * config->num_experts_per_tok;
    }
    return meters;
}
