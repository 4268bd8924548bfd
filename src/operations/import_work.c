/* operations/import_work.c: the bytes of an import: read ahead, hashed and laid out for the pack on compute threads, written and named in
 * order. A tensor that fits a unit is looked up before it is written; a larger one is written as it comes, and taken back when it turns out
 * to be there. Rows of a batch are committed together, after its bytes were synced: a kill loses a batch, no more.
 * Judged by tests/operations/test_import.c, tests/faults/kill_store.sh. */
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "formats/vindex.h"
#include "operations/import.h"

#define READERS 2
#define AHEAD 2
#define THREADS_MAX 4 /* by default: 7 GB/s of hashing */
#define BATCH_BYTES ((uint64_t)1 << 30) /* or a pack's size, where that is less */
#define BATCH_SECONDS 2.0

/* What work gives to commit: digests, then the unit's payloads as the pack will have them. */
#define IMAGE_OFFSET MICA_PACK_ALIGNMENT
typedef struct unit_result {
    uint8_t digests[MICA_STREAM_RANGES_MAX][MICA_SHA256_BYTES]; /* of the items that end in this unit */
} unit_result;
_Static_assert(sizeof(unit_result) <= IMAGE_OFFSET, "the image is aligned for direct writing");

typedef struct importing {
    mica_import_run *run;
    mica_pieces pieces;
    mica_stream_range *ranges;
    const mica_import_item **items; /* of the plan, those to be done: the pieces' items */
    mica_sha256 *chains;            /* [item]: of a cut one, while its pieces come */
    /* the calling thread's */
    const uint8_t *waiting; /* payloads of one unit, reserved one after the other and not written yet: `waiting_bytes` from here */
    uint64_t waiting_bytes, waiting_offset;
    int64_t cut_pack; /* where the cut item being written began */
    uint64_t cut_offset;
    uint64_t batch_bytes;
    double batch_begun;
} importing;

/* ---- compute threads */

static mica_status hash_piece(importing *state, const mica_piece *piece, const uint8_t *bytes, uint8_t digest[MICA_SHA256_BYTES],
                              mica_error *error) {
    const mica_tensor *tensor = state->items[piece->item]->tensor;
    if (piece->first && piece->last)
        return mica_tensor_digest(tensor, bytes, digest, error);
    mica_sha256 *chain = &state->chains[piece->item];
    mica_status status = piece->first ? mica_tensor_digest_begin(tensor, chain, error) : MICA_OK;
    if (status != MICA_OK)
        return status;
    mica_sha256_update(chain, bytes, piece->bytes);
    if (piece->last)
        mica_sha256_final(chain, digest);
    return MICA_OK;
}

static mica_status work(void *context, uint32_t thread, uint64_t index, const uint8_t *const *data, void *result, mica_error *error) {
    importing *state = context;
    const mica_piece_unit *unit = &state->pieces.units[index];
    unit_result *out = result;
    uint8_t *image = (uint8_t *)result + IMAGE_OFFSET;
    mica_status status = MICA_OK;
    (void)thread;
    for (uint32_t i = 0; i < unit->count && status == MICA_OK; i++) {
        const mica_piece *piece = &state->pieces.pieces[unit->first + i];
        const uint64_t room = mica_pack_align(piece->bytes);
        status = hash_piece(state, piece, data[i], out->digests[i], error);
        if (!state->run->options->link) {
            memcpy(image, data[i], piece->bytes);
            memset(image + piece->bytes, 0, room - piece->bytes);
            image += room;
        }
    }
    return status;
}

/* ---- the calling thread: in order */

static mica_status fail_item(const importing *state, const mica_import_item *item, mica_status status, mica_error *error) {
    return mica_fail_context(error, status, "%s: %s", state->run->source->shards[item->tensor->shard].name, item->tensor->name);
}

static mica_status write_waiting(importing *state, mica_error *error) {
    const uint64_t bytes = state->waiting_bytes;
    state->waiting_bytes = 0;
    state->batch_bytes += bytes;
    return bytes ? mica_store_write(state->run->store, state->waiting_offset, state->waiting, bytes, error) : MICA_OK;
}

