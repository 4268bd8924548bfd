/* test_byte_level.c: every byte as a character and back; NFC of what composes, what does not, and of nothing. */
#include "model/byte_level.h"

#include "base/scratch.h"

static void every_byte_and_back(void **state) {
    (void)state;
    char all[256];
    for (int byte = 0; byte < 256; byte++)
        all[byte] = (char)byte;
    mica_text characters = MICA_TEXT_INIT, bytes = MICA_TEXT_INIT;
    mica_byte_level_write(&characters, all, sizeof all);
    assert_true(mica_byte_level_read(&bytes, characters.bytes, characters.length));
    assert_int_equal(bytes.length, 256);
    assert_memory_equal(bytes.bytes, all, 256);
    /* each a character of its own, printable */
    uint32_t seen[512] = {0}, count = 0;
    for (size_t at = 0, sequence; at < characters.length; at += sequence) {
        const uint8_t *next = (const uint8_t *)characters.bytes + at;
        sequence = mica_utf8_sequence(characters.bytes + at, characters.length - at);
        assert_true(sequence == 1 || sequence == 2);
        uint32_t code = sequence == 1 ? next[0] : (next[0] & 0x1fu) << 6 | (next[1] & 0x3fu);
        assert_true(code > 0x20 && code != 0x7f && (code < 0x80 || code > 0xa0) && code != 0xad && code < 0x100 + 68);
        assert_int_equal(seen[code]++, 0);
        count++;
    }
    assert_int_equal(count, 256);
    mica_text_release(&characters);
    mica_text_release(&bytes);
}

/* The names that everybody knows. */
static void known_characters(void **state) {
    (void)state;
    mica_text text = MICA_TEXT_INIT;
    mica_byte_level_write(&text, " a\n\t\0\x7f\xa0\xad\xae\xff", 10);
    assert_string_equal(text.bytes, "\xc4\xa0"
                                    "a\xc4\x8a\xc4\x89\xc4\x80\xc4\xa1\xc5\x82\xc5\x83\xc2\xae\xc3\xbf");
    mica_text_release(&text);
}

static void characters_that_are_no_byte(void **state) {
    (void)state;
    static const char *const rows[] = {" ", "a b", "\xc2\xa0", "\xc2\xad", "\xc5\x84", "\xe6\xbc\xa2", "\xff", "a\xc4", "\n"};
    mica_text bytes = MICA_TEXT_INIT;
    mica_text_puts(&bytes, "x");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_false(mica_byte_level_read(&bytes, rows[i], strlen(rows[i])));
        assert_int_equal(bytes.length, 1);
    }
    mica_text_release(&bytes);
}

static void composing(void **state) {
    (void)state;
    static const struct {
        const char *text, *expected; /* NULL: it is so already, and that is seen without a look at tables */
    } rows[] = {
        {"", NULL},
        {"plain \xc3\xa9", NULL},
        {"e\xcc\x81", "\xc3\xa9"},
        {"\xe2\x84\xab", "\xc3\x85"},
        {"a\xcc\xa3\xcc\x82", "\xe1\xba\xad"},
        {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"},
        {"\xe6\xbc\xa2", "\xe6\xbc\xa2"},
        {"\xcc\x81", "\xcc\x81"},
        {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"}, /* excluded from composition */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_text result = MICA_TEXT_INIT;
        mica_error error;
        bool composed;
        assert_int_equal(mica_compose(rows[i].text, strlen(rows[i].text), &result, &composed, &error), MICA_OK);
        assert_int_equal(composed, rows[i].expected != NULL);
        if (composed)
            assert_string_equal(result.bytes, rows[i].expected);
        mica_text_release(&result);
    }
    mica_text result = MICA_TEXT_INIT;
    bool composed;
    mica_memory_fail_after(1);
    assert_int_equal(mica_compose("e\xcc\x81", 3, &result, &composed, NULL), MICA_NO_MEMORY);
    mica_memory_fail_after(0);
}

static void spaces_and_their_marks(void **state) {
    (void)state;
    mica_text text = MICA_TEXT_INIT, back = MICA_TEXT_INIT;
    static const char cut[] = "\xe2\x96\x81"
                              "a\xe2\x96 \xe2\x96\x81\xe2\x96\x81\xe2";
    mica_space_marks_read(&text, cut, sizeof cut - 1);
    assert_string_equal(text.bytes, " a\xe2\x96   \xe2");
    mica_space_marks_write(&back, " a  ", 4);
    assert_string_equal(back.bytes, MICA_SPACE_MARK "a" MICA_SPACE_MARK MICA_SPACE_MARK);
    assert_true(mica_space_marks_in(cut, 3));
    assert_false(mica_space_marks_in(cut, 2));
    assert_false(mica_space_marks_in(NULL, 0));
    assert_int_equal(mica_byte_token_read("<0x0A>", 6), 10);
    assert_int_equal(mica_byte_token_read("<0xff>", 6), -1);
    assert_int_equal(mica_byte_token_read("<0x0A>x", 7), -1);
    assert_int_equal(mica_byte_token_read("<0x0A]", 6), -1);
    mica_text_release(&text);
    mica_text_release(&back);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_and_back),         cmocka_unit_test(known_characters), cmocka_unit_test(spaces_and_their_marks),
        cmocka_unit_test(characters_that_are_no_byte), cmocka_unit_test(composing),
    };
    return cmocka_run_group_tests_name("byte_level", tests, NULL, NULL);
}
