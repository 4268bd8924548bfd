/* operations/store_show.c: mica_show: all that is known of a tensor of a store: what it is, where it lies, who shares it, what its values
 * are like. Found by name (in whichever models have it), by its content's UUID, or by a UUID somebody chose for it.
 * Judged by tests/operations/test_store_show.c against docs/schemas/show.schema.json. */
#include <mica/store.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/quantity.h"
#include "formats/store.h"
#include "model/model.h"
#include "operations/output.h"
#include "operations/tensor_statistics.h"

#define SCHEMA 1
#define SHARERS_SHOWN 20 /* in the text */

typedef struct sharer {
    char *model, *tensor, *alias;
} sharer;

typedef struct shown { /* one content */
    mica_blob blob;
    char *model, *tensor, *encoding, *scale, *packed_shape; /* of the first match */
    char *file;
    sharer *sharers;
    uint64_t sharer_count;
    bool has_values, unscaled; /* unscaled: codes, of a model that is not whole enough to be decoded */
    mica_moments values;
} shown;

typedef struct show_run {
    const char *asked;
    mica_store *store;
    mica_stored_shard *shards;
    uint64_t shard_count;
    shown *contents;
    uint64_t content_count;
} show_run;

static mica_status no_memory(const show_run *run, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", mica_store_path(run->store));
}

/* A copy of a text that may be absent; false without memory. */
static bool copy_text(const char *from, char **to) {
    *to = from ? mica_strdup(from) : NULL;
    return !from || *to;
}

/* ---- finding */

static char *file_of(const show_run *run, const mica_blob *blob) {
    char name[40];
    if (blob->pack)
        return mica_strdup(mica_store_pack_name(blob->pack, name));
    for (uint64_t i = 0; i < run->shard_count; i++)
        if (run->shards[i].id == blob->shard)
            return mica_strdup(run->shards[i].path);
    return mica_strdup("a linked file that the catalogue does not have");
}

static mica_status add_match(void *context, const mica_stored_model *model, const mica_entry *entry, mica_error *error) {
    show_run *run = context;
    for (uint64_t i = 0; i < run->content_count; i++)
        if (run->contents[i].blob.id == entry->blob.id)
            return MICA_OK;
    shown *more = mica_reallocarray(run->contents, run->content_count + 1, sizeof *more);
    if (!more)
        return no_memory(run, error);
    run->contents = more;
    shown *one = &more[run->content_count++];
    *one = (shown){.blob = entry->blob};
    const bool copied = copy_text(model->name, &one->model) && copy_text(entry->name, &one->tensor) &&
                        copy_text(entry->encoding, &one->encoding) && copy_text(entry->scale, &one->scale) &&
                        copy_text(entry->packed_shape, &one->packed_shape);
    one->file = file_of(run, &entry->blob);
    return copied && one->file ? MICA_OK : no_memory(run, error);
}

static mica_status add_sharer(void *context, const mica_stored_model *model, const mica_entry *entry, mica_error *error) {
    shown *one = context;
    sharer *more = mica_reallocarray(one->sharers, one->sharer_count + 1, sizeof *more);
    if (!more)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory");
    one->sharers = more;
    sharer *added = &more[one->sharer_count++];
    *added = (sharer){0};
    const bool copied = copy_text(model->name, &added->model) && copy_text(entry->name, &added->tensor) &&
                        copy_text(entry->alias, &added->alias);
    return copied ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory");
}

static mica_status find(show_run *run, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(run->store);
    mica_status status = mica_catalogue_begin(catalogue, error);
    if (status == MICA_OK)
        status = mica_catalogue_shards(catalogue, &run->shards, &run->shard_count, error);
    if (status == MICA_OK)
        status = mica_catalogue_each_match(catalogue, run->asked, add_match, run, error);
    for (uint64_t i = 0; status == MICA_OK && i < run->content_count; i++)
        status = mica_catalogue_each_sharer(catalogue, run->contents[i].blob.id, add_sharer, &run->contents[i], error);
    mica_catalogue_rollback(catalogue);
    if (status == MICA_OK && !run->content_count)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected a tensor's name or UUID, got '%s', which no model has",
                           mica_store_path(run->store), run->asked);
    return status;
}

/* ---- values: decoded as the weight of the first model that has it; without a model, the plain numbers */

