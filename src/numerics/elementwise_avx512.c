/* numerics/elementwise_avx512.c: the elementwise kernels, compiled for AVX-512 (CMakeLists.txt). See elementwise_generic.h. */
#if defined(__x86_64__)
#define ELEMENTWISE mica_elementwise_avx512
#include "numerics/elementwise_generic.h"
#else
typedef int mica_elementwise_avx512_empty; /* a translation unit may not be empty */
#endif
