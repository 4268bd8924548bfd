/* mica_verify of a store finds any flipped byte of a pack, padding and header included, and any changed value of the catalogue, and names
 * the tensors; and finds nothing in a store that is well. */
#include <mica/store.h>

#include <sqlite3.h>

#include "operations/store_helpers.h"
#include "operations/validate.h"

#define CHOSEN "*.layers.1.mlp.*gate*" /* a router, its bias, and 25 small matrices with their scales */

static char store[SCRATCH_PATH_BYTES], pack[SCRATCH_PATH_BYTES], catalogue[SCRATCH_PATH_BYTES];

static int make_store(void **state) {
    if (scratch_make(state) != 0)
        return -1;
    snprintf(store, sizeof store, "%s", scratch("s"));
    snprintf(pack, sizeof pack, "%s", scratch("s/packs/000001.pack"));
    snprintf(catalogue, sizeof catalogue, "%s", scratch("s/catalogue.sqlite"));
    if (import(TINY, store, &(mica_import_options){.include = CHOSEN}) != MICA_OK)
        return -1;
    return import(TINY, store, &(mica_import_options){.name = "other", .include = "*.layers.1.mlp.gate*"}) == MICA_OK ? 0 : -1;
}

static mica_status verify(void) {
    return mica_verify(store, NULL, NULL, NULL, &error);
}

static void flip(mica_file *file, uint64_t offset) {
    uint8_t byte;
    assert_int_equal(mica_file_read(file, offset, &byte, 1, &error), MICA_OK);
    byte ^= 0x10;
    assert_int_equal(mica_file_write(file, offset, &byte, 1, &error), MICA_OK);
}

static void test_nothing_is_wrong(void **state) {
    (void)state;
    char *text = NULL, *json = NULL;
    assert_int_equal(mica_verify(store, NULL, &text, &json, &error), MICA_OK);
    assert_non_null(strstr(text, "nothing is wrong"));
    if (validator_exists())
        assert_true(validates("verify.schema.json", json));
    mica_string_free(text);
    mica_string_free(json);
}

/* Every byte is a header's, a payload's or padding: a stride that meets all residues of 4096, and the first and last ones. */
static void test_every_byte_counts(void **state) {
    (void)state;
    mica_file *file = NULL;
    assert_int_equal(mica_file_open_update(pack, &file, &error), MICA_OK);
    const uint64_t bytes = mica_file_bytes(file);
    uint64_t tried = 0, in_header = 0, named_tensor = 0;
    for (uint64_t offset = 0; offset < bytes; offset += offset < 64 ? 1 : 4097 - 1024, tried++) {
        flip(file, offset);
        if (verify() != MICA_CORRUPT)
            fail_msg("a flipped byte at %llu was not found", (unsigned long long)offset);
        in_header += offset < MICA_PACK_HEADER_BYTES;
        named_tensor += strstr(error.message, "model.layers.1.mlp.") != NULL;
        flip(file, offset);
    }
    flip(file, bytes - 1); /* padding of the last one */
    assert_int_equal(verify(), MICA_CORRUPT);
    assert_non_null(strstr(error.message, "padding"));
    flip(file, bytes - 1);
    assert_int_equal(named_tensor, tried - in_header);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    assert_int_equal(verify(), MICA_OK);
}

static void test_both_models_are_named(void **state) {
    (void)state;
    mica_tensor_source *source = NULL;
    mica_file *file = NULL;
    assert_int_equal(mica_tensor_source_open(named(store, "other"), &source, &error), MICA_OK);
    const mica_tensor *tensor = mica_tensor_source_find(source, "model.layers.1.mlp.gate.weight");
    assert_int_equal(mica_file_open_update(pack, &file, &error), MICA_OK);
    flip(file, tensor->offset + tensor->bytes / 2);
    assert_int_equal(verify(), MICA_CORRUPT);
    assert_non_null(strstr(error.message, "other#model.layers.1.mlp.gate.weight, tiny-k2#model.layers.1.mlp.gate.weight"));
    flip(file, tensor->offset + tensor->bytes / 2);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    mica_tensor_source_close(source);
}

