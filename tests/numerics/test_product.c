/* Judges numerics/product*.c: every encoding, precision, number of tokens and instruction set against float64 sums of mica_matrix_decode's
 * values (which test_decode judges bit by bit). The bounds are derived below, not tuned; results must not depend on how the work is split. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include <math.h>

#include "base/cpu.h"
#include "numerics/product.h"

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1du;
}

static uint64_t random_below(uint64_t limit) {
    return (random_u64() >> 11) % limit;
}

static float random_gauss(void) {
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)(random_u64() >> 40) * 0x1p-24f;
    return sum - 6;
}

/* `bytes` that end where an unmapped page begins, and start at no alignment unless their number gives one. */
typedef struct buffer {
    uint8_t *mapping, *bytes;
    size_t mapped;
} buffer;

static buffer buffer_of(uint64_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = ((size_t)bytes + page - 1) / page * page;
    buffer b = {mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), NULL, size + page};
    assert_ptr_not_equal(b.mapping, MAP_FAILED);
    assert_int_equal(mprotect(b.mapping + size, page, PROT_NONE), 0);
    b.bytes = b.mapping + size - bytes;
    return b;
}

static void release(buffer b) {
    munmap(b.mapping, b.mapped);
}

/* ---- the encodings */

typedef struct kind {
    mica_encoding encoding;
    mica_dtype dtype, scale_dtype;
    uint64_t block_rows, block_columns;
    int scale, minimum; /* of a block type: where its F16 scale is, and that of its minima (-1: none) */
} kind;

static const kind kinds[] = {
    {MICA_ENCODING_PLAIN, MICA_F32, 0, 0, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_F16, 0, 0, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_BF16, 0, 0, 0, 0, 0},
    {MICA_ENCODING_PLAIN, MICA_F64, 0, 0, 0, 0, 0},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_F32, 128, 128, 0, 0},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_F8_E8M0, 128, 128, 0, 0},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_BF16, 2, 64, 0, 0},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_F32, 3, 7, 0, 0},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E5M2, MICA_F32, 128, 128, 0, 0},
    {MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_F32, 1, 1000000, 0, 0},
    {MICA_ENCODING_MXFP4, MICA_I8, MICA_F8_E8M0, 1, 32, 0, 0},
    {MICA_ENCODING_MXFP4, MICA_I8, MICA_F8_E8M0, 2, 5, 0, 0},
    {MICA_ENCODING_INT4_GROUP, MICA_I32, MICA_BF16, 1, 32, 0, 0},
    {MICA_ENCODING_INT4_GROUP, MICA_I32, MICA_F16, 1, 32, 0, 0},
    {MICA_ENCODING_INT4_GROUP, MICA_I32, MICA_F32, 1, 32, 0, 0},
    {MICA_ENCODING_INT4_GROUP, MICA_I32, MICA_BF16, 1, 128, 0, 0},
    {MICA_ENCODING_INT4_GROUP, MICA_I32, MICA_F32, 1, 3, 0, 0},
    {MICA_ENCODING_BLOCK, MICA_Q4_0, 0, 0, 0, 0, -1},
    {MICA_ENCODING_BLOCK, MICA_Q4_1, 0, 0, 0, 0, 2},
    {MICA_ENCODING_BLOCK, MICA_Q5_0, 0, 0, 0, 0, -1},
    {MICA_ENCODING_BLOCK, MICA_Q5_1, 0, 0, 0, 0, 2},
    {MICA_ENCODING_BLOCK, MICA_Q8_0, 0, 0, 0, 0, -1},
    {MICA_ENCODING_BLOCK, MICA_Q2_K, 0, 0, 0, 80, 82},
    {MICA_ENCODING_BLOCK, MICA_Q3_K, 0, 0, 0, 108, -1},
    {MICA_ENCODING_BLOCK, MICA_Q4_K, 0, 0, 0, 0, 2},
    {MICA_ENCODING_BLOCK, MICA_Q5_K, 0, 0, 0, 0, 2},
    {MICA_ENCODING_BLOCK, MICA_Q6_K, 0, 0, 0, 208, -1},
    {MICA_ENCODING_BLOCK, MICA_IQ4_NL, 0, 0, 0, 0, -1},
    {MICA_ENCODING_BLOCK, MICA_IQ4_XS, 0, 0, 0, 0, -1},
    {MICA_ENCODING_BLOCK, MICA_MXFP4, 0, 0, 0, -1, -1},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static const char *name_of(const kind *k) {
    static char text[64];
    snprintf(text, sizeof text, "%s %s %llux%llu", mica_encoding_name(k->encoding), mica_dtype_name(k->dtype), (unsigned long long)k->block_rows,
             (unsigned long long)k->block_columns);
    return text;
}

