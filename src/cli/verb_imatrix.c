/* cli/verb_imatrix.c: the verb `imatrix`: its options, its help, its call into the library. Judged by tests/cli/transcripts. */
#include <mica/imatrix.h>
#include <stdlib.h>
#include <string.h>

#include "progress.h"
#include "verbs.h"

static mica_status run_imatrix(const mica_option_values *values, char **output, mica_error *error) {
    mica_compute_options options;
    char *file = NULL, *text = NULL, *json = NULL;
    if (!values->output || !values->file == !values->ids)
        return mica_verb_refuse(error, "expected --output FILE.gguf, and one of --file TEXT and --ids LIST");
    mica_status status = values->file ? mica_verb_read_string(values->file, &file, error) : MICA_OK;
    const mica_prompt prompt = {.text = file, .ids = values->ids, .bos = values->bos};
    const char *slash = values->file ? strrchr(values->file, '/') : NULL;
    mica_verb_compute_options(values, &options);
    const mica_imatrix_options own = {.dataset = slash ? slash + 1 : values->file ? values->file : "ids",
                                      .covariance = values->covariance,
                                      .sensitivity = values->sensitivity,
                                      .own_bytes = values->covariance_bytes,
                                      .force = values->force,
                                      .resume = values->resume};
    mica_progress_begin();
    if (status == MICA_OK)
        status = mica_imatrix_collect(values->operand, values->output, &options, &own, &prompt, &text, &json, error);
    mica_progress_end();
    mica_verb_tell_resume(status, error);
    free(file);
    *output = mica_verb_choose(values->json, text, json);
    return status;
}

static const mica_option imatrix_options[] = {
    {"file", 'f', MICA_OPTION_TEXT, FIELD(file), "TEXT", "the text, a file (-: standard input)", "ids"},
    PROMPT_OPTIONS,
    {"output", 'o', MICA_OPTION_TEXT, FIELD(output), "FILE", "where it goes", NULL},
    {"covariance", 0, MICA_OPTION_FLAG, FIELD(covariance), NULL,
     "also how columns go together, for `export`'s search of levels:\n\"scale_optimization\": \"trellis\", or --effort max", NULL},
    {"sensitivity", 0, MICA_OPTION_FLAG, FIELD(sensitivity), NULL,
     "also what an error in each weight does to the output, for\n`export --budget`; reads every weight a second time", NULL},
    {"own-size", 0, MICA_OPTION_SIZE, FIELD(covariance_bytes), "SIZE", "of the file, for covariances of single experts (default 8GiB)",
     NULL},
    {"resume", 0, MICA_OPTION_FLAG, FIELD(resume), NULL, "go on where an interrupted run ended", "force"},
    {"force", 0, MICA_OPTION_FLAG, FIELD(force), NULL, "replace what is there", NULL},
    CONTEXT_OPTION("tokens of a window (default 512)"),
    COMPUTE_OPTIONS,
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_imatrix = {
    "imatrix", "measure what a model's weights see, for `export --imatrix`", "CHECKPOINT -f TEXT --output FILE.gguf [options]",
    "Computes a text in windows and writes, for every weight and column, the sum of the squared\n"
    "inputs, per expert with how often it was chosen: a GGUF as llama.cpp's llama-imatrix has it.\n"
    "A run that was ended in any way goes on with --resume, behind its last whole layer.\n",
    {imatrix_options, "CHECKPOINT", NULL, false}, run_imatrix,
};
