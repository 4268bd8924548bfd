/* formats/gguf_write.c: metadata, layout and files of a GGUF that is written. See the header.
 * Judged by tests/formats/test_gguf_write.c and tests/interop/gguf_written.py. */
#include "formats/gguf_write.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/partial_files.h"
#include "formats/json_cursor.h"

#define SUFFIX ".gguf"
#define SPLITS_MAX 65535u /* split.count is a u16, and names have five digits */
#define SPLIT_KEYS 3u

static void put_number(mica_text *text, uint64_t value, uint32_t bytes) {
    char little[8];
    for (uint32_t i = 0; i < bytes; i++)
        little[i] = (char)(value >> 8 * i);
    mica_text_append(text, little, bytes);
}

static void put_string(mica_text *text, const char *bytes, uint64_t length) {
    put_number(text, length, 8);
    mica_text_append(text, bytes, length);
}

/* ---- metadata */

void mica_gguf_metadata_release(mica_gguf_metadata *metadata) {
    mica_text_release(&metadata->bytes);
    mica_text_release(&metadata->keys);
    *metadata = (mica_gguf_metadata)MICA_GGUF_METADATA_INIT;
}

static void begin(mica_gguf_metadata *metadata, const char *key, mica_gguf_type type) {
    metadata->broken |= metadata->elements_due > 0;
    metadata->count++;
    mica_text_append(&metadata->keys, key, strlen(key) + 1);
    put_string(&metadata->bytes, key, strlen(key));
    put_number(&metadata->bytes, type, 4);
}

static void add_number(mica_gguf_metadata *metadata, const char *key, mica_gguf_type type, uint64_t value) {
    begin(metadata, key, type);
    put_number(&metadata->bytes, value, mica_gguf_type_bytes(type));
    if (type == MICA_GGUF_UINT32 && strcmp(key, "general.alignment") == 0)
        metadata->alignment = (uint32_t)value;
}

void mica_gguf_add_u8(mica_gguf_metadata *metadata, const char *key, uint8_t value) {
    add_number(metadata, key, MICA_GGUF_UINT8, value);
}

void mica_gguf_add_u16(mica_gguf_metadata *metadata, const char *key, uint16_t value) {
    add_number(metadata, key, MICA_GGUF_UINT16, value);
}

void mica_gguf_add_u32(mica_gguf_metadata *metadata, const char *key, uint32_t value) {
    add_number(metadata, key, MICA_GGUF_UINT32, value);
}

void mica_gguf_add_i32(mica_gguf_metadata *metadata, const char *key, int32_t value) {
    add_number(metadata, key, MICA_GGUF_INT32, (uint32_t)value);
}

void mica_gguf_add_u64(mica_gguf_metadata *metadata, const char *key, uint64_t value) {
    add_number(metadata, key, MICA_GGUF_UINT64, value);
}

void mica_gguf_add_f32(mica_gguf_metadata *metadata, const char *key, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    add_number(metadata, key, MICA_GGUF_FLOAT32, bits);
}

void mica_gguf_add_bool(mica_gguf_metadata *metadata, const char *key, bool value) {
    add_number(metadata, key, MICA_GGUF_BOOL, value);
}

void mica_gguf_add_text(mica_gguf_metadata *metadata, const char *key, const char *bytes, uint64_t length) {
    begin(metadata, key, MICA_GGUF_STRING);
    put_string(&metadata->bytes, bytes, length);
}

void mica_gguf_add_string(mica_gguf_metadata *metadata, const char *key, const char *string) {
    mica_gguf_add_text(metadata, key, string, strlen(string));
}

static void begin_array(mica_gguf_metadata *metadata, const char *key, mica_gguf_type type, uint64_t count) {
    begin(metadata, key, MICA_GGUF_ARRAY);
    put_number(&metadata->bytes, type, 4);
    put_number(&metadata->bytes, count, 8);
}

void mica_gguf_add_array(mica_gguf_metadata *metadata, const char *key, mica_gguf_type type, const void *values, uint64_t count) {
    const uint32_t size = mica_gguf_type_bytes(type);
    metadata->broken |= size == 0; /* strings and arrays have no size */
    begin_array(metadata, key, type, count);
    mica_text_append(&metadata->bytes, values, count * size);
}

void mica_gguf_add_strings(mica_gguf_metadata *metadata, const char *key, uint64_t count) {
    begin_array(metadata, key, MICA_GGUF_STRING, count);
    metadata->elements_due = count;
}

void mica_gguf_add_element(mica_gguf_metadata *metadata, const char *bytes, uint64_t length) {
    metadata->broken |= metadata->elements_due == 0;
    metadata->elements_due -= metadata->elements_due > 0;
    put_string(&metadata->bytes, bytes, length);
}

