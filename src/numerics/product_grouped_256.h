/* numerics/product_grouped_256.h: rows of encodings with scales for small groups of columns times few tokens, in vectors of 256 bits;
 * compiled for AVX2, and for AVX-VNNI, where products are added as they are made: that is all they differ in. Two forms:
 *   words   here: codes widened to 16 bits times activations of 16, exact in int32; a factor for each four columns, and the
 *           activations' own for 256. The widening parts even from odd columns, and so are the activations.
 *   quads   product_quads_256.h
 * A token's sums are taken in the same order whatever the other tokens are. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_GROUPED_256_H
#define MICA_NUMERICS_PRODUCT_GROUPED_256_H

#include "numerics/product_kernels.h"
#include "numerics/product_quads_256.h"
#include "numerics/product_unpack_avx2.h"

enum {
#define X(name, ...) GROUPED_##name,
    WORDS_LIST(X) QUADS_LIST(X)
#undef X
    GROUPED_COUNT
};

#include "numerics/product_encodings.h" /* behind the enum */

typedef struct token_row {
    const int16_t *words;
    const float *sums, *steps;
} token_row;

/* sum + products of words, of two that lie together */
INLINE __m256i add_products(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}

/* ---- words */

INLINE __m256i product_of(columns32 c, const token_row *x, uint64_t column) {
    const __m256i *words = (const __m256i *)(const void *)(x->words + column);
    return add_products(_mm256_madd_epi16(c.even, _mm256_load_si256(words)), c.odd, _mm256_load_si256(words + 1));
}

/* What 32 columns add to each token's part. */
INLINE void add_columns(const uint8_t *codes, const head256 *head, const int group, const token_row *x, uint64_t chunk, const int tokens,
                        read_codes *read, __m256 parts[TOGETHER][2]) {
    columns32 c = read(codes, group);
    __m256 factor = _mm256_broadcast_ss(head->factors + group);
    for (int t = 0; t < tokens; t++)
        parts[t][group % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product_of(c, x + t, chunk * 256 + 32 * (uint64_t)group)), factor,
                                              parts[t][group % 2]);
}

/* What is subtracted from a chunk's columns, as far as it is known before them. */
INLINE void begin_parts(const head256 *head, const token_row *x, uint64_t chunk, const int tokens, const groups_of form,
                        __m256 parts[TOGETHER][2]) {
    for (int t = 0; t < tokens; t++) {
        parts[t][0] = form == OF_32_CENTRED ? _mm256_setzero_ps() : _mm256_mul_ps(head->least, _mm256_load_ps(x[t].sums + chunk * 8));
        parts[t][1] = _mm256_setzero_ps();
    }
}

#define EACH_OF_EIGHT(DO) DO(0); DO(1); DO(2); DO(3); DO(4); DO(5); DO(6); DO(7) /* each a constant */

INLINE void add_words(const uint8_t *codes, const uint8_t *scales, const int groups, const token_row *x, uint64_t chunk, const int tokens,
                      read_codes *read, read_head *head_of, const groups_of form, __m256 totals[TOGETHER]) {
    head256 head;
    __m256 parts[TOGETHER][2];
    head_of(codes, scales, groups, &head);
    begin_parts(&head, x, chunk, tokens, form, parts);
    if (groups == 8) {
#define ADD(group) add_columns(codes, &head, group, x, chunk, tokens, read, parts)
        EACH_OF_EIGHT(ADD);
#undef ADD
    } else {
        for (int g = 0; g < groups; g++)
            add_columns(codes, &head, g, x, chunk, tokens, read, parts);
    }
    for (int t = 0; t < tokens; t++)
        totals[t] = _mm256_fmadd_ps(_mm256_add_ps(parts[t][0], parts[t][1]), _mm256_broadcast_ss(x[t].steps + chunk), totals[t]);
}

/* ---- rows */

/* What an encoding is, in constants. */
typedef struct words_form {
    read_codes *codes;
    read_head *head;
    groups_of groups;
    uint64_t code_bytes, scale_bytes; /* of 256 columns */
    float power;
} words_form;

typedef struct row_bytes {
    uint64_t codes, scales;
} row_bytes;

/* One row, `tokens` tokens from `token` on. */
INLINE void words_row(const mica_matrix *matrix, const row_bytes *bytes, uint64_t row, const mica_operand *x, uint64_t token,
                      const int tokens, float *out, uint64_t stride, const words_form form) {
    const uint8_t *codes = (const uint8_t *)matrix->codes + row * bytes->codes;
    const uint8_t *scales = form.scale_bytes ? (const uint8_t *)matrix->scales + row * bytes->scales : codes;
    token_row of[TOGETHER];
    __m256 totals[TOGETHER];
    uint64_t whole = matrix->columns / 256, rest = matrix->columns % 256, chunks = x->padded / 256;
    for (int t = 0; t < tokens; t++) {
        uint64_t at = mica_operand_row(x, token + (uint64_t)t);
        of[t] = (token_row){x->words + at * x->padded, x->block_sums + at * x->padded / 32, x->scales + at * chunks};
        totals[t] = _mm256_setzero_ps();
    }
    for (uint64_t chunk = 0; chunk < whole; chunk++, codes += form.code_bytes, scales += form.scale_bytes) {
        fetch(codes, form.code_bytes);
        add_words(codes, scales, 8, of, chunk, tokens, form.codes, form.head, form.groups, totals);
    }
    if (rest) {
        uint8_t tail[128 + 32];
        int groups = (int)((rest + 31) / 32);
        if (form.scale_bytes) { /* zeros beyond its end, where the activations are zero too */
            memset(tail, 0, sizeof tail);
            memcpy(tail, codes, bytes->codes - whole * form.code_bytes);
            memcpy(tail + 128, scales, bytes->scales - whole * form.scale_bytes);
            codes = tail;
            scales = tail + 128;
        }
        __asm__("" : "+r"(groups)); /* not known: this is the loop, once */
        add_words(codes, scales, groups, of, whole, tokens, form.codes, form.head, form.groups, totals);
    }
    for (int t = 0; t < tokens; t++)
        out[(uint64_t)t * stride] = sum_of(totals[t]) * form.power;
}

INLINE void words_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                       const words_form form) {
    row_bytes bytes = {mica_matrix_row_bytes(matrix), (matrix->columns + 31) / 32 * (form.scale_bytes / 8)};
    for (uint64_t r = 0; r < count; r++) {
#define TOKENS(t, tokens) words_row(matrix, &bytes, row + r, x, t, tokens, out + t * stride + r, stride, form)
        FEW_AT_A_TIME(x->tokens, TOKENS);
#undef TOKENS
    }
}

#define X(name, codes, head, groups, code_bytes, scale_bytes, power)                                                                 \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {  \
        words_rows(matrix, row, count, x, out, stride, (words_form){codes, head, groups, code_bytes, scale_bytes, power});           \
    }
WORDS_LIST(X)
#undef X

static mica_product_few *const grouped_few[GROUPED_COUNT] = {
#define X(name, ...) name,
    WORDS_LIST(X) QUADS_LIST(X)
#undef X
};

/* NULL: none of these encodings. */
static mica_product_few *grouped_few_of(const mica_matrix *matrix) {
    int group = grouped_of(matrix);
    return group >= 0 ? grouped_few[group] : NULL;
}

#endif
