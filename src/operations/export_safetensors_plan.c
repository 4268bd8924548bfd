/* operations/export_safetensors_plan.c: which tensor becomes what: copied; or, for BF16 and F32, each weight one tensor under the weight's
 * name, its scales gone. What is no floating number, and what a model holds in float32 on purpose, is copied.
 * Judged by tests/operations/test_export_safetensors.c and tests/interop/safetensors_files.py. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "formats/gguf.h"
#include "operations/export_safetensors.h"

static mica_status no_memory(const mica_tensor_source *source, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its list of tensors", source->path);
}

static bool ends_with(const char *text, const char *tail) {
    const size_t length = strlen(text), tail_length = strlen(tail);
    return length >= tail_length && strcmp(text + length - tail_length, tail) == 0;
}

static bool is_eight_bits(mica_dtype dtype) {
    return dtype == MICA_F8_E4M3 || dtype == MICA_F8_E5M2 || dtype == MICA_F8_E8M0;
}

/* The parameters of linear maps, embeddings and norms are called weight or bias. Others are in float32 because their code wants them so:
 * the router's correction bias (a choice hangs on its last bits), attention sinks, hyper-connections, rotary frequencies. */
static bool is_decoded(const mica_shards_plan *plan, const mica_weight *weight) {
    if (weight->encoding != MICA_ENCODING_PLAIN)
        return true;
    const mica_dtype dtype = weight->data->dtype;
    if (!mica_dtype_is_floating(dtype) || dtype == plan->dtype || is_eight_bits(dtype) || weight->role == MICA_ROLE_ROUTER_BIAS)
        return false;
    return ends_with(weight->data->name, ".weight") || ends_with(weight->data->name, ".bias");
}

/* "….weight_packed" is called "….weight" when it is packed no more. */
static mica_status decoded_name(mica_shards_plan *plan, const mica_weight *weight, const char **name, mica_error *error) {
    static const char packed[] = "_packed";
    *name = weight->data->name;
    if (weight->encoding != MICA_ENCODING_INT4_GROUP || !ends_with(*name, packed))
        return MICA_OK;
    char *shorter = mica_strndup(*name, strlen(*name) - (sizeof packed - 1));
    if (!shorter)
        return no_memory(plan->source, error);
    plan->names[plan->name_count++] = shorter;
    *name = shorter;
    return MICA_OK;
}

static mica_safetensors_entry copied_entry(mica_shards_plan *plan, const mica_tensor *tensor, uint64_t number) {
    mica_safetensors_entry entry = {.name = tensor->name, .dtype = tensor->dtype, .rank = tensor->rank, .number = number};
    plan->origins[number] = (mica_shards_origin){.tensor = tensor};
    memcpy(entry.shape, tensor->shape, sizeof entry.shape);
    return entry;
}

static void list_copies(mica_shards_plan *plan, mica_safetensors_entry *entries, uint64_t *count) {
    for (uint64_t i = 0; i < plan->source->tensor_count; i++)
        entries[i] = copied_entry(plan, &plan->source->tensors[i], i);
    *count = plan->source->tensor_count;
}

static mica_status list_weights(mica_shards_plan *plan, mica_safetensors_entry *entries, uint64_t *count, mica_error *error) {
    const mica_model *model = plan->model;
    for (uint64_t i = 0; i < model->weight_count; i++) {
        const mica_weight *weight = &model->weights[i];
        mica_safetensors_entry *entry = &entries[*count];
        if (weight->encoding == MICA_ENCODING_PLAIN && is_eight_bits(weight->data->dtype))
            return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected scales beside %s, without which it cannot be decoded, got none",
                             mica_model_shard_name(model, weight->data), weight->data->name, mica_dtype_name(weight->data->dtype));
        if (weight->whole != weight->data)
            return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected a tensor of its own for each expert, got one of all",
                             mica_model_shard_name(model, weight->data), weight->whole->name);
        *entry = copied_entry(plan, weight->data, *count);
        if (is_decoded(plan, weight)) {
            const mica_status status = decoded_name(plan, weight, &entry->name, error);
            if (status != MICA_OK)
                return status;
            entry->dtype = plan->dtype;
            plan->origins[*count] = (mica_shards_origin){.weight = weight, .form = MICA_GGUF_COPY};
            plan->converted_count++;
        }
        if (weight->encoding != MICA_ENCODING_PLAIN) {
            entry->rank = 2;
            entry->shape[0] = weight->rows;
            entry->shape[1] = weight->columns;
        }
        plan->dropped_count += (weight->scale != NULL) + (weight->shape != NULL);
        (*count)++;
    }
    return MICA_OK;
}

