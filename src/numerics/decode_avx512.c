/* numerics/decode_avx512.c: the decoders for AVX-512 with VBMI. Same bits as decode.c: code to float32 exactly, then one multiplication.
 * Tails are masked: no load or store passes the last code or value. Judged by tests/numerics/test_decode.c. */
#include "numerics/decode_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")))

AVX512 static inline __m512 canonical16(__m512 value) {
    return _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}

AVX512 static inline __m512 e5m2_16(const uint8_t *codes, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(mask, codes)), 8));
}

AVX512 static inline __m512 f16_16(const uint8_t *codes, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, codes));
}

AVX512 static inline __m512 bf16_16(const uint8_t *codes, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, codes)), 16));
}

AVX512 static inline __m512 f32_16(const uint8_t *codes, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, codes);
}

#define DEFINE_ROW(name, load16, bytes)                                                                                            \
    AVX512 static void name(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors,     \
                            float *out) {                                                                                          \
        uint64_t run = block_columns - column % block_columns;                                                                     \
        for (const uint8_t *code = row + column * bytes; count; factors++, run = block_columns) {                                  \
            uint64_t length = mica_min_u64(run, count), i = 0;                                                                     \
            __m512 factor = _mm512_set1_ps(*factors);                                                                              \
            for (; i + 16 <= length; i += 16) {                                                                                    \
                _mm512_storeu_ps(out + i, canonical16(_mm512_mul_ps(load16(code + i * bytes, 0xffff), factor)));                   \
            }                                                                                                                      \
            if (i < length) {                                                                                                      \
                __mmask16 mask = (__mmask16)((1u << (length - i)) - 1);                                                            \
                _mm512_mask_storeu_ps(out + i, mask, canonical16(_mm512_mul_ps(load16(code + i * bytes, mask), factor)));          \
            }                                                                                                                      \
            code += length * bytes;                                                                                                \
            out += length;                                                                                                         \
            count -= length;                                                                                                       \
        }                                                                                                                          \
    }
DEFINE_ROW(e5m2_row, e5m2_16, 1)
DEFINE_ROW(f16_row, f16_16, 2)
DEFINE_ROW(bf16_row, bf16_16, 2)
DEFINE_ROW(f32_row, f32_16, 4)

/* An E4M3 code is exactly a bf16: its two bytes come from tables of 128 (the sign aside), and unpacking interleaves them with each
 * other and with zeros. Unpacking works within 16-byte lanes, so the codes' words are transposed 4 x 4 beforehand. */
#define BF16_OF_SMALL(code) ((code) == 0 ? 0 : (code) == 1 ? 0x3b00 : (code) < 4 ? 0x3b80 + (((code) & 1) << 6) : 0x3c00 + (((code) & 3) << 5))
#define BF16_OF_E4M3(code) ((code) == 127 ? 0x7fc0 : (code) >= 8 ? ((code) << 4) + (120 << 7) : BF16_OF_SMALL(code))
#define LOW(code) (BF16_OF_E4M3(code) & 0xff)
#define HIGH(code) (BF16_OF_E4M3(code) >> 8)
#define FOUR(part, c) part(c), part((c) + 1), part((c) + 2), part((c) + 3)
#define SIXTEEN(part, c) FOUR(part, c), FOUR(part, (c) + 4), FOUR(part, (c) + 8), FOUR(part, (c) + 12)
#define SIXTY_FOUR(part, c) SIXTEEN(part, c), SIXTEEN(part, (c) + 16), SIXTEEN(part, (c) + 32), SIXTEEN(part, (c) + 48)
static const uint8_t e4m3_low[128] = {SIXTY_FOUR(LOW, 0), SIXTY_FOUR(LOW, 64)}, e4m3_high[128] = {SIXTY_FOUR(HIGH, 0), SIXTY_FOUR(HIGH, 64)};

AVX512 static inline void e4m3_64(__m512i codes, __m512 factor, __m512 values[4]) {
    const __m512i transpose = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), zero = _mm512_setzero_si512();
    codes = _mm512_permutexvar_epi32(transpose, codes); /* below, bit 7 of the index is ignored */
    __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_low), codes, _mm512_loadu_si512(e4m3_low + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_high), codes, _mm512_loadu_si512(e4m3_high + 64));
    __mmask64 negative = _mm512_cmplt_epi8_mask(codes, _mm512_set1_epi8(-1)); /* 0x80..0xfe: the sign of a NaN is dropped */
    high = _mm512_mask_add_epi8(high, negative, high, _mm512_set1_epi8(-128));
    __m512i first = _mm512_unpacklo_epi8(low, high), second = _mm512_unpackhi_epi8(low, high);
    values[0] = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, first)), factor);
    values[1] = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, first)), factor);
    values[2] = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, second)), factor);
    values[3] = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, second)), factor);
}

AVX512 static void e4m3_row(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors, float *out) {
    uint64_t run = block_columns - column % block_columns;
    __m512 values[4];
    for (const uint8_t *code = row + column; count; factors++, run = block_columns) {
        uint64_t length = mica_min_u64(run, count), i = 0;
        __m512 factor = _mm512_set1_ps(*factors);
        for (; i + 64 <= length; i += 64) {
            e4m3_64(_mm512_loadu_si512(code + i), factor, values);
            for (int j = 0; j < 4; j++) {
                _mm512_storeu_ps(out + i + 16 * j, values[j]);
            }
        }
        if (i < length) {
            uint64_t mask = (UINT64_C(1) << (length - i)) - 1;
            e4m3_64(_mm512_maskz_loadu_epi8(mask, code + i), factor, values);
            for (int j = 0; j < 4; j++) {
                _mm512_mask_storeu_ps(out + i + 16 * j, (__mmask16)(mask >> (16 * j)), values[j]);
            }
        }
        code += length;
        out += length;
        count -= length;
    }
}

