/* bench_svd.c: the top-64 SVD of one expert on one core, against LAPACK on the same decoded matrix in the same run.
 *
 *     bench_svd [--rounds N] [--quick]
 *
 * Rounds are interleaved (ours, peers, ours, …) and medians of thread CPU time are printed, so that a noisy machine hits all alike; the share of
 * the roofline is that of the best round, since the peaks, too, are the best of their runs.
 * Peers, all of them OpenBLAS on one thread and from float32 W: sgesdd 'S' (what numpy and torch call); ssyrk + ssyevr for the top 64 (the fast
 * library route; its vectors carry no certificate and fail on steep spectra). The roofline is what our own operation counts need at the
 * peaks measured here first: int16 dot products for the Gram matrix, float32 FMA for the rest. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "bench.h"
#include "numerics/gram.h"
#include "numerics/kernels.h"
#include "numerics/lapack.h"
#include "numerics/spectrum.h"
#include "numerics/svd.h"
#include "../tests/numerics/matrices.h"

#define ROUNDS_MAX 64

/* Best of a few runs of the two inner loops on data in the first-level cache: what this core can do with these instructions. */
static void measure_peaks(const mica_kernels *kernels, double *integer, double *floating) {
    int16_t *panels = mica_alloc_aligned(3 * MICA_PANEL_INT16S * sizeof *panels);
    float *tiles = mica_alloc_aligned(2 * MICA_TILE_FLOATS * sizeof *tiles), scale[32];
    float *a = mica_alloc_aligned(48 * 64 * 4), *b = mica_alloc_aligned(64 * 64 * 4), *c = mica_alloc_aligned(48 * 64 * 4);
    for (int i = 0; i < 32; i++)
        scale[i] = 1;
    *integer = *floating = 0;
    for (int run = 0; run < 9; run++) {
        double begin = mica_thread_seconds_now();
        for (int i = 0; i < 20000; i++)
            kernels->gram_tiles(panels, 0, scale, panels + MICA_PANEL_INT16S, scale, tiles, tiles + MICA_TILE_FLOATS);
        double middle = mica_thread_seconds_now();
        for (int i = 0; i < 2000; i++)
            kernels->multiply_64(a, 64, 1, b, 64, c, 64, 48, 64, 1);
        double end = mica_thread_seconds_now();
        *integer = fmax(*integer, 20000.0 * 2 * 8 * 32 * MICA_PANEL_COLUMNS / (middle - begin));
        *floating = fmax(*floating, 2000.0 * 2 * 48 * 64 * 64 / (end - middle));
    }
    mica_free_aligned(panels), mica_free_aligned(tiles), mica_free_aligned(a), mica_free_aligned(b), mica_free_aligned(c);
}

/* Seconds that the operation count of one SVD needs at the peaks. */
static double roofline(size_t m, size_t n, const mica_svd_result *result, double integer, double floating) {
    double rows = (double)m, columns = (double)n, basis = result->basis, gram = rows * rows * columns;
    double sweeps = basis * result->plan.degree * 2 * rows * rows, orthogonal = 2 * rows * basis * basis, form = 2 * rows * basis * 64;
    double certify = 2 * 2 * rows * columns * 64, rotations = 2 * 64.0 * 64 * (columns + 2 * rows);
    return gram / integer + (sweeps + orthogonal + form + certify + rotations) / floating;
}

typedef struct peer_times {
    double sgesdd[ROUNDS_MAX], ssyevr[ROUNDS_MAX];
    int sgesdd_count, ssyevr_count;
    double value_error; /* of ssyrk + ssyevr, against ours, over s_0 */
} peer_times;

static void time_sgesdd(const float *values, size_t rows, size_t columns, peer_times *times) {
    int m = (int)columns, n = (int)rows, k = m < n ? m : n, info, work_count = 5 * k * k + 70 * k + 70 * (m + n);
    float *copy = mica_alloc_aligned(rows * columns * 4), *s = mica_alloc_aligned((size_t)k * 4),
          *u = mica_alloc_aligned((size_t)m * (size_t)k * 4);
    float *vt = mica_alloc_aligned((size_t)k * (size_t)n * 4), *work = mica_alloc_aligned((size_t)work_count * 4);
    int *integers = mica_alloc_aligned(8 * (size_t)k * sizeof(int));
    memcpy(copy, values, rows * columns * 4);
    double begin = mica_thread_seconds_now();
    mica_blas.sgesdd_("S", &m, &n, copy, &m, s, u, &m, vt, &k, work, &work_count, integers, &info);
    times->sgesdd[times->sgesdd_count++] = mica_thread_seconds_now() - begin;
    mica_free_aligned(copy), mica_free_aligned(s), mica_free_aligned(u), mica_free_aligned(vt), mica_free_aligned(work),
        mica_free_aligned(integers);
}

