/* formats/safetensors.c: see the header. One pass over the text, one sort by name (uniqueness), one walk by offset (overlaps, holes).
 * Every refusal names the shard, the tensor where there is one, what was expected and what is there. */
#include "formats/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "formats/json_cursor.h"

#define HEADER_LIMIT 100000000u /* as the reference implementation */
#define LENGTH_BYTES 8u

typedef struct header_parser {
    const char *name;    /* of the file, for messages */
    uint64_t data_bytes; /* behind the header */
    mica_json_cursor cursor;
    mica_text names;      /* every name and its NUL, in the order of the header */
    mica_text word;       /* a key or a dtype */
    mica_tensor *tensors; /* `offset` counts from the data's start until all is checked */
    uint64_t count, capacity;
    mica_error *error;
} header_parser;

const char *mica_shape_show(uint32_t rank, const uint64_t *shape, char *buffer, size_t bytes) {
    size_t used = (size_t)snprintf(buffer, bytes, "[");
    for (uint32_t i = 0; i < rank && used < bytes; i++)
        used += (size_t)snprintf(buffer + used, bytes - used, i ? ", %" PRIu64 : "%" PRIu64, shape[i]);
    if (used < bytes)
        snprintf(buffer + used, bytes - used, "]");
    return buffer;
}

static MICA_CHECKED mica_status check_length(const char *name, uint64_t header_bytes, uint64_t file_bytes, mica_error *error) {
    if (file_bytes < LENGTH_BYTES) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected at least 8 bytes (the header length), got a file of %" PRIu64 " bytes", name,
                         file_bytes);
    }
    if (header_bytes > file_bytes - LENGTH_BYTES) {
        return mica_fail(error, MICA_BAD_INPUT,
                         "%s: header length: expected at most %" PRIu64 ", got %" PRIu64 " (a file of %" PRIu64 " bytes)", name,
                         file_bytes - LENGTH_BYTES, header_bytes, file_bytes);
    }
    if (header_bytes > HEADER_LIMIT)
        return mica_fail(error, MICA_BAD_INPUT, "%s: header length: expected at most %u, got %" PRIu64, name, HEADER_LIMIT, header_bytes);
    if (header_bytes == 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: header length: expected a JSON object, got 0 bytes", name);
    return MICA_OK;
}

/* Puts "file: tensor NAME: " and perhaps a key in front of a message of the cursor. */
static mica_status tensor_context(const header_parser *parser, const mica_tensor *tensor, const char *key) {
    char shown[MICA_NAME_SHOW_BYTES];
    return mica_fail_context(parser->error, parser->cursor.status, "%s: tensor %s%s%s", parser->name, mica_name_show(tensor->name, shown),
                             key ? ": " : "", key ? key : "");
}

static mica_status refuse_tensor(const header_parser *parser, const mica_tensor *tensor, const char *key, const char *expected,
                                 const char *got) {
    char shown[MICA_NAME_SHOW_BYTES];
    return mica_fail(parser->error, MICA_BAD_INPUT, "%s: tensor %s: %s: expected %s, got %s", parser->name,
                     mica_name_show(tensor->name, shown), key, expected, got);
}

static void list_dtypes(char *buffer, size_t bytes) {
    size_t used = (size_t)snprintf(buffer, bytes, "one of");
    for (int i = 0; i < MICA_DTYPE_PLAIN_COUNT && used < bytes; i++)
        used += (size_t)snprintf(buffer + used, bytes - used, " %s", mica_dtype_name((mica_dtype)i));
}

static mica_status read_dtype(header_parser *parser, mica_tensor *tensor) {
    char expected[160], shown[MICA_NAME_SHOW_BYTES];
    mica_text_clear(&parser->word);
    mica_cursor_string(&parser->cursor, &parser->word);
    if (parser->cursor.status != MICA_OK)
        return tensor_context(parser, tensor, "dtype");
    const char *dtype = parser->word.bytes;
    if (!mica_dtype_parse(dtype, &tensor->dtype)) {
        list_dtypes(expected, sizeof expected);
        return refuse_tensor(parser, tensor, "dtype", expected, mica_name_show(dtype, shown));
    }
    return MICA_OK;
}

static mica_status read_shape(header_parser *parser, mica_tensor *tensor) {
    char expected[48], got[48];
    uint64_t rank;
    mica_cursor_integers(&parser->cursor, tensor->shape, MICA_RANK_MAX, &rank);
    if (parser->cursor.status != MICA_OK)
        return tensor_context(parser, tensor, "shape");
    if (rank > MICA_RANK_MAX) {
        snprintf(expected, sizeof expected, "at most %d dimensions", MICA_RANK_MAX);
        snprintf(got, sizeof got, "%" PRIu64 " dimensions", rank);
        return refuse_tensor(parser, tensor, "shape", expected, got);
    }
    tensor->rank = (uint32_t)rank;
    return MICA_OK;
}

