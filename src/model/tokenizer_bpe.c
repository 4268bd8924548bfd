/* model/tokenizer_bpe.c: byte-pair merging of one piece: again and again the pair of lowest rank, of equal ones the leftmost, until no
 * pair merges. Short pieces: a scan over the pairs for each merge. Long ones: a heap of pairs over a linked list, O(n log n), so that a
 * megabyte without a place to cut takes no hours. Judged by tests/model/test_tokenizer.c: the two against each other and against a naive
 * one. */
#include <inttypes.h>
#include <string.h>

#include "base/memory.h"
#include "model/byte_level.h"
#include "model/tokenizer_build.h"

#define SHORT_BYTES 96 /* up to here the scan is faster, or as fast */

static uint64_t find_merge(const mica_tokenizer *tokenizer, uint32_t left, uint32_t right) {
    return mica_pair_table_find(&tokenizer->merges, left, right);
}

/* Merges `count` ids in place; returns how many are left. */
static uint32_t merge_short(const mica_tokenizer *tokenizer, uint32_t *ids, uint32_t count) {
    uint64_t merges[SHORT_BYTES]; /* of ids[i] with the next */
    for (uint32_t i = 0; i + 1 < count; i++)
        merges[i] = find_merge(tokenizer, ids[i], ids[i + 1]);
    while (count > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < count; i++)
            best = merges[i] >> 32 < merges[best] >> 32 ? i : best;
        if (merges[best] == MICA_NO_MERGE)
            break;
        ids[best] = (uint32_t)merges[best];
        count--;
        memmove(ids + best + 1, ids + best + 2, (count - best - 1) * sizeof *ids);
        if (best + 1 < count) {
            memmove(merges + best + 1, merges + best + 2, (count - best - 2) * sizeof *merges);
            merges[best] = find_merge(tokenizer, ids[best], ids[best + 1]);
        }
        if (best > 0)
            merges[best - 1] = find_merge(tokenizer, ids[best - 1], ids[best]);
    }
    return count;
}

/* ---- the heap: rank << 32 | position, smallest first */

typedef struct merge_heap {
    uint64_t *keys;
    uint64_t count;
} merge_heap;

static void sift_down(merge_heap *heap, uint64_t at) {
    uint64_t key = heap->keys[at];
    for (uint64_t child; (child = 2 * at + 1) < heap->count; at = child) {
        child += child + 1 < heap->count && heap->keys[child + 1] < heap->keys[child];
        if (heap->keys[child] >= key)
            break;
        heap->keys[at] = heap->keys[child];
    }
    heap->keys[at] = key;
}

static void heap_push(merge_heap *heap, uint64_t key) {
    uint64_t at = heap->count++;
    for (; at > 0 && heap->keys[(at - 1) / 2] > key; at = (at - 1) / 2)
        heap->keys[at] = heap->keys[(at - 1) / 2];
    heap->keys[at] = key;
}

static uint64_t heap_pop(merge_heap *heap) {
    uint64_t key = heap->keys[0];
    heap->keys[0] = heap->keys[--heap->count];
    if (heap->count > 0)
        sift_down(heap, 0);
    return key;
}

/* The parts of a piece as a list: position i is where a part begins, or no longer one. */
typedef struct part_list {
    const mica_tokenizer *tokenizer;
    uint32_t count;
    uint32_t *ids, *next, *previous; /* [count]; next is count at the end */
    uint64_t *merges;                /* [count]: of the part with its next one; NO_MERGE where nothing is to be merged */
    merge_heap heap;                 /* at most one key for each position, and two more for each merge, which took one: [2 * count] */
} part_list;

static void note_merge(part_list *list, uint32_t at) {
    uint32_t next = list->next[at];
    list->merges[at] = next < list->count ? find_merge(list->tokenizer, list->ids[at], list->ids[next]) : MICA_NO_MERGE;
    if (list->merges[at] != MICA_NO_MERGE)
        heap_push(&list->heap, list->merges[at] >> 32 << 32 | at);
}

static void start_parts(part_list *list, const uint32_t *ids) {
    for (uint32_t i = 0; i < list->count; i++) {
        list->ids[i] = ids[i];
        list->next[i] = i + 1;
        list->previous[i] = i - 1;
        list->merges[i] = i + 1 < list->count ? find_merge(list->tokenizer, ids[i], ids[i + 1]) : MICA_NO_MERGE;
        if (list->merges[i] != MICA_NO_MERGE)
            list->heap.keys[list->heap.count++] = list->merges[i] >> 32 << 32 | i;
    }
    for (uint64_t at = list->heap.count / 2; at-- > 0;)
        sift_down(&list->heap, at);
}

