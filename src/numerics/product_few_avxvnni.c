/* numerics/product_few_avxvnni.c: rows of few tokens for processors with AVX-VNNI: grouped encodings compiled for it, all others and the
 * preparation as with AVX2. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include "numerics/product_avx2.h"
#include "numerics/product_grouped_256.h"

mica_product_few *mica_product_few_avxvnni(const mica_matrix *matrix, mica_precision precision) {
    mica_product_few *grouped = precision == MICA_PRECISION_FAST ? grouped_few_of(matrix) : NULL;
    return grouped ? grouped : mica_product_few_avx2(matrix, precision);
}
#else
typedef int mica_product_few_avxvnni_empty; /* a translation unit may not be empty */
#endif
