/* cli/verb_diff.c: the verb `diff`: its options, its help, its call into the library. Judged by tests/cli/transcripts/diff.txt. */
#include <mica/checkpoint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "progress.h"
#include "verbs.h"

/* "STORE#NAME"; the caller's (free). */
static char *in_store(const char *store, const char *name) {
    const size_t length = strlen(store) + strlen(name) + 2;
    char *path = malloc(length);
    if (path)
        snprintf(path, length, "%s#%s", store, name);
    return path;
}

static mica_status run_diff(const mica_option_values *values, char **output, mica_error *error) {
    const mica_diff_options options = {.threads = values->threads, .progress = mica_progress_show};
    char *text = NULL, *json = NULL, *paths[2] = {NULL, NULL};
    const bool store = values->third != NULL;
    if (store) {
        paths[0] = in_store(values->operand, values->second);
        paths[1] = in_store(values->operand, values->third);
        if (!paths[0] || !paths[1]) {
            free(paths[0]);
            free(paths[1]);
            error->status = MICA_NO_MEMORY;
            return MICA_NO_MEMORY;
        }
    }
    mica_progress_begin();
    const mica_status status = mica_diff(store ? paths[0] : values->operand, store ? paths[1] : values->second, &options, &text, &json,
                                         error);
    mica_progress_end();
    free(paths[0]);
    free(paths[1]);
    *output = mica_verb_choose(values->json, text, json);
    return status;
}

static const mica_option diff_options[] = {
    THREADS_OPTION,
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_diff = {
    "diff", "compare two checkpoints, weight by weight", "CHECKPOINT-A CHECKPOINT-B | STORE NAME-A NAME-B [options]",
    "Tells which weights two checkpoints share and how far the others are apart, by their decoded\n"
    "values: an fp8 model can be held against its bf16 export. Exit status 0: the same, 1:\n"
    "different.\n",
    {diff_options, "CHECKPOINT", "CHECKPOINT", MICA_SECOND_AND_THIRD}, run_diff,
};
