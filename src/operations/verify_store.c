/* operations/verify_store.c: every byte of a store: the catalogue's structure and digests, every payload against its own digest, every byte
 * of a pack that is no payload zero, linked files as they were linked. A finding names the tensors that it touches, in every model that has
 * them. One moment's view: what is imported meanwhile is not looked at, and packs that a gc removes stay readable.
 * Judged by tests/operations/test_store_verify.c. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"
#include "base/text.h"
#include "base/threads.h"
#include "formats/store.h"
#include "formats/vindex.h"
#include "operations/pieces.h"
#include "operations/verify.h"
#include "operations/verify_findings.h"

#define READERS 2
#define AHEAD 2
#define PLACE_FILE_BITS 40
#define NAMES_SHOWN 4 /* of the tensors that a finding touches */
#define NOTHING UINT64_MAX

typedef struct stored_item { /* a payload with the padding behind it, or bytes that must be zero */
    mica_blob blob;       /* bytes 0 and id 0: none */
    uint64_t payload;     /* bytes of it at the start */
    uint32_t file;
} stored_item;

typedef struct stored_file {
    char *name;
    mica_file *file; /* NULL: cannot be read; said */
    int64_t pack, shard;
    uint64_t bytes; /* that count */
} stored_file;

typedef struct piece_result {
    bool differs;       /* the item ends here, and its digest is another */
    uint64_t not_zero;  /* the first byte of padding that is not, from the start of the item; NOTHING */
} piece_result;

typedef struct store_check {
    const mica_verify_options *options;
    mica_store *store;
    mica_findings findings;
    stored_file *files;
    uint32_t file_count;
    stored_item *items;
    mica_stream_range *ranges;
    uint64_t item_count, item_capacity, payloads;
    mica_sha256 *chains; /* [item] */
    mica_pieces pieces;
    /* while a pack's rows are read */
    uint32_t file;
    uint64_t end; /* of what is covered so far */
} store_check;

static mica_status no_memory(const store_check *check, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", mica_store_path(check->store));
}

static uint64_t place_of(uint32_t file, uint64_t offset) {
    return ((uint64_t)file + 1) << PLACE_FILE_BITS | (offset & ((UINT64_C(1) << PLACE_FILE_BITS) - 1));
}

static mica_status find_fault(store_check *check, const char *file, uint64_t place, const char *what, mica_error *error) {
    return mica_findings_add(&check->findings, MICA_CORRUPT, file, place, what, error);
}

/* ---- names of what a finding touches */

typedef struct sharer_list {
    mica_text text;
    uint64_t count;
} sharer_list;

static mica_status add_sharer(void *context, const mica_stored_model *model, const mica_entry *entry, mica_error *error) {
    sharer_list *list = context;
    (void)error;
    if (list->count++ < NAMES_SHOWN)
        mica_text_printf(&list->text, "%s%s#%s", list->count > 1 ? ", " : "", model->name, entry->name);
    return MICA_OK;
}

/* "model#tensor, …"; the UUID where no model has it. */
static mica_status name_blob(store_check *check, const mica_blob *blob, mica_text *names, mica_error *error) {
    sharer_list list = {.text = MICA_TEXT_INIT};
    uint8_t uuid[MICA_UUID_BYTES];
    char id[MICA_UUID_TEXT_BYTES];
    const mica_status status = mica_catalogue_each_sharer(mica_store_catalogue(check->store), blob->id, add_sharer, &list, NULL);
    mica_uuid_of_digest(blob->sha256, uuid);
    mica_uuid_show(uuid, id);
    if (status != MICA_OK || list.count == 0)
        mica_text_printf(names, "%s (no model has it)", id);
    else
        mica_text_printf(names, "%s", list.text.bytes ? list.text.bytes : "");
    if (list.count > NAMES_SHOWN)
        mica_text_printf(names, " and %" PRIu64 " more", list.count - NAMES_SHOWN);
    mica_text_release(&list.text);
    return mica_text_failed(names) ? no_memory(check, error) : MICA_OK;
}

