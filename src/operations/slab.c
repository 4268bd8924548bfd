/* operations/slab.c: see the header. Judged by tests/operations/test_slab.c. */
#include "operations/slab.h"

#include <stddef.h>

static uint64_t at_least_one(uint64_t number) {
    return number ? number : 1;
}

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static uint64_t ceil_divide(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

/* The smallest number of rows that is whole blocks of both; all rows where that is more than there are. */
static uint64_t common_block_rows(const mica_weight *weight, const mica_weight *other) {
    const uint64_t a = at_least_one(weight->block_rows), b = other ? at_least_one(other->block_rows) : 1;
    uint64_t step = a;
    while (step % b != 0 && step < weight->rows)
        step += a;
    return step;
}

void mica_slabs_plan(const mica_weight *weight, const mica_weight *other, mica_slabs *slabs) {
    const bool plain = weight->encoding == MICA_ENCODING_PLAIN && (!other || other->encoding == MICA_ENCODING_PLAIN);
    *slabs = (mica_slabs){.rows = weight->rows, .columns = weight->columns, .per_row = 1};
    if (weight->rows == 0 || weight->columns == 0)
        return;
    const uint64_t block_rows = common_block_rows(weight, other);
    slabs->step_columns = weight->columns;
    slabs->step_rows = block_rows;
    if (plain && weight->columns > MICA_SLAB_ELEMENTS) {
        slabs->step_columns = MICA_SLAB_ELEMENTS;
        slabs->per_row = ceil_divide(weight->columns, MICA_SLAB_ELEMENTS);
    } else {
        slabs->step_rows *= at_least_one(MICA_SLAB_ELEMENTS / weight->columns / block_rows);
    }
    slabs->count = ceil_divide(weight->rows, slabs->step_rows) * slabs->per_row;
}

mica_slab mica_slab_at(const mica_slabs *slabs, uint64_t number) {
    mica_slab slab = {.row = number / slabs->per_row * slabs->step_rows, .column = number % slabs->per_row * slabs->step_columns};
    slab.rows = smaller(slabs->step_rows, slabs->rows - slab.row);
    slab.columns = smaller(slabs->step_columns, slabs->columns - slab.column);
    return slab;
}

/* Rows [row, row + rows) of a tensor that has `count` of them. */
static mica_stream_range range_of_rows(const mica_tensor_source *source, const mica_tensor *tensor, uint64_t count, uint64_t row,
                                       uint64_t rows) {
    const uint64_t row_bytes = count ? tensor->bytes / count : 0;
    return (mica_stream_range){source->shards[tensor->shard].file, tensor->offset + row * row_bytes, rows * row_bytes, tensor->name};
}

uint32_t mica_slab_ranges(const mica_tensor_source *source, const mica_weight *weight, const mica_slab *slab,
                          mica_stream_range ranges[MICA_SLAB_RANGES]) {
    uint32_t count = 0;
    ranges[count] = range_of_rows(source, weight->data, weight->rows, slab->row, slab->rows);
    if (slab->columns != weight->columns) { /* of one row, plain */
        const uint64_t element_bytes = mica_dtype_bytes(weight->data->dtype);
        ranges[count].offset += slab->column * element_bytes;
        ranges[count].bytes = slab->columns * element_bytes;
    }
    count++;
    if (weight->scale) {
        const uint64_t first = slab->row / weight->block_rows, end = ceil_divide(slab->row + slab->rows, weight->block_rows);
        ranges[count++] = range_of_rows(source, weight->scale, weight->scale->shape[0], first, end - first);
    }
    if (weight->shape)
        ranges[count++] = range_of_rows(source, weight->shape, 1, 0, 1);
    return count;
}

mica_status mica_slab_matrix(const mica_model *model, const mica_weight *weight, const mica_slab *slab, const uint8_t *const *data,
                             mica_matrix *matrix, mica_error *error) {
    const uint8_t *parts[MICA_SLAB_RANGES] = {data[0], NULL, NULL};
    uint32_t next = 1;
    if (weight->scale)
        parts[1] = data[next++];
    if (weight->shape)
        parts[2] = data[next];
    const mica_status status = mica_weight_matrix(model, weight, parts[0], parts[1], parts[2], matrix, error);
    matrix->rows = slab->rows;
    matrix->columns = slab->columns;
    return status;
}

bool mica_strip_next(const mica_matrix *matrix, mica_slab *strip) {
    if (strip->rows == 0) { /* the first */
        strip->columns = smaller(matrix->columns, MICA_STRIP_ELEMENTS);
    } else if (strip->column + strip->columns < matrix->columns) {
        strip->column += strip->columns;
        strip->columns = smaller(matrix->columns - strip->column, MICA_STRIP_ELEMENTS);
        return true;
    } else {
        strip->row += strip->rows;
        strip->column = 0;
        strip->columns = smaller(matrix->columns, MICA_STRIP_ELEMENTS);
    }
    if (strip->row >= matrix->rows || strip->columns == 0)
        return false;
    strip->rows = strip->columns < matrix->columns ? 1
                                                   : smaller(at_least_one(MICA_STRIP_ELEMENTS / strip->columns), matrix->rows - strip->row);
    return true;
}

void mica_strip_decode(const mica_matrix *matrix, const mica_slab *strip, float *values) {
    mica_matrix_decode_block(matrix, 0, strip->row, strip->rows, strip->column, strip->columns, values, strip->columns);
}
