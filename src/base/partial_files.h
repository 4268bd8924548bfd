/* base/partial_files.h: a set of files that are written in any order and belong together: made at their full size under PATH.partial,
 * synced, and given their names when all are whole, the first one last (it is the one that a reader opens). What a kill leaves can be
 * opened again. */
#ifndef MICA_BASE_PARTIAL_FILES_H
#define MICA_BASE_PARTIAL_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

typedef struct mica_partial_file {
    char *path;         /* its final one; taken by mica_partial_files_open (mica_free) */
    uint64_t bytes;     /* its whole size */
    const void *header; /* its first bytes; borrowed while the set is open */
    uint64_t header_bytes;
} mica_partial_file;

typedef struct mica_partial_files mica_partial_files;

/* Takes `files` and their paths, on failure too. `fresh`: made anew, header written, the rest zeros; else opened as an earlier run left
 * them: CONFLICT where size or header are others. Where the earlier run had begun to give names, only finish may follow. */
mica_status mica_partial_files_open(mica_partial_file *files, uint32_t count, bool fresh, mica_partial_files **set,
                                    mica_error *error) MICA_CHECKED;
/* Any thread, as long as ranges do not overlap. A range outside the file is FAILED. */
mica_status mica_partial_files_write(mica_partial_files *set, uint32_t index, uint64_t offset, const void *bytes, uint64_t length,
                                     mica_error *error) MICA_CHECKED;
mica_status mica_partial_files_sync(mica_partial_files *set, mica_error *error) MICA_CHECKED;
/* Syncs and renames; doing it again after a kill makes good what it interrupted. Frees the set in any case. */
mica_status mica_partial_files_finish(mica_partial_files *set, mica_error *error) MICA_CHECKED;
void mica_partial_files_close(mica_partial_files *set); /* leaves the partial files; NULL is fine */

#endif
