/* operations/index_journal.c: the directory while it is being filled: the lock, journal.mica, the .bin files, and going on after a kill.
 * Invariants: 1. journal.mica stands before any other file is made or removed; 2. a unit's record reaches the journal only after its
 * values were synced; 3. no file is removed that a vindex does not have. Judged by test_index_resume.c, tests/faults/kill_resume.sh. */
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "operations/index.h"
#include "operations/source_identity.h"
#include "operations/stream.h"

#define RECORD_UNIT 1u
#define FINISHED_SAMPLE_BYTES (1ull << 30) /* read of the source before a vindex is called finished */

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory");
}

/* One run at a time in a directory; a killed one leaves no lock. */
static mica_status lock_directory(mica_index_run *run, mica_error *error) {
    return run->lock >= 0 ? MICA_OK : mica_path_lock(run->directory, "another index is being written there", &run->lock, error);
}

void mica_index_close(mica_index_run *run) {
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++)
        for (int member = 0; member < MICA_VINDEX_MEMBER_COUNT; member++) {
            (void)mica_file_close(run->files[group][member], NULL);
            run->files[group][member] = NULL;
            mica_sha256_release(&run->hashes[group][member].hash);
        }
    mica_journal_close(run->units.journal);
    run->units.journal = NULL;
    mica_path_unlock(run->lock);
    run->lock = -1;
}

/* ---- .bin files */

typedef mica_status (*file_action)(mica_index_run *run, const char *path, mica_vindex_group group, mica_vindex_member member,
                                   mica_error *error);

static mica_status create_file(mica_index_run *run, const char *path, mica_vindex_group group, mica_vindex_member member,
                               mica_error *error) {
    mica_status status = mica_file_create(path, &run->files[group][member], error);
    if (status == MICA_OK)
        status = mica_sha256_init(&run->hashes[group][member].hash, error);
    if (status != MICA_OK)
        return status;
    return mica_file_truncate(run->files[group][member], mica_vindex_file_bytes(&run->plan->layout, group, member), error);
}

static mica_status reopen_file(mica_index_run *run, const char *path, mica_vindex_group group, mica_vindex_member member,
                               mica_error *error) {
    const uint64_t expected = mica_vindex_file_bytes(&run->plan->layout, group, member);
    if (!mica_path_exists(path))
        return mica_fail(error, MICA_CONFLICT, "%s: expected %llu bytes from the run before, the file is gone; start afresh with --force",
                         path, (unsigned long long)expected);
    const mica_status status = mica_file_open_update(path, &run->files[group][member], error);
    if (status != MICA_OK)
        return status;
    const uint64_t got = mica_file_bytes(run->files[group][member]);
    if (got == expected)
        return MICA_OK;
    return mica_fail(error, MICA_CONFLICT, "%s: expected %llu bytes from the run before, got %llu; start afresh with --force", path,
                     (unsigned long long)expected, (unsigned long long)got);
}

static mica_status each_file(mica_index_run *run, file_action action, mica_error *error) {
    mica_status status = MICA_OK;
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++)
        for (int member = 0; status == MICA_OK && member < MICA_VINDEX_MEMBER_COUNT; member++) {
            if (!mica_vindex_has_file(&run->plan->layout, (mica_vindex_group)group, (mica_vindex_member)member))
                continue;
            char *path = mica_path_join(run->directory, mica_vindex_file_name((mica_vindex_group)group, (mica_vindex_member)member));
            status = path ? action(run, path, (mica_vindex_group)group, (mica_vindex_member)member, error) : no_memory(error);
            mica_free(path);
        }
    return status;
}

/* Their names are durable before any record speaks of them. */
static mica_status create_files(mica_index_run *run, mica_error *error) {
    const mica_status status = each_file(run, create_file, error);
    return status == MICA_OK ? mica_directory_sync(run->directory, error) : status;
}

/* ---- starting */

