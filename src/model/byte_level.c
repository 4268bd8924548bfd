/* model/byte_level.c: see the header. The map: a byte that is a printable character of Latin-1 is that character; the others, in their
 * order, are the characters from U+0100 on. */
#include "model/byte_level.h"

#include <inttypes.h>
#include <string.h>
#include <utf8proc.h>

#include "base/memory.h"

#define FIRST_OTHER 0x100

static bool is_itself(uint32_t byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

void mica_byte_level_write(mica_text *text, const char *bytes, uint64_t length) {
    for (uint64_t i = 0; i < length; i++) {
        uint32_t byte = (uint8_t)bytes[i], code = byte;
        /* 0x00 to 0x20 are the first 33 of the others, 0x7f to 0xa0 the next 34, 0xad the last */
        if (!is_itself(byte))
            code = FIRST_OTHER + (byte <= 0x20 ? byte : byte == 0xad ? 67 : byte - 0x7f + 33);
        const char pair[2] = {(char)(0xc0 | code >> 6), (char)(0x80 | (code & 0x3f))}, single = (char)code;
        if (code < 0x80)
            mica_text_append(text, &single, 1);
        else
            mica_text_append(text, pair, 2);
    }
}

/* -1: none. */
static int byte_of(uint32_t code) {
    if (code < FIRST_OTHER)
        return is_itself(code) ? (int)code : -1;
    uint32_t other = code - FIRST_OTHER;
    return other <= 0x20 ? (int)other : other < 67 ? (int)(other - 33 + 0x7f) : other == 67 ? 0xad : -1;
}

bool mica_byte_level_read(mica_text *bytes, const char *characters, uint64_t length) {
    size_t before = bytes->length;
    for (uint64_t at = 0, sequence; at < length; at += sequence) {
        const uint8_t *next = (const uint8_t *)characters + at;
        sequence = mica_utf8_sequence(characters + at, length - at);
        uint32_t code = sequence == 1 ? next[0] : sequence == 2 ? (next[0] & 0x1fu) << 6 | (next[1] & 0x3fu) : UINT32_MAX;
        int byte = byte_of(code);
        if (byte < 0) {
            bytes->length = before;
            return false;
        }
        const char single = (char)byte;
        mica_text_append(bytes, &single, 1);
    }
    return true;
}

/* Nothing may have no address. */
static const char *end_of(const char *text, uint64_t length) {
    return length ? text + length : text;
}

static const char *find_mark(const char *text, const char *end) {
    const size_t mark = strlen(MICA_SPACE_MARK);
    for (const char *at = text; at < end && (at = memchr(at, *MICA_SPACE_MARK, (size_t)(end - at))); at++)
        if ((size_t)(end - at) >= mark && memcmp(at, MICA_SPACE_MARK, mark) == 0)
            return at;
    return NULL;
}

bool mica_space_marks_in(const char *text, uint64_t length) {
    return find_mark(text, end_of(text, length)) != NULL;
}

void mica_space_marks_read(mica_text *bytes, const char *text, uint64_t length) {
    const char *end = end_of(text, length);
    for (const char *mark; (mark = find_mark(text, end)); text = mark + strlen(MICA_SPACE_MARK)) {
        mica_text_append(bytes, text, (size_t)(mark - text));
        mica_text_append(bytes, " ", 1);
    }
    mica_text_append(bytes, text, (size_t)(end - text));
}

void mica_space_marks_write(mica_text *text, const char *bytes, uint64_t length) {
    for (uint64_t i = 0; i < length; i++)
        mica_text_append(text, bytes[i] == ' ' ? MICA_SPACE_MARK : bytes + i, bytes[i] == ' ' ? strlen(MICA_SPACE_MARK) : 1);
}

int mica_byte_token_read(const char *text, uint64_t length) {
    static const char digits[] = "0123456789ABCDEF";
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    const char *high = memchr(digits, text[3], 16), *low = memchr(digits, text[4], 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

/* Below U+0300 nothing composes with what is before it, and everything is in its composed form. */
static bool is_composed_surely(const char *text, uint64_t length) {
    for (uint64_t i = 0; i < length; i++) {
        if ((uint8_t)text[i] >= 0xcc)
            return false;
    }
    return true;
}

mica_status mica_compose(const char *text, uint64_t length, mica_text *result, bool *composed, mica_error *error) {
    const utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    *composed = !is_composed_surely(text, length);
    if (!*composed)
        return MICA_OK;
    utf8proc_ssize_t count = length < INT32_MAX
                                 ? utf8proc_decompose((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, NULL, 0, options)
                                 : -1;
    utf8proc_int32_t *codes = count < 0 ? NULL : mica_reallocarray(NULL, (uint64_t)count + 1, sizeof *codes);
    if (!codes)
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a text of %" PRIu64 " bytes in NFC", length);
    count = utf8proc_decompose((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, codes, count, options);
    utf8proc_ssize_t bytes = count < 0 ? count : utf8proc_reencode(codes, count, options); /* in place, with a NUL behind */
    if (bytes >= 0)
        mica_text_append(result, (const char *)codes, (size_t)bytes);
    mica_free(codes);
    if (bytes < 0)
        return mica_fail(error, MICA_FAILED, "NFC: %s", utf8proc_errmsg(bytes));
    return mica_text_failed(result) ? mica_fail(error, MICA_NO_MEMORY, "out of memory for a text of %" PRIu64 " bytes in NFC", length)
                                    : MICA_OK;
}
