/* operations/export_budget.c: see the header. Measuring: up to SAMPLE_MATRICES matrices of a tensor, evenly spaced, SAMPLE_ROWS rows of
 * each, quantised at the plan's effort and decoded. Judged by tests/operations/test_export_budget.c. */
#include "operations/export_budget.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "numerics/quantise.h"
#include "operations/imatrix_sensitivity.h"

#define SAMPLE_MATRICES 4u
#define SAMPLE_ROWS 64u
#define ENERGY_ROWS 16u /* of these, for the outputs' energy */

/* From few to many bytes; MXFP4 and the types with minima of 32 lie above the hull of these, as does Q4_0, which is what mixtures take. */
static const mica_dtype candidates[] = {MICA_Q2_K, MICA_Q3_K, MICA_IQ4_XS, MICA_Q4_K, MICA_Q5_K, MICA_Q6_K, MICA_Q8_0};
static const mica_dtype narrow_candidates[] = {MICA_Q4_0, MICA_IQ4_NL, MICA_Q5_0, MICA_Q5_1, MICA_Q8_0};

mica_status mica_export_budget_parse(const char *text, uint64_t parameters, uint64_t *bytes, mica_error *error) {
    static const struct {
        const char *unit;
        double bytes; /* 0: bits per weight */
    } units[] = {{"bpw", 0}, {"B", 1}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}};
    char *rest = NULL;
    const double number = strspn(text, "0123456789.") > 0 ? strtod(text, &rest) : 0;
    for (size_t i = 0; rest && number > 0 && i < sizeof units / sizeof *units; i++)
        if (strcmp(rest, units[i].unit) == 0) {
            const double wanted = units[i].bytes > 0 ? number * units[i].bytes : number * (double)parameters / 8;
            if (wanted >= 1 && wanted < 1e18) {
                *bytes = (uint64_t)wanted;
                return MICA_OK;
            }
        }
    return mica_fail(error, MICA_USAGE, "--budget: expected bits per weight or a size such as 4.25bpw or 550GB, got '%s'", text);
}

/* ---- measuring */

static void list_types(const mica_export_tensor *tensor, mica_export_measure *measure) {
    mica_mixture_tensor seen = {tensor->name, 0, tensor->rank, tensor->columns, tensor->matrices};
    const bool wide = tensor->columns % 256 == 0;
    const mica_dtype *types = wide ? candidates : narrow_candidates;
    const size_t count = wide ? sizeof candidates / sizeof *candidates : sizeof narrow_candidates / sizeof *narrow_candidates;
    *measure = (mica_export_measure){.weight = 1};
    if (tensor->fixed || !tensor->weights || !mica_mixture_allows(&seen) || tensor->columns % 32 != 0)
        return;
    for (size_t i = 0; i < count; i++) {
        uint64_t row = 0;
        (void)mica_dtype_run_bytes(types[i], tensor->columns, &row);
        measure->types[measure->count] = types[i];
        measure->bytes[measure->count++] = row * tensor->rows * tensor->matrices;
    }
}

/* Importance-weighted energy of a row block, then the error of each type. */
typedef struct sampler {
    const mica_export_plan *plan;
    float *values, *importance, *covariance; /* the latter of as many columns as `covariance_columns`; NULL: none was wanted yet */
    uint64_t covariance_columns;
    uint8_t *blocks;
    uint64_t values_capacity;
} sampler;

