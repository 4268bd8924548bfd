/* formats/store_source.c: a model of a store as a source of tensors: its shards are the packs that hold it, or the files that were linked.
 * Everything is read at opening, in one moment's view; a gc that removes a pack in between is met by looking again, since it removes the
 * file only after the catalogue named another. Open packs stay readable whatever happens to their names.
 * Refuses: a linked file whose size or time is not what was recorded. Judged by tests/operations/test_import.c,
 * tests/faults/kill_store.sh. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"
#include "base/text.h"
#include "formats/json_cursor.h"
#include "formats/store.h"

typedef struct kept_file {
    mica_stored_file file;
    char *bytes;
} kept_file;

typedef struct store_backend {
    kept_file *files;
    uint64_t file_count;
    uint8_t (*digests)[MICA_SHA256_BYTES]; /* [tensor] */
} store_backend;

typedef struct opening {
    mica_tensor_source *source;
    mica_store *store;
    mica_stored_model model;
    mica_stored_shard *linked;
    uint64_t linked_count;
    int64_t *places; /* of each shard of the source: a pack's number, or minus a linked shard's */
    uint64_t tensor_capacity;
    mica_text names;        /* all tensors' names, NUL after each */
    uint64_t *name_offsets; /* [tensor] */
} opening;

static mica_status no_memory(const mica_tensor_source *source, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its list of tensors", source->path);
}

/* ---- the kind */

static const kept_file *find_file(const mica_tensor_source *source, const char *name) {
    const store_backend *backend = source->backend;
    for (uint64_t i = 0; i < backend->file_count; i++)
        if (strcmp(backend->files[i].file.name, name) == 0)
            return &backend->files[i];
    return NULL;
}

static bool has_file(const mica_tensor_source *source, const char *name) {
    return find_file(source, name) != NULL;
}

static mica_status load_file(const mica_tensor_source *source, const char *name, uint64_t limit, char **bytes, uint64_t *length,
                             mica_error *error) {
    const kept_file *kept = find_file(source, name);
    if (!kept)
        return mica_fail(error, MICA_IO, "%s: expected a kept file %s, got none", source->path, name);
    if (kept->file.bytes > limit)
        return mica_fail(error, MICA_BAD_INPUT, "%s/%s: expected at most %" PRIu64 " bytes, got %" PRIu64, source->path, name, limit,
                         kept->file.bytes);
    char *copy = mica_malloc(kept->file.bytes + 1);
    if (!copy)
        return no_memory(source, error);
    memcpy(copy, kept->bytes, kept->file.bytes + 1);
    *bytes = copy;
    *length = kept->file.bytes;
    return MICA_OK;
}

static mica_status list_files(const mica_tensor_source *source, char ***names, uint64_t *count, mica_error *error) {
    const store_backend *backend = source->backend;
    char **list = mica_calloc(backend->file_count + 1, sizeof *list);
    mica_status status = list ? MICA_OK : no_memory(source, error);
    for (uint64_t i = 0; status == MICA_OK && i < backend->file_count; i++)
        if (!(list[i] = mica_strdup(backend->files[i].file.name)))
            status = no_memory(source, error);
    if (status != MICA_OK) {
        if (list)
            mica_directory_names_free(list, backend->file_count);
        return status;
    }
    *names = list;
    *count = backend->file_count;
    return MICA_OK;
}

static void release(mica_tensor_source *source) {
    store_backend *backend = source->backend;
    for (uint64_t i = 0; backend && i < backend->file_count; i++) {
        mica_free(backend->files[i].file.name);
        mica_free(backend->files[i].bytes);
    }
    if (backend) {
        mica_free(backend->files);
        mica_free(backend->digests);
    }
    mica_free(backend);
    source->backend = NULL;
}

static const uint8_t *digest(const mica_tensor_source *source, uint64_t tensor) {
    return ((const store_backend *)source->backend)->digests[tensor];
}

static const mica_source_kind store_kind = {"model of a store", true, has_file, load_file, list_files, release, digest};

/* ---- which model */

