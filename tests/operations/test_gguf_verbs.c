/* Judges inspect, verify and index over a GGUF file: what they say of it, that every block is looked at, that hashes cover the padding, and
 * that a vindex made of it names its experts' slices and finds them again. */
#include <mica/checkpoint.h>
#include <mica/store.h>
#include <mica/vindex.h>

#include "base/hash.h"
#include "base/json.h"
#include "formats/shards.h"
#include "formats/tensor_source.h"
#include "model/gguf_model.h"

static void test_inspect(void **state) {
    (void)state;
    gguf_model file = {0};
    char *text = NULL, *json = NULL;
    mica_error error = {0};
    gguf_write(&file, "model.gguf");
    if (mica_inspect(scratch("model.gguf"), NULL, &text, &json, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_says("text", text,
                (const char *const[]){"deepseek2 (family deepseek_v3)", "2: 1 dense, 1 with 3 experts, 2 a token, and 1 shared",
                                      "quantisation  ggml blocks", "experts                  Q8_0                6",
                                      "experts                  F32                 3", "33 used, 0 ignored", "GGUF version 3",
                                      "deepseek2.expert_weights_scale                   f32     2.827", NULL});
    json_t *report = NULL;
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, &error), MICA_OK);
    json_t *gguf = json_object_get(report, "gguf");
    assert_int_equal(json_integer_value(json_object_get(gguf, "version")), 3);
    assert_int_equal(json_array_size(json_object_get(gguf, "keys")), file.key_count);
    json_decref(report);
    mica_string_free(text);
    mica_string_free(json);
}

/* An architecture that is not known: its tensors are listed. */
static void test_inspect_tensors_alone(void **state) {
    (void)state;
    mica_text file = MICA_TEXT_INIT;
    char *text = NULL, *json = NULL;
    mica_error error = {0};
    put_start(&file, 1, 2), put_text(&file, "general.architecture", "clip"), put_text(&file, "note", "a\n\xff b");
    put_tensor(&file, "v.patch_embd.weight", NE(8, 2), 0, 0), put_padding(&file, 32), put_zeros(&file, 64), put_file(&file, "clip.gguf");
    assert_int_equal(mica_inspect(scratch("clip.gguf"), NULL, &text, &json, &error), MICA_OK);
    assert_says("text", text, (const char *const[]){"1 tensor", "v.patch_embd.weight", "general.architecture", "clip", "a\\n? b", NULL});
    mica_string_free(text);
    mica_string_free(json);
    assert_int_equal(mica_verify(scratch("clip.gguf"), NULL, &text, &json, &error), MICA_OK);
    mica_string_free(text);
    mica_string_free(json);
}

static mica_status verify(const char *name, const char *hashes, char **text) {
    mica_verify_options options = {.hashes = hashes, .threads = 2};
    char *json = NULL;
    mica_error error = {0};
    *text = NULL;
    mica_status status = mica_verify(scratch(name), &options, text, &json, &error);
    mica_string_free(json);
    if (!*text)
        *text = strdup(error.message);
    return status;
}

static void write_hash_of(const char *name, const char *record) {
    uint8_t digest[MICA_SHA256_BYTES];
    char hex[MICA_SHA256_HEX_BYTES], line[256];
    uint64_t bytes;
    mica_error error;
    assert_int_equal(mica_sha256_of_file(scratch(name), digest, &bytes, &error), MICA_OK);
    mica_sha256_hex(digest, hex);
    snprintf(line, sizeof line, "%s  %s\n", hex, name);
    scratch_write(record, line, strlen(line));
}

static void test_verify(void **state) {
    (void)state;
    gguf_model file = {.legacy = true};
    char *text;
    gguf_write(&file, "model.gguf");
    if (verify("model.gguf", NULL, &text) != MICA_OK)
        fail_msg("%s", text);
    free(text);
    write_hash_of("model.gguf", "hashes");
    char hashes[512];
    snprintf(hashes, sizeof hashes, "%s", scratch("hashes"));
    if (verify("model.gguf", hashes, &text) != MICA_OK)
        fail_msg("%s", text);
    free(text);
    file.key = "deepseek2.context_length";
    file.value = 256;
    gguf_write(&file, "model.gguf");
    assert_int_not_equal(verify("model.gguf", hashes, &text), MICA_OK);
    assert_says("another file", text, (const char *const[]){"model.gguf", "SHA-256", NULL});
    free(text);
    static const char *const poisoned[] = {"blk.1.ffn_down_exps.weight", "blk.0.attn_norm.weight", "blk.1.ffn_up_exps.weight",
                                           "token_embd.weight"};
    for (size_t i = 0; i < sizeof poisoned / sizeof *poisoned; i++) {
        file = (gguf_model){.poison = poisoned[i]};
        gguf_write(&file, "model.gguf");
        assert_int_not_equal(verify("model.gguf", NULL, &text), MICA_OK);
        assert_says(poisoned[i], text, (const char *const[]){poisoned[i], "expected finite", NULL});
        free(text);
    }
}

