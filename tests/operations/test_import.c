/* mica_import and what a store gives back: every tensor bit for bit, each stored once, an expert in one run, the vindex of STORE#NAME that
 * of the directory; names taken, jobs resumed and refused, linked files. */
#include <mica/store.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>

#include "formats/store.h"
#include "model/model.h"
#include "operations/store_helpers.h"
#include "operations/validate.h"

static void test_round_trip(void **state) {
    (void)state;
    const char *store = scratch("round");
    assert_imports(TINY, store, NULL);
    assert_same_model(TINY, named(store, "tiny-k2"));
    assert_same_model(TINY, store); /* the only model needs no name */
    assert_same_model(named(store, "tiny-k2"), TINY);
}

static void test_reports_satisfy_their_schemas(void **state) {
    (void)state;
    if (!validator_exists())
        skip();
    const char *store = scratch("schemas");
    char *text = NULL, *json = NULL;
    assert_int_equal(mica_import(TINY, store, NULL, &text, &json, &error), MICA_OK);
    assert_true(validates("import.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
    assert_int_equal(mica_list(store, NULL, NULL, &text, &json, &error), MICA_OK);
    assert_true(validates("list.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
    assert_int_equal(mica_list(store, "tiny-k2", "*.experts.1*", &text, &json, &error), MICA_OK);
    assert_true(validates("list.schema.json", json));
    assert_non_null(strstr(json, "experts.12."));
    assert_null(strstr(json, "experts.2."));
    mica_string_free(text);
    mica_string_free(json);
    assert_int_equal(mica_list(store, "nobody", NULL, &text, &json, &error), MICA_BAD_INPUT);
    assert_string_equal(error.message + strlen(store), ": expected a model of the store, got 'nobody'");
}

/* The vindex, from whatever holds the tensors. */
static void test_index_is_the_same(void **state) {
    (void)state;
    const char *store = scratch("indexed");
    const mica_import_options options = {.name = "a name", .pack_bytes = 1 << 20};
    const mica_index_options index = {.features = 8};
    assert_imports(TINY, store, &options);
    assert_int_equal(run_index(TINY, scratch("of-directory"), &index, &error), MICA_OK);
    assert_int_equal(run_index(named(store, "a name"), scratch("of-store"), &index, &error), MICA_OK);
    char command[3 * SCRATCH_PATH_BYTES];
    snprintf(command, sizeof command, "diff -r '%s' '%s'", scratch("of-directory"), scratch("of-store"));
    assert_int_equal(system(command), 0);
    const mica_index_options hashing = {.features = 8, .hash_source = true};
    assert_int_equal(run_index(store, scratch("of-store-2"), &hashing, &error), MICA_USAGE);
}

static void test_other_verbs_take_a_model(void **state) {
    (void)state;
    const char *store = scratch("verbs");
    char *text = NULL, *json = NULL;
    assert_imports(TINY, store, NULL);
    assert_int_equal(mica_inspect(named(store, "tiny-k2"), NULL, &text, &json, &error), MICA_OK);
    assert_non_null(strstr(text, "kimi_k2 (family deepseek_v3)"));
    assert_non_null(strstr(text, "687: 687 used, 0 ignored by a rule, 0 unknown"));
    mica_string_free(text);
    mica_string_free(json);
    assert_int_equal(mica_verify(named(store, "tiny-k2"), NULL, &text, &json, &error), MICA_OK);
    assert_non_null(strstr(text, "687 tensors"));
    mica_string_free(text);
    mica_string_free(json);
    mica_model *model = NULL;
    assert_int_equal(mica_model_open(named(store, "nobody"), NULL, &model, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "expected a model of the store, got no such name"));
}

/* All of an expert is one contiguous run, at multiples of 4 KiB, whatever the pack size. */
static void test_experts_are_runs(void **state) {
    (void)state;
    const char *store = scratch("runs");
    const mica_import_options options = {.pack_bytes = 300000};
    assert_imports(TINY, store, &options);
    mica_model *model = NULL;
    assert_int_equal(mica_model_open(store, NULL, &model, &error), MICA_OK);
    assert_true(model->source->shard_count > 20);
    uint64_t experts = 0;
    for (uint64_t layer = 0; layer < model->config.num_hidden_layers; layer++) {
        for (uint64_t expert = 0; model->layers[layer].moe && expert < model->config.n_routed_experts; expert++, experts++) {
            uint64_t low = UINT64_MAX, high = 0, room = 0;
            uint32_t shard = 0;
            for (int projection = 0; projection < MICA_PROJECTION_COUNT; projection++) {
                const mica_weight *weight = model->layers[layer].experts[expert * MICA_PROJECTION_COUNT + (uint64_t)projection];
                const mica_tensor *parts[2] = {weight->data, weight->scale};
                for (int part = 0; part < 2; part++) {
                    const uint64_t end = parts[part]->offset + mica_pack_align(parts[part]->bytes);
                    assert_int_equal(parts[part]->offset % MICA_PACK_ALIGNMENT, 0);
                    assert_true(room == 0 || parts[part]->shard == shard);
                    shard = parts[part]->shard;
                    low = parts[part]->offset < low ? parts[part]->offset : low;
                    high = end > high ? end : high;
                    room += mica_pack_align(parts[part]->bytes);
                }
            }
            assert_int_equal(high - low, room);
        }
    }
    assert_int_equal(experts, 96);
    mica_model_close(model);
}

static void test_second_model_shares(void **state) {
    (void)state;
    const char *store = scratch("shared"), *variant = scratch("variant");
    make_variant(variant, "layers.3.mlp.experts.7.");
    assert_imports(TINY, store, NULL);
    const uint64_t before = pack_bytes(store);
    assert_imports(TINY, store, &(mica_import_options){.name = "again"});
    assert_int_equal(pack_bytes(store), before);
    assert_imports(variant, store, NULL);
    assert_int_equal(pack_bytes(store) - before, 3 * (32768 + 4096)); /* three projections and their scales */
    assert_same_model(TINY, named(store, "tiny-k2"));
    assert_same_model(TINY, named(store, "again"));
    assert_same_model(variant, named(store, "variant"));
}

static void test_names(void **state) {
    (void)state;
    const char *store = scratch("names"), *variant = scratch("renamed");
    make_variant(variant, "layers.1.mlp.gate.");
    assert_imports(TINY, store, &(mica_import_options){.name = "one"});
    assert_int_equal(import(TINY, store, &(mica_import_options){.name = "one"}), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "--force"));
    assert_imports(variant, store, &(mica_import_options){.name = "one", .force = true});
    assert_same_model(variant, named(store, "one"));
    static const char *const bad[] = {"", "a#b", "a/b", ".", "..", "a\nb", "\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(import(TINY, store, &(mica_import_options){.name = bad[i]}), MICA_USAGE);
    assert_imports(TINY, store, &(mica_import_options){.name = "two"});
    mica_tensor_source *source = NULL;
    assert_int_equal(mica_tensor_source_open(store, &source, &error), MICA_BAD_INPUT); /* which? */
    assert_non_null(strstr(error.message, "2: one, two"));
}

static void test_a_foreign_directory_is_not_touched(void **state) {
    (void)state;
    const char *directory = scratch("foreign");
    assert_int_equal(mica_directory_create(directory, &error), MICA_OK);
    assert_int_equal(mica_file_replace(scratch("foreign/thesis.txt"), "x", 1, &error), MICA_OK);
    assert_int_equal(import(TINY, directory, NULL), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "thesis.txt"));
    char **names;
    uint64_t count;
    assert_int_equal(mica_directory_list(directory, &names, &count, &error), MICA_OK);
    assert_int_equal(count, 1);
    mica_directory_names_free(names, count);
}

static void test_include_and_exclude(void **state) {
    (void)state;
    const char *store = scratch("chosen");
    assert_imports(TINY, store, &(mica_import_options){.include = "*.layers.2.*", .exclude = "*.experts.*"});
    mica_tensor_source *source = NULL;
    assert_int_equal(mica_tensor_source_open(store, &source, &error), MICA_OK);
    assert_true(source->tensor_count > 5);
    for (uint64_t i = 0; i < source->tensor_count; i++) {
        assert_non_null(strstr(source->tensors[i].name, ".layers.2."));
        assert_null(strstr(source->tensors[i].name, ".experts."));
    }
    mica_tensor_source_close(source);
    assert_int_equal(import(TINY, store, &(mica_import_options){.name = "none", .include = "nothing"}), MICA_USAGE);
}

static bool stop_at_half(void *context, const mica_progress *progress) {
    (void)context;
    return progress->units_done < progress->units_total / 2;
}

/* A stopped import is invisible, goes on where it was, and gives the same store. */
static void test_resume(void **state) {
    (void)state;
    const char *store = scratch("resumed");
    const mica_import_options stopped = {.threads = 1, .progress = stop_at_half};
    assert_int_equal(import(TINY, store, &stopped), MICA_INTERRUPTED);
    mica_tensor_source *source = NULL;
    assert_int_equal(mica_tensor_source_open(named(store, "tiny-k2"), &source, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "--resume"));
    assert_int_equal(import(TINY, store, &(mica_import_options){.resume = true, .exclude = "*norm*"}), MICA_CONFLICT); /* another job */
    assert_non_null(strstr(error.message, "tensor_count differs"));
    char *text = NULL, *json = NULL;
    assert_int_equal(mica_import(TINY, store, &(mica_import_options){.resume = true}, &text, &json, &error), MICA_OK);
    json_t *report = NULL;
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, &error), MICA_OK);
    const json_int_t before = json_integer_value(json_object_get(report, "tensors_done_before"));
    assert_true(before > 100 && before < 687);
    json_decref(report);
    mica_string_free(text);
    mica_string_free(json);
    assert_same_model(TINY, named(store, "tiny-k2"));
    assert_imports(TINY, store, &(mica_import_options){.resume = true}); /* finished: nothing to do */
    const char *whole = scratch("in-one-go");
    assert_imports(TINY, whole, NULL);
    assert_int_equal(pack_bytes(store), pack_bytes(whole));
    /* and of a store with one whole model, that one needs no name still */
    assert_int_equal(import(TINY, whole, &(mica_import_options){.name = "begun", .exclude = "*norm*", .threads = 1, .progress = stop_at_half}),
                     MICA_INTERRUPTED);
    assert_same_model(TINY, whole);
}

/* Without --resume an unfinished import vanishes; what it stored is not stored again. */
static void test_start_afresh(void **state) {
    (void)state;
    const char *store = scratch("afresh"), *whole = scratch("afresh-whole");
    assert_int_equal(import(TINY, store, &(mica_import_options){.threads = 1, .progress = stop_at_half}), MICA_INTERRUPTED);
    assert_imports(TINY, store, NULL);
    assert_same_model(TINY, named(store, "tiny-k2"));
    assert_imports(TINY, whole, NULL);
    assert_int_equal(pack_bytes(store), pack_bytes(whole));
}

static void touch(const char *path, long nanoseconds) {
    const struct timespec times[2] = {{1700000000, nanoseconds}, {1700000000, nanoseconds}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* A byte more, at the time that it had. */
static void lengthen(const char *path) {
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(truncate(path, status.st_size + 1), 0);
    assert_int_equal(utimensat(AT_FDCWD, path, (const struct timespec[2]){status.st_mtim, status.st_mtim}, 0), 0);
}

static void test_linked_files(void **state) {
    (void)state;
    const char *store = scratch("linked"), *checkpoint = scratch("to-link");
    copy_directory(TINY, checkpoint);
    assert_imports(checkpoint, store, &(mica_import_options){.link = true});
    assert_int_equal(pack_bytes(store), 0);
    assert_same_model(TINY, store);
    char shard[2 * SCRATCH_PATH_BYTES];
    mica_tensor_source *source = NULL;
    snprintf(shard, sizeof shard, "%s/model-00001-of-00003.safetensors", checkpoint);
    lengthen(shard);
    assert_int_equal(mica_tensor_source_open(store, &source, &error), MICA_CORRUPT);
    assert_non_null(strstr(error.message, "changed since"));
    scratch_remove_tree(checkpoint);
    copy_directory(TINY, checkpoint);
    assert_imports(checkpoint, store, &(mica_import_options){.link = true, .force = true});
    snprintf(shard, sizeof shard, "%s/model-00002-of-00003.safetensors", checkpoint);
    touch(shard, 5);
    assert_int_equal(mica_tensor_source_open(store, &source, &error), MICA_CORRUPT);
    assert_non_null(strstr(error.message, "changed since"));
    /* Linked again it is trusted again; copied, it needs its source no more. */
    assert_imports(checkpoint, store, &(mica_import_options){.link = true, .force = true});
    assert_same_model(TINY, store);
    assert_imports(checkpoint, store, &(mica_import_options){.name = "copied"});
    scratch_remove_tree(checkpoint);
    assert_same_model(TINY, named(store, "copied"));
    assert_same_model(TINY, named(store, "to-link")); /* the same payloads, which are in a pack now */
}

static void test_from_store_to_store(void **state) {
    (void)state;
    const char *first = scratch("first"), *second = scratch("second");
    assert_imports(TINY, first, NULL);
    assert_imports(named(first, "tiny-k2"), second, NULL);
    assert_same_model(TINY, named(second, "tiny-k2"));
    assert_int_equal(import(named(first, "tiny-k2"), second, &(mica_import_options){.name = "l", .link = true}), MICA_USAGE);
}

static void test_one_writer(void **state) {
    (void)state;
    const char *store = scratch("busy");
    assert_imports(TINY, store, NULL);
    mica_store *writer = NULL;
    assert_int_equal(mica_store_open_writer(store, false, 0, &writer, &error), MICA_OK);
    assert_int_equal(import(TINY, store, &(mica_import_options){.name = "second"}), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "another process is writing"));
    assert_same_model(TINY, store); /* a reader is not in the way, and nobody is in its */
    mica_store_close(writer);
    assert_imports(TINY, store, &(mica_import_options){.name = "second"});
}

/* A file of plain tensors, of which no model is known. */
static void test_kept_files(void **state) {
    (void)state;
    const char *store = scratch("kept");
    mica_tensor_source *source = NULL;
    char *bytes = NULL, *truth = NULL;
    uint64_t length = 0, size = 0;
    assert_imports(TINY, store, NULL);
    assert_int_equal(mica_file_load(TINY "/config.json", 1 << 20, &truth, &size, &error), MICA_OK);
    assert_int_equal(mica_tensor_source_open(store, &source, &error), MICA_OK);
    assert_int_equal(mica_tensor_source_load(source, "config.json", size, &bytes, &length, &error), MICA_OK);
    assert_int_equal(length, size);
    assert_memory_equal(bytes, truth, size);
    mica_free(bytes);
    assert_int_equal(mica_tensor_source_load(source, "config.json", size - 1, &bytes, &length, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "config.json: expected at most"));
    mica_free(truth);
    mica_tensor_source_close(source);
}

/* By a page, and to less than its tensor: refused when the model is opened. */
static void test_a_pack_cut_short(void **state) {
    (void)state;
    const char *store = scratch("cut"), *pack = scratch("cut/packs/000001.pack");
    mica_tensor_source *source = NULL;
    struct stat status;
    assert_imports(TINY, store, &(mica_import_options){.include = "lm_head.weight"});
    assert_int_equal(stat(pack, &status), 0);
    const off_t lengths[] = {status.st_size - 4096, 4097};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(truncate(pack, lengths[i]), 0);
        assert_int_equal(mica_tensor_source_open(store, &source, &error), MICA_CORRUPT);
        assert_non_null(strstr(error.message, "000001.pack"));
        assert_non_null(strstr(error.message, "got a file of"));
    }
}

static void test_a_bare_file(void **state) {
    (void)state;
    const char *store = scratch("bare");
    assert_imports(TINY "/model-00002-of-00003.safetensors", store, &(mica_import_options){.name = "shard"});
    assert_same_model(TINY "/model-00002-of-00003.safetensors", named(store, "shard"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_reports_satisfy_their_schemas),
        cmocka_unit_test(test_index_is_the_same),
        cmocka_unit_test(test_other_verbs_take_a_model),
        cmocka_unit_test(test_experts_are_runs),
        cmocka_unit_test(test_second_model_shares),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_a_foreign_directory_is_not_touched),
        cmocka_unit_test(test_include_and_exclude),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_start_afresh),
        cmocka_unit_test(test_linked_files),
        cmocka_unit_test(test_from_store_to_store),
        cmocka_unit_test(test_one_writer),
        cmocka_unit_test(test_kept_files),
        cmocka_unit_test(test_a_pack_cut_short),
        cmocka_unit_test(test_a_bare_file),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
