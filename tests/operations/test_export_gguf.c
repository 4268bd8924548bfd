/* mica_export_gguf: what is in the files, against the weights it read; the same bytes whatever the threads, the instruction set and the
 * interruptions; nothing under a final name before it is whole; refusals. llama.cpp and gguf judge the files in
 * tests/interop/export_gguf.py. */

#include "export_helpers.h"

#include "base/copy_directory.h"
#include "base/cpu.h"
#include "base/no_memory.h"
#include "model/model.h"
#include "numerics/matrix.h"
#include "validate.h"

static const mica_tensor *find_tensor(const mica_gguf *gguf, const char *name) {
    for (uint64_t i = 0; i < gguf->tensor_count; i++)
        if (strcmp(gguf->tensors[i].name, name) == 0)
            return &gguf->tensors[i];
    print_error("no tensor %s\n", name);
    fail();
    return NULL;
}

static mica_file *open_gguf(const char *path, mica_gguf *gguf) {
    mica_file *file = NULL;
    mica_error error = {MICA_OK, ""};
    assert_int_equal(mica_file_open(path, false, &file, &error), MICA_OK);
    if (mica_gguf_read(file, "test", gguf, &error) != MICA_OK) {
        print_error("%s\n", error.message);
        fail();
    }
    return file;
}

static float *read_floats(const mica_file *file, const mica_tensor *tensor) {
    float *values = mica_malloc(tensor->bytes + 1);
    assert_non_null(values);
    assert_int_equal(tensor->dtype, MICA_F32);
    assert_int_equal(mica_file_read(file, tensor->offset, values, tensor->bytes, NULL), MICA_OK);
    return values;
}

static float *load_weight(const mica_model *model, const char *name, const mica_weight **weight) {
    float *values = NULL;
    *weight = mica_model_weight(model, name);
    assert_non_null(*weight);
    assert_int_equal(mica_weight_load(model, *weight, &values, NULL), MICA_OK);
    return values;
}

static void assert_floats(const float *got, const float *expected, uint64_t count, const char *name) {
    for (uint64_t i = 0; i < count; i++)
        if (memcmp(&got[i], &expected[i], sizeof *got) != 0) {
            print_error("%s: element %llu: %.9g, expected %.9g\n", name, (unsigned long long)i, (double)got[i], (double)expected[i]);
            fail();
        }
}

/* ---- values of the F32 file */

static void test_copies_and_experts(void **state) {
    (void)state;
    static const struct {
        const char *tensor, *weight, *rest; /* the weight's name; of experts, what stands before and behind their numbers */
        uint32_t experts;
    } rows[] = {{"token_embd.weight", "model.embed_tokens.weight", NULL, 1},
                {"output.weight", "lm_head.weight", NULL, 1},
                {"blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", NULL, 1},
                {"blk.2.ffn_gate_inp.weight", "model.layers.2.mlp.gate.weight", NULL, 1},
                {"blk.2.exp_probs_b.bias", "model.layers.2.mlp.gate.e_score_correction_bias", NULL, 1},
                {"blk.4.ffn_down_exps.weight", "model.layers.4.mlp.experts.", ".down_proj.weight", 24},
                {"blk.3.ffn_up_shexp.weight", "model.layers.3.mlp.shared_experts.up_proj.weight", NULL, 1}};
    mica_model *model = NULL;
    mica_gguf gguf;
    export_to(TINY, scratch("values.gguf"), &(mica_export_gguf_options){.type = "f32"});
    mica_file *file = open_gguf(scratch("values.gguf"), &gguf);
    assert_int_equal(mica_model_open(TINY, NULL, &model, NULL), MICA_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float *got = read_floats(file, find_tensor(&gguf, rows[i].tensor));
        for (uint32_t expert = 0; expert < rows[i].experts; expert++) {
            const mica_weight *weight;
            char name[128];
            snprintf(name, sizeof name, "%s%.*u%s", rows[i].weight, rows[i].rest ? 1 : 0, rows[i].rest ? expert : 0,
                     rows[i].rest ? rows[i].rest : "");
            float *expected = load_weight(model, name, &weight);
            const uint64_t count = weight->rows * weight->columns;
            assert_floats(got + expert * count, expected, count, rows[i].tensor);
            mica_free(expected);
        }
        mica_free(got);
    }
    mica_model_close(model);
    mica_gguf_release(&gguf);
    assert_int_equal(mica_file_close(file, NULL), MICA_OK);
}

