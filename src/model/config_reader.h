/* model/config_reader.h: how the files that read config.json refuse a key: where it stands, what was expected, what was there.
 * Private to src/model/config*.c. */
#ifndef MICA_MODEL_CONFIG_READER_H
#define MICA_MODEL_CONFIG_READER_H

#include "base/json.h"
#include "model/config.h"

typedef struct mica_config_reader {
    const char *name;     /* of the file */
    const char *scope;    /* before keys in messages: "" or "text_config." */
    const json_t *object; /* where keys are looked up */
} mica_config_reader;

/* value NULL: absent */
mica_status mica_config_refuse(const mica_config_reader *reader, const char *key, const json_t *value, const char *expected,
                               mica_error *error);
/* An integer of `object` from minimum to maximum; `key` is also its name in the message. */
mica_status mica_config_integer(const mica_config_reader *reader, const json_t *object, const char *key, uint64_t minimum, uint64_t maximum,
                                uint64_t *value, mica_error *error) MICA_CHECKED;
/* A finite number above 0; absent: untouched. */
mica_status mica_config_positive(const mica_config_reader *reader, const json_t *object, const char *key, double *value,
                                 mica_error *error) MICA_CHECKED;
bool mica_config_absent(const json_t *object, const char *key); /* absent or null */

/* rope_theta and rope_scaling or rope_parameters of reader->object. */
mica_status mica_config_read_rope(const mica_config_reader *reader, mica_config *config, mica_error *error) MICA_CHECKED;

/* reader->object: the object that may hold quantization_config. */
mica_status mica_config_read_quantisation(const mica_config_reader *reader, mica_config *config, mica_error *error) MICA_CHECKED;

#endif
