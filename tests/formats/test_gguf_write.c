/* Judges formats/gguf_write.c: a header byte by byte, every type read back, splits and alignment, what GGUF cannot hold, and files that are
 * whole or not there. What others read of it: tests/interop/gguf_written.py. */
#include "base/no_memory.h"
#include "formats/gguf_write.h"

#include "formats/gguf_bytes.h"
#include "formats/shards.h"
#include "formats/tensor_source.h"

static mica_error error;

typedef struct row {
    const char *name;
    mica_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
} row;

static mica_status lay_out(const row *rows, uint64_t count, const mica_gguf_metadata *metadata, uint64_t split, mica_gguf_layout *layout) {
    mica_gguf_tensor *tensors = mica_calloc(count + 1, sizeof *tensors);
    if (!tensors)
        return mica_fail(&error, MICA_NO_MEMORY, "the test's own");
    for (uint64_t i = 0; i < count; i++) {
        tensors[i] = (mica_gguf_tensor){.name = rows[i].name, .dtype = rows[i].dtype, .rank = rows[i].rank, .number = i};
        memcpy(tensors[i].shape, rows[i].shape, sizeof rows[i].shape);
    }
    return mica_gguf_layout_make(tensors, count, metadata, split, layout, &error);
}

/* The same bytes as those put by hand. */
static void test_header_byte_by_byte(void **state) {
    (void)state;
    static const row rows[] = {{"z.weight", MICA_F32, 2, {2, 3}}, {"a.weight", MICA_Q4_0, 3, {2, 3, 64}}};
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_add_string(&metadata, "general.architecture", "test");
    mica_gguf_add_u32(&metadata, "n", 7);
    mica_gguf_add_strings(&metadata, "words", 2);
    mica_gguf_add_element(&metadata, "one", 3);
    mica_gguf_add_element(&metadata, "", 0);
    mica_gguf_layout layout;
    assert_int_equal(lay_out(rows, 2, &metadata, 0, &layout), MICA_OK);
    mica_text expected = MICA_TEXT_INIT;
    put_start(&expected, 2, 3), put_text(&expected, "general.architecture", "test"), put_u32(&expected, "n", 7);
    put_key(&expected, "words", MICA_GGUF_ARRAY), put(&expected, MICA_GGUF_STRING, 4), put(&expected, 2, 8);
    put_string(&expected, "one"), put_string(&expected, "");
    put_tensor(&expected, "z.weight", NE(3, 2), 0, 0), put_tensor(&expected, "a.weight", NE(64, 3, 2), 2, 32), put_padding(&expected, 32);
    assert_int_equal(layout.headers[0].length, expected.length);
    assert_memory_equal(layout.headers[0].bytes, expected.bytes, expected.length);
    assert_int_equal(layout.file_bytes[0], expected.length + 32 + 224);
    assert_int_equal(layout.tensors[1].offset, expected.length + 32);
    assert_true(layout.tensors[1].bytes == 216 && layout.data_bytes == 24 + 216);
    mica_text_release(&expected);
    mica_gguf_layout_release(&layout);
    mica_gguf_metadata_release(&metadata);
}

static void add_everything(mica_gguf_metadata *metadata) {
    static const int32_t integers[] = {5, -5};
    static const float floats[] = {0.5f, -1};
    static const uint8_t flags[] = {1, 0, 1};
    mica_gguf_add_u8(metadata, "u8", 200);
    mica_gguf_add_u16(metadata, "u16", 65535);
    mica_gguf_add_u32(metadata, "u32", 4000000000u);
    mica_gguf_add_i32(metadata, "i32", -70000);
    mica_gguf_add_u64(metadata, "u64", UINT64_MAX);
    mica_gguf_add_f32(metadata, "f32", 1.5f);
    mica_gguf_add_bool(metadata, "bool", true);
    mica_gguf_add_text(metadata, "text", "a\0b", 3);
    mica_gguf_add_array(metadata, "integers", MICA_GGUF_INT32, integers, 2);
    mica_gguf_add_array(metadata, "floats", MICA_GGUF_FLOAT32, floats, 2);
    mica_gguf_add_array(metadata, "flags", MICA_GGUF_BOOL, flags, 3);
    mica_gguf_add_array(metadata, "nothing", MICA_GGUF_UINT32, integers, 0);
}

