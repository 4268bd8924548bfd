/* test_layer_pass.c: a pass that ended anywhere goes on with the same result: route and imatrix, stopped at every call of the progress
 * function, failing at every call of the disk, resumed with other threads and memory; what a resume refuses; what is left behind, which is
 * nothing where nothing was kept. */
#include "export_helpers.h"

#include <mica/imatrix.h>

#include "base/journal.h"
#include "base/no_memory.h"
#include "faults/faulty_io.h"
#include "operations/layer_states.h"
#include "operations/pass_journal.h"

#define STATS "routing/phase3_routing_stats.json"
enum { WINDOW = 32 };
#ifdef __SANITIZE_THREAD__
enum { SPREAD = 8 }; /* of many rounds alike every eighth: a run takes a second */
#else
enum { SPREAD = 1 };
#endif

/* ---- planes of activations */

static void fill(float x[6], float first) {
    for (int i = 0; i < 6; i++)
        x[i] = first + (float)i;
}

/* Written in one kind of planes, kept, read in the other kind. */
static void test_states_kept(void **state) {
    (void)state;
    for (int kinds = 0; kinds < 4; kinds++) {
        const uint64_t limits[2] = {kinds & 1 ? 72 : 71, kinds & 2 ? 72 : 71};
        mica_states states;
        float x[6], back[6];
        assert_int_equal(mica_states_open(&states, 3, 2, 3, limits[0], NULL), MICA_OK);
        assert_int_equal(states.memory != NULL, limits[0] == 72);
        assert_int_equal(mica_states_attach(&states, scratch("planes"), true, NULL), MICA_OK);
        for (uint64_t plane = 0; plane < 3; plane++) {
            fill(x, (float)plane * 10);
            assert_int_equal(mica_states_write(&states, plane, 0, 2, x, NULL), MICA_OK);
            assert_int_equal(mica_states_read(&states, plane, 1, 1, back, NULL), MICA_OK);
            assert_memory_equal(x + 3, back, 3 * sizeof *x);
        }
        assert_int_equal(mica_states_keep(&states, 1, NULL), MICA_OK);
        fill(x, 99);
        assert_int_equal(mica_states_write(&states, 0, 0, 2, x, NULL), MICA_OK);
        mica_states_close(&states);
        assert_int_equal(mica_states_open(&states, 3, 2, 3, limits[1], NULL), MICA_OK);
        assert_int_equal(mica_states_attach(&states, scratch("planes"), false, NULL), MICA_OK);
        assert_int_equal(mica_states_recall(&states, 1, NULL), MICA_OK);
        assert_int_equal(mica_states_read(&states, 1, 0, 2, back, NULL), MICA_OK);
        fill(x, 10);
        assert_memory_equal(x, back, sizeof x);
        mica_states_close(&states);
    }
}

static void test_states_lost(void **state) {
    (void)state;
    mica_states states;
    mica_error error;
    assert_int_equal(mica_states_open(&states, 3, 2, 3, 0, NULL), MICA_OK);
    assert_int_equal(mica_states_attach(&states, scratch("no planes"), false, &error), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "the file is gone"));
    scratch_write("no planes", "x", 1);
    assert_int_equal(mica_states_attach(&states, scratch("no planes"), false, &error), MICA_CONFLICT);
    assert_non_null(strstr(error.message, "expected at least 48 bytes of the run before, got 1"));
    mica_states_close(&states);
}

/* ---- the two operations, as small as they go */

typedef struct stopper {
    int calls, stop_at; /* 0: never */
} stopper;

static bool count_and_stop(void *context, const mica_progress *progress) {
    stopper *s = context;
    (void)progress;
    return ++s->calls != s->stop_at;
}

typedef struct trial { /* how one run is made */
    bool imatrix, resume, force, exact, plain, fewer, touched;
    uint32_t threads;
    uint64_t memory, context;
    int stop_at, calls; /* calls: out */
    const char *output;
    char **report; /* the text */
} trial;

static const char *checkpoint = TINY;

