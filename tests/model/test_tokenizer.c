/* test_tokenizer.c: tiny-k2's tokenizer against the ids its goldens have, merging against a naive one, special tokens, bytes that are no
 * UTF-8, patterns, and how what stands beside a vocabulary is refused. tests/interop/tokenizer.py has tiktoken itself. */
#include "model/tokenizer.h"

#include "base/json.h"
#include "base/no_memory.h"
#include "base/scratch.h"
#include "model/tokenizer_build.h"

#define TINY_K2 MICA_SOURCE_DIR "/models/tiny-k2"
#define KIMI_K2 MICA_SOURCE_DIR "/../shared/data/kimi-k2"

static mica_error error;

static mica_tokenizer *open_directory(const char *directory) {
    const mica_token_files files = {NULL, directory};
    mica_tokenizer *tokenizer = NULL;
    if (mica_tokenizer_open_files(&files, &tokenizer, &error) != MICA_OK)
        fail_msg("%s: %s", directory, error.message);
    return tokenizer;
}

static mica_token_list encode(const mica_tokenizer *tokenizer, const char *text, uint64_t length, bool special) {
    mica_token_list ids = {0};
    if (mica_tokenizer_append(tokenizer, text, length, special, &ids, &error) != MICA_OK)
        fail_msg("%s", error.message);
    return ids;
}

static void expect_ids(const mica_tokenizer *tokenizer, const char *text, bool special, const uint32_t *expected, uint64_t count) {
    mica_token_list ids = encode(tokenizer, text, strlen(text), special);
    assert_int_equal(ids.count, count);
    if (count > 0)
        assert_memory_equal(ids.ids, expected, count * sizeof *expected);
    mica_token_list_release(&ids);
}

/* ---- tiny-k2 */

/* golden.json's sequences: the text behind a bos. */
static void goldens_have_these_ids(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = open_directory(TINY_K2);
    json_t *golden, *sequence;
    const char *name;
    uint32_t compared = 0;
    assert_int_equal(mica_json_load(TINY_K2 "/golden/golden.json", 1 << 24, &golden, &error), MICA_OK);
    json_object_foreach(json_object_get(golden, "sequences"), name, sequence) {
        const char *text = json_string_value(json_object_get(sequence, "text"));
        const json_t *expected = json_object_get(sequence, "ids");
        if (!text)
            continue;
        mica_token_list ids = encode(tokenizer, text, strlen(text), false);
        assert_int_equal(ids.count + 1, json_array_size(expected));
        assert_int_equal(mica_tokenizer_roles(tokenizer)->bos, json_integer_value(json_array_get(expected, 0)));
        for (uint64_t i = 0; i < ids.count; i++)
            assert_int_equal(ids.ids[i], json_integer_value(json_array_get(expected, i + 1)));
        mica_token_list_release(&ids);
        compared++;
    }
    assert_true(compared >= 2);
    json_decref(golden);
    mica_tokenizer_close(tokenizer);
}

static void a_source_gives_the_same(void **state) {
    (void)state;
    mica_tensor_source *source;
    mica_tokenizer *tokenizer;
    assert_int_equal(mica_tensor_source_open(TINY_K2, &source, &error), MICA_OK);
    assert_int_equal(mica_tokenizer_open_source(source, &tokenizer, &error), MICA_OK);
    mica_tensor_source_close(source);
    expect_ids(tokenizer, "The capital of France is", false, (const uint32_t[]){367, 450, 267, 597, 2439, 300}, 6);
    mica_tokenizer_close(tokenizer);
}

