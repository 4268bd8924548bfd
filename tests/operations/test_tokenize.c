/* test_tokenize.c: what `mica tokenize` prints in each of its forms, that its JSON keeps its schema, and which tokenizers of damaged
 * checkpoints are refused how. */
#include <mica/checkpoint.h>
#include <mica/tokenizer.h>

#include "base/scratch.h"
#include "operations/validate.h"

#define TINY_K2 MICA_SOURCE_DIR "/models/tiny-k2"
#define BAD MICA_SOURCE_DIR "/../shared/fixtures/public/bad/"

static mica_error error;

static void expect(const mica_tokenize_options *options, const char *expected, uint64_t expected_bytes, const char *json_part) {
    char *text = NULL, *json = NULL;
    uint64_t bytes = 0;
    if (mica_tokenize(TINY_K2, options, &text, &bytes, &json, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(bytes, expected_bytes);
    assert_memory_equal(text, expected, expected_bytes);
    if (validator_exists())
        assert_true(validates("tokenize.schema.json", json));
    assert_non_null(strstr(json, json_part));
    mica_string_free(text);
    mica_string_free(json);
}

static void forms(void **state) {
    (void)state;
    const mica_tokenize_options text = {.text = "The capital of France is", .text_bytes = 24};
    expect(&text, "367,450,267,597,2439,300\n", 25, "\"ids\": [367, 450, 267, 597, 2439, 300]");
    const mica_tokenize_options pieces = {.text = "The\n\xff\\", .text_bytes = 6, .pieces = true};
    expect(&pieces, "367\tThe\n198\t\\n\n187\t\\xff\n59\t\\\\\n", 30, "\"hex\": \"5468650aff5c\"");
    const mica_tokenize_options ids = {.ids = "367, 450\n267,"};
    expect(&ids, "The capital of", 14, "\"text\": \"The capital of\"");
    const mica_tokenize_options nul = {.text = "a\0b", .text_bytes = 3};
    expect(&nul, "64,188,65\n", 10, "\"hex\": \"610062\"");
    const mica_tokenize_options special = {.text = "[BOS]", .text_bytes = 5, .special = true};
    expect(&special, "3840\n", 5, "\"text\": \"[BOS]\"");
    const mica_tokenize_options nothing = {.text = "", .text_bytes = 0};
    expect(&nothing, "\n", 1, "\"ids\": []");
    const mica_tokenize_options no_ids = {.ids = ""};
    expect(&no_ids, "", 0, "\"text\": \"\"");
}

static void ids_that_are_none(void **state) {
    (void)state;
    static const struct {
        const char *ids, *message; /* message NULL: commas may stand together, as white space does */
    } rows[] = {
        {"1,x", "--ids: expected numbers with commas between them, got 'x'"},
        {"-1", "--ids: expected numbers with commas between them, got '-1'"},
        {"1,,2", NULL},
        {"99999999999", "--ids: expected ids below 4294967295, got '99999999999'"},
        {"7,4294967295,8", "--ids: expected ids below 4294967295, got '4294967295'"},
        {",1", "--ids: expected numbers with commas between them, got ',1'"},
        {"1;2", "--ids: expected numbers with commas between them, got '1;2'"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const mica_tokenize_options options = {.ids = rows[i].ids};
        char *text = NULL, *json = NULL;
        uint64_t bytes;
        mica_status status = mica_tokenize(TINY_K2, &options, &text, &bytes, &json, &error);
        assert_int_equal(status, rows[i].message ? MICA_USAGE : MICA_OK);
        if (rows[i].message)
            assert_string_equal(error.message, rows[i].message);
        mica_string_free(text);
        mica_string_free(json);
    }
}

static void damaged_tokenizers(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"tokenizer-bad-base64", "/tiktoken.model: line 41: expected a token in base64 and its rank, got \"!!!! 40\""},
        {"tokenizer-duplicate-rank", "/tiktoken.model: line 41: expected a rank of its own, got 39, which line 40 has"},
        {"shard-missing", NULL}, /* no tensor is needed */
    };
    if (!mica_path_is_directory(BAD)) {
        printf("skipped: %s is not there\n", BAD);
        skip();
    }
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char path[512], expected[1024];
        mica_tokenizer *tokenizer = NULL;
        snprintf(path, sizeof path, "%s%s", BAD, rows[i][0]);
        snprintf(expected, sizeof expected, "%s%s", path, rows[i][1] ? rows[i][1] : "");
        mica_status status = mica_tokenizer_open(path, &tokenizer, &error);
        assert_int_equal(status, rows[i][1] ? MICA_BAD_INPUT : MICA_OK);
        if (rows[i][1])
            assert_string_equal(error.message, expected);
        mica_tokenizer_close(tokenizer);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms),
        cmocka_unit_test(ids_that_are_none),
        cmocka_unit_test(damaged_tokenizers),
    };
    return cmocka_run_group_tests_name("tokenize", tests, NULL, NULL);
}