/* Written, read, copied entry by entry: the same header again. */
static void test_read_back(void **state) {
    (void)state;
    static const row rows[] = {{"t", MICA_F16, 0, {0}}};
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT, copy = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout, again;
    mica_gguf gguf;
    add_everything(&metadata);
    mica_gguf_add_u32(&metadata, "general.alignment", 128);
    assert_int_equal(lay_out(rows, 1, &metadata, 0, &layout), MICA_OK);
    const mica_text *header = &layout.headers[0];
    assert_int_equal(header->length % 128, 0);
    assert_int_equal(mica_gguf_parse("x.gguf", (const uint8_t *)header->bytes, header->length, layout.file_bytes[0], &gguf, &error),
                     MICA_OK);
    assert_int_equal(gguf.entry_count, 13);
    assert_int_equal(gguf.alignment, 128);
    assert_int_equal(gguf.tensors[0].offset, layout.tensors[0].offset);
    assert_true(mica_gguf_integer_at(mica_gguf_find(&gguf, "i32"), 0) == -70000 &&
                mica_gguf_float_at(mica_gguf_find(&gguf, "floats"), 1) == -1);
    for (uint64_t i = 0; i < gguf.entry_count; i++)
        mica_gguf_add_entry(&copy, &gguf.entries[i]);
    assert_int_equal(lay_out(rows, 1, &copy, 0, &again), MICA_OK);
    assert_int_equal(again.headers[0].length, header->length);
    assert_memory_equal(again.headers[0].bytes, header->bytes, header->length);
    mica_gguf_release(&gguf);
    mica_gguf_layout_release(&layout);
    mica_gguf_layout_release(&again);
    mica_gguf_metadata_release(&metadata);
    mica_gguf_metadata_release(&copy);
}

static void test_what_gguf_cannot_hold(void **state) {
    (void)state;
    static const struct {
        row rows[2];
        const char *says;
    } tensors[] = {
        {{{"twice", MICA_F32, 1, {1}}, {"twice", MICA_F32, 1, {2}}}, "twice: expected unique names"},
        {{{"", MICA_F32, 1, {1}}, {"b", MICA_F32, 1, {1}}}, "1 to 63 bytes, got 0"},
        {{{"a234567890123456789012345678901234567890123456789012345678901234", MICA_F32, 1, {1}}, {"b", MICA_F32, 1, {1}}},
         "1 to 63 bytes, got 64"},
        {{{"fp8", MICA_F8_E4M3, 1, {1}}, {"b", MICA_F32, 1, {1}}}, "fp8: expected a type that GGUF has, got F8_E4M3"},
        {{{"half", MICA_Q4_K, 2, {256, 128}}, {"b", MICA_F32, 1, {1}}},
         "half: expected rows of whole blocks of 256 (Q4_K), got [256, 128]"},
        {{{"deep", MICA_F32, 5, {1, 1, 1, 1}}, {"b", MICA_F32, 1, {1}}}, "deep: expected at most 4 dimensions, got 5"},
        {{{"large", MICA_F32, 2, {UINT64_C(1) << 40, UINT64_C(1) << 40}}, {"b", MICA_F32, 1, {1}}}, "large: expected a size below"},
    };
    mica_gguf_metadata none = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        assert_int_equal(lay_out(tensors[i].rows, 2, &none, 0, &layout), MICA_BAD_INPUT);
        if (!strstr(error.message, tensors[i].says))
            fail_msg("expected \"%s\", got \"%s\"", tensors[i].says, error.message);
    }
    for (int i = 0; i < 7; i++) {
        mica_gguf_metadata bad = MICA_GGUF_METADATA_INIT;
        mica_gguf_add_u32(&bad, i == 0 ? "" : i == 1 ? "split.no" : i == 2 ? "general.alignment" : "key", i == 2 ? 48 : 1);
        if (i == 3)
            mica_gguf_add_f32(&bad, "key", 1);
        if (i == 4)
            mica_gguf_add_strings(&bad, "short", 1);
        if (i == 5)
            mica_gguf_add_strings(&bad, "short", 1), mica_gguf_add_u32(&bad, "next", 1);
        if (i == 6)
            mica_gguf_add_element(&bad, "long", 4);
        assert_int_equal(lay_out(NULL, 0, &bad, 0, &layout), i < 4 ? MICA_BAD_INPUT : MICA_FAILED);
        mica_gguf_metadata_release(&bad);
    }
}

/* ---- splits and files */

static const row several[] = {
    {"a", MICA_F32, 1, {8}}, {"b", MICA_F32, 1, {9}}, {"c", MICA_F32, 1, {400}}, {"d", MICA_F32, 1, {1}}, {"e", MICA_F32, 1, {1}}};

static void test_paths(void **state) {
    (void)state;
    static const struct {
        const char *path, *expected;
        uint32_t shard, count;
    } rows[] = {{"d/m.gguf", "d/m.gguf", 0, 1},
                {"d/m", "d/m", 0, 1},
                {"d/m.gguf", "d/m-00001-of-00003.gguf", 0, 3},
                {"m", "m-00010-of-00010.gguf", 9, 10}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *path = mica_gguf_file_path(rows[i].path, rows[i].shard, rows[i].count);
        assert_string_equal(path, rows[i].expected);
        mica_free(path);
    }
}

