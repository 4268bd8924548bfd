/* bench_engine: how fast the engine computes a checkpoint that is in memory, as a share of what the memory gives in this run, and against llama-bench on the
 * same file where one is given. Not a test.
 *     bench_engine [--rounds N] [--threads 1,2] [--prompt 512] [--generate 64] [--depth 0,4096] [--exact] [--llama LLAMA-BENCH] CHECKPOINT
 * Each round measures, in this order: read bandwidth, ours, the peer's; the table has the medians. Decode reads for a token the resident matrices and
 * the chosen experts: bytes as stored, over time, is "GB/s". Experts are all in memory before the clock starts; nothing is read from disk then. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/pool.h"
#include "bench.h"
#include "llama_bench.h"
#include "model/engine.h"

enum { ROUNDS_MAX = 15, WARM_ROUNDS = 40, WARM_IDLE = 4, LIST_MAX = 8 };
#define STREAM_BYTES (UINT64_C(768) << 20)

static struct {
    uint64_t rounds, prompt, generate, threads[LIST_MAX], thread_count, depths[LIST_MAX], depth_count;
    bool exact;
    const char *llama, *checkpoint;
} options = {.rounds = 3, .prompt = 512, .generate = 64, .threads = {1, 2}, .thread_count = 2, .depths = {0}, .depth_count = 1};

/* ---- what the memory gives: every thread adds up its share of a buffer that no cache holds */

typedef struct streaming {
    const uint64_t *words;
    uint64_t count;
    uint32_t threads;
    uint64_t sums[64];
} streaming;

static void stream(void *context, uint32_t index) {
    streaming *work = context;
    uint64_t share = work->count / work->threads, lanes[16] = {0};
    const uint64_t *at = work->words + index * share;
    for (uint64_t i = 0; i + 16 <= share; i += 16) {
        __builtin_prefetch(at + i + 512);
        __builtin_prefetch(at + i + 520);
        for (int lane = 0; lane < 16; lane++)
            lanes[lane] += at[i + (uint64_t)lane];
    }
    for (int lane = 0; lane < 16; lane++)
        work->sums[index] += lanes[lane];
}

static double bandwidth(const uint64_t *words, uint32_t threads) {
    mica_pool *pool;
    double best = 0;
    check(mica_pool_create(threads, &pool, &error));
    for (int i = 0; i < 4; i++) {
        streaming work = {.words = words, .count = STREAM_BYTES / 8, .threads = threads};
        double begin = mica_seconds_now();
        mica_pool_run(pool, stream, &work);
        double rate = (double)STREAM_BYTES / (mica_seconds_now() - begin);
        best = rate > best ? rate : best;
    }
    mica_pool_free(pool);
    return best;
}

/* ---- ours */

static uint64_t token_bytes(const mica_model *model, uint64_t resident) {
    for (uint64_t i = 0; i < model->config.num_hidden_layers; i++)
        for (int p = 0; model->layers[i].moe && p < MICA_PROJECTION_COUNT; p++) {
            const mica_weight *weight = model->layers[i].experts[p];
            resident += model->config.num_experts_per_tok * (weight->data->bytes + (weight->scale ? weight->scale->bytes : 0));
        }
    return resident;
}

static int64_t next_id(uint64_t *state, uint64_t vocabulary) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int64_t)((*state >> 33) % vocabulary);
}

/* Reads every expert that tokens choose: until all are there, or several rounds wanted no other. */
static void warm(mica_engine *engine) {
    const mica_model *model = mica_engine_model(engine);
    mica_engine_meters meters = mica_engine_meters_get(engine);
    if (meters.slots < meters.expert_count)
        fprintf(stderr, "bench_engine: the memory holds %" PRIu64 " of %" PRIu64 " experts\n", meters.slots, meters.expert_count);
    uint64_t state = 9;
    int idle = 0;
    for (int round = 0; round < WARM_ROUNDS && idle < WARM_IDLE && meters.experts.reads < meters.expert_count; round++) {
        const uint64_t before = meters.experts.reads;
        int64_t ids[256];
        uint64_t count = mica_engine_batch(engine) < 256 ? mica_engine_batch(engine) : 256;
        for (uint64_t i = 0; i < count; i++)
            ids[i] = next_id(&state, model->config.vocab_size);
        mica_engine_rewind(engine, 0);
        check(mica_engine_step(engine, ids, count, &error));
        meters = mica_engine_meters_get(engine);
        idle = meters.experts.reads == before ? idle + 1 : 0;
    }
}

static double prefill(mica_engine *engine, uint64_t count) {
    int64_t *ids = malloc(count * sizeof *ids);
    uint64_t state = 3;
    for (uint64_t i = 0; ids && i < count; i++)
        ids[i] = next_id(&state, mica_engine_model(engine)->config.vocab_size);
    mica_engine_rewind(engine, 0);
    double begin = mica_seconds_now();
    check(mica_engine_prefill(engine, ids, count, NULL, NULL, &error));
    double rate = (double)count / (mica_seconds_now() - begin);
    free(ids);
    return rate;
}

static double decode(mica_engine *engine, uint64_t depth, uint64_t count, float *logits) {
    uint64_t state = 5;
    if (mica_engine_position(engine) < depth)
        prefill(engine, depth);
    mica_engine_rewind(engine, depth);
    double begin = mica_seconds_now();
    for (uint64_t i = 0; i < count; i++) {
        int64_t id = next_id(&state, mica_engine_model(engine)->config.vocab_size);
        check(mica_engine_step(engine, &id, 1, &error));
        check(mica_engine_logits(engine, 0, 1, logits, &error));
    }
    return (double)count / (mica_seconds_now() - begin);
}

