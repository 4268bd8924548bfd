/* bench_covariance: the search with input covariance beside llama.cpp's quantiser with its imatrix, on tiny-k2's routed experts (up projections, 256
 * columns) and the inputs they really get. The first three quarters of the text's tokens make the covariance and the imatrix (its diagonal); the error is
 * that of the outputs on the rest: sqrt(sum |(W - W') a|^2 / sum |W a|^2) over layers, experts and tokens. "shrunk" is 1 - <Wa, W'a> / <Wa, Wa>.
 *
 *     bench_covariance [--ggml FILE] [--tokens N]
 */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench.h"
#include "numerics/quantise_covariance.h"
#include "operations/compute.h"

#define GGML_PATH "build/peers/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so"
#define TINY_K2 "models/tiny-k2"

enum { N = 256, WINDOW = 512, LAYERS = 8 };

typedef size_t ggml_quantise(int type, const float *x, void *out, int64_t start, int64_t rows, int64_t columns, const float *importance);

/* One layer's second moments of the inputs: of the tokens to learn from, and of those to judge by. */
typedef struct moments {
    double learnt[N * N], judged[N * N];
    uint64_t learnt_tokens;
} moments;

typedef struct collector {
    const mica_model *model;
    moments *layers; /* [LAYERS] */
    bool judging;
} collector;

static void collect(void *context, const mica_weight *weight, const float *x, uint64_t stride, const uint32_t *selection, uint64_t tokens) {
    collector *c = context;
    if (weight->layer < 0 || weight->layer >= LAYERS || weight != c->model->layers[weight->layer].router)
        return;
    moments *m = c->layers + weight->layer;
    double *sums = c->judging ? m->judged : m->learnt;
    for (uint64_t t = 0; t < tokens; t++) {
        const float *a = x + (selection ? selection[t] : t) * stride;
        for (int i = 0; i < N; i++)
            for (int k = 0; k < N; k++)
                sums[i * N + k] += (double)a[i] * (double)a[k];
    }
    m->learnt_tokens += c->judging ? 0 : tokens;
}

/* sum over rows of u^T H v */
static double product(const double *h, const float *u, const float *v, uint64_t rows) {
    double sum = 0;
    for (uint64_t row = 0; row < rows; row++)
        for (int i = 0; i < N; i++) {
            double inner = 0;
            for (int k = 0; k < N; k++)
                inner += h[i * N + k] * (double)v[row * N + k];
            sum += inner * (double)u[row * N + i];
        }
    return sum;
}

typedef struct result {
    double error, energy, shared, seconds;
} result;

static void judge(mica_dtype type, const float *x, const uint8_t *blocks, const double *h, uint64_t rows, result *r) {
    mica_matrix matrix = {.encoding = MICA_ENCODING_BLOCK, .dtype = type, .rows = rows, .columns = N, .codes = blocks};
    float *y = mica_malloc(rows * N * sizeof *y);
    mica_matrix_decode(&matrix, 0, 0, rows, y, N);
    r->energy += product(h, x, x, rows);
    r->shared += product(h, x, y, rows);
    for (uint64_t i = 0; i < rows * N; i++)
        y[i] = x[i] - y[i];
    r->error += product(h, y, y, rows);
    mica_free(y);
}

/* All up projections of a layer below one another. */
static float *load_experts(const mica_model *model, uint64_t layer, uint64_t *rows) {
    uint64_t experts = model->config.n_routed_experts;
    float *all = NULL;
    *rows = 0;
    for (uint64_t e = 0; e < experts; e++) {
        const mica_weight *up = model->layers[layer].experts[e * MICA_PROJECTION_COUNT + MICA_UP];
        float *one;
        check(mica_weight_load(model, up, &one, &error));
        if (!all)
            all = need(mica_malloc(experts * up->rows * N * sizeof *all));
        memcpy(all + *rows * N, one, up->rows * N * sizeof *all);
        *rows += up->rows;
        mica_free(one);
    }
    return all;
}

enum { THEIRS, PLAIN, WITH, WITH_GAIN, WAYS };