/* Reserves room for what lies at `image`; neighbours in the image are written at once. */
static mica_status reserve(importing *state, const uint8_t *image, uint64_t room, int64_t *pack, uint64_t *offset, mica_error *error) {
    mica_status status = MICA_OK;
    if (state->waiting_bytes && state->waiting + state->waiting_bytes != image)
        status = write_waiting(state, error);
    if (status == MICA_OK)
        status = mica_store_reserve(state->run->store, room, pack, offset, error);
    if (status != MICA_OK)
        return status;
    if (!state->waiting_bytes) {
        state->waiting = image;
        state->waiting_offset = *offset;
    }
    state->waiting_bytes += room;
    return MICA_OK;
}

/* The row of a payload's name. */
static mica_status name_blob(importing *state, const mica_import_item *item, const mica_blob *blob, bool is_new, mica_error *error) {
    mica_import_run *run = state->run;
    const mica_entry entry = {.name = item->name, .encoding = item->encoding, .scale = item->scale, .packed_shape = item->packed_shape,
                              .alias = item->alias, .blob = *blob};
    uint8_t chosen[MICA_UUID_BYTES], own[MICA_UUID_BYTES];
    mica_uuid_of_digest(blob->sha256, own);
    if (item->alias && mica_uuid_parse(item->alias, chosen) && mica_uuid_version(chosen) == 8 && memcmp(chosen, own, sizeof own) != 0) {
        char shown[MICA_UUID_TEXT_BYTES];
        mica_uuid_show(own, shown);
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected as its alias its content's UUID %s, or one that is not of version 8, got %s",
                         item->name, shown, item->alias);
    }
    *(is_new ? &run->new_tensors : &run->shared_tensors) += 1;
    *(is_new ? &run->new_bytes : &run->shared_bytes) += blob->bytes;
    return mica_catalogue_add_entry(mica_store_catalogue(run->store), run->model_id, &entry, error);
}

static mica_blob blob_of(const mica_import_item *item, const uint8_t digest[MICA_SHA256_BYTES]) {
    const mica_tensor *tensor = item->tensor;
    mica_blob blob = {.dtype = tensor->dtype, .rank = tensor->rank, .elements = tensor->elements, .bytes = tensor->bytes};
    memcpy(blob.sha256, digest, sizeof blob.sha256);
    memcpy(blob.shape, tensor->shape, sizeof blob.shape);
    return blob;
}

/* Gives `wanted` its row: a new one, or that of the same content which lay in a linked file until now. */
static mica_status place_blob(importing *state, mica_blob *wanted, const mica_blob *known, mica_error *error) {
    mica_catalogue *catalogue = mica_store_catalogue(state->run->store);
    if (!known)
        return mica_catalogue_add_blob(catalogue, wanted, error);
    wanted->id = known->id;
    return mica_catalogue_move_blob(catalogue, wanted, error);
}

static mica_status commit_linked(importing *state, const mica_import_item *item, const uint8_t *digest, mica_error *error) {
    mica_blob blob = blob_of(item, digest), known;
    bool found;
    mica_status status = mica_catalogue_find_blob(mica_store_catalogue(state->run->store), digest, &found, &known, error);
    blob.shard = state->run->shard_ids[item->tensor->shard];
    blob.offset = item->tensor->offset;
    if (status == MICA_OK && (!found || known.shard)) /* the newest link is the one to trust */
        status = place_blob(state, &blob, found ? &known : NULL, error);
    else
        blob = known;
    return status == MICA_OK ? name_blob(state, item, &blob, !found, error) : status;
}

