/* numerics/attention_soften.h: inside the attention kernels only. Scores of a block to weights, in one pass over the context. */
#ifndef MICA_NUMERICS_ATTENTION_SOFTEN_H
#define MICA_NUMERICS_ATTENTION_SOFTEN_H

#include <math.h>

#include "numerics/attention_kernels.h"
#include "numerics/lanes.h"

enum { BLOCK = 128 }; /* positions whose scores are held at a time */

/* Positions below this bound are seen by query `query` of the call's. */
INLINE uint64_t visible_to(const mica_attention *attention, uint64_t query, uint64_t end) {
    uint64_t visible = attention->visible + query / attention->heads;
    return visible < end ? visible : end;
}

/* scores[0 … seen) become exp(score - largest) (rounded to bf16 if asked for), the rest of the block zero; the query's sum and its mean's
 * numerator (means, a multiple of 16 wide) are scaled to the new largest. A NaN makes all of it NaN. */
INLINE void soften(float *scores, uint64_t seen, float scale, mica_attention_sum *state, float *means, uint64_t width, const int rounded) {
#if LANES == 16
    const lanes numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
    const lanes numbers = {0, 1, 2, 3, 4, 5, 6, 7};
#endif
    lanes largest = splat(state->largest), sum = splat(0);
    for (uint64_t i = 0; i < seen; i += LANES) {
        lanes v = load(scores + i, LANES) * scale;
        if (seen - i < LANES)
            v = select_lanes(numbers < splat((float)(seen - i)), v, splat(-INFINITY));
        store(scores + i, v, LANES);
        largest = select_lanes((largest >= v), largest, v); /* takes a NaN */
    }
    float top = state->largest;
    for (int k = 0; k < LANES; k++) /* takes a NaN too */
        top = top >= largest[k] ? top : largest[k];
    if (top != state->largest && state->sum != 0) {
        float factor = exponential(splat(state->largest - top))[0];
        state->sum *= factor;
        for (uint64_t k = 0; k < width; k += LANES)
            store(means + k, load(means + k, LANES) * factor, LANES);
    }
    state->largest = top;
    for (uint64_t i = 0; i < seen; i += LANES) {
        lanes v = exponential(load(scores + i, LANES) - top);
        v = rounded ? (lanes)round_to_bf16(v) : v;
        sum += v;
        store(scores + i, v, LANES);
    }
    for (uint64_t i = (seen + LANES - 1) / LANES * LANES; i < BLOCK; i += LANES)
        store(scores + i, splat(0), LANES);
    for (int k = 0; k < LANES; k++)
        state->sum += sum[k];
}

/* The mean of what was seen: numerator / sum; zeros where nothing was. */
INLINE void finish(const float *means, const mica_attention_sum *state, uint64_t width, float *out) {
    float factor = state->sum == 0 ? 0 : 1 / state->sum;
    uint64_t k = 0;
    for (; k + LANES <= width; k += LANES)
        store(out + k, load(means + k, LANES) * factor, LANES);
    if (k < width)
        store(out + k, load(means + k, LANES) * factor, width - k);
}

#endif
