/* mica_export_gguf of a GGUF: what is not asked to change is the same bytes, whatever the architecture and the types; what is asked for is
 * what a checkpoint would have become; splits go in and out; the source is never written over. Other programs' files:
 * tests/interop/export_again.py. */
#include <errno.h>

#include "export_helpers.h"

#include "base/no_memory.h"
#include "formats/gguf_write.h"
#include "model/model.h"
#include "validate.h"

static void assert_refused(const char *source, const char *path, const mica_export_gguf_options *options, mica_status expected,
                           const char *mention) {
    mica_error error = {MICA_OK, ""};
    assert_int_equal(mica_export_gguf(source, path, options, NULL, NULL, &error), expected);
    if (!strstr(error.message, mention)) {
        print_error("expected a mention of \"%s\", got: %s\n", mention, error.message);
        fail();
    }
}

/* Of an architecture that nobody knows: every type and up to four dimensions, stacks, scalars' keys, an alignment of its own. */
static void write_novel(const char *path, uint64_t split_bytes) {
    static char names[MICA_DTYPE_COUNT][32];
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    mica_gguf_writer *writer;
    uint64_t count = 0;
    mica_gguf_tensor *tensors = mica_calloc(MICA_DTYPE_COUNT + 2, sizeof *tensors);
    const float numbers[] = {1.5f, -2};
    mica_gguf_add_string(&metadata, "general.architecture", "novel");
    mica_gguf_add_u32(&metadata, "general.alignment", 64);
    mica_gguf_add_u32(&metadata, "general.file_type", 1025);
    mica_gguf_add_u32(&metadata, "novel.block_count", 3);
    mica_gguf_add_array(&metadata, "novel.numbers", MICA_GGUF_FLOAT32, numbers, 2);
    for (mica_dtype dtype = 0; dtype < MICA_DTYPE_COUNT; dtype++) {
        if (mica_dtype_ggml(dtype) < 0)
            continue;
        snprintf(names[dtype], sizeof names[dtype], "blk.%d.%s.weight", (int)(MICA_DTYPE_COUNT - dtype), mica_dtype_name(dtype));
        tensors[count] = (mica_gguf_tensor){.name = names[dtype], .dtype = dtype, .rank = 1 + count % 4, .number = count};
        const uint64_t shape[4][4] = {{512}, {6, 512}, {3, 2, 512}, {2, 1, 3, 512}};
        memcpy(tensors[count].shape, shape[count % 4], sizeof shape[0]);
        count++;
    }
    tensors[count] = (mica_gguf_tensor){
        .name = "blk.1.ffn_up_exps.weight", .dtype = MICA_F32, .rank = 3, .shape = {3, 4, 256}, .number = count};
    count++;
    assert_int_equal(mica_gguf_layout_make(tensors, count, &metadata, split_bytes, &layout, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_open(path, &layout, true, &writer, NULL), MICA_OK);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *bytes = mica_malloc(layout.tensors[i].bytes);
        for (uint64_t j = 0; j < layout.tensors[i].bytes; j++)
            bytes[j] = (uint8_t)((i * 11 + j * 7 + j / 64) % 60);
        assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[i], 0, bytes, layout.tensors[i].bytes, NULL), MICA_OK);
        mica_free(bytes);
    }
    assert_int_equal(mica_gguf_writer_finish(writer, NULL), MICA_OK);
    mica_gguf_layout_release(&layout);
    mica_gguf_metadata_release(&metadata);
}

static void test_copies_anything(void **state) {
    (void)state;
    write_novel(scratch("novel.gguf"), 0);
    export_to(scratch("novel.gguf"), scratch("copy.gguf"), NULL);
    assert_true(same_bytes(scratch("novel.gguf"), scratch("copy.gguf")));
    /* cut, and put together again */
    write_novel(scratch("cut.gguf"), 30000);
    export_to(scratch("novel.gguf"), scratch("parts.gguf"), &(mica_export_gguf_options){.split_bytes = 30000});
    assert_true(same_bytes(scratch("cut-00001-of-00003.gguf"), scratch("parts-00001-of-00003.gguf")));
    assert_true(same_bytes(scratch("cut-00003-of-00003.gguf"), scratch("parts-00003-of-00003.gguf")));
    export_to(scratch("parts-00001-of-00003.gguf"), scratch("whole.gguf"), NULL);
    assert_true(same_bytes(scratch("novel.gguf"), scratch("whole.gguf")));
}

