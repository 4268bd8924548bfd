/* cli/progress.c: one line on the terminal, rewritten at most ten times a second, never longer than the terminal is wide; nothing at all
 * where stderr is no terminal. Judged by tests/cli/progress.sh and tests/cli/interrupt.sh. */
#include "progress.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define SECONDS_BETWEEN 0.1
#define WIDTH_DEFAULT 80
#define SECONDS_OF_ONE_WISH 0.5
#define AWAIT_MILLISECONDS 100 /* a signal may be taken by another thread: then no wait is cut short */

static volatile sig_atomic_t interrupted, terminated;
static double shown_at = -1; /* mica_progress.seconds of the last line; < 0: none yet */
static int shown_width;      /* columns to wipe */

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Only what a handler may call. timeout(1) and shells may send a signal twice at once: that is one wish, not two. */
static void ask_to_stop(int signal_number) {
    static double first_at;
    if (!mica_progress_stopped()) {
        first_at = seconds_now();
        *(signal_number == SIGTERM ? &terminated : &interrupted) = 1;
    } else if (seconds_now() - first_at > SECONDS_OF_ONE_WISH) {
        signal(signal_number, SIG_DFL);
        raise(signal_number); /* arrives when this function returns */
    } else if (signal_number == SIGTERM) {
        terminated = 1;
    }
}

void mica_progress_begin(void) {
    const int signals[] = {SIGINT, SIGTERM};
    struct sigaction action = {.sa_handler = ask_to_stop, .sa_flags = SA_RESTART}; /* no call of the library's fails because of it */
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGINT);
    sigaddset(&action.sa_mask, SIGTERM);
    for (int i = 0; i < 2; i++) {
        struct sigaction former;
        if (sigaction(signals[i], NULL, &former) == 0 && former.sa_handler != SIG_IGN) { /* a background job stays deaf */
            sigaction(signals[i], &action, NULL);
        }
    }
}

bool mica_progress_stopped(void) {
    return interrupted || terminated;
}

bool mica_progress_terminated(void) {
    return terminated;
}

void mica_progress_forget(void) {
    interrupted = 0;
}

bool mica_progress_await(int fd) {
    while (!mica_progress_stopped()) {
        struct pollfd waiting = {.fd = fd, .events = POLLIN};
        int ready = poll(&waiting, 1, AWAIT_MILLISECONDS);
        if (ready > 0 || (ready < 0 && errno != EINTR))
            return true;
    }
    return false;
}

static int terminal_width(void) {
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col : WIDTH_DEFAULT;
}

/* "1:02:03" or "2:03". */
static const char *show_time(double seconds, char buffer[32]) {
    uint64_t whole = seconds < 0 ? 0 : seconds > 1e9 ? 1000000000 : (uint64_t)(seconds + 0.5);
    if (whole >= 3600)
        snprintf(buffer, 32, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, whole / 3600, whole / 60 % 60, whole % 60);
    else
        snprintf(buffer, 32, "%" PRIu64 ":%02" PRIu64, whole / 60, whole % 60);
    return buffer;
}

static double share_done(const mica_progress *progress) {
    if (progress->bytes_total > 0)
        return (double)progress->bytes_done / (double)progress->bytes_total;
    return progress->units_total > 0 ? (double)progress->units_done / (double)progress->units_total : 0;
}

static void show_line(const mica_progress *progress) {
    char line[256], elapsed[32], left[32];
    double rate = progress->seconds > 0 ? (double)progress->bytes_done / progress->seconds / 1e6 : 0;
    show_time(progress->seconds, elapsed);
    int length = snprintf(line, sizeof line, "%s  %3.0f%%  %" PRIu64 "/%" PRIu64 "  %.0f MB/s  %s elapsed", progress->what,
                          100 * share_done(progress), progress->units_done, progress->units_total, rate, elapsed);
    if (progress->seconds_left >= 0)
        length += snprintf(line + length, sizeof line - (size_t)length, "  %s left", show_time(progress->seconds_left, left));
    int width = terminal_width() - 1; /* the last column would wrap */
    if (length > width)
        length = width;
    fprintf(stderr, "\r%.*s%*s", length, line, shown_width > length ? shown_width - length : 0, "");
    fflush(stderr);
    shown_width = length;
}

bool mica_progress_show(void *context, const mica_progress *progress) {
    (void)context;
    if (isatty(STDERR_FILENO) && (shown_at < 0 || progress->seconds - shown_at >= SECONDS_BETWEEN)) {
        show_line(progress);
        shown_at = progress->seconds;
    }
    return !mica_progress_stopped();
}

void mica_progress_end(void) {
    if (shown_width > 0) {
        fprintf(stderr, "\r%*s\r", shown_width, "");
        fflush(stderr);
        shown_width = 0;
    }
}