static mica_status remove_name(const char *directory, const char *name, mica_error *error) {
    mica_text path = MICA_TEXT_INIT;
    mica_text_printf(&path, "%s/%s", directory, name);
    mica_status status = mica_text_failed(&path) ? no_memory(error) : mica_file_remove(path.bytes, error);
    mica_text_puts(&path, ".partial");
    if (status == MICA_OK)
        status = mica_text_failed(&path) ? no_memory(error) : mica_file_remove(path.bytes, error);
    mica_text_release(&path);
    return status;
}

static mica_status remove_known(const char *directory, mica_error *error) {
    mica_status status = MICA_OK;
    const char *name;
    for (uint64_t i = 0; status == MICA_OK && (name = mica_vindex_known_name(i)) != NULL; i++)
        status = remove_name(directory, name, error);
    char *source = mica_path_join(directory, MICA_VINDEX_SOURCE);
    if (!source)
        return no_memory(error);
    if (mica_path_is_directory(source))
        for (uint64_t i = 0; status == MICA_OK && (name = mica_vindex_source_name(i)) != NULL; i++)
            status = remove_name(source, name, error);
    mica_free(source);
    return status;
}

mica_status mica_index_start(mica_index_run *run, mica_error *error) {
    char *head = NULL, *path = mica_path_join(run->directory, MICA_VINDEX_JOURNAL);
    uint64_t length = 0;
    mica_status status = path ? mica_directory_create(run->directory, error) : no_memory(error);
    if (status == MICA_OK)
        status = lock_directory(run, error);
    if (status == MICA_OK)
        status = mica_index_identity(run->plan, &head, &length, error);
    if (status == MICA_OK)
        status = mica_journal_create(path, head, length, &run->units.journal, error);
    if (status == MICA_OK)
        status = remove_known(run->directory, error);
    if (status == MICA_OK)
        status = create_files(run, error);
    mica_unit_journal_begin(&run->units);
    mica_free(head);
    mica_free(path);
    return status;
}

/* ---- records */

static mica_status append_record(mica_index_run *run, const mica_index_outcome *outcome, mica_error *error) {
    const mica_index_record *record = &outcome->record;
    mica_text payload = MICA_TEXT_INIT;
    mica_text_append(&payload, (const char *)record, sizeof *record);
    if (record->value_count > 0)
        mica_text_append(&payload, (const char *)outcome->values, record->value_count * sizeof(double));
    if (record->warning_bytes > 0)
        mica_text_append(&payload, outcome->warning, record->warning_bytes);
    const mica_status status = mica_text_failed(&payload)
                                   ? no_memory(error)
                                   : mica_journal_append(run->units.journal, RECORD_UNIT, payload.bytes, payload.length, error);
    mica_text_release(&payload);
    return status;
}

static mica_status record_units(void *context, mica_error *error) {
    mica_index_run *run = context;
    mica_status status = MICA_OK;
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++)
        for (int member = 0; status == MICA_OK && member < MICA_VINDEX_MEMBER_COUNT; member++)
            if (run->files[group][member])
                status = mica_file_sync(run->files[group][member], error);
    for (uint64_t unit = run->units.flushed; status == MICA_OK && unit < run->units.done; unit++)
        status = append_record(run, &run->outcomes[unit], error);
    return status;
}

mica_status mica_index_flush(mica_index_run *run, mica_error *error) {
    return mica_unit_journal_flush(&run->units, record_units, run, error);
}

/* ---- resuming */

typedef struct replay {
    mica_index_run *run;
    const char *path;
    json_t *today, *recorded;
} replay;

