/* test_tokenizer_json.c: tokenizer.json made by hand: what is read of it, and each thing that would make the ids others and is refused.
 * tests/interop/tokenizer_json.py compares the ids with those of tokenizers. */
#include "base/json.h"
#include "base/no_memory.h"
#include "base/scratch.h"
#include "model/byte_level.h"
#include "model/tokenizer_build.h"

static mica_error error;

/* The parts of a file; NULL is what a plain one has. */
typedef struct file_parts {
    const char *added, *normalizer, *pre_tokenizer, *post_processor, *decoder, *kind, *vocab, *merges, *more;
    bool spaces; /* one with byte_fallback, of make_spaces */
} file_parts;

static const char *otherwise(const char *text, const char *plain) {
    return text ? text : plain;
}

/* All bytes, then "ab" 256, "bc" 257, "abc" 258, "Ġa" 259. */
static char *make(file_parts parts, uint64_t *length) {
    mica_text text = MICA_TEXT_INIT;
    mica_text_printf(&text, "{\"version\": \"1.0\", \"truncation\": null, \"added_tokens\": %s, \"normalizer\": %s, \"pre_tokenizer\": %s,",
                     otherwise(parts.added, "[]"), otherwise(parts.normalizer, "null"),
                     otherwise(parts.pre_tokenizer, "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}"));
    mica_text_printf(&text, "\"post_processor\": %s, \"decoder\": %s, \"model\": {%s, \"vocab\": {",
                     otherwise(parts.post_processor, "null"), otherwise(parts.decoder, "{\"type\": \"ByteLevel\"}"),
                     otherwise(parts.kind, "\"type\": \"BPE\""));
    for (int byte = 0; byte < 256; byte++) {
        const char single = (char)byte;
        mica_text key = MICA_TEXT_INIT;
        mica_byte_level_write(&key, &single, 1);
        mica_text_printf(&text, "\"%s%s\": %d, ", byte == '"' || byte == '\\' ? "\\" : "", key.bytes, byte);
        mica_text_release(&key);
    }
    mica_text_printf(&text, "%s}, \"merges\": %s}%s}", otherwise(parts.vocab, "\"ab\": 256, \"bc\": 257, \"abc\": 258, \"\\u0120a\": 259"),
                     otherwise(parts.merges, "[\"a b\", \"b c\", \"ab c\", \"\\u0120 a\"]"), otherwise(parts.more, ""));
    *length = text.length;
    return mica_text_take(&text);
}

#define PREPEND "{\"type\": \"Prepend\", \"prepend\": \"\\u2581\"}"
#define REPLACE "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\\u2581\"}"
#define REPLACE_BACK "{\"type\": \"Replace\", \"pattern\": {\"String\": \"\\u2581\"}, \"content\": \" \"}"
#define STRIP "{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}"
#define METASPACE(more) "{\"type\": \"Metaspace\", \"replacement\": \"\\u2581\"" more "}"

/* As Llama 2's: "<unk>" 0, "<s>" 1, "</s>" 2, the bytes from 3 on, then "▁" 259, "a" 260, "b" 261, "▁a" 262, "ab" 263, "▁ab" 264, "▁▁" 265. */
static char *make_spaces(file_parts parts, uint64_t *length) {
    mica_text text = MICA_TEXT_INIT;
    mica_text_printf(&text,
                     "{\"added_tokens\": [{\"id\": 0, \"content\": \"<unk>\", \"special\": true}, {\"id\": 1, \"content\": \"<s>\","
                     "\"special\": true}, {\"id\": 2, \"content\": \"</s>\", \"special\": true}%s], \"normalizer\": %s,",
                     otherwise(parts.added, ""),
                     otherwise(parts.normalizer, "{\"type\": \"Sequence\", \"normalizers\": [" PREPEND "," REPLACE "]}"));
    mica_text_printf(&text, "\"pre_tokenizer\": %s, \"post_processor\": %s, \"decoder\": %s, \"model\": {%s, \"vocab\": {",
                     otherwise(parts.pre_tokenizer, "null"), otherwise(parts.post_processor, "null"),
                     otherwise(parts.decoder, "{\"type\": \"Sequence\", \"decoders\": [" REPLACE_BACK ", {\"type\": \"ByteFallback\"},"
                                              "{\"type\": \"Fuse\"}, " STRIP "]}"),
                     otherwise(parts.kind, "\"type\": \"BPE\", \"unk_token\": \"<unk>\", \"fuse_unk\": true, \"byte_fallback\": true"));
    for (int byte = 0; byte < 256; byte++)
        mica_text_printf(&text, "\"<0x%02X>\": %d, ", byte, byte + 3);
    mica_text_printf(&text, "\"<unk>\": 0, \"<s>\": 1, \"</s>\": 2, %s}, \"merges\": %s}}",
                     otherwise(parts.vocab, "\"\\u2581\": 259, \"a\": 260, \"b\": 261, \"\\u2581a\": 262, \"ab\": 263, \"\\u2581ab\": 264,"
                                            "\"\\u2581\\u2581\": 265"),
                     otherwise(parts.merges, "[\"\\u2581 a\", \"a b\", \"\\u2581a b\", \"\\u2581 \\u2581\"]"));
    *length = text.length;
    return mica_text_take(&text);
}

