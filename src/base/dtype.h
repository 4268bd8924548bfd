/* base/dtype.h: the element types of tensors, one row each. Their decoding is in numerics/decode.
 * A plain type is an element on its own; a block type of ggml packs a fixed count of elements of one row into a fixed count of bytes. */
#ifndef MICA_BASE_DTYPE_H
#define MICA_BASE_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

/* name as safetensors writes it, bytes per element, is a floating type, number of the same type in GGUF (-1: none) */
#define MICA_DTYPE_PLAIN_LIST(X)                                                                                   \
    X(F64, 8, 1, 28) X(F32, 4, 1, 0) X(F16, 2, 1, 1) X(BF16, 2, 1, 30) X(F8_E4M3, 1, 1, -1) X(F8_E5M2, 1, 1, -1)    \
    X(F8_E8M0, 1, 1, -1) X(I64, 8, 0, 27) X(I32, 4, 0, 26) X(I16, 2, 0, 25) X(I8, 1, 0, 24) X(U8, 1, 0, -1)         \
    X(BOOL, 1, 0, -1)

/* name as ggml prints it in capitals, elements of a block, bytes of a block, number in GGUF. Layouts: docs/formats.md, numerics/decode. */
#define MICA_DTYPE_BLOCK_LIST(X)                                                                                   \
    X(Q4_0, 32, 18, 2) X(Q4_1, 32, 20, 3) X(Q5_0, 32, 22, 6) X(Q5_1, 32, 24, 7) X(Q8_0, 32, 34, 8)                  \
    X(Q2_K, 256, 84, 10) X(Q3_K, 256, 110, 11) X(Q4_K, 256, 144, 12) X(Q5_K, 256, 176, 13) X(Q6_K, 256, 210, 14)    \
    X(IQ4_NL, 32, 18, 20) X(IQ4_XS, 256, 136, 23) X(MXFP4, 32, 17, 39)

typedef enum mica_dtype {
#define X(name, bytes, floating, ggml) MICA_##name,
    MICA_DTYPE_PLAIN_LIST(X)
#undef X
    MICA_DTYPE_PLAIN_COUNT,
    MICA_DTYPE_BEFORE_BLOCKS = MICA_DTYPE_PLAIN_COUNT - 1,
#define X(name, elements, bytes, ggml) MICA_##name,
    MICA_DTYPE_BLOCK_LIST(X)
#undef X
    MICA_DTYPE_COUNT
} mica_dtype;

const char *mica_dtype_name(mica_dtype dtype);
uint32_t mica_dtype_bytes(mica_dtype dtype); /* of one element; 0 for a block type */
bool mica_dtype_is_floating(mica_dtype dtype); /* block types are */
bool mica_dtype_is_block(mica_dtype dtype);
uint32_t mica_dtype_block_elements(mica_dtype dtype); /* 1 for a plain type */
uint32_t mica_dtype_block_bytes(mica_dtype dtype);    /* mica_dtype_bytes for a plain type */
/* Bytes of `elements` elements in a row. False on overflow, or where they are no whole number of blocks; *bytes is untouched then. */
bool mica_dtype_run_bytes(mica_dtype dtype, uint64_t elements, uint64_t *bytes);

bool mica_dtype_parse(const char *name, mica_dtype *dtype); /* a plain type, by safetensors' name */
bool mica_dtype_parse_block(const char *name, mica_dtype *dtype); /* a block type, by name in either case */
int32_t mica_dtype_ggml(mica_dtype dtype);                  /* its number in GGUF, -1 when it has none */
bool mica_dtype_from_ggml(int64_t number, mica_dtype *dtype);

#endif
