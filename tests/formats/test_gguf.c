/* Judges formats/gguf*.c: every type of value, the table of tensors, alignment and splits as written; then files that are wrong in one
 * place each, refused in one line that names it; every prefix of a file; every allocation that fails. gguf (PyPI) and llama.cpp's own
 * files are read in tests/interop/gguf_files.py. */
#include "base/no_memory.h"
#include "formats/gguf.h"

#include <math.h>

#include "formats/gguf_bytes.h"
#include "formats/shards.h"
#include "formats/tensor_source.h"

/* A small file with one of everything: two tensors, the second of blocks. */
static mica_text whole_file(void) {
    mica_text file = MICA_TEXT_INIT;
    put_start(&file, 2, 16);
    put_text(&file, "general.architecture", "test");
    put_key(&file, "a.u8", MICA_GGUF_UINT8), put(&file, 200, 1);
    put_key(&file, "a.i8", MICA_GGUF_INT8), put(&file, (uint64_t)-7, 1);
    put_key(&file, "a.u16", MICA_GGUF_UINT16), put(&file, 65535, 2);
    put_key(&file, "a.i16", MICA_GGUF_INT16), put(&file, (uint64_t)-300, 2);
    put_u32(&file, "a.u32", 4000000000u);
    put_key(&file, "a.i32", MICA_GGUF_INT32), put(&file, (uint64_t)-70000, 4);
    put_key(&file, "a.f32", MICA_GGUF_FLOAT32), put(&file, 0x3fc00000, 4);
    put_key(&file, "a.bool", MICA_GGUF_BOOL), put(&file, 1, 1);
    put_key(&file, "a.u64", MICA_GGUF_UINT64), put(&file, UINT64_MAX, 8);
    put_key(&file, "a.i64", MICA_GGUF_INT64), put(&file, (uint64_t)INT64_MIN, 8);
    put_key(&file, "a.f64", MICA_GGUF_FLOAT64), put(&file, 0xc000000000000000, 8);
    put_key(&file, "b.strings", MICA_GGUF_ARRAY), put(&file, MICA_GGUF_STRING, 4), put(&file, 3, 8);
    put_string(&file, "one"), put_string(&file, ""), put_string(&file, "\xc3\xa9");
    put_key(&file, "b.numbers", MICA_GGUF_ARRAY), put(&file, MICA_GGUF_INT32, 4), put(&file, 2, 8);
    put(&file, 5, 4), put(&file, (uint64_t)-5, 4);
    put_key(&file, "b.empty", MICA_GGUF_ARRAY), put(&file, MICA_GGUF_FLOAT32, 4), put(&file, 0, 8);
    put_u32(&file, "general.alignment", 64);
    put_tensor(&file, "z.weight", NE(3, 2), 0, 0);
    put_tensor(&file, "a.weight", NE(64, 3, 2), 2, 64);
    put_padding(&file, 64);
    for (uint32_t i = 0; i < 6; i++)
        put(&file, 0x3f800000 + (i << 20), 4);
    put_padding(&file, 64);
    put_zeros(&file, 12 * 18);
    put_padding(&file, 64);
    return file;
}

