/* Judges numerics/attention*.c against float64 softmax(q k^T scale) v: latent, grouped and per-head shapes, ragged sizes, causal limits,
 * parts and their combination, under each instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/cpu.h"
#include "numerics/attention.h"
#include "numerics/elementwise.h"

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static float random_float(float limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return ((float)(random_state >> 40) * 0x1p-23f - 1) * limit;
}

static void *aligned(uint64_t bytes) {
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes + 64), 0);
    return p;
}

static float *random_floats(uint64_t count, float limit) {
    float *x = aligned(count * sizeof *x);
    for (uint64_t i = 0; i < count; i++)
        x[i] = random_float(limit);
    return x;
}

/* key and value width, heads that share a row, tokens, positions; values lie in the keys (latent) or apart */
typedef struct shape {
    uint64_t key_width, value_width, heads, tokens, positions;
    int latent;
} shape;

static const shape shapes[] = {
    {80, 64, 4, 1, 37, 1},    {80, 64, 4, 9, 50, 1},   {576, 512, 16, 1, 300, 1}, {576, 512, 3, 2, 130, 1}, {192, 128, 1, 40, 100, 0},
    {128, 128, 4, 5, 65, 0},  {64, 64, 8, 1, 1, 0},    {7, 5, 3, 3, 20, 0},       {24, 16, 1, 33, 64, 0},   {576, 512, 64, 1, 257, 1},
    {66, 34, 16, 2, 135, 1},  {21, 33, 9, 4, 130, 0},  {128, 128, 8, 1, 7, 0},    {128, 128, 5, 6, 200, 0},
};

typedef struct fixture {
    mica_attention attention;
    float *keys, *values, *queries; /* in float32, as the kernel sees them (bf16 caches rounded) */
    void *owned[2];
    uint64_t count;
} fixture;

static uint16_t *to_bf16(float *x, uint64_t count) {
    uint16_t *codes = aligned(count * sizeof *codes);
    mica_bf16_of_float(x, count, codes);
    mica_float_of_bf16(codes, count, x);
    return codes;
}

static fixture fixture_of(shape s, mica_dtype dtype) {
    fixture f = {.count = s.heads * s.tokens};
    uint64_t key_stride = s.key_width + 3, value_stride = s.latent ? key_stride : s.value_width + 1;
    f.keys = random_floats(s.positions * key_stride, 1);
    f.values = s.latent ? f.keys : random_floats(s.positions * value_stride, 1);
    f.queries = random_floats(f.count * s.key_width, 2);
    f.owned[0] = f.owned[1] = NULL;
    const void *keys = f.keys, *values = f.values;
    if (dtype == MICA_BF16) {
        keys = f.owned[0] = to_bf16(f.keys, s.positions * key_stride);
        values = s.latent ? keys : (f.owned[1] = to_bf16(f.values, s.positions * value_stride));
    }
    f.attention = (mica_attention){.dtype = dtype, .keys = keys, .key_width = s.key_width, .key_stride = key_stride, .values = values,
                                   .value_width = s.value_width, .value_stride = value_stride, .scale = 2.5f / sqrtf((float)s.key_width),
                                   .heads = s.heads, .visible = s.positions - s.tokens + 1};
    return f;
}

static void release(fixture f, int latent) {
    free(f.keys);
    if (!latent)
        free(f.values);
    free(f.queries);
    free(f.owned[0]);
    free(f.owned[1]);
}

/* Expected means and what they may be off by. A score is off by `score`, so a weight by the factor e^(2 score) (numerator, denominator), and
 * by `weight` itself:
 *   float32: score (width / 16 + 8) u sum |q k| scale + 4 u |s|, weight (positions / 16 + 16) u
 *   bf16:    score 2^-8 sum |q k| scale besides (the query; the cache is what it is), weight 2^-8 (numerator; denominator not rounded) */
