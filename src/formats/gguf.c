/* formats/gguf.c: see the header. One pass over the bytes with a cursor that knows how long the file is; a header that is longer than
 * what was read so far is read further and parsed again. Judged by tests/formats/test_gguf.c and tests/fuzz/fuzz_gguf.c. */
#include "formats/gguf.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "formats/json_cursor.h"

#define KEY_BYTES_MAX 65535u             /* the format's own */
#define ENTRY_BYTES_MIN (8u + 1u + 4u + 1u)  /* a key of one byte, a value of one */
#define TENSOR_BYTES_MIN (8u + 1u + 4u + 4u + 8u)
#define ALIGNMENT_MAX (1u << 30)
#define FIRST_READ ((uint64_t)1 << 20)
#define HEADER_MAX ((uint64_t)4 << 30) /* the largest known are 20 MB */

typedef struct parser {
    const char *name;
    const uint8_t *bytes;
    uint64_t length, file_bytes, at;
    bool incomplete;   /* `bytes` ended before the header did, and the file goes on */
    char where[MICA_NAME_SHOW_BYTES + 16]; /* "key general.name" */
    mica_text keys, names;
    mica_gguf *out;
    uint64_t entry_capacity, tensor_capacity;
    mica_status status; /* the first failure */
    mica_error *error;
} parser;

static mica_status refuse(parser *p, const char *what, const char *expected, const char *got) {
    return p->status = mica_fail(p->error, MICA_BAD_INPUT, "%s: %s%s%s: expected %s, got %s", p->name, p->where, *p->where ? ": " : "",
                                 what, expected, got);
}