static mica_status load_rows(sampler *s, const mica_export_tensor *tensor, uint64_t matrix, uint64_t *rows, mica_error *error) {
    const mica_model *model = s->plan->model;
    const mica_weight *weight = tensor->weights[tensor->weight_count > 1 ? matrix : 0];
    const uint64_t available = weight->rows, row_bytes = weight->data->bytes / available;
    uint64_t count = available < SAMPLE_ROWS ? available : SAMPLE_ROWS, first = available / 2;
    if (weight->encoding == MICA_ENCODING_FP8_BLOCK) /* a row of scales */
        first = first / weight->block_rows * weight->block_rows;
    count = available - first < count ? available - first : count;
    const uint64_t scale_rows = weight->scale ? weight->scale->shape[0] : 0, scale_row = scale_rows ? weight->scale->bytes / scale_rows : 0;
    const uint64_t scale_first = scale_rows ? first / weight->block_rows : 0,
                   scale_count = scale_rows ? (first + count + weight->block_rows - 1) / weight->block_rows - scale_first : 0;
    uint8_t *codes = mica_malloc(count * row_bytes + 1), *scales = mica_malloc(scale_count * scale_row + 1), shape[16] = {0};
    mica_matrix view;
    mica_status status = codes && scales ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for a sample");
    if (status == MICA_OK)
        status = mica_file_read(mica_model_file(model, weight->data), weight->data->offset + first * row_bytes, codes, count * row_bytes,
                                error);
    if (status == MICA_OK && weight->scale)
        status = mica_file_read(mica_model_file(model, weight->scale), weight->scale->offset + scale_first * scale_row, scales,
                                scale_count * scale_row, error);
    if (status == MICA_OK && weight->shape)
        status = mica_file_read(mica_model_file(model, weight->shape), weight->shape->offset, shape, weight->shape->bytes, error);
    if (status == MICA_OK)
        status = mica_weight_matrix(model, weight, codes, scales, weight->shape ? shape : NULL, &view, error);
    if (status == MICA_OK) {
        view.rows = count;
        /* a turned or parted tensor is measured on rows of its weight that are as long as its own */
        mica_matrix_decode(&view, 0, 0, count, s->values, weight->columns);
        *rows = count * weight->columns / tensor->columns;
    }
    mica_free(codes);
    mica_free(scales);
    return status;
}

/* What the outputs' energy is over what it were if the inputs' columns had nothing in common: that is what a relative error is relative
 * to. */
static mica_status outputs_energy(sampler *s, const mica_export_tensor *tensor, uint64_t matrix, uint64_t rows, double *energy,
                                  mica_error *error) {
    const mica_imatrix *imatrix = s->plan->imatrix;
    const uint64_t n = tensor->columns;
    uint64_t slot;
    const int64_t expert = tensor->form == MICA_GGUF_EXPERTS ? (int64_t)matrix : -1;
    const mica_imatrix_covariance *found = imatrix && tensor->form != MICA_GGUF_KEY_PART
                                               ? mica_imatrix_find_covariance(imatrix, tensor->name, expert, &slot)
                                               : NULL;
    *energy = 1;
    if (!found || found->columns != n)
        return MICA_OK;
    if (s->covariance_columns < n) {
        mica_free(s->covariance);
        s->covariance = mica_reallocarray(NULL, n * n, sizeof *s->covariance);
        s->covariance_columns = s->covariance ? n : 0;
    }
    mica_status status = s->covariance
                             ? mica_imatrix_read_covariance(imatrix, found, slot, s->covariance, error)
                             : mica_fail(error, MICA_NO_MEMORY, "out of memory for a covariance of %llu columns", (unsigned long long)n);
    double all = 0, diagonal = 0;
    for (uint64_t row = 0; status == MICA_OK && row < rows && row < ENERGY_ROWS; row++)
        for (uint64_t i = 0; i < n; i++) {
            const float *x = s->values + row * n, *h = s->covariance + i * n;
            float sum = 0;
            for (uint64_t j = 0; j < n; j++)
                sum += h[j] * x[j];
            all += (double)sum * (double)x[i];
            diagonal += (double)h[i] * (double)x[i] * (double)x[i];
        }
    if (status == MICA_OK && all > 0 && diagonal > 0)
        *energy = all / diagonal;
    return status;
}

