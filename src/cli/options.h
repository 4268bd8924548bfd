/* cli/options.h: the options of the verbs as table rows, parsed into one plain struct.
 * Refuses: unknown options, bad values, options that exclude each other, missing or superfluous operands: one sentence, MICA_USAGE.
 * Judged by tests/cli/transcripts/usage.txt. */
#ifndef MICA_CLI_OPTIONS_H
#define MICA_CLI_OPTIONS_H

#include <mica/status.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What any verb can be told; what was not given is 0, false or NULL, temperature and top_p less than 0: a zero means something there. */
typedef struct mica_option_values {
    bool help, json, csv, strict, resume, force, hash_source, dry_run, special, pieces, exact, bos, no_lookahead, ignore_end, chat;
    bool covariance, sensitivity; /* of imatrix */
    uint64_t covariance_bytes;
    uint32_t features, threads, spectra, full_spectrum; /* the last two: MICA_SPECTRA_* */
    uint32_t reading_threads, top_k;
    uint64_t memory_bytes, context, tokens, seed;
    double temperature, top_p, min_p;
    const char *output, *layers, *hashes, *ids, *file, *prompt, *against, *cache_policy, *system;
    bool link, generate_config; /* of a store */
    uint64_t pack_bytes;
    const char *as, *include, *exclude, *match, *config;
    uint64_t split_bytes, shard_bytes;
    const char *format, *type, *effort, *dtype, *imatrix, *mmproj, *budget, *generate_rules, *compat; /* of export */
    const char *operand; /* the path the verb works on */
    const char *second;  /* what stands behind it; NULL when it was left out */
    const char *third;   /* and behind that */
} mica_option_values;

typedef enum mica_option_kind {
    MICA_OPTION_FLAG,        /* bool */
    MICA_OPTION_TEXT,        /* const char * */
    MICA_OPTION_COUNT,       /* uint32_t, 1 to 65536 */
    MICA_OPTION_WHOLE,       /* uint64_t, any */
    MICA_OPTION_AMOUNT,      /* uint64_t, 1 or more */
    MICA_OPTION_NUMBER,      /* double, finite, not negative */
    MICA_OPTION_SIZE,        /* uint64_t: 4096, 500MB, 2GiB */
    MICA_OPTION_PROJECTIONS, /* uint32_t: gate,up,down */
} mica_option_kind;

typedef struct mica_option {
    const char *name;
    char letter; /* 0: none */
    mica_option_kind kind;
    size_t offset;        /* in mica_option_values */
    const char *argument; /* what help calls the value; NULL for a flag */
    const char *help;     /* lines of at most 72 columns */
    const char *excludes; /* an option that may not be given beside it; NULL: none */
} mica_option;

#define MICA_SECOND_AND_THIRD 2

typedef struct mica_option_table {
    const mica_option *rows; /* ended by a row without a name */
    const char *operand;     /* "CHECKPOINT" */
    const char *second;      /* "TENSOR"; NULL: one operand only */
    int second_use;       /* false: it must be there; true: it may be; MICA_SECOND_AND_THIRD: it must, and one more may follow */
} mica_option_table;

/* Parses what follows the verb: arguments[0] is the verb itself. After --help nothing else is checked. */
mica_status mica_options_parse(const mica_option_table *table, int count, char **arguments, mica_option_values *values, mica_error *error);

#endif
