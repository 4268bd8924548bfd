/* operations/export_gguf.c: mica_export_gguf: plan, layout, then what is there decides (start, resume, refuse), then work, then the final
 * names; or a dry run, which times units of every kind and writes nothing. Judged by tests/operations/test_export_gguf.c. */
#include "operations/export_gguf.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "base/threads.h"
#include "operations/export_budget.h"
#include "operations/export_covariance.h"
#include "operations/export_gguf_report.h"
#include "operations/export_rules.h"

#define DEFAULT_MEMORY_BYTES ((uint64_t)1 << 30)
#define BASE_BYTES ((uint64_t)64 << 20)       /* the program, its tables of tensors */
#define PER_TENSOR_BYTES ((uint64_t)512)
#define STRIP_BYTES ((uint64_t)4 << 20)       /* of a thread: decoded rows and the quantiser's */
#define COVARIANCE_STRIP_BYTES ((uint64_t)128 * 13) /* a column of a strip: rows of floats, and what the search allocates */
#define DRY_RUN_UNITS_OF_A_KIND 3u

/* Threads that fit the memory: each has an output, each and each unit read ahead a window. */
static mica_status fit_memory(mica_export_run *run, mica_error *error) {
    const mica_export_gguf_options *options = run->options;
    const uint64_t bound = options->memory_bytes ? options->memory_bytes : DEFAULT_MEMORY_BYTES;
    const uint64_t fixed = BASE_BYTES + PER_TENSOR_BYTES * run->plan->model->source->tensor_count;
    const uint64_t slab = MICA_EXPORT_SLAB_BYTES + ((uint64_t)64 << 10), columns = mica_export_plan_covariance_columns(run->plan);
    const uint64_t strip = STRIP_BYTES + columns * COVARIANCE_STRIP_BYTES;
    run->threads = options->threads ? options->threads : mica_thread_count_default();
    for (;; run->threads--) {
        run->ahead = run->threads < 4 ? run->threads + 1 : run->threads / 2 + 2;
        run->readers = run->threads < 4 ? 2 : 4;
        const uint64_t factors = columns ? mica_export_factors_bytes(columns, run->threads) : 0;
        if (fixed + factors + (run->threads + run->ahead) * slab + run->threads * (slab + strip) <= bound)
            return MICA_OK;
        if (run->threads == 1)
            return mica_fail(error, MICA_USAGE, "--memory: expected at least %llu MiB for this model, got %llu MiB",
                             (unsigned long long)((fixed + factors + strip + 4 * slab) >> 20) + 1, (unsigned long long)(bound >> 20));
    }
}

/* ---- the layout */

static mica_status make_layout(mica_export_run *run, mica_export_rules *rules, mica_error *error) {
    const mica_export_plan *plan = run->plan;
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_tensor *tensors = mica_calloc(plan->tensor_count + 1, sizeof *tensors);
    mica_status status = tensors ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for the table of tensors");
    for (uint64_t i = 0; status == MICA_OK && i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        tensors[i] = (mica_gguf_tensor){.name = tensor->name, .dtype = tensor->dtype, .rank = tensor->rank, .number = i};
        for (uint32_t d = 0; d < tensor->rank; d++)
            tensors[i].shape[d] = tensor->shape[tensor->rank - 1 - d];
    }
    if (status == MICA_OK && plan->gguf)
        mica_export_metadata_again(plan, &metadata);
    if (status == MICA_OK && !plan->gguf)
        status = mica_export_metadata(plan, &metadata, error);
    if (status == MICA_OK)
        mica_export_metadata_groups(plan, &metadata);
    if (status == MICA_OK && !plan->gguf)
        status = mica_export_tokenizer(plan, rules, &metadata, error);
    if (status == MICA_OK)
        status = mica_gguf_layout_make(tensors, plan->tensor_count, &metadata, run->options->split_bytes, &run->layout, error);
    else
        mica_free(tensors);
    mica_gguf_metadata_release(&metadata);
    return status;
}

/* ---- what is there */

typedef enum export_action { ACTION_START, ACTION_RESUME, ACTION_CHECK } export_action;

