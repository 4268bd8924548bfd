/* operations/index_finish.c: the last part of `mica index`: the source's small files, the JSON files, checksums.json, and the end of the
 * journal. Every step may be repeated after a kill and gives the same bytes. A .bin file that was not written in order, or not by this run
 * alone, is read once more for its checksum. Judged by test_index_resume.c, tests/faults/kill_resume.sh, test_vindex_verify.c. */
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "operations/index.h"
#include "operations/vindex_report.h"

#define SOURCE_FILE_LIMIT (256ull << 20)

typedef struct file_list {
    mica_vindex_file *files;
    uint64_t count, capacity;
} file_list;

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory");
}

/* A new entry of the list, its checksum still to be filled in. */
static mica_status append(file_list *list, const char *name, mica_vindex_file **file, mica_error *error) {
    if (list->count == list->capacity) {
        const uint64_t capacity = 2 * list->capacity + 32;
        mica_vindex_file *grown = mica_reallocarray(list->files, capacity, sizeof *grown);
        if (!grown)
            return no_memory(error);
        list->files = grown;
        list->capacity = capacity;
    }
    *file = &list->files[list->count];
    **file = (mica_vindex_file){.name = mica_strdup(name)};
    if (!(*file)->name)
        return no_memory(error);
    list->count++;
    return MICA_OK;
}

/* Hashes a file that stands in the directory and puts it on the list. */
static mica_status add_file(const mica_index_run *run, const char *name, file_list *list, mica_error *error) {
    mica_vindex_file *file = NULL;
    mica_status status = append(list, name, &file, error);
    char *path = status == MICA_OK ? mica_path_join(run->directory, name) : NULL;
    if (status == MICA_OK)
        status = path ? mica_sha256_of_file(path, file->sha256, &file->bytes, error) : no_memory(error);
    mica_free(path);
    return status;
}

static mica_status copy_source_file(const mica_index_run *run, const char *name, file_list *list, mica_error *error) {
    mica_text local = MICA_TEXT_INIT;
    mica_text_printf(&local, "%s/%s", MICA_VINDEX_SOURCE, name);
    char *to = mica_text_failed(&local) ? NULL : mica_path_join(run->directory, local.bytes), *bytes = NULL;
    uint64_t length;
    mica_status status =
        to ? mica_tensor_source_load(run->plan->model->source, name, SOURCE_FILE_LIMIT, &bytes, &length, error) : no_memory(error);
    if (status == MICA_OK)
        status = mica_file_replace(to, bytes, length, error);
    if (status == MICA_OK)
        status = add_file(run, local.bytes, list, error);
    mica_free(bytes);
    mica_free(to);
    mica_text_release(&local);
    return status;
}

static mica_status copy_source(const mica_index_run *run, file_list *list, mica_error *error) {
    char *directory = mica_path_join(run->directory, MICA_VINDEX_SOURCE);
    if (!directory)
        return no_memory(error);
    mica_status status = mica_directory_create(directory, error);
    mica_free(directory);
    const char *name;
    for (uint64_t i = 0; status == MICA_OK && (name = mica_vindex_source_name(i)) != NULL; i++) {
        if (mica_tensor_source_has_file(run->plan->model->source, name))
            status = copy_source_file(run, name, list, error);
    }
    return status;
}

static mica_status write_json(const mica_index_run *run, const char *name, mica_report_writer write, file_list *list, mica_error *error) {
    const mica_report report = {run->plan, run->outcomes};
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_status status = write(&report, &writer, error);
    uint64_t length = 0;
    char *text = mica_json_finish(&writer, &length), *path = mica_path_join(run->directory, name);
    if (status == MICA_OK && (!text || !path))
        status = no_memory(error);
    if (status == MICA_OK)
        status = mica_file_replace(path, text, length, error);
    if (status == MICA_OK)
        status = add_file(run, name, list, error);
    mica_free(path);
    mica_free(text);
    return status;
}

static mica_status write_all_json(const mica_index_run *run, file_list *list, mica_error *error) {
    static const struct {
        const char *name;
        mica_report_writer write;
    } files[] = {
        {MICA_VINDEX_INDEX, mica_report_index},           {MICA_VINDEX_PHASE1, mica_report_phase1},
        {MICA_VINDEX_PHASE1_AGG, mica_report_phase1_agg}, {MICA_VINDEX_PHASE2, mica_report_phase2},
        {MICA_VINDEX_CONFIG, mica_report_config},         {MICA_VINDEX_TENSORS, mica_report_tensors},
    };
    mica_status status = MICA_OK;
    for (size_t i = 0; status == MICA_OK && i < sizeof files / sizeof files[0]; i++)
        status = write_json(run, files[i].name, files[i].write, list, error);
    return status;
}