/* What has a type already keeps it, bit for bit; the others get theirs; the keys say so. */
static void test_changes_what_is_asked(void **state) {
    (void)state;
    mica_tensor_source *before = NULL, *after = NULL;
    char *text = NULL;
    write_novel(scratch("old.gguf"), 0);
    assert_int_equal(
        mica_export_gguf(scratch("old.gguf"), scratch("new.gguf"), &(mica_export_gguf_options){.type = "q8_0"}, &text, NULL, NULL),
        MICA_OK);
    assert_non_null(strstr(text, "novel as q8_0"));
    assert_non_null(strstr(text, "quantised a second time"));
    mica_string_free(text);
    assert_int_equal(mica_tensor_source_open(scratch("old.gguf"), &before, NULL), MICA_OK);
    assert_int_equal(mica_tensor_source_open(scratch("new.gguf"), &after, NULL), MICA_OK);
    assert_int_equal(before->tensor_count, after->tensor_count);
    uint64_t changed = 0;
    for (uint64_t i = 0; i < before->tensor_count; i++) {
        const mica_tensor *old = &before->tensors[i], *new = &after->tensors[i];
        assert_string_equal(old->name, new->name);
        const bool may = mica_dtype_is_floating(old->dtype) && old->dtype != MICA_F64 && (old->rank == 2 || old->rank == 3);
        assert_int_equal(new->dtype, may ? MICA_Q8_0 : old->dtype);
        changed += old->dtype != new->dtype;
    }
    assert_true(changed > 5);
    uint32_t number = 0;
    assert_int_equal(mica_gguf_u32(mica_gguf_of_source(after), "general.file_type", &number, NULL), MICA_OK);
    assert_int_equal(number, 7);
    assert_int_equal(mica_gguf_u32(mica_gguf_of_source(after), "general.quantization_version", &number, NULL), MICA_OK);
    assert_int_equal(number, 2);
    mica_tensor_source_close(before);
    mica_tensor_source_close(after);
}

/* From values that F32 holds exactly, the same file comes as from the checkpoint. (fp8 has a grid of its own for Q8_0, which F32 does not
 * know of.) */
static void test_as_from_the_checkpoint(void **state) {
    (void)state;
    static const char *const types[] = {"bf16", "q2_k", "iq4_xs"};
    export_to(TINY, scratch("f32.gguf"), &(mica_export_gguf_options){.type = "f32"});
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        export_to(TINY, scratch("direct.gguf"), &(mica_export_gguf_options){.type = types[i], .force = true});
        export_to(scratch("f32.gguf"), scratch("again.gguf"), &(mica_export_gguf_options){.type = types[i], .force = true});
        assert_true(same_bytes(scratch("direct.gguf"), scratch("again.gguf")));
    }
    export_to(scratch("f32.gguf"), scratch("same.gguf"), NULL);
    assert_true(same_bytes(scratch("f32.gguf"), scratch("same.gguf")));
}

/* Rules reach the tensors by GGUF's names, layers and projections. */
static void test_rules(void **state) {
    (void)state;
    mica_tensor_source *made = NULL;
    export_to(TINY, scratch("f16.gguf"), &(mica_export_gguf_options){.type = "f16"});
    static const char rules[] = "{\"type\": \"source\", \"rules\": [{\"projection\": \"down\", \"layers\": 2, \"type\": \"q4_0\"}, "
                                "{\"name\": \"output.weight\", \"type\": \"q8_0\"}]}";
    assert_int_equal(mica_file_replace(scratch("rules.json"), rules, strlen(rules), NULL), MICA_OK);
    char config[512];
    snprintf(config, sizeof config, "%s", scratch("rules.json"));
    export_to(scratch("f16.gguf"), scratch("ruled.gguf"), &(mica_export_gguf_options){.config = config});
    assert_int_equal(mica_tensor_source_open(scratch("ruled.gguf"), &made, NULL), MICA_OK);
    assert_int_equal(mica_tensor_source_find(made, "blk.2.ffn_down_exps.weight")->dtype, MICA_Q4_0);
    assert_int_equal(mica_tensor_source_find(made, "blk.2.ffn_down_shexp.weight")->dtype, MICA_Q4_0);
    assert_int_equal(mica_tensor_source_find(made, "blk.1.ffn_down_exps.weight")->dtype, MICA_F16);
    assert_int_equal(mica_tensor_source_find(made, "output.weight")->dtype, MICA_Q8_0);
    mica_tensor_source_close(made);
}

