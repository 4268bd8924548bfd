/* operations/export_rules.c: see the header. Owns the grammar of the file. Refuses: keys it does not know, types that cannot be written,
 * patterns that do not compile, rules that match nothing, experts of one tensor in several types. Judged by
 * tests/operations/test_export_rules.c. */
#include "operations/export_rules.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/memory.h"
#include "base/text.h"

#define CONFIG_BYTES_MAX ((uint64_t)64 << 20)
#define RANGES_MAX 512u /* of 1024 experts every other one */

typedef struct number_ranges { /* "0-3,7": empty: all */
    uint64_t first[RANGES_MAX], last[RANGES_MAX];
    uint32_t count;
} number_ranges;

struct mica_export_rule {
    char label[64];           /* "rules[3]", "per_tensor: NAME" */
    const char *name;         /* a glob; NULL: any */
    pcre2_code *regex;        /* NULL: any; owned */
    number_ranges layers, experts;
    int projection;           /* mica_projection, -1: any */
    mica_dtype type;
    bool matched;
};

static mica_status refuse(const mica_export_rules *rules, mica_error *error, const char *key, const json_t *value, const char *expected) {
    char got[208];
    return mica_fail(error, MICA_BAD_INPUT, "%s: %s%s: expected %s, got %s", rules->name, rules->within, key, expected,
                     value ? mica_json_show(value, got, sizeof got) : "none");
}

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the rules");
}

void mica_export_rules_release(mica_export_rules *rules) {
    for (uint64_t i = 0; i < rules->rule_count; i++)
        pcre2_code_free(rules->rules[i].regex);
    for (uint64_t i = 0; i < rules->note_count; i++)
        mica_free(rules->notes[i]);
    mica_free(rules->rules);
    mica_free(rules->notes);
    mica_free(rules->name);
    json_decref(rules->tree);
    *rules = (mica_export_rules){0};
}

mica_status mica_export_rules_note(mica_export_rules *rules, mica_error *error, const char *text) {
    char **notes = mica_reallocarray(rules->notes, rules->note_count + 1, sizeof *notes);
    if (!notes)
        return no_memory(error);
    rules->notes = notes;
    notes[rules->note_count] = mica_strdup(text);
    return notes[rules->note_count++] ? MICA_OK : no_memory(error);
}

/* ---- values */

/* A type of tensors: by its own name, or a mixture's for the type most of its tensors get (q4_k_m: Q4_K). */
static bool parse_type(const char *text, mica_dtype *type) {
    static const mica_dtype plain[] = {MICA_F32, MICA_F16, MICA_BF16};
    mica_mixture mixture;
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (strcasecmp(text, mica_dtype_name(plain[i])) == 0) {
            *type = plain[i];
            return true;
        }
    if (mica_dtype_parse_block(text, type))
        return true;
    if (!mica_mixture_parse(text, &mixture) || mixture == MICA_MIXTURE_SOURCE)
        return false;
    *type = mica_mixture_base(mixture);
    return true;
}

static mica_status read_type(const mica_export_rules *rules, const char *key, const json_t *value, mica_dtype *type, mica_error *error) {
    if (json_is_string(value) && parse_type(json_string_value(value), type))
        return MICA_OK;
    return refuse(rules, error, key, value, "a type such as q6_k, iq4_xs or bf16");
}

static const char *parse_number(const char *at, uint64_t *number) {
    if (*at < '0' || *at > '9')
        return NULL;
    for (*number = 0; *at >= '0' && *at <= '9' && *number < UINT32_MAX; at++)
        *number = 10 * *number + (uint64_t)(*at - '0');
    return at;
}

static bool parse_ranges(const char *text, number_ranges *ranges) {
    for (const char *at = text; ranges->count < RANGES_MAX; at++) {
        uint64_t *first = &ranges->first[ranges->count], *last = &ranges->last[ranges->count];
        if (!(at = parse_number(at, first)))
            return false;
        *last = *first;
        if (*at == '-' && !(at = parse_number(at + 1, last)))
            return false;
        ranges->count++;
        if (*last < *first || (*at && *at != ','))
            return false;
        if (!*at)
            return true;
    }
    return false;
}

/* A number, or a list of numbers and ranges. */
static mica_status read_ranges(const mica_export_rules *rules, const char *key, const json_t *value, number_ranges *ranges,
                               mica_error *error) {
    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        ranges->first[0] = ranges->last[0] = (uint64_t)json_integer_value(value);
        ranges->count = 1;
        return MICA_OK;
    }
    if (json_is_string(value) && parse_ranges(json_string_value(value), ranges))
        return MICA_OK;
    return refuse(rules, error, key, value, "a number, or a list such as \"0-3,7\"");
}

