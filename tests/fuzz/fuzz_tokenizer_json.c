/* Input: tokenizer.json. What is accepted encodes bytes, and decodes them to the same, unless it composes, adds spaces or takes them. */
#include "base/memory.h"
#include "fuzz.h"
#include "model/tokenizer_build.h"

static void check(const mica_tokenizer *tokenizer) {
    static const char text[] = "a 12 \n'S\xe6\xbc\xa2<s>\xf0\x9f\x98\x80\xff\xcc";
    mica_token_list ids = {0};
    mica_error error;
    char *bytes = NULL;
    uint64_t length;
    mica_status status = mica_tokenizer_append(tokenizer, text, sizeof text, true, &ids, &error);
    FUZZ_CHECK(status == MICA_OK || status == MICA_FAILED); /* a pattern may need more steps than PCRE2 allows */
    if (status == MICA_OK) {
        FUZZ_CHECK(mica_tokenizer_decode(tokenizer, ids.ids, ids.count, &bytes, &length, &error) == MICA_OK);
        bool strips = tokenizer->compose || tokenizer->characters;
        for (uint32_t id = 0; id < tokenizer->count; id++)
            strips |= (tokenizer->added[id] & (MICA_ADDED_STRIPS_LEFT | MICA_ADDED_STRIPS_RIGHT)) != 0;
        FUZZ_CHECK(strips || (length == sizeof text && memcmp(bytes, text, length) == 0));
    }
    mica_free(bytes);
    mica_token_list_release(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const mica_token_settings settings = {.bos_id = MICA_TOKEN_NONE};
    mica_tokenizer *tokenizer = NULL;
    mica_error error = {0};
    mica_status status = mica_tokenizer_from_json("tokenizer.json", (const char *)data, size, &settings, &tokenizer, &error);
    if (status != MICA_OK) {
        fuzz_check_refusal(status, &error, "tokenizer.json");
        return 0;
    }
    check(tokenizer);
    mica_tokenizer_close(tokenizer);
    return 0;
}
