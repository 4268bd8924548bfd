/* model/tokenizer_scores.c: SentencePiece vocabularies in a GGUF (tokenizer.ggml.model "llama"): tokens with scores. A text is one
 * piece, begun as characters; neighbours that are a token together merge, the highest score first, of equal ones the leftmost;
 * characters that are no token are bytes (<0xXX>). U+2581 in a token is a space. Refuses vocabularies without scores or without a token
 * for every byte. Judged by tests/interop/scores.py, against llama.cpp. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/byte_level.h"
#include "model/tokenizer_build.h"

#define KEY(name) "tokenizer.ggml." name

static mica_status set_token(mica_tokenizer *tokenizer, uint32_t id, mica_gguf_string text, int64_t type, mica_text *scratch,
                             mica_error *error) {
    const char *name = tokenizer->name;
    int byte = type == MICA_TOKEN_BYTE ? mica_byte_token_read(text.bytes, text.length) : 0;
    const char single = (char)byte;
    if (type < MICA_TOKEN_NORMAL || type > MICA_TOKEN_BYTE) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: key " KEY("token_type") ": id %" PRIu32 ": expected 1 to 6, got %" PRId64, name, id,
                         type);
    }
    if (byte < 0) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: key " KEY("tokens") ": id %" PRIu32 ": expected a byte as <0xXX>, got %.*s", name, id,
                         (int)(text.length < 60 ? text.length : 60), text.bytes);
    }
    if (type == MICA_TOKEN_BYTE)
        return mica_tokenizer_set(tokenizer, id, &single, 1, MICA_TOKEN_BYTE, error);
    if (type == MICA_TOKEN_NORMAL)
        return mica_tokenizer_set_text(tokenizer, id, text.bytes, text.length, scratch, error);
    tokenizer->added[id] = MICA_ADDED_IN_VOCABULARY;
    return mica_tokenizer_set(tokenizer, id, text.bytes, text.length, (mica_token_type)type, error);
}

typedef struct scored {
    double score;
    uint32_t id;
} scored;

static int compare_scores(const void *a, const void *b) {
    const scored *left = a, *right = b;
    return left->score != right->score ? (left->score > right->score ? -1 : 1) : left->id < right->id ? -1 : left->id > right->id;
}

/* The highest score is rank 0; equal scores are equal ranks. */
static mica_status make_merges(const mica_gguf_entry *scores, mica_tokenizer *tokenizer, mica_error *error) {
    scored *order = mica_calloc(tokenizer->count, sizeof *order);
    uint32_t *ranks = mica_calloc(tokenizer->count, sizeof *ranks), rank = 0;
    mica_status status = order && ranks ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the merges", tokenizer->name);
    for (uint32_t id = 0; id < tokenizer->count && status == MICA_OK; id++) {
        order[id] = (scored){mica_gguf_float_at(scores, id), id};
        if (isnan(order[id].score))
            status = mica_fail(error, MICA_BAD_INPUT, "%s: key " KEY("scores") ": id %" PRIu32 ": expected a number, got NaN",
                               tokenizer->name, id);
    }
    if (status == MICA_OK) {
        qsort(order, tokenizer->count, sizeof *order, compare_scores);
        for (uint32_t i = 0; i < tokenizer->count; i++) {
            rank += i > 0 && order[i].score < order[i - 1].score;
            ranks[order[i].id] = rank;
        }
        status = mica_tokenizer_merges_by(tokenizer, ranks, error);
    }
    mica_free(order);
    mica_free(ranks);
    return status;
}

static mica_status fill(const mica_gguf *gguf, const mica_gguf_entry *tokens, mica_tokenizer *tokenizer, mica_error *error) {
    const mica_gguf_entry *types, *scores;
    mica_gguf_string text;
    mica_text scratch = MICA_TEXT_INIT;
    uint64_t at = 0;
    tokenizer->characters = tokenizer->spaces.before = tokenizer->spaces.normalized = true;
    mica_status status = mica_gguf_array(gguf, KEY("token_type"), MICA_GGUF_INT32, &types, error);
    if (status == MICA_OK)
        status = mica_gguf_array(gguf, KEY("scores"), MICA_GGUF_FLOAT32, &scores, error);
    if (status == MICA_OK && (types->count != tokens->count || scores->count != tokens->count)) {
        status = mica_fail(error, MICA_BAD_INPUT,
                           "%s: expected a type and a score for each of %" PRIu64 " tokens, got %" PRIu64 " and %" PRIu64, gguf->name,
                           tokens->count, types->count, scores->count);
    }
    for (uint32_t id = 0; status == MICA_OK && mica_gguf_next_string(tokens, &at, &text); id++)
        status = set_token(tokenizer, id, text, mica_gguf_integer_at(types, id), &scratch, error);
    mica_text_release(&scratch);
    if (status == MICA_OK)
        status = mica_tokenizer_index(tokenizer, error);
    if (status == MICA_OK)
        status = make_merges(scores, tokenizer, error);
    if (status == MICA_OK)
        status = mica_gguf_bool_if_present(gguf, KEY("add_space_prefix"), &tokenizer->spaces.before, error);
    tokenizer->spaces.left_out = tokenizer->spaces.before;
    return status == MICA_OK ? mica_tokenizer_read_roles(gguf, true, tokenizer, error) : status;
}

mica_status mica_tokenizer_from_scores(const mica_gguf *gguf, mica_tokenizer **tokenizer, mica_error *error) {
    const mica_gguf_entry *tokens;
    mica_tokenizer *made = NULL;
    mica_status status = mica_tokenizer_for_tokens(gguf, &tokens, &made, error);
    if (status == MICA_OK)
        status = fill(gguf, tokens, made, error);
    if (status == MICA_OK)
        *tokenizer = made;
    else
        mica_tokenizer_close(made);
    return status;
}
