/* model/tokenizer_json.c: tokenizer.json of Hugging Face's tokenizers, where it is a byte-level BPE, as those of Llama 3, Qwen and
 * DeepSeek are. The vocabulary and the merges, which are large, are read by the cursor, straight from the text; the rest as trees.
 * Refuses, in a sentence, whatever would make the ids others than those of this plain kind. Judged by tests/model/test_tokenizer_json.c,
 * tests/interop/tokenizer.py and tests/fuzz/fuzz_tokenizer_json.c. */
#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "formats/json_cursor.h"
#include "model/byte_level.h"
#include "model/tokenizer_build.h"

typedef struct json_slice { /* of the file's text; length 0: absent */
    uint64_t start, length;
} json_slice;

/* The parts of the file that count; of all others nothing is known. */
typedef enum file_part { ADDED, NORMALIZER, PRE_TOKENIZER, POST_PROCESSOR, DECODER, MODEL, FILE_PART_COUNT } file_part;
static const char *const file_part_names[] = {"added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"};

/* clang-format off */
typedef enum model_part {
    TYPE, DROPOUT, UNKNOWN, PREFIX, SUFFIX, FUSE_UNKNOWN, BYTE_FALLBACK, IGNORE_MERGES, VOCAB, MERGES, MODEL_PART_COUNT
} model_part;
static const char *const model_part_names[] = {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                                               "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"};
/* clang-format on */

typedef struct vocab_entry { /* the token as it is written, in `texts` */
    uint32_t start, length, id;
} vocab_entry;

typedef struct json_reader {
    const char *name, *text;
    uint64_t length;
    json_slice parts[FILE_PART_COUNT], model[MODEL_PART_COUNT];
    json_t *trees[FILE_PART_COUNT]; /* NULL where absent, and of the model */
    mica_text texts;
    vocab_entry *entries;
    uint64_t entry_count, entry_capacity;
    mica_splitter splitter;
    mica_text patterns; /* each with a NUL behind it */
    bool compose, ignore_merges, byte_level;
    mica_tokenizer *tokenizer;
    mica_error *error;
} json_reader;

static mica_status out_of_memory(const json_reader *reader) {
    return mica_fail(reader->error, MICA_NO_MEMORY, "%s: out of memory for the tokenizer", reader->name);
}

static mica_status refuse(const json_reader *reader, const char *part, const json_t *value, const char *expected) {
    char shown[128];
    return mica_fail(reader->error, MICA_BAD_INPUT, "%s: %s: expected %s, got %s", reader->name, part, expected,
                     mica_json_show(value, shown, sizeof shown));
}

/* ---- the outline */

/* Where the members of an object of these names are. */
static mica_status outline(const json_reader *reader, json_slice whole, const char *const *names, size_t count, json_slice *slices) {
    mica_json_cursor cursor = {
        .bytes = reader->text, .length = whole.start + whole.length, .position = whole.start, .error = reader->error};
    mica_text key = MICA_TEXT_INIT;
    uint64_t members = 0;
    bool twice = false;
    mica_cursor_enter(&cursor, '{');
    while (!twice && mica_cursor_next(&cursor, '{', &members)) {
        mica_text_clear(&key);
        mica_cursor_key(&cursor, &key);
        uint64_t start = cursor.position;
        mica_cursor_skip(&cursor);
        for (size_t i = 0; i < count && cursor.status == MICA_OK; i++) {
            if (strcmp(key.bytes, names[i]) == 0) {
                twice = slices[i].length > 0;
                slices[i] = (json_slice){start, cursor.position - start};
            }
        }
    }
    if (whole.start == 0 && !twice)
        mica_cursor_end(&cursor);
    mica_status status = cursor.status;
    if (status != MICA_OK)
        status = mica_fail_context(reader->error, status, "%s", reader->name);
    else if (twice)
        status = mica_fail(reader->error, MICA_BAD_INPUT, "%s: expected \"%.40s\" once, got it twice", reader->name, key.bytes);
    mica_text_release(&key);
    return status;
}

