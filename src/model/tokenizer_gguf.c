/* model/tokenizer_gguf.c: the vocabulary that a GGUF file has in it: tokenizer.ggml.* keys, where the model is "gpt2" (byte-level BPE)
 * and the way to cut text is one that is known here; "llama" is tokenizer_scores.c's. And the same facts of a tokenizer of ours, for
 * those who write a GGUF. Refuses other models and unknown names of patterns. Judged by tests/model/test_tokenizer_gguf.c and
 * tests/interop/tokenizer.py (llama.cpp). */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/byte_level.h"
#include "model/tokenizer_build.h"

#define KEY(name) "tokenizer.ggml." name

static mica_status out_of_memory(const mica_gguf *gguf, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the tokenizer", gguf->name);
}

static bool text_is(mica_gguf_string text, const char *expected) {
    return text.length == strlen(expected) && memcmp(text.bytes, expected, text.length) == 0;
}

/* ---- tokens and merges */

static mica_status read_type(const mica_gguf *gguf, const mica_gguf_entry *types, uint32_t id, mica_token_type *type, mica_error *error) {
    int64_t value = types ? mica_gguf_integer_at(types, id) : MICA_TOKEN_NORMAL;
    if (value < MICA_TOKEN_NORMAL || value > MICA_TOKEN_BYTE) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: key " KEY("token_type") ": id %" PRIu32 ": expected 1 to 6, got %" PRId64, gguf->name,
                         id, value);
    }
    *type = (mica_token_type)value;
    return MICA_OK;
}

static mica_status read_tokens(const mica_gguf *gguf, const mica_gguf_entry *tokens, mica_tokenizer *tokenizer, mica_error *error) {
    const mica_gguf_entry *types = NULL;
    mica_gguf_string text;
    mica_text scratch = MICA_TEXT_INIT;
    uint64_t at = 0;
    mica_status status = MICA_OK;
    if (mica_gguf_find(gguf, KEY("token_type")))
        status = mica_gguf_array(gguf, KEY("token_type"), MICA_GGUF_INT32, &types, error);
    if (status == MICA_OK && types && types->count != tokens->count) {
        status = mica_fail(error, MICA_BAD_INPUT,
                           "%s: key " KEY("token_type") ": expected one for each of %" PRIu64 " tokens, got %" PRIu64, gguf->name,
                           tokens->count, types->count);
    }
    for (uint32_t id = 0; status == MICA_OK && mica_gguf_next_string(tokens, &at, &text); id++) {
        mica_token_type type = MICA_TOKEN_NORMAL;
        status = read_type(gguf, types, id, &type, error);
        if (status == MICA_OK)
            status = type == MICA_TOKEN_NORMAL ? mica_tokenizer_set_text(tokenizer, id, text.bytes, text.length, &scratch, error)
                                               : mica_tokenizer_set(tokenizer, id, text.bytes, text.length, type, error);
    }
    mica_text_release(&scratch);
    return status == MICA_OK ? mica_tokenizer_index(tokenizer, error) : status;
}

/* "left right"; parts have no space in them. */
static mica_status read_merges(const mica_gguf *gguf, mica_tokenizer *tokenizer, mica_error *error) {
    const mica_gguf_entry *merges;
    mica_gguf_string text;
    mica_text scratch = MICA_TEXT_INIT;
    uint64_t at = 0;
    mica_status status = mica_gguf_array(gguf, KEY("merges"), MICA_GGUF_STRING, &merges, error);
    if (status == MICA_OK && (merges->count > UINT32_MAX / 4 || !mica_pair_table_init(&tokenizer->merges, merges->count)))
        status = out_of_memory(gguf, error);
    for (uint32_t rank = 0; status == MICA_OK && mica_gguf_next_string(merges, &at, &text); rank++) {
        const char *space = text.length > 0 ? memchr(text.bytes, ' ', text.length) : NULL;
        uint64_t left = space ? (uint64_t)(space - text.bytes) : text.length, right = space ? left + 1 : left;
        status = mica_tokenizer_add_merge(tokenizer, text.bytes, left, text.bytes + right, text.length - right, rank, &scratch, error);
    }
    mica_text_release(&scratch);
    return status;
}

