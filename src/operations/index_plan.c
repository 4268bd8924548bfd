/* operations/index_plan.c: options and model to units of work, their files' layout, and the threads that memory allows.
 * Invariant: the order of units depends on model, layers and projections only. Judged by tests/operations/test_index.c. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/threads.h"
#include "operations/index.h"
#include "operations/stream.h"

#define CHECK_COUNT_EVERY 16u
#define MEMORY_DEFAULT (2ull << 30)
#define MEMORY_BASE (96ull << 20) /* program, libraries, tables of tensors */

const char *mica_index_kind_name(mica_index_kind kind) {
    static const char *const names[MICA_INDEX_KIND_COUNT] = {"routed", "shared", "dense", "router"};
    return names[kind];
}

/* ---- layers */

static mica_status parse_number(const char *layers, const char **cursor, uint64_t count, uint64_t *value, mica_error *error) {
    if (**cursor < '0' || **cursor > '9')
        return mica_fail(error, MICA_USAGE, "--layers %s: expected a number at \"%s\"", layers, *cursor);
    uint64_t number = 0;
    while (**cursor >= '0' && **cursor <= '9' && number < count)
        number = number * 10 + (uint64_t)(*(*cursor)++ - '0');
    if (number >= count)
        return mica_fail(error, MICA_USAGE, "--layers %s: expected layers below %llu, the model's number of layers", layers,
                         (unsigned long long)count);
    *value = number;
    return MICA_OK;
}

/* "0,1,15,30-32" into flags. */
static mica_status parse_layers(const char *layers, uint64_t count, bool *chosen, mica_error *error) {
    const char *cursor = layers;
    for (;;) {
        uint64_t first = 0, last;
        mica_status status = parse_number(layers, &cursor, count, &first, error);
        if (status != MICA_OK)
            return status;
        last = first;
        if (*cursor == '-') {
            cursor++;
            status = parse_number(layers, &cursor, count, &last, error);
            if (status != MICA_OK)
                return status;
            if (last < first)
                return mica_fail(error, MICA_USAGE, "--layers %s: %llu-%llu runs backwards", layers, (unsigned long long)first,
                                 (unsigned long long)last);
        }
        for (uint64_t layer = first; layer <= last; layer++)
            chosen[layer] = true;
        if (*cursor == '\0')
            return MICA_OK;
        if (*cursor++ != ',')
            return mica_fail(error, MICA_USAGE, "--layers %s: expected ',' or '-' at \"%s\"", layers, cursor - 1);
    }
}

static mica_status choose_layers(mica_index_plan *plan, const char *layers, mica_error *error) {
    const uint64_t count = plan->model->config.num_hidden_layers;
    bool *chosen = mica_calloc(count + 1, sizeof *chosen);
    plan->layers = mica_calloc(count + 1, sizeof *plan->layers);
    mica_status status = MICA_OK;
    if (!chosen || !plan->layers)
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu layers", (unsigned long long)count);
    if (status == MICA_OK && layers)
        status = parse_layers(layers, count, chosen, error);
    for (uint64_t layer = 0; status == MICA_OK && layer < count; layer++)
        if (!layers || chosen[layer])
            plan->layers[plan->layer_count++] = layer;
    mica_free(chosen);
    return status;
}

/* ---- units */

static uint64_t min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static bool asked(const mica_index_plan *plan, mica_projection projection) {
    return plan->spectra >> projection & 1;
}

static mica_vindex_group group_of(const mica_index_plan *plan, mica_index_kind kind) {
    if (kind == MICA_INDEX_SHARED)
        return MICA_VINDEX_SHARED;
    return kind == MICA_INDEX_DENSE && plan->model->config.n_routed_experts > 0 ? MICA_VINDEX_DENSE : MICA_VINDEX_MAIN;
}

