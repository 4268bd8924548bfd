/* numerics/attention_amx.c: attention from a bf16 cache in AMX tiles: queries and weights rounded to bf16, sums float32. Scores come as
 * [position][query], keys as they lie in the cache; for the means, values of two positions are interleaved, whose columns stay in that order until the end.
 * Widths are multiples of 32. Judged by tests/numerics/test_attention.c where the processor has AMX, elsewhere by test_tiles.c. */
#if defined(__x86_64__)
#include "numerics/attention_pairs.h"
#include "numerics/attention_soften.h"
#include "numerics/tiles_amx.h"

typedef struct arrays { /* in the scratch */
    float *scores;      /* [queries][BLOCK] */
    float *turned;      /* [BLOCK][PAIR]: scores before they are turned round */
    float *means;       /* [queries][value_width] */
    uint16_t *weights;  /* [queries][BLOCK] */
    uint32_t *values;   /* [BLOCK / 2][PAIR]: pairs of positions, of 32 columns */
    uint32_t *queries;  /* [key_width / 2][PAIR] */
    uint16_t *rounded;  /* [PAIR][key_width]: queries, in their rows */
} arrays;

_Static_assert(MICA_ATTENTION_QUERIES == PAIR, "of queries");

static arrays arrays_of(const mica_attention *attention, void *scratch) {
    arrays a = {.scores = scratch};
    a.turned = a.scores + PAIR * BLOCK;
    a.means = a.turned + PAIR * BLOCK;
    a.weights = (uint16_t *)(void *)(a.means + PAIR * attention->value_width);
    a.values = (uint32_t *)(void *)(a.weights + PAIR * BLOCK);
    a.queries = a.values + PAIR * BLOCK / 2;
    a.rounded = (uint16_t *)(void *)(a.queries + PAIR * attention->key_width / 2);
    return a;
}

INLINE void round_row(const float *from, uint64_t count, uint16_t *to, uint64_t padded) {
    for (uint64_t i = 0; i < padded; i += LANES) {
        lanes v = i + LANES <= count ? load(from + i, LANES) : i < count ? load(from + i, count - i) : splat(0);
        __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
        memcpy(to + i, &rounded, sizeof rounded);
    }
}

static void turn_queries(const mica_attention *attention, const float *queries, uint64_t query_stride, uint64_t count, const arrays *a) {
    const uint64_t width = attention->key_width;
    for (uint64_t q = 0; q < count; q++)
        round_row(queries + q * query_stride, width, a->rounded + q * width, width);
    for (uint64_t q = 0; q < count; q += SIDE) /* rows beyond the last are not used */
        for (uint64_t k = 0; k < width / 2; k += SIDE)
            turn_tile((const uint32_t *)(const void *)(a->rounded + q * width) + k, width / 2, a->queries + k * PAIR + q, PAIR);
}

static void score_block(const mica_attention *attention, uint64_t position, uint64_t positions, const arrays *a, uint64_t count) {
    const uint16_t *keys = (const uint16_t *)attention->keys + position * attention->key_stride;
    for (uint64_t p = 0, some; p < positions; p += some) {
        some = positions - p < PAIR ? positions - p : PAIR;
        if (p == 0 || some < PAIR)
            shape_tiles(some, count);
        sum_tiles(keys + p * attention->key_stride, attention->key_stride, some, a->queries, PAIR, count, attention->key_width / 2, false,
                  a->turned + p * PAIR, PAIR);
    }
    for (uint64_t q = 0; q < count; q += SIDE)
        for (uint64_t p = 0; p < positions; p += SIDE)
            turn_tile((const uint32_t *)(const void *)(a->turned + p * PAIR + q), PAIR, (uint32_t *)(void *)(a->scores + q * BLOCK + p), BLOCK);
}

/* Pairs of positions, 32 columns of them: the lower halves of each quarter, then the upper ones; zeros up to a multiple of 16 pairs. */
INLINE uint64_t interleave(const uint16_t *row, uint64_t stride, uint64_t positions, uint32_t *to) {
    uint64_t pairs = (positions + PAIR - 1) / PAIR * SIDE;
    for (uint64_t p = 0; p < pairs; p++, row += 2 * stride) {
        __m512i first = 2 * p < positions ? _mm512_loadu_si512(row) : _mm512_setzero_si512();
        __m512i second = 2 * p + 1 < positions ? _mm512_loadu_si512(row + stride) : _mm512_setzero_si512();
        _mm512_storeu_si512(to + p * PAIR, _mm512_unpacklo_epi16(first, second));
        _mm512_storeu_si512(to + p * PAIR + SIDE, _mm512_unpackhi_epi16(first, second));
    }
    return pairs;
}

static void add_block(const mica_attention *attention, uint64_t position, uint64_t positions, const arrays *a, uint64_t count) {
    const uint16_t *values = (const uint16_t *)attention->values + position * attention->value_stride;
    shape_tiles(count, PAIR);
    for (uint64_t k = 0; k < attention->value_width; k += PAIR) {
        uint64_t pairs = interleave(values + k, attention->value_stride, positions, a->values);
        sum_tiles(a->weights, BLOCK, count, a->values, PAIR, PAIR, pairs, true, a->means + k, attention->value_width);
    }
}

void mica_attend_amx(const mica_attention *attention, uint64_t position, uint64_t end, uint64_t first, const float *queries, uint64_t query_stride,
                     uint64_t count, float *out, uint64_t out_stride, mica_attention_sum *sums, void *scratch) {
    arrays a = arrays_of(attention, scratch);
    const uint64_t width = attention->value_width, last = visible_to(attention, first + count - 1, end);
    memset(a.means, 0, count * width * sizeof *a.means);
    for (uint64_t q = 0; q < count; q++)
        sums[q] = (mica_attention_sum){-INFINITY, 0};
    turn_queries(attention, queries, query_stride, count, &a);
    for (; position < last; position += BLOCK) {
        uint64_t positions = last - position < BLOCK ? last - position : BLOCK;
        score_block(attention, position, positions, &a, count);
        for (uint64_t q = 0; q < count; q++) {
            uint64_t visible = visible_to(attention, first + q, end), seen = visible > position ? visible - position : 0;
            float *scores = a.scores + q * BLOCK;
            soften(scores, seen < positions ? seen : positions, attention->scale, &sums[q], a.means + q * width, width, 1);
            round_row(scores, BLOCK, a.weights + q * BLOCK, BLOCK);
        }
        add_block(attention, position, positions, &a, count);
    }
    _tile_release();
    for (uint64_t q = 0; q < count; q++) {
        untangle(a.means + q * width, width);
        finish(a.means + q * width, &sums[q], width, out + q * out_stride);
    }
}
#else
typedef int mica_attention_amx_empty; /* a translation unit may not be empty */
#endif
