/* Layout and files of a checkpoint that is written: the reference writer's header, shards, alignment, what a kill leaves. */
#include "base/no_memory.h"
#include "formats/safetensors_write.h"

#include "formats/shards.h"
#include "formats/tensor_source.h"

static mica_error error;

typedef struct row {
    const char *name;
    mica_dtype dtype;
    uint32_t rank;
    uint64_t shape[2];
} row;

static mica_status lay_out(const row *rows, size_t count, uint64_t limit, mica_safetensors_layout *layout) {
    mica_safetensors_entry *entries = mica_calloc(count + 1, sizeof *entries);
    if (!entries)
        return mica_fail(&error, MICA_NO_MEMORY, "the test's own");
    for (size_t i = 0; i < count; i++)
        entries[i] = (mica_safetensors_entry){.name = rows[i].name, .dtype = rows[i].dtype, .rank = rows[i].rank, .number = i,
                                              .shape = {rows[i].shape[0], rows[i].shape[1]}};
    return mica_safetensors_layout_make(entries, count, limit, layout, &error);
}

/* safetensors 0.8.0 wrote this header for these tensors (serialize, metadata {"format": "pt"}). */
static void test_reference_header(void **state) {
    (void)state;
    static const row rows[] = {{"b", MICA_BOOL, 1, {3}},      {"l.10", MICA_F32, 1, {2}},    {"l.2", MICA_F32, 0, {0}},
                               {"w", MICA_F8_E4M3, 1, {5}},   {"i", MICA_I64, 1, {1}},       {"h", MICA_BF16, 1, {3}},
                               {"f", MICA_F16, 1, {1}},       {"q\"\n\\\x01\x7f\xc3\xa9", MICA_U8, 2, {0, 4}},
                               {"i8", MICA_I8, 1, {1}},       {"e5", MICA_F8_E5M2, 1, {1}},  {"i16", MICA_I16, 1, {1}},
                               {"d", MICA_F64, 1, {1}},       {"i32", MICA_I32, 1, {1}},     {"e8", MICA_F8_E8M0, 1, {2}}};
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"i\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]},"
        "\"d\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[8,16]},\"l.10\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[16,24]},"
        "\"l.2\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[24,28]},\"i32\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[28,32]},"
        "\"h\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[32,38]},\"f\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[38,40]},"
        "\"i16\":{\"dtype\":\"I16\",\"shape\":[1],\"data_offsets\":[40,42]},\"e8\":{\"dtype\":\"F8_E8M0\",\"shape\":[2],\"data_offsets\":[42,44]},"
        "\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[5],\"data_offsets\":[44,49]},\"e5\":{\"dtype\":\"F8_E5M2\",\"shape\":[1],\"data_offsets\":[49,50]},"
        "\"i8\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[50,51]},"
        "\"q\\\"\\n\\\\\\u0001\x7f\xc3\xa9\":{\"dtype\":\"U8\",\"shape\":[0,4],\"data_offsets\":[51,51]},"
        "\"b\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[51,54]}} ";
    mica_safetensors_layout layout;
    assert_int_equal(lay_out(rows, sizeof rows / sizeof *rows, 0, &layout), MICA_OK);
    assert_int_equal(layout.shard_count, 1);
    assert_int_equal(layout.headers[0].length, 848);
    assert_memory_equal(layout.headers[0].bytes, "\x48\x03\0\0\0\0\0\0", 8);
    assert_memory_equal(layout.headers[0].bytes + 8, header, 840);
    assert_int_equal(layout.file_bytes[0], 848 + 54);
    assert_int_equal(layout.data_bytes, 54);
    assert_int_equal(layout.entries[0].number, 4);
    assert_int_equal(layout.entries[0].offset, 848);
    mica_safetensors_layout_release(&layout);
}

