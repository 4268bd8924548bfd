/* base/read_queue.c: see the header. What the kernel does not bring whole (an error, a short read, a file system that refuses late) is
 * read again by mica_file_read_window, which judges it: the kernel's queue makes success quicker, and knows nothing of failures.
 * Judged by tests/base/test_read_queue.c. */
#include "base/read_queue.h"

#include <stdatomic.h>
#include <string.h>
#ifdef __linux__
#include <linux/aio_abi.h>
#endif

#include "base/memory.h"
#include "base/threads.h"

#define EVENTS 16 /* collected at a time */
/* Given to the kernel at once: telling the disk takes as long as the rest of a read's beginning, and the first should not wait for long. */
#define TOGETHER 4

typedef struct flight {
    const mica_file *file;
    uint64_t offset, bytes, needed; /* needed: of what the kernel reads, up to the last byte that is wanted */
    void *buffer, *owner;
    mica_status status;
    mica_error error;
    struct flight *next;
#ifdef __linux__
    struct iocb control;
#endif
} flight;

typedef struct list { /* first in, first out */
    flight *first, *last;
} list;

struct mica_read_queue {
    flight *flights;
    list idle, ended;           /* ended: their end is still to be told */
    struct iocb *together[TOGETHER]; /* still to be given to the kernel */
    long together_count;
    uint64_t in_kernel, in_threads;
    bool has_kernel;
    unsigned long kernel;
    mica_threads *readers;
    pthread_mutex_t mutex; /* of what follows */
    pthread_cond_t work, one_done;
    list todo, done;
    atomic_bool any_done; /* read without the mutex as well */
    bool leave;
};

static void append(list *to, flight *one) {
    one->next = NULL;
    if (to->first)
        to->last->next = one;
    else
        to->first = one;
    to->last = one;
}

static flight *take(list *from) {
    flight *one = from->first;
    if (one)
        from->first = one->next;
    return one;
}

static void read_now(flight *one) {
    const uint8_t *data;
    one->status = mica_file_read_window(one->file, one->offset, one->bytes, one->buffer, &data, &one->error);
}

/* ---- threads */

static void read_todo(void *context, uint32_t index) {
    mica_read_queue *queue = context;
    flight *one;
    (void)index;
    mica_thread_be_prompt(); /* a read that begins late is computing time lost */
    pthread_mutex_lock(&queue->mutex);
    for (;;) {
        while (!(one = take(&queue->todo)) && !queue->leave)
            pthread_cond_wait(&queue->work, &queue->mutex);
        if (!one)
            break;
        pthread_mutex_unlock(&queue->mutex);
        read_now(one);
        pthread_mutex_lock(&queue->mutex);
        append(&queue->done, one);
        atomic_store(&queue->any_done, true);
        pthread_cond_signal(&queue->one_done);
    }
    pthread_mutex_unlock(&queue->mutex);
}

static void send_home(void *context) {
    mica_read_queue *queue = context;
    pthread_mutex_lock(&queue->mutex);
    queue->leave = true;
    pthread_cond_broadcast(&queue->work);
    pthread_mutex_unlock(&queue->mutex);
}

static void give_to_threads(mica_read_queue *queue, flight *one) {
    pthread_mutex_lock(&queue->mutex);
    append(&queue->todo, one);
    pthread_cond_signal(&queue->work);
    pthread_mutex_unlock(&queue->mutex);
    queue->in_threads++;
}

static void collect_from_threads(mica_read_queue *queue, bool wait) {
    if (!wait && !atomic_load(&queue->any_done))
        return;
    pthread_mutex_lock(&queue->mutex);
    while (wait && !queue->done.first)
        pthread_cond_wait(&queue->one_done, &queue->mutex);
    for (flight *one; (one = take(&queue->done)) != NULL; queue->in_threads--)
        append(&queue->ended, one);
    atomic_store(&queue->any_done, false);
    pthread_mutex_unlock(&queue->mutex);
}

/* What the kernel does not take. Without threads it was to take all. */
static void read_elsewhere(mica_read_queue *queue, flight *one) {
    if (queue->readers) {
        give_to_threads(queue, one);
        return;
    }
    read_now(one);
    append(&queue->ended, one);
}

/* ---- the kernel's queue */

#ifdef __linux__
static bool prepare_for_kernel(const mica_read_queue *queue, flight *one) {
    uint64_t begin, bytes;
    const int descriptor = mica_file_direct_window(one->file, one->offset, one->bytes, &begin, &bytes);
    if (!queue->has_kernel || descriptor < 0)
        return false;
    one->control = (struct iocb){.aio_data = (uint64_t)(uintptr_t)one,
                                 .aio_lio_opcode = IOCB_CMD_PREAD,
                                 .aio_fildes = (uint32_t)descriptor,
                                 .aio_buf = (uint64_t)(uintptr_t)one->buffer,
                                 .aio_nbytes = bytes,
                                 .aio_offset = (int64_t)begin};
    one->needed = one->offset - begin + one->bytes;
    return true;
}