/* `first`: the file of `path` that tells of it, `path` itself where there is but one. */
static mica_status choose_action(const mica_export_gguf_options *options, const char *path, const char *first, const char *journal_path,
                                 export_action *action, mica_error *error) {
    const bool unfinished = mica_path_exists(journal_path), finished = !unfinished && mica_path_exists(first);
    if (options->resume && options->force)
        return mica_fail(error, MICA_USAGE, "--resume and --force: expected one of them");
    *action = options->resume && unfinished ? ACTION_RESUME : options->resume && finished ? ACTION_CHECK : ACTION_START;
    if (!options->force && !options->resume && unfinished)
        return mica_fail(error, MICA_CONFLICT, "%s: an unfinished export is there; go on with --resume, or start afresh with --force",
                         path);
    if (!options->force && !options->resume && finished)
        return mica_fail(error, MICA_CONFLICT, "%s: is there already; replace it with --force", first);
    return MICA_OK;
}

static char *journal_of(const char *path) {
    mica_text journal = MICA_TEXT_INIT;
    mica_text_printf(&journal, "%s.journal", path ? path : "");
    return mica_text_take(&journal);
}

/* What can be refused before hours of work, and before another file is written. */
static mica_status check_paths(const char *path, const mica_export_gguf_options *options, mica_error *error) {
    const char *const written[] = {path, options->mmproj, options->generate_config};
    export_action action;
    if (options->generate_config && options->dry_run)
        return mica_fail(error, MICA_USAGE,
                         "--generate-config and --dry-run: expected one of them; neither writes a GGUF, the one writes rules");
    for (size_t i = 0; i < sizeof written / sizeof *written; i++)
        if (written[i] && mica_path_is_directory(written[i]))
            return mica_fail(error, MICA_USAGE, "%s: expected the path of a file to write, got a directory", written[i]);
    if (options->generate_config && !options->force && mica_path_exists(options->generate_config))
        return mica_fail(error, MICA_CONFLICT, "%s: is there already; replace it with --force", options->generate_config);
    if (!path || !options->mmproj || options->dry_run || options->generate_config)
        return MICA_OK;
    if (strcmp(path, options->mmproj) == 0 || mica_path_is_same(path, options->mmproj))
        return mica_fail(error, MICA_USAGE, "--mmproj and --output: expected two files, got %s for both", path);
    if (options->split_bytes)
        return MICA_OK;
    char *journal = journal_of(path);
    const mica_status status = journal ? choose_action(options, path, path, journal, &action, error)
                                       : mica_fail(error, MICA_NO_MEMORY, "out of memory");
    mica_free(journal);
    return status;
}

/* Giving a file its name would take the source's away before all of it was read, or after only some of a set were replaced. */
static mica_status check_not_source(const mica_export_run *run, mica_error *error) {
    const mica_tensor_source *source = run->plan->model->source;
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < run->layout.shard_count; i++) {
        char *path = mica_gguf_file_path(run->path, i, run->layout.shard_count);
        if (!path)
            status = mica_fail(error, MICA_NO_MEMORY, "out of memory");
        for (uint32_t s = 0; status == MICA_OK && s < source->shard_count; s++)
            if (mica_path_is_same(path, mica_file_path(source->shards[s].file)))
                status = mica_fail(error, MICA_CONFLICT, "%s: expected another file than the source's, got its own %s", path,
                                   source->shards[s].name);
        mica_free(path);
    }
    return status;
}

static mica_status run_to_file(mica_export_run *run, const char **outcome, mica_error *error) {
    export_action action = ACTION_START;
    char *first = mica_gguf_file_path(run->path, 0, run->layout.shard_count);
    mica_status status = first ? check_not_source(run, error) : mica_fail(error, MICA_NO_MEMORY, "out of memory");
    if (status == MICA_OK)
        status = choose_action(run->options, run->path, first, run->journal_path, &action, error);
    mica_free(first);
    if (status != MICA_OK)
        return status;
    *outcome = action == ACTION_CHECK ? "already finished" : action == ACTION_RESUME ? "resumed" : "written";
    if (action == ACTION_CHECK)
        return mica_export_files_check(run, error);
    status = action == ACTION_RESUME ? mica_export_files_resume(run, error) : mica_export_files_start(run, error);
    if (status != MICA_OK)
        return status;
    status = mica_export_work(run, run->plan->unit_count, error);
    if (status == MICA_OK)
        return mica_export_files_finish(run, error);
    if (mica_export_files_flush(run, NULL) != MICA_OK) /* what was committed need not be done again */
        run->units.broken = true;                            /* the first failure is the one to tell */
    return status;
}

