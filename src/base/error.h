/* base/error.h: how a failure gets its sentence. See mica/status.h for the contract. */
#ifndef MICA_BASE_ERROR_H
#define MICA_BASE_ERROR_H

#include <mica/status.h>

#define MICA_CHECKED __attribute__((warn_unused_result))
#define MICA_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))

/* Fills `error` (may be NULL) and returns `status`, so that `return mica_fail(…)` is the idiom.
 * Control characters in the formatted message are replaced, so that it stays one line. */
mica_status mica_fail(mica_error *error, mica_status status, const char *format, ...) MICA_PRINTF(3, 4);

/* The same for a failed system call: appends ": " and strerror(errno_value); ENOMEM becomes NO_MEMORY, the rest IO. */
mica_status mica_fail_errno(mica_error *error, int errno_value, const char *format, ...) MICA_PRINTF(3, 4);

/* Puts "context: " in front of the message already in `error`; returns error->status (or `status` when error is NULL). */
mica_status mica_fail_context(mica_error *error, mica_status status, const char *format, ...) MICA_PRINTF(3, 4);

#endif
