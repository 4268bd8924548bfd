/* operations/verify_vindex.c: every byte of every file of a vindex: checksums first, then what the numbers must be: unit rows, falling
 * singular values, sizes that agree with gate_vectors_index.json, no file missing, none of ours too many. One sequential pass.
 * Judged by tests/operations/test_vindex_verify.c, which flips bytes of every file. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/text.h"
#include "formats/vindex.h"
#include "operations/output.h"
#include "operations/verify.h"

#define CHUNK_BYTES (4ull << 20)
#define PROBLEMS_MAX 1000u
#define NORM_SQUARED_TOLERANCE 2e-5 /* of a float32 row: the criterion for orthonormality, and its rounding */

typedef struct problem {
    char *file, *what;
} problem;

typedef struct problem_list {
    problem kept[PROBLEMS_MAX];
    uint64_t count; /* may exceed PROBLEMS_MAX: only so many are kept */
} problem_list;

typedef struct verification {
    const char *path;
    const mica_verify_options *options;
    mica_vindex_file *files;
    uint64_t file_count, files_done, bytes_done, bytes_total;
    json_t *index; /* gate_vectors_index.json, NULL when it cannot be read */
    problem_list problems, warnings;
    double started;
} verification;

static mica_status no_memory(mica_error *error) {
    return mica_fail(error, MICA_NO_MEMORY, "out of memory");
}

static void keep(problem_list *list, const char *file, const char *what) {
    if (list->count < PROBLEMS_MAX)
        list->kept[list->count] = (problem){mica_strdup(file), mica_strdup(what)};
    list->count++;
}

static void MICA_PRINTF(3, 4) found(verification *check, const char *file, const char *format, ...) {
    mica_error line;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line.message, sizeof line.message, format, arguments);
    va_end(arguments);
    keep(&check->problems, file, line.message);
}

static mica_status tell(verification *check, mica_error *error) {
    if (!check->options->progress)
        return MICA_OK;
    const double seconds = mica_seconds_now() - check->started;
    const mica_progress progress = {
        .what = "verifying",
        .units_done = check->files_done,
        .units_total = check->file_count,
        .bytes_done = check->bytes_done,
        .bytes_total = check->bytes_total,
        .seconds = seconds,
        .seconds_left = check->bytes_done > 0 ? seconds * ((double)check->bytes_total / (double)check->bytes_done - 1) : -1};
    if (check->options->progress(check->options->progress_context, &progress))
        return MICA_OK;
    return mica_fail(error, MICA_INTERRUPTED, "%s: verifying was interrupted", check->path);
}

/* ---- what the numbers must be: each looks at whole rows, returns what is wrong or NULL */

typedef const char *(*row_check)(const uint8_t *row, uint64_t count);

static const char *check_vector(const uint8_t *row, uint64_t count) {
    double square = 0;
    float largest = 0;
    for (uint64_t i = 0; i < count; i++) {
        float value;
        memcpy(&value, row + i * sizeof value, sizeof value);
        if (!isfinite(value))
            return "a component is not finite";
        square += (double)value * value;
        if (fabsf(value) > fabsf(largest))
            largest = value;
    }
    if (square == 0)
        return NULL; /* past the rank */
    if (fabs(square - 1) > NORM_SQUARED_TOLERANCE)
        return "the row's norm is not 1";
    return largest > 0 ? NULL : "the row's largest component is not positive";
}

static const char *check_values(const uint8_t *row, uint64_t count) {
    float before = INFINITY;
    for (uint64_t i = 0; i < count; i++) {
        float value;
        memcpy(&value, row + i * sizeof value, sizeof value);
        if (!(value >= 0))
            return "a singular value is negative or not a number";
        if (value > before)
            return "the singular values do not fall";
        before = value;
    }
    return NULL;
}

static const char *check_doubles(const uint8_t *row, uint64_t count) {
    double before = INFINITY;
    for (uint64_t i = 0; i < count; i++) {
        double value;
        memcpy(&value, row + i * sizeof value, sizeof value);
        if (!(value >= 0) || !isfinite(value))
            return "a singular value is negative or not finite";
        if (value > before)
            return "the singular values do not fall";
        before = value;
    }
    return NULL;
}

typedef struct row_rule {
    row_check check;
    uint64_t count, bytes; /* elements and bytes of a row; 0: not a file of rows */
} row_rule;

