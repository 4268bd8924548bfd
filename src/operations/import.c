/* operations/import.c: mica_import: what is imported, whether it may be, and the transactions around its bytes. A model is "importing"
 * until its last transaction, which makes it whole, puts it in the place of the one it replaces, and keeps its files.
 * Judged by tests/operations/test_import.c, tests/faults/kill_store.sh. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "formats/gguf.h"
#include "operations/import.h"
#include "operations/source_identity.h"

#define FILE_BYTES_MAX ((uint64_t)256 << 20) /* of a file kept verbatim */
#define NAME_BYTES_MAX 255

static mica_status no_memory(const mica_import_run *run, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", run->checkpoint);
}

/* ---- what is imported */

/* "models/tiny-k2/" → "tiny-k2"; of STORE#NAME the name. */
static char *default_name(const char *checkpoint) {
    const char *hash = strrchr(checkpoint, '#');
    const char *end = checkpoint + strlen(checkpoint);
    while (end > checkpoint + 1 && end[-1] == '/')
        end--;
    const char *start = end;
    while (start > checkpoint && start[-1] != '/')
        start--;
    if (hash && hash >= start && mica_store_is_named(checkpoint) && hash + 1 < end)
        start = hash + 1;
    return mica_strndup(start, (size_t)(end - start));
}

static mica_status check_name(const char *name, mica_error *error) {
    const size_t length = strlen(name);
    bool fine = length > 0 && length <= NAME_BYTES_MAX && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
    for (size_t at = 0, sequence; fine && at < length; at += sequence) {
        sequence = mica_utf8_sequence(name + at, length - at);
        fine = sequence > 0 && (unsigned char)name[at] >= 0x20 && name[at] != 0x7f && name[at] != '#' && name[at] != '/';
    }
    if (fine)
        return MICA_OK;
    return mica_fail(error, MICA_USAGE, "--as: expected a name of 1 to %d bytes without '#', '/' and control characters, got '%s'",
                     NAME_BYTES_MAX, name);
}

/* As a model where it is one; otherwise as tensors of which only names and types are known. */
static mica_status open_source(mica_import_run *run, mica_error *error) {
    mica_error why = {0};
    mica_status status = mica_model_open(run->checkpoint, NULL, &run->model, &why);
    if (status != MICA_OK && status != MICA_BAD_INPUT && status != MICA_IO)
        return mica_fail(error, status, "%s", why.message);
    if (status == MICA_OK) {
        run->source = run->model->source;
    } else {
        snprintf(run->not_understood, sizeof run->not_understood, "%s", why.message);
        const bool unreadable = status == MICA_IO;
        status = mica_tensor_source_open(run->checkpoint, &run->source, error);
        if (status == MICA_OK && unreadable && mica_tensor_source_has_file(run->source, MICA_CONFIG_NAME)) /* there, and not to be read */
            return mica_fail(error, MICA_IO, "%s", why.message);
    }
    if (status == MICA_OK && mica_gguf_of_source(run->source)) /* its configuration is no file, its experts are slices */
        return mica_fail(error, MICA_BAD_INPUT,
                         "%s: expected a directory of safetensors or a model of a store, got a GGUF file, which a store "
                         "does not keep",
                         run->checkpoint);
    return status;
}

/* ---- which tensors, and what they are called */

/* NULL where the checkpoint has none. */
static mica_status load_config(const mica_tensor_source *source, json_t **config, mica_error *error) {
    char *bytes = NULL, *path = NULL;
    uint64_t length = 0;
    *config = NULL;
    if (!mica_tensor_source_has_file(source, MICA_CONFIG_NAME))
        return MICA_OK;
    mica_status status = mica_tensor_source_load(source, MICA_CONFIG_NAME, MICA_CONFIG_BYTES_MAX, &bytes, &length, error);
    if (status == MICA_OK && !(path = mica_tensor_source_file_path(source, MICA_CONFIG_NAME)))
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for %s", MICA_CONFIG_NAME);
    if (status == MICA_OK)
        status = mica_json_parse(path, bytes, length, config, error);
    mica_free(path);
    mica_free(bytes);
    return status;
}

static mica_status map_tensors(mica_import_run *run, mica_error *error) {
    const mica_import_options *options = run->options;
    mica_status status = mica_import_map_init(run->source, options->include, options->exclude, &run->map, error);
    if (status != MICA_OK || !options->configuration)
        return status;
    json_t *config = NULL;
    char *json = NULL;
    uint64_t length = 0;
    status = load_config(run->source, &config, error);
    if (status == MICA_OK)
        status = mica_file_load(options->configuration, MICA_IMPORT_CONFIG_BYTES_MAX, &json, &length, error);
    if (status == MICA_OK)
        status = mica_import_config_apply(options->configuration, json, length, run->source, config, &run->map, error);
    mica_free(json);
    json_decref(config);
    return status;
}

