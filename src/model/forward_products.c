/* model/forward_products.c: a phase of products: threads take pieces of the rows of all its matrices. What comes out does not depend on the cut
 * (numerics/product.h promises it). Judged by tests/model/test_forward.c. */
#include <stdatomic.h>

#include "model/engine_internal.h"
#include "numerics/elementwise.h"

#define PIECE_ROWS 128 /* one or two strips of the many-token kernels */
#define PIECE_ROWS_SMALL 16
/* Of few tokens the weights are streams that start anew with each piece: large pieces are faster, until others wait for the last one. So a piece
 * is a thread's share of what is left of the phase, over this. */
#define SHARE_PIECES 2
#define PIECE_ROWS_LEAST 64
#define EXPECTED_BYTES (UINT64_C(512) << 10) /* half of a core's second-level cache */

typedef struct phase {
    mica_engine *engine;
    const product_task *tasks;
    uint64_t rows; /* of all tasks */
    atomic_uint_fast64_t taken; /* rows */
} phase;

static void run_piece(const phase *work, const product_task *task, uint64_t first, uint64_t count, uint32_t thread) {
    float *out = task->out + first;
    mica_product(task->matrix, task->row + first, count, task->x, out, task->stride, mica_engine_scratch(work->engine, thread));
    for (uint64_t t = 0; task->bias && t < task->x->tokens; t++)
        mica_add(out + t * task->stride, task->bias + first, count, out + t * task->stride);
}

/* Rows of the next piece of a task that has `rest` of them, of whose phase `left` are not taken yet. */
static uint64_t piece_rows(const phase *work, const product_task *task, uint64_t rest, uint64_t left) {
    const uint64_t threads = work->engine->options.threads;
    uint64_t rows = PIECE_ROWS;
    if (work->rows < PIECE_ROWS * 4 * threads)
        rows = PIECE_ROWS_SMALL;
    else if (task->x->tokens <= MICA_PRODUCT_SOME) {
        const uint64_t share = threads == 1 ? rest : left / (SHARE_PIECES * threads) / PIECE_ROWS_SMALL * PIECE_ROWS_SMALL;
        rows = share > PIECE_ROWS_LEAST ? share : PIECE_ROWS_LEAST;
        if (rest < rows + rows / 2)
            return rest;
    }
    return rest < rows ? rest : rows;
}

static void take_pieces(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    phase *work = context;
    const product_task *task = work->tasks;
    uint64_t at = atomic_load_explicit(&work->taken, memory_order_relaxed), rows;
    (void)first;
    (void)last;
    while (at < work->rows) {
        while (at >= task->before + task->rows)
            task++;
        rows = piece_rows(work, task, task->before + task->rows - at, work->rows - at);
        if (!atomic_compare_exchange_weak_explicit(&work->taken, &at, at + rows, memory_order_relaxed, memory_order_relaxed))
            continue;
        run_piece(work, task, at - task->before, rows, thread);
        if (thread == 0 && work->engine->cache) /* the thread that the cache belongs to */
            mica_expert_cache_poll(work->engine->cache);
        at = atomic_load_explicit(&work->taken, memory_order_relaxed);
    }
}

void mica_products_run(mica_engine *engine, uint64_t count) {
    product_task *tasks = engine->work.tasks;
    phase work = {.engine = engine, .tasks = tasks};
    for (uint64_t i = 0; i < count; work.rows += tasks[i++].rows)
        tasks[i].before = work.rows;
    mica_pool_each(engine->pool, engine->options.threads, 1, take_pieces, &work);
}

void mica_products_expect(mica_engine *engine, const mica_matrix *matrix, uint64_t row) {
    uint64_t row_bytes = mica_matrix_row_bytes(matrix), bytes = (matrix->rows - row) * row_bytes;
    mica_pool_expect(engine->pool, (const uint8_t *)matrix->codes + row * row_bytes, bytes < EXPECTED_BYTES ? bytes : EXPECTED_BYTES);
}

static void prepare_rows(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    (void)thread;
    mica_operand_prepare(context, first, last - first);
}

void mica_operand_prepare_all(mica_engine *engine, mica_operand *operand) {
    mica_pool_each(engine->pool, operand->tokens, operand->tokens * operand->columns > 65536 ? 16 : operand->tokens, prepare_rows, operand);
}

typedef struct norming {
    const float *x, *norm;
    float *out;
    uint64_t width;
    float eps;
    mica_operand *operand;
} norming;

static void norm_rows(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const norming *work = context;
    (void)thread;
    for (uint64_t t = first; t < last; t++)
        mica_rms_norm(work->x + t * work->width, work->norm, work->width, work->eps, work->out + t * work->width);
    mica_operand_prepare(work->operand, first, last - first);
}

void mica_hidden_operand(mica_engine *engine, const float *x, const float *norm, uint64_t count, float *normed, mica_operand *operand) {
    engine_workspace *work = &engine->work;
    norming job = {x, norm, normed, engine->sizes.hidden, (float)engine->model->config.rms_norm_eps, operand};
    mica_operand_init(operand, engine->options.precision, normed, job.width, count, job.width, work->hidden_storage);
    mica_pool_each(engine->pool, count, count > 4 ? 4 : count, norm_rows, &job);
}
