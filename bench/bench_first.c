/* bench_first: from nothing to the first token, of a checkpoint with as many tensors as Kimi-K2: what of that time is reading the resident
 * weights, and how fast they are read beside what the disk gives in the same run. Not a test.
 *     bench_first [--rounds 5] [--threads N] CHECKPOINT...
 * Each round of each checkpoint is a process of its own, the checkpoint's pages dropped from the page cache before it, 5 GiB of memory touched
 * and given back: open the model, open the engine (which reads what every token needs), one token and its logits. The disk: attention's
 * weights, O_DIRECT, pieces of 8 MiB, the best of 2 to 16 threads. Medians. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "bench.h"
#include "model/engine.h"

enum { ROUNDS_MAX = 15 };
#define PIECE (UINT64_C(8) << 20)

typedef struct timing {
    double open, engine, resident, token, bytes, disk; /* seconds; bytes; bytes a second */
} timing;

static struct {
    uint64_t rounds, threads, touch; /* touch: bytes of memory before each round */
} options = {.rounds = 5, .touch = UINT64_C(5) << 30};

static void drop_pages(const mica_model *model) {
    for (uint32_t i = 0; i < model->source->shard_count; i++)
        (void)drop_from_cache(mica_file_path(model->source->shards[i].file));
}

/* ---- the disk */

typedef struct disk_job {
    const mica_model *model;
    pthread_mutex_t mutex;
    uint64_t layer, part, done; /* the next piece: of a layer's resident weight */
    double end;
    uint64_t bytes;
} disk_job;

/* Attention's large weights, layer by layer, over and over: every token needs them in every architecture. */
static bool take(disk_job *job, const mica_tensor **tensor, uint64_t *offset, uint64_t *bytes) {
    const mica_weight *weight;
    uint64_t looked = 0, all = MICA_PART_COUNT * (job->model->config.num_hidden_layers + 1);
    pthread_mutex_lock(&job->mutex);
    while (!(weight = job->model->layers[job->layer].parts[job->part]) || weight->data->bytes < PIECE / 8 ||
           job->done >= weight->data->bytes) {
        if (looked++ > all)
            check(mica_fail(&error, MICA_FAILED, "expected weights of a MiB or more"));
        job->done = 0;
        if (++job->part == MICA_PART_COUNT) {
            job->part = 0;
            job->layer = (job->layer + 1) % job->model->config.num_hidden_layers;
        }
    }
    *tensor = weight->data;
    *offset = weight->data->offset + job->done;
    *bytes = weight->data->bytes - job->done < PIECE ? weight->data->bytes - job->done : PIECE;
    job->done += *bytes;
    pthread_mutex_unlock(&job->mutex);
    return mica_seconds_now() < job->end;
}

static void read_pieces(void *context, uint32_t index) {
    disk_job *job = context;
    const mica_tensor *tensor;
    uint64_t offset, bytes, sum = 0;
    const uint8_t *data;
    mica_error own;
    (void)index;
    uint8_t *buffer = mica_alloc_aligned(mica_file_window_bytes(PIECE));
    while (buffer && take(job, &tensor, &offset, &bytes) &&
           mica_file_read_window(mica_model_file(job->model, tensor), offset, bytes, buffer, &data, &own) == MICA_OK)
        sum += bytes;
    pthread_mutex_lock(&job->mutex);
    job->bytes += sum;
    pthread_mutex_unlock(&job->mutex);
    mica_free_aligned(buffer);
}

static double disk_rate(const mica_model *model) {
    double best = 0;
    for (uint32_t threads = 2; threads <= 16; threads *= 2) {
        disk_job job = {.model = model, .mutex = PTHREAD_MUTEX_INITIALIZER};
        mica_threads *set;
        double begin = mica_seconds_now();
        job.end = begin + 1;
        check(mica_threads_start(threads, read_pieces, NULL, &job, &set, &error));
        mica_threads_join(set);
        double rate = (double)job.bytes / (mica_seconds_now() - begin);
        best = rate > best ? rate : best;
    }
    return best;
}

/* ---- one round, in a process of its own */

