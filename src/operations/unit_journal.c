/* operations/unit_journal.c: see the header. */
#include "operations/unit_journal.h"

#include "base/clock.h"
#include "operations/source_identity.h"

typedef struct replay {
    const char *path, *job;
    uint64_t length;
    mica_journal_visit visit;
    void *context;
} replay;

static mica_status compare_head(const replay *r, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    json_t *recorded = NULL, *today = NULL;
    mica_status status = mica_json_parse(r->path, (const char *)payload, bytes, &recorded, error);
    if (status == MICA_OK)
        status = mica_json_parse("today's job", r->job, r->length, &today, error);
    if (status == MICA_OK)
        status = mica_identity_compare(r->path, recorded, today, true, error);
    json_decref(recorded);
    json_decref(today);
    return status;
}

static mica_status visit_record(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    const replay *r = context;
    return kind == MICA_JOURNAL_HEAD ? compare_head(r, payload, bytes, error) : r->visit(r->context, kind, payload, bytes, error);
}

mica_status mica_job_journal_open(const char *path, const char *job, uint64_t length, mica_journal_visit visit, void *context,
                                  mica_journal **journal, mica_error *error) {
    replay r = {path, job, length, visit, context};
    return mica_journal_open(path, visit_record, &r, journal, error);
}

void mica_unit_journal_begin(mica_unit_journal *units) {
    units->resumed = units->flushed = units->done;
    units->flushed_at = mica_seconds_now();
}

mica_status mica_unit_journal_flush(mica_unit_journal *units, mica_status (*record)(void *context, mica_error *error), void *context,
                                    mica_error *error) {
    if (units->broken || !units->journal || units->flushed == units->done)
        return MICA_OK;
    mica_status status = record(context, error);
    if (status == MICA_OK)
        status = mica_journal_sync(units->journal, error);
    units->broken = status != MICA_OK;
    units->flushed = units->done;
    units->flushed_at = mica_seconds_now();
    return status;
}
