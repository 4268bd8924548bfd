/* operations/vindex_report_phase1.c: phase1_moe_svd.json (every statistic of every matrix) and phase1_moe_svd_agg.json (over layers).
 * What is not finite is null, with its reason beside it. Keys: docs/formats.md. Judged by tests/operations/test_index.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "operations/vindex_report.h"

static void write_summary(mica_json_writer *writer, const mica_summary *summary) {
    mica_json_double(writer, "median", summary->median);
    mica_json_double(writer, "q25", summary->q25);
    mica_json_double(writer, "q75", summary->q75);
}

static mica_status write_statistic(const mica_report *report, const mica_report_group *group, const mica_statistic *statistic,
                                   mica_json_writer *writer, mica_error *error) {
    mica_summary summary;
    const mica_status status = mica_report_summarise(report, group, statistic, &summary, error);
    if (status != MICA_OK)
        return status;
    mica_json_open_object(writer, statistic->name);
    write_summary(writer, &summary);
    if (summary.count == 0)
        mica_json_string(writer, "reason", "no expert has a finite value");
    mica_json_open_row(writer, "per_expert");
    for (uint64_t i = 0; i < group->count; i++) {
        const mica_statistic_input input = mica_report_input(report, group, i);
        if (statistic->count)
            mica_json_u64(writer, NULL, (uint64_t)statistic->value(&input));
        else
            mica_json_double(writer, NULL, statistic->value(&input));
    }
    mica_json_close_array(writer);
    mica_json_close_object(writer);
    return MICA_OK;
}

/* How each matrix was done: the columns that are not numbers. */
static void write_routes(const mica_report *report, const mica_report_group *group, mica_json_writer *writer) {
    mica_json_open_row(writer, "route");
    for (uint64_t i = 0; i < group->count; i++)
        mica_json_string(writer, NULL, mica_svd_route_name((mica_svd_route)mica_report_input(report, group, i).record->route));
    mica_json_close_array(writer);
    mica_json_open_row(writer, "why_dense");
    for (uint64_t i = 0; i < group->count; i++) {
        const char *why = mica_report_input(report, group, i).record->why_dense;
        mica_json_string(writer, NULL, *why ? why : NULL);
    }
    mica_json_close_array(writer);
    mica_json_open_row(writer, "count_checked");
    for (uint64_t i = 0; i < group->count; i++)
        mica_json_bool(writer, NULL, mica_report_input(report, group, i).record->count_checked != 0);
    mica_json_close_array(writer);
    mica_json_open_row(writer, "above_edge_capped"); /* every value computed is above: there may be more */
    for (uint64_t i = 0; i < group->count; i++) {
        const mica_statistic_input input = mica_report_input(report, group, i);
        const mica_weight *weight = input.unit->weight;
        const uint64_t side = weight->rows < weight->columns ? weight->rows : weight->columns;
        mica_json_bool(writer, NULL, !input.unit->full && input.record->count < side && input.record->above_edge >= input.record->count);
    }
    mica_json_close_array(writer);
}

static void write_reasons(const mica_report *report, const mica_report_group *group, mica_json_writer *writer) {
    const mica_statistic *statistic;
    mica_json_open_array(writer, "reasons");
    for (uint64_t s = 0; (statistic = mica_statistic_at(s)) != NULL; s++)
        for (uint64_t i = 0; i < group->count; i++) {
            const mica_statistic_input input = mica_report_input(report, group, i);
            if ((statistic->full_only && !input.unit->full) || isfinite(statistic->value(&input)))
                continue;
            mica_json_open_object(writer, NULL);
            mica_json_string(writer, "statistic", statistic->name);
            mica_json_u64(writer, "expert", i);
            mica_json_string(writer, "reason", mica_statistic_reason(statistic, &input));
            mica_json_close_object(writer);
        }
    mica_json_close_array(writer);
}

