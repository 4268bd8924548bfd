/* numerics/decode_block.c: ggml's block types to float32, portably; the truth that the fast variants must equal bit for bit.
 * Layouts: docs/formats.md. Bytes in file order; halves are little-endian. Refuses nothing: the caller has checked sizes.
 * Judged by tests/numerics/test_decode_block.c (tests/reference/decode_block.h) and by ggml itself in tests/interop/gguf_blocks.py. */
#include "numerics/decode_block.h"

#include "numerics/decode_kernels.h"

enum {
    FAST_EXPONENT_MAX = 60,      /* 2^-24 is the smallest half, 2^28 bounds the values */
    FAST_MXFP4_EXPONENT_MAX = 16 /* 2^-128 · 2^-16 is a float32 still */
};

static double half_at(const uint8_t *block, unsigned offset) {
    return mica_f16_value((uint16_t)(block[offset] | block[offset + 1] << 8));
}

/* Sixteen bytes of nibbles: the low ones are the first half of 32 elements. */
#define EACH_OF_32(codes, meaning)                     \
    for (unsigned i = 0; i < 32; i++) {                \
        unsigned q = (codes)[i % 16] >> (i / 16 * 4) & 15u; \
        values[i] = (meaning);                         \
    }

static void q4_0(const uint8_t *block, double *values) {
    double d = half_at(block, 0);
    EACH_OF_32(block + 2, d * ((int)q - 8))
}

static void q4_1(const uint8_t *block, double *values) {
    double d = half_at(block, 0), m = half_at(block, 2);
    EACH_OF_32(block + 4, d * q + m)
}

static unsigned fifth_bit(const uint8_t *bits, unsigned i) {
    return (bits[i / 8] >> i % 8 & 1u) << 4;
}

static void q5_0(const uint8_t *block, double *values) {
    double d = half_at(block, 0);
    EACH_OF_32(block + 6, d * ((int)(q | fifth_bit(block + 2, i)) - 16))
}

static void q5_1(const uint8_t *block, double *values) {
    double d = half_at(block, 0), m = half_at(block, 2);
    EACH_OF_32(block + 8, d * (q | fifth_bit(block + 4, i)) + m)
}

static void q8_0(const uint8_t *block, double *values) {
    double d = half_at(block, 0);
    for (unsigned i = 0; i < 32; i++)
        values[i] = d * (int8_t)block[2 + i];
}

static void iq4_nl(const uint8_t *block, double *values) {
    double d = half_at(block, 0);
    EACH_OF_32(block + 2, d * mica_iq4_values[q])
}

/* ggml's table has +0 for the code of minus zero. */
static void mxfp4(const uint8_t *block, double *values) {
    double scale = mica_e8m0_value(block[0]);
    EACH_OF_32(block + 1, scale * (q == 8 ? 0.0 : (double)mica_e2m1_values[q]))
}

/* 256 elements as two halves of 128: byte l of a half's 32 holds elements l, l + 32, l + 64, l + 96, two bits each. */
static unsigned two_bits(const uint8_t *codes, unsigned i) {
    return codes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3u;
}

static void q2_k(const uint8_t *block, double *values) {
    const uint8_t *scales = block, *codes = block + 16;
    double d = half_at(block, 80), m = half_at(block, 82);
    for (unsigned i = 0; i < 256; i++)
        values[i] = d * (scales[i / 16] & 15) * two_bits(codes, i) - m * (scales[i / 16] >> 4);
}

static void q3_k(const uint8_t *block, double *values) {
    const uint8_t *high = block, *codes = block + 32, *scales = block + 96;
    double d = half_at(block, 108);
    for (unsigned i = 0; i < 256; i++) {
        unsigned j = i / 16, scale = (scales[j % 8] >> (j / 8 * 4) & 15u) | (scales[8 + j % 4] >> (j / 4 * 2) & 3u) << 4;
        int q = (int)two_bits(codes, i) - (high[i % 32] >> i / 32 & 1 ? 0 : 4);
        values[i] = d * ((int)scale - 32) * q;
    }
}

