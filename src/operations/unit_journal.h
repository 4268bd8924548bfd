/* operations/unit_journal.h: a job's journal and how far it is: its head is the job as JSON, its records say which units are done, in their
 * order. Invariants: 1. a unit is recorded only after its bytes were synced; 2. after a failed sync nothing more is recorded: a second one
 * could succeed and mean nothing. Judged by tests/operations/test_export_safetensors.c, test_export_gguf.c, test_index_resume.c and
 * tests/faults/kill_*.sh. */
#ifndef MICA_OPERATIONS_UNIT_JOURNAL_H
#define MICA_OPERATIONS_UNIT_JOURNAL_H

#include <stdbool.h>

#include "base/journal.h"

typedef struct mica_unit_journal { /* all zeros: none, nothing done */
    mica_journal *journal;         /* NULL: nothing is recorded */
    uint64_t done, resumed;        /* units; those done before this run */
    uint64_t flushed;              /* units whose records are in the journal, synced */
    double flushed_at;             /* seconds, monotonic */
    bool broken;                   /* a sync failed: what the disk holds is not known */
} mica_unit_journal;

/* Replays the journal at `path`: its head must be `job`, the shards' names, sizes and times included (CONFLICT naming the first
 * difference); every other record goes to `visit`. *journal is the caller's, after a failure too. */
mica_status mica_job_journal_open(const char *path, const char *job, uint64_t length, mica_journal_visit visit, void *context,
                                  mica_journal **journal, mica_error *error) MICA_CHECKED;

/* The journal is open, and `done` units are in it: the next flush is due from now on. */
void mica_unit_journal_begin(mica_unit_journal *units);

/* Syncs the data and appends what is done since the last time, by `record`, then syncs the journal; nothing where there is nothing to
 * record. */
mica_status mica_unit_journal_flush(mica_unit_journal *units, mica_status (*record)(void *context, mica_error *error), void *context,
                                    mica_error *error) MICA_CHECKED;

#endif
