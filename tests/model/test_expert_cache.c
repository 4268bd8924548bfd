/* test_expert_cache.c: the mechanism (pins, victims, queues, failures) and the policies, on tiny-k2's experts: what is read is what is stored,
 * for every order of requests, with slow and failing reads. */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "golden.h"
#include "base/no_memory.h"
#include "model/expert_cache.h"
#include "model/weight_layout.h"

enum { LAYERS = 5, EXPERTS = 24, AHEAD = 3 }; /* AHEAD: pieces of prefetches on their way at most */

static mica_model *model;
static float *decoded[LAYERS][EXPERTS]; /* of down projections */

static int open_model(void **state) {
    (void)state;
    if (mica_model_open(TINY_K2, NULL, &model, NULL) != MICA_OK)
        return -1;
    for (int layer = 1; layer < LAYERS; layer++)
        for (int e = 0; e < EXPERTS; e++)
            if (mica_weight_load(model, model->layers[layer].experts[e * MICA_PROJECTION_COUNT + MICA_DOWN], &decoded[layer][e], NULL) != MICA_OK)
                return -1;
    return 0;
}

static int close_model(void **state) {
    (void)state;
    for (int layer = 1; layer < LAYERS; layer++)
        for (int e = 0; e < EXPERTS; e++)
            mica_free(decoded[layer][e]);
    mica_model_close(model);
    return 0;
}

