/* operations/inspect_gguf.c: what a GGUF file says of itself: container, keys and values, for inspect's text and JSON. Long strings are
 * cut, arrays counted; text is made valid UTF-8 on one line. Judged by tests/operations/test_gguf_verbs.c. */
#include "operations/inspect_gguf.h"

#include <inttypes.h>
#include <string.h>

#include "base/text.h"

#define SHOWN_TEXT 60
#define SHOWN_JSON 1000

/* At most `limit` bytes of a string, never half a character; what is no UTF-8 or a control character becomes '?', a newline "\n". */
static void append_clean(mica_text *text, mica_gguf_string string, size_t limit) {
    size_t at = 0, used = 0;
    while (at < string.length && used < limit) {
        const unsigned char byte = (unsigned char)string.bytes[at];
        size_t sequence = mica_utf8_sequence(string.bytes + at, string.length - at);
        if (byte == '\n' || sequence == 0 || byte < 0x20 || byte == 0x7f) {
            mica_text_puts(text, byte == '\n' ? "\\n" : "?");
            sequence = 1;
        } else {
            mica_text_append(text, string.bytes + at, sequence);
        }
        at += sequence;
        used += sequence;
    }
    if (at < string.length)
        mica_text_puts(text, "…");
}

static void text_value(mica_text *text, const mica_gguf_entry *entry) {
    mica_gguf_string string;
    uint64_t at = 0;
    if (entry->is_array)
        mica_text_printf(text, "%" PRIu64 " of %s", entry->count, mica_gguf_type_name(entry->type));
    else if (entry->type == MICA_GGUF_STRING && mica_gguf_next_string(entry, &at, &string))
        append_clean(text, string, SHOWN_TEXT);
    else if (entry->type == MICA_GGUF_FLOAT32 || entry->type == MICA_GGUF_FLOAT64)
        mica_text_printf(text, "%.7g", mica_gguf_float_at(entry, 0));
    else if (entry->type == MICA_GGUF_BOOL)
        mica_text_puts(text, mica_gguf_integer_at(entry, 0) ? "true" : "false");
    else if (entry->type == MICA_GGUF_UINT64)
        mica_text_printf(text, "%" PRIu64, (uint64_t)mica_gguf_integer_at(entry, 0));
    else
        mica_text_printf(text, "%" PRId64, mica_gguf_integer_at(entry, 0));
}

void mica_inspect_gguf_text(mica_text *text, const mica_gguf *gguf) {
    mica_text_printf(text, "\nGGUF version %" PRIu32 ", alignment %" PRIu64 ", %" PRIu64 " keys\n", gguf->version, gguf->alignment,
                     gguf->entry_count);
    for (uint64_t i = 0; i < gguf->entry_count; i++) {
        mica_text_printf(text, "  %-48s %-6s  ", gguf->entries[i].key,
                         gguf->entries[i].is_array ? "array" : mica_gguf_type_name(gguf->entries[i].type));
        text_value(text, &gguf->entries[i]);
        mica_text_puts(text, "\n");
    }
}

static void json_value(mica_json_writer *writer, const mica_gguf_entry *entry) {
    mica_gguf_string string = {"", 0};
    mica_text clean = MICA_TEXT_INIT;
    uint64_t at = 0;
    if (entry->type == MICA_GGUF_STRING) {
        mica_gguf_next_string(entry, &at, &string);
        append_clean(&clean, string, SHOWN_JSON);
        mica_json_string(writer, "value", mica_text_failed(&clean) ? NULL : clean.bytes ? clean.bytes : "");
        mica_text_release(&clean);
    } else if (entry->type == MICA_GGUF_FLOAT32 || entry->type == MICA_GGUF_FLOAT64) {
        mica_json_double(writer, "value", mica_gguf_float_at(entry, 0));
    } else if (entry->type == MICA_GGUF_BOOL) {
        mica_json_bool(writer, "value", mica_gguf_integer_at(entry, 0) != 0);
    } else if (mica_gguf_integer_at(entry, 0) < 0 && entry->type != MICA_GGUF_UINT64) {
        mica_json_double(writer, "value", (double)mica_gguf_integer_at(entry, 0));
    } else {
        mica_json_u64(writer, "value", (uint64_t)mica_gguf_integer_at(entry, 0));
    }
}

void mica_inspect_gguf_json(mica_json_writer *writer, const mica_gguf *gguf) {
    mica_json_open_object(writer, "gguf");
    mica_json_u64(writer, "version", gguf->version);
    mica_json_u64(writer, "alignment", gguf->alignment);
    mica_json_open_array(writer, "keys");
    for (uint64_t i = 0; i < gguf->entry_count; i++) {
        const mica_gguf_entry *entry = &gguf->entries[i];
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "key", entry->key);
        mica_json_string(writer, "type", mica_gguf_type_name(entry->type));
        if (entry->is_array)
            mica_json_u64(writer, "count", entry->count);
        else
            json_value(writer, entry);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}
