/* model/config_quantisation.c: quantization_config: block-scaled fp8, and compressed-tensors' int4 groups.
 * Refuses every other method, format or scheme by its name: a scheme that is not understood must never be read as another.
 * Judged by tests/model/test_config.c. */
#include <stdio.h>
#include <string.h>

#include "model/config_reader.h"

#define BLOCK_MAX (1u << 16)

static bool string_is(const json_t *json, const char *text) {
    return json_is_string(json) && strcmp(json_string_value(json), text) == 0;
}

static mica_status read_fp8(const mica_config_reader *reader, mica_config *config, mica_error *error) {
    const json_t *format = json_object_get(reader->object, "fmt");
    if (!mica_config_absent(reader->object, "fmt") && !string_is(format, "e4m3") && !string_is(format, "e5m2"))
        return mica_config_refuse(reader, "fmt", format, "e4m3 or e5m2", error);
    const json_t *size = json_object_get(reader->object, "weight_block_size");
    uint64_t block[2];
    for (size_t i = 0; i < 2; i++) {
        const json_t *number = json_array_get(size, i);
        if (json_array_size(size) != 2 || !json_is_integer(number) || json_integer_value(number) < 1 ||
            json_integer_value(number) > BLOCK_MAX)
            return mica_config_refuse(reader, "weight_block_size", size, "two positive integers", error);
        block[i] = (uint64_t)json_integer_value(number);
    }
    config->quantisation = MICA_QUANTISATION_FP8;
    config->weight_block_rows = block[0];
    config->weight_block_columns = block[1];
    return MICA_OK;
}

/* The only scheme that is known: signed 4-bit integers in symmetric groups along the row. */
static mica_status read_group(const mica_config_reader *outer, const char *group_name, const json_t *group, mica_config *config,
                              mica_error *error) {
    char scope[256];
    snprintf(scope, sizeof scope, "%sconfig_groups.%.64s.weights.", outer->scope, group_name);
    const json_t *weights = json_object_get(group, "weights");
    mica_config_reader reader = {outer->name, scope, weights};
    if (!json_is_object(weights))
        return mica_config_refuse(outer, "config_groups", group, "groups with an object \"weights\"", error);
    const json_t *bits = json_object_get(weights, "num_bits"), *symmetric = json_object_get(weights, "symmetric");
    if (!json_is_integer(bits) || json_integer_value(bits) != 4)
        return mica_config_refuse(&reader, "num_bits", bits, "4", error);
    if (!json_is_true(symmetric))
        return mica_config_refuse(&reader, "symmetric", symmetric, "true", error);
    static const char *const fixed[][2] = {{"type", "int"}, {"strategy", "group"}};
    for (size_t i = 0; i < 2; i++)
        if (!mica_config_absent(weights, fixed[i][0]) && !string_is(json_object_get(weights, fixed[i][0]), fixed[i][1]))
            return mica_config_refuse(&reader, fixed[i][0], json_object_get(weights, fixed[i][0]), fixed[i][1], error);
    const json_t *order = json_object_get(weights, "actorder");
    if (!mica_config_absent(weights, "actorder") && !json_is_false(order) && !string_is(order, "static") && !string_is(order, "weight"))
        return mica_config_refuse(&reader, "actorder", order, "null (columns in their own order)", error);
    uint64_t group_size = 0;
    mica_status status = mica_config_integer(&reader, weights, "group_size", 1, BLOCK_MAX, &group_size, error);
    if (status != MICA_OK)
        return status;
    if (config->group_size && config->group_size != group_size) {
        char expected[64];
        snprintf(expected, sizeof expected, "one group_size in all groups (%llu)", (unsigned long long)config->group_size);
        return mica_config_refuse(&reader, "group_size", json_object_get(weights, "group_size"), expected, error);
    }
    config->group_size = group_size;
    return MICA_OK;
}

static mica_status read_compressed_tensors(const mica_config_reader *reader, mica_config *config, mica_error *error) {
    const json_t *format = json_object_get(reader->object, "format");
    if (!string_is(format, "pack-quantized"))
        return mica_config_refuse(reader, "format", format, "pack-quantized", error);
    const json_t *groups = json_object_get(reader->object, "config_groups");
    if (!json_is_object(groups) || json_object_size(groups) == 0)
        return mica_config_refuse(reader, "config_groups", groups, "an object with at least one group", error);
    const char *name;
    json_t *group;
    json_object_foreach((json_t *)groups, name, group) {
        mica_status status = read_group(reader, name, group, config, error);
        if (status != MICA_OK)
            return status;
    }
    config->quantisation = MICA_QUANTISATION_INT4;
    return MICA_OK;
}

mica_status mica_config_read_quantisation(const mica_config_reader *outer, mica_config *config, mica_error *error) {
    if (mica_config_absent(outer->object, "quantization_config"))
        return MICA_OK;
    const json_t *object = json_object_get(outer->object, "quantization_config");
    if (!json_is_object(object))
        return mica_config_refuse(outer, "quantization_config", object, "an object or null", error);
    char scope[96];
    snprintf(scope, sizeof scope, "%squantization_config.", outer->scope);
    mica_config_reader reader = {outer->name, scope, object};
    const json_t *method = json_object_get(object, "quant_method");
    if (string_is(method, "fp8"))
        return read_fp8(&reader, config, error);
    if (string_is(method, "compressed-tensors"))
        return read_compressed_tensors(&reader, config, error);
    return mica_config_refuse(&reader, "quant_method", method, "fp8 or compressed-tensors", error);
}
