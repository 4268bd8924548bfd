/* numerics/elementwise_avx2.c: the elementwise kernels, compiled for AVX2 (CMakeLists.txt). See elementwise_generic.h. */
#if defined(__x86_64__)
#define ELEMENTWISE mica_elementwise_avx2
#include "numerics/elementwise_generic.h"
#else
typedef int mica_elementwise_avx2_empty; /* a translation unit may not be empty */
#endif
