/* Input: one byte, then a journal. An odd first byte has every record's checksum made right first, since no mutation would hit SHA-256.
 * What is replayed must be replayed again after the torn tail was cut, and what is appended must come behind it. */
#include "base/journal.h"

#include <sys/mman.h>
#include <unistd.h>

#include "base/hash.h"
#include "fuzz.h"

enum { MAGIC_BYTES = 8, PREFIX_BYTES = 8, CHECK_BYTES = 8 };

typedef struct replayed {
    uint64_t count, bytes, sum;
} replayed;

static mica_status visit(void *context, uint32_t kind, const uint8_t *payload, uint64_t bytes, mica_error *error) {
    replayed *seen = context;
    (void)error;
    FUZZ_CHECK(seen->count > 0 || kind == MICA_JOURNAL_HEAD);
    seen->count++;
    seen->bytes += bytes + PREFIX_BYTES + CHECK_BYTES;
    for (uint64_t i = 0; i < bytes; i++)
        seen->sum = seen->sum * 31 + payload[i] + kind;
    return MICA_OK;
}

static void repair(uint8_t *journal, uint64_t size) {
    uint8_t digest[MICA_SHA256_BYTES];
    for (uint64_t at = MAGIC_BYTES; size - at >= PREFIX_BYTES + CHECK_BYTES;) {
        uint64_t payload = journal[at] | (uint64_t)journal[at + 1] << 8 | (uint64_t)journal[at + 2] << 16 | (uint64_t)journal[at + 3] << 24;
        if (payload > size - at - PREFIX_BYTES - CHECK_BYTES)
            return;
        FUZZ_CHECK(mica_sha256_of(journal + at, PREFIX_BYTES + payload, digest, NULL) == MICA_OK);
        memcpy(journal + at + PREFIX_BYTES + payload, digest, CHECK_BYTES);
        at += PREFIX_BYTES + payload + CHECK_BYTES;
    }
}

/* The memory file that every run uses again. */
static int journal_file(char path[32]) {
    static int file = -1;
    if (file < 0)
        file = memfd_create("journal", MFD_CLOEXEC);
    FUZZ_CHECK(file >= 0);
    snprintf(path, 32, "/proc/self/fd/%d", file);
    return file;
}

static void check_replay_again(const char *path, const replayed *first) {
    mica_error error = {0};
    mica_journal *journal = NULL;
    replayed second = {0}, third = {0};
    FUZZ_CHECK(mica_journal_open(path, visit, &second, &journal, &error) == MICA_OK);
    FUZZ_CHECK(memcmp(first, &second, sizeof second) == 0);
    FUZZ_CHECK(mica_journal_append(journal, 7, "more", 4, &error) == MICA_OK);
    mica_journal_close(journal);
    FUZZ_CHECK(mica_journal_open(path, visit, &third, &journal, &error) == MICA_OK);
    mica_journal_close(journal);
    FUZZ_CHECK(third.count == second.count + 1 && third.bytes == second.bytes + PREFIX_BYTES + CHECK_BYTES + 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[32];
    int file = journal_file(path);
    if (size == 0 || size > 1 << 20)
        return 0;
    uint8_t *copy = malloc(size);
    FUZZ_CHECK(copy);
    memcpy(copy, data + 1, size - 1);
    if (data[0] % 2 && size - 1 >= MAGIC_BYTES)
        repair(copy, size - 1);
    FUZZ_CHECK(ftruncate(file, 0) == 0 && pwrite(file, copy, size - 1, 0) == (ssize_t)size - 1);
    free(copy);
    mica_journal *journal = NULL;
    mica_error error = {0};
    replayed seen = {0};
    mica_status status = mica_journal_open(path, visit, &seen, &journal, &error);
    if (status != MICA_OK) {
        fuzz_check_refusal(status, &error, path);
        return 0;
    }
    mica_journal_close(journal);
    FUZZ_CHECK(seen.count > 0 && lseek(file, 0, SEEK_END) == (off_t)(MAGIC_BYTES + seen.bytes));
    check_replay_again(path, &seen);
    return 0;
}
