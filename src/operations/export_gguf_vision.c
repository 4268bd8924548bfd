/* operations/export_gguf_vision.c: the keys of a vision file (general.architecture clip): Kimi-VL's tower and Kimi-K2.5's, as llama.cpp's
 * clip asks for them, from vision_config and preprocessor_config.json. Refuses configurations that lack what clip needs.
 * Judged by tests/interop/export_gguf.py. */
#include <string.h>

#include "base/memory.h"
#include "operations/export_gguf.h"

#define POSITIONS 64 /* of a side of the table of positions, where the configuration does not say */

/* Keys of vision_config by the model's type. */
typedef struct vision_tower {
    const char *model_type, *projector;
    const char *patch, *hidden, *feed_forward, *heads;
    bool says_more; /* positions, projector and limits of images are in the configuration */
} vision_tower;
static const vision_tower towers[] = {
    {"kimi_vl", "kimivl", "patch_size", "hidden_size", "intermediate_size", "num_attention_heads", false},
    {"kimi_k25", "kimik25", "patch_size", "vt_hidden_size", "vt_intermediate_size", "vt_num_attention_heads", true},
};

static const vision_tower *tower_of(const mica_model *model) {
    for (size_t i = 0; i < sizeof towers / sizeof *towers; i++)
        if (strcmp(towers[i].model_type, model->config.model_type) == 0)
            return &towers[i];
    return &towers[0];
}

static mica_status load_config(const mica_model *model, json_t **config, mica_error *error) {
    char *bytes = NULL;
    uint64_t length = 0;
    mica_status status = mica_tensor_source_load(model->source, MICA_CONFIG_NAME, MICA_CONFIG_BYTES_MAX, &bytes, &length, error);
    if (status == MICA_OK)
        status = mica_json_parse(MICA_CONFIG_NAME, bytes, length, config, error);
    mica_free(bytes);
    return status;
}

static mica_status read_number(const mica_model *model, const json_t *vision, const char *key, uint32_t *number, mica_error *error) {
    const json_t *value = json_object_get(vision, key);
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > UINT16_MAX)
        return mica_fail(error, MICA_BAD_INPUT, "%s: config.json: vision_config.%s: expected 1 to 65535, got %s", model->source->path, key,
                         value ? "something else" : "none");
    *number = (uint32_t)json_integer_value(value);
    return MICA_OK;
}

static mica_status read_number_or(const mica_model *model, const json_t *vision, const char *key, uint32_t absent, uint32_t *number,
                                  mica_error *error) {
    *number = absent;
    return json_object_get(vision, key) ? read_number(model, vision, key, number, error) : MICA_OK;
}

mica_status mica_export_vision_heads(const mica_model *model, uint64_t *heads, mica_error *error) {
    json_t *config = NULL;
    uint32_t number = 0;
    mica_status status = load_config(model, &config, error);
    if (status == MICA_OK)
        status = read_number(model, json_object_get(config, "vision_config"), tower_of(model)->heads, &number, error);
    *heads = number;
    json_decref(config);
    return status;
}

/* NULL: there is none, or it is not JSON (then the defaults are taken). */
static json_t *load_preprocessor(const mica_model *model) {
    static const char name[] = "preprocessor_config.json";
    char *bytes = NULL;
    uint64_t length = 0;
    json_t *object = NULL;
    if (mica_tensor_source_has_file(model->source, name) &&
        mica_tensor_source_load(model->source, name, MICA_CONFIG_BYTES_MAX, &bytes, &length, NULL) == MICA_OK &&
        mica_json_parse(name, bytes, length, &object, NULL) != MICA_OK)
        object = NULL;
    mica_free(bytes);
    return object;
}

/* K2.5 has its numbers one level down. */
static const json_t *preprocessor_value(const json_t *object, const char *key) {
    const json_t *value = json_object_get(json_object_get(object, "media_proc_cfg"), key);
    return value ? value : json_object_get(object, key);
}

/* Means and deviations; Kimi's where they are not said. */
static void put_image_statistics(const json_t *preprocessor, mica_gguf_metadata *out) {
    static const char *const keys[2][2] = {{"image_mean", "clip.vision.image_mean"}, {"image_std", "clip.vision.image_std"}};
    for (int i = 0; i < 2; i++) {
        float values[3] = {0.5f, 0.5f, 0.5f};
        const json_t *array = preprocessor_value(preprocessor, keys[i][0]);
        for (size_t c = 0; json_array_size(array) == 3 && c < 3; c++)
            values[c] = (float)json_number_value(json_array_get(array, c));
        mica_gguf_add_array(out, keys[i][1], MICA_GGUF_FLOAT32, values, 3);
    }
}

