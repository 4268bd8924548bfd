/* Input: an import configuration. What is accepted includes only tensors of the source, no two under one name, no two under one UUID. */
#include "operations/import_config.h"

#include "base/uuid.h"
#include "fuzz.h"

static mica_tensor tensors[] = {{.name = "a.weight"}, {.name = "b.bias"}, {.name = "b.weight"}, {.name = "c"}};
#define COUNT (sizeof tensors / sizeof *tensors)
static const mica_source_kind kind = {.name = "safetensors directory"};
static const mica_tensor_source source = {.kind = &kind, .path = "model", .tensors = tensors, .tensor_count = COUNT};
static const char config[] =
    "{\"model_type\": \"kimi_k2\", \"hidden_size\": 8, \"rope_scaling\": {\"factor\": 4.0}, \"text_config\": {\"vocab_size\": 7}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mica_import_map map;
    mica_error error = {0};
    json_t *object = NULL;
    FUZZ_CHECK(mica_json_parse("config.json", config, sizeof config - 1, &object, NULL) == MICA_OK);
    FUZZ_CHECK(mica_import_map_init(&source, NULL, "c", &map, NULL) == MICA_OK);
    const mica_status status = mica_import_config_apply("import.json", (const char *)data, size, &source, object, &map, &error);
    if (status != MICA_OK)
        fuzz_check_refusal(status, &error, "import.json");
    else
        FUZZ_CHECK(!map.included[COUNT - 1]);
    for (size_t i = 0; status == MICA_OK && i < COUNT; i++) {
        uint8_t uuid[MICA_UUID_BYTES];
        FUZZ_CHECK(map.names[i] && *map.names[i]);
        FUZZ_CHECK(!map.aliases[i] || mica_uuid_parse(map.aliases[i], uuid));
        for (size_t j = 0; j < i; j++) {
            const bool both = map.included[i] && map.included[j];
            FUZZ_CHECK(!both || strcmp(map.names[i], map.names[j]) != 0);
            FUZZ_CHECK(!both || !map.aliases[i] || !map.aliases[j] || strcmp(map.aliases[i], map.aliases[j]) != 0);
        }
    }
    mica_import_map_release(&map);
    json_decref(object);
    return 0;
}