static MICA_PRINTF(4, 5) mica_status refuse_got(parser *p, const char *what, const char *expected, const char *format, ...) {
    char got[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(got, sizeof got, format, arguments);
    va_end(arguments);
    return refuse(p, what, expected, got);
}

static mica_status no_memory(parser *p) {
    return p->status = mica_fail(p->error, MICA_NO_MEMORY, "%s: out of memory for its header", p->name);
}

/* The next `count` bytes, or NULL: the file ends before them, or what was read of it. */
static const uint8_t *take(parser *p, uint64_t count, const char *what) {
    char expected[64];
    if (count > p->file_bytes - p->at) {
        snprintf(expected, sizeof expected, "%" PRIu64 " byte%s", count, count == 1 ? "" : "s");
        refuse_got(p, what, expected, "%" PRIu64 " to the end of the file", p->file_bytes - p->at);
        return NULL;
    }
    if (count > p->length - p->at) {
        p->incomplete = true;
        p->status = MICA_BAD_INPUT;
        return NULL;
    }
    const uint8_t *bytes = p->bytes + p->at;
    p->at += count;
    return bytes;
}

static uint64_t little_endian(const uint8_t *bytes, uint32_t count) {
    uint64_t value = 0;
    while (count-- > 0)
        value = value << 8 | bytes[count];
    return value;
}

static bool take_number(parser *p, uint32_t size, const char *what, uint64_t *value) {
    const uint8_t *bytes = take(p, size, what);
    if (bytes)
        *value = little_endian(bytes, size);
    return bytes != NULL;
}

static bool take_string(parser *p, const char *what, mica_gguf_string *string) {
    uint64_t length;
    if (!take_number(p, 8, what, &length))
        return false;
    const uint8_t *bytes = take(p, length, what);
    *string = (mica_gguf_string){(const char *)bytes, length};
    return bytes != NULL;
}

/* ---- names */

/* A key or a tensor's name, into an arena: from 1 to `limit` bytes of UTF-8 without NUL. */
static bool take_name(parser *p, mica_text *arena, uint64_t limit, const char *kind) {
    mica_gguf_string name;
    char expected[64];
    if (!take_string(p, "name", &name))
        return false;
    snprintf(expected, sizeof expected, "1 to %" PRIu64 " bytes", limit);
    if (name.length == 0 || name.length > limit)
        return refuse_got(p, "name", expected, "%" PRIu64, name.length) == MICA_OK;
    for (size_t at = 0, sequence; at < name.length; at += sequence) {
        sequence = mica_utf8_sequence(name.bytes + at, name.length - at);
        if (sequence == 0 || (unsigned char)name.bytes[at] < 0x20)
            return refuse_got(p, "name", "printable UTF-8", "byte 0x%02x at %zu", (unsigned char)name.bytes[at], at) == MICA_OK;
    }
    size_t start = arena->length;
    mica_text_append(arena, name.bytes, name.length);
    mica_text_append(arena, "", 1);
    if (mica_text_failed(arena))
        return no_memory(p) == MICA_OK;
    char shown[MICA_NAME_SHOW_BYTES];
    snprintf(p->where, sizeof p->where, "%s %s", kind, mica_name_show(arena->bytes + start, shown));
    return true;
}

/* ---- metadata */

const char *mica_gguf_type_name(mica_gguf_type type) {
    static const char *const names[] = {
#define X(name, text, bytes) text,
        MICA_GGUF_TYPE_LIST(X)
#undef X
    };
    return (unsigned)type < MICA_GGUF_TYPE_COUNT ? names[type] : "unknown";
}

uint32_t mica_gguf_type_bytes(mica_gguf_type type) {
    static const uint8_t sizes[] = {
#define X(name, text, bytes) bytes,
        MICA_GGUF_TYPE_LIST(X)
#undef X
    };
    return (unsigned)type < MICA_GGUF_TYPE_COUNT ? sizes[type] : 0;
}

static bool take_type(parser *p, const char *what, mica_gguf_type *type) {
    uint64_t number;
    if (!take_number(p, 4, what, &number))
        return false;
    if (number >= MICA_GGUF_TYPE_COUNT)
        return refuse_got(p, what, "a type below 13", "%" PRIu64, number) == MICA_OK;
    *type = (mica_gguf_type)number;
    return true;
}

static bool take_values(parser *p, mica_gguf_entry *entry) {
    uint32_t size = mica_gguf_type_bytes(entry->type);
    uint64_t start = p->at, bytes;
    entry->bytes = p->bytes + start;
    if (entry->type == MICA_GGUF_STRING) {
        mica_gguf_string string;
        if (entry->count > (p->file_bytes - p->at) / 8)
            return refuse_got(p, "array", "a count that the file has room for", "%" PRIu64 " strings", entry->count) == MICA_OK;
        for (uint64_t i = 0; i < entry->count; i++)
            if (!take_string(p, entry->is_array ? "a string of the array" : "string", &string))
                return false;
    } else if (!mica_mul_u64(entry->count, size, &bytes)) {
        return refuse_got(p, "array", "a count that the file has room for", "%" PRIu64, entry->count) == MICA_OK;
    } else if (!take(p, bytes, entry->is_array ? "array" : "value")) {
        return false;
    }
    entry->length = p->at - start;
    for (uint64_t i = 0; entry->type == MICA_GGUF_BOOL && i < entry->count; i++)
        if (entry->bytes[i] > 1)
            return refuse_got(p, "bool", "0 or 1", "%u", entry->bytes[i]) == MICA_OK;
    return true;
}

static bool take_entry(parser *p, uint64_t index) {
    mica_gguf *out = p->out;
    if (index == p->entry_capacity) {
        uint64_t capacity = index ? 2 * index : 64;
        mica_gguf_entry *entries = mica_reallocarray(out->entries, capacity, sizeof *entries);
        if (!entries)
            return no_memory(p) == MICA_OK;
        out->entries = entries;
        p->entry_capacity = capacity;
    }
    mica_gguf_entry *entry = &out->entries[index];
    *entry = (mica_gguf_entry){.count = 1};
    snprintf(p->where, sizeof p->where, "key %" PRIu64, index);
    if (!take_name(p, &p->keys, KEY_BYTES_MAX, "key") || !take_type(p, "type", &entry->type))
        return false;
    if (entry->type == MICA_GGUF_ARRAY) {
        entry->is_array = true;
        if (!take_type(p, "type of the array's elements", &entry->type))
            return false;
        if (entry->type == MICA_GGUF_ARRAY)
            return refuse(p, "array", "elements that are no arrays", "nested arrays") == MICA_OK;
        if (!take_number(p, 8, "count of the array", &entry->count))
            return false;
    }
    out->entry_count = index + 1;
    return take_values(p, entry);
}

static int compare_keys(const void *a, const void *b) {
    return strcmp((*(const mica_gguf_entry *const *)a)->key, (*(const mica_gguf_entry *const *)b)->key);
}

/* Gives every entry its key at the arena's final place, and sorts. */
static mica_status sort_entries(parser *p) {
    mica_gguf *out = p->out;
    const char *key = p->keys.bytes;
    out->by_key = mica_reallocarray(NULL, out->entry_count + 1, sizeof *out->by_key);
    if (!out->by_key)
        return no_memory(p);
    for (uint64_t i = 0; i < out->entry_count; i++) {
        out->entries[i].key = key;
        key += strlen(key) + 1;
        out->by_key[i] = &out->entries[i];
    }
    qsort(out->by_key, out->entry_count, sizeof *out->by_key, compare_keys);
    for (uint64_t i = 1; i < out->entry_count; i++)
        if (strcmp(out->by_key[i - 1]->key, out->by_key[i]->key) == 0) {
            char shown[MICA_NAME_SHOW_BYTES];
            return p->status = mica_fail(p->error, MICA_BAD_INPUT, "%s: key %s: expected it once, got a duplicate", p->name,
                                         mica_name_show(out->by_key[i]->key, shown));
        }
    return MICA_OK;
}

static mica_status read_alignment(parser *p) {
    uint32_t alignment = MICA_GGUF_ALIGNMENT;
    p->status = mica_gguf_u32_if_present(p->out, "general.alignment", &alignment, p->error);
    if (p->status != MICA_OK)
        return p->status;
    snprintf(p->where, sizeof p->where, "key general.alignment");
    if (alignment == 0 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return refuse_got(p, "value", "a power of two up to 2^30", "%u", alignment);
    p->out->alignment = alignment;
    return MICA_OK;
}

/* ---- tensors */

/* Types that ggml has and mica does not read: named, so that nobody has to look up a number. */
static const char *foreign_type(uint64_t number) {
    static const char *const names[] = {[4] = "Q4_2", [5] = "Q4_3", [9] = "Q8_1", [15] = "Q8_K", [16] = "IQ2_XXS", [17] = "IQ2_XS",
                                        [18] = "IQ3_XXS", [19] = "IQ1_S", [21] = "IQ3_S", [22] = "IQ2_S", [29] = "IQ1_M", [34] = "TQ1_0",
                                        [35] = "TQ2_0", [40] = "NVFP4", [41] = "Q1_0", [42] = "Q2_0"};
    return number < sizeof names / sizeof *names && names[number] ? names[number] : "a type that is not known";
}

static bool check_shape(parser *p, mica_tensor *tensor) {
    char shape[MICA_RANK_MAX * 22 + 4], expected[64];
    uint64_t elements = 1, bytes = 0, row = tensor->rank ? tensor->shape[tensor->rank - 1] : 1;
    uint32_t block = mica_dtype_block_elements(tensor->dtype);
    bool fits = true;
    mica_shape_show(tensor->rank, tensor->shape, shape, sizeof shape);
    for (uint32_t i = 0; fits && i < tensor->rank; i++)
        fits = tensor->shape[i] <= INT64_MAX && mica_mul_u64(elements, tensor->shape[i], &elements);
    if (!fits || elements > INT64_MAX)
        return refuse(p, "shape", "a product below 2^63", shape) == MICA_OK;
    snprintf(expected, sizeof expected, "rows of whole blocks of %u (%s)", block, mica_dtype_name(tensor->dtype));
    if (row % block)
        return refuse(p, "shape", expected, shape) == MICA_OK;
    if (!mica_dtype_run_bytes(tensor->dtype, elements, &bytes))
        return refuse(p, "shape", "a product below 2^64 bytes", shape) == MICA_OK;
    tensor->elements = elements;
    tensor->bytes = bytes;
    return true;
}

static bool take_tensor(parser *p, uint64_t index) {
    mica_gguf *out = p->out;
    uint64_t rank, number;
    if (index == p->tensor_capacity) {
        uint64_t capacity = index ? 2 * index : 64;
        mica_tensor *tensors = mica_reallocarray(out->tensors, capacity, sizeof *tensors);
        if (!tensors)
            return no_memory(p) == MICA_OK;
        out->tensors = tensors;
        p->tensor_capacity = capacity;
    }
    mica_tensor *tensor = &out->tensors[index];
    *tensor = (mica_tensor){0};
    snprintf(p->where, sizeof p->where, "tensor %" PRIu64, index);
    if (!take_name(p, &p->names, MICA_GGUF_TENSOR_NAME_BYTES - 1, "tensor") || !take_number(p, 4, "rank", &rank))
        return false;
    out->tensor_count = index + 1;
    if (rank > MICA_GGUF_RANK_MAX)
        return refuse_got(p, "rank", "at most 4 dimensions", "%" PRIu64, rank) == MICA_OK;
    tensor->rank = (uint32_t)rank;
    for (uint32_t i = tensor->rank; i-- > 0;) /* the file begins with the dimension that varies fastest */
        if (!take_number(p, 8, "shape", &tensor->shape[i]))
            return false;
    if (!take_number(p, 4, "type", &number))
        return false;
    if (!mica_dtype_from_ggml((int64_t)number, &tensor->dtype))
        return refuse_got(p, "type", "one that mica reads (F32 F16 BF16 F64 I8 I16 I32 I64 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K "
                                     "Q6_K IQ4_NL IQ4_XS MXFP4)", "%s (%" PRIu64 ")", foreign_type(number), number) == MICA_OK;
    return take_number(p, 8, "offset", &tensor->offset) && check_shape(p, tensor);
}

static uint64_t padded(uint64_t offset, uint64_t alignment) {
    return (offset + alignment - 1) & ~(alignment - 1); /* alignment is at most 2^30, offsets below 2^63: cannot wrap */
}

/* Tensors lie one behind the other, in the order of the table, each at the next multiple of the alignment. */
static mica_status check_layout(parser *p, uint64_t data_offset) {
    uint64_t end = 0, last = 0, room = p->file_bytes > data_offset ? p->file_bytes - data_offset : 0;
    const char *name = p->names.bytes;
    char expected[48];
    for (uint64_t i = 0; i < p->out->tensor_count; i++, name += strlen(name) + 1) {
        mica_tensor *tensor = &p->out->tensors[i];
        char shown[MICA_NAME_SHOW_BYTES];
        snprintf(p->where, sizeof p->where, "tensor %s", mica_name_show(name, shown));
        if (tensor->offset != end) {
            snprintf(expected, sizeof expected, "%" PRIu64, end);
            return refuse_got(p, "offset", expected, "%" PRIu64 " (%s)", tensor->offset,
                              tensor->offset % p->out->alignment ? "not aligned" : tensor->offset < end ? "an overlap" : "a hole");
        }
        if (end > room || tensor->bytes > room - end) {
            snprintf(expected, sizeof expected, "%" PRIu64 " bytes at %" PRIu64, tensor->bytes, data_offset + end);
            return refuse_got(p, "data", expected, "a file of %" PRIu64 " bytes: it is cut short", p->file_bytes);
        }
        tensor->name = name;
        tensor->offset += data_offset;
        last = end + tensor->bytes;
        end = padded(last, p->out->alignment);
    }
    *p->where = '\0';
    if (room > end)
        return refuse_got(p, "size", "nothing behind the last tensor", "%" PRIu64 " more bytes", room - end);
    return MICA_OK;
}

static int compare_tensors(const void *a, const void *b) {
    return strcmp(((const mica_tensor *)a)->name, ((const mica_tensor *)b)->name);
}

static mica_status sort_tensors(parser *p) {
    mica_gguf *out = p->out;
    if (out->tensor_count > 0)
        qsort(out->tensors, out->tensor_count, sizeof *out->tensors, compare_tensors);
    for (uint64_t i = 1; i < out->tensor_count; i++)
        if (compare_tensors(&out->tensors[i - 1], &out->tensors[i]) == 0) {
            char shown[MICA_NAME_SHOW_BYTES];
            return p->status = mica_fail(p->error, MICA_BAD_INPUT, "%s: tensor %s: expected unique names, got a duplicate", p->name,
                                         mica_name_show(out->tensors[i].name, shown));
        }
    return MICA_OK;
}

/* ---- the whole header */

static bool read_start(parser *p, uint64_t *tensor_count, uint64_t *entry_count) {
    uint64_t version, left;
    const uint8_t *magic = take(p, 4, "magic");
    if (!magic)
        return false;
    if (memcmp(magic, MICA_GGUF_MAGIC, 4) != 0)
        return refuse_got(p, "magic", "\"GGUF\"", "bytes %02x %02x %02x %02x", magic[0], magic[1], magic[2], magic[3]) == MICA_OK;
    if (!take_number(p, 4, "version", &version))
        return false;
    if (version != 2 && version != MICA_GGUF_VERSION)
        return refuse_got(p, "version", "2 or 3, little-endian", "%" PRIu64 "%s", version, version & 0xffff ? "" : " (big-endian)") ==
               MICA_OK;
    p->out->version = (uint32_t)version;
    if (!take_number(p, 8, "count of tensors", tensor_count) || !take_number(p, 8, "count of keys", entry_count))
        return false;
    left = p->file_bytes - p->at;
    if (*tensor_count > left / TENSOR_BYTES_MIN)
        return refuse_got(p, "count of tensors", "one that the file has room for", "%" PRIu64, *tensor_count) == MICA_OK;
    if (*entry_count > left / ENTRY_BYTES_MIN)
        return refuse_got(p, "count of keys", "one that the file has room for", "%" PRIu64, *entry_count) == MICA_OK;
    return true;
}

static mica_status read_header(parser *p) {
    uint64_t tensor_count, entry_count;
    if (!read_start(p, &tensor_count, &entry_count))
        return p->status;
    for (uint64_t i = 0; i < entry_count; i++)
        if (!take_entry(p, i))
            return p->status;
    if (sort_entries(p) != MICA_OK || read_alignment(p) != MICA_OK)
        return p->status;
    for (uint64_t i = 0; i < tensor_count; i++)
        if (!take_tensor(p, i))
            return p->status;
    p->out->data_offset = padded(p->at, p->out->alignment);
    return check_layout(p, p->out->data_offset) != MICA_OK ? p->status : sort_tensors(p);
}

static mica_status parse(parser *p) {
    *p->out = (mica_gguf){.alignment = MICA_GGUF_ALIGNMENT};
    if (!(p->out->name = mica_strdup(p->name)))
        no_memory(p);
    else
        read_header(p);
    p->out->keys = p->keys.bytes;
    p->out->names = p->names.bytes;
    if (p->status != MICA_OK)
        mica_gguf_release(p->out);
    return p->status;
}

mica_status mica_gguf_parse(const char *name, const uint8_t *bytes, uint64_t length, uint64_t file_bytes, mica_gguf *result,
                            mica_error *error) {
    parser p = {.name = name, .bytes = bytes, .length = length, .file_bytes = file_bytes, .out = result, .error = error};
    mica_status status = parse(&p);
    if (p.incomplete)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected the whole header, got its first %" PRIu64 " bytes", name, length);
    return status;
}

mica_status mica_gguf_read(const mica_file *file, const char *name, mica_gguf *result, mica_error *error) {
    uint64_t file_bytes = mica_file_bytes(file), length = 0;
    uint8_t *header = NULL;
    for (uint64_t want = FIRST_READ;; want *= 4) {
        want = want < file_bytes ? want : file_bytes;
        if (want > HEADER_MAX)
            want = HEADER_MAX;
        uint8_t *larger = mica_reallocarray(header, want + 1, 1);
        mica_status status = larger ? mica_file_read(file, length, larger + length, want - length, error)
                                    : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its header", name);
        header = larger ? larger : header;
        length = want;
        parser p = {.name = name, .bytes = header, .length = length, .file_bytes = file_bytes, .out = result, .error = error};
        if (status == MICA_OK)
            status = parse(&p);
        if (status == MICA_OK) {
            result->header = header;
            return MICA_OK;
        }
        if (!p.incomplete || length == HEADER_MAX) {
            mica_free(header);
            return p.incomplete ? mica_fail(error, MICA_BAD_INPUT, "%s: expected a header of at most 4 GiB, got a longer one", name)
                                : status;
        }
    }
}

void mica_gguf_release(mica_gguf *gguf) {
    mica_free(gguf->entries);
    mica_free(gguf->by_key);
    mica_free(gguf->tensors);
    mica_free(gguf->keys);
    mica_free(gguf->names);
    mica_free(gguf->header);
    mica_free(gguf->name);
    *gguf = (mica_gguf){0};
}
