/* test_route.c: the routing statistics of a few prompts against sums made from the reference forward pass; the same file for every budget,
 * number of threads and place of the activations; weights read once; refusals, interruption. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>
#include <mica/engine.h>

#include "model/golden.h"
#include "operations/route_prompts.h"
#include "operations/validate.h"
#include "reference/forward.h"

static char directory[256];

static int make(void **state) {
    (void)state;
    const char *parent = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/mica-test-XXXXXX", parent ? parent : P_tmpdir);
    return mkdtemp(directory) ? 0 : -1;
}

static int clean(void **state) {
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command);
}

static const char *inside(const char *name) {
    static char paths[4][300];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", directory, name);
    return path;
}

static void write_text(const char *path, const char *text) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

#define PROMPTS "3840,367,450,267,597,2439,300\n3840,40,989,425,11,658,379,395,602\n\n311,418,415,11,302\n"

static char *route(const char *name, const mica_route_options *options) {
    mica_error error;
    char path[400], *bytes;
    uint64_t length;
    if (mica_route(TINY_K2, inside(name), options, NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
    snprintf(path, sizeof path, "%s/phase3_routing_stats.json", inside(name));
    assert_int_equal(mica_file_load(path, 1 << 24, &bytes, &length, &error), MICA_OK);
    return bytes;
}

/* ---- against the reference */

typedef struct sums {
    double gate, norm, reap, largest, cosine;
    uint64_t count, together;
} sums;

enum { LAYERS = 5, EXPERTS = 24, HIDDEN = 256, TOP_K = 4 };
static sums expected[LAYERS][EXPERTS + 1]; /* the last: of the layer */