/* Natural order of the names fills the shards; one tensor above the limit has a shard to itself. */
static void test_shards(void **state) {
    (void)state;
    static const row rows[] = {{"layers.10.w", MICA_U8, 1, {40}}, {"layers.2.w", MICA_U8, 1, {60}}, {"layers.2.a", MICA_BF16, 1, {20}},
                               {"layers.9.w", MICA_U8, 1, {500}}, {"head", MICA_U8, 1, {1}},        {"layers.02.a", MICA_F32, 1, {0}}};
    static const struct {
        uint32_t shard;
        const char *name;
    } expected[] = {{0, "layers.02.a"}, {0, "layers.2.a"}, {0, "head"}, {1, "layers.2.w"}, {2, "layers.9.w"}, {3, "layers.10.w"}};
    mica_safetensors_layout layout;
    char name[MICA_SHARD_NAME_BYTES];
    assert_int_equal(lay_out(rows, 6, 100, &layout), MICA_OK);
    assert_int_equal(layout.shard_count, 4);
    for (size_t i = 0; i < 6; i++) {
        assert_string_equal(layout.entries[i].name, expected[i].name);
        assert_int_equal(layout.entries[i].shard, expected[i].shard);
        assert_int_equal(layout.entries[i].offset % mica_dtype_bytes(layout.entries[i].dtype), 0);
    }
    assert_string_equal(mica_safetensors_shard_name(2, 4, name), "model-00003-of-00004.safetensors");
    assert_string_equal(mica_safetensors_shard_name(0, 1, name), "model.safetensors");
    mica_safetensors_layout_release(&layout);
    assert_int_equal(lay_out(rows, 6, 101, &layout), MICA_OK); /* the limit itself is within */
    assert_int_equal(layout.entries[3].shard, 0);
    mica_safetensors_layout_release(&layout);
    assert_int_equal(lay_out(rows, 0, 0, &layout), MICA_OK);
    assert_int_equal(layout.shard_count, 1);
    mica_safetensors_layout_release(&layout);
}

static void test_refusals(void **state) {
    (void)state;
    static const row twice[] = {{"a", MICA_U8, 1, {1}}, {"b", MICA_U8, 1, {1}}, {"a", MICA_U8, 1, {2}}},
                     block[] = {{"q", MICA_Q4_K, 1, {256}}}, huge[] = {{"h", MICA_F32, 2, {UINT64_C(1) << 40, UINT64_C(1) << 40}}};
    mica_safetensors_layout layout;
    assert_int_equal(lay_out(twice, 3, 0, &layout), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "a: expected unique names"));
    assert_int_equal(lay_out(block, 1, 0, &layout), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "q: expected a type that safetensors has, got Q4_K"));
    assert_int_equal(lay_out(huge, 1, 0, &layout), MICA_BAD_INPUT);
}

