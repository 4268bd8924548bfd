/* operations/tensor_statistics.c: see the header. Judged by tests/operations/test_tensor_statistics.c. */
#include "operations/tensor_statistics.h"

#include <string.h>

#include "base/memory.h"
#include "operations/slab.h"

void mica_tensor_as_weight(const mica_tensor *tensor, mica_weight *weight) {
    memset(weight, 0, sizeof *weight);
    *weight = (mica_weight){.name = tensor->name, .fate = MICA_UNKNOWN, .role = MICA_ROLE_OTHER, .layer = -1, .expert = -1,
                            .encoding = mica_dtype_is_block(tensor->dtype) ? MICA_ENCODING_BLOCK : MICA_ENCODING_PLAIN,
                            .data = tensor, .whole = tensor};
    weight->rows = tensor->rank > 1 ? tensor->shape[0] : 1;
    weight->columns = weight->rows ? tensor->elements / weight->rows : 0;
}

static mica_status add_slab(const mica_model *model, const mica_weight *weight, const mica_slab *slab, uint8_t *const *buffers,
                            float *strip_values, mica_moments *moments, mica_error *error) {
    mica_stream_range ranges[MICA_SLAB_RANGES];
    const uint32_t count = mica_slab_ranges(model->source, weight, slab, ranges);
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < count; i++)
        status = mica_file_read(ranges[i].file, ranges[i].offset, buffers[i], ranges[i].bytes, error);
    mica_matrix matrix;
    if (status == MICA_OK)
        status = mica_slab_matrix(model, weight, slab, (const uint8_t *const *)buffers, &matrix, error);
    for (mica_slab strip = {0}; status == MICA_OK && mica_strip_next(&matrix, &strip);) {
        mica_strip_decode(&matrix, &strip, strip_values);
        mica_moments_add(moments, strip_values, strip.rows * strip.columns);
    }
    return status;
}

mica_status mica_tensor_statistics(const mica_model *model, const mica_weight *weight, mica_moments *moments, mica_error *error) {
    mica_slabs slabs;
    mica_stream_range largest[MICA_SLAB_RANGES];
    uint8_t *buffers[MICA_SLAB_RANGES] = {NULL};
    *moments = (mica_moments){0};
    mica_slabs_plan(weight, NULL, &slabs);
    if (slabs.count == 0)
        return MICA_OK;
    const mica_slab first = mica_slab_at(&slabs, 0); /* the others are no larger */
    const uint32_t count = mica_slab_ranges(model->source, weight, &first, largest);
    float *strip_values = mica_alloc_aligned(MICA_STRIP_ELEMENTS * sizeof *strip_values);
    bool made = strip_values != NULL;
    for (uint32_t i = 0; i < count; i++) {
        buffers[i] = mica_alloc_aligned(largest[i].bytes + 1);
        made = made && buffers[i];
    }
    mica_status status = made ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a slab of it", weight->name);
    for (uint64_t i = 0; status == MICA_OK && i < slabs.count; i++) {
        const mica_slab slab = mica_slab_at(&slabs, i);
        status = add_slab(model, weight, &slab, buffers, strip_values, moments, error);
    }
    for (uint32_t i = 0; i < count; i++)
        mica_free_aligned(buffers[i]);
    mica_free_aligned(strip_values);
    return status;
}
