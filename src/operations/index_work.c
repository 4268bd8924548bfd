/* operations/index_work.c: one unit of `mica index` from bytes to a record: hash (two units at once, where two are read), examine, SVD,
 * statistics; then its commit to the files. Invariant: a record depends on the matrix, the options and the layer's first expert only, never
 * on threads or order.
 * Judged by tests/operations/test_index.c. */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "numerics/spectrum.h"
#include "operations/index.h"
#include "operations/stream.h"

#define FLUSH_UNITS 16u
#define FLUSH_SECONDS 2.0

_Static_assert(sizeof(mica_index_record) == 312, "the journal's record has no padding");

/* Of the stream's result: this, then double values[count], double spectrum[full ? min(rows, columns) : 0], float vectors[count]
 * [columns]. */
typedef struct index_result {
    mica_index_record record;
    double seconds, svd_seconds, helped_seconds; /* of threads: the last is in the first two, and is no work of the stream's */
    char warning[MICA_INDEX_WARNING_BYTES];
    char numbers[] __attribute__((aligned(16)));
} index_result;

typedef struct index_worker {
    mica_svd_workspace *workspace;
    uint64_t rows, columns;
    mica_svd_options options; /* the workspace was made for */
} index_worker;

typedef struct index_context {
    mica_index_run *run;
    index_worker *workers; /* [threads] */
    pthread_mutex_t large; /* held while a workspace above the share is alive */
    mica_stream *stream;
    mica_pool *helpers;     /* as many threads as compute; NULL with one */
    pthread_mutex_t helped; /* held by the unit that has the helpers */
} index_context;

static uint64_t smaller_side(const mica_weight *weight) {
    return weight->rows < weight->columns ? weight->rows : weight->columns;
}

uint64_t mica_index_result_bytes(const mica_index_plan *plan, const mica_index_unit *unit) {
    mica_svd_options options;
    mica_index_unit_svd(plan, unit, &options);
    return sizeof(index_result) + options.count * sizeof(double) +
           (options.full_spectrum ? smaller_side(unit->weight) * sizeof(double) : 0) +
           (options.vectors ? options.count * unit->weight->columns * sizeof(float) : 0);
}

static double *result_values(index_result *result) {
    return (double *)(void *)result->numbers;
}

static double *result_spectrum(index_result *result, const mica_svd_options *options) {
    return result_values(result) + options->count;
}

static float *result_vectors(index_result *result, const mica_svd_options *options, const mica_index_unit *unit) {
    return (float *)(void *)(result_spectrum(result, options) + (options->full_spectrum ? smaller_side(unit->weight) : 0));
}

/* ---- workspaces */

static bool above_share(const index_context *context, const index_worker *worker) {
    return mica_svd_workspace_bytes(worker->rows, worker->columns, &worker->options) > context->run->resources.workspace_share;
}

static void drop_workspace(index_context *context, index_worker *worker) {
    const bool large = worker->workspace && above_share(context, worker);
    mica_svd_workspace_free(worker->workspace);
    worker->workspace = NULL;
    if (large)
        pthread_mutex_unlock(&context->large);
}

/* Keeps the last workspace where it fits; one above the share waits for its turn, and is dropped at the unit's end. */
static mica_status need_workspace(index_context *context, index_worker *worker, const mica_weight *weight, const mica_svd_options *options,
                                  mica_error *error) {
    if (worker->workspace && worker->rows == weight->rows && worker->columns == weight->columns &&
        worker->options.count == options->count && worker->options.vectors == options->vectors &&
        worker->options.full_spectrum == options->full_spectrum)
        return MICA_OK;
    drop_workspace(context, worker);
    worker->rows = weight->rows;
    worker->columns = weight->columns;
    worker->options = *options;
    worker->options.check_count = true;
    worker->options.plan = NULL;
    worker->options.ask_plan = NULL;
    const bool large = above_share(context, worker);
    if (large)
        pthread_mutex_lock(&context->large);
    const mica_status status = mica_svd_workspace_create(weight->rows, weight->columns, &worker->options, &worker->workspace, error);
    if (status != MICA_OK) {
        worker->workspace = NULL;
        if (large)
            pthread_mutex_unlock(&context->large);
    }
    return status;
}

static void done_with_workspace(index_context *context, index_worker *worker) {
    if (worker->workspace && above_share(context, worker))
        drop_workspace(context, worker);
}

/* ---- statistics */

