/* operations/output.c: see the header. Judged by the tests of those who report: test_inspect, test_index, test_vindex_verify. */
#include "operations/output.h"

#include "base/memory.h"

mica_status mica_output_give(mica_status status, mica_text *words, mica_json_writer *writer, char **text, char **json, mica_error *error) {
    char *made[2] = {mica_text_take(words), mica_json_finish(writer, NULL)}, **wanted[2] = {text, json};
    if (status == MICA_OK && (!made[0] || !made[1]))
        status = mica_fail(error, MICA_NO_MEMORY, "out of memory for the report");
    for (int i = 0; i < 2; i++) {
        if (status == MICA_OK && wanted[i])
            *wanted[i] = made[i];
        else
            mica_free(made[i]);
    }
    return status;
}
