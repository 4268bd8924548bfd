/* base/directory.c: the names of files: atomic replacement, renaming, removal, listing. Declared in base/file.h.
 * Invariant: a name means the old file or the whole new one, also after a power cut. Judged by tests/base/test_file.c. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

/* File systems that cannot sync a directory say EINVAL. */
mica_status mica_directory_sync(const char *path, mica_error *error) {
    const mica_io *io = mica_io_current();
    mica_status status = MICA_OK;
    int fd = io->open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0)
        return mica_fail_errno(error, errno, "%s: cannot open the directory", path);
    if (io->fsync(fd) != 0 && errno != EINVAL)
        status = mica_fail_errno(error, errno, "%s: cannot flush the directory to the disk", path);
    io->close(fd);
    return status;
}

mica_status mica_directory_sync_parent(const char *path, mica_error *error) {
    const char *slash = strrchr(path, '/');
    char *parent = !slash ? mica_strdup(".") : mica_strndup(path, slash == path ? 1 : (size_t)(slash - path));
    if (!parent)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
    mica_status status = mica_directory_sync(parent, error);
    mica_free(parent);
    return status;
}

mica_status mica_file_rename(const char *from, const char *to, mica_error *error) {
    if (mica_io_current()->rename(from, to) != 0)
        return mica_fail_errno(error, errno, "%s: cannot rename it to %s", from, to);
    return mica_directory_sync_parent(to, error);
}

mica_status mica_file_remove(const char *path, mica_error *error) {
    if (mica_io_current()->unlink(path) != 0 && errno != ENOENT)
        return mica_fail_errno(error, errno, "%s: cannot remove it", path);
    return MICA_OK;
}

static mica_status write_whole(const char *path, const void *bytes, uint64_t length, mica_error *error) {
    mica_file *file;
    mica_status status = mica_file_create(path, &file, error);
    if (status != MICA_OK)
        return status;
    status = mica_file_write(file, 0, bytes, length, error);
    if (status == MICA_OK)
        status = mica_file_sync(file, error);
    mica_status closed = mica_file_close(file, status == MICA_OK ? error : NULL);
    return status == MICA_OK ? closed : status;
}

mica_status mica_file_replace(const char *path, const void *bytes, uint64_t length, mica_error *error) {
    mica_text partial = MICA_TEXT_INIT;
    mica_text_printf(&partial, "%s.partial", path);
    if (mica_text_failed(&partial)) {
        mica_text_release(&partial);
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
    }
    mica_status status = write_whole(partial.bytes, bytes, length, error);
    if (status == MICA_OK)
        status = mica_file_rename(partial.bytes, path, error);
    if (status != MICA_OK)
        mica_file_remove(partial.bytes, NULL); /* the first failure is the one to tell */
    mica_text_release(&partial);
    return status;
}

bool mica_path_exists(const char *path) {
    struct stat status;
    return stat(path, &status) == 0;
}

bool mica_path_is_same(const char *a, const char *b) {
    struct stat left, right;
    return stat(a, &left) == 0 && stat(b, &right) == 0 && left.st_dev == right.st_dev && left.st_ino == right.st_ino;
}

bool mica_directory_has(const char *directory, const char *name) {
    char path[PATH_MAX];
    const int length = snprintf(path, sizeof path, "%s%s%s", directory, *directory ? "/" : "", name);
    return length > 0 && (size_t)length < sizeof path && mica_path_exists(path);
}

bool mica_path_is_directory(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

char *mica_path_link_target(const char *path) {
    char target[4096];
    ssize_t length = readlink(path, target, sizeof target);
    return length < 0 || (size_t)length == sizeof target ? NULL : mica_strndup(target, (size_t)length);
}

mica_status mica_directory_create(const char *path, mica_error *error) {
    if (mkdir(path, 0777) == 0)
        return mica_directory_sync_parent(path, error);
    int failure = errno;
    if (failure == EEXIST && mica_path_is_directory(path))
        return MICA_OK;
    return mica_fail_errno(error, failure, "%s: cannot create the directory", path);
}

mica_status mica_path_lock(const char *path, const char *busy, int *lock, mica_error *error) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return mica_fail_errno(error, errno, "%s: cannot open", path);
    *lock = fd;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return MICA_OK;
    const bool taken = errno == EWOULDBLOCK;
    close(fd);
    *lock = -1;
    return taken ? mica_fail(error, MICA_CONFLICT, "%s: %s", path, busy) : MICA_OK;
}

void mica_path_unlock(int lock) {
    if (lock >= 0)
        close(lock);
}

typedef struct name_list {
    char **names;
    uint64_t count, capacity;
} name_list;

void mica_directory_names_free(char **names, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        mica_free(names[i]);
    mica_free(names);
}

static bool add_name(name_list *list, const char *name) {
    if (list->count == list->capacity) {
        uint64_t capacity = list->capacity ? 2 * list->capacity : 16;
        char **names = mica_reallocarray(list->names, capacity, sizeof *names);
        if (!names)
            return false;
        list->names = names;
        list->capacity = capacity;
    }
    list->names[list->count] = mica_strdup(name);
    return list->names[list->count] != NULL && ++list->count > 0;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static mica_status read_names(DIR *directory, const char *path, name_list *list, mica_error *error) {
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (!entry)
            return errno == 0 ? MICA_OK : mica_fail_errno(error, errno, "%s: cannot list the directory", path);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 && !add_name(list, entry->d_name))
            return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its %" PRIu64 " names", path, list->count + 1);
    }
}

mica_status mica_directory_list(const char *path, char ***names, uint64_t *count, mica_error *error) {
    DIR *directory = opendir(path);
    if (!directory)
        return mica_fail_errno(error, errno, "%s: cannot open the directory", path);
    name_list list = {NULL, 0, 0};
    mica_status status = read_names(directory, path, &list, error);
    closedir(directory);
    if (status != MICA_OK) {
        mica_directory_names_free(list.names, list.count);
        return status;
    }
    if (list.count > 0)
        qsort(list.names, list.count, sizeof *list.names, compare_names);
    *names = list.names; /* NULL when the directory is empty */
    *count = list.count;
    return MICA_OK;
}
