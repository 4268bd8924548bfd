/* numerics/product_avx512.h: what the files of the AVX-512 product kernels know of each other. */
#ifndef MICA_NUMERICS_PRODUCT_AVX512_H
#define MICA_NUMERICS_PRODUCT_AVX512_H

#include "numerics/product_kernels.h"

/* Which row of GROUPED_LIST (product_unpack_avx512.h) or PLAIN_LIST (product_load_avx512.h) a weight is; -1: none */
int mica_grouped_avx512(const mica_matrix *matrix);
int mica_plain_avx512(const mica_matrix *matrix);

/* product_few_avx512.c, product_few_past_avx512.c */
mica_product_few *mica_product_few_avx512(const mica_matrix *matrix, mica_precision precision);
mica_product_few *mica_product_few_past_avx512(const mica_matrix *matrix, mica_precision precision);
/* product_strip_avx512.c */
mica_strip_f32 *mica_product_strip_f32_avx512(const mica_matrix *matrix);
void mica_multiply_f32_avx512(const float *strip, uint64_t strip_stride, uint64_t rows, const mica_operand *x, uint64_t column, uint64_t width,
                              float *out, uint64_t stride);
void mica_prepare_avx512(mica_operand *x, uint64_t row);
/* product_bf16_avx512.c: only where the processor has AVX512_BF16 */
mica_strip_bf16 *mica_product_strip_bf16_avx512(const mica_matrix *matrix);
void mica_multiply_bf16_avx512(const mica_strip *strip, const mica_operand *x, float *out, uint64_t stride, void *scratch);
/* product_amx.c: only where the processor has AMX */
void mica_multiply_bf16_amx(const mica_strip *strip, const mica_operand *x, float *out, uint64_t stride, void *scratch);

#endif
