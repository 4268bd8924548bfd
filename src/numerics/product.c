/* numerics/product.c: operands, the choice of a kernel, and the portable product: rows decoded strip by strip, multiplied in float64.
 * Refuses nothing: the caller has checked shapes. Judged by tests/numerics/test_product.c. */
#include "numerics/product.h"

#include <stddef.h>

#include "base/cpu.h"
#include "numerics/product_kernels.h"

static uint64_t round_up(uint64_t value, uint64_t step) {
    return (value + step - 1) / step * step;
}

static const mica_product_kernels *current(void) {
#if defined(__x86_64__)
    if (mica_cpu_current() == MICA_CPU_AVX512)
        return mica_cpu_has_amx()    ? &mica_product_kernels_amx
               : mica_cpu_has_bf16() ? &mica_product_kernels_avx512_bf16
                                     : &mica_product_kernels_avx512;
    if (mica_cpu_current() == MICA_CPU_AVX2)
        return mica_cpu_has_vnni() ? &mica_product_kernels_avxvnni : &mica_product_kernels_avx2;
#endif
    return &mica_product_kernels_portable;
}

/* What kernels of few tokens want; one form of all rows after the other, each on a multiple of 64 bytes: padded is a multiple of 256. */
static uint64_t few_bytes(uint64_t tokens, uint64_t padded) {
    const uint64_t columns = tokens * padded;
    const uint64_t sums = (columns / 4 + columns / 8) * sizeof(int32_t) + 3 * (columns / 16) * sizeof(float);
    return 4 * columns + sums + round_up(columns / 256 * sizeof(float), 64);
}

static uint64_t bf16_bytes(uint64_t tokens, uint64_t padded) {
    return tokens > MICA_PRODUCT_FEW && current()->multiply_bf16 ? tokens * padded * sizeof(uint16_t) : 0;
}

uint64_t mica_operand_bytes(mica_precision precision, uint64_t tokens, uint64_t columns) {
    uint64_t padded = round_up(columns, 256);
    if (precision == MICA_PRECISION_EXACT || !current()->prepare)
        return 0;
    return bf16_bytes(tokens, padded) + few_bytes(tokens < MICA_PRODUCT_SOME ? tokens : MICA_PRODUCT_SOME, padded);
}

void mica_operand_init(mica_operand *operand, mica_precision precision, const float *values, uint64_t stride, uint64_t tokens,
                       uint64_t columns, void *storage) {
    uint64_t padded = round_up(columns, 256), bf16 = bf16_bytes(tokens, padded);
    *operand = (mica_operand){
        .precision = precision, .tokens = tokens, .columns = columns, .values = values, .stride = stride, .padded = padded};
    if (precision == MICA_PRECISION_EXACT || !current()->prepare)
        return;
    if (bf16)
        operand->bf16 = storage;
    if (tokens <= MICA_PRODUCT_SOME) {
        operand->digits = (int8_t *)storage + bf16;
        operand->words = (int16_t *)(void *)operand->digits;
        const uint64_t all = tokens * padded;
        operand->quads = operand->digits + 2 * all;
        operand->sums = (int32_t *)(void *)(operand->quads + 2 * all);
        operand->block_sums = (float *)(void *)operand->sums;
        operand->pair_sums = operand->sums + all / 4;
        operand->wide_sums = (float *)(operand->pair_sums + all / 8);
        operand->wide_pair_sums = operand->wide_sums + all / 16;
        operand->quad_sums = operand->wide_pair_sums + all / 16;
        operand->scales = operand->quad_sums + all / 16;
    }
}

void mica_operand_prepare(mica_operand *operand, uint64_t token, uint64_t count) {
    for (uint64_t row = token; (operand->bf16 || operand->digits) && row < token + count; row++)
        current()->prepare(operand, row);
}

mica_operand mica_operand_select(const mica_operand *operand, const uint32_t *tokens, uint64_t count) {
    mica_operand selected = *operand;
    selected.tokens = count;
    selected.selection = tokens;
    return selected;
}

/* ---- portable */

enum { LANES = 8 }; /* independent sums, which a compiler can put side by side */

static double dot(const float *a, const float *b, uint64_t count) {
    double sums[LANES] = {0}, sum = 0;
    uint64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (uint64_t k = 0; k < LANES; k++)
            sums[k] += (double)a[i + k] * (double)b[i + k];
    for (; i < count; i++)
        sum += (double)a[i] * (double)b[i];
    for (uint64_t k = 0; k < LANES; k++)
        sum += sums[k];
    return sum;
}

static void multiply_f32(const float *strip, uint64_t strip_stride, uint64_t rows, const mica_operand *x, uint64_t column, uint64_t width,
                         float *out, uint64_t stride) {
    for (uint64_t r = 0; r < rows; r++)
        for (uint64_t t = 0; t < x->tokens; t++) {
            double sum = dot(strip + r * strip_stride, x->values + mica_operand_row(x, t) * x->stride + column, width);
            out[t * stride + r] = (float)(column ? (double)out[t * stride + r] + sum : sum);
        }
}

