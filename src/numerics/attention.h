/* numerics/attention.h: softmax(q k^T scale) v over a cache of keys and values, in one pass that never holds all scores, and its parts'
 * combination. One kernel for the three shapes there are:
 *   latent (MLA, absorbed)   every head reads the same row [c_kv | k_pe]: keys are the rows, values their first value_width columns
 *   grouped (GQA)            the heads of a group read the rows of one key-value head
 *   per head (expanded MLA)  one head at a time; the queries are the tokens
 * A float32 cache is computed in float32 (sums in 16 lanes or more), a bf16 one with queries and weights rounded to bf16 where the
 * processor multiplies them, sums in float32. Nothing is allocated. Judged by tests/numerics/test_attention.c. */
#ifndef MICA_NUMERICS_ATTENTION_H
#define MICA_NUMERICS_ATTENTION_H

#include <stdint.h>

#include "base/dtype.h"

#define MICA_ATTENTION_SCRATCH_BYTES(key_width, value_width) /* for each thread, 64-byte aligned */ \
    (MICA_ATTENTION_QUERIES * (4 * (uint64_t)(value_width) + 4 * (uint64_t)(key_width) + 1536) + 8192)
#define MICA_ATTENTION_QUERIES 32 /* held at a time */

typedef struct mica_attention {
    mica_dtype dtype; /* of the cache: F32 or BF16 */
    const void *keys; /* [positions][key_stride]; the first key_width elements of a row are the key */
    uint64_t key_width, key_stride;
    const void *values; /* [positions][value_stride]; may lie within the keys */
    uint64_t value_width, value_stride;
    float scale; /* of the scores */
    /* Query i belongs to token i / heads and sees positions below visible + i / heads. */
    uint64_t heads, visible;
} mica_attention;

/* A part of the context: for query i the largest score and the sum of exp(score - largest); {-infinity, 0} when it saw nothing. */
typedef struct mica_attention_sum {
    float largest, sum;
} mica_attention_sum;

/* Queries [count][query_stride] against positions [position, end): out[i][0 … value_width) is the weighted mean of the values that query i
 * sees there (zeros when none), sums[i] its weight in a combination. The result does not depend on how queries are shared out among calls. */
void mica_attend(const mica_attention *attention, uint64_t position, uint64_t end, const float *queries, uint64_t query_stride, uint64_t count,
                 float *out, uint64_t out_stride, mica_attention_sum *sums, void *scratch);

/* The mean over several parts of the context, in their order: parts[p][0 … width), sums[p] with strides between parts; one query. */
void mica_attention_combine(const float *parts, uint64_t part_stride, const mica_attention_sum *sums, uint64_t sum_stride, uint64_t count,
                            uint64_t width, float *out);

#endif
