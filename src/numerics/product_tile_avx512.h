/* numerics/product_tile_avx512.h: inside the AVX-512 product kernels only. What tiles of a strip have in common, whether it is float32 or bf16: 4 rows and
 * up to 6 tokens, sums in 16 lanes. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_TILE_AVX512_H
#define MICA_NUMERICS_PRODUCT_TILE_AVX512_H

#include "numerics/product_kernels.h"
#include "numerics/product_unpack_avx512.h"
#include "numerics/sums_avx512.h"

enum { TILE_ROWS = 4, TILE_TOKENS = 6 };

/* A token's sums of the tile's rows, to `out`, or onto what is there. */
INLINE void store_sums(const __m512 sums[TILE_ROWS], __mmask8 rows, bool add, float *out) {
    __m128 sum = sums_of_four(sums);
    if (add)
        sum = _mm_add_ps(sum, _mm_maskz_loadu_ps(rows, out));
    _mm_mask_storeu_ps(out, rows, sum);
}

/* While a strip meets some tokens, the next ones come to the second-level cache: a part of their columns with each tile. `values` is the first
 * of these columns in row 0, `row_bytes` lie between rows, `bytes` are wanted of each. */
INLINE void fetch_next(const mica_operand *x, uint64_t token, const void *values, uint64_t row_bytes, uint64_t bytes, uint64_t part, uint64_t parts) {
    uint64_t end = token + TILE_TOKENS < x->tokens ? token + TILE_TOKENS : x->tokens, from = bytes * part / parts, to = bytes * (part + TILE_ROWS) / parts;
    for (; token < end; token++) {
        const char *row = (const char *)values + mica_operand_row(x, token) * row_bytes;
        for (uint64_t k = from; k < to; k += 64)
            _mm_prefetch(row + k, _MM_HINT_T1);
    }
}

#endif
