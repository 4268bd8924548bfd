/* operations/export_safetensors.c: mica_export_safetensors: plan, then what is in the directory decides (start, resume, nothing to do,
 * refuse), then work, then the names. Judged by tests/operations/test_export_safetensors.c. */
#include "operations/export_safetensors.h"

#include <inttypes.h>
#include <string.h>

#include "base/memory.h"
#include "base/quantity.h"
#include "base/threads.h"
#include "formats/gguf.h"
#include "operations/output.h"

#define DEFAULT_MEMORY_BYTES ((uint64_t)1 << 30)
#define BASE_BYTES ((uint64_t)32 << 20) /* the program and its libraries */
#define PER_TENSOR_BYTES ((uint64_t)1024)
#define COPY_THREADS_MAX 4u /* copying is waiting: more would only hold memory */

/* Threads that fit the memory: each has an output; each, and each unit read ahead, a window. */
static mica_status fit_memory(mica_shards_run *run, mica_error *error) {
    const mica_shards_plan *plan = run->plan;
    const uint64_t bound = run->options->memory_bytes ? run->options->memory_bytes : DEFAULT_MEMORY_BYTES;
    const uint64_t fixed = BASE_BYTES + PER_TENSOR_BYTES * plan->source->tensor_count;
    const uint64_t worker = plan->output_bytes + (plan->output_bytes ? plan->strip_floats * sizeof(float) : 0);
    run->threads = run->options->threads ? run->options->threads : mica_thread_count_default();
    if (!plan->decodes && run->threads > COPY_THREADS_MAX)
        run->threads = COPY_THREADS_MAX;
    for (;; run->threads--) {
        run->readers = run->threads < 4 ? 2 : 4;
        run->ahead = run->readers;
        const uint64_t bytes = fixed + (run->threads + run->ahead) * plan->window_bytes + run->threads * worker;
        if (bytes <= bound)
            return MICA_OK;
        if (run->threads == 1)
            return mica_fail(error, MICA_USAGE, "--memory: expected at least %" PRIu64 "MiB for this checkpoint, got %" PRIu64 "MiB",
                             (bytes >> 20) + 1, bound >> 20);
    }
}

static mica_status run_in_directory(mica_shards_run *run, const char **outcome, mica_error *error) {
    bool finished = false;
    mica_status status = mica_shards_open(run, &finished, error);
    if (status != MICA_OK)
        return status;
    *outcome = finished ? "already finished" : run->units.resumed ? "resumed and finished" : "finished";
    if (finished)
        return MICA_OK;
    status = mica_shards_work(run, error);
    if (status == MICA_OK)
        return mica_shards_finish(run, error);
    if (mica_shards_flush(run, NULL) != MICA_OK) /* what was committed need not be done again */
        run->units.broken = true;                      /* the first failure is the one to tell */
    return status;
}

static mica_status run_plan(const mica_shards_plan *plan, const char *directory, const mica_export_safetensors_options *options,
                            char **text, char **json, mica_error *error) {
    mica_shards_run run = {.plan = plan, .options = options, .directory = directory, .lock = -1};
    const char *outcome = "dry run";
    mica_status status = fit_memory(&run, error);
    if (status == MICA_OK && !options->dry_run) {
        run.journal_path = mica_path_join(directory, MICA_EXPORT_JOURNAL);
        status = run.journal_path ? run_in_directory(&run, &outcome, error) : mica_fail(error, MICA_NO_MEMORY, "out of memory");
    }
    mica_shards_close(&run);
    if (status == MICA_OK)
        status = mica_shards_report(&run, outcome, text, json, error);
    mica_free(run.journal_path);
    return status;
}

static mica_status export_source(const mica_tensor_source *source, const mica_model *model, const char *directory,
                                 const mica_export_safetensors_options *options, char **text, char **json, mica_error *error) {
    mica_shards_plan plan;
    mica_status status = mica_shards_plan_make(source, model, options, &plan, error);
    if (status != MICA_OK)
        return status;
    status = run_plan(&plan, directory, options, text, json, error);
    mica_shards_plan_release(&plan);
    return status;
}

mica_status mica_export_safetensors(const char *checkpoint, const char *directory, const mica_export_safetensors_options *options,
                                    char **text, char **json, mica_error *error) {
    static const mica_export_safetensors_options none = {0};
    options = options ? options : &none;
    if (options->dtype && strcmp(options->dtype, "bf16") != 0 && strcmp(options->dtype, "f32") != 0)
        return mica_fail(error, MICA_USAGE, "--dtype: expected bf16 or f32, got '%s'", options->dtype);
    if (!directory && !options->dry_run)
        return mica_fail(error, MICA_USAGE, "expected --output DIR");
    mica_tensor_source *source = NULL;
    mica_model *model = NULL;
    mica_status status = mica_tensor_source_open(checkpoint, &source, error);
    if (status == MICA_OK && (options->dtype || mica_gguf_of_source(source))) {
        status = mica_model_open_source(source, NULL, &model, error);
        if (status == MICA_OK)
            status = export_source(model->source, model, directory, options, text, json, error);
        mica_model_close(model);
    } else if (status == MICA_OK) { /* nothing needs to be understood */
        status = export_source(source, NULL, directory, options, text, json, error);
        mica_tensor_source_close(source);
    }
    return status;
}

