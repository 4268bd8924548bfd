/* operations/export_budget.h: which types a GGUF of a given size should have: every tensor's error measured in every type on a sample of
 * its rows, weighed by how much the tensor is used, then the steps with the most error saved per byte, along each tensor's lower convex
 * hull, until the size is reached. Formulas: docs/export.md. Judged by tests/operations/test_export_budget.c. */
#ifndef MICA_OPERATIONS_EXPORT_BUDGET_H
#define MICA_OPERATIONS_EXPORT_BUDGET_H

#include "operations/export_gguf.h"

#define MICA_BUDGET_TYPES 8u

/* What was measured of one tensor: [type], in rising order of bytes. */
typedef struct mica_export_measure {
    uint32_t count;                          /* 0: its type is not for choice */
    mica_dtype types[MICA_BUDGET_TYPES];
    uint64_t bytes[MICA_BUDGET_TYPES];       /* of the whole tensor */
    double error[MICA_BUDGET_TYPES];         /* squared, importance-weighted, relative to the energy: of the sample */
    double weight;                           /* what the error counts: the sensitivities of all its matrices */
    uint32_t chosen;
} mica_export_measure;

/* "4.25bpw", or a size (550GB, 500GiB) to bytes of tensor data. USAGE where it is neither. */
mica_status mica_export_budget_parse(const char *text, uint64_t parameters, uint64_t *bytes, mica_error *error) MICA_CHECKED;

/* What a relative squared error of 1 in a matrix of a tensor does to the model's output: as the importance matrix says, else by
 * structure. */
double mica_export_sensitivity(const mica_export_plan *plan, const mica_export_tensor *tensor, uint64_t matrix);

/* Measures every tensor that `plan` (with importance, without types) lets be chosen; `measures` [tensor_count]. */
mica_status mica_export_measure_all(mica_export_run *run, mica_export_measure *measures, mica_error *error) MICA_CHECKED;

/* Chooses measures[].chosen so that all data has at most `bytes`; USAGE where even the smallest types do not fit. `fixed_bytes`: of the
 * tensors that are not for choice. */
mica_status mica_export_allocate(mica_export_measure *measures, uint64_t count, uint64_t fixed_bytes, uint64_t bytes,
                                 mica_error *error) MICA_CHECKED;

#endif
