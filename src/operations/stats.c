/* operations/stats.c: mica_stats: a table of a finished vindex, from phase1_moe_svd.json alone: one row per layer, kind and projection,
 * as text or JSON (docs/schemas/stats.schema.json), or one per expert as CSV. Trusts nothing of the file's structure.
 * Judged by tests/operations/test_index.c. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <mica/vindex.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "formats/vindex.h"

/* A statistic that JSON gives as null is NaN here. */
static double number(const json_t *value) {
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static const json_t *statistic(const json_t *group, const char *name) {
    return json_object_get(json_object_get(group, "statistics"), name);
}

static double of_statistic(const json_t *group, const char *name, const char *key) {
    return number(json_object_get(statistic(group, name), key));
}

static double worst(const json_t *group, const char *name) {
    const json_t *values = json_object_get(statistic(group, name), "per_expert");
    double most = NAN;
    for (size_t i = 0; i < json_array_size(values); i++) {
        const double value = number(json_array_get(values, i));
        if (!(most >= value))
            most = value;
    }
    return most;
}

/* Calls `row` for every layer, kind and projection, in the file's order. */
typedef void (*row_function)(void *context, const char *layer, const char *kind, const char *projection, const json_t *group);

static mica_status each_row(const char *path, json_t *phase1, row_function row, void *context, mica_error *error) {
    json_t *layers = json_object_get(phase1, "layers"), *layer, *kind, *group;
    const char *layer_name, *kind_name, *projection;
    if (!json_is_object(layers))
        return mica_fail(error, MICA_BAD_INPUT, "%s: layers: expected an object, got something else", path);
    json_object_foreach(layers, layer_name, layer) {
        json_object_foreach(layer, kind_name, kind) {
            json_object_foreach(kind, projection, group) {
                if (!json_is_object(json_object_get(group, "statistics")))
                    return mica_fail(error, MICA_BAD_INPUT, "%s: layers.%s.%s.%s.statistics: expected an object", path, layer_name,
                                     kind_name, projection);
                row(context, layer_name, kind_name, projection, group);
            }
        }
    }
    return MICA_OK;
}

/* ---- text */

static void put_number(mica_text *text, const char *format, int width, double value) {
    if (isfinite(value))
        mica_text_printf(text, format, value);
    else
        mica_text_printf(text, "%*s", width, "-");
}

static void text_row(void *context, const char *layer, const char *kind, const char *projection, const json_t *group) {
    mica_text *text = context;
    mica_text_printf(text, "%5s  %-6s  %-4s  %7.0f  ", layer, kind, projection, number(json_object_get(group, "experts")));
    put_number(text, "%6.4f", 6, of_statistic(group, "var64", "median"));
    mica_text_puts(text, " [");
    put_number(text, "%6.4f", 6, of_statistic(group, "var64", "q25"));
    mica_text_puts(text, ", ");
    put_number(text, "%6.4f", 6, of_statistic(group, "var64", "q75"));
    mica_text_puts(text, "]  ");
    put_number(text, "%6.4f", 6, number(json_object_get(group, "null_var64")));
    put_number(text, "  %5.2f", 7, of_statistic(group, "var64_ratio", "median"));
    const double dominance = of_statistic(group, "s0_over_s1", "median");
    put_number(text, dominance < 1000 ? "  %7.3f" : "  %7.2g", 9, dominance);
    put_number(text, "  %5.1f", 7, of_statistic(group, "above_edge", "median"));
    put_number(text, "  %8.2g", 10, worst(group, "residual"));
    mica_text_puts(text, "\n");
}

/* ---- JSON */

static void json_row(void *context, const char *layer, const char *kind, const char *projection, const json_t *group) {
    static const char *const names[] = {
        "var8",           "var64",     "var64_ratio", "s0",        "s1", "s0_over_s1", "stable_rank", "participation_ratio",
        "effective_rank", "frobenius", "noise_edge",  "above_edge"};
    mica_json_writer *writer = context;
    mica_json_open_object(writer, NULL);
    mica_json_u64(writer, "layer", strtoull(layer, NULL, 10));
    mica_json_string(writer, "kind", kind);
    mica_json_string(writer, "projection", projection);
    mica_json_u64(writer, "experts", (uint64_t)json_integer_value(json_object_get(group, "experts")));
    mica_json_double(writer, "null_var64", number(json_object_get(group, "null_var64")));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!statistic(group, names[i]))
            continue;
        mica_json_open_object(writer, names[i]);
        mica_json_double(writer, "median", of_statistic(group, names[i], "median"));
        mica_json_double(writer, "q25", of_statistic(group, names[i], "q25"));
        mica_json_double(writer, "q75", of_statistic(group, names[i], "q75"));
        mica_json_close_object(writer);
    }
    mica_json_double(writer, "residual_max", worst(group, "residual"));
    mica_json_double(writer, "orthonormality_max", worst(group, "orthonormality"));
    mica_json_double(writer, "value_error_max", worst(group, "value_error"));
    mica_json_close_object(writer);
}

