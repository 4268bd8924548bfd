/* model/tokenizer_json_pipeline.c: normalizer, pre_tokenizer, post_processor and decoder of a tokenizer.json: each one thing, or a Sequence
 * of them. A table says which things there are, for byte-level vocabularies and for those with byte_fallback. Refuses all others, naming
 * them. Judged by tests/model/test_tokenizer_json.c, tests/interop/tokenizer_json.py and tokenizer_spaces.py. */
#include <string.h>

#include "base/json.h"
#include "model/byte_level.h"
#include "model/tokenizer_json.h"

typedef enum pipeline_part { NORMALIZER, PRE_TOKENIZER, DECODER, POST_PROCESSOR } pipeline_part;

/* A thing that is read. The function notes what it does, and says where it does not fit. */
typedef enum vocabulary_kind { BYTE_LEVEL = 1, BYTE_FALLBACK = 2, BOTH = 3 } vocabulary_kind;
typedef struct item_row {
    pipeline_part part;
    vocabulary_kind kinds;
    const char *type;
    mica_status (*read)(mica_token_pipeline *pipeline, const json_t *item, bool *fits);
} item_row;

#define TEMPLATE "ByteLevel, or TemplateProcessing with at most one token at each end"
static const struct {
    const char *name, *list;
    const char *expected[2]; /* of byte-level vocabularies, of those with byte_fallback */
} part_rows[] = {
    [NORMALIZER] = {"normalizer", "normalizers", {"nothing or NFC", "Prepend of \"\\u2581\", and Replace of \" \" by it"}},
    [PRE_TOKENIZER] = {"pre_tokenizer",
                       "pretokenizers",
                       {"Split by a Regex (Isolated), Digits, or ByteLevel without add_prefix_space",
                        "nothing, or one Metaspace with the replacement \"\\u2581\""}},
    [DECODER] = {"decoder",
                 "decoders",
                 {"ByteLevel", "Replace of \"\\u2581\" by \" \", ByteFallback, Fuse, Strip of one \" \" at the start, or Metaspace"}},
    [POST_PROCESSOR] = {"post_processor", "processors", {TEMPLATE, TEMPLATE}},
};

static bool is_string(const json_t *object, const char *key, const char *expected) {
    const char *text = json_string_value(json_object_get(object, key));
    return text && strcmp(text, expected) == 0;
}

static bool is_true(const json_t *object, const char *key) {
    return json_is_true(json_object_get(object, key));
}

static bool is_true_or_absent(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return mica_token_is_absent(value) || json_is_true(value);
}

/* What changes no ids: decoding gives the bytes that ids stand for. */
static mica_status read_nothing(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    (void)pipeline, (void)item, (void)fits;
    return MICA_OK;
}

/* ---- byte-level */

static mica_status add_pattern(mica_token_pipeline *pipeline, const char *pattern) {
    mica_text_puts(&pipeline->patterns, pattern);
    mica_text_append(&pipeline->patterns, "", 1);
    if (mica_text_failed(&pipeline->patterns))
        return mica_fail(pipeline->error, MICA_NO_MEMORY, "%s: out of memory for the tokenizer", pipeline->name);
    return mica_splitter_add(&pipeline->splitter, pipeline->name, pattern, pipeline->error);
}

static mica_status read_nfc(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    (void)item, (void)fits;
    pipeline->compose = true;
    return MICA_OK;
}

static mica_status read_split(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    const char *regex = json_string_value(json_object_get(json_object_get(item, "pattern"), "Regex"));
    *fits = regex && is_string(item, "behavior", "Isolated") && !is_true(item, "invert");
    return *fits ? add_pattern(pipeline, regex) : MICA_OK;
}

static mica_status read_digits(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    (void)fits;
    return add_pattern(pipeline, is_true(item, "individual_digits") ? MICA_PATTERN_DIGIT : MICA_PATTERN_DIGITS);
}

static mica_status read_byte_level(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    *fits = !is_true(item, "add_prefix_space");
    pipeline->ends_byte_level = true;
    return *fits && is_true_or_absent(item, "use_regex") ? add_pattern(pipeline, MICA_PATTERN_GPT2) : MICA_OK;
}

/* ---- with byte_fallback */

