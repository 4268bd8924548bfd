/* bench_experts: decoding a model whose routed experts do not all fit into memory: the engine's cache against the page cache, each in a control
 * group of the same size. Not a test.
 *     bench_experts [--share 25,50,75] [--rounds 3] [--tokens 48] [--warm 48] [--threads 2] [--readers N] [--policy NAME] [--no-lookahead] [--alone]
 *                   [--llama LLAMA-BENCH] [--each COMMAND] FILE
 * For every share of the experts' bytes: the group's limit is the engine's --memory at which its cache holds that share (and 2 % for what the
 * kernel counts besides). In it run, one after the other, the file's pages dropped from the page cache before each:
 *     mica             as `mica run` has it: slots, O_DIRECT
 *     mmap             the same engine over mapped experts (bench/mapped_experts.c)
 *     mmap, WILLNEED   the same, each expert announced when it is chosen
 *     llama.cpp        llama-bench, mmap, as it is
 * The bound is the lesser of two rates that the same run measures: decoding with all experts in memory, and the disk's (O_DIRECT reads of whole
 * expert pieces at random, the best of several numbers of threads) over the bytes that a token did not find in the cache.
 * All decode tokens drawn evenly from the vocabulary. --each is put before every timed command ("chrt -r 1", say); --alone: without the peers.
 * Needs the right to make a control group. */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "bench.h"
#include "llama_bench.h"
#include "model/engine.h"
#include "model/weight_layout.h"

enum { SHARES_MAX = 8, ROUNDS_MAX = 9, CONTEXT = 1024, BATCH = 64, READERS_MAX = 16, DISK_SLOTS = 64 };
#define DISK_SECONDS 1.5

static struct {
    uint64_t shares[SHARES_MAX], share_count, rounds, tokens, warm, threads, readers;
    uint64_t memory;   /* of a child */
    const char *child; /* what a child does */
    const char *llama, *each, *file, *policy;
    bool no_lookahead, peers;
} options = {.shares = {25, 50, 75}, .share_count = 3, .rounds = 3, .peers = true, .tokens = 48, .warm = 48, .threads = 2, .each = ""};

/* ---- a child: decoding, in the memory it is given */

typedef struct outcome {
    double rate, hits, read_bytes, stalled, peak; /* tokens/s, share, a token, share of the time, bytes */
    double experts_bytes, fixed_bytes;            /* all routed experts as laid out in slots; what the process had besides, when opened */
} outcome;

static int64_t next_id(uint64_t *state, uint64_t vocabulary) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int64_t)((*state >> 33) % vocabulary);
}

static void decode(mica_engine *engine, uint64_t *state, uint64_t count, float *logits) {
    for (uint64_t i = 0; i < count; i++) {
        int64_t id = next_id(state, mica_engine_model(engine)->config.vocab_size);
        check(mica_engine_step(engine, &id, 1, &error));
        check(mica_engine_logits(engine, 0, 1, logits, &error));
    }
}

/* Every expert is read once, in batches, then tokens are decoded until the cache holds what it would hold. */
static void warm(mica_engine *engine, uint64_t *state, float *logits) {
    int64_t ids[BATCH];
    for (uint64_t i = 0; i < BATCH; i++)
        ids[i] = next_id(state, mica_engine_model(engine)->config.vocab_size);
    check(mica_engine_step(engine, ids, BATCH, &error));
    decode(engine, state, options.warm, logits);
}

static void run_child(void) {
    mica_model *model;
    mica_engine *engine;
    check(mica_model_open(options.file, NULL, &model, &error));
    float *logits = calloc(model->config.vocab_size, sizeof *logits);
    const mica_engine_options settings = {.threads = (uint32_t)options.threads,
                                          .precision = MICA_PRECISION_FAST,
                                          .context = CONTEXT,
                                          .batch = BATCH,
                                          .memory_bytes = options.memory,
                                          .policy = options.policy,
                                          .no_lookahead = options.no_lookahead,
                                          .reading_threads = (uint32_t)options.readers};
    uint64_t state = 5;
    check(mica_engine_open(model, &settings, &engine, &error));
    double fixed = (double)mica_memory_resident_bytes();
    if (options.tokens)
        warm(engine, &state, logits);
    mica_engine_meters before = mica_engine_meters_get(engine);
    double begin = mica_seconds_now();
    decode(engine, &state, options.tokens, logits);
    double seconds = mica_seconds_now() - begin, tokens = (double)options.tokens;
    mica_engine_meters after = mica_engine_meters_get(engine);
    double uses = (double)(after.experts.uses - before.experts.uses), read = (double)(after.experts.bytes_read - before.experts.bytes_read);
    printf("%.6g %.6g %.9g %.6g %.9g %.9g %.9g\n", tokens / seconds, (double)(after.experts.hits - before.experts.hits) / uses,
           read / tokens, (after.experts.seconds_stalled - before.experts.seconds_stalled) / seconds, (double)mica_memory_peak_bytes(),
           (double)(after.expert_count * after.slot_bytes), fixed);
    free(logits);
    mica_engine_close(engine);
    mica_model_close(model);
}