static mica_status measure_matrix(sampler *s, const mica_export_tensor *tensor, uint64_t matrix, double share, mica_export_measure *measure,
                                  mica_error *error) {
    uint64_t rows = 0;
    mica_status status = load_rows(s, tensor, matrix, &rows, error);
    if (status == MICA_OK && tensor->importance)
        status = mica_imatrix_read(s->plan->imatrix, tensor->importance, tensor->matrices, matrix, tensor->columns, s->importance, error);
    const mica_quantise_options options = {
        .effort = MICA_EFFORT_FAST, .gain = MICA_QUANTISE_GAIN, .importance = tensor->importance ? s->importance : NULL};
    double energy = 1;
    if (status == MICA_OK)
        status = outputs_energy(s, tensor, matrix, rows, &energy, error);
    for (uint32_t i = 0; status == MICA_OK && i < measure->count; i++) {
        mica_quantise_error sum = {0, 0};
        status = mica_quantise_rows(measure->types[i], s->values, tensor->columns, rows, tensor->columns, &options, s->blocks, error);
        if (status != MICA_OK)
            return mica_fail_context(error, status, "%s", tensor->name);
        mica_quantise_error_add(measure->types[i], s->values, tensor->columns, rows, tensor->columns, options.importance, s->blocks, &sum);
        measure->error[i] += share * (sum.energy > 0 ? sum.squared / sum.energy / energy : 0);
    }
    return status;
}

/* How much each matrix counts. Without a measured sensitivity the residual stream is taken to be a sum of equal parts (the embedding, each
 * layer's attention and feed-forward part), half of the latter the shared experts', and experts to count as often as they are chosen; the
 * head sees it all. */
double mica_export_sensitivity(const mica_export_plan *plan, const mica_export_tensor *tensor, uint64_t matrix) {
    const uint64_t matrices = tensor->form == MICA_GGUF_EXPERTS ? tensor->matrices : 1;
    const float *measured = plan->imatrix ? mica_imatrix_sensitivity_of(plan->imatrix, tensor->name, matrices) : NULL;
    if (measured)
        return (double)measured[matrix];
    const mica_config *config = &plan->model->config;
    const mica_role role = tensor->weights[0]->role;
    const double part = mica_sensitivity_of_kind(tensor) / (1.0 + 2.0 * (double)config->num_hidden_layers),
                 shared = config->n_shared_experts > 0 ? 0.5 : 0;
    double total = 0;
    if (role == MICA_ROLE_SHARED_EXPERT)
        return part * shared;
    if (role != MICA_ROLE_EXPERT)
        return role == MICA_ROLE_HEAD ? 1 : part;
    for (uint64_t i = 0; tensor->importance && i < matrices; i++)
        total += (double)mica_imatrix_count(tensor->importance, i);
    return part * (1 - shared) * (total > 0 ? (double)mica_imatrix_count(tensor->importance, matrix) / total : 1.0 / (double)matrices);
}

/* The sample's matrices stand for all. */
static mica_status measure_tensor(sampler *s, const mica_export_tensor *tensor, mica_export_measure *measure, mica_error *error) {
    const uint64_t matrices = tensor->form == MICA_GGUF_EXPERTS ? tensor->matrices : 1;
    const uint64_t count = matrices < SAMPLE_MATRICES ? matrices : SAMPLE_MATRICES;
    double shares[SAMPLE_MATRICES] = {0}, total = 0;
    if (measure->count == 0)
        return MICA_OK;
    for (uint64_t i = 0; i < count; i++) {
        shares[i] = mica_export_sensitivity(s->plan, tensor, i * matrices / count);
        total += shares[i];
    }
    measure->weight = 0;
    for (uint64_t i = 0; i < matrices; i++)
        measure->weight += mica_export_sensitivity(s->plan, tensor, i);
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && measure->count > 0 && i < count; i++)
        status = measure_matrix(s, tensor, i * matrices / count, total > 0 ? shares[i] / total : 1.0 / (double)count, measure, error);
    return status;
}

