/* numerics/elementwise.c: elementwise.h for the processor at hand. The bodies are in elementwise_generic.h.
 * Judged by tests/numerics/test_elementwise.c. */
#include "numerics/elementwise.h"

#include "base/cpu.h"
#include "numerics/elementwise_kernels.h"

static const mica_elementwise_kernels *current(void) {
    switch (mica_cpu_current()) {
#if defined(__x86_64__)
    case MICA_CPU_AVX2: return &mica_elementwise_avx2;
    case MICA_CPU_AVX512: return &mica_elementwise_avx512;
#endif
    default: return &mica_elementwise_portable;
    }
}

void mica_rms_norm(const float *x, const float *weight, uint64_t count, float epsilon, float *out) {
    current()->rms_norm(x, weight, count, epsilon, out);
}

void mica_silu_multiply(const float *gate, const float *up, uint64_t count, float *out) {
    current()->silu_multiply(gate, up, count, out);
}

void mica_sigmoid(const float *x, uint64_t count, float *out) {
    current()->sigmoid(x, count, out);
}

void mica_softmax(const float *x, uint64_t count, float *out) {
    current()->softmax(x, count, out);
}

void mica_add(const float *x, const float *y, uint64_t count, float *out) {
    current()->add(x, y, count, out);
}

void mica_add_scaled(float factor, const float *x, uint64_t count, float *out) {
    current()->add_scaled(factor, x, count, out);
}

void mica_rope_interleaved(float *x, const float *cosines, const float *sines, uint64_t pairs) {
    current()->rope_interleaved(x, cosines, sines, pairs);
}

void mica_rope_half_split(float *x, const float *cosines, const float *sines, uint64_t pairs) {
    current()->rope_half_split(x, cosines, sines, pairs);
}

void mica_bf16_of_float(const float *x, uint64_t count, uint16_t *out) {
    current()->bf16_of_float(x, count, out);
}

void mica_float_of_bf16(const uint16_t *x, uint64_t count, float *out) {
    current()->float_of_bf16(x, count, out);
}
