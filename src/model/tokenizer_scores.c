/* model/tokenizer_scores.c: SentencePiece vocabularies in a GGUF (tokenizer.ggml.model "llama"): tokens with scores. A text is one
 * piece, begun as characters; neighbours that are a token together merge, the highest score first, of equal ones the leftmost;
 * characters that are no token are bytes (<0xXX>). U+2581 in a token is a space. And scores for a vocabulary that has merges. Refuses
 * vocabularies without scores or without a token for every byte. Judged by tests/interop/scores.py and scores_written.py (llama.cpp). */
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
        memset(ranks, 0, tokenizer->count * sizeof *ranks);
    }
    for (uint64_t i = 0; status == MICA_OK && i <= tokenizer->merges.mask; i++)
        if (tokenizer->merges.slots[i].merge != MICA_NO_MERGE)
            tokenizer->shared_ranks += ranks[tokenizer->merges.slots[i].merge >> 32]++ > 0;
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

/* ---- scores that do what merges do */

typedef struct numbered {
    uint64_t key;
    uint32_t number;
} numbered;

static int compare_keys(const void *a, const void *b) {
    const numbered *left = a, *right = b;
    return left->key != right->key ? (left->key < right->key ? -1 : 1) : left->number < right->number ? -1 : left->number > right->number;
}

/* The rank of the merge by which a token comes to be: what is left of its own characters by the merges of shorter tokens is the pair, as
 * in tokenizer_bpe.c. `shorter` has those alone. NONE: no merge ever makes it. */
static mica_status find_rank(const mica_tokenizer *tokenizer, const mica_tokenizer *shorter, uint32_t id, mica_token_list *parts,
                             uint32_t *rank, mica_error *error) {
    const mica_token_span span = tokenizer->spans[id];
    parts->count = 0;
    const mica_status status = mica_piece_encode(shorter, tokenizer->names.bytes + span.start, span.length, parts, error);
    const uint64_t merge = status == MICA_OK && parts->count == 2 ? mica_pair_table_find(&tokenizer->merges, parts->ids[0], parts->ids[1])
                                                                  : MICA_NO_MERGE;
    *rank = merge != MICA_NO_MERGE && (uint32_t)merge == id ? (uint32_t)(merge >> 32) : MICA_TOKEN_NONE;
    return status;
}

/* ranks[token count], of tokens that a merge makes. The merges come by the length of what they make. */
static mica_status find_ranks(const mica_tokenizer *tokenizer, const mica_token_merge *merges, const numbered *order, uint64_t count,
                              uint32_t *ranks, mica_error *error) {
    mica_tokenizer shorter = *tokenizer;
    const mica_pair_slot *slot;
    mica_token_list parts = {0};
    shorter.whole_pieces = false;
    shorter.merges = (mica_pair_table){0};
    mica_status status = mica_pair_table_init(&shorter.merges, count)
                             ? MICA_OK
                             : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the scores", tokenizer->name);
    for (uint64_t i = 0, end = 0; i < count && status == MICA_OK; i = end) {
        while (end < count && order[end].key == order[i].key)
            end++;
        for (uint64_t j = i; j < end && status == MICA_OK; j++)
            status = find_rank(tokenizer, &shorter, merges[order[j].number].both, &parts, &ranks[merges[order[j].number].both], error);
        for (uint64_t j = i; j < end && status == MICA_OK; j++) {
            const mica_token_merge *merge = &merges[order[j].number];
            (void)mica_pair_table_insert(&shorter.merges, merge->left, merge->right, (uint64_t)order[j].number << 32 | merge->both, &slot);
        }
    }
    mica_pair_table_release(&shorter.merges);
    mica_token_list_release(&parts);
    return status;
}

/* Tokens in the order in which merges make them, then the others; 0 where text never becomes one by merging. */
static void number_scores(const mica_tokenizer *tokenizer, const uint32_t *ranks, numbered *order, float *scores) {
    uint32_t count = 0;
    for (uint32_t id = 0; id < tokenizer->count; id++) {
        scores[id] = 0;
        if (tokenizer->types[id] == MICA_TOKEN_NORMAL)
            order[count++] = (numbered){ranks[id], id};
    }
    qsort(order, count, sizeof *order, compare_keys);
    for (uint32_t i = 0; i < count; i++)
        scores[order[i].number] = -(float)i;
}

mica_status mica_tokenizer_scores(const mica_tokenizer *tokenizer, float *scores, mica_error *error) {
    mica_token_merge *merges = NULL;
    uint64_t count = 0;
    mica_status status = mica_tokenizer_merges(tokenizer, &merges, &count, error);
    numbered *order = status == MICA_OK ? mica_calloc(count + tokenizer->count, sizeof *order) : NULL;
    uint32_t *ranks = order ? mica_reallocarray(NULL, tokenizer->count, sizeof *ranks) : NULL;
    if (status == MICA_OK && !ranks)
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the scores", tokenizer->name);
    if (status == MICA_OK) {
        memset(ranks, 0xff, tokenizer->count * sizeof *ranks); /* NONE */
        for (uint64_t i = 0; i < count; i++)
            order[i] = (numbered){tokenizer->spans[merges[i].both].length, (uint32_t)i};
        qsort(order, count, sizeof *order, compare_keys);
        status = find_ranks(tokenizer, merges, order, count, ranks, error);
    }
    if (status == MICA_OK)
        number_scores(tokenizer, ranks, order, scores);
    mica_free(ranks);
    mica_free(order);
    mica_free(merges);
    return status;
}

/* What scores would merge, against what is merged. */
mica_status mica_tokenizer_scored_otherwise(const mica_tokenizer *tokenizer, uint64_t *count, mica_error *error) {
    mica_tokenizer alone = *tokenizer; /* without the merges */
    float *scores = mica_calloc(tokenizer->count, sizeof *scores);
    uint32_t *ranks = mica_calloc(tokenizer->count, sizeof *ranks);
    alone.merges = (mica_pair_table){0};
    *count = 0;
    mica_status status = scores && ranks ? mica_tokenizer_scores(tokenizer, scores, error)
                                         : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for the scores", tokenizer->name);
    for (uint32_t id = 0; status == MICA_OK && id < tokenizer->count; id++)
        ranks[id] = (uint32_t)-scores[id]; /* whole numbers */
    if (status == MICA_OK)
        status = mica_tokenizer_merges_by(&alone, ranks, error);
    for (uint64_t i = 0; status == MICA_OK && i <= alone.merges.mask; i++) {
        const mica_pair_slot *slot = &alone.merges.slots[i];
        if (slot->merge != MICA_NO_MERGE) {
            const uint64_t merge = mica_pair_table_find(&tokenizer->merges, (uint32_t)(slot->pair >> 32), (uint32_t)slot->pair);
            *count += merge == MICA_NO_MERGE || (uint32_t)merge != (uint32_t)slot->merge;
        }
    }
    mica_pair_table_release(&alone.merges);
    mica_free(scores);
    mica_free(ranks);
    return status;
}