static void roles_and_types(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = open_directory(TINY_K2);
    const mica_token_roles *roles = mica_tokenizer_roles(tokenizer);
    uint64_t length;
    assert_int_equal(mica_tokenizer_count(tokenizer), 4096);
    assert_int_equal(roles->bos, 3840);
    assert_int_equal(roles->eos, 3841);
    assert_int_equal(roles->unknown, 4094);
    assert_int_equal(roles->padding, 4095);
    assert_false(roles->add_bos);
    assert_true(mica_tokenizer_ends(tokenizer, 3841));
    assert_false(mica_tokenizer_ends(tokenizer, 3840));
    assert_int_equal(mica_tokenizer_special(tokenizer, "<|im_end|>"), 3842);
    assert_int_equal(mica_tokenizer_special(tokenizer, "<|im_en"), MICA_TOKEN_NONE);
    assert_int_equal(mica_tokenizer_type(tokenizer, 3839), MICA_TOKEN_NORMAL);
    assert_int_equal(mica_tokenizer_type(tokenizer, 3840), MICA_TOKEN_CONTROL);
    assert_int_equal(mica_tokenizer_type(tokenizer, 4096), MICA_TOKEN_UNUSED);
    assert_null(mica_tokenizer_bytes(tokenizer, 4096, &length));
    assert_memory_equal(mica_tokenizer_bytes(tokenizer, 3846, &length), "<|reserved_token_3846|>", 23);
    assert_int_equal(length, 23);
    assert_null(mica_tokenizer_chat_template(tokenizer));
    mica_tokenizer_close(tokenizer);
}

static void special_tokens_only_when_asked_for(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = open_directory(TINY_K2);
    expect_ids(tokenizer, "[BOS]The capital<|im_end|>", true, (const uint32_t[]){3840, 367, 450, 3842}, 4);
    expect_ids(tokenizer, "[EOS][EOS]", true, (const uint32_t[]){3841, 3841}, 2);
    mica_token_list ids = encode(tokenizer, "[BOS]The<|im_end|>", 18, false);
    for (uint64_t i = 0; i < ids.count; i++)
        assert_true(ids.ids[i] < 3840);
    mica_token_list_release(&ids);
    expect_ids(tokenizer, "", true, NULL, 0);
    mica_tokenizer_close(tokenizer);
}

