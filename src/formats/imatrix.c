/* formats/imatrix.c: see the header. The .dat format: i32 entries; per entry i32 length, name, i32 calls, i32 values, f32 mean[values] *
 * calls; a tail that is not needed. Refuses lengths beyond the file. Judged by tests/formats/test_imatrix.c and tests/fuzz. */
#include "formats/imatrix.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "formats/gguf.h"

#define NAME_BYTES_MAX 1024
#define ENTRIES_MAX (1 << 20)
static const char sums_suffix[] = ".in_sum2", counts_suffix[] = ".counts";

static mica_status no_memory(const char *path, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory for its entries", path);
}

void mica_imatrix_close(mica_imatrix *imatrix) {
    if (!imatrix)
        return;
    (void)mica_file_close(imatrix->file, NULL);
    mica_free(imatrix->names);
    mica_free(imatrix->counts);
    mica_free(imatrix->entries);
    for (uint64_t i = 0; i < imatrix->covariance_count; i++)
        mica_free((char *)imatrix->covariances[i].name);
    mica_free(imatrix->covariances);
    mica_free(imatrix->covariance_of);
    for (uint64_t i = 0; i < imatrix->sensitivity_count; i++) {
        mica_free(imatrix->sensitivities[i].name);
        mica_free(imatrix->sensitivities[i].values);
    }
    mica_free(imatrix->sensitivities);
    mica_free(imatrix);
}

/* While it is built, names and counts are growing texts, and entries hold places in them. */
typedef struct builder {
    mica_imatrix *imatrix;
    mica_text names, counts;
    uint64_t capacity;
} builder;

static mica_imatrix_entry *add_entry(builder *b, const char *name, uint64_t length) {
    mica_imatrix *imatrix = b->imatrix;
    if (imatrix->entry_count == b->capacity) {
        b->capacity = 2 * b->capacity + 64;
        mica_imatrix_entry *grown = mica_reallocarray(imatrix->entries, b->capacity, sizeof *grown);
        if (!grown)
            return NULL;
        imatrix->entries = grown;
    }
    mica_imatrix_entry *entry = &imatrix->entries[imatrix->entry_count++];
    *entry = (mica_imatrix_entry){.name = (const char *)(uintptr_t)b->names.length, .counts = (const float *)(uintptr_t)b->counts.length};
    mica_text_append(&b->names, name, length);
    mica_text_append(&b->names, "", 1);
    return entry;
}

/* ---- GGUF */

static mica_status read_gguf(builder *b, const char *path, mica_error *error) {
    mica_imatrix *imatrix = b->imatrix;
    mica_gguf gguf;
    mica_gguf_string type = {NULL, 0};
    mica_status status = mica_gguf_read(imatrix->file, path, &gguf, error);
    if (status != MICA_OK)
        return status;
    status = mica_gguf_text_if_present(&gguf, "general.type", &type, error);
    if (status == MICA_OK && (type.length != 7 || memcmp(type.bytes, "imatrix", 7) != 0))
        status = mica_fail(error, MICA_BAD_INPUT, "%s: key general.type: expected \"imatrix\", got another of %llu bytes", path,
                           (unsigned long long)type.length);
    for (uint64_t i = 0; status == MICA_OK && i < gguf.tensor_count; i++) {
        const mica_tensor *sums = &gguf.tensors[i], *counts = NULL;
        const size_t length = strlen(sums->name), tail = sizeof sums_suffix - 1;
        char name[MICA_GGUF_TENSOR_NAME_BYTES + sizeof counts_suffix];
        if (length <= tail || strcmp(sums->name + length - tail, sums_suffix) != 0)
            continue;
        snprintf(name, sizeof name, "%.*s%s", (int)(length - tail), sums->name, counts_suffix);
        for (uint64_t j = 0; !counts && j < gguf.tensor_count; j++)
            counts = strcmp(gguf.tensors[j].name, name) == 0 ? &gguf.tensors[j] : NULL;
        if (!counts || counts->dtype != MICA_F32 || sums->dtype != MICA_F32 || counts->elements == 0 ||
            sums->elements % counts->elements != 0) {
            status = mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected F32, and beside it %s with one count for each matrix", path,
                               sums->name, name);
            break;
        }
        float *values = mica_malloc(counts->bytes);
        mica_imatrix_entry *entry = add_entry(b, sums->name, length - tail);
        status = values && entry ? mica_file_read(imatrix->file, counts->offset, values, counts->bytes, error) : no_memory(path, error);
        if (status == MICA_OK) {
            entry->elements = sums->elements;
            entry->offset = sums->offset;
            entry->matrix_count = counts->elements;
            mica_text_append(&b->counts, (const char *)values, counts->bytes);
        }
        mica_free(values);
    }
    if (status == MICA_OK)
        status = mica_imatrix_list_covariances(imatrix, &gguf, error);
    if (status == MICA_OK)
        status = mica_imatrix_list_sensitivities(imatrix, &gguf, error);
    mica_gguf_release(&gguf);
    return status;
}

