/* tests/interop/tokenize_texts.c: tokenize_texts CHECKPOINT: texts from the standard input to ids on the standard output, for the
 * scripts here, which have ten thousands of them. In: a byte (1: with special tokens; 2 more: the text may come back otherwise,
 * composed), the length (8 bytes, little-endian), the text. Out: the count, the ids (4 bytes each), the length of what they decode to,
 * and that. Every text is decoded again, and compared. */
#include <mica/tokenizer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mica/checkpoint.h>

static int fail(const char *what) {
    fprintf(stderr, "tokenize_texts: %s\n", what);
    return 1;
}

static int one(const mica_tokenizer *tokenizer, uint8_t how, const char *text, uint64_t length, mica_error *error) {
    uint32_t *ids = NULL;
    uint64_t count, bytes;
    char *decoded = NULL;
    if (mica_tokenizer_encode(tokenizer, text, length, how & 1, &ids, &count, error) != MICA_OK ||
        mica_tokenizer_decode(tokenizer, ids, count, &decoded, &bytes, error) != MICA_OK)
        return fail(error->message);
    if (!(how & 2) && (bytes != length || memcmp(decoded, text, length) != 0))
        return fail("decoding did not give the text");
    fwrite(&count, sizeof count, 1, stdout);
    if (count > 0)
        fwrite(ids, sizeof *ids, count, stdout);
    fwrite(&bytes, sizeof bytes, 1, stdout);
    fwrite(decoded, 1, bytes, stdout);
    mica_ids_free(ids);
    mica_string_free(decoded);
    return 0;
}

int main(int count, char **arguments) {
    mica_tokenizer *tokenizer;
    mica_error error;
    if (count != 2)
        return fail("expected a checkpoint");
    if (mica_tokenizer_open(arguments[1], &tokenizer, &error) != MICA_OK)
        return fail(error.message);
    uint8_t how;
    int status = 0;
    while (status == 0 && fread(&how, 1, 1, stdin) == 1) {
        uint64_t length;
        if (fread(&length, sizeof length, 1, stdin) != 1)
            return fail("the input ends too early");
        char *text = malloc(length + 1); /* one more, so that an empty one is something */
        if (!text || fread(text, 1, length, stdin) != length)
            return fail("the input ends too early");
        status = one(tokenizer, how, text, length, &error);
        free(text);
    }
    mica_tokenizer_close(tokenizer);
    return status;
}
