/* model/tokenizer_ranks.c: Kimi's tokenizer: tiktoken.model (ids are ranks), the special tokens of tokenizer_config.json, and the ids
 * between them, which are reserved. Refuses: special tokens among the ranks, a vocabulary that does not end where config.json says.
 * Judged by tests/model/test_tokenizer.c. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "formats/tiktoken.h"
#include "model/tokenizer_build.h"

#define RESERVED_IDS 256 /* behind the ranks, in Kimi's own tokenizer */

/* config.json's vocab_size where it is known. */
static mica_status count_ids(const char *name, const mica_ranks *ranks, const mica_token_settings *settings, uint32_t *count,
                             mica_error *error) {
    uint64_t wanted = settings->vocab_size ? settings->vocab_size : (uint64_t)ranks->count + RESERVED_IDS;
    if (wanted < ranks->count || wanted > MICA_TOKENS_MAX) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected at most %" PRIu64 " tokens, the vocab_size of config.json, got %" PRIu32,
                         name, wanted, ranks->count);
    }
    *count = (uint32_t)wanted;
    return MICA_OK;
}

static mica_status set_ranks(mica_tokenizer *tokenizer, const mica_ranks *ranks, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint32_t rank = 0; rank < ranks->count && status == MICA_OK; rank++) {
        status = mica_tokenizer_set(tokenizer, rank, ranks->bytes + ranks->starts[rank], ranks->starts[rank + 1] - ranks->starts[rank],
                                    MICA_TOKEN_NORMAL, error);
    }
    return status;
}

/* Added tokens are special here, whatever "special" says: Kimi's tokenizer takes all of them for that. */
static mica_status set_special(mica_tokenizer *tokenizer, uint32_t rank_count, const mica_token_settings *settings, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint32_t i = 0; i < settings->added_count && status == MICA_OK; i++) {
        const mica_added_token *added = &settings->added[i];
        if (added->id < rank_count || added->id >= tokenizer->count) {
            return mica_fail(error, MICA_BAD_INPUT,
                             "%s: added_tokens_decoder: expected ids from %" PRIu32 " to %" PRIu32 ", behind the ranks, got %" PRIu32,
                             settings->name, rank_count, tokenizer->count - 1, added->id);
        }
        status = mica_tokenizer_set(tokenizer, added->id, added->text, strlen(added->text), MICA_TOKEN_CONTROL, error);
    }
    for (uint32_t id = rank_count; id < tokenizer->count && id - rank_count < RESERVED_IDS && status == MICA_OK; id++) {
        char name[40];
        snprintf(name, sizeof name, "<|reserved_token_%" PRIu32 "|>", id);
        if (tokenizer->types[id] == 0)
            status = mica_tokenizer_set(tokenizer, id, name, strlen(name), MICA_TOKEN_CONTROL, error);
    }
    return status;
}

static mica_status fill(mica_tokenizer *tokenizer, const mica_ranks *ranks, const mica_token_settings *settings, mica_error *error) {
    mica_status status = set_ranks(tokenizer, ranks, error);
    if (status == MICA_OK)
        status = set_special(tokenizer, ranks->count, settings, error);
    if (status == MICA_OK)
        status = mica_tokenizer_index(tokenizer, error);
    if (status == MICA_OK)
        status = mica_tokenizer_merges_from_ranks(tokenizer, ranks->count, error);
    const mica_split_row *row = mica_split_row_find("kimi-k2");
    tokenizer->pre_type = row->pre_type;
    tokenizer->whole_pieces = row->whole_pieces;
    return status == MICA_OK ? mica_splitter_make(&tokenizer->splitter, row, error) : status;
}

mica_status mica_tokenizer_from_ranks(const char *name, const char *text, uint64_t length, const mica_token_settings *settings,
                                      mica_tokenizer **tokenizer, mica_error *error) {
    mica_ranks ranks;
    mica_tokenizer *made = NULL;
    uint32_t count = 0;
    mica_status status = mica_ranks_parse(name, text, length, &ranks, error);
    if (status != MICA_OK)
        return status;
    status = count_ids(name, &ranks, settings, &count, error);
    if (status == MICA_OK)
        status = mica_tokenizer_new(name, count, &made, error);
    if (status == MICA_OK)
        status = fill(made, &ranks, settings, error);
    mica_ranks_release(&ranks);
    if (status != MICA_OK)
        mica_tokenizer_close(made);
    else
        *tokenizer = made;
    return status;
}
