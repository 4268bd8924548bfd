/* numerics/product.h: products of a stored weight, as it is encoded, with activations. No weight is ever converted as a whole, nothing is
 * allocated, and any number of threads may work on one operand. Judged by tests/numerics/test_product.c.
 *
 * An operand holds activations [tokens][columns] and what the kernels want of them (bf16, int16 as two digits), made once and used by all
 * weights that multiply them.
 *   EXACT  float32 activations and products, float32 sums (in many lanes): for judging
 *   FAST   up to MICA_PRODUCT_FEW tokens: plain and fp8 weights as EXACT; grouped and block weights with activations of 16 bits
 *          (one scale for 256 columns): off by 1e-5. More: the same as long as it is the faster way (up to MICA_PRODUCT_SOME, by encoding),
 *          then weights and activations rounded to bf16, float32 sums: off by 2e-3 (F32 weights as EXACT).
 * What is not accelerated for the processor computes as EXACT.
 *
 * out[t][r] depends on row r, on token t, on the precision, and on the numbers of tokens, of those that are multiplied and of those that
 * the operand was made for; not on how rows are split among calls or threads, on which tokens are selected, or on the other tokens.
 * Infinite or NaN weights or activations give an infinite or NaN result. */
#ifndef MICA_NUMERICS_PRODUCT_H
#define MICA_NUMERICS_PRODUCT_H

#include <stdbool.h>
#include <stdint.h>

#include "numerics/matrix.h"

#define MICA_PRODUCT_FEW 4 /* tokens */
#define MICA_PRODUCT_SOME 16 /* an operand of up to so many is prepared for selections of few of them as well */
#define MICA_PRODUCT_SCRATCH_BYTES 674816 /* for each thread that multiplies, 64-byte aligned */

typedef enum mica_precision { MICA_PRECISION_EXACT, MICA_PRECISION_FAST } mica_precision;

typedef struct mica_operand {
    mica_precision precision;
    uint64_t tokens, columns;
    const float *values; /* [rows][stride], the caller's: it must stay as it is while the operand is used */
    uint64_t stride;
    const uint32_t *selection; /* token t is row selection[t]; NULL: row t */
    /* the kernels' own, in the caller's storage; NULL where they have no use for them */
    uint64_t padded; /* columns, to a multiple of 256; zeros there */
    uint16_t *bf16;  /* of more than few tokens: [rows][padded] */
    /* of up to MICA_PRODUCT_SOME: */
    int8_t *digits;     /* AVX-512: [rows][padded / 64][2][64]: value = (256 first + second) * scale; in product_unpack_avx512.h's order */
    int8_t *quads;      /* the same, [rows][padded / 256][512], in the order of product_quads.h; AVX2: of product_quads_256.h */
    int16_t *words;     /* AVX2, in the place of digits: [rows][padded / 32][2][16]: even columns, odd columns */
    int32_t *sums;      /* AVX-512: [rows][padded / 4]: -128 * the sum of four of these integers */
    int32_t *pair_sums; /* AVX-512: [rows][padded / 8]: two of these, of a pair of registers */
    float *block_sums;  /* AVX2, in the place of sums: [rows][padded / 32]: -1 * the sum of thirty-two */
    float *wide_sums;   /* [rows][padded / 16]: of sixteen: AVX-512 -128 * their sum, AVX2 -1 * */
    float *quad_sums;   /* AVX-512: [rows][padded / 16]: wide_sums in the order of quads */
    float *wide_pair_sums; /* AVX-512: [rows][padded / 256][2][8]: zeros; the same of thirty-two */
    float *scales;   /* [rows][padded / 256] */
} mica_operand;

/* Lays `operand` out over `values` and `storage` (64-byte aligned, mica_operand_bytes of as many tokens or more; NULL if 0). */
uint64_t mica_operand_bytes(mica_precision precision, uint64_t tokens, uint64_t columns);
void mica_operand_init(mica_operand *operand, mica_precision precision, const float *values, uint64_t stride, uint64_t tokens,
                       uint64_t columns, void *storage);
/* Prepares tokens [token, token + count): once values are there, before any product; threads may share the tokens out. */
void mica_operand_prepare(mica_operand *operand, uint64_t token, uint64_t count);
/* Some tokens of a prepared operand (an expert's), without a copy, computed as all of it would be; `tokens` is borrowed. Not of a selection
 * again. */
mica_operand mica_operand_select(const mica_operand *operand, const uint32_t *tokens, uint64_t count);

/* out[t * stride + r - row] = sum over c of W(r, c) x[t][c], for rows [row, row + count) and all tokens; x->columns == matrix->columns. */
void mica_product(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                  void *scratch);

/* How mica_product goes about it ("int16", "float32", "bf16 strips", …), for an operand of so many tokens; for benches and tests. */
const char *mica_product_method(const mica_matrix *matrix, mica_precision precision, uint64_t tokens);

#endif
