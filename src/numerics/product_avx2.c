/* numerics/product_avx2.c: products with AVX2 and FMA, in float32. Strips: tiles of 4 rows and up to 3 tokens, sums in 8 lanes. Few tokens of
 * the commonest encodings (F32, F16, BF16, Q8_0, Q4_K): from the bytes as they are, a row and a token at a time, 32 columns at a time.
 * Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "numerics/product_kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE_ROWS = 4, TILE_TOKENS = 3 };

/* Four sums over lanes. */
INLINE __m128 sums_of_four(const __m256 v[TILE_ROWS]) {
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

INLINE void tile_step(const float *const w[TILE_ROWS], const float *const x[TILE_TOKENS], const int tokens, uint64_t k, const __m256i *mask,
                      __m256 sums[TILE_TOKENS][TILE_ROWS]) {
    __m256 a[TILE_TOKENS];
    for (int t = 0; t < tokens; t++)
        a[t] = mask ? _mm256_maskload_ps(x[t] + k, *mask) : _mm256_loadu_ps(x[t] + k);
    for (int r = 0; r < TILE_ROWS; r++) {
        __m256 v = mask ? _mm256_maskload_ps(w[r] + k, *mask) : _mm256_loadu_ps(w[r] + k);
        for (int t = 0; t < tokens; t++)
            sums[t][r] = _mm256_fmadd_ps(v, a[t], sums[t][r]);
    }
}

INLINE void tile(const float *const w[TILE_ROWS], const float *const x[TILE_TOKENS], const int tokens, uint64_t width, uint64_t rows, bool add,
                 float *out, uint64_t stride) {
    __m256 sums[TILE_TOKENS][TILE_ROWS];
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < TILE_ROWS; r++)
            sums[t][r] = _mm256_setzero_ps();
    uint64_t k = 0;
    for (; k + 8 <= width; k += 8)
        tile_step(w, x, tokens, k, NULL, sums);
    if (k < width) {
        __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(width - k)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        tile_step(w, x, tokens, k, &mask, sums);
    }
    for (int t = 0; t < tokens; t++, out += stride) {
        float four[4];
        _mm_storeu_ps(four, sums_of_four(sums[t]));
        for (uint64_t r = 0; r < rows; r++)
            out[r] = add ? out[r] + four[r] : four[r];
    }
}

static void multiply_f32(const float *strip, uint64_t strip_stride, uint64_t rows, const mica_operand *x, uint64_t column, uint64_t width, float *out,
                         uint64_t stride) {
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
            switch (some) {
            case 1: tile(w, values, 1, width, left, column != 0, target, stride); break;
            case 2: tile(w, values, 2, width, left, column != 0, target, stride); break;
            default: tile(w, values, 3, width, left, column != 0, target, stride);
            }
        }
    }
}

/* ---- few tokens */

enum { AHEAD = 4096 };

INLINE void fetch(const uint8_t *p, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + AHEAD + i, _MM_HINT_T1);
}

INLINE float sum_of(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

INLINE float half_at(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return _cvtsh_ss(half);
}

/* Eight elements, the i-th eight of 32. */
typedef __m256 load8(const uint8_t *codes, int i);

INLINE __m256 load_f32(const uint8_t *codes, int i) {
    return _mm256_loadu_ps((const float *)(const void *)(codes + 32 * i));
}

INLINE __m256 load_f16(const uint8_t *codes, int i) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(codes + 16 * i)));
}

INLINE __m256 load_bf16(const uint8_t *codes, int i) {
    __m128i words = _mm_loadu_si128((const __m128i *)(const void *)(codes + 16 * i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}

INLINE __m256 load_i8(const uint8_t *codes, int i) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(codes + 8 * i))));
}

INLINE __m256 dot32(const uint8_t *codes, const float *x, load8 *load) {
    __m256 first = _mm256_mul_ps(load(codes, 0), _mm256_loadu_ps(x)), second = _mm256_mul_ps(load(codes, 1), _mm256_loadu_ps(x + 8));
    first = _mm256_fmadd_ps(load(codes, 2), _mm256_loadu_ps(x + 16), first);
    second = _mm256_fmadd_ps(load(codes, 3), _mm256_loadu_ps(x + 24), second);
    return _mm256_add_ps(first, second);
}

typedef float row_dot(const uint8_t *codes, uint64_t columns, const float *x);

INLINE float plain_dot(const uint8_t *codes, uint64_t columns, const float *x, load8 *load, const uint64_t bytes_each) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    uint64_t c = 0;
    for (; c + 64 <= columns; c += 64) {
        const uint8_t *p = codes + c * bytes_each;
        fetch(p, 64 * bytes_each);
        sums[0] = _mm256_add_ps(sums[0], dot32(p, x + c, load));
        sums[1] = _mm256_add_ps(sums[1], dot32(p + 32 * bytes_each, x + c + 32, load));
    }
    for (; c < columns; c += 32) { /* zeros beyond the end */
        uint64_t count = columns - c < 32 ? columns - c : 32;
        uint8_t tail[128] = {0};
        float values[32] = {0};
        memcpy(tail, codes + c * bytes_each, count * bytes_each);
        memcpy(values, x + c, count * sizeof *values);
        sums[0] = _mm256_add_ps(sums[0], dot32(tail, values, load));
    }
    return sum_of(_mm256_add_ps(sums[0], sums[1]));
}

