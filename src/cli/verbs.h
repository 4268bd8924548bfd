/* cli/verbs.h: the verbs of the program: one row each, each in a file of its own, and what their files share. */
#ifndef MICA_CLI_VERBS_H
#define MICA_CLI_VERBS_H

#include <mica/engine.h>

#include "options.h"

typedef struct mica_verb {
    const char *name, *summary;
    const char *usage;       /* what stands behind "usage: mica NAME " */
    const char *description; /* of its help */
    mica_option_table options;
    /* Does it. *output is what goes to stdout, also on some failures (mica_string_free; may be NULL). */
    mica_status (*run)(const mica_option_values *values, char **output, mica_error *error);
} mica_verb;

extern const mica_verb *const mica_verbs[],
    mica_verb_run, mica_verb_logits, mica_verb_perplexity, mica_verb_route; /* ended by NULL */

extern const mica_verb mica_verb_inspect, mica_verb_index, mica_verb_stats, mica_verb_tokenize, mica_verb_verify;
extern const mica_verb mica_verb_import, mica_verb_ls, mica_verb_show, mica_verb_remove, mica_verb_gc;
extern const mica_verb mica_verb_export, mica_verb_imatrix, mica_verb_diff;

/* Options that several verbs have. */
#define FIELD(name) offsetof(mica_option_values, name)
#define JSON_OPTION(excluded) {"json", 0, MICA_OPTION_FLAG, FIELD(json), NULL, "print JSON instead of text", excluded}
#define THREADS_OPTION {"threads", 0, MICA_OPTION_COUNT, FIELD(threads), "N", "compute threads (default: all processors)", NULL}

/* What verbs that compute have in common. */
#define CONTEXT_OPTION(context_help) {"context", 0, MICA_OPTION_AMOUNT, FIELD(context), "N", context_help, NULL}
#define COMPUTE_OPTIONS                                                                                                         \
    {"memory", 0, MICA_OPTION_SIZE, FIELD(memory_bytes), "SIZE", "bound of the process's memory: 8GiB, 500MB, …\n(default: four fifths of what is free)", NULL}, \
    THREADS_OPTION,                                                                                                                           \
    {"reading-threads", 0, MICA_OPTION_COUNT, FIELD(reading_threads), "N", "threads that read weights (default 8)", NULL},                    \
    {"cache", 0, MICA_OPTION_TEXT, FIELD(cache_policy), "POLICY", "which expert goes first: lfu (least used, with aging;\ndefault) or lru", NULL}, \
    {"no-lookahead", 0, MICA_OPTION_FLAG, FIELD(no_lookahead), NULL, "do not read ahead for the next layer", NULL},                            \
    {"exact", 0, MICA_OPTION_FLAG, FIELD(exact), NULL, "compute with float32 activations", NULL}
#define PROMPT_OPTIONS                                                                                                                        \
    {"ids", 0, MICA_OPTION_TEXT, FIELD(ids), "LIST|@FILE", "token ids instead of text: 1,2,3", NULL},                                         \
    {"bos", 0, MICA_OPTION_FLAG, FIELD(bos), NULL, "begin with the model's BOS token, whatever its configuration\nsays", "chat"}

void mica_verb_compute_options(const mica_option_values *values, mica_compute_options *options);
/* A file's bytes, with a NUL behind them; "-": standard input. The caller's (free). */
mica_status mica_verb_read_text(const char *path, char **bytes, uint64_t *length, mica_error *error);
/* The same of a file that has no NUL byte: BAD_INPUT. */
mica_status mica_verb_read_string(const char *path, char **text, mica_error *error);

/* Keeps the one of a report's two forms that was asked for, frees the other. */
char *mica_verb_choose(bool json, char *text_form, char *json_form);
/* Behind the sentence of a run that was interrupted: how it goes on. */
void mica_verb_tell_resume(mica_status status, mica_error *error);
/* Sets the message and gives `status` back. */
mica_status mica_verb_fail(mica_error *error, mica_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* A command line that the table of options cannot refuse. */
mica_status mica_verb_refuse(mica_error *error, const char *message);

#endif
