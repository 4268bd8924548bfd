/* bench_moments: sums of products of columns (numerics/second_moments, what `mica imatrix --covariance` adds to a pass) for the widths of Kimi-K2's inputs: GFLOP/s, a multiplication and an
 * addition for each pair of columns j <= i and token; on one thread and on all, beside OpenBLAS' ssyrk of the same tokens on one thread, in turns; the best of the rounds.
 *
 *     bench_moments [--rounds N] [--tokens N] [--threads N]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "numerics/lapack.h"
#include "numerics/second_moments.h"

enum { WIDEST = 8192 };
static const uint64_t widths[] = {512, 1536, 2048, 7168, 8192};

static double with_pool(mica_pool *pool, const float *x, uint64_t tokens, uint64_t width, float *scratch, float *sums) {
    const double begin = mica_seconds_now();
    mica_second_moments_add(pool, x, width, NULL, tokens, width, scratch, sums);
    return mica_seconds_now() - begin;
}

static double with_blas(const float *x, uint64_t tokens, uint64_t width, float *sums) {
    const double begin = mica_seconds_now();
    const int n = (int)width, k = (int)tokens;
    const float one = 1;
    mica_blas.ssyrk_("L", "N", &n, &k, &one, x, &n, &one, sums, &n);
    return mica_seconds_now() - begin;
}

static double least(double a, double b) {
    return b < a ? b : a;
}

int main(int count, char **arguments) {
    uint64_t tokens = 512, rounds = 3, threads = mica_thread_count_default();
    mica_error error;
    for (int i = 1; i + 1 < count; i += 2) {
        uint64_t *into = strcmp(arguments[i], "--tokens") == 0 ? &tokens : strcmp(arguments[i], "--rounds") == 0 ? &rounds : &threads;
        *into = strtoull(arguments[i + 1], NULL, 10);
    }
    mica_pool *pool = NULL;
    float *x = mica_alloc_aligned(tokens * WIDEST * sizeof *x), *sums = mica_alloc_aligned((uint64_t)WIDEST * WIDEST * sizeof *sums);
    float *scratch = mica_alloc_aligned((uint64_t)MICA_SECOND_MOMENTS_TOKENS * WIDEST * sizeof *scratch);
    if (!x || !sums || !scratch || mica_pool_create((uint32_t)threads, &pool, &error) != MICA_OK || mica_lapack_load(&error) != MICA_OK)
        return fprintf(stderr, "bench_moments: no memory, no threads or no OpenBLAS\n"), 1;
    for (uint64_t i = 0; i < tokens * WIDEST; i++)
        x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    memset(sums, 0, (uint64_t)WIDEST * WIDEST * sizeof *sums);
    printf("%llu tokens, GFLOP/s\n%7s %10s %9llu thr. %12s %12s\n", (unsigned long long)tokens, "columns", "one", (unsigned long long)threads, "ssyrk, one", "one/ssyrk");
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        double best[3] = {1e9, 1e9, 1e9};
        for (uint64_t r = 0; r < rounds; r++) {
            best[0] = least(best[0], with_pool(NULL, x, tokens, widths[w], scratch, sums));
            best[1] = least(best[1], with_pool(pool, x, tokens, widths[w], scratch, sums));
            best[2] = least(best[2], with_blas(x, tokens, widths[w], sums));
        }
        const double flop = (double)tokens * (double)widths[w] * (double)(widths[w] + 1) * 1e-9;
        printf("%7llu %10.1f %14.1f %12.1f %12.2f\n", (unsigned long long)widths[w], flop / best[0], flop / best[1], flop / best[2], best[2] / best[0]);
    }
    mica_pool_free(pool);
    mica_free_aligned(x);
    mica_free_aligned(sums);
    mica_free_aligned(scratch);
    return 0;
}