/* Values as weights have them: finite, and spread over a few powers of two. */
static void fill_floats(mica_dtype dtype, uint8_t *bytes, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        float value = random_gauss();
        double wide = (double)value;
        uint16_t half = (uint16_t)((random_u64() & 0x83ff) | (8 + random_below(6)) << 10); /* 2^-7 … 2^-2 */
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        uint16_t upper = (uint16_t)(bits >> 16);
        switch (dtype) {
        case MICA_F64: memcpy(bytes + 8 * i, &wide, 8); break;
        case MICA_F32: memcpy(bytes + 4 * i, &value, 4); break;
        case MICA_BF16: memcpy(bytes + 2 * i, &upper, 2); break;
        case MICA_F16: memcpy(bytes + 2 * i, &half, 2); break;
        case MICA_F8_E8M0: bytes[i] = (uint8_t)(120 + random_below(6)); break;
        default: /* fp8: no NaN, no infinity */
            do
                bytes[i] = (uint8_t)random_u64();
            while ((bytes[i] & 0x7f) >= (dtype == MICA_F8_E5M2 ? 0x7c : 0x7f));
        }
    }
}

typedef struct sample {
    mica_matrix matrix;
    buffer codes, scales;
    uint64_t bytes;
} sample;

static sample sample_of(const kind *k, uint64_t rows, uint64_t columns) {
    sample s = {.matrix = {.encoding = k->encoding, .dtype = k->dtype, .rows = rows, .columns = columns, .scale_dtype = k->scale_dtype,
                           .block_rows = k->block_rows, .block_columns = k->block_columns}};
    s.bytes = rows * mica_matrix_row_bytes(&s.matrix);
    s.codes = buffer_of(s.bytes);
    s.scales = (buffer){NULL, NULL, 0};
    for (uint64_t i = 0; i < s.bytes; i++)
        s.codes.bytes[i] = (uint8_t)(random_u64() >> 32);
    if (k->encoding == MICA_ENCODING_PLAIN || k->encoding == MICA_ENCODING_FP8_BLOCK)
        fill_floats(k->dtype, s.codes.bytes, rows * columns);
    if (k->encoding == MICA_ENCODING_BLOCK) {
        uint32_t block = mica_dtype_block_bytes(k->dtype);
        for (uint64_t i = 0; i < s.bytes; i += block) {
            if (k->scale >= 0)
                fill_floats(MICA_F16, s.codes.bytes + i + k->scale, 1);
            else
                fill_floats(MICA_F8_E8M0, s.codes.bytes + i, 1);
            if (k->minimum > 0)
                fill_floats(MICA_F16, s.codes.bytes + i + k->minimum, 1);
        }
    } else if (k->encoding != MICA_ENCODING_PLAIN) {
        uint64_t scales = ((rows + k->block_rows - 1) / k->block_rows) * ((columns + k->block_columns - 1) / k->block_columns);
        s.scales = buffer_of(scales * mica_dtype_bytes(k->scale_dtype));
        fill_floats(k->scale_dtype, s.scales.bytes, scales);
    }
    s.matrix.codes = s.codes.bytes;
    s.matrix.scales = s.scales.bytes;
    return s;
}

static void release_sample(sample s) {
    release(s.codes);
    if (s.scales.mapping)
        release(s.scales);
}