static mica_status run(trial *t, mica_error *error) {
    stopper s = {.stop_at = t->stop_at};
    const mica_compute_options compute = {.exact = t->exact,
                                          .threads = t->threads ? t->threads : 2,
                                          .memory_bytes = t->memory,
                                          .context = t->context   ? t->context
                                                     : t->imatrix ? WINDOW
                                                                  : 0,
                                          .progress = count_and_stop,
                                          .progress_context = &s};
    mica_status status;
    if (t->imatrix) {
        static char ids[64 * 6];
        size_t length = 0;
        for (uint32_t i = 0; i < (t->fewer ? 32u : 64u); i++)
            length += (size_t)snprintf(ids + length, sizeof ids - length, "%s%u", i ? "," : "", (i * 131 + 7) % 3800);
        const mica_prompt prompt = {.ids = ids};
        const mica_imatrix_options own = {
            .dataset = "ids", .covariance = !t->plain, .sensitivity = true, .own_bytes = 1, .force = t->force, .resume = t->resume};
        status = mica_imatrix_collect(checkpoint, t->output, &compute, &own, &prompt, t->report, NULL, error);
    } else {
        const char *text = t->fewer ? "3840,367,450,267\n" : "3840,367,450,267,597,2439,300\n3840,40,989,425,11,658\n";
        scratch_write("prompts.ids", text, strlen(text));
        const mica_route_options options = {.compute = compute, .ids = scratch("prompts.ids"), .force = t->force, .resume = t->resume};
        status = mica_route(checkpoint, t->output, &options, t->report, error);
    }
    t->calls = s.calls;
    return status;
}

static void must(trial t, mica_status status, const char *part) {
    mica_error error = {MICA_OK, ""};
    const mica_status got = run(&t, &error);
    if (got != status || (part && !strstr(error.message, part)))
        fail_msg("expected \"%s\" (...%s...), got \"%s\": %s", mica_status_text(status), part ? part : "", mica_status_text(got),
                 error.message);
}

static const char *const outputs[2] = {"routing", "m.gguf"}, *const results[2] = {STATS, "m.gguf"};
static loaded_file whole[2];

static trial trial_of(int imatrix) {
    static char paths[2][512];
    snprintf(paths[imatrix], sizeof paths[0], "%s/%s", scratch_directory, outputs[imatrix]);
    return (trial){.imatrix = imatrix, .output = paths[imatrix]};
}

/* What a run leaves beside its result. */
static uint64_t leftovers(int imatrix) {
    static const char *const suffixes[] = {"journal", "activations.partial", "noise.partial", "partial"};
    uint64_t found = 0;
    for (int i = 0; i < 4; i++) {
        char name[96];
        snprintf(name, sizeof name, "%s.%s", results[imatrix], suffixes[i]);
        found += mica_path_exists(scratch(name));
    }
    return found;
}

static void check_whole(int imatrix) {
    loaded_file got = load(scratch(results[imatrix]));
    assert_int_equal(got.length, whole[imatrix].length);
    assert_memory_equal(got.bytes, whole[imatrix].bytes, got.length);
    mica_free(got.bytes);
    assert_int_equal(leftovers(imatrix), 0);
}

static void forget(int imatrix) {
    scratch_remove_tree(scratch(outputs[imatrix]));
    for (int i = 0; i < 4; i++) {
        static const char *const suffixes[] = {"journal", "activations.partial", "noise.partial", "partial"};
        char name[96];
        snprintf(name, sizeof name, "m.gguf.%s", suffixes[i]);
        if (imatrix)
            unlink(scratch(name));
    }
}

static void make_whole(void **state) {
    (void)state;
    for (int imatrix = 0; imatrix < 2; imatrix++) {
        must(trial_of(imatrix), MICA_OK, NULL);
        whole[imatrix] = load(scratch(results[imatrix]));
        assert_int_equal(leftovers(imatrix), 0);
    }
}

/* ---- stopped */

/* At every call of the progress function, and resumed at once. */
static void test_stopped_anywhere(void **state) {
    (void)state;
    for (int imatrix = 0; imatrix < 2; imatrix++) {
        bool stopped = true;
        int kept = 0;
        for (int n = 1; stopped; n += SPREAD) {
            trial t = trial_of(imatrix);
            mica_error error;
            forget(imatrix);
            t.stop_at = n;
            stopped = run(&t, &error) == MICA_INTERRUPTED;
            if (!stopped)
                break;
            assert_false(mica_path_exists(scratch(results[imatrix])));
            const bool none = strstr(error.message, "stopped after 0 of 5 layers") && !strstr(error.message, "second");
            assert_int_equal(leftovers(imatrix) > 0, !none);
            if (!none)
                must(trial_of(imatrix), MICA_CONFLICT, "an unfinished run is there; go on with --resume, or start afresh with --force");
            kept += !none;
            t = trial_of(imatrix);
            t.resume = true;
            t.threads = 1 + (uint32_t)n % 3;
            must(t, MICA_OK, NULL);
            check_whole(imatrix);
        }
        check_whole(imatrix);
        assert_true(kept >= 8 / SPREAD);
    }
}

