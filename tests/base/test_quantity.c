/* test_quantity.c: numbers for people. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/quantity.h"

static void test_bytes(void **state) {
    (void)state;
    char buffer[MICA_QUANTITY_BYTES];
    assert_string_equal(mica_bytes_show(0, buffer), "0 B");
    assert_string_equal(mica_bytes_show(1023, buffer), "1023 B");
    assert_string_equal(mica_bytes_show(1024, buffer), "1.00 KiB");
    assert_string_equal(mica_bytes_show(1536, buffer), "1.50 KiB");
    assert_string_equal(mica_bytes_show(1048575, buffer), "1.00 MiB");
    assert_string_equal(mica_bytes_show(UINT64_C(44040192), buffer), "42.0 MiB");
    assert_string_equal(mica_bytes_show(UINT64_MAX, buffer), "16.0 EiB");
}

static void test_counts(void **state) {
    (void)state;
    char buffer[MICA_QUANTITY_BYTES];
    assert_string_equal(mica_count_show(999, buffer), "999");
    assert_string_equal(mica_count_show(1000, buffer), "1.00 K");
    assert_string_equal(mica_count_show(999700, buffer), "1.00 M");
    assert_string_equal(mica_count_show(UINT64_C(1026470731776), buffer), "1.03 T");
    assert_string_equal(mica_count_show(UINT64_C(671000000000), buffer), "671 B");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes), cmocka_unit_test(test_counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
