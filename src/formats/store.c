/* formats/store.c: see the header for what holds. The pack being filled is the only file of a store that grows.
 * Judged by tests/operations/test_import.c, tests/faults/kill_store.sh, tests/faults/test_store_faults.c. */
#include "formats/store.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"

#define PACK_MAGIC "MICAPAK1"
#define PACK_VERSION 1u

struct mica_store {
    char *path;
    int lock; /* -1: a reader, or a file system without locks */
    mica_catalogue *catalogue;
    uint64_t pack_bytes;
    /* the pack being filled; number 0: none */
    int64_t number;
    mica_file *file;
    uint64_t position;  /* where the next bytes go */
    uint64_t kept;      /* all before is named by rows */
    uint64_t run;       /* bytes that must fit into the pack of the next append; UINT64_MAX: into a new one; 0: nothing is asked */
    bool unsynced;      /* bytes were written since the last sync */
    bool new_names;     /* files were made since the directory was synced */
};

static mica_status no_memory(const char *path, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
}

uint64_t mica_pack_align(uint64_t bytes) {
    uint64_t up;
    return mica_add_u64(bytes, MICA_PACK_ALIGNMENT - 1, &up) ? up & ~(MICA_PACK_ALIGNMENT - 1) : UINT64_MAX;
}

/* ---- names */

bool mica_store_is_at(const char *path) {
    return mica_directory_has(path, MICA_CATALOGUE_NAME);
}

bool mica_store_split(const char *path, size_t *directory_length, const char **name) {
    char directory[PATH_MAX];
    *directory_length = strlen(path);
    *name = NULL;
    if (mica_store_is_at(path))
        return true;
    const char *hash = mica_path_exists(path) ? NULL : strrchr(path, '#'); /* a file may have one in its name */
    if (!hash || (size_t)(hash - path) >= sizeof directory)
        return false;
    *directory_length = (size_t)(hash - path);
    *name = hash + 1;
    memcpy(directory, path, *directory_length);
    directory[*directory_length] = 0;
    return mica_store_is_at(directory);
}

bool mica_store_is_named(const char *path) {
    size_t directory_length;
    const char *name;
    return mica_store_split(path, &directory_length, &name);
}

const char *mica_store_pack_name(int64_t number, char buffer[40]) {
    snprintf(buffer, 40, MICA_PACKS_DIRECTORY "/%06" PRId64 ".pack", number);
    return buffer;
}

char *mica_store_pack_path(const mica_store *store, int64_t number) {
    char name[40];
    return mica_path_join(store->path, mica_store_pack_name(number, name));
}

/* The number in "000001.pack"; 0 for another name. */
static int64_t pack_number(const char *name) {
    int64_t number = 0;
    const char *at = name;
    for (; *at >= '0' && *at <= '9' && number < INT64_MAX / 16; at++)
        number = 10 * number + (*at - '0');
    return at - name >= 6 && strcmp(at, ".pack") == 0 ? number : 0;
}

/* ---- the header: magic, version, store, number, zeros, and SHA-256 of all that in its last 32 bytes */

static mica_status make_header(const mica_store *store, int64_t number, uint8_t header[MICA_PACK_HEADER_BYTES], mica_error *error) {
    memset(header, 0, MICA_PACK_HEADER_BYTES);
    memcpy(header, PACK_MAGIC, 8);
    header[8] = PACK_VERSION;
    memcpy(header + 16, mica_catalogue_id(store->catalogue), MICA_UUID_BYTES);
    for (int i = 0; i < 8; i++)
        header[32 + i] = (uint8_t)((uint64_t)number >> (8 * i));
    const uint64_t covered = MICA_PACK_HEADER_BYTES - MICA_SHA256_BYTES;
    return mica_sha256_of(header, covered, header + covered, error);
}

bool mica_store_header_is(const mica_store *store, int64_t number, const uint8_t header[MICA_PACK_HEADER_BYTES]) {
    uint8_t expected[MICA_PACK_HEADER_BYTES];
    return make_header(store, number, expected, NULL) == MICA_OK && memcmp(expected, header, sizeof expected) == 0;
}

