/* formats/safetensors_write.c: the layout: order, shards, offsets, headers. The files are safetensors_writer.c.
 * Judged by tests/formats/test_safetensors_write.c and tests/interop/safetensors_files.py. */
#include "formats/safetensors_write.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define HEADER_LIMIT 100000000u /* of readers */
#define LENGTH_BYTES 8u
#define PARTIAL ".partial"

/* The reference writer's order of types, from its last to its first: no element is larger than those before it. */
static const mica_dtype type_order[] = {MICA_I64,     MICA_F64,     MICA_F32,     MICA_I32, MICA_BF16, MICA_F16, MICA_I16,
                                        MICA_F8_E8M0, MICA_F8_E4M3, MICA_F8_E5M2, MICA_I8,  MICA_U8,   MICA_BOOL};

static int type_rank(mica_dtype dtype) {
    int rank = 0;
    while (rank < MICA_DTYPE_PLAIN_COUNT - 1 && type_order[rank] != dtype)
        rank++;
    return rank;
}

static bool is_digit(char byte) {
    return byte >= '0' && byte <= '9';
}

/* Runs of digits count as numbers; what is equal then is ordered by its bytes. */
static int compare_naturally(const char *a, const char *b) {
    const char *left = a, *right = b;
    while (*left && *right) {
        if (is_digit(*left) && is_digit(*right)) {
            left += strspn(left, "0");
            right += strspn(right, "0");
            const size_t digits = strspn(left, "0123456789"), others = strspn(right, "0123456789");
            const int order = digits != others ? (digits > others) - (digits < others) : memcmp(left, right, digits);
            if (order != 0)
                return order;
            left += digits;
            right += others;
        } else if (*left != *right) {
            return (unsigned char)*left < (unsigned char)*right ? -1 : 1;
        } else {
            left++;
            right++;
        }
    }
    return *left ? 1 : *right ? -1 : strcmp(a, b);
}

static int compare_for_sharding(const void *a, const void *b) {
    return compare_naturally(((const mica_safetensors_entry *)a)->name, ((const mica_safetensors_entry *)b)->name);
}

static int compare_in_shard(const void *a, const void *b) {
    const mica_safetensors_entry *left = a, *right = b;
    const int ranks[2] = {type_rank(left->dtype), type_rank(right->dtype)};
    return ranks[0] != ranks[1] ? ranks[0] - ranks[1] : strcmp(left->name, right->name);
}

const char *mica_safetensors_shard_name(uint32_t shard, uint32_t count, char name[MICA_SHARD_NAME_BYTES]) {
    if (count == 1)
        snprintf(name, MICA_SHARD_NAME_BYTES, "model.safetensors");
    else
        snprintf(name, MICA_SHARD_NAME_BYTES, "model-%05" PRIu32 "-of-%05" PRIu32 ".safetensors", shard + 1, count);
    return name;
}

/* At least five digits at *at; moves past them. */
static bool skip_number(const char **at) {
    const size_t digits = strspn(*at, "0123456789");
    *at += digits;
    return digits >= 5 && digits <= 10;
}

static bool skip_text(const char **at, const char *text) {
    const size_t length = strlen(text);
    if (strncmp(*at, text, length) != 0)
        return false;
    *at += length;
    return true;
}

bool mica_safetensors_is_written_name(const char *name) {
    const char *at = name;
    bool ours = skip_text(&at, MICA_SAFETENSORS_INDEX) || skip_text(&at, "model.safetensors");
    if (!ours)
        ours = skip_text(&at, "model-") && skip_number(&at) && skip_text(&at, "-of-") && skip_number(&at) && skip_text(&at, ".safetensors");
    return ours && (*at == '\0' || strcmp(at, PARTIAL) == 0);
}

/* ---- sizes, shards, offsets */

static mica_status measure_entry(mica_safetensors_entry *entry, uint64_t *total, mica_error *error) {
    uint64_t bytes = mica_dtype_bytes(entry->dtype);
    if (mica_dtype_is_block(entry->dtype))
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a type that safetensors has, got %s", entry->name,
                         mica_dtype_name(entry->dtype));
    for (uint32_t i = 0; i < entry->rank; i++)
        if (!mica_mul_u64(bytes, entry->shape[i], &bytes))
            return mica_fail(error, MICA_BAD_INPUT, "%s: expected a size below 2^64 bytes", entry->name);
    entry->bytes = bytes;
    if (mica_add_u64(*total, bytes, total) && *total <= (uint64_t)INT64_MAX)
        return MICA_OK;
    return mica_fail(error, MICA_BAD_INPUT, "%s: expected at most 2^63 bytes in all tensors", entry->name);
}

/* Fills shards one after the other, in the order of the entries. */
static mica_status assign_shards(mica_safetensors_layout *layout, uint64_t limit, mica_error *error) {
    uint64_t in_shard = 0;
    layout->shard_count = 1;
    for (uint64_t i = 0; i < layout->entry_count; i++) {
        mica_safetensors_entry *entry = &layout->entries[i];
        if (i > 0 && compare_naturally(layout->entries[i - 1].name, entry->name) == 0)
            return mica_fail(error, MICA_BAD_INPUT, "%s: expected unique names, got a duplicate", entry->name);
        if (in_shard > 0 && (in_shard > limit || entry->bytes > limit - in_shard)) {
            layout->shard_count++;
            in_shard = 0;
        }
        entry->shard = layout->shard_count - 1;
        in_shard += entry->bytes;
    }
    return MICA_OK;
}