/* ---- the peer */

static double peer(uint64_t prompt, uint64_t generate, uint64_t depth, uint64_t threads) {
    char command[2048];
    if (!options.llama)
        return 0;
    snprintf(command, sizeof command,
             "'%s' -m '%s' -p %" PRIu64 " -n %" PRIu64 " -d %" PRIu64 " -t %" PRIu64 " -r 1 -ngl 0 -o csv 2>/dev/null", options.llama,
             options.checkpoint, prompt, generate, depth, threads);
    FILE *pipe = popen(command, "r");
    double rate = pipe ? llama_bench_rate(pipe) : 0;
    if (pipe)
        pclose(pipe);
    return rate;
}

/* ---- the table */

static void measure(mica_model *model, const uint64_t *words, uint64_t threads) {
    uint64_t longest = options.prompt;
    for (uint64_t i = 0; i < options.depth_count; i++)
        longest = options.depths[i] + options.generate > longest ? options.depths[i] + options.generate : longest;
    mica_engine *engine;
    check(mica_engine_open(model, &(mica_engine_options){.threads = (uint32_t)threads, .context = longest,
                                                         .precision = options.exact ? MICA_PRECISION_EXACT : MICA_PRECISION_FAST},
                           &engine, &error));
    float *logits = malloc(model->config.vocab_size * sizeof *logits);
    warm(engine);
    uint64_t bytes = token_bytes(model, mica_engine_meters_get(engine).resident_read), read = mica_engine_meters_get(engine).experts.bytes_read;
    double rates[LIST_MAX + 1][ROUNDS_MAX], peers[LIST_MAX + 1][ROUNDS_MAX], memory[ROUNDS_MAX];
    for (uint64_t r = 0; r < options.rounds; r++) {
        memory[r] = bandwidth(words, (uint32_t)threads);
        for (uint64_t d = 0; d < options.depth_count; d++) {
            rates[d][r] = decode(engine, options.depths[d], options.generate, logits);
            peers[d][r] = peer(0, options.generate, options.depths[d], threads);
        }
        rates[LIST_MAX][r] = prefill(engine, options.prompt);
        peers[LIST_MAX][r] = peer(options.prompt, 0, 0, threads);
    }
    double roof = median(memory, options.rounds);
    for (uint64_t d = 0; d <= LIST_MAX; d++) {
        bool batch = d == LIST_MAX;
        if (d >= options.depth_count && !batch)
            continue;
        double rate = median(rates[d], options.rounds), other = median(peers[d], options.rounds);
        printf("%7" PRIu64 "   %-8s %6" PRIu64 "   %9.2f", threads, batch ? "prefill" : "decode", batch ? options.prompt : options.depths[d], rate);
        if (batch)
            printf("        -          -");
        else
            printf("   %6.1f   %6.0f %%", rate * (double)bytes / 1e9, 100 * rate * (double)bytes / roof);
        if (options.llama)
            printf("   %9.2f   %5.2f", other, rate / other);
        printf("\n");
    }
    if (mica_engine_meters_get(engine).experts.bytes_read != read)
        printf("   (experts were read from disk meanwhile)\n");
    fflush(stdout);
    free(logits);
    mica_engine_close(engine);
}

int main(int count, char **arguments) {
    static const struct option known[] = {{"rounds", 1, 0, 'r'}, {"threads", 1, 0, 't'}, {"prompt", 1, 0, 'p'}, {"generate", 1, 0, 'n'},
                                          {"depth", 1, 0, 'd'},  {"exact", 0, 0, 'e'},   {"llama", 1, 0, 'l'},  {0}};
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;)
        switch (option) {
        case 'r': options.rounds = strtoull(optarg, NULL, 10); break;
        case 'p': options.prompt = strtoull(optarg, NULL, 10); break;
        case 'n': options.generate = strtoull(optarg, NULL, 10); break;
        case 't': options.thread_count = parse_list("--threads", optarg, options.threads, LIST_MAX); break;
        case 'd': options.depth_count = parse_list("--depth", optarg, options.depths, LIST_MAX); break;
        case 'e': options.exact = true; break;
        case 'l': options.llama = optarg; break;
        default: return 2;
        }
    if (optind + 1 != count || options.rounds < 1 || options.rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: bench_engine [--rounds N] [--threads 1,2] [--prompt N] [--generate N] [--depth 0,4096] [--exact] [--llama LLAMA-BENCH] CHECKPOINT\n");
        return 2;
    }
    options.checkpoint = arguments[optind];
    mica_model *model;
    uint64_t *words = mica_alloc_aligned(STREAM_BYTES);
    check(words ? MICA_OK : mica_fail(&error, MICA_NO_MEMORY, "out of memory"));
    memset(words, 1, STREAM_BYTES);
    check(mica_model_open(options.checkpoint, NULL, &model, &error));
    printf("%s: medians of %" PRIu64 " rounds\n\nthreads   %-8s %6s   %9s   %6s   %8s%s\n", options.checkpoint, options.rounds, "", "tokens", "tok/s", "GB/s",
           "of memory", options.llama ? "   llama.cpp   ratio" : "");
    for (uint64_t i = 0; i < options.thread_count; i++)
        measure(model, words, options.threads[i]);
    mica_model_close(model);
    mica_free_aligned(words);
    return 0;
}