static mica_status read_offsets(header_parser *parser, mica_tensor *tensor) {
    char got[64];
    uint64_t offsets[2], count;
    mica_cursor_integers(&parser->cursor, offsets, 2, &count);
    if (parser->cursor.status != MICA_OK)
        return tensor_context(parser, tensor, "data_offsets");
    if (count != 2) {
        snprintf(got, sizeof got, "%" PRIu64 " number%s", count, count == 1 ? "" : "s");
        return refuse_tensor(parser, tensor, "data_offsets", "2 numbers", got);
    }
    if (offsets[0] > offsets[1])
        return refuse_tensor(parser, tensor, "data_offsets", "start <= end", mica_shape_show(2, offsets, got, sizeof got));
    tensor->offset = offsets[0];
    tensor->bytes = offsets[1] - offsets[0];
    return MICA_OK;
}

/* The three keys of an entry; all are required, each once, and there are no others. */
static const struct {
    const char *key;
    mica_status (*read)(header_parser *parser, mica_tensor *tensor);
} entry_keys[] = {{"dtype", read_dtype}, {"shape", read_shape}, {"data_offsets", read_offsets}};
#define ENTRY_KEYS (sizeof entry_keys / sizeof entry_keys[0])

/* dtype x shape = bytes. */
static mica_status check_bytes(const header_parser *parser, mica_tensor *tensor) {
    char shape[MICA_RANK_MAX * 22 + 4], expected[48], got[48];
    uint64_t elements = 1, bytes = 0;
    bool fits = true;
    for (uint32_t i = 0; fits && i < tensor->rank; i++)
        fits = mica_mul_u64(elements, tensor->shape[i], &elements);
    if (!fits || !mica_mul_u64(elements, mica_dtype_bytes(tensor->dtype), &bytes)) {
        return refuse_tensor(parser, tensor, "shape", "a product below 2^64 bytes",
                             mica_shape_show(tensor->rank, tensor->shape, shape, sizeof shape));
    }
    tensor->elements = elements;
    if (bytes == tensor->bytes)
        return MICA_OK;
    uint64_t end = tensor->offset + tensor->bytes;
    if (end > parser->data_bytes) {
        snprintf(expected, sizeof expected, "end at most %" PRIu64, parser->data_bytes);
        snprintf(got, sizeof got, "%" PRIu64, end);
        return refuse_tensor(parser, tensor, "data_offsets", expected, got);
    }
    char shown[MICA_NAME_SHOW_BYTES];
    return mica_fail(parser->error, MICA_BAD_INPUT, "%s: tensor %s: %s %s: expected %" PRIu64 " bytes, got %" PRIu64 " bytes", parser->name,
                     mica_name_show(tensor->name, shown), mica_dtype_name(tensor->dtype),
                     mica_shape_show(tensor->rank, tensor->shape, shape, sizeof shape), bytes, tensor->bytes);
}

static mica_status read_entry(header_parser *parser, mica_tensor *tensor) {
    uint64_t count = 0;
    unsigned seen = 0;
    mica_cursor_enter(&parser->cursor, '{');
    while (mica_cursor_next(&parser->cursor, '{', &count)) {
        mica_text_clear(&parser->word);
        mica_cursor_key(&parser->cursor, &parser->word);
        if (parser->cursor.status != MICA_OK)
            break;
        const char *key = parser->word.bytes;
        size_t i = 0;
        while (i < ENTRY_KEYS && strcmp(entry_keys[i].key, key) != 0)
            i++;
        if (i == ENTRY_KEYS || (seen & 1u << i)) {
            char shown[MICA_NAME_SHOW_BYTES];
            const char *what = i == ENTRY_KEYS ? "unknown key" : "duplicate key";
            return refuse_tensor(parser, tensor, what, "dtype, shape and data_offsets once each", mica_name_show(key, shown));
        }
        seen |= 1u << i;
        mica_status status = entry_keys[i].read(parser, tensor);
        if (status != MICA_OK)
            return status;
    }
    if (parser->cursor.status != MICA_OK)
        return tensor_context(parser, tensor, NULL);
    for (size_t i = 0; i < ENTRY_KEYS; i++) {
        if (!(seen & 1u << i))
            return refuse_tensor(parser, tensor, entry_keys[i].key, "present", "absent");
    }
    return check_bytes(parser, tensor);
}

