/* formats/safetensors_write.h: a checkpoint written as safetensors: first which tensor goes into which shard and where (a layout: headers,
 * offsets and sizes are known before any data), then the files (a writer: bytes in any order, from any thread).
 *
 * The bytes are a function of names, types, shapes, data and the shard limit. Shards are filled in natural order of the names (layers.2
 * before layers.10); inside a shard the order is that of the reference writer, larger elements first and then by name, so that every tensor
 * is aligned. Files have the name X.partial until all are whole; the one that a reader opens first (the index, or the only shard) gets its
 * name last. Judged by tests/formats/test_safetensors_write.c, and tests/interop/safetensors_files.py: the reference writer's bytes. */
#ifndef MICA_FORMATS_SAFETENSORS_WRITE_H
#define MICA_FORMATS_SAFETENSORS_WRITE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/text.h"
#include "formats/safetensors.h"

#define MICA_SHARD_BYTES_DEFAULT ((uint64_t)5000000000) /* 5 GB, as transformers has it */
#define MICA_SHARD_NAME_BYTES 64
#define MICA_SAFETENSORS_INDEX "model.safetensors.index.json"

typedef struct mica_safetensors_entry { /* one tensor to be written */
    const char *name; /* borrowed; valid UTF-8 */
    mica_dtype dtype; /* a plain type */
    uint32_t rank;
    uint64_t shape[MICA_RANK_MAX];
    uint64_t number; /* the caller's own */
    /* set by the layout */
    uint64_t bytes;
    uint32_t shard;
    uint64_t offset; /* from the start of the file */
} mica_safetensors_entry;

typedef struct mica_safetensors_layout {
    mica_safetensors_entry *entries; /* [entry_count], by shard and offset; owned */
    uint64_t entry_count;
    uint32_t shard_count; /* at least 1 */
    mica_text *headers;   /* [shard_count]: length, JSON, spaces; owned */
    uint64_t *file_bytes; /* [shard_count], header and data; owned */
    uint64_t data_bytes;  /* of all tensors */
} mica_safetensors_layout;

/* Takes `entries` (mica_free) in any order, on failure too. `shard_bytes`: of the data of a shard at most, unless one tensor is larger; 0:
 * the default. USAGE where a shard's header would be longer than readers allow; BAD_INPUT for a block type, or two tensors of one name. */
mica_status mica_safetensors_layout_make(mica_safetensors_entry *entries, uint64_t count, uint64_t shard_bytes,
                                         mica_safetensors_layout *layout, mica_error *error) MICA_CHECKED;
void mica_safetensors_layout_release(mica_safetensors_layout *layout);

/* "model.safetensors", or "model-00002-of-00061.safetensors"; returns `name`. */
const char *mica_safetensors_shard_name(uint32_t shard, uint32_t count, char name[MICA_SHARD_NAME_BYTES]);
/* Is it a name that some layout gives a file: a shard's, the index's, or one of them with ".partial" behind it? */
bool mica_safetensors_is_written_name(const char *name);

typedef struct mica_safetensors_writer mica_safetensors_writer;

/* The partial files in `directory`: made at their full size (`fresh`), or opened as an earlier run left them (CONFLICT when they are not).
 * The layout is borrowed. Where the earlier run had begun to give files their names, only finish may follow. */
mica_status mica_safetensors_writer_open(const char *directory, const mica_safetensors_layout *layout, bool fresh,
                                         mica_safetensors_writer **writer, mica_error *error) MICA_CHECKED;
/* `length` bytes of a tensor, from `position` on. Any thread. */
mica_status mica_safetensors_writer_put(mica_safetensors_writer *writer, const mica_safetensors_entry *entry, uint64_t position,
                                        const void *bytes, uint64_t length, mica_error *error) MICA_CHECKED;
mica_status mica_safetensors_writer_sync(mica_safetensors_writer *writer, mica_error *error) MICA_CHECKED;
/* Syncs, gives every file its name, the first to be read last; a kill on the way is made good by doing it again. Frees the writer in any
 * case. */
mica_status mica_safetensors_writer_finish(mica_safetensors_writer *writer, mica_error *error) MICA_CHECKED;
void mica_safetensors_writer_close(mica_safetensors_writer *writer); /* leaves the partial files; NULL is fine */

#endif