/* ---- .dat */

/* BAD_INPUT where the file ends before `bytes` from `at` on. */
static mica_status check_room(const mica_file *file, uint64_t at, uint64_t bytes, mica_error *error) {
    if (at <= mica_file_bytes(file) && bytes <= mica_file_bytes(file) - at)
        return MICA_OK;
    return mica_fail(error, MICA_BAD_INPUT, "%s: expected %llu bytes from %llu on, got a file of %llu", mica_file_path(file),
                     (unsigned long long)bytes, (unsigned long long)at, (unsigned long long)mica_file_bytes(file));
}

static mica_status read_i32(const mica_file *file, uint64_t *at, int32_t *value, mica_error *error) {
    mica_status status = check_room(file, *at, sizeof *value, error);
    if (status == MICA_OK)
        status = mica_file_read(file, *at, value, sizeof *value, error);
    *at += sizeof *value;
    return status;
}

/* Names go into messages: UTF-8 without control characters, as a GGUF's are checked to be. */
static bool is_name(const char *name, uint64_t length) {
    for (uint64_t at = 0, sequence; at < length; at += sequence) {
        sequence = mica_utf8_sequence(name + at, length - at);
        if (sequence == 0 || (unsigned char)name[at] < 0x20)
            return false;
    }
    return true;
}

static mica_status read_dat(builder *b, const char *path, mica_error *error) {
    const mica_file *file = b->imatrix->file;
    int32_t entries = 0;
    uint64_t at = 0;
    mica_status status = read_i32(file, &at, &entries, error);
    if (status == MICA_OK && (entries < 1 || entries > ENTRIES_MAX))
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected an importance matrix (GGUF, or .dat of 1 to %d entries), got %d", path,
                         ENTRIES_MAX, entries);
    for (int32_t i = 0; status == MICA_OK && i < entries; i++) {
        int32_t length = 0, calls = 0, values = 0;
        char name[NAME_BYTES_MAX];
        status = read_i32(file, &at, &length, error);
        if (status == MICA_OK && (length < 1 || length >= NAME_BYTES_MAX))
            return mica_fail(error, MICA_BAD_INPUT, "%s: entry %d: expected a name of 1 to %d bytes, got %d", path, i, NAME_BYTES_MAX - 1,
                             length);
        if (status == MICA_OK)
            status = check_room(file, at, (uint64_t)length, error);
        if (status == MICA_OK)
            status = mica_file_read(file, at, name, (uint64_t)length, error);
        if (status == MICA_OK && !is_name(name, (uint64_t)length))
            return mica_fail(error, MICA_BAD_INPUT, "%s: entry %d: expected a name in UTF-8 without control characters", path, i);
        at += (uint64_t)length;
        if (status == MICA_OK)
            status = read_i32(file, &at, &calls, error);
        if (status == MICA_OK)
            status = read_i32(file, &at, &values, error);
        if (status == MICA_OK && (values < 1 || calls < 0 || (uint64_t)values * sizeof(float) > mica_file_bytes(file) - at))
            return mica_fail(error, MICA_BAD_INPUT, "%s: entry %d (%.*s): expected values in the file's %llu bytes, got %d of them at %llu",
                             path, i, length, name, (unsigned long long)mica_file_bytes(file), values, (unsigned long long)at);
        if (status != MICA_OK)
            return status;
        mica_imatrix_entry *entry = add_entry(b, name, (uint64_t)length);
        if (!entry)
            return no_memory(path, error);
        const float count = (float)(calls > 0 ? calls : 1);
        entry->elements = (uint64_t)values;
        entry->offset = at;
        entry->matrix_count = 1;
        mica_text_append(&b->counts, (const char *)&count, sizeof count);
        at += (uint64_t)values * sizeof(float);
    }
    return status;
}

/* ---- */

static int compare_entries(const void *a, const void *b) {
    return strcmp(((const mica_imatrix_entry *)a)->name, ((const mica_imatrix_entry *)b)->name);
}

