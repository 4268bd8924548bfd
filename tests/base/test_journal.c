/* The journal: what was appended comes back; after any cut and any changed byte, exactly the records before the damage. */
#include "base/journal.h"

#include "base/hash.h"
#include "base/scratch.h"

static mica_error error;

enum { RECORDS = 5 };
static const struct {
    uint32_t kind, bytes;
    const char *payload;
} records[RECORDS] = {
    {MICA_JOURNAL_HEAD, 12, "{\"job\": 123}"}, {1, 5, "hello"}, {7, 0, ""}, {0xfedcba98u, 20, "twenty bytes of text"}, {2, 1, "x"},
};

typedef struct replayed {
    uint32_t count;
    bool wrong;
    uint32_t fail_at; /* 0: never */
} replayed;

static mica_status check(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *failure) {
    replayed *seen = context;
    uint32_t i = seen->count++;
    if (i < RECORDS)
        seen->wrong = seen->wrong || kind != records[i].kind || bytes != records[i].bytes ||
                      memcmp(payload, records[i].payload, bytes) != 0;
    else
        seen->wrong = seen->wrong || kind != 99 || bytes != 5 || memcmp(payload, "after", 5) != 0;
    return seen->count == seen->fail_at ? mica_fail(failure, MICA_CONFLICT, "other options") : MICA_OK;
}

static void write_journal(const char *path) {
    mica_journal *journal = NULL;
    assert_int_equal(mica_journal_create(path, records[0].payload, records[0].bytes, &journal, &error), MICA_OK);
    for (int i = 1; i < RECORDS; i++)
        assert_int_equal(mica_journal_append(journal, records[i].kind, records[i].payload, records[i].bytes, &error), MICA_OK);
    assert_int_equal(mica_journal_sync(journal, &error), MICA_OK);
    mica_journal_close(journal);
}

static uint64_t end_of(uint32_t record) {
    uint64_t end = 8;
    for (uint32_t i = 0; i <= record; i++)
        end += 16 + records[i].bytes;
    return end;
}

/* Opens what is at `path`, expects `count` records (0: a refusal), appends one and expects it behind them. */
static void expect(const char *path, uint32_t count, mica_status refusal) {
    replayed seen = {0};
    mica_journal *journal = NULL;
    mica_status status = mica_journal_open(path, check, &seen, &journal, &error);
    assert_false(seen.wrong);
    assert_int_equal(seen.count, count);
    if (count == 0) {
        assert_int_equal(status, refusal);
        assert_null(journal);
        return;
    }
    assert_int_equal(status, MICA_OK);
    struct stat file;
    assert_int_equal(stat(path, &file), 0);
    assert_int_equal(file.st_size, end_of(count - 1)); /* what did not count is gone */
    if (count == RECORDS) {
        assert_int_equal(mica_journal_append(journal, 99, "after", 5, &error), MICA_OK);
        mica_journal_close(journal);
        seen = (replayed){0};
        assert_int_equal(mica_journal_open(path, check, &seen, &journal, &error), MICA_OK);
        assert_false(seen.wrong);
        assert_int_equal(seen.count, RECORDS + 1);
    }
    mica_journal_close(journal);
}

static char *whole;
static uint64_t whole_bytes;

/* The bytes, spelled out here by the header's text alone. */
static void the_bytes_are_as_documented(void **state) {
    (void)state;
    write_journal(scratch("journal"));
    assert_int_equal(mica_file_load(scratch("journal"), 1 << 20, &whole, &whole_bytes, &error), MICA_OK);
    assert_int_equal(whole_bytes, end_of(RECORDS - 1));
    assert_memory_equal(whole, "MICAJRN1", 8);
    const uint8_t *at = (const uint8_t *)whole + 8;
    for (int i = 0; i < RECORDS; i++) {
        uint8_t digest[MICA_SHA256_BYTES];
        for (int byte = 0; byte < 4; byte++) {
            assert_int_equal(at[byte], records[i].bytes >> (8 * byte) & 255);
            assert_int_equal(at[4 + byte], records[i].kind >> (8 * byte) & 255);
        }
        assert_memory_equal(at + 8, records[i].payload, records[i].bytes);
        assert_int_equal(mica_sha256_of(at, 8 + records[i].bytes, digest, &error), MICA_OK);
        assert_memory_equal(at + 8 + records[i].bytes, digest, 8);
        at += 16 + records[i].bytes;
    }
    expect(scratch("journal"), RECORDS, MICA_OK);
}

