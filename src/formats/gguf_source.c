/* formats/gguf_source.c: the tensors of one GGUF file, or of a set of splits PREFIX-00001-of-00005.gguf, opened by its first file, which
 * holds the metadata. Refuses a set that is not whole: a split that is missing, out of order, of another set, or with a tensor that another
 * one has. Judged by tests/formats/test_gguf.c. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "formats/gguf.h"
#include "formats/tensor_source.h"

#define SPLIT_TAIL_BYTES 20u /* "-00001-of-00005.gguf" */
#define SPLITS_MAX 65535u

static mica_status out_of_memory(const mica_tensor_source *source, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its list of tensors", source->path);
}

/* The name of split `number` (0-based) of `count`, made from another one's: the tail is replaced. */
static void split_tail(char tail[SPLIT_TAIL_BYTES + 1], uint32_t number, uint32_t count) {
    snprintf(tail, SPLIT_TAIL_BYTES + 1, "-%05" PRIu32 "-of-%05" PRIu32 ".gguf", (number + 1) % 100000u, count % 100000u);
}

static mica_status open_file(mica_tensor_source *source, uint32_t index, const char *path, mica_gguf *header, mica_error *error) {
    const char *slash = strrchr(path, '/');
    mica_shard *shard = &source->shards[index];
    if (!(shard->name = mica_strdup(slash ? slash + 1 : path)))
        return out_of_memory(source, error);
    mica_status status = mica_file_open(path, true, &shard->file, error);
    return status == MICA_OK ? mica_gguf_read(shard->file, shard->name, header, error) : status;
}

/* What the three keys of a split say. */
static mica_status check_split(const mica_gguf *gguf, uint32_t number, uint32_t count, int32_t *total, mica_error *error) {
    uint16_t got_number, got_count;
    mica_status status = mica_gguf_u16(gguf, "split.no", &got_number, error);
    if (status == MICA_OK)
        status = mica_gguf_u16(gguf, "split.count", &got_count, error);
    if (status == MICA_OK)
        status = mica_gguf_i32(gguf, "split.tensors.count", total, error);
    if (status != MICA_OK)
        return status;
    if (got_number != number)
        return mica_fail(error, MICA_BAD_INPUT, "%s: key split.no: expected %" PRIu32 "%s, got %u", gguf->name, number,
                         number == 0 ? " (the set is opened by its first file)" : "", got_number);
    if (got_count != count)
        return mica_fail(error, MICA_BAD_INPUT, "%s: key split.count: expected %" PRIu32 ", as in the first file, got %u", gguf->name,
                         count, got_count);
    return MICA_OK;
}

/* Opens the second file and all that follow, whose names are made from the first one's. */
static mica_status open_others(mica_tensor_source *source, mica_gguf *headers, mica_error *error) {
    uint32_t count = source->shard_count;
    int32_t total = 0, other = 0;
    char tail[SPLIT_TAIL_BYTES + 1];
    size_t length = strlen(source->path), stem = length < SPLIT_TAIL_BYTES ? 0 : length - SPLIT_TAIL_BYTES;
    mica_status status = check_split(&headers[0], 0, count, &total, error);
    if (status != MICA_OK)
        return status;
    split_tail(tail, 0, count);
    if (length < SPLIT_TAIL_BYTES || strcmp(source->path + stem, tail) != 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a name that ends in %s (split.count), got %s", source->path, tail,
                         source->shards[0].name);
    char *path = mica_strdup(source->path);
    if (!path)
        return out_of_memory(source, error);
    for (uint32_t i = 1; status == MICA_OK && i < count; i++) {
        split_tail(path + stem, i, count);
        status = open_file(source, i, path, &headers[i], error);
        if (status != MICA_OK && !source->shards[i].file)
            status = mica_fail_context(error, status, "split %" PRIu32 " of %" PRIu32, i + 1, count);
        if (status == MICA_OK)
            status = check_split(&headers[i], i, count, &other, error);
        if (status == MICA_OK && other != total)
            status = mica_fail(error, MICA_BAD_INPUT,
                               "%s: key split.tensors.count: expected %" PRId32 ", as in the first file, got %" PRId32,
                               source->shards[i].name, total, other);
    }
    mica_free(path);
    uint64_t tensors = 0;
    for (uint32_t i = 0; i < count; i++)
        tensors += headers[i].tensor_count;
    if (status == MICA_OK && (total < 0 || tensors != (uint64_t)total))
        status = mica_fail(error, MICA_BAD_INPUT, "%s: key split.tensors.count: expected %" PRIu64 ", as the files have, got %" PRId32,
                           source->shards[0].name, tensors, total);
    return status;
}