static mica_expert_cache *open_cache(uint64_t slots, uint32_t threads, const char *policy) {
    mica_expert_cache *cache;
    mica_error error;
    if (mica_expert_cache_open(model, slots, threads, mica_cache_policy_find(policy), &cache, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(mica_expert_cache_slots(cache), slots);
    return cache;
}

static void check(mica_expert_cache *cache, uint64_t layer, uint32_t expert) {
    const mica_matrix *matrices;
    float row[128];
    mica_expert_cache_wait(cache, layer, &expert, 1);
    assert_true(mica_expert_cache_ready(cache, layer, expert));
    assert_int_equal(mica_expert_cache_get(cache, layer, expert, &matrices, NULL), MICA_OK);
    mica_matrix_decode(&matrices[MICA_DOWN], 0, 17, 1, row, 128);
    assert_memory_equal(row, decoded[layer][expert] + 17 * 128, sizeof row);
}

static void test_random_requests(void **state) {
    (void)state;
    static const char *const policies[] = {"lfu", "lru"};
    for (int p = 0; p < 2; p++)
        for (uint32_t threads = 1; threads <= 4; threads += 3)
            for (uint64_t slots = 2; slots <= 32; slots *= 4) {
                mica_expert_cache *cache = open_cache(slots, threads, policies[p]);
                uint64_t random = 7 + slots, uses = 0;
                for (int round = 0; round < 300; round++) {
                    uint64_t layer = 1 + (random >> 33) % (LAYERS - 1), pinned = 0;
                    uint32_t experts[4];
                    mica_expert_cache_advance(cache, 1);
                    for (int i = 0; i < 4; i++) { /* four distinct */
                        random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
                        experts[i] = (uint32_t)((random >> 33) % 6 + 6 * (uint64_t)i);
                        mica_expert_cache_use(cache, layer, experts[i], 1, 1);
                    }
                    if (round % 3 == 0)
                        mica_expert_cache_expect(cache, layer % 4 + 1, experts, 4);
                    for (int i = 0; i < 4; i++)
                        if (mica_expert_cache_acquire(cache, layer, experts[i])) {
                            experts[pinned++] = experts[i];
                            uses++;
                        }
                    assert_int_equal(pinned, slots < 4 ? slots : 4);
                    for (uint64_t i = 0; i < pinned; i++)
                        check(cache, layer, experts[i]);
                    for (uint64_t i = 0; i < pinned; i++)
                        mica_expert_cache_release(cache, layer, experts[i]);
                }
                mica_expert_meters meters = mica_expert_cache_meters(cache);
                assert_int_equal(meters.uses, uses);
                assert_true(meters.hits < uses && meters.reads > 0 && meters.bytes_read >= meters.reads * 98304);
                mica_expert_cache_close(cache);
            }
}

/* Pieces are the reads, whole and in order: each begins where its read does or at a page, and lies in the buffer as its read would. */
static void test_pieces(void **state) {
    (void)state;
    static const mica_layout_read reads[] = {{0, 4096, 300000, 0}, {0, 500001, 10, 307200}, {1, 5000, 65536 * 3, 311296}};
    for (uint64_t piece_bytes = 4096; piece_bytes <= 1 << 20; piece_bytes *= 4) {
        mica_layout_cursor cursor = {0};
        mica_layout_read piece;
        uint64_t at = 0, done = 0, pieces = 0;
        while (mica_layout_next_piece(reads, 3, piece_bytes, &cursor, &piece)) {
            const mica_layout_read *read = &reads[at];
            assert_true(piece.shard == read->shard && piece.offset == read->offset + done && piece.bytes > 0 && piece.bytes <= piece_bytes);
            assert_true(done == 0 || piece.offset % 4096 == 0);
            assert_int_equal(piece.place + piece.offset % 4096, read->place + read->offset % 4096 + done);
            done += piece.bytes;
            pieces++;
            if (done == read->bytes) {
                at++;
                done = 0;
            }
        }
        assert_true(at == 3 && done == 0 && (piece_bytes == 1 << 20 ? pieces == 3 : pieces > 3 || piece_bytes > 300000));
    }
}

static void use(mica_expert_cache *cache, uint32_t expert) {
    mica_expert_cache_advance(cache, 1);
    mica_expert_cache_use(cache, 1, expert, 1, 1);
    assert_true(mica_expert_cache_acquire(cache, 1, expert));
    check(cache, 1, expert);
    mica_expert_cache_release(cache, 1, expert);
}

/* Expert 0 often, then 1 and 2 once each; the third needs a slot. */
static void test_victims(void **state) {
    (void)state;
    mica_expert_cache *cache = open_cache(2, 1, "lfu");
    for (int i = 0; i < 5; i++)
        use(cache, 0);
    use(cache, 1);
    use(cache, 2);
    assert_true(mica_expert_cache_present(cache, 1, 0) && !mica_expert_cache_present(cache, 1, 1));
    mica_expert_cache_advance(cache, 640); /* ten half-lives: five uses are worth less than one new */
    use(cache, 3); /* 2 goes: 0 is still worth more than it */
    use(cache, 4); /* 0 goes */
    assert_true(!mica_expert_cache_present(cache, 1, 0) && mica_expert_cache_present(cache, 1, 3));
    mica_expert_cache_close(cache);
    cache = open_cache(2, 1, "lru");
    for (int i = 0; i < 5; i++)
        use(cache, 0);
    use(cache, 1);
    use(cache, 2);
    assert_true(!mica_expert_cache_present(cache, 1, 0) && mica_expert_cache_present(cache, 1, 1));
    mica_expert_cache_close(cache);
}

static void test_pins(void **state) {
    (void)state;
    mica_expert_cache *cache = open_cache(2, 1, "lru");
    assert_true(mica_expert_cache_acquire(cache, 1, 0) && mica_expert_cache_acquire(cache, 1, 1));
    assert_true(mica_expert_cache_acquire(cache, 1, 0)); /* twice */
    assert_false(mica_expert_cache_acquire(cache, 1, 2));
    mica_expert_cache_release(cache, 1, 0);
    assert_false(mica_expert_cache_acquire(cache, 1, 2));
    check(cache, 1, 0);
    mica_expert_cache_release(cache, 1, 0);
    assert_true(mica_expert_cache_acquire(cache, 1, 2));
    check(cache, 1, 1);
    check(cache, 1, 2);
    mica_expert_cache_release(cache, 1, 1);
    mica_expert_cache_release(cache, 1, 2);
    mica_expert_cache_close(cache);
}

/* ---- reads that are slow or fail */

static atomic_int reads_to_fail, shut, begun, reads, reads_allowed;

static ssize_t odd_pread(int fd, void *buffer, size_t bytes, off_t offset) {
    atomic_fetch_add(&begun, 1);
    while (atomic_load(&shut))
        nanosleep(&(struct timespec){0, 100000}, NULL);
    if (atomic_load(&reads_to_fail) > 0 || atomic_fetch_add(&reads, 1) >= atomic_load(&reads_allowed)) {
        errno = EIO;
        return -1;
    }
    return pread(fd, buffer, bytes, offset);
}

static int allow_reads(void **state) {
    (void)state;
    atomic_store(&begun, 0);
    atomic_store(&reads, 0);
    atomic_store(&reads_allowed, INT_MAX);
    return 0;
}

static void await_begun(int count) {
    while (atomic_load(&begun) < count)
        nanosleep(&(struct timespec){0, 100000}, NULL);
}

static void test_failures(void **state) {
    (void)state;
    mica_io table = *mica_io_current();
    const mica_matrix *matrices;
    mica_error error;
    uint32_t expert = 3;
    table.pread = odd_pread;
    table.io_setup = NULL; /* so that all is read by it */
    mica_io_install(&table);
    mica_expert_cache *cache = open_cache(4, 2, NULL);
    atomic_store(&reads_to_fail, 1);
    assert_true(mica_expert_cache_acquire(cache, 2, expert));
    mica_expert_cache_wait(cache, 2, &expert, 1);
    assert_int_equal(mica_expert_cache_get(cache, 2, expert, &matrices, &error), MICA_IO);
    assert_non_null(strstr(error.message, "model.layers.2.mlp.experts.3.gate_proj.weight"));
    assert_int_equal(mica_expert_cache_meters(cache).bytes_read, 0);
    mica_expert_cache_release(cache, 2, expert);
    assert_false(mica_expert_cache_present(cache, 2, expert));
    atomic_store(&reads_to_fail, 0); /* the next demand tries again */
    assert_true(mica_expert_cache_acquire(cache, 2, expert));
    check(cache, 2, expert);
    mica_expert_cache_release(cache, 2, expert);
    mica_expert_cache_close(cache);
    mica_io_install(NULL);
}

/* How many reads an expert takes. */
static int count_reads(void) {
    mica_expert_cache *cache = open_cache(2, 1, NULL);
    atomic_store(&reads, 0);
    use(cache, 0);
    mica_expert_cache_close(cache);
    return atomic_exchange(&reads, 0);
}

/* A prefetch that is demanded while it waits overtakes the others: it is there after no more reads than those on their way and its own. */
static void test_prefetch(void **state) {
    (void)state;
    mica_io table = *mica_io_current();
    table.pread = odd_pread;
    table.io_setup = NULL; /* so that all is read by it */
    mica_io_install(&table);
    atomic_store(&reads_allowed, AHEAD + count_reads());
    atomic_store(&shut, 1);
    mica_expert_cache *cache = open_cache(20, 1, NULL);
    uint32_t expected[20];
    for (uint32_t e = 0; e < 20; e++)
        expected[e] = e;
    mica_expert_cache_expect(cache, 1, expected, 20);
    assert_in_range(mica_expert_cache_meters(cache).prefetched, 1, AHEAD); /* a slot is given when its turn comes */
    assert_true(mica_expert_cache_acquire(cache, 1, 19));
    assert_true(mica_expert_cache_acquire(cache, 1, 0)); /* begun */
    atomic_store(&shut, 0);
    check(cache, 1, 19);
    mica_expert_meters meters = mica_expert_cache_meters(cache);
    assert_int_equal(meters.prefetch_used, 1);
    assert_true(meters.seconds_stalled > 0);
    mica_expert_cache_release(cache, 1, 19);
    mica_expert_cache_release(cache, 1, 0);
    mica_expert_cache_close(cache);
    mica_io_install(NULL);
}

/* Nobody asks for them, and one after the other they are there. */
static void test_prefetches_end(void **state) {
    (void)state;
    enum { COUNT = 8 };
    mica_expert_cache *cache = open_cache(COUNT, 2, NULL);
    uint32_t expected[COUNT];
    for (uint32_t e = 0; e < COUNT; e++)
        expected[e] = e;
    mica_expert_cache_expect(cache, 1, expected, COUNT);
    for (int waited = 0; waited < 20000 && mica_expert_cache_meters(cache).reads < COUNT; waited++) {
        mica_expert_cache_poll(cache);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    assert_int_equal(mica_expert_cache_meters(cache).reads, COUNT);
    for (uint32_t e = 0; e < COUNT; e++) {
        assert_true(mica_expert_cache_acquire(cache, 1, e));
        check(cache, 1, e);
        mica_expert_cache_release(cache, 1, e);
    }
    const mica_expert_meters meters = mica_expert_cache_meters(cache);
    assert_true(meters.prefetched == COUNT && meters.prefetch_used == COUNT && meters.hits == COUNT && meters.reads == COUNT);
    mica_expert_cache_close(cache);
    assert_int_equal(mica_expert_count(model), (LAYERS - 1) * EXPERTS);
}

/* While reads stand still: so many pieces of prefetches are on their way, whatever the number of readers, and a demand finds a free one. What has not begun has
 * no slot; the rest goes on when it is demanded. */
static void test_limits_of_prefetches(void **state) {
    (void)state;
    mica_io table = *mica_io_current();
    table.pread = odd_pread;
    table.io_setup = NULL;
    mica_io_install(&table);
    atomic_store(&shut, 1);
    mica_expert_cache *cache = open_cache(4, AHEAD + 2, NULL);
    mica_expert_cache_expect(cache, 1, (const uint32_t[]){0, 1, 2, 3}, 4);
    await_begun(AHEAD);
    nanosleep(&(struct timespec){0, 5000000}, NULL);
    assert_int_equal(atomic_load(&begun), AHEAD);
    mica_expert_cache_expect(cache, 1, NULL, 0);
    assert_true(mica_expert_cache_present(cache, 1, 0) && !mica_expert_cache_present(cache, 1, 3));
    for (uint32_t e = 10; e < 12; e++)
        assert_true(mica_expert_cache_acquire(cache, 2, e));
    await_begun(AHEAD + 2);
    atomic_store(&shut, 0);
    for (uint32_t e = 10; e < 12; e++)
        check(cache, 2, e);
    assert_true(mica_expert_cache_acquire(cache, 1, 0));
    check(cache, 1, 0);
    mica_expert_cache_release(cache, 1, 0);
    for (uint32_t e = 10; e < 12; e++)
        mica_expert_cache_release(cache, 2, e);
    mica_expert_cache_close(cache);
    mica_io_install(NULL);
}

/* What is no longer expected stops, and goes on where it stopped: no piece is read twice. */
static void test_change_of_mind(void **state) {
    (void)state;
    mica_io table = *mica_io_current();
    table.pread = odd_pread;
    table.io_setup = NULL; /* so that all is read by it */
    mica_io_install(&table);
    const int each = count_reads();
    assert_true(each > 1 && AHEAD % each == 1); /* so that the second expected one is begun and no more */
    const uint32_t last = AHEAD / (uint32_t)each;
    const uint32_t expected[] = {0, 1, 2, 3};
    assert_true(last < 3);
    atomic_store(&begun, 0);
    atomic_store(&shut, 1);
    mica_expert_cache *cache = open_cache(5, 1, NULL);
    mica_expert_cache_expect(cache, 1, expected, 4);
    await_begun(1);
    mica_expert_cache_expect(cache, 1, (const uint32_t[]){4}, 1);
    atomic_store(&shut, 0);
    use(cache, 4);
    assert_true(mica_expert_cache_present(cache, 1, last) && !mica_expert_cache_present(cache, 1, last + 1));
    mica_expert_cache_expect(cache, 1, &last, 1);
    assert_false(mica_expert_cache_ready(cache, 1, last));
    check(cache, 1, last);
    assert_int_equal(atomic_load(&reads), each * ((int)last + 2));
    assert_int_equal(mica_expert_cache_meters(cache).reads, last + 2);
    mica_expert_cache_close(cache);
    mica_io_install(NULL);
}

/* An expert that is expected and present does not give way to another that is expected, though it be worth the least. A demand that finds no slot takes that of
 * a prefetch. */
static void test_expected_stay(void **state) {
    (void)state;
    mica_expert_cache *cache = open_cache(2, 1, "lfu");
    for (int i = 0; i < 5; i++)
        use(cache, 0);
    use(cache, 1);
    mica_expert_cache_expect(cache, 1, (const uint32_t[]){1, 2}, 2);
    assert_true(mica_expert_cache_present(cache, 1, 1) && mica_expert_cache_present(cache, 1, 2) && !mica_expert_cache_present(cache, 1, 0));
    mica_expert_cache_expect(cache, 1, (const uint32_t[]){1, 2, 3}, 3); /* no slot for the third */
    assert_true(mica_expert_cache_present(cache, 1, 1) && mica_expert_cache_present(cache, 1, 2) && !mica_expert_cache_present(cache, 1, 3));
    check(cache, 1, 2);
    mica_expert_cache_close(cache);

    mica_io table = *mica_io_current();
    table.pread = odd_pread;
    table.io_setup = NULL; /* so that all is read by it */
    mica_io_install(&table);
    cache = open_cache(2, 1, "lfu");
    assert_true(mica_expert_cache_acquire(cache, 1, 0));
    check(cache, 1, 0);
    atomic_store(&begun, 0);
    atomic_store(&shut, 1);
    mica_expert_cache_expect(cache, 1, (const uint32_t[]){1}, 1);
    await_begun(1);
    atomic_store(&shut, 0);
    use(cache, 2); /* needs the slot: the prefetch stops, and the piece that is under way is waited for */
    assert_true(mica_expert_cache_present(cache, 1, 0) && !mica_expert_cache_present(cache, 1, 1));
    mica_expert_cache_release(cache, 1, 0);
    mica_expert_cache_close(cache);
    mica_io_install(NULL);
}

/* The trick of the lfu policy: values that are not touched keep their order, as if all were halved every 64 tokens. */
static void test_aging(void **state) {
    (void)state;
    const mica_cache_policy *policy = mica_cache_policy_find("lfu");
    double counts[8] = {0}, at[8] = {0};
    mica_expert_use uses[8] = {{0}};
    uint64_t random = 3;
    for (int token = 1; token < 2000; token++) {
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        uint64_t chosen = (random >> 33) % 8 * ((random >> 40) % 8) / 8;
        counts[chosen] = counts[chosen] * exp2((at[chosen] - token) / 64) + 1;
        at[chosen] = token;
        policy->use(&uses[chosen], token, 1, 1);
        for (int a = 0; a < 8; a++)
            for (int b = 0; b < 8; b++) {
                double left = counts[a] * exp2((at[a] - token) / 64), right = counts[b] * exp2((at[b] - token) / 64);
                if (at[a] > 0 && at[b] > 0 && left > right * (1 + 1e-9))
                    assert_true(uses[a].value > uses[b].value);
            }
    }
    /* 100 uses in a span of 1000 tokens weigh what 100 single ones spread over it do */
    mica_expert_use batch = {0}, single = {0};
    policy->use(&batch, 1000, 100, 1000);
    for (int i = 1; i <= 100; i++)
        policy->use(&single, 10.0 * i, 1, 1);
    assert_true(fabs(batch.value - single.value) < 0.1);
    assert_null(mica_cache_policy_find("none"));
    assert_string_equal(mica_cache_policy_find(NULL)->name, "lfu");
}

static void test_no_memory(void **state) {
    (void)state;
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_expert_cache *cache = NULL;
        no_memory_begin(&trial);
        const mica_status status = mica_expert_cache_open(model, 3, 1, mica_cache_policy_find(NULL), &cache, NULL);
        mica_expert_cache_close(cache);
        no_memory_end(&trial, status, MICA_OK, NULL);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_requests), cmocka_unit_test(test_pieces), cmocka_unit_test(test_victims),  cmocka_unit_test(test_pins),
                                       cmocka_unit_test_setup(test_failures, allow_reads), cmocka_unit_test_setup(test_prefetch, allow_reads),
                                       cmocka_unit_test(test_prefetches_end),
                                       cmocka_unit_test_setup(test_limits_of_prefetches, allow_reads), cmocka_unit_test_setup(test_change_of_mind, allow_reads),
                                       cmocka_unit_test_setup(test_expected_stay, allow_reads), cmocka_unit_test(test_aging),
                                       cmocka_unit_test(test_no_memory)};
    return cmocka_run_group_tests(tests, open_model, close_model);
}
