/* base/json.c: reading JSON with jansson. A look of our own comes first (NUL bytes, depth) and again after a failure (where it was):
 * jansson alone would take a NUL behind a number for space, recurse 2048 deep and say no more than 20 bytes of what it met.
 * Judged by tests/base/test_json.c. The writer is in base/json_write.c. */
#include "base/json.h"

#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

#define DEPTH_MAX 64
#define SHOWN_BYTES_MAX 200
#define KEYS_SHOWN_BYTES 640 /* of a 1024-byte message */

/* jansson does not survive every allocation that fails: a token whose buffer cannot grow loses a character (its closing quote perhaps, and
 * then the lexer reads on), some are reported as syntax errors, some not at all. So while it parses the first one that fails jumps out of
 * it, and what the parse holds is freed here. */
typedef struct json_parse {
    jmp_buf out;
    void **held; /* [count], NULL where it was freed */
    size_t count, capacity;
} json_parse;

static _Thread_local json_parse *parsing;

static void *json_allocate(size_t bytes) {
    if (!parsing)
        return mica_malloc(bytes);
    if (parsing->count == parsing->capacity) {
        const size_t capacity = parsing->capacity ? 2 * parsing->capacity : 64;
        void **held = mica_reallocarray(parsing->held, capacity, sizeof *held);
        if (!held)
            longjmp(parsing->out, 1);
        parsing->held = held;
        parsing->capacity = capacity;
    }
    void *pointer = mica_malloc(bytes);
    if (!pointer)
        longjmp(parsing->out, 1);
    return parsing->held[parsing->count++] = pointer;
}

/* What is freed while parsing is mostly what came last. */
static void json_release(void *pointer) {
    for (size_t at = parsing && pointer ? parsing->count : 0; at > 0; at--) {
        if (parsing->held[at - 1] == pointer) {
            parsing->held[at - 1] = NULL;
            break;
        }
    }
    while (parsing && parsing->count > 0 && !parsing->held[parsing->count - 1])
        parsing->count--;
    mica_free(pointer);
}

static void use_our_allocator(void) {
    json_set_alloc_funcs(json_allocate, json_release);
}

static void prepare_jansson(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, use_our_allocator);
}

/* Where a scan has come to: the containers around it, and in each the key last seen (raw, between its quotes). */
typedef struct json_place {
    struct {
        bool object;
        const char *key; /* NULL: none yet */
        size_t key_bytes;
    } levels[DEPTH_MAX + 1];
    size_t depth, position;
    bool too_deep;
} json_place;

static size_t string_end(const char *bytes, size_t length, size_t at) {
    while (at < length && bytes[at] != '"')
        at += bytes[at] == '\\' && at + 1 < length ? 2 : 1;
    return at;
}

/* Walks from the start up to `stop`, minding only brackets, commas and strings; stops early where it gets too deep. */
static void scan(json_place *place, const char *bytes, size_t stop) {
    bool key_comes = false;
    memset(place, 0, sizeof *place);
    for (size_t at = 0; at < stop; at++) {
        char byte = bytes[at];
        if (byte == '"') {
            size_t end = string_end(bytes, stop, at + 1);
            if (key_comes && place->depth > 0 && place->levels[place->depth].object) {
                place->levels[place->depth].key = bytes + at + 1;
                place->levels[place->depth].key_bytes = end - at - 1;
            }
            key_comes = false;
            at = end;
        } else if (byte == '{' || byte == '[') {
            if (place->depth == DEPTH_MAX) {
                place->too_deep = true;
                place->position = at;
                return;
            }
            place->depth++;
            place->levels[place->depth].object = byte == '{';
            place->levels[place->depth].key = NULL;
            key_comes = true;
        } else if (byte == '}' || byte == ']') {
            place->depth -= place->depth > 0;
            key_comes = false;
        } else if (byte == ',') {
            key_comes = true;
        }
    }
    place->position = stop;
}

/* `, after "a" > "b"`: the keys that lead to the place; what does not fit is left out at its front, as the last says most. */
static void describe_keys(const json_place *place, char *buffer, size_t bytes) {
    size_t first = 1, total = 0;
    for (size_t level = place->depth; level > 0; level--) {
        total += place->levels[level].key_bytes + 5;
        if (total > bytes - 16) {
            first = level + 1;
            break;
        }
    }
    size_t used = 0;
    buffer[0] = 0;
    if (first > place->depth && place->depth > 0 && place->levels[place->depth].key) { /* one huge key: its beginning */
        snprintf(buffer, bytes, ", after \"%.*s…\"", (int)(bytes - 32), place->levels[place->depth].key);
        return;
    }
    for (size_t level = first; level <= place->depth; level++) {
        if (place->levels[level].key) {
            used += (size_t)snprintf(buffer + used, bytes - used, "%s\"%.*s\"", used == 0 ? ", after " : " > ",
                                     (int)place->levels[level].key_bytes, place->levels[level].key);
        }
    }
}

static void line_and_column(const char *bytes, size_t position, uint64_t *line, uint64_t *column) {
    *line = *column = 1;
    for (size_t i = 0; i < position; i++) {
        if (bytes[i] == '\n') {
            (*line)++;
            *column = 1;
        } else if (((unsigned char)bytes[i] & 0xc0) != 0x80) {
            (*column)++;
        }
    }
}