/* The weight in float64, and for each element the sum of magnitudes of what it is made of: |scale code| + |minimum|. */
static void expand(const kind *k, const sample *s, double *weight, double *amplitude) {
    uint64_t rows = s->matrix.rows, columns = s->matrix.columns, count = rows * columns;
    float *values = malloc(count * sizeof *values);
    assert_non_null(values);
    mica_matrix_decode(&s->matrix, 0, 0, rows, values, columns);
    for (uint64_t i = 0; i < count; i++) {
        weight[i] = (double)values[i];
        amplitude[i] = fabs(weight[i]);
    }
    if (k->encoding == MICA_ENCODING_BLOCK && k->minimum > 0) { /* without its minima; then these alone */
        uint8_t *codes = malloc(s->bytes);
        assert_non_null(codes);
        mica_matrix part = s->matrix;
        part.codes = codes;
        memset(amplitude, 0, count * sizeof *amplitude);
        for (int which = 0; which < 2; which++) {
            memcpy(codes, s->codes.bytes, s->bytes);
            for (uint64_t i = 0; i < s->bytes; i += mica_dtype_block_bytes(k->dtype))
                memset(codes + i + (which ? k->scale : k->minimum), 0, 2);
            mica_matrix_decode(&part, 0, 0, rows, values, columns);
            for (uint64_t i = 0; i < count; i++)
                amplitude[i] += fabs((double)values[i]);
        }
        free(codes);
    }
    free(values);
}

/* ---- operands */

typedef struct activations {
    float *values;
    void *storage;
    mica_operand operand;
} activations;

static void *storage_of(uint64_t bytes) {
    void *storage = NULL;
    assert_int_equal(posix_memalign(&storage, 64, bytes ? bytes : 64), 0);
    memset(storage, 0xff, bytes); /* nothing may be taken for granted */
    return storage;
}

static activations activations_of(mica_precision precision, const float *values, uint64_t tokens, uint64_t columns) {
    activations a = {malloc(tokens * (columns + 3) * sizeof(float)), NULL, {0}};
    assert_non_null(a.values);
    for (uint64_t t = 0; t < tokens; t++)
        memcpy(a.values + t * (columns + 3), values + t * columns, columns * sizeof *values);
    a.storage = storage_of(mica_operand_bytes(precision, tokens, columns));
    mica_operand_init(&a.operand, precision, a.values, columns + 3, tokens, columns, a.storage);
    mica_operand_prepare(&a.operand, 0, tokens / 2);
    mica_operand_prepare(&a.operand, tokens / 2, tokens - tokens / 2);
    return a;
}

static void release_activations(activations a) {
    free(a.values);
    free(a.storage);
}

/* One value in a hundred is an outlier, as in real activations. */
static float *random_values(uint64_t count) {
    float *values = malloc(count * sizeof *values);
    assert_non_null(values);
    for (uint64_t i = 0; i < count; i++)
        values[i] = random_gauss() * (random_below(100) ? 1 : 8);
    return values;
}

/* ---- bounds, with u = 2^-24, A = sum |amplitude x|, S = sum |w x|
 * EXACT: a value is decoded with two roundings at most, and 16 lanes or more add (columns / 16 + 6) products: (columns / 16 + 16) u A.
 * int16: besides, each activation is off by half a step, its 256 columns' largest / 32512 / 2 (0.51 with the roundings of that itself).
 * bf16:  weight and activation are off by 2^-8 each: (2^-7 + 2^-16) S besides; a pair's product is added in two roundings: twice the lanes.
 * And 1e-30, since subnormal numbers may be flushed.  */
typedef enum method { FLOAT32, INT16, BF16, METHODS } method;

typedef struct truth {
    double value, bounds[METHODS];
} truth;

static truth truth_of(const double *weight, const double *amplitude, const float *x, uint64_t columns) {
    truth t = {0};
    double whole = 0, products = 0, steps = 0, largest = 0, u = 0x1p-24;
    for (uint64_t c = 0; c < columns; c++) {
        if (c % 256 == 0) {
            largest = 0;
            for (uint64_t i = c; i < columns && i < c + 256; i++)
                largest = fmax(largest, fabs((double)x[i]));
        }
        whole += amplitude[c] * fabs((double)x[c]);
        t.value += weight[c] * (double)x[c];
        products += fabs(weight[c] * (double)x[c]);
        steps += amplitude[c] * largest / 32512;
    }
    t.bounds[FLOAT32] = ((double)columns / 16 + 16) * u * whole + 1e-30;
    t.bounds[INT16] = ((double)columns / 16 + 16) * u * (whole + steps) + 0.51 * steps + 1e-30;
    t.bounds[BF16] = ((double)columns / 8 + 32) * u * whole + (0x1p-7 + 0x1p-16) * products + 1e-30;
    return t;
}

