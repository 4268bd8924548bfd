/* numerics/encode.h: float32 to the narrower plain types, rounded to nearest even. Decoding is numerics/matrix.h's.
 * Judged by tests/numerics/test_encode.c against every float16 and bfloat16, their neighbours and the midpoints between. */
#ifndef MICA_NUMERICS_ENCODE_H
#define MICA_NUMERICS_ENCODE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/dtype.h"

/* 65520 and beyond become infinite; a NaN becomes the quiet 0x7e00, its sign kept. */
static inline uint16_t mica_f16_encode(float value) {
    uint32_t bits, rounded;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size < 0x38800000) { /* below 2^-14 the unit is 2^-24, that of floats at 0.5 */
        float small;
        memcpy(&small, &size, sizeof small);
        small += 0.5f;
        memcpy(&rounded, &small, sizeof rounded);
        return (uint16_t)(sign | (rounded - 0x3f000000));
    }
    if (size > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    rounded = (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13;
    return (uint16_t)(sign | (size >= 0x477ff000 ? 0x7c00 : rounded));
}

/* F32, F16 and BF16, little endian; `out` need not be aligned. False for another dtype. */
bool mica_encode_plain(mica_dtype dtype, const float *values, uint64_t count, void *out);

#endif
