/* Importance matrices written by hand in both formats: values, counts, aliases, and files that are not what they must be. */
#include "base/no_memory.h"
#include "base/scratch.h"
#include "base/text.h"
#include "formats/gguf_write.h"
#include "formats/imatrix.h"

static void put_i32(mica_text *text, int32_t value) {
    mica_text_append(text, (const char *)&value, sizeof value);
}

static void put_entry(mica_text *text, const char *name, int32_t calls, const float *values, int32_t count) {
    put_i32(text, (int32_t)strlen(name));
    mica_text_puts(text, name);
    put_i32(text, calls);
    put_i32(text, count);
    mica_text_append(text, (const char *)values, (size_t)count * sizeof *values);
}

static mica_imatrix *open_or_fail(const char *path) {
    mica_imatrix *imatrix = NULL;
    mica_error error = {MICA_OK, ""};
    if (mica_imatrix_open(path, &imatrix, &error) != MICA_OK) {
        print_error("%s\n", error.message);
        fail();
    }
    return imatrix;
}

static void test_dat(void **state) {
    (void)state;
    static const float up[6] = {2, 4, 6, 8, 10, 12}, other[1] = {9};
    mica_text text = MICA_TEXT_INIT;
    put_i32(&text, 2);
    put_entry(&text, "blk.1.ffn_up_exps.weight", 2, up, 6);
    put_entry(&text, "a", 3, other, 1);
    put_i32(&text, 7); /* the tail: chunks, the data set's name */
    scratch_write("m.dat", text.bytes, text.length);
    mica_text_release(&text);
    mica_imatrix *imatrix = open_or_fail(scratch("m.dat"));
    float values[3];
    assert_int_equal(imatrix->entry_count, 2);
    const mica_imatrix_entry *entry = mica_imatrix_find(imatrix, "blk.1.ffn_gate_exps.weight"); /* has up's input */
    assert_non_null(entry);
    assert_null(mica_imatrix_find(imatrix, "blk.1.ffn_down_exps.weight"));
    assert_int_equal(mica_imatrix_read(imatrix, entry, 2, 1, 3, values, NULL), MICA_OK);
    assert_true(values[0] == 4 && values[1] == 5 && values[2] == 6);
    mica_error error;
    assert_int_equal(mica_imatrix_read(imatrix, entry, 2, 0, 4, values, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "another model"));
    mica_imatrix_close(imatrix);
}

