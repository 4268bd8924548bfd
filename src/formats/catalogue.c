/* formats/catalogue.c: opening the catalogue, its transactions, and its models. Rows of payloads and files: catalogue_rows.c.
 * Invariants: 1. WAL with synchronous=FULL: what commit says has happened survives a power cut; readers see the last commit, never wait;
 * 2. a commit that wrote seals the store's digest first. Judged by tests/operations/test_import.c, tests/faults/kill_store.sh. */
#include "formats/catalogue.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "formats/catalogue_sql.h"

#define BUSY_MS 20000 /* only another's recovery or last close can be in the way, for moments */

/* ---- opening */

static mica_status execute(mica_catalogue *catalogue, const char *sql, mica_error *error) {
    const int code = sqlite3_exec(catalogue->database, sql, NULL, NULL, NULL);
    return code == SQLITE_OK ? MICA_OK : mica_sql_fail(catalogue, code, error);
}

static mica_status query_number(mica_catalogue *catalogue, const char *sql, int64_t *number, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_prepare_v2(catalogue->database, sql, -1, &statement, NULL);
    if (code == SQLITE_OK && (code = sqlite3_step(statement)) == SQLITE_ROW) {
        *number = sqlite3_column_int64(statement, 0);
        code = SQLITE_OK;
    }
    mica_status status = code == SQLITE_OK ? MICA_OK : mica_sql_fail(catalogue, code, error);
    sqlite3_finalize(statement);
    return status;
}

/* The path as a URI that SQLite will not write beside: for a store on a medium that cannot be written to. */
static mica_status immutable_uri(const char *path, mica_text *uri, mica_error *error) {
    mica_text_puts(uri, "file:");
    for (const char *at = path; *at; at++) {
        if (strchr("%?#", *at))
            mica_text_printf(uri, "%%%02X", (unsigned)(unsigned char)*at);
        else
            mica_text_append(uri, at, 1);
    }
    mica_text_puts(uri, "?immutable=1");
    return mica_text_failed(uri) ? mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path) : MICA_OK;
}