/* Eight scales and eight minima of six bits in twelve bytes. */
static void six_bits(const uint8_t *packed, unsigned j, unsigned *scale, unsigned *minimum) {
    *scale = j < 4 ? packed[j] & 63u : (packed[j + 4] & 15u) | (unsigned)(packed[j - 4] >> 6) << 4;
    *minimum = j < 4 ? packed[j + 4] & 63u : (unsigned)packed[j + 4] >> 4 | (unsigned)(packed[j] >> 6) << 4;
}

/* 64 elements share 32 bytes: the low nibbles are the first 32. Q5_K has bit j of byte l for element l of the j-th 32. */
static void q45_k(const uint8_t *block, const uint8_t *high, const uint8_t *codes, double *values) {
    double d = half_at(block, 0), m = half_at(block, 2);
    for (unsigned j = 0; j < 8; j++) {
        unsigned scale, minimum;
        six_bits(block + 4, j, &scale, &minimum);
        for (unsigned l = 0; l < 32; l++) {
            unsigned q = codes[j / 2 * 32 + l] >> (j % 2 * 4) & 15u;
            if (high)
                q |= (high[l] >> j & 1u) << 4;
            values[32 * j + l] = d * scale * q - m * minimum;
        }
    }
}

static void q4_k(const uint8_t *block, double *values) {
    q45_k(block, NULL, block + 16, values);
}

static void q5_k(const uint8_t *block, double *values) {
    q45_k(block, block + 16, block + 48, values);
}

static void q6_k(const uint8_t *block, double *values) {
    const uint8_t *low = block, *high = block + 128, *scales = block + 192;
    double d = half_at(block, 208);
    for (unsigned i = 0; i < 256; i++) {
        unsigned q = low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15u;
        q |= two_bits(high, i) << 4;
        values[i] = d * (int8_t)scales[i / 16] * ((int)q - 32);
    }
}

static void iq4_xs(const uint8_t *block, double *values) {
    unsigned high = block[2] | (unsigned)block[3] << 8;
    double d = half_at(block, 0);
    for (unsigned j = 0; j < 8; j++, values += 32) {
        unsigned scale = (block[4 + j / 2] >> (j % 2 * 4) & 15u) | (high >> 2 * j & 3u) << 4;
        EACH_OF_32(block + 8 + 16 * j, d * ((int)scale - 32) * mica_iq4_values[q])
    }
}

mica_block_values *mica_block_values_of(mica_dtype dtype) {
    switch (dtype) {
    case MICA_Q4_0: return q4_0;
    case MICA_Q4_1: return q4_1;
    case MICA_Q5_0: return q5_0;
    case MICA_Q5_1: return q5_1;
    case MICA_Q8_0: return q8_0;
    case MICA_Q2_K: return q2_k;
    case MICA_Q3_K: return q3_k;
    case MICA_Q4_K: return q4_k;
    case MICA_Q5_K: return q5_k;
    case MICA_Q6_K: return q6_k;
    case MICA_IQ4_NL: return iq4_nl;
    case MICA_IQ4_XS: return iq4_xs;
    case MICA_MXFP4: return mxfp4;
    default: return NULL;
    }
}

/* The fast variants multiply scales by 2^-exponent in float32: allowed where that is exact, and where it cannot overflow. */
static bool fast_is_exact(mica_dtype dtype, int exponent) {
    if (dtype == MICA_MXFP4)
        return exponent >= 0 && exponent <= FAST_MXFP4_EXPONENT_MAX;
    return exponent >= -FAST_EXPONENT_MAX && exponent <= FAST_EXPONENT_MAX;
}

static void careful_blocks(mica_block_values *values_of, const uint8_t *blocks, uint64_t count, uint32_t elements, uint32_t bytes,
                           int exponent, float *out) {
    double values[MICA_BLOCK_ELEMENTS_MAX];
    for (uint64_t b = 0; b < count; b++, blocks += bytes, out += elements) {
        values_of(blocks, values);
        for (uint32_t i = 0; i < elements; i++) {
            double value = exponent ? ldexp(values[i], -exponent) : values[i];
            out[i] = isnan(value) ? mica_float_of_bits(0x7fc00000u) : (float)value;
        }
    }
}

