/* Headers: what the format allows is read to the last number, everything else is refused with a sentence that names the shard, the tensor,
 * what was expected and what is there. */
#include "base/no_memory.h"
#include "formats/safetensors.h"

#include "base/text.h"
#include "formats/shards.h"

#define FILE_NAME "model-00007-of-00009.safetensors"

static mica_error error;
static mica_safetensors tensors;

static mica_status parse_bytes(const char *header, size_t length, uint64_t data_bytes) {
    return mica_safetensors_parse(FILE_NAME, header, length, 8 + length + data_bytes, &tensors, &error);
}

static mica_status parse(const char *header, uint64_t data_bytes) {
    return parse_bytes(header, strlen(header), data_bytes);
}

#define ENTRY(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ONE(dtype, shape, offsets) "{\"a.weight\":" ENTRY(dtype, shape, offsets) "}"
#define TWO(first, second) "{\"a.weight\":" ENTRY("U8", "[8]", first) ",\"b.weight\":" ENTRY("U8", "[8]", second) "}"
#define U8 ENTRY("U8", "[8]", "[0,8]")

static const struct {
    const char *what, *header;
    uint64_t data_bytes;
    const char *says[4]; /* besides the file's name */
} refusals[] = {
    {"not JSON", "\x80\x02}q", 0, {"object", "byte 0x80"}},
    {"an array", "[1, 2]", 0, {"expected an object", "got array [1, 2]"}},
    {"a string", "\"x\"", 0, {"expected an object", "got \"x\""}},
    {"nothing but space", "   ", 0, {"'{' as its first byte", "byte 0x20"}},
    {"space before the brace", " {}", 0, {"'{' as its first byte", "byte 0x20"}},
    {"a byte order mark", "\xef\xbb\xbf{}", 0, {"expected an object", "byte 0xef"}},
    {"cut in the object", "{\"a.weight\":" U8, 8, {"header of 59 bytes", "expected ',' or '}'", "got the end"}},
    {"cut in a name", "{\"a.wei", 0, {"closing '\"'", "got the end"}},
    {"cut in an escape", "{\"a\\u00", 0, {"four hexadecimal digits"}},
    {"cut after a backslash", "{\"a\\", 0, {"an escape", "got the end"}},
    {"cut after the colon", "{\"a.weight\":", 0, {"tensor a.weight", "an object", "the end"}},
    {"text behind it", "{}x", 0, {"expected the end", "got 'x'"}},
    {"two objects", "{}{}", 0, {"expected the end", "got '{'"}},
    {"a comma too many", "{\"a.weight\":" U8 ",}", 8, {"expected a string", "'}'"}},
    {"no comma", "{\"a.weight\":" U8 " \"b\":" U8 "}", 8, {"',' or '}'"}},
    {"no colon", "{\"a.weight\" " U8 "}", 8, {"':'", "'{'"}},
    {"a number for a name", "{7:" U8 "}", 8, {"expected a string", "got 7"}},
    {"duplicate names", "{\"a.weight\":" U8 ",\"a.weight\":" U8 "}", 8, {"tensor a.weight", "unique names", "duplicate"}},
    {"duplicate names, one escaped", "{\"a.weight\":" U8 ",\"\\u0061.weight\":" U8 "}", 8, {"tensor a.weight", "duplicate"}},
    {"name not UTF-8", "{\"a\xff\":" U8 "}", 8, {"UTF-8", "byte 0xff"}},
    {"name cut inside a character", "{\"a\xc3\":" U8 "}", 8, {"UTF-8", "byte 0xc3"}},
    {"overlong character", "{\"a\xc0\xaf\":" U8 "}", 8, {"UTF-8", "byte 0xc0"}},
    {"surrogate as bytes", "{\"a\xed\xa0\x80\":" U8 "}", 8, {"UTF-8", "byte 0xed"}},
    {"beyond Unicode", "{\"a\xf4\x90\x80\x80\":" U8 "}", 8, {"UTF-8", "byte 0xf4"}},
    {"control character", "{\"a\nb\":" U8 "}", 8, {"UTF-8 without control characters", "byte 0x0a"}},
    {"high surrogate alone", "{\"a\\ud800\":" U8 "}", 8, {"Unicode scalar values", "\\ud800"}},
    {"low surrogate alone", "{\"a\\udc00\":" U8 "}", 8, {"Unicode scalar values", "\\udc00"}},
    {"high surrogate, then a letter", "{\"a\\ud800\\u0041\":" U8 "}", 8, {"Unicode scalar values", "\\ud800"}},
    {"NUL in a name", "{\"a.weight\\u0000x\":" U8 "}", 8, {"no NUL", "\\u0000"}},
    {"NUL in a dtype", ONE("U8\\u0000", "[8]", "[0,8]"), 8, {"tensor a.weight: dtype", "no NUL"}},
    {"unknown escape", "{\"a\\x41\":" U8 "}", 8, {"an escape of JSON", "'x'"}},
    {"bad hexadecimal digit", "{\"a\\u00g1\":" U8 "}", 8, {"four hexadecimal digits"}},
    {"metadata not an object", "{\"__metadata__\":7}", 0, {"__metadata__", "an object", "got 7"}},
    {"metadata not strings", "{\"__metadata__\":{\"a\":7}}", 0, {"__metadata__", "a string", "got 7"}},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, {"__metadata__", "duplicate"}},
    {"entry not an object", "{\"a.weight\":[]}", 0, {"tensor a.weight", "an object", "array []"}},
    {"entry null", "{\"a.weight\":null}", 0, {"tensor a.weight", "an object", "null"}},
    {"no dtype", "{\"a.weight\":{\"shape\":[8],\"data_offsets\":[0,8]}}", 8, {"tensor a.weight", "dtype: expected present", "absent"}},
    {"no shape", "{\"a.weight\":{\"dtype\":\"U8\",\"data_offsets\":[0,8]}}", 8, {"tensor a.weight", "shape: expected present", "absent"}},
    {"no offsets", "{\"a.weight\":{\"dtype\":\"U8\",\"shape\":[8]}}", 8, {"tensor a.weight", "data_offsets: expected present", "absent"}},
    {"dtype twice", "{\"a.weight\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}", 8,
     {"tensor a.weight", "duplicate", "dtype"}},
    {"unknown key", "{\"a.weight\":{\"strides\":[1],\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}", 8,
     {"unknown key", "got strides"}},
    {"unknown dtype", ONE("F7_E9", "[8]", "[0,8]"), 8, {"tensor a.weight: dtype", "BF16", "got F7_E9"}},
    {"dtype in small letters", ONE("u8", "[8]", "[0,8]"), 8, {"tensor a.weight: dtype", "got u8"}},
    {"empty dtype", ONE("", "[8]", "[0,8]"), 8, {"tensor a.weight: dtype", "one of F64"}},
    {"dtype a number", "{\"a.weight\":{\"dtype\":8,\"shape\":[8],\"data_offsets\":[0,8]}}", 8,
     {"tensor a.weight: dtype", "a string", "got 8"}},
    {"shape a number", ONE("U8", "8", "[0,8]"), 8, {"tensor a.weight: shape", "an array", "got 8"}},
    {"negative dimension", ONE("U8", "[-8]", "[0,8]"), 8, {"tensor a.weight: shape", "non-negative integers", "[-8]"}},
    {"minus zero", ONE("U8", "[-0]", "[0,0]"), 0, {"tensor a.weight: shape", "non-negative integers", "[-0]"}},
    {"fractional dimension", ONE("U8", "[8.5]", "[0,8]"), 8, {"tensor a.weight: shape", "non-negative integers", "[8.5]"}},
    {"dimension 8.0", ONE("U8", "[8.0]", "[0,8]"), 8, {"tensor a.weight: shape", "[8.0]"}},
    {"dimension 8e0", ONE("U8", "[8e0]", "[0,8]"), 8, {"tensor a.weight: shape", "[8e0]"}},
    {"dimension 08", ONE("U8", "[08]", "[0,8]"), 8, {"tensor a.weight: shape", "',' or ']'"}},
    {"dimension a string", ONE("U8", "[\"8\"]", "[0,8]"), 8, {"tensor a.weight: shape", "[\"8\"]"}},
    {"dimension 2^64", ONE("U8", "[18446744073709551616]", "[0,8]"), 8, {"below 2^64", "18446744073709551616"}},
    {"product 2^64", ONE("U8", "[4294967296,4294967296]", "[0,0]"), 0,
     {"tensor a.weight: shape", "below 2^64", "[4294967296, 4294967296]"}},
    {"bytes 2^64", ONE("F64", "[2305843009213693952]", "[0,0]"), 0, {"tensor a.weight: shape", "below 2^64", "[2305843009213693952]"}},
    {"nine dimensions", ONE("U8", "[1,1,1,1,1,1,1,1,8]", "[0,8]"), 8, {"tensor a.weight: shape", "at most 8 dimensions", "9 dimensions"}},
    {"one offset", ONE("U8", "[8]", "[0]"), 8, {"tensor a.weight: data_offsets", "2 numbers", "1 number"}},
    {"no offset", ONE("U8", "[8]", "[]"), 8, {"tensor a.weight: data_offsets", "2 numbers", "0 numbers"}},
    {"three offsets", ONE("U8", "[8]", "[0,8,8]"), 8, {"tensor a.weight: data_offsets", "2 numbers", "3 numbers"}},
    {"reversed offsets", ONE("U8", "[8]", "[8,0]"), 8, {"tensor a.weight: data_offsets", "start <= end", "[8, 0]"}},
    {"negative offset", ONE("U8", "[8]", "[-8,0]"), 8, {"tensor a.weight: data_offsets", "non-negative", "[-8,0]"}},
    {"fractional offset", ONE("U8", "[8]", "[0.5,8.5]"), 8, {"tensor a.weight: data_offsets", "integers", "0.5"}},
    {"offset 2^64", ONE("U8", "[8]", "[0,18446744073709551616]"), 8, {"tensor a.weight: data_offsets", "18446744073709551616"}},
    {"fewer bytes than dtype x shape", ONE("F32", "[8]", "[0,8]"), 8, {"tensor a.weight: F32 [8]", "expected 32 bytes", "got 8 bytes"}},
    {"more bytes than dtype x shape", ONE("U8", "[2,3]", "[0,8]"), 8, {"tensor a.weight: U8 [2, 3]", "expected 6 bytes", "got 8 bytes"}},
    {"a scalar of no bytes", ONE("U8", "[]", "[0,0]"), 0, {"tensor a.weight: U8 []", "expected 1 bytes", "got 0 bytes"}},
    {"overlap", TWO("[0,8]", "[7,15]"), 16, {"tensor b.weight: data_offsets", "start 8", "start 7"}},
    {"the same bytes twice", TWO("[0,8]", "[0,8]"), 8, {"weight: data_offsets", "start 8", "start 0"}},
    {"hole", TWO("[0,8]", "[9,17]"), 17, {"tensor b.weight: data_offsets", "start 8", "start 9"}},
    {"hole before the first", ONE("U8", "[8]", "[8,16]"), 16, {"tensor a.weight: data_offsets", "start 0", "start 8"}},
    {"past the end", TWO("[0,8]", "[16,24]"), 16, {"tensor b.weight: data_offsets", "end at most 16", "got 24"}},
    {"near 2^64", TWO("[0,8]", "[18446744073709551607,18446744073709551615]"), 16,
     {"tensor b.weight", "end at most 16", "18446744073709551615"}},
    {"near 2^64, wrong length", TWO("[0,8]", "[18446744073709551600,18446744073709551615]"), 16, {"tensor b.weight", "end at most 16"}},
    {"file too short", TWO("[0,8]", "[8,16]"), 15, {"expected a file of 144 bytes", "got 143 bytes", "cut short"}},
    {"file too long", TWO("[0,8]", "[8,16]"), 17, {"expected a file of 144 bytes", "got 145 bytes", "follow"}},
    {"tensors to the end of all offsets", ONE("U8", "[18446744073709551615]", "[0,18446744073709551615]"), 8,
     {"expected a file of 18446744073709551615"}},
    {"data without tensors", "{}", 8, {"expected a file of 10 bytes", "got 18 bytes"}},
};

