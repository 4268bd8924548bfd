/* cli/verb_index.c: the verb `index`: its options, its help, its call into the library. Judged by tests/cli/transcripts. */
#include <mica/checkpoint.h>
#include <mica/vindex.h>

#include "progress.h"
#include "verbs.h"

static mica_status run_index(const mica_option_values *values, char **output, mica_error *error) {
    if (!values->output && !values->dry_run)
        return mica_verb_refuse(error, "expected --output DIR");
    const mica_index_options options = {.features = values->features,
                                        .layers = values->layers,
                                        .spectra = values->spectra,
                                        .full_spectrum = values->full_spectrum,
                                        .threads = values->threads,
                                        .memory_bytes = values->memory_bytes,
                                        .resume = values->resume,
                                        .force = values->force,
                                        .hash_source = values->hash_source,
                                        .dry_run = values->dry_run,
                                        .progress = mica_progress_show};
    char *text = NULL, *json = NULL;
    mica_progress_begin();
    mica_status status = mica_index(values->operand, values->output, &options, &text, &json, error);
    mica_progress_end();
    *output = mica_verb_choose(values->json, text, json);
    if (!values->dry_run)
        mica_verb_tell_resume(status, error);
    return status;
}

static const mica_option index_options[] = {
    {"output", 'o', MICA_OPTION_TEXT, FIELD(output), "DIR", "where the vindex goes; made if it is not there", NULL},
    {"features", 0, MICA_OPTION_COUNT, FIELD(features), "N", "singular vectors per expert (default 64)", NULL},
    {"layers", 0, MICA_OPTION_TEXT, FIELD(layers), "LIST", "only these, in the model's numbering: 0,1,15,30-32\n(default: all)", NULL},
    {"spectra", 0, MICA_OPTION_PROJECTIONS, FIELD(spectra), "LIST",
     "projections whose top-64 statistics are computed, of gate,up,down\n(default: gate)", NULL},
    {"full-spectrum", 0, MICA_OPTION_PROJECTIONS, FIELD(full_spectrum), "LIST",
     "projections of which every singular value is computed as well\n(default: none)", NULL},
    THREADS_OPTION,
    {"memory", 0, MICA_OPTION_SIZE, FIELD(memory_bytes), "SIZE", "bound of the resident memory: 2GiB, 500MB, … (default 2GiB)", NULL},
    {"resume", 0, MICA_OPTION_FLAG, FIELD(resume), NULL, "go on where an interrupted run ended", "force"},
    {"force", 0, MICA_OPTION_FLAG, FIELD(force), NULL, "replace the vindex that is there", NULL},
    {"hash-source", 0, MICA_OPTION_FLAG, FIELD(hash_source), NULL, "record SHA-256 of the whole shards beside the vindex", NULL},
    {"dry-run", 0, MICA_OPTION_FLAG, FIELD(dry_run), NULL, "time the first experts, extrapolate, write nothing;\nneeds no --output", NULL},
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_index = {
    "index", "write the vindex of a checkpoint: every expert's singular vectors", "CHECKPOINT --output DIR [options]",
    "Computes the top singular vectors of every expert's gate projection, with the spectral\n"
    "statistics of every layer, and writes them to DIR. A run that was ended in any way goes\n"
    "on with --resume; the result is the same, byte for byte.\n",
    {index_options, "CHECKPOINT", NULL, false}, run_index,
};
