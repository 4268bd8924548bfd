/* cli/verb_route.c: the verb `route`: its options, its help, its call into the library. Judged by tests/cli/transcripts/run.txt. */
#include <mica/engine.h>

#include "progress.h"
#include "verbs.h"

static mica_status run_route(const mica_option_values *values, char **output, mica_error *error) {
    if (!values->output)
        return mica_verb_refuse(error, "expected --output DIR");
    mica_route_options options = {.prompts = values->file, .bos = values->bos, .force = values->force, .resume = values->resume};
    mica_verb_compute_options(values, &options.compute);
    options.ids = values->ids && values->ids[0] == '@' ? values->ids + 1 : NULL;
    if (values->ids && !options.ids)
        return mica_verb_refuse(error, "--ids: expected @FILE, a prompt's numbers on each line");
    mica_progress_begin();
    mica_status status = mica_route(values->operand, values->output, &options, output, error);
    mica_progress_end();
    mica_verb_tell_resume(status, error);
    return status;
}

static const mica_option route_options[] = {
    {"output", 'o', MICA_OPTION_TEXT, FIELD(output), "DIR", "where phase3_routing_stats.json goes; made if it is not there", NULL},
    {"file", 'f', MICA_OPTION_TEXT, FIELD(file), "PROMPTS", "one prompt a line (default: 256 that the program carries)", "ids"},
    PROMPT_OPTIONS,
    {"resume", 0, MICA_OPTION_FLAG, FIELD(resume), NULL, "go on where an interrupted run ended", "force"},
    {"force", 0, MICA_OPTION_FLAG, FIELD(force), NULL, "replace the statistics that are there", NULL},
    CONTEXT_OPTION("tokens at which a prompt is cut (default 512)"),
    COMPUTE_OPTIONS,
    {0},
};

const mica_verb mica_verb_route = {
    "route", "measure where tokens go: routing statistics of every expert", "CHECKPOINT -o DIR [-f PROMPTS] [options]",
    "Computes prompts in one pass, layer by layer, every weight read once, and writes for each\n"
    "layer and expert: selections, gate weight, output norm, REAP score, activation sparsity,\n"
    "experts chosen together; router entropy and the cosine of the residual stream before and\n"
    "after each layer; with standard errors. Definitions: docs/statistics.md.\n",
    {route_options, "CHECKPOINT", NULL, false}, run_route,
};