static void cut_at_every_byte(void **state) {
    (void)state;
    for (uint64_t length = 0; length <= whole_bytes; length++) {
        scratch_write("journal", whole, length);
        uint32_t count = 0;
        while (count < RECORDS && end_of(count) <= length)
            count++;
        expect(scratch("journal"), count, length < 8 ? MICA_BAD_INPUT : MICA_CORRUPT);
    }
}

static void every_byte_changed(void **state) {
    (void)state;
    static const uint8_t changes[] = {0x01, 0x80, 0xff};
    char *damaged = malloc(whole_bytes);
    for (uint64_t at = 0; at < whole_bytes; at++) {
        for (size_t i = 0; i < sizeof changes; i++) {
            memcpy(damaged, whole, whole_bytes);
            damaged[at] ^= (char)changes[i];
            scratch_write("journal", damaged, whole_bytes);
            uint32_t count = 0;
            while (at >= 8 && end_of(count) <= at)
                count++;
            expect(scratch("journal"), count, at < 8 ? MICA_BAD_INPUT : MICA_CORRUPT);
        }
    }
    free(damaged);
}

static void rubbish_behind_the_end_is_dropped(void **state) {
    (void)state;
    char *longer = calloc(1, whole_bytes + 100);
    memcpy(longer, whole, whole_bytes);
    for (uint64_t more = 1; more <= 100; more += 9) { /* zeros: as a file system leaves them after a power cut */
        scratch_write("journal", longer, whole_bytes + more);
        expect(scratch("journal"), RECORDS, MICA_OK);
    }
    free(longer);
}

static void the_first_record_must_be_the_head(void **state) {
    (void)state;
    uint64_t second = end_of(0);
    char *headless = malloc(whole_bytes);
    memcpy(headless, whole, 8);
    memcpy(headless + 8, whole + second, whole_bytes - second);
    scratch_write("journal", headless, whole_bytes - second + 8);
    expect(scratch("journal"), 0, MICA_CORRUPT);
    free(headless);
}

static void a_visitor_may_refuse(void **state) {
    (void)state;
    for (uint32_t fail_at = 1; fail_at <= RECORDS; fail_at++) {
        replayed seen = {.fail_at = fail_at};
        mica_journal *journal = NULL;
        scratch_write("journal", whole, whole_bytes);
        assert_int_equal(mica_journal_open(scratch("journal"), check, &seen, &journal, &error), MICA_CONFLICT);
        assert_string_equal(error.message, "other options");
        assert_int_equal(seen.count, fail_at);
        assert_null(journal);
    }
    mica_journal *journal = NULL;
    assert_int_equal(mica_journal_open(scratch("journal"), NULL, NULL, &journal, &error), MICA_OK);
    mica_journal_close(journal);
    mica_journal_close(NULL);
    assert_int_equal(mica_journal_open(scratch("absent"), NULL, NULL, &journal, &error), MICA_IO);
    assert_int_equal(unlink(scratch("journal")), 0);
    mica_free(whole);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bytes_are_as_documented), /* keeps `whole` for those that follow */
        cmocka_unit_test(cut_at_every_byte),
        cmocka_unit_test(every_byte_changed),
        cmocka_unit_test(rubbish_behind_the_end_is_dropped),
        cmocka_unit_test(the_first_record_must_be_the_head),
        cmocka_unit_test(a_visitor_may_refuse),
    };
    return cmocka_run_group_tests_name("journal", tests, scratch_make, scratch_remove);
}
