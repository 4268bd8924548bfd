/* numerics/product_few_avx2.c: rows of few tokens from the bytes as they are, in linear streams that are fetched 4 KiB ahead, each decoded
 * once for up to four tokens. Two families:
 *   plain and fp8   to float32, 32 columns at a time; float32 activations: the same for both precisions
 *   grouped         product_grouped_256.h, product_quads_256.h. FAST only.
 * A token's sums are taken in the same order whatever the other tokens are. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include <math.h>

#include "numerics/product_avx2.h"
#include "numerics/product_grouped_256.h"

/* ---- plain and fp8: 32 elements to float32, exactly but for a power of two; `seen` gathers what tells a NaN that no conversion makes */

typedef void load_columns(const uint8_t *codes, __m256 values[4], __m256i *seen);

INLINE void load_f32(const uint8_t *codes, __m256 values[4], __m256i *seen) {
    (void)seen;
    for (int i = 0; i < 4; i++)
        values[i] = _mm256_loadu_ps((const float *)(const void *)(codes + 32 * i));
}

INLINE void load_f16(const uint8_t *codes, __m256 values[4], __m256i *seen) {
    (void)seen;
    for (int i = 0; i < 4; i++)
        values[i] = _mm256_cvtph_ps(load16(codes + 16 * i));
}

INLINE void load_bf16(const uint8_t *codes, __m256 values[4], __m256i *seen) {
    (void)seen;
    for (int i = 0; i < 4; i++)
        values[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(codes + 16 * i)), 16));
}

INLINE void halves_to_floats(__m256i halves, __m256 values[2]) {
    values[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    values[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
}

INLINE void load_e5m2(const uint8_t *codes, __m256 values[4], __m256i *seen) { /* the upper bytes of F16 numbers */
    (void)seen;
    for (int i = 0; i < 2; i++)
        halves_to_floats(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load16(codes + 16 * i)), 8), values + 2 * i);
}

/* As F16 numbers, subnormal ones too, they are 2^-8 of what they shall be, and their NaN is a number. */
#define E4M3_POWER 0x1p8f

INLINE void load_e4m3(const uint8_t *codes, __m256 values[4], __m256i *seen) {
    *seen = _mm256_max_epu8(*seen, _mm256_and_si256(load32(codes), bytes(0x7f)));
    for (int i = 0; i < 2; i++) {
        __m256i halves = _mm256_slli_epi16(_mm256_cvtepu8_epi16(load16(codes + 16 * i)), 7); /* the sign one place too low */
        halves_to_floats(_mm256_add_epi16(halves, _mm256_and_si256(halves, _mm256_set1_epi16(0x4000))), values + 2 * i);
    }
}

INLINE bool saw_nan(__m256i seen) {
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(seen, bytes(0x7f))) != 0;
}

/* What 32 columns add to each token's part; two sums, so that one need not await the other. */
INLINE void add_plain(const uint8_t *codes, const float *const values[], uint64_t at, const int tokens, load_columns *load, __m256i *seen,
                      __m256 parts[TOGETHER][2]) {
    __m256 w[4];
    load(codes, w, seen);
    for (int i = 0; i < 4; i++)
        for (int t = 0; t < tokens; t++)
            parts[t][i % 2] = _mm256_fmadd_ps(w[i], _mm256_loadu_ps(values[t] + at + 8 * i), parts[t][i % 2]);
}

