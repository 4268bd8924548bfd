/* mica/engine.h: computing with a model whose experts need not fit in memory: generating text, logits, perplexity, routing statistics.
 *
 * Everything but the routed experts is read into memory at opening; experts are read when they are needed, into a cache that gets what the
 * budget leaves. Results do not depend on the budget, the cache's policy or the number of threads. */
#ifndef MICA_ENGINE_H
#define MICA_ENGINE_H

#include <mica/checkpoint.h>
#include <mica/status.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mica_compute_options {
    uint64_t memory_bytes;    /* bound of the process's resident memory; 0: four fifths of what the machine has to give */
    uint64_t context;         /* positions that are remembered; 0: 4096, or what the model has; for perplexity the window, 0: 512 */
    uint32_t threads;         /* 0: all processors */
    uint32_t reading_threads; /* 0: 8; of experts, only where the kernel has no queue for direct reads */
    bool exact;               /* float32 activations and keys: for judging */
    bool no_lookahead;        /* do not read ahead what the next layer's router would choose now */
    const char *cache_policy; /* "lfu", "lru"; NULL: lfu */
    mica_progress_function progress; /* of the long functions; may be NULL */
    void *progress_context;
} mica_compute_options;

/* What is given to a model: text, which needs the checkpoint's tokenizer, or token ids. Exactly one of the two. */
typedef struct mica_prompt {
    const char *text; /* NUL-terminated */
    const char *ids;  /* "1,2,3", or "@FILE": a file of such numbers */
    bool bos;         /* begin with the model's BOS, also where its configuration does not say so; with ids: put it in front */
} mica_prompt;

typedef struct mica_compute_meters {
    uint64_t prompt_tokens, generated_tokens;
    uint64_t decoded_tokens;         /* computed one by one while generating; the first that is said comes of the prompt, the last is not computed */
    double prompt_seconds, generated_seconds; /* until the first token is known, and from then on */
    double opening_seconds;          /* until everything resident was in memory */
    uint64_t resident_bytes, resident_read;
    double resident_seconds;         /* of reading them */
    uint64_t expert_uses, expert_hits; /* while decoding: experts used, and of these in memory when they were wanted */
    uint64_t bytes_read;             /* while decoding: experts */
    double stalled_seconds;          /* while decoding: waiting for experts */
    uint64_t weight_bytes;           /* read from memory or disk by decoding one token: resident weights and chosen experts */
    uint64_t peak_bytes;             /* of the process */
    uint64_t slots, experts, working_set; /* experts that the cache holds, that there are, that one token uses */
} mica_compute_meters;

/* ---- generating */

typedef struct mica_runner mica_runner;

typedef struct mica_sampling {
    double temperature; /* 0: always the likeliest */
    double top_p;       /* 0: 1 */
    double min_p;
    uint32_t top_k;     /* 0: all */
    uint64_t seed;
} mica_sampling;

typedef struct mica_generate_options {
    mica_prompt prompt;
    bool chat;             /* the text is a user's turn of a conversation, in the model's own format; earlier turns are remembered */
    const char *system;    /* what is said before the first turn; NULL: what the format says */
    uint64_t token_limit;  /* tokens to generate; 0: up to the end of the context */
    mica_sampling sampling;
    bool ignore_end;       /* go on behind an end-of-sequence token */
    bool (*say)(void *context, const char *bytes, uint64_t length, int64_t id); /* each token as it comes, whole characters; false: stop */
    void *say_context;
} mica_generate_options;

mica_status mica_runner_open(const char *checkpoint, const mica_compute_options *options, mica_runner **runner, mica_error *error);
void mica_runner_close(mica_runner *runner); /* NULL is fine */

/* Whether the model can be talked to: BAD_INPUT (no chat template, or none whose format is known), USAGE (no tokenizer). What a first turn would
 * be refused for. */
mica_status mica_runner_chat(mica_runner *runner, mica_error *error);

/* Computes the prompt behind what the runner remembers, then generates. `say` is first called, without bytes, when the prompt is known to fit.
 * What was said is remembered, also after a stop (which is no failure); a stop before the first token is INTERRUPTED. A turn of a conversation
 * that fails is not part of it. Errors: USAGE (no tokenizer for text), BAD_INPUT (no chat format that is known, ids, a full context,
 * weights), IO, NO_MEMORY. */
mica_status mica_runner_generate(mica_runner *runner, const mica_generate_options *options, mica_compute_meters *meters, mica_error *error);
void mica_runner_reset(mica_runner *runner); /* forgets */

/* One line: rates, hit rate, bytes and memory, as `mica run` ends with. The caller's (mica_string_free); NULL without memory. */
char *mica_meters_show(const mica_compute_meters *meters);

/* ---- logits */

/* Writes float32 logits [tokens][vocab_size] to `output`, whose name ends in .npy (NumPy's format) or .f32 (the numbers alone). Nothing
 * half-written stays. *report (may be NULL): one line, mica_string_free. */
mica_status mica_logits(const char *checkpoint, const mica_compute_options *options, const mica_prompt *prompt, const char *output,
                        char **report, mica_error *error);

/* ---- perplexity */

/* Over disjoint windows of options->context tokens, each computed alone, its last n - 1 tokens scored; a shorter rest is left out unless it
 * is all there is. With BOS each window begins with it. `against` (may be NULL): another checkpoint with the same vocabulary, computed
 * beside this one in half of the memory each: KL(against || checkpoint) and how often both have the same likeliest token.
 * Reports as text and JSON (schema docs/schemas/perplexity.schema.json), mica_string_free. */
mica_status mica_perplexity(const char *checkpoint, const char *against, const mica_compute_options *options, const mica_prompt *prompt,
                            char **text, char **json, mica_error *error);

/* ---- routing statistics */

typedef struct mica_route_options {
    mica_compute_options compute; /* context: at which prompts are cut, 0: 512 */
    const char *prompts;          /* a file, one prompt a line; NULL: 256 that the library carries */
    const char *ids;              /* instead: token ids of prompts, one a line; needs no tokenizer */
    bool bos, force;              /* each prompt begins with BOS; replace what is there */
    bool resume;                  /* go on where an interrupted pass ended; start when there is nothing, compare when it is finished */
} mica_route_options;

/* One pass over the prompts, layer by layer, every weight read once; writes `directory`/phase3_routing_stats.json (schema
 * docs/schemas/phase3_routing_stats.schema.json, definitions docs/statistics.md) and phase3_coactivation.u32. *text (may be NULL): a
 * summary, mica_string_free. A pass that ended in a layer, in whatever way, leaves what `resume` takes up: the result has the same bytes
 * (phase3_routing_stats.json.journal and .activations.partial, which go when it is whole).
 * CONFLICT when the file is there, or what is to be resumed was another job. */
mica_status mica_route(const char *checkpoint, const char *directory, const mica_route_options *options, char **text, mica_error *error);

#ifdef __cplusplus
}
#endif
#endif
