/* bench_product: products of stored weights with 1 to 512 tokens, FAST, per encoding: GB/s of weights for one token, GFLOP/s for more, beside
 * the roofs of the same run (reading on one and two threads, float32 and bf16 products) and, with --ggml DIR, ggml's mul_mat on the same
 * bytes (of its Haswell build where MICA_CPU=avx2, of its Alder Lake build where it is avxvnni). Weights are cycled through a pool larger
 * than the caches. One thread unless said otherwise, in thread CPU time; two threads in wall time, which tells nothing beside other programs.
 * Medians of five; own and peer alternate. */
#include <dlfcn.h>
#include <getopt.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "bench.h"
#include "numerics/product.h"

enum { PASSES = 5, MOST_TOKENS = 512 };

static double clock_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint64_t random_u64(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void *allocate(uint64_t bytes) {
    void *p = mica_alloc_aligned(bytes);
    if (!p) {
        fprintf(stderr, "bench_product: out of memory\n");
        exit(4);
    }
    memset(p, 0, bytes);
    return p;
}

/* ---- roofs */

static uint8_t *pool;
static uint64_t pool_bytes;

typedef uint64_t wide __attribute__((vector_size(64), aligned(64)));

#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static uint64_t sum_of(const uint8_t *from, uint64_t bytes) {
    wide sums[4] = {{0}};
    for (uint64_t i = 0; i < bytes; i += sizeof sums) {
        for (int k = 0; k < 4; k++) {
            __builtin_prefetch(from + i + 4096 + 64 * k);
            sums[k] += *(const wide *)(const void *)(from + i + 64 * (uint64_t)k);
        }
    }
    wide all = sums[0] + sums[1] + sums[2] + sums[3];
    return all[0] + all[7];
}

static volatile uint64_t sink;

static void *read_half(void *argument) {
    uint64_t half = pool_bytes / 2 / 4096 * 4096;
    sink = sum_of(argument ? pool + half : pool, half);
    return NULL;
}

static double read_roof(int threads) {
    double times[PASSES];
    for (int pass = 0; pass < PASSES; pass++) {
        clockid_t clock = threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
        double start = clock_of(clock);
        if (threads == 1) {
            sink = sum_of(pool, pool_bytes);
        } else {
            pthread_t other;
            pthread_create(&other, NULL, read_half, pool);
            read_half(NULL);
            pthread_join(other, NULL);
        }
        times[pass] = clock_of(clock) - start;
    }
    return 1e-9 * (double)pool_bytes / median(times, PASSES);
}

#if defined(__x86_64__)
#define EIGHT(instruction, a, b, c, d, e, f, g, h)                                                                                             \
    instruction " %%zmm30, %%zmm31, %%zmm" a "\n" instruction " %%zmm30, %%zmm31, %%zmm" b "\n" instruction " %%zmm30, %%zmm31, %%zmm" c "\n"  \
    instruction " %%zmm30, %%zmm31, %%zmm" d "\n" instruction " %%zmm30, %%zmm31, %%zmm" e "\n" instruction " %%zmm30, %%zmm31, %%zmm" f "\n"  \
    instruction " %%zmm30, %%zmm31, %%zmm" g "\n" instruction " %%zmm30, %%zmm31, %%zmm" h "\n"
#define DEFINE_ROOF(name, instruction)                                                                                                         \
    __attribute__((target("avx512f"))) static double name(double operations) {                                                                 \
        enum { REPEATS = 4000000 };                                                                                                            \
        __asm__ volatile("vpxord %%zmm30, %%zmm30, %%zmm30\nvpxord %%zmm31, %%zmm31, %%zmm31" ::: "zmm30", "zmm31");                           \
        double start = clock_of(CLOCK_THREAD_CPUTIME_ID);                                                                                      \
        for (int i = 0; i < REPEATS; i++)                                                                                                      \
            __asm__ volatile(EIGHT(instruction, "0", "1", "2", "3", "4", "5", "6", "7") EIGHT(instruction, "8", "9", "10", "11", "12", "13",   \
                                                                                            "14", "15")::                                      \
                                 : "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12",  \
                                   "zmm13", "zmm14", "zmm15");                                                                                 \
        return 1e-9 * operations * 16 * REPEATS / (clock_of(CLOCK_THREAD_CPUTIME_ID) - start);                                                 \
    }