static mica_status open_parts(file_parts parts, uint64_t vocab_size, mica_tokenizer **tokenizer) {
    const mica_token_settings settings = {.vocab_size = vocab_size, .bos_id = MICA_TOKEN_NONE};
    uint64_t length;
    char *text = (parts.spaces ? make_spaces : make)(parts, &length),
         *exact = mica_malloc(length); /* without a NUL, so that a sanitizer sees a read behind the end */
    memcpy(exact, text, length);
    mica_free(text);
    mica_status status = mica_tokenizer_from_json("t.json", exact, length, &settings, tokenizer, &error);
    mica_free(exact);
    return status;
}

static mica_tokenizer *accept(file_parts parts) {
    mica_tokenizer *tokenizer = NULL;
    if (open_parts(parts, 0, &tokenizer) != MICA_OK)
        fail_msg("%s", error.message);
    return tokenizer;
}

static void expect_ids(const mica_tokenizer *tokenizer, const char *text, bool special, const uint32_t *expected, uint64_t count) {
    mica_token_list ids = {0};
    assert_int_equal(mica_tokenizer_append(tokenizer, text, strlen(text), special, &ids, &error), MICA_OK);
    assert_int_equal(ids.count, count);
    assert_memory_equal(ids.ids, expected, count * sizeof *expected);
    mica_token_list_release(&ids);
}

static void a_plain_file(void **state) {
    (void)state;
    static const char *const merges[] = {NULL, "[[\"a\", \"b\"], [ \"b\" ,\"c\"], [\"ab\",\"c\"], [\"\\u0120\", \"a\"]]"};
    for (int i = 0; i < 2; i++) {
        mica_tokenizer *tokenizer = accept((file_parts){.merges = merges[i]});
        assert_int_equal(mica_tokenizer_count(tokenizer), 260);
        expect_ids(tokenizer, "abc bcab", false, (const uint32_t[]){258, ' ', 257, 256}, 4);
        expect_ids(tokenizer, " a\n\xff", false, (const uint32_t[]){259, '\n', 255}, 3);
        assert_string_equal(mica_tokenizer_pre_type(tokenizer), "gpt-2");
        assert_int_equal(mica_tokenizer_roles(tokenizer)->bos, MICA_TOKEN_NONE);
        mica_tokenizer_close(tokenizer);
    }
}

/* The order of merges counts, not that of ids; a whole piece that is a token only with ignore_merges. */
static void merges_by_their_order(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = accept((file_parts){.merges = "[\"b c\", \"a b\"]"});
    expect_ids(tokenizer, "abc", false, (const uint32_t[]){'a', 257}, 2);
    mica_tokenizer_close(tokenizer);
    tokenizer = accept((file_parts){.merges = "[\"b c\", \"a b\"]", .kind = "\"type\": \"BPE\", \"ignore_merges\": true"});
    expect_ids(tokenizer, "abc", false, (const uint32_t[]){258}, 1);
    expect_ids(tokenizer, "abca", false, (const uint32_t[]){'a', 257, 'a'}, 3);
    mica_tokenizer_close(tokenizer);
}

