/* operations/import_config.c: what becomes of each tensor: by the patterns of the command line, and by an import configuration.
 * Judged by tests/operations/test_import.c and tests/fuzz/fuzz_import_config.c. */
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "operations/import.h"

static mica_status no_memory(const mica_tensor_source *source, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its list of tensors", source->path);
}

mica_status mica_import_map_make(const mica_tensor_source *source, const mica_import_options *options, mica_import_map *map,
                                 mica_error *error) {
    *map = (mica_import_map){.included = mica_calloc(source->tensor_count + 1, sizeof *map->included),
                             .names = mica_calloc(source->tensor_count + 1, sizeof *map->names),
                             .aliases = mica_calloc(source->tensor_count + 1, sizeof *map->aliases)};
    if (!map->included || !map->names || !map->aliases)
        return no_memory(source, error);
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        const char *name = source->tensors[i].name;
        map->names[i] = name;
        map->included[i] = (!options->include || mica_glob_matches(options->include, name)) &&
                           !(options->exclude && mica_glob_matches(options->exclude, name));
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
