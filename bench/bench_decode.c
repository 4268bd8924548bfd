/* bench_decode [LIBGGML-BASE.SO]: decoding and examining, in GB/s, per encoding and instruction set; one core, expert-sized input
 * (2048 x 7168). Decoding counts codes read and floats written, examining the codes. Each figure is the best of several passes. Of ggml's blocks
 * with that library also its own decoder, in the same run. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "numerics/matrix.h"

enum { ROWS = 2048, COLUMNS = 7168, PASSES = 7, BAND = 16 };

/* Codes as weights have them: no NaN, no infinity, magnitudes spread around the middle of the format. */
static void fill(uint8_t *bytes, uint64_t count, mica_dtype dtype) {
    uint64_t state = 1;
    for (uint64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint8_t byte = (uint8_t)(state >> 56);
        bool top = mica_dtype_bytes(dtype) <= 1 || i % mica_dtype_bytes(dtype) == mica_dtype_bytes(dtype) - 1;
        if (mica_dtype_is_block(dtype))
            byte &= 0xbb; /* halves anywhere in it are finite */
        bytes[i] = top && !mica_dtype_is_block(dtype) && dtype != MICA_I8 && dtype != MICA_I32 ? (byte & 0xbf) | 0x08 : byte;
    }
}

static void measure(const char *name, mica_matrix matrix, uint8_t *codes, float *out) {
    uint64_t bytes = ROWS * mica_matrix_row_bytes(&matrix);
    fill(codes, bytes, matrix.dtype);
    matrix.codes = codes;
    for (mica_cpu cpu = 0; cpu <= mica_cpu_detected(); cpu++) {
        double whole = 1e9, band = 1e9, examine = 1e9;
        mica_cpu_select(cpu);
        for (int pass = 0; pass < (cpu ? PASSES : 2); pass++) {
            mica_matrix_health health;
            double start = mica_seconds_now();
            mica_matrix_decode(&matrix, 0, 0, ROWS, out, COLUMNS);
            double decoded = mica_seconds_now();
            for (uint64_t row = 0; row < ROWS; row += BAND) {
                mica_matrix_decode(&matrix, 0, row, BAND, out, COLUMNS);
            }
            double banded = mica_seconds_now();
            mica_matrix_examine(&matrix, &health);
            double examined = mica_seconds_now();
            whole = decoded - start < whole ? decoded - start : whole;
            band = banded - decoded < band ? banded - decoded : band;
            examine = examined - banded < examine ? examined - banded : examine;
        }
        double moved = 1e-9 * ((double)bytes + 4.0 * ROWS * COLUMNS);
        printf("%-18s %-9s %9.2f %8.1f %12.2f %8.1f %12.2f %8.1f\n", name, mica_cpu_name(cpu), 1e3 * whole, moved / whole, 1e3 * band, moved / band,
               1e3 * examine, 1e-9 * (double)bytes / examine);
    }
}

/* The peer: dequantize_row_TYPE of libggml-base. */
static void measure_ggml(void *library, mica_dtype dtype, const uint8_t *codes, float *out) {
    char name[64];
    const char *type = mica_dtype_name(dtype);
    size_t length = (size_t)snprintf(name, sizeof name, "dequantize_row_");
    for (; *type && length + 1 < sizeof name; type++) /* q4_K, iq4_nl: only a K alone stays a capital */
        name[length++] = (char)(*type == 'K' || *type < 'A' || *type > 'Z' ? *type : *type + 32);
    name[length] = '\0';
    void (*decode)(const void *blocks, float *values, int64_t count);
    void *symbol = dlsym(library, name);
    double best = 1e9;
    memcpy(&decode, &symbol, sizeof decode);
    for (int pass = 0; symbol && pass < PASSES; pass++) {
        double start = mica_seconds_now();
        decode(codes, out, (int64_t)ROWS * COLUMNS);
        double took = mica_seconds_now() - start;
        best = took < best ? took : best;
    }
    uint64_t bytes = 0;
    if (symbol && mica_dtype_run_bytes(dtype, (uint64_t)ROWS * COLUMNS, &bytes))
        printf("%-18s %-9s %9.2f %8.1f\n", mica_dtype_name(dtype), "libggml", 1e3 * best, 1e-9 * ((double)bytes + 4.0 * ROWS * COLUMNS) / best);
}

int main(int argc, char **argv) {
    void *ggml = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
    uint8_t *codes = mica_alloc_aligned((size_t)ROWS * COLUMNS * 4), *scales = mica_alloc_aligned((size_t)ROWS * COLUMNS / 8);
    float *out = mica_alloc_aligned((size_t)ROWS * COLUMNS * 4);
    if (!codes || !scales || !out) {
        fprintf(stderr, "bench_decode: out of memory\n");
        return 1;
    }
    for (size_t i = 0; i < (size_t)ROWS * COLUMNS / 32; i++) {
        const float scale = 0.000123f;
        memcpy(scales + 4 * i, &scale, 4);
    }
    mica_matrix plain = {.encoding = MICA_ENCODING_PLAIN, .rows = ROWS, .columns = COLUMNS};
    mica_matrix scaled = {.rows = ROWS, .columns = COLUMNS, .scales = scales, .block_rows = 1, .block_columns = 32};
    printf("%d x %d, one core\n%-18s %-9s %9s %8s %12s %8s %12s %8s\n", ROWS, COLUMNS, "encoding", "kernels", "decode ms", "GB/s", "in bands ms", "GB/s",
           "examine ms", "GB/s");
    static const struct {
        const char *name;
        mica_dtype dtype;
    } plains[] = {{"F32", MICA_F32}, {"F16", MICA_F16}, {"BF16", MICA_BF16}};
    for (size_t i = 0; i < sizeof plains / sizeof *plains; i++) {
        plain.dtype = plains[i].dtype;
        measure(plains[i].name, plain, codes, out);
    }
    mica_matrix fp8 = scaled;
    fp8.encoding = MICA_ENCODING_FP8_BLOCK;
    fp8.block_rows = fp8.block_columns = 128;
    fp8.scale_dtype = MICA_F32;
    fp8.dtype = MICA_F8_E4M3;
    measure("F8_E4M3 128x128", fp8, codes, out);
    fp8.dtype = MICA_F8_E5M2;
    measure("F8_E5M2 128x128", fp8, codes, out);
    scaled.encoding = MICA_ENCODING_INT4_GROUP;
    scaled.dtype = MICA_I32;
    scaled.scale_dtype = MICA_BF16;
    measure("int4 1x32 BF16", scaled, codes, out);
    for (mica_dtype dtype = MICA_DTYPE_PLAIN_COUNT; dtype < MICA_DTYPE_COUNT; dtype++) {
        mica_matrix block = {.encoding = MICA_ENCODING_BLOCK, .dtype = dtype, .rows = ROWS, .columns = COLUMNS};
        measure(mica_dtype_name(dtype), block, codes, out);
        if (ggml)
            measure_ggml(ggml, dtype, codes, out);
    }
    memset(scales, 121, (size_t)ROWS * COLUMNS / 32);
    scaled.encoding = MICA_ENCODING_MXFP4;
    scaled.dtype = MICA_I8;
    scaled.scale_dtype = MICA_F8_E8M0;
    measure("mxfp4 1x32", scaled, codes, out);
    mica_free_aligned(codes);
    mica_free_aligned(scales);
    mica_free_aligned(out);
    return 0;
}
