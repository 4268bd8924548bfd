/* tests/operations/test_index.c: judges mica_index by outside truths: the fixtures' float64 singular values and statistics, and the
 * definition of a singular vector on decoded weights; and by itself: threads, subsets of layers, fewer features. Also mica_stats. */
#include "operations/vindex_helpers.h"

#include <math.h>

#include "model/model.h"

/* ---- the fixtures' truths */

static const char *const kinds[] = {"v3-groups", "v3-groups-ue8m0", "kimi-vl", "k2-thinking", "k25", "v4-flash", "qwen3-dense",
                                    "llama-dense"};

static const json_t *must_get(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (!value)
        fail_msg("key %s is missing", key);
    return value;
}

static double *load_doubles(const char *directory, const json_t *file, uint64_t *count) {
    uint64_t length;
    double *values = (double *)(void *)load(directory, json_string_value(must_get(file, "file")), &length);
    *count = length / sizeof(double);
    return values;
}

/* The group of a layer in phase1: routed where there is one. */
static const json_t *find_group(const json_t *phase1, uint64_t layer, const char *projection) {
    char key[24];
    snprintf(key, sizeof key, "%llu", (unsigned long long)layer);
    const json_t *kinds_of_layer = must_get(must_get(phase1, "layers"), key), *routed = json_object_get(kinds_of_layer, "routed");
    return must_get(json_is_object(routed) ? routed : must_get(kinds_of_layer, "dense"), projection);
}

static void check_statistics(const char *kind, const json_t *truths, const json_t *group) {
    static const struct {
        const char *name;
        double tolerance; /* relative */
    } rows[] = {{"var8", 1e-6},      {"var64", 1e-6},          {"s0", 1e-5},           {"s1", 1e-5},         {"s0_over_s1", 2e-5},
                {"frobenius", 1e-6}, {"effective_rank", 1e-6}, {"participation_ratio", 1e-5}, {"stable_rank", 2e-5}};
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        const json_t *truth = must_get(truths, rows[r].name),
            *got = must_get(must_get(must_get(group, "statistics"), rows[r].name), "per_expert");
        const size_t experts = json_is_array(truth) ? json_array_size(truth) : 1;
        assert_int_equal(json_array_size(got), experts);
        for (size_t e = 0; e < experts; e++) {
            const double expected = json_number_value(json_is_array(truth) ? json_array_get(truth, e) : truth),
                value = json_number_value(json_array_get(got, e));
            if (!(fabs(value - expected) <= rows[r].tolerance * fabs(expected)))
                fail_msg("%s: %s of expert %zu: expected %.17g, got %.17g", kind, rows[r].name, e, expected, value);
        }
    }
}

static void check_values(const char *kind, const double *truth, const double *got, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        if (!(fabs(got[i] - truth[i]) <= 1e-5 * truth[0]))
            fail_msg("%s: singular value %llu: expected %.17g, got %.17g", kind, (unsigned long long)i, truth[i], got[i]);
}

static void check_projection(const char *kind, const char *fixture, const char *directory, const json_t *spectra, const char *truth_name,
                             const char *projection, const json_t *phase1, const json_t *index) {
    const json_t *truths = must_get(spectra, truth_name), *layers = must_get(spectra, "layers");
    char name[64];
    snprintf(name, sizeof name, "%s_full_singular_values.bin", projection);
    const json_t *shape = must_get(must_get(must_get(index, "files"), name), "shape");
    const uint64_t experts = (uint64_t)json_integer_value(json_array_get(shape, 1)),
        side = (uint64_t)json_integer_value(json_array_get(shape, 2));
    uint64_t truth_count, length;
    double *truth = load_doubles(fixture, must_get(truths, "singular_values"), &truth_count);
    double *full = (double *)(void *)load(directory, name, &length);
    assert_int_equal(truth_count, json_array_size(layers) * experts * side);
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const uint64_t layer = (uint64_t)json_integer_value(json_array_get(layers, i));
        check_statistics(kind, json_array_get(must_get(truths, "matrices"), i), find_group(phase1, layer, projection));
        uint64_t slot = 0; /* of the layer in gate_vectors.bin */
        const char *key;
        json_t *entry;
        json_object_foreach((json_t *)must_get(index, "layers"), key, entry) {
            if (strtoull(key, NULL, 10) == layer)
                break;
            slot++;
        }
        for (uint64_t e = 0; e < experts; e++)
            check_values(kind, truth + (i * experts + e) * side, full + (slot * experts + e) * side, side);
    }
    mica_free(truth);
    mica_free(full);
}

