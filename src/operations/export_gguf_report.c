/* operations/export_gguf_report.c: the report of an export: sizes, the types and what stood in for them, time and memory, warnings.
 * Judged by tests/operations/test_export_gguf.c against docs/schemas/export.schema.json (tests/interop). */
#include "operations/export_gguf_report.h"

#include <math.h>

#include "base/memory.h"
#include "base/quantity.h"
#include "operations/export_rules.h"
#include "operations/output.h"

typedef struct type_total {
    uint64_t tensors, bytes;
} type_total;

static double bits_per_weight(const mica_export_plan *plan) {
    return plan->parameters ? 8.0 * (double)plan->bytes / (double)plan->parameters : 0;
}

static void count_types(const mica_export_plan *plan, type_total totals[MICA_DTYPE_COUNT]) {
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        totals[plan->tensors[i].dtype].tensors++;
        totals[plan->tensors[i].dtype].bytes += plan->tensors[i].bytes;
    }
}

static bool is_substitute(const mica_export_tensor *tensor) {
    return tensor->dtype != tensor->wanted;
}

/* Substitutes of one kind are told together: "27 x Q4_K -> Q5_0: rows of 1408". */
static void write_substitutes(const mica_export_plan *plan, mica_text *text) {
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        uint64_t alike = 0, before = 0;
        for (uint64_t j = 0; is_substitute(tensor) && j < plan->tensor_count; j++) {
            const mica_export_tensor *other = &plan->tensors[j];
            const bool same = other->dtype == tensor->dtype && other->wanted == tensor->wanted && other->columns == tensor->columns;
            alike += same;
            before += same && j < i;
        }
        if (alike > 0 && before == 0)
            mica_text_printf(text, "  instead   %s for %s in %llu tensor%s whose rows of %llu are no whole blocks: %s%s\n",
                             mica_dtype_name(tensor->dtype), mica_dtype_name(tensor->wanted), (unsigned long long)alike,
                             alike == 1 ? "" : "s", (unsigned long long)tensor->columns, tensor->name, alike == 1 ? "" : ", …");
    }
}

/* Of the tensors that an importance matrix could serve, those it has, and the experts it never saw. */
typedef struct coverage {
    uint64_t tensors, covered, experts, never, correlated;
} coverage;

static coverage coverage_of(const mica_export_plan *plan) {
    coverage seen = {0};
    for (uint64_t i = 0; plan->imatrix && i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        seen.tensors += mica_dtype_is_block(tensor->dtype);
        seen.correlated += tensor->covariance;
        seen.covered += mica_dtype_is_block(tensor->dtype) && tensor->importance;
        for (uint64_t e = 0; tensor->form == MICA_GGUF_EXPERTS && tensor->importance && e < tensor->matrices; e++) {
            seen.experts++;
            seen.never += !(mica_imatrix_count(tensor->importance, mica_export_expert(tensor, e)) > 0);
        }
    }
    return seen;
}

static void write_text(const mica_export_run *run, const char *outcome, double estimate, mica_text *text) {
    const mica_export_plan *plan = run->plan;
    type_total totals[MICA_DTYPE_COUNT] = {{0, 0}};
    char bytes[MICA_QUANTITY_BYTES], count[MICA_QUANTITY_BYTES];
    count_types(plan, totals);
    if (run->options->generate_config)
        mica_text_printf(text, "%s: rules written, no GGUF\n", run->options->generate_config);
    else if (run->options->dry_run)
        mica_text_printf(text, "dry run: nothing is written\n");
    else
        mica_text_printf(text, "%s: %s\n", run->path, outcome);
    mica_text_printf(text, "  model     %s as %s, %s parameters in %llu tensors\n", plan->architecture, mica_mixture_name(plan->mixture),
                     mica_count_show(plan->parameters, count), (unsigned long long)plan->tensor_count);
    mica_text_printf(text, "  size      %llu bytes (%s) in %u file%s, %.3f bits per weight\n", (unsigned long long)plan->bytes,
                     mica_bytes_show(plan->bytes, bytes), run->layout.shard_count, run->layout.shard_count == 1 ? "" : "s",
                     bits_per_weight(plan));
    for (int i = 0; i < MICA_DTYPE_COUNT; i++)
        if (totals[i].tensors > 0)
            mica_text_printf(text, "  %-9s %llu tensor%s, %s\n", mica_dtype_name((mica_dtype)i), (unsigned long long)totals[i].tensors,
                             totals[i].tensors == 1 ? "" : "s", mica_bytes_show(totals[i].bytes, bytes));
    write_substitutes(plan, text);
    const uint64_t requantised = mica_export_requantised(plan);
    if (requantised > 0)
        mica_text_printf(text, "  again     %llu tensor%s quantised a second time: the errors of both add up\n",
                         (unsigned long long)requantised, requantised == 1 ? "" : "s");
    if (plan->imatrix) {
        const coverage seen = coverage_of(plan);
        mica_text_printf(
            text, "  imatrix   importance for %llu of %llu quantised tensors; %llu of %llu matrices of experts were never routed to\n",
            (unsigned long long)seen.covered, (unsigned long long)seen.tensors, (unsigned long long)seen.never,
            (unsigned long long)seen.experts);
    }
    if (plan->trellis && coverage_of(plan).correlated > 0)
        mica_text_printf(text, "  levels    searched with the inputs' covariance in %llu tensors\n",
                         (unsigned long long)coverage_of(plan).correlated);
    if (run->budget_bytes > 0)
        mica_text_printf(text, "  budget    %llu bytes", (unsigned long long)run->budget_bytes);
    if (run->budget_bytes > 0 && !isnan(run->budget_ratio))
        mica_text_printf(text, "; measured error %.3f of %s's", run->budget_ratio, mica_mixture_name(plan->mixture));
    if (run->budget_bytes > 0)
        mica_text_puts(text, "\n");
    for (uint64_t i = 0; i < run->rules->note_count; i++)
        mica_text_printf(text, "  note      %s\n", run->rules->notes[i]);
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        if (run->inexact[i] > 0)
            mica_text_printf(
                text, "warning: %s: float16 does not hold %llu scales of its groups: the codes are the same, those scales the nearest\n",
                plan->tensors[i].name, (unsigned long long)run->inexact[i]);
    if (run->seconds > 0)
        mica_text_printf(text,
                         "  time      %.2f s on %u thread%s, %.0f MB/s read, %.1f%% of it waiting for input; memory %.0f MB at most\n",
                         run->seconds, run->threads, run->threads == 1 ? "" : "s", (double)run->bytes_read * 1e-6 / run->seconds,
                         100 * run->starved_seconds / (run->seconds * run->threads), (double)mica_memory_peak_bytes() * 1e-6);
    if (!isnan(estimate))
        mica_text_printf(text, "  estimate  %.*f hours of work for all of it on %u thread%s, if reading and writing keep up\n",
                         estimate < 360 ? 4 : 2, estimate / 3600, run->threads, run->threads == 1 ? "" : "s");
    for (uint64_t i = 0; i < plan->model->warning_count; i++)
        mica_text_printf(text, "warning: %s\n", plan->model->warnings[i]);
}