/* Adds a unit; returns its number, or MICA_STREAM_NONE when the model has no such weight. */
static uint64_t add_unit(mica_index_plan *plan, const mica_weight *weight, mica_index_kind kind, uint64_t layer, uint64_t expert,
                         mica_projection projection, uint64_t after) {
    if (!weight)
        return MICA_STREAM_NONE;
    const bool is_router = kind == MICA_INDEX_ROUTER;
    mica_index_unit *unit = &plan->units[plan->unit_count];
    *unit = (mica_index_unit){
        .weight = weight,
        .after = after,
        .layer = (uint32_t)layer,
        .expert = (uint32_t)expert,
        .kind = (uint8_t)kind,
        .projection = (uint8_t)projection,
        .group = (uint8_t)group_of(plan, kind),
        .vectors = !is_router && projection == MICA_GATE,
        .full = is_router || (plan->full_spectrum >> projection & 1),
        .check_count = expert % CHECK_COUNT_EVERY == 0,
    };
    if (!is_router)
        unit->slot = plan->layout.group[unit->group].layers;
    return plan->unit_count++;
}

static void add_layer(mica_index_plan *plan, uint64_t number) {
    const mica_layer *layer = &plan->model->layers[number];
    const uint64_t experts = layer->experts ? plan->model->config.n_routed_experts : 0;
    bool in_group[MICA_VINDEX_GROUP_COUNT] = {false};
    const uint64_t first_unit = plan->unit_count;
    for (mica_projection projection = MICA_GATE; projection < MICA_PROJECTION_COUNT; projection++) {
        if (!asked(plan, projection))
            continue;
        uint64_t first = MICA_STREAM_NONE;
        if (experts > 0)
            first = add_unit(plan, layer->experts[projection], MICA_INDEX_ROUTED, number, 0, projection, MICA_STREAM_NONE);
        if (projection == MICA_GATE)
            add_unit(plan, layer->router, MICA_INDEX_ROUTER, number, 0, MICA_GATE, MICA_STREAM_NONE);
        add_unit(plan, layer->dense[projection], MICA_INDEX_DENSE, number, 0, projection, MICA_STREAM_NONE);
        add_unit(plan, layer->shared[projection], MICA_INDEX_SHARED, number, 0, projection, MICA_STREAM_NONE);
        for (uint64_t expert = 1; expert < experts; expert++)
            add_unit(plan, layer->experts[expert * MICA_PROJECTION_COUNT + projection], MICA_INDEX_ROUTED, number, expert, projection,
                     first);
    }
    for (uint64_t i = first_unit; i < plan->unit_count; i++)
        if (plan->units[i].kind != MICA_INDEX_ROUTER)
            in_group[plan->units[i].group] = true;
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++)
        if (in_group[group])
            plan->group_layers[group][plan->layout.group[group].layers++] = number;
}

static mica_status make_units(mica_index_plan *plan, mica_error *error) {
    uint64_t per_layer, most;
    if (!mica_mul_u64(plan->model->config.n_routed_experts + 3, MICA_PROJECTION_COUNT, &per_layer) ||
        !mica_mul_u64(per_layer, plan->layer_count, &most) || most > UINT32_MAX)
        return mica_fail(error, MICA_FAILED, "too many matrices to index");
    plan->units = mica_calloc(most + 1, sizeof *plan->units);
    bool failed = !plan->units;
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++) {
        plan->group_layers[group] = mica_calloc(plan->layer_count + 1, sizeof **plan->group_layers);
        failed = failed || !plan->group_layers[group];
    }
    if (failed)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a plan of %llu matrices", (unsigned long long)most);
    for (uint64_t i = 0; i < plan->layer_count; i++)
        add_layer(plan, plan->layers[i]);
    if (plan->unit_count == 0)
        return mica_fail(error, MICA_USAGE, "there is nothing to index in the layers chosen");
    return MICA_OK;
}

/* ---- layout */

/* Every matrix of a group and projection has the shape of the first: only so have their files a shape. */
static mica_status check_shape(const mica_index_unit *unit, const mica_index_unit *first, mica_error *error) {
    const mica_weight *a = first->weight, *b = unit->weight;
    if (a->rows == b->rows && a->columns == b->columns)
        return MICA_OK;
    return mica_fail(error, MICA_BAD_INPUT, "%s: expected [%llu, %llu] as %s has, got [%llu, %llu]", b->name, (unsigned long long)a->rows,
                     (unsigned long long)a->columns, a->name, (unsigned long long)b->rows, (unsigned long long)b->columns);
}

