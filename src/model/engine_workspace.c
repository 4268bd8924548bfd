/* model/engine_workspace.c: every buffer of a step in one block, sized from the configuration, laid out once.
 * Judged by tests/model/test_forward.c, under the address sanitizer for its sizes. */
#include "base/memory.h"
#include "model/engine_internal.h"

#define ALIGNMENT UINT64_C(64)

typedef struct cursor {
    uint8_t *base; /* NULL: only count */
    uint64_t at;
} cursor;

static void *take(cursor *from, uint64_t count, uint64_t bytes) {
    void *taken = from->base ? from->base + from->at : NULL;
    from->at += (count * bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ALIGNMENT; /* a line between: a step too far is seen by no neighbour */
    return taken;
}

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static void lay_out_attention(mica_engine *engine, cursor *from) {
    const engine_sizes *sizes = &engine->sizes;
    engine_workspace *work = &engine->work;
    mica_precision precision = engine->options.precision;
    uint64_t absorbed = MICA_ABSORBED_TOKENS * sizes->heads, pairs = engine->rope.pairs;
    bool latent = sizes->rank > 0;
    work->query_latent = take(from, sizes->batch * sizes->query_rank, sizeof(float));
    work->key_latent = take(from, sizes->batch * (latent ? sizes->rank + sizes->rope : 2 * sizes->key_value_heads * sizes->width), sizeof(float));
    work->query = take(from, sizes->batch * sizes->heads * sizes->width, sizeof(float));
    work->joined = take(from, sizes->batch * sizes->heads * sizes->value_width, sizeof(float));
    work->joined_storage = take(from, mica_operand_bytes(precision, sizes->batch, sizes->heads * sizes->value_width), 1);
    work->query_storage = take(from, mica_operand_bytes(precision, sizes->batch, sizes->query_rank), 1);
    work->cosines = take(from, sizes->batch * pairs, sizeof(float));
    work->sines = take(from, sizes->batch * pairs, sizeof(float));
    uint64_t part_width = latent ? sizes->rank : sizes->value_width, part_rows = larger(512, sizes->heads) + sizes->heads;
    work->part_out = take(from, MICA_PARTS_MAX * part_rows * part_width, sizeof(float));
    work->part_sums = take(from, MICA_PARTS_MAX * larger(part_rows, absorbed) + sizes->batch * sizes->heads, sizeof(mica_attention_sum));
    if (!latent)
        return;
    work->absorbed_query = take(from, absorbed * (sizes->rank + sizes->rope_kept), sizeof(float));
    work->latent_out = take(from, absorbed * sizes->rank, sizeof(float));
    work->head_storage = take(from, sizes->heads * mica_operand_bytes(precision, MICA_ABSORBED_TOKENS, sizes->nope), 1);
    work->latent_storage = take(from, larger(sizes->heads * mica_operand_bytes(precision, MICA_ABSORBED_TOKENS, sizes->rank),
                                             mica_operand_bytes(precision, MICA_EXPANDED_POSITIONS, sizes->rank)), 1);
    work->latents = take(from, MICA_EXPANDED_POSITIONS * sizes->rank, sizeof(float));
}

static void lay_out_feed(mica_engine *engine, cursor *from) {
    const engine_sizes *sizes = &engine->sizes;
    engine_workspace *work = &engine->work;
    uint64_t chosen = sizes->batch * sizes->top_k;
    work->gate_values = take(from, sizes->feed_values, sizeof(float));
    work->up_values = take(from, sizes->feed_values, sizeof(float));
    work->out_rows = take(from, sizes->feed_rows * sizes->hidden, sizeof(float));
    uint64_t some = MICA_PRODUCT_FEW + 1; /* of so many tokens each takes the most room */
    work->gated_bytes = mica_operand_bytes(engine->options.precision, sizes->batch, sizes->widest) +
                        (sizes->feed_rows + some - 1) / some * mica_operand_bytes(engine->options.precision, some, sizes->expert_width) +
                        sizes->members * 4096;
    work->gated_storage = take(from, work->gated_bytes, 1);
    work->router_logits = take(from, sizes->batch * sizes->experts, sizeof(float));
    work->router_scores = take(from, sizes->batch * sizes->experts, sizeof(float));
    work->router_scratch = take(from, engine->options.threads * 2 * (sizes->experts + 16), sizeof(float));
    work->gates = take(from, chosen, sizeof(float));
    work->list_gates = take(from, chosen, sizeof(float));
    work->ids = take(from, chosen, sizeof(uint32_t));
    work->list_tokens = take(from, chosen, sizeof(uint32_t));
    work->active = take(from, sizes->experts, sizeof(uint32_t));
    work->order = take(from, sizes->experts, sizeof(uint32_t));
    work->list_starts = take(from, sizes->experts + 1, sizeof(uint64_t));
    work->list_rows = take(from, sizes->experts + 1, sizeof(int64_t));
    work->identity = take(from, sizes->batch, sizeof(uint32_t));
}

static void lay_out(mica_engine *engine, cursor *from) {
    const engine_sizes *sizes = &engine->sizes;
    engine_workspace *work = &engine->work;
    uint64_t key_width = sizes->rank ? sizes->rank + sizes->rope_kept : sizes->width, value_width = sizes->rank ? sizes->rank : sizes->width;
    uint64_t expanded_width = sizes->nope + sizes->rope_kept;
    work->x = take(from, sizes->batch * sizes->hidden, sizeof(float));
    work->normed = take(from, sizes->batch * sizes->hidden, sizeof(float));
    work->final_values = take(from, sizes->batch * sizes->hidden, sizeof(float));
    work->hidden_storage = take(from, mica_operand_bytes(engine->options.precision, sizes->batch, sizes->hidden), 1);
    work->embedding_row = take(from, 8 * sizes->hidden + 4096, 1);
    work->tasks = take(from, sizes->tasks, sizeof(product_task));
    work->members = take(from, sizes->members, sizeof(feed_member));
    lay_out_attention(engine, from);
    lay_out_feed(engine, from);
    work->expanded_floats = sizes->rank ? MICA_EXPANDED_POSITIONS * sizes->key_row : 0;
    work->expanded_halves = engine->cache_dtype == MICA_BF16 ? work->expanded_floats : 0;
    uint64_t attention = larger(MICA_ATTENTION_SCRATCH_BYTES(key_width, value_width), MICA_ATTENTION_SCRATCH_BYTES(expanded_width, sizes->value_width));
    uint64_t expanded = sizes->rank ? work->expanded_floats * 4 + work->expanded_halves * 2 + sizes->batch * (sizes->value_width * 4 + 8) + 512 : 0;
    work->queries_offset = (expanded + 63) / 64 * 64;
    work->turned_offset = (work->queries_offset + (work->expanded_halves ? sizes->batch * expanded_width * sizeof(float) : 0) + 63) / 64 * 64;
    expanded = sizes->rank ? work->turned_offset + 2 * sizes->rank * sizes->nope * sizeof(float)
                           : MICA_ATTENTION_QUERIES * (sizes->width + sizes->value_width) * sizeof(float); /* gathered queries and means */
    work->expanded_offset = (larger(attention, MICA_PRODUCT_SCRATCH_BYTES) + 63) / 64 * 64;
    work->scratch_bytes = (work->expanded_offset + expanded + 4095) / 4096 * 4096;
    work->scratch = take(from, engine->options.threads * work->scratch_bytes, 1);
}

uint64_t mica_workspace_bytes(mica_engine *engine) {
    cursor count = {NULL, 0};
    lay_out(engine, &count);
    return count.at;
}

mica_status mica_workspace_init(mica_engine *engine, mica_error *error) {
    engine_workspace *work = &engine->work;
    uint64_t bytes = mica_workspace_bytes(engine);
    uint8_t *buffer = mica_alloc_aligned(bytes);
    if (!buffer)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a workspace of %llu bytes", engine->model->source->path,
                         (unsigned long long)bytes);
    lay_out(engine, &(cursor){buffer, 0});
    work->buffer = buffer;
    work->bytes = bytes;
    for (uint64_t i = 0; i < engine->sizes.batch; i++)
        work->identity[i] = (uint32_t)i;
    return MICA_OK;
}

void mica_workspace_release(mica_engine *engine) {
    mica_free_aligned(engine->work.buffer);
    engine->work.buffer = NULL;
}