/* Again and again, a layer or two at a time: each run must come further, or the loop would not end. */
static void test_stopped_often(void **state) {
    (void)state;
    for (int imatrix = 0; imatrix < 2; imatrix++) {
        mica_error error;
        mica_status status = MICA_INTERRUPTED;
        int runs = 0;
        forget(imatrix);
        for (; status == MICA_INTERRUPTED && runs < 20; runs++) {
            trial t = trial_of(imatrix);
            t.stop_at = imatrix ? 9 : 4; /* a layer of the second pass has up to 7 calls */
            t.resume = true;
            t.threads = 1 + (uint32_t)runs % 2;
            status = run(&t, &error);
        }
        assert_int_equal(status, MICA_OK);
        assert_true(runs >= 4);
        check_whole(imatrix);
    }
}

/* A little more than the budget that a refusal asks for: what a process has besides grows from call to call. */
static uint64_t budget_asked_for(const mica_error *error) {
    const char *least = strstr(error->message, "expected at least ");
    char *unit = NULL;
    const double size = least ? strtod(least + strlen("expected at least "), &unit) : 0;
    assert_non_null(unit);
    return (uint64_t)(size * (strncmp(unit, " GiB", 4) == 0 ? 0x1p30 : 0x1p20)) + (1u << 19);
}

/* With the smallest budget that is taken, whose experts come in groups. */
static void test_other_memory(void **state) {
    (void)state;
    for (int imatrix = 0; imatrix < 2; imatrix++) {
        mica_error error;
        trial t = trial_of(imatrix);
        forget(imatrix);
        t.stop_at = 6;
        must(t, MICA_INTERRUPTED, "stopped after 2 of 5 layers");
        t.resume = true;
        t.stop_at = 0;
        t.threads = 1;
        t.memory = 30u << 20;
        while (run(&t, &error) == MICA_USAGE)
            t.memory = budget_asked_for(&error);
        check_whole(imatrix);
    }
}

static bool stop_in_third_layer(void *context, const mica_progress *progress) {
    (void)context;
    return progress->units_done < 2;
}

/* With the least budget that is taken, or any. */
static mica_status route_within(mica_route_options *options, bool least) {
    mica_error error = {MICA_OK, ""};
    mica_status status;
    options->compute.memory_bytes = least ? 30u << 20 : 0;
    while ((status = mica_route(TINY, trial_of(0).output, options, NULL, &error)) == MICA_USAGE && least)
        options->compute.memory_bytes = budget_asked_for(&error);
    if (status != MICA_OK && status != MICA_INTERRUPTED)
        fail_msg("%s", error.message);
    return status;
}

/* Activations in a file (more than an eighth of the budget), then in memory, and the other way round; and never a resume. */
static void test_activations_move(void **state) {
    (void)state;
    enum { PROMPTS = 120, LENGTH = 36 }; /* three planes of 4.4 MB */
    static char prompts[PROMPTS * LENGTH * 6];
    uint64_t length = 0;
    loaded_file all[3];
    for (int p = 0; p < PROMPTS; p++)
        for (int t = 0; t < LENGTH; t++)
            length += (uint64_t)snprintf(prompts + length, sizeof prompts - length, "%d%c", (p * 131 + t * 37 + 7) % 3800,
                                         t + 1 < LENGTH ? ',' : '\n');
    scratch_write("many.ids", prompts, length);
    for (int way = 0; way < 3; way++) {
        mica_route_options options = {.ids = scratch("many.ids"),
                                      .compute = {.threads = 2, .progress = way < 2 ? stop_in_third_layer : NULL}};
        forget(0);
        if (way < 2) {
            assert_int_equal(route_within(&options, way == 0), MICA_INTERRUPTED);
            loaded_file activations = load(scratch(STATS ".activations.partial"));
            const uint64_t planes = activations.length / (PROMPTS * LENGTH * 256 * sizeof(float));
            mica_free(activations.bytes);
            if (way == 0 && planes == 2) /* with a sanitizer */
                print_message("this process is so large that they are in memory both times\n");
            else
                assert_int_equal(planes, way == 0 ? 3 : 2);
            options.resume = true;
            options.compute.progress = NULL;
        }
        assert_int_equal(route_within(&options, way == 1), MICA_OK);
        all[way] = load(scratch(STATS));
    }
    for (int way = 0; way < 3; way++) {
        assert_int_equal(all[way].length, all[2].length);
        assert_memory_equal(all[way].bytes, all[2].bytes, all[2].length);
    }
    for (int way = 0; way < 3; way++)
        mica_free(all[way].bytes);
}

/* ---- refused */

