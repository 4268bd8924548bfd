/* numerics/quantise_covariance.c: factors of the inputs' covariance, and the search for levels that minimise the output's error with it. (x
 * - y)^T H (x - y) = sum over j of D_j (e_j + sum over k < j of U_kj e_k)^2, so columns are decided from left to right, each with a target
 * that makes up for the errors before it. Within a panel of 64 columns eight paths are kept for each row; at its end the cheapest is taken.
 * Judged by tests/numerics/test_quantise_covariance.c. */
#include "numerics/quantise_covariance.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "numerics/decode_kernels.h"
#include "numerics/encode.h"
#include "numerics/quantise_kernels.h"

enum { PANEL = MICA_BEAM_PANEL, TILE = MICA_BEAM_ROWS, DEPTH = 256 /* rows of the factors at a time: they stay in the cache */ };

struct mica_covariance {
    uint64_t columns;
    float *panels; /* panel p: [64 (p + 1)][64], U of its columns; at panel_offset(p) */
    float *weight; /* [columns], D */
    float *importance; /* [columns], the diagonal of H */
};

static uint64_t panel_offset(uint64_t panel) {
    return panel * (panel + 1) / 2 * PANEL * PANEL;
}

void mica_covariance_free(mica_covariance *covariance) {
    if (!covariance)
        return;
    mica_free_aligned(covariance->panels);
    mica_free(covariance->weight);
    mica_free(covariance->importance);
    mica_free(covariance);
}

bool mica_quantise_has_covariance(mica_dtype type) {
    return type == MICA_Q2_K || type == MICA_Q4_K || type == MICA_Q5_K;
}

/* ---- factors. M lower triangular with H_ij = sum over k >= max(i, j) of M_ki M_kj, from the last panel of columns to the first. */

/* Takes from rows [first, first + 64) of m, columns [0, first + 64), what later rows have explained. */
static void subtract_later(const mica_quantise_kernels *kernels, float *m, uint64_t n, uint64_t first) {
    for (uint64_t column = 0; column < first + PANEL; column += TILE) {
        _Alignas(64) float sums[PANEL * TILE] = {0};
        for (uint64_t k = first + PANEL; k < n; k += DEPTH)
            kernels->accumulate(m + k * n + first, n, m + k * n + column, n, mica_min_u64(n - k, DEPTH), sums);
        for (uint64_t j = 0; j < PANEL; j++)
            for (uint64_t i = 0; i < TILE; i++)
                m[(first + j) * n + column + i] -= sums[j * TILE + i];
    }
}

/* The panel's own 64 rows, last to first. */
static bool factor_panel(float *m, uint64_t n, uint64_t first) {
    for (uint64_t j = first + PANEL; j-- > first;) {
        float *row = m + j * n;
        for (uint64_t k = j + 1; k < first + PANEL; k++) {
            const float *later = m + k * n;
            float factor = later[j];
            for (uint64_t i = 0; i <= j; i++)
                row[i] -= factor * later[i];
        }
        if (!(row[j] > 0))
            return false;
        float pivot = sqrtf(row[j]);
        for (uint64_t i = 0; i < j; i++)
            row[i] /= pivot;
        row[j] = pivot;
    }
    return true;
}

static mica_status factor(float *m, uint64_t n, mica_error *error) {
    const mica_quantise_kernels *kernels = mica_quantise_kernels_for(mica_cpu_current());
    for (uint64_t first = n; first > 0;) {
        first -= PANEL;
        subtract_later(kernels, m, n, first);
        if (!factor_panel(m, n, first))
            return mica_fail(error, MICA_BAD_INPUT, "a covariance of %llu columns is not positive definite", (unsigned long long)n);
    }
    return MICA_OK;
}

