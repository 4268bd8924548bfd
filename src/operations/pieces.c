/* operations/pieces.c: see the header. Judged by tests/operations/test_pieces.c. */
#include "operations/pieces.h"

#include "base/memory.h"

static uint64_t pieces_of(const mica_stream_range *item) {
    return item->bytes <= MICA_PIECES_UNIT_BYTES ? 1 : (item->bytes + MICA_PIECES_UNIT_BYTES - 1) / MICA_PIECES_UNIT_BYTES;
}

/* A cut item: a unit for each piece. */
static void cut_item(mica_pieces *plan, uint64_t item) {
    const uint64_t bytes = plan->items[item].bytes;
    for (uint64_t offset = 0; offset < bytes; offset += MICA_PIECES_UNIT_BYTES) {
        const uint64_t left = bytes - offset, part = left < MICA_PIECES_UNIT_BYTES ? left : MICA_PIECES_UNIT_BYTES;
        plan->units[plan->unit_count] =
            (mica_piece_unit){plan->piece_count, 1, offset ? plan->unit_count - 1 : MICA_STREAM_NONE};
        plan->pieces[plan->piece_count++] = (mica_piece){item, offset, part, offset == 0, part == left};
        plan->unit_count++;
    }
}

static void fill(mica_pieces *plan) {
    uint64_t in_unit = UINT64_MAX; /* bytes in the unit being filled; none is open at first */
    for (uint64_t i = 0; i < plan->item_count; i++) {
        const uint64_t bytes = plan->items[i].bytes;
        if (bytes > MICA_PIECES_UNIT_BYTES) {
            cut_item(plan, i);
            in_unit = UINT64_MAX;
            continue;
        }
        mica_piece_unit *unit = plan->unit_count ? &plan->units[plan->unit_count - 1] : NULL;
        if (in_unit > MICA_PIECES_UNIT_BYTES - bytes || unit->count == MICA_STREAM_RANGES_MAX) {
            unit = &plan->units[plan->unit_count++];
            *unit = (mica_piece_unit){plan->piece_count, 0, MICA_STREAM_NONE};
            in_unit = 0;
        }
        plan->pieces[plan->piece_count++] = (mica_piece){i, 0, bytes, true, true};
        unit->count++;
        in_unit += bytes;
    }
}

static void measure(mica_pieces *plan) {
    plan->window_bytes = 1;
    for (uint64_t i = 0; i < plan->unit_count; i++) {
        uint64_t window = 0;
        for (uint32_t j = 0; j < plan->units[i].count; j++)
            window += mica_file_window_bytes(plan->pieces[plan->units[i].first + j].bytes);
        if (window > plan->window_bytes)
            plan->window_bytes = window;
    }
    for (uint64_t i = 0; i < plan->piece_count; i++)
        plan->bytes += plan->pieces[i].bytes;
}

mica_status mica_pieces_plan(const mica_stream_range *items, uint64_t count, mica_pieces *plan, mica_error *error) {
    *plan = (mica_pieces){.items = items, .item_count = count};
    uint64_t most = 0;
    for (uint64_t i = 0; i < count; i++)
        most += pieces_of(&items[i]);
    plan->pieces = mica_calloc(most + 1, sizeof *plan->pieces);
    plan->units = mica_calloc(most + 1, sizeof *plan->units);
    if (!plan->pieces || !plan->units) {
        mica_pieces_release(plan);
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for %llu pieces", (unsigned long long)most);
    }
    fill(plan);
    measure(plan);
    return MICA_OK;
}

void mica_pieces_release(mica_pieces *plan) {
    mica_free(plan->pieces);
    mica_free(plan->units);
    *plan = (mica_pieces){0};
}

uint32_t mica_pieces_ranges(const mica_pieces *plan, uint64_t unit, mica_stream_range *ranges) {
    const mica_piece_unit *planned = &plan->units[unit];
    for (uint32_t i = 0; i < planned->count; i++) {
        const mica_piece *piece = &plan->pieces[planned->first + i];
        ranges[i] = plan->items[piece->item];
        ranges[i].offset += piece->offset;
        ranges[i].bytes = piece->bytes;
    }
    return planned->count;
}

uint64_t mica_pieces_after(const mica_pieces *plan, uint64_t unit) {
    return plan->units[unit].previous;
}