const mica_product_kernels mica_product_kernels_portable = {.multiply_f32 = multiply_f32};

/* ---- a strip at a time */

static void decode_strip(const mica_matrix *matrix, uint64_t row, uint64_t count, uint64_t column, uint64_t width, float *strip,
                         uint64_t stride) {
    mica_matrix_decode_block(matrix, 0, row, count, column, width, strip, stride);
}

enum { FEW_ROWS = 4 }; /* of a strip that few tokens use: it stays in the first-level cache */

static void product_f32(const mica_product_kernels *kernels, const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x,
                        float *out, uint64_t stride, float *strip) {
    mica_strip_f32 *decode = kernels->strip_f32 ? kernels->strip_f32(matrix) : NULL;
    uint64_t most = x->tokens <= MICA_PRODUCT_FEW ? FEW_ROWS : MICA_STRIP_ROWS;
    decode = decode ? decode : decode_strip;
    for (uint64_t first = 0, rows; first < count; first += rows) {
        rows = count - first < most ? count - first : most;
        for (uint64_t column = 0, width; column < matrix->columns; column += width) {
            width = matrix->columns - column < MICA_STRIP_COLUMNS / 2 ? matrix->columns - column : MICA_STRIP_COLUMNS / 2;
            uint64_t strip_stride = round_up(width, 256) + MICA_STRIP_PAD / 2;
            decode(matrix, row + first, rows, column, width, strip, strip_stride);
            kernels->multiply_f32(strip, strip_stride, rows, x, column, width, out + first, stride);
        }
    }
}

static void product_bf16(const mica_product_kernels *kernels, mica_strip_bf16 *decode, const mica_matrix *matrix, uint64_t row,
                         uint64_t count, const mica_operand *x, float *out, uint64_t stride, void *scratch) {
    for (uint64_t first = 0, rows; first < count; first += rows) {
        rows = count - first < kernels->strip_rows ? count - first : kernels->strip_rows;
        for (uint64_t column = 0, width; column < matrix->columns; column += width) {
            width = matrix->columns - column < MICA_STRIP_COLUMNS ? matrix->columns - column : MICA_STRIP_COLUMNS;
            mica_strip strip = {matrix, decode, row + first, rows, column, width};
            kernels->multiply_bf16(&strip, x, out + first, stride, scratch);
        }
    }
}

/* ---- the choice */

typedef struct choice {
    const mica_product_kernels *kernels;
    mica_product_few *few;
    mica_strip_bf16 *bf16;
} choice;

/* Of so many tokens, of an operand that has bf16, and what kernels of few tokens want. */
static choice choose(const mica_matrix *matrix, mica_precision precision, uint64_t tokens, bool bf16, bool digits) {
    choice c = {.kernels = current()};
    bool fast = precision == MICA_PRECISION_FAST && digits;
    uint64_t most = fast && c.kernels->few_tokens ? c.kernels->few_tokens(matrix) : MICA_PRODUCT_FEW;
    if (tokens <= most && c.kernels->few)
        c.few = c.kernels->few(matrix, fast ? MICA_PRECISION_FAST : MICA_PRECISION_EXACT);
    if (!c.few && bf16 && c.kernels->strip_bf16)
        c.bf16 = c.kernels->strip_bf16(matrix);
    return c;
}

void mica_product(const mica_matrix *matrix, uint64_t row, uint64_t count, const mica_operand *x, float *out, uint64_t stride,
                  void *scratch) {
    choice c = choose(matrix, x->precision, x->tokens, x->bf16, x->digits);
    if (c.few)
        c.few(matrix, row, count, x, out, stride);
    else if (c.bf16)
        product_bf16(c.kernels, c.bf16, matrix, row, count, x, out, stride, scratch);
    else
        product_f32(c.kernels, matrix, row, count, x, out, stride, scratch);
}

const char *mica_product_method(const mica_matrix *matrix, mica_precision precision, uint64_t tokens) {
    bool fast = precision == MICA_PRECISION_FAST;
    bool bf16 = fast && tokens > MICA_PRODUCT_FEW && current()->multiply_bf16;
    choice c = choose(matrix, precision, tokens, bf16, fast && tokens <= MICA_PRODUCT_SOME);
    bool exact = c.kernels->few && c.few == c.kernels->few(matrix, MICA_PRECISION_EXACT);
    return c.few                                         ? (exact ? "float32" : "int16")
           : c.bf16                                      ? "bf16 strips"
           : c.kernels == &mica_product_kernels_portable ? "float64 strips"
                                                         : "float32 strips";
}
