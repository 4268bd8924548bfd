/* numerics/decode_block_avx2.c: ggml's blocks for AVX2 + F16C. Judged by tests/numerics/test_decode_block.c. */
#include "numerics/decode_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,f16c")))
#define LANES 8u
typedef __m256i ints;
typedef __m256 floats;

static const float iq4_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float e2m1_table[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4, -6};

#define widen(bytes) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(bytes)))
#define widen_signed(bytes) _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(bytes)))
#define ints_of(value) _mm256_set1_epi32(value)
#define shift_right(values, count) _mm256_srl_epi32(values, _mm_cvtsi32_si128(count))
#define shift_left(values, count) _mm256_slli_epi32(values, count)
#define each_shift_right(values, counts) _mm256_srlv_epi32(values, counts)
#define both(a, b) _mm256_and_si256(a, b)
#define either(a, b) _mm256_or_si256(a, b)
#define minus(a, b) _mm256_sub_epi32(a, b)
#define counting(first) _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define to_floats(values) _mm256_cvtepi32_ps(values)
#define floats_of(value) _mm256_set1_ps(value)
#define times(a, b) _mm256_mul_ps(a, b)
#define less(a, b) _mm256_sub_ps(a, b)
#define plus(a, b) _mm256_add_ps(a, b)

/* Sixteen entries as two tables of eight; bit 3 of an index chooses. */
TARGET static inline floats look_up(const float table[16], ints indices) {
    const floats low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), indices);
    const floats high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), indices);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(indices, 28)));
}

TARGET static inline void store(float *out, floats value) {
    const floats nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    _mm256_storeu_ps(out, _mm256_blendv_ps(value, nan, _mm256_cmp_ps(value, value, _CMP_UNORD_Q)));
}

TARGET static inline float half(const uint8_t *bytes) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(mica_load_u16(bytes, 0))));
}

#include "numerics/decode_block_generic.h"

mica_decode_blocks *const mica_decode_blocks_avx2[MICA_DTYPE_COUNT] = BLOCK_TABLE;
#else
typedef int mica_decode_block_avx2_empty; /* a translation unit may not be empty */
#endif
