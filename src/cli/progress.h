/* cli/progress.h: what a long verb tells while it runs, and how it is asked to stop. */
#ifndef MICA_CLI_PROGRESS_H
#define MICA_CLI_PROGRESS_H

#include <mica/checkpoint.h>

/* From now on SIGINT and SIGTERM ask for a clean stop; another one half a second later ends the program at once. */
void mica_progress_begin(void);

/* Whether a stop was asked for; whether by SIGTERM, which always means the program; and to forget a SIGINT that was meant for a part of the
 * work. */
bool mica_progress_stopped(void);
bool mica_progress_terminated(void);
void mica_progress_forget(void);

/* Waits until `fd` can be read, or is at its end. False: a stop was asked for. */
bool mica_progress_await(int fd);

/* A mica_progress_function (context unused): false once a stop was asked for. Keeps one line on stderr if that is a terminal. */
bool mica_progress_show(void *context, const mica_progress *progress);

/* Wipes the line. */
void mica_progress_end(void);

#endif
