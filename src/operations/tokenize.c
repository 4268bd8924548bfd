/* operations/tokenize.c: opening the tokenizer of whatever a path is, and what `mica tokenize` prints. Judged by
 * tests/operations/test_tokenize.c. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "operations/compute.h"

/* A directory that has the files needs no tensors; anything else is opened as a checkpoint. */
mica_status mica_tokenizer_open(const char *checkpoint, mica_tokenizer **tokenizer, mica_error *error) {
    const mica_token_files files = {NULL, checkpoint};
    mica_tensor_source *source;
    if (mica_path_is_directory(checkpoint) && mica_token_files_exist(&files))
        return mica_tokenizer_open_files(&files, tokenizer, error);
    mica_status status = mica_tensor_source_open(checkpoint, &source, error);
    if (status == MICA_OK) {
        status = mica_tokenizer_open_source(source, tokenizer, error);
        mica_tensor_source_close(source);
    }
    return status;
}

/* Bytes as text: UTF-8 as it is, control characters, quotes and bytes that are no text as escapes of C. */
static void escape(mica_text *text, const char *bytes, uint64_t length) {
    for (uint64_t at = 0, sequence; at < length; at += sequence) {
        unsigned char byte = (unsigned char)bytes[at];
        sequence = mica_utf8_sequence(bytes + at, length - at);
        if (byte == '\n')
            mica_text_puts(text, "\\n");
        else if (byte == '\\')
            mica_text_puts(text, "\\\\");
        else if (sequence == 0 || byte < 0x20 || byte == 0x7f)
            mica_text_printf(text, "\\x%02x", byte);
        else
            mica_text_append(text, bytes + at, sequence);
        sequence += sequence == 0;
    }
}

static void write_pieces(const mica_tokenizer *tokenizer, const mica_token_list *ids, mica_text *text) {
    for (uint64_t i = 0; i < ids->count; i++) {
        uint64_t length = 0;
        const char *bytes = mica_tokenizer_bytes(tokenizer, ids->ids[i], &length);
        mica_text_printf(text, "%" PRIu32 "\t", ids->ids[i]);
        escape(text, bytes, length);
        mica_text_append(text, "\n", 1);
    }
}

static void write_ids(const mica_token_list *ids, mica_text *text) {
    for (uint64_t i = 0; i < ids->count; i++)
        mica_text_printf(text, "%s%" PRIu32, i > 0 ? "," : "", ids->ids[i]);
    mica_text_append(text, "\n", 1);
}

/* `bytes` is what the ids stand for; where it is no UTF-8, JSON has it in hexadecimal. */
static char *write_json(const mica_tokenizer *tokenizer, const mica_token_list *ids, const char *bytes, uint64_t length) {
    static const char digits[] = "0123456789abcdef";
    mica_json_writer writer;
    mica_text hex = MICA_TEXT_INIT;
    uint64_t json_length;
    bool is_text = mica_utf8_prefix(bytes, length) == length && !memchr(bytes, 0, length);
    for (uint64_t i = 0; !is_text && i < length; i++) {
        const char pair[2] = {digits[(unsigned char)bytes[i] >> 4], digits[bytes[i] & 15]};
        mica_text_append(&hex, pair, 2);
    }
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_u64(&writer, "vocabulary", mica_tokenizer_count(tokenizer));
    mica_json_u64(&writer, "bytes", length);
    mica_json_u64(&writer, "count", ids->count);
    mica_json_open_row(&writer, "ids");
    for (uint64_t i = 0; i < ids->count; i++)
        mica_json_u64(&writer, NULL, ids->ids[i]);
    mica_json_close_array(&writer);
    mica_json_string(&writer, "text", is_text ? bytes : NULL);
    if (!is_text)
        mica_json_string(&writer, "hex", hex.bytes);
    mica_json_close_object(&writer);
    bool failed = mica_text_failed(&hex);
    mica_text_release(&hex);
    char *json = mica_json_finish(&writer, &json_length);
    if (failed) {
        mica_free(json);
        json = NULL;
    }
    return json;
}

static mica_status report(const mica_tokenizer *tokenizer, const mica_tokenize_options *options, const mica_token_list *ids, char **text,
                          uint64_t *text_bytes, char **json, mica_error *error) {
    char *bytes = NULL;
    uint64_t length;
    mica_text shown = MICA_TEXT_INIT;
    mica_status status = mica_tokenizer_decode(tokenizer, ids->ids, ids->count, &bytes, &length, error);
    if (status != MICA_OK)
        return status;
    mica_text_append(&shown, "", 0);
    if (options->pieces)
        write_pieces(tokenizer, ids, &shown);
    else if (options->text)
        write_ids(ids, &shown);
    else
        mica_text_append(&shown, bytes, length);
    *json = write_json(tokenizer, ids, bytes, length);
    *text_bytes = shown.length;
    *text = mica_text_take(&shown);
    mica_free(bytes);
    if (*text && *json)
        return MICA_OK;
    mica_free(*text);
    mica_free(*json);
    *text = *json = NULL;
    return mica_fail(error, MICA_NO_MEMORY, "out of memory for the report");
}

mica_status mica_tokenize(const char *checkpoint, const mica_tokenize_options *options, char **text, uint64_t *text_bytes, char **json,
                          mica_error *error) {
    mica_tokenizer *tokenizer = NULL;
    mica_token_list ids = {0};
    mica_status status = options->text ? MICA_OK : mica_ids_parse(options->ids, &ids, error);
    if (status == MICA_OK)
        status = mica_tokenizer_open(checkpoint, &tokenizer, error);
    if (status == MICA_OK && options->text)
        status = mica_tokenizer_append(tokenizer, options->text, options->text_bytes, options->special, &ids, error);
    if (status == MICA_OK)
        status = report(tokenizer, options, &ids, text, text_bytes, json, error);
    mica_token_list_release(&ids);
    mica_tokenizer_close(tokenizer);
    return status;
}
