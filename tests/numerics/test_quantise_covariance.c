/* Judges numerics/quantise_covariance: with no correlation it is the plain quantiser; with some, the output's error, computed from H itself
 * in double, is below the plain one's and below that of feeding errors forward with one path, done here the obvious way; the instruction
 * sets write the same bytes; what cannot be is refused. The comparison with llama.cpp is bench/bench_quantise's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "base/no_memory.h"
#include "numerics/quantise_covariance.h"
#include "numerics/second_moments.h"

enum { COLUMNS = 512, ROWS = 37, COUNT = ROWS * COLUMNS };

static const mica_dtype types[] = {MICA_Q2_K, MICA_Q4_K, MICA_Q5_K};
#define EACH_TYPE for (size_t i = 0; i < sizeof types / sizeof *types; i++)

static uint64_t random_state = 0x2545f4914f6cdd1du;
static float x[COUNT], y[COUNT], h[COLUMNS * COLUMNS];
static uint8_t blocks[COUNT], others[COUNT];

static double gauss(void) {
    double u[2];
    for (int k = 0; k < 2; k++) {
        random_state ^= random_state << 13;
        random_state ^= random_state >> 7;
        random_state ^= random_state << 17;
        u[k] = ((double)(random_state >> 11) + 0.5) * 0x1p-53;
    }
    return sqrt(-2 * log(u[0])) * cos(6.283185307179586 * u[1]);
}

/* Second moments of 2,000 inputs that share 40 directions, columns of different size. */
static void fill(void) {
    static double directions[40][COLUMNS], input[COLUMNS], sums[COLUMNS][COLUMNS];
    memset(sums, 0, sizeof sums);
    for (int d = 0; d < 40; d++)
        for (int c = 0; c < COLUMNS; c++)
            directions[d][c] = gauss() / sqrt(1 + d);
    for (int t = 0; t < 2000; t++) {
        for (int c = 0; c < COLUMNS; c++)
            input[c] = gauss();
        for (int d = 0; d < 40; d++) {
            double share = gauss();
            for (int c = 0; c < COLUMNS; c++)
                input[c] += share * directions[d][c];
        }
        for (int a = 0; a < COLUMNS; a++)
            for (int b = 0; b < COLUMNS; b++)
                sums[a][b] += input[a] * input[b];
    }
    for (int a = 0; a < COLUMNS; a++)
        for (int b = 0; b < COLUMNS; b++)
            h[a * COLUMNS + b] = (float)(sums[a][b] / 2000 * exp(0.5 * cos(a * 3.7) + 0.5 * cos(b * 3.7)));
    for (int k = 0; k < COUNT; k++)
        x[k] = (float)(0.02 * gauss());
}

static mica_covariance *covariance_of(const float *moments, double damping) {
    mica_covariance *covariance = NULL;
    mica_error error = {0};
    if (mica_covariance_create(moments, COLUMNS, damping, &covariance, &error) != MICA_OK)
        fail_msg("%s", error.message);
    return covariance;
}

static void decode(mica_dtype type, const uint8_t *from) {
    mica_matrix matrix = {.encoding = MICA_ENCODING_BLOCK, .dtype = type, .rows = ROWS, .columns = COLUMNS, .codes = from};
    mica_matrix_decode(&matrix, 0, 0, ROWS, y, COLUMNS);
}

/* sum over rows of (x - y)^T H (x - y) */
static double output_error(void) {
    double sum = 0;
    for (int row = 0; row < ROWS; row++)
        for (int a = 0; a < COLUMNS; a++) {
            double product = 0;
            for (int b = 0; b < COLUMNS; b++)
                product += (double)h[a * COLUMNS + b] * ((double)x[row * COLUMNS + b] - (double)y[row * COLUMNS + b]);
            sum += product * ((double)x[row * COLUMNS + a] - (double)y[row * COLUMNS + a]);
        }
    return sum;
}

static uint64_t bytes_of(mica_dtype type) {
    return COUNT / 256 * mica_dtype_block_bytes(type);
}

