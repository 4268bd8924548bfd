/* numerics/quantise.c: checks what is to be quantised, cuts it into tiles, and calls the kernels of the processor. How hard each type is
 * searched at each effort is the table below. Judged by tests/numerics/test_quantise.c. */
#include "numerics/quantise.h"

#include <float.h>
#include <math.h>
#include <string.h>

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

/* starts, polish, scales, branches, refits, window, minimum window; at fast, default, max */
#define SEARCHES(type, fast, normal, most) [MICA_##type - MICA_Q4_0] = {fast, normal, most}
#define S(...) {__VA_ARGS__}
static const mica_search searches[MICA_DTYPE_COUNT - MICA_Q4_0][MICA_EFFORT_COUNT] = {
    SEARCHES(Q4_0, S(4), S(12, 1), S(32, 2)),
    SEARCHES(Q4_1, S(4, 1), S(8, 1), S(32, 2)),
    SEARCHES(Q5_0, S(4), S(10, 1), S(32, 2)),
    SEARCHES(Q5_1, S(4, 1), S(8, 1), S(32, 2)),
    SEARCHES(Q8_0, S(0), S(6), S(32)),
    SEARCHES(Q2_K, S(4, 1, 1, 1, 1, 0, 0), S(16, 1, 6, 1, 1, 1, 0), S(32, 1, 12, 4, 3, 2, 2)),
    SEARCHES(Q3_K, S(3, 1, 6, 1, 1, 2, 1), S(8, 0, 12, 1, 2, 4, 1), S(32, 0, 12, 3, 2, 8, 2)),
    SEARCHES(Q4_K, S(4, 2, 8, 1, 1, 0, 0), S(20, 1, 16, 1, 2, 1, 1), S(32, 1, 16, 4, 3, 2, 1)),
    SEARCHES(Q5_K, S(4, 2, 8, 1, 1, 0, 0), S(10, 1, 16, 1, 2, 3, 1), S(24, 1, 8, 4, 2, 5, 2)),
    SEARCHES(Q6_K, S(3, 1, 6, 1, 1, 2, 1), S(20, 0, 6, 1, 2, 3, 1), S(32, 0, 12, 4, 2, 12, 3)),
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
        return mica_fail(error, MICA_USAGE, "rows of %llu columns are not made of %s's blocks of %u", (unsigned long long)columns, mica_dtype_name(type),
                         mica_dtype_block_elements(type));
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
        return mica_fail(error, MICA_BAD_INPUT, "row %llu, column %llu: %g cannot be quantised", (unsigned long long)row, (unsigned long long)c,
                         (double)x[c]);
    return mica_fail(error, MICA_BAD_INPUT, "row %llu, column %llu: %g is beyond 65504, the largest float16, which the scales of %s are",
                     (unsigned long long)row, (unsigned long long)c, (double)x[c], mica_dtype_name(type));
}

/* The type's group size, blocks of a tile. */
static uint32_t group_elements(mica_dtype type) {
    return type == MICA_Q2_K || type == MICA_Q3_K || type == MICA_Q6_K ? 16 : 32;
}

typedef struct job {
    const float *x, *importance;
    uint64_t stride, blocks, blocks_of_row;
    uint32_t elements, bytes, group, groups;
    uint8_t *out;
} job;

/* Blocks from `first` on, as many as a tile takes; behind the last one it is repeated, unwritten. */
static void fill_tile(const job *j, uint64_t first, mica_quantise_tile *tile) {
    for (uint32_t lane = 0; lane < MICA_TILE_GROUPS; lane++) {
        uint64_t block = first + lane / j->groups, shown = block < j->blocks ? block : j->blocks - 1;
        uint64_t column = shown % j->blocks_of_row * j->elements + lane % j->groups * j->group;
        tile->x[lane] = j->x + shown / j->blocks_of_row * j->stride + column;
        tile->importance[lane] = j->importance ? j->importance + column : NULL;
        tile->block[lane] = block < j->blocks && lane % j->groups == 0 ? j->out + block * j->bytes : NULL;
    }
}

mica_status mica_quantise_rows(mica_dtype type, const float *x, uint64_t stride, uint64_t rows, uint64_t columns,
                               const mica_quantise_options *options, uint8_t *out, mica_error *error) {
    mica_quantise_tile tile = {.gain = (float)options->gain};
    const mica_quantise_kernels *kernels = mica_quantise_kernels_for(mica_cpu_current());
    mica_status status = check_arguments(type, columns, options, error);
    if (status == MICA_OK)
        status = importance_factor(options->importance, columns, &tile.importance_factor, error);
    for (uint64_t row = 0; status == MICA_OK && row < rows; row++)
        status = check_row(kernels, type, x + row * stride, row, columns, error);
    if (status != MICA_OK || !columns)
        return status;
    job j = {.x = x, .importance = tile.importance_factor > 0 ? options->importance : NULL, .stride = stride, .out = out};
    j.elements = mica_dtype_block_elements(type);
    j.bytes = mica_dtype_block_bytes(type);
    j.group = group_elements(type);
    j.groups = j.elements / j.group;
    j.blocks_of_row = columns / j.elements;
    j.blocks = rows * j.blocks_of_row;
    tile.search = &searches[type - MICA_Q4_0][options->effort];
    mica_quantise_function *quantise = kernels->tile[type - MICA_Q4_0][j.importance != NULL];
    for (uint64_t block = 0; block < j.blocks; block += MICA_TILE_GROUPS / j.groups) {
        fill_tile(&j, block, &tile);
        quantise(&tile);
    }
    return MICA_OK;
}
