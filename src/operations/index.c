/* operations/index.c: mica_index: what is in the directory decides (start, resume, nothing to do, refuse), then work and finish; or a dry
 * run, which times the first units and writes nothing. Judged by tests/operations/test_index.c and test_index_resume.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "operations/index.h"
#include "operations/index_report.h"
#include "operations/stream.h"

#define DRY_RUN_SECONDS 12.0
#define DRY_RUN_UNITS_PER_THREAD 4u

/* What mica_index does with a directory. */
typedef enum index_action { ACTION_START, ACTION_RESUME, ACTION_NOTHING } index_action;

static mica_status choose_action(const char *directory, const mica_index_options *options, index_action *action, mica_error *error) {
    mica_vindex_state state;
    const mica_status status = mica_vindex_state_of(directory, &state, error);
    if (status != MICA_OK)
        return status;
    if (options->resume && options->force)
        return mica_fail(error, MICA_USAGE, "--resume and --force: expected one of them");
    if (state == MICA_VINDEX_FOREIGN)
        return mica_fail(error, MICA_CONFLICT,
                         "%s: expected nothing, an empty directory or a vindex, got something else; it is left as it is", directory);
    if (state == MICA_VINDEX_ABSENT || options->force)
        *action = ACTION_START;
    else if (options->resume)
        *action = state == MICA_VINDEX_UNFINISHED ? ACTION_RESUME : ACTION_NOTHING;
    else if (state == MICA_VINDEX_UNFINISHED)
        return mica_fail(error, MICA_CONFLICT, "%s: an unfinished vindex is there; go on with --resume, or start afresh with --force",
                         directory);
    else
        return mica_fail(error, MICA_CONFLICT, "%s: a vindex is there already; replace it with --force", directory);
    return MICA_OK;
}

static mica_status run_in_directory(mica_index_run *run, const char **outcome, mica_error *error) {
    index_action action = ACTION_START;
    mica_status status = choose_action(run->directory, run->options, &action, error);
    if (status != MICA_OK)
        return status;
    if (action == ACTION_NOTHING) {
        *outcome = "already finished";
        run->units.done = run->units.resumed = run->plan->unit_count;
        return mica_index_check_finished(run, error);
    }
    *outcome = action == ACTION_RESUME ? "resumed and finished" : "finished";
    status = action == ACTION_RESUME ? mica_index_resume(run, error) : mica_index_start(run, error);
    if (status == MICA_OK && run->units.done < run->plan->unit_count)
        status = mica_index_work(run, run->plan->unit_count, error);
    if (status == MICA_OK)
        status = mica_index_finish(run, error);
    return status;
}

/* The units to time: a first routed expert, which learns, and those it teaches; in a dense model the first layers. */
static mica_status run_dry(mica_index_run *run, mica_error *error) {
    const mica_index_plan *plan = run->plan;
    uint64_t first = 0;
    while (first < plan->unit_count && plan->units[first].kind != MICA_INDEX_ROUTED)
        first++;
    if (first == plan->unit_count)
        first = 0;
    uint64_t end = first + 3 + (uint64_t)DRY_RUN_UNITS_PER_THREAD * run->resources.threads;
    if (end > plan->unit_count)
        end = plan->unit_count;
    run->units.done = first;
    run->stop_after = DRY_RUN_SECONDS;
    const mica_status status = mica_index_work(run, end, error);
    if (status == MICA_INTERRUPTED && run->stopped && run->units.done > first)
        return MICA_OK;
    if (status == MICA_INTERRUPTED && run->stopped)
        return mica_fail(error, MICA_FAILED, "the first matrix took longer than %.0f s: no estimate", DRY_RUN_SECONDS);
    return status;
}

static mica_status run_plan(const char *directory, const mica_index_options *options, const mica_index_plan *plan, char **text, char **json,
                            mica_error *error) {
    mica_index_run run = {.plan = plan, .options = options, .directory = directory, .lock = -1};
    mica_status status = mica_index_resources_fit(plan, options, &run.resources, error);
    if (status != MICA_OK)
        return status;
    run.outcomes = mica_calloc(plan->unit_count, sizeof *run.outcomes);
    run.unit_seconds = mica_calloc(plan->unit_count, sizeof *run.unit_seconds);
    const char *outcome = "dry run";
    if (!run.outcomes || !run.unit_seconds)
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu matrices", (unsigned long long)plan->unit_count);
    else if (options->dry_run)
        status = run_dry(&run, error);
    else
        status = run_in_directory(&run, &outcome, error);
    mica_index_close(&run);
    if (status == MICA_OK && options->hash_source && !options->dry_run)
        status = mica_index_hash_source(&run, error);
    if (status == MICA_OK)
        status = mica_index_tell(&run, outcome, text, json, error);
    for (uint64_t i = 0; run.outcomes && i < plan->unit_count; i++) {
        mica_free(run.outcomes[i].values);
        mica_free(run.outcomes[i].warning);
    }
    mica_free(run.outcomes);
    mica_free(run.unit_seconds);
    return status;
}

mica_status mica_index(const char *checkpoint, const char *directory, const mica_index_options *options, char **text, char **json,
                       mica_error *error) {
    const mica_index_options defaults = {0};
    if (!options)
        options = &defaults;
    mica_model *model;
    mica_index_plan plan;
    mica_status status = mica_model_open(checkpoint, &(mica_model_options){.strict = false}, &model, error);
    if (status != MICA_OK)
        return status;
    if (options->hash_source && mica_store_is_named(checkpoint))
        status = mica_fail(error, MICA_USAGE,
                           "--hash-source: expected a checkpoint's own files, got a model of a store, which has recorded hashes");
    if (status == MICA_OK)
        status = mica_index_plan_make(model, options, &plan, error);
    if (status == MICA_OK) {
        status = run_plan(directory, options, &plan, text, json, error);
        mica_index_plan_release(&plan);
    }
    mica_model_close(model);
    return status;
}
