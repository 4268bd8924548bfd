/* formats/json_cursor.c: see the header. */
#include "formats/json_cursor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SHOWN_BYTES 60

static void fail(mica_json_cursor *cursor, uint64_t position, const char *expected, const char *got) {
    if (cursor->status == MICA_OK) {
        cursor->status = mica_fail(cursor->error, MICA_BAD_INPUT, "byte %" PRIu64 ": expected %s, got %s", position, expected, got);
    }
}

/* The byte after white space, -1 at the end or after a failure. */
static int peek(mica_json_cursor *cursor) {
    if (cursor->status != MICA_OK)
        return -1;
    while (cursor->position < cursor->length) {
        char byte = cursor->bytes[cursor->position];
        if (byte != ' ' && byte != '\n' && byte != '\t' && byte != '\r')
            return (unsigned char)byte;
        cursor->position++;
    }
    return -1;
}

/* Fails over the byte at the position: it is not what the grammar wants there. */
static void fail_byte(mica_json_cursor *cursor, const char *expected) {
    char got[16] = "the end";
    if (cursor->position < cursor->length) {
        unsigned char byte = (unsigned char)cursor->bytes[cursor->position];
        snprintf(got, sizeof got, byte >= 0x20 && byte < 0x7f ? "'%c'" : "byte 0x%02x", byte);
    }
    fail(cursor, cursor->position, expected, got);
}

static bool take(mica_json_cursor *cursor, char byte, const char *expected) {
    if (peek(cursor) != (unsigned char)byte) {
        fail_byte(cursor, expected);
        return false;
    }
    cursor->position++;
    return true;
}

bool mica_cursor_enter(mica_json_cursor *cursor, char open) {
    if (peek(cursor) != (unsigned char)open) {
        mica_cursor_refuse(cursor, open == '{' ? "an object" : "an array");
        return false;
    }
    cursor->position++;
    return true;
}

bool mica_cursor_next(mica_json_cursor *cursor, char open, uint64_t *count) {
    char close = open == '{' ? '}' : ']';
    if (peek(cursor) == (unsigned char)close) {
        cursor->position++;
        return false;
    }
    if (*count > 0 && !take(cursor, ',', open == '{' ? "',' or '}'" : "',' or ']'"))
        return false;
    (*count)++;
    return cursor->status == MICA_OK;
}

static void append_code_point(mica_text *text, uint32_t code) {
    char bytes[4];
    size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char leads[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length; i-- > 1; code >>= 6)
        bytes[i] = (char)(0x80 | (code & 0x3f));
    bytes[0] = (char)(leads[length] | code);
    mica_text_append(text, bytes, length);
}

/* Four hexadecimal digits at `position`, -1 when they are not that. */
static int32_t hex4(const mica_json_cursor *cursor, uint64_t position) {
    if (cursor->length < 4 || position > cursor->length - 4)
        return -1;
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        static const char digits_of_16[] = "0123456789abcdefABCDEF";
        char digit = cursor->bytes[position + i];
        const char *found = digit != 0 ? strchr(digits_of_16, digit) : NULL;
        if (!found)
            return -1;
        int32_t nibble = (int32_t)(found - digits_of_16);
        value = value * 16 + (nibble < 16 ? nibble : nibble - 6);
    }
    return value;
}