static truth *truths_of(const kind *k, const sample *s, const float *values, uint64_t tokens) {
    uint64_t rows = s->matrix.rows, columns = s->matrix.columns;
    double *weight = malloc(rows * columns * sizeof *weight), *amplitude = malloc(rows * columns * sizeof *amplitude);
    truth *truths = malloc(tokens * rows * sizeof *truths);
    assert_true(weight && amplitude && truths);
    expand(k, s, weight, amplitude);
    for (uint64_t t = 0; t < tokens; t++)
        for (uint64_t r = 0; r < rows; r++)
            truths[t * rows + r] = truth_of(weight + r * columns, amplitude + r * columns, values + t * columns, columns);
    free(weight);
    free(amplitude);
    return truths;
}

static method method_of(const mica_matrix *matrix, mica_precision precision, uint64_t tokens) {
    const char *name = mica_product_method(matrix, precision, tokens);
    return strncmp(name, "int16", 5) == 0 ? INT16 : strncmp(name, "bf16", 4) == 0 ? BF16 : FLOAT32;
}

/* Each set, AVX2 also with AVX-VNNI, AVX-512 also with bf16 and with AMX. */
static const struct {
    mica_cpu cpu;
    bool vnni, bf16, amx;
} sets[] = {{MICA_CPU_PORTABLE, false, false, false}, {MICA_CPU_AVX2, false, false, false},  {MICA_CPU_AVX2, true, false, false},
            {MICA_CPU_AVX512, false, false, false},   {MICA_CPU_AVX512, false, true, false}, {MICA_CPU_AVX512, false, false, true}};
enum { SETS = sizeof sets / sizeof *sets };

static bool select_kernels(int which) {
    mica_cpu_allow_vnni(sets[which].vnni);
    mica_cpu_allow_bf16(sets[which].bf16);
    mica_cpu_allow_amx(sets[which].amx);
    mica_cpu_select(sets[which].cpu);
    return mica_cpu_current() == sets[which].cpu && mica_cpu_has_vnni() == sets[which].vnni && mica_cpu_has_bf16() == sets[which].bf16
           && mica_cpu_has_amx() == sets[which].amx;
}

#define EACH_CPU(cpu) for (int cpu = 0; cpu < SETS; cpu++) if (select_kernels(cpu))

static void *scratch;
enum { MOST_TOKENS = 66 };
static const uint64_t token_counts[] = {1, 2, 3, 4, 5, 6, 7, 16, 17, 41, MOST_TOKENS};
enum { TOKEN_COUNTS = sizeof token_counts / sizeof *token_counts };

static void check(const kind *k, const sample *s, const truth *truths /* [tokens][rows] */, const float *values, mica_precision precision,
                  uint64_t tokens) {
    uint64_t rows = s->matrix.rows, columns = s->matrix.columns, stride = rows + 5;
    activations a = activations_of(precision, values, tokens, columns);
    buffer out = buffer_of(((tokens - 1) * stride + rows) * sizeof(float));
    float *got = (float *)(void *)out.bytes;
    for (uint64_t i = 0; i < (tokens - 1) * stride + rows; i++)
        got[i] = -12345.5f;
    mica_product(&s->matrix, 0, rows, &a.operand, got, stride, scratch);
    method m = method_of(&s->matrix, precision, tokens);
    for (uint64_t t = 0; t < tokens; t++) {
        for (uint64_t r = 0; r < rows; r++) {
            double expected = truths[t * rows + r].value, limit = truths[t * rows + r].bounds[m];
            if (!(fabs((double)got[t * stride + r] - expected) <= limit))
                fail_msg("%s %llu x %llu, %llu tokens, %s by %s under %s: [%llu][%llu] expected %.9g, got %.9g, bound %.3g", name_of(k),
                         (unsigned long long)rows, (unsigned long long)columns, (unsigned long long)tokens, precision ? "fast" : "exact",
                         mica_product_method(&s->matrix, precision, tokens), mica_cpu_name(mica_cpu_current()), (unsigned long long)t,
                         (unsigned long long)r, expected, (double)got[t * stride + r], limit);
        }
        for (uint64_t r = rows; r < stride && t + 1 < tokens; r++)
            assert_true(got[t * stride + r] == -12345.5f); /* the gap is the caller's */
    }
    release(out);
    release_activations(a);
}

