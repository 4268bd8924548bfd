/* tests/formats/gguf_bytes.h: GGUF files built byte by byte in the test itself, right or wrong on purpose. */
#ifndef TESTS_FORMATS_GGUF_BYTES_H
#define TESTS_FORMATS_GGUF_BYTES_H

#include "base/scratch.h"
#include "base/text.h"
#include "formats/gguf.h"

static inline void put(mica_text *file, uint64_t value, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++) {
        char byte = (char)(value >> 8 * i);
        mica_text_append(file, &byte, 1);
    }
}

static inline void put_string(mica_text *file, const char *string) {
    put(file, strlen(string), 8);
    mica_text_puts(file, string);
}

static inline void put_start(mica_text *file, uint64_t tensors, uint64_t entries) {
    mica_text_puts(file, "GGUF");
    put(file, 3, 4);
    put(file, tensors, 8);
    put(file, entries, 8);
}

static inline void put_key(mica_text *file, const char *key, mica_gguf_type type) {
    put_string(file, key);
    put(file, type, 4);
}

static inline void put_u32(mica_text *file, const char *key, uint32_t value) {
    put_key(file, key, MICA_GGUF_UINT32);
    put(file, value, 4);
}

static inline void put_text(mica_text *file, const char *key, const char *value) {
    put_key(file, key, MICA_GGUF_STRING);
    put_string(file, value);
}

/* ne: up to four numbers that end with 0 */
static inline void put_tensor(mica_text *file, const char *name, const uint64_t *ne, uint32_t type, uint64_t offset) {
    uint32_t rank = 0;
    while (rank < 4 && ne[rank])
        rank++;
    put_string(file, name);
    put(file, rank, 4);
    for (uint32_t i = 0; i < rank; i++)
        put(file, ne[i], 8);
    put(file, type, 4);
    put(file, offset, 8);
}
#define NE(...) ((const uint64_t[5]){__VA_ARGS__})

static inline void put_padding(mica_text *file, uint32_t alignment) {
    while (file->length % alignment)
        put(file, 0, 1);
}

static inline void put_zeros(mica_text *file, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        put(file, 0, 1);
}

/* Writes it under `name` of the scratch directory and releases it. */
static inline void put_file(mica_text *file, const char *name) {
    assert_false(mica_text_failed(file));
    scratch_write(name, file->bytes ? file->bytes : "", file->length);
    mica_text_release(file);
}

#endif
