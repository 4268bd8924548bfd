/* operations/inspect_totals.c: counting, summing and grouping for inspect. Names of roles are data here.
 * Judged by tests/operations/test_inspect.c. */
#include "operations/inspect_totals.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* In the order in which they are shown. */
static const struct {
    mica_role role;
    const char *name;
} role_names[] = {
    {MICA_ROLE_EXPERT, "experts"},      {MICA_ROLE_SHARED_EXPERT, "shared experts"}, {MICA_ROLE_DENSE, "dense MLP"},
    {MICA_ROLE_ROUTER, "router"},       {MICA_ROLE_ROUTER_BIAS, "router bias"},      {MICA_ROLE_HASH_TABLE, "hash routing tables"},
    {MICA_ROLE_ATTENTION, "attention"}, {MICA_ROLE_EMBEDDING, "embedding"},          {MICA_ROLE_HEAD, "head"},
    {MICA_ROLE_NORM, "norms"},          {MICA_ROLE_FINAL_NORM, "final norm"},        {MICA_ROLE_ROPE_FACTORS, "rotary factors"},
    {MICA_ROLE_OTHER, "other"}};

const char *mica_role_title(mica_role role) {
    for (size_t i = 0; i < sizeof role_names / sizeof *role_names; i++)
        if (role_names[i].role == role)
            return role_names[i].name;
    return "other";
}

static void add(mica_total *totals, uint64_t *count, uint64_t capacity, const char *name, const char *detail, uint64_t parameters,
                uint64_t bytes) {
    uint64_t i = 0;
    while (i < *count && (strcmp(totals[i].name, name) != 0 || (detail && strcmp(totals[i].detail, detail) != 0)))
        i++;
    if (i == capacity)
        i--; /* the tables above are smaller than any capacity: this is for those who add rows */
    else if (i == *count)
        totals[(*count)++] = (mica_total){.name = name, .detail = detail};
    totals[i].count++;
    totals[i].parameters += parameters;
    totals[i].bytes += bytes;
}

static uint64_t weight_bytes(const mica_weight *weight) {
    return weight->data->bytes + (weight->scale ? weight->scale->bytes : 0) + (weight->shape ? weight->shape->bytes : 0);
}

static void count_weight(const mica_model *model, const mica_weight *weight, const char *role, mica_totals *totals) {
    uint64_t parameters = weight->rows * weight->columns, bytes = weight_bytes(weight);
    bool by_type = weight->encoding == MICA_ENCODING_PLAIN || weight->encoding == MICA_ENCODING_BLOCK;
    const char *encoding = by_type ? mica_dtype_name(weight->data->dtype) : mica_encoding_name(weight->encoding);
    if (weight->fate == MICA_USED) {
        add(totals->roles, &totals->role_count, MICA_TOTALS_MAX, role, encoding, parameters, bytes);
        add(totals->encodings, &totals->encoding_count, 8, mica_encoding_name(weight->encoding), NULL, parameters, bytes);
    } else if (weight->fate == MICA_IGNORED) {
        const char *rule = model->accounts[weight->whole - model->source->tensors].rule;
        add(totals->rules, &totals->rule_count, 16, rule, NULL, parameters, bytes);
    } else {
        totals->unknown.count++;
        totals->unknown.parameters += parameters;
        totals->unknown.bytes += bytes;
    }
    totals->all.count++;
    totals->all.parameters += parameters;
}

static void count_model(const mica_model *model, mica_totals *totals) {
    for (size_t role = 0; role < sizeof role_names / sizeof *role_names; role++) {
        for (uint64_t i = 0; i < model->weight_count; i++) {
            if (model->weights[i].role == role_names[role].role)
                count_weight(model, &model->weights[i], role_names[role].name, totals);
        }
    }
    for (uint64_t i = 0; i < model->config.num_hidden_layers; i++)
        totals->moe_layers += model->layers[i].moe;
}

mica_status mica_totals_count(const mica_tensor_source *source, const mica_model *model, mica_totals *totals, mica_error *error) {
    memset(totals, 0, sizeof *totals);
    totals->shard_tensors = mica_calloc(source->shard_count + 1, sizeof *totals->shard_tensors);
    if (!totals->shard_tensors)
        return mica_fail(error, MICA_NO_MEMORY, "%s: no memory for the report", source->path);
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        const mica_tensor *tensor = &source->tensors[i];
        totals->shard_tensors[tensor->shard]++;
        totals->all.bytes += tensor->bytes;
        add(totals->dtypes, &totals->dtype_count, MICA_DTYPE_COUNT, mica_dtype_name(tensor->dtype), NULL, tensor->elements, tensor->bytes);
    }
    if (model)
        count_model(model, totals);
    return MICA_OK;
}

void mica_totals_release(mica_totals *totals) {
    mica_free(totals->shard_tensors);
}

/* ---- groups of a bare file */

/* The name with every number that is a whole component as "*". */
static char *pattern_of(const char *name) {
    char *pattern = mica_strdup(name);
    size_t length = 0;
    for (const char *at = name; pattern && *at;) {
        size_t digits = strspn(at, "0123456789");
        bool component = digits && (at == name || at[-1] == '.') && (at[digits] == '.' || at[digits] == '\0');
        if (component) {
            pattern[length++] = '*';
            at += digits;
        } else {
            pattern[length++] = *at++;
        }
    }
    if (pattern)
        pattern[length] = '\0';
    return pattern;
}

static int compare_groups(const void *left, const void *right) {
    const mica_tensor_group *a = left, *b = right;
    int order = strcmp(a->name, b->name);
    if (order == 0)
        order = (a->first->dtype > b->first->dtype) - (a->first->dtype < b->first->dtype);
    if (order == 0)
        order = (a->first->rank > b->first->rank) - (a->first->rank < b->first->rank);
    for (uint32_t i = 0; order == 0 && i < a->first->rank; i++)
        order = (a->first->shape[i] > b->first->shape[i]) - (a->first->shape[i] < b->first->shape[i]);
    return order;
}

static uint64_t merge_groups(mica_tensor_group *groups, uint64_t count) {
    uint64_t kept = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (kept > 0 && compare_groups(&groups[kept - 1], &groups[i]) == 0) {
            groups[kept - 1].count += groups[i].count;
            mica_free(groups[i].name);
        } else {
            groups[kept++] = groups[i];
        }
    }
    return kept;
}

mica_status mica_tensor_groups(const mica_tensor_source *source, mica_tensor_group **result, uint64_t *count, mica_error *error) {
    mica_tensor_group *groups = mica_calloc(source->tensor_count + 1, sizeof *groups);
    uint64_t made = 0;
    while (groups && made < source->tensor_count) {
        groups[made] = (mica_tensor_group){pattern_of(source->tensors[made].name), &source->tensors[made], 1};
        if (!groups[made].name)
            break;
        made++;
    }
    if (!groups || made < source->tensor_count) {
        mica_tensor_groups_free(groups, made);
        return mica_fail(error, MICA_NO_MEMORY, "%s: no memory for the report", source->path);
    }
    qsort(groups, made, sizeof *groups, compare_groups);
    *count = merge_groups(groups, made);
    *result = groups;
    return MICA_OK;
}

void mica_tensor_groups_free(mica_tensor_group *groups, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        mica_free(groups[i].name);
    mica_free(groups);
}
