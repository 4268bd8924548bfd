/* operations/vindex_statistics.c: the table of statistics of one matrix, and their quartiles over a layer's experts.
 * Formulas: docs/statistics.md. Judged by tests/operations/test_index.c against the fixtures' float64 truths. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "numerics/spectrum.h"
#include "operations/stream.h"
#include "operations/vindex_report.h"

static double var8(const mica_statistic_input *in) { return in->record->var8; }
static double var64(const mica_statistic_input *in) { return in->record->var64; }
static double var64_ratio(const mica_statistic_input *in) { return in->record->var64 / in->noise_var64; }
static double s0(const mica_statistic_input *in) { return in->record->s0; }
static double s1(const mica_statistic_input *in) { return in->record->s1; }
/* Past the numerical rank s1 is rounding: no ratio, rather than one of 1e14. */
static double s0_over_s1(const mica_statistic_input *in) { return in->record->rank < 2 ? NAN : in->record->s0 / in->record->s1; }
static double frobenius(const mica_statistic_input *in) { return in->record->frobenius; }
static double effective_rank(const mica_statistic_input *in) { return in->record->effective_rank; }
static double above_edge(const mica_statistic_input *in) { return in->record->above_edge; }
static double residual(const mica_statistic_input *in) { return in->record->residual; }
static double orthonormality(const mica_statistic_input *in) { return in->record->orthonormality; }
static double value_error(const mica_statistic_input *in) { return in->record->value_error; }
static double rank(const mica_statistic_input *in) { return in->record->rank; }

/* Relative to s0 and |W|_F first, so that no square overflows. */
static double stable_rank(const mica_statistic_input *in) {
    const double ratio = in->record->frobenius / in->record->s0;
    return mica_spectrum_stable_rank(ratio * ratio, 1.0);
}

static double participation_ratio(const mica_statistic_input *in) {
    const double square = in->record->frobenius * in->record->frobenius;
    return mica_spectrum_participation(square, in->record->sum_fourth);
}

static double noise_edge(const mica_statistic_input *in) {
    return in->record->frobenius * mica_noise_edge(in->unit->weight->rows, in->unit->weight->columns, 1.0);
}

static const mica_statistic statistics[] = {
    {"var8", var8, false, false},
    {"var64", var64, false, false},
    {"var64_ratio", var64_ratio, false, false},
    {"s0", s0, false, false},
    {"s1", s1, false, false},
    {"s0_over_s1", s0_over_s1, false, false},
    {"stable_rank", stable_rank, false, false},
    {"participation_ratio", participation_ratio, false, false},
    {"effective_rank", effective_rank, true, false},
    {"frobenius", frobenius, false, false},
    {"noise_edge", noise_edge, false, false},
    {"above_edge", above_edge, false, true},
    {"rank", rank, false, true},
    {"residual", residual, false, false},
    {"orthonormality", orthonormality, false, false},
    {"value_error", value_error, false, false},
};

const mica_statistic *mica_statistic_at(uint64_t index) {
    return index < sizeof statistics / sizeof statistics[0] ? &statistics[index] : NULL;
}

const mica_statistic *mica_statistic_find(const char *name) {
    for (uint64_t i = 0; i < sizeof statistics / sizeof statistics[0]; i++)
        if (strcmp(statistics[i].name, name) == 0)
            return &statistics[i];
    return NULL;
}

const char *mica_statistic_reason(const mica_statistic *statistic, const mica_statistic_input *input) {
    const mica_weight *weight = input->unit->weight;
    const bool needs_second = statistic->value == s1 || statistic->value == s0_over_s1;
    if (needs_second && (weight->rows < 2 || weight->columns < 2))
        return "the matrix has one singular value";
    if (!(input->record->frobenius > 0))
        return "the matrix is zero";
    if (statistic->value == s0_over_s1 && input->record->rank < 2)
        return "the numerical rank is 1";
    return "beyond float64";
}

/* ---- groups */

mica_status mica_report_group_make(const mica_report *report, uint64_t layer, mica_index_kind kind, mica_projection projection,
                                   mica_report_group *group, mica_error *error) {
    const mica_index_plan *plan = report->plan;
    *group = (mica_report_group){.layer = layer, .kind = kind, .projection = projection};
    uint64_t low = 0, high = plan->unit_count; /* units are in layer order */
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (plan->units[middle].layer < layer)
            low = middle + 1;
        else
            high = middle;
    }
    for (high = low; high < plan->unit_count && plan->units[high].layer == layer;)
        high++;
    group->units = mica_calloc(high - low + 1, sizeof *group->units);
    if (!group->units)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for layer %llu", (unsigned long long)layer);
    for (uint64_t i = low; i < high; i++)
        if (plan->units[i].kind == kind && plan->units[i].projection == projection)
            group->units[group->count++] = i;
    if (group->count > 0) {
        const mica_weight *weight = plan->units[group->units[0]].weight;
        group->noise_var64 = mica_noise_var(weight->rows, weight->columns, MICA_INDEX_VAR_COUNT);
    }
    return MICA_OK;
}

void mica_report_group_release(mica_report_group *group) {
    mica_free(group->units);
    *group = (mica_report_group){0};
}

mica_statistic_input mica_report_input(const mica_report *report, const mica_report_group *group, uint64_t expert) {
    const uint64_t unit = group->units[expert];
    return (mica_statistic_input){&report->plan->units[unit], &report->outcomes[unit].record, group->noise_var64};
}

/* ---- quartiles */

mica_status mica_summarise(const double *values, uint64_t count, mica_summary *summary, mica_error *error) {
    *summary = (mica_summary){0, NAN, NAN, NAN, NAN, NAN};
    double *finite = mica_calloc(2 * count + 1, sizeof *finite), *scratch = finite ? finite + count : NULL;
    if (!finite)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu values", (unsigned long long)count);
    for (uint64_t i = 0; i < count; i++) {
        if (!isfinite(values[i]))
            continue;
        finite[summary->count++] = values[i];
        if (!(summary->min <= values[i]))
            summary->min = values[i];
        if (!(summary->max >= values[i]))
            summary->max = values[i];
    }
    if (summary->count > 0) {
        summary->q25 = mica_quantile(finite, summary->count, 0.25, scratch);
        summary->median = mica_quantile(finite, summary->count, 0.5, scratch);
        summary->q75 = mica_quantile(finite, summary->count, 0.75, scratch);
    }
    mica_free(finite);
    return MICA_OK;
}

mica_status mica_report_summarise(const mica_report *report, const mica_report_group *group, const mica_statistic *statistic,
                                  mica_summary *summary, mica_error *error) {
    double *values = mica_calloc(group->count + 1, sizeof *values);
    if (!values)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu values", (unsigned long long)group->count);
    for (uint64_t i = 0; i < group->count; i++) {
        const mica_statistic_input input = mica_report_input(report, group, i);
        values[i] = statistic->value(&input);
    }
    const mica_status status = mica_summarise(values, group->count, summary, error);
    mica_free(values);
    return status;
}