static mica_status only_model(opening *state, mica_error *error) {
    mica_stored_model *models = NULL;
    uint64_t count = 0, whole = 0;
    mica_text names = MICA_TEXT_INIT;
    mica_status status = mica_catalogue_models(mica_store_catalogue(state->store), &models, &count, error);
    for (uint64_t i = 0; status == MICA_OK && i < count; i++) {
        if (!models[i].whole)
            continue;
        if (whole++ < 8)
            mica_text_printf(&names, "%s%s", whole > 1 ? ", " : "", models[i].name);
        if (whole == 1) {
            state->model = models[i];
            models[i].name = models[i].job = NULL;
        }
    }
    if (status == MICA_OK && whole != 1)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected STORE#NAME, or a store with one model, got a store with %" PRIu64 "%s%s",
                           state->source->path, whole, whole ? ": " : "", names.bytes ? names.bytes : "");
    mica_text_release(&names);
    mica_stored_models_free(models, count);
    return status;
}

static mica_status named_model(opening *state, const char *name, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(state->store);
    bool found = false;
    mica_status status = mica_catalogue_find_model(catalogue, name, true, &found, &state->model, error);
    if (status != MICA_OK || found)
        return status;
    mica_stored_model unfinished = {0};
    status = mica_catalogue_find_model(catalogue, name, false, &found, &unfinished, error);
    mica_stored_model_release(&unfinished);
    if (status == MICA_OK && found)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: its import was not finished; the same mica import with --resume goes on",
                           state->source->path);
    else if (status == MICA_OK)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected a model of the store, got no such name", state->source->path);
    return status;
}

/* ---- shards */

static mica_status add_shard(opening *state, int64_t place, const char *name, uint32_t *index, mica_error *error) {
    mica_tensor_source *source = state->source;
    mica_shard *shards = mica_reallocarray(source->shards, (size_t)source->shard_count + 1, sizeof *shards);
    if (shards)
        source->shards = shards;
    int64_t *places = shards ? mica_reallocarray(state->places, (size_t)source->shard_count + 1, sizeof *places) : NULL;
    if (places)
        state->places = places;
    char *copy = places ? mica_strdup(name) : NULL;
    if (!copy)
        return no_memory(source, error);
    source->shards[source->shard_count] = (mica_shard){.name = copy};
    state->places[source->shard_count] = place;
    *index = source->shard_count++;
    return MICA_OK;
}

static const mica_stored_shard *find_linked(const opening *state, int64_t id) {
    for (uint64_t i = 0; i < state->linked_count; i++)
        if (state->linked[i].id == id)
            return &state->linked[i];
    return NULL;
}

/* The source's shard where a payload lies. Neighbours lie together: the last one found is tried first. */
static mica_status shard_of(opening *state, const mica_blob *blob, uint32_t *index, mica_error *error) {
    const int64_t place = blob->pack ? blob->pack : -blob->shard;
    mica_tensor_source *source = state->source;
    if (*index < source->shard_count && state->places[*index] == place)
        return MICA_OK;
    for (*index = 0; *index < source->shard_count; ++*index)
        if (state->places[*index] == place)
            return MICA_OK;
    char name[40];
    const mica_stored_shard *linked = blob->pack ? NULL : find_linked(state, blob->shard);
    if (!blob->pack && !linked)
        return mica_fail(error, MICA_CORRUPT, "%s: shards: expected the linked shard %" PRId64 ", got no such row", source->path,
                         blob->shard);
    return add_shard(state, place, linked ? linked->path : mica_store_pack_name(blob->pack, name), index, error);
}