static void write_gguf(const char *name, const float *sums, const float *counts, uint64_t count_elements, const char *type) {
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    mica_gguf_writer *writer = NULL;
    mica_gguf_tensor *tensors = mica_calloc(2, sizeof *tensors);
    mica_gguf_add_string(&metadata, "general.type", type);
    tensors[0] = (mica_gguf_tensor){.name = "x.weight.counts", .dtype = MICA_F32, .rank = 2, .shape = {count_elements, 1}};
    tensors[1] = (mica_gguf_tensor){.name = "x.weight.in_sum2", .dtype = MICA_F32, .rank = 2, .shape = {2, 2}};
    assert_int_equal(mica_gguf_layout_make(tensors, 2, &metadata, 0, &layout, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_open(scratch(name), &layout, true, &writer, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[0], 0, counts, count_elements * sizeof(float), NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[1], 0, sums, 4 * sizeof(float), NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_finish(writer, NULL), MICA_OK);
    mica_gguf_layout_release(&layout);
    mica_gguf_metadata_release(&metadata);
}

static void test_gguf(void **state) {
    (void)state;
    static const float sums[4] = {10, 20, 0, 0}, counts[2] = {5, 0}, bad[4] = {1, -1, 1, 1};
    float values[2];
    mica_error error;
    write_gguf("m.gguf", sums, counts, 2, "imatrix");
    mica_imatrix *imatrix = open_or_fail(scratch("m.gguf"));
    const mica_imatrix_entry *entry = mica_imatrix_find(imatrix, "x.weight");
    assert_non_null(entry);
    assert_int_equal(mica_imatrix_read(imatrix, entry, 2, 0, 2, values, NULL), MICA_OK);
    assert_true(values[0] == 2 && values[1] == 4);
    assert_int_equal(mica_imatrix_read(imatrix, entry, 2, 1, 2, values, NULL), MICA_OK); /* never routed to */
    assert_true(values[0] == 1 && values[1] == 1 && mica_imatrix_count(entry, 1) == 0);
    mica_imatrix_close(imatrix);
    write_gguf("negative.gguf", bad, counts, 1, "imatrix");
    imatrix = open_or_fail(scratch("negative.gguf"));
    assert_int_equal(mica_imatrix_read(imatrix, imatrix->entries, 2, 0, 2, values, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "not negative"));
    mica_imatrix_close(imatrix);
    write_gguf("model.gguf", sums, counts, 2, "model");
    assert_int_equal(mica_imatrix_open(scratch("model.gguf"), &imatrix, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "general.type"));
    write_gguf("three.gguf", sums, sums, 3, "imatrix");
    assert_int_equal(mica_imatrix_open(scratch("three.gguf"), &imatrix, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "one count for each matrix"));
}

/* Two slots of two columns for all inputs of attention, one of which is expert 7's. */
static void write_covariance(const char *name, const float values[6], const int32_t of[4], uint64_t triangle, mica_dtype of_type) {
    static const float ones[2] = {1, 1};
    mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
    mica_gguf_layout layout;
    mica_gguf_writer *writer = NULL;
    mica_gguf_tensor *tensors = mica_calloc(4, sizeof *tensors);
    mica_gguf_add_string(&metadata, "general.type", "imatrix");
    tensors[0] = (mica_gguf_tensor){.name = "x.weight.counts", .dtype = MICA_F32, .rank = 2, .shape = {1, 1}};
    tensors[1] = (mica_gguf_tensor){.name = "x.weight.in_sum2", .dtype = MICA_F32, .rank = 2, .shape = {1, 2}};
    tensors[2] = (mica_gguf_tensor){
        .name = "blk.3.ffn_gate_exps.weight.in_cov", .dtype = MICA_F32, .rank = 2, .shape = {6 / triangle, triangle}};
    tensors[3] = (mica_gguf_tensor){.name = "blk.3.ffn_gate_exps.weight.in_cov_of", .dtype = of_type, .rank = 2, .shape = {2, 2}};
    assert_int_equal(mica_gguf_layout_make(tensors, 4, &metadata, 0, &layout, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_open(scratch(name), &layout, true, &writer, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[0], 0, ones, 4, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[1], 0, ones, 8, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[2], 0, values, 24, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[3], 0, of, 16, NULL), MICA_OK);
    assert_int_equal(mica_gguf_writer_finish(writer, NULL), MICA_OK);
    mica_gguf_layout_release(&layout);
    mica_gguf_metadata_release(&metadata);
}

static void test_covariance(void **state) {
    (void)state;
    static const float values[6] = {1, 0.5f, 2, 3, -1, 4}, bad[6] = {1, 0.5f, -2, 3, -1, 4};
    static const int32_t of[4] = {-1, 90, 7, 8};
    float h[4];
    uint64_t slot = 9;
    mica_error error;
    write_covariance("c.gguf", values, of, 3, MICA_I32);
    mica_imatrix *imatrix = open_or_fail(scratch("c.gguf"));
    assert_int_equal(imatrix->covariance_count, 1);
    const mica_imatrix_covariance *covariance = imatrix->covariances;
    assert_int_equal(covariance->columns, 2);
    assert_ptr_equal(mica_imatrix_find_covariance(imatrix, "blk.3.ffn_up_exps.weight", 7, &slot), covariance);
    assert_int_equal(slot, 1);
    assert_ptr_equal(mica_imatrix_find_covariance(imatrix, "blk.3.ffn_up_shexp.weight", -1, &slot), covariance);
    assert_int_equal(slot, 0);
    assert_ptr_equal(mica_imatrix_find_covariance(imatrix, "blk.3.ffn_gate_exps.weight", 6, &slot), covariance); /* has none of its own */
    assert_int_equal(slot, 0);
    assert_null(mica_imatrix_find_covariance(imatrix, "blk.3.ffn_down_exps.weight", 7, &slot));
    assert_null(mica_imatrix_find_covariance(imatrix, "blk.30.ffn_up_exps.weight", 7, &slot));
    assert_int_equal(mica_imatrix_read_covariance(imatrix, covariance, 1, h, NULL), MICA_OK);
    assert_true(h[0] == 3 && h[1] == -1 && h[2] == -1 && h[3] == 4);
    mica_imatrix_close(imatrix);
    write_covariance("bad.gguf", bad, of, 3, MICA_I32);
    imatrix = open_or_fail(scratch("bad.gguf"));
    assert_int_equal(mica_imatrix_read_covariance(imatrix, imatrix->covariances, 0, h, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "of columns 1 and 1: expected a second moment, got -2"));
    mica_imatrix_close(imatrix);
    write_covariance("side.gguf", values, of, 2, MICA_I32); /* no triangle has 2 elements */
    assert_int_equal(mica_imatrix_open(scratch("side.gguf"), &imatrix, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "expected F32 triangles"));
    write_covariance("kind.gguf", values, of, 3, MICA_F32);
    assert_int_equal(mica_imatrix_open(scratch("kind.gguf"), &imatrix, &error), MICA_BAD_INPUT);
}

static void test_sensitivity(void **state) {
    (void)state;
    static const float ones[2] = {1, 1}, bad[2] = {0.5f, -1};
    static const struct {
        const char *file, *said;
        const float *values;
        mica_dtype dtype;
    } cases[] = {{"sound.gguf", NULL, ones, MICA_F32},
                 {"negative.gguf", "expected values that are not negative, got -1 at 1", bad, MICA_F32},
                 {"kind.gguf", "expected F32, got I32", ones, MICA_I32}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mica_gguf_metadata metadata = MICA_GGUF_METADATA_INIT;
        mica_gguf_layout layout;
        mica_gguf_writer *writer = NULL;
        mica_imatrix *imatrix = NULL;
        mica_error error = {MICA_OK, ""};
        mica_gguf_tensor *tensors = mica_calloc(3, sizeof *tensors);
        mica_gguf_add_string(&metadata, "general.type", "imatrix");
        tensors[0] = (mica_gguf_tensor){.name = "x.weight.counts", .dtype = MICA_F32, .rank = 2, .shape = {1, 1}};
        tensors[1] = (mica_gguf_tensor){.name = "x.weight.in_sum2", .dtype = MICA_F32, .rank = 2, .shape = {1, 2}};
        tensors[2] = (mica_gguf_tensor){.name = "x.weight.sensitivity", .dtype = cases[i].dtype, .rank = 2, .shape = {1, 2}};
        assert_int_equal(mica_gguf_layout_make(tensors, 3, &metadata, 0, &layout, NULL), MICA_OK);
        assert_int_equal(mica_gguf_writer_open(scratch(cases[i].file), &layout, true, &writer, NULL), MICA_OK);
        assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[0], 0, ones, 4, NULL), MICA_OK);
        assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[1], 0, ones, 8, NULL), MICA_OK);
        assert_int_equal(mica_gguf_writer_put(writer, &layout.tensors[2], 0, cases[i].values, 8, NULL), MICA_OK);
        assert_int_equal(mica_gguf_writer_finish(writer, NULL), MICA_OK);
        mica_gguf_layout_release(&layout);
        mica_gguf_metadata_release(&metadata);
        assert_int_equal(mica_imatrix_open(scratch(cases[i].file), &imatrix, &error), cases[i].said ? MICA_BAD_INPUT : MICA_OK);
        if (cases[i].said) {
            assert_non_null(strstr(error.message, cases[i].said));
            continue;
        }
        const float *values = mica_imatrix_sensitivity_of(imatrix, "x.weight", 2);
        assert_true(values && values[0] == 1 && values[1] == 1);
        assert_null(mica_imatrix_sensitivity_of(imatrix, "y.weight", 2));
        for (no_memory trial = {0}; no_memory_next(&trial);) {
            mica_imatrix *again = NULL;
            no_memory_begin(&trial);
            const mica_status status = mica_imatrix_open(scratch("sound.gguf"), &again, &error);
            mica_imatrix_close(again);
            no_memory_end(&trial, status, MICA_OK, &error);
        }
        mica_imatrix_close(imatrix);
    }
}