static bool in_ranges(const number_ranges *ranges, int64_t number) {
    for (uint32_t i = 0; i < ranges->count; i++)
        if (number >= (int64_t)ranges->first[i] && number <= (int64_t)ranges->last[i])
            return true;
    return ranges->count == 0;
}

static mica_status read_regex(const mica_export_rules *rules, const json_t *value, pcre2_code **regex, mica_error *error) {
    int number;
    size_t offset;
    if (!json_is_string(value))
        return refuse(rules, error, "regex", value, "a string");
    *regex = pcre2_compile((PCRE2_SPTR)json_string_value(value), json_string_length(value), 0, &number, &offset, NULL);
    if (*regex)
        return MICA_OK;
    PCRE2_UCHAR reason[128] = "";
    pcre2_get_error_message(number, reason, sizeof reason);
    return mica_fail(error, MICA_BAD_INPUT, "%s: %sregex: %s: %s at %zu", rules->name, rules->within, json_string_value(value),
                     (const char *)reason, offset);
}

/* ---- rules */

static mica_export_rule *add_rule(mica_export_rules *rules) {
    mica_export_rule *grown = mica_reallocarray(rules->rules, rules->rule_count + 1, sizeof *grown);
    if (!grown)
        return NULL;
    rules->rules = grown;
    mica_export_rule *rule = &grown[rules->rule_count++];
    *rule = (mica_export_rule){.projection = -1};
    return rule;
}

static mica_status read_projection(const mica_export_rules *rules, const json_t *value, int *projection, mica_error *error) {
    for (mica_projection i = MICA_GATE; json_is_string(value) && i < MICA_PROJECTION_COUNT; i++)
        if (strcmp(json_string_value(value), mica_projection_name(i)) == 0) {
            *projection = (int)i;
            return MICA_OK;
        }
    return refuse(rules, error, "projection", value, "gate, up or down");
}

/* GMAT names tensors by UUIDs, and says in tensor_map which name each has. */
static const char *name_of_uuid(const mica_export_rules *rules, const char *uuid) {
    const json_t *map = json_object_get(rules->tree, "tensor_map"), *row;
    size_t i;
    json_array_foreach((json_t *)map, i, row) {
        const char *source = json_string_value(json_object_get(row, "source"));
        if (source && strcasecmp(source, uuid) == 0)
            return json_string_value(json_object_get(row, "target"));
    }
    return NULL;
}

static mica_status read_condition(mica_export_rules *rules, mica_export_rule *rule, const char *key, const json_t *value,
                                  mica_error *error) {
    if (strcmp(key, "type") == 0)
        return read_type(rules, key, value, &rule->type, error);
    if (strcmp(key, "layers") == 0)
        return read_ranges(rules, key, value, &rule->layers, error);
    if (strcmp(key, "experts") == 0)
        return read_ranges(rules, key, value, &rule->experts, error);
    if (strcmp(key, "projection") == 0)
        return read_projection(rules, value, &rule->projection, error);
    if (strcmp(key, "regex") == 0)
        return read_regex(rules, value, &rule->regex, error);
    if (strcmp(key, "note") == 0 || strcmp(key, "measured") == 0 || strcmp(key, "sensitivity") == 0) /* for whoever reads the file */
        return MICA_OK;
    if (!json_is_string(value))
        return refuse(rules, error, key, value, "a string, of a key among name, regex, layers, projection, experts, uuid, type, note");
    if (strcmp(key, "name") == 0) {
        rule->name = json_string_value(value);
        return MICA_OK;
    }
    if (strcmp(key, "uuid") == 0) {
        rule->name = name_of_uuid(rules, json_string_value(value));
        return rule->name ? MICA_OK : refuse(rules, error, key, value, "a source of tensor_map");
    }
    return refuse(rules, error, key, value, "a key among name, regex, layers, projection, experts, uuid, type, note");
}

static mica_status read_rule(mica_export_rules *rules, size_t index, const json_t *object, mica_error *error) {
    const char *key;
    json_t *value;
    mica_export_rule *rule = add_rule(rules);
    if (!rule)
        return no_memory(error);
    snprintf(rule->label, sizeof rule->label, "rules[%zu]", index);
    if (!json_is_object(object))
        return refuse(rules, error, rule->label, object, "an object");
    if (!json_object_get(object, "type"))
        return refuse(rules, error, rule->label, object, "a type in it");
    snprintf(rules->within, sizeof rules->within, "%s: ", rule->label);
    mica_status status = MICA_OK;
    json_object_foreach((json_t *)object, key, value)
        if (status == MICA_OK)
            status = read_condition(rules, rule, key, value, error);
    rules->within[0] = 0;
    return status;
}