static void run_layer(ggml_quantise *theirs, mica_dtype type, const moments *m, const float *x, uint64_t rows, uint8_t *blocks, result r[WAYS]) {
    static float h[N * N];
    float diagonal[N];
    mica_covariance *covariance = NULL;
    for (int i = 0; i < N * N; i++)
        h[i] = (float)(m->learnt[i] / (double)m->learnt_tokens);
    for (int i = 0; i < N; i++)
        diagonal[i] = h[i * N + i];
    check(mica_covariance_create(h, N, MICA_COVARIANCE_DAMPING, &covariance, &error));
    for (int way = 0; way < WAYS; way++) {
        mica_quantise_options options = {MICA_EFFORT_DEFAULT, way == WITH ? 0 : MICA_QUANTISE_GAIN, diagonal};
        double start = mica_thread_seconds_now();
        if (way == THEIRS)
            theirs(mica_dtype_ggml(type), x, blocks, 0, (int64_t)rows, N, diagonal);
        else if (way == PLAIN)
            check(mica_quantise_rows(type, x, N, rows, N, &options, blocks, &error));
        else
            check(mica_quantise_rows_covariance(type, x, N, rows, covariance, &options, blocks, &error));
        r[way].seconds += mica_thread_seconds_now() - start;
        judge(type, x, blocks, m->judged, rows, &r[way]);
    }
    mica_covariance_free(covariance);
}

static void read_text(mica_compute *compute, collector *c, uint64_t most) {
    static char text[1 << 18];
    FILE *file = fopen(TINY_K2 "/heldout.txt", "rb");
    uint64_t length = file ? fread(text, 1, sizeof text, file) : 0, count = 0;
    uint32_t *ids = NULL;
    if (file)
        fclose(file);
    check(mica_tokenizer_encode(compute->tokenizer, text, length, false, &ids, &count, &error));
    count = count < most ? count : most;
    for (uint64_t at = 0; at + WINDOW <= count; at += WINDOW) {
        int64_t window[WINDOW];
        for (int i = 0; i < WINDOW; i++)
            window[i] = ids[at + (uint64_t)i];
        c->judging = at >= count / 4 * 3;
        mica_engine_rewind(compute->engine, 0);
        check(mica_engine_step(compute->engine, window, WINDOW, &error));
    }
    mica_ids_free(ids);
}

int main(int count, char **arguments) {
    const char *path = GGML_PATH;
    uint64_t tokens = 32768;
    for (int i = 1; i + 1 < count; i += 2) {
        if (strcmp(arguments[i], "--ggml") == 0)
            path = arguments[i + 1];
        else if (strcmp(arguments[i], "--tokens") == 0)
            tokens = strtoull(arguments[i + 1], NULL, 10);
        else
            fail("usage: bench_covariance [--ggml FILE] [--tokens N]");
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    ggml_quantise *theirs = library ? (ggml_quantise *)(uintptr_t)dlsym(library, "ggml_quantize_chunk") : NULL;
    if (!theirs)
        fail("%s", dlerror());
    mica_compute compute = {0};
    mica_compute_options options = {.context = WINDOW, .exact = true};
    moments *layers = need(mica_calloc(LAYERS, sizeof *layers));
    check(mica_compute_open_model(TINY_K2, &compute, &error));
    check(mica_compute_open_engine(&compute, &options, 0, 0, &error));
    collector c = {.model = compute.model, .layers = layers};
    mica_observer observer = {.context = &c, .input = collect};
    mica_engine_observe(compute.engine, &observer);
    read_text(&compute, &c, tokens);
    static const mica_dtype types[] = {MICA_Q2_K, MICA_Q4_K, MICA_Q5_K};
    static const char *const names[WAYS] = {"llama.cpp, imatrix", "ours, imatrix", "covariance, gain 0", "covariance, gain 0.75"};
    uint8_t *blocks = mica_malloc(8u << 20);
    printf("%llu tokens to learn from\n%-6s %-22s %9s %7s %9s %7s\n", (unsigned long long)layers[1].learnt_tokens, "type", "", "error", "ratio", "shrunk", "MB/s");
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        result r[WAYS] = {{0}};
        uint64_t weights = 0;
        for (uint64_t layer = 0; layer < LAYERS && layer < compute.model->config.num_hidden_layers; layer++) {
            uint64_t rows;
            if (!compute.model->layers[layer].moe)
                continue;
            float *x = load_experts(compute.model, layer, &rows);
            run_layer(theirs, types[t], layers + layer, x, rows, blocks, r);
            weights += rows * N;
            mica_free(x);
        }
        for (int way = 0; way < WAYS; way++)
            printf("%-6s %-22s %9.5f %7.4f %8.3f%% %7.0f\n", mica_dtype_name(types[t]), names[way], sqrt(r[way].error / r[way].energy),
                   sqrt(r[way].error / r[THEIRS].error), 100 * (1 - r[way].shared / r[way].energy), 4e-6 * (double)weights / r[way].seconds);
    }
    mica_free(blocks);
    mica_free(layers);
    mica_compute_close(&compute);
    return 0;
}