/* ---- dry run */

/* Units are of one kind when they are read and written alike. */
static bool same_kind(const mica_export_tensor *a, const mica_export_tensor *b) {
    return a->dtype == b->dtype && a->form == b->form && a->weights && b->weights && a->weights[0]->encoding == b->weights[0]->encoding &&
           a->weights[0]->data->dtype == b->weights[0]->data->dtype;
}

/* The rate of a kind, from the units of it that were timed; 0: none. */
static double seconds_per_byte(const mica_export_run *run, const mica_export_tensor *kind, uint64_t count) {
    double seconds = 0, bytes = 0;
    for (uint64_t i = 0; i < count; i++) {
        const mica_export_unit unit = mica_export_unit_at(run->plan, run->order[i]);
        if (!same_kind(unit.tensor, kind))
            continue;
        seconds += run->unit_seconds[i];
        bytes += (double)unit.bytes;
    }
    return bytes > 0 ? seconds / bytes : 0;
}

static mica_status time_units(mica_export_run *run, double *estimate, mica_error *error) {
    const mica_export_plan *plan = run->plan;
    uint64_t *order = mica_calloc(plan->tensor_count + 1, sizeof *order), count = 0;
    run->unit_seconds = mica_calloc(plan->tensor_count + 1, sizeof *run->unit_seconds);
    mica_status status = order && run->unit_seconds ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory for a dry run");
    for (uint64_t i = 0; status == MICA_OK && i < plan->tensor_count; i++) {
        uint32_t alike = 0;
        for (uint64_t j = 0; j < count; j++)
            alike += same_kind(mica_export_unit_at(plan, order[j]).tensor, &plan->tensors[i]);
        if (alike < DRY_RUN_UNITS_OF_A_KIND && plan->tensors[i].weights)
            order[count++] = plan->tensors[i].first_unit;
    }
    run->order = order;
    if (status == MICA_OK)
        status = mica_export_work(run, count, error);
    *estimate = 0;
    for (uint64_t i = 0; status == MICA_OK && i < plan->tensor_count; i++)
        *estimate += seconds_per_byte(run, &plan->tensors[i], count) * (double)plan->tensors[i].bytes / run->threads;
    run->order = NULL;
    mica_free(order);
    return status;
}

/* ---- */

static void release(mica_export_run *run, mica_export_plan *plan) {
    mica_export_files_close(run);
    mica_gguf_layout_release(&run->layout);
    mica_free(run->journal_path);
    mica_free(run->unit_seconds);
    mica_free(run->inexact);
    mica_export_plan_release(plan);
}

/* ---- a budget */

static bool is_measured(const mica_export_tensor *tensor, const mica_export_measure *measure) {
    return measure->count > 0 && tensor->reason && strcmp(tensor->reason, tensor->mixture) == 0; /* a rule's choice stays */
}

/* The error of the types that stand in the plan, over those tensors whose error in them was measured; *known is how many. */
static double planned_error(const mica_export_plan *plan, const mica_export_measure *measures, uint64_t *known) {
    double error = 0;
    *known = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        for (uint32_t t = 0; t < measures[i].count; t++)
            if (measures[i].types[t] == plan->tensors[i].dtype) {
                error += measures[i].weight * measures[i].error[t];
                ++*known;
            }
    return error;
}

/* What is bought: a tensor, or with groups one expert of it. */
typedef struct market {
    mica_export_measure *items;
    uint64_t *tensors; /* [count]: whose each is */
    uint64_t count;
} market;