static void test_latent_halves(void **state) {
    (void)state;
    enum { HEADS = 4, NOPE = 32, V = 32, LATENT = 64 };
    mica_model *model = NULL;
    const mica_weight *weight;
    mica_gguf gguf;
    export_to(TINY, scratch("halves.gguf"), &(mica_export_gguf_options){.type = "f32"});
    mica_file *file = open_gguf(scratch("halves.gguf"), &gguf);
    assert_int_equal(mica_model_open(TINY, NULL, &model, NULL), MICA_OK);
    float *whole = load_weight(model, "model.layers.3.self_attn.kv_b_proj.weight", &weight); /* [head][nope + v][latent] */
    float *key = read_floats(file, find_tensor(&gguf, "blk.3.attn_k_b.weight"));            /* [head][latent][nope] */
    float *value = read_floats(file, find_tensor(&gguf, "blk.3.attn_v_b.weight"));          /* [head][v][latent] */
    for (int head = 0; head < HEADS; head++) {
        const float *rows = whole + head * (NOPE + V) * LATENT;
        for (int i = 0; i < NOPE; i++)
            for (int c = 0; c < LATENT; c++)
                assert_true(key[(head * LATENT + c) * NOPE + i] == rows[i * LATENT + c]);
        assert_memory_equal(value + head * V * LATENT, rows + NOPE * LATENT, V * LATENT * sizeof *value);
    }
    mica_free(whole);
    mica_free(key);
    mica_free(value);
    mica_model_close(model);
    mica_gguf_release(&gguf);
    assert_int_equal(mica_file_close(file, NULL), MICA_OK);
}

/* ---- one truth whatever the circumstances */

static void test_threads_and_instruction_sets(void **state) {
    (void)state;
    const mica_cpu detected = mica_cpu_detected();
    export_to(TINY, scratch("one.gguf"), &(mica_export_gguf_options){.type = "q4_k_m", .threads = 1});
    export_to(TINY, scratch("many.gguf"), &(mica_export_gguf_options){.type = "q4_k_m", .threads = 5, .memory_bytes = 600u << 20});
    assert_true(same_bytes(scratch("one.gguf"), scratch("many.gguf")));
    mica_cpu_select(MICA_CPU_PORTABLE);
    export_to(TINY, scratch("portable.gguf"), &(mica_export_gguf_options){.type = "q4_k_m", .threads = 2});
    mica_cpu_select(detected);
    assert_true(same_bytes(scratch("one.gguf"), scratch("portable.gguf")));
}

static bool stop_after(void *context, const mica_progress *progress) {
    return progress->units_done < *(const uint64_t *)context;
}

static void test_resume_gives_the_same_bytes(void **state) {
    (void)state;
    export_to(TINY, scratch("whole.gguf"), &(mica_export_gguf_options){.type = "q5_k_m"});
    uint64_t stops[] = {1, 40, 200, 350};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        mica_error error;
        const mica_export_gguf_options options = {
            .type = "q5_k_m", .resume = i > 0, .threads = 2, .progress = stop_after, .progress_context = &stops[i]};
        const mica_status status = mica_export_gguf(TINY, scratch("stopped.gguf"), &options, NULL, NULL, &error);
        assert_int_equal(status, MICA_INTERRUPTED);
        assert_false(mica_path_exists(scratch("stopped.gguf")));
        assert_true(mica_path_exists(scratch("stopped.gguf.partial")));
    }
    export_to(TINY, scratch("stopped.gguf"), &(mica_export_gguf_options){.type = "q5_k_m", .resume = true});
    assert_true(same_bytes(scratch("whole.gguf"), scratch("stopped.gguf")));
    assert_false(mica_path_exists(scratch("stopped.gguf.partial")));
    assert_false(mica_path_exists(scratch("stopped.gguf.journal")));
}

