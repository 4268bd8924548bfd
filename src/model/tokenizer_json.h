/* model/tokenizer_json.h: what a tokenizer.json does with a text before and behind its model: normalizer, pre_tokenizer, post_processor,
 * decoder. For tokenizer_json.c alone. Judged with it. */
#ifndef MICA_MODEL_TOKENIZER_JSON_H
#define MICA_MODEL_TOKENIZER_JSON_H

#include "model/tokenizer_build.h"

typedef struct mica_token_pipeline {
    const char *name; /* the file */
    mica_error *error;
    bool characters; /* which of the two kinds: what the model's byte_fallback says, before the parts are read */
    mica_splitter splitter;
    mica_text patterns;   /* each with a NUL behind it */
    bool ends_byte_level; /* ByteLevel was read, and nothing may follow */
    bool compose;
    bool has_metaspace;
    mica_spaces spaces;
    mica_tokenizer *tokenizer; /* whose roles are read */
} mica_token_pipeline;

/* Each may be NULL. The pipeline is released in any case; who takes the splitter leaves an empty one there. */
mica_status mica_token_pipeline_read(mica_token_pipeline *pipeline, const json_t *normalizer, const json_t *pre_tokenizer,
                                     const json_t *decoder) MICA_CHECKED;
/* "[bos] text [eos]" of the post_processor, which may be NULL; the tokenizer has its tokens. */
mica_status mica_token_pipeline_read_roles(mica_token_pipeline *pipeline, const json_t *post_processor,
                                           mica_tokenizer *tokenizer) MICA_CHECKED;
void mica_token_pipeline_release(mica_token_pipeline *pipeline);

#endif
