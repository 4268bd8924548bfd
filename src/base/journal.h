/* base/journal.h: an append-only record of finished units, which survives a kill at any moment.
 *
 * File: "MICAJRN1" (8 bytes), then records, each
 *     u32 length of payload (little-endian) | u32 kind | payload | first 8 bytes of SHA-256 over length, kind and payload
 * Invariants: 1. record 0 (kind MICA_JOURNAL_HEAD) holds the caller's description of the job, JSON text; 2. a record counts
 * only if its checksum is right and all before it count; 3. opening for append truncates what does not count (a torn tail).
 * Append is write, no sync; the caller syncs its data files first and then calls mica_journal_sync: what the journal says
 * has happened, has happened. One thread at a time. */
#ifndef MICA_BASE_JOURNAL_H
#define MICA_BASE_JOURNAL_H

#include <stdint.h>

#include "base/error.h"

#define MICA_JOURNAL_HEAD 0u

typedef struct mica_journal mica_journal;

mica_status mica_journal_create(const char *path, const void *head, uint64_t head_bytes, mica_journal **journal,
                                mica_error *error) MICA_CHECKED;

/* The same with a lock on it (mica_path_lock, its `busy`): CONFLICT, and nothing is replaced, where somebody writes the one that is there.
 * *lock is set only on success. */
mica_status mica_journal_create_locked(const char *path, const char *busy, const void *head, uint64_t head_bytes, mica_journal **journal,
                                       int *lock, mica_error *error) MICA_CHECKED;

/* Replays an existing journal: `visit` sees every record that counts, head included, in order; a failure it returns ends
 * the replay and is returned. The payload is valid during the call. Then the journal is open for append. */
typedef mica_status (*mica_journal_visit)(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *error);
mica_status mica_journal_open(const char *path, mica_journal_visit visit, void *context, mica_journal **journal,
                              mica_error *error) MICA_CHECKED;

mica_status mica_journal_append(mica_journal *journal, uint32_t kind, const void *payload, uint64_t bytes, mica_error *error) MICA_CHECKED;
mica_status mica_journal_sync(mica_journal *journal, mica_error *error) MICA_CHECKED;
void mica_journal_close(mica_journal *journal); /* NULL is fine */

#endif
