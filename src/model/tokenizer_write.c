/* model/tokenizer_write.c: tokenizer.json and tokenizer_config.json, as Hugging Face's tokenizers reads them: for a GGUF, which has the same
 * facts under other names. Ids that no text gives (UNUSED) are left out, as published files leave them out. SentencePiece's scores become
 * merges, one for each token: no other pair ever makes it (tokenizer_build.h). Judged by tests/operations/test_export_back.c and
 * tests/interop/export_back.py (tokenizers, tiktoken). */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "model/byte_level.h"
#include "model/tokenizer_build.h"

static mica_status no_memory(const mica_tokenizer *tokenizer, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the tokenizer", tokenizer->name);
}

static bool is_added(const mica_tokenizer *tokenizer, uint32_t id) {
    const mica_token_type type = mica_tokenizer_type(tokenizer, id);
    return type == MICA_TOKEN_CONTROL || type == MICA_TOKEN_USER_DEFINED || type == MICA_TOKEN_UNKNOWN;
}

/* The text of an id, as tokenizer.ggml.tokens has it: NUL-terminated, in `scratch`. */
static const char *text_of(const mica_tokenizer *tokenizer, uint32_t id, mica_text *scratch) {
    mica_text_clear(scratch);
    mica_tokenizer_gguf_text(tokenizer, id, scratch);
    return scratch->bytes ? scratch->bytes : "";
}

static void put_added(mica_json_writer *writer, const char *content, bool special) {
    mica_json_string(writer, "content", content);
    mica_json_bool(writer, "single_word", false);
    mica_json_bool(writer, "lstrip", false);
    mica_json_bool(writer, "rstrip", false);
    mica_json_bool(writer, "normalized", false);
    mica_json_bool(writer, "special", special);
}

