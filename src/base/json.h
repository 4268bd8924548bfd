/* base/json.h: jansson, behind our rules: bounded depth, no duplicate keys, one-line errors that name file, line and key.
 * Reading: a jansson tree (json_t). Writing: canonical text of ours (mica_json_write_*), so that bytes never depend on a
 * library's version: two-space indent, keys in the order written, doubles as the shortest text that reads back exactly
 * (always with a '.' or an exponent), what is not finite is an error of the caller's (use null and a reason). */
#ifndef MICA_BASE_JSON_H
#define MICA_BASE_JSON_H

#include <jansson.h>
#include <stdint.h>

#include "base/error.h"
#include "base/text.h"

/* Parses an object. `name` is what messages call the input ("config.json" or a path). The result is the caller's (json_decref).
 * A failure names line and column, what is wrong, and the keys that lead to it: config.json:3:17: …, after "a" > "b". The place is where
 * reading stopped, just behind what was wrong.
 * Refused: NUL bytes anywhere, \u0000 and unpaired surrogates in strings, duplicate keys, integers beyond int64, depth over 64, anything
 * but an object. */
mica_status mica_json_parse(const char *name, const char *bytes, uint64_t length, json_t **object, mica_error *error) MICA_CHECKED;
/* The same, with every number a double: for others' files, where an integer may be of any size (model_max_length is 10^30). */
mica_status mica_json_parse_as_doubles(const char *name, const char *bytes, uint64_t length, json_t **object,
                                       mica_error *error) MICA_CHECKED;
mica_status mica_json_load(const char *path, uint64_t limit, json_t **object, mica_error *error) MICA_CHECKED;

/* A short rendering of a value for messages ("got \"4\"", "got [0, 128]"), at most 200 bytes, into `buffer`; returns it. */
const char *mica_json_show(const json_t *value, char *buffer, size_t bytes);

/* The writer: call begin/end in pairs, `key` before each value of an object (NULL inside arrays). */
typedef struct mica_json_writer {
    mica_text text;
    uint32_t depth;
    uint32_t compact_depth; /* how many open containers stand on one line: a row and what is in it */
    bool first;             /* nothing written yet in the innermost container */
} mica_json_writer;

void mica_json_begin(mica_json_writer *writer);
void mica_json_open_object(mica_json_writer *writer, const char *key);
void mica_json_open_line(mica_json_writer *writer, const char *key); /* an object all of which stands on one line */
void mica_json_close_object(mica_json_writer *writer);               /* closes either */
void mica_json_open_array(mica_json_writer *writer, const char *key); /* one value a line */
void mica_json_open_row(mica_json_writer *writer, const char *key);   /* the whole array, with all that is in it, on one line */
void mica_json_close_array(mica_json_writer *writer);                 /* closes either */
void mica_json_string(mica_json_writer *writer, const char *key, const char *value); /* NULL value: null */
void mica_json_u64(mica_json_writer *writer, const char *key, uint64_t value);
void mica_json_double(mica_json_writer *writer, const char *key, double value); /* not finite: null */
void mica_json_bool(mica_json_writer *writer, const char *key, bool value);
void mica_json_null(mica_json_writer *writer, const char *key);
/* A whole tree, members in their order, one to a line; integers below zero too. */
void mica_json_value(mica_json_writer *writer, const char *key, const json_t *value);
/* Takes the finished text (ends in a newline); NULL when memory ran out. mica_free it. */
char *mica_json_finish(mica_json_writer *writer, uint64_t *length);

#endif
