/* base/json_write.c: writing JSON text whose bytes depend on nothing but the values. Declared in base/json.h.
 * Judged by tests/base/test_json_write.c. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"

void mica_json_begin(mica_json_writer *writer) {
    *writer = (mica_json_writer){.text = MICA_TEXT_INIT, .first = true};
}

static void write_string(mica_text *text, const char *value) {
    size_t length = strlen(value);
    mica_text_puts(text, "\"");
    for (size_t at = 0; at < length;) {
        unsigned char byte = (unsigned char)value[at];
        size_t sequence = mica_utf8_sequence(value + at, length - at);
        if (sequence == 0) {
            mica_text_puts(text, "\xef\xbf\xbd"); /* U+FFFD: the text stays valid whatever a file name holds */
            at++;
        } else if (byte == '"' || byte == '\\') {
            mica_text_printf(text, "\\%c", byte);
            at++;
        } else if (byte < 0x20 || byte == 0x7f) {
            mica_text_printf(text, "\\u%04x", byte);
            at++;
        } else {
            mica_text_append(text, value + at, sequence);
            at += sequence;
        }
    }
    mica_text_puts(text, "\"");
}

static void new_line(mica_json_writer *writer) {
    static const char spaces[] = "                                ";
    mica_text_puts(&writer->text, "\n");
    for (size_t left = 2 * (size_t)writer->depth; left > 0;) {
        size_t part = left < sizeof spaces - 1 ? left : sizeof spaces - 1;
        mica_text_append(&writer->text, spaces, part);
        left -= part;
    }
}

/* What stands before a value: the comma, the line, the key. */
static void lead(mica_json_writer *writer, const char *key) {
    if (!writer->first)
        mica_text_puts(&writer->text, writer->compact_depth ? ", " : ",");
    if (writer->depth > 0 && !writer->compact_depth)
        new_line(writer);
    writer->first = false;
    if (key) {
        write_string(&writer->text, key);
        mica_text_puts(&writer->text, ": ");
    }
}

static void open_container(mica_json_writer *writer, const char *key, const char *bracket, bool compact) {
    lead(writer, key);
    mica_text_puts(&writer->text, bracket);
    writer->depth++;
    writer->compact_depth += compact || writer->compact_depth;
    writer->first = true;
}

static void close_container(mica_json_writer *writer, const char *bracket) {
    writer->depth--;
    if (writer->compact_depth)
        writer->compact_depth--;
    else if (!writer->first)
        new_line(writer);
    writer->first = false;
    mica_text_puts(&writer->text, bracket);
}

void mica_json_open_object(mica_json_writer *writer, const char *key) {
    open_container(writer, key, "{", false);
}

void mica_json_open_line(mica_json_writer *writer, const char *key) {
    open_container(writer, key, "{", true);
}

void mica_json_close_object(mica_json_writer *writer) {
    close_container(writer, "}");
}

void mica_json_open_array(mica_json_writer *writer, const char *key) {
    open_container(writer, key, "[", false);
}

void mica_json_open_row(mica_json_writer *writer, const char *key) {
    open_container(writer, key, "[", true);
}

void mica_json_close_array(mica_json_writer *writer) {
    close_container(writer, "]");
}

void mica_json_string(mica_json_writer *writer, const char *key, const char *value) {
    lead(writer, key);
    if (value)
        write_string(&writer->text, value);
    else
        mica_text_puts(&writer->text, "null");
}

void mica_json_u64(mica_json_writer *writer, const char *key, uint64_t value) {
    lead(writer, key);
    mica_text_printf(&writer->text, "%" PRIu64, value);
}

/* The first precision whose text reads back as the same bits of value. Whatever the locale puts for the point (it may be
 * several bytes) becomes '.', after the reading back, which needs the locale's own. */
static void format_double(double value, char *text, size_t bytes) {
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(text, bytes, "%.*g", precision, value);
        if (strtod(text, NULL) == value)
            break;
    }
    char *out = text;
    bool marked = false; /* a '.' or an exponent is there */
    for (const char *in = text; *in; in++) {
        if (strchr("0123456789+-e", *in)) {
            marked = marked || *in == 'e';
            *out++ = *in;
        } else if (out == text || out[-1] != '.') {
            *out++ = '.';
            marked = true;
        }
    }
    strcpy(out, marked ? "" : ".0");
}

void mica_json_double(mica_json_writer *writer, const char *key, double value) {
    if (!isfinite(value)) {
        mica_json_null(writer, key);
        return;
    }
    char text[64];
    format_double(value, text, sizeof text);
    lead(writer, key);
    mica_text_puts(&writer->text, text);
}

void mica_json_bool(mica_json_writer *writer, const char *key, bool value) {
    lead(writer, key);
    mica_text_puts(&writer->text, value ? "true" : "false");
}

void mica_json_null(mica_json_writer *writer, const char *key) {
    lead(writer, key);
    mica_text_puts(&writer->text, "null");
}

/* As deep as mica_json_parse lets a tree be. */
void mica_json_value(mica_json_writer *writer, const char *key, const json_t *value) {
    const char *name;
    json_t *member;
    size_t index;
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        mica_json_open_object(writer, key);
        json_object_foreach((json_t *)value, name, member)
            mica_json_value(writer, name, member);
        mica_json_close_object(writer);
        return;
    case JSON_ARRAY:
        mica_json_open_array(writer, key);
        json_array_foreach(value, index, member)
            mica_json_value(writer, NULL, member);
        mica_json_close_array(writer);
        return;
    case JSON_STRING: mica_json_string(writer, key, json_string_value(value)); return;
    case JSON_INTEGER:
        lead(writer, key);
        mica_text_printf(&writer->text, "%lld", (long long)json_integer_value(value));
        return;
    case JSON_REAL: mica_json_double(writer, key, json_real_value(value)); return;
    case JSON_TRUE: mica_json_bool(writer, key, true); return;
    case JSON_FALSE: mica_json_bool(writer, key, false); return;
    case JSON_NULL: mica_json_null(writer, key); return;
    }
}

char *mica_json_finish(mica_json_writer *writer, uint64_t *length) {
    mica_text_puts(&writer->text, "\n");
    uint64_t bytes = writer->text.length;
    char *text = mica_text_take(&writer->text);
    if (text && length)
        *length = bytes;
    return text;
}
