/* tests/formats/test_vindex.c: judges formats/vindex.c: offsets by arithmetic done by hand, the state of a directory, checksums.json and
 * the identity of a tensor by SHA-256 of texts written out here. Damage to every bit: tests/operations/test_vindex_verify.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "base/memory.h"
#include "base/scratch.h"
#include "base/text.h"
#include "formats/vindex.h"

static void test_layout(void **state) {
    (void)state;
    mica_vindex_layout layout = {0};
    layout.group[MICA_VINDEX_MAIN].layers = 60; /* Kimi-K2 */
    layout.group[MICA_VINDEX_MAIN].experts = 384;
    layout.group[MICA_VINDEX_MAIN].features = 64;
    layout.group[MICA_VINDEX_MAIN].hidden = 7168;
    layout.group[MICA_VINDEX_MAIN].full[0] = 2048;
    layout.group[MICA_VINDEX_SHARED].experts = 1;
    assert_true(mica_vindex_layout_check(&layout));
    assert_int_equal(mica_vindex_file_bytes(&layout, MICA_VINDEX_MAIN, MICA_VINDEX_VECTORS), 42278584320);
    assert_int_equal(mica_vindex_item_bytes(&layout, MICA_VINDEX_MAIN, MICA_VINDEX_VECTORS), 1835008);
    assert_int_equal(mica_vindex_offset(&layout, MICA_VINDEX_MAIN, MICA_VINDEX_VECTORS, 1, 2), 704643072 + 2 * 1835008);
    assert_int_equal(mica_vindex_offset(&layout, MICA_VINDEX_MAIN, MICA_VINDEX_VALUES, 1, 2), (384 + 2) * 256);
    assert_int_equal(mica_vindex_offset(&layout, MICA_VINDEX_MAIN, MICA_VINDEX_FULL_GATE, 0, 3), 3 * 2048 * 8);
    assert_true(mica_vindex_has_file(&layout, MICA_VINDEX_MAIN, MICA_VINDEX_FULL_GATE));
    assert_false(mica_vindex_has_file(&layout, MICA_VINDEX_MAIN, MICA_VINDEX_FULL_UP));
    assert_false(mica_vindex_has_file(&layout, MICA_VINDEX_SHARED, MICA_VINDEX_VECTORS));
    layout.group[MICA_VINDEX_MAIN].layers = 0;
    assert_true(mica_vindex_has_file(&layout, MICA_VINDEX_MAIN, MICA_VINDEX_VECTORS)); /* empty, and there */
    layout.group[MICA_VINDEX_MAIN].layers = UINT64_MAX / 1000;
    assert_false(mica_vindex_layout_check(&layout));
    layout.group[MICA_VINDEX_MAIN].layers = 1;
    layout.group[MICA_VINDEX_MAIN].full[2] = UINT64_MAX / 1000;
    assert_false(mica_vindex_layout_check(&layout));
}

static mica_vindex_state state_of(const char *path) {
    mica_vindex_state found;
    assert_int_equal(mica_vindex_state_of(path, &found, NULL), MICA_OK);
    return found;
}

static void test_state(void **state) {
    (void)state;
    char directory[512];
    snprintf(directory, sizeof directory, "%s", scratch("vindex"));
    assert_int_equal(state_of(directory), MICA_VINDEX_ABSENT);
    assert_int_equal(mica_directory_create(directory, NULL), MICA_OK);
    assert_int_equal(state_of(directory), MICA_VINDEX_ABSENT);
    scratch_write("vindex/journal.mica.partial", "x", 1); /* killed in the first moment */
    assert_int_equal(state_of(directory), MICA_VINDEX_ABSENT);
    scratch_write("vindex/gate_vectors.bin", "x", 1);
    assert_int_equal(state_of(directory), MICA_VINDEX_FOREIGN);
    scratch_write("vindex/checksums.json", "{\"format\": \"another\"}", 21);
    assert_int_equal(state_of(directory), MICA_VINDEX_FOREIGN);
    scratch_write("vindex/checksums.json", "{\"format\": \"mica-vindex\"}", 25);
    assert_int_equal(state_of(directory), MICA_VINDEX_FINISHED);
    scratch_write("vindex/journal.mica", "x", 1);
    assert_int_equal(state_of(directory), MICA_VINDEX_UNFINISHED);
    assert_int_equal(state_of(scratch("vindex/journal.mica")), MICA_VINDEX_FOREIGN);
    static const char *const names[] = {"journal.mica.partial", "gate_vectors.bin", "journal.mica"};
    for (size_t i = 0; i < 3; i++) {
        char *path = mica_path_join(directory, names[i]);
        assert_int_equal(mica_file_remove(path, NULL), MICA_OK);
        mica_free(path);
    }
}

