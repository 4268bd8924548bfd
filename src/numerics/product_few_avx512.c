/* numerics/product_few_avx512.c: rows of few tokens, weights fetched to the second-level cache. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include "numerics/product_few_512.h"

mica_product_few *mica_product_few_avx512(const mica_matrix *matrix, mica_precision precision) {
    return few_of(matrix, precision);
}
#else
typedef int mica_product_few_avx512_empty; /* a translation unit may not be empty */
#endif
