/* operations/import_plan.c: which tensors go into the store and in which order: an expert's tensors one after the other, whatever their
 * order in the shards, so that they lie together; the runs as the source has them, so that it is read in one direction.
 * Judged by tests/operations/test_import.c. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "operations/import.h"

static mica_status no_memory(const mica_tensor_source *source, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its list of tensors", source->path);
}

/* How much of a name says what it belongs to: "….experts.12." of an expert's tensors, else all up to the last dot. */
static size_t stem_length(const char *name) {
    static const char experts[] = ".experts.";
    const char *at = strstr(name, experts);
    if (at) {
        const char *digits = at + sizeof experts - 1;
        const size_t length = strspn(digits, "0123456789");
        if (length && digits[length] == '.')
            return (size_t)(digits + length + 1 - name);
    }
    const char *dot = strrchr(name, '.');
    return dot ? (size_t)(dot + 1 - name) : strlen(name);
}

static bool is_same_run(const char *a, const char *b) {
    const size_t length = stem_length(a);
    return length == stem_length(b) && memcmp(a, b, length) == 0;
}

typedef struct run_key { /* a run, by where it begins in the source */
    uint64_t first, count; /* of the items in the order of their names */
    uint64_t offset, bytes;
    uint32_t shard;
} run_key;

static int compare_runs(const void *left, const void *right) {
    const run_key *a = left, *b = right;
    if (a->shard != b->shard)
        return a->shard < b->shard ? -1 : 1;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    return (a->first > b->first) - (a->first < b->first);
}

static bool is_before(const mica_tensor *tensor, const run_key *run) {
    return tensor->shard < run->shard || (tensor->shard == run->shard && tensor->offset < run->offset);
}

/* Names are sorted, so that a run's stand together. */
static uint64_t find_runs(const mica_import_item *items, uint64_t count, run_key *runs) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < count; i++) {
        const mica_tensor *tensor = items[i].tensor;
        if (found == 0 || !is_same_run(items[i - 1].tensor->name, tensor->name))
            runs[found++] = (run_key){.first = i, .offset = tensor->offset, .shard = tensor->shard};
        run_key *run = &runs[found - 1];
        if (is_before(tensor, run)) {
            run->shard = tensor->shard;
            run->offset = tensor->offset;
        }
        run->count++;
        run->bytes += mica_pack_align(tensor->bytes);
    }
    return found;
}

static mica_status order_items(const mica_tensor_source *source, mica_import_plan *plan, mica_error *error) {
    mica_import_item *ordered = mica_calloc(plan->item_count + 1, sizeof *ordered);
    run_key *runs = mica_calloc(plan->item_count + 1, sizeof *runs);
    mica_status status = ordered && runs ? MICA_OK : no_memory(source, error);
    if (status == MICA_OK) {
        const uint64_t run_count = find_runs(plan->items, plan->item_count, runs);
        uint64_t at = 0;
        qsort(runs, run_count, sizeof *runs, compare_runs);
        for (uint64_t i = 0; i < run_count; i++) {
            memcpy(&ordered[at], &plan->items[runs[i].first], runs[i].count * sizeof *ordered);
            ordered[at].run_bytes = runs[i].bytes ? runs[i].bytes : MICA_PACK_ALIGNMENT;
            at += runs[i].count;
        }
        mica_free(plan->items);
        plan->items = ordered;
        ordered = NULL;
    }
    mica_free(ordered);
    mica_free(runs);
    return status;
}

/* A tensor's name in the store; NULL for one that is not there. */
static const char *name_of(const mica_tensor_source *source, const mica_import_map *map, const mica_tensor *tensor) {
    const uint64_t index = tensor ? (uint64_t)(tensor - source->tensors) : 0;
    return tensor && map->included[index] ? map->names[index] : NULL;
}

/* How each weight is stored, told by its data; its other tensors say that they belong to one. */
static void describe(const mica_tensor_source *source, const mica_model *model, const mica_import_map *map, mica_import_item **by_tensor) {
    for (uint64_t i = 0; i < model->weight_count; i++) {
        const mica_weight *weight = &model->weights[i];
        mica_import_item *data = by_tensor[weight->data - source->tensors];
        mica_import_item *scale = weight->scale ? by_tensor[weight->scale - source->tensors] : NULL;
        mica_import_item *shape = weight->shape ? by_tensor[weight->shape - source->tensors] : NULL;
        if (data) {
            data->encoding = mica_encoding_name(weight->encoding);
            data->scale = name_of(source, map, weight->scale);
            data->packed_shape = name_of(source, map, weight->shape);
        }
        if (scale)
            scale->encoding = "scale";
        if (shape)
            shape->encoding = "packed-shape";
    }
}

mica_status mica_import_plan_make(const mica_tensor_source *source, const mica_model *model, const mica_import_map *map,
                                  mica_import_plan *plan, mica_error *error) {
    *plan = (mica_import_plan){.items = mica_calloc(source->tensor_count + 1, sizeof *plan->items)};
    mica_import_item **by_tensor = mica_calloc(source->tensor_count + 1, sizeof *by_tensor);
    mica_status status = plan->items && by_tensor ? MICA_OK : no_memory(source, error);
    for (uint64_t i = 0; status == MICA_OK && i < source->tensor_count; i++) {
        if (!map->included[i])
            continue;
        by_tensor[i] = &plan->items[plan->item_count++];
        *by_tensor[i] = (mica_import_item){.tensor = &source->tensors[i], .name = map->names[i], .alias = map->aliases[i], .encoding = "plain"};
        plan->bytes += source->tensors[i].bytes;
    }
    if (status == MICA_OK && model)
        describe(source, model, map, by_tensor);
    mica_free(by_tensor);
    if (status == MICA_OK)
        status = order_items(source, plan, error);
    if (status != MICA_OK)
        mica_import_plan_release(plan);
    return status;
}

void mica_import_plan_release(mica_import_plan *plan) {
    mica_free(plan->items);
    *plan = (mica_import_plan){0};
}
