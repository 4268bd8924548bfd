/* formats/safetensors_source.c: the tensors of a directory of shards, or of one .safetensors file. Names are sorted once, then index and
 * shards are compared in one merge. The files it opens are those of the directory itself: the index names plain files, links among them
 * are followed. Judged by tests/formats/test_tensor_source.c. */

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "formats/index.h"
#include "formats/json_cursor.h"
#include "formats/tensor_source.h"

#define INDEX_NAME "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"
#define SUFFIX ".safetensors"
#define INDEX_LIMIT ((uint64_t)256 << 20)

/* The directory's own list tells a link that leads nowhere from a name that is not there. */
typedef struct listing {
    char **names; /* sorted */
    uint64_t count;
} listing;

static int compare_strings(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool is_listed(const listing *list, const char *name) {
    return list->count > 0 && bsearch(&name, list->names, list->count, sizeof *list->names, compare_strings) != NULL;
}

static mica_status out_of_memory(const mica_tensor_source *source, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its list of tensors", source->path);
}

/* Says of a file that could not be opened whether it is a link that leads nowhere. */
static mica_status open_context(const char *path, const char *name, const listing *list, mica_status status, mica_error *error) {
    if (is_listed(list, name) && !mica_path_exists(path))
        return mica_fail_context(error, status, "%s: a symbolic link that leads to no file", name);
    return mica_fail_context(error, status, "%s: expected a file in the directory", name);
}

static mica_status open_shard(const mica_tensor_source *source, mica_shard *shard, const listing *list, mica_safetensors *header,
                              mica_error *error) {
    char *path = !source->kind->has_files ? mica_strdup(source->path) : mica_path_join(source->directory, shard->name);
    if (!path)
        return out_of_memory(source, error);
    mica_status status = mica_file_open(path, true, &shard->file, error);
    if (status != MICA_OK)
        status = !source->kind->has_files ? status : open_context(path, shard->name, list, status, error);
    else
        status = mica_safetensors_read(shard->file, shard->name, header, error);
    mica_free(path);
    return status;
}

static mica_status gather(mica_tensor_source *source, const mica_safetensors *headers, mica_error *error) {
    mica_tensor_list *lists = mica_calloc(source->shard_count, sizeof *lists);
    mica_status status = lists ? MICA_OK : out_of_memory(source, error);
    for (uint32_t i = 0; lists && i < source->shard_count; i++)
        lists[i] = (mica_tensor_list){headers[i].tensors, headers[i].tensor_count};
    if (status == MICA_OK)
        status = mica_tensor_source_gather(source, lists, error);
    mica_free(lists);
    return status;
}

static mica_status open_shards(mica_tensor_source *source, const listing *list, mica_error *error) {
    mica_safetensors *headers = mica_calloc(source->shard_count, sizeof *headers);
    mica_status status = headers ? MICA_OK : out_of_memory(source, error);
    for (uint32_t i = 0; status == MICA_OK && i < source->shard_count; i++)
        status = open_shard(source, &source->shards[i], list, &headers[i], error);
    if (status == MICA_OK)
        status = gather(source, headers, error);
    for (uint32_t i = 0; headers && i < source->shard_count; i++) {
        source->shards[i].tensor_names = headers[i].names;
        headers[i].names = NULL;
        mica_safetensors_release(&headers[i]);
    }
    mica_free(headers);
    return status;
}

static mica_status name_shards(mica_tensor_source *source, const char *const *names, uint32_t count, mica_error *error) {
    source->shards = mica_calloc(count, sizeof *source->shards);
    if (!source->shards)
        return out_of_memory(source, error);
    source->shard_count = count;
    for (uint32_t i = 0; i < count; i++) {
        if (!(source->shards[i].name = mica_strdup(names[i])))
            return out_of_memory(source, error);
    }
    return MICA_OK;
}

static mica_status refuse_listed(const mica_tensor_source *source, const mica_index_entry *entry, const mica_tensor *tensor,
                                 mica_error *error) {
    char shown[MICA_NAME_SHOW_BYTES];
    const char *said = source->shards[entry->shard].name;
    mica_name_show(entry->tensor, shown);
    if (!tensor)
        return mica_fail(error, MICA_BAD_INPUT, "%s: tensor %s: expected in this shard (%s lists it), got absent", said, shown, INDEX_NAME);
    return mica_fail(error, MICA_BAD_INPUT, "%s: weight_map: tensor %s: expected %s, which holds it, got %s", INDEX_NAME, shown,
                     source->shards[tensor->shard].name, said);
}

/* Both lists are sorted: one merge. Shard numbers of the index are those of the source. */
static mica_status compare_with_index(mica_tensor_source *source, const mica_index *index, mica_error *error) {
    source->unlisted = mica_reallocarray(NULL, source->tensor_count ? source->tensor_count : 1, sizeof *source->unlisted);
    if (!source->unlisted)
        return out_of_memory(source, error);
    uint64_t at = 0;
    for (uint64_t i = 0; i < index->entry_count; i++) {
        const mica_index_entry *entry = &index->entries[i];
        int order = 1;
        while (at < source->tensor_count && (order = strcmp(source->tensors[at].name, entry->tensor)) < 0)
            source->unlisted[source->unlisted_count++] = at++;
        const mica_tensor *tensor = at < source->tensor_count && order == 0 ? &source->tensors[at++] : NULL;
        if (!tensor || tensor->shard != entry->shard)
            return refuse_listed(source, entry, tensor, error);
    }
    while (at < source->tensor_count)
        source->unlisted[source->unlisted_count++] = at++;
    return MICA_OK;
}

static mica_status open_with_index(mica_tensor_source *source, const listing *list, mica_error *error) {
    char *path = mica_path_join(source->directory, INDEX_NAME), *json = NULL;
    mica_index index = {0};
    uint64_t length = 0;
    mica_status status = path ? mica_file_load(path, INDEX_LIMIT, &json, &length, error) : out_of_memory(source, error);
    if (path && status != MICA_OK)
        status = open_context(path, INDEX_NAME, list, status, error);
    if (status == MICA_OK)
        status = mica_index_parse(INDEX_NAME, json, length, &index, error);
    mica_free(json);
    mica_free(path);
    if (status == MICA_OK)
        status = name_shards(source, index.shards, index.shard_count, error);
    if (status == MICA_OK)
        status = open_shards(source, list, error);
    if (status == MICA_OK)
        status = compare_with_index(source, &index, error);
    mica_index_release(&index);
    return status;
}

static mica_status open_single(mica_tensor_source *source, const char *name, const listing *list, mica_error *error) {
    mica_status status = name_shards(source, &name, 1, error);
    return status == MICA_OK ? open_shards(source, list, error) : status;
}

static mica_status open_directory(mica_tensor_source *source, mica_error *error) {
    listing list = {0};
    size_t length = strlen(source->path);
    while (length > 1 && source->path[length - 1] == '/')
        length--;
    if (!(source->directory = mica_strndup(source->path, length)))
        return out_of_memory(source, error);
    mica_status status = mica_directory_list(source->directory, &list.names, &list.count, error);
    if (status != MICA_OK)
        return status;
    if (is_listed(&list, INDEX_NAME)) {
        status = open_with_index(source, &list, error);
    } else if (is_listed(&list, SINGLE_NAME)) {
        status = open_single(source, SINGLE_NAME, &list, error);
    } else {
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected %s or %s in the directory, got neither", source->path, INDEX_NAME,
                           SINGLE_NAME);
    }
    mica_directory_names_free(list.names, list.count);
    return status;
}

