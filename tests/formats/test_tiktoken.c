/* test_tiktoken.c: lines of base64 and rank: what is read, in any order, and how each refusal names the line. */
#include "base/no_memory.h"
#include "formats/tiktoken.h"

#include "base/scratch.h"

static void reads_lines_in_any_order(void **state) {
    (void)state;
    static const char *const texts[] = {"YQ== 0\nYWI= 1\nYWJj 2\n", "YWJj 2\nYQ== 0\nYWI= 1", "\nYQ== 0\r\n\r\nYWJj 2\r\nYWI= 1\r\n"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        mica_ranks ranks;
        mica_error error;
        assert_int_equal(mica_ranks_parse("x", texts[i], strlen(texts[i]), &ranks, &error), MICA_OK);
        assert_int_equal(ranks.count, 3);
        assert_memory_equal(ranks.bytes, "aababc", 6);
        assert_int_equal(ranks.starts[1], 1);
        assert_int_equal(ranks.starts[2], 3);
        assert_int_equal(ranks.starts[3], 6);
        mica_ranks_release(&ranks);
    }
}

/* Every length of padding, every byte. */
static void base64_of_every_byte(void **state) {
    (void)state;
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int byte = 0; byte < 256; byte++) {
        char text[32];
        uint8_t expected[3] = {(uint8_t)byte, 0, (uint8_t)byte};
        for (size_t length = 1; length <= 3; length++) {
            uint32_t bits = (uint32_t)expected[0] << 16 | (length == 3 ? expected[2] : 0u);
            snprintf(text, sizeof text, "%c%c%c%c 0", digits[bits >> 18], digits[bits >> 12 & 63],
                     length > 1 ? digits[bits >> 6 & 63] : '=', length > 2 ? digits[bits & 63] : '=');
            mica_ranks ranks;
            mica_error error;
            assert_int_equal(mica_ranks_parse("x", text, strlen(text), &ranks, &error), MICA_OK);
            assert_int_equal(ranks.starts[1], length);
            assert_memory_equal(ranks.bytes, expected, length);
            mica_ranks_release(&ranks);
        }
    }
}

static void refusals_name_the_line(void **state) {
    (void)state;
    static const struct {
        const char *text, *message;
    } rows[] = {
        {"", "x: expected lines of a token in base64 and its rank, got none"},
        {"\n\r\n", "x: expected lines of a token in base64 and its rank, got none"},
        {"YQ== 0\n!!!! 1\n", "x: line 2: expected a token in base64 and its rank, got \"!!!! 1\""},
        {"YQ=\x80 0", "x: line 1: expected a token in base64 and its rank, got \"YQ=? 0\""},
        {"YQ== 0\n\nYQ 1\n", "x: line 3: expected a token in base64 and its rank, got \"YQ 1\""},
        {"YR== 0", "x: line 1: expected a token in base64 and its rank, got \"YR== 0\""},
        {"YWJ= 0", "x: line 1: expected a token in base64 and its rank, got \"YWJ= 0\""},
        {"Y=Q= 0", "x: line 1: expected a token in base64 and its rank, got \"Y=Q= 0\""},
        {"==== 0", "x: line 1: expected a token in base64 and its rank, got \"==== 0\""},
        {" 0", "x: line 1: expected a token in base64 and its rank, got \" 0\""},
        {"YQ==", "x: line 1: expected a token in base64 and its rank, got \"YQ==\""},
        {"YQ== ", "x: line 1: expected a token in base64 and its rank, got \"YQ== \""},
        {"YQ== 0 ", "x: line 1: expected a token in base64 and its rank, got \"YQ== 0 \""},
        {"YQ== -1", "x: line 1: expected a token in base64 and its rank, got \"YQ== -1\""},
        {"YQ== 99999999999999999999", "x: line 1: expected a token in base64 and its rank, got \"YQ== 99999999999999999999\""},
        {"YQ== 0\nYg== 0\n", "x: line 2: expected a rank of its own, got 0, which line 1 has"},
        {"YQ== 2\nYg== 0\nYw== 2", "x: expected the ranks 0 to 2 of its 3 tokens, got no rank 1"},
        {"YQ== 0\nYg== 2\n", "x: expected the ranks 0 to 1 of its 2 tokens, got no rank 1"},
        {"YQ== 1\n", "x: expected the ranks 0 to 0 of its 1 tokens, got no rank 0"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_ranks ranks;
        mica_error error;
        assert_int_equal(mica_ranks_parse("x", rows[i].text, strlen(rows[i].text), &ranks, &error), MICA_BAD_INPUT);
        assert_string_equal(error.message, rows[i].message);
    }
}

static void memory_runs_out_anywhere(void **state) {
    (void)state;
    static const char text[] = "YWJj 2\nYQ== 0\nYWI= 1";
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_ranks ranks;
        mica_error error;
        no_memory_begin(&trial);
        const mica_status status = mica_ranks_parse("x", text, strlen(text), &ranks, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        if (status == MICA_OK)
            mica_ranks_release(&ranks);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_lines_in_any_order),
        cmocka_unit_test(base64_of_every_byte),
        cmocka_unit_test(refusals_name_the_line),
        cmocka_unit_test(memory_runs_out_anywhere),
    };
    return cmocka_run_group_tests_name("tiktoken", tests, NULL, NULL);
}