static mica_status make_layout(mica_index_plan *plan, mica_error *error) {
    const mica_index_unit *first[MICA_VINDEX_GROUP_COUNT][MICA_PROJECTION_COUNT] = {{NULL}};
    for (uint64_t i = 0; i < plan->unit_count; i++) {
        const mica_index_unit *unit = &plan->units[i];
        const mica_tensor *tensors[MICA_INDEX_TENSORS_MAX];
        const uint32_t count = mica_index_unit_tensors(unit, tensors);
        for (uint32_t t = 0; t < count; t++)
            plan->bytes_total += tensors[t]->bytes;
        if (unit->kind == MICA_INDEX_ROUTER)
            continue;
        const mica_index_unit **mate = &first[unit->group][unit->projection];
        if (!*mate)
            *mate = unit;
        const mica_status status = check_shape(unit, *mate, error);
        if (status != MICA_OK)
            return status;
    }
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++) {
        const mica_index_unit *gate = first[group][MICA_GATE];
        const uint64_t hidden = plan->model->config.hidden_size, experts = plan->model->config.n_routed_experts;
        plan->layout.group[group].experts = group == MICA_VINDEX_MAIN && experts > 0 ? experts : 1;
        plan->layout.group[group].hidden = gate ? gate->weight->columns : hidden;
        plan->layout.group[group].features = min_u64(plan->features, gate ? min_u64(gate->weight->rows, gate->weight->columns) : hidden);
        for (int projection = 0; projection < MICA_PROJECTION_COUNT; projection++) {
            const mica_index_unit *unit = first[group][projection];
            if (unit && unit->full)
                plan->layout.group[group].full[projection] = min_u64(unit->weight->rows, unit->weight->columns);
        }
    }
    if (!mica_vindex_layout_check(&plan->layout))
        return mica_fail(error, MICA_FAILED, "the vindex would be larger than a file can be");
    return MICA_OK;
}

mica_status mica_index_plan_make(const mica_model *model, const mica_index_options *options, mica_index_plan *plan, mica_error *error) {
    *plan = (mica_index_plan){.model = model};
    const uint32_t all = MICA_SPECTRA_GATE | MICA_SPECTRA_UP | MICA_SPECTRA_DOWN;
    if ((options->spectra | options->full_spectrum) & ~all)
        return mica_fail(error, MICA_USAGE, "spectra: expected gate, up, down");
    plan->features = options->features ? options->features : MICA_INDEX_VAR_COUNT;
    plan->full_spectrum = options->full_spectrum;
    plan->spectra = options->spectra | options->full_spectrum | MICA_SPECTRA_GATE;
    mica_status status = choose_layers(plan, options->layers, error);
    if (status == MICA_OK)
        status = make_units(plan, error);
    if (status == MICA_OK)
        status = make_layout(plan, error);
    if (status != MICA_OK)
        mica_index_plan_release(plan);
    return status;
}

void mica_index_plan_release(mica_index_plan *plan) {
    mica_free(plan->layers);
    mica_free(plan->units);
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++)
        mica_free(plan->group_layers[group]);
    *plan = (mica_index_plan){0};
}

uint32_t mica_index_unit_tensors(const mica_index_unit *unit, const mica_tensor *tensors[MICA_INDEX_TENSORS_MAX]) {
    const mica_tensor *const all[MICA_INDEX_TENSORS_MAX] = {unit->weight->data, unit->weight->scale, unit->weight->shape};
    uint32_t count = 0;
    for (uint32_t i = 0; i < MICA_INDEX_TENSORS_MAX; i++)
        if (all[i])
            tensors[count++] = all[i];
    return count;
}

