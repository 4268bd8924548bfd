/* operations/index_report.c: the report of a run of mica_index: what was done, how well, what to know; and the dry run's extrapolation.
 * Judged by tests/operations/test_index.c against docs/schemas/index.schema.json (tests/interop). */
#include "operations/index_report.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "operations/output.h"
#include "operations/stream.h"

/* Over the units that this report knows. */
typedef struct index_totals {
    uint64_t units, krylov, dense_route, zero, checked;
    double residual, orthonormality, value_error; /* the worst */
    double hours;                                 /* of a whole run, by extrapolation; NaN: not measured */
    bool reading_bound;
} index_totals;

static bool is_known(const mica_index_run *run, uint64_t unit) {
    return run->outcomes[unit].record.count > 0;
}

static void raise_to(double *worst, double value) {
    if (value > *worst)
        *worst = value;
}

static void count_units(const mica_index_run *run, index_totals *totals) {
    for (uint64_t i = 0; i < run->plan->unit_count; i++) {
        const mica_index_record *record = &run->outcomes[i].record;
        if (!is_known(run, i))
            continue;
        totals->units++;
        totals->krylov += record->route == MICA_SVD_KRYLOV;
        totals->dense_route += record->route == MICA_SVD_DENSE;
        totals->zero += record->route == MICA_SVD_ZERO;
        totals->checked += record->count_checked != 0;
        raise_to(&totals->residual, record->residual);
        raise_to(&totals->orthonormality, record->orthonormality);
        raise_to(&totals->value_error, record->value_error);
    }
}

/* ---- extrapolation */

/* Relative cost of a matrix: its Gram product, which is most of the time. */
static double cost(const mica_weight *weight) {
    const double rows = (double)weight->rows, columns = (double)weight->columns;
    return rows * columns * (rows < columns ? rows : columns);
}

/* A unit that learns its plan costs as the timed learners did, the others as the timed others, each by the size of its matrix.
 * The threads share the work; where they starved, reading at the measured rate is the bound. */
static void extrapolate(const mica_index_run *run, index_totals *totals) {
    const mica_index_plan *plan = run->plan;
    double seconds[2] = {0, 0}, costs[2] = {0, 0}, total = 0;
    for (uint64_t i = 0; i < plan->unit_count; i++) {
        const int taught = plan->units[i].after != MICA_STREAM_NONE;
        if (run->unit_seconds[i] <= 0 || plan->units[i].kind == MICA_INDEX_ROUTER)
            continue;
        seconds[taught] += run->unit_seconds[i];
        costs[taught] += cost(plan->units[i].weight);
    }
    totals->hours = NAN;
    if (costs[0] + costs[1] <= 0)
        return;
    for (uint64_t i = 0; i < plan->unit_count; i++) {
        int taught = plan->units[i].after != MICA_STREAM_NONE;
        if (costs[taught] <= 0)
            taught = !taught;
        total += cost(plan->units[i].weight) * seconds[taught] / costs[taught];
    }
    totals->hours = total / run->resources.threads / 3600;
    const double reading = run->bytes_read > 0 ? (double)plan->bytes_total * run->seconds / (double)run->bytes_read / 3600 : 0;
    totals->reading_bound = run->starved_seconds > run->work_seconds && reading > totals->hours;
    if (totals->reading_bound)
        totals->hours = reading;
}

/* ---- writing */

static uint64_t vindex_bytes(const mica_vindex_layout *layout) {
    uint64_t bytes = 0;
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++)
        for (int member = 0; member < MICA_VINDEX_MEMBER_COUNT; member++)
            bytes += mica_vindex_file_bytes(layout, (mica_vindex_group)group, (mica_vindex_member)member);
    return bytes;
}

static void tell_lost(const mica_index_unit *unit, const double *values, uint32_t count, const char *where, const char *becomes,
                      void (*tell)(void *context, const char *warning), void *context) {
    if (count == 0)
        return;
    mica_text line = MICA_TEXT_INIT;
    mica_text_printf(&line, "%s: %u of its singular values %s %s (the largest %g): %s in the .bin, exact in %s", unit->weight->name, count,
                     count == 1 ? "is" : "are", where, values[0], becomes, MICA_VINDEX_PHASE1);
    if (!mica_text_failed(&line))
        tell(context, line.bytes);
    mica_text_release(&line);
}

/* Calls `tell` for each warning: the model's, then those of the matrices. */
static void each_warning(const mica_index_run *run, void (*tell)(void *context, const char *warning), void *context) {
    for (uint64_t i = 0; i < run->plan->model->warning_count; i++)
        tell(context, run->plan->model->warnings[i]);
    for (uint64_t i = 0; i < run->plan->unit_count; i++) {
        const mica_index_outcome *outcome = &run->outcomes[i];
        const mica_index_unit *unit = &run->plan->units[i];
        if (outcome->warning)
            tell(context, outcome->warning);
        if (outcome->record.value_count == 0 || unit->kind == MICA_INDEX_ROUTER)
            continue;
        uint32_t beyond = 0;
        while (beyond < outcome->record.value_count && mica_index_is_beyond(outcome->values[beyond]))
            beyond++;
        tell_lost(unit, outcome->values, beyond, "beyond float32", "+inf", tell, context);
        tell_lost(unit, outcome->values + beyond, outcome->record.value_count - beyond, "positive but below float32", "0", tell, context);
    }
}

static void tell_text(void *context, const char *warning) {
    mica_text_printf(context, "warning: %s\n", warning);
}

static void tell_json(void *context, const char *warning) {
    mica_json_string(context, NULL, warning);
}

