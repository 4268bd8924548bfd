/* mica_imatrix_collect on tiny-k2: every token reaches top_k experts of each layer, tensors with one input have one sum, the file drives an
 * export, and what it refuses. Its numbers are compared with llama-imatrix's by hand (docs/export.md). */
#include "export_helpers.h"

#include <mica/imatrix.h>

#include "formats/imatrix.h"
#include "validate.h"

enum { TOKENS = 96, WINDOW = 32, EXPERTS = 24, TOP_K = 4, HIDDEN = 256 };

static const char *make_ids(void) {
    static char ids[TOKENS * 6];
    size_t length = 0;
    for (uint32_t i = 0; i < TOKENS; i++)
        length += (size_t)snprintf(ids + length, sizeof ids - length, "%s%u", i ? "," : "", (i * 131 + 7) % 3800);
    return ids;
}

static void collect(const char *path, char **json) {
    mica_error error = {MICA_OK, ""};
    const mica_compute_options options = {.context = WINDOW, .threads = 2};
    const mica_prompt prompt = {.ids = make_ids()};
    const mica_imatrix_options own = {.dataset = "ids", .force = true};
    if (mica_imatrix_collect(TINY, path, &options, &own, &prompt, NULL, json, &error) != MICA_OK) {
        print_error("%s\n", error.message);
        fail();
    }
}

static void test_counts_and_sums(void **state) {
    (void)state;
    char *json = NULL;
    mica_imatrix *imatrix = NULL;
    collect(scratch("m.gguf"), &json);
    if (validator_exists())
        assert_true(validates("imatrix.schema.json", json));
    mica_string_free(json);
    assert_int_equal(mica_imatrix_open(scratch("m.gguf"), &imatrix, NULL), MICA_OK);
    for (uint32_t layer = 1; layer < 5; layer++) {
        static const char *const names[] = {"gate", "up", "down"};
        for (int p = 0; p < 3; p++) {
            char name[64];
            float sum = 0;
            snprintf(name, sizeof name, "blk.%u.ffn_%s_exps.weight", layer, names[p]);
            const mica_imatrix_entry *entry = mica_imatrix_find(imatrix, name);
            assert_non_null(entry);
            assert_string_equal(entry->name, name);
            for (uint64_t e = 0; e < EXPERTS; e++)
                sum += mica_imatrix_count(entry, e);
            assert_true(sum == TOKENS * TOP_K);
        }
    }
    float query[HIDDEN], key[HIDDEN];
    assert_int_equal(mica_imatrix_read(imatrix, mica_imatrix_find(imatrix, "blk.2.attn_q_a.weight"), 1, 0, HIDDEN, query, NULL), MICA_OK);
    assert_int_equal(mica_imatrix_read(imatrix, mica_imatrix_find(imatrix, "blk.2.attn_kv_a_mqa.weight"), 1, 0, HIDDEN, key, NULL),
                     MICA_OK);
    assert_memory_equal(query, key, sizeof query);
    assert_null(mica_imatrix_find(imatrix, "output.weight"));
    mica_imatrix_close(imatrix);
}

static void test_it_drives_an_export(void **state) {
    (void)state;
    collect(scratch("drive.gguf"), NULL);
    export_to(TINY, scratch("plain.gguf"), &(mica_export_gguf_options){.type = "q2_k"});
    export_to(TINY, scratch("weighted.gguf"), &(mica_export_gguf_options){.type = "q2_k", .imatrix = scratch("drive.gguf")});
    assert_false(same_bytes(scratch("plain.gguf"), scratch("weighted.gguf")));
}

static void test_refusals(void **state) {
    (void)state;
    mica_error error;
    const mica_prompt prompt = {.ids = "1,2,3"};
    const mica_compute_options options = {.context = WINDOW};
    const mica_imatrix_options own = {.dataset = "ids"};
    assert_int_equal(mica_imatrix_collect(TINY, scratch("x.gguf"), &options, &own, &prompt, NULL, NULL, &error), MICA_USAGE);
    assert_non_null(strstr(error.message, "at least one window of 32 tokens, got 3"));
    assert_false(mica_path_exists(scratch("x.gguf")));
    scratch_write("there.gguf", "x", 1);
    assert_int_equal(mica_imatrix_collect(TINY, scratch("there.gguf"), &options, &own, &prompt, NULL, NULL, &error), MICA_CONFLICT);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_counts_and_sums), cmocka_unit_test(test_it_drives_an_export),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
