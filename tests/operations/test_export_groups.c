/* Experts of several types (--compat mica): every expert's values are those it has where all experts have its type, with importance and
 * covariance too; the same bytes for any number of threads and after an interruption; logits and generated tokens are those of the
 * dequantised weights in float64; a budget for experts; what is refused, and what is said without memory. That llama.cpp refuses the
 * file is seen in tests/interop/export_groups.py. */
#include <math.h>

#include "export_helpers.h"

#include <mica/imatrix.h>

#include "base/json.h"
#include "base/no_memory.h"
#include "model/gguf_groups.h"
#include "model/model.h"
#include "operations/export_budget.h"
#include "reference/forward.h"

enum { EXPERTS = 24 };

static char rules[512], importance[512];

static int prepare(void **state) {
    static const char config[] =
        "{\"type\": \"q4_k_s\", \"rules\": [{\"name\": \"blk.*.ffn_up_exps.weight\", \"experts\": \"0-3,7\", \"type\": \"q2_k\"},"
        "{\"name\": \"blk.2.ffn_up_exps.weight\", \"experts\": 9, \"type\": \"q6_k\"}]}";
    mica_error error = {MICA_OK, ""};
    scratch_make(state);
    snprintf(rules, sizeof rules, "%s", scratch("rules.json"));
    snprintf(importance, sizeof importance, "%s", scratch("importance.gguf"));
    scratch_write("rules.json", config, sizeof config - 1);
    loaded_file text = load(TINY "/heldout.txt");
    char *half = mica_strdup(text.bytes);
    half[30000] = 0;
    const mica_compute_options options = {.context = 128, .threads = 2};
    const mica_imatrix_options own = {.dataset = "half", .covariance = true, .sensitivity = true};
    const mica_prompt prompt = {.text = half};
    const mica_status status = mica_imatrix_collect(TINY, importance, &options, &own, &prompt, NULL, NULL, &error);
    if (status != MICA_OK)
        print_error("%s\n", error.message);
    mica_free(half);
    mica_free(text.bytes);
    return status != MICA_OK;
}

static float *values_of(const char *file, const char *name, uint64_t *count) {
    mica_model *model = NULL;
    mica_error error = {MICA_OK, ""};
    float *values = NULL;
    if (mica_model_open(file, NULL, &model, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(model->unknown_count, 0);
    const mica_weight *weight = mica_model_weight(model, name);
    assert_non_null(weight);
    assert_int_equal(mica_weight_load(model, weight, &values, NULL), MICA_OK);
    *count = weight->rows * weight->columns;
    mica_model_close(model);
    return values;
}

static void assert_same_values(const char *a, const char *b, const char *name) {
    uint64_t counts[2];
    float *left = values_of(a, name, &counts[0]), *right = values_of(b, name, &counts[1]);
    assert_int_equal(counts[0], counts[1]);
    if (memcmp(left, right, counts[0] * sizeof *left) != 0)
        fail_msg("%s: not the same values", name);
    mica_free(left);
    mica_free(right);
}

static void test_experts_are_what_they_are_alone(void **state) {
    (void)state;
    static const char *const uniform_rules[] = {
        "{\"type\": \"q4_k_s\", \"rules\": [{\"name\": \"blk.*.ffn_up_exps.weight\", \"type\": \"q2_k\"}]}",
        "{\"type\": \"q4_k_s\", \"rules\": [{\"name\": \"blk.*.ffn_up_exps.weight\", \"type\": \"q6_k\"}]}", "{\"type\": \"q4_k_s\"}"};
    static char grouped[512], uniform[3][512];
    snprintf(grouped, sizeof grouped, "%s", scratch("grouped.gguf"));
    mica_export_gguf_options options = {.config = rules, .imatrix = importance, .effort = "max", .compat = "mica"};
    export_to(TINY, grouped, &options);
    options.compat = NULL;
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "uniform%d.json", i);
        scratch_write(name, uniform_rules[i], strlen(uniform_rules[i]));
        options.config = scratch(name);
        snprintf(uniform[i], sizeof uniform[i], "%s.gguf", scratch(name));
        export_to(TINY, uniform[i], &options);
    }
    for (int layer = 1; layer < 5; layer++)
        for (int e = 0; e < EXPERTS; e++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.ffn_up_exps.weight[%d]", layer, e);
            assert_same_values(grouped, uniform[e <= 3 || e == 7 ? 0 : layer == 2 && e == 9 ? 1 : 2], name);
        }
    assert_same_values(grouped, uniform[2], "blk.1.ffn_down_exps.weight[5]"); /* all alike, so not in groups */
    mica_tensor_source *source = NULL;
    assert_int_equal(mica_tensor_source_open(grouped, &source, NULL), MICA_OK);
    assert_non_null(mica_tensor_source_find(source, "blk.2.ffn_up_exps.weight.g2"));
    assert_null(mica_tensor_source_find(source, "blk.1.ffn_up_exps.weight.g2"));
    assert_null(mica_tensor_source_find(source, "blk.1.ffn_up_exps.weight"));
    assert_non_null(mica_tensor_source_find(source, "blk.1.ffn_down_exps.weight"));
    mica_tensor_source_close(source);
}

