/* base/read_queue.h: reads that are on their way while the caller does something else, a fixed number at most.
 * One thread calls everything here. What the kernel takes (Linux AIO, of files that are open with O_DIRECT) needs no thread of ours, none
 * that would have to wake and to find a processor among those that compute. Elsewhere threads of the queue read. Judged by
 * tests/base/test_read_queue.c. */
#ifndef MICA_BASE_READ_QUEUE_H
#define MICA_BASE_READ_QUEUE_H

#include "base/file.h"

typedef struct mica_read_queue mica_read_queue;

typedef struct mica_read_end {
    void *owner;    /* as it was given */
    uint64_t bytes; /* that were asked for */
    mica_status status;
    mica_error error; /* of mica_file_read_window; only where status is not MICA_OK */
} mica_read_end;

/* `depth`: how many may be on their way. `direct`: all files will be open for direct reading (mica_file_is_direct). Only where they are
 * not, or the kernel has no such queue, `threads` are started. */
mica_status mica_read_queue_open(uint32_t depth, bool direct, uint32_t threads, mica_read_queue **queue, mica_error *error) MICA_CHECKED;
void mica_read_queue_close(mica_read_queue *queue); /* waits for what is on its way; NULL is fine */

/* Begins mica_file_read_window(file, offset, bytes, buffer), at the latest when mica_read_queue_flush is called: the kernel takes several
 * at once for little more than one. File and buffer are the queue's until mica_read_queue_end has told the end. False: `depth` are on
 * their way. What is begun first is read first, as far as the disk and the threads keep to it. */
bool mica_read_queue_begin(mica_read_queue *queue, const mica_file *file, uint64_t offset, uint64_t bytes, void *buffer, void *owner);
void mica_read_queue_flush(mica_read_queue *queue);

/* One that has ended; with `wait` the next that does, of all that were begun. False: none has, or none is on its way. */
bool mica_read_queue_end(mica_read_queue *queue, bool wait, mica_read_end *end);

#endif
