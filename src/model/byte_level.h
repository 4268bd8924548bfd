/* model/byte_level.h: the two ways in which tokenizer.json and GGUF write tokens: bytes as printable characters, one for each, as GPT-2
 * began it; and text with U+2581 for a space, and bytes by themselves as <0xXX>, as SentencePiece does. And Unicode's composed form (NFC),
 * which some tokenizers bring text to first. Judged by tests/model/test_byte_level.c. */
#ifndef MICA_MODEL_BYTE_LEVEL_H
#define MICA_MODEL_BYTE_LEVEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/text.h"

/* Appends the characters of `bytes`. */
void mica_byte_level_write(mica_text *text, const char *bytes, uint64_t length);
/* Appends the bytes that `characters` stand for; false, with nothing appended, where one stands for none. */
bool mica_byte_level_read(mica_text *bytes, const char *characters, uint64_t length);

#define MICA_SPACE_MARK "\xe2\x96\x81" /* U+2581 */
/* Whether there is a mark in `text`. Appends `text` with spaces for marks; `bytes` with marks for spaces. */
bool mica_space_marks_in(const char *text, uint64_t length);
void mica_space_marks_read(mica_text *bytes, const char *text, uint64_t length);
void mica_space_marks_write(mica_text *text, const char *bytes, uint64_t length);
/* The byte that a token is by itself, written <0xXX>; -1: it is none. */
int mica_byte_token_read(const char *text, uint64_t length);

/* `text`, valid UTF-8, in NFC: *composed is false when it is so already, else it was appended to `result`. Fails without memory only. */
mica_status mica_compose(const char *text, uint64_t length, mica_text *result, bool *composed, mica_error *error) MICA_CHECKED;

#endif
