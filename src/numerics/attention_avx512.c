/* numerics/attention_avx512.c: attention in float32, compiled for AVX-512 (CMakeLists.txt). See attention_generic.h. */
#if defined(__x86_64__)
#include <immintrin.h>

#define LANES 16
#define MULTIPLY_ADD(a, b, c) ((lanes)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define ATTEND_F32 mica_attend_f32_avx512
#define ATTEND_BF16 mica_attend_bf16_avx512
#define TILE 4
#define GROUP 8
#include "numerics/attention_generic.h"
#else
typedef int mica_attention_avx512_empty; /* a translation unit may not be empty */
#endif