static mica_status add_binary(mica_index_run *run, mica_vindex_group group, mica_vindex_member member, file_list *list,
                              mica_error *error) {
    const char *name = mica_vindex_file_name(group, member);
    mica_running_hash *running = &run->hashes[group][member];
    if (!running->hash.context || running->bytes != mica_vindex_file_bytes(&run->plan->layout, group, member))
        return add_file(run, name, list, error);
    mica_vindex_file *file = NULL;
    mica_status status = append(list, name, &file, error);
    if (status == MICA_OK) {
        mica_sha256_final(&running->hash, file->sha256);
        file->bytes = running->bytes;
    }
    return status;
}

static mica_status list_binaries(mica_index_run *run, file_list *list, mica_error *error) {
    mica_status status = MICA_OK;
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++)
        for (int member = 0; status == MICA_OK && member < MICA_VINDEX_MEMBER_COUNT; member++)
            if (mica_vindex_has_file(&run->plan->layout, (mica_vindex_group)group, (mica_vindex_member)member))
                status = add_binary(run, (mica_vindex_group)group, (mica_vindex_member)member, list, error);
    return status;
}

static mica_status write_checksums(const mica_index_run *run, const file_list *list, mica_error *error) {
    char *text = NULL, *path = mica_path_join(run->directory, MICA_VINDEX_CHECKSUMS);
    uint64_t length = 0;
    mica_status status = path ? mica_vindex_checksums_write(list->files, list->count, &text, &length, error) : no_memory(error);
    if (status == MICA_OK)
        status = mica_file_replace(path, text, length, error);
    mica_free(text);
    mica_free(path);
    return status;
}

static mica_status remove_journal(mica_index_run *run, mica_error *error) {
    mica_journal_close(run->units.journal);
    run->units.journal = NULL;
    char *path = mica_path_join(run->directory, MICA_VINDEX_JOURNAL);
    if (!path)
        return no_memory(error);
    const mica_status status = mica_file_remove(path, error);
    mica_free(path);
    return status == MICA_OK ? mica_directory_sync(run->directory, error) : status;
}

mica_status mica_index_finish(mica_index_run *run, mica_error *error) {
    file_list list = {NULL, 0, 0};
    mica_status status = list_binaries(run, &list, error);
    if (status == MICA_OK)
        status = write_all_json(run, &list, error);
    if (status == MICA_OK)
        status = copy_source(run, &list, error);
    if (status == MICA_OK)
        status = write_checksums(run, &list, error);
    if (status == MICA_OK)
        status = remove_journal(run, error);
    mica_vindex_files_free(list.files, list.count);
    return status;
}

/* ---- --hash-source */

static mica_status hash_line(const char *directory, const char *name, mica_text *text, mica_error *error) {
    char *path = mica_path_join(directory, name), hex[MICA_SHA256_HEX_BYTES];
    if (!path)
        return no_memory(error);
    uint8_t digest[MICA_SHA256_BYTES];
    uint64_t bytes;
    mica_status status = MICA_OK;
    if (mica_path_exists(path)) {
        status = mica_sha256_of_file(path, digest, &bytes, error);
        if (status == MICA_OK) {
            mica_sha256_hex(digest, hex);
            mica_text_printf(text, "%s  %s\n", hex, name);
        }
    }
    mica_free(path);
    return status;
}

/* Beside the vindex, not in it: which shards a model is cut into is no part of the artefact. */
mica_status mica_index_hash_source(const mica_index_run *run, mica_error *error) {
    const mica_tensor_source *source = run->plan->model->source;
    mica_text text = MICA_TEXT_INIT, beside = MICA_TEXT_INIT;
    const char *name;
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < source->shard_count; i++)
        status = hash_line(source->directory, source->shards[i].name, &text, error);
    if (status == MICA_OK && source->kind->has_files)
        status = hash_line(source->directory, "model.safetensors.index.json", &text, error);
    for (uint64_t i = 0; source->kind->has_files && status == MICA_OK && (name = mica_vindex_source_name(i)) != NULL; i++)
        status = hash_line(source->directory, name, &text, error);
    size_t length = strlen(run->directory);
    while (length > 1 && run->directory[length - 1] == '/')
        length--;
    mica_text_printf(&beside, "%.*s.source.sha256", (int)length, run->directory);
    if (status == MICA_OK && (mica_text_failed(&text) || mica_text_failed(&beside)))
        status = no_memory(error);
    if (status == MICA_OK)
        status = mica_file_replace(beside.bytes, text.bytes, text.length, error);
    char *inside = source->kind->has_files ? mica_path_join(source->directory, "mica.sha256") : NULL; /* a directory of its own */
    if (status == MICA_OK && inside && mica_file_replace(inside, text.bytes, text.length, NULL) != MICA_OK) {
        /* A read-only checkpoint is fine: the hashes stand beside the vindex. */
    }
    mica_free(inside);
    mica_text_release(&beside);
    mica_text_release(&text);
    return status;
}
