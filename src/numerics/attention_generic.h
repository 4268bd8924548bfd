/* numerics/attention_generic.h: attention in float32 over 8 or 16 lanes, from a cache of float32 or bf16; included for each instruction set.
 * The including file defines LANES, MULTIPLY_ADD(a, b, c) = a b + c (written out, for a compiler that fuses by its own lights gives a query
 * other bits in other company), ATTEND_F32 and ATTEND_BF16, the functions' names, TILE, positions and queries whose scores are held in
 * registers, and GROUP, queries whose means are. Judged by tests/numerics/test_attention.c. */
#include "numerics/attention_soften.h"

typedef float four_lanes __attribute__((vector_size(16)));

#define QUARTER(v, first) __builtin_shufflevector(v, v, first, first + 1, first + 2, first + 3)

INLINE float total(lanes v) {
    four_lanes four = QUARTER(v, 0) + QUARTER(v, 4);
#if LANES == 16
    four += QUARTER(v, 8) + QUARTER(v, 12);
#endif
    return (four[0] + four[1]) + (four[2] + four[3]);
}

INLINE lanes cached(const void *array, uint64_t index, uint64_t count, const int bf16) {
    return bf16 ? load_bf16((const uint16_t *)array + index, count) : load((const float *)array + index, count);
}

/* Scores of up to TILE positions and TILE queries; rows beyond the last are its repetition. */
INLINE void score_tile(const mica_attention *attention, uint64_t position, uint64_t positions, const float *queries, uint64_t query_stride,
                       uint64_t count, float *scores, const int bf16) {
    lanes sums[TILE][TILE];
    for (int p = 0; p < TILE; p++)
        for (int q = 0; q < TILE; q++)
            sums[p][q] = splat(0);
    for (uint64_t k = 0; k < attention->key_width; k += LANES) {
        uint64_t n = attention->key_width - k < LANES ? attention->key_width - k : LANES;
        lanes query[TILE];
        for (uint64_t q = 0; q < TILE; q++) {
            const float *from = queries + (q < count ? q : count - 1) * query_stride + k;
            query[q] = n == LANES ? load(from, LANES) : load(from, n);
        }
        for (uint64_t p = 0; p < TILE; p++) {
            uint64_t index = (position + (p < positions ? p : positions - 1)) * attention->key_stride + k;
            lanes key = n == LANES ? cached(attention->keys, index, LANES, bf16) : cached(attention->keys, index, n, bf16);
            for (int q = 0; q < TILE; q++)
                sums[p][q] = MULTIPLY_ADD(key, query[q], sums[p][q]);
        }
    }
    for (uint64_t q = 0; q < TILE && q < count; q++)
        for (uint64_t p = 0; p < TILE; p++)
            scores[q * BLOCK + p] = total(sums[p][q]);
}

/* means[q][k … k + 16) += weights[q] . values of a block's positions, for up to GROUP queries */
INLINE void add_values(const mica_attention *attention, uint64_t position, uint64_t positions, const float *weights, uint64_t count, uint64_t k,
                       float *means, uint64_t width, const int bf16) {
    lanes sums[GROUP];
    uint64_t n = attention->value_width - k < LANES ? attention->value_width - k : LANES;
    for (uint64_t q = 0; q < GROUP; q++)
        sums[q] = load(means + (q < count ? q : count - 1) * width + k, LANES);
    for (uint64_t p = 0; p < positions; p++) {
        uint64_t index = (position + p) * attention->value_stride + k;
        lanes value = n == LANES ? cached(attention->values, index, LANES, bf16) : cached(attention->values, index, n, bf16);
        for (uint64_t q = 0; q < GROUP; q++)
            sums[q] = MULTIPLY_ADD(value, splat(weights[(q < count ? q : count - 1) * BLOCK + p]), sums[q]);
    }
    for (uint64_t q = 0; q < GROUP && q < count; q++)
        store(means + q * width + k, sums[q], LANES);
}

INLINE void attend_float(const mica_attention *attention, uint64_t position, uint64_t end, uint64_t first, const float *queries, uint64_t query_stride,
                         uint64_t count, float *out, uint64_t out_stride, mica_attention_sum *sums, float *scratch, const int bf16) {
    uint64_t width = (attention->value_width + LANES - 1) / LANES * LANES, last = visible_to(attention, first + count - 1, end);
    float *scores = scratch, *means = scratch + MICA_ATTENTION_QUERIES * BLOCK;
    memset(means, 0, count * width * sizeof *means);
    for (uint64_t q = 0; q < count; q++)
        sums[q] = (mica_attention_sum){-INFINITY, 0};
    for (; position < last; position += BLOCK) {
        uint64_t positions = last - position < BLOCK ? last - position : BLOCK;
        for (uint64_t p = 0; p < positions; p += TILE)
            for (uint64_t q = 0; q < count; q += TILE)
                score_tile(attention, position + p, positions - p, queries + q * query_stride, query_stride, count - q, scores + q * BLOCK + p, bf16);
        for (uint64_t q = 0; q < count; q++) {
            uint64_t visible = visible_to(attention, first + q, end), seen = visible > position ? visible - position : 0;
            soften(scores + q * BLOCK, seen < positions ? seen : positions, attention->scale, &sums[q], means + q * width, width, 0);
        }
        for (uint64_t k = 0; k < attention->value_width; k += LANES)
            for (uint64_t q = 0; q < count; q += GROUP)
                add_values(attention, position, positions, scores + q * BLOCK, count - q, k, means + q * width, width, bf16);
    }
    for (uint64_t q = 0; q < count; q++)
        finish(means + q * width, &sums[q], attention->value_width, out + q * out_stride);
}

void ATTEND_F32(const mica_attention *attention, uint64_t position, uint64_t end, uint64_t first, const float *queries, uint64_t query_stride,
                uint64_t count, float *out, uint64_t out_stride, mica_attention_sum *sums, void *scratch) {
    attend_float(attention, position, end, first, queries, query_stride, count, out, out_stride, sums, scratch, 0);
}

void ATTEND_BF16(const mica_attention *attention, uint64_t position, uint64_t end, uint64_t first, const float *queries, uint64_t query_stride,
                 uint64_t count, float *out, uint64_t out_stride, mica_attention_sum *sums, void *scratch) {
    attend_float(attention, position, end, first, queries, query_stride, count, out, out_stride, sums, scratch, 1);
}