/* Members as one small tree: {"name": slice, ...}. */
static mica_status parse_slices(const json_reader *reader, const char *const *names, const json_slice *slices, size_t count,
                                json_t **tree) {
    mica_text text = MICA_TEXT_INIT;
    const char *separator = "{";
    for (size_t i = 0; i < count; i++) {
        if (slices[i].length > 0) {
            mica_text_printf(&text, "%s\"%s\":", separator, names[i]);
            mica_text_append(&text, reader->text + slices[i].start, slices[i].length);
            separator = ",";
        }
    }
    mica_text_puts(&text, *separator == '{' ? "{}" : "}");
    mica_status status = mica_text_failed(&text) ? out_of_memory(reader)
                                                 : mica_json_parse(reader->name, text.bytes, text.length, tree, reader->error);
    mica_text_release(&text);
    return status;
}

static bool is_absent(const json_t *value) {
    return !value || json_is_null(value);
}

static const char *type_of(const json_t *object) {
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "";
}

static bool is_true(const json_t *object, const char *key) {
    return json_is_true(json_object_get(object, key));
}

/* ---- model */

/* Everything that would make it another kind of BPE. */
static mica_status read_model_kind(json_reader *reader) {
    json_t *model;
    mica_status status = parse_slices(reader, model_part_names, reader->model, VOCAB, &model);
    if (status != MICA_OK)
        return status;
    const json_t *dropout = json_object_get(model, "dropout");
    const char *type = json_string_value(json_object_get(model, "type"));
    if (type && strcmp(type, "BPE") != 0)
        status = refuse(reader, "model.type", json_object_get(model, "type"), "\"BPE\"");
    else if (!is_absent(dropout) && json_number_value(dropout) != 0)
        status = refuse(reader, "model.dropout", dropout, "null");
    else if (is_true(model, "byte_fallback"))
        status = refuse(reader, "model.byte_fallback", json_object_get(model, "byte_fallback"), "false, as in a byte-level BPE");
    for (model_part part = PREFIX; part <= SUFFIX && status == MICA_OK; part++) {
        const json_t *value = json_object_get(model, model_part_names[part]);
        if (!is_absent(value) && !(json_is_string(value) && json_string_length(value) == 0))
            status = refuse(reader, model_part_names[part], value, "null, as in a byte-level BPE");
    }
    reader->ignore_merges = is_true(model, "ignore_merges");
    json_decref(model);
    return status;
}

/* The decimal number that ends at the cursor; UINT32_MAX: it is none, or too large. */
static uint32_t parse_id(const char *text, uint64_t length) {
    uint32_t value = 0;
    for (; length > 0 && memchr(" \t\r\n", *text, 4); length--)
        text++;
    for (uint64_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9' || value >= MICA_TOKENS_MAX)
            return UINT32_MAX;
        value = value * 10 + (uint32_t)(text[i] - '0');
    }
    return length > 0 && value < MICA_TOKENS_MAX ? value : UINT32_MAX;
}

static bool grow_entries(json_reader *reader) {
    if (reader->entry_count < reader->entry_capacity)
        return true;
    uint64_t capacity = reader->entry_capacity ? reader->entry_capacity * 2 : 4096;
    vocab_entry *entries = mica_reallocarray(reader->entries, capacity, sizeof *entries);
    if (entries) {
        reader->entries = entries;
        reader->entry_capacity = capacity;
    }
    return entries != NULL;
}

