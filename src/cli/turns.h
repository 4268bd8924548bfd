/* cli/turns.h: what people say in a conversation: the standard input, a line each. On a terminal it is asked for with "> ", and Ctrl-C there
 * drops the line that was begun, Ctrl-D ends; elsewhere a stop ends it. Refuses input that cannot be read, and NUL bytes.
 * Judged by tests/cli/chat.py. */
#ifndef MICA_CLI_TURNS_H
#define MICA_CLI_TURNS_H

#include <mica/status.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct mica_turns {
    char *bytes;                /* [room]; of these `used` are read and `taken` given away */
    size_t used, taken, room;
    bool asks, ended;
} mica_turns;

void mica_turns_init(mica_turns *turns);
void mica_turns_release(mica_turns *turns);

/* *line: the next one, without its end, until the next call; NULL: there is no more. INTERRUPTED: a stop was asked for. */
mica_status mica_turns_next(mica_turns *turns, const char **line, mica_error *error);

#endif
