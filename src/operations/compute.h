/* operations/compute.h: what the operations that compute share: a checkpoint opened with its engine and tokenizer, prompts as ids. */
#ifndef MICA_OPERATIONS_COMPUTE_H
#define MICA_OPERATIONS_COMPUTE_H

#include <mica/engine.h>

#include "model/engine.h"
#include "model/tokenizer.h"

typedef struct mica_compute {
    mica_model *model;
    mica_tokenizer *tokenizer; /* NULL: the checkpoint has none */
    mica_error tokenizer_error; /* why there is none, though its files are there */
    mica_engine *engine;
    float *logits; /* [logit_rows][vocab_size] */
    uint64_t logit_rows;
    double opening_seconds;
} mica_compute;

/* In two steps, since the context may depend on the prompt: the model with its tokenizer; then the engine. Whatever fails, close.
 * `logit_rows`: room for so many tokens' logits, within the budget. */
mica_status mica_compute_open_model(const char *checkpoint, mica_compute *compute, mica_error *error) MICA_CHECKED;
mica_status mica_compute_open_engine(mica_compute *compute, const mica_compute_options *options, uint64_t logit_rows, uint64_t layer_batch,
                                     mica_error *error) MICA_CHECKED;
void mica_compute_close(mica_compute *compute);

/* "1,2,3": decimal numbers with commas or white space between them. */
mica_status mica_ids_parse(const char *text, mica_token_list *ids, mica_error *error) MICA_CHECKED;

/* A prompt's ids, the caller's (mica_free). USAGE for both or neither of text and ids, text without a tokenizer, BOS without a token of
 * that name. */
mica_status mica_compute_ids(const mica_compute *compute, const mica_prompt *prompt, bool first, int64_t **ids, uint64_t *count,
                             mica_error *error) MICA_CHECKED;
/* The id of BOS if the prompt is to begin with it; -1: it is not. */
mica_status mica_compute_bos(const mica_compute *compute, const mica_prompt *prompt, int64_t *bos, mica_error *error) MICA_CHECKED;

/* How many tokens a text is computed at a time: `given`, or where that is 0 512, or what the model has. USAGE: more than the model has. */
mica_status mica_compute_window(const mica_compute *compute, uint64_t given, uint64_t *window, mica_error *error) MICA_CHECKED;

/* log of the sum of exp of a row, in double. */
double mica_log_sum(const float *logits, uint64_t count);

#endif
