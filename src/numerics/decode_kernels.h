/* numerics/decode_kernels.h: inside decode only. What a code means (exactly, in double), and the table of fast variants.
 * A fast row decoder is called only when every factor of its blocks is exact in float32 and finite: then code * factor is the one
 * rounding the contract allows. Everything else takes the careful path in decode.c, which is also the portable version. */
#ifndef MICA_NUMERICS_DECODE_KERNELS_H
#define MICA_NUMERICS_DECODE_KERNELS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "numerics/decode_block.h"
#include "numerics/matrix.h"

/* How codes are laid out in a row: a dtype's elements, or nibbles (low nibble = even column, so 8 of them are one little-endian word). */
typedef enum mica_code {
    MICA_CODE_E2M1 = MICA_DTYPE_COUNT, /* below: the mica_dtype itself */
    MICA_CODE_INT4,
    MICA_CODE_COUNT
} mica_code;

/* Columns [column, column + count) of the row whose codes begin at `row`. factors[0] belongs to the block that holds `column`. */
typedef void mica_decode_row(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors, float *out);

/* Largest magnitudes, as bits: for every floating format a larger magnitude has the larger bits, infinity and NaN the largest. */
typedef struct mica_decode_kernels {
    mica_decode_row *row[MICA_CODE_COUNT];                                                        /* NULL: the careful path */
    mica_decode_blocks *const *blocks;                                                            /* [MICA_DTYPE_COUNT]; NULL: the same */
    uint8_t (*max_u8)(const uint8_t *codes, uint64_t stride, uint64_t rows, uint64_t width);      /* of byte & 0x7f, in a rectangle */
    uint16_t (*max_u16)(const uint8_t *codes, uint64_t count);                                    /* of u16 & 0x7fff */
    uint32_t (*max_u32)(const uint8_t *codes, uint64_t count);                                    /* of u32 & 0x7fffffff */
    /* maxima[b] = max over the 32 nibbles n of 16-byte block b of magnitudes[n] */
    void (*max_nibbles)(const uint8_t *codes, uint64_t blocks, const uint8_t magnitudes[16], uint8_t *maxima);
} mica_decode_kernels;

extern const mica_decode_kernels mica_decode_kernels_portable;
#if defined(__x86_64__)
extern const mica_decode_kernels mica_decode_kernels_avx2, mica_decode_kernels_avx512;
extern mica_decode_blocks *const mica_decode_blocks_avx2[MICA_DTYPE_COUNT], *const mica_decode_blocks_avx512[MICA_DTYPE_COUNT];
#endif
const mica_decode_kernels *mica_decode_kernels_current(void);

mica_code mica_matrix_code(const mica_matrix *matrix);
double mica_code_value(mica_code code, const uint8_t *row, uint64_t column); /* exact (I64 beyond 2^53: rounded to odd) */
void mica_scale_values(const mica_matrix *matrix, uint64_t first, uint64_t count, double *values); /* exact; 1 for PLAIN */
static inline double mica_scale_value(const mica_matrix *matrix, uint64_t index) {
    double value;
    mica_scale_values(matrix, index, 1, &value);
    return value;
}

/* Blocks clamped to the matrix; PLAIN is one block with scale 1. */
typedef struct mica_grid {
    uint64_t block_rows, block_columns;  /* >= 1 */
    uint64_t rows, columns;              /* of the grid */
} mica_grid;
mica_grid mica_matrix_grid(const mica_matrix *matrix);

extern const float mica_e2m1_values[16], mica_int4_values[16];
extern const int8_t mica_iq4_values[16];

/* Remembers a value that is not finite, and the place of the first one. */
void mica_health_note(mica_matrix_health *health, double value, uint64_t row, uint64_t column);

static inline uint64_t mica_min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static inline unsigned mica_nibble(const uint8_t *row, uint64_t column) {
    return (row[column / 2] >> (4 * (column & 1))) & 15u;
}

static inline float mica_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline double mica_double_of_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* bias 7, no infinity, 0x7f and 0xff NaN */
static inline double mica_e4m3_value(uint8_t code) {
    uint64_t magnitude = code & 0x7fu, sign = (uint64_t)(code >> 7) << 63;
    if (magnitude == 0x7f) {
        return NAN;
    }
    if (magnitude < 8) { /* subnormal */
        return copysign((double)magnitude * 0x1p-9, sign ? -1.0 : 1.0);
    }
    return mica_double_of_bits(sign | ((magnitude + (1016ull << 3)) << 49)); /* 1016 = 1023 - 7 */
}

static inline double mica_f16_value(uint16_t code) {
    uint64_t magnitude = code & 0x7fffu, sign = (uint64_t)(code >> 15) << 63;
    if (magnitude >= 0x7c00) {
        return magnitude > 0x7c00 ? NAN : copysign(INFINITY, sign ? -1.0 : 1.0);
    }
    if (magnitude < 0x400) {
        return copysign((double)magnitude * 0x1p-24, sign ? -1.0 : 1.0);
    }
    return mica_double_of_bits(sign | ((magnitude + (1008ull << 10)) << 42)); /* 1008 = 1023 - 15 */
}

static inline double mica_e5m2_value(uint8_t code) {
    return mica_f16_value((uint16_t)(code << 8)); /* the upper half of an F16 */
}

static inline double mica_bf16_value(uint16_t code) {
    return (double)mica_float_of_bits((uint32_t)code << 16);
}

/* 2^(code - 127); 0 is 2^-127, 255 is NaN */
static inline double mica_e8m0_value(uint8_t code) {
    return code == 255 ? NAN : mica_double_of_bits((uint64_t)(code + 896u) << 52);
}

#define MICA_DEFINE_LOAD(type, name)                                \
    static inline type name(const uint8_t *bytes, uint64_t index) { \
        type value;                                                 \
        memcpy(&value, bytes + index * sizeof value, sizeof value); \
        return value;                                               \
    }
MICA_DEFINE_LOAD(uint16_t, mica_load_u16)
MICA_DEFINE_LOAD(int16_t, mica_load_i16)
MICA_DEFINE_LOAD(uint32_t, mica_load_u32)
MICA_DEFINE_LOAD(int32_t, mica_load_i32)
MICA_DEFINE_LOAD(uint64_t, mica_load_u64)
MICA_DEFINE_LOAD(int64_t, mica_load_i64)
MICA_DEFINE_LOAD(float, mica_load_f32)
MICA_DEFINE_LOAD(double, mica_load_f64)

#endif
