/* Checkpoint directories: index and shards agree, links are followed, nothing outside the directory is opened.
 * The damaged fixtures are run where ../shared is there; all else is built here, or is models/tiny-k2. */
#include "formats/tensor_source.h"

#include "base/json.h"
#include "base/no_memory.h"
#include "base/text.h"
#include "formats/index.h"
#include "formats/shards.h"

static mica_error error;

#define INDEX "model.safetensors.index.json"
#define U8(name, offsets) "\"" name "\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":" offsets "}"
#define MAP(entries) "{\"metadata\":{\"total_size\":32},\"weight_map\":{" entries "}}"

/* Two shards with two tensors each, and the index `index` (NULL: none). */
static void write_checkpoint(const char *index) {
    static const char *const names[] = {"one.safetensors", "two.safetensors", "model.safetensors", INDEX};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (unlink(scratch(names[i])) != 0)
            rmdir(scratch(names[i]));
    }
    write_shard("one.safetensors", "{" U8("b", "[0,8]") "," U8("d", "[8,16]") "}", 16);
    write_shard("two.safetensors", "{" U8("a", "[0,8]") "," U8("c", "[8,16]") "}", 16);
    if (index)
        scratch_write(INDEX, index, strlen(index));
}

static const char good_index[] =
    MAP("\"d\":\"one.safetensors\",\"a\":\"two.safetensors\",\"c\":\"two.safetensors\",\"b\":\"one.safetensors\"");

static void expect_refusal(const char *what, const char *path, const char *const *says) {
    mica_tensor_source *source = NULL;
    error.message[0] = 0;
    mica_status status = mica_tensor_source_open(path, &source, &error);
    if (status != MICA_BAD_INPUT && status != MICA_IO)
        fail_msg("%s: expected a refusal, got status %d", what, (int)status);
    assert_null(source);
    assert_int_equal(error.status, status);
    assert_says(what, error.message, says);
    assert_int_equal(mica_tensor_source_open(path, &source, NULL), status);
}

static void expect_four(const char *path, uint64_t unlisted) {
    mica_tensor_source *source = NULL;
    if (mica_tensor_source_open(path, &source, &error) != MICA_OK)
        fail_msg("%s", error.message);
    static const char *const names[] = {"a", "b", "c", "d"};
    assert_int_equal(source->shard_count, 2);
    assert_int_equal(source->tensor_count, 4);
    assert_int_equal(source->unlisted_count, unlisted);
    assert_true(source->kind->has_files);
    assert_string_equal(source->path, path);
    assert_string_equal(source->directory, scratch_directory);
    for (size_t i = 0; i < 4; i++) {
        const mica_tensor *tensor = mica_tensor_source_find(source, names[i]);
        assert_ptr_equal(tensor, &source->tensors[i]);
        assert_string_equal(tensor->name, names[i]);
        assert_string_equal(source->shards[tensor->shard].name, i % 2 ? "one.safetensors" : "two.safetensors");
        assert_int_equal(tensor->bytes, 8);
        assert_int_equal(tensor->offset + (i < 2 ? 16 : 8), mica_file_bytes(source->shards[tensor->shard].file));
    }
    assert_null(mica_tensor_source_find(source, "bb"));
    assert_null(mica_tensor_source_find(source, ""));
    mica_tensor_source_close(source);
}

static void test_opens(void **state) {
    (void)state;
    char path[300];
    write_checkpoint(good_index);
    expect_four(scratch_directory, 0);
    snprintf(path, sizeof path, "%s/", scratch_directory);
    expect_four(path, 0);
    snprintf(path, sizeof path, "%s///", scratch_directory);
    expect_four(path, 0);
}

static void test_unlisted(void **state) {
    (void)state;
    mica_tensor_source *source = NULL;
    write_checkpoint(MAP("\"c\":\"two.safetensors\",\"b\":\"one.safetensors\""));
    expect_four(scratch_directory, 2);
    assert_int_equal(mica_tensor_source_open(scratch_directory, &source, &error), MICA_OK);
    assert_string_equal(source->tensors[source->unlisted[0]].name, "a");
    assert_string_equal(source->tensors[source->unlisted[1]].name, "d");
    mica_tensor_source_close(source);
    mica_tensor_source_close(NULL);
}

