/* formats/tiktoken.h: a vocabulary as tiktoken keeps it: one line a token, its bytes in base64, a space, its rank, which is its id too.
 * Refuses: what is not base64 or not a rank, a rank twice, a hole in the ranks, a file without tokens. Empty lines and CR LF are fine,
 * the order of the lines is free. Judged by tests/formats/test_tiktoken.c and tests/fuzz/fuzz_tiktoken.c. */
#ifndef MICA_FORMATS_TIKTOKEN_H
#define MICA_FORMATS_TIKTOKEN_H

#include <stdint.h>

#include "base/error.h"

#define MICA_RANKS_MAX (1u << 24)

typedef struct mica_ranks {
    uint8_t *bytes;   /* of all tokens, by rank */
    uint32_t *starts; /* [count + 1]: token r is bytes[starts[r]] up to bytes[starts[r + 1]]; none is empty */
    uint32_t count;
} mica_ranks;

/* `name` is what messages call the file. Two tokens of the same bytes are not looked for. */
mica_status mica_ranks_parse(const char *name, const char *text, uint64_t length, mica_ranks *ranks, mica_error *error) MICA_CHECKED;
void mica_ranks_release(mica_ranks *ranks);

#endif