static mica_status put_sizes(const mica_export_plan *plan, const vision_tower *tower, const json_t *vision, mica_gguf_metadata *out,
                             uint32_t *patch, mica_error *error) {
    const struct {
        const char *key, *name;
    } rows[] = {{tower->patch, "clip.vision.patch_size"},
                {tower->hidden, "clip.vision.embedding_length"},
                {tower->feed_forward, "clip.vision.feed_forward_length"},
                {tower->heads, "clip.vision.attention.head_count"}};
    mica_status status = MICA_OK;
    for (size_t i = 0; status == MICA_OK && i < sizeof rows / sizeof *rows; i++) {
        uint32_t number = 0;
        status = read_number(plan->model, vision, rows[i].key, &number, error);
        mica_gguf_add_u32(out, rows[i].name, number);
        *patch = i == 0 ? number : *patch;
    }
    return status;
}

/* What K2.5's configuration says of positions and of how large images may be. */
static mica_status put_limits(const mica_export_plan *plan, const json_t *vision, const json_t *preprocessor, uint32_t patch,
                              mica_gguf_metadata *out, mica_error *error) {
    static const struct {
        const char *key, *name;
        uint32_t absent;
    } rows[] = {{"init_pos_emb_height", "vision.pos_emb_height", POSITIONS},
                {"init_pos_emb_width", "vision.pos_emb_width", POSITIONS},
                {"init_pos_emb_time", "vision.pos_emb_time", 4}};
    const json_t *limit = preprocessor_value(preprocessor, "in_patch_limit");
    const uint64_t patches = json_is_integer(limit) && json_integer_value(limit) > 0 && json_integer_value(limit) < 1 << 20
                                 ? (uint64_t)json_integer_value(limit)
                                 : 16384;
    mica_status status = MICA_OK;
    for (size_t i = 0; status == MICA_OK && i < sizeof rows / sizeof *rows; i++) {
        uint32_t number = 0;
        status = read_number_or(plan->model, vision, rows[i].key, rows[i].absent, &number, error);
        mica_gguf_add_u32(out, rows[i].name, number);
    }
    if (status == MICA_OK && (patch > 1024 || patches * patch * patch > UINT32_MAX))
        return mica_fail(error, MICA_BAD_INPUT,
                         "%s: config.json: vision_config.patch_size: expected patches of at most 1024 pixels a side, got %u",
                         plan->model->source->path, patch);
    mica_gguf_add_u32(out, "clip.vision.image_min_pixels", 8 * patch * patch);
    mica_gguf_add_u32(out, "clip.vision.image_max_pixels", (uint32_t)(patches * patch * patch));
    return status;
}

static mica_status put_projector(const mica_export_plan *plan, const vision_tower *tower, const json_t *vision, mica_gguf_metadata *out,
                                 mica_error *error) {
    const json_t *activation = json_object_get(vision, "projector_hidden_act"), *epsilon = json_object_get(vision, "projector_ln_eps");
    const json_t *merge = json_object_get(vision, "merge_kernel_size");
    const json_int_t side = json_array_size(merge) > 0 ? json_integer_value(json_array_get(merge, 0)) : 2;
    const bool more = tower->says_more;
    if (more && (side < 1 || side > 16))
        return mica_fail(error, MICA_BAD_INPUT, "%s: config.json: vision_config.merge_kernel_size: expected 1 to 16, got something else",
                         plan->model->source->path);
    mica_gguf_add_bool(out, "clip.use_gelu", !more || !json_is_string(activation) || strcmp(json_string_value(activation), "gelu") == 0);
    mica_gguf_add_u32(out, "clip.vision.projector.scale_factor", more ? (uint32_t)side : 2);
    mica_gguf_add_f32(out, "clip.vision.attention.layer_norm_epsilon",
                      more && json_is_number(epsilon) ? (float)json_number_value(epsilon) : 1e-5f);
    return MICA_OK;
}

mica_status mica_export_vision_metadata(const mica_export_plan *plan, mica_gguf_metadata *out, mica_error *error) {
    const vision_tower *tower = tower_of(plan->model);
    json_t *config = NULL, *preprocessor = load_preprocessor(plan->model);
    uint32_t patch = 0, side = POSITIONS;
    mica_status status = load_config(plan->model, &config, error);
    const json_t *vision = json_object_get(config, "vision_config");
    mica_gguf_add_bool(out, "clip.has_vision_encoder", true);
    mica_gguf_add_string(out, "clip.projector_type", tower->projector);
    mica_gguf_add_u32(out, "clip.vision.projection_dim", (uint32_t)plan->model->config.hidden_size);
    mica_gguf_add_u32(out, "clip.vision.block_count", (uint32_t)plan->vision_blocks);
    if (status == MICA_OK)
        status = put_projector(plan, tower, vision, out, error);
    if (status == MICA_OK)
        status = put_sizes(plan, tower, vision, out, &patch, error);
    if (status == MICA_OK && tower->says_more)
        status = read_number_or(plan->model, vision, "init_pos_emb_height", POSITIONS, &side, error);
    /* the table of positions as a square of patches, as llama.cpp's converter has it */
    mica_gguf_add_u32(out, "clip.vision.image_size", side * patch);
    if (status == MICA_OK && tower->says_more)
        status = put_limits(plan, vision, preprocessor, patch, out, error);
    put_image_statistics(preprocessor, out);
    json_decref(config);
    json_decref(preprocessor);
    return status;
}