static void merge_parts(part_list *list) {
    while (list->heap.count > 0) {
        uint64_t key = heap_pop(&list->heap);
        uint32_t at = (uint32_t)key;
        if (list->merges[at] >> 32 != key >> 32) /* a key that a later merge overtook */
            continue;
        uint32_t right = list->next[at];
        list->ids[at] = (uint32_t)list->merges[at];
        list->merges[right] = MICA_NO_MERGE;
        list->next[at] = list->next[right];
        if (list->next[at] < list->count)
            list->previous[list->next[at]] = at;
        note_merge(list, at);
        if (at > 0)
            note_merge(list, list->previous[at]);
    }
}

/* As merge_short, for any count. */
static mica_status merge_long(const mica_tokenizer *tokenizer, uint32_t *ids, uint32_t *count, mica_error *error) {
    part_list list = {.tokenizer = tokenizer, .count = *count};
    uint64_t *memory = mica_reallocarray(NULL, *count, 3 * sizeof *list.merges + 3 * sizeof *list.ids);
    if (!memory)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a piece of %" PRIu32 " bytes", tokenizer->name, *count);
    list.merges = memory;
    list.heap.keys = memory + *count;
    list.ids = (uint32_t *)(memory + 3 * (uint64_t)*count);
    list.next = list.ids + *count;
    list.previous = list.next + *count;
    start_parts(&list, ids);
    merge_parts(&list);
    uint32_t left = 0;
    for (uint32_t at = 0; at < list.count; at = list.next[at])
        ids[left++] = list.ids[at];
    *count = left;
    mica_free(memory);
    return MICA_OK;
}

/* What text becomes without a merge; NONE. */
static uint32_t find_text(const mica_tokenizer *tokenizer, const char *bytes, uint64_t length) {
    uint32_t id = mica_bytes_table_find(&tokenizer->normal, tokenizer->names.bytes, tokenizer->spans, bytes, length);
    if (id != MICA_TOKEN_NONE || !tokenizer->has_in_vocabulary)
        return id;
    id = mica_bytes_table_find(&tokenizer->special, tokenizer->names.bytes, tokenizer->spans, bytes, length);
    return id != MICA_TOKEN_NONE && tokenizer->added[id] & MICA_ADDED_IN_VOCABULARY ? id : MICA_TOKEN_NONE;
}

/* The parts that a piece begins as: bytes, or characters, of which those that are no token are bytes. Returns how many. */
static uint32_t start_piece(const mica_tokenizer *tokenizer, const char *piece, uint32_t length, uint32_t *parts) {
    uint32_t count = 0;
    for (uint32_t at = 0; at < length;) {
        size_t taken = tokenizer->characters ? mica_utf8_sequence(piece + at, length - at) : 0;
        uint32_t id = taken == 0 ? MICA_TOKEN_NONE : find_text(tokenizer, piece + at, taken);
        if (id != MICA_TOKEN_NONE)
            parts[count++] = id;
        else
            taken = 1;
        if (id == MICA_TOKEN_NONE)
            parts[count++] = tokenizer->byte_ids[(uint8_t)piece[at]];
        at += (uint32_t)taken;
    }
    return count;
}

mica_status mica_piece_encode(const mica_tokenizer *tokenizer, const char *piece, uint64_t length, mica_token_list *ids,
                              mica_error *error) {
    if (tokenizer->whole_pieces) {
        const int byte = tokenizer->characters ? mica_byte_token_read(piece, length) : -1; /* such tokens are found by their names too */
        uint32_t id = byte >= 0 ? tokenizer->byte_ids[byte] : find_text(tokenizer, piece, length);
        if (id != MICA_TOKEN_NONE) {
            mica_token_list_add(ids, id);
            return MICA_OK;
        }
    }
    if (length >= UINT32_MAX)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected pieces of less than 4 GiB, got %" PRIu64 " bytes", tokenizer->name, length);
    if (!mica_token_list_reserve(ids, length))
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the ids of a text", tokenizer->name);
    uint32_t *parts = ids->ids + ids->count, count = start_piece(tokenizer, piece, (uint32_t)length, parts);
    mica_status status = MICA_OK;
    if (count <= SHORT_BYTES)
        count = merge_short(tokenizer, parts, count);
    else
        status = merge_long(tokenizer, parts, &count, error);
    ids->count += count;
    return status;
}

