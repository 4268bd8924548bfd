/* Import configurations: what is generated imports all under its own name; an edited one excludes, renames, gives UUIDs; every mistake is
 * told; GMAT's form is read, its lossy blocks are refused. */
#include "base/no_memory.h"
#include "operations/import_config.h"

#include <mica/store.h>

#include "formats/json_cursor.h"
#include "operations/vindex_helpers.h"

static mica_error error;

static mica_tensor tensors[] = {{.name = "a.weight", .bytes = 4}, {.name = "b.bias", .bytes = 4}, {.name = "b.weight", .bytes = 4},
                                {.name = "c.weight", .bytes = 4}};
static const mica_source_kind kind = {.name = "safetensors directory"}, gguf = {.name = "GGUF file"}, stored = {.name = "model of a store"};
static mica_tensor_source source = {.kind = &kind, .path = "model", .tensors = tensors, .tensor_count = 4};

static mica_status apply(const char *json, const char *config, mica_import_map *map) {
    json_t *object = NULL;
    if (config)
        assert_int_equal(mica_json_parse("config.json", config, strlen(config), &object, &error), MICA_OK);
    mica_status status = mica_import_map_init(&source, NULL, NULL, map, &error);
    if (status == MICA_OK)
        status = mica_import_config_apply("import.json", json, strlen(json), &source, object, map, &error);
    json_decref(object);
    return status;
}

#define ROWS(rows) "{\"source_format\": \"safetensors\", \"tensor_map\": [" rows "]}"
#define UUID "F47AC10B-58cc-4372-a567-0e02b2c3d479"

static void test_what_it_says_happens(void **state) {
    (void)state;
    mica_import_map map;
    const char *json = ROWS(
        "{\"source\": \"c.weight\", \"target\": \"head\", \"include\": true}, {\"source\": \"a.weight\", \"target\": \"" UUID "\"},"
        "{\"source\": \"b.bias\", \"include\": false, \"target\": \"head\"}");
    assert_int_equal(apply(json, NULL, &map), MICA_OK);
    static const bool included[] = {true, false, false, true}; /* b.weight is in no row */
    for (int i = 0; i < 4; i++)
        assert_int_equal(map.included[i], included[i]);
    assert_string_equal(map.names[0], "a.weight");
    assert_string_equal(map.aliases[0], "f47ac10b-58cc-4372-a567-0e02b2c3d479");
    assert_string_equal(map.names[3], "head");
    assert_null(map.aliases[3]);
    mica_import_map_release(&map);
    /* two names may change places */
    assert_int_equal(
        apply(ROWS("{\"source\": \"a.weight\", \"target\": \"c.weight\"}, {\"source\": \"c.weight\", \"target\": \"a.weight\"}"), NULL,
              &map),
        MICA_OK);
    mica_import_map_release(&map);
    assert_int_equal(apply(ROWS(""), NULL, &map), MICA_OK); /* nothing: whoever imports says so */
    mica_import_map_release(&map);
}

