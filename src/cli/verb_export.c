/* cli/verb_export.c: the verb `export`: its options, its help, its calls into the library, one per format. Judged by
 * tests/cli/transcripts. */
#include <mica/export.h>
#include <string.h>

#include "progress.h"
#include "verbs.h"

static mica_status export_gguf(const mica_option_values *values, char **text, char **json, mica_error *error) {
    if (values->dtype || values->shard_bytes)
        return mica_verb_refuse(error, "--dtype and --shard-size are of --format safetensors");
    const mica_export_gguf_options options = {.type = values->type,
                                              .config = values->config,
                                              .imatrix = values->imatrix,
                                              .compat = values->compat,
                                              .mmproj = values->mmproj,
                                              .budget = values->budget,
                                              .generate_config = values->generate_rules,
                                              .effort = values->effort,
                                              .split_bytes = values->split_bytes,
                                              .threads = values->threads,
                                              .memory_bytes = values->memory_bytes,
                                              .resume = values->resume,
                                              .force = values->force,
                                              .dry_run = values->dry_run,
                                              .progress = mica_progress_show};
    return mica_export_gguf(values->operand, values->output, &options, text, json, error);
}

static mica_status export_safetensors(const mica_option_values *values, char **text, char **json, mica_error *error) {
    if (values->type || values->effort || values->split_bytes || values->config || values->imatrix || values->budget ||
        values->generate_rules || values->compat || values->mmproj)
        return mica_verb_refuse(
            error,
            "--type, --effort, --config, --imatrix, --budget, --generate-config, --compat, --mmproj and --split-size are of --format gguf");
    const mica_export_safetensors_options options = {.dtype = values->dtype,
                                                     .shard_bytes = values->shard_bytes,
                                                     .threads = values->threads,
                                                     .memory_bytes = values->memory_bytes,
                                                     .resume = values->resume,
                                                     .force = values->force,
                                                     .dry_run = values->dry_run,
                                                     .progress = mica_progress_show};
    return mica_export_safetensors(values->operand, values->output, &options, text, json, error);
}

#define FORMATS "gguf or safetensors"
static const struct {
    const char *name;
    mica_status (*run)(const mica_option_values *values, char **text, char **json, mica_error *error);
} formats[] = {{"gguf", export_gguf}, {"safetensors", export_safetensors}};

static mica_status run_export(const mica_option_values *values, char **output, mica_error *error) {
    if (!values->format)
        return mica_verb_refuse(error, "expected --format " FORMATS);
    if (!values->output && !values->dry_run && !values->generate_rules)
        return mica_verb_refuse(error, "expected --output PATH");
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (strcmp(formats[i].name, values->format) != 0)
            continue;
        char *text = NULL, *json = NULL;
        mica_progress_begin();
        const mica_status status = formats[i].run(values, &text, &json, error);
        mica_progress_end();
        *output = mica_verb_choose(values->json, text, json);
        if (!values->dry_run)
            mica_verb_tell_resume(status, error);
        return status;
    }
    return mica_verb_fail(error, MICA_USAGE, "--format: expected " FORMATS ", got '%s'", values->format);
}

static const mica_option export_options[] = {
    {"format", 0, MICA_OPTION_TEXT, FIELD(format), "FORMAT", FORMATS, NULL},
    {"output", 'o', MICA_OPTION_TEXT, FIELD(output), "PATH", "where it goes; safetensors: a directory, made if it is not there", NULL},
    {"type", 0, MICA_OPTION_TEXT, FIELD(type), "TYPE",
     "gguf: f32, f16, bf16, q8_0, q4_0 … q4_k_m … iq4_xs, mxfp4_moe, as\nllama-quantize names them; source (the default): the type nearest to\nhow each weight is stored",
     NULL},
    {"config", 0, MICA_OPTION_TEXT, FIELD(config), "FILE", "gguf: rules for the types of tensors, JSON (docs/export.md)", NULL},
    {"imatrix", 0, MICA_OPTION_TEXT, FIELD(imatrix), "FILE", "gguf: an importance matrix, of mica imatrix or llama-imatrix", NULL},
    {"budget", 0, MICA_OPTION_TEXT, FIELD(budget), "SIZE", "gguf: 4.25bpw, or 550GB: types by measured error, for that size", NULL},
    {"generate-config", 0, MICA_OPTION_TEXT, FIELD(generate_rules), "FILE", "gguf: write rules with what was measured, and no GGUF", NULL},
    {"compat", 0, MICA_OPTION_TEXT, FIELD(compat), "PROGRAM",
     "gguf: who must load the file: llama.cpp (default), or mica alone, where\nexperts of one tensor may have several types", NULL},
    {"mmproj", 0, MICA_OPTION_TEXT, FIELD(mmproj), "FILE", "gguf: the vision tower and projector as well, as llama.cpp's clip", NULL},
    {"effort", 0, MICA_OPTION_TEXT, FIELD(effort), "EFFORT", "of the quantisers: fast, default or max", NULL},
    {"split-size", 0, MICA_OPTION_SIZE, FIELD(split_bytes), "SIZE", "gguf: several files, each of at most so much data", NULL},
    {"dtype", 0, MICA_OPTION_TEXT, FIELD(dtype), "TYPE",
     "safetensors: bf16 or f32, every weight decoded, with the config.json of\nsuch a model (default: as it is stored; a GGUF's blocks as bf16)",
     NULL},
    {"shard-size", 0, MICA_OPTION_SIZE, FIELD(shard_bytes), "SIZE", "safetensors: tensors of a shard at most (default 5GB)", NULL},
    THREADS_OPTION,
    {"memory", 0, MICA_OPTION_SIZE, FIELD(memory_bytes), "SIZE", "bound of the resident memory (default 1GiB)", NULL},
    {"resume", 0, MICA_OPTION_FLAG, FIELD(resume), NULL, "go on where an interrupted run ended", "force"},
    {"force", 0, MICA_OPTION_FLAG, FIELD(force), NULL, "replace what is there", NULL},
    {"dry-run", 0, MICA_OPTION_FLAG, FIELD(dry_run), NULL, "sizes, types, and the time by extrapolation; writes nothing", NULL},
    JSON_OPTION(NULL),
    {0},
};

const mica_verb mica_verb_export = {
    "export", "write a checkpoint in another program's format", "CHECKPOINT --format FORMAT --output PATH [options]",
    "Streams a checkpoint into another format, one expert at a time. No file has its final name\n"
    "before it is whole; a run that was ended in any way goes on with --resume.\n",
    {export_options, "CHECKPOINT", NULL, false}, run_export,
};
