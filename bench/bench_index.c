/* bench_index: `mica index` on synthetic checkpoints of Kimi-K2's dimensions (one layer; 8, 16 and 32 experts, or as asked), with one and
 * two threads: is reading hidden behind the decomposition, does memory stay where it is, is time linear in experts, does the dry run
 * tell the truth. Makes the checkpoints (make_checkpoint) and removes what it made, unless --keep. Before each run the shards are dropped
 * from the page cache, and memory is touched and given back: in a virtual machine the host's part of a first touch may cost more than a
 * millisecond a megabyte, which is not what is measured here. Runs come in rounds, and of each kind the quickest counts. One table. */
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "base/threads.h"
#include "bench.h"
#include "numerics/svd.h"

#define FREE_BYTES_LEAST ((uint64_t)4 << 30)
#define REPORT_BYTES_MAX (1 << 20)
#define COUNTS_MAX 8
#define THREADS_MAX 2

#define WARM_BYTES ((size_t)256 << 20)

enum { RATIO_AIM_PERCENT = 110, PEAK_AIM_MB = 600 };

extern char **environ;

static char *tools, *data;
static bool keep;
static uint64_t counts[COUNTS_MAX] = {8, 16, 32}, count_count = 3, rounds = 3;
typedef struct run { /* one row of the table */
    uint64_t experts, threads;
    double wall, cpu, loop, work, svd, starved, read_bytes, peak_bytes; /* of the quickest run; the peak: of all */
    double estimate;
} run;

typedef struct usage { /* of a program that ended */
    double wall, cpu, peak_bytes;
} usage;

/* --- programs --- */

static double seconds_of(struct timeval time) { return (double)time.tv_sec + 1e-6 * (double)time.tv_usec; }

/* Runs it to its end; its standard output goes to `output` (NULL: to our standard error). */
static usage call(char *const arguments[], char *output) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) fail("pipe: %m");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, output ? ends[1] : STDERR_FILENO, STDOUT_FILENO);
    pid_t child;
    const double begin = mica_seconds_now();
    if (posix_spawn(&child, arguments[0], &actions, NULL, arguments, environ) != 0) fail("%s: cannot run it", arguments[0]);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    size_t length = 0;
    for (ssize_t got; output && (got = read(ends[0], output + length, REPORT_BYTES_MAX - 1 - length)) > 0;) length += (size_t)got;
    if (output) output[length] = '\0';
    close(ends[0]);
    int outcome;
    struct rusage used;
    if (wait4(child, &outcome, 0, &used) != child || !WIFEXITED(outcome) || WEXITSTATUS(outcome) != 0) fail("%s failed", arguments[0]);
    return (usage){mica_seconds_now() - begin, seconds_of(used.ru_utime) + seconds_of(used.ru_stime), 1024.0 * (double)used.ru_maxrss};
}

static double number(const json_t *report, const char *key) {
    const json_t *value = json_object_get(report, key);
    if (!json_is_number(value)) fail("the report of mica index has no number %s", key);
    return json_number_value(value);
}

/* `mica index`, into `vindex` or (NULL) as a dry run. Gives the report. */
static json_t *call_index(char *checkpoint, char *vindex, uint64_t threads, usage *used) {
    static char report[REPORT_BYTES_MAX];
    char thread_text[24];
    snprintf(thread_text, sizeof thread_text, "%" PRIu64, threads);
    char *program = path_of(tools, "../mica");
    char *const arguments[] = {program, "index", checkpoint, "--threads", thread_text, "--json", vindex ? "-o" : "--dry-run", vindex, NULL};
    *used = call(arguments, report);
    json_t *object;
    check(mica_json_parse("mica index --json", report, strlen(report), &object, &error));
    mica_free(program);
    return object;
}

/* --- data --- */

