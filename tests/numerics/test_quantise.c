/* Judges numerics/quantise: what was written, decoded by tests/reference/decode_block.h, is nearer to the weights than a plain rounding
 * with exact scales; more effort is not worse; the instruction sets write the same bytes, however rows are cut; what fits exactly stays
 * exact; and what cannot be quantised is refused. The comparison with ggml's own quantisers is bench/bench_quantise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "numerics/quantise.h"
#include "reference/decode_block.h"

enum { COLUMNS = 768, ROWS = 24, COUNT = ROWS * COLUMNS };

static uint64_t random_state = 0x853c49e6748fea9bu;

static double uniform(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return ((double)(random_state >> 11) + 0.5) * 0x1p-53;
}

static double gauss(void) {
    return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

#define EACH_TYPE(type) for (mica_dtype type = MICA_Q4_0; type < MICA_DTYPE_COUNT; type++)

static float *x, *y, *importance;
static uint8_t *blocks, *others;

static uint64_t bytes_of(mica_dtype type, uint64_t count) {
    return count / mica_dtype_block_elements(type) * mica_dtype_block_bytes(type);
}

static void quantise_rows(mica_dtype type, mica_effort effort, double gain, const float *weights, uint8_t *out) {
    mica_error error = {0};
    mica_quantise_options options = {effort, gain, weights};
    if (mica_quantise_rows(type, x, COLUMNS, ROWS, COLUMNS, &options, out, &error) != MICA_OK)
        fail_msg("%s", error.message);
}

static void decode(mica_dtype type, const uint8_t *from, uint64_t count, float *out) {
    uint32_t elements = mica_dtype_block_elements(type);
    for (uint64_t i = 0; i < count; i += elements) {
        long double values[256];
        reference_block(type, from + bytes_of(type, i), values);
        for (uint32_t k = 0; k < elements; k++)
            out[i + k] = (float)values[k];
    }
}

/* sum of importance * (x - y)^2 */
static double error_of(const float *weights) {
    double sum = 0;
    for (uint64_t i = 0; i < COUNT; i++)
        sum += (weights ? (double)weights[i % COLUMNS] : 1) * ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return sum;
}

static double written_error(mica_dtype type, mica_effort effort, double gain, const float *weights) {
    quantise_rows(type, effort, gain, weights, blocks);
    decode(type, blocks, COUNT, y);
    return error_of(weights);
}

/* ---- against plain rounding */

typedef struct grid {
    mica_dtype type;
    int group, low, high; /* a symmetric grid, or 0..high between the least and the greatest */
} grid;

static const grid grids[] = {
    {MICA_Q4_0, 32, -8, 7}, {MICA_Q4_1, 32, 0, 15}, {MICA_Q5_0, 32, -16, 15}, {MICA_Q5_1, 32, 0, 31}, {MICA_Q8_0, 32, -127, 127},
    {MICA_Q2_K, 16, 0, 3}, {MICA_Q3_K, 16, -4, 3}, {MICA_Q4_K, 32, 0, 15}, {MICA_Q5_K, 32, 0, 31}, {MICA_Q6_K, 16, -32, 31},
    {MICA_IQ4_NL, 32, -8, 7}, {MICA_IQ4_XS, 32, -8, 7}, {MICA_MXFP4, 32, -3, 3},
};

/* Each group with a scale of its own, in double: the largest value on the end of the grid, the others rounded. */
static void round_plainly(const grid *g) {
    for (uint64_t i = 0; i < COUNT; i += (uint64_t)g->group) {
        double least = 0, most = 0;
        for (int k = 0; k < g->group; k++) {
            least = fmin(least, (double)x[i + k]);
            most = fmax(most, (double)x[i + k]);
        }
        double base = g->low ? 0 : least, step = g->low ? (-least > most ? least : most) / g->low : (most - least) / g->high;
        for (int k = 0; k < g->group; k++)
            y[i + k] = (float)(base + step * fmin(fmax(rint(((double)x[i + k] - base) / step), g->low), g->high));
    }
}

