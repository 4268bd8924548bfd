/* formats/tiktoken.c: see the header. One pass over the lines; a sort only where they are not in the order of their ranks. */
#include "formats/tiktoken.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define SHOWN_BYTES 48

typedef struct rank_line {
    uint32_t rank, start, length; /* the token's place in `bytes` */
    uint32_t line;                /* from 1 */
} rank_line;

typedef struct rank_parser {
    const char *name;
    rank_line *lines;
    uint8_t *bytes;
    uint32_t count, used;
    mica_error *error;
} rank_parser;

/* The line, for a message: printable ASCII, cut when long. */
static const char *show_line(const char *line, size_t length, char buffer[SHOWN_BYTES + 4]) {
    size_t shown = length < SHOWN_BYTES ? length : SHOWN_BYTES;
    for (size_t i = 0; i < shown; i++)
        buffer[i] = line[i] >= 0x20 && line[i] < 0x7f ? line[i] : '?';
    strcpy(buffer + shown, shown < length ? "..." : "");
    return buffer;
}

static int base64_digit(char letter) {
    if (letter >= 'A' && letter <= 'Z')
        return letter - 'A';
    if (letter >= 'a' && letter <= 'z')
        return letter - 'a' + 26;
    if (letter >= '0' && letter <= '9')
        return letter - '0' + 52;
    return letter == '+' ? 62 : letter == '/' ? 63 : -1;
}

/* Strict: whole groups of four, padded; bits that no byte takes are zero. Returns the bytes written, 0 when `text` is not that. */
static uint32_t decode_base64(const char *text, size_t length, uint8_t *bytes) {
    if (length == 0 || length % 4 != 0)
        return 0;
    size_t padding = text[length - 1] == '=' ? 1 + (text[length - 2] == '=') : 0;
    uint32_t bits = 0, used = 0;
    for (size_t i = 0; i < length - padding; i++) {
        int digit = base64_digit(text[i]);
        if (digit < 0)
            return 0;
        bits = bits << 6 | (uint32_t)digit;
        if (i % 4 > 0)
            bytes[used++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
    }
    uint32_t rest = padding == 0 ? 0 : bits & (padding == 1 ? 0x3 : 0xf);
    return rest == 0 ? used : 0;
}

static bool decode_rank(const char *text, size_t length, uint32_t *rank) {
    uint32_t value = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9' || value >= MICA_RANKS_MAX)
            return false;
        value = value * 10 + (uint32_t)(text[i] - '0');
    }
    *rank = value;
    return length > 0 && value < MICA_RANKS_MAX;
}

static mica_status read_line(rank_parser *parser, const char *line, size_t length, uint32_t number) {
    char shown[SHOWN_BYTES + 4];
    const char *space = memchr(line, ' ', length);
    rank_line *entry = &parser->lines[parser->count];
    size_t token_length = space ? (size_t)(space - line) : 0;
    *entry = (rank_line){.start = parser->used, .line = number};
    entry->length = decode_base64(line, token_length, parser->bytes + parser->used);
    if (entry->length == 0 || !decode_rank(space + 1, length - token_length - 1, &entry->rank)) {
        return mica_fail(parser->error, MICA_BAD_INPUT, "%s: line %" PRIu32 ": expected a token in base64 and its rank, got \"%s\"",
                         parser->name, number, show_line(line, length, shown));
    }
    parser->used += entry->length;
    parser->count++;
    return MICA_OK;
}

static mica_status read_lines(rank_parser *parser, const char *text, uint64_t length) {
    uint32_t number = 0;
    mica_status status = MICA_OK;
    for (uint64_t at = 0; status == MICA_OK && at < length;) {
        const char *end = memchr(text + at, '\n', length - at);
        size_t bytes = end ? (size_t)(end - text - at) : length - at, kept = bytes;
        number++;
        kept -= kept > 0 && text[at + kept - 1] == '\r';
        if (kept > 0)
            status = read_line(parser, text + at, kept, number);
        at += bytes + 1;
    }
    if (status == MICA_OK && parser->count == 0)
        status = mica_fail(parser->error, MICA_BAD_INPUT, "%s: expected lines of a token in base64 and its rank, got none", parser->name);
    return status;
}

