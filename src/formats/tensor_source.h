/* formats/tensor_source.h: the named tensors of one checkpoint directory: index and shards, or model.safetensors alone, or a bare
 * .safetensors file. Headers are parsed once, here. Immutable after open; any thread may read. */
#ifndef MICA_FORMATS_TENSOR_SOURCE_H
#define MICA_FORMATS_TENSOR_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"
#include "formats/safetensors.h"

typedef struct mica_shard {
    char *name; /* plain file name, as in the index */
    mica_file *file;
    char *tensor_names; /* what the tensors' names point into */
} mica_shard;

typedef struct mica_tensor_source {
    char *path;      /* as given */
    char *directory; /* where config.json would be */
    bool bare_file;  /* opened on one .safetensors file: can be inspected, not indexed */
    mica_shard *shards;
    uint32_t shard_count;
    mica_tensor *tensors; /* of all shards, sorted by name */
    uint64_t tensor_count;
    /* Tensors that are in a shard and not in the index: reported, then used. Indices into `tensors`. */
    uint64_t *unlisted;
    uint64_t unlisted_count;
} mica_tensor_source;

/* Opens every shard (O_DIRECT beside the buffered descriptor where possible). Checks: the index names plain files inside
 * the directory, every listed tensor is in the shard it is said to be in, no tensor is in two shards. */
mica_status mica_tensor_source_open(const char *path, mica_tensor_source **source, mica_error *error) MICA_CHECKED;
void mica_tensor_source_close(mica_tensor_source *source); /* NULL is fine */

/* NULL when absent. O(log n). */
const mica_tensor *mica_tensor_source_find(const mica_tensor_source *source, const char *name);

#endif
