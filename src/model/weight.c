/* model/weight.c: from a weight's bytes to its matrix, and what only the bytes show: values that are not finite, scales that are not
 * positive, tables that point nowhere, an int4 shape that disagrees. Every refusal names shard, tensor, position, expected and got.
 * Judged by tests/model/test_model.c and tests/operations/test_bad_checkpoints.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "model/model.h"

#define POSITION_BYTES 160

/* "[1,2]": the element's index in the tensor's own dimensions. */
static const char *show_position(const mica_tensor *tensor, uint64_t element, char buffer[POSITION_BYTES]) {
    uint64_t index[MICA_RANK_MAX] = {0};
    for (uint32_t i = tensor->rank; i-- > 0;) {
        index[i] = element % tensor->shape[i];
        element /= tensor->shape[i];
    }
    size_t length = 0;
    for (uint32_t i = 0; i < tensor->rank && length + 24 < POSITION_BYTES; i++)
        length += (size_t)snprintf(buffer + length, POSITION_BYTES - length, "%s%llu", i ? "," : "[", (unsigned long long)index[i]);
    snprintf(buffer + length, POSITION_BYTES - length, "%s", length ? "]" : "[]");
    return buffer;
}

static float element_value(const mica_tensor *tensor, const void *bytes, uint64_t element) {
    uint32_t elements = mica_dtype_block_elements(tensor->dtype);
    const uint8_t *at = (const uint8_t *)bytes + element / elements * mica_dtype_block_bytes(tensor->dtype);
    float values[256] = {0};
    if (!mica_dtype_is_block(tensor->dtype)) {
        mica_decode_plain(tensor->dtype, at, 1, values);
        return values[0];
    }
    mica_matrix block = {.encoding = MICA_ENCODING_BLOCK, .dtype = tensor->dtype, .rows = 1, .columns = elements, .codes = at};
    mica_matrix_decode(&block, 0, 0, 1, values, elements);
    return values[element % elements];
}

static mica_status refuse_value(const mica_model *model, const mica_tensor *tensor, uint64_t element, float value, mica_error *error) {
    char position[POSITION_BYTES];
    show_position(tensor, element, position);
    const char *shard = mica_model_shard_name(model, tensor);
    if (tensor->dtype == MICA_F8_E8M0) /* 255 is all that this type has to say no with */
        return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected byte at most 254, got 255 (nan) at %s", shard, tensor->name, position);
    return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected finite, got %s at %s", shard, tensor->name,
                     isnan(value) ? "nan"
                     : value > 0  ? "inf"
                                  : "-inf",
                     position);
}

static void warn_scale(const mica_model *model, const mica_tensor *scale, uint64_t element, double value, char *warning,
                       uint64_t warning_bytes) {
    char position[POSITION_BYTES];
    if (warning && warning_bytes && !*warning)
        snprintf(warning, warning_bytes, "%s: %s: expected positive, got %.7g at %s", mica_model_shard_name(model, scale), scale->name,
                 value, show_position(scale, element, position));
}

static int64_t integer_at(const mica_tensor *tensor, const void *bytes, uint64_t element) {
    int64_t wide = 0;
    int32_t narrow = 0;
    if (tensor->dtype == MICA_I64) {
        memcpy(&wide, (const uint8_t *)bytes + 8 * element, sizeof wide);
        return wide;
    }
    memcpy(&narrow, (const uint8_t *)bytes + 4 * element, sizeof narrow);
    return narrow;
}

static mica_status examine_table(const mica_model *model, const mica_tensor *tensor, uint64_t first, uint64_t count, const void *bytes,
                                 mica_error *error) {
    char position[POSITION_BYTES];
    for (uint64_t i = 0; i < count; i++) {
        int64_t expert = integer_at(tensor, bytes, i);
        if (expert < 0 || (uint64_t)expert >= model->config.n_routed_experts)
            return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected below n_routed_experts (%llu), got %lld at %s",
                             mica_model_shard_name(model, tensor), tensor->name, (unsigned long long)model->config.n_routed_experts,
                             (long long)expert, show_position(tensor, first + i, position));
    }
    return MICA_OK;
}

static mica_status check_packed_shape(const mica_model *model, const mica_weight *weight, const void *bytes, mica_error *error) {
    int64_t rows = integer_at(weight->shape, bytes, 0), columns = integer_at(weight->shape, bytes, 1);
    if (rows >= 0 && columns >= 0 && (uint64_t)rows == weight->rows && (uint64_t)columns == weight->columns)
        return MICA_OK;
    return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected [%llu, %llu] (weight_packed), got [%lld, %lld]",
                     mica_model_shard_name(model, weight->shape), weight->shape->name, (unsigned long long)weight->rows,
                     (unsigned long long)weight->columns, (long long)rows, (long long)columns);
}

mica_status mica_weight_matrix(const mica_model *model, const mica_weight *weight, const void *data, const void *scale, const void *shape,
                               mica_matrix *matrix, mica_error *error) {
    if (weight->encoding == MICA_ENCODING_INT4_GROUP && weight->shape && shape) {
        mica_status status = check_packed_shape(model, weight, shape, error);
        if (status != MICA_OK)
            return status;
    }
    *matrix = (mica_matrix){.encoding = weight->encoding,
                            .dtype = weight->data->dtype,
                            .rows = weight->rows,
                            .columns = weight->columns,
                            .codes = data,
                            .scale_dtype = weight->scale ? weight->scale->dtype : MICA_F32,
                            .block_rows = weight->block_rows,
                            .block_columns = weight->block_columns,
                            .scales = scale};
    return MICA_OK;
}

