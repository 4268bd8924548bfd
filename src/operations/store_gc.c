/* operations/store_gc.c: mica_gc: gives back the room of payloads that no model has, pack by pack. A pack is one step: what is in use is
 * copied into a new pack and synced, one transaction names the new places and forgets the old pack, and then its file goes. A kill leaves
 * the pack as it was, or a file that nobody names. No payload is moved whose bytes are not those of its hash.
 * Judged by tests/operations/test_store_gc.c, tests/faults/kill_store.sh. */
#include <mica/store.h>

#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/quantity.h"
#include "base/threads.h"
#include "formats/store.h"
#include "formats/vindex.h"
#include "operations/output.h"
#include "operations/pieces.h"

#define SCHEMA 1
#define READERS 2
#define AHEAD 2
#define THREADS_MAX 4
#define GARBAGE_SHARE 10 /* a pack is written anew when one byte in so many is garbage */
#define IMAGE_OFFSET MICA_PACK_ALIGNMENT

typedef struct gc_run {
    const mica_gc_options *options;
    mica_store *store;
    uint64_t packs_removed, packs_rewritten, packs_kept, payloads_removed, bytes_moved, bytes_freed, bytes_left, links_removed;
    uint64_t packs_done, packs_total;
} gc_run;

typedef struct gc_pack { /* the pack that is being looked at */
    gc_run *run;
    mica_stored_pack pack;
    mica_file *file;
    mica_blob *blobs; /* by offset; those in use first, then garbage */
    uint64_t used, count, capacity, used_bytes, garbage_bytes;
    mica_stream_range *ranges;
    mica_sha256 *chains;
    mica_pieces pieces;
} gc_pack;

static mica_status no_memory(const gc_run *run, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", mica_store_path(run->store));
}

/* ---- what is in a pack */

static mica_status visit(void *context, const mica_blob *blob, bool used, mica_error *error) {
    gc_pack *pack = context;
    if (pack->count == pack->capacity) {
        const uint64_t capacity = pack->capacity ? 2 * pack->capacity : 256;
        mica_blob *blobs = mica_reallocarray(pack->blobs, capacity, sizeof *blobs);
        if (!blobs)
            return no_memory(pack->run, error);
        pack->blobs = blobs;
        pack->capacity = capacity;
    }
    *(used ? &pack->used_bytes : &pack->garbage_bytes) += mica_pack_align(blob->bytes);
    pack->blobs[pack->count] = *blob;
    if (used) { /* before the garbage, in their order */
        memmove(&pack->blobs[pack->used + 1], &pack->blobs[pack->used], (pack->count - pack->used) * sizeof *blob);
        pack->blobs[pack->used++] = *blob;
    }
    pack->count++;
    return MICA_OK;
}

/* ---- copying what is in use */

typedef struct unit_result {
    bool differs[MICA_STREAM_RANGES_MAX]; /* the payload ends here, and is not what was stored */
} unit_result;

static uint32_t plan_unit(void *context, uint64_t unit, mica_stream_range *ranges) {
    return mica_pieces_ranges(&((const gc_pack *)context)->pieces, unit, ranges);
}

static uint64_t after_unit(void *context, uint64_t unit) {
    return mica_pieces_after(&((const gc_pack *)context)->pieces, unit);
}

static mica_status hash_piece(gc_pack *pack, const mica_piece *piece, const uint8_t *bytes, bool *differs, mica_error *error) {
    const mica_blob *blob = &pack->blobs[piece->item];
    mica_tensor tensor = {.dtype = blob->dtype, .rank = blob->rank};
    mica_sha256 *hash = &pack->chains[piece->item];
    uint8_t digest[MICA_SHA256_BYTES];
    memcpy(tensor.shape, blob->shape, sizeof tensor.shape);
    const mica_status status = piece->first ? mica_tensor_digest_begin(&tensor, hash, error) : MICA_OK;
    if (status != MICA_OK)
        return status;
    mica_sha256_update(hash, bytes, piece->bytes);
    *differs = false;
    if (piece->last) {
        mica_sha256_final(hash, digest);
        *differs = memcmp(digest, blob->sha256, sizeof digest) != 0;
    }
    return MICA_OK;
}

