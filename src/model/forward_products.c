/* model/forward_products.c: a phase of products: the rows of all its matrices are cut into pieces that the threads take. What comes out
 * does not depend on the cut (numerics/product.h promises it). Judged by tests/model/test_forward.c. */
#include "model/engine_internal.h"
#include "numerics/elementwise.h"

#define PIECE_ROWS 128 /* one or two strips of the many-token kernels */
#define PIECE_ROWS_SMALL 16
/* Of few tokens the weights are streams that start anew with each piece: large pieces are faster, until others wait for the last one. So
 * what is left of a phase is cut for this many pieces a thread: the last matrix into as many, those before into fewer. */
#define PIECES_LEFT 3

typedef struct phase {
    mica_engine *engine;
    const product_task *tasks;
    uint64_t count;
} phase;

static void run_piece(const phase *work, const product_task *task, uint64_t piece, uint32_t thread) {
    uint64_t first = piece * task->piece_rows, count = task->rows - first < task->piece_rows ? task->rows - first : task->piece_rows;
    float *out = task->out + first;
    mica_product(task->matrix, task->row + first, count, task->x, out, task->stride, mica_engine_scratch(work->engine, thread));
    for (uint64_t t = 0; task->bias && t < task->x->tokens; t++)
        mica_add(out + t * task->stride, task->bias + first, count, out + t * task->stride);
}

static void run_pieces(void *context, uint64_t first, uint64_t last, uint32_t thread) {
    const phase *work = context;
    uint64_t low = 0, high = work->count - 1;
    while (low < high) { /* the last task whose first piece is not beyond `first` */
        uint64_t middle = (low + high + 1) / 2;
        if (work->tasks[middle].piece <= first)
            low = middle;
        else
            high = middle - 1;
    }
    for (uint64_t piece = first; piece < last; piece++) {
        while (low + 1 < work->count && work->tasks[low + 1].piece <= piece)
            low++;
        run_piece(work, &work->tasks[low], piece - work->tasks[low].piece, thread);
        if (thread == 0 && work->engine->cache) /* the thread that the cache belongs to */
            mica_expert_cache_poll(work->engine->cache);
    }
}

/* Rows of a piece of a task, of whose phase `left` are still to be cut, its own among them. */
static uint64_t piece_rows(const product_task *task, uint64_t total, uint64_t left, uint64_t threads) {
    if (total < PIECE_ROWS * 4 * threads)
        return PIECE_ROWS_SMALL;
    if (task->x->tokens > MICA_PRODUCT_SOME)
        return PIECE_ROWS;
    if (threads == 1)
        return task->rows;
    uint64_t share = left / (PIECES_LEFT * threads), pieces = task->rows / (share > PIECE_ROWS ? share : PIECE_ROWS);
    pieces = (pieces + threads) / threads * threads;
    return left >= PIECES_LEFT * threads * task->rows ? task->rows : (task->rows + pieces - 1) / pieces;
}

void mica_products_run(mica_engine *engine, uint64_t count) {
    product_task *tasks = engine->work.tasks;
    uint64_t pieces = 0, total = 0, left;
    phase work = {engine, tasks, count};
    for (uint64_t i = 0; i < count; i++)
        total += tasks[i].rows;
    left = total;
    for (uint64_t i = 0; i < count; left -= tasks[i++].rows) {
        tasks[i].piece = pieces;
        tasks[i].piece_rows = piece_rows(&tasks[i], total, left, engine->options.threads);
        pieces += (tasks[i].rows + tasks[i].piece_rows - 1) / tasks[i].piece_rows;
    }
    mica_pool_each(engine->pool, pieces, 1, run_pieces, &work);
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