/* After "\u": one or two escapes of UTF-16. */
static void unicode_escape(mica_json_cursor *cursor, mica_text *text) {
    uint64_t start = cursor->position - 2;
    int32_t code = hex4(cursor, cursor->position);
    if (code < 0) {
        fail_byte(cursor, "four hexadecimal digits after \\u");
        return;
    }
    cursor->position += 4;
    if (code >= 0xd800 && code <= 0xdfff) {
        bool pair = code < 0xdc00 && cursor->length - cursor->position >= 6 && memcmp(cursor->bytes + cursor->position, "\\u", 2) == 0;
        int32_t low = pair ? hex4(cursor, cursor->position + 2) : -1;
        if (low < 0xdc00 || low > 0xdfff) {
            char got[24];
            snprintf(got, sizeof got, "unpaired \\u%04x", (unsigned)code);
            fail(cursor, start, "Unicode scalar values", got);
            return;
        }
        cursor->position += 6;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (!text)
        return;
    /* Names are C strings from here on: a NUL would cut one down to another. */
    if (code == 0)
        fail(cursor, start, "no NUL in a string", "\\u0000");
    else
        append_code_point(text, (uint32_t)code);
}

static void escape(mica_json_cursor *cursor, mica_text *text) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char letter = cursor->position < cursor->length ? cursor->bytes[cursor->position] : 0;
    const char *found = letter != 0 ? strchr(from, letter) : NULL;
    if (letter == 'u') {
        cursor->position++;
        unicode_escape(cursor, text);
    } else if (found) {
        cursor->position++;
        if (text)
            mica_text_append(text, to + (found - from), 1);
    } else {
        fail_byte(cursor, "an escape of JSON after '\\'");
    }
}

void mica_cursor_string(mica_json_cursor *cursor, mica_text *text) {
    if (peek(cursor) != '"') {
        mica_cursor_refuse(cursor, "a string");
        return;
    }
    cursor->position++;
    while (cursor->status == MICA_OK) {
        uint64_t start = cursor->position;
        while (cursor->position < cursor->length) {
            unsigned char byte = (unsigned char)cursor->bytes[cursor->position];
            if (byte == '"' || byte == '\\' || byte < 0x20)
                break;
            uint64_t sequence = byte < 0x80 ? 1 : mica_utf8_sequence(cursor->bytes + cursor->position, cursor->length - cursor->position);
            if (sequence == 0)
                break;
            cursor->position += sequence;
        }
        if (text)
            mica_text_append(text, cursor->bytes + start, cursor->position - start); /* even if empty: bytes is never NULL afterwards */
        char stop = cursor->position < cursor->length ? cursor->bytes[cursor->position] : 0;
        if (stop == '\\') {
            cursor->position++;
            escape(cursor, text);
        } else if (stop == '"') {
            cursor->position++;
            break;
        } else if (cursor->position == cursor->length) {
            fail_byte(cursor, "the closing '\"' of a string");
        } else {
            fail_byte(cursor, "UTF-8 without control characters in a string");
        }
    }
    if (text && mica_text_failed(text) && cursor->status == MICA_OK)
        cursor->status = mica_fail(cursor->error, MICA_NO_MEMORY, "out of memory for a string");
}

void mica_cursor_key(mica_json_cursor *cursor, mica_text *text) {
    mica_cursor_string(cursor, text);
    take(cursor, ':', "':'");
}

static bool digits(mica_json_cursor *cursor) {
    uint64_t start = cursor->position;
    while (cursor->position < cursor->length && cursor->bytes[cursor->position] >= '0' && cursor->bytes[cursor->position] <= '9')
        cursor->position++;
    if (cursor->position == start)
        fail_byte(cursor, "a digit");
    return cursor->status == MICA_OK;
}

static bool at(const mica_json_cursor *cursor, const char *set) {
    char byte = cursor->position < cursor->length ? cursor->bytes[cursor->position] : 0;
    return byte != 0 && strchr(set, byte) != NULL;
}

static void number(mica_json_cursor *cursor) {
    if (at(cursor, "-"))
        cursor->position++;
    if (at(cursor, "0"))
        cursor->position++;
    else if (!digits(cursor))
        return;
    if (at(cursor, ".")) {
        cursor->position++;
        if (!digits(cursor))
            return;
    }
    if (at(cursor, "eE")) {
        cursor->position++;
        if (at(cursor, "+-"))
            cursor->position++;
        digits(cursor);
    }
}

/* A plain run of digits below 2^64; false (and the position anywhere) when something else stands there. */
static bool integer(mica_json_cursor *cursor, uint64_t *value) {
    int first = peek(cursor);
    uint64_t start = cursor->position, sum = 0;
    for (; cursor->position < cursor->length; cursor->position++) {
        unsigned digit = (unsigned)(unsigned char)cursor->bytes[cursor->position] - '0';
        if (digit > 9)
            break;
        if (__builtin_mul_overflow(sum, (uint64_t)10, &sum) || __builtin_add_overflow(sum, (uint64_t)digit, &sum))
            return false;
    }
    *value = sum;
    return cursor->position > start && !at(cursor, ".eE") && (first != '0' || cursor->position == start + 1);
}