static void test_other_jobs(void **state) {
    (void)state;
    for (int finished = 0; finished < 2; finished++)
        for (int imatrix = 0; imatrix < 2; imatrix++) {
            trial t = trial_of(imatrix);
            forget(imatrix);
            t.stop_at = finished ? 0 : 6;
            must(t, finished ? MICA_OK : MICA_INTERRUPTED, NULL);
            const loaded_file before = load(scratch(finished ? results[imatrix] : imatrix ? "m.gguf.journal" : STATS ".journal"));
            t.stop_at = 0;
            t.resume = true;
            t.exact = true;
            must(t, MICA_CONFLICT,
                 "precision differs: it has \"fast\", today's is \"exact\"; resume with the same, or start afresh with --force");
            t.exact = false;
            t.fewer = true;
            must(t, MICA_CONFLICT, "differs: it has");
            t.fewer = false;
            t.context = imatrix ? 16 : 6;
            must(t, MICA_CONFLICT, "window differs");
            t.context = 0;
            t.plain = true;
            must(t, imatrix ? MICA_CONFLICT : MICA_OK, imatrix ? "covariance_bytes differs" : NULL);
            if (imatrix) { /* nothing was touched, and the right job goes on */
                const loaded_file after = load(scratch(finished ? results[imatrix] : "m.gguf.journal"));
                assert_int_equal(after.length, before.length);
                assert_memory_equal(after.bytes, before.bytes, before.length);
                mica_free(after.bytes);
            }
            mica_free(before.bytes);
            t.plain = false;
            must(t, MICA_OK, NULL);
            check_whole(imatrix);
            t.force = true;
            must(t, MICA_USAGE, "--resume and --force");
        }
}

/* A copy is another source to an unfinished run, for its files may have changed since; to a finished one only what its headers say
 * counts. */
static void test_other_checkpoint(void **state) {
    (void)state;
    char command[1300];
    snprintf(command, sizeof command, "cp -r %s %s && touch -d 2001-01-01 %s/*.safetensors", TINY, scratch("copy"), scratch("copy"));
    assert_int_equal(system(command), 0);
    for (int imatrix = 0; imatrix < 2; imatrix++) {
        trial t = trial_of(imatrix);
        forget(imatrix);
        t.stop_at = 6;
        must(t, MICA_INTERRUPTED, NULL);
        t.stop_at = 0;
        t.resume = true;
        checkpoint = scratch("copy");
        must(t, MICA_CONFLICT, "shards differs");
        checkpoint = TINY;
        must(t, MICA_OK, NULL);
        check_whole(imatrix);
    }
}

static void test_finished(void **state) {
    (void)state;
    for (int imatrix = 0; imatrix < 2; imatrix++) {
        char *report = NULL;
        trial t = trial_of(imatrix);
        forget(imatrix);
        t.resume = true; /* on nothing: starts */
        must(t, MICA_OK, NULL);
        t.report = &report;
        must(t, MICA_OK, NULL);
        assert_non_null(strstr(report, "already finished"));
        mica_string_free(report);
        t = trial_of(imatrix);
        must(t, MICA_CONFLICT, "is there already; replace it with --force");
        t.force = true;
        t.stop_at = 6;
        must(t, MICA_INTERRUPTED, NULL); /* the old result stays until the new one is whole */
        t.force = false;
        t.resume = true;
        t.stop_at = 0;
        must(t, MICA_OK, NULL);
        check_whole(imatrix);
    }
}

static void test_one_at_a_time(void **state) {
    (void)state;
    for (int imatrix = 0; imatrix < 2; imatrix++) {
        int lock;
        trial t = trial_of(imatrix);
        forget(imatrix);
        t.stop_at = 6;
        must(t, MICA_INTERRUPTED, NULL);
        assert_int_equal(mica_path_lock(scratch(imatrix ? "m.gguf.journal" : STATS ".journal"), "busy", &lock, NULL), MICA_OK);
        t.stop_at = 0;
        t.resume = true;
        must(t, MICA_CONFLICT, "another run is at work there");
        t.resume = false;
        t.force = true;
        must(t, MICA_CONFLICT, "another run is at work there");
        mica_path_unlock(lock);
        must(t, MICA_OK, NULL);
        check_whole(imatrix);
    }
}

/* Records that are sound to the journal, and say what no run says. */
static mica_status no_visit(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    (void)context, (void)kind, (void)payload, (void)bytes, (void)error;
    return MICA_OK;
}

