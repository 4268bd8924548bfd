/* test_read_queue.c: what the queue brings is what the file holds, by the kernel and by threads, of direct and of buffered files; what the
 * kernel refuses, breaks off or brings in part is read again, and what cannot be read says why; closing waits. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/aio_abi.h>
#endif

#include <cmocka.h>

#include "base/memory.h"
#include "base/no_memory.h"
#include "base/read_queue.h"
#include "base/scratch.h"

enum { FILE_BYTES = 1000003, READS = 40, DEPTH = 8, BUFFER_BYTES = 1 << 17 };

static uint8_t *bytes, *buffers[READS];
static mica_file *direct_file, *buffered_file;
static mica_io real;

static int open_files(void **state) {
    uint64_t random = 11;
    real = *mica_io_current();
    bytes = malloc(FILE_BYTES);
    for (int i = 0; i < FILE_BYTES; i++) {
        random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        bytes[i] = (uint8_t)(random >> 40);
    }
    for (int i = 0; i < READS; i++)
        buffers[i] = mica_alloc_aligned(BUFFER_BYTES);
    if (scratch_make(state) != 0)
        return -1;
    const char *path = scratch("file");
    return mica_file_replace(path, bytes, FILE_BYTES, NULL) != MICA_OK || mica_file_open(path, true, &direct_file, NULL) != MICA_OK ||
           mica_file_open(path, false, &buffered_file, NULL) != MICA_OK;
}

static int close_files(void **state) {
    for (int i = 0; i < READS; i++)
        mica_free_aligned(buffers[i]);
    free(bytes);
    return scratch_remove(state) != 0 || mica_file_close(direct_file, NULL) != MICA_OK || mica_file_close(buffered_file, NULL) != MICA_OK;
}

typedef struct wanted {
    uint64_t offset, bytes;
    uint8_t *buffer;
    int told;
} wanted;

/* Reads pieces all over the file, its last byte among them; each end is told once. Returns how many failed. */
static int read_all(mica_read_queue *queue, const mica_file *even, const mica_file *odd, mica_error *error) {
    wanted list[READS];
    mica_read_end end;
    int begun = 0, ended = 0, failed = 0;
    while (ended < READS) {
        while (begun < READS) {
            wanted *next = &list[begun];
            *next = (wanted){(uint64_t)begun * 24999, 25000 + (uint64_t)begun * 100, buffers[begun], 0};
            memset(next->buffer, 0, BUFFER_BYTES);
            if (begun == READS - 1 || next->offset + next->bytes > FILE_BYTES)
                next->bytes = FILE_BYTES - next->offset;
            if (!mica_read_queue_begin(queue, begun % 2 ? odd : even, next->offset, next->bytes, next->buffer, next))
                break;
            begun++;
        }
        assert_in_range(begun - ended, 1, DEPTH);
        assert_true(mica_read_queue_end(queue, true, &end));
        do {
            wanted *one = end.owner;
            assert_int_equal(one->told++, 0);
            assert_int_equal(end.bytes, one->bytes);
            if (end.status == MICA_OK)
                assert_memory_equal(one->buffer + one->offset % 4096, bytes + one->offset, one->bytes);
            else
                *error = end.error;
            failed += end.status != MICA_OK;
            ended++;
        } while (mica_read_queue_end(queue, false, &end));
    }
    assert_false(mica_read_queue_end(queue, true, &end)); /* nothing is on its way */
    return failed;
}

static mica_read_queue *open_queue(bool direct, uint32_t threads) {
    mica_read_queue *queue;
    assert_int_equal(mica_read_queue_open(DEPTH, direct, threads, &queue, NULL), MICA_OK);
    return queue;
}

static void test_all_ways(void **state) {
    (void)state;
    mica_error error;
    mica_io none = real;
    none.io_setup = NULL;
    for (int kernel = 0; kernel < 2; kernel++)
        for (uint32_t threads = 1; threads <= 3; threads += 2) {
            mica_io_install(kernel ? NULL : &none);
            mica_read_queue *queue = open_queue(false, threads);
            assert_int_equal(read_all(queue, direct_file, direct_file, &error), 0);
            assert_int_equal(read_all(queue, buffered_file, buffered_file, &error), 0);
            assert_int_equal(read_all(queue, direct_file, buffered_file, &error), 0);
            mica_read_queue_close(queue);
        }
    mica_io_install(NULL);
}

