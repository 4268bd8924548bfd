/* A store while the disk is full or fails: whatever call fails, of ours or of SQLite's, the operation says so (or did not need it), the
 * models that were there are whole, and the same import goes on afterwards. Faults of packs: mica_io; of the catalogue: a VFS put under
 * SQLite. */
#include <mica/store.h>

#include <errno.h>
#include <sqlite3.h>

#include "base/no_memory.h"
#include "operations/store_helpers.h"

#define FEW "*.layers.1.mlp.*gate*"

/* ---- faults of our own calls; those of reading are made on other threads, and tested apart */

static const mica_io *real;
static mica_io faulty;
static uint64_t countdown; /* the call that fails; 0: none */
static int failure;        /* errno */
static bool forever, fired;

static bool fails(void) {
    if (countdown == 0 || --countdown > 0)
        return false;
    countdown = forever;
    fired = true;
    errno = failure;
    return true;
}

static ssize_t faulty_pwrite(int fd, const void *buffer, size_t bytes, off_t offset) {
    return fails() ? -1 : real->pwrite(fd, buffer, bytes, offset);
}
static int faulty_fsync(int fd) { return fails() ? -1 : real->fsync(fd); }
static int faulty_ftruncate(int fd, off_t bytes) { return fails() ? -1 : real->ftruncate(fd, bytes); }
static int faulty_unlink(const char *path) { return fails() ? -1 : real->unlink(path); }

/* Every call that changes something. */
static void install(void) {
    real = mica_io_current();
    faulty = *real;
    faulty.pwrite = faulty_pwrite;
    faulty.fsync = faulty_fsync;
    faulty.ftruncate = faulty_ftruncate;
    faulty.unlink = faulty_unlink;
    mica_io_install(&faulty);
}

static void arm(uint64_t nth, int code, bool all_after) {
    countdown = nth;
    failure = code;
    forever = all_after;
    fired = false;
}

static void disarm(void) {
    countdown = 0;
}

/* ---- the same under SQLite */

typedef struct shim_file {
    sqlite3_file base;
    sqlite3_file *below; /* behind this in memory */
} shim_file;

static sqlite3_vfs shim;
static sqlite3_vfs *system_vfs;
static uint64_t sql_countdown;
static int sql_failure;
static bool sql_forever, sql_fired;

static bool sql_fails(void) {
    if (sql_countdown == 0 || --sql_countdown > 0)
        return false;
    sql_countdown = sql_forever;
    sql_fired = true;
    return true;
}

#define BELOW(file) (((shim_file *)(file))->below)
#define FORWARD(name, parameters, arguments) \
    static int shim_##name parameters { return BELOW(file)->pMethods->x##name arguments; }

FORWARD(Read, (sqlite3_file * file, void *buffer, int bytes, sqlite3_int64 offset), (BELOW(file), buffer, bytes, offset))
FORWARD(FileSize, (sqlite3_file * file, sqlite3_int64 *bytes), (BELOW(file), bytes))
FORWARD(Lock, (sqlite3_file * file, int kind), (BELOW(file), kind))
FORWARD(Unlock, (sqlite3_file * file, int kind), (BELOW(file), kind))
FORWARD(CheckReservedLock, (sqlite3_file * file, int *result), (BELOW(file), result))
FORWARD(FileControl, (sqlite3_file * file, int what, void *argument), (BELOW(file), what, argument))
FORWARD(SectorSize, (sqlite3_file * file), (BELOW(file)))
FORWARD(DeviceCharacteristics, (sqlite3_file * file), (BELOW(file)))
FORWARD(ShmMap, (sqlite3_file * file, int page, int bytes, int extend, void volatile **map), (BELOW(file), page, bytes, extend, map))
FORWARD(ShmLock, (sqlite3_file * file, int offset, int count, int flags), (BELOW(file), offset, count, flags))
FORWARD(ShmUnmap, (sqlite3_file * file, int remove), (BELOW(file), remove))
static void shim_ShmBarrier(sqlite3_file *file) { BELOW(file)->pMethods->xShmBarrier(BELOW(file)); }
static int shim_Close(sqlite3_file *file) { return BELOW(file)->pMethods->xClose(BELOW(file)); }
static int shim_Write(sqlite3_file *file, const void *buffer, int bytes, sqlite3_int64 offset) {
    return sql_fails() ? sql_failure : BELOW(file)->pMethods->xWrite(BELOW(file), buffer, bytes, offset);
}
static int shim_Truncate(sqlite3_file *file, sqlite3_int64 bytes) {
    return sql_fails() ? SQLITE_IOERR_TRUNCATE : BELOW(file)->pMethods->xTruncate(BELOW(file), bytes);
}
static int shim_Sync(sqlite3_file *file, int flags) {
    return sql_fails() ? SQLITE_IOERR_FSYNC : BELOW(file)->pMethods->xSync(BELOW(file), flags);
}

