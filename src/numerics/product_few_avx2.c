/* numerics/product_few_avx2.c: rows of few tokens from the bytes as they are, one row after the other (a linear stream, fetched 4 KiB ahead),
 * each decoded once for up to four tokens. Two families:
 *   plain and fp8   to float32, 32 columns at a time; float32 activations: the same for both precisions
 *   grouped         codes widened to 16 bits times activations of 16, exact in int32; a factor for each four columns, and the activations' own
 *                   for 256. FAST only. The widening parts even from odd columns, and so are the activations.
 * A token's sums are taken in the same order whatever the other tokens are. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include <math.h>

#include "numerics/product_avx2.h"
#include "numerics/product_unpack_avx2.h"
#include "numerics/product_encodings.h" /* behind the list */

enum { TOGETHER = 4 /* tokens */, AHEAD = 4096 };

INLINE void fetch(const uint8_t *p, uint64_t bytes_ahead) {
    for (uint64_t i = 0; i < bytes_ahead; i += 64)
        _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T1);
}

INLINE float sum_of(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* ---- grouped */

typedef struct token_row {
    const int16_t *words;
    const float *sums, *wide_sums, *steps;
} token_row;

INLINE __m256i product_of(columns32 c, const token_row *x, uint64_t column) {
    const __m256i *words = (const __m256i *)(const void *)(x->words + column);
    return _mm256_add_epi32(_mm256_madd_epi16(c.even, _mm256_load_si256(words)), _mm256_madd_epi16(c.odd, _mm256_load_si256(words + 1)));
}

/* What 32 columns add to each token's part. */
INLINE void add_columns(const uint8_t *codes, const head256 *head, const int group, const token_row *x, uint64_t chunk, const int tokens,
                        read_codes *read, const groups_of form, __m256 parts[TOGETHER][2]) {
    columns32 c = read(codes, group);
    __m256 factor;
    if (form == OF_16) {
        factor = _mm256_castpd_ps(_mm256_broadcast_sd((const double *)(const void *)(head->factors + 2 * group)));
        factor = _mm256_permutevar_ps(factor, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    } else {
        factor = _mm256_broadcast_ss(head->factors + group);
    }
    for (int t = 0; t < tokens; t++)
        parts[t][group % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product_of(c, x + t, chunk * 256 + 32 * (uint64_t)group)), factor,
                                              parts[t][group % 2]);
}

/* What is subtracted from a chunk's columns, as far as it is known before them. */
INLINE void begin_parts(const head256 *head, const token_row *x, uint64_t chunk, const int tokens, const groups_of form, __m256 parts[TOGETHER][2]) {
    for (int t = 0; t < tokens; t++) {
        parts[t][0] = form == OF_16            ? _mm256_mul_ps(head->least[0], _mm256_load_ps(x[t].wide_sums + chunk * 16))
                      : form == OF_32_CENTRED ? _mm256_setzero_ps()
                                              : _mm256_mul_ps(head->least[0], _mm256_load_ps(x[t].sums + chunk * 8));
        parts[t][1] = form == OF_16 ? _mm256_mul_ps(head->least[1], _mm256_load_ps(x[t].wide_sums + chunk * 16 + 8)) : _mm256_setzero_ps();
    }
}

#define EACH_OF_EIGHT(DO) DO(0); DO(1); DO(2); DO(3); DO(4); DO(5); DO(6); DO(7) /* each a constant */

INLINE void add_chunk(const uint8_t *codes, const uint8_t *scales, const int groups, const token_row *x, uint64_t chunk, const int tokens,
                      read_codes *read, read_head *head_of, const groups_of form, __m256 totals[TOGETHER]) {
    head256 head;
    __m256 parts[TOGETHER][2];
    head_of(codes, scales, groups, &head);
    begin_parts(&head, x, chunk, tokens, form, parts);
    if (groups == 8) {
#define ADD(group) add_columns(codes, &head, group, x, chunk, tokens, read, form, parts)
        EACH_OF_EIGHT(ADD);
#undef ADD
    } else {
        for (int g = 0; g < groups; g++)
            add_columns(codes, &head, g, x, chunk, tokens, read, form, parts);
    }
    for (int t = 0; t < tokens; t++)
        totals[t] = _mm256_fmadd_ps(_mm256_add_ps(parts[t][0], parts[t][1]), _mm256_broadcast_ss(x[t].steps + chunk), totals[t]);
}

typedef struct row_form { /* of a weight's rows */
    uint64_t columns, codes, scales; /* bytes */
} row_form;

/* One row, TOKENS tokens from `token` on. */
INLINE void grouped_row(const uint8_t *codes, const uint8_t *scales, const row_form *row_of, const mica_operand *x, uint64_t token, const int tokens,
                        float *out, uint64_t stride, read_codes *read, read_head *head_of, const groups_of form,
                        const uint64_t code_bytes, const uint64_t scale_bytes, const float power) {
    token_row rows[TOGETHER];
    __m256 totals[TOGETHER];
    uint64_t whole = row_of->columns / 256, rest = row_of->columns % 256, chunks = x->padded / 256;
    for (int t = 0; t < tokens; t++) {
        uint64_t row = mica_operand_row(x, token + (uint64_t)t);
        rows[t] = (token_row){x->words + row * x->padded, x->block_sums + row * x->padded / 32, x->wide_sums + row * x->padded / 16, x->scales + row * chunks};
        totals[t] = _mm256_setzero_ps();
    }
    for (uint64_t chunk = 0; chunk < whole; chunk++, codes += code_bytes, scales += scale_bytes) {
        fetch(codes, code_bytes);
        add_chunk(codes, scales, 8, rows, chunk, tokens, read, head_of, form, totals);
    }
    if (rest) {
        uint8_t tail[128 + 32];
        if (scale_bytes) { /* zeros beyond its end, where the activations are zero too */
            memset(tail, 0, sizeof tail);
            memcpy(tail, codes, row_of->codes - whole * code_bytes);
            memcpy(tail + 128, scales, row_of->scales - whole * scale_bytes);
            codes = tail;
            scales = tail + 128;
        }
        int groups = (int)((rest + 31) / 32);
        __asm__("" : "+r"(groups)); /* not known: this is the loop, once */
        add_chunk(codes, scales, groups, rows, whole, tokens, read, head_of, form, totals);
    }
    for (int t = 0; t < tokens; t++)
        out[(uint64_t)t * stride] = sum_of(totals[t]) * power;
}

INLINE void grouped_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                         read_codes *read, read_head *head_of, const groups_of form, const uint64_t code_bytes,
                         const uint64_t scale_bytes, const float power) {
    row_form row_of = {matrix->columns, mica_matrix_row_bytes(matrix), (matrix->columns + 31) / 32 * (scale_bytes / 8)};
    for (uint64_t r = 0; r < count; r++) {
        const uint8_t *codes = (const uint8_t *)matrix->codes + (row + r) * row_of.codes;
        const uint8_t *scales = scale_bytes ? (const uint8_t *)matrix->scales + (row + r) * row_of.scales : codes;
#define TOKENS(tokens)                                                                                                                      \
    grouped_row(codes, scales, &row_of, x, t, tokens, out + t * stride + r, stride, read, head_of, form, code_bytes, scale_bytes, \
                power), t += tokens
        uint64_t t = 0;
        while (t + TOGETHER <= x->tokens)
            TOKENS(TOGETHER);
        if (t + 2 <= x->tokens)
            TOKENS(2);
        if (t < x->tokens)
            TOKENS(1);
#undef TOKENS
    }
}

