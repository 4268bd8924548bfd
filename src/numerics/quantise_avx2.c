/* numerics/quantise_avx2.c: the quantisers, 8 floats in a register. Compiled with AVX2's flags; called only where the processor has it. */
#if defined(__AVX2__)
#define LANES 8
#define KERNELS mica_quantise_kernels_avx2
#include "numerics/quantise_blocks.h"
#else
#include "numerics/quantise_kernels.h"
const mica_quantise_kernels *mica_quantise_kernels_avx2(void) {
    return 0;
}
#endif
