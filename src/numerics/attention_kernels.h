/* numerics/attention_kernels.h: inside attention only. */
#ifndef MICA_NUMERICS_ATTENTION_KERNELS_H
#define MICA_NUMERICS_ATTENTION_KERNELS_H

#include "numerics/attention.h"

typedef void mica_attend_kernel(const mica_attention *attention, uint64_t position, uint64_t end, uint64_t first /* query's number */,
                                const float *queries, uint64_t query_stride, uint64_t count /* <= MICA_ATTENTION_QUERIES */, float *out,
                                uint64_t out_stride, mica_attention_sum *sums, void *scratch);

#endif
