/* mica/status.h: the one list of outcomes, and the sentence that goes with a failure.
 *
 * Every fallible function returns a mica_status; its last parameter is a mica_error owned by the
 * caller (may be NULL). The message is one line that names the file, the tensor or key, what was
 * expected and what was there. Outputs are written only on success unless a header says otherwise. */
#ifndef MICA_STATUS_H
#define MICA_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/* name, exit status of the program, text */
#define MICA_STATUS_LIST(X)                                                        \
    X(OK, 0, "ok")                                                                 \
    X(FAILED, 1, "failed")                      /* our own limits: no thread, …   */ \
    X(NO_MEMORY, 1, "out of memory")                                               \
    X(DIFFERENT, 1, "different")                /* what was compared is not equal */ \
    X(USAGE, 2, "usage")                        /* the command line or an option  */ \
    X(BAD_INPUT, 3, "bad input")                /* a file is not what it must be  */ \
    X(CORRUPT, 3, "corrupt")                    /* bytes differ from their record */ \
    X(CONFLICT, 3, "conflict")                  /* the output exists or disagrees */ \
    X(IO, 3, "input/output error")              /* disk full, unreadable, short   */ \
    X(INTERRUPTED, 130, "interrupted")          /* the caller asked to stop       */

typedef enum mica_status {
#define X(name, exit_status, text) MICA_##name,
    MICA_STATUS_LIST(X)
#undef X
} mica_status;

#define MICA_ERROR_MESSAGE_BYTES 1024

typedef struct mica_error {
    mica_status status;
    char message[MICA_ERROR_MESSAGE_BYTES]; /* UTF-8, one line, no trailing newline */
} mica_error;

/* Static text for a status; never NULL. Any thread. */
const char *mica_status_text(mica_status status);

/* The program's exit status for an outcome. Any thread. */
int mica_status_exit(mica_status status);

/* The environment variables that the library minds (MICA_CPU=portable|avx2|avxvnni|avx512 lowers the instruction set): USAGE when one has a
 * value that means nothing; the library itself takes it for absent. Empty is absent. */
mica_status mica_environment_check(mica_error *error);

#ifdef __cplusplus
}
#endif
#endif
