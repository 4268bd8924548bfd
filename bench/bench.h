/* bench/bench.h: what the programs that measure share: ending with a sentence, medians, lists on the command line, paths, a directory of their own. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

__attribute__((unused)) static mica_error error; /* what check tells of */

__attribute__((format(printf, 1, 2), noreturn, unused)) static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static inline void check(mica_status status) {
    if (status != MICA_OK)
        fail("%s", error.message);
}

static inline void *need(void *pointer) {
    if (!pointer)
        fail("out of memory");
    return pointer;
}

static inline char *path_of(const char *directory, const char *name) { /* mica_free it */
    return need(mica_path_join(directory, name));
}

static inline int compare_doubles(const void *a, const void *b) {
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Sorts them; of an even number the upper one. */
static inline double median(double *values, uint64_t count) {
    qsort(values, count, sizeof *values, compare_doubles);
    return values[count / 2];
}

/* "8,16,32" into `list`; returns how many. */
static inline uint64_t parse_list(const char *option, const char *text, uint64_t *list, uint64_t most) {
    uint64_t count = 0;
    for (;;) {
        char *end;
        if (count == most)
            fail("%s: expected at most %llu numbers", option, (unsigned long long)most);
        list[count++] = strtoull(text, &end, 10);
        if (end == text || (*end != ',' && *end != '\0'))
            fail("%s: expected numbers, as in 8,16,32", option);
        if (*end == '\0')
            return count;
        text = end + 1;
    }
}

/* Writes out what is dirty of a file and drops it from the page cache; its size. */
static inline uint64_t drop_from_cache(const char *path) {
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (descriptor < 0 || fstat(descriptor, &status) != 0)
        fail("%s: %m", path);
    (void)fdatasync(descriptor);
    (void)posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
    close(descriptor);
    return (uint64_t)status.st_size;
}

/* The same of every file of a directory; the sum. */
static inline uint64_t drop_files_from_cache(const char *directory) {
    char **names = NULL;
    uint64_t count = 0, bytes = 0;
    check(mica_directory_list(directory, &names, &count, &error));
    for (uint64_t i = 0; i < count; i++) {
        char *path = path_of(directory, names[i]);
        bytes += drop_from_cache(path);
        mica_free(path);
    }
    mica_directory_names_free(names, count);
    return bytes;
}

static inline int remove_one(const char *path, const struct stat *status, int kind, struct FTW *where) {
    (void)status, (void)kind, (void)where;
    return remove(path);
}

static inline void remove_tree(const char *path) {
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0 && mica_path_exists(path))
        fail("%s: cannot remove it: %m", path);
}

/* A new directory below TMPDIR; static, one a program. */
static inline char *make_directory(void) {
    static char directory[1024];
    const char *parent = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/mica-bench-XXXXXX", parent ? parent : P_tmpdir);
    if (!mkdtemp(directory))
        fail("%s: %m", directory);
    return directory;
}

#endif