static void test_refusals(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const char *file_name[] = {FILE_NAME, NULL};
        error.message[0] = 0;
        mica_status status = parse(refusals[i].header, refusals[i].data_bytes);
        if (status != MICA_BAD_INPUT)
            fail_msg("%s: expected a refusal, got status %d", refusals[i].what, (int)status);
        assert_int_equal(error.status, status);
        assert_says(refusals[i].what, error.message, file_name);
        assert_says(refusals[i].what, error.message, refusals[i].says);
        assert_int_equal(mica_safetensors_parse("x", refusals[i].header, strlen(refusals[i].header),
                                                8 + strlen(refusals[i].header) + refusals[i].data_bytes, &tensors, NULL), MICA_BAD_INPUT);
    }
}

/* Every prefix of a good header is refused; so is a good header with any one byte made 0xff or NUL. */
static void test_every_cut_and_bad_byte(void **state) {
    (void)state;
    const char *good = "{\"__metadata__\":{\"k\":\"v\"},\"a.weight\":" ENTRY("BF16", "[2, 2]", "[0,8]") ",\"b\":" ENTRY("F32",
        "[]", "[8,12]") "}";
    size_t length = strlen(good);
    assert_int_equal(parse(good, 12), MICA_OK);
    mica_safetensors_release(&tensors);
    char copy[256];
    for (size_t cut = 0; cut < length; cut++) {
        char *exact = malloc(cut + 1); /* so that a sanitizer sees a read past the end */
        memcpy(exact, good, cut);
        assert_int_equal(parse_bytes(exact, cut, 12), MICA_BAD_INPUT);
        free(exact);
        for (int byte = 0; byte < 256; byte += 255) {
            memcpy(copy, good, length);
            copy[cut] = (char)byte;
            assert_int_equal(parse_bytes(copy, length, 12), MICA_BAD_INPUT);
        }
    }
}