/* ---- units */

static uint64_t units_of(const mica_shards_item *item) {
    const uint64_t bytes = item->entry->bytes;
    return item->heads    ? item->heads
           : item->weight ? item->slabs.count
                          : bytes / MICA_EXPORT_COPY_BYTES + (bytes % MICA_EXPORT_COPY_BYTES != 0);
}

mica_shards_unit mica_shards_unit_at(const mica_shards_plan *plan, uint64_t number) {
    uint64_t low = 0, high = plan->layout.entry_count; /* the last item that begins at or before it: those without bytes have no units */
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (plan->items[middle].first_unit <= number)
            low = middle;
        else
            high = middle;
    }
    const mica_shards_item *item = &plan->items[low];
    mica_shards_unit unit = {.item = item};
    const uint64_t index = number - item->first_unit;
    if (item->heads) {
        unit.head = index;
        unit.bytes = item->entry->bytes / item->heads;
        unit.position = index * unit.bytes;
    } else if (item->weight) {
        const uint64_t element = mica_dtype_bytes(item->entry->dtype);
        unit.slab = mica_slab_at(&item->slabs, index);
        unit.position = (unit.slab.row * item->weight->columns + unit.slab.column) * element;
        unit.bytes = unit.slab.rows * unit.slab.columns * element;
    } else {
        unit.position = index * MICA_EXPORT_COPY_BYTES;
        unit.bytes = item->entry->bytes - unit.position;
        if (unit.bytes > MICA_EXPORT_COPY_BYTES)
            unit.bytes = MICA_EXPORT_COPY_BYTES;
    }
    return unit;
}

uint32_t mica_shards_unit_ranges(const mica_shards_plan *plan, const mica_shards_unit *unit, mica_stream_range *ranges) {
    if (unit->item->heads)
        return mica_shards_head_ranges(plan, unit, ranges);
    if (unit->item->weight)
        return mica_slab_ranges(plan->source, unit->item->weight, &unit->slab, ranges);
    const mica_tensor *tensor = unit->item->tensor;
    ranges[0] = (mica_stream_range){plan->source->shards[tensor->shard].file, tensor->offset + unit->position, unit->bytes, tensor->name};
    return 1;
}

static void measure_unit(mica_shards_plan *plan, uint64_t number) {
    mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
    const mica_shards_unit unit = mica_shards_unit_at(plan, number);
    const uint32_t count = mica_shards_unit_ranges(plan, &unit, ranges);
    uint64_t window = 0;
    for (uint32_t i = 0; i < count; i++)
        window += mica_file_window_bytes(ranges[i].bytes);
    if (window > plan->window_bytes)
        plan->window_bytes = window;
    if (unit.item->weight && unit.bytes > plan->output_bytes)
        plan->output_bytes = unit.bytes;
    /* in, out */
    const uint64_t floats = unit.item->heads ? 2 * (unit.bytes / mica_dtype_bytes(unit.item->entry->dtype)) : MICA_STRIP_ELEMENTS;
    if (floats > plan->strip_floats)
        plan->strip_floats = floats;
}

