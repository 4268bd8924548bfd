/* numerics/quantise_avx512.c: the quantisers, 16 floats in a register. Compiled with AVX-512's flags; called only where the processor has
 * it. */
#if defined(__AVX512F__)
#define LANES 16
#define KERNELS mica_quantise_kernels_avx512
#include "numerics/quantise_blocks.h"
#else
#include "numerics/quantise_kernels.h"
const mica_quantise_kernels *mica_quantise_kernels_avx512(void) {
    return 0;
}
#endif
