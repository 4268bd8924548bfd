/* operations/export_safetensors_files.c: the directory of an export while it is filled: the lock, journal.mica, what was there before, and
 * the end.
 * Invariants: 1. the journal stands before any other file is made or removed; 2. units are recorded only after their bytes were synced; 3.
 * what a reader opens first gets its name when everything else is there; 4. no file is removed that an export of this checkpoint does not
 * have, and none that is the source's own. What a kill leaves is what --resume takes up.
 * Judged by tests/operations/test_export_safetensors.c and tests/faults/kill_export_safetensors.sh. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "operations/export_safetensors.h"
#include "operations/source_identity.h"

#define RECORD_UNITS 1u
#define PARTIAL ".partial"
#define FILE_BYTES_MAX ((uint64_t)256 << 20) /* of one of the files beside the tensors */

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the files of an export");
}

void mica_shards_close(mica_shards_run *run) {
    mica_safetensors_writer_close(run->writer);
    run->writer = NULL;
    mica_journal_close(run->units.journal);
    run->units.journal = NULL;
    mica_path_unlock(run->lock);
    run->lock = -1;
}

/* ---- what the directory holds */

/* The name itself, or with ".partial" behind it. */
static bool is_named(const char *name, const char *wanted) {
    const size_t length = strlen(wanted);
    return strncmp(name, wanted, length) == 0 && (name[length] == '\0' || strcmp(name + length, PARTIAL) == 0);
}

static bool is_ours(const mica_shards_plan *plan, const char *name) {
    if (mica_safetensors_is_written_name(name) || is_named(name, MICA_EXPORT_JOURNAL))
        return true;
    for (uint64_t i = 0; i < plan->file_count; i++)
        if (is_named(name, plan->files[i]))
            return true;
    return false;
}

static mica_status refuse_foreign(const mica_shards_run *run, const char *name, mica_error *error) {
    return mica_fail(error, MICA_CONFLICT, "%s: expected nothing, an empty directory or an export, got %s as well; it is left as it is",
                     run->directory, name);
}

/* An export over its own source would destroy it, whatever links lead there. */
static mica_status check_not_source(const mica_shards_run *run, const char *path, mica_error *error) {
    const mica_tensor_source *source = run->plan->source;
    for (uint32_t i = 0; i < source->shard_count; i++) {
        if (mica_path_is_same(path, mica_file_path(source->shards[i].file)))
            return mica_fail(error, MICA_CONFLICT, "%s: expected another directory than the checkpoint's, got its own %s", run->directory,
                             source->shards[i].name);
    }
    return MICA_OK;
}

typedef struct directory_state {
    uint64_t count; /* of names, but for the journal's: killed at once, a run leaves journal.mica.partial alone */
    bool journal;
} directory_state;

static mica_status look(const mica_shards_run *run, char **names, uint64_t count, directory_state *state, mica_error *error) {
    mica_status status = MICA_OK;
    *state = (directory_state){0};
    for (uint64_t i = 0; status == MICA_OK && i < count; i++) {
        char *path = mica_path_join(run->directory, names[i]);
        state->journal = state->journal || strcmp(names[i], MICA_EXPORT_JOURNAL) == 0;
        state->count += !is_named(names[i], MICA_EXPORT_JOURNAL);
        status = path ? check_not_source(run, path, error) : no_memory(error);
        mica_free(path);
    }
    for (uint64_t i = 0; status == MICA_OK && i < count; i++)
        if (!is_ours(run->plan, names[i]))
            status = refuse_foreign(run, names[i], error);
    return status;
}

/* All but the journal. */
static mica_status remove_names(const mica_shards_run *run, char **names, uint64_t count, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < count; i++) {
        if (strcmp(names[i], MICA_EXPORT_JOURNAL) == 0)
            continue;
        char *path = mica_path_join(run->directory, names[i]);
        status = path ? mica_file_remove(path, error) : no_memory(error);
        mica_free(path);
    }
    return status == MICA_OK ? mica_directory_sync(run->directory, error) : status;
}

/* ---- the journal */

static mica_status describe(const mica_shards_run *run, char **json, uint64_t *length, mica_error *error) {
    const mica_shards_plan *plan = run->plan;
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "format", "mica-export-safetensors");
    mica_json_u64(&writer, "format_version", 1);
    mica_json_open_object(&writer, "options");
    mica_json_string(&writer, "dtype", plan->dtype_name);
    mica_json_u64(&writer, "shard_bytes", plan->shard_bytes);
    mica_json_u64(&writer, "units", plan->unit_count);
    mica_json_close_object(&writer);
    const mica_status status = mica_source_write_identity(&writer, plan->source, error);
    mica_source_write_shards(&writer, plan->source);
    mica_json_close_object(&writer);
    *json = mica_json_finish(&writer, length);
    return status == MICA_OK && !*json ? no_memory(error) : status;
}

static mica_status visit_record(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    mica_shards_run *run = context;
    if (kind == RECORD_UNITS && bytes == sizeof run->units.done) {
        memcpy(&run->units.done, payload, sizeof run->units.done);
        if (run->units.done <= run->plan->unit_count)
            return MICA_OK;
    }
    return mica_fail(error, MICA_CORRUPT, "%s: a record of kind %u is not one of this format", run->journal_path, kind);
}

static mica_status open_journal(mica_shards_run *run, mica_error *error) {
    char *head = NULL;
    uint64_t length = 0;
    mica_status status = describe(run, &head, &length, error);
    if (status == MICA_OK)
        status = mica_job_journal_open(run->journal_path, head, length, visit_record, run, &run->units.journal, error);
    mica_free(head);
    return status;
}

