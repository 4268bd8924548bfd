/* operations/import_config.h: an import configuration: which tensors go into a store, and what they are called there. JSON, as
 * docs/formats.md has it; GMAT's files of that form are read, but for `block_format`, which would not keep the weights' bytes.
 * Pure functions over a list of tensors. Judged by tests/operations/test_import_config.c and tests/fuzz/fuzz_import_config.c. */
#ifndef MICA_OPERATIONS_IMPORT_CONFIG_H
#define MICA_OPERATIONS_IMPORT_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "formats/tensor_source.h"

#define MICA_IMPORT_CONFIG_BYTES_MAX ((uint64_t)256 << 20)

/* What becomes of each tensor of the source; the indices are the source's. */
typedef struct mica_import_map {
    bool *included;       /* [tensor_count] */
    const char **names;   /* [tensor_count], in the store: the source's own, or of `texts` */
    const char **aliases; /* [tensor_count], UUIDs that somebody chose, of `texts`; NULL: none */
    char **texts;         /* owned */
    uint64_t text_count;
} mica_import_map;

/* Every tensor whose name matches `include` (NULL: any) and does not match `exclude` (NULL: none), under its own name. */
mica_status mica_import_map_init(const mica_tensor_source *source, const char *include, const char *exclude, mica_import_map *map,
                                 mica_error *error) MICA_CHECKED;
void mica_import_map_release(mica_import_map *map);

/* Narrows and renames by a configuration: what its tensor_map does not include is not imported. `config` is the checkpoint's config.json,
 * which `metadata` must not contradict; NULL: there is none. `name` is what messages call the configuration. BAD_INPUT for what it must not
 * say: unknown keys, sources that are not there or stand there twice, names or UUIDs that two tensors would have. */
mica_status mica_import_config_apply(const char *name, const char *json, uint64_t length, const mica_tensor_source *source,
                                     const json_t *config, mica_import_map *map, mica_error *error) MICA_CHECKED;

/* The configuration that imports what the map includes, as it is; `config` as above: `metadata` is what it says, nothing else.
 * The text is the caller's (mica_free). */
mica_status mica_import_config_write(const mica_tensor_source *source, const json_t *config, const mica_import_map *map, char **json,
                                     uint64_t *length, mica_error *error) MICA_CHECKED;

#endif
