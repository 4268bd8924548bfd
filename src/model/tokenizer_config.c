/* model/tokenizer_config.c: what stands beside a vocabulary: tokenizer_config.json (added tokens, roles, template), chat_template.jinja,
 * and what config.json and generation_config.json say of ids. All of them may be absent. Refuses values of the wrong kind, and roles
 * that are no token. Judged by tests/model/test_tokenizer.c. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "model/tokenizer_build.h"

#define SETTINGS_BYTES_MAX (UINT64_C(64) << 20)

static mica_status out_of_memory(const char *name, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", name);
}

/* ---- the files */

char *mica_token_file_path(const mica_token_files *files, const char *name) {
    return files->source ? mica_tensor_source_file_path(files->source, name) : mica_path_join(files->directory, name);
}

bool mica_token_file_exists(const mica_token_files *files, const char *name) {
    return files->source ? mica_tensor_source_has_file(files->source, name) : mica_directory_has(files->directory, name);
}

mica_status mica_token_file_load(const mica_token_files *files, const char *name, uint64_t limit, char **bytes, uint64_t *length,
                                 mica_error *error) {
    if (files->source)
        return mica_tensor_source_load(files->source, name, limit, bytes, length, error);
    char *path = mica_path_join(files->directory, name);
    mica_status status = path ? mica_file_load(path, limit, bytes, length, error) : out_of_memory(name, error);
    mica_free(path);
    return status;
}

/* *tree NULL: there is no such file. Numbers are doubles: model_max_length is beyond any integer. *path is for messages, the caller's. */
static mica_status load_tree(const mica_token_files *files, const char *name, char **path, json_t **tree, mica_error *error) {
    char *bytes = NULL;
    uint64_t length;
    *tree = NULL;
    *path = mica_token_file_path(files, name);
    if (!*path)
        return out_of_memory(name, error);
    if (!mica_token_file_exists(files, name))
        return MICA_OK;
    mica_status status = mica_token_file_load(files, name, SETTINGS_BYTES_MAX, &bytes, &length, error);
    if (status == MICA_OK)
        status = mica_json_parse_as_doubles(*path, bytes, length, tree, error);
    mica_free(bytes);
    return status;
}

mica_status mica_token_refuse(const char *name, const char *key, const json_t *value, const char *expected, mica_error *error) {
    char shown[128];
    return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected %s, got %s", name, key, expected, mica_json_show(value, shown, sizeof shown));
}

/* ---- tokenizer_config.json */

/* A token's text: a string, or an object with it as "content". Empty is absent. */
static mica_status read_token_text(const mica_token_settings *settings, const char *key, const char **text, mica_error *error) {
    const json_t *value = json_object_get(settings->tree, key);
    const json_t *content = json_is_object(value) ? json_object_get(value, "content") : value;
    *text = NULL;
    if (mica_token_is_absent(value))
        return MICA_OK;
    if (!json_is_string(content))
        return mica_token_refuse(settings->name, key, value, "a token's text", error);
    *text = json_string_length(content) > 0 ? json_string_value(content) : NULL;
    return MICA_OK;
}

static mica_status read_flag(const mica_token_settings *settings, const char *key, int *flag, mica_error *error) {
    const json_t *value = json_object_get(settings->tree, key);
    *flag = mica_token_is_absent(value) ? -1 : json_is_true(value);
    return mica_token_is_absent(value) || json_is_boolean(value) ? MICA_OK
                                                                 : mica_token_refuse(settings->name, key, value, "true or false", error);
}

static bool parse_id(const char *text, uint32_t *id) {
    uint64_t value = 0;
    for (const char *at = text; *at; at++) {
        if (*at < '0' || *at > '9' || value >= MICA_TOKENS_MAX)
            return false;
        value = value * 10 + (uint64_t)(*at - '0');
    }
    *id = (uint32_t)value;
    return *text && value < MICA_TOKENS_MAX;
}

static mica_status read_added(mica_token_settings *settings, mica_error *error) {
    json_t *decoder = json_object_get(settings->tree, "added_tokens_decoder"), *value;
    const char *key;
    if (mica_token_is_absent(decoder))
        return MICA_OK;
    if (!json_is_object(decoder))
        return mica_token_refuse(settings->name, "added_tokens_decoder", decoder, "an object of ids", error);
    settings->added = mica_calloc(json_object_size(decoder) + 1, sizeof *settings->added);
    if (!settings->added)
        return out_of_memory(settings->name, error);
    json_object_foreach(decoder, key, value) {
        mica_added_token *added = &settings->added[settings->added_count++];
        const json_t *content = json_object_get(value, "content"), *special = json_object_get(value, "special");
        if (!parse_id(key, &added->id))
            return mica_fail(error, MICA_BAD_INPUT, "%s: added_tokens_decoder: expected ids, got \"%.60s\"", settings->name, key);
        if (!json_is_string(content) || json_string_length(content) == 0 || (special && !json_is_boolean(special)))
            return mica_token_refuse(settings->name, "added_tokens_decoder", value, "a token with its content", error);
        added->text = json_string_value(content);
        added->special = json_is_true(special);
    }
    return MICA_OK;
}

