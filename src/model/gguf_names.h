/* model/gguf_names.h: where a checkpoint's weights go in a GGUF file: per architecture one row per tensor. Names are those llama.cpp loads.
 * Adding an architecture is adding rows. Judged by tests/operations/test_export_gguf.c and tests/interop/export_gguf.py. */
#ifndef MICA_MODEL_GGUF_NAMES_H
#define MICA_MODEL_GGUF_NAMES_H

#include <stdbool.h>
#include <stdint.h>

#include "model/config.h"

#define MICA_GGUF_NAME_BYTES 64 /* with the closing NUL */

/* What becomes of the matrix on its way. */
typedef enum mica_gguf_form {
    MICA_GGUF_COPY,        /* [rows][columns] as they are */
    MICA_GGUF_EXPERTS,     /* the matrices of all experts of a layer: [expert][row][column] */
    MICA_GGUF_KEY_PART,    /* of kv_b_proj, whose rows are [head][nope + v]: [head][latent][nope], each head's first rows transposed */
    MICA_GGUF_VALUE_PART,  /* of kv_b_proj: [head][v][latent], each head's last rows */
    MICA_GGUF_QUERY_PAIRS, /* each query head's rows i and i + half next to each other, as llama's rotary embedding wants them */
    MICA_GGUF_KEY_PAIRS,   /* the same of each key head */
    MICA_GGUF_TABLE,       /* integers, as I32 */
    MICA_GGUF_QUERY_THIRD,
    MICA_GGUF_KEY_THIRD,
    MICA_GGUF_VALUE_THIRD, /* of FUSED_TURNED: a third of the rows */
    MICA_GGUF_POSITIONS,   /* [height][width][channel] as [height x width][channel] */
    MICA_GGUF_CONVOLUTION, /* three or four dimensions, as they are */
    MICA_GGUF_FUSED_TURNED /* queries, keys and values of a tower in one (or its bias): rows (x, x', y, y') of each head's queries and keys, where x and
                            * x' are turned together by one coordinate, y and y' by the other: all of the first, then all of the second */
} mica_gguf_form;

typedef struct mica_gguf_row {
    const char *pattern; /* of the weight, below the prefix, with {L} and {E}: as in mica_tensor_row */
    const char *name;    /* of the tensor, with {L} */
    mica_gguf_form form;
    bool float32;        /* stays F32 whatever type is asked for */
} mica_gguf_row;

typedef struct mica_gguf_architecture {
    const char *name;          /* general.architecture */
    const mica_gguf_row *rows; /* ends with pattern NULL; those before the layers, those of a layer, those behind the layers */
} mica_gguf_architecture;

/* The vision towers and projectors of Kimi-VL (clip, kimivl) and Kimi-K2.5 (clip, kimik25): names are whole, {L} is a block of the
 * tower. */
extern const mica_gguf_architecture mica_gguf_kimi_vision, mica_gguf_kimi25_vision;

/* NULL where llama.cpp has no such architecture, or this table does not; `why` (static) then says it. */
const mica_gguf_architecture *mica_gguf_architecture_of(const mica_config *config, const char **why);

/* By general.architecture; NULL where it is not one of those. */
const mica_gguf_architecture *mica_gguf_architecture_named(const char *name);

/* Puts `number` for {L} (and `expert` for {E}) into `pattern`; false where it does not fit. */
bool mica_gguf_name(const char *pattern, uint64_t layer, uint64_t expert, char *name, uint64_t bytes);

/* True for a row whose name has {L}. */
bool mica_gguf_row_is_layered(const mica_gguf_row *row);

#endif