static void added_tokens(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = accept((file_parts){
        .added =
            "[{\"id\": 262, \"content\": \"<s>\", \"special\": true, \"normalized\": true}, {\"id\": 260, \"content\": \"<t>\", \"special\": false},"
            " {\"id\": 263, \"content\": \"\xef\xbd\x9c\", \"special\": true}]",
        .vocab = "\"ab\": 256, \"bc\": 257, \"abc\": 258, \"\\u0120a\": 259, \"\xef\xbd\x9c\": 263, \"\xe6\xbc\xa2\": 264",
        .post_processor =
            "{\"type\": \"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, {\"type\": \"TemplateProcessing\", \"single\":"
            "[{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}]}]}"});
    expect_ids(tokenizer, "<s>a<t>b\xef\xbd\x9c", true, (const uint32_t[]){262, 'a', 260, 'b', 263}, 5);
    expect_ids(tokenizer, "<s>a<t>b", false, (const uint32_t[]){'<', 's', '>', 'a', 260, 'b'},
               6); /* those that are not special are always taken */
    expect_ids(tokenizer, "\xe6\xbc\xa2", false, (const uint32_t[]){0xe6, 0xbc, 0xa2}, 3);
    assert_int_equal(mica_tokenizer_type(tokenizer, 261), MICA_TOKEN_UNUSED);
    assert_int_equal(mica_tokenizer_type(tokenizer, 264), MICA_TOKEN_UNUSED); /* no bytes: text never becomes it */
    assert_int_equal(mica_tokenizer_type(tokenizer, 260), MICA_TOKEN_USER_DEFINED);
    assert_int_equal(mica_tokenizer_roles(tokenizer)->bos, 262);
    assert_true(mica_tokenizer_roles(tokenizer)->add_bos);
    assert_false(mica_tokenizer_roles(tokenizer)->add_eos);
    mica_tokenizer_close(tokenizer);
}

static void text_is_composed_where_it_says_so(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = accept((file_parts){.normalizer = "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}]}"});
    expect_ids(tokenizer,
               "e\xcc\x81"
               "ab",
               false, (const uint32_t[]){0xc3, 0xa9, 256}, 3);
    expect_ids(tokenizer, "e\xcc\x81\xff", false, (const uint32_t[]){0xc3, 0xa9, 0xff}, 3);
    mica_tokenizer_close(tokenizer);
    tokenizer = accept((file_parts){.normalizer = "{\"type\": \"Sequence\", \"normalizers\": []}"});
    expect_ids(tokenizer, "e\xcc\x81", false, (const uint32_t[]){'e', 0xcc, 0x81}, 3);
    mica_tokenizer_close(tokenizer);
}

/* The names GGUF has, by the patterns. */
static void pre_types(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]"
         "?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}, \"behavior\": \"Isolated\","
         "\"invert\": false}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}]}",
         "smaug-bpe"}, /* llama-bpe has ignore_merges */
        {"{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"x\"}, \"behavior\": \"Isolated\"},"
         "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}]}",
         NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_tokenizer *tokenizer = accept((file_parts){.pre_tokenizer = rows[i][0]});
        const char *type = mica_tokenizer_pre_type(tokenizer);
        assert_true(rows[i][1] ? type && strcmp(type, rows[i][1]) == 0 : !type);
        mica_tokenizer_close(tokenizer);
    }
}

/* Each text, its ids, and what they decode to where that is not the text. */
typedef struct text_row {
    const char *text;
    uint32_t ids[8], count;
    const char *decoded;
} text_row;

static void expect_texts(const mica_tokenizer *tokenizer, const text_row *rows, size_t count) {
    for (size_t i = 0; i < count; i++) {
        char *bytes;
        uint64_t length;
        expect_ids(tokenizer, rows[i].text, true, rows[i].ids, rows[i].count);
        assert_int_equal(mica_tokenizer_decode(tokenizer, rows[i].ids, rows[i].count, &bytes, &length, &error), MICA_OK);
        assert_string_equal(bytes, otherwise(rows[i].decoded, rows[i].text));
        mica_free(bytes);
    }
}
#define EXPECT_TEXTS(tokenizer, ...) \
    expect_texts(tokenizer, (const text_row[]){__VA_ARGS__}, sizeof((const text_row[]){__VA_ARGS__}) / sizeof(text_row))

