/* operations/output.h: a report in its two forms, given to a caller who may want either, both or none. */
#ifndef MICA_OPERATIONS_OUTPUT_H
#define MICA_OPERATIONS_OUTPUT_H

#include "base/json.h"
#include "base/text.h"

/* Finishes both and gives each to whoever wants it (`text`, `json` may be NULL); what nobody wants is freed. With a `status` that is not
 * OK, or without memory, nothing is given; returns that status. */
mica_status mica_output_give(mica_status status, mica_text *words, mica_json_writer *writer, char **text, char **json, mica_error *error);

#endif