/* A virtual machine may get its memory from the host at the first touch, at milliseconds a megabyte: that is not what is measured. */
static void touch_memory(uint64_t bytes) {
    uint8_t *memory = mica_alloc_aligned(bytes);
    for (uint64_t i = 0; memory && i < bytes; i += 4096)
        memory[i] = 1;
    mica_free_aligned(memory);
}

static timing run(const char *path) {
    mica_model *model;
    mica_engine *engine;
    check(mica_model_open(path, NULL, &model, &error)); /* for its files' names */
    drop_pages(model);
    mica_model_close(model);
    timing got = {0};
    touch_memory(options.touch);
    double begin = mica_seconds_now();
    check(mica_model_open(path, NULL, &model, &error));
    got.open = mica_seconds_now() - begin;
    check(mica_engine_open(model, &(mica_engine_options){.threads = (uint32_t)options.threads, .context = 256}, &engine, &error));
    got.engine = mica_seconds_now() - begin - got.open;
    float *logits = malloc(model->config.vocab_size * sizeof *logits);
    int64_t id = 3;
    check(mica_engine_step(engine, &id, 1, &error));
    check(mica_engine_logits(engine, 0, 1, logits, &error));
    got.token = mica_seconds_now() - begin - got.open - got.engine;
    mica_engine_meters meters = mica_engine_meters_get(engine);
    got.resident = meters.resident_seconds;
    got.bytes = (double)meters.resident_read;
    mica_engine_close(engine);
    got.disk = disk_rate(model);
    free(logits);
    mica_model_close(model);
    return got;
}

static timing run_apart(const char *path) {
    int ends[2], status;
    timing got = {0};
    pid_t child;
    fflush(stdout);
    if (pipe(ends) != 0 || (child = fork()) < 0)
        exit(1);
    if (child == 0) {
        got = run(path);
        _exit(write(ends[1], &got, sizeof got) == (ssize_t)sizeof got ? 0 : 1);
    }
    close(ends[1]);
    if (read(ends[0], &got, sizeof got) != (ssize_t)sizeof got || waitpid(child, &status, 0) != child || status != 0)
        exit(1);
    close(ends[0]);
    return got;
}

int main(int count, char **arguments) {
    static const struct option known[] = {{"rounds", 1, 0, 'r'}, {"threads", 1, 0, 't'}, {0}};
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;)
        if (option == 'r')
            options.rounds = strtoull(optarg, NULL, 10);
        else if (option == 't')
            options.threads = strtoull(optarg, NULL, 10);
        else
            return 2;
    if (optind >= count || options.rounds < 1 || options.rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: bench_first [--rounds N] [--threads N] CHECKPOINT...\n");
        return 2;
    }
    printf("seconds, medians of %" PRIu64
           "\n\n   model  resident  its rest   token   in all   resident GB    GB/s    disk   of disk   disk's part of all\n",
           options.rounds);
    for (int i = optind; i < count; i++) {
        double open[ROUNDS_MAX], rest[ROUNDS_MAX], resident[ROUNDS_MAX], token[ROUNDS_MAX], all[ROUNDS_MAX], rate[ROUNDS_MAX],
            disk[ROUNDS_MAX], of_disk[ROUNDS_MAX], part[ROUNDS_MAX], bytes = 0;
        for (uint64_t r = 0; r < options.rounds; r++) {
            timing got = run_apart(arguments[i]);
            open[r] = got.open;
            resident[r] = got.resident;
            rest[r] = got.engine - got.resident;
            token[r] = got.token;
            all[r] = got.open + got.engine + got.token;
            rate[r] = got.bytes / got.resident;
            disk[r] = got.disk;
            of_disk[r] = rate[r] / got.disk;
            part[r] = got.bytes / got.disk / all[r];
            bytes = got.bytes;
        }
        printf("%8.3f  %8.3f  %8.3f  %6.3f  %7.3f   %11.3f  %6.2f  %6.2f  %6.0f %%   %16.0f %%   %s\n", median(open, options.rounds),
               median(resident, options.rounds), median(rest, options.rounds), median(token, options.rounds), median(all, options.rounds),
               bytes / 1e9, median(rate, options.rounds) / 1e9, median(disk, options.rounds) / 1e9, 100 * median(of_disk, options.rounds),
               100 * median(part, options.rounds), arguments[i]);
    }
    return 0;
}