static uint64_t columns_for(const kind *k, uint64_t columns) {
    uint64_t elements = mica_dtype_block_elements(k->dtype);
    return k->encoding == MICA_ENCODING_BLOCK ? (columns + elements - 1) / elements * elements : columns;
}

static void test_bounds(void **state) {
    (void)state;
    static const uint64_t shapes[][2] = {{1, 1}, {3, 5}, {7, 33}, {5, 97}, {6, 256}, {9, 1090}, {69, 257}, {130, 64}, {38, 128}, {5, 4200}, {301, 300}};
    for (int i = 0; i < KINDS; i++) {
        for (size_t j = 0; j < sizeof shapes / sizeof *shapes; j++) {
            uint64_t rows = shapes[j][0], columns = columns_for(&kinds[i], shapes[j][1]);
            sample s = sample_of(&kinds[i], rows, columns);
            uint64_t most = 600000 / (rows * columns); /* the large shapes with few tokens only */
            most = most < MOST_TOKENS ? most : MOST_TOKENS;
            float *values = random_values(MOST_TOKENS * columns);
            truth *truths = truths_of(&kinds[i], &s, values, most);
            for (int t = 0; t < TOKEN_COUNTS && token_counts[t] <= most; t++) {
                EACH_CPU(cpu) {
                    check(&kinds[i], &s, truths, values, MICA_PRECISION_EXACT, token_counts[t]);
                    check(&kinds[i], &s, truths, values, MICA_PRECISION_FAST, token_counts[t]);
                }
            }
            free(values);
            free(truths);
            release_sample(s);
        }
    }
}

/* ---- the same bits however the work is split */

static void same_bits(const float *a, const float *b, uint64_t count, const kind *k, const char *what) {
    if (memcmp(a, b, count * sizeof *a) != 0)
        fail_msg("%s under %s: results depend on %s", name_of(k), mica_cpu_name(mica_cpu_current()), what);
}

static void check_splits(const kind *k, mica_precision precision, uint64_t rows, uint64_t wanted, uint64_t tokens, uint64_t fewer) {
    uint64_t columns = columns_for(k, wanted);
    sample s = sample_of(k, rows, columns);
    float *values = random_values(tokens * columns), *whole = malloc(tokens * rows * sizeof *whole), *split = malloc(tokens * rows * sizeof *split);
    float *other = malloc(tokens * rows * sizeof *other);
    assert_true(whole && split && other);
    activations a = activations_of(precision, values, tokens, columns);
    mica_product(&s.matrix, 0, rows, &a.operand, whole, rows, scratch);
    for (uint64_t row = 0, count; row < rows; row += count) {
        count = 1 + random_below(rows - row);
        mica_product(&s.matrix, row, count, &a.operand, split + row, rows, scratch);
    }
    same_bits(whole, split, tokens * rows, k, "the split of rows");

    uint32_t chosen[64], others[64]; /* each second token of the one is the next token of the other */
    for (uint64_t t = 0; t < fewer; t++)
        chosen[t] = (uint32_t)random_below(tokens);
    for (uint64_t t = 0; t < fewer; t++)
        others[t] = t % 2 ? (uint32_t)random_below(tokens) : chosen[(t + 1) % fewer];
    mica_operand some = mica_operand_select(&a.operand, chosen, fewer), more = mica_operand_select(&a.operand, others, fewer);
    mica_product(&s.matrix, 0, rows, &some, split, rows, scratch);
    mica_product(&s.matrix, 0, rows, &more, other, rows, scratch);
    for (uint64_t t = 0; t < fewer; t += 2)
        same_bits(split + (t + 1) % fewer * rows, other + t * rows, rows, k, "the other tokens of a selection");
    if (strcmp(mica_product_method(&s.matrix, precision, fewer), mica_product_method(&s.matrix, precision, tokens)) == 0)
        for (uint64_t t = 0; t < fewer; t++)
            same_bits(whole + chosen[t] * rows, split + t * rows, rows, k, "the other tokens");
    release_activations(a);
    free(values);
    free(whole);
    free(split);
    free(other);
    release_sample(s);
}