/* Gram matrix of the shorter side and its top 64 eigenpairs. */
static void time_ssyevr(const float *values, size_t rows, size_t columns, const double *ours, peer_times *times) {
    int m = (int)(rows < columns ? rows : columns), k = (int)(rows < columns ? columns : rows), ld = (int)columns, info, found;
    int low = m - 63, high = m, work_count = 40 * m, integer_count = 12 * m;
    float one = 1, zero = 0, *gram = mica_alloc_aligned((size_t)m * (size_t)m * 4), *w = mica_alloc_aligned((size_t)m * 4);
    float *z = mica_alloc_aligned((size_t)m * 64 * 4), *work = mica_alloc_aligned((size_t)work_count * 4);
    int *integers = mica_alloc_aligned(14 * (size_t)m * sizeof(int));
    double begin = mica_thread_seconds_now();
    mica_blas.ssyrk_("L", rows < columns ? "T" : "N", &m, &k, &one, values, &ld, &zero, gram, &m);
    mica_blas.ssyevr_("V", "I", "L", &m, gram, &m, &zero, &zero, &low, &high, &zero, &found, w, z, &m, integers, work, &work_count,
                      integers + 2 * m, &integer_count, &info);
    times->ssyevr[times->ssyevr_count++] = mica_thread_seconds_now() - begin;
    times->value_error = 0;
    for (int i = 0; i < 64; i++)
        times->value_error = fmax(times->value_error, fabs(sqrt(fmax((double)w[63 - i], 0)) - ours[i]) / ours[0]);
    mica_free_aligned(gram), mica_free_aligned(w), mica_free_aligned(z), mica_free_aligned(work), mica_free_aligned(integers);
}

static void run(const char *name, spectrum_kind kind, size_t rows, size_t columns, int rounds, double integer, double floating) {
    random_state = 42;
    float *values = random_values(kind, rows, columns);
    stored matrix = store_fp8(values, rows, columns, 128);
    mica_matrix_health health;
    mica_matrix_examine(&matrix.matrix, &health);
    mica_matrix_decode(&matrix.matrix, 0, 0, rows, values, columns);
    mica_svd_plan plan = {0};
    mica_svd_options options = {.count = 64, .vectors = true, .plan = &plan};
    double s[64], ours[ROUNDS_MAX], first = 0;
    float *vectors = malloc(64 * columns * sizeof *vectors);
    mica_svd_result result = {.values = s, .vectors = vectors};
    mica_svd_workspace *workspace;
    static peer_times peers;
    memset(&peers, 0, sizeof peers);
    check(mica_svd_workspace_create(rows, columns, &options, &workspace, &error));
    for (int round = -1; round < rounds; round++) {
        result.values = s;
        double begin = mica_thread_seconds_now();
        check(mica_svd(workspace, &matrix.matrix, health.exponent, &options, &result, &error));
        double seconds = mica_thread_seconds_now() - begin;
        plan = result.plan;
        if (round < 0)
            first = seconds; /* learns the plan and touches the memory: the first expert of a layer */
        else
            ours[round] = seconds;
        if (round >= 0)
            time_ssyevr(values, rows, columns, s, &peers);
        if (round >= 0 && round % 3 == 0)
            time_sgesdd(values, rows, columns, &peers);
    }
    double seconds = median(ours, rounds), best = ours[0], sgesdd = median(peers.sgesdd, peers.sgesdd_count),
           ssyevr = median(peers.ssyevr, peers.ssyevr_count);
    size_t m = rows < columns ? rows : columns, n = rows < columns ? columns : rows;
    double floor_seconds = result.route == MICA_SVD_KRYLOV ? roofline(m, n, &result, integer, floating) : NAN;
    printf("| %s %zux%zu | %.0f | %.0f | %.0f | %.0f | %.0f %% | %.0f | %.1fx | %.0f | %.1fx | %.1e | %.1e | %.1e |\n", name, rows, columns,
           seconds * 1e3, best * 1e3, first * 1e3, floor_seconds * 1e3, 100 * floor_seconds / best, sgesdd * 1e3, sgesdd / seconds, ssyevr * 1e3,
           ssyevr / seconds, result.residual, result.orthonormality, peers.value_error);
    fflush(stdout);
    mica_svd_workspace_free(workspace);
    stored_free(&matrix);
    free(values), free(vectors);
}

int main(int count, char **arguments) {
    int rounds = 7, quick = 0;
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--quick") == 0)
            quick = 1;
        else if (strcmp(arguments[i], "--rounds") == 0 && i + 1 < count && atoi(arguments[i + 1]) > 0 &&
                 atoi(arguments[i + 1]) <= ROUNDS_MAX)
            rounds = atoi(arguments[++i]);
        else {
            fprintf(stderr, "usage: bench_svd [--rounds 1…%d] [--quick]\n", ROUNDS_MAX);
            return 2;
        }
    }
    if (getenv("OPENBLAS_CORETYPE"))
        fprintf(stderr, "bench_svd: OPENBLAS_CORETYPE is set; the peers may run below their speed. Unset it.\n");
    check(mica_lapack_load(&error));
    double integer, floating;
    measure_peaks(mica_kernels_for(mica_cpu_current()), &integer, &floating);
    printf("%s; peaks here: int16 dot %.0f Gop/s, float32 FMA %.0f Gflop/s; one core, thread CPU time, medians of %d\n\n",
           mica_svd_arithmetic(), integer * 1e-9, floating * 1e-9, rounds);
    printf(
        "| fp8 matrix | ms | best, ms | first of a layer, ms | roofline, ms | reached | sgesdd, ms | ratio | ssyrk + ssyevr, ms | ratio | residual | orthonormality "
        "| s error of ssyevr |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    run("flat", FLAT, 2048, 7168, rounds, integer, floating);
    run("flat", FLAT, 2048, 4096, rounds, integer, floating);
    if (quick)
        return 0;
    run("spiked", SPIKED, 2048, 7168, rounds, integer, floating);
    run("1/i", HARMONIC, 2048, 7168, rounds, integer, floating);
    run("flat", FLAT, 7168, 2048, rounds, integer, floating);
    return 0;
}