/* Whole blocks straight to `out`; a window that cuts one (columns go by 32, blocks may have 256) gets it through a buffer. */
void mica_block_decode(const mica_matrix *matrix, int exponent, uint64_t row, uint64_t count, uint64_t column, uint64_t width, float *out,
                       uint64_t stride) {
    mica_dtype dtype = matrix->dtype;
    mica_block_values *values_of = mica_block_values_of(dtype);
    mica_decode_blocks *const *table = mica_decode_kernels_current()->blocks;
    mica_decode_blocks *fast = table && fast_is_exact(dtype, exponent) ? table[dtype] : NULL;
    uint32_t elements = mica_dtype_block_elements(dtype), bytes = mica_dtype_block_bytes(dtype);
    uint64_t row_bytes = mica_matrix_row_bytes(matrix), end = column + width;
    float factor = fast ? ldexpf(1.0f, -exponent) : 0.0f, cut[MICA_BLOCK_ELEMENTS_MAX];
    for (uint64_t r = row; r < row + count; r++, out += stride) {
        const uint8_t *codes = (const uint8_t *)matrix->codes + r * row_bytes;
        for (uint64_t at = column, next; at < end; at = next) {
            uint64_t first = at / elements, whole = (end - first * elements) / elements;
            bool is_cut = at % elements != 0 || whole == 0;
            uint64_t blocks = is_cut ? 1 : whole;
            float *target = is_cut ? cut : out + (at - column);
            next = mica_min_u64(end, (first + blocks) * elements);
            if (fast)
                fast(codes + first * bytes, blocks, factor, target);
            else
                careful_blocks(values_of, codes + first * bytes, blocks, elements, bytes, exponent, target);
            if (is_cut)
                memcpy(out + (at - column), cut + at % elements, (next - at) * sizeof *out);
        }
    }
}

/* Slow, and only run when there is something to find. */
static void find_not_finite(const mica_matrix *matrix, mica_matrix_health *health) {
    mica_block_values *values_of = mica_block_values_of(matrix->dtype);
    uint32_t elements = mica_dtype_block_elements(matrix->dtype), bytes = mica_dtype_block_bytes(matrix->dtype);
    uint64_t blocks = matrix->columns / elements;
    const uint8_t *block = matrix->codes;
    double values[MICA_BLOCK_ELEMENTS_MAX];
    for (uint64_t b = 0; b < matrix->rows * blocks; b++, block += bytes) {
        values_of(block, values);
        for (uint32_t i = 0; i < elements; i++)
            if (!isfinite(values[i]))
                mica_health_note(health, values[i], b / blocks, b % blocks * elements + i);
    }
}

void mica_block_examine(const mica_matrix *matrix, mica_matrix_health *health) {
    enum { COLUMNS = 2048 }; /* decoded at once: a multiple of every block */
    const mica_decode_kernels *kernels = mica_decode_kernels_current();
    int exponent = matrix->dtype == MICA_MXFP4 ? 8 : 0; /* its largest values are beyond float32; with this none is, and none is lost */
    uint32_t largest = 0;
    float values[COLUMNS];
    for (uint64_t r = 0; r < matrix->rows; r++)
        for (uint64_t c = 0, width; c < matrix->columns; c += width) {
            width = mica_min_u64(COLUMNS, matrix->columns - c);
            mica_block_decode(matrix, exponent, r, 1, c, width, values, width);
            uint32_t bits = kernels->max_u32((const uint8_t *)values, width);
            largest = bits > largest ? bits : largest;
        }
    float magnitude = mica_float_of_bits(largest);
    if (!isfinite(magnitude)) {
        find_not_finite(matrix, health);
    } else if (magnitude > 0) {
        frexpf(magnitude, &health->exponent);
        health->exponent += exponent;
    }
}
