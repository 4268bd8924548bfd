/* base/file.c: reading and writing whole ranges of regular files. An interrupted call is repeated, a short one continued; what
 * then is still missing is an error that says how much. Names, replacement and directories: base/directory.c.
 * Judged by tests/base/test_file.c and tests/faults/test_base_faults.c. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include "base/memory.h"

#define WINDOW_BYTES 4096u
#define CALL_BYTES_MAX ((uint64_t)1 << 30) /* Linux moves at most 2 GiB less a page in one call */

struct mica_file {
    int fd;
    int direct_fd; /* the same file with O_DIRECT, or -1 */
    bool direct_writes; /* direct_fd can be written to */
    uint64_t bytes;
    char path[];
};

static int system_open(const char *path, int flags, mode_t mode) {
    return open(path, flags, mode);
}

#ifdef __linux__ /* the C library does not have them */
static long system_io_setup(unsigned depth, unsigned long *queue) {
    return syscall(SYS_io_setup, depth, queue);
}

static long system_io_submit(unsigned long queue, long count, struct iocb **controls) {
    return syscall(SYS_io_submit, queue, count, controls);
}

static long system_io_getevents(unsigned long queue, long least, long most, struct io_event *events) {
    return syscall(SYS_io_getevents, queue, least, most, events, NULL);
}

static long system_io_destroy(unsigned long queue) {
    return syscall(SYS_io_destroy, queue);
}
#endif

static const mica_io system_io = {
    .open = system_open,
    .close = close,
    .fstat = fstat,
    .pread = pread,
    .pwrite = pwrite,
    .fsync = fsync,
    .ftruncate = ftruncate,
    .rename = rename,
    .unlink = unlink,
#ifdef __linux__
    .io_setup = system_io_setup,
    .io_submit = system_io_submit,
    .io_getevents = system_io_getevents,
    .io_destroy = system_io_destroy,
#endif
};
static const mica_io *io = &system_io;

const mica_io *mica_io_install(const mica_io *table) {
    const mica_io *former = io;
    io = table ? table : &system_io;
    return former;
}

const mica_io *mica_io_current(void) {
    return io;
}

static const char *kind_of(mode_t mode) {
    return S_ISDIR(mode) ? "a directory" : S_ISFIFO(mode) ? "a pipe" : S_ISCHR(mode) || S_ISBLK(mode) ? "a device" : "no regular file";
}

static int open_retrying(const char *path, int flags) {
    int fd;
    do {
        fd = io->open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666); /* O_NONBLOCK: opening a pipe must not wait */
    } while (fd < 0 && errno == EINTR);
    return fd;
}

/* A second descriptor, which bypasses the page cache. Any failure means: none. */
static int open_direct(const char *path, int flags, const struct stat *opened) {
    int fd = open_retrying(path, flags | O_DIRECT);
    struct stat status;
    if (fd >= 0 && (io->fstat(fd, &status) != 0 || status.st_dev != opened->st_dev || status.st_ino != opened->st_ino)) {
        io->close(fd); /* the name means another file by now */
        fd = -1;
    }
    return fd;
}

static mica_status open_regular(const char *path, int flags, bool direct, mica_file **file, mica_error *error) {
    size_t path_bytes = strlen(path) + 1;
    mica_file *opened = mica_malloc(sizeof *opened + path_bytes);
    if (!opened)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
    memcpy(opened->path, path, path_bytes);
    opened->direct_fd = -1;
    opened->direct_writes = false;
    opened->fd = open_retrying(path, flags);
    if (opened->fd < 0) {
        int failure = errno;
        mica_free(opened);
        if (failure == EISDIR)
            return mica_fail(error, MICA_BAD_INPUT, "%s: expected a regular file, got a directory", path);
        return mica_fail_errno(error, failure, "%s: cannot %s", path, flags & O_CREAT ? "create" : "open");
    }
    struct stat status;
    mica_status result = MICA_OK;
    if (io->fstat(opened->fd, &status) != 0)
        result = mica_fail_errno(error, errno, "%s: cannot get its size", path);
    else if (!S_ISREG(status.st_mode))
        result = mica_fail(error, MICA_BAD_INPUT, "%s: expected a regular file, got %s", path, kind_of(status.st_mode));
    if (result != MICA_OK) {
        io->close(opened->fd);
        mica_free(opened);
        return result;
    }
    opened->bytes = (uint64_t)status.st_size;
    if (direct)
        opened->direct_fd = open_direct(path, O_RDONLY, &status);
    *file = opened;
    return MICA_OK;
}