static void test_a_pack_cut_short_or_lost(void **state) {
    (void)state;
    char kept[SCRATCH_PATH_BYTES + 8];
    uint64_t length;
    char *bytes = load(store, "packs/000001.pack", &length);
    assert_int_equal(truncate(pack, (off_t)length - 4096), 0);
    assert_int_equal(verify(), MICA_CORRUPT);
    snprintf(kept, sizeof kept, "%s.kept", pack);
    assert_int_equal(rename(pack, kept), 0);
    assert_int_equal(verify(), MICA_CORRUPT);
    assert_non_null(strstr(error.message, "000001.pack"));
    unlink(kept);
    assert_int_equal(mica_file_replace(pack, bytes, length, &error), MICA_OK);
    mica_free(bytes);
    /* What an import that was killed wrote behind the end is nobody's. */
    mica_file *file = NULL;
    assert_int_equal(mica_file_open_update(pack, &file, &error), MICA_OK);
    assert_int_equal(mica_file_write(file, length, "tail", 4, &error), MICA_OK);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    assert_int_equal(verify(), MICA_OK);
    assert_int_equal(truncate(pack, (off_t)length), 0);
}

/* ---- the catalogue, value by value */

static void run_sql(sqlite3 *database, const char *sql) {
    char *message = NULL;
    if (sqlite3_exec(database, sql, NULL, NULL, &message) != SQLITE_OK)
        fail_msg("%s: %s", sql, message);
}

static void restore(const char *bytes, uint64_t length) {
    char path[SCRATCH_PATH_BYTES + 8];
    snprintf(path, sizeof path, "%s-wal", catalogue);
    unlink(path);
    snprintf(path, sizeof path, "%s-shm", catalogue);
    unlink(path);
    assert_int_equal(mica_file_replace(catalogue, bytes, length, &error), MICA_OK);
}

/* Some value other than the one that is there, of the same type. */
static const char *const changes[] = {
    "CASE typeof(%s) WHEN 'integer' THEN %s + 1 WHEN 'text' THEN %s || 'x' WHEN 'blob' THEN zeroblob(length(%s)) ELSE 1 END",
    "CASE typeof(%s) WHEN 'integer' THEN %s - 4096 WHEN 'text' THEN upper(%s) || '' WHEN 'blob' THEN substr(%s, 2) ELSE 'x' END",
};

/* Changes a column of the row at `position` of a table; false when that changed nothing. */
static bool change(const char *table, const char *column, int position, int way) {
    sqlite3 *database = NULL;
    char expression[1024], sql[4096], columns[512];
    const bool rowless = strcmp(table, "tensors") == 0 || strcmp(table, "files") == 0 || strcmp(table, "store") == 0;
    const char *key = strcmp(table, "store") == 0 ? "key" : rowless ? "(model, name)" : "rowid";
    snprintf(columns, sizeof columns, "%s", key[0] == '(' ? "model, name" : key);
    snprintf(expression, sizeof expression, changes[way], column, column, column, column);
    snprintf(sql, sizeof sql,
             "UPDATE OR IGNORE %s SET %s = %s WHERE %s = (SELECT %s FROM %s ORDER BY 1 LIMIT 1 OFFSET %d) AND %s IS NOT (%s)", table,
             column, expression, key, columns, table, position, column, expression);
    assert_int_equal(sqlite3_open(catalogue, &database), SQLITE_OK);
    run_sql(database, "PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF");
    run_sql(database, sql);
    const bool changed = sqlite3_changes(database) > 0;
    run_sql(database, "PRAGMA wal_checkpoint(TRUNCATE)");
    assert_int_equal(sqlite3_close(database), SQLITE_OK);
    return changed;
}

static void test_every_value_of_the_catalogue_counts(void **state) {
    (void)state;
    static const struct {
        const char *table, *columns[10];
    } tables[] = {
        {"store", {"key", "value"}},
        {"models", {"model", "name", "state", "job", "tensors", "bytes", "digest"}},
        {"tensors", {"model", "name", "blob", "encoding", "scale", "packed_shape", "alias", "check_bits"}},
        {"blobs", {"blob", "sha256", "uuid", "dtype", "shape", "bytes", "pack", "shard", "offset"}},
        {"packs", {"pack", "bytes"}},
        {"files", {"model", "name", "sha256"}},
        {"documents", {"sha256", "bytes", "content"}},
    };
    uint64_t length, tried = 0;
    char *bytes = load(store, "catalogue.sqlite", &length);
    for (size_t t = 0; t < sizeof tables / sizeof tables[0]; t++) {
        for (int c = 0; tables[t].columns[c]; c++) {
            for (int position = 0; position < 26; position += 5) {
                for (int way = 0; way < 2; way++) {
                    if (!change(tables[t].table, tables[t].columns[c], position, way))
                        continue;
                    tried++;
                    const mica_status status = verify();
                    if (status != MICA_CORRUPT && status != MICA_BAD_INPUT)
                        fail_msg("%s.%s, row %d, way %d: a changed value was not found (%d)", tables[t].table, tables[t].columns[c],
                                 position, way, (int)status);
                    restore(bytes, length);
                }
            }
        }
    }
    mica_free(bytes);
    assert_true(tried > 150);
    assert_int_equal(verify(), MICA_OK);
    printf("%llu changed values found\n", (unsigned long long)tried);
}