static mica_status open_market(const mica_export_plan *plan, const mica_export_measure *measures, market *m, mica_error *error) {
    uint64_t most = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++)
        most += plan->tensors[i].types ? plan->tensors[i].matrices : 1;
    m->items = mica_calloc(most + 1, sizeof *m->items);
    m->tensors = mica_calloc(most + 1, sizeof *m->tensors);
    if (!m->items || !m->tensors)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the budget");
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        const mica_export_tensor *tensor = &plan->tensors[i];
        const uint64_t parts = tensor->types && measures[i].count > 0 ? tensor->matrices : 1;
        for (uint64_t p = 0; p < parts; p++) {
            mica_export_measure *item = &m->items[m->count];
            *item = measures[i];
            m->tensors[m->count++] = i;
            if (parts > 1)
                item->weight = mica_export_sensitivity(plan, tensor, p);
            for (uint32_t t = 0; t < item->count; t++)
                item->bytes[t] /= parts;
        }
    }
    return MICA_OK;
}

/* The choices back to the tensors; the summed error of what was bought. */
static double take_home(mica_export_plan *plan, mica_export_measure *measures, const market *m) {
    double error = 0;
    for (uint64_t k = 0, part = 0; k < m->count; k++) {
        mica_export_tensor *tensor = &plan->tensors[m->tensors[k]];
        const mica_export_measure *item = &m->items[k];
        part = k > 0 && m->tensors[k] == m->tensors[k - 1] ? part + 1 : 0;
        if (item->count == 0)
            continue;
        error += item->weight * item->error[item->chosen];
        tensor->wanted = tensor->dtype = item->types[item->chosen];
        tensor->reason = "budget";
        if (tensor->types)
            tensor->types[part] = tensor->dtype;
        measures[m->tensors[k]].chosen = item->chosen;
    }
    return error;
}

/* Gives the tensors, or experts, the types that a budget buys; without one, what the mixture takes is the budget. */
static mica_status spend_budget(mica_export_run *run, mica_export_plan *plan, mica_export_measure *measures, mica_error *error) {
    uint64_t fixed = 0, bytes = 0, measured = 0, known = 0;
    market m = {0};
    mica_status status = mica_export_measure_all(run, measures, error);
    mica_export_plan_units(plan);
    for (uint64_t i = 0; status == MICA_OK && i < plan->tensor_count; i++) {
        measures[i].count = is_measured(&plan->tensors[i], &measures[i]) ? measures[i].count : 0;
        fixed += measures[i].count ? 0 : plan->tensors[i].bytes;
        measured += measures[i].count > 0;
    }
    bytes = plan->bytes;
    if (status == MICA_OK && run->options->budget)
        status = mica_export_budget_parse(run->options->budget, plan->parameters, &bytes, error);
    run->budget_bytes = bytes;
    const double before = status == MICA_OK ? planned_error(plan, measures, &known) : 0;
    if (status == MICA_OK)
        status = open_market(plan, measures, &m, error);
    if (status == MICA_OK)
        status = mica_export_allocate(m.items, m.count, fixed, bytes, error);
    const double after = status == MICA_OK ? take_home(plan, measures, &m) : 0;
    run->budget_ratio = status == MICA_OK && known == measured && before > 0 ? after / before : NAN;
    mica_free(m.items);
    mica_free(m.tensors);
    return status;
}

/* "0-3,7": the experts of this type; false: there are none. */
static bool list_experts(const mica_export_tensor *tensor, mica_dtype type, mica_text *text) {
    for (uint64_t e = 0, end; e < tensor->matrices; e = end) {
        for (end = e; end < tensor->matrices && tensor->types[end] == type; end++) {
        }
        if (end > e)
            mica_text_printf(text, end > e + 1 ? "%s%llu-%llu" : "%s%llu", text->length ? "," : "", (unsigned long long)e,
                             (unsigned long long)(end - 1));
        else
            end++;
    }
    return text->length > 0;
}