static void expect(const fixture *f, uint64_t query, uint64_t from, uint64_t end, double *mean, double *limit) {
    const mica_attention *a = &f->attention;
    uint64_t last = a->visible + query / a->heads;
    last = last < end ? last : end;
    double *scores = malloc((last + 1) * sizeof *scores), max = -INFINITY, off = 0, sum = 0, u = 0x1p-24, half = a->dtype == MICA_BF16;
    assert_non_null(scores);
    for (uint64_t p = from; p < last; p++) {
        double score = 0, size = 0;
        for (uint64_t k = 0; k < a->key_width; k++) {
            double product = (double)f->queries[query * a->key_width + k] * (double)f->keys[p * a->key_stride + k];
            score += product;
            size += fabs(product);
        }
        scores[p] = score * (double)a->scale;
        max = fmax(max, scores[p]);
        off = fmax(off, size * (double)a->scale * ((double)(a->key_width / 16 + 8) * u + half * 0x1p-8) + 4 * u * fabs(scores[p]));
    }
    for (uint64_t p = from; p < last; p++)
        sum += exp(scores[p] - max);
    for (uint64_t k = 0; k < a->value_width; k++) {
        double size = 0;
        mean[k] = 0;
        for (uint64_t p = from; p < last; p++) {
            double part = exp(scores[p] - max) / sum * (double)f->values[p * a->value_stride + k];
            mean[k] += part;
            size += fabs(part);
        }
        limit[k] = size * (expm1(2 * off) + (double)(f->attention.visible / 16 + 32) * u + half * 0x1p-8);
    }
    free(scores);
}

static void expect_near(const fixture *f, const float *got, uint64_t query, uint64_t from, uint64_t end, const char *what) {
    double *mean = malloc(f->attention.value_width * sizeof *mean), *limit = malloc(f->attention.value_width * sizeof *limit);
    assert_true(mean && limit);
    expect(f, query, from, end, mean, limit);
    for (uint64_t k = 0; k < f->attention.value_width; k++)
        if (!(fabs((double)got[k] - mean[k]) <= limit[k]))
            fail_msg("%s, %s, %llu wide, under %s: query %llu [%llu] expected %.9g, got %.9g, bound %.3g", what, mica_dtype_name(f->attention.dtype),
                     (unsigned long long)f->attention.key_width, mica_cpu_name(mica_cpu_current()), (unsigned long long)query, (unsigned long long)k,
                     mean[k], (double)got[k], limit[k]);
    free(mean);
    free(limit);
}

/* Each set, and AVX-512 once more with bf16, and with AMX. */
static bool select_kernels(int which) {
    int detected = (int)mica_cpu_detected();
    mica_cpu_select((mica_cpu)(which < detected ? which : detected));
    mica_cpu_allow_bf16(which == detected + 1);
    mica_cpu_allow_amx(which == detected + 2);
    return which <= detected || (which == detected + 1 ? mica_cpu_has_bf16() : mica_cpu_has_amx());
}

#define EACH_CASE(s, dtype)                                                     \
    for (int cpu = 0; cpu <= (int)mica_cpu_detected() + 2; cpu++)               \
        for (size_t c = 0; c < 2 * (sizeof shapes / sizeof *shapes); c++)       \
            for (shape s = shapes[c / 2], *once = &s; once; once = NULL)        \
                for (mica_dtype dtype = c % 2 ? MICA_BF16 : MICA_F32, *also = &dtype; also && select_kernels(cpu); also = NULL)

static void test_whole(void **state) {
    (void)state;
    EACH_CASE(s, dtype) {
        fixture f = fixture_of(s, dtype);
        uint64_t stride = s.value_width + 2;
        float *out = aligned(f.count * stride * sizeof *out);
        mica_attention_sum *sums = aligned(f.count * sizeof *sums);
        void *scratch = aligned(MICA_ATTENTION_SCRATCH_BYTES(s.key_width, s.value_width));
        mica_attend(&f.attention, 0, s.positions, f.queries, s.key_width, f.count, out, stride, sums, scratch);
        for (uint64_t i = 0; i < f.count; i++)
            expect_near(&f, out + i * stride, i, 0, s.positions, "whole");
        free(scratch);
        free(sums);
        free(out);
        release(f, s.latent);
    }
}

