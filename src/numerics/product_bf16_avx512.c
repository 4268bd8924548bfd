/* numerics/product_bf16_avx512.c: strips of a weight in bf16, and their products with many tokens (AVX512_BF16, which not every processor with
 * AVX-512 has). The products' sums are float32; subnormal numbers count as zero. Judged by tests/numerics/test_product.c. */
#if defined(__x86_64__)
#include "numerics/product_avx512.h"
#include "numerics/product_load_avx512.h"
#include "numerics/product_tile_avx512.h"

INLINE void store_bf16(void *strip, const __m512 values[4]) {
    __m512bh first = _mm512_cvtne2ps_pbh(values[1], values[0]), second = _mm512_cvtne2ps_pbh(values[3], values[2]);
    memcpy(strip, &first, sizeof first);
    memcpy((uint8_t *)strip + 64, &second, sizeof second);
}

/* 2^15 + code, as float32, is a code in the second of its four bytes, so that bytes become numbers by interleaving alone, in each quarter of a vector for
 * itself, and so lie as the factors do. They are brought into their order when they are bf16, four to a quadword. */
INLINE void store_bf16_128(void *to, const columns256 *w, const int g, const int group_columns, const int minima, const float factor) {
    const __m512i upper_half = _mm512_set1_epi16(0x4700), zero = _mm512_setzero_si512();
    const __m512i order[2] = {_mm512_setr_epi64(0, 4, 8, 12, 1, 5, 9, 13), _mm512_setr_epi64(2, 6, 10, 14, 3, 7, 11, 15)};
    for (int h = 0; h < 2; h++) {
        const int v = 2 * g + h;
        __m512i first = _mm512_unpacklo_epi8(zero, w->codes[v]), second = _mm512_unpackhi_epi8(zero, w->codes[v]);
        __m512 factors = group_columns == 32 ? w->factors[2 * g] : w->factors[v], least = _mm512_setzero_ps();
        __m512 values[4] = {_mm512_castsi512_ps(_mm512_unpacklo_epi16(first, upper_half)), _mm512_castsi512_ps(_mm512_unpackhi_epi16(first, upper_half)),
                            _mm512_castsi512_ps(_mm512_unpacklo_epi16(second, upper_half)), _mm512_castsi512_ps(_mm512_unpackhi_epi16(second, upper_half))};
        if (!minima && factor != 1)
            factors = _mm512_mul_ps(factors, _mm512_set1_ps(factor));
        if (minima)
            least = _mm512_mul_ps(group_columns == 32 ? of_four(w->least, 8 + 4 * g) : of_every_other(w->least, 8 * g + h), _mm512_set1_ps(-128));
        for (int i = 0; i < 4; i++) {
            values[i] = _mm512_sub_ps(values[i], _mm512_set1_ps(minima ? 32768 : 32768 + 128)); /* exactly */
            values[i] = minima ? _mm512_fmadd_ps(values[i], factors, least) : _mm512_mul_ps(values[i], factors);
        }
        __m512bh pairs[2] = {_mm512_cvtne2ps_pbh(values[1], values[0]), _mm512_cvtne2ps_pbh(values[3], values[2])};
        __m512i words[2];
        memcpy(words, pairs, sizeof words);
        for (int i = 0; i < 2; i++) { /* two quarters */
            __m512i two = _mm512_permutex2var_epi64(words[0], order[i], words[1]);
            uint8_t *at = (uint8_t *)to + 128 * i + 32 * h;
            _mm256_storeu_si256((__m256i *)(void *)at, _mm512_castsi512_si256(two));
            _mm256_storeu_si256((__m256i *)(void *)(at + 64), _mm512_extracti64x4_epi64(two, 1));
        }
    }
}

#define X(name, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads)                                                     \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, uint16_t *strip, uint64_t stride) { \
        grouped_strip(matrix, row, count, column, width, strip, stride, sizeof *strip, unpack, group_columns, minima, code_bytes, scale_bytes, factor,          \
                      store_bf16_128);                                                                                                               \
    }
GROUPED_LIST(X)
#undef X

INLINE void plain_strip(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, uint16_t *strip, uint64_t stride,
                        load64 *load, const uint64_t bytes_each, scale_at *scale) {
    uint64_t columns = matrix->columns, block_columns = scale == scale_none ? columns : matrix->block_columns;
    uint64_t scales_in_row = (columns + block_columns - 1) / block_columns * mica_dtype_bytes(matrix->scale_dtype);
    uint8_t tail[256];
    for (uint64_t r = 0; r < count; r++) {
        const uint8_t *codes = (const uint8_t *)matrix->codes + ((row + r) * columns + column) * bytes_each, *scales = NULL;
        if (scale != scale_none)
            scales = (const uint8_t *)matrix->scales + (row + r) / matrix->block_rows * scales_in_row;
        for (uint64_t c = 0; c < width; c += 64, codes += 64 * bytes_each) {
            __m512 values[4];
            if (width - c < 64) {
                memset(tail, 0, sizeof tail);
                memcpy(tail, codes, (width - c) * bytes_each);
                codes = tail;
            }
            fetch(codes, 64 * bytes_each);
            if (load == load_bf16) { /* they are what they shall be */
                memcpy(strip + r * stride + c, codes, 128);
                continue;
            }
            load(codes, values);
            for (int i = 0; i < 4 && scale != scale_none; i++)
                values[i] = _mm512_mul_ps(values[i], _mm512_set1_ps(scale(scales, (column + c) / block_columns)));
            store_bf16(strip + r * stride + c, values);
        }
    }
}

