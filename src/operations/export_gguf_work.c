/* operations/export_gguf_work.c: the stream's calls for an export: which bytes a unit reads, its conversion, its place in the file. Every
 * unit is written by the thread that made it, at an offset known beforehand; commit only counts. Judged by
 * tests/operations/test_export_gguf.c. */
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "operations/export_gguf.h"
#include "operations/stream.h"

#define FLUSH_BYTES ((uint64_t)1 << 30)
#define FLUSH_SECONDS 3.0

typedef struct export_result {
    double seconds;
    uint64_t bytes, inexact;
} export_result;

typedef struct export_context {
    mica_export_run *run;
    mica_export_converter **converters; /* [threads] */
    uint8_t **outputs;                  /* [threads][output_bytes_max] */
    uint64_t flushed_bytes, written_bytes;
} export_context;

static mica_export_unit unit_of(const export_context *context, uint64_t number) {
    const mica_export_run *run = context->run;
    return mica_export_unit_at(run->plan, run->order ? run->order[number] : number);
}

static uint64_t ceil_divide(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

static uint32_t plan_unit(void *opaque, uint64_t number, mica_stream_range *ranges) {
    const export_context *context = opaque;
    const mica_model *model = context->run->plan->model;
    const mica_export_unit unit = unit_of(context, number);
    const mica_weight *weight = unit.weight;
    uint32_t count = 0;
    if (!weight)
        return 0;
    const uint64_t row_bytes = weight->rows ? weight->data->bytes / weight->rows : 0;
    ranges[count++] = (mica_stream_range){mica_model_file(model, weight->data), weight->data->offset + unit.source_row * row_bytes,
                                          unit.source_rows * row_bytes, weight->data->name};
    if (weight->scale) {
        const uint64_t scale_rows = weight->scale->shape[0], scale_bytes = scale_rows ? weight->scale->bytes / scale_rows : 0;
        const uint64_t first = unit.source_row / weight->block_rows,
                       end = ceil_divide(unit.source_row + unit.source_rows, weight->block_rows);
        ranges[count++] = (mica_stream_range){mica_model_file(model, weight->scale), weight->scale->offset + first * scale_bytes,
                                              (end - first) * scale_bytes, weight->scale->name};
    }
    if (weight->shape)
        ranges[count++] = (mica_stream_range){mica_model_file(model, weight->shape), weight->shape->offset, weight->shape->bytes,
                                              weight->shape->name};
    return count;
}

static mica_status work_unit(void *opaque, uint32_t thread, uint64_t number, const uint8_t *const *data, void *memory, mica_error *error) {
    const export_context *context = opaque;
    const mica_export_run *run = context->run;
    const mica_export_unit unit = unit_of(context, number);
    export_result *result = memory;
    const double begin = mica_thread_seconds_now();
    uint64_t inexact = 0;
    mica_status status = mica_export_convert(context->converters[thread], &unit, data, context->outputs[thread], &inexact, error);
    if (status == MICA_OK && run->writer)
        status = mica_gguf_writer_put(run->writer, &run->layout.tensors[unit.tensor - run->plan->tensors], unit.position,
                                      context->outputs[thread], unit.bytes, error);
    *result = (export_result){mica_thread_seconds_now() - begin, unit.bytes, inexact};
    return status;
}

static mica_status commit_unit(void *opaque, uint64_t number, const void *memory, mica_error *error) {
    export_context *context = opaque;
    mica_export_run *run = context->run;
    const export_result *result = memory;
    run->units.done = number + 1;
    context->written_bytes += result->bytes;
    run->inexact[unit_of(context, number).tensor - run->plan->tensors] += result->inexact;
    if (run->unit_seconds)
        run->unit_seconds[number] = result->seconds;
    if (!run->units.journal ||
        (context->written_bytes - context->flushed_bytes < FLUSH_BYTES && mica_seconds_now() - run->units.flushed_at < FLUSH_SECONDS))
        return MICA_OK;
    context->flushed_bytes = context->written_bytes;
    return mica_export_files_flush(run, error);
}

static bool tell_progress(void *opaque, const mica_stream_progress *stream) {
    const mica_export_run *run = ((export_context *)opaque)->run;
    if (!run->options->progress)
        return true;
    const mica_progress progress = {.what = "exporting",
                                    .units_done = stream->units_done,
                                    .units_total = stream->units_total,
                                    .bytes_done = stream->bytes_read,
                                    .bytes_total = 0,
                                    .seconds = stream->seconds,
                                    .seconds_left = stream->seconds_left};
    return run->options->progress(run->options->progress_context, &progress);
}

static void release(export_context *context) {
    for (uint32_t i = 0; i < context->run->threads; i++) {
        if (context->converters)
            mica_export_converter_free(context->converters[i]);
        if (context->outputs)
            mica_free(context->outputs[i]);
    }
    mica_free(context->converters);
    mica_free(context->outputs);
}

static mica_status prepare(export_context *context, mica_error *error) {
    const mica_export_run *run = context->run;
    const uint64_t bytes = mica_export_output_bytes_max(run->plan);
    mica_status status = MICA_OK;
    context->converters = mica_calloc(run->threads, sizeof *context->converters);
    context->outputs = mica_calloc(run->threads, sizeof *context->outputs);
    if (!context->converters || !context->outputs)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %u threads", run->threads);
    for (uint32_t i = 0; status == MICA_OK && i < run->threads; i++) {
        context->outputs[i] = mica_malloc(bytes + 1);
        status = context->outputs[i]
                     ? mica_export_converter_create(run->plan, &context->converters[i], error)
                     : mica_fail(error, MICA_NO_MEMORY, "out of memory for a unit of %llu bytes", (unsigned long long)bytes);
    }
    return status;
}

static uint64_t window_bytes(export_context *context, uint64_t number) {
    mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
    const uint32_t count = plan_unit(context, number, ranges);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++)
        bytes += mica_file_window_bytes(ranges[i].bytes);
    return bytes;
}

mica_status mica_export_work(mica_export_run *run, uint64_t end, mica_error *error) {
    export_context context = {.run = run};
    uint64_t most = 0;
    /* a unit that reads from a block of scales further up reads at most a block more than the first of its tensor */
    for (uint64_t i = 0; i < (run->order ? end : run->plan->tensor_count); i++) {
        const uint64_t first = run->order ? i : run->plan->tensors[i].first_unit;
        const uint64_t count = run->order ? 1 : run->plan->tensors[i].matrices;
        for (uint64_t matrix = 0; matrix < count; matrix++) {
            const uint64_t bytes = window_bytes(&context, first + matrix * (run->order ? 0 : run->plan->tensors[i].slabs));
            most = bytes > most ? bytes : most;
        }
    }
    mica_status status = prepare(&context, error);
    mica_stream_stats stats = {0};
    if (status == MICA_OK && run->units.done < end) {
        const mica_stream_job job = {.context = &context,
                                     .first_unit = run->units.done,
                                     .unit_count = end,
                                     .threads = run->threads,
                                     .readers = run->readers,
                                     .ahead = run->ahead,
                                     .unit_bytes_max = most,
                                     .result_bytes = sizeof(export_result),
                                     .plan = plan_unit,
                                     .work = work_unit,
                                     .commit = commit_unit,
                                     .progress = tell_progress};
        status = mica_stream_run(&job, &stats, error);
    }
    run->bytes_read += stats.bytes_read;
    run->seconds += stats.seconds;
    run->work_seconds += stats.work_seconds;
    run->starved_seconds += stats.starved_seconds;
    release(&context);
    return status;
}
