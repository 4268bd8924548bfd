/* operations/verify_records.h: SHA-256 values that were written down earlier: of a checkpoint's files, or of its tensors.
 * Sources: a file in sha256sum's format (given, or mica.sha256 in the checkpoint), the link names of the Hugging Face cache, and
 * source_tensors.json of a vindex. Refuses a record it cannot read: a damaged record must not pass as none. */
#ifndef MICA_OPERATIONS_VERIFY_RECORDS_H
#define MICA_OPERATIONS_VERIFY_RECORDS_H

#include "base/hash.h"
#include "formats/tensor_source.h"

typedef struct mica_record {
    char *name; /* of a file below the checkpoint's directory, or of a tensor; owned */
    uint8_t sha256[MICA_SHA256_BYTES];
    const char *from; /* what recorded it; static */
} mica_record;

typedef struct mica_records {
    mica_record *records; /* owned; sorted by name, several may have the same */
    uint64_t count;
} mica_records;

/* hashes: as in mica_verify_options. Either list may end up empty. */
mica_status mica_records_collect(const mica_tensor_source *source, const char *hashes, mica_records *files, mica_records *tensors,
                                 mica_error *error) MICA_CHECKED;
void mica_records_release(mica_records *records);

/* The records of that name: a run beginning at the result, `count` long; NULL when there are none. */
const mica_record *mica_records_find(const mica_records *records, const char *name, uint64_t *count);

/* The parser of sha256sum's format alone; `name` is what messages call the text. */
mica_status mica_records_parse(const char *name, const char *text, uint64_t length, const char *from, mica_records *files,
                               mica_error *error) MICA_CHECKED;

#endif