static void fill_gauss(void) {
    for (uint64_t i = 0; i < COUNT; i++)
        x[i] = (float)(0.02 * gauss());
    for (uint64_t c = 0; c < COLUMNS; c++)
        importance[c] = (float)exp(gauss());
}

static void beats_plain_rounding_and_effort_pays(void **state) {
    (void)state;
    fill_gauss();
    for (size_t i = 0; i < sizeof grids / sizeof *grids; i++)
        for (int weighted = 0; weighted < 2; weighted++) {
            const float *weights = weighted ? importance : NULL;
            mica_dtype type = grids[i].type;
            round_plainly(&grids[i]);
            double plain = error_of(weights), fast = written_error(type, MICA_EFFORT_FAST, 0, weights);
            double normal = written_error(type, MICA_EFFORT_DEFAULT, 0, weights), most = written_error(type, MICA_EFFORT_MAX, 0, weights);
            double corrected = written_error(type, MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, weights);
            if (!(fast < 1.002 * plain && normal < 0.99 * plain && normal <= fast && most <= normal))
                fail_msg("%s%s: plain 1, fast %g, default %g, max %g", mica_dtype_name(type), weighted ? " with importance" : "",
                         fast / plain, normal / plain, most / plain);
            assert_true(corrected < plain);
        }
}

/* The weighted error goes down where there is importance to heed. */
static void heeds_importance(void **state) {
    (void)state;
    fill_gauss();
    EACH_TYPE(type) {
        double with = written_error(type, MICA_EFFORT_DEFAULT, 0, importance), factor = type == MICA_MXFP4 ? 0.999 : 0.97;
        quantise_rows(type, MICA_EFFORT_DEFAULT, 0, NULL, blocks);
        decode(type, blocks, COUNT, y);
        if (!(with < factor * error_of(importance)))
            fail_msg("%s: %g of the error without", mica_dtype_name(type), with / error_of(importance));
    }
}

/* Least squares shrinks: <x, y> < <x, x>. At full gain it does not; in between in between. */
static void gain_undoes_shrinkage(void **state) {
    (void)state;
    fill_gauss();
    static const mica_dtype types[] = {MICA_Q2_K, MICA_Q3_K, MICA_Q4_K, MICA_Q4_0, MICA_Q4_1, MICA_IQ4_XS};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        double missing[3];
        for (int k = 0; k < 3; k++) {
            double xx = 0, xy = 0;
            written_error(types[i], MICA_EFFORT_DEFAULT, k / 2.0, NULL);
            for (uint64_t n = 0; n < COUNT; n++) {
                xx += (double)x[n] * (double)x[n];
                xy += (double)x[n] * (double)y[n];
            }
            missing[k] = 1 - xy / xx;
        }
        assert_true(missing[0] > 2e-3);
        assert_true(missing[1] < 0.7 * missing[0] && missing[1] > 0.3 * missing[0]);
        assert_true(fabs(missing[2]) < 0.1 * missing[0]);
    }
}

/* No other nibble would have been nearer (types whose nibble j belongs to one element, the scale fixed). */
static void levels_are_the_nearest(void **state) {
    (void)state;
    static const mica_dtype types[] = {MICA_Q4_0, MICA_Q4_1, MICA_IQ4_NL, MICA_IQ4_XS, MICA_Q4_K, MICA_MXFP4};
    fill_gauss();
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        uint32_t elements = mica_dtype_block_elements(types[i]), bytes = mica_dtype_block_bytes(types[i]), head = bytes - elements / 2;
        quantise_rows(types[i], MICA_EFFORT_DEFAULT, 0, NULL, blocks);
        for (uint32_t b = 0; b < 8; b++) {
            uint8_t block[256];
            float written[256], tried[256];
            memcpy(block, blocks + b * bytes, bytes);
            decode(types[i], block, elements, written);
            for (uint32_t n = 0; n < elements; n++)
                for (unsigned level = 1; level < 16; level++) {
                    uint8_t *code = block + head + n % (elements / 2), old = *code;
                    *code ^= (uint8_t)(n < elements / 2 ? level : level << 4);
                    decode(types[i], block, elements, tried);
                    *code = old;
                    for (uint32_t k = 0; k < elements; k++)
                        assert_true(fabsf(tried[k] - x[b * elements + k]) >= fabsf(written[k] - x[b * elements + k]) * 0.99999f);
                }
        }
    }
}

