/* cli/verbs.c: each verb: its options, its help, and its one call into the library. Judged by tests/cli/transcripts. */
#include "verbs.h"

#include <mica/checkpoint.h>
#include <mica/vindex.h>
#include <stdio.h>
#include <string.h>

#include "progress.h"

#define FIELD(name) offsetof(mica_option_values, name)
#define JSON_OPTION(excluded) {"json", 0, MICA_OPTION_FLAG, FIELD(json), NULL, "print JSON instead of text", excluded}
#define THREADS_OPTION {"threads", 0, MICA_OPTION_COUNT, FIELD(threads), "N", "compute threads (default: all processors)", NULL}

/* Keeps the one of the two forms that was asked for. */
static char *choose(bool json, char *text_form, char *json_form) {
    mica_string_free(json ? text_form : json_form);
    return json ? json_form : text_form;
}

static mica_status refuse(mica_error *error, const char *message) {
    snprintf(error->message, sizeof error->message, "%s", message);
    error->status = MICA_USAGE;
    return MICA_USAGE;
}

static mica_status run_inspect(const mica_option_values *values, char **output, mica_error *error) {
    const mica_inspect_options options = {.strict = values->strict};
    char *text = NULL, *json = NULL;
    mica_status status = mica_inspect(values->operand, &options, &text, &json, error);
    *output = choose(values->json, text, json);
    return status;
}

static mica_status run_index(const mica_option_values *values, char **output, mica_error *error) {
    if (!values->output && !values->dry_run)
        return refuse(error, "expected --output DIR");
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
    *output = choose(values->json, text, json);
    if (status == MICA_INTERRUPTED && !values->dry_run) {
        size_t length = strlen(error->message);
        snprintf(error->message + length, sizeof error->message - length, "; the same command with --resume goes on from there");
    }
    return status;
}

static mica_status run_stats(const mica_option_values *values, char **output, mica_error *error) {
    mica_stats_form form = values->json ? MICA_STATS_JSON : values->csv ? MICA_STATS_CSV : MICA_STATS_TEXT;
    return mica_stats(values->operand, form, output, error);
}

static mica_status run_verify(const mica_option_values *values, char **output, mica_error *error) {
    const mica_verify_options options = {.hashes = values->hashes, .threads = values->threads, .progress = mica_progress_show};
    char *text = NULL, *json = NULL;
    mica_progress_begin();
    mica_status status = mica_verify(values->operand, &options, &text, &json, error);
    mica_progress_end();
    *output = choose(values->json, text, json);
    return status;
}

static const mica_option inspect_options[] = {
    {"strict", 0, MICA_OPTION_FLAG, FIELD(strict), NULL, "tensors of unknown use are an error", NULL},
    JSON_OPTION(NULL),
    {0},
};

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

static const mica_option stats_options[] = {
    JSON_OPTION("csv"),
    {"csv", 0, MICA_OPTION_FLAG, FIELD(csv), NULL, "print comma-separated values, one row per expert", NULL},
    {0},
};

static const mica_option verify_options[] = {
    {"hashes", 0, MICA_OPTION_TEXT, FIELD(hashes), "FILE|DIR",
     "for a checkpoint: a sha256sum file, or a vindex that recorded its\ntensors (default: what is found beside it)", NULL},
    THREADS_OPTION,
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verbs[] = {
    {"inspect", "tell what a checkpoint is, from its headers alone", "CHECKPOINT [options]",
     "Opens a checkpoint (a directory with config.json and its shards, or one .safetensors\n"
     "file), accounts for every tensor, and prints what was found. Reads no tensor's data.\n",
     {inspect_options, "CHECKPOINT"}, run_inspect},
    {"index", "write the vindex of a checkpoint: every expert's singular vectors", "CHECKPOINT --output DIR [options]",
     "Computes the top singular vectors of every expert's gate projection, with the spectral\n"
     "statistics of every layer, and writes them to DIR. A run that was ended in any way goes\n"
     "on with --resume; the result is the same, byte for byte.\n",
     {index_options, "CHECKPOINT"}, run_index},
    {"stats", "print the spectral statistics of a vindex", "VINDEX [options]",
     "Prints one row per layer and projection of a finished vindex, over its experts:\n"
     "  var@64    median and quartiles of the share of the energy (squared singular values) that\n"
     "            the 64 largest singular values hold; 1 is all of it\n"
     "  noise     what Gaussian noise of the same shape would have; ratio: times that noise\n"
     "  s0/s1     median of the largest singular value over the second\n"
     "  above     median count of singular values beyond the edge of such noise\n"
     "  residual  the largest error of a stored singular vector, relative to s0\n",
     {stats_options, "VINDEX"}, run_stats},
    {"verify", "read all of a vindex or a checkpoint and check it", "VINDEX | CHECKPOINT [options]",
     "Reads every byte, and checks structure, values and recorded hashes.\n",
     {verify_options, "VINDEX or CHECKPOINT"}, run_verify},
    {0},
};