mica_status mica_store_open_pack(const mica_store *store, int64_t number, mica_file **file, bool *missing, mica_error *error) {
    uint8_t header[MICA_PACK_HEADER_BYTES];
    char *path = mica_store_pack_path(store, number);
    mica_file *opened = NULL;
    mica_status status = path ? mica_file_open(path, true, &opened, error) : no_memory(store->path, error);
    if (missing)
        *missing = path && status != MICA_OK && !mica_path_exists(path);
    if (status == MICA_OK && mica_file_bytes(opened) < sizeof header)
        status = mica_fail(error, MICA_CORRUPT, "%s: expected a pack's header, got a file of %" PRIu64 " bytes", path,
                           mica_file_bytes(opened));
    if (status == MICA_OK)
        status = mica_file_read(opened, 0, header, sizeof header, error);
    if (status == MICA_OK && !mica_store_header_is(store, number, header))
        status = mica_fail(error, MICA_CORRUPT, "%s: expected the header of pack %" PRId64 " of this store, got another", path, number);
    mica_free(path);
    if (status == MICA_OK)
        *file = opened;
    else
        (void)mica_file_close(opened, NULL);
    return status;
}

/* ---- opening */

static mica_status open_catalogue(mica_store *store, bool write, mica_error *error) {
    char *path = mica_path_join(store->path, MICA_CATALOGUE_NAME);
    const mica_status status = path ? mica_catalogue_open(path, write, &store->catalogue, error) : no_memory(store->path, error);
    mica_free(path);
    return status;
}

static mica_status create_store(const char *path, mica_store **store, mica_error *error) {
    mica_store *made = mica_calloc(1, sizeof *made);
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    if (!made || !(made->path = mica_strndup(path, length))) {
        mica_free(made);
        return no_memory(path, error);
    }
    made->lock = -1;
    *store = made;
    return MICA_OK;
}

mica_status mica_store_open(const char *path, mica_store **store, mica_error *error) {
    mica_store *opened = NULL;
    mica_status status = create_store(path, &opened, error);
    if (status == MICA_OK && !mica_store_is_at(path))
        status = mica_fail(error, MICA_BAD_INPUT, "%s: expected a store (a directory with %s), got none", path, MICA_CATALOGUE_NAME);
    if (status == MICA_OK)
        status = open_catalogue(opened, false, error);
    if (status == MICA_OK)
        *store = opened;
    else
        mica_store_close(opened);
    return status;
}

/* A directory that holds something else is never touched. */
static mica_status check_directory(const mica_store *store, mica_error *error) {
    char **names = NULL;
    uint64_t count = 0;
    mica_status status = mica_directory_list(store->path, &names, &count, error);
    for (uint64_t i = 0; status == MICA_OK && i < count; i++)
        if (strncmp(names[i], MICA_CATALOGUE_NAME, sizeof MICA_CATALOGUE_NAME - 1) != 0 && strcmp(names[i], MICA_PACKS_DIRECTORY) != 0)
            status = mica_fail(error, MICA_CONFLICT, "%s: expected a store or an empty directory, got one with %s in it", store->path,
                               names[i]);
    mica_directory_names_free(names, count);
    return status;
}

static mica_status make_directories(mica_store *store, bool create, mica_error *error) {
    char *packs = mica_path_join(store->path, MICA_PACKS_DIRECTORY);
    mica_status status = packs ? MICA_OK : no_memory(store->path, error);
    if (status == MICA_OK && !mica_store_is_at(store->path)) {
        if (!create)
            status = mica_fail(error, MICA_BAD_INPUT, "%s: expected a store (a directory with %s), got none", store->path,
                               MICA_CATALOGUE_NAME);
        else if ((status = mica_directory_create(store->path, error)) == MICA_OK)
            status = check_directory(store, error);
    }
    if (status == MICA_OK)
        status = mica_path_lock(store->path, "another process is writing to this store", &store->lock, error);
    if (status == MICA_OK)
        status = mica_directory_create(packs, error);
    mica_free(packs);
    return status;
}

/* What the catalogue says of a pack; NULL: nothing. */
static const mica_stored_pack *find_pack(const mica_stored_pack *packs, uint64_t count, int64_t number) {
    for (uint64_t i = 0; i < count; i++)
        if (packs[i].number == number)
            return &packs[i];
    return NULL;
}

static mica_status cut_pack(const char *path, uint64_t bytes, mica_error *error) {
    mica_file *file = NULL;
    mica_status status = mica_file_open_update(path, &file, error);
    if (status == MICA_OK && mica_file_bytes(file) < bytes)
        status = mica_fail(error, MICA_CORRUPT, "%s: expected at least %" PRIu64 " bytes, got %" PRIu64, path, bytes,
                           mica_file_bytes(file));
    if (status == MICA_OK && mica_file_bytes(file) > bytes)
        status = mica_file_truncate(file, bytes, error);
    const mica_status closed = mica_file_close(file, status == MICA_OK ? error : NULL);
    return status == MICA_OK ? closed : status;
}

