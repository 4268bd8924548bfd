/* operations/verify_checkpoint.c: every byte of a checkpoint once, in the order of its files: each value finite, each scale, table and
 * packed shape what it must be, and every recorded hash compared. One bad tensor does not end it: all findings are in the report.
 * Invariant: with hashes, a shard's units follow one another (`after`), different shards run at the same time.
 * Judged by tests/operations/test_verify_checkpoint.c and test_bad_checkpoints.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "base/threads.h"
#include "formats/vindex.h"
#include "model/model.h"
#include "operations/stream.h"
#include "operations/verify.h"
#include "operations/verify_findings.h"
#include "operations/verify_records.h"

#define PIECE_BYTES (16ull << 20) /* of a large tensor; whole small ones together up to it */
#define PLACE_SHARD_BITS 40       /* a finding's place: shard + 1, then the position in it */
#define READERS 2
#define AHEAD 2

typedef struct verify_unit {
    uint32_t shard;
    uint64_t offset, bytes;
    uint64_t first, count; /* tensors, as positions in `order`; count 0: part of the header */
    uint64_t element;      /* of the first tensor, where the unit begins */
    uint64_t previous;     /* unit of the same shard, or MICA_STREAM_NONE */
    bool last;             /* of its shard */
    mica_findings findings;
} verify_unit;

typedef struct verify_lane { /* the hashes of one shard, as far as it has been read */
    mica_sha256 file, tensor, slice;
    bool file_open, tensor_open, slice_open;
} verify_lane;

typedef struct verification {
    const mica_model *model; /* of a bare file: only its source is set */
    const mica_verify_options *options;
    mica_records file_records, tensor_records;
    const mica_tensor **order;   /* by shard and offset */
    const mica_weight **weights; /* [tensor_count]: of the tensor with that index in the source */
    const mica_tensor **slices;  /* [tensor_count]: the first of those that a tensor of all experts is cut into; NULL for any other */
    verify_unit *units;
    uint64_t unit_count, unit_capacity, bytes_total;
    verify_lane *lanes; /* [shard_count] */
    bool hashing;
    mica_findings findings;
    uint64_t hashed_files, hashed_tensors;
} verification;

static mica_status no_memory(const verification *check, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", check->model->source->path);
}

static uint64_t place_of(uint32_t shard, uint64_t position) {
    return ((uint64_t)shard + 1) << PLACE_SHARD_BITS | position;
}

/* ---- comparing hashes */

static mica_status compare_digest(mica_findings *findings, const mica_records *records, const char *name, const char *file, uint64_t place,
                                  const uint8_t digest[MICA_SHA256_BYTES], mica_error *error) {
    uint64_t count = 0;
    const mica_record *record = mica_records_find(records, name, &count);
    mica_status status = MICA_OK;
    for (uint64_t i = 0; i < count && status == MICA_OK; i++) {
        if (memcmp(record[i].sha256, digest, MICA_SHA256_BYTES) == 0)
            continue;
        char expected[MICA_SHA256_HEX_BYTES], got[MICA_SHA256_HEX_BYTES], message[MICA_ERROR_MESSAGE_BYTES];
        mica_sha256_hex(record[i].sha256, expected);
        mica_sha256_hex(digest, got);
        snprintf(message, sizeof message, "%s%sSHA-256: expected %s (%s), got %s", name == file ? "" : name, name == file ? "" : ": ",
                 expected, record[i].from, got);
        status = mica_findings_add(findings, MICA_CORRUPT, file, place, message, error);
    }
    return status;
}

