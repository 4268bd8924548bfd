/* Input: the start of a GGUF file; its size is what is given and, where the first byte after it says so, more (data that is not looked at).
 * What is accepted lies within the file, in order, without overlap, and every value can be asked for. */
#include "formats/gguf.h"

#include "fuzz.h"

static void check_entries(const mica_gguf *gguf, const uint8_t *data, size_t size) {
    for (uint64_t i = 0; i < gguf->entry_count; i++) {
        const mica_gguf_entry *entry = &gguf->entries[i];
        FUZZ_CHECK(i == 0 || strcmp(gguf->by_key[i - 1]->key, gguf->by_key[i]->key) < 0);
        FUZZ_CHECK(mica_gguf_find(gguf, entry->key) == entry);
        FUZZ_CHECK(entry->type < MICA_GGUF_TYPE_COUNT && entry->type != MICA_GGUF_ARRAY && (entry->is_array || entry->count == 1));
        FUZZ_CHECK(entry->bytes >= data && entry->length <= size - (size_t)(entry->bytes - data));
        uint64_t at = 0, strings = 0;
        mica_gguf_string string;
        while (entry->type == MICA_GGUF_STRING && mica_gguf_next_string(entry, &at, &string)) {
            FUZZ_CHECK((const uint8_t *)string.bytes + string.length <= data + size);
            strings++;
        }
        FUZZ_CHECK(entry->type == MICA_GGUF_STRING ? strings == entry->count
                                                   : entry->length == entry->count * mica_gguf_type_bytes(entry->type));
    }
}

static void check_tensors(const mica_gguf *gguf, uint64_t file_bytes) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < gguf->tensor_count; i++) {
        const mica_tensor *tensor = &gguf->tensors[i];
        uint64_t bytes = 0;
        FUZZ_CHECK(i == 0 || strcmp(tensor[-1].name, tensor->name) < 0);
        FUZZ_CHECK(strlen(tensor->name) > 0 && strlen(tensor->name) < MICA_GGUF_TENSOR_NAME_BYTES);
        FUZZ_CHECK(tensor->rank <= MICA_GGUF_RANK_MAX && mica_dtype_ggml(tensor->dtype) >= 0);
        FUZZ_CHECK(mica_dtype_run_bytes(tensor->dtype, tensor->elements, &bytes) && bytes == tensor->bytes);
        FUZZ_CHECK(tensor->offset % gguf->alignment == 0 && tensor->offset >= gguf->data_offset);
        FUZZ_CHECK(tensor->bytes == 0 || (tensor->offset < file_bytes && tensor->bytes <= file_bytes - tensor->offset));
        sum += tensor->bytes;
    }
    FUZZ_CHECK(sum <= file_bytes);
}

static void run(const uint8_t *data, size_t size, uint64_t file_bytes) {
    mica_gguf gguf;
    mica_error error = {0};
    mica_status status = mica_gguf_parse("x.gguf", data, size, file_bytes, &gguf, &error);
    if (status != MICA_OK) {
        fuzz_check_refusal(status, &error, "x.gguf");
        return;
    }
    check_entries(&gguf, data, size);
    check_tensors(&gguf, file_bytes);
    mica_gguf_release(&gguf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    run(data, size, size);
    if (size > 0)
        run(data, size - 1, size - 1 + (UINT64_C(1) << data[size - 1] % 63));
    return 0;
}
