/* operations/vindex_report.h: the JSON files of a vindex from the outcomes of its units. Keys: docs/formats.md; docs/schemas.
 * Everything here is a function of plan and outcomes alone. Judged by tests/operations/test_index.c, tests/interop/numpy_lines.py. */
#ifndef MICA_OPERATIONS_VINDEX_REPORT_H
#define MICA_OPERATIONS_VINDEX_REPORT_H

#include "operations/index.h"

typedef struct mica_report {
    const mica_index_plan *plan;
    const mica_index_outcome *outcomes; /* [plan->unit_count] */
} mica_report;

/* A statistic of one matrix: one row of the table in vindex_statistics.c. */
typedef struct mica_statistic_input {
    const mica_index_unit *unit;
    const mica_index_record *record;
    double noise_var64;
} mica_statistic_input;
typedef struct mica_statistic {
    const char *name;
    double (*value)(const mica_statistic_input *input); /* NaN or infinite: none */
    bool full_only;                                     /* needs the full spectrum */
    bool count;                                         /* a whole number */
} mica_statistic;
const mica_statistic *mica_statistic_at(uint64_t index); /* NULL past the end */
const mica_statistic *mica_statistic_find(const char *name);
/* Why a value is not finite; static. */
const char *mica_statistic_reason(const mica_statistic *statistic, const mica_statistic_input *input);

/* The matrices of one layer, kind and projection; units are in expert order. */
typedef struct mica_report_group {
    uint64_t layer;
    mica_index_kind kind;
    mica_projection projection;
    uint64_t *units; /* owned */
    uint64_t count;
    double noise_var64;
} mica_report_group;
/* count 0 when the layer has none. */
mica_status mica_report_group_make(const mica_report *report, uint64_t layer, mica_index_kind kind, mica_projection projection,
                                   mica_report_group *group, mica_error *error) MICA_CHECKED;
void mica_report_group_release(mica_report_group *group);
mica_statistic_input mica_report_input(const mica_report *report, const mica_report_group *group, uint64_t expert);

typedef struct mica_summary {
    uint64_t count; /* of finite values */
    double median, q25, q75, min, max; /* NaN when count is 0 */
} mica_summary;
mica_status mica_summarise(const double *values, uint64_t count, mica_summary *summary, mica_error *error) MICA_CHECKED;
mica_status mica_report_summarise(const mica_report *report, const mica_report_group *group, const mica_statistic *statistic,
                                  mica_summary *summary, mica_error *error) MICA_CHECKED;

/* The files. Each appends one whole object to the writer. */
typedef mica_status (*mica_report_writer)(const mica_report *report, mica_json_writer *writer, mica_error *error);
mica_status mica_report_index(const mica_report *report, mica_json_writer *writer, mica_error *error) MICA_CHECKED;
mica_status mica_report_phase1(const mica_report *report, mica_json_writer *writer, mica_error *error) MICA_CHECKED;
mica_status mica_report_phase1_agg(const mica_report *report, mica_json_writer *writer, mica_error *error) MICA_CHECKED;
mica_status mica_report_phase2(const mica_report *report, mica_json_writer *writer, mica_error *error) MICA_CHECKED;
mica_status mica_report_config(const mica_report *report, mica_json_writer *writer, mica_error *error) MICA_CHECKED;
mica_status mica_report_tensors(const mica_report *report, mica_json_writer *writer, mica_error *error) MICA_CHECKED;
void mica_report_open(mica_json_writer *writer); /* "{", format, format_version */

#endif
