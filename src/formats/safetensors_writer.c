/* formats/safetensors_writer.c: the files of a layout while they are written, and their names at the end. Declared in safetensors_write.h.
 * Judged by tests/formats/test_safetensors_write.c and tests/faults/kill_export_safetensors.sh. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/partial_files.h"
#include "formats/safetensors_write.h"

struct mica_safetensors_writer {
    const mica_safetensors_layout *layout;
    char *directory;
    mica_partial_files *files;
};

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the files of an export");
}

/* The set of a layout's files; NULL without memory. */
static mica_partial_file *files_of(const char *directory, const mica_safetensors_layout *layout) {
    mica_partial_file *files = mica_calloc(layout->shard_count, sizeof *files);
    char name[MICA_SHARD_NAME_BYTES];
    bool whole = files != NULL;
    for (uint32_t i = 0; whole && i < layout->shard_count; i++) {
        const mica_text *header = &layout->headers[i];
        char *path = mica_path_join(directory, mica_safetensors_shard_name(i, layout->shard_count, name));
        files[i] = (mica_partial_file){path, layout->file_bytes[i], header->bytes, header->length};
        whole = path != NULL;
    }
    for (uint32_t i = 0; files && !whole && i < layout->shard_count; i++)
        mica_free(files[i].path);
    if (whole)
        return files;
    mica_free(files);
    return NULL;
}

mica_status mica_safetensors_writer_open(const char *directory, const mica_safetensors_layout *layout, bool fresh,
                                         mica_safetensors_writer **writer, mica_error *error) {
    mica_safetensors_writer *opened = mica_calloc(1, sizeof *opened);
    char *copy = mica_strdup(directory);
    mica_partial_file *files = opened && copy ? files_of(directory, layout) : NULL;
    mica_status status = files ? mica_partial_files_open(files, layout->shard_count, fresh, &opened->files, error) : no_memory(error);
    if (status != MICA_OK) {
        mica_free(copy);
        mica_free(opened);
        return status;
    }
    opened->layout = layout;
    opened->directory = copy;
    *writer = opened;
    return MICA_OK;
}

mica_status mica_safetensors_writer_put(mica_safetensors_writer *writer, const mica_safetensors_entry *entry, uint64_t position,
                                        const void *bytes, uint64_t length, mica_error *error) {
    if (position > entry->bytes || length > entry->bytes - position)
        return mica_fail(error, MICA_FAILED, "%s: expected bytes within its %" PRIu64 ", got %" PRIu64 " at %" PRIu64, entry->name,
                         entry->bytes, length, position);
    return mica_partial_files_write(writer->files, entry->shard, entry->offset + position, bytes, length, error);
}

mica_status mica_safetensors_writer_sync(mica_safetensors_writer *writer, mica_error *error) {
    return mica_partial_files_sync(writer->files, error);
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

mica_status mica_safetensors_writer_finish(mica_safetensors_writer *writer, mica_error *error) {
    mica_partial_files *files = writer->files;
    writer->files = NULL;
    mica_status status = mica_partial_files_finish(files, error);
    if (status == MICA_OK && writer->layout->shard_count > 1)
        status = write_index(writer, error);
    mica_safetensors_writer_close(writer);
    return status;
}

void mica_safetensors_writer_close(mica_safetensors_writer *writer) {
    if (!writer)
        return;
    mica_partial_files_close(writer->files);
    mica_free(writer->directory);
    mica_free(writer);
}