mica_status mica_import_configuration(const char *checkpoint, const mica_import_options *options, char **json, mica_error *error) {
    const mica_import_options defaults = {0};
    options = options ? options : &defaults;
    mica_tensor_source *source = NULL;
    mica_import_map map = {0};
    json_t *config = NULL;
    mica_status status = mica_tensor_source_open(checkpoint, &source, error);
    if (status == MICA_OK)
        status = mica_import_map_init(source, options->include, options->exclude, &map, error);
    if (status == MICA_OK)
        status = load_config(source, &config, error);
    if (status == MICA_OK)
        status = mica_import_config_write(source, config, &map, json, NULL, error);
    json_decref(config);
    mica_import_map_release(&map);
    mica_tensor_source_close(source);
    return status;
}

/* SHA-256 over what becomes of each tensor: "name target alias" lines. */
static mica_status digest_map(const mica_import_run *run, char hex[MICA_SHA256_HEX_BYTES], mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    uint8_t digest[MICA_SHA256_BYTES];
    for (uint64_t i = 0; i < run->source->tensor_count; i++)
        if (run->map.included[i])
            mica_text_printf(&text, "%s %s %s\n", run->source->tensors[i].name, run->map.names[i],
                             run->map.aliases[i] ? run->map.aliases[i] : "-");
    const mica_status status = mica_text_failed(&text) ? no_memory(run, error)
                                                       : mica_sha256_of(text.bytes ? text.bytes : "", text.length, digest, error);
    mica_text_release(&text);
    if (status == MICA_OK)
        mica_sha256_hex(digest, hex);
    return status;
}

static mica_status describe_job(mica_import_run *run, mica_error *error) {
    char tensors[MICA_SHA256_HEX_BYTES] = "", map[MICA_SHA256_HEX_BYTES] = "";
    mica_json_writer writer;
    mica_status status = mica_tensor_source_digest(run->source, tensors, error);
    if (status == MICA_OK)
        status = digest_map(run, map, error);
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_bool(&writer, "linked", run->options->link);
    mica_json_u64(&writer, "tensor_count", run->plan.item_count);
    mica_json_string(&writer, "tensor_list_sha256", tensors);
    mica_json_string(&writer, "mapping_sha256", map);
    mica_source_write_shards(&writer, run->source);
    mica_json_close_object(&writer);
    run->job = mica_json_finish(&writer, NULL);
    return status == MICA_OK && !run->job ? no_memory(run, error) : status;
}

/* ---- whether it may be */

static mica_status compare_job(const mica_import_run *run, const mica_stored_model *model, mica_error *error) {
    json_t *recorded = NULL, *today = NULL;
    char where[2 * MICA_ERROR_MESSAGE_BYTES];
    snprintf(where, sizeof where, "%s#%s", mica_store_path(run->store), run->name);
    mica_status status = mica_json_parse(where, model->job, strlen(model->job), &recorded, error);
    if (status == MICA_OK)
        status = mica_json_parse(where, run->job, strlen(run->job), &today, error);
    if (status == MICA_OK)
        status = mica_identity_compare(where, recorded, today, true, error);
    json_decref(recorded);
    json_decref(today);
    return status;
}

static mica_status remove_unfinished(mica_import_run *run, const mica_stored_model *model, mica_error *error) {
    return mica_catalogue_remove_model(mica_store_catalogue(run->store), model->id, error);
}

/* The row of the model that is being imported: that of an import to resume, or a new one. */
static mica_status find_place(mica_import_run *run, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(run->store);
    mica_stored_model whole = {0}, unfinished = {0};
    bool is_whole = false, is_unfinished = false;
    mica_status status = mica_catalogue_find_model(catalogue, run->name, true, &is_whole, &whole, error);
    if (status == MICA_OK)
        status = mica_catalogue_find_model(catalogue, run->name, false, &is_unfinished, &unfinished, error);
    if (status == MICA_OK && is_unfinished && run->options->resume) {
        status = compare_job(run, &unfinished, error);
        run->model_id = unfinished.id;
        run->resumed = true;
    } else if (status == MICA_OK && is_whole && run->options->resume) {
        status = compare_job(run, &whole, error);
        run->model_id = whole.id;
        run->done_before = whole.tensors;
        run->finished_before = true;
    } else if (status == MICA_OK && is_whole && !run->options->force) {
        status = mica_fail(error, MICA_CONFLICT, "%s#%s: a model of that name is there; --force replaces it, --as gives another name",
                           mica_store_path(run->store), run->name);
    } else if (status == MICA_OK) {
        status = is_unfinished ? remove_unfinished(run, &unfinished, error) : MICA_OK;
        if (status == MICA_OK)
            status = mica_catalogue_add_model(catalogue, run->name, run->job, &run->model_id, error);
    }
    mica_stored_model_release(&whole);
    mica_stored_model_release(&unfinished);
    return status;
}

static mica_status record_shard(mica_import_run *run, uint32_t index, mica_error *error) {
    const char *path = mica_file_path(run->source->shards[index].file);
    char *absolute = realpath(path, NULL);
    struct stat found;
    if (!absolute || stat(absolute, &found) != 0) {
        free(absolute);
        return mica_fail(error, MICA_IO, "%s: expected a file to link to, got none", path);
    }
    mica_stored_shard shard = {.path = absolute,
                               .bytes = mica_file_bytes(run->source->shards[index].file),
                               .modified = (int64_t)found.st_mtim.tv_sec * 1000000000 + found.st_mtim.tv_nsec};
    const mica_status status = mica_catalogue_add_shard(mica_store_catalogue(run->store), &shard, error);
    run->shard_ids[index] = shard.id;
    free(absolute);
    return status;
}

