/* operations/export_gguf_files.c: the files while they are written: PATH.journal beside the writer's partial files (formats/gguf_write).
 * Invariants: 1. the journal stands before a partial file is made; 2. a unit is recorded only after its bytes were synced; 3. the journal
 * goes when every file has its name. What a kill leaves is what --resume takes up.
 * Judged by tests/operations/test_export_gguf.c and tests/faults/kill_export_gguf.sh. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"
#include "operations/export_gguf.h"
#include "operations/source_identity.h"

#define RECORD_PROGRESS 1u
#define BUSY "another export is being written there"

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory");
}

void mica_export_files_close(mica_export_run *run) {
    mica_gguf_writer_close(run->writer);
    run->writer = NULL;
    mica_journal_close(run->units.journal);
    run->units.journal = NULL;
    mica_path_unlock(run->lock);
    run->lock = -1;
}

/* ---- the journal's head */

static void write_tensors(mica_json_writer *writer, const mica_gguf_layout *layout) {
    mica_json_open_array(writer, "tensors");
    for (uint64_t i = 0; i < layout->tensor_count; i++) {
        mica_json_open_row(writer, NULL);
        mica_json_string(writer, NULL, layout->tensors[i].name);
        mica_json_string(writer, NULL, mica_dtype_name(layout->tensors[i].dtype));
        mica_json_u64(writer, NULL, layout->tensors[i].shard);
        mica_json_u64(writer, NULL, layout->tensors[i].offset);
        mica_json_close_array(writer);
    }
    mica_json_close_array(writer);
}

static void write_importance(mica_json_writer *writer, const mica_imatrix *imatrix) {
    struct stat status;
    if (!imatrix || stat(mica_file_path(imatrix->file), &status) != 0) {
        mica_json_null(writer, "imatrix");
        return;
    }
    mica_json_open_row(writer, "imatrix"); /* bytes, seconds, nanoseconds of its time */
    mica_json_u64(writer, NULL, mica_file_bytes(imatrix->file));
    mica_json_u64(writer, NULL, (uint64_t)status.st_mtim.tv_sec);
    mica_json_u64(writer, NULL, (uint64_t)status.st_mtim.tv_nsec);
    mica_json_close_array(writer);
}

static mica_status describe(const mica_export_run *run, char **json, uint64_t *length, mica_error *error) {
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "format", "mica-export-gguf");
    mica_json_u64(&writer, "format_version", 1);
    mica_json_open_object(&writer, "options");
    mica_json_string(&writer, "type", mica_mixture_name(run->plan->mixture));
    mica_json_string(&writer, "effort", mica_effort_name(run->plan->effort));
    write_importance(&writer, run->plan->imatrix);
    mica_json_bool(&writer, "covariance", mica_export_plan_covariance_columns(run->plan) > 0);
    mica_json_u64(&writer, "slab_bytes", MICA_EXPORT_SLAB_BYTES);
    mica_json_u64(&writer, "units", run->plan->unit_count);
    mica_json_close_object(&writer);
    mica_status status = mica_source_write_identity(&writer, run->plan->model->source, error);
    mica_source_write_shards(&writer, run->plan->model->source);
    write_tensors(&writer, &run->layout);
    mica_json_close_object(&writer);
    *json = mica_json_finish(&writer, length);
    if (status == MICA_OK && !*json)
        status = no_memory(error);
    return status;
}

/* ---- starting */

mica_status mica_export_files_start(mica_export_run *run, mica_error *error) {
    char *head = NULL;
    uint64_t length = 0;
    mica_status status = describe(run, &head, &length, error);
    if (status == MICA_OK)
        status = mica_journal_create_locked(run->journal_path, BUSY, head, length, &run->units.journal, &run->lock, error);
    if (status == MICA_OK)
        status = mica_gguf_writer_open(run->path, &run->layout, true, &run->writer, error);
    mica_unit_journal_begin(&run->units);
    mica_free(head);
    return status;
}

/* How many units are done, and what was not exact so far: pairs of tensor and count, so that the report of a resumed run is whole. */
static mica_status append_progress(const mica_export_run *run, mica_error *error) {
    mica_text payload = MICA_TEXT_INIT;
    mica_text_append(&payload, (const char *)&run->units.done, sizeof run->units.done);
    for (uint64_t i = 0; i < run->plan->tensor_count; i++) {
        const uint64_t pair[2] = {i, run->inexact[i]};
        if (run->inexact[i] > 0)
            mica_text_append(&payload, (const char *)pair, sizeof pair);
    }
    const mica_status status = mica_text_failed(&payload)
                                   ? no_memory(error)
                                   : mica_journal_append(run->units.journal, RECORD_PROGRESS, payload.bytes, payload.length, error);
    mica_text_release(&payload);
    return status;
}

