/* model/tokenizer_split.c: cutting text into the pieces within which bytes are merged, by the patterns of the model's own tokenizer,
 * with PCRE2. Those patterns are of other dialects (fancy-regex in tiktoken, Oniguruma in tokenizers). Where PCRE2 says the same thing
 * otherwise they are translated: \s is White_Space (PCRE2's takes U+180E), \p{Han} the script (PCRE2's also takes what several scripts
 * share), classes have no &&. What is not known to mean the same is refused. Judged by tests/model/test_tokenizer.c and
 * tests/interop/tokenizer.py. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <inttypes.h>
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "model/tokenizer_build.h"

/* ---- the patterns known by name */

/* [A&&[^\p{Han}]] written without &&: all that is not in A's complement and not Han. A = Lu Lt Lm Lo M, and Ll Lm Lo M. */
#define NOT_UPPER_OR_HAN "\\p{Ll}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{Han}"
#define NOT_LOWER_OR_HAN "\\p{Lu}\\p{Lt}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{Han}"
#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* clang-format off */
#define LLAMA3 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES
#define QWEN2 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES

/* The letters with case below U+1E944, as DeepSeek's first tokenizers list them. */
#define DEEPSEEK_LETTERS \
    "µÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ" \
    "-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹ" \
    "ℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-" \
    "𞥃"

static const mica_split_row split_rows[] = {
    {"kimi-k2",
     {"[\\p{Han}]+"
      "|[^\\r\\n\\p{L}\\p{N}]?[^" NOT_UPPER_OR_HAN "]*[^" NOT_LOWER_OR_HAN "]+" CONTRACTION "?"
      "|[^\\r\\n\\p{L}\\p{N}]?[^" NOT_UPPER_OR_HAN "]+[^" NOT_LOWER_OR_HAN "]*" CONTRACTION "?"
      "|\\p{N}{1,3}"
      "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES},
     true, false, false},
    {"deepseek-v3",
     {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
      "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"},
     false, false, false},
    {"deepseek-llm",
     {"[\r\n]", "\\s?[A-Za-z" DEEPSEEK_LETTERS "]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$", "[一-龥ࠀ-一가-퟿]+", MICA_PATTERN_DIGIT},
     false, false, false},
    {"llama-bpe", {LLAMA3}, true, false, true},
    {"llama3", {LLAMA3}, true, false, true},
    {"smaug-bpe", {LLAMA3}, false, false, false}, /* Llama 3's patterns, and plain merging */
    {"qwen2", {QWEN2}, false, true, false},
    {"stablelm2", {QWEN2}, false, false, false},
    {"gpt-2", {MICA_PATTERN_GPT2}, false, false, false},
};

/* clang-format on */

const mica_split_row *mica_split_row_find(const char *pre_type) {
    for (size_t i = 0; i < sizeof split_rows / sizeof split_rows[0]; i++) {
        if (strcmp(split_rows[i].pre_type, pre_type) == 0)
            return &split_rows[i];
    }
    return NULL;
}

const char *mica_split_row_match(const char *patterns, uint64_t length, bool whole_pieces, bool compose) {
    for (size_t i = 0; i < sizeof split_rows / sizeof split_rows[0]; i++) {
        uint64_t at = 0;
        if (split_rows[i].whole_pieces != whole_pieces || split_rows[i].compose != compose)
            continue;
        const char *const *pattern = split_rows[i].patterns;
        for (; *pattern && at < length && strcmp(patterns + at, *pattern) == 0; pattern++)
            at += strlen(*pattern) + 1;
        if (!*pattern && at == length)
            return split_rows[i].pre_type;
    }
    return NULL;
}

mica_status mica_splitter_make(mica_splitter *splitter, const mica_split_row *row, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint32_t i = 0; i < MICA_SPLIT_STAGES_MAX && row->patterns[i] && status == MICA_OK; i++)
        status = mica_splitter_add(splitter, row->pre_type, row->patterns[i], error);
    return status;
}

/* ---- from their dialect to PCRE2's */

/* What an escape becomes, outside a class and inside one; NULL: refused. Anything else behind a backslash that is not a letter or a
 * digit is that character itself. */
