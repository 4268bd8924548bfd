/* cli/verb_run.c: the verb `run`: tokens go to the standard output as they come, one line of meters to the standard error output.
 * Ctrl-C ends the reply; what was said stays. Judged by tests/cli/transcripts/run.txt, streams.sh and chat.py. */
#include <mica/engine.h>
#include <stdio.h>
#include <string.h>

#include "progress.h"
#include "turns.h"
#include "verbs.h"

typedef struct speaking {
    const char *prompt; /* what is said before the first token; NULL: nothing */
    bool begun, lost;   /* something was said; the standard output does not take it */
} speaking;

static void put(speaking *to, const char *bytes, uint64_t length) {
    if (length && (fwrite(bytes, 1, length, stdout) != length || fflush(stdout) != 0))
        to->lost = true; /* main says so: the stream's error stays */
    to->begun |= length > 0;
}

/* First called when the prompt is known to fit, before it is computed. */
static bool say(void *context, const char *bytes, uint64_t length, int64_t id) {
    speaking *to = context;
    (void)id;
    if (to->prompt)
        put(to, to->prompt, strlen(to->prompt));
    to->prompt = NULL;
    put(to, bytes, length);
    return !to->lost && !mica_progress_stopped();
}

/* Whatever follows has a line of its own. */
static void end_line(speaking *to) {
    if (to->begun)
        put(to, "\n", 1);
}

static mica_generate_options generating(const mica_option_values *values, speaking *to) {
    const bool sampled = values->top_p >= 0 || values->top_k > 0 || values->min_p > 0;
    return (mica_generate_options){.prompt = {.text = values->prompt, .ids = values->ids, .bos = values->bos},
                                   .token_limit = values->tokens ? values->tokens : 128,
                                   .sampling = {.temperature = values->temperature >= 0 ? values->temperature : sampled ? 1 : 0,
                                                .top_p = values->top_p >= 0 ? values->top_p : 0,
                                                .min_p = values->min_p,
                                                .top_k = values->top_k,
                                                .seed = values->seed},
                                   .ignore_end = values->ignore_end,
                                   .say = say,
                                   .say_context = to};
}

static void show_meters(const mica_compute_meters *meters) {
    char *line = mica_meters_show(meters);
    fprintf(stderr, "%s\n", line ? line : "");
    mica_string_free(line);
}

/* One turn. On a terminal one that is refused (it does not fit) is told, and the next is awaited. */
static mica_status answer(const mica_option_values *values, mica_runner *runner, const char *turn, bool asks, bool *lost, mica_error *error) {
    speaking to = {0};
    mica_compute_meters meters = {0};
    mica_generate_options generate = generating(values, &to);
    generate.prompt = (mica_prompt){.text = turn};
    generate.chat = true;
    generate.system = values->system;
    mica_progress_forget(); /* Ctrl-C ended a reply */
    mica_status status = mica_runner_generate(runner, &generate, &meters, error);
    to.begun |= status == MICA_OK || status == MICA_INTERRUPTED; /* an empty reply has its line as well */
    end_line(&to);
    *lost = to.lost;
    if (mica_progress_terminated())
        return mica_verb_fail(error, MICA_INTERRUPTED, "stopped");
    if (status == MICA_OK)
        show_meters(&meters);
    else if (status == MICA_BAD_INPUT && asks)
        fprintf(stderr, "%s\n", error->message);
    return status == MICA_INTERRUPTED || (status == MICA_BAD_INPUT && asks) ? MICA_OK : status;
}

/* Turns from the standard input, until it ends; the first may stand on the command line. */
static mica_status converse(const mica_option_values *values, mica_runner *runner, mica_error *error) {
    mica_turns turns;
    const char *turn = values->prompt;
    bool lost = false;
    mica_turns_init(&turns);
    mica_status status = mica_runner_chat(runner, error);
    while (status == MICA_OK && !lost) {
        if (!turn)
            status = mica_turns_next(&turns, &turn, error);
        if (status != MICA_OK || !turn)
            break;
        if (*turn)
            status = answer(values, runner, turn, turns.asks, &lost, error);
        turn = NULL;
    }
    mica_turns_release(&turns);
    return status;
}

