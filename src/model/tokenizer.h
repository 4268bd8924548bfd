/* model/tokenizer.h: text to token ids and back, exactly as the model's own tokenizer does it (docs/tokenizer.md says of what that is
 * true). A tokenizer is immutable: any thread may use it at any time. Byte pairs are merged by rank; text is bytes and need not be
 * UTF-8. Judged by tests/model/test_tokenizer.c, tests/interop/tokenizer.py (tiktoken, tokenizers, llama.cpp) and the fuzz targets. */
#ifndef MICA_MODEL_TOKENIZER_H
#define MICA_MODEL_TOKENIZER_H

#include <mica/tokenizer.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/text.h"
#include "formats/gguf_write.h"
#include "formats/tensor_source.h"

/* Where a tokenizer's files come from: a checkpoint's source, or a directory that has no tensors. */
typedef struct mica_token_files {
    const mica_tensor_source *source; /* NULL: `directory` */
    const char *directory;
} mica_token_files;

/* True where there is a tokenizer that mica_tokenizer_open_files would take up. */
bool mica_token_files_exist(const mica_token_files *files);

/* tiktoken.model or tokenizer.json, or the vocabulary of a GGUF file, with tokenizer_config.json, chat_template.jinja, config.json and
 * generation_config.json where they are. Where config.json is, its vocab_size is the number of ids. A GGUF says all of that itself. */
mica_status mica_tokenizer_open_files(const mica_token_files *files, mica_tokenizer **tokenizer, mica_error *error) MICA_CHECKED;
mica_status mica_tokenizer_open_source(const mica_tensor_source *source, mica_tokenizer **tokenizer, mica_error *error) MICA_CHECKED;

/* What an id is; the numbers are GGUF's. */
typedef enum mica_token_type {
    MICA_TOKEN_NORMAL = 1,
    MICA_TOKEN_UNKNOWN = 2,
    MICA_TOKEN_CONTROL = 3,
    MICA_TOKEN_USER_DEFINED = 4,
    MICA_TOKEN_UNUSED = 5,
    MICA_TOKEN_BYTE = 6,
} mica_token_type;
mica_token_type mica_tokenizer_type(const mica_tokenizer *tokenizer, uint32_t id); /* UNUSED when there is no such id */

/* The ids with a role; MICA_TOKEN_NONE where there is none. */
#define MICA_TOKEN_NONE UINT32_MAX
typedef struct mica_token_roles {
    uint32_t bos, eos, unknown, padding;
    bool add_bos; /* the model's configuration wants bos before a text */
    bool add_eos;
} mica_token_roles;
const mica_token_roles *mica_tokenizer_roles(const mica_tokenizer *tokenizer);
/* True for the ids that end a text: eos, those of config.json and generation_config.json. (The end of a reply in a chat: mica_chat_end.) */
bool mica_tokenizer_ends(const mica_tokenizer *tokenizer, uint32_t id);
/* The id of a special or added token by its text; MICA_TOKEN_NONE. */
uint32_t mica_tokenizer_special(const mica_tokenizer *tokenizer, const char *text);
/* The text of the chat template; NULL when the files have none. */
const char *mica_tokenizer_chat_template(const mica_tokenizer *tokenizer);

/* ---- what a GGUF file says of a vocabulary, for those who write one */

/* Adds all tokenizer.* keys: tokens, their types, merges or scores, the name of the way to cut text, ids with a role, the chat template.
 * BAD_INPUT: GGUF has no name for the way it cuts text. Without memory `metadata` may have some of the keys. */
mica_status mica_tokenizer_add_to_gguf(const mica_tokenizer *tokenizer, mica_gguf_metadata *metadata, mica_error *error) MICA_CHECKED;
/* Appends in what such a file is not the tokenizer, each behind "; ": nothing, mostly. */
mica_status mica_tokenizer_gguf_note(const mica_tokenizer *tokenizer, mica_text *note, mica_error *error) MICA_CHECKED;

/* The same as Hugging Face's files, tokenizer.json and tokenizer_config.json: the caller's texts (mica_free). The tokenizer is of a GGUF,
 * so that it cuts text in a way with a name, or not at all. `length_max`: model_max_length. */
/* How many of its merges are no earlier than another, as with equal scores of a GGUF: a list of merges says otherwise. */
uint64_t mica_tokenizer_shared_ranks(const mica_tokenizer *tokenizer);
mica_status mica_tokenizer_write(const mica_tokenizer *tokenizer, char **json, uint64_t *length, mica_error *error) MICA_CHECKED;
mica_status mica_tokenizer_write_config(const mica_tokenizer *tokenizer, uint64_t length_max, char **json, uint64_t *length,
                                        mica_error *error) MICA_CHECKED;

/* The parts of it. GGUF's name of the way it cuts text (tokenizer.ggml.pre); NULL: GGUF has none for it. */
const char *mica_tokenizer_pre_type(const mica_tokenizer *tokenizer);
/* Appends an id's text as it stands in tokenizer.ggml.tokens: as byte_level.h writes it, special tokens as they are; and of a merge. */
void mica_tokenizer_gguf_text(const mica_tokenizer *tokenizer, uint32_t id, mica_text *text);
/* The merges, the first to be tried first: an array, the caller's (mica_free). */
typedef struct mica_token_merge {
    uint32_t left, right, both;
} mica_token_merge;
void mica_tokenizer_gguf_merge(const mica_tokenizer *tokenizer, const mica_token_merge *merge, mica_text *text);
mica_status mica_tokenizer_merges(const mica_tokenizer *tokenizer, mica_token_merge **merges, uint64_t *count,
                                  mica_error *error) MICA_CHECKED;

/* A growing list of ids. Appends after an out-of-memory do nothing and `failed` stays. */
typedef struct mica_token_list {
    uint32_t *ids; /* owned; NULL when empty */
    uint64_t count, capacity;
    bool failed;
} mica_token_list;
void mica_token_list_release(mica_token_list *list);
void mica_token_list_add(mica_token_list *list, uint32_t id);

/* Appends the ids of `text`. With `special`, control tokens that stand in it as text are taken for themselves; without, they are text as
 * any other. User-defined tokens of a tokenizer.json are always taken, as its own tokenizer does. No bos is added. */
mica_status mica_tokenizer_append(const mica_tokenizer *tokenizer, const char *text, uint64_t length, bool special, mica_token_list *ids,
                                  mica_error *error) MICA_CHECKED;

/* The same for text that stands behind a token, without control tokens: some vocabularies treat what a text begins with otherwise. */
mica_status mica_tokenizer_append_behind(const mica_tokenizer *tokenizer, const char *text, uint64_t length, mica_token_list *ids,
                                         mica_error *error) MICA_CHECKED;

/* Bytes as they come, cut between characters: a token may end inside one. */
typedef struct mica_token_stream {
    mica_text held;
    uint64_t ready; /* how much of `held` the last call gave out */
} mica_token_stream;
#define MICA_TOKEN_STREAM_INIT {MICA_TEXT_INIT, 0}
/* Takes a token and gives what can be shown: whole characters and bytes that can never be part of one. Valid until the next call. */
mica_status mica_token_stream_push(mica_token_stream *stream, const mica_tokenizer *tokenizer, uint32_t id, const char **bytes,
                                   uint64_t *length, mica_error *error) MICA_CHECKED;
/* What was held back, at the end. */
void mica_token_stream_flush(mica_token_stream *stream, const char **bytes, uint64_t *length);
void mica_token_stream_release(mica_token_stream *stream);

#endif
