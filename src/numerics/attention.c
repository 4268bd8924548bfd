/* numerics/attention.c: the choice of a kernel, the portable one (one query at a time, float32 and float64), and the combination of parts.
 * Refuses nothing: the caller has checked shapes. Judged by tests/numerics/test_attention.c. */
#include "numerics/attention.h"

#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "numerics/attention_kernels.h"

enum { BLOCK = 64 }; /* positions whose scores are held at a time */

static float element(const mica_attention *attention, const void *array, uint64_t index) {
    if (attention->dtype == MICA_F32)
        return ((const float *)array)[index];
    uint32_t bits = (uint32_t)((const uint16_t *)array)[index] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* One query against some positions: its state is the weighted sum (in out), the largest score and the sum of weights. */
static void attend_block(const mica_attention *attention, uint64_t position, uint64_t count, const float *query, float *out,
                         mica_attention_sum *state) {
    float scores[BLOCK], largest = state->largest;
    for (uint64_t p = 0; p < count; p++) {
        double sum = 0;
        for (uint64_t k = 0; k < attention->key_width; k++)
            sum += (double)query[k] * (double)element(attention, attention->keys, (position + p) * attention->key_stride + k);
        scores[p] = (float)(sum * (double)attention->scale);
        largest = scores[p] > largest ? scores[p] : largest;
    }
    float factor = state->sum > 0 ? expf(state->largest - largest) : 0;
    for (uint64_t k = 0; k < attention->value_width; k++)
        out[k] *= factor;
    state->sum *= factor;
    state->largest = largest;
    for (uint64_t p = 0; p < count; p++) {
        float weight = expf(scores[p] - largest);
        state->sum += weight;
        for (uint64_t k = 0; k < attention->value_width; k++)
            out[k] += weight * element(attention, attention->values, (position + p) * attention->value_stride + k);
    }
}

static void attend_portable(const mica_attention *attention, uint64_t position, uint64_t end, uint64_t first, const float *queries,
                            uint64_t query_stride, uint64_t count, float *out, uint64_t out_stride, mica_attention_sum *sums, void *scratch) {
    (void)scratch;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t visible = attention->visible + (first + i) / attention->heads, last = visible < end ? visible : end;
        float *mean = out + i * out_stride;
        memset(mean, 0, attention->value_width * sizeof *mean);
        sums[i] = (mica_attention_sum){-INFINITY, 0};
        for (uint64_t p = position; p < last; p += BLOCK)
            attend_block(attention, p, last - p < BLOCK ? last - p : BLOCK, queries + i * query_stride, mean, &sums[i]);
        for (uint64_t k = 0; k < attention->value_width && sums[i].sum != 0; k++)
            mean[k] /= sums[i].sum;
    }
}

#if defined(__x86_64__)
static mica_attend_kernel *bf16_kernel(const mica_attention *attention) {
    if (mica_cpu_has_amx() && attention->key_width % 32 == 0 && attention->value_width % 32 == 0)
        return mica_attend_amx;
    return mica_cpu_has_bf16() ? mica_attend_dpbf16 : mica_attend_bf16_avx512;
}
#endif

static mica_attend_kernel *kernel_for(const mica_attention *attention) {
#if defined(__x86_64__)
    switch (mica_cpu_current()) {
    case MICA_CPU_AVX2: return attention->dtype == MICA_F32 ? mica_attend_f32_avx2 : mica_attend_bf16_avx2;
    case MICA_CPU_AVX512: return attention->dtype == MICA_F32 ? mica_attend_f32_avx512 : bf16_kernel(attention);
    default: break;
    }
#endif
    (void)attention;
    return attend_portable;
}

void mica_attend(const mica_attention *attention, uint64_t position, uint64_t end, const float *queries, uint64_t query_stride, uint64_t count,
                 float *out, uint64_t out_stride, mica_attention_sum *sums, void *scratch) {
    mica_attend_kernel *kernel = kernel_for(attention);
    for (uint64_t first = 0; first < count; first += MICA_ATTENTION_QUERIES) {
        uint64_t some = count - first < MICA_ATTENTION_QUERIES ? count - first : MICA_ATTENTION_QUERIES;
        kernel(attention, position, end, first, queries + first * query_stride, query_stride, some, out + first * out_stride, out_stride, sums + first,
               scratch);
    }
}

void mica_attention_combine(const float *parts, uint64_t part_stride, const mica_attention_sum *sums, uint64_t sum_stride, uint64_t count,
                            uint64_t width, float *out) {
    float largest = -INFINITY;
    double total = 0;
    for (uint64_t p = 0; p < count; p++)
        largest = sums[p * sum_stride].largest > largest ? sums[p * sum_stride].largest : largest;
    for (uint64_t p = 0; p < count; p++)
        total += sums[p * sum_stride].sum > 0 ? (double)sums[p * sum_stride].sum * exp((double)sums[p * sum_stride].largest - (double)largest) : 0;
    memset(out, 0, width * sizeof *out);
    for (uint64_t p = 0; p < count; p++) {
        mica_attention_sum part = sums[p * sum_stride];
        if (part.sum == 0) /* NaN is passed on */
            continue;
        float weight = (float)((double)part.sum * exp((double)part.largest - (double)largest) / total);
        for (uint64_t k = 0; k < width; k++)
            out[k] += weight * parts[p * part_stride + k];
    }
}
