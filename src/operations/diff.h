/* operations/diff.h: what the files of `mica diff` share: two checkpoints, weight by weight, and what was found. Private to diff*.c.
 * Judged by tests/operations/test_diff.c and tests/interop/diff_values.py. */
#ifndef MICA_OPERATIONS_DIFF_H
#define MICA_OPERATIONS_DIFF_H

#include <mica/checkpoint.h>

#include "model/model.h"
#include "numerics/moments.h"
#include "operations/slab.h"

/* How two weights of one name compare; what only one side has; in the order in which the report counts them. */
typedef enum mica_pair_kind {
    MICA_PAIR_SAME,   /* stored alike, bit for bit */
    MICA_PAIR_STORED, /* stored otherwise, with equal values */
    MICA_PAIR_VALUES, /* values differ */
    MICA_PAIR_BYTES,  /* bytes differ, of what are no floating numbers */
    MICA_PAIR_SHAPE,  /* rows or columns differ */
    MICA_PAIR_ONLY_A,
    MICA_PAIR_ONLY_B,
    MICA_PAIR_KIND_COUNT
} mica_pair_kind;
const char *mica_pair_kind_name(mica_pair_kind kind); /* "same", … */

typedef struct mica_pair {
    const mica_weight *a, *b; /* NULL: the other side has it alone */
    mica_pair_kind kind;
    bool alike;               /* stored alike: bytes can be compared */
    bool decoded;             /* `difference` is filled */
    mica_difference difference;
    mica_slabs slabs;
    uint64_t first_unit; /* of the pass that is running */
} mica_pair;

/* One checkpoint. */
typedef struct mica_side {
    const char *path;
    mica_model *model;    /* owned; not understood: a source with every tensor as a weight by itself */
    mica_weight *plain;   /* owned; those weights */
    bool understood;
} mica_side;

/* The kept files: config.json, tokenizer, templates. */
typedef struct mica_diff_file {
    char *name;           /* owned */
    mica_pair_kind kind;  /* SAME, BYTES, ONLY_A, ONLY_B */
} mica_diff_file;

typedef struct mica_comparison {
    mica_side sides[2];
    mica_pair *pairs; /* [pair_count], by layer, role, part, expert, projection; the others behind them by name */
    uint64_t pair_count;
    mica_diff_file *files;
    uint64_t file_count;
    uint64_t counts[MICA_PAIR_KIND_COUNT]; /* of pairs */
    uint64_t files_differing;
    char not_understood[MICA_ERROR_MESSAGE_BYTES]; /* why; "" */
    uint64_t bytes_read;
    double seconds;
    uint32_t threads;
} mica_comparison;

bool mica_comparison_same(const mica_comparison *comparison);
/* The weight's place in the summaries: a role's name, or the rule that ignores it. */
const char *mica_pair_role(const mica_comparison *comparison, const mica_pair *pair);
int64_t mica_pair_layer(const mica_pair *pair); /* -1: outside */

/* Compares (diff_work.c): reads what can be alike, then decodes what was not. */
mica_status mica_comparison_run(mica_comparison *comparison, const mica_diff_options *options, mica_error *error) MICA_CHECKED;

mica_status mica_comparison_report(const mica_comparison *comparison, char **text, char **json, mica_error *error) MICA_CHECKED;

#endif
