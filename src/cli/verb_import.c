/* cli/verb_import.c: the verb `import`: its options, its help, its call into the library. Judged by tests/cli/transcripts. */
#include <mica/store.h>

#include "progress.h"
#include "verbs.h"

static mica_status run_import(const mica_option_values *values, char **output, mica_error *error) {
    if (!values->output && !values->generate_config)
        return mica_verb_refuse(error, "expected --output STORE");
    const mica_import_options options = {.name = values->as,
                                         .configuration = values->config,
                                         .include = values->include,
                                         .exclude = values->exclude,
                                         .link = values->link,
                                         .resume = values->resume,
                                         .force = values->force,
                                         .threads = values->threads,
                                         .pack_bytes = values->pack_bytes,
                                         .progress = mica_progress_show};
    if (values->generate_config)
        return mica_import_configuration(values->operand, &options, output, error);
    char *text = NULL, *json = NULL;
    mica_progress_begin();
    mica_status status = mica_import(values->operand, values->output, &options, &text, &json, error);
    mica_progress_end();
    *output = mica_verb_choose(values->json, text, json);
    mica_verb_tell_resume(status, error);
    return status;
}

static const mica_option import_options[] = {
    {"output", 'o', MICA_OPTION_TEXT, FIELD(output), "STORE", "the store; made if it is not there", NULL},
    {"as", 0, MICA_OPTION_TEXT, FIELD(as), "NAME", "what the model is called there (default: the last part of\nCHECKPOINT)", NULL},
    {"include", 0, MICA_OPTION_TEXT, FIELD(include), "GLOB", "only tensors whose names match; * stands for any text", NULL},
    {"exclude", 0, MICA_OPTION_TEXT, FIELD(exclude), "GLOB", "no tensors whose names match", NULL},
    {"generate-config", 0, MICA_OPTION_FLAG, FIELD(generate_config), NULL,
     "print an import configuration, to be edited; imports nothing", "config"},
    {"config", 0, MICA_OPTION_TEXT, FIELD(config), "FILE", "import what this configuration says, and call it so", NULL},
    {"link", 0, MICA_OPTION_FLAG, FIELD(link), NULL, "leave the payloads in the checkpoint's files, which must stay\nas they are", NULL},
    {"pack-size", 0, MICA_OPTION_SIZE, FIELD(pack_bytes), "SIZE", "where a new pack begins: 8GiB, 500MB, … (default 8GiB)", NULL},
    {"threads", 0, MICA_OPTION_COUNT, FIELD(threads), "N", "hashing threads (default: all processors, at most 4)", NULL},
    {"resume", 0, MICA_OPTION_FLAG, FIELD(resume), NULL, "go on where an interrupted import ended", "force"},
    {"force", 0, MICA_OPTION_FLAG, FIELD(force), NULL, "replace the model of that name", NULL},
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_import = {
    "import", "take a checkpoint into a store, every byte, each tensor once", "CHECKPOINT --output STORE [options]",
    "Copies the tensors of a checkpoint into a store, where a tensor that is there already is\n"
    "not stored again, and keeps its configuration and tokenizer files. STORE#NAME is a\n"
    "CHECKPOINT for every verb then.\n",
    {import_options, "CHECKPOINT", NULL, false}, run_import,
};