static void without_correlation_nothing_changes(void **state) {
    (void)state;
    static float identity[COLUMNS * COLUMNS];
    for (int a = 0; a < COLUMNS; a++)
        identity[a * COLUMNS + a] = 3;
    fill();
    mica_covariance *covariance = covariance_of(identity, MICA_COVARIANCE_DAMPING);
    const mica_quantise_options options = {MICA_EFFORT_DEFAULT, 0, NULL};
    EACH_TYPE {
        assert_int_equal(mica_quantise_rows(types[i], x, COLUMNS, ROWS, COLUMNS, &options, blocks, NULL), MICA_OK);
        assert_int_equal(mica_quantise_rows_covariance(types[i], x, COLUMNS, ROWS, covariance, &options, others, NULL), MICA_OK);
        decode(types[i], blocks);
        static float plain[COUNT];
        memcpy(plain, y, sizeof y);
        decode(types[i], others);
        for (int k = 0; k < COUNT; k++) /* the same levels, or the other one where both are as near */
            assert_true(fabs(fabsf(x[k] - y[k]) - fabsf(x[k] - plain[k])) <= 1e-6);
    }
    mica_covariance_free(covariance);
}

/* One path: each column's nearest level to what makes up for the columns before it. Cholesky of the reversed matrix, in double; levels from
 * the values that the block can hold there, found by trying. */
static double one_path_error(mica_dtype type, double damping) {
    static double a[COLUMNS][COLUMNS];
    double mean = 0;
    for (int j = 0; j < COLUMNS; j++)
        mean += (double)h[j * COLUMNS + j] / COLUMNS;
    for (int j = COLUMNS - 1; j >= 0; j--)
        for (int k = j; k >= 0; k--) {
            double sum = (double)h[k * COLUMNS + j] + (j == k ? damping * mean : 0);
            for (int l = j + 1; l < COLUMNS; l++)
                sum -= a[k][l] * a[j][l];
            a[k][j] = k == j ? sqrt(sum) : sum / a[j][j];
        }
    int top = type == MICA_Q2_K ? 3 : type == MICA_Q4_K ? 15 : 31;
    mica_matrix matrix = {.encoding = MICA_ENCODING_BLOCK, .dtype = type, .rows = ROWS, .columns = COLUMNS};
    static float lowest[COUNT], highest[COUNT];
    for (int end = 0; end < 2; end++) { /* all codes 0, all codes 1s: the ends of each element's grid */
        uint32_t bytes = mica_dtype_block_bytes(type), codes = type == MICA_Q2_K ? 64 : bytes - 16;
        memcpy(others, blocks, bytes_of(type));
        for (int b = 0; b < COUNT / 256; b++)
            memset(others + (uint32_t)b * bytes + 16, end ? 0xff : 0, codes);
        matrix.codes = others;
        mica_matrix_decode(&matrix, 0, 0, ROWS, end ? highest : lowest, COLUMNS);
    }
    for (int row = 0; row < ROWS; row++) {
        double errors[COLUMNS];
        for (int j = 0; j < COLUMNS; j++) {
            int at = row * COLUMNS + j;
            double target = (double)x[at], step = ((double)highest[at] - (double)lowest[at]) / top;
            for (int k = 0; k < j; k++)
                target += a[k][j] / a[j][j] * errors[k];
            double level = step > 0 ? fmin(fmax(rint((target - (double)lowest[at]) / step), 0), top) : 0;
            y[at] = (float)((double)lowest[at] + step * level);
            errors[j] = (double)x[at] - (double)y[at];
        }
    }
    return output_error();
}

static void lowers_the_error_of_the_output(void **state) {
    (void)state;
    fill();
    mica_covariance *covariance = covariance_of(h, MICA_COVARIANCE_DAMPING);
    float diagonal[COLUMNS];
    for (int c = 0; c < COLUMNS; c++)
        diagonal[c] = h[c * COLUMNS + c];
    const mica_quantise_options options = {MICA_EFFORT_DEFAULT, 0, diagonal};
    EACH_TYPE {
        assert_int_equal(mica_quantise_rows(types[i], x, COLUMNS, ROWS, COLUMNS, &options, blocks, NULL), MICA_OK);
        decode(types[i], blocks);
        double plain = output_error(), one_path = one_path_error(types[i], MICA_COVARIANCE_DAMPING);
        assert_int_equal(mica_quantise_rows_covariance(types[i], x, COLUMNS, ROWS, covariance, &options, others, NULL), MICA_OK);
        decode(types[i], others);
        double ours = output_error();
        if (!(one_path < 0.9 * plain && ours < 0.99 * one_path))
            fail_msg("%s: plain 1, one path %g, ours %g", mica_dtype_name(types[i]), one_path / plain, ours / plain);
    }
    mica_covariance_free(covariance);
}

