/* Input: the size of the data (8 bytes, little-endian), then a header. What is accepted must cover the data exactly once. */
#include "formats/safetensors.h"

#include "fuzz.h"

static void check(const mica_safetensors *safetensors, uint64_t header_end, uint64_t data_bytes) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < safetensors->tensor_count; i++) {
        const mica_tensor *tensor = &safetensors->tensors[i];
        FUZZ_CHECK(i == 0 || strcmp(tensor[-1].name, tensor->name) < 0);
        FUZZ_CHECK(tensor->rank <= MICA_RANK_MAX && tensor->dtype < MICA_DTYPE_PLAIN_COUNT);
        FUZZ_CHECK(tensor->bytes == tensor->elements * mica_dtype_bytes(tensor->dtype));
        FUZZ_CHECK(tensor->offset >= header_end && tensor->offset - header_end <= data_bytes);
        FUZZ_CHECK(tensor->bytes <= data_bytes - (tensor->offset - header_end));
        sum += tensor->bytes;
        for (size_t at = 0, length = strlen(tensor->name), sequence; at < length; at += sequence) {
            sequence = mica_utf8_sequence(tensor->name + at, length - at);
            FUZZ_CHECK(sequence > 0);
        }
    }
    FUZZ_CHECK(sum == data_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mica_safetensors safetensors;
    mica_error error = {0};
    uint64_t data_bytes = 0, header_bytes = size < 8 ? 0 : size - 8, file_bytes;
    for (size_t i = 8; size >= 8 && i-- > 0;)
        data_bytes = data_bytes << 8 | data[i];
    if (__builtin_add_overflow(data_bytes, 8 + header_bytes, &file_bytes))
        return 0; /* no such file */
    const char *header = header_bytes ? (const char *)data + 8 : "";
    mica_status status = mica_safetensors_parse("x.safetensors", header, header_bytes, file_bytes, &safetensors, &error);
    if (status != MICA_OK) {
        fuzz_check_refusal(status, &error, "x.safetensors");
        return 0;
    }
    check(&safetensors, 8 + header_bytes, data_bytes);
    mica_safetensors_release(&safetensors);
    return 0;
}