static bool stop_after(void *context, const mica_progress *progress) {
    return progress->units_done < *(const uint64_t *)context;
}

/* Finer types for some experts than q2_k's: nearer to the model, as Mica computes it. */
static void test_it_computes_and_is_resumed(void **state) {
    (void)state;
    static const char config[] =
        "{\"type\": \"q2_k\", \"rules\": [{\"name\": \"blk.*_exps.weight\", \"experts\": \"0-15\", \"type\": \"q6_k\"}]}";
    scratch_write("finer.json", config, sizeof config - 1);
    static char finer[512], plain[512], whole[512];
    snprintf(finer, sizeof finer, "%s", scratch("finer.json"));
    snprintf(plain, sizeof plain, "%s", scratch("plain.gguf"));
    snprintf(whole, sizeof whole, "%s", scratch("whole.gguf"));
    export_to(TINY, plain, &(mica_export_gguf_options){.type = "q2_k"});
    mica_export_gguf_options options = {.config = finer, .compat = "mica", .threads = 1};
    export_to(TINY, whole, &options);
    loaded_file text = load(TINY "/heldout.txt");
    const char *tail = text.bytes + text.length - 5000;
    assert_true(divergence_of(whole, tail, 128) < 0.95 * divergence_of(plain, tail, 128));
    mica_free(text.bytes);
    uint64_t stop = 200;
    options.threads = 2;
    options.progress = stop_after;
    options.progress_context = &stop;
    assert_int_equal(mica_export_gguf(TINY, scratch("cut.gguf"), &options, NULL, NULL, NULL), MICA_INTERRUPTED);
    options.progress = NULL;
    options.resume = true;
    export_to(TINY, scratch("cut.gguf"), &options);
    assert_true(same_bytes(whole, scratch("cut.gguf")));
}

/* ---- what the file computes, against its dequantised weights (a checkpoint of float32) in float64 */

enum { TOKENS = 7, NEXT = 4 };

static bool take_token(void *context, const char *bytes, uint64_t length, int64_t id) {
    int64_t **at = context;
    (void)bytes;
    (void)length;
    if (id >= 0)
        *(*at)++ = id;
    return true;
}

