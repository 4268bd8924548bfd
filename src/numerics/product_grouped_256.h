/* numerics/product_grouped_256.h: rows of encodings with scales for small groups of columns times few tokens, in vectors of 256 bits;
 * compiled for AVX2, and for AVX-VNNI, where products are added as they are made: that is all they differ in. Two forms:
 *   words   codes widened to 16 bits times activations of 16, exact in int32; a factor for each four columns, and the activations' own for
 *           256. The widening parts even from odd columns, and so are the activations.
 *   quads   codes of 8 bits times activations in two digits, in the order of product_quads.h: a factor for sixteen columns.
 * A token's sums are taken in the same order whatever the other tokens are. Judged by tests/numerics/test_product.c. */
#ifndef MICA_NUMERICS_PRODUCT_GROUPED_256_H
#define MICA_NUMERICS_PRODUCT_GROUPED_256_H

#include "numerics/product_kernels.h"
#include "numerics/product_unpack_avx2.h"
#include "numerics/product_encodings.h" /* behind the list */

typedef struct token_row {
    const int16_t *words;
    const int8_t *quads;
    const float *sums, *wide_sums, *quad_sums, *steps;
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
                        read_codes *read, const groups_of form, __m256 parts[TOGETHER][2]) {
    columns32 c = read(codes, group);
    __m256 factor;
    if (form == OF_16) {
        factor = _mm256_castpd_ps(_mm256_broadcast_sd((const double *)(const void *)(head->factors + 2 * group)));
        factor = _mm256_permutevar_ps(factor, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    } else {
        factor = _mm256_broadcast_ss(head->factors + group);
    }
    for (int t = 0; t < tokens; t++)
        parts[t][group % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product_of(c, x + t, chunk * 256 + 32 * (uint64_t)group)), factor,
                                              parts[t][group % 2]);
}

/* What is subtracted from a chunk's columns, as far as it is known before them. */
INLINE void begin_parts(const head256 *head, const token_row *x, uint64_t chunk, const int tokens, const groups_of form, __m256 parts[TOGETHER][2]) {
    for (int t = 0; t < tokens; t++) {
        parts[t][0] = form == OF_16            ? _mm256_mul_ps(head->least[0], _mm256_load_ps(x[t].wide_sums + chunk * 16))
                      : form == OF_32_CENTRED ? _mm256_setzero_ps()
                                              : _mm256_mul_ps(head->least[0], _mm256_load_ps(x[t].sums + chunk * 8));
        parts[t][1] = form == OF_16 ? _mm256_mul_ps(head->least[1], _mm256_load_ps(x[t].wide_sums + chunk * 16 + 8)) : _mm256_setzero_ps();
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
#define ADD(group) add_columns(codes, &head, group, x, chunk, tokens, read, form, parts)
        EACH_OF_EIGHT(ADD);
#undef ADD
    } else {
        for (int g = 0; g < groups; g++)
            add_columns(codes, &head, g, x, chunk, tokens, read, form, parts);
    }
    for (int t = 0; t < tokens; t++)
        totals[t] = _mm256_fmadd_ps(_mm256_add_ps(parts[t][0], parts[t][1]), _mm256_broadcast_ss(x[t].steps + chunk), totals[t]);
}

/* ---- quads */

/* Codes of up to `most` times both digits of 128 columns, as exact integers. */
INLINE __m256i quad_products(const __m256i codes[4], const int8_t *digits, const int most) {
#define DIGITS(r, d) _mm256_load_si256((const __m256i *)(const void *)(digits + 128 * (r) + 64 * (d)))
#if defined(__AVXVNNI__)
    __m256i first = _mm256_setzero_si256(), second = _mm256_setzero_si256();
    (void)most;
    for (int r = 0; r < 4; r++) {
        first = _mm256_dpbusd_avx_epi32(first, codes[r], DIGITS(r, 0));
        second = _mm256_dpbusd_avx_epi32(second, codes[r], DIGITS(r, 1));
    }
    return _mm256_add_epi32(_mm256_slli_epi32(first, 8), second);
#else
    const int together = 8 * 128 * most < 32768 ? 4 : 2; /* vectors whose products' sums have 16 bits */
    __m256i product = _mm256_setzero_si256();
    for (int r = 0; r < 4; r += together) {
        __m256i first = _mm256_maddubs_epi16(codes[r], DIGITS(r, 0)), second = _mm256_maddubs_epi16(codes[r], DIGITS(r, 1));
        for (int i = r + 1; i < r + together; i++) {
            first = _mm256_add_epi16(first, _mm256_maddubs_epi16(codes[i], DIGITS(i, 0)));
            second = _mm256_add_epi16(second, _mm256_maddubs_epi16(codes[i], DIGITS(i, 1)));
        }
        product = add_products(product, first, _mm256_set1_epi16(256));
        product = add_products(product, second, _mm256_set1_epi16(1));
    }
    return product;
#endif
#undef DIGITS
}