/* A text, or a list of named ones of which "default" counts. */
static mica_status read_template(mica_token_settings *settings, mica_error *error) {
    const json_t *value = json_object_get(settings->tree, "chat_template"), *row;
    size_t i;
    if (mica_token_is_absent(value))
        return MICA_OK;
    if (json_is_array(value)) {
        const json_t *found = NULL;
        json_array_foreach(value, i, row) {
            const char *name = json_string_value(json_object_get(row, "name"));
            if (name && strcmp(name, "default") == 0)
                found = json_object_get(row, "template");
        }
        if (!found)
            return MICA_OK;
        value = found;
    }
    if (!json_is_string(value))
        return mica_token_refuse(settings->name, "chat_template", value, "a text", error);
    settings->chat_template = mica_strdup(json_string_value(value));
    return settings->chat_template ? MICA_OK : out_of_memory(settings->name, error);
}

static mica_status read_tokenizer_config(mica_token_settings *settings, mica_error *error) {
    mica_status status = read_added(settings, error);
    if (status == MICA_OK)
        status = read_token_text(settings, "bos_token", &settings->bos, error);
    if (status == MICA_OK)
        status = read_token_text(settings, "eos_token", &settings->eos, error);
    if (status == MICA_OK)
        status = read_token_text(settings, "unk_token", &settings->unknown, error);
    if (status == MICA_OK)
        status = read_token_text(settings, "pad_token", &settings->padding, error);
    if (status == MICA_OK)
        status = read_flag(settings, "add_bos_token", &settings->add_bos, error);
    if (status == MICA_OK)
        status = read_flag(settings, "add_eos_token", &settings->add_eos, error);
    return status == MICA_OK ? read_template(settings, error) : status;
}

/* ---- config.json, generation_config.json */

static bool is_id(const json_t *value) {
    double number = json_real_value(value);
    return json_is_real(value) && number >= 0 && number < MICA_TOKENS_MAX && number == floor(number);
}

/* One id, or a list of them; -1 and null are none. */
static mica_status read_ids(const char *name, const json_t *object, const char *key, uint32_t *ids, uint32_t *count, mica_error *error) {
    const json_t *value = json_object_get(object, key);
    size_t length = json_is_array(value) ? json_array_size(value) : 1;
    *count = 0;
    if (mica_token_is_absent(value) || (json_is_real(value) && json_real_value(value) == -1))
        return MICA_OK;
    for (size_t i = 0; i < length; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!is_id(id) || *count == MICA_TOKEN_ENDS_MAX)
            return mica_token_refuse(name, key, value, "the id of a token, or a list of at most 16", error);
        ids[(*count)++] = (uint32_t)json_real_value(id);
    }
    return MICA_OK;
}

static mica_status read_config(const char *name, const json_t *tree, mica_token_settings *settings, mica_error *error) {
    const json_t *inner = json_object_get(tree, "text_config"), *object = tree;
    if (json_is_object(inner) && !json_object_get(tree, "vocab_size"))
        object = inner;
    const json_t *size = json_object_get(object, "vocab_size");
    uint32_t bos[MICA_TOKEN_ENDS_MAX], bos_count;
    if (!mica_token_is_absent(size) && (!is_id(size) || json_real_value(size) == 0))
        return mica_token_refuse(name, "vocab_size", size, "a number from 1 to 16777215", error);
    settings->vocab_size = (uint64_t)json_real_value(size);
    mica_status status = read_ids(name, object, "bos_token_id", bos, &bos_count, error);
    settings->bos_id = status == MICA_OK && bos_count > 0 ? bos[0] : MICA_TOKEN_NONE;
    return status == MICA_OK ? read_ids(name, object, "eos_token_id", settings->eos_ids, &settings->eos_id_count, error) : status;
}

/* A file of which only a few keys count; absent is fine. */
static mica_status read_other(const mica_token_files *files, const char *file, mica_token_settings *settings, mica_error *error) {
    json_t *tree;
    char *path;
    mica_status status = load_tree(files, file, &path, &tree, error);
    if (status == MICA_OK && tree) {
        if (strcmp(file, "config.json") == 0)
            status = read_config(path, tree, settings, error);
        else
            status = read_ids(path, tree, "eos_token_id", settings->reply_ends, &settings->reply_end_count, error);
    }
    json_decref(tree);
    mica_free(path);
    return status;
}