static void check_routers(const char *fixture, const json_t *spectra, const json_t *phase2) {
    const json_t *router = json_object_get(spectra, "router"), *layers = must_get(spectra, "layers");
    if (!router)
        return;
    uint64_t count;
    double *truth = load_doubles(fixture, must_get(router, "singular_values"), &count);
    const uint64_t side = count / json_array_size(layers);
    for (size_t i = 0; i < json_array_size(layers); i++) {
        char key[24];
        snprintf(key, sizeof key, "%llu", (unsigned long long)json_integer_value(json_array_get(layers, i)));
        const json_t *entry = must_get(must_get(phase2, "layers"), key), *got = must_get(entry, "singular_values");
        assert_int_equal(json_array_size(got), side);
        double total = 0, entropy = 0;
        for (uint64_t s = 0; s < side; s++) {
            const double value = json_number_value(json_array_get(got, s));
            assert_true(fabs(value - truth[i * side + s]) <= 1e-5 * truth[i * side]);
            total += truth[i * side + s];
        }
        for (uint64_t s = 0; s < side; s++)
            entropy -= truth[i * side + s] / total * log(truth[i * side + s] / total);
        assert_true(fabs(json_number_value(must_get(entry, "effective_rank")) - exp(entropy)) <= 1e-6 * exp(entropy));
    }
    mica_free(truth);
}

static void test_fixtures(void **state) {
    (void)state;
    if (!mica_path_exists(FIXTURES)) {
        print_message("skipped: the fixtures beside the repository are absent\n");
        skip();
    }
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        char fixture[SCRATCH_PATH_BYTES];
        snprintf(fixture, sizeof fixture, FIXTURES "/%s", kinds[k]);
        const char *directory = scratch(kinds[k]);
        must_index(fixture, directory, &(mica_index_options){.spectra = MICA_SPECTRA_GATE | MICA_SPECTRA_DOWN,
                                                             .full_spectrum = MICA_SPECTRA_GATE | MICA_SPECTRA_DOWN, .threads = 2});
        json_t *golden = load_json_file(fixture, "golden.json"), *phase1 = load_json_file(directory, MICA_VINDEX_PHASE1),
               *phase2 = load_json_file(directory, MICA_VINDEX_PHASE2), *index = load_json_file(directory, MICA_VINDEX_INDEX);
        const json_t *spectra = must_get(golden, "spectra");
        const bool short_names = json_object_get(spectra, "w1") != NULL;
        check_projection(kinds[k], fixture, directory, spectra, short_names ? "w1" : "gate_proj", "gate", phase1, index);
        check_projection(kinds[k], fixture, directory, spectra, short_names ? "w2" : "down_proj", "down", phase1, index);
        check_routers(fixture, spectra, phase2);
        json_decref(golden);
        json_decref(phase1);
        json_decref(phase2);
        json_decref(index);
    }
}

/* ---- vectors, by their definition */

/* |W^T (W v) - s^2 v| <= 2e-5 s0^2 and |W v| = s: right vectors, of this matrix, in this order. */
static void check_triplets(const float *weight, uint64_t rows, uint64_t columns, const float *vectors, const float *values,
                           uint64_t features) {
    double *image = calloc(rows, sizeof *image), *back = calloc(columns, sizeof *back);
    const double s0 = values[0];
    for (uint64_t f = 0; f < features; f++) {
        const float *v = vectors + f * columns;
        double square = 0, distance = 0, norm = 0;
        memset(back, 0, columns * sizeof *back);
        for (uint64_t r = 0; r < rows; r++) {
            image[r] = 0;
            for (uint64_t c = 0; c < columns; c++)
                image[r] += (double)weight[r * columns + c] * v[c];
            square += image[r] * image[r];
        }
        for (uint64_t r = 0; r < rows; r++)
            for (uint64_t c = 0; c < columns; c++)
                back[c] += weight[r * columns + c] * image[r];
        uint64_t largest = 0;
        for (uint64_t c = 0; c < columns; c++) {
            const double off = back[c] - (double)values[f] * values[f] * v[c];
            distance += off * off;
            norm += (double)v[c] * v[c];
            if (fabsf(v[c]) > fabsf(v[largest]))
                largest = c;
        }
        assert_true(fabs(sqrt(norm) - 1) <= 1e-5);
        assert_true(v[largest] > 0);
        assert_true(fabs(sqrt(square) - values[f]) <= 1e-5 * s0);
        assert_true(sqrt(distance) <= 2e-5 * s0 * s0);
        if (f > 0)
            assert_true(values[f] <= values[f - 1]);
    }
    free(image);
    free(back);
}