/* Other keys of the index are checked as JSON and otherwise left alone; escapes mean what they mean. */
static void test_index_freedoms(void **state) {
    (void)state;
    write_checkpoint("{\"x\":[{\"y\":[1.5e-3,true,null,\"\\u0000\"]}],\"weight\\u005fmap\":{\"\\u0061\":\"two.safe\\u0074ensors\","
                     "\"b\":\"one.safetensors\",\"c\":\"two.safetensors\",\"d\":\"one.safetensors\"},\"z\":-0.0}\n");
    expect_four(scratch_directory, 0);
}

static const struct {
    const char *what, *index, *says[4]; /* besides the index's name */
} index_refusals[] = {
    {"empty", "", {"JSON object", "empty"}},
    {"not JSON", "hello", {"an object", "'h'"}},
    {"array", "[]", {"an object", "array []"}},
    {"NaN", "{\"metadata\":NaN}", {"a JSON value", "'N'"}},
    {"cut", "{\"weight_map\":{\"a\":\"two.safetensors\"", {"',' or '}'", "the end"}},
    {"no weight_map", "{\"metadata\":{}}", {"weight_map", "absent"}},
    {"empty weight_map", "{\"weight_map\":{}}", {"weight_map", "empty"}},
    {"weight_map an array", "{\"weight_map\":[]}", {"weight_map", "an object", "array []"}},
    {"weight_map twice", "{\"weight_map\":{\"a\":\"two.safetensors\"},\"weight_map\":{\"a\":\"two.safetensors\"}}",
     {"weight_map", "duplicate"}},
    {"text behind", MAP("\"a\":\"two.safetensors\"") "x", {"the end", "'x'"}},
    {"value a number", MAP("\"a.weight\":7"), {"tensor a.weight", "a string", "got 7"}},
    {"value null", MAP("\"a.weight\":null"), {"tensor a.weight", "a string", "got null"}},
    {"value empty", MAP("\"a.weight\":\"\""), {"tensor a.weight", "plain file name", "got \"\""}},
    {"dot", MAP("\"a.weight\":\".\""), {"tensor a.weight", "plain file name", "got \".\""}},
    {"dot dot", MAP("\"a.weight\":\"..\""), {"tensor a.weight", "plain file name", "got \"..\""}},
    {"traversal", MAP("\"a.weight\":\"../one.safetensors\""), {"tensor a.weight", "plain file name", "../one.safetensors"}},
    {"subdirectory", MAP("\"a.weight\":\"sub/one.safetensors\""), {"tensor a.weight", "plain file name", "sub/one.safetensors"}},
    {"absolute", MAP("\"a.weight\":\"/dev/zero\""), {"tensor a.weight", "plain file name", "/dev/zero"}},
    {"escaped slash", MAP("\"a.weight\":\"..\\u002fone.safetensors\""), {"tensor a.weight", "plain file name", "../one.safetensors"}},
    {"NUL in the file name", MAP("\"a\":\"two.safetensors\\u0000x\""), {"tensor a", "no NUL", "\\u0000"}},
    {"NUL in the tensor name", MAP("\"a\\u0000b\":\"two.safetensors\""), {"weight_map", "no NUL", "\\u0000"}},
    {"lone surrogate", MAP("\"\\ud800\":\"two.safetensors\""), {"weight_map", "\\ud800"}},
    {"not UTF-8", MAP("\"a\":\"two.\xff\""), {"tensor a", "UTF-8", "0xff"}},
    {"listed twice", MAP("\"a\":\"two.safetensors\",\"c\":\"two.safetensors\",\"a\":\"two.safetensors\""),
     {"tensor a", "unique", "duplicate"}},
    {"other shard", MAP("\"a\":\"one.safetensors\",\"c\":\"two.safetensors\""),
     {"tensor a", "expected two.safetensors", "got one.safetensors"}},
};