/* var@k of singular values relative to the Frobenius norm, so that no square overflows. */
static double variance(const double *values, uint32_t count, uint32_t rank, uint64_t side, uint32_t k, double frobenius) {
    if (!(frobenius > 0))
        return NAN; /* 0 / 0 */
    if (side <= k || rank < (k < count ? k : count))
        return 1.0;
    double scaled[MICA_INDEX_VAR_COUNT];
    const uint32_t used = k < count ? k : count;
    for (uint32_t i = 0; i < used; i++)
        scaled[i] = values[i] / frobenius;
    return mica_spectrum_var(scaled, used, k, 1.0);
}

bool mica_index_is_beyond(double value) {
    return isinf((float)value);
}

bool mica_index_is_below(double value) {
    return value > 0 && (float)value == 0;
}

/* Past the numerical rank a value is rounding, not worth a warning. */
static bool is_lost(const double *values, uint32_t index, uint32_t rank) {
    return mica_index_is_beyond(values[index]) || (index < rank && mica_index_is_below(values[index]));
}

static void fill_record(const mica_index_unit *unit, const mica_svd_result *svd, mica_index_record *record) {
    const uint64_t side = smaller_side(unit->weight);
    record->rank = svd->rank;
    record->count = svd->count;
    record->route = (uint32_t)svd->route;
    record->count_checked = svd->count_checked;
    record->basis = svd->basis;
    record->plan_degree = svd->plan.degree;
    record->plan_basis = svd->plan.basis;
    record->plan_bound = svd->plan.bound_over_trace;
    record->frobenius = svd->frobenius;
    record->sum_fourth = svd->sum_fourth;
    record->s0 = svd->count > 0 ? svd->values[0] : NAN;
    record->s1 = svd->count > 1 ? svd->values[1] : NAN;
    record->var8 = variance(svd->values, svd->count, svd->rank, side, 8, svd->frobenius);
    record->var64 = variance(svd->values, svd->count, svd->rank, side, MICA_INDEX_VAR_COUNT, svd->frobenius);
    record->effective_rank = unit->full && record->s0 > 0 ? mica_spectrum_effective_rank(svd->spectrum, side) : NAN;
    const double edge = svd->frobenius * mica_noise_edge(unit->weight->rows, unit->weight->columns, 1.0);
    record->above_edge = (uint32_t)mica_spectrum_count_above(unit->full ? svd->spectrum : svd->values, unit->full ? side : svd->count,
                                                             edge);
    record->residual = svd->residual;
    record->orthonormality = svd->orthonormality;
    record->value_error = svd->value_error;
    if (svd->why_dense)
        snprintf(record->why_dense, sizeof record->why_dense, "%s", svd->why_dense);
    for (uint32_t i = 0; i < svd->count; i++)
        record->value_count += unit->kind != MICA_INDEX_ROUTER && is_lost(svd->values, i, svd->rank);
    if (unit->kind == MICA_INDEX_ROUTER)
        record->value_count = (uint32_t)side;
}

/* ---- the stream's calls */

static uint32_t plan_unit(void *context, uint64_t number, mica_stream_range *ranges) {
    const mica_index_plan *plan = ((index_context *)context)->run->plan;
    const mica_tensor *tensors[MICA_INDEX_TENSORS_MAX];
    const uint32_t count = mica_index_unit_tensors(&plan->units[number], tensors);
    for (uint32_t i = 0; i < count; i++)
        ranges[i] = (mica_stream_range){mica_model_file(plan->model, tensors[i]), tensors[i]->offset, tensors[i]->bytes, tensors[i]->name};
    return count;
}

static uint64_t after_unit(void *context, uint64_t number) {
    return ((index_context *)context)->run->plan->units[number].after;
}

/* A weight's tensors and their bytes; NULL: it has none. */
typedef struct unit_parts {
    const mica_tensor *tensors[MICA_INDEX_TENSORS_MAX];
    const uint8_t *bytes[MICA_INDEX_TENSORS_MAX];
} unit_parts;

static unit_parts parts_of(const mica_weight *weight, const uint8_t *const *data) {
    unit_parts parts = {.tensors = {weight->data, weight->scale, weight->shape}};
    uint32_t next = 0;
    for (uint32_t i = 0; i < MICA_INDEX_TENSORS_MAX; i++)
        if (parts.tensors[i])
            parts.bytes[i] = data[next++];
    return parts;
}

