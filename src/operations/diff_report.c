/* operations/diff_report.c: what a comparison found: totals, a line per role and per layer, the weights that differ most; in JSON every
 * one.
 * Judged by tests/operations/test_diff.c against docs/schemas/diff.schema.json, and by tests/interop/diff_values.py. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/quantity.h"
#include "operations/diff.h"
#include "operations/output.h"

#define SCHEMA 1
#define SHOWN 20 /* of a list in the text */
#define GROUPS_MAX 64

/* Pairs of one role, or of one layer. */
typedef struct diff_group {
    const char *role; /* NULL: */
    int64_t layer;
    uint64_t pairs, differing; /* all that is not SAME or STORED */
    mica_difference difference;
} diff_group;

typedef struct diff_groups {
    diff_group roles[GROUPS_MAX];
    uint64_t role_count;
    diff_group *layers; /* [layer_count], by number, from -1 (outside the layers) on; owned */
    uint64_t layer_count;
    const mica_pair **differing; /* [differing_count], the largest share first; owned */
    uint64_t differing_count;
} diff_groups;

static bool is_equal(const mica_pair *pair) {
    return pair->kind == MICA_PAIR_SAME || pair->kind == MICA_PAIR_STORED;
}

static void add_to(diff_group *group, const mica_pair *pair) {
    group->pairs++;
    group->differing += !is_equal(pair);
    if (pair->decoded)
        mica_difference_merge(&group->difference, &pair->difference);
}

static diff_group *role_group(diff_groups *groups, const char *role) {
    uint64_t i = 0;
    while (i < groups->role_count && strcmp(groups->roles[i].role, role) != 0)
        i++;
    if (i == GROUPS_MAX)
        return &groups->roles[GROUPS_MAX - 1]; /* there are fewer roles and rules than that */
    if (i == groups->role_count)
        groups->roles[groups->role_count++] = (diff_group){.role = role, .layer = -1};
    return &groups->roles[i];
}

static double order_of(const mica_pair *pair) {
    const double share = pair->decoded ? mica_difference_share(&pair->difference) : INFINITY;
    return isnan(share) ? INFINITY : share;
}

static int compare_pairs(const void *left, const void *right) {
    const mica_pair *a = *(const mica_pair *const *)left, *b = *(const mica_pair *const *)right;
    if (order_of(a) != order_of(b))
        return order_of(a) > order_of(b) ? -1 : 1;
    return (a > b) - (a < b); /* as they are listed */
}

static mica_status make_groups(const mica_comparison *comparison, diff_groups *groups, mica_error *error) {
    int64_t last = -1;
    for (uint64_t i = 0; i < comparison->pair_count; i++)
        if (mica_pair_layer(&comparison->pairs[i]) > last)
            last = mica_pair_layer(&comparison->pairs[i]);
    groups->layer_count = (uint64_t)(last + 2);
    groups->layers = mica_calloc(groups->layer_count, sizeof *groups->layers);
    groups->differing = mica_calloc(comparison->pair_count + 1, sizeof *groups->differing);
    if (!groups->layers || !groups->differing)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a report");
    for (uint64_t i = 0; i < comparison->pair_count; i++) {
        const mica_pair *pair = &comparison->pairs[i];
        add_to(role_group(groups, mica_pair_role(comparison, pair)), pair);
        add_to(&groups->layers[mica_pair_layer(pair) + 1], pair);
        if (!is_equal(pair))
            groups->differing[groups->differing_count++] = pair;
    }
    qsort(groups->differing, groups->differing_count, sizeof *groups->differing, compare_pairs);
    return MICA_OK;
}

/* ---- text */

static void write_numbers(mica_text *text, const mica_difference *difference) {
    const double share = mica_difference_share(difference), cosine = mica_difference_cosine(difference);
    if (difference->count == 0)
        mica_text_puts(text, "         -         -         -         -");
    else
        mica_text_printf(text, "  %8.2e  %8.2e  %8.2e  %8.6f", difference->absolute, difference->relative, isnan(share) ? 0 : share,
                         isnan(cosine) ? 0 : cosine);
}

static void write_group(mica_text *text, const diff_group *group, const char *name) {
    mica_text_printf(text, "  %-22s %7" PRIu64 " %7" PRIu64, name, group->pairs, group->differing);
    write_numbers(text, &group->difference);
    mica_text_puts(text, "\n");
}

static void write_tables(const diff_groups *groups, mica_text *text) {
    static const char columns[] = "  weights  differ   max abs   max rel     share    cosine\n";
    char name[32];
    mica_text_printf(text, "\n  %-20s%s", "role", columns);
    for (uint64_t i = 0; i < groups->role_count; i++)
        write_group(text, &groups->roles[i], groups->roles[i].role);
    mica_text_printf(text, "\n  %-20s%s", "layers that differ", columns);
    for (uint64_t i = 0; i < groups->layer_count; i++) {
        if (groups->layers[i].differing == 0)
            continue;
        snprintf(name, sizeof name, i ? "%" PRIu64 : "outside", i ? i - 1 : 0);
        write_group(text, &groups->layers[i], name);
    }
}

