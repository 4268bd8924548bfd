/* cli/main.c: picks the verb, prints what it gives and how it ended. Results go to stdout, everything else to stderr; the only place that
 * prints or exits. No setlocale: the output is the same everywhere. Judged by tests/cli. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <mica/checkpoint.h>
#include <mica/status.h>

#include "verbs.h"

#define HELP_COLUMN 26 /* where the texts of options begin */

/* "mica VERB: message"; one line, whatever was typed, and after a mistake in the command line a second one. */
static int complain(const char *verb, const mica_error *error) {
    const char *space = verb ? " " : "", *name = verb ? verb : "";
    fprintf(stderr, "mica%s%s: ", space, name);
    for (const char *at = error->message[0] ? error->message : mica_status_text(error->status); *at; at++)
        fputc((unsigned char)*at < 0x20 || *at == 0x7f ? ' ' : *at, stderr);
    fputc('\n', stderr);
    if (error->status == MICA_USAGE)
        fprintf(stderr, "try 'mica%s%s --help'\n", space, name);
    return mica_status_exit(error->status);
}

/* Writes `text` and all that was printed before; says so when anything of it was lost. Returns the exit status. */
static int finish_output(const char *verb, const char *text) {
    bool written = fputs(text, stdout) >= 0;
    int reason = errno;
    if (written && fflush(stdout) != 0) {
        written = false;
        reason = errno;
    }
    if (written && !ferror(stdout))
        return mica_status_exit(MICA_OK);
    mica_error error = {.status = MICA_IO};
    snprintf(error.message, sizeof error.message, "cannot write to the standard output: %s", strerror(reason));
    return complain(verb, &error);
}

static void print_verbs(FILE *stream) {
    fputs("Mica: mixture-of-experts checkpoints, streamed one expert at a time.\n\nusage: mica VERB ...\n\n", stream);
    for (const mica_verb *const *verb = mica_verbs; *verb; verb++)
        fprintf(stream, "  %-10s %s\n", (*verb)->name, (*verb)->summary);
    fputs("\n'mica VERB --help' tells a verb's options, 'mica --version' the version.\n"
          "MICA_CPU=portable|avx2|avxvnni|avx512 in the environment lowers the instruction set that is used.\n",
          stream);
}

static void print_option(char letter, const char *name, const char *argument, const char *help) {
    char left[64];
    const char shown[] = {letter ? '-' : ' ', letter ? letter : ' ', letter ? ',' : ' ', 0};
    snprintf(left, sizeof left, "  %s --%s%s%s", shown, name, argument ? " " : "", argument ? argument : "");
    printf("%-*s", HELP_COLUMN, left);
    for (const char *line = help; *line;) {
        int length = (int)strcspn(line, "\n");
        printf("%*s%.*s\n", line == help ? 1 : HELP_COLUMN + 1, "", length, line);
        line += length + (line[length] == '\n');
    }
}

static void print_help(const mica_verb *verb) {
    printf("usage: mica %s %s\n\n%s\n", verb->name, verb->usage, verb->description);
    for (const mica_option *row = verb->options.rows; row->name; row++)
        print_option(row->letter, row->name, row->argument, row->help);
    print_option('h', "help", NULL, "print this");
}

static int run_verb(const mica_verb *verb, int count, char **arguments) {
    mica_error error = {MICA_OK, ""};
    mica_option_values values;
    char *output = NULL;
    error.status = mica_options_parse(&verb->options, count, arguments, &values, &error);
    if (error.status == MICA_OK && values.help) {
        print_help(verb);
        return finish_output(verb->name, "");
    }
    if (error.status == MICA_OK)
        error.status = verb->run(&values, &output, &error);
    int written = finish_output(verb->name, output ? output : ""); /* a report may come with a failure */
    mica_string_free(output);
    return error.status == MICA_OK ? written : complain(verb->name, &error);
}

/* A closed standard stream would lend its number to the next file opened, and a message would be written into an artefact. */
static void occupy_standard_streams(void) {
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) == -1)
            (void)!open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY); /* writing to stdout fails, as it must */
    }
}

int main(int count, char **arguments) {
    occupy_standard_streams();
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a write error like any other */
    if (count < 2) {
        print_verbs(stderr);
        return mica_status_exit(MICA_USAGE);
    }
    if (strcmp(arguments[1], "--help") == 0 || strcmp(arguments[1], "-h") == 0) {
        print_verbs(stdout);
        return finish_output(NULL, "");
    }
    if (strcmp(arguments[1], "--version") == 0)
        return finish_output(NULL, "mica " MICA_VERSION "\n");
    mica_error error = {.status = MICA_USAGE};
    if (mica_environment_check(&error) != MICA_OK)
        return complain(NULL, &error);
    for (const mica_verb *const *verb = mica_verbs; *verb; verb++) {
        if (strcmp(arguments[1], (*verb)->name) == 0)
            return run_verb(*verb, count - 1, arguments + 1);
    }
    snprintf(error.message, sizeof error.message, "unknown %s '%s'", arguments[1][0] == '-' ? "option" : "verb", arguments[1]);
    return complain(NULL, &error);
}
