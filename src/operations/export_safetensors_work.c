/* operations/export_safetensors_work.c: the stream's calls: a unit is copied as it was read, or decoded strip by strip and rounded; the
 * thread that made it writes it, at a place known beforehand; commit only counts. Judged by tests/operations/test_export_safetensors.c. */
#include "base/clock.h"
#include "base/memory.h"
#include "numerics/encode.h"
#include "operations/export_safetensors.h"

#define FLUSH_BYTES ((uint64_t)1 << 30)
#define FLUSH_SECONDS 3.0
#define FLUSH_UNITS 256u

typedef struct export_worker {
    uint8_t *output; /* [plan->output_bytes] */
    float *strip;    /* [plan->strip_floats] */
} export_worker;

typedef struct export_context {
    mica_shards_run *run;
    export_worker *workers; /* [threads] */
    uint64_t written, flushed;
} export_context;

static uint32_t plan_unit(void *opaque, uint64_t number, mica_stream_range *ranges) {
    const mica_shards_plan *plan = ((export_context *)opaque)->run->plan;
    const mica_shards_unit unit = mica_shards_unit_at(plan, number);
    return mica_shards_unit_ranges(plan, &unit, ranges);
}

/* To BF16 (or F32) by way of float32, to nearest even: a value that is stored in more bits is rounded twice (F64, which no published model
 * has). */
static mica_status decode_unit(const mica_shards_plan *plan, const mica_shards_unit *unit, const uint8_t *const *data,
                               export_worker *worker, mica_error *error) {
    const mica_dtype dtype = unit->item->entry->dtype;
    mica_matrix matrix;
    if (unit->item->heads)
        return mica_shards_convert_head(plan, unit, data, worker->strip, worker->output, error);
    const mica_status status = mica_slab_matrix(plan->model, unit->item->weight, &unit->slab, data, &matrix, error);
    if (status != MICA_OK)
        return status;
    for (mica_slab strip = {0}; mica_strip_next(&matrix, &strip);) {
        mica_strip_decode(&matrix, &strip, worker->strip);
        (void)mica_encode_plain(dtype, worker->strip, strip.rows * strip.columns,
                                worker->output + (strip.row * matrix.columns + strip.column) * mica_dtype_bytes(dtype));
    }
    return MICA_OK;
}

static mica_status work_unit(void *opaque, uint32_t thread, uint64_t number, const uint8_t *const *data, void *result, mica_error *error) {
    export_context *context = opaque;
    const mica_shards_run *run = context->run;
    const mica_shards_unit unit = mica_shards_unit_at(run->plan, number);
    export_worker *worker = &context->workers[thread];
    const void *bytes = data[0];
    *(uint64_t *)result = unit.bytes;
    if (unit.item->weight) {
        const mica_status status = decode_unit(run->plan, &unit, data, worker, error);
        if (status != MICA_OK)
            return status;
        bytes = worker->output;
    }
    return mica_safetensors_writer_put(run->writer, unit.item->entry, unit.position, bytes, unit.bytes, error);
}

static mica_status commit_unit(void *opaque, uint64_t number, const void *result, mica_error *error) {
    export_context *context = opaque;
    mica_shards_run *run = context->run;
    run->units.done = number + 1;
    context->written += *(const uint64_t *)result;
    if (context->written - context->flushed < FLUSH_BYTES && run->units.done - run->units.flushed < FLUSH_UNITS &&
        mica_seconds_now() - run->units.flushed_at < FLUSH_SECONDS)
        return MICA_OK;
    context->flushed = context->written;
    return mica_shards_flush(run, error);
}

static bool tell(void *opaque, const mica_stream_progress *stream) {
    const mica_export_safetensors_options *options = ((export_context *)opaque)->run->options;
    const mica_progress told = {.what = "exporting",
                                .units_done = stream->units_done,
                                .units_total = stream->units_total,
                                .bytes_done = stream->bytes_read,
                                .seconds = stream->seconds,
                                .seconds_left = stream->seconds_left};
    return options->progress(options->progress_context, &told);
}

static mica_status make_workers(export_context *context, mica_error *error) {
    const mica_shards_run *run = context->run;
    context->workers = mica_calloc(run->threads, sizeof *context->workers);
    bool made = context->workers != NULL;
    for (uint32_t i = 0; made && run->plan->output_bytes > 0 && i < run->threads; i++) {
        context->workers[i].output = mica_alloc_aligned(run->plan->output_bytes);
        context->workers[i].strip = mica_alloc_aligned(run->plan->strip_floats * sizeof(float));
        made = context->workers[i].output && context->workers[i].strip;
    }
    return made ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for %u threads", run->threads);
}

static void free_workers(export_context *context) {
    for (uint32_t i = 0; context->workers && i < context->run->threads; i++) {
        mica_free_aligned(context->workers[i].output);
        mica_free_aligned(context->workers[i].strip);
    }
    mica_free(context->workers);
}

mica_status mica_shards_work(mica_shards_run *run, mica_error *error) {
    export_context context = {.run = run};
    const mica_stream_job job = {.context = &context,
                                 .first_unit = run->units.done,
                                 .unit_count = run->plan->unit_count,
                                 .threads = run->threads,
                                 .readers = run->readers,
                                 .ahead = run->ahead,
                                 .unit_bytes_max = run->plan->window_bytes,
                                 .result_bytes = sizeof(uint64_t),
                                 .plan = plan_unit,
                                 .work = work_unit,
                                 .commit = commit_unit,
                                 .progress = run->options->progress ? tell : NULL};
    mica_stream_stats stats = {0};
    mica_status status = make_workers(&context, error);
    if (status == MICA_OK && run->units.done < run->plan->unit_count)
        status = mica_stream_run(&job, &stats, error);
    run->bytes_read = stats.bytes_read;
    run->seconds = stats.seconds;
    run->starved_seconds = stats.starved_seconds;
    free_workers(&context);
    return status;
}
