/* model/tokenizer.c: the vocabulary of a tokenizer, whichever file it was made from, and ids to text by it; tokenizer_encode.c is the other
 * way. Refuses ids and tokens twice, and vocabularies without a token for every byte. Judged by tests/model/test_tokenizer.c. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/byte_level.h"
#include "model/tokenizer_build.h"

static mica_status out_of_memory(const char *name, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the tokenizer", name);
}

/* ---- making */

mica_status mica_tokenizer_new(const char *name, uint32_t count, mica_tokenizer **tokenizer, mica_error *error) {
    mica_tokenizer *made = mica_calloc(1, sizeof *made);
    if (!made)
        return out_of_memory(name, error);
    made->count = count;
    made->roles = (mica_token_roles){MICA_TOKEN_NONE, MICA_TOKEN_NONE, MICA_TOKEN_NONE, MICA_TOKEN_NONE, false, false};
    made->name = mica_strdup(name);
    made->spans = mica_calloc(count, sizeof *made->spans);
    made->types = mica_calloc(count, sizeof *made->types);
    made->added = mica_calloc(count, sizeof *made->added);
    if (!made->name || !made->spans || !made->types || !made->added) {
        mica_tokenizer_close(made);
        return out_of_memory(name, error);
    }
    *tokenizer = made;
    return MICA_OK;
}

mica_status mica_tokenizer_set(mica_tokenizer *tokenizer, uint32_t id, const void *bytes, uint64_t length, mica_token_type type,
                               mica_error *error) {
    if (id >= tokenizer->count) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected ids below the vocabulary's size, %" PRIu32 ", got %" PRIu32, tokenizer->name,
                         tokenizer->count, id);
    }
    if (tokenizer->types[id] != 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected one token for id %" PRIu32 ", got two", tokenizer->name, id);
    if (tokenizer->names.length + length > UINT32_MAX)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected tokens of at most 4 GiB together, got more", tokenizer->name);
    tokenizer->spans[id] = (mica_token_span){(uint32_t)tokenizer->names.length, (uint32_t)length};
    tokenizer->types[id] = (uint8_t)type;
    mica_text_append(&tokenizer->names, bytes, length);
    return mica_text_failed(&tokenizer->names) ? out_of_memory(tokenizer->name, error) : MICA_OK;
}

bool mica_tokenizer_read_text(const mica_tokenizer *tokenizer, const char *text, uint64_t length, mica_text *bytes) {
    if (!tokenizer->characters)
        return mica_byte_level_read(bytes, text, length);
    if (memchr(text, ' ', length)) /* text has none when it is compared */
        return false;
    mica_space_marks_read(bytes, text, length);
    return true;
}

mica_status mica_tokenizer_set_text(mica_tokenizer *tokenizer, uint32_t id, const char *text, uint64_t length, mica_text *scratch,
                                    mica_error *error) {
    mica_text_clear(scratch);
    const bool read = mica_tokenizer_read_text(tokenizer, text, length, scratch);
    if (mica_text_failed(scratch))
        return out_of_memory(tokenizer->name, error);
    return read ? mica_tokenizer_set(tokenizer, id, scratch->bytes, scratch->length, MICA_TOKEN_NORMAL, error)
                : mica_tokenizer_set(tokenizer, id, text, length, MICA_TOKEN_UNUSED, error);
}

static bool is_special_type(uint8_t type) {
    return type == MICA_TOKEN_CONTROL || type == MICA_TOKEN_USER_DEFINED || type == MICA_TOKEN_UNKNOWN;
}

static int compare_lengths(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return left > right ? -1 : left < right;
}

