/* operations/export_gguf_report.h: what `mica export --format gguf` tells of a run. */
#ifndef MICA_OPERATIONS_EXPORT_GGUF_REPORT_H
#define MICA_OPERATIONS_EXPORT_GGUF_REPORT_H

#include "operations/export_gguf.h"

/* `estimate`: seconds of a whole run, NaN but in a dry run. The forms are the caller's (mica_string_free; either may be NULL). */
mica_status mica_export_report(const mica_export_run *run, const char *outcome, double estimate, char **text, char **json,
                               mica_error *error) MICA_CHECKED;

#endif
