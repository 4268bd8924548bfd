/* test_tokenizer_gguf.c: tiny-k2's vocabulary written as a GGUF has it, and read back: the same ids, types, merges and roles; and what
 * is refused of a vocabulary in a GGUF. tests/interop/tokenizer.py has llama.cpp read such a file. */
#include <math.h>

#include "base/no_memory.h"
#include "formats/gguf_bytes.h"
#include "model/byte_level.h"
#include "model/tokenizer_build.h"

#define TINY_K2 MICA_SOURCE_DIR "/models/tiny-k2"

static mica_error error;

static void put_array(mica_text *file, const char *key, mica_gguf_type type, uint64_t count) {
    put_key(file, key, MICA_GGUF_ARRAY);
    put(file, type, 4);
    put(file, count, 8);
}

static void put_bytes(mica_text *file, const char *bytes, uint64_t length) {
    put(file, length, 8);
    mica_text_append(file, bytes, length);
}

static mica_status read_back(const mica_text *file, mica_tokenizer **tokenizer) {
    mica_gguf gguf;
    if (mica_gguf_parse("x.gguf", (const uint8_t *)file->bytes, file->length, file->length, &gguf, &error) != MICA_OK)
        fail_msg("%s", error.message);
    mica_status status = mica_tokenizer_from_gguf(&gguf, tokenizer, &error);
    mica_gguf_release(&gguf);
    return status;
}

static void write_file(const mica_tokenizer *tokenizer, mica_text *file) {
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    assert_int_equal(mica_tokenizer_add_to_gguf(tokenizer, &metadata, &error), MICA_OK);
    assert_int_equal(mica_gguf_layout_make(NULL, 0, &metadata, 0, &layout, &error), MICA_OK);
    mica_text_append(file, layout.headers[0].bytes, layout.headers[0].length);
    mica_gguf_layout_release(&layout);
    mica_gguf_metadata_release(&metadata);
}

static void there_and_back(void **state) {
    (void)state;
    const mica_token_files files = {NULL, TINY_K2};
    mica_tokenizer *ours, *theirs;
    mica_text file = MICA_TEXT_INIT;
    assert_int_equal(mica_tokenizer_open_files(&files, &ours, &error), MICA_OK);
    assert_string_equal(mica_tokenizer_pre_type(ours), "kimi-k2");
    ours->chat_template = mica_strdup("a template");
    write_file(ours, &file);
    assert_int_equal(read_back(&file, &theirs), MICA_OK);
    assert_int_equal(theirs->count, ours->count);
    for (uint32_t id = 0; id < ours->count; id++) {
        assert_int_equal(theirs->types[id], ours->types[id]);
        assert_int_equal(theirs->spans[id].length, ours->spans[id].length);
        assert_memory_equal(theirs->names.bytes + theirs->spans[id].start, ours->names.bytes + ours->spans[id].start,
                            ours->spans[id].length);
    }
    mica_token_merge *our_merges, *their_merges;
    uint64_t our_count, their_count;
    assert_int_equal(mica_tokenizer_merges(ours, &our_merges, &our_count, &error), MICA_OK);
    assert_int_equal(mica_tokenizer_merges(theirs, &their_merges, &their_count, &error), MICA_OK);
    assert_int_equal(our_count, 3840 - 256);
    assert_int_equal(their_count, our_count);
    assert_memory_equal(our_merges, their_merges, our_count * sizeof *our_merges);
    mica_free(our_merges);
    mica_free(their_merges);
    assert_int_equal(theirs->roles.bos, 3840);
    assert_int_equal(theirs->roles.unknown, 4094);
    assert_int_equal(theirs->roles.padding, 4095);
    assert_true(mica_tokenizer_ends(theirs, 3841));
    assert_false(theirs->roles.add_bos);
    assert_string_equal(mica_tokenizer_chat_template(theirs), "a template");
    static const char text[] = "[BOS]The capital of <|im_end|>Fran\xc3\xa7"
                               "aise  \n12345 \xe6\xbc\xa2\xff\0x";
    for (int special = 0; special < 2; special++) {
        mica_token_list our_ids = {0}, their_ids = {0};
        assert_int_equal(mica_tokenizer_append(ours, text, sizeof text, special, &our_ids, &error), MICA_OK);
        assert_int_equal(mica_tokenizer_append(theirs, text, sizeof text, special, &their_ids, &error), MICA_OK);
        assert_int_equal(our_ids.count, their_ids.count);
        assert_memory_equal(our_ids.ids, their_ids.ids, our_ids.count * sizeof *our_ids.ids);
        mica_token_list_release(&our_ids);
        mica_token_list_release(&their_ids);
    }
    mica_text_release(&file);
    mica_tokenizer_close(ours);
    mica_tokenizer_close(theirs);
}