static void test_logits_and_tokens(void **state) {
    (void)state;
    static const char config[] =
        "{\"type\": \"q4_k_s\", \"rules\": [{\"name\": \"blk.*_exps.weight\", \"experts\": \"0-7\", \"type\": \"q2_k\"},"
        "{\"name\": \"blk.*_exps.weight\", \"experts\": \"8-15\", \"type\": \"q8_0\"},"
        "{\"name\": \"blk.3.*_exps.weight\", \"experts\": \"20-23\", \"type\": \"bf16\"}]}";
    static char grouped[512];
    int64_t ids[TOKENS + NEXT] = {3840, 367, 450, 267, 597, 2439, 300}, said[NEXT], *next = said;
    mica_model *decoded = NULL;
    mica_error error = {MICA_OK, ""};
    reference_result truth;
    scratch_write("several.json", config, sizeof config - 1);
    snprintf(grouped, sizeof grouped, "%s", scratch("several.gguf"));
    export_to(TINY, grouped, &(mica_export_gguf_options){.config = scratch("several.json"), .compat = "mica"});
    if (mica_export_safetensors(grouped, scratch("decoded"), &(mica_export_safetensors_options){.dtype = "f32"}, NULL, NULL, &error) !=
        MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(mica_model_open(scratch("decoded"), NULL, &decoded, NULL), MICA_OK);

    mica_runner *runner;
    const mica_compute_options options = {.exact = true, .threads = 2};
    const mica_generate_options generate = {.prompt = {.ids = "3840,367,450,267,597,2439,300"},
                                            .token_limit = NEXT,
                                            .ignore_end = true,
                                            .say = take_token,
                                            .say_context = &next};
    assert_int_equal(mica_runner_open(grouped, &options, &runner, NULL), MICA_OK);
    assert_int_equal(mica_runner_generate(runner, &generate, NULL, &error), MICA_OK);
    mica_runner_close(runner);
    assert_int_equal(next - said, NEXT);
    memcpy(ids + TOKENS, said, sizeof said);

    if (mica_logits(grouped, &options, &(mica_prompt){.ids = "3840,367,450,267,597,2439,300"}, scratch("l.f32"), NULL, &error) != MICA_OK)
        fail_msg("%s", error.message);
    loaded_file logits = load(scratch("l.f32"));
    const float *got = (const float *)(const void *)logits.bytes;
    const uint64_t vocabulary = decoded->config.vocab_size;
    assert_int_equal(logits.length, TOKENS * vocabulary * sizeof *got);
    reference_forward(decoded, ids, TOKENS + NEXT - 1, &truth);
    for (uint64_t i = 0; i < TOKENS * vocabulary; i++)
        if (!(fabs((double)got[i] - truth.logits[i]) <= 1e-4))
            fail_msg("token %llu, logit %llu: expected %.6f, got %.6f", (unsigned long long)(i / vocabulary),
                     (unsigned long long)(i % vocabulary), truth.logits[i], (double)got[i]);
    for (uint64_t t = 0; t < NEXT; t++) {
        const double *row = truth.logits + (TOKENS - 1 + t) * vocabulary;
        uint64_t best = 0;
        for (uint64_t v = 1; v < vocabulary; v++)
            best = row[v] > row[best] ? v : best;
        assert_true(row[best] - row[said[t]] <= 2e-4); /* the same, or a tie */
    }
    reference_release(&truth);
    mica_free(logits.bytes);
    mica_model_close(decoded);
}

/* Reading groups, and writing them. */
static void test_no_memory(void **state) {
    (void)state;
    static const char config[] =
        "{\"type\": \"source\", \"rules\": [{\"name\": \"blk.1.ffn_up_exps.weight\", \"experts\": \"0-3\", \"type\": \"q8_0\"}]}";
    static char two[512];
    mica_model *model = NULL;
    scratch_write("two.json", config, sizeof config - 1);
    snprintf(two, sizeof two, "%s", scratch("two.json"));
    const mica_export_gguf_options options = {.config = two, .compat = "mica", .threads = 1, .force = true};
    export_to(TINY, scratch("two.gguf"), &options);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_error error = {MICA_OK, ""};
        no_memory_begin(&trial);
        const mica_status status = mica_model_open(scratch("two.gguf"), NULL, &model, &error);
        if (status == MICA_OK)
            mica_model_close(model);
        no_memory_end(&trial, status, MICA_OK, &error);
    }
    for (no_memory trial = {.may_do_without = true, .stride = 37}; no_memory_next(&trial);) { /* without compiled patterns */
        mica_error error = {MICA_OK, ""};
        no_memory_begin(&trial);
        const mica_status status = mica_export_gguf(TINY, scratch("again.gguf"), &options, NULL, NULL, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        if (trial.succeeded)
            assert_true(same_bytes(scratch("two.gguf"), scratch("again.gguf")));
    }
}

/* The rules that a budget for experts writes give the same file; its error is no more than that of a budget for tensors. */
static void test_budget(void **state) {
    (void)state;
    double ratios[2];
    for (int mica = 0; mica < 2; mica++) {
        mica_export_gguf_options options = {.type = "q4_k_m",
                                            .imatrix = importance,
                                            .compat = mica ? "mica" : NULL,
                                            .generate_config = scratch("bought.json"),
                                            .force = true};
        mica_error error = {MICA_OK, ""};
        char *json = NULL;
        json_t *report = NULL;
        if (mica_export_gguf(TINY, NULL, &options, NULL, &json, &error) != MICA_OK)
            fail_msg("%s", error.message);
        assert_int_equal(mica_json_parse("report", json, strlen(json), &report, NULL), MICA_OK);
        ratios[mica] = json_number_value(json_object_get(report, "budget_error_ratio"));
        char budget[32];
        snprintf(budget, sizeof budget, "%lldB", (long long)json_integer_value(json_object_get(report, "budget_bytes")));
        json_decref(report);
        mica_string_free(json);
        options = (mica_export_gguf_options){
            .type = "q4_k_m", .imatrix = importance, .budget = budget, .compat = mica ? "mica" : NULL, .force = true};
        export_to(TINY, scratch("budget.gguf"), &options);
        options = (mica_export_gguf_options){
            .config = scratch("bought.json"), .imatrix = importance, .compat = mica ? "mica" : NULL, .force = true};
        export_to(TINY, scratch("ruled.gguf"), &options);
        assert_true(same_bytes(scratch("budget.gguf"), scratch("ruled.gguf")));
    }
    assert_true(ratios[1] <= ratios[0] && ratios[0] < 0.75);
}

/* 60 layers of 384 experts at the size of Q4_K_M's experts, the down projections in Q4_K and Q6_K by halves, shares lognormal with a sigma
 * of 1, errors those of Gaussian weights: tensor by tensor at most 0.8 of the mixture's error (its experts' types in one tensor are alike),
 * expert by expert at most 0.5. */
static void test_skewed_routing(void **state) {
    (void)state;
    enum { LAYERS = 60, MATRICES = 384, TYPES = 7 };
    static const uint64_t bytes[TYPES] = {84, 110, 136, 144, 176, 210, 272};
    static const double errors[TYPES] = {.0715, .0208, .0055, .0049, .00115, .000262, .0000283};
    static mica_export_measure items[LAYERS * MATRICES * 3];
    static double shares[LAYERS][MATRICES];
    double mixture = 0;
    uint64_t count = 0, size = 0, seed = 1;
    for (int layer = 0; layer < LAYERS; layer++) {
        double sum = 0;
        for (int e = 0; e < MATRICES; e++) {
            double u[2];
            for (int k = 0; k < 2; k++) {
                seed = seed * 6364136223846793005u + 1442695040888963407u;
                u[k] = ((double)(seed >> 11) + 0.5) * 0x1p-53;
            }
            sum += shares[layer][e] = exp(sqrt(-2 * log(u[0])) * cos(2 * M_PI * u[1]));
        }
        for (int e = 0; e < MATRICES * 3; e++) {
            mica_export_measure *item = &items[count++];
            *item = (mica_export_measure){.count = TYPES, .weight = shares[layer][e % MATRICES] / sum};
            memcpy(item->bytes, bytes, sizeof bytes);
            memcpy(item->error, errors, sizeof errors);
            const int type = e >= 2 * MATRICES && layer % 2 ? 5 : 3;
            mixture += item->weight * errors[type];
            size += bytes[type];
        }
    }
    assert_int_equal(mica_export_allocate(items, count, 0, size, NULL), MICA_OK);
    double bought = 0;
    for (uint64_t i = 0; i < count; i++)
        bought += items[i].weight * errors[items[i].chosen];
    if (!(bought <= 0.5 * mixture))
        fail_msg("expected at most half of the mixture's error %g, got %g", mixture, bought);
}

static void assert_refused(const char *file, const char *text) {
    mica_model *model = NULL;
    mica_error error = {MICA_OK, ""};
    assert_int_equal(mica_model_open(file, NULL, &model, &error), MICA_BAD_INPUT);
    if (!strstr(error.message, text))
        fail_msg("expected \"%s\" in: %s", text, error.message);
}

/* Every group's name, one after the other, is another one's; numbers of the key that name no group. */
static void test_refusals(void **state) {
    (void)state;
    mica_error error;
    mica_export_gguf_options options = {.config = rules};
    assert_int_equal(mica_export_gguf(TINY, scratch("x.gguf"), &options, NULL, NULL, &error), MICA_BAD_INPUT);
    assert_non_null(strstr(error.message, "one type for all of its experts (--compat mica writes groups of them)"));
    options.compat = "ollama";
    assert_int_equal(mica_export_gguf(TINY, scratch("x.gguf"), &options, NULL, NULL, &error), MICA_USAGE);
    assert_non_null(strstr(error.message, "--compat: expected llama.cpp or mica, got 'ollama'"));
    options.compat = "mica";
    export_to(TINY, scratch("sound.gguf"), &options);
    loaded_file file = load(scratch("sound.gguf"));
    static const char key[] = MICA_GGUF_GROUPS_KEY "blk.1.ffn_up_exps.weight";
    char *name = NULL, *groups = NULL;
    for (uint64_t i = 0; i + 64 < file.length; i++) {
        if (memcmp(file.bytes + i, "blk.1.ffn_up_exps.weight.g1", 27) == 0)
            name = file.bytes + i;
        if (memcmp(file.bytes + i, key, sizeof key - 1) == 0)
            groups = file.bytes + i + sizeof key - 1 + 4 + 4 + 8; /* array, u8, count */
    }
    assert_true(name && groups);
    name[26] = '7';
    scratch_write("renamed.gguf", file.bytes, file.length);
    name[26] = '1';
    assert_refused(scratch("renamed.gguf"), "and a tensor blk.1.ffn_up_exps.weight.g1, got no such tensor");
    assert_true(groups[0] == 0 && groups[4] == 1);
    groups[4] = 9;
    scratch_write("wild.gguf", file.bytes, file.length);
    groups[4] = 0;
    assert_refused(scratch("wild.gguf"), "expected shape");
    scratch_write("moved.gguf", file.bytes, file.length); /* one expert more in a group than its tensor has */
    assert_refused(scratch("moved.gguf"), "expected shape");
    mica_free(file.bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_experts_are_what_they_are_alone),
                                       cmocka_unit_test(test_it_computes_and_is_resumed),
                                       cmocka_unit_test(test_logits_and_tokens),
                                       cmocka_unit_test(test_no_memory),
                                       cmocka_unit_test(test_budget),
                                       cmocka_unit_test(test_skewed_routing),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, prepare, scratch_remove);
}
