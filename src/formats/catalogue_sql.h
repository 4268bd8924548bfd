/* formats/catalogue_sql.h: the schema and every statement of the catalogue, as one table; and the few calls that bind, step and read.
 * Private to catalogue*.c. */
#ifndef MICA_FORMATS_CATALOGUE_SQL_H
#define MICA_FORMATS_CATALOGUE_SQL_H

#include <sqlite3.h>

#include "formats/catalogue.h"

#define MICA_CATALOGUE_APPLICATION 0x4d494341 /* "MICA" */
#define MICA_CATALOGUE_VERSION 1

extern const char mica_catalogue_schema[];

#define MICA_BLOB_COLUMNS "b.blob, b.sha256, b.uuid, b.dtype, b.shape, b.bytes, b.pack, b.shard, b.offset"
#define MICA_ENTRY_COLUMNS "t.name, t.encoding, t.scale, t.packed_shape, t.alias, t.check_bits, " MICA_BLOB_COLUMNS
#define MICA_MODEL_COLUMNS "m.model, m.name, m.state, m.job, m.tensors, m.bytes, m.digest"

#define MICA_STATEMENTS(X)                                                                                                          \
    X(BEGIN, "BEGIN")                                                                                                              \
    X(BEGIN_WRITE, "BEGIN IMMEDIATE")                                                                                              \
    X(COMMIT, "COMMIT")                                                                                                            \
    X(GET, "SELECT value FROM store WHERE key = ?1")                                                                               \
    X(PUT, "INSERT OR REPLACE INTO store (key, value) VALUES (?1, ?2)")                                                            \
    X(STORE_ROWS, "SELECT key, value FROM store WHERE key <> 'digest' ORDER BY key")                                               \
    X(VERSION, "PRAGMA data_version")                                                                                              \
    X(MODELS, "SELECT " MICA_MODEL_COLUMNS " FROM models m ORDER BY m.name, m.state DESC")                                         \
    X(FIND_MODEL, "SELECT " MICA_MODEL_COLUMNS " FROM models m WHERE m.name = ?1 AND m.state = ?2")                                \
    X(GET_MODEL, "SELECT " MICA_MODEL_COLUMNS " FROM models m WHERE m.model = ?1")                                                 \
    X(ADD_MODEL, "INSERT INTO models (name, state, job, tensors, bytes) VALUES (?1, 'importing', ?2, 0, 0)")                       \
    X(FINISH_MODEL, "UPDATE models SET state = 'whole', tensors = ?2, bytes = ?3, digest = ?4 WHERE model = ?1")                   \
    X(REMOVE_ENTRIES, "DELETE FROM tensors WHERE model = ?1")                                                                      \
    X(REMOVE_FILES, "DELETE FROM files WHERE model = ?1")                                                                          \
    X(REMOVE_DOCUMENTS, "DELETE FROM documents WHERE sha256 NOT IN (SELECT sha256 FROM files)")                                    \
    X(REMOVE_MODEL, "DELETE FROM models WHERE model = ?1")                                                                         \
    X(ADD_ENTRY, "INSERT INTO tensors (model, name, blob, encoding, scale, packed_shape, alias, check_bits)"                       \
                 " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")                                                                       \
    X(FIND_ENTRY, "SELECT " MICA_ENTRY_COLUMNS " FROM tensors t LEFT JOIN blobs b USING (blob) WHERE t.model = ?1 AND t.name = ?2")  \
    X(ENTRIES, "SELECT " MICA_ENTRY_COLUMNS " FROM tensors t LEFT JOIN blobs b USING (blob) WHERE t.model = ?1 ORDER BY t.name")   \
    X(SHARERS, "SELECT " MICA_MODEL_COLUMNS ", " MICA_ENTRY_COLUMNS                                                                \
               " FROM tensors t JOIN models m USING (model) JOIN blobs b USING (blob) WHERE t.blob = ?1 ORDER BY m.name, m.state, t.name") \
    X(BY_NAME, "SELECT " MICA_MODEL_COLUMNS ", " MICA_ENTRY_COLUMNS " FROM models m JOIN tensors t ON t.model = m.model AND t.name = ?1" \
               " JOIN blobs b USING (blob) WHERE m.state = 'whole' ORDER BY m.name")                                               \
    X(BY_UUID, "SELECT " MICA_MODEL_COLUMNS ", " MICA_ENTRY_COLUMNS " FROM blobs b JOIN tensors t USING (blob) JOIN models m USING (model)" \
               " WHERE b.uuid = ?1 AND m.state = 'whole' ORDER BY m.name, t.name")                                                 \
    X(BY_ALIAS, "SELECT " MICA_MODEL_COLUMNS ", " MICA_ENTRY_COLUMNS " FROM tensors t JOIN blobs b USING (blob) JOIN models m USING (model)" \
                " WHERE t.alias = ?1 AND m.state = 'whole' ORDER BY m.name, t.name")                                               \
    X(FIND_BLOB, "SELECT " MICA_BLOB_COLUMNS " FROM blobs b WHERE b.sha256 = ?1")                                                  \
    X(ADD_BLOB, "INSERT INTO blobs (sha256, uuid, dtype, shape, bytes, pack, shard, offset) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)") \
    X(MOVE_BLOB, "UPDATE blobs SET pack = ?2, shard = ?3, offset = ?4 WHERE blob = ?1")                                            \
    X(REMOVE_BLOB, "DELETE FROM blobs WHERE blob = ?1")                                                                            \
    X(PACK_BLOBS, "SELECT " MICA_BLOB_COLUMNS ", EXISTS (SELECT 1 FROM tensors t WHERE t.blob = b.blob) FROM blobs b"              \
                  " WHERE b.pack = ?1 ORDER BY b.offset, b.bytes, b.blob")                                                         \
    X(LINKED_BLOBS, "SELECT " MICA_BLOB_COLUMNS ", EXISTS (SELECT 1 FROM tensors t WHERE t.blob = b.blob) FROM blobs b"            \
                    " WHERE b.pack IS NULL ORDER BY b.shard, b.offset, b.blob")                                                    \
    X(PACKS, "SELECT pack, bytes FROM packs ORDER BY pack")                                                                        \
    X(NEXT_PACK, "SELECT max(COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'packs'), 0), COALESCE((SELECT max(pack) FROM packs), 0)) + 1")                                 \
    X(SET_PACK, "INSERT INTO packs (pack, bytes) VALUES (?1, ?2) ON CONFLICT (pack) DO UPDATE SET bytes = excluded.bytes")         \
    X(REMOVE_PACK, "DELETE FROM packs WHERE pack = ?1")                                                                            \
    X(SHARDS, "SELECT shard, path, bytes, modified FROM shards ORDER BY shard")                                                    \
    X(FIND_SHARD, "SELECT shard FROM shards WHERE path = ?1 AND bytes = ?2 AND modified = ?3")                                     \
    X(ADD_SHARD, "INSERT INTO shards (path, bytes, modified) VALUES (?1, ?2, ?3)")                                                 \
    X(REMOVE_SHARDS, "DELETE FROM shards WHERE shard NOT IN (SELECT shard FROM blobs WHERE shard IS NOT NULL)")                    \
    X(ADD_DOCUMENT, "INSERT INTO documents (sha256, bytes, content) VALUES (?1, ?2, ?3) ON CONFLICT (sha256) DO NOTHING")          \
    X(ADD_FILE, "INSERT OR REPLACE INTO files (model, name, sha256) VALUES (?1, ?2, ?3)")                                          \
    X(FILES, "SELECT f.name, f.sha256, d.bytes FROM files f LEFT JOIN documents d USING (sha256) WHERE f.model = ?1 ORDER BY f.name") \
    X(DOCUMENT, "SELECT content FROM documents WHERE sha256 = ?1")                                                                 \
    X(DOCUMENTS, "SELECT sha256, bytes, content FROM documents ORDER BY sha256")                                                   \
    X(LOST_BLOBS, "SELECT hex(b.sha256), b.pack FROM blobs b WHERE b.pack IS NOT NULL AND b.pack NOT IN (SELECT pack FROM packs)") \
    X(LOST_ENTRIES, "SELECT t.name FROM tensors t WHERE t.model NOT IN (SELECT model FROM models)")                                \
    X(LOST_FILES, "SELECT f.name FROM files f WHERE f.model NOT IN (SELECT model FROM models)")                                    \
    X(FREE_PAGES, "SELECT freelist_count, page_count FROM pragma_freelist_count, pragma_page_count")                               \
    X(INTEGRITY, "PRAGMA integrity_check")