/* __metadata__: strings to strings. Nothing in it changes what a tensor is, so nothing of it is kept. */
static mica_status read_metadata(header_parser *parser) {
    uint64_t count = 0;
    mica_cursor_enter(&parser->cursor, '{');
    while (mica_cursor_next(&parser->cursor, '{', &count)) {
        mica_cursor_key(&parser->cursor, NULL);
        mica_cursor_string(&parser->cursor, NULL);
    }
    if (parser->cursor.status != MICA_OK)
        return mica_fail_context(parser->error, parser->cursor.status, "%s: __metadata__", parser->name);
    return MICA_OK;
}

static MICA_CHECKED bool grow(header_parser *parser) {
    if (parser->count < parser->capacity)
        return true;
    uint64_t capacity = parser->capacity ? parser->capacity * 2 : 64;
    mica_tensor *tensors = mica_reallocarray(parser->tensors, capacity, sizeof *tensors);
    if (tensors) {
        parser->tensors = tensors;
        parser->capacity = capacity;
    }
    return tensors != NULL;
}

static mica_status read_header(header_parser *parser) {
    uint64_t count = 0;
    bool metadata = false;
    if (strchr(" \t\r\n", parser->cursor.bytes[0])) { /* the format's own rule, beyond JSON's */
        return mica_fail(parser->error, MICA_BAD_INPUT, "%s: header: expected '{' as its first byte, got byte 0x%02x", parser->name,
                         (unsigned char)parser->cursor.bytes[0]);
    }
    mica_cursor_enter(&parser->cursor, '{');
    while (mica_cursor_next(&parser->cursor, '{', &count)) {
        size_t start = parser->names.length;
        mica_cursor_key(&parser->cursor, &parser->names);
        mica_text_append(&parser->names, "", 1);
        if (parser->cursor.status != MICA_OK)
            break;
        if (mica_text_failed(&parser->names) || !grow(parser))
            return mica_fail(parser->error, MICA_NO_MEMORY, "%s: out of memory for its header", parser->name);
        mica_status status;
        if (strcmp(parser->names.bytes + start, "__metadata__") == 0) {
            if (metadata)
                return mica_fail(parser->error, MICA_BAD_INPUT, "%s: __metadata__: expected it once, got a duplicate", parser->name);
            metadata = true;
            parser->names.length = start;
            status = read_metadata(parser);
        } else {
            mica_tensor *tensor = &parser->tensors[parser->count++];
            *tensor = (mica_tensor){.name = parser->names.bytes + start}; /* the arena moves: valid until the next name */
            status = read_entry(parser, tensor);
        }
        if (status != MICA_OK)
            return status;
    }
    mica_cursor_end(&parser->cursor);
    if (parser->cursor.status != MICA_OK) {
        return mica_fail_context(parser->error, parser->cursor.status, "%s: header of %" PRIu64 " bytes", parser->name,
                                 parser->cursor.length);
    }
    return MICA_OK;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const mica_tensor *)a)->name, ((const mica_tensor *)b)->name);
}

/* Gives every tensor its name at the arena's final place, sorts, and finds duplicates. */
static mica_status sort_names(header_parser *parser) {
    const char *name = parser->names.bytes;
    bool sorted = true;
    for (uint64_t i = 0; i < parser->count; i++) {
        parser->tensors[i].name = name;
        name += strlen(name) + 1;
        sorted = sorted && (i == 0 || compare_names(&parser->tensors[i - 1], &parser->tensors[i]) < 0);
    }
    if (!sorted)
        qsort(parser->tensors, parser->count, sizeof *parser->tensors, compare_names);
    for (uint64_t i = 1; i < parser->count; i++) {
        if (compare_names(&parser->tensors[i - 1], &parser->tensors[i]) == 0)
            return refuse_tensor(parser, &parser->tensors[i], "name", "unique names", "a duplicate");
    }
    return MICA_OK;
}

static int compare_offsets(const void *a, const void *b) {
    const mica_tensor *left = *(const mica_tensor *const *)a, *right = *(const mica_tensor *const *)b;
    uint64_t left_keys[2] = {left->offset, left->bytes}, right_keys[2] = {right->offset, right->bytes};
    int i = left_keys[0] == right_keys[0];
    return (left_keys[i] > right_keys[i]) - (left_keys[i] < right_keys[i]);
}

