/* operations/source_identity.h: what a long job was done on, for its journal: a resume must find the same. */
#ifndef MICA_OPERATIONS_SOURCE_IDENTITY_H
#define MICA_OPERATIONS_SOURCE_IDENTITY_H

#include <stdbool.h>

#include "base/json.h"
#include "formats/tensor_source.h"

/* "source": {config_sha256, tensor_count, tensor_list_sha256}: a function of configuration (null without one) and headers, not of
 * shard names, paths or times. */
mica_status mica_source_write_identity(mica_json_writer *writer, const mica_tensor_source *source, mica_error *error) MICA_CHECKED;
/* "shards": [{name, bytes, modified}]: whether the files may have changed since. */
void mica_source_write_shards(mica_json_writer *writer, const mica_tensor_source *source);

/* CONFLICT naming the first key whose value differs, what `where` has and what today has; with `shards` false that key is not compared. */
mica_status mica_identity_compare(const char *where, const json_t *recorded, const json_t *today, bool shards,
                                  mica_error *error) MICA_CHECKED;

#endif
