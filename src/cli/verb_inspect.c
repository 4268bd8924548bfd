/* cli/verb_inspect.c: the verb `inspect`: its options, its help, its call into the library. Judged by tests/cli/transcripts. */
#include <mica/checkpoint.h>

#include "verbs.h"

static mica_status run_inspect(const mica_option_values *values, char **output, mica_error *error) {
    const mica_inspect_options options = {.strict = values->strict};
    char *text = NULL, *json = NULL;
    mica_status status = mica_inspect(values->operand, &options, &text, &json, error);
    *output = mica_verb_choose(values->json, text, json);
    return status;
}

static const mica_option inspect_options[] = {
    {"strict", 0, MICA_OPTION_FLAG, FIELD(strict), NULL, "tensors of unknown use are an error", NULL},
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_inspect = {
    "inspect", "tell what a checkpoint is, from its headers alone", "CHECKPOINT [options]",
    "Opens a checkpoint (a directory with config.json and its shards, a GGUF file or the\n"
    "first of its splits, or one .safetensors file), accounts for every tensor, and prints\n"
    "what was found. Reads no tensor's data.\n",
    {inspect_options, "CHECKPOINT", NULL, false}, run_inspect,
};
