/* model/forward_products.c: a phase of products: the rows of all its matrices are cut into pieces that the threads take. What comes out does not
 * depend on the cut (numerics/product.h promises it). Judged by tests/model/test_forward.c. */
#include "model/engine_internal.h"
#include "numerics/elementwise.h"

#define PIECE_ROWS 64 /* a strip of the many-token kernels */
#define PIECE_ROWS_SMALL 16
/* Of few tokens the weights are a stream that starts anew with each piece: two threads read Q4_K 17 % faster in pieces of 256 rows than of 64,
 * and slower again in pieces of 512, of which the last makes others wait. */
#define PIECE_ROWS_LARGE 256
#define PIECES_PER_THREAD 16

typedef struct phase {
    mica_engine *engine;
    const product_task *tasks;
    uint64_t count, rows; /* rows: of a piece */
} phase;

static void run_piece(const phase *work, const product_task *task, uint64_t piece, uint32_t thread) {
    uint64_t first = piece * work->rows, count = task->rows - first < work->rows ? task->rows - first : work->rows;
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
    }
}

static uint64_t piece_rows(const product_task *tasks, uint64_t count, uint64_t threads) {
    uint64_t rows = 0, tokens = 0;
    for (uint64_t i = 0; i < count; i++) {
        rows += tasks[i].rows;
        tokens = tasks[i].x->tokens > tokens ? tasks[i].x->tokens : tokens;
    }
    if (rows < PIECE_ROWS * 4 * threads)
        return PIECE_ROWS_SMALL;
    const uint64_t share = rows / (PIECES_PER_THREAD * threads) / PIECE_ROWS * PIECE_ROWS;
    if (tokens > MICA_PRODUCT_SOME || share < PIECE_ROWS)
        return PIECE_ROWS;
    return threads == 1 || share < PIECE_ROWS_LARGE ? share : PIECE_ROWS_LARGE;
}

void mica_products_run(mica_engine *engine, uint64_t count) {
    product_task *tasks = engine->work.tasks;
    uint64_t pieces = 0;
    phase work = {engine, tasks, count, piece_rows(tasks, count, engine->options.threads)};
    for (uint64_t i = 0; i < count; i++) {
        tasks[i].piece = pieces;
        pieces += (tasks[i].rows + work.rows - 1) / work.rows;
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
