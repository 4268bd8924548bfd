/* cli/verb_ls.c: the verb `ls`: its options, its help, its call into the library. Judged by tests/cli/transcripts. */
#include <mica/store.h>

#include "verbs.h"

static mica_status run_ls(const mica_option_values *values, char **output, mica_error *error) {
    char *text = NULL, *json = NULL;
    mica_status status = mica_list(values->operand, values->second, values->match, &text, &json, error);
    *output = mica_verb_choose(values->json, text, json);
    return status;
}

static const mica_option ls_options[] = {
    {"match", 0, MICA_OPTION_TEXT, FIELD(match), "GLOB", "only names that match; * stands for any text", NULL},
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_ls = {
    "ls", "list the models of a store, or the tensors of one", "STORE [NAME] [options]",
    "Lists the models of a store; with NAME that model's tensors and files.\n",
    {ls_options, "STORE", "NAME", true}, run_ls,
};
