/* model/model_slice.c: one tensor that holds the same matrix of every expert, or its gate and its up one behind the other, cut into a
 * weight for each. A slice is a tensor in its own right ("NAME[expert]" or "NAME[expert].gate", with its own shape, offset and bytes), so
 * that whoever reads, hashes or reports weights needs not know.
 * Judged by tests/model/test_model_gguf.c. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "formats/gguf.h"
#include "model/gguf_groups.h"
#include "model/model_build.h"

#define INDEX_BYTES 32 /* "[18446744073709551615].gate" */

static mica_status no_memory(const mica_model *model, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: no memory for the model's tables", model->source->path);
}

/* One allocation: the slices, then their names. */
static mica_tensor *slice_as(mica_model *model, const mica_tensor *whole, uint64_t count, const char *as, const uint64_t *numbers,
                             const char *part, uint64_t half) {
    uint64_t name_bytes = strlen(as) + INDEX_BYTES;
    mica_tensor **blocks = mica_reallocarray(model->slices, model->slice_block_count + 1, sizeof *blocks);
    if (!blocks)
        return NULL;
    model->slices = blocks;
    mica_tensor *slices = mica_calloc(count, sizeof *slices + name_bytes);
    if (!slices)
        return NULL;
    blocks[model->slice_block_count++] = slices;
    char *name = (char *)(slices + count);
    const uint64_t parts = part ? 2 : 1, elements = whole->elements / count / parts, bytes = whole->bytes / count / parts;
    for (uint64_t i = 0; i < count; i++, name += name_bytes) {
        snprintf(name, name_bytes, "%s[%llu]%s%s", as, (unsigned long long)(numbers ? numbers[i] : i), part ? "." : "", part ? part : "");
        slices[i] = (mica_tensor){.name = name, .dtype = whole->dtype, .rank = whole->rank - 1, .elements = elements,
                                  .offset = whole->offset + (i * parts + half) * bytes, .bytes = bytes, .shard = whole->shard};
        memcpy(slices[i].shape, whole->shape + 1, slices[i].rank * sizeof *whole->shape);
        slices[i].shape[0] /= parts;
    }
    return slices;
}

mica_tensor *mica_model_slice(mica_model *model, const mica_tensor *whole, uint64_t count, const char *part, uint64_t half) {
    return slice_as(model, whole, count, whole->name, NULL, part, half);
}

static bool reserve(mica_model_builder *builder, uint64_t count) {
    if (builder->slice_capacity - builder->slice_count >= count)
        return true;
    uint64_t capacity = 2 * builder->slice_capacity + count;
    mica_weight *slices = mica_reallocarray(builder->slices, capacity, sizeof *slices);
    if (slices) {
        builder->slices = slices;
        builder->slice_capacity = capacity;
    }
    return slices != NULL;
}

/* `expected` is a slice's shape; the tensor has the experts before it. `numbers` [count]: which experts; NULL: 0 on. */
static mica_status match_slices(mica_model_builder *builder, const mica_tensor *whole, uint64_t count, bool fused, const char *as,
                                const uint64_t *numbers, const mica_expected_shape *expected, const mica_weight *pattern,
                                mica_error *error) {
    mica_model *model = builder->model;
    char want[200], got[200];
    uint64_t shape[4] = {count, expected->size[0] * (fused ? 2 : 1), expected->size[1], expected->size[2]};
    bool same = whole->rank == expected->rank + 1;
    for (uint32_t i = 0; same && i < whole->rank; i++)
        same = whole->shape[i] == shape[i];
    if (!same)
        return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected shape %s (from the metadata), got %s",
                         mica_model_shard_name(model, whole), whole->name, mica_shape_show(expected->rank + 1, shape, want, sizeof want),
                         mica_shape_show(whole->rank, whole->shape, got, sizeof got));
    mica_tensor *slices = reserve(builder, count)
                              ? slice_as(model, whole, count, as, numbers, fused ? mica_projection_name(pattern->projection) : NULL,
                                         fused && pattern->projection == MICA_UP)
                              : NULL;
    if (!slices)
        return no_memory(model, error);
    mica_status status = MICA_OK;
    for (uint64_t i = 0; i < count && status == MICA_OK; i++) {
        mica_weight *weight = &builder->slices[builder->slice_count];
        *weight = *pattern;
        weight->expert = (int64_t)(numbers ? numbers[i] : i);
        status = mica_weight_resolve_slice(builder, &slices[i], whole, expected, weight, error);
        builder->slice_count += status == MICA_OK;
    }
    return status;
}

mica_status mica_model_match_slices(mica_model_builder *builder, const mica_tensor *whole, uint64_t count, bool fused,
                                    const mica_expected_shape *expected, const mica_weight *pattern, mica_error *error) {
    return match_slices(builder, whole, count, fused, whole->name, NULL, expected, pattern, error);
}

/* ---- experts of several types */

mica_status mica_model_match_groups(mica_model_builder *builder, const char *name, uint64_t count, const mica_expected_shape *expected,
                                    const mica_weight *pattern, bool *grouped, mica_error *error) {
    mica_model *model = builder->model;
    const mica_gguf *gguf = mica_gguf_of_source(model->source);
    char key[MICA_NAME_BYTES], group_name[MICA_NAME_BYTES];
    snprintf(key, sizeof key, MICA_GGUF_GROUPS_KEY "%s", name);
    const mica_gguf_entry *entry = gguf ? mica_gguf_find(gguf, key) : NULL;
    *grouped = entry != NULL;
    if (!entry)
        return MICA_OK;
    if (!entry->is_array || entry->type != MICA_GGUF_UINT8 || entry->count != count)
        return mica_fail(error, MICA_BAD_INPUT, "%s: key %s: expected u8 [%llu], the group of each expert, got %s [%llu]",
                         model->source->path, key, (unsigned long long)count, mica_gguf_type_name(entry->type),
                         (unsigned long long)entry->count);
    uint64_t *numbers = mica_calloc(count + 1, sizeof *numbers), left = count;
    mica_status status = numbers ? MICA_OK : no_memory(model, error);
    for (uint64_t group = 0; status == MICA_OK && left > 0; group++) {
        uint64_t members = 0;
        for (uint64_t e = 0; e < count; e++)
            if (entry->bytes[e] == group)
                numbers[members++] = e;
        snprintf(group_name, sizeof group_name, "%s" MICA_GGUF_GROUP_SUFFIX "%llu", name, (unsigned long long)group);
        const mica_tensor *tensor = mica_tensor_source_find(model->source, group_name);
        if (members == 0 || !tensor)
            status = mica_fail(error, MICA_BAD_INPUT, "%s: key %s: expected experts in group %llu, and a tensor %s, got %s",
                               model->source->path, key, (unsigned long long)group, group_name,
                               members == 0 ? "no such expert" : "no such tensor");
        else
            status = match_slices(builder, tensor, members, false, name, numbers, expected, pattern, error);
        left -= members;
    }
    mica_free(numbers);
    return status;
}