static mica_status read_template_file(const mica_token_files *files, mica_token_settings *settings, mica_error *error) {
    static const char file[] = "chat_template.jinja";
    uint64_t length;
    if (!mica_token_file_exists(files, file))
        return MICA_OK;
    mica_free(settings->chat_template);
    settings->chat_template = NULL;
    return mica_token_file_load(files, file, SETTINGS_BYTES_MAX, &settings->chat_template, &length, error);
}

mica_status mica_token_settings_load(const mica_token_files *files, mica_token_settings *settings, mica_error *error) {
    *settings = (mica_token_settings){.add_bos = -1, .add_eos = -1, .bos_id = MICA_TOKEN_NONE};
    mica_status status = load_tree(files, "tokenizer_config.json", &settings->name, &settings->tree, error);
    if (status == MICA_OK && settings->tree)
        status = read_tokenizer_config(settings, error);
    if (status == MICA_OK)
        status = read_template_file(files, settings, error);
    if (status == MICA_OK)
        status = read_other(files, "config.json", settings, error);
    if (status == MICA_OK)
        status = read_other(files, "generation_config.json", settings, error);
    if (status != MICA_OK)
        mica_token_settings_release(settings);
    return status;
}

void mica_token_settings_release(mica_token_settings *settings) {
    json_decref(settings->tree);
    mica_free(settings->name);
    mica_free(settings->added);
    mica_free(settings->chat_template);
    *settings = (mica_token_settings){0};
}

/* ---- to the tokenizer */

static mica_status find_role(const mica_token_settings *settings, const mica_tokenizer *tokenizer, const char *key, const char *text,
                             uint32_t *id, mica_error *error) {
    if (!text)
        return MICA_OK;
    *id = mica_tokenizer_special(tokenizer, text);
    if (*id == MICA_TOKEN_NONE)
        *id = mica_bytes_table_find(&tokenizer->normal, tokenizer->names.bytes, tokenizer->spans, text, strlen(text));
    if (*id == MICA_TOKEN_NONE)
        return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected a token of the vocabulary, got \"%.100s\"", settings->name, key, text);
    return MICA_OK;
}

static mica_status check_ids(const mica_tokenizer *tokenizer, const char *file, const uint32_t *ids, uint32_t count, mica_error *error) {
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] >= tokenizer->count) {
            return mica_fail(error, MICA_BAD_INPUT, "%s: expected ids below the vocabulary's size, %" PRIu32 ", got %" PRIu32 " in %s",
                             tokenizer->name, tokenizer->count, ids[i], file);
        }
    }
    return MICA_OK;
}

static mica_status check_all_ids(const mica_token_settings *settings, const mica_tokenizer *tokenizer, mica_error *error) {
    mica_status status = check_ids(tokenizer, "config.json", &settings->bos_id, settings->bos_id != MICA_TOKEN_NONE, error);
    if (status == MICA_OK)
        status = check_ids(tokenizer, "config.json", settings->eos_ids, settings->eos_id_count, error);
    if (status == MICA_OK)
        status = check_ids(tokenizer, "generation_config.json", settings->reply_ends, settings->reply_end_count, error);
    return status;
}

mica_status mica_token_settings_apply(mica_token_settings *settings, mica_tokenizer *tokenizer, mica_error *error) {
    mica_token_roles *roles = &tokenizer->roles;
    mica_status status = check_all_ids(settings, tokenizer, error);
    if (status == MICA_OK)
        status = find_role(settings, tokenizer, "bos_token", settings->bos, &roles->bos, error);
    if (status == MICA_OK)
        status = find_role(settings, tokenizer, "eos_token", settings->eos, &roles->eos, error);
    if (status == MICA_OK)
        status = find_role(settings, tokenizer, "unk_token", settings->unknown, &roles->unknown, error);
    if (status == MICA_OK)
        status = find_role(settings, tokenizer, "pad_token", settings->padding, &roles->padding, error);
    if (status != MICA_OK)
        return status;
    if (roles->bos == MICA_TOKEN_NONE)
        roles->bos = settings->bos_id;
    if (roles->eos == MICA_TOKEN_NONE && settings->eos_id_count > 0)
        roles->eos = settings->eos_ids[0];
    if (settings->add_bos >= 0)
        roles->add_bos = settings->add_bos && roles->bos != MICA_TOKEN_NONE;
    if (settings->add_eos >= 0)
        roles->add_eos = settings->add_eos && roles->eos != MICA_TOKEN_NONE;
    mica_tokenizer_add_end(tokenizer, roles->eos);
    for (uint32_t i = 0; i < settings->eos_id_count; i++)
        mica_tokenizer_add_end(tokenizer, settings->eos_ids[i]);
    for (uint32_t i = 0; i < settings->reply_end_count; i++)
        mica_tokenizer_add_end(tokenizer, settings->reply_ends[i]);
    tokenizer->chat_template = settings->chat_template;
    settings->chat_template = NULL;
    return MICA_OK;
}
