/* UUIDs as text and from digests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/uuid.h"

static void test_text(void **state) {
    (void)state;
    uint8_t uuid[MICA_UUID_BYTES];
    char text[MICA_UUID_TEXT_BYTES];
    assert_true(mica_uuid_parse("2489E9AD-2ee2-8E00-8ec9-32d5f69181c0", uuid)); /* RFC 9562, B.1: a version 8 */
    mica_uuid_show(uuid, text);
    assert_string_equal(text, "2489e9ad-2ee2-8e00-8ec9-32d5f69181c0");
    assert_int_equal(mica_uuid_version(uuid), 8);
    static const char *const bad[] = {"", "2489e9ad", "2489e9ad-2ee2-8e00-8ec9-32d5f69181c", "2489e9ad-2ee2-8e00-8ec9-32d5f69181c0 ",
                                      "2489e9ad-2ee2-8e00-8ec9-32d5f69181cg", "2489e9ad22ee2-8e00-8ec9-32d5f69181c0",
                                      "{2489e9ad-2ee2-8e00-8ec9-32d5f69181c0}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(mica_uuid_parse(bad[i], uuid));
}

/* RFC 9562, B.2: a version 8 from SHA-256: the digest's first 16 bytes, version and variant set. */
static void test_of_a_digest(void **state) {
    (void)state;
    uint8_t digest[MICA_SHA256_BYTES], uuid[MICA_UUID_BYTES];
    char text[MICA_UUID_TEXT_BYTES];
    assert_true(mica_sha256_parse_hex("5c146b143c524afd938a375d0df1fbf6fe12a66b645f72f6158759387e51f3c8", digest));
    mica_uuid_of_digest(digest, uuid);
    mica_uuid_show(uuid, text);
    assert_string_equal(text, "5c146b14-3c52-8afd-938a-375d0df1fbf6");
}

static void test_random(void **state) {
    (void)state;
    uint8_t one[MICA_UUID_BYTES], other[MICA_UUID_BYTES];
    assert_int_equal(mica_uuid_random(one, NULL), MICA_OK);
    assert_int_equal(mica_uuid_random(other, NULL), MICA_OK);
    assert_int_equal(mica_uuid_version(one), 4);
    assert_int_equal(one[8] >> 6, 2);
    assert_memory_not_equal(one, other, sizeof one);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_of_a_digest), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