mica_status mica_file_open(const char *path, bool direct, mica_file **file, mica_error *error) {
    return open_regular(path, O_RDONLY, direct, file, error);
}

mica_status mica_file_create(const char *path, mica_file **file, mica_error *error) {
    return open_regular(path, O_RDWR | O_CREAT | O_TRUNC, false, file, error);
}

mica_status mica_file_open_update(const char *path, mica_file **file, mica_error *error) {
    return open_regular(path, O_RDWR, false, file, error);
}

void mica_file_write_directly(mica_file *file) {
    struct stat status;
    if (file->direct_writes || io->fstat(file->fd, &status) != 0)
        return;
    const int fd = open_direct(file->path, O_RDWR, &status);
    if (fd < 0)
        return;
    if (file->direct_fd >= 0)
        io->close(file->direct_fd);
    file->direct_fd = fd;
    file->direct_writes = true;
}

const char *mica_file_path(const mica_file *file) {
    return file->path;
}

uint64_t mica_file_bytes(const mica_file *file) {
    return file->bytes;
}

/* Offsets are signed in the system's calls; a range beyond that is no range of any file. */
static mica_status check_range(const mica_file *file, const char *verb, uint64_t offset, uint64_t bytes, mica_error *error) {
    uint64_t end;
    if (!mica_add_u64(offset, bytes, &end) || end > INT64_MAX - WINDOW_BYTES) {
        return mica_fail(error, MICA_BAD_INPUT, "%s: cannot %s %" PRIu64 " bytes at offset %" PRIu64 ": beyond any file", file->path, verb,
                         bytes, offset);
    }
    return MICA_OK;
}

