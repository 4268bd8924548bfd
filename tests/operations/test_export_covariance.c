/* Levels by covariance, end to end on tiny-k2: covariances collected from one half of a text, files exported with and without them, and the
 * error of the outputs on the other half's real inputs (their second moments), which must be below the joint search's. Same bytes for any
 * number of threads and after an interruption; what is said where there is no covariance. */
#include <math.h>

#include "export_helpers.h"

#include <mica/imatrix.h>

#include "base/no_memory.h"
#include "formats/imatrix.h"
#include "model/model.h"
#include "validate.h"

enum { WINDOW = 128, N = 256, EXPERTS = 24 };
#ifdef __SANITIZE_THREAD__
enum { TEXT = 12000, STRIDE = 290 }; /* a minute of processor time under it */
#else
enum { TEXT = 40000, STRIDE = 29 };
#endif

static char halves[2][80000], learnt[512], trellis[512];

static void collect(int half, const char *path, bool covariance, uint64_t own_bytes) {
    mica_error error = {MICA_OK, ""};
    const mica_compute_options options = {.context = WINDOW, .threads = 2};
    const mica_prompt prompt = {.text = halves[half]};
    const mica_imatrix_options own = {.dataset = "half", .covariance = covariance, .own_bytes = own_bytes};
    if (mica_imatrix_collect(TINY, path, &options, &own, &prompt, NULL, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
}

static int prepare(void **state) {
    (void)state;
    loaded_file text = load(TINY "/heldout.txt");
    memcpy(halves[0], text.bytes, TEXT); /* ASCII and UTF-8; a character cut at the end is a byte or two more */
    memcpy(halves[1], text.bytes + text.length - TEXT, TEXT);
    mica_free(text.bytes);
    scratch_make(state);
    snprintf(learnt, sizeof learnt, "%s", scratch("learnt.gguf"));
    snprintf(trellis, sizeof trellis, "%s", scratch("trellis.json"));
    collect(0, learnt, true, 0);
    collect(1, scratch("judged.gguf"), true, 0);
    static const char config[] = "{\"scale_optimization\": \"trellis\", \"trellis_lambda\": 0.1}";
    scratch_write("trellis.json", config, sizeof config - 1);
    return 0;
}

/* The sum over rows of (x - y)^T H (x - y), over that of x^T H x, H of the judged inputs. */
static double output_error(const char *file, const mica_imatrix *judged, const char *gguf_name, const char *weight_name, int64_t expert) {
    static float h[N * N];
    mica_model *source = NULL, *written = NULL;
    float *x, *y;
    uint64_t slot;
    assert_int_equal(mica_model_open(TINY, NULL, &source, NULL), MICA_OK);
    assert_int_equal(mica_model_open(file, NULL, &written, NULL), MICA_OK);
    const mica_imatrix_covariance *covariance = mica_imatrix_find_covariance(judged, gguf_name, expert, &slot);
    assert_non_null(covariance);
    assert_int_equal(mica_imatrix_read_covariance(judged, covariance, slot, h, NULL), MICA_OK);
    const mica_weight *from = mica_model_weight(source, weight_name), *to = NULL;
    char name[96];
    snprintf(name, sizeof name, expert >= 0 ? "%s[%lld]" : "%s", gguf_name, (long long)expert);
    for (uint64_t i = 0; i < written->weight_count; i++)
        if (strcmp(written->weights[i].data->name, name) == 0)
            to = &written->weights[i];
    assert_true(from && to && from->columns == N && to->rows == from->rows);
    assert_int_equal(mica_weight_load(source, from, &x, NULL), MICA_OK);
    assert_int_equal(mica_weight_load(written, to, &y, NULL), MICA_OK);
    double error = 0, energy = 0;
    for (uint64_t row = 0; row < from->rows; row++)
        for (int i = 0; i < N; i++) {
            const float *a = x + row * N, *b = y + row * N;
            double off = 0, all = 0;
            for (int j = 0; j < N; j++) {
                off += (double)h[i * N + j] * ((double)a[j] - (double)b[j]);
                all += (double)h[i * N + j] * (double)a[j];
            }
            error += off * ((double)a[i] - (double)b[i]);
            energy += all * (double)a[i];
        }
    mica_free(x);
    mica_free(y);
    mica_model_close(source);
    mica_model_close(written);
    return sqrt(error / energy);
}

static void test_outputs_are_nearer(void **state) {
    (void)state;
    static const struct {
        const char *gguf, *weight;
        int64_t expert;
    } weights[] = {{"blk.1.attn_q_a.weight", "model.layers.1.self_attn.q_a_proj.weight", -1},
                   {"blk.2.ffn_up_exps.weight", "model.layers.2.mlp.experts.8.up_proj.weight", 8},
                   {"blk.3.ffn_up_shexp.weight", "model.layers.3.mlp.shared_experts.up_proj.weight", -1}};
    static const char *const types[] = {"q2_k", "q4_k_s"};
    mica_imatrix *judged = NULL;
    assert_int_equal(mica_imatrix_open(scratch("judged.gguf"), &judged, NULL), MICA_OK);
    for (size_t t = 0; t < 2; t++) {
        export_to(TINY, scratch("joint.gguf"), &(mica_export_gguf_options){.type = types[t], .imatrix = learnt, .force = true});
        export_to(TINY, scratch("trellis.gguf"),
                  &(mica_export_gguf_options){.type = types[t], .imatrix = learnt, .config = trellis, .force = true});
        for (size_t w = 0; w < sizeof weights / sizeof *weights; w++) {
            const double joint = output_error(scratch("joint.gguf"), judged, weights[w].gguf, weights[w].weight, weights[w].expert);
            const double searched = output_error(scratch("trellis.gguf"), judged, weights[w].gguf, weights[w].weight, weights[w].expert);
            if (!(searched < 0.9 * joint))
                fail_msg("%s, %s: expected less than 0.9 of the joint search's error, got %g of %g", types[t], weights[w].gguf, searched,
                         joint);
        }
    }
    mica_imatrix_close(judged);
}

static bool stop_after(void *context, const mica_progress *progress) {
    return progress->units_done < *(const uint64_t *)context;
}

static void test_same_bytes(void **state) {
    (void)state;
    mica_export_gguf_options options = {.type = "q4_k_m", .imatrix = learnt, .effort = "max", .threads = 1};
    export_to(TINY, scratch("one.gguf"), &options);
    options.threads = 2;
    export_to(TINY, scratch("two.gguf"), &options);
    assert_true(same_bytes(scratch("one.gguf"), scratch("two.gguf")));
    uint64_t stop = 200;
    options.progress = stop_after;
    options.progress_context = &stop;
    assert_int_equal(mica_export_gguf(TINY, scratch("cut.gguf"), &options, NULL, NULL, NULL), MICA_INTERRUPTED);
    options.progress = NULL;
    options.resume = true;
    options.effort = NULL; /* another job: covariances are not used */
    mica_error error;
    assert_int_equal(mica_export_gguf(TINY, scratch("cut.gguf"), &options, NULL, NULL, &error), MICA_CONFLICT);
    options.effort = "max";
    export_to(TINY, scratch("cut.gguf"), &options);
    assert_true(same_bytes(scratch("one.gguf"), scratch("cut.gguf")));
}

/* The collected file: the same for any number of windows at a time is the pass's affair; here its sums are the importance's, and a bound
 * holds. */
static void test_the_file(void **state) {
    (void)state;
    static float h[N * N], importance[N];
    mica_imatrix *imatrix = NULL;
    uint64_t slot;
    assert_int_equal(mica_imatrix_open(learnt, &imatrix, NULL), MICA_OK);
    for (int64_t expert = 0; expert < EXPERTS; expert++) {
        const mica_imatrix_entry *entry = mica_imatrix_find(imatrix, "blk.2.ffn_up_exps.weight");
        const mica_imatrix_covariance *covariance = mica_imatrix_find_covariance(imatrix, "blk.2.ffn_up_exps.weight", expert, &slot);
        const float count = mica_imatrix_count(entry, (uint64_t)expert);
        assert_non_null(covariance);
        assert_true((covariance->of[slot][0] == expert) == (count >= 2 * N));
        if (covariance->of[slot][0] != expert)
            continue;
        assert_true((float)covariance->of[slot][1] == count);
        assert_int_equal(mica_imatrix_read(imatrix, entry, EXPERTS, (uint64_t)expert, N, importance, NULL), MICA_OK);
        assert_int_equal(mica_imatrix_read_covariance(imatrix, covariance, slot, h, NULL), MICA_OK);
        for (int i = 0; i < N; i++)
            assert_true(fabsf(h[i * N + i] - importance[i]) <= 1e-4f * importance[i]);
    }
    mica_imatrix_close(imatrix);
    collect(0, scratch("bounded.gguf"), true, 8 * 140000); /* one expert's of 256 columns in each of four layers, some more of 128 */
    uint64_t bytes = 0, slots = 0;
    assert_int_equal(mica_imatrix_open(scratch("bounded.gguf"), &imatrix, NULL), MICA_OK);
    for (uint64_t i = 0; i < imatrix->covariance_count; i++)
        for (uint64_t s = 0; s < imatrix->covariances[i].slots; s++)
            if (imatrix->covariances[i].of[s][0] != MICA_IMATRIX_ALL_TOKENS) {
                bytes += imatrix->covariances[i].columns * (imatrix->covariances[i].columns + 1) / 2 * sizeof(float);
                slots++;
            }
    assert_true(slots >= 8 && bytes <= 8 * 140000);
    mica_imatrix_close(imatrix);
}

static void test_what_is_said(void **state) {
    (void)state;
    mica_error error;
    char *text = NULL, *json = NULL;
    static char plain[512];
    snprintf(plain, sizeof plain, "%s", scratch("plain.gguf"));
    collect(0, plain, false, 0);
    mica_export_gguf_options options = {.type = "q2_k", .imatrix = plain, .config = trellis, .dry_run = true};
    assert_int_equal(mica_export_gguf(TINY, NULL, &options, &text, NULL, &error), MICA_OK);
    assert_non_null(strstr(text, "needs the inputs' covariance"));
    assert_non_null(strstr(text, "trellis_lambda: accepted and without effect"));
    mica_string_free(text);
    options.imatrix = learnt;
    assert_int_equal(mica_export_gguf(TINY, NULL, &options, &text, &json, &error), MICA_OK);
    assert_non_null(strstr(text, "searched with the inputs' covariance in 2"));
    if (validator_exists())
        assert_true(validates("export.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
}

/* Factors are made by whichever thread wants them first: what one of them lacks is told, and the next run has the bytes. */
static void test_no_memory(void **state) {
    (void)state;
    static char few[512];
    const mica_export_gguf_options options = {.imatrix = learnt, .effort = "max", .config = few, .threads = 1, .force = true};
    static const char config[] =
        "{\"type\": \"bf16\", \"rules\": [{\"name\": \"blk.1.attn_*\", \"type\": \"q4_k\"}, {\"name\": \"blk.1.ffn_up_exps.weight\", \"type\": \"q4_k\"}]}";
    scratch_write("few.json", config, sizeof config - 1);
    snprintf(few, sizeof few, "%s", scratch("few.json"));
    export_to(TINY, scratch("enough.gguf"), &options);
    mica_export_gguf_options without = options;
    without.effort = "default";
    export_to(TINY, scratch("short.gguf"), &without);
    assert_false(same_bytes(scratch("enough.gguf"), scratch("short.gguf"))); /* so covariances are made use of */
    for (no_memory trial = {.may_do_without = true, .stride = STRIDE}; no_memory_next(&trial);) { /* without compiled patterns */
        mica_error error = {MICA_OK, ""};
        no_memory_begin(&trial);
        const mica_status status = mica_export_gguf(TINY, scratch("short.gguf"), &options, NULL, NULL, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        if (trial.succeeded)
            assert_true(same_bytes(scratch("enough.gguf"), scratch("short.gguf")));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_outputs_are_nearer), cmocka_unit_test(test_same_bytes),
                                       cmocka_unit_test(test_the_file), cmocka_unit_test(test_what_is_said),
                                       cmocka_unit_test(test_no_memory)};
    return cmocka_run_group_tests(tests, prepare, scratch_remove);
}