void mica_gguf_add_entry(mica_gguf_metadata *metadata, const mica_gguf_entry *entry) {
    if (entry->is_array)
        begin_array(metadata, entry->key, entry->type, entry->count);
    else
        begin(metadata, entry->key, entry->type);
    mica_text_append(&metadata->bytes, (const char *)entry->bytes, entry->length);
    if (strcmp(entry->key, "general.alignment") == 0 && !entry->is_array && entry->type == MICA_GGUF_UINT32)
        metadata->alignment = (uint32_t)mica_gguf_integer_at(entry, 0);
}

/* ---- what GGUF cannot hold */

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorts them; the name that is there twice, or NULL. */
static const char *find_duplicate(const char **names, uint64_t count) {
    if (count > 0)
        qsort(names, count, sizeof *names, compare_names);
    for (uint64_t i = 1; i < count; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return names[i];
    return NULL;
}

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the header of a GGUF file");
}

static mica_status check_metadata(const mica_gguf_metadata *metadata, mica_error *error) {
    if (mica_text_failed(&metadata->bytes) || mica_text_failed(&metadata->keys))
        return no_memory(error);
    if (metadata->broken || metadata->elements_due > 0)
        return mica_fail(error, MICA_FAILED, "metadata: expected arrays with as many elements as announced, and of a plain type");
    if (metadata->alignment & (metadata->alignment - 1))
        return mica_fail(error, MICA_BAD_INPUT, "general.alignment: expected a power of two, got %" PRIu32, metadata->alignment);
    const char **keys = mica_reallocarray(NULL, metadata->count + 1, sizeof *keys);
    if (!keys)
        return no_memory(error);
    const char *key = metadata->keys.bytes;
    mica_status status = MICA_OK;
    for (uint64_t i = 0; i < metadata->count; i++, key += strlen(key) + 1) {
        keys[i] = key;
        if (status == MICA_OK && (*key == '\0' || strlen(key) > 65535 || strncmp(key, "split.", 6) == 0))
            status = mica_fail(error, MICA_BAD_INPUT, "%s: expected a key of 1 to 65535 bytes that is not split.*", key);
    }
    const char *twice = find_duplicate(keys, metadata->count);
    if (status == MICA_OK && twice)
        status = mica_fail(error, MICA_BAD_INPUT, "key %s: expected it once, got a duplicate", twice);
    mica_free(keys);
    return status;
}

static mica_status measure(mica_gguf_tensor *tensor, mica_error *error) {
    char shown[MICA_NAME_SHOW_BYTES], shape[200];
    size_t length = strlen(tensor->name);
    uint64_t elements = 1, row = tensor->rank && tensor->rank <= MICA_GGUF_RANK_MAX ? tensor->shape[tensor->rank - 1] : 1;
    const uint32_t block = mica_dtype_block_elements(tensor->dtype);
    mica_name_show(tensor->name, shown);
    if (length == 0 || length >= MICA_GGUF_TENSOR_NAME_BYTES)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a name of 1 to 63 bytes, got %zu", shown, length);
    if (mica_dtype_ggml(tensor->dtype) < 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a type that GGUF has, got %s", shown, mica_dtype_name(tensor->dtype));
    if (tensor->rank > MICA_GGUF_RANK_MAX)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected at most 4 dimensions, got %" PRIu32, shown, tensor->rank);
    mica_shape_show(tensor->rank, tensor->shape, shape, sizeof shape);
    if (row % block)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected rows of whole blocks of %" PRIu32 " (%s), got %s", shown, block,
                         mica_dtype_name(tensor->dtype), shape);
    bool fits = true;
    for (uint32_t i = 0; fits && i < tensor->rank; i++)
        fits = mica_mul_u64(elements, tensor->shape[i], &elements);
    if (!fits || !mica_dtype_run_bytes(tensor->dtype, elements, &tensor->bytes) || tensor->bytes > (uint64_t)INT64_MAX >> 8)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a size below 2^55 bytes, got %s of %s", shown, shape,
                         mica_dtype_name(tensor->dtype));
    return MICA_OK;
}

static mica_status check_tensors(mica_gguf_layout *layout, mica_error *error) {
    const char **names = mica_reallocarray(NULL, layout->tensor_count + 1, sizeof *names);
    mica_status status = names ? MICA_OK : no_memory(error);
    for (uint64_t i = 0; status == MICA_OK && i < layout->tensor_count; i++) {
        names[i] = layout->tensors[i].name;
        status = measure(&layout->tensors[i], error);
        if (status == MICA_OK && (!mica_add_u64(layout->data_bytes, layout->tensors[i].bytes, &layout->data_bytes) ||
                                  layout->data_bytes > (uint64_t)INT64_MAX >> 1))
            status = mica_fail(error, MICA_BAD_INPUT, "%s: expected at most 2^62 bytes in all tensors", layout->tensors[i].name);
    }
    const char *twice = status == MICA_OK ? find_duplicate(names, layout->tensor_count) : NULL;
    if (twice)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected unique names, got a duplicate", twice);
    mica_free(names);
    return status;
}