mica_status mica_weight_examine(const mica_model *model, const mica_weight *weight, const mica_matrix *matrix, mica_matrix_health *health,
                                char *warning, uint64_t warning_bytes, mica_error *error) {
    mica_matrix_health seen = {0};
    if (warning && warning_bytes)
        *warning = '\0';
    if (mica_dtype_is_floating(matrix->dtype) || weight->encoding != MICA_ENCODING_PLAIN)
        mica_matrix_examine(matrix, &seen);
    if (health)
        *health = seen;
    if (weight->role == MICA_ROLE_HASH_TABLE)
        return examine_table(model, weight->data, 0, weight->data->elements, matrix->codes, error);
    uint64_t grid_columns = weight->scale && weight->scale->rank > 1 ? weight->scale->shape[1] : 1;
    if (seen.has_zero_scale || seen.has_negative_scale)
        warn_scale(model, weight->scale, seen.odd_scale_row * grid_columns + seen.odd_scale_column, seen.odd_scale, warning, warning_bytes);
    if (!seen.has_nan && !seen.has_infinity)
        return MICA_OK;
    const mica_tensor *tensor = seen.in_scale ? weight->scale : weight->data;
    uint64_t element = seen.nan_row * (seen.in_scale ? grid_columns : weight->columns) + seen.nan_column;
    return refuse_value(model, tensor, element, element_value(tensor, seen.in_scale ? matrix->scales : matrix->codes, element), error);
}

/* Scales are few: a plain look at each. */
static void examine_signs(const mica_model *model, const mica_tensor *scale, uint64_t first, uint64_t count, const void *bytes,
                          char *warning, uint64_t warning_bytes) {
    for (uint64_t i = 0; i < count; i++) {
        float value = element_value(scale, bytes, i);
        if (value <= 0) {
            warn_scale(model, scale, first + i, (double)value, warning, warning_bytes);
            return;
        }
    }
}

mica_status mica_weight_examine_run(const mica_model *model, const mica_weight *weight, const mica_tensor *tensor, uint64_t first,
                                    uint64_t count, const void *bytes, char *warning, uint64_t warning_bytes, mica_error *error) {
    if (warning && warning_bytes)
        *warning = '\0';
    if (weight && tensor == weight->shape)
        return count == 2 ? check_packed_shape(model, weight, bytes, error) : MICA_OK;
    if (weight && weight->role == MICA_ROLE_HASH_TABLE)
        return examine_table(model, tensor, first, count, bytes, error);
    if (!mica_dtype_is_floating(tensor->dtype))
        return MICA_OK;
    mica_encoding encoding = mica_dtype_is_block(tensor->dtype) ? MICA_ENCODING_BLOCK : MICA_ENCODING_PLAIN;
    mica_matrix row = {.encoding = encoding, .dtype = tensor->dtype, .rows = 1, .columns = count, .codes = bytes};
    mica_matrix_health health;
    mica_matrix_examine(&row, &health);
    if (health.has_nan || health.has_infinity)
        return refuse_value(model, tensor, first + health.nan_column, element_value(tensor, bytes, health.nan_column), error);
    if (weight && tensor == weight->scale && tensor->dtype != MICA_F8_E8M0)
        examine_signs(model, tensor, first, count, bytes, warning, warning_bytes);
    return MICA_OK;
}

static mica_status read_tensor(const mica_model *model, const mica_tensor *tensor, void **bytes, mica_error *error) {
    *bytes = NULL;
    if (!tensor)
        return MICA_OK;
    *bytes = mica_malloc(tensor->bytes ? tensor->bytes : 1);
    if (!*bytes)
        return mica_fail(error, MICA_NO_MEMORY, "%s: no memory for its %llu bytes", tensor->name, (unsigned long long)tensor->bytes);
    return mica_file_read(mica_model_file(model, tensor), tensor->offset, *bytes, tensor->bytes, error);
}

mica_status mica_weight_load(const mica_model *model, const mica_weight *weight, float **values, mica_error *error) {
    const mica_tensor *tensors[3] = {weight->data, weight->scale, weight->shape};
    void *bytes[3] = {NULL, NULL, NULL};
    float *decoded = NULL;
    uint64_t elements = 0;
    mica_matrix matrix;
    mica_status status = MICA_OK;
    for (int i = 0; i < 3 && status == MICA_OK; i++)
        status = read_tensor(model, tensors[i], &bytes[i], error);
    if (status == MICA_OK)
        status = mica_weight_matrix(model, weight, bytes[0], bytes[1], bytes[2], &matrix, error);
    if (status == MICA_OK && mica_mul_u64(weight->rows, weight->columns, &elements))
        decoded = mica_reallocarray(NULL, elements ? elements : 1, sizeof *decoded);
    if (status == MICA_OK && !decoded)
        status = mica_fail(error, MICA_NO_MEMORY, "%s: no memory for its %llu values", weight->name, (unsigned long long)elements);
    if (status == MICA_OK) {
        mica_matrix_decode(&matrix, 0, 0, weight->rows, decoded, weight->columns);
        *values = decoded;
    }
    for (int i = 0; i < 3; i++)
        mica_free(bytes[i]);
    return status;
}