/* From the shape that gate_vectors_index.json gives; what it gives must be the file's size. */
static row_rule rule_of(verification *check, const mica_vindex_file *file) {
    row_rule rule = {NULL, 0, 0};
    const json_t *entry = json_object_get(json_object_get(check->index, "files"), file->name), *shape = json_object_get(entry, "shape");
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const size_t rank = json_array_size(shape);
    if (!entry)
        return rule;
    const bool is_double = dtype && strcmp(dtype, "float64") == 0;
    uint64_t bytes = is_double ? 8 : 4;
    bool fits = dtype && (is_double || strcmp(dtype, "float32") == 0) && rank >= 3 && rank <= 4;
    for (size_t i = 0; fits && i < rank; i++) {
        const json_int_t extent = json_integer_value(json_array_get(shape, i));
        fits = extent >= 0 && mica_mul_u64(bytes, (uint64_t)extent, &bytes);
    }
    if (!fits || bytes != file->bytes) {
        found(check, file->name, "its size is %" PRIu64 " bytes, %s gives it another shape", file->bytes, MICA_VINDEX_INDEX);
        return rule;
    }
    rule.count = (uint64_t)json_integer_value(json_array_get(shape, rank - 1));
    rule.bytes = rule.count * (is_double ? 8 : 4);
    rule.check = is_double ? check_doubles : rank == 4 ? check_vector : check_values;
    return rule;
}

static void check_rows(verification *check, const mica_vindex_file *file, const row_rule *rule, const uint8_t *bytes, uint64_t length,
                       uint64_t offset, bool *bad) {
    for (uint64_t at = 0; !*bad && at + rule->bytes <= length; at += rule->bytes) {
        const char *wrong = rule->check(bytes + at, rule->count);
        if (!wrong)
            continue;
        found(check, file->name, "row %" PRIu64 ": %s", (offset + at) / rule->bytes, wrong);
        *bad = true; /* the first of a file is enough */
    }
}

static mica_status read_through(verification *check, const mica_vindex_file *file, const mica_file *open, mica_error *error) {
    const row_rule rule = rule_of(check, file);
    const uint64_t step = rule.bytes == 0 ? CHUNK_BYTES : rule.bytes > CHUNK_BYTES ? rule.bytes : CHUNK_BYTES / rule.bytes * rule.bytes;
    mica_sha256 hash;
    uint8_t *buffer = mica_malloc(step), digest[MICA_SHA256_BYTES];
    if (!buffer)
        return no_memory(error);
    mica_status status = mica_sha256_init(&hash, error);
    if (status != MICA_OK) {
        mica_free(buffer);
        return status;
    }
    bool bad = false;
    for (uint64_t offset = 0; status == MICA_OK && offset < file->bytes; offset += step) {
        const uint64_t length = file->bytes - offset < step ? file->bytes - offset : step;
        status = mica_file_read(open, offset, buffer, length, error);
        if (status != MICA_OK)
            break;
        mica_sha256_update(&hash, buffer, length);
        if (rule.bytes > 0)
            check_rows(check, file, &rule, buffer, length, offset, &bad);
        check->bytes_done += length;
        status = tell(check, error);
    }
    if (status == MICA_OK) {
        mica_sha256_final(&hash, digest);
        if (memcmp(digest, file->sha256, sizeof digest) != 0) {
            char expected[MICA_SHA256_HEX_BYTES], got[MICA_SHA256_HEX_BYTES];
            mica_sha256_hex(file->sha256, expected);
            mica_sha256_hex(digest, got);
            found(check, file->name, "SHA-256: expected %.16s…, got %.16s…", expected, got);
        }
    } else {
        mica_sha256_release(&hash);
    }
    mica_free(buffer);
    return status;
}

static mica_status check_file(verification *check, const mica_vindex_file *file, mica_error *error) {
    char *path = mica_path_join(check->path, file->name);
    if (!path)
        return no_memory(error);
    mica_file *open = NULL;
    mica_status status = MICA_OK;
    if (!mica_path_exists(path)) {
        found(check, file->name, "the file is missing");
    } else {
        status = mica_file_open(path, false, &open, error);
        if (status == MICA_BAD_INPUT) { /* a directory of that name */
            found(check, file->name, "it is not a file");
            status = MICA_OK;
        } else if (status == MICA_OK && mica_file_bytes(open) != file->bytes) {
            found(check, file->name, "expected %" PRIu64 " bytes, got %" PRIu64, file->bytes, mica_file_bytes(open));
        } else if (status == MICA_OK) {
            status = read_through(check, file, open, error);
        }
    }
    if (open)
        (void)mica_file_close(open, NULL);
    mica_free(path);
    check->files_done++;
    return status;
}

/* ---- structure */

static const mica_vindex_file *listed(const verification *check, const char *name) {
    for (uint64_t i = 0; i < check->file_count; i++)
        if (strcmp(check->files[i].name, name) == 0)
            return &check->files[i];
    return NULL;
}

/* What a vindex could hold but this one does not is wrong, and so is anything more in source/. Beside its files others may lie, as those
 * of a hub do (README.md, .gitattributes): a warning. */
