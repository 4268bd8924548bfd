/* The table of element types against the names and sizes of safetensors and of ggml. */
#include "base/dtype.h"

#include "base/scratch.h"

static void names_sizes_and_kinds(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint32_t bytes;
        bool floating;
    } rows[] = {
        {"F64", 8, true},     {"F32", 4, true},     {"F16", 2, true},   {"BF16", 2, true}, {"F8_E4M3", 1, true},
        {"F8_E5M2", 1, true}, {"F8_E8M0", 1, true}, {"I64", 8, false},  {"I32", 4, false}, {"I16", 2, false},
        {"I8", 1, false},     {"U8", 1, false},     {"BOOL", 1, false},
    };
    assert_int_equal(MICA_DTYPE_PLAIN_COUNT, sizeof rows / sizeof rows[0]);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_dtype dtype = MICA_DTYPE_COUNT;
        assert_true(mica_dtype_parse(rows[i].name, &dtype));
        assert_string_equal(mica_dtype_name(dtype), rows[i].name);
        assert_int_equal(mica_dtype_bytes(dtype), rows[i].bytes);
        assert_int_equal(mica_dtype_is_floating(dtype), rows[i].floating);
    }
}

/* Sizes and numbers as ggml's own table has them. */
static void blocks_of_ggml(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint32_t elements, bytes;
        int32_t number;
    } rows[] = {
        {"Q4_0", 32, 18, 2}, {"Q4_1", 32, 20, 3}, {"Q5_0", 32, 22, 6}, {"Q5_1", 32, 24, 7}, {"Q8_0", 32, 34, 8}, {"Q2_K", 256, 84, 10},
        {"Q3_K", 256, 110, 11}, {"Q4_K", 256, 144, 12}, {"Q5_K", 256, 176, 13}, {"Q6_K", 256, 210, 14}, {"IQ4_NL", 32, 18, 20},
        {"IQ4_XS", 256, 136, 23}, {"MXFP4", 32, 17, 39},
    };
    assert_int_equal(MICA_DTYPE_COUNT - MICA_DTYPE_PLAIN_COUNT, sizeof rows / sizeof rows[0]);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mica_dtype dtype = MICA_DTYPE_COUNT, again = MICA_DTYPE_COUNT;
        uint64_t bytes = 7;
        assert_true(mica_dtype_parse_block(rows[i].name, &dtype));
        assert_true(mica_dtype_from_ggml(rows[i].number, &again));
        assert_int_equal(dtype, again);
        assert_string_equal(mica_dtype_name(dtype), rows[i].name);
        assert_int_equal(mica_dtype_ggml(dtype), rows[i].number);
        assert_true(mica_dtype_is_block(dtype) && mica_dtype_is_floating(dtype));
        assert_int_equal(mica_dtype_bytes(dtype), 0);
        assert_int_equal(mica_dtype_block_elements(dtype), rows[i].elements);
        assert_int_equal(mica_dtype_block_bytes(dtype), rows[i].bytes);
        assert_false(mica_dtype_parse(rows[i].name, &dtype)); /* no safetensors type */
        assert_false(mica_dtype_run_bytes(dtype, rows[i].elements + 1, &bytes));
        assert_false(mica_dtype_run_bytes(dtype, UINT64_MAX - UINT64_MAX % rows[i].elements, &bytes) && rows[i].bytes > rows[i].elements);
        assert_true(mica_dtype_run_bytes(dtype, 3 * rows[i].elements, &bytes));
        assert_int_equal(bytes, 3 * rows[i].bytes);
    }
    mica_dtype dtype = MICA_F32;
    assert_true(mica_dtype_parse_block("q4_k", &dtype));
    assert_int_equal(dtype, MICA_Q4_K);
    assert_true(mica_dtype_from_ggml(30, &dtype));
    assert_int_equal(dtype, MICA_BF16);
    assert_false(mica_dtype_from_ggml(-1, &dtype));
    assert_false(mica_dtype_from_ggml(16, &dtype));
    assert_int_equal(mica_dtype_ggml(MICA_F8_E4M3), -1);
    uint64_t bytes;
    assert_true(mica_dtype_run_bytes(MICA_F32, 5, &bytes));
    assert_int_equal(bytes, 20);
    assert_false(mica_dtype_run_bytes(MICA_F32, UINT64_MAX / 2, &bytes));
}

static void what_is_no_type(void **state) {
    (void)state;
    static const char *const names[] = {"", "F7_E9", "f32", "F32 ", "F3", "BF16x", "Q4_0"};
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(names_sizes_and_kinds), cmocka_unit_test(blocks_of_ggml),
                                       cmocka_unit_test(what_is_no_type)};
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