static mica_status read_rules(mica_export_rules *rules, const json_t *array, mica_error *error) {
    size_t i;
    json_t *row;
    mica_status status = json_is_array(array) ? MICA_OK : refuse(rules, error, "rules", array, "an array");
    json_array_foreach((json_t *)array, i, row)
        if (status == MICA_OK)
            status = read_rule(rules, i, row, error);
    return status;
}

/* "per_tensor": {"NAME or UUID": "type"}. */
static mica_status read_per_tensor(mica_export_rules *rules, const json_t *object, mica_error *error) {
    const char *key;
    json_t *value;
    mica_status status = json_is_object(object) ? MICA_OK : refuse(rules, error, "per_tensor", object, "an object");
    json_object_foreach((json_t *)object, key, value) {
        mica_export_rule *rule = status == MICA_OK ? add_rule(rules) : NULL;
        if (status == MICA_OK && !rule)
            status = no_memory(error);
        if (status != MICA_OK)
            break;
        snprintf(rule->label, sizeof rule->label, "per_tensor: %.48s", key);
        const char *name = name_of_uuid(rules, key);
        rule->name = name ? name : key;
        status = read_type(rules, rule->label, value, &rule->type, error);
    }
    return status;
}

/* ---- the file */

static mica_status read_scale_optimization(mica_export_rules *rules, const json_t *value, mica_error *error) {
    static const char *const words[] = {"trellis", "joint", "standard", "none"};
    for (size_t i = 0; json_is_string(value) && i < sizeof words / sizeof *words; i++)
        if (strcmp(json_string_value(value), words[i]) == 0) {
            rules->trellis = i == 0;
            return MICA_OK; /* the report says what became of it */
        }
    return refuse(rules, error, "scale_optimization", value, "trellis, joint, standard or none");
}

static mica_status read_text(const mica_export_rules *rules, const char *key, const json_t *value, const char **text, mica_error *error) {
    if (!json_is_string(value))
        return refuse(rules, error, key, value, "a string");
    *text = json_string_value(value);
    return MICA_OK;
}

static mica_status read_key(mica_export_rules *rules, const char *key, const json_t *value, bool top, mica_error *error);

static mica_status read_object(mica_export_rules *rules, const json_t *object, bool top, mica_error *error) {
    const char *key;
    json_t *value;
    mica_status status = MICA_OK;
    json_object_foreach((json_t *)object, key, value)
        if (status == MICA_OK)
            status = read_key(rules, key, value, top, error);
    return status;
}

static mica_status read_key(mica_export_rules *rules, const char *key, const json_t *value, bool top, mica_error *error) {
    if (strcmp(key, "type") == 0 || strcmp(key, "default_type") == 0)
        return read_text(rules, key, value, &rules->type, error);
    if (strcmp(key, "effort") == 0)
        return read_text(rules, key, value, &rules->effort, error);
    if (strcmp(key, "rules") == 0)
        return read_rules(rules, value, error);
    if (strcmp(key, "per_tensor") == 0)
        return read_per_tensor(rules, value, error);
    if (strcmp(key, "scale_optimization") == 0)
        return read_scale_optimization(rules, value, error);
    if (strcmp(key, "trellis_lambda") == 0)
        return json_is_number(value)
                   ? mica_export_rules_note(
                         rules, error,
                         "trellis_lambda: accepted and without effect: a penalty on steps between scales saves nothing in blocks of fixed width, "
                         "and any above 0 raises the error (docs/quantisers.md)")
                   : refuse(rules, error, key, value, "a number");
    if (strcmp(key, "note") == 0 || (top && strcmp(key, "tensor_map") == 0)) /* the latter names UUIDs; the tensors are the model's */
        return MICA_OK;
    if (top && strcmp(key, "quantization") == 0)
        return json_is_object(value) ? read_object(rules, value, false, error) : refuse(rules, error, key, value, "an object");
    if (top && strcmp(key, "target_format") == 0)
        return json_is_string(value) && strcmp(json_string_value(value), "gguf") == 0 ? MICA_OK
                                                                                      : refuse(rules, error, key, value, "\"gguf\"");
    if (top && strcmp(key, "shard_size") == 0)
        return mica_export_rules_note(rules, error, "shard_size: not taken from here: --split-size says it");
    if (top && strcmp(key, "special_token_keys") == 0)
        return mica_export_rules_note(rules, error, "special_token_keys: not needed: special tokens are the tokenizer's own");
    return refuse(rules, error, key, value,
                  "a key among type, effort, rules, default_type, per_tensor, scale_optimization, trellis_lambda, note");
}

