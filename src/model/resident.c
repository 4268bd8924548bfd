/* model/resident.c: see the header. The layout's reads are cut into pieces that threads take in the order of the files.
 * Judged by tests/model/test_forward.c. */
#include "model/resident.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "model/weight_layout.h"

#define PIECE (UINT64_C(8) << 20)

typedef struct reading {
    const mica_model *model;
    const mica_layout_read *reads;
    uint64_t read_count;
    uint8_t *buffer;
    pthread_mutex_t mutex; /* next piece, first failure */
    mica_layout_cursor cursor;
    mica_error error;
    atomic_bool failed;
} reading;

static bool take_piece(reading *job, mica_layout_read *piece) {
    pthread_mutex_lock(&job->mutex);
    bool found = !atomic_load(&job->failed) && mica_layout_next_piece(job->reads, job->read_count, PIECE, &job->cursor, piece);
    pthread_mutex_unlock(&job->mutex);
    return found;
}

static void read_pieces(void *context, uint32_t index) {
    reading *job = context;
    mica_layout_read piece;
    (void)index;
    while (take_piece(job, &piece)) {
        mica_error error;
        const uint8_t *data;
        const mica_file *file = job->model->source->shards[piece.shard].file;
        if (piece.bytes == 0 || mica_file_read_window(file, piece.offset, piece.bytes, job->buffer + piece.place, &data, &error) == MICA_OK)
            continue;
        pthread_mutex_lock(&job->mutex);
        if (!atomic_exchange(&job->failed, true))
            job->error = error;
        pthread_mutex_unlock(&job->mutex);
    }
}

static void give_up(void *context) {
    atomic_store(&((reading *)context)->failed, true);
}

static mica_status read_all(const mica_model *model, const mica_layout_read *reads, uint64_t read_count, uint32_t threads,
                            mica_resident *resident, mica_error *error) {
    reading job = {.model = model, .reads = reads, .read_count = read_count, .buffer = resident->buffer};
    mica_threads *set = NULL;
    double begin = mica_seconds_now();
    pthread_mutex_init(&job.mutex, NULL);
    mica_status status = mica_threads_start(threads, read_pieces, give_up, &job, &set, error);
    if (status == MICA_OK)
        mica_threads_join(set);
    if (status == MICA_OK && atomic_load(&job.failed)) {
        if (error)
            *error = job.error;
        status = job.error.status;
    }
    pthread_mutex_destroy(&job.mutex);
    for (uint64_t i = 0; i < read_count; i++)
        resident->bytes_read += reads[i].bytes;
    resident->seconds = mica_seconds_now() - begin;
    return status;
}

static int compare_weights(const void *left, const void *right) {
    const mica_weight *a = *(const mica_weight *const *)left, *b = *(const mica_weight *const *)right;
    return a < b ? -1 : a > b;
}

mica_status mica_resident_read(const mica_model *model, const mica_weight *const *weights, uint64_t count, uint32_t threads,
                               mica_resident *resident, mica_error *error) {
    uint64_t extent_count = 0, read_count = 0, room = count * MICA_EXTENTS_PER_WEIGHT + 1;
    *resident = (mica_resident){.weights = mica_calloc(count + 1, sizeof *resident->weights),
                                .matrices = mica_calloc(count + 1, sizeof *resident->matrices)};
    mica_extent *extents = mica_calloc(room, sizeof *extents);
    mica_layout_read *reads = mica_calloc(room, sizeof *reads);
    mica_status status = MICA_OK;
    if (!resident->weights || !resident->matrices || !extents || !reads)
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the list of resident weights", model->source->path);
    if (status == MICA_OK) {
        for (uint64_t i = 0; i < count; i++)
            if (weights[i])
                resident->weights[resident->count++] = weights[i];
        qsort(resident->weights, resident->count, sizeof *resident->weights, compare_weights);
        mica_layout_weights(resident->weights, resident->count, extents, &extent_count, reads, &read_count, &resident->bytes);
        resident->buffer = mica_alloc_aligned(resident->bytes);
        if (!resident->buffer)
            status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for %llu bytes of resident weights", model->source->path,
                               (unsigned long long)resident->bytes);
    }
    if (status == MICA_OK)
        status = read_all(model, reads, read_count, threads ? threads : 1, resident, error);
    if (status == MICA_OK)
        status = mica_layout_matrices(model, resident->weights, extents, extent_count, resident->buffer, resident->matrices, error);
    mica_free(extents);
    mica_free(reads);
    if (status != MICA_OK)
        mica_resident_release(resident);
    return status;
}

void mica_resident_release(mica_resident *resident) {
    mica_free_aligned(resident->buffer);
    mica_free(resident->weights);
    mica_free(resident->matrices);
    *resident = (mica_resident){0};
}

const mica_matrix *mica_resident_find(const mica_resident *resident, const mica_weight *weight) {
    const mica_weight **found =
        weight && resident->count
            ? bsearch(&weight, resident->weights, resident->count, sizeof *resident->weights, compare_weights)
            : NULL;
    return found ? &resident->matrices[found - resident->weights] : NULL;
}
