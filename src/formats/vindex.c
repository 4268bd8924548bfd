/* formats/vindex.c: names and layout of a vindex, the state of its directory, checksums.json. See vindex.h and docs/formats.md. */
#include "formats/vindex.h"

#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"

static const char *const file_names[MICA_VINDEX_GROUP_COUNT][MICA_VINDEX_MEMBER_COUNT] = {
    {"gate_vectors.bin", "gate_singular_values.bin", "gate_full_singular_values.bin", "up_full_singular_values.bin",
     "down_full_singular_values.bin"},
    {"dense_gate_vectors.bin", "dense_gate_singular_values.bin", "dense_gate_full_singular_values.bin", "dense_up_full_singular_values.bin",
     "dense_down_full_singular_values.bin"},
    {"shared_gate_vectors.bin", "shared_gate_singular_values.bin", "shared_gate_full_singular_values.bin",
     "shared_up_full_singular_values.bin", "shared_down_full_singular_values.bin"},
};

/* checksums.json first: while --force removes files, a directory without it is never taken for finished. */
static const char *const json_names[] = {MICA_VINDEX_CHECKSUMS, MICA_VINDEX_INDEX,  MICA_VINDEX_PHASE1, MICA_VINDEX_PHASE1_AGG,
                                         MICA_VINDEX_PHASE2,    MICA_VINDEX_CONFIG, MICA_VINDEX_TENSORS};
#define JSON_NAME_COUNT (sizeof json_names / sizeof json_names[0])

static const char *const source_names[] = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenization_kimi.py",
};

const char *mica_vindex_file_name(mica_vindex_group group, mica_vindex_member member) {
    return file_names[group][member];
}

const char *mica_vindex_known_name(uint64_t index) {
    if (index < JSON_NAME_COUNT)
        return json_names[index];
    index -= JSON_NAME_COUNT;
    const uint64_t count = (uint64_t)MICA_VINDEX_GROUP_COUNT * MICA_VINDEX_MEMBER_COUNT;
    return index < count ? file_names[index / MICA_VINDEX_MEMBER_COUNT][index % MICA_VINDEX_MEMBER_COUNT] : NULL;
}

const char *mica_vindex_source_name(uint64_t index) {
    return index < sizeof source_names / sizeof source_names[0] ? source_names[index] : NULL;
}

bool mica_vindex_is_own_name(const char *name) {
    static const char partial[] = ".partial";
    const size_t length = strlen(name), tail = sizeof partial - 1;
    if (strcmp(name, MICA_VINDEX_JOURNAL) == 0 || strcmp(name, MICA_VINDEX_SOURCE) == 0 ||
        (length >= tail && strcmp(name + length - tail, partial) == 0))
        return true;
    const char *known;
    for (uint64_t i = 0; (known = mica_vindex_known_name(i)) != NULL; i++)
        if (strcmp(name, known) == 0)
            return true;
    return false;
}

uint64_t mica_vindex_item_bytes(const mica_vindex_layout *layout, mica_vindex_group group, mica_vindex_member member) {
    const uint64_t features = layout->group[group].features;
    switch (member) {
    case MICA_VINDEX_VECTORS: return features * layout->group[group].hidden * sizeof(float);
    case MICA_VINDEX_VALUES: return features * sizeof(float);
    default: return layout->group[group].full[member - MICA_VINDEX_FULL_GATE] * sizeof(double);
    }
}

bool mica_vindex_layout_check(const mica_vindex_layout *layout) {
    for (int group = 0; group < MICA_VINDEX_GROUP_COUNT; group++) {
        uint64_t items, values, bytes;
        if (!mica_mul_u64(layout->group[group].layers, layout->group[group].experts, &items))
            return false;
        if (!mica_mul_u64(layout->group[group].features, layout->group[group].hidden, &values))
            return false;
        if (!mica_mul_u64(values, items, &bytes) || !mica_mul_u64(bytes, sizeof(double), &bytes) || bytes > INT64_MAX)
            return false;
        for (int i = 0; i < 3; i++)
            if (!mica_mul_u64(layout->group[group].full[i], items, &bytes) || !mica_mul_u64(bytes, sizeof(double), &bytes) ||
                bytes > INT64_MAX)
                return false;
    }
    return true;
}