/* True when it was made now: config.json is what make_checkpoint writes last. */
static bool need_checkpoint(char *checkpoint, uint64_t experts) {
    char *config = path_of(checkpoint, "config.json"), *program = path_of(tools, "make_checkpoint");
    const bool there = mica_path_exists(config);
    if (!there) {
        struct statvfs space;
        if (statvfs(data, &space) == 0 && (uint64_t)space.f_bavail * space.f_frsize < FREE_BYTES_LEAST)
            fail("%s: less than 4 GiB free", data);
        remove_tree(checkpoint); /* one whose making was interrupted */
        char text[24];
        snprintf(text, sizeof text, "%" PRIu64, experts);
        call((char *const[]){program, "--experts", text, checkpoint, NULL}, NULL);
    }
    mica_free(config);
    mica_free(program);
    return !there;
}

/* In a process of its own: what we hold at most would count as our children's peak. */
static void warm_memory(void) {
    const pid_t child = fork();
    if (child == 0) {
        char *memory = mmap(NULL, WARM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory != MAP_FAILED) {
            (void)madvise(memory, WARM_BYTES, MADV_HUGEPAGE);
            memset(memory, 1, WARM_BYTES);
        }
        _exit(memory == MAP_FAILED);
    }
    if (child > 0) (void)waitpid(child, NULL, 0);
}

/* --- measuring --- */

static json_t *call_cold(char *checkpoint, char *vindex, uint64_t threads, usage *used) {
    (void)drop_files_from_cache(checkpoint);
    warm_memory();
    return call_index(checkpoint, vindex, threads, used);
}

/* Once more; in the first round a dry run before it. */
static void measure(char *checkpoint, run *row) {
    char *vindex = path_of(data, "vindex");
    usage used;
    json_t *report;
    if (row->wall == 0) {
        report = call_cold(checkpoint, NULL, row->threads, &used);
        row->estimate = 3600 * number(report, "estimated_hours");
        json_decref(report);
        remove_tree(vindex);
    }
    report = call_cold(checkpoint, vindex, row->threads, &used);
    if (used.peak_bytes > row->peak_bytes) row->peak_bytes = used.peak_bytes;
    if (row->wall == 0 || used.wall < row->wall) {
        row->wall = used.wall;
        row->cpu = used.cpu;
        row->loop = number(report, "seconds");
        row->work = number(report, "work_seconds");
        row->svd = number(report, "svd_seconds");
        row->starved = number(report, "starved_seconds");
        row->read_bytes = number(report, "bytes_read");
    }
    json_decref(report);
    remove_tree(vindex);
    mica_free(vindex);
}

static double ratio_of(const run *row) { return row->wall / (row->svd / (double)row->threads); }

/* `before`: with as many threads and fewer experts; NULL: there is none. */
static void print_row(const run *row, const run *before) {
    char added[16] = "";
    if (before && row->experts > before->experts)
        snprintf(added, sizeof added, "%.3f", (row->cpu - before->cpu) / (double)(row->experts - before->experts));
    printf("%7" PRIu64 " %7" PRIu64 " %7.2f %7.2f %7.2f %7.2f %8.3f %8.2f%% %6.0f %8.0f %7.2f %7s %10.2f %9.1f\n", row->experts,
           row->threads, row->wall, row->loop, row->svd, row->svd / (double)row->threads, ratio_of(row),
           100 * row->starved / (row->loop * (double)row->threads), 1e-6 * row->read_bytes / row->loop, 1e-6 * row->peak_bytes, row->cpu,
           added, row->estimate, 1e3 * (row->work - row->svd) / (double)row->experts);
}

