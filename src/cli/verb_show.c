/* cli/verb_show.c: the verb `show`: its options, its help, its call into the library. Judged by tests/cli/transcripts. */
#include <mica/store.h>

#include "verbs.h"

static mica_status run_show(const mica_option_values *values, char **output, mica_error *error) {
    char *text = NULL, *json = NULL;
    const mica_status status = mica_show(values->operand, values->second, &text, &json, error);
    *output = mica_verb_choose(values->json, text, json);
    return status;
}

static const mica_option show_options[] = {
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_show = {
    "show", "tell all that is known of a tensor of a store", "STORE TENSOR|UUID [options]",
    "Tells what a tensor is, where it lies, what its values are like when they are decoded, and\n"
    "which models have it, under which names.\n",
    {show_options, "STORE", "TENSOR or UUID", false}, run_show,
};