/* Parts of the context, some beyond what a query sees, combined; and queries one by one: the same bits as all at once. */
static void test_parts(void **state) {
    (void)state;
    enum { PARTS = 3 };
    EACH_CASE(s, dtype) {
        fixture f = fixture_of(s, dtype);
        uint64_t width = s.value_width, ends[PARTS + 1] = {0, s.positions / 3, s.positions - s.positions / 4, s.positions};
        float *parts = aligned(PARTS * f.count * width * sizeof *parts), *out = aligned(width * sizeof *out);
        mica_attention_sum *sums = aligned(PARTS * f.count * sizeof *sums), alone;
        void *scratch = aligned(MICA_ATTENTION_SCRATCH_BYTES(s.key_width, s.value_width));
        for (uint64_t p = 0; p < PARTS; p++)
            mica_attend(&f.attention, ends[p], ends[p + 1], f.queries, s.key_width, f.count, parts + p * f.count * width, width, sums + p * f.count,
                        scratch);
        for (uint64_t i = 0; i < f.count; i++) {
            mica_attention_combine(parts + i * width, f.count * width, sums + i, f.count, PARTS, width, out);
            expect_near(&f, out, i, 0, s.positions, "combined");
            if (s.heads == 1) { /* one query of its own: the token it belongs to is told by visible */
                mica_attention one = f.attention;
                one.visible += i;
                mica_attend(&one, ends[1], ends[2], f.queries + i * s.key_width, s.key_width, 1, out, width, &alone, scratch);
                assert_memory_equal(out, parts + (f.count + i) * width, width * sizeof *out);
                assert_memory_equal(&alone, &sums[f.count + i], sizeof alone);
            }
        }
        free(scratch);
        free(sums);
        free(parts);
        free(out);
        release(f, s.latent);
    }
}

/* Large scores do not overflow, and a query that sees nothing gives zeros of no weight. */
static void test_extremes(void **state) {
    (void)state;
    EACH_CASE(s, dtype) {
        fixture f = fixture_of(s, dtype);
        float *out = aligned(f.count * s.value_width * sizeof *out);
        mica_attention_sum *sums = aligned(f.count * sizeof *sums);
        void *scratch = aligned(MICA_ATTENTION_SCRATCH_BYTES(s.key_width, s.value_width));
        f.attention.scale *= 1000;
        mica_attend(&f.attention, 0, s.positions, f.queries, s.key_width, f.count, out, s.value_width, sums, scratch);
        for (uint64_t i = 0; i < f.count * s.value_width; i++)
            assert_true(fabsf(out[i]) <= 1.01f);
        mica_attend(&f.attention, s.positions, s.positions + 5, f.queries, s.key_width, f.count, out, s.value_width, sums, scratch);
        for (uint64_t i = 0; i < f.count * s.value_width; i++)
            assert_true(out[i] == 0);
        for (uint64_t i = 0; i < f.count; i++)
            assert_true(sums[i].sum == 0 && sums[i].largest == -INFINITY);
        free(scratch);
        free(sums);
        free(out);
        release(f, s.latent);
    }
}

/* What is not a number in one query is in all of its mean, and in no other's. */
static void test_not_a_number(void **state) {
    (void)state;
    EACH_CASE(s, dtype) {
        fixture f = fixture_of(s, dtype);
        uint64_t bad = f.count / 2;
        float *out = aligned(f.count * s.value_width * sizeof *out);
        mica_attention_sum *sums = aligned(f.count * sizeof *sums);
        void *scratch = aligned(MICA_ATTENTION_SCRATCH_BYTES(s.key_width, s.value_width));
        f.queries[bad * s.key_width + s.key_width - 1] = NAN;
        mica_attend(&f.attention, 0, s.positions, f.queries, s.key_width, f.count, out, s.value_width, sums, scratch);
        for (uint64_t i = 0; i < f.count * s.value_width; i++)
            assert_true(isnan(out[i]) == (i / s.value_width == bad));
        free(scratch);
        free(sums);
        free(out);
        release(f, s.latent);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_whole), cmocka_unit_test(test_parts), cmocka_unit_test(test_extremes),
                                       cmocka_unit_test(test_not_a_number)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
