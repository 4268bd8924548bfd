/* Slabs and strips: cut and put together again, a weight is what mica_weight_load decodes at once. */
#include "operations/slab.h"

#include "operations/vindex_helpers.h"

static mica_error error;

/* Decodes by slabs and strips, reading only what a slab says it needs. */
static void check_weight(const mica_model *model, const mica_weight *weight, const mica_slabs *slabs) {
    float *whole = NULL, *strip_values = mica_malloc(MICA_STRIP_ELEMENTS * sizeof *strip_values);
    assert_int_equal(mica_weight_load(model, weight, &whole, &error), MICA_OK);
    uint64_t elements = 0;
    for (uint64_t i = 0; i < slabs->count; i++) {
        const mica_slab slab = mica_slab_at(slabs, i);
        mica_stream_range ranges[MICA_SLAB_RANGES];
        uint8_t *data[MICA_SLAB_RANGES] = {NULL};
        const uint32_t count = mica_slab_ranges(model->source, weight, &slab, ranges);
        for (uint32_t j = 0; j < count; j++) {
            data[j] = mica_malloc(ranges[j].bytes + 1);
            assert_int_equal(mica_file_read(ranges[j].file, ranges[j].offset, data[j], ranges[j].bytes, &error), MICA_OK);
        }
        mica_matrix matrix;
        assert_int_equal(mica_slab_matrix(model, weight, &slab, (const uint8_t *const *)data, &matrix, &error), MICA_OK);
        for (mica_slab strip = {0}; mica_strip_next(&matrix, &strip);) {
            assert_true(strip.rows * strip.columns <= MICA_STRIP_ELEMENTS);
            mica_strip_decode(&matrix, &strip, strip_values);
            for (uint64_t row = 0; row < strip.rows; row++)
                assert_memory_equal(strip_values + row * strip.columns,
                                    whole + (slab.row + strip.row + row) * weight->columns + slab.column + strip.column,
                                    strip.columns * sizeof *whole);
            elements += strip.rows * strip.columns;
        }
        for (uint32_t j = 0; j < count; j++)
            mica_free(data[j]);
    }
    assert_int_equal(elements, weight->rows * weight->columns);
    mica_free(whole);
    mica_free(strip_values);
}

static void check_model(const char *path) {
    mica_model *model = NULL;
    if (mica_model_open(path, NULL, &model, &error) != MICA_OK)
        fail_msg("%s", error.message);
    for (uint64_t i = 0; i < model->weight_count; i++) {
        const mica_weight *weight = &model->weights[i];
        mica_slabs slabs;
        mica_slabs_plan(weight, NULL, &slabs);
        check_weight(model, weight, &slabs);
        if (weight->rows > 1) { /* one block of rows at a time */
            slabs.step_rows = weight->block_rows ? weight->block_rows : 1;
            slabs.count = (weight->rows + slabs.step_rows - 1) / slabs.step_rows;
            check_weight(model, weight, &slabs);
        }
        if (weight->encoding == MICA_ENCODING_PLAIN && weight->columns > 1) { /* pieces of rows */
            slabs = (mica_slabs){weight->rows, weight->columns, 1, weight->columns - 1, 2, 2 * weight->rows};
            check_weight(model, weight, &slabs);
        }
    }
    mica_model_close(model);
}

static void test_every_encoding(void **state) {
    (void)state;
    static const char *const kinds[] = {"v3-groups", "k2-thinking", "v4-flash", "kimi-vl"};
    check_model(TINY);
    for (size_t i = 0; mica_path_exists(FIXTURES) && i < sizeof kinds / sizeof *kinds; i++) {
        char path[SCRATCH_PATH_BYTES];
        snprintf(path, sizeof path, "%s/%s", FIXTURES, kinds[i]);
        check_model(path);
    }
}

static void check_plan(uint64_t rows, uint64_t columns, mica_encoding encoding, uint64_t block_rows, uint64_t other_rows) {
    const mica_weight weight = {.rows = rows, .columns = columns, .encoding = encoding, .block_rows = block_rows},
                      other = {.rows = rows, .columns = columns, .encoding = MICA_ENCODING_FP8_BLOCK, .block_rows = other_rows};
    mica_slabs slabs;
    uint64_t elements = 0;
    mica_slabs_plan(&weight, other_rows ? &other : NULL, &slabs);
    for (uint64_t i = 0; i < slabs.count; i++) {
        const mica_slab slab = mica_slab_at(&slabs, i);
        assert_true(slab.rows > 0 && slab.columns > 0 && slab.row + slab.rows <= rows && slab.column + slab.columns <= columns);
        assert_true(block_rows == 0 || slab.row % block_rows == 0);
        assert_true(other_rows == 0 || slab.row % other_rows == 0);
        elements += slab.rows * slab.columns;
        if (encoding == MICA_ENCODING_PLAIN && !other_rows)
            assert_true(slab.rows * slab.columns <= MICA_SLAB_ELEMENTS);
    }
    assert_int_equal(elements, rows * columns);
}

static void test_plans(void **state) {
    (void)state;
    check_plan(0, 7, MICA_ENCODING_PLAIN, 0, 0);
    check_plan(7, 0, MICA_ENCODING_PLAIN, 0, 0);
    check_plan(1, 3 * MICA_SLAB_ELEMENTS + 5, MICA_ENCODING_PLAIN, 0, 0);
    check_plan(3, 2 * MICA_SLAB_ELEMENTS, MICA_ENCODING_PLAIN, 0, 0);
    check_plan(163840, 7168, MICA_ENCODING_PLAIN, 0, 0);
    check_plan(18432, 7168, MICA_ENCODING_FP8_BLOCK, 128, 0);
    check_plan(300, 1 << 20, MICA_ENCODING_FP8_BLOCK, 128, 0);
    check_plan(7168, 2048, MICA_ENCODING_PLAIN, 0, 128);
    check_plan(1000, 7168, MICA_ENCODING_FP8_BLOCK, 96, 128); /* 384 rows are whole blocks of both */
    check_plan(100, 7168, MICA_ENCODING_FP8_BLOCK, 96, 64);   /* no common multiple below its rows: all at once */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_encoding), cmocka_unit_test(test_plans)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
