/* formats/index.c: see the header. One pass over the text, one sort by tensor, one by shard. */
#include "formats/index.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "formats/json_cursor.h"

typedef struct map_entry { /* offsets into the arena, which moves while it grows */
    size_t tensor, shard;
} map_entry;

typedef struct index_parser {
    const char *name;
    mica_json_cursor cursor;
    mica_text text;
    map_entry *entries;
    uint64_t count, capacity;
    mica_error *error;
} index_parser;

static mica_status out_of_memory(const index_parser *parser) {
    return mica_fail(parser->error, MICA_NO_MEMORY, "%s: out of memory for its %" PRIu64 " entries", parser->name, parser->count);
}

static bool is_plain_file_name(const char *name) {
    return name[0] != 0 && strchr(name, '/') == NULL && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static MICA_CHECKED bool grow(index_parser *parser) {
    if (parser->count < parser->capacity)
        return true;
    uint64_t capacity = parser->capacity ? parser->capacity * 2 : 256;
    map_entry *entries = mica_reallocarray(parser->entries, capacity, sizeof *entries);
    if (entries) {
        parser->entries = entries;
        parser->capacity = capacity;
    }
    return entries != NULL;
}

static mica_status read_entry(index_parser *parser) {
    char tensor[MICA_NAME_SHOW_BYTES], shard[MICA_NAME_SHOW_BYTES];
    map_entry entry = {.tensor = parser->text.length};
    mica_cursor_key(&parser->cursor, &parser->text);
    mica_text_append(&parser->text, "", 1);
    if (parser->cursor.status != MICA_OK)
        return mica_fail_context(parser->error, parser->cursor.status, "%s: weight_map", parser->name);
    entry.shard = parser->text.length;
    mica_cursor_string(&parser->cursor, &parser->text);
    mica_text_append(&parser->text, "", 1);
    if (mica_text_failed(&parser->text) || !grow(parser))
        return out_of_memory(parser);
    const char *bytes = parser->text.bytes;
    mica_name_show(bytes + entry.tensor, tensor);
    if (parser->cursor.status != MICA_OK)
        return mica_fail_context(parser->error, parser->cursor.status, "%s: weight_map: tensor %s", parser->name, tensor);
    if (!is_plain_file_name(bytes + entry.shard)) {
        return mica_fail(parser->error, MICA_BAD_INPUT, "%s: weight_map: tensor %s: expected a plain file name, got \"%s\"", parser->name,
                         tensor, mica_name_show(bytes + entry.shard, shard));
    }
    if (parser->count > 0 && strcmp(bytes + entry.shard, bytes + parser->entries[parser->count - 1].shard) == 0) {
        parser->text.length = entry.shard; /* neighbours mostly share a shard: kept once */
        entry.shard = parser->entries[parser->count - 1].shard;
    }
    parser->entries[parser->count++] = entry;
    return MICA_OK;
}

static mica_status read_weight_map(index_parser *parser) {
    uint64_t count = 0;
    mica_status status = MICA_OK;
    mica_cursor_enter(&parser->cursor, '{');
    while (status == MICA_OK && mica_cursor_next(&parser->cursor, '{', &count))
        status = read_entry(parser);
    if (status == MICA_OK && parser->cursor.status != MICA_OK)
        status = mica_fail_context(parser->error, parser->cursor.status, "%s: weight_map", parser->name);
    return status;
}

/* The outer object: weight_map once, anything else is checked as JSON and left alone. */
static mica_status read_index(index_parser *parser) {
    uint64_t count = 0;
    bool found = false;
    mica_text key = MICA_TEXT_INIT;
    mica_status status = MICA_OK;
    mica_cursor_enter(&parser->cursor, '{');
    while (status == MICA_OK && mica_cursor_next(&parser->cursor, '{', &count)) {
        mica_text_clear(&key);
        mica_cursor_key(&parser->cursor, &key);
        if (parser->cursor.status != MICA_OK)
            break;
        if (strcmp(key.bytes, "weight_map") != 0) {
            mica_cursor_skip(&parser->cursor);
        } else if (found) {
            status = mica_fail(parser->error, MICA_BAD_INPUT, "%s: weight_map: expected it once, got a duplicate", parser->name);
        } else {
            found = true;
            status = read_weight_map(parser);
        }
    }
    mica_text_release(&key);
    if (status != MICA_OK)
        return status;
    mica_cursor_end(&parser->cursor);
    if (parser->cursor.status != MICA_OK)
        return mica_fail_context(parser->error, parser->cursor.status, "%s", parser->name);
    if (parser->count == 0) {
        return mica_fail(parser->error, MICA_BAD_INPUT, "%s: weight_map: expected an object that names tensors, got %s", parser->name,
                         found ? "an empty one" : "absent");
    }
    return MICA_OK;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int compare_entries(const void *a, const void *b) {
    return strcmp(((const mica_index_entry *)a)->tensor, ((const mica_index_entry *)b)->tensor);
}

/* The distinct shard names, sorted. `shards` has room for one name per entry. */
static uint32_t collect_shards(const index_parser *parser, const char **shards) {
    uint64_t count = 0;
    uint32_t unique = 0;
    for (uint64_t i = 0; i < parser->count; i++) {
        if (i == 0 || parser->entries[i].shard != parser->entries[i - 1].shard)
            shards[count++] = parser->text.bytes + parser->entries[i].shard;
    }
    qsort(shards, count, sizeof *shards, compare_names);
    for (uint64_t i = 0; i < count; i++) {
        if (i == 0 || strcmp(shards[i], shards[unique - 1]) != 0)
            shards[unique++] = shards[i];
    }
    return unique;
}

static mica_status build(const index_parser *parser, mica_index *index) {
    for (uint64_t i = 0; i < parser->count; i++) {
        const map_entry *entry = &parser->entries[i];
        index->entries[i].tensor = parser->text.bytes + entry->tensor;
        if (i > 0 && entry->shard == entry[-1].shard) {
            index->entries[i].shard = index->entries[i - 1].shard;
            continue;
        }
        const char *shard = parser->text.bytes + entry->shard;
        const char **found = bsearch(&shard, index->shards, index->shard_count, sizeof *index->shards, compare_names);
        index->entries[i].shard = (uint32_t)(found - index->shards);
    }
    qsort(index->entries, parser->count, sizeof *index->entries, compare_entries);
    for (uint64_t i = 1; i < parser->count; i++) {
        if (compare_entries(&index->entries[i - 1], &index->entries[i]) == 0) {
            char shown[MICA_NAME_SHOW_BYTES];
            return mica_fail(parser->error, MICA_BAD_INPUT, "%s: weight_map: tensor %s: expected unique names, got a duplicate",
                             parser->name, mica_name_show(index->entries[i].tensor, shown));
        }
    }
    return MICA_OK;
}

mica_status mica_index_parse(const char *name, const char *json, uint64_t length, mica_index *result, mica_error *error) {
    if (length == 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a JSON object, got an empty file", name);
    index_parser parser = {.name = name, .cursor = {.bytes = json, .length = length, .error = error}, .error = error};
    mica_index index = {0};
    mica_status status = read_index(&parser);
    if (status == MICA_OK) {
        index.entries = mica_reallocarray(NULL, parser.count, sizeof *index.entries);
        index.shards = mica_reallocarray(NULL, parser.count, sizeof *index.shards);
        status = index.entries && index.shards ? MICA_OK : out_of_memory(&parser);
    }
    if (status == MICA_OK) {
        index.entry_count = parser.count;
        index.shard_count = collect_shards(&parser, index.shards);
        status = build(&parser, &index);
    }
    index.text = parser.text.bytes;
    mica_free(parser.entries);
    if (status != MICA_OK) {
        mica_index_release(&index);
        return status;
    }
    *result = index;
    return MICA_OK;
}

void mica_index_release(mica_index *index) {
    mica_free(index->entries);
    mica_free(index->shards);
    mica_free(index->text);
    *index = (mica_index){0};
}