INLINE void plain_row(const uint8_t *codes, const uint8_t *scales, uint64_t columns, uint64_t block_columns, const mica_operand *x,
                      uint64_t token, const int tokens, float *out, uint64_t stride, load_columns *load, const uint64_t bytes_each,
                      scale_at *scale, const float power) {
    const float *values[TOGETHER];
    __m256 totals[TOGETHER], parts[TOGETHER][2];
    __m256i seen = _mm256_setzero_si256();
    for (int t = 0; t < tokens; t++) {
        values[t] = x->values + mica_operand_row(x, token + (uint64_t)t) * x->stride;
        totals[t] = parts[t][0] = parts[t][1] = _mm256_setzero_ps();
    }
    for (uint64_t c = 0, end; c < columns; c = end) { /* a block of columns, or all of the row */
        end = columns - c > block_columns ? c + block_columns : columns;
        uint64_t k = c;
        for (; k + 64 <= end; k += 64) {
            const uint8_t *p = codes + k * bytes_each;
            fetch(p, 64 * bytes_each);
            add_plain(p, values, k, tokens, load, &seen, parts);
            add_plain(p + 32 * bytes_each, values, k + 32, tokens, load, &seen, parts);
        }
        for (; k < end; k += 32) { /* zeros beyond the end */
            uint64_t count = end - k < 32 ? end - k : 32;
            uint8_t tail_codes[128] = {0};
            float tail[TOGETHER][32] = {{0}};
            const float *tails[TOGETHER];
            memcpy(tail_codes, codes + k * bytes_each, count * bytes_each);
            for (int t = 0; t < tokens; t++) {
                memcpy(tail[t], values[t] + k, count * sizeof(float));
                tails[t] = tail[t];
            }
            add_plain(tail_codes, tails, 0, tokens, load, &seen, parts);
        }
        for (int t = 0; t < tokens && scale != scale_none; t++) {
            __m256 factor = _mm256_set1_ps(scale(scales, c / block_columns) * power);
            totals[t] = _mm256_fmadd_ps(_mm256_add_ps(parts[t][0], parts[t][1]), factor, totals[t]);
            parts[t][0] = parts[t][1] = _mm256_setzero_ps();
        }
    }
    for (int t = 0; t < tokens; t++) {
        float sum = sum_of(scale == scale_none ? _mm256_add_ps(parts[t][0], parts[t][1]) : totals[t]);
        out[(uint64_t)t * stride] = saw_nan(seen) ? NAN : sum;
    }
}

INLINE void plain_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                       load_columns *load, const uint64_t bytes_each, scale_at *scale, const float power) {
    uint64_t columns = matrix->columns, block_columns = scale == scale_none ? columns : matrix->block_columns;
    uint64_t scales_in_row = (columns + block_columns - 1) / block_columns * mica_dtype_bytes(matrix->scale_dtype);
    for (uint64_t r = 0; r < count; r++) {
        const uint8_t *codes = (const uint8_t *)matrix->codes + (row + r) * columns * bytes_each, *scales = NULL;
        if (scale != scale_none)
            scales = (const uint8_t *)matrix->scales + (row + r) / matrix->block_rows * scales_in_row;
#define TOKENS(t, tokens) \
    plain_row(codes, scales, columns, block_columns, x, t, tokens, out + t * stride + r, stride, load, bytes_each, scale, power)
        FEW_AT_A_TIME(x->tokens, TOKENS);
#undef TOKENS
    }
}

/* name, loader, bytes of a code, scale, power of two */
#define PLAIN_LIST(X)                                                                                                                    \
    X(f32, load_f32, 4, scale_none, 1) X(f16, load_f16, 2, scale_none, 1) X(bf16, load_bf16, 2, scale_none, 1)                            \
    X(e4m3_f32, load_e4m3, 1, scale_f32, E4M3_POWER) X(e4m3_bf16, load_e4m3, 1, scale_bf16, E4M3_POWER)                                   \
    X(e4m3_e8m0, load_e4m3, 1, scale_e8m0, E4M3_POWER) X(e5m2_f32, load_e5m2, 1, scale_f32, 1) X(e5m2_bf16, load_e5m2, 1, scale_bf16, 1)  \
    X(e5m2_e8m0, load_e5m2, 1, scale_e8m0, 1)

#define X(name, load, bytes_each, scale, power)                                                                                       \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {   \
        plain_rows(matrix, row, count, x, out, stride, load, bytes_each, scale, power);                                              \
    }
PLAIN_LIST(X)
#undef X

static mica_product_few *plain_of(const mica_matrix *matrix) {
    bool e5m2 = matrix->dtype == MICA_F8_E5M2;
    if (matrix->encoding == MICA_ENCODING_PLAIN)
        return matrix->dtype == MICA_F32 ? f32 : matrix->dtype == MICA_F16 ? f16 : matrix->dtype == MICA_BF16 ? bf16 : NULL;
    if (matrix->encoding != MICA_ENCODING_FP8_BLOCK)
        return NULL;
    switch ((int)matrix->scale_dtype) {
    case MICA_F32: return e5m2 ? e5m2_f32 : e4m3_f32;
    case MICA_BF16: return e5m2 ? e5m2_bf16 : e4m3_bf16;
    case MICA_F8_E8M0: return e5m2 ? e5m2_e8m0 : e4m3_e8m0;
    default: return NULL;
    }
}

/* ---- the choice */

mica_product_few *mica_product_few_avx2(const mica_matrix *matrix, mica_precision precision) {
    mica_product_few *grouped = precision == MICA_PRECISION_FAST ? grouped_few_of(matrix) : NULL;
    return grouped ? grouped : plain_of(matrix);
}

/* ---- preparation */