static mica_status hash_two(const unit_parts parts[2], index_result *const results[2], mica_error *error) {
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < MICA_INDEX_TENSORS_MAX; i++) {
        const mica_tensor *const tensors[2] = {parts[0].tensors[i], parts[1].tensors[i]};
        if (tensors[0] && tensors[1]) {
            uint8_t digests[2][MICA_SHA256_BYTES];
            status = mica_tensor_digest_two(tensors, (const void *const[2]){parts[0].bytes[i], parts[1].bytes[i]}, digests, error);
            for (int k = 0; status == MICA_OK && k < 2; k++)
                memcpy(results[k]->record.digests[i], digests[k], sizeof digests[k]);
        } else if (tensors[0] || tensors[1]) {
            const int k = tensors[0] ? 0 : 1;
            status = mica_tensor_digest(tensors[k], parts[k].bytes[i], results[k]->record.digests[i], error);
        }
    }
    return status;
}

/* The hashes of one or two units. */
static mica_status prepare_units(void *opaque, uint32_t count, const uint64_t numbers[2], const uint8_t *const *const data[2],
                                 void *const memory[2], mica_error *error) {
    const mica_index_plan *plan = ((index_context *)opaque)->run->plan;
    const double begin = mica_seconds_now();
    index_result *const results[2] = {memory[0], memory[1]};
    unit_parts parts[2] = {{.tensors = {NULL}}, {.tensors = {NULL}}};
    for (uint32_t k = 0; k < count; k++) {
        memset(results[k], 0, sizeof *results[k]);
        results[k]->record.unit = numbers[k];
        parts[k] = parts_of(plan->units[numbers[k]].weight, data[k]);
    }
    const mica_status status = hash_two(parts, results, error);
    for (uint32_t k = 0; k < count; k++)
        results[k]->seconds = (mica_seconds_now() - begin) / count;
    return status;
}

/* Looks at every value, before any arithmetic. */
static mica_status examine_unit(const mica_index_run *run, const mica_index_unit *unit, const uint8_t *const *data, index_result *result,
                                mica_matrix *matrix, int *exponent, mica_error *error) {
    const mica_weight *weight = unit->weight;
    const unit_parts parts = parts_of(weight, data);
    mica_status status = mica_weight_matrix(run->plan->model, weight, parts.bytes[0], parts.bytes[1], parts.bytes[2], matrix, error);
    if (status != MICA_OK)
        return status;
    mica_matrix_health health;
    status = mica_weight_examine(run->plan->model, weight, matrix, &health, result->warning, sizeof result->warning, error);
    *exponent = status == MICA_OK ? health.exponent : 0;
    return status;
}

typedef struct lesson { /* the plan of the unit that this one comes after */
    index_context *context;
    uint64_t teacher;
    double waited_seconds;
} lesson;

static mica_status learn(void *opaque, mica_svd_plan *plan, mica_error *error) {
    lesson *asked = opaque;
    double waited = 0;
    const bool taught = mica_stream_await(asked->context->stream, asked->teacher, &waited);
    asked->waited_seconds += waited;
    if (!taught)
        return mica_fail(error, MICA_INTERRUPTED, "the matrix before was not decomposed");
    const mica_index_record *record = &asked->context->run->outcomes[asked->teacher].record;
    *plan = (mica_svd_plan){record->plan_degree, record->plan_basis, record->plan_bound};
    return MICA_OK;
}

typedef struct sharing { /* of one unit */
    index_context *context;
    void (*body)(void *body_context, uint64_t first, uint64_t last, uint32_t index);
    void *body_context;
    atomic_uint_fast64_t helped_nanoseconds;
} sharing;

static void take_part(void *opaque, uint64_t first, uint64_t last, uint32_t index) {
    sharing *shared = opaque;
    const double begin = mica_seconds_now();
    shared->body(shared->body_context, first, last, index);
    if (index > 0)
        atomic_fetch_add(&shared->helped_nanoseconds, (uint64_t)(1e9 * (mica_seconds_now() - begin)));
}

/* At the end, when threads have no unit left, they take part in one of those that others still work on. */
static void share(void *opaque, uint64_t count, void (*body)(void *body_context, uint64_t first, uint64_t last, uint32_t index),
                  void *body_context) {
    sharing *shared = opaque;
    index_context *context = shared->context;
    if (!context->helpers || mica_stream_idle(context->stream) == 0 || pthread_mutex_trylock(&context->helped) != 0) {
        body(body_context, 0, count, 0);
        return;
    }
    shared->body = body;
    shared->body_context = body_context;
    mica_pool_each(context->helpers, count, 1, take_part, shared);
    pthread_mutex_unlock(&context->helped);
}

