/* tests/reference/decode.h: the obvious decoder that judges numerics/decode*.c: field by field, ldexp in long double (exact for every
 * format here), one rounding at the end. Slow on purpose; shares nothing with the code it judges but the matrix struct. */
#ifndef MICA_TESTS_REFERENCE_DECODE_H
#define MICA_TESTS_REFERENCE_DECODE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "numerics/matrix.h"

/* sign, exponent and mantissa bits of a small float; `finite_top`: the top exponent holds numbers too (all ones alone is NaN) */
static long double reference_minifloat(uint64_t code, int exponent_bits, int mantissa_bits, int bias, int finite_top) {
    uint64_t mantissa = code & ((UINT64_C(1) << mantissa_bits) - 1);
    uint64_t exponent = (code >> mantissa_bits) & ((UINT64_C(1) << exponent_bits) - 1), top = (UINT64_C(1) << exponent_bits) - 1;
    long double sign = (code >> (exponent_bits + mantissa_bits)) & 1 ? -1.0L : 1.0L;
    if (exponent == top && !finite_top)
        return mantissa ? (long double)NAN : sign * (long double)INFINITY;
    if (exponent == top && finite_top && mantissa == (UINT64_C(1) << mantissa_bits) - 1)
        return (long double)NAN;
    if (exponent == 0)
        return sign * ldexpl((long double)mantissa, 1 - bias - mantissa_bits);
    return sign * ldexpl((long double)(mantissa + (UINT64_C(1) << mantissa_bits)), (int)exponent - bias - mantissa_bits);
}

static uint64_t reference_bytes(const void *codes, uint64_t index, unsigned bytes) {
    uint64_t bits = 0;
    for (unsigned i = 0; i < bytes; i++)
        bits |= (uint64_t)((const uint8_t *)codes)[index * bytes + i] << (8 * i);
    return bits;
}

static long double reference_element(mica_dtype dtype, const void *codes, uint64_t index) {
    switch (dtype) {
    case MICA_F64: return reference_minifloat(reference_bytes(codes, index, 8), 11, 52, 1023, 0);
    case MICA_F32: return reference_minifloat(reference_bytes(codes, index, 4), 8, 23, 127, 0);
    case MICA_F16: return reference_minifloat(reference_bytes(codes, index, 2), 5, 10, 15, 0);
    case MICA_BF16: return reference_minifloat(reference_bytes(codes, index, 2), 8, 7, 127, 0);
    case MICA_F8_E4M3: return reference_minifloat(reference_bytes(codes, index, 1), 4, 3, 7, 1);
    case MICA_F8_E5M2: return reference_minifloat(reference_bytes(codes, index, 1), 5, 2, 15, 0);
    case MICA_F8_E8M0: {
        uint64_t code = reference_bytes(codes, index, 1);
        return code == 255 ? (long double)NAN : ldexpl(1.0L, (int)code - 127);
    }
    case MICA_I64: return (long double)(int64_t)reference_bytes(codes, index, 8);
    case MICA_I32: return (long double)(int32_t)reference_bytes(codes, index, 4);
    case MICA_I16: return (long double)(int16_t)reference_bytes(codes, index, 2);
    case MICA_I8: return (long double)(int8_t)reference_bytes(codes, index, 1);
    case MICA_U8: return (long double)reference_bytes(codes, index, 1);
    case MICA_BOOL: return reference_bytes(codes, index, 1) ? 1.0L : 0.0L;
    default: return (long double)NAN;
    }
}

/* The exact value code * scale, before any rounding. */
static inline long double reference_value(const mica_matrix *matrix, uint64_t row, uint64_t column) {
    static const long double e2m1[8] = {0, 0.5L, 1, 1.5L, 2, 3, 4, 6};
    const uint8_t *codes = matrix->codes;
    if (matrix->encoding == MICA_ENCODING_PLAIN)
        return reference_element(matrix->dtype, codes, row * matrix->columns + column);
    uint64_t scales_in_row = (matrix->columns + matrix->block_columns - 1) / matrix->block_columns;
    uint64_t scale_index = row / matrix->block_rows * scales_in_row + column / matrix->block_columns;
    long double scale = reference_element(matrix->scale_dtype, matrix->scales, scale_index), code;
    if (matrix->encoding == MICA_ENCODING_FP8_BLOCK) {
        code = reference_element(matrix->dtype, codes, row * matrix->columns + column);
    } else if (matrix->encoding == MICA_ENCODING_MXFP4) {
        unsigned nibble = codes[row * ((matrix->columns + 1) / 2) + column / 2] >> (column % 2 ? 4 : 0) & 15;
        code = nibble & 8 ? -e2m1[nibble & 7] : e2m1[nibble & 7];
    } else {
        uint64_t word = reference_bytes(codes, row * ((matrix->columns + 7) / 8) + column / 8, 4);
        code = (long double)(int)(word >> (4 * (column % 8)) & 15) - 8;
    }
    return code * scale;
}

/* The rounding: NaN has one pattern. A long double with 64 bits of significand holds every value above exactly. */
static inline uint32_t reference_bits(long double value, int exponent) {
    float rounded = isnan(value) ? 0.0f : (float)ldexpl(value, -exponent);
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    return isnan(value) ? 0x7fc00000u : bits;
}

#endif
