/* The growing string and the UTF-8 check. */
#include "base/text.h"

#include "base/scratch.h"

static void it_grows_and_stays_terminated(void **state) {
    (void)state;
    mica_text text = MICA_TEXT_INIT;
    for (int i = 0; i < 1000; i++) {
        mica_text_printf(&text, "%d,", i);
        assert_int_equal(text.bytes[text.length], 0);
        assert_int_equal(strlen(text.bytes), text.length);
    }
    assert_int_equal(text.length, 10 * 2 + 90 * 3 + 900 * 4);
    mica_text_append(&text, "a\0b", 3);
    assert_memory_equal(text.bytes + text.length - 3, "a\0b", 4);
    mica_text_clear(&text);
    assert_string_equal(text.bytes, "");
    mica_text_puts(&text, "again");
    char *taken = mica_text_take(&text);
    assert_string_equal(taken, "again");
    assert_null(text.bytes);
    mica_free(taken);
    taken = mica_text_take(&text);
    assert_string_equal(taken, "");
    mica_free(taken);
}

static void lengths_around_the_capacity(void **state) {
    (void)state;
    for (size_t length = 60; length < 70; length++) {
        char filler[80];
        memset(filler, 'x', sizeof filler);
        filler[length] = 0;
        mica_text text = MICA_TEXT_INIT;
        mica_text_printf(&text, "%s", filler);
        assert_string_equal(text.bytes, filler);
        mica_text_release(&text);
    }
}

static void a_failure_is_told_once_at_the_end(void **state) {
    (void)state;
    mica_text text = MICA_TEXT_INIT;
    mica_text_puts(&text, "kept");
    mica_memory_fail_after(1);
    for (int i = 0; i < 100; i++)
        mica_text_puts(&text, "more");
    mica_memory_fail_after(0);
    mica_text_puts(&text, "too late");
    assert_true(mica_text_failed(&text));
    assert_true(text.length < 64 && strncmp(text.bytes, "keptmore", 8) == 0);
    mica_text_clear(&text); /* in a loop that looks at the end */
    mica_text_puts(&text, "next");
    assert_true(mica_text_failed(&text));
    assert_null(mica_text_take(&text));
    assert_null(text.bytes);
}

static void paths(void **state) {
    (void)state;
    static const char *const rows[][3] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}, {"", "b", "b"}, {".", "b", "./b"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *path = mica_path_join(rows[i][0], rows[i][1]);
        assert_string_equal(path, rows[i][2]);
        mica_free(path);
    }
    mica_memory_fail_after(1);
    assert_null(mica_path_join("a", "b"));
    mica_memory_fail_after(0);
}

/* Every code point encoded by the rule, and the forms that the standard forbids. */
static void utf8(void **state) {
    (void)state;
    for (uint32_t point = 0; point < 0x120000; point++) {
        unsigned char bytes[4];
        size_t length;
        if (point < 0x80) {
            bytes[0] = (unsigned char)point;
            length = 1;
        } else if (point < 0x800) {
            bytes[0] = (unsigned char)(0xc0 | point >> 6);
            length = 2;
        } else if (point < 0x10000) {
            bytes[0] = (unsigned char)(0xe0 | point >> 12);
            length = 3;
        } else {
            bytes[0] = (unsigned char)(0xf0 | point >> 18);
            length = 4;
        }
        for (size_t i = 1; i < length; i++)
            bytes[i] = (unsigned char)(0x80 | (point >> (6 * (length - 1 - i)) & 0x3f));
        bool valid = point < 0xd800 || (point > 0xdfff && point < 0x110000);
        if (mica_utf8_sequence((char *)bytes, length) != (valid ? length : 0) || mica_utf8_sequence((char *)bytes, length - 1) != 0)
            fail_msg("code point %x", point);
    }
    static const char *const forbidden[] = {"\x80", "\xc0\x80",    "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xf5\x80\x80\x80",
                                            "\xff", "\xe2\x82\x28"};
    for (size_t i = 0; i < sizeof forbidden / sizeof forbidden[0]; i++)
        assert_int_equal(mica_utf8_sequence(forbidden[i], strlen(forbidden[i])), 0);
}

/* The end of a text, byte by byte: held back as long as a further byte could complete it. */
static void utf8_prefixes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t prefix;
        size_t unfinished;
    } rows[] = {
        {"", 0, 0},
        {"a", 1, 0},
        {"0123456789abcdef", 16, 0},
        {"\xc3\xa9", 2, 0},
        {"0123456\xc3\xa9 12345678\xff", 18, 0},
        {"a\xc3", 1, 1},
        {"a\xe2\x82", 1, 2},
        {"a\xf0\x9f\x98", 1, 3},
        {"\xe0", 0, 1},
        {"\xed", 0, 1},
        {"\xf0", 0, 1},
        {"\xf4", 0, 1},
        {"\xf5", 0, 0},
        {"\xff", 0, 0},
        {"\x80", 0, 0},
        {"a\xe0\x9f", 1, 0},
        {"\xed\xa0", 0, 0},
        {"\xf0\x8f", 0, 0},
        {"\xf4\x90\x80", 0, 0},
        {"\xe2\x82\x82\xe2", 3, 1},
        {"\x80\x80\x80\x80", 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(mica_utf8_prefix(rows[i].text, strlen(rows[i].text)), rows[i].prefix);
        assert_int_equal(mica_utf8_unfinished(rows[i].text, strlen(rows[i].text)), rows[i].unfinished);
    }
}

static void test_glob(void **state) {
    (void)state;
    static const struct {
        const char *pattern, *text;
        bool matches;
    } rows[] = {{"", "", true},         {"", "a", false},          {"*", "", true},           {"*", "abc", true},
                {"a*c", "abbc", true},  {"a*c", "abcd", false},    {"*.1.*", "a.1.b", true},  {"*.1.*", "a.11.b", false},
                {"a?c", "abc", true},   {"a?c", "ac", false},      {"**a**", "bab", true},    {"a*b*c", "a-b-b-c", true},
                {"a*b*c", "a-c", false}, {"*aab", "aaaaaab", true}, {"a[b]", "a[b]", true},    {"?", "", false}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(mica_glob_matches(rows[i].pattern, rows[i].text), rows[i].matches);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_glob),
        cmocka_unit_test(it_grows_and_stays_terminated),     cmocka_unit_test(lengths_around_the_capacity),
        cmocka_unit_test(a_failure_is_told_once_at_the_end), cmocka_unit_test(paths),
        cmocka_unit_test(utf8),                              cmocka_unit_test(utf8_prefixes),
    };
    return cmocka_run_group_tests_name("text", tests, NULL, NULL);
}