static void test_vectors_are_singular(void **state) {
    (void)state;
    const char *directory = scratch("vectors");
    must_index(TINY, directory, &(mica_index_options){.layers = "0,2", .threads = 2});
    mica_model *model;
    assert_int_equal(mica_model_open(TINY, &(mica_model_options){false}, &model, NULL), MICA_OK);
    uint64_t length;
    float *vectors = (float *)(void *)load(directory, "gate_vectors.bin", &length),
        *values = (float *)(void *)load(directory, "gate_singular_values.bin", &length);
    float *dense = (float *)(void *)load(directory, "dense_gate_vectors.bin", &length),
          *dense_values = (float *)(void *)load(directory, "dense_gate_singular_values.bin", &length);
    float *shared = (float *)(void *)load(directory, "shared_gate_vectors.bin", &length),
          *shared_values = (float *)(void *)load(directory, "shared_gate_singular_values.bin", &length);
    static const uint64_t experts[] = {0, 7, 23};
    float *weight;
    for (size_t i = 0; i < 3; i++) {
        const mica_weight *gate = model->layers[2].experts[experts[i] * MICA_PROJECTION_COUNT + MICA_GATE];
        assert_int_equal(mica_weight_load(model, gate, &weight, NULL), MICA_OK);
        check_triplets(weight, gate->rows, gate->columns, vectors + experts[i] * 64 * 256, values + experts[i] * 64, 64);
        mica_free(weight);
    }
    assert_int_equal(mica_weight_load(model, model->layers[0].dense[MICA_GATE], &weight, NULL), MICA_OK);
    check_triplets(weight, 768, 256, dense, dense_values, 64);
    mica_free(weight);
    assert_int_equal(mica_weight_load(model, model->layers[2].shared[MICA_GATE], &weight, NULL), MICA_OK);
    check_triplets(weight, 128, 256, shared, shared_values, 64);
    mica_free(weight);
    mica_free(vectors);
    mica_free(values);
    mica_free(dense);
    mica_free(dense_values);
    mica_free(shared);
    mica_free(shared_values);
    mica_model_close(model);
}

/* ---- the same from every way */

static void test_threads_give_the_same_bytes(void **state) {
    (void)state;
    static const char *const names[] = {"threads1", "threads2", "threads4"};
    for (uint32_t i = 0; i < 3; i++)
        must_index(TINY, scratch(names[i]), &(mica_index_options){.threads = 1u << i, .layers = "0,1,3"});
    assert_same_tree(scratch(names[0]), scratch(names[1]));
    assert_same_tree(scratch(names[0]), scratch(names[2]));
}

/* Layer 3 alone, with 8 features, is layer 3 of the whole. */
static void test_subset_and_features(void **state) {
    (void)state;
    const char *whole = scratch("threads1"), *part = scratch("part");
    must_index(TINY, part, &(mica_index_options){.layers = "3", .features = 8, .threads = 2});
    json_t *index = load_json_file(part, MICA_VINDEX_INDEX), *index_whole = load_json_file(whole, MICA_VINDEX_INDEX);
    assert_int_equal(json_integer_value(json_object_get(index, "num_feats")), 8);
    assert_int_equal(json_integer_value(json_object_get(index_whole, "num_feats")), 64);
    assert_int_equal(json_object_size(json_object_get(index, "layers")), 1);
    assert_int_equal(json_object_size(json_object_get(index_whole, "layers")), 2);
    const json_t *layer = must_get(must_get(index, "layers"), "3"), *layer_whole = must_get(must_get(index_whole, "layers"), "3");
    assert_int_equal(json_integer_value(must_get(layer, "file_offset")), 0);
    assert_int_equal(json_integer_value(must_get(layer_whole, "file_offset")), 24 * 64 * 256 * 4);
    assert_true(json_equal(must_get(layer, "median_var64"), must_get(layer_whole, "median_var64"))); /* 64 values, whatever the features */
    uint64_t length, length_whole;
    char *vectors = load(part, "gate_vectors.bin", &length), *vectors_whole = load(whole, "gate_vectors.bin", &length_whole);
    assert_int_equal(length, 24 * 8 * 256 * 4);
    assert_int_equal(length_whole, 2 * 24 * 64 * 256 * 4);
    for (uint64_t e = 0; e < 24; e++)
        assert_memory_equal(vectors + e * 8 * 1024, vectors_whole + (24 + e) * 64 * 1024, 8 * 1024);
    mica_free(vectors);
    mica_free(vectors_whole);
    json_decref(index);
    json_decref(index_whole);
}

