/* Input: an importance matrix, .dat or GGUF. What is accepted has entries in order of their names, inside the file; every one can be asked
 * for, by the matrix, and gives values that are finite and not negative, or is refused in one line. */
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "formats/imatrix.h"

#include "fuzz.h"

static void ask(const mica_imatrix *imatrix, const mica_imatrix_entry *entry, const char *name) {
    const uint64_t matrices = entry->matrix_count, columns = entry->elements / matrices;
    mica_error error = {0};
    float *values = columns < (1u << 20) ? mica_reallocarray(NULL, columns + 1, sizeof *values) : NULL;
    if (!values)
        return;
    for (uint64_t m = 0; m < matrices && m < 4; m++) {
        const mica_status status = mica_imatrix_read(imatrix, entry, matrices, m, columns, values, &error);
        if (status != MICA_OK) {
            fuzz_check_refusal(status, &error, name);
            continue;
        }
        for (uint64_t i = 0; i < columns; i++)
            FUZZ_CHECK(isfinite(values[i]) && values[i] >= 0);
    }
    FUZZ_CHECK(mica_imatrix_read(imatrix, entry, matrices, 0, columns + 1, values, &error) != MICA_OK);
    mica_free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char name[64];
    mica_imatrix *imatrix = NULL;
    mica_error error = {0};
    const int file = memfd_create("imatrix", MFD_CLOEXEC);
    FUZZ_CHECK(file >= 0 && write(file, data, size) == (ssize_t)size);
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    const mica_status status = mica_imatrix_open(name, &imatrix, &error);
    if (status != MICA_OK) {
        fuzz_check_refusal(status, &error, name);
    } else {
        for (uint64_t i = 0; i < imatrix->entry_count; i++) {
            const mica_imatrix_entry *entry = &imatrix->entries[i];
            FUZZ_CHECK(i == 0 || strcmp(entry[-1].name, entry->name) < 0);
            FUZZ_CHECK(entry->matrix_count > 0 && entry->elements % entry->matrix_count == 0);
            FUZZ_CHECK(entry->offset <= size && entry->elements * sizeof(float) <= size - entry->offset);
            FUZZ_CHECK(mica_imatrix_find(imatrix, entry->name) != NULL);
            ask(imatrix, entry, name);
        }
        mica_imatrix_close(imatrix);
    }
    close(file);
    return 0;
}