/* Every prefix of a .dat, and lengths that lead beyond the file. */
static void test_damage(void **state) {
    (void)state;
    static const float values[3] = {1, 2, 3};
    mica_text text = MICA_TEXT_INIT;
    mica_imatrix *imatrix = NULL;
    mica_error error;
    put_i32(&text, 1);
    put_entry(&text, "name", 1, values, 3);
    for (size_t length = 0; length < text.length; length++) {
        scratch_write("cut.dat", text.bytes, length);
        assert_int_not_equal(mica_imatrix_open(scratch("cut.dat"), &imatrix, &error), MICA_OK);
    }
    static const int32_t odd[] = {-1, 0, 1 << 30, INT32_MAX};
    static const size_t places[] = {0, 4, 16}; /* entries, length of the name, values */
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        for (size_t j = 0; j < sizeof places / sizeof *places; j++) {
            char bytes[64];
            memcpy(bytes, text.bytes, text.length);
            memcpy(bytes + places[j], &odd[i], sizeof odd[i]);
            scratch_write("odd.dat", bytes, text.length);
            assert_int_not_equal(mica_imatrix_open(scratch("odd.dat"), &imatrix, &error), MICA_OK);
        }
    mica_text_release(&text);
    assert_int_equal(mica_imatrix_open("/nonexistent", &imatrix, &error), MICA_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dat), cmocka_unit_test(test_gguf), cmocka_unit_test(test_covariance),
                                       cmocka_unit_test(test_sensitivity), cmocka_unit_test(test_damage)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
