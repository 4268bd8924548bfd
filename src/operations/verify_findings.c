/* operations/verify_findings.c: findings in the order of the files, whatever order they were found in, as text and JSON.
 * Judged by tests/operations/test_verify_checkpoint.c. */
#include "operations/verify_findings.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "base/quantity.h"
#include "base/text.h"
#include "operations/output.h"

#define SHOWN_MAX 1000 /* of each kind; the counts tell of all */

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the report");
}

mica_status mica_findings_add(mica_findings *findings, mica_status status, const char *file, uint64_t place, const char *message,
                              mica_error *error) {
    mica_finding *finding = mica_calloc(1, sizeof *finding);
    size_t length = strlen(file);
    if (strncmp(message, file, length) == 0 && strncmp(message + length, ": ", 2) == 0)
        message += length + 2;
    if (finding)
        *finding = (mica_finding){NULL, status, file, mica_strdup(message), place};
    if (!finding || !finding->what) {
        mica_free(finding);
        return no_memory(error);
    }
    *(findings->end ? findings->end : &findings->first) = finding;
    findings->end = &finding->next;
    findings->count++;
    return MICA_OK;
}

void mica_findings_move(mica_findings *to, mica_findings *from) {
    if (from->first) {
        *(to->end ? to->end : &to->first) = from->first;
        to->end = from->end;
        to->count += from->count;
    }
    *from = (mica_findings){NULL, NULL, 0};
}

void mica_findings_release(mica_findings *findings) {
    for (mica_finding *finding = findings->first, *next; finding; finding = next) {
        next = finding->next;
        mica_free(finding->what);
        mica_free(finding);
    }
    *findings = (mica_findings){NULL, NULL, 0};
}

static int compare_places(const void *left, const void *right) {
    const mica_finding *a = *(const mica_finding *const *)left, *b = *(const mica_finding *const *)right;
    return a->place != b->place ? (a->place > b->place) - (a->place < b->place) : (a->status > b->status) - (a->status < b->status);
}

/* Errors and warnings, each in order of place. */
typedef struct sorted {
    const mica_finding **all;
    uint64_t count, errors;
} sorted;

static bool sort_findings(const mica_findings *findings, sorted *result) {
    *result = (sorted){mica_reallocarray(NULL, findings->count + 1, sizeof *result->all), findings->count, 0};
    if (!result->all)
        return false;
    uint64_t i = 0;
    for (const mica_finding *finding = findings->first; finding; finding = finding->next) {
        result->all[i++] = finding;
        result->errors += finding->status != MICA_OK;
    }
    qsort(result->all, i, sizeof *result->all, compare_places);
    return true;
}

static void text_findings(mica_text *text, const sorted *findings, bool errors) {
    uint64_t shown = 0, total = errors ? findings->errors : findings->count - findings->errors;
    for (uint64_t i = 0; i < findings->count && shown < SHOWN_MAX; i++) {
        if ((findings->all[i]->status != MICA_OK) == errors) {
            mica_text_printf(text, "%s%s: %s\n", errors ? "" : "warning: ", findings->all[i]->file, findings->all[i]->what);
            shown++;
        }
    }
    if (total > shown)
        mica_text_printf(text, "and %" PRIu64 " more %s\n", total - shown, errors ? "problems" : "warnings");
}

static void write_text(mica_text *text, const mica_checkpoint_report *report, const sorted *findings) {
    char bytes[MICA_QUANTITY_BYTES];
    text_findings(text, findings, true);
    for (uint64_t i = 0; i < report->warning_count; i++)
        mica_text_printf(text, "warning: %s\n", report->warnings[i]);
    text_findings(text, findings, false);
    mica_text_printf(text, "%s: %" PRIu64 " %s, %s in %" PRIu64 " files read; ", report->path, report->tensors,
                     strcmp(report->kind, "store") == 0 ? "payloads" : "tensors", mica_bytes_show(report->bytes, bytes), report->files);
    if (strcmp(report->kind, "store") == 0) {
        mica_text_puts(text, "each compared with its hash, and the catalogue checked; ");
    } else if (report->hashed_files + report->hashed_tensors == 0) {
        mica_text_puts(text, "no hashes recorded; ");
    } else if (report->hashed_tensors) {
        mica_text_printf(text, "%" PRIu64 " recorded hashes of tensors and %" PRIu64 " of files compared; ", report->hashed_tensors,
                         report->hashed_files);
    } else {
        mica_text_printf(text, "%" PRIu64 " recorded hashes of files compared; ", report->hashed_files);
    }
    if (findings->errors)
        mica_text_printf(text, "%" PRIu64 " problem%s\n", findings->errors, findings->errors == 1 ? "" : "s");
    else
        mica_text_puts(text, "nothing is wrong\n");
}

static void json_findings(mica_json_writer *writer, const sorted *findings, bool errors) {
    uint64_t shown = 0;
    for (uint64_t i = 0; i < findings->count && shown < SHOWN_MAX; i++) {
        if ((findings->all[i]->status != MICA_OK) == errors) {
            mica_json_open_object(writer, NULL);
            mica_json_string(writer, "file", findings->all[i]->file);
            mica_json_string(writer, "problem", findings->all[i]->what);
            mica_json_close_object(writer);
            shown++;
        }
    }
}

static void write_json(mica_json_writer *writer, const mica_checkpoint_report *report, const sorted *findings) {
    mica_json_begin(writer);
    mica_json_open_object(writer, NULL);
    mica_json_string(writer, "path", report->path);
    mica_json_string(writer, "kind", report->kind);
    mica_json_bool(writer, "ok", findings->errors == 0);
    mica_json_u64(writer, "files", report->files);
    mica_json_u64(writer, "bytes", report->bytes);
    mica_json_u64(writer, "tensors", report->tensors);
    mica_json_u64(writer, "hashed_files", report->hashed_files);
    mica_json_u64(writer, "hashed_tensors", report->hashed_tensors);
    mica_json_u64(writer, "problem_count", findings->errors);
    mica_json_open_array(writer, "problems");
    json_findings(writer, findings, true);
    mica_json_close_array(writer);
    mica_json_u64(writer, "warning_count", report->warning_count + findings->count - findings->errors);
    mica_json_open_array(writer, "warnings");
    for (uint64_t i = 0; i < report->warning_count; i++) {
        mica_json_open_object(writer, NULL);
        mica_json_null(writer, "file");
        mica_json_string(writer, "problem", report->warnings[i]);
        mica_json_close_object(writer);
    }
    json_findings(writer, findings, false);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

static mica_status first_error(const mica_checkpoint_report *report, const sorted *findings, mica_error *error) {
    for (uint64_t i = 0; i < findings->count; i++) {
        if (findings->all[i]->status != MICA_OK) {
            return mica_fail(error, findings->all[i]->status, "%s: %s: %s%s", report->path, findings->all[i]->file, findings->all[i]->what,
                             findings->errors > 1 ? " (and more: see the report)" : "");
        }
    }
    return MICA_OK;
}

mica_status mica_checkpoint_report_write(mica_checkpoint_report *report, char **text, char **json, mica_error *error) {
    mica_text words = MICA_TEXT_INIT;
    mica_json_writer writer;
    sorted findings;
    if (!sort_findings(report->findings, &findings))
        return no_memory(error);
    write_text(&words, report, &findings);
    write_json(&writer, report, &findings);
    mica_status status = mica_output_give(MICA_OK, &words, &writer, text, json, error);
    if (status == MICA_OK)
        status = first_error(report, &findings, error);
    mica_free(findings.all);
    return status;
}