/* ---- roles */

/* Absent: untouched. */
static mica_status read_role(const mica_gguf *gguf, const char *key, const mica_tokenizer *tokenizer, uint32_t *id, mica_error *error) {
    mica_status status = mica_gguf_u32_if_present(gguf, key, id, error);
    if (status == MICA_OK && *id != MICA_TOKEN_NONE && *id >= tokenizer->count) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: key %s: expected an id below %" PRIu32 ", got %" PRIu32, gguf->name, key,
                         tokenizer->count, *id);
    }
    return status;
}

mica_status mica_tokenizer_read_roles(const mica_gguf *gguf, bool add_bos, mica_tokenizer *tokenizer, mica_error *error) {
    mica_token_roles *roles = &tokenizer->roles;
    mica_gguf_string chat_template = {0};
    uint32_t end_of_turn = MICA_TOKEN_NONE;
    roles->add_bos = add_bos;
    mica_status status = read_role(gguf, KEY("bos_token_id"), tokenizer, &roles->bos, error);
    if (status == MICA_OK)
        status = read_role(gguf, KEY("eos_token_id"), tokenizer, &roles->eos, error);
    if (status == MICA_OK)
        status = read_role(gguf, KEY("unknown_token_id"), tokenizer, &roles->unknown, error);
    if (status == MICA_OK)
        status = read_role(gguf, KEY("padding_token_id"), tokenizer, &roles->padding, error);
    if (status == MICA_OK)
        status = read_role(gguf, KEY("eot_token_id"), tokenizer, &end_of_turn, error);
    if (status == MICA_OK)
        status = mica_gguf_bool_if_present(gguf, KEY("add_bos_token"), &roles->add_bos, error);
    if (status == MICA_OK)
        status = mica_gguf_bool_if_present(gguf, KEY("add_eos_token"), &roles->add_eos, error);
    if (status == MICA_OK)
        status = mica_gguf_text_if_present(gguf, "tokenizer.chat_template", &chat_template, error);
    if (status == MICA_OK && chat_template.bytes) {
        tokenizer->chat_template = mica_strndup(chat_template.bytes, chat_template.length);
        status = tokenizer->chat_template ? MICA_OK : out_of_memory(gguf, error);
    }
    roles->add_bos = roles->add_bos && roles->bos != MICA_TOKEN_NONE;
    roles->add_eos = roles->add_eos && roles->eos != MICA_TOKEN_NONE;
    mica_tokenizer_add_end(tokenizer, roles->eos);
    mica_tokenizer_add_end(tokenizer, end_of_turn);
    return status;
}

/* ---- all of it */

static mica_status find_row(const mica_gguf *gguf, const mica_split_row **row, mica_error *error) {
    mica_gguf_string model, pre;
    char name[64];
    mica_status status = mica_gguf_text(gguf, KEY("model"), &model, error);
    if (status == MICA_OK && !text_is(model, "gpt2")) {
        status = mica_fail(error, MICA_BAD_INPUT, "%s: key " KEY("model") ": expected gpt2 or llama, got %.*s", gguf->name,
                           (int)(model.length < 60 ? model.length : 60), model.bytes);
    }
    if (status == MICA_OK)
        status = mica_gguf_text(gguf, KEY("pre"), &pre, error);
    if (status != MICA_OK)
        return status;
    size_t length = pre.length < sizeof name ? pre.length : sizeof name - 1;
    memcpy(name, pre.bytes, length);
    name[length] = 0;
    *row = mica_split_row_find(name);
    return *row ? MICA_OK
                : mica_fail(error, MICA_BAD_INPUT,
                            "%s: key " KEY("pre") ": expected kimi-k2, deepseek-v3, deepseek-llm, llama-bpe, qwen2 or gpt-2, got %s",
                            gguf->name, name);
}

