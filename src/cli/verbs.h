/* cli/verbs.h: the verbs of the program, one row each. */
#ifndef MICA_CLI_VERBS_H
#define MICA_CLI_VERBS_H

#include "options.h"

typedef struct mica_verb {
    const char *name, *summary;
    const char *usage;       /* what stands behind "usage: mica NAME " */
    const char *description; /* of its help */
    mica_option_table options;
    /* Does it. *output is what goes to stdout, also on some failures (mica_string_free; may be NULL). */
    mica_status (*run)(const mica_option_values *values, char **output, mica_error *error);
} mica_verb;

extern const mica_verb mica_verbs[]; /* ended by a row without a name */

#endif