/* Bytes [start, start + count) of a tensor or a slice, in order; its digest is compared when the last is there. */
static mica_status hash_part(verification *check, verify_unit *unit, mica_sha256 *hash, bool *open, const mica_tensor *tensor,
                             uint64_t place, uint64_t start, uint64_t count, const uint8_t *bytes, mica_error *error) {
    uint64_t records = 0;
    if (!mica_records_find(&check->tensor_records, tensor->name, &records))
        return MICA_OK;
    if (start == 0) {
        mica_status status = mica_tensor_digest_begin(tensor, hash, error);
        if (status != MICA_OK)
            return status;
        *open = true;
    }
    mica_sha256_update(hash, bytes, count);
    if (start + count < tensor->bytes)
        return MICA_OK;
    uint8_t digest[MICA_SHA256_BYTES];
    mica_sha256_final(hash, digest);
    *open = false;
    return compare_digest(&unit->findings, &check->tensor_records, tensor->name, mica_model_shard_name(check->model, tensor), place, digest,
                          error);
}

static mica_status hash_tensor(verification *check, verify_unit *unit, const mica_tensor *tensor, uint64_t place, uint64_t start,
                               uint64_t count, const uint8_t *bytes, mica_error *error) {
    verify_lane *lane = &check->lanes[tensor->shard];
    const mica_tensor *slices = check->slices[tensor - check->model->source->tensors];
    mica_status status = hash_part(check, unit, &lane->tensor, &lane->tensor_open, tensor, place, start, count, bytes, error);
    for (uint64_t end = start + count, next; slices && start < end && status == MICA_OK; start = next) {
        uint64_t index = start / slices->bytes, first = index * slices->bytes;
        next = first + slices->bytes < end ? first + slices->bytes : end;
        status = hash_part(check, unit, &lane->slice, &lane->slice_open, &slices[index], place, start - first, next - start, bytes, error);
        bytes += next - start;
    }
    return status;
}

static mica_status hash_file(verification *check, verify_unit *unit, const uint8_t *bytes, mica_error *error) {
    verify_lane *lane = &check->lanes[unit->shard];
    const char *name = check->model->source->shards[unit->shard].name;
    uint64_t records = 0;
    if (!mica_records_find(&check->file_records, name, &records))
        return MICA_OK;
    if (unit->offset == 0 && unit->previous == MICA_STREAM_NONE) {
        mica_status status = mica_sha256_init(&lane->file, error);
        if (status != MICA_OK)
            return status;
        lane->file_open = true;
    }
    mica_sha256_update(&lane->file, bytes, unit->bytes);
    if (!unit->last)
        return MICA_OK;
    uint8_t digest[MICA_SHA256_BYTES];
    mica_sha256_final(&lane->file, digest);
    lane->file_open = false;
    return compare_digest(&unit->findings, &check->file_records, name, name, place_of(unit->shard, (UINT64_C(1) << PLACE_SHARD_BITS) - 1),
                          digest, error);
}

/* ---- one unit */

static mica_status examine(verification *check, verify_unit *unit, const mica_tensor *tensor, uint64_t place, uint64_t element,
                           uint64_t count, const uint8_t *bytes, mica_error *error) {
    const mica_model *model = check->model;
    const mica_weight *weight = check->weights[tensor - model->source->tensors];
    const char *shard = mica_model_shard_name(model, tensor);
    char warning[MICA_ERROR_MESSAGE_BYTES];
    mica_error found = {0};
    mica_status status = mica_weight_examine_run(model, weight, tensor, element, count, bytes, warning, sizeof warning, &found);
    if (status != MICA_OK)
        return mica_findings_add(&unit->findings, status, shard, place, found.message, error);
    return *warning ? mica_findings_add(&unit->findings, MICA_OK, shard, place, warning, error) : MICA_OK;
}