static mica_status finish(builder *b, const char *path, mica_error *error) {
    mica_imatrix *imatrix = b->imatrix;
    if (mica_text_failed(&b->names) || mica_text_failed(&b->counts))
        return no_memory(path, error);
    if (imatrix->entry_count == 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected an importance matrix, got a file without entries", path);
    imatrix->names = mica_text_take(&b->names);
    imatrix->counts = mica_malloc(b->counts.length);
    if (!imatrix->names || !imatrix->counts)
        return no_memory(path, error);
    memcpy(imatrix->counts, b->counts.bytes, b->counts.length);
    for (uint64_t i = 0; i < imatrix->entry_count; i++) {
        mica_imatrix_entry *entry = &imatrix->entries[i];
        entry->name = imatrix->names + (uintptr_t)entry->name;
        entry->counts = imatrix->counts + (uintptr_t)entry->counts / sizeof(float);
    }
    qsort(imatrix->entries, imatrix->entry_count, sizeof *imatrix->entries, compare_entries);
    for (uint64_t i = 1; i < imatrix->entry_count; i++)
        if (compare_entries(&imatrix->entries[i - 1], &imatrix->entries[i]) == 0)
            return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected each tensor once, got it twice", path, imatrix->entries[i].name);
    return MICA_OK;
}

mica_status mica_imatrix_open(const char *path, mica_imatrix **result, mica_error *error) {
    builder b = {.imatrix = mica_calloc(1, sizeof *b.imatrix)};
    char magic[4] = "";
    if (!b.imatrix)
        return no_memory(path, error);
    mica_status status = mica_file_open(path, false, &b.imatrix->file, error);
    if (status == MICA_OK)
        status = check_room(b.imatrix->file, 0, sizeof magic, error);
    if (status == MICA_OK)
        status = mica_file_read(b.imatrix->file, 0, magic, sizeof magic, error);
    if (status == MICA_OK)
        status = memcmp(magic, MICA_GGUF_MAGIC, sizeof magic) == 0 ? read_gguf(&b, path, error) : read_dat(&b, path, error);
    if (status == MICA_OK)
        status = finish(&b, path, error);
    mica_text_release(&b.names);
    mica_text_release(&b.counts);
    if (status == MICA_OK)
        *result = b.imatrix;
    else
        mica_imatrix_close(b.imatrix);
    return status;
}

static const mica_imatrix_entry *find_name(const mica_imatrix *imatrix, const char *name) {
    const mica_imatrix_entry key = {.name = name};
    return bsearch(&key, imatrix->entries, imatrix->entry_count, sizeof key, compare_entries);
}

const mica_imatrix_entry *mica_imatrix_find(const mica_imatrix *imatrix, const char *tensor) {
    static const char *const pairs[][2] = {{".ffn_gate", ".ffn_up"}, {".ffn_up", ".ffn_gate"}};
    const mica_imatrix_entry *entry = find_name(imatrix, tensor);
    for (size_t i = 0; !entry && i < sizeof pairs / sizeof *pairs; i++) {
        const char *at = strstr(tensor, pairs[i][0]);
        char name[NAME_BYTES_MAX];
        if (!at)
            continue;
        snprintf(name, sizeof name, "%.*s%s%s", (int)(at - tensor), tensor, pairs[i][1], at + strlen(pairs[i][0]));
        entry = find_name(imatrix, name);
    }
    return entry;
}

float mica_imatrix_count(const mica_imatrix_entry *entry, uint64_t matrix) {
    return entry->counts[matrix < entry->matrix_count ? matrix : 0];
}

mica_status mica_imatrix_read(const mica_imatrix *imatrix, const mica_imatrix_entry *entry, uint64_t matrices, uint64_t matrix,
                              uint64_t columns, float *values, mica_error *error) {
    const char *path = mica_file_path(imatrix->file);
    uint64_t elements;
    if (!mica_mul_u64(columns, matrices, &elements) || elements != entry->elements)
        return mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected %llu columns x %llu matrices, got %llu values: it is of another model",
                         path, entry->name, (unsigned long long)columns, (unsigned long long)matrices, (unsigned long long)entry->elements);
    const float count = mica_imatrix_count(entry, matrix);
    mica_status status = mica_file_read(imatrix->file, entry->offset + matrix * columns * sizeof *values, values, columns * sizeof *values,
                                        error);
    for (uint64_t i = 0; status == MICA_OK && i < columns; i++) {
        if (!(values[i] >= 0) || isinf(values[i]))
            status = mica_fail(error, MICA_BAD_INPUT, "%s: %s: expected values that are not negative, got %g in column %llu of matrix %llu",
                               path, entry->name, (double)values[i], (unsigned long long)i, (unsigned long long)matrix);
        const float mean = count > 0 ? values[i] / count : 1;
        if (status == MICA_OK && isinf(mean))
            status = mica_fail(error, MICA_BAD_INPUT,
                               "%s: %s: expected a mean that float32 holds, got %g over %g in column %llu of matrix %llu", path,
                               entry->name, (double)values[i], (double)count, (unsigned long long)i, (unsigned long long)matrix);
        values[i] = mean;
    }
    return status;
}
