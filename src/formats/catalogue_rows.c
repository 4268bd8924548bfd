/* formats/catalogue_rows.c: the catalogue's rows of tensors, payloads, packs, linked shards and kept files.
 * Judged by tests/operations/test_import.c and test_store_verify.c. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "formats/catalogue_sql.h"

static mica_status no_memory(const mica_catalogue *catalogue, mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", catalogue->path);
}

/* ---- tensors */

mica_status mica_catalogue_add_entry(mica_catalogue *catalogue, int64_t model, const mica_entry *entry, mica_error *error) {
    int64_t check = 0;
    const mica_status status = mica_entry_check(entry, &check, error);
    if (status != MICA_OK)
        return status;
    return mica_sql_run(catalogue, MICA_SQL_ADD_ENTRY, error, "ititttti", model, entry->name, entry->blob.id, entry->encoding, entry->scale,
                        entry->packed_shape, entry->alias, check);
}

mica_status mica_catalogue_find_entry(mica_catalogue *catalogue, int64_t model, const char *name, bool *found, mica_entry *entry,
                                      mica_error *error) {
    sqlite3_stmt *statement = catalogue->statements[MICA_SQL_FIND_ENTRY];
    int64_t check;
    sqlite3_reset(statement); /* of the call before, whose texts were its caller's until now */
    *found = false;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_FIND_ENTRY, &statement, error, "it", model, name);
    if (status == MICA_OK)
        status = mica_sql_step(catalogue, statement, found, error);
    return status == MICA_OK && *found ? mica_sql_entry(catalogue, statement, 0, entry, &check, error) : status;
}

mica_status mica_catalogue_each_entry(mica_catalogue *catalogue, int64_t model, mica_entry_visit visit, void *context, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    bool row = true;
    mica_entry entry;
    int64_t check;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_ENTRIES, &statement, error, "i", model);
    while (status == MICA_OK && (status = mica_sql_step(catalogue, statement, &row, error)) == MICA_OK && row) {
        status = mica_sql_entry(catalogue, statement, 0, &entry, &check, error);
        if (status == MICA_OK)
            status = visit(context, NULL, &entry, error);
    }
    sqlite3_reset(statement);
    return status;
}

#define MODEL_COLUMN_COUNT 7

/* Rows of MICA_MODEL_COLUMNS, MICA_ENTRY_COLUMNS. */
static mica_status each_named(mica_catalogue *catalogue, sqlite3_stmt *statement, mica_entry_visit visit, void *context,
                              mica_error *error) {
    bool row = true;
    mica_entry entry;
    int64_t check;
    mica_status status = MICA_OK;
    while (status == MICA_OK && (status = mica_sql_step(catalogue, statement, &row, error)) == MICA_OK && row) {
        mica_stored_model model = {0};
        status = mica_sql_model(catalogue, statement, 0, &model, error);
        if (status == MICA_OK)
            status = mica_sql_entry(catalogue, statement, MODEL_COLUMN_COUNT, &entry, &check, error);
        if (status == MICA_OK)
            status = visit(context, &model, &entry, error);
        mica_stored_model_release(&model);
    }
    sqlite3_reset(statement);
    return status;
}

mica_status mica_catalogue_each_sharer(mica_catalogue *catalogue, int64_t blob, mica_entry_visit visit, void *context, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    const mica_status status = mica_sql_bind(catalogue, MICA_SQL_SHARERS, &statement, error, "i", blob);
    return status == MICA_OK ? each_named(catalogue, statement, visit, context, error) : status;
}

mica_status mica_catalogue_each_match(mica_catalogue *catalogue, const char *name_or_uuid, mica_entry_visit visit, void *context,
                                      mica_error *error) {
    static const mica_statement ways[] = {MICA_SQL_BY_NAME, MICA_SQL_BY_UUID, MICA_SQL_BY_ALIAS};
    uint8_t uuid[MICA_UUID_BYTES];
    char text[MICA_UUID_TEXT_BYTES];
    const bool is_uuid = mica_uuid_parse(name_or_uuid, uuid);
    mica_status status = MICA_OK;
    if (is_uuid)
        mica_uuid_show(uuid, text);
    for (size_t i = 0; i < (is_uuid ? 3 : 1) && status == MICA_OK; i++) {
        sqlite3_stmt *statement = NULL;
        status = mica_sql_bind(catalogue, ways[i], &statement, error, "t", i ? text : name_or_uuid);
        if (status == MICA_OK)
            status = each_named(catalogue, statement, visit, context, error);
    }
    return status;
}

/* ---- payloads */

mica_status mica_catalogue_find_blob(mica_catalogue *catalogue, const uint8_t sha256[MICA_SHA256_BYTES], bool *found, mica_blob *blob,
                                     mica_error *error) {
    sqlite3_stmt *statement = NULL;
    *found = false;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_FIND_BLOB, &statement, error, "b", sha256, (uint64_t)MICA_SHA256_BYTES);
    if (status == MICA_OK)
        status = mica_sql_step(catalogue, statement, found, error);
    if (status == MICA_OK && *found)
        status = mica_sql_blob(catalogue, statement, 0, "a payload", blob, error);
    sqlite3_reset(statement);
    return status;
}

