/* Input: tiktoken.model. What is accepted has tokens of at least a byte, one for each rank. */
#include "formats/tiktoken.h"

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mica_ranks ranks;
    mica_error error = {0};
    mica_status status = mica_ranks_parse("tiktoken.model", (const char *)data, size, &ranks, &error);
    if (status != MICA_OK) {
        fuzz_check_refusal(status, &error, "tiktoken.model");
        return 0;
    }
    uint64_t sum = 0;
    FUZZ_CHECK(ranks.count > 0 && ranks.starts[0] == 0);
    for (uint32_t rank = 0; rank < ranks.count; rank++) {
        FUZZ_CHECK(ranks.starts[rank + 1] > ranks.starts[rank]);
        for (uint32_t i = ranks.starts[rank]; i < ranks.starts[rank + 1]; i++)
            sum += ranks.bytes[i];
    }
    FUZZ_CHECK(sum <= 255 * (uint64_t)ranks.starts[ranks.count]);
    mica_ranks_release(&ranks);
    return 0;
}