static mica_status record_shards(mica_import_run *run, mica_error *error) {
    if (!run->options->link)
        return MICA_OK;
    if (mica_store_is_named(run->checkpoint))
        return mica_fail(error, MICA_USAGE, "--link: expected a checkpoint's own files, got a model of a store");
    run->shard_ids = mica_calloc((size_t)run->source->shard_count + 1, sizeof *run->shard_ids);
    mica_status status = run->shard_ids ? MICA_OK : no_memory(run, error);
    for (uint32_t i = 0; status == MICA_OK && i < run->source->shard_count; i++)
        status = record_shard(run, i, error);
    return status;
}

/* ---- the last transaction */

static mica_status keep_file(mica_import_run *run, const char *name, mica_error *error) {
    char *bytes = NULL;
    uint64_t length = 0;
    mica_error why = {0};
    mica_status status = mica_tensor_source_load(run->source, name, FILE_BYTES_MAX, &bytes, &length, &why);
    if (status == MICA_BAD_INPUT) { /* too large to be a companion */
        run->skipped_files++;
        return MICA_OK;
    }
    if (status != MICA_OK)
        return mica_fail(error, status, "%s", why.message);
    status = mica_catalogue_add_file(mica_store_catalogue(run->store), run->model_id, name, bytes, length, error);
    run->files += status == MICA_OK;
    mica_free(bytes);
    return status;
}

static mica_status finish(mica_import_run *run, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(run->store);
    char **names = NULL;
    uint64_t count = 0;
    mica_stored_model former = {0};
    bool replaces = false;
    mica_status status = mica_tensor_source_list_files(run->source, &names, &count, error);
    for (uint64_t i = 0; status == MICA_OK && i < count; i++)
        status = keep_file(run, names[i], error);
    mica_directory_names_free(names, count);
    if (status == MICA_OK)
        status = mica_catalogue_find_model(catalogue, run->name, true, &replaces, &former, error);
    if (status == MICA_OK && replaces)
        status = mica_catalogue_remove_model(catalogue, former.id, error);
    mica_stored_model_release(&former);
    if (status == MICA_OK)
        status = mica_catalogue_finish_model(catalogue, run->model_id, error);
    return status == MICA_OK ? mica_store_commit(run->store, false, error) : status;
}

/* ---- */

static mica_status prepare(mica_import_run *run, mica_error *error) {
    mica_status status = open_source(run, error);
    if (status == MICA_OK)
        status = map_tensors(run, error);
    if (status == MICA_OK)
        status = mica_import_plan_make(run->source, run->model, &run->map, &run->plan, error);
    if (status == MICA_OK && run->plan.item_count == 0)
        status = mica_fail(error, MICA_USAGE, "%s: expected tensors to import, got none that is included", run->checkpoint);
    return status == MICA_OK ? describe_job(run, error) : status;
}

static mica_status import(mica_import_run *run, const char *directory, mica_error *error) {
    mica_status status = prepare(run, error);
    if (status == MICA_OK)
        status = mica_store_open_writer(directory, true, run->options->pack_bytes, &run->store, error);
    if (status == MICA_OK)
        status = mica_catalogue_begin(mica_store_catalogue(run->store), error);
    if (status == MICA_OK)
        status = find_place(run, error);
    if (status != MICA_OK || run->finished_before)
        return status;
    status = record_shards(run, error);
    if (status == MICA_OK) /* from here on a kill leaves an import that can be resumed */
        status = mica_store_commit(run->store, true, error);
    if (status != MICA_OK)
        return status;
    status = mica_import_stream(run, error);
    if (status == MICA_OK)
        return finish(run, error);
    if (status == MICA_INTERRUPTED && mica_store_commit(run->store, false, NULL) != MICA_OK) {
        /* What the last batch had is lost, as by a kill. */
    }
    return status;
}

mica_status mica_import(const char *checkpoint, const char *store, const mica_import_options *options, char **text, char **json,
                        mica_error *error) {
    const mica_import_options defaults = {0};
    mica_import_run run = {.options = options ? options : &defaults, .checkpoint = checkpoint};
    char *name = run.options->name ? mica_strdup(run.options->name) : default_name(checkpoint);
    run.name = name;
    mica_status status = name ? check_name(name, error) : no_memory(&run, error);
    if (status == MICA_OK)
        status = import(&run, store, error);
    if (status == MICA_OK)
        status = mica_import_report(status, &run, text, json, error);
    mica_store_close(run.store);
    mica_import_plan_release(&run.plan);
    mica_import_map_release(&run.map);
    if (run.model)
        mica_model_close(run.model);
    else
        mica_tensor_source_close(run.source);
    mica_free(run.shard_ids);
    mica_free(run.job);
    mica_free(name);
    return status;
}
