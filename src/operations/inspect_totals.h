/* operations/inspect_totals.h: the sums that inspect shows: weights by role, encoding, dtype and rule; and what roles are called. */
#ifndef MICA_OPERATIONS_INSPECT_TOTALS_H
#define MICA_OPERATIONS_INSPECT_TOTALS_H

#include "model/model.h"

typedef struct mica_total {
    const char *name, *detail; /* static; detail: the encoding, or NULL */
    uint64_t count, parameters, bytes;
} mica_total;

#define MICA_TOTALS_MAX 64

typedef struct mica_totals {
    mica_total all, unknown;
    mica_total roles[MICA_TOTALS_MAX]; /* used weights by role and encoding */
    mica_total encodings[8];           /* used weights */
    mica_total rules[16];              /* ignored weights; named by their rule */
    mica_total dtypes[MICA_DTYPE_COUNT];  /* tensors as stored; parameters: stored elements */
    uint64_t role_count, encoding_count, rule_count, dtype_count;
    uint64_t moe_layers;
    uint64_t *shard_tensors; /* [shard_count]; owned */
} mica_totals;

/* model NULL: dtypes, shards and all.bytes only. */
mica_status mica_totals_count(const mica_tensor_source *source, const mica_model *model, mica_totals *totals,
                              mica_error *error) MICA_CHECKED;
void mica_totals_release(mica_totals *totals);

/* "experts", "shared experts", …: what a role is called in every report. */
const char *mica_role_title(mica_role role);

/* Tensors that differ only in the numbers in their names. */
typedef struct mica_tensor_group {
    char *name; /* numbers as "*"; owned */
    const mica_tensor *first;
    uint64_t count;
} mica_tensor_group;
mica_status mica_tensor_groups(const mica_tensor_source *source, mica_tensor_group **groups, uint64_t *count,
                               mica_error *error) MICA_CHECKED;
void mica_tensor_groups_free(mica_tensor_group *groups, uint64_t count);

#endif