/* ---- CSV */

static const char *const csv_names[] = {
    "var8",           "var64",     "var64_ratio", "s0",         "s1",   "s0_over_s1", "stable_rank",    "participation_ratio",
    "effective_rank", "frobenius", "noise_edge",  "above_edge", "rank", "residual",   "orthonormality", "value_error"};
#define CSV_NAMES (sizeof csv_names / sizeof csv_names[0])

static void csv_row(void *context, const char *layer, const char *kind, const char *projection, const json_t *group) {
    mica_text *text = context;
    const json_t *routes = json_object_get(group, "route");
    const uint64_t experts = (uint64_t)json_integer_value(json_object_get(group, "experts"));
    for (uint64_t expert = 0; expert < experts && expert < json_array_size(routes); expert++) {
        const char *route = json_string_value(json_array_get(routes, expert));
        mica_text_printf(text, "%s,%s,%s,%" PRIu64, layer, kind, projection, expert);
        for (size_t i = 0; i < CSV_NAMES; i++) {
            const double value = number(json_array_get(json_object_get(statistic(group, csv_names[i]), "per_expert"), expert));
            if (isfinite(value))
                mica_text_printf(text, ",%.17g", value);
            else
                mica_text_puts(text, ",");
        }
        mica_text_printf(text, ",%.17g,%s\n", number(json_object_get(group, "null_var64")), route ? route : "");
    }
}

static mica_status make_output(const char *path, json_t *phase1, mica_stats_form form, char **output, mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    mica_json_writer writer;
    mica_status status;
    if (form == MICA_STATS_JSON) {
        uint64_t length;
        mica_json_begin(&writer);
        mica_json_open_object(&writer, NULL);
        mica_json_open_array(&writer, "rows");
        status = each_row(path, phase1, json_row, &writer, error);
        mica_json_close_array(&writer);
        mica_json_close_object(&writer);
        *output = mica_json_finish(&writer, &length);
    } else {
        if (form == MICA_STATS_TEXT) {
            mica_text_puts(&text, "layer  kind    proj  experts  var@64 [   q25,    q75]   noise  ratio    s0/s1  above  residual\n");
        } else {
            mica_text_puts(&text, "layer,kind,projection,expert");
            for (size_t i = 0; i < CSV_NAMES; i++)
                mica_text_printf(&text, ",%s", csv_names[i]);
            mica_text_puts(&text, ",null_var64,route\n");
        }
        status = each_row(path, phase1, form == MICA_STATS_TEXT ? text_row : csv_row, &text, error);
        *output = mica_text_take(&text);
    }
    if (status == MICA_OK && !*output)
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for the table");
    if (status != MICA_OK) {
        mica_free(*output);
        *output = NULL;
    }
    return status;
}

mica_status mica_stats(const char *directory, mica_stats_form form, char **output, mica_error *error) {
    mica_vindex_state state;
    mica_status status = mica_vindex_state_of(directory, &state, error);
    if (status != MICA_OK)
        return status;
    if (state == MICA_VINDEX_UNFINISHED)
        return mica_fail(error, MICA_BAD_INPUT, "%s: this vindex is not finished; go on with mica index --resume", directory);
    if (!mica_path_exists(directory))
        return mica_fail_errno(error, ENOENT, "%s: cannot open", directory);
    if (state != MICA_VINDEX_FINISHED)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a vindex, found no %s", directory, MICA_VINDEX_CHECKSUMS);
    char *path = mica_path_join(directory, MICA_VINDEX_PHASE1);
    json_t *phase1 = NULL;
    status = path ? mica_json_load(path, MICA_VINDEX_JSON_LIMIT, &phase1, error) : mica_fail(error, MICA_NO_MEMORY, "out of memory");
    char *made = NULL;
    if (status == MICA_OK)
        status = make_output(path, phase1, form, &made, error);
    if (status == MICA_OK)
        *output = made;
    json_decref(phase1);
    mica_free(path);
    return status;
}
