/* base/text.c: a growing byte string, and the one UTF-8 check of the house. Judged by tests/base/test_text.c. */
#include "base/text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

void mica_text_release(mica_text *text) {
    mica_free(text->bytes);
    *text = (mica_text)MICA_TEXT_INIT;
}

void mica_text_clear(mica_text *text) {
    text->length = 0;
    if (text->bytes)
        text->bytes[0] = 0;
}

/* Makes room for `more` bytes and the closing NUL. */
static bool reserve(mica_text *text, size_t more) {
    if (text->failed)
        return false;
    if (more < text->capacity - text->length)
        return true;
    if (more > SIZE_MAX / 4 - text->length) {
        text->failed = true;
        return false;
    }
    size_t capacity = text->capacity ? text->capacity : 64;
    while (capacity - text->length <= more)
        capacity *= 2;
    char *bytes = mica_reallocarray(text->bytes, capacity, 1);
    if (!bytes) {
        text->failed = true;
        return false;
    }
    bytes[text->length] = 0;
    text->bytes = bytes;
    text->capacity = capacity;
    return true;
}

void mica_text_append(mica_text *text, const char *bytes, size_t length) {
    if (reserve(text, length)) {
        if (length)
            memcpy(text->bytes + text->length, bytes, length);
        text->length += length;
        text->bytes[text->length] = 0;
    }
}

void mica_text_puts(mica_text *text, const char *string) {
    mica_text_append(text, string, strlen(string));
}

void mica_text_printf(mica_text *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) {
        text->failed = true;
    } else if (reserve(text, (size_t)length)) {
        va_start(arguments, format);
        vsnprintf(text->bytes + text->length, (size_t)length + 1, format, arguments);
        va_end(arguments);
        text->length += (size_t)length;
    }
}

bool mica_text_failed(const mica_text *text) {
    return text->failed;
}

char *mica_text_take(mica_text *text) {
    char *bytes = NULL;
    if (reserve(text, 0)) { /* an empty text becomes "", not NULL */
        bytes = text->bytes;
        text->bytes = NULL;
    }
    mica_text_release(text);
    return bytes;
}

size_t mica_utf8_sequence(const char *text, size_t length) {
    /* first byte range, sequence length, range of the second byte: rules out overlong forms, surrogates, beyond U+10FFFF */
    static const struct {
        uint8_t first, last, length, second_low, second_high;
    } rows[] = {
        {0x00, 0x7f, 1, 0, 0},       {0xc2, 0xdf, 2, 0x80, 0xbf}, {0xe0, 0xe0, 3, 0xa0, 0xbf},
        {0xe1, 0xec, 3, 0x80, 0xbf}, {0xed, 0xed, 3, 0x80, 0x9f}, {0xee, 0xef, 3, 0x80, 0xbf},
        {0xf0, 0xf0, 4, 0x90, 0xbf}, {0xf1, 0xf3, 4, 0x80, 0xbf}, {0xf4, 0xf4, 4, 0x80, 0x8f},
    };
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t row = 0; length > 0 && row < sizeof rows / sizeof rows[0]; row++) {
        if (bytes[0] < rows[row].first || bytes[0] > rows[row].last)
            continue;
        if (rows[row].length > length || (rows[row].length > 1 && (bytes[1] < rows[row].second_low || bytes[1] > rows[row].second_high)))
            return 0;
        for (size_t i = 2; i < rows[row].length; i++) {
            if ((bytes[i] & 0xc0) != 0x80)
                return 0;
        }
        return rows[row].length;
    }
    return 0;
}

uint64_t mica_utf8_prefix(const char *text, uint64_t length) {
    const uint64_t high_bits = 0x8080808080808080;
    for (uint64_t at = 0, word; at < length;) {
        if (length - at >= sizeof word) { /* ASCII, eight at a time */
            memcpy(&word, text + at, sizeof word);
            if ((word & high_bits) == 0) {
                at += sizeof word;
                continue;
            }
        }
        size_t sequence = mica_utf8_sequence(text + at, length - at);
        if (sequence == 0)
            return at;
        at += sequence;
    }
    return length;
}

size_t mica_utf8_unfinished(const char *text, uint64_t length) {
    /* some second byte is allowed behind each first one */
    static const char fillers[][4] = {"\x80\x80\x80", "\xa0\x80\x80", "\x90\x80\x80"};
    for (size_t held = 1; held <= 3 && held <= length; held++) {
        const char *start = text + length - held;
        if (((unsigned char)*start & 0xc0) == 0x80)
            continue;
        for (size_t i = 0; i < 3; i++) {
            char bytes[6];
            memcpy(bytes, start, held);
            memcpy(bytes + held, held == 1 ? fillers[i] : fillers[0], 3);
            if (mica_utf8_sequence(bytes, held + 3) > held)
                return held;
        }
        return 0;
    }
    return 0;
}

/* A mismatch goes back to the last star, which takes one byte more: never further, since an earlier one would gain nothing. */
bool mica_glob_matches(const char *pattern, const char *text) {
    const char *star = NULL, *from = NULL;
    while (*text) {
        if (*pattern == '*') {
            star = ++pattern;
            from = text;
        } else if (*pattern == *text || *pattern == '?') {
            pattern++;
            text++;
        } else if (star) {
            pattern = star;
            text = ++from;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return *pattern == '\0';
}

char *mica_path_join(const char *directory, const char *name) {
    size_t length = strlen(directory);
    mica_text path = MICA_TEXT_INIT;
    mica_text_append(&path, directory, length);
    if (length > 0 && directory[length - 1] != '/')
        mica_text_puts(&path, "/");
    mica_text_puts(&path, name);
    return mica_text_take(&path);
}
