/* numerics/attention_dpbf16.c: attention from a bf16 cache with AVX512_BF16: queries and weights rounded to bf16, sums float32.
 * Scores are tiles of 4 positions x 4 queries, products of pairs along the key; means are sums over pairs of positions, whose values are
 * interleaved on the way: columns stay in that order until the end. Judged by tests/numerics/test_attention.c. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "numerics/attention_pairs.h"
#include "numerics/attention_soften.h"
#include "numerics/sums_avx512.h"

enum { TILE = 4, GROUP = 8 /* queries whose means are summed together */ };

typedef struct arrays { /* in the scratch */
    float *scores;     /* [queries][BLOCK] */
    float *means;      /* [queries][value_width, to a multiple of 32] */
    uint16_t *queries; /* [queries][key_width, to a multiple of 32], zeros there */
    uint16_t *weights; /* [queries][BLOCK] */
    uint64_t keys, values; /* these widths */
} arrays;

static arrays arrays_of(const mica_attention *attention, uint64_t count, void *scratch) {
    arrays a = {.scores = scratch, .keys = (attention->key_width + 31) / 32 * 32, .values = (attention->value_width + 31) / 32 * 32};
    a.means = a.scores + MICA_ATTENTION_QUERIES * BLOCK;
    a.weights = (uint16_t *)(void *)(a.means + count * a.values);
    a.queries = a.weights + MICA_ATTENTION_QUERIES * BLOCK;
    return a;
}

INLINE __m512i pairs_at(const void *array, uint64_t index, __mmask32 mask) {
    return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)array + index);
}

