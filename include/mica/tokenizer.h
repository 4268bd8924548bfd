/* mica/tokenizer.h: text to token ids and back, as a checkpoint's own tokenizer does it.
 *
 * Text is bytes; what is not UTF-8 is kept: decoding gives the bytes that were encoded. A mica_tokenizer is immutable; any thread may
 * use it. docs/tokenizer.md tells which tokenizers there are and what is exact. */
#ifndef MICA_TOKENIZER_H
#define MICA_TOKENIZER_H

#include <mica/status.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mica_tokenizer mica_tokenizer;

/* Opens the tokenizer of a checkpoint, or of a directory that has only the files of one: tiktoken.model or tokenizer.json, and beside it
 * tokenizer_config.json, config.json, generation_config.json where they are. Errors: BAD_INPUT, IO, NO_MEMORY. */
mica_status mica_tokenizer_open(const char *checkpoint, mica_tokenizer **tokenizer, mica_error *error);
void mica_tokenizer_close(mica_tokenizer *tokenizer); /* NULL is fine */

/* How many ids there are: 0 to count - 1. */
uint32_t mica_tokenizer_count(const mica_tokenizer *tokenizer);

/* The bytes that an id stands for, the tokenizer's; of a special token its name. NULL when there is no such id. */
const char *mica_tokenizer_bytes(const mica_tokenizer *tokenizer, uint32_t id, uint64_t *length);

/* The ids of a text: an array, the caller's (mica_ids_free). With `special`, special tokens that are written out in the text are taken for
 * themselves; without, they are text as any other. No token is added. Errors: NO_MEMORY, FAILED (a pattern's limit). */
mica_status mica_tokenizer_encode(const mica_tokenizer *tokenizer, const char *text, uint64_t length, bool special, uint32_t **ids,
                                  uint64_t *count, mica_error *error);

/* The bytes that ids stand for, one after the other, the caller's (mica_string_free), with a NUL behind them that is not counted.
 * Errors: BAD_INPUT (an id that there is not), NO_MEMORY. */
mica_status mica_tokenizer_decode(const mica_tokenizer *tokenizer, const uint32_t *ids, uint64_t count, char **bytes, uint64_t *length,
                                  mica_error *error);

void mica_ids_free(uint32_t *ids); /* NULL is fine */

typedef struct mica_tokenize_options {
    const char *text; /* to encode; NULL: `ids` are decoded */
    uint64_t text_bytes;
    const char *ids; /* "1,2,3": commas or white space between them */
    bool special;    /* as for mica_tokenizer_encode */
    bool pieces;     /* the text form: one line a token, id and bytes, instead of the ids or the decoded bytes */
} mica_tokenize_options;

/* What `mica tokenize` prints. *text, *text_bytes: the ids and a newline, or the decoded bytes as they are. *json: an object (schema:
 * docs/schemas/tokenize.schema.json). Both the caller's (mica_string_free). Errors: USAGE (ids that are no numbers), and as above. */
mica_status mica_tokenize(const char *checkpoint, const mica_tokenize_options *options, char **text, uint64_t *text_bytes, char **json,
                          mica_error *error);

#ifdef __cplusplus
}
#endif
#endif