static mica_status check_extra(verification *check, const char *prefix, mica_error *error) {
    char *directory = *prefix ? mica_path_join(check->path, prefix) : mica_strdup(check->path), **names = NULL;
    uint64_t count = 0;
    if (!directory)
        return no_memory(error);
    mica_status status = !*prefix || mica_path_is_directory(directory) ? mica_directory_list(directory, &names, &count, error) : MICA_OK;
    for (uint64_t i = 0; i < count; i++) {
        mica_text name = MICA_TEXT_INIT;
        mica_text_printf(&name, "%s%s%s", prefix, *prefix ? "/" : "", names[i]);
        const bool own = !*prefix && (strcmp(names[i], MICA_VINDEX_CHECKSUMS) == 0 || strcmp(names[i], MICA_VINDEX_SOURCE) == 0);
        if (mica_text_failed(&name))
            status = no_memory(error);
        else if (!own && !listed(check, name.bytes))
            keep(*prefix || mica_vindex_is_own_name(names[i]) ? &check->problems : &check->warnings, name.bytes,
                 "the file is not one of this vindex");
        mica_text_release(&name);
    }
    mica_directory_names_free(names, count);
    mica_free(directory);
    return status;
}

/* Each layer's bytes lie inside its file. */
static void check_layers(verification *check, const char *key) {
    json_t *layers = json_object_get(check->index, key), *layer;
    const char *name;
    json_object_foreach(layers, name, layer) {
        const char *file_name = json_string_value(json_object_get(layer, "file"));
        const mica_vindex_file *file = file_name ? listed(check, file_name) : NULL;
        const json_t *shape = json_object_get(layer, "shape");
        const json_int_t offset = json_integer_value(json_object_get(layer, "file_offset"));
        uint64_t bytes = sizeof(float);
        bool fits = file && offset >= 0 && json_array_size(shape) == 3;
        for (size_t i = 0; fits && i < 3; i++) {
            const json_int_t extent = json_integer_value(json_array_get(shape, i));
            fits = extent > 0 && mica_mul_u64(bytes, (uint64_t)extent, &bytes);
        }
        if (!fits || !mica_add_u64(bytes, (uint64_t)offset, &bytes) || bytes > file->bytes)
            found(check, MICA_VINDEX_INDEX, "%s.%s: its file, offset and shape do not fit a file of this vindex", key, name);
    }
}

/* The report names the file itself. */
static const char *without_path(const verification *check, const char *name, const char *message) {
    const size_t directory = strlen(check->path), file = strlen(name);
    if (strncmp(message, check->path, directory) == 0 && message[directory] == '/' && strncmp(message + directory + 1, name, file) == 0 &&
        message[directory + 1 + file] == ':')
        return message + directory + 1 + file + 1 + strspn(message + directory + 1 + file + 1, " ");
    return message;
}

static mica_status load_json(verification *check, mica_error *error) {
    for (uint64_t i = 0; i < check->file_count; i++) {
        const char *name = check->files[i].name, *dot = strrchr(name, '.');
        if (!dot || strcmp(dot, ".json") != 0 || strchr(name, '/'))
            continue;
        char *path = mica_path_join(check->path, name);
        if (!path)
            return no_memory(error);
        json_t *object = NULL;
        mica_error local;
        if (mica_path_exists(path)) {
            const mica_status status = mica_json_load(path, MICA_VINDEX_JSON_LIMIT, &object, &local);
            if (status != MICA_OK)
                found(check, name, "%s", without_path(check, name, local.message));
        }
        mica_free(path);
        if (strcmp(name, MICA_VINDEX_INDEX) == 0)
            check->index = object;
        else
            json_decref(object);
    }
    return MICA_OK;
}

static mica_status check_all(verification *check, mica_error *error) {
    static const char *const required[] = {"gate_vectors.bin",     "gate_singular_values.bin", MICA_VINDEX_INDEX,  MICA_VINDEX_PHASE1,
                                           MICA_VINDEX_PHASE1_AGG, MICA_VINDEX_PHASE2,         MICA_VINDEX_CONFIG, MICA_VINDEX_TENSORS};
    for (uint64_t i = 0; i < check->file_count; i++)
        check->bytes_total += check->files[i].bytes;
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++)
        if (!listed(check, required[i]))
            found(check, required[i], "%s does not list it", MICA_VINDEX_CHECKSUMS);
    mica_status status = load_json(check, error);
    if (status == MICA_OK && check->index) {
        check_layers(check, "layers");
        check_layers(check, "dense_layers");
        check_layers(check, "shared_layers");
    }
    for (uint64_t i = 0; status == MICA_OK && i < check->file_count; i++)
        status = check_file(check, &check->files[i], error);
    if (status == MICA_OK)
        status = check_extra(check, "", error);
    if (status == MICA_OK)
        status = check_extra(check, MICA_VINDEX_SOURCE, error);
    return status;
}