static const sqlite3_io_methods shim_methods = {
    .iVersion = 2,
    .xClose = shim_Close,
    .xRead = shim_Read,
    .xWrite = shim_Write,
    .xTruncate = shim_Truncate,
    .xSync = shim_Sync,
    .xFileSize = shim_FileSize,
    .xLock = shim_Lock,
    .xUnlock = shim_Unlock,
    .xCheckReservedLock = shim_CheckReservedLock,
    .xFileControl = shim_FileControl,
    .xSectorSize = shim_SectorSize,
    .xDeviceCharacteristics = shim_DeviceCharacteristics,
    .xShmMap = shim_ShmMap,
    .xShmLock = shim_ShmLock,
    .xShmBarrier = shim_ShmBarrier,
    .xShmUnmap = shim_ShmUnmap,
};

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out) {
    shim_file *opened = (shim_file *)file;
    (void)vfs;
    opened->below = (sqlite3_file *)(opened + 1);
    const int code = system_vfs->xOpen(system_vfs, name, opened->below, flags, out);
    opened->base.pMethods = opened->below->pMethods ? &shim_methods : NULL;
    return code;
}

static int install_all(void **state) {
    system_vfs = sqlite3_vfs_find(NULL);
    shim = *system_vfs;
    shim.zName = "faulty";
    shim.szOsFile = (int)sizeof(shim_file) + system_vfs->szOsFile;
    shim.xOpen = shim_open;
    install();
    return sqlite3_vfs_register(&shim, 1) == SQLITE_OK ? scratch_make(state) : -1;
}

/* ---- */

static const mica_import_options few = {.name = "few", .include = FEW},
                                 more = {.name = "more", .include = "*.layers.2.*", .pack_bytes = 200000};

static void copy_store(const char *from, const char *to) {
    char command[4 * SCRATCH_PATH_BYTES];
    scratch_remove_tree(to);
    snprintf(command, sizeof command, "cp -r '%s' '%s'", from, to);
    assert_int_equal(system(command), 0);
}

static char *digest_of(const char *store, const char *name) {
    mica_store *opened = NULL;
    mica_stored_model model = {0};
    bool found = false;
    char *hex = mica_calloc(1, MICA_SHA256_HEX_BYTES);
    if (mica_store_open(store, &opened, &error) != MICA_OK ||
        mica_catalogue_find_model(mica_store_catalogue(opened), name, true, &found, &model, &error) != MICA_OK)
        fail_msg("%s", error.message);
    mica_sha256_hex(model.digest, hex);
    if (!found)
        hex[0] = '\0';
    mica_stored_model_release(&model);
    mica_store_close(opened);
    return hex;
}

static void assert_whole(const char *store, const char *few_digest, uint64_t nth) {
    mica_error found;
    char *digest = digest_of(store, "few");
    if (mica_verify(store, NULL, NULL, NULL, &found) != MICA_OK)
        fail_msg("after fault %llu: %s", (unsigned long long)nth, found.message);
    assert_string_equal(digest, few_digest);
    mica_free(digest);
}

typedef enum operation { IMPORT, GC, REMOVE } operation;

static mica_status act(operation what, const char *store) {
    switch (what) {
    case IMPORT: return mica_import(TINY, store, &more, NULL, NULL, &error);
    case GC: return mica_gc(store, &(mica_gc_options){.threads = 1}, NULL, NULL, &error);
    default: return mica_remove(store, "more", NULL, NULL, &error);
    }
}

/* Everything that the operation does, failing at the nth call of either kind, for all n. */
static void fail_everywhere(operation what, const char *original, bool of_sqlite, int code, bool all_after) {
    const char *store = scratch("work");
    char path[SCRATCH_PATH_BYTES], *few_digest = digest_of(original, "few");
    uint64_t nth = 0, refused = 0;
    snprintf(path, sizeof path, "%s", store);
    for (bool reached = true; reached;) {
        nth += nth < 10 ? 1 : nth / 2;
        copy_store(original, path);
        if (of_sqlite) {
            sql_countdown = nth;
            sql_failure = code == ENOSPC ? SQLITE_FULL : SQLITE_IOERR_WRITE;
            sql_forever = all_after;
            sql_fired = false;
        } else {
            arm(nth, code, all_after);
        }
        const mica_status status = act(what, path);
        disarm();
        sql_countdown = 0;
        reached = of_sqlite ? sql_fired : fired;
        if (status != MICA_OK) {
            assert_int_equal(status, MICA_IO);
            assert_true(error.message[0] != '\0');
            refused++;
        } else if (!reached) {
            break;
        }
        assert_whole(path, few_digest, nth);
        if (what == IMPORT && mica_import(TINY, path, &(mica_import_options){.name = "more", .include = more.include, .resume = true}, NULL,
                                          NULL, &error) != MICA_OK)
            fail_msg("after fault %llu: %s", (unsigned long long)nth, error.message);
        if (what == GC && act(GC, path) != MICA_OK)
            fail_msg("after fault %llu: %s", (unsigned long long)nth, error.message);
        assert_whole(path, few_digest, nth);
    }
    mica_free(few_digest);
    printf("%llu places, %llu refusals\n", (unsigned long long)nth, (unsigned long long)refused);
    assert_true(refused > 2);
}

