/* numerics/quantise_portable.c: the quantisers for any processor, 4 floats in a generic vector; and the choice among the sets. */
#define LANES 4
#define KERNELS mica_quantise_kernels_portable
#include "numerics/quantise_blocks.h"

const mica_quantise_kernels *mica_quantise_kernels_for(mica_cpu cpu) {
    const mica_quantise_kernels *kernels = cpu == MICA_CPU_AVX512 ? mica_quantise_kernels_avx512() : NULL;
    if (!kernels && cpu >= MICA_CPU_AVX2)
        kernels = mica_quantise_kernels_avx2();
    return kernels ? kernels : mica_quantise_kernels_portable();
}