/* model.vocab: {"token": id, ...}. */
static mica_status read_vocab(json_reader *reader) {
    json_slice slice = reader->model[VOCAB];
    mica_json_cursor cursor = {
        .bytes = reader->text, .length = slice.start + slice.length, .position = slice.start, .error = reader->error};
    uint64_t members = 0;
    if (slice.length == 0)
        return mica_fail(reader->error, MICA_BAD_INPUT, "%s: model.vocab: expected an object of tokens, got absent", reader->name);
    mica_cursor_enter(&cursor, '{');
    while (mica_cursor_next(&cursor, '{', &members)) {
        size_t start = reader->texts.length;
        mica_cursor_key(&cursor, &reader->texts);
        if (cursor.status != MICA_OK)
            break;
        uint64_t number = cursor.position;
        mica_cursor_skip(&cursor);
        uint32_t id = cursor.status == MICA_OK ? parse_id(reader->text + number, cursor.position - number) : 0;
        if (id == UINT32_MAX) {
            return mica_fail(reader->error, MICA_BAD_INPUT, "%s: model.vocab: \"%.60s\": expected an id below %u, got %.*s", reader->name,
                             reader->texts.bytes + start, MICA_TOKENS_MAX,
                             (int)(cursor.position - number < 40 ? cursor.position - number : 40), reader->text + number);
        }
        if (mica_text_failed(&reader->texts) || !grow_entries(reader) || reader->texts.length > UINT32_MAX)
            return out_of_memory(reader);
        reader->entries[reader->entry_count++] = (vocab_entry){(uint32_t)start, (uint32_t)(reader->texts.length - start), id};
    }
    return cursor.status == MICA_OK ? MICA_OK : mica_fail_context(reader->error, cursor.status, "%s: model.vocab", reader->name);
}

/* ---- merges, when the vocabulary is there */