void mica_index_unit_svd(const mica_index_plan *plan, const mica_index_unit *unit, mica_svd_options *options) {
    *options = (mica_svd_options){
        .count = unit->vectors && plan->features > MICA_INDEX_VAR_COUNT ? plan->features : MICA_INDEX_VAR_COUNT,
        .vectors = unit->vectors,
        .full_spectrum = unit->full,
        .check_count = unit->check_count,
    };
}

/* ---- resources */

/* The bytes in memory that a unit's reading takes. */
static uint64_t window_bytes(const mica_index_unit *unit) {
    const mica_tensor *tensors[MICA_INDEX_TENSORS_MAX];
    const uint32_t count = mica_index_unit_tensors(unit, tensors);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++)
        bytes += mica_file_window_bytes(tensors[i]->bytes);
    return bytes;
}

typedef struct unit_sizes {
    uint64_t workspace, window, result;
} unit_sizes;

static unit_sizes measure(const mica_index_plan *plan, const mica_index_unit *unit) {
    mica_svd_options options;
    mica_index_unit_svd(plan, unit, &options);
    const mica_weight *weight = unit->weight;
    options.check_count = true; /* workspaces are made for both */
    return (unit_sizes){
        .workspace = mica_svd_workspace_bytes(weight->rows, weight->columns, &options),
        .window = window_bytes(unit),
        .result = mica_index_result_bytes(plan, unit),
    };
}

static void raise_to(unit_sizes *most, unit_sizes sizes) {
    if (sizes.workspace > most->workspace)
        most->workspace = sizes.workspace;
    if (sizes.window > most->window)
        most->window = sizes.window;
    if (sizes.result > most->result)
        most->result = sizes.result;
}

/* Two classes of unit: the common ones (routed experts; in a dense model all), of which every thread holds one, and the few larger ones
 * (dense layers, shared experts), of which one thread at a time has the workspace. */
mica_status mica_index_resources_fit(const mica_index_plan *plan, const mica_index_options *options, mica_index_resources *resources,
                                     mica_error *error) {
    const uint64_t memory = options->memory_bytes ? options->memory_bytes : MEMORY_DEFAULT;
    const uint64_t tables = plan->unit_count * (sizeof(mica_index_outcome) + sizeof(double) + sizeof(mica_index_unit));
    unit_sizes common = {0, 0, 0}, largest = {0, 0, 0};
    uint64_t large_units = 0;
    const bool mixture = plan->layout.group[MICA_VINDEX_MAIN].layers > 0;
    for (uint64_t i = 0; i < plan->unit_count; i++) {
        const mica_index_unit *unit = &plan->units[i];
        if (unit->after == MICA_STREAM_NONE) { /* one of each class is enough */
            const unit_sizes sizes = measure(plan, unit);
            if (!mixture || unit->group == MICA_VINDEX_MAIN)
                raise_to(&common, sizes);
            raise_to(&largest, sizes);
        }
        if (unit->group != MICA_VINDEX_MAIN)
            large_units++;
    }
    const uint32_t wanted = options->threads ? options->threads : mica_thread_count_default();
    for (uint32_t threads = wanted < 1 ? 1 : wanted;; threads--) {
        const uint32_t ahead = threads < 3 ? 3 : threads / 2 + 2; /* two to be prepared at once, though units end out of order */
        const uint64_t slots = threads + ahead;
        const uint64_t total = MEMORY_BASE + tables + threads * common.workspace + (largest.workspace - common.workspace) +
                               slots * (common.window + largest.result) + min_u64(slots, large_units) * (largest.window - common.window);
        if (total <= memory || threads == 1) {
            *resources = (mica_index_resources){.threads = threads,
                                                .readers = threads < 4 ? 2 : 4,
                                                .ahead = ahead,
                                                .unit_bytes_max = largest.window,
                                                .result_bytes = largest.result,
                                                .workspace_share = common.workspace,
                                                .bytes = total};
            if (total <= memory)
                return MICA_OK;
            return mica_fail(error, MICA_USAGE,
                             "--memory: expected at least %llu bytes for one thread on this model's largest matrix, got %llu",
                             (unsigned long long)total, (unsigned long long)memory);
        }
    }
}
