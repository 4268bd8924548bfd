/* operations/pass_journal.c: see the header. */
#include "operations/pass_journal.h"

#include "base/file.h"
#include "base/memory.h"
#include "operations/source_identity.h"
#include "operations/unit_journal.h"

#define BUSY "another run is at work there"

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the journal");
}

char *mica_pass_path(const char *result, const char *suffix) {
    mica_text text = MICA_TEXT_INIT;
    mica_text_printf(&text, "%s.%s", result, suffix);
    return mica_text_take(&text);
}

mica_status mica_pass_choose(const char *result, bool resume, bool force, mica_pass_action *action, mica_error *error) {
    if (resume && force)
        return mica_fail(error, MICA_USAGE, "--resume and --force: expected one of them");
    char *path = mica_pass_path(result, "journal");
    if (!path)
        return no_memory(error);
    const bool unfinished = mica_path_exists(path), finished = !unfinished && mica_path_exists(result);
    mica_free(path);
    *action = resume && unfinished ? MICA_PASS_RESUME : resume && finished ? MICA_PASS_FINISHED : MICA_PASS_START;
    if (resume || force)
        return MICA_OK;
    if (unfinished)
        return mica_fail(error, MICA_CONFLICT, "%s: an unfinished run is there; go on with --resume, or start afresh with --force", result);
    return finished ? mica_fail(error, MICA_CONFLICT, "%s: is there already; replace it with --force", result) : MICA_OK;
}

/* ---- opening */

mica_status mica_pass_journal_open(mica_pass_journal *journal, const char *result, bool fresh, const char *job, uint64_t length,
                                   mica_journal_visit visit, void *context, mica_error *error) {
    *journal = (mica_pass_journal){.path = mica_pass_path(result, "journal"), .lock = -1};
    if (!journal->path)
        return no_memory(error);
    if (fresh)
        return mica_journal_create_locked(journal->path, BUSY, job, length, &journal->journal, &journal->lock, error);
    const mica_status status = mica_path_lock(journal->path, BUSY, &journal->lock, error);
    return status == MICA_OK ? mica_job_journal_open(journal->path, job, length, visit, context, &journal->journal, error) : status;
}

mica_status mica_pass_journal_record(mica_pass_journal *journal, uint32_t kind, const void *payload, uint64_t bytes, mica_error *error) {
    const mica_status status = mica_journal_append(journal->journal, kind, payload, bytes, error);
    return status == MICA_OK ? mica_journal_sync(journal->journal, error) : status;
}

mica_status mica_pass_journal_remove(mica_pass_journal *journal, mica_error *error) {
    return journal->journal ? mica_file_remove(journal->path, error) : MICA_OK;
}

void mica_pass_journal_close(mica_pass_journal *journal) {
    mica_journal_close(journal->journal);
    if (journal->path) /* it was opened */
        mica_path_unlock(journal->lock);
    mica_free(journal->path);
    *journal = (mica_pass_journal){.lock = -1};
}

/* ---- a finished result */

mica_status mica_pass_compare_finished(const char *result, const json_t *recorded, const char *job, uint64_t length, mica_error *error) {
    json_t *today = NULL;
    if (!recorded)
        return mica_fail(error, MICA_CONFLICT, "%s: is there already, and does not say of what; replace it with --force", result);
    mica_status status = mica_json_parse("today's job", job, length, &today, error);
    if (status != MICA_OK)
        return status;
    json_object_del(today, "arithmetic");
    status = mica_identity_compare(result, recorded, today, false, error);
    json_decref(today);
    return status;
}