static void test_accepts(void **state) {
    (void)state;
    /* Another order than the data's, an empty tensor between, escapes, spaces, numbers of all sizes, trailing padding. */
    const char *header = "{ \"z\\u00e9\\ud83d\\ude00\\n\\\"\\\\\\/\\b\\f\\r\\t\" :\n" ENTRY("F64", "[1, 2,1,1,1,1,1,1]", "[ 6 , 22 ]")
                         ",\"__metadata__\":{\"format\":\"pt\",\"nul\":\"\\u0000\"},\"m\":" ENTRY("F8_E4M3", "[0, 7]", "[6,6]")
                         ",\"b\":" ENTRY("I16", "[1,3]", "[0,6]") ",\"\":" ENTRY("BOOL", "[]", "[22,23]") "}   \n";
    size_t base = 8 + strlen(header);
    assert_int_equal(parse(header, 23), MICA_OK);
    assert_int_equal(tensors.tensor_count, 4);
    static const struct {
        const char *name;
        mica_dtype dtype;
        uint32_t rank;
        uint64_t elements, offset, bytes;
    } rows[] = {{"", MICA_BOOL, 0, 1, 22, 1},
                {"b", MICA_I16, 2, 3, 0, 6},
                {"m", MICA_F8_E4M3, 2, 0, 6, 0},
                {"z\xc3\xa9\xf0\x9f\x98\x80\n\"\\/\b\f\r\t", MICA_F64, 8, 2, 6, 16}};
    for (size_t i = 0; i < 4; i++) {
        const mica_tensor *tensor = &tensors.tensors[i];
        assert_string_equal(tensor->name, rows[i].name);
        assert_int_equal(tensor->dtype, rows[i].dtype);
        assert_int_equal(tensor->rank, rows[i].rank);
        assert_int_equal(tensor->elements, rows[i].elements);
        assert_int_equal(tensor->offset, base + rows[i].offset);
        assert_int_equal(tensor->bytes, rows[i].bytes);
        assert_int_equal(tensor->shard, 0);
    }
    assert_int_equal(tensors.tensors[3].shape[1], 2);
    assert_int_equal(tensors.tensors[2].shape[1], 7);
    mica_safetensors_release(&tensors);
    assert_int_equal(parse("{}", 0), MICA_OK);
    assert_int_equal(tensors.tensor_count, 0);
    mica_safetensors_release(&tensors);
    /* an empty tensor lies before the one that begins where it does, whatever their names */
    assert_int_equal(parse("{\"a\":" ENTRY("U8", "[8]", "[0,8]") ",\"b\":" ENTRY("U8", "[0]", "[0,0]") ",\"c\":" ENTRY("U8", "[0]", "[8,8]") "}", 8), MICA_OK);
    assert_int_equal(tensors.tensor_count, 3);
    mica_safetensors_release(&tensors);
}