mica_status mica_catalogue_add_blob(mica_catalogue *catalogue, mica_blob *blob, mica_error *error) {
    uint8_t uuid[MICA_UUID_BYTES];
    char id[MICA_UUID_TEXT_BYTES], shape[MICA_RANK_MAX * 21 + 1] = "";
    size_t length = 0;
    mica_uuid_of_digest(blob->sha256, uuid);
    mica_uuid_show(uuid, id);
    for (uint32_t i = 0; i < blob->rank; i++)
        length += (size_t)snprintf(shape + length, sizeof shape - length, "%s%" PRIu64, i ? " " : "", blob->shape[i]);
    const mica_status status = mica_sql_run(catalogue, MICA_SQL_ADD_BLOB, error, blob->pack ? "bttti" "ini" : "bttti" "nii", blob->sha256,
                                            (uint64_t)MICA_SHA256_BYTES, id, mica_dtype_name(blob->dtype), shape, (int64_t)blob->bytes,
                                            blob->pack ? blob->pack : blob->shard, (int64_t)blob->offset);
    blob->id = sqlite3_last_insert_rowid(catalogue->database);
    return status;
}

mica_status mica_catalogue_move_blob(mica_catalogue *catalogue, const mica_blob *blob, mica_error *error) {
    return mica_sql_run(catalogue, MICA_SQL_MOVE_BLOB, error, blob->pack ? "iini" : "inii", blob->id, blob->pack ? blob->pack : blob->shard,
                        (int64_t)blob->offset);
}

mica_status mica_catalogue_remove_blob(mica_catalogue *catalogue, int64_t id, mica_error *error) {
    return mica_sql_run(catalogue, MICA_SQL_REMOVE_BLOB, error, "i", id);
}

mica_status mica_catalogue_each_blob(mica_catalogue *catalogue, int64_t pack, mica_blob_visit visit, void *context, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    bool row = true;
    mica_blob blob;
    mica_status status = pack ? mica_sql_bind(catalogue, MICA_SQL_PACK_BLOBS, &statement, error, "i", pack)
                              : mica_sql_bind(catalogue, MICA_SQL_LINKED_BLOBS, &statement, error, "");
    while (status == MICA_OK && (status = mica_sql_step(catalogue, statement, &row, error)) == MICA_OK && row) {
        const bool used = sqlite3_column_int64(statement, 9) != 0;
        status = mica_sql_blob(catalogue, statement, 0, "a payload", &blob, error);
        if (status == MICA_OK)
            status = visit(context, &blob, used, error);
    }
    sqlite3_reset(statement);
    return status;
}

/* ---- packs */

static mica_status read_pack(mica_catalogue *catalogue, sqlite3_stmt *statement, void *item, mica_error *error) {
    const int64_t number = sqlite3_column_int64(statement, 0), bytes = sqlite3_column_int64(statement, 1);
    if (number <= 0 || bytes < 0)
        return mica_fail(error, MICA_CORRUPT, "%s: packs: expected positive numbers, got pack %" PRId64 " of %" PRId64 " bytes",
                         catalogue->path, number, bytes);
    *(mica_stored_pack *)item = (mica_stored_pack){number, (uint64_t)bytes};
    return MICA_OK;
}

mica_status mica_catalogue_packs(mica_catalogue *catalogue, mica_stored_pack **packs, uint64_t *count, mica_error *error) {
    void *list;
    uint64_t listed;
    const mica_status status = mica_sql_list(catalogue, MICA_SQL_PACKS, sizeof **packs, read_pack, &list, &listed, error, "");
    if (status != MICA_OK) {
        mica_free(list);
        return status;
    }
    *packs = list;
    *count = listed;
    return MICA_OK;
}

mica_status mica_catalogue_next_pack(mica_catalogue *catalogue, int64_t *number, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    bool row = false;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_NEXT_PACK, &statement, error, "");
    if (status == MICA_OK)
        status = mica_sql_step(catalogue, statement, &row, error);
    if (row)
        *number = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return status;
}

mica_status mica_catalogue_set_pack(mica_catalogue *catalogue, int64_t number, uint64_t bytes, mica_error *error) {
    return mica_sql_run(catalogue, MICA_SQL_SET_PACK, error, "ii", number, (int64_t)bytes);
}

mica_status mica_catalogue_remove_pack(mica_catalogue *catalogue, int64_t number, mica_error *error) {
    return mica_sql_run(catalogue, MICA_SQL_REMOVE_PACK, error, "i", number);
}

/* ---- linked shards */

void mica_stored_shards_free(mica_stored_shard *shards, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        mica_free(shards[i].path);
    mica_free(shards);
}

static mica_status read_shard(mica_catalogue *catalogue, sqlite3_stmt *statement, void *item, mica_error *error) {
    const char *path = mica_sql_text(statement, 1);
    if (!path)
        return mica_fail(error, MICA_CORRUPT, "%s: shards: expected a path, got none", catalogue->path);
    char *copy = mica_strdup(path);
    if (!copy)
        return no_memory(catalogue, error);
    *(mica_stored_shard *)item = (mica_stored_shard){sqlite3_column_int64(statement, 0), copy,
                                                     (uint64_t)sqlite3_column_int64(statement, 2), sqlite3_column_int64(statement, 3)};
    return MICA_OK;
}

