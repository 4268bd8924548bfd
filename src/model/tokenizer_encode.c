/* model/tokenizer_encode.c: text to ids: added tokens are cut out, what is between them is normalized and cut into pieces, each piece is
 * merged (tokenizer_bpe.c). Text is bytes; what is no UTF-8 has ids too. The order of all this is that of Hugging Face's tokenizers, of
 * which tiktoken and llama.cpp do parts. Judged by tests/model/test_tokenizer.c, test_tokenizer_json.c, tests/interop/tokenizer*.py. */
#include <inttypes.h>
#include <string.h>

#include "base/memory.h"
#include "model/byte_level.h"
#include "model/tokenizer_build.h"

static mica_status out_of_memory(const mica_tokenizer *tokenizer, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the ids of a text", tokenizer->name);
}

/* ---- the ids */

void mica_token_list_release(mica_token_list *list) {
    mica_free(list->ids);
    *list = (mica_token_list){0};
}

bool mica_token_list_reserve(mica_token_list *list, uint64_t more) {
    if (more <= list->capacity - list->count)
        return !list->failed;
    uint64_t capacity = list->capacity ? list->capacity : 64;
    while (capacity - list->count < more)
        capacity *= 2;
    uint32_t *ids = list->failed ? NULL : mica_reallocarray(list->ids, capacity, sizeof *ids);
    if (!ids) {
        list->failed = true;
        return false;
    }
    list->ids = ids;
    list->capacity = capacity;
    return true;
}

void mica_token_list_add(mica_token_list *list, uint32_t id) {
    if (mica_token_list_reserve(list, 1))
        list->ids[list->count++] = id;
}

/* ---- text without added tokens, which are cut out before, and normalized */

typedef struct segment_encoder {
    const mica_tokenizer *tokenizer;
    mica_token_list *ids;
    uint64_t last_piece; /* where in `ids` the last piece begins */
} segment_encoder;

static mica_status encode_piece(void *context, const char *piece, uint64_t length, mica_error *error) {
    segment_encoder *encoder = context;
    encoder->last_piece = encoder->ids->count;
    return mica_piece_encode(encoder->tokenizer, piece, length, encoder->ids, error);
}

static bool is_all_space(const mica_tokenizer *tokenizer, uint32_t id) {
    mica_token_span span = tokenizer->spans[id];
    for (uint32_t i = 0; i < span.length; i++) {
        char byte = tokenizer->names.bytes[span.start + i];
        if (byte != ' ' && byte != '\n' && byte != '\t')
            return false;
    }
    return true;
}

/* tiktoken defines what bytes mean that are not UTF-8 (CoreBPE::_encode_bytes), and so do we: the text before them, `valid` bytes, is
 * split as ever; its last piece (where that begins with white space, with the tokens of white space before it) and everything from the
 * first ill-formed sequence on are one piece. */
static mica_status encode_bytes(const mica_tokenizer *tokenizer, const char *text, uint64_t length, mica_token_list *ids,
                                mica_error *error) {
    segment_encoder encoder = {tokenizer, ids, ids->count};
    const uint64_t first = ids->count, valid = mica_utf8_prefix(text, length);
    mica_status status = mica_splitter_split(&tokenizer->splitter, text, valid, encode_piece, &encoder, error);
    if (status != MICA_OK || valid == length)
        return status;
    uint64_t kept = encoder.last_piece, start = valid;
    if (kept < ids->count && is_all_space(tokenizer, ids->ids[kept])) {
        while (kept > first && is_all_space(tokenizer, ids->ids[kept - 1]))
            kept--;
    }
    for (uint64_t i = kept; i < ids->count; i++)
        start -= tokenizer->spans[ids->ids[i]].length;
    ids->count = kept;
    return mica_piece_encode(tokenizer, text + start, length - start, ids, error);
}

/* Each space begins a word: of two, the first is one by itself. A byte that is no text is a token by itself, wherever it stands. */
static mica_status encode_words(const mica_tokenizer *tokenizer, const char *text, uint64_t length, mica_token_list *ids,
                                mica_error *error) {
    mica_status status = MICA_OK;
    for (uint64_t at = 0, end; at < length && status == MICA_OK; at = end) {
        const char *space = tokenizer->spaces.words ? memchr(text + at + 1, ' ', length - at - 1) : NULL;
        end = space ? (uint64_t)(space - text) : length;
        status = mica_piece_encode(tokenizer, text + at, end - at, ids, error);
    }
    return status;
}

/* ---- a text: added tokens, and what is between them */