typedef enum mica_statement {
#define X(name, sql) MICA_SQL_##name,
    MICA_STATEMENTS(X)
#undef X
    MICA_SQL_COUNT
} mica_statement;

struct mica_catalogue {
    sqlite3 *database;
    char *path;
    bool write, changed, in_transaction;
    uint8_t id[MICA_UUID_BYTES];
    sqlite3_stmt *statements[MICA_SQL_COUNT]; /* prepared at first use */
};

/* A failure of SQLite's as one of ours. */
mica_status mica_sql_fail(const mica_catalogue *catalogue, int code, mica_error *error);
/* The statement with its parameters bound, one letter each: i int64_t, t text (NULL: null), b blob and its length (uint64_t), n null. */
mica_status mica_sql_bind(mica_catalogue *catalogue, mica_statement which, sqlite3_stmt **statement, mica_error *error, const char *kinds,
                          ...) MICA_CHECKED;
/* *row true: columns can be read. False: it is over, and reset. A failure resets as well. */
mica_status mica_sql_step(mica_catalogue *catalogue, sqlite3_stmt *statement, bool *row, mica_error *error) MICA_CHECKED;
/* For what gives no rows. */
mica_status mica_sql_run(mica_catalogue *catalogue, mica_statement which, mica_error *error, const char *kinds, ...) MICA_CHECKED;
/* Every row of a statement as an item of a list that grows: `read` fills one (what it leaves when it fails owns nothing). The list is the caller's to
 * free after a failure too, with the items that were read. */
