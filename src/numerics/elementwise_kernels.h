/* numerics/elementwise_kernels.h: inside elementwise only. The functions of elementwise.h for one instruction set. */
#ifndef MICA_NUMERICS_ELEMENTWISE_KERNELS_H
#define MICA_NUMERICS_ELEMENTWISE_KERNELS_H

#include <stdint.h>

typedef struct mica_elementwise_kernels {
    void (*rms_norm)(const float *x, const float *weight, uint64_t count, float epsilon, float *out);
    void (*silu_multiply)(const float *gate, const float *up, uint64_t count, float *out);
    void (*sigmoid)(const float *x, uint64_t count, float *out);
    void (*softmax)(const float *x, uint64_t count, float *out);
    void (*add)(const float *x, const float *y, uint64_t count, float *out);
    void (*add_scaled)(float factor, const float *x, uint64_t count, float *out);
    void (*rope_interleaved)(float *x, const float *cosines, const float *sines, uint64_t pairs);
    void (*rope_half_split)(float *x, const float *cosines, const float *sines, uint64_t pairs);
    void (*bf16_of_float)(const float *x, uint64_t count, uint16_t *out);
    void (*float_of_bf16)(const uint16_t *x, uint64_t count, float *out);
} mica_elementwise_kernels;

extern const mica_elementwise_kernels mica_elementwise_portable;
#if defined(__x86_64__)
extern const mica_elementwise_kernels mica_elementwise_avx2, mica_elementwise_avx512;
#endif

#endif
