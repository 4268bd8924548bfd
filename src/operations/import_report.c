/* operations/import_report.c: what an import did. Judged by tests/operations/test_import.c against docs/schemas/import.schema.json. */
#include <inttypes.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/quantity.h"
#include "operations/import.h"
#include "operations/output.h"

#define SCHEMA 1

static void write_text(mica_text *text, const mica_import_run *run) {
    char all[MICA_QUANTITY_BYTES], added[MICA_QUANTITY_BYTES], shared[MICA_QUANTITY_BYTES], peak[MICA_QUANTITY_BYTES];
    mica_text_printf(text, "%s#%s: %s\n", mica_store_path(run->store), run->name,
                     run->finished_before ? "was imported before" : "imported");
    mica_text_printf(text, "  tensors   %" PRIu64 ", %s", run->plan.item_count, mica_bytes_show(run->plan.bytes, all));
    if (run->done_before)
        mica_text_printf(text, "; %" PRIu64 " of them before", run->done_before);
    mica_text_puts(text, "\n");
    if (!run->finished_before) {
        mica_text_printf(text, "  new       %" PRIu64 ", %s%s\n", run->new_tensors, mica_bytes_show(run->new_bytes, added),
                         run->options->link ? ", which stay in the checkpoint's files" : "");
        mica_text_printf(text, "  shared    %" PRIu64 ", %s that were there already\n", run->shared_tensors,
                         mica_bytes_show(run->shared_bytes, shared));
        mica_text_printf(text, "  files     %" PRIu64 " kept verbatim", run->files);
        if (run->skipped_files)
            mica_text_printf(text, ", %" PRIu64 " left out: too large", run->skipped_files);
        mica_text_printf(text, "\n  time      %.2f s on %" PRIu32 " threads\n", run->seconds, run->threads);
        mica_text_printf(text, "  memory    %s at most\n", mica_bytes_show(mica_memory_peak_bytes(), peak));
    }
    if (run->not_understood[0])
        mica_text_printf(text, "  not understood as a model, kept as plain tensors: %s\n", run->not_understood);
}

static void write_json(mica_json_writer *writer, const mica_import_run *run) {
    mica_json_begin(writer);
    mica_json_open_object(writer, NULL);
    mica_json_u64(writer, "schema", SCHEMA);
    mica_json_string(writer, "store", mica_store_path(run->store));
    mica_json_string(writer, "name", run->name);
    mica_json_string(writer, "checkpoint", run->checkpoint);
    mica_json_bool(writer, "finished_before", run->finished_before);
    mica_json_bool(writer, "linked", run->options->link);
    mica_json_u64(writer, "tensors", run->plan.item_count);
    mica_json_u64(writer, "bytes", run->plan.bytes);
    mica_json_u64(writer, "tensors_done_before", run->done_before);
    mica_json_u64(writer, "new_tensors", run->new_tensors);
    mica_json_u64(writer, "new_bytes", run->new_bytes);
    mica_json_u64(writer, "shared_tensors", run->shared_tensors);
    mica_json_u64(writer, "shared_bytes", run->shared_bytes);
    mica_json_u64(writer, "files", run->files);
    mica_json_u64(writer, "files_left_out", run->skipped_files);
    mica_json_u64(writer, "bytes_read", run->bytes_read);
    mica_json_double(writer, "seconds", run->seconds);
    mica_json_double(writer, "starved_seconds", run->starved_seconds);
    mica_json_u64(writer, "threads", run->threads);
    mica_json_u64(writer, "peak_bytes", mica_memory_peak_bytes());
    mica_json_string(writer, "not_understood", run->not_understood[0] ? run->not_understood : NULL);
    mica_json_close_object(writer);
}

mica_status mica_import_report(mica_status status, const mica_import_run *run, char **text, char **json, mica_error *error) {
    mica_text words = MICA_TEXT_INIT;
    mica_json_writer writer;
    write_text(&words, run);
    write_json(&writer, run);
    return mica_output_give(status, &words, &writer, text, json, error);
}
