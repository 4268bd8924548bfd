/* mica_export_safetensors: every tensor bit for bit in as many shards as asked for, or decoded and rounded; the same bytes from a store,
 * from any number of threads, and after a stop; what is in the way stays; a full disk is told. The rounding's outside judge is
 * tests/interop. */
#include <mica/export.h>
#include <mica/store.h>

#include "base/no_memory.h"
#include "faults/faulty_io.h"
#include "model/model.h"
#include "operations/validate.h"
#include "operations/vindex_helpers.h"

static mica_error error;

static mica_status export(const char *checkpoint, const char *directory, const mica_export_safetensors_options *options) {
    char *text = NULL, *json = NULL;
    const mica_status status = mica_export_safetensors(checkpoint, directory, options, &text, &json, &error);
    if (status == MICA_OK) {
        assert_non_null(text);
        assert_non_null(json);
    }
    mica_string_free(text);
    mica_string_free(json);
    return status;
}

static void assert_exports(const char *checkpoint, const char *directory, const mica_export_safetensors_options *options) {
    if (export(checkpoint, directory, options) != MICA_OK)
        fail_msg("%s", error.message);
}

static void assert_same_bytes(const char *left, const char *right) {
    char command[3 * SCRATCH_PATH_BYTES];
    snprintf(command, sizeof command, "diff -r '%s' '%s' >&2", left, right);
    if (system(command) != 0)
        fail_msg("%s and %s differ", left, right);
}