/* "left right", or ["left", "right"]: in `pair`, with a space between. False: neither. */
static bool read_merge(mica_json_cursor *cursor, mica_text *pair, uint64_t *left_length) {
    mica_text_clear(pair);
    uint64_t start = cursor->position;
    while (start < cursor->length && memchr(" \t\r\n", cursor->bytes[start], 4))
        start++;
    if (start < cursor->length && cursor->bytes[start] == '[') {
        uint64_t members = 0;
        mica_cursor_enter(cursor, '[');
        while (mica_cursor_next(cursor, '[', &members)) {
            mica_cursor_string(cursor, pair);
            if (members == 1)
                *left_length = pair->length;
            if (members == 1)
                mica_text_append(pair, " ", 1);
        }
        return cursor->status == MICA_OK && members == 2;
    }
    mica_cursor_string(cursor, pair);
    const char *space = cursor->status == MICA_OK ? strchr(pair->bytes, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return false;
    *left_length = (uint64_t)(space - pair->bytes);
    return true;
}

/* How many members the list has; a first look, since the table does not grow. */
static uint64_t count_merges(const json_reader *reader, json_slice slice) {
    mica_json_cursor cursor = {.bytes = reader->text, .length = slice.start + slice.length, .position = slice.start};
    uint64_t members = 0;
    mica_cursor_enter(&cursor, '[');
    while (mica_cursor_next(&cursor, '[', &members))
        mica_cursor_skip(&cursor);
    return members;
}

static mica_status read_merges(json_reader *reader) {
    json_slice slice = reader->model[MERGES];
    mica_json_cursor cursor = {
        .bytes = reader->text, .length = slice.start + slice.length, .position = slice.start, .error = reader->error};
    mica_text pair = MICA_TEXT_INIT, scratch = MICA_TEXT_INIT;
    uint64_t members = 0, left = 0, count = count_merges(reader, slice);
    mica_status status = MICA_OK;
    if (slice.length == 0)
        status = mica_fail(reader->error, MICA_BAD_INPUT, "%s: model.merges: expected a list of pairs, got absent", reader->name);
    else if (count > UINT32_MAX / 4 || !mica_pair_table_init(&reader->tokenizer->merges, count))
        status = out_of_memory(reader);
    if (status == MICA_OK)
        mica_cursor_enter(&cursor, '[');
    while (status == MICA_OK && mica_cursor_next(&cursor, '[', &members)) {
        uint32_t rank = (uint32_t)members - 1;
        bool read = read_merge(&cursor, &pair, &left);
        if (mica_text_failed(&pair))
            status = out_of_memory(reader);
        else if (cursor.status == MICA_OK && !read)
            status = mica_fail(reader->error, MICA_BAD_INPUT, "%s: merges: number %" PRIu32 ": expected two tokens, got \"%.60s\"",
                               reader->name, rank, pair.bytes ? pair.bytes : "");
        else if (cursor.status == MICA_OK)
            status = mica_tokenizer_add_merge(reader->tokenizer, pair.bytes, left, pair.bytes + left + 1, pair.length - left - 1, rank,
                                              &scratch, reader->error);
    }
    if (status == MICA_OK && cursor.status != MICA_OK)
        status = mica_fail_context(reader->error, cursor.status, "%s: model.merges", reader->name);
    mica_text_release(&pair);
    mica_text_release(&scratch);
    return status;
}

/* ---- normalizer, pre_tokenizer, post_processor, decoder: each one thing, or a Sequence of them */

typedef mica_status (*item_function)(json_reader *reader, const json_t *item);

static mica_status each_item(json_reader *reader, const json_t *item, const char *list, item_function function, int depth) {
    if (is_absent(item) || strcmp(type_of(item), "Sequence") != 0 || depth > 8)
        return is_absent(item) ? MICA_OK : function(reader, item);
    const json_t *items = json_object_get(item, list), *inner;
    size_t i;
    mica_status status = json_is_array(items) ? MICA_OK : refuse(reader, list, items, "a list");
    json_array_foreach(items, i, inner) {
        if (status == MICA_OK)
            status = each_item(reader, inner, list, function, depth + 1);
    }
    return status;
}

static mica_status read_normalizer(json_reader *reader, const json_t *item) {
    if (strcmp(type_of(item), "NFC") != 0)
        return refuse(reader, "normalizer", item, "nothing or NFC");
    reader->compose = true;
    return MICA_OK;
}

static mica_status add_pattern(json_reader *reader, const char *pattern) {
    mica_text_puts(&reader->patterns, pattern);
    mica_text_append(&reader->patterns, "", 1);
    if (mica_text_failed(&reader->patterns))
        return out_of_memory(reader);
    return mica_splitter_add(&reader->splitter, reader->name, pattern, reader->error);
}

static mica_status read_pre_tokenizer(json_reader *reader, const json_t *item) {
    const char *type = type_of(item), *behavior = json_string_value(json_object_get(item, "behavior"));
    const json_t *regex = json_object_get(json_object_get(item, "pattern"), "Regex");
    if (reader->byte_level)
        return refuse(reader, "pre_tokenizer", item, "nothing behind ByteLevel");
    if (strcmp(type, "Split") == 0 && json_is_string(regex) && behavior && strcmp(behavior, "Isolated") == 0 && !is_true(item, "invert"))
        return add_pattern(reader, json_string_value(regex));
    if (strcmp(type, "Digits") == 0)
        return add_pattern(reader, is_true(item, "individual_digits") ? MICA_PATTERN_DIGIT : MICA_PATTERN_DIGITS);
    if (strcmp(type, "ByteLevel") == 0 && !is_true(item, "add_prefix_space")) {
        reader->byte_level = true;
        const json_t *use_regex = json_object_get(item, "use_regex"); /* absent: true */
        return is_absent(use_regex) || json_is_true(use_regex) ? add_pattern(reader, MICA_PATTERN_GPT2) : MICA_OK;
    }
    return refuse(reader, "pre_tokenizer", item, "Split by a Regex (Isolated), Digits, or ByteLevel without add_prefix_space");
}

static mica_status read_decoder(json_reader *reader, const json_t *item) {
    return strcmp(type_of(item), "ByteLevel") == 0 ? MICA_OK : refuse(reader, "decoder", item, "ByteLevel");
}

/* The id of a special token that a template has; NONE when the piece is the text. */
static uint32_t template_token(const json_reader *reader, const json_t *piece) {
    const char *text = json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
    return text ? mica_tokenizer_special(reader->tokenizer, text) : MICA_TOKEN_NONE;
}

/* "[bos] text [eos]" of a TemplateProcessing; anything else changes nothing about a text's ids. */
static mica_status read_post_processor(json_reader *reader, const json_t *item) {
    const json_t *single = json_object_get(item, "single");
    size_t count = json_array_size(single);
    mica_token_roles *roles = &reader->tokenizer->roles;
    if (strcmp(type_of(item), "ByteLevel") == 0)
        return MICA_OK;
    if (strcmp(type_of(item), "TemplateProcessing") != 0 || count == 0 || count > 3)
        return refuse(reader, "post_processor", item, "ByteLevel, or TemplateProcessing with at most one token at each end");
    uint32_t first = template_token(reader, json_array_get(single, 0)), last = template_token(reader, json_array_get(single, count - 1));
    if ((first != MICA_TOKEN_NONE) + (last != MICA_TOKEN_NONE) + 1 != (int)count)
        return refuse(reader, "post_processor", item, "at most one token of the vocabulary at each end of the text");
    if (first != MICA_TOKEN_NONE) {
        roles->bos = first;
        roles->add_bos = true;
    }
    if (last != MICA_TOKEN_NONE) {
        roles->eos = last;
        roles->add_eos = true;
    }
    return MICA_OK;
}

static mica_status read_pipeline(json_reader *reader) {
    mica_status status = each_item(reader, reader->trees[NORMALIZER], "normalizers", read_normalizer, 0);
    if (status == MICA_OK)
        status = each_item(reader, reader->trees[PRE_TOKENIZER], "pretokenizers", read_pre_tokenizer, 0);
    if (status == MICA_OK)
        status = each_item(reader, reader->trees[DECODER], "decoders", read_decoder, 0);
    if (status == MICA_OK && !reader->byte_level)
        status = refuse(reader, "pre_tokenizer", reader->trees[PRE_TOKENIZER], "one that ends in ByteLevel: only byte-level BPE is read");
    return status;
}

/* ---- tokens */

static mica_status refuse_added(const json_reader *reader, const json_t *token, const char *expected) {
    return refuse(reader, "added_tokens", token, expected);
}

/* *largest grows to the largest id. */
static mica_status check_added(const json_reader *reader, uint32_t *largest) {
    const json_t *added = reader->trees[ADDED], *token;
    size_t i;
    if (!is_absent(added) && !json_is_array(added))
        return refuse_added(reader, added, "a list of tokens");
    json_array_foreach(added, i, token) {
        const json_t *id = json_object_get(token, "id"), *content = json_object_get(token, "content");
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= MICA_TOKENS_MAX || !json_is_string(content) ||
            json_string_length(content) == 0)
            return refuse_added(reader, token, "an id and a content");
        if (is_true(token, "lstrip") || is_true(token, "rstrip") || is_true(token, "single_word"))
            return refuse_added(reader, token, "a token without lstrip, rstrip and single_word");
        if (is_true(token, "normalized") && reader->compose)
            return refuse_added(reader, token, "a token that is not normalized, beside NFC");
        *largest = json_integer_value(id) > *largest ? (uint32_t)json_integer_value(id) : *largest;
    }
    return MICA_OK;
}