static void test_reads_everything(void **state) {
    (void)state;
    mica_text file = whole_file();
    mica_gguf gguf;
    mica_error error = {0};
    assert_int_equal(mica_gguf_parse("x.gguf", (const uint8_t *)file.bytes, file.length, file.length, &gguf, &error), MICA_OK);
    assert_int_equal(gguf.version, 3);
    assert_int_equal(gguf.alignment, 64);
    assert_int_equal(gguf.entry_count, 16);
    assert_string_equal(gguf.entries[0].key, "general.architecture"); /* the file's order */
    uint16_t u16;
    uint32_t u32;
    int32_t i32;
    float f32;
    bool flag;
    mica_gguf_string text;
    assert_int_equal(mica_gguf_u16(&gguf, "a.u16", &u16, &error), MICA_OK);
    assert_int_equal(u16, 65535);
    assert_int_equal(mica_gguf_u32(&gguf, "a.u32", &u32, &error), MICA_OK);
    assert_int_equal(u32, 4000000000u);
    assert_int_equal(mica_gguf_i32(&gguf, "a.i32", &i32, &error), MICA_OK);
    assert_int_equal(i32, -70000);
    assert_int_equal(mica_gguf_f32(&gguf, "a.f32", &f32, &error), MICA_OK);
    assert_true(f32 == 1.5f);
    assert_int_equal(mica_gguf_bool(&gguf, "a.bool", &flag, &error), MICA_OK);
    assert_true(flag);
    assert_int_equal(mica_gguf_text(&gguf, "general.architecture", &text, &error), MICA_OK);
    assert_true(text.length == 4 && memcmp(text.bytes, "test", 4) == 0);
    static const struct {
        const char *key;
        int64_t value;
    } integers[] = {{"a.u8", 200}, {"a.i8", -7}, {"a.u16", 65535}, {"a.i16", -300}, {"a.u32", 4000000000}, {"a.i32", -70000}, {"a.bool", 1},
                    {"a.u64", -1}, {"a.i64", INT64_MIN}};
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        assert_int_equal(mica_gguf_integer_at(mica_gguf_find(&gguf, integers[i].key), 0), integers[i].value);
    assert_true(mica_gguf_float_at(mica_gguf_find(&gguf, "a.f64"), 0) == -2.0 &&
                mica_gguf_float_at(mica_gguf_find(&gguf, "a.f32"), 0) == 1.5);
    const mica_gguf_entry *entry;
    assert_int_equal(mica_gguf_array(&gguf, "b.numbers", MICA_GGUF_INT32, &entry, &error), MICA_OK);
    assert_true(entry->count == 2 && mica_gguf_integer_at(entry, 0) == 5 && mica_gguf_integer_at(entry, 1) == -5);
    assert_int_equal(mica_gguf_array(&gguf, "b.empty", MICA_GGUF_FLOAT32, &entry, &error), MICA_OK);
    assert_int_equal(entry->count, 0);
    assert_int_equal(mica_gguf_array(&gguf, "b.strings", MICA_GGUF_STRING, &entry, &error), MICA_OK);
    static const char *const strings[] = {"one", "", "\xc3\xa9"};
    uint64_t at = 0, count = 0;
    while (mica_gguf_next_string(entry, &at, &text)) {
        assert_int_equal(text.length, strlen(strings[count]));
        assert_memory_equal(text.bytes, strings[count++], text.length);
    }
    assert_int_equal(count, 3);
    assert_int_equal(gguf.tensor_count, 2);
    const mica_tensor *blocks = &gguf.tensors[0], *floats = &gguf.tensors[1]; /* sorted */
    assert_string_equal(blocks->name, "a.weight");
    assert_string_equal(floats->name, "z.weight");
    assert_true(floats->rank == 2 && floats->shape[0] == 2 && floats->shape[1] == 3 && floats->dtype == MICA_F32 && floats->bytes == 24);
    assert_true(blocks->rank == 3 && blocks->shape[0] == 2 && blocks->shape[1] == 3 && blocks->shape[2] == 64);
    assert_true(blocks->dtype == MICA_Q4_0 && blocks->elements == 384 && blocks->bytes == 216);
    assert_int_equal(gguf.data_offset % 64, 0);
    assert_int_equal(floats->offset, gguf.data_offset);
    assert_int_equal(blocks->offset, gguf.data_offset + 64);
    mica_gguf_release(&gguf);
    mica_text_release(&file);
}

/* Version 2 differs in nothing that a little-endian file of version 3 has. */
static void test_version_2(void **state) {
    (void)state;
    mica_text file = whole_file();
    mica_gguf gguf;
    mica_error error = {0};
    file.bytes[4] = 2;
    assert_int_equal(mica_gguf_parse("x.gguf", (const uint8_t *)file.bytes, file.length, file.length, &gguf, &error), MICA_OK);
    assert_true(gguf.version == 2 && gguf.entry_count == 16 && gguf.tensor_count == 2);
    mica_gguf_release(&gguf);
    mica_text_release(&file);
}