/* The rule by which a tensor, or some of its experts, get the t-th of the types that were measured; nothing where none do. */
static void write_rule(const mica_export_tensor *tensor, const mica_export_measure *measure, uint32_t t, mica_json_writer *writer) {
    mica_text experts = MICA_TEXT_INIT;
    if (tensor->types ? list_experts(tensor, measure->types[t], &experts) : measure->types[t] == tensor->dtype) {
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "name", tensor->name);
        if (tensor->types && !mica_text_failed(&experts))
            mica_json_string(writer, "experts", experts.bytes);
        mica_json_string(writer, "type", mica_dtype_name(measure->types[t]));
        mica_json_double(writer, "sensitivity", measure->weight);
        mica_json_open_object(writer, "measured");
        for (uint32_t i = 0; i < measure->count; i++)
            mica_json_double(writer, mica_dtype_name(measure->types[i]), measure->error[i]);
        mica_json_close_object(writer);
        mica_json_close_object(writer);
    }
    mica_text_release(&experts);
}

/* A configuration that chooses these types, with what was measured of each. */
static mica_status write_config(const mica_export_run *run, const mica_export_measure *measures, mica_error *error) {
    const mica_export_plan *plan = run->plan;
    mica_json_writer writer;
    uint64_t length = 0;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "type", mica_mixture_name(plan->mixture));
    mica_json_string(
        &writer, "note",
        "measured: squared error of each type over the energy of the outputs, of a sample of rows; the type: the most sensitivity x error saved per byte");
    mica_json_open_array(&writer, "rules");
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        if (measures[i].count == 0)
            continue;
        for (uint32_t t = 0; t < measures[i].count; t++)
            write_rule(&plan->tensors[i], &measures[i], t, &writer);
    }
    mica_json_close_array(&writer);
    mica_json_close_object(&writer);
    char *json = mica_json_finish(&writer, &length);
    const mica_status status = json ? mica_file_replace(run->options->generate_config, json, length, error)
                                    : mica_fail(error, MICA_NO_MEMORY, "out of memory for the configuration");
    mica_free(json);
    return status;
}

static mica_status apply_budget(mica_export_run *run, mica_export_plan *plan, mica_error *error) {
    const mica_export_gguf_options *options = run->options;
    if ((!options->budget && !options->generate_config) || plan->vision_blocks)
        return MICA_OK;
    if (!options->budget && plan->mixture == MICA_MIXTURE_SOURCE)
        return mica_fail(error, MICA_USAGE, "--generate-config: expected a --type whose size is the budget, or --budget");
    mica_export_measure *measures = mica_calloc(plan->tensor_count + 1, sizeof *measures);
    mica_status status = measures ? spend_budget(run, plan, measures, error)
                                  : mica_fail(error, MICA_NO_MEMORY, "out of memory for the budget");
    if (status == MICA_OK && options->generate_config)
        status = write_config(run, measures, error);
    mica_free(measures);
    return status;
}

/* What "trellis" came to. */
static mica_status explain_trellis(const mica_export_plan *plan, mica_export_rules *rules, mica_error *error) {
    if (!rules->trellis)
        return MICA_OK;
    if (!plan->imatrix || plan->imatrix->covariance_count == 0)
        return mica_export_rules_note(
            rules, error,
            "scale_optimization: trellis: the search of levels along the columns needs the inputs' covariance, --imatrix FILE of "
            "mica imatrix --covariance; without it the joint search of scales and levels is used");
    return mica_export_rules_note(
        rules, error,
        "scale_optimization: trellis: levels of Q2_K, Q4_K and Q5_K are searched along the columns with the inputs' "
        "covariance; other types by the joint search of scales and levels");
}

