/* tests/base/copy_directory.h: the files of a directory, copied into another one; subdirectories are left out. */
#ifndef TESTS_BASE_COPY_DIRECTORY_H
#define TESTS_BASE_COPY_DIRECTORY_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

static inline void copy_directory(const char *from, const char *to) {
    char **names;
    uint64_t count;
    assert_int_equal(mica_directory_create(to, NULL), MICA_OK);
    assert_int_equal(mica_directory_list(from, &names, &count, NULL), MICA_OK);
    for (uint64_t i = 0; i < count; i++) {
        char *source = mica_path_join(from, names[i]), *target = mica_path_join(to, names[i]);
        if (!mica_path_is_directory(source)) {
            char *bytes = NULL;
            uint64_t length;
            assert_int_equal(mica_file_load(source, UINT64_C(1) << 30, &bytes, &length, NULL), MICA_OK);
            assert_int_equal(mica_file_replace(target, bytes, length, NULL), MICA_OK);
            mica_free(bytes);
        }
        mica_free(source);
        mica_free(target);
        mica_free(names[i]);
    }
    mica_free(names);
}

#endif
