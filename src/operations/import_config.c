/* operations/import_config.c: see the header. Refuses whatever it does not understand: a key that is passed over is a wish that is not
 * granted.
 * Judged by tests/operations/test_import_config.c and tests/fuzz/fuzz_import_config.c. */
#include "operations/import_config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "base/uuid.h"
#include "formats/json_cursor.h"

#define NAME_BYTES_MAX 1024u
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* What describes an architecture in config.json: sizes, mixture of experts, routing, latent and compressed attention, rope, how weights are
 * stored. Keys that are not there are not in `metadata` either. */
static const char *const metadata_keys[] = {
    "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias", "tie_word_embeddings", "max_position_embeddings",
    "torch_dtype", "dtype",
    /* mixture of experts and routing */
    "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace", "moe_layer_freq",
    "n_group", "topk_group", "topk_method", "scoring_func", "norm_topk_prob", "routed_scaling_factor", "num_hash_layers", "swiglu_limit",
    "expert_dtype", "num_nextn_predict_layers", "ep_size", "aux_loss_alpha", "seq_aux",
    /* attention: latent, compressed, sparse */
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "o_groups", "o_lora_rank", "index_n_heads",
    "index_head_dim", "index_topk", "compress_ratios", "sliding_window", "layer_types", "hc_mult", "hc_sinkhorn_iters", "hc_eps",
    /* rope */
    "rope_theta", "rope_scaling", "rope_parameters", "rope_interleave", "compress_rope_theta", "partial_rotary_factor",
    /* tokens, other parts, storage */
    "bos_token_id", "eos_token_id", "pad_token_id", "media_placeholder_token_id", "vision_config", "quantization_config",
};

/* GMAT's names for some of them. */
static const struct {
    const char *name, *key;
} gmat_keys[] = {{"architecture", "model_type"}, {"num_layers", "num_hidden_layers"}};

/* source_format, and the kinds of sources that are of it; any of them may have gone into a store since. */
static const struct {
    const char *name, *kind;
} formats[] = {{"safetensors", "safetensors"}, {"gguf", "GGUF"}, {"store", "store"}};

static mica_status no_memory(const mica_tensor_source *source, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its list of tensors", source->path);
}

/* ---- the map */

mica_status mica_import_map_init(const mica_tensor_source *source, const char *include, const char *exclude, mica_import_map *map,
                                 mica_error *error) {
    *map = (mica_import_map){.included = mica_calloc(source->tensor_count + 1, sizeof *map->included),
                             .names = mica_calloc(source->tensor_count + 1, sizeof *map->names),
                             .aliases = mica_calloc(source->tensor_count + 1, sizeof *map->aliases),
                             .texts = mica_calloc(source->tensor_count + 1, sizeof *map->texts)};
    if (!map->included || !map->names || !map->aliases || !map->texts) {
        mica_import_map_release(map);
        return no_memory(source, error);
    }
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        const char *name = source->tensors[i].name;
        map->names[i] = name;
        map->included[i] = (!include || mica_glob_matches(include, name)) && !(exclude && mica_glob_matches(exclude, name));
    }
    return MICA_OK;
}

void mica_import_map_release(mica_import_map *map) {
    for (uint64_t i = 0; i < map->text_count; i++)
        mica_free(map->texts[i]);
    mica_free(map->texts);
    mica_free(map->included);
    mica_free(map->names);
    mica_free(map->aliases);
    *map = (mica_import_map){0};
}

/* ---- reading: keys */

typedef struct reader {
    const char *name; /* of the configuration, in messages */
    const mica_tensor_source *source;
    const json_t *config;
    mica_import_map *map;
    bool *listed; /* [tensor_count]: a row names it */
    mica_error *error;
} reader;

static mica_status refuse(const reader *in, const char *where, const char *expected, const json_t *got) {
    char shown[224];
    return mica_fail(in->error, MICA_BAD_INPUT, "%s: %s: expected %s, got %s", in->name, where, expected,
                     got ? mica_json_show(got, shown, sizeof shown) : "absent");
}

static mica_status check_keys(const reader *in, const char *where, const json_t *object, const char *const *known, size_t count) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        bool found = false;
        for (size_t i = 0; i < count; i++)
            found = found || strcmp(known[i], key) == 0;
        if (!found) {
            char shown[MICA_NAME_SHOW_BYTES];
            return mica_fail(in->error, MICA_BAD_INPUT, "%s: %sunknown key %s", in->name, where, mica_name_show(key, shown));
        }
    }
    return MICA_OK;
}

/* ---- metadata: what config.json says, and nothing against it */

/* The object that describes the language model, and the outer one for what is only there. */
static const json_t *config_value(const json_t *config, const char *key) {
    const json_t *value = json_object_get(json_object_get(config, "text_config"), key);
    const bool outer = !value || json_is_null(value) || strcmp(key, "model_type") == 0;
    return outer && json_object_get(config, key) ? json_object_get(config, key) : value;
}

static bool same_value(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b))
        return json_number_value(a) == json_number_value(b);
    return json_equal(a, b);
}