/* ---- headers, as the reference writer has them: no spaces but those at the end */

static void write_name(mica_text *text, const char *name) {
    mica_text_puts(text, "\"");
    for (const char *at = name; *at; at++) {
        const unsigned char byte = (unsigned char)*at;
        static const char letters[] = "\b\f\n\r\t", *const escapes[] = {"\\b", "\\f", "\\n", "\\r", "\\t"};
        const char *letter = strchr(letters, byte);
        if (byte == '"' || byte == '\\')
            mica_text_printf(text, "\\%c", byte);
        else if (letter)
            mica_text_puts(text, escapes[letter - letters]);
        else if (byte < 0x20)
            mica_text_printf(text, "\\u%04x", byte);
        else
            mica_text_append(text, at, 1);
    }
    mica_text_puts(text, "\"");
}

/* `offset`: of the data. */
static void write_entry(mica_text *text, const mica_safetensors_entry *entry, uint64_t offset) {
    mica_text_puts(text, ",");
    write_name(text, entry->name);
    mica_text_printf(text, ":{\"dtype\":\"%s\",\"shape\":[", mica_dtype_name(entry->dtype));
    for (uint32_t i = 0; i < entry->rank; i++)
        mica_text_printf(text, i ? ",%" PRIu64 : "%" PRIu64, entry->shape[i]);
    mica_text_printf(text, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", offset, offset + entry->bytes);
}

static mica_status make_header(mica_safetensors_layout *layout, uint32_t shard, uint64_t first, uint64_t end, mica_error *error) {
    mica_text *text = &layout->headers[shard];
    uint64_t offset = 0;
    mica_text_append(text, "\0\0\0\0\0\0\0\0", LENGTH_BYTES);
    mica_text_puts(text, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint64_t i = first; i < end; i++) {
        write_entry(text, &layout->entries[i], offset);
        layout->entries[i].offset = offset; /* the header's length comes on top */
        offset += layout->entries[i].bytes;
    }
    mica_text_puts(text, "}");
    while (text->length % LENGTH_BYTES != 0 && !mica_text_failed(text))
        mica_text_puts(text, " ");
    if (mica_text_failed(text))
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the headers");
    const uint64_t length = text->length - LENGTH_BYTES;
    if (length > HEADER_LIMIT)
        return mica_fail(error, MICA_USAGE, "--shard-size: expected headers of at most %u bytes, which smaller shards have, got %" PRIu64,
                         HEADER_LIMIT, length);
    for (uint32_t i = 0; i < LENGTH_BYTES; i++)
        text->bytes[i] = (char)(length >> 8 * i);
    for (uint64_t i = first; i < end; i++)
        layout->entries[i].offset += text->length;
    layout->file_bytes[shard] = text->length + offset;
    return MICA_OK;
}

static mica_status make_headers(mica_safetensors_layout *layout, mica_error *error) {
    layout->headers = mica_calloc(layout->shard_count, sizeof *layout->headers);
    layout->file_bytes = mica_calloc(layout->shard_count, sizeof *layout->file_bytes);
    if (!layout->headers || !layout->file_bytes)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %" PRIu32 " shards", layout->shard_count);
    mica_status status = MICA_OK;
    uint64_t first = 0;
    for (uint32_t shard = 0; status == MICA_OK && shard < layout->shard_count; shard++) {
        uint64_t end = first;
        while (end < layout->entry_count && layout->entries[end].shard == shard)
            end++;
        if (end > first)
            qsort(layout->entries + first, end - first, sizeof *layout->entries, compare_in_shard);
        status = make_header(layout, shard, first, end, error);
        first = end;
    }
    return status;
}

mica_status mica_safetensors_layout_make(mica_safetensors_entry *entries, uint64_t count, uint64_t shard_bytes,
                                         mica_safetensors_layout *layout, mica_error *error) {
    *layout = (mica_safetensors_layout){.entries = entries, .entry_count = count};
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < count; i++)
        status = measure_entry(&entries[i], &layout->data_bytes, error);
    if (status == MICA_OK && count > 0)
        qsort(entries, count, sizeof *entries, compare_for_sharding);
    if (status == MICA_OK)
        status = assign_shards(layout, shard_bytes ? shard_bytes : MICA_SHARD_BYTES_DEFAULT, error);
    if (status == MICA_OK)
        status = make_headers(layout, error);
    if (status != MICA_OK)
        mica_safetensors_layout_release(layout);
    return status;
}

void mica_safetensors_layout_release(mica_safetensors_layout *layout) {
    for (uint32_t i = 0; layout->headers && i < layout->shard_count; i++)
        mica_text_release(&layout->headers[i]);
    mica_free(layout->headers);
    mica_free(layout->file_bytes);
    mica_free(layout->entries);
    *layout = (mica_safetensors_layout){0};
}
