/* numerics/decode.c: codes and scales to float32, portably; the truth that the fast variants must equal bit for bit.
 * Every value is one product in double (exact: 12 + 24 bits of significand at most) and one rounding to float32; NaN is 0x7fc00000.
 * Refuses nothing: the caller has checked sizes. Judged by tests/numerics/test_decode.c against tests/reference/decode.h. */
#include "numerics/decode_kernels.h"

#include "base/cpu.h"
#include "numerics/decode_block.h"

enum { CHUNK_BLOCKS = 256 }; /* factors kept on the stack */

const float mica_e2m1_values[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
const float mica_int4_values[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
const int8_t mica_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

const char *mica_encoding_name(mica_encoding encoding) {
    static const char *const names[] = {
#define X(name, text) text,
        MICA_ENCODING_LIST(X)
#undef X
    };
    return (unsigned)encoding < sizeof names / sizeof *names ? names[encoding] : "unknown";
}

uint64_t mica_matrix_row_bytes(const mica_matrix *matrix) {
    switch (matrix->encoding) {
    case MICA_ENCODING_PLAIN: return matrix->columns * mica_dtype_bytes(matrix->dtype);
    case MICA_ENCODING_FP8_BLOCK: return matrix->columns;
    case MICA_ENCODING_MXFP4: return matrix->columns / 2 + matrix->columns % 2;
    case MICA_ENCODING_INT4_GROUP: return (matrix->columns / 8 + (matrix->columns % 8 != 0)) * 4;
    case MICA_ENCODING_BLOCK: return matrix->columns / mica_dtype_block_elements(matrix->dtype) * mica_dtype_block_bytes(matrix->dtype);
    }
    return 0;
}

mica_code mica_matrix_code(const mica_matrix *matrix) {
    switch (matrix->encoding) {
    case MICA_ENCODING_MXFP4: return MICA_CODE_E2M1;
    case MICA_ENCODING_INT4_GROUP: return MICA_CODE_INT4;
    default: return (mica_code)matrix->dtype;
    }
}

mica_grid mica_matrix_grid(const mica_matrix *matrix) {
    bool plain = matrix->encoding == MICA_ENCODING_PLAIN;
    uint64_t rows = matrix->rows ? matrix->rows : 1, columns = matrix->columns ? matrix->columns : 1;
    uint64_t block_rows = plain ? rows : mica_min_u64(matrix->block_rows ? matrix->block_rows : 1, rows);
    uint64_t block_columns = plain ? columns : mica_min_u64(matrix->block_columns ? matrix->block_columns : 1, columns);
    return (mica_grid){block_rows, block_columns, (rows - 1) / block_rows + 1, (columns - 1) / block_columns + 1};
}

/* A group format has a scale for every 32 codes: the dtype is looked up once for many. */
#define EACH_SCALE(meaning)                                \
    for (uint64_t i = first; i < first + count; i++) {     \
        *values++ = (meaning);                             \
    }                                                      \
    break

void mica_scale_values(const mica_matrix *matrix, uint64_t first, uint64_t count, double *values) {
    const uint8_t *scales = matrix->scales;
    switch (matrix->encoding == MICA_ENCODING_PLAIN ? MICA_DTYPE_COUNT : matrix->scale_dtype) {
    case MICA_DTYPE_COUNT: EACH_SCALE(1.0);
    case MICA_F8_E8M0: EACH_SCALE(mica_e8m0_value(scales[i]));
    case MICA_BF16: EACH_SCALE(mica_bf16_value(mica_load_u16(scales, i)));
    case MICA_F32: EACH_SCALE((double)mica_load_f32(scales, i));
    default: EACH_SCALE(mica_code_value((mica_code)matrix->scale_dtype, scales, i));
    }
}

/* Integers beyond 2^53 do not fit a double; the bits that do not fit are remembered in the last one that does (rounding to odd), so
 * that the later rounding to float32 comes out as if it were the only one. */
static double i64_value(int64_t code) {
    if (code >= -(INT64_C(1) << 53) && code <= INT64_C(1) << 53) {
        return (double)code;
    }
    int64_t kept = code & ~INT64_C(0x7ff);
    return (double)(kept == code ? kept : kept | 0x800);
}

double mica_code_value(mica_code code, const uint8_t *row, uint64_t column) {
    switch ((int)code) {
    case MICA_F64: return mica_load_f64(row, column);
    case MICA_F32: return (double)mica_load_f32(row, column);
    case MICA_F16: return mica_f16_value(mica_load_u16(row, column));
    case MICA_BF16: return mica_bf16_value(mica_load_u16(row, column));
    case MICA_F8_E4M3: return mica_e4m3_value(row[column]);
    case MICA_F8_E5M2: return mica_e5m2_value(row[column]);
    case MICA_F8_E8M0: return mica_e8m0_value(row[column]);
    case MICA_I64: return i64_value(mica_load_i64(row, column));
    case MICA_I32: return mica_load_i32(row, column);
    case MICA_I16: return mica_load_i16(row, column);
    case MICA_I8: return (int8_t)row[column];
    case MICA_U8: return row[column];
    case MICA_BOOL: return row[column] != 0;
    case MICA_CODE_E2M1: return (double)mica_e2m1_values[mica_nibble(row, column)];
    case MICA_CODE_INT4: return (double)mica_int4_values[mica_nibble(row, column)];
    default: return NAN;
    }
}

/* The factors of one row of blocks, or of a part of it: scale * 2^-exponent, split so that no double overflows or underflows.
 * `late` is 2^-(what of the exponent lies beyond +-600): with |value| in 2^-166..2^145 (F64 aside, which has scale 1) such an exponent
 * gives zero or infinity anyway; for F64 the two products round once, since a product that is subnormal in double is zero in float32. */
typedef struct factors {
    double exact[CHUNK_BLOCKS];
    float fast[CHUNK_BLOCKS];
    double early, late;
    bool fast_is_exact;
} factors;

static double power_of_two(int exponent) {
    return mica_double_of_bits((uint64_t)(1023 + exponent) << 52);
}

static int clamp(int value, int limit) {
    return value < -limit ? -limit : value > limit ? limit : value;
}

static void set_exponent(factors *factor, int exponent) {
    int early = clamp(exponent, 600);
    factor->early = power_of_two(-early);
    factor->late = power_of_two(-clamp(exponent < -2000 ? -2000 : exponent > 2000 ? 2000 : exponent - early, 900));
}

static void set_factors(factors *factor, const mica_matrix *matrix, uint64_t first, uint64_t count) {
    bool exact = factor->late == 1.0;
    mica_scale_values(matrix, first, count, factor->exact);
    for (uint64_t i = 0; i < count; i++) {
        double value = factor->exact[i] * factor->early;
        float rounded = (float)value;
        factor->exact[i] = value;
        factor->fast[i] = rounded;
        exact &= (double)rounded == value && fabsf(rounded) < INFINITY;
    }
    factor->fast_is_exact = exact;
}

static float round_once(double value) {
    return isnan(value) ? mica_float_of_bits(0x7fc00000u) : (float)value;
}

/* The loop over blocks of one row, with the code's meaning written out so that it is not looked up per element. */
#define EACH_ELEMENT(meaning)                                                  \
    for (uint64_t end, last = column + count; column < last; column = end) {   \
        end = mica_min_u64(last, (column / block_columns + 1) * block_columns); \
        for (uint64_t c = column; c < end; c++) {                              \
            *out++ = round_once((meaning) * *factor * late);                   \
        }                                                                      \
        factor++;                                                              \
    }                                                                          \
    break

static void careful_row(mica_code code, const uint8_t *row, uint64_t column, uint64_t count, uint64_t block_columns, const double *factor,
                        double late, float *out) {
    switch ((int)code) {
    case MICA_F8_E4M3: EACH_ELEMENT(mica_e4m3_value(row[c]));
    case MICA_BF16: EACH_ELEMENT(mica_bf16_value(mica_load_u16(row, c)));
    case MICA_F32: EACH_ELEMENT((double)mica_load_f32(row, c));
    case MICA_CODE_E2M1: EACH_ELEMENT((double)mica_e2m1_values[mica_nibble(row, c)]);
    case MICA_CODE_INT4: EACH_ELEMENT((double)mica_int4_values[mica_nibble(row, c)]);
    default: EACH_ELEMENT(mica_code_value(code, row, c));
    }
}

const mica_decode_kernels *mica_decode_kernels_current(void) {
    switch (mica_cpu_current()) {
#if defined(__x86_64__)
    case MICA_CPU_AVX2: return &mica_decode_kernels_avx2;
    case MICA_CPU_AVX512: return &mica_decode_kernels_avx512;
#endif
    default: return &mica_decode_kernels_portable;
    }
}

void mica_matrix_decode_block(const mica_matrix *matrix, int exponent, uint64_t row, uint64_t count, uint64_t column, uint64_t width, float *out,
                              uint64_t stride) {
    if (matrix->encoding == MICA_ENCODING_BLOCK) {
        mica_block_decode(matrix, exponent, row, count, column, width, out, stride);
        return;
    }
    mica_code code = mica_matrix_code(matrix);
    mica_grid grid = mica_matrix_grid(matrix);
    mica_decode_row *fast = mica_decode_kernels_current()->row[code];
    const uint8_t *codes = matrix->codes;
    uint64_t row_bytes = mica_matrix_row_bytes(matrix), row_end = row + count, column_end = column + width;
    factors factor;
    set_exponent(&factor, exponent);
    for (uint64_t top = row, bottom; top < row_end; top = bottom) { /* rows that share their scales */
        bottom = mica_min_u64(row_end, (top / grid.block_rows + 1) * grid.block_rows);
        for (uint64_t left = column, right; left < column_end; left = right) { /* columns whose factors fit the chunk */
            uint64_t block = left / grid.block_columns, blocks = mica_min_u64(grid.columns - block, CHUNK_BLOCKS);
            right = mica_min_u64(column_end, (block + blocks) * grid.block_columns);
            set_factors(&factor, matrix, top / grid.block_rows * grid.columns + block, (right - 1) / grid.block_columns - block + 1);
            for (uint64_t r = top; r < bottom; r++) {
                float *target = out + (r - row) * stride + (left - column);
                if (fast && factor.fast_is_exact) {
                    fast(codes + r * row_bytes, left, right - left, grid.block_columns, factor.fast, target);
                } else {
                    careful_row(code, codes + r * row_bytes, left, right - left, grid.block_columns, factor.exact, factor.late, target);
                }
            }
        }
    }
}

void mica_matrix_decode(const mica_matrix *matrix, int exponent, uint64_t row, uint64_t count, float *out, uint64_t stride) {
    mica_matrix_decode_block(matrix, exponent, row, count, 0, matrix->columns, out, stride);
}

bool mica_decode_plain(mica_dtype dtype, const void *codes, uint64_t count, float *out) {
    if ((unsigned)dtype >= MICA_DTYPE_PLAIN_COUNT) {
        return false;
    }
    mica_matrix matrix = {.encoding = MICA_ENCODING_PLAIN, .dtype = dtype, .rows = 1, .columns = count, .codes = codes};
    mica_matrix_decode(&matrix, 0, 0, 1, out, count);
    return true;
}