static void test_index_refusals(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof index_refusals / sizeof index_refusals[0]; i++) {
        const char *name[] = {INDEX, NULL};
        write_checkpoint(index_refusals[i].index);
        expect_refusal(index_refusals[i].what, scratch_directory, name);
        expect_refusal(index_refusals[i].what, scratch_directory, index_refusals[i].says);
    }
}

static void test_shard_refusals(void **state) {
    (void)state;
    const char *absent[] = {"two.safetensors", "tensor b.absent", INDEX, "got absent", NULL};
    write_checkpoint(MAP("\"b\":\"one.safetensors\",\"b.absent\":\"two.safetensors\""));
    expect_refusal("absent tensor", scratch_directory, absent);

    const char *missing[] = {"three.safetensors", "expected a file", "No such file", NULL};
    write_checkpoint(MAP("\"a\":\"two.safetensors\",\"b\":\"three.safetensors\""));
    expect_refusal("missing shard", scratch_directory, missing);

    const char *directory[] = {"one.safetensors", "regular file", "directory", NULL};
    write_checkpoint(good_index);
    assert_int_equal(unlink(scratch("one.safetensors")), 0);
    assert_int_equal(mkdir(scratch("one.safetensors"), 0777), 0);
    expect_refusal("shard is a directory", scratch_directory, directory);

    const char *pipe[] = {"one.safetensors", "regular file", "pipe", NULL};
    write_checkpoint(good_index);
    assert_int_equal(unlink(scratch("one.safetensors")), 0);
    assert_int_equal(mkfifo(scratch("one.safetensors"), 0666), 0);
    expect_refusal("shard is a pipe", scratch_directory, pipe);

    const char *twice[] = {"two.safetensors", "one.safetensors", "tensor a", NULL};
    write_checkpoint(good_index);
    write_shard("one.safetensors", "{" U8("a", "[0,8]") "," U8("d", "[8,16]") "}", 16);
    expect_refusal("one tensor in two shards", scratch_directory, twice);

    const char *damaged[] = {"two.safetensors", "cut short", NULL};
    write_checkpoint(good_index);
    write_shard("two.safetensors", "{" U8("a", "[0,8]") "," U8("c", "[8,16]") "}", 15);
    expect_refusal("damaged shard", scratch_directory, damaged);

    const char *neither[] = {scratch_directory, INDEX, "model.safetensors", "neither", NULL};
    write_checkpoint(NULL);
    expect_refusal("neither index nor model", scratch_directory, neither);

    const char *nothing[] = {"nowhere", "No such file", NULL};
    expect_refusal("no such path", scratch("nowhere"), nothing);
}

/* The Hugging Face cache keeps shards elsewhere and links to them. */
static void test_links(void **state) {
    (void)state;
    const char *dangling[] = {"one.safetensors: a symbolic link that leads to no file", "No such file", NULL};
    const char *loop[] = {"one.safetensors: a symbolic link that leads to no file", "symbolic links", NULL};
    const char *index_loop[] = {INDEX ": a symbolic link that leads to no file", NULL};
    write_checkpoint(good_index);
    assert_int_equal(rename(scratch("one.safetensors"), scratch("blob")), 0);
    assert_int_equal(symlink("../nowhere/blob", scratch("one.safetensors")), 0);
    expect_refusal("dangling", scratch_directory, dangling);
    assert_int_equal(unlink(scratch("one.safetensors")), 0);
    assert_int_equal(symlink("one.safetensors", scratch("one.safetensors")), 0);
    expect_refusal("link to itself", scratch_directory, loop);
    assert_int_equal(unlink(scratch("one.safetensors")), 0);
    assert_int_equal(symlink(scratch("blob"), scratch("one.safetensors")), 0);
    expect_four(scratch_directory, 0);
    assert_int_equal(rename(scratch(INDEX), scratch("index")), 0);
    assert_int_equal(symlink("index", scratch(INDEX)), 0);
    expect_four(scratch_directory, 0);
    assert_int_equal(unlink(scratch("index")), 0);
    expect_refusal("dangling index", scratch_directory, index_loop); /* and no silent turn to model.safetensors */
}