static void test_wrong_records(void **state) {
    (void)state;
    const uint64_t layer = 2, other = 4, long_one[3] = {2, 8, 0}, too_long[2] = {2, UINT64_MAX};
    const struct {
        uint32_t kind;
        const void *payload;
        uint64_t bytes;
    } records[] = {
        {MICA_PASS_LAYER, &layer, 7},    {MICA_PASS_LAYER, &layer, 8},    {MICA_PASS_LAYER, &other, 8}, {MICA_PASS_LAYER, long_one, 24},
        {MICA_PASS_LAYER, too_long, 16}, {MICA_PASS_NOISE, too_long, 16}, {MICA_PASS_NOISE, &layer, 8}, {77, &layer, 8}};
    for (size_t i = 0; i < sizeof records / sizeof *records; i++)
        for (int imatrix = 0; imatrix < 2; imatrix++) {
            mica_journal *journal;
            trial t = trial_of(imatrix);
            forget(imatrix);
            t.stop_at = 6;
            must(t, MICA_INTERRUPTED, "stopped after 2 of 5 layers");
            assert_int_equal(mica_journal_open(scratch(imatrix ? "m.gguf.journal" : STATS ".journal"), no_visit, NULL, &journal, NULL),
                             MICA_OK);
            assert_int_equal(mica_journal_append(journal, records[i].kind, records[i].payload, records[i].bytes, NULL), MICA_OK);
            mica_journal_close(journal);
            t.stop_at = 0;
            t.resume = true;
            must(t, MICA_CORRUPT, NULL);
        }
}

/* ---- the disk fails */

static void test_failing_disk(void **state) {
    (void)state;
    static const call_kind kinds[] = {PWRITE, FSYNC, RENAME, UNLINK, FTRUNCATE};
    uint32_t calls[KINDS];
    for (int imatrix = 0; imatrix < 2; imatrix++)
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            mica_error error;
            forget(imatrix);
            memset(&fault, 0, sizeof fault);
            mica_io_install(&faulty);
            must(trial_of(imatrix), MICA_OK, NULL);
            memcpy(calls, fault.calls, sizeof calls);
            assert_true(calls[kinds[k]] > 0);
            const uint32_t count = calls[kinds[k]], step = SPREAD * (1 + count / 30);
            for (uint32_t n = 1 + k % step; n <= count; n += step) {
                trial t = trial_of(imatrix);
                mica_io_install(NULL);
                forget(imatrix);
                memset(&fault, 0, sizeof fault);
                fault.kind = kinds[k];
                fault.countdown = n;
                fault.failure = ENOSPC;
                fault.forever = true;
                mica_io_install(&faulty);
                const mica_status status = run(&t, &error);
                fault.kind = NONE;
                if (status != MICA_OK && status != MICA_IO)
                    fail_msg("call %u of kind %d fails: got \"%s\": %s", n, (int)kinds[k], mica_status_text(status), error.message);
                if (status == MICA_IO && kinds[k] != UNLINK && kinds[k] != FSYNC) /* else it may have come so far */
                    assert_false(mica_path_exists(scratch(results[imatrix])));
                t = trial_of(imatrix);
                t.resume = true;
                must(t, MICA_OK, NULL);
                check_whole(imatrix);
                assert_int_equal(fault.open_files, 0);
            }
            mica_io_install(NULL);
        }
}

/* ---- and memory */

static void test_no_memory(void **state) {
    (void)state;
    for (int imatrix = 0; imatrix < 2; imatrix++)
        for (no_memory round = {.may_do_without = true, .stride = 41 * SPREAD}; no_memory_next(&round);) { /* without compiled patterns */
            mica_error error = {MICA_OK, ""};
            trial t = trial_of(imatrix);
            forget(imatrix);
            no_memory_begin(&round);
            const mica_status status = run(&t, &error);
            no_memory_end(&round, status, MICA_OK, &error);
            if (round.nth % 5 && !round.succeeded)
                continue;
            t.resume = true;
            must(t, MICA_OK, NULL);
            check_whole(imatrix);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_states_kept),      cmocka_unit_test(test_states_lost),   cmocka_unit_test(make_whole),
        cmocka_unit_test(test_stopped_anywhere), cmocka_unit_test(test_stopped_often), cmocka_unit_test(test_other_memory),
        cmocka_unit_test(test_activations_move), cmocka_unit_test(test_other_jobs),    cmocka_unit_test(test_other_checkpoint),
        cmocka_unit_test(test_finished),         cmocka_unit_test(test_one_at_a_time), cmocka_unit_test(test_wrong_records),
        cmocka_unit_test(test_failing_disk),     cmocka_unit_test(test_no_memory)};
    const int failed = cmocka_run_group_tests(tests, scratch_make, scratch_remove);
    for (int i = 0; i < 2; i++)
        mica_free(whole[i].bytes);
    return failed;
}