static void test_removed_rows_are_missed(void **state) {
    (void)state;
    static const char *const removals[] = {
        "DELETE FROM tensors WHERE name LIKE '%gate.weight' AND model = 1",
        "DELETE FROM models WHERE model = 2",
        "DELETE FROM blobs WHERE blob = 3",
        "DELETE FROM packs",
        "DELETE FROM files WHERE model = 1",
        "DELETE FROM documents",
        "DELETE FROM store WHERE key = 'digest'",
        "DELETE FROM tensors WHERE model = 2; DELETE FROM files WHERE model = 2; DELETE FROM models WHERE model = 2",
        "INSERT INTO tensors SELECT 2, 'new', blob, encoding, scale, packed_shape, alias, check_bits FROM tensors LIMIT 1",
    };
    uint64_t length;
    char *bytes = load(store, "catalogue.sqlite", &length);
    for (size_t i = 0; i < sizeof removals / sizeof removals[0]; i++) {
        sqlite3 *database = NULL;
        assert_int_equal(sqlite3_open(catalogue, &database), SQLITE_OK);
        run_sql(database, removals[i]);
        run_sql(database, "PRAGMA wal_checkpoint(TRUNCATE)");
        sqlite3_close(database);
        if (verify() != MICA_CORRUPT)
            fail_msg("%s: was not found", removals[i]);
        restore(bytes, length);
    }
    mica_free(bytes);
}

/* Bytes of the database itself: whatever is flipped, verify ends in a sentence, and never in silence where a table's page was hit. */
static void test_flipped_bytes_of_the_catalogue(void **state) {
    (void)state;
    uint64_t length, found = 0, tried = 0;
    char *bytes = load(store, "catalogue.sqlite", &length);
    char *damaged = mica_malloc(length);
    for (uint64_t offset = 11; offset < length; offset += 1009, tried++) {
        memcpy(damaged, bytes, length);
        damaged[offset] ^= 0x21;
        restore(damaged, length);
        const mica_status status = verify();
        assert_true(status == MICA_OK || status == MICA_CORRUPT || status == MICA_BAD_INPUT || status == MICA_IO);
        found += status != MICA_OK; /* free space within a page is nobody's */
    }
    restore(bytes, length);
    mica_free(damaged);
    mica_free(bytes);
    printf("%llu of %llu flipped bytes of the catalogue are not indifferent\n", (unsigned long long)found, (unsigned long long)tried);
    assert_true(found > tried / 3);
    assert_int_equal(verify(), MICA_OK);
}

static void test_linked_files(void **state) {
    (void)state;
    const char *linked = scratch("l"), *checkpoint = scratch("c");
    copy_directory(TINY, checkpoint);
    assert_imports(checkpoint, linked, &(mica_import_options){.link = true});
    assert_int_equal(mica_verify(linked, NULL, NULL, NULL, &error), MICA_OK);
    mica_tensor_source *source = NULL;
    mica_file *file = NULL;
    assert_int_equal(mica_tensor_source_open(checkpoint, &source, &error), MICA_OK);
    const mica_tensor *tensor = mica_tensor_source_find(source, "model.norm.weight");
    assert_int_equal(mica_file_open_update(mica_file_path(source->shards[tensor->shard].file), &file, &error), MICA_OK);
    flip(file, tensor->offset);
    assert_int_equal(mica_file_close(file, &error), MICA_OK);
    char *text = NULL;
    assert_int_equal(mica_verify(linked, NULL, &text, NULL, &error), MICA_CORRUPT);
    assert_non_null(strstr(text, "changed since"));
    assert_non_null(strstr(text, "#model.norm.weight: 512 bytes"));
    assert_non_null(strstr(text, "2 problems"));
    mica_string_free(text);
    mica_tensor_source_close(source);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_wrong),
        cmocka_unit_test(test_every_byte_counts),
        cmocka_unit_test(test_both_models_are_named),
        cmocka_unit_test(test_a_pack_cut_short_or_lost),
        cmocka_unit_test(test_every_value_of_the_catalogue_counts),
        cmocka_unit_test(test_removed_rows_are_missed),
        cmocka_unit_test(test_flipped_bytes_of_the_catalogue),
        cmocka_unit_test(test_linked_files),
    };
    return cmocka_run_group_tests(tests, make_store, scratch_remove);
}