__attribute__((format(printf, 4, 5))) static mica_status find_blob_fault(store_check *check, const stored_item *item, mica_error *error,
                                                                        const char *format, ...) {
    mica_text text = MICA_TEXT_INIT;
    char what[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    mica_status status = name_blob(check, &item->blob, &text, error);
    mica_text_printf(&text, ": %s", what);
    if (status == MICA_OK)
        status = mica_text_failed(&text)
                     ? no_memory(check, error)
                     : find_fault(check, check->files[item->file].name, place_of(item->file, item->blob.offset), text.bytes, error);
    mica_text_release(&text);
    return status;
}

/* ---- what there is */

static mica_status complain(void *context, const char *sentence, mica_error *error) {
    return find_fault(context, MICA_CATALOGUE_NAME, 0, sentence, error);
}

static mica_status add_item(store_check *check, const mica_blob *blob, uint64_t offset, uint64_t payload, uint64_t bytes,
                            mica_error *error) {
    if (check->item_count == check->item_capacity) {
        const uint64_t capacity = check->item_capacity ? 2 * check->item_capacity : 1024;
        stored_item *items = mica_reallocarray(check->items, capacity, sizeof *items);
        if (items)
            check->items = items;
        mica_stream_range *ranges = items ? mica_reallocarray(check->ranges, capacity, sizeof *ranges) : NULL;
        if (!ranges)
            return no_memory(check, error);
        check->ranges = ranges;
        check->item_capacity = capacity;
    }
    stored_item *item = &check->items[check->item_count];
    *item = (stored_item){.payload = payload, .file = check->file};
    if (blob)
        item->blob = *blob;
    else
        item->blob.offset = offset;
    check->ranges[check->item_count++] =
        (mica_stream_range){check->files[check->file].file, offset, bytes, blob ? "a payload" : "padding"};
    return MICA_OK;
}

/* The bytes between what is covered and the next payload: they belong to the padding of the one before, where there is one. */
static mica_status cover_up_to(store_check *check, uint64_t offset, mica_error *error) {
    if (offset <= check->end)
        return MICA_OK;
    const uint64_t start = check->end;
    check->end = offset;
    return add_item(check, NULL, start, 0, offset - start, error);
}

static mica_status visit_blob(void *context, const mica_blob *blob, bool used, mica_error *error) {
    store_check *check = context;
    const stored_file *file = &check->files[check->file];
    const stored_item item = {.blob = *blob, .file = check->file};
    const uint64_t room = mica_pack_align(blob->bytes);
    (void)used;
    check->payloads++;
    if (!file->file)
        return find_blob_fault(check, &item, error, "its file cannot be read");
    if (blob->offset > file->bytes || blob->bytes > file->bytes - blob->offset || (file->pack && room > file->bytes - blob->offset))
        return find_blob_fault(check, &item, error, "expected %" PRIu64 " bytes at %" PRIu64 ", got %" PRIu64 " bytes that count",
                               blob->bytes, blob->offset, file->bytes);
    if (!file->pack)
        return add_item(check, blob, blob->offset, blob->bytes, blob->bytes, error);
    if (blob->offset % MICA_PACK_ALIGNMENT || (blob->bytes && blob->offset < check->end)) {
        const mica_status status = find_blob_fault(check, &item, error, "expected a place of its own in the pack, got %" PRIu64,
                                                   blob->offset);
        return status == MICA_OK ? add_item(check, blob, blob->offset, blob->bytes, blob->bytes, error) : status;
    }
    mica_status status = cover_up_to(check, blob->offset, error);
    if (status == MICA_OK)
        status = add_item(check, blob, blob->offset, blob->bytes, room, error);
    if (blob->offset + room > check->end)
        check->end = blob->offset + room;
    return status;
}

/* Rows that cannot be read are a finding, not the end. */
static mica_status take_rows(store_check *check, int64_t pack, mica_error *error) {
    mica_error why = {0};
    const mica_status status = mica_catalogue_each_blob(mica_store_catalogue(check->store), pack, visit_blob, check, &why);
    if (status == MICA_CORRUPT)
        return find_fault(check, MICA_CATALOGUE_NAME, place_of(check->file, 0), why.message, error);
    return status == MICA_OK ? MICA_OK : mica_fail(error, status, "%s", why.message);
}

static mica_status add_file(store_check *check, const char *name, int64_t pack, int64_t shard, uint64_t bytes, mica_error *error) {
    stored_file *files = mica_reallocarray(check->files, (size_t)check->file_count + 1, sizeof *files);
    if (files)
        check->files = files;
    char *copy = files ? mica_strdup(name) : NULL;
    if (!copy)
        return no_memory(check, error);
    check->file = check->file_count;
    check->files[check->file_count++] = (stored_file){.name = copy, .pack = pack, .shard = shard, .bytes = bytes};
    return MICA_OK;
}

static mica_status take_pack(store_check *check, const mica_stored_pack *pack, bool *again, mica_error *error) {
    char name[40];
    mica_error why = {0};
    bool missing = false;
    mica_status status = add_file(check, mica_store_pack_name(pack->number, name), pack->number, 0, pack->bytes, error);
    if (status != MICA_OK)
        return status;
    stored_file *file = &check->files[check->file];
    const mica_status opened = mica_store_open_pack(check->store, pack->number, &file->file, &missing, &why);
    if (opened == MICA_NO_MEMORY)
        return mica_fail(error, opened, "%s", why.message);
    if (opened != MICA_OK && missing && *again)
        return MICA_OK; /* the caller looks again whether a gc removed it */
    *again = false;
    if (opened != MICA_OK)
        status = find_fault(check, file->name, place_of(check->file, 0), why.message, error);
    if (status == MICA_OK && file->file && mica_file_bytes(file->file) < pack->bytes) {
        char what[128];
        snprintf(what, sizeof what, "expected at least %" PRIu64 " bytes, got %" PRIu64, pack->bytes, mica_file_bytes(file->file));
        status = find_fault(check, file->name, place_of(check->file, 0), what, error);
        file->bytes = mica_file_bytes(file->file);
    }
    check->end = MICA_PACK_HEADER_BYTES;
    if (status == MICA_OK)
        status = take_rows(check, pack->number, error);
    if (status == MICA_OK && file->file && check->end < file->bytes) /* rows that were removed leave bytes that are not zero */
        status = cover_up_to(check, file->bytes, error);
    return status;
}

static mica_status take_shard(store_check *check, const mica_stored_shard *shard, mica_error *error) {
    struct stat found;
    mica_error why = {0};
    mica_status status = add_file(check, shard->path, 0, shard->id, shard->bytes, error);
    if (status != MICA_OK)
        return status;
    stored_file *file = &check->files[check->file];
    const mica_status opened = mica_file_open(shard->path, true, &file->file, &why);
    if (opened == MICA_NO_MEMORY)
        return mica_fail(error, opened, "%s", why.message);
    if (opened != MICA_OK)
        return find_fault(check, file->name, place_of(check->file, 0), "linked, and cannot be opened", error);
    if (stat(shard->path, &found) != 0 || (uint64_t)found.st_size != shard->bytes ||
        (int64_t)found.st_mtim.tv_sec * 1000000000 + found.st_mtim.tv_nsec != shard->modified)
        status = find_fault(check, file->name, place_of(check->file, 0), "linked, and changed since", error);
    file->bytes = mica_file_bytes(file->file);
    return status;
}

/* The linked payloads come in the order of their shards. */
static mica_status visit_linked(void *context, const mica_blob *blob, bool used, mica_error *error) {
    store_check *check = context;
    for (uint32_t i = 0; i < check->file_count; i++) {
        if (check->files[i].shard == blob->shard) {
            check->file = i;
            return visit_blob(check, blob, used, error);
        }
    }
    return find_fault(check, MICA_CATALOGUE_NAME, 0, "blobs: a payload in a linked file that is not in the catalogue", error);
}

static mica_status take_linked(store_check *check, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(check->store);
    mica_stored_shard *shards = NULL;
    uint64_t count = 0;
    mica_error why = {0};
    mica_status status = mica_catalogue_shards(catalogue, &shards, &count, error);
    for (uint64_t i = 0; status == MICA_OK && i < count; i++)
        status = take_shard(check, &shards[i], error);
    mica_stored_shards_free(shards, count);
    if (status != MICA_OK)
        return status;
    status = mica_catalogue_each_blob(catalogue, 0, visit_linked, check, &why);
    if (status == MICA_CORRUPT)
        return find_fault(check, MICA_CATALOGUE_NAME, 0, why.message, error);
    return status == MICA_OK ? MICA_OK : mica_fail(error, status, "%s", why.message);
}

static void forget(store_check *check) {
    for (uint32_t i = 0; i < check->file_count; i++) {
        (void)mica_file_close(check->files[i].file, NULL);
        mica_free(check->files[i].name);
    }
    mica_free(check->files);
    mica_free(check->items);
    mica_free(check->ranges);
    mica_findings_release(&check->findings);
    check->findings = (mica_findings){0};
    check->files = NULL;
    check->items = NULL;
    check->ranges = NULL;
    check->file_count = 0;
    check->item_count = check->item_capacity = check->payloads = 0;
}

/* *again: a pack was not there that a gc may have removed since the view was taken. */
static mica_status take_all(store_check *check, bool *again, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(check->store);
    mica_stored_pack *packs = NULL;
    uint64_t count = 0;
    bool missing = false;
    mica_status status = mica_catalogue_begin(catalogue, error);
    if (status == MICA_OK)
        status = mica_catalogue_check(catalogue, complain, check, error);
    if (status == MICA_OK)
        status = mica_catalogue_packs(catalogue, &packs, &count, error);
    for (uint64_t i = 0; status == MICA_OK && i < count && !missing; i++) {
        missing = *again;
        status = take_pack(check, &packs[i], &missing, error);
    }
    if (status == MICA_OK && !missing)
        status = take_linked(check, error);
    mica_catalogue_rollback(catalogue);
    mica_free(packs);
    *again = missing;
    return status;
}

/* Looks until no pack is missing, or nobody has written in between: then it is lost. */
static mica_status take_view(store_check *check, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(check->store);
    uint64_t before = 0, after = 0;
    for (bool may_be_removed = true;;) {
        bool again = may_be_removed;
        forget(check);
        mica_status status = mica_catalogue_version(catalogue, &before, error);
        if (status == MICA_OK)
            status = take_all(check, &again, error);
        if (status != MICA_OK || !again)
            return status;
        if ((status = mica_catalogue_version(catalogue, &after, error)) != MICA_OK)
            return status;
        may_be_removed = after != before;
    }
}

/* ---- every byte */

static uint32_t plan_unit(void *context, uint64_t unit, mica_stream_range *ranges) {
    return mica_pieces_ranges(&((const store_check *)context)->pieces, unit, ranges);
}

static uint64_t after_unit(void *context, uint64_t unit) {
    return mica_pieces_after(&((const store_check *)context)->pieces, unit);
}

static mica_status hash_payload(store_check *check, const mica_piece *piece, const uint8_t *bytes, uint64_t length, piece_result *result,
                                mica_error *error) {
    const mica_blob *blob = &check->items[piece->item].blob;
    mica_tensor tensor = {.dtype = blob->dtype, .rank = blob->rank};
    mica_sha256 *hash = &check->chains[piece->item];
    uint8_t digest[MICA_SHA256_BYTES];
    memcpy(tensor.shape, blob->shape, sizeof tensor.shape);
    const mica_status status = piece->first ? mica_tensor_digest_begin(&tensor, hash, error) : MICA_OK;
    if (status != MICA_OK)
        return status;
    mica_sha256_update(hash, bytes, length);
    if (piece->last) {
        mica_sha256_final(hash, digest);
        result->differs = memcmp(digest, blob->sha256, sizeof digest) != 0;
    }
    return MICA_OK;
}

static uint64_t first_not_zero(const uint8_t *bytes, uint64_t length) {
    for (uint64_t i = 0; i < length; i++)
        if (bytes[i])
            return i;
    return NOTHING;
}

static mica_status work(void *context, uint32_t thread, uint64_t index, const uint8_t *const *data, void *result, mica_error *error) {
    store_check *check = context;
    const mica_piece_unit *unit = &check->pieces.units[index];
    piece_result *results = result;
    mica_status status = MICA_OK;
    (void)thread;
    for (uint32_t i = 0; i < unit->count && status == MICA_OK; i++) {
        const mica_piece *piece = &check->pieces.pieces[unit->first + i];
        const stored_item *item = &check->items[piece->item];
        const uint64_t left = item->payload > piece->offset ? item->payload - piece->offset : 0;
        const uint64_t payload = left < piece->bytes ? left : piece->bytes;
        results[i] = (piece_result){.not_zero = NOTHING};
        if (item->blob.id)
            status = hash_payload(check, piece, data[i], payload, &results[i], error);
        const uint64_t odd = first_not_zero(data[i] + payload, piece->bytes - payload);
        if (odd != NOTHING)
            results[i].not_zero = piece->offset + payload + odd;
    }
    return status;
}

static mica_status commit(void *context, uint64_t index, const void *result, mica_error *error) {
    store_check *check = context;
    const mica_piece_unit *unit = &check->pieces.units[index];
    const piece_result *results = result;
    mica_status status = MICA_OK;
    for (uint32_t i = 0; i < unit->count && status == MICA_OK; i++) {
        const stored_item *item = &check->items[check->pieces.pieces[unit->first + i].item];
        if (results[i].differs)
            status = find_blob_fault(check, item, error, "%" PRIu64 " bytes at %" PRIu64 " are not what was stored (SHA-256)",
                                     item->blob.bytes, item->blob.offset);
        if (status == MICA_OK && results[i].not_zero != NOTHING) {
            const uint64_t at = item->blob.offset + results[i].not_zero;
            if (item->blob.id)
                status = find_blob_fault(check, item, error, "padding behind it: expected zeros, got another byte at %" PRIu64, at);
            else {
                char what[128];
                snprintf(what, sizeof what, "bytes that no payload has: expected zeros, got another byte at %" PRIu64, at);
                status = find_fault(check, check->files[item->file].name, place_of(item->file, at), what, error);
            }
        }
    }
    return status;
}

static bool tell(void *context, const mica_stream_progress *progress) {
    const store_check *check = context;
    const mica_progress told = {.what = "verifying",
                                .units_done = progress->units_done,
                                .units_total = progress->units_total,
                                .bytes_done = progress->bytes_read,
                                .bytes_total = check->pieces.bytes,
                                .seconds = progress->seconds,
                                .seconds_left = progress->seconds_left};
    return check->options->progress(check->options->progress_context, &told);
}

static mica_status read_all(store_check *check, mica_error *error) {
    check->chains = mica_calloc(check->item_count + 1, sizeof *check->chains);
    mica_status status = check->chains ? mica_pieces_plan(check->ranges, check->item_count, &check->pieces, error)
                                       : no_memory(check, error);
    if (status != MICA_OK)
        return status;
    const mica_stream_job job = {.context = check,
                                 .unit_count = check->pieces.unit_count,
                                 .threads = check->options->threads ? check->options->threads : mica_thread_count_default(),
                                 .readers = READERS,
                                 .ahead = AHEAD,
                                 .unit_bytes_max = check->pieces.window_bytes,
                                 .result_bytes = MICA_STREAM_RANGES_MAX * sizeof(piece_result),
                                 .plan = plan_unit,
                                 .after = after_unit,
                                 .work = work,
                                 .commit = commit,
                                 .progress = check->options->progress ? tell : NULL};
    status = mica_stream_run(&job, NULL, error);
    for (uint64_t i = 0; i < check->item_count; i++)
        mica_sha256_release(&check->chains[i]);
    return status;
}

static mica_status report(store_check *check, const char *path, char **text, char **json, mica_error *error) {
    mica_checkpoint_report report = {.path = path,
                                     .kind = "store",
                                     .files = check->file_count,
                                     .tensors = check->payloads,
                                     .bytes = check->pieces.bytes + (uint64_t)check->file_count * MICA_PACK_HEADER_BYTES,
                                     .hashed_tensors = check->payloads,
                                     .findings = &check->findings};
    return mica_checkpoint_report_write(&report, text, json, error);
}

mica_status mica_verify_store(const char *path, const mica_verify_options *options, char **text, char **json, mica_error *error) {
    store_check check = {.options = options};
    mica_status status = mica_store_open(path, &check.store, error);
    if (status == MICA_OK)
        status = take_view(&check, error);
    if (status == MICA_OK)
        status = read_all(&check, error);
    if (status == MICA_OK)
        status = report(&check, path, text, json, error);
    forget(&check);
    mica_pieces_release(&check.pieces);
    mica_free(check.chains);
    mica_store_close(check.store);
    return status;
}