/* clang-format off */
static const struct {
    const char *escape, *outside, *inside;
} escape_rows[] = {
#define WHITE_SPACE "\\x{09}-\\x{0d}\\x{85}\\p{Z}"
    {"\\s", "[" WHITE_SPACE "]", WHITE_SPACE},
    {"\\S", "[^" WHITE_SPACE "]", NULL},
    {"\\p{Han}", "\\p{sc:Han}", "\\p{sc:Han}"},
    {"\\p{L}", "\\p{L}", "\\p{L}"},
    {"\\p{Lu}", "\\p{Lu}", "\\p{Lu}"},
    {"\\p{Ll}", "\\p{Ll}", "\\p{Ll}"},
    {"\\p{Lt}", "\\p{Lt}", "\\p{Lt}"},
    {"\\p{Lm}", "\\p{Lm}", "\\p{Lm}"},
    {"\\p{Lo}", "\\p{Lo}", "\\p{Lo}"},
    {"\\p{M}", "\\p{M}", "\\p{M}"},
    {"\\p{N}", "\\p{N}", "\\p{N}"},
    {"\\p{Nd}", "\\p{Nd}", "\\p{Nd}"},
    {"\\p{P}", "\\p{P}", "\\p{P}"},
    {"\\p{S}", "\\p{S}", "\\p{S}"},
    {"\\p{Z}", "\\p{Z}", "\\p{Z}"},
    {"\\p{C}", "\\p{C}", "\\p{C}"},
    {"\\d", "\\p{Nd}", "\\p{Nd}"},
    {"\\r", "\\x{0d}", "\\x{0d}"},
    {"\\n", "\\x{0a}", "\\x{0a}"},
    {"\\t", "\\x{09}", "\\x{09}"},
};

/* clang-format on */

static mica_status refuse_pattern(const char *name, const char *pattern, size_t at, const char *why, mica_error *error) {
    return mica_fail(error, MICA_BAD_INPUT,
                     "%s: expected a pattern that is known to mean the same to PCRE2, got %s at byte %zu of '%.200s'", name, why, at,
                     pattern);
}

static bool is_word_byte(char byte) {
    return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z');
}

/* The escape at `at`: appends what it becomes, returns its length; 0 when it is refused. */
static size_t translate_escape(const char *at, bool in_class, mica_text *text) {
    size_t length = 2;
    if (at[1] == 'p' && at[2] == '{')
        length = strcspn(at, "}") + 1;
    for (size_t i = 0; i < sizeof escape_rows / sizeof escape_rows[0]; i++) {
        if (strncmp(at, escape_rows[i].escape, length) == 0 && escape_rows[i].escape[length] == 0) {
            const char *becomes = in_class ? escape_rows[i].inside : escape_rows[i].outside;
            if (becomes)
                mica_text_puts(text, becomes);
            return becomes ? length : 0;
        }
    }
    if (at[1] == 0 || is_word_byte(at[1]) || (at[1] & 0x80))
        return 0;
    mica_text_append(text, at, 2);
    return 2;
}

/* Constructs that are the same in the three: literals, | ( ) (?: (?i: (?! (?= . classes with ranges, the quantifiers ? * + {n,m}. */
static bool is_same_group(const char *at) {
    return at[1] != '?' || strncmp(at, "(?:", 3) == 0 || strncmp(at, "(?i:", 4) == 0 || strncmp(at, "(?!", 3) == 0 ||
           strncmp(at, "(?=", 3) == 0;
}

static mica_status translate(const char *name, const char *pattern, mica_text *text, mica_error *error) {
    bool in_class = false;
    for (const char *at = pattern; *at;) {
        size_t offset = (size_t)(at - pattern), length = 1;
        if (*at == '\\') {
            length = translate_escape(at, in_class, text);
            if (length == 0)
                return refuse_pattern(name, pattern, offset, "an escape", error);
            at += length;
            continue;
        }
        if (in_class && (*at == '[' || (at[0] == '&' && at[1] == '&')))
            return refuse_pattern(name, pattern, offset, "a class in a class", error);
        if (!in_class && *at == '(' && !is_same_group(at))
            return refuse_pattern(name, pattern, offset, "a group", error);
        if (!in_class && (*at == '^' || *at == '.'))
            return refuse_pattern(name, pattern, offset, *at == '^' ? "'^'" : "'.'", error);
        if (!in_class && strchr("?*+}", *at) && at[1] == '+') /* possessive, and in Oniguruma {n,m}+ is not */
            return refuse_pattern(name, pattern, offset, "two quantifiers", error);
        if (!in_class && *at == '$') { /* to Oniguruma the end of a line */
            mica_text_puts(text, "(?=\\x{0a}|\\z)");
        } else {
            if (!in_class && *at == '[')
                length += at[1] == '^';
            mica_text_append(text, at, length);
        }
        in_class = in_class ? *at != ']' : *at == '[';
        at += length;
    }
    return mica_text_failed(text) ? mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a pattern", name) : MICA_OK;
}

/* ---- PCRE2 */

static void *allocate(size_t bytes, void *context) {
    (void)context;
    return mica_malloc(bytes);
}

