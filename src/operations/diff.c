/* operations/diff.c: mica_diff: opens both checkpoints, pairs their weights by what they are for and their files by name, lets diff_work.c
 * read, and reports. A weight is compared as a weight: an fp8 matrix and its bf16 export are one pair. Where one of the two is not
 * understood as a model, both are taken tensor by tensor. Judged by tests/operations/test_diff.c. */
#include "operations/diff.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "operations/inspect_totals.h"
#include "operations/tensor_statistics.h"

#define FILE_BYTES_MAX ((uint64_t)256 << 20)

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for a comparison");
}

const char *mica_pair_kind_name(mica_pair_kind kind) {
    static const char *const names[] = {"same", "stored", "values", "bytes", "shape", "only-a", "only-b"};
    return names[kind];
}

bool mica_comparison_same(const mica_comparison *comparison) {
    return comparison->counts[MICA_PAIR_SAME] == comparison->pair_count && comparison->files_differing == 0;
}

static const mica_weight *either(const mica_pair *pair) {
    return pair->a ? pair->a : pair->b;
}

const char *mica_pair_role(const mica_comparison *comparison, const mica_pair *pair) {
    const mica_weight *weight = either(pair);
    const mica_model *model = comparison->sides[pair->a ? 0 : 1].model;
    if (weight->fate == MICA_IGNORED)
        return model->accounts[weight->whole - model->source->tensors].rule;
    return weight->fate == MICA_UNKNOWN ? "unknown" : mica_role_title(weight->role);
}

int64_t mica_pair_layer(const mica_pair *pair) {
    return either(pair)->layer;
}

/* ---- the two sides */

static mica_status take_as_tensors(mica_side *side, mica_error *error) {
    mica_model *model = side->model ? side->model : mica_calloc(1, sizeof *model);
    if (!model)
        return no_memory(error);
    mica_tensor_source *source = NULL;
    mica_status status = MICA_OK;
    if (!side->model)
        status = mica_tensor_source_open(side->path, &source, error);
    if (status != MICA_OK) {
        mica_free(model);
        return status;
    }
    if (source)
        model->source = source;
    side->model = model;
    side->plain = mica_calloc(model->source->tensor_count + 1, sizeof *side->plain);
    if (!side->plain)
        return no_memory(error);
    for (uint64_t i = 0; i < model->source->tensor_count; i++)
        mica_tensor_as_weight(&model->source->tensors[i], &side->plain[i]);
    return MICA_OK;
}

static void close_side(mica_side *side) {
    if (side->understood) {
        mica_model_close(side->model);
    } else if (side->model) {
        mica_tensor_source_close(side->model->source);
        mica_free(side->model);
    }
    mica_free(side->plain);
}

/* As models if both are; otherwise tensor by tensor. */
static mica_status open_sides(mica_comparison *comparison, mica_error *error) {
    mica_error why = {0};
    for (int i = 0; i < 2; i++) {
        mica_side *side = &comparison->sides[i];
        const mica_status status = mica_model_open(side->path, NULL, &side->model, &why);
        side->understood = status == MICA_OK;
        if (status != MICA_OK && status != MICA_BAD_INPUT)
            return mica_fail(error, status, "%s", why.message);
        if (status != MICA_OK && !comparison->not_understood[0])
            memcpy(comparison->not_understood, why.message, sizeof why.message);
    }
    mica_status status = MICA_OK;
    for (int i = 0; status == MICA_OK && comparison->not_understood[0] && i < 2; i++)
        status = take_as_tensors(&comparison->sides[i], error);
    return status;
}

static const mica_weight *weights_of(const mica_side *side, uint64_t *count) {
    *count = side->plain ? side->model->source->tensor_count : side->model->weight_count;
    return side->plain ? side->plain : side->model->weights;
}

/* ---- pairs */

static bool same_tensor_form(const mica_tensor *a, const mica_tensor *b) {
    if (!a || !b)
        return a == b;
    return a->dtype == b->dtype && a->rank == b->rank && memcmp(a->shape, b->shape, a->rank * sizeof *a->shape) == 0;
}

