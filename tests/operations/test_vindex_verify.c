/* tests/operations/test_vindex_verify.c: judges mica_verify on a vindex: a bit flipped anywhere in any file is found, as are missing,
 * extra,
 * cut and lengthened files, and an unfinished one; what checksums cannot show (they were made afresh) the numbers do. Also vindex.c. */
#include "operations/vindex_helpers.h"

#include <math.h>

static mica_status run_verify(const char *directory, char **text, mica_error *error) {
    char *json = NULL;
    const mica_status status = mica_verify(directory, NULL, text, &json, error);
    if (status == MICA_OK || status == MICA_CORRUPT) {
        json_t *object = NULL;
        assert_int_equal(mica_json_parse("report", json, strlen(json), &object, NULL), MICA_OK);
        assert_int_equal(json_is_true(json_object_get(object, "ok")), status == MICA_OK);
        json_decref(object);
    }
    mica_string_free(json);
    return status;
}

static void must_find(const char *directory, const char *file, const char *what) {
    char *text = NULL;
    mica_error error = {MICA_OK, ""};
    const mica_status status = run_verify(directory, &text, &error);
    if (status != MICA_CORRUPT || !text || !strstr(text, file) || !strstr(text, what))
        fail_msg("expected %s: %s; got %d: %s\n%s", file, what, status, error.message, text ? text : "");
    mica_string_free(text);
}

static void must_pass(const char *directory) {
    char *text = NULL;
    mica_error error = {MICA_OK, ""};
    if (run_verify(directory, &text, &error) != MICA_OK)
        fail_msg("%s", error.message);
    mica_string_free(text);
}

static const char *vindex(void) {
    const char *directory = scratch("vindex");
    if (!mica_path_exists(directory))
        must_index(TINY, directory, &(mica_index_options){.layers = "0,4", .features = 4, .threads = 2});
    return scratch("vindex");
}

static void flip(const char *path, uint64_t position, uint8_t bit) {
    mica_file *file;
    uint8_t byte;
    assert_int_equal(mica_file_open_update(path, &file, NULL), MICA_OK);
    assert_int_equal(mica_file_read(file, position, &byte, 1, NULL), MICA_OK);
    byte ^= bit;
    assert_int_equal(mica_file_write(file, position, &byte, 1, NULL), MICA_OK);
    assert_int_equal(mica_file_close(file, NULL), MICA_OK);
}

/* Calls `visit` for each file, source/ included, with its path and its size. */
static void each_file(const char *directory, void (*visit)(const char *path, uint64_t bytes)) {
    char **names;
    uint64_t count;
    assert_int_equal(mica_directory_list(directory, &names, &count, NULL), MICA_OK);
    for (uint64_t i = 0; i < count; i++) {
        char *path = mica_path_join(directory, names[i]);
        if (mica_path_is_directory(path)) {
            each_file(path, visit);
        } else {
            uint64_t length;
            char *bytes = load(directory, names[i], &length);
            mica_free(bytes);
            visit(path, length);
        }
        mica_free(path);
        mica_free(names[i]);
    }
    mica_free(names);
}

static void flip_some(const char *path, uint64_t bytes) {
    for (uint64_t sample = 0; sample < 12; sample++) {
        const uint64_t position = sample == 0 ? 0 : sample == 1 ? bytes - 1 : (sample * 2654435761u + bytes * 40503u) % bytes;
        const uint8_t bit = (uint8_t)(1u << (sample % 8));
        flip(path, position, bit);
        must_find(vindex(), strrchr(path, '/') + 1, "");
        flip(path, position, bit);
    }
}

static void test_flipped_bits(void **state) {
    (void)state;
    must_pass(vindex());
    each_file(vindex(), flip_some);
    must_pass(vindex());
}

/* Every bit of checksums.json, which no other file vouches for. */
static void test_every_bit_of_checksums(void **state) {
    (void)state;
    mica_vindex_file *files;
    uint64_t count, length;
    char *path = mica_path_join(vindex(), MICA_VINDEX_CHECKSUMS), *bytes = load(vindex(), MICA_VINDEX_CHECKSUMS, &length);
    assert_int_equal(mica_vindex_checksums_load(vindex(), &files, &count, NULL), MICA_OK);
    mica_vindex_files_free(files, count);
    for (uint64_t i = 0; i < length; i++) {
        const uint8_t bit = (uint8_t)(1u << (i % 8));
        flip(path, i, bit);
        const mica_status status = mica_vindex_checksums_load(vindex(), &files, &count, NULL);
        if (status == MICA_OK)
            fail_msg("bit %u of byte %llu is not noticed", bit, (unsigned long long)i);
        flip(path, i, bit);
    }
    mica_free(bytes);
    mica_free(path);
}