static void assert_same_tensors(const char *left, const char *right) {
    mica_tensor_source *a = NULL, *b = NULL;
    if (mica_tensor_source_open(left, &a, &error) != MICA_OK || mica_tensor_source_open(right, &b, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(a->tensor_count, b->tensor_count);
    for (uint64_t i = 0; i < a->tensor_count; i++) {
        const mica_tensor *one = &a->tensors[i], *other = &b->tensors[i];
        uint8_t *bytes = mica_malloc(one->bytes + 1), *others = mica_malloc(one->bytes + 1);
        assert_string_equal(one->name, other->name);
        assert_int_equal(one->dtype, other->dtype);
        assert_int_equal(one->rank, other->rank);
        assert_memory_equal(one->shape, other->shape, one->rank * sizeof *one->shape);
        assert_int_equal(mica_file_read(a->shards[one->shard].file, one->offset, bytes, one->bytes, &error), MICA_OK);
        assert_int_equal(mica_file_read(b->shards[other->shard].file, other->offset, others, other->bytes, &error), MICA_OK);
        assert_memory_equal(bytes, others, one->bytes);
        mica_free(bytes);
        mica_free(others);
    }
    char **names = NULL, **others = NULL;
    uint64_t count = 0, other_count = 0;
    assert_int_equal(mica_tensor_source_list_files(a, &names, &count, &error), MICA_OK);
    assert_int_equal(mica_tensor_source_list_files(b, &others, &other_count, &error), MICA_OK);
    assert_int_equal(count, other_count);
    for (uint64_t i = 0; i < count; i++) {
        char *bytes = NULL, *other = NULL;
        uint64_t length = 0, other_length = 0;
        assert_string_equal(names[i], others[i]);
        assert_int_equal(mica_tensor_source_load(a, names[i], 1 << 26, &bytes, &length, &error), MICA_OK);
        assert_int_equal(mica_tensor_source_load(b, names[i], 1 << 26, &other, &other_length, &error), MICA_OK);
        assert_int_equal(length, other_length);
        assert_memory_equal(bytes, other, length);
        mica_free(bytes);
        mica_free(other);
    }
    mica_directory_names_free(names, count);
    mica_directory_names_free(others, other_count);
    mica_tensor_source_close(a);
    mica_tensor_source_close(b);
}

static void test_copies(void **state) {
    (void)state;
    assert_exports(TINY, scratch("one"), NULL);
    assert_true(mica_path_exists(scratch("one/model.safetensors")));
    assert_false(mica_path_exists(scratch("one/model.safetensors.index.json")));
    assert_same_tensors(TINY, scratch("one"));
    const mica_export_safetensors_options shards = {.shard_bytes = 4000000, .threads = 1};
    assert_exports(TINY, scratch("five"), &shards);
    assert_true(mica_path_exists(scratch("five/model-00001-of-00005.safetensors")));
    assert_false(mica_path_exists(scratch("five/journal.mica")));
    assert_same_tensors(TINY, scratch("five"));
    const mica_export_safetensors_options threads = {.shard_bytes = 4000000, .threads = 4};
    assert_exports(scratch("one"), scratch("five-again"), &threads); /* the result depends on no shard of the source */
    assert_same_bytes(scratch("five"), scratch("five-again"));
}

static void test_from_a_store(void **state) {
    (void)state;
    char model[SCRATCH_PATH_BYTES + 300];
    const mica_import_options import = {.name = "tiny"};
    const mica_export_safetensors_options options = {.shard_bytes = 4000000}, decoded = {.shard_bytes = 4000000, .dtype = "bf16"};
    if (mica_import(TINY, scratch("store"), &import, NULL, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
    snprintf(model, sizeof model, "%s#tiny", scratch("store"));
    assert_exports(model, scratch("from-store"), &options);
    assert_same_bytes(scratch("five"), scratch("from-store"));
    assert_exports(model, scratch("from-store-bf16"), &decoded);
    assert_exports(TINY, scratch("bf16"), &decoded);
    assert_same_bytes(scratch("bf16"), scratch("from-store-bf16"));
}

/* ---- bf16 */

/* To nearest, ties to even, written out. */
static uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t kept = bits >> 16;
    const uint32_t rest = bits & 0xffff;
    if (rest > 0x8000 || (rest == 0x8000 && (kept & 1)))
        kept++;
    return (uint16_t)kept;
}

static void check_weight(const mica_model *from, const mica_weight *weight, const mica_model *to) {
    char name[300];
    snprintf(name, sizeof name, "%s", weight->data->name);
    char *packed = strstr(name, "_packed");
    if (packed)
        *packed = '\0';
    const mica_tensor *tensor = mica_tensor_source_find(to->source, name);
    if (!tensor)
        fail_msg("%s is missing", name);
    const bool kept = weight->encoding == MICA_ENCODING_PLAIN && tensor->dtype == weight->data->dtype;
    uint8_t *got = mica_malloc(tensor->bytes + 1);
    assert_int_equal(mica_file_read(mica_model_file(to, tensor), tensor->offset, got, tensor->bytes, &error), MICA_OK);
    if (kept) {
        uint8_t *bytes = mica_malloc(tensor->bytes + 1);
        assert_int_equal(tensor->bytes, weight->data->bytes);
        assert_int_equal(mica_file_read(mica_model_file(from, weight->data), weight->data->offset, bytes, tensor->bytes, &error), MICA_OK);
        assert_memory_equal(bytes, got, tensor->bytes);
        mica_free(bytes);
    } else {
        float *values = NULL;
        assert_int_equal(tensor->dtype, MICA_BF16);
        assert_int_equal(tensor->elements, weight->rows * weight->columns);
        if (weight->encoding != MICA_ENCODING_PLAIN) {
            assert_int_equal(tensor->rank, 2);
            assert_int_equal(tensor->shape[0], weight->rows);
            assert_int_equal(tensor->shape[1], weight->columns);
        }
        assert_int_equal(mica_weight_load(from, weight, &values, &error), MICA_OK);
        for (uint64_t i = 0; i < tensor->elements; i++) {
            uint16_t code;
            memcpy(&code, got + 2 * i, sizeof code);
            if (code != rounded(values[i]))
                fail_msg("%s: element %llu: expected 0x%04x of %a, got 0x%04x", name, (unsigned long long)i, rounded(values[i]),
                         (double)values[i], code);
        }
        mica_free(values);
    }
    mica_free(got);
}

/* Every weight is there, none of the parts it was stored in; the result opens strictly and says nothing of quantisation. */
static void check_decoded(const char *checkpoint, const char *directory) {
    mica_model *from = NULL, *to = NULL;
    const mica_model_options strict = {.strict = true};
    const mica_export_safetensors_options options = {.dtype = "bf16", .shard_bytes = 1000000};
    assert_exports(checkpoint, directory, &options);
    if (mica_model_open(checkpoint, NULL, &from, &error) != MICA_OK || mica_model_open(directory, &strict, &to, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(to->config.quantisation, MICA_QUANTISATION_NONE);
    assert_int_equal(to->source->tensor_count, from->weight_count);
    for (uint64_t i = 0; i < from->weight_count; i++)
        check_weight(from, &from->weights[i], to);
    for (uint64_t i = 0; i < to->weight_count; i++)
        assert_int_equal(to->weights[i].encoding, MICA_ENCODING_PLAIN);
    mica_model_close(from);
    mica_model_close(to);
}

static void test_bf16(void **state) {
    (void)state;
    check_decoded(TINY, scratch("tiny-bf16"));
    mica_tensor_source *source = NULL;
    assert_int_equal(mica_tensor_source_open(scratch("tiny-bf16"), &source, &error), MICA_OK);
    const mica_tensor *bias = mica_tensor_source_find(source, "model.layers.1.mlp.gate.e_score_correction_bias");
    assert_non_null(bias);
    assert_int_equal(bias->dtype, MICA_F32);
    mica_tensor_source_close(source);
    /* what is BF16 already stays as it is */
    const mica_export_safetensors_options options = {.dtype = "bf16", .shard_bytes = 1000000};
    assert_exports(scratch("tiny-bf16"), scratch("twice"), &options);
    assert_same_bytes(scratch("tiny-bf16"), scratch("twice"));
}

static void test_bf16_of_every_kind(void **state) {
    (void)state;
    static const char *const kinds[] = {"v3-groups", "v3-groups-ue8m0", "kimi-vl",     "k2-thinking",
                                        "k25",       "v4-flash",        "qwen3-dense", "llama-dense"};
    if (!mica_path_exists(FIXTURES)) {
        printf("skipped: %s is not there\n", FIXTURES);
        skip();
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char checkpoint[SCRATCH_PATH_BYTES];
        snprintf(checkpoint, sizeof checkpoint, "%s/%s", FIXTURES, kinds[i]);
        check_decoded(checkpoint, scratch(kinds[i]));
    }
}

static void test_config(void **state) {
    (void)state;
    char *bytes = NULL;
    json_t *config = NULL;
    uint64_t length = 0;
    assert_int_equal(mica_file_load(scratch("tiny-bf16/config.json"), 1 << 20, &bytes, &length, &error), MICA_OK);
    assert_int_equal(mica_json_parse("config.json", bytes, length, &config, &error), MICA_OK);
    json_t *before = NULL;
    assert_int_equal(mica_json_load(TINY "/config.json", 1 << 20, &before, &error), MICA_OK);
    assert_non_null(json_object_get(before, "quantization_config"));
    json_object_del(before, "quantization_config");
    json_object_set_new(before, "torch_dtype", json_string("bfloat16"));
    assert_true(json_equal(before, config));
    json_decref(before);
    json_decref(config);
    mica_free(bytes);
}

/* ---- stops, conflicts, full disks */

static bool stop_after(void *context, const mica_progress *progress) {
    return progress->units_done < *(const uint64_t *)context;
}

static void test_resumes(void **state) {
    (void)state;
    uint64_t units = 100;
    const mica_export_safetensors_options stop = {.shard_bytes = 4000000, .threads = 2, .progress = stop_after, .progress_context = &units},
                                          more = {.shard_bytes = 4000000,
                                                  .resume = true,
                                                  .progress = stop_after,
                                                  .progress_context = &units},
                                          other = {.shard_bytes = 5000000, .resume = true}, again = {.shard_bytes = 4000000},
                                          rest = {.shard_bytes = 4000000, .resume = true};
    assert_int_equal(export(TINY, scratch("stopped"), &stop), MICA_INTERRUPTED);
    assert_true(mica_path_exists(scratch("stopped/journal.mica")));
    assert_false(mica_path_exists(scratch("stopped/model-00001-of-00005.safetensors")));
    units = 300;
    assert_int_equal(export(TINY, scratch("stopped"), &more), MICA_INTERRUPTED);
    assert_int_equal(export(TINY, scratch("stopped"), &again), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "--resume"));
    assert_int_equal(export(TINY, scratch("stopped"), &other), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "options.shard_bytes differs"));
    assert_exports(TINY, scratch("stopped"), &rest);
    assert_same_bytes(scratch("five"), scratch("stopped"));
    assert_exports(TINY, scratch("stopped"), &rest); /* nothing to do */
    assert_int_equal(export(TINY, scratch("stopped"), &other), MICA_CONFLICT);
    assert_int_equal(export(TINY, scratch("stopped"), &again), MICA_CONFLICT);
    const mica_export_safetensors_options force = {.shard_bytes = 3000000, .force = true}, afresh = {.shard_bytes = 4000000, .force = true};
    assert_exports(TINY, scratch("stopped"), &force);
    assert_exports(TINY, scratch("stopped"), &afresh); /* no shard of the others is left */
    assert_same_bytes(scratch("five"), scratch("stopped"));
}

static void copy_tiny(const char *directory) {
    char command[3 * SCRATCH_PATH_BYTES];
    snprintf(command, sizeof command, "cp -r '%s' '%s' && chmod -R u+w '%s'", TINY, directory, directory);
    assert_int_equal(system(command), 0);
}

/* Neither its own source nor anything else is written over. */
/* A kill as early as can be leaves nothing but the journal's first, nameless form: that is not a finished export. */
static void test_killed_at_once(void **state) {
    (void)state;
    const mica_export_safetensors_options resume = {.resume = true};
    assert_int_equal(mica_directory_create(scratch("early"), &error), MICA_OK);
    assert_int_equal(mica_file_replace(scratch("early/journal.mica.partial"), "half", 4, &error), MICA_OK);
    assert_exports(TINY, scratch("early"), &resume);
    assert_same_tensors(TINY, scratch("early"));
    assert_false(mica_directory_has(scratch("early"), "journal.mica.partial"));
}

static void test_what_is_in_the_way(void **state) {
    (void)state;
    const mica_export_safetensors_options force = {.force = true}, both = {.force = true, .resume = true}, odd = {.dtype = "f16"},
                                          little = {.memory_bytes = 1000000};
    copy_tiny(scratch("source"));
    assert_int_equal(export(scratch("source"), scratch("source"), &force), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "expected another directory than the checkpoint's"));
    assert_int_equal(mica_directory_create(scratch("links"), &error), MICA_OK); /* by way of a link */
    assert_int_equal(symlink(scratch("source/model-00001-of-00003.safetensors"), scratch("links/model-00001-of-00003.safetensors")), 0);
    assert_int_equal(export(scratch("source"), scratch("links"), &force), MICA_CONFLICT);
    assert_same_tensors(TINY, scratch("source"));
    assert_int_equal(mica_directory_create(scratch("foreign"), &error), MICA_OK);
    assert_int_equal(mica_file_replace(scratch("foreign/thesis.tex"), "x", 1, &error), MICA_OK);
    assert_int_equal(export(TINY, scratch("foreign"), &force), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "thesis.tex"));
    assert_int_equal(export(TINY, scratch("new"), &both), MICA_USAGE);
    assert_int_equal(export(TINY, scratch("new"), &odd), MICA_USAGE);
    assert_int_equal(export(TINY, scratch("new2"), &little), MICA_USAGE);
    assert_non_null(strstr(error.message, "--memory: expected at least"));
    assert_int_equal(export(TINY, scratch("no/such/place"), NULL), MICA_IO);
}

static void test_dry_run(void **state) {
    (void)state;
    const mica_export_safetensors_options dry = {.dry_run = true, .dtype = "bf16"};
    char *text = NULL, *json = NULL;
    assert_int_equal(mica_export_safetensors(TINY, NULL, &dry, &text, &json, &error), MICA_OK);
    assert_non_null(strstr(text, "nothing is written"));
    if (validator_exists())
        assert_true(validates("export_safetensors.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
}

/* One plain call of a file system fails, wherever it is: a sentence, and a resume gives the same bytes. */
static void test_faults(void **state) {
    (void)state;
    const mica_export_safetensors_options first = {.shard_bytes = 4000000, .threads = 2}, rest = {.shard_bytes = 4000000, .resume = true};
    static const struct {
        call_kind kind;
        int failure;
        uint32_t step;
    } kinds[] = {{PWRITE, ENOSPC, 301}, {FSYNC, EIO, 9}, {RENAME, EIO, 4}, {FTRUNCATE, ENOSPC, 3}, {UNLINK, EACCES, 1}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        for (uint32_t nth = 1;; nth += kinds[i].step) {
            scratch_remove_tree(scratch("faulty"));
            memset(&fault, 0, sizeof fault);
            fault.kind = kinds[i].kind;
            fault.countdown = nth;
            fault.failure = kinds[i].failure;
            mica_io_install(&faulty);
            const mica_status status = export(TINY, scratch("faulty"), &first);
            mica_io_install(NULL);
            assert_int_equal(fault.open_files, 0);
            if (status == MICA_OK && fault.countdown > 0)
                break; /* there was no such call */
            if (status != MICA_OK) {
                assert_int_equal(status, MICA_IO);
                assert_non_null(strstr(error.message, strerror(kinds[i].failure)));
            }
            assert_exports(TINY, scratch("faulty"), &rest);
            assert_same_bytes(scratch("five"), scratch("faulty"));
        }
    }
}

static void test_out_of_memory(void **state) {
    (void)state;
    const mica_export_safetensors_options options = {.dtype = "bf16", .threads = 1};
    for (no_memory trial = {0}; no_memory_next(&trial);) { /* each of them: where they are moves with the lengths of paths */
        char *text = NULL, *json = NULL;
        scratch_remove_tree(scratch("poor"));
        no_memory_begin(&trial);
        const mica_status status = mica_export_safetensors(TINY, scratch("poor"), &options, &text, &json, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        mica_string_free(text);
        mica_string_free(json);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_from_a_store),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_bf16_of_every_kind),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_resumes),
        cmocka_unit_test(test_what_is_in_the_way),
        cmocka_unit_test(test_killed_at_once),
        cmocka_unit_test(test_dry_run),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
