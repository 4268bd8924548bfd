/* numerics/decode_block_avx512.c: ggml's blocks for AVX-512. Judged by tests/numerics/test_decode_block.c. */
#include "numerics/decode_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c")))
#define LANES 16u
typedef __m512i ints;
typedef __m512 floats;

static const float iq4_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float e2m1_table[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4, -6};

#define widen(bytes) _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(bytes)))
#define widen_signed(bytes) _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(bytes)))
#define ints_of(value) _mm512_set1_epi32(value)
#define shift_right(values, count) _mm512_srl_epi32(values, _mm_cvtsi32_si128(count))
#define shift_left(values, count) _mm512_slli_epi32(values, count)
#define each_shift_right(values, counts) _mm512_srlv_epi32(values, counts)
#define both(a, b) _mm512_and_si512(a, b)
#define either(a, b) _mm512_or_si512(a, b)
#define minus(a, b) _mm512_sub_epi32(a, b)
#define counting(first) _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
#define to_floats(values) _mm512_cvtepi32_ps(values)
#define floats_of(value) _mm512_set1_ps(value)
#define times(a, b) _mm512_mul_ps(a, b)
#define less(a, b) _mm512_sub_ps(a, b)
#define plus(a, b) _mm512_add_ps(a, b)
#define look_up(table, indices) _mm512_permutexvar_ps(indices, _mm512_loadu_ps(table))

TARGET static inline void store(float *out, floats value) {
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    _mm512_storeu_ps(out, _mm512_mask_mov_ps(value, is_nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000))));
}

TARGET static inline float half(const uint8_t *bytes) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(mica_load_u16(bytes, 0))));
}

#include "numerics/decode_block_generic.h"

mica_decode_blocks *const mica_decode_blocks_avx512[MICA_DTYPE_COUNT] = BLOCK_TABLE;
#else
typedef int mica_decode_block_avx512_empty; /* a translation unit may not be empty */
#endif