/* As tokenizers has it (tests/interop/tokenizer_spaces.py). */
static void spaces_as_llama_2_has_them(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = accept((file_parts){
        .spaces = true,
        .post_processor = "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}},"
                          "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}]}"});
    EXPECT_TEXTS(tokenizer, {"", {0}, 0, NULL}, {"ab a", {264, 262}, 2, NULL}, {"  a", {265, 262}, 2, NULL},
                 {"ba", {259, 261, 260}, 3, NULL}, {"\xc3\xa9", {259, 3 + 0xc3, 3 + 0xa9}, 3, NULL}, {"\xc3", {259, 3 + 0xc3}, 2, NULL},
                 {"a<s>b", {262, 1, 259, 261}, 4, "a<s> b"},
                 {"a\xe2\x96\x81"
                  "ab",
                  {262, 264},
                  2,
                  "a ab"},
                 {"\xe2\x96", {259, 3 + 0xe2, 3 + 0x96}, 3, NULL});
    expect_ids(tokenizer, "<s>a", false, (const uint32_t[]){259, 3 + '<', 3 + 's', 3 + '>', 260}, 5);
    assert_int_equal(mica_tokenizer_type(tokenizer, 3), MICA_TOKEN_BYTE);
    assert_int_equal(mica_tokenizer_roles(tokenizer)->bos, 1);
    assert_true(mica_tokenizer_roles(tokenizer)->add_bos);
    assert_int_equal(mica_tokenizer_roles(tokenizer)->unknown, 0);
    mica_token_list behind = {0};
    assert_int_equal(mica_tokenizer_append_behind(tokenizer, "a<s>", 4, &behind, &error), MICA_OK);
    assert_int_equal(behind.count, 4);
    assert_int_equal(behind.ids[0], 262);
    mica_token_list_release(&behind);
    mica_tokenizer_close(tokenizer);
}

static void spaces_as_metaspace_has_them(void **state) {
    (void)state;
#define SCHEME(name, split) \
    .spaces = true, .normalizer = "null", .pre_tokenizer = METASPACE(", \"prepend_scheme\": \"" name "\", \"split\": " split)
    mica_tokenizer *tokenizer = accept((file_parts){SCHEME("first", "false")});
    EXPECT_TEXTS(tokenizer, {"ab", {264}, 1, NULL}, {" ab", {264}, 1, "ab"}, {"  ab", {259, 264}, 2, " ab"},
                 {"a<s>b", {262, 1, 261}, 3, NULL});
    mica_token_list behind = {0};
    assert_int_equal(mica_tokenizer_append_behind(tokenizer, "a", 1, &behind, &error), MICA_OK);
    assert_int_equal(behind.ids[0], 260);
    mica_token_list_release(&behind);
    mica_tokenizer_close(tokenizer);
    tokenizer = accept((file_parts){SCHEME("always", "true")});
    EXPECT_TEXTS(tokenizer, {"ab", {264}, 1, NULL}, {"  ab ", {259, 264, 259}, 3, " ab "}, {"a<s>b", {262, 1, 259, 261}, 4, "a<s> b"},
                 {"\xe2\x96\x81"
                  "a",
                  {262},
                  1,
                  "a"});
    mica_tokenizer_close(tokenizer);
    tokenizer = accept((file_parts){SCHEME("never", "false"), .decoder = METASPACE(", \"prepend_scheme\": \"never\""),
                                    .kind = "\"byte_fallback\": true, \"ignore_merges\": true"});
    EXPECT_TEXTS(tokenizer, {"ab", {263}, 1, NULL}, {" ab", {264}, 1, NULL}, {"<0x61>", {3 + 'a'}, 1, "a"});
    expect_ids(tokenizer, "<s>", false, (const uint32_t[]){1}, 1); /* a piece that is a token, whichever */
    mica_tokenizer_close(tokenizer);
    tokenizer = accept(
        (file_parts){.spaces = true, .normalizer = "null", .pre_tokenizer = METASPACE(", \"add_prefix_space\": false"), .decoder = "null"});
    EXPECT_TEXTS(tokenizer, {"ab", {263}, 1, NULL}, {"  ab", {259, 264}, 2, NULL});
    mica_tokenizer_close(tokenizer);
}