static mica_status count_ids(const json_reader *reader, const mica_token_settings *settings, uint32_t *count) {
    uint32_t largest = 0;
    mica_status status = check_added(reader, &largest);
    for (uint64_t i = 0; i < reader->entry_count; i++)
        largest = reader->entries[i].id > largest ? reader->entries[i].id : largest;
    uint64_t wanted = settings->vocab_size ? settings->vocab_size : (uint64_t)largest + 1;
    if (status == MICA_OK && wanted <= largest) {
        status = mica_fail(reader->error, MICA_BAD_INPUT, "%s: expected ids below %" PRIu64 ", the vocab_size of config.json, got %" PRIu32,
                           reader->name, wanted, largest);
    }
    *count = (uint32_t)wanted;
    return status;
}

static mica_status set_added(const json_reader *reader) {
    const json_t *token;
    size_t i;
    mica_status status = MICA_OK;
    json_array_foreach(reader->trees[ADDED], i, token) {
        const json_t *content = json_object_get(token, "content");
        mica_token_type type = is_true(token, "special") ? MICA_TOKEN_CONTROL : MICA_TOKEN_USER_DEFINED;
        if (status == MICA_OK)
            status = mica_tokenizer_set(reader->tokenizer, (uint32_t)json_integer_value(json_object_get(token, "id")),
                                        json_string_value(content), json_string_length(content), type, reader->error);
    }
    return status;
}

