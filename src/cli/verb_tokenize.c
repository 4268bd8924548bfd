/* cli/verb_tokenize.c: the verb `tokenize`: its options, its help, its call into the library. Text comes from the command line, a file
 * or the standard input, and goes out as bytes, NUL among them. Judged by tests/cli/transcripts/tokenize.txt. */
#include <errno.h>
#include <mica/checkpoint.h>
#include <mica/tokenizer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "verbs.h"

static mica_status run_tokenize(const mica_option_values *values, char **output, mica_error *error) {
    mica_tokenize_options options = {.text = values->second, .ids = values->ids, .special = values->special, .pieces = values->pieces};
    const char *file = values->file;
    char *read = NULL, *text = NULL, *json = NULL;
    uint64_t text_bytes = 0;
    if ((values->second != NULL) + (values->ids != NULL) + (file != NULL) != 1)
        return mica_verb_refuse(error, "expected one of TEXT, --file FILE and --ids LIST");
    if (values->second && strcmp(values->second, "-") == 0)
        file = "-";
    if (values->ids && values->ids[0] == '@')
        file = values->ids + 1;
    mica_status status = file ? mica_verb_read_text(file, &read, &options.text_bytes, error) : MICA_OK;
    if (file && values->ids)
        options.ids = read;
    else if (file)
        options.text = read;
    else if (options.text)
        options.text_bytes = strlen(options.text);
    if (status == MICA_OK)
        status = mica_tokenize(values->operand, &options, &text, &text_bytes, &json, error);
    free(read);
    if (status == MICA_OK && !values->json)
        fwrite(text, 1, text_bytes, stdout); /* whether it was written shows when the output is finished */
    mica_string_free(text);
    if (values->json)
        *output = json;
    else
        mica_string_free(json);
    return status;
}

static const mica_option tokenize_options[] = {
    {"ids", 0, MICA_OPTION_TEXT, FIELD(ids), "LIST", "the text of these ids instead: 1,2,3, or @FILE for those in it", "special"},
    {"file", 'f', MICA_OPTION_TEXT, FIELD(file), "FILE", "encode this file ('-', here or as TEXT: the standard input)", "ids"},
    {"special", 0, MICA_OPTION_FLAG, FIELD(special), NULL,
     "take special tokens that stand in the text for themselves\n(default: text as any other)", NULL},
    {"pieces", 0, MICA_OPTION_FLAG, FIELD(pieces), NULL, "print one line a token: its id and its bytes", "json"},
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_tokenize = {
    "tokenize",
    "turn text into the ids of a checkpoint's tokens, or back",
    "CHECKPOINT TEXT | -f FILE | --ids LIST [options]",
    "Encodes text as the checkpoint's own tokenizer does, and prints the ids on one line, or\n"
    "decodes ids and prints their bytes. Needs the tokenizer's files only, no tensors.\n",
    {tokenize_options, "CHECKPOINT", "TEXT", true},
    run_tokenize,
};