static mica_status open_bare(mica_tensor_source *source, mica_error *error) {
    size_t length = strlen(source->path), suffix = strlen(SUFFIX);
    const char *slash = strrchr(source->path, '/'), *name = slash ? slash + 1 : source->path;
    if (mica_path_exists(source->path) && (length < suffix || strcmp(source->path + length - suffix, SUFFIX) != 0)) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a checkpoint's directory, a %s or a GGUF file, got another file", source->path,
                         SUFFIX);
    }
    source->directory = !slash ? mica_strdup(".") : mica_strndup(source->path, slash == source->path ? 1 : (size_t)(slash - source->path));
    return source->directory ? open_single(source, name, &(listing){0}, error) : out_of_memory(source, error);
}

static bool has_file(const mica_tensor_source *source, const char *name) {
    return mica_directory_has(source->directory, name);
}

static mica_status load_file(const mica_tensor_source *source, const char *name, uint64_t limit, char **bytes, uint64_t *length,
                             mica_error *error) {
    char *path = mica_path_join(source->directory, name);
    mica_status status = path ? mica_file_load(path, limit, bytes, length, error) : out_of_memory(source, error);
    mica_free(path);
    return status;
}

static bool ends_with(const char *name, const char *suffix) {
    const size_t length = strlen(name), tail = strlen(suffix);
    return length >= tail && strcmp(name + length - tail, suffix) == 0;
}

/* What goes with the tensors: no weights in any format, no index of them, no hidden file, no record of ours. */
static bool is_companion(const char *name) {
    static const char *const weights[] = {SUFFIX, ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".gguf",
                                          ".h5", ".msgpack", ".onnx", ".partial"};
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
        if (ends_with(name, weights[i]))
            return false;
    return name[0] != '.' && strcmp(name, "mica.sha256") != 0 && strcmp(name, "journal.mica") != 0;
}

static mica_status list_files(const mica_tensor_source *source, char ***names, uint64_t *count, mica_error *error) {
    char **list = NULL;
    uint64_t listed = 0, kept = 0;
    mica_status status = mica_directory_list(source->directory, &list, &listed, error);
    for (uint64_t i = 0; status == MICA_OK && i < listed; i++) {
        char *path = mica_path_join(source->directory, list[i]);
        struct stat found;
        if (!path)
            status = out_of_memory(source, error);
        else if (is_companion(list[i]) && stat(path, &found) == 0 && S_ISREG(found.st_mode)) {
            char *name = list[kept];
            list[kept++] = list[i];
            list[i] = name;
        }
        mica_free(path);
    }
    if (status != MICA_OK) {
        mica_directory_names_free(list, listed);
        return status;
    }
    for (uint64_t i = kept; i < listed; i++)
        mica_free(list[i]);
    *names = list;
    *count = kept;
    return MICA_OK;
}

static const mica_source_kind directory_kind = {"safetensors directory", true, has_file, load_file, list_files, NULL, NULL};
static const mica_source_kind bare_kind = {"safetensors file", false, NULL, NULL, NULL, NULL, NULL};

mica_status mica_safetensors_source_open(mica_tensor_source *source, mica_error *error) {
    bool directory = mica_path_is_directory(source->path);
    source->kind = directory ? &directory_kind : &bare_kind;
    return directory ? open_directory(source, error) : open_bare(source, error);
}
