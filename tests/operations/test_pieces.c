/* Ranges cut into units: everything once, in order, small ones together, large ones in a chain. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "operations/pieces.h"

#define COUNT 200

static void test_every_byte_once(void **state) {
    (void)state;
    static const uint64_t sizes[] = {0,    1,       4096, MICA_PIECES_UNIT_BYTES, MICA_PIECES_UNIT_BYTES + 1, 3 * MICA_PIECES_UNIT_BYTES,
                                     5000, 1 << 20, 7,    3 << 20};
    mica_stream_range items[COUNT];
    uint64_t total = 0, random = 88172645463325252u;
    for (int i = 0; i < COUNT; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        items[i] = (mica_stream_range){NULL, 1000000u * (uint64_t)i, sizes[random % (sizeof sizes / sizeof sizes[0])], "x"};
        total += items[i].bytes;
    }
    mica_pieces plan;
    assert_int_equal(mica_pieces_plan(items, COUNT, &plan, NULL), MICA_OK);
    assert_int_equal(plan.bytes, total);
    uint64_t item = 0, offset = 0, pieces = 0;
    for (uint64_t u = 0; u < plan.unit_count; u++) {
        const mica_piece_unit *unit = &plan.units[u];
        mica_stream_range ranges[MICA_STREAM_RANGES_MAX];
        uint64_t bytes = 0, window = 0;
        assert_true(unit->count >= 1 && unit->count <= MICA_STREAM_RANGES_MAX);
        assert_int_equal(unit->first, pieces);
        assert_int_equal(mica_pieces_ranges(&plan, u, ranges), unit->count);
        for (uint32_t i = 0; i < unit->count; i++, pieces++) {
            const mica_piece *piece = &plan.pieces[pieces];
            assert_int_equal(piece->item, item);
            assert_int_equal(piece->offset, offset);
            assert_int_equal(piece->first, offset == 0);
            assert_int_equal(ranges[i].offset, items[item].offset + offset);
            assert_int_equal(ranges[i].bytes, piece->bytes);
            if (!piece->first) /* the chain */
                assert_int_equal(mica_pieces_after(&plan, u), u - 1);
            else
                assert_int_equal(mica_pieces_after(&plan, u), MICA_STREAM_NONE);
            offset += piece->bytes;
            assert_int_equal(piece->last, offset == items[item].bytes);
            if (piece->last) {
                item++;
                offset = 0;
            }
            bytes += piece->bytes;
            window += mica_file_window_bytes(piece->bytes);
        }
        assert_true(bytes <= MICA_PIECES_UNIT_BYTES);
        assert_true(window <= plan.window_bytes);
    }
    assert_int_equal(item, COUNT);
    assert_int_equal(pieces, plan.piece_count);
    mica_pieces_release(&plan);
}

static void test_nothing(void **state) {
    (void)state;
    mica_pieces plan;
    assert_int_equal(mica_pieces_plan(NULL, 0, &plan, NULL), MICA_OK);
    assert_int_equal(plan.unit_count, 0);
    mica_pieces_release(&plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_byte_once), cmocka_unit_test(test_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
