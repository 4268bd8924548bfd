/* numerics/decode_avx2.c: the decoders for AVX2 + F16C. Same bits as decode.c: code to float32 exactly, then one multiplication.
 * No subnormal float32 is ever an operand on the way from code to value (a microcode assist each); loads never pass the last code of
 * the row. Judged by tests/numerics/test_decode.c. */
#include "numerics/decode_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,f16c")))

static inline float canonical(float value) {
    return isnan(value) ? mica_float_of_bits(0x7fc00000u) : value;
}

AVX2 static inline __m256 canonical8(__m256 value) {
    return _mm256_blendv_ps(value, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
}

AVX2 static inline __m256 e4m3_8(const uint8_t *codes) {
    __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes));
    __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi32(0x7f));
    __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(code, magnitude), 24);
    __m256i normal = _mm256_add_epi32(_mm256_slli_epi32(magnitude, 20), _mm256_set1_epi32(120 << 23)); /* 120 = 127 - 7 */
    __m256 small = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(0x1p-9f));
    __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
    __m256 value = _mm256_blendv_ps(_mm256_castsi256_ps(normal), small, _mm256_castsi256_ps(is_small));
    __m256i is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
    value = _mm256_blendv_ps(_mm256_or_ps(value, _mm256_castsi256_ps(sign)), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)),
                             _mm256_castsi256_ps(is_nan));
    return value;
}

AVX2 static inline __m256 e5m2_8(const uint8_t *codes) {
    return _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i *)codes)));
}

AVX2 static inline __m256 f16_8(const uint8_t *codes) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)codes));
}

AVX2 static inline __m256 bf16_8(const uint8_t *codes) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)codes)), 16));
}

AVX2 static inline __m256 f32_8(const uint8_t *codes) {
    return _mm256_loadu_ps((const float *)(const void *)codes);
}

/* One row decoder: eight codes at a time, the rest of each block one by one. */
#define DEFINE_ROW(name, load8, value, bytes)                                                                                      \
    AVX2 static void name(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors,       \
                          float *out) {                                                                                            \
        uint64_t run = block_columns - column % block_columns;                                                                     \
        for (const uint8_t *code = row + column * bytes; count; factors++, run = block_columns) {                                  \
            uint64_t length = mica_min_u64(run, count), i = 0;                                                                     \
            __m256 factor = _mm256_set1_ps(*factors);                                                                              \
            for (; i + 8 <= length; i += 8) {                                                                                      \
                _mm256_storeu_ps(out + i, canonical8(_mm256_mul_ps(load8(code + i * bytes), factor)));                             \
            }                                                                                                                      \
            for (; i < length; i++) {                                                                                              \
                out[i] = canonical((float)(value) * *factors);                                                                     \
            }                                                                                                                      \
            code += length * bytes;                                                                                                \
            out += length;                                                                                                         \
            count -= length;                                                                                                       \
        }                                                                                                                          \
    }
DEFINE_ROW(e4m3_row, e4m3_8, mica_e4m3_value(code[i]), 1)
DEFINE_ROW(e5m2_row, e5m2_8, mica_e5m2_value(code[i]), 1)
DEFINE_ROW(f16_row, f16_8, mica_f16_value(mica_load_u16(code, i)), 2)
DEFINE_ROW(bf16_row, bf16_8, mica_bf16_value(mica_load_u16(code, i)), 2)
DEFINE_ROW(f32_row, f32_8, mica_load_f32(code, i), 4)

/* Eight nibbles are one word; the table, times the factor, is looked up by the lower three bits in two halves. */
AVX2 static inline void nibble_row(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors, float *out,
                                   const float values[16]) {
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256 lower = _mm256_loadu_ps(values), upper = _mm256_loadu_ps(values + 8);
    uint64_t run = block_columns - column % block_columns;
    for (uint64_t end; count; factors++, run = block_columns) {
        uint64_t length = mica_min_u64(run, count);
        __m256 factor = _mm256_set1_ps(*factors);
        __m256 low = _mm256_mul_ps(lower, factor), high = _mm256_mul_ps(upper, factor);
        for (end = column + length; column < end && column % 2; column++) {
            *out++ = values[mica_nibble(row, column)] * *factors;
        }
        for (; column + 8 <= end; column += 8, out += 8) {
            __m256i nibbles = _mm256_srlv_epi32(_mm256_set1_epi32(mica_load_i32(row + column / 2, 0)), shifts);
            __m256 in_upper = _mm256_castsi256_ps(_mm256_slli_epi32(nibbles, 28)); /* bit 3 is the sign bit now */
            _mm256_storeu_ps(out, _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, nibbles), _mm256_permutevar8x32_ps(high, nibbles), in_upper));
        }
        for (; column < end; column++) {
            *out++ = values[mica_nibble(row, column)] * *factors;
        }
        count -= length;
    }
}

