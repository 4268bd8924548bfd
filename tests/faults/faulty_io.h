/* tests/faults/faulty_io.h: a table of system calls that fail on order, for mica_io_install. One program, one table. */
#ifndef TESTS_FAULTS_FAULTY_IO_H
#define TESTS_FAULTS_FAULTY_IO_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "base/file.h"

/* A faulty system: the nth call of one kind fails with `failure`; reads and writes move at most `part` bytes; and every call
 * is interrupted once before it works. */
typedef enum call_kind { NONE, OPEN, CLOSE, FSTAT, PREAD, PWRITE, FSYNC, FTRUNCATE, RENAME, UNLINK, KINDS } call_kind;
static struct {
    call_kind kind;
    uint32_t countdown; /* the call that fails; 1 is the next */
    int failure;        /* errno; 0: a read or write of 0 bytes */
    bool forever;       /* and all after it */
    bool interrupt, interrupted;
    size_t part; /* 0: all */
    uint32_t calls[KINDS];
    int64_t open_files;
    uint64_t disk_bytes; /* PWRITE beyond this offset is ENOSPC; 0: no bound */
    bool no_direct_read; /* a descriptor with O_DIRECT reads EINVAL */
} fault;

static pthread_mutex_t fault_lock = PTHREAD_MUTEX_INITIALIZER; /* calls come from several threads */

/* Counts a call; false, or true with errno set. */
static bool fails_on_order(call_kind kind, bool may_be_interrupted) {
    int failure = -1;
    pthread_mutex_lock(&fault_lock);
    fault.calls[kind]++;
    if (fault.interrupt && may_be_interrupted)
        fault.interrupted = !fault.interrupted;
    if (fault.interrupt && may_be_interrupted && fault.interrupted) {
        failure = EINTR;
    } else if (fault.kind == kind && fault.countdown > 0 && --fault.countdown == 0) {
        fault.countdown = fault.forever;
        failure = fault.failure;
    }
    pthread_mutex_unlock(&fault_lock);
    if (failure >= 0)
        errno = failure;
    return failure >= 0;
}

static bool fails(call_kind kind) {
    return fails_on_order(kind, true);
}

static void count_open_files(int64_t change) {
    pthread_mutex_lock(&fault_lock);
    fault.open_files += change;
    pthread_mutex_unlock(&fault_lock);
}

static int faulty_open(const char *path, int flags, mode_t mode) {
    if (fails(OPEN))
        return -1;
    int fd = open(path, flags, mode);
    count_open_files(fd >= 0);
    return fd;
}

static int faulty_close(int fd) {
    count_open_files(-1);
    close(fd); /* a failing close closes all the same, and is not interrupted */
    return fails_on_order(CLOSE, false) ? -1 : 0;
}

static int faulty_fstat(int fd, struct stat *status) {
    return fails_on_order(FSTAT, false) ? -1 : fstat(fd, status); /* never interrupted */
}

static size_t shortened(size_t bytes) {
    return fault.part && fault.part < bytes ? fault.part : bytes;
}

static ssize_t faulty_pread(int fd, void *buffer, size_t bytes, off_t offset) {
    if (fails(PREAD))
        return errno == 0 ? 0 : -1;
    if (fault.no_direct_read && (fcntl(fd, F_GETFL) & O_DIRECT)) {
        errno = EINVAL;
        return -1;
    }
    return pread(fd, buffer, shortened(bytes), offset);
}

static ssize_t faulty_pwrite(int fd, const void *buffer, size_t bytes, off_t offset) {
    if (fails(PWRITE))
        return errno == 0 ? 0 : -1;
    bytes = shortened(bytes);
    if (fault.disk_bytes && (uint64_t)offset + bytes > fault.disk_bytes) { /* a full disk takes what fits, then refuses */
        if ((uint64_t)offset >= fault.disk_bytes) {
            errno = ENOSPC;
            return -1;
        }
        bytes = (size_t)(fault.disk_bytes - (uint64_t)offset);
    }
    return pwrite(fd, buffer, bytes, offset);
}

static int faulty_fsync(int fd) {
    return fails(FSYNC) ? -1 : fsync(fd);
}

static int faulty_ftruncate(int fd, off_t bytes) {
    return fails(FTRUNCATE) ? -1 : ftruncate(fd, bytes);
}

static int faulty_rename(const char *from, const char *to) {
    return fails(RENAME) ? -1 : rename(from, to);
}

static int faulty_unlink(const char *path) {
    return fails(UNLINK) ? -1 : unlink(path);
}

static const mica_io faulty = {.open = faulty_open,
                               .close = faulty_close,
                               .fstat = faulty_fstat,
                               .pread = faulty_pread,
                               .pwrite = faulty_pwrite,
                               .fsync = faulty_fsync,
                               .ftruncate = faulty_ftruncate,
                               .rename = faulty_rename,
                               .unlink = faulty_unlink};

#endif