/* ---- the report */

static const char *plural(uint64_t count) {
    return count == 1 ? "" : "s";
}

static void write_text(const mica_shards_run *run, const char *outcome, mica_text *text) {
    const mica_shards_plan *plan = run->plan;
    const mica_safetensors_layout *layout = &plan->layout;
    char size[MICA_QUANTITY_BYTES];
    if (run->options->dry_run)
        mica_text_puts(text, "dry run: nothing is written\n");
    else
        mica_text_printf(text, "%s: %s\n", run->directory, outcome);
    mica_text_printf(text, "  tensors   %" PRIu64 ", %s in %" PRIu32 " file%s\n", layout->entry_count,
                     mica_bytes_show(layout->data_bytes, size), layout->shard_count, plural(layout->shard_count));
    if (plan->decodes && (plan->dtype_name || plan->converted_count > 0))
        mica_text_printf(text, "  %s      %" PRIu64 " weight%s decoded, %" PRIu64 " as stored; %" PRIu64 " scales and shapes left out\n",
                         plan->dtype == MICA_F32 ? "f32 " : "bf16", plan->converted_count, plural(plan->converted_count),
                         layout->entry_count - plan->converted_count, plan->dropped_count);
    mica_text_printf(text, "  files     %" PRIu64 " beside the tensors%s\n", plan->file_count,
                     plan->back ? ", made from the metadata" : plan->made_count > 0 ? ", config.json rewritten" : "");
    if (run->seconds > 0)
        mica_text_printf(text, "  time      %.2f s on %u thread%s, %.0f MB/s read; memory %.0f MB at most\n", run->seconds, run->threads,
                         plural(run->threads), (double)run->bytes_read * 1e-6 / run->seconds, (double)mica_memory_peak_bytes() * 1e-6);
    for (uint64_t i = 0; plan->model && i < plan->model->warning_count; i++)
        mica_text_printf(text, "warning: %s\n", plan->model->warnings[i]);
    if (plan->note)
        mica_text_printf(text, "warning: %s\n", plan->note);
}

static void write_shards(const mica_safetensors_layout *layout, mica_json_writer *writer) {
    char name[MICA_SHARD_NAME_BYTES];
    mica_json_open_array(writer, "shards");
    for (uint32_t i = 0; i < layout->shard_count; i++) {
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "name", mica_safetensors_shard_name(i, layout->shard_count, name));
        mica_json_u64(writer, "bytes", layout->file_bytes[i]);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static void write_json(const mica_shards_run *run, const char *outcome, mica_json_writer *writer) {
    const mica_shards_plan *plan = run->plan;
    mica_json_open_object(writer, NULL);
    mica_json_u64(writer, "schema", 1);
    mica_json_string(writer, "outcome", outcome);
    mica_json_string(writer, "format", "safetensors");
    mica_json_string(writer, "dtype", plan->dtype_name);
    mica_json_u64(writer, "tensors", plan->layout.entry_count);
    mica_json_u64(writer, "decoded", plan->converted_count);
    mica_json_u64(writer, "left_out", plan->dropped_count);
    mica_json_u64(writer, "data_bytes", plan->layout.data_bytes);
    write_shards(&plan->layout, writer);
    mica_json_open_row(writer, "files");
    for (uint64_t i = 0; i < plan->file_count; i++)
        mica_json_string(writer, NULL, plan->files[i]);
    mica_json_close_array(writer);
    mica_json_u64(writer, "units", plan->unit_count);
    mica_json_u64(writer, "units_resumed", run->units.resumed);
    mica_json_u64(writer, "threads", run->threads);
    mica_json_u64(writer, "bytes_read", run->bytes_read);
    mica_json_double(writer, "seconds", run->seconds);
    mica_json_double(writer, "starved_seconds", run->starved_seconds);
    mica_json_u64(writer, "memory_peak_bytes", mica_memory_peak_bytes());
    mica_json_open_array(writer, "warnings");
    for (uint64_t i = 0; plan->model && i < plan->model->warning_count; i++)
        mica_json_string(writer, NULL, plan->model->warnings[i]);
    if (plan->note)
        mica_json_string(writer, NULL, plan->note);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

mica_status mica_shards_report(const mica_shards_run *run, const char *outcome, char **text, char **json, mica_error *error) {
    mica_text lines = MICA_TEXT_INIT;
    mica_json_writer writer;
    write_text(run, outcome, &lines);
    mica_json_begin(&writer);
    write_json(run, outcome, &writer);
    return mica_output_give(MICA_OK, &lines, &writer, text, json, error);
}
