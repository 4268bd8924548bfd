/* numerics/attention_dpbf16.c: attention from a bf16 cache with AVX512_BF16: queries and weights rounded to bf16, sums float32.
 * Queries lie in lanes, two neighbours each: four columns of a key are broadcast, one lane sums the products of the first pair, the other
 * those of the second. So no sum goes across lanes but this last one, a load serves two products, and 16 queries soften side by side. Means
 * are sums over pairs of positions, whose values are interleaved on the way: columns stay in that order until the end.
 * Judged by tests/numerics/test_attention.c. */
#if defined(__x86_64__)
#include "numerics/attention_pairs.h"
#include "numerics/attention_soften.h"

#define APART static __attribute__((noinline)) /* gcc spills accumulators of what it inlines into something large */

enum {
    STRIP = 16,  /* queries that soften side by side */
    GROUP = 8,   /* of them in a register of scores; and those whose means are summed together */
    TILE = 8,    /* positions whose scores are summed together */
    STEP = 4,    /* columns of a key that are broadcast together */
    LINE = 32    /* halves in a register, and in a line of the cache */
};

typedef struct strip {
    uint64_t count;
    int groups;              /* 1 or 2 */
    uint16_t *queries;       /* [key_width / STEP][groups * GROUP][STEP], zeros beyond the width and beyond count */
    float *means;            /* [count][value_width, to whole lines]: numerators */
    uint64_t visible[STRIP]; /* query q sees the positions below */
    float largest[STRIP];    /* score so far, not scaled */
    float sum[STRIP];
} strip;

typedef struct block {
    uint64_t position, positions; /* as many as any query of the strip sees */
    float *scores;                /* [BLOCK][STRIP] */
    uint32_t *weights;            /* [BLOCK / 2][STRIP]: of an even position and the next one */
} block;

static uint64_t whole_lines(uint64_t width) {
    return (width + LINE - 1) / LINE * LINE;
}

INLINE __m512 multiply_pairs(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

INLINE __mmask32 first_of(uint64_t count) {
    return count >= LINE ? 0xffffffffu : (1u << count) - 1;
}

/* ---- scores */

INLINE __m512i broadcast_columns(const uint16_t *row, uint64_t count) {
    long long columns = 0;
    memcpy(&columns, row, count < STEP ? count * sizeof *row : sizeof columns);
    return _mm512_set1_epi64(columns);
}

/* sums[p][g] += four columns (at the end of a row fewer) of position p, times those of a group's queries. */
INLINE void add_step(const uint16_t *row, uint64_t stride, uint64_t columns, const uint16_t *queries, __m512 sums[TILE][2], const int count,
                     const int groups) {
    __m512i query[2];
    for (int g = 0; g < groups; g++)
        query[g] = _mm512_loadu_si512(queries + g * LINE);
    for (int p = 0; p < count; p++) {
        __m512i key = broadcast_columns(row + (uint64_t)p * stride, columns);
        for (int g = 0; g < groups; g++)
            sums[p][g] = multiply_pairs(sums[p][g], key, query[g]);
    }
}

/* Scores of `count` positions with a strip. Fetches the same rows of the next block: a step through TILE rows is a line. */
INLINE void score_rows(const uint16_t *row, uint64_t stride, uint64_t width, const uint16_t *queries, float *scores, const int count,
                       const int groups, const bool fetch) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    __m512 sums[TILE][2];
    uint64_t k = 0;
    for (int p = 0; p < count; p++)
        sums[p][0] = sums[p][1] = _mm512_setzero_ps();
    for (; k + STEP <= width; k += STEP, queries += groups * LINE) {
        if (fetch)
            _mm_prefetch((const char *)(row + (BLOCK + k / STEP % TILE) * stride + k / STEP / TILE * LINE), _MM_HINT_T1);
        add_step(row + k, stride, STEP, queries, sums, count, groups);
    }
    if (k < width)
        add_step(row + k, stride, width - k, queries, sums, count, groups);
    for (int p = 0; p < count; p++)
        _mm512_storeu_ps(scores + p * STRIP, _mm512_add_ps(_mm512_permutex2var_ps(sums[p][0], even, sums[p][1]),
                                                           _mm512_permutex2var_ps(sums[p][0], odd, sums[p][1])));
}

