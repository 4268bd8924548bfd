/* operations/pass_journal.h: what a pass over the layers leaves behind, so that it can be taken up again: RESULT.journal (base/journal),
 * whose head is the job as JSON and whose records say how far it is. Invariants: 1. it stands before any other file of the pass is made,
 * and goes after all of them; 2. a record speaks of what is on the disk; 3. one process at a time. Judged by
 * tests/operations/test_layer_pass.c and tests/faults/kill_pass.sh. */
#ifndef MICA_OPERATIONS_PASS_JOURNAL_H
#define MICA_OPERATIONS_PASS_JOURNAL_H

#include <stdbool.h>

#include "base/journal.h"
#include "base/json.h"

enum { /* kinds of records */
    MICA_PASS_LAYER = 1, /* u64 layer, which is done; then of each collector u64 bytes and the bytes */
    MICA_PASS_NOISE,     /* a layer of the second pass of imatrix --sensitivity is done: two u64, the layer and the noise's state */
    MICA_PASS_WRITTEN,   /* the result is whole, but for its name */
};

typedef enum mica_pass_action { MICA_PASS_START, MICA_PASS_RESUME, MICA_PASS_FINISHED } mica_pass_action;

typedef struct mica_pass_journal { /* all zeros: closed */
    char *path; /* owned */
    mica_journal *journal;
    int lock;
} mica_pass_journal;

/* What is there of `result` and what was asked decide. CONFLICT: something is there, and neither `resume` nor `force`. */
mica_status mica_pass_choose(const char *result, bool resume, bool force, mica_pass_action *action, mica_error *error) MICA_CHECKED;

/* "RESULT.suffix"; the caller's (mica_free); NULL without memory. */
char *mica_pass_path(const char *result, const char *suffix);

/* Starts, or replays: `visit` sees every record but the head. CONFLICT: another process is at work, or `job` differs from the head, which
 * the message names. */
mica_status mica_pass_journal_open(mica_pass_journal *journal, const char *result, bool fresh, const char *job, uint64_t length,
                                   mica_journal_visit visit, void *context, mica_error *error) MICA_CHECKED;
mica_status mica_pass_journal_record(mica_pass_journal *journal, uint32_t kind, const void *payload, uint64_t bytes,
                                     mica_error *error) MICA_CHECKED;
/* The job is done, or came to nothing: what else it left is gone already. */
mica_status mica_pass_journal_remove(mica_pass_journal *journal, mica_error *error);
void mica_pass_journal_close(mica_pass_journal *journal); /* leaves the file */

/* A finished result holds the job in `recorded` (JSON): CONFLICT naming the first difference. The arithmetic is not compared: what is
 * finished needs no more. */
mica_status mica_pass_compare_finished(const char *result, const json_t *recorded, const char *job, uint64_t length,
                                       mica_error *error) MICA_CHECKED;

#endif
