/* The table of element types against the safetensors names and sizes. */
#include "base/dtype.h"

#include "base/scratch.h"

static void names_sizes_and_kinds(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint32_t bytes;
        bool floating;
    } rows[] = {
        {"F64", 8, true}, {"F32", 4, true}, {"F16", 2, true}, {"BF16", 2, true}, {"F8_E4M3", 1, true}, {"F8_E5M2", 1, true}, {"F8_E8M0", 1, true},
        {"I64", 8, false}, {"I32", 4, false}, {"I16", 2, false}, {"I8", 1, false}, {"U8", 1, false}, {"BOOL", 1, false},
    };
    assert_int_equal(MICA_DTYPE_COUNT, sizeof rows / sizeof rows[0]);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_dtype dtype = MICA_DTYPE_COUNT;
        assert_true(mica_dtype_parse(rows[i].name, &dtype));
        assert_string_equal(mica_dtype_name(dtype), rows[i].name);
        assert_int_equal(mica_dtype_bytes(dtype), rows[i].bytes);
        assert_int_equal(mica_dtype_is_floating(dtype), rows[i].floating);
    }
}

static void what_is_no_type(void **state) {
    (void)state;
    static const char *const names[] = {"", "F7_E9", "f32", "F32 ", "F3", "BF16x"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        mica_dtype dtype = MICA_U8;
        assert_false(mica_dtype_parse(names[i], &dtype));
        assert_int_equal(dtype, MICA_U8);
    }
    assert_string_equal(mica_dtype_name(MICA_DTYPE_COUNT), "unknown");
    assert_int_equal(mica_dtype_bytes(MICA_DTYPE_COUNT), 0);
    assert_false(mica_dtype_is_floating(MICA_DTYPE_COUNT));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(names_sizes_and_kinds), cmocka_unit_test(what_is_no_type)};
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
