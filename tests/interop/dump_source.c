/* tests/interop/dump_source PATH: the metadata and the tensors of a source as mica reads them, for the scripts beside it. Lines
 *     key NAME TYPE array|scalar VALUE...        (strings in hexadecimal, numbers in decimal, floats as %a)
 *     tensor NAME DTYPE SIZE,SIZE,... COUNT      followed by COUNT float32 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/memory.h"
#include "formats/gguf.h"
#include "formats/tensor_source.h"
#include "numerics/matrix.h"

static void dump_entry(const mica_gguf_entry *entry) {
    printf("key %s %s %s", entry->key, mica_gguf_type_name(entry->type), entry->is_array ? "array" : "scalar");
    uint64_t at = 0;
    mica_gguf_string string;
    if (entry->type == MICA_GGUF_STRING) {
        while (mica_gguf_next_string(entry, &at, &string)) {
            printf(" x");
            for (uint64_t i = 0; i < string.length; i++)
                printf("%02x", (unsigned char)string.bytes[i]);
        }
    }
    for (uint64_t i = 0; entry->type != MICA_GGUF_STRING && i < entry->count; i++) {
        if (entry->type == MICA_GGUF_FLOAT32 || entry->type == MICA_GGUF_FLOAT64)
            printf(" %a", mica_gguf_float_at(entry, i));
        else if (entry->type == MICA_GGUF_UINT64)
            printf(" %" PRIu64, (uint64_t)mica_gguf_integer_at(entry, i));
        else
            printf(" %" PRId64, mica_gguf_integer_at(entry, i));
    }
    printf("\n");
}

static mica_status dump_tensor(const mica_tensor_source *source, const mica_tensor *tensor, mica_error *error) {
    bool block = mica_dtype_is_block(tensor->dtype);
    void *bytes = mica_malloc(tensor->bytes + 1);
    float *values = mica_reallocarray(NULL, tensor->elements + 1, sizeof *values);
    if (!bytes || !values)
        return mica_fail(error, MICA_NO_MEMORY, "no memory");
    mica_status status = mica_file_read(source->shards[tensor->shard].file, tensor->offset, bytes, tensor->bytes, error);
    uint64_t columns = tensor->rank ? tensor->shape[tensor->rank - 1] : 1;
    mica_matrix matrix = {.encoding = block ? MICA_ENCODING_BLOCK : MICA_ENCODING_PLAIN, .dtype = tensor->dtype,
                          .rows = columns ? tensor->elements / columns : 0, .columns = columns, .codes = bytes};
    if (status == MICA_OK) {
        mica_matrix_decode(&matrix, 0, 0, matrix.rows, values, columns);
        printf("tensor %s %s ", tensor->name, mica_dtype_name(tensor->dtype));
        for (uint32_t i = 0; i < tensor->rank; i++)
            printf("%s%" PRIu64, i ? "," : "", tensor->shape[i]);
        printf(" %" PRIu64 "\n", tensor->elements);
        fwrite(values, sizeof *values, tensor->elements, stdout);
    }
    mica_free(values);
    mica_free(bytes);
    return status;
}

int main(int argc, char **argv) {
    mica_tensor_source *source;
    mica_error error = {0};
    if (argc != 2)
        return 2;
    mica_status status = mica_tensor_source_open(argv[1], &source, &error);
    if (status == MICA_OK) {
        const mica_gguf *gguf = mica_gguf_of_source(source);
        for (uint64_t i = 0; gguf && i < gguf->entry_count; i++)
            dump_entry(&gguf->entries[i]);
        for (uint64_t i = 0; status == MICA_OK && i < source->tensor_count; i++)
            status = dump_tensor(source, &source->tensors[i], &error);
        mica_tensor_source_close(source);
    }
    if (status != MICA_OK)
        fprintf(stderr, "%s\n", error.message);
    return mica_status_exit(status);
}
