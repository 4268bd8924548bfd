/* formats/json_cursor.h: a strict forward reader of JSON text, for the headers of 100,000 tensors.
 * Not base/json.h: offsets need all of 64 bits exactly (jansson stops at 2^63), names go straight into one arena, and no tree is built.
 * Refuses: what RFC 8259 refuses, invalid UTF-8, lone surrogates, NUL in a string that is kept, nesting deeper than MICA_CURSOR_DEPTH.
 * Sticky: after the first failure every call does nothing, `status` stays. Judged by tests/formats/test_json_cursor.c, against jansson. */
#ifndef MICA_FORMATS_JSON_CURSOR_H
#define MICA_FORMATS_JSON_CURSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/text.h"

#define MICA_CURSOR_DEPTH 64

typedef struct mica_json_cursor {
    const char *bytes; /* borrowed */
    uint64_t length, position;
    mica_status status;
    mica_error *error;
} mica_json_cursor;

/* Enters an object ('{') or array ('['). */
bool mica_cursor_enter(mica_json_cursor *cursor, char open);
/* Stands before the next member (true), or has left the object or array (false), or has failed (false).
 * `count`, 0 at first, counts the members begun. */
bool mica_cursor_next(mica_json_cursor *cursor, char open, uint64_t *count);
/* The key of a member and its colon; the value; each appended to `text`, whose bytes are not NULL afterwards.
 * `text` NULL: checked and dropped. Out of memory is a failure as any other. */
void mica_cursor_key(mica_json_cursor *cursor, mica_text *text);
void mica_cursor_string(mica_json_cursor *cursor, mica_text *text);
/* An array of non-negative integers below 2^64. The first `capacity` go to `values`, *count is how many there are. */
void mica_cursor_integers(mica_json_cursor *cursor, uint64_t *values, uint64_t capacity, uint64_t *count);
/* Any value, checked and dropped. */
void mica_cursor_skip(mica_json_cursor *cursor);
/* Nothing but white space may be left. */
void mica_cursor_end(mica_json_cursor *cursor);

/* Fails with "byte N: expected ..., got <the value that begins here>". */
void mica_cursor_refuse(mica_json_cursor *cursor, const char *expected);

/* A name for messages: at most 200 bytes of it, cut between characters, with "..." when cut. */
#define MICA_NAME_SHOW_BYTES 208
const char *mica_name_show(const char *name, char buffer[MICA_NAME_SHOW_BYTES]);

#endif