static void release(void *pointer, void *context) {
    (void)context;
    mica_free(pointer);
}

static mica_status compile(const char *name, const char *pattern, pcre2_code **code, mica_error *error) {
    int reason;
    size_t at;
    PCRE2_UCHAR message[128];
    pcre2_general_context *memory = pcre2_general_context_create(allocate, release, NULL);
    pcre2_compile_context *context = memory ? pcre2_compile_context_create(memory) : NULL;
    if (context)
        *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &reason, &at, context);
    bool ready = context != NULL;
    pcre2_compile_context_free(context);
    pcre2_general_context_free(memory);
    if (!ready || (!*code && reason == PCRE2_ERROR_HEAP_FAILED))
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for a pattern", name);
    if (!*code) {
        pcre2_get_error_message(reason, message, sizeof message);
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected a pattern, got '%.200s': %s", name, pattern, (const char *)message);
    }
    (void)pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE); /* where there is no JIT, PCRE2 interprets: the same, slower */
    return MICA_OK;
}

mica_status mica_splitter_add(mica_splitter *splitter, const char *name, const char *pattern, mica_error *error) {
    pcre2_code *code = NULL;
    mica_text text = MICA_TEXT_INIT;
    if (splitter->count == MICA_SPLIT_STAGES_MAX)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected at most %d patterns, got more", name, MICA_SPLIT_STAGES_MAX);
    mica_status status = translate(name, pattern, &text, error);
    if (status == MICA_OK)
        status = compile(name, text.bytes ? text.bytes : "", &code, error);
    if (status == MICA_OK)
        splitter->stages[splitter->count++] = code;
    mica_text_release(&text);
    return status;
}

void mica_splitter_release(mica_splitter *splitter) {
    for (uint32_t i = 0; i < splitter->count; i++)
        pcre2_code_free(splitter->stages[i]);
    splitter->count = 0;
}

typedef struct split_run {
    const mica_splitter *splitter;
    pcre2_match_data *match;
    mica_piece_function piece;
    void *context;
    mica_error *error;
} split_run;

/* The next match from `from` on that is not empty: *start and *end; both `length` when there is none. */
static mica_status find(const split_run *run, uint32_t stage, const char *text, uint64_t length, uint64_t from, uint64_t *start,
                        uint64_t *end) {
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    const pcre2_code *code = run->splitter->stages[stage];
    *start = *end = length;
    int found = pcre2_match(code, (PCRE2_SPTR)text, length, from, options, run->match, NULL);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter takes its stack from the heap */
        found = pcre2_match(code, (PCRE2_SPTR)text, length, from, options | PCRE2_NO_JIT, run->match, NULL);
    if (found == PCRE2_ERROR_NOMATCH)
        return MICA_OK;
    if (found < 0) {
        PCRE2_UCHAR message[128];
        pcre2_get_error_message(found, message, sizeof message);
        return mica_fail(run->error, found == PCRE2_ERROR_NOMEMORY ? MICA_NO_MEMORY : MICA_FAILED,
                         "splitting text: byte %" PRIu64 " of %" PRIu64 ": %s", from, length, (const char *)message);
    }
    const PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(run->match);
    *start = offsets[0];
    *end = offsets[1];
    return MICA_OK;
}

static mica_status split_stage(const split_run *run, uint32_t stage, const char *text, uint64_t length) {
    mica_status status = MICA_OK;
    if (stage == run->splitter->count)
        return length > 0 ? run->piece(run->context, text, length, run->error) : MICA_OK;
    for (uint64_t at = 0, start, end; at < length && status == MICA_OK; at = end) {
        status = find(run, stage, text, length, at, &start, &end);
        if (status == MICA_OK && start > at)
            status = split_stage(run, stage + 1, text + at, start - at);
        if (status == MICA_OK && end > start)
            status = split_stage(run, stage + 1, text + start, end - start);
    }
    return status;
}

mica_status mica_splitter_split(const mica_splitter *splitter, const char *text, uint64_t length, mica_piece_function piece, void *context,
                                mica_error *error) {
    if (length == 0)
        return MICA_OK;
    pcre2_general_context *memory = pcre2_general_context_create(allocate, release, NULL);
    pcre2_match_data *match = memory ? pcre2_match_data_create(1, memory) : NULL;
    pcre2_general_context_free(memory);
    if (!match)
        return mica_fail(error, MICA_NO_MEMORY, "splitting text: out of memory");
    const split_run run = {splitter, match, piece, context, error};
    mica_status status = split_stage(&run, 0, text, length);
    pcre2_match_data_free(match);
    return status;
}