static mica_status continue_text(const mica_option_values *values, mica_runner *runner, mica_error *error) {
    mica_compute_meters meters = {0};
    speaking to = {.prompt = values->prompt};
    mica_generate_options generate = generating(values, &to);
    mica_status status = mica_runner_generate(runner, &generate, &meters, error);
    end_line(&to);
    if (to.lost && (status == MICA_OK || status == MICA_INTERRUPTED))
        return MICA_OK; /* that is said instead */
    if (status != MICA_OK)
        return status;
    show_meters(&meters);
    if (!mica_progress_stopped())
        return MICA_OK;
    return mica_verb_fail(error, MICA_INTERRUPTED, "stopped after %llu tokens", (unsigned long long)meters.generated_tokens);
}

static mica_status run_run(const mica_option_values *values, char **output, mica_error *error) {
    mica_compute_options options;
    mica_runner *runner = NULL;
    (void)output;
    if (!values->chat && !values->prompt == !values->ids)
        return mica_verb_refuse(error, "expected one of --prompt TEXT, --ids LIST and --chat");
    if (values->top_p == 0 || values->top_p > 1)
        return mica_verb_refuse(error, "--top-p: expected a number greater than 0, and at most 1");
    if (values->min_p > 1)
        return mica_verb_refuse(error, "--min-p: expected a number from 0 to 1");
    if (values->system && !values->chat)
        return mica_verb_refuse(error, "--system: expected --chat beside it");
    mica_verb_compute_options(values, &options);
    mica_progress_begin();
    mica_status status = mica_runner_open(values->operand, &options, &runner, error);
    if (status == MICA_OK)
        status = values->chat ? converse(values, runner, error) : continue_text(values, runner, error);
    mica_runner_close(runner);
    mica_progress_end();
    return status;
}

static const mica_option run_options[] = {
    {"prompt", 'p', MICA_OPTION_TEXT, FIELD(prompt), "TEXT", "the text to go on from", "ids"},
    PROMPT_OPTIONS,
    {"chat", 0, MICA_OPTION_FLAG, FIELD(chat), NULL,
     "a conversation in the model's own format: turns from the\nstandard input, a line each; --prompt may be the first", "ids"},
    {"system", 0, MICA_OPTION_TEXT, FIELD(system), "TEXT", "what a conversation begins with (default: the format's own)", NULL},
    {"tokens", 'n', MICA_OPTION_AMOUNT, FIELD(tokens), "N", "generate at most so many (default 128)", NULL},
    {"temperature", 0, MICA_OPTION_NUMBER, FIELD(temperature), "T",
     "0: always the likeliest token (default; 1 with --top-p,\n--top-k or --min-p)", NULL},
    {"top-p", 0, MICA_OPTION_NUMBER, FIELD(top_p), "P", "of the likeliest tokens that together have probability P", NULL},
    {"top-k", 0, MICA_OPTION_COUNT, FIELD(top_k), "K", "of the K likeliest", NULL},
    {"min-p", 0, MICA_OPTION_NUMBER, FIELD(min_p), "M", "of those with at least M times the largest probability", NULL},
    {"seed", 0, MICA_OPTION_WHOLE, FIELD(seed), "S", "of the random numbers (default 0): the same seed, the same\ntokens", NULL},
    {"ignore-end", 0, MICA_OPTION_FLAG, FIELD(ignore_end), NULL, "go on behind an end-of-sequence token", NULL},
    CONTEXT_OPTION("positions remembered (default 4096, or what the model has)"),
    COMPUTE_OPTIONS,
    {0},
};

const mica_verb mica_verb_run = {
    "run", "continue a text, reading experts as they are needed", "CHECKPOINT -p TEXT | --ids LIST | --chat [options]",
    "Prints the prompt and what the model says next. Everything but the routed experts is read\n"
    "into memory first; experts are read on demand into what --memory leaves. The same tokens\n"
    "come out for every budget and every number of threads.\n"
    "The last line, on the standard error output: tokens a second for the prompt and after it,\n"
    "experts found in memory, bytes read and computed with, and the peak of the process's memory.\n",
    {run_options, "CHECKPOINT", NULL, false}, run_run,
};
