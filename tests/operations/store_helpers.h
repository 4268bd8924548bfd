/* tests/operations/store_helpers.h: imports that must succeed, models compared bit for bit, variants of tiny-k2. */
#ifndef MICA_TESTS_STORE_HELPERS_H
#define MICA_TESTS_STORE_HELPERS_H

#include <mica/store.h>

#include "formats/store.h"
#include "operations/vindex_helpers.h"

static mica_error error;

static inline mica_status import(const char *checkpoint, const char *store, const mica_import_options *options) {
    char *text = NULL, *json = NULL;
    const mica_status status = mica_import(checkpoint, store, options, &text, &json, &error);
    if (status == MICA_OK) {
        assert_non_null(text);
        assert_non_null(json);
    }
    mica_string_free(text);
    mica_string_free(json);
    return status;
}

static inline void assert_imports(const char *checkpoint, const char *store, const mica_import_options *options) {
    if (import(checkpoint, store, options) != MICA_OK)
        fail_msg("%s", error.message);
}

static inline const char *named(const char *store, const char *name) {
    static char paths[4][SCRATCH_PATH_BYTES + 256];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s#%s", store, name);
    return path;
}

static inline void *load_tensor(const mica_tensor_source *source, const mica_tensor *tensor) {
    void *bytes = mica_malloc(tensor->bytes + 1);
    assert_int_equal(mica_file_read(source->shards[tensor->shard].file, tensor->offset, bytes, tensor->bytes, &error), MICA_OK);
    return bytes;
}

/* The same names, types, shapes and bytes; the same files. */
static inline void assert_same_model(const char *left, const char *right) {
    mica_tensor_source *a = NULL, *b = NULL;
    if (mica_tensor_source_open(left, &a, &error) != MICA_OK || mica_tensor_source_open(right, &b, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(a->tensor_count, b->tensor_count);
    for (uint64_t i = 0; i < a->tensor_count; i++) {
        const mica_tensor *one = &a->tensors[i], *other = &b->tensors[i];
        assert_string_equal(one->name, other->name);
        assert_int_equal(one->dtype, other->dtype);
        assert_int_equal(one->rank, other->rank);
        assert_memory_equal(one->shape, other->shape, one->rank * sizeof *one->shape);
        assert_int_equal(one->bytes, other->bytes);
        void *bytes = load_tensor(a, one), *others = load_tensor(b, other);
        if (one->bytes)
            assert_memory_equal(bytes, others, one->bytes);
        mica_free(bytes);
        mica_free(others);
    }
    char **names = NULL;
    uint64_t count = 0;
    assert_int_equal(mica_tensor_source_list_files(a, &names, &count, &error), MICA_OK);
    for (uint64_t i = 0; i < count; i++) {
        char *bytes = NULL, *others = NULL;
        uint64_t length, other_length;
        assert_int_equal(mica_tensor_source_load(a, names[i], 1u << 30, &bytes, &length, &error), MICA_OK);
        assert_int_equal(mica_tensor_source_load(b, names[i], 1u << 30, &others, &other_length, &error), MICA_OK);
        assert_int_equal(length, other_length);
        assert_memory_equal(bytes, others, length);
        mica_free(bytes);
        mica_free(others);
    }
    mica_directory_names_free(names, count);
    mica_tensor_source_close(a);
    mica_tensor_source_close(b);
}

static inline uint64_t pack_bytes(const char *store) {
    mica_store *opened = NULL;
    mica_stored_pack *packs = NULL;
    uint64_t count = 0, bytes = 0;
    assert_int_equal(mica_store_open(store, &opened, &error), MICA_OK);
    assert_int_equal(mica_catalogue_packs(mica_store_catalogue(opened), &packs, &count, &error), MICA_OK);
    for (uint64_t i = 0; i < count; i++)
        bytes += packs[i].bytes;
    mica_free(packs);
    mica_store_close(opened);
    return bytes;
}

/* tiny-k2 with other bytes in the tensors whose name has `part` in it. */
static inline void make_variant(const char *directory, const char *part) {
    copy_directory(TINY, directory);
    mica_tensor_source *source = NULL;
    assert_int_equal(mica_tensor_source_open(directory, &source, &error), MICA_OK);
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        const mica_tensor *tensor = &source->tensors[i];
        if (!strstr(tensor->name, part))
            continue;
        uint8_t *bytes = load_tensor(source, tensor);
        for (uint64_t j = 0; j < tensor->bytes; j++)
            bytes[j] ^= 1;
        mica_file *file = NULL;
        assert_int_equal(mica_file_open_update(mica_file_path(source->shards[tensor->shard].file), &file, &error), MICA_OK);
        assert_int_equal(mica_file_write(file, tensor->offset, bytes, tensor->bytes, &error), MICA_OK);
        assert_int_equal(mica_file_close(file, &error), MICA_OK);
        mica_free(bytes);
    }
    mica_tensor_source_close(source);
}

#endif
