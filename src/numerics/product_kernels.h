/* numerics/product_kernels.h: inside product only. The table of an instruction set's kernels; a NULL entry falls back to the one below it:
 * few -> strip of float32 -> portable. */
#ifndef MICA_NUMERICS_PRODUCT_KERNELS_H
#define MICA_NUMERICS_PRODUCT_KERNELS_H

#include "numerics/product.h"

#define MICA_STRIP_COLUMNS 2048 /* of a weight, decoded at a time, in bf16; half as many in float32 */
#define MICA_STRIP_ROWS 64
#define MICA_STRIP_ROWS_AMX 128 /* tokens come from beyond the second-level cache for each strip anew, and tiles are quick */
#define MICA_STRIP_PAD 32       /* elements between rows: a power of two would fill one set of the cache */

/* Rows [row, row + count) of few tokens, from the bytes as they are. */
typedef void mica_product_few(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride);
/* Rows and columns of a weight to float32 or bf16; up to a multiple of 256 columns may be written. */
typedef void mica_strip_f32(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, float *strip,
                            uint64_t stride);
typedef void mica_strip_bf16(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, uint16_t *strip,
                             uint64_t stride);

/* A part of a weight that becomes bf16. */
typedef struct mica_strip {
    const mica_matrix *matrix;
    mica_strip_bf16 *decode;
    uint64_t row, rows, column, width; /* at most strip_rows x MICA_STRIP_COLUMNS */
} mica_strip;

typedef struct mica_product_kernels {
    void (*prepare)(mica_operand *operand, uint64_t row); /* NULL: float32 is all that is used */
    /* NULL where the layout is not one it knows */
    mica_product_few *(*few)(const mica_matrix *matrix, mica_precision precision);
    /* up to how many tokens that is the quickest FAST product, as measured: MICA_PRODUCT_FEW (as if NULL) to MICA_PRODUCT_SOME */
    uint64_t (*few_tokens)(const mica_matrix *matrix);
    mica_strip_f32 *(*strip_f32)(const mica_matrix *matrix);
    mica_strip_bf16 *(*strip_bf16)(const mica_matrix *matrix);
    /* out[t][r] (+)= strip[r] . x[t] over columns [column, column + width) */
    void (*multiply_f32)(const float *strip, uint64_t strip_stride, uint64_t rows, const mica_operand *x, uint64_t column, uint64_t width,
                         float *out, uint64_t stride);
    uint64_t strip_rows; /* of multiply_bf16 */
    void (*multiply_bf16)(const mica_strip *strip, const mica_operand *x, float *out, uint64_t stride, void *scratch);
} mica_product_kernels;

extern const mica_product_kernels mica_product_kernels_portable;
#if defined(__x86_64__)
extern const mica_product_kernels mica_product_kernels_avx2, mica_product_kernels_avxvnni, mica_product_kernels_avx512,
    mica_product_kernels_avx512_bf16, mica_product_kernels_amx;
#endif

/* DO(t, count) for tokens t and on, with a count of four, two or one that is a constant, until all of `tokens` are done. */
#define FEW_AT_A_TIME(tokens, DO)        \
    do {                                 \
        uint64_t first_ = 0;             \
        for (; first_ + 4 <= (tokens); first_ += 4) \
            DO(first_, 4);               \
        if (first_ + 2 <= (tokens)) {    \
            DO(first_, 2);               \
            first_ += 2;                 \
        }                                \
        if (first_ < (tokens))           \
            DO(first_, 1);               \
    } while (0)

static inline uint64_t mica_operand_row(const mica_operand *x, uint64_t token) {
    return x->selection ? x->selection[token] : token;
}

#endif