/* White space that added tokens take, and the order in which they are looked for. */
static void added_tokens_of_each_kind(void **state) {
    (void)state;
    static const char added[] =
        ", {\"id\": 266, \"content\": \"<l>\", \"special\": true, \"lstrip\": true},"
        "{\"id\": 267, \"content\": \"<r>\", \"special\": false, \"rstrip\": true},"
        "{\"id\": 268, \"content\": \"<n>\", \"special\": true, \"normalized\": true}, {\"id\": 269, \"content\": \"<s><r>\","
        "\"special\": true}, {\"id\": 261, \"content\": \"b\", \"special\": true, \"normalized\": true}";
    mica_tokenizer *tokenizer = accept((file_parts){.spaces = true, .added = added});
    EXPECT_TEXTS(tokenizer, {"a \xe3\x80\x80 \t<l> a", {262, 266, 259, 262}, 4, "a<l>  a"},
                 {"<r> \xc2\xa0\n a<r>", {267, 262, 267}, 3, "<r> a<r>"}, {"<r>  <l>", {267, 266}, 2, "<r><l>"},
                 {"a <n>a", {262, 268, 260}, 3, NULL}, {"<n>", {268}, 1, NULL}, {"a b", {262, 261}, 2, NULL}, {"ab", {264}, 1, NULL});
    expect_ids(tokenizer, "a<n>", true, (const uint32_t[]){262, 3 + '<', 3 + 'n', 3 + '>'}, 4); /* it has no space before it */
    expect_ids(tokenizer, "<s><r>", false, (const uint32_t[]){259, 3 + '<', 3 + 's', 3 + '>', 3 + '<', 3 + 'r', 3 + '>'},
               7); /* the longer hides it */
    expect_ids(tokenizer, "<r>a", false, (const uint32_t[]){267, 262}, 2);
    mica_tokenizer_close(tokenizer);
    tokenizer = accept(
        (file_parts){.added = "[{\"id\": 260, \"content\": \"<l>\", \"special\": true, \"lstrip\": true}]"}); /* byte-level too */
    expect_ids(tokenizer, "ab \t<l>c", true, (const uint32_t[]){256, 260, 'c'}, 3);
    mica_tokenizer_close(tokenizer);
}