/* An added token may be in the vocabulary too, with the same text. One that is not bytes cannot come of text. */
static mica_status set_entry(json_reader *reader, const vocab_entry *entry, mica_text *scratch) {
    mica_tokenizer *tokenizer = reader->tokenizer;
    const char *text = reader->texts.bytes + entry->start;
    mica_token_span span = tokenizer->spans[entry->id];
    if (tokenizer->types[entry->id] == MICA_TOKEN_CONTROL || tokenizer->types[entry->id] == MICA_TOKEN_USER_DEFINED) {
        if (span.length == entry->length && memcmp(tokenizer->names.bytes + span.start, text, span.length) == 0)
            return MICA_OK;
    }
    mica_text_clear(scratch);
    bool bytes = mica_byte_level_read(scratch, text, entry->length);
    if (mica_text_failed(scratch))
        return out_of_memory(reader);
    if (bytes)
        return mica_tokenizer_set(tokenizer, entry->id, scratch->bytes, scratch->length, MICA_TOKEN_NORMAL, reader->error);
    return mica_tokenizer_set(tokenizer, entry->id, text, entry->length, MICA_TOKEN_UNUSED, reader->error);
}

static mica_status set_tokens(json_reader *reader) {
    mica_text scratch = MICA_TEXT_INIT;
    mica_status status = set_added(reader);
    for (uint64_t i = 0; i < reader->entry_count && status == MICA_OK; i++)
        status = set_entry(reader, &reader->entries[i], &scratch);
    mica_text_release(&scratch);
    return status == MICA_OK ? mica_tokenizer_index(reader->tokenizer, reader->error) : status;
}

/* ---- all of it */

static mica_status read_outline(json_reader *reader) {
    const json_slice whole = {0, reader->length};
    mica_status status = outline(reader, whole, file_part_names, FILE_PART_COUNT, reader->parts);
    if (status == MICA_OK && reader->parts[MODEL].length == 0)
        status = mica_fail(reader->error, MICA_BAD_INPUT, "%s: model: expected an object, got absent", reader->name);
    if (status == MICA_OK)
        status = outline(reader, reader->parts[MODEL], model_part_names, MODEL_PART_COUNT, reader->model);
    for (file_part part = 0; part < MODEL && status == MICA_OK; part++) {
        json_t *tree = NULL;
        status = parse_slices(reader, &file_part_names[part], &reader->parts[part], 1, &tree);
        if (status == MICA_OK)
            reader->trees[part] = json_incref(json_object_get(tree, file_part_names[part]));
        json_decref(tree);
    }
    return status;
}

static mica_status read(json_reader *reader, const mica_token_settings *settings) {
    uint32_t count = 0;
    mica_status status = read_outline(reader);
    if (status == MICA_OK)
        status = read_model_kind(reader);
    if (status == MICA_OK)
        status = read_pipeline(reader);
    if (status == MICA_OK)
        status = read_vocab(reader);
    if (status == MICA_OK)
        status = count_ids(reader, settings, &count);
    if (status == MICA_OK)
        status = mica_tokenizer_new(reader->name, count, &reader->tokenizer, reader->error);
    if (status == MICA_OK)
        status = set_tokens(reader);
    if (status == MICA_OK)
        status = read_merges(reader);
    if (status == MICA_OK)
        status = each_item(reader, reader->trees[POST_PROCESSOR], "processors", read_post_processor, 0);
    return status;
}

mica_status mica_tokenizer_from_json(const char *name, const char *text, uint64_t length, const mica_token_settings *settings,
                                     mica_tokenizer **tokenizer, mica_error *error) {
    json_reader reader = {.name = name, .text = text, .length = length, .error = error};
    mica_status status = read(&reader, settings);
    if (status == MICA_OK) {
        mica_tokenizer *made = reader.tokenizer;
        made->splitter = reader.splitter;
        made->compose = reader.compose;
        made->whole_pieces = reader.ignore_merges;
        made->pre_type = mica_split_row_match(reader.patterns.bytes, reader.patterns.length, made->whole_pieces, made->compose);
        *tokenizer = made;
    } else {
        mica_tokenizer_close(reader.tokenizer);
        mica_splitter_release(&reader.splitter);
    }
    for (int part = 0; part < FILE_PART_COUNT; part++)
        json_decref(reader.trees[part]);
    mica_text_release(&reader.texts);
    mica_text_release(&reader.patterns);
    mica_free(reader.entries);
    return status;
}