DEFINE_ROOF(fma_roof, "vfmadd231ps")
DEFINE_ROOF(bf16_roof, "vdpbf16ps")
#endif

static void print_roofs(double *one, double *two) {
    *one = read_roof(1);
    *two = read_roof(2);
    printf("roofs: reading %.1f GB/s on one thread, %.1f on two", *one, *two);
#if defined(__x86_64__)
    if (mica_cpu_detected() == MICA_CPU_AVX512)
        printf("; %.0f GFLOP/s float32", fma_roof(32));
    if (mica_cpu_has_bf16())
        printf(", %.0f bf16", bf16_roof(64));
#endif
    printf("\n");
}

/* ---- weights */

typedef struct kind {
    const char *name;
    mica_encoding encoding;
    mica_dtype dtype, scale_dtype;
    uint64_t block_rows, block_columns;
    int scale, minimum; /* of a block type: where its F16 numbers are, -1 none */
    int ggml;           /* the type's number there, -1 none */
} kind;

static const kind kinds[] = {
    {"F32", MICA_ENCODING_PLAIN, MICA_F32, 0, 0, 0, 0, 0, 0},
    {"F16", MICA_ENCODING_PLAIN, MICA_F16, 0, 0, 0, 0, 0, 1},
    {"BF16", MICA_ENCODING_PLAIN, MICA_BF16, 0, 0, 0, 0, 0, 30},
    {"fp8 128x128", MICA_ENCODING_FP8_BLOCK, MICA_F8_E4M3, MICA_F32, 128, 128, 0, 0, -1},
    {"int4 1x32", MICA_ENCODING_INT4_GROUP, MICA_I32, MICA_BF16, 1, 32, 0, 0, -1},
    {"MXFP4 planes", MICA_ENCODING_MXFP4, MICA_I8, MICA_F8_E8M0, 1, 32, 0, 0, -1},
    {"MXFP4", MICA_ENCODING_BLOCK, MICA_MXFP4, 0, 0, 0, -1, -1, 39},
    {"Q8_0", MICA_ENCODING_BLOCK, MICA_Q8_0, 0, 0, 0, 0, -1, 8},
    {"Q4_0", MICA_ENCODING_BLOCK, MICA_Q4_0, 0, 0, 0, 0, -1, 2},
    {"Q4_1", MICA_ENCODING_BLOCK, MICA_Q4_1, 0, 0, 0, 0, 2, 3},
    {"Q5_0", MICA_ENCODING_BLOCK, MICA_Q5_0, 0, 0, 0, 0, -1, 6},
    {"Q5_1", MICA_ENCODING_BLOCK, MICA_Q5_1, 0, 0, 0, 0, 2, 7},
    {"IQ4_NL", MICA_ENCODING_BLOCK, MICA_IQ4_NL, 0, 0, 0, 0, -1, 20},
    {"Q2_K", MICA_ENCODING_BLOCK, MICA_Q2_K, 0, 0, 0, 80, 82, 10},
    {"Q3_K", MICA_ENCODING_BLOCK, MICA_Q3_K, 0, 0, 0, 108, -1, 11},
    {"Q4_K", MICA_ENCODING_BLOCK, MICA_Q4_K, 0, 0, 0, 0, 2, 12},
    {"Q5_K", MICA_ENCODING_BLOCK, MICA_Q5_K, 0, 0, 0, 0, 2, 13},
    {"Q6_K", MICA_ENCODING_BLOCK, MICA_Q6_K, 0, 0, 0, 208, -1, 14},
    {"IQ4_XS", MICA_ENCODING_BLOCK, MICA_IQ4_XS, 0, 0, 0, 0, -1, 23},
};

static uint64_t scale_bytes_of(const mica_matrix *m) {
    if (m->encoding == MICA_ENCODING_PLAIN || m->encoding == MICA_ENCODING_BLOCK)
        return 0;
    return (m->rows + m->block_rows - 1) / m->block_rows * ((m->columns + m->block_columns - 1) / m->block_columns) * mica_dtype_bytes(m->scale_dtype);
}