/* A small vocabulary with something changed. */
typedef struct small_vocabulary {
    const char *model, *pre, *extra_token, *merge;
    int types, extra_type;
    uint32_t bos;
} small_vocabulary;

static void put_small(mica_text *file, small_vocabulary small) {
    mica_text text = MICA_TEXT_INIT;
    put_start(file, 0, small.types ? 6 : 5);
    put_text(file, "tokenizer.ggml.model", small.model ? small.model : "gpt2");
    put_text(file, "tokenizer.ggml.pre", small.pre ? small.pre : "llama-bpe");
    put_array(file, "tokenizer.ggml.tokens", MICA_GGUF_STRING, 258);
    for (int byte = 0; byte < 256; byte++) {
        const char single = (char)byte;
        mica_text_clear(&text);
        mica_byte_level_write(&text, &single, 1);
        put_bytes(file, text.bytes, text.length);
    }
    put_string(file, "ab");
    put_string(file, small.extra_token ? small.extra_token : "<s>");
    put_array(file, "tokenizer.ggml.merges", MICA_GGUF_STRING, 1);
    put_string(file, small.merge ? small.merge : "a b");
    put_u32(file, "tokenizer.ggml.bos_token_id", small.bos);
    if (small.types)
        put_array(file, "tokenizer.ggml.token_type", MICA_GGUF_INT32, (uint64_t)small.types);
    for (int id = 0; id < small.types; id++)
        put(file, id == 257 ? (uint64_t)small.extra_type : MICA_TOKEN_NORMAL, 4);
    mica_text_release(&text);
}

static void small_vocabularies(void **state) {
    (void)state;
    mica_text file = MICA_TEXT_INIT;
    mica_tokenizer *tokenizer;
    put_small(&file, (small_vocabulary){.types = 258, .extra_type = MICA_TOKEN_USER_DEFINED, .bos = 257});
    assert_int_equal(read_back(&file, &tokenizer), MICA_OK);
    assert_true(mica_tokenizer_roles(tokenizer)->add_bos); /* llama-bpe, where the file does not say */
    mica_token_list ids = {0};
    assert_int_equal(mica_tokenizer_append(tokenizer, "ab<s>b", 6, false, &ids, &error), MICA_OK);
    assert_int_equal(ids.count, 3);
    assert_memory_equal(ids.ids, ((const uint32_t[]){256, 257, 'b'}), 12);
    mica_token_list_release(&ids);
    mica_tokenizer_close(tokenizer);
    mica_text_clear(&file);
    put_small(&file,
              (small_vocabulary){.pre = "qwen2", .bos = 257, .extra_token = "\xe6\xbc\xa2"}); /* no types: all normal, this one no bytes */
    assert_int_equal(read_back(&file, &tokenizer), MICA_OK);
    assert_int_equal(mica_tokenizer_type(tokenizer, 257), MICA_TOKEN_UNUSED);
    assert_true(tokenizer->compose);
    mica_tokenizer_close(tokenizer);
    mica_text_release(&file);
}

