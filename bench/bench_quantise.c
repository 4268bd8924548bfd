/* bench_quantise: our quantisers beside llama.cpp's own (its libggml-base, loaded at run time), in one run. Both results are decoded by ggml.
 * Error: sqrt(sum q (x - y)^2 / sum q x^2), q the importance of the column. Speed: thread CPU time, the two interleaved, medians.
 *
 *     bench_quantise [--ggml FILE] [--rows N] [--columns N] [--repeats N] [--types Q4_K,Q6_K] [--data gauss,laplace,t5,fp8,tiny-k2] [--gain G]
 */
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "bench.h"
#include "model/model.h"
#include "numerics/quantise.h"

#define GGML_PATH "build/peers/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so"
#define TINY_K2 "models/tiny-k2"

enum { REPEATS_MOST = 31 };

typedef size_t ggml_quantise(int type, const float *x, void *out, int64_t start, int64_t rows, int64_t columns, const float *importance);
typedef void ggml_decode(const void *blocks, float *y, int64_t count);

typedef struct peer {
    void *library;
    ggml_quantise *quantise;
    void (*init)(int type);
} peer;

typedef struct settings {
    const char *ggml, *types, *data;
    uint64_t rows, columns;
    int repeats;
    double gain;
} settings;

/* ---- data */

static double uniform(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return ((double)(state >> 11) + 0.5) * 0x1p-53;
}

