/* mica/vindex.h: the index of every expert's singular vectors: writing it and reading its statistics. Format: docs/formats.md. */
#ifndef MICA_VINDEX_H
#define MICA_VINDEX_H

#include <mica/checkpoint.h>
#include <mica/status.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MICA_SPECTRA_GATE 1u
#define MICA_SPECTRA_UP 2u
#define MICA_SPECTRA_DOWN 4u

typedef struct mica_index_options {
    uint32_t features;       /* 0: 64 */
    const char *layers;      /* "0,1,15,30-32" (model numbering); NULL: all */
    uint32_t spectra;        /* MICA_SPECTRA_*; gate is always in; 0: gate */
    uint32_t full_spectrum;  /* MICA_SPECTRA_*: every singular value of these as well */
    uint32_t threads;        /* 0: all processors */
    uint64_t memory_bytes;   /* bound of the resident set, 0: 2 GiB; USAGE when the model's largest matrix cannot be done in it */
    bool resume, force;      /* go on from a journal; replace what is there */
    bool hash_source;        /* SHA-256 of whole shards beside the vindex */
    bool dry_run;            /* time the first units, extrapolate, write nothing */
    mica_progress_function progress; /* may be NULL */
    void *progress_context;
} mica_index_options;

/* Builds the vindex of `checkpoint` in `directory`. The report (text, JSON; schema docs/schemas/index.schema.json) is the caller's:
 * mica_string_free. Errors: CONFLICT when something is there (the message says what, and what to do), BAD_INPUT, IO, INTERRUPTED (all of
 * which leave a journal from which `resume` goes on), USAGE for options that contradict the model. A dry run needs no `directory`
 * (NULL). */
mica_status mica_index(const char *checkpoint, const char *directory, const mica_index_options *options, char **text, char **json,
                       mica_error *error);

typedef enum mica_stats_form { MICA_STATS_TEXT, MICA_STATS_JSON, MICA_STATS_CSV } mica_stats_form;
/* The spectral statistics of a finished vindex, one row per layer and projection (CSV: one per expert). mica_string_free the result. */
mica_status mica_stats(const char *directory, mica_stats_form form, char **output, mica_error *error);

#ifdef __cplusplus
}
#endif
#endif