/* The tensors of a split are those of the single file. */
static void test_split(void **state) {
    (void)state;
    export_to(TINY, scratch("single.gguf"), &(mica_export_gguf_options){.type = "q8_0"});
    export_to(TINY, scratch("split.gguf"), &(mica_export_gguf_options){.type = "q8_0", .split_bytes = 4000000});
    assert_false(mica_path_exists(scratch("split.gguf")));
    mica_tensor_source *single = NULL, *split = NULL;
    mica_error error = {MICA_OK, ""};
    assert_int_equal(mica_tensor_source_open(scratch("single.gguf"), &single, &error), MICA_OK);
    if (mica_tensor_source_open(scratch("split-00001-of-00004.gguf"), &split, &error) != MICA_OK)
        print_error("%s\n", error.message);
    assert_non_null(split);
    assert_int_equal(split->shard_count, 4);
    assert_int_equal(split->tensor_count, single->tensor_count);
    for (uint64_t i = 0; i < single->tensor_count; i++) {
        const mica_tensor *a = &single->tensors[i], *b = &split->tensors[i];
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->bytes, b->bytes);
        char *left = mica_malloc(a->bytes), *right = mica_malloc(a->bytes);
        assert_int_equal(mica_file_read(single->shards[a->shard].file, a->offset, left, a->bytes, NULL), MICA_OK);
        assert_int_equal(mica_file_read(split->shards[b->shard].file, b->offset, right, b->bytes, NULL), MICA_OK);
        assert_memory_equal(left, right, a->bytes);
        mica_free(left);
        mica_free(right);
    }
    mica_tensor_source_close(single);
    mica_tensor_source_close(split);
}

/* ---- faults */

static void test_full_disk(void **state) {
    (void)state;
    mica_error error;
    mica_io full = *mica_io_current();
    full.pwrite = pwrite_on_full_disk;
    mica_io_install(&full);
    const mica_status status = mica_export_gguf(TINY, scratch("full.gguf"), &(mica_export_gguf_options){.type = "q8_0"}, NULL, NULL,
                                                &error);
    mica_io_install(NULL);
    assert_int_equal(status, MICA_IO);
    assert_non_null(strstr(error.message, "full.gguf.partial"));
    assert_false(mica_path_exists(scratch("full.gguf")));
    export_to(TINY, scratch("full.gguf"), &(mica_export_gguf_options){.type = "q8_0", .resume = true});
    export_to(TINY, scratch("fresh.gguf"), &(mica_export_gguf_options){.type = "q8_0"});
    assert_true(same_bytes(scratch("full.gguf"), scratch("fresh.gguf")));
}