/* Sixteen nibbles are two words; the table, times the factor, is looked up by the lower four bits of each shifted copy. */
AVX512 static inline void nibble_row(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors, float *out,
                                     const float values[16]) {
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512 unscaled = _mm512_loadu_ps(values);
    uint64_t run = block_columns - column % block_columns;
    for (uint64_t end; count; factors++, run = block_columns) {
        uint64_t length = mica_min_u64(run, count);
        __m512 table = _mm512_mul_ps(unscaled, _mm512_set1_ps(*factors));
        for (end = column + length; column < end && column % 2; column++) {
            *out++ = values[mica_nibble(row, column)] * *factors;
        }
        for (; column + 16 <= end; column += 16, out += 16) {
            __m512i words = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i *)(row + column / 2))));
            _mm512_storeu_ps(out, _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), table));
        }
        for (; column < end; column++) {
            *out++ = values[mica_nibble(row, column)] * *factors;
        }
        count -= length;
    }
}

AVX512 static void e2m1_row(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors, float *out) {
    nibble_row(row, column, count, block_columns, factors, out, mica_e2m1_values);
}

AVX512 static void int4_row(const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const float *factors, float *out) {
    nibble_row(row, column, count, block_columns, factors, out, mica_int4_values);
}

AVX512 static uint8_t max_u8(const uint8_t *codes, uint64_t stride, uint64_t rows, uint64_t width) {
    const __m512i mask = _mm512_set1_epi8(0x7f);
    __m512i largest = _mm512_setzero_si512(), other = largest;
    uint8_t lanes[64];
    for (uint64_t r = 0; r < rows; r++, codes += stride) {
        uint64_t c = 0;
        for (; c + 128 <= width; c += 128) {
            largest = _mm512_max_epu8(largest, _mm512_and_si512(mask, _mm512_loadu_si512(codes + c)));
            other = _mm512_max_epu8(other, _mm512_and_si512(mask, _mm512_loadu_si512(codes + c + 64)));
        }
        for (; c < width; c += 64) {
            __mmask64 tail = width - c >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << (width - c)) - 1;
            largest = _mm512_max_epu8(largest, _mm512_and_si512(mask, _mm512_maskz_loadu_epi8(tail, codes + c)));
        }
    }
    _mm512_storeu_si512(lanes, _mm512_max_epu8(largest, other));
    return mica_decode_kernels_portable.max_u8(lanes, 64, 1, 64);
}

AVX512 static uint16_t max_u16(const uint8_t *codes, uint64_t count) {
    const __m512i mask = _mm512_set1_epi16(0x7fff);
    __m512i largest = _mm512_setzero_si512();
    uint8_t lanes[64];
    for (uint64_t i = 0; i < count; i += 32) {
        __mmask32 tail = count - i >= 32 ? ~0u : (1u << (count - i)) - 1;
        largest = _mm512_max_epu16(largest, _mm512_and_si512(mask, _mm512_maskz_loadu_epi16(tail, codes + 2 * i)));
    }
    _mm512_storeu_si512(lanes, largest);
    return mica_decode_kernels_portable.max_u16(lanes, 32);
}

AVX512 static uint32_t max_u32(const uint8_t *codes, uint64_t count) {
    __m512i largest = _mm512_setzero_si512();
    for (uint64_t i = 0; i < count; i += 16) {
        __mmask16 tail = count - i >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << (count - i)) - 1);
        __m512i bits = _mm512_maskz_loadu_epi32(tail, codes + 4 * i);
        largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_set1_epi32(0x7fffffff), bits));
    }
    return _mm512_reduce_max_epu32(largest);
}

/* Four blocks at a time; shifting a lane right folds its maximum into byte 0. */
AVX512 static void max_nibbles(const uint8_t *codes, uint64_t blocks, const uint8_t magnitudes[16], uint8_t *maxima) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)magnitudes)), mask = _mm512_set1_epi8(15);
    uint64_t b = 0;
    for (; b + 4 <= blocks; b += 4) {
        __m512i pairs = _mm512_loadu_si512(codes + 16 * b);
        __m512i largest = _mm512_max_epu8(_mm512_shuffle_epi8(table, _mm512_and_si512(pairs, mask)),
                                          _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(pairs, 4), mask)));
        largest = _mm512_max_epu8(largest, _mm512_bsrli_epi128(largest, 8));
        largest = _mm512_max_epu8(largest, _mm512_bsrli_epi128(largest, 4));
        largest = _mm512_max_epu8(largest, _mm512_bsrli_epi128(largest, 2));
        largest = _mm512_max_epu8(largest, _mm512_bsrli_epi128(largest, 1));
        __m128i bytes = _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(0x1111, largest));
        uint32_t four = (uint32_t)_mm_cvtsi128_si32(bytes);
        memcpy(maxima + b, &four, sizeof four);
    }
    mica_decode_kernels_portable.max_nibbles(codes + 16 * b, blocks - b, magnitudes, maxima + b);
}

const mica_decode_kernels mica_decode_kernels_avx512 = {
    .row = {[MICA_F32] = f32_row, [MICA_F16] = f16_row, [MICA_BF16] = bf16_row, [MICA_F8_E4M3] = e4m3_row, [MICA_F8_E5M2] = e5m2_row,
            [MICA_CODE_E2M1] = e2m1_row, [MICA_CODE_INT4] = int4_row},
    .blocks = mica_decode_blocks_avx512,
    .max_u8 = max_u8, .max_u16 = max_u16, .max_u32 = max_u32, .max_nibbles = max_nibbles};
#else
typedef int mica_decode_avx512_empty; /* a translation unit may not be empty */
#endif
