/* base/file.h: all input and output of the library, through one table of system calls (the fault seam).
 * Refuses: partial reads and writes (they are errors that name file, offset, expected and got bytes).
 * A mica_file may be read from several threads at once; writing is the caller's to serialise. */
#ifndef MICA_BASE_FILE_H
#define MICA_BASE_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/error.h"

struct iocb;
struct io_event;

/* The seam. Tests install a table that fails on purpose; the default is the operating system's. */
typedef struct mica_io {
    int (*open)(const char *path, int flags, mode_t mode);
    int (*close)(int fd);
    int (*fstat)(int fd, struct stat *status);
    ssize_t (*pread)(int fd, void *buffer, size_t bytes, off_t offset);
    ssize_t (*pwrite)(int fd, const void *buffer, size_t bytes, off_t offset);
    int (*fsync)(int fd);
    int (*ftruncate)(int fd, off_t bytes);
    int (*rename)(const char *from, const char *to);
    int (*unlink)(const char *path);
    /* The kernel's queue of reads (base/read_queue), by the system's names and with its structures. NULL: there is none. */
    long (*io_setup)(unsigned depth, unsigned long *queue);
    long (*io_submit)(unsigned long queue, long count, struct iocb **controls);
    long (*io_getevents)(unsigned long queue, long least, long most, struct io_event *events); /* waits for `least` */
    long (*io_destroy)(unsigned long queue);
} mica_io;
const mica_io *mica_io_install(const mica_io *table); /* NULL restores the default; returns the former one */
const mica_io *mica_io_current(void);

typedef struct mica_file mica_file;

/* Opens a regular file (links are followed; a directory, a device or a pipe is BAD_INPUT). `direct` asks for O_DIRECT
 * as well; where the file system refuses it, reads are buffered, silently: the bytes are the same. */
mica_status mica_file_open(const char *path, bool direct, mica_file **file, mica_error *error) MICA_CHECKED;

/* Creates or truncates (mode 0666 & ~umask). mica_file_open_update opens an existing file for reading and writing. */
mica_status mica_file_create(const char *path, mica_file **file, mica_error *error) MICA_CHECKED;
mica_status mica_file_open_update(const char *path, mica_file **file, mica_error *error) MICA_CHECKED;

/* From now on a write whose buffer, offset and length are multiples of 4096 bypasses the page cache, where the file system lets it; any
 * other, and everywhere else, is buffered, silently: the bytes are the same. mica_file_sync is needed either way. */
void mica_file_write_directly(mica_file *file);

const char *mica_file_path(const mica_file *file);
uint64_t mica_file_bytes(const mica_file *file); /* size when opened, or as extended by writes */

mica_status mica_file_read(const mica_file *file, uint64_t offset, void *buffer, uint64_t bytes, mica_error *error) MICA_CHECKED;
mica_status mica_file_write(mica_file *file, uint64_t offset, const void *buffer, uint64_t bytes, mica_error *error) MICA_CHECKED;
mica_status mica_file_truncate(mica_file *file, uint64_t bytes, mica_error *error) MICA_CHECKED;
mica_status mica_file_sync(mica_file *file, mica_error *error) MICA_CHECKED;
mica_status mica_file_close(mica_file *file, mica_error *error); /* frees `file` in any case; NULL is fine */

/* Direct reading: reads the 4 KiB-aligned window around [offset, offset+bytes) into `buffer` (4096-aligned, at least
 * mica_file_window_bytes() long) and gives where in it the wanted bytes begin. */
uint64_t mica_file_window_bytes(uint64_t bytes); /* enough for any offset */
bool mica_file_is_direct(const mica_file *file); /* open for direct reading */
/* For who reads such a window himself: the descriptor, and where the window begins and how long it is. -1: not direct, or no range of a
 * file. */
int mica_file_direct_window(const mica_file *file, uint64_t offset, uint64_t bytes, uint64_t *begin, uint64_t *window);
mica_status mica_file_read_window(const mica_file *file, uint64_t offset, uint64_t bytes, void *buffer, const uint8_t **data,
                                  mica_error *error) MICA_CHECKED;

/* Whole small files. `limit` bounds what is read (BAD_INPUT beyond it). The text is NUL-terminated; mica_free it. */
mica_status mica_file_load(const char *path, uint64_t limit, char **bytes, uint64_t *length, mica_error *error) MICA_CHECKED;

/* Atomic replacement: writes "path.partial", syncs, renames, syncs the directory. Nothing half-written stays. */
mica_status mica_file_replace(const char *path, const void *bytes, uint64_t length, mica_error *error) MICA_CHECKED;
mica_status mica_file_rename(const char *from, const char *to, mica_error *error) MICA_CHECKED; /* and syncs the directory */
mica_status mica_file_remove(const char *path, mica_error *error);                                /* absent is fine */

mica_status mica_directory_create(const char *path, mica_error *error) MICA_CHECKED; /* existing is fine; parents are not made */
mica_status mica_directory_sync(const char *path, mica_error *error) MICA_CHECKED; /* makes new and removed names durable */
mica_status mica_directory_sync_parent(const char *path, mica_error *error) MICA_CHECKED; /* of the directory that `path` is in */
/* One process at a time works in a directory, or beside a file: flock, which a killed process gives back. *lock is for mica_path_unlock; -1
 * where the file system has no locks. CONFLICT when another has it: "PATH: " and `busy`. */
mica_status mica_path_lock(const char *path, const char *busy, int *lock, mica_error *error) MICA_CHECKED;
void mica_path_unlock(int lock); /* -1 is fine */
bool mica_path_exists(const char *path);
bool mica_path_is_same(const char *a, const char *b); /* one file, whatever links lead there; false where either is none */
/* Is there a file of that name in it? Needs no memory, so that a failing allocation cannot read as "no"; a path over PATH_MAX is none. */
bool mica_directory_has(const char *directory, const char *name);
bool mica_path_is_directory(const char *path);
char *mica_path_link_target(const char *path); /* what a symbolic link says (mica_free); NULL when it is none */
/* Names in a directory, sorted bytewise, without "." and ".."; NULL when there are none. */
mica_status mica_directory_list(const char *path, char ***names, uint64_t *count, mica_error *error) MICA_CHECKED;
void mica_directory_names_free(char **names, uint64_t count);

#endif