/* The ids of `count` tokens, the shortest first; NULL without memory. A counting sort. */
static uint32_t *order_by_length(const mica_tokenizer *tokenizer, uint32_t count) {
    uint32_t longest = 0;
    for (uint32_t id = 0; id < count; id++)
        longest = tokenizer->spans[id].length > longest ? tokenizer->spans[id].length : longest;
    uint32_t *order = mica_calloc(count, sizeof *order), *ends = mica_calloc((size_t)longest + 2, sizeof *ends);
    if (order && ends) {
        for (uint32_t id = 0; id < count; id++)
            ends[tokenizer->spans[id].length + 1]++;
        for (uint32_t length = 1; length <= longest; length++)
            ends[length] += ends[length - 1];
        for (uint32_t id = 0; id < count; id++)
            order[ends[tokenizer->spans[id].length]++] = id;
    }
    mica_free(ends);
    if (!ends) {
        mica_free(order);
        order = NULL;
    }
    return order;
}

/* Merges the bytes of a token, and where two parts are left notes them as its merge. */
static mica_status find_parts(mica_tokenizer *tokenizer, uint32_t id, uint32_t rank, mica_token_list *parts, mica_error *error) {
    const mica_pair_slot *slot;
    mica_token_span span = tokenizer->spans[id];
    parts->count = 0;
    if (span.length < 2)
        return MICA_OK;
    mica_status status = mica_piece_encode(tokenizer, tokenizer->names.bytes + span.start, span.length, parts, error);
    if (status == MICA_OK && parts->count == 2)
        (void)mica_pair_table_insert(&tokenizer->merges, parts->ids[0], parts->ids[1], (uint64_t)rank << 32 | id, &slot);
    return status;
}

static mica_status find_merges(mica_tokenizer *tokenizer, uint32_t count, const uint32_t *ranks, mica_error *error) {
    mica_token_list parts = {0};
    mica_status status = MICA_OK;
    uint32_t *order = order_by_length(tokenizer, count);
    if (!order || !mica_pair_table_init(&tokenizer->merges, count))
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the merges", tokenizer->name);
    bool whole_pieces = tokenizer->whole_pieces;
    tokenizer->whole_pieces = false; /* the token itself is not to be found */
    for (uint32_t i = 0; i < count && status == MICA_OK; i++) {
        if (tokenizer->types[order[i]] == MICA_TOKEN_NORMAL)
            status = find_parts(tokenizer, order[i], ranks ? ranks[order[i]] : order[i], &parts, error);
    }
    tokenizer->whole_pieces = whole_pieces;
    mica_token_list_release(&parts);
    mica_free(order);
    return status;
}

mica_status mica_tokenizer_merges_from_ranks(mica_tokenizer *tokenizer, uint32_t rank_count, mica_error *error) {
    return find_merges(tokenizer, rank_count, NULL, error);
}

mica_status mica_tokenizer_merges_by(mica_tokenizer *tokenizer, const uint32_t *ranks, mica_error *error) {
    return find_merges(tokenizer, tokenizer->count, ranks, error);
}

mica_status mica_tokenizer_add_merge(mica_tokenizer *tokenizer, const char *left, uint64_t left_length, const char *right,
                                     uint64_t right_length, uint32_t rank, mica_text *scratch, mica_error *error) {
    const mica_pair_slot *slot;
    mica_text_clear(scratch);
    bool read = mica_tokenizer_read_text(tokenizer, left, left_length, scratch);
    size_t middle = scratch->length;
    read = read && mica_tokenizer_read_text(tokenizer, right, right_length, scratch);
    if (mica_text_failed(scratch))
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the merges", tokenizer->name);
    read = read && middle > 0 && scratch->length > middle;
    uint32_t first = read ? mica_tokenizer_find(tokenizer, scratch->bytes, middle) : MICA_TOKEN_NONE;
    uint32_t second = read ? mica_tokenizer_find(tokenizer, scratch->bytes + middle, scratch->length - middle) : MICA_TOKEN_NONE;
    uint32_t both = read ? mica_tokenizer_find(tokenizer, scratch->bytes, scratch->length) : MICA_TOKEN_NONE;
    const char *expected = first == MICA_TOKEN_NONE || second == MICA_TOKEN_NONE || both == MICA_TOKEN_NONE
                               ? "two tokens that are one token together"
                               : "a pair that no merge before has";
    if (both == MICA_TOKEN_NONE || first == MICA_TOKEN_NONE || second == MICA_TOKEN_NONE ||
        !mica_pair_table_insert(&tokenizer->merges, first, second, (uint64_t)rank << 32 | both, &slot)) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: merges: number %" PRIu32 ": expected %s, got \"%.*s %.*s\"", tokenizer->name, rank,
                         expected, (int)(left_length < 60 ? left_length : 60), left, (int)(right_length < 60 ? right_length : 60), right);
    }
    return MICA_OK;
}
