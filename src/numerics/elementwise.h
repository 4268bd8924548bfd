/* numerics/elementwise.h: what a layer does between its products; float32, sums in 16 lanes. One definition, compiled for each
 * instruction set: the same bits on all of them. Nothing is allocated. Arrays need no alignment; `out` may be an input, no other overlap.
 * Judged by tests/numerics/test_elementwise.c. */
#ifndef MICA_NUMERICS_ELEMENTWISE_H
#define MICA_NUMERICS_ELEMENTWISE_H

#include <stdint.h>

/* out = x / sqrt(mean(x^2) + epsilon) * weight; a NULL weight is ones */
void mica_rms_norm(const float *x, const float *weight, uint64_t count, float epsilon, float *out);
/* x / (1 + exp(-x)) * up */
void mica_silu_multiply(const float *gate, const float *up, uint64_t count, float *out);
void mica_sigmoid(const float *x, uint64_t count, float *out);
/* exp(x - max) / sum; a row of -infinity alone, or with a NaN, is NaN */
void mica_softmax(const float *x, uint64_t count, float *out);
void mica_add(const float *x, const float *y, uint64_t count, float *out);
/* out += factor * x */
void mica_add_scaled(float factor, const float *x, uint64_t count, float *out);

/* Rotates pair i of `x` by the angle whose cosine and sine are cosines[i], sines[i]; `pairs` = width / 2.
 * Interleaved pairs are (2i, 2i + 1), as DeepSeek stores them; half-split ones (i, i + pairs), as Llama's checkpoints. */
void mica_rope_interleaved(float *x, const float *cosines, const float *sines, uint64_t pairs);
void mica_rope_half_split(float *x, const float *cosines, const float *sines, uint64_t pairs);

/* To bf16, nearest even; NaN stays NaN. And back. */
void mica_bf16_of_float(const float *x, uint64_t count, uint16_t *out);
void mica_float_of_bf16(const uint16_t *x, uint64_t count, float *out);

#endif