typedef struct text_encoder {
    const mica_tokenizer *tokenizer;
    mica_token_list *ids;
    bool special; /* control tokens are taken for themselves */
    mica_error *error;
} text_encoder;

/* `first`: what the whole text begins with. */
typedef mica_status (*between_function)(const text_encoder *encoder, const char *text, uint64_t length, bool first);

static mica_status encode_part(const text_encoder *encoder, const char *text, uint64_t length, bool first) {
    const mica_tokenizer *tokenizer = encoder->tokenizer;
    const mica_word_start start = tokenizer->spaces.word_start;
    if (!tokenizer->characters)
        return encode_bytes(tokenizer, text, length, encoder->ids, encoder->error);
    const bool marks = !tokenizer->spaces.normalized && mica_space_marks_in(text, length);
    const bool begins = *text == ' ' || (marks && strncmp(text, MICA_SPACE_MARK, length < 3 ? length : 3) == 0);
    const bool spaced_first = !begins && (start == MICA_WORD_START_ALWAYS || (start == MICA_WORD_START_FIRST && first));
    if (!marks && !spaced_first)
        return encode_words(tokenizer, text, length, encoder->ids, encoder->error);
    mica_text spaced = MICA_TEXT_INIT;
    mica_text_append(&spaced, " ", spaced_first);
    mica_space_marks_read(&spaced, text, length);
    const mica_status status = mica_text_failed(&spaced)
                                   ? out_of_memory(tokenizer, encoder->error)
                                   : encode_words(tokenizer, spaced.bytes, spaced.length, encoder->ids, encoder->error);
    mica_text_release(&spaced);
    return status;
}

/* *differs is false, and nothing appended, where `text` is so already. */
static mica_status normalize(const mica_tokenizer *tokenizer, const char *text, uint64_t length, mica_text *made, bool *differs,
                             mica_error *error) {
    mica_status status = MICA_OK;
    *differs = false;
    if (tokenizer->compose) {
        const uint64_t valid = mica_utf8_prefix(text, length);
        status = mica_compose(text, valid, made, differs, error);
        if (*differs)
            mica_text_append(made, text + valid, length - valid);
    } else if (tokenizer->spaces.before || (tokenizer->spaces.normalized && mica_space_marks_in(text, length))) {
        *differs = true;
        mica_text_append(made, " ", tokenizer->spaces.before);
        mica_space_marks_read(made, text, length);
    }
    return status == MICA_OK && mica_text_failed(made) ? out_of_memory(tokenizer, error) : status;
}

/* The longest added token, of those that are looked for in normalized text or of the others, that `text` begins with; NONE. */
static uint32_t added_at(const mica_tokenizer *tokenizer, const char *text, uint64_t length, bool control, bool normalized) {
    for (uint32_t i = 0; i < tokenizer->special_length_count; i++) {
        uint32_t wanted = tokenizer->special_lengths[i];
        uint32_t id = wanted > length ? MICA_TOKEN_NONE
                                      : mica_bytes_table_find(&tokenizer->special, tokenizer->names.bytes, tokenizer->spans, text, wanted);
        if (id != MICA_TOKEN_NONE && (control || tokenizer->types[id] == MICA_TOKEN_USER_DEFINED) &&
            normalized == !!(tokenizer->added[id] & MICA_ADDED_NORMALIZED))
            return id;
    }
    return MICA_TOKEN_NONE;
}

uint32_t mica_tokenizer_special_at(const mica_tokenizer *tokenizer, const char *text, uint64_t length, bool control) {
    const uint32_t id = added_at(tokenizer, text, length, control, false);
    return id != MICA_TOKEN_NONE || !tokenizer->has_normalized ? id : added_at(tokenizer, text, length, control, true);
}