/* ---- another: the disk, as the cache reads it, pieces of experts at random */

typedef struct disk_job {
    const mica_model *model;
    uint8_t *slots; /* [threads][slots_each][slot_bytes] */
    uint64_t slots_each, slot_bytes;
    atomic_uint_fast64_t bytes;
    double end;
} disk_job;

static void read_pieces(void *context, uint32_t index) {
    disk_job *job = context;
    const mica_model *model = job->model;
    uint64_t state = index + 77, layers = model->config.num_hidden_layers, experts = model->config.n_routed_experts;
    for (uint64_t turn = 0; mica_seconds_now() < job->end; turn++) {
        uint8_t *slot = job->slots + (index * job->slots_each + turn % job->slots_each) * job->slot_bytes;
        uint64_t layer = (uint64_t)next_id(&state, layers), expert = (uint64_t)next_id(&state, experts);
        if (!model->layers[layer].moe)
            continue;
        for (int i = 0; i < MICA_PROJECTION_COUNT; i++) {
            const mica_tensor *data = model->layers[layer].experts[expert * MICA_PROJECTION_COUNT + (uint64_t)i]->data;
            const uint8_t *at;
            check(mica_file_read_window(mica_model_file(model, data), data->offset, data->bytes, slot, &at, &error));
            slot += mica_file_window_bytes(data->bytes);
            atomic_fetch_add(&job->bytes, data->bytes);
        }
    }
}

static void leave(void *context) {
    (void)context;
}

/* Into slots that no cache of the processor holds, as the engine's. */
static void run_disk(void) {
    mica_model *model;
    double best = 0;
    check(mica_model_open(options.file, NULL, &model, &error));
    const uint64_t slot_bytes = mica_expert_slot_bytes(model) + MICA_PROJECTION_COUNT * mica_file_window_bytes(1), all = DISK_SLOTS * slot_bytes;
    uint8_t *slots = mica_alloc_aligned(all);
    if (!slots)
        fail("out of memory");
    memset(slots, 1, all);
    for (uint32_t threads = 1; threads <= READERS_MAX; threads *= 2) {
        disk_job job = {.model = model, .slots = slots, .slots_each = DISK_SLOTS / threads, .slot_bytes = slot_bytes, .end = mica_seconds_now() + DISK_SECONDS};
        mica_threads *set;
        double begin = mica_seconds_now();
        check(mica_threads_start(threads, read_pieces, leave, &job, &set, &error));
        mica_threads_join(set);
        double rate = (double)atomic_load(&job.bytes) / (mica_seconds_now() - begin);
        best = rate > best ? rate : best;
    }
    printf("%.6g\n", best);
    mica_free_aligned(slots);
    mica_model_close(model);
}

/* ---- the control group: version 1 where a memory hierarchy is mounted, else version 2; below the one that this process is in */

static char group[PATH_MAX];
static bool group_old;

static bool write_file(const char *directory, const char *name, const char *text) {
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    bool written = descriptor >= 0 && write(descriptor, text, strlen(text)) == (ssize_t)strlen(text);
    if (descriptor >= 0)
        close(descriptor);
    return written;
}

static void make_group(void) {
    char line[PATH_MAX];
    FILE *own = fopen("/proc/self/cgroup", "r");
    while (own && fgets(line, sizeof line, own)) {
        line[strcspn(line, "\n")] = 0;
        char *name = strchr(line, ':'), *path = name ? strchr(name + 1, ':') : NULL;
        if (path && strncmp(name, ":memory:", 8) == 0) {
            snprintf(group, sizeof group, "/sys/fs/cgroup/memory%s/mica-bench-%d", path + 1, (int)getpid());
            group_old = true;
            break;
        }
        if (path && strncmp(line, "0::", 3) == 0)
            snprintf(group, sizeof group, "/sys/fs/cgroup%s/mica-bench-%d", path + 1, (int)getpid());
    }
    if (own)
        fclose(own);
    if (!group[0] || mkdir(group, 0755) != 0)
        fail("%s: cannot make a control group", group);
}

static void limit_group(uint64_t bytes) {
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, bytes);
    if (!write_file(group, group_old ? "memory.limit_in_bytes" : "memory.max", text)) {
        rmdir(group);
        fail("%s: cannot limit its memory", group);
    }
    if (!group_old)
        (void)write_file(group, "memory.swap.max", "0");
}

