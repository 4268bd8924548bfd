/* formats/index.h: model.safetensors.index.json: which tensor is in which shard.
 * Refuses: a weight_map that is absent, empty or has a name twice; a shard that is not the plain name of a file in the directory.
 * Invariants: entries sorted by tensor (strcmp) and unique, shards sorted and unique, every entry's shard is one of them. */
#ifndef MICA_FORMATS_INDEX_H
#define MICA_FORMATS_INDEX_H

#include <stdint.h>

#include "base/error.h"

typedef struct mica_index_entry {
    const char *tensor; /* borrowed from the index */
    uint32_t shard;     /* into shards */
} mica_index_entry;

typedef struct mica_index {
    mica_index_entry *entries; /* owned */
    uint64_t entry_count;
    const char **shards; /* owned array, borrowed names */
    uint32_t shard_count;
    char *text; /* owned: all names */
} mica_index;

/* `name` is what messages call the file. */
mica_status mica_index_parse(const char *name, const char *json, uint64_t length, mica_index *result, mica_error *error) MICA_CHECKED;
void mica_index_release(mica_index *index);

#endif
