/* model/tokenizer_json.c: tokenizer.json of Hugging Face's tokenizers, where it is a BPE: byte-level, as those of Llama 3, Qwen and DeepSeek
 * are, or with byte_fallback, as SentencePiece's of Llama 2 and Mistral are written there. The vocabulary and the merges, which are large,
 * are read by the cursor, straight from the text; the rest as trees (tokenizer_json_pipeline.c). Refuses, in a sentence, whatever would
 * make the ids others. Judged by tests/model/test_tokenizer_json.c, tests/interop/tokenizer_*.py, tests/fuzz/fuzz_tokenizer_json.c. */
#include <inttypes.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "formats/json_cursor.h"
#include "model/byte_level.h"
#include "model/tokenizer_json.h"

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
    mica_token_pipeline pipeline;
    bool ignore_merges;
    char *unknown; /* model.unk_token; NULL: none */
    mica_tokenizer *tokenizer;
    mica_error *error;
} json_reader;

static mica_status out_of_memory(const json_reader *reader) {
    return mica_fail(reader->error, MICA_NO_MEMORY, "%s: out of memory for the tokenizer", reader->name);
}

static bool is_true(const json_t *object, const char *key) {
    return json_is_true(json_object_get(object, key));
}

static mica_status refuse(const json_reader *reader, const char *key, const json_t *value, const char *expected) {
    return mica_token_refuse(reader->name, key, value, expected, reader->error);
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

/* ---- model */

/* Everything that would make it another kind of BPE. */
static mica_status read_model_kind(json_reader *reader) {
    json_t *model;
    mica_status status = parse_slices(reader, model_part_names, reader->model, VOCAB, &model);
    if (status != MICA_OK)
        return status;
    const json_t *dropout = json_object_get(model, "dropout"), *unknown = json_object_get(model, "unk_token");
    const char *type = json_string_value(json_object_get(model, "type"));
    if (type && strcmp(type, "BPE") != 0)
        status = refuse(reader, "model.type", json_object_get(model, "type"), "\"BPE\"");
    else if (!mica_token_is_absent(dropout) && json_number_value(dropout) != 0)
        status = refuse(reader, "model.dropout", dropout, "null");
    for (model_part part = PREFIX; part <= SUFFIX && status == MICA_OK; part++) {
        const json_t *value = json_object_get(model, model_part_names[part]);
        if (!mica_token_is_absent(value) && !(json_is_string(value) && json_string_length(value) == 0))
            status = refuse(reader, model_part_names[part], value, "null or nothing");
    }
    reader->pipeline.characters = is_true(model, "byte_fallback");
    reader->ignore_merges = is_true(model, "ignore_merges");
    reader->unknown = json_is_string(unknown) ? mica_strdup(json_string_value(unknown)) : NULL;
    if (status == MICA_OK && json_is_string(unknown) && !reader->unknown)
        status = out_of_memory(reader);
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

/* ---- tokens */

static mica_status refuse_added(const json_reader *reader, const json_t *token, const char *expected) {
    return refuse(reader, "added_tokens", token, expected);
}

/* *largest grows to the largest id. */
static mica_status check_added(const json_reader *reader, uint32_t *largest) {
    const json_t *added = reader->trees[ADDED], *token;
    size_t i;
    if (!mica_token_is_absent(added) && !json_is_array(added))
        return refuse_added(reader, added, "a list of tokens");
    json_array_foreach(added, i, token) {
        const json_t *id = json_object_get(token, "id"), *content = json_object_get(token, "content");
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= MICA_TOKENS_MAX || !json_is_string(content) ||
            json_string_length(content) == 0)
            return refuse_added(reader, token, "an id and a content");
        if (is_true(token, "single_word"))
            return refuse_added(reader, token, "a token without single_word");
        if (is_true(token, "normalized") && reader->pipeline.compose)
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

/* The text of an added token as it is looked for: in `scratch` where the normalizer changes it. */
static const char *added_text(const json_reader *reader, uint8_t how, const char *text, uint64_t *length, mica_text *scratch) {
    if (!(how & MICA_ADDED_NORMALIZED) || !reader->pipeline.spaces.normalized)
        return text;
    mica_text_clear(scratch);
    mica_space_marks_read(scratch, text, *length);
    *length = scratch->length;
    return scratch->bytes;
}

static mica_status set_added(const json_reader *reader, mica_text *scratch) {
    mica_tokenizer *tokenizer = reader->tokenizer;
    const json_t *token;
    size_t i;
    mica_status status = MICA_OK;
    json_array_foreach(reader->trees[ADDED], i, token) {
        const json_t *content = json_object_get(token, "content");
        const mica_token_type type = is_true(token, "special") ? MICA_TOKEN_CONTROL : MICA_TOKEN_USER_DEFINED;
        const uint32_t id = (uint32_t)json_integer_value(json_object_get(token, "id"));
        uint64_t length = json_string_length(content);
        const uint8_t how = (uint8_t)((is_true(token, "lstrip") ? MICA_ADDED_STRIPS_LEFT : 0) |
                                      (is_true(token, "rstrip") ? MICA_ADDED_STRIPS_RIGHT : 0) |
                                      (is_true(token, "normalized") ? MICA_ADDED_NORMALIZED : 0));
        const char *text = added_text(reader, how, json_string_value(content), &length, scratch);
        if (status == MICA_OK && mica_text_failed(scratch))
            status = out_of_memory(reader);
        if (status == MICA_OK)
            status = mica_tokenizer_set(tokenizer, id, text, length, type, reader->error);
        if (status == MICA_OK)
            tokenizer->added[id] = how;
    }
    return status;
}

/* An added token may be in the vocabulary too, with the same text. */
static mica_status set_entry(json_reader *reader, const vocab_entry *entry, mica_text *scratch) {
    mica_tokenizer *tokenizer = reader->tokenizer;
    const char *text = reader->texts.bytes + entry->start;
    const mica_token_span span = tokenizer->spans[entry->id];
    const int byte = tokenizer->characters ? mica_byte_token_read(text, entry->length) : -1;
    const char single = (char)byte;
    if (tokenizer->types[entry->id] == MICA_TOKEN_CONTROL || tokenizer->types[entry->id] == MICA_TOKEN_USER_DEFINED) {
        uint64_t length = entry->length;
        const char *wanted = added_text(reader, tokenizer->added[entry->id], text, &length, scratch);
        if (!mica_text_failed(scratch) && span.length == length && memcmp(tokenizer->names.bytes + span.start, wanted, length) == 0) {
            tokenizer->added[entry->id] |= MICA_ADDED_IN_VOCABULARY;
            return MICA_OK;
        }
    }
    if (byte >= 0)
        return mica_tokenizer_set(tokenizer, entry->id, &single, 1, MICA_TOKEN_BYTE, reader->error);
    return mica_tokenizer_set_text(tokenizer, entry->id, text, entry->length, scratch, reader->error);
}

static mica_status set_tokens(json_reader *reader) {
    mica_text scratch = MICA_TEXT_INIT;
    mica_status status = set_added(reader, &scratch);
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

static void take_pipeline(json_reader *reader) {
    mica_tokenizer *tokenizer = reader->tokenizer;
    const mica_token_pipeline *pipeline = &reader->pipeline;
    tokenizer->hides = true;
    tokenizer->characters = pipeline->characters;
    tokenizer->spaces = pipeline->spaces;
    tokenizer->compose = pipeline->compose;
    tokenizer->whole_pieces = reader->ignore_merges;
    tokenizer->splitter = pipeline->splitter;
    reader->pipeline.splitter.count = 0; /* it is the tokenizer's now */
    if (!pipeline->characters)
        tokenizer->pre_type = mica_split_row_match(pipeline->patterns.bytes, pipeline->patterns.length, tokenizer->whole_pieces,
                                                   tokenizer->compose);
}

static mica_status read(json_reader *reader, const mica_token_settings *settings) {
    uint32_t count = 0;
    mica_status status = read_outline(reader);
    if (status == MICA_OK)
        status = read_model_kind(reader);
    if (status == MICA_OK)
        status = mica_token_pipeline_read(&reader->pipeline, reader->trees[NORMALIZER], reader->trees[PRE_TOKENIZER],
                                          reader->trees[DECODER]);
    if (status == MICA_OK)
        status = read_vocab(reader);
    if (status == MICA_OK)
        status = count_ids(reader, settings, &count);
    if (status == MICA_OK)
        status = mica_tokenizer_new(reader->name, count, &reader->tokenizer, reader->error);
    if (status == MICA_OK) {
        take_pipeline(reader);
        status = set_tokens(reader);
    }
    if (status == MICA_OK)
        status = read_merges(reader);
    if (status == MICA_OK)
        status = mica_token_pipeline_read_roles(&reader->pipeline, reader->trees[POST_PROCESSOR], reader->tokenizer);
    if (status == MICA_OK && reader->unknown)
        reader->tokenizer->roles.unknown = mica_tokenizer_find(reader->tokenizer, reader->unknown, strlen(reader->unknown));
    return status;
}

mica_status mica_tokenizer_from_json(const char *name, const char *text, uint64_t length, const mica_token_settings *settings,
                                     mica_tokenizer **tokenizer, mica_error *error) {
    json_reader reader = {.name = name, .text = text, .length = length, .error = error, .pipeline = {.name = name, .error = error}};
    const mica_status status = read(&reader, settings);
    if (status == MICA_OK)
        *tokenizer = reader.tokenizer;
    else
        mica_tokenizer_close(reader.tokenizer);
    for (int part = 0; part < FILE_PART_COUNT; part++)
        json_decref(reader.trees[part]);
    mica_token_pipeline_release(&reader.pipeline);
    mica_text_release(&reader.texts);
    mica_free(reader.unknown);
    mica_free(reader.entries);
    return status;
}
