/* cli/verb_stats.c: the verb `stats`: its options, its help, its call into the library. Judged by tests/cli/transcripts. */
#include <mica/vindex.h>

#include "verbs.h"

static mica_status run_stats(const mica_option_values *values, char **output, mica_error *error) {
    mica_stats_form form = values->json ? MICA_STATS_JSON : values->csv ? MICA_STATS_CSV : MICA_STATS_TEXT;
    return mica_stats(values->operand, form, output, error);
}

static const mica_option stats_options[] = {
    JSON_OPTION("csv"),
    {"csv", 0, MICA_OPTION_FLAG, FIELD(csv), NULL, "print comma-separated values, one row per expert", NULL},
    {0},
};

const mica_verb mica_verb_stats = {
    "stats", "print the spectral statistics of a vindex", "VINDEX [options]",
    "Prints one row per layer and projection of a finished vindex, over its experts:\n"
    "  var@64    median and quartiles of the share of the energy (squared singular values) that\n"
    "            the 64 largest singular values hold; 1 is all of it\n"
    "  noise     what Gaussian noise of the same shape would have; ratio: times that noise\n"
    "  s0/s1     median of the largest singular value over the second\n"
    "  above     median count of singular values beyond the edge of such noise\n"
    "  residual  the largest error of a stored singular vector, relative to s0\n",
    {stats_options, "VINDEX", NULL, false}, run_stats,
};