/* U_kj = M_jk / M_jj, panel by panel. */
static void store_factors(const float *m, uint64_t n, mica_covariance *covariance) {
    for (uint64_t j = 0; j < n; j++) {
        const float *row = m + j * n;
        float *panel = covariance->panels + panel_offset(j / PANEL), pivot = row[j];
        covariance->weight[j] = pivot * pivot;
        for (uint64_t k = 0; k < (j / PANEL + 1) * PANEL; k++)
            panel[k * PANEL + j % PANEL] = k < j ? row[k] / pivot : 0;
    }
}

/* The mean of the diagonal, which becomes 1 with the damping in it. */
static mica_status scaled_copy(const float *h, uint64_t n, double damping, float *m, float *diagonal, mica_error *error) {
    double mean = 0;
    for (uint64_t i = 0; i < n * n; i++)
        if (!isfinite(h[i]) || (i % (n + 1) == 0 && h[i] < 0))
            return mica_fail(error, MICA_BAD_INPUT, "covariance of columns %llu and %llu: %g is no second moment",
                             (unsigned long long)(i / n), (unsigned long long)(i % n), (double)h[i]);
    for (uint64_t i = 0; i < n; i++)
        mean += (double)h[i * n + i] / (double)n;
    if (!(mean > 0))
        return mica_fail(error, MICA_BAD_INPUT, "a covariance of %llu columns is all zero", (unsigned long long)n);
    float inverse = (float)(1 / mean);
    for (uint64_t i = 0; i < n * n; i++)
        m[i] = h[i] * inverse;
    for (uint64_t i = 0; i < n; i++) {
        diagonal[i] = m[i * n + i];
        m[i * n + i] += (float)damping;
    }
    return MICA_OK;
}

mica_status mica_covariance_create(const float *h, uint64_t columns, double damping, mica_covariance **covariance, mica_error *error) {
    if (!columns || columns % 256 != 0 || columns > 1u << 20)
        return mica_fail(error, MICA_USAGE, "a covariance of %llu columns is no multiple of 256", (unsigned long long)columns);
    if (!(damping >= 0 && damping <= 1))
        return mica_fail(error, MICA_USAGE, "a damping of %g is not between 0 and 1", damping);
    mica_covariance *made = mica_calloc(1, sizeof *made);
    float *m = mica_alloc_aligned(columns * columns * sizeof *m);
    mica_status status = MICA_OK;
    if (made) {
        made->columns = columns;
        made->panels = mica_alloc_aligned(panel_offset(columns / PANEL) * sizeof *made->panels);
        made->weight = mica_calloc(columns, sizeof *made->weight);
        made->importance = mica_calloc(columns, sizeof *made->importance);
    }
    if (!m || !made || !made->panels || !made->weight || !made->importance)
        status = mica_fail(error, MICA_NO_MEMORY, "no memory for a covariance of %llu columns", (unsigned long long)columns);
    if (status == MICA_OK)
        status = scaled_copy(h, columns, damping, m, made->importance, error);
    if (status == MICA_OK)
        status = factor(m, columns, error);
    if (status == MICA_OK) {
        store_factors(m, columns, made);
        *covariance = made;
    } else
        mica_covariance_free(made);
    mica_free_aligned(m);
    return status;
}

/* ---- levels */

/* A block's scales, per run of 16 elements. */
typedef struct steps {
    float step[16], floor[16];
} steps;

