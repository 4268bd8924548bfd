/* model/model_slice.c: one tensor that holds the same matrix of every expert, or its gate and its up one behind the other, cut into a weight for each. A
 * slice is a tensor in its own right ("NAME[expert]" or "NAME[expert].gate", with its own shape, offset and bytes), so that whoever reads, hashes or reports
 * weights needs not know.
 * Judged by tests/model/test_model_gguf.c. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "model/model_build.h"

#define INDEX_BYTES 32 /* "[18446744073709551615].gate" */

static mica_status no_memory(const mica_model *model, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: no memory for the model's tables", model->source->path);
}

/* One allocation: the slices, then their names. */
mica_tensor *mica_model_slice(mica_model *model, const mica_tensor *whole, uint64_t count, const char *part, uint64_t half) {
    uint64_t name_bytes = strlen(whole->name) + INDEX_BYTES;
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
        snprintf(name, name_bytes, "%s[%llu]%s%s", whole->name, (unsigned long long)i, part ? "." : "", part ? part : "");
        slices[i] = (mica_tensor){.name = name, .dtype = whole->dtype, .rank = whole->rank - 1, .elements = elements,
                                  .offset = whole->offset + (i * parts + half) * bytes, .bytes = bytes, .shard = whole->shard};
        memcpy(slices[i].shape, whole->shape + 1, slices[i].rank * sizeof *whole->shape);
        slices[i].shape[0] /= parts;
    }
    return slices;
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

/* `expected` is a slice's shape; the tensor has the experts before it. */
mica_status mica_model_match_slices(mica_model_builder *builder, const mica_tensor *whole, uint64_t count, bool fused,
                                    const mica_expected_shape *expected, const mica_weight *pattern, mica_error *error) {
    mica_model *model = builder->model;
    char want[200], got[200];
    uint64_t shape[4] = {count, expected->size[0] * (fused ? 2 : 1), expected->size[1], expected->size[2]};
    bool same = whole->rank == expected->rank + 1;
    for (uint32_t i = 0; same && i < whole->rank; i++)
        same = whole->shape[i] == shape[i];
    if (!same)
        return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected shape %s (from the metadata), got %s", mica_model_shard_name(model, whole),
                         whole->name, mica_shape_show(expected->rank + 1, shape, want, sizeof want),
                         mica_shape_show(whole->rank, whole->shape, got, sizeof got));
    mica_tensor *slices = reserve(builder, count) ? mica_model_slice(model, whole, count, fused ? mica_projection_name(pattern->projection) : NULL,
                                                                             fused && pattern->projection == MICA_UP)
                                                                 : NULL;
    if (!slices)
        return no_memory(model, error);
    mica_status status = MICA_OK;
    for (uint64_t i = 0; i < count && status == MICA_OK; i++) {
        mica_weight *weight = &builder->slices[builder->slice_count];
        *weight = *pattern;
        weight->expert = (int64_t)i;
        status = mica_weight_resolve_slice(builder, &slices[i], whole, expected, weight, error);
        builder->slice_count += status == MICA_OK;
    }
    return status;
}