static mica_status look_at_weight(const mica_model *model, shown *one, mica_error *error) {
    const mica_tensor *tensor = mica_tensor_source_find(model->source, one->tensor);
    const mica_weight *found = NULL;
    mica_weight alone;
    for (uint64_t i = 0; i < model->weight_count && !found; i++)
        if (model->weights[i].data == tensor)
            found = &model->weights[i];
    if (!tensor)
        return mica_fail(error, MICA_CONFLICT, "%s: it was removed meanwhile", one->tensor);
    if (!found) {
        mica_tensor_as_weight(tensor, &alone);
        found = &alone;
    }
    const mica_status status = mica_tensor_statistics(model, found, &one->values, error);
    one->has_values = status == MICA_OK;
    return status;
}

static mica_status look_at_values(const show_run *run, shown *one, mica_error *error) {
    mica_text path = MICA_TEXT_INIT;
    mica_model *model = NULL;
    mica_model bare = {0};
    mica_error why = {0};
    mica_text_printf(&path, "%s#%s", mica_store_path(run->store), one->model);
    mica_status status = mica_text_failed(&path) ? no_memory(run, error) : MICA_OK;
    if (status == MICA_OK && mica_model_open(path.bytes, NULL, &model, &why) == MICA_OK) {
        status = look_at_weight(model, one, error);
        mica_model_close(model);
    } else if (status == MICA_OK) {
        status = mica_tensor_source_open(path.bytes, &bare.source, error);
        if (status == MICA_OK)
            status = look_at_weight(&bare, one, error);
        one->unscaled = one->scale != NULL;
        mica_tensor_source_close(bare.source);
    }
    mica_text_release(&path);
    return status;
}

/* ---- the report */

static void show_id(const mica_blob *blob, char id[MICA_UUID_TEXT_BYTES], char hex[MICA_SHA256_HEX_BYTES]) {
    uint8_t uuid[MICA_UUID_BYTES];
    mica_uuid_of_digest(blob->sha256, uuid);
    mica_uuid_show(uuid, id);
    mica_sha256_hex(blob->sha256, hex);
}

static void write_text(mica_text *text, const shown *one) {
    char id[MICA_UUID_TEXT_BYTES], hex[MICA_SHA256_HEX_BYTES], shape[200], bytes[MICA_QUANTITY_BYTES];
    const mica_moments *values = &one->values;
    show_id(&one->blob, id, hex);
    mica_text_printf(text, "%s\n  uuid      %s\n  sha256    %s\n", one->tensor, id, hex);
    mica_text_printf(text, "  dtype     %s %s, %s\n", mica_dtype_name(one->blob.dtype),
                     mica_shape_show(one->blob.rank, one->blob.shape, shape, sizeof shape), mica_bytes_show(one->blob.bytes, bytes));
    mica_text_printf(text, "  encoding  %s%s%s%s%s\n", one->encoding, one->scale ? ", scales: " : "", one->scale ? one->scale : "",
                     one->packed_shape ? ", shape: " : "", one->packed_shape ? one->packed_shape : "");
    mica_text_printf(text, "  where     %s, from byte %" PRIu64 "\n", one->file, one->blob.offset);
    if (one->has_values && values->count)
        mica_text_printf(text, "  values    %.6g … %.6g, mean %.6g, standard deviation %.6g; %" PRIu64 ", %" PRIu64 " zero",
                         values->minimum, values->maximum, values->mean, mica_moments_deviation(values), values->count, values->zeros);
    if (one->has_values && values->count && values->not_finite)
        mica_text_printf(text, ", and %" PRIu64 " not finite", values->not_finite);
    if (one->has_values && values->count && one->unscaled)
        mica_text_printf(text, "; codes without their scales: %s cannot be opened as a model", one->model);
    mica_text_puts(text, one->has_values && values->count ? "\n" : "  values    none\n");
    for (uint64_t i = 0; i < one->sharer_count && i < SHARERS_SHOWN; i++)
        mica_text_printf(text, "  %s    %s#%s%s%s\n", i ? "      " : "in    ", one->sharers[i].model, one->sharers[i].tensor,
                         one->sharers[i].alias ? ", also known as " : "", one->sharers[i].alias ? one->sharers[i].alias : "");
    if (one->sharer_count > SHARERS_SHOWN)
        mica_text_printf(text, "            and %" PRIu64 " more\n", one->sharer_count - SHARERS_SHOWN);
}