mica_status mica_catalogue_shards(mica_catalogue *catalogue, mica_stored_shard **shards, uint64_t *count, mica_error *error) {
    void *list;
    uint64_t listed;
    const mica_status status = mica_sql_list(catalogue, MICA_SQL_SHARDS, sizeof **shards, read_shard, &list, &listed, error, "");
    if (status != MICA_OK) {
        mica_stored_shards_free(list, listed);
        return status;
    }
    *shards = list;
    *count = listed;
    return MICA_OK;
}

mica_status mica_catalogue_add_shard(mica_catalogue *catalogue, mica_stored_shard *shard, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    bool found = false;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_FIND_SHARD, &statement, error, "tii", shard->path, (int64_t)shard->bytes,
                                       shard->modified);
    if (status == MICA_OK)
        status = mica_sql_step(catalogue, statement, &found, error);
    if (found)
        shard->id = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    if (status == MICA_OK && !found) {
        status = mica_sql_run(catalogue, MICA_SQL_ADD_SHARD, error, "tii", shard->path, (int64_t)shard->bytes, shard->modified);
        shard->id = sqlite3_last_insert_rowid(catalogue->database);
    }
    return status;
}

mica_status mica_catalogue_remove_unused_shards(mica_catalogue *catalogue, mica_error *error) {
    return mica_sql_run(catalogue, MICA_SQL_REMOVE_SHARDS, error, "");
}

/* ---- files */

mica_status mica_catalogue_add_file(mica_catalogue *catalogue, int64_t model, const char *name, const void *bytes, uint64_t length,
                                    mica_error *error) {
    uint8_t digest[MICA_SHA256_BYTES];
    mica_status status = mica_sha256_of(bytes, length, digest, error);
    if (status == MICA_OK)
        status = mica_sql_run(catalogue, MICA_SQL_ADD_DOCUMENT, error, "bib", digest, (uint64_t)sizeof digest, (int64_t)length, bytes,
                              length);
    return status == MICA_OK ? mica_sql_run(catalogue, MICA_SQL_ADD_FILE, error, "itb", model, name, digest, (uint64_t)sizeof digest)
                             : status;
}

void mica_stored_files_free(mica_stored_file *files, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        mica_free(files[i].name);
    mica_free(files);
}

static mica_status read_file(mica_catalogue *catalogue, sqlite3_stmt *statement, void *item, mica_error *error) {
    mica_stored_file file = {.bytes = (uint64_t)sqlite3_column_int64(statement, 2)};
    const char *name = mica_sql_text(statement, 0);
    if (!name || strchr(name, '/') || !mica_sql_digest(statement, 1, file.sha256) || sqlite3_column_type(statement, 2) != SQLITE_INTEGER)
        return mica_fail(error, MICA_CORRUPT, "%s: files: expected a plain name and its content, got a row without", catalogue->path);
    if (!(file.name = mica_strdup(name)))
        return no_memory(catalogue, error);
    *(mica_stored_file *)item = file;
    return MICA_OK;
}

mica_status mica_catalogue_files(mica_catalogue *catalogue, int64_t model, mica_stored_file **files, uint64_t *count, mica_error *error) {
    void *list;
    uint64_t listed;
    const mica_status status = mica_sql_list(catalogue, MICA_SQL_FILES, sizeof **files, read_file, &list, &listed, error, "i", model);
    if (status != MICA_OK) {
        mica_stored_files_free(list, listed);
        return status;
    }
    *files = list;
    *count = listed;
    return MICA_OK;
}

mica_status mica_catalogue_load_file(mica_catalogue *catalogue, const mica_stored_file *file, char **bytes, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    uint8_t digest[MICA_SHA256_BYTES];
    bool found = false;
    char *copy = NULL;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_DOCUMENT, &statement, error, "b", file->sha256, (uint64_t)sizeof file->sha256);
    if (status == MICA_OK)
        status = mica_sql_step(catalogue, statement, &found, error);
    const uint64_t length = found ? (uint64_t)sqlite3_column_bytes(statement, 0) : 0;
    const void *content = found ? sqlite3_column_blob(statement, 0) : NULL;
    if (status == MICA_OK)
        status = mica_sha256_of(length && content ? content : "", content ? length : 0, digest, error);
    if (status == MICA_OK && (!found || length != file->bytes || memcmp(digest, file->sha256, sizeof digest) != 0))
        status = mica_fail(error, MICA_CORRUPT, "%s: %s: expected the content that was kept, got another", catalogue->path, file->name);
    if (status == MICA_OK && !(copy = mica_malloc(length + 1)))
        status = no_memory(catalogue, error);
    if (status == MICA_OK) {
        if (length)
            memcpy(copy, content, length);
        copy[length] = '\0';
        *bytes = copy;
    }
    sqlite3_reset(statement);
    return status;
}
