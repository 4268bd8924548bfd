/* The sentences of failures: statuses, one clean line, contexts, cuts. */
#include "base/error.h"

#include <errno.h>

#include "base/scratch.h"

static void statuses_have_text_and_exit(void **state) {
    (void)state;
    static const struct {
        mica_status status;
        int exit_status;
        const char *text;
    } rows[] = {
        {MICA_OK, 0, "ok"},          {MICA_FAILED, 1, "failed"},          {MICA_NO_MEMORY, 1, "out of memory"},
        {MICA_USAGE, 2, "usage"},    {MICA_BAD_INPUT, 3, "bad input"},    {MICA_CORRUPT, 3, "corrupt"},
        {MICA_CONFLICT, 3, "conflict"}, {MICA_IO, 3, "input/output error"}, {MICA_INTERRUPTED, 130, "interrupted"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_string_equal(mica_status_text(rows[i].status), rows[i].text);
        assert_int_equal(mica_status_exit(rows[i].status), rows[i].exit_status);
    }
    assert_string_equal(mica_status_text((mica_status)99), "unknown status");
    assert_int_equal(mica_status_exit((mica_status)99), 1);
}

static void a_message_is_one_clean_line(void **state) {
    (void)state;
    mica_error error;
    assert_int_equal(mica_fail(&error, MICA_BAD_INPUT, "a\nb\tc\x1b[0m \x7f é %d", 7), MICA_BAD_INPUT);
    assert_int_equal(error.status, MICA_BAD_INPUT);
    assert_string_equal(error.message, "a b c [0m   é 7");
    assert_int_equal(mica_fail(&error, MICA_BAD_INPUT, "%s", "\xff" "a\xc3" "b\xc2\x85" "c\xed\xa0\x80"), MICA_BAD_INPUT);
    assert_string_equal(error.message, "?a?b  c???");
    assert_int_equal(mica_fail(NULL, MICA_IO, "nobody listens"), MICA_IO);
}

static void a_long_message_is_cut_between_characters(void **state) {
    (void)state;
    mica_error error;
    char text[3001];
    for (size_t lead = 0; lead < 3; lead++) {
        memset(text, 'x', lead);
        for (size_t i = lead; i + 3 < sizeof text; i += 3)
            memcpy(text + i, "€", 4);
        mica_fail(&error, MICA_IO, "%s", text);
        size_t length = strlen(error.message);
        assert_true(length < MICA_ERROR_MESSAGE_BYTES && length + 3 >= MICA_ERROR_MESSAGE_BYTES);
        assert_memory_equal(error.message + length - 3, "€", 3);
    }
}

static void system_errors_bring_their_reason(void **state) {
    (void)state;
    mica_error error;
    assert_int_equal(mica_fail_errno(&error, ENOSPC, "%s: cannot write", "x.bin"), MICA_IO);
    assert_string_equal(error.message, "x.bin: cannot write: No space left on device");
    assert_int_equal(mica_fail_errno(&error, ENOMEM, "no"), MICA_NO_MEMORY);
    assert_int_equal(mica_fail_errno(NULL, ENOMEM, "no"), MICA_NO_MEMORY);
}

static void a_context_stands_in_front(void **state) {
    (void)state;
    mica_error error;
    mica_fail(&error, MICA_CORRUPT, "sum differs");
    assert_int_equal(mica_fail_context(&error, MICA_IO, "layer %d", 3), MICA_CORRUPT);
    assert_string_equal(error.message, "layer 3: sum differs");
    mica_fail(&error, MICA_CORRUPT, "again %s", error.message); /* its own message as an argument */
    assert_string_equal(error.message, "again layer 3: sum differs");
    assert_int_equal(mica_fail_context(NULL, MICA_IO, "layer"), MICA_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(statuses_have_text_and_exit),          cmocka_unit_test(a_message_is_one_clean_line),
        cmocka_unit_test(a_long_message_is_cut_between_characters), cmocka_unit_test(system_errors_bring_their_reason),
        cmocka_unit_test(a_context_stands_in_front),
    };
    return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