#define SCORE_ROWS(name, count, groups, fetch)                                                                      \
    APART void name(const uint16_t *row, uint64_t stride, uint64_t width, const uint16_t *queries, float *scores) { \
        score_rows(row, stride, width, queries, scores, count, groups, fetch);                                      \
    }
SCORE_ROWS(score_row_group, 1, 1, false)
SCORE_ROWS(score_row_strip, 1, 2, false)
SCORE_ROWS(score_tile_group, TILE, 1, false)
SCORE_ROWS(score_tile_strip, TILE, 2, false)
SCORE_ROWS(score_tile_group_fetching, TILE, 1, true)
SCORE_ROWS(score_tile_strip_fetching, TILE, 2, true)

static void score_block(const mica_attention *attention, const strip *s, const block *b, bool fetch) {
    const uint16_t *keys = (const uint16_t *)attention->keys + b->position * attention->key_stride;
    uint64_t count = b->positions < TILE ? 1 : TILE;
    void (*score)(const uint16_t *, uint64_t, uint64_t, const uint16_t *, float *) = s->groups == 1 ? score_row_group : score_row_strip;
    if (count == TILE && fetch)
        score = s->groups == 1 ? score_tile_group_fetching : score_tile_strip_fetching;
    else if (count == TILE)
        score = s->groups == 1 ? score_tile_group : score_tile_strip;
    for (uint64_t p = 0; p < b->positions; p += count) {
        uint64_t first = b->positions - p < count ? b->positions - count : p; /* the last tile has some positions again */
        score(keys + first * attention->key_stride, attention->key_stride, attention->key_width, s->queries, b->scores + first * STRIP);
    }
}

/* ---- weights */

/* 2^x to 3e-6 (Taylor's polynomial to r^5, |r| <= 1/2); 0 far below the smallest number, and for -infinity; NaN for NaN. */
INLINE __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200), x);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.3333558e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, n);
}

/* Scores of what a query does not see become -infinity. */
static void hide_scores(const strip *s, const block *b) {
    int32_t seen[STRIP];
    for (int q = 0; q < STRIP; q++)
        seen[q] = s->visible[q] <= b->position ? 0 : s->visible[q] - b->position < BLOCK ? (int32_t)(s->visible[q] - b->position) : BLOCK;
    for (uint64_t p = 0; p < (b->positions + 1) / 2 * 2; p++) {
        __mmask16 visible = _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(seen), _mm512_set1_epi32((int)p));
        _mm512_storeu_ps(b->scores + p * STRIP, _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), visible, b->scores + p * STRIP));
    }
}

/* Sums and means of the queries that `rises` names, times their factors. */
static void scale_down(strip *s, __mmask16 rises, __m512 factors, uint64_t width) {
    float factor[STRIP];
    _mm512_storeu_ps(factor, factors);
    _mm512_mask_storeu_ps(s->sum, rises, _mm512_mul_ps(_mm512_loadu_ps(s->sum), factors));
    for (uint64_t q = 0; q < s->count; q++)
        for (uint64_t k = 0; k < width && (rises >> q & 1); k += LINE / 2) {
            float *mean = s->means + q * width + k;
            _mm512_storeu_ps(mean, _mm512_mul_ps(_mm512_loadu_ps(mean), _mm512_set1_ps(factor[q])));
        }
}

