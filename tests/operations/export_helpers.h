/* tests/operations/export_helpers.h: running mica_export_gguf and looking at the files it writes. */
#ifndef TESTS_OPERATIONS_EXPORT_HELPERS_H
#define TESTS_OPERATIONS_EXPORT_HELPERS_H

#include <mica/export.h>

#include "base/scratch.h"
#include "formats/gguf.h"

#define TINY MICA_SOURCE_DIR "/models/tiny-k2"
#define FIXTURES MICA_SOURCE_DIR "/../shared/fixtures/public"

/* Prints the sentence of a failure that was not expected. */
static inline void export_to(const char *checkpoint, const char *path, const mica_export_gguf_options *options) {
    mica_error error = {MICA_OK, ""};
    const mica_status status = mica_export_gguf(checkpoint, path, options, NULL, NULL, &error);
    if (status != MICA_OK)
        print_error("%s\n", error.message);
    assert_int_equal(status, MICA_OK);
}

typedef struct loaded_file {
    char *bytes;
    uint64_t length;
} loaded_file;

static inline loaded_file load(const char *path) {
    loaded_file file = {NULL, 0};
    assert_int_equal(mica_file_load(path, UINT64_C(1) << 30, &file.bytes, &file.length, NULL), MICA_OK);
    return file;
}

static inline bool same_bytes(const char *a, const char *b) {
    loaded_file left = load(a), right = load(b);
    const bool same = left.length == right.length && memcmp(left.bytes, right.bytes, left.length) == 0;
    mica_free(left.bytes);
    mica_free(right.bytes);
    return same;
}

#endif
