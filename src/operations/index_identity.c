/* operations/index_identity.c: what a job is, as JSON: options, source, arithmetic, shards; and the sentence that tells two jobs apart.
 * Invariant: "options" and "source" depend on the model and the options only (no shard names, paths, times): they stand in the vindex.
 * Judged by tests/operations/test_index_resume.c. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"
#include "base/text.h"
#include "operations/index.h"


static void write_projections(mica_json_writer *writer, const char *key, uint32_t mask) {
    mica_json_open_row(writer, key);
    for (mica_projection projection = MICA_GATE; projection < MICA_PROJECTION_COUNT; projection++)
        if (mask >> projection & 1)
            mica_json_string(writer, NULL, mica_projection_name(projection));
    mica_json_close_array(writer);
}

void mica_index_write_options(mica_json_writer *writer, const mica_index_plan *plan) {
    mica_json_open_object(writer, "options");
    mica_json_u64(writer, "features", plan->features);
    mica_json_open_row(writer, "layers");
    for (uint64_t i = 0; i < plan->layer_count; i++)
        mica_json_u64(writer, NULL, plan->layers[i]);
    mica_json_close_array(writer);
    write_projections(writer, "spectra", plan->spectra);
    write_projections(writer, "full_spectrum", plan->full_spectrum);
    mica_json_close_object(writer);
}

static mica_status hash_config(const mica_tensor_source *source, char hex[MICA_SHA256_HEX_BYTES], mica_error *error) {
    char *bytes = NULL;
    uint64_t length;
    uint8_t digest[MICA_SHA256_BYTES];
    mica_status status = mica_tensor_source_load(source, MICA_CONFIG_NAME, MICA_CONFIG_BYTES_MAX, &bytes, &length, error);
    if (status == MICA_OK)
        status = mica_sha256_of(bytes, length, digest, error);
    if (status == MICA_OK)
        mica_sha256_hex(digest, hex);
    mica_free(bytes);
    return status;
}

mica_status mica_index_write_source(mica_json_writer *writer, const mica_index_plan *plan, mica_error *error) {
    char config[MICA_SHA256_HEX_BYTES] = "", tensors[MICA_SHA256_HEX_BYTES] = "";
    mica_status status = hash_config(plan->model->source, config, error);
    if (status == MICA_OK)
        status = mica_tensor_source_digest(plan->model->source, tensors, error);
    mica_json_open_object(writer, "source");
    mica_json_string(writer, "config_sha256", config);
    mica_json_u64(writer, "tensor_count", plan->model->source->tensor_count);
    mica_json_string(writer, "tensor_list_sha256", tensors);
    mica_json_close_object(writer);
    return status;
}

/* Only in the journal: whether the shards may have changed since. The content decides (index_journal.c). */
static void write_shards(mica_json_writer *writer, const mica_tensor_source *source) {
    mica_json_open_array(writer, "shards");
    for (uint32_t i = 0; i < source->shard_count; i++) {
        struct stat status;
        char modified[48] = "unknown";
        if (stat(mica_file_path(source->shards[i].file), &status) == 0)
            snprintf(modified, sizeof modified, "%lld.%09ld", (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "name", source->shards[i].name);
        mica_json_u64(writer, "bytes", mica_file_bytes(source->shards[i].file));
        mica_json_string(writer, "modified", modified);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

mica_status mica_index_identity(const mica_index_plan *plan, char **json, uint64_t *length, mica_error *error) {
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "format", MICA_VINDEX_FORMAT);
    mica_json_u64(&writer, "format_version", MICA_VINDEX_FORMAT_VERSION);
    mica_index_write_options(&writer, plan);
    const mica_status status = mica_index_write_source(&writer, plan, error);
    mica_json_string(&writer, "arithmetic", mica_svd_arithmetic());
    write_shards(&writer, plan->model->source);
    mica_json_close_object(&writer);
    char *text = mica_json_finish(&writer, length);
    if (status != MICA_OK) {
        mica_free(text);
        return status;
    }
    if (!text)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory");
    *json = text;
    return MICA_OK;
}

/* Descends to the first difference; `path` names it. */
static mica_status compare_values(const char *where, const char *path, const json_t *recorded, const json_t *today, mica_error *error) {
    if (json_is_object(recorded) && json_is_object(today)) {
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)today, key, value) {
            if (strcmp(path, "") == 0 && strcmp(key, "shards") == 0)
                continue;
            mica_text below = MICA_TEXT_INIT;
            mica_text_printf(&below, "%s%s%s", path, *path ? "." : "", key);
            const mica_status status = mica_text_failed(&below)
                                           ? mica_fail(error, MICA_NO_MEMORY, "out of memory")
                                           : compare_values(where, below.bytes, json_object_get(recorded, key), value, error);
            mica_text_release(&below);
            if (status != MICA_OK)
                return status;
        }
        return MICA_OK;
    }
    if (json_equal(recorded, today))
        return MICA_OK;
    char was[208], is[208];
    return mica_fail(error, MICA_CONFLICT, "%s: %s differs: it has %s, today's is %s; resume with the same, or start afresh with --force",
                     where, path, recorded ? mica_json_show(recorded, was, sizeof was) : "none", mica_json_show(today, is, sizeof is));
}

mica_status mica_index_identity_compare(const char *where, const json_t *recorded, const json_t *today, mica_error *error) {
    return compare_values(where, "", recorded, today, error);
}
