/* formats/gguf_metadata.c: what is asked of a GGUF's keys and values. Types are compared, never converted: a reader that is lenient here
 * would accept files that no other one does. Judged by tests/formats/test_gguf.c. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/gguf.h"

static int compare_key(const void *key, const void *entry) {
    return strcmp(key, (*(const mica_gguf_entry *const *)entry)->key);
}

const mica_gguf_entry *mica_gguf_find(const mica_gguf *gguf, const char *key) {
    const mica_gguf_entry *const *found =
        gguf->entry_count ? bsearch(key, gguf->by_key, gguf->entry_count, sizeof *gguf->by_key, compare_key) : NULL;
    return found ? *found : NULL;
}

static mica_status refuse_type(const mica_gguf *gguf, const char *key, const char *before, mica_gguf_type type,
                               const mica_gguf_entry *entry, mica_error *error) {
    return mica_fail(error, MICA_BAD_INPUT, "%s: key %s: expected %s%s, got %s%s", gguf->name, key, before, mica_gguf_type_name(type),
                     !entry ? "absent" : entry->is_array ? "array of " : "", entry ? mica_gguf_type_name(entry->type) : "");
}

/* Copies the value of an entry of exactly this type; absent: an error, or nothing. */
static mica_status scalar(const mica_gguf *gguf, const char *key, mica_gguf_type type, bool required, void *value, mica_error *error) {
    const mica_gguf_entry *entry = mica_gguf_find(gguf, key);
    if (!entry && !required)
        return MICA_OK;
    if (!entry || entry->is_array || entry->type != type)
        return refuse_type(gguf, key, "", type, entry, error);
    if (type == MICA_GGUF_STRING) {
        uint64_t at = 0;
        mica_gguf_next_string(entry, &at, value);
    } else if (type == MICA_GGUF_BOOL) {
        *(bool *)value = entry->bytes[0] != 0;
    } else {
        memcpy(value, entry->bytes, mica_gguf_type_bytes(type));
    }
    return MICA_OK;
}

#define DEFINE_SCALAR(name, c_type, type, required)                                                             \
    mica_status name(const mica_gguf *gguf, const char *key, c_type *value, mica_error *error) {                \
        return scalar(gguf, key, type, required, value, error);                                                 \
    }
DEFINE_SCALAR(mica_gguf_u16, uint16_t, MICA_GGUF_UINT16, true)
DEFINE_SCALAR(mica_gguf_u32, uint32_t, MICA_GGUF_UINT32, true)
DEFINE_SCALAR(mica_gguf_i32, int32_t, MICA_GGUF_INT32, true)
DEFINE_SCALAR(mica_gguf_f32, float, MICA_GGUF_FLOAT32, true)
DEFINE_SCALAR(mica_gguf_bool, bool, MICA_GGUF_BOOL, true)
DEFINE_SCALAR(mica_gguf_text, mica_gguf_string, MICA_GGUF_STRING, true)
DEFINE_SCALAR(mica_gguf_u32_if_present, uint32_t, MICA_GGUF_UINT32, false)
DEFINE_SCALAR(mica_gguf_f32_if_present, float, MICA_GGUF_FLOAT32, false)
DEFINE_SCALAR(mica_gguf_bool_if_present, bool, MICA_GGUF_BOOL, false)
DEFINE_SCALAR(mica_gguf_text_if_present, mica_gguf_string, MICA_GGUF_STRING, false)

mica_status mica_gguf_array(const mica_gguf *gguf, const char *key, mica_gguf_type type, const mica_gguf_entry **entry, mica_error *error) {
    *entry = mica_gguf_find(gguf, key);
    if (!*entry || !(*entry)->is_array || (*entry)->type != type)
        return refuse_type(gguf, key, "array of ", type, *entry, error);
    return MICA_OK;
}

int64_t mica_gguf_integer_at(const mica_gguf_entry *entry, uint64_t index) {
    uint32_t size = mica_gguf_type_bytes(entry->type);
    const uint8_t *bytes = entry->bytes + index * size;
    uint64_t value = 0;
    for (uint32_t i = size; i-- > 0;)
        value = value << 8 | bytes[i];
    bool is_signed = entry->type == MICA_GGUF_INT8 || entry->type == MICA_GGUF_INT16 || entry->type == MICA_GGUF_INT32;
    if (is_signed && size > 0 && bytes[size - 1] & 0x80)
        value |= UINT64_MAX << 8 * size;
    return (int64_t)value;
}

double mica_gguf_float_at(const mica_gguf_entry *entry, uint64_t index) {
    float narrow;
    double wide;
    if (entry->type == MICA_GGUF_FLOAT32) {
        memcpy(&narrow, entry->bytes + index * sizeof narrow, sizeof narrow);
        return (double)narrow;
    }
    memcpy(&wide, entry->bytes + index * sizeof wide, sizeof wide);
    return wide;
}

bool mica_gguf_next_string(const mica_gguf_entry *entry, uint64_t *at, mica_gguf_string *string) {
    uint64_t length;
    if (*at >= entry->length)
        return false;
    memcpy(&length, entry->bytes + *at, sizeof length);
    *string = (mica_gguf_string){(const char *)entry->bytes + *at + sizeof length, length};
    *at += sizeof length + length;
    return true;
}