static mica_status work(void *context, uint32_t thread, uint64_t index, const uint8_t *const *data, void *result, mica_error *error) {
    gc_pack *pack = context;
    const mica_piece_unit *unit = &pack->pieces.units[index];
    unit_result *out = result;
    uint8_t *image = (uint8_t *)result + IMAGE_OFFSET;
    mica_status status = MICA_OK;
    (void)thread;
    for (uint32_t i = 0; i < unit->count && status == MICA_OK; i++) {
        const mica_piece *piece = &pack->pieces.pieces[unit->first + i];
        const uint64_t room = mica_pack_align(piece->bytes);
        status = hash_piece(pack, piece, data[i], &out->differs[i], error);
        memcpy(image, data[i], piece->bytes);
        memset(image + piece->bytes, 0, room - piece->bytes);
        image += room;
    }
    return status;
}

static mica_status name_first(void *context, const mica_stored_model *model, const mica_entry *entry, mica_error *error) {
    mica_text *names = context;
    (void)error;
    if (!names->length)
        mica_text_printf(names, "%s#%s", model->name, entry->name);
    return MICA_OK;
}

static mica_status refuse_blob(const gc_pack *pack, const mica_blob *blob, mica_error *error) {
    mica_text names = MICA_TEXT_INIT;
    char name[40];
    mica_status status = mica_catalogue_each_sharer(mica_store_catalogue(pack->run->store), blob->id, name_first, &names, error);
    if (status == MICA_OK)
        status = mica_fail(
            error, MICA_CORRUPT,
            "%s: %s: expected the bytes that were stored, got others (SHA-256); nothing of this pack was moved, mica verify tells more",
            mica_store_pack_name(pack->pack.number, name), names.bytes ? names.bytes : "a payload");
    mica_text_release(&names);
    return status;
}

/* All of a unit lies together in the image, and will in the pack. */
static mica_status commit(void *context, uint64_t index, const void *result, mica_error *error) {
    gc_pack *pack = context;
    const mica_piece_unit *unit = &pack->pieces.units[index];
    const unit_result *out = result;
    uint64_t first = 0, bytes = 0;
    for (uint32_t i = 0; i < unit->count; i++) {
        const mica_piece *piece = &pack->pieces.pieces[unit->first + i];
        mica_blob *blob = &pack->blobs[piece->item];
        int64_t number;
        uint64_t offset;
        if (out->differs[i])
            return refuse_blob(pack, blob, error);
        const mica_status status = mica_store_reserve(pack->run->store, mica_pack_align(piece->bytes), &number, &offset, error);
        if (status != MICA_OK)
            return status;
        if (piece->first) {
            blob->pack = number;
            blob->offset = offset;
        }
        first = i == 0 ? offset : first;
        bytes += mica_pack_align(piece->bytes);
    }
    pack->run->bytes_moved += bytes;
    return mica_store_write(pack->run->store, first, (const uint8_t *)result + IMAGE_OFFSET, bytes, error);
}

static bool tell(void *context, const mica_stream_progress *progress) {
    const gc_pack *pack = context;
    const gc_run *run = pack->run;
    const mica_progress told = {.what = "collecting",
                                .units_done = run->packs_done,
                                .units_total = run->packs_total,
                                .bytes_done = progress->bytes_read,
                                .bytes_total = pack->pieces.bytes,
                                .seconds = progress->seconds,
                                .seconds_left = -1};
    return run->options->progress(run->options->progress_context, &told);
}