static mica_status work_unit(void *opaque, uint32_t thread, uint64_t number, const uint8_t *const *data, void *memory, mica_error *error) {
    index_context *context = opaque;
    const mica_index_run *run = context->run;
    const mica_index_unit *unit = &run->plan->units[number];
    index_worker *worker = &context->workers[thread];
    index_result *result = memory;
    const double begin = mica_seconds_now();
    mica_svd_options options;
    mica_index_unit_svd(run->plan, unit, &options);
    lesson asked = {.context = context, .teacher = unit->after};
    if (unit->after != MICA_STREAM_NONE) {
        options.ask_plan = learn;
        options.ask_context = &asked;
    }
    sharing shared = {.context = context};
    options.share = (mica_share){share, &shared};
    mica_matrix matrix;
    int exponent;
    mica_status status = examine_unit(run, unit, data, result, &matrix, &exponent, error);
    if (status == MICA_OK)
        status = need_workspace(context, worker, unit->weight, &options, error);
    if (status != MICA_OK)
        return status;
    mica_svd_result svd = {.values = result_values(result)};
    if (options.full_spectrum)
        svd.spectrum = result_spectrum(result, &options);
    if (options.vectors)
        svd.vectors = result_vectors(result, &options, unit);
    const double svd_begin = mica_seconds_now();
    status = mica_svd(worker->workspace, &matrix, exponent, &options, &svd, error);
    result->helped_seconds = 1e-9 * (double)atomic_load(&shared.helped_nanoseconds);
    result->svd_seconds = mica_seconds_now() - svd_begin - asked.waited_seconds + result->helped_seconds;
    done_with_workspace(context, worker);
    if (status != MICA_OK)
        return mica_fail_context(error, status, "%s", unit->weight->name);
    fill_record(unit, &svd, &result->record);
    result->record.warning_bytes = (uint32_t)strlen(result->warning);
    result->seconds += mica_seconds_now() - begin - asked.waited_seconds + result->helped_seconds;
    return MICA_OK;
}

mica_status mica_index_outcome_take(mica_index_outcome *outcome, const mica_index_record *record, const double *values, const char *warning,
                                    mica_error *error) {
    outcome->record = *record;
    if (record->value_count > 0) {
        outcome->values = mica_calloc(record->value_count, sizeof *outcome->values);
        if (!outcome->values)
            return mica_fail(error, MICA_NO_MEMORY, "out of memory for singular values");
        memcpy(outcome->values, values, record->value_count * sizeof *values);
    }
    if (record->warning_bytes > 0) {
        outcome->warning = mica_strndup(warning, record->warning_bytes);
        if (!outcome->warning)
            return mica_fail(error, MICA_NO_MEMORY, "out of memory for a warning");
    }
    return MICA_OK;
}

static mica_status write_item(mica_index_run *run, const mica_index_unit *unit, mica_vindex_member member, const void *bytes,
                              mica_error *error) {
    const mica_vindex_layout *layout = &run->plan->layout;
    const uint64_t offset = mica_vindex_offset(layout, unit->group, member, unit->slot, unit->expert);
    const uint64_t length = mica_vindex_item_bytes(layout, unit->group, member);
    mica_running_hash *running = &run->hashes[unit->group][member];
    if (offset == running->bytes && running->hash.context) {
        mica_sha256_update(&running->hash, bytes, length);
        running->bytes += length;
    } else {
        mica_sha256_release(&running->hash);
    }
    return mica_file_write(run->files[unit->group][member], offset, bytes, length, error);
}

static mica_status write_unit(mica_index_run *run, const mica_index_unit *unit, index_result *result, mica_error *error) {
    mica_svd_options options;
    mica_index_unit_svd(run->plan, unit, &options);
    mica_status status = MICA_OK;
    if (unit->vectors) {
        const uint64_t features = run->plan->layout.group[unit->group].features;
        float *values = mica_calloc(features + 1, sizeof *values);
        if (!values)
            return mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu singular values", (unsigned long long)features);
        for (uint64_t i = 0; i < features; i++)
            values[i] = (float)result_values(result)[i];
        status = write_item(run, unit, MICA_VINDEX_VECTORS, result_vectors(result, &options, unit), error);
        if (status == MICA_OK)
            status = write_item(run, unit, MICA_VINDEX_VALUES, values, error);
        mica_free(values);
    }
    if (status == MICA_OK && unit->full && unit->kind != MICA_INDEX_ROUTER)
        status = write_item(run, unit, (mica_vindex_member)(MICA_VINDEX_FULL_GATE + unit->projection), result_spectrum(result, &options),
                            error);
    return status;
}