/* Of 32 integers, eight in each, those of even columns, or with `odd` those of odd ones. */
INLINE __m256i every_other(const __m256i q[4], const int odd) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i shifted[4];
    for (int i = 0; i < 4; i++)
        shifted[i] = odd ? _mm256_shuffle_epi32(q[i], 0xdd) : _mm256_shuffle_epi32(q[i], 0x88); /* in each lane: two of them, twice */
    __m256i first = _mm256_unpacklo_epi64(shifted[0], shifted[1]), second = _mm256_unpacklo_epi64(shifted[2], shifted[3]);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi32(first, second), order);
}

/* Thirty-two bytes in their order. */
INLINE void store_bytes(const __m256i q[4], int8_t *to) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i all = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_storeu_si256((__m256i *)(void *)to, _mm256_permutevar8x32_epi32(all, order));
}

/* Integers of 16 bits in their two digits. */
INLINE void store_digits(const __m256i q[4], int8_t *upper, int8_t *lower) {
    __m256i first[4], second[4];
    for (int i = 0; i < 4; i++) {
        first[i] = _mm256_srai_epi32(_mm256_add_epi32(q[i], _mm256_set1_epi32(128)), 8);
        second[i] = _mm256_sub_epi32(q[i], _mm256_slli_epi32(first[i], 8));
    }
    store_bytes(first, upper);
    store_bytes(second, lower);
}

/* 256 values: their step is the largest magnitude / 32512, as for AVX-512; what is not finite makes the step NaN. */
static void prepare_chunk(const float *values, uint64_t count, mica_operand *x, uint64_t at) {
    int16_t *words = x->words + at;
    float *block_sums = x->block_sums + at / 32, *wide_sums = x->wide_sums + at / 16, *scale = x->scales + at / 256;
    int8_t upper[256], lower[256];
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), ones = _mm256_set1_epi16(1);
    float padded[256], magnitude;
    uint32_t bits = 0, all[8];
    if (count < 256) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, values, count * sizeof *values);
        values = padded;
    }
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 32; i++) {
        __m256i bits_of_eight = _mm256_loadu_si256((const __m256i *)(const void *)(values + 8 * i));
        largest = _mm256_max_epu32(largest, _mm256_and_si256(bits_of_eight, _mm256_set1_epi32(0x7fffffff)));
    }
    _mm256_storeu_si256((__m256i *)(void *)all, largest);
    for (int i = 0; i < 8; i++)
        bits = all[i] > bits ? all[i] : bits;
    memcpy(&magnitude, &bits, sizeof magnitude);
    bool finite = bits < 0x7f800000u, zero = magnitude < 1e-33f; /* its reciprocal would be infinite */
    *scale = finite ? magnitude / 32512 : NAN;
    __m256 inverse = _mm256_set1_ps(finite && !zero ? 32512 / magnitude : 0);
    __m256i sums[4]; /* of each four columns of 32 */
    for (int g = 0; g < 8; g++, words += 32) {
        __m256i q[4];
        for (int i = 0; i < 4; i++)
            q[i] = finite ? _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + 32 * g + 8 * i), inverse)) : _mm256_setzero_si256();
        store_digits(q, upper + 32 * g, lower + 32 * g);
        __m256i even = every_other(q, 0), odd = every_other(q, 1);
        _mm256_store_si256((__m256i *)(void *)words, even);
        _mm256_store_si256((__m256i *)(void *)(words + 16), odd);
        sums[g % 4] = _mm256_add_epi32(_mm256_madd_epi16(even, ones), _mm256_madd_epi16(odd, ones));
        if (g % 4 == 3) {
            __m256i wide = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
            __m128i both = _mm_add_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)); /* at most 32 * 32512 */
            wide = _mm256_permutevar8x32_epi32(wide, order);
            _mm256_store_ps(wide_sums + g / 4 * 8, _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_setzero_si256(), wide)));
            _mm_store_ps(block_sums + g / 4 * 4, _mm_cvtepi32_ps(_mm_sub_epi32(_mm_setzero_si128(), both)));
        }
    }
    store_even_odd(upper, x->quads + 2 * at);
    store_even_odd(lower, x->quads + 2 * at + 128);
}

void mica_prepare_avx2(mica_operand *x, uint64_t row) {
    const float *values = x->values + row * x->stride;
    for (uint64_t c = 0; c < x->padded; c += 256)
        prepare_chunk(values + c, x->columns - c < 256 ? x->columns - c : 256, x, row * x->padded + c);
}
#else
typedef int mica_product_few_avx2_empty; /* a translation unit may not be empty */
#endif
