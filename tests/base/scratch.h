/* tests/base/scratch.h: a directory of its own for each test program, removed at the end. */
#ifndef TESTS_BASE_SCRATCH_H
#define TESTS_BASE_SCRATCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

#define SCRATCH_PATH_BYTES 1024

static char scratch_directory[256];

static inline int scratch_make(void **state) {
    (void)state;
    const char *parent = getenv("TMPDIR");
    snprintf(scratch_directory, sizeof scratch_directory, "%s/mica-test-XXXXXX", parent ? parent : P_tmpdir);
    return mkdtemp(scratch_directory) ? 0 : -1;
}

/* The path of `name` in the directory; valid until the eighth call from then. */
static inline const char *scratch(const char *name) {
    static char paths[8][SCRATCH_PATH_BYTES];
    static int turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_directory, name);
    return path;
}

static inline void scratch_write(const char *name, const void *bytes, size_t length) {
    FILE *file = fopen(scratch(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

static inline int scratch_remove_tree(const char *path) {
    char **names = NULL;
    uint64_t count = 0;
    mica_error error;
    if (unlink(path) == 0)
        return 0;
    if (mica_directory_list(path, &names, &count, &error) != MICA_OK)
        return -1;
    for (uint64_t i = 0; i < count; i++) {
        char *below = mica_path_join(path, names[i]);
        if (below)
            scratch_remove_tree(below);
        mica_free(below);
        mica_free(names[i]);
    }
    mica_free(names);
    return rmdir(path);
}

static inline int scratch_remove(void **state) {
    (void)state;
    return scratch_remove_tree(scratch_directory);
}

#endif
