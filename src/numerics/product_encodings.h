/* numerics/product_encodings.h: inside the product kernels only, of every instruction set: which row of a header's GROUPED_LIST a weight is, by names that
 * all lists share, and the scale of a block. Include it behind the list's enum. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_ENCODINGS_H
#define MICA_NUMERICS_PRODUCT_ENCODINGS_H

#include <string.h>

#include "numerics/matrix.h"

INLINE int grouped_of_block(mica_dtype dtype) {
    switch ((int)dtype) {
    case MICA_Q8_0: return GROUPED_q8_0;
    case MICA_Q4_0: return GROUPED_q4_0;
    case MICA_Q4_1: return GROUPED_q4_1;
    case MICA_Q5_0: return GROUPED_q5_0;
    case MICA_Q5_1: return GROUPED_q5_1;
    case MICA_IQ4_NL: return GROUPED_iq4_nl;
    case MICA_MXFP4: return GROUPED_mxfp4_blocks;
    case MICA_Q2_K: return GROUPED_q2_k;
    case MICA_Q3_K: return GROUPED_q3_k;
    case MICA_Q4_K: return GROUPED_q4_k;
    case MICA_Q5_K: return GROUPED_q5_k;
    case MICA_Q6_K: return GROUPED_q6_k;
    case MICA_IQ4_XS: return GROUPED_iq4_xs;
    default: return -1;
    }
}

/* -1: none. */
INLINE int grouped_of(const mica_matrix *matrix) {
    if (matrix->encoding == MICA_ENCODING_BLOCK)
        return grouped_of_block(matrix->dtype);
    if (matrix->block_rows != 1 || matrix->block_columns != 32)
        return -1;
    if (matrix->encoding == MICA_ENCODING_MXFP4)
        return matrix->scale_dtype == MICA_F8_E8M0 ? (int)GROUPED_mxfp4_planes : -1;
    if (matrix->encoding == MICA_ENCODING_INT4_GROUP)
        return matrix->scale_dtype == MICA_BF16  ? (int)GROUPED_int4_bf16
               : matrix->scale_dtype == MICA_F16 ? (int)GROUPED_int4_f16
               : matrix->scale_dtype == MICA_F32 ? (int)GROUPED_int4_f32
                                                 : -1;
    return -1;
}

typedef float scale_at(const uint8_t *scales, uint64_t index);

INLINE float scale_none(const uint8_t *scales, uint64_t index) {
    (void)scales;
    (void)index;
    return 1;
}

INLINE float scale_f32(const uint8_t *scales, uint64_t index) {
    float scale;
    memcpy(&scale, scales + 4 * index, sizeof scale);
    return scale;
}

INLINE float scale_of_bits(uint32_t bits) {
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

INLINE float scale_bf16(const uint8_t *scales, uint64_t index) {
    uint16_t upper;
    memcpy(&upper, scales + 2 * index, sizeof upper);
    return scale_of_bits((uint32_t)upper << 16);
}

INLINE float scale_e8m0(const uint8_t *scales, uint64_t index) {
    return scale_of_bits(scales[index] == 0 ? 0x400000u : scales[index] == 255 ? 0x7fc00000u : (uint32_t)scales[index] << 23);
}

#endif
