/* model/model_encoding.c: how a weight is stored, decided by the type of its data, and every shape that follows from it.
 *     plain       X.weight                                   [rows, columns] of a floating type
 *     fp8-block   X.weight F8, X.weight_scale_inv | X.scale   [ceil(rows / block), ceil(columns / block)] F32 or F8_E8M0
 *     mxfp4       X.weight I8 [rows, columns / 2], X.scale    [rows, ceil(columns / 32)] F8_E8M0
 *     int4-group  X.weight_packed I32 [rows, ceil(columns / 8)], X.weight_scale [rows, columns / group], X.weight_shape [2]
 *     block       any name, of a block type [rows, columns] (GGUF)
 * Judged by tests/model/test_model.c and tests/operations/test_bad_checkpoints.c. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "formats/gguf.h"
#include "model/model_build.h"

#define MXFP4_BLOCK 32
#define SHAPE_BYTES 200

static uint64_t ceil_divide(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

static mica_status wrong_dtype(const mica_model *model, const mica_tensor *tensor, const char *expected, mica_error *error) {
    return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected dtype %s, got %s", mica_model_shard_name(model, tensor), tensor->name,
                     expected, mica_dtype_name(tensor->dtype));
}

static mica_status check_sizes(const mica_model *model, const mica_tensor *tensor, uint32_t rank, const uint64_t *shape, const char *why,
                               mica_error *error) {
    bool same = tensor->rank == rank;
    for (uint32_t i = 0; same && i < rank; i++)
        same = tensor->shape[i] == shape[i];
    if (same)
        return MICA_OK;
    char expected[SHAPE_BYTES], got[SHAPE_BYTES];
    return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected shape %s%s, got %s", mica_model_shard_name(model, tensor), tensor->name,
                     mica_shape_show(rank, shape, expected, sizeof expected), why,
                     mica_shape_show(tensor->rank, tensor->shape, got, sizeof got));
}

static mica_status check_shape(const mica_model *model, const mica_tensor *tensor, uint32_t rank, uint64_t rows, uint64_t columns,
                               const char *why, mica_error *error) {
    const uint64_t shape[2] = {rows, columns};
    return check_sizes(model, tensor, rank, shape, why, error);
}

/* The tensor named as `data` with its last component (after the last '.') replaced. */
static mica_status companion(const mica_model *model, const mica_tensor *data, const char *suffix, const char *expected,
                             const mica_tensor **found, mica_error *error) {
    char name[MICA_NAME_BYTES];
    const char *dot = strrchr(data->name, '.');
    size_t stem = dot ? (size_t)(dot - data->name) + 1 : 0;
    *found = NULL;
    if (stem + strlen(suffix) < sizeof name) {
        memcpy(name, data->name, stem);
        memcpy(name + stem, suffix, strlen(suffix) + 1);
        *found = mica_tensor_source_find(model->source, name);
    }
    if (*found)
        return MICA_OK;
    return mica_fail(error, MICA_BAD_INPUT, "%s: %s is %s: expected its %s %s, got absent", mica_model_shard_name(model, data), data->name,
                     mica_dtype_name(data->dtype), expected, suffix);
}

static mica_status needs_configuration(const mica_model *model, const mica_tensor *data, const char *method, mica_error *error) {
    static const char *const names[] = {"absent", "quant_method fp8", "quant_method compressed-tensors", "absent"};
    return mica_fail(error, MICA_BAD_INPUT, "config.json: quantization_config: expected %s (%s: %s is %s), got %s", method,
                     mica_model_shard_name(model, data), data->name, mica_dtype_name(data->dtype), names[model->config.quantisation]);
}

