/* model/tokenizer_build.h: what is inside a tokenizer, for the files that make one and those that run it; nobody else includes this.
 * Order of making: mica_tokenizer_new, what it does with spaces (before merges are read), tokens by mica_tokenizer_set,
 * mica_tokenizer_index, merges, splitter and roles. */
#ifndef MICA_MODEL_TOKENIZER_BUILD_H
#define MICA_MODEL_TOKENIZER_BUILD_H

#include <jansson.h>

#include "formats/gguf.h"
#include "model/token_table.h"
#include "model/tokenizer.h"

#define MICA_TOKENS_MAX (1u << 24)
#define MICA_TOKENIZER_RANKS_FILE "tiktoken.model"
#define MICA_TOKENIZER_JSON_FILE "tokenizer.json"
#define MICA_TOKENIZER_FILE_BYTES_MAX (UINT64_C(256) << 20)
#define MICA_SPLIT_STAGES_MAX 8
#define MICA_TOKEN_ENDS_MAX 16

/* The patterns that cut text into pieces, one after the other: what the first leaves whole the second cuts. No merge crosses a cut. */
typedef struct mica_splitter {
    void *stages[MICA_SPLIT_STAGES_MAX]; /* pcre2_code; owned */
    uint32_t count;
} mica_splitter;

/* What SentencePiece and those after it do with spaces. In its tokens a space is written as U+2581; here it is one again. */
typedef enum mica_word_start { /* when a part of a text that does not begin with a space gets one */
                               MICA_WORD_START_NEVER,
                               MICA_WORD_START_FIRST, /* only what the text itself begins with */
                               MICA_WORD_START_ALWAYS,
} mica_word_start;
typedef struct mica_spaces {
    bool normalized;            /* U+2581 in a text is one before normalized added tokens are looked for, not only behind that */
    bool before;                /* one is put before each stretch of text between added tokens, whatever that begins with */
    bool left_out;              /* decoding leaves out the one that a text begins with */
    mica_word_start word_start; /* behind the above: for each part that is left between normalized added tokens */
    bool words;                 /* a part is cut before each space */
} mica_spaces;

/* How an added token is found in a text. */
enum {
    MICA_ADDED_STRIPS_LEFT = 1,   /* takes the white space before it */
    MICA_ADDED_STRIPS_RIGHT = 2,  /* and behind it */
    MICA_ADDED_NORMALIZED = 4,    /* is looked for when the others are cut out and the text is normalized, as is the token itself */
    MICA_ADDED_IN_VOCABULARY = 8, /* text that was not cut out can become it too */
};

struct mica_tokenizer {
    char *name;             /* the file it was made from, for messages */
    mica_text names;        /* bytes of all tokens, one after the other */
    mica_token_span *spans; /* [count] */
    uint8_t *types;         /* [count]: mica_token_type; 0 until it is set */
    uint8_t *added;         /* [count]: MICA_ADDED_ bits */
    uint32_t count;
    mica_bytes_table normal;  /* what pieces of text become */
    mica_bytes_table special; /* control, user-defined and unknown tokens */
    bool has_user_defined, has_normalized, has_in_vocabulary;
    bool hides;                    /* a control token that was not asked for still hides others that begin inside it */
    bool special_first[256];       /* first bytes of special tokens */
    uint32_t special_lengths[256]; /* their lengths, each once, descending */
    uint32_t special_length_count;
    mica_pair_table merges;
    uint64_t shared_ranks; /* merges whose rank is that of another: equal scores */
    uint32_t byte_ids[256];
    bool whole_pieces;  /* a piece that is a token is that token, whatever merging would give */
    bool compose;       /* text is brought to NFC first */
    bool characters;    /* a piece begins as characters, not bytes: SentencePiece; byte_ids are for those that are no token */
    mica_spaces spaces; /* where pieces begin as characters */
    mica_splitter splitter;
    mica_token_roles roles;
    uint32_t ends[MICA_TOKEN_ENDS_MAX], end_count;
    char *chat_template;  /* NULL: none */
    const char *pre_type; /* GGUF's name of the splitter; NULL when it has none; static */
};

mica_status mica_tokenizer_new(const char *name, uint32_t count, mica_tokenizer **tokenizer, mica_error *error) MICA_CHECKED;
/* An id twice is refused. The bytes are copied. */
mica_status mica_tokenizer_set(mica_tokenizer *tokenizer, uint32_t id, const void *bytes, uint64_t length, mica_token_type type,
                               mica_error *error) MICA_CHECKED;
