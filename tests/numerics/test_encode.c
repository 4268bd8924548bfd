/* Judges numerics/encode: every float16 and bfloat16 survives; what lies between two goes to the nearer one, midpoints to the even one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "numerics/encode.h"
#include "numerics/matrix.h"

static uint16_t encode(mica_dtype dtype, float value) {
    uint16_t code;
    assert_true(mica_encode_plain(dtype, &value, 1, &code));
    return code;
}

static float decode(mica_dtype dtype, uint16_t code) {
    float value;
    assert_true(mica_decode_plain(dtype, &code, 1, &value));
    return value;
}

static void check(mica_dtype dtype, uint16_t infinity) {
    for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000)
        for (uint32_t code = 0; code < infinity; code++) {
            /* The next code's value, or where it would be if it were not infinity. */
            double here = (double)decode(dtype, (uint16_t)code), below = code ? (double)decode(dtype, (uint16_t)(code - 1)) : -here;
            double next = code + 1 < infinity ? (double)decode(dtype, (uint16_t)(code + 1)) : 2 * here - below;
            float middle = (float)((here + next) / 2), factor = sign ? -1 : 1;
            assert_int_equal(encode(dtype, factor * (float)here), sign | code);
            if (!isfinite(middle))
                continue;
            assert_int_equal(encode(dtype, factor * middle), sign | (code % 2 ? code + 1 : code));
            assert_int_equal(encode(dtype, factor * nextafterf(middle, 0)), sign | code);
            assert_int_equal(encode(dtype, factor * nextafterf(middle, INFINITY)), sign | (code + 1));
        }
    assert_int_equal(encode(dtype, INFINITY), infinity);
    assert_int_equal(encode(dtype, -INFINITY), 0x8000 | infinity);
    assert_int_equal(encode(dtype, 3.4e38f), infinity);
    const uint32_t signalling = 0x7f800001;
    float nan;
    memcpy(&nan, &signalling, sizeof nan);
    uint16_t quiet = encode(dtype, nan), half = (uint16_t)((0x8000 - infinity) / 2); /* the top bit of the fraction */
    assert_true(quiet > infinity && (quiet & half));
}

static void f16_rounds_to_nearest_even(void **state) {
    (void)state;
    check(MICA_F16, 0x7c00);
}

static void bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    check(MICA_BF16, 0x7f80);
}

static void arrays_and_other_types(void **state) {
    (void)state;
    float values[37], back[37];
    uint8_t codes[37 * 4 + 1];
    for (int i = 0; i < 37; i++)
        values[i] = (float)i / 4 - 3;
    static const mica_dtype exact[] = {MICA_F32, MICA_F16, MICA_BF16};
    for (int k = 0; k < 3; k++) {
        assert_true(mica_encode_plain(exact[k], values, 37, codes + 1));
        assert_true(mica_decode_plain(exact[k], codes + 1, 37, back));
        assert_memory_equal(values, back, sizeof values);
    }
    assert_false(mica_encode_plain(MICA_I8, values, 37, codes));
    assert_false(mica_encode_plain(MICA_Q4_0, values, 37, codes));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(arrays_and_other_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
