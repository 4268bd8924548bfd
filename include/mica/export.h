/* mica/export.h: writing what Mica opens in the formats of others. */
#ifndef MICA_EXPORT_H
#define MICA_EXPORT_H

#include <mica/checkpoint.h>
#include <mica/status.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mica_export_gguf_options {
    const char *type;       /* "q4_k_m", …; NULL: "source", each weight in the type nearest to how it is stored */
    const char *config;     /* a JSON file of rules, docs/export.md; NULL: none. `type` and `effort` given here win over the file's */
    const char *imatrix;    /* an importance matrix of llama-imatrix or mica imatrix, GGUF or .dat; NULL: all columns alike */
    const char *budget;     /* "4.25bpw", "550GB": types by measured error, as many bytes in all; NULL: the mixture's types */
    const char *generate_config; /* writes a file of rules with what was measured there, and no GGUF; NULL: not */
    /* who must load it: "llama.cpp" (NULL), or "mica": experts of one tensor may then have several types, by rules or budget */
    const char *compat;
    const char *mmproj;     /* also the vision tower and projector, to this file (kimi_vl, kimi_k25); NULL: not */
    const char *effort;     /* of the quantisers: "fast", "default", "max"; NULL: default */
    uint64_t split_bytes;   /* 0: one file; else PREFIX-00001-of-0000N.gguf, each with at most so much data (and at least one tensor) */
    uint32_t threads;       /* 0: all processors */
    uint64_t memory_bytes;  /* bound of the resident set, 0: 1 GiB */
    bool resume, force;     /* go on from a journal, start without one, do nothing when it is finished; replace what is there */
    bool dry_run;           /* sizes, types, time of the first units, extrapolated; writes nothing */
    mica_progress_function progress; /* may be NULL */
    void *progress_context;
} mica_export_gguf_options;

/* Writes `checkpoint` as GGUF to `path`. The report (text, JSON; schema docs/schemas/export.schema.json) is the caller's: mica_string_free.
 * Errors: CONFLICT when something is there, BAD_INPUT, IO, INTERRUPTED (which leave PATH.partial and a journal from which `resume` goes
 * on), USAGE for what the format cannot say. A dry run needs no path (NULL). */
mica_status mica_export_gguf(const char *checkpoint, const char *path, const mica_export_gguf_options *options, char **text, char **json,
                             mica_error *error);

typedef struct mica_export_safetensors_options {
    /* "bf16", "f32": every weight decoded, config.json rewritten; NULL: every tensor as it is stored (a GGUF's blocks: BF16) */
    const char *dtype;
    uint64_t shard_bytes;   /* of the tensors of a shard at most; 0: 5 GB */
    uint32_t threads;       /* 0: all processors */
    uint64_t memory_bytes;  /* bound of the resident set, 0: 1 GiB */
    bool resume, force;     /* go on from a journal; replace what is there */
    bool dry_run;           /* what would be written; writes nothing */
    mica_progress_function progress; /* may be NULL */
    void *progress_context;
} mica_export_safetensors_options;

/* Writes `checkpoint` to `directory` as safetensors: shards, index, and the files that go with them. Of a GGUF file (deepseek2, llama,
 * qwen3) with the names, configuration and tokenizer files that a published checkpoint has. The bytes depend on the tensors and the options
 * alone. The report (text, JSON; schema docs/schemas/export_safetensors.schema.json) is the caller's: mica_string_free. Errors: CONFLICT
 * when something is there (the message says what, and what to do), BAD_INPUT, IO, INTERRUPTED (which leave partial files and a journal from
 * which `resume` goes on), USAGE. A dry run needs no `directory` (NULL). */
mica_status mica_export_safetensors(const char *checkpoint, const char *directory, const mica_export_safetensors_options *options,
                                    char **text, char **json, mica_error *error);

#ifdef __cplusplus
}
#endif
#endif
