/* numerics/attention_kernels.h: inside attention only. */
#ifndef MICA_NUMERICS_ATTENTION_KERNELS_H
#define MICA_NUMERICS_ATTENTION_KERNELS_H

#include "numerics/attention.h"

typedef void mica_attend_kernel(const mica_attention *attention, uint64_t position, uint64_t end, uint64_t first /* query's number */,
                                const float *queries, uint64_t query_stride, uint64_t count /* <= MICA_ATTENTION_QUERIES */, float *out,
                                uint64_t out_stride, mica_attention_sum *sums, void *scratch);

#if defined(__x86_64__)
mica_attend_kernel mica_attend_f32_avx2, mica_attend_bf16_avx2, mica_attend_f32_avx512, mica_attend_bf16_avx512;
mica_attend_kernel mica_attend_dpbf16; /* where there is AVX512_BF16 */
mica_attend_kernel mica_attend_amx;    /* where there is AMX; widths that are multiples of 32 */
#endif

#endif