static float f32_dot(const uint8_t *codes, uint64_t columns, const float *x) {
    return plain_dot(codes, columns, x, load_f32, 4);
}

static float f16_dot(const uint8_t *codes, uint64_t columns, const float *x) {
    return plain_dot(codes, columns, x, load_f16, 2);
}

static float bf16_dot(const uint8_t *codes, uint64_t columns, const float *x) {
    return plain_dot(codes, columns, x, load_bf16, 2);
}

static float q8_0_dot(const uint8_t *codes, uint64_t columns, const float *x) {
    __m256 sum = _mm256_setzero_ps();
    for (uint64_t c = 0; c < columns; c += 32, codes += 34) {
        fetch(codes, 34);
        sum = _mm256_fmadd_ps(dot32(codes + 2, x + c, load_i8), _mm256_set1_ps(half_at(codes)), sum);
    }
    return sum_of(sum);
}

/* Eight scales, eight minima, of six bits: bytes 4 … 15 of the block's head. */
INLINE void scales_and_minima(const uint8_t *head, float scales[16]) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)head), six = _mm_set1_epi8(0x3f), four = _mm_set1_epi8(0x0f);
    __m128i first = _mm_srli_si128(bytes, 4), last = _mm_srli_si128(bytes, 12); /* eight bytes, and the last four */
    __m128i high = _mm_and_si128(_mm_srli_epi16(first, 2), _mm_set1_epi8(0x30)), low = _mm_and_si128(first, six);
    __m128i nibbles = _mm_unpacklo_epi32(_mm_and_si128(last, four), _mm_and_si128(_mm_srli_epi16(last, 4), four));
    __m128i upper = _mm_or_si128(high, nibbles); /* scales 4 … 7, minima 4 … 7 */
    __m128i ordered = _mm_unpacklo_epi32(low, upper); /* scales 0 … 7, minima 0 … 7 */
    __m256 d = _mm256_set1_ps(half_at(head)), m = _mm256_set1_ps(half_at(head + 2));
    _mm256_storeu_ps(scales, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(ordered))));
    _mm256_storeu_ps(scales + 8, _mm256_mul_ps(m, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(ordered, 8)))));
}

INLINE __m256 sum32(const float *x) {
    return _mm256_add_ps(_mm256_add_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)), _mm256_add_ps(_mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24)));
}

static float q4_k_dot(const uint8_t *codes, uint64_t columns, const float *x) {
    const __m256i mask = _mm256_set1_epi8(0x0f);
    __m256 sum = _mm256_setzero_ps();
    for (uint64_t c = 0; c < columns; c += 256, codes += 144) {
        float scales[16];
        uint8_t nibbles[64];
        fetch(codes, 144);
        scales_and_minima(codes, scales);
        for (int j = 0; j < 8; j += 2, x += 64) {
            __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)(codes + 16 + 16 * j));
            _mm256_storeu_si256((__m256i *)(void *)nibbles, _mm256_and_si256(pairs, mask));
            _mm256_storeu_si256((__m256i *)(void *)(nibbles + 32), _mm256_and_si256(_mm256_srli_epi16(pairs, 4), mask));
            sum = _mm256_fmadd_ps(dot32(nibbles, x, load_i8), _mm256_set1_ps(scales[j]), sum);
            sum = _mm256_fmadd_ps(dot32(nibbles + 32, x + 32, load_i8), _mm256_set1_ps(scales[j + 1]), sum);
            sum = _mm256_fnmadd_ps(sum32(x), _mm256_set1_ps(scales[j + 8]), sum);
            sum = _mm256_fnmadd_ps(sum32(x + 32), _mm256_set1_ps(scales[j + 9]), sum);
        }
    }
    return sum_of(sum);
}

INLINE void few(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride, row_dot *dot) {
    uint64_t row_bytes = mica_matrix_row_bytes(matrix);
    for (uint64_t r = 0; r < count; r++)
        for (uint64_t t = 0; t < x->tokens; t++)
            out[t * stride + r] = dot((const uint8_t *)matrix->codes + (row + r) * row_bytes, matrix->columns,
                                      x->values + mica_operand_row(x, t) * x->stride);
}

#define DEFINE_FEW(name)                                                                                                                    \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {         \
        few(matrix, row, count, x, out, stride, name##_dot);                                                                                \
    }
DEFINE_FEW(f32)
DEFINE_FEW(f16)
DEFINE_FEW(bf16)
DEFINE_FEW(q8_0)
DEFINE_FEW(q4_k)

static mica_product_few *few_for(const mica_matrix *matrix, mica_precision precision) {
    (void)precision;
    if (matrix->encoding != MICA_ENCODING_PLAIN && matrix->encoding != MICA_ENCODING_BLOCK)
        return NULL;
    switch ((int)matrix->dtype) {
    case MICA_F32: return f32;
    case MICA_F16: return f16;
    case MICA_BF16: return bf16;
    case MICA_Q8_0: return q8_0;
    case MICA_Q4_K: return q4_k;
    default: return NULL;
    }
}

const mica_product_kernels mica_product_kernels_avx2 = {.few = few_for, .multiply_f32 = multiply_f32};
#else
typedef int mica_product_avx2_empty; /* a translation unit may not be empty */
#endif