static mica_status work(void *context, uint32_t thread, uint64_t index, const uint8_t *const *data, void *result, mica_error *error) {
    verification *check = context;
    verify_unit *unit = &check->units[index];
    const uint8_t *bytes = unit->bytes ? data[0] : (const uint8_t *)"";
    (void)thread;
    (void)result;
    mica_status status = check->hashing ? hash_file(check, unit, bytes, error) : MICA_OK;
    for (uint64_t i = unit->first; i < unit->first + unit->count && status == MICA_OK; i++) {
        const mica_tensor *tensor = check->order[i];
        uint64_t elements = mica_dtype_block_elements(tensor->dtype), size = mica_dtype_block_bytes(tensor->dtype);
        uint64_t element = i == unit->first ? unit->element : 0, first = element / elements * size;
        uint64_t start = tensor->offset + first - unit->offset;
        uint64_t left = (unit->bytes - start) / size * elements;
        uint64_t count = tensor->elements - element < left ? tensor->elements - element : left;
        uint64_t place = place_of(unit->shard, i + 1);
        status = examine(check, unit, tensor, place, element, count, bytes + start, error);
        if (status == MICA_OK && check->hashing)
            status = hash_tensor(check, unit, tensor, place, first, count / elements * size, bytes + start, error);
    }
    return status;
}

static uint32_t plan(void *context, uint64_t index, mica_stream_range *ranges) {
    const verification *check = context;
    const verify_unit *unit = &check->units[index];
    const mica_shard *shard = &check->model->source->shards[unit->shard];
    ranges[0] = (mica_stream_range){shard->file, unit->offset, unit->bytes, unit->count ? check->order[unit->first]->name : "its header"};
    return unit->bytes ? 1 : 0;
}

static uint64_t after(void *context, uint64_t index) {
    return ((const verification *)context)->units[index].previous;
}

static mica_status commit(void *context, uint64_t index, const void *result, mica_error *error) {
    verification *check = context;
    (void)result;
    (void)error;
    mica_findings_move(&check->findings, &check->units[index].findings);
    return MICA_OK;
}

static bool tell(void *context, const mica_stream_progress *progress) {
    const verification *check = context;
    const mica_progress told = {.what = "verifying",
                                .units_done = progress->units_done,
                                .units_total = progress->units_total,
                                .bytes_done = progress->bytes_read,
                                .bytes_total = check->bytes_total,
                                .seconds = progress->seconds,
                                .seconds_left = progress->seconds_left};
    return check->options->progress(check->options->progress_context, &told);
}

/* ---- planning the units */

static int compare_places(const void *left, const void *right) {
    const mica_tensor *a = *(const mica_tensor *const *)left, *b = *(const mica_tensor *const *)right;
    if (a->shard != b->shard)
        return (a->shard > b->shard) - (a->shard < b->shard);
    if (a->offset != b->offset)
        return (a->offset > b->offset) - (a->offset < b->offset);
    return (a->bytes > b->bytes) - (a->bytes < b->bytes); /* empty ones first */
}

static mica_status add_unit(verification *check, const verify_unit *unit, mica_error *error) {
    if (check->unit_count == check->unit_capacity) {
        uint64_t capacity = check->unit_capacity ? 2 * check->unit_capacity : 64;
        verify_unit *units = mica_reallocarray(check->units, capacity, sizeof *units);
        if (!units)
            return no_memory(check, error);
        check->units = units;
        check->unit_capacity = capacity;
    }
    check->units[check->unit_count++] = *unit;
    check->bytes_total += unit->bytes;
    return MICA_OK;
}

/* The bytes [offset, end) in pieces: of one tensor's elements, of several whole tensors, or (dtype MICA_DTYPE_COUNT) of what is none. */
static mica_status add_pieces(verification *check, uint32_t shard, uint64_t offset, uint64_t end, uint64_t first, uint64_t count,
                              mica_dtype dtype, mica_error *error) {
    uint64_t start = offset, size = mica_dtype_block_bytes(dtype), elements = mica_dtype_block_elements(dtype);
    uint64_t piece = size ? PIECE_BYTES / size * size : PIECE_BYTES; /* whole blocks */
    mica_status status = MICA_OK;
    do {
        uint64_t bytes = end - offset < piece || count > 1 ? end - offset : piece;
        verify_unit unit = {.shard = shard,
                            .offset = offset,
                            .bytes = bytes,
                            .first = first,
                            .count = count,
                            .element = size ? (offset - start) / size * elements : 0};
        status = add_unit(check, &unit, error);
        offset += bytes;
    } while (status == MICA_OK && offset < end);
    return status;
}

