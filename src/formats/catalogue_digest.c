/* formats/catalogue_digest.c: the digests that make any changed row of the catalogue show, and the check that computes them anew. A digest
 * is SHA-256 over fields, each as "LENGTH:BYTES" ("-" for null), so that no two rows give the same text.
 * Not covered, and found otherwise (operations/verify_store): where payloads lie, since gc moves them. Judged by
 * tests/operations/test_store_verify.c. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/text.h"
#include "formats/catalogue_sql.h"

static void feed(mica_text *text, const void *bytes, uint64_t length) {
    if (!bytes) {
        mica_text_puts(text, "-");
        return;
    }
    mica_text_printf(text, "%" PRIu64 ":", length);
    mica_text_append(text, bytes, (size_t)length);
}

static void feed_text(mica_text *text, const char *field) {
    feed(text, field, field ? strlen(field) : 0);
}

static void feed_number(mica_text *text, uint64_t number) {
    mica_text_printf(text, "%" PRIu64 ";", number);
}

static void feed_entry(mica_text *text, const mica_entry *entry) {
    const mica_blob *blob = &entry->blob;
    feed_text(text, entry->name);
    feed_text(text, entry->encoding);
    feed_text(text, entry->scale);
    feed_text(text, entry->packed_shape);
    feed_text(text, entry->alias);
    feed(text, blob->sha256, sizeof blob->sha256); /* the UUID is a function of it */
    feed_text(text, mica_dtype_name(blob->dtype));
    feed_number(text, blob->rank);
    for (uint32_t i = 0; i < blob->rank; i++)
        feed_number(text, blob->shape[i]);
    feed_number(text, blob->bytes);
}

static mica_status digest_text(mica_text *text, uint8_t digest[MICA_SHA256_BYTES], mica_error *error) {
    return mica_text_failed(text) ? mica_fail(error, MICA_NO_MEMORY, "out of memory for a digest of the catalogue")
                                  : mica_sha256_of(text->bytes ? text->bytes : "", text->length, digest, error);
}

static mica_status check_of(mica_text *text, const mica_entry *entry, int64_t *check, mica_error *error) {
    uint8_t digest[MICA_SHA256_BYTES];
    mica_text_clear(text);
    feed_entry(text, entry);
    const mica_status status = digest_text(text, digest, error);
    uint64_t bits = 0;
    for (int i = 0; status == MICA_OK && i < 8; i++)
        bits = bits << 8 | digest[i];
    memcpy(check, &bits, sizeof bits);
    return status;
}

mica_status mica_entry_check(const mica_entry *entry, int64_t *check, mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    const mica_status status = check_of(&text, entry, check, error);
    mica_text_release(&text);
    return status;
}

typedef struct model_hash {
    mica_sha256 hash;
    mica_text text;
    uint64_t tensors, bytes;
} model_hash;

static mica_status hash_entry(void *context, const mica_stored_model *model, const mica_entry *entry, mica_error *error) {
    model_hash *state = context;
    (void)model;
    mica_text_clear(&state->text);
    feed_entry(&state->text, entry);
    if (mica_text_failed(&state->text))
        return mica_fail(error, MICA_NO_MEMORY, "out of memory for a digest of the catalogue");
    mica_sha256_update(&state->hash, state->text.bytes, state->text.length);
    state->tensors++;
    state->bytes += entry->blob.bytes;
    return MICA_OK;
}

static mica_status hash_model(mica_catalogue *catalogue, mica_stored_model *model, model_hash *state, mica_error *error) {
    mica_stored_file *files = NULL;
    uint64_t count = 0;
    mica_status status = mica_catalogue_files(catalogue, model->id, &files, &count, error);
    feed_text(&state->text, model->name);
    feed_text(&state->text, model->job);
    feed_number(&state->text, count);
    for (uint64_t i = 0; i < count; i++) {
        feed_text(&state->text, files[i].name);
        feed(&state->text, files[i].sha256, sizeof files[i].sha256);
        feed_number(&state->text, files[i].bytes);
    }
    mica_stored_files_free(files, count);
    if (status == MICA_OK && mica_text_failed(&state->text))
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for a digest of the catalogue");
    if (status != MICA_OK)
        return status;
    mica_sha256_update(&state->hash, state->text.bytes, state->text.length);
    return mica_catalogue_each_entry(catalogue, model->id, hash_entry, state, error);
}

