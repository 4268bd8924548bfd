/* model/model_match.c: every tensor that the tables and the configuration promise, looked up by name: what is missing is an error.
 * Linear in what is expected, and stops at the first absence, so that a configuration cannot make it work for long.
 * Judged by tests/model/test_model.c and tests/operations/test_bad_checkpoints.c. */
#include <stdio.h>
#include <string.h>

#include "formats/gguf.h"
#include "model/model_build.h"

typedef struct place { /* one application of a row */
    const mica_tensor_row *row;
    uint64_t layer, expert;
} place;

/* Writes prefix and pattern with its numbers; stops after the text `until` of the pattern (NULL: at its end). */
static void expand_pattern(const mica_architecture *architecture, const place *at, const char *pattern, const char *until,
                           char name[MICA_NAME_BYTES]) {
    const char *end = until && strstr(pattern, until) ? strstr(pattern, until) + strlen(until) : pattern + strlen(pattern);
    size_t length = strlen(architecture->prefix);
    memcpy(name, architecture->prefix, length);
    while (pattern < end && length + 24 < MICA_NAME_BYTES) {
        if (*pattern != '{') {
            name[length++] = *pattern++;
            continue;
        }
        uint64_t number = pattern[1] == 'L' ? at->layer : at->expert;
        char digits[20];
        size_t count = 0;
        do
            digits[count++] = (char)('0' + number % 10);
        while ((number /= 10) > 0);
        while (count > 0)
            name[length++] = digits[--count];
        pattern += 3;
    }
    name[length] = '\0';
}

static void expand(const mica_architecture *architecture, const place *at, const char *until, char name[MICA_NAME_BYTES]) {
    expand_pattern(architecture, at, at->row->pattern, until, name);
}

static bool any_with_prefix(const mica_tensor_source *source, const char *prefix) {
    size_t length = strlen(prefix);
    uint64_t low = 0, high = source->tensor_count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (strcmp(source->tensors[middle].name, prefix) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < source->tensor_count && strncmp(source->tensors[low].name, prefix, length) == 0;
}

/* Names the largest thing that is absent: the layer, the expert, or the tensor. */
static mica_status missing(const mica_model *model, const place *at, const char *name, mica_error *error) {
    const mica_config *config = &model->config;
    const mica_tensor_source *source = model->source;
    char group[MICA_NAME_BYTES];
    unsigned long long layer = at->layer, expert = at->expert;
    if (strstr(at->row->pattern, "{L}.")) {
        expand(config->architecture, at, "{L}.", group);
        if (!any_with_prefix(source, group))
            return mica_fail(error, MICA_BAD_INPUT, "%s: %s*: expected %llu layers (%s), got layer %llu absent", source->path, group,
                             (unsigned long long)config->num_hidden_layers,
                             mica_gguf_of_source(source) ? "block_count" : "num_hidden_layers", layer);
    }
    if (strstr(at->row->pattern, "{E}.")) {
        expand(config->architecture, at, "{E}.", group);
        if (!any_with_prefix(source, group))
            return mica_fail(error, MICA_BAD_INPUT,
                             "%s: %s*: expected %llu experts in layer %llu (n_routed_experts), got expert %llu absent", source->path, group,
                             (unsigned long long)config->n_routed_experts, layer, expert);
    }
    if (mica_gguf_of_source(source))
        return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected present, got absent", source->path, name);
    return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected present%s, got absent", source->path, name,
                     at->row->role == MICA_ROLE_HEAD            ? " (tie_word_embeddings is false)"
                     : at->row->role == MICA_ROLE_SHARED_EXPERT ? " (n_shared_experts is not 0)"
                                                                : "");
}

static const mica_tensor *find_data(const mica_tensor_source *source, char name[MICA_NAME_BYTES]) {
    const mica_tensor *data = mica_tensor_source_find(source, name);
    size_t length = strlen(name);
    if (data || length < 7 || strcmp(name + length - 7, ".weight") != 0 || length + 8 > MICA_NAME_BYTES)
        return data;
    memcpy(name + length, "_packed", 8);
    data = mica_tensor_source_find(source, name);
    name[length] = '\0';
    return data;
}