/* ---- the same bytes */

typedef enum kind {
    GAUSS,
    ZEROS,
    TINY,
    OUTLIERS,
    CONSTANT,
    NEGATIVE,
    LARGE,
    SPREAD,
    POSITIVE,
    SUBNORMAL,
    INTEGERS,
    SINGLE,
    LARGEST,
    KIND_COUNT
} kind;

static float sample(kind k, uint64_t i) {
    double g = gauss();
    switch (k) {
    case GAUSS: return (float)(0.02 * g);
    case ZEROS: return i % 3 ? 0.0f : -0.0f;
    case TINY: return (float)(1e-7 * g);
    case OUTLIERS: return uniform() < 1.0 / 32 ? (float)g : 0.0f;
    case CONSTANT: return 0.01f;
    case NEGATIVE: return (float)(-0.01 - 1e-4 * fabs(g));
    case LARGE: return (float)(100 * g);
    case SPREAD: return (float)fmin(exp(3 * g), 60000);
    case POSITIVE: return (float)fabs(g);
    case SUBNORMAL: return (float)(1e-40 * g);
    case INTEGERS: return (float)rint(4 * g);
    case SINGLE: return i % 256 == 77 ? 0.5f : 0.0f;
    case LARGEST: return g < 0 ? -65504.0f : 65504.0f;
    default: return 0;
    }
}

static void instruction_sets_write_the_same_bytes(void **state) {
    (void)state;
    for (kind k = 0; k < KIND_COUNT; k++) {
        for (uint64_t i = 0; i < COUNT; i++)
            x[i] = sample(k, i);
        for (uint64_t c = 0; c < COLUMNS; c++)
            importance[c] = c % 50 == 0 || c / 32 == 3 ? 0 : (float)exp(2 * cos((double)c * 12.9898));
        EACH_TYPE(type)
            for (int effort = 0; effort < MICA_EFFORT_COUNT; effort++)
                for (int weighted = 0; weighted < 2; weighted++) {
                    mica_cpu_select(MICA_CPU_PORTABLE);
                    quantise_rows(type, (mica_effort)effort, MICA_QUANTISE_GAIN, weighted ? importance : NULL, blocks);
                    decode(type, blocks, COUNT, y);
                    for (uint64_t i = 0; i < COUNT; i++)
                        assert_true(isfinite(y[i]) && fabsf(y[i]) <= 1.6f * 65504);
                    for (mica_cpu cpu = MICA_CPU_AVX2; cpu <= mica_cpu_detected(); cpu++) {
                        mica_cpu_select(cpu);
                        memset(others, 0xaa, bytes_of(type, COUNT));
                        quantise_rows(type, (mica_effort)effort, MICA_QUANTISE_GAIN, weighted ? importance : NULL, others);
                        if (memcmp(blocks, others, bytes_of(type, COUNT)) != 0)
                            fail_msg("%s, effort %d, importance %d, input %d: %s differs", mica_dtype_name(type), effort, weighted, (int)k,
                                     mica_cpu_name(cpu));
                    }
                }
    }
    mica_cpu_select(mica_cpu_detected());
}