static void write_tensors(const mica_export_run *run, mica_json_writer *writer) {
    const mica_export_plan *plan = run->plan;
    mica_json_open_array(writer, "tensors");
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "name", tensor->name);
        mica_json_string(writer, "type", mica_dtype_name(tensor->dtype));
        mica_json_string(writer, "wanted", mica_dtype_name(tensor->wanted));
        mica_json_string(writer, "reason", tensor->reason);
        mica_json_bool(writer, "importance", tensor->importance != NULL);
        mica_json_bool(writer, "covariance", tensor->covariance);
        mica_json_open_row(writer, "shape");
        for (uint32_t d = 0; d < tensor->rank; d++)
            mica_json_u64(writer, NULL, tensor->shape[d]);
        mica_json_close_array(writer);
        mica_json_u64(writer, "file", run->layout.tensors[i].shard);
        mica_json_u64(writer, "bytes", tensor->bytes);
        mica_json_u64(writer, "inexact_scales", run->inexact[i]);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static void write_json(const mica_export_run *run, const char *outcome, double estimate, mica_json_writer *writer) {
    const mica_export_plan *plan = run->plan;
    mica_json_open_object(writer, NULL);
    mica_json_string(writer, "outcome", outcome);
    mica_json_string(writer, "format", "gguf");
    mica_json_string(writer, "architecture", plan->architecture);
    mica_json_string(writer, "type", mica_mixture_name(plan->mixture));
    mica_json_u64(writer, "parameters", plan->parameters);
    mica_json_u64(writer, "files", run->layout.shard_count);
    mica_json_u64(writer, "data_bytes", plan->bytes);
    mica_json_double(writer, "bits_per_weight", bits_per_weight(plan));
    mica_json_u64(writer, "units", plan->unit_count);
    mica_json_u64(writer, "units_resumed", run->units.resumed);
    mica_json_u64(writer, "threads", run->threads);
    mica_json_u64(writer, "bytes_read", run->bytes_read);
    mica_json_double(writer, "seconds", run->seconds);
    mica_json_double(writer, "work_seconds", run->work_seconds);
    mica_json_double(writer, "starved_seconds", run->starved_seconds);
    mica_json_double(writer, "estimated_seconds", estimate);
    mica_json_u64(writer, "memory_peak_bytes", mica_memory_peak_bytes());
    const coverage seen = coverage_of(plan);
    mica_json_u64(writer, "experts_never_routed", seen.never);
    mica_json_u64(writer, "requantised", mica_export_requantised(plan));
    mica_json_u64(writer, "budget_bytes", run->budget_bytes);
    mica_json_double(writer, "budget_error_ratio", run->budget_ratio);
    write_tensors(run, writer);
    mica_json_open_array(writer, "notes");
    for (uint64_t i = 0; i < run->rules->note_count; i++)
        mica_json_string(writer, NULL, run->rules->notes[i]);
    mica_json_close_array(writer);
    mica_json_open_array(writer, "warnings");
    for (uint64_t i = 0; i < plan->model->warning_count; i++)
        mica_json_string(writer, NULL, plan->model->warnings[i]);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

mica_status mica_export_report(const mica_export_run *run, const char *outcome, double estimate, char **text, char **json,
                               mica_error *error) {
    mica_text lines = MICA_TEXT_INIT;
    write_text(run, outcome, estimate, &lines);
    mica_json_writer writer;
    mica_json_begin(&writer);
    write_json(run, outcome, estimate, &writer);
    return mica_output_give(MICA_OK, &lines, &writer, text, json, error);
}
