/* test_pool.c: every index once a phase, every piece once, whatever the number of threads; what was written is seen; idle pools and pools
 * that could not be started end cleanly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/no_memory.h"
#include "base/pool.h"

typedef struct counts {
    atomic_uint calls[8];
    uint64_t phase;
    atomic_uint wrong;
    uint8_t touched[1000];
} counts;

static void count_call(void *context, uint32_t index) {
    counts *seen = context;
    atomic_fetch_add(&seen->calls[index], 1);
    if (seen->phase == 0)
        atomic_fetch_add(&seen->wrong, 1);
}

static void test_phases(void **state) {
    (void)state;
    for (uint32_t threads = 1; threads <= 8; threads++) {
        counts seen = {0};
        mica_pool *pool;
        assert_int_equal(mica_pool_create(threads, &pool, NULL), MICA_OK);
        assert_int_equal(mica_pool_threads(pool), threads);
        for (seen.phase = 1; seen.phase <= 500; seen.phase++) {
            mica_pool_run(pool, count_call, &seen);
            for (uint32_t i = 0; i < threads; i++)
                assert_int_equal(atomic_load(&seen.calls[i]), seen.phase);
            if (seen.phase % 250 == 0) /* long enough for the workers to fall asleep */
                nanosleep(&(struct timespec){0, 20000000}, NULL);
        }
        assert_int_equal(atomic_load(&seen.wrong), 0);
        mica_pool_free(pool);
    }
    mica_pool_free(NULL);
}

/* A hint changes nothing, also of memory that is not there, and beside work. */
static void test_expected(void **state) {
    (void)state;
    static uint8_t memory[1 << 16];
    counts seen = {0};
    mica_pool *pool;
    assert_int_equal(mica_pool_create(4, &pool, NULL), MICA_OK);
    for (seen.phase = 1; seen.phase <= 400; seen.phase++) {
        if (seen.phase % 2)
            mica_pool_expect(pool, memory, sizeof memory);
        else
            mica_pool_expect(pool, (const void *)(uintptr_t)4096, seen.phase % 4 ? 0 : 1 << 20);
        mica_pool_run(pool, count_call, &seen);
        for (uint32_t i = 0; i < 4; i++)
            assert_int_equal(atomic_load(&seen.calls[i]), seen.phase);
    }
    mica_pool_free(pool);
}

static void touch(void *context, uint64_t first, uint64_t last, uint32_t index) {
    counts *seen = context;
    (void)index;
    for (uint64_t i = first; i < last; i++)
        seen->touched[i]++;
}

static void test_pieces(void **state) {
    (void)state;
    mica_pool *pool;
    assert_int_equal(mica_pool_create(3, &pool, NULL), MICA_OK);
    static const uint64_t sizes[] = {0, 1, 63, 64, 65, 999, 1000}, grains[] = {1, 16, 64, 1000, 5000};
    for (size_t i = 0; i < 7; i++)
        for (size_t j = 0; j < 5; j++) {
            counts seen = {0};
            mica_pool_each(pool, sizes[i], grains[j], touch, &seen);
            for (uint64_t at = 0; at < 1000; at++)
                assert_int_equal(seen.touched[at], at < sizes[i]);
        }
    mica_pool_free(pool);
}

/* Phases that wait for all and phases that wait for nobody, one after the other: each index once, each piece once. */
static void test_mixed(void **state) {
    (void)state;
    mica_pool *pool;
    counts seen = {.phase = 1};
    assert_int_equal(mica_pool_create(4, &pool, NULL), MICA_OK);
    for (uint32_t round = 1; round <= 400; round++) {
        memset(seen.touched, 0, sizeof seen.touched);
        mica_pool_each(pool, 50 + round % 3, 1, touch, &seen);
        for (uint64_t at = 0; at < 100; at++)
            assert_int_equal(seen.touched[at], at < 50 + round % 3);
        if (round % 3 == 0)
            mica_pool_run(pool, count_call, &seen);
        for (uint32_t i = 0; i < 4; i++)
            assert_int_equal(atomic_load(&seen.calls[i]), round / 3);
    }
    mica_pool_free(pool);
}

static void test_no_memory(void **state) {
    (void)state;
    mica_error error;
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_pool *pool = NULL;
        no_memory_begin(&trial);
        const mica_status status = mica_pool_create(2, &pool, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
        assert_true(trial.succeeded == (pool != NULL));
        mica_pool_free(pool);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_phases), cmocka_unit_test(test_expected), cmocka_unit_test(test_pieces),
                                       cmocka_unit_test(test_mixed), cmocka_unit_test(test_no_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
