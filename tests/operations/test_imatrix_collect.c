/* mica_imatrix_collect on tiny-k2: its sums and counts against the reference forward pass, tensors with one input have one sum, the file drives
 * an export, and what it refuses. Its numbers are compared with llama-imatrix's by hand (docs/export.md). */
#include "export_helpers.h"

#include <mica/imatrix.h>

#include "formats/imatrix.h"
#include "reference/forward.h"
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

/* ---- against the reference: the input of a layer's attention, its latents, the input of each expert's gate and of each expert's down */

enum { SHORT = 12, WINDOWS = 3, LAYERS = 5, WIDTH_MAX = 256 };

typedef struct sums {
    double squares[WIDTH_MAX];
    uint64_t count;
} sums;

static struct {
    sums attention[LAYERS], latent[LAYERS], gate[LAYERS][EXPERTS], down[LAYERS][EXPERTS];
} expected;

static void add_squares(sums *to, const double *x, uint64_t width) {
    for (uint64_t i = 0; i < width; i++)
        to->squares[i] += x[i] * x[i];
    to->count++;
}

static void add_expert(const mica_model *model, uint64_t layer, int32_t expert, const double *normed) {
    const mica_weight *const *weights = &model->layers[layer].experts[expert * MICA_PROJECTION_COUNT];
    const uint64_t width = weights[MICA_GATE]->rows;
    double gate[WIDTH_MAX], up[WIDTH_MAX];
    float *gates = reference_weight(model, weights[MICA_GATE]), *ups = reference_weight(model, weights[MICA_UP]);
    assert_true(width <= WIDTH_MAX);
    add_squares(&expected.gate[layer][expert], normed, HIDDEN);
    reference_product(gates, NULL, width, HIDDEN, normed, gate);
    reference_product(ups, NULL, width, HIDDEN, normed, up);
    for (uint64_t i = 0; i < width; i++)
        gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    add_squares(&expected.down[layer][expert], gate, width);
    mica_free(gates);
    mica_free(ups);
}

/* `normed`: the input of attention. */
static void add_latent(const mica_model *model, uint64_t layer, const double *normed) {
    const mica_weight *weight = model->layers[layer].parts[MICA_PART_KV_A];
    const uint64_t rank = model->config.kv_lora_rank;
    float *matrix = reference_weight(model, weight), *norm = reference_weight(model, model->layers[layer].parts[MICA_PART_KV_A_NORM]);
    double *latent = reference_zeros(weight->rows);
    reference_product(matrix, NULL, weight->rows, HIDDEN, normed, latent);
    reference_norm(norm, rank, model->config.latent_norm_eps, latent, latent);
    add_squares(&expected.latent[layer], latent, rank);
    mica_free(matrix);
    mica_free(norm);
    free(latent);
}

static void add_window(const mica_model *model, const int64_t *ids) {
    reference_result result;
    double *x = reference_zeros(SHORT * HIDDEN), normed[HIDDEN];
    reference_forward(model, ids, SHORT, &result);
    for (uint64_t l = 0, moe = 0; l < LAYERS; moe += model->layers[l++].moe) {
        const mica_layer *layer = &model->layers[l];
        float *before = reference_weight(model, layer->parts[MICA_PART_INPUT_NORM]), *after = reference_weight(model, layer->parts[MICA_PART_POST_NORM]);
        memcpy(x, result.hidden + l * SHORT * HIDDEN, SHORT * HIDDEN * sizeof *x);
        for (uint64_t t = 0; t < SHORT; t++) {
            reference_norm(before, HIDDEN, model->config.rms_norm_eps, x + t * HIDDEN, normed);
            add_squares(&expected.attention[l], normed, HIDDEN);
            add_latent(model, l, normed);
        }
        reference_attention(model, layer, SHORT, x);
        for (uint64_t t = 0; t < SHORT && layer->moe; t++) {
            reference_norm(after, HIDDEN, model->config.rms_norm_eps, x + t * HIDDEN, normed);
            for (int k = 0; k < TOP_K; k++)
                add_expert(model, l, result.router_ids[(moe * SHORT + t) * TOP_K + (uint64_t)k], normed);
        }
        mica_free(before);
        mica_free(after);
    }
    free(x);
    reference_release(&result);
}