static void what_is_refused(void **state) {
    (void)state;
    static const struct {
        small_vocabulary small;
        const char *message;
    } rows[] = {
        {{.model = "bert"}, "x.gguf: key tokenizer.ggml.model: expected gpt2 or llama, got bert"},
        {{.pre = "tekken"},
         "x.gguf: key tokenizer.ggml.pre: expected kimi-k2, deepseek-v3, deepseek-llm, llama-bpe, qwen2 or gpt-2, got tekken"},
        {{.bos = 258}, "x.gguf: key tokenizer.ggml.bos_token_id: expected an id below 258, got 258"},
        {{.merge = "a c"}, "x.gguf: merges: number 0: expected two tokens that are one token together, got \"a c\""},
        {{.merge = "ab"}, "x.gguf: merges: number 0: expected two tokens that are one token together, got \"ab \""},
        {{.merge = ""}, "x.gguf: merges: number 0: expected two tokens that are one token together, got \" \""},
        {{.types = 257}, "x.gguf: key tokenizer.ggml.token_type: expected one for each of 258 tokens, got 257"},
        {{.types = 258, .extra_type = 7}, "x.gguf: key tokenizer.ggml.token_type: id 257: expected 1 to 6, got 7"},
        {{.types = 258, .extra_type = -1}, "x.gguf: key tokenizer.ggml.token_type: id 257: expected 1 to 6, got -1"},
        {{.extra_token = "ab"}, "x.gguf: expected tokens that differ, got the same bytes for the ids 256 and 257"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_text file = MICA_TEXT_INIT;
        mica_tokenizer *tokenizer;
        put_small(&file, rows[i].small);
        assert_int_equal(read_back(&file, &tokenizer), MICA_BAD_INPUT);
        assert_string_equal(error.message, rows[i].message);
        mica_text_release(&file);
    }
    mica_text file = MICA_TEXT_INIT;
    mica_tokenizer *tokenizer;
    put_start(&file, 0, 1);
    put_text(&file, "general.architecture", "llama");
    assert_int_equal(read_back(&file, &tokenizer), MICA_BAD_INPUT);
    assert_string_equal(error.message, "x.gguf: key tokenizer.ggml.model: expected string, got absent");
    mica_text_release(&file);
}

/* SentencePiece: 259 tokens as they always are, then U+2581 a, a, b, ab, U+2581 ab. NULL: what a plain one has. */
static void put_scores(mica_text *file, const char *byte_0, const char *last, float last_score, uint32_t score_count) {
    static const char *const pieces[] = {"\xe2\x96\x81", "a", "b", "ab"};
    char name[8];
    put_start(file, 0, 5);
    put_text(file, "tokenizer.ggml.model", "llama");
    put_array(file, "tokenizer.ggml.tokens", MICA_GGUF_STRING, 264);
    put_string(file, "<unk>");
    put_string(file, "<s>");
    put_string(file, "</s>");
    for (int byte = 0; byte < 256; byte++) {
        snprintf(name, sizeof name, "<0x%02X>", byte);
        put_string(file, byte == 0 && byte_0 ? byte_0 : name);
    }
    for (int i = 0; i < 4; i++)
        put_string(file, pieces[i]);
    put_string(file, last ? last
                          : "\xe2\x96\x81"
                            "ab");
    put_array(file, "tokenizer.ggml.token_type", MICA_GGUF_INT32, 264);
    for (int id = 0; id < 264; id++)
        put(file, id == 0 ? MICA_TOKEN_UNKNOWN : id < 3 ? MICA_TOKEN_CONTROL : id < 259 ? MICA_TOKEN_BYTE : MICA_TOKEN_NORMAL, 4);
    put_array(file, "tokenizer.ggml.scores", MICA_GGUF_FLOAT32, score_count);
    for (uint32_t id = 0; id < score_count; id++) {
        float score = id == 263 ? last_score : -(float)id;
        uint32_t bits;
        memcpy(&bits, &score, 4);
        put(file, bits, 4);
    }
    put_u32(file, "tokenizer.ggml.bos_token_id", 1);
}

static void scores(void **state) {
    (void)state;
    mica_text file = MICA_TEXT_INIT;
    mica_tokenizer *tokenizer;
    put_scores(&file, NULL, NULL, -300, 264);
    assert_int_equal(read_back(&file, &tokenizer), MICA_OK);
    static const char text[] = "ab<s>b \xff\xe6\xbc\xa2";
    mica_token_list ids = {0};
    assert_int_equal(mica_tokenizer_append(tokenizer, text, sizeof text - 1, true, &ids, &error), MICA_OK);
    static const uint32_t expected[] = {263, 1, 259, 261, 259, 3 + 0xff, 3 + 0xe6, 3 + 0xbc, 3 + 0xa2};
    assert_int_equal(ids.count, sizeof expected / sizeof *expected);
    assert_memory_equal(ids.ids, expected, sizeof expected);
    char *bytes;
    uint64_t length;
    assert_int_equal(mica_tokenizer_decode(tokenizer, ids.ids, ids.count, &bytes, &length, &error), MICA_OK);
    assert_string_equal(bytes, "ab<s> b \xff\xe6\xbc\xa2"); /* the space before the text is left out again, that behind <s> is not */
    mica_free(bytes);
    mica_token_list_release(&ids);
    assert_true(mica_tokenizer_roles(tokenizer)->add_bos);
    assert_null(mica_tokenizer_pre_type(tokenizer));
    mica_tokenizer_close(tokenizer);
    static const struct {
        const char *byte_0, *last;
        float last_score;
        uint32_t count;
        const char *message;
    } rows[] = {
        {"<0xG0>", NULL, 0, 264, "x.gguf: key tokenizer.ggml.tokens: id 3: expected a byte as <0xXX>, got <0xG0>"},
        {"<0x01>", NULL, 0, 264, "x.gguf: expected a token for every byte, got none for 0x00"},
        {NULL, "ab", 0, 264, "x.gguf: expected tokens that differ, got the same bytes for the ids 262 and 263"},
        {NULL, NULL, NAN, 264, "x.gguf: key tokenizer.ggml.scores: id 263: expected a number, got NaN"},
        {NULL, NULL, 0, 263, "x.gguf: expected a type and a score for each of 264 tokens, got 264 and 263"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_text_clear(&file);
        put_scores(&file, rows[i].byte_0, rows[i].last, rows[i].last_score, rows[i].count);
        assert_int_equal(read_back(&file, &tokenizer), MICA_BAD_INPUT);
        assert_string_equal(error.message, rows[i].message);
    }
    mica_gguf gguf;
    mica_text_clear(&file);
    put_scores(&file, NULL, NULL, -300, 264);
    assert_int_equal(mica_gguf_parse("x.gguf", (const uint8_t *)file.bytes, file.length, file.length, &gguf, &error), MICA_OK);
    for (no_memory trial = {.may_do_without = true}; no_memory_next(&trial);) {
        tokenizer = NULL;
        no_memory_begin(&trial);
        no_memory_end(&trial, mica_tokenizer_from_gguf(&gguf, &tokenizer, &error), MICA_OK, &error);
        mica_tokenizer_close(tokenizer);
    }
    mica_gguf_release(&gguf);
    mica_text_release(&file);
}

static mica_tokenizer *from_json(const char *json, uint64_t length) {
    const mica_token_settings settings = {.bos_id = MICA_TOKEN_NONE};
    mica_tokenizer *tokenizer = NULL;
    if (mica_tokenizer_from_json("t.json", json, length, &settings, &tokenizer, &error) != MICA_OK)
        fail_msg("%s", error.message);
    return tokenizer;
}

static void expect_same_ids(const mica_tokenizer *left, const mica_tokenizer *right) {
    static const char *const texts[] = {"ab a b", "  aab<s>b</s> <unk>", "", "\xff\xe6\xbc\xa2 ab", ("\xe2\x96\x81" "ab")};
    for (size_t i = 0; i < 2 * sizeof texts / sizeof *texts; i++) {
        mica_token_list ids[2] = {{0}, {0}};
        assert_int_equal(mica_tokenizer_append(left, texts[i / 2], strlen(texts[i / 2]), i % 2, &ids[0], &error), MICA_OK);
        assert_int_equal(mica_tokenizer_append(right, texts[i / 2], strlen(texts[i / 2]), i % 2, &ids[1], &error), MICA_OK);
        assert_int_equal(ids[0].count, ids[1].count);
        if (ids[0].count > 0)
            assert_memory_equal(ids[0].ids, ids[1].ids, ids[0].count * sizeof *ids[0].ids);
        mica_token_list_release(&ids[0]);
        mica_token_list_release(&ids[1]);
    }
}

/* Scores as merges in a tokenizer.json, and those as scores again (tests/interop/scores_written.py: tokenizers, llama.cpp). */
static void scores_and_merges(void **state) {
    (void)state;
    for (int prefix = 0; prefix < 2; prefix++) {
        mica_text file = MICA_TEXT_INIT, again = MICA_TEXT_INIT, note = MICA_TEXT_INIT;
        mica_tokenizer *scored, *merged, *back;
        char *json;
        uint64_t length;
        put_scores(&file, NULL, NULL, prefix ? -300 : -262, 264);
        assert_int_equal(read_back(&file, &scored), MICA_OK);
        scored->spaces.before = scored->spaces.left_out = prefix;
        scored->roles.unknown = 0;
        assert_int_equal(mica_tokenizer_shared_ranks(scored), !prefix); /* "ab" has -262 too */
        assert_int_equal(mica_tokenizer_write(scored, &json, &length, &error), MICA_OK);
        merged = from_json(json, length);
        assert_true(merged->characters && merged->spaces.before == prefix && merged->spaces.left_out == prefix &&
                    merged->spaces.normalized);
        assert_true(merged->roles.bos == 1 && merged->roles.add_bos && merged->roles.unknown == 0);
        expect_same_ids(scored, merged);
        assert_int_equal(mica_tokenizer_gguf_note(merged, &note, &error), MICA_OK);
        assert_int_equal(note.length, 0);
        write_file(merged, &again);
        assert_int_equal(read_back(&again, &back), MICA_OK);
        expect_same_ids(scored, back);
        for (uint32_t id = 0; id < back->count; id++)
            assert_int_equal(back->types[id], scored->types[id]);
        assert_int_equal(mica_tokenizer_shared_ranks(back), 0);
        mica_tokenizer_close(back);
        mica_tokenizer_close(merged);
        mica_tokenizer_close(scored);
        mica_free(json);
        mica_text_release(&file);
        mica_text_release(&again);
        mica_text_release(&note);
    }
}

/* What scores cannot say is refused, or told. */
static void what_scores_cannot_say(void **state) {
    (void)state;
    static const char found[] = "\"merges\":";
    mica_text file = MICA_TEXT_INIT, text = MICA_TEXT_INIT, note = MICA_TEXT_INIT;
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_tokenizer *tokenizer;
    char *json;
    uint64_t length;
    put_scores(&file, NULL, NULL, -300, 264);
    assert_int_equal(read_back(&file, &tokenizer), MICA_OK);
    assert_int_equal(mica_tokenizer_write(tokenizer, &json, &length, &error), MICA_OK);
    mica_tokenizer_close(tokenizer);
    char *merges = strstr(json, found);
    assert_non_null(merges);
    mica_text_append(&text, json, (size_t)(merges - json));
    mica_text_puts(&text, "\"merges\": [\"a b\"]}}"); /* "▁ab" is made by none */
    tokenizer = from_json(text.bytes, text.length);
    assert_int_equal(mica_tokenizer_gguf_note(tokenizer, &note, &error), MICA_OK);
    assert_string_equal(note.bytes, "; 1 tokens that no merge makes come of their scores");
    mica_tokenizer_close(tokenizer);
    tokenizer = from_json(json, length);
    tokenizer->spaces.word_start = MICA_WORD_START_FIRST;
    tokenizer->added[1] |= MICA_ADDED_STRIPS_RIGHT;
    mica_text_clear(&note);
    assert_int_equal(mica_tokenizer_gguf_note(tokenizer, &note, &error), MICA_OK);
    assert_string_equal(note.bytes, "; a space is put before every text, also one that begins with a space or stands behind a special token"
                                    "; 1 added tokens leave the white space beside them");
    tokenizer->whole_pieces = true;
    assert_int_equal(mica_tokenizer_add_to_gguf(tokenizer, &metadata, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "t.json: model.ignore_merges: expected false, since GGUF's scores know no such thing, got true");
    tokenizer->whole_pieces = false;
    tokenizer->spaces.words = true;
    write_file(tokenizer, &file); /* no merge joins words */
    tokenizer->names.bytes[tokenizer->spans[262].start + 1] = ' ';
    assert_int_equal(mica_tokenizer_add_to_gguf(tokenizer, &metadata, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "t.json: pre_tokenizer: expected a Metaspace that does not split, where merges join words (GGUF's "
                                       "scores cut nothing), got one that does, and the token \"a \"");
    mica_tokenizer_close(tokenizer);
    mica_gguf_metadata_release(&metadata);
    mica_free(json);
    mica_text_release(&file);
    mica_text_release(&text);
    mica_text_release(&note);
}

/* Patterns that GGUF has no name for. */
static void no_name_for_it(void **state) {
    (void)state;
    const mica_token_files files = {NULL, TINY_K2};
    mica_tokenizer *tokenizer;
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    assert_int_equal(mica_tokenizer_open_files(&files, &tokenizer, &error), MICA_OK);
    tokenizer->pre_type = NULL;
    assert_int_equal(mica_tokenizer_add_to_gguf(tokenizer, &metadata, &error), MICA_BAD_INPUT);
    assert_string_equal(
        error.message,
        TINY_K2 "/tiktoken.model: expected a way to cut text that GGUF has a name for (tokenizer.ggml.pre), got patterns of another");
    mica_gguf_metadata_release(&metadata);
    mica_tokenizer_close(tokenizer);
}

/* Read, written as GGUF and as tokenizer.json. */
static void memory_runs_out_anywhere(void **state) {
    (void)state;
    for (int scored = 0; scored < 2; scored++) {
        mica_text file = MICA_TEXT_INIT;
        mica_gguf gguf;
        if (scored)
            put_scores(&file, NULL, NULL, -300, 264);
        else
            put_small(&file, (small_vocabulary){.types = 258, .extra_type = MICA_TOKEN_CONTROL, .bos = 257});
        assert_int_equal(mica_gguf_parse("x.gguf", (const uint8_t *)file.bytes, file.length, file.length, &gguf, &error), MICA_OK);
        for (no_memory trial = {.may_do_without = true}; no_memory_next(&trial);) {
            mica_tokenizer *tokenizer = NULL;
            mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
            mica_text note = MICA_TEXT_INIT;
            char *json = NULL;
            uint64_t length;
            no_memory_begin(&trial);
            mica_status status = mica_tokenizer_from_gguf(&gguf, &tokenizer, &error);
            if (status == MICA_OK)
                status = mica_tokenizer_add_to_gguf(tokenizer, &metadata, &error);
            if (status == MICA_OK)
                status = mica_tokenizer_gguf_note(tokenizer, &note, &error);
            if (status == MICA_OK)
                status = mica_tokenizer_write(tokenizer, &json, &length, &error);
            no_memory_end(&trial, status, MICA_OK, &error);
            mica_gguf_metadata_release(&metadata);
            mica_text_release(&note);
            mica_free(json);
            mica_tokenizer_close(tokenizer);
        }
        mica_gguf_release(&gguf);
        mica_text_release(&file);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back), cmocka_unit_test(small_vocabularies),       cmocka_unit_test(what_is_refused),
        cmocka_unit_test(scores),         cmocka_unit_test(scores_and_merges),        cmocka_unit_test(what_scores_cannot_say),
        cmocka_unit_test(no_name_for_it), cmocka_unit_test(memory_runs_out_anywhere),
    };
    return cmocka_run_group_tests_name("tokenizer_gguf", tests, NULL, NULL);
}
