/* model/weight_layout.c: see the header. An int4 weight's shape tensor is not read: `verify` compares it with the shapes that opening has
 * checked already. Judged by tests/model/test_forward.c and test_expert_cache.c. */
#include "model/weight_layout.h"

#include <stdlib.h>

#define PAGE UINT64_C(4096)
#define GAP (UINT64_C(64) << 10) /* what is read in vain rather than begin another read */

static int compare_extents(const void *left, const void *right) {
    const mica_extent *a = left, *b = right;
    if (a->shard != b->shard)
        return a->shard < b->shard ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static uint64_t pages_up(uint64_t bytes) {
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

static void place_read(mica_layout_read *read, mica_extent *first, mica_extent *last, uint64_t *cursor) {
    uint64_t begin = read->offset / PAGE * PAGE, end = pages_up(read->offset + read->bytes);
    read->place = *cursor;
    for (mica_extent *extent = first; extent < last; extent++)
        extent->place = *cursor + (extent->offset - begin);
    *cursor += end - begin;
}

void mica_layout_weights(const mica_weight *const *weights, uint64_t count, mica_extent *extents, uint64_t *extent_count,
                         mica_layout_read *reads, uint64_t *read_count, uint64_t *bytes) {
    uint64_t found = 0, made = 0, cursor = 0, first = 0;
    for (uint64_t i = 0; i < count; i++) {
        const mica_tensor *tensors[MICA_EXTENTS_PER_WEIGHT] = {weights[i]->data, weights[i]->scale};
        for (int part = 0; part < MICA_EXTENTS_PER_WEIGHT; part++)
            if (tensors[part])
                extents[found++] =
                    (mica_extent){tensors[part]->shard, (uint32_t)i, part == 1, tensors[part]->offset, tensors[part]->bytes, 0};
    }
    qsort(extents, found, sizeof *extents, compare_extents);
    for (uint64_t i = 0; i < found; i++) {
        const mica_extent *next = &extents[i];
        mica_layout_read *read = made ? &reads[made - 1] : NULL;
        if (read && read->shard == next->shard && next->offset <= read->offset + read->bytes + GAP) {
            uint64_t end = next->offset + next->bytes;
            read->bytes = end > read->offset + read->bytes ? end - read->offset : read->bytes;
            continue;
        }
        if (read) {
            place_read(read, &extents[first], &extents[i], &cursor);
            first = i;
        }
        reads[made++] = (mica_layout_read){next->shard, next->offset, next->bytes, 0};
    }
    if (made)
        place_read(&reads[made - 1], &extents[first], &extents[found], &cursor);
    *extent_count = found;
    *read_count = made;
    *bytes = cursor;
}

bool mica_layout_next_piece(const mica_layout_read *reads, uint64_t read_count, uint64_t piece_bytes, mica_layout_cursor *cursor,
                            mica_layout_read *piece) {
    if (cursor->read >= read_count)
        return false;
    const mica_layout_read *read = &reads[cursor->read];
    uint64_t begin = read->offset + cursor->done, end = (begin + piece_bytes) / PAGE * PAGE, whole = read->offset + read->bytes;
    if (end > whole)
        end = whole;
    *piece = (mica_layout_read){read->shard, begin, end - begin, read->place + begin / PAGE * PAGE - read->offset / PAGE * PAGE};
    cursor->done += end - begin;
    if (cursor->done == read->bytes)
        *cursor = (mica_layout_cursor){cursor->read + 1, 0};
    return true;
}

mica_status mica_layout_matrices(const mica_model *model, const mica_weight *const *weights, const mica_extent *extents,
                                 uint64_t extent_count, const uint8_t *buffer, mica_matrix *matrices, mica_error *error) {
    for (int scales = 0; scales < 2; scales++)
        for (uint64_t i = 0; i < extent_count; i++) {
            const mica_extent *extent = &extents[i];
            mica_matrix *matrix = &matrices[extent->weight];
            if (scales && extent->scale)
                matrix->scales = buffer + extent->place;
            if (scales || extent->scale)
                continue;
            mica_status status = mica_weight_matrix(model, weights[extent->weight], buffer + extent->place, NULL, NULL, matrix, error);
            if (status != MICA_OK)
                return status;
        }
    return MICA_OK;
}