/* ---- splits, offsets, headers */

static uint64_t padded(uint64_t offset, uint64_t alignment) {
    return (offset + alignment - 1) & ~(alignment - 1);
}

static mica_status assign_shards(mica_gguf_layout *layout, uint64_t limit, uint64_t alignment, mica_error *error) {
    uint64_t in_shard = 0;
    layout->shard_count = 1;
    for (uint64_t i = 0; i < layout->tensor_count; i++) {
        mica_gguf_tensor *tensor = &layout->tensors[i];
        uint64_t bytes = padded(tensor->bytes, alignment);
        if (limit && in_shard > 0 && (in_shard > limit || bytes > limit - in_shard)) {
            layout->shard_count++;
            in_shard = 0;
        }
        tensor->shard = layout->shard_count - 1;
        in_shard += bytes;
    }
    if (layout->tensor_count > INT32_MAX) /* split.tensors.count is an i32 */
        return mica_fail(error, MICA_BAD_INPUT, "expected fewer than 2^31 tensors, got %" PRIu64, layout->tensor_count);
    if (layout->shard_count > SPLITS_MAX)
        return mica_fail(error, MICA_USAGE, "--split-size: expected a size that gives at most %u files, got %" PRIu32, SPLITS_MAX,
                         layout->shard_count);
    return MICA_OK;
}

/* The keys of file `shard`: in a set of several its place comes last. */
static void put_keys(mica_text *text, const mica_gguf_layout *layout, const mica_gguf_metadata *metadata, uint32_t shard) {
    mica_gguf_metadata place = MICA_GGUF_METADATA_INIT;
    if (shard == 0)
        mica_text_append(text, metadata->bytes.bytes ? metadata->bytes.bytes : "", metadata->bytes.length);
    if (shard > 0 && metadata->alignment && metadata->alignment != MICA_GGUF_ALIGNMENT)
        mica_gguf_add_u32(&place, "general.alignment", metadata->alignment);
    if (layout->shard_count > 1) {
        mica_gguf_add_u16(&place, "split.no", (uint16_t)shard);
        mica_gguf_add_u16(&place, "split.count", (uint16_t)layout->shard_count);
        mica_gguf_add_i32(&place, "split.tensors.count", (int32_t)layout->tensor_count);
    }
    mica_text_append(text, place.bytes.bytes ? place.bytes.bytes : "", place.bytes.length);
    if (mica_text_failed(&place.bytes) || mica_text_failed(&place.keys))
        text->failed = true;
    mica_gguf_metadata_release(&place);
}

static uint64_t key_count(const mica_gguf_layout *layout, const mica_gguf_metadata *metadata, uint32_t shard) {
    const bool aligned = shard > 0 && metadata->alignment && metadata->alignment != MICA_GGUF_ALIGNMENT;
    return (shard == 0 ? metadata->count : aligned) + (layout->shard_count > 1 ? SPLIT_KEYS : 0);
}

static void put_tensor(mica_text *text, const mica_gguf_tensor *tensor) {
    put_string(text, tensor->name, strlen(tensor->name));
    put_number(text, tensor->rank, 4);
    for (uint32_t i = tensor->rank; i-- > 0;)
        put_number(text, tensor->shape[i], 8);
    put_number(text, (uint64_t)mica_dtype_ggml(tensor->dtype), 4);
    put_number(text, tensor->offset, 8);
}

/* Tensors [first, end) are this file's. */
static mica_status make_header(mica_gguf_layout *layout, const mica_gguf_metadata *metadata, uint32_t shard, uint64_t first, uint64_t end,
                               uint64_t alignment, mica_error *error) {
    mica_text *text = &layout->headers[shard];
    uint64_t offset = 0;
    mica_text_puts(text, MICA_GGUF_MAGIC);
    put_number(text, MICA_GGUF_VERSION, 4);
    put_number(text, end - first, 8);
    put_number(text, key_count(layout, metadata, shard), 8);
    put_keys(text, layout, metadata, shard);
    for (uint64_t i = first; i < end; i++) {
        layout->tensors[i].offset = offset; /* the header's length comes on top */
        put_tensor(text, &layout->tensors[i]);
        offset = padded(offset + layout->tensors[i].bytes, alignment);
    }
    while (text->length % alignment != 0 && !mica_text_failed(text))
        mica_text_append(text, "", 1);
    if (mica_text_failed(text))
        return no_memory(error);
    for (uint64_t i = first; i < end; i++)
        layout->tensors[i].offset += text->length;
    layout->file_bytes[shard] = text->length + offset;
    return MICA_OK;
}