typedef mica_status mica_sql_reader(mica_catalogue *catalogue, sqlite3_stmt *statement, void *item, mica_error *error);
mica_status mica_sql_list(mica_catalogue *catalogue, mica_statement which, uint64_t item_bytes, mica_sql_reader *read, void **list,
                          uint64_t *count, mica_error *error, const char *kinds, ...) MICA_CHECKED;
/* NULL where it is null, no text, or holds a NUL. */
const char *mica_sql_text(sqlite3_stmt *statement, int column);
bool mica_sql_digest(sqlite3_stmt *statement, int column, uint8_t digest[MICA_SHA256_BYTES]);

/* MICA_BLOB_COLUMNS from `column` on; CORRUPT when they contradict each other. `what` is named then. */
mica_status mica_sql_blob(mica_catalogue *catalogue, sqlite3_stmt *statement, int column, const char *what, mica_blob *blob,
                          mica_error *error) MICA_CHECKED;
/* MICA_ENTRY_COLUMNS; the texts are the statement's. *check is the row's own. */
mica_status mica_sql_entry(mica_catalogue *catalogue, sqlite3_stmt *statement, int column, mica_entry *entry, int64_t *check,
                           mica_error *error) MICA_CHECKED;
mica_status mica_sql_model(mica_catalogue *catalogue, sqlite3_stmt *statement, int column, mica_stored_model *model,
                           mica_error *error) MICA_CHECKED;

/* ---- digests (catalogue_digest.c) */

/* The row's check: the first 8 bytes of SHA-256 over all that it says (not where the payload lies: that moves). */
mica_status mica_entry_check(const mica_entry *entry, int64_t *check, mica_error *error) MICA_CHECKED;
/* Over a model's row, its files and its tensors; fills model's count and bytes as they are. */
mica_status mica_model_digest(mica_catalogue *catalogue, mica_stored_model *model, uint8_t digest[MICA_SHA256_BYTES],
                              mica_error *error) MICA_CHECKED;
/* Over the store's own rows, every model's digest, and the linked shards. */
mica_status mica_store_digest(mica_catalogue *catalogue, uint8_t digest[MICA_SHA256_BYTES], mica_error *error) MICA_CHECKED;

#endif
