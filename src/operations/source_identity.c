/* operations/source_identity.c: what a long job was done on, as JSON for its journal, and the sentence that tells two jobs apart.
 * Judged by tests/operations/test_index_resume.c and test_export_safetensors.c. */
#include "operations/source_identity.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/text.h"
#include "formats/gguf.h"
#include "model/config.h"

/* A GGUF's configuration is its metadata, but for the keys that say how it is cut into files. */
static mica_status hash_metadata(const mica_gguf *gguf, char hex[MICA_SHA256_HEX_BYTES], mica_error *error) {
    mica_sha256 hash;
    uint8_t digest[MICA_SHA256_BYTES];
    mica_status status = mica_sha256_init(&hash, error);
    if (status != MICA_OK)
        return status;
    for (uint64_t i = 0; i < gguf->entry_count; i++) {
        const mica_gguf_entry *entry = &gguf->entries[i];
        if (strncmp(entry->key, "split.", 6) == 0)
            continue;
        const uint8_t kind[2] = {(uint8_t)entry->type, entry->is_array};
        mica_sha256_update(&hash, entry->key, strlen(entry->key) + 1);
        mica_sha256_update(&hash, kind, sizeof kind);
        mica_sha256_update(&hash, entry->bytes, entry->length);
    }
    mica_sha256_final(&hash, digest);
    mica_sha256_hex(digest, hex);
    return MICA_OK;
}

static mica_status hash_config(const mica_tensor_source *source, char hex[MICA_SHA256_HEX_BYTES], mica_error *error) {
    if (mica_gguf_of_source(source))
        return hash_metadata(mica_gguf_of_source(source), hex, error);
    char *bytes = NULL;
    uint64_t length;
    uint8_t digest[MICA_SHA256_BYTES];
    mica_status status = mica_tensor_source_load(source, MICA_CONFIG_NAME, MICA_CONFIG_BYTES_MAX, &bytes, &length, error);
    if (status == MICA_OK)
        status = mica_sha256_of(bytes, length, digest, error);
    if (status == MICA_OK)
        mica_sha256_hex(digest, hex);
    mica_free(bytes);
    return status;
}

mica_status mica_source_write_identity(mica_json_writer *writer, const mica_tensor_source *source, mica_error *error) {
    char config[MICA_SHA256_HEX_BYTES] = "", tensors[MICA_SHA256_HEX_BYTES] = "";
    const bool has_config = mica_gguf_of_source(source) || mica_tensor_source_has_file(source, MICA_CONFIG_NAME);
    mica_status status = has_config ? hash_config(source, config, error) : MICA_OK;
    if (status == MICA_OK)
        status = mica_tensor_source_digest(source, tensors, error);
    mica_json_open_object(writer, "source");
    mica_json_string(writer, "config_sha256", has_config ? config : NULL);
    mica_json_u64(writer, "tensor_count", source->tensor_count);
    mica_json_string(writer, "tensor_list_sha256", tensors);
    mica_json_close_object(writer);
    return status;
}

void mica_source_write_shards(mica_json_writer *writer, const mica_tensor_source *source) {
    mica_json_open_array(writer, "shards");
    for (uint32_t i = 0; i < source->shard_count; i++) {
        struct stat status;
        char modified[48] = "unknown";
        if (stat(mica_file_path(source->shards[i].file), &status) == 0)
            snprintf(modified, sizeof modified, "%lld.%09ld", (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "name", source->shards[i].name);
        mica_json_u64(writer, "bytes", mica_file_bytes(source->shards[i].file));
        mica_json_string(writer, "modified", modified);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

/* Descends to the first difference; `path` names it. */
static mica_status compare_values(const char *where, const char *path, bool shards, const json_t *recorded, const json_t *today,
                                  mica_error *error) {
    if (json_is_object(recorded) && json_is_object(today)) {
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)today, key, value) {
            if (!shards && strcmp(path, "") == 0 && strcmp(key, "shards") == 0)
                continue;
            mica_text below = MICA_TEXT_INIT;
            mica_text_printf(&below, "%s%s%s", path, *path ? "." : "", key);
            const mica_status status = mica_text_failed(&below)
                                           ? mica_fail(error, MICA_NO_MEMORY, "out of memory")
                                           : compare_values(where, below.bytes, shards, json_object_get(recorded, key), value, error);
            mica_text_release(&below);
            if (status != MICA_OK)
                return status;
        }
        return MICA_OK;
    }
    if (json_equal(recorded, today))
        return MICA_OK;
    char was[208], is[208];
    return mica_fail(error, MICA_CONFLICT, "%s: %s differs: it has %s, today's is %s; resume with the same, or start afresh with --force",
                     where, path, recorded ? mica_json_show(recorded, was, sizeof was) : "none", mica_json_show(today, is, sizeof is));
}

mica_status mica_identity_compare(const char *where, const json_t *recorded, const json_t *today, bool shards, mica_error *error) {
    return compare_values(where, "", shards, recorded, today, error);
}