static double norm_of(const double *x) {
    double sum = 0;
    for (int i = 0; i < HIDDEN; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

/* What an expert makes of a token, from the reference's pieces: the input of layer l's feed-forward part is the hidden state before it plus
 * attention, which the reference does not keep, so that it is computed again here. */
static void add_expected(const mica_model *model, const int64_t *ids, uint64_t tokens) {
    reference_result result;
    reference_forward(model, ids, tokens, &result);
    double *x = reference_zeros(tokens * HIDDEN), normed[HIDDEN], out[HIDDEN];
    for (uint64_t l = 0, moe = 0; l < LAYERS; l++) {
        const double *before = result.hidden + l * tokens * HIDDEN, *after = before + tokens * HIDDEN;
        for (uint64_t t = 0; t < tokens; t++) {
            double product = 0;
            for (int i = 0; i < HIDDEN; i++)
                product += before[t * HIDDEN + (uint64_t)i] * after[t * HIDDEN + (uint64_t)i];
            expected[l][EXPERTS].cosine += product / (norm_of(before + t * HIDDEN) * norm_of(after + t * HIDDEN));
            expected[l][EXPERTS].count++;
        }
        if (!model->layers[l].moe)
            continue;
        memcpy(x, before, tokens * HIDDEN * sizeof *x);
        reference_attention(model, &model->layers[l], tokens, x);
        float *norm = reference_weight(model, model->layers[l].parts[MICA_PART_POST_NORM]);
        for (uint64_t t = 0; t < tokens; t++) {
            const int32_t *chosen = result.router_ids + (moe * tokens + t) * TOP_K;
            const double *weights = result.router_weights + (moe * tokens + t) * TOP_K;
            reference_norm(norm, HIDDEN, model->config.rms_norm_eps, x + t * HIDDEN, normed);
            for (int k = 0; k < TOP_K; k++) {
                sums *into = &expected[l][chosen[k]];
                memset(out, 0, sizeof out);
                reference_mlp(model, &model->layers[l], &model->layers[l].experts[chosen[k] * MICA_PROJECTION_COUNT], normed, 1, out);
                into->count++;
                into->gate += weights[k];
                into->norm += norm_of(out);
                into->reap += weights[k] * norm_of(out);
                into->largest = fmax(into->largest, norm_of(out));
            }
        }
        mica_free(norm);
        moe++;
    }
    free(x);
    reference_release(&result);
}

static double number(const json_t *object, const char *key, size_t index) {
    return json_number_value(json_array_get(json_object_get(object, key), index));
}

static void near(double got, double wanted, const char *what) {
    if (!(fabs(got - wanted) <= 1e-4 * (1 + fabs(wanted))))
        fail_msg("%s: expected %.9g, got %.9g", what, wanted, got);
}

static void test_against_reference(void **state) {
    (void)state;
    mica_model *model;
    json_t *report;
    assert_int_equal(mica_model_open(TINY_K2, NULL, &model, NULL), MICA_OK);
    add_expected(model, (const int64_t[]){3840, 367, 450, 267, 597, 2439, 300}, 7);
    add_expected(model, (const int64_t[]){3840, 40, 989, 425, 11, 658, 379, 395, 602}, 9);
    add_expected(model, (const int64_t[]){311, 418, 415, 11, 302}, 5);
    mica_model_close(model);
    write_text(inside("prompts.ids"), PROMPTS);
    char *json = route("exact", &(mica_route_options){.compute = {.exact = true}, .ids = inside("prompts.ids")});
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    assert_int_equal(json_integer_value(json_object_get(report, "tokens")), 21);
    assert_int_equal(json_integer_value(json_object_get(report, "prompt_count")), 3);
    for (uint64_t l = 0; l < LAYERS; l++) {
        const json_t *layer = json_array_get(json_object_get(report, "layers"), l), *experts = json_object_get(layer, "experts");
        near(number(layer, "residual_cosine", 0), expected[l][EXPERTS].cosine / 21, "cosine");
        assert_int_equal(json_array_size(experts), l == 0 ? 0 : EXPERTS);
        for (size_t e = 0; e < json_array_size(experts); e++) {
            const json_t *expert = json_array_get(experts, e);
            const sums *wanted = &expected[l][e];
            assert_int_equal(json_integer_value(json_object_get(expert, "selections")), wanted->count);
            if (wanted->count == 0) {
                assert_true(json_is_null(json_array_get(json_object_get(expert, "reap"), 0)));
                continue;
            }
            near(number(expert, "gate_weight", 0), wanted->gate / (double)wanted->count, "gate weight");
            near(number(expert, "output_norm", 0), wanted->norm / (double)wanted->count, "output norm");
            near(number(expert, "output_norm", 2), wanted->largest, "largest norm");
            near(number(expert, "reap", 0), wanted->reap / (double)wanted->count, "REAP");
        }
    }
    if (validator_exists())
        assert_true(validates("phase3_routing_stats.schema.json", json));
    json_decref(report);
    mica_free(json);
}

/* Sums of the co-activation file: each token has top_k choices, each with top_k - 1 others; symmetric, nothing on the diagonal. */
static void test_coactivation(void **state) {
    (void)state;
    char path[400], *bytes;
    uint64_t length;
    snprintf(path, sizeof path, "%s/phase3_coactivation.u32", inside("exact"));
    assert_int_equal(mica_file_load(path, 1 << 20, &bytes, &length, NULL), MICA_OK);
    assert_int_equal(length, 4 * EXPERTS * EXPERTS * 4);
    const uint32_t *pairs = (const uint32_t *)(const void *)bytes;
    for (int l = 0; l < 4; l++, pairs += EXPERTS * EXPERTS)
        for (int a = 0; a < EXPERTS; a++) {
            uint64_t row = 0;
            for (int b = 0; b < EXPERTS; b++) {
                assert_int_equal(pairs[a * EXPERTS + b], pairs[b * EXPERTS + a]);
                row += pairs[a * EXPERTS + b];
            }
            assert_int_equal(pairs[a * EXPERTS + a], 0);
            assert_int_equal(row, (TOP_K - 1) * expected[l + 1][a].count);
        }
    mica_free(bytes);
}

static void test_same_everywhere(void **state) {
    (void)state;
    uint64_t least = 30;
    char *whole = route("whole", &(mica_route_options){.compute = {.threads = 2}, .ids = inside("prompts.ids")});
    mica_error error;
    /* the smallest budget that is taken: a few slots, so that a layer's experts come in groups */
    while (mica_route(TINY_K2, inside("small"),
                      &(mica_route_options){.compute = {.memory_bytes = least << 20, .threads = 1, .cache_policy = "lru"},
                                            .ids = inside("prompts.ids")},
                      NULL, &error) == MICA_USAGE)
        least++;
    char path[400], *small;
    uint64_t length;
    snprintf(path, sizeof path, "%s/phase3_routing_stats.json", inside("small"));
    assert_int_equal(mica_file_load(path, 1 << 24, &small, &length, NULL), MICA_OK);
    assert_string_equal(whole, small);
    mica_free(whole);
    mica_free(small);
}

static bool stop(void *context, const mica_progress *progress) {
    (void)context;
    return progress->units_done < 2;
}

static void expect(mica_status got, const mica_error *error, mica_status status, const char *part) {
    assert_int_equal(got, status);
    if (!strstr(error->message, part))
        fail_msg("expected \"...%s...\", got \"%s\"", part, error->message);
}

static void test_refusals(void **state) {
    (void)state;
    mica_error error;
    const char *ids = inside("prompts.ids");
    expect(mica_route(TINY_K2, inside("exact"), &(mica_route_options){.ids = ids}, NULL, &error), &error, MICA_CONFLICT,
           "is there already; replace it with --force");
    assert_int_equal(mica_route(TINY_K2, inside("exact"), &(mica_route_options){.ids = ids, .force = true}, NULL, &error), MICA_OK);
    expect(mica_route(TINY_K2, inside("stopped"), &(mica_route_options){.ids = ids, .compute = {.progress = stop}}, NULL, &error), &error,
           MICA_INTERRUPTED, "stopped after 2 of 5 layers");
    char path[400];
    snprintf(path, sizeof path, "%s/phase3_routing_stats.json", inside("stopped"));
    assert_false(mica_path_exists(path));
    write_text(inside("none"), "\n\n");
    expect(mica_route(TINY_K2, inside("out"), &(mica_route_options){.prompts = inside("none")}, NULL, &error), &error, MICA_BAD_INPUT,
           "expected a prompt a line, got none");
    write_text(inside("wrong"), "1,2\n1,9999\n");
    expect(mica_route(TINY_K2, inside("out"), &(mica_route_options){.ids = inside("wrong")}, NULL, &error), &error, MICA_BAD_INPUT,
           "got 9999");
}

/* What a file of prompts says, by the report: prompts, tokens, prompts that were cut. */
static void assert_takes(const char *name, const char *text, const mica_route_options *options, uint64_t prompts, uint64_t tokens, uint64_t cut) {
    json_t *report;
    write_text(inside(name), text);
    mica_route_options own = *options;
    if (own.ids)
        own.ids = inside(name);
    else
        own.prompts = inside(name);
    own.force = true;
    char *json = route("prompts", &own);
    assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
    assert_int_equal(json_integer_value(json_object_get(report, "prompt_count")), prompts);
    assert_int_equal(json_integer_value(json_object_get(report, "tokens")), tokens);
    assert_int_equal(json_integer_value(json_object_get(report, "prompts_truncated")), cut);
    json_decref(report);
    mica_free(json);
}

/* A prompt a line, however lines end, the last one or not; longer ones are cut. */
static void test_prompt_files(void **state) {
    (void)state;
    mica_error error;
    const mica_route_options text = {0}, ids = {.ids = ""}, narrow = {.ids = "", .compute = {.context = 3}};
    assert_takes("ids", "1,2,3\n4,5", &ids, 2, 5, 0);
    assert_takes("ids", "1,2,3,4\n4,5\n1,2,3\n5,6,7,8,9\n", &narrow, 4, 11, 2);
    assert_takes("unix", "The cat\nThe cat\n\nThe cat\n", &text, 3, 3 * 3, 0);
    assert_takes("dos", "The cat\r\nThe cat\r\n\r\nThe cat\r\n", &text, 3, 3 * 3, 0);
    assert_int_equal(mica_file_replace(inside("nul"), "1,2\0,3", 7, &error), MICA_OK);
    expect(mica_route(TINY_K2, inside("out"), &(mica_route_options){.ids = inside("nul")}, NULL, &error), &error, MICA_BAD_INPUT, "got a NUL byte");
    expect(mica_route(TINY_K2, inside("out"), &(mica_route_options){.ids = inside("ids"), .prompts = inside("unix")}, NULL, &error), &error, MICA_USAGE,
           "expected prompts as text or as ids, got both");
}

/* Asked for again, what is finished is left; of other prompts it is not this job's. */
static void test_finished(void **state) {
    (void)state;
    mica_error error;
    char *text = NULL;
    write_text(inside("mine"), "1,2,3\n");
    write_text(inside("other"), "1,2,4\n");
    mica_free(route("finished", &(mica_route_options){.ids = inside("mine")}));
    assert_int_equal(mica_route(TINY_K2, inside("finished"), &(mica_route_options){.ids = inside("mine"), .resume = true}, &text, &error), MICA_OK);
    assert_non_null(strstr(text, "already finished"));
    mica_string_free(text);
    expect(mica_route(TINY_K2, inside("finished"), &(mica_route_options){.ids = inside("other"), .resume = true}, NULL, &error), &error, MICA_CONFLICT,
           "token_ids_sha256");
}

static void test_built_in_prompts(void **state) {
    (void)state;
    for (int i = 0; i < MICA_ROUTE_PROMPTS; i++) {
        assert_true(mica_route_prompts[i] && strlen(mica_route_prompts[i]) > 15);
        for (int j = 0; j < i; j++)
            assert_string_not_equal(mica_route_prompts[i], mica_route_prompts[j]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_reference), cmocka_unit_test(test_coactivation),
                                       cmocka_unit_test(test_same_everywhere), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_prompt_files), cmocka_unit_test(test_finished),
                                       cmocka_unit_test(test_built_in_prompts)};
    return cmocka_run_group_tests(tests, make, clean);
}