/* The same for a normal token as a file writes it: in characters for bytes (byte_level.h), or with marks for spaces. One that is not
 * written so cannot come of text, and is UNUSED. `scratch` is the caller's, for many calls. */
mica_status mica_tokenizer_set_text(mica_tokenizer *tokenizer, uint32_t id, const char *text, uint64_t length, mica_text *scratch,
                                    mica_error *error) MICA_CHECKED;
/* When all tokens are set: the tables. Two normal tokens with the same bytes, two special ones, a byte without a token are refused.
 * Ids not set become unused, with the name "[PADid]". */
mica_status mica_tokenizer_index(mica_tokenizer *tokenizer, mica_error *error) MICA_CHECKED;
void mica_tokenizer_add_end(mica_tokenizer *tokenizer, uint32_t id); /* NONE is fine, and what is there already */

/* Appends the bytes of a token that a file writes so; false, with nothing appended, where it is not written so. */
bool mica_tokenizer_read_text(const mica_tokenizer *tokenizer, const char *text, uint64_t length, mica_text *bytes);
/* The id of a token by its bytes, a normal one before a special one; NONE. */
uint32_t mica_tokenizer_find(const mica_tokenizer *tokenizer, const char *bytes, uint64_t length);

/* ---- tokenizer_encode.c */

/* The longest special token that `text` begins with: a user-defined one, or with `control` any; NONE. */
uint32_t mica_tokenizer_special_at(const mica_tokenizer *tokenizer, const char *text, uint64_t length, bool control);

/* ---- tokenizer_bpe.c */

/* Finds the merges of a vocabulary whose ids are ranks, where any two neighbours merge whose bytes together are a token. For each token
 * at most one pair ever does: what merging its own bytes leaves, where that is two parts. (Before a token comes to be inside a text,
 * whatever merged within it did so in the order of its own bytes alone, since nothing crossed its ends.) So the shortest first, each by
 * the merges of shorter ones. */
mica_status mica_tokenizer_merges_from_ranks(mica_tokenizer *tokenizer, uint32_t rank_count, mica_error *error) MICA_CHECKED;
/* The same where tokens have ranks that are not their ids, and may share them: ranks[token count]. Only normal tokens have merges. */
mica_status mica_tokenizer_merges_by(mica_tokenizer *tokenizer, const uint32_t *ranks, mica_error *error) MICA_CHECKED;
/* One merge of a list, its two parts as the file writes them; `merges` has room. `scratch` is the caller's, for many calls. */
mica_status mica_tokenizer_add_merge(mica_tokenizer *tokenizer, const char *left, uint64_t left_length, const char *right,
                                     uint64_t right_length, uint32_t rank, mica_text *scratch, mica_error *error) MICA_CHECKED;
/* Appends the ids of one piece. */
mica_status mica_piece_encode(const mica_tokenizer *tokenizer, const char *piece, uint64_t length, mica_token_list *ids,
                              mica_error *error) MICA_CHECKED;
bool mica_token_list_reserve(mica_token_list *list, uint64_t more);

/* ---- tokenizer_split.c */

typedef mica_status (*mica_piece_function)(void *context, const char *piece, uint64_t length, mica_error *error);

/* Appends a stage. `pattern` is of the dialect that tiktoken and tokenizers share; what it says otherwise than PCRE2, or what is not
 * known to mean the same, is translated or refused. */
mica_status mica_splitter_add(mica_splitter *splitter, const char *name, const char *pattern, mica_error *error) MICA_CHECKED;
/* Calls `piece` for each piece of `text`, which is valid UTF-8, in order; together they are the text. */
mica_status mica_splitter_split(const mica_splitter *splitter, const char *text, uint64_t length, mica_piece_function piece, void *context,
                                mica_error *error) MICA_CHECKED;
void mica_splitter_release(mica_splitter *splitter);

/* Patterns of tokenizers that are not written out in a tokenizer.json. */
#define MICA_PATTERN_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define MICA_PATTERN_DIGIT "\\p{N}"
#define MICA_PATTERN_DIGITS "\\p{N}+"

