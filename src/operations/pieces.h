/* operations/pieces.h: any number of byte ranges cut into units for the streaming loop: small ones together, large ones in pieces that
 * follow one another. For operations that go over bytes once, whatever these mean: import, verify and gc of a store, export.
 * Judged by tests/operations/test_pieces.c. */
#ifndef MICA_OPERATIONS_PIECES_H
#define MICA_OPERATIONS_PIECES_H

#include "base/error.h"
#include "operations/stream.h"

#define MICA_PIECES_UNIT_BYTES ((uint64_t)16 << 20) /* of one unit: a projection of an expert of Kimi-K2 */

typedef struct mica_piece {
    uint64_t item;          /* which range */
    uint64_t offset, bytes; /* of the piece in it */
    bool first, last;       /* of the item */
} mica_piece;

typedef struct mica_piece_unit {
    uint64_t first;    /* of `pieces` */
    uint32_t count;    /* at most MICA_STREAM_RANGES_MAX */
    uint64_t previous; /* the unit with the piece before, of a cut item; MICA_STREAM_NONE */
} mica_piece_unit;

typedef struct mica_pieces {
    const mica_stream_range *items; /* borrowed; in the order of work */
    mica_piece *pieces;
    mica_piece_unit *units;
    uint64_t item_count, piece_count, unit_count;
    uint64_t window_bytes; /* for mica_stream_job.unit_bytes_max */
    uint64_t bytes;        /* of all items */
} mica_pieces;

mica_status mica_pieces_plan(const mica_stream_range *items, uint64_t count, mica_pieces *plan, mica_error *error) MICA_CHECKED;
void mica_pieces_release(mica_pieces *plan);

/* The stream's `plan` and `after`, for a context that has the plan. */
uint32_t mica_pieces_ranges(const mica_pieces *plan, uint64_t unit, mica_stream_range *ranges);
uint64_t mica_pieces_after(const mica_pieces *plan, uint64_t unit);

#endif