static void test_without_memory(void **state) {
    (void)state;
    const mica_export_gguf_options options = {.type = "q4_0", .threads = 1, .force = true};
    mica_error error;
    export_to(TINY, scratch("enough.gguf"), &options);
    for (no_memory trial = {.may_do_without = true}; no_memory_next(&trial);) { /* without compiled patterns */
        unlink(scratch("memory.gguf"));
        no_memory_begin(&trial);
        const mica_status status = mica_export_gguf(TINY, scratch("memory.gguf"), &options, NULL, NULL, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        if (status == MICA_OK || mica_path_exists(scratch("memory.gguf"))) /* there although not OK: it went out with the report to make */
            assert_true(same_bytes(scratch("memory.gguf"), scratch("enough.gguf")));
    }
}

/* ---- refusals */

static void assert_refused(const char *checkpoint, const char *path, const mica_export_gguf_options *options, mica_status expected,
                           const char *mention) {
    mica_error error = {MICA_OK, ""};
    assert_int_equal(mica_export_gguf(checkpoint, path, options, NULL, NULL, &error), expected);
    if (!strstr(error.message, mention)) {
        print_error("expected a mention of \"%s\", got: %s\n", mention, error.message);
        fail();
    }
}

static void test_refusals(void **state) {
    (void)state;
    assert_refused(TINY, scratch("x.gguf"), &(mica_export_gguf_options){.type = "q9"}, MICA_USAGE, "iq4_xs");
    assert_refused(TINY, NULL, NULL, MICA_USAGE, "--output");
    assert_refused(TINY, scratch("x.gguf"), &(mica_export_gguf_options){.memory_bytes = 1000000}, MICA_USAGE, "--memory");
    assert_refused(TINY, scratch("x.gguf"), &(mica_export_gguf_options){.resume = true, .force = true}, MICA_USAGE, "--resume");
    assert_refused("/nonexistent", scratch("x.gguf"), NULL, MICA_IO, "/nonexistent");
    assert_false(mica_path_exists(scratch("x.gguf.journal")));
    static const char one[] = "{\"rules\": [{\"name\": \"blk.1.attn_output.weight\", \"type\": \"iq4_nl\"}]}"; /* of the same size */
    static char one_path[512];
    scratch_write("one.json", one, sizeof one - 1);
    snprintf(one_path, sizeof one_path, "%s", scratch("one.json"));
    export_to(TINY, scratch("there.gguf"), &(mica_export_gguf_options){.type = "q4_0"});
    assert_refused(TINY, scratch("there.gguf"), &(mica_export_gguf_options){.type = "q4_0"}, MICA_CONFLICT, "--force");
    assert_refused(TINY, scratch("there.gguf"), &(mica_export_gguf_options){.type = "q4_1", .resume = true}, MICA_CONFLICT,
                   "of another job");
    assert_refused(TINY, scratch("there.gguf"), &(mica_export_gguf_options){.type = "q4_0", .resume = true, .config = one_path},
                   MICA_CONFLICT, "of another job: other keys, tensors or types");
    /* Before anything is read or written. */
    assert_refused("/nonexistent", scratch("."), NULL, MICA_USAGE, "directory");
    assert_refused("/nonexistent", scratch("x.gguf"), &(mica_export_gguf_options){.mmproj = scratch(".")}, MICA_USAGE, "directory");
    assert_refused("/nonexistent", scratch("x.gguf"), &(mica_export_gguf_options){.mmproj = scratch("x.gguf")}, MICA_USAGE, "two files");
    assert_refused("/nonexistent", scratch("there.gguf"), &(mica_export_gguf_options){.mmproj = scratch("m.gguf")}, MICA_CONFLICT,
                   "--force");
    assert_refused("/nonexistent", NULL, &(mica_export_gguf_options){.generate_config = scratch("there.gguf")}, MICA_CONFLICT, "--force");
    assert_refused("/nonexistent", NULL, &(mica_export_gguf_options){.generate_config = scratch("c.json"), .dry_run = true}, MICA_USAGE,
                   "--dry-run");
    uint64_t stop = 10;
    const mica_export_gguf_options stopping = {.type = "q4_0", .progress = stop_after, .progress_context = &stop};
    assert_refused(TINY, scratch("half.gguf"), &stopping, MICA_INTERRUPTED, "");
    assert_refused(TINY, scratch("half.gguf"), &(mica_export_gguf_options){.type = "q4_0"}, MICA_CONFLICT, "--resume");
    assert_refused(TINY, scratch("half.gguf"), &(mica_export_gguf_options){.type = "q4_1", .resume = true}, MICA_CONFLICT, "options.type");
}

/* Whoever starts afresh takes nothing from a run that is at work. */
static void test_two_runs(void **state) {
    (void)state;
    uint64_t stop = 10, bytes = 0;
    uint8_t before[MICA_SHA256_BYTES], after[MICA_SHA256_BYTES];
    int lock = -1;
    const mica_export_gguf_options stopping = {.type = "q4_0", .progress = stop_after, .progress_context = &stop};
    assert_refused(TINY, scratch("two.gguf"), &stopping, MICA_INTERRUPTED, "");
    assert_int_equal(mica_sha256_of_file(scratch("two.gguf.journal"), before, &bytes, NULL), MICA_OK);
    assert_int_equal(mica_path_lock(scratch("two.gguf.journal"), "busy", &lock, NULL), MICA_OK);
    assert_refused(TINY, scratch("two.gguf"), &(mica_export_gguf_options){.type = "q4_0", .force = true}, MICA_CONFLICT, "another export");
    assert_refused(TINY, scratch("two.gguf"), &(mica_export_gguf_options){.type = "q4_0", .resume = true}, MICA_CONFLICT, "another export");
    assert_int_equal(mica_sha256_of_file(scratch("two.gguf.journal"), after, &bytes, NULL), MICA_OK);
    assert_memory_equal(after, before, sizeof before);
    mica_path_unlock(lock);
    export_to(TINY, scratch("two.gguf"), &(mica_export_gguf_options){.type = "q4_0", .resume = true});
}

/* Nothing is written, and every unit was done before; a split is looked at file by file. */
static void test_finished_is_left_alone(void **state) {
    (void)state;
    for (int split = 0; split < 2; split++) {
        mica_export_gguf_options options = {.type = "q8_0", .split_bytes = split ? 4000000 : 0, .force = true};
        const char *last = split ? "done-00004-of-00004.gguf" : "done.gguf";
        char *text = NULL, *json = NULL;
        export_to(TINY, scratch("done.gguf"), &options);
        loaded_file before = load(scratch(last));
        struct stat then, now;
        assert_int_equal(stat(scratch(last), &then), 0);
        options.force = false;
        options.resume = true;
        assert_int_equal(mica_export_gguf(TINY, scratch("done.gguf"), &options, &text, &json, NULL), MICA_OK);
        assert_non_null(strstr(text, "done.gguf: already finished\n"));
        assert_non_null(strstr(json, "\"outcome\": \"already finished\""));
        if (validator_exists())
            assert_true(validates("export.schema.json", json));
        mica_string_free(text);
        mica_string_free(json);
        assert_int_equal(stat(scratch(last), &now), 0);
        assert_true(then.st_mtim.tv_sec == now.st_mtim.tv_sec && then.st_mtim.tv_nsec == now.st_mtim.tv_nsec && then.st_ino == now.st_ino);
        assert_int_equal(mica_file_replace(scratch(last), before.bytes, before.length - 32, NULL), MICA_OK);
        assert_refused(TINY, scratch("done.gguf"), &options, MICA_CONFLICT, "expected");
        mica_free(before.bytes);
    }
}

/* int4 becomes Q4_0, whose scales are float16: one that this would make infinite is refused by its place, those that only lose bits are
 * counted. */
static void test_scales_of_int4(void **state) {
    (void)state;
    static const char name[] = "model.layers.1.mlp.experts.1.gate_proj.weight";
    const struct {
        uint16_t scale; /* bfloat16 */
        bool refused;
    } cases[] = {{0x477f, false}, {0x3681, false}, {0x4780, true}, {0x7f80, true}, {0x7fc0, true}};
    if (!mica_path_exists(FIXTURES "/k2-thinking")) {
        print_message("no shared fixtures: skipped\n");
        skip();
    }
    copy_directory(FIXTURES "/k2-thinking", scratch("int4"));
    mica_model *model = NULL;
    assert_int_equal(mica_model_open(scratch("int4"), &(mica_model_options){.strict = false}, &model, NULL), MICA_OK);
    const mica_tensor *scales = mica_model_weight(model, name)->scale;
    assert_int_equal(scales->dtype, MICA_BF16);
    assert_int_equal(scales->shape[1], 3);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mica_file *file = NULL;
        assert_int_equal(mica_file_open_update(mica_file_path(mica_model_file(model, scales)), &file, NULL), MICA_OK);
        const uint64_t offset = scales->offset + (7 * 3 + 2) * sizeof cases[i].scale;
        assert_int_equal(mica_file_write(file, offset, &cases[i].scale, sizeof cases[i].scale, NULL), MICA_OK);
        assert_int_equal(mica_file_close(file, NULL), MICA_OK);
        const mica_export_gguf_options options = {.type = "source", .force = true};
        if (cases[i].refused) {
            assert_refused(scratch("int4"), scratch("int4.gguf"), &options, MICA_BAD_INPUT, name);
            assert_refused(scratch("int4"), scratch("int4.gguf"), &options, MICA_BAD_INPUT, "finite in Q4_0");
            assert_refused(scratch("int4"), scratch("int4.gguf"), &options, MICA_BAD_INPUT, "[7,64]");
            continue;
        }
        char *json = NULL;
        assert_int_equal(mica_export_gguf(scratch("int4"), scratch("int4.gguf"), &options, NULL, &json, NULL), MICA_OK);
        assert_non_null(strstr(json, cases[i].scale == 0x3681 ? "\"inexact_scales\": 1" : "\"inexact_scales\": 0"));
        mica_string_free(json);
    }
    mica_model_close(model);
}

