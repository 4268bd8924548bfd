/* base/dtype.c: the table of element types, generated from MICA_DTYPE_LIST. Judged by tests/base/test_dtype.c. */
#include "base/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    uint32_t bytes;
    bool floating;
} rows[MICA_DTYPE_COUNT] = {
#define X(name, bytes, floating) {#name, bytes, floating},
    MICA_DTYPE_LIST(X)
#undef X
};

const char *mica_dtype_name(mica_dtype dtype) {
    return (unsigned)dtype < MICA_DTYPE_COUNT ? rows[dtype].name : "unknown";
}

uint32_t mica_dtype_bytes(mica_dtype dtype) {
    return (unsigned)dtype < MICA_DTYPE_COUNT ? rows[dtype].bytes : 0;
}

bool mica_dtype_is_floating(mica_dtype dtype) {
    return (unsigned)dtype < MICA_DTYPE_COUNT && rows[dtype].floating;
}

bool mica_dtype_parse(const char *name, mica_dtype *dtype) {
    for (int i = 0; i < MICA_DTYPE_COUNT; i++) {
        if (strcmp(name, rows[i].name) == 0) {
            *dtype = (mica_dtype)i;
            return true;
        }
    }
    return false;
}