INLINE __m512 multiply_pairs(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

INLINE __mmask32 first_of(uint64_t count) {
    return count >= 32 ? 0xffffffffu : (1u << count) - 1;
}

/* Scores of up to TILE positions (rows beyond the last are its repetition) with `count` queries; fetches the same rows of the next block. */
INLINE void score_tile(const mica_attention *attention, uint64_t position, uint64_t positions, const uint16_t *queries, uint64_t width, const int count,
                       float *scores, bool fetch) {
    const uint16_t *rows[TILE];
    __m512 sums[TILE][TILE];
    for (uint64_t p = 0; p < TILE; p++)
        rows[p] = (const uint16_t *)attention->keys + (position + (p < positions ? p : positions - 1)) * attention->key_stride;
    for (int q = 0; q < count; q++)
        for (int p = 0; p < TILE; p++)
            sums[q][p] = _mm512_setzero_ps();
    for (uint64_t k = 0; k < width; k += 32) {
        __mmask32 mask = first_of(attention->key_width - k);
        __m512i query[TILE];
        for (int q = 0; q < count; q++)
            query[q] = _mm512_loadu_si512(queries + (uint64_t)q * width + k);
        for (int p = 0; p < TILE; p++) {
            __m512i key = pairs_at(rows[p], k, mask);
            if (fetch)
                _mm_prefetch((const char *)(rows[p] + k) + BLOCK * attention->key_stride * sizeof(uint16_t), _MM_HINT_T1);
            for (int q = 0; q < count; q++)
                sums[q][p] = multiply_pairs(sums[q][p], key, query[q]);
        }
    }
    for (int q = 0; q < count; q++)
        _mm_storeu_ps(scores + q * BLOCK, sums_of_four(sums[q]));
}

static void score_block(const mica_attention *attention, uint64_t position, uint64_t positions, const arrays *a, uint64_t count) {
    for (uint64_t p = 0; p < positions; p += TILE)
        for (uint64_t q = 0, some; q < count; q += some) {
            const uint16_t *queries = a->queries + q * a->keys;
            float *scores = a->scores + q * BLOCK + p;
            some = count - q < TILE ? count - q : TILE;
            switch (some) {
            case 1: score_tile(attention, position + p, positions - p, queries, a->keys, 1, scores, q == 0); break;
            case 2: score_tile(attention, position + p, positions - p, queries, a->keys, 2, scores, q == 0); break;
            case 3: score_tile(attention, position + p, positions - p, queries, a->keys, 3, scores, q == 0); break;
            default: score_tile(attention, position + p, positions - p, queries, a->keys, 4, scores, q == 0);
            }
        }
}

/* means[q] += weights[q] . values, 32 columns from k on, for `count` queries. */
INLINE void add_values(const mica_attention *attention, uint64_t position, uint64_t positions, const uint16_t *weights, uint64_t k, const int count,
                       float *means, uint64_t width) {
    __mmask32 mask = first_of(attention->value_width - k);
    const uint16_t *row = (const uint16_t *)attention->values + position * attention->value_stride + k;
    __m512 low[GROUP], high[GROUP];
    for (int q = 0; q < count; q++) {
        low[q] = _mm512_loadu_ps(means + (uint64_t)q * width + k);
        high[q] = _mm512_loadu_ps(means + (uint64_t)q * width + k + 16);
    }
    for (uint64_t p = 0; p < positions; p += 2, row += 2 * attention->value_stride) {
        __m512i first = _mm512_maskz_loadu_epi16(mask, row); /* the last of an odd number counts once: its neighbour's weight is zero */
        __m512i second = p + 1 < positions ? _mm512_maskz_loadu_epi16(mask, row + attention->value_stride) : _mm512_setzero_si512();
        __m512i lower = _mm512_unpacklo_epi16(first, second), upper = _mm512_unpackhi_epi16(first, second);
        for (int q = 0; q < count; q++) {
            int pair;
            memcpy(&pair, weights + q * BLOCK + p, sizeof pair);
            low[q] = multiply_pairs(low[q], lower, _mm512_set1_epi32(pair));
            high[q] = multiply_pairs(high[q], upper, _mm512_set1_epi32(pair));
        }
    }
    for (int q = 0; q < count; q++) {
        _mm512_storeu_ps(means + (uint64_t)q * width + k, low[q]);
        _mm512_storeu_ps(means + (uint64_t)q * width + k + 16, high[q]);
    }
}

static void add_block(const mica_attention *attention, uint64_t position, uint64_t positions, const arrays *a, uint64_t count) {
    for (uint64_t k = 0; k < a->values; k += 32)
        for (uint64_t q = 0, some; q < count; q += some) {
            const uint16_t *weights = a->weights + q * BLOCK;
            float *means = a->means + q * a->values;
            some = count - q >= GROUP ? GROUP : count - q >= 4 ? 4 : count - q >= 2 ? 2 : 1;
            switch (some) {
            case 1: add_values(attention, position, positions, weights, k, 1, means, a->values); break;
            case 2: add_values(attention, position, positions, weights, k, 2, means, a->values); break;
            case 4: add_values(attention, position, positions, weights, k, 4, means, a->values); break;
            default: add_values(attention, position, positions, weights, k, GROUP, means, a->values);
            }
        }
}

void mica_attend_dpbf16(const mica_attention *attention, uint64_t position, uint64_t end, uint64_t first, const float *queries, uint64_t query_stride,
                        uint64_t count, float *out, uint64_t out_stride, mica_attention_sum *sums, void *scratch) {
    arrays a = arrays_of(attention, count, scratch);
    uint64_t last = visible_to(attention, first + count - 1, end);
    memset(a.means, 0, count * a.values * sizeof *a.means);
    for (uint64_t q = 0; q < count; q++) {
        sums[q] = (mica_attention_sum){-INFINITY, 0};
        round_row(queries + q * query_stride, attention->key_width, a.queries + q * a.keys, a.keys);
    }
    for (; position < last; position += BLOCK) {
        uint64_t positions = last - position < BLOCK ? last - position : BLOCK;
        score_block(attention, position, positions, &a, count);
        for (uint64_t q = 0; q < count; q++) {
            uint64_t visible = visible_to(attention, first + q, end), seen = visible > position ? visible - position : 0;
            float *scores = a.scores + q * BLOCK;
            soften(scores, seen < positions ? seen : positions, attention->scale, &sums[q], a.means + q * a.values, a.values, 1);
            round_row(scores, BLOCK, a.weights + q * BLOCK, BLOCK);
        }
        add_block(attention, position, positions, &a, count);
    }
    for (uint64_t q = 0; q < count; q++) {
        untangle(a.means + q * a.values, a.values);
        finish(a.means + q * a.values, &sums[q], attention->value_width, out + q * out_stride);
    }
}
#else
typedef int mica_attention_dpbf16_empty; /* a translation unit may not be empty */
#endif