static mica_status resolve_fp8(const mica_model *model, const mica_tensor *data, mica_weight *weight, mica_error *error) {
    const mica_config *config = &model->config;
    if (config->quantisation != MICA_QUANTISATION_FP8)
        return needs_configuration(model, data, "quant_method fp8 with weight_block_size", error);
    mica_status status = companion(model, data, config->architecture->expert_scale, "F32 or F8_E8M0 scale", &weight->scale, error);
    if (status != MICA_OK)
        return status;
    if (weight->scale->dtype != MICA_F32 && weight->scale->dtype != MICA_F8_E8M0)
        return wrong_dtype(model, weight->scale, "F32 or F8_E8M0", error);
    weight->encoding = MICA_ENCODING_FP8_BLOCK;
    weight->block_rows = config->weight_block_rows;
    weight->block_columns = config->weight_block_columns;
    return check_shape(model, weight->scale, 2, ceil_divide(weight->rows, weight->block_rows),
                       ceil_divide(weight->columns, weight->block_columns), " (one scale per weight_block_size)", error);
}

static mica_status resolve_mxfp4(const mica_model *model, const mica_tensor *data, mica_weight *weight, mica_error *error) {
    mica_status status = companion(model, data, "scale", "F8_E8M0 scale", &weight->scale, error);
    if (status != MICA_OK)
        return status;
    if (weight->scale->dtype != MICA_F8_E8M0)
        return wrong_dtype(model, weight->scale, "F8_E8M0", error);
    weight->encoding = MICA_ENCODING_MXFP4;
    weight->block_rows = 1;
    weight->block_columns = MXFP4_BLOCK;
    return check_shape(model, weight->scale, 2, weight->rows, ceil_divide(weight->columns, MXFP4_BLOCK), " (one scale per 32 columns)",
                       error);
}

static mica_status resolve_int4(const mica_model *model, const mica_tensor *data, mica_weight *weight, mica_error *error) {
    const mica_config *config = &model->config;
    if (config->quantisation != MICA_QUANTISATION_INT4)
        return needs_configuration(model, data, "quant_method compressed-tensors", error);
    if (weight->columns % config->group_size)
        return mica_fail(error, MICA_BAD_INPUT,
                         "config.json: quantization_config: group_size: expected a divisor of the %llu columns of %s, got %llu",
                         (unsigned long long)weight->columns, data->name, (unsigned long long)config->group_size);
    mica_status status = companion(model, data, "weight_scale", "BF16, F16 or F32 scale", &weight->scale, error);
    if (status == MICA_OK)
        status = companion(model, data, "weight_shape", "I32 shape", &weight->shape, error);
    if (status != MICA_OK)
        return status;
    mica_dtype dtype = weight->scale->dtype;
    if (dtype != MICA_BF16 && dtype != MICA_F16 && dtype != MICA_F32)
        return wrong_dtype(model, weight->scale, "BF16, F16 or F32", error);
    if (weight->shape->dtype != MICA_I32 && weight->shape->dtype != MICA_I64)
        return wrong_dtype(model, weight->shape, "I32 or I64", error);
    weight->encoding = MICA_ENCODING_INT4_GROUP;
    weight->block_rows = 1;
    weight->block_columns = config->group_size;
    status = check_shape(model, weight->shape, 1, 2, 0, " (rows and columns)", error);
    return status != MICA_OK
               ? status
               : check_shape(model, weight->scale, 2, weight->rows, weight->columns / config->group_size, " (one scale per group)", error);
}

static mica_status resolve_plain(const mica_model *model, const mica_tensor *data, bool integers, mica_weight *weight, mica_error *error) {
    bool fits = integers ? data->dtype == MICA_I64 || data->dtype == MICA_I32
                         : data->dtype == MICA_BF16 || data->dtype == MICA_F16 || data->dtype == MICA_F32 || data->dtype == MICA_F64;
    weight->encoding = MICA_ENCODING_PLAIN;
    return fits ? MICA_OK : wrong_dtype(model, data, integers ? "I64 or I32" : "BF16, F16, F32 or F64", error);
}

static bool ends_with(const char *name, const char *suffix) {
    size_t length = strlen(name), tail = strlen(suffix);
    return length >= tail && strcmp(name + length - tail, suffix) == 0;
}

/* How many columns a column of the stored tensor holds. */
static uint64_t packing(const mica_model *model, const mica_tensor *data) {
    if (data->rank != 2)
        return 1;
    if (data->dtype == MICA_I32 && ends_with(data->name, ".weight_packed"))
        return 8;
    if (data->dtype == MICA_I8 && ends_with(data->name, ".weight") && strcmp(model->config.architecture->expert_scale, "scale") == 0)
        return 2;
    return 1;
}