mica_status mica_export_measure_all(mica_export_run *run, mica_export_measure *measures, mica_error *error) {
    const mica_export_plan *plan = run->plan;
    sampler s = {.plan = plan};
    uint64_t columns = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        const uint64_t weight_columns = tensor->weights ? tensor->weights[0]->columns : 0;
        columns = tensor->columns > columns ? tensor->columns : columns;
        columns = weight_columns > columns ? weight_columns : columns;
    }
    s.values = mica_reallocarray(NULL, columns * SAMPLE_ROWS, sizeof *s.values);
    s.importance = mica_reallocarray(NULL, columns, sizeof *s.importance);
    s.blocks = mica_malloc(columns * SAMPLE_ROWS * 2);
    mica_status status = s.values && s.importance && s.blocks ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for a sample");
    for (uint64_t i = 0; status == MICA_OK && i < plan->tensor_count; i++) {
        const mica_progress progress = {.what = "measuring", .units_done = i, .units_total = plan->tensor_count, .seconds_left = -1};
        if (run->options->progress && !run->options->progress(run->options->progress_context, &progress))
            status = mica_fail(error, MICA_INTERRUPTED, "interrupted while measuring");
        list_types(&plan->tensors[i], &measures[i]);
        if (status == MICA_OK)
            status = measure_tensor(&s, &plan->tensors[i], &measures[i], error);
    }
    mica_free(s.values);
    mica_free(s.importance);
    mica_free(s.covariance);
    mica_free(s.blocks);
    return status;
}

/* ---- choosing */

typedef struct step { /* from one corner of a tensor's hull to the next */
    double slope;     /* error saved per byte */
    uint64_t item;
    uint32_t to;
    uint64_t bytes;
} step;

static int compare_steps(const void *a, const void *b) {
    const step *left = a, *right = b;
    if (left->slope != right->slope)
        return left->slope > right->slope ? -1 : 1;
    if (left->item != right->item)
        return left->item < right->item ? -1 : 1;
    return left->to < right->to ? -1 : left->to > right->to;
}

/* The corners of the lower convex hull of (bytes, error), the cheapest first. */
static uint32_t hull_of(const mica_export_measure *measure, uint32_t corners[MICA_BUDGET_TYPES]) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < measure->count; i++) {
        if (count > 0 && measure->error[i] >= measure->error[corners[count - 1]])
            continue; /* more bytes, no less error */
        while (count > 1) {
            const uint32_t a = corners[count - 2], b = corners[count - 1];
            const double before = (measure->error[a] - measure->error[b]) / (double)(measure->bytes[b] - measure->bytes[a]);
            const double after = (measure->error[b] - measure->error[i]) / (double)(measure->bytes[i] - measure->bytes[b]);
            if (before > after)
                break;
            count--;
        }
        corners[count++] = i;
    }
    return count;
}

mica_status mica_export_allocate(mica_export_measure *measures, uint64_t count, uint64_t fixed_bytes, uint64_t bytes, mica_error *error) {
    step *steps = mica_reallocarray(NULL, count * MICA_BUDGET_TYPES + 1, sizeof *steps);
    uint64_t step_count = 0, total = fixed_bytes;
    if (!steps)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the budget");
    for (uint64_t i = 0; i < count; i++) {
        mica_export_measure *measure = &measures[i];
        uint32_t corners[MICA_BUDGET_TYPES];
        const uint32_t corner_count = hull_of(measure, corners);
        if (corner_count == 0)
            continue;
        measure->chosen = corners[0];
        total += measure->bytes[corners[0]];
        for (uint32_t c = 1; c < corner_count; c++) {
            const uint32_t a = corners[c - 1], b = corners[c];
            const uint64_t more = measure->bytes[b] - measure->bytes[a];
            steps[step_count++] = (step){measure->weight * (measure->error[a] - measure->error[b]) / (double)more, i, b, more};
        }
    }
    if (total > bytes) {
        mica_free(steps);
        return mica_fail(error, MICA_USAGE, "--budget: expected at least %llu bytes, the smallest types of all tensors, got %llu",
                         (unsigned long long)total, (unsigned long long)bytes);
    }
    qsort(steps, step_count, sizeof *steps, compare_steps);
    /* a tensor's steps are sorted by their slopes, as its hull is convex; one that does not fit ends it */
    for (uint64_t i = 0; i < step_count; i++) {
        mica_export_measure *measure = &measures[steps[i].item];
        uint64_t now = measure->bytes[measure->chosen];
        if (measure->bytes[steps[i].to] - now == steps[i].bytes && total + steps[i].bytes <= bytes) {
            measure->chosen = steps[i].to;
            total += steps[i].bytes;
        }
    }
    mica_free(steps);
    return MICA_OK;
}
