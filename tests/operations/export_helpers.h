/* tests/operations/export_helpers.h: running mica_export_gguf and looking at the files it writes, how far their models are from TINY; a
 * full disk. */
#ifndef TESTS_OPERATIONS_EXPORT_HELPERS_H
#define TESTS_OPERATIONS_EXPORT_HELPERS_H

#include <errno.h>

#include <mica/engine.h>
#include <mica/export.h>

#include "base/file.h"
#include "base/json.h"
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

/* KL(checkpoint || file) on a text in windows of `context` tokens, by Mica's own forward pass; above 0. */
static inline double divergence_of(const char *file, const char *text, uint64_t context) {
    mica_error error = {MICA_OK, ""};
    const mica_compute_options options = {.context = context, .threads = 2};
    const mica_prompt prompt = {.text = text};
    char *json = NULL;
    json_t *report = NULL;
    if (mica_perplexity(file, TINY, &options, &prompt, NULL, &json, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    const double divergence = json_number_value(json_object_get(json_object_get(report, "comparison"), "kl_mean"));
    json_decref(report);
    mica_string_free(json);
    assert_true(divergence > 0);
    return divergence;
}

/* A disk with room for `room` bytes of a file: the system's own pwrite refuses the rest. The count is read by several threads. */
static const uint64_t room = 3000000;
static inline ssize_t pwrite_on_full_disk(int fd, const void *bytes, size_t length, off_t offset) {
    if ((uint64_t)offset + length <= room)
        return pwrite(fd, bytes, length, offset);
    errno = ENOSPC;
    return -1;
}

#endif