/* Rows and columns when decoded: those expected, after the stored shape has been compared with them. */
static mica_status resolve_shape(const mica_model *model, const mica_tensor *data, const mica_expected_shape *expected, uint64_t pack,
                                 mica_weight *weight, mica_error *error) {
    uint64_t stored[3] = {data->rank > 0 ? data->shape[0] : 1, data->rank > 1 ? data->shape[1] : 0, data->rank > 2 ? data->shape[2] : 0};
    uint64_t want[3];
    if (expected->rank == 0) {
        weight->rows = data->rank > 1 ? stored[0] : 1;
        weight->columns = weight->rows == 0 ? 0 : data->elements / weight->rows;
        return mica_mul_u64(weight->columns, pack, &weight->columns) ? MICA_OK
                                                                     : mica_fail(error, MICA_BAD_INPUT, "%s: columns overflow", data->name);
    }
    for (uint32_t i = 0; i < 3; i++)
        want[i] = i >= expected->rank || expected->size[i] == 0 ? stored[i]
                  : i == 1                                      ? ceil_divide(expected->size[i], pack)
                                                                : expected->size[i];
    mica_status status = check_sizes(model, data, expected->rank, want,
                                     mica_gguf_of_source(model->source) ? " (from the metadata)"
                                     : pack == 1                        ? " (from config.json)"
                                                                        : " (from config.json, packed)",
                                     error);
    if (status != MICA_OK)
        return status;
    if (expected->rank == 3) {
        weight->rows = stored[0] * stored[1]; /* of a tensor that exists: cannot overflow */
        weight->columns = stored[2];
        return MICA_OK;
    }
    weight->rows = expected->rank == 2 ? stored[0] : 1;
    weight->columns = expected->rank == 2 ? expected->size[1] ? expected->size[1] : stored[1] * pack : stored[0];
    return MICA_OK;
}

static mica_status resolve(const mica_model *model, const mica_tensor *data, const mica_expected_shape *expected, bool integers,
                           mica_weight *weight, mica_error *error) {
    uint64_t pack = packing(model, data);
    bool eight_bits = data->dtype == MICA_F8_E4M3 || data->dtype == MICA_F8_E5M2;
    weight->scale = weight->shape = NULL;
    weight->block_rows = weight->block_columns = 0;
    mica_status status = resolve_shape(model, data, expected, pack, weight, error);
    if (status != MICA_OK)
        return status;
    if (eight_bits && data->rank == 2 && ends_with(data->name, ".weight"))
        status = resolve_fp8(model, data, weight, error);
    else if (pack == 2)
        status = resolve_mxfp4(model, data, weight, error);
    else if (pack == 8)
        status = resolve_int4(model, data, weight, error);
    else if (mica_dtype_is_block(data->dtype) && !integers)
        weight->encoding = MICA_ENCODING_BLOCK;
    else
        status = resolve_plain(model, data, integers, weight, error);
    return status;
}

static void claim(mica_model_builder *builder, const mica_tensor *data, const mica_tensor *whole, mica_weight *weight) {
    const mica_tensor *parts[] = {whole, weight->scale, weight->shape};
    for (size_t i = 0; i < 3; i++)
        if (parts[i])
            builder->claimed[parts[i] - builder->model->source->tensors] = true;
    weight->data = data;
    weight->whole = whole;
}

mica_status mica_weight_resolve(mica_model_builder *builder, const mica_tensor *data, const mica_expected_shape *expected, bool integers,
                                mica_weight *weight, mica_error *error) {
    mica_status status = resolve(builder->model, data, expected, integers, weight, error);
    if (status == MICA_OK)
        claim(builder, data, data, weight);
    return status;
}

mica_status mica_weight_resolve_slice(mica_model_builder *builder, const mica_tensor *slice, const mica_tensor *whole,
                                      const mica_expected_shape *expected, mica_weight *weight, mica_error *error) {
    mica_status status = resolve(builder->model, slice, expected, false, weight, error);
    if (status == MICA_OK)
        claim(builder, slice, whole, weight);
    return status;
}