static mica_status open_linked(opening *state, mica_shard *shard, int64_t id, mica_error *error) {
    const mica_stored_shard *linked = find_linked(state, id);
    struct stat status;
    if (stat(shard->name, &status) != 0)
        return mica_fail(error, MICA_IO, "%s: linked from %s: expected the file, got none", shard->name, state->source->path);
    const int64_t modified = (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
    if ((uint64_t)status.st_size != linked->bytes || modified != linked->modified)
        return mica_fail(error, MICA_CORRUPT, "%s: linked from %s: expected the file as it was linked, got one that was changed since",
                         shard->name, state->source->path);
    return mica_file_open(shard->name, true, &shard->file, error);
}

/* *missing: a pack that a gc removed meanwhile, or that is lost. */
static mica_status open_shards(opening *state, bool *missing, mica_error *error) {
    mica_tensor_source *source = state->source;
    mica_status status = MICA_OK;
    *missing = false;
    for (uint32_t i = 0; status == MICA_OK && i < source->shard_count; i++) {
        if (state->places[i] < 0)
            status = open_linked(state, &source->shards[i], -state->places[i], error);
        else
            status = mica_store_open_pack(state->store, state->places[i], &source->shards[i].file, missing, error);
    }
    for (uint64_t i = 0; status == MICA_OK && i < source->tensor_count; i++) {
        const mica_tensor *tensor = &source->tensors[i];
        const uint64_t bytes = mica_file_bytes(source->shards[tensor->shard].file);
        if (tensor->bytes > bytes || tensor->offset > bytes - tensor->bytes) {
            char shown[MICA_NAME_SHOW_BYTES];
            status = mica_fail(error, MICA_CORRUPT, "%s: %s: expected %" PRIu64 " bytes at %" PRIu64 ", got a file of %" PRIu64 " bytes",
                               source->shards[tensor->shard].name, mica_name_show(tensor->name, shown), tensor->bytes, tensor->offset,
                               bytes);
        }
    }
    return status;
}

/* ---- tensors */

static mica_status add_tensor(void *context, const mica_stored_model *model, const mica_entry *entry, mica_error *error) {
    opening *state = context;
    mica_tensor_source *source = state->source;
    const mica_blob *blob = &entry->blob;
    uint32_t shard = source->tensor_count ? source->tensors[source->tensor_count - 1].shard : 0;
    (void)model;
    if (source->tensor_count == state->tensor_capacity)
        return mica_fail(error, MICA_CORRUPT, "%s: expected %" PRIu64 " tensors, got more", source->path, state->model.tensors);
    mica_status status = shard_of(state, blob, &shard, error);
    if (status != MICA_OK)
        return status;
    mica_tensor *tensor = &source->tensors[source->tensor_count];
    *tensor = (mica_tensor){.dtype = blob->dtype, .rank = blob->rank, .elements = blob->elements, .offset = blob->offset,
                            .bytes = blob->bytes, .shard = shard};
    memcpy(tensor->shape, blob->shape, sizeof tensor->shape);
    memcpy(((store_backend *)source->backend)->digests[source->tensor_count], blob->sha256, MICA_SHA256_BYTES);
    state->name_offsets[source->tensor_count++] = state->names.length;
    mica_text_append(&state->names, entry->name, strlen(entry->name) + 1);
    return mica_text_failed(&state->names) ? no_memory(source, error) : MICA_OK;
}

/* The names move to the first shard, which owns them from now on. */
static mica_status settle_names(opening *state, mica_error *error) {
    mica_tensor_source *source = state->source;
    uint32_t index = 0;
    mica_status status = source->shard_count ? MICA_OK : add_shard(state, 0, "", &index, error);
    if (status == MICA_OK && !source->tensor_count)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a model with tensors, got one without", source->path);
    char *names = status == MICA_OK ? mica_text_take(&state->names) : NULL;
    if (!names)
        return status == MICA_OK ? no_memory(source, error) : status;
    source->shards[0].tensor_names = names;
    for (uint64_t i = 0; i < source->tensor_count; i++)
        source->tensors[i].name = names + state->name_offsets[i];
    return MICA_OK;
}

static mica_status load_tensors(opening *state, mica_error *error) {
    mica_tensor_source *source = state->source;
    mica_catalogue *catalogue = mica_store_catalogue(state->store);
    const uint64_t count = state->model.tensors;
    mica_status status = mica_catalogue_shards(catalogue, &state->linked, &state->linked_count, error);
    if (status != MICA_OK)
        return status;
    source->tensors = count < SIZE_MAX / sizeof *source->tensors - 1 ? mica_calloc(count + 1, sizeof *source->tensors) : NULL;
    state->name_offsets = source->tensors ? mica_calloc(count + 1, sizeof *state->name_offsets) : NULL;
    store_backend *backend = source->backend;
    if (!state->name_offsets || !(backend->digests = mica_calloc(count + 1, sizeof *backend->digests)))
        return no_memory(source, error);
    state->tensor_capacity = count;
    status = mica_catalogue_each_entry(catalogue, state->model.id, add_tensor, state, error);
    if (status == MICA_OK && source->tensor_count != count)
        status = mica_fail(error, MICA_CORRUPT, "%s: expected %" PRIu64 " tensors, got %" PRIu64, source->path, count,
                           source->tensor_count);
    return status == MICA_OK ? settle_names(state, error) : status;
}

/* ---- kept files */

static mica_status load_files(opening *state, mica_error *error) {
    mica_tensor_source *source = state->source;
    mica_catalogue *catalogue = mica_store_catalogue(state->store);
    mica_stored_file *files = NULL;
    uint64_t count = 0;
    store_backend *backend = mica_calloc(1, sizeof *backend);
    source->backend = backend;
    mica_status status = backend ? mica_catalogue_files(catalogue, state->model.id, &files, &count, error) : no_memory(source, error);
    if (status == MICA_OK && !(backend->files = mica_calloc(count + 1, sizeof *backend->files)))
        status = no_memory(source, error);
    for (uint64_t i = 0; status == MICA_OK && i < count; i++) {
        kept_file *kept = &backend->files[backend->file_count++];
        kept->file = files[i];
        files[i].name = NULL;
        status = mica_catalogue_load_file(catalogue, &kept->file, &kept->bytes, error);
    }
    mica_stored_files_free(files, count);
    return status;
}

/* ---- */

static void forget(opening *state) {
    mica_tensor_source *source = state->source;
    for (uint32_t i = 0; i < source->shard_count; i++) {
        (void)mica_file_close(source->shards[i].file, NULL);
        mica_free(source->shards[i].name);
        mica_free(source->shards[i].tensor_names);
    }
    mica_free(source->shards);
    mica_free(source->tensors);
    release(source);
    source->shards = NULL;
    source->tensors = NULL;
    source->shard_count = 0;
    source->tensor_count = 0;
    mica_stored_model_release(&state->model);
    mica_stored_shards_free(state->linked, state->linked_count);
    state->linked = NULL;
    state->linked_count = 0;
    mica_free(state->places);
    mica_free(state->name_offsets);
    state->places = NULL;
    state->name_offsets = NULL;
    mica_text_release(&state->names);
}

/* One moment's view of the catalogue, and the files it names. */
static mica_status look(opening *state, const char *name, bool *missing, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(state->store);
    *missing = false;
    mica_status status = mica_catalogue_begin(catalogue, error);
    if (status == MICA_OK)
        status = name ? named_model(state, name, error) : only_model(state, error);
    if (status == MICA_OK)
        status = load_files(state, error);
    if (status == MICA_OK)
        status = load_tensors(state, error);
    mica_catalogue_rollback(catalogue); /* it only read */
    return status == MICA_OK ? open_shards(state, missing, error) : status;
}

mica_status mica_store_source_open(mica_tensor_source *source, mica_error *error) {
    opening state = {.source = source, .names = MICA_TEXT_INIT};
    const char *name = NULL;
    size_t length = 0;
    bool missing = false;
    uint64_t before = 0, after = 0;
    source->kind = &store_kind;
    mica_store_split(source->path, &length, &name); /* it is one: the caller asked */
    char *directory = mica_strndup(source->path, length);
    mica_status status = directory && (source->directory = mica_strdup(source->path)) ? MICA_OK : no_memory(source, error);
    if (status == MICA_OK)
        status = mica_store_open(directory, &state.store, error);
    while (status == MICA_OK) { /* again only after another process has written */
        forget(&state);
        status = mica_catalogue_version(mica_store_catalogue(state.store), &before, error);
        if (status == MICA_OK)
            status = look(&state, name, &missing, error);
        if (status == MICA_OK || !missing)
            break;
        const mica_status asked = mica_catalogue_version(mica_store_catalogue(state.store), &after, NULL);
        if (asked != MICA_OK || after == before)
            break; /* nobody has written since: the pack is lost */
        status = MICA_OK;
    }
    if (status == MICA_OK && !(source->model_name = mica_strdup(state.model.name)))
        status = no_memory(source, error);
    if (status != MICA_OK)
        forget(&state);
    mica_stored_model_release(&state.model);
    mica_stored_shards_free(state.linked, state.linked_count);
    mica_free(state.places);
    mica_free(state.name_offsets);
    mica_text_release(&state.names);
    mica_store_close(state.store);
    mica_free(directory);
    return status;
}
