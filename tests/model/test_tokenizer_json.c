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

static mica_status open_parts(file_parts parts, uint64_t vocab_size, mica_tokenizer **tokenizer) {
    const mica_token_settings settings = {.vocab_size = vocab_size, .bos_id = MICA_TOKEN_NONE};
    uint64_t length;
    char *text = make(parts, &length), *exact = mica_malloc(length); /* without a NUL, so that a sanitizer sees a read behind the end */
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

static void what_is_refused(void **state) {
    (void)state;
    static const struct {
        file_parts parts;
        uint64_t vocab_size;
        const char *message;
    } rows[] = {
        {{.kind = "\"type\": \"Unigram\""}, 0, "model.type: expected \"BPE\", got \"Unigram\""},
        {{.kind = "\"dropout\": 0.1"}, 0, "model.dropout: expected null, got 0.1"},
        {{.kind = "\"byte_fallback\": true"}, 0, "model.byte_fallback: expected false, as in a byte-level BPE, got true"},
        {{.kind = "\"end_of_word_suffix\": \"</w>\""}, 0, "end_of_word_suffix: expected null, as in a byte-level BPE, got \"</w>\""},
        {{.normalizer = "{\"type\": \"Lowercase\"}"}, 0, "normalizer: expected nothing or NFC, got {\"type\": \"Lowercase\"}"},
        {{.decoder = "{\"type\": \"WordPiece\"}"}, 0, "decoder: expected ByteLevel, got {\"type\": \"WordPiece\"}"},
        {{.pre_tokenizer = "null"}, 0, "pre_tokenizer: expected one that ends in ByteLevel: only byte-level BPE is read, got null"},
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
        {{.added = "[{\"id\": 300, \"content\": \"a\", \"lstrip\": true}]"},
         0,
         "added_tokens: expected a token without lstrip, rstrip and single_word, got {\"id\": 300, \"content\": \"a\", \"lstrip\": true}"},
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
    const file_parts parts = {.added = "[{\"id\": 262, \"content\": \"<s>\", \"special\": true}]", .normalizer = "{\"type\": \"NFC\"}"};
    const mica_token_settings settings = {.bos_id = MICA_TOKEN_NONE};
    uint64_t length;
    char *text = make(parts, &length);
    for (no_memory trial = {.may_do_without = true}; no_memory_next(&trial);) {
        mica_tokenizer *tokenizer = NULL;
        no_memory_begin(&trial);
        no_memory_end(&trial, mica_tokenizer_from_json("t.json", text, length, &settings, &tokenizer, &error), MICA_OK, &error);
        mica_tokenizer_close(tokenizer);
    }
    mica_free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plain_file),
        cmocka_unit_test(merges_by_their_order),
        cmocka_unit_test(added_tokens),
        cmocka_unit_test(text_is_composed_where_it_says_so),
        cmocka_unit_test(pre_types),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(memory_runs_out_anywhere),
    };
    return cmocka_run_group_tests_name("tokenizer_json", tests, NULL, NULL);
}
