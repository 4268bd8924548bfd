/* numerics/attention_avx2.c: attention in float32, compiled for AVX2 (CMakeLists.txt). See attention_generic.h. */
#if defined(__x86_64__)
#include <immintrin.h>

#define LANES 8
#define MULTIPLY_ADD(a, b, c) ((lanes)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define ATTEND_F32 mica_attend_f32_avx2
#define ATTEND_BF16 mica_attend_bf16_avx2
#define TILE 2
#define GROUP 4
#include "numerics/attention_generic.h"
#else
typedef int mica_attention_avx2_empty; /* a translation unit may not be empty */
#endif