static void write_values(mica_json_writer *writer, const shown *one) {
    const mica_moments *values = &one->values;
    if (!one->has_values || !values->count) {
        mica_json_null(writer, "values");
        return;
    }
    mica_json_open_object(writer, "values");
    mica_json_bool(writer, "scaled", !one->unscaled);
    mica_json_u64(writer, "count", values->count);
    mica_json_u64(writer, "not_finite", values->not_finite);
    mica_json_u64(writer, "zeros", values->zeros);
    mica_json_double(writer, "minimum", values->minimum);
    mica_json_double(writer, "maximum", values->maximum);
    mica_json_double(writer, "mean", values->mean);
    mica_json_double(writer, "standard_deviation", mica_moments_deviation(values));
    mica_json_close_object(writer);
}

static void write_json(mica_json_writer *writer, const shown *one) {
    char id[MICA_UUID_TEXT_BYTES], hex[MICA_SHA256_HEX_BYTES];
    show_id(&one->blob, id, hex);
    mica_json_open_object(writer, NULL);
    mica_json_string(writer, "uuid", id);
    mica_json_string(writer, "sha256", hex);
    mica_json_string(writer, "dtype", mica_dtype_name(one->blob.dtype));
    mica_json_open_row(writer, "shape");
    for (uint32_t i = 0; i < one->blob.rank; i++)
        mica_json_u64(writer, NULL, one->blob.shape[i]);
    mica_json_close_array(writer);
    mica_json_u64(writer, "bytes", one->blob.bytes);
    mica_json_string(writer, "encoding", one->encoding);
    mica_json_string(writer, "scale", one->scale);
    mica_json_string(writer, "packed_shape", one->packed_shape);
    mica_json_string(writer, "file", one->file);
    mica_json_u64(writer, "offset", one->blob.offset);
    write_values(writer, one);
    mica_json_open_array(writer, "names");
    for (uint64_t i = 0; i < one->sharer_count; i++) {
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "model", one->sharers[i].model);
        mica_json_string(writer, "tensor", one->sharers[i].tensor);
        mica_json_string(writer, "alias", one->sharers[i].alias);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

static mica_status report(const show_run *run, char **text, char **json, mica_error *error) {
    mica_text words = MICA_TEXT_INIT;
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_u64(&writer, "schema", SCHEMA);
    mica_json_string(&writer, "store", mica_store_path(run->store));
    mica_json_string(&writer, "asked", run->asked);
    mica_json_open_array(&writer, "contents");
    for (uint64_t i = 0; i < run->content_count; i++) {
        mica_text_puts(&words, i ? "\n" : "");
        write_text(&words, &run->contents[i]);
        write_json(&writer, &run->contents[i]);
    }
    mica_json_close_array(&writer);
    mica_json_close_object(&writer);
    return mica_output_give(MICA_OK, &words, &writer, text, json, error);
}

static void release(show_run *run) {
    for (uint64_t i = 0; i < run->content_count; i++) {
        shown *one = &run->contents[i];
        char *const texts[] = {one->model, one->tensor, one->encoding, one->scale, one->packed_shape, one->file};
        for (size_t t = 0; t < sizeof texts / sizeof texts[0]; t++)
            mica_free(texts[t]);
        for (uint64_t s = 0; s < one->sharer_count; s++) {
            mica_free(one->sharers[s].model);
            mica_free(one->sharers[s].tensor);
            mica_free(one->sharers[s].alias);
        }
        mica_free(one->sharers);
    }
    mica_free(run->contents);
    mica_stored_shards_free(run->shards, run->shard_count);
    mica_store_close(run->store);
}

mica_status mica_show(const char *store, const char *tensor, char **text, char **json, mica_error *error) {
    show_run run = {.asked = tensor};
    mica_status status = mica_store_open(store, &run.store, error);
    if (status == MICA_OK)
        status = find(&run, error);
    for (uint64_t i = 0; status == MICA_OK && i < run.content_count; i++)
        status = look_at_values(&run, &run.contents[i], error);
    if (status == MICA_OK)
        status = report(&run, text, json, error);
    release(&run);
    return status;
}