/* ---- odd matrices */

static void test_beyond_float32(void **state) {
    (void)state;
    if (!mica_path_exists(FIXTURES)) {
        print_message("skipped: the fixtures beside the repository are absent\n");
        skip();
    }
    const char *directory = scratch("beyond");
    char *text = NULL, *json = NULL;
    mica_error error;
    assert_int_equal(mica_index(FIXTURES "/v4-flash", directory, &(mica_index_options){.layers = "0", .threads = 1}, &text, &json, &error),
                     MICA_OK);
    assert_non_null(strstr(text, "layers.0.ffn.experts.0.w1.weight"));
    assert_non_null(strstr(text, "beyond float32"));
    mica_string_free(text);
    mica_string_free(json);
    uint64_t length;
    float *values = (float *)(void *)load(directory, "gate_singular_values.bin", &length);
    assert_true(isinf(values[0]) && values[0] > 0);
    assert_true(isfinite(values[1]));
    json_t *phase1 = load_json_file(directory, MICA_VINDEX_PHASE1);
    const json_t *group = find_group(phase1, 0, "gate"), *beyond = json_array_get(must_get(group, "beyond_float32"), 0);
    assert_int_equal(json_integer_value(must_get(beyond, "expert")), 0);
    const double s0 = json_number_value(json_array_get(must_get(beyond, "values"), 0));
    assert_true(s0 > 3.5e38 && s0 < 1e39);
    assert_true(s0 == json_number_value(json_array_get(must_get(must_get(must_get(group, "statistics"), "s0"), "per_expert"), 0)));
    json_decref(phase1);
    mica_free(values);
}

static void test_bad_values(void **state) {
    (void)state;
    if (!mica_path_exists(FIXTURES "/bad")) {
        print_message("skipped: the fixtures beside the repository are absent\n");
        skip();
    }
    mica_error error;
    const mica_index_options all = {.spectra = MICA_SPECTRA_GATE | MICA_SPECTRA_UP | MICA_SPECTRA_DOWN, .threads = 2};
    assert_int_equal(run_index(FIXTURES "/bad/weight-nan-code", scratch("nan"), &all, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "model.layers.1.mlp.experts.2.gate_proj.weight"));
    assert_int_equal(run_index(FIXTURES "/bad/weight-nan-code", scratch("nan"), &all, &error), MICA_CONFLICT);
    char *text = NULL, *json = NULL;
    assert_int_equal(mica_index(FIXTURES "/bad/scale-zero", scratch("zero"), &all, &text, &json, &error), MICA_OK);
    assert_non_null(strstr(text, "model.layers.1.mlp.experts.2.down_proj.weight_scale_inv"));
    assert_non_null(strstr(json, "model.layers.1.mlp.experts.2.down_proj.weight_scale_inv"));
    mica_string_free(text);
    mica_string_free(json);
}

/* Overwrites a tensor of a copied checkpoint, period by period. */
static void fill_tensor(const char *directory, const char *shard, const char *name, const void *pattern, uint64_t period) {
    uint64_t length, header;
    char *bytes = load(directory, shard, &length), *path = mica_path_join(directory, shard);
    memcpy(&header, bytes, sizeof header);
    json_t *tensors = NULL;
    assert_int_equal(mica_json_parse(shard, bytes + 8, header, &tensors, NULL), MICA_OK);
    const json_t *offsets = must_get(must_get(tensors, name), "data_offsets");
    const uint64_t end = (uint64_t)json_integer_value(json_array_get(offsets, 1));
    for (uint64_t at = (uint64_t)json_integer_value(json_array_get(offsets, 0)); at < end; at += period)
        memcpy(bytes + 8 + header + at, pattern, period);
    assert_int_equal(mica_file_replace(path, bytes, length, NULL), MICA_OK);
    json_decref(tensors);
    mica_free(bytes);
    mica_free(path);
}

