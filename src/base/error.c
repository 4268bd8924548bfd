/* base/error.c: the sentences of failures. A message is always valid UTF-8 on one line: control characters become spaces,
 * stray bytes become '?', and a cut at the end of the buffer falls between characters. Judged by tests/base/test_error.c. */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/text.h"

static const struct {
    int exit_status;
    const char *text;
} status_rows[] = {
#define X(name, exit_status, text) {exit_status, text},
    MICA_STATUS_LIST(X)
#undef X
};

#define STATUS_COUNT (sizeof status_rows / sizeof status_rows[0])

const char *mica_status_text(mica_status status) {
    return (unsigned)status < STATUS_COUNT ? status_rows[status].text : "unknown status";
}

int mica_status_exit(mica_status status) {
    return (unsigned)status < STATUS_COUNT ? status_rows[status].exit_status : 1;
}

static void clean(char *message) {
    size_t length = strlen(message), at = 0;
    while (at < length) {
        unsigned char byte = (unsigned char)message[at];
        size_t sequence = mica_utf8_sequence(message + at, length - at);
        if (sequence == 0) {
            message[at++] = '?';
        } else if (byte < 0x20 || byte == 0x7f) {
            message[at++] = ' ';
        } else if (byte == 0xc2 && (unsigned char)message[at + 1] < 0xa0) { /* C1 controls: U+0085 ends a line */
            message[at++] = ' ';
            message[at++] = ' ';
        } else {
            at += sequence;
        }
    }
}

/* Formats into `message` and appends `tail`; the text is cut where the buffer ends, never inside a character. */
static void compose(char message[MICA_ERROR_MESSAGE_BYTES], const char *tail, const char *format, va_list arguments) {
    char buffer[MICA_ERROR_MESSAGE_BYTES + 4];
    int written = vsnprintf(buffer, sizeof buffer, format, arguments);
    size_t length = written < 0 ? 0 : (size_t)written < sizeof buffer ? (size_t)written : sizeof buffer - 1;
    snprintf(buffer + length, sizeof buffer - length, "%s", tail);
    length = strlen(buffer);
    if (length >= MICA_ERROR_MESSAGE_BYTES) {
        length = MICA_ERROR_MESSAGE_BYTES - 1;
        while (length > 0 && ((unsigned char)buffer[length] & 0xc0) == 0x80)
            length--;
    }
    buffer[length] = 0;
    clean(buffer);
    memcpy(message, buffer, length + 1);
}

mica_status mica_fail(mica_error *error, mica_status status, const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        compose(error->message, "", format, arguments);
        va_end(arguments);
        error->status = status;
    }
    return status;
}

mica_status mica_fail_errno(mica_error *error, int errno_value, const char *format, ...) {
    mica_status status = errno_value == ENOMEM ? MICA_NO_MEMORY : MICA_IO;
    if (error) {
        char reason[128], tail[160];
        /* GNU strerror_r: returns the text, which need not be in the buffer. */
        snprintf(tail, sizeof tail, ": %s", strerror_r(errno_value, reason, sizeof reason));
        va_list arguments;
        va_start(arguments, format);
        compose(error->message, tail, format, arguments);
        va_end(arguments);
        error->status = status;
    }
    return status;
}

mica_status mica_fail_context(mica_error *error, mica_status status, const char *format, ...) {
    if (!error)
        return status;
    char tail[MICA_ERROR_MESSAGE_BYTES + 2];
    snprintf(tail, sizeof tail, ": %s", error->message);
    va_list arguments;
    va_start(arguments, format);
    compose(error->message, tail, format, arguments);
    va_end(arguments);
    return error->status;
}