static void read_steps(mica_dtype type, const uint8_t *block, steps *s) {
    const uint8_t *half = block + (type == MICA_Q2_K ? 80 : 0), *packed = block + 4;
    float d = (float)mica_f16_value(mica_load_u16(half, 0)), dmin = (float)mica_f16_value(mica_load_u16(half, 1));
    for (int i = 0; i < 16; i++) {
        unsigned scale, floor, j = (unsigned)i / 2;
        if (type == MICA_Q2_K) {
            scale = block[i] & 15;
            floor = block[i] >> 4;
        } else if (j < 4) {
            scale = packed[j] & 63;
            floor = packed[j + 4] & 63;
        } else {
            scale = (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
            floor = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
        }
        s->step[i] = d * (float)scale;
        s->floor[i] = dmin * (float)floor;
    }
}

typedef struct search {
    mica_dtype type;
    const float *x;
    uint64_t stride, rows, columns, block_bytes, row_bytes;
    const mica_covariance *covariance;
    const mica_quantise_kernels *kernels;
    float *errors;   /* [tile][column][32], rows behind the last one 0 */
    float *values;   /* the weights likewise; NULL when the gain is not to be corrected */
    double *energy;  /* [row][2]: x^T H x, and x^T H (x - y) */
    uint8_t *levels; /* [row][column] */
    uint8_t *out;
} search;

/* What a row's panel adds to its energies: sum over j of D_j v_j v_j and D_j v_j w_j, v = U^T x, w = U^T (x - y). */
static void add_energy(const float *weight, const float *x, const float *sums, const float *off, double energy[2]) {
    for (uint64_t j = 0; j < PANEL; j++) {
        double v = (double)x[j] + (double)sums[j * TILE], share = (double)weight[j] * v;
        energy[0] += share * v;
        energy[1] += share * (double)off[j];
    }
}

static void search_row(const search *s, uint64_t row, uint64_t first, const float *sums, float *errors, float off[PANEL]) {
    float step[PANEL], floor[PANEL], inverse[PANEL], target[PANEL], error[PANEL];
    const float *x = s->x + row * s->stride + first;
    steps of;
    read_steps(s->type, s->out + row * s->row_bytes + first / 256 * s->block_bytes, &of);
    for (uint64_t j = 0; j < PANEL; j++) {
        step[j] = of.step[(first + j) % 256 / 16];
        floor[j] = of.floor[(first + j) % 256 / 16];
        inverse[j] = step[j] > 1e-30f ? 1 / step[j] : 0;
        target[j] = x[j] + sums[j * TILE];
    }
    mica_beam beam = {.x = x, .target = target, .step = step, .floor = floor, .inverse = inverse, .weight = s->covariance->weight + first,
                      .u = s->covariance->panels + panel_offset(first / PANEL) + first * PANEL, .error = error, .off = off,
                      .top = s->type == MICA_Q2_K ? 3 : s->type == MICA_Q4_K ? 15 : 31, .levels = s->levels + row * s->columns + first};
    s->kernels->beam(&beam);
    for (uint64_t j = 0; j < PANEL; j++)
        errors[j * TILE] = error[j];
}

/* sums[64][32] = sum over k < depth of U_kj * tile[k][row] */
static void feed_forward(const search *s, uint64_t first, uint64_t depth, const float *tile, float *sums) {
    const float *u = s->covariance->panels + panel_offset(first / PANEL);
    memset(sums, 0, PANEL * TILE * sizeof *sums);
    for (uint64_t k = 0; k < depth; k += DEPTH)
        s->kernels->accumulate(u + k * PANEL, PANEL, tile + k * TILE, TILE, mica_min_u64(depth - k, DEPTH), sums);
}

static void search_panel(const search *s, uint64_t first) {
    for (uint64_t row = 0; row < s->rows; row += TILE) {
        _Alignas(64) float sums[PANEL * TILE], values[PANEL * TILE];
        float *errors = s->errors + row * s->columns, off[PANEL];
        feed_forward(s, first, first, errors, sums);
        if (s->values)
            feed_forward(s, first, first + PANEL, s->values + row * s->columns, values);
        for (uint64_t r = 0; r < TILE && row + r < s->rows; r++) {
            search_row(s, row + r, first, sums + r, errors + first * TILE + r, off);
            if (s->values)
                add_energy(s->covariance->weight + first, s->x + (row + r) * s->stride + first, values + r, off, s->energy + 2 * (row + r));
        }
    }
}

/* The weights in the order of the errors. */
static void transpose_values(const search *s) {
    for (uint64_t row = 0; row < s->rows; row++)
        for (uint64_t j = 0; j < s->columns; j++)
            s->values[row / TILE * TILE * s->columns + j * TILE + row % TILE] = s->x[row * s->stride + j];
}

/* d and dmin of a row's blocks times 1 + eta (<x, x> / <x, y> - 1), the products being x^T H y: by H's diagonal alone it would be twice too
 * much and more, since the errors of columns have been made to cancel. */
static void correct_gain(const search *s, uint64_t row, double eta) {
    double xx = s->energy[2 * row], xy = xx - s->energy[2 * row + 1];
    double shrunk = xy > 0 ? fmin(fmax(xx / xy, 1), 1.25) : 1, gain = 1 + eta * (shrunk - 1);
    for (uint64_t column = 0; column < s->columns; column += 256) {
        uint8_t *half = s->out + row * s->row_bytes + column / 256 * s->block_bytes + (s->type == MICA_Q2_K ? 80 : 0);
        for (int i = 0; i < 2; i++) {
            uint16_t code = mica_f16_encode((float)fmin(gain * mica_f16_value(mica_load_u16(half, (uint64_t)i)), 65504));
            half[2 * i] = (uint8_t)code;
            half[2 * i + 1] = (uint8_t)(code >> 8);
        }
    }
}

static void write_row(const search *s, uint64_t row, double eta) {
    for (uint64_t column = 0; column < s->columns; column += 256)
        s->kernels->put_codes[s->type - MICA_Q4_0](s->levels + row * s->columns + column,
                                                   s->out + row * s->row_bytes + column / 256 * s->block_bytes);
    if (s->values)
        correct_gain(s, row, eta);
}

mica_status mica_quantise_rows_covariance(mica_dtype type, const float *x, uint64_t stride, uint64_t rows,
                                          const mica_covariance *covariance, const mica_quantise_options *options, uint8_t *out,
                                          mica_error *error) {
    uint64_t columns = covariance->columns, padded = (rows + TILE - 1) / TILE * TILE;
    mica_quantise_options scales = {.effort = options->effort, .gain = 0, .importance = covariance->importance};
    if (!mica_quantise_has_covariance(type))
        return mica_fail(error, MICA_USAGE, "%s has no search with covariance", mica_dtype_name(type));
    if (!(options->gain >= 0 && options->gain <= 1))
        return mica_fail(error, MICA_USAGE, "a gain correction of %g is not between 0 and 1", options->gain);
    mica_status status = mica_quantise_rows(type, x, stride, rows, columns, &scales, out, error);
    if (status != MICA_OK || !rows)
        return status;
    search s = {.type = type, .x = x, .stride = stride, .rows = rows, .columns = columns, .block_bytes = mica_dtype_block_bytes(type),
                .covariance = covariance, .kernels = mica_quantise_kernels_for(mica_cpu_current()), .out = out};
    s.row_bytes = columns / 256 * s.block_bytes;
    bool corrects = options->gain > 0;
    s.errors = mica_calloc(padded, columns * sizeof *s.errors);
    s.values = corrects ? mica_calloc(padded, columns * sizeof *s.values) : NULL;
    s.energy = mica_calloc(rows, 2 * sizeof *s.energy);
    s.levels = mica_calloc(padded, columns);
    if (!s.errors || (corrects && !s.values) || !s.energy || !s.levels)
        status = mica_fail(error, MICA_NO_MEMORY, "no memory for the errors of %llu rows of %llu columns", (unsigned long long)rows,
                           (unsigned long long)columns);
    if (status == MICA_OK && corrects)
        transpose_values(&s);
    for (uint64_t first = 0; status == MICA_OK && first < columns; first += PANEL)
        search_panel(&s, first);
    for (uint64_t row = 0; status == MICA_OK && row < rows; row++)
        write_row(&s, row, options->gain);
    mica_free(s.errors);
    mica_free(s.values);
    mica_free(s.energy);
    mica_free(s.levels);
    return status;
}
