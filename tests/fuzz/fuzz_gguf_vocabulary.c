/* Input: the start of a GGUF file without tensors. What becomes a tokenizer encodes any bytes to ids that it has, and decodes each of its
 * ids; a byte-level one gives the same bytes back. */
#include "base/memory.h"
#include "fuzz.h"
#include "model/tokenizer_build.h"

static void check(const mica_tokenizer *tokenizer) {
    static const char text[] = "a 12 \n'S\xe6\xbc\xa2<s>\xf0\x9f\x98\x80\xff\xcc";
    mica_token_list ids = {0};
    mica_error error;
    char *bytes = NULL;
    uint64_t length, count = mica_tokenizer_count(tokenizer);
    mica_status status = mica_tokenizer_append(tokenizer, text, sizeof text, true, &ids, &error);
    FUZZ_CHECK(status == MICA_OK || status == MICA_FAILED || status == MICA_BAD_INPUT || status == MICA_NO_MEMORY);
    for (uint64_t i = 0; i < ids.count; i++)
        FUZZ_CHECK(ids.ids[i] < count);
    if (status == MICA_OK)
        FUZZ_CHECK(mica_tokenizer_decode(tokenizer, ids.ids, ids.count, &bytes, &length, &error) == MICA_OK);
    if (status == MICA_OK && !tokenizer->characters && !tokenizer->compose)
        FUZZ_CHECK(length == sizeof text && memcmp(bytes, text, length) == 0);
    mica_free(bytes);
    mica_token_list_release(&ids);
    for (uint32_t id = 0; id < count && id < 1000; id++) {
        FUZZ_CHECK(mica_tokenizer_decode(tokenizer, &id, 1, &bytes, &length, &error) == MICA_OK);
        mica_free(bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mica_gguf gguf;
    mica_tokenizer *tokenizer = NULL;
    mica_error error = {0};
    mica_status status = mica_gguf_parse("x.gguf", data, size, size, &gguf, &error);
    if (status == MICA_OK) {
        status = mica_tokenizer_from_gguf(&gguf, &tokenizer, &error);
        if (status == MICA_OK)
            check(tokenizer);
        mica_tokenizer_close(tokenizer);
        mica_gguf_release(&gguf);
    }
    if (status != MICA_OK)
        fuzz_check_refusal(status, &error, "x.gguf");
    return 0;
}