static void test_every_dtype(void **state) {
    (void)state;
    for (int i = 0; i < MICA_DTYPE_PLAIN_COUNT; i++) {
        char header[160];
        uint64_t bytes = 3 * mica_dtype_bytes((mica_dtype)i);
        snprintf(header, sizeof header, "{\"t\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%d]}}",
            mica_dtype_name((mica_dtype)i), (int)bytes);
        assert_int_equal(parse(header, bytes), MICA_OK);
        assert_int_equal(tensors.tensors[0].dtype, i);
        mica_safetensors_release(&tensors);
    }
}

/* Depth must be bounded wherever a value can stand, and the stack must survive. */
static void test_depth(void **state) {
    (void)state;
    static const char *const starts[] = {"", "{\"a\":", "{\"__metadata__\":{\"x\":", "{\"a\":{\"dtype\":", "{\"a\":{\"shape\":[",
        "{\"a\":{\"data_offsets\":"};
    static const char *const nests[] = {"[", "{\"k\":"};
    enum { DEPTH = 50000 };
    char *header = malloc(64 + DEPTH * 5 + 1);
    assert_non_null(header);
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
        for (size_t j = 0; j < 2; j++) {
            strcpy(header, starts[i]);
            char *end = header + strlen(header);
            for (int k = 0; k < DEPTH; k++)
                end = stpcpy(end, nests[j]);
            const char *says[] = {i < 2 && j == 1 ? "unknown key" : "at most 64 levels", NULL};
            assert_int_equal(parse(header, 0), MICA_BAD_INPUT);
            assert_says(starts[i], error.message, says);
        }
    }
    free(header);
}