static void measure_all(run *rows) {
    char *checkpoints[COUNTS_MAX];
    bool made[COUNTS_MAX];
    for (uint64_t i = 0; i < count_count; i++) {
        mica_text name = MICA_TEXT_INIT;
        mica_text_printf(&name, "%s/kimi_k2-fp8-%" PRIu64 "x2048x7168", data, counts[i]);
        checkpoints[i] = mica_text_take(&name);
        if (!checkpoints[i]) fail("out of memory");
        made[i] = need_checkpoint(checkpoints[i], counts[i]);
        for (uint64_t t = 0; t < THREADS_MAX; t++) rows[i * THREADS_MAX + t] = (run){.experts = counts[i], .threads = t + 1};
    }
    for (uint64_t round = 0; round < rounds; round++)
        for (uint64_t i = 0; i < count_count; i++)
            for (uint64_t t = 0; t < THREADS_MAX; t++) {
                fprintf(stderr, "bench_index: round %" PRIu64 " of %" PRIu64 ": %" PRIu64 " experts, %" PRIu64 " threads\n", round + 1,
                        rounds, counts[i], t + 1);
                measure(checkpoints[i], &rows[i * THREADS_MAX + t]);
            }
    for (uint64_t i = 0; i < count_count; i++) {
        if (made[i] && !keep) remove_tree(checkpoints[i]);
        mica_free(checkpoints[i]);
    }
}

static void print_table(const run *rows) {
    printf("%7s %7s %7s %7s %7s %7s %8s %9s %6s %8s %7s %7s %10s %9s\n", "experts", "threads", "wall s", "loop s", "SVD s", "SVD/thr",
           "ratio", "starved", "MB/s", "peak MB", "CPU s", "added", "dry run s", "other ms");
    for (uint64_t i = 0; i < count_count * THREADS_MAX; i++) print_row(&rows[i], i < THREADS_MAX ? NULL : &rows[i - THREADS_MAX]);
    printf("wall: the whole program; loop: its streaming part; SVD: sum over units of the decomposition alone; ratio: wall / (SVD /\n"
           "threads); starved: share of thread time that waited for input; added: CPU seconds for each expert more than in the rows\n"
           "above; other: hashing, examining and statistics, per expert\n");
    const run *last = &rows[count_count * THREADS_MAX - 1];
    printf("%" PRIu64 " experts, %" PRIu64 " threads: ratio %.3f (aim %.2f), peak %.0f MB (aim %d)\n", last->experts, last->threads,
           ratio_of(last), RATIO_AIM_PERCENT / 100.0, 1e-6 * last->peak_bytes, PEAK_AIM_MB);
}

/* --- the program --- */

static void parse_options(int count, char **arguments) {
    static const struct option known[] = {{"data", 1, 0, 'd'}, {"keep", 0, 0, 'k'}, {"experts", 1, 0, 'e'}, {"rounds", 1, 0, 'r'}, {0}};
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;) {
        if (option == 'd') data = path_of(optarg, "");
        else if (option == 'k') keep = true;
        else if (option == 'e') count_count = parse_list("--experts", optarg, counts, COUNTS_MAX);
        else if (option == 'r' && strtoull(optarg, NULL, 10) > 0) rounds = strtoull(optarg, NULL, 10);
        else exit(2);
    }
    if (optind < count) fail("expected [--data DIRECTORY] [--keep] [--experts 8,16,32] [--rounds 3]");
}

int main(int count, char **arguments) {
    static char program[PATH_MAX];
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) fail("/proc/self/exe: %m");
    *strrchr(program, '/') = '\0';
    tools = program;
    parse_options(count, arguments);
    if (!data) data = path_of(tools, "../bench-data");
    unsetenv("OPENBLAS_CORETYPE"); /* both make OpenBLAS other than it is */
    unsetenv("OPENBLAS_L2_SIZE");
    const bool fresh = !mica_path_exists(data);
    check(mica_directory_create(data, &error));
    double load = 0;
    (void)getloadavg(&load, 1);
    run rows[COUNTS_MAX * THREADS_MAX];
    measure_all(rows);
    if (fresh && !keep) (void)rmdir(data);
    printf("one layer of Kimi-K2's dimensions (gate 2048 x 7168, fp8 128 x 128, spiked-flat); the quickest of %" PRIu64 " rounds;\n"
           "%s; %u processors, load %.1f before\n", rounds, mica_svd_arithmetic(), mica_thread_count_default(), load);
    print_table(rows);
    return 0;
}
