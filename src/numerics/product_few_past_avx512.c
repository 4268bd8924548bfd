/* numerics/product_few_past_avx512.c: rows of few tokens, weights fetched past the caches that they would flush: none is used again before
 * hundreds of megabytes of others, and what is used between them (activations, keys and values, code) stays. On Zen 5 two threads then read
 * Q8_0 at 96 to 98 % of the memory's rate, otherwise at 88 to 92 (bench/README.md). Not measured on Intel's processors, which take the other
 * file. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#define FETCH_HINT _MM_HINT_NTA
#include "numerics/product_few_512.h"

mica_product_few *mica_product_few_past_avx512(const mica_matrix *matrix, mica_precision precision) {
    return few_of(matrix, precision);
}
#else
typedef int mica_product_few_past_avx512_empty; /* a translation unit may not be empty */
#endif