static mica_status commit_unit(void *opaque, uint64_t number, const void *memory, mica_error *error) {
    mica_index_run *run = ((index_context *)opaque)->run;
    const mica_index_unit *unit = &run->plan->units[number];
    index_result *result = (index_result *)(uintptr_t)memory;
    mica_svd_options options;
    mica_index_unit_svd(run->plan, unit, &options);
    mica_status status = run->units.journal ? write_unit(run, unit, result, error) : MICA_OK;
    double *values = unit->kind == MICA_INDEX_ROUTER ? result_spectrum(result, &options) : result_values(result);
    if (unit->kind != MICA_INDEX_ROUTER) /* written: only those that float32 lost are still wanted */
        for (uint32_t i = 0, kept = 0; i < result->record.count; i++)
            if (is_lost(values, i, result->record.rank))
                values[kept++] = values[i];
    if (status == MICA_OK)
        status = mica_index_outcome_take(&run->outcomes[number], &result->record, values, result->warning, error);
    if (status != MICA_OK)
        return status;
    run->unit_seconds[number] = result->seconds;
    run->svd_seconds += result->svd_seconds;
    run->work_seconds += result->helped_seconds;
    run->units.done = number + 1;
    if (run->units.journal &&
        (run->units.done - run->units.flushed >= FLUSH_UNITS || mica_seconds_now() - run->units.flushed_at >= FLUSH_SECONDS))
        status = mica_index_flush(run, error);
    return status;
}

static bool tell_progress(void *opaque, const mica_stream_progress *stream) {
    mica_index_run *run = ((index_context *)opaque)->run;
    if (run->stop_after > 0 && stream->seconds >= run->stop_after) {
        run->stopped = true;
        return false;
    }
    if (!run->options->progress)
        return true;
    const mica_progress progress = {.what = run->units.journal ? "indexing" : "timing",
                                    .units_done = run->units.done,
                                    .units_total = run->plan->unit_count,
                                    .bytes_done = run->bytes_resumed + stream->bytes_read,
                                    .bytes_total = run->plan->bytes_total,
                                    .seconds = stream->seconds,
                                    .seconds_left = stream->seconds_left};
    return run->options->progress(run->options->progress_context, &progress);
}

mica_status mica_index_work(mica_index_run *run, uint64_t end, mica_error *error) {
    index_context context = {.run = run,
                             .workers = mica_calloc(run->resources.threads, sizeof(index_worker)),
                             .large = PTHREAD_MUTEX_INITIALIZER,
                             .helped = PTHREAD_MUTEX_INITIALIZER};
    if (!context.workers)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %u threads", run->resources.threads);
    if (run->resources.threads > 1) {
        const mica_status created = mica_pool_create(run->resources.threads, &context.helpers, error);
        if (created != MICA_OK) {
            mica_free(context.workers);
            return created;
        }
    }
    const mica_stream_job job = {
        .context = &context,
        .eager = &context.stream,
        .first_unit = run->units.done,
        .unit_count = end,
        .threads = run->resources.threads,
        .readers = run->resources.readers,
        .ahead = run->resources.ahead,
        .unit_bytes_max = run->resources.unit_bytes_max,
        .result_bytes = run->resources.result_bytes,
        .plan = plan_unit,
        .after = after_unit,
        .prepare = prepare_units,
        .work = work_unit,
        .commit = commit_unit,
        .progress = tell_progress,
    };
    mica_stream_stats stats = {0};
    mica_status status = mica_stream_run(&job, &stats, error);
    for (uint32_t i = 0; i < run->resources.threads; i++)
        mica_svd_workspace_free(context.workers[i].workspace);
    mica_pool_free(context.helpers);
    pthread_mutex_destroy(&context.helped);
    pthread_mutex_destroy(&context.large);
    mica_free(context.workers);
    run->bytes_read += stats.bytes_read;
    run->seconds += stats.seconds;
    run->work_seconds += stats.work_seconds;
    run->starved_seconds += stats.starved_seconds;
    if (run->units.journal) { /* after a failure too: what is done stays done */
        const mica_status flushed = mica_index_flush(run, status == MICA_OK ? error : NULL);
        if (status == MICA_OK)
            status = flushed;
    }
    return status;
}
