/* model/token_table.c: see the header. */
#include "model/token_table.h"

#include "base/memory.h"

static uint64_t slots_for(uint64_t capacity) {
    uint64_t slots = 16;
    while (slots < capacity * 2)
        slots *= 2;
    return slots;
}

bool mica_bytes_table_init(mica_bytes_table *table, uint64_t capacity) {
    uint64_t slots = slots_for(capacity);
    *table = (mica_bytes_table){mica_calloc(slots, sizeof *table->slots), slots - 1};
    return table->slots != NULL;
}

bool mica_bytes_table_insert(mica_bytes_table *table, const char *names, const mica_token_span *spans, uint32_t id, uint32_t *other) {
    const char *bytes = names + spans[id].start;
    uint64_t length = spans[id].length, hash = mica_bytes_hash(bytes, length), at = hash & table->mask;
    for (; table->slots[at] != 0; at = (at + 1) & table->mask) {
        uint32_t there = (uint32_t)table->slots[at] - 1;
        if (spans[there].length == length && memcmp(names + spans[there].start, bytes, length) == 0) {
            *other = there;
            return false;
        }
    }
    table->slots[at] = hash >> 32 << 32 | (id + 1);
    return true;
}

void mica_bytes_table_release(mica_bytes_table *table) {
    mica_free(table->slots);
    *table = (mica_bytes_table){0};
}

bool mica_pair_table_init(mica_pair_table *table, uint64_t capacity) {
    uint64_t slots = slots_for(capacity);
    *table = (mica_pair_table){mica_calloc(slots, sizeof *table->slots), slots - 1, 0};
    for (uint64_t i = 0; table->slots && i < slots; i++)
        table->slots[i] = (mica_pair_slot){UINT64_MAX, MICA_NO_MERGE};
    return table->slots != NULL;
}

bool mica_pair_table_insert(mica_pair_table *table, uint32_t left, uint32_t right, uint64_t merge, const mica_pair_slot **slot) {
    uint64_t pair = (uint64_t)left << 32 | right, at = mica_mix(pair ^ 0x9e3779b97f4a7c15, 0xd1342543de82ef95) & table->mask;
    while (table->slots[at].merge != MICA_NO_MERGE && table->slots[at].pair != pair)
        at = (at + 1) & table->mask;
    *slot = &table->slots[at];
    if (table->slots[at].merge != MICA_NO_MERGE)
        return false;
    table->slots[at] = (mica_pair_slot){pair, merge};
    table->count++;
    return true;
}

void mica_pair_table_release(mica_pair_table *table) {
    mica_free(table->slots);
    *table = (mica_pair_table){0};
}