static char one[SCRATCH_PATH_BYTES], both[SCRATCH_PATH_BYTES], garbage[SCRATCH_PATH_BYTES];

static void test_prepare(void **state) {
    (void)state;
    snprintf(one, sizeof one, "%s", scratch("one"));
    snprintf(both, sizeof both, "%s", scratch("both"));
    snprintf(garbage, sizeof garbage, "%s", scratch("garbage"));
    assert_imports(TINY, one, &few);
    assert_imports(TINY, both, &(mica_import_options){.name = "more", .include = "*.layers.2.*"});
    assert_imports(TINY, both, &(mica_import_options){.name = "more", .include = "*.layers.*", .force = true});
    assert_imports(TINY, both, &few);
    copy_store(both, garbage);
    assert_int_equal(mica_remove(garbage, "more", NULL, NULL, &error), MICA_OK);
}

static void test_import_disk_full(void **state) {
    (void)state;
    fail_everywhere(IMPORT, one, false, ENOSPC, true);
}

static void test_import_error(void **state) {
    (void)state;
    fail_everywhere(IMPORT, one, false, EIO, false);
}

static void test_import_catalogue_full(void **state) {
    (void)state;
    fail_everywhere(IMPORT, one, true, ENOSPC, true);
}

static void test_import_catalogue_error(void **state) {
    (void)state;
    fail_everywhere(IMPORT, one, true, EIO, false);
}

static void test_gc_error(void **state) {
    (void)state;
    fail_everywhere(GC, garbage, false, EIO, false);
}

static void test_gc_catalogue_full(void **state) {
    (void)state;
    fail_everywhere(GC, garbage, true, ENOSPC, true);
}

static void test_remove_catalogue_error(void **state) {
    (void)state;
    fail_everywhere(REMOVE, both, true, EIO, false);
}

/* Bytes of the source that cannot be read, from any thread. */
static ssize_t unreadable_pread(int fd, void *buffer, size_t bytes, off_t offset) {
    if (offset > 3000000) {
        errno = EIO;
        return -1;
    }
    return real->pread(fd, buffer, bytes, offset);
}

static void test_unreadable_source(void **state) {
    (void)state;
    const char *store = scratch("unreadable");
    char *digest = digest_of(one, "few");
    copy_store(one, store);
    faulty.pread = unreadable_pread;
    assert_int_equal(mica_import(TINY, store, NULL, NULL, NULL, &error), MICA_IO);
    assert_non_null(strstr(error.message, "safetensors"));
    faulty.pread = real->pread;
    assert_whole(store, digest, 0);
    assert_imports(TINY, store, &(mica_import_options){.resume = true});
    assert_same_model(TINY, named(store, "tiny-k2"));
    mica_free(digest);
}

/* No memory at the nth allocation: a sentence, and the store as it was. */
static void test_no_memory(void **state) {
    (void)state;
    const char *store = scratch("no-memory");
    char path[SCRATCH_PATH_BYTES], *digest = digest_of(one, "few");
    snprintf(path, sizeof path, "%s", store);
    copy_store(one, path);
    mica_import_options options = more;
    options.threads = 2;
    for (no_memory trial = {.stride = 24}; no_memory_next(&trial);) {
        (void)mica_remove(path, "more", NULL, NULL, NULL); /* there if no more than the report was left to make */
        no_memory_begin(&trial);
        const mica_status status = mica_import(TINY, path, &options, NULL, NULL, &error);
        no_memory_end(&trial, status, MICA_OK, &error);
    }
    (void)mica_remove(path, "more", NULL, NULL, NULL);
    assert_whole(path, digest, 0);
    mica_free(digest);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prepare),
        cmocka_unit_test(test_import_disk_full),
        cmocka_unit_test(test_import_error),
        cmocka_unit_test(test_import_catalogue_full),
        cmocka_unit_test(test_import_catalogue_error),
        cmocka_unit_test(test_gc_error),
        cmocka_unit_test(test_gc_catalogue_full),
        cmocka_unit_test(test_remove_catalogue_error),
        cmocka_unit_test(test_unreadable_source),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, install_all, scratch_remove);
}
