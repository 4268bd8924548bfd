/* cli/verb_perplexity.c: the verb `perplexity`: its options, its help, its call into the library. Judged by
 * tests/cli/transcripts/run.txt. */
#include <mica/engine.h>
#include <stdlib.h>

#include "progress.h"
#include "verbs.h"

static mica_status run_perplexity(const mica_option_values *values, char **output, mica_error *error) {
    mica_compute_options options;
    char *file = NULL, *text = NULL, *json = NULL;
    if (!values->file == !values->ids)
        return mica_verb_refuse(error, "expected one of --file TEXT and --ids LIST");
    mica_status status = values->file ? mica_verb_read_string(values->file, &file, error) : MICA_OK;
    if (status == MICA_OK && file && !*file)
        status = mica_verb_fail(error, MICA_BAD_INPUT, "%s: expected text, got an empty file", values->file);
    const mica_prompt prompt = {.text = file, .ids = values->ids, .bos = values->bos};
    mica_verb_compute_options(values, &options);
    mica_progress_begin();
    if (status == MICA_OK)
        status = mica_perplexity(values->operand, values->against, &options, &prompt, &text, &json, error);
    mica_progress_end();
    free(file);
    *output = mica_verb_choose(values->json, text, json);
    return status;
}

static const mica_option perplexity_options[] = {
    {"file", 'f', MICA_OPTION_TEXT, FIELD(file), "TEXT", "the text, a file (-: standard input)", "ids"},
    PROMPT_OPTIONS,
    {"against", 0, MICA_OPTION_TEXT, FIELD(against), "OTHER",
     "another checkpoint with the same vocabulary: KL(OTHER ||\nCHECKPOINT), and how often both have the same likeliest token", NULL},
    CONTEXT_OPTION("tokens of a window (default 512)"),
    COMPUTE_OPTIONS,
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_perplexity = {
    "perplexity", "tell how well a model foretells a text", "CHECKPOINT -f TEXT [options]",
    "Cuts the text into windows, computes each alone and scores all of its tokens but the first:\n"
    "the mean negative log-likelihood in nats, with its standard error over the tokens, and the\n"
    "perplexity. A shorter rest is left out, unless it is all there is.\n",
    {perplexity_options, "CHECKPOINT", NULL, false}, run_perplexity,
};
