/* numerics/product_avx512.c: the tables of the AVX-512 product kernels. */
#if defined(__x86_64__)
#include "numerics/product_avx512.h"

/* Without bf16. Four tokens at a time come to 138 to 198 GFLOP/s of eight tokens and to 73 to 112 of sixteen; strips to 139 to 170 of sixteen. */
static uint64_t few_tokens(const mica_matrix *matrix) {
    return mica_grouped_avx512(matrix) >= 0 ? 8 : MICA_PRODUCT_FEW;
}

const mica_product_kernels mica_product_kernels_avx512 = {.prepare = mica_prepare_avx512,
                                                          .few = mica_product_few_avx512,
                                                          .few_tokens = few_tokens,
                                                          .strip_f32 = mica_product_strip_f32_avx512,
                                                          .multiply_f32 = mica_multiply_f32_avx512};

const mica_product_kernels mica_product_kernels_avx512_bf16 = {.prepare = mica_prepare_avx512,
                                                               .few = mica_product_few_past_avx512, /* processors with quick bf16 are AMD's */
                                                               .strip_f32 = mica_product_strip_f32_avx512,
                                                               .strip_bf16 = mica_product_strip_bf16_avx512,
                                                               .multiply_f32 = mica_multiply_f32_avx512,
                                                               .strip_rows = MICA_STRIP_ROWS,
                                                               .multiply_bf16 = mica_multiply_bf16_avx512};

const mica_product_kernels mica_product_kernels_amx = {.prepare = mica_prepare_avx512,
                                                       .few = mica_product_few_avx512,
                                                       .strip_f32 = mica_product_strip_f32_avx512,
                                                       .strip_bf16 = mica_product_strip_bf16_avx512,
                                                       .multiply_f32 = mica_multiply_f32_avx512,
                                                       .strip_rows = MICA_STRIP_ROWS_AMX,
                                                       .multiply_bf16 = mica_multiply_bf16_amx};
#else
typedef int mica_product_avx512_empty; /* a translation unit may not be empty */
#endif
