/* operations/verify_records.c: reading what was recorded. Judged by tests/operations/test_verify_checkpoint.c. */
#include "operations/verify_records.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "formats/vindex.h"

#define RECORD_FILE "mica.sha256"
#define RECORD_FILE_LIMIT (64ull << 20)
#define HEX_DIGITS (MICA_SHA256_HEX_BYTES - 1)

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for recorded hashes");
}

static mica_status add(mica_records *records, const char *name, size_t length, const uint8_t sha256[MICA_SHA256_BYTES], const char *from,
                       mica_error *error) {
    if ((records->count & (records->count - 1)) == 0) { /* at powers of two: double */
        mica_record *more = mica_reallocarray(records->records, records->count ? 2 * records->count : 1, sizeof *more);
        if (!more)
            return no_memory(error);
        records->records = more;
    }
    mica_record *record = &records->records[records->count];
    record->name = mica_strndup(name, length);
    if (!record->name)
        return no_memory(error);
    memcpy(record->sha256, sha256, MICA_SHA256_BYTES);
    record->from = from;
    records->count++;
    return MICA_OK;
}

void mica_records_release(mica_records *records) {
    for (uint64_t i = 0; i < records->count; i++)
        mica_free(records->records[i].name);
    mica_free(records->records);
    *records = (mica_records){NULL, 0};
}

static int compare_records(const void *left, const void *right) {
    return strcmp(((const mica_record *)left)->name, ((const mica_record *)right)->name);
}

static void sort_records(mica_records *records) {
    if (records->count)
        qsort(records->records, records->count, sizeof *records->records, compare_records);
}

const mica_record *mica_records_find(const mica_records *records, const char *name, uint64_t *count) {
    uint64_t low = 0, high = records->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (strcmp(records->records[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *count = 0;
    while (low + *count < records->count && strcmp(records->records[low + *count].name, name) == 0)
        (*count)++;
    return *count ? &records->records[low] : NULL;
}

/* ---- sha256sum's format: 64 hex digits, a space, a space or '*', a name; a line a file */

/* Relative, and never out of the directory. */
static bool name_is_safe(const char *name, size_t length) {
    if (length == 0 || name[0] == '/' || memchr(name, '\0', length))
        return false;
    for (size_t start = 0; start < length;) {
        const char *slash = memchr(name + start, '/', length - start);
        size_t end = slash ? (size_t)(slash - name) : length;
        if (end == start || (end - start == 2 && memcmp(name + start, "..", 2) == 0))
            return false;
        start = end + 1;
    }
    return name[length - 1] != '/';
}

static bool parse_digest(const char *line, uint8_t digest[MICA_SHA256_BYTES]) {
    char hex[MICA_SHA256_HEX_BYTES];
    for (size_t i = 0; i < HEX_DIGITS; i++)
        hex[i] = (char)(line[i] >= 'A' && line[i] <= 'F' ? line[i] - 'A' + 'a' : line[i]);
    hex[HEX_DIGITS] = '\0';
    return mica_sha256_parse_hex(hex, digest) == 1;
}

static mica_status parse_line(const char *name, uint64_t number, const char *line, size_t length, const char *from, mica_records *files,
                              mica_error *error) {
    uint8_t digest[MICA_SHA256_BYTES];
    if (length > 0 && line[length - 1] == '\r')
        length--;
    if (length == 0)
        return MICA_OK;
    if (length < HEX_DIGITS + 3 || !parse_digest(line, digest) || line[HEX_DIGITS] != ' ' ||
        (line[HEX_DIGITS + 1] != ' ' && line[HEX_DIGITS + 1] != '*')) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: line %llu: expected 64 hexadecimal digits, two spaces and a file name, got \"%.*s\"",
                         name, (unsigned long long)number, length < 80 ? (int)length : 80, line);
    }
    const char *file = line + HEX_DIGITS + 2;
    length -= HEX_DIGITS + 2;
    if (length > 2 && file[0] == '.' && file[1] == '/') {
        file += 2;
        length -= 2;
    }
    if (!name_is_safe(file, length)) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: line %llu: expected the name of a file in the checkpoint, got \"%.*s\"", name,
                         (unsigned long long)number, length < 200 ? (int)length : 200, file);
    }
    return add(files, file, length, digest, from, error);
}