static mica_status fill(const mica_gguf *gguf, const mica_split_row *row, const mica_gguf_entry *tokens, mica_tokenizer *tokenizer,
                        mica_error *error) {
    mica_status status = read_tokens(gguf, tokens, tokenizer, error);
    if (status == MICA_OK)
        status = read_merges(gguf, tokenizer, error);
    if (status == MICA_OK)
        status = mica_tokenizer_read_roles(gguf, row->add_bos, tokenizer, error);
    if (status == MICA_OK)
        status = mica_splitter_make(&tokenizer->splitter, row, error);
    tokenizer->pre_type = row->pre_type;
    tokenizer->whole_pieces = row->whole_pieces;
    tokenizer->compose = row->compose;
    return status;
}

mica_status mica_tokenizer_for_tokens(const mica_gguf *gguf, const mica_gguf_entry **tokens, mica_tokenizer **tokenizer,
                                      mica_error *error) {
    const mica_status status = mica_gguf_array(gguf, KEY("tokens"), MICA_GGUF_STRING, tokens, error);
    if (status != MICA_OK)
        return status;
    if ((*tokens)->count == 0 || (*tokens)->count > MICA_TOKENS_MAX)
        return mica_fail(error, MICA_BAD_INPUT, "%s: key " KEY("tokens") ": expected 1 to %u tokens, got %" PRIu64, gguf->name,
                         MICA_TOKENS_MAX, (*tokens)->count);
    return mica_tokenizer_new(gguf->name, (uint32_t)(*tokens)->count, tokenizer, error);
}

mica_status mica_tokenizer_from_gguf(const mica_gguf *gguf, mica_tokenizer **tokenizer, mica_error *error) {
    const mica_split_row *row = NULL;
    const mica_gguf_entry *tokens;
    mica_tokenizer *made = NULL;
    const mica_gguf_entry *model = mica_gguf_find(gguf, KEY("model"));
    mica_gguf_string kind;
    uint64_t at = 0;
    if (model && !model->is_array && model->type == MICA_GGUF_STRING && mica_gguf_next_string(model, &at, &kind) && text_is(kind, "llama"))
        return mica_tokenizer_from_scores(gguf, tokenizer, error);
    mica_status status = find_row(gguf, &row, error);
    if (status == MICA_OK)
        status = mica_tokenizer_for_tokens(gguf, &tokens, &made, error);
    if (status == MICA_OK)
        status = fill(gguf, row, tokens, made, error);
    if (status == MICA_OK)
        *tokenizer = made;
    else
        mica_tokenizer_close(made);
    return status;
}

/* ---- for those who write one */

const char *mica_tokenizer_pre_type(const mica_tokenizer *tokenizer) {
    return tokenizer->pre_type;
}

/* The bytes of a token as mica_tokenizer_read_text reads them. */
static void write_text(const mica_tokenizer *tokenizer, uint32_t id, mica_text *text) {
    const mica_token_span span = tokenizer->spans[id];
    (tokenizer->characters ? mica_space_marks_write : mica_byte_level_write)(text, tokenizer->names.bytes + span.start, span.length);
}

void mica_tokenizer_gguf_text(const mica_tokenizer *tokenizer, uint32_t id, mica_text *text) {
    uint64_t length = 0;
    const char *bytes = mica_tokenizer_bytes(tokenizer, id, &length);
    const mica_token_type type = mica_tokenizer_type(tokenizer, id);
    if (type == MICA_TOKEN_NORMAL)
        write_text(tokenizer, id, text);
    else if (type == MICA_TOKEN_BYTE && tokenizer->characters)
        mica_text_printf(text, "<0x%02X>", (unsigned char)*bytes);
    else if (bytes)
        mica_text_append(text, bytes, length);
}

static int compare_merges(const void *a, const void *b) {
    uint64_t left = ((const mica_pair_slot *)a)->merge, right = ((const mica_pair_slot *)b)->merge;
    return left < right ? -1 : left > right;
}

