/* model/weight_layout.h: where the bytes of some weights go in one buffer, and the reads that bring them there. Ranges of a file that lie
 * close together are one read; every read is of whole pages and lands in whole pages, so that direct reads need no copy. */
#ifndef MICA_MODEL_WEIGHT_LAYOUT_H
#define MICA_MODEL_WEIGHT_LAYOUT_H

#include "model/model.h"

/* One tensor of a weight: its range in a shard, and where it begins in the buffer. */
typedef struct mica_extent {
    uint32_t shard, weight; /* weight: index into the caller's list */
    bool scale;
    uint64_t offset, bytes, place;
} mica_extent;

/* One read: mica_file_read_window of this range to buffer + place (a multiple of 4096). */
typedef struct mica_layout_read {
    uint32_t shard;
    uint64_t offset, bytes, place;
} mica_layout_read;

#define MICA_EXTENTS_PER_WEIGHT 2

/* weights [count]; extents and reads have room for count * MICA_EXTENTS_PER_WEIGHT. Gives how many there are of each and the buffer's size
 * (a multiple of 4096). Allocates nothing. */
void mica_layout_weights(const mica_weight *const *weights, uint64_t count, mica_extent *extents, uint64_t *extent_count,
                         mica_layout_read *reads, uint64_t *read_count, uint64_t *bytes);

/* Reads are cut into pieces, so that several are on their way: begins as {0}. The next piece, at most `piece_bytes` long: from the read's
 * beginning, or a page's, to a page's end or the read's. False: all are given out. */
typedef struct mica_layout_cursor {
    uint64_t read, done; /* of reads[read], so many bytes are given out */
} mica_layout_cursor;
bool mica_layout_next_piece(const mica_layout_read *reads, uint64_t read_count, uint64_t piece_bytes, mica_layout_cursor *cursor,
                            mica_layout_read *piece);

/* The matrices [count] over the buffer, once the reads are done. */
mica_status mica_layout_matrices(const mica_model *model, const mica_weight *const *weights, const mica_extent *extents,
                                 uint64_t extent_count, const uint8_t *buffer, mica_matrix *matrices, mica_error *error) MICA_CHECKED;

#endif