/* Any bytes, with and without special tokens, come back. */
static void decoding_returns_the_bytes(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = open_directory(TINY_K2);
    static const char alphabet[] = "aAZ 19\n\r\t.'s\xc3\xa9\xe6\xbc\xa2\xff\x80\xf0\x9f\x98\x80<|im_end|>[BOS]\xe2\x82\0\xcc\x81";
    uint32_t random = 1;
    for (int round = 0; round < 3000; round++) {
        char text[200], *decoded;
        uint64_t length = round % sizeof text, bytes;
        for (uint64_t i = 0; i < length; i++) {
            random = random * 1664525 + 1013904223;
            text[i] = alphabet[(random >> 16) % (sizeof alphabet - 1)];
        }
        mica_token_list ids = encode(tokenizer, text, length, round % 2);
        assert_int_equal(mica_tokenizer_decode(tokenizer, ids.ids, ids.count, &decoded, &bytes, &error), MICA_OK);
        assert_int_equal(bytes, length);
        assert_memory_equal(decoded, text, length);
        mica_free(decoded);
        mica_token_list_release(&ids);
    }
    const uint32_t beyond[] = {5, 4096};
    char *decoded;
    uint64_t bytes;
    assert_int_equal(mica_tokenizer_decode(tokenizer, beyond, 2, &decoded, &bytes, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, TINY_K2 "/tiktoken.model: expected ids from 0 to 4095, got 4096");
    mica_tokenizer_close(tokenizer);
}

/* tiktoken's rule for bytes that are no UTF-8: from the first on all is one piece with the piece before; see encode_segment. */
static void bytes_that_are_no_text(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = open_directory(TINY_K2);
    static const struct {
        const char *text, *before; /* what is split as ever */
    } rows[] = {{"The capital\xff of", "The"},
                {"a \n \xe2\x82", "a"},
                {"\xff the", ""},
                {"The  \n\t\xc0x y z", "The"},
                {"1234\xed\xa0\x80", "123"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_token_list ids = encode(tokenizer, rows[i].text, strlen(rows[i].text), false);
        mica_token_list expected = encode(tokenizer, rows[i].before, strlen(rows[i].before), false);
        const char *rest = rows[i].text + strlen(rows[i].before);
        assert_int_equal(mica_piece_encode(tokenizer, rest, strlen(rest), &expected, &error), MICA_OK);
        assert_int_equal(ids.count, expected.count);
        assert_memory_equal(ids.ids, expected.ids, ids.count * sizeof *ids.ids);
        mica_token_list_release(&ids);
        mica_token_list_release(&expected);
    }
    mica_tokenizer_close(tokenizer);
}

static void a_stream_gives_whole_characters(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = open_directory(TINY_K2);
    mica_token_stream stream = MICA_TOKEN_STREAM_INIT;
    static const char text[] = "a\xf0\x9f\x98\x80\xe2\x82 \xc3";
    static const uint64_t ready[] = {1, 0, 0, 0, 4, 0, 0, 3, 0};
    const char *bytes;
    uint64_t length;
    mica_text all = MICA_TEXT_INIT;
    for (size_t i = 0; i < sizeof text - 1; i++) {
        assert_int_equal(mica_token_stream_push(&stream, tokenizer, tokenizer->byte_ids[(uint8_t)text[i]], &bytes, &length, &error),
                         MICA_OK);
        assert_int_equal(length, ready[i]);
        mica_text_append(&all, bytes, length);
    }
    mica_token_stream_flush(&stream, &bytes, &length);
    assert_int_equal(length, 1);
    mica_text_append(&all, bytes, length);
    assert_string_equal(all.bytes, text);
    mica_token_stream_flush(&stream, &bytes, &length);
    assert_int_equal(length, 0);
    assert_int_equal(mica_token_stream_push(&stream, tokenizer, 4096, &bytes, &length, &error), MICA_BAD_INPUT);
    mica_text_release(&all);
    mica_token_stream_release(&stream);
    mica_tokenizer_close(tokenizer);
}

/* ---- merging */

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

/* A tiktoken.model of all bytes and `more` tokens, each two earlier ones of few letters; some are not reachable by merging. */
static char *make_ranks(uint32_t more, uint32_t seed, uint64_t *length) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static char tokens[2560][64];
    mica_text text = MICA_TEXT_INIT;
    uint32_t count = 0;
    for (; count < 256 + more; count++) {
        bool is_new = count < 256;
        if (is_new)
            snprintf(tokens[count], sizeof tokens[0], "%c", (char)count);
        while (!is_new) {
            uint32_t left = next_random(&seed) % (count - 252), right = next_random(&seed) % (count - 252);
            left = left < 4 ? 'a' + left : left + 252;
            right = right < 4 ? 'a' + right : right + 252;
            is_new = strlen(tokens[left]) + strlen(tokens[right]) < sizeof tokens[0];
            if (is_new)
                strcat(strcpy(tokens[count], tokens[left]), tokens[right]);
            for (uint32_t i = 0; i < count && is_new; i++)
                is_new = strcmp(tokens[i], tokens[count]) != 0;
        }
        size_t bytes = count == 0 ? 1 : strlen(tokens[count]);
        for (size_t i = 0; i < bytes; i += 3) {
            uint8_t group[3] = {0};
            memcpy(group, tokens[count] + i, bytes - i < 3 ? bytes - i : 3);
            uint32_t bits = (uint32_t)group[0] << 16 | (uint32_t)group[1] << 8 | group[2];
            mica_text_printf(&text, "%c%c%c%c", digits[bits >> 18], digits[bits >> 12 & 63], bytes - i > 1 ? digits[bits >> 6 & 63] : '=',
                             bytes - i > 2 ? digits[bits & 63] : '=');
        }
        mica_text_printf(&text, " %u\n", count);
    }
    *length = text.length;
    return mica_text_take(&text);
}

/* The definition: of all neighbours whose bytes together are a token, those with the lowest id become it, the leftmost first. */
static uint32_t merge_naively(const mica_tokenizer *tokenizer, const char *piece, uint32_t length, uint32_t *ids) {
    uint32_t starts[1025], count = length;
    for (uint32_t i = 0; i <= length; i++)
        starts[i] = i;
    for (;;) {
        uint32_t best = UINT32_MAX, at = 0;
        for (uint32_t i = 0; i + 1 < count; i++) {
            uint32_t id = mica_bytes_table_find(&tokenizer->normal, tokenizer->names.bytes, tokenizer->spans, piece + starts[i],
                                                starts[i + 2] - starts[i]);
            if (id < best) {
                best = id;
                at = i;
            }
        }
        if (best == UINT32_MAX)
            break;
        memmove(starts + at + 1, starts + at + 2, (count - at - 1) * sizeof *starts);
        count--;
    }
    for (uint32_t i = 0; i < count; i++) {
        ids[i] = mica_bytes_table_find(&tokenizer->normal, tokenizer->names.bytes, tokenizer->spans, piece + starts[i],
                                       starts[i + 1] - starts[i]);
    }
    return count;
}

static void merging_is_as_defined(void **state) {
    (void)state;
    const mica_token_settings settings = {.bos_id = MICA_TOKEN_NONE};
    for (uint32_t seed = 1; seed <= 6; seed++) {
        uint64_t length;
        char *text = make_ranks(60 * seed * seed, seed, &length);
        mica_tokenizer *tokenizer = NULL;
        if (mica_tokenizer_from_ranks("x", text, length, &settings, &tokenizer, &error) != MICA_OK)
            fail_msg("%s", error.message);
        tokenizer->whole_pieces = false;
        uint32_t random = seed;
        for (int round = 0; round < 400; round++) {
            char piece[1024];
            uint32_t bytes = 1 + next_random(&random) % (round % 4 == 0 ? 1024 : 120), expected[1024];
            for (uint32_t i = 0; i < bytes; i++)
                piece[i] = (char)('a' + next_random(&random) % (round % 3 == 0 ? 2 : 5));
            mica_token_list ids = {0};
            assert_int_equal(mica_piece_encode(tokenizer, piece, bytes, &ids, &error), MICA_OK);
            uint32_t count = merge_naively(tokenizer, piece, bytes, expected);
            assert_int_equal(ids.count, count);
            assert_memory_equal(ids.ids, expected, count * sizeof *expected);
            mica_token_list_release(&ids);
        }
        mica_tokenizer_close(tokenizer);
        mica_free(text);
    }
}

/* A token that is left in three parts: no merge makes it, but a piece that is the whole of it becomes it, as with tiktoken. */
static void a_token_that_no_merge_makes(void **state) {
    (void)state;
    uint64_t length;
    char *bytes = make_ranks(0, 1, &length);
    mica_text text = MICA_TEXT_INIT;
    mica_text_puts(&text, bytes);
    mica_text_puts(&text, "YmM= 256\nY2Q= 257\nYWJjZA== 258\n"); /* bc, cd, abcd: a|bc|d stays three */
    mica_free(bytes);
    const mica_token_settings settings = {.bos_id = MICA_TOKEN_NONE};
    mica_tokenizer *tokenizer;
    assert_int_equal(mica_tokenizer_from_ranks("x", text.bytes, text.length, &settings, &tokenizer, &error), MICA_OK);
    assert_int_equal(tokenizer->merges.count, 2);
    assert_int_equal(mica_tokenizer_count(tokenizer), 259 + 256); /* no config.json: the reserved ids behind the ranks */
    expect_ids(tokenizer, "abcd", false, (const uint32_t[]){258}, 1);
    expect_ids(tokenizer, "abcda", false, (const uint32_t[]){'a', 256, 'd', 'a'}, 4);
    mica_tokenizer_close(tokenizer);
    mica_text_release(&text);
}

/* Of the real vocabulary docs/tokenizer.md says that every token has its merge, and that no special token begins another. */
static void kimis_vocabulary(void **state) {
    (void)state;
    if (!mica_path_is_directory(KIMI_K2)) {
        printf("skipped: %s is not there\n", KIMI_K2);
        skip();
    }
    mica_tokenizer *tokenizer = open_directory(KIMI_K2);
    assert_int_equal(mica_tokenizer_count(tokenizer), 163840);
    assert_int_equal(tokenizer->merges.count, 163328);
    for (uint32_t id = 163584; id < 163840; id++) {
        for (uint32_t other = 163584; other < 163840; other++) {
            mica_token_span a = tokenizer->spans[id], b = tokenizer->spans[other];
            const char *names = tokenizer->names.bytes;
            assert_false(id != other && a.length <= b.length && memcmp(names + a.start, names + b.start, a.length) == 0);
        }
    }
    mica_tokenizer_close(tokenizer);
}

/* A megabyte that nothing cuts: O(n²) would take hours. */
static void long_pieces_take_no_hours(void **state) {
    (void)state;
    mica_tokenizer *tokenizer = open_directory(TINY_K2);
    uint64_t length = 1 << 20;
    char *text = mica_malloc(length);
    assert_non_null(text);
    for (int kind = 0; kind < 3; kind++) {
        memset(text, kind == 0 ? 'a' : ' ', length);
        for (uint64_t i = 0; kind == 2 && i < length; i++)
            text[i] = "etaoin"[i * i % 6];
        mica_token_list ids = encode(tokenizer, text, length, false);
        uint64_t bytes = 0, token_bytes;
        for (uint64_t i = 0; i < ids.count; i++) {
            assert_non_null(mica_tokenizer_bytes(tokenizer, ids.ids[i], &token_bytes));
            bytes += token_bytes;
        }
        assert_int_equal(bytes, length);
        mica_token_list_release(&ids);
    }
    mica_free(text);
    mica_tokenizer_close(tokenizer);
}

/* ---- patterns */

static mica_status note_piece(void *context, const char *piece, uint64_t length, mica_error *failure) {
    (void)failure;
    mica_text_append(context, "|", 1);
    mica_text_append(context, piece, length);
    return MICA_OK;
}

static void expect_pieces(const mica_splitter *splitter, const char *text, const char *expected) {
    mica_text pieces = MICA_TEXT_INIT;
    assert_int_equal(mica_splitter_split(splitter, text, strlen(text), note_piece, &pieces, &error), MICA_OK);
    if (strcmp(pieces.bytes ? pieces.bytes : "", expected) != 0)
        fail_msg("'%s': expected '%s', got '%s'", text, expected, pieces.bytes ? pieces.bytes : "");
    mica_text_release(&pieces);
}

static void kimi_pieces(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"", ""},
        {"Hello world", "|Hello| world"},
        {"HTTPServer camelCase", "|HTTPServer| camel|Case"},
        {"don't DON'T I'LLx", "|don't| DON'T| I'LL|x"},
        {"12345 6", "|123|45| |6"},
        {"漢字かな漢", "|漢字|かな|漢"},
        {"、。a", "|、。|a"}, /* common to several scripts: not Han */
        {"a  b   \n c  ", "|a| | b|   \n| c|  "},
        {"x\xe1\xa0\x8ey", "|x|\xe1\xa0\x8ey"}, /* U+180E is no white space */
        {"a\xc2\x85 b", "|a|\xc2\x85| b"},      /* U+0085 is */
        {"wow!!!\r\n\r\nx", "|wow|!!!\r\n\r\n|x"},
        {"e\xcc\x81t", "|e\xcc\x81t"},
        {"\xc7\x85"
         "a",
         "|\xc7\x85"
         "a"},                            /* titlecase */
        {"x'\xc5\xbfy", "|x'\xc5\xbf|y"}, /* the long s folds to s */
        {"<|im_end|>", "|<||im|_end||>"},
    };
    mica_splitter splitter = {0};
    assert_int_equal(mica_splitter_make(&splitter, mica_split_row_find("kimi-k2"), &error), MICA_OK);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        expect_pieces(&splitter, rows[i][0], rows[i][1]);
    mica_splitter_release(&splitter);
    assert_null(mica_split_row_find("kimi"));
}