/* The kernel takes the first few, or refuses the first. */
void mica_read_queue_flush(mica_read_queue *queue) {
    for (long given = 0, taken; given < queue->together_count; given += taken) {
        taken = mica_io_current()->io_submit(queue->kernel, queue->together_count - given, queue->together + given);
        if (taken > 0) {
            queue->in_kernel += (uint64_t)taken;
        } else {
            read_elsewhere(queue, (flight *)(uintptr_t)queue->together[given]->aio_data);
            taken = 1;
        }
    }
    queue->together_count = 0;
}

static bool give_to_kernel(mica_read_queue *queue, flight *one) {
    if (!prepare_for_kernel(queue, one))
        return false;
    queue->together[queue->together_count++] = &one->control;
    if (queue->together_count == TOGETHER)
        mica_read_queue_flush(queue);
    return true;
}

/* A failure is an interruption, or nothing that could be told of a read: then it is asked for again. */
static void collect_from_kernel(mica_read_queue *queue, bool wait) {
    struct io_event events[EVENTS];
    const long count = mica_io_current()->io_getevents(queue->kernel, wait, EVENTS, events);
    for (long i = 0; i < count; i++) {
        flight *one = (flight *)(uintptr_t)events[i].data;
        if (events[i].res < 0 || (uint64_t)events[i].res < one->needed)
            read_now(one);
        append(&queue->ended, one);
        queue->in_kernel--;
    }
}
#else
void mica_read_queue_flush(mica_read_queue *queue) {
    (void)queue;
}

static bool give_to_kernel(mica_read_queue *queue, flight *one) {
    (void)queue, (void)one;
    return false;
}

static void collect_from_kernel(mica_read_queue *queue, bool wait) {
    (void)queue, (void)wait;
}
#endif

/* ---- the queue */

mica_status mica_read_queue_open(uint32_t depth, bool direct, uint32_t threads, mica_read_queue **result, mica_error *error) {
    mica_read_queue *queue = mica_calloc(1, sizeof *queue);
    if (!queue || !(queue->flights = mica_calloc(depth, sizeof *queue->flights))) {
        mica_free(queue);
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a queue of %u reads", depth);
    }
    for (uint32_t i = 0; i < depth; i++)
        append(&queue->idle, &queue->flights[i]);
    pthread_mutex_init(&queue->mutex, NULL);
    pthread_cond_init(&queue->work, NULL);
    pthread_cond_init(&queue->one_done, NULL);
    const mica_io *io = mica_io_current();
    queue->has_kernel = io->io_setup && io->io_setup(depth, &queue->kernel) == 0;
    mica_status status = MICA_OK;
    if (!queue->has_kernel || !direct)
        status = mica_threads_start(threads, read_todo, send_home, queue, &queue->readers, error);
    if (status == MICA_OK)
        *result = queue;
    else
        mica_read_queue_close(queue);
    return status;
}

void mica_read_queue_close(mica_read_queue *queue) {
    mica_read_end end;
    if (!queue)
        return;
    while (mica_read_queue_end(queue, true, &end))
        continue;
    if (queue->has_kernel)
        (void)mica_io_current()->io_destroy(queue->kernel);
    if (queue->readers)
        send_home(queue);
    mica_threads_join(queue->readers);
    pthread_cond_destroy(&queue->one_done);
    pthread_cond_destroy(&queue->work);
    pthread_mutex_destroy(&queue->mutex);
    mica_free(queue->flights);
    mica_free(queue);
}

bool mica_read_queue_begin(mica_read_queue *queue, const mica_file *file, uint64_t offset, uint64_t bytes, void *buffer, void *owner) {
    flight *one = take(&queue->idle);
    if (!one)
        return false;
    one->file = file;
    one->offset = offset;
    one->bytes = bytes;
    one->buffer = buffer;
    one->owner = owner;
    one->status = MICA_OK;
    if (!give_to_kernel(queue, one))
        read_elsewhere(queue, one);
    return true;
}

bool mica_read_queue_end(mica_read_queue *queue, bool wait, mica_read_end *end) {
    mica_read_queue_flush(queue);
    do {
        if (!queue->ended.first && queue->in_threads)
            collect_from_threads(queue, wait);
        if (!queue->ended.first && queue->in_kernel)
            collect_from_kernel(queue, wait);
    } while (wait && !queue->ended.first && queue->in_kernel > 0);
    flight *one = take(&queue->ended);
    if (!one)
        return false;
    end->owner = one->owner;
    end->bytes = one->bytes;
    end->status = one->status;
    if (one->status != MICA_OK)
        end->error = one->error;
    append(&queue->idle, one);
    return true;
}
