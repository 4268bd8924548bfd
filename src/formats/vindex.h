/* formats/vindex.h: the files of a vindex: their names, where each value lies in them, checksums.json. docs/formats.md has every byte.
 * A vindex is FINISHED when checksums.json stands and journal.mica does not. Knows bytes and names; not what a number means.
 * Judged by tests/formats/test_vindex.c and tests/operations/test_vindex_verify.c. */
#ifndef MICA_FORMATS_VINDEX_H
#define MICA_FORMATS_VINDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hash.h"
#include "formats/safetensors.h"

#define MICA_VINDEX_FORMAT "mica-vindex"
#define MICA_VINDEX_FORMAT_VERSION 1u

#define MICA_VINDEX_JOURNAL "journal.mica"
#define MICA_VINDEX_CHECKSUMS "checksums.json"
#define MICA_VINDEX_INDEX "gate_vectors_index.json"
#define MICA_VINDEX_PHASE1 "phase1_moe_svd.json"
#define MICA_VINDEX_PHASE1_AGG "phase1_moe_svd_agg.json"
#define MICA_VINDEX_PHASE2 "phase2_router_svd.json"
#define MICA_VINDEX_CONFIG "moe_config.json"
#define MICA_VINDEX_TENSORS "source_tensors.json"
#define MICA_VINDEX_SOURCE "source" /* directory: config.json, tokenizer files, verbatim */
#define MICA_VINDEX_JSON_LIMIT (1ull << 30)

/* The binary files come in three groups with the same five members each.
 * MAIN: routed experts, or the one MLP of each layer of a dense model. DENSE, SHARED: the rest of a mixture-of-experts model. */
typedef enum mica_vindex_group { MICA_VINDEX_MAIN, MICA_VINDEX_DENSE, MICA_VINDEX_SHARED, MICA_VINDEX_GROUP_COUNT } mica_vindex_group;
typedef enum mica_vindex_member {
    MICA_VINDEX_VECTORS,   /* float32 [layer][expert][feature][hidden] */
    MICA_VINDEX_VALUES,    /* float32 [layer][expert][feature] */
    MICA_VINDEX_FULL_GATE, /* float64 [layer][expert][min(rows, columns)]; then up, down: + mica_projection */
    MICA_VINDEX_FULL_UP,
    MICA_VINDEX_FULL_DOWN,
    MICA_VINDEX_MEMBER_COUNT
} mica_vindex_member;

typedef struct mica_vindex_layout {
    struct {
        uint64_t layers, experts;                     /* layers 0: no file of this group */
        uint64_t features, hidden;                    /* of VECTORS and VALUES */
        uint64_t full[3];                             /* singular values of one matrix in FULL_…; 0: no such file */
    } group[MICA_VINDEX_GROUP_COUNT];
} mica_vindex_layout;

const char *mica_vindex_file_name(mica_vindex_group group, mica_vindex_member member);
/* Bytes of one expert in that file, 0 when there is no such file. */
uint64_t mica_vindex_item_bytes(const mica_vindex_layout *layout, mica_vindex_group group, mica_vindex_member member);
/* False when a size does not fit 63 bits. */
bool mica_vindex_layout_check(const mica_vindex_layout *layout);
/* gate_vectors.bin is always there, if empty; the others when they hold something. */
bool mica_vindex_has_file(const mica_vindex_layout *layout, mica_vindex_group group, mica_vindex_member member);
uint64_t mica_vindex_file_bytes(const mica_vindex_layout *layout, mica_vindex_group group, mica_vindex_member member);
/* Where expert `expert` of the `slot`-th layer in that group begins. */
uint64_t mica_vindex_offset(const mica_vindex_layout *layout, mica_vindex_group group, mica_vindex_member member, uint64_t slot,
                            uint64_t expert);

/* Every name a vindex can have at its top, for --force; NULL past the end. The files copied into source/, likewise. */
const char *mica_vindex_known_name(uint64_t index);
const char *mica_vindex_source_name(uint64_t index);
/* A name that a vindex, finished or not, can have at its top: a known one, the journal, anything ".partial". */
bool mica_vindex_is_own_name(const char *name);

typedef enum mica_vindex_state {
    MICA_VINDEX_ABSENT,     /* nothing there, or an empty directory */
    MICA_VINDEX_UNFINISHED, /* journal.mica is there */
    MICA_VINDEX_FINISHED,   /* checksums.json of this format is there, without a journal */
    MICA_VINDEX_FOREIGN     /* anything else: never touched */
} mica_vindex_state;
mica_status mica_vindex_state_of(const char *directory, mica_vindex_state *state, mica_error *error) MICA_CHECKED;

/* checksums.json. `name` is relative to the directory, with '/' ("source/config.json"). */
typedef struct mica_vindex_file {
    char *name;
    uint64_t bytes;
    uint8_t sha256[MICA_SHA256_BYTES];
} mica_vindex_file;
void mica_vindex_files_free(mica_vindex_file *files, uint64_t count);
/* The text, its own digest included: SHA-256 over the text with 64 zeros in the digest's place. mica_free it. */
mica_status mica_vindex_checksums_write(const mica_vindex_file *files, uint64_t count, char **text, uint64_t *length,
                                        mica_error *error) MICA_CHECKED;
/* CORRUPT when the text does not agree with its own digest; BAD_INPUT when it is of another format or version. */
mica_status mica_vindex_checksums_load(const char *directory, mica_vindex_file **files, uint64_t *count, mica_error *error) MICA_CHECKED;

/* The identity of a tensor (source_tensors.json): SHA-256 over the line "DTYPE d0 d1 …\n" (dtype as safetensors names it, dimensions in
 * decimal, single spaces: "F8_E4M3 2048 7168\n", a scalar "F32\n") and then its bytes as stored. _begin hashes the line. */
mica_status mica_tensor_digest_begin(const mica_tensor *tensor, mica_sha256 *hash, mica_error *error) MICA_CHECKED;
mica_status mica_tensor_digest(const mica_tensor *tensor, const void *bytes, uint8_t digest[MICA_SHA256_BYTES],
                               mica_error *error) MICA_CHECKED;
mica_status mica_tensor_digest_two(const mica_tensor *const tensors[2], const void *const bytes[2], uint8_t digests[2][MICA_SHA256_BYTES],
                                   mica_error *error) MICA_CHECKED; /* of two, in less time than one after the other */

#endif