static void stages_cut_what_the_first_left(void **state) {
    (void)state;
    mica_splitter splitter = {0};
    assert_int_equal(mica_splitter_add(&splitter, "x", "\\p{N}{1,3}", &error), MICA_OK);
    assert_int_equal(mica_splitter_add(&splitter, "x", "[a-c]+", &error), MICA_OK);
    assert_int_equal(mica_splitter_add(&splitter, "x", "\\s*", &error), MICA_OK); /* may match nothing: that cuts nothing */
    expect_pieces(&splitter, "zab1234abz  y", "|z|ab|123|4|ab|z|  |y");
    mica_splitter_release(&splitter);
}

static void patterns_of_unsure_meaning_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *pattern, *why;
    } rows[] = {
        {"\\w+", "an escape at byte 0"},
        {"a\\b", "an escape at byte 1"},
        {"[\\S]", "an escape at byte 1"},
        {"\\p{Greek}", "an escape at byte 0"},
        {"\\", "an escape at byte 0"},
        {"[a&&b]", "a class in a class at byte 2"},
        {"[a[b]]", "a class in a class at byte 2"},
        {"(?<x>a)", "a group at byte 0"},
        {"a.b", "'.' at byte 1"},
        {"^a", "'^' at byte 0"},
        {"a++", "two quantifiers at byte 1"},
        {"\\p{L", "an escape at byte 0"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_splitter splitter = {0};
        char expected[256];
        snprintf(expected, sizeof expected, "x: expected a pattern that is known to mean the same to PCRE2, got %s of '%s'", rows[i].why,
                 rows[i].pattern);
        assert_int_equal(mica_splitter_add(&splitter, "x", rows[i].pattern, &error), MICA_BAD_INPUT);
        assert_string_equal(error.message, expected);
    }
    mica_splitter splitter = {0};
    assert_int_equal(mica_splitter_add(&splitter, "x", "(a", &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "x: expected a pattern, got '(a': missing closing parenthesis");
    for (int i = 0; i < MICA_SPLIT_STAGES_MAX; i++)
        assert_int_equal(mica_splitter_add(&splitter, "x", "a", &error), MICA_OK);
    assert_int_equal(mica_splitter_add(&splitter, "x", "a", &error), MICA_BAD_INPUT);
    mica_splitter_release(&splitter);
}

/* ---- the files beside it */

static void write_files(const char *tokenizer_config, const char *config, const char *generation_config, const char *template_file) {
    static const char *const names[] = {"tokenizer_config.json", "config.json", "generation_config.json", "chat_template.jinja"};
    const char *const texts[] = {tokenizer_config, config, generation_config, template_file};
    uint64_t length;
    char *ranks = make_ranks(0, 1, &length);
    mica_text text = MICA_TEXT_INIT;
    mica_text_append(&text, ranks, length);
    mica_text_puts(&text, "YWI= 256\n");
    scratch_write("tiktoken.model", text.bytes, text.length);
    mica_text_release(&text);
    mica_free(ranks);
    for (int i = 0; i < 4; i++) {
        unlink(scratch(names[i]));
        if (texts[i])
            scratch_write(names[i], texts[i], strlen(texts[i]));
    }
}

static void settings_are_taken_over(void **state) {
    (void)state;
    write_files(
        "{\"added_tokens_decoder\": {\"257\": {\"content\": \"[B]\", \"special\": true}, \"259\": {\"content\": \"<t>\", \"special\": false}},"
        "\"bos_token\": {\"content\": \"[B]\"}, \"eos_token\": \"ab\", \"pad_token\": null, \"unk_token\": \"\", \"add_bos_token\": true,"
        "\"model_max_length\": 1000000000000000019884624838656, \"chat_template\": [{\"name\": \"tool_use\", \"template\": \"x\"},"
        "{\"name\": \"default\", \"template\": \"y\"}]}",
        "{\"text_config\": {\"vocab_size\": 600, \"bos_token_id\": 5, \"eos_token_id\": [258, 260]}}", "{\"eos_token_id\": 259}", NULL);
    mica_tokenizer *tokenizer = open_directory(scratch_directory);
    const mica_token_roles *roles = mica_tokenizer_roles(tokenizer);
    assert_int_equal(mica_tokenizer_count(tokenizer), 600);
    assert_int_equal(roles->bos, 257); /* tokenizer_config.json before config.json */
    assert_int_equal(roles->eos, 256);
    assert_int_equal(roles->padding, MICA_TOKEN_NONE);
    assert_int_equal(roles->unknown, MICA_TOKEN_NONE);
    assert_true(roles->add_bos);
    for (uint32_t id = 0; id < 600; id++)
        assert_int_equal(mica_tokenizer_ends(tokenizer, id), id == 256 || (id >= 258 && id <= 260));
    assert_string_equal(mica_tokenizer_chat_template(tokenizer), "y");
    assert_int_equal(mica_tokenizer_type(tokenizer, 259), MICA_TOKEN_CONTROL);
    assert_int_equal(mica_tokenizer_type(tokenizer, 512), MICA_TOKEN_CONTROL); /* the last reserved one */
    assert_int_equal(mica_tokenizer_type(tokenizer, 513), MICA_TOKEN_UNUSED);
    expect_ids(tokenizer, "<t>ab<|reserved_token_300|>", true, (const uint32_t[]){259, 256, 300}, 3);
    mica_tokenizer_close(tokenizer);

    write_files("{\"chat_template\": \"x\"}", NULL, NULL, "from the file");
    tokenizer = open_directory(scratch_directory);
    assert_string_equal(mica_tokenizer_chat_template(tokenizer), "from the file");
    mica_tokenizer_close(tokenizer);
}

/* The longest special token counts, and one behind the other. */
static void special_tokens_that_begin_alike(void **state) {
    (void)state;
    write_files(
        "{\"added_tokens_decoder\": {\"257\": {\"content\": \"<a\"}, \"258\": {\"content\": \"<ab>\"}, \"259\": {\"content\": \"<ab>c\"}}}",
        NULL, NULL, NULL);
    mica_tokenizer *tokenizer = open_directory(scratch_directory);
    expect_ids(tokenizer, "<<ab<ab><ab>c<ab>cc", true, (const uint32_t[]){'<', 257, 'b', 258, 259, 259, 'c'}, 7);
    mica_tokenizer_close(tokenizer);
}

static void settings_that_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *tokenizer_config, *config, *generation_config, *message;
    } rows[] = {
        {"[]", NULL, NULL, "tokenizer_config.json: expected a JSON object, got an array"},
        {"{\"added_tokens_decoder\": []}", NULL, NULL, "tokenizer_config.json: added_tokens_decoder: expected an object of ids, got []"},
        {"{\"added_tokens_decoder\": {\"x\": {\"content\": \"a\"}}}", NULL, NULL,
         "tokenizer_config.json: added_tokens_decoder: expected ids, got \"x\""},
        {"{\"added_tokens_decoder\": {\"99999999\": {\"content\": \"a\"}}}", NULL, NULL,
         "tokenizer_config.json: added_tokens_decoder: expected ids, got \"99999999\""},
        {"{\"added_tokens_decoder\": {\"300\": {\"content\": 7}}}", NULL, NULL,
         "tokenizer_config.json: added_tokens_decoder: expected a token with its content, got {\"content\": 7.0}"},
        {"{\"added_tokens_decoder\": {\"5\": {\"content\": \"a\"}}}", NULL, NULL,
         "tokenizer_config.json: added_tokens_decoder: expected ids from 257 to 512, behind the ranks, got 5"},
        {"{\"added_tokens_decoder\": {\"513\": {\"content\": \"a\"}}}", NULL, NULL,
         "tokenizer_config.json: added_tokens_decoder: expected ids from 257 to 512, behind the ranks, got 513"},
        {"{\"added_tokens_decoder\": {\"300\": {\"content\": \"a\"}, \"301\": {\"content\": \"a\"}}}", NULL, NULL,
         "tiktoken.model: expected tokens that differ, got the same bytes for the ids 300 and 301"},
        {"{\"bos_token\": 1}", NULL, NULL, "tokenizer_config.json: bos_token: expected a token's text, got 1.0"},
        {"{\"bos_token\": \"[X]\"}", NULL, NULL, "tokenizer_config.json: bos_token: expected a token of the vocabulary, got \"[X]\""},
        {"{\"add_bos_token\": 1}", NULL, NULL, "tokenizer_config.json: add_bos_token: expected true or false, got 1.0"},
        {"{\"chat_template\": 1}", NULL, NULL, "tokenizer_config.json: chat_template: expected a text, got 1.0"},
        {NULL, "{\"vocab_size\": 256}", NULL, "tiktoken.model: expected at most 256 tokens, the vocab_size of config.json, got 257"},
        {NULL, "{\"vocab_size\": 0}", NULL, "config.json: vocab_size: expected a number from 1 to 16777215, got 0.0"},
        {NULL, "{\"vocab_size\": 300.5}", NULL, "config.json: vocab_size: expected a number from 1 to 16777215, got 300.5"},
        {NULL, "{\"vocab_size\": 300, \"eos_token_id\": 300}", NULL,
         "tiktoken.model: expected ids below the vocabulary's size, 300, got 300 in config.json"},
        {NULL, "{\"eos_token_id\": \"x\"}", NULL,
         "config.json: eos_token_id: expected the id of a token, or a list of at most 16, got \"x\""},
        {NULL, "{}", "{\"eos_token_id\": [1, -2]}",
         "generation_config.json: eos_token_id: expected the id of a token, or a list of at most 16, got [1.0, -2.0]"},
        {NULL, "{}", "{\"eos_token_id\": 513}",
         "tiktoken.model: expected ids below the vocabulary's size, 513, got 513 in generation_config.json"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const mica_token_files files = {NULL, scratch_directory};
        mica_tokenizer *tokenizer = NULL;
        char expected[512];
        write_files(rows[i].tokenizer_config, rows[i].config, rows[i].generation_config, NULL);
        snprintf(expected, sizeof expected, "%s/%s", scratch_directory, rows[i].message);
        assert_int_equal(mica_tokenizer_open_files(&files, &tokenizer, &error), MICA_BAD_INPUT);
        assert_string_equal(error.message, expected);
    }
}

