/* operations/store_list.c: mica_list: the models of a store, or one model's tensors and files. Reads the catalogue alone.
 * Judged by tests/operations/test_import.c against docs/schemas/list.schema.json. */
#include <mica/store.h>

#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/quantity.h"
#include "formats/store.h"
#include "operations/output.h"

#define SCHEMA 1

typedef struct listing {
    mica_store *store;
    const char *pattern; /* NULL: all */
    mica_text words;
    mica_json_writer writer;
    uint64_t listed, bytes;
} listing;

static bool is_wanted(const listing *list, const char *name) {
    return !list->pattern || mica_glob_matches(list->pattern, name);
}

/* ---- all models */

static void list_model(listing *list, const mica_stored_model *model) {
    char bytes[MICA_QUANTITY_BYTES], digest[MICA_SHA256_HEX_BYTES];
    mica_sha256_hex(model->digest, digest);
    if (model->whole)
        mica_text_printf(&list->words, "  %9" PRIu64 " %11s  %s\n", model->tensors, mica_bytes_show(model->bytes, bytes), model->name);
    else
        mica_text_printf(&list->words, "  %9s %11s  %s (an import that was not finished)\n", "-", "-", model->name);
    mica_json_open_object(&list->writer, NULL);
    mica_json_string(&list->writer, "name", model->name);
    mica_json_bool(&list->writer, "whole", model->whole);
    mica_json_u64(&list->writer, "tensors", model->tensors);
    mica_json_u64(&list->writer, "bytes", model->bytes);
    mica_json_string(&list->writer, "digest", model->whole ? digest : NULL);
    mica_json_close_object(&list->writer);
}

static mica_status list_models(listing *list, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(list->store);
    mica_stored_model *models = NULL;
    mica_stored_pack *packs = NULL;
    uint64_t model_count = 0, pack_count = 0, stored = 0;
    char bytes[MICA_QUANTITY_BYTES];
    mica_status status = mica_catalogue_models(catalogue, &models, &model_count, error);
    if (status == MICA_OK)
        status = mica_catalogue_packs(catalogue, &packs, &pack_count, error);
    for (uint64_t i = 0; i < pack_count; i++)
        stored += packs[i].bytes;
    mica_text_printf(&list->words, "%s: %" PRIu64 " %s, %s in %" PRIu64 " %s\n\n", mica_store_path(list->store), model_count,
                     model_count == 1 ? "model" : "models", mica_bytes_show(stored, bytes), pack_count, pack_count == 1 ? "pack" : "packs");
    mica_text_printf(&list->words, "  %9s %11s  %s\n", "tensors", "bytes", "name");
    mica_json_open_object(&list->writer, "packs");
    mica_json_u64(&list->writer, "count", pack_count);
    mica_json_u64(&list->writer, "bytes", stored);
    mica_json_close_object(&list->writer);
    mica_json_open_array(&list->writer, "models");
    for (uint64_t i = 0; i < model_count; i++)
        if (is_wanted(list, models[i].name))
            list_model(list, &models[i]);
    mica_json_close_array(&list->writer);
    mica_stored_models_free(models, model_count);
    mica_free(packs);
    return status;
}

/* ---- one model */

static mica_status list_entry(void *context, const mica_stored_model *model, const mica_entry *entry, mica_error *error) {
    listing *list = context;
    const mica_blob *blob = &entry->blob;
    char shape[200], bytes[MICA_QUANTITY_BYTES], id[MICA_UUID_TEXT_BYTES];
    uint8_t uuid[MICA_UUID_BYTES];
    (void)model;
    (void)error;
    if (!is_wanted(list, entry->name))
        return MICA_OK;
    mica_uuid_of_digest(blob->sha256, uuid);
    mica_uuid_show(uuid, id);
    list->listed++;
    list->bytes += blob->bytes;
    mica_text_printf(&list->words, "  %-8s %-14s %-12s %10s  %s  %s\n", mica_dtype_name(blob->dtype),
                     mica_shape_show(blob->rank, blob->shape, shape, sizeof shape), entry->encoding, mica_bytes_show(blob->bytes, bytes),
                     id, entry->name);
    mica_json_open_object(&list->writer, NULL);
    mica_json_string(&list->writer, "name", entry->name);
    mica_json_string(&list->writer, "uuid", id);
    if (entry->alias)
        mica_json_string(&list->writer, "alias", entry->alias);
    mica_json_string(&list->writer, "dtype", mica_dtype_name(blob->dtype));
    mica_json_open_row(&list->writer, "shape");
    for (uint32_t i = 0; i < blob->rank; i++)
        mica_json_u64(&list->writer, NULL, blob->shape[i]);
    mica_json_close_array(&list->writer);
    mica_json_string(&list->writer, "encoding", entry->encoding);
    mica_json_u64(&list->writer, "bytes", blob->bytes);
    mica_json_close_object(&list->writer);
    return MICA_OK;
}