static mica_status make_units(mica_shards_plan *plan, mica_error *error) {
    plan->items = mica_calloc(plan->layout.entry_count + 1, sizeof *plan->items);
    if (!plan->items)
        return no_memory(plan->source, error);
    for (uint64_t i = 0; i < plan->layout.entry_count; i++) {
        mica_shards_item *item = &plan->items[i];
        item->entry = &plan->layout.entries[i];
        item->first_unit = plan->unit_count;
        item->origin = &plan->origins[item->entry->number];
        item->tensor = item->origin->tensor;
        item->weight = item->origin->weight;
        item->heads = item->weight ? mica_shards_heads(plan, item->origin) : 0;
        if (item->weight && !item->heads)
            mica_slabs_plan(item->weight, NULL, &item->slabs);
        plan->unit_count += units_of(item);
    }
    for (uint64_t i = 0; i < plan->layout.entry_count; i++) /* the first unit of a tensor is its largest */
        if (units_of(&plan->items[i]) > 0)
            measure_unit(plan, plan->items[i].first_unit);
    return MICA_OK;
}

/* ---- the files beside the tensors */

static mica_status list_files(mica_shards_plan *plan, mica_error *error) {
    if (plan->back)
        return mica_shards_files_back(plan, error);
    mica_status status = mica_tensor_source_list_files(plan->source, &plan->files, &plan->file_count, error);
    if (status != MICA_OK || !plan->decodes)
        return status;
    mica_shards_file *made = &plan->made[plan->made_count++];
    *made = (mica_shards_file){.name = MICA_CONFIG_NAME};
    char *json = NULL;
    uint64_t length = 0;
    status = mica_tensor_source_load(plan->source, MICA_CONFIG_NAME, MICA_CONFIG_BYTES_MAX, &json, &length, error);
    if (status == MICA_OK)
        status = mica_shards_config(MICA_CONFIG_NAME, json, length, plan->dtype, &made->bytes, &made->length, error);
    mica_free(json);
    return status;
}

mica_status mica_shards_plan_make(const mica_tensor_source *source, const mica_model *model, const mica_export_safetensors_options *options,
                                  mica_shards_plan *plan, mica_error *error) {
    const bool back = mica_gguf_of_source(source) != NULL;
    *plan = (mica_shards_plan){.source = source,
                               .model = model,
                               .decodes = model != NULL,
                               .back = back,
                               .dtype = options->dtype && strcmp(options->dtype, "f32") == 0 ? MICA_F32 : MICA_BF16,
                               .dtype_name = options->dtype,
                               .shard_bytes = options->shard_bytes ? options->shard_bytes : MICA_SHARD_BYTES_DEFAULT};
    const uint64_t capacity = 1 + (back ? model->weight_count : source->tensor_count);
    mica_safetensors_entry *entries = mica_calloc(capacity, sizeof *entries);
    plan->names = mica_calloc(capacity, sizeof *plan->names);
    plan->origins = mica_calloc(capacity, sizeof *plan->origins);
    uint64_t count = 0;
    mica_status status = entries && plan->names && plan->origins ? MICA_OK : no_memory(source, error);
    if (status == MICA_OK && back)
        status = mica_shards_list_back(plan, entries, &count, error);
    else if (status == MICA_OK && model)
        status = list_weights(plan, entries, &count, error);
    else if (status == MICA_OK)
        list_copies(plan, entries, &count);
    if (status == MICA_OK)
        status = mica_safetensors_layout_make(entries, count, plan->shard_bytes, &plan->layout, error);
    else
        mica_free(entries);
    if (status == MICA_OK)
        status = make_units(plan, error);
    if (status == MICA_OK)
        status = list_files(plan, error);
    if (status != MICA_OK)
        mica_shards_plan_release(plan);
    return status;
}

void mica_shards_plan_release(mica_shards_plan *plan) {
    mica_safetensors_layout_release(&plan->layout);
    for (uint64_t i = 0; i < plan->name_count; i++)
        mica_free(plan->names[i]);
    mica_free(plan->names);
    mica_free(plan->items);
    mica_free(plan->origins);
    for (uint32_t i = 0; i < plan->made_count; i++)
        mica_free(plan->made[i].bytes);
    mica_directory_names_free(plan->files, plan->file_count);
    *plan = (mica_shards_plan){0};
}