/* One file, or set of files, of one plan; the plan is released. */
static mica_status export_plan(mica_export_plan *plan, const char *path, const mica_export_gguf_options *options, char **text, char **json,
                               mica_error *error) {
    mica_export_rules rules = {0};
    mica_export_run run = {.plan = plan, .rules = &rules, .options = options, .path = path, .lock = -1, .budget_ratio = NAN};
    const char *outcome = "dry run";
    double estimate = NAN;
    run.journal_path = journal_of(path);
    run.inexact = mica_calloc(plan->tensor_count + 1, sizeof *run.inexact);
    mica_status status = run.journal_path && run.inexact ? mica_export_rules_load(options->config, &rules, error)
                                                         : mica_fail(error, MICA_NO_MEMORY, "out of memory");
    if (status == MICA_OK)
        status = mica_export_plan_importance(plan, options->imatrix, error);
    if (status == MICA_OK)
        status = mica_export_plan_types(plan, options, &rules, error);
    if (status == MICA_OK)
        status = apply_budget(&run, plan, error);
    if (status == MICA_OK && plan->groups)
        status = mica_export_plan_groups(plan, error);
    if (status == MICA_OK && plan->groups) { /* other tensors than before */
        mica_free(run.inexact);
        run.inexact = mica_calloc(plan->tensor_count + 1, sizeof *run.inexact);
        status = run.inexact ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "out of memory");
    }
    if (status == MICA_OK) {
        mica_export_plan_units(plan);
        status = fit_memory(&run, error);
    }
    if (status == MICA_OK && mica_export_plan_covariance_columns(plan) > 0)
        status = mica_export_factors_create(plan->imatrix, run.threads, &plan->factors, error);
    if (status == MICA_OK)
        status = explain_trellis(plan, &rules, error);
    if (status == MICA_OK)
        status = make_layout(&run, &rules, error);
    if (status == MICA_OK)
        status = options->dry_run || options->generate_config ? time_units(&run, &estimate, error) : run_to_file(&run, &outcome, error);
    if (status == MICA_OK)
        status = mica_export_report(&run, outcome, estimate, text, json, error);
    release(&run, plan);
    mica_export_rules_release(&rules);
    return status;
}

/* The vision tower is small, and stays as it is stored. What a run before has finished is not done again. */
static mica_status export_vision(const mica_model *model, const mica_export_gguf_options *options, mica_error *error) {
    mica_export_plan plan;
    mica_export_gguf_options own = *options;
    own.type = own.config = own.imatrix = own.mmproj = own.budget = own.generate_config = own.compat = NULL;
    own.split_bytes = 0;
    mica_status status = mica_export_plan_vision(model, &plan, error);
    if (status != MICA_OK)
        return status;
    char *journal = journal_of(options->mmproj);
    const bool done = options->resume && journal && mica_path_exists(options->mmproj) && !mica_path_exists(journal);
    mica_free(journal);
    if (done) {
        mica_export_plan_release(&plan);
        return MICA_OK;
    }
    return export_plan(&plan, options->mmproj, &own, NULL, NULL, error);
}

static mica_status export_model(const mica_model *model, const char *path, const mica_export_gguf_options *options, char **text,
                                char **json, mica_error *error) {
    mica_export_plan plan;
    if (mica_gguf_of_source(model->source)) {
        const mica_status made = mica_export_plan_again(model, &plan, error);
        return made == MICA_OK ? export_plan(&plan, path, options, text, json, error) : made;
    }
    mica_status status = options->mmproj ? export_vision(model, options, error) : MICA_OK;
    if (status == MICA_OK)
        status = mica_export_plan_tensors(model, &plan, error);
    return status == MICA_OK ? export_plan(&plan, path, options, text, json, error) : status;
}

mica_status mica_export_gguf(const char *checkpoint, const char *path, const mica_export_gguf_options *options, char **text, char **json,
                             mica_error *error) {
    static const mica_export_gguf_options none = {0};
    if (!options)
        options = &none;
    if (!path && !options->dry_run && !options->generate_config)
        return mica_fail(error, MICA_USAGE, "expected --output FILE.gguf");
    mica_model *model = NULL;
    mica_tensor_source *source = NULL;
    mica_status status = check_paths(path, options, error);
    if (status == MICA_OK)
        status = mica_tensor_source_open(checkpoint, &source, error);
    const bool again = status == MICA_OK && mica_gguf_of_source(source);
    if (again && options->mmproj) {
        mica_tensor_source_close(source);
        return mica_fail(error, MICA_USAGE, "--mmproj: expected a checkpoint, got the GGUF file %s, which has no vision tower in it",
                         checkpoint);
    }
    if (status == MICA_OK)
        status = again ? mica_model_open_bare(source, &model, error) : mica_model_open_source(source, NULL, &model, error);
    if (status == MICA_OK)
        status = export_model(model, path, options, text, json, error);
    mica_model_close(model);
    return status;
}