static mica_status copy_used(gc_pack *pack, mica_error *error) {
    gc_run *run = pack->run;
    const uint32_t all = mica_thread_count_default();
    mica_status status = mica_store_open_pack(run->store, pack->pack.number, &pack->file, NULL, error);
    pack->ranges = mica_calloc(pack->used + 1, sizeof *pack->ranges);
    pack->chains = mica_calloc(pack->used + 1, sizeof *pack->chains);
    if (status == MICA_OK && (!pack->ranges || !pack->chains))
        status = no_memory(run, error);
    for (uint64_t i = 0; status == MICA_OK && i < pack->used; i++)
        pack->ranges[i] = (mica_stream_range){pack->file, pack->blobs[i].offset, pack->blobs[i].bytes, "a payload"};
    if (status == MICA_OK)
        status = mica_pieces_plan(pack->ranges, pack->used, &pack->pieces, error);
    if (status != MICA_OK)
        return status;
    const mica_stream_job job = {.context = pack,
                                 .unit_count = pack->pieces.unit_count,
                                 .threads = run->options->threads ? run->options->threads : all < THREADS_MAX ? all : THREADS_MAX,
                                 .readers = READERS,
                                 .ahead = AHEAD,
                                 .unit_bytes_max = pack->pieces.window_bytes,
                                 .result_bytes = IMAGE_OFFSET + MICA_PIECES_UNIT_BYTES + MICA_STREAM_RANGES_MAX * MICA_PACK_ALIGNMENT,
                                 .plan = plan_unit,
                                 .after = after_unit,
                                 .work = work,
                                 .commit = commit,
                                 .progress = run->options->progress ? tell : NULL};
    if (!mica_store_pack(run->store))
        mica_store_begin_pack(run->store); /* not behind what is there already: that may be collected too */
    else
        mica_store_begin_run(run->store, pack->used_bytes); /* as long as the pack: what lay together stays together */
    return mica_stream_run(&job, NULL, error);
}

/* ---- one pack */

/* In one transaction: the new places, no garbage, no old pack. Then its file. */
static mica_status forget_pack(gc_pack *pack, mica_error *error) {
    gc_run *run = pack->run;
    mica_catalogue *catalogue = mica_store_catalogue(run->store);
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < pack->used; i++)
        status = mica_catalogue_move_blob(catalogue, &pack->blobs[i], error);
    for (uint64_t i = pack->used; status == MICA_OK && i < pack->count; i++)
        status = mica_catalogue_remove_blob(catalogue, pack->blobs[i].id, error);
    if (status == MICA_OK)
        status = mica_catalogue_remove_pack(catalogue, pack->pack.number, error);
    if (status == MICA_OK) {
        mica_store_keep(run->store);
        status = mica_store_commit(run->store, true, error);
    }
    if (status == MICA_OK)
        status = mica_store_unlink_pack(run->store, pack->pack.number, error);
    return status;
}

static mica_status collect(gc_run *run, const mica_stored_pack *stored, mica_error *error) {
    gc_pack pack = {.run = run, .pack = *stored};
    mica_status status = mica_catalogue_each_blob(mica_store_catalogue(run->store), stored->number, visit, &pack, error);
    const bool keep = pack.used && pack.garbage_bytes < (pack.used_bytes + pack.garbage_bytes) / GARBAGE_SHARE;
    if (status == MICA_OK && (keep || (pack.used && !pack.garbage_bytes))) {
        run->packs_kept++;
        run->bytes_left += pack.garbage_bytes;
    } else if (status == MICA_OK) {
        status = pack.used ? copy_used(&pack, error) : MICA_OK;
        if (status == MICA_OK)
            status = forget_pack(&pack, error);
        if (status == MICA_OK) {
            *(pack.used ? &run->packs_rewritten : &run->packs_removed) += 1;
            run->payloads_removed += pack.count - pack.used;
            run->bytes_freed += pack.garbage_bytes;
        }
    }
    for (uint64_t i = 0; pack.chains && i < pack.used; i++)
        mica_sha256_release(&pack.chains[i]);
    (void)mica_file_close(pack.file, NULL);
    mica_pieces_release(&pack.pieces);
    mica_free(pack.chains);
    mica_free(pack.ranges);
    mica_free(pack.blobs);
    return status;
}

