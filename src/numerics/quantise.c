/* numerics/quantise.c: checks what is to be quantised, cuts it into tiles, and calls the kernels of the processor. How hard each type is
 * searched at each effort is the table below. Judged by tests/numerics/test_quantise.c. */
#include "numerics/quantise.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "numerics/decode_kernels.h"
#include "numerics/quantise_kernels.h"

static const char *const effort_names[MICA_EFFORT_COUNT] = {
#define X(name, text) text,
    MICA_EFFORT_LIST(X)
#undef X
};

const char *mica_effort_name(mica_effort effort) {
    return (unsigned)effort < MICA_EFFORT_COUNT ? effort_names[effort] : "unknown";
}

bool mica_effort_parse(const char *text, mica_effort *effort) {
    for (int i = 0; i < MICA_EFFORT_COUNT; i++)
        if (strcmp(text, effort_names[i]) == 0) {
            *effort = (mica_effort)i;
            return true;
        }
    return false;
}

/* starts, polish, scales, branches, refits, window, minimum window; at fast, default, max. Where llama.cpp's own is a single pass (blocks
 * of 32 without importance), default takes what can be had in its time. */
#define S(...) {.starts = __VA_ARGS__}
#define SEARCHES(type, fast, normal, most) [MICA_##type - MICA_Q4_0] = {{fast, normal, most}, {fast, normal, most}}
#define SEARCHES_APART(type, fast, normal, most, weighted_fast, weighted_normal) \
    [MICA_##type - MICA_Q4_0] = {{fast, normal, most}, {weighted_fast, weighted_normal, most}}
static const mica_search searches[MICA_DTYPE_COUNT - MICA_Q4_0][2][MICA_EFFORT_COUNT] = { /* [type][has importance][effort] */
    SEARCHES_APART(Q4_0, S(4), S(12, 1), S(32, 2), S(4), S(16, 1)),
    SEARCHES_APART(Q4_1, S(2), S(4), S(32, 2), S(6, 1), S(16, 1)),
    SEARCHES_APART(Q5_0, S(4), S(12, 1), S(32, 2), S(4), S(16, 1)),
    SEARCHES_APART(Q5_1, S(2), S(5), S(32, 2), S(6, 1), S(16, 1)),
    SEARCHES(Q8_0, S(0), S(6), S(32)),
    SEARCHES(Q2_K, S(4, 1, 1, 1, 1, 0, 0), S(16, 1, 6, 1, 1, 1, 0), S(32, 1, 12, 4, 3, 2, 2)),
    SEARCHES(Q3_K, S(3, 1, 6, 1, 1, 2, 1), S(8, 0, 12, 1, 2, 4, 1), S(32, 0, 12, 3, 2, 8, 2)),
    SEARCHES(Q4_K, S(4, 2, 8, 1, 1, 0, 0), S(20, 1, 16, 1, 2, 1, 1), S(32, 1, 16, 4, 3, 2, 1)),
    SEARCHES(Q5_K, S(4, 2, 8, 1, 1, 0, 0), S(10, 1, 16, 1, 2, 3, 1), S(24, 1, 8, 4, 2, 5, 2)),
    SEARCHES(Q6_K, S(3, 1, 6, 1, 1, 2, 1), S(12, 0, 6, 1, 2, 3, 1), S(32, 0, 12, 4, 2, 12, 3)),
    SEARCHES(IQ4_NL, S(4), S(12, 1), S(32, 2)),
    SEARCHES(IQ4_XS, S(3, 1, 6, 1, 1, 2, 1), S(10, 0, 8, 1, 2, 4, 1), S(24, 1, 12, 4, 2, 4, 2)),
    SEARCHES(MXFP4, S(0), S(1), S(1, 0, 0, 0, 0, 1)),
};

static bool is_quantised(mica_dtype type) {
    return type >= MICA_Q4_0 && type < MICA_DTYPE_COUNT;
}

bool mica_quantise_fits(mica_dtype type, uint64_t columns) {
    return is_quantised(type) && columns % mica_dtype_block_elements(type) == 0;
}

static mica_status check_arguments(mica_dtype type, uint64_t columns, const mica_quantise_options *options, mica_error *error) {
    if (!is_quantised(type))
        return mica_fail(error, MICA_USAGE, "%s is no type to quantise to", mica_dtype_name(type));
    if (!mica_quantise_fits(type, columns))
        return mica_fail(error, MICA_USAGE, "rows of %llu columns are not made of %s's blocks of %u", (unsigned long long)columns,
                         mica_dtype_name(type), mica_dtype_block_elements(type));
    if ((unsigned)options->effort >= MICA_EFFORT_COUNT)
        return mica_fail(error, MICA_USAGE, "effort %d is none of fast, default, max", (int)options->effort);
    if (!(options->gain >= 0 && options->gain <= 1))
        return mica_fail(error, MICA_USAGE, "a gain correction of %g is not between 0 and 1", options->gain);
    return MICA_OK;
}

/* What makes the mean of the importance 1; 0 when there is none to heed. */
static mica_status importance_factor(const float *importance, uint64_t columns, float *factor, mica_error *error) {
    double sum = 0;
    *factor = 0;
    for (uint64_t c = 0; importance && c < columns; c++) {
        if (!(importance[c] >= 0 && importance[c] < INFINITY))
            return mica_fail(error, MICA_BAD_INPUT, "column %llu: an importance of %g is not a finite number from 0", (unsigned long long)c,
                             (double)importance[c]);
        sum += (double)importance[c];
    }
    if (sum > 0)
        *factor = (float)((double)columns / sum);
    if (!(*factor < INFINITY))
        *factor = 0;
    return MICA_OK;
}

static mica_status check_row(const mica_quantise_kernels *kernels, mica_dtype type, const float *x, uint64_t row, uint64_t columns,
                             mica_error *error) {
    float limit = type == MICA_MXFP4 ? FLT_MAX : 65504.0f;
    if (kernels->within(x, columns, limit))
        return MICA_OK;
    uint64_t c = 0;
    while (fabsf(x[c]) <= limit)
        c++;
    if (!isfinite(x[c]))
        return mica_fail(error, MICA_BAD_INPUT, "row %llu, column %llu: %g cannot be quantised", (unsigned long long)row,
                         (unsigned long long)c, (double)x[c]);
    return mica_fail(error, MICA_BAD_INPUT, "row %llu, column %llu: %g is beyond 65504, the largest float16, which the scales of %s are",
                     (unsigned long long)row, (unsigned long long)c, (double)x[c], mica_dtype_name(type));
}

/* The type's group size, blocks of a tile. */
static uint32_t group_elements(mica_dtype type) {
    return type == MICA_Q2_K || type == MICA_Q3_K || type == MICA_Q6_K ? 16 : 32;
}

/* What is still to be done. */
typedef struct job {
    const float *x, *importance; /* of the row, of its first column */
    uint64_t stride, columns, row, column, blocks;
    uint32_t elements, bytes, group, groups; /* of a block; its groups */
    uint8_t *out;
    const mica_matrix *fp8; /* NULL, or what x was decoded from */
} job;

/* Floor of the binary logarithm of the largest of 32 fp8 codes; their sign is bit 7. */
static int largest_exponent(const uint8_t *codes, int fraction_bits, int bias) {
    int largest = 0, below = -1;
    for (int i = 0; i < 32; i++)
        largest = (codes[i] & 0x7f) > largest ? codes[i] & 0x7f : largest;
    if (largest >> fraction_bits)
        return (largest >> fraction_bits) - bias;
    for (int part = largest; part; part >>= 1)
        below++;
    return below + 1 - bias - fraction_bits;
}

/* The step at which the upper binades of a block of fp8 values are integers, the largest of them 64 to 127. */
static float fp8_step(const mica_matrix *matrix, uint64_t row, uint64_t column) {
    bool e4m3 = matrix->dtype == MICA_F8_E4M3;
    mica_grid grid = mica_matrix_grid(matrix);
    double scale;
    mica_scale_values(matrix, row / grid.block_rows * grid.columns + column / grid.block_columns, 1, &scale);
    const uint8_t *codes = (const uint8_t *)matrix->codes + row * matrix->columns + column;
    return (float)(fabs(scale) * ldexp(1, largest_exponent(codes, e4m3 ? 3 : 2, e4m3 ? 7 : 15) - 6));
}

/* The next blocks, as many as a tile takes; behind the last one it is repeated, unwritten. */
static void fill_tile(job *j, mica_quantise_tile *tile) {
    for (uint32_t lane = 0; lane < MICA_TILE_GROUPS; lane += j->groups) {
        for (uint32_t g = 0; g < j->groups; g++) {
            uint64_t column = j->column + g * j->group;
            tile->x[lane + g] = j->x + column;
            tile->importance[lane + g] = j->importance ? j->importance + column : NULL;
            tile->block[lane + g] = NULL;
            tile->hint[lane + g] = j->fp8 ? fp8_step(j->fp8, j->row, column) : 0;
        }
        if (!j->blocks)
            continue;
        tile->block[lane] = j->out;
        j->out += j->bytes;
        if (--j->blocks == 0)
            continue;
        j->column += j->elements;
        if (j->column == j->columns) {
            j->column = 0;
            j->x += j->stride;
            j->row++;
        }
    }
}

static mica_status quantise(mica_dtype type, job j, uint64_t rows, const mica_quantise_options *options, mica_error *error) {
    mica_quantise_tile tile = {.gain = (float)options->gain};
    const mica_quantise_kernels *kernels = mica_quantise_kernels_for(mica_cpu_current());
    mica_status status = check_arguments(type, j.columns, options, error);
    if (status == MICA_OK)
        status = importance_factor(options->importance, j.columns, &tile.importance_factor, error);
    for (uint64_t row = 0; status == MICA_OK && row < rows; row++)
        status = check_row(kernels, type, j.x + row * j.stride, j.row + row, j.columns, error);
    if (status != MICA_OK || !rows || !j.columns)
        return status;
    j.importance = tile.importance_factor > 0 ? options->importance : NULL;
    j.elements = mica_dtype_block_elements(type);
    j.bytes = mica_dtype_block_bytes(type);
    j.group = group_elements(type);
    j.groups = j.elements / j.group;
    j.blocks = rows * (j.columns / j.elements);
    tile.search = &searches[type - MICA_Q4_0][j.importance != NULL][options->effort];
    mica_quantise_function *quantise_tile = kernels->tile[type - MICA_Q4_0][j.importance != NULL];
    while (j.blocks) {
        fill_tile(&j, &tile);
        quantise_tile(&tile);
    }
    return MICA_OK;
}

mica_status mica_quantise_rows(mica_dtype type, const float *x, uint64_t stride, uint64_t rows, uint64_t columns,
                               const mica_quantise_options *options, uint8_t *out, mica_error *error) {
    return quantise(type, (job){.x = x, .stride = stride, .columns = columns, .out = out}, rows, options, error);
}

mica_status mica_quantise_matrix(mica_dtype type, const mica_matrix *matrix, uint64_t row, uint64_t count,
                                 const mica_quantise_options *options, float *scratch, uint8_t *out, mica_error *error) {
    bool fp8 = type == MICA_Q8_0 && matrix->encoding == MICA_ENCODING_FP8_BLOCK && mica_matrix_grid(matrix).block_columns % 32 == 0;
    mica_matrix_decode(matrix, 0, row, count, scratch, matrix->columns);
    job j = {.x = scratch, .stride = matrix->columns, .columns = matrix->columns, .row = row, .out = out, .fp8 = fp8 ? matrix : NULL};
    return quantise(type, j, count, options, error);
}