AVX2 static void e2m1_row(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors, float *out) {
    nibble_row(row, column, count, block_columns, factors, out, mica_e2m1_values);
}

AVX2 static void int4_row(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors, float *out) {
    nibble_row(row, column, count, block_columns, factors, out, mica_int4_values);
}

AVX2 static uint8_t max_u8(const uint8_t *codes, uint64_t stride, uint64_t rows, uint64_t width) {
    const __m256i mask = _mm256_set1_epi8(0x7f);
    __m256i largest = _mm256_setzero_si256(), other = largest;
    uint8_t rest = 0, lanes[32];
    for (uint64_t r = 0; r < rows; r++, codes += stride) {
        uint64_t c = 0;
        for (; c + 64 <= width; c += 64) {
            largest = _mm256_max_epu8(largest, _mm256_and_si256(mask, _mm256_loadu_si256((const __m256i *)(codes + c))));
            other = _mm256_max_epu8(other, _mm256_and_si256(mask, _mm256_loadu_si256((const __m256i *)(codes + c + 32))));
        }
        for (; c < width; c++) {
            uint8_t magnitude = codes[c] & 0x7f;
            rest = magnitude > rest ? magnitude : rest;
        }
    }
    _mm256_storeu_si256((__m256i *)lanes, _mm256_max_epu8(largest, other));
    uint8_t best = mica_decode_kernels_portable.max_u8(lanes, 32, 1, 32);
    return best > rest ? best : rest;
}

AVX2 static uint16_t max_u16(const uint8_t *codes, uint64_t count) {
    const __m256i mask = _mm256_set1_epi16(0x7fff);
    __m256i largest = _mm256_setzero_si256();
    uint64_t i = 0;
    uint8_t lanes[32];
    for (; i + 16 <= count; i += 16) {
        largest = _mm256_max_epu16(largest, _mm256_and_si256(mask, _mm256_loadu_si256((const __m256i *)(codes + 2 * i))));
    }
    _mm256_storeu_si256((__m256i *)lanes, largest);
    uint16_t best = mica_decode_kernels_portable.max_u16(lanes, 16), rest = mica_decode_kernels_portable.max_u16(codes + 2 * i, count - i);
    return best > rest ? best : rest;
}

AVX2 static uint32_t max_u32(const uint8_t *codes, uint64_t count) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256();
    uint64_t i = 0;
    uint8_t lanes[32];
    for (; i + 8 <= count; i += 8) {
        largest = _mm256_max_epu32(largest, _mm256_and_si256(mask, _mm256_loadu_si256((const __m256i *)(codes + 4 * i))));
    }
    _mm256_storeu_si256((__m256i *)lanes, largest);
    uint32_t best = mica_decode_kernels_portable.max_u32(lanes, 8), rest = mica_decode_kernels_portable.max_u32(codes + 4 * i, count - i);
    return best > rest ? best : rest;
}

/* Two blocks at a time; shifting a lane right folds its maximum into byte 0. */
AVX2 static void max_nibbles(const uint8_t *codes, uint64_t blocks, const uint8_t magnitudes[16], uint8_t *maxima) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)magnitudes)), mask = _mm256_set1_epi8(15);
    uint64_t b = 0;
    for (; b + 2 <= blocks; b += 2) {
        __m256i pairs = _mm256_loadu_si256((const __m256i *)(codes + 16 * b));
        __m256i largest = _mm256_max_epu8(_mm256_shuffle_epi8(table, _mm256_and_si256(pairs, mask)),
                                          _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(pairs, 4), mask)));
        largest = _mm256_max_epu8(largest, _mm256_bsrli_epi128(largest, 8));
        largest = _mm256_max_epu8(largest, _mm256_bsrli_epi128(largest, 4));
        largest = _mm256_max_epu8(largest, _mm256_bsrli_epi128(largest, 2));
        largest = _mm256_max_epu8(largest, _mm256_bsrli_epi128(largest, 1));
        maxima[b] = (uint8_t)_mm256_extract_epi8(largest, 0);
        maxima[b + 1] = (uint8_t)_mm256_extract_epi8(largest, 16);
    }
    mica_decode_kernels_portable.max_nibbles(codes + 16 * b, blocks - b, magnitudes, maxima + b);
}

const mica_decode_kernels mica_decode_kernels_avx2 = {
    .row = {[MICA_F32] = f32_row, [MICA_F16] = f16_row, [MICA_BF16] = bf16_row, [MICA_F8_E4M3] = e4m3_row, [MICA_F8_E5M2] = e5m2_row,
            [MICA_CODE_E2M1] = e2m1_row, [MICA_CODE_INT4] = int4_row},
    .blocks = mica_decode_blocks_avx2,
    .max_u8 = max_u8, .max_u16 = max_u16, .max_u32 = max_u32, .max_nibbles = max_nibbles};
#else
typedef int mica_decode_avx2_empty; /* a translation unit may not be empty */
#endif