/* Reads until `bytes` are there, the file ends or a call fails; *done counts them. Returns 0 or errno. */
static int read_range(int fd, uint64_t offset, uint8_t *buffer, uint64_t bytes, uint64_t *done) {
    while (*done < bytes) {
        uint64_t part = bytes - *done < CALL_BYTES_MAX ? bytes - *done : CALL_BYTES_MAX;
        ssize_t got = io->pread(fd, buffer + *done, (size_t)part, (off_t)(offset + *done));
        if (got > 0)
            *done += (uint64_t)got;
        else if (got == 0)
            return 0;
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

static mica_status judge_read(const mica_file *file, uint64_t offset, uint64_t bytes, uint64_t done, int failure, mica_error *error) {
    if (failure != 0)
        return mica_fail_errno(error, failure, "%s: cannot read %" PRIu64 " bytes at offset %" PRIu64, file->path, bytes, offset);
    if (done < bytes) {
        return mica_fail(error, MICA_IO, "%s: short read at offset %" PRIu64 ": expected %" PRIu64 " bytes, got %" PRIu64, file->path,
                         offset, bytes, done);
    }
    return MICA_OK;
}

mica_status mica_file_read(const mica_file *file, uint64_t offset, void *buffer, uint64_t bytes, mica_error *error) {
    mica_status status = check_range(file, "read", offset, bytes, error);
    if (status != MICA_OK)
        return status;
    uint64_t done = 0;
    int failure = read_range(file->fd, offset, buffer, bytes, &done);
    return judge_read(file, offset, bytes, done, failure, error);
}

/* At worst WINDOW_BYTES - 1 bytes stand before the wanted ones; the end is rounded up. */
uint64_t mica_file_window_bytes(uint64_t bytes) {
    uint64_t window;
    return mica_add_u64(bytes, 2 * WINDOW_BYTES - 2, &window) ? window & ~(uint64_t)(WINDOW_BYTES - 1) : UINT64_MAX;
}

bool mica_file_is_direct(const mica_file *file) {
    return file->direct_fd >= 0;
}

/* Where the window around a range begins; its length. */
static uint64_t place_window(uint64_t offset, uint64_t bytes, uint64_t *window) {
    uint64_t start = offset & ~(uint64_t)(WINDOW_BYTES - 1);
    *window = (offset - start + bytes + WINDOW_BYTES - 1) & ~(uint64_t)(WINDOW_BYTES - 1);
    return start;
}

int mica_file_direct_window(const mica_file *file, uint64_t offset, uint64_t bytes, uint64_t *begin, uint64_t *window) {
    if (bytes == 0 || check_range(file, "read", offset, bytes, NULL) != MICA_OK)
        return -1;
    *begin = place_window(offset, bytes, window);
    return file->direct_fd;
}

mica_status mica_file_read_window(const mica_file *file, uint64_t offset, uint64_t bytes, void *buffer, const uint8_t **data,
                                  mica_error *error) {
    mica_status status = check_range(file, "read", offset, bytes, error);
    if (status != MICA_OK)
        return status;
    uint64_t window, start = place_window(offset, bytes, &window), lead = offset - start, needed = lead + bytes, done = 0;
    int failure = 0;
    if (file->direct_fd >= 0 && bytes > 0)
        failure = read_range(file->direct_fd, start, buffer, window, &done);
    /* The page cache serves what the direct descriptor cannot: file systems that refuse late (EINVAL), and the tail of a file
     * whose last direct read ended off the grid. A real error of the disk shows again here. */
    if (done < needed) {
        if (failure == 0 || failure == EINVAL)
            failure = read_range(file->fd, start, buffer, needed, &done);
    } else {
        failure = 0; /* only the padding behind the wanted bytes failed */
    }
    status = judge_read(file, offset, bytes, done > lead ? done - lead : 0, failure, error);
    if (status == MICA_OK)
        *data = (const uint8_t *)buffer + lead;
    return status;
}

static bool is_aligned(uint64_t bits) {
    return (bits & (WINDOW_BYTES - 1)) == 0;
}

mica_status mica_file_write(mica_file *file, uint64_t offset, const void *buffer, uint64_t bytes, mica_error *error) {
    mica_status status = check_range(file, "write", offset, bytes, error);
    uint64_t done = 0;
    while (status == MICA_OK && done < bytes) {
        uint64_t part = bytes - done < CALL_BYTES_MAX ? bytes - done : CALL_BYTES_MAX;
        const uint8_t *from = (const uint8_t *)buffer + done;
        const bool direct = file->direct_writes && is_aligned((uintptr_t)from | (offset + done) | part);
        ssize_t put = io->pwrite(direct ? file->direct_fd : file->fd, from, (size_t)part, (off_t)(offset + done));
        if (put < 0 && direct && errno == EINVAL) { /* a file system that refuses late */
            file->direct_writes = false;
            continue;
        }
        if (put > 0) {
            done += (uint64_t)put;
        } else if (put == 0) {
            status = mica_fail(error, MICA_IO, "%s: short write at offset %" PRIu64 ": expected %" PRIu64 " bytes, got %" PRIu64,
                               file->path, offset, bytes, done);
        } else if (errno != EINTR) {
            status = mica_fail_errno(error, errno, "%s: cannot write %" PRIu64 " bytes at offset %" PRIu64, file->path, bytes, offset);
        }
    }
    if (offset + done > file->bytes && done > 0)
        file->bytes = offset + done;
    return status;
}

mica_status mica_file_truncate(mica_file *file, uint64_t bytes, mica_error *error) {
    mica_status status = check_range(file, "set the size to", bytes, 0, error);
    if (status != MICA_OK)
        return status;
    int result;
    do {
        result = io->ftruncate(file->fd, (off_t)bytes);
    } while (result != 0 && errno == EINTR);
    if (result != 0)
        return mica_fail_errno(error, errno, "%s: cannot set its size to %" PRIu64 " bytes", file->path, bytes);
    file->bytes = bytes;
    return MICA_OK;
}

mica_status mica_file_sync(mica_file *file, mica_error *error) {
    int result;
    do {
        result = io->fsync(file->fd);
    } while (result != 0 && errno == EINTR);
    return result == 0 ? MICA_OK : mica_fail_errno(error, errno, "%s: cannot flush it to the disk", file->path);
}

mica_status mica_file_close(mica_file *file, mica_error *error) {
    mica_status status = MICA_OK;
    if (file) {
        if (file->direct_fd >= 0)
            io->close(file->direct_fd);
        if (io->close(file->fd) != 0 && errno != EINTR) { /* on Linux the descriptor is gone even after EINTR */
            status = mica_fail_errno(error, errno, "%s: cannot close it", file->path);
        }
        mica_free(file);
    }
    return status;
}

mica_status mica_file_load(const char *path, uint64_t limit, char **bytes, uint64_t *length, mica_error *error) {
    mica_file *file;
    mica_status status = mica_file_open(path, false, &file, error);
    if (status != MICA_OK)
        return status;
    uint64_t size = file->bytes;
    char *buffer = NULL;
    if (size > limit)
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected at most %" PRIu64 " bytes, got %" PRIu64, path, limit, size);
    else if (!(buffer = mica_malloc(size + 1)))
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for %" PRIu64 " bytes", path, size);
    else
        status = mica_file_read(file, 0, buffer, size, error);
    (void)mica_file_close(file, NULL); /* read only: nothing can be lost */
    if (status != MICA_OK) {
        mica_free(buffer);
        return status;
    }
    buffer[size] = 0;
    *bytes = buffer;
    *length = size;
    return MICA_OK;
}
