/* numerics/product_strip_avx512.c: strips of a weight in float32, their products with many tokens, and the tokens' preparation.
 * Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include <math.h>

#include "numerics/elementwise.h"
#include "numerics/product_avx512.h"
#include "numerics/product_load_avx512.h"
#include "numerics/product_quads.h"
#include "numerics/product_tile_avx512.h"

int mica_grouped_avx512(const mica_matrix *matrix) {
    return grouped_of(matrix);
}

int mica_plain_avx512(const mica_matrix *matrix) {
    bool e5m2 = matrix->dtype == MICA_F8_E5M2;
    if (matrix->encoding == MICA_ENCODING_PLAIN)
        return matrix->dtype == MICA_F32 ? (int)PLAIN_f32 : matrix->dtype == MICA_F16 ? (int)PLAIN_f16 : matrix->dtype == MICA_BF16 ? (int)PLAIN_bf16 : -1;
    if (matrix->encoding != MICA_ENCODING_FP8_BLOCK || (matrix->block_columns % 64 != 0 && matrix->block_columns < matrix->columns))
        return -1;
    switch ((int)matrix->scale_dtype) {
    case MICA_F32: return e5m2 ? PLAIN_e5m2_f32 : PLAIN_e4m3_f32;
    case MICA_BF16: return e5m2 ? PLAIN_e5m2_bf16 : PLAIN_e4m3_bf16;
    case MICA_F8_E8M0: return e5m2 ? PLAIN_e5m2_e8m0 : PLAIN_e4m3_e8m0;
    default: return -1;
    }
}

/* ---- strips of grouped encodings; the others are mica_matrix_decode_block's */

/* Vector v's values: 16 columns of a quarter each. */
INLINE void values_of(const columns256 *w, const int v, const int group_columns, const int minima, const float factor, __m512 values[4]) {
    __m128i codes[4] = {_mm512_castsi512_si128(w->codes[v]), _mm512_extracti32x4_epi32(w->codes[v], 1), _mm512_extracti32x4_epi32(w->codes[v], 2),
                        _mm512_extracti32x4_epi32(w->codes[v], 3)};
    __m512 factors = group_columns == 32 ? w->factors[v / 2 * 2] : w->factors[v], least = w->least;
    if (!minima && factor != 1)
        factors = _mm512_mul_ps(factors, _mm512_set1_ps(factor));
    if (minima)
        least = _mm512_mul_ps(least, _mm512_set1_ps(-128));
#define SIXTEEN_COLUMNS(i)                                                                                                              \
    do { /* all factors of 16 columns are one */                                                                                        \
        __m512 scale = _mm512_shuffle_f32x4(factors, factors, (i) * 0x55);                                                              \
        __m512i whole = minima ? _mm512_cvtepu8_epi32(codes[i]) : _mm512_cvtepi8_epi32(_mm_xor_si128(codes[i], _mm_set1_epi8(-128)));    \
        const int lane = group_columns == 32 ? 8 + v / 2 * 4 + (i) : v / 2 * 8 + 2 * (i) + v % 2; /* of least */                              \
        values[i] = minima ? _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, _mm512_permutexvar_ps(_mm512_set1_epi32(lane), least))     \
                           : _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale);                                                           \
    } while (0)
    SIXTEEN_COLUMNS(0);
    SIXTEEN_COLUMNS(1);
    SIXTEEN_COLUMNS(2);
    SIXTEEN_COLUMNS(3);
#undef SIXTEEN_COLUMNS
}

INLINE void store_f32(void *to, const columns256 *w, const int g, const int group_columns, const int minima, const float factor) {
    for (int h = 0; h < 2; h++) {
        __m512 values[4];
        values_of(w, 2 * g + h, group_columns, minima, factor, values);
        for (int i = 0; i < 4; i++)
            _mm512_storeu_ps((float *)to + 32 * i + 16 * h, values[i]);
    }
}

