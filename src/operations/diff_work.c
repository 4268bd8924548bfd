/* operations/diff_work.c: two passes over the stream: bytes of the pairs that are stored alike; then, of those that were not the same,
 * every value of both. So what is the same, usually nearly all, is read once and never decoded; what lies at the same place of the same
 * file is not read at all. Sums are added in the order of the slabs, so that no digit depends on threads. Judged by
 * tests/operations/test_diff.c. */
#include <string.h>

#include "base/memory.h"
#include "base/threads.h"
#include "operations/diff.h"

#define READERS 4u
#define AHEAD 3u
#define THREADS_MAX 16u /* each holds a slab of both sides */

typedef struct diff_worker {
    float *strips[2]; /* [MICA_STRIP_ELEMENTS] each */
} diff_worker;

typedef struct diff_result {
    bool equal; /* bytes */
    mica_difference difference;
} diff_result;

typedef struct diff_pass {
    mica_comparison *comparison;
    const mica_diff_options *options;
    bool decode;       /* the second pass */
    uint64_t *order;   /* pairs that have units in this pass */
    uint64_t order_count, unit_count, window_bytes, bytes_total;
    diff_worker *workers;
} diff_pass;

typedef struct diff_unit {
    mica_pair *pair;
    mica_slab slab;
    uint32_t counts[2]; /* of ranges */
} diff_unit;

static diff_unit unit_at(const diff_pass *pass, uint64_t number) {
    uint64_t low = 0, high = pass->order_count;
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (pass->comparison->pairs[pass->order[middle]].first_unit <= number)
            low = middle;
        else
            high = middle;
    }
    diff_unit unit = {.pair = &pass->comparison->pairs[pass->order[low]]};
    unit.slab = mica_slab_at(&unit.pair->slabs, number - unit.pair->first_unit);
    return unit;
}

static void unit_ranges(const diff_pass *pass, diff_unit *unit, mica_stream_range *ranges) {
    const mica_comparison *comparison = pass->comparison;
    unit->counts[0] = mica_slab_ranges(comparison->sides[0].model->source, unit->pair->a, &unit->slab, ranges);
    unit->counts[1] = mica_slab_ranges(comparison->sides[1].model->source, unit->pair->b, &unit->slab, ranges + unit->counts[0]);
}

static uint32_t plan_unit(void *opaque, uint64_t number, mica_stream_range *ranges) {
    diff_unit unit = unit_at(opaque, number);
    unit_ranges(opaque, &unit, ranges);
    return unit.counts[0] + unit.counts[1];
}

static bool equal_bytes(const diff_unit *unit, const mica_stream_range *ranges, const uint8_t *const *data) {
    for (uint32_t i = 0; i < unit->counts[0]; i++)
        if (memcmp(data[i], data[unit->counts[0] + i], ranges[i].bytes) != 0)
            return false;
    return true;
}

static mica_status decode_both(const diff_pass *pass, const diff_unit *unit, const uint8_t *const *data, const diff_worker *worker,
                               mica_difference *difference, mica_error *error) {
    const mica_side *sides = pass->comparison->sides;
    mica_matrix a, b;
    mica_status status = mica_slab_matrix(sides[0].model, unit->pair->a, &unit->slab, data, &a, error);
    if (status == MICA_OK)
        status = mica_slab_matrix(sides[1].model, unit->pair->b, &unit->slab, data + unit->counts[0], &b, error);
    for (mica_slab strip = {0}; status == MICA_OK && mica_strip_next(&a, &strip);) {
        mica_strip_decode(&a, &strip, worker->strips[0]);
        mica_strip_decode(&b, &strip, worker->strips[1]);
        mica_difference_add(difference, worker->strips[0], worker->strips[1], strip.rows * strip.columns);
    }
    return status;
}

static mica_status work_unit(void *opaque, uint32_t thread, uint64_t number, const uint8_t *const *data, void *memory, mica_error *error) {
    const diff_pass *pass = opaque;
    diff_result *result = memory;
    diff_unit unit = unit_at(pass, number);
    mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
    unit_ranges(pass, &unit, ranges);
    *result = (diff_result){.equal = true};
    if (pass->decode)
        return decode_both(pass, &unit, data, &pass->workers[thread], &result->difference, error);
    result->equal = equal_bytes(&unit, ranges, data);
    return MICA_OK;
}

static mica_status commit_unit(void *opaque, uint64_t number, const void *memory, mica_error *error) {
    const diff_pass *pass = opaque;
    const diff_result *result = memory;
    mica_pair *pair = unit_at(pass, number).pair;
    (void)error;
    if (pass->decode)
        mica_difference_merge(&pair->difference, &result->difference);
    else if (!result->equal)
        pair->kind = MICA_PAIR_BYTES;
    return MICA_OK;
}

static bool tell(void *opaque, const mica_stream_progress *stream) {
    const diff_pass *pass = opaque;
    const mica_progress told = {.what = pass->decode ? "decoding" : "comparing",
                                .units_done = stream->units_done,
                                .units_total = stream->units_total,
                                .bytes_done = stream->bytes_read,
                                .bytes_total = pass->bytes_total,
                                .seconds = stream->seconds,
                                .seconds_left = stream->seconds_left};
    return pass->options->progress(pass->options->progress_context, &told);
}