uint64_t mica_vindex_file_bytes(const mica_vindex_layout *layout, mica_vindex_group group, mica_vindex_member member) {
    return layout->group[group].layers * layout->group[group].experts * mica_vindex_item_bytes(layout, group, member);
}

bool mica_vindex_has_file(const mica_vindex_layout *layout, mica_vindex_group group, mica_vindex_member member) {
    if (group == MICA_VINDEX_MAIN && member <= MICA_VINDEX_VALUES)
        return true;
    return mica_vindex_file_bytes(layout, group, member) > 0;
}

uint64_t mica_vindex_offset(const mica_vindex_layout *layout, mica_vindex_group group, mica_vindex_member member, uint64_t slot,
                            uint64_t expert) {
    return (slot * layout->group[group].experts + expert) * mica_vindex_item_bytes(layout, group, member);
}

/* ---- the directory */

/* A checksums.json of ours, whole or damaged: another program's file of that name is not ours to touch. */
static bool is_our_checksums(const char *directory) {
    char *path = mica_path_join(directory, MICA_VINDEX_CHECKSUMS), *bytes = NULL;
    uint64_t length = 0;
    bool ours = path && mica_file_load(path, MICA_VINDEX_JSON_LIMIT, &bytes, &length, NULL) == MICA_OK &&
                strstr(bytes, "\"" MICA_VINDEX_FORMAT "\"") != NULL;
    mica_free(bytes);
    mica_free(path);
    return ours;
}

mica_status mica_vindex_state_of(const char *directory, mica_vindex_state *state, mica_error *error) {
    if (!mica_path_exists(directory)) {
        *state = MICA_VINDEX_ABSENT;
        return MICA_OK;
    }
    if (!mica_path_is_directory(directory)) {
        *state = MICA_VINDEX_FOREIGN;
        return MICA_OK;
    }
    char **names;
    uint64_t count;
    const mica_status status = mica_directory_list(directory, &names, &count, error);
    if (status != MICA_OK)
        return status;
    bool journal = false, checksums = false, other = false;
    for (uint64_t i = 0; i < count; i++) {
        /* All that a kill in the very first moment leaves is the journal's beginning. */
        if (strcmp(names[i], MICA_VINDEX_JOURNAL ".partial") != 0)
            other = true;
        if (strcmp(names[i], MICA_VINDEX_JOURNAL) == 0)
            journal = true;
        if (strcmp(names[i], MICA_VINDEX_CHECKSUMS) == 0)
            checksums = true;
    }
    mica_directory_names_free(names, count);
    if (!other)
        *state = MICA_VINDEX_ABSENT;
    else if (journal)
        *state = MICA_VINDEX_UNFINISHED;
    else
        *state = checksums && is_our_checksums(directory) ? MICA_VINDEX_FINISHED : MICA_VINDEX_FOREIGN;
    return MICA_OK;
}

/* ---- checksums.json */

#define SELF_KEY "\"self\": \""
#define SELF_ZEROS "0000000000000000000000000000000000000000000000000000000000000000"

void mica_vindex_files_free(mica_vindex_file *files, uint64_t count) {
    for (uint64_t i = 0; files && i < count; i++)
        mica_free(files[i].name);
    mica_free(files);
}

/* Where the 64 digits of the digest stand; NULL when they are not there. */
static char *find_self(char *text) {
    char *key = strstr(text, SELF_KEY);
    if (!key || strlen(key) < strlen(SELF_KEY) + strlen(SELF_ZEROS))
        return NULL;
    return key + strlen(SELF_KEY);
}