static void test_missing_and_extra(void **state) {
    (void)state;
    static const char *const names[] = {"gate_vectors.bin", "phase1_moe_svd.json", "source/config.json"};
    for (size_t i = 0; i < 3; i++) {
        char *path = mica_path_join(vindex(), names[i]), *away = mica_path_join(scratch_directory, "away");
        assert_int_equal(mica_file_rename(path, away, NULL), MICA_OK);
        must_find(vindex(), names[i], "missing");
        assert_int_equal(mica_file_rename(away, path, NULL), MICA_OK);
        mica_free(path);
        mica_free(away);
    }
    static const char *const extra[] = {"source/notes.txt", "gate_vectors.bin.partial", "up_full_singular_values.bin"};
    for (size_t i = 0; i < 3; i++) {
        char *path = mica_path_join(vindex(), extra[i]);
        assert_int_equal(mica_file_replace(path, "x", 1, NULL), MICA_OK);
        must_find(vindex(), extra[i], "not one of this vindex");
        unlink(path);
        mica_free(path);
    }
    must_pass(vindex());
}

/* What a hub lays beside a vindex is told, not refused; a damaged file is found all the same. */
static void test_foreign_files_are_warnings(void **state) {
    (void)state;
    static const char *const foreign[] = {".gitattributes", "README.md"};
    char *paths[2], *text = NULL, *json = NULL;
    for (size_t i = 0; i < 2; i++) {
        paths[i] = mica_path_join(vindex(), foreign[i]);
        assert_int_equal(mica_file_replace(paths[i], "x", 1, NULL), MICA_OK);
    }
    mica_error error = {MICA_OK, ""};
    assert_int_equal(mica_verify(vindex(), NULL, &text, &json, &error), MICA_OK);
    json_t *report = NULL;
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    assert_true(json_is_true(json_object_get(report, "ok")));
    assert_int_equal(json_integer_value(json_object_get(report, "problem_count")), 0);
    assert_int_equal(json_integer_value(json_object_get(report, "warning_count")), 2);
    for (size_t i = 0; i < 2; i++) {
        char line[SCRATCH_PATH_BYTES + 300];
        snprintf(line, sizeof line, "warning: %s: the file is not one of this vindex\n", paths[i]);
        assert_non_null(strstr(text, line));
        const json_t *one = json_array_get(json_object_get(report, "warnings"), i);
        assert_string_equal(json_string_value(json_object_get(one, "file")), foreign[i]);
    }
    assert_non_null(strstr(text, "a whole vindex"));
    json_decref(report);
    mica_string_free(text);
    mica_string_free(json);
    char *file = mica_path_join(vindex(), "gate_vectors.bin");
    flip(file, 7, 1);
    must_find(vindex(), "gate_vectors.bin", "SHA-256");
    flip(file, 7, 1);
    mica_free(file);
    for (size_t i = 0; i < 2; i++) {
        unlink(paths[i]);
        mica_free(paths[i]);
    }
    must_pass(vindex());
}

/* One slash between directory and file, and each name once, whatever was typed. */
static void test_names_in_messages(void **state) {
    (void)state;
    char with_slash[SCRATCH_PATH_BYTES + 300];
    snprintf(with_slash, sizeof with_slash, "%s//", vindex());
    char *path = mica_path_join(vindex(), "moe_config.json"), *expected = NULL, *text = NULL;
    uint64_t length;
    char *bytes = load(vindex(), "moe_config.json", &length);
    assert_int_equal(truncate(path, 1), 0);
    mica_error error;
    assert_int_equal(run_verify(with_slash, &text, &error), MICA_CORRUPT);
    expected = mica_path_join(vindex(), "moe_config.json: ");
    assert_ptr_equal(strstr(text, expected), text);
    assert_null(strstr(text, "//"));
    assert_null(strstr(text, "moe_config.json:1")); /* jansson's place, without its name for the file */
    mica_string_free(text);
    assert_int_equal(mica_file_replace(path, bytes, length, NULL), MICA_OK);
    must_pass(with_slash);
    mica_free(expected);
    mica_free(bytes);
    mica_free(path);
    assert_int_equal(mica_verify(vindex(), &(mica_verify_options){.hashes = TINY}, NULL, NULL, &error), MICA_USAGE);
    assert_non_null(strstr(error.message, "--hashes"));
}

