/* tests/operations/vindex_helpers.h: indexes and their comparison, for the tests of mica_index and mica_verify. */
#ifndef MICA_TESTS_VINDEX_HELPERS_H
#define MICA_TESTS_VINDEX_HELPERS_H

#include <mica/checkpoint.h>
#include <mica/vindex.h>

#include "base/copy_directory.h"
#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/scratch.h"
#include "formats/vindex.h"

#define TINY MICA_SOURCE_DIR "/models/tiny-k2"
#define FIXTURES MICA_SOURCE_DIR "/../shared/fixtures/public"

/* Runs mica_index and prints the sentence of a failure that was not expected. */
static inline mica_status run_index(const char *checkpoint, const char *directory, const mica_index_options *options, mica_error *error) {
    char *text = NULL, *json = NULL;
    const mica_status status = mica_index(checkpoint, directory, options, &text, &json, error);
    if (status == MICA_OK) {
        assert_non_null(text);
        json_t *parsed = NULL;
        assert_int_equal(mica_json_parse("report", json, strlen(json), &parsed, NULL), MICA_OK);
        json_decref(parsed);
    }
    mica_string_free(text);
    mica_string_free(json);
    return status;
}

static inline void must_index(const char *checkpoint, const char *directory, const mica_index_options *options) {
    mica_error error = {MICA_OK, ""};
    if (run_index(checkpoint, directory, options, &error) != MICA_OK)
        fail_msg("%s: %s", checkpoint, error.message);
}

static inline char *load(const char *directory, const char *name, uint64_t *length) {
    char *path = mica_path_join(directory, name), *bytes = NULL;
    mica_error error = {MICA_OK, ""};
    if (mica_file_load(path, 1ull << 30, &bytes, length, &error) != MICA_OK)
        fail_msg("%s", error.message);
    mica_free(path);
    return bytes;
}

static inline json_t *load_json_file(const char *directory, const char *name) {
    char *path = mica_path_join(directory, name);
    json_t *object = NULL;
    mica_error error = {MICA_OK, ""};
    if (mica_json_load(path, 1ull << 30, &object, &error) != MICA_OK)
        fail_msg("%s", error.message);
    mica_free(path);
    return object;
}

/* Byte for byte, names included, subdirectories included. */
static inline void assert_same_tree(const char *a, const char *b) {
    char **names_a, **names_b;
    uint64_t count_a, count_b;
    assert_int_equal(mica_directory_list(a, &names_a, &count_a, NULL), MICA_OK);
    assert_int_equal(mica_directory_list(b, &names_b, &count_b, NULL), MICA_OK);
    for (uint64_t i = 0; i < count_a && i < count_b; i++)
        if (strcmp(names_a[i], names_b[i]) != 0)
            fail_msg("%s has %s where %s has %s", a, names_a[i], b, names_b[i]);
    assert_int_equal(count_a, count_b);
    for (uint64_t i = 0; i < count_a; i++) {
        char *path_a = mica_path_join(a, names_a[i]), *path_b = mica_path_join(b, names_b[i]);
        if (mica_path_is_directory(path_a)) {
            assert_same_tree(path_a, path_b);
        } else {
            uint64_t length_a, length_b;
            char *bytes_a = load(a, names_a[i], &length_a), *bytes_b = load(b, names_b[i], &length_b);
            if (length_a != length_b || memcmp(bytes_a, bytes_b, length_a) != 0)
                fail_msg("%s and %s differ", path_a, path_b);
            mica_free(bytes_a);
            mica_free(bytes_b);
        }
        mica_free(path_a);
        mica_free(path_b);
        mica_free(names_a[i]);
        mica_free(names_b[i]);
    }
    mica_free(names_a);
    mica_free(names_b);
}

#endif
