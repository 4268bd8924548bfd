/* base/dtype.c: the table of element types, generated from the lists of the header. Judged by tests/base/test_dtype.c. */
#include "base/dtype.h"

#include <string.h>
#include <strings.h>

#include "base/memory.h"

static const struct {
    const char *name;
    uint32_t block_elements, block_bytes;
    bool floating;
    int32_t ggml;
} rows[MICA_DTYPE_COUNT] = {
#define X(name, bytes, floating, ggml) {#name, 1, bytes, floating, ggml},
    MICA_DTYPE_PLAIN_LIST(X)
#undef X
#define X(name, elements, bytes, ggml) {#name, elements, bytes, true, ggml},
    MICA_DTYPE_BLOCK_LIST(X)
#undef X
};

static bool is_known(mica_dtype dtype) {
    return (unsigned)dtype < MICA_DTYPE_COUNT;
}

const char *mica_dtype_name(mica_dtype dtype) {
    return is_known(dtype) ? rows[dtype].name : "unknown";
}

uint32_t mica_dtype_bytes(mica_dtype dtype) {
    return (unsigned)dtype < MICA_DTYPE_PLAIN_COUNT ? rows[dtype].block_bytes : 0;
}

bool mica_dtype_is_floating(mica_dtype dtype) {
    return is_known(dtype) && rows[dtype].floating;
}

bool mica_dtype_is_block(mica_dtype dtype) {
    return is_known(dtype) && dtype >= MICA_DTYPE_PLAIN_COUNT;
}

uint32_t mica_dtype_block_elements(mica_dtype dtype) {
    return is_known(dtype) ? rows[dtype].block_elements : 0;
}

uint32_t mica_dtype_block_bytes(mica_dtype dtype) {
    return is_known(dtype) ? rows[dtype].block_bytes : 0;
}

bool mica_dtype_run_bytes(mica_dtype dtype, uint64_t elements, uint64_t *bytes) {
    return is_known(dtype) && elements % rows[dtype].block_elements == 0 &&
           mica_mul_u64(elements / rows[dtype].block_elements, rows[dtype].block_bytes, bytes);
}

bool mica_dtype_parse(const char *name, mica_dtype *dtype) {
    for (int i = 0; i < MICA_DTYPE_PLAIN_COUNT; i++) {
        if (strcmp(name, rows[i].name) == 0) {
            *dtype = (mica_dtype)i;
            return true;
        }
    }
    return false;
}

bool mica_dtype_parse_block(const char *name, mica_dtype *dtype) {
    for (int i = MICA_DTYPE_PLAIN_COUNT; i < MICA_DTYPE_COUNT; i++) {
        if (strcasecmp(name, rows[i].name) == 0) {
            *dtype = (mica_dtype)i;
            return true;
        }
    }
    return false;
}

int32_t mica_dtype_ggml(mica_dtype dtype) {
    return is_known(dtype) ? rows[dtype].ggml : -1;
}

bool mica_dtype_from_ggml(int64_t number, mica_dtype *dtype) {
    for (int i = 0; i < MICA_DTYPE_COUNT; i++) {
        if (number >= 0 && rows[i].ggml == number) {
            *dtype = (mica_dtype)i;
            return true;
        }
    }
    return false;
}