/* The bytes of the White_Space character that stands at `text`; 0: none does. In normalized text a space may be U+2581 and no such. */
static uint64_t white_space(const char *text, uint64_t length, bool spaces) {
    static const char *const others[] = {"\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\xa8",
                                         "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    if (length > 0 && ((*text == ' ' && spaces) || (*text >= '\t' && *text <= '\r')))
        return 1;
    if (length >= 3 && memcmp(text, "\xe2\x80", 2) == 0 && (uint8_t)text[2] >= 0x80 && (uint8_t)text[2] <= 0x8a) /* U+2000 to U+200A */
        return 3;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (length >= strlen(others[i]) && memcmp(text, others[i], strlen(others[i])) == 0)
            return strlen(others[i]);
    return 0;
}

/* Where the white space begins that ends at `end`, from `start` on; and where that ends that begins at `start`. */
static uint64_t space_before(const char *text, uint64_t start, uint64_t end, bool spaces) {
    for (uint64_t length = 1; length <= 3 && length <= end - start; length++) {
        if (white_space(text + end - length, length, spaces) == length) {
            end -= length;
            length = 0;
        }
    }
    return end;
}

static uint64_t space_behind(const char *text, uint64_t start, uint64_t end, bool spaces) {
    for (uint64_t taken; (taken = white_space(text + start, end - start, spaces)) > 0;)
        start += taken;
    return start;
}

/* Cuts added tokens out of a text, those that are looked for when it is normalized or the others. */
static mica_status cut(const text_encoder *encoder, bool normalized, const char *text, uint64_t length, bool first,
                       between_function between) {
    const mica_tokenizer *tokenizer = encoder->tokenizer;
    const uint64_t lead = normalized && tokenizer->spaces.before; /* the tokens are normalized too: the space before them is theirs */
    const bool spaces = !(normalized && tokenizer->spaces.normalized);
    uint64_t start = 0;
    mica_status status = MICA_OK;
    for (uint64_t at = 0; (encoder->special || tokenizer->has_user_defined) && at + lead < length && status == MICA_OK;) {
        uint32_t id = MICA_TOKEN_NONE;
        if (tokenizer->special_first[(uint8_t)text[at + lead]] && (lead == 0 || text[at] == ' '))
            id = added_at(tokenizer, text + at + lead, length - at - lead, encoder->special || tokenizer->hides, normalized);
        if (id == MICA_TOKEN_NONE) {
            at++;
            continue;
        }
        uint64_t from = at, to = at + lead + tokenizer->spans[id].length;
        at = to;
        if (!encoder->special && tokenizer->types[id] != MICA_TOKEN_USER_DEFINED)
            continue; /* it hides others */
        if (tokenizer->added[id] & MICA_ADDED_STRIPS_LEFT && from > start)
            from = space_before(text, start, from, spaces);
        if (tokenizer->added[id] & MICA_ADDED_STRIPS_RIGHT)
            to = space_behind(text, to, length, spaces);
        if (from > start)
            status = between(encoder, text + start, from - start, first && start == 0);
        mica_token_list_add(encoder->ids, id);
        start = to;
    }
    return status == MICA_OK && start < length ? between(encoder, text + start, length - start, first && start == 0) : status;
}

static mica_status encode_segment(const text_encoder *encoder, const char *text, uint64_t length, bool first) {
    mica_text made = MICA_TEXT_INIT;
    bool differs = false;
    mica_status status = normalize(encoder->tokenizer, text, length, &made, &differs, encoder->error);
    if (status == MICA_OK && encoder->tokenizer->has_normalized)
        status = cut(encoder, true, differs ? made.bytes : text, differs ? made.length : length, first, encode_part);
    else if (status == MICA_OK)
        status = encode_part(encoder, differs ? made.bytes : text, differs ? made.length : length, first);
    mica_text_release(&made);
    return status;
}

static mica_status append(const mica_tokenizer *tokenizer, const char *text, uint64_t length, bool special, bool first,
                          mica_token_list *ids, mica_error *error) {
    const text_encoder encoder = {tokenizer, ids, special, error};
    const mica_status status = cut(&encoder, false, text, length, first, encode_segment);
    return status == MICA_OK && ids->failed ? out_of_memory(tokenizer, error) : status;
}

mica_status mica_tokenizer_append(const mica_tokenizer *tokenizer, const char *text, uint64_t length, bool special, mica_token_list *ids,
                                  mica_error *error) {
    return append(tokenizer, text, length, special, true, ids, error);
}

mica_status mica_tokenizer_append_behind(const mica_tokenizer *tokenizer, const char *text, uint64_t length, mica_token_list *ids,
                                         mica_error *error) {
    return append(tokenizer, text, length, false, false, ids, error);
}

mica_status mica_tokenizer_encode(const mica_tokenizer *tokenizer, const char *text, uint64_t length, bool special, uint32_t **ids,
                                  uint64_t *count, mica_error *error) {
    mica_token_list list = {0};
    mica_status status = mica_tokenizer_append(tokenizer, text, length, special, &list, error);
    if (status != MICA_OK) {
        mica_token_list_release(&list);
        return status;
    }
    *ids = list.ids;
    *count = list.count;
    return MICA_OK;
}

void mica_ids_free(uint32_t *ids) {
    mica_free(ids);
}