static void set_half(uint8_t *p) {
    uint16_t half = (uint16_t)(0x2000 | (random_u64() & 0x3ff)); /* 2^-7 to 2^-6 */
    memcpy(p, &half, 2);
}

static void fill_weights(const kind *k, const mica_matrix *m, uint8_t *codes, uint8_t *scales) {
    uint64_t bytes = m->rows * mica_matrix_row_bytes(m), size = mica_dtype_bytes(k->dtype), scale_bytes = scale_bytes_of(m);
    for (uint64_t i = 0; i < bytes; i++)
        codes[i] = (uint8_t)(random_u64() >> 32);
    for (uint64_t i = size - 1; k->encoding == MICA_ENCODING_PLAIN && i < bytes; i += size)
        codes[i] = (uint8_t)((codes[i] & 0x81) | 0x3c); /* near 1 */
    for (uint64_t i = 0; k->encoding == MICA_ENCODING_FP8_BLOCK && i < bytes; i++)
        codes[i] &= 0xbf;
    for (uint64_t i = 0; k->encoding == MICA_ENCODING_BLOCK && i < bytes; i += mica_dtype_block_bytes(k->dtype)) {
        if (k->scale < 0)
            codes[i] = 120;
        else
            set_half(codes + i + k->scale);
        if (k->minimum > 0)
            set_half(codes + i + k->minimum);
    }
    for (uint64_t i = 0; i < scale_bytes; i += mica_dtype_bytes(k->scale_dtype)) {
        const float value = 0.0078125f;
        if (k->scale_dtype == MICA_F8_E8M0)
            scales[i] = 120;
        else
            memcpy(scales + i, (const uint8_t *)&value + 4 - mica_dtype_bytes(k->scale_dtype), mica_dtype_bytes(k->scale_dtype));
    }
}

/* ---- own */

typedef struct job {
    mica_matrix matrix;
    uint64_t count, stride, code_bytes; /* matrices in the pool */
    float *out;
    void *scratch[2], *storage;
    const float *values;
    uint64_t tokens;
    int part, parts;
    mica_operand *operand;
} job;

static mica_matrix matrix_at(const job *j, uint64_t i) {
    mica_matrix m = j->matrix;
    m.codes = pool + i * j->stride;
    m.scales = pool + i * j->stride + j->code_bytes;
    return m;
}

static void *multiply_part(void *argument) {
    const job *j = argument;
    uint64_t first = j->matrix.rows * (uint64_t)j->part / (uint64_t)j->parts, end = j->matrix.rows * ((uint64_t)j->part + 1) / (uint64_t)j->parts;
    for (uint64_t i = 0; i < j->count; i++) {
        mica_matrix m = matrix_at(j, i);
        mica_product(&m, first, end - first, j->operand, j->out + first, m.rows, j->scratch[j->part]);
    }
    return NULL;
}

/* Seconds for one matrix, the activations' preparation included. */
static double measure_own(job *j, int threads) {
    mica_operand x;
    double start = clock_of(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC);
    mica_operand_init(&x, MICA_PRECISION_FAST, j->values, j->matrix.columns, j->tokens, j->matrix.columns, j->storage);
    for (uint64_t i = 0; i < j->count; i++)
        mica_operand_prepare(&x, 0, j->tokens);
    j->operand = &x;
    j->part = 0;
    j->parts = threads;
    if (threads == 1) {
        multiply_part(j);
    } else {
        job second = *j;
        pthread_t other;
        second.part = 1;
        pthread_create(&other, NULL, multiply_part, &second);
        multiply_part(j);
        pthread_join(other, NULL);
    }
    return (clock_of(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC) - start) / (double)j->count;
}

/* ---- ggml, by dlopen: only what is called, with its objects opaque */

typedef struct peer {
    void *backend, *types[2]; /* plain buffers, and repacked ones */
} peer;

static void *base;

static void *function(const char *name) {
    void *f = dlsym(base, name);
    if (!f) {
        fprintf(stderr, "bench_product: %s is not in ggml\n", name);
        exit(4);
    }
    return f;
}
#define CALL(type, name) ((type)function(#name))

