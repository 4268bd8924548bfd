#include "model/tokenizer_build.h"
mica_status mica_tokenizer_from_json(const char *name, const char *text, uint64_t length, const mica_token_settings *settings,
                                     mica_tokenizer **tokenizer, mica_error *error) {
    (void)text, (void)length, (void)settings, (void)tokenizer;
    return mica_fail(error, MICA_BAD_INPUT, "%s: not read yet", name);
}