/* A tensor that does not begin where the one before it ends. If some tensor leaves the file, that one is the culprit. */
static mica_status refuse_layout(const header_parser *parser, const mica_tensor *tensor, uint64_t expected_start) {
    char expected[48], got[64];
    for (uint64_t i = 0; i < parser->count; i++) {
        const mica_tensor *other = &parser->tensors[i];
        if (other->offset > parser->data_bytes || other->bytes > parser->data_bytes - other->offset) {
            snprintf(expected, sizeof expected, "end at most %" PRIu64, parser->data_bytes);
            snprintf(got, sizeof got, "%" PRIu64, other->offset + other->bytes);
            return refuse_tensor(parser, other, "data_offsets", expected, got);
        }
    }
    snprintf(expected, sizeof expected, "start %" PRIu64, expected_start);
    snprintf(got, sizeof got, "start %" PRIu64 " (%s)", tensor->offset, tensor->offset < expected_start ? "an overlap" : "a hole");
    return refuse_tensor(parser, tensor, "data_offsets", expected, got);
}

/* The data is covered from its first byte to its last, each byte by one tensor. */
static mica_status check_layout(const header_parser *parser, uint64_t header_end) {
    const mica_tensor **order = mica_reallocarray(NULL, parser->count ? parser->count : 1, sizeof *order);
    if (!order)
        return mica_fail(parser->error, MICA_NO_MEMORY, "%s: out of memory for its header", parser->name);
    for (uint64_t i = 0; i < parser->count; i++)
        order[i] = &parser->tensors[i];
    qsort(order, parser->count, sizeof *order, compare_offsets);
    mica_status status = MICA_OK;
    uint64_t end = 0;
    for (uint64_t i = 0; status == MICA_OK && i < parser->count; i++) {
        status = order[i]->offset == end ? MICA_OK : refuse_layout(parser, order[i], end);
        end = order[i]->offset + order[i]->bytes; /* at most the end that was read: cannot wrap */
    }
    mica_free(order);
    if (status == MICA_OK && end != parser->data_bytes) {
        uint64_t whole = UINT64_MAX; /* in the message, when the tensors claim more than that */
        (void)mica_add_u64(header_end, end, &whole);
        const char *reason = end > parser->data_bytes ? "it is cut short" : "bytes follow the last tensor";
        status = mica_fail(parser->error, MICA_BAD_INPUT, "%s: expected a file of %" PRIu64 " bytes, got %" PRIu64 " bytes: %s",
                           parser->name, whole, header_end + parser->data_bytes, reason);
    }
    return status;
}

mica_status mica_safetensors_parse(const char *name, const char *header, uint64_t header_bytes, uint64_t file_bytes,
                                   mica_safetensors *result, mica_error *error) {
    mica_status status = check_length(name, header_bytes, file_bytes, error);
    if (status != MICA_OK)
        return status;
    uint64_t header_end = LENGTH_BYTES + header_bytes;
    header_parser parser = {.name = name,
                            .data_bytes = file_bytes - header_end,
                            .cursor = {.bytes = header, .length = header_bytes, .error = error},
                            .names = MICA_TEXT_INIT,
                            .word = MICA_TEXT_INIT,
                            .error = error};
    if ((status = read_header(&parser)) == MICA_OK && (status = sort_names(&parser)) == MICA_OK)
        status = check_layout(&parser, header_end);
    mica_text_release(&parser.word);
    if (status != MICA_OK) {
        mica_text_release(&parser.names);
        mica_free(parser.tensors);
        return status;
    }
    for (uint64_t i = 0; i < parser.count; i++)
        parser.tensors[i].offset += header_end;
    *result = (mica_safetensors){.tensors = parser.tensors, .tensor_count = parser.count, .names = parser.names.bytes};
    return MICA_OK;
}

mica_status mica_safetensors_read(const mica_file *file, const char *name, mica_safetensors *result, mica_error *error) {
    uint8_t raw[LENGTH_BYTES] = {0};
    uint64_t file_bytes = mica_file_bytes(file), header_bytes = 0;
    mica_status status = MICA_OK;
    if (file_bytes >= LENGTH_BYTES && (status = mica_file_read(file, 0, raw, LENGTH_BYTES, error)) != MICA_OK)
        return status;
    for (int i = LENGTH_BYTES; i-- > 0;)
        header_bytes = header_bytes << 8 | raw[i];
    if ((status = check_length(name, header_bytes, file_bytes, error)) != MICA_OK) { /* before anything is allocated */
        return status;
    }
    char *header = mica_malloc(header_bytes);
    if (!header)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a header of %" PRIu64 " bytes", name, header_bytes);
    status = mica_file_read(file, LENGTH_BYTES, header, header_bytes, error);
    if (status == MICA_OK)
        status = mica_safetensors_parse(name, header, header_bytes, file_bytes, result, error);
    mica_free(header);
    return status;
}

void mica_safetensors_release(mica_safetensors *safetensors) {
    mica_free(safetensors->tensors);
    mica_free(safetensors->names);
    *safetensors = (mica_safetensors){0};
}