mica_status mica_gguf_layout_make(mica_gguf_tensor *tensors, uint64_t count, const mica_gguf_metadata *metadata, uint64_t split_bytes,
                                  mica_gguf_layout *layout, mica_error *error) {
    const uint64_t alignment = metadata->alignment ? metadata->alignment : MICA_GGUF_ALIGNMENT;
    *layout = (mica_gguf_layout){.tensors = tensors, .tensor_count = count};
    mica_status status = check_metadata(metadata, error);
    if (status == MICA_OK)
        status = check_tensors(layout, error);
    if (status == MICA_OK)
        status = assign_shards(layout, split_bytes, alignment, error);
    if (status == MICA_OK) {
        layout->headers = mica_calloc(layout->shard_count, sizeof *layout->headers);
        layout->file_bytes = mica_calloc(layout->shard_count, sizeof *layout->file_bytes);
        status = layout->headers && layout->file_bytes ? MICA_OK : no_memory(error);
    }
    uint64_t first = 0;
    for (uint32_t shard = 0; status == MICA_OK && shard < layout->shard_count; shard++) {
        uint64_t end = first;
        while (end < count && layout->tensors[end].shard == shard)
            end++;
        status = make_header(layout, metadata, shard, first, end, alignment, error);
        first = end;
    }
    if (status != MICA_OK)
        mica_gguf_layout_release(layout);
    return status;
}

void mica_gguf_layout_release(mica_gguf_layout *layout) {
    for (uint32_t i = 0; layout->headers && i < layout->shard_count; i++)
        mica_text_release(&layout->headers[i]);
    mica_free(layout->headers);
    mica_free(layout->file_bytes);
    mica_free(layout->tensors);
    *layout = (mica_gguf_layout){0};
}

char *mica_gguf_file_path(const char *path, uint32_t shard, uint32_t count) {
    if (count == 1)
        return mica_strdup(path);
    size_t length = strlen(path), suffix = strlen(SUFFIX), bytes;
    if (length > suffix && strcmp(path + length - suffix, SUFFIX) == 0)
        length -= suffix;
    char *name = mica_malloc(bytes = length + 40);
    if (name)
        snprintf(name, bytes, "%.*s-%05" PRIu32 "-of-%05" PRIu32 SUFFIX, (int)length, path, shard + 1, count);
    return name;
}

/* ---- the files */

struct mica_gguf_writer {
    const mica_gguf_layout *layout;
    mica_partial_files *files;
};

mica_status mica_gguf_writer_open(const char *path, const mica_gguf_layout *layout, bool fresh, mica_gguf_writer **writer,
                                  mica_error *error) {
    mica_gguf_writer *opened = mica_calloc(1, sizeof *opened);
    mica_partial_file *files = mica_calloc(layout->shard_count, sizeof *files);
    mica_status status = opened && files ? MICA_OK : no_memory(error);
    for (uint32_t i = 0; status == MICA_OK && i < layout->shard_count; i++) {
        const mica_text *header = &layout->headers[i];
        files[i] = (mica_partial_file){mica_gguf_file_path(path, i, layout->shard_count), layout->file_bytes[i], header->bytes,
                                       header->length};
        status = files[i].path ? MICA_OK : no_memory(error);
    }
    if (status == MICA_OK) {
        status = mica_partial_files_open(files, layout->shard_count, fresh, &opened->files, error);
    } else {
        for (uint32_t i = 0; files && i < layout->shard_count; i++)
            mica_free(files[i].path);
        mica_free(files);
    }
    if (status != MICA_OK) {
        mica_free(opened);
        return status;
    }
    opened->layout = layout;
    *writer = opened;
    return MICA_OK;
}

mica_status mica_gguf_writer_put(mica_gguf_writer *writer, const mica_gguf_tensor *tensor, uint64_t position, const void *bytes,
                                 uint64_t length, mica_error *error) {
    if (position > tensor->bytes || length > tensor->bytes - position)
        return mica_fail(error, MICA_FAILED, "%s: expected bytes within its %" PRIu64 ", got %" PRIu64 " at %" PRIu64, tensor->name,
                         tensor->bytes, length, position);
    return mica_partial_files_write(writer->files, tensor->shard, tensor->offset + position, bytes, length, error);
}

mica_status mica_gguf_writer_sync(mica_gguf_writer *writer, mica_error *error) {
    return mica_partial_files_sync(writer->files, error);
}

mica_status mica_gguf_writer_finish(mica_gguf_writer *writer, mica_error *error) {
    mica_partial_files *files = writer->files;
    mica_free(writer);
    return mica_partial_files_finish(files, error);
}

void mica_gguf_writer_close(mica_gguf_writer *writer) {
    if (!writer)
        return;
    mica_partial_files_close(writer->files);
    mica_free(writer);
}
