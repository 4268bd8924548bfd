/* Input: model.safetensors.index.json. What is accepted is sorted, unique, and names only plain files. */
#include "formats/index.h"

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mica_index index;
    mica_error error = {0};
    mica_status status = mica_index_parse("index.json", (const char *)data, size, &index, &error);
    if (status != MICA_OK) {
        fuzz_check_refusal(status, &error, "index.json");
        return 0;
    }
    FUZZ_CHECK(index.entry_count > 0 && index.shard_count > 0 && index.shard_count <= index.entry_count);
    for (uint64_t i = 0; i < index.entry_count; i++) {
        FUZZ_CHECK(i == 0 || strcmp(index.entries[i - 1].tensor, index.entries[i].tensor) < 0);
        FUZZ_CHECK(index.entries[i].shard < index.shard_count);
    }
    for (uint32_t i = 0; i < index.shard_count; i++) {
        const char *shard = index.shards[i];
        FUZZ_CHECK(i == 0 || strcmp(index.shards[i - 1], shard) < 0);
        FUZZ_CHECK(*shard && !strchr(shard, '/') && strcmp(shard, ".") != 0 && strcmp(shard, "..") != 0);
    }
    mica_index_release(&index);
    return 0;
}
