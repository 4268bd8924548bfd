/* cli/verb_logits.c: the verb `logits`: its options, its help, its call into the library. Judged by tests/cli/transcripts/run.txt. */
#include <mica/engine.h>

#include "progress.h"
#include "verbs.h"

static mica_status run_logits(const mica_option_values *values, char **output, mica_error *error) {
    mica_compute_options options;
    const mica_prompt prompt = {.text = values->prompt, .ids = values->ids, .bos = values->bos};
    if (!values->prompt == !values->ids)
        return mica_verb_refuse(error, "expected one of --prompt TEXT and --ids LIST");
    if (!values->output)
        return mica_verb_refuse(error, "expected --output FILE");
    mica_verb_compute_options(values, &options);
    mica_progress_begin();
    mica_status status = mica_logits(values->operand, &options, &prompt, values->output, output, error);
    mica_progress_end();
    return status;
}

static const mica_option logits_options[] = {
    {"output", 'o', MICA_OPTION_TEXT, FIELD(output), "FILE", "FILE.npy (NumPy) or FILE.f32 (the numbers alone)", NULL},
    {"prompt", 'p', MICA_OPTION_TEXT, FIELD(prompt), "TEXT", "the sequence, as text", "ids"},
    PROMPT_OPTIONS,
    COMPUTE_OPTIONS,
    {0},
};

const mica_verb mica_verb_logits = {
    "logits", "write the logits of a sequence", "CHECKPOINT -p TEXT | --ids LIST -o FILE [options]",
    "Computes a sequence and writes its float32 logits [tokens][vocabulary]: row i is what the\n"
    "model says of the token behind token i.\n",
    {logits_options, "CHECKPOINT", NULL, false}, run_logits,
};