mica_status mica_model_digest(mica_catalogue *catalogue, mica_stored_model *model, uint8_t digest[MICA_SHA256_BYTES], mica_error *error) {
    model_hash state = {.text = MICA_TEXT_INIT};
    mica_status status = mica_sha256_init(&state.hash, error);
    if (status == MICA_OK)
        status = hash_model(catalogue, model, &state, error);
    if (status == MICA_OK) {
        mica_sha256_final(&state.hash, digest);
        model->tensors = state.tensors;
        model->bytes = state.bytes;
    }
    mica_sha256_release(&state.hash);
    mica_text_release(&state.text);
    return status;
}

static mica_status feed_store(mica_catalogue *catalogue, mica_text *text, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    bool row = true;
    mica_status status = mica_sql_bind(catalogue, MICA_SQL_STORE_ROWS, &statement, error, "");
    while (status == MICA_OK && (status = mica_sql_step(catalogue, statement, &row, error)) == MICA_OK && row) {
        feed_text(text, mica_sql_text(statement, 0));
        feed_text(text, mica_sql_text(statement, 1));
    }
    sqlite3_reset(statement);
    return status;
}

mica_status mica_store_digest(mica_catalogue *catalogue, uint8_t digest[MICA_SHA256_BYTES], mica_error *error) {
    mica_text text = MICA_TEXT_INIT;
    mica_stored_model *models = NULL;
    mica_stored_shard *shards = NULL;
    uint64_t model_count = 0, shard_count = 0;
    mica_status status = feed_store(catalogue, &text, error);
    if (status == MICA_OK)
        status = mica_catalogue_models(catalogue, &models, &model_count, error);
    if (status == MICA_OK)
        status = mica_catalogue_shards(catalogue, &shards, &shard_count, error);
    for (uint64_t i = 0; i < model_count; i++) {
        feed_number(&text, (uint64_t)models[i].id);
        feed_text(&text, models[i].name);
        feed_text(&text, models[i].job);
        feed_number(&text, models[i].whole);
        feed_number(&text, models[i].tensors);
        feed_number(&text, models[i].bytes);
        feed(&text, models[i].whole ? models[i].digest : NULL, sizeof models[i].digest);
    }
    for (uint64_t i = 0; i < shard_count; i++) {
        feed_number(&text, (uint64_t)shards[i].id);
        feed_text(&text, shards[i].path);
        feed_number(&text, shards[i].bytes);
        feed_number(&text, (uint64_t)shards[i].modified);
    }
    if (status == MICA_OK)
        status = digest_text(&text, digest, error);
    mica_stored_models_free(models, model_count);
    mica_stored_shards_free(shards, shard_count);
    mica_text_release(&text);
    return status;
}

/* ---- checking */

typedef struct catalogue_check {
    mica_catalogue *catalogue;
    mica_catalogue_complaint complain;
    void *context;
    mica_text sentence;
} catalogue_check;

