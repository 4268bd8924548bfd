/* cli/verb_verify.c: the verb `verify`: its options, its help, its call into the library. Judged by tests/cli/transcripts. */
#include <mica/checkpoint.h>

#include "progress.h"
#include "verbs.h"

static mica_status run_verify(const mica_option_values *values, char **output, mica_error *error) {
    const mica_verify_options options = {.hashes = values->hashes, .threads = values->threads, .progress = mica_progress_show};
    char *text = NULL, *json = NULL;
    mica_progress_begin();
    mica_status status = mica_verify(values->operand, &options, &text, &json, error);
    mica_progress_end();
    *output = mica_verb_choose(values->json, text, json);
    return status;
}

static const mica_option verify_options[] = {
    {"hashes", 0, MICA_OPTION_TEXT, FIELD(hashes), "FILE|DIR",
     "for a checkpoint: a sha256sum file, or a vindex that recorded its\ntensors (default: what is found beside it)", NULL},
    THREADS_OPTION,
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_verify = {
    "verify", "read all of a vindex, a checkpoint or a store and check it", "VINDEX | CHECKPOINT | STORE [options]",
    "Reads every byte, and checks structure, values and recorded hashes.\n",
    {verify_options, "VINDEX, CHECKPOINT or STORE", NULL, false}, run_verify,
};