void mica_cursor_integers(mica_json_cursor *cursor, uint64_t *values, uint64_t capacity, uint64_t *count) {
    *count = 0;
    peek(cursor);
    uint64_t start = cursor->position, value;
    if (!mica_cursor_enter(cursor, '['))
        return;
    while (mica_cursor_next(cursor, '[', count)) {
        if (!integer(cursor, &value)) {
            cursor->position = start; /* the message shows the whole array */
            mica_cursor_refuse(cursor, "non-negative integers below 2^64");
            return;
        }
        if (*count <= capacity)
            values[*count - 1] = value;
    }
}

static void literal(mica_json_cursor *cursor) {
    static const char *const words[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++) {
        uint64_t length = strlen(words[i]);
        if (cursor->length - cursor->position >= length && memcmp(cursor->bytes + cursor->position, words[i], length) == 0) {
            cursor->position += length;
            return;
        }
    }
    fail_byte(cursor, "a JSON value");
}

/* Recursion is bounded by MICA_CURSOR_DEPTH. */
static void skip_at(mica_json_cursor *cursor, uint32_t depth) {
    int byte = peek(cursor);
    if (byte == '{' || byte == '[') {
        if (depth == MICA_CURSOR_DEPTH) {
            fail(cursor, cursor->position, "at most 64 levels of nesting", "a deeper level");
            return;
        }
        uint64_t count = 0;
        cursor->position++;
        while (mica_cursor_next(cursor, (char)byte, &count)) {
            if (byte == '{')
                mica_cursor_key(cursor, NULL);
            skip_at(cursor, depth + 1);
        }
    } else if (byte == '"') {
        mica_cursor_string(cursor, NULL);
    } else if (byte == '-' || (byte >= '0' && byte <= '9')) {
        number(cursor);
    } else if (cursor->status == MICA_OK) {
        literal(cursor);
    }
}

void mica_cursor_skip(mica_json_cursor *cursor) {
    skip_at(cursor, 0);
}

void mica_cursor_end(mica_json_cursor *cursor) {
    if (peek(cursor) != -1)
        fail_byte(cursor, "the end");
}

void mica_cursor_refuse(mica_json_cursor *cursor, const char *expected) {
    int first = peek(cursor);
    if (first <= 0 || !strchr("{[\"-0123456789tfn", first)) { /* no value at all */
        fail_byte(cursor, expected);
        return;
    }
    uint64_t start = cursor->position;
    mica_cursor_skip(cursor); /* what is not JSON at all is the deeper reason */
    if (cursor->status != MICA_OK)
        return;
    const char *kind = cursor->bytes[start] == '[' ? "array " : cursor->bytes[start] == '{' ? "object " : "";
    char got[SHOWN_BYTES * 4 + 20];
    size_t used = (size_t)snprintf(got, sizeof got, "%s", kind);
    for (uint64_t i = start; i < cursor->position && i < start + SHOWN_BYTES; i++) {
        unsigned char byte = (unsigned char)cursor->bytes[i];
        used += (size_t)snprintf(got + used, sizeof got - used, byte >= 0x20 && byte < 0x7f ? "%c" : "\\x%02x", byte);
    }
    if (cursor->position - start > SHOWN_BYTES)
        snprintf(got + used, sizeof got - used, "...");
    fail(cursor, start, expected, got);
}

const char *mica_name_show(const char *name, char buffer[MICA_NAME_SHOW_BYTES]) {
    size_t length = strnlen(name, 201);
    bool cut = length > 200;
    if (cut) {
        for (length = 200; length > 0 && ((unsigned char)name[length] & 0xc0) == 0x80; length--)
            continue;
    }
    memcpy(buffer, name, length);
    memcpy(buffer + length, "...", 4);
    if (!cut)
        buffer[length] = 0;
    return buffer;
}