static void vocabularies_that_are_refused(void **state) {
    (void)state;
    const mica_token_settings settings = {.bos_id = MICA_TOKEN_NONE};
    mica_tokenizer *tokenizer = NULL;
    static const char few[] = "YQ== 0\nYg== 1\n";
    assert_int_equal(mica_tokenizer_from_ranks("x", few, sizeof few - 1, &settings, &tokenizer, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "x: expected a token for every byte, got none for 0x00");
    static const char same[] = "YQ== 0\nYQ== 1\n";
    assert_int_equal(mica_tokenizer_from_ranks("x", same, sizeof same - 1, &settings, &tokenizer, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "x: expected tokens that differ, got the same bytes for the ids 0 and 1");
    const mica_token_files files = {NULL, MICA_SOURCE_DIR "/docs"};
    assert_int_equal(mica_tokenizer_open_files(&files, &tokenizer, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, MICA_SOURCE_DIR "/docs/tokenizer.json: expected it, or tiktoken.model, got neither");
}

static void memory_runs_out_anywhere(void **state) {
    (void)state;
    write_files("{\"added_tokens_decoder\": {\"257\": {\"content\": \"[B]\"}}, \"bos_token\": \"[B]\", \"chat_template\": \"x\"}",
                "{\"vocab_size\": 600}", NULL, NULL);
    const mica_token_files files = {NULL, scratch_directory};
    mica_tokenizer *tokenizer = NULL;
    for (no_memory trial = {.may_do_without = true}; no_memory_next(&trial);) { /* without memory to compile a pattern it is interpreted */
        tokenizer = NULL;
        no_memory_begin(&trial);
        no_memory_end(&trial, mica_tokenizer_open_files(&files, &tokenizer, &error), MICA_OK, &error);
        mica_tokenizer_close(tokenizer);
    }
    assert_int_equal(mica_tokenizer_open_files(&files, &tokenizer, &error), MICA_OK);
    char text[400];
    memset(text, 'a', sizeof text);
    memcpy(text, "ab [B]\xff", 7);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_token_list ids = {0};
        no_memory_begin(&trial);
        no_memory_end(&trial, mica_tokenizer_append(tokenizer, text, sizeof text, true, &ids, &error), MICA_OK, &error);
        mica_token_list_release(&ids);
    }
    mica_tokenizer_close(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goldens_have_these_ids),
        cmocka_unit_test(a_source_gives_the_same),
        cmocka_unit_test(roles_and_types),
        cmocka_unit_test(special_tokens_only_when_asked_for),
        cmocka_unit_test(decoding_returns_the_bytes),
        cmocka_unit_test(bytes_that_are_no_text),
        cmocka_unit_test(a_stream_gives_whole_characters),
        cmocka_unit_test(merging_is_as_defined),
        cmocka_unit_test(a_token_that_no_merge_makes),
        cmocka_unit_test(kimis_vocabulary),
        cmocka_unit_test(long_pieces_take_no_hours),
        cmocka_unit_test(kimi_pieces),
        cmocka_unit_test(stages_cut_what_the_first_left),
        cmocka_unit_test(patterns_of_unsure_meaning_are_refused),
        cmocka_unit_test(settings_are_taken_over),
        cmocka_unit_test(special_tokens_that_begin_alike),
        cmocka_unit_test(settings_that_are_refused),
        cmocka_unit_test(vocabularies_that_are_refused),
        cmocka_unit_test(memory_runs_out_anywhere),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, scratch_make, scratch_remove);
}
