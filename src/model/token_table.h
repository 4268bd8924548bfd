/* model/token_table.h: the two hash tables of a tokenizer: bytes to id, and pair of ids to merge. Open addressing, a power of two of
 * slots, at most half of them taken; filled once, then read by any thread. Judged by tests/model/test_tokenizer.c. */
#ifndef MICA_MODEL_TOKEN_TABLE_H
#define MICA_MODEL_TOKEN_TABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"

/* Where the bytes of an id are, in the tokenizer's `names`. */
typedef struct mica_token_span {
    uint32_t start, length;
} mica_token_span;

typedef struct mica_bytes_table {
    uint64_t *slots; /* [mask + 1]: upper half of the hash, then id + 1; 0: free */
    uint64_t mask;
} mica_bytes_table;

typedef struct mica_pair_slot {
    uint64_t pair;  /* left << 32 | right */
    uint64_t merge; /* rank << 32 | id of both together; MICA_NO_MERGE: a free slot */
} mica_pair_slot;

typedef struct mica_pair_table {
    mica_pair_slot *slots; /* [mask + 1] */
    uint64_t mask, count;
} mica_pair_table;

#define MICA_NO_MERGE UINT64_MAX /* ranks sort before it */

bool mica_bytes_table_init(mica_bytes_table *table, uint64_t capacity) MICA_CHECKED;
/* Puts `id` in, unless its bytes are there: then *other is the id that has them, and false is the answer. */
bool mica_bytes_table_insert(mica_bytes_table *table, const char *names, const mica_token_span *spans, uint32_t id, uint32_t *other);
void mica_bytes_table_release(mica_bytes_table *table);

bool mica_pair_table_init(mica_pair_table *table, uint64_t capacity) MICA_CHECKED;
/* False when the pair is there already: *slot is it, else the new one. */
bool mica_pair_table_insert(mica_pair_table *table, uint32_t left, uint32_t right, uint64_t merge, const mica_pair_slot **slot);
void mica_pair_table_release(mica_pair_table *table);

static inline uint64_t mica_mix(uint64_t a, uint64_t b) {
    __extension__ typedef unsigned __int128 wide;
    wide product = (wide)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A few bytes at once: tokens are short. The constants are odd and have half their bits set. */
static inline uint64_t mica_bytes_hash(const char *bytes, uint64_t length) {
    const uint64_t first = 0x9e3779b97f4a7c15, second = 0xd1342543de82ef95;
    uint64_t hash = length * second + 1, word = 0;
    for (; length > 8; bytes += 8, length -= 8) {
        memcpy(&word, bytes, 8);
        hash = mica_mix(hash ^ word, first);
    }
    word = 0;
    if (length >= 4) {
        uint32_t low, high;
        memcpy(&low, bytes, 4);
        memcpy(&high, bytes + length - 4, 4);
        word = (uint64_t)high << 32 | low;
    } else if (length > 0) {
        word = (uint64_t)(unsigned char)bytes[0] << 16 | (uint64_t)(unsigned char)bytes[length / 2] << 8 | (unsigned char)bytes[length - 1];
    }
    return mica_mix(hash ^ word, second);
}

/* The id that has these bytes, UINT32_MAX when none has. */
static inline uint32_t mica_bytes_table_find(const mica_bytes_table *table, const char *names, const mica_token_span *spans,
                                             const char *bytes, uint64_t length) {
    uint64_t hash = mica_bytes_hash(bytes, length);
    for (uint64_t at = hash & table->mask; table->slots[at] != 0; at = (at + 1) & table->mask) {
        uint32_t id = (uint32_t)table->slots[at] - 1;
        if (table->slots[at] >> 32 == hash >> 32 && spans[id].length == length && memcmp(names + spans[id].start, bytes, length) == 0)
            return id;
    }
    return UINT32_MAX;
}

/* rank << 32 | id, or MICA_NO_MERGE. */
static inline uint64_t mica_pair_table_find(const mica_pair_table *table, uint32_t left, uint32_t right) {
    uint64_t pair = (uint64_t)left << 32 | right, at = mica_mix(pair ^ 0x9e3779b97f4a7c15, 0xd1342543de82ef95) & table->mask;
    while (table->slots[at].pair != pair && table->slots[at].merge != MICA_NO_MERGE)
        at = (at + 1) & table->mask;
    return table->slots[at].merge;
}

#endif
