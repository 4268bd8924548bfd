/* formats/safetensors.h: one .safetensors file: an 8-byte little-endian header length, a JSON header, the data.
 * Owns: the header's rules (offsets contiguous from 0 to the end of the file without overlap or hole, dtype x shape = bytes,
 * names unique, valid UTF-8, no NUL). Refuses everything else with a sentence. Does not know what a tensor means. */
#ifndef MICA_FORMATS_SAFETENSORS_H
#define MICA_FORMATS_SAFETENSORS_H

#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"
#include "base/file.h"

#define MICA_RANK_MAX 8

typedef struct mica_tensor {
    const char *name; /* borrowed from the owner of the list, as long as it lives */
    mica_dtype dtype;
    uint32_t rank;
    uint64_t shape[MICA_RANK_MAX];
    uint64_t elements;
    uint64_t offset; /* from the start of the file */
    uint64_t bytes;
    uint32_t shard; /* index into the owner's files; 0 for a single file */
} mica_tensor;

typedef struct mica_safetensors {
    mica_tensor *tensors; /* owned, sorted by name (strcmp) */
    uint64_t tensor_count;
    char *names; /* owned: all names */
} mica_safetensors;

/* The parser alone, for the fuzzer: header bytes as they stand after the length, size of the whole file. `name` is used in messages. */
mica_status mica_safetensors_parse(const char *name, const char *header, uint64_t header_bytes, uint64_t file_bytes,
                                   mica_safetensors *result, mica_error *error) MICA_CHECKED;
/* Reads length and header of an open file (header limit 100 MB, and the file's own size). */
mica_status mica_safetensors_read(const mica_file *file, const char *name, mica_safetensors *result, mica_error *error) MICA_CHECKED;
void mica_safetensors_release(mica_safetensors *safetensors);

/* "[2048, 7168]" into buffer; returns it. */
const char *mica_shape_show(uint32_t rank, const uint64_t *shape, char *buffer, size_t bytes);

#endif
