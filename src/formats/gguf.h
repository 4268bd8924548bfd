/* formats/gguf.h: one GGUF file as it stands: metadata and table of tensors (docs/formats.md). Owns: the rules of the container, version 3
 * (and 2, which differs in nothing little-endian files have). Refuses everything else in one line: file, key or tensor, expected, got.
 * Sizes and counts are compared with the file before anything is allocated by them. Does not know what a key or a tensor means. */
#ifndef MICA_FORMATS_GGUF_H
#define MICA_FORMATS_GGUF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"
#include "formats/safetensors.h"

/* number in the file (0 on), name, bytes of one; 0: of a length of its own */
#define MICA_GGUF_TYPE_LIST(X)                                                                                          \
    X(UINT8, "u8", 1) X(INT8, "i8", 1) X(UINT16, "u16", 2) X(INT16, "i16", 2) X(UINT32, "u32", 4) X(INT32, "i32", 4)     \
    X(FLOAT32, "f32", 4) X(BOOL, "bool", 1) X(STRING, "string", 0) X(ARRAY, "array", 0) X(UINT64, "u64", 8)              \
    X(INT64, "i64", 8) X(FLOAT64, "f64", 8)

typedef enum mica_gguf_type {
#define X(name, text, bytes) MICA_GGUF_##name,
    MICA_GGUF_TYPE_LIST(X)
#undef X
    MICA_GGUF_TYPE_COUNT
} mica_gguf_type;
const char *mica_gguf_type_name(mica_gguf_type type);
uint32_t mica_gguf_type_bytes(mica_gguf_type type); /* of one value; 0 for strings and arrays */

#define MICA_GGUF_MAGIC "GGUF"
#define MICA_GGUF_VERSION 3u
#define MICA_GGUF_ALIGNMENT 32u      /* where general.alignment does not say otherwise */
#define MICA_GGUF_TENSOR_NAME_BYTES 64u /* with a NUL */
#define MICA_GGUF_RANK_MAX 4u

/* A key and its value. Numbers as they stand in the file: little-endian, not aligned. A string is its length (u64) and its bytes. */
typedef struct mica_gguf_entry {
    const char *key;
    mica_gguf_type type;    /* of the value; of its elements, where it is an array */
    bool is_array;
    uint64_t count;         /* 1 where it is no array */
    const uint8_t *bytes;   /* [count] values */
    uint64_t length;        /* in bytes */
} mica_gguf_entry;

/* Bytes that are not NUL-terminated. */
typedef struct mica_gguf_string {
    const char *bytes;
    uint64_t length;
} mica_gguf_string;

typedef struct mica_gguf {
    char *name;               /* of the file, for messages; owned */
    uint32_t version;
    uint64_t alignment;
    uint64_t data_offset;     /* of the first tensor, from the start of the file */
    mica_gguf_entry *entries; /* in the order of the file */
    uint64_t entry_count;
    mica_tensor *tensors;     /* sorted by name; shape in row-major order (the reverse of ne), offset from the start of the file */
    uint64_t tensor_count;
    const mica_gguf_entry **by_key; /* sorted */
    char *keys, *names;       /* what entries' keys and tensors' names point into */
    uint8_t *header;          /* what entries' bytes point into, where it was read; NULL after mica_gguf_parse */
} mica_gguf;

/* The parser alone, for the fuzzer: the first `length` bytes of a file of `file_bytes`, which the result points into. */
mica_status mica_gguf_parse(const char *name, const uint8_t *bytes, uint64_t length, uint64_t file_bytes, mica_gguf *result,
                            mica_error *error) MICA_CHECKED;
mica_status mica_gguf_read(const mica_file *file, const char *name, mica_gguf *result, mica_error *error) MICA_CHECKED;
void mica_gguf_release(mica_gguf *gguf);

/* ---- metadata. Results live as long as `gguf`. */

const mica_gguf_entry *mica_gguf_find(const mica_gguf *gguf, const char *key); /* NULL when absent. O(log n) */

/* The value of a key, of exactly this type, as readers of GGUF are strict. An absent key is BAD_INPUT, but for _if_present, which leaves
 * *value alone. */
mica_status mica_gguf_u16(const mica_gguf *gguf, const char *key, uint16_t *value, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_u32(const mica_gguf *gguf, const char *key, uint32_t *value, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_i32(const mica_gguf *gguf, const char *key, int32_t *value, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_f32(const mica_gguf *gguf, const char *key, float *value, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_bool(const mica_gguf *gguf, const char *key, bool *value, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_text(const mica_gguf *gguf, const char *key, mica_gguf_string *value, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_u32_if_present(const mica_gguf *gguf, const char *key, uint32_t *value, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_f32_if_present(const mica_gguf *gguf, const char *key, float *value, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_bool_if_present(const mica_gguf *gguf, const char *key, bool *value, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_text_if_present(const mica_gguf *gguf, const char *key, mica_gguf_string *value, mica_error *error) MICA_CHECKED;
/* The entry of an array with elements of this type. */
mica_status mica_gguf_array(const mica_gguf *gguf, const char *key, mica_gguf_type type, const mica_gguf_entry **entry,
                            mica_error *error) MICA_CHECKED;

/* Element `index` of an entry of an integer type (BOOL too), widened. */
int64_t mica_gguf_integer_at(const mica_gguf_entry *entry, uint64_t index);
/* The same for the floating types. */
double mica_gguf_float_at(const mica_gguf_entry *entry, uint64_t index);
/* The strings of an entry one after the other: *at begins at 0; false behind the last. */
bool mica_gguf_next_string(const mica_gguf_entry *entry, uint64_t *at, mica_gguf_string *string);

/* A source of tensors that is a GGUF file or a set of splits: the metadata of the first file; NULL for any other source. */
struct mica_tensor_source;
const mica_gguf *mica_gguf_of_source(const struct mica_tensor_source *source);

#endif
