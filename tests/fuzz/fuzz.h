/* tests/fuzz/fuzz.h: what every target checks: it stops the process where a promise of the parser is broken. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_CHECK(condition)                                                              \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);        \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

/* A refusal: a status for bad files, and one line of UTF-8 that names the file. */
static inline void fuzz_check_refusal(mica_status status, const mica_error *error, const char *file) {
    FUZZ_CHECK(status == MICA_BAD_INPUT || status == MICA_CORRUPT || status == MICA_NO_MEMORY);
    FUZZ_CHECK(error->status == status);
    size_t length = strnlen(error->message, sizeof error->message);
    FUZZ_CHECK(length < sizeof error->message);
    FUZZ_CHECK(strncmp(error->message, file, strlen(file)) == 0);
    for (size_t at = 0, sequence; at < length; at += sequence) {
        sequence = mica_utf8_sequence(error->message + at, length - at);
        FUZZ_CHECK(sequence > 0 && (unsigned char)error->message[at] >= 0x20);
    }
}

#endif