/* Rows together or one by one, strides, an output of any alignment; and nothing is written beyond the last block. */
static void rows_do_not_mind_each_other(void **state) {
    (void)state;
    fill_gauss();
    EACH_TYPE(type) {
        uint64_t row_bytes = bytes_of(type, COLUMNS);
        mica_quantise_options options = {MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, importance};
        quantise_rows(type, MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, importance, blocks);
        memset(others, 0x55, ROWS * row_bytes + 2);
        for (uint64_t row = 0; row < ROWS; row++)
            assert_int_equal(mica_quantise_rows(type, x + row * COLUMNS, 0, 1, COLUMNS, &options, others + 1 + row * row_bytes, NULL),
                             MICA_OK);
        assert_memory_equal(others + 1, blocks, ROWS * row_bytes);
        assert_int_equal(others[0], 0x55);
        assert_int_equal(others[ROWS * row_bytes + 1], 0x55);
        assert_int_equal(mica_quantise_rows(type, x, 2 * COLUMNS, ROWS / 2, COLUMNS, &options, others, NULL), MICA_OK);
        for (uint64_t row = 0; row < ROWS / 2; row++)
            assert_memory_equal(others + row * row_bytes, blocks + 2 * row * row_bytes, row_bytes);
    }
}

/* Only the proportions of importance count, as far as float32 goes: powers of two change no bit. All zero is none. */
static void importance_is_relative(void **state) {
    (void)state;
    fill_gauss();
    float scaled[COLUMNS], none[COLUMNS] = {0};
    for (uint64_t c = 0; c < COLUMNS; c++)
        scaled[c] = importance[c] * 0x1p-20f;
    EACH_TYPE(type) {
        quantise_rows(type, MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, importance, blocks);
        quantise_rows(type, MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, scaled, others);
        assert_memory_equal(blocks, others, bytes_of(type, COUNT));
        quantise_rows(type, MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, NULL, blocks);
        quantise_rows(type, MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, none, others);
        assert_memory_equal(blocks, others, bytes_of(type, COUNT));
    }
}

/* ---- exactness */

/* Values that one float16 and the type's levels make, the end of the grid among them. */
static void what_fits_stays(void **state) {
    (void)state;
    static const grid exact[] = {{MICA_Q4_0, 32, -8, 7}, {MICA_Q5_0, 32, -16, 15}, {MICA_Q8_0, 32, -127, 127}, {MICA_Q4_1, 32, 0, 15},
                                 {MICA_Q5_1, 32, 0, 31}};
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        const grid *g = &exact[i];
        for (uint64_t at = 0; at < COUNT; at += 32) {
            float scale = ldexpf((float)(1024 + (int)(1024 * uniform())), -20),
                  base = g->low ? 0 : ldexpf((float)(int)(400 * gauss()), -14);
            for (int k = 0; k < 32; k++)
                x[at + k] = scale * (float)(g->low + (int)(uniform() * (g->high - g->low + 1)));
            x[at] = scale * (float)g->low;
            x[at + 1] = scale * (float)g->high;
            for (int k = 0; k < 32; k++)
                x[at + k] += base;
        }
        for (int effort = g->type == MICA_Q8_0 ? MICA_EFFORT_FAST : MICA_EFFORT_DEFAULT; effort < MICA_EFFORT_COUNT; effort++) {
            double error = written_error(g->type, (mica_effort)effort, MICA_QUANTISE_GAIN, NULL);
            if (error != 0)
                fail_msg("%s, effort %d: squared error %g", mica_dtype_name(g->type), effort, error);
        }
    }
    static const float e2m1[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    for (uint64_t at = 0; at < COUNT; at += 32) {
        int exponent = (int)(uniform() * 250) - 125;
        for (int k = 0; k < 32; k++)
            x[at + k] = ldexpf(e2m1[(int)(uniform() * 8)], exponent) * (uniform() < 0.5 ? -1.0f : 1.0f);
    }
    for (int effort = 0; effort < MICA_EFFORT_COUNT; effort++)
        assert_true(written_error(MICA_MXFP4, (mica_effort)effort, MICA_QUANTISE_GAIN, NULL) == 0);
}

/* ---- refusals */

static void refuses(mica_dtype type, uint64_t columns, mica_quantise_options options, mica_status expected, const char *text) {
    mica_error error = {0};
    mica_status status = mica_quantise_rows(type, x, COLUMNS, 2, columns, &options, blocks, &error);
    if (status != expected || !strstr(error.message, text))
        fail_msg("expected %d and \"%s\", got %d and \"%s\"", (int)expected, text, (int)status, error.message);
}

