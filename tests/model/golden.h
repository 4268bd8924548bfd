/* golden.h: the truths beside a fixture (golden.json and its raw files), for tests. */
#ifndef MICA_TESTS_MODEL_GOLDEN_H
#define MICA_TESTS_MODEL_GOLDEN_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"

#define FIXTURES MICA_SOURCE_DIR "/../shared/fixtures/public"
#define TINY_K2 MICA_SOURCE_DIR "/models/tiny-k2"

static const char *const fixture_kinds[] = {"v3-groups", "v3-groups-ue8m0", "kimi-vl", "k2-thinking", "k25", "qwen3-dense", "llama-dense"};
#define FIXTURE_KINDS (sizeof fixture_kinds / sizeof *fixture_kinds)

static inline json_t *golden_open(const char *path) {
    json_t *golden = NULL;
    mica_error error;
    assert_int_equal(mica_json_load(path, 1 << 26, &golden, &error), MICA_OK);
    return golden;
}

/* The bytes of the raw file that `description` names, in `directory`; checks count elements of 4 bytes. */
static inline void *golden_raw(const char *directory, const json_t *description, uint64_t count) {
    char path[1024], *bytes = NULL;
    uint64_t length = 0;
    mica_error error;
    snprintf(path, sizeof path, "%s/%s", directory, json_string_value(json_object_get(description, "file")));
    assert_int_equal(mica_file_load(path, 1 << 30, &bytes, &length, &error), MICA_OK);
    assert_int_equal(length, count * 4);
    return bytes;
}

static inline uint64_t golden_ids(const json_t *sequence, int64_t **ids) {
    const json_t *array = json_object_get(sequence, "ids");
    uint64_t count = json_array_size(array);
    *ids = malloc((count + 1) * sizeof **ids);
    assert_non_null(*ids);
    for (uint64_t i = 0; i < count; i++)
        (*ids)[i] = json_integer_value(json_array_get(array, i));
    return count;
}

#endif