static mica_status visit_unit(replay *context, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    mica_index_run *run = context->run;
    mica_index_record record;
    if (bytes < sizeof record)
        return mica_fail(error, MICA_CORRUPT, "%s: record %llu: expected at least %zu bytes, got %llu", context->path,
                         (unsigned long long)run->units.done, sizeof record, (unsigned long long)bytes);
    memcpy(&record, payload, sizeof record);
    if (record.unit != run->units.done || record.unit >= run->plan->unit_count ||
        bytes != sizeof record + record.value_count * sizeof(double) + record.warning_bytes)
        return mica_fail(error, MICA_CORRUPT, "%s: expected unit %llu of %llu, got unit %llu in %llu bytes", context->path,
                         (unsigned long long)run->units.done, (unsigned long long)run->plan->unit_count, (unsigned long long)record.unit,
                         (unsigned long long)bytes);
    record.why_dense[sizeof record.why_dense - 1] = '\0';
    double *values = mica_calloc(record.value_count + 1, sizeof *values);
    if (!values)
        return no_memory(error);
    memcpy(values, payload + sizeof record, record.value_count * sizeof *values);
    const char *warning = (const char *)payload + sizeof record + record.value_count * sizeof *values;
    const mica_status status = mica_index_outcome_take(&run->outcomes[record.unit], &record, values, warning, error);
    mica_free(values);
    if (status != MICA_OK)
        return status;
    const mica_tensor *tensors[MICA_INDEX_TENSORS_MAX];
    const uint32_t count = mica_index_unit_tensors(&run->plan->units[record.unit], tensors);
    for (uint32_t i = 0; i < count; i++)
        run->bytes_resumed += tensors[i]->bytes;
    run->units.done++;
    return MICA_OK;
}

static mica_status visit_record(void *opaque, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    replay *context = opaque;
    if (kind == RECORD_UNIT)
        return visit_unit(context, payload, bytes, error);
    if (kind != MICA_JOURNAL_HEAD)
        return mica_fail(error, MICA_CORRUPT, "%s: a record of kind %u is not one of this format", context->path, kind);
    const mica_status status = mica_json_parse(context->path, (const char *)payload, bytes, &context->recorded, error);
    if (status != MICA_OK)
        return status;
    return mica_identity_compare(context->path, context->recorded, context->today, false, error);
}

static mica_status check_tensor(const replay *context, const mica_tensor *tensor, const uint8_t recorded[MICA_SHA256_BYTES],
                                mica_error *error) {
    void *bytes = mica_malloc(tensor->bytes + 1);
    if (!bytes)
        return no_memory(error);
    uint8_t digest[MICA_SHA256_BYTES];
    mica_status status = mica_file_read(mica_model_file(context->run->plan->model, tensor), tensor->offset, bytes, tensor->bytes, error);
    if (status == MICA_OK)
        status = mica_tensor_digest(tensor, bytes, digest, error);
    mica_free(bytes);
    if (status != MICA_OK || memcmp(digest, recorded, sizeof digest) == 0)
        return status;
    char was[MICA_SHA256_HEX_BYTES], is[MICA_SHA256_HEX_BYTES];
    mica_sha256_hex(recorded, was);
    mica_sha256_hex(digest, is);
    return mica_fail(error, MICA_CONFLICT,
                     "%s: another source: tensor %s was %.16s…, today's is %.16s…; resume with the same, or start afresh with --force",
                     context->path, tensor->name, was, is);
}

/* The shards' names, sizes or times are not those of the journal: perhaps a copy. What was read so far decides. */
static mica_status check_tensors(const replay *context, mica_error *error) {
    if (json_equal(json_object_get(context->recorded, "shards"), json_object_get(context->today, "shards")))
        return MICA_OK;
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < context->run->units.done; i++) {
        const mica_weight *weight = context->run->plan->units[i].weight;
        const mica_tensor *const tensors[MICA_INDEX_TENSORS_MAX] = {weight->data, weight->scale, weight->shape};
        for (uint32_t t = 0; status == MICA_OK && t < MICA_INDEX_TENSORS_MAX; t++)
            if (tensors[t])
                status = check_tensor(context, tensors[t], context->run->outcomes[i].record.digests[t], error);
    }
    return status;
}

mica_status mica_index_resume(mica_index_run *run, mica_error *error) {
    char *head = NULL, *path = mica_path_join(run->directory, MICA_VINDEX_JOURNAL);
    uint64_t length = 0;
    replay context = {.run = run, .path = path};
    mica_status status = path ? lock_directory(run, error) : no_memory(error);
    if (status == MICA_OK)
        status = mica_index_identity(run->plan, &head, &length, error);
    if (status == MICA_OK) {
        status = mica_json_parse("today's job", head, length, &context.today, error);
        mica_free(head);
    }
    if (status == MICA_OK)
        status = mica_journal_open(path, visit_record, &context, &run->units.journal, error);
    if (status == MICA_OK)
        status = check_tensors(&context, error);
    json_decref(context.today);
    json_decref(context.recorded);
    mica_free(path);
    if (status != MICA_OK)
        return status;
    mica_unit_journal_begin(&run->units);
    if (run->units.done > 0)
        return each_file(run, reopen_file, error);
    status = remove_known(run->directory, error); /* killed while starting */
    return status == MICA_OK ? create_files(run, error) : status;
}