static void test_cut_and_lengthened(void **state) {
    (void)state;
    uint64_t length;
    char *bytes = load(vindex(), "gate_singular_values.bin", &length), *path = mica_path_join(vindex(), "gate_singular_values.bin");
    assert_int_equal(truncate(path, (off_t)length - 4), 0);
    must_find(vindex(), "gate_singular_values.bin", "expected");
    assert_int_equal(truncate(path, (off_t)length + 4), 0);
    must_find(vindex(), "gate_singular_values.bin", "expected");
    assert_int_equal(mica_file_replace(path, bytes, length, NULL), MICA_OK);
    must_pass(vindex());
    mica_free(bytes);
    mica_free(path);
}

static void test_unfinished(void **state) {
    (void)state;
    char *path = mica_path_join(vindex(), MICA_VINDEX_JOURNAL);
    assert_int_equal(mica_file_replace(path, "MICAJRN1", 8, NULL), MICA_OK);
    must_find(vindex(), MICA_VINDEX_JOURNAL, "not finished");
    unlink(path);
    mica_free(path);
}

/* Writes new checksums over whatever is there now: only the numbers can tell then. */
static void write_checksums(const char *directory) {
    mica_vindex_file *files;
    uint64_t count, length;
    assert_int_equal(mica_vindex_checksums_load(directory, &files, &count, NULL), MICA_OK);
    for (uint64_t i = 0; i < count; i++) {
        char *path = mica_path_join(directory, files[i].name);
        assert_int_equal(mica_sha256_of_file(path, files[i].sha256, &files[i].bytes, NULL), MICA_OK);
        mica_free(path);
    }
    char *text, *path = mica_path_join(directory, MICA_VINDEX_CHECKSUMS);
    assert_int_equal(mica_vindex_checksums_write(files, count, &text, &length, NULL), MICA_OK);
    assert_int_equal(mica_file_replace(path, text, length, NULL), MICA_OK);
    mica_free(text);
    mica_free(path);
    mica_vindex_files_free(files, count);
}

static void put_float(const char *directory, const char *name, uint64_t index, float value) {
    mica_file *file;
    char *path = mica_path_join(directory, name);
    assert_int_equal(mica_file_open_update(path, &file, NULL), MICA_OK);
    assert_int_equal(mica_file_write(file, index * sizeof value, &value, sizeof value, NULL), MICA_OK);
    assert_int_equal(mica_file_close(file, NULL), MICA_OK);
    mica_free(path);
}

static void test_numbers(void **state) {
    (void)state;
    static const struct {
        const char *file;
        uint64_t index;
        float value;
        const char *what;
    } rows[] = {
        {"gate_vectors.bin", 5 * 256 + 3, NAN, "row 5: a component is not finite"},
        {"gate_vectors.bin", 7 * 256, 0.9f, "row 7: the row's norm is not 1"},
        {"gate_singular_values.bin", 4, -1.0f, "row 1: a singular value is negative"},
        {"gate_singular_values.bin", 3, 1e9f, "row 0: the singular values do not fall"},
        {"gate_singular_values.bin", 8, NAN, "row 2: a singular value is negative or not a number"},
    };
    const char *directory = vindex();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint64_t length;
        char *bytes = load(directory, rows[i].file, &length), *path = mica_path_join(directory, rows[i].file);
        put_float(directory, rows[i].file, rows[i].index, rows[i].value);
        write_checksums(directory);
        must_find(directory, rows[i].file, rows[i].what);
        assert_int_equal(mica_file_replace(path, bytes, length, NULL), MICA_OK);
        write_checksums(directory);
        mica_free(bytes);
        mica_free(path);
    }
    must_pass(directory);
    char *path = mica_path_join(directory, MICA_VINDEX_INDEX);
    uint64_t length;
    char *bytes = load(directory, MICA_VINDEX_INDEX, &length), *digit = strstr(bytes, "\"shape\": [1, 24,");
    assert_non_null(digit);
    memcpy(digit, "\"shape\": [2, 24,", 16);
    assert_int_equal(mica_file_replace(path, bytes, length, NULL), MICA_OK);
    write_checksums(directory);
    must_find(directory, "gate_vectors.bin", "gives it another shape");
    memcpy(digit, "\"shape\": [1, 24,", 16);
    assert_int_equal(mica_file_replace(path, bytes, length, NULL), MICA_OK);
    write_checksums(directory);
    must_pass(directory);
    mica_free(bytes);
    mica_free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flipped_bits),       cmocka_unit_test(test_every_bit_of_checksums), cmocka_unit_test(test_missing_and_extra),
        cmocka_unit_test(test_foreign_files_are_warnings), cmocka_unit_test(test_names_in_messages),
        cmocka_unit_test(test_cut_and_lengthened), cmocka_unit_test(test_unfinished),             cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