static void test_splits(void **state) {
    (void)state;
    EACH_CPU(cpu) {
        for (int i = 0; i < KINDS; i++) {
            for (int precision = 0; precision < 2; precision++) {
                check_splits(&kinds[i], (mica_precision)precision, 301, 2600, 1, 1); /* so many that one token takes rows in twos */
                check_splits(&kinds[i], (mica_precision)precision, 77, 2600, MICA_PRODUCT_FEW, 1 + random_below(MICA_PRODUCT_FEW));
                check_splits(&kinds[i], (mica_precision)precision, 79, 128, MICA_PRODUCT_FEW, 1); /* a head's absorbed keys */
                check_splits(&kinds[i], (mica_precision)precision, 77, 2600, MICA_PRODUCT_SOME, 1 + random_below(MICA_PRODUCT_SOME));
                check_splits(&kinds[i], (mica_precision)precision, 77, 2600, 30, 1 + random_below(30));
                check_splits(&kinds[i], (mica_precision)precision, 77, 2600, MICA_PRODUCT_SOME + 1, 1 + random_below(MICA_PRODUCT_FEW)); /* no longer prepared for few */
            }
        }
    }
}

/* AVX-VNNI adds the same integers as AVX2. */
static void test_vnni(void **state) {
    (void)state;
    enum { ROWS = 301, COLUMNS = 768, TOKENS = 7 };
    if (!select_kernels(2))
        skip();
    for (int i = 0; i < KINDS; i++) {
        sample s = sample_of(&kinds[i], ROWS, COLUMNS);
        float *values = random_values(TOKENS * COLUMNS), *out[2];
        for (uint64_t tokens = 1; tokens <= TOKENS; tokens += 3) {
            for (int vnni = 0; vnni < 2; vnni++) {
                assert_true(select_kernels(1 + vnni));
                activations a = activations_of(MICA_PRECISION_FAST, values, tokens, COLUMNS);
                out[vnni] = malloc(tokens * ROWS * sizeof *out[vnni]);
                assert_non_null(out[vnni]);
                mica_product(&s.matrix, 0, ROWS, &a.operand, out[vnni], ROWS, scratch);
                release_activations(a);
            }
            same_bits(out[0], out[1], tokens * ROWS, &kinds[i], "AVX-VNNI");
            free(out[0]);
            free(out[1]);
        }
        free(values);
        release_sample(s);
    }
}

/* ---- what is not finite stays so, and does not spread to other rows or tokens */

static void test_not_finite(void **state) {
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    enum { ROWS = 5, TOKENS = 20 };
    EACH_CPU(cpu) {
        for (int i = 0; i < KINDS; i++) {
            for (int which = 0; which < 12; which++) {
                mica_precision precision = which & 1 ? MICA_PRECISION_FAST : MICA_PRECISION_EXACT;
                uint64_t columns = columns_for(&kinds[i], 300), tokens = which & 2 ? TOKENS : 3;
                sample s = sample_of(&kinds[i], ROWS, columns);
                float *values = random_values(TOKENS * columns), out[TOKENS][ROWS];
                values[2 * columns + random_below(columns)] = odd[which / 4];
                activations a = activations_of(precision, values, tokens, columns);
                mica_product(&s.matrix, 0, ROWS, &a.operand, out[0], ROWS, scratch);
                for (uint64_t t = 0; t < tokens; t++)
                    for (int r = 0; r < ROWS; r++) {
                        if (!!isfinite(out[t][r]) != (t != 2))
                            fail_msg("%s under %s by %s: with an activation of %g in token 2, token %llu gives %g", name_of(&kinds[i]),
                                     mica_cpu_name(mica_cpu_current()), mica_product_method(&s.matrix, precision, tokens), (double)odd[which / 4],
                                     (unsigned long long)t, (double)out[t][r]);
                    }
                free(values);
                release_activations(a);
                release_sample(s);
            }
        }
    }
}