/* What a killed writer left: packs that no row names, and bytes behind a recorded end. Nobody reads either. */
static mica_status recover(mica_store *store, mica_error *error) {
    char **names = NULL, *directory = mica_path_join(store->path, MICA_PACKS_DIRECTORY);
    mica_stored_pack *packs = NULL;
    uint64_t name_count = 0, pack_count = 0;
    mica_status status = directory ? mica_directory_list(directory, &names, &name_count, error) : no_memory(store->path, error);
    if (status == MICA_OK)
        status = mica_catalogue_packs(store->catalogue, &packs, &pack_count, error);
    for (uint64_t i = 0; status == MICA_OK && i < name_count; i++) {
        const int64_t number = pack_number(names[i]);
        const mica_stored_pack *pack = find_pack(packs, pack_count, number);
        char *path = number ? mica_path_join(directory, names[i]) : NULL;
        if (number && !path)
            status = no_memory(store->path, error);
        else if (number)
            status = pack ? cut_pack(path, pack->bytes, error) : mica_file_remove(path, error);
        mica_free(path);
    }
    mica_directory_names_free(names, name_count);
    mica_free(packs);
    mica_free(directory);
    return status;
}

mica_status mica_store_open_writer(const char *path, bool create, uint64_t pack_bytes, mica_store **store, mica_error *error) {
    mica_store *opened = NULL;
    mica_status status = create_store(path, &opened, error);
    if (status == MICA_OK) {
        opened->pack_bytes = pack_bytes ? pack_bytes : MICA_PACK_BYTES_DEFAULT;
        status = make_directories(opened, create, error);
    }
    if (status == MICA_OK)
        status = open_catalogue(opened, true, error);
    if (status == MICA_OK)
        status = mica_directory_sync(opened->path, error); /* the catalogue's name */
    if (status == MICA_OK)
        status = recover(opened, error);
    if (status == MICA_OK)
        *store = opened;
    else
        mica_store_close(opened);
    return status;
}

void mica_store_close(mica_store *store) {
    if (!store)
        return;
    mica_catalogue_close(store->catalogue); /* before the lock is given back */
    (void)mica_file_close(store->file, NULL); /* what mattered was synced */
    mica_path_unlock(store->lock);
    mica_free(store->path);
    mica_free(store);
}

mica_catalogue *mica_store_catalogue(mica_store *store) {
    return store->catalogue;
}

const char *mica_store_path(const mica_store *store) {
    return store->path;
}

/* ---- appending */

static mica_status sync_pack(mica_store *store, mica_error *error) {
    mica_status status = MICA_OK;
    if (store->file && store->unsynced) {
        status = mica_file_sync(store->file, error);
        store->unsynced = status != MICA_OK;
    }
    if (status == MICA_OK && store->new_names) {
        char *directory = mica_path_join(store->path, MICA_PACKS_DIRECTORY);
        status = directory ? mica_directory_sync(directory, error) : no_memory(store->path, error);
        mica_free(directory);
        store->new_names = status != MICA_OK;
    }
    return status;
}

/* Leaves the pack as long as what is named in it. */
static mica_status leave_pack(mica_store *store, mica_error *error) {
    if (!store->file)
        return MICA_OK;
    mica_status status = mica_file_bytes(store->file) > store->kept ? mica_file_truncate(store->file, store->kept, error) : MICA_OK;
    if (status == MICA_OK)
        status = sync_pack(store, error);
    if (status == MICA_OK)
        status = mica_catalogue_set_pack(store->catalogue, store->number, store->kept, error);
    const mica_status closed = mica_file_close(store->file, status == MICA_OK ? error : NULL);
    store->file = NULL;
    store->number = 0;
    return status == MICA_OK ? closed : status;
}