/* Long names are cut in messages, between characters, and the sentence's end is still there. */
static void test_long_names(void **state) {
    (void)state;
    char header[4096] = "{\"a";
    for (int i = 0; i < 1000; i++)
        strcat(header, "\xc3\xa9");
    strcat(header, "\":" ENTRY("F7", "[8]", "[0,8]") "}");
    const char *says[] = {"\xc3\xa9...: dtype", "got F7", NULL};
    assert_int_equal(parse(header, 8), MICA_BAD_INPUT);
    assert_says("long name", error.message, says);
    assert_null(strchr(error.message, '?'));
}

static mica_status read_file(const char *name) {
    mica_file *file = NULL;
    assert_int_equal(mica_file_open(scratch(name), true, &file, &error), MICA_OK);
    mica_status status = mica_safetensors_read(file, name, &tensors, &error);
    mica_file_close(file, NULL);
    return status;
}

/* The length in front: checked before anything of that size is allocated. */
static void test_header_length(void **state) {
    (void)state;
    static const struct {
        const char *what;
        uint8_t bytes[16];
        size_t length;
        const char *says[4];
    } rows[] = {
        {"empty file", {0}, 0, {"x.safetensors", "at least 8 bytes", "0 bytes"}},
        {"five bytes", {2}, 5, {"x.safetensors", "at least 8 bytes", "5 bytes"}},
        {"zero", {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, 10, {"header length", "JSON object", "got 0"}},
        {"one too many", {3, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, 10, {"header length", "at most 2", "got 3"}},
        {"one short", {1, 0, 0, 0, 0, 0, 0, 0, '{', '}'}, 10, {"header of 1 bytes", "got the end"}},
        {"1 GiB", {0, 0, 0, 0x40, 0, 0, 0, 0, '{', '}'}, 10, {"header length", "at most 2", "1073741824"}},
        {"sign bit", {0, 0, 0, 0, 0, 0, 0, 0x80, '{', '}'}, 10, {"header length", "at most 2", "9223372036854775808"}},
        {"all ones", {255, 255, 255, 255, 255, 255, 255, 255, '{', '}'}, 10, {"header length", "at most 2", "18446744073709551615"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        scratch_write("x.safetensors", rows[i].bytes, rows[i].length);
        mica_memory_fail_after(0);
        assert_int_equal(read_file("x.safetensors"), MICA_BAD_INPUT);
        assert_true(mica_memory_fail_after(0) <= 4);
        assert_says(rows[i].what, error.message, rows[i].says);
    }
    scratch_write("x.safetensors", "\2\0\0\0\0\0\0\0{}", 10);
    assert_int_equal(read_file("x.safetensors"), MICA_OK);
    mica_safetensors_release(&tensors);
}

/* 100 MB is the reference implementation's limit; the file here is sparse. */
static void test_header_limit(void **state) {
    (void)state;
    uint64_t length = 100000001;
    uint8_t raw[8] = {0};
    for (int i = 0; i < 8; i++)
        raw[i] = (uint8_t)(length >> 8 * i);
    scratch_write("x.safetensors", raw, 8);
    assert_int_equal(truncate(scratch("x.safetensors"), 200000000), 0);
    assert_int_equal(read_file("x.safetensors"), MICA_BAD_INPUT);
    const char *says[] = {"header length", "at most 100000000", "100000001", NULL};
    assert_says("limit", error.message, says);
}

static void test_out_of_memory(void **state) {
    (void)state;
    const char *header = "{\"b.weight\":" ENTRY("U8", "[8]", "[8,16]") ",\"a.weight\":" U8 "}";
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        no_memory_begin(&trial);
        const mica_status status = parse(header, 16);
        no_memory_end(&trial, status, MICA_OK, &error);
        if (status == MICA_OK)
            mica_safetensors_release(&tensors);
    }
}

/* Twenty thousand names in an awkward order: sorted, and at once. */
static void test_many(void **state) {
    (void)state;
    enum { COUNT = 20000 };
    mica_text header = MICA_TEXT_INIT;
    for (int i = 0; i < COUNT; i++) {
        int tensor = (int)((i * 7919LL) % COUNT);
        mica_text_printf(&header, "%s\"t.%d\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[%d,%d]}", i ? "," : "{", tensor,
            tensor * 8, tensor * 8 + 8);
    }
    mica_text_puts(&header, "}");
    assert_int_equal(parse_bytes(header.bytes, header.length, COUNT * 8), MICA_OK);
    assert_int_equal(tensors.tensor_count, COUNT);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(tensors.tensors[i].offset, 8 + header.length + 8 * strtoul(tensors.tensors[i].name + 2, NULL, 10));
        assert_true(i == 0 || strcmp(tensors.tensors[i - 1].name, tensors.tensors[i].name) < 0);
    }
    mica_safetensors_release(&tensors);
    mica_text_release(&header);
}

static void test_shape_show(void **state) {
    (void)state;
    char buffer[64], small[6];
    uint64_t shape[] = {2048, 7168, UINT64_MAX};
    assert_string_equal(mica_shape_show(2, shape, buffer, sizeof buffer), "[2048, 7168]");
    assert_string_equal(mica_shape_show(0, shape, buffer, sizeof buffer), "[]");
    assert_string_equal(mica_shape_show(3, shape, buffer, sizeof buffer), "[2048, 7168, 18446744073709551615]");
    assert_string_equal(mica_shape_show(3, shape, small, sizeof small), "[2048");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),     cmocka_unit_test(test_every_cut_and_bad_byte), cmocka_unit_test(test_accepts),
        cmocka_unit_test(test_every_dtype),  cmocka_unit_test(test_depth),                  cmocka_unit_test(test_long_names),
        cmocka_unit_test(test_header_length), cmocka_unit_test(test_header_limit),          cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_many),         cmocka_unit_test(test_shape_show),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