/* Where the search for special tokens looks closer, and which lengths it tries. */
static mica_status index_special(mica_tokenizer *tokenizer, uint32_t id, mica_error *error) {
    mica_token_span span = tokenizer->spans[id];
    tokenizer->has_user_defined |= tokenizer->types[id] == MICA_TOKEN_USER_DEFINED;
    tokenizer->has_normalized |= tokenizer->added[id] & MICA_ADDED_NORMALIZED;
    tokenizer->has_in_vocabulary |= tokenizer->added[id] & MICA_ADDED_IN_VOCABULARY;
    tokenizer->special_first[(uint8_t)tokenizer->names.bytes[span.start]] = true;
    for (uint32_t i = 0; i < tokenizer->special_length_count; i++) {
        if (tokenizer->special_lengths[i] == span.length)
            return MICA_OK;
    }
    if (tokenizer->special_length_count == sizeof tokenizer->special_lengths / sizeof tokenizer->special_lengths[0])
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected special tokens of at most 256 different lengths, got more", tokenizer->name);
    tokenizer->special_lengths[tokenizer->special_length_count++] = span.length;
    return MICA_OK;
}

static mica_status index_token(mica_tokenizer *tokenizer, uint32_t id, mica_error *error) {
    uint32_t other;
    bool special = is_special_type(tokenizer->types[id]);
    if (tokenizer->spans[id].length == 0 || tokenizer->types[id] == MICA_TOKEN_UNUSED)
        return MICA_OK; /* text never becomes it */
    if (tokenizer->characters && tokenizer->types[id] == MICA_TOKEN_BYTE) {
        tokenizer->byte_ids[(uint8_t)tokenizer->names.bytes[tokenizer->spans[id].start]] = id;
        return MICA_OK;
    }
    mica_bytes_table *table = special ? &tokenizer->special : &tokenizer->normal;
    if (!mica_bytes_table_insert(table, tokenizer->names.bytes, tokenizer->spans, id, &other)) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected tokens that differ, got the same bytes for the ids %" PRIu32 " and %" PRIu32,
                         tokenizer->name, other, id);
    }
    return special ? index_special(tokenizer, id, error) : MICA_OK;
}

mica_status mica_tokenizer_index(mica_tokenizer *tokenizer, mica_error *error) {
    uint64_t normal = 0, special = 0;
    for (uint32_t id = 0; id < tokenizer->count; id++) {
        char name[24];
        mica_status status = MICA_OK;
        if (tokenizer->types[id] == 0) {
            snprintf(name, sizeof name, "[PAD%" PRIu32 "]", id);
            status = mica_tokenizer_set(tokenizer, id, name, strlen(name), MICA_TOKEN_UNUSED, error);
        }
        if (status != MICA_OK)
            return status;
        special += is_special_type(tokenizer->types[id]);
        normal += !is_special_type(tokenizer->types[id]);
    }
    if (!mica_bytes_table_init(&tokenizer->normal, normal) || !mica_bytes_table_init(&tokenizer->special, special))
        return out_of_memory(tokenizer->name, error);
    memset(tokenizer->byte_ids, 0xff, sizeof tokenizer->byte_ids);
    for (uint32_t id = 0; id < tokenizer->count; id++) {
        mica_status status = index_token(tokenizer, id, error);
        if (status != MICA_OK)
            return status;
    }
    qsort(tokenizer->special_lengths, tokenizer->special_length_count, sizeof tokenizer->special_lengths[0], compare_lengths);
    for (uint32_t byte = 0; byte < 256; byte++) {
        char text = (char)byte;
        if (!tokenizer->characters)
            tokenizer->byte_ids[byte] = mica_bytes_table_find(&tokenizer->normal, tokenizer->names.bytes, tokenizer->spans, &text, 1);
        if (tokenizer->byte_ids[byte] == UINT32_MAX) {
            return mica_fail(error, MICA_BAD_INPUT, "%s: expected a token for every byte, got none for 0x%02" PRIx32, tokenizer->name,
                             byte);
        }
    }
    return MICA_OK;
}

void mica_tokenizer_add_end(mica_tokenizer *tokenizer, uint32_t id) {
    if (id != MICA_TOKEN_NONE && !mica_tokenizer_ends(tokenizer, id) && tokenizer->end_count < MICA_TOKEN_ENDS_MAX)
        tokenizer->ends[tokenizer->end_count++] = id;
}

