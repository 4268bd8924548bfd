/* The cursor against jansson: what one takes the other takes, and strings and integers come out the same. */
#include "formats/json_cursor.h"

#include <jansson.h>

#include "base/scratch.h"

static mica_error error;

static mica_json_cursor cursor_over(const char *bytes, size_t length) {
    error.message[0] = 0;
    return (mica_json_cursor){.bytes = bytes, .length = length, .error = &error};
}

static bool we_accept(const char *bytes, size_t length) {
    mica_json_cursor cursor = cursor_over(bytes, length);
    mica_cursor_skip(&cursor);
    mica_cursor_end(&cursor);
    assert_int_equal(cursor.status == MICA_OK, error.message[0] == 0);
    return cursor.status == MICA_OK;
}

/* Jansson refuses numbers that no double or long long holds; grammar does not. *number tells that. */
static bool jansson_accepts(const char *bytes, size_t length, bool *number) {
    json_error_t failure = {0};
    if (memchr(bytes, 0, length)) { /* jansson 2.14 overlooks a NUL byte right after a number */
        *number = false;
        return false;
    }
    json_t *value = json_loadb(bytes, length, JSON_DECODE_ANY | JSON_ALLOW_NUL, &failure);
    *number = !value && json_error_code(&failure) == json_error_numeric_overflow;
    json_decref(value);
    return value != NULL;
}

static void compare(const char *bytes, size_t length) {
    char *exact = malloc(length ? length : 1); /* so that a sanitizer sees a read past the end */
    bool number;
    memcpy(exact, bytes, length);
    bool theirs = jansson_accepts(exact, length, &number), ours = we_accept(exact, length);
    if (!number && ours != theirs)
        fail_msg("%.*s: jansson %s it, the cursor does not agree: %s", (int)length, bytes, theirs ? "takes" : "refuses", error.message);
    free(exact);
}

static const char *const texts[] = {
    "",          " ",         "null",      "true",      "false",        "nul",       "truee",      "NaN",       "Infinity",    "-",
    "0",         "-0",        "00",        "01",        "-01",          "1.",        ".5",         "1.5",       "1e5",         "1E+05",
    "1e",        "1e+",       "+1",        "0x10",      "1 2",          "\"\"",      "\"a",        "'a'",       "\"\\u0041\"", "\"\\u00\"",
    "[]",        "[",         "]",         "[1,]",      "[,1]",         "[1 2]",     "[1,2]",      "[[[]]]",    "[1}",         "{}",
    "{",         "}",         "{,}",       "{\"a\"}",   "{\"a\":}",     "{\"a\":1}", "{\"a\":1,}", "{a:1}",     "{1:1}",
          "{\"a\" : [ 1 , {} ] }",
    "\"\t\"",    "\"\x7f\"",  "\"\\t\"",   "\"\\a\"",   "\"\\u0000\"",  "\"\\ud83d\\ude00\"", "\"\\ud83d\"", "\"\\ude00\"",
    "\"\\ud83dx\"", "\"\\uD83D\\u0041\"",
    "\"\xc3\xa9\"", "\"\xc3\"", "\"\xe2\x82\xac\"", "\"\xed\xa0\x80\"", "\"\xf0\x9f\x98\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xc0\x80\"",
    "\"\xff\"", "/* c */1", "1//",
};

static void test_agrees_with_jansson(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        compare(texts[i], strlen(texts[i]));
}

