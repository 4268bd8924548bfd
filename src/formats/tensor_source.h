/* formats/tensor_source.h: the named tensors of one checkpoint, and the files that go with them, whatever holds them: a directory with
 * index and shards or model.safetensors alone, or a bare .safetensors file (safetensors_source.c); a GGUF file or the first of a set of
 * splits (gguf_source.c, which a name that ends in .gguf goes to); a model of a store (store_source.c), which is called STORE#NAME, or
 * STORE where it is the only one. Headers are parsed once, at opening.
 * Immutable after open; any thread may read. */
#ifndef MICA_FORMATS_TENSOR_SOURCE_H
#define MICA_FORMATS_TENSOR_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "formats/safetensors.h"

typedef struct mica_shard {
    char *name; /* plain file name, as in the index */
    mica_file *file;
    char *tensor_names; /* what the tensors' names point into */
} mica_shard;

typedef struct mica_tensor_source mica_tensor_source;

/* What differs between the kinds of sources. */
typedef struct mica_source_kind {
    const char *name; /* "safetensors directory" */
    bool has_files;   /* config.json and the like can be asked for: it can be a model */
    /* True where the source has a file of this plain name. */
    bool (*has_file)(const mica_tensor_source *source, const char *name);
    mica_status (*load_file)(const mica_tensor_source *source, const char *name, uint64_t limit, char **bytes, uint64_t *length,
                             mica_error *error);
    /* The names of all of them, sorted; for mica_directory_names_free. */
    mica_status (*list_files)(const mica_tensor_source *source, char ***names, uint64_t *count, mica_error *error);
    void (*release)(mica_tensor_source *source); /* of `backend`; NULL where there is none */
    /* What the tensor's digest (formats/vindex.h) was when it was recorded, 32 bytes; NULL for a kind that records none. */
    const uint8_t *(*digest)(const mica_tensor_source *source, uint64_t tensor);
} mica_source_kind;

struct mica_tensor_source {
    const mica_source_kind *kind;
    void *backend;   /* the kind's own; NULL for safetensors */
    char *path;      /* as given */
    char *model_name; /* what a store calls the model; NULL for other kinds */
    char *directory; /* what stands before the name of one of its files in messages; for safetensors the directory they are in */
    mica_shard *shards;
    uint32_t shard_count;
    mica_tensor *tensors; /* of all shards, sorted by name */
    uint64_t tensor_count;
    /* Tensors that are in a shard and not in the index: reported, then used. Indices into `tensors`. */
    uint64_t *unlisted;
    uint64_t unlisted_count;
};

/* Opens every shard (O_DIRECT beside the buffered descriptor where possible). Checks: the index names plain files inside
 * the directory, every listed tensor is in the shard it is said to be in, no tensor is in two shards. */
mica_status mica_tensor_source_open(const char *path, mica_tensor_source **source, mica_error *error) MICA_CHECKED;
void mica_tensor_source_close(mica_tensor_source *source); /* NULL is fine */

/* NULL when absent. O(log n). */
const mica_tensor *mica_tensor_source_find(const mica_tensor_source *source, const char *name);

/* What the list of tensors is: SHA-256, in hexadecimal, over one line for each, by name: "name DTYPE d0 d1 …\n". */
mica_status mica_tensor_source_digest(const mica_tensor_source *source, char hex[MICA_SHA256_HEX_BYTES], mica_error *error) MICA_CHECKED;

/* The small files that go with the tensors: config.json, tokenizer files, templates. */
bool mica_tensor_source_has_file(const mica_tensor_source *source, const char *name);
/* As mica_file_load: at most `limit` bytes, NUL-terminated, the caller's (mica_free). */
mica_status mica_tensor_source_load(const mica_tensor_source *source, const char *name, uint64_t limit, char **bytes, uint64_t *length,
                                    mica_error *error) MICA_CHECKED;
/* The names of all of them, sorted (mica_directory_names_free); none for a kind without files. */
mica_status mica_tensor_source_list_files(const mica_tensor_source *source, char ***names, uint64_t *count, mica_error *error) MICA_CHECKED;
/* "DIRECTORY/name", for messages; the caller's (mica_free); NULL without memory. */
char *mica_tensor_source_file_path(const mica_tensor_source *source, const char *name);

/* ---- for the kinds: each file that opens one */

/* A store's directory, or STORE#NAME: fills `source`, whose path is set (formats/store.h). */
mica_status mica_store_source_open(mica_tensor_source *source, mica_error *error) MICA_CHECKED;
bool mica_store_is_named(const char *path); /* is it one? */
/* A directory or a bare file of safetensors: fills `source`, whose path is set. */
mica_status mica_safetensors_source_open(mica_tensor_source *source, mica_error *error) MICA_CHECKED;
/* A GGUF file or a set of splits; likewise. */
mica_status mica_gguf_source_open(mica_tensor_source *source, mica_error *error) MICA_CHECKED;

/* The shards' lists, [shard_count], each sorted by name, as the source's one list; refuses a name that two shards have. The names live with
 * the shards. */
typedef struct mica_tensor_list {
    const mica_tensor *tensors;
    uint64_t count;
} mica_tensor_list;
mica_status mica_tensor_source_gather(mica_tensor_source *source, const mica_tensor_list *lists, mica_error *error) MICA_CHECKED;
int mica_tensor_compare(const void *a, const void *b); /* two mica_tensor by name */

#endif