static bool is_sliced(const mica_tensor_row *row) {
    return strstr(row->pattern, "[{E}]") != NULL;
}

static mica_expected_shape expected_shape(const mica_model *model, const place *at) {
    mica_expected_shape expected = {0, {0, 0, 0}};
    for (; expected.rank < 3 && at->row->shape[expected.rank]; expected.rank++)
        expected.size[expected.rank] = at->row->shape[expected.rank](&model->config, at->layer);
    return expected;
}

static mica_weight pattern_of(const place *at) {
    const mica_tensor_row *row = at->row;
    return (mica_weight){.fate = MICA_USED,
                         .role = row->role,
                         .projection = row->projection,
                         .part = row->part,
                         .layer = strstr(row->pattern, "{L}") ? (int64_t)at->layer : -1,
                         .expert = strstr(row->pattern, "{E}") ? (int64_t)at->expert : -1};
}

static mica_status match_groups(mica_model_builder *builder, const place *at, const char *name, bool *grouped, mica_error *error) {
    const mica_expected_shape expected = expected_shape(builder->model, at);
    const mica_weight pattern = pattern_of(at);
    return mica_model_match_groups(builder, name, builder->model->config.n_routed_experts, &expected, &pattern, grouped, error);
}

static mica_status match_one(mica_model_builder *builder, const place *at, mica_need need, mica_error *error) {
    mica_model *model = builder->model;
    char name[MICA_NAME_BYTES];
    expand(model->config.architecture, at, NULL, name);
    if (is_sliced(at->row))
        *strrchr(name, '[') = '\0';
    const mica_tensor *data = find_data(model->source, name);
    bool grouped = false;
    mica_status status = !data && is_sliced(at->row) ? match_groups(builder, at, name, &grouped, error) : MICA_OK;
    if (status != MICA_OK || grouped)
        return status;
    bool fused = !data && at->row->fused;
    if (fused) {
        char both[MICA_NAME_BYTES];
        expand_pattern(model->config.architecture, at, at->row->fused, NULL, both);
        *strrchr(both, '[') = '\0';
        data = find_data(model->source, both);
    }
    if (!data)
        return need == MICA_NEED_REQUIRED ? missing(model, at, name, error) : MICA_OK;
    const mica_tensor_row *row = at->row;
    const mica_expected_shape expected = expected_shape(model, at);
    const mica_weight found = pattern_of(at);
    if (is_sliced(row))
        return mica_model_match_slices(builder, data, model->config.n_routed_experts, fused, &expected, &found, error);
    mica_weight *weight = &builder->slots[data - model->source->tensors];
    *weight = found;
    return mica_weight_resolve(builder, data, &expected, row->role == MICA_ROLE_HASH_TABLE, weight, error);
}

static mica_status match_row(mica_model_builder *builder, const mica_tensor_row *row, mica_error *error) {
    const mica_config *config = &builder->model->config;
    uint64_t layers = strstr(row->pattern, "{L}") ? config->num_hidden_layers : 1;
    uint64_t experts = strstr(row->pattern, "{E}") && !is_sliced(row) ? config->n_routed_experts : 1;
    for (uint64_t layer = 0; layer < layers; layer++) {
        mica_need need = row->need ? row->need(config, layer) : MICA_NEED_REQUIRED;
        for (uint64_t expert = 0; need != MICA_NEED_NONE && expert < experts; expert++) {
            place at = {row, layer, expert};
            mica_status status = match_one(builder, &at, need, error);
            if (status != MICA_OK)
                return status;
        }
    }
    return MICA_OK;
}

mica_status mica_model_match(mica_model_builder *builder, mica_error *error) {
    for (const mica_tensor_row *row = builder->model->config.architecture->rows; row->pattern; row++) {
        mica_status status = match_row(builder, row, error);
        if (status != MICA_OK)
            return status;
    }
    return MICA_OK;
}
