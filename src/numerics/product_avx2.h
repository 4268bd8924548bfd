/* numerics/product_avx2.h: what the files of the AVX2 product kernels know of each other. */
#ifndef MICA_NUMERICS_PRODUCT_AVX2_H
#define MICA_NUMERICS_PRODUCT_AVX2_H

#include "numerics/product_kernels.h"

/* product_few_avx2.c */
mica_product_few *mica_product_few_avx2(const mica_matrix *matrix, mica_precision precision);
void mica_prepare_avx2(mica_operand *x, uint64_t row);
/* product_few_avxvnni.c: only where the processor has AVX-VNNI */
mica_product_few *mica_product_few_avxvnni(const mica_matrix *matrix, mica_precision precision);

#endif
