/* formats/safetensors_writer.c: the files of a layout while they are written, and their names at the end. Declared in safetensors_write.h.
 * Judged by tests/formats/test_safetensors_write.c and tests/faults/kill_export.sh. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "formats/safetensors_write.h"

struct mica_safetensors_writer {
    const mica_safetensors_layout *layout;
    char *directory;
    mica_file **files; /* [shard_count]; NULL: it has its name already */
};

/* "DIRECTORY/shard", or with ".partial" behind it; the caller's (mica_free). */
static char *shard_path(const mica_safetensors_writer *writer, uint32_t shard, bool partial) {
    char name[MICA_SHARD_NAME_BYTES + sizeof ".partial"];
    mica_safetensors_shard_name(shard, writer->layout->shard_count, name);
    if (partial)
        strcat(name, ".partial");
    return mica_path_join(writer->directory, name);
}

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the files of an export");
}

static mica_status open_file(mica_safetensors_writer *writer, uint32_t shard, bool fresh, mica_error *error) {
    const uint64_t bytes = writer->layout->file_bytes[shard];
    const mica_text *header = &writer->layout->headers[shard];
    char *partial = shard_path(writer, shard, true), *whole = shard_path(writer, shard, false);
    mica_status status = partial && whole ? MICA_OK : no_memory(error);
    mica_file **file = &writer->files[shard];
    if (status == MICA_OK && fresh) {
        status = mica_file_create(partial, file, error);
        if (status == MICA_OK)
            status = mica_file_truncate(*file, bytes, error);
        if (status == MICA_OK)
            status = mica_file_write(*file, 0, header->bytes, header->length, error);
    } else if (status == MICA_OK && (mica_path_exists(partial) || !mica_path_exists(whole))) {
        status = mica_file_open_update(partial, file, error);
        if (status == MICA_OK && mica_file_bytes(*file) != bytes)
            status = mica_fail(error, MICA_CONFLICT,
                               "%s: expected %" PRIu64 " bytes from the run before, got %" PRIu64 "; start afresh with --force", partial, bytes,
                               mica_file_bytes(*file));
    }
    mica_free(partial);
    mica_free(whole);
    return status;
}

mica_status mica_safetensors_writer_open(const char *directory, const mica_safetensors_layout *layout, bool fresh,
                                         mica_safetensors_writer **writer, mica_error *error) {
    mica_safetensors_writer *opened = mica_calloc(1, sizeof *opened);
    if (!opened)
        return no_memory(error);
    *opened = (mica_safetensors_writer){.layout = layout, .directory = mica_strdup(directory),
                                        .files = mica_calloc(layout->shard_count, sizeof *opened->files)};
    mica_status status = opened->directory && opened->files ? MICA_OK : no_memory(error);
    for (uint32_t i = 0; status == MICA_OK && i < layout->shard_count; i++)
        status = open_file(opened, i, fresh, error);
    if (status == MICA_OK && fresh)
        status = mica_directory_sync(directory, error);
    if (status == MICA_OK)
        *writer = opened;
    else
        mica_safetensors_writer_close(opened);
    return status;
}

mica_status mica_safetensors_writer_put(mica_safetensors_writer *writer, const mica_safetensors_entry *entry, uint64_t position,
                                        const void *bytes, uint64_t length, mica_error *error) {
    mica_file *file = writer->files[entry->shard];
    if (!file || position > entry->bytes || length > entry->bytes - position)
        return mica_fail(error, MICA_FAILED, "%s: expected bytes of an unfinished file within its %" PRIu64 ", got %" PRIu64 " at %" PRIu64,
                         entry->name, entry->bytes, length, position);
    return mica_file_write(file, entry->offset + position, bytes, length, error);
}

mica_status mica_safetensors_writer_sync(mica_safetensors_writer *writer, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < writer->layout->shard_count; i++)
        if (writer->files[i])
            status = mica_file_sync(writer->files[i], error);
    return status;
}

/* ---- the end */

static int compare_names(const void *a, const void *b) {
    return strcmp((*(const mica_safetensors_entry *const *)a)->name, (*(const mica_safetensors_entry *const *)b)->name);
}

/* As transformers writes it. */
static char *make_index(const mica_safetensors_layout *layout, const mica_safetensors_entry **order, uint64_t *length) {
    mica_json_writer json;
    char shard[MICA_SHARD_NAME_BYTES];
    mica_json_begin(&json);
    mica_json_open_object(&json, NULL);
    mica_json_open_object(&json, "metadata");
    mica_json_u64(&json, "total_size", layout->data_bytes);
    mica_json_close_object(&json);
    mica_json_open_object(&json, "weight_map");
    for (uint64_t i = 0; i < layout->entry_count; i++)
        mica_json_string(&json, order[i]->name, mica_safetensors_shard_name(order[i]->shard, layout->shard_count, shard));
    mica_json_close_object(&json);
    mica_json_close_object(&json);
    return mica_json_finish(&json, length);
}

static mica_status write_index(const mica_safetensors_writer *writer, mica_error *error) {
    const mica_safetensors_layout *layout = writer->layout;
    const mica_safetensors_entry **order = mica_calloc(layout->entry_count + 1, sizeof *order);
    char *path = mica_path_join(writer->directory, MICA_SAFETENSORS_INDEX), *json = NULL;
    uint64_t length = 0;
    if (order) {
        for (uint64_t i = 0; i < layout->entry_count; i++)
            order[i] = &layout->entries[i];
        qsort(order, layout->entry_count, sizeof *order, compare_names);
        json = make_index(layout, order, &length);
    }
    const mica_status status = path && json ? mica_file_replace(path, json, length, error) : no_memory(error);
    mica_free(json);
    mica_free(path);
    mica_free(order);
    return status;
}

static mica_status name_shard(mica_safetensors_writer *writer, uint32_t shard, mica_error *error) {
    mica_file *file = writer->files[shard];
    if (!file) /* an earlier run had come this far */
        return MICA_OK;
    writer->files[shard] = NULL;
    mica_status status = mica_file_close(file, error);
    char *partial = shard_path(writer, shard, true), *whole = shard_path(writer, shard, false);
    if (status == MICA_OK)
        status = partial && whole ? mica_file_rename(partial, whole, error) : no_memory(error);
    mica_free(partial);
    mica_free(whole);
    return status;
}

mica_status mica_safetensors_writer_finish(mica_safetensors_writer *writer, mica_error *error) {
    mica_status status = mica_safetensors_writer_sync(writer, error);
    for (uint32_t i = writer->layout->shard_count; status == MICA_OK && i-- > 0;)
        status = name_shard(writer, i, error);
    if (status == MICA_OK && writer->layout->shard_count > 1)
        status = write_index(writer, error);
    mica_safetensors_writer_close(writer);
    return status;
}

void mica_safetensors_writer_close(mica_safetensors_writer *writer) {
    if (!writer)
        return;
    for (uint32_t i = 0; writer->files && i < writer->layout->shard_count; i++)
        (void)mica_file_close(writer->files[i], NULL);
    mica_free(writer->files);
    mica_free(writer->directory);
    mica_free(writer);
}
