/* model/config_rope.c: the rotary embedding's keys: rope_scaling beside rope_theta, or (newer) both in rope_parameters, there perhaps per
 * kind of layer. Refuses types it does not know and numbers that would make a frequency infinite or negative.
 * Judged by tests/model/test_config.c and test_rope.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/config_reader.h"

/* A number from minimum on; absent: `absent`. */
static mica_status read_number(const mica_config_reader *reader, const char *key, const json_t *rope, const char *name, double minimum,
                               double absent, double *value, mica_error *error) {
    *value = absent;
    if (mica_config_absent(rope, name))
        return MICA_OK;
    const json_t *json = json_object_get(rope, name);
    double number = json_number_value(json);
    if (json_is_number(json) && isfinite(number) && number >= minimum) {
        *value = number;
        return MICA_OK;
    }
    char expected[96];
    snprintf(expected, sizeof expected, "%s: a number of at least %g", name, minimum);
    return mica_config_refuse(reader, key, rope, expected, error);
}

static mica_status read_original_context(const mica_config_reader *reader, const char *key, const json_t *rope, mica_config *config,
                                         mica_error *error) {
    static const char name[] = "original_max_position_embeddings";
    config->rope_original_context = config->max_position_embeddings;
    if (mica_config_absent(rope, name))
        return MICA_OK;
    const json_t *json = json_object_get(rope, name);
    if (!json_is_integer(json) || json_integer_value(json) < 1)
        return mica_config_refuse(reader, key, rope, "original_max_position_embeddings: a positive integer", error);
    config->rope_original_context = (uint64_t)json_integer_value(json);
    return MICA_OK;
}

/* The defaults are those of the published modelling code: DeepSeek-V3's, transformers' for the others. */
static mica_status read_details(const mica_config_reader *reader, const char *key, const json_t *rope, mica_config *config,
                                mica_error *error) {
    const struct {
        const char *name;
        double minimum, absent;
        double *value;
    } numbers[] = {{"beta_fast", 0, 32, &config->rope_beta_fast},
                   {"beta_slow", 0, 1, &config->rope_beta_slow},
                   {"mscale", 0, 1, &config->rope_mscale},
                   {"mscale_all_dim", 0, 0, &config->rope_mscale_all_dim},
                   {"attention_factor", 0, 0, &config->rope_attention_factor},
                   {"low_freq_factor", 0, 1, &config->rope_low_freq_factor},
                   {"high_freq_factor", 0, 4, &config->rope_high_freq_factor}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        mica_status status = read_number(reader, key, rope, numbers[i].name, numbers[i].minimum, numbers[i].absent, numbers[i].value,
                                         error);
        if (status != MICA_OK)
            return status;
    }
    return read_original_context(reader, key, rope, config, error);
}

static mica_status read_rope_scaling(const mica_config_reader *reader, const char *key, const json_t *rope, mica_config *config,
                                     mica_error *error) {
    /* "su" is longrope's older name; those whose factor is a single number must have it */
    static const struct {
        const char *type;
        bool factor;
    } types[] = {{"default", false}, {"yarn", true},      {"linear", true}, {"dynamic", true},
                 {"llama3", true},   {"longrope", false}, {"su", false}};
    const json_t *type = json_object_get(rope, "rope_type");
    if (!json_is_string(type))
        type = json_object_get(rope, "type");
    const char *name = json_is_string(type) ? json_string_value(type) : mica_config_absent(rope, "factor") ? "default" : "";
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(types[i].type, name) != 0)
            continue;
        const json_t *factor = json_object_get(rope, "factor");
        if (types[i].factor && !(json_is_number(factor) && json_number_value(factor) >= 1 && isfinite(json_number_value(factor))))
            return mica_config_refuse(reader, key, rope, "a factor of at least 1", error);
        if (types[i].factor)
            config->rope_factor = json_number_value(factor);
        if (i > 0)
            snprintf(config->rope_type, sizeof config->rope_type, "%s", name);
        return types[i].factor ? read_details(reader, key, rope, config, error) : MICA_OK;
    }
    return mica_config_refuse(reader, key, rope, "type yarn, llama3, linear, dynamic, longrope or default", error);
}

mica_status mica_config_read_rope(const mica_config_reader *reader, mica_config *config, mica_error *error) {
    const json_t *object = reader->object;
    const char *key = mica_config_absent(object, "rope_parameters") ? "rope_scaling" : "rope_parameters";
    const json_t *rope = json_object_get(object, key);
    config->rope_theta = 10000;
    config->rope_interleaved = config->architecture->attention != MICA_ATTENTION_GROUPED;
    mica_status status = mica_config_positive(reader, object, "rope_theta", &config->rope_theta, error);
    if (status != MICA_OK || mica_config_absent(object, key))
        return status;
    if (!json_is_object(rope))
        return mica_config_refuse(reader, key, rope, "an object or null", error);
    if (json_is_object(json_object_get(rope, "full_attention")))
        rope = json_object_get(rope, "full_attention");
    status = mica_config_positive(reader, rope, "rope_theta", &config->rope_theta, error);
    return status != MICA_OK ? status : read_rope_scaling(reader, key, rope, config, error);
}
