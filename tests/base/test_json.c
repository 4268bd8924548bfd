/* Reading JSON: what is accepted, and for what is not, the sentence. */
#include "base/json.h"
#include "base/no_memory.h"

#include "base/scratch.h"

static mica_error failure;

static json_t *parse(const char *text) {
    json_t *object = NULL;
    assert_int_equal(mica_json_parse("x.json", text, strlen(text), &object, &failure), MICA_OK);
    assert_non_null(object);
    return object;
}

static void refuses_bytes(const char *text, size_t length, const char *message) {
    json_t *object = NULL;
    char *copy = malloc(length ? length : 1); /* exact, without a NUL: a sanitizer sees a read past the end */
    memcpy(copy, text, length);
    assert_int_equal(mica_json_parse("x.json", copy, length, &object, &failure), MICA_BAD_INPUT);
    assert_int_equal(failure.status, MICA_BAD_INPUT);
    assert_null(object);
    if (!strstr(failure.message, message))
        fail_msg("\"%s\" is not in \"%s\"", message, failure.message);
    free(copy);
}

static void refuses(const char *text, const char *message) {
    refuses_bytes(text, strlen(text), message);
}

static void reads_objects(void **state) {
    (void)state;
    json_t *object = parse(" {\"a\": [1, -2.5, \"\\u00e9\\ud83d\\ude00\", null, true], \"b\": {}}\n  ");
    assert_int_equal(json_object_size(object), 2);
    assert_string_equal(json_string_value(json_array_get(json_object_get(object, "a"), 2)), "é😀");
    assert_true(json_real_value(json_array_get(json_object_get(object, "a"), 1)) == -2.5);
    json_decref(object);
}

static void names_place_and_key(void **state) {
    (void)state;
    refuses("", "x.json: expected a JSON object, got an empty text");
    refuses("  \n", "x.json:2:1: the text ends too early");
    refuses("[1]", "x.json: expected a JSON object, got an array");
    refuses("7", "x.json: expected a JSON object, got an integer");
    refuses("{\"a\": 1}x", "x.json:1:10: more text after the end of the object");
    refuses("{\n \"hidden_size\": 8,\n \"rms_norm_eps\": NaN\n}", "x.json:3:21: invalid token near 'NaN', after \"rms_norm_eps\"");
    refuses("{\"a\": {\"b\": [1, {\"c\": 1, \"d\": Infinity}]}}", ", after \"a\" > \"b\" > \"d\"");
    refuses("{\"a\": {\"b\": 1}, \"c\": tru}", ", after \"c\"");
    refuses("{\"a\": \"x,{\\\"y\\\": [\", \"c\": ]}", ", after \"c\"");
    refuses("{\"a\": \"value\" 5}", ", after \"a\"");
    refuses("{\"a\": \"\\\"\", \"c\": NaN}", ", after \"c\"");
    refuses("{\"a\\\"{[b\": NaN}", ", after \"a\\\"{[b\"");
    refuses("{\"a\": [1, 2", "the text ends too early");
    refuses("{\"a\": \"\\ud800\"}", "\\ud800");
    refuses("{\"a\": \"b\\u0000\"}", "\\u0000 is not allowed");
    refuses("{\"a\\u0000b\": 1}", "x.json:1:");
    refuses("{\"a\": {\"data_offsets\": [0, 18446744073709551615]}}", ", after \"a\" > \"data_offsets\"");
    refuses("{\"a\": 1e999}", ", after \"a\"");
    refuses("{'a': 1}", "x.json:1:3: string or '}' expected");
    refuses("{\"a\": 1,}", "x.json:1:9");
    refuses("{\"a\": 01}", "x.json:1:8");
    refuses("\xef\xbb\xbf{}", "x.json:1:");
}

static void refuses_bytes_that_are_no_text(void **state) {
    (void)state;
    refuses_bytes("{\"a\xff\": 1}", 9, "0xff");
    refuses_bytes("{}\0", 3, "x.json:1:3: expected text, got a NUL byte");
    refuses_bytes("{\"a\0b\": 1}", 10, "x.json:1:4: expected text, got a NUL byte");
    refuses_bytes("{\"a\": 9\0, \"b\": 1}", 17, "x.json:1:8: expected text, got a NUL byte, after \"a\""); /* jansson takes it for space */
    refuses_bytes("{\"a\":\n1.5e3\0}", 13, "x.json:2:6: expected text, got a NUL byte");
    refuses_bytes("\0", 1, "x.json:1:1: expected text, got a NUL byte");
    refuses_bytes("\x80", 1, "0x80");
}

