/* mica_remove and mica_gc: room comes back, nothing in use is lost, a reader that opened before goes on, a damaged payload is not moved. */
#include <mica/store.h>

#include "operations/store_helpers.h"
#include "operations/validate.h"

static mica_status collect(const char *store, const mica_gc_options *options) {
    char *text = NULL, *json = NULL;
    const mica_status status = mica_gc(store, options, &text, &json, &error);
    mica_string_free(text);
    mica_string_free(json);
    return status;
}

static void assert_collects(const char *store, const mica_gc_options *options) {
    if (collect(store, options) != MICA_OK)
        fail_msg("%s", error.message);
}

static void assert_removes(const char *store, const char *name) {
    if (mica_remove(store, name, NULL, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
}

static void assert_verifies(const char *store) {
    if (mica_verify(store, NULL, NULL, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
}

static void test_reports_satisfy_their_schemas(void **state) {
    (void)state;
    if (!validator_exists())
        skip();
    const char *store = scratch("schemas");
    char *text = NULL, *json = NULL;
    assert_imports(TINY, store, NULL);
    assert_int_equal(mica_remove(store, "tiny-k2", &text, &json, &error), MICA_OK);
    assert_true(validates("remove.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
    assert_int_equal(mica_gc(store, NULL, &text, &json, &error), MICA_OK);
    assert_true(validates("gc.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
    assert_int_equal(mica_remove(store, "tiny-k2", &text, &json, &error), MICA_BAD_INPUT);
    assert_int_equal(mica_remove(scratch("nothing"), "tiny-k2", &text, &json, &error), MICA_BAD_INPUT);
    assert_false(mica_path_exists(scratch("nothing")));
}

/* Two models that share most; one goes; the other is whole, and all that only the first had is given back. */
static void test_what_is_shared_stays(void **state) {
    (void)state;
    const char *store = scratch("shared"), *variant = scratch("variant"), *alone = scratch("alone");
    make_variant(variant, ".experts.");
    const mica_import_options small = {.pack_bytes = 1 << 20};
    assert_imports(TINY, store, &small);
    assert_imports(variant, store, &small);
    const uint64_t both = pack_bytes(store);
    assert_removes(store, "tiny-k2");
    assert_int_equal(pack_bytes(store), both);
    assert_same_model(variant, named(store, "variant"));
    assert_collects(store, &(mica_gc_options){.pack_bytes = 1 << 20, .threads = 2});
    assert_same_model(variant, named(store, "variant"));
    assert_verifies(store);
    assert_imports(variant, alone, &small);
    const uint64_t least = pack_bytes(alone);
    assert_true(pack_bytes(store) >= least && pack_bytes(store) < least + least / 9); /* under a tenth of a pack may stay */
    assert_collects(store, NULL);
    assert_same_model(variant, named(store, "variant"));
    assert_removes(store, "variant");
    assert_collects(store, NULL);
    assert_int_equal(pack_bytes(store), 0);
    assert_verifies(store);
}

/* What a model had before is found again as long as gc has not taken it. */
static void test_garbage_is_used_again(void **state) {
    (void)state;
    const char *store = scratch("again");
    assert_imports(TINY, store, NULL);
    const uint64_t before = pack_bytes(store);
    assert_removes(store, "tiny-k2");
    assert_imports(TINY, store, &(mica_import_options){.name = "back"});
    assert_int_equal(pack_bytes(store), before);
    assert_collects(store, NULL);
    assert_same_model(TINY, named(store, "back"));
}

/* Open packs stay readable whatever gc does with their names. */
static void test_a_reader_goes_on(void **state) {
    (void)state;
    const char *store = scratch("read"), *variant = scratch("read-variant");
    mica_tensor_source *reader = NULL, *truth = NULL;
    make_variant(variant, "layers.2.");
    assert_imports(variant, store, NULL);
    assert_imports(TINY, store, NULL);
    assert_int_equal(mica_tensor_source_open(named(store, "tiny-k2"), &reader, &error), MICA_OK);
    assert_int_equal(mica_tensor_source_open(TINY, &truth, &error), MICA_OK);
    assert_removes(store, "read-variant");
    assert_collects(store, NULL);
    assert_removes(store, "tiny-k2");
    assert_collects(store, NULL);
    for (uint64_t i = 0; i < truth->tensor_count; i++) {
        void *bytes = load_tensor(reader, &reader->tensors[i]), *expected = load_tensor(truth, &truth->tensors[i]);
        assert_memory_equal(bytes, expected, truth->tensors[i].bytes);
        mica_free(bytes);
        mica_free(expected);
    }
    mica_tensor_source_close(reader);
    mica_tensor_source_close(truth);
}

static void test_a_damaged_payload_is_not_moved(void **state) {
    (void)state;
    const char *store = scratch("damaged");
    assert_imports(TINY, store, &(mica_import_options){.include = "*.layers.1.*"});
    assert_imports(TINY, store, &(mica_import_options){.name = "norms", .include = "*.layers.1.*norm*"});
    assert_removes(store, "tiny-k2");
    mica_tensor_source *source = NULL;
    assert_int_equal(mica_tensor_source_open(store, &source, &error), MICA_OK);
    const mica_tensor tensor = source->tensors[1];
    char name[256];
    snprintf(name, sizeof name, "norms#%s", tensor.name);
    mica_file *file = NULL;
    assert_int_equal(mica_file_open_update(mica_file_path(source->shards[tensor.shard].file), &file, &error), MICA_OK);
    assert_int_equal(mica_file_write(file, tensor.offset + 3, "x", 1, &error), MICA_OK);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    mica_tensor_source_close(source);
    const uint64_t before = pack_bytes(store);
    assert_int_equal(collect(store, NULL), MICA_CORRUPT);
    assert_non_null(strstr(error.message, name));
    assert_int_equal(pack_bytes(store), before);
    assert_int_equal(mica_verify(store, NULL, NULL, NULL, &error), MICA_CORRUPT);
    assert_non_null(strstr(error.message, name));
}

static bool stop_at_half(void *context, const mica_progress *progress) {
    (void)context;
    return progress->units_done < progress->units_total / 2;
}

static void test_unfinished_imports(void **state) {
    (void)state;
    const char *store = scratch("unfinished");
    char *text = NULL, *json = NULL;
    assert_int_equal(mica_import(TINY, store, &(mica_import_options){.threads = 1, .progress = stop_at_half}, NULL, NULL, &error),
                     MICA_INTERRUPTED);
    const uint64_t before = pack_bytes(store);
    assert_true(before > 1000000);
    assert_collects(store, NULL); /* it may be resumed yet: nothing of it goes */
    assert_int_equal(pack_bytes(store), before);
    assert_int_equal(mica_list(store, NULL, NULL, &text, &json, &error), MICA_OK);
    assert_non_null(strstr(text, "not finished"));
    mica_string_free(text);
    mica_string_free(json);
    assert_imports(TINY, store, &(mica_import_options){.resume = true});
    assert_same_model(TINY, store);
    assert_int_equal(
        mica_import(TINY, store, &(mica_import_options){.name = "b", .threads = 1, .progress = stop_at_half}, NULL, NULL, &error),
        MICA_INTERRUPTED);
    assert_removes(store, "b");
    assert_same_model(TINY, store);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reports_satisfy_their_schemas), cmocka_unit_test(test_what_is_shared_stays),
        cmocka_unit_test(test_garbage_is_used_again),         cmocka_unit_test(test_a_reader_goes_on),
        cmocka_unit_test(test_a_damaged_payload_is_not_moved), cmocka_unit_test(test_unfinished_imports),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