static double gauss(void) {
    return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

static double student5(void) {
    double chi = 0;
    for (int k = 0; k < 5; k++) {
        double g = gauss();
        chi += g * g;
    }
    return sqrt(0.6) * gauss() / sqrt(chi / 5);
}

static double laplace(void) {
    double u = uniform() - 0.5;
    return sqrt(0.5) * (u < 0 ? log(1 + 2 * u) : -log(1 - 2 * u));
}

/* The F8_E4M3 code nearest to x. */
static uint8_t e4m3_code(float x) {
    int exponent;
    float size = fminf(fabsf(x), 448);
    frexpf(size, &exponent); /* size = fraction * 2^exponent, fraction from 0.5 */
    int binade = exponent < -5 ? -6 : exponent - 1, eighths = (int)rintf(ldexpf(size, 3 - binade));
    int code = (binade + 6) * 8 + eighths; /* normal numbers have 8 to 15 eighths; 16 is the next binade's first */
    return (uint8_t)((code > 126 ? 126 : code) | (x < 0 ? 0x80 : 0));
}

/* As checkpoints have it: 128 x 128 blocks, the largest value of each at 448. x becomes what the codes decode to. */
static void to_fp8(float *x, mica_matrix *matrix, uint8_t *codes, float *scales) {
    uint64_t rows = matrix->rows, columns = matrix->columns;
    for (uint64_t r0 = 0; r0 < rows; r0 += 128)
        for (uint64_t c0 = 0; c0 < columns; c0 += 128) {
            float most = 0;
            for (int pass = 0; pass < 2; pass++)
                for (uint64_t r = r0; r < rows && r < r0 + 128; r++)
                    for (uint64_t c = c0; c < columns && c < c0 + 128; c++)
                        if (pass == 0)
                            most = fmaxf(most, fabsf(x[r * columns + c]));
                        else
                            codes[r * columns + c] = e4m3_code(x[r * columns + c] / (most / 448));
            scales[r0 / 128 * ((columns + 127) / 128) + c0 / 128] = most / 448;
        }
    mica_matrix_decode(matrix, 0, 0, rows, x, columns);
}

/* Routed experts of tiny-k2, rows of 256; as many as the other data has weights. */
static uint64_t fill_tiny_k2(float *x, uint64_t wanted) {
    mica_model *model = NULL;
    mica_model_options options = {0};
    uint64_t filled = 0;
    if (mica_model_open(TINY_K2, &options, &model, &error) != MICA_OK) {
        fprintf(stderr, "bench_quantise: %s\n", error.message);
        return 0;
    }
    for (uint64_t i = 0; i < model->weight_count && filled < wanted; i++) {
        const mica_weight *weight = model->weights + i;
        uint64_t count = weight->rows * weight->columns;
        float *values;
        if (weight->expert < 0 || weight->columns % 256 || mica_weight_load(model, weight, &values, &error) != MICA_OK)
            continue;
        if (count > wanted - filled)
            count = wanted - filled;
        memcpy(x + filled, values, count * sizeof *x);
        filled += count;
        mica_free(values);
    }
    mica_model_close(model);
    return filled;
}

static const char *const data_names[] = {"gauss", "laplace", "t5", "fp8", "tiny-k2"};
enum { GAUSS, LAPLACE, STUDENT, FP8, TINY, DATA_COUNT };

typedef struct work {
    float *x, *y, *importance;
    uint8_t *blocks;
    uint64_t rows, columns;
    mica_matrix fp8; /* what x is decoded from, or no codes */
    uint8_t *codes;
    float *scales;
} work;

/* Fills x; false when this data cannot be had. */
static bool fill(int data, const settings *s, work *w) {
    uint64_t count = s->rows * s->columns;
    w->rows = s->rows;
    w->columns = s->columns;
    w->fp8 = (mica_matrix){.encoding = MICA_ENCODING_FP8_BLOCK, .dtype = MICA_F8_E4M3, .rows = s->rows, .columns = s->columns, .codes = w->codes,
                           .scale_dtype = MICA_F32, .block_rows = 128, .block_columns = 128, .scales = w->scales};
    if (data == TINY) {
        w->columns = 256;
        w->rows = fill_tiny_k2(w->x, count) / 256;
    }
    for (uint64_t i = 0; data != TINY && i < count; i++)
        w->x[i] = (float)(0.02 * (data == LAPLACE ? laplace() : data == STUDENT ? student5() : gauss()));
    if (data == FP8)
        to_fp8(w->x, &w->fp8, w->codes, w->scales);
    else
        w->fp8.codes = NULL;
    return w->rows != 0;
}

/* ---- measuring */

static double error_of(const float *x, const float *y, const float *importance, uint64_t rows, uint64_t columns) {
    double squared = 0, energy = 0;
    for (uint64_t i = 0; i < rows * columns; i++) {
        double q = importance ? (double)importance[i % columns] : 1, off = (double)x[i] - (double)y[i];
        squared += q * off * off;
        energy += q * (double)x[i] * (double)x[i];
    }
    return sqrt(squared / energy);
}

static ggml_decode *decoder_of(const peer *ggml, mica_dtype type) {
    char name[64];
    snprintf(name, sizeof name, "dequantize_row_%s", mica_dtype_name(type));
    for (char *c = name + strlen("dequantize_row_"); *c; c++)
        if (*c >= 'A' && *c <= 'Z' && *c != 'K')
            *c = (char)(*c - 'A' + 'a');
    return (ggml_decode *)(uintptr_t)dlsym(ggml->library, name);
}

/* `stored`: from the fp8 matrix instead of its decoded values, decoding counted. */
static void measure(const peer *ggml, mica_dtype type, const char *data, bool important, bool stored, const settings *s, const work *w) {
    double seconds[1 + MICA_EFFORT_COUNT][REPEATS_MOST], errors[1 + MICA_EFFORT_COUNT] = {0};
    const float *importance = important ? w->importance : NULL;
    ggml_decode *decode = decoder_of(ggml, type);
    uint64_t count = w->rows * w->columns;
    for (int repeat = 0; repeat < s->repeats; repeat++)
        for (int who = 0; who <= MICA_EFFORT_COUNT; who++) {
            mica_quantise_options options = {.effort = (mica_effort)(who - 1), .gain = s->gain, .importance = importance};
            mica_status status = MICA_OK;
            double start = mica_thread_seconds_now();
            if (who == 0)
                ggml->quantise(mica_dtype_ggml(type), w->x, w->blocks, 0, (int64_t)w->rows, (int64_t)w->columns, importance);
            else if (stored)
                status = mica_quantise_matrix(type, &w->fp8, 0, w->rows, &options, w->y, w->blocks, &error);
            else
                status = mica_quantise_rows(type, w->x, w->columns, w->rows, w->columns, &options, w->blocks, &error);
            seconds[who][repeat] = mica_thread_seconds_now() - start;
            check(status);
            if (repeat == 0) {
                decode(w->blocks, w->y, (int64_t)count);
                errors[who] = error_of(w->x, w->y, importance, w->rows, w->columns);
            }
        }
    double theirs = median(seconds[0], (uint64_t)s->repeats);
    printf("%-7s %-8s %-3s %8.5f %7.0f", mica_dtype_name(type), stored ? "fp8 + S" : data, important ? "yes" : "no", errors[0], 4e-6 * (double)count / theirs);
    for (int effort = 0; effort < MICA_EFFORT_COUNT; effort++) {
        double ours = median(seconds[1 + effort], (uint64_t)s->repeats);
        printf(" | %6.4f %6.0f %6.1fx", errors[1 + effort] / errors[0], 4e-6 * (double)count / ours, theirs / ours);
    }
    printf("\n");
    fflush(stdout);
}

static bool listed(const char *list, const char *name) {
    size_t length = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncasecmp(at, name, length) == 0 && (at[length] == ',' || !at[length]))
            return true;
    return !list;
}