/* All of one shard, from position `at` of the order; *next is the next shard's position. */
static mica_status plan_shard(verification *check, uint32_t shard, uint64_t at, uint64_t *next, mica_error *error) {
    const mica_tensor_source *source = check->model->source;
    uint64_t end = mica_file_bytes(source->shards[shard].file);
    uint64_t header = at < source->tensor_count && check->order[at]->shard == shard ? check->order[at]->offset : end;
    mica_status status = check->hashing ? add_pieces(check, shard, 0, header, at, 0, MICA_DTYPE_COUNT, error) : MICA_OK;
    while (status == MICA_OK && at < source->tensor_count && check->order[at]->shard == shard) {
        const mica_tensor *tensor = check->order[at];
        uint64_t count = 1, stop = tensor->offset + tensor->bytes;
        while (at + count < source->tensor_count && check->order[at + count]->shard == shard &&
               check->order[at + count]->offset + check->order[at + count]->bytes - tensor->offset <= PIECE_BYTES) {
            stop = check->order[at + count]->offset + check->order[at + count]->bytes;
            count++;
        }
        status = add_pieces(check, shard, tensor->offset, stop, at, count, tensor->dtype, error);
        at += count;
        uint64_t next_tensor = at < source->tensor_count && check->order[at]->shard == shard ? check->order[at]->offset : end;
        if (status == MICA_OK && check->hashing && next_tensor > stop) /* GGUF's padding is in the file's hash */
            status = add_pieces(check, shard, stop, next_tensor, at, 0, MICA_DTYPE_COUNT, error);
    }
    *next = at;
    return status;
}

/* Units of `abreast` shards take turns, so that threads that must keep a shard's order do not wait for one another. */
static mica_status interleave(verification *check, const uint64_t *starts, uint32_t abreast, mica_error *error) {
    uint32_t shards = check->model->source->shard_count;
    verify_unit *units = mica_calloc(check->unit_count + 1, sizeof *units);
    uint64_t count = 0;
    if (!units)
        return no_memory(check, error);
    for (uint32_t group = 0; group < shards; group += abreast) {
        uint32_t end = shards - group < abreast ? shards : group + abreast;
        bool more = true;
        for (uint64_t turn = 0; more; turn++) {
            more = false;
            for (uint32_t shard = group; shard < end; shard++) {
                if (starts[shard] + turn < starts[shard + 1]) {
                    units[count++] = check->units[starts[shard] + turn];
                    more = true;
                }
            }
        }
    }
    mica_free(check->units);
    check->units = units;
    return MICA_OK;
}

/* Links the units of each shard: who comes before, which is the last. */
static mica_status link_units(verification *check, mica_error *error) {
    uint32_t shards = check->model->source->shard_count;
    uint64_t *before = mica_reallocarray(NULL, (size_t)shards + 1, sizeof *before);
    if (!before)
        return no_memory(check, error);
    for (uint32_t shard = 0; shard < shards; shard++)
        before[shard] = MICA_STREAM_NONE;
    for (uint64_t i = 0; i < check->unit_count; i++) {
        verify_unit *unit = &check->units[i];
        unit->previous = before[unit->shard];
        unit->last = true;
        if (unit->previous != MICA_STREAM_NONE)
            check->units[unit->previous].last = false;
        before[unit->shard] = i;
    }
    mica_free(before);
    return MICA_OK;
}

static mica_status plan_units(verification *check, uint32_t threads, mica_error *error) {
    const mica_tensor_source *source = check->model->source;
    check->order = mica_calloc(source->tensor_count + 1, sizeof *check->order);
    uint64_t *starts = mica_calloc((size_t)source->shard_count + 1, sizeof *starts), at = 0;
    mica_status status = check->order && starts ? MICA_OK : no_memory(check, error);
    for (uint64_t i = 0; status == MICA_OK && i < source->tensor_count; i++)
        check->order[i] = &source->tensors[i];
    if (status == MICA_OK)
        qsort(check->order, source->tensor_count, sizeof *check->order, compare_places);
    for (uint32_t shard = 0; shard < source->shard_count && status == MICA_OK; shard++) {
        status = plan_shard(check, shard, at, &at, error);
        starts[shard + 1] = check->unit_count;
    }
    if (status == MICA_OK && check->hashing)
        status = interleave(check, starts, threads, error);
    if (status == MICA_OK)
        status = link_units(check, error);
    mica_free(starts);
    return status;
}

