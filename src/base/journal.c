/* base/journal.c: the append-only record. The file comes into being whole, with its head (an atomic replacement), so that a
 * journal without a head was damaged, not interrupted. Records and invariants: base/journal.h. Judged by tests/base/test_journal.c,
 * which cuts and flips a journal at every byte. */
#include "base/journal.h"

#include <inttypes.h>
#include <string.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/text.h"

#define MAGIC "MICAJRN1"
#define MAGIC_BYTES 8u
#define PREFIX_BYTES 8u /* length and kind */
#define CHECK_BYTES 8u

struct mica_journal {
    mica_file *file;
    uint64_t end; /* of the last record that counts */
};

static void put_u32(uint8_t *bytes, uint32_t value) {
    for (int i = 0; i < 4; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get_u32(const uint8_t *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* The bytes of one record, appended to `text`. */
static mica_status encode(mica_text *text, const char *path, uint32_t kind, const void *payload, uint64_t bytes, mica_error *error) {
    uint8_t prefix[PREFIX_BYTES], digest[MICA_SHA256_BYTES];
    if (bytes > UINT32_MAX)
        return mica_fail(error, MICA_FAILED, "%s: a record of %" PRIu64 " bytes does not fit into a journal", path, bytes);
    put_u32(prefix, (uint32_t)bytes);
    put_u32(prefix + 4, kind);
    size_t start = text->length;
    mica_text_append(text, (const char *)prefix, sizeof prefix);
    mica_text_append(text, payload, (size_t)bytes);
    if (mica_text_failed(text))
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a record of %" PRIu64 " bytes", path, bytes);
    mica_status status = mica_sha256_of(text->bytes + start, text->length - start, digest, error);
    if (status == MICA_OK) {
        mica_text_append(text, (const char *)digest, CHECK_BYTES);
        if (mica_text_failed(text))
            status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a record of %" PRIu64 " bytes", path, bytes);
    }
    return status;
}

static mica_status open_for_append(const char *path, uint64_t end, mica_journal **journal, mica_error *error) {
    mica_journal *opened = mica_calloc(1, sizeof *opened);
    if (!opened)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
    mica_status status = mica_file_open_update(path, &opened->file, error);
    if (status != MICA_OK) {
        mica_free(opened);
        return status;
    }
    opened->end = end;
    *journal = opened;
    return MICA_OK;
}

mica_status mica_journal_create(const char *path, const void *head, uint64_t head_bytes, mica_journal **journal, mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    mica_text_append(&text, MAGIC, MAGIC_BYTES);
    mica_status status = encode(&text, path, MICA_JOURNAL_HEAD, head, head_bytes, error);
    if (status == MICA_OK)
        status = mica_file_replace(path, text.bytes, text.length, error);
    if (status == MICA_OK)
        status = open_for_append(path, text.length, journal, error);
    mica_text_release(&text);
    return status;
}

mica_status mica_journal_create_locked(const char *path, const char *busy, const void *head, uint64_t head_bytes, mica_journal **journal,
                                       int *lock, mica_error *error) {
    int there = -1;
    mica_journal *made = NULL;
    mica_status status = mica_path_exists(path) ? mica_path_lock(path, busy, &there, error) : MICA_OK;
    mica_path_unlock(there);
    if (status == MICA_OK)
        status = mica_journal_create(path, head, head_bytes, &made, error);
    if (status == MICA_OK)
        status = mica_path_lock(path, busy, lock, error);
    if (status == MICA_OK)
        *journal = made;
    else
        mica_journal_close(made);
    return status;
}

/* Reads the record at `offset` into `buffer` (prefix, payload, checksum). *record_bytes is 0 where none counts. */
static mica_status read_record(const mica_file *file, uint64_t offset, mica_text *buffer, uint64_t *record_bytes, mica_error *error) {
    uint8_t prefix[PREFIX_BYTES], digest[MICA_SHA256_BYTES];
    uint64_t left = mica_file_bytes(file) - offset;
    *record_bytes = 0;
    if (left < PREFIX_BYTES + CHECK_BYTES)
        return MICA_OK;
    mica_status status = mica_file_read(file, offset, prefix, sizeof prefix, error);
    uint64_t total = (uint64_t)get_u32(prefix) + PREFIX_BYTES + CHECK_BYTES;
    if (status != MICA_OK || total > left)
        return status;
    if (buffer->capacity < total) {
        mica_text_release(buffer);
        buffer->bytes = mica_malloc((size_t)total);
        if (!buffer->bytes)
            return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a record of %" PRIu64 " bytes", mica_file_path(file), total);
        buffer->capacity = (size_t)total;
    }
    status = mica_file_read(file, offset, buffer->bytes, total, error);
    if (status == MICA_OK)
        status = mica_sha256_of(buffer->bytes, total - CHECK_BYTES, digest, error);
    if (status == MICA_OK && memcmp(digest, buffer->bytes + total - CHECK_BYTES, CHECK_BYTES) == 0)
        *record_bytes = total;
    return status;
}

/* Visits the records that count; *end is where they end. */
static mica_status replay(const mica_file *file, mica_journal_visit visit, void *context, uint64_t *end, mica_error *error) {
    char magic[MAGIC_BYTES];
    const char *path = mica_file_path(file);
    if (mica_file_bytes(file) < MAGIC_BYTES) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: not a journal: expected at least %u bytes, got %" PRIu64, path, MAGIC_BYTES,
                         mica_file_bytes(file));
    }
    mica_status status = mica_file_read(file, 0, magic, MAGIC_BYTES, error);
    if (status == MICA_OK && memcmp(magic, MAGIC, MAGIC_BYTES) != 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: not a journal: expected \"%s\" at its start, got \"%.8s\"", path, MAGIC, magic);
    mica_text buffer = MICA_TEXT_INIT;
    for (*end = MAGIC_BYTES; status == MICA_OK;) {
        uint64_t bytes;
        status = read_record(file, *end, &buffer, &bytes, error);
        bool head = *end == MAGIC_BYTES;
        if (status != MICA_OK || (bytes == 0 && !head))
            break;
        uint32_t kind = bytes ? get_u32((uint8_t *)buffer.bytes + 4) : 0;
        if (head && (bytes == 0 || kind != MICA_JOURNAL_HEAD)) {
            status = mica_fail(error, MICA_CORRUPT, "%s: the journal's first record, which describes the job, is damaged", path);
            break;
        }
        if (visit)
            status = visit(context, kind, (uint8_t *)buffer.bytes + PREFIX_BYTES, bytes - PREFIX_BYTES - CHECK_BYTES, error);
        *end += bytes;
    }
    mica_text_release(&buffer);
    return status;
}

mica_status mica_journal_open(const char *path, mica_journal_visit visit, void *context, mica_journal **journal, mica_error *error) {
    mica_journal *opened = NULL;
    mica_status status = open_for_append(path, 0, &opened, error);
    if (status != MICA_OK)
        return status;
    status = replay(opened->file, visit, context, &opened->end, error);
    if (status == MICA_OK && opened->end < mica_file_bytes(opened->file))
        status = mica_file_truncate(opened->file, opened->end, error);
    if (status != MICA_OK) {
        mica_journal_close(opened);
        return status;
    }
    *journal = opened;
    return MICA_OK;
}

mica_status mica_journal_append(mica_journal *journal, uint32_t kind, const void *payload, uint64_t bytes, mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    mica_status status = encode(&text, mica_file_path(journal->file), kind, payload, bytes, error);
    if (status == MICA_OK) {
        status = mica_file_write(journal->file, journal->end, text.bytes, text.length, error);
        if (status == MICA_OK) {
            journal->end += text.length;
        } else if (mica_file_truncate(journal->file, journal->end, NULL) != MICA_OK) {
            /* The torn record stays; its checksum makes the next opening drop it. */
        }
    }
    mica_text_release(&text);
    return status;
}

mica_status mica_journal_sync(mica_journal *journal, mica_error *error) {
    return mica_file_sync(journal->file, error);
}

void mica_journal_close(mica_journal *journal) {
    if (journal) {
        (void)mica_file_close(journal->file, NULL);
        mica_free(journal);
    }
}