static int parse(int count, char **arguments, settings *s) {
    for (int i = 1; i < count; i += 2) {
        const char *name = arguments[i], *value = i + 1 < count ? arguments[i + 1] : "";
        if (strcmp(name, "--ggml") == 0)
            s->ggml = value;
        else if (strcmp(name, "--types") == 0)
            s->types = value;
        else if (strcmp(name, "--data") == 0)
            s->data = value;
        else if (strcmp(name, "--rows") == 0)
            s->rows = strtoull(value, NULL, 10);
        else if (strcmp(name, "--columns") == 0)
            s->columns = strtoull(value, NULL, 10);
        else if (strcmp(name, "--repeats") == 0)
            s->repeats = atoi(value);
        else if (strcmp(name, "--gain") == 0)
            s->gain = atof(value);
        else
            return 2;
    }
    return s->rows && s->columns % 256 == 0 && s->columns && s->repeats > 0 && s->repeats <= REPEATS_MOST ? 0 : 2;
}

int main(int count, char **arguments) {
    settings s = {.ggml = GGML_PATH, .rows = 64, .columns = 2048, .repeats = 7, .gain = MICA_QUANTISE_GAIN};
    if (parse(count, arguments, &s) != 0) {
        fprintf(stderr, "usage: bench_quantise [--ggml FILE] [--rows N] [--columns N] [--repeats N] [--types A,B] [--data A,B] [--gain G]\n");
        return 2;
    }
    peer ggml = {.library = dlopen(s.ggml, RTLD_NOW | RTLD_LOCAL)};
    if (!ggml.library) {
        fprintf(stderr, "bench_quantise: %s (scripts/setup-peers brings it; --ggml names another)\n", dlerror());
        return 1;
    }
    ggml.quantise = (ggml_quantise *)(uintptr_t)dlsym(ggml.library, "ggml_quantize_chunk");
    uint64_t most = s.rows * s.columns;
    work w = {.x = mica_malloc(4 * most), .y = mica_malloc(4 * most), .importance = mica_malloc(4 * s.columns), .blocks = mica_malloc(2 * most),
              .codes = mica_malloc(most), .scales = mica_malloc(4 * (most / 128 + s.rows))};
    if (!ggml.quantise || !w.codes || !w.scales || !w.x || !w.y || !w.importance || !w.blocks)
        return 1;
    for (uint64_t c = 0; c < s.columns; c++)
        w.importance[c] = (float)exp(gauss());
    printf("%s kernels, gain %g; error ratio (ours / ggml's), MB of float32 a second, speed ratio, at fast | default | max\n"
           "%-7s %-8s %-3s %8s %7s | %6s %6s %7s | %6s %6s %7s | %6s %6s %7s\n",
           mica_cpu_name(mica_cpu_current()), s.gain, "type", "data", "imp", "ggml err", "MB/s", "error", "MB/s", "speed", "error", "MB/s", "speed",
           "error", "MB/s", "speed");
    for (int data = 0; data < DATA_COUNT; data++) {
        if (!listed(s.data, data_names[data]) || !fill(data, &s, &w))
            continue;
        for (int type = MICA_Q4_0; type < MICA_DTYPE_COUNT; type++)
            for (int important = 0; important < 2 && listed(s.types, mica_dtype_name((mica_dtype)type)); important++)
                for (int stored = 0; stored <= (type == MICA_Q8_0 && data == FP8); stored++)
                    measure(&ggml, (mica_dtype)type, data_names[data], important, stored, &s, &w);
    }
    mica_free(w.x);
    mica_free(w.y);
    mica_free(w.importance);
    mica_free(w.blocks);
    mica_free(w.codes);
    mica_free(w.scales);
    return 0;
}
