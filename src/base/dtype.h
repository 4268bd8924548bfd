/* base/dtype.h: the element types of tensors, one row each. Their decoding is in numerics/decode. */
#ifndef MICA_BASE_DTYPE_H
#define MICA_BASE_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

/* name as safetensors writes it, bytes per element, is a floating type */
#define MICA_DTYPE_LIST(X)                                                                            \
    X(F64, 8, 1) X(F32, 4, 1) X(F16, 2, 1) X(BF16, 2, 1) X(F8_E4M3, 1, 1) X(F8_E5M2, 1, 1)             \
    X(F8_E8M0, 1, 1) X(I64, 8, 0) X(I32, 4, 0) X(I16, 2, 0) X(I8, 1, 0) X(U8, 1, 0) X(BOOL, 1, 0)

typedef enum mica_dtype {
#define X(name, bytes, floating) MICA_##name,
    MICA_DTYPE_LIST(X)
#undef X
    MICA_DTYPE_COUNT
} mica_dtype;

const char *mica_dtype_name(mica_dtype dtype);
uint32_t mica_dtype_bytes(mica_dtype dtype);
bool mica_dtype_is_floating(mica_dtype dtype);
bool mica_dtype_parse(const char *name, mica_dtype *dtype);

#endif