/* The key of config.json that a key of metadata means; NULL: none. */
static const char *config_key(const char *name) {
    for (size_t i = 0; i < COUNT(gmat_keys); i++)
        if (strcmp(gmat_keys[i].name, name) == 0)
            return gmat_keys[i].key;
    for (size_t i = 0; i < COUNT(metadata_keys); i++)
        if (strcmp(metadata_keys[i], name) == 0)
            return name;
    return NULL;
}

static mica_status read_metadata(const reader *in, const json_t *metadata) {
    const char *name;
    json_t *value;
    if (!metadata)
        return MICA_OK;
    if (!json_is_object(metadata))
        return refuse(in, "metadata", "an object", metadata);
    json_object_foreach((json_t *)metadata, name, value) {
        char where[MICA_NAME_SHOW_BYTES + 16], shown[MICA_NAME_SHOW_BYTES], expected[256], got[208];
        const char *key = config_key(name);
        if (!key)
            return mica_fail(in->error, MICA_BAD_INPUT, "%s: metadata: unknown key %s", in->name, mica_name_show(name, shown));
        const json_t *truth = config_value(in->config, key);
        if (json_is_null(value) || (truth && same_value(value, truth)))
            continue;
        snprintf(where, sizeof where, "metadata.%s", name);
        snprintf(expected, sizeof expected, "%s (the checkpoint's config.json, which is kept as it is)",
                 truth ? mica_json_show(truth, got, sizeof got) : "absent");
        return refuse(in, where, expected, value);
    }
    return MICA_OK;
}

/* ---- the rows */

static mica_status keep_text(const reader *in, const char *text, const char **kept) {
    char *copy = mica_strdup(text);
    if (!copy)
        return no_memory(in->source, in->error);
    in->map->texts[in->map->text_count++] = copy;
    *kept = copy;
    return MICA_OK;
}

static bool is_name(const char *text) {
    size_t length = 0;
    while ((unsigned char)text[length] >= 0x20 && text[length] != 0x7f)
        length++;
    return text[length] == '\0' && length > 0 && length <= NAME_BYTES_MAX;
}

/* A UUID is an alias of the content's own; anything else is the name in the store. */
static mica_status read_target(const reader *in, const char *where, const json_t *target, uint64_t index) {
    uint8_t uuid[MICA_UUID_BYTES];
    char text[MICA_UUID_TEXT_BYTES];
    if (!target)
        return MICA_OK;
    const char *name = json_string_value(target);
    if (!name || !is_name(name))
        return refuse(in, where, "a name or a UUID", target);
    if (mica_uuid_parse(name, uuid)) {
        mica_uuid_show(uuid, text);
        return keep_text(in, text, &in->map->aliases[index]);
    }
    return strcmp(name, in->source->tensors[index].name) == 0 ? MICA_OK : keep_text(in, name, &in->map->names[index]);
}

static mica_status read_row(const reader *in, size_t number, const json_t *row) {
    static const char *const keys[] = {"source", "target", "include"};
    char where[64];
    snprintf(where, sizeof where, "tensor_map[%zu]", number);
    if (!json_is_object(row))
        return refuse(in, where, "an object with source, target and include", row);
    snprintf(where, sizeof where, "tensor_map[%zu]: ", number);
    mica_status status = check_keys(in, where, row, keys, COUNT(keys));
    if (status != MICA_OK)
        return status;
    const json_t *name = json_object_get(row, "source"), *include = json_object_get(row, "include");
    snprintf(where, sizeof where, "tensor_map[%zu].source", number);
    if (!json_is_string(name))
        return refuse(in, where, "a tensor's name", name);
    const mica_tensor *tensor = mica_tensor_source_find(in->source, json_string_value(name));
    if (!tensor)
        return refuse(in, where, "a tensor of the checkpoint", name);
    const uint64_t index = (uint64_t)(tensor - in->source->tensors);
    if (in->listed[index])
        return refuse(in, where, "each tensor once", name);
    in->listed[index] = true;
    snprintf(where, sizeof where, "tensor_map[%zu].include", number);
    if (include && !json_is_boolean(include))
        return refuse(in, where, "true or false", include);
    if (json_is_false(include))
        in->map->included[index] = false;
    if (!in->map->included[index])
        return MICA_OK;
    snprintf(where, sizeof where, "tensor_map[%zu].target", number);
    return read_target(in, where, json_object_get(row, "target"), index);
}

static mica_status read_rows(const reader *in, const json_t *rows) {
    if (!json_is_array(rows))
        return refuse(in, "tensor_map", "an array", rows);
    mica_status status = MICA_OK;
    for (size_t i = 0; status == MICA_OK && i < json_array_size(rows); i++)
        status = read_row(in, i, json_array_get(rows, i));
    for (uint64_t i = 0; status == MICA_OK && i < in->source->tensor_count; i++)
        in->map->included[i] = in->map->included[i] && in->listed[i];
    return status;
}

/* ---- no two tensors of one name, no two of one alias */

typedef struct target {
    const char *text, *source;
} target;