static void put_added_tokens(mica_json_writer *writer, const mica_tokenizer *tokenizer, mica_text *scratch) {
    mica_json_open_array(writer, "added_tokens");
    for (uint32_t id = 0; id < tokenizer->count; id++) {
        if (!is_added(tokenizer, id))
            continue;
        mica_json_open_line(writer, NULL);
        mica_json_u64(writer, "id", id);
        put_added(writer, text_of(tokenizer, id, scratch), mica_tokenizer_type(tokenizer, id) != MICA_TOKEN_USER_DEFINED);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static void put_type(mica_json_writer *writer, const char *key, const char *type) {
    mica_json_open_line(writer, key);
    mica_json_string(writer, "type", type);
    mica_json_close_object(writer);
}

static void put_replace(mica_json_writer *writer, const char *pattern, const char *content) {
    mica_json_open_line(writer, NULL);
    mica_json_string(writer, "type", "Replace");
    mica_json_open_line(writer, "pattern");
    mica_json_string(writer, "String", pattern);
    mica_json_close_object(writer);
    mica_json_string(writer, "content", content);
    mica_json_close_object(writer);
}

/* Spaces are U+2581, with one before a text. */
static void put_spaces(mica_json_writer *writer, const mica_tokenizer *tokenizer) {
    mica_json_open_object(writer, "normalizer");
    mica_json_string(writer, "type", "Sequence");
    mica_json_open_array(writer, "normalizers");
    if (tokenizer->spaces.before) {
        mica_json_open_line(writer, NULL);
        mica_json_string(writer, "type", "Prepend");
        mica_json_string(writer, "prepend", MICA_SPACE_MARK);
        mica_json_close_object(writer);
    }
    put_replace(writer, " ", MICA_SPACE_MARK);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

static void put_spaces_back(mica_json_writer *writer, const mica_tokenizer *tokenizer) {
    mica_json_open_object(writer, "decoder");
    mica_json_string(writer, "type", "Sequence");
    mica_json_open_array(writer, "decoders");
    put_replace(writer, MICA_SPACE_MARK, " ");
    put_type(writer, NULL, "ByteFallback");
    put_type(writer, NULL, "Fuse");
    if (tokenizer->spaces.left_out) {
        mica_json_open_line(writer, NULL);
        mica_json_string(writer, "type", "Strip");
        mica_json_string(writer, "content", " ");
        mica_json_u64(writer, "start", 1);
        mica_json_u64(writer, "stop", 0);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

static void put_byte_level(mica_json_writer *writer, const char *key) {
    mica_json_open_line(writer, key);
    mica_json_string(writer, "type", "ByteLevel");
    mica_json_bool(writer, "add_prefix_space", false);
    mica_json_bool(writer, "trim_offsets", true);
    mica_json_bool(writer, "use_regex", false);
    mica_json_close_object(writer);
}

static void put_pre_tokenizer(mica_json_writer *writer, const mica_split_row *row) {
    mica_json_open_object(writer, "pre_tokenizer");
    mica_json_string(writer, "type", "Sequence");
    mica_json_open_array(writer, "pretokenizers");
    for (uint32_t i = 0; i < MICA_SPLIT_STAGES_MAX && row->patterns[i]; i++) {
        mica_json_open_line(writer, NULL);
        mica_json_string(writer, "type", "Split");
        mica_json_open_line(writer, "pattern");
        mica_json_string(writer, "Regex", row->patterns[i]);
        mica_json_close_object(writer);
        mica_json_string(writer, "behavior", "Isolated");
        mica_json_bool(writer, "invert", false);
        mica_json_close_object(writer);
    }
    put_byte_level(writer, NULL);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
}

static void put_template_piece(mica_json_writer *writer, const char *special, int sequence) {
    mica_json_open_line(writer, NULL);
    mica_json_open_line(writer, special ? "SpecialToken" : "Sequence");
    mica_json_string(writer, "id", special ? special : sequence == 0 ? "A" : "B");
    mica_json_u64(writer, "type_id", (uint64_t)sequence);
    mica_json_close_object(writer);
    mica_json_close_object(writer);
}

/* "[bos] text [eos]" of one text or of two, where the vocabulary wants either. */
static void put_post_processor(mica_json_writer *writer, const mica_tokenizer *tokenizer, mica_text *scratch) {
    const mica_token_roles *roles = &tokenizer->roles;
    const uint32_t ends[2] = {roles->add_bos ? roles->bos : MICA_TOKEN_NONE, roles->add_eos ? roles->eos : MICA_TOKEN_NONE};
    if (ends[0] == MICA_TOKEN_NONE && ends[1] == MICA_TOKEN_NONE) {
        if (tokenizer->characters)
            mica_json_null(writer, "post_processor");
        else
            put_byte_level(writer, "post_processor");
        return;
    }
    mica_json_open_object(writer, "post_processor");
    mica_json_string(writer, "type", "TemplateProcessing");
    for (int pair = 0; pair < 2; pair++) {
        mica_json_open_array(writer, pair ? "pair" : "single");
        for (int sequence = 0; sequence <= pair; sequence++) {
            if (ends[0] != MICA_TOKEN_NONE)
                put_template_piece(writer, text_of(tokenizer, ends[0], scratch), sequence);
            put_template_piece(writer, NULL, sequence);
            if (ends[1] != MICA_TOKEN_NONE)
                put_template_piece(writer, text_of(tokenizer, ends[1], scratch), sequence);
        }
        mica_json_close_array(writer);
    }
    mica_json_open_object(writer, "special_tokens");
    for (int i = 0; i < 2; i++) {
        if (ends[i] == MICA_TOKEN_NONE || (i == 1 && ends[1] == ends[0]))
            continue;
        const char *text = text_of(tokenizer, ends[i], scratch);
        mica_json_open_line(writer, text);
        mica_json_string(writer, "id", text);
        mica_json_open_row(writer, "ids");
        mica_json_u64(writer, NULL, ends[i]);
        mica_json_close_array(writer);
        mica_json_open_row(writer, "tokens");
        mica_json_string(writer, NULL, text);
        mica_json_close_array(writer);
        mica_json_close_object(writer);
    }
    mica_json_close_object(writer);
    mica_json_close_object(writer);
}

/* SentencePiece's special tokens are the first of all: tokenizers numbers them so only when they are in the vocabulary too. */
static bool is_in_vocabulary(const mica_tokenizer *tokenizer, uint32_t id) {
    const mica_token_type type = mica_tokenizer_type(tokenizer, id);
    return type == MICA_TOKEN_NORMAL || (tokenizer->characters && (type == MICA_TOKEN_BYTE || is_added(tokenizer, id)));
}

static mica_status put_model(mica_json_writer *writer, const mica_tokenizer *tokenizer, mica_text *scratch, mica_error *error) {
    mica_token_merge *merges = NULL;
    uint64_t count = 0;
    mica_json_open_object(writer, "model");
    mica_json_string(writer, "type", "BPE");
    mica_json_null(writer, "dropout");
    if (tokenizer->characters && tokenizer->roles.unknown != MICA_TOKEN_NONE)
        mica_json_string(writer, "unk_token", text_of(tokenizer, tokenizer->roles.unknown, scratch));
    else
        mica_json_null(writer, "unk_token");
    mica_json_null(writer, "continuing_subword_prefix");
    mica_json_null(writer, "end_of_word_suffix");
    mica_json_bool(writer, "fuse_unk", tokenizer->characters);
    mica_json_bool(writer, "byte_fallback", tokenizer->characters);
    mica_json_bool(writer, "ignore_merges", tokenizer->whole_pieces);
    mica_json_open_object(writer, "vocab");
    for (uint32_t id = 0; id < tokenizer->count; id++)
        if (is_in_vocabulary(tokenizer, id))
            mica_json_u64(writer, text_of(tokenizer, id, scratch), id);
    mica_json_close_object(writer);
    mica_json_open_array(writer, "merges");
    const mica_status status = mica_tokenizer_merges(tokenizer, &merges, &count, error);
    for (uint64_t i = 0; status == MICA_OK && i < count; i++) {
        mica_text_clear(scratch);
        mica_tokenizer_gguf_merge(tokenizer, &merges[i], scratch);
        mica_json_string(writer, NULL, scratch->bytes ? scratch->bytes : "");
    }
    mica_free(merges);
    mica_json_close_array(writer);
    mica_json_close_object(writer);
    return status;
}

static mica_status finish(const mica_tokenizer *tokenizer, mica_json_writer *writer, mica_text *scratch, mica_status status, char **json,
                          uint64_t *length, mica_error *error) {
    *json = mica_json_finish(writer, length);
    const bool failed = !*json || mica_text_failed(scratch);
    mica_text_release(scratch);
    if (status == MICA_OK && failed)
        status = no_memory(tokenizer, error);
    if (status != MICA_OK) {
        mica_free(*json);
        *json = NULL;
    }
    return status;
}

uint64_t mica_tokenizer_shared_ranks(const mica_tokenizer *tokenizer) {
    return tokenizer->shared_ranks;
}

mica_status mica_tokenizer_write(const mica_tokenizer *tokenizer, char **json, uint64_t *length, mica_error *error) {
    mica_json_writer writer;
    mica_text scratch = MICA_TEXT_INIT;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "version", "1.0");
    mica_json_null(&writer, "truncation");
    mica_json_null(&writer, "padding");
    put_added_tokens(&writer, tokenizer, &scratch);
    if (tokenizer->characters)
        put_spaces(&writer, tokenizer);
    else if (tokenizer->compose)
        put_type(&writer, "normalizer", "NFC");
    else
        mica_json_null(&writer, "normalizer");
    if (tokenizer->characters)
        mica_json_null(&writer, "pre_tokenizer");
    else
        put_pre_tokenizer(&writer, mica_split_row_find(tokenizer->pre_type));
    put_post_processor(&writer, tokenizer, &scratch);
    if (tokenizer->characters)
        put_spaces_back(&writer, tokenizer);
    else
        put_byte_level(&writer, "decoder");
    const mica_status status = put_model(&writer, tokenizer, &scratch, error);
    mica_json_close_object(&writer);
    return finish(tokenizer, &writer, &scratch, status, json, length, error);
}

mica_status mica_tokenizer_write_config(const mica_tokenizer *tokenizer, uint64_t length_max, char **json, uint64_t *length,
                                        mica_error *error) {
    const mica_token_roles *roles = &tokenizer->roles;
    const struct {
        const char *key;
        uint32_t id;
    } rows[] = {{"bos_token", roles->bos}, {"eos_token", roles->eos}, {"unk_token", roles->unknown}, {"pad_token", roles->padding}};
    mica_json_writer writer;
    mica_text scratch = MICA_TEXT_INIT;
    char id_text[16];
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "tokenizer_class", "PreTrainedTokenizerFast");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].id != MICA_TOKEN_NONE)
            mica_json_string(&writer, rows[i].key, text_of(tokenizer, rows[i].id, &scratch));
    mica_json_bool(&writer, "add_bos_token", roles->add_bos);
    mica_json_bool(&writer, "add_eos_token", roles->add_eos);
    mica_json_bool(&writer, "clean_up_tokenization_spaces", false);
    mica_json_u64(&writer, "model_max_length", length_max);
    mica_json_open_object(&writer, "added_tokens_decoder");
    for (uint32_t id = 0; id < tokenizer->count; id++) {
        if (!is_added(tokenizer, id))
            continue;
        snprintf(id_text, sizeof id_text, "%u", id);
        mica_json_open_line(&writer, id_text);
        put_added(&writer, text_of(tokenizer, id, &scratch), mica_tokenizer_type(tokenizer, id) != MICA_TOKEN_USER_DEFINED);
        mica_json_close_object(&writer);
    }
    mica_json_close_object(&writer);
    if (tokenizer->chat_template)
        mica_json_string(&writer, "chat_template", tokenizer->chat_template);
    mica_json_close_object(&writer);
    return finish(tokenizer, &writer, &scratch, MICA_OK, json, length, error);
}