static mica_status fail_at(const char *name, const char *bytes, const json_place *place, const char *what, mica_error *error) {
    char keys[KEYS_SHOWN_BYTES];
    uint64_t line, column;
    describe_keys(place, keys, sizeof keys);
    line_and_column(bytes, place->position, &line, &column);
    return mica_fail(error, MICA_BAD_INPUT, "%s:%" PRIu64 ":%" PRIu64 ": %s%s", name, line, column, what, keys);
}

static mica_status fail_parse(const char *name, const char *bytes, uint64_t length, const json_error_t *failure, mica_error *error) {
    json_place place;
    size_t position = failure->position > 0 ? (size_t)failure->position : 0;
    position = position < length ? position : (size_t)length;
    if (json_error_code(failure) == json_error_invalid_syntax && position > 0 && strchr("]}", bytes[position - 1]))
        position--; /* a bracket that was wrong has closed nothing */
    scan(&place, bytes, position);
    char what[JSON_ERROR_TEXT_LENGTH + 32];
    switch (json_error_code(failure)) {
    case json_error_premature_end_of_input: snprintf(what, sizeof what, "the text ends too early (%s)", failure->text); break;
    case json_error_duplicate_key: snprintf(what, sizeof what, "duplicate key"); break;
    case json_error_end_of_input_expected: snprintf(what, sizeof what, "more text after the end of the object"); break;
    default: snprintf(what, sizeof what, "%s", failure->text);
    }
    return fail_at(name, bytes, &place, what, error);
}

static const char *type_name(const json_t *value) {
    static const char *const names[] = {"an object", "an array", "a string", "an integer", "a number", "true", "false", "null"};
    return names[json_typeof(value)];
}

/* NULL with *no_memory, or with what jansson says. */
static json_t *load(json_parse *run, const char *bytes, size_t length, size_t flags, json_error_t *failure, bool *no_memory) {
    if (setjmp(run->out) == 0) {
        parsing = run;
        json_t *root = json_loadb(bytes, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | flags, failure);
        parsing = NULL;
        *no_memory = false;
        return root;
    }
    parsing = NULL;
    for (size_t i = 0; i < run->count; i++)
        mica_free(run->held[i]);
    *no_memory = true;
    return NULL;
}

static mica_status parse(const char *name, const char *bytes, uint64_t length, size_t flags, json_t **object, mica_error *error) {
    if (length == 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a JSON object, got an empty text", name);
    json_place place;
    const char *nul = memchr(bytes, 0, (size_t)length);
    scan(&place, bytes, nul ? (size_t)(nul - bytes) : (size_t)length);
    if (nul && !place.too_deep)
        return fail_at(name, bytes, &place, "expected text, got a NUL byte", error);
    if (place.too_deep)
        return fail_at(name, bytes, &place, "nested deeper than 64 levels", error);
    prepare_jansson();
    json_error_t failure;
    json_parse run = {0};
    bool no_memory;
    json_t *root = load(&run, bytes, (size_t)length, flags, &failure, &no_memory);
    mica_free(run.held);
    if (no_memory)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its JSON (%" PRIu64 " bytes)", name, length);
    if (!root)
        return fail_parse(name, bytes, length, &failure, error);
    if (!json_is_object(root)) {
        mica_fail(error, MICA_BAD_INPUT, "%s: expected a JSON object, got %s", name, type_name(root));
        json_decref(root);
        return MICA_BAD_INPUT;
    }
    *object = root;
    return MICA_OK;
}

mica_status mica_json_parse(const char *name, const char *bytes, uint64_t length, json_t **object, mica_error *error) {
    return parse(name, bytes, length, 0, object, error);
}

mica_status mica_json_parse_as_doubles(const char *name, const char *bytes, uint64_t length, json_t **object, mica_error *error) {
    return parse(name, bytes, length, JSON_DECODE_INT_AS_REAL, object, error);
}

mica_status mica_json_load(const char *path, uint64_t limit, json_t **object, mica_error *error) {
    char *bytes;
    uint64_t length;
    mica_status status = mica_file_load(path, limit, &bytes, &length, error);
    if (status == MICA_OK) {
        status = mica_json_parse(path, bytes, length, object, error);
        mica_free(bytes);
    }
    return status;
}

typedef struct shown {
    char *buffer;
    size_t used, room;
} shown;

static int show_part(const char *bytes, size_t length, void *context) {
    shown *out = context;
    size_t part = length < out->room - out->used ? length : out->room - out->used;
    memcpy(out->buffer + out->used, bytes, part);
    out->used += part;
    return part == length ? 0 : -1; /* full: ends the dump */
}

const char *mica_json_show(const json_t *value, char *buffer, size_t bytes) {
    static const char dots[] = "…";
    if (bytes < sizeof dots) {
        if (bytes > 0)
            buffer[0] = 0;
        return buffer;
    }
    if (!value) {
        snprintf(buffer, bytes, "nothing");
        return buffer;
    }
    prepare_jansson();
    size_t limit = bytes < SHOWN_BYTES_MAX ? bytes : SHOWN_BYTES_MAX;
    shown out = {buffer, 0, limit - sizeof dots};
    if (json_dump_callback(value, show_part, &out, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15)) != 0) {
        while (out.used > 0 && ((unsigned char)buffer[out.used - 1] & 0xc0) == 0x80) { /* back to the start of a character */
            out.used--;
        }
        out.used -= out.used > 0 && (unsigned char)buffer[out.used - 1] >= 0xc0;
        memcpy(buffer + out.used, dots, sizeof dots);
    } else {
        buffer[out.used] = 0;
    }
    return buffer;
}