/* sum over rows of x^T H x, and of x^T H y. */
static double shrinkage(void) {
    double xx = 0, xy = 0;
    for (int row = 0; row < ROWS; row++)
        for (int a = 0; a < COLUMNS; a++)
            for (int b = 0; b < COLUMNS; b++) {
                double share = (double)h[a * COLUMNS + b] * (double)x[row * COLUMNS + a];
                xx += share * (double)x[row * COLUMNS + b];
                xy += share * (double)y[row * COLUMNS + b];
            }
    return 1 - xy / xx;
}

/* Outputs come out smaller without the correction, and by about a quarter of that with it. */
static void gain_undoes_shrinkage(void **state) {
    (void)state;
    fill();
    mica_covariance *covariance = covariance_of(h, MICA_COVARIANCE_DAMPING);
    double shrunk[2];
    for (int k = 0; k < 2; k++) {
        const mica_quantise_options options = {MICA_EFFORT_DEFAULT, k * MICA_QUANTISE_GAIN, NULL};
        assert_int_equal(mica_quantise_rows_covariance(MICA_Q2_K, x, COLUMNS, ROWS, covariance, &options, blocks, NULL), MICA_OK);
        decode(MICA_Q2_K, blocks);
        shrunk[k] = shrinkage();
    }
    if (!(shrunk[0] > 0.01 && fabs(shrunk[1]) < 0.5 * shrunk[0]))
        fail_msg("shrunk by %g, corrected by %g", shrunk[0], shrunk[1]);
    mica_covariance_free(covariance);
}

static void instruction_sets_write_the_same_bytes(void **state) {
    (void)state;
    fill();
    for (int k = 0; k < COLUMNS; k++) /* a row of zeros, one of outliers */
        x[COLUMNS + k] = k % 40 ? 0 : 5, x[k] = 0;
    const mica_quantise_options options = {MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, NULL};
    EACH_TYPE
        for (mica_cpu cpu = MICA_CPU_PORTABLE; cpu <= mica_cpu_detected(); cpu++) {
            mica_cpu_select(cpu);
            mica_covariance *covariance = covariance_of(h, MICA_COVARIANCE_DAMPING);
            assert_int_equal(mica_quantise_rows_covariance(types[i], x, COLUMNS, ROWS, covariance, &options, cpu ? others : blocks, NULL),
                             MICA_OK);
            if (cpu)
                assert_memory_equal(blocks, others, bytes_of(types[i]));
            /* and rows one by one */
            for (uint64_t row = 0; row < ROWS; row++)
                assert_int_equal(mica_quantise_rows_covariance(types[i], x + row * COLUMNS, COLUMNS, 1, covariance, &options,
                                                               others + row * bytes_of(types[i]) / ROWS, NULL), MICA_OK);
            assert_memory_equal(blocks, others, bytes_of(types[i]));
            mica_covariance_free(covariance);
        }
    mica_cpu_select(mica_cpu_detected());
}

static void refuses(const float *moments, uint64_t columns, double damping, mica_status expected, const char *text) {
    mica_covariance *covariance = NULL;
    mica_error error = {0};
    assert_int_equal(mica_covariance_create(moments, columns, damping, &covariance, &error), expected);
    assert_non_null(strstr(error.message, text));
    assert_null(covariance);
}

static void bad_input_is_refused(void **state) {
    (void)state;
    static float moments[COLUMNS * COLUMNS];
    fill();
    refuses(h, 100, 0.01, MICA_USAGE, "100 columns");
    refuses(h, COLUMNS, -1, MICA_USAGE, "damping");
    refuses(moments, COLUMNS, 0.01, MICA_BAD_INPUT, "all zero");
    memcpy(moments, h, sizeof h);
    moments[3 * COLUMNS + 4] = NAN;
    refuses(moments, COLUMNS, 0.01, MICA_BAD_INPUT, "columns 3 and 4");
    memcpy(moments, h, sizeof h);
    moments[7 * COLUMNS + 7] = -1;
    refuses(moments, COLUMNS, 0.01, MICA_BAD_INPUT, "columns 7 and 7");
    for (int a = 0; a < COLUMNS; a++) /* singular, and worse */
        for (int b = 0; b < COLUMNS; b++)
            moments[a * COLUMNS + b] = a == b ? 1 : 2;
    refuses(moments, COLUMNS, 0.01, MICA_BAD_INPUT, "not positive definite");
    for (int k = 0; k < COLUMNS * COLUMNS; k++) /* of rank one: the damping mends it */
        moments[k] = 1;
    mica_covariance_free(covariance_of(moments, 0.01));
    mica_covariance *covariance = covariance_of(h, 0.01);
    mica_error error = {0};
    mica_quantise_options options = {MICA_EFFORT_DEFAULT, 0, NULL};
    assert_int_equal(mica_quantise_rows_covariance(MICA_Q6_K, x, COLUMNS, ROWS, covariance, &options, blocks, &error), MICA_USAGE);
    options.gain = 2;
    assert_int_equal(mica_quantise_rows_covariance(MICA_Q4_K, x, COLUMNS, ROWS, covariance, &options, blocks, &error), MICA_USAGE);
    options.gain = 0;
    x[COLUMNS + 5] = NAN;
    assert_int_equal(mica_quantise_rows_covariance(MICA_Q4_K, x, COLUMNS, ROWS, covariance, &options, blocks, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "row 1, column 5"));
    mica_covariance_free(covariance);
}