/* ---- what was recorded of files that are no shards, and of what is not there */

static bool is_shard(const mica_tensor_source *source, const char *name) {
    for (uint32_t i = 0; i < source->shard_count; i++) {
        if (strcmp(source->shards[i].name, name) == 0)
            return true;
    }
    return false;
}

static mica_status check_other_file(verification *check, const char *name, mica_error *error) {
    char *path = mica_path_join(check->model->source->directory, name);
    uint8_t digest[MICA_SHA256_BYTES];
    uint64_t bytes = 0;
    mica_status status = path ? MICA_OK : no_memory(check, error);
    if (status == MICA_OK && !mica_path_exists(path)) {
        status = mica_findings_add(&check->findings, MICA_CORRUPT, name, 0, "expected present (its hash is recorded), got absent", error);
    } else if (status == MICA_OK) {
        status = mica_sha256_of_file(path, digest, &bytes, error);
        if (status == MICA_OK)
            status = compare_digest(&check->findings, &check->file_records, name, name, 0, digest, error);
    }
    mica_free(path);
    return status;
}

static mica_status check_records(verification *check, mica_error *error) {
    const mica_tensor_source *source = check->model->source;
    const mica_records *files = &check->file_records, *tensors = &check->tensor_records;
    mica_status status = MICA_OK;
    uint64_t count = 0;
    for (uint64_t i = 0; i < files->count && status == MICA_OK; i++) {
        bool again = i > 0 && strcmp(files->records[i].name, files->records[i - 1].name) == 0;
        check->hashed_files += !again;
        if (!again && !is_shard(source, files->records[i].name))
            status = check_other_file(check, files->records[i].name, error);
    }
    for (uint32_t i = 0; i < source->shard_count && files->count && status == MICA_OK; i++) {
        if (!mica_records_find(files, source->shards[i].name, &count)) {
            status = mica_findings_add(&check->findings, MICA_OK, source->shards[i].name, place_of(i, 0), "no hash of it is recorded",
                                       error);
        }
    }
    for (uint64_t i = 0; i < tensors->count && status == MICA_OK; i++) {
        check->hashed_tensors++;
        const char *name = tensors->records[i].name;
        if (!mica_tensor_source_find(source, name) && !mica_model_weight(check->model, name)) { /* a slice is a weight */
            status = mica_findings_add(&check->findings, MICA_CORRUPT, name, 0,
                                       "expected present (recorded), got no such tensor", error);
        }
    }
    return status;
}

/* ---- */

static mica_status stream_units(verification *check, uint32_t threads, mica_error *error) {
    mica_stream_job job = {.context = check,
                           .unit_count = check->unit_count,
                           .threads = threads,
                           .readers = READERS,
                           .ahead = AHEAD,
                           .unit_bytes_max = 1,
                           .result_bytes = 1,
                           .plan = plan,
                           .after = check->hashing ? after : NULL,
                           .work = work,
                           .commit = commit,
                           .progress = check->options->progress ? tell : NULL};
    mica_stream_stats stats;
    for (uint64_t i = 0; i < check->unit_count; i++) {
        uint64_t bytes = mica_file_window_bytes(check->units[i].bytes);
        job.unit_bytes_max = bytes > job.unit_bytes_max ? bytes : job.unit_bytes_max;
    }
    return check->unit_count ? mica_stream_run(&job, &stats, error) : MICA_OK;
}