static void test_patterns(void **state) {
    (void)state;
    mica_import_map map;
    assert_int_equal(mica_import_map_init(&source, "b*", "*.bias", &map, &error), MICA_OK);
    static const bool included[] = {false, false, true, false};
    for (int i = 0; i < 4; i++)
        assert_int_equal(map.included[i], included[i]);
    /* a configuration narrows what they leave, and includes nothing again */
    const char *json = ROWS("{\"source\": \"a.weight\"}, {\"source\": \"b.weight\", \"target\": \"a.weight\"}");
    assert_int_equal(mica_import_config_apply("import.json", json, strlen(json), &source, NULL, &map, &error), MICA_OK);
    assert_false(map.included[0]);
    assert_true(map.included[2]);
    mica_import_map_release(&map);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *json, *says[3];
    } rows[] = {
        {"[]", {"import.json"}},
        {"{}", {"source_format: expected \"safetensors\", got absent"}},
        {"{\"source_format\": \"gguf\", \"tensor_map\": []}", {"source_format: expected \"safetensors\", got \"gguf\""}},
        {"{\"source_format\": 3, \"tensor_map\": []}", {"source_format", "got 3"}},
        {"{\"source_format\": \"safetensors\"}", {"tensor_map: expected an array, got absent"}},
        {"{\"source_format\": \"safetensors\", \"tensor_map\": {}}", {"tensor_map: expected an array, got {"}},
        {"{\"source_format\": \"safetensors\", \"tensor_map\": [], \"tensors\": 1}", {"unknown key tensors"}},
        {"{\"source_format\": \"safetensors\", \"block_format\": \"B8x8\", \"tensor_map\": []}",
         {"block_format: expected absent", "every byte", "\"B8x8\""}},
        {ROWS("3"), {"tensor_map[0]: expected an object"}},
        {ROWS("{\"source\": \"a.weight\"}, {\"target\": \"x\"}"), {"tensor_map[1].source: expected a tensor's name, got absent"}},
        {ROWS("{\"source\": \"d.weight\"}"), {"tensor_map[0].source: expected a tensor of the checkpoint, got \"d.weight\""}},
        {ROWS("{\"source\": \"d.weight\", \"include\": false}"), {"expected a tensor of the checkpoint"}},
        {ROWS("{\"source\": \"a.weight\"}, {\"source\": \"a.weight\"}"), {"tensor_map[1].source: expected each tensor once"}},
        {ROWS("{\"source\": \"a.weight\", \"include\": 1}"), {"tensor_map[0].include: expected true or false, got 1"}},
        {ROWS("{\"source\": \"a.weight\", \"dtype\": \"F16\"}"), {"tensor_map[0]: unknown key dtype"}},
        {ROWS("{\"source\": \"a.weight\", \"target\": \"\"}"), {"tensor_map[0].target: expected a name or a UUID"}},
        {ROWS("{\"source\": \"a.weight\", \"target\": \"x\\u0007\"}"), {"tensor_map[0].target: expected a name or a UUID"}},
        {ROWS("{\"source\": \"a.weight\", \"target\": null}"), {"tensor_map[0].target: expected a name or a UUID, got null"}},
        {ROWS("{\"source\": \"a.weight\", \"target\": \"x\"}, {\"source\": \"c.weight\", \"target\": \"x\"}"),
         {"target x: expected one tensor of that name, got it for a.weight and c.weight"}},
        {ROWS("{\"source\": \"a.weight\"}, {\"source\": \"c.weight\", \"target\": \"a.weight\"}"),
         {"target a.weight: expected one tensor of that name"}},
        {ROWS("{\"source\": \"a.weight\", \"target\": \"" UUID "\"}, {\"source\": \"b.bias\", \"target\": \"" UUID "\"}"),
         {"target f47ac10b-58cc-4372-a567-0e02b2c3d479: expected a UUID for one tensor, got it for a.weight and b.bias"}},
        {"{\"source_format\": \"safetensors\", \"tensor_map\": [], \"metadata\": []}", {"metadata: expected an object"}},
        {"{\"source_format\": \"safetensors\", \"tensor_map\": [], \"metadata\": {\"hidden\": 1}}", {"metadata: unknown key hidden"}},
        {"{\"source_format\": \"safetensors\", \"tensor_map\": [], \"metadata\": {\"hidden_size\": 9}}",
         {"metadata.hidden_size: expected 8", "config.json", "got 9"}},
        {"{\"source_format\": \"safetensors\", \"tensor_map\": [], \"metadata\": {\"q_lora_rank\": 9}}",
         {"metadata.q_lora_rank: expected absent", "got 9"}},
        {"{\"source_format\": \"safetensors\", \"tensor_map\": [], \"tensor_map\": []}", {"tensor_map"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mica_import_map map;
        if (apply(rows[i].json, "{\"hidden_size\": 8}", &map) != MICA_BAD_INPUT)
            fail_msg("%s: expected a refusal", rows[i].json);
        for (size_t j = 0; j < 3 && rows[i].says[j]; j++)
            if (!strstr(error.message, rows[i].says[j]))
                fail_msg("%s: expected \"%s\" in \"%s\"", rows[i].json, rows[i].says[j], error.message);
        mica_import_map_release(&map);
    }
}

/* GMAT's own, but for block_format; what is null was not known. */
static void test_gmat(void **state) {
    (void)state;
    mica_import_map map;
    const char *json = "{\"source_format\": \"safetensors\", \"tensor_map\": [{\"source\": \"a.weight\", \"target\": \"" UUID
                       "\", \"include\": true}],"
                       "\"metadata\": {\"architecture\": \"kimi_vl\", \"vocab_size\": 5, \"hidden_size\": 8.0, \"num_layers\": 27, "
                       "\"num_attention_heads\": 16, \"intermediate_size\": null, \"max_position_embeddings\": null}}";
    const char *config =
        "{\"model_type\": \"kimi_vl\", \"hidden_size\": 1, \"text_config\": {\"model_type\": \"deepseek_v3\", \"vocab_size\": 5, "
        "\"hidden_size\": 8, \"num_hidden_layers\": 27, \"num_attention_heads\": 16}}";
    if (apply(json, config, &map) != MICA_OK)
        fail_msg("%s", error.message);
    assert_non_null(map.aliases[0]);
    mica_import_map_release(&map);
}

/* A configuration of the directory serves for the model in a store. */
static void test_kinds(void **state) {
    (void)state;
    mica_import_map map;
    source.kind = &stored;
    assert_int_equal(apply(ROWS("{\"source\": \"a.weight\"}"), NULL, &map), MICA_OK);
    mica_import_map_release(&map);
    source.kind = &gguf;
    assert_int_equal(apply(ROWS("{\"source\": \"a.weight\"}"), NULL, &map), MICA_BAD_INPUT);
    mica_import_map_release(&map);
    source.kind = &kind;
}

static void test_generated(void **state) {
    (void)state;
    static const char *const places[] = {TINY, FIXTURES "/kimi-vl", FIXTURES "/v4-flash", FIXTURES "/k2-thinking"};
    for (size_t i = 0; i < sizeof places / sizeof *places && mica_path_exists(places[i]); i++) {
        char *json = NULL, config_path[SCRATCH_PATH_BYTES];
        json_t *config = NULL, *object = NULL;
        mica_tensor_source *opened = NULL;
        mica_import_map map;
        assert_int_equal(mica_import_configuration(places[i], NULL, &json, &error), MICA_OK);
        assert_int_equal(mica_json_parse("generated", json, strlen(json), &object, &error), MICA_OK);
        snprintf(config_path, sizeof config_path, "%s/config.json", places[i]);
        assert_int_equal(mica_json_load(config_path, 1 << 20, &config, &error), MICA_OK);
        assert_int_equal(mica_tensor_source_open(places[i], &opened, &error), MICA_OK);
        assert_int_equal(mica_import_map_init(opened, NULL, NULL, &map, &error), MICA_OK);
        if (mica_import_config_apply("generated", json, strlen(json), opened, config, &map, &error) != MICA_OK)
            fail_msg("%s: %s", places[i], error.message);
        for (uint64_t j = 0; j < opened->tensor_count; j++) {
            assert_true(map.included[j]);
            assert_ptr_equal(map.names[j], opened->tensors[j].name);
            assert_null(map.aliases[j]);
        }
        const json_t *metadata = json_object_get(object, "metadata"), *text = json_object_get(config, "text_config");
        static const char *const keys[] = {"hidden_size", "num_experts_per_tok", "routed_scaling_factor", "qk_rope_head_dim", "rope_theta",
                                           "rope_scaling", "scoring_func", "n_routed_experts"};
        for (size_t j = 0; j < sizeof keys / sizeof *keys; j++) /* as config.json has it, absent where that has none */
            assert_true(json_equal(json_object_get(metadata, keys[j]), json_object_get(text ? text : config, keys[j])) ||
                        !json_object_get(text ? text : config, keys[j]));
        mica_import_map_release(&map);
        mica_tensor_source_close(opened);
        json_decref(config);
        json_decref(object);
        mica_string_free(json);
    }
}

static void test_out_of_memory(void **state) {
    (void)state;
    const char *json = ROWS("{\"source\": \"a.weight\", \"target\": \"x\"}, {\"source\": \"b.bias\", \"target\": \"" UUID "\"}");
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_import_map map = {0};
        char *text = NULL;
        no_memory_begin(&trial);
        mica_status status = mica_import_map_init(&source, NULL, NULL, &map, &error);
        if (status == MICA_OK)
            status = mica_import_config_apply("import.json", json, strlen(json), &source, NULL, &map, &error);
        if (status == MICA_OK)
            status = mica_import_config_write(&source, NULL, &map, &text, NULL, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        mica_import_map_release(&map);
        mica_free(text);
    }
}

/* By way of mica_import: renamed and left out, under an alias of the content's own UUID. */
static void test_imports(void **state) {
    (void)state;
    const char *json = "{\"source_format\": \"safetensors\", \"tensor_map\": [{\"source\": \"model.norm.weight\", \"target\": \"norm\"}, "
                       "{\"source\": \"lm_head.weight\", \"target\": \"" UUID "\"}]}";
    assert_int_equal(mica_file_replace(scratch("import.json"), json, strlen(json), &error), MICA_OK);
    const mica_import_options options = {.name = "part", .configuration = scratch("import.json")};
    if (mica_import(TINY, scratch("store"), &options, NULL, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
    mica_tensor_source *opened = NULL;
    char path[SCRATCH_PATH_BYTES];
    snprintf(path, sizeof path, "%s#part", scratch("store"));
    assert_int_equal(mica_tensor_source_open(path, &opened, &error), MICA_OK);
    assert_int_equal(opened->tensor_count, 2);
    assert_non_null(mica_tensor_source_find(opened, "norm"));
    assert_non_null(mica_tensor_source_find(opened, "lm_head.weight"));
    mica_tensor_source_close(opened);
    char *list = NULL;
    assert_int_equal(mica_list(scratch("store"), "part", NULL, NULL, &list, &error), MICA_OK);
    assert_non_null(strstr(list, "f47ac10b-58cc-4372-a567-0e02b2c3d479"));
    mica_string_free(list);
    assert_int_equal(mica_file_replace(scratch("import.json"), "{", 1, &error), MICA_OK);
    assert_int_equal(mica_import(TINY, scratch("store"), &options, NULL, NULL, &error), MICA_BAD_INPUT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_it_says_happens), cmocka_unit_test(test_patterns),  cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_gmat),                 cmocka_unit_test(test_kinds),     cmocka_unit_test(test_generated),
        cmocka_unit_test(test_out_of_memory),        cmocka_unit_test(test_imports),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