/* Scores to weights, 2^(scale (score - largest)), and their sums: of the weights as rounded. A NaN makes all of its query NaN. */
static void soften_strip(const mica_attention *attention, strip *s, const block *b) {
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                           16, 0);
    const __m512 nothing = _mm512_set1_ps(-INFINITY), scale = _mm512_set1_ps(attention->scale * 0x1.715476p0f);
    __m512 before = _mm512_loadu_ps(s->largest), largest = before;
    for (uint64_t p = 0; p < b->positions; p++)
        largest = _mm512_max_ps(_mm512_loadu_ps(b->scores + p * STRIP), largest);
    __m512 top = _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(largest, nothing, _CMP_NEQ_UQ), largest, scale);
    __mmask16 rises = _mm512_cmp_ps_mask(largest, before, _CMP_NEQ_UQ) & _mm512_cmp_ps_mask(before, nothing, _CMP_NEQ_UQ);
    if (rises)
        scale_down(s, rises, power_of_two(_mm512_fmsub_ps(before, scale, top)), whole_lines(attention->value_width));
    __m512 sum = _mm512_loadu_ps(s->sum);
    for (uint64_t p = 0; p < b->positions; p += 2) {
        __m512 first = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(b->scores + p * STRIP), scale, top));
        __m512 second = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(b->scores + (p + 1) * STRIP), scale, top));
        __m512i pair = _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(second, first));
        sum = multiply_pairs(sum, pair, _mm512_set1_epi32(0x3f803f80)); /* ones */
        _mm512_storeu_si512(b->weights + p / 2 * STRIP, pair);
    }
    _mm512_storeu_ps(s->largest, largest);
    _mm512_storeu_ps(s->sum, sum);
}

/* ---- means */

/* means[q] += weights[q] . values, a line of columns, for `count` queries; fetches the same of the next block. */
INLINE void add_values(const uint16_t *row, uint64_t stride, uint64_t positions, __mmask32 mask, const uint32_t *weights, const int count,
                       float *means, uint64_t width, const bool fetch) {
    __m512 low[GROUP], high[GROUP];
    for (int q = 0; q < count; q++) {
        low[q] = _mm512_loadu_ps(means + (uint64_t)q * width);
        high[q] = _mm512_loadu_ps(means + (uint64_t)q * width + LINE / 2);
    }
    for (uint64_t p = 0; p < positions; p += 2, row += 2 * stride, weights += STRIP) {
        __m512i first = _mm512_maskz_loadu_epi16(mask, row); /* the last of an odd number counts once: its neighbour's weight is zero */
        __m512i second = p + 1 < positions ? _mm512_maskz_loadu_epi16(mask, row + stride) : _mm512_setzero_si512();
        __m512i lower = _mm512_unpacklo_epi16(first, second), upper = _mm512_unpackhi_epi16(first, second);
        if (fetch) {
            _mm_prefetch((const char *)(row + BLOCK * stride), _MM_HINT_T1);
            _mm_prefetch((const char *)(row + (BLOCK + 1) * stride), _MM_HINT_T1);
        }
        for (int q = 0; q < count; q++) {
            __m512i pair = _mm512_set1_epi32((int)weights[q]);
            low[q] = multiply_pairs(low[q], lower, pair);
            high[q] = multiply_pairs(high[q], upper, pair);
        }
    }
    for (int q = 0; q < count; q++) {
        _mm512_storeu_ps(means + (uint64_t)q * width, low[q]);
        _mm512_storeu_ps(means + (uint64_t)q * width + LINE / 2, high[q]);
    }
}

INLINE void add_block(const mica_attention *attention, const strip *s, const block *b, const bool fetch) {
    const uint16_t *values = (const uint16_t *)attention->values + b->position * attention->value_stride;
    uint64_t width = whole_lines(attention->value_width), stride = attention->value_stride;
    for (uint64_t k = 0; k < width; k += LINE)
        for (uint64_t q = 0, some; q < s->count; q += some) {
            __mmask32 mask = first_of(attention->value_width - k);
            const uint32_t *weights = b->weights + q;
            float *means = s->means + q * width + k;
            some = s->count - q >= GROUP ? GROUP : s->count - q >= 4 ? 4 : s->count - q >= 2 ? 2 : 1;
            switch (some) {
            case 1: add_values(values + k, stride, b->positions, mask, weights, 1, means, width, fetch); break;
            case 2: add_values(values + k, stride, b->positions, mask, weights, 2, means, width, fetch); break;
            case 4: add_values(values + k, stride, b->positions, mask, weights, 4, means, width, fetch); break;
            default: add_values(values + k, stride, b->positions, mask, weights, GROUP, means, width, fetch);
            }
        }
}