/* Of a constant matrix s1 is rounding: no ratio to it, and a table that keeps its columns. */
static void test_constant_matrix(void **state) {
    (void)state;
    const char *copy = scratch("constant-model"), *directory = scratch("constant");
    const float one = 1;
    copy_directory(TINY, copy);
    fill_tensor(copy, "model-00001-of-00003.safetensors", "model.layers.0.mlp.gate_proj.weight", "\x38", 1);
    fill_tensor(copy, "model-00001-of-00003.safetensors", "model.layers.0.mlp.gate_proj.weight_scale_inv", &one, sizeof one);
    must_index(copy, directory, &(mica_index_options){.layers = "0", .threads = 1});
    json_t *phase1 = load_json_file(directory, MICA_VINDEX_PHASE1);
    const json_t *group = must_get(must_get(must_get(must_get(phase1, "layers"), "0"), "dense"), "gate");
    const json_t *all = must_get(group, "statistics");
    assert_true(json_is_null(json_array_get(must_get(must_get(all, "s0_over_s1"), "per_expert"), 0)));
    assert_int_equal(json_integer_value(json_array_get(must_get(must_get(all, "rank"), "per_expert"), 0)), 1);
    const json_t *reason = json_array_get(must_get(group, "reasons"), 0);
    assert_string_equal(json_string_value(must_get(reason, "statistic")), "s0_over_s1");
    assert_string_equal(json_string_value(must_get(reason, "reason")), "the numerical rank is 1");
    const double s0 = json_number_value(json_array_get(must_get(must_get(all, "s0"), "per_expert"), 0));
    assert_true(fabs(s0 - sqrt(256.0 * 768)) < 1e-9 * s0);
    json_decref(phase1);
    char *text;
    assert_int_equal(mica_stats(directory, MICA_STATS_TEXT, &text, NULL), MICA_OK);
    const char *second = strchr(text, '\n') + 1;
    assert_int_equal(strlen(second), second - text); /* as wide as the head */
    mica_string_free(text);
}