mica_status mica_tokenizer_merges(const mica_tokenizer *tokenizer, mica_token_merge **merges, uint64_t *count, mica_error *error) {
    uint64_t taken = 0, capacity = tokenizer->merges.count + 1;
    mica_pair_slot *slots = mica_calloc(capacity, sizeof *slots);
    mica_token_merge *made = mica_calloc(capacity, sizeof *made);
    for (uint64_t i = 0; slots && made && tokenizer->merges.slots && i <= tokenizer->merges.mask; i++) {
        if (tokenizer->merges.slots[i].merge != MICA_NO_MERGE)
            slots[taken++] = tokenizer->merges.slots[i];
    }
    if (taken > 0)
        qsort(slots, taken, sizeof *slots, compare_merges);
    for (uint64_t i = 0; i < taken; i++)
        made[i] = (mica_token_merge){(uint32_t)(slots[i].pair >> 32), (uint32_t)slots[i].pair, (uint32_t)slots[i].merge};
    bool failed = !slots || !made;
    mica_free(slots);
    if (failed) {
        mica_free(made);
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the merges", tokenizer->name);
    }
    *merges = made;
    *count = taken;
    return MICA_OK;
}

static mica_status add_tokens(const mica_tokenizer *tokenizer, mica_gguf_metadata *metadata, mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    int32_t *types = mica_calloc(tokenizer->count, sizeof *types);
    if (types) {
        mica_gguf_add_strings(metadata, KEY("tokens"), tokenizer->count);
        for (uint32_t id = 0; id < tokenizer->count; id++) {
            types[id] = tokenizer->characters && id == tokenizer->roles.unknown ? MICA_TOKEN_UNKNOWN : tokenizer->types[id];
            mica_text_clear(&text);
            mica_tokenizer_gguf_text(tokenizer, id, &text);
            mica_gguf_add_element(metadata, text.bytes, text.length);
        }
        mica_gguf_add_array(metadata, KEY("token_type"), MICA_GGUF_INT32, types, tokenizer->count);
    }
    bool failed = !types || mica_text_failed(&text);
    mica_text_release(&text);
    mica_free(types);
    return failed ? mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the vocabulary", tokenizer->name) : MICA_OK;
}

void mica_tokenizer_gguf_merge(const mica_tokenizer *tokenizer, const mica_token_merge *merge, mica_text *text) {
    write_text(tokenizer, merge->left, text);
    mica_text_append(text, " ", 1);
    write_text(tokenizer, merge->right, text);
}

static mica_status add_merges(const mica_tokenizer *tokenizer, mica_gguf_metadata *metadata, mica_error *error) {
    mica_token_merge *merges;
    uint64_t count;
    mica_text text = MICA_TEXT_INIT;
    mica_status status = mica_tokenizer_merges(tokenizer, &merges, &count, error);
    if (status != MICA_OK)
        return status;
    mica_gguf_add_strings(metadata, KEY("merges"), count);
    for (uint64_t i = 0; i < count; i++) {
        mica_text_clear(&text);
        mica_tokenizer_gguf_merge(tokenizer, &merges[i], &text);
        mica_gguf_add_element(metadata, text.bytes, text.length);
    }
    mica_free(merges);
    bool failed = mica_text_failed(&text);
    mica_text_release(&text);
    return failed ? mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the merges", tokenizer->name) : MICA_OK;
}

static mica_status add_scores(const mica_tokenizer *tokenizer, mica_gguf_metadata *metadata, mica_error *error) {
    float *scores = mica_calloc(tokenizer->count, sizeof *scores);
    const mica_status status = scores ? mica_tokenizer_scores(tokenizer, scores, error)
                                      : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the scores", tokenizer->name);
    if (status == MICA_OK)
        mica_gguf_add_array(metadata, KEY("scores"), MICA_GGUF_FLOAT32, scores, tokenizer->count);
    mica_free(scores);
    return status;
}

/* By scores nothing is cut, and no piece is taken whole. */
static mica_status check_scored(const mica_tokenizer *tokenizer, mica_error *error) {
    if (tokenizer->whole_pieces)
        return mica_fail(error, MICA_BAD_INPUT, "%s: model.ignore_merges: expected false, since GGUF's scores know no such thing, got true",
                         tokenizer->name);
    for (uint64_t i = 0; tokenizer->spaces.words && i <= tokenizer->merges.mask; i++) {
        const mica_pair_slot *slot = &tokenizer->merges.slots[i];
        const mica_token_span span = tokenizer->spans[slot->merge == MICA_NO_MERGE ? 0 : (uint32_t)slot->merge];
        const char *bytes = tokenizer->names.bytes + span.start;
        if (slot->merge != MICA_NO_MERGE && memchr(bytes + 1, ' ', span.length - 1))
            return mica_fail(error, MICA_BAD_INPUT,
                             "%s: pre_tokenizer: expected a Metaspace that does not split, where merges join words (GGUF's scores cut "
                             "nothing), got one that does, and the token \"%.*s\"",
                             tokenizer->name, (int)(span.length < 60 ? span.length : 60), bytes);
    }
    return MICA_OK;
}