static void bad_input_is_refused(void **state) {
    (void)state;
    const mica_quantise_options plain = {MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, NULL},
                                weighted = {MICA_EFFORT_DEFAULT, MICA_QUANTISE_GAIN, importance};
    fill_gauss();
    EACH_TYPE(type) {
        for (int k = 0; k < 3; k++) {
            x[COLUMNS + 700] = k == 0 ? NAN : k == 1 ? INFINITY : -INFINITY;
            refuses(type, COLUMNS, plain, MICA_BAD_INPUT, "row 1, column 700: ");
        }
        x[COLUMNS + 700] = -65536;
        if (type != MICA_MXFP4)
            refuses(type, COLUMNS, plain, MICA_BAD_INPUT, "row 1, column 700: -65536 is beyond 65504");
        x[COLUMNS + 700] = 0;
        refuses(type, 48, plain, MICA_USAGE, "rows of 48 columns");
        importance[5] = -1;
        refuses(type, COLUMNS, weighted, MICA_BAD_INPUT, "column 5: an importance of -1");
        importance[5] = NAN;
        refuses(type, COLUMNS, weighted, MICA_BAD_INPUT, "column 5");
        importance[5] = INFINITY;
        refuses(type, COLUMNS, weighted, MICA_BAD_INPUT, "column 5");
        importance[5] = 1;
        assert_int_equal(mica_quantise_rows(type, x, COLUMNS, 0, COLUMNS, &plain, blocks, NULL), MICA_OK);
        assert_int_equal(mica_quantise_rows(type, x, COLUMNS, ROWS, 0, &plain, blocks, NULL), MICA_OK);
    }
    refuses(MICA_F16, COLUMNS, plain, MICA_USAGE, "F16 is no type to quantise to");
    refuses(MICA_Q4_K, 32 * 9, plain, MICA_USAGE, "Q4_K's blocks of 256");
    refuses(MICA_Q4_K, COLUMNS, (mica_quantise_options){MICA_EFFORT_COUNT, 0, NULL}, MICA_USAGE, "effort 3");
    refuses(MICA_Q4_K, COLUMNS, (mica_quantise_options){MICA_EFFORT_FAST, 1.5, NULL}, MICA_USAGE, "1.5");
    refuses(MICA_Q4_K, COLUMNS, (mica_quantise_options){MICA_EFFORT_FAST, (double)NAN, NULL}, MICA_USAGE, "nan");
}

static void efforts_have_names(void **state) {
    (void)state;
    mica_effort effort;
    for (int i = 0; i < MICA_EFFORT_COUNT; i++) {
        assert_true(mica_effort_parse(mica_effort_name((mica_effort)i), &effort));
        assert_int_equal(effort, i);
    }
    assert_false(mica_effort_parse("Max", &effort));
}

static int set_up(void **state) {
    (void)state;
    x = malloc(COUNT * sizeof *x);
    y = malloc(COUNT * sizeof *y);
    importance = malloc(COLUMNS * sizeof *importance);
    blocks = malloc(2 * COUNT);
    others = malloc(2 * COUNT);
    return !x || !y || !importance || !blocks || !others;
}

static int tear_down(void **state) {
    (void)state;
    free(x);
    free(y);
    free(importance);
    free(blocks);
    free(others);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(beats_plain_rounding_and_effort_pays), cmocka_unit_test(heeds_importance),
        cmocka_unit_test(gain_undoes_shrinkage),                cmocka_unit_test(levels_are_the_nearest),
        cmocka_unit_test(instruction_sets_write_the_same_bytes), cmocka_unit_test(rows_do_not_mind_each_other),
        cmocka_unit_test(importance_is_relative),               cmocka_unit_test(what_fits_stays),
        cmocka_unit_test(bad_input_is_refused),                 cmocka_unit_test(efforts_have_names),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