/* ---- the report */

static void write_list(const verification *check, const problem_list *list, const char *before, const char *key, mica_text *lines,
                       mica_json_writer *writer) {
    mica_json_open_array(writer, key);
    for (uint64_t i = 0; i < list->count && i < PROBLEMS_MAX; i++) {
        const problem *one = &list->kept[i];
        mica_text_printf(lines, "%s%s/%s: %s\n", before, check->path, one->file ? one->file : "?", one->what ? one->what : "?");
        mica_json_open_object(writer, NULL);
        mica_json_string(writer, "file", one->file);
        mica_json_string(writer, "problem", one->what);
        mica_json_close_object(writer);
    }
    mica_json_close_array(writer);
}

static mica_status write_report(const verification *check, char **text, char **json, mica_error *error) {
    mica_text lines = MICA_TEXT_INIT;
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "path", check->path);
    mica_json_string(&writer, "kind", "vindex");
    mica_json_bool(&writer, "ok", check->problems.count == 0);
    mica_json_u64(&writer, "files", check->files_done);
    mica_json_u64(&writer, "bytes", check->bytes_done);
    mica_json_u64(&writer, "problem_count", check->problems.count);
    write_list(check, &check->problems, "", "problems", &lines, &writer);
    mica_json_u64(&writer, "warning_count", check->warnings.count);
    write_list(check, &check->warnings, "warning: ", "warnings", &lines, &writer);
    mica_json_close_object(&writer);
    if (check->problems.count == 0)
        mica_text_printf(&lines, "%s: a whole vindex: %" PRIu64 " files, %" PRIu64 " bytes, every checksum right\n", check->path,
                         check->files_done + 1, check->bytes_done);
    else
        mica_text_printf(&lines, "%s: %" PRIu64 " problem%s\n", check->path, check->problems.count, check->problems.count == 1 ? "" : "s");
    return mica_output_give(MICA_OK, &lines, &writer, text, json, error);
}

static mica_status verify(verification *check, mica_error *error) {
    mica_vindex_state state;
    mica_status status = mica_vindex_state_of(check->path, &state, error);
    if (status != MICA_OK)
        return status;
    if (state == MICA_VINDEX_UNFINISHED) {
        found(check, MICA_VINDEX_JOURNAL, "this vindex is not finished; go on with mica index --resume");
        return MICA_OK;
    }
    mica_error local = {MICA_OK, ""};
    status = mica_vindex_checksums_load(check->path, &check->files, &check->file_count, &local);
    if (status == MICA_NO_MEMORY)
        return mica_fail(error, status, "%s", local.message);
    if (status != MICA_OK) {
        found(check, MICA_VINDEX_CHECKSUMS, "%s", without_path(check, MICA_VINDEX_CHECKSUMS, local.message));
        return MICA_OK;
    }
    return check_all(check, error);
}

/* Without slashes at the end, as completion in a shell leaves them: names below it are shown with one. */
static char *trimmed(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    return mica_strndup(path, length);
}

static void list_release(problem_list *list) {
    for (uint64_t i = 0; i < list->count && i < PROBLEMS_MAX; i++) {
        mica_free(list->kept[i].file);
        mica_free(list->kept[i].what);
    }
}

static void release(verification *check, char *path) {
    list_release(&check->problems);
    list_release(&check->warnings);
    json_decref(check->index);
    mica_vindex_files_free(check->files, check->file_count);
    mica_free(check);
    mica_free(path);
}

mica_status mica_verify_vindex(const char *path, const mica_verify_options *options, char **text, char **json, mica_error *error) {
    if (options->hashes)
        return mica_fail(error, MICA_USAGE, "--hashes: expected with a checkpoint, got a vindex: %s", path);
    verification *check = mica_calloc(1, sizeof *check);
    char *shown = trimmed(path);
    if (!check || !shown) {
        mica_free(check);
        mica_free(shown);
        return no_memory(error);
    }
    check->path = shown;
    check->options = options;
    check->started = mica_seconds_now();
    mica_status status = verify(check, error);
    if (status == MICA_OK)
        status = write_report(check, text, json, error);
    if (status == MICA_OK && check->problems.count > 0) {
        const problem *first = &check->problems.kept[0];
        status = mica_fail(error, MICA_CORRUPT, "%s/%s: %s%s", shown, first->file ? first->file : "?", first->what ? first->what : "?",
                           check->problems.count > 1 ? " (and more: see the report)" : "");
    }
    release(check, shown);
    return status;
}