static mica_status add_vocabulary(const mica_tokenizer *tokenizer, mica_gguf_metadata *metadata, mica_error *error) {
    const mica_spaces *spaces = &tokenizer->spaces;
    mica_status status = tokenizer->characters ? check_scored(tokenizer, error) : MICA_OK;
    if (status == MICA_OK && !tokenizer->characters && !tokenizer->pre_type)
        status = mica_fail(error, MICA_BAD_INPUT,
                           "%s: expected a way to cut text that GGUF has a name for (tokenizer.ggml.pre), got patterns of another",
                           tokenizer->name);
    if (status != MICA_OK)
        return status;
    mica_gguf_add_string(metadata, KEY("model"), tokenizer->characters ? "llama" : "gpt2");
    mica_gguf_add_string(metadata, KEY("pre"), tokenizer->characters ? "default" : tokenizer->pre_type);
    status = add_tokens(tokenizer, metadata, error);
    if (status == MICA_OK)
        status = (tokenizer->characters ? add_scores : add_merges)(tokenizer, metadata, error);
    if (tokenizer->characters)
        mica_gguf_add_bool(metadata, KEY("add_space_prefix"), spaces->before || spaces->word_start != MICA_WORD_START_NEVER);
    return status;
}

mica_status mica_tokenizer_add_to_gguf(const mica_tokenizer *tokenizer, mica_gguf_metadata *metadata, mica_error *error) {
    const mica_token_roles *roles = &tokenizer->roles;
    const mica_status status = add_vocabulary(tokenizer, metadata, error);
    if (roles->bos != MICA_TOKEN_NONE)
        mica_gguf_add_u32(metadata, KEY("bos_token_id"), roles->bos);
    if (roles->eos != MICA_TOKEN_NONE)
        mica_gguf_add_u32(metadata, KEY("eos_token_id"), roles->eos);
    if (roles->unknown != MICA_TOKEN_NONE)
        mica_gguf_add_u32(metadata, KEY("unknown_token_id"), roles->unknown);
    if (roles->padding != MICA_TOKEN_NONE)
        mica_gguf_add_u32(metadata, KEY("padding_token_id"), roles->padding);
    mica_gguf_add_bool(metadata, KEY("add_bos_token"), roles->add_bos); /* always: readers have defaults of their own */
    if (roles->add_eos)
        mica_gguf_add_bool(metadata, KEY("add_eos_token"), true);
    if (tokenizer->chat_template)
        mica_gguf_add_string(metadata, "tokenizer.chat_template", tokenizer->chat_template);
    return status;
}

mica_status mica_tokenizer_gguf_note(const mica_tokenizer *tokenizer, mica_text *note, mica_error *error) {
    uint64_t scored = 0, stripping = 0;
    const mica_status status = tokenizer->characters ? mica_tokenizer_scored_otherwise(tokenizer, &scored, error) : MICA_OK;
    for (uint32_t id = 0; id < tokenizer->count; id++) {
        const uint8_t how = tokenizer->added[id];
        stripping += (how & (MICA_ADDED_STRIPS_LEFT | MICA_ADDED_STRIPS_RIGHT)) ||
                     ((how & MICA_ADDED_NORMALIZED) && tokenizer->spaces.before);
    }
    if (scored > 0)
        mica_text_printf(note, "; %" PRIu64 " tokens that no merge makes come of their scores", scored);
    if (tokenizer->spaces.word_start != MICA_WORD_START_NEVER)
        mica_text_puts(note, "; a space is put before every text, also one that begins with a space or stands behind a special token");
    if (stripping > 0)
        mica_text_printf(note, "; %" PRIu64 " added tokens leave the white space beside them", stripping);
    return status;
}