static void names_a_duplicate_in_full(void **state) {
    (void)state;
    refuses("{\"a\": 1, \"b\": {\"a\": 2, \"c\": 3, \"a\": 4}}", "x.json:1:35: duplicate key, after \"b\" > \"a\"");
    char name[401], text[1000];
    memset(name, 'n', 400);
    memcpy(name + 390, "tail_of_it", 11);
    snprintf(text, sizeof text, "{\"%s\": 1, \"%s\": 2}", name, name);
    refuses(text, name);
    /* escapes do not hide it */
    refuses("{\"ab\": 1, \"\\u0061b\": 2}", "duplicate key");
}

static void keys_without_end_are_cut(void **state) {
    (void)state;
    char *text = malloc(20000);
    memset(text, 'k', 20000);
    memcpy(text, "{\"first\": {\"", 12);
    strcpy(text + 15000, "\": NaN}}");
    refuses(text, ", after \"kkkkkkkkkk");
    assert_true(strlen(failure.message) < 900);
    free(text);
}

static void depth_is_bounded(void **state) {
    (void)state;
    char text[600];
    for (int depth = 63; depth <= 65; depth++) { /* the object is one level, the arrays are the others */
        strcpy(text, "{\"a\":");
        size_t at = strlen(text);
        memset(text + at, '[', (size_t)depth - 1);
        memset(text + at + depth - 1, ']', (size_t)depth - 1);
        strcpy(text + at + 2 * (depth - 1), "}");
        if (depth <= 64)
            json_decref(parse(text));
        else
            refuses(text, "x.json:1:69: nested deeper than 64 levels, after \"a\"");
    }
    size_t many = 1000000;
    char *deep = malloc(many);
    memset(deep, '[', many);
    refuses_bytes(deep, many, "nested deeper than 64 levels");
    memcpy(deep, "{\"a\": \"", 7); /* brackets inside a string are text */
    memcpy(deep + many - 3, "\"}\n", 3);
    json_t *object = NULL;
    assert_int_equal(mica_json_parse("x.json", deep, many, &object, &failure), MICA_OK);
    json_decref(object);
    free(deep);
}

/* Every beginning of a text, and every byte of it changed: never a crash, never an OK without an object. */
static void damaged_texts(void **state) {
    (void)state;
    static const char text[] = "{\"a\": {\"b\\n\": [1, -2.5e3, \"\\u00e9\", \"é\"]}, \"c\": null, \"d\": true}";
    for (size_t length = 0; length < sizeof text - 1; length++)
        refuses_bytes(text, length, "x.json:");
    static const char changes[] = {0, '"', '\\', '{', '}', '[', ']', ',', ':', (char)0xff, 'x', '\n'};
    for (size_t at = 0; at < sizeof text - 1; at++) {
        for (size_t i = 0; i < sizeof changes; i++) {
            char changed[sizeof text];
            memcpy(changed, text, sizeof text);
            changed[at] = changes[i];
            json_t *object = NULL;
            mica_status status = mica_json_parse("x.json", changed, sizeof text - 1, &object, &failure);
            assert_true(status == MICA_OK ? json_is_object(object)
                                          : status == MICA_BAD_INPUT && strncmp(failure.message, "x.json:", 7) == 0);
            json_decref(object);
        }
    }
}

static void loads_files(void **state) {
    (void)state;
    json_t *object = NULL;
    scratch_write("good.json", "{\"a\": 5}", 8);
    assert_int_equal(mica_json_load(scratch("good.json"), 8, &object, &failure), MICA_OK);
    assert_int_equal(json_integer_value(json_object_get(object, "a")), 5);
    json_decref(object);
    assert_int_equal(mica_json_load(scratch("good.json"), 7, &object, &failure), MICA_BAD_INPUT);
    assert_non_null(strstr(failure.message, "good.json: expected at most 7 bytes, got 8"));
    scratch_write("empty.json", "", 0);
    assert_int_equal(mica_json_load(scratch("empty.json"), 100, &object, &failure), MICA_BAD_INPUT);
    assert_non_null(strstr(failure.message, "empty.json: expected a JSON object, got an empty text"));
    assert_int_equal(mica_json_load(scratch("none.json"), 100, &object, &failure), MICA_IO);
}

