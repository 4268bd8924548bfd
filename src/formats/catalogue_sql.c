/* formats/catalogue_sql.c: the schema, and SQLite behind our rules: statements prepared once, failures as sentences that name the file,
 * rows that are checked before anybody believes them. Judged by tests/operations/test_import.c and test_store_verify.c. */
#include "formats/catalogue_sql.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "base/memory.h"
#include "formats/json_cursor.h"

const char mica_catalogue_schema[] =
    "CREATE TABLE store (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;\n"
    "CREATE TABLE models (model INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,\n"
    "  state TEXT NOT NULL CHECK (state IN ('whole', 'importing')), job TEXT NOT NULL,\n"
    "  tensors INTEGER NOT NULL, bytes INTEGER NOT NULL, digest BLOB, UNIQUE (name, state));\n"
    "CREATE TABLE packs (pack INTEGER PRIMARY KEY AUTOINCREMENT, bytes INTEGER NOT NULL);\n"
    "CREATE TABLE shards (shard INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL, bytes INTEGER NOT NULL,\n"
    "  modified INTEGER NOT NULL, UNIQUE (path, bytes, modified));\n"
    "CREATE TABLE blobs (blob INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, uuid TEXT NOT NULL UNIQUE,\n"
    "  dtype TEXT NOT NULL, shape TEXT NOT NULL, bytes INTEGER NOT NULL,\n"
    "  pack INTEGER REFERENCES packs, shard INTEGER REFERENCES shards, offset INTEGER NOT NULL,\n"
    "  CHECK ((pack IS NULL) <> (shard IS NULL)));\n"
    "CREATE INDEX blobs_by_place ON blobs (pack, offset);\n"
    "CREATE TABLE tensors (model INTEGER NOT NULL REFERENCES models, name TEXT NOT NULL, blob INTEGER NOT NULL REFERENCES blobs,\n"
    "  encoding TEXT NOT NULL, scale TEXT, packed_shape TEXT, alias TEXT, check_bits INTEGER NOT NULL,\n"
    "  PRIMARY KEY (model, name)) WITHOUT ROWID;\n"
    "CREATE INDEX tensors_by_blob ON tensors (blob);\n"
    "CREATE INDEX tensors_by_alias ON tensors (alias) WHERE alias IS NOT NULL;\n"
    "CREATE TABLE documents (sha256 BLOB PRIMARY KEY, bytes INTEGER NOT NULL, content BLOB NOT NULL);\n"
    "CREATE TABLE files (model INTEGER NOT NULL REFERENCES models, name TEXT NOT NULL, sha256 BLOB NOT NULL REFERENCES documents,\n"
    "  PRIMARY KEY (model, name)) WITHOUT ROWID;\n"
    "CREATE VIEW readable AS SELECT m.name AS model, m.state AS state, t.name AS tensor, b.uuid AS uuid, b.dtype AS dtype,\n"
    "  b.shape AS shape, b.bytes AS bytes, t.encoding AS encoding, t.scale AS scale, t.packed_shape AS packed_shape, t.alias AS alias,\n"
    "  COALESCE(printf('packs/%06d.pack', b.pack), s.path) AS file, b.offset AS offset, lower(hex(b.sha256)) AS sha256\n"
    "  FROM models m JOIN tensors t USING (model) JOIN blobs b USING (blob) LEFT JOIN shards s ON s.shard = b.shard;\n";

static const char *const sql_texts[MICA_SQL_COUNT] = {
#define X(name, sql) sql,
    MICA_STATEMENTS(X)
#undef X
};

static mica_status status_of(int code) {
    switch (code & 0xff) {
    case SQLITE_NOMEM: return MICA_NO_MEMORY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH: return MICA_CORRUPT;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return MICA_CONFLICT;
    case SQLITE_ERROR:
    case SQLITE_SCHEMA: return MICA_CORRUPT; /* our statements are fixed: the schema is not the one they were written for */
    default: return MICA_IO;
    }
}

mica_status mica_sql_fail(const mica_catalogue *catalogue, int code, mica_error *error) {
    return mica_fail(error, status_of(code), "%s: %s", catalogue->path,
                     catalogue->database ? sqlite3_errmsg(catalogue->database) : sqlite3_errstr(code));
}

static int bind_one(sqlite3_stmt *statement, int index, char kind, va_list *arguments) {
    switch (kind) {
    case 'i': return sqlite3_bind_int64(statement, index, va_arg(*arguments, int64_t));
    case 't': return sqlite3_bind_text(statement, index, va_arg(*arguments, const char *), -1, SQLITE_TRANSIENT);
    case 'b': {
        const void *bytes = va_arg(*arguments, const void *);
        const uint64_t length = va_arg(*arguments, uint64_t);
        return sqlite3_bind_blob64(statement, index, length ? bytes : "", length, SQLITE_TRANSIENT);
    }
    default: return sqlite3_bind_null(statement, index);
    }
}