static mica_status split_count(const mica_gguf *first, uint32_t *count, mica_error *error) {
    uint16_t number = 1;
    mica_status status = mica_gguf_find(first, "split.count") ? mica_gguf_u16(first, "split.count", &number, error) : MICA_OK;
    if (status == MICA_OK && number == 0)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: key split.count: expected 1 to %u, got 0", first->name, SPLITS_MAX);
    *count = number;
    return status;
}

/* Makes room for all files of the set; the first is open. */
static mica_status grow(mica_tensor_source *source, mica_gguf **headers, uint32_t count, mica_error *error) {
    mica_shard *shards = mica_reallocarray(source->shards, count, sizeof *shards);
    if (!shards)
        return out_of_memory(source, error);
    source->shards = shards;
    mica_gguf *larger = mica_reallocarray(*headers, count, sizeof *larger);
    if (!larger)
        return out_of_memory(source, error);
    *headers = larger;
    memset(shards + 1, 0, (count - 1) * sizeof *shards);
    memset(larger + 1, 0, (count - 1) * sizeof *larger);
    source->shard_count = count;
    return MICA_OK;
}

static mica_status open_set(mica_tensor_source *source, mica_gguf **headers, mica_error *error) {
    uint32_t count = 0;
    *headers = mica_calloc(1, sizeof **headers);
    source->shards = mica_calloc(1, sizeof *source->shards);
    if (!*headers || !source->shards)
        return out_of_memory(source, error);
    source->shard_count = 1;
    mica_status status = open_file(source, 0, source->path, &(*headers)[0], error);
    if (status == MICA_OK)
        status = split_count(&(*headers)[0], &count, error);
    if (status == MICA_OK && count > 1)
        status = grow(source, headers, count, error);
    return status == MICA_OK && count > 1 ? open_others(source, *headers, error) : status;
}

static void release(mica_tensor_source *source) {
    if (source->backend)
        mica_gguf_release(source->backend);
    mica_free(source->backend);
}

static const mica_source_kind gguf_kind = {"GGUF file", false, NULL, NULL, NULL, release, NULL};

mica_status mica_gguf_source_open(mica_tensor_source *source, mica_error *error) {
    const char *slash = strrchr(source->path, '/');
    mica_gguf *headers = NULL;
    mica_tensor_list *lists = NULL;
    source->kind = &gguf_kind;
    source->directory = !slash ? mica_strdup(".") : mica_strndup(source->path, slash == source->path ? 1 : (size_t)(slash - source->path));
    mica_status status = source->directory ? open_set(source, &headers, error) : out_of_memory(source, error);
    if (status == MICA_OK && !(lists = mica_calloc(source->shard_count, sizeof *lists)))
        status = out_of_memory(source, error);
    for (uint32_t i = 0; status == MICA_OK && i < source->shard_count; i++)
        lists[i] = (mica_tensor_list){headers[i].tensors, headers[i].tensor_count};
    if (status == MICA_OK)
        status = mica_tensor_source_gather(source, lists, error);
    mica_free(lists);
    for (uint32_t i = 0; headers && source->shards && i < source->shard_count; i++) {
        source->shards[i].tensor_names = headers[i].names;
        headers[i].names = NULL;
        if (i > 0 || status != MICA_OK)
            mica_gguf_release(&headers[i]);
    }
    if (status == MICA_OK)
        source->backend = headers; /* of which the first is kept */
    else
        mica_free(headers);
    return status;
}

const mica_gguf *mica_gguf_of_source(const mica_tensor_source *source) {
    return source->kind == &gguf_kind ? source->backend : NULL;
}