/* A known set of patterns, by GGUF's name for it (tokenizer.ggml.pre); NULL when there is none. */
typedef struct mica_split_row {
    const char *pre_type;
    const char *patterns[MICA_SPLIT_STAGES_MAX]; /* ended by NULL */
    bool whole_pieces, compose;
    bool add_bos; /* where a GGUF does not say */
} mica_split_row;
const mica_split_row *mica_split_row_find(const char *pre_type);
/* The pre_type of the row that has just these patterns, each with a NUL behind it, and these flags; NULL. */
const char *mica_split_row_match(const char *patterns, uint64_t length, bool whole_pieces, bool compose);
mica_status mica_splitter_make(mica_splitter *splitter, const mica_split_row *row, mica_error *error) MICA_CHECKED;

/* ---- tokenizer_config.c: what stands beside either kind of vocabulary */

typedef struct mica_added_token {
    uint32_t id;
    const char *text; /* in `tree` */
    bool special;
} mica_added_token;

typedef struct mica_token_settings {
    json_t *tree; /* tokenizer_config.json; NULL when there is none */
    char *name;   /* "DIRECTORY/tokenizer_config.json" */
    mica_added_token *added;
    uint32_t added_count;
    const char *bos, *eos, *unknown, *padding; /* texts of tokens; NULL: not said */
    int add_bos, add_eos;                      /* 1, 0; -1: not said */
    char *chat_template;
    uint64_t vocab_size;                                         /* of config.json; 0: not said */
    uint32_t bos_id, eos_ids[MICA_TOKEN_ENDS_MAX], eos_id_count; /* of config.json; NONE */
    uint32_t reply_ends[MICA_TOKEN_ENDS_MAX], reply_end_count;   /* of generation_config.json */
} mica_token_settings;
mica_status mica_token_settings_load(const mica_token_files *files, mica_token_settings *settings, mica_error *error) MICA_CHECKED;
/* Gives `tokenizer` roles, ends and template; the texts must be tokens of it. */
mica_status mica_token_settings_apply(mica_token_settings *settings, mica_tokenizer *tokenizer, mica_error *error) MICA_CHECKED;
void mica_token_settings_release(mica_token_settings *settings);

/* BAD_INPUT: "NAME: KEY: expected EXPECTED, got VALUE". */
mica_status mica_token_refuse(const char *name, const char *key, const json_t *value, const char *expected, mica_error *error);
static inline bool mica_token_is_absent(const json_t *value) {
    return !value || json_is_null(value);
}

bool mica_token_file_exists(const mica_token_files *files, const char *name);
mica_status mica_token_file_load(const mica_token_files *files, const char *name, uint64_t limit, char **bytes, uint64_t *length,
                                 mica_error *error) MICA_CHECKED;
char *mica_token_file_path(const mica_token_files *files, const char *name); /* for messages (mica_free) */

/* ---- the kinds */
mica_status mica_tokenizer_from_ranks(const char *name, const char *text, uint64_t length, const mica_token_settings *settings,
                                      mica_tokenizer **tokenizer, mica_error *error) MICA_CHECKED;
/* A tokenizer for as many tokens as a GGUF has, 1 to MICA_TOKENS_MAX, none of them set yet; and the tokens. */
mica_status mica_tokenizer_for_tokens(const mica_gguf *gguf, const mica_gguf_entry **tokens, mica_tokenizer **tokenizer,
                                      mica_error *error) MICA_CHECKED;
/* tokenizer.ggml.model "llama": scores instead of merges (tokenizer_scores.c). */
mica_status mica_tokenizer_from_scores(const mica_gguf *gguf, mica_tokenizer **tokenizer, mica_error *error) MICA_CHECKED;
/* scores[token count] by which a vocabulary with merges gives the same ids: what is merged first has the highest. What scores cannot say is
 * that two tokens which are a third together do not merge; how many tokens text becomes by scores alone. (docs/export.md.) */
mica_status mica_tokenizer_scores(const mica_tokenizer *tokenizer, float *scores, mica_error *error) MICA_CHECKED;
mica_status mica_tokenizer_scored_otherwise(const mica_tokenizer *tokenizer, uint64_t *count, mica_error *error) MICA_CHECKED;
mica_status mica_tokenizer_read_roles(const mica_gguf *gguf, bool add_bos, mica_tokenizer *tokenizer, mica_error *error) MICA_CHECKED;
mica_status mica_tokenizer_from_gguf(const mica_gguf *gguf, mica_tokenizer **tokenizer, mica_error *error) MICA_CHECKED;
mica_status mica_tokenizer_from_json(const char *name, const char *text, uint64_t length, const mica_token_settings *settings,
                                     mica_tokenizer **tokenizer, mica_error *error) MICA_CHECKED;

#endif