INLINE void add_quads(const uint8_t *codes, const token_row *x, uint64_t chunk, const int tokens, read_quads *read, const int most,
                      __m256 totals[TOGETHER]) {
    __m256 parts[2][TOGETHER];
    for (int g = 0; g < 2; g++) {
        quads128 w;
        read(codes, g, &w);
        for (int t = 0; t < tokens; t++) {
            __m256 product = _mm256_cvtepi32_ps(quad_products(w.codes, x[t].quads + chunk * 512 + 32 * g, most));
            parts[g][t] = _mm256_fmadd_ps(product, w.factors, _mm256_mul_ps(w.least, _mm256_load_ps(x[t].quad_sums + chunk * 16 + 8 * g)));
        }
    }
    for (int t = 0; t < tokens; t++)
        totals[t] = _mm256_fmadd_ps(_mm256_add_ps(parts[0][t], parts[1][t]), _mm256_broadcast_ss(x[t].steps + chunk), totals[t]);
}

/* ---- rows */

/* What an encoding is, in constants. */
typedef struct grouped_form {
    read_codes *codes;
    read_head *head;
    groups_of groups;
    read_quads *quads; /* NULL: words */
    int most;          /* of the codes of quads */
    uint64_t code_bytes, scale_bytes; /* of 256 columns */
    float power;
} grouped_form;

INLINE void add_chunk(const uint8_t *codes, const uint8_t *scales, const int groups, const token_row *x, uint64_t chunk, const int tokens,
                      const grouped_form form, __m256 totals[TOGETHER]) {
    if (form.quads)
        add_quads(codes, x, chunk, tokens, form.quads, form.most, totals);
    else
        add_words(codes, scales, groups, x, chunk, tokens, form.codes, form.head, form.groups, totals);
}

typedef struct row_bytes {
    uint64_t codes, scales;
} row_bytes;

/* One row, `tokens` tokens from `token` on. */
INLINE void grouped_row(const mica_matrix *matrix, const row_bytes *bytes, uint64_t row, const mica_operand *x, uint64_t token,
                        const int tokens, float *out, uint64_t stride, const grouped_form form) {
    const uint8_t *codes = (const uint8_t *)matrix->codes + row * bytes->codes;
    const uint8_t *scales = form.scale_bytes ? (const uint8_t *)matrix->scales + row * bytes->scales : codes;
    token_row of[TOGETHER];
    __m256 totals[TOGETHER];
    uint64_t whole = matrix->columns / 256, rest = matrix->columns % 256, chunks = x->padded / 256;
    for (int t = 0; t < tokens; t++) {
        uint64_t at = mica_operand_row(x, token + (uint64_t)t);
        of[t] = (token_row){x->words + at * x->padded,          x->quads + at * 2 * x->padded,      x->block_sums + at * x->padded / 32,
                            x->wide_sums + at * x->padded / 16, x->quad_sums + at * x->padded / 16, x->scales + at * chunks};
        totals[t] = _mm256_setzero_ps();
    }
    for (uint64_t chunk = 0; chunk < whole; chunk++, codes += form.code_bytes, scales += form.scale_bytes) {
        fetch(codes, form.code_bytes);
        add_chunk(codes, scales, 8, of, chunk, tokens, form, totals);
    }
    if (rest && !form.quads) {
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
        add_chunk(codes, scales, groups, of, whole, tokens, form, totals);
    }
    for (int t = 0; t < tokens; t++)
        out[(uint64_t)t * stride] = sum_of(totals[t]) * form.power;
}

INLINE void grouped_rows(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                         const grouped_form form) {
    row_bytes bytes = {mica_matrix_row_bytes(matrix), (matrix->columns + 31) / 32 * (form.scale_bytes / 8)};
    for (uint64_t r = 0; r < count; r++) {
#define TOKENS(t, tokens) grouped_row(matrix, &bytes, row + r, x, t, tokens, out + t * stride + r, stride, form)
        FEW_AT_A_TIME(x->tokens, TOKENS);
#undef TOKENS
    }
}

#define X(name, codes, head, groups, quads, most, code_bytes, scale_bytes, power)                                                                    \
    static void name(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride) {                  \
        grouped_rows(matrix, row, count, x, out, stride, (grouped_form){codes, head, groups, quads, most, code_bytes, scale_bytes, power});          \
    }
GROUPED_LIST(X)
#undef X

static mica_product_few *const grouped_few[GROUPED_COUNT] = {
#define X(name, codes, head, groups, quads, most, code_bytes, scale_bytes, power) name,
    GROUPED_LIST(X)
#undef X
};

/* NULL: none of these encodings. */
static mica_product_few *grouped_few_of(const mica_matrix *matrix) {
    int group = grouped_of(matrix);
    return group >= 0 ? grouped_few[group] : NULL;
}

#endif