static mica_status open_database(mica_catalogue *catalogue, const char *name, int flags, mica_error *error) {
    int code = sqlite3_open_v2(name, &catalogue->database, flags | SQLITE_OPEN_FULLMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_busy_timeout(catalogue->database, BUSY_MS);
    if (code == SQLITE_OK)
        code = sqlite3_db_config(catalogue->database, SQLITE_DBCONFIG_DEFENSIVE, 1, (int *)NULL);
    if (code == SQLITE_OK)
        code = sqlite3_exec(catalogue->database, "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON", NULL, NULL, NULL);
    return code == SQLITE_OK ? MICA_OK : mica_sql_fail(catalogue, code, error);
}

/* The log beside it holds commits that the file does not. */
static bool has_log(const char *path) {
    mica_text log = MICA_TEXT_INIT;
    struct stat status;
    mica_text_printf(&log, "%s-wal", path);
    const bool there = mica_text_failed(&log) || (stat(log.bytes, &status) == 0 && status.st_size > 0);
    mica_text_release(&log);
    return there;
}

static mica_status open_reader(mica_catalogue *catalogue, mica_error *error) {
    int64_t number = 0;
    mica_status status = open_database(catalogue, catalogue->path, SQLITE_OPEN_READONLY, error);
    if (status == MICA_OK)
        status = query_number(catalogue, "PRAGMA user_version", &number, error);
    if (status != MICA_IO || has_log(catalogue->path))
        return status;
    sqlite3_close_v2(catalogue->database);
    catalogue->database = NULL;
    mica_text uri = MICA_TEXT_INIT;
    if ((status = immutable_uri(catalogue->path, &uri, error)) == MICA_OK)
        status = open_database(catalogue, uri.bytes, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, error);
    mica_text_release(&uri);
    return status;
}

static mica_status create_schema(mica_catalogue *catalogue, mica_error *error) {
    char id[MICA_UUID_TEXT_BYTES];
    mica_text sql = MICA_TEXT_INIT;
    mica_status status = mica_uuid_random(catalogue->id, error);
    if (status != MICA_OK)
        return status;
    mica_uuid_show(catalogue->id, id);
    mica_text_puts(&sql, mica_catalogue_schema);
    mica_text_printf(&sql, "INSERT INTO store (key, value) VALUES ('format', 'mica-store'), ('id', '%s');", id);
    mica_text_printf(&sql, "PRAGMA application_id = %d; PRAGMA user_version = %d;", MICA_CATALOGUE_APPLICATION, MICA_CATALOGUE_VERSION);
    if (mica_text_failed(&sql))
        status = mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", catalogue->path);
    if (status == MICA_OK)
        status = mica_catalogue_begin(catalogue, error);
    if (status == MICA_OK)
        status = execute(catalogue, sql.bytes, error);
    if (status == MICA_OK)
        status = mica_catalogue_commit(catalogue, error);
    else
        mica_catalogue_rollback(catalogue);
    mica_text_release(&sql);
    return status;
}

/* A kill before the schema's commit leaves a database without anything. */
static mica_status open_writer(mica_catalogue *catalogue, mica_error *error) {
    int64_t tables = 0;
    mica_status status = open_database(catalogue, catalogue->path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, error);
    if (status == MICA_OK)
        status = execute(catalogue, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON", error);
    if (status == MICA_OK)
        status = query_number(catalogue, "SELECT count(*) FROM sqlite_schema", &tables, error);
    return status == MICA_OK && tables == 0 ? create_schema(catalogue, error) : status;
}

static mica_status check_format(mica_catalogue *catalogue, mica_error *error) {
    int64_t application = 0, version = 0;
    sqlite3_stmt *statement = NULL;
    bool row = false;
    mica_status status = query_number(catalogue, "PRAGMA application_id", &application, error);
    if (status == MICA_OK)
        status = query_number(catalogue, "PRAGMA user_version", &version, error);
    if (status == MICA_OK && application != MICA_CATALOGUE_APPLICATION)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected the catalogue of a store, got another database", catalogue->path);
    if (status == MICA_OK && version != MICA_CATALOGUE_VERSION)
        return mica_fail(error, MICA_BAD_INPUT, "%s: expected version %d of the catalogue, got %" PRId64, catalogue->path,
                         MICA_CATALOGUE_VERSION, version);
    if (status == MICA_OK)
        status = mica_sql_bind(catalogue, MICA_SQL_GET, &statement, error, "t", "id");
    if (status == MICA_OK)
        status = mica_sql_step(catalogue, statement, &row, error);
    const char *id = row ? mica_sql_text(statement, 0) : NULL;
    const bool known = id && mica_uuid_parse(id, catalogue->id);
    sqlite3_reset(statement);
    if (status == MICA_OK && !known)
        status = mica_fail(error, MICA_CORRUPT, "%s: store: expected the store's id, a UUID, got none", catalogue->path);
    return status;
}

mica_status mica_catalogue_open(const char *path, bool write, mica_catalogue **catalogue, mica_error *error) {
    mica_catalogue *opened = mica_calloc(1, sizeof *opened);
    if (!opened || !(opened->path = mica_strdup(path))) {
        mica_free(opened);
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
    }
    opened->write = write;
    mica_status status = write ? open_writer(opened, error) : open_reader(opened, error);
    if (status == MICA_OK)
        status = check_format(opened, error);
    if (status == MICA_OK)
        *catalogue = opened;
    else
        mica_catalogue_close(opened);
    return status;
}

void mica_catalogue_close(mica_catalogue *catalogue) {
    if (!catalogue)
        return;
    mica_catalogue_rollback(catalogue);
    for (int i = 0; i < MICA_SQL_COUNT; i++)
        sqlite3_finalize(catalogue->statements[i]);
    sqlite3_close_v2(catalogue->database);
    mica_free(catalogue->path);
    mica_free(catalogue);
}

const uint8_t *mica_catalogue_id(const mica_catalogue *catalogue) {
    return catalogue->id;
}

/* ---- transactions */

mica_status mica_catalogue_version(mica_catalogue *catalogue, uint64_t *version, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    bool row = false;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_VERSION, &statement, error, "");
    if (status == MICA_OK)
        status = mica_sql_step(catalogue, statement, &row, error);
    if (status == MICA_OK && row)
        *version = (uint64_t)sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return status;
}

mica_status mica_catalogue_begin(mica_catalogue *catalogue, mica_error *error) {
    const mica_status status = mica_sql_run(catalogue, catalogue->write ? MICA_SQL_BEGIN_WRITE : MICA_SQL_BEGIN, error, "");
    catalogue->in_transaction = status == MICA_OK;
    return status;
}

static mica_status seal(mica_catalogue *catalogue, mica_error *error) {
    uint8_t digest[MICA_SHA256_BYTES];
    char hex[MICA_SHA256_HEX_BYTES];
    const mica_status status = mica_store_digest(catalogue, digest, error);
    if (status != MICA_OK)
        return status;
    mica_sha256_hex(digest, hex);
    return mica_sql_run(catalogue, MICA_SQL_PUT, error, "tt", "digest", hex);
}

mica_status mica_catalogue_commit(mica_catalogue *catalogue, mica_error *error) {
    mica_status status = catalogue->write ? seal(catalogue, error) : MICA_OK;
    if (status == MICA_OK)
        status = mica_sql_run(catalogue, MICA_SQL_COMMIT, error, "");
    if (status == MICA_OK)
        catalogue->in_transaction = false;
    else
        mica_catalogue_rollback(catalogue);
    return status;
}

void mica_catalogue_rollback(mica_catalogue *catalogue) {
    if (!catalogue->in_transaction)
        return;
    for (int i = 0; i < MICA_SQL_COUNT; i++)
        sqlite3_reset(catalogue->statements[i]);
    (void)sqlite3_exec(catalogue->database, "ROLLBACK", NULL, NULL, NULL); /* after some failures there is nothing left to roll back */
    catalogue->in_transaction = false;
}

mica_status mica_catalogue_compact(mica_catalogue *catalogue, mica_error *error) {
    int64_t empty = 0, pages = 0;
    mica_status status = query_number(catalogue, "PRAGMA freelist_count", &empty, error);
    if (status == MICA_OK)
        status = query_number(catalogue, "PRAGMA page_count", &pages, error);
    if (status == MICA_OK && empty * 4 > pages)
        status = execute(catalogue, "VACUUM", error);
    /* Readers may keep the log from being emptied: it is emptied some other time. */
    return status == MICA_OK ? execute(catalogue, "PRAGMA wal_checkpoint(TRUNCATE)", error) : status;
}

/* ---- models */

void mica_stored_model_release(mica_stored_model *model) {
    mica_free(model->name);
    mica_free(model->job);
    *model = (mica_stored_model){0};
}

void mica_stored_models_free(mica_stored_model *models, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        mica_stored_model_release(&models[i]);
    mica_free(models);
}

static mica_status read_model(mica_catalogue *catalogue, sqlite3_stmt *statement, void *item, mica_error *error) {
    return mica_sql_model(catalogue, statement, 0, item, error);
}

mica_status mica_catalogue_models(mica_catalogue *catalogue, mica_stored_model **models, uint64_t *count, mica_error *error) {
    void *list;
    uint64_t listed;
    const mica_status status = mica_sql_list(catalogue, MICA_SQL_MODELS, sizeof **models, read_model, &list, &listed, error, "");
    if (status != MICA_OK) {
        mica_stored_models_free(list, listed);
        return status;
    }
    *models = list;
    *count = listed;
    return MICA_OK;
}

mica_status mica_catalogue_find_model(mica_catalogue *catalogue, const char *name, bool whole, bool *found, mica_stored_model *model,
                                      mica_error *error) {
    sqlite3_stmt *statement = NULL;
    *found = false;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_FIND_MODEL, &statement, error, "tt", name, whole ? "whole" : "importing");
    if (status == MICA_OK)
        status = mica_sql_step(catalogue, statement, found, error);
    if (status == MICA_OK && *found)
        status = mica_sql_model(catalogue, statement, 0, model, error);
    sqlite3_reset(statement);
    return status;
}

