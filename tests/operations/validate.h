/* tests/operations/validate.h: JSON text against a schema of docs/schemas, by python3-jsonschema (an implementation that is not ours). */
#ifndef TESTS_OPERATIONS_VALIDATE_H
#define TESTS_OPERATIONS_VALIDATE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline bool validator_exists(void) {
    bool found = system("/usr/bin/python3 -c 'import jsonschema' 2>/dev/null") == 0;
    if (!found)
        printf("skipped: python3-jsonschema is not installed\n");
    return found;
}

/* True when `json` satisfies docs/schemas/<schema>. */
static inline bool validates(const char *schema, const char *json) {
    char command[1024];
    snprintf(command, sizeof command,
             "/usr/bin/python3 -c 'import json, jsonschema, sys; s = json.load(open(sys.argv[1])); "
             "jsonschema.Draft202012Validator.check_schema(s); jsonschema.Draft202012Validator(s).validate(json.load(sys.stdin))' "
             "'" MICA_SOURCE_DIR "/docs/schemas/%s'",
             schema);
    FILE *pipe = popen(command, "w");
    assert_non_null(pipe);
    fputs(json, pipe);
    return pclose(pipe) == 0;
}

#endif
