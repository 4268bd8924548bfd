/* bench_tokenize: bench_tokenize [--rounds N] CHECKPOINT FILE...: ms to open the tokenizer, and MB/s of encoding and decoding each file
 * on one thread, by that thread's processor time; the best of N rounds. bench/compare_tokenizers.py runs it beside tiktoken. */
#include <mica/checkpoint.h>
#include <mica/tokenizer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/memory.h"
#include "bench.h"

static int measure(const mica_tokenizer *tokenizer, const char *path, int rounds) {
    char *text = NULL, *decoded = NULL;
    uint64_t length, count = 0, decoded_length;
    uint32_t *ids = NULL;
    double encode = 1e9, decode = 1e9;
    check(mica_file_load(path, UINT64_C(1) << 30, &text, &length, &error));
    for (int round = 0; round < rounds; round++) {
        mica_ids_free(ids);
        mica_string_free(decoded);
        double start = mica_thread_seconds_now();
        check(mica_tokenizer_encode(tokenizer, text, length, false, &ids, &count, &error));
        double middle = mica_thread_seconds_now();
        check(mica_tokenizer_decode(tokenizer, ids, count, &decoded, &decoded_length, &error));
        double end = mica_thread_seconds_now();
        encode = middle - start < encode ? middle - start : encode;
        decode = end - middle < decode ? end - middle : decode;
    }
    printf("%s %.2f MB, %.2f bytes an id, encode %.2f MB/s, decode %.0f MB/s\n", path, (double)length * 1e-6,
           (double)length / (double)(count ? count : 1), (double)length * 1e-6 / encode, (double)length * 1e-6 / decode);
    mica_ids_free(ids);
    mica_string_free(decoded);
    mica_free(text);
    return 0;
}

int main(int count, char **arguments) {
    int first = 1, rounds = 5, status = 0;
    mica_tokenizer *tokenizer = NULL;
    if (count > 2 && strcmp(arguments[1], "--rounds") == 0) {
        rounds = atoi(arguments[2]);
        first = 3;
    }
    if (count <= first || rounds < 1) {
        fprintf(stderr, "usage: %s [--rounds N] CHECKPOINT FILE...\n", arguments[0]);
        return 2;
    }
    double best = 1e9;
    for (int round = 0; round < rounds; round++) {
        mica_tokenizer_close(tokenizer);
        double start = mica_thread_seconds_now();
        check(mica_tokenizer_open(arguments[first], &tokenizer, &error));
        double end = mica_thread_seconds_now();
        best = end - start < best ? end - start : best;
    }
    printf("open %.1f ms, %u ids\n", best * 1e3, mica_tokenizer_count(tokenizer));
    for (int i = first + 1; i < count && status == 0; i++)
        status = measure(tokenizer, arguments[i], rounds);
    mica_tokenizer_close(tokenizer);
    return status;
}