static mica_status record_units(void *context, mica_error *error) {
    const mica_export_run *run = context;
    const mica_status status = mica_gguf_writer_sync(run->writer, error);
    return status == MICA_OK ? append_progress(run, error) : status;
}

mica_status mica_export_files_flush(mica_export_run *run, mica_error *error) {
    return mica_unit_journal_flush(&run->units, record_units, run, error);
}

/* ---- resuming */

static mica_status visit_progress(mica_export_run *run, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    uint64_t pair[2];
    bool sound = bytes >= sizeof run->units.done && (bytes - sizeof run->units.done) % sizeof pair == 0;
    if (sound)
        memcpy(&run->units.done, payload, sizeof run->units.done);
    for (uint64_t at = sizeof run->units.done; sound && at < bytes; at += sizeof pair) {
        memcpy(pair, payload + at, sizeof pair);
        sound = pair[0] < run->plan->tensor_count;
        if (sound)
            run->inexact[pair[0]] = pair[1];
    }
    if (sound && run->units.done <= run->plan->unit_count)
        return MICA_OK;
    return mica_fail(error, MICA_CORRUPT, "%s: expected at most %llu units, got a record of %llu bytes that says otherwise",
                     run->journal_path, (unsigned long long)run->plan->unit_count, (unsigned long long)bytes);
}

static mica_status visit_record(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    mica_export_run *run = context;
    if (kind == RECORD_PROGRESS)
        return visit_progress(run, payload, bytes, error);
    return mica_fail(error, MICA_CORRUPT, "%s: a record of kind %u is not one of this format", run->journal_path, kind);
}

mica_status mica_export_files_resume(mica_export_run *run, mica_error *error) {
    char *head = NULL;
    uint64_t length = 0;
    mica_status status = mica_path_lock(run->journal_path, BUSY, &run->lock, error);
    if (status == MICA_OK)
        status = describe(run, &head, &length, error);
    if (status == MICA_OK)
        status = mica_job_journal_open(run->journal_path, head, length, visit_record, run, &run->units.journal, error);
    mica_free(head);
    if (status != MICA_OK)
        return status;
    mica_unit_journal_begin(&run->units);
    return mica_gguf_writer_open(run->path, &run->layout, run->units.done == 0, &run->writer, error);
}

/* ---- the end */

mica_status mica_export_files_finish(mica_export_run *run, mica_error *error) {
    mica_status status = mica_export_files_flush(run, error);
    if (status == MICA_OK) {
        status = mica_gguf_writer_finish(run->writer, error);
        run->writer = NULL;
    }
    if (status != MICA_OK)
        return status;
    mica_export_files_close(run);
    return mica_file_remove(run->journal_path, error);
}

/* ---- a finished export */

static mica_status check_file(const char *path, const mica_text *header, uint64_t bytes, mica_error *error) {
    mica_file *file = NULL;
    char *got = mica_malloc(header->length);
    mica_status status = got ? mica_file_open(path, false, &file, error) : no_memory(error);
    if (status == MICA_OK && mica_file_bytes(file) != bytes)
        status = mica_fail(error, MICA_CONFLICT,
                           "%s: is there already, of another job: expected %llu bytes, got %llu; replace it with --force", path,
                           (unsigned long long)bytes, (unsigned long long)mica_file_bytes(file));
    if (status == MICA_OK)
        status = mica_file_read(file, 0, got, header->length, error);
    if (status == MICA_OK && memcmp(got, header->bytes, header->length) != 0)
        status = mica_fail(error, MICA_CONFLICT,
                           "%s: is there already, of another job: other keys, tensors or types; replace it with --force", path);
    (void)mica_file_close(file, NULL);
    mica_free(got);
    return status;
}

mica_status mica_export_files_check(mica_export_run *run, mica_error *error) {
    const mica_gguf_layout *layout = &run->layout;
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < layout->shard_count; i++) {
        char *path = mica_gguf_file_path(run->path, i, layout->shard_count);
        status = path ? check_file(path, &layout->headers[i], layout->file_bytes[i], error) : no_memory(error);
        mica_free(path);
    }
    run->units.resumed = run->plan->unit_count;
    return status;
}
