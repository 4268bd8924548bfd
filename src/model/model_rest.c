/* model/model_rest.c: the tensors no table asked for: ignored by a named rule, or unknown and reported. Nothing is skipped in silence.
 * They become weights too (with their scales where those fit), so that whoever reads everything reads them the same way.
 * Judged by tests/model/test_model.c. */
#include <string.h>

#include "base/memory.h"
#include "model/model_build.h"

#define UNKNOWN_SHOWN 20

/* Decimal digits at *name: a layer of the multi-token prediction? Moves past them. */
static bool prediction_layer(const mica_config *config, const char **name) {
    uint64_t number = 0;
    const char *digit = *name;
    for (; *digit >= '0' && *digit <= '9' && number < 1u << 20; digit++)
        number = number * 10 + (uint64_t)(*digit - '0');
    bool found = digit > *name && number >= config->num_hidden_layers &&
                 number - config->num_hidden_layers < config->num_nextn_predict_layers;
    *name = digit;
    return found;
}

/* Patterns have at most a few stars: the recursion is as deep as they are many. */
static bool matches(const mica_config *config, const char *pattern, const char *name) {
    static const char prediction[] = "{MTP}";
    while (*pattern) {
        if (*pattern == '*') {
            if (pattern[1] == '\0')
                return true;
            for (; *name; name++)
                if (matches(config, pattern + 1, name))
                    return true;
            return false;
        }
        if (strncmp(pattern, prediction, sizeof prediction - 1) == 0) {
            if (!prediction_layer(config, &name))
                return false;
            pattern += sizeof prediction - 1;
        } else if (*pattern++ != *name++) {
            return false;
        }
    }
    return *name == '\0';
}

static const char *rule_for(const mica_config *config, const char *name) {
    size_t prefix = strlen(config->architecture->prefix);
    const char *below = strncmp(name, config->architecture->prefix, prefix) == 0 ? name + prefix : name;
    for (const mica_ignore_row *row = config->architecture->ignored; row->pattern; row++)
        if (matches(config, row->pattern, below))
            return row->rule;
    return NULL;
}

/* A weight by itself, stored as it says; where that does not work out (no scale, odd shape) the tensor stands alone, as plain numbers. */
static void add_weight(mica_model_builder *builder, uint64_t index) {
    const mica_tensor *tensor = &builder->model->source->tensors[index];
    mica_weight *weight = &builder->slots[index];
    const mica_account *account = &builder->model->accounts[index];
    const mica_expected_shape any = {0, {0, 0}};
    memset(weight, 0, sizeof *weight);
    weight->fate = account->fate;
    weight->role = MICA_ROLE_OTHER;
    weight->layer = weight->expert = -1;
    bool whole = mica_weight_resolve(builder, tensor, &any, false, weight, NULL) == MICA_OK;
    if (whole)
        return;
    weight->encoding = mica_dtype_is_block(tensor->dtype) ? MICA_ENCODING_BLOCK : MICA_ENCODING_PLAIN;
    weight->data = weight->whole = tensor;
    weight->scale = weight->shape = NULL;
    weight->block_rows = weight->block_columns = 0;
    weight->rows = tensor->rank > 1 ? tensor->shape[0] : 1;
    weight->columns = weight->rows ? tensor->elements / weight->rows : 0;
    builder->claimed[index] = true;
}

static bool is_data(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot && (strcmp(dot, ".weight") == 0 || strcmp(dot, ".weight_packed") == 0);
}

static mica_status report_unknown(mica_model *model, uint64_t index, mica_error *error) {
    const mica_tensor *tensor = &model->source->tensors[index];
    char shape[200];
    model->unknown_count++;
    if (model->unknown_count > UNKNOWN_SHOWN)
        return MICA_OK;
    return mica_model_warn(model, error, "%s: %s: unknown tensor (%s %s), not used", mica_model_shard_name(model, tensor), tensor->name,
                           mica_dtype_name(tensor->dtype), mica_shape_show(tensor->rank, tensor->shape, shape, sizeof shape));
}

mica_status mica_model_account_rest(mica_model_builder *builder, mica_error *error) {
    mica_model *model = builder->model;
    const mica_tensor_source *source = model->source;
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        mica_account *account = &model->accounts[i];
        account->fate = MICA_USED;
        if (builder->claimed[i]) {
            model->used_count++;
            continue;
        }
        account->rule = rule_for(&model->config, source->tensors[i].name);
        account->fate = account->rule ? MICA_IGNORED : MICA_UNKNOWN;
        model->ignored_count += account->rule != NULL;
        mica_status status = account->rule ? MICA_OK : report_unknown(model, i, error);
        if (status != MICA_OK)
            return status;
    }
    if (model->unknown_count > UNKNOWN_SHOWN) {
        mica_status status = mica_model_warn(model, error, "%llu more unknown tensors",
                                             (unsigned long long)(model->unknown_count - UNKNOWN_SHOWN));
        if (status != MICA_OK)
            return status;
    }
    for (int data = 1; data >= 0; data--) /* data first: it takes its scales with it */
        for (uint64_t i = 0; i < source->tensor_count; i++)
            if (!builder->claimed[i] && (!data || is_data(source->tensors[i].name)))
                add_weight(builder, i);
    return MICA_OK;
}
