/* numerics/elementwise_generic.h: the bodies of the elementwise kernels, over 16 lanes of float; included once for each instruction set.
 * Neither products and sums are contracted nor is any order left to the compiler: every set gives the same bits. */
#include "numerics/elementwise_kernels.h"

#include <math.h>

#include "numerics/lanes.h"

typedef double half_doubles __attribute__((vector_size(4 * LANES)));

/* body for a whole vector (n is the constant LANES then), and once for what is left */
#define EACH_LANES(count, ...)                       \
    do {                                             \
        uint64_t i = 0;                              \
        for (; i + LANES <= (count); i += LANES) {   \
            const uint64_t n = LANES;                \
            __VA_ARGS__                              \
        }                                            \
        if (i < (count)) {                           \
            const uint64_t n = (count) - i;          \
            __VA_ARGS__                              \
        }                                            \
    } while (0)

INLINE half_doubles low_doubles(lanes v) {
    half_lanes half;
    memcpy(&half, &v, sizeof half);
    return __builtin_convertvector(half, half_doubles);
}

INLINE half_doubles high_doubles(lanes v) {
    half_lanes half;
    memcpy(&half, (const char *)&v + sizeof half, sizeof half);
    return __builtin_convertvector(half, half_doubles);
}

INLINE double sum_doubles(half_doubles v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

static void rms_norm(const float *x, const float *weight, uint64_t count, float epsilon, float *out) {
    half_doubles low = {0}, high = {0};
    EACH_LANES(count, {
        lanes v = load(x + i, n);
        half_doubles a = low_doubles(v), b = high_doubles(v);
        low += a * a;
        high += b * b;
    });
    float scale = (float)(1 / sqrt(sum_doubles(low + high) / (double)count + (double)epsilon));
    EACH_LANES(count, {
        lanes v = load(x + i, n) * scale;
        store(out + i, weight ? v * load(weight + i, n) : v, n);
    });
}

INLINE lanes logistic(lanes x) {
    return 1.0f / (1.0f + exponential(-x));
}

static void silu_multiply(const float *gate, const float *up, uint64_t count, float *out) {
    EACH_LANES(count, {
        lanes g = load(gate + i, n);
        store(out + i, g * logistic(g) * load(up + i, n), n);
    });
}

static void sigmoid(const float *x, uint64_t count, float *out) {
    EACH_LANES(count, { store(out + i, logistic(load(x + i, n)), n); });
}

static void softmax(const float *x, uint64_t count, float *out) {
    lanes largest = splat(-INFINITY);
    EACH_LANES(count, {
        lanes v = load(x + i, n);
        for (uint64_t k = n; k < LANES; k++)
            v[k] = -INFINITY;
        largest = select_lanes(largest < v, v, largest);
    });
    float max = -INFINITY;
    for (int k = 0; k < LANES; k++)
        max = largest[k] > max ? largest[k] : max;
    half_doubles low = {0}, high = {0};
    EACH_LANES(count, {
        lanes v = exponential(load(x + i, n) - max);
        for (uint64_t k = n; k < LANES; k++)
            v[k] = 0;
        low += low_doubles(v);
        high += high_doubles(v);
        store(out + i, v, n);
    });
    float factor = (float)(1 / sum_doubles(low + high));
    EACH_LANES(count, { store(out + i, load(out + i, n) * factor, n); });
}

static void add(const float *x, const float *y, uint64_t count, float *out) {
    EACH_LANES(count, { store(out + i, load(x + i, n) + load(y + i, n), n); });
}

static void add_scaled(float factor, const float *x, uint64_t count, float *out) {
    EACH_LANES(count, { store(out + i, load(out + i, n) + load(x + i, n) * factor, n); });
}

static void rope_interleaved(float *x, const float *cosines, const float *sines, uint64_t pairs) {
    for (uint64_t i = 0; i < pairs; i++) {
        float even = x[2 * i], odd = x[2 * i + 1];
        x[2 * i] = even * cosines[i] - odd * sines[i];
        x[2 * i + 1] = odd * cosines[i] + even * sines[i];
    }
}

static void rope_half_split(float *x, const float *cosines, const float *sines, uint64_t pairs) {
    EACH_LANES(pairs, {
        lanes a = load(x + i, n), b = load(x + pairs + i, n), c = load(cosines + i, n), s = load(sines + i, n);
        store(x + i, a * c - b * s, n);
        store(x + pairs + i, b * c + a * s, n);
    });
}

static void bf16_of_float(const float *x, uint64_t count, uint16_t *out) {
    EACH_LANES(count, {
        halves h = __builtin_convertvector(round_to_bf16(load(x + i, n)) >> 16, halves);
        memcpy(out + i, &h, n * sizeof *out);
    });
}

static void float_of_bf16(const uint16_t *x, uint64_t count, float *out) {
    EACH_LANES(count, {
        store(out + i, load_bf16(x + i, n), n);
    });
}

const mica_elementwise_kernels ELEMENTWISE = {rms_norm,   silu_multiply,    sigmoid,         softmax,       add,
                                              add_scaled, rope_interleaved, rope_half_split, bf16_of_float, float_of_bf16};