static bool same_form(const mica_weight *a, const mica_weight *b) {
    return a->encoding == b->encoding && a->block_rows == b->block_rows && a->block_columns == b->block_columns &&
           same_tensor_form(a->data, b->data) && same_tensor_form(a->scale, b->scale) && same_tensor_form(a->shape, b->shape);
}

static mica_pair make_pair(const mica_weight *a, const mica_weight *b) {
    mica_pair pair = {.a = a, .b = b};
    if (!a || !b) {
        pair.kind = a ? MICA_PAIR_ONLY_A : MICA_PAIR_ONLY_B;
    } else if (a->rows != b->rows || a->columns != b->columns) {
        pair.kind = MICA_PAIR_SHAPE;
    } else {
        pair.alike = same_form(a, b);
        pair.kind = pair.alike ? MICA_PAIR_SAME : MICA_PAIR_BYTES; /* until something else is found */
        mica_slabs_plan(a, b, &pair.slabs);
    }
    return pair;
}

/* What a weight is for says more than its name, which a GGUF has of its own: layer, role, part, projection, expert. Weights of which that
 * is not known in full stand behind the others, by name. */
static bool has_place(const mica_weight *weight) {
    return weight->part != MICA_PART_NONE || (weight->role != MICA_ROLE_OTHER && weight->role != MICA_ROLE_ATTENTION &&
                                              weight->role != MICA_ROLE_NORM && weight->role != MICA_ROLE_ROPE_FACTORS);
}

static int order_numbers(int64_t a, int64_t b) {
    return (a > b) - (a < b);
}

static int compare_weights(const mica_weight *a, const mica_weight *b) {
    const bool place = has_place(a);
    if (place != has_place(b))
        return place ? -1 : 1;
    if (!place)
        return strcmp(a->name, b->name);
    const int64_t keys[2][5] = {{a->layer, a->role, a->part, a->expert, a->projection},
                                {b->layer, b->role, b->part, b->expert, b->projection}};
    for (int i = 0; i < 5; i++)
        if (keys[0][i] != keys[1][i])
            return order_numbers(keys[0][i], keys[1][i]);
    return 0;
}

/* Two of one side never are at one place; if they were, their names would tell them apart. */
static int compare_in_side(const void *left, const void *right) {
    const mica_weight *a = *(const mica_weight *const *)left, *b = *(const mica_weight *const *)right;
    const int order = compare_weights(a, b);
    return order ? order : strcmp(a->name, b->name);
}

static mica_status order_weights(const mica_side *side, const mica_weight ***order, uint64_t *count, mica_error *error) {
    const mica_weight *weights = weights_of(side, count);
    *order = mica_calloc(*count + 1, sizeof **order);
    if (!*order)
        return no_memory(error);
    for (uint64_t i = 0; i < *count; i++)
        (*order)[i] = &weights[i];
    qsort(*order, *count, sizeof **order, compare_in_side);
    return MICA_OK;
}

static mica_status make_pairs(mica_comparison *comparison, mica_error *error) {
    const mica_weight **orders[2] = {NULL, NULL};
    uint64_t counts[2] = {0, 0}, at[2] = {0, 0};
    mica_status status = MICA_OK;
    for (int i = 0; status == MICA_OK && i < 2; i++)
        status = order_weights(&comparison->sides[i], &orders[i], &counts[i], error);
    if (status == MICA_OK) {
        comparison->pairs = mica_calloc(counts[0] + counts[1] + 1, sizeof *comparison->pairs);
        status = comparison->pairs ? MICA_OK : no_memory(error);
    }
    while (status == MICA_OK && (at[0] < counts[0] || at[1] < counts[1])) {
        const int order = at[0] == counts[0] ? 1 : at[1] == counts[1] ? -1 : compare_weights(orders[0][at[0]], orders[1][at[1]]);
        comparison->pairs[comparison->pair_count++] = make_pair(order <= 0 ? orders[0][at[0]] : NULL, order >= 0 ? orders[1][at[1]] : NULL);
        at[0] += order <= 0;
        at[1] += order >= 0;
    }
    mica_free(orders[0]);
    mica_free(orders[1]);
    return status;
}