/* The same over many small changes of one text that has everything. */
static void test_agrees_after_mutation(void **state) {
    (void)state;
    static const char good[] = "{\"a\\u00e9\\n\":[1,-2.5e+3,true,null,false,{}],"
                               "\"\xc3\xa9\xf0\x9f\x98\x80\":{\"b\":\"\\ud83d\\ude00\\\\\"},\"c\":[[],0]}";
    static const char alphabet[] = "{}[],:\"\\u0dD8cE19-+. \n\x00\x80\xc3\xa9\xff" "tfnrlse";
    uint64_t random = 88172645463325252u;
    int accepted = 0;
    for (int i = 0; i < 60000; i++) {
        char text[sizeof good];
        memcpy(text, good, sizeof good);
        size_t length = sizeof good - 1;
        for (int j = 0; j <= i % 3; j++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            size_t at = (random >> 8) % length;
            if (random % 4 == 0) { /* take a byte out, else change one */
                memmove(text + at, text + at + 1, --length - at);
            } else {
                text[at] = alphabet[(random >> 32) % (sizeof alphabet - 1)];
            }
        }
        compare(text, length);
        accepted += we_accept(text, length);
    }
    assert_true(accepted > 1000 && accepted < 50000);
}

static void test_strings(void **state) {
    (void)state;
    static const char *const strings[] = {"\"\"", "\"plain\"", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
        "\"\\u0041\\u00e9\\u20ac\\uffff\\ud800\\udc00\\udbff\\udfff\"",
                                          " \n\"\xc3\xa9 \xf0\x9f\x98\x80\""};
    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++) {
        mica_text text = MICA_TEXT_INIT;
        mica_json_cursor cursor = cursor_over(strings[i], strlen(strings[i]));
        json_t *value = json_loads(strings[i], JSON_DECODE_ANY, NULL);
        mica_cursor_string(&cursor, &text);
        mica_cursor_end(&cursor);
        assert_int_equal(cursor.status, MICA_OK);
        assert_non_null(value);
        assert_int_equal(text.length, json_string_length(value));
        assert_string_equal(text.bytes, json_string_value(value));
        json_decref(value);
        mica_text_release(&text);
    }
}

static void test_integers(void **state) {
    (void)state;
    const char *text = " [0, 7 ,18446744073709551615,9223372036854775808]";
    uint64_t values[3] = {9, 9, 9}, count;
    mica_json_cursor cursor = cursor_over(text, strlen(text));
    mica_cursor_integers(&cursor, values, 3, &count);
    mica_cursor_end(&cursor);
    assert_int_equal(cursor.status, MICA_OK);
    assert_int_equal(count, 4); /* all are counted, three are kept */
    assert_true(values[0] == 0 && values[1] == 7 && values[2] == UINT64_MAX);
    static const char *const bad[] = {"[18446744073709551616]", "[99999999999999999999999]", "[-1]", "[1.0]", "[1e3]", "[\"1\"]",
        "[[1]]", "[null]", "7"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cursor = cursor_over(bad[i], strlen(bad[i]));
        mica_cursor_integers(&cursor, values, 3, &count);
        assert_int_equal(cursor.status, MICA_BAD_INPUT);
        assert_non_null(strstr(error.message, bad[i]));
    }
}

/* Sixty-four levels are read, sixty-five are not; the first failure stays. */
static void test_depth_and_stickiness(void **state) {
    (void)state;
    char text[160];
    for (size_t depth = MICA_CURSOR_DEPTH; depth <= MICA_CURSOR_DEPTH + 1; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        assert_int_equal(we_accept(text, 2 * depth), depth == MICA_CURSOR_DEPTH);
    }
    mica_json_cursor cursor = cursor_over("[1]", 3);
    mica_cursor_string(&cursor, NULL);
    char first[sizeof error.message];
    strcpy(first, error.message);
    uint64_t count = 0;
    assert_false(mica_cursor_enter(&cursor, '['));
    assert_false(mica_cursor_next(&cursor, '[', &count));
    mica_cursor_skip(&cursor);
    mica_cursor_end(&cursor);
    mica_cursor_refuse(&cursor, "anything");
    assert_string_equal(error.message, first);
    assert_non_null(strstr(first, "byte 0: expected a string, got array [1]"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_with_jansson), cmocka_unit_test(test_agrees_after_mutation), cmocka_unit_test(test_strings),
        cmocka_unit_test(test_integers),            cmocka_unit_test(test_depth_and_stickiness),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
