/* cli/verbs.c: the table of verbs, in the order of the help, and the little they share. Each verb is in verb_<name>.c. */
#include "verbs.h"

#include <mica/checkpoint.h>
#include <stdio.h>

const mica_verb *const mica_verbs[] = {
    &mica_verb_inspect,
    &mica_verb_index,
    &mica_verb_stats,
    &mica_verb_tokenize,
    &mica_verb_verify,
    &mica_verb_import,
    &mica_verb_ls,
    NULL,
};

char *mica_verb_choose(bool json, char *text_form, char *json_form) {
    mica_string_free(json ? text_form : json_form);
    return json ? json_form : text_form;
}

mica_status mica_verb_refuse(mica_error *error, const char *message) {
    snprintf(error->message, sizeof error->message, "%s", message);
    error->status = MICA_USAGE;
    return MICA_USAGE;
}