static void remove_vindex(const char *directory) {
    char **names = NULL, path[1024];
    uint64_t count = 0;
    mica_error error;
    if (mica_directory_list(directory, &names, &count, &error) == MICA_OK)
        for (uint64_t i = 0; i < count; i++) {
            snprintf(path, sizeof path, "%s/%s", directory, names[i]);
            if (unlink(path) != 0)
                remove_vindex(path);
        }
    mica_directory_names_free(names, count);
    rmdir(directory);
}

static void test_index(void **state) {
    (void)state;
    gguf_model file = {0};
    char vindex[512], *text = NULL, *json = NULL;
    mica_error error = {0};
    mica_index_options options = {.features = 4, .threads = 2, .memory_bytes = UINT64_C(1) << 30};
    snprintf(vindex, sizeof vindex, "%s", scratch("vindex"));
    gguf_write(&file, "model.gguf");
    if (mica_index(scratch("model.gguf"), vindex, &options, &text, &json, &error) != MICA_OK)
        fail_msg("%s", error.message);
    mica_string_free(text);
    mica_string_free(json);
    char path[600];
    json_t *tensors = NULL;
    snprintf(path, sizeof path, "%s/source_tensors.json", vindex);
    assert_int_equal(mica_json_load(path, 1 << 20, &tensors, &error), MICA_OK);
    json_t *slice = json_object_get(json_object_get(tensors, "tensors"), "blk.1.ffn_gate_exps.weight[2]");
    assert_non_null(slice);
    assert_string_equal(json_string_value(json_object_get(slice, "dtype")), "Q8_0");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(slice, "shape"), 0)), 32);
    json_decref(tensors);
    if (verify("model.gguf", vindex, &text) != MICA_OK) /* the slices' hashes again, from the whole tensors */
        fail_msg("%s", text);
    free(text);
    assert_int_equal(mica_verify(vindex, NULL, &text, &json, &error), MICA_OK);
    mica_string_free(text);
    mica_string_free(json);
    mica_tensor_source *source;
    assert_int_equal(mica_tensor_source_open(scratch("model.gguf"), &source, &error), MICA_OK);
    const mica_tensor *gates = mica_tensor_source_find(source, "blk.1.ffn_gate_exps.weight");
    long last = (long)(gates->offset + gates->bytes - 1); /* a code of the last expert */
    mica_tensor_source_close(source);
    FILE *bad = fopen(scratch("model.gguf"), "r+b");
    assert_non_null(bad);
    assert_int_equal(fseek(bad, last, SEEK_SET), 0);
    int code = fgetc(bad);
    assert_int_equal(fseek(bad, last, SEEK_SET), 0);
    fputc(code ^ 1, bad);
    fclose(bad);
    assert_int_not_equal(verify("model.gguf", vindex, &text), MICA_OK);
    assert_says("a changed slice", text, (const char *const[]){"blk.1.ffn_gate_exps.weight[2]", "SHA-256", NULL});
    free(text);
    remove_vindex(vindex);
}

/* Its configuration is no file that a store could keep. */
static void test_import_is_refused(void **state) {
    (void)state;
    gguf_model file = {0};
    char store[512], *text = NULL, *json = NULL;
    mica_error error = {0};
    snprintf(store, sizeof store, "%s", scratch("store"));
    gguf_write(&file, "model.gguf");
    assert_int_equal(mica_import(scratch("model.gguf"), store, NULL, &text, &json, &error), MICA_BAD_INPUT);
    assert_says("import", error.message, (const char *const[]){"model.gguf", "got a GGUF file", NULL});
    assert_false(mica_path_exists(store));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_inspect), cmocka_unit_test(test_inspect_tensors_alone),
                                       cmocka_unit_test(test_verify), cmocka_unit_test(test_index),
                                       cmocka_unit_test(test_import_is_refused)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
