/* test_verify_checkpoint.c: recorded hashes in all their forms, damage anywhere, the same report for any number of threads.
 * Outside truth: sha256sum and python's hashlib write the records that are compared here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "operations/validate.h"
#include "operations/verify.h"
#include "operations/verify_records.h"

#define TINY_K2 MICA_SOURCE_DIR "/models/tiny-k2"
#define SHARD "model-00002-of-00003.safetensors"

static char root[256];

static void shell(const char *format, ...) {
    char command[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    if (system(command) != 0)
        fail_msg("%s", command);
}

/* root/checkpoint: a copy of the repository's model; root/records: what sha256sum says of it. */
static int make(void **state) {
    (void)state;
    const char *parent = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/mica-test-XXXXXX", parent ? parent : P_tmpdir);
    if (!mkdtemp(root))
        return -1;
    shell("mkdir '%s/checkpoint' && cp '%s'/*.json '%s'/*.safetensors '%s/checkpoint' && "
          "cd '%s/checkpoint' && sha256sum *.json *.safetensors > ../records",
          root, TINY_K2, TINY_K2, root, root);
    return 0;
}

static int clean(void **state) {
    (void)state;
    shell("rm -rf '%s'", root);
    return 0;
}

static const char *at(const char *name) {
    static char paths[4][512];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

/* Changes one byte of a file by exclusive or; the same call puts it back. */
static void flip(const char *name, long offset, int bits) {
    FILE *file = fopen(at(name), "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, offset, offset < 0 ? SEEK_END : SEEK_SET), 0);
    int byte = fgetc(file);
    fseek(file, -1, SEEK_CUR);
    fputc(byte ^ bits, file);
    assert_int_equal(fclose(file), 0);
}

static json_t *verify(const char *name, const char *hashes, uint32_t threads, mica_status expected, const char *mention) {
    mica_verify_options options = {.hashes = hashes, .threads = threads};
    mica_error error = {0};
    char *text = NULL, *json = NULL;
    mica_status status = mica_verify_checkpoint(at(name), &options, &text, &json, &error);
    if (status != expected || (mention && !strstr(status == MICA_OK ? text : error.message, mention))) {
        fail_msg("expected status %d naming %s, got %d: %s\n%s", (int)expected, mention ? mention : "nothing", (int)status, error.message,
                 text ? text : "");
    }
    json_t *report = json ? json_loads(json, JSON_REJECT_DUPLICATES, NULL) : NULL;
    if (json && threads != 3) { /* once is enough for the others */
        assert_true(!validator_exists() || validates("verify.schema.json", json));
    }
    mica_string_free(text);
    mica_string_free(json);
    return report;
}

static json_int_t number(json_t *report, const char *key) {
    assert_true(json_is_integer(json_object_get(report, key)));
    return json_integer_value(json_object_get(report, key));
}

static void test_sha256sum_file(void **state) {
    (void)state;
    json_t *report = verify("checkpoint", at("records"), 2, MICA_OK, "6 recorded hashes of files compared");
    assert_int_equal(number(report, "hashed_files"), 6);
    assert_true(json_is_true(json_object_get(report, "ok")));
    json_decref(report);
    flip("records", 0, 1); /* a digit of the first hash: another digit, or no line of the format */
    json_decref(verify("checkpoint", at("records"), 3, MICA_CORRUPT, "config.json: SHA-256: expected"));
    flip("records", 0, 1);
    shell("cp '%s/records' '%s/checkpoint/mica.sha256'", root, root);
    report = verify("checkpoint", NULL, 1, MICA_OK, "6 recorded hashes of files compared");
    json_decref(report);
}

static void test_damage_is_found(void **state) {
    (void)state;
    static const struct {
        const char *file;
        long offset;
    } places[] = {{SHARD, -1}, {SHARD, 200000}, {"model-00001-of-00003.safetensors", -3}, {"config.json", -1},
                  {"tokenizer_config.json", 5}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char name[128];
        snprintf(name, sizeof name, "checkpoint/%s", places[i].file);
        flip(name, places[i].offset, 1);
        mica_error error = {0};
        mica_status status = mica_verify_checkpoint(at("checkpoint"), &(mica_verify_options){.hashes = at("records")}, NULL, NULL, &error);
        if ((status != MICA_CORRUPT && status != MICA_BAD_INPUT) || !strstr(error.message, places[i].file))
            fail_msg("a flipped byte of %s: %d: %s", places[i].file, (int)status, error.message);
        flip(name, places[i].offset, 1);
    }
    /* bytes of a header too: names, dtypes and offsets are bytes as well */
    for (long offset = 0; offset < 4000; offset += 431) {
        flip("checkpoint/" SHARD, offset, 1);
        assert_int_not_equal(mica_verify_checkpoint(at("checkpoint"), &(mica_verify_options){.hashes = at("records")}, NULL, NULL, NULL),
                             MICA_OK);
        flip("checkpoint/" SHARD, offset, 1);
    }
}

static void test_records_are_checked(void **state) {
    (void)state;
    shell("{ cat '%s/records'; printf '%%064d  gone.bin\\n' 0; } > '%s/more'", root, root);
    json_decref(verify("checkpoint", at("more"), 3, MICA_CORRUPT, "gone.bin: expected present"));
    shell("head -3 '%s/records' > '%s/fewer'", root, root); /* the shards are the last three, and config.json stays */
    json_decref(verify("checkpoint", at("fewer"), 3, MICA_OK, "warning: model-00003-of-00003.safetensors: no hash of it is recorded"));
    static const char *const bad[][2] = {{"0123  config.json", "64 hexadecimal digits"},
                                         {"%064d config.json", "64 hexadecimal digits"},
                                         {"%064d  ../config.json", "in the checkpoint"},
                                         {"%064d  a/../../config.json", "in the checkpoint"},
                                         {"%064d  /etc/hostname", "in the checkpoint"},
                                         {"%064d  a//b", "in the checkpoint"},
                                         {"\\n", "got none"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        shell("printf '%s\\n' 0 > '%s/bad'", bad[i][0], root);
        assert_null(verify("checkpoint", at("bad"), 1, MICA_BAD_INPUT, bad[i][1]));
    }
    assert_null(verify("checkpoint", at("none"), 1, MICA_IO, "none"));
}

/* The layout of the Hugging Face cache: snapshots of links to blobs named by their SHA-256. */
static void test_cache_links(void **state) {
    (void)state;
    shell("cd '%s' && mkdir blobs snapshot && cp checkpoint/*.json snapshot && while read -r hash name; do case $name in *.safetensors) "
          "cp checkpoint/$name blobs/$hash && ln -s ../blobs/$hash snapshot/$name;; esac; done < records",
          root);
    json_t *report = verify("snapshot", NULL, 2, MICA_OK, "3 recorded hashes of files compared");
    json_decref(report);
    shell("cd '%s/snapshot' && printf '\\001' | dd of=" SHARD " bs=1 seek=100000 conv=notrunc 2>/dev/null", root);
    json_decref(verify("snapshot", NULL, 2, MICA_CORRUPT, SHARD ": SHA-256: expected"));
}

static void test_tensor_records(void **state) {
    (void)state;
    shell("mkdir '%s/vindex' && cd '%s' && /usr/bin/python3 -c '\n"
          "import glob, hashlib, json, struct\n"
          "tensors = {}\n"
          "for path in glob.glob(\"checkpoint/*.safetensors\"):\n"
          "    data = open(path, \"rb\").read(); n = struct.unpack(\"<Q\", data[:8])[0]\n"
          "    for name, t in json.loads(data[8:8 + n]).items():\n"
          "        if \"experts.3.\" in name:\n"
          "            a, b = t[\"data_offsets\"]; line = \" \".join([t[\"dtype\"]] + [str(d) for d in t[\"shape\"]]) + \"\\n\"\n"
          "            tensors[name] = {\"sha256\": hashlib.sha256(line.encode() + data[8 + n + a:8 + n + b]).hexdigest()}\n"
          "json.dump({\"tensors\": tensors}, open(\"vindex/source_tensors.json\", \"w\"))'",
          root, root);
    json_t *report = verify("checkpoint", at("vindex"), 2, MICA_OK, "24 recorded hashes of tensors");
    assert_int_equal(number(report, "hashed_tensors"), 24); /* 4 layers, 3 projections, codes and scales */
    json_decref(report);
    shell("sed -i 's/\"sha256\": \"\\([0-9a-f]\\{10\\}\\)./\"sha256\": \"\\1x/' '%s/vindex/source_tensors.json'", root);
    assert_null(verify("checkpoint", at("vindex"), 1, MICA_BAD_INPUT, "source_tensors.json: tensors."));
    shell("sed -i 's/\"sha256\": \"\\([0-9a-f]\\{10\\}\\)x/\"sha256\": \"\\10/; "
          "s/experts.3.down_proj.weight\"/experts.99.down_proj.weight\"/' "
          "'%s/vindex/source_tensors.json'",
          root);
    json_decref(verify("checkpoint", at("vindex"), 2, MICA_CORRUPT, "experts."));
}

static bool stop(void *context, const mica_progress *progress) {
    assert_string_equal(progress->what, "verifying");
    assert_true(progress->bytes_done <= progress->bytes_total);
    return ++*(int *)context < 2;
}

static bool go_on(void *context, const mica_progress *progress) {
    *(mica_progress *)context = *progress;
    return true;
}

static void test_progress(void **state) {
    (void)state;
    int calls = 0;
    mica_error error = {0};
    mica_verify_options options = {.hashes = at("records"), .progress = stop, .progress_context = &calls, .threads = 2};
    assert_int_equal(mica_verify_checkpoint(at("checkpoint"), &options, NULL, NULL, &error), MICA_INTERRUPTED);
    mica_progress last = {0};
    options.progress = go_on;
    options.progress_context = &last;
    assert_int_equal(mica_verify_checkpoint(at("checkpoint"), &options, NULL, NULL, &error), MICA_OK);
    assert_int_equal(last.units_done, last.units_total);
    assert_int_equal(last.bytes_done, last.bytes_total);
}

/* Many faults in all shards: every one is told, in the order of the files, whatever the threads. */
static void test_all_findings(void **state) {
    (void)state;
    shell("cp -r '%s/checkpoint' '%s/damaged' && cd '%s/damaged' && rm -f mica.sha256 && /usr/bin/python3 -c '\n"
          "import glob, json, struct\n"
          "for path in sorted(glob.glob(\"*.safetensors\")):\n"
          "    data = bytearray(open(path, \"rb\").read()); n = struct.unpack(\"<Q\", data[:8])[0]\n"
          "    for name, t in json.loads(data[8:8 + n]).items():\n"
          "        if \"experts.5.gate_proj.weight\" in name:\n"
          "            at = 8 + n + t[\"data_offsets\"][1]\n"
          "            data[at - 1:at] = bytes([0x7f])\n"
          "            if t[\"dtype\"] == \"F32\": data[at - 4:at] = struct.pack(\"<f\", -0.5)\n"
          "    open(path, \"wb\").write(data)'",
          root, root, root);
    char *first[2] = {NULL, NULL};
    for (uint32_t threads = 1; threads <= 4; threads *= 2) {
        for (int hashed = 0; hashed < 2; hashed++) {
            char *json = NULL;
            mica_verify_options options = {.hashes = hashed ? at("records") : NULL, .threads = threads};
            assert_int_equal(mica_verify_checkpoint(at("damaged"), &options, NULL, &json, NULL), MICA_BAD_INPUT);
            if (first[hashed]) {
                assert_string_equal(json, first[hashed]);
                mica_string_free(json);
            } else {
                first[hashed] = json;
            }
        }
    }
    json_t *report = json_loads(first[1], 0, NULL);
    assert_int_equal(number(report, "problem_count"), 4 + 3); /* each shard's hash as well */
    json_decref(report);
    report = json_loads(first[0], 0, NULL);
    assert_int_equal(number(report, "problem_count"), 4); /* the code 0x7F in four layers; its scale is negative */
    assert_int_equal(number(report, "warning_count"), 4);
    const char *what = json_string_value(json_object_get(json_array_get(json_object_get(report, "problems"), 0), "problem"));
    assert_non_null(strstr(what, "expected finite, got nan at [127,255]"));
    json_decref(report);
    mica_string_free(first[0]);
    mica_string_free(first[1]);
}

/* A tensor larger than a piece, in a file alone: positions go on across pieces, and so does the hash. */
static void test_large_tensor(void **state) {
    (void)state;
    shell("cd '%s' && mkdir large && cd large && /usr/bin/python3 -c '\n"
          "import json, struct\n"
          "rows, columns, bad = 5000, 1001, (4321, 999)\n"
          "header = json.dumps({\"w\": {\"dtype\": \"F32\", \"shape\": [rows, columns],"
          " \"data_offsets\": [0, 4 * rows * columns]}}).encode()\n"
          "with open(\"a.safetensors\", \"wb\") as f:\n"
          "    f.write(struct.pack(\"<Q\", len(header)) + header)\n"
          "    f.truncate(8 + len(header) + 4 * rows * columns)\n"
          "    f.seek(8 + len(header) + 4 * (bad[0] * columns + bad[1])); f.write(struct.pack(\"<f\", float(\"-inf\")))'"
          " && sha256sum a.safetensors > records",
          root);
    json_t *report = verify("large/a.safetensors", at("large/records"), 2, MICA_BAD_INPUT, "w: expected finite, got -inf at [4321,999]");
    assert_int_equal(number(report, "problem_count"), 1);
    assert_int_equal(number(report, "hashed_files"), 1);
    json_decref(report);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sha256sum_file), cmocka_unit_test(test_damage_is_found),
                                       cmocka_unit_test(test_records_are_checked),
                                       cmocka_unit_test(test_cache_links),    cmocka_unit_test(test_tensor_records),
                                       cmocka_unit_test(test_progress),
                                       cmocka_unit_test(test_all_findings),   cmocka_unit_test(test_large_tensor)};
    return cmocka_run_group_tests(tests, make, clean);
}