/* ---- commands in it */

/* Drops the file's pages; says so if some stayed, which a group would read without paying for them. */
static void drop_pages(const char *path) {
    struct stat status;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || fstat(descriptor, &status) != 0)
        fail("%s: cannot open it", path);
    (void)posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
    size_t pages = ((size_t)status.st_size + 4095) / 4096, stayed = 0;
    uint8_t *map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
    unsigned char *resident = calloc(pages, 1);
    if (map != MAP_FAILED && resident && mincore(map, (size_t)status.st_size, resident) == 0)
        for (size_t i = 0; i < pages; i++)
            stayed += resident[i] & 1;
    if (stayed > 256)
        fprintf(stderr, "bench_experts: %zu pages of %s stay in the page cache\n", stayed, path);
    free(resident);
    munmap(map, (size_t)status.st_size);
    close(descriptor);
}

/* limit 0: in no group. NULL with a failure. *child is for finish. */
static FILE *begin(const char *command, uint64_t limit, pid_t *child) {
    int ends[2];
    drop_pages(options.file);
    if (limit)
        limit_group(limit);
    if (pipe(ends) != 0 || (*child = fork()) < 0)
        fail("cannot start a process");
    if (*child == 0) {
        if (limit && !write_file(group, "cgroup.procs", "0"))
            _exit(126);
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    return fdopen(ends[0], "r");
}

static void finish(FILE *out, pid_t child, const char *command) {
    int status;
    fclose(out);
    if (waitpid(child, &status, 0) != child || status != 0)
        fprintf(stderr, "bench_experts: status %d of: %s\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), command);
}

static char *own_program(const char *suffix) {
    static char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 32);
    if (length < 0)
        fail("cannot find this program");
    strcpy(path + length, suffix);
    return path;
}

static outcome run(const char *suffix, const char *environment, uint64_t memory, uint64_t limit, uint64_t tokens, uint64_t warm_tokens) {
    char command[PATH_MAX * 3];
    outcome got = {0};
    pid_t child;
    snprintf(command, sizeof command,
             "%s env %s '%s' --child decode --memory %" PRIu64 " --tokens %" PRIu64 " --warm %" PRIu64 " --threads %" PRIu64
             " --readers %" PRIu64 "%s%s%s '%s'",
             options.each, environment, own_program(suffix), memory, tokens, warm_tokens, options.threads, options.readers,
             options.policy ? " --policy " : "", options.policy ? options.policy : "", options.no_lookahead ? " --no-lookahead" : "",
             options.file);
    FILE *out = begin(command, limit, &child);
    if (fscanf(out, "%lf %lf %lf %lf %lf %lf %lf", &got.rate, &got.hits, &got.read_bytes, &got.stalled, &got.peak, &got.experts_bytes,
               &got.fixed_bytes) != 7)
        got.rate = 0;
    finish(out, child, command);
    return got;
}

static double run_llama(uint64_t limit, uint64_t tokens) {
    char command[PATH_MAX * 3];
    pid_t child;
    snprintf(command, sizeof command, "%s '%s' -m '%s' -p 0 -n %" PRIu64 " -t %" PRIu64 " -r 1 -ngl 0 -lm mmap -o csv 2>/dev/null",
             options.each, options.llama, options.file, tokens, options.threads);
    FILE *out = begin(command, limit, &child);
    double rate = llama_bench_rate(out);
    finish(out, child, command);
    return rate;
}

static double disk_rate(void) {
    char command[PATH_MAX * 2];
    double rate = 0;
    pid_t child;
    snprintf(command, sizeof command, "%s '%s' --child disk '%s'", options.each, own_program(""), options.file);
    FILE *out = begin(command, 0, &child);
    if (fscanf(out, "%lf", &rate) != 1)
        rate = 0;
    finish(out, child, command);
    return rate;
}

/* ---- the table */

/* Each round: the disk, everything in memory, ours; so that the bound and what is held against it saw the same machine. The peers, which are slow, once. */
static void measure(uint64_t share, const outcome *sizes) {
    uint64_t slow = options.tokens / 4 > 8 ? options.tokens / 4 : 8;
    uint64_t memory = (uint64_t)(sizes->fixed_bytes + sizes->experts_bytes * (double)share / 100) + (UINT64_C(8) << 20),
             limit = memory + memory / 50;
    double rates[ROUNDS_MAX], reads[ROUNDS_MAX], wholes[ROUNDS_MAX], of_bound[ROUNDS_MAX];
    outcome ours = {0};
    for (uint64_t r = 0; r < options.rounds; r++) {
        double disk = disk_rate();
        outcome whole = run("", "", 0, 0, options.tokens, 4 * options.warm);
        ours = run("", "", memory, limit, options.tokens, options.warm);
        rates[r] = ours.rate;
        wholes[r] = whole.rate;
        reads[r] = disk / fmax(ours.read_bytes, 1);
        of_bound[r] = ours.rate / fmin(reads[r], wholes[r]);
        fprintf(
            stderr,
            "%2" PRIu64
            " %%: disk %.2f GB/s; in memory %.2f tok/s (%.1f %% found); mica %.2f tok/s, %.1f %% found, %.0f MB a token, %.0f %% stalled, peak %.3f of %.3f GB\n",
            share, disk / 1e9, whole.rate, 100 * whole.hits, ours.rate, 100 * ours.hits, ours.read_bytes / 1e6, 100 * ours.stalled,
            ours.peak / 1e9, (double)memory / 1e9);
    }
    double rate = median(rates, options.rounds), read = median(reads, options.rounds), whole = median(wholes, options.rounds),
           bound = median(of_bound, options.rounds);
    printf("%4" PRIu64 " %%   %5.2f GB   %5.1f %%   %6.0f   %7.2f   %9.2f   %7.2f   %6.0f %%", share, (double)limit / 1e9, 100 * ours.hits,
           ours.read_bytes / 1e6, read, whole, rate, 100 * bound);
    if (options.peers) {
        outcome announced = run("_mapped", "MICA_BENCH_WILLNEED=1", 4 * memory, limit, options.tokens, options.warm / 4);
        outcome mapped = run("_mapped", "", 4 * memory, limit, slow, slow);
        double llama = options.llama ? run_llama(limit, slow) : 0;
        printf("   %7.2f (%.1f)   %7.2f (%.1f)   %7.2f (%.1f)", announced.rate, rate / announced.rate, mapped.rate, rate / mapped.rate,
               llama, llama > 0 ? rate / llama : 0);
    }
    printf("\n");
    fflush(stdout);
}

int main(int count, char **arguments) {
    static const struct option known[] = {{"share", 1, 0, 's'},     {"tokens", 1, 0, 'n'},
                                          {"warm", 1, 0, 'w'},      {"threads", 1, 0, 't'},
                                          {"llama", 1, 0, 'l'},     {"each", 1, 0, 'e'},
                                          {"child", 1, 0, 'c'},     {"memory", 1, 0, 'm'},
                                          {"readers", 1, 0, 'r'},   {"policy", 1, 0, 'p'},
                                          {"no-lookahead", 0, 0, 'a'}, {"rounds", 1, 0, 'R'},
                                          {"alone", 0, 0, 'A'},     {0}};
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;)
        switch (option) {
        case 's': options.share_count = parse_list("--share", optarg, options.shares, SHARES_MAX); break;
        case 'n': options.tokens = strtoull(optarg, NULL, 10); break;
        case 'w': options.warm = strtoull(optarg, NULL, 10); break;
        case 't': options.threads = strtoull(optarg, NULL, 10); break;
        case 'r': options.readers = strtoull(optarg, NULL, 10); break;
        case 'm': options.memory = strtoull(optarg, NULL, 10); break;
        case 'l': options.llama = optarg; break;
        case 'e': options.each = optarg; break;
        case 'c': options.child = optarg; break;
        case 'p': options.policy = optarg; break;
        case 'a': options.no_lookahead = true; break;
        case 'A': options.peers = false; break;
        case 'R': options.rounds = strtoull(optarg, NULL, 10); break;
        default: return 2;
        }
    if (optind + 1 != count || options.rounds < 1 || options.rounds > ROUNDS_MAX)
        fail(
            "usage: bench_experts [--share 25,50,75] [--tokens N] [--warm N] [--threads N] [--rounds N] [--readers N] [--policy NAME]\n"
            "       [--no-lookahead] [--alone] [--llama LLAMA-BENCH] [--each COMMAND] FILE");
    options.file = arguments[optind];
    if (options.child) {
        strcmp(options.child, "disk") == 0 ? run_disk() : run_child();
        return 0;
    }
    make_group();
    outcome sizes = run("", "", 0, 0, 0, 0);
    printf("%s: decode, %" PRIu64 " threads, medians of %" PRIu64 " rounds of %" PRIu64
           " tokens; routed experts %.2f GB, all else %.2f GB; tok/s (and how many times the peer's)\n\n"
           "cached      limit     found   MB/tok   by disk   in memory      mica   of bound   %s\n",
           options.file, options.threads, options.rounds, options.tokens, sizes.experts_bytes / 1e9, sizes.fixed_bytes / 1e9,
           options.peers ? "mmap, WILLNEED   mmap            llama.cpp" : "");
    fflush(stdout);
    for (uint64_t i = 0; i < options.share_count; i++)
        measure(options.shares[i], &sizes);
    rmdir(group);
    return 0;
}
