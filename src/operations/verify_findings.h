/* operations/verify_findings.h: what verifying a checkpoint found, and the report of it. Private to verify_checkpoint. */
#ifndef MICA_OPERATIONS_VERIFY_FINDINGS_H
#define MICA_OPERATIONS_VERIFY_FINDINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

typedef struct mica_finding {
    struct mica_finding *next;
    mica_status status; /* OK: a warning */
    const char *file;   /* borrowed: a shard's name or a record's */
    char *what;         /* owned; without the file's name */
    uint64_t place;     /* their order: shard, then position in it */
} mica_finding;

typedef struct mica_findings {
    mica_finding *first, **end; /* end: where the next one is hung; NULL: first */
    uint64_t count;
} mica_findings;

/* `message` may begin with "file: ", which is left out. */
mica_status mica_findings_add(mica_findings *findings, mica_status status, const char *file, uint64_t place, const char *message,
                              mica_error *error) MICA_CHECKED;
void mica_findings_move(mica_findings *to, mica_findings *from);
void mica_findings_release(mica_findings *findings);

typedef struct mica_checkpoint_report {
    const char *path;
    const char *kind;                           /* "checkpoint", "store"; its tensors are payloads then */
    uint64_t files, tensors, bytes;             /* read */
    uint64_t hashed_files, hashed_tensors;      /* compared with a record */
    char *const *warnings;                      /* of opening */
    uint64_t warning_count;
    mica_findings *findings; /* sorted by place here */
} mica_checkpoint_report;

/* The report (docs/schemas/verify.schema.json); then OK, or the first finding that is an error as the error. */
mica_status mica_checkpoint_report_write(mica_checkpoint_report *report, char **text, char **json, mica_error *error) MICA_CHECKED;

#endif