static mica_status bind_all(mica_catalogue *catalogue, mica_statement which, sqlite3_stmt **statement, mica_error *error, const char *kinds,
                            va_list *arguments) {
    sqlite3_stmt **prepared = &catalogue->statements[which];
    int code = SQLITE_OK;
    if (!*prepared)
        code = sqlite3_prepare_v3(catalogue->database, sql_texts[which], -1, SQLITE_PREPARE_PERSISTENT, prepared, NULL);
    for (int i = 0; code == SQLITE_OK && kinds[i]; i++)
        code = bind_one(*prepared, i + 1, kinds[i], arguments);
    *statement = *prepared;
    return code == SQLITE_OK ? MICA_OK : mica_sql_fail(catalogue, code, error);
}

mica_status mica_sql_bind(mica_catalogue *catalogue, mica_statement which, sqlite3_stmt **statement, mica_error *error, const char *kinds,
                          ...) {
    va_list arguments;
    va_start(arguments, kinds);
    const mica_status status = bind_all(catalogue, which, statement, error, kinds, &arguments);
    va_end(arguments);
    return status;
}

mica_status mica_sql_step(mica_catalogue *catalogue, sqlite3_stmt *statement, bool *row, mica_error *error) {
    const int code = sqlite3_step(statement);
    *row = code == SQLITE_ROW;
    if (*row)
        return MICA_OK;
    const mica_status status = code == SQLITE_DONE ? MICA_OK : mica_sql_fail(catalogue, code, error);
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return status;
}

typedef mica_status row_function(mica_catalogue *catalogue, sqlite3_stmt *statement, void *context, mica_error *error);

/* Binds, and gives every row to `visit` (NULL: nobody). */
static mica_status each_row(mica_catalogue *catalogue, mica_statement which, row_function *visit, void *context, mica_error *error,
                            const char *kinds, va_list *arguments) {
    sqlite3_stmt *statement = NULL;
    bool row = true;
    mica_status status = bind_all(catalogue, which, &statement, error, kinds, arguments);
    while (status == MICA_OK && row) {
        status = mica_sql_step(catalogue, statement, &row, error);
        if (status == MICA_OK && row && visit)
            status = visit(catalogue, statement, context, error);
    }
    sqlite3_reset(statement);
    return status;
}

mica_status mica_sql_run(mica_catalogue *catalogue, mica_statement which, mica_error *error, const char *kinds, ...) {
    va_list arguments;
    va_start(arguments, kinds);
    const mica_status status = each_row(catalogue, which, NULL, NULL, error, kinds, &arguments);
    va_end(arguments);
    return status;
}

typedef struct listing {
    uint64_t item_bytes, count;
    mica_sql_reader *read;
    uint8_t *items;
} listing;

static mica_status add_item(mica_catalogue *catalogue, sqlite3_stmt *statement, void *context, mica_error *error) {
    listing *list = context;
    if ((list->count & (list->count - 1)) == 0) { /* capacities are powers of two */
        void *more = mica_reallocarray(list->items, list->count ? 2 * list->count : 1, list->item_bytes);
        if (!more)
            return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", catalogue->path);
        list->items = more;
    }
    const mica_status status = list->read(catalogue, statement, list->items + list->count * list->item_bytes, error);
    list->count += status == MICA_OK;
    return status;
}

mica_status mica_sql_list(mica_catalogue *catalogue, mica_statement which, uint64_t item_bytes, mica_sql_reader *read, void **list,
                          uint64_t *count, mica_error *error, const char *kinds, ...) {
    listing items = {.item_bytes = item_bytes, .read = read};
    va_list arguments;
    va_start(arguments, kinds);
    const mica_status status = each_row(catalogue, which, add_item, &items, error, kinds, &arguments);
    va_end(arguments);
    *list = items.items;
    *count = items.count;
    return status;
}

const char *mica_sql_text(sqlite3_stmt *statement, int column) {
    if (sqlite3_column_type(statement, column) != SQLITE_TEXT)
        return NULL;
    const char *text = (const char *)sqlite3_column_text(statement, column);
    return text && strlen(text) == (size_t)sqlite3_column_bytes(statement, column) ? text : NULL;
}

bool mica_sql_digest(sqlite3_stmt *statement, int column, uint8_t digest[MICA_SHA256_BYTES]) {
    if (sqlite3_column_type(statement, column) != SQLITE_BLOB || sqlite3_column_bytes(statement, column) != MICA_SHA256_BYTES)
        return false;
    memcpy(digest, sqlite3_column_blob(statement, column), MICA_SHA256_BYTES);
    return true;
}

/* "2048 7168"; "" for a scalar. */
static bool parse_shape(const char *text, mica_blob *blob) {
    blob->rank = 0;
    blob->elements = 1;
    for (const char *at = text; *at;) {
        uint64_t value = 0;
        if (blob->rank == MICA_RANK_MAX || *at < '0' || *at > '9')
            return false;
        for (; *at >= '0' && *at <= '9'; at++)
            if (!mica_mul_u64(value, 10, &value) || !mica_add_u64(value, (uint64_t)(*at - '0'), &value))
                return false;
        blob->shape[blob->rank++] = value;
        if (!mica_mul_u64(blob->elements, value, &blob->elements) || (*at && (*at++ != ' ' || !*at)))
            return false;
    }
    return true;
}