__attribute__((format(printf, 3, 4))) static mica_status complain(catalogue_check *check, mica_error *error, const char *format, ...) {
    char sentence[MICA_ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    return check->complain(check->context, sentence, error);
}

/* Every row that the statement gives is a finding; its first column is put into the format. */
static mica_status complain_rows(catalogue_check *check, mica_statement which, const char *fine, const char *expected, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    bool row = true;
    mica_status status = mica_sql_bind(check->catalogue, which, &statement, error, "");
    while (status == MICA_OK && (status = mica_sql_step(check->catalogue, statement, &row, error)) == MICA_OK && row) {
        const char *got = (const char *)sqlite3_column_text(statement, 0);
        if (!got || !fine || strcmp(got, fine) != 0)
            status = complain(check, error, "%s: %s", expected, got ? got : "null");
    }
    sqlite3_reset(statement);
    return status;
}

static mica_status check_store_digest(catalogue_check *check, mica_error *error) {
    uint8_t digest[MICA_SHA256_BYTES], recorded[MICA_SHA256_BYTES] = {0};
    sqlite3_stmt *statement = NULL;
    bool row = false;
    mica_status status = mica_store_digest(check->catalogue, digest, error);
    if (status == MICA_OK)
        status = mica_sql_bind(check->catalogue, MICA_SQL_GET, &statement, error, "t", "digest");
    if (status == MICA_OK)
        status = mica_sql_step(check->catalogue, statement, &row, error);
    const char *hex = row ? mica_sql_text(statement, 0) : NULL;
    const bool same = hex && mica_sha256_parse_hex(hex, recorded) && memcmp(recorded, digest, sizeof digest) == 0;
    sqlite3_reset(statement);
    if (status == MICA_OK && !same)
        status = complain(check, error, "a row of store, models or shards is not what was written: the store's digest differs");
    return status;
}

/* Row by row, so that the finding names the tensor. */
static mica_status check_rows(catalogue_check *check, const mica_stored_model *model, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    bool row = true;
    mica_status status = mica_sql_bind(check->catalogue, MICA_SQL_ENTRIES, &statement, error, "i", model->id);
    while (status == MICA_OK && (status = mica_sql_step(check->catalogue, statement, &row, error)) == MICA_OK && row) {
        mica_entry entry;
        mica_error found = {0};
        int64_t recorded = 0, computed = 0;
        mica_status read = mica_sql_entry(check->catalogue, statement, 0, &entry, &recorded, &found);
        if (read == MICA_OK)
            read = check_of(&check->sentence, &entry, &computed, &found);
        if (read == MICA_NO_MEMORY)
            status = mica_fail(error, read, "%s", found.message);
        else if (read != MICA_OK)
            status = complain(check, error, "%s#%s", model->name, found.message);
        else if (recorded != computed)
            status = complain(check, error, "%s: %s: its row is not what was written", model->name, entry.name);
    }
    sqlite3_reset(statement);
    return status;
}

static mica_status check_model(catalogue_check *check, mica_stored_model *model, mica_error *error) {
    uint8_t digest[MICA_SHA256_BYTES];
    mica_error found = {0};
    mica_status status = check_rows(check, model, error);
    if (status != MICA_OK || !model->whole)
        return status;
    const uint64_t tensors = model->tensors, bytes = model->bytes;
    const mica_status computed = mica_model_digest(check->catalogue, model, digest, &found);
    if (computed == MICA_NO_MEMORY)
        return mica_fail(error, computed, "%s", found.message);
    if (computed != MICA_OK)
        return complain(check, error, "%s", found.message);
    if (model->tensors != tensors || model->bytes != bytes)
        return complain(check, error, "%s: expected %" PRIu64 " tensors of %" PRIu64 " bytes, got %" PRIu64 " of %" PRIu64, model->name,
                        tensors, bytes, model->tensors, model->bytes);
    if (memcmp(digest, model->digest, sizeof digest) != 0)
        return complain(check, error, "%s: a row of its tensors or files is not what was written: the model's digest differs", model->name);
    return MICA_OK;
}

static mica_status check_documents(catalogue_check *check, mica_error *error) {
    sqlite3_stmt *statement = NULL;
    bool row = true;
    mica_status status = mica_sql_bind(check->catalogue, MICA_SQL_DOCUMENTS, &statement, error, "");
    while (status == MICA_OK && (status = mica_sql_step(check->catalogue, statement, &row, error)) == MICA_OK && row) {
        uint8_t recorded[MICA_SHA256_BYTES] = {0}, digest[MICA_SHA256_BYTES];
        const bool named = mica_sql_digest(statement, 0, recorded);
        const uint64_t length = (uint64_t)sqlite3_column_bytes(statement, 2);
        const void *content = sqlite3_column_blob(statement, 2);
        status = mica_sha256_of(content ? content : "", content ? length : 0, digest, error);
        if (status == MICA_OK && (!named || memcmp(digest, recorded, sizeof digest) != 0 ||
                                  sqlite3_column_int64(statement, 1) != (int64_t)length)) {
            char hex[MICA_SHA256_HEX_BYTES];
            mica_sha256_hex(recorded, hex);
            status = complain(check, error, "documents: the content of %s is not what was written", hex);
        }
    }
    sqlite3_reset(statement);
    return status;
}

static mica_status check_models(catalogue_check *check, mica_error *error) {
    mica_stored_model *models = NULL;
    uint64_t count = 0;
    mica_status status = mica_catalogue_models(check->catalogue, &models, &count, error);
    for (uint64_t i = 0; status == MICA_OK && i < count; i++)
        status = check_model(check, &models[i], error);
    mica_stored_models_free(models, count);
    return status;
}

mica_status mica_catalogue_check(mica_catalogue *catalogue, mica_catalogue_complaint give, void *context, mica_error *error) {
    catalogue_check check = {catalogue, give, context, MICA_TEXT_INIT};
    mica_status status = complain_rows(&check, MICA_SQL_INTEGRITY, "ok", "SQLite's integrity_check", error);
    if (status == MICA_OK)
        status = check_store_digest(&check, error);
    if (status == MICA_OK)
        status = check_models(&check, error);
    if (status == MICA_OK)
        status = check_documents(&check, error);
    if (status == MICA_OK)
        status = complain_rows(&check, MICA_SQL_LOST_BLOBS, NULL, "blobs: a payload in a pack that is not in the catalogue", error);
    if (status == MICA_OK)
        status = complain_rows(&check, MICA_SQL_LOST_ENTRIES, NULL, "tensors: a row of no model", error);
    if (status == MICA_OK)
        status = complain_rows(&check, MICA_SQL_LOST_FILES, NULL, "files: a row of no model", error);
    mica_text_release(&check.sentence);
    return status;
}