/* A NaN where the encoding has one: in the codes, or in a scale. */
static void test_not_finite_weights(void **state) {
    (void)state;
    enum { ROWS = 5, COLUMNS = 512, TOKENS = 20 };
    EACH_CPU(cpu) {
        for (int i = 0; i < KINDS; i++) {
            for (int which = 0; which < 4; which++) {
                const kind *k = &kinds[i];
                sample s = sample_of(k, ROWS, COLUMNS);
                mica_precision precision = which & 1 ? MICA_PRECISION_FAST : MICA_PRECISION_EXACT;
                uint64_t tokens = which & 2 ? TOKENS : 3, row = 2, column = random_below(COLUMNS), at = row * COLUMNS + column;
                uint32_t block = mica_dtype_block_bytes(k->dtype);
                if (k->encoding == MICA_ENCODING_PLAIN || k->encoding == MICA_ENCODING_FP8_BLOCK)
                    memset(s.codes.bytes + at * mica_dtype_bytes(k->dtype), 0x7f, mica_dtype_bytes(k->dtype));
                if (k->dtype == MICA_F32 || k->dtype == MICA_F64 || k->dtype == MICA_BF16)
                    s.codes.bytes[(at + 1) * mica_dtype_bytes(k->dtype) - 2] = 0xff;
                if (k->encoding == MICA_ENCODING_BLOCK)
                    memset(s.codes.bytes + row * mica_matrix_row_bytes(&s.matrix) + (k->scale >= 0 ? k->scale : 0), 0xff, k->scale >= 0 ? 2 : 1);
                if (k->encoding == MICA_ENCODING_MXFP4 || k->encoding == MICA_ENCODING_INT4_GROUP)
                    memset(s.scales.bytes + row / k->block_rows * ((COLUMNS + k->block_columns - 1) / k->block_columns) * mica_dtype_bytes(k->scale_dtype),
                           0xff, mica_dtype_bytes(k->scale_dtype));
                (void)block;
                float *values = random_values(TOKENS * COLUMNS), out[TOKENS][ROWS];
                activations a = activations_of(precision, values, tokens, COLUMNS);
                mica_product(&s.matrix, 0, ROWS, &a.operand, out[0], ROWS, scratch);
                for (uint64_t t = 0; t < tokens; t++) {
                    for (uint64_t r = 0; r < ROWS; r++) {
                        bool odd_row = r == row || (k->block_rows == 2 && r == 3 && k->encoding == MICA_ENCODING_MXFP4);
                        if (!!isfinite(out[t][r]) == odd_row)
                            fail_msg("%s under %s by %s: a NaN in row %llu, row %llu of token %llu gives %g", name_of(k), mica_cpu_name(mica_cpu_current()),
                                     mica_product_method(&s.matrix, precision, tokens), (unsigned long long)row, (unsigned long long)r,
                                     (unsigned long long)t, (double)out[t][r]);
                    }
                }
                free(values);
                release_activations(a);
                release_sample(s);
            }
        }
    }
}

/* Storage for many tokens is enough for fewer. */
static void test_storage(void **state) {
    (void)state;
    EACH_CPU(cpu) {
        for (uint64_t tokens = 1; tokens < 40; tokens++) {
            assert_true(mica_operand_bytes(MICA_PRECISION_FAST, tokens, 300) >= mica_operand_bytes(MICA_PRECISION_FAST, tokens - 1, 300));
            assert_true(mica_operand_bytes(MICA_PRECISION_EXACT, tokens, 300) >= mica_operand_bytes(MICA_PRECISION_EXACT, tokens - 1, 300));
        }
    }
}

int main(void) {
    scratch = storage_of(MICA_PRODUCT_SCRATCH_BYTES);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_storage),
        cmocka_unit_test(test_splits),
        cmocka_unit_test(test_vnni),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_not_finite_weights),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(scratch);
    return failed;
}