static void expect_load(const char *text, mica_status expected, const char *mention) {
    mica_vindex_file *files;
    uint64_t count;
    mica_error error = {MICA_OK, ""};
    scratch_write("vindex/checksums.json", text, strlen(text));
    const mica_status status = mica_vindex_checksums_load(scratch("vindex"), &files, &count, &error);
    if (status != expected || !strstr(error.message, mention))
        fail_msg("%s: got %d: %s", mention, status, error.message);
}

static void test_checksums(void **state) {
    (void)state;
    mica_vindex_file files[2] = {{.name = (char *)(uintptr_t)"gate_vectors.bin", .bytes = 3},
                                 {.name = (char *)(uintptr_t)"source/config.json", .bytes = UINT64_C(1) << 40}}, *loaded;
    files[1].sha256[0] = 0xab;
    char *text, digits[MICA_SHA256_HEX_BYTES];
    uint64_t length, count;
    uint8_t digest[MICA_SHA256_BYTES];
    assert_int_equal(mica_vindex_checksums_write(files, 2, &text, &length, NULL), MICA_OK);
    scratch_write("vindex/checksums.json", text, length);
    assert_int_equal(mica_vindex_checksums_load(scratch("vindex"), &loaded, &count, NULL), MICA_OK);
    assert_int_equal(count, 2);
    assert_string_equal(loaded[1].name, "source/config.json");
    assert_int_equal(loaded[1].bytes, UINT64_C(1) << 40);
    assert_memory_equal(loaded[1].sha256, files[1].sha256, sizeof files[1].sha256);
    mica_vindex_files_free(loaded, count);

    /* The digest by its definition. */
    char *self = strstr(text, "\"self\": \"");
    assert_non_null(self);
    memcpy(digits, self + 9, 64);
    digits[64] = 0;
    memset(self + 9, '0', 64);
    assert_int_equal(mica_sha256_of(text, length, digest, NULL), MICA_OK);
    char hex[MICA_SHA256_HEX_BYTES];
    mica_sha256_hex(digest, hex);
    assert_string_equal(hex, digits);
    expect_load(text, MICA_CORRUPT, "SHA-256");
    expect_load("{}", MICA_CORRUPT, "self");
    expect_load("", MICA_CORRUPT, "self");
    mica_free(text);
    files[0].name = (char *)(uintptr_t)"../outside";
    assert_int_equal(mica_vindex_checksums_write(files, 1, &text, &length, NULL), MICA_OK);
    expect_load(text, MICA_BAD_INPUT, "inside the vindex");
    mica_free(text);
    assert_int_equal(mica_file_remove(scratch("vindex/checksums.json"), NULL), MICA_OK);
}

static void test_tensor_digest(void **state) {
    (void)state;
    static const struct {
        mica_tensor tensor;
        const char *preimage; /* line and bytes */
    } rows[] = {
        {{.name = "w", .dtype = MICA_F8_E4M3, .rank = 2, .shape = {2, 3}, .bytes = 6}, "F8_E4M3 2 3\nabcdef"},
        {{.name = "s", .dtype = MICA_F32, .rank = 0, .bytes = 4}, "F32\nabcd"},
        {{.name = "e", .dtype = MICA_I64, .rank = 1, .shape = {0}, .bytes = 0}, "I64 0\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t expected[MICA_SHA256_BYTES], got[MICA_SHA256_BYTES];
        assert_int_equal(mica_sha256_of(rows[i].preimage, strlen(rows[i].preimage), expected, NULL), MICA_OK);
        assert_int_equal(mica_tensor_digest(&rows[i].tensor, strchr(rows[i].preimage, '\n') + 1, got, NULL), MICA_OK);
        assert_memory_equal(got, expected, sizeof got);
    }
}

static void test_names(void **state) {
    (void)state;
    uint64_t count = 0;
    assert_string_equal(mica_vindex_known_name(0), "checksums.json"); /* removed first */
    while (mica_vindex_known_name(count))
        count++;
    assert_int_equal(count, 7 + 15);
    assert_string_equal(mica_vindex_file_name(MICA_VINDEX_DENSE, MICA_VINDEX_FULL_DOWN), "dense_down_full_singular_values.bin");
    assert_string_equal(mica_vindex_source_name(0), "config.json");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),        cmocka_unit_test(test_state), cmocka_unit_test(test_checksums),
        cmocka_unit_test(test_tensor_digest), cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