#define X(name, codes, head, form, code_bytes, scale_bytes, power)                                                            \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {     \
        grouped_rows(matrix, row, count, x, out, stride, codes, head, form, code_bytes, scale_bytes, power);                  \
    }
GROUPED_LIST(X)
#undef X

static mica_product_few *const grouped_few[GROUPED_COUNT] = {
#define X(name, codes, head, form, code_bytes, scale_bytes, power) name,
    GROUPED_LIST(X)
#undef X
};

/* ---- plain and fp8: 32 elements to float32, exactly but for a power of two; `seen` gathers what tells a NaN that the conversion does not make */

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

INLINE void plain_row(const uint8_t *codes, const uint8_t *scales, uint64_t columns, uint64_t block_columns, const mica_operand *x, uint64_t token,
                      const int tokens, float *out, uint64_t stride, load_columns *load, const uint64_t bytes_each, scale_at *scale,
                      const float power) {
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
#define TOKENS(tokens)                                                                                                             \
    plain_row(codes, scales, columns, block_columns, x, t, tokens, out + t * stride + r, stride, load, bytes_each, scale, power), t += tokens
        uint64_t t = 0;
        while (t + TOGETHER <= x->tokens)
            TOKENS(TOGETHER);
        if (t + 2 <= x->tokens)
            TOKENS(2);
        if (t < x->tokens)
            TOKENS(1);
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
    int group = precision == MICA_PRECISION_FAST ? grouped_of(matrix) : -1;
    return group >= 0 ? grouped_few[group] : plain_of(matrix);
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

/* 256 values: their step is the largest magnitude / 32512, as for AVX-512; what is not finite makes the step NaN. */
static void prepare_chunk(const float *values, uint64_t count, int16_t *words, float *block_sums, float *wide_sums, float *scale) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), ones = _mm256_set1_epi16(1);
    float padded[256], magnitude;
    uint32_t bits = 0, all[8];
    if (count < 256) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, values, count * sizeof *values);
        values = padded;
    }
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 32; i++)
        largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(const void *)(values + 8 * i)), _mm256_set1_epi32(0x7fffffff)));
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
        __m256i even = every_other(q, 0), odd = every_other(q, 1);
        _mm256_store_si256((__m256i *)(void *)words, even);
        _mm256_store_si256((__m256i *)(void *)(words + 16), odd);
        sums[g % 4] = _mm256_add_epi32(_mm256_madd_epi16(even, ones), _mm256_madd_epi16(odd, ones));
        if (g % 4 == 3) {
            __m256i wide = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
            __m128i both = _mm_add_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)); /* at most 32 * 32512 */
            wide = _mm256_permutevar8x32_epi32(wide, order);
            _mm256_store_ps(wide_sums + g / 4 * 8, _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(-128)));
            _mm_store_ps(block_sums + g / 4 * 4, _mm_mul_ps(_mm_cvtepi32_ps(both), _mm_set1_ps(-128)));
        }
    }
}

void mica_prepare_avx2(mica_operand *x, uint64_t row) {
    const float *values = x->values + row * x->stride;
    uint64_t first = row * x->padded;
    for (uint64_t c = 0; c < x->padded; c += 256)
        prepare_chunk(values + c, x->columns - c < 256 ? x->columns - c : 256, x->words + first + c, x->block_sums + (first + c) / 32, x->wide_sums + (first + c) / 16,
                      x->scales + (first + c) / 256);
}
#else
typedef int mica_product_few_avx2_empty; /* a translation unit may not be empty */
#endif
