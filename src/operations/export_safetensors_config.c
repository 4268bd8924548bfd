/* operations/export_safetensors_config.c: config.json of the same model with every weight in BF16, or F32: keys that say how weights were
 * stored are gone, the type is that wherever it is named. All else keeps its place and value.
 * Judged by tests/operations/test_export_safetensors.c. */
#include <string.h>

#include "base/memory.h"
#include "operations/export_safetensors.h"

/* Of the outer object and of those that configure a part of the model. */
static const char *const gone[] = {"quantization_config", "expert_dtype"};
static const char *const types[] = {"torch_dtype", "dtype"};
static const char *const parts[] = {"text_config", "vision_config"};
#define COUNT(array) (sizeof(array) / sizeof *(array))

static bool set_type(json_t *object, const char *key, mica_dtype dtype) {
    return json_object_set_new(object, key, json_string(dtype == MICA_F32 ? "float32" : "bfloat16")) == 0;
}

static bool rewrite(json_t *object, mica_dtype dtype) {
    bool done = true;
    for (size_t i = 0; i < COUNT(gone); i++)
        (void)json_object_del(object, gone[i]); /* absent is fine */
    for (size_t i = 0; i < COUNT(types); i++)
        if (json_object_get(object, types[i]))
            done = done && set_type(object, types[i], dtype);
    return done;
}

mica_status mica_shards_config(const char *name, const char *json, uint64_t length, mica_dtype dtype, char **rewritten, uint64_t *bytes,
                               mica_error *error) {
    json_t *object = NULL;
    mica_status status = mica_json_parse(name, json, length, &object, error);
    if (status != MICA_OK)
        return status;
    bool done = rewrite(object, dtype);
    for (size_t i = 0; done && i < COUNT(parts); i++) {
        json_t *part = json_object_get(object, parts[i]);
        if (json_is_object(part))
            done = rewrite(part, dtype);
    }
    if (done && !json_object_get(object, "torch_dtype") && !json_object_get(object, "dtype"))
        done = set_type(object, "torch_dtype", dtype);
    if (done) {
        mica_json_writer writer;
        mica_json_begin(&writer);
        mica_json_value(&writer, NULL, object);
        *rewritten = mica_json_finish(&writer, bytes);
    }
    if (!done || !*rewritten)
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for %s", name);
    json_decref(object);
    return status;
}