static bool stop_after(void *context, const mica_progress *progress) {
    return progress->units_done < *(const uint64_t *)context;
}

static void test_resume(void **state) {
    (void)state;
    export_to(TINY, scratch("from.gguf"), &(mica_export_gguf_options){.type = "bf16", .split_bytes = 9000000});
    char from[512];
    snprintf(from, sizeof from, "%s", scratch("from-00001-of-00004.gguf"));
    export_to(from, scratch("straight.gguf"), &(mica_export_gguf_options){.type = "q4_k_m"});
    uint64_t stops[] = {1, 60, 200};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        const mica_export_gguf_options options = {.type = "q4_k_m", .resume = i > 0, .progress = stop_after, .progress_context = &stops[i]};
        assert_refused(from, scratch("broken.gguf"), &options, MICA_INTERRUPTED, "");
        assert_false(mica_path_exists(scratch("broken.gguf")));
    }
    assert_refused(scratch("straight.gguf"), scratch("broken.gguf"), &(mica_export_gguf_options){.type = "q4_k_m", .resume = true},
                   MICA_CONFLICT, "differs");
    export_to(from, scratch("broken.gguf"), &(mica_export_gguf_options){.type = "q4_k_m", .resume = true});
    assert_true(same_bytes(scratch("straight.gguf"), scratch("broken.gguf")));
}

static void test_refusals(void **state) {
    (void)state;
    char own[512];
    write_novel(scratch("own.gguf"), 0);
    snprintf(own, sizeof own, "%s", scratch("own.gguf"));
    loaded_file was = load(own);
    assert_refused(own, own, &(mica_export_gguf_options){.type = "q8_0", .force = true}, MICA_CONFLICT, "got its own own.gguf");
    assert_int_equal(symlink(own, scratch("link.gguf")), 0);
    assert_refused(own, scratch("link.gguf"), &(mica_export_gguf_options){.force = true}, MICA_CONFLICT, "got its own own.gguf");
    loaded_file is = load(own);
    assert_int_equal(was.length, is.length);
    assert_memory_equal(was.bytes, is.bytes, is.length);
    assert_refused(own, scratch("x.gguf"), &(mica_export_gguf_options){.mmproj = "y.gguf"}, MICA_USAGE, "--mmproj");
    /* cut anywhere, it is refused before anything is written */
    for (uint64_t length = 0; length < was.length; length += 1 + was.length / 60) {
        assert_int_equal(mica_file_replace(scratch("short.gguf"), was.bytes, length, NULL), MICA_OK);
        assert_refused(scratch("short.gguf"), scratch("x.gguf"), NULL, MICA_BAD_INPUT, "short.gguf");
        assert_false(mica_path_exists(scratch("x.gguf.journal")));
        assert_false(mica_path_exists(scratch("x.gguf.partial")));
    }
    mica_free(was.bytes);
    mica_free(is.bytes);
}

static void test_without_memory(void **state) {
    (void)state;
    const mica_export_gguf_options options = {.type = "q8_0", .threads = 1, .force = true};
    mica_error error = {MICA_OK, ""};
    char from[512];
    write_novel(scratch("poor.gguf"), 0);
    snprintf(from, sizeof from, "%s", scratch("poor.gguf"));
    export_to(from, scratch("enough.gguf"), &options);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        no_memory_begin(&trial);
        const mica_status status = mica_export_gguf(from, scratch("memory.gguf"), &options, NULL, NULL, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
    }
    export_to(from, scratch("memory.gguf"), &options); /* over whatever the last attempt left */
    assert_true(same_bytes(scratch("memory.gguf"), scratch("enough.gguf")));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_copies_anything),       cmocka_unit_test(test_changes_what_is_asked),
                                       cmocka_unit_test(test_as_from_the_checkpoint), cmocka_unit_test(test_rules),
                                       cmocka_unit_test(test_resume),                cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_without_memory)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