static void memory_may_be_short(void **state) {
    (void)state;
    fill();
    mica_covariance *covariance = NULL;
    mica_error error = {0};
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        no_memory_begin(&trial);
        const mica_status status = mica_covariance_create(h, COLUMNS, 0.01, &covariance, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        if (trial.succeeded)
            mica_covariance_free(covariance);
    }
    covariance = covariance_of(h, 0.01);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        const mica_quantise_options options = {MICA_EFFORT_FAST, MICA_QUANTISE_GAIN, NULL};
        no_memory_begin(&trial);
        const mica_status status = mica_quantise_rows_covariance(MICA_Q4_K, x, COLUMNS, ROWS, covariance, &options, blocks, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
    }
    mica_covariance_free(covariance);
    mica_covariance_free(NULL);
}

/* Against sums in double over the same tokens, more than are taken at a time, some of them chosen; every instruction set and number of
 * threads the same bits. */
static void second_moments_are_sums_of_products(void **state) {
    (void)state;
    enum { WIDE = 320, STRIDE = 323, TOKENS = 300 };
    static float inputs[2 * TOKENS * STRIDE];
    static float scratch[MICA_SECOND_MOMENTS_TOKENS * WIDE], sums[WIDE * WIDE], first[WIDE * WIDE];
    static uint32_t selection[TOKENS];
    for (int k = 0; k < 2 * TOKENS * STRIDE; k++)
        inputs[k] = (float)gauss();
    for (uint32_t t = 0; t < TOKENS; t++)
        selection[t] = 2 * t + t % 2;
    static const mica_cpu sets[] = {MICA_CPU_PORTABLE, MICA_CPU_AVX2, MICA_CPU_AVX512};
    for (size_t s = 0; s < 4 * (sizeof sets / sizeof *sets); s++) {
        mica_pool *pool = NULL;
        memset(sums, 0, sizeof sums);
        mica_cpu_select(sets[s / 4]);
        if (s % 4 > 0) /* none: the caller alone */
            assert_int_equal(mica_pool_create((uint32_t)s % 4, &pool, NULL), MICA_OK);
        mica_second_moments_add(pool, inputs, STRIDE, selection, TOKENS, WIDE, scratch, sums);
        mica_second_moments_add(pool, inputs, STRIDE, NULL, 5, WIDE, scratch, sums);
        mica_pool_free(pool);
        for (int i = 0; i < WIDE; i++)
            for (int j = 0; j <= i; j++) {
                double sum = 0, size = 0;
                for (uint32_t t = 0; t < TOKENS + 5; t++) {
                    const float *row = inputs + (t < TOKENS ? selection[t] : t - TOKENS) * STRIDE;
                    sum += (double)row[i] * (double)row[j];
                    size += fabs((double)row[i] * (double)row[j]);
                }
                assert_true(fabs((double)sums[i * WIDE + j] - sum) <= (TOKENS + 5) * 0x1p-24 * size);
            }
        if (s == 0)
            memcpy(first, sums, sizeof sums);
        assert_memory_equal(first, sums, sizeof sums);
    }
    mica_cpu_select(mica_cpu_detected());
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_correlation_nothing_changes), cmocka_unit_test(lowers_the_error_of_the_output),
        cmocka_unit_test(gain_undoes_shrinkage),
        cmocka_unit_test(instruction_sets_write_the_same_bytes), cmocka_unit_test(bad_input_is_refused),
        cmocka_unit_test(memory_may_be_short), cmocka_unit_test(second_moments_are_sums_of_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