static void put_all(mica_gguf_writer *writer, const mica_gguf_layout *layout) {
    for (uint64_t i = layout->tensor_count; i-- > 0;) { /* any order, in two pieces */
        const mica_gguf_tensor *tensor = &layout->tensors[i];
        float values[400];
        for (uint64_t j = 0; j < tensor->bytes / 4; j++)
            values[j] = (float)(100 * tensor->number + j);
        assert_int_equal(mica_gguf_writer_put(writer, tensor, 3, (const char *)values + 3, tensor->bytes - 3, &error), MICA_OK);
        assert_int_equal(mica_gguf_writer_put(writer, tensor, 0, values, 3, &error), MICA_OK);
    }
}

static void expect_whole(const char *first, uint32_t shards, uint64_t alignment) {
    mica_tensor_source *source = NULL;
    if (mica_tensor_source_open(scratch(first), &source, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(source->shard_count, shards);
    assert_int_equal(source->tensor_count, 5);
    assert_int_equal(mica_gguf_of_source(source)->alignment, alignment);
    for (uint64_t i = 0; i < 5; i++) {
        float value;
        const mica_tensor *tensor = &source->tensors[i];
        assert_string_equal(tensor->name, several[i].name);
        assert_int_equal(mica_file_read(source->shards[tensor->shard].file, tensor->offset + tensor->bytes - 4, &value, 4, &error),
                         MICA_OK);
        assert_true(value == (float)(100 * i + several[i].shape[0] - 1));
    }
    mica_tensor_source_close(source);
}

static void remove_files(const char *path, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        char *name = mica_gguf_file_path(path, i, count), partial[600];
        snprintf(partial, sizeof partial, "%s.partial", name);
        unlink(name);
        unlink(partial);
        mica_free(name);
    }
}

static void test_files(void **state) {
    (void)state;
    /* 96 bytes: a and b together (32 + 64), c alone though it is larger, d and e */
    static const struct {
        uint64_t split, alignment;
        uint32_t shards;
        const char *first;
    } rounds[] = {{0, 32, 1, "m.gguf"},
                  {96, 32, 3, "m-00001-of-00003.gguf"},
                  {1, 32, 5, "m-00001-of-00005.gguf"},
                  {512, 256, 3, "m-00001-of-00003.gguf"}};
    for (size_t i = 0; i < sizeof rounds / sizeof *rounds; i++) {
        mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
        mica_gguf_layout layout;
        mica_gguf_writer *writer = NULL;
        char path[400];
        snprintf(path, sizeof path, "%s", scratch("m.gguf"));
        add_everything(&metadata);
        if (rounds[i].alignment != 32)
            mica_gguf_add_u32(&metadata, "general.alignment", (uint32_t)rounds[i].alignment);
        assert_int_equal(lay_out(several, 5, &metadata, rounds[i].split, &layout), MICA_OK);
        assert_int_equal(layout.shard_count, rounds[i].shards);
        assert_int_equal(mica_gguf_writer_open(path, &layout, true, &writer, &error), MICA_OK);
        assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[0], 30, "abc", 3, &error), MICA_FAILED);
        assert_int_equal(mica_gguf_writer_sync(writer, &error), MICA_OK);
        mica_gguf_writer_close(writer); /* as a kill: no file has its name */
        assert_false(mica_path_exists(scratch(rounds[i].first)));
        assert_int_equal(mica_gguf_writer_open(path, &layout, false, &writer, &error), MICA_OK);
        put_all(writer, &layout);
        assert_int_equal(mica_gguf_writer_finish(writer, &error), MICA_OK);
        expect_whole(rounds[i].first, rounds[i].shards, rounds[i].alignment);
        remove_files(path, rounds[i].shards);
        mica_gguf_layout_release(&layout);
        mica_gguf_metadata_release(&metadata);
    }
}

static void test_without_memory(void **state) {
    (void)state;
    char path[400];
    snprintf(path, sizeof path, "%s", scratch("m.gguf"));
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
        mica_gguf_layout layout = {0};
        mica_gguf_writer *writer = NULL;
        no_memory_begin(&trial);
        add_everything(&metadata);
        mica_status status = lay_out(several, 5, &metadata, 96, &layout);
        if (status == MICA_OK)
            status = mica_gguf_writer_open(path, &layout, true, &writer, &error);
        if (status == MICA_OK)
            status = mica_gguf_writer_finish(writer, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        mica_gguf_layout_release(&layout);
        mica_gguf_metadata_release(&metadata);
        remove_files(path, 3);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header_byte_by_byte), cmocka_unit_test(test_read_back), cmocka_unit_test(test_what_gguf_cannot_hold),
        cmocka_unit_test(test_paths),               cmocka_unit_test(test_files),     cmocka_unit_test(test_without_memory),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
