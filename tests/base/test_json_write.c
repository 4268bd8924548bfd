/* Writing JSON: the exact bytes. */
#include <float.h>
#include <locale.h>
#include <math.h>

#include "base/json.h"
#include "base/no_memory.h"
#include "base/scratch.h"

static void the_whole_layout(void **state) {
    (void)state;
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "name", "tiny");
    mica_json_u64(&writer, "count", UINT64_MAX);
    mica_json_bool(&writer, "yes", true);
    mica_json_bool(&writer, "no", false);
    mica_json_null(&writer, "nothing");
    mica_json_string(&writer, "absent", NULL);
    mica_json_open_array(&writer, "list");
    mica_json_u64(&writer, NULL, 1);
    mica_json_open_object(&writer, NULL);
    mica_json_close_object(&writer);
    mica_json_open_array(&writer, NULL);
    mica_json_close_array(&writer);
    mica_json_close_array(&writer);
    mica_json_open_row(&writer, "row");
    mica_json_double(&writer, NULL, 1);
    mica_json_double(&writer, NULL, 0.5);
    mica_json_open_row(&writer, NULL);
    mica_json_u64(&writer, NULL, 2);
    mica_json_u64(&writer, NULL, 3);
    mica_json_close_array(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_u64(&writer, "a", 4);
    mica_json_u64(&writer, "b", 5);
    mica_json_close_object(&writer);
    mica_json_close_array(&writer);
    mica_json_open_object(&writer, "last");
    mica_json_u64(&writer, "k", 6);
    mica_json_close_object(&writer);
    mica_json_close_object(&writer);
    uint64_t length = 0;
    char *text = mica_json_finish(&writer, &length);
    assert_string_equal(text, "{\n"
                              "  \"name\": \"tiny\",\n"
                              "  \"count\": 18446744073709551615,\n"
                              "  \"yes\": true,\n"
                              "  \"no\": false,\n"
                              "  \"nothing\": null,\n"
                              "  \"absent\": null,\n"
                              "  \"list\": [\n"
                              "    1,\n"
                              "    {},\n"
                              "    []\n"
                              "  ],\n"
                              "  \"row\": [1.0, 0.5, [2, 3], {\"a\": 4, \"b\": 5}],\n"
                              "  \"last\": {\n"
                              "    \"k\": 6\n"
                              "  }\n"
                              "}\n");
    assert_int_equal(length, strlen(text));
    mica_free(text);
}

static char *one_double(double value) {
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_double(&writer, NULL, value);
    char *text = mica_json_finish(&writer, NULL);
    assert_non_null(text);
    text[strlen(text) - 1] = 0; /* the newline */
    return text;
}

static const struct {
    double value;
    const char *text;
} doubles[] = {
    {0.0, "0.0"},           {-0.0, "-0.0"},   {1.0, "1.0"},
    {0.1, "0.1"},           {1e22, "1e+22"},  {1.0 / 3, "0.3333333333333333"},
    {0.1 + 0.2, "0.30000000000000004"},       {5e-324, "4.94065645841247e-324"},
    {DBL_MAX, "1.7976931348623157e+308"},     {123456789012345680.0, "1.2345678901234568e+17"},
    {INFINITY, "null"},     {-INFINITY, "null"}, {NAN, "null"},
    {100000.0, "100000.0"}, {1e15, "1e+15"},
};

static void doubles_are_short_and_exact(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof doubles / sizeof doubles[0]; i++) {
        char *text = one_double(doubles[i].value);
        assert_string_equal(text, doubles[i].text);
        mica_free(text);
    }
    uint64_t random = 12345;
    for (int i = 0; i < 20000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint64_t bits = random ^ random >> 29;
        double value;
        memcpy(&value, &bits, 8);
        if (!isfinite(value))
            continue;
        char *text = one_double(value);
        double back = strtod(text, NULL);
        assert_memory_equal(&back, &value, 8);
        assert_non_null(strpbrk(text, ".e"));
        mica_free(text);
    }
}

