/* operations/index_identity.c: what an index's job is, as JSON: options, source, arithmetic, shards.
 * Invariant: "options" and "source" depend on the model and the options only (no shard names, paths, times): they stand in the vindex.
 * Judged by tests/operations/test_index_resume.c. */
#include "base/memory.h"
#include "operations/index.h"
#include "operations/source_identity.h"

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

mica_status mica_index_identity(const mica_index_plan *plan, char **json, uint64_t *length, mica_error *error) {
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "format", MICA_VINDEX_FORMAT);
    mica_json_u64(&writer, "format_version", MICA_VINDEX_FORMAT_VERSION);
    mica_index_write_options(&writer, plan);
    const mica_status status = mica_source_write_identity(&writer, plan->model->source, error);
    mica_json_string(&writer, "arithmetic", mica_svd_arithmetic());
    mica_source_write_shards(&writer, plan->model->source);
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
