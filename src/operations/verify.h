/* operations/verify.h: the three parts of mica_verify. All give their report (may be NULL on other failures) on OK, CORRUPT and BAD_INPUT:
 * docs/schemas/verify.schema.json. text and json may be NULL pointers. */
#ifndef MICA_OPERATIONS_VERIFY_H
#define MICA_OPERATIONS_VERIFY_H

#include <mica/checkpoint.h>

mica_status mica_verify_checkpoint(const char *path, const mica_verify_options *options, char **text, char **json, mica_error *error);
mica_status mica_verify_vindex(const char *path, const mica_verify_options *options, char **text, char **json, mica_error *error);
mica_status mica_verify_store(const char *path, const mica_verify_options *options, char **text, char **json, mica_error *error);

#endif