/* A matrix's mean squares and its count; 1 everywhere where it had no input. A column's deviation is no more than float32's of whole inputs. */
static void assert_sums(const mica_imatrix *imatrix, const char *name, uint64_t matrices, uint64_t matrix, uint64_t width, const sums *of) {
    const mica_imatrix_entry *entry = mica_imatrix_find(imatrix, name);
    float values[WIDTH_MAX];
    assert_non_null(entry);
    assert_true(mica_imatrix_count(entry, matrix) == (float)of->count);
    assert_int_equal(mica_imatrix_read(imatrix, entry, matrices, matrix, width, values, NULL), MICA_OK);
    double whole = of->count ? 0 : 1;
    for (uint64_t i = 0; i < width && of->count; i++)
        whole += of->squares[i] / (double)(of->count * width);
    for (uint64_t i = 0; i < width; i++) {
        const double mean = of->count ? of->squares[i] / (double)of->count : 1;
        if (!(fabs(sqrt((double)values[i]) - sqrt(mean)) <= 1e-5 * sqrt(whole)))
            fail_msg("%s: matrix %llu: column %llu: expected %.9g, got %.9g", name, (unsigned long long)matrix, (unsigned long long)i, mean,
                     (double)values[i]);
    }
}

static void test_against_reference(void **state) {
    (void)state;
    char text[SHORT * WINDOWS * 6 + 16], name[64];
    size_t length = 0;
    mica_error error = {MICA_OK, ""};
    mica_imatrix *imatrix = NULL;
    mica_model *model = NULL;
    assert_int_equal(mica_model_open(TINY, NULL, &model, NULL), MICA_OK);
    for (int64_t window = 0; window < WINDOWS; window++) {
        int64_t ids[SHORT] = {model->config.bos_token_id};
        for (int64_t i = 1; i < SHORT; i++) {
            ids[i] = (window * SHORT + i) * 131 % 3800;
            length += (size_t)snprintf(text + length, sizeof text - length, "%lld,", (long long)ids[i]);
        }
        add_window(model, ids);
    }
    snprintf(text + length, sizeof text - length, "1,2,3"); /* no window: left out */
    if (mica_imatrix_collect(TINY, scratch("exact.gguf"), &(mica_compute_options){.context = SHORT, .exact = true}, &(mica_imatrix_options){0},
                             &(mica_prompt){.ids = text, .bos = true}, NULL, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(mica_imatrix_open(scratch("exact.gguf"), &imatrix, NULL), MICA_OK);
    for (uint64_t l = 0; l < LAYERS; l++) {
        snprintf(name, sizeof name, "blk.%llu.attn_q_a.weight", (unsigned long long)l);
        assert_sums(imatrix, name, 1, 0, HIDDEN, &expected.attention[l]);
        snprintf(name, sizeof name, "blk.%llu.attn_v_b.weight", (unsigned long long)l);
        for (uint64_t head = 0; head < model->config.num_attention_heads; head++)
            assert_sums(imatrix, name, model->config.num_attention_heads, head, model->config.kv_lora_rank, &expected.latent[l]);
        const mica_layer *layer = &model->layers[l];
        for (uint64_t e = 0; layer->moe && e < EXPERTS; e++) {
            snprintf(name, sizeof name, "blk.%llu.ffn_gate_exps.weight", (unsigned long long)l);
            assert_sums(imatrix, name, EXPERTS, e, HIDDEN, &expected.gate[l][e]);
            snprintf(name, sizeof name, "blk.%llu.ffn_down_exps.weight", (unsigned long long)l);
            assert_sums(imatrix, name, EXPERTS, e, layer->experts[MICA_DOWN]->columns, &expected.down[l][e]);
        }
    }
    mica_imatrix_close(imatrix);
    mica_model_close(model);
}

static void test_metadata(void **state) {
    (void)state;
    mica_file *file = NULL;
    mica_gguf gguf;
    uint32_t count = 0, size = 0;
    assert_int_equal(mica_file_open(scratch("exact.gguf"), false, &file, NULL), MICA_OK);
    assert_int_equal(mica_gguf_read(file, "exact.gguf", &gguf, NULL), MICA_OK);
    assert_int_equal(mica_gguf_u32(&gguf, "imatrix.chunk_count", &count, NULL), MICA_OK);
    assert_int_equal(mica_gguf_u32(&gguf, "imatrix.chunk_size", &size, NULL), MICA_OK);
    assert_true(count == WINDOWS && size == SHORT);
    mica_gguf_release(&gguf);
    assert_int_equal(mica_file_close(file, NULL), MICA_OK);
}

static bool stop(void *context, const mica_progress *progress) {
    (void)context;
    return progress->units_done < 2;
}

/* Which experts were never chosen: also in layers that a run before has computed, and of a file that was finished before. */
static void test_resumed_report(void **state) {
    (void)state;
    static const char *const outcomes[] = {"written", "resumed", "already finished"};
    static const char *const keys[] = {"experts", "experts_never_chosen", "layers", "windows", "window_tokens"};
    mica_error error = {MICA_OK, ""};
    const mica_prompt prompt = {.ids = "1,2,3,4,5,6,7,8"};
    json_t *reports[3];
    for (int i = 0; i < 3; i++) {
        const char *path = scratch(i == 0 ? "whole.gguf" : "resumed.gguf");
        mica_compute_options options = {.context = 8, .progress = i == 1 ? stop : NULL};
        char *json = NULL;
        if (i == 1)
            assert_int_equal(mica_imatrix_collect(TINY, path, &options, &(mica_imatrix_options){0}, &prompt, NULL, NULL, &error), MICA_INTERRUPTED);
        options.progress = NULL;
        if (mica_imatrix_collect(TINY, path, &options, &(mica_imatrix_options){.resume = i > 0}, &prompt, NULL, &json, &error) != MICA_OK)
            fail_msg("%s", error.message);
        assert_int_equal(mica_json_parse("report", json, strlen(json), &reports[i], NULL), MICA_OK);
        assert_string_equal(json_string_value(json_object_get(reports[i], "outcome")), outcomes[i]);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            assert_true(json_equal(json_object_get(reports[0], keys[k]), json_object_get(reports[i], keys[k])));
        mica_string_free(json);
    }
    assert_int_equal(json_integer_value(json_object_get(reports[1], "layers_resumed")), 2);
    assert_int_equal(json_integer_value(json_object_get(reports[0], "experts")), 4 * EXPERTS);
    assert_true(json_integer_value(json_object_get(reports[0], "experts_never_chosen")) > 0);
    for (int i = 0; i < 3; i++)
        json_decref(reports[i]);
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
    assert_int_equal(mica_imatrix_collect(TINY, scratch("x.gguf"), &(mica_compute_options){.context = 1}, &own, &prompt, NULL, NULL, &error), MICA_USAGE);
    assert_int_equal(mica_imatrix_collect(TINY, scratch("y.gguf"), &(mica_compute_options){.context = 3}, &own, &prompt, NULL, NULL, &error), MICA_OK);
    assert_int_equal(mica_imatrix_collect(TINY, scratch("y.gguf"), &(mica_compute_options){.context = 3},
                                          &(mica_imatrix_options){.dataset = "ids", .sensitivity = true, .resume = true}, &prompt, NULL, NULL, &error),
                     MICA_CONFLICT);
    assert_non_null(strstr(error.message, "sensitivity"));
    scratch_write("there.gguf", "x", 1);
    assert_int_equal(mica_imatrix_collect(TINY, scratch("there.gguf"), &options, &own, &prompt, NULL, NULL, &error), MICA_CONFLICT);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_counts_and_sums), cmocka_unit_test(test_against_reference),
                                       cmocka_unit_test(test_metadata), cmocka_unit_test(test_resumed_report),
                                       cmocka_unit_test(test_it_drives_an_export), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