static mica_status list_files(listing *list, int64_t model, mica_error *error) {
    mica_stored_file *files = NULL;
    uint64_t count = 0;
    char bytes[MICA_QUANTITY_BYTES], digest[MICA_SHA256_HEX_BYTES];
    const mica_status status = mica_catalogue_files(mica_store_catalogue(list->store), model, &files, &count, error);
    mica_json_open_array(&list->writer, "files");
    for (uint64_t i = 0; i < count; i++) {
        if (!is_wanted(list, files[i].name))
            continue;
        mica_sha256_hex(files[i].sha256, digest);
        mica_text_printf(&list->words, "  file %43s  %s\n", mica_bytes_show(files[i].bytes, bytes), files[i].name);
        mica_json_open_object(&list->writer, NULL);
        mica_json_string(&list->writer, "name", files[i].name);
        mica_json_u64(&list->writer, "bytes", files[i].bytes);
        mica_json_string(&list->writer, "sha256", digest);
        mica_json_close_object(&list->writer);
    }
    mica_json_close_array(&list->writer);
    mica_stored_files_free(files, count);
    return status;
}

static mica_status list_one(listing *list, const char *name, mica_error *error) {
    mica_stored_model model = {0};
    bool found = false;
    char bytes[MICA_QUANTITY_BYTES];
    mica_status status = mica_catalogue_find_model(mica_store_catalogue(list->store), name, true, &found, &model, error);
    if (status == MICA_OK && !found)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected a model of the store, got '%s'", mica_store_path(list->store), name);
    if (status != MICA_OK)
        return status;
    mica_text_printf(&list->words, "%s#%s: %" PRIu64 " tensors, %s\n\n", mica_store_path(list->store), name, model.tensors,
                     mica_bytes_show(model.bytes, bytes));
    mica_json_string(&list->writer, "name", name);
    mica_json_u64(&list->writer, "tensor_count", model.tensors);
    mica_json_u64(&list->writer, "bytes", model.bytes);
    mica_json_open_array(&list->writer, "tensors");
    status = mica_catalogue_each_entry(mica_store_catalogue(list->store), model.id, list_entry, list, error);
    mica_json_close_array(&list->writer);
    if (status == MICA_OK)
        status = list_files(list, model.id, error);
    if (list->pattern)
        mica_text_printf(&list->words, "\n%" PRIu64 " tensors match, %s\n", list->listed, mica_bytes_show(list->bytes, bytes));
    mica_stored_model_release(&model);
    return status;
}

mica_status mica_list(const char *store, const char *name, const char *pattern, char **text, char **json, mica_error *error) {
    listing list = {.pattern = pattern, .words = MICA_TEXT_INIT};
    mica_status status = mica_store_open(store, &list.store, error);
    if (status != MICA_OK)
        return status;
    mica_json_begin(&list.writer);
    mica_json_open_object(&list.writer, NULL);
    mica_json_u64(&list.writer, "schema", SCHEMA);
    mica_json_string(&list.writer, "store", mica_store_path(list.store));
    status = mica_catalogue_begin(mica_store_catalogue(list.store), error);
    if (status == MICA_OK)
        status = name ? list_one(&list, name, error) : list_models(&list, error);
    mica_json_close_object(&list.writer);
    status = mica_output_give(status, &list.words, &list.writer, text, json, error);
    mica_store_close(list.store);
    return status;
}