static const char *show_shape(const mica_weight *weight, char buffer[64]) {
    const uint64_t shape[2] = {weight->rows, weight->columns};
    return mica_shape_show(2, shape, buffer, 64);
}

static void write_pair(mica_text *text, const mica_pair *pair) {
    char shapes[2][64];
    switch (pair->kind) {
    case MICA_PAIR_ONLY_A: mica_text_printf(text, "  only in A: %s\n", pair->a->name); return;
    case MICA_PAIR_ONLY_B: mica_text_printf(text, "  only in B: %s\n", pair->b->name); return;
    case MICA_PAIR_SHAPE:
        mica_text_printf(text, "  %s: %s in A, %s in B\n", pair->a->name, show_shape(pair->a, shapes[0]), show_shape(pair->b, shapes[1]));
        return;
    case MICA_PAIR_BYTES: mica_text_printf(text, "  %s: other numbers\n", pair->a->name); return;
    default: break;
    }
    mica_text_printf(text, "  %s: %" PRIu64 " of %" PRIu64 " values, max abs %.2e, max rel %.2e, share %.2e, cosine %.6f", pair->a->name,
                     pair->difference.differing, pair->difference.count, pair->difference.absolute, pair->difference.relative,
                     mica_difference_share(&pair->difference), mica_difference_cosine(&pair->difference));
    if (pair->difference.not_finite)
        mica_text_printf(text, ", %" PRIu64 " not finite", pair->difference.not_finite);
    mica_text_puts(text, "\n");
}

static void write_files(const mica_comparison *comparison, mica_text *text) {
    for (uint64_t i = 0; i < comparison->file_count; i++) {
        const mica_diff_file *file = &comparison->files[i];
        if (file->kind != MICA_PAIR_SAME)
            mica_text_printf(text, "  file %s: %s\n", file->name,
                             file->kind == MICA_PAIR_BYTES    ? "differs"
                             : file->kind == MICA_PAIR_ONLY_A ? "only in A"
                                                              : "only in B");
    }
}

static void write_text(const mica_comparison *comparison, const diff_groups *groups, mica_text *text) {
    const uint64_t *counts = comparison->counts;
    mica_text_printf(text, "A  %s\nB  %s\n", comparison->sides[0].path, comparison->sides[1].path);
    if (comparison->not_understood[0])
        mica_text_printf(text, "not understood as models, compared tensor by tensor: %s\n", comparison->not_understood);
    mica_text_printf(text,
                     "\n  weights   %" PRIu64 ": %" PRIu64 " the same bit for bit, %" PRIu64 " equal and stored otherwise, %" PRIu64
                     " with other values\n",
                     comparison->pair_count, counts[MICA_PAIR_SAME], counts[MICA_PAIR_STORED],
                     counts[MICA_PAIR_VALUES] + counts[MICA_PAIR_BYTES]);
    if (counts[MICA_PAIR_SHAPE] + counts[MICA_PAIR_ONLY_A] + counts[MICA_PAIR_ONLY_B])
        mica_text_printf(text, "            %" PRIu64 " of another shape, %" PRIu64 " only in A, %" PRIu64 " only in B\n",
                         counts[MICA_PAIR_SHAPE], counts[MICA_PAIR_ONLY_A], counts[MICA_PAIR_ONLY_B]);
    mica_text_printf(text, "  files     %" PRIu64 ", %" PRIu64 " of them differ\n", comparison->file_count, comparison->files_differing);
    write_files(comparison, text);
    if (groups->differing_count == 0 && counts[MICA_PAIR_STORED] == 0)
        return;
    write_tables(groups, text);
    if (groups->differing_count > 0)
        mica_text_puts(text, "\n");
    for (uint64_t i = 0; i < groups->differing_count && i < SHOWN; i++)
        write_pair(text, groups->differing[i]);
    if (groups->differing_count > SHOWN)
        mica_text_printf(text, "  and %" PRIu64 " more (--json has all)\n", groups->differing_count - SHOWN);
}

/* ---- JSON */

static void put_difference(mica_json_writer *writer, const mica_difference *difference) {
    const bool any = difference->count > 0;
    mica_json_u64(writer, "values", difference->count);
    mica_json_u64(writer, "values_differing", difference->differing);
    mica_json_u64(writer, "not_finite", difference->not_finite);
    mica_json_double(writer, "max_absolute", any ? difference->absolute : NAN);
    mica_json_double(writer, "max_relative", any ? difference->relative : NAN);
    mica_json_double(writer, "frobenius_share", any ? mica_difference_share(difference) : NAN);
    mica_json_double(writer, "cosine", any ? mica_difference_cosine(difference) : NAN);
}