#define X(name, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads)                                                     \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, float *strip, uint64_t stride) { \
        grouped_strip(matrix, row, count, column, width, strip, stride, sizeof *strip, unpack, group_columns, minima, code_bytes, scale_bytes, factor,       \
                      store_f32);                                                                                                             \
    }
GROUPED_LIST(X)
#undef X

mica_strip_f32 *mica_product_strip_f32_avx512(const mica_matrix *matrix) {
    static mica_strip_f32 *const strips[GROUPED_COUNT] = {
#define X(name, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads) name,
        GROUPED_LIST(X)
#undef X
    };
    int group = mica_grouped_avx512(matrix);
    return group < 0 ? NULL : strips[group];
}

/* ---- strip times tokens: tiles of 4 rows and up to 6 tokens, sums in 16 lanes */

INLINE void tile_step(const float *const w[TILE_ROWS], const float *const x[TILE_TOKENS], const int tokens, uint64_t k, __mmask16 mask,
                      __m512 sums[TILE_TOKENS][TILE_ROWS]) {
    __m512 v[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; r++)
        v[r] = _mm512_maskz_loadu_ps(mask, w[r] + k);
    for (int t = 0; t < tokens; t++) {
        __m512 a = _mm512_maskz_loadu_ps(mask, x[t] + k);
        for (int r = 0; r < TILE_ROWS; r++)
            sums[t][r] = _mm512_fmadd_ps(v[r], a, sums[t][r]);
    }
}

INLINE void tile(const float *const w[TILE_ROWS], const float *const x[TILE_TOKENS], const int tokens, uint64_t width, __mmask8 rows, bool add,
                 float *out, uint64_t stride) {
    __m512 sums[TILE_TOKENS][TILE_ROWS];
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < TILE_ROWS; r++)
            sums[t][r] = _mm512_setzero_ps();
    uint64_t k = 0;
    for (; k + 16 <= width; k += 16)
        tile_step(w, x, tokens, k, 0xffff, sums);
    if (k < width)
        tile_step(w, x, tokens, k, (__mmask16)((1u << (width - k)) - 1), sums);
    for (int t = 0; t < tokens; t++, out += stride)
        store_sums(sums[t], rows, add, out);
}

void mica_multiply_f32_avx512(const float *strip, uint64_t strip_stride, uint64_t rows, const mica_operand *x, uint64_t column, uint64_t width,
                              float *out, uint64_t stride) {
    for (uint64_t t = 0, some; t < x->tokens; t += some) {
        const float *values[TILE_TOKENS];
        some = x->tokens - t < TILE_TOKENS ? x->tokens - t : TILE_TOKENS;
        for (uint64_t i = 0; i < some; i++)
            values[i] = x->values + mica_operand_row(x, t + i) * x->stride + column;
        for (uint64_t r = 0; r < rows; r += TILE_ROWS) {
            uint64_t left = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            const float *w[TILE_ROWS];
            for (uint64_t i = 0; i < TILE_ROWS; i++)
                w[i] = strip + (r + (i < left ? i : 0)) * strip_stride;
            float *target = out + t * stride + r;
            __mmask8 mask = (__mmask8)((1u << left) - 1);
            fetch_next(x, t + some, x->values + column, x->stride * sizeof(float), width * sizeof(float), r, rows);
            switch (some) {
            case 1: tile(w, values, 1, width, mask, column != 0, target, stride); break;
            case 2: tile(w, values, 2, width, mask, column != 0, target, stride); break;
            case 3: tile(w, values, 3, width, mask, column != 0, target, stride); break;
            case 4: tile(w, values, 4, width, mask, column != 0, target, stride); break;
            case 5: tile(w, values, 5, width, mask, column != 0, target, stride); break;
            default: tile(w, values, 6, width, mask, column != 0, target, stride);
            }
        }
    }
}

/* ---- preparation */

/* 256 values: their step is the largest magnitude / 32512, so that the two digits fit; what is not finite makes the step NaN. The order is that of
 * unpacked codes (product_unpack_avx512.h): vector 2 g + h has columns 128 g + 32 b + 16 h ... in quarter b. */
