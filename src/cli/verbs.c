/* cli/verbs.c: the table of verbs, in the order of the help, and the little they share. Each verb is in verb_<name>.c. */
#include <errno.h>
#include <mica/checkpoint.h>
#include <mica/engine.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "progress.h"
#include "verbs.h"

const mica_verb *const mica_verbs[] = {
    &mica_verb_inspect,
    &mica_verb_index,
    &mica_verb_stats,
    &mica_verb_tokenize,
    &mica_verb_verify,
    &mica_verb_diff,
    &mica_verb_import,
    &mica_verb_ls,
    &mica_verb_show,
    &mica_verb_remove,
    &mica_verb_gc,
    &mica_verb_run,
    &mica_verb_logits,
    &mica_verb_perplexity,
    &mica_verb_export,
    &mica_verb_route,
    &mica_verb_imatrix,
    NULL,
};

char *mica_verb_choose(bool json, char *text_form, char *json_form) {
    mica_string_free(json ? text_form : json_form);
    return json ? json_form : text_form;
}

void mica_verb_tell_resume(mica_status status, mica_error *error) {
    const size_t length = strlen(error->message);
    if (status == MICA_INTERRUPTED)
        snprintf(error->message + length, sizeof error->message - length, "; the same command with --resume goes on from there");
}

mica_status mica_verb_fail(mica_error *error, mica_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    error->status = status;
    return status;
}

mica_status mica_verb_refuse(mica_error *error, const char *message) {
    return mica_verb_fail(error, MICA_USAGE, "%s", message);
}

void mica_verb_compute_options(const mica_option_values *values, mica_compute_options *options) {
    *options = (mica_compute_options){.memory_bytes = values->memory_bytes,
                                      .context = values->context,
                                      .threads = values->threads,
                                      .reading_threads = values->reading_threads,
                                      .exact = values->exact,
                                      .no_lookahead = values->no_lookahead,
                                      .cache_policy = values->cache_policy,
                                      .progress = mica_progress_show};
}

static mica_status fail_file(const char *path, const char *what, int reason, mica_error *error) {
    return mica_verb_fail(error, reason == ENOMEM ? MICA_NO_MEMORY : MICA_IO, "%s: %s: %s", path, what, strerror(reason));
}

/* All that is left of a stream; the caller's (free). */
static mica_status read_stream(FILE *stream, const char *path, char **bytes, uint64_t *length, mica_error *error) {
    size_t capacity = 0, used = 0, got;
    char *buffer = NULL;
    do {
        if (capacity - used < 65536) {
            capacity = capacity * 2 + 65536;
            char *larger = realloc(buffer, capacity);
            if (!larger) {
                free(buffer);
                return fail_file(path, "cannot hold", ENOMEM, error);
            }
            buffer = larger;
        }
        got = fread(buffer + used, 1, capacity - used, stream);
        used += got;
    } while (got > 0);
    if (ferror(stream)) {
        int reason = errno;
        free(buffer);
        return fail_file(path, "cannot read", reason, error);
    }
    buffer[used] = 0; /* there is room: the last read got nothing */
    *bytes = buffer;
    *length = used;
    return MICA_OK;
}

mica_status mica_verb_read_text(const char *path, char **bytes, uint64_t *length, mica_error *error) {
    if (strcmp(path, "-") == 0)
        return read_stream(stdin, "standard input", bytes, length, error);
    FILE *file = fopen(path, "rb");
    if (!file)
        return fail_file(path, "cannot open", errno, error);
    mica_status status = read_stream(file, path, bytes, length, error);
    fclose(file);
    return status;
}

mica_status mica_verb_read_string(const char *path, char **text, mica_error *error) {
    uint64_t length;
    mica_status status = mica_verb_read_text(path, text, &length, error);
    if (status == MICA_OK && strlen(*text) != length)
        status = mica_verb_fail(error, MICA_BAD_INPUT, "%s: expected text, got a NUL byte", path);
    return status;
}