mica_status mica_records_parse(const char *name, const char *text, uint64_t length, const char *from, mica_records *files,
                               mica_error *error) {
    uint64_t number = 1, before = files->count;
    for (uint64_t start = 0; start < length; number++) {
        const char *end = memchr(text + start, '\n', length - start);
        uint64_t stop = end ? (uint64_t)(end - text) : length;
        mica_status status = parse_line(name, number, text + start, stop - start, from, files, error);
        if (status != MICA_OK)
            return status;
        start = stop + 1;
    }
    if (files->count == before) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected recorded hashes (64 hexadecimal digits, two spaces, a file name), got none",
                         name);
    }
    return MICA_OK;
}

static mica_status load_lines(const char *path, const char *from, mica_records *files, mica_error *error) {
    char *bytes = NULL;
    uint64_t length = 0;
    mica_status status = mica_file_load(path, RECORD_FILE_LIMIT, &bytes, &length, error);
    if (status == MICA_OK)
        status = mica_records_parse(path, bytes, length, from, files, error);
    mica_free(bytes);
    return status;
}

/* ---- the Hugging Face cache: a snapshot's large files are links to blobs named by their SHA-256 */

static mica_status add_links(const mica_tensor_source *source, mica_records *files, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint32_t i = 0; i < source->shard_count && status == MICA_OK; i++) {
        const char *name = source->shards[i].name;
        uint8_t digest[MICA_SHA256_BYTES];
        char *path = mica_path_join(source->directory, name);
        if (!path)
            return no_memory(error);
        char *target = mica_path_link_target(path);
        const char *slash = target ? strrchr(target, '/') : NULL;
        const char *blob = slash ? slash + 1 : target;
        if (blob && mica_sha256_parse_hex(blob, digest) == 1)
            status = add(files, name, strlen(name), digest, "the cache's link", error);
        mica_free(target);
        mica_free(path);
    }
    return status;
}

/* ---- a vindex: source_tensors.json */

static mica_status load_tensors(const char *directory, mica_records *tensors, mica_error *error) {
    char *path = mica_path_join(directory, MICA_VINDEX_TENSORS);
    json_t *object = NULL;
    mica_status status = path ? mica_json_load(path, MICA_VINDEX_JSON_LIMIT, &object, error) : no_memory(error);
    json_t *list = json_object_get(object, "tensors"), *entry;
    const char *name;
    if (status == MICA_OK && (!json_is_object(list) || json_object_size(list) == 0))
        status = mica_fail(error, MICA_BAD_INPUT, "%s: tensors: expected an object with recorded tensors, got none", path);
    json_object_foreach(list, name, entry) {
        const char *hex = json_string_value(json_object_get(entry, "sha256"));
        uint8_t digest[MICA_SHA256_BYTES];
        if (status == MICA_OK && (!hex || mica_sha256_parse_hex(hex, digest) != 1)) {
            status = mica_fail(error, MICA_BAD_INPUT, "%s: tensors.%s.sha256: expected 64 hexadecimal digits, got %s", path, name,
                               hex ? hex : "none");
        }
        if (status == MICA_OK)
            status = add(tensors, name, strlen(name), digest, MICA_VINDEX_TENSORS, error);
    }
    json_decref(object);
    mica_free(path);
    return status;
}

mica_status mica_records_collect(const mica_tensor_source *source, const char *hashes, mica_records *files, mica_records *tensors,
                                 mica_error *error) {
    *files = *tensors = (mica_records){NULL, 0};
    mica_status status = MICA_OK;
    if (hashes) {
        status = mica_path_is_directory(hashes) ? load_tensors(hashes, tensors, error)
                                                : load_lines(hashes, "the given hashes", files, error);
    } else if (source->kind->digest) {
        for (uint64_t i = 0; i < source->tensor_count && status == MICA_OK; i++)
            status = add(tensors, source->tensors[i].name, strlen(source->tensors[i].name), source->kind->digest(source, i), "the store",
                         error);
    } else {
        char *path = mica_path_join(source->directory, RECORD_FILE);
        status = !path                                          ? no_memory(error)
                 : mica_path_exists(path) && source->kind->has_files ? load_lines(path, RECORD_FILE, files, error)
                                                                : MICA_OK;
        mica_free(path);
    }
    if (status == MICA_OK)
        status = add_links(source, files, error);
    sort_records(files);
    sort_records(tensors);
    if (status != MICA_OK) {
        mica_records_release(files);
        mica_records_release(tensors);
    }
    return status;
}