/* An item that is whole in this unit: `image` is what the pack would get. */
static mica_status commit_whole(importing *state, const mica_import_item *item, const uint8_t *digest, const uint8_t *image,
                                mica_error *error) {
    mica_import_run *run = state->run;
    mica_blob blob = blob_of(item, digest), known;
    const uint64_t room = mica_pack_align(blob.bytes);
    bool found;
    mica_status status = mica_catalogue_find_blob(mica_store_catalogue(run->store), digest, &found, &known, error);
    if (status != MICA_OK)
        return status;
    if (found && known.pack)
        return name_blob(state, item, &known, false, error);
    status = reserve(state, image, room, &blob.pack, &blob.offset, error);
    if (status == MICA_OK) {
        mica_store_keep(run->store);
        status = place_blob(state, &blob, found ? &known : NULL, error);
    }
    return status == MICA_OK ? name_blob(state, item, &blob, !found, error) : status;
}

/* A piece of a cut item, which is written before anybody knows what it is. */
static mica_status commit_piece(importing *state, const mica_piece *piece, const uint8_t *digest, const uint8_t *image, mica_error *error) {
    mica_import_run *run = state->run;
    const mica_import_item *item = state->items[piece->item];
    const uint64_t room = mica_pack_align(piece->bytes);
    int64_t pack;
    uint64_t offset;
    mica_status status = reserve(state, image, room, &pack, &offset, error);
    if (status != MICA_OK)
        return status;
    if (piece->first) {
        state->cut_pack = pack;
        state->cut_offset = offset;
    }
    if (!piece->last)
        return MICA_OK;
    mica_blob blob = blob_of(item, digest), known;
    bool found;
    status = mica_catalogue_find_blob(mica_store_catalogue(run->store), digest, &found, &known, error);
    if (status == MICA_OK && found && known.pack) {
        state->waiting_bytes = 0; /* this last piece */
        mica_store_rewind(run->store, state->cut_offset);
        return name_blob(state, item, &known, false, error);
    }
    blob.pack = state->cut_pack;
    blob.offset = state->cut_offset;
    if (status == MICA_OK) {
        mica_store_keep(run->store);
        status = place_blob(state, &blob, found ? &known : NULL, error);
    }
    return status == MICA_OK ? name_blob(state, item, &blob, !found, error) : status;
}

static mica_status end_batch(importing *state, mica_error *error) {
    const mica_status status = mica_store_commit(state->run->store, true, error);
    state->batch_bytes = 0;
    state->batch_begun = mica_seconds_now();
    return status;
}

static mica_status begin_run(importing *state, const mica_import_item *item, mica_error *error) {
    const mica_status status = write_waiting(state, error);
    mica_store_begin_run(state->run->store, item->run_bytes);
    return status;
}

static mica_status commit(void *context, uint64_t index, const void *result, mica_error *error) {
    importing *state = context;
    const mica_piece_unit *unit = &state->pieces.units[index];
    const unit_result *out = result;
    const uint8_t *image = (const uint8_t *)result + IMAGE_OFFSET;
    mica_status status = MICA_OK;
    for (uint32_t i = 0; i < unit->count && status == MICA_OK; i++) {
        const mica_piece *piece = &state->pieces.pieces[unit->first + i];
        const mica_import_item *item = state->items[piece->item];
        if (state->run->options->link) {
            status = piece->last ? commit_linked(state, item, out->digests[i], error) : MICA_OK;
        } else {
            status = piece->first && item->run_bytes ? begin_run(state, item, error) : MICA_OK;
            if (status != MICA_OK)
                break;
            status = piece->first && piece->last ? commit_whole(state, item, out->digests[i], image, error)
                                                 : commit_piece(state, piece, out->digests[i], image, error);
            image += mica_pack_align(piece->bytes);
        }
        if (status != MICA_OK)
            status = fail_item(state, item, status, error);
    }
    if (status == MICA_OK)
        status = write_waiting(state, error);
    const uint64_t pack_bytes = state->run->options->pack_bytes, most = pack_bytes && pack_bytes < BATCH_BYTES ? pack_bytes : BATCH_BYTES;
    if (status == MICA_OK && (state->batch_bytes >= most || mica_seconds_now() - state->batch_begun >= BATCH_SECONDS))
        status = end_batch(state, error);
    return status;
}

/* ---- */

static uint32_t plan_unit(void *context, uint64_t unit, mica_stream_range *ranges) {
    return mica_pieces_ranges(&((const importing *)context)->pieces, unit, ranges);
}

