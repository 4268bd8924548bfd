/* cli/options.c: getopt_long over a verb's table. Depends on no locale: numbers are decimal digits.
 * Judged by tests/cli/transcripts/usage.txt. */
#include "options.h"

#include <getopt.h>
#include <math.h>
#include <mica/vindex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_MAX 31 /* as a mask of what was given holds */
#define ROW_VALUE 256 /* getopt's value of row i is ROW_VALUE + i, beyond any letter */
#define COUNT_MAX 65536u

__attribute__((format(printf, 2, 3))) static mica_status refuse(mica_error *error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    error->status = MICA_USAGE;
    return MICA_USAGE;
}

static mica_status refuse_value(mica_error *error, const mica_option *option, const char *expected, const char *got) {
    return refuse(error, "--%s: expected %s, got '%s'", option->name, expected, got);
}

/* Decimal digits up to the first other byte, at least one; *rest is where they end. */
static bool parse_digits(const char *text, uint64_t *number, const char **rest) {
    uint64_t value = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (__builtin_mul_overflow(value, (uint64_t)10, &value) || __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
            return false;
    }
    *number = value;
    *rest = at;
    return at > text;
}

static mica_status parse_count(const mica_option *option, const char *text, uint32_t *count, mica_error *error) {
    uint64_t number;
    const char *rest;
    if (!parse_digits(text, &number, &rest) || *rest || number < 1 || number > COUNT_MAX)
        return refuse_value(error, option, "a whole number from 1 to 65536", text);
    *count = (uint32_t)number;
    return MICA_OK;
}

static mica_status parse_whole(const mica_option *option, const char *text, uint64_t *number, mica_error *error) {
    const char *rest;
    uint64_t value;
    const bool amount = option->kind == MICA_OPTION_AMOUNT;
    if (!parse_digits(text, &value, &rest) || *rest || (amount && value == 0))
        return refuse_value(error, option, amount ? "a whole number from 1 on" : "a whole number", text);
    *number = value;
    return MICA_OK;
}

static mica_status parse_number(const mica_option *option, const char *text, double *number, mica_error *error) {
    size_t length = strspn(text, "0123456789.eE+-");
    char *rest = NULL;
    double value = strtod(text, &rest);
    if (text[0] == '\0' || text[length] != '\0' || *rest != '\0' || !isfinite(value) || value < 0)
        return refuse_value(error, option, "a number that is not negative", text);
    *number = value;
    return MICA_OK;
}

static mica_status parse_size(const mica_option *option, const char *text, uint64_t *bytes, mica_error *error) {
    static const struct {
        const char *name;
        uint64_t bytes;
    } units[] = {{"", 1},
                 {"B", 1},
                 {"kB", 1000},
                 {"KB", 1000},
                 {"MB", 1000000},
                 {"GB", 1000000000},
                 {"TB", 1000000000000},
                 {"KiB", UINT64_C(1) << 10},
                 {"MiB", UINT64_C(1) << 20},
                 {"GiB", UINT64_C(1) << 30},
                 {"TiB", UINT64_C(1) << 40}};
    uint64_t number;
    const char *rest;
    if (parse_digits(text, &number, &rest) && number > 0) {
        for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
            if (strcmp(rest, units[i].name) == 0 && !__builtin_mul_overflow(number, units[i].bytes, bytes))
                return MICA_OK;
        }
    }
    return refuse_value(error, option, "a size such as 2GiB, 500MB or 4096", text);
}

static mica_status parse_projections(const mica_option *option, const char *text, uint32_t *mask, mica_error *error) {
    static const struct {
        const char *name;
        uint32_t bit;
    } projections[] = {{"gate", MICA_SPECTRA_GATE}, {"up", MICA_SPECTRA_UP}, {"down", MICA_SPECTRA_DOWN}};
    uint32_t found = 0;
    for (const char *at = text; at; at = strchr(at, ',')) {
        at += at > text && *at == ',';
        size_t length = strcspn(at, ","), i = 0;
        while (i < 3 && (strlen(projections[i].name) != length || memcmp(at, projections[i].name, length) != 0))
            i++;
        if (i == 3)
            return refuse_value(error, option, "a list of gate, up and down", text);
        found |= projections[i].bit;
        at += length;
    }
    *mask = found;
    return MICA_OK;
}