/* ---- a finished vindex */

/* Every file is there in its size; their bytes are verify's to read. */
static mica_status check_sizes(const char *directory, mica_error *error) {
    mica_vindex_file *files;
    uint64_t count;
    mica_status status = mica_vindex_checksums_load(directory, &files, &count, error);
    if (status != MICA_OK)
        return status;
    for (uint64_t i = 0; status == MICA_OK && i < count; i++) {
        char *path = mica_path_join(directory, files[i].name);
        mica_file *file = NULL;
        status = path ? mica_file_open(path, false, &file, error) : no_memory(error);
        if (status == MICA_OK && mica_file_bytes(file) != files[i].bytes)
            status = mica_fail(error, MICA_CORRUPT, "%s: expected %llu bytes, got %llu; start afresh with --force", path,
                               (unsigned long long)files[i].bytes, (unsigned long long)mica_file_bytes(file));
        (void)mica_file_close(file, NULL);
        mica_free(path);
    }
    mica_vindex_files_free(files, count);
    return status;
}

/* Two models may have one structure (a base model and its fine-tune): what the first matrices of the layers hold tells them apart. */
static mica_status check_content(mica_index_run *run, mica_error *error) {
    char *path = mica_path_join(run->directory, MICA_VINDEX_TENSORS);
    json_t *recorded = NULL;
    mica_status status = path ? mica_json_load(path, MICA_VINDEX_JSON_LIMIT, &recorded, error) : no_memory(error);
    const replay context = {.run = run, .path = path};
    uint64_t bytes = 0;
    for (uint64_t i = 0; status == MICA_OK && i < run->plan->unit_count && bytes < FINISHED_SAMPLE_BYTES; i++) {
        const mica_index_unit *unit = &run->plan->units[i];
        if (unit->after != MICA_STREAM_NONE || unit->kind == MICA_INDEX_ROUTER)
            continue;
        const mica_tensor *tensor = unit->weight->data;
        const char *hex = json_string_value(json_object_get(json_object_get(json_object_get(recorded, "tensors"), tensor->name), "sha256"));
        uint8_t digest[MICA_SHA256_BYTES];
        if (!hex || mica_sha256_parse_hex(hex, digest) != 1)
            status = mica_fail(error, MICA_CORRUPT, "%s: tensors: %s: expected its sha256, got none", path, tensor->name);
        else
            status = check_tensor(&context, tensor, digest, error);
        bytes += tensor->bytes;
    }
    json_decref(recorded);
    mica_free(path);
    return status;
}

mica_status mica_index_check_finished(mica_index_run *run, mica_error *error) {
    char *head = NULL, *path = mica_path_join(run->directory, MICA_VINDEX_CONFIG);
    uint64_t length = 0;
    json_t *recorded = NULL, *today = NULL;
    mica_status status = path ? mica_json_load(path, MICA_VINDEX_JSON_LIMIT, &recorded, error) : no_memory(error);
    if (status == MICA_OK)
        status = mica_index_identity(run->plan, &head, &length, error);
    if (status == MICA_OK) {
        status = mica_json_parse("today's job", head, length, &today, error);
        mica_free(head);
    }
    if (status == MICA_OK) {
        json_object_del(today, "arithmetic"); /* what is finished needs no more of it */
        status = mica_identity_compare(path, recorded, today, false, error);
    }
    json_decref(recorded);
    json_decref(today);
    mica_free(path);
    if (status == MICA_OK)
        status = check_sizes(run->directory, error);
    return status == MICA_OK ? check_content(run, error) : status;
}
