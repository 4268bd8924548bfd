/* operations/store_remove.c: mica_remove: one transaction, so that a model is there or not. Judged by tests/operations/test_store_gc.c and
 * tests/faults/kill_store.sh. */
#include <mica/store.h>

#include <inttypes.h>

#include "base/json.h"
#include "base/quantity.h"
#include "formats/store.h"
#include "operations/output.h"

#define SCHEMA 1

/* A name may have a whole model and an import that was to replace it: both go. */
static mica_status remove_both(mica_store *store, const char *name, bool *whole, mica_stored_model *removed, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(store);
    bool any = false;
    mica_status status = MICA_OK;
    for (int state = 1; state >= 0 && status == MICA_OK; state--) {
        mica_stored_model model = {0};
        bool found = false;
        status = mica_catalogue_find_model(catalogue, name, state == 1, &found, &model, error);
        if (status == MICA_OK && found)
            status = mica_catalogue_remove_model(catalogue, model.id, error);
        if (found && !any) {
            *whole = model.whole;
            removed->tensors = model.tensors;
            removed->bytes = model.bytes;
        }
        any = any || found;
        mica_stored_model_release(&model);
    }
    if (status == MICA_OK && !any)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected a model of the store, got '%s'", mica_store_path(store), name);
    return status;
}

static mica_status report(const mica_store *store, const char *name, bool whole, const mica_stored_model *removed, char **text, char **json,
                          mica_error *error) {
    mica_text words = MICA_TEXT_INIT;
    mica_json_writer writer;
    char bytes[MICA_QUANTITY_BYTES];
    if (whole)
        mica_text_printf(&words, "%s#%s: removed: %" PRIu64 " tensors, %s; mica gc gives back the room of those that no other model has\n",
                         mica_store_path(store), name, removed->tensors, mica_bytes_show(removed->bytes, bytes));
    else
        mica_text_printf(&words, "%s#%s: removed: an import that was not finished\n", mica_store_path(store), name);
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_u64(&writer, "schema", SCHEMA);
    mica_json_string(&writer, "store", mica_store_path(store));
    mica_json_string(&writer, "name", name);
    mica_json_bool(&writer, "whole", whole);
    mica_json_u64(&writer, "tensors", removed->tensors);
    mica_json_u64(&writer, "bytes", removed->bytes);
    mica_json_close_object(&writer);
    return mica_output_give(MICA_OK, &words, &writer, text, json, error);
}

mica_status mica_remove(const char *directory, const char *name, char **text, char **json, mica_error *error) {
    mica_store *store = NULL;
    mica_stored_model removed = {0};
    bool whole = false;
    mica_status status = mica_store_open_writer(directory, false, 0, &store, error);
    if (status == MICA_OK)
        status = mica_catalogue_begin(mica_store_catalogue(store), error);
    if (status == MICA_OK)
        status = remove_both(store, name, &whole, &removed, error);
    if (status == MICA_OK)
        status = mica_store_commit(store, false, error);
    if (status == MICA_OK)
        status = report(store, name, whole, &removed, text, json, error);
    mica_store_close(store);
    return status;
}
