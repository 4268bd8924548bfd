/* operations/index_report.h: what mica_index says of a run, as text and JSON (docs/schemas/index.schema.json). */
#ifndef MICA_OPERATIONS_INDEX_REPORT_H
#define MICA_OPERATIONS_INDEX_REPORT_H

#include "operations/index.h"

/* `outcome`: "finished", "resumed and finished", "already finished", "dry run". text, json may be NULL. */
mica_status mica_index_tell(const mica_index_run *run, const char *outcome, char **text, char **json, mica_error *error) MICA_CHECKED;

#endif
