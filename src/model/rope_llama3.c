/* model/rope_llama3.c: llama3's scaling of frequencies from what GGUF has of it: the divisors alone. Between its two bounds the kept share
 * of a frequency is a line over it, of which two points say all but a common factor of its three numbers; published models have a
 * low_freq_factor of 1.
 * Judged by tests/model/test_rope.c: what is found gives the same divisors, bit for bit. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/rope.h"

#define PI 3.14159265358979323846

/* Turns within one position, times 2 pi: of pair i. */
static double frequency_of(const mica_config *config, uint64_t pair) {
    return pow(config->rope_theta, -2.0 * (double)pair / (double)config->head_dim);
}

double mica_rope_llama3_divisor(const mica_config *config, uint64_t pair) {
    const double low = (double)config->rope_original_context / config->rope_low_freq_factor,
                 high = (double)config->rope_original_context / config->rope_high_freq_factor, length = 2 * PI / frequency_of(config, pair);
    const double smooth = ((double)config->rope_original_context / length - config->rope_low_freq_factor) /
                          (config->rope_high_freq_factor - config->rope_low_freq_factor);
    return length < high ? 1 : length > low ? config->rope_factor : 1 / ((1 - smooth) / config->rope_factor + smooth);
}

static bool gives(const mica_config *config, const float *divisors) {
    for (uint64_t i = 0; i < config->head_dim / 2; i++)
        if ((float)mica_rope_llama3_divisor(config, i) != divisors[i])
            return false;
    return true;
}

/* The share of a frequency that a divisor keeps. */
static double kept(double divisor, double factor) {
    return (1 / divisor - 1 / factor) / (1 - 1 / factor);
}

bool mica_rope_find_llama3(mica_config *config, const float *divisors) {
    const uint64_t pairs = config->head_dim / 2;
    const double factor = (double)divisors[pairs - 1];
    uint64_t first = 0, last = pairs;
    while (first < pairs && divisors[first] == 1)
        first++;
    while (last > first && (double)divisors[last - 1] == factor)
        last--;
    snprintf(config->rope_type, sizeof config->rope_type, "llama3");
    config->rope_factor = factor;
    config->rope_low_freq_factor = 1;
    config->rope_high_freq_factor = 4;
    config->rope_original_context = 8192;
    if (!(factor > 1) || gives(config, divisors)) /* those of Llama 3 */
        return factor > 1;
    if (last < first + 2)
        return false;
    const double x = frequency_of(config, first) / (2 * PI), z = frequency_of(config, last - 1) / (2 * PI);
    const double slope = (kept((double)divisors[first], factor) - kept((double)divisors[last - 1], factor)) / (x - z);
    const double offset = kept((double)divisors[first], factor) - slope * x;
    config->rope_high_freq_factor = round((1 - 1 / offset) * 1000) / 1000;
    config->rope_original_context = (uint64_t)fmax(1, fmin(1e15, round(slope * (config->rope_high_freq_factor - 1))));
    return config->rope_high_freq_factor > 1 && gives(config, divisors);
}