#define X(name, load, bytes_each, scale)                                                                                                        \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, uint16_t *strip, uint64_t stride) { \
        plain_strip(matrix, row, count, column, width, strip, stride, load, bytes_each, scale);                                                 \
    }
PLAIN_LIST(X)
#undef X

mica_strip_bf16 *mica_product_strip_bf16_avx512(const mica_matrix *matrix) {
    static mica_strip_bf16 *const grouped_strips[GROUPED_COUNT] = {
#define X(name, unpack, group_columns, minima, code_bytes, scale_bytes, factor, quads) name,
        GROUPED_LIST(X)
#undef X
    };
    static mica_strip_bf16 *const plain_strips[PLAIN_COUNT] = {
#define X(name, load, bytes_each, scale) name,
        PLAIN_LIST(X)
#undef X
    };
    int plain = mica_plain_avx512(matrix), group = mica_grouped_avx512(matrix);
    if (plain == PLAIN_f32) /* what asks for float32 gets it */
        return NULL;
    return plain >= 0 ? plain_strips[plain] : group >= 0 ? grouped_strips[group] : NULL;
}

/* ---- strip times tokens: tiles of 4 rows and up to 6 tokens, sums of pairs in 16 lanes */

INLINE __m512bh load_pairs(const uint16_t *p) {
    __m512bh pairs;
    memcpy(&pairs, p, sizeof pairs);
    return pairs;
}

INLINE void tile(const uint16_t *w, uint64_t strip_stride, const uint16_t *const x[TILE_TOKENS], const int tokens, uint64_t width, __mmask8 rows,
                 bool add, float *out, uint64_t stride) {
    __m512 sums[TILE_TOKENS][TILE_ROWS];
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < TILE_ROWS; r++)
            sums[t][r] = _mm512_setzero_ps();
    for (uint64_t k = 0; k < width; k += 32) {
        __m512bh v[TILE_ROWS];
        for (int r = 0; r < TILE_ROWS; r++)
            v[r] = load_pairs(w + (uint64_t)r * strip_stride + k);
        for (int t = 0; t < tokens; t++) {
            __m512bh a = load_pairs(x[t] + k);
            for (int r = 0; r < TILE_ROWS; r++)
                sums[t][r] = _mm512_dpbf16_ps(sums[t][r], v[r], a);
        }
    }
    for (int t = 0; t < tokens; t++, out += stride)
        store_sums(sums[t], rows, add, out);
}

/* Functions of their own: 29 registers are in use in the largest, and what a caller keeps in others would be spilled inside the loop. */
typedef void tile_kernel(const uint16_t *w, uint64_t strip_stride, const uint16_t *const x[TILE_TOKENS], uint64_t width, __mmask8 rows, bool add, float *out,
                         uint64_t stride);
#define X(tokens)                                                                                                                                  \
    __attribute__((noinline)) static void tile_##tokens(const uint16_t *w, uint64_t strip_stride, const uint16_t *const x[TILE_TOKENS], uint64_t width, \
                                                        __mmask8 rows, bool add, float *out, uint64_t stride) {                                   \
        tile(w, strip_stride, x, tokens, width, rows, add, out, stride);                                                                           \
    }
X(1) X(2) X(3) X(4) X(5) X(6)
#undef X
static tile_kernel *const tiles[TILE_TOKENS] = {tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};

void mica_multiply_bf16_avx512(const mica_strip *strip, const mica_operand *x, float *out, uint64_t stride, void *scratch) {
    const uint64_t rows = strip->rows, column = strip->column, width = strip->width, strip_stride = (width + 255) / 256 * 256 + MICA_STRIP_PAD;
    uint16_t *decoded = scratch;
    strip->decode(strip->matrix, strip->row, rows, column, width, decoded, strip_stride);
    for (uint64_t t = 0, some; t < x->tokens; t += some) {
        const uint16_t *values[TILE_TOKENS];
        uint64_t rest = x->tokens - t, parts = (rest + TILE_TOKENS - 1) / TILE_TOKENS;
        some = (rest + parts - 1) / parts; /* rather 4 and 4 than 6 and 2 */
        for (uint64_t i = 0; i < some; i++)
            values[i] = x->bf16 + mica_operand_row(x, t + i) * x->padded + column;
        for (uint64_t r = 0; r < rows; r += TILE_ROWS) { /* rows beyond the last are in the scratch, whatever they hold */
            uint64_t left = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            const uint16_t *w = decoded + r * strip_stride;
            float *target = out + t * stride + r;
            __mmask8 mask = (__mmask8)((1u << left) - 1);
            fetch_next(x, t + some, x->bf16 + column, x->padded * sizeof(uint16_t), width * sizeof(uint16_t), r, rows);
            tiles[some - 1](w, strip_stride, values, width, mask, column != 0, target, stride);
        }
    }
}
#else
typedef int mica_product_bf16_avx512_empty; /* a translation unit may not be empty */
#endif