static void expect_one_file(const char *path, bool bare, const char *directory, const char *shard) {
    mica_tensor_source *source = NULL;
    if (mica_tensor_source_open(path, &source, &error) != MICA_OK)
        fail_msg("%s", error.message);
    assert_int_equal(source->shard_count, 1);
    assert_int_equal(source->tensor_count, 2);
    assert_int_equal(source->kind->has_files, !bare);
    assert_int_equal(source->unlisted_count, 0);
    assert_string_equal(source->directory, directory);
    assert_string_equal(source->shards[0].name, shard);
    assert_non_null(mica_tensor_source_find(source, "d"));
    mica_tensor_source_close(source);
}

static void test_files(void **state) {
    (void)state;
    mica_tensor_source *source = NULL;
    char *bytes = NULL, *path;
    uint64_t length = 0;
    write_checkpoint(good_index);
    scratch_write("config.json", "{}", 2);
    assert_int_equal(mica_tensor_source_open(scratch_directory, &source, &error), MICA_OK);
    assert_true(mica_tensor_source_has_file(source, "config.json"));
    assert_false(mica_tensor_source_has_file(source, "tokenizer.json"));
    assert_int_equal(mica_tensor_source_load(source, "config.json", 2, &bytes, &length, &error), MICA_OK);
    assert_int_equal(length, 2);
    assert_string_equal(bytes, "{}");
    mica_free(bytes);
    assert_int_equal(mica_tensor_source_load(source, "config.json", 1, &bytes, &length, &error), MICA_BAD_INPUT);
    assert_int_equal(mica_tensor_source_load(source, "tokenizer.json", 1, &bytes, &length, &error), MICA_IO);
    path = mica_tensor_source_file_path(source, "config.json");
    assert_string_equal(path, scratch("config.json"));
    mica_free(path);
    mica_tensor_source_close(source);
    assert_int_equal(mica_tensor_source_open(scratch("one.safetensors"), &source, &error), MICA_OK);
    assert_false(mica_tensor_source_has_file(source, "config.json")); /* it is a file on its own */
    assert_int_equal(mica_tensor_source_load(source, "config.json", 2, &bytes, &length, &error), MICA_BAD_INPUT);
    mica_tensor_source_close(source);
}

static void test_single_file(void **state) {
    (void)state;
    char here[512];
    write_checkpoint(NULL);
    expect_one_file(scratch("one.safetensors"), true, scratch_directory, "one.safetensors");
    assert_int_equal(rename(scratch("one.safetensors"), scratch("model.safetensors")), 0);
    expect_one_file(scratch_directory, false, scratch_directory, "model.safetensors");
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(scratch_directory), 0);
    expect_one_file("model.safetensors", true, ".", "model.safetensors");
    expect_one_file(".", false, ".", "model.safetensors");
    assert_int_equal(chdir(here), 0);
    const char *other[] = {"blob", ".safetensors", NULL};
    scratch_write("blob", "x", 1);
    expect_refusal("another file", scratch("blob"), other);
}

static void test_out_of_memory(void **state) {
    (void)state;
    write_checkpoint(good_index);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        mica_tensor_source *source = NULL;
        no_memory_begin(&trial);
        const mica_status status = mica_tensor_source_open(scratch_directory, &source, &error);
        mica_tensor_source_close(source);
        no_memory_end(&trial, status, MICA_OK, &error);
    }
}