/* jansson calls some failed allocations an invalid token, and of others says nothing: they must come out as what they are. */
static void memory_runs_out_anywhere(void **state) {
    (void)state;
    static const char text[] =
        "{\"a\": {\"bc\": [1, 2.5, \"text\", {\"d\": null}]}, \"e\": true, \"f\": \"a longer text, longer than any buffer inside\"}";
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        json_t *object = NULL;
        no_memory_begin(&trial);
        mica_status status = mica_json_parse("x.json", text, sizeof text - 1, &object, &failure);
        no_memory_end(&trial, status, MICA_OK, &failure);
        assert_true((status == MICA_OK) == (object != NULL));
        json_decref(object);
    }
}

static void shows_values(void **state) {
    (void)state;
    char buffer[300];
    json_t *object = parse("{\"s\": \"4\", \"a\": [0, 128], \"r\": 8328.5, \"t\": 0.1, \"n\": null, \"e\": \"é\\u0001\"}");
    assert_string_equal(mica_json_show(json_object_get(object, "s"), buffer, sizeof buffer), "\"4\"");
    assert_string_equal(mica_json_show(json_object_get(object, "a"), buffer, sizeof buffer), "[0, 128]");
    assert_string_equal(mica_json_show(json_object_get(object, "r"), buffer, sizeof buffer), "8328.5");
    assert_string_equal(mica_json_show(json_object_get(object, "t"), buffer, sizeof buffer), "0.1");
    assert_string_equal(mica_json_show(json_object_get(object, "n"), buffer, sizeof buffer), "null");
    assert_string_equal(mica_json_show(json_object_get(object, "e"), buffer, sizeof buffer), "\"é\\u0001\"");
    assert_string_equal(mica_json_show(NULL, buffer, sizeof buffer), "nothing");
    json_decref(object);

    json_t *array = json_array();
    for (int i = 0; i < 100000; i++)
        json_array_append_new(array, json_string("é"));
    for (size_t bytes = 0; bytes < sizeof buffer; bytes++) {
        memset(buffer, 'x', sizeof buffer);
        mica_json_show(array, buffer, bytes);
        for (size_t i = bytes; i < sizeof buffer; i++)
            assert_int_equal(buffer[i], 'x');
        if (bytes >= 4) {
            size_t length = strlen(buffer);
            assert_true(length < bytes && length < 200);
            assert_string_equal(buffer + length - 3, "…");
            for (size_t at = 0; at < length;) { /* no half characters */
                size_t sequence = mica_utf8_sequence(buffer + at, length - at);
                assert_true(sequence > 0);
                at += sequence;
            }
        }
    }
    json_decref(array);
}

/* An integer of any size, as a double; anything else as ever. */
static void integers_may_be_doubles(void **state) {
    (void)state;
    static const char text[] = "{\"a\": 1000000000000000019884624838656, \"b\": 7}", twice[] = "{\"a\": 1, \"a\": 2}";
    json_t *object;
    mica_error error;
    assert_int_equal(mica_json_parse("x.json", text, strlen(text), &object, &error), MICA_BAD_INPUT);
    assert_int_equal(mica_json_parse_as_doubles("x.json", text, strlen(text), &object, &error), MICA_OK);
    assert_true(json_real_value(json_object_get(object, "a")) == 1e30);
    assert_true(json_real_value(json_object_get(object, "b")) == 7);
    json_decref(object);
    assert_int_equal(mica_json_parse_as_doubles("x.json", twice, strlen(twice), &object, &error), MICA_BAD_INPUT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_objects),
        cmocka_unit_test(names_place_and_key),
        cmocka_unit_test(refuses_bytes_that_are_no_text),
        cmocka_unit_test(names_a_duplicate_in_full),
        cmocka_unit_test(keys_without_end_are_cut),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(damaged_texts),
        cmocka_unit_test(loads_files),
        cmocka_unit_test(memory_runs_out_anywhere),
        cmocka_unit_test(shows_values),
        cmocka_unit_test(integers_may_be_doubles),
    };
    return cmocka_run_group_tests_name("json", tests, scratch_make, scratch_remove);
}