/* ---- which pairs a pass reads */

static bool same_place(const mica_comparison *comparison, const mica_tensor *a, const mica_tensor *b) {
    if (!a || !b)
        return a == b;
    const char *paths[2] = {mica_file_path(mica_model_file(comparison->sides[0].model, a)),
                            mica_file_path(mica_model_file(comparison->sides[1].model, b))};
    return a->offset == b->offset && strcmp(paths[0], paths[1]) == 0;
}

/* Two models of a store share what is the same. */
static bool is_shared(const mica_comparison *comparison, const mica_pair *pair) {
    return same_place(comparison, pair->a->data, pair->b->data) && same_place(comparison, pair->a->scale, pair->b->scale) &&
           same_place(comparison, pair->a->shape, pair->b->shape);
}

static bool has_values(const mica_weight *weight) {
    return weight->encoding != MICA_ENCODING_PLAIN || mica_dtype_is_floating(weight->data->dtype);
}

static bool is_read(const diff_pass *pass, const mica_pair *pair) {
    if (!pair->a || !pair->b || pair->kind == MICA_PAIR_SHAPE)
        return false;
    if (pass->decode)
        return pair->kind != MICA_PAIR_SAME && has_values(pair->a) && has_values(pair->b);
    return pair->alike && !is_shared(pass->comparison, pair);
}

static mica_status plan_pass(diff_pass *pass, mica_error *error) {
    mica_comparison *comparison = pass->comparison;
    pass->order = mica_calloc(comparison->pair_count + 1, sizeof *pass->order);
    if (!pass->order)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a comparison");
    for (uint64_t i = 0; i < comparison->pair_count; i++) {
        mica_pair *pair = &comparison->pairs[i];
        if (!is_read(pass, pair) || pair->slabs.count == 0)
            continue;
        pair->first_unit = pass->unit_count;
        pass->order[pass->order_count++] = i;
        pass->unit_count += pair->slabs.count;
    }
    for (uint64_t i = 0; i < pass->order_count; i++) { /* the first slab is the largest */
        mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
        const mica_pair *pair = &comparison->pairs[pass->order[i]];
        const uint32_t count = plan_unit(pass, pair->first_unit, ranges);
        uint64_t window = 0;
        for (uint32_t j = 0; j < count; j++)
            window += mica_file_window_bytes(ranges[j].bytes);
        pass->window_bytes = window > pass->window_bytes ? window : pass->window_bytes;
        pass->bytes_total += pair->a->data->bytes + pair->b->data->bytes;
    }
    return MICA_OK;
}

static mica_status make_workers(diff_pass *pass, uint32_t threads, mica_error *error) {
    pass->workers = mica_calloc(threads, sizeof *pass->workers);
    bool made = pass->workers != NULL;
    for (uint32_t i = 0; made && pass->decode && i < threads; i++)
        for (int side = 0; side < 2; side++) {
            pass->workers[i].strips[side] = mica_alloc_aligned(MICA_STRIP_ELEMENTS * sizeof(float));
            made = made && pass->workers[i].strips[side];
        }
    return made ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for %u threads", threads);
}

static void release_pass(diff_pass *pass, uint32_t threads) {
    for (uint32_t i = 0; pass->workers && i < threads; i++) {
        mica_free_aligned(pass->workers[i].strips[0]);
        mica_free_aligned(pass->workers[i].strips[1]);
    }
    mica_free(pass->workers);
    mica_free(pass->order);
}

static mica_status run_pass(mica_comparison *comparison, const mica_diff_options *options, bool decode, mica_error *error) {
    diff_pass pass = {.comparison = comparison, .options = options, .decode = decode};
    mica_stream_stats stats = {0};
    mica_status status = plan_pass(&pass, error);
    if (status == MICA_OK)
        status = make_workers(&pass, comparison->threads, error);
    if (status == MICA_OK && pass.unit_count > 0) {
        const mica_stream_job job = {.context = &pass,
                                     .unit_count = pass.unit_count,
                                     .threads = comparison->threads,
                                     .readers = READERS,
                                     .ahead = AHEAD,
                                     .unit_bytes_max = pass.window_bytes,
                                     .result_bytes = sizeof(diff_result),
                                     .plan = plan_unit,
                                     .work = work_unit,
                                     .commit = commit_unit,
                                     .progress = options->progress ? tell : NULL};
        status = mica_stream_run(&job, &stats, error);
    }
    comparison->bytes_read += stats.bytes_read;
    comparison->seconds += stats.seconds;
    for (uint64_t i = 0; status == MICA_OK && decode && i < pass.order_count; i++) {
        mica_pair *pair = &comparison->pairs[pass.order[i]];
        pair->decoded = true;
        pair->kind = pair->difference.differing || pair->difference.not_finite ? MICA_PAIR_VALUES : MICA_PAIR_STORED;
    }
    release_pass(&pass, comparison->threads);
    return status;
}

mica_status mica_comparison_run(mica_comparison *comparison, const mica_diff_options *options, mica_error *error) {
    comparison->threads = options->threads ? options->threads : mica_thread_count_default();
    if (comparison->threads > THREADS_MAX)
        comparison->threads = THREADS_MAX;
    const mica_status status = run_pass(comparison, options, false, error);
    return status == MICA_OK ? run_pass(comparison, options, true, error) : status;
}