/* The exact singular values that float32 lost in gate_singular_values.bin: those that stand there as +inf, or as 0. */
static void write_lost(const mica_report *report, const mica_report_group *group, const char *key, bool (*is_lost)(double value),
                       mica_json_writer *writer) {
    mica_json_open_array(writer, key);
    for (uint64_t i = 0; i < group->count; i++) {
        const mica_index_outcome *outcome = &report->outcomes[group->units[i]];
        uint32_t first = 0, end = outcome->record.value_count;
        while (first < end && !is_lost(outcome->values[first]))
            first++;
        while (end > first && !is_lost(outcome->values[end - 1]))
            end--;
        if (first == end)
            continue;
        mica_json_open_object(writer, NULL);
        mica_json_u64(writer, "expert", i);
        mica_json_open_row(writer, "values");
        for (uint32_t v = first; v < end; v++)
            mica_json_double(writer, NULL, outcome->values[v]);
        mica_json_close_array(writer);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static mica_status write_group(const mica_report *report, const mica_report_group *group, mica_json_writer *writer, mica_error *error) {
    const mica_index_unit *first = &report->plan->units[group->units[0]];
    mica_summary summary;
    mica_status status = mica_report_summarise(report, group, mica_statistic_find("var64"), &summary, error);
    if (status != MICA_OK)
        return status;
    mica_json_open_object(writer, mica_projection_name(group->projection));
    mica_json_u64(writer, "rows", first->weight->rows);
    mica_json_u64(writer, "columns", first->weight->columns);
    mica_json_u64(writer, "experts", group->count);
    mica_json_string(writer, "encoding", mica_encoding_name(first->weight->encoding));
    mica_json_bool(writer, "full_spectrum", first->full);
    mica_json_double(writer, "null_var64", group->noise_var64);
    mica_json_double(writer, "median_var64", summary.median);
    mica_json_double(writer, "q25_var64", summary.q25);
    mica_json_double(writer, "q75_var64", summary.q75);
    mica_json_open_object(writer, "statistics");
    const mica_statistic *statistic;
    for (uint64_t i = 0; status == MICA_OK && (statistic = mica_statistic_at(i)) != NULL; i++)
        if (!statistic->full_only || first->full)
            status = write_statistic(report, group, statistic, writer, error);
    mica_json_close_object(writer);
    write_routes(report, group, writer);
    write_reasons(report, group, writer);
    write_lost(report, group, "beyond_float32", mica_index_is_beyond, writer);
    write_lost(report, group, "below_float32", mica_index_is_below, writer);
    mica_json_close_object(writer);
    return status;
}

static mica_status write_kind(const mica_report *report, uint64_t layer, mica_index_kind kind, mica_json_writer *writer,
                              mica_error *error) {
    mica_status status = MICA_OK;
    bool open = false;
    for (mica_projection projection = MICA_GATE; status == MICA_OK && projection < MICA_PROJECTION_COUNT; projection++) {
        mica_report_group group;
        status = mica_report_group_make(report, layer, kind, projection, &group, error);
        if (status != MICA_OK)
            break;
        if (group.count > 0 && !open)
            mica_json_open_object(writer, mica_index_kind_name(kind));
        if (group.count > 0) {
            open = true;
            status = write_group(report, &group, writer, error);
        }
        mica_report_group_release(&group);
    }
    if (open)
        mica_json_close_object(writer);
    else
        mica_json_null(writer, mica_index_kind_name(kind));
    return status;
}

mica_status mica_report_phase1(const mica_report *report, mica_json_writer *writer, mica_error *error) {
    mica_report_open(writer);
    mica_json_u64(writer, "k", MICA_INDEX_VAR_COUNT);
    mica_json_open_object(writer, "layers");
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < report->plan->layer_count; i++) {
        char key[24];
        const uint64_t layer = report->plan->layers[i];
        snprintf(key, sizeof key, "%llu", (unsigned long long)layer);
        mica_json_open_object(writer, key);
        for (mica_index_kind kind = MICA_INDEX_ROUTED; status == MICA_OK && kind < MICA_INDEX_ROUTER; kind++)
            status = write_kind(report, layer, kind, writer, error);
        mica_json_close_object(writer);
    }
    mica_json_close_object(writer);
    mica_json_close_object(writer);
    return status;
}

/* ---- over layers */

static void write_spread(mica_json_writer *writer, const char *key, const mica_summary *summary) {
    mica_json_open_object(writer, key);
    write_summary(writer, summary);
    mica_json_double(writer, "min", summary->min);
    mica_json_double(writer, "max", summary->max);
    if (summary->count == 0)
        mica_json_string(writer, "reason", "no layer has a finite value");
    mica_json_close_object(writer);
}

/* The medians of the layers, of one kind and projection. */
static mica_status aggregate(const mica_report *report, mica_index_kind kind, mica_projection projection, mica_json_writer *writer,
                             mica_error *error) {
    const mica_index_plan *plan = report->plan;
    double *medians = mica_calloc(plan->layer_count + 1, sizeof *medians), noise = NAN;
    if (!medians)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu layers", (unsigned long long)plan->layer_count);
    uint64_t layers = 0;
    mica_summary summary;
    mica_status status = MICA_OK;
    for (uint64_t i = 0; status == MICA_OK && i < plan->layer_count; i++) {
        mica_report_group group;
        status = mica_report_group_make(report, plan->layers[i], kind, projection, &group, error);
        if (status != MICA_OK)
            break;
        if (group.count > 0) {
            status = mica_report_summarise(report, &group, mica_statistic_find("var64"), &summary, error);
            medians[layers++] = summary.median;
            noise = group.noise_var64;
        }
        mica_report_group_release(&group);
    }
    if (status == MICA_OK)
        status = mica_summarise(medians, layers, &summary, error);
    mica_free(medians);
    if (status != MICA_OK || layers == 0)
        return status;
    mica_json_open_object(writer, mica_index_kind_name(kind));
    mica_json_u64(writer, "layers", layers);
    mica_json_double(writer, "null_var64", noise);
    mica_json_double(writer, "ratio_to_null", summary.median / noise);
    write_spread(writer, "median_var64", &summary);
    mica_json_close_object(writer);
    return MICA_OK;
}

/* The constants published beside vindexes: none follows from the weights alone. */
static void write_constants(mica_json_writer *writer) {
    static const struct {
        const char *name, *meaning, *reason;
    } constants[] = {
        {"C1", "share of near-zero SwiGLU activations", "needs activations: the share is over tokens of a text"},
        {"C2", "probability mass of the top 8 output tokens", "needs activations: output probabilities over tokens of a text"},
        {"C3", "gate coherence",
         "the published definition does not say which gate directions are adjacent; it is measured with activations"},
        {"C4", "layer temperature", "needs activations: variance of gate(x) * up(x) over tokens"},
        {"C5", "circuit stages", "needs activations: CKA between layers over shared prompts"},
    };
    mica_json_open_object(writer, "constants");
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++) {
        mica_json_open_object(writer, constants[i].name);
        mica_json_string(writer, "meaning", constants[i].meaning);
        mica_json_null(writer, "value");
        mica_json_string(writer, "reason", constants[i].reason);
        mica_json_close_object(writer);
    }
    mica_json_close_object(writer);
}

mica_status mica_report_phase1_agg(const mica_report *report, mica_json_writer *writer, mica_error *error) {
    mica_report_open(writer);
    mica_json_u64(writer, "k", MICA_INDEX_VAR_COUNT);
    mica_json_open_object(writer, "projections");
    mica_status status = MICA_OK;
    for (mica_projection projection = MICA_GATE; projection < MICA_PROJECTION_COUNT; projection++) {
        if (!(report->plan->spectra >> projection & 1))
            continue;
        mica_json_open_object(writer, mica_projection_name(projection));
        for (mica_index_kind kind = MICA_INDEX_ROUTED; status == MICA_OK && kind < MICA_INDEX_ROUTER; kind++)
            status = aggregate(report, kind, projection, writer, error);
        mica_json_close_object(writer);
    }
    mica_json_close_object(writer);
    write_constants(writer);
    mica_json_close_object(writer);
    return status;
}