static int compare_targets(const void *a, const void *b) {
    const int order = strcmp(((const target *)a)->text, ((const target *)b)->text);
    return order ? order : strcmp(((const target *)a)->source, ((const target *)b)->source);
}

static mica_status check_unique(const reader *in, const char *const *texts, const char *what) {
    const uint64_t tensor_count = in->source->tensor_count;
    target *targets = mica_calloc(tensor_count + 1, sizeof *targets);
    uint64_t count = 0;
    if (!targets)
        return no_memory(in->source, in->error);
    for (uint64_t i = 0; i < tensor_count; i++)
        if (in->map->included[i] && texts[i])
            targets[count++] = (target){texts[i], in->source->tensors[i].name};
    qsort(targets, count, sizeof *targets, compare_targets);
    mica_status status = MICA_OK;
    for (uint64_t i = 1; status == MICA_OK && i < count; i++) {
        if (strcmp(targets[i - 1].text, targets[i].text) != 0)
            continue;
        char shown[3][MICA_NAME_SHOW_BYTES];
        status = mica_fail(in->error, MICA_BAD_INPUT, "%s: tensor_map: target %s: expected %s, got it for %s and %s", in->name,
                           mica_name_show(targets[i].text, shown[0]), what, mica_name_show(targets[i - 1].source, shown[1]),
                           mica_name_show(targets[i].source, shown[2]));
    }
    mica_free(targets);
    return status;
}

/* ---- the whole */

static const char *format_of(const mica_tensor_source *source) {
    for (size_t i = 0; i < COUNT(formats); i++)
        if (strstr(source->kind->name, formats[i].kind))
            return formats[i].name;
    return source->kind->name;
}

static mica_status read_format(const reader *in, const json_t *format) {
    const char *text = json_string_value(format), *is = format_of(in->source);
    char expected[64];
    bool known = false;
    for (size_t i = 0; text && i < COUNT(formats); i++)
        known = known || strcmp(text, formats[i].name) == 0;
    if (known && (strcmp(text, is) == 0 || strcmp(is, "store") == 0))
        return MICA_OK;
    snprintf(expected, sizeof expected, "\"%s\"", is);
    return refuse(in, "source_format", expected, format);
}

static mica_status read_configuration(const reader *in, const json_t *object) {
    static const char *const keys[] = {"source_format", "tensor_map", "metadata", "block_format"};
    const json_t *block = json_object_get(object, "block_format");
    if (block)
        return refuse(
            in, "block_format",
            "absent (GMAT's blocks keep a logarithm of 4 to 8 bits above the smallest weight and cut off the largest; a store keeps "
            "every byte)",
            block);
    mica_status status = check_keys(in, "", object, keys, COUNT(keys));
    if (status == MICA_OK)
        status = read_format(in, json_object_get(object, "source_format"));
    if (status == MICA_OK)
        status = read_metadata(in, json_object_get(object, "metadata"));
    if (status == MICA_OK)
        status = read_rows(in, json_object_get(object, "tensor_map"));
    if (status == MICA_OK)
        status = check_unique(in, in->map->names, "one tensor of that name");
    return status == MICA_OK ? check_unique(in, in->map->aliases, "a UUID for one tensor") : status;
}

mica_status mica_import_config_apply(const char *name, const char *json, uint64_t length, const mica_tensor_source *source,
                                     const json_t *config, mica_import_map *map, mica_error *error) {
    json_t *object = NULL;
    mica_status status = mica_json_parse(name, json, length, &object, error);
    if (status != MICA_OK)
        return status;
    bool *listed = mica_calloc(source->tensor_count + 1, sizeof *listed);
    const reader in = {name, source, config, map, listed, error};
    status = listed ? read_configuration(&in, object) : no_memory(source, error);
    mica_free(listed);
    json_decref(object);
    return status;
}

/* ---- writing */

static void write_metadata(mica_json_writer *writer, const json_t *config) {
    const json_t *type = config_value(config, "model_type");
    mica_json_open_object(writer, "metadata");
    if (type)
        mica_json_value(writer, "architecture", type);
    for (size_t i = 0; i < COUNT(metadata_keys); i++) {
        const json_t *value = config_value(config, metadata_keys[i]);
        if (value)
            mica_json_value(writer, metadata_keys[i], value);
    }
    mica_json_close_object(writer);
}

mica_status mica_import_config_write(const mica_tensor_source *source, const json_t *config, const mica_import_map *map, char **json,
                                     uint64_t *length, mica_error *error) {
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "source_format", format_of(source));
    write_metadata(&writer, config);
    mica_json_open_array(&writer, "tensor_map");
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        mica_json_open_line(&writer, NULL);
        mica_json_string(&writer, "source", source->tensors[i].name);
        mica_json_string(&writer, "target", map->names[i]);
        mica_json_bool(&writer, "include", map->included[i]);
        mica_json_close_object(&writer);
    }
    mica_json_close_array(&writer);
    mica_json_close_object(&writer);
    *json = mica_json_finish(&writer, length);
    return *json ? MICA_OK : no_memory(source, error);
}