typedef struct init_params {
    size_t bytes;
    void *buffer;
    bool no_data;
} init_params;

static void say_nothing(int level, const char *text, void *context) {
    (void)level;
    (void)text;
    (void)context;
}

static bool open_peer(peer *p, const char *directory) {
    char path[4096];
    snprintf(path, sizeof path, "%s/libggml-base.so", directory);
    if (!(base = dlopen(path, RTLD_NOW | RTLD_GLOBAL)))
        return false;
    CALL(void (*)(void (*)(int, const char *, void *), void *), ggml_log_set)(say_nothing, NULL);
    void *all = NULL;
    const char *names[] = {"libggml.so", "libggml.v0.5.0.so"};
    for (int i = 0; i < 2 && !all; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        all = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    }
    void (*load)(const char *) = all ? (void (*)(const char *))dlsym(all, "ggml_backend_load_all_from_path") : NULL;
    void *(*init)(const char *, const char *) = all ? (void *(*)(const char *, const char *))dlsym(all, "ggml_backend_init_by_name") : NULL;
    if (!load || !init)
        return false;
    if (mica_cpu_current() == MICA_CPU_AVX2) { /* its build for the same instructions */
        const char *build = mica_cpu_has_vnni() ? "alderlake" : "haswell";
        void *(*load_one)(const char *) = (void *(*)(const char *))dlsym(all, "ggml_backend_load");
        snprintf(path, sizeof path, "%s/libggml-cpu-%s.so", directory, build);
        if (!load_one || !load_one(path))
            return false;
    } else {
        load(directory);
    }
    if (!(p->backend = init("CPU", NULL)))
        return false;
    void *device = CALL(void *(*)(void *), ggml_backend_get_device)(p->backend), *registry = CALL(void *(*)(void *), ggml_backend_dev_backend_reg)(device);
    void *(*address)(void *, const char *) = CALL(void *(*)(void *, const char *), ggml_backend_reg_get_proc_address);
    ((void (*)(void *, int))address(registry, "ggml_backend_set_n_threads"))(p->backend, 1);
    p->types[0] = CALL(void *(*)(void *), ggml_backend_get_default_buffer_type)(p->backend);
    p->types[1] = NULL;
    void **(*extra)(void *) = (void **(*)(void *))address(registry, "ggml_backend_dev_get_extra_bufts");
    for (void **types = extra ? extra(device) : NULL; types && *types; types++)
        if (strstr(CALL(const char *(*)(void *), ggml_backend_buft_name)(*types), "REPACK"))
            p->types[1] = *types;
    return true;
}

/* A graph that multiplies the pool's matrices; NULL when the type has no such buffer. */
typedef struct peer_graph {
    void *weights, *weights_buffer, *context, *graph, *buffer;
} peer_graph;

static void free_peer_graph(peer_graph *g) {
    void (*release)(void *) = CALL(void (*)(void *), ggml_backend_buffer_free), (*end)(void *) = CALL(void (*)(void *), ggml_free);
    if (g->buffer)
        release(g->buffer);
    if (g->weights_buffer)
        release(g->weights_buffer);
    if (g->context)
        end(g->context);
    end(g->weights);
}