static void test_tiny_k2(void **state) {
    (void)state;
    mica_tensor_source *source = NULL;
    assert_int_equal(mica_tensor_source_open(MICA_SOURCE_DIR "/models/tiny-k2", &source, &error), MICA_OK);
    assert_int_equal(source->shard_count, 3);
    assert_int_equal(source->unlisted_count, 0);
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < source->tensor_count; i++)
        bytes += source->tensors[i].bytes;
    assert_int_equal(bytes, 15237240); /* total_size in its index, which nothing here reads */
    const mica_tensor *tensor = mica_tensor_source_find(source, "model.embed_tokens.weight");
    assert_non_null(tensor);
    assert_int_equal(tensor->rank, 2);
    assert_int_equal(tensor->dtype, MICA_BF16);
    mica_tensor_source_close(source);
}

/* The fixtures. Every case of these families is about files, headers and index; the rest is the model's. */
static const char *const families[] = {"shard-", "header-", "offsets-", "shape-", "index-", "ok-", "_good",
                                       "dtype-unknown", "dtype-wrong-size"};

static bool is_ours(const char *name) {
    bool found = false;
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        found = found || strncmp(name, families[i], strlen(families[i])) == 0;
    return found;
}

static void expect_as_base(const char *name, const mica_tensor_source *source, const char *base_path) {
    mica_tensor_source *base = NULL;
    assert_int_equal(mica_tensor_source_open(base_path, &base, &error), MICA_OK);
    if (source->tensor_count != base->tensor_count)
        fail_msg("%s: expected %d tensors, got %d", name, (int)base->tensor_count, (int)source->tensor_count);
    for (uint64_t i = 0; i < base->tensor_count; i++) {
        const mica_tensor *wanted = &base->tensors[i], *got = &source->tensors[i];
        assert_string_equal(got->name, wanted->name);
        assert_int_equal(got->dtype, wanted->dtype);
        assert_int_equal(got->rank, wanted->rank);
        assert_memory_equal(got->shape, wanted->shape, sizeof got->shape);
        char bytes[2][4096];
        assert_int_equal(got->bytes, wanted->bytes);
        assert_true(got->bytes <= sizeof bytes[0] || wanted->rank == 2);
        uint64_t length = got->bytes < sizeof bytes[0] ? got->bytes : sizeof bytes[0];
        assert_int_equal(mica_file_read(source->shards[got->shard].file, got->offset, bytes[0], length, &error), MICA_OK);
        assert_int_equal(mica_file_read(base->shards[wanted->shard].file, wanted->offset, bytes[1], length, &error), MICA_OK);
        assert_memory_equal(bytes[0], bytes[1], length);
    }
    mica_tensor_source_close(base);
}

/* Every number of what the case says is there must be in the message. */
static void expect_numbers(const char *name, const char *got) {
    for (size_t digits; *got; got += digits + (digits == 0)) {
        char number[32];
        digits = strspn(got, "0123456789");
        snprintf(number, sizeof number, "%.*s", (int)digits, got);
        const char *says[] = {number, NULL};
        assert_says(name, error.message, says);
    }
}

static void run_case(const char *root, const char *name, json_t *row) {
    char path[1024], base[1024];
    const char *verdict = json_string_value(json_object_get(row, "verdict"));
    const char *says[9] = {NULL};
    json_t *mention = json_object_get(row, "mention");
    for (size_t i = 0; i < json_array_size(mention) && i < 8; i++)
        says[i] = json_string_value(json_array_get(mention, i));
    snprintf(path, sizeof path, "%s/%s", root, name);
    snprintf(base, sizeof base, "%s/%s", root, json_string_value(json_object_get(row, "base")));
    if (strcmp(verdict, "reject") == 0) {
        expect_refusal(name, path, says);
        if (strcmp(name, "header-deeply-nested") != 0) { /* the depth is not counted to its end */
            expect_numbers(name, json_string_value(json_object_get(row, "got")));
        }
        return;
    }
    mica_tensor_source *source = NULL;
    if (mica_tensor_source_open(path, &source, &error) != MICA_OK)
        fail_msg("%s: %s", name, error.message);
    expect_as_base(name, source, base);
    assert_int_equal(source->unlisted_count, strcmp(verdict, "either") == 0);
    if (source->unlisted_count)
        assert_string_equal(source->tensors[source->unlisted[0]].name, says[0]);
    mica_tensor_source_close(source);
}

