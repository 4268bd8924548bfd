/* formats/tensor_source.c: see the header. What is the same for every kind of source. Judged by tests/formats/test_tensor_source.c. */
#include "formats/tensor_source.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "formats/json_cursor.h"

int mica_tensor_compare(const void *a, const void *b) {
    return strcmp(((const mica_tensor *)a)->name, ((const mica_tensor *)b)->name);
}

static bool ends_with(const char *text, const char *tail) {
    size_t length = strlen(text), tail_length = strlen(tail);
    return length >= tail_length && strcmp(text + length - tail_length, tail) == 0;
}

mica_status mica_tensor_source_open(const char *path, mica_tensor_source **source, mica_error *error) {
    mica_tensor_source *opened = mica_calloc(1, sizeof *opened);
    if (!opened || !(opened->path = mica_strdup(path))) {
        mica_free(opened);
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
    }
    bool gguf = ends_with(path, ".gguf") && !mica_path_is_directory(path);
    mica_status status = mica_store_is_named(path) ? mica_store_source_open(opened, error)
                         : gguf                    ? mica_gguf_source_open(opened, error)
                                                   : mica_safetensors_source_open(opened, error);
    if (status != MICA_OK) {
        mica_tensor_source_close(opened);
        return status;
    }
    *source = opened;
    return MICA_OK;
}

void mica_tensor_source_close(mica_tensor_source *source) {
    if (!source)
        return;
    if (source->kind && source->kind->release)
        source->kind->release(source);
    for (uint32_t i = 0; i < source->shard_count; i++) {
        mica_file_close(source->shards[i].file, NULL);
        mica_free(source->shards[i].name);
        mica_free(source->shards[i].tensor_names);
    }
    mica_free(source->shards);
    mica_free(source->tensors);
    mica_free(source->unlisted);
    mica_free(source->directory);
    mica_free(source->path);
    mica_free(source->model_name);
    mica_free(source);
}

const mica_tensor *mica_tensor_source_find(const mica_tensor_source *source, const char *name) {
    mica_tensor key = {.name = name};
    return source->tensor_count ? bsearch(&key, source->tensors, source->tensor_count, sizeof key, mica_tensor_compare) : NULL;
}

mica_status mica_tensor_source_digest(const mica_tensor_source *source, char hex[MICA_SHA256_HEX_BYTES], mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        const mica_tensor *tensor = &source->tensors[i];
        mica_text_printf(&text, "%s %s", tensor->name, mica_dtype_name(tensor->dtype));
        for (uint32_t d = 0; d < tensor->rank; d++)
            mica_text_printf(&text, " %llu", (unsigned long long)tensor->shape[d]);
        mica_text_puts(&text, "\n");
    }
    uint8_t digest[MICA_SHA256_BYTES];
    const mica_status status = mica_text_failed(&text) ? mica_fail(error, MICA_NO_MEMORY, "out of memory for the names of %llu tensors",
                                                                   (unsigned long long)source->tensor_count)
                                                       : mica_sha256_of(text.bytes ? text.bytes : "", text.length, digest, error);
    mica_text_release(&text);
    if (status == MICA_OK)
        mica_sha256_hex(digest, hex);
    return status;
}

bool mica_tensor_source_has_file(const mica_tensor_source *source, const char *name) {
    return source->kind->has_files && source->kind->has_file(source, name);
}

mica_status mica_tensor_source_load(const mica_tensor_source *source, const char *name, uint64_t limit, char **bytes, uint64_t *length,
                                    mica_error *error) {
    if (!source->kind->has_files)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a checkpoint with %s, got a %s", source->path, name, source->kind->name);
    return source->kind->load_file(source, name, limit, bytes, length, error);
}

mica_status mica_tensor_source_list_files(const mica_tensor_source *source, char ***names, uint64_t *count, mica_error *error) {
    *names = NULL;
    *count = 0;
    return source->kind->has_files ? source->kind->list_files(source, names, count, error) : MICA_OK;
}

char *mica_tensor_source_file_path(const mica_tensor_source *source, const char *name) {
    return mica_path_join(source->directory, name);
}

mica_status mica_tensor_source_gather(mica_tensor_source *source, const mica_tensor_list *lists, mica_error *error) {
    for (uint32_t i = 0; i < source->shard_count; i++)
        source->tensor_count += lists[i].count;
    source->tensors = mica_reallocarray(NULL, source->tensor_count ? source->tensor_count : 1, sizeof *source->tensors);
    if (!source->tensors)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its list of tensors", source->path);
    uint64_t count = 0;
    bool sorted = true;
    for (uint32_t i = 0; i < source->shard_count; i++) {
        for (uint64_t j = 0; j < lists[i].count; j++, count++) {
            source->tensors[count] = lists[i].tensors[j];
            source->tensors[count].shard = i;
            sorted = sorted && (count == 0 || mica_tensor_compare(&source->tensors[count - 1], &source->tensors[count]) < 0);
        }
    }
    if (!sorted)
        qsort(source->tensors, source->tensor_count, sizeof *source->tensors, mica_tensor_compare);
    for (uint64_t i = 1; i < source->tensor_count; i++) {
        const mica_tensor *tensor = &source->tensors[i];
        if (mica_tensor_compare(tensor - 1, tensor) == 0) {
            char shown[MICA_NAME_SHOW_BYTES];
            uint32_t low = tensor[-1].shard < tensor->shard ? tensor[-1].shard : tensor->shard;
            return mica_fail(error, MICA_BAD_INPUT, "%s: tensor %s: expected in one shard only, got it in %s as well",
                             source->shards[tensor[-1].shard + tensor->shard - low].name, mica_name_show(tensor->name, shown),
                             source->shards[low].name);
        }
    }
    return MICA_OK;
}
