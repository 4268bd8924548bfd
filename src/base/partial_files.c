/* base/partial_files.c: see the header. Judged by tests/base/test_partial_files.c. */
#include "base/partial_files.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

#define SUFFIX ".partial"

struct mica_partial_files {
    mica_partial_file *files;
    uint32_t count;
    mica_file **open; /* [count]; NULL: it has its name already */
};

static mica_status no_memory(const char *path, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
}

static char *partial_path(const char *path) {
    size_t length = strlen(path);
    char *partial = mica_malloc(length + sizeof SUFFIX);
    if (partial) {
        memcpy(partial, path, length);
        memcpy(partial + length, SUFFIX, sizeof SUFFIX);
    }
    return partial;
}

static mica_status create(const char *partial, const mica_partial_file *wanted, mica_file **file, mica_error *error) {
    mica_status status = mica_file_create(partial, file, error);
    if (status == MICA_OK)
        status = mica_file_truncate(*file, wanted->bytes, error);
    return status == MICA_OK ? mica_file_write(*file, 0, wanted->header, wanted->header_bytes, error) : status;
}

static mica_status reopen(const char *partial, const mica_partial_file *wanted, mica_file **file, mica_error *error) {
    mica_status status = mica_file_open_update(partial, file, error);
    if (status == MICA_OK && mica_file_bytes(*file) != wanted->bytes)
        return mica_fail(error, MICA_CONFLICT,
                         "%s: expected %" PRIu64 " bytes from the run before, got %" PRIu64 "; start afresh with --force", partial,
                         wanted->bytes, mica_file_bytes(*file));
    char *header = status == MICA_OK ? mica_malloc(wanted->header_bytes + 1) : NULL;
    if (status == MICA_OK)
        status = header ? mica_file_read(*file, 0, header, wanted->header_bytes, error) : no_memory(partial, error);
    if (status == MICA_OK && memcmp(header, wanted->header, wanted->header_bytes) != 0)
        status = mica_fail(error, MICA_CONFLICT, "%s: expected the header of this job, got another; start afresh with --force", partial);
    mica_free(header);
    return status;
}

static mica_status open_one(mica_partial_files *set, uint32_t index, bool fresh, mica_error *error) {
    const mica_partial_file *wanted = &set->files[index];
    char *partial = partial_path(wanted->path);
    mica_status status = partial ? MICA_OK : no_memory(wanted->path, error);
    if (status == MICA_OK && fresh)
        status = create(partial, wanted, &set->open[index], error);
    else if (status == MICA_OK && (mica_path_exists(partial) || !mica_path_exists(wanted->path)))
        status = reopen(partial, wanted, &set->open[index], error);
    mica_free(partial);
    return status;
}

static void free_files(mica_partial_file *files, uint32_t count) {
    for (uint32_t i = 0; files && i < count; i++)
        mica_free(files[i].path);
    mica_free(files);
}

mica_status mica_partial_files_open(mica_partial_file *files, uint32_t count, bool fresh, mica_partial_files **set, mica_error *error) {
    mica_partial_files *opened = mica_calloc(1, sizeof *opened);
    mica_file **open = mica_calloc(count ? count : 1, sizeof *open);
    if (!opened || !open) {
        free_files(files, count);
        mica_free(opened);
        mica_free(open);
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for the files to be written");
    }
    *opened = (mica_partial_files){files, count, open};
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < count; i++)
        status = open_one(opened, i, fresh, error);
    if (status == MICA_OK && fresh && count > 0)
        status = mica_directory_sync_parent(files[0].path, error);
    if (status == MICA_OK)
        *set = opened;
    else
        mica_partial_files_close(opened);
    return status;
}

mica_status mica_partial_files_write(mica_partial_files *set, uint32_t index, uint64_t offset, const void *bytes, uint64_t length,
                                     mica_error *error) {
    mica_file *file = index < set->count ? set->open[index] : NULL;
    if (!file || offset > set->files[index].bytes || length > set->files[index].bytes - offset)
        return mica_fail(error, MICA_FAILED, "%s: expected bytes of an unfinished file, within its size, got %" PRIu64 " at %" PRIu64,
                         index < set->count ? set->files[index].path : "no file", length, offset);
    return mica_file_write(file, offset, bytes, length, error);
}

mica_status mica_partial_files_sync(mica_partial_files *set, mica_error *error) {
    mica_status status = MICA_OK;
    for (uint32_t i = 0; status == MICA_OK && i < set->count; i++)
        if (set->open[i])
            status = mica_file_sync(set->open[i], error);
    return status;
}

static mica_status give_name(mica_partial_files *set, uint32_t index, mica_error *error) {
    mica_file *file = set->open[index];
    if (!file) /* an earlier run had come this far */
        return MICA_OK;
    set->open[index] = NULL;
    mica_status status = mica_file_close(file, error);
    char *partial = partial_path(set->files[index].path);
    if (status == MICA_OK)
        status = partial ? mica_file_rename(partial, set->files[index].path, error) : no_memory(set->files[index].path, error);
    mica_free(partial);
    return status;
}

mica_status mica_partial_files_finish(mica_partial_files *set, mica_error *error) {
    mica_status status = mica_partial_files_sync(set, error);
    for (uint32_t i = set->count; status == MICA_OK && i-- > 0;)
        status = give_name(set, i, error);
    mica_partial_files_close(set);
    return status;
}

void mica_partial_files_close(mica_partial_files *set) {
    if (!set)
        return;
    for (uint32_t i = 0; i < set->count; i++)
        (void)mica_file_close(set->open[i], NULL);
    mica_free(set->open);
    free_files(set->files, set->count);
    mica_free(set);
}