static mica_status read_prepend(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    *fits = is_string(item, "prepend", MICA_SPACE_MARK) && !pipeline->spaces.before;
    pipeline->spaces.before = true;
    return MICA_OK;
}

static mica_status read_replace(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    *fits = is_string(json_object_get(item, "pattern"), "String", " ") && is_string(item, "content", MICA_SPACE_MARK);
    pipeline->spaces.normalized = true;
    return MICA_OK;
}

/* Before there was a prepend_scheme, add_prefix_space said it. */
static bool read_scheme(const json_t *item, mica_word_start *start) {
    static const char *const names[] = {"never", "first", "always"};
    const json_t *scheme = json_object_get(item, "prepend_scheme");
    const bool never = json_is_false(json_object_get(item, "add_prefix_space"));
    *start = never ? MICA_WORD_START_NEVER : MICA_WORD_START_ALWAYS;
    if (!is_string(item, "replacement", MICA_SPACE_MARK) || mica_token_is_absent(scheme))
        return is_string(item, "replacement", MICA_SPACE_MARK);
    for (mica_word_start row = MICA_WORD_START_NEVER; row <= MICA_WORD_START_ALWAYS; row++) {
        if (is_string(item, "prepend_scheme", names[row])) {
            *start = row;
            return row == MICA_WORD_START_NEVER || !never;
        }
    }
    return false;
}

static mica_status read_metaspace(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    *fits = !pipeline->has_metaspace && read_scheme(item, &pipeline->spaces.word_start);
    pipeline->has_metaspace = true;
    pipeline->spaces.words = is_true_or_absent(item, "split");
    return MICA_OK;
}

static mica_status read_replace_back(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    (void)pipeline;
    *fits = is_string(json_object_get(item, "pattern"), "String", MICA_SPACE_MARK) && is_string(item, "content", " ");
    return MICA_OK;
}

static mica_status read_strip(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    const json_int_t start = json_integer_value(json_object_get(item, "start"));
    *fits = is_string(item, "content", " ") && (start == 0 || start == 1) && json_integer_value(json_object_get(item, "stop")) == 0;
    pipeline->spaces.left_out |= start == 1;
    return MICA_OK;
}

static mica_status read_metaspace_back(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    mica_word_start start;
    *fits = read_scheme(item, &start);
    pipeline->spaces.left_out |= start != MICA_WORD_START_NEVER;
    return MICA_OK;
}

/* The id of a special token that a template has; NONE when the piece is the text. */
static uint32_t template_token(const mica_token_pipeline *pipeline, const json_t *piece) {
    const char *text = json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
    return text ? mica_tokenizer_special(pipeline->tokenizer, text) : MICA_TOKEN_NONE;
}

/* "[bos] text [eos]": nothing else of a template changes a single text's ids. */
static mica_status read_template(mica_token_pipeline *pipeline, const json_t *item, bool *fits) {
    const json_t *single = json_object_get(item, "single");
    const size_t count = json_array_size(single);
    mica_token_roles *roles = &pipeline->tokenizer->roles;
    const uint32_t first = template_token(pipeline, json_array_get(single, 0));
    const uint32_t last = count > 0 ? template_token(pipeline, json_array_get(single, count - 1)) : MICA_TOKEN_NONE;
    *fits = (first != MICA_TOKEN_NONE) + (last != MICA_TOKEN_NONE) + (size_t)1 == count;
    if (*fits && first != MICA_TOKEN_NONE) {
        roles->bos = first;
        roles->add_bos = true;
    }
    if (*fits && last != MICA_TOKEN_NONE) {
        roles->eos = last;
        roles->add_eos = true;
    }
    return MICA_OK;
}