/* Getters compare types and never convert. */
static void test_wrong_types_of_keys(void **state) {
    (void)state;
    mica_text file = whole_file();
    mica_gguf gguf;
    mica_error error = {0};
    uint32_t u32 = 9;
    float f32;
    mica_gguf_string text;
    const mica_gguf_entry *entry;
    assert_int_equal(mica_gguf_parse("x.gguf", (const uint8_t *)file.bytes, file.length, file.length, &gguf, &error), MICA_OK);
    assert_int_equal(mica_gguf_u32(&gguf, "a.i32", &u32, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "x.gguf: key a.i32: expected u32, got i32");
    assert_int_equal(mica_gguf_u32(&gguf, "b.numbers", &u32, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "x.gguf: key b.numbers: expected u32, got array of i32");
    assert_int_equal(mica_gguf_u32(&gguf, "none", &u32, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "x.gguf: key none: expected u32, got absent");
    assert_int_equal(mica_gguf_u32_if_present(&gguf, "none", &u32, &error), MICA_OK);
    assert_int_equal(u32, 9);
    assert_int_equal(mica_gguf_u32_if_present(&gguf, "a.u64", &u32, &error), MICA_BAD_INPUT);
    assert_int_equal(mica_gguf_f32(&gguf, "a.f64", &f32, &error), MICA_BAD_INPUT);
    assert_int_equal(mica_gguf_text(&gguf, "a.u8", &text, &error), MICA_BAD_INPUT);
    assert_int_equal(mica_gguf_array(&gguf, "b.numbers", MICA_GGUF_UINT32, &entry, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "x.gguf: key b.numbers: expected array of u32, got array of i32");
    assert_int_equal(mica_gguf_array(&gguf, "a.u32", MICA_GGUF_UINT32, &entry, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message, "x.gguf: key a.u32: expected array of u32, got u32");
    mica_gguf_release(&gguf);
    mica_text_release(&file);
}

/* ---- files that are wrong in one place */

static void say(const char *what, mica_text *file, const char *const *parts) {
    mica_gguf gguf;
    mica_error error = {0};
    mica_status status = mica_gguf_parse("x.gguf", (const uint8_t *)file->bytes, file->length, file->length, &gguf, &error);
    if (status == MICA_OK)
        fail_msg("%s: accepted", what);
    assert_int_equal(status, MICA_BAD_INPUT);
    assert_says(what, error.message, parts);
    mica_text_release(file);
}
#define SAY(what, ...) say(what, &f, (const char *const[]){"x.gguf: ", __VA_ARGS__, NULL})
#define FRESH(tensors, entries) \
    f = (mica_text)MICA_TEXT_INIT; \
    put_start(&f, tensors, entries)

static void test_bad_starts(void **state) {
    (void)state;
    mica_text f = MICA_TEXT_INIT;
    SAY("empty", "magic", "expected 4 bytes", "got 0 to the end of the file");
    f = (mica_text)MICA_TEXT_INIT, mica_text_puts(&f, "GGML\3");
    SAY("magic", "magic", "\"GGUF\"", "47 47 4d 4c");
    f = (mica_text)MICA_TEXT_INIT, mica_text_puts(&f, "GGUF"), put(&f, 1, 4);
    SAY("version 1", "version", "2 or 3", "got 1");
    f = (mica_text)MICA_TEXT_INIT, mica_text_puts(&f, "GGUF"), put(&f, 0x03000000, 4);
    SAY("big-endian", "version", "big-endian");
    FRESH(UINT64_C(1) << 60, 0);
    SAY("tensors", "count of tensors", "1152921504606846976");
    FRESH(0, UINT64_MAX);
    SAY("keys", "count of keys", "18446744073709551615");
    FRESH(3, 0);
    SAY("fewer tensors", "count of tensors", "got 3");
}

static void test_bad_keys(void **state) {
    (void)state;
    mica_text f;
    FRESH(0, 1), put(&f, UINT64_C(1) << 60, 8), put_zeros(&f, 32);
    SAY("key of 2^60 bytes", "key 0", "name", "1152921504606846976 bytes");
    FRESH(0, 1), put(&f, UINT64_MAX, 8), put_zeros(&f, 32);
    SAY("key of 2^64 - 1 bytes", "key 0", "18446744073709551615 bytes");
    FRESH(0, 1), put_key(&f, "k", MICA_GGUF_STRING), put(&f, UINT64_C(1) << 60, 8), put_zeros(&f, 32);
    SAY("string of 2^60 bytes", "key k", "string", "1152921504606846976 bytes", "32 to the end");
    FRESH(0, 1), put_string(&f, ""), put(&f, 4, 4), put(&f, 1, 4), put_zeros(&f, 32);
    SAY("empty key", "name", "1 to 65535 bytes", "got 0");
    FRESH(0, 1), put_string(&f, "k\xff"), put_zeros(&f, 32);
    SAY("key that is no UTF-8", "key 0", "UTF-8", "0xff at 1");
    FRESH(0, 1), put_string(&f, "a\nb"), put_zeros(&f, 32);
    SAY("key with a newline", "UTF-8", "0x0a");
    FRESH(0, 1), put_key(&f, "k", (mica_gguf_type)13), put_zeros(&f, 32);
    SAY("type 13", "key k", "type below 13", "got 13");
    FRESH(0, 1), put_key(&f, "k", MICA_GGUF_BOOL), put(&f, 2, 1);
    SAY("bool 2", "key k", "0 or 1", "got 2");
    FRESH(0, 2), put_u32(&f, "same", 1), put_u32(&f, "same", 1);
    SAY("duplicate key", "key same", "once", "duplicate");
    FRESH(0, 1), put_key(&f, "k", MICA_GGUF_ARRAY), put(&f, MICA_GGUF_ARRAY, 4), put(&f, 1, 8), put_zeros(&f, 32);
    SAY("nested arrays", "key k", "no arrays", "nested arrays");
    FRESH(0, 1), put_key(&f, "k", MICA_GGUF_ARRAY), put(&f, 99, 4), put(&f, 1, 8), put_zeros(&f, 32);
    SAY("type of elements", "key k", "elements", "got 99");
    FRESH(0, 1), put_key(&f, "k", MICA_GGUF_ARRAY), put(&f, MICA_GGUF_UINT64, 4), put(&f, UINT64_C(1) << 61, 8), put_zeros(&f, 32);
    SAY("array of 2^64 bytes", "key k", "array", "2305843009213693952");
    FRESH(0, 1), put_key(&f, "k", MICA_GGUF_ARRAY), put(&f, MICA_GGUF_UINT8, 4), put(&f, 33, 8), put_zeros(&f, 32);
    SAY("array longer than the file", "key k", "33 bytes", "32 to the end");
    FRESH(0, 1), put_key(&f, "k", MICA_GGUF_ARRAY), put(&f, MICA_GGUF_STRING, 4), put(&f, UINT64_C(1) << 40, 8), put_zeros(&f, 32);
    SAY("array of 2^40 strings", "key k", "room for", "1099511627776 strings");
    FRESH(0, 1), put_u32(&f, "general.alignment", 48), put_zeros(&f, 32);
    SAY("alignment 48", "general.alignment", "power of two", "got 48");
    FRESH(0, 1), put_u32(&f, "general.alignment", 0), put_zeros(&f, 32);
    SAY("alignment 0", "general.alignment", "got 0");
    FRESH(0, 1), put_u32(&f, "general.alignment", UINT32_C(1) << 31), put_zeros(&f, 32);
    SAY("alignment 2^31", "general.alignment", "power of two up to 2^30", "got 2147483648");
    FRESH(0, 1), put_key(&f, "general.alignment", MICA_GGUF_UINT64), put(&f, 32, 8);
    SAY("alignment as u64", "general.alignment", "u32", "got u64");
}

static void test_bad_tensors(void **state) {
    (void)state;
    mica_text f;
    char name[80];
    memset(name, 'n', sizeof name);
    name[64] = '\0';
    FRESH(1, 0), put_tensor(&f, name, NE(1), 0, 0), put_zeros(&f, 64);
    SAY("name of 64 bytes", "tensor 0", "1 to 63 bytes", "got 64");
    FRESH(1, 0), put_string(&f, "t"), put(&f, 5, 4), put_zeros(&f, 64);
    SAY("rank 5", "tensor t", "at most 4", "got 5");
    FRESH(1, 0), put_tensor(&f, "t", NE(32), 16, 0), put_zeros(&f, 64);
    SAY("a type that is not read", "tensor t", "IQ2_XXS (16)", "Q4_K");
    FRESH(1, 0), put_tensor(&f, "t", NE(32), 4096, 0), put_zeros(&f, 64);
    SAY("a type that is not known", "tensor t", "not known (4096)");
    FRESH(1, 0), put_tensor(&f, "t", NE(UINT64_C(1) << 40, UINT64_C(1) << 40), 0, 0), put_zeros(&f, 64);
    SAY("product", "tensor t", "below 2^63", "1099511627776");
    FRESH(1, 0), put_tensor(&f, "t", NE(UINT64_MAX), 0, 0), put_zeros(&f, 64);
    SAY("negative dimension", "tensor t", "below 2^63", "18446744073709551615");
    FRESH(1, 0), put_tensor(&f, "t", NE(UINT64_C(1) << 62, 2), 24, 0), put_zeros(&f, 64);
    SAY("2^63 bytes", "tensor t", "below 2^63", "4611686018427387904");
    FRESH(1, 0), put_string(&f, "t"), put(&f, 2, 4), put(&f, UINT64_C(1) << 63, 8), put(&f, 0, 8), put(&f, 0, 4), put(&f, 0, 8), put_zeros(&f, 64);
    SAY("2^63 times nothing", "tensor t", "below 2^63", "9223372036854775808");
    FRESH(1, 0), put_tensor(&f, "t", NE(48, 2), 2, 0), put_zeros(&f, 128);
    SAY("half a block", "tensor t", "whole blocks of 32 (Q4_0)", "[2, 48]");
    FRESH(1, 0), put_tensor(&f, "t", NE(1), 0, 4), put_padding(&f, 32), put_zeros(&f, 32);
    SAY("misaligned", "tensor t", "offset", "expected 0", "got 4 (not aligned)");
    FRESH(2, 0), put_tensor(&f, "t", NE(1), 0, 0), put_tensor(&f, "u", NE(1), 0, 64), put_padding(&f, 32), put_zeros(&f, 96);
    SAY("hole", "tensor u", "expected 32", "got 64 (a hole)");
    FRESH(2, 0), put_tensor(&f, "t", NE(16), 0, 0), put_tensor(&f, "u", NE(1), 0, 32), put_padding(&f, 32), put_zeros(&f, 96);
    SAY("overlap", "tensor u", "expected 64", "got 32 (an overlap)");
    FRESH(2, 0), put_tensor(&f, "t", NE(1), 0, 0), put_tensor(&f, "t", NE(1), 0, 32), put_padding(&f, 32), put_zeros(&f, 64);
    SAY("duplicate tensor", "tensor t", "unique", "duplicate");
    FRESH(1, 0), put_tensor(&f, "t", NE(16), 0, 0), put_padding(&f, 32), put_zeros(&f, 63);
    SAY("cut short", "tensor t", "64 bytes at", "cut short");
    FRESH(1, 0), put_tensor(&f, "t", NE(1), 0, 0), put_padding(&f, 32), put_zeros(&f, 33);
    SAY("trailing bytes", "behind the last tensor", "1 more bytes");
    FRESH(1, 0), put_tensor(&f, "t", NE(UINT64_C(1) << 60), 0, 0), put_padding(&f, 32), put_zeros(&f, 33);
    SAY("2^62 bytes", "tensor t", "4611686018427387904 bytes", "cut short");
}

/* The last tensor may be padded or not, and no tensor at all is fine. */
static void test_ends_that_are_allowed(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        mica_text f;
        FRESH(i < 2, 0);
        if (i < 2)
            put_tensor(&f, "t", NE(1), 0, 0);
        if (i != 3)
            put_padding(&f, 32);
        put_zeros(&f, i == 0 ? 4 : i == 1 ? 32 : 0);
        mica_gguf gguf;
        mica_error error = {0};
        assert_int_equal(mica_gguf_parse("x.gguf", (const uint8_t *)f.bytes, f.length, f.length, &gguf, &error), MICA_OK);
        mica_gguf_release(&gguf);
        mica_text_release(&f);
    }
}

/* Whatever is missing at the end is noticed, and a longer file asks for more of itself. */
static void test_every_prefix(void **state) {
    (void)state;
    mica_text file = whole_file();
    mica_gguf gguf;
    mica_error error;
    uint64_t header = 0;
    assert_int_equal(mica_gguf_parse("x.gguf", (const uint8_t *)file.bytes, file.length, file.length, &gguf, &error), MICA_OK);
    header = gguf.data_offset - 63;
    mica_gguf_release(&gguf);
    for (uint64_t length = 0; length < file.length - 63; length++) {
        uint8_t *copy = malloc(length + 1); /* of exactly this size, for the sanitizer */
        assert_non_null(copy);
        memcpy(copy, file.bytes, length);
        if (length < file.length - 64)
            assert_int_equal(mica_gguf_parse("x.gguf", copy, length, length, &gguf, &error), MICA_BAD_INPUT);
        if (length < header) {
            assert_int_equal(mica_gguf_parse("x.gguf", copy, length, file.length, &gguf, &error), MICA_BAD_INPUT);
            assert_says("incomplete", error.message, (const char *const[]){"x.gguf", "whole header", NULL});
        }
        free(copy);
    }
    mica_text_release(&file);
}

static void test_without_memory(void **state) {
    (void)state;
    mica_text file = whole_file();
    put_file(&file, "whole.gguf");
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_tensor_source *source = NULL;
        mica_error error = {0};
        no_memory_begin(&trial);
        const mica_status status = mica_tensor_source_open(scratch("whole.gguf"), &source, &error);
        mica_tensor_source_close(source);
        no_memory_end(&trial, status, MICA_OK, &error);
    }
}

/* ---- as a source of tensors, single and split */

static void test_a_source(void **state) {
    (void)state;
    mica_text file = whole_file();
    put_file(&file, "one.gguf");
    mica_tensor_source *source;
    mica_error error = {0};
    assert_int_equal(mica_tensor_source_open(scratch("one.gguf"), &source, &error), MICA_OK);
    assert_int_equal(source->shard_count, 1);
    assert_string_equal(source->shards[0].name, "one.gguf");
    const mica_tensor *tensor = mica_tensor_source_find(source, "z.weight");
    assert_non_null(tensor);
    float values[6];
    assert_int_equal(mica_file_read(source->shards[0].file, tensor->offset, values, tensor->bytes, &error), MICA_OK);
    assert_true(values[0] == 1.0f && values[1] == 1.125f);
    assert_non_null(mica_gguf_of_source(source));
    assert_non_null(mica_gguf_find(mica_gguf_of_source(source), "a.f64"));
    assert_false(mica_tensor_source_has_file(source, "config.json"));
    mica_tensor_source_close(source);
}

/* A header of more than the first read. */
static void test_a_long_header(void **state) {
    (void)state;
    mica_text f;
    FRESH(1, 2), put_key(&f, "tokens", MICA_GGUF_ARRAY), put(&f, MICA_GGUF_STRING, 4), put(&f, 300000, 8);
    for (int i = 0; i < 300000; i++)
        put_string(&f, "token");
    put_u32(&f, "after", 77), put_tensor(&f, "t", NE(1), 0, 0), put_padding(&f, 32), put(&f, 0x40000000, 4);
    put_file(&f, "long.gguf");
    mica_tensor_source *source;
    mica_error error = {0};
    uint32_t after = 0;
    assert_int_equal(mica_tensor_source_open(scratch("long.gguf"), &source, &error), MICA_OK);
    assert_int_equal(mica_gguf_u32(mica_gguf_of_source(source), "after", &after, &error), MICA_OK);
    assert_int_equal(after, 77);
    assert_int_equal(mica_tensor_source_find(source, "t")->bytes, 4);
    mica_tensor_source_close(source);
}

typedef struct split {
    uint32_t number, count;
    int32_t total;
    const char *tensor; /* NULL: none */
} split;

static void write_split(const char *name, split s) {
    mica_text f;
    FRESH(s.tensor != NULL, 4), put_text(&f, "general.name", name);
    put_key(&f, "split.no", MICA_GGUF_UINT16), put(&f, s.number, 2);
    put_key(&f, "split.count", MICA_GGUF_UINT16), put(&f, s.count, 2);
    put_key(&f, "split.tensors.count", MICA_GGUF_INT32), put(&f, (uint32_t)s.total, 4);
    if (s.tensor)
        put_tensor(&f, s.tensor, NE(8), 0, 0);
    put_padding(&f, 32);
    put_zeros(&f, s.tensor ? 32 : 0);
    put_file(&f, name);
}

static void refuse_set(const char *what, const char *first, const char *const *parts) {
    mica_tensor_source *source = NULL;
    mica_error error = {0};
    mica_status status = mica_tensor_source_open(scratch(first), &source, &error);
    if (status == MICA_OK)
        fail_msg("%s: accepted", what);
    assert_says(what, error.message, parts);
}
#define REFUSE_SET(what, first, ...) refuse_set(what, first, (const char *const[]){__VA_ARGS__, NULL})

static void test_splits(void **state) {
    (void)state;
    static const char *const names[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"};
    write_split(names[0], (split){0, 3, 2, NULL}); /* the first may have none */
    write_split(names[1], (split){1, 3, 2, "b"});
    write_split(names[2], (split){2, 3, 2, "a"});
    mica_tensor_source *source;
    mica_error error = {0};
    assert_int_equal(mica_tensor_source_open(scratch(names[0]), &source, &error), MICA_OK);
    assert_int_equal(source->shard_count, 3);
    assert_int_equal(source->tensor_count, 2);
    assert_int_equal(mica_tensor_source_find(source, "a")->shard, 2);
    assert_int_equal(mica_tensor_source_find(source, "b")->shard, 1);
    mica_gguf_string name;
    assert_int_equal(mica_gguf_text(mica_gguf_of_source(source), "general.name", &name, &error), MICA_OK);
    assert_memory_equal(name.bytes, names[0], name.length);
    mica_tensor_source_close(source);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        no_memory_begin(&trial);
        const mica_status status = mica_tensor_source_open(scratch(names[0]), &source, &error);
        if (status == MICA_OK)
            mica_tensor_source_close(source);
        no_memory_end(&trial, status, MICA_OK, &error);
    }

    REFUSE_SET("not the first", names[1], names[1], "split.no", "expected 0", "first file", "got 1");
    write_split("renamed.gguf", (split){0, 3, 2, NULL});
    REFUSE_SET("another name", "renamed.gguf", "renamed.gguf", "-00001-of-00003.gguf");
    write_split(names[2], (split){1, 3, 2, "a"});
    REFUSE_SET("a cycle", names[0], names[2], "split.no", "expected 2", "got 1");
    write_split(names[2], (split){0, 3, 2, "a"});
    REFUSE_SET("a cycle to the first", names[0], names[2], "split.no", "expected 2", "got 0");
    write_split(names[2], (split){2, 4, 2, "a"});
    REFUSE_SET("another count", names[0], names[2], "split.count", "expected 3", "got 4");
    write_split(names[2], (split){2, 3, 7, "a"});
    REFUSE_SET("another total", names[0], names[2], "split.tensors.count", "expected 2", "got 7");
    write_split(names[2], (split){2, 3, 2, "b"});
    REFUSE_SET("a tensor twice", names[0], names[2], "tensor b", "one shard", names[1]);
    write_split(names[2], (split){2, 3, 2, NULL});
    REFUSE_SET("fewer tensors", names[0], names[0], "split.tensors.count", "expected 1", "got 2");
    assert_int_equal(unlink(scratch(names[2])), 0);
    REFUSE_SET("missing", names[0], "split 3 of 3", names[2]);
    write_split(names[0], (split){0, 0, 2, NULL});
    REFUSE_SET("count of 0", names[0], names[0], "split.count", "got 0");
    mica_text f;
    FRESH(0, 1), put_u32(&f, "split.count", 3), put_padding(&f, 32), put_file(&f, names[0]);
    REFUSE_SET("count as u32", names[0], names[0], "split.count", "u16", "got u32");
    FRESH(0, 1), put_key(&f, "split.count", MICA_GGUF_UINT16), put(&f, 3, 2), put_padding(&f, 32), put_file(&f, names[0]);
    REFUSE_SET("no number", names[0], names[0], "split.no", "u16", "absent");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_everything), cmocka_unit_test(test_version_2),    cmocka_unit_test(test_wrong_types_of_keys),
        cmocka_unit_test(test_bad_starts),       cmocka_unit_test(test_bad_keys),     cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_ends_that_are_allowed), cmocka_unit_test(test_every_prefix), cmocka_unit_test(test_without_memory),
        cmocka_unit_test(test_a_source),         cmocka_unit_test(test_a_long_header), cmocka_unit_test(test_splits),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