mica_status mica_tokenizer_open_files(const mica_token_files *files, mica_tokenizer **tokenizer, mica_error *error) {
    const mica_gguf *gguf = files->source ? mica_gguf_of_source(files->source) : NULL;
    if (gguf)
        return mica_tokenizer_from_gguf(gguf, tokenizer, error);
    bool ranks = mica_token_file_exists(files, MICA_TOKENIZER_RANKS_FILE);
    const char *file = ranks ? MICA_TOKENIZER_RANKS_FILE : MICA_TOKENIZER_JSON_FILE;
    char *bytes = NULL, *path = mica_token_file_path(files, file);
    uint64_t length = 0;
    mica_token_settings settings = {0};
    mica_tokenizer *made = NULL;
    mica_status status = path ? MICA_OK : out_of_memory(file, error);
    if (status == MICA_OK && files->source && !files->source->kind->has_files)
        status = mica_token_file_load(files, file, MICA_TOKENIZER_FILE_BYTES_MAX, &bytes, &length, error); /* which refuses */
    else if (status == MICA_OK && !mica_token_files_exist(files))
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected it, or " MICA_TOKENIZER_RANKS_FILE ", got neither", path);
    if (status == MICA_OK)
        status = mica_token_settings_load(files, &settings, error);
    if (status == MICA_OK)
        status = mica_token_file_load(files, file, MICA_TOKENIZER_FILE_BYTES_MAX, &bytes, &length, error);
    if (status == MICA_OK)
        status = (ranks ? mica_tokenizer_from_ranks : mica_tokenizer_from_json)(path, bytes, length, &settings, &made, error);
    if (status == MICA_OK)
        status = mica_token_settings_apply(&settings, made, error);
    mica_token_settings_release(&settings);
    mica_free(bytes);
    mica_free(path);
    if (status != MICA_OK)
        mica_tokenizer_close(made);
    else
        *tokenizer = made;
    return status;
}

mica_status mica_tokenizer_open_source(const mica_tensor_source *source, mica_tokenizer **tokenizer, mica_error *error) {
    const mica_token_files files = {source, NULL};
    return mica_tokenizer_open_files(&files, tokenizer, error);
}

bool mica_token_files_exist(const mica_token_files *files) {
    const mica_gguf *gguf = files->source ? mica_gguf_of_source(files->source) : NULL;
    if (gguf)
        return mica_gguf_find(gguf, "tokenizer.ggml.tokens") != NULL;
    return mica_token_file_exists(files, MICA_TOKENIZER_RANKS_FILE) || mica_token_file_exists(files, MICA_TOKENIZER_JSON_FILE);
}

void mica_tokenizer_close(mica_tokenizer *tokenizer) {
    if (!tokenizer)
        return;
    mica_text_release(&tokenizer->names);
    mica_bytes_table_release(&tokenizer->normal);
    mica_bytes_table_release(&tokenizer->special);
    mica_pair_table_release(&tokenizer->merges);
    mica_splitter_release(&tokenizer->splitter);
    mica_free(tokenizer->name);
    mica_free(tokenizer->spans);
    mica_free(tokenizer->types);
    mica_free(tokenizer->added);
    mica_free(tokenizer->chat_template);
    mica_free(tokenizer);
}

/* ---- asking */

uint32_t mica_tokenizer_count(const mica_tokenizer *tokenizer) {
    return tokenizer->count;
}

const char *mica_tokenizer_bytes(const mica_tokenizer *tokenizer, uint32_t id, uint64_t *length) {
    if (id >= tokenizer->count)
        return NULL;
    *length = tokenizer->spans[id].length;
    return tokenizer->names.bytes + tokenizer->spans[id].start;
}

mica_token_type mica_tokenizer_type(const mica_tokenizer *tokenizer, uint32_t id) {
    return id < tokenizer->count ? (mica_token_type)tokenizer->types[id] : MICA_TOKEN_UNUSED;
}

const mica_token_roles *mica_tokenizer_roles(const mica_tokenizer *tokenizer) {
    return &tokenizer->roles;
}