static void prepare_chunk(const float *values, uint64_t count, mica_operand *x, uint64_t first) {
    float padded[256];
    int8_t *digits = x->digits + 2 * first, upper[256], lower[256];
    int32_t *sums = x->sums + first / 4, *pair_sums = x->pair_sums + first / 8;
    float *wide_sums = x->wide_sums + first / 16, *wide_pair_sums = x->wide_pair_sums + first / 16;
    float *quad_sums = x->quad_sums + first / 16;
    if (count < 256) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, values, count * sizeof *values);
        values = padded;
    }
    __m512i largest = _mm512_setzero_si512();
    for (int i = 0; i < 16; i++)
        largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_loadu_si512(values + 16 * i), _mm512_set1_epi32(0x7fffffff)));
    uint32_t bits = _mm512_reduce_max_epu32(largest);
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    bool finite = bits < 0x7f800000u, zero = magnitude < 1e-33f; /* its reciprocal would be infinite */
    x->scales[first / 256] = finite ? magnitude / 32512 : NAN;
    __m512 inverse = _mm512_set1_ps(finite && !zero ? 32512 / magnitude : 0);
    for (int i = 0; i < 16; i++) {
        int8_t *to = digits + (i / 8 * 2 + i % 2) * 128 + i % 8 / 2 * 16;
        __m512 scaled = finite ? _mm512_mul_ps(_mm512_loadu_ps(values + 16 * i), inverse) : _mm512_setzero_ps();
        __m512i q = _mm512_cvtps_epi32(scaled), upper_digit = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
        __m128i first_digit = _mm512_cvtepi32_epi8(upper_digit), second_digit = _mm512_cvtepi32_epi8(_mm512_sub_epi32(q, _mm512_slli_epi32(upper_digit, 8)));
        _mm_storeu_si128((__m128i *)(void *)to, first_digit);
        _mm_storeu_si128((__m128i *)(void *)(to + 64), second_digit);
        _mm_storeu_si128((__m128i *)(void *)(upper + 16 * i), first_digit);
        _mm_storeu_si128((__m128i *)(void *)(lower + 16 * i), second_digit);
        wide_sums[i] = (float)(-128 * _mm512_reduce_add_epi32(q)); /* at most 16 * 32512 * 128 */
        quad_sums[quad_of(i)] = wide_sums[i];
    }
    store_quads(upper, x->quads + 2 * first);
    store_quads(lower, x->quads + 2 * first + 64);
    __m512i sum[4];
    for (int v = 0; v < 4; v++) {
        __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), bytes(1), _mm512_loadu_si512(digits + 128 * v));
        sum[v] = _mm512_dpbusd_epi32(_mm512_slli_epi32(high, 8), bytes(1), _mm512_loadu_si512(digits + 128 * v + 64));
        sum[v] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum[v], 7));
        _mm512_storeu_si512(sums + 16 * v, sum[v]);
    }
    for (int g = 0; g < 2; g++)
        _mm512_storeu_si512(pair_sums + 16 * g, _mm512_add_epi32(sum[2 * g], sum[2 * g + 1]));
    for (int b = 0; b < 8; b++) {
        wide_pair_sums[b] = 0;
        wide_pair_sums[8 + b] = wide_sums[2 * b] + wide_sums[2 * b + 1];
    }
}

void mica_prepare_avx512(mica_operand *x, uint64_t row) {
    const float *values = x->values + row * x->stride;
    uint64_t first = row * x->padded;
    if (x->bf16) {
        mica_bf16_of_float(values, x->columns, x->bf16 + first);
        memset(x->bf16 + first + x->columns, 0, (x->padded - x->columns) * sizeof *x->bf16);
    }
    for (uint64_t c = 0; x->digits && c < x->padded; c += 256)
        prepare_chunk(values + c, x->columns - c < 256 ? x->columns - c : 256, x, first + c);
}
#else
typedef int mica_product_strip_avx512_empty; /* a translation unit may not be empty */
#endif