static int compare_ranks(const void *a, const void *b) {
    const rank_line *left = a, *right = b;
    return left->rank != right->rank ? (left->rank < right->rank ? -1 : 1) : left->line < right->line ? -1 : 1;
}

/* Makes line i the one of rank i, or tells why there is none. */
static mica_status order_lines(rank_parser *parser) {
    bool ordered = true;
    for (uint32_t i = 0; i < parser->count && ordered; i++)
        ordered = parser->lines[i].rank == i;
    if (ordered)
        return MICA_OK;
    qsort(parser->lines, parser->count, sizeof *parser->lines, compare_ranks);
    for (uint32_t i = 0; i < parser->count; i++) {
        const rank_line *line = &parser->lines[i];
        if (i > 0 && line->rank == line[-1].rank) {
            return mica_fail(parser->error, MICA_BAD_INPUT,
                             "%s: line %" PRIu32 ": expected a rank of its own, got %" PRIu32 ", which line %" PRIu32 " has", parser->name,
                             line->line, line->rank, line[-1].line);
        }
        if (line->rank != i) {
            return mica_fail(parser->error, MICA_BAD_INPUT,
                             "%s: expected the ranks 0 to %" PRIu32 " of its %" PRIu32 " tokens, got no rank %" PRIu32, parser->name,
                             parser->count - 1, parser->count, i);
        }
    }
    return MICA_OK;
}

static mica_status gather(const rank_parser *parser, mica_ranks *ranks) {
    *ranks = (mica_ranks){.count = parser->count};
    ranks->starts = mica_calloc((size_t)parser->count + 1, sizeof *ranks->starts);
    ranks->bytes = mica_malloc(parser->used);
    if (!ranks->starts || !ranks->bytes) {
        mica_ranks_release(ranks);
        return mica_fail(parser->error, MICA_NO_MEMORY, "%s: out of memory for its %" PRIu32 " tokens", parser->name, parser->count);
    }
    for (uint32_t i = 0; i < parser->count; i++) {
        memcpy(ranks->bytes + ranks->starts[i], parser->bytes + parser->lines[i].start, parser->lines[i].length);
        ranks->starts[i + 1] = ranks->starts[i] + parser->lines[i].length;
    }
    return MICA_OK;
}

mica_status mica_ranks_parse(const char *name, const char *text, uint64_t length, mica_ranks *ranks, mica_error *error) {
    uint64_t line_count = 1;
    if (length > UINT32_MAX)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected at most 4 GiB, got %" PRIu64 " bytes", name, length);
    for (const char *at = text; (at = memchr(at, '\n', (size_t)(text + length - at))); at++)
        line_count++;
    if (line_count > MICA_RANKS_MAX)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected at most %u tokens, got %" PRIu64 " lines", name, MICA_RANKS_MAX, line_count);
    rank_parser parser = {.name = name, .error = error};
    parser.lines = mica_calloc(line_count, sizeof *parser.lines);
    parser.bytes = mica_malloc(length / 4 * 3 + 4);
    mica_status status = MICA_OK;
    if (!parser.lines || !parser.bytes)
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its %" PRIu64 " lines", name, line_count);
    if (status == MICA_OK)
        status = read_lines(&parser, text, length);
    if (status == MICA_OK)
        status = order_lines(&parser);
    if (status == MICA_OK)
        status = gather(&parser, ranks);
    mica_free(parser.lines);
    mica_free(parser.bytes);
    return status;
}

void mica_ranks_release(mica_ranks *ranks) {
    mica_free(ranks->bytes);
    mica_free(ranks->starts);
    *ranks = (mica_ranks){0};
}