static void what_is_refused(void **state) {
    (void)state;
    static const struct {
        file_parts parts;
        uint64_t vocab_size;
        const char *message;
    } rows[] = {
        {{.kind = "\"type\": \"Unigram\""}, 0, "model.type: expected \"BPE\", got \"Unigram\""},
        {{.kind = "\"dropout\": 0.1"}, 0, "model.dropout: expected null, got 0.1"},
        {{.kind = "\"end_of_word_suffix\": \"</w>\""}, 0, "end_of_word_suffix: expected null or nothing, got \"</w>\""},
        {{.kind = "\"byte_fallback\": true"},
         0,
         "pre_tokenizer: expected nothing, or one Metaspace with the replacement \"\\u2581\", got {\"type\": \"ByteLevel\", \"add_prefix_space\": "
         "false, \"use_regex\": true}"},
        {{.spaces = true, .normalizer = "{\"type\": \"NFC\"}"},
         0,
         "normalizer: expected Prepend of \"\\u2581\", and Replace of \" \" by it, got {\"type\": \"NFC\"}"},
        {{.spaces = true, .normalizer = PREPEND},
         0,
         "normalizer: expected Replace of \" \" by \"\\u2581\", where the pre_tokenizer is no Metaspace, got {\"type\": \"Prepend\", \"prepend\": "
         "\"\xe2\x96\x81\"}"},
        {{.spaces = true, .normalizer = "{\"type\": \"Sequence\", \"normalizers\": [" PREPEND "," PREPEND "]}"}, 0, NULL},
        {{.spaces = true, .normalizer = "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \" \"}, \"content\": \"\\u2581\"}"}, 0, NULL},
        {{.spaces = true, .pre_tokenizer = METASPACE(", \"prepend_scheme\": \"sometimes\"")}, 0, NULL},
        {{.spaces = true, .pre_tokenizer = METASPACE(", \"prepend_scheme\": \"first\", \"add_prefix_space\": false")}, 0, NULL},
        {{.spaces = true, .pre_tokenizer = "{\"type\": \"Metaspace\", \"replacement\": \"_\"}"},
         0,
         "pre_tokenizer: expected nothing, or one Metaspace with the replacement \"\\u2581\", got {\"type\": \"Metaspace\", \"replacement\": \"_\"}"},
        {{.spaces = true, .pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": [" METASPACE("") "," METASPACE("") "]}"}, 0, NULL},
        {{.spaces = true, .decoder = "{\"type\": \"Strip\", \"content\": \" \", \"start\": 2, \"stop\": 0}"},
         0,
         "decoder: expected Replace of \"\\u2581\" by \" \", ByteFallback, Fuse, Strip of one \" \" at the start, or Metaspace, got {\"type\": "
         "\"Strip\", \"content\": \" \", \"start\": 2, \"stop\": 0}"},
        {{.spaces = true, .decoder = REPLACE}, 0, NULL},
        {{.spaces = true, .kind = "\"byte_fallback\": false"}, 0, NULL},
        {{.spaces = true, .vocab = "\"a\": 259, \"<0x00>\": 260"}, 0, NULL},
        {{.spaces = true, .merges = "[\"a  b\"]"}, 0, "merges: number 0: expected two tokens, got \"a  b\""},
        {{.spaces = true, .merges = "[[\"a\", \" \"]]"},
         0,
         "merges: number 0: expected two tokens that are one token together, got \"a  \""},
        {{.normalizer = "{\"type\": \"Lowercase\"}"}, 0, "normalizer: expected nothing or NFC, got {\"type\": \"Lowercase\"}"},
        {{.decoder = "{\"type\": \"WordPiece\"}"}, 0, "decoder: expected ByteLevel, got {\"type\": \"WordPiece\"}"},
        {{.pre_tokenizer = "null"},
         0,
         "pre_tokenizer: expected one that ends in ByteLevel, where model.byte_fallback is not true, got null"},
        {{.pre_tokenizer = "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}"},
         0,
         "pre_tokenizer: expected Split by a Regex (Isolated), Digits, or ByteLevel without add_prefix_space, got {\"type\": \"ByteLevel\", "
         "\"add_prefix_space\": true}"},
        {{.pre_tokenizer = "{\"type\": \"Metaspace\"}"},
         0,
         "pre_tokenizer: expected Split by a Regex (Isolated), Digits, or ByteLevel without add_prefix_space, got {\"type\": \"Metaspace\"}"},
        {{.pre_tokenizer = "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\w+\"}, \"behavior\": \"Isolated\"}"},
         0,
         "expected a pattern that is known to mean the same to PCRE2, got an escape at byte 0 of '\\w+'"},
        {{.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": 5}"}, 0, "pretokenizers: expected a list, got 5"},
        {{.post_processor = "{\"type\": \"RobertaProcessing\"}"},
         0,
         "post_processor: expected ByteLevel, or TemplateProcessing with at most one token at each end, got {\"type\": \"RobertaProcessing\"}"},
        {{.added = "7"}, 0, "added_tokens: expected a list of tokens, got 7"},
        {{.added = "[{\"id\": 300}]"}, 0, "added_tokens: expected an id and a content, got {\"id\": 300}"},
        {{.added = "[{\"id\": -1, \"content\": \"a\"}]"},
         0,
         "added_tokens: expected an id and a content, got {\"id\": -1, \"content\": \"a\"}"},
        {{.added = "[{\"id\": 300, \"content\": \"a\", \"single_word\": true}]"},
         0,
         "added_tokens: expected a token without single_word, got {\"id\": 300, \"content\": \"a\", \"single_word\": true}"},
        {{.added = "[{\"id\": 300, \"content\": \"a\", \"normalized\": true}]", .normalizer = "{\"type\": \"NFC\"}"},
         0,
         "added_tokens: expected a token that is not normalized, beside NFC, got {\"id\": 300, \"content\": \"a\", \"normalized\": true}"},
        {{.added = "[{\"id\": 5, \"content\": \"x\"}]"}, 0, "expected one token for id 5, got two"},
        {{.vocab = "\"ab\": \"x\""}, 0, "model.vocab: \"ab\": expected an id below 16777216, got  \"x\""},
        {{.vocab = "\"ab\": 99999999"}, 0, "model.vocab: \"ab\": expected an id below 16777216, got  99999999"},
        {{.vocab = "\"ab\": 4"}, 0, "expected one token for id 4, got two"},
        {{.vocab = "\"ab\": 256, \"ab\": 257"}, 0, "expected tokens that differ, got the same bytes for the ids 256 and 257"},
        {{.merges = "[\"a b\", \"a b\"]"}, 0, "merges: number 1: expected a pair that no merge before has, got \"a b\""},
        {{.merges = "[\"a c\"]"}, 0, "merges: number 0: expected two tokens that are one token together, got \"a c\""},
        {{.merges = "[\"ab\"]"}, 0, "merges: number 0: expected two tokens, got \"ab\""},
        {{.merges = "[\"a b c\"]"}, 0, "merges: number 0: expected two tokens, got \"a b c\""},
        {{.merges = "[[\"a\"]]"}, 0, "merges: number 0: expected two tokens, got \"a \""},
        {{.merges = "[\" b\"]"}, 0, "merges: number 0: expected two tokens that are one token together, got \" b\""},
        {{.merges = "[5]"}, 0, NULL},
        {{.merges = "{}"}, 0, NULL},
        {{.more = ", \"model\": {}"}, 0, "expected \"model\" once, got it twice"},
        {{.more = ", \"added_tokens\": [], \"x\""}, 0, NULL},
        {{0}, 200, "expected ids below 200, the vocab_size of config.json, got 259"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_tokenizer *tokenizer = NULL;
        char expected[512];
        if (open_parts(rows[i].parts, rows[i].vocab_size, &tokenizer) != MICA_BAD_INPUT)
            fail_msg("row %zu was not refused as bad input", i);
        snprintf(expected, sizeof expected, "t.json: %s", otherwise(rows[i].message, ""));
        if (rows[i].message)
            assert_string_equal(error.message, expected);
        assert_memory_equal(error.message, "t.json: ", 8);
    }
    const mica_token_settings settings = {.bos_id = MICA_TOKEN_NONE};
    static const char *const texts[][2] = {
        {"", "t.json: byte 0: expected an object, got the end"},
        {"[]", "t.json: byte 0: expected an object, got array []"},
        {"{}", "t.json: model: expected an object, got absent"},
        {"{\"model\": {}} x", "t.json: byte 14: expected the end, got 'x'"},
        {"{\"model\": {}, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}}",
         "t.json: model.vocab: expected an object of tokens, got absent"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        mica_tokenizer *tokenizer = NULL;
        assert_int_equal(mica_tokenizer_from_json("t.json", texts[i][0], strlen(texts[i][0]), &settings, &tokenizer, &error),
                         MICA_BAD_INPUT);
        assert_string_equal(error.message, texts[i][1]);
    }
}

static void memory_runs_out_anywhere(void **state) {
    (void)state;
    const file_parts rows[] = {{.added = "[{\"id\": 262, \"content\": \"<s>\", \"special\": true}]", .normalizer = "{\"type\": \"NFC\"}"},
                               {.spaces = true, .added = ", {\"id\": 266, \"content\": \"<n>\", \"special\": true, \"normalized\": true}"},
                               {.spaces = true, .normalizer = "null", .pre_tokenizer = METASPACE("")}};
    const mica_token_settings settings = {.bos_id = MICA_TOKEN_NONE};
    static const char words[] = "ab<n> \xe2\x96\x81"
                                "e\xcc\x81";
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint64_t length;
        char *text = (rows[i].spaces ? make_spaces : make)(rows[i], &length);
        mica_tokenizer *tokenizer = accept(rows[i]);
        for (no_memory trial = {.may_do_without = true}; no_memory_next(&trial);) {
            mica_tokenizer *made = NULL;
            no_memory_begin(&trial);
            no_memory_end(&trial, mica_tokenizer_from_json("t.json", text, length, &settings, &made, &error), MICA_OK, &error);
            mica_tokenizer_close(made);
        }
        for (no_memory trial = {0}; no_memory_next(&trial);) {
            mica_token_list ids = {0};
            no_memory_begin(&trial);
            no_memory_end(&trial, mica_tokenizer_append(tokenizer, words, sizeof words - 1, true, &ids, &error), MICA_OK, &error);
            mica_token_list_release(&ids);
        }
        mica_tokenizer_close(tokenizer);
        mica_free(text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plain_file),
        cmocka_unit_test(merges_by_their_order),
        cmocka_unit_test(added_tokens),
        cmocka_unit_test(text_is_composed_where_it_says_so),
        cmocka_unit_test(pre_types),
        cmocka_unit_test(spaces_as_llama_2_has_them),
        cmocka_unit_test(spaces_as_metaspace_has_them),
        cmocka_unit_test(added_tokens_of_each_kind),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(memory_runs_out_anywhere),
    };
    return cmocka_run_group_tests_name("tokenizer_json", tests, NULL, NULL);
}
