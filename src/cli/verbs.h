/* cli/verbs.h: the verbs of the program: one row each, each in a file of its own, and what their files share. */
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

extern const mica_verb *const mica_verbs[]; /* ended by NULL */

extern const mica_verb mica_verb_inspect, mica_verb_index, mica_verb_stats, mica_verb_tokenize, mica_verb_verify;
extern const mica_verb mica_verb_import, mica_verb_ls;

/* Options that several verbs have. */
#define FIELD(name) offsetof(mica_option_values, name)
#define JSON_OPTION(excluded) {"json", 0, MICA_OPTION_FLAG, FIELD(json), NULL, "print JSON instead of text", excluded}
#define THREADS_OPTION {"threads", 0, MICA_OPTION_COUNT, FIELD(threads), "N", "compute threads (default: all processors)", NULL}

/* Keeps the one of a report's two forms that was asked for, frees the other. */
char *mica_verb_choose(bool json, char *text_form, char *json_form);
/* A command line that the table of options cannot refuse. */
mica_status mica_verb_refuse(mica_error *error, const char *message);

#endif