mica_status mica_vindex_checksums_write(const mica_vindex_file *files, uint64_t count, char **text, uint64_t *length, mica_error *error) {
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "format", MICA_VINDEX_FORMAT);
    mica_json_u64(&writer, "format_version", MICA_VINDEX_FORMAT_VERSION);
    mica_json_string(&writer, "self", SELF_ZEROS);
    mica_json_open_object(&writer, "files");
    for (uint64_t i = 0; i < count; i++) {
        char hex[MICA_SHA256_HEX_BYTES];
        mica_sha256_hex(files[i].sha256, hex);
        mica_json_open_object(&writer, files[i].name);
        mica_json_u64(&writer, "bytes", files[i].bytes);
        mica_json_string(&writer, "sha256", hex);
        mica_json_close_object(&writer);
    }
    mica_json_close_object(&writer);
    mica_json_close_object(&writer);
    char *made = mica_json_finish(&writer, length);
    if (!made)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", MICA_VINDEX_CHECKSUMS);
    char *self = find_self(made);
    uint8_t digest[MICA_SHA256_BYTES];
    char hex[MICA_SHA256_HEX_BYTES];
    const mica_status status = self ? mica_sha256_of(made, *length, digest, error)
                                    : mica_fail(error, MICA_FAILED, "%s: the writer left no place for the digest", MICA_VINDEX_CHECKSUMS);
    if (status != MICA_OK) {
        mica_free(made);
        return status;
    }
    mica_sha256_hex(digest, hex);
    memcpy(self, hex, strlen(SELF_ZEROS));
    *text = made;
    return MICA_OK;
}

static mica_status check_self(const char *path, char *text, uint64_t length, mica_error *error) {
    char *self = find_self(text), recorded[MICA_SHA256_HEX_BYTES] = "", hex[MICA_SHA256_HEX_BYTES];
    if (!self)
        return mica_fail(error, MICA_CORRUPT, "%s: key \"self\": expected 64 hexadecimal digits, found none", path);
    memcpy(recorded, self, strlen(SELF_ZEROS));
    memcpy(self, SELF_ZEROS, strlen(SELF_ZEROS));
    uint8_t digest[MICA_SHA256_BYTES];
    const mica_status status = mica_sha256_of(text, length, digest, error);
    if (status != MICA_OK)
        return status;
    mica_sha256_hex(digest, hex);
    if (strcmp(hex, recorded) != 0)
        return mica_fail(error, MICA_CORRUPT, "%s: its own SHA-256: expected %.16s…, got %.16s…", path, recorded, hex);
    return MICA_OK;
}

static mica_status read_entry(const char *path, const char *name, const json_t *value, mica_vindex_file *file, mica_error *error) {
    const json_t *bytes = json_object_get(value, "bytes");
    const char *hex = json_string_value(json_object_get(value, "sha256"));
    if (!json_is_integer(bytes) || json_integer_value(bytes) < 0 || !hex || !mica_sha256_parse_hex(hex, file->sha256))
        return mica_fail(error, MICA_BAD_INPUT, "%s: files.%s: expected bytes and sha256", path, name);
    if (name[0] == '/' || strstr(name, ".."))
        return mica_fail(error, MICA_BAD_INPUT, "%s: files.%s: not a name inside the vindex", path, name);
    file->bytes = (uint64_t)json_integer_value(bytes);
    file->name = mica_strdup(name);
    return file->name ? MICA_OK : mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
}