bool mica_tokenizer_ends(const mica_tokenizer *tokenizer, uint32_t id) {
    for (uint32_t i = 0; i < tokenizer->end_count; i++) {
        if (tokenizer->ends[i] == id)
            return true;
    }
    return false;
}

uint32_t mica_tokenizer_find(const mica_tokenizer *tokenizer, const char *bytes, uint64_t length) {
    const uint32_t id = mica_bytes_table_find(&tokenizer->normal, tokenizer->names.bytes, tokenizer->spans, bytes, length);
    return id != MICA_TOKEN_NONE ? id : mica_bytes_table_find(&tokenizer->special, tokenizer->names.bytes, tokenizer->spans, bytes, length);
}

uint32_t mica_tokenizer_special(const mica_tokenizer *tokenizer, const char *text) {
    return mica_bytes_table_find(&tokenizer->special, tokenizer->names.bytes, tokenizer->spans, text, strlen(text));
}

const char *mica_tokenizer_chat_template(const mica_tokenizer *tokenizer) {
    return tokenizer->chat_template;
}

/* ---- decoding */

/* Appends the bytes of an id, with the space before it that an added token took (tokenizer_encode.c); `first`: of a text. */
static mica_status append_token(const mica_tokenizer *tokenizer, uint32_t id, bool first, mica_text *text, mica_error *error) {
    uint64_t length;
    const char *bytes = mica_tokenizer_bytes(tokenizer, id, &length);
    if (!bytes) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected ids from 0 to %" PRIu32 ", got %" PRIu32, tokenizer->name,
                         tokenizer->count - 1, id);
    }
    const bool took_space = tokenizer->spaces.before && tokenizer->added[id] & MICA_ADDED_NORMALIZED;
    const bool left_out = first && tokenizer->spaces.left_out && length > 0 && *bytes == ' ' && !took_space;
    mica_text_append(text, " ", took_space && !(first && tokenizer->spaces.left_out));
    mica_text_append(text, bytes + left_out, length - left_out);
    return mica_text_failed(text) ? mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the text of an id", tokenizer->name) : MICA_OK;
}

mica_status mica_tokenizer_decode(const mica_tokenizer *tokenizer, const uint32_t *ids, uint64_t count, char **bytes, uint64_t *length,
                                  mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    mica_status status = MICA_OK;
    mica_text_append(&text, "", 0);
    for (uint64_t i = 0; i < count && status == MICA_OK; i++)
        status = append_token(tokenizer, ids[i], i == 0, &text, error);
    *length = text.length;
    *bytes = status == MICA_OK ? mica_text_take(&text) : NULL;
    if (status == MICA_OK && !*bytes)
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the text of %" PRIu64 " ids", tokenizer->name, count);
    mica_text_release(&text);
    return status;
}

mica_status mica_token_stream_push(mica_token_stream *stream, const mica_tokenizer *tokenizer, uint32_t id, const char **bytes,
                                   uint64_t *length, mica_error *error) {
    const uint64_t rest = stream->held.length - stream->ready;
    if (stream->ready > 0) {
        memmove(stream->held.bytes, stream->held.bytes + stream->ready, rest);
        stream->held.length = rest;
        stream->ready = 0;
    }
    const mica_status status = append_token(tokenizer, id, false, &stream->held, error);
    if (status != MICA_OK)
        return status;
    stream->ready = stream->held.length - mica_utf8_unfinished(stream->held.bytes, stream->held.length);
    *bytes = stream->held.bytes;
    *length = stream->ready;
    return MICA_OK;
}

void mica_token_stream_flush(mica_token_stream *stream, const char **bytes, uint64_t *length) {
    *bytes = stream->held.length > stream->ready ? stream->held.bytes + stream->ready : "";
    *length = stream->held.length - stream->ready;
    stream->ready = stream->held.length;
}

void mica_token_stream_release(mica_token_stream *stream) {
    mica_text_release(&stream->held);
    stream->ready = 0;
}