/* Closed at once: what is on its way ends first, into a buffer that is given back after it. */
static void test_close(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        uint8_t *buffer = mica_alloc_aligned(BUFFER_BYTES);
        mica_read_queue *queue = open_queue(i % 2, 1);
        assert_true(mica_read_queue_begin(queue, direct_file, 4096, 100000, buffer, NULL));
        assert_true(mica_read_queue_begin(queue, direct_file, 0, 1, buffers[0], NULL));
        mica_read_queue_close(queue);
        assert_memory_equal(buffer, bytes + 4096, 100000);
        mica_free_aligned(buffer);
    }
    mica_read_queue_close(NULL);
}

/* A range beyond the file, and a disk that fails: told as by mica_file_read_window, and the others are read. */
static ssize_t failing_pread(int fd, void *buffer, size_t count, off_t offset) {
    if (offset > 500000) {
        errno = EIO;
        return -1;
    }
    return pread(fd, buffer, count, offset);
}

static void test_failures(void **state) {
    (void)state;
    mica_read_end end;
    mica_error error;
    for (int kernel = 0; kernel < 2; kernel++) {
        mica_io failing = real;
        failing.io_setup = NULL;
        failing.pread = failing_pread;
        mica_read_queue *queue;
        if (kernel) {
            queue = open_queue(true, 1);
        } else {
            mica_io_install(&failing);
            queue = open_queue(true, 1);
            const int failed = read_all(queue, direct_file, buffered_file, &error);
            assert_in_range(failed, READS / 2 - 2, READS / 2 + 2);
            assert_non_null(strstr(error.message, "cannot read"));
        }
        assert_true(mica_read_queue_begin(queue, direct_file, FILE_BYTES - 10, 20, buffers[0], &end));
        assert_true(mica_read_queue_end(queue, true, &end));
        assert_true(end.owner == &end && end.status == MICA_IO);
        const char *said = kernel ? "short read at offset 999993: expected 20 bytes, got 10" : "cannot read 20 bytes";
        assert_non_null(strstr(end.error.message, said));
        assert_true(mica_read_queue_begin(queue, direct_file, UINT64_MAX - 5, 20, buffers[0], &end));
        assert_true(mica_read_queue_end(queue, true, &end));
        assert_true(end.status == MICA_BAD_INPUT && strstr(end.error.message, "beyond any file"));
        mica_read_queue_close(queue);
        mica_io_install(NULL);
    }
}

#ifdef __linux__
/* ---- a kernel that refuses, is interrupted, and brings less than it was asked for */

static struct {
    int refuse_each, interrupt_each, spoil_each; /* 0: none */
    int submits, waits, events;
} odd;

static bool each(int *count, int step) {
    return step && ++*count % step == 0;
}

static long odd_submit(unsigned long queue, long count, struct iocb **controls) {
    if (each(&odd.submits, odd.refuse_each)) {
        errno = EAGAIN;
        return -1;
    }
    return real.io_submit(queue, count, controls);
}

static long odd_getevents(unsigned long queue, long least, long most, struct io_event *events) {
    if (each(&odd.waits, odd.interrupt_each)) {
        errno = EINTR;
        return -1;
    }
    const long count = real.io_getevents(queue, least, most, events);
    for (long i = 0; i < count; i++)
        if (each(&odd.events, odd.spoil_each))
            events[i].res = odd.events % 3 == 0 ? -EIO : odd.events % 3 == 1 ? 4096 : 0;
    return count;
}

static void test_odd_kernel(void **state) {
    (void)state;
    mica_error error;
    mica_io table = real;
    table.io_submit = odd_submit;
    table.io_getevents = odd_getevents;
    for (int refuse = 0; refuse < 3; refuse++)
        for (int interrupt = 0; interrupt < 3; interrupt += 2)
            for (int spoil = 0; spoil < 3; spoil++)
                for (int direct = 0; direct < 2; direct++) {
                    memset(&odd, 0, sizeof odd);
                    odd.refuse_each = refuse;
                    odd.interrupt_each = interrupt;
                    odd.spoil_each = spoil;
                    mica_io_install(&table);
                    mica_read_queue *queue = open_queue(direct, 1);
                    assert_int_equal(read_all(queue, direct_file, direct_file, &error), 0);
                    mica_read_queue_close(queue);
                    mica_io_install(NULL);
                }
}
#endif

static void test_no_memory(void **state) {
    (void)state;
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_read_queue *queue = NULL;
        no_memory_begin(&trial);
        const mica_status status = mica_read_queue_open(DEPTH, false, 2, &queue, NULL);
        if (status == MICA_OK)
            mica_read_queue_close(queue);
        no_memory_end(&trial, status, MICA_OK, NULL);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_ways), cmocka_unit_test(test_close),     cmocka_unit_test(test_failures),
#ifdef __linux__
        cmocka_unit_test(test_odd_kernel),
#endif
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, open_files, close_files);
}