/* ---- files beside the tensors */

static mica_status same_file(const mica_comparison *comparison, const char *name, bool *same, mica_error *error) {
    char *bytes[2] = {NULL, NULL};
    uint64_t lengths[2] = {0, 0};
    mica_status status = MICA_OK;
    for (int i = 0; status == MICA_OK && i < 2; i++)
        status = mica_tensor_source_load(comparison->sides[i].model->source, name, FILE_BYTES_MAX, &bytes[i], &lengths[i], error);
    *same = status == MICA_OK && lengths[0] == lengths[1] && memcmp(bytes[0], bytes[1], lengths[0]) == 0;
    mica_free(bytes[0]);
    mica_free(bytes[1]);
    return status;
}

static mica_status add_file(mica_comparison *comparison, const char *name, int order, mica_error *error) {
    mica_diff_file *file = &comparison->files[comparison->file_count];
    bool same = false;
    *file = (mica_diff_file){mica_strdup(name), order < 0 ? MICA_PAIR_ONLY_A : MICA_PAIR_ONLY_B};
    if (!file->name)
        return no_memory(error);
    comparison->file_count++;
    const mica_status status = order == 0 ? same_file(comparison, name, &same, error) : MICA_OK;
    if (order == 0)
        file->kind = same ? MICA_PAIR_SAME : MICA_PAIR_BYTES;
    comparison->files_differing += !same;
    return status;
}

static mica_status compare_files(mica_comparison *comparison, mica_error *error) {
    char **names[2] = {NULL, NULL};
    uint64_t counts[2] = {0, 0}, at[2] = {0, 0};
    mica_status status = MICA_OK;
    for (int i = 0; status == MICA_OK && i < 2; i++)
        status = mica_tensor_source_list_files(comparison->sides[i].model->source, &names[i], &counts[i], error);
    comparison->files = status == MICA_OK ? mica_calloc(counts[0] + counts[1] + 1, sizeof *comparison->files) : NULL;
    if (status == MICA_OK && !comparison->files)
        status = no_memory(error);
    while (status == MICA_OK && (at[0] < counts[0] || at[1] < counts[1])) {
        const int order = at[0] == counts[0] ? 1 : at[1] == counts[1] ? -1 : strcmp(names[0][at[0]], names[1][at[1]]);
        status = add_file(comparison, order <= 0 ? names[0][at[0]] : names[1][at[1]], order, error);
        at[0] += order <= 0;
        at[1] += order >= 0;
    }
    mica_directory_names_free(names[0], counts[0]);
    mica_directory_names_free(names[1], counts[1]);
    return status;
}

/* ---- */

static void release(mica_comparison *comparison) {
    for (uint64_t i = 0; i < comparison->file_count; i++)
        mica_free(comparison->files[i].name);
    mica_free(comparison->files);
    mica_free(comparison->pairs);
    close_side(&comparison->sides[0]);
    close_side(&comparison->sides[1]);
}

mica_status mica_diff(const char *a, const char *b, const mica_diff_options *options, char **text, char **json, mica_error *error) {
    const mica_diff_options defaults = {0};
    options = options ? options : &defaults;
    mica_comparison comparison = {.sides = {{.path = a}, {.path = b}}};
    mica_status status = open_sides(&comparison, error);
    if (status == MICA_OK)
        status = make_pairs(&comparison, error);
    if (status == MICA_OK)
        status = compare_files(&comparison, error);
    if (status == MICA_OK)
        status = mica_comparison_run(&comparison, options, error);
    for (uint64_t i = 0; status == MICA_OK && i < comparison.pair_count; i++)
        comparison.counts[comparison.pairs[i].kind]++;
    if (status == MICA_OK)
        status = mica_comparison_report(&comparison, text, json, error);
    if (status == MICA_OK && !mica_comparison_same(&comparison))
        status = mica_fail(error, MICA_DIFFERENT, "%s and %s differ", a, b);
    release(&comparison);
    return status;
}