/* A locale with a decimal comma: one that is installed, or one made here from Debian's sources. */
static bool set_a_comma_locale(void) {
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", NULL};
    for (size_t i = 0; names[i]; i++) {
        if (setlocale(LC_NUMERIC, names[i]))
            return true;
    }
    char command[600];
    snprintf(command, sizeof command, "localedef --no-archive -i de_DE -f UTF-8 '%s' >/dev/null 2>&1", scratch("de_DE.UTF-8"));
    int ignored = system(command); /* exits 1 for mere warnings */
    (void)ignored;
    setenv("LOCPATH", scratch_directory, 1);
    return setlocale(LC_NUMERIC, "de_DE.UTF-8") != NULL;
}

static void the_locale_does_not_matter(void **state) {
    (void)state;
    if (!set_a_comma_locale()) {
        print_message("skipped: no locale with a decimal comma can be had\n");
        skip();
    }
    char point[16];
    snprintf(point, sizeof point, "%.1f", 0.5);
    assert_string_equal(point, "0,5");
    for (size_t i = 0; i < sizeof doubles / sizeof doubles[0]; i++) {
        char *text = one_double(doubles[i].value);
        assert_string_equal(text, doubles[i].text);
        mica_free(text);
    }
    setlocale(LC_NUMERIC, "C");
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", scratch("de_DE.UTF-8"));
    assert_int_equal(system(command), 0);
}

static void strings_are_escaped_and_valid(void **state) {
    (void)state;
    mica_json_writer writer;
    mica_json_begin(&writer);
    mica_json_open_object(&writer, NULL);
    mica_json_string(&writer, "k\"\\", "\x01\n\t\x7f é \xff\xc3/");
    mica_json_close_object(&writer);
    char *text = mica_json_finish(&writer, NULL);
    assert_string_equal(text, "{\n  \"k\\\"\\\\\": \"\\u0001\\u000a\\u0009\\u007f é \xef\xbf\xbd\xef\xbf\xbd/\"\n}\n");
    json_t *object = NULL;
    assert_int_equal(mica_json_parse("x", text, strlen(text), &object, NULL), MICA_OK);
    assert_string_equal(json_string_value(json_object_get(object, "k\"\\")), "\x01\n\t\x7f é \xef\xbf\xbd\xef\xbf\xbd/");
    json_decref(object);
    mica_free(text);
}

static void running_out_of_memory_gives_null(void **state) {
    (void)state;
    uint64_t length = 7;
    mica_json_writer writer;
    for (no_memory trial = {0}; no_memory_next(&trial);) {
        no_memory_begin(&trial);
        mica_json_begin(&writer);
        mica_json_open_array(&writer, NULL);
        for (int i = 0; i < 100; i++)
            mica_json_u64(&writer, NULL, 1000);
        mica_json_close_array(&writer);
        char *text = mica_json_finish(&writer, &length);
        no_memory_end(&trial, text ? MICA_OK : MICA_NO_MEMORY, MICA_OK, NULL);
        assert_int_equal(length, text ? strlen(text) : 7);
        mica_free(text);
        length = 7;
    }
}

static void deep_levels_are_indented(void **state) {
    (void)state;
    mica_json_writer writer;
    mica_json_begin(&writer);
    for (int i = 0; i < 40; i++)
        mica_json_open_array(&writer, NULL);
    mica_json_u64(&writer, NULL, 1);
    for (int i = 0; i < 40; i++)
        mica_json_close_array(&writer);
    char *text = mica_json_finish(&writer, NULL);
    char line[90];
    memset(line, ' ', 80);
    strcpy(line + 80, "1\n");
    assert_non_null(strstr(text, line));
    assert_int_equal(strstr(text, line)[-1], '\n');
    mica_free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_whole_layout),
        cmocka_unit_test(doubles_are_short_and_exact),
        cmocka_unit_test(the_locale_does_not_matter),
        cmocka_unit_test(strings_are_escaped_and_valid),
        cmocka_unit_test(running_out_of_memory_gives_null),
        cmocka_unit_test(deep_levels_are_indented),
    };
    return cmocka_run_group_tests_name("json_write", tests, scratch_make, scratch_remove);
}