static void put_weight(mica_json_writer *writer, const char *key, const mica_weight *weight) {
    if (!weight) {
        mica_json_null(writer, key);
        return;
    }
    mica_json_open_line(writer, key);
    mica_json_string(writer, "dtype", mica_dtype_name(weight->data->dtype));
    mica_json_string(writer, "encoding", mica_encoding_name(weight->encoding));
    mica_json_u64(writer, "rows", weight->rows);
    mica_json_u64(writer, "columns", weight->columns);
    mica_json_close_object(writer);
}

static void put_number(mica_json_writer *writer, const char *key, int64_t number) {
    if (number < 0)
        mica_json_null(writer, key);
    else
        mica_json_u64(writer, key, (uint64_t)number);
}

/* Every weight that is not the same bit for bit. */
static void put_pairs(const mica_comparison *comparison, mica_json_writer *writer) {
    mica_json_open_array(writer, "weights");
    for (uint64_t i = 0; i < comparison->pair_count; i++) {
        const mica_pair *pair = &comparison->pairs[i];
        const mica_weight *weight = pair->a ? pair->a : pair->b;
        if (pair->kind == MICA_PAIR_SAME)
            continue;
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "name", weight->name);
        mica_json_string(writer, "kind", mica_pair_kind_name(pair->kind));
        mica_json_string(writer, "role", mica_pair_role(comparison, pair));
        put_number(writer, "layer", weight->layer);
        put_number(writer, "expert", weight->expert);
        put_weight(writer, "a", pair->a);
        put_weight(writer, "b", pair->b);
        put_difference(writer, &pair->difference);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static void put_group(mica_json_writer *writer, const diff_group *group) {
    mica_json_open_object(writer, NULL);
    if (group->role)
        mica_json_string(writer, "role", group->role);
    else
        put_number(writer, "layer", group->layer);
    mica_json_u64(writer, "weights", group->pairs);
    mica_json_u64(writer, "differing", group->differing);
    put_difference(writer, &group->difference);
    mica_json_close_object(writer);
}

static void put_groups(diff_groups *groups, mica_json_writer *writer) {
    mica_json_open_array(writer, "roles");
    for (uint64_t i = 0; i < groups->role_count; i++)
        put_group(writer, &groups->roles[i]);
    mica_json_close_array(writer);
    mica_json_open_array(writer, "layers");
    for (uint64_t i = 0; i < groups->layer_count; i++) {
        groups->layers[i].layer = (int64_t)i - 1;
        if (groups->layers[i].pairs > 0)
            put_group(writer, &groups->layers[i]);
    }
    mica_json_close_array(writer);
}

static void put_files(const mica_comparison *comparison, mica_json_writer *writer) {
    mica_json_open_array(writer, "files");
    for (uint64_t i = 0; i < comparison->file_count; i++) {
        mica_json_open_line(writer, NULL);
        mica_json_string(writer, "name", comparison->files[i].name);
        mica_json_string(writer, "kind", mica_pair_kind_name(comparison->files[i].kind));
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static void write_json(const mica_comparison *comparison, diff_groups *groups, mica_json_writer *writer) {
    mica_json_open_object(writer, NULL);
    mica_json_u64(writer, "schema", SCHEMA);
    mica_json_string(writer, "a", comparison->sides[0].path);
    mica_json_string(writer, "b", comparison->sides[1].path);
    mica_json_bool(writer, "same", mica_comparison_same(comparison));
    mica_json_string(writer, "not_understood", comparison->not_understood[0] ? comparison->not_understood : NULL);
    mica_json_open_object(writer, "counts");
    for (int kind = 0; kind < MICA_PAIR_KIND_COUNT; kind++)
        mica_json_u64(writer, mica_pair_kind_name((mica_pair_kind)kind), comparison->counts[kind]);
    mica_json_close_object(writer);
    put_files(comparison, writer);
    put_groups(groups, writer);
    put_pairs(comparison, writer);
    mica_json_u64(writer, "bytes_read", comparison->bytes_read);
    mica_json_double(writer, "seconds", comparison->seconds);
    mica_json_u64(writer, "threads", comparison->threads);
    mica_json_close_object(writer);
}

mica_status mica_comparison_report(const mica_comparison *comparison, char **text, char **json, mica_error *error) {
    diff_groups *groups = mica_calloc(1, sizeof *groups);
    mica_text lines = MICA_TEXT_INIT;
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_status status = groups ? make_groups(comparison, groups, error) : mica_fail(error, MICA_NO_MEMORY, "out of memory for a report");
    if (status == MICA_OK) {
        write_text(comparison, groups, &lines);
        write_json(comparison, groups, &writer);
    }
    status = mica_output_give(status, &lines, &writer, text, json, error);
    if (groups) {
        mica_free(groups->layers);
        mica_free(groups->differing);
    }
    mica_free(groups);
    return status;
}