static void test_names(void **state) {
    (void)state;
    static const char *const ours[] = {"model.safetensors",
                                       "model.safetensors.partial",
                                       "model-00001-of-00002.safetensors",
                                       "model-00001-of-00002.safetensors.partial",
                                       "model.safetensors.index.json",
                                       "model.safetensors.index.json.partial"},
                             *const others[] = {"",
                                                "model",
                                                "model.safetensors2",
                                                "model-1-of-2.safetensors",
                                                "config.json",
                                                "model-00001-of-00002.gguf",
                                                "pytorch_model.bin",
                                                "model-00001-of-00002.safetensors.partial2"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        assert_true(mica_safetensors_is_written_name(ours[i]));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_false(mica_safetensors_is_written_name(others[i]));
}

/* ---- files */

static const row small[] = {{"a.weight", MICA_BF16, 2, {3, 5}}, {"b.weight", MICA_F32, 1, {4}}, {"c.weight", MICA_U8, 1, {9}}};

static uint8_t byte_of(uint64_t number, uint64_t at) {
    return (uint8_t)(number * 50 + at);
}

static void put_all(mica_safetensors_writer *writer, const mica_safetensors_layout *layout, uint64_t from) {
    for (uint64_t i = layout->entry_count; i-- > from;) { /* any order, in two pieces */
        const mica_safetensors_entry *entry = &layout->entries[i];
        uint8_t bytes[64];
        for (uint64_t j = 0; j < entry->bytes; j++)
            bytes[j] = byte_of(entry->number, j);
        assert_int_equal(mica_safetensors_writer_put(writer, entry, 3, bytes + 3, entry->bytes - 3, &error), MICA_OK);
        assert_int_equal(mica_safetensors_writer_put(writer, entry, 0, bytes, 3, &error), MICA_OK);
    }
}

static void expect_whole(const char *directory, uint32_t shards) {
    mica_tensor_source *source = NULL;
    if (mica_tensor_source_open(directory, &source, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(source->shard_count, shards);
    assert_int_equal(source->tensor_count, 3);
    assert_int_equal(source->unlisted_count, 0);
    for (uint64_t i = 0; i < 3; i++) {
        const mica_tensor *tensor = &source->tensors[i];
        uint8_t bytes[64];
        assert_string_equal(tensor->name, small[i].name);
        assert_int_equal(tensor->dtype, small[i].dtype);
        assert_int_equal(mica_file_read(source->shards[tensor->shard].file, tensor->offset, bytes, tensor->bytes, &error), MICA_OK);
        for (uint64_t j = 0; j < tensor->bytes; j++)
            assert_int_equal(bytes[j], byte_of(i, j));
    }
    mica_tensor_source_close(source);
}

static void clear(const char *directory) {
    char **names = NULL, path[600];
    uint64_t count = 0;
    assert_int_equal(mica_directory_create(directory, &error), MICA_OK);
    assert_int_equal(mica_directory_list(directory, &names, &count, &error), MICA_OK);
    for (uint64_t i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        assert_int_equal(unlink(path), 0);
    }
    mica_directory_names_free(names, count);
}

static void test_files(void **state) {
    (void)state;
    for (uint64_t limit = 20; limit <= 1000; limit += 980) {
        char directory[300];
        mica_safetensors_layout layout;
        mica_safetensors_writer *writer = NULL;
        snprintf(directory, sizeof directory, "%s", scratch("out"));
        clear(directory);
        assert_int_equal(lay_out(small, 3, limit, &layout), MICA_OK);
        assert_int_equal(mica_safetensors_writer_open(directory, &layout, true, &writer, &error), MICA_OK);
        put_all(writer, &layout, 1);
        assert_int_equal(mica_safetensors_writer_put(writer, &layout.entries[0], 60, "", 5, &error), MICA_FAILED);
        assert_int_equal(mica_safetensors_writer_sync(writer, &error), MICA_OK);
        mica_safetensors_writer_close(writer); /* as a kill: no file has its name */
        mica_tensor_source *source = NULL;
        assert_int_equal(mica_tensor_source_open(directory, &source, NULL), MICA_BAD_INPUT);
        assert_int_equal(mica_safetensors_writer_open(directory, &layout, false, &writer, &error), MICA_OK);
        put_all(writer, &layout, 0);
        assert_int_equal(mica_safetensors_writer_finish(writer, &error), MICA_OK);
        expect_whole(directory, layout.shard_count);
        /* a kill behind the last renaming: the index is not there yet */
        char path[400];
        snprintf(path, sizeof path, "%s/%s", directory, MICA_SAFETENSORS_INDEX);
        assert_int_equal(unlink(path), layout.shard_count > 1 ? 0 : -1);
        assert_int_equal(mica_safetensors_writer_open(directory, &layout, false, &writer, &error), MICA_OK);
        assert_int_equal(mica_safetensors_writer_put(writer, &layout.entries[0], 0, "x", 1, &error), MICA_FAILED);
        assert_int_equal(mica_safetensors_writer_finish(writer, &error), MICA_OK);
        expect_whole(directory, layout.shard_count);
        clear(directory);
        mica_safetensors_layout_release(&layout);
    }
}

static void test_other_files_in_the_way(void **state) {
    (void)state;
    mica_safetensors_layout layout;
    mica_safetensors_writer *writer = NULL;
    char directory[300];
    snprintf(directory, sizeof directory, "%s", scratch("out"));
    clear(directory);
    assert_int_equal(lay_out(small, 3, 0, &layout), MICA_OK);
    assert_int_equal(mica_safetensors_writer_open(directory, &layout, false, &writer, &error), MICA_IO);
    scratch_write("out/model.safetensors.partial", "short", 5);
    assert_int_equal(mica_safetensors_writer_open(directory, &layout, false, &writer, &error), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "model.safetensors.partial: expected "));
    mica_safetensors_layout_release(&layout);
    clear(directory);
}

/* Every allocation fails once: a refusal, nothing leaks, no file has its name. */
static void test_out_of_memory(void **state) {
    (void)state;
    char directory[300];
    snprintf(directory, sizeof directory, "%s", scratch("out"));
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        clear(directory);
        mica_safetensors_layout layout;
        mica_safetensors_writer *writer = NULL;
        no_memory_begin(&trial);
        mica_status status = lay_out(small, 3, 20, &layout);
        const bool laid = status == MICA_OK;
        if (status == MICA_OK)
            status = mica_safetensors_writer_open(directory, &layout, true, &writer, &error);
        if (status == MICA_OK)
            status = mica_safetensors_writer_finish(writer, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        if (laid)
            mica_safetensors_layout_release(&layout);
    }
    clear(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_header), cmocka_unit_test(test_shards), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_names),            cmocka_unit_test(test_files),  cmocka_unit_test(test_other_files_in_the_way),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