static bool make_peer_graph(const peer *p, int which, const job *j, int type, peer_graph *g) {
    void *(*init)(init_params) = CALL(void *(*)(init_params), ggml_init);
    void *(*tensor)(void *, int, int64_t, int64_t) = CALL(void *(*)(void *, int, int64_t, int64_t), ggml_new_tensor_2d);
    void (*set)(void *, const void *, size_t, size_t) = CALL(void (*)(void *, const void *, size_t, size_t), ggml_backend_tensor_set);
    init_params parameters = {64u << 20, NULL, true};
    *g = (peer_graph){.weights = init(parameters)};
    void **w = calloc(j->count, sizeof *w);
    for (uint64_t i = 0; i < j->count; i++)
        w[i] = tensor(g->weights, type, (int64_t)j->matrix.columns, (int64_t)j->matrix.rows);
    g->weights_buffer = CALL(void *(*)(void *, void *), ggml_backend_alloc_ctx_tensors_from_buft)(g->weights, p->types[which]);
    if (!g->weights_buffer) {
        free(w);
        return false;
    }
    CALL(void (*)(void *, int), ggml_backend_buffer_set_usage)(g->weights_buffer, 1);
    /* A type that is not repacked has nothing behind its tensor's name of 64 bytes, where ggml keeps its extra pointer. */
    const char *(*name)(const void *) = CALL(const char *(*)(const void *), ggml_get_name);
    void *repacked;
    memcpy(&repacked, name(w[0]) + 64, sizeof repacked);
    if (which == 1 && !repacked) {
        free(w);
        free_peer_graph(g);
        return false;
    }
    for (uint64_t i = 0; i < j->count; i++)
        set(w[i], pool + i * j->stride, 0, j->code_bytes);
    g->context = init(parameters);
    void *x = tensor(g->context, 0, (int64_t)j->matrix.columns, (int64_t)j->tokens);
    g->graph = CALL(void *(*)(void *), ggml_new_graph)(g->context);
    for (uint64_t i = 0; i < j->count; i++)
        CALL(void (*)(void *, void *), ggml_build_forward_expand)(g->graph, CALL(void *(*)(void *, void *, void *), ggml_mul_mat)(g->context, w[i], x));
    g->buffer = CALL(void *(*)(void *, void *), ggml_backend_alloc_ctx_tensors)(g->context, p->backend);
    set(x, j->values, 0, j->tokens * j->matrix.columns * sizeof(float));
    free(w);
    return true;
}

static double measure_peer(const peer *p, const job *j, const peer_graph *g) {
    double start = clock_of(CLOCK_THREAD_CPUTIME_ID);
    CALL(int (*)(void *, void *), ggml_backend_graph_compute)(p->backend, g->graph);
    return (clock_of(CLOCK_THREAD_CPUTIME_ID) - start) / (double)j->count;
}

/* ---- the table */

static const uint64_t token_counts[] = {1, 4, 8, 16, 64, 512};
enum { TOKEN_COUNTS = sizeof token_counts / sizeof *token_counts };
static uint64_t only_tokens;

static void measure(const kind *k, job *j, const peer *p, double roof_one, double roof_two) {
    uint64_t bytes = j->code_bytes + scale_bytes_of(&j->matrix), in_pool = pool_bytes / j->stride;
    for (int t = 0; t < TOKEN_COUNTS; t++) {
        if (only_tokens && token_counts[t] != only_tokens)
            continue;
        double own[PASSES], two[PASSES], ggml[2][PASSES];
        peer_graph graphs[2];
        bool have[2] = {false, false};
        j->tokens = token_counts[t];
        j->count = j->tokens == 1 ? in_pool : j->tokens < 64 ? 8 : j->tokens == 64 ? 3 : 1;
        j->count = j->count < in_pool ? j->count : in_pool;
        for (int which = 0; which < 2 && p && k->ggml >= 0; which++)
            have[which] = p->types[which] && make_peer_graph(p, which, j, k->ggml, &graphs[which]);
        for (int pass = -1; pass < PASSES; pass++) { /* the first is not counted */
            int at = pass < 0 ? 0 : pass;
            own[at] = measure_own(j, 1);
            two[at] = j->tokens == 1 ? measure_own(j, 2) : 0;
            for (int which = 0; which < 2; which++)
                ggml[which][at] = have[which] ? measure_peer(p, j, &graphs[which]) : 0;
        }
        for (int which = 0; which < 2; which++)
            if (have[which])
                free_peer_graph(&graphs[which]);
        double time = median(own, PASSES), flops = 2e-9 * (double)j->matrix.rows * (double)j->matrix.columns * (double)j->tokens;
        double other = have[0] ? median(ggml[0], PASSES) : 0;
        const char *layout = "plain";
        if (have[1] && median(ggml[1], PASSES) < other) {
            other = median(ggml[1], PASSES);
            layout = "repacked";
        }
        printf("%-13s %5llu  %-14s %8.1f us %6.1f GB/s %7.1f GFLOP/s", t && !only_tokens ? "" : k->name, (unsigned long long)j->tokens,
               mica_product_method(&j->matrix, MICA_PRECISION_FAST, j->tokens), 1e6 * time, 1e-9 * (double)bytes / time, flops / time);
        if (j->tokens == 1) {
            double both = median(two, PASSES);
            printf("  %3.0f%% of the roof; two threads %5.1f GB/s, %3.0f%%", 1e-7 * (double)bytes / time / roof_one, 1e-9 * (double)bytes / both,
                   1e-7 * (double)bytes / both / roof_two);
        }
        if (other > 0)
            printf("  ggml %.1f us (%s), ratio %.2f", 1e6 * other, layout, other / time);
        printf("\n");
        fflush(stdout);
    }
}