static void test_report(void **state) {
    (void)state;
    char *text = NULL, *json = NULL;
    assert_int_equal(mica_export_gguf(TINY, scratch("report.gguf"), &(mica_export_gguf_options){.type = "q4_k_m"}, &text, &json, NULL),
                     MICA_OK);
    assert_non_null(strstr(text, "Q5_0 for Q4_K in 9 tensors whose rows of 128"));
    if (validator_exists())
        assert_true(validates("export.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
    assert_int_equal(mica_export_gguf(TINY, NULL, &(mica_export_gguf_options){.dry_run = true}, &text, &json, NULL), MICA_OK);
    assert_non_null(strstr(text, "estimate"));
    if (validator_exists())
        assert_true(validates("export.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_copies_and_experts),
                                       cmocka_unit_test(test_latent_halves),
                                       cmocka_unit_test(test_threads_and_instruction_sets),
                                       cmocka_unit_test(test_resume_gives_the_same_bytes), cmocka_unit_test(test_finished_is_left_alone),
                                       cmocka_unit_test(test_split),
                                       cmocka_unit_test(test_full_disk),
                                       cmocka_unit_test(test_without_memory),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_two_runs),
                                       cmocka_unit_test(test_scales_of_int4),
                                       cmocka_unit_test(test_report)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