static bool is_integer(sqlite3_stmt *statement, int column) {
    return sqlite3_column_type(statement, column) == SQLITE_INTEGER;
}

static bool is_null(sqlite3_stmt *statement, int column) {
    return sqlite3_column_type(statement, column) == SQLITE_NULL;
}

/* One of pack and shard is a number, the other null. */
static bool has_one_place(sqlite3_stmt *statement, int pack, int shard) {
    return (is_integer(statement, pack) && is_null(statement, shard)) || (is_null(statement, pack) && is_integer(statement, shard));
}

static bool read_blob(sqlite3_stmt *statement, int column, mica_blob *blob) {
    uint8_t uuid[MICA_UUID_BYTES];
    char own[MICA_UUID_TEXT_BYTES];
    uint64_t bytes = 0, last = 1;
    const char *id = mica_sql_text(statement, column + 2), *dtype = mica_sql_text(statement, column + 3);
    const char *shape = mica_sql_text(statement, column + 4);
    const int64_t size = sqlite3_column_int64(statement, column + 5), offset = sqlite3_column_int64(statement, column + 8);
    *blob = (mica_blob){.id = sqlite3_column_int64(statement, column),
                        .bytes = (uint64_t)size,
                        .pack = sqlite3_column_int64(statement, column + 6),
                        .shard = sqlite3_column_int64(statement, column + 7),
                        .offset = (uint64_t)offset};
    if (!is_integer(statement, column) || !is_integer(statement, column + 5) || !is_integer(statement, column + 8) ||
        !has_one_place(statement, column + 6, column + 7))
        return false;
    if (!mica_sql_digest(statement, column + 1, blob->sha256) || !id || !dtype || !shape || size < 0 || offset < 0 ||
        (blob->pack > 0) == (blob->shard > 0) || !parse_shape(shape, blob))
        return false;
    if (!mica_dtype_parse(dtype, &blob->dtype) && !mica_dtype_parse_block(dtype, &blob->dtype))
        return false;
    if (mica_dtype_is_block(blob->dtype))
        last = blob->rank ? blob->shape[blob->rank - 1] : 0; /* rows are whole blocks */
    if (!mica_dtype_run_bytes(blob->dtype, last, &bytes) || !mica_dtype_run_bytes(blob->dtype, blob->elements, &bytes))
        return false;
    mica_uuid_of_digest(blob->sha256, uuid);
    mica_uuid_show(uuid, own);
    return bytes == blob->bytes && strcmp(own, id) == 0;
}

mica_status mica_sql_blob(mica_catalogue *catalogue, sqlite3_stmt *statement, int column, const char *what, mica_blob *blob,
                          mica_error *error) {
    if (read_blob(statement, column, blob))
        return MICA_OK;
    return mica_fail(error, MICA_CORRUPT, "%s: %s: expected a row of blobs whose columns agree, got another", catalogue->path, what);
}

mica_status mica_sql_entry(mica_catalogue *catalogue, sqlite3_stmt *statement, int column, mica_entry *entry, int64_t *check,
                           mica_error *error) {
    *entry = (mica_entry){.name = mica_sql_text(statement, column),
                          .encoding = mica_sql_text(statement, column + 1),
                          .scale = mica_sql_text(statement, column + 2),
                          .packed_shape = mica_sql_text(statement, column + 3),
                          .alias = mica_sql_text(statement, column + 4)};
    *check = sqlite3_column_int64(statement, column + 5);
    bool typed = true; /* what may be absent is text or null */
    for (int i = 2; i < 5; i++)
        typed = typed && (mica_sql_text(statement, column + i) || is_null(statement, column + i));
    if (!entry->name || !entry->encoding || !typed)
        return mica_fail(error, MICA_CORRUPT, "%s: expected a row of tensors with name and encoding, got one without", catalogue->path);
    char shown[MICA_NAME_SHOW_BYTES];
    return mica_sql_blob(catalogue, statement, column + 6, mica_name_show(entry->name, shown), &entry->blob, error);
}

mica_status mica_sql_model(mica_catalogue *catalogue, sqlite3_stmt *statement, int column, mica_stored_model *model, mica_error *error) {
    const char *name = mica_sql_text(statement, column + 1), *state = mica_sql_text(statement, column + 2);
    const char *job = mica_sql_text(statement, column + 3);
    *model = (mica_stored_model){.id = sqlite3_column_int64(statement, column),
                                 .whole = state && strcmp(state, "whole") == 0,
                                 .tensors = (uint64_t)sqlite3_column_int64(statement, column + 4),
                                 .bytes = (uint64_t)sqlite3_column_int64(statement, column + 5)};
    if (!name || !state || !job || (model->whole && !mica_sql_digest(statement, column + 6, model->digest)))
        return mica_fail(error, MICA_CORRUPT, "%s: expected a row of models with name, state, job and digest, got one without",
                         catalogue->path);
    model->name = mica_strdup(name);
    model->job = mica_strdup(job);
    if (model->name && model->job)
        return MICA_OK;
    mica_stored_model_release(model);
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", catalogue->path);
}
