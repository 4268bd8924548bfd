/* numerics/attention_pairs.h: inside the kernels that multiply pairs of bf16 only: the order of columns whose pairs were interleaved. */
#ifndef MICA_NUMERICS_ATTENTION_PAIRS_H
#define MICA_NUMERICS_ATTENTION_PAIRS_H

#include <immintrin.h>

#include "numerics/lanes.h"

/* Columns back into their order: of each 32, lanes of 4 of the first half and of the second alternate. */
INLINE void untangle(float *means, uint64_t width) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (uint64_t k = 0; k < width; k += 32) {
        __m512i low = _mm512_loadu_si512(means + k), high = _mm512_loadu_si512(means + k + 16);
        _mm512_storeu_si512(means + k, _mm512_permutex2var_epi64(low, first, high));
        _mm512_storeu_si512(means + k + 16, _mm512_permutex2var_epi64(low, second, high));
    }
}

#endif
