/* bench_import: `mica import` of a synthetic checkpoint of Kimi-K2's dimensions (8.5 GB; one layer, 186 experts, fp8) beside its peer, `cp
 * --reflink=never` and `sync` of the same files, in turns on the same disk: GB/s of each, the ratio of each round, the import's memory; then a
 * second import of the same model, of which nothing is to be stored. Before each run the source's files are dropped from the page cache. Both
 * times end when sync returns. Makes the checkpoint (make_checkpoint) where --data has none, and removes what it made, unless --keep. */
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "bench.h"

enum { ROUNDS_MAX = 20, RATIO_AIM_PERCENT = 80, PEAK_AIM_MB = 300 };

extern char **environ;

static char *tools, *data;
static char experts[24] = "186";
static uint64_t rounds = 3;
static bool keep;

/* Runs a program to its end, its output to our standard error, and then sync. Seconds; *peak_bytes (may be NULL): its resident set. */
static double call_and_sync(char *const arguments[], double *peak_bytes) {
    pid_t child;
    int outcome;
    struct rusage used;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    const double begin = mica_seconds_now();
    if (posix_spawnp(&child, arguments[0], &actions, NULL, arguments, environ) != 0)
        fail("%s: cannot run it", arguments[0]);
    posix_spawn_file_actions_destroy(&actions);
    if (wait4(child, &outcome, 0, &used) != child || !WIFEXITED(outcome) || WEXITSTATUS(outcome) != 0)
        fail("%s failed", arguments[0]);
    sync();
    if (peak_bytes)
        *peak_bytes = 1024.0 * (double)used.ru_maxrss;
    return mica_seconds_now() - begin;
}

static void make_checkpoint(char *checkpoint) {
    char *program = path_of(tools, "make_checkpoint");
    char *const arguments[] = {program, "--spectrum", "flat", "--experts", experts, checkpoint, NULL};
    fprintf(stderr, "bench_import: making %s\n", checkpoint);
    (void)call_and_sync(arguments, NULL);
    mica_free(program);
}

static double time_copy(char *checkpoint, uint64_t *bytes) {
    char *copy = path_of(data, "copy");
    char *const arguments[] = {"cp", "--reflink=never", "-r", checkpoint, copy, NULL};
    remove_tree(copy);
    *bytes = drop_files_from_cache(checkpoint);
    const double seconds = call_and_sync(arguments, NULL);
    remove_tree(copy);
    mica_free(copy);
    return seconds;
}

static double time_import(char *checkpoint, char *store, char *name, double *peak_bytes) {
    char *program = path_of(tools, "../mica");
    char *const arguments[] = {program, "import", checkpoint, "-o", store, "--as", name, NULL};
    (void)drop_files_from_cache(checkpoint);
    const double seconds = call_and_sync(arguments, peak_bytes);
    mica_free(program);
    return seconds;
}

static void measure(char *checkpoint) {
    char *store = path_of(data, "store");
    double ratios[ROUNDS_MAX], worst_peak = 0, again = 0, peak;
    uint64_t bytes = 0;
    printf("round   cp + sync      import       ratio   import's peak\n");
    for (uint64_t round = 0; round < rounds; round++) {
        double copy = round % 2 ? 0 : time_copy(checkpoint, &bytes), import;
        remove_tree(store);
        import = time_import(checkpoint, store, "one", &peak);
        worst_peak = peak > worst_peak ? peak : worst_peak;
        if (round + 1 == rounds)
            again = time_import(checkpoint, store, "two", &peak);
        remove_tree(store);
        if (round % 2) /* who is first takes turns */
            copy = time_copy(checkpoint, &bytes);
        ratios[round] = copy / import;
        printf("%5" PRIu64 "   %6.3f GB/s   %6.3f GB/s   %5.2f   %6.1f MB\n", round + 1, 1e-9 * (double)bytes / copy, 1e-9 * (double)bytes / import,
               ratios[round], 1e-6 * worst_peak);
        fflush(stdout);
    }
    for (uint64_t i = 1; i < rounds; i++) /* few: sorted by insertion */
        for (uint64_t j = i; j > 0 && ratios[j] < ratios[j - 1]; j--) {
            const double swapped = ratios[j];
            ratios[j] = ratios[j - 1];
            ratios[j - 1] = swapped;
        }
    printf("median ratio %.2f (aim: at least %.2f), worst %.2f; peak %.0f MB (aim: below %d); the same model again: %.3f GB/s\n", ratios[rounds / 2],
           RATIO_AIM_PERCENT / 100.0, ratios[0], 1e-6 * worst_peak, PEAK_AIM_MB, 1e-9 * (double)bytes / again);
    mica_free(store);
}

static void read_options(int count, char **arguments) {
    static const struct option rows[] = {{"data", 1, NULL, 'd'}, {"keep", 0, NULL, 'k'}, {"rounds", 1, NULL, 'r'}, {"experts", 1, NULL, 'e'}, {0}};
    for (int got; (got = getopt_long(count, arguments, "", rows, NULL)) != -1;) {
        switch (got) {
        case 'd': data = optarg; break;
        case 'k': keep = true; break;
        case 'r': rounds = strtoull(optarg, NULL, 10); break;
        case 'e': snprintf(experts, sizeof experts, "%s", optarg); break;
        default: fail("expected [--data DIR] [--keep] [--rounds N] [--experts N]");
        }
    }
    if (rounds < 1 || rounds > ROUNDS_MAX)
        fail("--rounds: expected 1 to %d", ROUNDS_MAX);
}

int main(int count, char **arguments) {
    char self[PATH_MAX], *made = NULL;
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    read_options(count, arguments);
    if (length < 0)
        fail("/proc/self/exe: %m");
    self[length] = '\0';
    *strrchr(self, '/') = '\0';
    tools = self;
    if (!data)
        data = made = make_directory();
    char *checkpoint = path_of(data, "k2"), *config = path_of(checkpoint, "config.json");
    const bool there = mica_path_exists(config);
    if (!there)
        make_checkpoint(checkpoint);
    double load[1] = {0};
    (void)getloadavg(load, 1);
    printf("load %.1f at the start\n", load[0]);
    fflush(stdout);
    measure(checkpoint);
    if (!keep && !there)
        remove_tree(checkpoint);
    if (!keep && made)
        remove_tree(made);
    mica_free(config);
    mica_free(checkpoint);
    return 0;
}
