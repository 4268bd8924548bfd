/* tests/base/no_memory.h: each allocation of an attempt fails in turn, first alone (what swallows the failure shows), then with all after
 * it.
 *
 *     for (no_memory trial = {0}; no_memory_next(&trial);) {
 *         scratch_remove_tree(output);          // what an attempt must begin with
 *         no_memory_begin(&trial);
 *         status = mica_something(…, &error);
 *         no_memory_end(&trial, status, MICA_OK, &error);
 *         …                                     // trial.succeeded: what must be there then
 *     }
 *
 * The first round lacks nothing: it counts. A round in which an allocation failed must end with MICA_NO_MEMORY and a sentence, any other
 * with the status that is expected; no descriptor stays open. (Leaks of memory are for the sanitizers.) */
#ifndef TESTS_BASE_NO_MEMORY_H
#define TESTS_BASE_NO_MEMORY_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <mica/status.h>

#include "base/file.h"
#include "base/memory.h"

typedef struct no_memory {
    uint64_t count, nth; /* allocations of an attempt; the one that fails, from 1; 0 in the first round */
    bool all_after, started, succeeded;
    bool may_do_without; /* set by the test: a failure may also cost nothing but speed. The test judges the result. */
    uint64_t stride;     /* set by the test where a round is slow: every stride-th, from one that differs from run to run and is told */
    uint64_t descriptors;
} no_memory;

static inline uint64_t no_memory_descriptors(void) {
    char **names;
    uint64_t count;
    assert_int_equal(mica_directory_list("/proc/self/fd", &names, &count, NULL), MICA_OK);
    mica_directory_names_free(names, count);
    return count;
}

static inline bool no_memory_next(no_memory *trial) {
    if (!trial->started)
        return trial->started = true;
    const uint64_t step = trial->stride ? trial->stride : 1, first = 1 + (uint64_t)getpid() % step;
    if (trial->nth == 0) {
        assert_true(trial->count > 0);
        if (step > 1)
            print_message("allocations %llu, %llu, … of %llu\n", (unsigned long long)first, (unsigned long long)(first + step),
                          (unsigned long long)trial->count);
    }
    trial->nth += trial->nth == 0 ? first : step;
    if (trial->nth > trial->count && !trial->all_after) {
        trial->all_after = true;
        trial->nth = first;
    }
    return trial->nth <= trial->count;
}

static inline void no_memory_begin(no_memory *trial) {
    trial->descriptors = no_memory_descriptors();
    (void)(trial->all_after ? mica_memory_fail_after(trial->nth) : mica_memory_fail_only(trial->nth));
}

static inline void no_memory_end(no_memory *trial, mica_status status, mica_status expected, const mica_error *error) {
    const uint64_t made = mica_memory_fail_after(0);
    const bool lacked = trial->nth > 0 && made >= trial->nth; /* with threads some rounds make fewer than the first */
    if (trial->nth == 0)
        trial->count = made;
    trial->succeeded = status == expected;
    if (lacked && trial->may_do_without && trial->succeeded)
        return;
    if (status != (lacked ? MICA_NO_MEMORY : expected) || (error && status == MICA_NO_MEMORY && error->message[0] == 0))
        fail_msg("allocation %llu of %llu fails%s: expected \"%s\", got \"%s\": %s", (unsigned long long)trial->nth,
                 (unsigned long long)trial->count, trial->all_after ? ", and all after it" : "",
                 mica_status_text(lacked ? MICA_NO_MEMORY : expected), mica_status_text(status), error ? error->message : "");
    assert_int_equal(no_memory_descriptors(), trial->descriptors);
}

#endif