static void test_bad_fixtures(void **state) {
    (void)state;
    const char *root = MICA_SOURCE_DIR "/../shared/fixtures/public/bad";
    char path[1024];
    json_t *cases = NULL;
    snprintf(path, sizeof path, "%s/cases.json", root);
    if (!mica_path_exists(path)) {
        printf("skipped: %s is not there\n", path);
        skip();
    }
    assert_int_equal(mica_json_load(path, 1 << 20, &cases, &error), MICA_OK);
    const char *name;
    json_t *row;
    int count = 0;
    json_object_foreach(cases, name, row) {
        if (is_ours(name)) {
            run_case(root, name, row);
            count++;
        }
    }
    json_decref(cases);
    printf("%d fixtures\n", count);
    assert_true(count >= 45);
}

/* What goes with the tensors: every plain file but weights, their index, hidden files and our own records. */
static void test_companions(void **state) {
    (void)state;
    static const char *const others[] = {".hidden", "mica.sha256", "journal.mica", "pytorch_model.bin", "x.gguf", "y.safetensors.partial"};
    static const char *const kept[] = {"README.md", "config.json", "tokenizer.json"};
    assert_int_equal(scratch_remove(NULL), 0); /* what the tests before left */
    assert_int_equal(mkdir(scratch_directory, 0777), 0);
    write_checkpoint(good_index);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        scratch_write(others[i], "x", 1);
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++)
        scratch_write(kept[i], "x", 1);
    assert_int_equal(mkdir(scratch("figures"), 0777), 0);
    mica_tensor_source *source = NULL;
    char **names = NULL;
    uint64_t count = 0;
    assert_int_equal(mica_tensor_source_open(scratch_directory, &source, &error), MICA_OK);
    assert_int_equal(mica_tensor_source_list_files(source, &names, &count, &error), MICA_OK);
    assert_int_equal(count, 3);
    for (size_t i = 0; i < 3; i++)
        assert_string_equal(names[i], kept[i]);
    mica_directory_names_free(names, count);
    /* printf 'a U8 8\nb U8 8\nc U8 8\nd U8 8\n' | sha256sum */
    char digest[MICA_SHA256_HEX_BYTES];
    assert_int_equal(mica_tensor_source_digest(source, digest, &error), MICA_OK);
    assert_string_equal(digest, "93720a6a6b4675f0ad82de95fdbdf7f731870997341f9e49703393e0e0532d35");
    mica_tensor_source_close(source);
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        no_memory_begin(&trial);
        mica_tensor_source *opened = NULL;
        mica_status status = mica_tensor_source_open(scratch_directory, &opened, &error);
        if (status == MICA_OK)
            status = mica_tensor_source_list_files(opened, &names, &count, &error);
        if (status == MICA_OK)
            mica_directory_names_free(names, count);
        mica_tensor_source_close(opened);
        no_memory_end(&trial, status, MICA_OK, &error);
    }
    assert_int_equal(mica_tensor_source_open(scratch("one.safetensors"), &source, &error), MICA_OK); /* a bare file has none */
    assert_int_equal(mica_tensor_source_list_files(source, &names, &count, &error), MICA_OK);
    assert_int_equal(count, 0);
    mica_tensor_source_close(source);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opens),         cmocka_unit_test(test_unlisted),      cmocka_unit_test(test_index_freedoms),
        cmocka_unit_test(test_index_refusals), cmocka_unit_test(test_shard_refusals), cmocka_unit_test(test_links),
        cmocka_unit_test(test_single_file),   cmocka_unit_test(test_out_of_memory), cmocka_unit_test(test_tiny_k2),
        cmocka_unit_test(test_bad_fixtures), cmocka_unit_test(test_files),    cmocka_unit_test(test_companions),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