/* "1 matrix", "105 matrices". */
static void put_count(mica_text *text, uint64_t count, const char *one, const char *many) {
    mica_text_printf(text, "%llu %s", (unsigned long long)count, count == 1 ? one : many);
}

/* "0.120 GB", below 0.01 GB "3.914 MB". */
static void put_size(mica_text *text, uint64_t bytes) {
    if (bytes < 10000000)
        mica_text_printf(text, "%.3f MB", (double)bytes * 1e-6);
    else
        mica_text_printf(text, "%.3f GB", (double)bytes * 1e-9);
}

static void write_text(const mica_index_run *run, const char *outcome, const index_totals *totals, mica_text *text) {
    const mica_index_plan *plan = run->plan;
    const bool dry = run->options->dry_run;
    if (dry)
        mica_text_printf(text, "dry run: nothing is written\n");
    else
        mica_text_printf(text, "%s: %s\n", run->directory, outcome);
    mica_text_puts(text, "  units     ");
    put_count(text, plan->unit_count, "matrix", "matrices");
    mica_text_puts(text, " in ");
    put_count(text, plan->layer_count, "layer", "layers");
    if (run->units.resumed > 0 && run->units.resumed < plan->unit_count)
        mica_text_printf(text, ", %llu of them done before", (unsigned long long)run->units.resumed);
    mica_text_puts(text, "\n  bytes     ");
    put_size(text, plan->bytes_total);
    mica_text_puts(text, " to read, ");
    put_size(text, vindex_bytes(&plan->layout));
    mica_text_puts(text, " of vectors and values\n");
    if (totals->units > 0) {
        mica_text_printf(text, "  time      %.2f s for ", run->seconds);
        put_count(text, dry ? totals->units : run->units.done - run->units.resumed, "matrix", "matrices");
        mica_text_printf(text, " on %u thread%s, %.1f%% of it waiting for input\n", run->resources.threads,
                         run->resources.threads == 1 ? "" : "s",
                         run->seconds > 0 ? 100 * run->starved_seconds / (run->seconds * run->resources.threads) : 0);
        mica_text_printf(text, "  memory    %.0f MB at most\n", (double)mica_memory_peak_bytes() * 1e-6);
        mica_text_printf(text,
                         "  quality   residual at most %.2g, orthonormality %.2g, singular values within %.2g s0; %llu count%s checked\n",
                         totals->residual, totals->orthonormality, totals->value_error, (unsigned long long)totals->checked,
                         totals->checked == 1 ? "" : "s");
        mica_text_printf(text, "  routes    %llu krylov, %llu dense, %llu zero\n", (unsigned long long)totals->krylov,
                         (unsigned long long)totals->dense_route, (unsigned long long)totals->zero);
    }
    if (dry) {
        mica_text_printf(text, "  estimate  %.*f hours for all units on %u thread%s%s\n", totals->hours < 0.1 ? 4 : 2, totals->hours,
                         run->resources.threads, run->resources.threads == 1 ? "" : "s", totals->reading_bound ? ", bound by reading" : "");
    }
    each_warning(run, tell_text, text);
}

static void write_json(const mica_index_run *run, const char *outcome, const index_totals *totals, mica_json_writer *writer) {
    mica_json_open_object(writer, NULL);
    mica_json_string(writer, "outcome", outcome);
    mica_json_string(writer, "directory", run->options->dry_run ? NULL : run->directory);
    mica_json_u64(writer, "layers", run->plan->layer_count);
    mica_json_u64(writer, "units", run->plan->unit_count);
    mica_json_u64(writer, "units_resumed", run->units.resumed);
    mica_json_u64(writer, "units_known", totals->units);
    mica_json_u64(writer, "bytes_total", run->plan->bytes_total);
    mica_json_u64(writer, "bytes_read", run->bytes_read);
    mica_json_u64(writer, "vindex_bytes", vindex_bytes(&run->plan->layout));
    mica_json_u64(writer, "threads", run->resources.threads);
    mica_json_double(writer, "seconds", run->seconds);
    mica_json_double(writer, "work_seconds", run->work_seconds);
    mica_json_double(writer, "svd_seconds", run->svd_seconds);
    mica_json_double(writer, "starved_seconds", run->starved_seconds);
    mica_json_u64(writer, "memory_estimate_bytes", run->resources.bytes);
    mica_json_u64(writer, "memory_peak_bytes", mica_memory_peak_bytes());
    mica_json_double(writer, "residual_max", totals->units ? totals->residual : NAN);
    mica_json_double(writer, "orthonormality_max", totals->units ? totals->orthonormality : NAN);
    mica_json_double(writer, "value_error_max", totals->units ? totals->value_error : NAN);
    mica_json_u64(writer, "counts_checked", totals->checked);
    mica_json_u64(writer, "dense_route", totals->dense_route);
    mica_json_u64(writer, "zero_matrices", totals->zero);
    mica_json_double(writer, "estimated_hours", run->options->dry_run ? totals->hours : NAN);
    mica_json_open_array(writer, "warnings");
    each_warning(run, tell_json, writer);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

mica_status mica_index_tell(const mica_index_run *run, const char *outcome, char **text, char **json, mica_error *error) {
    index_totals totals = {.hours = NAN};
    count_units(run, &totals);
    if (run->options->dry_run)
        extrapolate(run, &totals);
    mica_text lines = MICA_TEXT_INIT;
    write_text(run, outcome, &totals, &lines);
    mica_json_writer writer;
    mica_json_begin(&writer);
    write_json(run, outcome, &totals, &writer);
    return mica_output_give(MICA_OK, &lines, &writer, text, json, error);
}
