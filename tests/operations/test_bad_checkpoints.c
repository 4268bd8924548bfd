/* test_bad_checkpoints.c: the hundred damaged and odd checkpoints of the fixtures: inspect refuses what shows at opening, verify also
 * what shows in the data; each message names what cases.json says. And links, which the fixtures
 * cannot hold: dangling, to itself, to elsewhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "operations/verify.h"

#define BAD MICA_SOURCE_DIR "/../shared/fixtures/public/bad"
#define TINY_K2 MICA_SOURCE_DIR "/models/tiny-k2"

typedef struct outcome {
    mica_status status;
    char *text; /* the error's message, or the report */
} outcome;

static outcome run(const char *path, bool verify) {
    char *text = NULL;
    mica_error error = {0};
    mica_status status = verify ? mica_verify_checkpoint(path, NULL, &text, NULL, &error) : mica_inspect(path, NULL, &text, NULL, &error);
    if (status != MICA_OK) {
        assert_int_equal(error.status, status);
        mica_string_free(text);
        text = mica_strdup(error.message);
    }
    return (outcome){status, text};
}

/* "x|y" means either. */
static bool names(const char *text, const char *mention) {
    char copy[512], *rest = NULL;
    snprintf(copy, sizeof copy, "%s", mention);
    for (const char *one = strtok_r(copy, "|", &rest); one; one = strtok_r(NULL, "|", &rest)) {
        if (strstr(text, one))
            return true;
    }
    return false;
}

static unsigned complain(const char *name, const char *verb, const json_t *entry, const outcome *got, const char *why) {
    printf("%s %s (%s at %s): %s: status %d: %s\n", verb, name, json_string_value(json_object_get(entry, "verdict")),
           json_string_value(json_object_get(entry, "stage")), why, (int)got->status, got->text);
    return 1;
}

static unsigned judge(const char *name, const json_t *entry, bool verify) {
    const char *verdict = json_string_value(json_object_get(entry, "verdict")), *verb = verify ? "verify" : "inspect";
    bool shows = verify || strcmp(json_string_value(json_object_get(entry, "stage")), "open") == 0;
    bool reject = strcmp(verdict, "reject") == 0, warn = strcmp(verdict, "warn") == 0, either = strcmp(verdict, "either") == 0;
    char path[512];
    unsigned failures = 0;
    size_t index;
    json_t *mention;
    snprintf(path, sizeof path, "%s/%s", BAD, name);
    outcome got = run(path, verify);
    bool refused = got.status == MICA_BAD_INPUT || got.status == MICA_IO || got.status == MICA_CORRUPT;
    if (got.status != MICA_OK && !refused)
        failures += complain(name, verb, entry, &got, "an odd status");
    else if (refused != (reject && shows) && !either)
        failures += complain(name, verb, entry, &got, refused ? "refused" : "accepted");
    json_array_foreach(json_object_get(entry, "mention"), index, mention) {
        if (((reject && shows) || (warn && shows) || (either && refused)) && !names(got.text, json_string_value(mention)))
            failures += complain(name, verb, entry, &got, json_string_value(mention));
    }
    mica_free(got.text);
    return failures;
}

static void test_cases(void **state) {
    (void)state;
    json_t *cases = NULL, *entry;
    const char *name;
    unsigned failures = 0, count = 0;
    if (!mica_path_exists(BAD "/cases.json")) {
        printf("skipped: %s is not there\n", BAD);
        skip();
    }
    assert_int_equal(mica_json_load(BAD "/cases.json", 1u << 24, &cases, NULL), MICA_OK);
    json_object_foreach(cases, name, entry) {
        failures += judge(name, entry, false) + judge(name, entry, true);
        count++;
    }
    assert_true(count >= 100);
    assert_int_equal(failures, 0);
    json_decref(cases);
}

static void test_bases(void **state) {
    (void)state;
    static const char *const bases[] = {BAD "/_good", BAD "/_good_int4", BAD "/_good_v4", TINY_K2};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        if (!mica_path_exists(bases[i])) {
            printf("skipped: %s is not there\n", bases[i]);
            continue;
        }
        for (int verify = 0; verify < 2; verify++) {
            outcome got = run(bases[i], verify);
            if (got.status != MICA_OK || strstr(got.text, "warning"))
                fail_msg("%s: %s", bases[i], got.text);
            mica_free(got.text);
        }
    }
}

/* ---- links: a directory of links to the repository's model, one of which is made to point elsewhere */

static char directory[256];
static const char *const files[] = {"config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors",
                                    "model-00002-of-00003.safetensors",
                                    "model-00003-of-00003.safetensors"};
enum { FILE_COUNT = sizeof files / sizeof *files };

static int make_links(void **state) {
    (void)state;
    const char *parent = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/mica-test-XXXXXX", parent ? parent : P_tmpdir);
    int failed = mkdtemp(directory) == NULL;
    for (int i = 0; i < FILE_COUNT; i++) {
        char path[512], target[512];
        snprintf(path, sizeof path, "%s/%s", directory, files[i]);
        snprintf(target, sizeof target, "%s/%s", TINY_K2, files[i]);
        failed |= symlink(target, path);
    }
    return failed;
}

static int remove_links(void **state) {
    (void)state;
    for (int i = 0; i < FILE_COUNT; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", directory, files[i]);
        unlink(path);
    }
    return rmdir(directory);
}

static void relink(const char *name, const char *target) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink(target, path), 0);
}

static void test_links(void **state) {
    (void)state;
    for (int verify = 0; verify < 2; verify++) {
        outcome got = run(directory, verify);
        if (got.status != MICA_OK)
            fail_msg("%s", got.text);
        mica_free(got.text);
    }
    const char *const targets[] = {"nowhere", files[3], "/", "/dev/null"};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        relink(files[3], targets[i]);
        for (int verify = 0; verify < 2; verify++) {
            outcome got = run(directory, verify);
            if ((got.status != MICA_IO && got.status != MICA_BAD_INPUT) || !strstr(got.text, files[3]))
                fail_msg("a link to %s: status %d: %s", targets[i], (int)got.status, got.text);
            mica_free(got.text);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases), cmocka_unit_test(test_bases),
                                       cmocka_unit_test_setup_teardown(test_links, make_links, remove_links)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