static mica_status create_pack(mica_store *store, mica_error *error) {
    uint8_t *header = mica_alloc_aligned(MICA_PACK_HEADER_BYTES);
    char *path = NULL;
    mica_status status = header ? mica_catalogue_next_pack(store->catalogue, &store->number, error) : no_memory(store->path, error);
    if (status == MICA_OK)
        status = make_header(store, store->number, header, error);
    if (status == MICA_OK && !(path = mica_store_pack_path(store, store->number)))
        status = no_memory(store->path, error);
    if (status == MICA_OK && mica_path_exists(path)) /* what nobody names was removed when the store was opened */
        status = mica_fail(error, MICA_CORRUPT, "%s: expected a new pack, got a file of that name", path);
    if (status == MICA_OK)
        status = mica_file_create(path, &store->file, error);
    if (status == MICA_OK) {
        mica_file_write_directly(store->file);
        status = mica_file_write(store->file, 0, header, MICA_PACK_HEADER_BYTES, error);
    }
    store->position = store->kept = MICA_PACK_HEADER_BYTES;
    store->unsynced = store->new_names = true;
    if (status == MICA_OK) /* payloads' rows refer to it */
        status = mica_catalogue_set_pack(store->catalogue, store->number, store->kept, error);
    mica_free(path);
    mica_free_aligned(header);
    return status;
}

/* Goes on in the last pack of an import before. */
static mica_status reopen_pack(mica_store *store, mica_error *error) {
    mica_stored_pack *packs = NULL;
    uint64_t count = 0;
    mica_status status = mica_catalogue_packs(store->catalogue, &packs, &count, error);
    if (status == MICA_OK && count && packs[count - 1].bytes < store->pack_bytes) {
        char *path = mica_store_pack_path(store, packs[count - 1].number);
        status = path ? mica_file_open_update(path, &store->file, error) : no_memory(store->path, error);
        if (status == MICA_OK) {
            mica_file_write_directly(store->file);
            store->number = packs[count - 1].number;
            store->position = store->kept = packs[count - 1].bytes;
        }
        mica_free(path);
    }
    mica_free(packs);
    return status;
}

void mica_store_begin_run(mica_store *store, uint64_t bytes) {
    store->run = bytes;
}

void mica_store_begin_pack(mica_store *store) {
    store->run = UINT64_MAX;
}

/* A pack with room for the run that begins. */
static mica_status choose_pack(mica_store *store, mica_error *error) {
    const uint64_t run = store->run;
    mica_status status = store->number || run == UINT64_MAX ? MICA_OK : reopen_pack(store, error);
    store->run = 0;
    if (status != MICA_OK)
        return status;
    uint64_t end;
    if (store->number && run != UINT64_MAX &&
        (store->position == MICA_PACK_HEADER_BYTES || (mica_add_u64(store->position, run, &end) && end <= store->pack_bytes)))
        return MICA_OK;
    status = leave_pack(store, error);
    return status == MICA_OK ? create_pack(store, error) : status;
}

int64_t mica_store_pack(const mica_store *store) {
    return store->number;
}

mica_status mica_store_reserve(mica_store *store, uint64_t bytes, int64_t *pack, uint64_t *offset, mica_error *error) {
    const mica_status status = store->run || !store->number ? choose_pack(store, error) : MICA_OK;
    if (status != MICA_OK)
        return status;
    *pack = store->number;
    *offset = store->position;
    store->position += bytes;
    return MICA_OK;
}

mica_status mica_store_write(mica_store *store, uint64_t offset, const void *image, uint64_t bytes, mica_error *error) {
    store->unsynced = true;
    return mica_file_write(store->file, offset, image, bytes, error);
}

void mica_store_rewind(mica_store *store, uint64_t offset) {
    store->position = offset;
}

void mica_store_keep(mica_store *store) {
    store->kept = store->position;
}

mica_status mica_store_commit(mica_store *store, bool again, mica_error *error) {
    mica_status status = again ? sync_pack(store, error) : MICA_OK;
    if (status == MICA_OK && store->number && again)
        status = mica_catalogue_set_pack(store->catalogue, store->number, store->kept, error);
    if (status == MICA_OK && !again)
        status = leave_pack(store, error);
    if (status == MICA_OK && !again && store->new_names)
        status = sync_pack(store, error);
    if (status == MICA_OK)
        status = mica_catalogue_commit(store->catalogue, error);
    return status == MICA_OK && again ? mica_catalogue_begin(store->catalogue, error) : status;
}

mica_status mica_store_unlink_pack(mica_store *store, int64_t number, mica_error *error) {
    char *path = mica_store_pack_path(store, number);
    const mica_status status = path ? mica_file_remove(path, error) : no_memory(store->path, error);
    mica_free(path);
    return status;
}