static mica_status read_entries(const char *path, const json_t *object, mica_vindex_file **files, uint64_t *count, mica_error *error) {
    char shown[208];
    const json_t *version = json_object_get(object, "format_version"), *list = json_object_get(object, "files");
    const char *format = json_string_value(json_object_get(object, "format"));
    if (!format || strcmp(format, MICA_VINDEX_FORMAT) != 0)
        return mica_fail(error, MICA_BAD_INPUT, "%s: format: expected \"%s\", got %s", path, MICA_VINDEX_FORMAT,
                         mica_json_show(json_object_get(object, "format"), shown, sizeof shown));
    if (!json_is_integer(version) || json_integer_value(version) != MICA_VINDEX_FORMAT_VERSION)
        return mica_fail(error, MICA_BAD_INPUT, "%s: format_version: expected %u, got %s", path, MICA_VINDEX_FORMAT_VERSION,
                         mica_json_show(version, shown, sizeof shown));
    if (!json_is_object(list))
        return mica_fail(error, MICA_BAD_INPUT, "%s: files: expected an object, got %s", path, mica_json_show(list, shown, sizeof shown));
    const uint64_t entries = json_object_size(list);
    mica_vindex_file *made = mica_calloc(entries + 1, sizeof *made);
    if (!made)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", path);
    uint64_t next = 0;
    mica_status status = MICA_OK;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)list, name, value) {
        status = read_entry(path, name, value, &made[next++], error);
        if (status != MICA_OK)
            break;
    }
    if (status != MICA_OK) {
        mica_vindex_files_free(made, entries);
        return status;
    }
    *files = made;
    *count = entries;
    return MICA_OK;
}

mica_status mica_vindex_checksums_load(const char *directory, mica_vindex_file **files, uint64_t *count, mica_error *error) {
    char *path = mica_path_join(directory, MICA_VINDEX_CHECKSUMS), *text = NULL;
    if (!path)
        return mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", directory);
    uint64_t length = 0;
    json_t *object = NULL;
    mica_status status = mica_file_load(path, MICA_VINDEX_JSON_LIMIT, &text, &length, error);
    if (status == MICA_OK)
        status = check_self(path, text, length, error);
    if (status == MICA_OK)
        status = mica_json_parse(path, text, length, &object, error);
    if (status == MICA_OK)
        status = read_entries(path, object, files, count, error);
    json_decref(object);
    mica_free(text);
    mica_free(path);
    return status;
}

/* ---- tensors */

/* What is hashed before the bytes. */
static mica_status write_line(const mica_tensor *tensor, mica_text *line, mica_error *error) {
    mica_text_puts(line, mica_dtype_name(tensor->dtype));
    for (uint32_t i = 0; i < tensor->rank; i++)
        mica_text_printf(line, " %llu", (unsigned long long)tensor->shape[i]);
    mica_text_puts(line, "\n");
    return mica_text_failed(line) ? mica_fail(error, MICA_NO_MEMORY, "%s: out of memory", tensor->name) : MICA_OK;
}

mica_status mica_tensor_digest_begin(const mica_tensor *tensor, mica_sha256 *hash, mica_error *error) {
    mica_text line = MICA_TEXT_INIT;
    mica_status status = write_line(tensor, &line, error);
    if (status == MICA_OK)
        status = mica_sha256_init(hash, error);
    if (status == MICA_OK)
        mica_sha256_update(hash, line.bytes, line.length);
    mica_text_release(&line);
    return status;
}

mica_status mica_tensor_digest(const mica_tensor *tensor, const void *bytes, uint8_t digest[MICA_SHA256_BYTES], mica_error *error) {
    mica_sha256 hash;
    const mica_status status = mica_tensor_digest_begin(tensor, &hash, error);
    if (status != MICA_OK)
        return status;
    mica_sha256_update(&hash, bytes, tensor->bytes);
    mica_sha256_final(&hash, digest);
    return MICA_OK;
}

mica_status mica_tensor_digest_two(const mica_tensor *const tensors[2], const void *const bytes[2], uint8_t digests[2][MICA_SHA256_BYTES],
                                   mica_error *error) {
    mica_text lines[2] = {MICA_TEXT_INIT, MICA_TEXT_INIT};
    mica_status status = write_line(tensors[0], &lines[0], error);
    if (status == MICA_OK)
        status = write_line(tensors[1], &lines[1], error);
    if (status == MICA_OK) {
        const mica_sha256_message messages[2] = {{lines[0].bytes, bytes[0], lines[0].length, tensors[0]->bytes},
                                                 {lines[1].bytes, bytes[1], lines[1].length, tensors[1]->bytes}};
        status = mica_sha256_of_two(messages, digests, error);
    }
    mica_text_release(&lines[0]);
    mica_text_release(&lines[1]);
    return status;
}