mica_status mica_export_rules_load(const char *path, mica_export_rules *rules, mica_error *error) {
    *rules = (mica_export_rules){0};
    if (!path)
        return MICA_OK;
    rules->name = mica_strdup(path);
    mica_status status = rules->name ? mica_json_load(path, CONFIG_BYTES_MAX, &rules->tree, error) : no_memory(error);
    if (status == MICA_OK)
        status = read_object(rules, rules->tree, true, error);
    if (status != MICA_OK)
        mica_export_rules_release(rules);
    return status;
}

/* ---- matching */

static bool name_matches(const mica_export_rule *rule, const char *name) {
    if (rule->name && !mica_glob_matches(rule->name, name))
        return false;
    if (!rule->regex)
        return true;
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    const bool found = data && pcre2_match(rule->regex, (PCRE2_SPTR)name, strlen(name), 0, 0, data, NULL) >= 0;
    pcre2_match_data_free(data);
    return found;
}

/* Of matrix `index` of a tensor: an expert's, or the only one. By the tensor's name or the weight's. */
static bool rule_matches(const mica_export_rule *rule, const mica_export_tensor *tensor, uint64_t index, bool tensor_name) {
    const mica_weight *weight = tensor->weights ? tensor->weights[tensor->weight_count > 1 ? index : 0] : NULL;
    const bool projected = weight &&
                           (weight->role == MICA_ROLE_EXPERT || weight->role == MICA_ROLE_SHARED_EXPERT || weight->role == MICA_ROLE_DENSE);
    if (rule->layers.count > 0 && (tensor->layer < 0 || !in_ranges(&rule->layers, tensor->layer)))
        return false;
    if (rule->projection >= 0 && (!projected || (int)weight->projection != rule->projection))
        return false;
    if (rule->experts.count > 0 && (tensor->form != MICA_GGUF_EXPERTS || !in_ranges(&rule->experts, (int64_t)index)))
        return false;
    return tensor_name || (weight && name_matches(rule, weight->name));
}

static mica_export_rule *first_match(mica_export_rules *rules, const mica_export_tensor *tensor, const bool *by_name, uint64_t index) {
    for (uint64_t r = 0; r < rules->rule_count; r++)
        if (rule_matches(&rules->rules[r], tensor, index, by_name[r])) {
            rules->rules[r].matched = true;
            return &rules->rules[r];
        }
    return NULL;
}

mica_status mica_export_rules_choose(mica_export_rules *rules, const mica_export_tensor *tensor, mica_dtype otherwise, mica_dtype *types,
                                     mica_dtype *type, const char **reason, mica_error *error) {
    if (rules->rule_count == 0)
        return MICA_OK;
    bool *by_name = mica_calloc(rules->rule_count, sizeof *by_name);
    if (!by_name)
        return no_memory(error);
    for (uint64_t r = 0; r < rules->rule_count; r++)
        by_name[r] = name_matches(&rules->rules[r], tensor->name);
    const uint64_t count = tensor->form == MICA_GGUF_EXPERTS ? tensor->matrices : 1;
    const mica_export_rule *first = first_match(rules, tensor, by_name, 0);
    const mica_dtype chosen = first ? first->type : otherwise;
    const char *label = first ? first->label : NULL;
    mica_status status = MICA_OK;
    for (uint64_t i = 1; status == MICA_OK && i < count; i++) {
        const mica_export_rule *rule = first_match(rules, tensor, by_name, i);
        const mica_dtype other = rule ? rule->type : otherwise;
        label = label || !rule ? label : rule->label;
        if (types)
            types[i] = other;
        else if (other != chosen)
            status = mica_fail(
                error, MICA_BAD_INPUT,
                "%s: %s: expert 0 would be %s and expert %llu %s (%s): a GGUF tensor has one type for all of its experts (--compat mica writes groups of them)",
                rules->name, tensor->name, mica_dtype_name(chosen), (unsigned long long)i, mica_dtype_name(other),
                rule ? rule->label : first->label);
    }
    mica_free(by_name);
    if (types)
        types[0] = chosen;
    if (status == MICA_OK && label) {
        *type = chosen;
        *reason = label;
    }
    return status;
}

mica_status mica_export_rules_check_used(const mica_export_rules *rules, mica_error *error) {
    for (uint64_t r = 0; r < rules->rule_count; r++)
        if (!rules->rules[r].matched)
            return mica_fail(error, MICA_BAD_INPUT, "%s: %s matches no tensor whose type can be chosen, or none that an earlier rule left",
                             rules->name, rules->rules[r].label);
    return MICA_OK;
}
