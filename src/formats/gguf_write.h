/* formats/gguf_write.h: GGUF files written: metadata (typed, in the order given), a layout (which tensor goes into which file and where:
 * headers, offsets and sizes are known before any data), and the files (bytes in any order, from any thread). The bytes are a function of
 * metadata, entries, data and the split limit. Version 3. Judged by tests/formats/test_gguf_write.c and tests/interop/gguf_written.py. */
#ifndef MICA_FORMATS_GGUF_WRITE_H
#define MICA_FORMATS_GGUF_WRITE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/text.h"
#include "formats/gguf.h"

/* ---- metadata: calls append; what is wrong (no memory, a key twice, an array of another length than announced) is told by the layout */

typedef struct mica_gguf_metadata {
    mica_text bytes; /* the entries as they stand in a file */
    uint64_t count;
    mica_text keys; /* each with its NUL */
    uint64_t elements_due; /* of an array that was begun */
    bool broken;
    uint32_t alignment; /* as general.alignment says; 0: not said */
} mica_gguf_metadata;
#define MICA_GGUF_METADATA_INIT {MICA_TEXT_INIT, 0, MICA_TEXT_INIT, 0, false, 0}

void mica_gguf_metadata_release(mica_gguf_metadata *metadata);
void mica_gguf_add_u8(mica_gguf_metadata *metadata, const char *key, uint8_t value);
void mica_gguf_add_u16(mica_gguf_metadata *metadata, const char *key, uint16_t value);
void mica_gguf_add_u32(mica_gguf_metadata *metadata, const char *key, uint32_t value);
void mica_gguf_add_i32(mica_gguf_metadata *metadata, const char *key, int32_t value);
void mica_gguf_add_u64(mica_gguf_metadata *metadata, const char *key, uint64_t value);
void mica_gguf_add_f32(mica_gguf_metadata *metadata, const char *key, float value);
void mica_gguf_add_bool(mica_gguf_metadata *metadata, const char *key, bool value);
void mica_gguf_add_text(mica_gguf_metadata *metadata, const char *key, const char *bytes, uint64_t length);
void mica_gguf_add_string(mica_gguf_metadata *metadata, const char *key, const char *string);
/* An array of numbers or bools as they lie in memory (u8 for bool). */
void mica_gguf_add_array(mica_gguf_metadata *metadata, const char *key, mica_gguf_type type, const void *values, uint64_t count);
/* An array of `count` strings: begins it; then `count` calls of add_element. */
void mica_gguf_add_strings(mica_gguf_metadata *metadata, const char *key, uint64_t count);
void mica_gguf_add_element(mica_gguf_metadata *metadata, const char *bytes, uint64_t length);
/* A key of another file with its value, of whatever type. */
void mica_gguf_add_entry(mica_gguf_metadata *metadata, const mica_gguf_entry *entry);

/* ---- the layout */

typedef struct mica_gguf_tensor { /* one tensor to be written */
    const char *name; /* borrowed; 1 to 63 bytes of UTF-8 */
    mica_dtype dtype; /* one that GGUF has */
    uint32_t rank;    /* at most 4 */
    uint64_t shape[MICA_GGUF_RANK_MAX]; /* row-major: the last varies fastest, and is a whole number of blocks */
    uint64_t number;  /* the caller's own */
    /* set by the layout */
    uint64_t bytes;
    uint32_t shard;
    uint64_t offset; /* from the start of the file */
} mica_gguf_tensor;

typedef struct mica_gguf_layout {
    mica_gguf_tensor *tensors; /* [tensor_count], in the order given, which is the files'; owned */
    uint64_t tensor_count;
    uint32_t shard_count; /* at least 1 */
    mica_text *headers;   /* [shard_count], padded to the alignment; owned */
    uint64_t *file_bytes; /* [shard_count], header and data with its padding; owned */
    uint64_t data_bytes;  /* of all tensors, without padding */
} mica_gguf_layout;

/* Takes `tensors` (mica_free), on failure too; metadata is only read. `split_bytes`: of a file's data at most, unless one tensor is larger;
 * 0: one file. In a set of several all keys of the metadata are the first file's; each has split.no, split.count, split.tensors.count (and
 * general.alignment, where it is not 32). BAD_INPUT names the tensor or key that GGUF cannot hold. */
mica_status mica_gguf_layout_make(mica_gguf_tensor *tensors, uint64_t count, const mica_gguf_metadata *metadata, uint64_t split_bytes,
                                  mica_gguf_layout *layout, mica_error *error) MICA_CHECKED;
void mica_gguf_layout_release(mica_gguf_layout *layout);

/* What file `shard` of `count` is called: `path` for a single one, else "PREFIX-00002-of-00005.gguf" with ".gguf" taken off the path. The
 * caller's (mica_free); NULL without memory. */
char *mica_gguf_file_path(const char *path, uint32_t shard, uint32_t count);

/* ---- the files, named X.partial until all are whole; the first gets its name last */

typedef struct mica_gguf_writer mica_gguf_writer;

/* The partial files: made at their full size (`fresh`), or opened as an earlier run left them (CONFLICT when they are not). The layout is
 * borrowed. Where the earlier run had begun to give files their names, only finish may follow. */
mica_status mica_gguf_writer_open(const char *path, const mica_gguf_layout *layout, bool fresh, mica_gguf_writer **writer,
                                  mica_error *error) MICA_CHECKED;
/* `length` bytes of a tensor, from `position` on. Any thread. */
mica_status mica_gguf_writer_put(mica_gguf_writer *writer, const mica_gguf_tensor *tensor, uint64_t position, const void *bytes,
                                 uint64_t length, mica_error *error) MICA_CHECKED;
mica_status mica_gguf_writer_sync(mica_gguf_writer *writer, mica_error *error) MICA_CHECKED;
/* Syncs, gives every file its name; a kill on the way is made good by doing it again. Frees the writer in any case. */
mica_status mica_gguf_writer_finish(mica_gguf_writer *writer, mica_error *error) MICA_CHECKED;
void mica_gguf_writer_close(mica_gguf_writer *writer); /* leaves the partial files; NULL is fine */

#endif