static mica_status set_value(const mica_option *option, const char *text, mica_option_values *values, mica_error *error) {
    void *field = (char *)values + option->offset;
    switch (option->kind) {
    case MICA_OPTION_FLAG: *(bool *)field = true; return MICA_OK;
    case MICA_OPTION_TEXT:
        if (!*text) /* as an unset variable of the shell's gives it */
            return refuse(error, "--%s: expected %s, got ''", option->name, option->argument);
        *(const char **)field = text;
        return MICA_OK;
    case MICA_OPTION_COUNT: return parse_count(option, text, field, error);
    case MICA_OPTION_WHOLE:
    case MICA_OPTION_AMOUNT: return parse_whole(option, text, field, error);
    case MICA_OPTION_NUMBER: return parse_number(option, text, field, error);
    case MICA_OPTION_SIZE: return parse_size(option, text, field, error);
    case MICA_OPTION_PROJECTIONS: return parse_projections(option, text, field, error);
    }
    return MICA_OK;
}

/* getopt's view of the table. */
typedef struct getopt_view {
    struct option rows[ROWS_MAX + 2];
    char letters[2 * ROWS_MAX + 3];
    uint32_t count;
} getopt_view;

static void make_view(const mica_option_table *table, getopt_view *view) {
    memset(view, 0, sizeof *view);
    char *letter = view->letters;
    *letter++ = ':';
    *letter++ = 'h';
    for (const mica_option *row = table->rows; row->name && view->count < ROWS_MAX; row++) {
        int argument = row->argument ? required_argument : no_argument;
        view->rows[view->count] = (struct option){row->name, argument, NULL, ROW_VALUE + (int)view->count};
        view->count++;
        if (row->letter) {
            *letter++ = row->letter;
            if (row->argument)
                *letter++ = ':';
        }
    }
    view->rows[view->count] = (struct option){"help", no_argument, NULL, 'h'};
}

/* The row getopt means by a value or a letter; NULL: none. */
static const mica_option *find_row(const mica_option_table *table, const getopt_view *view, int value) {
    for (uint32_t i = 0; i < view->count; i++) {
        if (value == ROW_VALUE + (int)i || (value > 0 && value == table->rows[i].letter))
            return &table->rows[i];
    }
    return NULL;
}

static mica_status refuse_option(const mica_option_table *table, const getopt_view *view, int got, const char *argument,
                                 mica_error *error) {
    const mica_option *row = find_row(table, view, optopt);
    if (row && got == ':')
        return refuse(error, "--%s: expected %s", row->name, row->argument);
    if (row || optopt == 'h')
        return refuse(error, "--%s takes no value", row ? row->name : "help");
    if (optopt)
        return refuse(error, "unknown option -%c", optopt);
    return refuse(error, "unknown option %.*s", (int)strcspn(argument, "="), argument);
}

static mica_status check_given(const mica_option_table *table, const getopt_view *view, uint32_t given, mica_error *error) {
    for (uint32_t i = 0; i < view->count; i++) {
        for (uint32_t j = 0; j < view->count; j++) {
            const char *excludes = table->rows[i].excludes;
            if ((given >> i & 1) && (given >> j & 1) && excludes && strcmp(excludes, table->rows[j].name) == 0)
                return refuse(error, "--%s and --%s exclude each other", table->rows[i].name, table->rows[j].name);
        }
    }
    return MICA_OK;
}

static mica_status take_operands(const mica_option_table *table, char **words, int count, mica_option_values *values, mica_error *error) {
    if (count < 1 || !*words[0]) /* no path is empty */
        return refuse(error, "expected a %s", table->operand);
    values->operand = words[0];
    if (!table->second)
        return count == 1 ? MICA_OK : refuse(error, "expected one %s, got '%s' as well", table->operand, words[1]);
    if (count < 2)
        return table->second_use == true ? MICA_OK
                                         : refuse(error, "expected a %s and a %s, got one operand", table->operand, table->second);
    values->second = words[1];
    const int most = table->second_use == MICA_SECOND_AND_THIRD ? 3 : 2;
    if (count > most)
        return refuse(error, "expected a %s and a %s, got '%s' as well", table->operand, table->second, words[most]);
    if (count > 2)
        values->third = words[2];
    return MICA_OK;
}

mica_status mica_options_parse(const mica_option_table *table, int count, char **arguments, mica_option_values *values, mica_error *error) {
    *values = (mica_option_values){.temperature = -1, .top_p = -1};
    getopt_view view;
    make_view(table, &view);
    uint32_t given = 0;
    opterr = 0;
    optind = 1;
    for (int got; (got = getopt_long(count, arguments, view.letters, view.rows, NULL)) != -1;) {
        const mica_option *row = find_row(table, &view, got);
        if (got == 'h') {
            values->help = true;
            return MICA_OK;
        }
        if (got == ':' || got == '?')
            return refuse_option(table, &view, got, arguments[optind - 1], error);
        mica_status status = set_value(row, optarg, values, error);
        if (status != MICA_OK)
            return status;
        given |= UINT32_C(1) << (row - table->rows);
    }
    mica_status status = take_operands(table, arguments + optind, count - optind, values, error);
    return status == MICA_OK ? check_given(table, &view, given, error) : status;
}
