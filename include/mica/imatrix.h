/* mica/imatrix.h: what a model's weights see: the mean squared input of every column, per expert, and how often each expert is chosen. */
#ifndef MICA_IMATRIX_H
#define MICA_IMATRIX_H

#include <mica/engine.h>
#include <mica/status.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mica_imatrix_options {
    const char *dataset; /* the text's name in the file */
    bool covariance;     /* also the second moments of every weight's input, for mica_export_gguf's levels: llama.cpp passes over them */
    /* also what an error in each weight does to the output, for mica_export_gguf's budgets: reads every weight once more */
    bool sensitivity;
    uint64_t own_bytes;  /* of the file, for covariances of single experts' inputs, those chosen most; 0: 8 GiB */
    bool force;          /* replace what is there */
    bool resume;         /* go on where an interrupted run ended; start when there is nothing, compare when it is finished */
} mica_imatrix_options;

/* Computes the text in windows of options->context tokens (0: 512; a shorter rest is left out), layer by layer so that each weight is read
 * once, and writes an importance matrix to `output`, GGUF as llama.cpp's llama-imatrix has it (docs/formats.md for the covariances). It is
 * there when it is whole; a run that ended in a layer, in whatever way, leaves what `resume` takes up, beside it, with the same bytes in
 * the end. An existing file, or another job's run, is CONFLICT but with `force`. The report (text, JSON; schema
 * docs/schemas/imatrix.schema.json) tells which experts were never chosen. Errors also: USAGE for a text shorter than a window. */
mica_status mica_imatrix_collect(const char *checkpoint, const char *output, const mica_compute_options *options,
                                 const mica_imatrix_options *imatrix, const mica_prompt *prompt, char **text, char **json,
                                 mica_error *error);

#ifdef __cplusplus
}
#endif
#endif