mica_status mica_catalogue_add_model(mica_catalogue *catalogue, const char *name, const char *job, int64_t *id, mica_error *error) {
    const mica_status status = mica_sql_run(catalogue, MICA_SQL_ADD_MODEL, error, "tt", name, job);
    *id = sqlite3_last_insert_rowid(catalogue->database);
    return status;
}

mica_status mica_catalogue_remove_model(mica_catalogue *catalogue, int64_t id, mica_error *error) {
    mica_status status = mica_sql_run(catalogue, MICA_SQL_REMOVE_ENTRIES, error, "i", id);
    if (status == MICA_OK)
        status = mica_sql_run(catalogue, MICA_SQL_REMOVE_FILES, error, "i", id);
    if (status == MICA_OK)
        status = mica_sql_run(catalogue, MICA_SQL_REMOVE_DOCUMENTS, error, "");
    return status == MICA_OK ? mica_sql_run(catalogue, MICA_SQL_REMOVE_MODEL, error, "i", id) : status;
}

mica_status mica_catalogue_finish_model(mica_catalogue *catalogue, int64_t id, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    mica_stored_model model = {0};
    bool found = false;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_GET_MODEL, &statement, error, "i", id);
    if (status == MICA_OK)
        status = mica_sql_step(catalogue, statement, &found, error);
    if (status == MICA_OK)
        status = found ? mica_sql_model(catalogue, statement, 0, &model, error)
                       : mica_fail(error, MICA_CORRUPT, "%s: models: expected the model being imported, got no such row", catalogue->path);
    sqlite3_reset(statement);
    uint8_t digest[MICA_SHA256_BYTES];
    if (status == MICA_OK)
        status = mica_model_digest(catalogue, &model, digest, error);
    if (status == MICA_OK)
        status = mica_sql_run(catalogue, MICA_SQL_FINISH_MODEL, error, "iiib", id, (int64_t)model.tensors, (int64_t)model.bytes, digest,
                              (uint64_t)sizeof digest);
    mica_stored_model_release(&model);
    return status;
}