/* Positive in float64, 0 in the .bin: 2^-9 * 2^-149 in every 16th place. */
static void test_below_float32(void **state) {
    (void)state;
    const char *copy = scratch("below-model"), *directory = scratch("below");
    const float tiny = 0x1p-149f;
    copy_directory(TINY, copy);
    fill_tensor(copy, "model-00001-of-00003.safetensors", "model.layers.0.mlp.gate_proj.weight", "\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    fill_tensor(copy, "model-00001-of-00003.safetensors", "model.layers.0.mlp.gate_proj.weight_scale_inv", &tiny, sizeof tiny);
    char *text = NULL, *json = NULL;
    mica_error error = {MICA_OK, ""};
    if (mica_index(copy, directory, &(mica_index_options){.layers = "0", .threads = 1}, &text, &json, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_non_null(strstr(text, "  units     1 matrix in 1 layer\n"));
    assert_non_null(strstr(text, "  routes    0 krylov, 1 dense, 0 zero\n"));
    assert_non_null(strstr(text, "model.layers.0.mlp.gate_proj.weight: 1 of its singular values is positive but below float32"));
    mica_string_free(text);
    mica_string_free(json);
    uint64_t length;
    float *values = (float *)(void *)load(directory, "dense_gate_singular_values.bin", &length);
    assert_true(values[0] == 0);
    json_t *phase1 = load_json_file(directory, MICA_VINDEX_PHASE1);
    const json_t *group = must_get(must_get(must_get(must_get(phase1, "layers"), "0"), "dense"), "gate");
    assert_int_equal(json_array_size(must_get(group, "beyond_float32")), 0);
    const json_t *below = must_get(json_array_get(must_get(group, "below_float32"), 0), "values");
    const double s0 = json_number_value(json_array_get(below, 0)), truth = 0x1p-158 * sqrt(256.0 * 768 / 16);
    assert_int_equal(json_array_size(below), 1);
    assert_true(fabs(s0 - truth) < 1e-9 * truth);
    json_decref(phase1);
    mica_free(values);
}

/* ---- refusals */

static void test_refusals(void **state) {
    (void)state;
    mica_error error;
    const char *directory = scratch("refused");
    static const char *const wrong[] = {"7", "1-", "x", "3-1", "0,,1", "0 1", "99999999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(run_index(TINY, directory, &(mica_index_options){.layers = wrong[i]}, &error), MICA_USAGE);
        assert_non_null(strstr(error.message, wrong[i]));
    }
    assert_int_equal(run_index(TINY, directory, &(mica_index_options){.memory_bytes = 1 << 20}, &error), MICA_USAGE);
    assert_int_equal(run_index(TINY, directory, &(mica_index_options){.resume = true, .force = true}, &error), MICA_USAGE);
    assert_false(mica_path_exists(directory));
    must_index(TINY, scratch("unwritten"), &(mica_index_options){.dry_run = true});
    assert_false(mica_path_exists(scratch("unwritten")));

    /* Something that is no vindex is never touched. */
    assert_int_equal(mica_directory_create(directory, NULL), MICA_OK);
    char *file = mica_path_join(directory, "gate_vectors.bin");
    assert_int_equal(mica_file_replace(file, "mine", 4, NULL), MICA_OK);
    assert_int_equal(run_index(TINY, directory, &(mica_index_options){.force = true}, &error), MICA_CONFLICT);
    assert_int_equal(run_index(TINY, file, &(mica_index_options){.force = true}, &error), MICA_CONFLICT);
    uint64_t length;
    char *bytes = load(directory, "gate_vectors.bin", &length);
    assert_int_equal(length, 4);
    mica_free(bytes);
    mica_free(file);
}

/* --force replaces what a vindex has, and leaves what it has not. */
static void test_force(void **state) {
    (void)state;
    const char *directory = scratch("forced");
    mica_error error;
    must_index(TINY, directory, &(mica_index_options){.layers = "0,1", .threads = 2});
    assert_int_equal(run_index(TINY, directory, &(mica_index_options){.layers = "1"}, &error), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "--force"));
    char *foreign = mica_path_join(directory, "notes.txt");
    assert_int_equal(mica_file_replace(foreign, "mine", 4, NULL), MICA_OK);
    must_index(TINY, directory, &(mica_index_options){.layers = "1", .force = true, .threads = 2});
    assert_true(mica_path_exists(foreign));
    unlink(foreign);
    mica_free(foreign);
    must_index(TINY, scratch("fresh"), &(mica_index_options){.layers = "1", .threads = 2});
    assert_same_tree(directory, scratch("fresh"));
}

static void test_stats(void **state) {
    (void)state;
    const char *directory = scratch("threads1");
    char *text, *json, *csv;
    assert_int_equal(mica_stats(directory, MICA_STATS_TEXT, &text, NULL), MICA_OK);
    assert_int_equal(mica_stats(directory, MICA_STATS_JSON, &json, NULL), MICA_OK);
    assert_int_equal(mica_stats(directory, MICA_STATS_CSV, &csv, NULL), MICA_OK);
    json_t *rows = NULL;
    assert_int_equal(mica_json_parse("stats", json, strlen(json), &rows, NULL), MICA_OK);
    assert_int_equal(json_array_size(json_object_get(rows, "rows")), 5); /* dense 0; routed and shared of 1 and 3 */
    uint64_t lines = 0;
    for (const char *at = csv; *at; at++)
        lines += *at == '\n';
    assert_int_equal(lines, 1 + 1 + 2 * (24 + 1));
    assert_non_null(strstr(text, "routed"));
    json_decref(rows);
    mica_string_free(text);
    mica_string_free(json);
    mica_string_free(csv);
    mica_error error;
    assert_int_equal(mica_stats(TINY, MICA_STATS_TEXT, &text, &error), MICA_BAD_INPUT);
    assert_int_not_equal(mica_stats(scratch("absent"), MICA_STATS_TEXT, &text, &error), MICA_OK);
    assert_non_null(strstr(error.message, "No such file"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixtures),       cmocka_unit_test(test_vectors_are_singular),
            cmocka_unit_test(test_threads_give_the_same_bytes),
        cmocka_unit_test(test_subset_and_features), cmocka_unit_test(test_beyond_float32),  cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_below_float32),       cmocka_unit_test(test_constant_matrix),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_force),                cmocka_unit_test(test_stats),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