static mica_status collect_links(gc_run *run, mica_error *error) {
    gc_pack linked = {.run = run};
    mica_catalogue *catalogue = mica_store_catalogue(run->store);
    mica_status status = mica_catalogue_each_blob(catalogue, 0, visit, &linked, error);
    for (uint64_t i = linked.used; status == MICA_OK && i < linked.count; i++, run->links_removed++)
        status = mica_catalogue_remove_blob(catalogue, linked.blobs[i].id, error);
    if (status == MICA_OK)
        status = mica_catalogue_remove_unused_shards(catalogue, error);
    mica_free(linked.blobs);
    return status;
}

static mica_status collect_all(gc_run *run, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(run->store);
    mica_stored_pack *packs = NULL;
    mica_status status = mica_catalogue_begin(catalogue, error);
    if (status == MICA_OK)
        status = mica_catalogue_packs(catalogue, &packs, &run->packs_total, error);
    for (; status == MICA_OK && run->packs_done < run->packs_total; run->packs_done++)
        status = collect(run, &packs[run->packs_done], error);
    if (status == MICA_OK)
        status = collect_links(run, error);
    if (status == MICA_OK)
        status = mica_store_commit(run->store, false, error);
    mica_free(packs);
    return status == MICA_OK ? mica_catalogue_compact(catalogue, error) : status;
}

/* ---- */

static mica_status report(const gc_run *run, char **text, char **json, mica_error *error) {
    mica_text words = MICA_TEXT_INIT;
    mica_json_writer writer;
    char freed[MICA_QUANTITY_BYTES], left[MICA_QUANTITY_BYTES], moved[MICA_QUANTITY_BYTES];
    mica_text_printf(&words, "%s: %s given back\n", mica_store_path(run->store), mica_bytes_show(run->bytes_freed, freed));
    mica_text_printf(&words, "  packs     %" PRIu64 " removed, %" PRIu64 " written anew (%s moved), %" PRIu64 " as they were\n",
                     run->packs_removed, run->packs_rewritten, mica_bytes_show(run->bytes_moved, moved), run->packs_kept);
    mica_text_printf(&words, "  payloads  %" PRIu64 " removed\n", run->payloads_removed + run->links_removed);
    if (run->bytes_left)
        mica_text_printf(&words, "  left      %s in packs of which less than a tenth is garbage\n", mica_bytes_show(run->bytes_left, left));
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_u64(&writer, "schema", SCHEMA);
    mica_json_string(&writer, "store", mica_store_path(run->store));
    mica_json_u64(&writer, "packs_removed", run->packs_removed);
    mica_json_u64(&writer, "packs_rewritten", run->packs_rewritten);
    mica_json_u64(&writer, "packs_kept", run->packs_kept);
    mica_json_u64(&writer, "payloads_removed", run->payloads_removed);
    mica_json_u64(&writer, "links_removed", run->links_removed);
    mica_json_u64(&writer, "bytes_freed", run->bytes_freed);
    mica_json_u64(&writer, "bytes_moved", run->bytes_moved);
    mica_json_u64(&writer, "bytes_left", run->bytes_left);
    mica_json_close_object(&writer);
    return mica_output_give(MICA_OK, &words, &writer, text, json, error);
}

mica_status mica_gc(const char *directory, const mica_gc_options *options, char **text, char **json, mica_error *error) {
    const mica_gc_options defaults = {0};
    gc_run run = {.options = options ? options : &defaults};
    mica_status status = mica_store_open_writer(directory, false, run.options->pack_bytes, &run.store, error);
    if (status == MICA_OK)
        status = collect_all(&run, error);
    if (status == MICA_OK)
        status = report(&run, text, json, error);
    mica_store_close(run.store);
    return status;
}