static const item_row item_rows[] = {
    {NORMALIZER, BYTE_LEVEL, "NFC", read_nfc},
    {NORMALIZER, BYTE_FALLBACK, "Prepend", read_prepend},
    {NORMALIZER, BYTE_FALLBACK, "Replace", read_replace},
    {PRE_TOKENIZER, BYTE_LEVEL, "Split", read_split},
    {PRE_TOKENIZER, BYTE_LEVEL, "Digits", read_digits},
    {PRE_TOKENIZER, BYTE_LEVEL, "ByteLevel", read_byte_level},
    {PRE_TOKENIZER, BYTE_FALLBACK, "Metaspace", read_metaspace},
    {DECODER, BYTE_LEVEL, "ByteLevel", read_nothing},
    {DECODER, BYTE_FALLBACK, "Replace", read_replace_back},
    {DECODER, BYTE_FALLBACK, "ByteFallback", read_nothing},
    {DECODER, BYTE_FALLBACK, "Fuse", read_nothing},
    {DECODER, BYTE_FALLBACK, "Strip", read_strip},
    {DECODER, BYTE_FALLBACK, "Metaspace", read_metaspace_back},
    {POST_PROCESSOR, BOTH, "ByteLevel", read_nothing},
    {POST_PROCESSOR, BOTH, "TemplateProcessing", read_template},
};

/* ---- a part of the file */

static mica_status refuse(const mica_token_pipeline *pipeline, const char *key, const json_t *value, const char *expected) {
    return mica_token_refuse(pipeline->name, key, value, expected, pipeline->error);
}

static mica_status read_item(mica_token_pipeline *pipeline, pipeline_part part, const json_t *item) {
    const item_row *row = item_rows, *end = item_rows + sizeof item_rows / sizeof *item_rows;
    const vocabulary_kind kind = pipeline->characters ? BYTE_FALLBACK : BYTE_LEVEL;
    bool fits = true;
    if (part == PRE_TOKENIZER && pipeline->ends_byte_level)
        return refuse(pipeline, "pre_tokenizer", item, "nothing behind ByteLevel");
    while (row < end && (row->part != part || !(row->kinds & kind) || !is_string(item, "type", row->type)))
        row++;
    const mica_status status = row < end ? row->read(pipeline, item, &fits) : MICA_OK;
    if (status == MICA_OK && (row == end || !fits))
        return refuse(pipeline, part_rows[part].name, item, part_rows[part].expected[pipeline->characters]);
    return status;
}

/* One thing, or a Sequence of them, in which a Sequence may be. */
static mica_status read_part(mica_token_pipeline *pipeline, pipeline_part part, const json_t *item, int depth) {
    if (mica_token_is_absent(item) || !is_string(item, "type", "Sequence") || depth > 8)
        return mica_token_is_absent(item) ? MICA_OK : read_item(pipeline, part, item);
    const json_t *items = json_object_get(item, part_rows[part].list), *inner;
    size_t i;
    mica_status status = json_is_array(items) ? MICA_OK : refuse(pipeline, part_rows[part].list, items, "a list");
    json_array_foreach(items, i, inner) {
        if (status == MICA_OK)
            status = read_part(pipeline, part, inner, depth + 1);
    }
    return status;
}

mica_status mica_token_pipeline_read(mica_token_pipeline *pipeline, const json_t *normalizer, const json_t *pre_tokenizer,
                                     const json_t *decoder) {
    mica_status status = read_part(pipeline, NORMALIZER, normalizer, 0);
    if (status == MICA_OK)
        status = read_part(pipeline, PRE_TOKENIZER, pre_tokenizer, 0);
    if (status == MICA_OK)
        status = read_part(pipeline, DECODER, decoder, 0);
    if (status == MICA_OK && !pipeline->characters && !pipeline->ends_byte_level)
        return refuse(pipeline, "pre_tokenizer", pre_tokenizer, "one that ends in ByteLevel, where model.byte_fallback is not true");
    if (status == MICA_OK && pipeline->characters && !pipeline->spaces.normalized && !pipeline->has_metaspace)
        return refuse(pipeline, "normalizer", normalizer, "Replace of \" \" by \"\\u2581\", where the pre_tokenizer is no Metaspace");
    return status;
}

mica_status mica_token_pipeline_read_roles(mica_token_pipeline *pipeline, const json_t *post_processor, mica_tokenizer *tokenizer) {
    pipeline->tokenizer = tokenizer;
    return read_part(pipeline, POST_PROCESSOR, post_processor, 0);
}

void mica_token_pipeline_release(mica_token_pipeline *pipeline) {
    mica_splitter_release(&pipeline->splitter);
    mica_text_release(&pipeline->patterns);
}