static uint64_t after(void *context, uint64_t unit) {
    return mica_pieces_after(&((const importing *)context)->pieces, unit);
}

static bool tell(void *context, const mica_stream_progress *progress) {
    const importing *state = context;
    const mica_import_options *options = state->run->options;
    const mica_progress told = {.what = "importing",
                                .units_done = progress->units_done,
                                .units_total = progress->units_total,
                                .bytes_done = progress->bytes_read,
                                .bytes_total = state->pieces.bytes,
                                .seconds = progress->seconds,
                                .seconds_left = progress->seconds_left};
    return options->progress(options->progress_context, &told);
}

/* Those the model does not have yet. */
static mica_status choose_items(importing *state, mica_error *error) {
    mica_import_run *run = state->run;
    const mica_import_plan *plan = &run->plan;
    uint64_t count = 0, run_bytes = 0;
    state->items = mica_calloc(plan->item_count + 1, sizeof *state->items);
    state->ranges = mica_calloc(plan->item_count + 1, sizeof *state->ranges);
    state->chains = mica_calloc(plan->item_count + 1, sizeof *state->chains);
    if (!state->items || !state->ranges || !state->chains)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for %llu tensors", run->checkpoint,
                         (unsigned long long)plan->item_count);
    for (uint64_t i = 0; i < plan->item_count; i++) {
        mica_import_item *item = &plan->items[i];
        const mica_tensor *tensor = item->tensor;
        bool found;
        mica_entry entry;
        mica_status status = MICA_OK;
        found = false;
        if (run->resumed)
            status = mica_catalogue_find_entry(mica_store_catalogue(run->store), run->model_id, item->name, &found, &entry, error);
        if (status != MICA_OK)
            return status;
        if (item->run_bytes)
            run_bytes = item->run_bytes;
        if (found) {
            run->done_before++;
            continue;
        }
        item->run_bytes = run_bytes; /* of a run whose first tensors are there already, the rest begins it */
        run_bytes = 0;
        state->items[count] = item;
        state->ranges[count++] = (mica_stream_range){run->source->shards[tensor->shard].file, tensor->offset, tensor->bytes, tensor->name};
    }
    return mica_pieces_plan(state->ranges, count, &state->pieces, error);
}

static mica_status stream_items(importing *state, mica_error *error) {
    mica_import_run *run = state->run;
    const uint32_t all = mica_thread_count_default();
    run->threads = run->options->threads ? run->options->threads : all < THREADS_MAX ? all : THREADS_MAX;
    mica_stream_job job = {.context = state,
                           .unit_count = state->pieces.unit_count,
                           .threads = run->threads,
                           .readers = READERS,
                           .ahead = AHEAD,
                           .unit_bytes_max = state->pieces.window_bytes,
                           .result_bytes = IMAGE_OFFSET,
                           .plan = plan_unit,
                           .after = after,
                           .work = work,
                           .commit = commit,
                           .progress = run->options->progress ? tell : NULL};
    if (!run->options->link)
        job.result_bytes += MICA_PIECES_UNIT_BYTES + MICA_STREAM_RANGES_MAX * MICA_PACK_ALIGNMENT;
    mica_stream_stats stats = {0};
    state->batch_begun = mica_seconds_now();
    const mica_status status = mica_stream_run(&job, &stats, error);
    run->bytes_read = stats.bytes_read;
    run->seconds = stats.seconds;
    run->starved_seconds = stats.starved_seconds;
    return status;
}

mica_status mica_import_stream(mica_import_run *run, mica_error *error) {
    importing state = {.run = run};
    mica_status status = choose_items(&state, error);
    if (status == MICA_OK)
        status = stream_items(&state, error);
    for (uint64_t i = 0; state.chains && i < run->plan.item_count; i++)
        mica_sha256_release(&state.chains[i]);
    mica_pieces_release(&state.pieces);
    mica_free(state.items);
    mica_free(state.ranges);
    mica_free(state.chains);
    return status;
}
