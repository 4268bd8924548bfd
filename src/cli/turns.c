/* cli/turns.c: see the header. Not stdio: a wait for a line must end when a stop is asked for, and only what is not yet read can be waited for. */
#include "turns.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "progress.h"
#include "verbs.h"

#define ROOM_LEAST 4096

void mica_turns_init(mica_turns *turns) {
    *turns = (mica_turns){.asks = isatty(STDIN_FILENO)};
}

void mica_turns_release(mica_turns *turns) {
    if (turns->asks && turns->ended)
        fputs("\n", stderr); /* behind the last "> " */
    free(turns->bytes);
    *turns = (mica_turns){0};
}

/* What was given away makes room; a byte stays for the NUL behind a line. */
static bool make_room(mica_turns *turns) {
    if (turns->taken) {
        memmove(turns->bytes, turns->bytes + turns->taken, turns->used - turns->taken);
        turns->used -= turns->taken;
        turns->taken = 0;
    }
    if (turns->room - turns->used > ROOM_LEAST)
        return true;
    char *larger = realloc(turns->bytes, 2 * turns->room + 2 * ROOM_LEAST);
    if (!larger)
        return false;
    turns->bytes = larger;
    turns->room = 2 * turns->room + 2 * ROOM_LEAST;
    return true;
}

static mica_status read_some(mica_turns *turns, mica_error *error) {
    if (!make_room(turns))
        return mica_verb_fail(error, MICA_NO_MEMORY, "out of memory for a line");
    if (!mica_progress_await(STDIN_FILENO)) {
        if (mica_progress_terminated() || !turns->asks)
            return mica_verb_fail(error, MICA_INTERRUPTED, "stopped");
        mica_progress_forget();
        turns->used = 0;
        fputs("\n(Ctrl-D ends the conversation)\n> ", stderr);
        return MICA_OK;
    }
    ssize_t got = read(STDIN_FILENO, turns->bytes + turns->used, turns->room - turns->used - 1);
    if (got < 0 && errno != EINTR && errno != EAGAIN)
        return mica_verb_fail(error, MICA_IO, "standard input: cannot read: %s", strerror(errno));
    turns->used += got > 0 ? (size_t)got : 0;
    turns->ended = got == 0;
    return MICA_OK;
}

/* The end of the line that begins at `taken`; NULL: it is not there yet. */
static char *find_end(const mica_turns *turns) {
    size_t left = turns->used - turns->taken;
    char *end = left ? memchr(turns->bytes + turns->taken, '\n', left) : NULL;
    return !end && turns->ended && left ? turns->bytes + turns->used : end;
}

mica_status mica_turns_next(mica_turns *turns, const char **line, mica_error *error) {
    *line = NULL;
    if (turns->asks)
        fputs("> ", stderr);
    char *end = find_end(turns);
    while (!end && !turns->ended) {
        mica_status status = read_some(turns, error);
        if (status != MICA_OK)
            return status;
        end = find_end(turns);
    }
    if (!end)
        return MICA_OK;
    char *begin = turns->bytes + turns->taken;
    turns->taken = (size_t)(end - turns->bytes) + (end < turns->bytes + turns->used);
    *end = 0;
    if (strlen(begin) != (size_t)(end - begin))
        return mica_verb_fail(error, MICA_BAD_INPUT, "standard input: expected text, got a NUL byte");
    if (end > begin && end[-1] == '\r')
        end[-1] = 0;
    *line = begin;
    return MICA_OK;
}
