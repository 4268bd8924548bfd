/* tests/formats/shards.h: headers and shards built in the test itself, and the check of a refusal's sentence. */
#ifndef TESTS_FORMATS_SHARDS_H
#define TESTS_FORMATS_SHARDS_H

#include "base/scratch.h"

/* Every part must be in the message; "a|b": either. Parts end with NULL. */
static inline void assert_says(const char *what, const char *message, const char *const *parts) {
    for (; *parts; parts++) {
        char copy[512], *rest = copy, *choice;
        bool found = false;
        assert_true(strlen(*parts) < sizeof copy);
        strcpy(copy, *parts);
        while ((choice = strsep(&rest, "|")))
            found = found || strstr(message, choice);
        if (!found)
            fail_msg("%s: expected \"%s\" in the message, got \"%s\"", what, *parts, message);
    }
}

/* Header length, header, data_bytes zero bytes. */
static inline void write_shard(const char *name, const char *header, size_t data_bytes) {
    size_t length = strlen(header);
    char *bytes = calloc(1, 8 + length + data_bytes);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)((uint64_t)length >> 8 * i);
    memcpy(bytes + 8, header, length);
    scratch_write(name, bytes, 8 + length + data_bytes);
    free(bytes);
}

#endif