static mica_status prepare(verification *check, mica_error *error) {
    const mica_model *model = check->model;
    const mica_tensor_source *source = model->source;
    check->weights = mica_calloc(source->tensor_count + 1, sizeof *check->weights);
    check->slices = mica_calloc(source->tensor_count + 1, sizeof *check->slices);
    check->lanes = mica_calloc((size_t)source->shard_count + 1, sizeof *check->lanes);
    if (!check->weights || !check->slices || !check->lanes)
        return no_memory(check, error);
    for (uint64_t i = 0; i < model->weight_count; i++) {
        const mica_weight *weight = &model->weights[i];
        if (weight->data != weight->whole) { /* what a slice is for, its values do not show: finite is all they must be */
            if (weight->expert == 0)
                check->slices[weight->whole - source->tensors] = weight->data;
            continue;
        }
        const mica_tensor *parts[3] = {weight->data, weight->scale, weight->shape};
        for (int k = 0; k < 3; k++) {
            if (parts[k])
                check->weights[parts[k] - source->tensors] = weight;
        }
    }
    mica_status status = mica_records_collect(source, check->options->hashes, &check->file_records, &check->tensor_records, error);
    check->hashing = check->file_records.count > 0 || check->tensor_records.count > 0;
    return status;
}

static void release(verification *check) {
    for (uint64_t i = 0; i < check->unit_count; i++) { /* of units that were never committed */
        mica_findings_release(&check->units[i].findings);
    }
    for (uint32_t i = 0; check->lanes && i < check->model->source->shard_count; i++) {
        if (check->lanes[i].file_open)
            mica_sha256_release(&check->lanes[i].file);
        if (check->lanes[i].tensor_open)
            mica_sha256_release(&check->lanes[i].tensor);
        if (check->lanes[i].slice_open)
            mica_sha256_release(&check->lanes[i].slice);
    }
    mica_findings_release(&check->findings);
    mica_records_release(&check->file_records);
    mica_records_release(&check->tensor_records);
    mica_free(check->units);
    mica_free(check->order);
    mica_free(check->weights);
    mica_free(check->slices);
    mica_free(check->lanes);
}

static mica_status verify(const mica_model *model, const mica_verify_options *options, char **text, char **json, mica_error *error) {
    verification check = {.model = model, .options = options};
    uint32_t threads = options->threads ? options->threads : mica_thread_count_default();
    mica_status status = prepare(&check, error);
    if (status == MICA_OK)
        status = check_records(&check, error);
    if (status == MICA_OK)
        status = plan_units(&check, threads, error);
    if (status == MICA_OK)
        status = stream_units(&check, threads, error);
    if (status == MICA_OK) {
        mica_checkpoint_report report = {.path = model->source->path,
                                         .kind = "checkpoint",
                                         .files = model->source->shard_count,
                                         .tensors = model->source->tensor_count,
                                         .bytes = check.bytes_total,
                                         .hashed_files = check.hashed_files,
                                         .hashed_tensors = check.hashed_tensors,
                                         .warnings = model->warnings,
                                         .warning_count = model->warning_count,
                                         .findings = &check.findings};
        status = mica_checkpoint_report_write(&report, text, json, error);
    }
    release(&check);
    return status;
}

mica_status mica_verify_checkpoint(const char *path, const mica_verify_options *options, char **text, char **json, mica_error *error) {
    const mica_verify_options defaults = {0};
    options = options ? options : &defaults;
    mica_tensor_source *source = NULL;
    mica_status status = mica_tensor_source_open(path, &source, error);
    if (status != MICA_OK)
        return status;
    if (!mica_source_is_model(source)) { /* values and hashes, without what a configuration would say of them */
        mica_model bare = {.source = source};
        status = verify(&bare, options, text, json, error);
        mica_tensor_source_close(source);
        return status;
    }
    mica_model *model = NULL;
    status = mica_model_open_source(source, NULL, &model, error);
    if (status == MICA_OK)
        status = verify(model, options, text, json, error);
    mica_model_close(model);
    return status;
}
