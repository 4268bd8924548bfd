/* cli/verb_remove.c: the verbs `remove` and `gc`: their options, their help, their calls into the library. Judged by
 * tests/cli/transcripts. */
#include <mica/store.h>

#include "progress.h"
#include "verbs.h"

static mica_status run_remove(const mica_option_values *values, char **output, mica_error *error) {
    char *text = NULL, *json = NULL;
    const mica_status status = mica_remove(values->operand, values->second, &text, &json, error);
    *output = mica_verb_choose(values->json, text, json);
    return status;
}

static mica_status run_gc(const mica_option_values *values, char **output, mica_error *error) {
    const mica_gc_options options = {.threads = values->threads, .pack_bytes = values->pack_bytes, .progress = mica_progress_show};
    char *text = NULL, *json = NULL;
    mica_progress_begin();
    const mica_status status = mica_gc(values->operand, &options, &text, &json, error);
    mica_progress_end();
    *output = mica_verb_choose(values->json, text, json);
    return status;
}

static const mica_option remove_options[] = {
    JSON_OPTION(NULL),
    {0},
};

static const mica_option gc_options[] = {
    {"pack-size", 0, MICA_OPTION_SIZE, FIELD(pack_bytes), "SIZE", "where a new pack begins: 8GiB, 500MB, … (default 8GiB)", NULL},
    {"threads", 0, MICA_OPTION_COUNT, FIELD(threads), "N", "hashing threads (default: all processors, at most 4)", NULL},
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_remove = {
    "remove", "forget a model of a store", "STORE NAME [options]",
    "Forgets a model of a store, or an import that was not finished. Its payloads stay until\n"
    "`mica gc`, and those that another model has stay for good.\n",
    {remove_options, "STORE", "NAME", false}, run_remove,
};

const mica_verb mica_verb_gc = {
    "gc", "give back the room of what no model of a store has", "STORE [options]",
    "Removes the packs of a store in which no model has anything, and writes those anew of\n"
    "which a tenth or more is such. Whoever reads meanwhile goes on reading.\n",
    {gc_options, "STORE", NULL, false}, run_gc,
};