static bool run_kind(const kind *k, uint64_t rows, uint64_t columns, const float *values, const peer *p, double roof_one, double roof_two) {
    job j = {.matrix = {.encoding = k->encoding, .dtype = k->dtype, .rows = rows, .columns = columns, .scale_dtype = k->scale_dtype,
                        .block_rows = k->block_rows, .block_columns = k->block_columns}, .values = values};
    j.code_bytes = rows * mica_matrix_row_bytes(&j.matrix);
    j.stride = (j.code_bytes + scale_bytes_of(&j.matrix) + 4095) / 4096 * 4096;
    if (columns % mica_dtype_block_elements(k->dtype) != 0 || j.stride > pool_bytes)
        return false;
    fill_weights(k, &j.matrix, pool, pool + j.code_bytes);
    for (uint64_t i = 1; i < pool_bytes / j.stride; i++)
        memcpy(pool + i * j.stride, pool, j.stride);
    j.out = allocate(rows * MOST_TOKENS * sizeof(float));
    j.storage = allocate(mica_operand_bytes(MICA_PRECISION_FAST, MOST_TOKENS, columns) + 64);
    for (int i = 0; i < 2; i++)
        j.scratch[i] = allocate(MICA_PRODUCT_SCRATCH_BYTES);
    measure(k, &j, p, roof_one, roof_two);
    mica_free_aligned(j.out);
    mica_free_aligned(j.storage);
    for (int i = 0; i < 2; i++)
        mica_free_aligned(j.scratch[i]);
    return true;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"rows", 1, NULL, 'r'}, {"columns", 1, NULL, 'c'}, {"pool-mb", 1, NULL, 'p'},
                                            {"ggml", 1, NULL, 'g'}, {"only", 1, NULL, 'o'},    {"tokens", 1, NULL, 't'},
                                            {NULL, 0, NULL, 0}};
    uint64_t rows = 1536, columns = 2048;
    const char *only = NULL, *directory = NULL;
    pool_bytes = 384u << 20;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'r': rows = strtoull(optarg, NULL, 10); break;
        case 'c': columns = strtoull(optarg, NULL, 10); break;
        case 'p': pool_bytes = strtoull(optarg, NULL, 10) << 20; break;
        case 'g': directory = optarg; break;
        case 't': only_tokens = strtoull(optarg, NULL, 10); break;
        case 'o': only = optarg; break;
        default: fprintf(stderr, "usage: bench_product [--rows N] [--columns N] [--pool-mb N] [--ggml DIR] [--only ENCODING] [--tokens N]\n"); return 2;
        }
    }
    peer p;
    if (directory && !open_peer(&p, directory)) {
        fprintf(stderr, "bench_product: no ggml in %s: %s\n", directory, dlerror());
        return 1;
    }
    pool = allocate(pool_bytes);
    float *values = allocate(MOST_TOKENS * columns * sizeof *values);
    for (uint64_t i = 0; i < MOST_TOKENS * columns; i++)
        values[i] = ((float)(random_u64() >> 40) * 0x1p-23f - 1) * (random_u64() % 100 ? 1 : 8);
    double one, two;
    printf("%llu x %llu, kernels %s%s\n", (unsigned long long)rows, (unsigned long long)columns, mica_cpu_name(mica_cpu_current()),
           mica_cpu_has_vnni() ? " with vnni" : "");
    print_roofs(&one, &two);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if ((!only || strcmp(only, kinds[i].name) == 0) && !run_kind(&kinds[i], rows, columns, values, directory ? &p : NULL, one, two))
            printf("%-13s skipped: the shape\n", kinds[i].name);
    print_roofs(&one, &two);
    return 0;
}
