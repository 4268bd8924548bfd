/* base/text.h: a growing byte string. Invariant: bytes[length] == 0 whenever bytes is not NULL.
 * Appends after an out-of-memory do nothing; mica_text_failed() tells once, at the end. */
#ifndef MICA_BASE_TEXT_H
#define MICA_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct mica_text {
    char *bytes; /* owned; NULL when empty */
    size_t length, capacity;
    bool failed;
} mica_text;

#define MICA_TEXT_INIT {NULL, 0, 0, false}

void mica_text_release(mica_text *text);
void mica_text_clear(mica_text *text); /* empty, with its memory; that it has failed stays known until it is released */
void mica_text_append(mica_text *text, const char *bytes, size_t length);
void mica_text_puts(mica_text *text, const char *string);
void mica_text_printf(mica_text *text, const char *format, ...) MICA_PRINTF(2, 3);
bool mica_text_failed(const mica_text *text);
char *mica_text_take(mica_text *text); /* ownership moves to the caller (mica_free); NULL if failed */

/* How many bytes (1..4) the UTF-8 character at the start of `text` takes; 0 when there is none that is valid. */
size_t mica_utf8_sequence(const char *text, size_t length);

/* How many bytes at the start of `text` are valid UTF-8: all of them, or up to the first sequence that is not. */
uint64_t mica_utf8_prefix(const char *text, uint64_t length);

/* How many bytes (0..3) at the end of `text` begin a character that further bytes could complete. */
size_t mica_utf8_unfinished(const char *text, uint64_t length);

/* Does the pattern, in which * stands for any text and ? for any one byte, match the whole of `text`? */
bool mica_glob_matches(const char *pattern, const char *text);

/* "directory/name" in fresh memory (mica_free), NULL when out of memory. */
char *mica_path_join(const char *directory, const char *name);

#endif