APART void add_block_only(const mica_attention *attention, const strip *s, const block *b) {
    add_block(attention, s, b, false);
}

APART void add_block_fetching(const mica_attention *attention, const strip *s, const block *b) {
    add_block(attention, s, b, true);
}

/* ---- the whole */

static void place_queries(strip *s, const float *queries, uint64_t query_stride, uint64_t width) {
    uint64_t step = (uint64_t)s->groups * LINE;
    memset(s->queries, 0, (width + STEP - 1) / STEP * step * sizeof *s->queries);
    for (uint64_t q = 0; q < s->count; q++)
        for (uint64_t k = 0; k < width; k += STEP) {
            __mmask8 mask = (__mmask8)first_of(width - k) & 15;
            __m128bh columns = _mm_cvtneps_pbh(_mm_maskz_loadu_ps(mask, queries + q * query_stride + k));
            memcpy(s->queries + k / STEP * step + q * STEP, &columns, STEP * sizeof *s->queries);
        }
}

static void begin_strip(strip *s, const mica_attention *attention, uint64_t first, uint64_t end) {
    s->groups = s->count > GROUP ? 2 : 1;
    for (uint64_t q = 0; q < STRIP; q++) {
        s->visible[q] = visible_to(attention, first + (q < s->count ? q : s->count - 1), end);
        s->largest[q] = -INFINITY;
        s->sum[q] = 0;
    }
    memset(s->means, 0, s->count * whole_lines(attention->value_width) * sizeof *s->means);
}

void mica_attend_dpbf16(const mica_attention *attention, uint64_t position, uint64_t end, uint64_t first, const float *queries,
                        uint64_t query_stride, uint64_t count, float *out, uint64_t out_stride, mica_attention_sum *sums, void *scratch) {
    const uintptr_t keys = (uintptr_t)attention->keys, values = (uintptr_t)attention->values;
    const bool apart = values < keys || values - keys >= attention->key_width * sizeof(uint16_t);
    const bool fetch_values = apart && count <= STRIP; /* of more queries, values come as fast as they are used */
    const uint64_t width = whole_lines(attention->value_width), step = (attention->key_width + STEP - 1) / STEP * STEP;
    block b = {.scores = scratch, .weights = (uint32_t *)scratch + BLOCK * STRIP};
    float *means = (float *)scratch + BLOCK * STRIP * 3 / 2;
    uint16_t *placed = (uint16_t *)(void *)(means + count * width);
    strip strips[MICA_ATTENTION_QUERIES / STRIP];
    for (uint64_t q = 0; q < count; q += STRIP) {
        strip *s = &strips[q / STRIP];
        s->count = count - q < STRIP ? count - q : STRIP;
        s->queries = placed + q * step;
        s->means = means + q * width;
        begin_strip(s, attention, first + q, end);
        place_queries(s, queries + q * query_stride, query_stride, attention->key_width);
    }
    for (b.position = position; b.position < end; b.position += BLOCK)
        for (uint64_t q = 0; q < count; q += STRIP) {
            strip *s = &strips[q / STRIP];
            uint64_t most = s->visible[STRIP - 1]; /* the last query sees most */
            if (most <= b.position)
                continue;
            b.positions = most - b.position < BLOCK ? most - b.position : BLOCK;
            score_block(attention, s, &b, q == 0);
            if (s->visible[0] < b.position + b.positions || b.positions % 2)
                hide_scores(s, &b);
            soften_strip(attention, s, &b);
            (fetch_values ? add_block_fetching : add_block_only)(attention, s, &b);
        }
    for (uint64_t q = 0; q < count; q++) {
        const strip *s = &strips[q / STRIP];
        sums[q] = (mica_attention_sum){s->largest[q % STRIP] * attention->scale, s->sum[q % STRIP]};
        untangle(means + q * width, width);
        finish(means + q * width, &sums[q], attention->value_width, out + q * out_stride);
    }
}
#else
typedef int mica_attention_dpbf16_empty; /* a translation unit may not be empty */
#endif