static mica_status create_journal(mica_shards_run *run, mica_error *error) {
    char *head = NULL;
    uint64_t length = 0;
    mica_status status = describe(run, &head, &length, error);
    if (status == MICA_OK)
        status = mica_journal_create(run->journal_path, head, length, &run->units.journal, error);
    mica_free(head);
    return status;
}

static mica_status record_units(void *context, mica_error *error) {
    const mica_shards_run *run = context;
    const mica_status status = mica_safetensors_writer_sync(run->writer, error);
    return status == MICA_OK ? mica_journal_append(run->units.journal, RECORD_UNITS, &run->units.done, sizeof run->units.done, error)
                             : status;
}

mica_status mica_shards_flush(mica_shards_run *run, mica_error *error) {
    return mica_unit_journal_flush(&run->units, record_units, run, error);
}

/* ---- a finished one */

static mica_status check_shard(const mica_shards_run *run, uint32_t shard, mica_error *error) {
    const mica_safetensors_layout *layout = &run->plan->layout;
    const mica_text *header = &layout->headers[shard];
    char name[MICA_SHARD_NAME_BYTES];
    char *path = mica_path_join(run->directory, mica_safetensors_shard_name(shard, layout->shard_count, name));
    char *bytes = mica_malloc(header->length);
    mica_file *file = NULL;
    mica_status status = path && bytes ? MICA_OK : no_memory(error);
    if (status == MICA_OK && !mica_path_exists(path))
        status = mica_fail(error, MICA_CONFLICT, "%s: expected it of a finished export of this job, got absent; start afresh with --force",
                           path);
    if (status == MICA_OK)
        status = mica_file_open(path, false, &file, error);
    bool same = status == MICA_OK && mica_file_bytes(file) == layout->file_bytes[shard];
    if (same)
        status = mica_file_read(file, 0, bytes, header->length, error);
    if (status == MICA_OK && (!same || memcmp(bytes, header->bytes, header->length) != 0))
        status = mica_fail(error, MICA_CONFLICT, "%s: expected the header of this export, got another's; start afresh with --force", path);
    (void)mica_file_close(file, NULL);
    mica_free(bytes);
    mica_free(path);
    return status;
}

static mica_status check_finished(const mica_shards_run *run, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < run->plan->layout.shard_count; i++)
        status = check_shard(run, i, error);
    return status;
}

/* ---- the beginning */

static mica_status start_files(mica_shards_run *run, mica_error *error) {
    mica_unit_journal_begin(&run->units);
    return mica_safetensors_writer_open(run->directory, &run->plan->layout, run->units.done == 0, &run->writer, error);
}

static mica_status begin(mica_shards_run *run, char **names, uint64_t count, const directory_state *state, bool *finished,
                         mica_error *error) {
    const bool resume = run->options->resume, force = run->options->force;
    *finished = state->count > 0 && !state->journal && resume;
    if (*finished)
        return check_finished(run, error);
    if (state->journal && !resume && !force)
        return mica_fail(error, MICA_CONFLICT, "%s: an unfinished export is there; go on with --resume, or start afresh with --force",
                         run->directory);
    if (state->count > 0 && !state->journal && !force)
        return mica_fail(error, MICA_CONFLICT, "%s: something is there already; replace it with --force", run->directory);
    mica_status status = state->journal && resume ? open_journal(run, error) : create_journal(run, error);
    if (status == MICA_OK && run->units.done == 0 && run->plan->unit_count > 0)
        status = remove_names(run, names, count, error);
    return status == MICA_OK ? start_files(run, error) : status;
}

mica_status mica_shards_open(mica_shards_run *run, bool *finished, mica_error *error) {
    char **names = NULL;
    uint64_t count = 0;
    directory_state state;
    if (run->options->resume && run->options->force)
        return mica_fail(error, MICA_USAGE, "--resume and --force: expected one of them");
    mica_status status = mica_directory_create(run->directory, error);
    if (status == MICA_OK)
        status = mica_path_lock(run->directory, "another export is being written there", &run->lock, error);
    if (status == MICA_OK)
        status = mica_directory_list(run->directory, &names, &count, error);
    if (status == MICA_OK)
        status = look(run, names, count, &state, error);
    if (status == MICA_OK)
        status = begin(run, names, count, &state, finished, error);
    mica_directory_names_free(names, count);
    return status;
}

/* ---- the end */

static mica_status write_file(const mica_shards_run *run, const char *name, mica_error *error) {
    const mica_shards_plan *plan = run->plan;
    char *path = mica_path_join(run->directory, name), *loaded = NULL;
    const char *bytes = NULL;
    uint64_t length = 0;
    mica_status status = path ? MICA_OK : no_memory(error);
    for (uint32_t i = 0; i < plan->made_count; i++)
        if (strcmp(plan->made[i].name, name) == 0) {
            bytes = plan->made[i].bytes;
            length = plan->made[i].length;
        }
    if (status == MICA_OK && !bytes) {
        status = mica_tensor_source_load(plan->source, name, FILE_BYTES_MAX, &loaded, &length, error);
        bytes = loaded;
    }
    if (status == MICA_OK)
        status = mica_file_replace(path, bytes, length, error);
    mica_free(loaded);
    mica_free(path);
    return status;
}

mica_status mica_shards_finish(mica_shards_run *run, mica_error *error) {
    mica_status status = mica_shards_flush(run, error);
    for (uint64_t i = 0; status == MICA_OK && i < run->plan->file_count; i++)
        status = write_file(run, run->plan->files[i], error);
    if (status != MICA_OK)
        return status;
    mica_safetensors_writer *writer = run->writer;
    run->writer = NULL;
    status = mica_safetensors_writer_finish(writer, error);
    if (status == MICA_OK)
        status = mica_file_remove(run->journal_path, error);
    return status == MICA_OK ? mica_directory_sync(run->directory, error) : status;
}
